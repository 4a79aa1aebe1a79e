//! Drift: tags whose registry's own is not what the ledger binds them to.
//!
//! Nothing of it is ever adopted, and pulls go by the ledger all the same; it tells an operator that
//! somebody writes to the registry by another way. Tags that are pulled are looked at now and then,
//! in the background and at a bounded pace; what pushes see in passing counts as well.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::permit::Permit;
use super::pull::Pull;
use super::unjudged::Unjudged;
use crate::ledger::cached::Witness;
use crate::ledger::{Entry, Ledger, RepositoryKey, Sealed, Timestamp};
use crate::name::{Digest, Reference, Tag};
use crate::registry::{Caller, Fetched, Place, Registry, Sighting, Written};

/// Looks at once, and between two of them.
const AT_ONCE: usize = 4;
const PAUSE: Duration = Duration::from_millis(100);
/// How many tags are remembered as looked at; beyond, some are looked at again too soon.
const LOOKED: usize = 65_536;
/// How many differing tags are kept; beyond, the one that was seen least lately goes.
const KEPT: usize = 1_000;

/// A tag whose registry's own is another, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub repository: RepositoryKey,
    pub tag: Tag,
    /// What the ledger binds it to.
    pub bound: Digest,
    /// What the registry has; `None` for nothing.
    pub seen: Option<Digest>,
    pub first: Timestamp,
    pub last: Timestamp,
}

/// What changed, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Moved,
    Gone,
    /// The registry has again what the ledger binds the tag to.
    Healed,
}

impl Change {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Gone => "gone",
            Self::Healed => "healed",
        }
    }
}

/// Told of each change, and of how many tags are known to differ.
pub type Told = Box<dyn Fn(Change, usize) + Send + Sync>;

/// Taglock's own account at the registry, and whether it repairs what was moved.
pub struct Servant {
    pub registry: Arc<dyn Registry>,
    pub repair: bool,
}

pub struct Drift {
    /// Where a repair is entered, and finds the writes of its tag.
    unjudged: OnceLock<Arc<Unjudged>>,
    /// At most one look at a tag in so long.
    interval: Duration,
    /// Without one, tags are looked at with the credentials of the pull at hand.
    service: Option<Servant>,
    told: Told,
    known: Mutex<HashMap<(RepositoryKey, Tag), Difference>>,
    /// As `known` has, to be read without its lock.
    count: AtomicUsize,
    looked: Cache<Pull, Instant>,
    last: Mutex<Option<Instant>>,
    at_once: Arc<Semaphore>,
}

impl Drift {
    pub fn new(interval: Duration, service: Option<Servant>, told: Told) -> Self {
        Self {
            unjudged: OnceLock::new(),
            interval,
            service,
            told,
            known: Mutex::default(),
            count: AtomicUsize::new(0),
            looked: Cache::new(LOOKED),
            last: Mutex::new(None),
            at_once: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Where the writes of tags are entered.
    pub(super) fn beside(&self, unjudged: &Arc<Unjudged>) {
        // The first one stays: there is one for all judges of a registry.
        let _ = self.unjudged.set(Arc::clone(unjudged));
    }

    /// Whether the registry's own tag is known to be another than this.
    pub fn differs(&self, repository: &RepositoryKey, tag: &Tag, bound: &Digest) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (repository.clone(), tag.clone());
        known.get(&key).is_some_and(|difference| difference.bound == *bound)
    }

    /// The tags known to differ, in no order.
    pub fn list(&self) -> Vec<Difference> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    /// The name was let go of: there is nothing to differ from.
    pub fn forget(&self, repository: &RepositoryKey, tag: &Tag) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = known.remove(&(repository.clone(), tag.clone())) {
            let count = known.len();
            self.count.store(count, Ordering::Release);
            drop(known);
            tracing::info!(%repository, %tag, bound = %gone.bound, "a tag that differed was let go of");
            (self.told)(Change::Healed, count);
        }
    }

    /// Notes what the registry has under a tag that is bound to `bound`.
    pub fn saw(&self, repository: &RepositoryKey, tag: &Tag, bound: &Digest, seen: Option<Digest>) {
        if seen.is_some_and(|seen| seen.algorithm() != bound.algorithm()) {
            // Two names, perhaps of the same bytes.
            return;
        }
        let key = (repository.clone(), tag.clone());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(&key);
        let change = if seen == Some(*bound) {
            if known.remove(&key).is_none() {
                return;
            }
            tracing::info!(%repository, %tag, %bound, "the registry's own tag is the ledger's again");
            Change::Healed
        } else {
            let now = Timestamp::now();
            let same = before.filter(|d| d.bound == *bound && d.seen == seen).map(|d| d.first);
            let difference = Difference {
                repository: repository.clone(),
                tag: tag.clone(),
                bound: *bound,
                seen,
                first: same.unwrap_or(now),
                last: now,
            };
            if before.is_none() && known.len() >= KEPT {
                let oldest = known.iter().min_by_key(|(_, d)| d.last).map(|(key, _)| key.clone());
                oldest.and_then(|oldest| known.remove(&oldest));
            }
            known.insert(key, difference);
            if same.is_some() {
                return;
            }
            let found = seen.map_or_else(|| "nothing".to_owned(), |seen| seen.to_string());
            tracing::warn!(
                %repository, %tag, %bound, registry = found,
                "the registry's own tag differs from the ledger: somebody writes to it by another way"
            );
            if seen.is_some() { Change::Moved } else { Change::Gone }
        };
        let count = known.len();
        self.count.store(count, Ordering::Release);
        drop(known);
        (self.told)(change, count);
    }

