//! Deletes.
//!
//! Before a DELETE is sent, a mark in the ledger keeps its digest from being claimed or adopted. The
//! registry deletes first, then the ledger's entries are withdrawn or freed: one withdrawn before would
//! hide an image that the registry then refuses to delete, and a name freed before could be taken while
//! its image is still there. Both follow from the registry's definitive word, in one transition with
//! the end of the mark. A DELETE is sent once. Where its outcome is unknown, the mark stays.

use std::collections::BTreeSet;

use http::StatusCode;

use super::deleting::{Deleting, Settled};
use super::survey::Missed;
use super::{Content, Judge, REPAIRS};
use crate::ledger::{DeleteEnd, Entry, Holder, Ledger, RepositoryKey, Unavailable};
use crate::name::{Digest, Reference, Tag};
use crate::registry::client::{OTHER_BYTES, SCHEMA1};
use crate::registry::{Answer, Caller, Deleted, Fetched, Trouble};
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
    /// The registry may have deleted it, or may yet; its delete mark stays.
    #[error("{0}; whether it was deleted is unknown: delete it again")]
    OutcomeUnknown(Trouble),
}

/// What a delete does to the tags that have its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Immutable tags, and what becomes of them.
    pub tags: Vec<Tag>,
    pub end: DeleteEnd,
    /// Entries of tags that the rule leaves mutable: a delete frees them, as a push does.
    pub superseded: Vec<Holder>,
}

