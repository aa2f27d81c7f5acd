//! Clients of a control plane that do not behave: thousands that connect and say nothing, that announce what they never send, do not read what they are
//! answered, or go away before they are. It stays small, and others are served.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postrider_common::open_files;
use postrider_common::task::Group;
use postrider_proto::v1::PublishStreamRequest;
use postrider_tests::chaos::course::Course;
use postrider_tests::chaos::trial::Trial;
use postrider_tests::client::{Client, event};
use postrider_tests::cluster::Cluster;
use postrider_tests::usage::{Usage, open_files_of};
use postrider_tests::wait;
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;

use crate::FLOW;

/// Connections on which nothing is ever said.
const SILENT: usize = 3000;

/// Calls that announce a message of 4 MiB and send none of it: as many as a connection may have, on several.
const ANNOUNCED: usize = 4 * 128;

/// Streams whose answers nobody reads.
const UNREAD: usize = 8;

/// Calls whose callers go away at once.
const ABANDONED: usize = 300;

/// What all of them may cost: some KiB for each connection and stream, and an eighth of what was announced.
const MEMORY: u64 = 256 << 20;

/// Files that may still be open when all have gone.
const LEFT: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_is_silent_slow_or_gone_costs_little_and_nobody_else_notices() {
    open_files::raise_limit();
    let trial = Trial::of(Cluster::of(1, 1, 2).await, Course::of(4000, 12).paced(300.0)).await;
    let plane = trial.cluster.control_planes[0].process.pid();
    let (before, open) = (Usage::of(plane), open_files_of(plane));
    let publishing = trial.publishing();
    let crowding = async {
        let mut silent = Vec::new();
        for _ in 0..SILENT {
            silent.push(
                TcpStream::connect(trial.cluster.addresses()[0])
                    .await
                    .expect("it accepts"),
            );
        }
        let tasks = Group::default();
        for _ in 0..4 {
            announce(&trial, &tasks, ANNOUNCED / 4).await;
        }
        for _ in 0..UNREAD {
            stream_without_reading(&trial, &tasks);
        }
        for number in 0..ABANDONED {
            abandon(&trial, number).await;
        }
        trial.accepted(3000, FLOW).await;
        let used = Usage::of(plane);
        println!(
            "{} MiB before, {} MiB amid the crowd",
            before.resident_bytes >> 20,
            used.resident_bytes >> 20
        );
        assert!(open_files_of(plane) > open + SILENT, "all are there");
        assert!(used.resident_bytes < before.resident_bytes + MEMORY);
        drop(silent);
        tasks.shut_down(Duration::ZERO).await;
    };
    tokio::join!(publishing, crowding);
    trial.quiet(FLOW).await;
    wait::until("what was opened to be closed", FLOW, async || {
        (open_files_of(plane) < open + LEFT).then_some(())
    })
    .await;
    assert_eq!(trial.assert_clean().await.repeats, 0);
}

/// Begins `calls` calls on one connection, each of which announces a message of 4 MiB, and sends nothing more.
async fn announce(trial: &Trial, tasks: &Group, calls: usize) {
    let address = trial.cluster.addresses()[0];
    let stream = TcpStream::connect(address).await.expect("it accepts");
    let connected = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = connected.expect("it speaks HTTP/2");
    tasks.spawn("connection", async move {
        let _ = connection.await;
    });
    for _ in 0..calls {
        let announced = tokio_stream::once(Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[
            0, 0, 0x40, 0, 0,
        ]))));
        let request = Request::post(format!("http://{address}/postrider.v1.PublishService/Publish"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(announced.chain(tokio_stream::pending())))
            .expect("it is a request");
        let mut sender = sender.clone();
        tasks.spawn("call", async move {
            let _ = sender.send_request(request).await;
        });
    }
}

/// Publishes events that nobody wants on a stream, as fast as it is read, and reads no answer.
fn stream_without_reading(trial: &Trial, tasks: &Group) {
    let mut client = trial.cluster.client(0).publishing();
    let request = PublishStreamRequest {
        parent: "accounts/1010".to_owned(),
        events: vec![event("", "NOBODY_WANTS_IT", "{}")],
        ..PublishStreamRequest::default()
    };
    let requests = tokio_stream::iter(std::iter::repeat(request));
    tasks.spawn("stream", async move {
        let answers = client.publish_stream(requests).await;
        std::future::pending::<()>().await;
        drop(answers);
    });
}

/// Publishes an event that nobody wants, and does not wait for the answer.
async fn abandon(trial: &Trial, number: usize) {
    let hurry = Duration::from_micros(u64::try_from(number % 20).unwrap_or(0) * 100);
    let client = Client::hasty(trial.cluster.addresses()[0], hurry);
    // Some are answered all the same.
    let _ = client
        .try_publish("1010", vec![event("", "NOBODY_WANTS_IT", "{}")], "")
        .await;
}