    /// Looks at a tag that was just served, unless it was looked at lately or much else is. Returns
    /// at once; where it was looked at, with the time until which it is not again.
    pub(super) fn look(
        self: &Arc<Self>,
        ledger: &Arc<Witness>,
        registry: &Arc<dyn Registry>,
        caller: impl FnOnce() -> Caller,
        pull: &Pull,
        bound: Digest,
    ) -> Option<Instant> {
        let slot = match self.due(pull) {
            Ok(slot) => slot,
            Err(until) => return until,
        };
        let drift = Arc::clone(self);
        let ledger = Arc::clone(ledger);
        let registry = self.service.as_ref().map_or(registry, |service| &service.registry);
        let (registry, caller, pull) = (Arc::clone(registry), caller(), pull.clone());
        tokio::spawn(async move {
            let _slot = slot;
            drift.compare(&ledger, &*registry, &caller, &pull, bound).await;
        });
        Some(Instant::now() + self.interval)
    }

    /// A place to look from; else until when it was looked at lately enough, if that is why.
    fn due(&self, pull: &Pull) -> Result<OwnedSemaphorePermit, Option<Instant>> {
        let now = Instant::now();
        if let Some(looked) = self.looked.get(pull)
            && now < looked + self.interval
        {
            return Err(Some(looked + self.interval));
        }
        let slot = Arc::clone(&self.at_once).try_acquire_owned().map_err(|_| None)?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| now < last + PAUSE) {
            return Err(None);
        }
        *last = Some(now);
        self.looked.insert(pull.clone(), now);
        Ok(slot)
    }

    async fn compare(
        &self,
        ledger: &Witness,
        registry: &dyn Registry,
        caller: &Caller,
        pull: &Pull,
        bound: Digest,
    ) {
        let Pull { repository: key, tag, strict: _ } = pull;
        let reference = Reference::Tag(tag.clone());
        let seen = match registry.look(caller, &key.repository, &reference).await {
            Sighting::Found(digest) => Some(digest),
            // It has just shown the digest itself, so this is no matter of rights.
            Sighting::NotFound(_) => None,
            Sighting::Denied(_) | Sighting::Failed(_) | Sighting::Unclear(_) => return,
        };
        if seen == Some(bound) {
            return self.saw(key, tag, &bound, seen);
        }
        // Meanwhile the name may have been let go of, and what was served remembered.
        let Ok(found) = ledger.lookup(key, std::slice::from_ref(tag)).await else { return };
        let Some(entry @ Entry::Sealed(sealed)) = found.entries.first() else { return };
        if sealed.digest != bound || sealed.withdrawn.is_some() {
            return;
        }
        self.saw(key, tag, &bound, seen);
        // Who deleted a tag may have meant it; who moved one was not to.
        let moved = seen.is_some_and(|seen| seen.algorithm() == bound.algorithm());
        if moved && self.service.as_ref().is_some_and(|service| service.repair) {
            let permit = Permit::of_entry(tag, entry, |digest| *digest == bound);
            if let Some(permit) = permit {
                self.repair(ledger, registry, caller, key, (&permit, sealed)).await;
            }
        }
    }

    /// Publishes the ledger's manifest under its tag again. As every PUT by tag, it carries the
    /// ledger's digest.
    async fn repair(
        &self,
        ledger: &Witness,
        registry: &dyn Registry,
        caller: &Caller,
        key: &RepositoryKey,
        (permit, sealed): (&Permit, &Sealed),
    ) {
        let (name, tag, bound) = (&key.repository, permit.tag(), sealed.digest);
        let manifest = match registry.fetch(caller, name, &bound).await {
            Fetched::Found(manifest) => manifest,
            Fetched::NotFound => {
                tracing::warn!(repository = %key, %tag, %bound, "a tag can't be repaired: its image is gone");
                return;
            }
            Fetched::Unclear(trouble) => {
                tracing::warn!(repository = %key, %tag, %bound, %trouble, "a tag could not be repaired");
                return;
            }
        };
        // What frees or moves the tag enters before it looks for repairs; a delete leaves its mark first.
        let entered = self.unjudged.get().and_then(|room| room.enter_repair(key, tag));
        let Some(mut repair) = entered else { return };
        if !still_stands(ledger, key, tag, sealed).await {
            return;
        }
        let place = Place::Tag { tag, digest: None };
        repair.is_sent();
        let written = registry.put(caller, name, place, &manifest).await;
        if !matches!(written, Written::Unknown(_)) {
            repair.is_answered();
        }
        match written {
            Written::Created(_) => {
                tracing::warn!(repository = %key, %tag, %bound, "a moved tag was repaired");
                self.saw(key, tag, &bound, Some(bound));
            }
            Written::Denied(answer) | Written::Refused(answer) => {
                let status = answer.status.as_u16();
                tracing::warn!(repository = %key, %tag, %bound, status, "a tag could not be repaired");
            }
            Written::Unknown(trouble) => {
                tracing::warn!(repository = %key, %tag, %bound, %trouble, "a tag may not be repaired");
            }
        }
    }
}

