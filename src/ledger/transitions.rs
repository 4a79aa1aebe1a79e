//! The operation table, once: what each operation makes of a set of tags.
//!
//! Pure functions of the tags' entries, the repository's freed number and the digest's delete mark. Stores
//! that keep entries themselves apply them inside their transactions; the Redis script is held to the
//! same table by the contract's tests.

use super::entry::{
    AttemptId, DeleteMark, Entry, FreedNumber, Origin, Pending, Sealed, Timestamp, Token,
};
use super::{Adopt, Bind, Claim, DeleteEnd, Holder, Offer, Offered, Release, Restored, codec};
use crate::name::{Digest, Tag};

/// When, and at which sequence number, a transition happens.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub now: Timestamp,
    pub sequence: u64,
}

/// One operation on a set of tags.
#[derive(Clone, Debug)]
pub enum Operation {
    Claim {
        digest: Digest,
        attempt: AttemptId,
    },
    Bind {
        digest: Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    },
    Adopt {
        digest: Digest,
        origin: Origin,
        freed: FreedNumber,
    },
    Abort {
        digest: Digest,
        attempt: AttemptId,
    },
    Release {
        token: Token,
    },
    Withdraw {
        digest: Digest,
    },
    /// The life of each tag that is to end, in the order of the tags.
    Supersede {
        lives: Vec<Token>,
    },
    EndDelete {
        digest: Digest,
        end: DeleteEnd,
    },
    Invalidate,
}

/// What a repository holds beside the tags' entries, as far as an operation depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    pub freed: FreedNumber,
    /// Whether a delete mark stands on the operation's digest.
    pub marked: bool,
}

/// What an operation comes to for its whole set of tags: all of it, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These tags get these entries, by their place in the set.
    Done { puts: Vec<(usize, Entry)>, frees: bool },
    /// These tags are pending or sealed with another digest.
    Standing(Vec<Holder>),
    /// These tags hold nothing that could be bound.
    Gone(Vec<Tag>),
    /// Something was freed in the repository since the number was read.
    Freed,
    /// A delete mark stands on the digest.
    Deleting,
}

/// What an operation makes of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// The entry already says so, or the operation has no business with it.
    Keep,
    Put(Entry),
    Stands,
    Gone,
    Freed,
    Deleting,
}

impl Operation {
    /// The digest whose delete mark decides, if one does.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Claim { digest, .. } | Self::Bind { digest, .. } | Self::Adopt { digest, .. } => {
                Some(digest)
            }
            _ => None,
        }
    }

    /// What the operation makes of these tags.
    pub fn on(&self, set: &[(Tag, Entry)], around: Around, stamp: Stamp) -> Outcome {
        let changes: Vec<_> = set
            .iter()
            .enumerate()
            .map(|(n, (_, entry))| self.change(n, entry, around, stamp))
            .collect();
        let of = |wanted: &Change| {
            let pairs = set.iter().zip(&changes).filter(|(_, change)| *change == wanted);
            pairs.map(|(pair, _)| pair.clone()).collect::<Vec<_>>()
        };
        let standing = of(&Change::Stands);
        if !standing.is_empty() {
            let holder = |(tag, entry)| Holder { tag, entry };
            return Outcome::Standing(standing.into_iter().map(holder).collect());
        }
        let gone = of(&Change::Gone);
        if !gone.is_empty() {
            return Outcome::Gone(gone.into_iter().map(|(tag, _)| tag).collect());
        }
        if changes.contains(&Change::Freed) {
            return Outcome::Freed;
        }
        if changes.contains(&Change::Deleting) {
            return Outcome::Deleting;
        }
        let frees = set.iter().zip(&changes).any(|((_, before), change)| match change {
            Change::Put(after) => frees(before, after),
            _ => false,
        });
        let puts = changes.into_iter().enumerate().filter_map(|(n, change)| match change {
            Change::Put(entry) => Some((n, entry)),
            _ => None,
        });
        Outcome::Done { puts: puts.collect(), frees: frees || self.frees_an_image() }
    }

    /// A registry that has deleted an image has freed something, whatever the tags are. So has one that has
    /// moved a tag that is bound to nothing.
    fn frees_an_image(&self) -> bool {
        match self {
            Self::EndDelete { end, .. } => *end != DeleteEnd::Refused,
            Self::Invalidate => true,
            _ => false,
        }
    }

    /// Whether other proxies need hear of what it frees: what they remember may be it.
    pub fn is_news(&self) -> bool {
        !matches!(self, Self::Invalidate)
    }

    fn change(&self, n: usize, entry: &Entry, around: Around, stamp: Stamp) -> Change {
        match self {
            Self::Claim { digest, attempt } => claim(entry, digest, *attempt, around, stamp),
            Self::Bind { digest, attempt, freed } => {
                bind(entry, digest, *attempt, *freed, around, stamp)
            }
            Self::Adopt { digest, origin, freed } => {
                adopt(entry, digest, *origin, *freed, around, stamp)
            }
            Self::Abort { digest, attempt } => abort(entry, digest, *attempt),
            Self::Release { token } => match entry {
                Entry::Sealed(sealed) if sealed.token() == *token => Change::Put(Entry::Absent),
                _ => Change::Keep,
            },
            Self::Withdraw { digest } => withdraw(entry, digest, stamp),
            Self::Supersede { lives } => match (entry.token(), lives.get(n)) {
                (Some(token), Some(life)) if token == *life => Change::Put(Entry::Absent),
                _ => Change::Keep,
            },
            Self::EndDelete { digest, end } => match end {
                DeleteEnd::Refused | DeleteEnd::Kept => Change::Keep,
                DeleteEnd::Withdrawn => withdraw(entry, digest, stamp),
                DeleteEnd::Released if entry.digest() == Some(digest) => Change::Put(Entry::Absent),
                DeleteEnd::Released => Change::Keep,
            },
            Self::Invalidate => Change::Keep,
        }
    }
}

