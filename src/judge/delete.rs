//! Deletes in protected scope.
//!
//! The registry deletes first, then the ledger's entries are marked or freed. A mark made before
//! would hide an image that the registry then refuses to delete, and a name freed before could be
//! taken while its image is still there. A crash in between is harmless: the entry stays sealed,
//! so the name is bound as ever, and a pull of the image that is gone is the registry's 404.
//!
//! A push of the same image may come between the registry's word and the mark. A withdrawn mark then
//! hides what that push has brought back, as if the delete had come after it, which nobody can tell;
//! the next push of the image clears it. A release frees only the life it has looked up.

use std::collections::BTreeSet;

use super::survey::Missed;
use super::{Content, Judge};
use crate::ledger::{Entry, Ledger, Release, RepositoryKey, Token, Unavailable};
use crate::name::{Digest, Reference, Tag};
use crate::registry::client::{OTHER_BYTES, SCHEMA1};
use crate::registry::{Answer, Caller, Deleted, Fetched, Manifest, Trouble, wire};
use crate::rules::{Deletes, Mutability, Rule};

pub use super::survey::MAX_TAGS;

/// A DELETE of a manifest, or of a protected tag.
#[derive(Clone, Debug)]
pub struct Deletion {
    pub repository: RepositoryKey,
    pub reference: Reference,
    /// The one that protects the repository.
    pub rule: Rule,
}

/// The end of a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The registry has deleted it.
    Deleted {
        answer: Answer,
        /// The tags that are withdrawn or free now.
        tags: Vec<Tag>,
        /// Why other tags could not be marked: they stay bound.
        unmarked: Option<Unavailable>,
    },
    Refused(NoDelete),
    /// The registry's own no; nothing was deleted.
    Relayed(Answer),
    Undecided(Unsettled),
}

impl Ruling {
    /// The closed set of rulings in the audit.
    pub fn label(&self, deletes: Deletes) -> &'static str {
        match (self, deletes) {
            (Self::Deleted { tags, .. }, _) if tags.is_empty() => "deleted",
            (Self::Deleted { .. }, Deletes::Release) => "released",
            (Self::Deleted { .. }, _) => "withdrawn",
            (Self::Refused(_), _) => "refused",
            (Self::Relayed(_), _) => "relayed",
            (Self::Undecided(_), _) => "undecided",
        }
    }
}

/// Why a delete is not forwarded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDelete {
    /// This tag is immutable, and the rule refuses deletes.
    #[error("the tag {0} is immutable")]
    Immutable(Tag),
    /// It is a part of the image this tag is bound to.
    #[error("a part of the image the tag {0} is bound to")]
    Part(Tag),
    /// A push of this tag is under way, or did not end.
    #[error("a push of the tag {0} is under way, or did not end")]
    Busy(Tag),
    /// All that is in it.
    #[error("the repository has immutable tags")]
    Repository,
    /// More than [`MAX_TAGS`]: whether an immutable one is bound to it can't be told.
    #[error("the repository has too many tags")]
    TooManyTags,
}

/// Why a delete has no ruling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    /// Before the DELETE was sent.
    #[error(transparent)]
    Ledger(Unavailable),
    /// Before the DELETE was sent.
    #[error("{0}; nothing was deleted")]
    Registry(Trouble),
    /// The registry may have deleted it; nothing is marked.
    #[error("{0}; whether it was deleted is unknown")]
    OutcomeUnknown(Trouble),
}

/// What is done to the ledger once the registry has deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Withdraw { tag: Tag, digest: Digest },
    Release { tag: Tag, token: Token },
}

/// From a rule, and the entries of the protected tags that a delete takes away, to what is to be
/// done. A pending tag counts as bound: its push is going to need the image.
pub(super) fn plan(deletes: Deletes, bound: &[(Tag, Entry)]) -> Result<Vec<Mark>, NoDelete> {
    let mark = |(tag, entry): &(Tag, Entry)| match (deletes, entry) {
        (Deletes::Refuse, Entry::Pending(_) | Entry::Sealed(_)) => {
            Err(NoDelete::Immutable(tag.clone()))
        }
        (_, Entry::Pending(_)) => Err(NoDelete::Busy(tag.clone())),
        (Deletes::Keep, Entry::Sealed(sealed)) => {
            Ok(Some(Mark::Withdraw { tag: tag.clone(), digest: sealed.digest }))
        }
        (Deletes::Release, Entry::Sealed(sealed)) => {
            Ok(Some(Mark::Release { tag: tag.clone(), token: sealed.token() }))
        }
        (_, Entry::Absent) => Ok(None),
    };
    let marks = bound.iter().map(mark).collect::<Result<Vec<_>, _>>()?;
    Ok(marks.into_iter().flatten().collect())
}

/// Sealed, and its image was not deleted.
pub(super) fn still_sealed(entry: &Entry) -> bool {
    matches!(entry, Entry::Sealed(sealed) if sealed.withdrawn.is_none())
}

