//! What is no proper call: bytes that are no message, messages too large, services beside our own.

use bytes::{Buf as _, BufMut as _, Bytes};
use postrider_common::store::memory::Fault;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Streaming};

use super::*;

/// Sends and receives bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn call(server: &Server, path: &'static str, message: impl Into<Bytes>) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static(path);
    Ok(grpc.unary(Request::new(message.into()), path, Raw).await?.into_inner())
}

const CREATE: &str = "/postrider.v1.WebhookService/CreateWebhook";

#[tokio::test]
async fn bytes_that_are_no_message_are_the_callers_mistake() {
    let server = serve().await;
    let before = server.revision().await;
    // Field 2 of the request is the event type, whose field 6 is the example.
    let mut nested = vec![0x12];
    let example = |inner: &[u8]| {
        let mut bytes = vec![0x32];
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
        bytes
    };
    let event_type = example(&list_of_lists(200));
    prost::encoding::encode_varint(event_type.len() as u64, &mut nested);
    nested.extend(event_type);
    let valid = create_request().encode_to_vec();
    let cases: Vec<(&'static str, Vec<u8>)> = vec![
        (CREATE, b"\xff\xff\xff\xff".to_vec()),
        (CREATE, valid[..valid.len() - 1].to_vec()),
        (CREATE, b"\x0a\x02\xc3\x28".to_vec()),
        (CREATE, b"\x0a\xff\xff\xff\xff\x0f".to_vec()),
        (CREATE, b"\x1a\x05\x4a\x03\xff\xfe\xfd".to_vec()),
        ("/postrider.v1.EventTypeService/CreateEventType", nested),
    ];
    for (path, bytes) in cases {
        let status = call(&server, path, bytes.clone()).await.unwrap_err();
        let expected = (Code::InvalidArgument, "MALFORMED_MESSAGE".into());
        assert_eq!(reason(&status), expected, "{path} {bytes:.20?} {status:?}");
    }
    assert_eq!(server.revision().await, before);
}

/// The bytes of a Struct whose field holds lists within lists.
fn list_of_lists(depth: usize) -> Vec<u8> {
    let mut value = prost_types::Value {
        kind: Some(prost_types::value::Kind::BoolValue(true)),
    };
    for _ in 0..depth {
        value = prost_types::Value {
            kind: Some(prost_types::value::Kind::ListValue(prost_types::ListValue {
                values: vec![value],
            })),
        };
    }
    let object = prost_types::Struct {
        fields: [("x".to_owned(), value)].into(),
    };
    object.encode_to_vec()
}