/// Whether the tag is bound as it was, and its image is not being deleted.
async fn still_stands(ledger: &Witness, key: &RepositoryKey, tag: &Tag, sealed: &Sealed) -> bool {
    let Ok(marked) = ledger.marked(key, &[sealed.digest]).await else { return false };
    let Ok(found) = ledger.lookup(key, std::slice::from_ref(tag)).await else { return false };
    marked.is_empty() && found.entries.first() == Some(&Entry::Sealed(sealed.clone()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::name::{Algorithm, RepositoryName, UpstreamName};

    fn key(name: &str) -> RepositoryKey {
        RepositoryKey {
            upstream: UpstreamName::parse("default").unwrap(),
            repository: RepositoryName::parse(name).unwrap(),
        }
    }

    fn tag(name: &str) -> Tag {
        Tag::parse(name).unwrap()
    }

    fn digest(seed: &str) -> Digest {
        Digest::of(Algorithm::Sha256, seed.as_bytes())
    }

    fn drift() -> (Drift, Arc<AtomicU32>) {
        let changes = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&changes);
        let told = move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        (Drift::new(Duration::from_secs(60), None, Box::new(told)), changes)
    }

    #[test]
    fn each_change_is_told_once_and_a_healed_tag_is_forgotten() {
        let (drift, changes) = drift();
        let (app, v1, one) = (key("app"), tag("v1"), digest("one"));
        drift.saw(&app, &v1, &one, Some(one));
        assert_eq!((changes.load(Ordering::Relaxed), drift.list().len()), (0, 0));
        for (seen, expected) in [
            (Some(digest("two")), 1),
            (Some(digest("two")), 1),
            (None, 2),
            (None, 2),
            (Some(digest("three")), 3),
        ] {
            drift.saw(&app, &v1, &one, seen);
            assert_eq!(changes.load(Ordering::Relaxed), expected);
            assert!(drift.differs(&app, &v1, &one));
            assert!(!drift.differs(&app, &v1, &digest("other")));
            assert!(!drift.differs(&app, &tag("v2"), &one));
            assert_eq!(drift.list()[0].seen, seen);
        }
        drift.saw(&app, &v1, &one, Some(one));
        assert_eq!((changes.load(Ordering::Relaxed), drift.list().len()), (4, 0));
        assert!(!drift.differs(&app, &v1, &one));
        // The same bytes by another name, for all that is known.
        drift.saw(&app, &v1, &one, Some(Digest::of(Algorithm::Sha512, b"one")));
        assert!(drift.list().is_empty());
    }

    #[test]
    fn the_list_is_bounded() {
        let (drift, _) = drift();
        for n in 0..KEPT + 20 {
            drift.saw(&key("app"), &tag(&format!("v{n}")), &digest("one"), None);
        }
        assert_eq!(drift.list().len(), KEPT);
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_bounded_in_rate_and_number_and_by_tag() {
        let (drift, _) = drift();
        let pull = |name: &str| Pull { repository: key("app"), tag: tag(name), strict: false };
        let first = drift.due(&pull("v0"));
        let begun = Instant::now();
        assert!(first.is_ok(), "nothing was looked at yet");
        assert_eq!(drift.due(&pull("v1")).unwrap_err(), None, "one at a time");
        let mut held = vec![first];
        for n in 1..AT_ONCE {
            tokio::time::advance(PAUSE).await;
            held.push(drift.due(&pull(&format!("v{n}"))));
        }
        assert!(held.iter().all(Result::is_ok));
        tokio::time::advance(PAUSE).await;
        let busy = drift.due(&pull("v9")).unwrap_err();
        assert_eq!(busy, None, "as many as may be are under way");
        held.clear();
        assert!(drift.due(&pull("v9")).is_ok());
        tokio::time::advance(PAUSE).await;
        let lately = drift.due(&pull("v0")).unwrap_err();
        assert_eq!(lately, Some(begun + Duration::from_secs(60)), "it was looked at a moment ago");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(drift.due(&pull("v0")).is_ok());
    }
}
