//! Manifests whose digest was seen to be theirs.
//!
//! A tag that is pulled a thousand times brings the same bytes a thousand times. To compare them with
//! those that were hashed is as good as to hash them again, and takes less time. Nothing is served from
//! here.

use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::name::Digest;

/// The memory they may take.
const ROOM: u64 = 4 << 20;
/// Longer ones are hashed each time.
const LONGEST: usize = 64 * 1024;
/// A guess at a manifest's bytes, for the cache's first allocations.
const USUAL: usize = 2 * 1024;
/// A part is evicted from on its own, and holds some of the longest.
const PARTS: usize = 16;

pub(super) struct Proven(Cache<Digest, Arc<[u8]>, Weight>);

#[derive(Clone)]
struct Weight;

impl Weighter<Digest, Arc<[u8]>> for Weight {
    fn weight(&self, _: &Digest, content: &Arc<[u8]>) -> u64 {
        const OVERHEAD: usize = 64;
        (content.len() + size_of::<Digest>() + OVERHEAD) as u64
    }
}

impl Default for Proven {
    fn default() -> Self {
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(ROOM as usize / USUAL).weight_capacity(ROOM).shards(PARTS);
        // Both capacities are set, which is all that can be missing.
        let options = options.build().expect("the options are whole");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self(Cache::with_options(options, Weight, hasher, lifecycle))
    }
}

impl Proven {
    /// Whether this is the digest of these bytes.
    pub fn matches(&self, digest: &Digest, content: &[u8]) -> bool {
        if content.len() > LONGEST {
            return digest.matches(content);
        }
        if self.0.get(digest).is_some_and(|known| *known == *content) {
            return true;
        }
        let matches = digest.matches(content);
        if matches {
            self.0.insert(*digest, content.into());
        }
        matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Algorithm;

    #[test]
    fn known_bytes_match_and_no_others_whatever_was_seen_before() {
        let proven = Proven::default();
        for algorithm in Algorithm::ALL {
            for length in [0, 1, USUAL, LONGEST, LONGEST + 1] {
                let content = vec![b'x'; length];
                let digest = Digest::of(algorithm, &content);
                let other = vec![b'y'; length + 1];
                for _ in 0..3 {
                    assert!(!proven.matches(&digest, &other), "{length}");
                    assert!(proven.matches(&digest, &content), "{length}");
                    assert_eq!(proven.0.get(&digest).is_some(), length <= LONGEST, "{length}");
                }
                // What was not seen to match is not known by the digest it was said to have.
                assert!(!proven.matches(&Digest::of(algorithm, &other), &content));
                assert!(proven.0.get(&Digest::of(algorithm, &other)).is_none());
            }
        }
    }

    #[test]
    fn they_take_no_more_memory_than_they_may() {
        let proven = Proven::default();
        for n in 0..1000_usize {
            let content = vec![n as u8; LONGEST - n];
            assert!(proven.matches(&Digest::of(Algorithm::Sha256, &content), &content));
        }
        assert!(proven.0.weight() <= ROOM && proven.0.len() > 10);
    }
}
