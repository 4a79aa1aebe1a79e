//! Any ledger, and what this proxy has seen in it: sealed entries, remembered for pulls.
//!
//! A sealed entry changes only when an operator, a delete or a mutable rule lets go of its name, so
//! a pull may go by one that was seen a minute ago, and by any that was seen while the ledger is
//! down. Pushes never do: `lookup` asks the store. Absent and pending entries are not remembered.
//!
//! A ledger that is known to have lost entries is met with caution: what was remembered from before the
//! loss is bound again, before anything else may be. See `docs/decisions/0010-lost-ledgers.md`.

mod restore;
mod store;

use std::sync::atomic::{AtomicU64, Ordering};
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

/// After a failure, what is remembered is served for so long before the ledger is asked again.
const DOWN: Duration = Duration::from_secs(3);
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
    /// Sealed with this when it was last seen; the ledger can't be asked now.
    Remembered(Digest),
    /// The ledger can't be asked, and this proxy has not seen the tag.
    Nothing(Unavailable),
}

/// The last this proxy has seen of a sealed tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recollection {
    pub digest: Digest,
    /// `None` where this proxy sealed it, or met its seal, and has not looked it up since.
    pub details: Option<Details>,
    /// False once the ledger was seen to hold something else, or nothing: not served any more.
    pub stands: bool,
    seen: Instant,
    /// How often the ledger was known to have lost entries of the repository when this was seen.
    losses: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    pub origin: Origin,
    pub since: Timestamp,
    pub sequence: u64,
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
    /// Counts what was forgotten: a look-up that began before must not bring it back.
    forgotten: AtomicU64,
    /// Counts what may have ended something that was remembered, after each time: whoever kept that sees by
    /// it whether it is so still. What was evicted and not heard of since is.
    changes: AtomicU64,
    changing: Mutex<()>,
    /// When the ledger last failed, until it answers again.
    failed: Mutex<Option<Instant>>,
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
        let (forgotten, changes) = (AtomicU64::new(0), AtomicU64::new(0));
        let (changing, failed) = (Mutex::default(), Mutex::default());
        Self { inner, memory, ttl, forgotten, changes, changing, failed, metrics: None }
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
        let seen = self.recall(repository, tag)?;
        let until = seen.seen.checked_add(self.ttl)?;
        (now < until).then_some(Fresh { digest: seen.digest, until, changes })
    }

    /// Whether that may be gone by still. Nothing that threads share is written to for it.
    pub fn is_still(&self, fresh: &Fresh, now: Instant) -> bool {
        now < fresh.until && self.changes.load(Ordering::Acquire) == fresh.changes
    }

    /// What a pull has to go by, without a round trip where memory will do.
    pub async fn known(&self, repository: &RepositoryKey, tag: &Tag) -> Known {
        let known = match self.recall(repository, tag) {
            Some(seen) if seen.seen.elapsed() < self.ttl => Known::Fresh(seen.digest),
            Some(seen) if self.failed_lately() => Known::Remembered(seen.digest),
            _ => self.asked(repository, tag).await,
        };
        // By what came of it: the ledger may fail only when it is asked.
        self.count(match &known {
            Known::Fresh(_) => "hit",
            Known::Entry(..) => "miss",
            Known::Remembered(_) | Known::Nothing(_) => "outage",
        });
        known
    }

    /// As `known`, and the ledger is asked in any case.
    pub async fn asked(&self, repository: &RepositoryKey, tag: &Tag) -> Known {
        let lookup = self.lookup(repository, std::slice::from_ref(tag));
        let result = if self.recall(repository, tag).is_some() || self.failed_lately() {
            match timeout(SHORT, lookup).await {
                Ok(result) => result,
                Err(_) => self.noted(Err(Unavailable::TimedOut)),
            }
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
            Some(seen) => Known::Remembered(seen.digest),
            None => Known::Nothing(error),
        }
    }

    /// The last this proxy has seen of a sealed tag, whether or not it stands: a witness where a
    /// ledger has lost data.
    pub fn last_seen(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Recollection> {
        self.memory.get(key_of(repository, tag).as_str())
    }

    fn recall(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Recollection> {
        self.last_seen(repository, tag).filter(|seen| seen.stands)
    }

    fn failed_lately(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|failed| failed.elapsed() < DOWN)
    }

    /// Passes a result on, having noted whether the ledger answers.
    fn noted<T>(&self, result: Result<T, Unavailable>) -> Result<T, Unavailable> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(_) => *failed = None,
            Err(_) => *failed = Some(Instant::now()),
        }
        result
    }

    /// When a call begins: what it brings is as old as that.
    fn begin(&self, repository: &RepositoryKey) -> Beginning {
        Beginning {
            at: Instant::now(),
            forgotten: self.forgotten.load(Ordering::Acquire),
            losses: self.lost(repository),
        }
    }

    fn lost(&self, repository: &RepositoryKey) -> u64 {
        self.inner.losses().map_or(0, |losses| losses.of(repository))
    }

    fn note(&self, repository: &RepositoryKey, tag: &Tag, entry: &Entry, beginning: &Beginning) {
        match entry {
            Entry::Sealed(sealed) if sealed.withdrawn.is_none() => {
                let Sealed { digest, origin, since, sequence, withdrawn: _ } = *sealed;
                let details = Some(Details { origin, since, sequence });
                self.remember(repository, tag, digest, details, beginning);
            }
            Entry::Absent | Entry::Pending(_) | Entry::Sealed(_) => self.stop(repository, tag),
        }
    }

    fn remember(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        digest: Digest,
        details: Option<Details>,
        beginning: &Beginning,
    ) {
        let _alone = self.alone();
        let known = self.last_seen(repository, tag).filter(|seen| seen.digest == digest);
        // What was evicted may be another's that somebody has kept.
        let changed = known.is_none();
        let details = details.or(known.and_then(|seen| seen.details));
        let Beginning { at, losses, .. } = *beginning;
        let recollection = Recollection { digest, details, stands: true, seen: at, losses };
        let key = key_of(repository, tag);
        self.memory.insert(key.as_str().into(), recollection);
        // Something was forgotten meanwhile, perhaps this: it is asked for again.
        if self.forgotten.load(Ordering::Acquire) != beginning.forgotten {
            self.memory.remove(key.as_str());
            self.has_changed();
        } else if changed {
            self.has_changed();
        }
    }

    fn has_changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Between a look at memory and the change that follows from it nobody else makes one.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves it no more, but knows it still.
    fn stop(&self, repository: &RepositoryKey, tag: &Tag) {
        let _alone = self.alone();
        if let Some(seen) = self.recall(repository, tag) {
            self.forgotten.fetch_add(1, Ordering::AcqRel);
            let seen = Recollection { stands: false, ..seen };
            self.memory.insert(key_of(repository, tag).into(), seen);
        }
        // Though memory may have evicted it, somebody may have kept it.
        self.has_changed();
    }

    /// The name was let go of, on purpose: there is nothing to witness.
    fn forget(&self, repository: &RepositoryKey, tag: &Tag) {
        self.forgotten.fetch_add(1, Ordering::AcqRel);
        self.drop_entry(repository, tag);
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

struct Beginning {
    at: Instant,
    forgotten: u64,
    losses: u64,
}

#[cfg(test)]
mod tests;
