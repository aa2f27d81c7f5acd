//! `postrider.v1.PublishService`: accepts events.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use postrider_proto::v1;
use postrider_proto::v1::publish_service_server::{PublishService, PublishServiceServer};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::MAX_MESSAGE_BYTES;
use super::server::judged;
use super::status::{Error, Violations};
use crate::publish::{self, Outcome, Published, Publisher};

/// Requests of one stream that are under way at once: enough to fill transactions from one stream, few enough for a fair share of the queue.
const STREAM_WINDOW: usize = 256;

/// The service.
pub(crate) struct Service {
    publisher: Publisher,
}

impl Service {
    /// The service, ready to be routed to.
    pub(crate) fn server(publisher: Publisher) -> PublishServiceServer<Self> {
        PublishServiceServer::new(Self { publisher })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
            .accept_compressed(tonic::codec::CompressionEncoding::Zstd)
    }
}

#[tonic::async_trait]
impl PublishService for Service {
    /// An account that does not exist needs nothing to be stored: it has no webhooks, so its events are wanted by nobody.
    async fn publish(&self, request: Request<v1::PublishRequest>) -> Result<Response<v1::PublishResponse>, Status> {
        self.publisher.ready().await?;
        let traceparent = traceparent(request.metadata());
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let request = publish::Request {
            parent: request.parent,
            events: request.events,
            request_id: request.request_id,
            traceparent,
        };
        let published = if validate_only {
            self.publisher.preview(request)?
        } else {
            self.publisher.submit(request)?.outcome().await?
        };
        Ok(Response::new(response(published)))
    }

    type PublishStreamStream = BoxStream<'static, Result<v1::PublishStreamResponse, Status>>;

    /// Requests are submitted as they arrive, up to [`STREAM_WINDOW`] ahead of their answers; answers leave in the order of the requests. A message
    /// that is too large or no valid protobuf ends the stream, as does the server's stop, all after the answers to what came before.
    async fn publish_stream(
        &self,
        request: Request<Streaming<v1::PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        self.publisher.ready().await?;
        let traceparent = traceparent(request.metadata());
        let publisher = self.publisher.clone();
        let stopping = publisher.stopping().clone();
        let stopped = {
            let stopping = stopping.clone();
            // So that a stream that was cut short does not look finished. One that was finished just then has all its answers by now.
            stream::once(async move { stopping.is_cancelled().then(|| Err(Status::from(Error::Stopping))) })
        };
        let requests = request.into_inner().take_until(stopping.cancelled_owned());
        let mut parent = String::new();
        let submitted = requests
            .zip(stream::iter(1_i64..))
            .map(move |(request, sequence)| match request {
                Err(status) => futures_util::future::ready(Err(judged(status))).left_future(),
                Ok(request) => {
                    let pending = submit(&publisher, &mut parent, request, traceparent.clone());
                    let answer = async move {
                        let outcome = match pending {
                            Ok(pending) => pending.outcome().await,
                            Err(error) => Err(error),
                        };
                        Ok(stream_response(sequence, outcome))
                    };
                    answer.right_future()
                }
            });
        let answers = submitted.buffered(STREAM_WINDOW);
        let answers = answers.chain(stopped.filter_map(futures_util::future::ready));
        Ok(Response::new(answers.boxed()))
    }
}

/// Submits one request of a stream. `parent` is what the last request said that said anything, right or wrong: after a mistake nothing goes to
/// the account of before.
fn submit(
    publisher: &Publisher,
    parent: &mut String,
    request: v1::PublishStreamRequest,
    traceparent: Option<Arc<str>>,
) -> Result<publish::Pending, Error> {
    if !request.parent.is_empty() {
        *parent = request.parent;
    }
    publisher.submit(publish::Request {
        parent: parent.clone(),
        events: request.events,
        request_id: request.request_id,
        traceparent,
    })
}

fn traceparent(metadata: &MetadataMap) -> Option<Arc<str>> {
    publish::traceparent(metadata.get("traceparent")?.to_str().ok()?)
}

fn response(published: Published) -> v1::PublishResponse {
    let time = published.answer.publish_time.as_millis();
    let events = published.answer.events.into_iter();
    v1::PublishResponse {
        events: events
            .map(|(id, matched)| v1::PublishedEvent {
                event_id: id.as_str().to_owned(),
                matched_webhooks: i32::try_from(matched).unwrap_or(i32::MAX),
            })
            .collect(),
        duplicate: published.duplicate,
        publish_time: Some(prost_types::Timestamp {
            seconds: time.div_euclid(1000),
            nanos: i32::try_from(time.rem_euclid(1000)).unwrap_or(0) * 1_000_000,
        }),
    }
}

fn stream_response(sequence: i64, outcome: Outcome) -> v1::PublishStreamResponse {
    use v1::publish_stream_response::Result as Answered;
    v1::PublishStreamResponse {
        sequence,
        result: Some(match outcome {
            Ok(published) => Answered::Response(response(published)),
            Err(error) => Answered::Error(stream_error(&error)),
        }),
    }
}

fn stream_error(error: &Error) -> v1::PublishError {
    let violations = match error {
        Error::Invalid(violations) => violations,
        _ => &Violations::default(),
    };
    v1::PublishError {
        code: error.code().into(),
        message: error.message(),
        reason: error.reason().to_owned(),
        field_violations: violations
            .iter()
            .map(|violation| v1::PublishFieldViolation {
                field: violation.field.clone(),
                description: violation.description.clone(),
                reason: violation.reason.to_owned(),
            })
            .collect(),
        retry_delay_ms: error
            .retry_after()
            .map_or(0, |delay| i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)),
    }
}

#[cfg(test)]
mod tests;
