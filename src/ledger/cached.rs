//! Any ledger, and what this proxy has seen in it: sealed entries, remembered for pulls.
//!
//! A sealed entry changes only when an operator, a delete or a mutable rule lets go of its name, so
//! a pull may go by one that was seen a minute ago. That other proxies of a shared ledger freed a name is
//! heard of within a second (`news`), and where it can't be heard, the ledger is asked. What is remembered
//! is served without its word only where the look-up of this very pull failed. Pushes never go by
//! memory: `lookup` asks the store. Absent and pending entries are not remembered.
//!
//! To a ledger that is known to have lost entries, what is remembered from before the loss is offered
//! (`restore`). See `docs/decisions/0010-lost-ledgers.md`.

mod calls;
mod news;
mod restore;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::time::{Instant, timeout};

use super::{
    Entry, FreedNumber, Holder, Ledger, Origin, RepositoryKey, Sealed, Timestamp, Unavailable,
};
use crate::name::{Digest, Tag};
use crate::telemetry::Metrics;
use news::{Freed, Heard, Polls};

/// How long a pull waits for a ledger that it can do without, or that was down a moment ago.
const SHORT: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembering {
    /// How long a pull may go by an entry without asking for it again.
    pub ttl: Duration,
    /// The memory all remembered entries may take, in bytes.
    pub bytes: u64,
}

impl Default for Remembering {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(60), bytes: 32 << 20 }
    }
}

/// What a pull has to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The ledger's word of this moment, and the repository's freed number.
    Entry(Entry, FreedNumber),
    /// Sealed with this, seen less than the time to live ago.
    Fresh(Digest),
    /// Sealed with this when it was last seen; the ledger can't be asked now, for this reason.
    Remembered(Digest, Unavailable),
    /// The ledger can't be asked, and this proxy has not seen the tag.
    Nothing(Unavailable),
}

/// The last this proxy has seen of a tag that was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recollection {
    pub digest: Digest,
    pub details: Details,
    pub state: State,
    seen: Instant,
    /// How often the ledger was known to have lost entries of the repository when this was seen.
    losses: u64,
    /// What had been heard of freed names in the repository.
    heard: Heard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Details {
    pub origin: Origin,
    pub since: Timestamp,
    /// A sequence number of the repository at which the state was this.
    pub sequence: u64,
}

/// Only what is bound is served. The rest is kept for a ledger that loses entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Bound,
    /// Bound, unless a call that failed, or another proxy, has freed it.
    Doubted,
    Withdrawn(Timestamp),
    Freed,
}

/// What a tag is sealed with, where that was seen less than the time to live ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    pub digest: Digest,
    until: Instant,
    changes: u64,
}

impl Fresh {
    /// Whether it is no older than the other one. What changed the binding lies between two of different
    /// digests.
    pub fn is_as_new_as(&self, other: &Self) -> bool {
        self.changes >= other.changes
    }
}

#[cfg(test)]
impl Fresh {
    /// For a minute.
    pub fn test(digest: Digest, changes: u64) -> Self {
        Self { digest, until: Instant::now() + Duration::from_secs(60), changes }
    }
}

/// A ledger whose sealed entries are remembered.
pub struct Witness {
    inner: Arc<dyn Ledger>,
    memory: Cache<Box<str>, Recollection, Weight>,
    ttl: Duration,
    freed: Freed,
    /// Counts what was forgotten: a look-up that began before must not bring it back.
    forgotten: AtomicU64,
    /// Counts what may have ended something that was remembered, after each time: whoever kept that sees by
    /// it whether it is so still. What was evicted and not heard of since is.
    changes: AtomicU64,
    changing: Mutex<()>,
    began: Instant,
    /// Pulls go by memory without asking until then, in milliseconds since `began`; for ever where no other
    /// proxy can free anything.
    fresh_until: AtomicU64,
    polls: Mutex<Polls>,
    /// Whether the ledger was away at the last poll.
    poll_failed: AtomicBool,
    metrics: Option<Arc<Metrics>>,
}

/// The bytes an entry takes: its key, itself, and the cache's own book-keeping.
#[derive(Clone)]
struct Weight;

impl Weighter<Box<str>, Recollection> for Weight {
    fn weight(&self, key: &Box<str>, _: &Recollection) -> u64 {
        const OVERHEAD: usize = 64;
        (key.len() + size_of::<Box<str>>() + size_of::<Recollection>() + OVERHEAD) as u64
    }
}

