//! Proof that a store has lost entries: it went back in time, or forgot who it is.
//!
//! What a ledger lacks then is no proof that a tag is free. Whoever remembers entries from before is
//! a witness: see [`super::witness`].

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use super::RepositoryKey;

/// The losses seen by this process.
#[derive(Debug, Default)]
pub struct Losses {
    /// Of all repositories at once.
    whole: AtomicU64,
    repositories: DashMap<RepositoryKey, u64>,
    total: AtomicU64,
}

impl Losses {
    /// One repository's sequence number fell.
    pub fn note(&self, repository: &RepositoryKey) {
        *self.repositories.entry(repository.clone()).or_insert(0) += 1;
        self.total.fetch_add(1, Ordering::AcqRel);
    }

    /// The ledger as a whole is not the one it was.
    pub fn note_whole(&self) {
        self.whole.fetch_add(1, Ordering::AcqRel);
        self.total.fetch_add(1, Ordering::AcqRel);
    }

    /// How often entries of this repository were lost. What was remembered at a lower count is
    /// older than the last loss.
    pub fn of(&self, repository: &RepositoryKey) -> u64 {
        let own = self.repositories.get(repository).map_or(0, |count| *count);
        own + self.whole.load(Ordering::Acquire)
    }

    /// How often anything was lost.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::contract::key;

    #[test]
    fn losses_count_for_their_repository_or_for_all() {
        let losses = Losses::default();
        losses.note(&key("a"));
        assert_eq!((losses.of(&key("a")), losses.of(&key("b"))), (1, 0));
        losses.note_whole();
        assert_eq!((losses.of(&key("a")), losses.of(&key("b")), losses.total()), (2, 1, 2));
    }
}
