//! The tags a repository has in the registry, looked through for those the ledger lacks: a tag that
//! was there before taglock counts like any other.

use tokio::time::timeout;

use super::mutable::BRIEF;
use super::{Judge, OLDER_WRITES};
use crate::ledger::{Adopt, Entry, Ledger, Origin, RepositoryKey, Unavailable};
use crate::name::{Digest, Reference, Tag};
use crate::registry::{Answer, Caller, Listing, Sighting, Trouble};
use crate::rules::{Mutability, Rule};

/// How many tags of a repository are looked through.
pub const MAX_TAGS: usize = 1000;

/// How often a look-through starts over, because names were freed while it went on.
const ADOPTIONS: usize = 5;

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
        let tags = self.protected_tags(caller, key, rule).await?;
        self.adopt(caller, key, tags).await
    }

    /// What the registry has under each of those tags, and nothing is told to the ledger.
    pub(super) async fn seen_all(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        rule: &Rule,
    ) -> Result<Vec<(Tag, Digest)>, Missed> {
        let mut seen = Vec::new();
        for tag in self.protected_tags(caller, key, rule).await? {
            let reference = Reference::Tag(tag.clone());
            match self.registry.look(caller, &key.repository, &reference).await {
                Sighting::Found(digest) => seen.push((tag, digest)),
                Sighting::NotFound(_) => {}
                Sighting::Denied(answer) | Sighting::Failed(answer) => {
                    return Err(Missed::Denied(answer));
                }
                Sighting::Unclear(trouble) => return Err(Missed::Registry(trouble)),
            }
        }
        Ok(seen)
    }

    async fn protected_tags(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        rule: &Rule,
    ) -> Result<Vec<Tag>, Missed> {
        let tags = match self.registry.tags(caller, &key.repository, MAX_TAGS).await {
            Listing::All(tags) => tags,
            Listing::TooMany => return Err(Missed::TooMany),
            Listing::Denied(answer) => return Err(Missed::Denied(answer)),
            Listing::Unclear(trouble) => return Err(Missed::Registry(trouble)),
        };
        let protected = |tag: &Tag| rule.mutability_of(tag) == Mutability::Immutable;
        Ok(tags.into_iter().filter(protected).collect())
    }

    /// What each of these tags is bound to by the ledger, or else has in the registry, as far as
    /// that can be found out: for a rule that is not enforced.
    pub async fn standing(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        tags: &[Tag],
    ) -> Vec<(Tag, Digest)> {
        let entries = timeout(BRIEF, self.ledger.lookup(key, tags)).await;
        let found = entries.ok().and_then(Result::ok);
        let entries = found.map(|found| found.entries).unwrap_or_default();
        let mut standing = Vec::new();
        for (n, tag) in tags.iter().enumerate() {
            if let Some(digest) = entries.get(n).and_then(Entry::digest) {
                standing.push((tag.clone(), *digest));
                continue;
            }
            let reference = Reference::Tag(tag.clone());
            let seen = self.registry.look(caller, &key.repository, &reference).await;
            if let Sighting::Found(digest) = seen {
                standing.push((tag.clone(), digest));
            }
        }
        standing
    }

    /// These tags and their entries; those the ledger lacks are bound to what the registry has.
    pub(super) async fn adopt(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        tags: Vec<Tag>,
    ) -> Result<Vec<(Tag, Entry)>, Missed> {
        for _ in 0..ADOPTIONS {
            let found = self.ledger.lookup(key, &tags).await.map_err(Missed::Ledger)?;
            let absent = tags.iter().zip(&found.entries);
            let absent = absent.filter(|(_, entry)| **entry == Entry::Absent);
            let absent: Vec<_> = absent.map(|(tag, _)| tag.clone()).collect();
            // What older rules let through must have ended before anything is bound.
            let older = self.unjudged.none(key, &absent, OLDER_WRITES).await;
            older.map_err(Missed::Busy)?;
            let mut again = false;
            for tag in &absent {
                let seen = match self.registry.resolve(caller, &key.repository, tag).await {
                    Sighting::Found(digest) => digest,
                    Sighting::NotFound(_) => continue,
                    Sighting::Denied(answer) | Sighting::Failed(answer) => {
                        return Err(Missed::Denied(answer));
                    }
                    Sighting::Unclear(trouble) => return Err(Missed::Registry(trouble)),
                };
                let one = std::slice::from_ref(tag);
                let adopted = self.ledger.adopt(key, one, &seen, Origin::Import, found.freed).await;
                match adopted.map_err(Missed::Ledger)? {
                    // Somebody may have claimed it meanwhile: then that stands.
                    Adopt::Adopted | Adopt::Conflict(_) => {}
                    Adopt::Freed => again = true,
                    Adopt::Deleting => return Err(Missed::Busy(tag.clone())),
                }
            }
            if absent.is_empty() {
                return Ok(tags.into_iter().zip(found.entries).collect());
            }
            if !again {
                let found = self.ledger.lookup(key, &tags).await.map_err(Missed::Ledger)?;
                return Ok(tags.into_iter().zip(found.entries).collect());
            }
        }
        // Names of the repository are freed faster than it can be looked through.
        Err(tags.into_iter().next().map_or(Missed::TooMany, Missed::Busy))
    }
}
