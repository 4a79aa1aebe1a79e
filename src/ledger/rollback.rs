//! Proof that a store has lost entries: it went back in time, or forgot who it is.
//!
//! What a ledger lacks then is no proof that a tag is free. The proxies offer what they remember
//! (see [`super::witness`]), and until all have done so the store answers nothing that depends on what is
//! there: see `docs/decisions/0010-lost-ledgers.md`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;

use super::{RepositoryKey, Unavailable};

/// The answer of a ledger that is being restored.
const RESTORING: &str = "the ledger lost entries and is being restored";

pub fn restoring() -> Unavailable {
    Unavailable::Store(RESTORING.into())
}

/// What was lost: entries of one repository, or of any.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Whole,
    Repository(RepositoryKey),
}

impl Scope {
    pub fn covers(&self, other: &Self) -> bool {
        *self == Self::Whole || self == other
    }
}

/// The losses seen by this process.
#[derive(Debug, Default)]
pub struct Losses {
    /// Of all repositories at once.
    whole: AtomicU64,
    repositories: DashMap<RepositoryKey, u64>,
    total: AtomicU64,
    /// What is not restored yet, and the total when it was lost last.
    open: Mutex<HashMap<Scope, u64>>,
    /// Whether there is any of that.
    any: AtomicBool,
}

impl Losses {
    /// One repository's sequence number fell, or the ledger as a whole is not the one it was. Until
    /// [`Self::settle`], it is being restored.
    pub fn note(&self, scope: &Scope) {
        let mut open = self.open();
        let total = self.total.fetch_add(1, Ordering::AcqRel) + 1;
        match scope {
            Scope::Whole => {
                self.whole.fetch_add(1, Ordering::AcqRel);
            }
            Scope::Repository(key) => *self.repositories.entry(key.clone()).or_insert(0) += 1,
        }
        open.insert(scope.clone(), total);
        self.any.store(true, Ordering::Release);
    }

    /// Another proxy may be restoring after a loss that this process was not there to see.
    pub fn await_others(&self) {
        let mut open = self.open();
        open.insert(Scope::Whole, self.total());
        self.any.store(true, Ordering::Release);
    }

    /// Everything that was lost up to this total is restored, as far as it can be.
    pub fn settle(&self, total: u64) {
        let mut open = self.open();
        open.retain(|_, lost| *lost > total);
        self.any.store(!open.is_empty(), Ordering::Release);
    }

    pub fn is_restoring_any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub fn is_restoring(&self, repository: &RepositoryKey) -> bool {
        if !self.is_restoring_any() {
            return false;
        }
        let open = self.open();
        open.contains_key(&Scope::Whole)
            || open.contains_key(&Scope::Repository(repository.clone()))
    }

    /// # Errors
    /// While entries of this repository may be missing.
    pub fn check(&self, repository: &RepositoryKey) -> Result<(), Unavailable> {
        if self.is_restoring(repository) { Err(restoring()) } else { Ok(()) }
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

    fn open(&self) -> MutexGuard<'_, HashMap<Scope, u64>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::contract::key;

    #[test]
    fn losses_count_for_their_repository_or_for_all() {
        let losses = Losses::default();
        losses.note(&Scope::Repository(key("a")));
        assert_eq!((losses.of(&key("a")), losses.of(&key("b"))), (1, 0));
        losses.note(&Scope::Whole);
        assert_eq!((losses.of(&key("a")), losses.of(&key("b")), losses.total()), (2, 1, 2));
    }

    #[test]
    fn what_was_lost_is_being_restored_until_it_is_settled() {
        let losses = Losses::default();
        let restoring = || (losses.is_restoring(&key("a")), losses.is_restoring(&key("b")));
        losses.note(&Scope::Repository(key("a")));
        assert_eq!(restoring(), (true, false));
        let first = losses.total();
        losses.note(&Scope::Whole);
        losses.settle(first);
        assert_eq!(restoring(), (true, true), "the second one is not settled");
        losses.settle(losses.total());
        assert!(!losses.is_restoring_any());
        // One that was noted again while it was restored.
        losses.note(&Scope::Whole);
        let first = losses.total();
        losses.note(&Scope::Whole);
        losses.settle(first);
        assert_eq!(restoring(), (true, true));
        losses.settle(losses.total());
        losses.await_others();
        assert_eq!((restoring(), losses.total()), ((true, true), 4));
        losses.settle(losses.total());
        assert_eq!(restoring(), (false, false));
    }
}
