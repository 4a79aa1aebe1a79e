//! What other proxies of a shared ledger have freed, as far as this one has heard.
//!
//! The ledger counts every freeing. This proxy polls the count twice a second and is told in which
//! repositories something was freed; a look-up that returns a higher freed number says the same of its
//! own. What was remembered of such a repository before is not served any more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::time::Instant;

use super::Witness;
use crate::ledger::rollback::Losses;
use crate::ledger::{FreedNumber, News, RepositoryKey, Unavailable};

/// A pull goes by memory without asking for so long after a poll began.
pub(super) const WITHIN: Duration = Duration::from_secs(1);
/// In a Cluster a freeing is announced before it takes place, and took place so much later at the latest.
const LATEST: Duration = Duration::from_secs(5);
/// Repositories beyond share their numbers with others: they are asked for more often.
const NUMBERS: u32 = 1 << 14;

/// For each repository of which something is remembered, how often it was heard that something was freed.
pub(super) struct Freed {
    known: DashMap<RepositoryKey, Known>,
    next: AtomicU32,
    counts: Box<[AtomicU64]>,
    /// The same for all repositories at once.
    all: AtomicU64,
}

struct Known {
    at: u32,
    /// The highest freed number that a look-up returned.
    freed: FreedNumber,
}

/// What a repository's number was when something was seen of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    at: u32,
    count: u64,
}

impl Heard {
    /// Of a repository without a number.
    const NONE: u32 = u32::MAX;
}

impl Freed {
    pub fn new() -> Self {
        let counts = (0..NUMBERS).map(|_| AtomicU64::new(0)).collect();
        let (known, all) = (DashMap::new(), AtomicU64::new(0));
        Self { known, next: AtomicU32::new(0), counts, all }
    }

    fn count(&self, at: u32) -> u64 {
        // Neither ever falls, so their sum stays only if both do.
        let own = self.counts.get(at as usize).map_or(0, |count| count.load(Ordering::Acquire));
        own + self.all.load(Ordering::Acquire)
    }

    /// Without a lock.
    pub fn is_current(&self, heard: Heard) -> bool {
        self.count(heard.at) == heard.count
    }

    /// What a call that begins now brings is as new as this.
    pub fn now(&self, repository: &RepositoryKey) -> Heard {
        let at = self.of(repository).unwrap_or(Heard::NONE);
        Heard { at, count: self.count(at) }
    }

    /// Nothing is remembered of most repositories that are asked for, and they have no number.
    fn of(&self, repository: &RepositoryKey) -> Option<u32> {
        self.known.get(repository).map(|known| known.at)
    }

    /// As which something is remembered that a call brought, and that nothing was heard of meanwhile;
    /// `None` where it is older than what is known.
    pub fn remembered(
        &self,
        repository: &RepositoryKey,
        begun: Heard,
        number: Option<FreedNumber>,
    ) -> Option<Heard> {
        if begun.at != Heard::NONE {
            return Some(begun);
        }
        let mut new = false;
        let known = self.known.entry(repository.clone()).or_insert_with(|| {
            new = true;
            let at = self.next.fetch_add(1, Ordering::Relaxed) % NUMBERS;
            Known { at, freed: number.unwrap_or_default() }
        });
        // Another call began to remember the repository.
        let is_newest = new || number.is_some_and(|number| number >= known.freed);
        is_newest.then(|| Heard { at: known.at, count: self.count(known.at) })
    }

    fn raise(&self, at: u32) {
        if let Some(count) = self.counts.get(at as usize) {
            count.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// What the last polls brought.
#[derive(Default)]
pub(super) struct Polls {
    count: Option<u64>,
    /// Announced before it took place: to be heard of once more.
    again: VecDeque<(Instant, Vec<RepositoryKey>)>,
}

impl Witness {
    /// Asks a shared ledger what other proxies freed. To be called twice a second: until a second after
    /// the last call that succeeded began, pulls go by memory without asking.
    ///
    /// # Errors
    /// When the ledger can't be asked.
    pub async fn hear(&self) -> Result<News, Unavailable> {
        let begun = Instant::now();
        let last = self.polls().count;
        let polled = self.inner.poll(last).await;
        self.poll_failed.store(polled.is_err(), Ordering::Release);
        if !self.inner.is_shared() {
            self.fresh_until.store(u64::MAX, Ordering::Release);
            return polled;
        }
        let Ok(news) = &polled else {
            // Set for good while nobody knew that the ledger is a shared one.
            let _ =
                self.fresh_until.compare_exchange(u64::MAX, 0, Ordering::AcqRel, Ordering::Acquire);
            return polled;
        };
        let mut polls = self.polls();
        if last.is_none() {
            // What was freed before the first poll is not known.
            self.was_freed_everywhere();
        }
        let due = polls.again.iter().take_while(|(at, _)| *at <= begun).count();
        let due: Vec<_> = polls.again.drain(..due).flat_map(|(_, freed)| freed).collect();
        self.was_freed_in(due.iter().chain(&news.freed));
        if news.early && !news.freed.is_empty() {
            polls.again.push_back((begun + LATEST, news.freed.clone()));
        }
        polls.count = Some(news.count);
        // While a loss is being restored, nothing is certain.
        let restoring = self.inner.losses().is_some_and(Losses::is_restoring_any);
        let until = if restoring { 0 } else { self.in_millis(begun + WITHIN) };
        self.fresh_until.store(until, Ordering::Release);
        polled
    }

    fn polls(&self) -> MutexGuard<'_, Polls> {
        self.polls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_freed_in<'r>(&self, repositories: impl Iterator<Item = &'r RepositoryKey>) {
        // A call under way remembers what it brings before this, and it counts as older; or not at all.
        let _alone = self.alone();
        let mut any = false;
        for repository in repositories {
            any = true;
            if let Some(at) = self.freed.of(repository) {
                self.freed.raise(at);
            }
        }
        if any {
            self.forgotten.fetch_add(1, Ordering::AcqRel);
            self.has_changed();
        }
    }

    /// What is remembered is not served before it was looked up again.
    pub(super) fn was_freed_everywhere(&self) {
        let _alone = self.alone();
        self.freed.all.fetch_add(1, Ordering::AcqRel);
        for mut known in self.freed.known.iter_mut() {
            known.freed = FreedNumber::default();
        }
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.has_changed();
    }

    /// A look-up that began with this returned a freed number. What it brings is as new as what is
    /// returned here.
    pub(super) fn heard_number(
        &self,
        repository: &RepositoryKey,
        begun: Heard,
        number: FreedNumber,
    ) -> Heard {
        if !self.inner.is_shared() {
            return begun;
        }
        let Some(mut known) = self.freed.known.get_mut(repository) else { return begun };
        if number <= known.freed {
            return begun;
        }
        known.freed = number;
        let before = self.freed.count(known.at);
        self.freed.raise(known.at);
        self.has_changed();
        // Unless something else was heard since it began.
        if before == begun.count { Heard { count: before + 1, ..begun } } else { begun }
    }

    pub(super) fn in_millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether the last poll is new enough. One load.
    pub(super) fn is_polled(&self, now: Instant) -> bool {
        self.in_millis(now) < self.fresh_until.load(Ordering::Acquire)
    }
}
