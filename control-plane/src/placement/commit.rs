//! Writes moves as assignments, each transaction guarded by the leader's term.

use postrider_common::key;
use postrider_common::store::{Op, Revision, Store, Write, WriteError};
use postrider_common::wire::stored;
use postrider_proto::stored as pb;

use super::plan::{Move, Moves};
use crate::leader::Term;

/// Assignments a transaction: below the store's limit of 128 operations.
const CHUNK: usize = 100;

/// Writes `moves` and returns the revision of the last transaction; `None` if there is nothing to write.
///
/// # Errors
/// - [`WriteError::Conflict`]: the term is over.
/// - Otherwise some may have been written, now or still to come. That needs no settling: what was written is seen by the mirror and planned from.
pub(super) async fn commit(store: &dyn Store, term: &Term, moves: &Moves) -> Result<Option<Revision>, WriteError> {
    let mut last = None;
    for chunk in moves.0.chunks(CHUNK) {
        let assign = |one: &Move| {
            let agent = one.to.as_str().to_owned();
            Op::put(key::assignment(one.shard), stored::encode(&pb::Assignment { agent }))
        };
        let write = Write {
            guards: vec![term.guard()],
            ops: chunk.iter().map(assign).collect(),
        };
        last = Some(store.write(write).await?);
    }
    Ok(last)
}
