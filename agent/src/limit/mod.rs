//! What holds a webhook's attempts back: all of it is the webhook's own, so that a receiver that is unwell or slow costs nobody else anything. Pure.
//!
//! - [`breaker`]: stops everything while the receiver seems to be down, and comes back carefully.
//!
//! ```text
//!                5 failures in a row, or Throttled
//!        serving ─────────────────────────────────▶ tripped until …
//!        ▲  in flight: 1, 2, 4 … max                 │       ▲
//!        │                                  its time │       │ longer each time
//!        └──────── it answered ─────────── probing ◀─┘       │
//!                                             └── it failed ─┘
//! ```
//!
//! - [`rate`]: the rate that the webhook's owner allows.
//! - [`failing`]: since when it has only failed, across agents: after long enough the webhook is suspended.

pub mod breaker;
pub mod failing;
pub mod rate;
