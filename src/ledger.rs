//! The ledger: what each protected tag is bound to, and who is about to bind it.
//!
//! An entry is `absent`, `pending` (claimed by attempts that have not been refused), or `sealed`.
//! **A claim never changes its digest because time passed**: every PUT ever forwarded for a tag
//! carries the digest of its entry, and one that arrives an hour late writes what is there
//! already. No operation consults a clock; timestamps are for people.
//!
//! Names are freed by releases, deletes and superseded entries. A repository's *freed number* counts that,
//! so that nothing is bound by a look at the registry that is older; a *delete mark* keeps a digest
//! from being bound while the registry deletes it. See `docs/decisions/0030-freed-names.md`.

pub mod cached;
pub mod codec;
pub mod embedded;
mod entry;
pub mod memory;
pub mod redis;
pub mod retrying;
pub mod rollback;
pub mod transitions;

#[cfg(test)]
pub(crate) mod contract;

use rollback::Losses;

pub use entry::{
    AttemptId, DeleteMark, Entry, FreedNumber, Origin, Pending, Sealed, Timestamp, Token,
};

use std::fmt;

use async_trait::async_trait;

use crate::name::{Digest, RepositoryName, Tag, UpstreamName};

/// The canonical key of a repository. Nothing of it comes from `Host` or `?ns=`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryKey {
    pub upstream: UpstreamName,
    pub repository: RepositoryName,
}

impl fmt::Display for RepositoryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.repository)
    }
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The entries of the tags, in their order.
    pub entries: Vec<Entry>,
    /// The repository's freed number at the same instant.
    pub freed: FreedNumber,
}

/// What a claim on a set of tags came to: all of it, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Each tag is pending with this attempt among its owners, but for `sealed`, which had the
    /// digest already. `fresh` have no other owner: nobody else holds them.
    Granted { sealed: Vec<Tag>, fresh: Vec<Tag> },
    /// These tags are pending or sealed with another digest; no entry was changed.
    Held(Vec<Holder>),
    /// A delete mark stands on the digest; no entry was changed.
    Deleting,
}

impl Claim {
    /// A claim by this attempt, from the tags' entries before it.
    pub fn granted<'a>(
        before: impl IntoIterator<Item = (&'a Tag, &'a Entry)>,
        attempt: AttemptId,
    ) -> Self {
        let (mut sealed, mut fresh) = (Vec::new(), Vec::new());
        for (tag, entry) in before {
            match entry {
                Entry::Absent => fresh.push(tag.clone()),
                // A repeated call finds what the first one made.
                Entry::Pending(pending) if pending.owners == [attempt] => fresh.push(tag.clone()),
                Entry::Pending(_) => {}
                Entry::Sealed(_) => sealed.push(tag.clone()),
            }
        }
        Self::Granted { sealed, fresh }
    }
}

/// A tag and its entry: what stands against a claim or a seal, or was superseded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub tag: Tag,
    pub entry: Entry,
}

impl Holder {
    /// Those of these entries that hold anything.
    pub fn present(tags: &[Tag], entries: Vec<Entry>) -> Vec<Self> {
        let pairs = tags.iter().cloned().zip(entries);
        let present = pairs.filter(|(_, entry)| *entry != Entry::Absent);
        present.map(|(tag, entry)| Self { tag, entry }).collect()
    }
}

/// What binding a set of tags for a push came to: all of it, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    Bound,
    /// These tags are pending or sealed with another digest; no entry was changed.
    Conflict(Vec<Holder>),
    /// These tags are not claimed by this attempt any more: they were freed, or the ledger lost them.
    /// `freed` is the repository's freed number at that instant. No entry was changed.
    Gone {
        tags: Vec<Tag>,
        freed: FreedNumber,
    },
    /// A tag's image was deleted since the look-up; no entry was changed.
    Freed,
    /// A delete mark stands on the digest; no entry was changed.
    Deleting,
}

/// What adopting a set of tags came to: all of it, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopt {
    Adopted,
    /// These tags are pending or sealed with another digest; no entry was changed.
    Conflict(Vec<Holder>),
    /// Something was freed in the repository since the look-up: the registry is to be asked again.
    Freed,
    /// A delete mark stands on the digest; no entry was changed.
    Deleting,
}

