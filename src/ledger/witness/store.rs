//! The ledger behind the memory: each call goes to the store, and what it brings is remembered or forgotten.

use async_trait::async_trait;

use super::Witness;
use crate::ledger::losses::Losses;
use crate::ledger::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, FreedNumber,
    Holder, Identity, Ledger, Listed, Lookup, Origin, Position, Release, RepositoryKey, Token,
    Unavailable,
};
use crate::name::{Digest, Tag};

#[async_trait]
impl Ledger for Witness {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        let begun = self.begin(repository);
        let mut found = self.noted(self.inner.lookup(repository, tags).await)?;
        if self.restored(repository, tags, &found).await? {
            found = self.noted(self.inner.lookup(repository, tags).await)?;
        }
        for (tag, entry) in tags.iter().zip(&found.entries) {
            self.note(repository, tag, entry, &begun);
        }
        Ok(found)
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        let begun = self.begin(repository);
        let claim = self.noted(self.inner.claim(repository, tags, digest, attempt).await)?;
        match &claim {
            Claim::Granted { sealed, .. } => {
                for tag in tags {
                    if sealed.contains(tag) {
                        self.remember(repository, tag, *digest, None, &begun);
                    } else {
                        self.stop(repository, tag);
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
        let bind = self.inner.bind(repository, tags, digest, attempt, freed).await;
        let bind = self.noted(bind)?;
        match &bind {
            Bind::Bound => {
                for tag in tags {
                    self.remember(repository, tag, *digest, None, &begun);
                }
            }
            Bind::Conflict(holders) => self.note_holders(repository, holders, &begun),
            Bind::Gone { tags, .. } => {
                for tag in tags {
                    self.stop(repository, tag);
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
        let adopt = self.inner.adopt(repository, tags, digest, origin, freed).await;
        let adopt = self.noted(adopt)?;
        // What was adopted may be withdrawn: it is remembered once it is looked up.
        if let Adopt::Conflict(holders) = &adopt {
            let begun = self.begin(repository);
            self.note_holders(repository, holders, &begun);
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
        self.noted(self.inner.abort(repository, tags, digest, attempt).await)
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        let result = self.noted(self.inner.release(repository, tag, token).await);
        // One that failed may have happened.
        self.forget(repository, tag);
        result
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        let result = self.noted(self.inner.withdraw(repository, tags, digest).await);
        for tag in tags {
            self.stop(repository, tag);
        }
        result
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        let result = self.noted(self.inner.supersede(repository, seen).await);
        for holder in seen {
            self.forget(repository, &holder.tag);
        }
        result
    }

    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        self.noted(self.inner.begin_delete(repository, digest, attempt).await)
    }

    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        let ended = self.inner.end_delete(repository, digest, attempts, tags, end).await;
        let ended = self.noted(ended);
        for tag in tags {
            match end {
                DeleteEnd::Refused | DeleteEnd::Kept => {}
                DeleteEnd::Withdrawn => self.stop(repository, tag),
                // One that failed may have happened.
                DeleteEnd::Released => self.forget(repository, tag),
            }
        }
        ended
    }

    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        self.noted(self.inner.marked(repository, digests).await)
    }

    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        self.noted(self.inner.delete_marks(repository).await)
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.noted(self.inner.bound_to(repository, digest).await)
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.noted(self.inner.list(after, limit).await)
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        self.noted(self.inner.identity().await)
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        self.noted(self.inner.sequence(repository).await)
    }

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        self.noted(self.inner.announce(own).await)
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
