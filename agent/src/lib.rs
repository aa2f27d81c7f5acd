//! The agent: takes the shards it is assigned and delivers what they hold over HTTP.

pub mod assignment;
pub mod attempt;
pub mod auth;
pub mod catalog;
pub mod presence;
pub mod shard;
pub mod transport;
