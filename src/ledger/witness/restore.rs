//! After a loss: what this proxy remembers is a witness.

use super::{Recollection, Witness};
use crate::ledger::{Adopt, Entry, Ledger, Lookup, Origin, RepositoryKey, Unavailable};
use crate::name::{RepositoryName, Tag, UpstreamName};

impl Witness {
    /// Binds again what the ledger has lost of these tags and this proxy remembers; true when there
    /// was any. An error means that the ledger may hold less than it did, so nothing may be bound.
    ///
    /// Once for each loss: what was seen after it is no loss, so a name that is let go of
    /// afterwards stays free.
    pub(super) async fn restored(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        found: &Lookup,
    ) -> Result<bool, Unavailable> {
        let mut any = false;
        for (tag, entry) in tags.iter().zip(&found.entries) {
            if *entry == Entry::Absent
                && let Some(seen) = self.outdated(repository, tag)
            {
                self.restore(repository, tag, &seen).await?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Binds again everything that is remembered from before a loss, for the proxies that do not
    /// remember it; the number of tags. To be called in the background after a loss.
    pub async fn restore_all(&self) -> usize {
        let keys: Vec<_> = self.memory.iter().map(|(key, _)| key).collect();
        let mut count = 0;
        for key in keys {
            let Some((repository, tag)) = position_of(&key) else { continue };
            if let Some(seen) = self.outdated(&repository, &tag) {
                match self.restore(&repository, &tag, &seen).await {
                    Ok(()) => count += 1,
                    // Its turn comes with the next look-up of the tag.
                    Err(error) => {
                        tracing::warn!(%repository, %tag, %error, "a lost binding waits");
                        return count;
                    }
                }
            }
        }
        count
    }

    /// What is remembered of a tag from before the last loss of its repository.
    fn outdated(&self, repository: &RepositoryKey, tag: &Tag) -> Option<Recollection> {
        let lost = self.lost(repository);
        self.recall(repository, tag).filter(|seen| seen.losses < lost)
    }

    async fn restore(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        seen: &Recollection,
    ) -> Result<(), Unavailable> {
        let origin = seen.details.as_ref().map_or(Origin::Push, |details| details.origin);
        let tags = std::slice::from_ref(tag);
        let begun = self.begin(repository);
        let freed = self.inner.lookup(repository, tags).await?.freed;
        match self.adopt(repository, tags, &seen.digest, origin, freed).await? {
            Adopt::Freed | Adopt::Deleting => {}
            Adopt::Adopted => {
                self.remember(repository, tag, seen.digest, None, &begun);
                tracing::warn!(
                    %repository, %tag, digest = %seen.digest,
                    "the ledger lost this binding; it is bound again as this proxy remembers it"
                );
            }
            // Somebody was faster, and with another image: it is not ours to move.
            Adopt::Conflict(_) => {
                tracing::error!(
                    %repository, %tag, remembered = %seen.digest,
                    "the ledger lost this binding, and the tag is another image's now"
                );
                self.drop_entry(repository, tag);
            }
        }
        Ok(())
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
