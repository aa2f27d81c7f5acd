//! The cell: facts fixed when the store was first used.

use std::num::NonZeroU16;

use postrider_common::entropy::Entropy;
use postrider_common::id::Uid;
use postrider_common::store::{Guard, Op, ReadError, Store, Write, WriteError};
use postrider_common::time::Timestamp;
use postrider_common::wire::stored::{Unreadable, decode, encode};
use postrider_common::{key, shard};
use postrider_proto::stored;

/// How often the first write of a cell is tried: it can fail only while another control plane makes the same one.
const TRIES: usize = 5;

/// The format of the stored cell that this release writes and reads.
const VERSION: u32 = 1;

/// The fixed facts of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    /// Unique for ever.
    pub(crate) uid: Uid,
    /// How many shards it has.
    pub(crate) shard_count: NonZeroU16,
}

/// Why a control plane cannot start in this cell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CellError {
    /// The store belongs to a cell with another number of shards.
    #[error(
        "this store was first used with {stored} shards and keeps them for ever; this process is configured for \
         {configured}: set the shard count to {stored}, or use another store or key prefix"
    )]
    OtherShardCount {
        /// What the store says.
        stored: u16,
        /// What the configuration says.
        configured: u16,
    },
    /// The stored facts cannot be read by this release.
    #[error("the stored facts of the cell cannot be read: {0}")]
    Unreadable(String),
    /// The store did not answer.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store did not take the facts.
    #[error("the facts of the cell could not be stored: {0}")]
    Write(WriteError),
}

impl From<Unreadable> for CellError {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error.to_string())
    }
}

/// The cell of `store`, which comes into being if the store was never used: with as many shards as configured, or the default.
///
/// # Errors
/// [`CellError`]; when the store is away it may be called again.
pub(crate) async fn ensure(
    store: &dyn Store,
    configured: Option<NonZeroU16>,
    now: Timestamp,
    entropy: &dyn Entropy,
) -> Result<Cell, CellError> {
    let uid = entropy.uid(now);
    let shard_count = configured.unwrap_or(shard::DEFAULT_COUNT);
    let mut last = WriteError::Conflict;
    for _ in 0..TRIES {
        // Read first: whatever became of a write whose outcome is not known, the key says it.
        if let Some(entry) = store.get(&key::cell()).await?.0 {
            return read(decode(entry.value)?, configured);
        }
        let cell = stored::Cell {
            version: VERSION,
            uid: uid.as_str().to_owned(),
            shard_count: shard_count.get().into(),
        };
        let write = Write {
            guards: vec![Guard::Absent(key::cell())],
            ops: vec![Op::put(key::cell(), encode(&cell))],
        };
        match store.write(write).await {
            Ok(_) => return Ok(Cell { uid, shard_count }),
            Err(error) => last = error,
        }
    }
    Err(CellError::Write(last))
}

fn read(stored: stored::Cell, configured: Option<NonZeroU16>) -> Result<Cell, CellError> {
    if stored.version != VERSION {
        return Err(CellError::Unreadable(format!("version {}", stored.version)));
    }
    let unreadable = |why: String| CellError::Unreadable(why);
    let count = u16::try_from(stored.shard_count).ok().and_then(NonZeroU16::new);
    let shard_count = count.ok_or_else(|| unreadable(format!("{} shards", stored.shard_count)))?;
    if let Some(configured) = configured.filter(|configured| *configured != shard_count) {
        return Err(CellError::OtherShardCount {
            stored: shard_count.get(),
            configured: configured.get(),
        });
    }
    let uid = Uid::new(&stored.uid).map_err(|error| unreadable(error.to_string()))?;
    Ok(Cell { uid, shard_count })
}

#[cfg(test)]
mod tests {
    use postrider_common::entropy::SystemEntropy;
    use postrider_common::store::memory::{Fault, MemoryStore};

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_727_414_643_000);

    async fn with(store: &MemoryStore, shards: u16, seed: u64) -> Result<Cell, CellError> {
        ensure(store, NonZeroU16::new(shards), NOW, &SystemEntropy::seeded(seed)).await
    }

    #[tokio::test]
    async fn the_first_control_plane_makes_the_cell_and_the_others_find_it() {
        let store = MemoryStore::default();
        let first = with(&store, 64, 1).await.unwrap();
        assert_eq!(with(&store, 64, 2).await.unwrap(), first);
    }

    #[tokio::test]
    async fn another_shard_count_is_refused_with_both_numbers() {
        let store = MemoryStore::default();
        with(&store, 64, 1).await.unwrap();
        let text = with(&store, 32, 2).await.unwrap_err().to_string();
        assert!(text.contains("64") && text.contains("32"), "{text}");
    }

    #[tokio::test]
    async fn a_lost_answer_does_not_make_two_cells() {
        for fault in [Fault::LostAnswer, Fault::LostRequest] {
            let store = MemoryStore::default();
            let mut faults = vec![fault];
            store.inject(Box::new(move |_| faults.pop()));
            let cell = with(&store, 64, 1).await.unwrap();
            assert_eq!(with(&store, 64, 2).await.unwrap(), cell);
        }
    }
}
