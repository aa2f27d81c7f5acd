//! The catalog: accounts, webhooks and event types.
//!
//! - `edit`: the guarded writes that change it, each one transaction.
//! - `dedupe`: the leases on which the answers of requests with a request id live.
//! - `etag`: names one state of a resource.

pub(crate) mod dedupe;
pub(crate) mod edit;
pub(crate) mod etag;
