//! Brings an etcd back that has no space left (the NOSPACE alarm): compact, defragment one member after the other, disarm.
//!
//! Compacting frees what is kept of the past, defragmenting gives it back to the quota (which counts the file, not what is in use), and only disarming
//! makes etcd take writes again. All three are allowed while the alarm is raised. A member answers nothing while it is defragmented, so the leader is last:
//! clients move on to another member, and there is one election at most.

use std::fmt;
use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, Error, StatusResponse,
};

use secrecy::ExposeSecret as _;

use super::access::{Credentials, read_password};
use super::classify::{Kind, classify};
use super::member::failure;

/// How long one step may take: a member with 8 GiB is defragmented within minutes.
const STEP_DEADLINE: Duration = Duration::from_secs(600);

/// How long a member may take to be connected.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Whether anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Do it.
    Apply,
    /// Only say what would be done.
    DryRun,
}

/// Why an etcd was not brought back. What was done until then does no harm, and all of it can be done again.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// A step failed.
    #[error("{step}: {why}")]
    Step {
        /// What was tried, on which member.
        step: String,
        /// What it answered.
        why: String,
    },
    /// Members would be left as they are, and raise the alarm again.
    #[error("etcd has members that --store does not list: {0}; list all of them")]
    Unlisted(String),
    /// The alarm is there again.
    #[error(
        "the alarm is raised again: what the store holds now needs more than its quota; raise --quota-backend-bytes"
    )]
    Again,
}

/// One member, as it was found.
struct Found {
    endpoint: String,
    client: Client,
    status: StatusResponse,
}

impl Found {
    fn id(&self) -> u64 {
        self.status.header().map_or(0, etcd_client::ResponseHeader::member_id)
    }

    fn leads(&self) -> bool {
        self.id() == self.status.leader()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, in_use) = (self.status.db_size(), self.status.raft_used_db_size());
        let leads = if self.leads() { ", leads" } else { "" };
        write!(
            formatter,
            "{} (etcd {}{leads}): {size} bytes, {in_use} in use",
            self.endpoint,
            self.status.version()
        )
    }
}

/// Brings the cluster of `endpoints` back, and tells each step to `say` before it is done. Does no harm where there is no alarm. Where etcd has its
/// authentication enabled, the user must have the role root.
///
/// # Errors
/// As [`RecoverError`].
pub async fn recover(
    endpoints: &[String],
    credentials: Option<&Credentials>,
    mode: Mode,
    say: impl Fn(String),
) -> Result<(), RecoverError> {
    let mut members = find(endpoints, credentials).await?;
    members.sort_by_key(Found::leads);
    for member in &members {
        say(member.to_string());
    }
    check_all_are_listed(&members).await?;
    let revision = members.iter().filter_map(|member| member.status.header());
    let revision = revision.map(etcd_client::ResponseHeader::revision).max().unwrap_or(0);
    let alarms = alarms(&members).await?;
    say(format!("members with the NOSPACE alarm: {}", alarms.len()));
    let would = match mode {
        Mode::Apply => "",
        Mode::DryRun => "would ",
    };
    say(format!("{would}compact to revision {revision}"));
    if mode == Mode::Apply {
        compact(&members, revision).await?;
    }
    for member in &members {
        say(format!("{would}defragment {}", member.endpoint));
        if mode == Mode::Apply {
            // The members before it may have taken longer than a token lives.
            step("authenticate", &member.endpoint, member.client.refresh_token()).await?;
            let mut maintenance = member.client.maintenance_client();
            step("defragment", &member.endpoint, maintenance.defragment()).await?;
            // Not before it answers again is the next one taken.
            let status = step("status", &member.endpoint, maintenance.status()).await?;
            say(format!("{}: now {} bytes", member.endpoint, status.db_size()));
        }
    }
    for member in alarms {
        say(format!("{would}disarm the alarm of member {member:x}"));
        if mode == Mode::Apply {
            disarm(&members, member).await?;
        }
    }
    if mode == Mode::Apply && !self::alarms(&members).await?.is_empty() {
        return Err(RecoverError::Again);
    }
    Ok(())
}

async fn find(endpoints: &[String], credentials: Option<&Credentials>) -> Result<Vec<Found>, RecoverError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_DEADLINE)
        .with_timeout(STEP_DEADLINE);
    if let Some(credentials) = credentials {
        let password = read_password(&credentials.password_file).map_err(|error| RecoverError::Step {
            step: "read the password".to_owned(),
            why: error.to_string(),
        })?;
        options = options.with_user(credentials.user.as_str(), password.expose_secret());
    }
    let mut members = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let connect = Client::connect([format!("http://{endpoint}")], Some(options.clone()));
        let client = step("connect", endpoint, connect).await?;
        let status = step("status", endpoint, client.maintenance_client().status()).await?;
        members.push(Found {
            endpoint: endpoint.clone(),
            client,
            status,
        });
    }
    Ok(members)
}

async fn check_all_are_listed(found: &[Found]) -> Result<(), RecoverError> {
    let Some(first) = found.first() else { return Ok(()) };
    let listed = first.client.cluster_client().member_list().await;
    let listed = step("list the members", &first.endpoint, async { listed }).await?;
    let unlisted = listed.members().iter();
    let unlisted = unlisted.filter(|member| !found.iter().any(|found| found.id() == member.id()));
    let unlisted: Vec<String> = unlisted
        .map(|member| format!("{} ({})", member.name(), member.client_urls().join(", ")))
        .collect();
    if unlisted.is_empty() {
        Ok(())
    } else {
        Err(RecoverError::Unlisted(unlisted.join(", ")))
    }
}

/// The members that raised the alarm.
async fn alarms(members: &[Found]) -> Result<Vec<u64>, RecoverError> {
    let Some(first) = members.first() else {
        return Ok(Vec::new());
    };
    step("authenticate", &first.endpoint, first.client.refresh_token()).await?;
    let mut maintenance = first.client.maintenance_client();
    let ask = maintenance.alarm(AlarmAction::Get, AlarmType::Nospace, None);
    let answer = step("ask for alarms", &first.endpoint, ask).await?;
    let raised = answer
        .alarms()
        .iter()
        .filter(|alarm| alarm.alarm() == AlarmType::Nospace);
    Ok(raised.map(etcd_client::AlarmMember::member_id).collect())
}

async fn compact(members: &[Found], revision: i64) -> Result<(), RecoverError> {
    let Some(first) = members.first() else { return Ok(()) };
    let options = CompactionOptions::new().with_physical();
    match first
        .client
        .kv_client()
        .compact(revision, Some(options))
        .await
        .map_err(failure)
    {
        Err(failure) if classify(&failure) != Kind::Compacted => Err(RecoverError::Step {
            step: format!("compact ({})", first.endpoint),
            why: failure.message,
        }),
        // The leader of a cell may have been there before.
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn disarm(members: &[Found], member: u64) -> Result<(), RecoverError> {
    let Some(first) = members.first() else { return Ok(()) };
    step("authenticate", &first.endpoint, first.client.refresh_token()).await?;
    let mut options = AlarmOptions::new();
    options.with_member(member);
    let mut maintenance = first.client.maintenance_client();
    let disarm = maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options));
    step("disarm", &first.endpoint, disarm).await.map(drop)
}

async fn step<T>(what: &str, endpoint: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, RecoverError> {
    call.await.map_err(|error| RecoverError::Step {
        step: format!("{what} ({endpoint})"),
        why: failure(error).message,
    })
}
