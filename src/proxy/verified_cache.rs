//! Tags this lane has served a moment ago, and what each of their pulls would have to make anew.
//!
//! A tag that is pulled a thousand times brings the same bytes a thousand times. To compare them with
//! those that were hashed is as good as to hash them again, and takes less time. What it is bound to, the
//! witness's memory has said; whether that is so still can be told without going there, where all lanes
//! write to one lock. Nothing is served from here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quick_cache::unsync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;

use crate::judge::pull::Pull;
use crate::ledger::cached::Fresh;

/// The memory they may take, in all lanes together.
const ROOM: u64 = 8 << 20;
/// In one lane, at the least.
const LEAST: u64 = 512 << 10;
/// Of one manifest.
const LONGEST: usize = 64 * 1024;
/// A guess at a manifest's bytes, for the cache's first allocations.
const USUAL: usize = 4 * 1024;

pub struct Familiar(Mutex<Cache<Pull, Arc<Face>, Weight>>);

/// A bound tag.
#[derive(Clone)]
pub struct Face {
    /// What it is bound to, as far as memory told.
    pub bound: Fresh,
    /// The digest's text.
    pub name: Arc<str>,
    /// Where the registry has that manifest.
    pub target: Arc<str>,
    /// The manifest, once it was seen to have the digest.
    content: Option<Arc<[u8]>>,
    /// Until then nobody need look whether the registry's own tag differs.
    pub quiet: Option<Instant>,
}

impl Face {
    fn new(bound: Fresh, target_of: impl FnOnce(&str) -> String) -> Self {
        let name: Arc<str> = bound.digest.to_string().into();
        let target = target_of(&name).into();
        Self { bound, name, target, content: None, quiet: None }
    }

    /// Whether bytes are kept once they are proven. Longer ones are hashed each time.
    pub fn takes(content: &[u8]) -> bool {
        content.len() <= LONGEST
    }

