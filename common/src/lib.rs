//! What the control plane and the agent share: the store and what stands on it, the model, time, chance, network and settings.

pub mod egress;
pub mod entropy;
pub mod id;
pub mod key;
pub mod model;
pub mod net;
pub mod retry;
pub mod secret;
pub mod shard;
pub mod store;
pub mod task;
pub mod time;
pub mod wire;
