//! `postrider demo`: serves, starts a receiver of its own, creates webhooks with each kind of authentication, publishes the sample events and prints each
//! request as it arrives and is verified.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use postrider_common::config::{self, Setting, Settings};
use postrider_common::entropy::{SharedEntropy, SystemEntropy};
use postrider_common::time::{Clock as _, SystemClock};
use postrider_common::{admin, shutdown, task};
use postrider_proto::v1;
use postrider_proto::v1::auth::Method;
use postrider_proto::v1::publish_service_client::PublishServiceClient;
use postrider_proto::v1::webhook_service_client::WebhookServiceClient;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::receiver::{Arrival, Expected};
use crate::{catalogue, receiver, serve};

/// Settings of `demo`.
const DEMO: &[Setting] = &[
    Setting::optional(
        "data",
        "DIR",
        "A folder that keeps the state; a temporary one if not given",
    ),
    Setting::switch("once", "End once everything has arrived, with 0 if it was right"),
];

/// The account of the sample event.
const PARENT: &str = "accounts/1010";

/// How long the demonstration waits for what it published: far longer than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long events of a non-real-time type wait for others: short, for somebody is looking.
const BATCH_DELAY: prost_types::Duration = prost_types::Duration { seconds: 2, nanos: 0 };

/// Arrivals that wait to be printed.
const ARRIVALS: usize = 64;

/// Runs `postrider demo`.
pub(crate) fn main(arguments: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let entropy: SharedEntropy =
        Arc::new(SystemEntropy::new().context("the operating system gives no random numbers")?);
    let temporary = tempfile::tempdir().context("making a temporary folder")?;
    let about = "Serves, receives its own webhooks and prints each request as it arrives";
    let sources = [config::COMMON, DEMO, serve::SETTINGS];
    let read = Settings::read("postrider demo", about, &sources, arguments).and_then(|mut settings| {
        let data = settings
            .maybe("data", config::path)
            .unwrap_or_else(|| temporary.path().to_owned());
        let once = settings.is_on("once");
        let mut options = serve::options(&mut settings, data, &entropy)?;
        settings.finish()?;
        // Only the demonstration's own receiver listens there.
        let loopback = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::LOCALHOST, 32);
        options.control_plane.egress.allow.push(loopback.into());
        options.agent.egress.allow.push(loopback.into());
        Ok((options, once))
    });
    let (options, once) = match read {
        Ok(read) => read,
        Err(exit) => return Ok(exit.report()),
    };
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(async move {
            let group = task::Group::default();
            let stop = shutdown::on_signal(&group)?;
            let listener = TcpListener::bind(options.listen)
                .await
                .with_context(|| format!("listening on {}", options.listen))?;
            let address = listener.local_addr()?;
            println!("listening on {address} (grpc)");
            let server = serve::run(options, entropy.clone(), listener, stop.clone());
            let shown = async {
                let shown = show(address, &entropy, once, &stop).await;
                stop.cancel();
                shown
            };
            let (served, shown) = tokio::join!(server, shown);
            group.shut_down(admin::STOP_GRACE).await;
            served.and(shown).map(|()| ExitCode::SUCCESS)
        })
}

async fn show(server: SocketAddr, entropy: &SharedEntropy, once: bool, stop: &CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let receiver = listener.local_addr()?;
    println!("receiving on {receiver}");
    let channel = Endpoint::from_shared(format!("http://{server}"))?
        .connect_timeout(PATIENCE)
        .connect_lazy();
    let seeded = tokio::time::timeout(PATIENCE, catalogue::seed(channel.clone()))
        .await
        .context("the server did not start")??;
    println!("\nthe catalogue has {seeded} event types");

    let expected = create_webhooks(channel.clone(), receiver, entropy).await?;
    let webhooks = expected.len();
    let (sender, mut arrivals) = mpsc::channel(ARRIVALS);
    let group = task::Group::default();
    group.spawn("receiver", receiver::run(listener, expected, sender));

    let events = publish(channel).await?;
    let all = events * webhooks;
    println!(
        "what is real-time goes at once, what is not in a batch {} s later",
        BATCH_DELAY.seconds
    );
    let arrived = async {
        let mut wrong = 0;
        for number in 1..=all {
            let arrival = arrivals.recv().await.context("the receiver ended")?;
            wrong += usize::from(!print(number, all, &arrival));
        }
        ensure!(wrong == 0, "{wrong} of {all} requests were not right");
        anyhow::Ok(())
    };
    let in_time = tokio::time::timeout(PATIENCE, arrived).await;
    in_time.with_context(|| format!("not all {all} requests arrived within {} s", PATIENCE.as_secs()))??;
    println!("\nall {all} requests arrived and were verified");
    if !once {
        println!("\nstill serving: publish more to {server} and it is printed here; Ctrl-C ends\n");
        let mut number = all;
        while let Some(Some(arrival)) = stop.run_until_cancelled(arrivals.recv()).await {
            number += 1;
            print(number, number, &arrival);
        }
    }
    drop(arrivals);
    group.shut_down(admin::STOP_GRACE).await;
    Ok(())
}

