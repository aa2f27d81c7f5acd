//! The protobuf messages of Postrider, generated from the files beside this crate: the API and what the store holds.

pub mod codec;
mod secret;

/// The API: messages, clients and servers of package `postrider.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::large_futures
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/postrider.v1.rs"));
}

/// What the store holds: messages of package `postrider.stored.v1`. Never shown on the API.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod stored {
    include!(concat!(env!("OUT_DIR"), "/postrider.stored.v1.rs"));
}

/// The encoded `FileDescriptorSet` of the API and all it imports, for gRPC reflection.
pub const API_DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/api_descriptor.bin"));
