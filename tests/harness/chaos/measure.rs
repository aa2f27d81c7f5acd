//! Figures of a run: how long events took, how long webhooks heard nothing, how long publishing stood still.

use std::collections::HashMap;

use tonic::Code;

use super::checker::{Arrival, Micros, Number};
use super::journal::Call;

/// Measured durations, from the shortest to the longest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Durations(Vec<Micros>);

impl Durations {
    /// Of these.
    pub fn of(durations: impl IntoIterator<Item = Micros>) -> Self {
        let mut durations: Vec<Micros> = durations.into_iter().collect();
        durations.sort_unstable();
        Self(durations)
    }

    /// All of them.
    pub fn into_micros(self) -> Vec<Micros> {
        self.0
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// The one that `percent` percent are not above (the nearest rank), in milliseconds; 0 if there is none.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub fn millis_at(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).map_or(0.0, |micros| *micros as f64 / 1000.0)
    }

    /// The longest, in milliseconds.
    pub fn longest_millis(&self) -> f64 {
        self.millis_at(100)
    }
}

/// How long after `from` each of `webhooks` heard again: without what arrived in the first `grace`, which the dead may have sent.
pub fn silence(arrivals: &[Arrival], webhooks: &[usize], from: Micros, grace: Micros) -> Durations {
    let later = arrivals
        .iter()
        .skip(arrivals.partition_point(|arrival| arrival.at <= from + grace));
    let mut first: HashMap<u16, Micros> = HashMap::new();
    for arrival in later {
        first.entry(arrival.webhook).or_insert(arrival.at - from);
    }
    let webhooks = webhooks.iter().filter_map(|webhook| u16::try_from(*webhook).ok());
    Durations::of(webhooks.filter_map(|webhook| first.get(&webhook).copied()))
}

/// The longest time within `from..to` in which a webhook heard nothing, for each of `webhooks`.
pub fn gaps(arrivals: &[Arrival], webhooks: &[usize], from: Micros, to: Micros) -> Durations {
    let mut last: HashMap<u16, (Micros, Micros)> = HashMap::new();
    let webhooks = webhooks.iter().filter_map(|webhook| u16::try_from(*webhook).ok());
    last.extend(webhooks.map(|webhook| (webhook, (from, 0))));
    for arrival in arrivals.iter().filter(|arrival| (from..to).contains(&arrival.at)) {
        if let Some((last, gap)) = last.get_mut(&arrival.webhook) {
            *gap = (*gap).max(arrival.at.saturating_sub(*last));
            *last = arrival.at;
        }
    }
    Durations::of(last.into_values().map(|(last, gap)| gap.max(to.saturating_sub(last))))
}

/// How long it took from when an event was first asked to be accepted until it first arrived, for events asked within `from..to`.
pub fn latencies(arrivals: &[Arrival], asked: &[Micros], webhooks: &[usize], from: Micros, to: Micros) -> Durations {
    let mut seen: HashMap<(u16, Number), Micros> = HashMap::new();
    for arrival in arrivals
        .iter()
        .filter(|arrival| webhooks.contains(&usize::from(arrival.webhook)))
    {
        let Some(&asked) = asked.get(arrival.event as usize) else {
            continue;
        };
        if (from..to).contains(&asked) {
            seen.entry((arrival.webhook, arrival.event))
                .or_insert(arrival.at.saturating_sub(asked));
        }
    }
    Durations::of(seen.into_values())
}

/// The longest time within `from..to` in which no publish was answered OK.
pub fn publish_gap(calls: &[Call], from: Micros, to: Micros) -> Micros {
    let mut ends: Vec<Micros> = calls
        .iter()
        .filter(|call| call.code == Code::Ok)
        .map(|call| call.to)
        .collect();
    ends.retain(|end| (from..to).contains(end));
    ends.sort_unstable();
    let starts = std::iter::once(from).chain(ends.iter().copied());
    let ends = ends.iter().copied().chain(std::iter::once(to));
    starts
        .zip(ends)
        .map(|(start, end)| end - start)
        .max()
        .unwrap_or_default()
}

/// Calls made within `from..to`, and how many of them were not answered OK.
pub fn errors(calls: &[Call], from: Micros, to: Micros) -> (usize, usize) {
    let within = calls.iter().filter(|call| (from..to).contains(&call.from));
    within.fold((0, 0), |(all, failed), call| {
        (all + 1, failed + usize::from(call.code != Code::Ok))
    })
}

#[cfg(test)]
mod tests {
    use super::super::checker::Sender;
    use super::*;

    fn arrivals(times: &[(u16, Number, Micros)]) -> Vec<Arrival> {
        let one = |&(webhook, event, at): &(u16, Number, Micros)| Arrival {
            webhook,
            event,
            at,
            taken: true,
            genuine: true,
            body: 0,
            sender: Sender::Here,
        };
        times.iter().map(one).collect()
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let durations = Durations::of((1..=200).rev().map(|millis| millis * 1000));
        assert_eq!(
            (durations.count(), durations.millis_at(50), durations.millis_at(99)),
            (200, 100.0, 198.0)
        );
        assert_eq!(
            (durations.longest_millis(), Durations::default().millis_at(99)),
            (200.0, 0.0)
        );
        assert_eq!(Durations::of([7000]).millis_at(50), 7.0);
    }

    #[test]
    fn silences_gaps_and_latencies_are_those_of_the_webhooks_asked_for() {
        let log = arrivals(&[(0, 0, 10), (1, 1, 20), (0, 2, 30), (0, 4, 95), (1, 3, 100), (0, 6, 110)]);
        assert_eq!(silence(&log, &[0, 1], 15, 10), Durations::of([15, 85]));
        assert_eq!(silence(&log, &[1, 2], 25, 0), Durations::of([75]));
        assert_eq!(gaps(&log, &[0], 20, 100), Durations::of([65]));
        assert_eq!(gaps(&log, &[0, 7], 30, 300), Durations::of([190, 270]));
        assert_eq!(
            latencies(&log, &[1, 2, 3, 4, 90, 6, 7], &[0], 3, 100),
            Durations::of([27, 5, 103])
        );
    }

    #[test]
    fn a_gap_in_publishing_and_errors_are_found() {
        let call = |from, to, code| Call { from, to, code };
        let calls = [
            call(0, 10, Code::Ok),
            call(10, 60, Code::Unavailable),
            call(60, 80, Code::Ok),
            call(20, 70, Code::Ok),
        ];
        assert_eq!(publish_gap(&calls, 0, 100), 60);
        assert_eq!(publish_gap(&calls, 0, 200), 120);
        assert_eq!(publish_gap(&calls, 11, 50), 39);
        assert_eq!(errors(&calls, 0, 100), (4, 1));
        assert_eq!(errors(&calls, 20, 100), (2, 0));
    }
}