/// Creates (or, in a folder that has them, replaces) one webhook for each kind of authentication, and says what the receiver has to expect on each path.
async fn create_webhooks(
    channel: Channel,
    receiver: SocketAddr,
    entropy: &SharedEntropy,
) -> anyhow::Result<BTreeMap<String, Expected>> {
    let mut client = WebhookServiceClient::new(channel);
    let username = "listener".to_owned();
    let password = entropy.uuid(SystemClock.now()).to_string();
    let basic = v1::BasicAuth {
        username: username.clone(),
        password: password.clone(),
    };
    let methods = [
        ("none", Method::None(v1::NoAuth {})),
        ("basic", Method::Basic(basic)),
        ("signature", Method::Signature(v1::SignatureAuth::default())),
    ];
    let mut expected = BTreeMap::new();
    for (id, method) in methods {
        let name = format!("{PARENT}/webhooks/demo-{id}");
        let delete = v1::DeleteWebhookRequest {
            name: name.clone(),
            allow_missing: true,
            ..Default::default()
        };
        client.delete_webhook(delete).await?;
        let webhook = v1::Webhook {
            display_name: format!("Demonstration, {id}"),
            target_url: format!("http://{receiver}/{id}"),
            auth: Some(v1::Auth { method: Some(method) }),
            event_types: vec!["COURSE_*".to_owned()],
            delivery: Some(v1::DeliveryOptions {
                max_delay: Some(BATCH_DELAY),
                ..v1::DeliveryOptions::default()
            }),
            ..v1::Webhook::default()
        };
        let create = v1::CreateWebhookRequest {
            parent: PARENT.to_owned(),
            webhook_id: format!("demo-{id}"),
            webhook: Some(webhook),
            ..Default::default()
        };
        let webhook = client.create_webhook(create).await?.into_inner();
        println!("created {} for {}", webhook.name, webhook.event_types.join(", "));
        let check = match id {
            "basic" => Expected::Basic {
                username: username.clone(),
                password: password.clone(),
            },
            "signature" => Expected::Signature(export_secret(&mut client, name).await?),
            _ => Expected::Nothing,
        };
        expected.insert(format!("/{id}"), check);
    }
    Ok(expected)
}

async fn export_secret(client: &mut WebhookServiceClient<Channel>, name: String) -> anyhow::Result<String> {
    let exported = client
        .export_signing_secret(v1::ExportSigningSecretRequest { name })
        .await?
        .into_inner();
    let document = exported.document.context("no document")?;
    let secrets = document.fields.get("secrets").and_then(|value| value.kind.as_ref());
    let Some(prost_types::value::Kind::ListValue(list)) = secrets else {
        anyhow::bail!("no secrets in the document")
    };
    let Some(prost_types::value::Kind::StructValue(first)) = list.values.first().and_then(|value| value.kind.as_ref())
    else {
        anyhow::bail!("no secret in the document")
    };
    match first.fields.get("secret").and_then(|value| value.kind.as_ref()) {
        Some(prost_types::value::Kind::StringValue(secret)) => Ok(secret.clone()),
        _ => anyhow::bail!("the secret is not text"),
    }
}

/// Publishes the sample event, and one that a person would type. Returns how many.
async fn publish(channel: Channel) -> anyhow::Result<usize> {
    let number = |value| prost_types::Value {
        kind: Some(prost_types::value::Kind::NumberValue(value)),
    };
    let typed = v1::Event {
        event_name: "COURSE_ENROLLMENT".to_owned(),
        body: Some(v1::event::Body::Data(prost_types::Struct {
            fields: [("userId".to_owned(), number(4_279_332.0))].into_iter().collect(),
        })),
        ..v1::Event::default()
    };
    let events = vec![catalogue::event()?, typed];
    let request = v1::PublishRequest {
        parent: PARENT.to_owned(),
        events,
        ..Default::default()
    };
    let answer = PublishServiceClient::new(channel).publish(request).await?.into_inner();
    for event in &answer.events {
        println!("published {} for {} webhooks", event.event_id, event.matched_webhooks);
    }
    Ok(answer.events.len())
}

/// Prints one request; answers whether it was right.
fn print(number: usize, all: usize, arrival: &Arrival) -> bool {
    println!("\n[{number}/{all}] POST {}", arrival.path);
    for (name, value) in &arrival.headers {
        println!("    {name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    println!("    {}", String::from_utf8_lossy(&arrival.body));
    match &arrival.verified {
        Ok(what) => println!("    verified: {what}"),
        Err(why) => println!("    NOT VERIFIED: {why}"),
    }
    arrival.verified.is_ok()
}
