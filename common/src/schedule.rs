//! Specified times: a cron expression in a time zone. Pure.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;

use crate::time::Timestamp;

/// The longest cron expression, in bytes: far more than five fields of lists need.
pub const MAX_CRON_BYTES: usize = 256;

/// Specified times, by the time zones of the IANA database that this program was built with.
///
/// Where clocks are put forward, a run at a time that does not exist takes place when the clocks have changed; where they are put back, a run at a time
/// that exists twice takes place the first time. Runs at intervals (`*/15 * * * *`) follow the clock on the wall: those in the gap are left out, those in
/// the hour that comes twice take place twice.
#[derive(Clone)]
pub struct Schedule {
    cron: String,
    time_zone: String,
    parsed: Cron,
    zone: TimeZone,
}

/// What is wrong with a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The expression.
    #[error("{0}")]
    Cron(String),
    /// The time zone.
    #[error("{0}")]
    TimeZone(String),
    /// It never comes, such as 30 February.
    #[error("no time fits this expression: it would never fire")]
    Never,
}

impl Schedule {
    /// Reads a cron expression of five fields and the name of a time zone (empty: UTC).
    ///
    /// # Errors
    /// Everything that is wrong, in this order.
    pub fn new(cron: &str, time_zone: &str) -> Result<Self, Vec<Invalid>> {
        let mut wrong = Vec::new();
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let parsed = if cron.len() > MAX_CRON_BYTES {
            Err(format!("must be at most {MAX_CRON_BYTES} bytes"))
        } else if cron.split_whitespace().count() != 5 {
            Err("must be five fields: minute, hour, day of the month, month, day of the week".to_owned())
        } else {
            parser.parse(cron).map_err(|error| error.to_string())
        };
        let parsed = parsed.map_err(|why| wrong.push(Invalid::Cron(why))).ok();
        let zone = match time_zone {
            "" => Some(TimeZone::UTC),
            name => TimeZone::get(name).ok(),
        };
        if zone.is_none() {
            let why = "must be the name of a time zone of the IANA database, such as Europe/Paris";
            wrong.push(Invalid::TimeZone(why.to_owned()));
        }
        let (Some(parsed), Some(zone)) = (parsed, zone) else {
            return Err(wrong);
        };
        let schedule = Self {
            cron: cron.to_owned(),
            time_zone: time_zone.to_owned(),
            parsed,
            zone,
        };
        // Any moment serves: what comes once comes again within the years that the search spans.
        match schedule.next_after(Timestamp::from_millis(1_700_000_000_000)) {
            Some(_) => Ok(schedule),
            None => Err(vec![Invalid::Never]),
        }
    }

    /// The first time after `moment`; `None` if there is none in the next years.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let from = jiff::Timestamp::from_millisecond(moment.as_millis()).ok()?;
        let next = self
            .parsed
            .find_next_occurrence(&from.to_zoned(self.zone.clone()), false)
            .ok()?;
        Some(Timestamp::from_millis(next.timestamp().as_millisecond()))
    }

    /// The expression, as it was given.
    pub fn cron(&self) -> &str {
        &self.cron
    }

    /// The time zone, as it was given; empty for UTC.
    pub fn time_zone(&self) -> &str {
        &self.time_zone
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        (&self.cron, &self.time_zone) == (&other.cron, &other.time_zone)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.cron, self.time_zone)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn next(cron: &str, zone: &str, after: &str) -> String {
        let schedule = Schedule::new(cron, zone).unwrap();
        schedule.next_after(at(after)).unwrap().to_string()
    }

    #[test]
    fn a_time_of_day_is_that_of_its_zone_in_summer_and_in_winter() {
        let weekdays = "0 2 * * 1-5";
        assert_eq!(
            next(weekdays, "Europe/Paris", "2026-07-03T00:00:00Z"),
            "2026-07-06T00:00:00Z"
        );
        assert_eq!(
            next(weekdays, "Europe/Paris", "2026-11-20T12:00:00Z"),
            "2026-11-23T01:00:00Z"
        );
        assert_eq!(next(weekdays, "", "2026-11-20T12:00:00Z"), "2026-11-23T02:00:00Z");
        assert_eq!(
            next("30 5 * * *", "Asia/Kolkata", "2026-01-01T00:00:00Z"),
            "2026-01-02T00:00:00Z"
        );
    }

    #[test]
    fn a_time_that_does_not_exist_comes_when_the_clocks_have_changed() {
        // 2026-03-29: 02:00 becomes 03:00, which is 01:00 UTC.
        assert_eq!(
            next("30 2 * * *", "Europe/Paris", "2026-03-28T12:00:00Z"),
            "2026-03-29T01:00:00Z"
        );
        assert_eq!(
            next("30 2 * * *", "Europe/Paris", "2026-03-29T01:00:00Z"),
            "2026-03-30T00:30:00Z"
        );
    }

    #[test]
    fn a_time_that_exists_twice_comes_the_first_time_only() {
        // 2026-10-25: 03:00 becomes 02:00.
        assert_eq!(
            next("30 2 * * *", "Europe/Paris", "2026-10-24T12:00:00Z"),
            "2026-10-25T00:30:00Z"
        );
        assert_eq!(
            next("30 2 * * *", "Europe/Paris", "2026-10-25T00:30:00Z"),
            "2026-10-26T01:30:00Z"
        );
    }

    #[test]
    fn every_mistake_is_named() {
        let wrong = Schedule::new("61 2 * *", "Europe/Lutetia").unwrap_err();
        assert!(
            matches!(&wrong[..], [Invalid::Cron(_), Invalid::TimeZone(_)]),
            "{wrong:?}"
        );
        for cron in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* * 32 * *",
            "@daily",
            "x x x x x",
        ] {
            let wrong = Schedule::new(cron, "UTC").unwrap_err();
            assert!(matches!(&wrong[..], [Invalid::Cron(_)]), "{cron}: {wrong:?}");
        }
        for never in ["0 0 30 2 *", "0 0 31 4 *"] {
            assert_eq!(Schedule::new(never, "UTC").unwrap_err(), [Invalid::Never], "{never}");
        }
    }

    proptest! {
        #[test]
        fn the_next_time_is_later_and_none_lies_between(
            minute in 0_u8..60, hour in 0_u8..24, zone in prop_oneof!["UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"],
            after in 1_600_000_000_000_i64..1_900_000_000_000, part in 0.0_f64..1.0,
        ) {
            let schedule = Schedule::new(&format!("{minute} {hour} * * *"), &zone).unwrap();
            let after = Timestamp::from_millis(after);
            let next = schedule.next_after(after).unwrap();
            prop_assert!(next > after);
            prop_assert!(next.saturating_since(after) <= std::time::Duration::from_secs(25 * 3600 + 3600));
            let between = after + next.saturating_since(after).mul_f64(part);
            prop_assume!(between < next);
            prop_assert_eq!(schedule.next_after(between), Some(next));
        }

        #[test]
        fn no_text_makes_it_panic(cron in "[0-9*,/LW#?a-zA-Z -]{0,40}", zone in "[A-Za-z/_]{0,20}") {
            let _ = Schedule::new(&cron, &zone);
        }
    }
}
