//! Deletes of what no rule protects.

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::delete::{NoDelete, Plan, Ruling, Unsettled};
use super::deleting::Deleting;
use super::mutable::{BRIEF, Coverage};
use super::{Judge, REPAIRS};
use crate::ledger::{DeleteEnd, Entry, Holder, Ledger, RepositoryKey, Unavailable};
use crate::name::{Digest, Reference};
use crate::registry::{Caller, Deleted};

impl Judge {
    /// A delete of what no rule protects. The entries of stricter days are freed, as by a push. With the
    /// ledger down it goes on all the same.
    pub async fn delete_mutable(
        &self,
        key: &RepositoryKey,
        reference: &Reference,
        caller: &Caller,
        coverage: Coverage,
    ) -> Ruling {
        let begun = match self.mutable_digest(key, reference).await {
            Some(digest) => self.begin_delete_soon(key, digest).await,
            None => None,
        };
        // It was entered before: a repair that begins from here on sees it.
        let tags: Vec<_> = match (reference, &begun) {
            (Reference::Tag(tag), _) => vec![tag.clone()],
            (_, Some((_, held))) => held.iter().map(|holder| holder.tag.clone()).collect(),
            (_, None) => Vec::new(),
        };
        if let Err(tag) = self.unjudged.no_repair(key, &tags, REPAIRS).await {
            if let Some((deleting, _)) = begun {
                self.cancel_delete(deleting).await;
            }
            return NoDelete::Busy(tag).into();
        }
        let deleted = self.registry.delete(caller, &key.repository, reference).await;
        match (begun, deleted) {
            (Some((deleting, mut superseded)), deleted) => {
                if let Reference::Tag(tag) = reference {
                    superseded.retain(|holder| holder.tag == *tag);
                }
                let plan = Plan { tags: Vec::new(), end: DeleteEnd::Kept, superseded };
                self.settle(deleting, plan, deleted).await
            }
            (None, Deleted::Done(answer)) => {
                let unmarked = self.bound_meanwhile(key, reference, coverage).await;
                Ruling::Deleted { answer, tags: Vec::new(), unmarked }
            }
            (None, Deleted::Refused(answer)) => Ruling::Relayed(answer),
            (None, Deleted::Unknown(trouble)) => {
                Ruling::Undecided(Unsettled::OutcomeUnknown(trouble))
            }
        }
    }

    /// Whether another proxy, by newer rules, has bound the tag that was deleted. One that has seen it before,
    /// and would bind it, has to look again.
    async fn bound_meanwhile(
        &self,
        key: &RepositoryKey,
        reference: &Reference,
        coverage: Coverage,
    ) -> Option<Unavailable> {
        if !self.ledger.is_shared() {
            return None;
        }
        let tags = match reference {
            Reference::Tag(tag) => std::slice::from_ref(tag),
            Reference::Digest(_) => &[],
        };
        let error = match timeout(BRIEF, self.ledger.invalidate(key, tags)).await {
            Ok(Ok(found)) => {
                let bound = found.entries.iter().any(|entry| *entry != Entry::Absent);
                return bound.then(|| Unavailable::Store("another proxy has bound the tag".into()));
            }
            Ok(Err(error)) => error,
            Err(_) => Unavailable::TimedOut,
        };
        (coverage == Coverage::Ruled).then_some(error)
    }

    /// A delete mark, unless the ledger is down.
    async fn begin_delete_soon(
        &self,
        key: &RepositoryKey,
        digest: Digest,
    ) -> Option<(Deleting, Vec<Holder>)> {
        let judge = self.clone();
        let own = key.clone();
        let (begun, waiting) = oneshot::channel();
        // In a task of its own: a mark that comes too late is taken back.
        tokio::spawn(async move {
            let Ok(marked) = judge.begin_delete(&own, &[digest]).await else { return };
            if let Err((deleting, _)) = begun.send(marked) {
                judge.cancel_delete(deleting).await;
            }
        });
        let marked = timeout(BRIEF, waiting).await.ok().and_then(Result::ok);
        if marked.is_none() {
            tracing::warn!(repository = %key, "a mutable delete goes on without the ledger");
        }
        marked
    }

    /// Whether the ledger has anything to do with what is to be deleted.
    pub async fn holds_reference(&self, key: &RepositoryKey, reference: &Reference) -> bool {
        match reference {
            Reference::Tag(tag) => self.holds_any(key, std::slice::from_ref(tag)).await,
            Reference::Digest(digest) => {
                let bound = timeout(BRIEF, self.ledger.bound_to(key, digest)).await;
                bound.is_ok_and(|bound| bound.is_ok_and(|tags| !tags.is_empty()))
            }
        }
    }

    /// The digest that a delete under a mutable rule takes away, as far as the ledger has to do with it.
    async fn mutable_digest(&self, key: &RepositoryKey, reference: &Reference) -> Option<Digest> {
        match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(tag) => {
                let found =
                    timeout(BRIEF, self.ledger.lookup(key, std::slice::from_ref(tag))).await;
                found.ok()?.ok()?.entries.first()?.digest().copied()
            }
        }
    }
}
