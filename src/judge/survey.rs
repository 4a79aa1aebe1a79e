//! The tags a repository has in the registry, looked through for those the ledger lacks: a tag that
//! was there before taglock counts like any other.

use super::{Judge, OLDER_WRITES};
use crate::ledger::{Entry, Origin, RepositoryKey, Unavailable};
use crate::name::Tag;
use crate::registry::{Answer, Caller, Listing, Sighting, Trouble};
use crate::rules::{Mutability, Rule};

/// How many tags of a repository are looked through.
pub const MAX_TAGS: usize = 1000;

/// Why a repository could not be looked through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// It has more than [`MAX_TAGS`] tags.
    TooMany,
    /// A write of this tag that older rules let through has not ended.
    Busy(Tag),
    Denied(Answer),
    Registry(Trouble),
    Ledger(Unavailable),
}

impl Judge {
    /// Every tag of the registry's list that the rule protects, and its entry; those the ledger
    /// lacks are sealed first. All on the caller's behalf: what the registry does not show it
    /// is not bound for it.
    pub(super) async fn adopt_all(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        rule: &Rule,
    ) -> Result<Vec<(Tag, Entry)>, Missed> {
        let tags = match self.registry.tags(caller, &key.repository, MAX_TAGS).await {
            Listing::All(tags) => tags,
            Listing::TooMany => return Err(Missed::TooMany),
            Listing::Denied(answer) => return Err(Missed::Denied(answer)),
            Listing::Unclear(trouble) => return Err(Missed::Registry(trouble)),
        };
        let protected = |tag: &Tag| rule.mutability_of(tag) == Mutability::Immutable;
        self.adopt(caller, key, tags.into_iter().filter(protected).collect()).await
    }

    /// These tags and their entries; those the ledger lacks are sealed with what the registry has.
    pub(super) async fn adopt(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        tags: Vec<Tag>,
    ) -> Result<Vec<(Tag, Entry)>, Missed> {
        let mut entries = self.ledger.lookup(key, &tags).await.map_err(Missed::Ledger)?;
        let absent = tags.iter().zip(&entries).filter(|(_, entry)| **entry == Entry::Absent);
        let absent: Vec<_> = absent.map(|(tag, _)| tag.clone()).collect();
        // What older rules let through must have ended before anything is bound.
        let older = self.unjudged.none(key, &absent, OLDER_WRITES).await;
        older.map_err(Missed::Busy)?;
        for tag in &absent {
            match self.registry.resolve(caller, &key.repository, tag).await {
                // Somebody may have claimed it meanwhile: then that stands.
                Sighting::Found(digest) => self
                    .ledger
                    .seal(key, std::slice::from_ref(tag), &digest, Origin::Import)
                    .await
                    .map(drop)
                    .map_err(Missed::Ledger)?,
                Sighting::NotFound(_) => {}
                Sighting::Denied(answer) => return Err(Missed::Denied(answer)),
                Sighting::Unclear(trouble) => return Err(Missed::Registry(trouble)),
            }
        }
        if !absent.is_empty() {
            entries = self.ledger.lookup(key, &tags).await.map_err(Missed::Ledger)?;
        }
        Ok(tags.into_iter().zip(entries).collect())
    }
}
