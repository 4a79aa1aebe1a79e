use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::name::Digest;

/// One attempt to bind a tag: 16 random bytes, made for one push and never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId([u8; 16]);

impl AttemptId {
    pub const SIZE: usize = 16;

    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().into_bytes())
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Another attempt of the same request: no two requests share any of theirs, since the
    /// random part stays.
    #[must_use]
    pub fn successor(mut self) -> Self {
        self.0[15] = self.0[15].wrapping_add(2);
        self
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whole seconds since 1970. For people and audits; no decision depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const EPOCH: Self = Self(0);

    /// What the codec can hold: five bytes, past the year 36,000.
    pub const MAX: u64 = (1 << 40) - 1;

    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_seconds(since.as_secs())
    }

    pub fn from_seconds(seconds: u64) -> Self {
        Self(seconds.min(Self::MAX))
    }

    pub fn seconds(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The formatter knows the years up to 9999.
        let seconds = self.0.min(253_402_300_799);
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).fmt(f)
    }
}

/// How a tag came to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A push through a proxy.
    Push,
    /// It was in the registry when a push, or an import, looked.
    Import,
    /// A pull saw it for the first time.
    FirstSight,
}

impl Origin {
    pub const ALL: [Self; 3] = [Self::Push, Self::Import, Self::FirstSight];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Import => "import",
            Self::FirstSight => "first-sight",
        }
    }
}

/// What the ledger holds for a tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    Absent,
    Pending(Pending),
    Sealed(Sealed),
}

impl Entry {
    /// The digest it is, or is about to be, bound to.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Absent => None,
            Self::Pending(pending) => Some(&pending.digest),
            Self::Sealed(sealed) => Some(&sealed.digest),
        }
    }

    /// Which life of the name this is; `None` where it has none.
    pub fn token(&self) -> Option<Token> {
        match self {
            Self::Absent => None,
            Self::Pending(Pending { since, sequence, .. }) => {
                Some(Token { since: *since, sequence: *sequence })
            }
            Self::Sealed(sealed) => Some(sealed.token()),
        }
    }
}

/// How often a name or an image of a repository was freed: by a release, a delete, a withdrawal, a
/// superseded entry, or a claim that was aborted to nothing. No clock: only equality counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FreedNumber(pub u64);

/// The losses stand above the count.
const LOSSES: u32 = 40;

impl FreedNumber {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number for a caller that knows of so many losses of the ledger. A count that was lost may begin
    /// anew: the same count after another loss is another number.
    #[must_use]
    pub fn after(self, losses: u64) -> Self {
        Self(self.0 | losses << LOSSES)
    }

    /// The store's own count, if the number is from after the last of so many losses.
    pub fn since(self, losses: u64) -> Option<Self> {
        (self.0 >> LOSSES == losses).then_some(Self(self.0 & ((1 << LOSSES) - 1)))
    }
}

/// A DELETE of a digest is under way, or its outcome is unknown. While it stands, no tag is claimed
/// for the digest, and none is adopted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeleteMark {
    /// The DELETEs that have had no definitive answer; never empty.
    pub attempts: Vec<AttemptId>,
    pub since: Timestamp,
}

/// Claimed: every PUT under way for the tag carries this digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    pub digest: Digest,
    /// The attempts that hold the claim and have not been refused; never empty.
    pub owners: Vec<AttemptId>,
    pub since: Timestamp,
    /// The repository's sequence number when the claim was made.
    pub sequence: u64,
}

/// Bound, until an operator releases the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sealed {
    pub digest: Digest,
    pub origin: Origin,
    pub since: Timestamp,
    /// The repository's sequence number when it was sealed.
    pub sequence: u64,
    /// When it was deleted from the registry through a proxy, if it was.
    pub withdrawn: Option<Timestamp>,
}

impl Sealed {
    pub fn token(&self) -> Token {
        Token { since: self.since, sequence: self.sequence }
    }
}

/// Names one life of an entry, so that what frees it can't free a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    pub since: Timestamp,
    pub sequence: u64,
}
