//! Entries as bytes, the same in every store.
//!
//! | entry | bytes |
//! |---|---|
//! | sealed | `S`, flags, since (5), sequence (varint), withdrawn (5, if flagged), digest |
//! | pending | `P`, since (5), sequence (varint), digest, owners (16 each) |
//! | a digest | algorithm (1), hash |
//!
//! A sealed sha256 entry takes 41 to 45 bytes and a pending one 56 to 60: at most 64 keeps a
//! Redis hash in its compact form. Numbers are big-endian.

use super::entry::{AttemptId, DeleteMark, Entry, Origin, Pending, Sealed, Timestamp, Token};
use crate::name::{Algorithm, Digest};

/// The bytes are no entry: the store was damaged, or written by something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry of the ledger can't be read")]
pub struct Corrupt;

const SEALED: u8 = b'S';
const PENDING: u8 = b'P';
const ORIGIN: u8 = 0b0000_0011;
const WITHDRAWN: u8 = 0b1000_0000;

/// The stored form, `None` for an absent entry, which is not stored.
pub fn encode(entry: &Entry) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    match entry {
        Entry::Absent => return None,
        Entry::Sealed(sealed) => {
            let origin = origin_bits(sealed.origin);
            let withdrawn = if sealed.withdrawn.is_some() { WITHDRAWN } else { 0 };
            out.extend([SEALED, origin | withdrawn]);
            put_time(&mut out, sealed.since);
            put_varint(&mut out, sealed.sequence);
            if let Some(withdrawn) = sealed.withdrawn {
                put_time(&mut out, withdrawn);
            }
            put_digest(&mut out, &sealed.digest);
        }
        Entry::Pending(pending) => {
            out.push(PENDING);
            put_time(&mut out, pending.since);
            put_varint(&mut out, pending.sequence);
            put_digest(&mut out, &pending.digest);
            for owner in &pending.owners {
                out.extend(owner.as_bytes());
            }
        }
    }
    Some(out)
}

pub fn decode(bytes: &[u8]) -> Result<Entry, Corrupt> {
    let mut rest = bytes;
    match take(&mut rest, 1)?[0] {
        SEALED => {
            let flags = take(&mut rest, 1)?[0];
            let origin = match flags & ORIGIN {
                0 => Origin::Push,
                1 => Origin::Import,
                2 => Origin::FirstSight,
                _ => return Err(Corrupt),
            };
            if flags & !(ORIGIN | WITHDRAWN) != 0 {
                return Err(Corrupt);
            }
            let since = take_time(&mut rest)?;
            let sequence = take_varint(&mut rest)?;
            let withdrawn = if flags & WITHDRAWN == 0 { None } else { Some(take_time(&mut rest)?) };
            let digest = take_digest(&mut rest)?;
            if !rest.is_empty() {
                return Err(Corrupt);
            }
            Ok(Entry::Sealed(Sealed { digest, origin, since, sequence, withdrawn }))
        }
        PENDING => {
            let since = take_time(&mut rest)?;
            let sequence = take_varint(&mut rest)?;
            let digest = take_digest(&mut rest)?;
            let owners = attempts(rest)?;
            Ok(Entry::Pending(Pending { digest, owners, since, sequence }))
        }
        _ => Err(Corrupt),
    }
}

/// The stored form of a delete mark: since (5), then each attempt (16).
pub fn encode_mark(mark: &DeleteMark) -> Vec<u8> {
    let mut out = time_bytes(mark.since);
    for attempt in &mark.attempts {
        out.extend(attempt.as_bytes());
    }
    out
}

/// # Errors
/// When the bytes are no delete mark.
pub fn decode_mark(bytes: &[u8]) -> Result<DeleteMark, Corrupt> {
    let mut rest = bytes;
    let since = take_time(&mut rest)?;
    Ok(DeleteMark { attempts: attempts(rest)?, since })
}

/// At least one attempt, whole.
fn attempts(bytes: &[u8]) -> Result<Vec<AttemptId>, Corrupt> {
    let (attempts, odd) = bytes.as_chunks::<{ AttemptId::SIZE }>();
    if attempts.is_empty() || !odd.is_empty() {
        return Err(Corrupt);
    }
    Ok(attempts.iter().copied().map(AttemptId::from_bytes).collect())
}

