//! The ledger of a fleet: one Redis or Valkey, shared by all proxies.
//!
//! A hash for each repository holds its tags' entries, small enough for Redis' compact form; one
//! script (`ledger.lua`) applies the operation table to a set of tags at one instant. A sorted set
//! names the repositories, for listings, and a hash says who this ledger is.

mod connect;
mod fleet;
mod keys;
mod listing;
mod open;
mod restore;
mod routing;
mod script;
mod topology;

pub use connect::{Access, Address, Tls};
pub use open::{Config, OpenError};
pub use topology::Topology;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dashmap::DashMap;
use redis::{Value, cmd};

use super::rollback::{Losses, Scope};
use super::transitions;
use super::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, Entry,
    FreedNumber, Holder, Identity, Ledger, Listed, Lookup, News, Offer, Origin, Position, Release,
    RepositoryKey, Restored, Token, Unavailable, codec,
};
use crate::name::{Digest, Tag};
use fleet::Whole;
use keys::{bytes_of, entry_of, hash_of, member_of, number_of, stored};
use restore::Confirmed;
use routing::Reach;
use script::Script;

const SCRIPT: &str = include_str!("redis/ledger.lua");
/// Fields of a repository's hash that are no tags begin with a NUL.
const NO_TAG: u8 = 0;
const SEQUENCE: &str = "\0seq";
const FREED: &str = "\0freed";
const MARK: &[u8] = b"\0del:";
const REPOSITORIES: &str = "taglock:1:repositories";
/// Where `ledger.id` names the one that was there before.
const ANOTHER: &str = "the Redis holds another ledger than `ledger.id` names";
const META: &str = "taglock:1:meta";
/// Repositories by the ledger's count of what was freed, when something was freed in them last.
const FREED_IN: &str = "taglock:1:freed";
/// Which rules each proxy applies: its name to `<fingerprint> <seconds since 1970>`.
const PROXIES: &str = "taglock:1:proxies";

pub struct Redis {
    identity: Identity,
    reach: Arc<Reach>,
    script: redis::Script,
    /// Replicas that must have a binding before it is granted.
    replicas: u32,
    seen: DashMap<RepositoryKey, Mark>,
    losses: Losses,
    /// Whether the settings name the only ledger that may be here.
    pinned: bool,
    whole: Mutex<Whole>,
    /// What this proxy has seen to be lost, and has not told the others.
    unpublished: Mutex<Vec<Scope>>,
    /// The ledger's count of what was freed, as last seen.
    counted: AtomicU64,
    confirmed: DashMap<RepositoryKey, Confirmed>,
    /// Repositories that the sorted set is known to name, since so many changes of masters.
    named: DashMap<RepositoryKey, u64>,
    rest: listing::Rest,
    closed: AtomicBool,
}

/// The highest sequence number seen of a repository since its last loss, and its losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    sequence: u64,
    losses: u64,
}

fn failed(error: impl std::fmt::Display) -> Unavailable {
    Unavailable::Store(error.to_string())
}

