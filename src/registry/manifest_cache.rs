//! Manifests in memory, in front of the registry, for repositories that everybody may pull from.
//!
//! A manifest is kept under its repository and its digest, once its bytes were seen to have that
//! digest, and served for as long as the registry was seen to let everybody have it: taglock asks it
//! without credentials, in the background while there are pulls, and before the first one after a
//! pause. A no ends it at once; an outage is borne for a while. See
//! `docs/decisions/0022-manifests-from-memory.md`.

mod accept;
mod entry;
mod visibility;

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderMap, StatusCode};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, Equivalent, OptionsBuilder, Weighter};
use tokio::time::{Instant, timeout};

pub use entry::Kept;

use super::{
    Answer, Caller, Deleted, Fetched, Listing, Manifest, Place, Reading, Registry, Said, Serving,
    Sighting, Trouble, Written,
};
use crate::name::{Digest, Reference, RepositoryName, Tag};
use entry::{Fit, is_plain};
use visibility::{Stand, Standing};

/// How long a question to the registry may take: a pull may wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many repositories' standing is remembered.
const REPOSITORIES: usize = 10_000;
/// A part of the memory that is evicted from on its own holds several of the largest manifests.
const SHARD: u64 = 16 << 20;

/// How much is kept, and what an outage changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The memory that manifests may take; 0 for no memory at all.
    pub bytes: u64,
    /// How long it is good that a repository was seen public, while the registry can't be asked.
    pub grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 64 << 20, grace: Duration::from_secs(3600) }
    }
}

/// What a request without credentials is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Openness {
    Open,
    /// No, with this status.
    Closed(u16),
    Unclear(Trouble),
}

/// The registry as everybody sees it.
#[async_trait]
pub trait Everybody: Send + Sync {
    /// Whether anybody may have this manifest of this repository. Nothing of the caller's
    /// credentials goes along.
    async fn sees(&self, caller: &Caller, name: &RepositoryName, digest: &Digest) -> Openness;
}

/// What goes to metrics; each text is one of a closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A pull: `hit`; `outage`, from memory because the registry can't be asked; `miss`; `other`,
    /// kept, but the request wants something else of it; `unconfirmed`, kept, but nobody knows
    /// whether it is public.
    Pull(&'static str),
    /// A question without credentials: `open`, `closed` or `unclear`.
    Question(&'static str),
    /// The memory that manifests take now.
    Bytes(u64),
}

type Tell = Box<dyn Fn(Told) + Send + Sync>;

/// The registry, and in front of it what is kept of it.
pub struct Shelf(Arc<Inner>);

struct Inner {
    registry: Arc<dyn Registry>,
    everybody: Arc<dyn Everybody>,
    grace: Duration,
    manifests: Cache<Spot, Arc<Kept>, Weight>,
    standings: Cache<RepositoryName, Arc<Standing>>,
    /// Counts what was let go of: an answer that was asked for before must not bring it back.
    let_go: AtomicU64,
    tell: Tell,
}

/// Never across repositories: what one lets everybody have, another may not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Spot {
    repository: RepositoryName,
    digest: Digest,
}

/// A [`Spot`] by reference.
#[derive(Hash)]
struct At<'a> {
    repository: &'a RepositoryName,
    digest: &'a Digest,
}

impl Equivalent<Spot> for At<'_> {
    fn equivalent(&self, spot: &Spot) -> bool {
        *self.digest == spot.digest && *self.repository == spot.repository
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Spot, Arc<Kept>> for Weight {
    fn weight(&self, spot: &Spot, kept: &Arc<Kept>) -> u64 {
        /// The cache's own book-keeping.
        const OVERHEAD: usize = 64;
        let weight = spot.repository.as_str().len() + size_of::<Spot>() + kept.weight() + OVERHEAD;
        weight as u64
    }
}

/// A request for a manifest, as it is passed around here.
#[derive(Clone, Copy)]
struct Request<'a> {
    caller: &'a Caller,
    name: &'a RepositoryName,
    digest: &'a Digest,
}

