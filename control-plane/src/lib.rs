//! The control plane: gRPC services for webhooks and publishing.

mod api;