/// Whether a transition frees something: a name, or the image of one.
fn frees(before: &Entry, after: &Entry) -> bool {
    match (before, after) {
        (Entry::Absent, _) => false,
        (_, Entry::Absent) => true,
        (Entry::Sealed(before), Entry::Sealed(after)) => {
            before.withdrawn.is_none() && after.withdrawn.is_some()
        }
        _ => false,
    }
}

fn sealed(digest: &Digest, origin: Origin, stamp: Stamp) -> Change {
    Change::Put(Entry::Sealed(Sealed {
        digest: *digest,
        origin,
        since: stamp.now,
        sequence: stamp.sequence,
        withdrawn: None,
    }))
}

fn claim(
    entry: &Entry,
    digest: &Digest,
    attempt: AttemptId,
    around: Around,
    stamp: Stamp,
) -> Change {
    match entry {
        Entry::Sealed(sealed) if sealed.digest == *digest => Change::Keep,
        Entry::Pending(pending) if pending.digest == *digest => {
            if pending.owners.contains(&attempt) {
                // A repeated call: it was granted before the mark was made.
                Change::Keep
            } else if around.marked {
                Change::Deleting
            } else {
                let mut joined = pending.clone();
                joined.owners.push(attempt);
                Change::Put(Entry::Pending(joined))
            }
        }
        Entry::Pending(_) | Entry::Sealed(_) => Change::Stands,
        Entry::Absent if around.marked => Change::Deleting,
        Entry::Absent => Change::Put(Entry::Pending(Pending {
            digest: *digest,
            owners: vec![attempt],
            since: stamp.now,
            sequence: stamp.sequence,
        })),
    }
}

/// A claim that this attempt holds keeps deletes of its digest out. A tag that was sealed before has no
/// such hold, so its image may have been deleted while its PUT was under way.
fn bind(
    entry: &Entry,
    digest: &Digest,
    attempt: AttemptId,
    freed: FreedNumber,
    around: Around,
    stamp: Stamp,
) -> Change {
    match entry {
        Entry::Pending(pending) if pending.digest != *digest => Change::Stands,
        Entry::Pending(pending) if pending.owners.contains(&attempt) => {
            sealed(digest, Origin::Push, stamp)
        }
        // Nor is it acknowledged for what the registry is about to delete.
        Entry::Absent | Entry::Pending(_) if around.marked => Change::Deleting,
        Entry::Absent | Entry::Pending(_) => Change::Gone,
        Entry::Sealed(sealed) if sealed.digest != *digest => Change::Stands,
        Entry::Sealed(_) if around.marked => Change::Deleting,
        Entry::Sealed(Sealed { withdrawn: None, .. }) => Change::Keep,
        Entry::Sealed(_) if around.freed != freed => Change::Freed,
        Entry::Sealed(sealed) => {
            // Under a sequence number of its own: a loss must not bring the mark back.
            let Stamp { sequence, .. } = stamp;
            Change::Put(Entry::Sealed(Sealed { withdrawn: None, sequence, ..sealed.clone() }))
        }
    }
}

