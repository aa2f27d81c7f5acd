//! Between the model and the bytes that the store holds.

pub mod stored;

pub use stored::Unreadable;
