//! The names of the OCI distribution spec, as types.
//!
//! A value of one of these types has passed its grammar: every constructor goes
//! through the one parser beside it, so nothing downstream checks again.

mod canonical;
mod digest;
mod repository;
mod tag;
mod upstream;

pub use canonical::{Alias, Mount, Naming, TagCase};
pub use digest::{Algorithm, Digest, DigestError};
pub use repository::{RepositoryName, RepositoryNameError};
pub use tag::{Tag, TagError};
pub use upstream::{UpstreamName, UpstreamNameError};

use std::fmt;

/// What stands after `/manifests/`: a tag or a digest (distribution spec, "Pulling manifests").
///
/// The two can't be confused: a digest has a colon and a tag can't have one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl From<Tag> for Reference {
    fn from(tag: Tag) -> Self {
        Self::Tag(tag)
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}
