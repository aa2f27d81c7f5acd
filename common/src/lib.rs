//! What the control plane and the agent share: the store and what stands on it, the model, time, chance, network and settings.

pub mod admin;
pub mod client_certificate;
pub mod config;
pub mod egress;
pub mod entropy;
pub mod id;
pub mod key;
pub mod metric;
pub mod model;
pub mod net;
pub mod open_files;
pub mod planted;
pub mod retry;
pub mod schedule;
pub mod secret;
pub mod shard;
pub mod shutdown;
pub mod signature;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod time;
pub mod wire;
