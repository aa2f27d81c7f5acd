//! A course of events: how many, of which kinds, for which webhooks, and how each of them looks. The same number always gives the same event. Pure.

use bytes::Bytes;
use postrider_proto::v1::delivery_options::{OnFailure, Ordering};
use postrider_proto::v1::{DeliveryOptions, Event, RetryPolicy, Webhook};

use super::checker::{Number, Order};
use crate::client::{event, millis, signature, webhook};

/// The account that the webhooks are of.
pub const ACCOUNT: &str = "1010";

/// What an event's id begins with; its number follows.
const ID: &str = "e-";

/// What a webhook's id and its path begin with; its number follows.
const WEBHOOK: &str = "course-";

/// Of so many webhooks one keeps all order, and one the order of each key.
const ORDERED_OF: usize = 6;

/// So many kinds of events a webhook wants that wants several.
const COLLECTED: usize = 6;

/// Ordering keys of a webhook that keeps the order of each.
const KEYS: u16 = 8;

/// The texts that data is filled up with are usually up to this long.
const PAD: usize = 200;

/// What texts consist of.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";

/// Letters that are made of one random number.
const LETTERS_AT_ONCE: usize = 8;

/// A course of events.
#[derive(Debug, Clone)]
pub struct Course {
    /// How many events there are.
    pub events: usize,
    /// How many kinds: each has a webhook of its own.
    pub kinds: usize,
    /// How many further webhooks there are that want several kinds, without an order.
    pub collectors: usize,
    /// How many publishers there are. Each publishes kinds of its own, one request after the other.
    pub lanes: usize,
    /// How many events go in one request.
    pub batch: usize,
    /// How many events a second are published, if they are accepted as fast.
    pub rate: Option<f64>,
    /// Of so many first attempts the receiver refuses one; 0 means none.
    pub refuse_one_of: u64,
    /// How long after a first attempt that failed the second is made, in milliseconds: half of it at least. Later delays grow up to a second, or to this.
    pub retry_after: i32,
    /// How long one attempt may take, in milliseconds, if not as long as usual.
    pub timeout: Option<i32>,
    /// The texts that data is filled up with are up to this long.
    pub pad: usize,
}

impl Course {
    /// A course for tests: small requests, as fast as they are accepted; of a hundred first attempts one is refused.
    pub const fn of(events: usize, kinds: usize) -> Self {
        Self {
            events,
            kinds,
            collectors: 1,
            lanes: 4,
            batch: 10,
            rate: None,
            refuse_one_of: 100,
            retry_after: 100,
            timeout: None,
            pad: PAD,
        }
    }

    /// The same course at `rate` events a second.
    #[must_use]
    pub const fn paced(mut self, rate: f64) -> Self {
        self.rate = Some(rate);
        self
    }

    /// How many webhooks there are.
    pub const fn webhooks(&self) -> usize {
        self.kinds + self.collectors
    }

    /// The kind of an event.
    pub const fn kind(&self, number: usize) -> usize {
        number % self.kinds
    }

    /// The ordering key of an event, 0 for none: its kind's webhook keeps the order of each.
    pub fn key(&self, number: usize) -> u16 {
        match self.order(self.kind(number)) {
            // One of so many has no key, and keeps no order.
            Order::PerKey => u16::try_from(number / self.kinds % usize::from(KEYS + 1)).unwrap_or(0),
            Order::None | Order::Strict => 0,
        }
    }

    /// The order that a webhook keeps.
    pub const fn order(&self, webhook: usize) -> Order {
        match webhook % ORDERED_OF {
            4 if webhook < self.kinds => Order::Strict,
            5 if webhook < self.kinds => Order::PerKey,
            _ => Order::None,
        }
    }

    /// The webhooks that want events of a kind.
    pub fn wanted_by(&self, kind: usize) -> Vec<usize> {
        let collectors = (0..self.collectors).filter(|collector| kind / COLLECTED == *collector);
        std::iter::once(kind)
            .chain(collectors.map(|collector| self.kinds + collector))
            .collect()
    }

    /// How many deliveries an event causes.
    pub fn deliveries(&self, number: usize) -> usize {
        1 + usize::from(self.kind(number) / COLLECTED < self.collectors)
    }

    /// The numbers of the events that a lane publishes, in order, by request.
    pub fn requests(&self, lane: usize) -> Vec<Vec<usize>> {
        let of_lane = (0..self.events).filter(|number| self.kind(*number) % self.lanes == lane);
        let numbers: Vec<usize> = of_lane.collect();
        numbers.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }

    /// An event as it is published.
    pub fn event(&self, number: usize) -> Event {
        let key = match self.key(number) {
            0 => String::new(),
            key => format!("key-{key}"),
        };
        let name = event_type(self.kind(number));
        Event {
            ordering_key: key,
            ..event(&format!("{ID}{number}"), &name, self.data(number))
        }
    }

    /// The data of an event.
    pub fn data(&self, number: usize) -> Bytes {
        let length = number.wrapping_mul(7919) % self.pad;
        // A text that hardly gets smaller when it is compressed.
        let mut state = number as u64;
        let mut pad = String::with_capacity(length + LETTERS_AT_ONCE);
        while pad.len() < length {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let letter = |letter| char::from(LETTERS[(state >> (6 * letter + 16) & 63) as usize]);
            pad.extend((0..LETTERS_AT_ONCE).map(letter));
        }
        pad.truncate(length);
        format!("{{\"number\":{number},\"pad\":\"{pad}\"}}").into()
    }

    /// A webhook as it is created, for the receiver at `url`, which ends without a slash.
    pub fn webhook(&self, number: usize, url: &str) -> Webhook {
        let kinds = (0..self.kinds).filter(|kind| self.wanted_by(*kind).contains(&number));
        let types: Vec<String> = kinds.map(event_type).collect();
        let types: Vec<&str> = types.iter().map(String::as_str).collect();
        let (ordering, on_failure) = match self.order(number) {
            Order::None => (Ordering::Unspecified, OnFailure::Unspecified),
            Order::PerKey => (Ordering::PerKey, OnFailure::ParkKey),
            Order::Strict => (Ordering::Strict, OnFailure::Block),
        };
        Webhook {
            retry: Some(RetryPolicy {
                initial_delay: Some(millis(self.retry_after)),
                max_delay: Some(millis(self.retry_after.max(1000))),
                ..RetryPolicy::default()
            }),
            delivery: Some(DeliveryOptions {
                ordering: ordering.into(),
                on_failure: on_failure.into(),
                timeout: self.timeout.map(millis),
                ..DeliveryOptions::default()
            }),
            ..webhook(&format!("{url}/{}", webhook_id(number)), &types, signature())
        }
    }

    /// Whether the receiver refuses this attempt. Later attempts are taken.
    pub const fn is_refused(&self, event: Number, attempt: u32) -> bool {
        let mixed = (event as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        self.refuse_one_of > 0 && attempt == 1 && mixed.is_multiple_of(self.refuse_one_of)
    }
}

/// The id of a webhook.
pub fn webhook_id(number: usize) -> String {
    format!("{WEBHOOK}{number}")
}

/// The webhook of an id.
pub fn webhook_number(id: &str) -> Option<u16> {
    id.strip_prefix(WEBHOOK)?.parse().ok()
}

/// The number of an event's id.
pub fn event_number(id: &str) -> Option<Number> {
    id.strip_prefix(ID)?.parse().ok()
}

/// The type of the events of a kind.
pub fn event_type(kind: usize) -> String {
    format!("COURSE_{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_published_once_in_order_and_wanted_by_its_own_webhook() {
        let course = Course {
            collectors: 2,
            ..Course::of(1000, 12)
        };
        let mut numbers = Vec::new();
        for lane in 0..course.lanes {
            let of_lane = course.requests(lane).concat();
            assert!(of_lane.is_sorted());
            numbers.extend(of_lane);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
        for number in 0..1000 {
            let wanted = course.wanted_by(course.kind(number));
            assert_eq!((wanted[0], wanted.len()), (number % 12, course.deliveries(number)));
            let event = course.event(number);
            assert_eq!(event_number(&event.event_id), Number::try_from(number).ok());
            for webhook in wanted {
                assert_eq!(webhook_number(&webhook_id(webhook)).map(usize::from), Some(webhook));
                assert!(course.webhook(webhook, "").event_types.contains(&event.event_name));
            }
        }
        let orders: Vec<Order> = (0..14).map(|webhook| course.order(webhook)).collect();
        let (none, keys, strict) = (Order::None, Order::PerKey, Order::Strict);
        let six = [none, none, none, none, strict, keys];
        assert_eq!(orders, [&six[..], &six, &[none, none]].concat());
    }

    #[test]
    fn about_one_of_so_many_first_attempts_is_refused_and_no_later_one() {
        let course = Course::of(0, 1);
        let refused = (0..100_000).filter(|event| course.is_refused(*event, 1)).count();
        assert!((800..1200).contains(&refused), "{refused}");
        assert!(!(0..100_000).any(|event| course.is_refused(event, 2)));
    }
}