impl From<Missed> for Ruling {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::TooMany => Self::Refused(NoDelete::TooManyTags),
            Missed::Busy(tag) => Self::Refused(NoDelete::Busy(tag)),
            Missed::Denied(answer) => Self::Relayed(answer),
            Missed::Registry(trouble) => Self::Undecided(Unsettled::Registry(trouble)),
            Missed::Ledger(error) => error.into(),
        }
    }
}

impl From<Unavailable> for Ruling {
    fn from(error: Unavailable) -> Self {
        Self::Undecided(Unsettled::Ledger(error))
    }
}

impl From<NoDelete> for Ruling {
    fn from(no: NoDelete) -> Self {
        Self::Refused(no)
    }
}

impl Judge {
    /// Takes a delete to its ruling.
    ///
    /// To be run in a task of its own: a client that leaves between the registry's word and the
    /// ledger's changes nothing then.
    pub async fn delete(&self, deletion: &Deletion, caller: &Caller) -> Ruling {
        let Deletion { repository: key, reference, rule } = deletion;
        // Who may not look is told so by the registry, and moves nothing here.
        match self.let_in(caller, &key.repository, reference).await {
            Ok(()) => {}
            Err(Ok(answer)) => return Ruling::Relayed(answer),
            Err(Err(trouble)) => return Ruling::Undecided(Unsettled::Registry(trouble)),
        }
        let bound = match reference {
            Reference::Tag(tag) => self.taken_by_tag(deletion, caller, tag).await,
            Reference::Digest(digest) => self.taken_by_digest(deletion, caller, digest).await,
        };
        let marks = match bound {
            Ok(bound) => match plan(rule.deletes, &bound) {
                Ok(marks) => marks,
                Err(no) => return no.into(),
            },
            Err(ruling) => return ruling,
        };
        let deleted = self.registry.delete(caller, &key.repository, reference).await;
        self.settle(key, marks, deleted).await
    }

    /// Tells the ledger what the registry has said: never before.
    pub(super) async fn settle(
        &self,
        key: &RepositoryKey,
        marks: Vec<Mark>,
        deleted: Deleted,
    ) -> Ruling {
        match deleted {
            Deleted::Done(answer) => {
                let (tags, unmarked) = self.mark(key, marks).await;
                Ruling::Deleted { answer, tags, unmarked }
            }
            Deleted::Refused(answer) => Ruling::Relayed(answer),
            Deleted::Unknown(trouble) => Ruling::Undecided(Unsettled::OutcomeUnknown(trouble)),
        }
    }

    /// The entry of the tag itself, sealed first where the ledger lacks it.
    async fn taken_by_tag(
        &self,
        deletion: &Deletion,
        caller: &Caller,
        tag: &Tag,
    ) -> Result<Vec<(Tag, Entry)>, Ruling> {
        if deletion.rule.deletes == Deletes::Refuse {
            return Err(NoDelete::Immutable(tag.clone()).into());
        }
        let bound = self.adopt(caller, &deletion.repository, vec![tag.clone()]).await?;
        match bound.first() {
            Some((_, entry)) if *entry != Entry::Absent => Ok(bound),
            // It was there a moment ago, so somebody else moves it.
            _ => Err(NoDelete::Busy(tag.clone()).into()),
        }
    }

    /// The entries of every protected tag that is bound to the manifest: they all go with it.
    async fn taken_by_digest(
        &self,
        deletion: &Deletion,
        caller: &Caller,
        digest: &Digest,
    ) -> Result<Vec<(Tag, Entry)>, Ruling> {
        let Deletion { repository: key, rule, .. } = deletion;
        let manifest = match self.registry.fetch(caller, &key.repository, digest).await {
            Fetched::Found(manifest) => Some(manifest),
            // Gone by now, or nothing that could be hashed: its own name must do.
            Fetched::NotFound | Fetched::Unclear(Trouble::Garbage(SCHEMA1 | OTHER_BYTES)) => None,
            Fetched::Unclear(trouble) => {
                return Err(Ruling::Undecided(Unsettled::Registry(trouble)));
            }
        };
        // The ledger may know it by another algorithm than the client.
        let content = manifest.as_ref().and_then(|m| Content::new(&m.bytes, Some(*digest)).ok());
        let digests = content.as_ref().map_or(std::slice::from_ref(digest), Content::digests);
        let bound = self.bound(key, rule, digests).await?;
        match rule.deletes {
            // A tag that the ledger lacks is free already.
            Deletes::Release => return Ok(bound),
            Deletes::Refuse if !bound.is_empty() => return Ok(bound),
            Deletes::Refuse | Deletes::Keep => {}
        }
        let all = self.adopt_all(caller, key, rule).await?;
        if rule.deletes == Deletes::Refuse {
            let bound = all.iter().filter_map(|(tag, entry)| Some((tag, entry.digest()?)));
            self.check_parts(key, caller, manifest.as_ref(), digests, bound).await?;
        }
        Ok(self.bound(key, rule, digests).await?)
    }

