//! Chance, injected: ids, jitter, keys. Seeded in tests and simulations, so that a run can be repeated.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng, TryRng};

use crate::id::Uid;
use crate::time::Timestamp;

/// A source of random bytes.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);

    /// A random number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A random number in `0.0..1.0`.
    fn fraction(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // 53 bits fit exactly.
        let value = (self.next_u64() >> 11) as f64;
        value / (1_u64 << 53) as f64
    }

    /// A UUID of version 7: ordered by `now`, the rest random.
    fn uuid(&self, now: Timestamp) -> uuid::Uuid {
        let mut bytes = [0; 10];
        self.fill(&mut bytes);
        uuid::Builder::from_unix_timestamp_millis(u64::try_from(now.as_millis()).unwrap_or(0), &bytes).into_uuid()
    }

    /// A uid for a new resource.
    fn uid(&self, now: Timestamp) -> Uid {
        #[allow(clippy::expect_used)] // A hyphenated UUID is always a valid uid.
        Uid::new(&self.uuid(now).to_string()).expect("a UUID is a uid")
    }
}

/// A shared source of random bytes.
pub type SharedEntropy = Arc<dyn Entropy>;

/// The operating system's random numbers, by way of a generator seeded from them.
pub struct SystemEntropy(Mutex<StdRng>);

impl SystemEntropy {
    /// Seeds a generator from the operating system.
    ///
    /// # Errors
    /// When the operating system has no random numbers to give.
    pub fn new() -> std::io::Result<Self> {
        let mut seed = [0; 32];
        SysRng.try_fill_bytes(&mut seed).map_err(std::io::Error::other)?;
        Ok(Self(Mutex::new(StdRng::from_seed(seed))))
    }

    /// A generator that always gives the same numbers, for tests and simulations.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}
