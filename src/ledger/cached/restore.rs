//! After a loss: what this proxy remembers is a witness.

use std::collections::BTreeMap;

use super::{Recollection, State, Witness};
use crate::ledger::{Offer, Offered, RepositoryKey, Restored, Unavailable};
use crate::name::{RepositoryName, Tag, UpstreamName};

impl Recollection {
    /// A name that was perhaps freed counts as bound: one that is bound by mistake can be released, and one
    /// that is free by mistake gets another image.
    fn offer(&self, tag: Tag) -> Offer {
        let bound = |withdrawn| Offered::Bound {
            digest: self.digest,
            origin: self.details.origin,
            since: self.details.since,
            withdrawn,
        };
        let state = match self.state {
            State::Bound | State::Doubted => bound(None),
            State::Withdrawn(at) => bound(Some(at)),
            State::Freed => Offered::Freed,
        };
        Offer { tag, state, sequence: self.details.sequence }
    }
}

impl Witness {
    /// Offers the ledger everything that is remembered from before a loss that is not settled yet; the
    /// number of tags that it lacked. Safe to repeat.
    ///
    /// # Errors
    /// When not everything could be offered.
    pub async fn offer(&self) -> Result<usize, Unavailable> {
        let Some(losses) = self.inner.losses().filter(|losses| losses.is_restoring_any()) else {
            return Ok(0);
        };
        let mut offers: BTreeMap<RepositoryKey, Vec<Offer>> = BTreeMap::new();
        for (key, seen) in self.memory.iter() {
            let Some((repository, tag)) = position_of(&key) else { continue };
            let lost = losses.is_restoring(&repository) && seen.losses < losses.of(&repository);
            if lost {
                offers.entry(repository).or_default().push(seen.offer(tag));
            }
        }
        let mut count = 0;
        for (repository, offers) in &offers {
            let restored = self.inner.restore(repository, offers).await?;
            for (offer, restored) in offers.iter().zip(restored) {
                count += usize::from(restored == Restored::Restored);
                self.offered(repository, offer, restored);
            }
        }
        Ok(count)
    }

    fn offered(&self, repository: &RepositoryKey, offer: &Offer, restored: Restored) {
        let Offer { tag, state, sequence } = offer;
        match (restored, state) {
            (Restored::Restored, Offered::Bound { digest, .. }) => tracing::warn!(
                %repository, %tag, %digest, sequence,
                "the ledger lost this binding; it is bound again as this proxy remembers it"
            ),
            (Restored::Restored, Offered::Freed) => tracing::warn!(
                %repository, %tag, sequence,
                "the ledger lost that this name was freed; it is free again as this proxy remembers it"
            ),
            (Restored::Stands, _) => {}
            (Restored::Newer, _) => self.drop_entry(repository, tag),
        }
    }

    /// Everything that was lost up to this total was offered, by whoever could. The ledger's word
    /// counts again, and nothing that is remembered is served before it was looked up.
    pub fn settle(&self, total: u64) {
        self.was_freed_everywhere();
        if let Some(losses) = self.inner.losses() {
            losses.settle(total);
        }
    }
}

fn position_of(key: &str) -> Option<(RepositoryKey, Tag)> {
    let (upstream, rest) = key.split_once(':')?;
    let (repository, tag) = rest.rsplit_once(':')?;
    let repository = RepositoryKey {
        upstream: UpstreamName::parse(upstream).ok()?,
        repository: RepositoryName::parse(repository).ok()?,
    };
    Some((repository, Tag::parse(tag).ok()?))
}
