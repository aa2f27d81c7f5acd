//! Tests of the measurement against a control plane that loses, doubles and refuses on purpose.

use std::pin::Pin;
use std::sync::Mutex;

use clap::Parser as _;
use postrider_common::task::Group;
use postrider_proto::v1::publish_service_server::{PublishService, PublishServiceServer};
use postrider_proto::v1::{PublishError, PublishRequest, PublishResponse, PublishStreamResponse, PublishedEvent};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::*;

/// Delivers each event itself, but loses number 3, sends number 5 twice, and refuses the first request that has number 7.
struct Faulty {
    sink: Sink,
    refused: Arc<Mutex<bool>>,
}

fn take(sink: &Sink, refused: &Mutex<bool>, events: &[Event]) -> Result<PublishResponse, Status> {
    let has = |number: usize| events.iter().any(|event| event.event_id == format!("{ID}{number}"));
    if has(7) && !std::mem::replace(&mut *refused.lock().unwrap(), true) {
        return Err(Status::resource_exhausted("wait"));
    }
    for event in events.iter().filter(|event| event.event_id != format!("{ID}3")) {
        sink.note(&event.event_id);
    }
    if has(5) {
        sink.note(&format!("{ID}5"));
    }
    Ok(PublishResponse {
        events: vec![PublishedEvent::default(); events.len()],
        ..PublishResponse::default()
    })
}

#[tonic::async_trait]
impl PublishService for Faulty {
    type PublishStreamStream = Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        take(&self.sink, &self.refused, &request.get_ref().events).map(Response::new)
    }

    async fn publish_stream(
        &self,
        request: Request<Streaming<PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let (sink, refused) = (self.sink.clone(), self.refused.clone());
        let answers = request.into_inner().map(move |request| {
            let result = match take(&sink, &refused, &request?.events) {
                Ok(response) => StreamResult::Response(response),
                Err(status) => StreamResult::Error(PublishError {
                    code: status.code().into(),
                    ..PublishError::default()
                }),
            };
            Ok(PublishStreamResponse {
                result: Some(result),
                ..PublishStreamResponse::default()
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

async fn measure(arguments: &[&str]) -> Outcome {
    let options = Options::parse_from(["load", "--size", "100", "--publishers", "4"].iter().chain(arguments));
    let sink = Sink::start(options.events);
    let faulty = Faulty {
        sink: sink.clone(),
        refused: Arc::default(),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let group = Group::default();
    group.spawn("server", async move {
        let server = tonic::transport::Server::builder().add_service(PublishServiceServer::new(faulty));
        server
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .unwrap();
    });
    let plan = Arc::new(Plan::new(&options, sink));
    let published = run(&plan, || Client::new(address)).await;
    group.token().cancel();
    plan.outcome(&published, true)
}

#[tokio::test]
async fn every_mode_finds_what_was_lost_doubled_and_refused() {
    for mode in ["unary", "stream", "batch"] {
        let outcome = measure(&["--events", "1000", "--mode", mode, "--batch", "10"]).await;
        let counts = (
            outcome.accepted,
            outcome.arrived,
            outcome.lost,
            outcome.doubled,
            outcome.refused,
        );
        assert_eq!(counts, (1000, 999, 1, 1, 1), "{mode}");
        assert_eq!((outcome.ack.len(), outcome.arrival.len()), (1000, 999), "{mode}");
        assert!(
            outcome.accepted_per_second > 0.0 && outcome.delivered_per_second > 0.0,
            "{mode}"
        );
    }
}

#[tokio::test]
async fn a_rate_is_kept_and_publishing_stops_in_time() {
    for mode in ["unary", "stream"] {
        // 2,000 a second for one second, of a million.
        let outcome = measure(&[
            "--events",
            "1000000",
            "--mode",
            mode,
            "--rate",
            "2000",
            "--seconds",
            "1",
        ])
        .await;
        assert!(
            outcome.accepted > 10 && outcome.accepted <= 2000,
            "{mode}: {}",
            outcome.accepted
        );
    }
}

#[test]
fn bodies_are_json_of_the_wanted_size_and_differ() {
    for size in [64, 300, 1024, 65_536] {
        let (first, second) = (body(1, size), body(2, size));
        assert_eq!((first.len(), second.len()), (size, size));
        assert_ne!(first, second);
        assert!(serde_json::from_slice::<serde_json::Value>(&first).is_ok());
    }
}
