//! The sample event catalogue, and the sample event.

use anyhow::Context as _;
use postrider_proto::v1;
use postrider_proto::v1::event_type::Category;
use postrider_proto::v1::event_type_service_client::EventTypeServiceClient;
use serde::{Deserialize, Serialize};
use tonic::Code;
use tonic::transport::Channel;

/// Event types by category.
const EVENT_TYPES: &str = include_str!("../samples/event_types.json");

/// A request body as receivers get it.
const ENVELOPE: &str = include_str!("../samples/course_enrollment_batch.json");

#[derive(Deserialize)]
struct EventTypes {
    #[serde(rename = "REAL_TIME")]
    real_time: Vec<String>,
    #[serde(rename = "NON_REAL_TIME")]
    non_real_time: Vec<String>,
}

#[derive(Deserialize)]
struct Envelope {
    events: Vec<SampleEvent>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SampleEvent {
    event_id: String,
    event_name: String,
    timestamp: i64,
    event_info: String,
    data: Enrollment,
}

/// The body of the sample event, in the order of its fields.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Enrollment {
    user_id: i64,
    lo_id: String,
    lo_instance_id: String,
    lo_type: String,
    enrollment_source: String,
    date_enrolled: i64,
}

/// Puts the sample types into the catalogue; those that are there already stay as they are.
pub(crate) async fn seed(channel: Channel) -> anyhow::Result<usize> {
    let types: EventTypes = serde_json::from_str(EVENT_TYPES).context("the sample event types")?;
    let mut client = EventTypeServiceClient::new(channel);
    let real_time = types.real_time.iter().map(|name| (name, Category::RealTime));
    let non_real_time = types.non_real_time.iter().map(|name| (name, Category::NonRealTime));
    let mut count = 0;
    for (name, category) in real_time.chain(non_real_time) {
        let request = v1::CreateEventTypeRequest {
            event_type_id: name.clone(),
            event_type: Some(v1::EventType {
                category: category.into(),
                ..v1::EventType::default()
            }),
            ..v1::CreateEventTypeRequest::default()
        };
        match client.create_event_type(request).await {
            Ok(_) => count += 1,
            Err(status) if status.code() == Code::AlreadyExists => count += 1,
            Err(status) => return Err(status).with_context(|| format!("creating the event type {name}")),
        }
    }
    Ok(count)
}

/// The sample event, as a publisher sends it.
pub(crate) fn event() -> anyhow::Result<v1::Event> {
    let envelope: Envelope = serde_json::from_str(ENVELOPE).context("the sample event")?;
    let event = envelope
        .events
        .into_iter()
        .next()
        .context("the sample holds no event")?;
    let seconds = event.timestamp.div_euclid(1000);
    let nanos = i32::try_from(event.timestamp.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    Ok(v1::Event {
        event_id: event.event_id,
        event_name: event.event_name,
        timestamp: Some(prost_types::Timestamp { seconds, nanos }),
        event_info: event.event_info,
        body: Some(v1::event::Body::DataJson(serde_json::to_vec(&event.data)?.into())),
        ..v1::Event::default()
    })
}
