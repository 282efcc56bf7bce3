//! Interrupts of two kinds: those that this process is notified of and delivers itself, and those
//! that the kernel delivers.

use std::os::fd::BorrowedFd;

use ipc::wire::function::InterruptIndex;

use crate::error::BackendError;

/// How the interrupts of a function reach the VMM.
pub enum Delivery<'f> {
    /// This process is woken, drains what pends, signals it and arms again.
    Notified(&'f mut dyn NotifiedInterrupts),
    /// The kernel signals the VMM's descriptors itself, also when this process is dead.
    Kernel(&'f mut dyn KernelInterrupts),
}

/// Interrupts that are recorded as pending bits, of which a notification tells
/// ([`crate::ServedFunction::notification`]).
pub trait NotifiedInterrupts {
    /// Takes and clears what pends.
    ///
    /// # Errors
    /// [`BackendError`]; what pends still does.
    fn drain(&mut self) -> Result<VectorSet, BackendError>;

    /// Asks for one more notification; it comes at once if something pends already.
    ///
    /// # Errors
    /// [`BackendError`]; none will come.
    fn arm(&mut self) -> Result<(), BackendError>;

    /// Sets which vectors are recorded when they fire; the others are lost.
    ///
    /// # Errors
    /// [`BackendError`].
    fn set_mask(&mut self, recorded: VectorSet) -> Result<(), BackendError>;
}

/// Interrupts that the kernel delivers.
pub trait KernelInterrupts {
    /// Has the kernel signal these from here on, one for each vector of `index` from 0 on, `None`
    /// for a vector that nobody waits for, in place of all that it signalled before. With an empty
    /// list the index is off.
    ///
    /// # Errors
    /// [`BackendError`]; what is signalled then is not known.
    fn connect(
        &mut self,
        index: InterruptIndex,
        signallers: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), BackendError>;

    /// Holds INTx back, or lets it through again. The kernel holds it back by itself after each
    /// signal: it is level-triggered.
    ///
    /// # Errors
    /// [`BackendError`].
    fn mask_intx(&mut self, masked: bool) -> Result<(), BackendError>;
}

/// A set of vectors below [`VectorSet::CAPACITY`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorSet([u64; 4]);

impl VectorSet {
    /// Vectors that a set can hold.
    pub const CAPACITY: u16 = 256;

    /// The empty set.
    pub const EMPTY: Self = Self([0; 4]);

    /// From words, vector 0 in the lowest bit of the first.
    #[must_use]
    pub fn from_words(words: [u64; 4]) -> Self {
        Self(words)
    }

    /// The words.
    #[must_use]
    pub fn words(self) -> [u64; 4] {
        self.0
    }

    /// Adds a vector; one that a set cannot hold is left out.
    pub fn insert(&mut self, vector: u16) {
        if let Some(word) = self.0.get_mut(usize::from(vector / 64)) {
            *word |= 1 << (vector % 64);
        }
    }

    /// Whether a vector is in it.
    #[must_use]
    pub fn contains(self, vector: u16) -> bool {
        let word = self.0.get(usize::from(vector / 64));
        word.is_some_and(|word| word >> (vector % 64) & 1 != 0)
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// The vectors in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (0..Self::CAPACITY).filter(move |vector| self.contains(*vector))
    }

    /// The vectors that are in both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let mut words = self.0;
        for (word, other) in words.iter_mut().zip(other.0) {
            *word &= other;
        }
        Self(words)
    }
}

impl FromIterator<u16> for VectorSet {
    fn from_iter<I: IntoIterator<Item = u16>>(vectors: I) -> Self {
        let mut set = Self::EMPTY;
        vectors.into_iter().for_each(|vector| set.insert(vector));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_it_can_and_in_order() {
        let set: VectorSet = [255, 0, 64, 63, 256, u16::MAX].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert_eq!(set.words(), [1 | 1 << 63, 1, 0, 1 << 63]);
        assert_eq!(set.count(), 4);
        assert!(!set.contains(256) && !set.contains(1));
        let low: VectorSet = (0..64).collect();
        assert_eq!(set.intersection(low).words(), [1 | 1 << 63, 0, 0, 0]);
        assert!(VectorSet::EMPTY.is_empty() && !set.is_empty());
    }
}
