//! The control plane: gRPC services for webhooks and publishing.

// Until the wiring serves them.
#[allow(dead_code)]
mod api;
#[allow(dead_code)]
mod catalog;
#[allow(dead_code)]
mod publish;