/// A digest as it stands in an index or in a field's name.
///
/// # Errors
/// When the bytes are no digest.
pub fn decode_digest(bytes: &[u8]) -> Result<Digest, Corrupt> {
    let mut rest = bytes;
    let digest = take_digest(&mut rest)?;
    if rest.is_empty() { Ok(digest) } else { Err(Corrupt) }
}

/// A digest as stored in entries and in indexes: the algorithm's byte, then the hash.
pub fn put_digest(out: &mut Vec<u8>, digest: &Digest) {
    out.push(match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    });
    out.extend(digest.hash());
}

/// The origin as it stands in a sealed entry's flags.
pub fn origin_bits(origin: Origin) -> u8 {
    match origin {
        Origin::Push => 0,
        Origin::Import => 1,
        Origin::FirstSight => 2,
    }
}

/// A time as stored.
pub fn time_bytes(time: Timestamp) -> Vec<u8> {
    let mut out = Vec::with_capacity(5);
    put_time(&mut out, time);
    out
}

/// A token as its two parts stand in a sealed entry.
pub fn token_bytes(token: Token) -> Vec<u8> {
    let mut out = time_bytes(token.since);
    put_varint(&mut out, token.sequence);
    out
}

fn take_digest(rest: &mut &[u8]) -> Result<Digest, Corrupt> {
    let algorithm = match take(rest, 1)?[0] {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return Err(Corrupt),
    };
    Digest::from_hash(algorithm, take(rest, algorithm.size())?).ok_or(Corrupt)
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend(&time.seconds().to_be_bytes()[3..]);
}

fn take_time(rest: &mut &[u8]) -> Result<Timestamp, Corrupt> {
    let seconds = take(rest, 5)?.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Ok(Timestamp::from_seconds(seconds))
}

/// Seven bits a byte, the lowest first.
fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Corrupt> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if bits << shift >> shift != bits {
            return Err(Corrupt);
        }
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Corrupt)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], Corrupt> {
    let (taken, left) = rest.split_at_checked(count).ok_or(Corrupt)?;
    *rest = left;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digests() -> impl Strategy<Value = Digest> {
        (any::<bool>(), any::<[u8; 8]>()).prop_map(|(long, seed)| {
            Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &seed)
        })
    }

    fn times() -> impl Strategy<Value = Timestamp> {
        (0..=Timestamp::MAX).prop_map(Timestamp::from_seconds)
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let origins =
            prop_oneof![Just(Origin::Push), Just(Origin::Import), Just(Origin::FirstSight)];
        let sealed = (digests(), origins, times(), any::<u64>(), prop::option::of(times()))
            .prop_map(|(digest, origin, since, sequence, withdrawn)| {
                Entry::Sealed(Sealed { digest, origin, since, sequence, withdrawn })
            });
        let owners = prop::collection::vec(any::<[u8; 16]>().prop_map(AttemptId::from_bytes), 1..4);
        let pending = (digests(), owners, times(), any::<u64>()).prop_map(
            |(digest, owners, since, sequence)| {
                Entry::Pending(Pending { digest, owners, since, sequence })
            },
        );
        prop_oneof![sealed, pending]
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was(entry in entries()) {
            let bytes = encode(&entry).unwrap();
            prop_assert_eq!(decode(&bytes), Ok(entry));
            // No proper prefix is an entry, but for a pending one that loses whole owners.
            for cut in 0..bytes.len() {
                if let Ok(shorter) = decode(&bytes[..cut]) {
                    prop_assert!(matches!(shorter, Entry::Pending(_)));
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(entry) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&entry).unwrap()), Ok(entry));
            }
        }
    }

    #[test]
    fn usual_entries_stay_within_the_bound_of_a_compact_redis_hash() {
        let digest = Digest::of(Algorithm::Sha256, b"");
        let since = Timestamp::from_seconds(Timestamp::MAX);
        let sequence = (1 << 35) - 1;
        let sealed = Entry::Sealed(Sealed {
            digest,
            origin: Origin::Push,
            since,
            sequence,
            withdrawn: Some(since),
        });
        let owners = vec![AttemptId::random()];
        let pending = Entry::Pending(Pending { digest, owners, since, sequence });
        assert!(encode(&sealed).unwrap().len() <= 64);
        assert!(encode(&pending).unwrap().len() <= 64);
        assert_eq!(encode(&Entry::Absent), None);
    }
}