fn key_of(repository: &RepositoryKey, tag: &Tag) -> String {
    let RepositoryKey { upstream, repository } = repository;
    let (upstream, repository, tag) = (upstream.as_str(), repository.as_str(), tag.as_str());
    let mut key = String::with_capacity(upstream.len() + repository.len() + tag.len() + 2);
    // Neither a name nor a tag holds a colon.
    for part in [upstream, ":", repository, ":", tag] {
        key.push_str(part);
    }
    key
}

impl Witness {
    pub fn new(inner: Arc<dyn Ledger>, remembering: Remembering) -> Self {
        let Remembering { ttl, bytes } = remembering;
        // A guess at the number of entries, for the cache's first allocations.
        let entries = usize::try_from(bytes / 256).unwrap_or(usize::MAX).max(16);
        let memory = Cache::with_weighter(entries, bytes, Weight);
        let fresh_until = AtomicU64::new(if inner.is_shared() { 0 } else { u64::MAX });
        Self {
            inner,
            memory,
            ttl,
            freed: Freed::new(),
            forgotten: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            changing: Mutex::default(),
            began: Instant::now(),
            fresh_until,
            polls: Mutex::default(),
            poll_failed: AtomicBool::new(false),
            metrics: None,
        }
    }

    /// With a count of what pulls went by.
    #[must_use]
    pub fn counted(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics: Some(metrics), ..self }
    }

    fn count(&self, result: &'static str) {
        if let Some(metrics) = &self.metrics {
            metrics.cache(result);
        }
    }

    /// What a tag is sealed with, where memory will do.
    pub fn fresh(&self, repository: &RepositoryKey, tag: &Tag, now: Instant) -> Option<Fresh> {
        // Before memory is looked at: what changes from here on is noticed.
        let changes = self.changes.load(Ordering::Acquire);
        if !self.is_polled(now) {
            return None;
        }
        let seen = self.recall(repository, tag)?;
        let until = seen.seen.checked_add(self.ttl)?;
        (now < until).then_some(Fresh { digest: seen.digest, until, changes })
    }

    /// Whether that may be gone by still. Nothing that threads share is written to for it.
    pub fn is_still(&self, fresh: &Fresh, now: Instant) -> bool {
        // A poll tells of changes before it extends the time.
        self.is_polled(now)
            && now < fresh.until
            && self.changes.load(Ordering::Acquire) == fresh.changes
    }

    /// What a pull has to go by, without a round trip where memory will do.
    pub async fn known(&self, repository: &RepositoryKey, tag: &Tag) -> Known {
        let known = match self.fresh(repository, tag, Instant::now()) {
            Some(fresh) => Known::Fresh(fresh.digest),
            None => self.asked(repository, tag).await,
        };
        // By what came of it: the ledger may fail only when it is asked.
        self.count(match &known {
            Known::Fresh(_) => "hit",
            Known::Entry(..) => "miss",
            Known::Remembered(..) | Known::Nothing(_) => "outage",
        });
        known
    }

    /// As `known`, and the ledger is asked in any case.
    pub async fn asked(&self, repository: &RepositoryKey, tag: &Tag) -> Known {
        let lookup = self.lookup(repository, std::slice::from_ref(tag));
        let is_down = self.poll_failed.load(Ordering::Acquire);
        let result = if is_down || self.recall(repository, tag).is_some() {
            timeout(SHORT, lookup).await.unwrap_or(Err(Unavailable::TimedOut))
        } else {
            // Whatever patience the ledger itself has.
            lookup.await
        };
        let error = match result.map(|mut found| (found.entries.pop(), found.freed)) {
            Ok((Some(entry), freed)) => return Known::Entry(entry, freed),
            Ok((None, _)) => Unavailable::Store("no entry was returned".into()),
            Err(error) => error,
        };
        match self.recall(repository, tag) {
            Some(seen) => Known::Remembered(seen.digest, error),
            None => Known::Nothing(error),
        }
    }

    /// The last this proxy has seen of a tag, whether or not it may be served.
    pub fn last_seen(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Recollection> {
        self.memory.get(key_of(repository, tag).as_str())
    }

    /// What may be served.
    fn recall(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Recollection> {
        let seen = self.last_seen(repository, tag)?;
        self.stands(&seen).then_some(seen)
    }

    fn stands(&self, seen: &Recollection) -> bool {
        seen.state == State::Bound && self.freed.is_current(seen.heard)
    }

    /// When a call begins: what it brings is as old as that.
    fn begin(&self, repository: &RepositoryKey) -> Beginning {
        Beginning {
            at: Instant::now(),
            forgotten: self.forgotten.load(Ordering::Acquire),
            losses: self.lost(repository),
            heard: self.freed.now(repository),
            number: None,
            sequence: self.inner.heard(repository),
        }
    }

    fn lost(&self, repository: &RepositoryKey) -> u64 {
        self.inner.losses().map_or(0, |losses| losses.of(repository))
    }

    fn note(&self, repository: &RepositoryKey, tag: &Tag, entry: &Entry, begun: &Beginning) {
        if self.lost(repository) != begun.losses {
            // What a ledger lacks that has lost entries is no news.
            return;
        }
        match entry {
            Entry::Sealed(sealed) => {
                let Sealed { digest, origin, since, sequence, withdrawn } = *sealed;
                let details = Some(Details { origin, since, sequence });
                let state = withdrawn.map_or(State::Bound, State::Withdrawn);
                self.remember(repository, tag, digest, (state, details), begun);
            }
            Entry::Absent | Entry::Pending(_) => self.stop(repository, tag, State::Freed),
        }
    }

    /// Without details: the tag was seen to have this digest at some moment before now.
    fn remember(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        digest: Digest,
        (state, details): (State, Option<Details>),
        begun: &Beginning,
    ) {
        let _alone = self.alone();
        let known = self.last_seen(repository, tag);
        let alike = known.filter(|seen| seen.digest == digest && state == State::Bound);
        let heard = if self.forgotten.load(Ordering::Acquire) == begun.forgotten {
            self.freed.remembered(repository, begun.heard, begun.number)
        } else {
            // Something was forgotten meanwhile, perhaps this: it is asked for again.
            None
        };
        let Some(heard) = heard else {
            if let Some(seen) = known.filter(|_| alike.is_none()) {
                self.put(repository, tag, Recollection { state: seen.state.doubted(), ..seen });
                self.has_changed();
            }
            return;
        };
        let known = alike.filter(|seen| self.stands(seen)).map(|seen| seen.details);
        let details = details.or(known).unwrap_or_else(|| Details {
            origin: Origin::Push,
            since: Timestamp::now(),
            sequence: self.inner.heard(repository),
        });
        let Beginning { at, losses, .. } = *begun;
        let seen = Recollection { digest, details, state, seen: at, losses, heard };
        self.put(repository, tag, seen);
        if state != State::Bound {
            self.forgotten.fetch_add(1, Ordering::AcqRel);
        }
        // What was evicted may be another's that somebody has kept.
        if alike.is_none() {
            self.has_changed();
        }
    }

    fn put(&self, repository: &RepositoryKey, tag: &Tag, seen: Recollection) {
        self.memory.insert(key_of(repository, tag).into(), seen);
    }

    fn has_changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Between a look at memory and the change that follows from it nobody else makes one.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves it no more, but knows it still: a ledger that was looked at has something else.
    fn stop(&self, repository: &RepositoryKey, tag: &Tag, state: State) {
        let _alone = self.alone();
        if let Some(seen) = self.last_seen(repository, tag)
            && seen.state != State::Freed
        {
            if seen.state == State::Bound {
                self.forgotten.fetch_add(1, Ordering::AcqRel);
            }
            self.put(repository, tag, Recollection { state, ..seen });
        }
        // Though memory may have evicted it, somebody may have kept it.
        self.has_changed();
    }

    /// What was done to the name ended what is remembered. It was this by that sequence number; `None`
    /// where the call failed, and may have happened.
    fn forget(&self, repository: &RepositoryKey, tag: &Tag, is: Option<(State, u64)>) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        let _alone = self.alone();
        match self.last_seen(repository, tag) {
            Some(seen) if self.inner.losses().is_some() => {
                let (state, sequence) = is.unwrap_or((seen.state.doubted(), 0));
                let sequence = sequence.max(seen.details.sequence);
                let details = Details { sequence, ..seen.details };
                self.put(repository, tag, Recollection { state, details, ..seen });
            }
            // A ledger that loses nothing needs no witness.
            Some(_) => {
                self.memory.remove(key_of(repository, tag).as_str());
            }
            None => {}
        }
        self.has_changed();
    }

    fn drop_entry(&self, repository: &RepositoryKey, tag: &Tag) {
        let _alone = self.alone();
        self.memory.remove(key_of(repository, tag).as_str());
        self.has_changed();
    }

    fn note_holders(&self, repository: &RepositoryKey, holders: &[Holder], begun: &Beginning) {
        for Holder { tag, entry } in holders {
            self.note(repository, tag, entry, begun);
        }
    }
}

impl State {
    fn doubted(self) -> Self {
        if self == Self::Bound { Self::Doubted } else { self }
    }
}

struct Beginning {
    at: Instant,
    forgotten: u64,
    losses: u64,
    heard: Heard,
    /// The repository's freed number, once a look-up has returned it.
    number: Option<FreedNumber>,
    /// The repository's sequence number was not below that.
    sequence: u64,
}

#[cfg(test)]
mod tests;
