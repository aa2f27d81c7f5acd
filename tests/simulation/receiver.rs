//! The receiver of all webhooks, well or unwell as the plan says.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postrider_common::task::Group;
use postrider_tests::wait::simulated;
use tonic::transport::server::Connected as _;

use crate::forms::life_of;
use crate::net::{self, elapsed};
use crate::plan::{Dice, Host, Manner, Plan};
use crate::world::{Arrival, World};

/// How long a webhook's request may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);

/// What is done with one request.
enum Answer {
    /// Everything is taken.
    Take,
    /// Some is taken.
    TakePart(BTreeSet<String>),
    /// Nothing is taken.
    Refuse(StatusCode, Option<&'static str>),
    /// Nothing is taken, and the connection is closed.
    Hang,
    /// Everything is taken, but the answer comes too late.
    TakeLate,
}

/// Serves until the process is killed.
///
/// # Errors
/// When the port is taken.
pub(crate) async fn serve(plan: Arc<Plan>, world: Arc<World>) -> io::Result<()> {
    let dice = Arc::new(Dice::new(plan.seed, 2));
    let mut incoming = pin!(net::listen(Host::Receiver.address().port()).await?);
    let connections = Group::default();
    while let Some(connection) = incoming.next().await {
        let connection = connection?;
        let (plan, world, dice) = (plan.clone(), world.clone(), dice.clone());
        let from = connection.connect_info().0;
        connections.spawn("connection", async move {
            let service = service_fn(|request| answer(&plan, &world, &dice, from, request));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(connection), service);
            // The sender may break a connection whenever it likes.
            let _ = served.await;
        });
    }
    Ok(())
}

async fn answer(
    plan: &Plan,
    world: &World,
    dice: &Dice,
    from: Option<IpAddr>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let Some((hook, place)) = head.uri.path().strip_prefix("/w").and_then(parse) else {
        return Ok(empty(StatusCode::NOT_FOUND));
    };
    let events = events(&body).unwrap_or_default();
    let answer = decide(plan, world, dice, (hook, place), &events);
    let taken: BTreeSet<String> = match &answer {
        Answer::Take | Answer::TakeLate => events.iter().cloned().collect(),
        Answer::TakePart(taken) => taken.clone(),
        Answer::Refuse(..) | Answer::Hang => BTreeSet::new(),
    };
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let arrival = Arrival {
        at: elapsed(),
        from,
        hook,
        place,
        id: text("webhook-id").unwrap_or_default().to_owned(),
        sequence: text("webhook-sequence").and_then(|number| number.parse().ok()),
        proof: proof(plan, world, (hook, life_of(place)), &head.headers, &body),
        taken,
        events,
        body,
    };
    world.note(format_args!(
        "w{hook} gets {} {:?} and takes {:?}",
        arrival.id, arrival.events, arrival.taken
    ));
    let refused: Vec<&String> = arrival
        .events
        .iter()
        .filter(|event| !arrival.taken.contains(*event))
        .collect();
    let partial = serde_json::json!({ "failed": refused }).to_string();
    world.seen().arrivals.push(arrival);
    simulated(dice.millis(0, 30)).await;
    Ok(match answer {
        Answer::Take => empty(StatusCode::NO_CONTENT),
        Answer::TakePart(_) => {
            let mut response = Response::new(Full::from(partial));
            *response.status_mut() = StatusCode::MULTI_STATUS;
            response
        }
        Answer::Refuse(status, retry_after) => {
            let mut response = empty(status);
            if let Some(seconds) = retry_after {
                let value = http::HeaderValue::from_static(seconds);
                response.headers_mut().insert(http::header::RETRY_AFTER, value);
            }
            response
        }
        Answer::Hang => return Err(io::Error::other("hung up")),
        Answer::TakeLate => {
            simulated(TIMEOUT * 2).await;
            empty(StatusCode::NO_CONTENT)
        }
    })
}