impl Shelf {
    /// `None` where there is no memory for it.
    pub fn new(
        registry: Arc<dyn Registry>,
        everybody: Arc<dyn Everybody>,
        bounds: Bounds,
        tell: impl Fn(Told) + Send + Sync + 'static,
    ) -> Option<Self> {
        let Bounds { bytes, grace } = bounds;
        let options = OptionsBuilder::new()
            // A guess, for the cache's first allocations: manifests are a few KiB.
            .estimated_items_capacity(usize::try_from(bytes >> 12).unwrap_or(usize::MAX).max(16))
            .weight_capacity(bytes)
            .shards(usize::try_from(bytes / SHARD).unwrap_or(usize::MAX).clamp(1, 64))
            .build()
            .ok()
            .filter(|_| bytes > 0)?;
        let manifests = Cache::with_options(
            options,
            Weight,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        Some(Self(Arc::new(Inner {
            registry,
            everybody,
            grace,
            manifests,
            standings: Cache::new(REPOSITORIES),
            let_go: AtomicU64::new(0),
            tell: Box::new(tell),
        })))
    }

    /// Lets go of a repository's manifests, of which some may be gone.
    pub fn forget(&self, name: &RepositoryName) {
        self.0.let_go_of(|spot| spot.repository == *name);
    }

    /// A manifest that a request with these headers may be answered with here and now. Where anything
    /// is to be found out first, [`Registry::serve`] does.
    pub fn at_hand(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        headers: &HeaderMap,
    ) -> Option<Arc<Kept>> {
        let inner = &self.0;
        let kept = inner.manifests.get(&At { repository: name, digest })?;
        let good =
            kept.fit(headers) == Fit::Whole && inner.stand(&kept) == Stand::Good { renew: false };
        good.then(|| {
            (inner.tell)(Told::Pull("hit"));
            kept
        })
    }
}

impl Inner {
    fn stand(&self, kept: &Kept) -> Stand {
        kept.standing.now(**kept.seen.load(), self.grace)
    }

    fn standing(&self, name: &RepositoryName) -> Arc<Standing> {
        if let Some(standing) = self.standings.get(name) {
            return standing;
        }
        let made = self.standings.get_or_insert_with(name, || {
            Ok::<_, std::convert::Infallible>(Arc::<Standing>::default())
        });
        match made {
            Ok(standing) => standing,
        }
    }

    /// How the manifest may be served; the registry is asked first where it must be. `None` where it
    /// may not.
    async fn may_serve(
        self: &Arc<Self>,
        kept: &Arc<Kept>,
        request: Request<'_>,
    ) -> Option<&'static str> {
        let mut stand = self.stand(kept);
        if stand == Stand::Ask {
            // In a task of its own: a client that leaves does not end what others wait for.
            let _ended = self.spawn(kept, request).await;
            stand = self.stand(kept);
        } else if stand.is_due() && kept.standing.turn.try_lock().is_ok() {
            drop(self.spawn(kept, request));
        }
        match stand {
            Stand::Good { .. } => Some("hit"),
            Stand::Outage { .. } => Some("outage"),
            Stand::Ask | Stand::Shut { .. } => None,
        }
    }

    fn spawn(
        self: &Arc<Self>,
        kept: &Arc<Kept>,
        request: Request<'_>,
    ) -> tokio::task::JoinHandle<()> {
        let (inner, kept) = (Arc::clone(self), Arc::clone(kept));
        let Request { caller, name, digest } = request;
        let (caller, name, digest) = (caller.clone(), name.clone(), *digest);
        tokio::spawn(async move { inner.ask(&kept, &caller, &name, &digest).await })
    }

    /// Asks the registry whether it is for everybody, unless somebody else just has.
    async fn ask(&self, kept: &Kept, caller: &Caller, name: &RepositoryName, digest: &Digest) {
        let standing = &kept.standing;
        let _one = standing.turn.lock().await;
        if !self.stand(kept).is_due() {
            return;
        }
        // What is said was true at some time after this.
        let asked = Instant::now();
        let seen = timeout(PATIENCE, self.everybody.sees(caller, name, digest)).await;
        match seen.unwrap_or(Openness::Unclear(Trouble::TimedOut)) {
            Openness::Open => {
                kept.seen.store(asked.into());
                standing.open(asked);
                (self.tell)(Told::Question("open"));
            }
            Openness::Closed(status) => {
                standing.close();
                self.let_go_of(|spot| spot.repository == *name);
                (self.tell)(Told::Question("closed"));
                tracing::warn!(
                    repository = %name, status,
                    "a rule says that everybody may pull from it, and the registry refuses who has no \
                     account: nothing of it is answered from memory"
                );
            }
            Openness::Unclear(trouble) => {
                let first = standing.fail();
                (self.tell)(Told::Question("unclear"));
                if first {
                    tracing::warn!(
                        repository = %name, %trouble,
                        "the registry does not say whether everybody may pull from it; that it once did \
                         is good for `limits.public_grace`"
                    );
                }
            }
        }
    }

    fn let_go_of(&self, gone: impl Fn(&Spot) -> bool) {
        self.let_go.fetch_add(1, Ordering::AcqRel);
        self.manifests.retain(|spot, _| !gone(spot));
        (self.tell)(Told::Bytes(self.manifests.weight()));
    }

    /// Keeps what the registry has just answered, if it may be kept.
    fn keep(&self, request: Request<'_>, answer: &Answer, begun: &Beginning) -> Option<Arc<Kept>> {
        let Request { caller, name, digest } = request;
        let standing = self.standing(name);
        if standing.is_closed() {
            return None;
        }
        let kept = Kept::of(answer, digest, &caller.headers, (standing, begun.at))?;
        let older = self.manifests.get(&At { repository: name, digest });
        let kept = Arc::new(kept.after(older.as_deref()));
        let spot = Spot { repository: name.clone(), digest: *digest };
        self.manifests.insert(spot.clone(), Arc::clone(&kept));
        // Something was let go of meanwhile, perhaps this.
        if self.let_go.load(Ordering::Acquire) != begun.let_go {
            self.manifests.remove(&spot);
            return None;
        }
        (self.tell)(Told::Bytes(self.manifests.weight()));
        Some(kept)
    }