/// A withdrawn mark stays: that the registry shows an image is no push.
fn adopt(
    entry: &Entry,
    digest: &Digest,
    origin: Origin,
    freed: FreedNumber,
    around: Around,
    stamp: Stamp,
) -> Change {
    match entry {
        Entry::Sealed(sealed) if sealed.digest == *digest => Change::Keep,
        Entry::Sealed(_) => Change::Stands,
        Entry::Pending(pending) if pending.digest != *digest => Change::Stands,
        Entry::Absent | Entry::Pending(_) if around.freed != freed => Change::Freed,
        Entry::Absent | Entry::Pending(_) if around.marked => Change::Deleting,
        Entry::Absent | Entry::Pending(_) => sealed(digest, origin, stamp),
    }
}

fn abort(entry: &Entry, digest: &Digest, attempt: AttemptId) -> Change {
    match entry {
        Entry::Pending(pending)
            if pending.digest == *digest && pending.owners.contains(&attempt) =>
        {
            let mut left = pending.clone();
            left.owners.retain(|owner| *owner != attempt);
            Change::Put(if left.owners.is_empty() { Entry::Absent } else { Entry::Pending(left) })
        }
        _ => Change::Keep,
    }
}

fn withdraw(entry: &Entry, digest: &Digest, stamp: Stamp) -> Change {
    match entry {
        Entry::Sealed(sealed) if sealed.digest == *digest && sealed.withdrawn.is_none() => {
            Change::Put(Entry::Sealed(Sealed { withdrawn: Some(stamp.now), ..sealed.clone() }))
        }
        _ => Change::Keep,
    }
}

impl Operation {
    /// The tags of these entries, and the operation that ends the lives that were seen.
    pub fn supersede(seen: &[Holder]) -> (Vec<Tag>, Self) {
        let lives = seen.iter().filter_map(|h| Some((h.tag.clone(), h.entry.token()?)));
        let (tags, lives) = lives.unzip();
        (tags, Self::Supersede { lives })
    }
}

impl Outcome {
    /// The tags that were changed, of this set as it was before.
    pub fn changed(&self, set: &[(Tag, Entry)]) -> Vec<Tag> {
        self.dropped(set).into_iter().map(|holder| holder.tag).collect()
    }

    /// The same with their entries before.
    pub fn dropped(&self, set: &[(Tag, Entry)]) -> Vec<Holder> {
        let Self::Done { puts, .. } = self else { return Vec::new() };
        let holder = |(n, _): &(usize, Entry)| {
            let (tag, entry) = set[*n].clone();
            Holder { tag, entry }
        };
        puts.iter().map(holder).collect()
    }
}

impl Claim {
    pub(crate) fn of(outcome: Outcome, before: &[(Tag, Entry)], attempt: AttemptId) -> Self {
        match outcome {
            Outcome::Standing(holders) => Self::Held(holders),
            Outcome::Deleting => Self::Deleting,
            Outcome::Done { .. } | Outcome::Gone(_) | Outcome::Freed => {
                Self::granted(before.iter().map(|(tag, entry)| (tag, entry)), attempt)
            }
        }
    }
}

impl Bind {
    pub(crate) fn of(outcome: Outcome, freed: FreedNumber) -> Self {
        match outcome {
            Outcome::Done { .. } => Self::Bound,
            Outcome::Standing(holders) => Self::Conflict(holders),
            Outcome::Gone(tags) => Self::Gone { tags, freed },
            Outcome::Freed => Self::Freed,
            Outcome::Deleting => Self::Deleting,
        }
    }
}

impl From<Outcome> for Adopt {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { .. } => Self::Adopted,
            Outcome::Standing(holders) => Self::Conflict(holders),
            // No adoption ends in `Gone`; the registry is asked again all the same.
            Outcome::Freed | Outcome::Gone(_) => Self::Freed,
            Outcome::Deleting => Self::Deleting,
        }
    }
}

