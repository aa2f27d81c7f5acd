//! What is kept of a webhook that only fails. Pure.

use crate::id::Uid;
use crate::time::Timestamp;

/// Failures of a webhook with no success between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// The webhook's uid.
    pub uid: Uid,
    /// The webhook's generation: a changed webhook begins anew.
    pub generation: u64,
    /// The first failure.
    pub since: Timestamp,
    /// The last failure, as of the last writing.
    pub last: Timestamp,
    /// Until when the receiver has asked to be left alone; long ago if it has not.
    pub rest_until: Timestamp,
}
