//! One DELETE, from its delete mark to its end.

use dashmap::DashSet;
use std::sync::Arc;

use super::Judge;
use crate::ledger::{
    AttemptId, DeleteEnd, DeleteMark, Ended, Entry, Holder, Ledger, RepositoryKey, Unavailable,
};
use crate::name::{Digest, Tag};

/// Why names stay bound.
const MARK_LOST: &str = "the ledger lost the delete mark";

/// A DELETE whose marks stand. It ends by the registry's definitive word; one whose outcome is unknown
/// is dropped, and its marks stay.
pub(super) struct Deleting {
    repository: RepositoryKey,
    attempt: AttemptId,
    marks: Vec<Mark>,
    under_way: Arc<DashSet<AttemptId>>,
}

struct Mark {
    digest: Digest,
    /// DELETEs of other processes and of earlier times that had no definitive answer. This one's answer
    /// is the answer to them, too.
    earlier: Vec<AttemptId>,
}

/// What the end of a DELETE came to in the ledger.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The tags that are withdrawn or free now.
    pub tags: Vec<Tag>,
    /// Why other tags stay bound.
    pub unmarked: Option<Unavailable>,
}

impl Deleting {
    pub fn repository(&self) -> &RepositoryKey {
        &self.repository
    }

    /// Whether DELETEs without a definitive answer end with this one.
    pub fn ends_earlier(&self) -> bool {
        self.marks.iter().any(|mark| !mark.earlier.is_empty())
    }

    /// Whether a mark was left by one of the DELETEs that end with this one.
    fn continues(&self, mark: &DeleteMark) -> bool {
        self.marks
            .iter()
            .flat_map(|own| &own.earlier)
            .any(|earlier| mark.attempts.contains(earlier))
    }

    /// Whether a tag has one of the digests.
    fn is_of(&self, entry: &Entry) -> bool {
        entry.digest().is_some_and(|digest| self.marks.iter().any(|mark| mark.digest == *digest))
    }

    /// Its outcome is unknown: the marks stay.
    pub fn stays(self) {
        for Mark { digest, .. } in &self.marks {
            tracing::warn!(
                repository = %self.repository, %digest,
                "whether the registry deleted an image is unknown: pushes of it get 503 until it is \
                 deleted again, or `taglock ledger clear-delete` removes the mark"
            );
        }
    }
}

impl Drop for Deleting {
    fn drop(&mut self) {
        self.under_way.remove(&self.attempt);
    }
}

