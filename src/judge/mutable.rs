//! Writes of tags that the rules leave mutable.
//!
//! Entries outlive rules: a tag may have an entry from the time when it was immutable. A write
//! that is let through takes its place, so that the tag is where the write put it when a rule
//! makes it immutable again.

use std::time::Duration;

use tokio::time::timeout;

use super::{Cargo, Judge, Judged, Permit, Undecided, Verdict};
use crate::ledger::{Entry, Holder, Ledger, RepositoryKey};
use crate::name::{Digest, Tag};
use crate::registry::{Answer, Place, Written};

/// How long the ledger is waited for: with it down, mutable tags go on.
pub(super) const BRIEF: Duration = Duration::from_millis(500);

impl Judge {
    /// Whether the ledger holds anything for tags that the rules leave mutable, so that a write to
    /// them must take its place. With the ledger down the answer is no: the write goes on, the
    /// entry stays, and the difference is seen when the tag is protected again.
    pub async fn holds_any(&self, key: &RepositoryKey, tags: &[Tag]) -> bool {
        match timeout(BRIEF, self.ledger.lookup(key, tags)).await {
            Ok(Ok(entries)) => entries.iter().any(|entry| *entry != Entry::Absent),
            Ok(Err(error)) => {
                tracing::warn!(repository = %key, %error, "a mutable push goes on without the ledger");
                false
            }
            Err(_) => {
                tracing::warn!(repository = %key, "a mutable push goes on without the ledger");
                false
            }
        }
    }

    /// Forwards a write that names no protected tag: by digest alone, or to tags the rules leave
    /// mutable. It carries exactly the bytes that were hashed.
    pub async fn pass(
        &self,
        key: &RepositoryKey,
        by_digest: Option<&Digest>,
        tags: &[Tag],
        cargo: Cargo,
    ) -> Judged {
        let mut answer = None;
        if let Some(digest) = by_digest {
            let (place, name) = (Place::Digest(digest), &key.repository);
            match self.registry.put(&cargo.caller, name, place, &cargo.manifest).await {
                Written::Created(created) => answer = Some(created),
                written => return unwritten(written).into(),
            }
        }
        let named = by_digest.or(cargo.named.as_ref()).copied();
        let named = named.unwrap_or_else(|| cargo.manifest.digest());
        let mut superseded = Vec::new();
        let mut written_tags = Vec::new();
        for tag in tags {
            let permit = Permit::mutable(tag);
            let (written, held) = self.publish_mutable(key, &cargo, permit, &named).await;
            superseded.extend(held);
            match written {
                Written::Created(created) => {
                    answer.get_or_insert(created);
                    written_tags.push(tag.clone());
                }
                // As a registry that takes a set would: what it refused is not echoed.
                Written::Denied(_) | Written::Refused(_) if answer.is_some() => {}
                written => return Judged { verdict: unwritten(written), superseded },
            }
        }
        let verdict = Verdict::Admitted { answer, tags: written_tags, sealed: true };
        Judged { verdict, superseded }
    }

    /// Publishes a mutable tag, and supersedes the entry it had before, if any. Only a client that may
    /// push drops an entry, which is shown by the write itself; and to one that may not, the registry
    /// says the same whether there is an entry or not. A crash in between leaves the entry: the push
    /// was not acknowledged then. An entry that another proxy makes meanwhile, under newer rules,
    /// stays.
    pub(super) async fn publish_mutable(
        &self,
        key: &RepositoryKey,
        cargo: &Cargo,
        permit: Permit,
        digest: &Digest,
    ) -> (Written, Vec<Holder>) {
        let tags = [permit.tag().clone()];
        let held = self.holds_any(key, &tags).await;
        let written = self.publish(cargo, &key.repository, permit, digest).await;
        let moved = held && matches!(written, Written::Created(_));
        let superseded = if moved { self.supersede(key, &tags).await } else { Vec::new() };
        (written, superseded)
    }

    /// Drops the entries of tags that a streamed push has moved, under a rule that is not enforced.
    pub async fn moved(&self, key: &RepositoryKey, tags: &[Tag]) -> Vec<Holder> {
        if tags.is_empty() || !self.holds_any(key, tags).await {
            return Vec::new();
        }
        self.supersede(key, tags).await
    }

    async fn supersede(&self, key: &RepositoryKey, tags: &[Tag]) -> Vec<Holder> {
        let superseded = self.ledger.supersede(key, tags).await;
        superseded.unwrap_or_else(|error| {
            tracing::warn!(repository = %key, %error, "an entry could not be superseded and stays");
            Vec::new()
        })
    }
}

fn unwritten(written: Written) -> Verdict<Answer> {
    match written {
        Written::Created(answer) => {
            Verdict::Admitted { answer: Some(answer), tags: Vec::new(), sealed: true }
        }
        Written::Denied(answer) | Written::Refused(answer) => Verdict::Relayed(answer),
        Written::Unknown(trouble) => Verdict::Undecided(Undecided::OutcomeUnknown(trouble)),
    }
}
