//! The operation table, once: what each operation makes of an entry.
//!
//! Pure functions of one tag's entry. Stores that keep entries themselves apply them inside
//! their transactions; the Redis script is held to the same table by the contract's tests.

use super::entry::{AttemptId, Entry, Origin, Pending, Sealed, Timestamp, Token};
use crate::name::Digest;

/// When, and at which sequence number, a transition happens.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub now: Timestamp,
    pub sequence: u64,
}

/// What an operation makes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The entry already says so, or the operation has no business with it.
    Keep,
    Put(Entry),
    /// It stands with another digest: the operation on the whole set must not take place.
    Stands,
}

pub fn claim(entry: &Entry, digest: &Digest, attempt: AttemptId, stamp: Stamp) -> Change {
    match entry {
        Entry::Absent => Change::Put(Entry::Pending(Pending {
            digest: *digest,
            owners: vec![attempt],
            since: stamp.now,
            sequence: stamp.sequence,
        })),
        Entry::Pending(pending) if pending.digest == *digest => {
            if pending.owners.contains(&attempt) {
                Change::Keep
            } else {
                let mut joined = pending.clone();
                joined.owners.push(attempt);
                Change::Put(Entry::Pending(joined))
            }
        }
        Entry::Sealed(sealed) if sealed.digest == *digest => Change::Keep,
        Entry::Pending(_) | Entry::Sealed(_) => Change::Stands,
    }
}

pub fn seal(entry: &Entry, digest: &Digest, origin: Origin, stamp: Stamp) -> Change {
    match entry {
        Entry::Sealed(sealed) if sealed.digest == *digest => match sealed.withdrawn {
            None => Change::Keep,
            Some(_) => Change::Put(Entry::Sealed(Sealed { withdrawn: None, ..sealed.clone() })),
        },
        Entry::Pending(pending) if pending.digest != *digest => Change::Stands,
        Entry::Sealed(_) => Change::Stands,
        Entry::Absent | Entry::Pending(_) => Change::Put(Entry::Sealed(Sealed {
            digest: *digest,
            origin,
            since: stamp.now,
            sequence: stamp.sequence,
            withdrawn: None,
        })),
    }
}

pub fn abort(entry: &Entry, digest: &Digest, attempt: AttemptId) -> Change {
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

pub fn release(entry: &Entry, token: Token) -> Change {
    match entry {
        Entry::Sealed(sealed) if sealed.token() == token => Change::Put(Entry::Absent),
        _ => Change::Keep,
    }
}

pub fn withdraw(entry: &Entry, digest: &Digest, stamp: Stamp) -> Change {
    match entry {
        Entry::Sealed(sealed) if sealed.digest == *digest && sealed.withdrawn.is_none() => {
            Change::Put(Entry::Sealed(Sealed { withdrawn: Some(stamp.now), ..sealed.clone() }))
        }
        _ => Change::Keep,
    }
}

/// Whatever it was: nothing stands against it.
pub fn supersede(entry: &Entry) -> Change {
    match entry {
        Entry::Absent => Change::Keep,
        Entry::Pending(_) | Entry::Sealed(_) => Change::Put(Entry::Absent),
    }
}
