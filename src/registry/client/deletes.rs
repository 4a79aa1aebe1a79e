//! DELETE of a manifest or a tag.

use http::Method;

use super::{Client, MAX_ANSWER, Repeat, request, with_query};
use crate::name::{Reference, RepositoryName};
use crate::registry::{Answer, Caller, Deleted, Trouble};

impl Client {
    pub(super) async fn delete_manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Deleted {
        let path = self.manifest_path(repository, reference);
        let target = with_query(&path, None, caller.namespace.as_deref());
        let sending = async {
            let request = request(&Method::DELETE, &target, &caller.headers)?;
            // A first one that the registry carries out late would delete what was pushed after the second.
            self.exchange(&self.peers, request, None, MAX_ANSWER, Repeat::Never).await
        };
        match sending.await {
            Ok(answer) => deleted(answer),
            Err(trouble) => Deleted::Unknown(trouble),
        }
    }
}

/// What the answer says of the deletion.
pub(super) fn deleted(answer: Answer) -> Deleted {
    match answer.status.as_u16() {
        200..=299 => Deleted::Done(answer),
        // 408 is no word about the request.
        408 | 500.. => Deleted::Unknown(Trouble::from(&answer)),
        _ => Deleted::Refused(answer),
    }
}
