//! The agent: takes the shards it is assigned and delivers what they hold over HTTP.

pub mod attempt;
pub mod auth;
pub mod shard;
pub mod transport;