    async fn serve(self: &Arc<Self>, request: Request<'_>, reading: Reading) -> Serving {
        let Request { caller, name, digest } = request;
        let kept = self.manifests.get(&At { repository: name, digest });
        let fit = kept.as_ref().map_or(Fit::Not, |kept| kept.fit(&caller.headers));
        if let (Some(kept), Fit::Whole) = (&kept, fit)
            && let Some(how) = self.may_serve(kept, request).await
        {
            (self.tell)(Told::Pull(how));
            return Serving::Kept(kept.answer().clone());
        }
        let begun = Beginning { at: Instant::now(), let_go: self.let_go.load(Ordering::Acquire) };
        let serving = self.registry.serve(caller, name, digest, reading).await;
        match &serving {
            Serving::Good(answer) if reading == Reading::Get && is_plain(&caller.headers) => {
                if let Some(kept) = self.keep(request, answer, &begun)
                    && self.stand(&kept).is_due()
                    && kept.standing.turn.try_lock().is_ok()
                {
                    drop(self.spawn(&kept, request));
                }
            }
            Serving::NotFound(_) if fit == Fit::Whole => {
                self.let_go_of(|spot| spot.digest == *digest && spot.repository == *name);
            }
            // A right answer is better than none, though the registry's own might be another.
            failed if is_outage(failed) && fit != Fit::Not => {
                if let Some(kept) = &kept
                    && self.may_serve(kept, request).await.is_some()
                {
                    (self.tell)(Told::Pull("outage"));
                    return Serving::Kept(kept.answer().clone());
                }
            }
            _ => {}
        }
        (self.tell)(Told::Pull(match (kept, fit) {
            (None, _) => "miss",
            (Some(_), Fit::Whole) => "unconfirmed",
            (Some(_), Fit::Loose | Fit::Not) => "other",
        }));
        serving
    }
}

/// When a request to the registry began.
struct Beginning {
    at: Instant,
    let_go: u64,
}

/// Whether the registry has said nothing about the request.
fn is_outage(serving: &Serving) -> bool {
    match serving {
        Serving::Other(answer) => {
            answer.status.is_server_error() || answer.status == StatusCode::TOO_MANY_REQUESTS
        }
        Serving::Unclear(trouble) => match trouble {
            Trouble::Unreachable | Trouble::TimedOut | Trouble::Cut => true,
            Trouble::Status(status) | Trouble::Answered(Said { status, .. }) => *status >= 500,
            Trouble::Garbage(_) | Trouble::Internal => false,
        },
        Serving::Good(_) | Serving::Kept(_) | Serving::NotFound(_) | Serving::Wrong(_) => false,
    }
}

#[async_trait]
impl Registry for Shelf {
    async fn serve(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        digest: &Digest,
        reading: Reading,
    ) -> Serving {
        if !caller.public {
            return self.0.registry.serve(caller, name, digest, reading).await;
        }
        self.0.serve(Request { caller, name, digest }, reading).await
    }

    /// What may be gone is let go of before anybody can know that it is.
    async fn delete(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Deleted {
        let deleted = self.0.registry.delete(caller, name, reference).await;
        if !matches!(deleted, Deleted::Refused(_)) {
            // With a tag, some registries delete its manifest.
            self.0.let_go_of(|spot| match reference {
                Reference::Digest(digest) => spot.digest == *digest && spot.repository == *name,
                Reference::Tag(_) => spot.repository == *name,
            });
        }
        deleted
    }

    async fn ask(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
        reading: Reading,
    ) -> Result<Answer, Trouble> {
        self.0.registry.ask(caller, name, reference, reading).await
    }

    async fn look(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Sighting {
        self.0.registry.look(caller, name, reference).await
    }

    async fn resolve(&self, caller: &Caller, name: &RepositoryName, tag: &Tag) -> Sighting {
        self.0.registry.resolve(caller, name, tag).await
    }

    async fn first_sight(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        tag: &Tag,
        reading: Reading,
    ) -> Sighting {
        self.0.registry.first_sight(caller, name, tag, reading).await
    }

    async fn put(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        place: Place<'_>,
        manifest: &Manifest,
    ) -> Written {
        self.0.registry.put(caller, name, place, manifest).await
    }

    async fn tags(&self, caller: &Caller, name: &RepositoryName, at_most: usize) -> Listing {
        self.0.registry.tags(caller, name, at_most).await
    }

    async fn ping(&self) -> Result<(), Trouble> {
        self.0.registry.ping().await
    }

    async fn fetch(&self, caller: &Caller, name: &RepositoryName, digest: &Digest) -> Fetched {
        self.0.registry.fetch(caller, name, digest).await
    }
}

#[cfg(test)]
mod tests;