impl From<Outcome> for Release {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done { puts, .. } if !puts.is_empty() => Self::Freed,
            _ => Self::Changed,
        }
    }
}

/// Whether the mark has the first of these attempts: the caller's own.
pub fn stands(mark: Option<&DeleteMark>, attempts: &[AttemptId]) -> bool {
    let own = attempts.first();
    mark.zip(own).is_some_and(|(mark, own)| mark.attempts.contains(own))
}

/// The mark with one DELETE more.
pub fn marked(mark: Option<DeleteMark>, attempt: AttemptId, now: Timestamp) -> DeleteMark {
    let mut mark = mark.unwrap_or(DeleteMark { attempts: Vec::new(), since: now });
    if !mark.attempts.contains(&attempt) {
        mark.attempts.push(attempt);
    }
    mark
}

/// The mark without these DELETEs; `None` without any.
pub fn unmarked(mark: Option<DeleteMark>, attempts: &[AttemptId]) -> Option<DeleteMark> {
    let mut mark = mark?;
    mark.attempts.retain(|attempt| !attempts.contains(attempt));
    (!mark.attempts.is_empty()).then_some(mark)
}

/// A tag's state while a ledger is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restoring {
    pub entry: Entry,
    /// Of an absent entry: the sequence number up to which the tag is known to be free.
    pub off: Option<u64>,
}

/// Orders the states of one tag; the greatest is the newest. Without a sequence number, nothing is known.
/// Where sequence numbers are equal, the rest makes the order complete, so that the result
/// depends on no order of the offers: withdrawn comes after bound, and free after both.
type Age = Option<(u64, u8, Vec<u8>)>;

fn age(sequence: u64, entry: &Entry) -> Age {
    let content = |digest: &Digest, origin: Option<Origin>| {
        let mut content = Vec::with_capacity(66);
        codec::put_digest(&mut content, digest);
        content.extend(origin.map(codec::origin_bits));
        content
    };
    Some(match entry {
        Entry::Pending(pending) => (sequence, 0, content(&pending.digest, None)),
        Entry::Sealed(sealed) => {
            let rank = if sealed.withdrawn.is_none() { 1 } else { 2 };
            (sequence, rank, content(&sealed.digest, Some(sealed.origin)))
        }
        Entry::Absent => (sequence, 3, Vec::new()),
    })
}

impl Restoring {
    fn age(&self) -> Age {
        match &self.entry {
            Entry::Absent => self.off.and_then(|off| age(off, &Entry::Absent)),
            entry => entry.token().and_then(|token| age(token.sequence, entry)),
        }
    }

    /// Takes an offer, if it is newer.
    pub fn offered(&mut self, offer: &Offer) -> Restored {
        let entry = offer.entry();
        let (own, offered) = (self.age(), age(offer.sequence, &entry));
        if own == offered {
            return Restored::Stands;
        }
        if own > offered {
            return Restored::Newer;
        }
        self.off = (entry == Entry::Absent).then_some(offer.sequence);
        self.entry = entry;
        Restored::Restored
    }
}

impl Offer {
    /// The entry that it stands for.
    pub fn entry(&self) -> Entry {
        match &self.state {
            Offered::Freed => Entry::Absent,
            Offered::Bound { digest, origin, since, withdrawn } => Entry::Sealed(Sealed {
                digest: *digest,
                origin: *origin,
                since: *since,
                sequence: self.sequence,
                withdrawn: *withdrawn,
            }),
        }
    }
}

/// Far above all that was ever offered, so that what is bound after a loss is newer than any late offer.
const ABOVE: u64 = 1_000_000;

/// A repository's sequence number after some offers, of which one may have changed an entry; and whether
/// it was raised, because the repository had lost transitions. The freed number is raised with it: no
/// repository's freed number is above its sequence number, so this one was never seen.
pub fn sequence_after(sequence: u64, offers: &[Offer], changed: bool) -> (u64, bool) {
    match offers.iter().map(|offer| offer.sequence).max() {
        Some(top) if sequence < top => (top + ABOVE, true),
        _ => (sequence + u64::from(changed), false),
    }
}

#[cfg(test)]
mod tests;
