//! The ledger's operations, and what memory makes of their outcomes.

use async_trait::async_trait;

use super::{Beginning, Details, State, Witness};
use crate::ledger::rollback::{Losses, restoring};
use crate::ledger::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, FreedNumber,
    Holder, Identity, Ledger, Listed, Lookup, News, Offer, Origin, Position, Release,
    RepositoryKey, Restored, Timestamp, Token, Unavailable,
};
use crate::name::{Digest, Tag};

/// No store's count.
const NEVER: FreedNumber = FreedNumber(u64::MAX);

impl Witness {
    /// Remembers what a look-up found.
    fn found(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        mut found: Lookup,
        mut begun: Beginning,
    ) -> Result<Lookup, Unavailable> {
        begun.number = Some(found.freed);
        begun.heard = self.heard_number(repository, begun.heard, found.freed);
        for (tag, entry) in tags.iter().zip(&found.entries) {
            self.note(repository, tag, entry, &begun);
        }
        // What is there may be older than what another proxy is about to offer.
        if let Some(losses) = self.inner.losses() {
            losses.check(repository)?;
        }
        found.freed = found.freed.after(begun.losses);
        Ok(found)
    }

    /// # Errors
    /// Where entries of the repository were lost since, or are being restored.
    fn check_whole(
        &self,
        repository: &RepositoryKey,
        begun: &Beginning,
    ) -> Result<(), Unavailable> {
        let Some(losses) = self.inner.losses() else { return Ok(()) };
        losses.check(repository)?;
        if losses.of(repository) == begun.losses { Ok(()) } else { Err(restoring()) }
    }
}

#[async_trait]
impl Ledger for Witness {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        let begun = self.begin(repository);
        let found = self.inner.lookup(repository, tags).await?;
        self.found(repository, tags, found, begun)
    }

    async fn invalidate(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        let begun = self.begin(repository);
        let found = self.inner.invalidate(repository, tags).await?;
        self.found(repository, tags, found, begun)
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        let begun = self.begin(repository);
        let claim = self.inner.claim(repository, tags, digest, attempt).await?;
        self.check_whole(repository, &begun)?;
        match &claim {
            Claim::Granted { sealed, .. } => {
                for tag in tags {
                    if sealed.contains(tag) {
                        self.remember(repository, tag, *digest, (State::Bound, None), &begun);
                    } else {
                        self.stop(repository, tag, State::Freed);
                    }
                }
            }
            Claim::Held(holders) => self.note_holders(repository, holders, &begun),
            Claim::Deleting => {}
        }
        Ok(claim)
    }

    async fn bind(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable> {
        let begun = self.begin(repository);
        let count = freed.since(begun.losses).unwrap_or(NEVER);
        let mut bind = self.inner.bind(repository, tags, digest, attempt, count).await?;
        // What a ledger that is being restored has or lacks may be older than what another proxy is about
        // to offer.
        self.check_whole(repository, &begun)?;
        match &mut bind {
            Bind::Bound => {
                for tag in tags {
                    self.remember(repository, tag, *digest, (State::Bound, None), &begun);
                }
            }
            Bind::Conflict(holders) => self.note_holders(repository, holders, &begun),
            Bind::Gone { tags, freed } => {
                *freed = freed.after(begun.losses);
                for tag in tags {
                    self.stop(repository, tag, State::Freed);
                }
            }
            Bind::Freed | Bind::Deleting => {}
        }
        Ok(bind)
    }

    async fn adopt(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable> {
        let begun = self.begin(repository);
        let Some(count) = freed.since(begun.losses) else { return Ok(Adopt::Freed) };
        let adopt = self.inner.adopt(repository, tags, digest, origin, count).await?;
        self.check_whole(repository, &begun)?;
        match &adopt {
            Adopt::Adopted => {
                // It may be withdrawn, so it is not served before it is looked up.
                for tag in tags {
                    if self.last_seen(repository, tag).is_none_or(|seen| !self.stands(&seen)) {
                        let since = Timestamp::now();
                        let sequence = self.inner.heard(repository);
                        let details = Some(Details { origin, since, sequence });
                        self.remember(repository, tag, *digest, (State::Doubted, details), &begun);
                    }
                }
            }
            Adopt::Conflict(holders) => self.note_holders(repository, holders, &begun),
            Adopt::Freed | Adopt::Deleting => {}
        }
        Ok(adopt)
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        self.inner.abort(repository, tags, digest, attempt).await
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        let begun = self.begin(repository);
        let result = self.inner.release(repository, tag, token).await;
        let freed = (State::Freed, token.sequence.max(begun.sequence));
        let is = matches!(result, Ok(Release::Freed)).then_some(freed);
        self.forget(repository, tag, is);
        result
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        let result = self.inner.withdraw(repository, tags, digest).await;
        let state = match &result {
            Ok(()) => State::Withdrawn(Timestamp::now()),
            Err(_) => State::Doubted,
        };
        for tag in tags {
            self.stop(repository, tag, state);
        }
        result
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        let begun = self.begin(repository);
        let result = self.inner.supersede(repository, seen).await;
        let dropped = result.as_ref().map_or(&[][..], Vec::as_slice);
        for holder in seen {
            let dropped = dropped.iter().find(|dropped| dropped.tag == holder.tag);
            let token = dropped.and_then(|dropped| dropped.entry.token());
            let is = token.map(|token| (State::Freed, token.sequence.max(begun.sequence)));
            self.forget(repository, &holder.tag, is);
        }
        result
    }

    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        let begun = self.begin(repository);
        let result = self.inner.begin_delete(repository, digest, attempt).await?;
        self.note_holders(repository, &result.holders, &begun);
        Ok(result)
    }

    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        let begun = self.begin(repository);
        let ended = self.inner.end_delete(repository, digest, attempts, tags, end).await;
        let state = match end {
            DeleteEnd::Refused | DeleteEnd::Kept => return ended,
            DeleteEnd::Withdrawn => State::Withdrawn(Timestamp::now()),
            DeleteEnd::Released => State::Freed,
        };
        let changed = match &ended {
            Ok(Ended::Done(changed)) => changed.as_slice(),
            Ok(Ended::NoMark) | Err(_) => &[],
        };
        for tag in tags {
            let is = changed.contains(tag).then_some((state, begun.sequence));
            self.forget(repository, tag, is);
        }
        ended
    }

    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        self.inner.marked(repository, digests).await
    }

    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        self.inner.delete_marks(repository).await
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.inner.bound_to(repository, digest).await
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.inner.list(after, limit).await
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        self.inner.identity().await
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        self.inner.sequence(repository).await
    }

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        self.inner.announce(own).await
    }

    async fn poll(&self, last: Option<u64>) -> Result<News, Unavailable> {
        self.inner.poll(last).await
    }

    async fn restore(
        &self,
        repository: &RepositoryKey,
        offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        self.inner.restore(repository, offers).await
    }

    fn heard(&self, repository: &RepositoryKey) -> u64 {
        self.inner.heard(repository)
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn losses(&self) -> Option<&Losses> {
        self.inner.losses()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
