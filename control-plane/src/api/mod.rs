//! The gRPC face: one file per service, all input checked before anything is done.

pub(crate) mod publish_service;
pub(crate) mod status;
