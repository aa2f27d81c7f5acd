//! What bodies look like: CloudEvents in both modes, read by that specification's own SDK, and the data alone.

use std::process::Command;

use postrider_proto::v1::{Event, PayloadOptions, Webhook, payload_options::Format};
use postrider_tests::client::{event, signature, webhook};
use postrider_tests::cluster::Cluster;
use postrider_tests::receiver::{Proof, Received, Receiver};
use postrider_tests::root;
use serde_json::{Value, json};

use crate::{ACCOUNT, SOON};

/// What the SDK reads in each of these requests.
fn read_by_the_sdk(requests: &[&Received]) -> Vec<Value> {
    let shown = requests.iter().map(|request| {
        let headers = request.headers.iter().map(|(name, value)| {
            let value = value.to_str().unwrap().to_owned();
            (name.to_string(), Value::String(value))
        });
        json!({"headers": headers.collect::<serde_json::Map<_, _>>(), "body": std::str::from_utf8(&request.body).unwrap()})
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("requests.json");
    std::fs::write(&file, json!(shown.collect::<Vec<_>>()).to_string()).unwrap();
    let python = root().join(".tools/venv/bin/python");
    assert!(python.is_file(), "run `make venv`: {} is missing", python.display());
    let script = root().join("tests/scenarios/read_cloudevents.py");
    let output = Command::new(python).arg(script).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_webhook_chooses_the_form_of_its_bodies() {
    let cluster = Cluster::of(1, 1, 1).await;
    let receiver = Receiver::start();
    let client = cluster.client(0);
    for (id, format) in [
        ("structured", Format::CloudeventsStructured),
        ("binary", Format::CloudeventsBinary),
        ("raw", Format::Raw),
    ] {
        let wanted = Webhook {
            payload: Some(PayloadOptions { format: format.into() }),
            ..webhook(&receiver.url(&format!("/{id}")), &["*"], signature())
        };
        let created = client.create_webhook(ACCOUNT, id, wanted).await;
        assert_eq!(created.payload.unwrap().format(), format);
        let secret = client
            .signing_secret(&format!("accounts/{ACCOUNT}/webhooks/{id}"))
            .await;
        receiver.expect(&format!("/{id}"), Proof::Signature(secret));
    }
    let data = r#"{ "b" : 1.50,"a":[1e3,"\u00e9"] }"#;
    let published = Event {
        timestamp: Some(prost_types::Timestamp {
            seconds: 1_727_414_643,
            nanos: 250_000_000,
        }),
        event_info: "50 % \"é\"".to_owned(),
        ordering_key: "user/7".to_owned(),
        ..event("e-1", "COURSE_COMPLETED", data)
    };
    client.publish(ACCOUNT, vec![published]).await;
    receiver
        .until("one event in three forms", SOON, |log| log.distinct() == 3)
        .await;
    cluster.drained(SOON).await;

    let log = receiver.log();
    assert_eq!(
        (log.unproven(), log.repeats()),
        (0, 0),
        "what is signed is what is sent"
    );
    let of = |path| log.of(path)[0];
    for path in ["/raw", "/binary"] {
        assert_eq!(std::str::from_utf8(&of(path).body).unwrap(), data);
        assert_eq!(of(path).header("content-type"), "application/json");
    }
    assert!(of("/raw").headers.keys().all(|name| !name.as_str().starts_with("ce-")));
    assert!(
        std::str::from_utf8(&of("/structured").body)
            .unwrap()
            .ends_with(&format!("\"data\":{data}}}"))
    );

    let read = read_by_the_sdk(&[of("/structured"), of("/binary")]);
    let expected = json!({
        "attributes": {
            "specversion": "1.0",
            "id": "e-1",
            "source": format!("/accounts/{ACCOUNT}"),
            "type": "COURSE_COMPLETED",
            "time": "2024-09-27 05:24:03.250000+00:00",
            "eventinfo": "50 % \"é\"",
            "partitionkey": "user/7",
            "datacontenttype": "application/json",
        },
        "data": {"a": [1000.0, "é"], "b": 1.5},
    });
    assert_eq!(read, [expected.clone(), expected]);
}