/// From a rule, and the tags that a delete takes away, to what is to be done. A pending tag counts as
/// bound: its push is going to need the image.
pub(super) fn plan(rule: &Rule, holders: Vec<Holder>) -> Result<Plan, NoDelete> {
    let (immutable, superseded): (Vec<_>, Vec<_>) = holders
        .into_iter()
        .partition(|holder| rule.mutability_of(&holder.tag) == Mutability::Immutable);
    for Holder { tag, entry } in &immutable {
        match (rule.deletes, entry) {
            (_, Entry::Absent) => {}
            (Deletes::Refuse, _) => return Err(NoDelete::Immutable(tag.clone())),
            (_, Entry::Pending(_)) => return Err(NoDelete::Busy(tag.clone())),
            (Deletes::Keep | Deletes::Release, Entry::Sealed(_)) => {}
        }
    }
    let end = match rule.deletes {
        Deletes::Refuse => DeleteEnd::Kept,
        Deletes::Keep => DeleteEnd::Withdrawn,
        Deletes::Release => DeleteEnd::Released,
    };
    Ok(Plan { tags: immutable.into_iter().map(|holder| holder.tag).collect(), end, superseded })
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
        // A client that may not look is told so by the registry, and moves nothing here.
        match self.let_in(caller, &key.repository, reference).await {
            Ok(()) => {}
            Err(Ok(answer)) if self.resolves(key, reference, caller, &answer).await => {}
            Err(Ok(answer)) => return Ruling::Relayed(answer),
            Err(Err(trouble)) => return Ruling::Undecided(Unsettled::Registry(trouble)),
        }
        let digests = match reference {
            Reference::Tag(tag) => self.of_tag(deletion, caller, tag).await,
            Reference::Digest(digest) => self.of_digest(deletion, caller, digest).await,
        };
        let digests = match digests {
            Ok(digests) => digests,
            Err(ruling) => return ruling,
        };
        let (deleting, mut holders) = match self.begin_delete(key, &digests).await {
            Ok(begun) => begun,
            Err(error) => return error.into(),
        };
        if let Reference::Tag(tag) = reference {
            holders.retain(|holder| holder.tag == *tag);
            if holders.is_empty() {
                // It was there a moment ago, so somebody else moves it.
                self.cancel_delete(deleting).await;
                return NoDelete::Busy(tag.clone()).into();
            }
        }
        let planned = match plan(rule, holders) {
            Ok(plan) if rule.deletes == Deletes::Refuse => {
                let claimed = self.check_claimed_parts(key, caller, &digests).await;
                claimed.map(|()| plan)
            }
            planned => planned.map_err(Ruling::from),
        };
        let plan = match planned {
            Ok(plan) => plan,
            Err(ruling) => {
                self.cancel_delete(deleting).await;
                return ruling;
            }
        };
        // A repair that begins from here on sees the mark.
        if let Err(tag) = self.unjudged.no_repair(key, &plan.tags, REPAIRS).await {
            self.cancel_delete(deleting).await;
            return NoDelete::Busy(tag).into();
        }
        let deleted = self.registry.delete(caller, &key.repository, reference).await;
        self.settle(deleting, plan, deleted).await
    }

    /// Whether the registry's 404 ends a DELETE whose outcome was unknown: the image is gone, for a client
    /// to which the registry has lately shown this repository.
    async fn resolves(
        &self,
        key: &RepositoryKey,
        reference: &Reference,
        caller: &Caller,
        answer: &Answer,
    ) -> bool {
        let Reference::Digest(digest) = reference else { return false };
        if answer.status != StatusCode::NOT_FOUND || !caller.let_in {
            return false;
        }
        let marks = self.ledger.delete_marks(key).await.unwrap_or_default();
        marks.iter().any(|(marked, _)| marked == digest)
    }

    /// Tells the ledger what the registry has said: never before.
    pub(super) async fn settle(&self, deleting: Deleting, plan: Plan, deleted: Deleted) -> Ruling {
        match deleted {
            Deleted::Done(answer) => {
                let Settled { tags, unmarked } = self.carry_out(deleting, plan).await;
                Ruling::Deleted { answer, tags, unmarked }
            }
            // Gone by an earlier DELETE, whose outcome was unknown.
            Deleted::Refused(answer)
                if answer.status == StatusCode::NOT_FOUND && deleting.ends_earlier() =>
            {
                let Settled { tags, unmarked } = self.carry_out(deleting, plan).await;
                Ruling::Deleted { answer, tags, unmarked }
            }
            Deleted::Refused(answer) => {
                self.cancel_delete(deleting).await;
                Ruling::Relayed(answer)
            }
            Deleted::Unknown(trouble) => {
                deleting.stays();
                Ruling::Undecided(Unsettled::OutcomeUnknown(trouble))
            }
        }
    }

    async fn carry_out(&self, deleting: Deleting, plan: Plan) -> Settled {
        let Plan { tags, end, superseded } = plan;
        self.supersede_deleted(&deleting, superseded).await;
        let settled = self.end_delete(deleting, &tags, end).await;
        match end {
            DeleteEnd::Refused | DeleteEnd::Kept => Settled { tags: Vec::new(), ..settled },
            DeleteEnd::Withdrawn | DeleteEnd::Released => settled,
        }
    }

    /// The digest of the tag itself, which is bound first where the ledger lacks it.
    async fn of_tag(
        &self,
        deletion: &Deletion,
        caller: &Caller,
        tag: &Tag,
    ) -> Result<Vec<Digest>, Ruling> {
        if deletion.rule.deletes == Deletes::Refuse {
            return Err(NoDelete::Immutable(tag.clone()).into());
        }
        let bound = self.adopt(caller, &deletion.repository, vec![tag.clone()]).await?;
        match bound.first().and_then(|(_, entry)| entry.digest()) {
            Some(digest) => Ok(vec![*digest]),
            // It was there a moment ago, so somebody else moves it.
            None => Err(NoDelete::Busy(tag.clone()).into()),
        }
    }

    /// The digests of a manifest, once nothing is known that stands against its delete.
    async fn of_digest(
        &self,
        deletion: &Deletion,
        caller: &Caller,
        digest: &Digest,
    ) -> Result<Vec<Digest>, Ruling> {
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
        let digests: Vec<_> = digests.to_vec();
        let refuses = |bound: &[(Tag, Entry)]| match bound.first() {
            Some((tag, _)) if rule.deletes == Deletes::Refuse => {
                Err(NoDelete::Immutable(tag.clone()))
            }
            _ => Ok(()),
        };
        refuses(&self.bound(key, rule, &digests).await?)?;
        // A tag that the ledger lacks is free already under `release`.
        if rule.deletes != Deletes::Release {
            let all = self.adopt_all(caller, key, rule).await?;
            if rule.deletes == Deletes::Refuse {
                let bound = all.iter().filter_map(|(tag, entry)| Some((tag, entry.digest()?)));
                self.check_parts(key, caller, manifest.as_ref(), &digests, bound).await?;
                refuses(&self.bound(key, rule, &digests).await?)?;
            }
        }
        Ok(digests)
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
                let found = self.ledger.lookup(key, std::slice::from_ref(tag)).await.ok()?;
                return plan(rule, Holder::present(std::slice::from_ref(tag), found.entries)).err();
            }
            Reference::Digest(digest) => std::slice::from_ref(digest),
        };
        let bound = self.bound(key, rule, digest).await.unwrap_or_default();
        let bound = bound.into_iter().map(|(tag, entry)| Holder { tag, entry });
        if let Err(no) = plan(rule, bound.collect()) {
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
        let entries = self.ledger.lookup(key, &tags).await?.entries;
        let still = |entry: &Entry| entry.digest().is_some_and(|digest| digests.contains(digest));
        Ok(tags.into_iter().zip(entries).filter(|(_, entry)| still(entry)).collect())
    }
}