fn decide(plan: &Plan, world: &World, dice: &Dice, (hook, place): (usize, usize), events: &[String]) -> Answer {
    let Some(form) = plan.hooks.get(hook) else {
        return Answer::Refuse(StatusCode::NOT_FOUND, None);
    };
    // Nothing of its own holds it up: what does is of the one that had its name.
    if life_of(place) > 0 && form.blocks() {
        return Answer::Take;
    }
    let manner = form.manner;
    if let Manner::Picky(one_in) = manner {
        // By the number of the event, so that it is the same ones every time; also when the trouble is over.
        let refused = |event: &&String| number(event).is_multiple_of(one_in);
        let taken: BTreeSet<String> = events.iter().filter(|event| !refused(event)).cloned().collect();
        return match taken.len() {
            all if all == events.len() => Answer::Take,
            0 => Answer::Refuse(StatusCode::UNPROCESSABLE_ENTITY, None),
            _ => Answer::TakePart(taken),
        };
    }
    if world.is_over() {
        return Answer::Take;
    }
    match manner {
        Manner::Down(from, until) if (from..until).contains(&elapsed()) => {
            Answer::Refuse(StatusCode::BAD_GATEWAY, None)
        }
        Manner::Flaky { fails, late } if dice.chance(fails) => match dice.below(6) {
            0 => Answer::Refuse(StatusCode::INTERNAL_SERVER_ERROR, None),
            1 => Answer::Refuse(StatusCode::TOO_MANY_REQUESTS, Some("1")),
            2 => Answer::Refuse(StatusCode::NOT_FOUND, None),
            3 => Answer::Hang,
            4 if late => Answer::TakeLate,
            5 if events.len() > 1 => Answer::TakePart(events.iter().take(events.len() / 2).cloned().collect()),
            _ => Answer::Refuse(StatusCode::SERVICE_UNAVAILABLE, None),
        },
        Manner::Good | Manner::Picky(_) | Manner::Down(..) | Manner::Flaky { .. } => Answer::Take,
    }
}

/// The number in an event's id: `e` and digits.
pub(crate) fn number(event: &str) -> usize {
    event
        .trim_start_matches(|symbol: char| !symbol.is_ascii_digit())
        .parse()
        .unwrap_or(0)
}

/// `<webhook>` or `<webhook>-<place>`.
fn parse(text: &str) -> Option<(usize, usize)> {
    let (hook, place) = text.split_once('-').unwrap_or((text, "0"));
    Some((hook.parse().ok()?, place.parse().ok()?))
}

fn events(body: &[u8]) -> Option<Vec<String>> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    let events = json.get("events")?.as_array()?;
    events
        .iter()
        .map(|event| Some(event.get("eventId")?.as_str()?.to_owned()))
        .collect()
}

fn proof(
    plan: &Plan,
    world: &World,
    (hook, life): (usize, usize),
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), String> {
    let signed = plan.hooks.get(hook).is_some_and(|hook| hook.signed);
    if !signed {
        let has = headers.contains_key("webhook-signature");
        return if has {
            Err("a signature that nobody asked for".to_owned())
        } else {
            Ok(())
        };
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (id, timestamp) = (
        text("webhook-id").unwrap_or_default(),
        text("webhook-timestamp").unwrap_or_default(),
    );
    let timestamp: i64 = timestamp
        .parse()
        .map_err(|_| format!("{timestamp:?} is no timestamp"))?;
    let given: Vec<&str> = text("webhook-signature").unwrap_or_default().split(' ').collect();
    let secrets = world.seen().secrets.get(&(hook, life)).cloned().unwrap_or_default();
    let fits = |secret: &String| {
        let webhook = standardwebhooks::Webhook::new(secret).ok()?;
        let signature = webhook.sign(id, timestamp, body).ok()?;
        given.contains(&signature.as_str()).then_some(())
    };
    secrets
        .iter()
        .find_map(fits)
        .ok_or_else(|| "no secret fits the signature".to_owned())
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
