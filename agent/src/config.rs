//! The agent's settings.

use std::num::NonZeroU32;
use std::time::Duration;

use postrider_common::config::{self, Setting, Settings};
use postrider_common::egress;
use postrider_common::id::AgentId;

use crate::Roots;
use crate::history;
use crate::limit::failing;
use crate::shard;

/// What the agent does, whoever starts it.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of this agent; unique among those alive.
    pub id: AgentId,
    /// How many shards it is meant to have, relative to others.
    pub weight: NonZeroU32,
    /// How long others wait before they take over from it.
    pub lease_ttl: Duration,
    /// How long requests under way may still take when a shard is handed over.
    pub release_grace: Duration,
    /// How long a webhook may only fail before it is suspended.
    pub suspend_after: Duration,
    /// How long dead letters are kept.
    pub dead_letter_retention: Duration,
    /// How much history is kept.
    pub history: history::Limits,
    /// Which networks it may send to beyond the public ones.
    pub egress: egress::Policy,
    /// Which certificate authorities receivers may be certified by.
    pub roots: Roots,
    /// PEM files of certificate authorities to trust beyond the public ones.
    pub extra_roots: Vec<std::path::PathBuf>,
}

/// The weight of an agent that was not given one.
pub const DEFAULT_WEIGHT: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Settings of its own.
pub const SETTINGS: &[Setting] = &[
    Setting::optional("agent-id", "NAME", "The name of this agent; made up if not given"),
    Setting::new(
        "weight",
        "NUMBER",
        "100",
        "How many shards this agent is meant to have, relative to others",
    ),
    RELEASE_GRACE,
    SUSPEND_AFTER,
    DEAD_LETTER_RETENTION,
    HISTORY_RETENTION,
    HISTORY_BYTES,
    ROOTS,
    EXTRA_ROOTS,
];

/// How long a hand-over waits for receivers.
pub const RELEASE_GRACE: Setting = Setting::new(
    "release-grace",
    "DURATION",
    "800ms",
    "How long requests under way may still take when a shard is handed over; then they are cut, and repeated by the next agent",
);

/// When a webhook that only fails is switched off.
pub const SUSPEND_AFTER: Setting = Setting::new(
    "suspend-after",
    "DURATION",
    "168h",
    "How long every attempt of a webhook must have failed before it is suspended; at least 1s",
);

/// How long dead letters are kept.
pub const DEAD_LETTER_RETENTION: Setting = Setting::new(
    "dead-letter-retention",
    "DURATION",
    "720h",
    "How long dead letters are kept; at least 1s. They are looked through a minute after a shard was taken and every hour",
);

/// How long history is kept.
pub const HISTORY_RETENTION: Setting = Setting::new(
    "history-retention",
    "DURATION",
    "72h",
    "How long attempts can be looked up; 0s keeps no history",
);

/// How much history is kept.
pub const HISTORY_BYTES: Setting = Setting::new(
    "history-bytes",
    "BYTES",
    "67108864",
    "Bytes of attempts that can be looked up, in the whole cell; 0 keeps no history",
);

/// Which list of certificate authorities.
pub const ROOTS: Setting = Setting::new(
    "roots",
    "LIST",
    "built-in",
    "Which certificate authorities receivers may be certified by: built-in or system",
);

/// Certificate authorities.
pub const EXTRA_ROOTS: Setting = Setting::repeated(
    "extra-roots",
    "FILE",
    "A PEM file of certificate authorities to trust beyond the public ones",
);

/// Reads them.
pub fn read(settings: &mut Settings, generated_id: AgentId) -> Config {
    Config {
        id: settings.maybe("agent-id", AgentId::new).unwrap_or(generated_id),
        weight: settings
            .maybe("weight", |text| {
                text.parse::<NonZeroU32>().map_err(|_| "must be a number above 0")
            })
            .unwrap_or(DEFAULT_WEIGHT),
        lease_ttl: config::lease_ttl(settings),
        release_grace: release_grace(settings),
        suspend_after: suspend_after(settings),
        dead_letter_retention: dead_letter_retention(settings),
        history: history(settings),
        egress: config::egress(settings),
        roots: roots(settings),
        extra_roots: settings.all("extra-roots", config::path),
    }
}

/// Reads which list of certificate authorities is believed.
pub fn roots(settings: &mut Settings) -> Roots {
    let parse = |text: &str| match text {
        "built-in" => Ok(Roots::BuiltIn),
        "system" => Ok(Roots::System),
        _ => Err("must be built-in or system"),
    };
    settings.maybe("roots", parse).unwrap_or_default()
}

/// Reads how long a hand-over waits for receivers.
pub fn release_grace(settings: &mut Settings) -> Duration {
    settings
        .maybe("release-grace", config::duration)
        .unwrap_or(Duration::ZERO)
}

/// Reads when a webhook that only fails is switched off.
pub fn suspend_after(settings: &mut Settings) -> Duration {
    settings
        .maybe("suspend-after", a_second_at_least)
        .unwrap_or(failing::SUSPEND_AFTER)
}

/// Reads how long dead letters are kept.
pub fn dead_letter_retention(settings: &mut Settings) -> Duration {
    settings
        .maybe("dead-letter-retention", a_second_at_least)
        .unwrap_or(shard::DEAD_LETTER_RETENTION)
}

fn a_second_at_least(text: &str) -> Result<Duration, &'static str> {
    match config::duration(text)? {
        short if short < Duration::from_secs(1) => Err("must be at least 1s"),
        duration => Ok(duration),
    }
}

/// Reads how much history is kept.
pub fn history(settings: &mut Settings) -> history::Limits {
    let bytes = |text: &str| text.parse::<u64>().map_err(|_| "must be a number of bytes");
    let limits = history::Limits::default();
    history::Limits {
        retention: settings
            .maybe("history-retention", config::duration)
            .unwrap_or(limits.retention),
        bytes: settings.maybe("history-bytes", bytes).unwrap_or(limits.bytes),
    }
}
