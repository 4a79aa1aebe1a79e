//! The right to publish a tag, as a value.

use crate::ledger::{Claim, Entry};
use crate::name::{Digest, Tag};

/// That the ledger holds `digest` for `tag`, or that no rule protects it. A PUT by tag is made
/// from nothing else, so one that was never judged does not compile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permit {
    tag: Tag,
    basis: Basis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    /// Sealed with the digest before: the PUT writes what is there, or heals it.
    Sealed,
    /// This attempt is among the owners of the claim.
    Claimed,
    /// A mutable tag, published along with the set it came in.
    Mutable,
}

impl Permit {
    /// From an entry that was just read: only one sealed with this content's digest permits.
    pub(super) fn of_entry(tag: &Tag, entry: &Entry, is: impl Fn(&Digest) -> bool) -> Option<Self> {
        match entry {
            Entry::Sealed(sealed) if is(&sealed.digest) => {
                Some(Self { tag: tag.clone(), basis: Basis::Sealed })
            }
            _ => None,
        }
    }

    /// From a claim on these tags: all of them, or none.
    pub(super) fn of_claim(tags: &[Tag], claim: &Claim) -> Vec<Self> {
        match claim {
            Claim::Held(_) | Claim::Deleting => Vec::new(),
            Claim::Granted { sealed, .. } => {
                let basis = |tag| if sealed.contains(tag) { Basis::Sealed } else { Basis::Claimed };
                tags.iter().map(|tag| Self { tag: tag.clone(), basis: basis(tag) }).collect()
            }
        }
    }

    /// For a tag that the rules leave mutable.
    pub(super) fn mutable(tag: &Tag) -> Self {
        Self { tag: tag.clone(), basis: Basis::Mutable }
    }

    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    pub fn basis(&self) -> Basis {
        self.basis
    }
}