impl Judge {
    /// Leaves a delete mark on each of these digests; returns the tags that have one of them. No other
    /// tag gets one while the marks stand.
    pub(super) async fn begin_delete(
        &self,
        key: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<(Deleting, Vec<Holder>), Unavailable> {
        let attempt = AttemptId::random();
        let under_way = Arc::clone(&self.deletes);
        under_way.insert(attempt);
        let (repository, marks) = (key.clone(), Vec::new());
        let mut deleting = Deleting { repository, attempt, marks, under_way };
        match self.mark(&mut deleting, digests).await {
            Ok(holders) => Ok((deleting, holders)),
            Err(error) => {
                self.cancel_delete(deleting).await;
                Err(error)
            }
        }
    }

    async fn mark(
        &self,
        deleting: &mut Deleting,
        digests: &[Digest],
    ) -> Result<Vec<Holder>, Unavailable> {
        let mut holders = Vec::new();
        for digest in digests {
            holders.extend(self.mark_one(deleting, digest).await?);
        }
        // An earlier DELETE whose image is gone by now marked it by every algorithm: nobody can tell these
        // from the image any more, but its marks name the same attempt.
        if deleting.ends_earlier() {
            for (digest, mark) in self.ledger.delete_marks(&deleting.repository).await? {
                if deleting.continues(&mark) && !digests.contains(&digest) {
                    holders.extend(self.mark_one(deleting, &digest).await?);
                }
            }
        }
        Ok(holders)
    }

    async fn mark_one(
        &self,
        deleting: &mut Deleting,
        digest: &Digest,
    ) -> Result<Vec<Holder>, Unavailable> {
        // A call that fails may have made the mark all the same: it is taken back with the others.
        deleting.marks.push(Mark { digest: *digest, earlier: Vec::new() });
        let begun =
            self.ledger.begin_delete(&deleting.repository, digest, deleting.attempt).await?;
        let earlier = begun.earlier.into_iter().filter(|other| !self.deletes.contains(other));
        if let Some(mark) = deleting.marks.last_mut() {
            mark.earlier = earlier.collect();
        }
        Ok(begun.holders)
    }

    /// Whether one of these DELETEs is under way in this process.
    pub fn deletes_now(&self, attempts: &[AttemptId]) -> bool {
        attempts.iter().any(|attempt| self.deletes.contains(attempt))
    }

    /// The DELETE was not sent, or the registry has deleted nothing.
    pub(super) async fn cancel_delete(&self, deleting: Deleting) {
        self.end(&deleting, &[], DeleteEnd::Refused).await;
    }

    /// The registry has deleted: frees these mutable tags, as far as they have one of the digests. A claim
    /// among them may have been bound since it was seen; while the marks stand, no entry changes
    /// twice.
    pub(super) async fn supersede_deleted(&self, deleting: &Deleting, seen: Vec<Holder>) {
        let repository = deleting.repository();
        let tags: Vec<_> = seen.iter().map(|holder| holder.tag.clone()).collect();
        let mut held = seen;
        for _ in 0..2 {
            if held.is_empty() {
                return;
            }
            self.supersede(repository, &held).await;
            // The end of the delete meets the same trouble, and says so.
            let Ok(found) = self.ledger.lookup(repository, &tags).await else { return };
            held = Holder::present(&tags, found.entries);
            held.retain(|holder| deleting.is_of(&holder.entry));
        }
    }

    /// The registry has deleted: does `end` to those of these tags that have one of the digests.
    pub(super) async fn end_delete(
        &self,
        deleting: Deleting,
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Settled {
        self.end(&deleting, tags, end).await
    }

    async fn end(&self, deleting: &Deleting, tags: &[Tag], end: DeleteEnd) -> Settled {
        let Deleting { repository, attempt, marks, .. } = deleting;
        let mut settled = Settled::default();
        for Mark { digest, earlier } in marks {
            let mut attempts = vec![*attempt];
            if end != DeleteEnd::Refused {
                attempts.extend(earlier);
            }
            let ended = self.ledger.end_delete(repository, digest, &attempts, tags, end).await;
            match ended {
                Ok(Ended::Done(changed)) => settled.tags.extend(changed),
                Ok(Ended::NoMark) => self.end_unmarked(deleting, tags, end, &mut settled).await,
                Err(error) => {
                    tracing::warn!(
                        %repository, %digest, %error,
                        "a delete mark could not be removed: pushes of the image get 503 until the image \
                         is deleted again, or `taglock ledger clear-delete` removes the mark"
                    );
                    settled.unmarked = Some(error);
                }
            }
        }
        settled.tags.sort();
        settled.tags.dedup();
        settled
    }

    /// An earlier call may have done it, and its answer was lost. Or the mark was lost: what is bound now
    /// may be a later push, and stays.
    async fn end_unmarked(
        &self,
        deleting: &Deleting,
        tags: &[Tag],
        end: DeleteEnd,
        settled: &mut Settled,
    ) {
        // Without the mark nothing has told those who looked before that an image is gone.
        let found = match self.ledger.invalidate(&deleting.repository, tags).await {
            Ok(found) => found,
            Err(error) => {
                settled.unmarked = Some(error);
                return;
            }
        };
        let ended = tags.iter().zip(&found.entries).filter(|(_, entry)| is_ended(entry, end));
        settled.tags.extend(ended.map(|(tag, _)| tag.clone()));
        if end != DeleteEnd::Kept {
            self.check_unmarked(deleting, end, settled).await;
        }
    }

    /// Whether a tag still has one of the digests: without the mark, one that had not when it was made may
    /// have been bound since.
    async fn check_unmarked(&self, deleting: &Deleting, end: DeleteEnd, settled: &mut Settled) {
        for Mark { digest, .. } in &deleting.marks {
            let bound = match self.ledger.bound_to(&deleting.repository, digest).await {
                Ok(bound) => bound,
                Err(error) => {
                    settled.unmarked = Some(error);
                    return;
                }
            };
            match self.ledger.lookup(&deleting.repository, &bound).await {
                Ok(found) => {
                    if found
                        .entries
                        .iter()
                        .any(|entry| deleting.is_of(entry) && !is_ended(entry, end))
                    {
                        settled.unmarked = Some(Unavailable::Store(MARK_LOST.into()));
                    }
                }
                Err(error) => settled.unmarked = Some(error),
            }
        }
    }
}

/// Whether an entry is as this end leaves it.
pub(super) fn is_ended(entry: &Entry, end: DeleteEnd) -> bool {
    match end {
        DeleteEnd::Refused | DeleteEnd::Kept => false,
        DeleteEnd::Released => *entry == Entry::Absent,
        DeleteEnd::Withdrawn => {
            matches!(entry, Entry::Sealed(sealed) if sealed.withdrawn.is_some())
        }
    }
}
