//! The catalog: accounts, webhooks and event types.
//!
//! - `index`: every webhook and every event type in memory, for matching.
//! - `view`: one account's webhooks, compiled.
//! - `filter`: what a webhook asks of an event besides its name, compiled.
//! - `types`: the event types, compiled; `schema`: what their events' bodies must be.
//! - `edit`: the guarded writes that change the catalog, each one transaction.
//! - `dedupe`: the leases on which the answers of requests with a request id live.
//! - `etag`: names one state of a resource.

pub(crate) mod dedupe;
pub(crate) mod edit;
pub(crate) mod etag;
pub(crate) mod filter;
mod index;
pub(crate) mod schema;
pub(crate) mod types;
pub(crate) mod view;

pub(crate) use index::Catalog;
pub(crate) use types::Types;
pub(crate) use view::{Subscriber, Table};