    /// Whether these bytes were seen to have its digest.
    pub fn has(&self, content: &[u8]) -> bool {
        self.content.as_deref() == Some(content)
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Pull, Arc<Face>> for Weight {
    fn weight(&self, pull: &Pull, face: &Arc<Face>) -> u64 {
        const OVERHEAD: usize = 128;
        let repository = pull.repository.repository.as_str();
        let names =
            repository.len() + pull.tag.as_str().len() + face.name.len() + face.target.len();
        let content = face.content.as_ref().map_or(0, |content| content.len());
        (names + content + size_of::<Pull>() + size_of::<Face>() + OVERHEAD) as u64
    }
}

impl Familiar {
    /// For one of so many lanes.
    pub fn new(lanes: usize) -> Self {
        let room = (ROOM / lanes.max(1) as u64).max(LEAST);
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(room as usize / USUAL).weight_capacity(room);
        // Both capacities are set, which is all that can be missing.
        let options = options.build().expect("the options are whole");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self(Mutex::new(Cache::with_options(options, Weight, hasher, lifecycle)))
    }

    /// What is known of a tag.
    pub fn recall(&self, pull: &Pull) -> Option<Arc<Face>> {
        self.faces().get(pull).cloned()
    }

    /// What is known of a tag that is bound to this: nothing, where it is met for the first time. A
    /// manifest of a digest is at the same target for as long as the proxy runs.
    pub fn meet(
        &self,
        pull: &Pull,
        bound: Fresh,
        target_of: impl FnOnce(&str) -> String,
    ) -> Arc<Face> {
        let mut faces = self.faces();
        let known = faces.peek(pull).filter(|known| known.bound.digest == bound.digest);
        let Some(known) = known else { return Arc::new(Face::new(bound, target_of)) };
        let face = Arc::new(Face { bound, ..Face::clone(known) });
        // It was there; whether it stays is not up to this.
        let _ = faces.replace(pull.clone(), Arc::clone(&face), true);
        face
    }

    /// Keeps what is known now: the bytes were seen to have its digest, and are not too long.
    pub fn keep(&self, pull: Pull, face: &Face, content: Option<&[u8]>, quiet: Option<Instant>) {
        let mut faces = self.faces();
        let known = faces.peek(&pull).map(Arc::clone);
        let is_known = known.is_some();
        // Another pull may have kept more of it since it was recalled, or know that it is bound to
        // something else now.
        let known = match known {
            Some(known) if known.bound.digest == face.bound.digest => known,
            Some(known) if !face.bound.is_as_new_as(&known.bound) => return,
            _ => Arc::new(face.clone()),
        };
        let content = content.map(Arc::from).or_else(|| known.content.clone());
        let face = Face { content, quiet: quiet.max(known.quiet), ..Face::clone(&known) };
        if is_known {
            let _ = faces.replace(pull, Arc::new(face), true);
        } else {
            faces.insert(pull, Arc::new(face));
        }
    }

    fn faces(&self) -> MutexGuard<'_, Cache<Pull, Arc<Face>, Weight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::RepositoryKey;
    use crate::name::{Algorithm, Digest, RepositoryName, Tag, UpstreamName};

    fn pull(tag: &str) -> Pull {
        let repository = RepositoryKey {
            upstream: UpstreamName::parse("default").unwrap(),
            repository: RepositoryName::parse("app").unwrap(),
        };
        Pull { repository, tag: Tag::parse(tag).unwrap(), strict: false }
    }

    fn target(name: &str) -> String {
        format!("/v2/app/manifests/{name}")
    }

    fn bound(content: &[u8], changes: u64) -> Fresh {
        Fresh::test(Digest::of(Algorithm::Sha256, content), changes)
    }

    #[test]
    fn bytes_are_known_only_of_the_tag_and_the_digest_they_were_kept_for() {
        let (familiar, now) = (Familiar::new(2), Instant::now());
        let (v1, one, two) = (pull("v1"), bound(b"one", 0), bound(b"two", 2));
        assert!(familiar.recall(&v1).is_none());
        let face = familiar.meet(&v1, one, target);
        assert_eq!((&*face.name, face.quiet), (&*one.digest.to_string(), None));
        assert_eq!(*face.target, *target(&face.name));
        assert!(!face.has(b"one"), "nobody has seen them");
        assert!(familiar.recall(&v1).is_none(), "nor was it served");
        familiar.keep(v1.clone(), &face, Some(b"one"), Some(now));
        let known = familiar.recall(&v1).unwrap();
        assert!(known.has(b"one") && !known.has(b"two") && !known.has(b""));
        assert_eq!((known.quiet, known.bound), (Some(now), one));
        // A HEAD brings no bytes, and takes none away, though it was asked before them.
        familiar.keep(v1.clone(), &face, None, None);
        let known = familiar.recall(&v1).unwrap();
        assert!(known.has(b"one") && known.quiet == Some(now));
        // Nor does another look at what it is bound to.
        let later = Fresh::test(one.digest, 1);
        let known = familiar.meet(&v1, later, |_| panic!("it is known"));
        assert!(known.has(b"one") && known.bound == later && known.quiet == Some(now));
        assert!(familiar.recall(&pull("v2")).is_none());
        // Another digest's face takes its place, with nothing of it.
        let other = familiar.meet(&v1, two, target);
        assert!(!other.has(b"one") && other.quiet.is_none());
        familiar.keep(v1.clone(), &other, None, None);
        assert_eq!(*other.target, *target(&two.digest.to_string()));
        // Which one that was asked for before can't put back.
        familiar.keep(v1.clone(), &face, Some(b"one"), Some(now));
        let known = familiar.recall(&v1).unwrap();
        assert!(!known.has(b"one") && known.bound == two && known.quiet.is_none());
        assert!(Face::takes(&[0; LONGEST]) && !Face::takes(&[0; LONGEST + 1]));
    }

    #[test]
    fn they_take_no_more_memory_than_they_may() {
        let familiar = Familiar::new(8);
        for n in 0..1000_usize {
            let (pull, content) = (pull(&format!("v{n}")), vec![n as u8; LONGEST - n]);
            let face = familiar.meet(&pull, bound(&content, 0), target);
            familiar.keep(pull, &face, Some(&content), None);
        }
        let faces = familiar.faces();
        assert!(faces.weight() <= ROOM / 8 && faces.len() > 10);
    }
}
