//! What Postrider deals with, as plain validated values: no protobuf, no store, no network.

pub mod account;
pub mod auth;
pub mod batching;
pub mod event_type;
pub mod failing;
pub mod operational;
pub mod order;
pub mod segment;
pub mod webhook;