/// A delete mark was left on a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The tags that are pending or sealed with the digest. No other tag gets it while the mark stands.
    pub holders: Vec<Holder>,
    /// DELETEs of the digest that had no definitive answer by then.
    pub earlier: Vec<AttemptId>,
}

/// What the registry's answer to a DELETE does to the tags that have the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeleteEnd {
    /// The registry deleted nothing, or the DELETE was not sent.
    Refused,
    /// The registry deleted, and the entries stay as they are.
    Kept,
    /// The names stay bound, and are marked as deleted.
    Withdrawn,
    /// The names are free.
    Released,
}

/// What the end of a DELETE came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// These tags are withdrawn or free now.
    Done(Vec<Tag>),
    /// The mark does not stand any more: an operator cleared it, or the ledger lost it. Nothing was changed.
    NoMark,
}

/// Whether a release freed the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    Freed,
    /// The entry is not the one the token was taken from.
    Changed,
}

/// Who this ledger is. A different `id` is a different history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub id: String,
    pub created: Timestamp,
    /// The version of the stored format; see `docs/decisions/0004-ledger-format.md`.
    pub format: u32,
}

/// Which rules a proxy applies, and which loss it has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Of this proxy alone, anew at each start.
    pub proxy: String,
    /// The fingerprint of its rules.
    pub rules: String,
    /// The published loss after which it has offered what it remembers; empty for none.
    pub offered: String,
}

/// What a poll of a shared ledger brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// How often something was freed in the whole ledger.
    pub count: u64,
    /// The repositories in which something was freed since the count that was passed.
    pub freed: Vec<RepositoryKey>,
    /// Whether that was announced before it took place, so that it may take place later.
    pub early: bool,
    /// The name of the last loss that a proxy published; empty for none.
    pub loss: String,
}

/// What a proxy remembers of a tag, to restore a ledger that lost entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub tag: Tag,
    pub state: Offered,
    /// A sequence number of the repository at which this was so. The highest one of a tag is right.
    pub sequence: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    Bound { digest: Digest, origin: Origin, since: Timestamp, withdrawn: Option<Timestamp> },
    Freed,
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The ledger had something older, or nothing.
    Restored,
    /// The ledger has it already.
    Stands,
    /// The ledger has something newer.
    Newer,
}

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub repository: RepositoryKey,
    pub tag: Tag,
    pub entry: Entry,
}

/// Where a listing goes on: after this tag of this repository.
pub type Position = (RepositoryKey, Tag);

/// The ledger could not say. Nothing follows about what it holds: an operation that failed may
/// have happened, may happen later, or never.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unavailable {
    #[error("the ledger did not answer in time")]
    TimedOut,
    #[error("the ledger is closed")]
    Closed,
    #[error("the ledger failed: {0}")]
    Store(String),
}

/// The store of entries.
///
/// The contract, which `contract` holds every store to:
/// - **Atomic.** Each call takes effect at one instant between its start and its end, for its whole
///   set of tags, against all other calls of all processes that share the store. Calls on
///   different repositories need no order among each other.
/// - **Durable on return.** What `Ok` reports survives a crash of this process, and for
///   stores with replicas as many failures as they are configured for.
/// - **Safe to repeat.** A caller that got an error, or none, may repeat the call with the same
///   arguments. Stores don't retry by themselves; [`retrying::Guarded`] does, and bears the deadline.
/// - **Fresh.** `lookup` reads the store, never a cache.
/// - **Clockless.** No outcome depends on the time.
/// - An empty set of tags is legal and does nothing.
/// - Conflict is an outcome. `Err` only ever means "could not find out".
#[async_trait]
pub trait Ledger: Send + Sync {
    /// The entries of these tags, and the repository's freed number.
    async fn lookup(&self, repository: &RepositoryKey, tags: &[Tag])
    -> Result<Lookup, Unavailable>;

    /// Claims every tag for `digest` on behalf of one attempt, or none.
    ///
    /// Absent becomes pending with this owner; pending with the same digest gains the owner.
    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable>;

