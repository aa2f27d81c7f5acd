//! The short chaos: real programs are killed, paused and cut off in the middle of a course of events, and one checker judges what came of it.
//!
//! The programs must have been built (`make test` does). Each test has a cluster and an etcd of its own. `make chaos` runs the long one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on must fail"
)]

mod clocks;
mod compaction;
mod credentials;
mod crowd;
mod disk;
mod killed;
mod links;
mod members;
mod names;
mod partitions;
mod paused;
mod planes;
mod points;
mod restored;
mod scaled;
mod starved;
mod store;

use std::time::Duration;

/// How long a course of thousands of events may take, with leases that must run out in the middle, in a debug build on a busy machine.
const FLOW: Duration = Duration::from_secs(120);

/// Microseconds in a second.
const SECOND: u64 = 1_000_000;
