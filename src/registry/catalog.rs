//! The registry's list of repositories (`/v2/_catalog`): not in the distribution spec, yet served by most
//! registries, to accounts that may see it.

use async_trait::async_trait;

use super::{Answer, Caller, Trouble};
use crate::name::RepositoryName;

/// A page of the catalogue, as far as this caller may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repositories<A = Answer> {
    Page {
        names: Vec<RepositoryName>,
        /// Names that are none by the spec: nobody can reach them through taglock.
        odd: Vec<String>,
        /// Where it goes on; `None` at its end.
        next: Option<String>,
    },
    /// 401, 403 or 429.
    Denied(A),
    Unclear(Trouble),
}

#[async_trait]
pub trait Catalogue: Send + Sync {
    /// The first page, or the one that another page's `next` names.
    async fn repositories(&self, caller: &Caller, page: Option<&str>) -> Repositories;
}
