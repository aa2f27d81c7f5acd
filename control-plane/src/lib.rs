//! The control plane: gRPC services for webhooks and publishing.

// Nothing calls these until the server is put together: take the attributes away then.
#[allow(dead_code)]
mod api;
#[allow(dead_code)]
mod catalog;
#[allow(dead_code)]
mod cell;
