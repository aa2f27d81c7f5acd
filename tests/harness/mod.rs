//! The harness of the tests of the whole system: real etcd, the real programs, a real receiver, and waiting without sleeping.
//!
//! Everything here fails a test by panicking with what was waited for; the tails of the programs' logs are printed when a test fails.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness that cannot go on must fail its test at once"
)]

pub mod chaos;
pub mod client;
pub mod cluster;
pub mod dns;
pub mod etcd;
pub mod etcd_api;
pub mod etcd_users;
pub mod http;
pub mod namespace;
pub mod port;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod tls;
pub mod usage;
pub mod wait;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

/// The root of the repository.
pub fn root() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the tests crate is in the repository")
        .to_path_buf()
}
