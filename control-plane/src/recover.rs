//! The command `etcd-recover`: brings an etcd back that has no space left.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context as _;
use postrider_common::config::{self, Exit, Setting, Settings};
use postrider_common::store::etcd::Credentials;
use postrider_common::store::etcd::recover::{Mode, recover};
use postrider_common::store::url;

/// The name of the command.
pub const COMMAND: &str = "etcd-recover";

const SETTINGS: &[Setting] = &[
    Setting::new(
        "store",
        "URL",
        "etcd://127.0.0.1:2379",
        "All members: etcd://HOST:PORT,HOST:PORT…",
    ),
    config::ETCD_USER,
    config::ETCD_PASSWORD_FILE,
    Setting::switch("dry-run", "Only say what would be done"),
];

/// Runs the command with its arguments.
///
/// # Errors
/// When a step fails; all of it can be done again.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let (endpoints, credentials, mode) = match read(arguments) {
        Ok(read) => read,
        Err(exit) => return Ok(exit.report()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime
        .block_on(recover(&endpoints, credentials.as_ref(), mode, |line| {
            println!("{line}")
        }))
        .context("etcd was not brought back")?;
    println!("done");
    Ok(ExitCode::SUCCESS)
}

/// The members, as whom they are called, and whether anything is done.
type Task = (Vec<String>, Option<Credentials>, Mode);

fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Task, Exit> {
    let about = "Brings an etcd back that has no space left: compacts, defragments one member after the other, disarms the alarm";
    let mut settings = Settings::read("control-plane etcd-recover", about, &[SETTINGS], arguments)?;
    let endpoints = settings.required("store", Vec::new(), url::etcd_endpoints);
    // A store that is no etcd has been named as a mistake.
    let credentials = config::etcd_credentials(&mut settings, "");
    let mode = if settings.is_on("dry-run") {
        Mode::DryRun
    } else {
        Mode::Apply
    };
    settings.finish()?;
    Ok((endpoints, credentials, mode))
}