    /// What would stand against the delete, without telling the ledger anything: for a rule that is
    /// not enforced. `None` as well where it can't be found out.
    pub async fn would_refuse(&self, deletion: &Deletion, caller: &Caller) -> Option<NoDelete> {
        let Deletion { repository: key, reference, rule } = deletion;
        self.let_in(caller, &key.repository, reference).await.ok()?;
        let digest = match reference {
            Reference::Tag(tag) if rule.deletes == Deletes::Refuse => {
                return Some(NoDelete::Immutable(tag.clone()));
            }
            Reference::Tag(tag) => {
                let entries = self.ledger.lookup(key, std::slice::from_ref(tag)).await.ok()?;
                let bound = entries.into_iter().map(|entry| (tag.clone(), entry));
                return plan(rule.deletes, &bound.collect::<Vec<_>>()).err();
            }
            Reference::Digest(digest) => std::slice::from_ref(digest),
        };
        let bound = self.bound(key, rule, digest).await.unwrap_or_default();
        if let Err(no) = plan(rule.deletes, &bound) {
            return Some(no);
        }
        if rule.deletes == Deletes::Release {
            return None;
        }
        let seen = match self.seen_all(caller, key, rule).await {
            Ok(seen) => seen,
            Err(Missed::TooMany) => return Some(NoDelete::TooManyTags),
            Err(_) => return None,
        };
        if rule.deletes == Deletes::Keep {
            return None;
        }
        if let Some((tag, _)) = seen.iter().find(|(_, seen)| digest.contains(seen)) {
            return Some(NoDelete::Immutable(tag.clone()));
        }
        let manifest = match self.registry.fetch(caller, &key.repository, &digest[0]).await {
            Fetched::Found(manifest) => Some(manifest),
            Fetched::NotFound | Fetched::Unclear(_) => None,
        };
        let seen = seen.iter().map(|(tag, digest)| (tag, digest));
        match self.check_parts(key, caller, manifest.as_ref(), digest, seen).await {
            Err(Ruling::Refused(no)) => Some(no),
            _ => None,
        }
    }

    /// The protected tags bound to one of these digests, by the ledger.
    pub(super) async fn bound(
        &self,
        key: &RepositoryKey,
        rule: &Rule,
        digests: &[Digest],
    ) -> Result<Vec<(Tag, Entry)>, Unavailable> {
        let mut tags = BTreeSet::new();
        for digest in digests {
            tags.extend(self.ledger.bound_to(key, digest).await?);
        }
        let protected = |tag: &Tag| rule.mutability_of(tag) == Mutability::Immutable;
        let tags: Vec<_> = tags.into_iter().filter(protected).collect();
        let entries = self.ledger.lookup(key, &tags).await?;
        let still = |entry: &Entry| entry.digest().is_some_and(|digest| digests.contains(digest));
        Ok(tags.into_iter().zip(entries).filter(|(_, entry)| still(entry)).collect())
    }

    /// Where deletes are refused, no image may lose one of its parts either.
    async fn check_parts(
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
                    let Some(parts) = wire::parts(&whole.bytes) else {
                        let trouble = Trouble::Garbage("an image whose parts can't be read");
                        return Err(Ruling::Undecided(Unsettled::Registry(trouble)));
                    };
                    let mut parts = parts.into_iter();
                    if parts.any(|part| Digest::parse(&part).is_ok_and(|d| digests.contains(&d))) {
                        return Err(NoDelete::Part(tag.clone()).into());
                    }
                }
                // Deleted, or of a kind that has no parts.
                Fetched::NotFound | Fetched::Unclear(Trouble::Garbage(SCHEMA1)) => {}
                Fetched::Unclear(trouble) => {
                    return Err(Ruling::Undecided(Unsettled::Registry(trouble)));
                }
            }
        }
        Ok(())
    }

    /// Tells the ledger of a deletion; the tags it took, and why it did not take the others.
    async fn mark(&self, key: &RepositoryKey, marks: Vec<Mark>) -> (Vec<Tag>, Option<Unavailable>) {
        let mut tags = Vec::new();
        let mut unmarked = None;
        for mark in marks {
            let (tag, marked) = match mark {
                Mark::Withdraw { tag, digest } => {
                    let one = std::slice::from_ref(&tag);
                    let withdrawn = self.ledger.withdraw(key, one, &digest).await;
                    (tag, withdrawn.map(|()| true))
                }
                Mark::Release { tag, token } => {
                    let released = self.ledger.release(key, &tag, token).await;
                    (tag, released.map(|release| release == Release::Freed))
                }
            };
            match marked {
                Ok(true) => tags.push(tag),
                // Another life of the name has begun: that one is not ours to end.
                Ok(false) => {}
                Err(error) => unmarked = Some(error),
            }
        }
        (tags, unmarked)
    }
}
