//! The control plane: gRPC services for webhooks and publishing.

#[allow(dead_code)]
mod api;
#[allow(dead_code)]
mod catalog;
#[allow(dead_code)]
mod cell;
pub mod leader;
pub mod placement;
#[allow(dead_code)]
mod publish;
pub mod sweep;
