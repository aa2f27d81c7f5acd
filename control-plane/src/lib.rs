//! The control plane: gRPC services for webhooks and publishing.

mod api;
pub mod leader;
pub mod placement;
pub mod sweep;