impl Redis {
    /// The ledger's own id, for `ledger.id`.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    fn open_still(&self) -> Result<(), Unavailable> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Unavailable::Closed);
        }
        match &self.whole().id {
            Some(id) if self.pinned && *id != self.identity.id => Err(failed(ANOTHER)),
            _ => Ok(()),
        }
    }

    fn whole(&self) -> MutexGuard<'_, Whole> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpublished(&self) -> MutexGuard<'_, Vec<Scope>> {
        self.unpublished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a repository when a call begins.
    fn mark(&self, repository: &RepositoryKey) -> Mark {
        self.seen.get(repository).map_or_else(Mark::default, |mark| *mark)
    }

    /// Notices a ledger that went back in time: a lost failover, an old file.
    ///
    /// Only a call that began after a higher number was seen proves it: answers overtake each
    /// other between here and their callers.
    fn note(&self, repository: &RepositoryKey, begun: Mark, sequence: u64) {
        if begun == Mark::default() && sequence == 0 {
            // Most repositories that are asked for have no entries; none is remembered for it.
            return;
        }
        let mut mark = self.seen.entry(repository.clone()).or_default();
        if mark.losses != begun.losses {
            // Another call has noticed meanwhile, and this answer may be from before.
            return;
        }
        if sequence < begun.sequence {
            tracing::error!(
                %repository, sequence, seen = begun.sequence,
                "the ledger went back in time: it lost bindings, the registry's own tags and what this \
                 proxy remembers are asked first"
            );
            *mark = Mark { sequence, losses: mark.losses + 1 };
            self.lost(Scope::Repository(repository.clone()));
        } else {
            mark.sequence = mark.sequence.max(sequence);
        }
    }

    /// Names the repository in the sorted set, before its first entry. A master that took over
    /// may not have the name, so it is told again.
    async fn name(&self, repository: &RepositoryKey) -> Result<(), Unavailable> {
        let changes = self.reach.changes();
        if self.named.get(repository).is_some_and(|named| *named == changes) {
            return Ok(());
        }
        let mut call = cmd("ZADD");
        call.arg(REPOSITORIES).arg(0).arg(member_of(repository));
        self.reach.ask::<i64>(REPOSITORIES, &call).await?;
        self.named.insert(repository.clone(), changes);
        Ok(())
    }
}

