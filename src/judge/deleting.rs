//! One DELETE, from its delete mark to its end.

use dashmap::DashSet;
use std::sync::Arc;

use super::Judge;
use crate::ledger::{
    AttemptId, DeleteEnd, Ended, Entry, Holder, Ledger, RepositoryKey, Unavailable,
};
use crate::name::{Digest, Tag};

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
        let mut holders = Vec::new();
        for digest in digests {
            match self.ledger.begin_delete(key, digest, attempt).await {
                Ok(begun) => {
                    let earlier = begun.earlier.into_iter();
                    let earlier = earlier.filter(|other| !self.deletes.contains(other)).collect();
                    deleting.marks.push(Mark { digest: *digest, earlier });
                    holders.extend(begun.holders);
                }
                Err(error) => {
                    // The mark may have been made all the same: it is taken back with the others.
                    deleting.marks.push(Mark { digest: *digest, earlier: Vec::new() });
                    self.cancel_delete(deleting).await;
                    return Err(error);
                }
            }
        }
        Ok((deleting, holders))
    }

    /// Whether one of these DELETEs is under way in this process.
    pub fn deletes_now(&self, attempts: &[AttemptId]) -> bool {
        attempts.iter().any(|attempt| self.deletes.contains(attempt))
    }

    /// The DELETE was not sent, or the registry has deleted nothing.
    pub(super) async fn cancel_delete(&self, deleting: Deleting) {
        self.end(&deleting, &[], DeleteEnd::Refused).await;
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
                // An earlier call may have done it, and its answer was lost.
                Ok(Ended::NoMark) => match self.ledger.lookup(repository, tags).await {
                    Ok(found) => {
                        let pairs = tags.iter().zip(&found.entries);
                        let done = pairs.filter(|(_, entry)| is_ended(entry, end));
                        settled.tags.extend(done.map(|(tag, _)| tag.clone()));
                    }
                    Err(error) => settled.unmarked = Some(error),
                },
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
}

/// Whether an entry is as this end leaves it.
fn is_ended(entry: &Entry, end: DeleteEnd) -> bool {
    match end {
        DeleteEnd::Refused | DeleteEnd::Kept => false,
        DeleteEnd::Released => *entry == Entry::Absent,
        DeleteEnd::Withdrawn => {
            matches!(entry, Entry::Sealed(sealed) if sealed.withdrawn.is_some())
        }
    }
}
