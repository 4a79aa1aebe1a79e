//! Writes of tags that the rules leave mutable.
//!
//! Entries outlive rules: a tag may have an entry from the time when it was immutable. A write
//! that is let through takes its place, so that the tag is where the write put it when a rule
//! makes it immutable again.

use std::time::Duration;

use tokio::time::timeout;

use super::{Cargo, Conflict, Judge, Judged, Permit, REPAIRS, Undecided, Verdict};
use crate::ledger::{Entry, Holder, Ledger, Lookup, RepositoryKey, Unavailable};
use crate::name::{Digest, Tag};
use crate::registry::{Answer, Place, Written};

/// How long the ledger is waited for: with it down, mutable tags go on.
pub(super) const BRIEF: Duration = Duration::from_millis(500);

/// Whether a rule of this proxy names the repository of a mutable write. Where none does, the write goes by
/// the registry's word alone if the ledger can't be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    Ruled,
    Unruled,
}

/// What a write of a mutable tag came to.
pub(super) enum Moved {
    /// The registry's word, and the entries that the write took the place of.
    Written(Written, Vec<Holder>),
    /// The registry has taken it, and another proxy, by newer rules, has claimed or bound the tag for
    /// another image meanwhile.
    Outrun(Conflict),
    /// The registry has taken it, and whether the tag was bound meanwhile could not be found out.
    Unknown(Answer, Unavailable),
    /// It was not sent: taglock puts the tag back to what it was bound to.
    Repaired,
}

impl Judge {
    /// What the ledger holds for tags that the rules leave mutable. With the ledger down it is nothing:
    /// the write goes on, the entry stays, and the difference is seen when the tag is protected again.
    async fn held(&self, key: &RepositoryKey, tags: &[Tag]) -> Vec<Holder> {
        match timeout(BRIEF, self.ledger.lookup(key, tags)).await {
            Ok(Ok(Lookup { entries, .. })) => Holder::present(tags, entries),
            Ok(Err(error)) => {
                tracing::warn!(repository = %key, %error, "a mutable push goes on without the ledger");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!(repository = %key, "a mutable push goes on without the ledger");
                Vec::new()
            }
        }
    }

    /// Whether a write to these tags, which the rules leave mutable, is to be looked after: the ledger
    /// holds something that it takes the place of.
    pub async fn holds_any(&self, key: &RepositoryKey, tags: &[Tag]) -> bool {
        !self.held(key, tags).await.is_empty()
    }

    /// Forwards a write that names no protected tag: by digest alone, or to tags the rules leave
    /// mutable. It carries exactly the bytes that were hashed.
    pub async fn pass(
        &self,
        key: &RepositoryKey,
        by_digest: Option<&Digest>,
        tags: &[Tag],
        cargo: Cargo,
        coverage: Coverage,
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
            let written = match self.publish_mutable(key, &cargo, permit, &named).await {
                Moved::Written(written, held) => {
                    superseded.extend(held);
                    written
                }
                Moved::Outrun(conflict) => {
                    return Judged { verdict: Verdict::Refused(conflict), superseded };
                }
                Moved::Repaired => {
                    let verdict = Verdict::Undecided(Undecided::Busy(tag.clone()));
                    return Judged { verdict, superseded };
                }
                Moved::Unknown(created, error) if coverage == Coverage::Unruled => {
                    tracing::warn!(repository = %key, %tag, %error, "a mutable push ends without the ledger");
                    Written::Created(created)
                }
                Moved::Unknown(_, error) => {
                    let verdict = Verdict::Undecided(Undecided::LedgerUnknown(error));
                    return Judged { verdict, superseded };
                }
            };
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
    /// stays: where several proxies share the ledger, it is looked for before the write is acknowledged, and
    /// whoever has looked at the registry before has to look again.
    pub(super) async fn publish_mutable(
        &self,
        key: &RepositoryKey,
        cargo: &Cargo,
        permit: Permit,
        digest: &Digest,
    ) -> Moved {
        let tag = permit.tag().clone();
        let tags = std::slice::from_ref(&tag);
        let held = self.held(key, tags).await;
        // This write was entered before: a repair that begins from here on sees it.
        if !held.is_empty() && self.unjudged.no_repair(key, tags, REPAIRS).await.is_err() {
            return Moved::Repaired;
        }
        let created = match self.publish(cargo, &key.repository, permit, digest).await {
            Written::Created(created) => created,
            written => return Moved::Written(written, Vec::new()),
        };
        let superseded = if held.is_empty() { held } else { self.supersede(key, &held).await };
        if !self.ledger.is_shared() {
            return Moved::Written(Written::Created(created), superseded);
        }
        // Another proxy may have seen the tag before, and be about to bind it to what it has seen.
        let found = match timeout(BRIEF, self.ledger.invalidate(key, tags)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Moved::Unknown(created, error),
            Err(_) => return Moved::Unknown(created, Unavailable::TimedOut),
        };
        match found.entries.first().and_then(Entry::digest) {
            Some(bound) if bound != digest => {
                if let Some(drift) = &self.drift {
                    drift.saw(key, &tag, bound, Some(*digest));
                }
                Moved::Outrun(Conflict { tag, bound: *bound, pushed: *digest, visible: false })
            }
            _ => Moved::Written(Written::Created(created), superseded),
        }
    }

    /// Drops the entries of tags that a streamed push has moved, under a rule that is not enforced.
    pub async fn moved(&self, key: &RepositoryKey, tags: &[Tag]) -> Vec<Holder> {
        if tags.is_empty() {
            return Vec::new();
        }
        let held = self.held(key, tags).await;
        if held.is_empty() { held } else { self.supersede(key, &held).await }
    }

    /// Drops these entries; one that has changed since stays.
    pub(super) async fn supersede(&self, key: &RepositoryKey, held: &[Holder]) -> Vec<Holder> {
        self.ledger.supersede(key, held).await.unwrap_or_else(|error| {
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
