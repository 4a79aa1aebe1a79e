//! Parts: under `refuse`, no image with an immutable tag loses a manifest that it lists.

use std::collections::BTreeSet;

use super::Judge;
use super::delete::{MAX_TAGS, NoDelete, Ruling, Unsettled};
use crate::ledger::{Entry, Holder, RepositoryKey, Unavailable};
use crate::name::{Digest, Tag};
use crate::registry::client::SCHEMA1;
use crate::registry::{Caller, Fetched, Manifest, Trouble, wire};

impl Judge {
    /// Where deletes are refused, no image may lose one of its parts either.
    pub(super) async fn check_parts(
        &self,
        key: &RepositoryKey,
        caller: &Caller,
        manifest: Option<&Manifest>,
        digests: &[Digest],
        all: impl Iterator<Item = (&Tag, &Digest)> + Send,
    ) -> Result<(), Ruling> {
        if manifest.is_some_and(|manifest| wire::is_referrers_index(&manifest.bytes)) {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        for (tag, digest) in all {
            if !seen.insert(*digest) {
                continue;
            }
            match self.registry.fetch(caller, &key.repository, digest).await {
                Fetched::Found(whole) => {
                    if has_part(&whole, digests).map_err(unread)? {
                        return Err(NoDelete::Part(tag.clone()).into());
                    }
                }
                // Deleted, or of a kind that has no parts.
                Fetched::NotFound | Fetched::Unclear(Trouble::Garbage(SCHEMA1)) => {}
                Fetched::Unclear(trouble) => return Err(unread(trouble)),
            }
        }
        Ok(())
    }

    /// No image that is claimed now may lose one of its parts: its push is under way, so the registry's
    /// list of tags lacks it. A claim that comes later sees the delete marks.
    pub(super) async fn check_claimed_parts(
        &self,
        key: &RepositoryKey,
        caller: &Caller,
        digests: &[Digest],
    ) -> Result<(), Ruling> {
        let pending = self.pending(key).await?;
        for Holder { tag, entry } in pending {
            let Some(claimed) = entry.digest() else { continue };
            match self.registry.fetch(caller, &key.repository, claimed).await {
                Fetched::Found(whole) => {
                    if has_part(&whole, digests).map_err(unread)? {
                        return Err(NoDelete::Part(tag).into());
                    }
                }
                Fetched::Unclear(Trouble::Garbage(SCHEMA1)) => {}
                // Not stored by its digest, so its parts can't be seen before it is published.
                Fetched::NotFound => return Err(NoDelete::Busy(tag).into()),
                Fetched::Unclear(trouble) => return Err(unread(trouble)),
            }
        }
        Ok(())
    }

    /// The claims of a repository.
    async fn pending(&self, key: &RepositoryKey) -> Result<Vec<Holder>, Unavailable> {
        let mut pending = Vec::new();
        let mut after: Option<Tag> = None;
        loop {
            let page = self.entries_after(key, after.as_ref(), MAX_TAGS).await?;
            let last = page.last().map(|(tag, _)| tag.clone());
            let more = page.len() >= MAX_TAGS;
            let claims = page.into_iter().filter(|(_, entry)| matches!(entry, Entry::Pending(_)));
            pending.extend(claims.map(|(tag, entry)| Holder { tag, entry }));
            if !more {
                return Ok(pending);
            }
            after = last;
        }
    }
}

/// Whether an image is made of one of these manifests.
fn has_part(whole: &Manifest, digests: &[Digest]) -> Result<bool, Trouble> {
    let unread = Trouble::Garbage("an image whose parts can't be read");
    let parts = wire::parts(&whole.bytes).ok_or(unread)?;
    Ok(parts.iter().any(|part| Digest::parse(part).is_ok_and(|part| digests.contains(&part))))
}

fn unread(trouble: Trouble) -> Ruling {
    Ruling::Undecided(Unsettled::Registry(trouble))
}