#[tokio::test]
async fn fields_that_this_release_does_not_know_are_ignored() {
    let mut server = serve().await;
    let mut bytes = create_request().encode_to_vec();
    prost::encoding::string::encode(1999, &"later".to_owned(), &mut bytes);
    let webhook = v1::Webhook::decode(call(&server, CREATE, bytes).await.unwrap()).unwrap();
    let get = v1::GetWebhookRequest { name: webhook.name };
    server.webhooks.get_webhook(get).await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_with_the_limit() {
    let mut server = serve().await;
    let large = v1::CreateWebhookRequest {
        parent: "x".repeat(MAX_MESSAGE_BYTES),
        ..v1::CreateWebhookRequest::default()
    };
    let status = server.webhooks.create_webhook(large.clone()).await.unwrap_err();
    assert_eq!(reason(&status), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
    assert!(status.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{status:?}");
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let mut packed = WebhookServiceClient::new(server.channel.clone())
            .send_compressed(encoding)
            .accept_compressed(encoding);
        let status = packed.create_webhook(large.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{encoding:?}: {status:?}");
        packed.create_webhook(create_request()).await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_told_with_a_time_to_try_again() {
    let mut server = serve().await;
    for (fault, expected) in [
        (Fault::Away, (Code::Unavailable, "STORE_AWAY")),
        (Fault::LostRequest, (Code::Unavailable, "OUTCOME_UNKNOWN")),
        (Fault::Full, (Code::ResourceExhausted, "STORE_FULL")),
    ] {
        server.store.inject(Box::new(move |_| Some(fault)));
        let status = server.webhooks.create_webhook(create_request()).await.unwrap_err();
        assert_eq!(reason(&status), (expected.0, expected.1.to_owned()));
        assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    }
}

#[tokio::test]
async fn unknown_methods_and_services_are_unimplemented() {
    let server = serve().await;
    for path in ["/postrider.v1.WebhookService/Nothing", "/nothing.v1.Service/Call"] {
        let status = call(&server, path, Bytes::new()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn reflection_names_the_services_in_both_versions_and_health_says_serving() {
    let server = serve().await;
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let mut grpc = tonic::client::Grpc::new(server.channel.clone());
        grpc.ready().await.unwrap();
        // list_services: "" and file_containing_symbol: "postrider.v1.Webhook"
        let questions = [&b"\x3a\x00"[..], b"\x22\x14postrider.v1.Webhook"].map(Bytes::from_static);
        let path = http::uri::PathAndQuery::from_static(path);
        let request = Request::new(tokio_stream::iter(questions));
        let mut answers: Streaming<Bytes> = grpc.streaming(request, path, Raw).await.unwrap().into_inner();
        let services = answers.message().await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&services).into_owned();
        for service in [
            "WebhookService",
            "EventTypeService",
            "AccountService",
            "ClusterService",
            "PublishService",
        ] {
            assert!(text.contains(&format!("postrider.v1.{service}")), "{text}");
        }
        assert!(text.contains("grpc.health.v1.Health"));
        let file = answers.message().await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&file).contains("target_url"));
    }
    let health = call(&server, "/grpc.health.v1.Health/Check", Bytes::new())
        .await
        .unwrap();
    assert_eq!(health, Bytes::from_static(b"\x08\x01"));
}

#[tokio::test]
async fn metadata_beyond_16_kib_is_refused_and_the_server_lives_on() {
    let mut server = serve().await;
    let mut request = Request::new(create_request());
    let value = "x".repeat(20_000).parse().unwrap();
    request.metadata_mut().insert("x-large", value);
    let status = server.webhooks.create_webhook(request).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    server.webhooks.create_webhook(create_request()).await.unwrap();
}

#[tokio::test]
async fn a_connection_has_128_calls_under_way_and_the_next_waits_for_the_end_of_one() {
    let mut server = serve().await;
    let (mut webhooks, mut attempts) = (Vec::new(), Vec::new());
    for _ in 0..64 {
        let request = v1::WatchWebhooksRequest {
            parent: "accounts/1010".into(),
            ..v1::WatchWebhooksRequest::default()
        };
        webhooks.push(server.webhooks.watch_webhooks(request).await.unwrap());
        let request = v1::WatchAttemptsRequest {
            parent: "accounts/1010".into(),
            ..v1::WatchAttemptsRequest::default()
        };
        attempts.push(server.deliveries.watch_attempts(request).await.unwrap());
    }
    let mut next = std::pin::pin!(server.webhooks.create_webhook(create_request()));
    // Another connection has calls of its own.
    let mut other = WebhookServiceClient::connect(server.url).await.unwrap();
    for _ in 0..50 {
        let request = v1::ListWebhooksRequest {
            parent: "accounts/1010".into(),
            ..v1::ListWebhooksRequest::default()
        };
        tokio::select! {
            biased;
            created = &mut next => panic!("it did not wait: {created:?}"),
            listed = other.list_webhooks(request) => assert_eq!(listed.unwrap().into_inner().webhooks, []),
        }
    }
    webhooks.pop();
    let created = tokio::time::timeout(Duration::from_secs(10), next).await;
    created.expect("a place is free").unwrap();
}

#[tokio::test]
async fn statuses_that_say_nothing_do_not_leave() {
    use tower::{Layer as _, Service as _};
    let answers: [(Code, Code); 4] = [
        (Code::Unknown, Code::Internal),
        (Code::OutOfRange, Code::ResourceExhausted),
        (Code::NotFound, Code::NotFound),
        (Code::Ok, Code::Ok),
    ];
    for (inner, expected) in answers {
        let mut service =
            server::StatusLayer::default().layer(tower::service_fn(move |_: http::Request<()>| async move {
                Ok::<_, std::convert::Infallible>(Status::new(inner, "text").into_http::<tonic::body::Body>())
            }));
        let answer = service.call(http::Request::new(())).await.unwrap();
        assert_eq!(answer.headers()[Status::GRPC_STATUS], (expected as i32).to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_or_panics_is_answered() {
    use tower::{Layer as _, Service as _};
    async fn panics() -> http::Response<tonic::body::Body> {
        panic!("planted")
    }
    let mut panicking = server::StatusLayer::default().layer(tower::service_fn(|_: http::Request<()>| async {
        Ok::<_, std::convert::Infallible>(panics().await)
    }));
    let answer = panicking.call(http::Request::new(())).await.unwrap();
    assert_eq!(answer.headers()[Status::GRPC_STATUS], "13");
    let mut hanging = server::StatusLayer::default().layer(tower::service_fn(|_: http::Request<()>| {
        std::future::pending::<Result<http::Response<tonic::body::Body>, std::convert::Infallible>>()
    }));
    let answer = hanging.call(http::Request::new(())).await.unwrap();
    assert_eq!(answer.headers()[Status::GRPC_STATUS], "4");
}

#[tokio::test]
async fn every_call_is_counted_once_with_its_code_and_reason_and_what_callers_write_is_no_label() {
    let mut server = serve().await;
    server.create("one", valid()).await;
    server.create("two", valid()).await;
    let mut nowhere = create_request();
    nowhere.parent = "nowhere".into();
    server.webhooks.create_webhook(nowhere).await.unwrap_err();
    call(&server, CREATE, vec![0xff]).await.unwrap_err();
    call(&server, "/postrider.v1.WebhookService/CreateNothing", Bytes::new())
        .await
        .unwrap_err();
    call(&server, "/grpc.health.v1.Health/Check", Bytes::new())
        .await
        .unwrap();
    // A stream is counted when it ends, here because the caller goes away.
    let watching = server.webhooks.watch_webhooks(v1::WatchWebhooksRequest {
        parent: "accounts/1010".into(),
        ..v1::WatchWebhooksRequest::default()
    });
    let watching = watching.await.unwrap();
    let watch = ["postrider.v1.WebhookService/WatchWebhooks", "Cancelled", ""];
    assert_eq!(counted(&server.calls, watch), 0);
    drop(watching);
    while counted(&server.calls, watch) == 0 {
        tokio::task::yield_now().await;
    }

    let create = CREATE.trim_start_matches('/');
    for (labels, count) in [
        ([create, "OK", ""], 2),
        ([create, "InvalidArgument", "INVALID_REQUEST"], 1),
        ([create, "InvalidArgument", "MALFORMED_MESSAGE"], 1),
        (["other", "Unimplemented", ""], 1),
        (["other", "OK", ""], 1),
        (watch, 1),
    ] {
        assert_eq!(counted(&server.calls, labels), count, "{labels:?}");
    }
}

fn counted(calls: &Calls, [method, code, reason]: [&'static str; 3]) -> u64 {
    let labels = [("method", method), ("code", code), ("reason", reason)];
    calls
        .get_or_create(&labels.map(|(name, value)| (name, value.into())))
        .get()
}