#[async_trait]
impl Ledger for Redis {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        self.open_still()?;
        let mut call = cmd("HMGET");
        call.arg(hash_of(repository)).arg(SEQUENCE).arg(FREED);
        for tag in tags {
            call.arg(tag.as_str());
        }
        let begun = self.mark(repository);
        let values: Vec<Value> = self.reach.ask(&hash_of(repository), &call).await?;
        let [sequence, freed, values @ ..] = values.as_slice() else {
            return Err(failed("an answer that is too short"));
        };
        let sequence = number_of(sequence)?;
        self.note(repository, begun, sequence);
        self.losses.check(repository)?;
        let entries = values.iter().map(|value| entry_of(bytes_of(value)?));
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        self.ensure(repository, &entries, sequence).await?;
        Ok(Lookup { entries, freed: FreedNumber(number_of(freed)?) })
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        self.open_still()?;
        self.name(repository).await?;
        let script = Script::new('C', stored(digest), tags).by(attempt);
        let done = self.run(repository, &script).await?;
        let outcome = done.outcome(&transitions::Operation::Claim { digest: *digest, attempt })?;
        Ok(Claim::of(outcome, &done.before, attempt))
    }

    async fn bind(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable> {
        let script = Script::new('B', stored(digest), tags).by(attempt).since(freed);
        let done = self.run(repository, &script).await?;
        let outcome =
            done.outcome(&transitions::Operation::Bind { digest: *digest, attempt, freed })?;
        Ok(Bind::of(outcome, done.freed))
    }

    async fn adopt(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable> {
        self.open_still()?;
        self.name(repository).await?;
        let mut script = Script::new('D', stored(digest), tags).since(freed);
        script.origin = codec::origin_bits(origin);
        let done = self.run(repository, &script).await?;
        done.outcome(&transitions::Operation::Adopt { digest: *digest, origin, freed })
            .map(Adopt::from)
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        let script = Script::new('A', stored(digest), tags).by(attempt);
        self.run(repository, &script).await.map(drop)
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        self.losses.check(repository)?;
        let script = Script::new('R', codec::token_bytes(token), std::slice::from_ref(tag));
        let done = self.run(repository, &script).await?;
        done.outcome(&transitions::Operation::Release { token }).map(Release::from)
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.losses.check(repository)?;
        self.run(repository, &Script::new('W', stored(digest), tags)).await.map(drop)
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        self.losses.check(repository)?;
        let (tags, operation) = transitions::Operation::supersede(seen);
        let transitions::Operation::Supersede { lives } = &operation else { return Ok(Vec::new()) };
        let tokens = lives.iter().map(|life| codec::token_bytes(*life)).collect();
        let script = Script { more: tokens, ..Script::new('X', Vec::new(), &tags) };
        let done = self.run(repository, &script).await?;
        Ok(done.outcome(&operation)?.dropped(&done.before))
    }

    async fn invalidate(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        self.losses.check(repository)?;
        let done = self.run(repository, &Script::new('I', Vec::new(), tags)).await?;
        done.outcome(&transitions::Operation::Invalidate)?;
        let entries = done.before.into_iter().map(|(_, entry)| entry).collect();
        Ok(Lookup { entries, freed: done.freed.next() })
    }

    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        self.open_still()?;
        self.losses.check(repository)?;
        self.name(repository).await?;
        let script = Script::new('G', stored(digest), &[]).by(attempt);
        let done = self.run(repository, &script).await?;
        // Read behind the mark: no other tag gets the digest from here on.
        let bound = |entry: &Entry| entry.digest() == Some(digest);
        let holders = self.entries(repository, bound).await?;
        let earlier = done.mark.into_iter().flat_map(|mark| mark.attempts);
        Ok(Begun {
            holders: holders.into_iter().map(|(tag, entry)| Holder { tag, entry }).collect(),
            earlier: earlier.filter(|other| *other != attempt).collect(),
        })
    }

    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        self.losses.check(repository)?;
        let mut script = Script::new('E', stored(digest), tags);
        script.attempts = attempts.iter().flat_map(|attempt| *attempt.as_bytes()).collect();
        script.origin = match end {
            DeleteEnd::Refused => b'N',
            DeleteEnd::Kept => b'K',
            DeleteEnd::Withdrawn => b'W',
            DeleteEnd::Released => b'R',
        };
        let done = self.run(repository, &script).await?;
        if done.status == b"nomark" {
            return Ok(Ended::NoMark);
        }
        let outcome = done.outcome(&transitions::Operation::EndDelete { digest: *digest, end })?;
        Ok(Ended::Done(outcome.changed(&done.before)))
    }

    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        self.open_still()?;
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        let hash = hash_of(repository);
        let mut call = cmd("HMGET");
        call.arg(&hash);
        for digest in digests {
            call.arg([MARK, &stored(digest)].concat());
        }
        let marks: Vec<Value> = self.reach.ask(&hash, &call).await?;
        let marked = digests.iter().zip(marks).filter(|(_, mark)| *mark != Value::Nil);
        Ok(marked.map(|(digest, _)| *digest).collect())
    }

    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        self.open_still()?;
        self.marks(repository).await
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.open_still()?;
        self.losses.check(repository)?;
        let bound = |entry: &Entry| entry.digest() == Some(digest);
        Ok(self.entries(repository, bound).await?.into_iter().map(|(tag, _)| tag).collect())
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.open_still()?;
        self.page(after, limit).await
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Unavailable::Closed);
        }
        let id: Option<String> = self.reach.ask(META, cmd("HGET").arg(META).arg("id")).await?;
        self.look_at(id)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.losses)
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        self.open_still()?;
        let hash = hash_of(repository);
        let sequence: Option<u64> =
            self.reach.ask(&hash, cmd("HGET").arg(&hash).arg(SEQUENCE)).await?;
        Ok(sequence.unwrap_or(0))
    }

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        self.open_still()?;
        self.tell(own).await
    }

    async fn poll(&self, last: Option<u64>) -> Result<News, Unavailable> {
        self.news(last).await
    }

    async fn restore(
        &self,
        repository: &RepositoryKey,
        offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        self.offer(repository, offers).await
    }

    fn heard(&self, repository: &RepositoryKey) -> u64 {
        self.mark(repository).sequence
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.reach.close();
    }
}

#[cfg(test)]
mod tests;