    /// Binds every tag to `digest` for a push whose PUT the registry has taken, or none.
    ///
    /// A tag must be pending with this digest and this attempt, or sealed with the digest. A withdrawn
    /// mark is cleared where nothing was freed since `freed` was read.
    async fn bind(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable>;

    /// Binds every tag to what the registry has shown under it, or none. `freed` is the number that the
    /// look-up *before* that look returned: where something was freed since, the look proves nothing.
    ///
    /// Absent and pending with the same digest become sealed; sealed with the same digest stays as it is.
    async fn adopt(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable>;

    /// Takes an attempt out of the owners of pending entries with this digest; an entry without
    /// owners becomes absent. Does nothing to any other entry.
    ///
    /// Only for an attempt that sent no PUT, or whose only PUT the registry has
    /// definitively refused: a PUT with an unknown outcome may still land.
    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable>;

    /// Frees a sealed name, if its entry is still the one the token was taken from.
    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable>;

    /// Marks tags sealed with this digest as deleted from the registry. The name stays bound.
    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable>;

    /// Drops these entries, pending or sealed, where the tag still has the life that was seen; returns
    /// those that were dropped.
    ///
    /// Only for a push that the rules leave mutable, by a client that may push: the tag goes
    /// where that push puts it, and a rule that makes it immutable again finds it there.
    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable>;

    /// Raises the freed number, and returns the entries of these tags and that number: the registry has moved
    /// the tags, and what was seen of them before proves nothing. No entry changes.
    ///
    /// For a push that the rules leave mutable, by a client that may push; and for a DELETE whose mark is gone.
    async fn invalidate(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable>;

    /// Leaves a delete mark on a digest, before a DELETE of it is sent. While it stands, no tag is claimed
    /// for the digest and none is adopted.
    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable>;

    /// Ends a DELETE by the registry's definitive word: in one transition takes these attempts out of the
    /// mark, and does `end` to those of these tags that have the digest then. The first attempt is the
    /// caller's own.
    ///
    /// A DELETE whose outcome is unknown is not ended: its mark stays.
    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable>;

    /// Those of these digests on which a delete mark stands.
    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable>;

    /// The delete marks of a repository.
    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable>;

    /// The tags pending or sealed with this digest.
    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable>;

    /// Up to `limit` entries in the order of their keys, after `after`. An entry that changes
    /// while pages are read may be seen as it was or as it is.
    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable>;

    /// Who the ledger is, having looked: an error means that it can't serve.
    async fn identity(&self) -> Result<Identity, Unavailable>;

    /// The repository's sequence number: the count of its transitions so far. A lower one than
    /// seen before proves that the store went back in time.
    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable>;

    /// Tells the other proxies of this ledger which rules this one applies, and returns what those
    /// said within the last minute. For an alarm; no decision depends on it.
    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable>;

    /// What other proxies of a shared ledger freed since the count of an earlier poll, and whether they
    /// have published a loss. Without a count, nothing is named as freed.
    async fn poll(&self, _last: Option<u64>) -> Result<News, Unavailable> {
        Ok(News::default())
    }

    /// Gives a ledger that lost entries back what a proxy remembers of a repository. Of all offers of a
    /// tag the one with the highest sequence number remains, in whichever order they come, and so does
    /// what was bound after the loss.
    async fn restore(
        &self,
        _repository: &RepositoryKey,
        _offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        Err(Unavailable::Store("this ledger loses no entries while it runs".into()))
    }

    /// The highest sequence number of the repository that an answer of the store had so far; 0 where the
    /// store does not keep it.
    fn heard(&self, _repository: &RepositoryKey) -> u64 {
        0
    }

    /// Whether several proxies may use it at once.
    fn is_shared(&self) -> bool {
        false
    }

    /// What this store is known to have lost since the process began; `None` for one that can't
    /// lose anything while it runs.
    fn losses(&self) -> Option<&Losses> {
        None
    }

    /// Ends the store: calls under way finish, later ones get [`Unavailable::Closed`], and whatever
    /// kept other processes out is let go. Safe to call more than once.
    async fn close(&self);
}
