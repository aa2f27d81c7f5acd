//! One bit for each delivery of a source: 1 means that it is over for the source. Pure.

/// The bits of one source, in the form in which they are stored: lowest bit of the first byte first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bits {
    bytes: Vec<u8>,
    total: u32,
    set: u32,
}

impl Bits {
    /// Of `total` deliveries, none over.
    pub fn new(total: u32) -> Self {
        Self {
            bytes: vec![0; total.div_ceil(8) as usize],
            total,
            set: 0,
        }
    }

    /// The same with all over.
    pub fn full(&self) -> Self {
        let mut full = Self::new(self.total);
        for index in 0..self.total {
            full.set(index);
        }
        full
    }

    /// As they were stored. Missing bits are 0, bits beyond `total` are ignored.
    pub fn read(stored: &[u8], total: u32) -> Self {
        let mut bits = Self::new(total);
        for index in 0..total {
            let byte = stored.get(index as usize / 8).copied().unwrap_or(0);
            if byte & (1 << (index % 8)) != 0 {
                bits.set(index);
            }
        }
        bits
    }

    /// Whether delivery `index` is over.
    pub fn get(&self, index: u32) -> bool {
        let byte = self.bytes.get(index as usize / 8).copied().unwrap_or(0);
        byte & (1 << (index % 8)) != 0
    }

    /// Notes that delivery `index` is over; says whether that is news. An index that does not exist is no news.
    pub fn set(&mut self, index: u32) -> bool {
        if index >= self.total || self.get(index) {
            return false;
        }
        if let Some(byte) = self.bytes.get_mut(index as usize / 8) {
            *byte |= 1 << (index % 8);
        }
        self.set += 1;
        true
    }

    /// All are over.
    pub const fn is_full(&self) -> bool {
        self.set == self.total
    }

    /// Some are over, but not all: this has to be stored.
    pub const fn is_partial(&self) -> bool {
        self.set > 0 && self.set < self.total
    }

    /// How many are over.
    pub const fn count(&self) -> u32 {
        self.set
    }

    /// How many there are.
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// As they are stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_read_back_as_they_were_set(total in 0_u32..300, indexes in proptest::collection::vec(0_u32..300, 0..300)) {
            let mut bits = Bits::new(total);
            let mut model = std::collections::BTreeSet::new();
            for index in indexes {
                prop_assert_eq!(bits.set(index), index < total && model.insert(index));
            }
            prop_assert_eq!(bits.count() as usize, model.len());
            prop_assert_eq!(bits.is_full(), model.len() == total as usize);
            prop_assert_eq!(Bits::read(bits.as_bytes(), total), bits);
        }

        #[test]
        fn no_stored_bytes_make_more_bits_than_there_are_deliveries(stored in proptest::collection::vec(any::<u8>(), 0..40), total in 0_u32..200) {
            prop_assert!(Bits::read(&stored, total).count() <= total);
        }
    }
}
