//! The catalog: accounts, webhooks and event types.
//!
//! - `index`: every webhook in memory, for matching.
//! - `view`: one account's webhooks, compiled.
//! - `feed`: what keeps it up to date.

mod feed;
mod index;
pub(crate) mod view;

pub(crate) use index::Catalog;
pub(crate) use view::{Subscriber, Table};
