//! Targets of taglock's own requests: built from parsed values, never from what a client sent.

use std::sync::Arc;

use super::Client;
use crate::name::{Digest, Naming, Reference, RepositoryName};

impl Client {
    /// For a registry that knows things by several names, or serves its API below other paths.
    #[must_use]
    pub fn naming(self, naming: Arc<Naming>) -> Self {
        Self { naming, ..self }
    }

    pub(super) fn manifest_path(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> String {
        format!("{}/manifests/{reference}", self.naming.place(repository))
    }

    /// Where the registry has a manifest of this digest, for a request in bytes.
    pub fn manifest_target(
        &self,
        repository: &RepositoryName,
        digest: &str,
        namespace: Option<&str>,
    ) -> String {
        let mut target = self.naming.place(repository);
        target.reserve(digest.len() + 64);
        for part in ["/manifests/", digest] {
            target.push_str(part);
        }
        if let Some(namespace) = namespace {
            for part in ["?ns=", namespace] {
                target.push_str(part);
            }
        }
        target
    }
}

pub(super) fn with_query(path: &str, digest: Option<&Digest>, namespace: Option<&str>) -> String {
    let digest = digest.map(|digest| format!("digest={digest}"));
    let namespace = namespace.map(|namespace| format!("ns={namespace}"));
    let pairs: Vec<_> = [digest, namespace].into_iter().flatten().collect();
    let separator = if path.contains('?') { '&' } else { '?' };
    if pairs.is_empty() { path.to_owned() } else { format!("{path}{separator}{}", pairs.join("&")) }
}
