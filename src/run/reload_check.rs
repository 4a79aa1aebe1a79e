//! After a reload that protects more: entries from earlier days are compared with the registry.
//!
//! Differences are told, never adopted: the ledger's word stands, and pulls go by it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::ledger::{Entry, Ledger, Listed};
use crate::name::{Reference, RepositoryName, Tag};
use crate::registry::{Caller, Registry, Sighting};
use crate::rules::{Mutability, Rules};

const PAGE: usize = 500;
/// Between two looks: the registry has others to serve.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Verify {
    pub ledger: Arc<dyn Ledger>,
    pub registry: Arc<dyn Registry>,
    /// The registry's own authority.
    pub host: String,
}

impl Verify {
    /// Looks at every entry that the new rules protect and the old ones did not.
    pub async fn widened(&self, old: &Rules, new: &Rules) {
        let (mut equal, mut differ, mut unseen) = (0_u64, 0_u64, 0_u64);
        let caller = Caller::taglock(&self.host);
        let mut after = None;
        loop {
            let page = match self.ledger.list(after.as_ref(), PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(%error, "entries could not be compared with the registry");
                    return;
                }
            };
            let Some(last) = page.last() else { break };
            after = Some((last.repository.clone(), last.tag.clone()));
            for Listed { repository, tag, entry } in page {
                let name = &repository.repository;
                if protects(old, name, &tag) || !protects(new, name, &tag) {
                    continue;
                }
                let Entry::Sealed(sealed) = entry else { continue };
                let reference = Reference::Tag(tag.clone());
                match self.registry.look(&caller, name, &reference).await {
                    Sighting::Found(digest) if digest == sealed.digest => equal += 1,
                    Sighting::Found(digest) => {
                        differ += 1;
                        tracing::warn!(
                            %repository, %tag, ledger = %sealed.digest, registry = %digest,
                            "the tag is protected again, and the registry has another image under it"
                        );
                    }
                    Sighting::NotFound(_)
                    | Sighting::Denied(_)
                    | Sighting::Failed(_)
                    | Sighting::Unclear(_) => {
                        unseen += 1;
                    }
                }
                sleep(PAUSE).await;
            }
        }
        if equal + differ + unseen > 0 {
            tracing::info!(
                equal,
                differ,
                unseen,
                "entries of newly protected tags were compared with the registry"
            );
        }
    }
}

fn protects(rules: &Rules, repository: &RepositoryName, tag: &Tag) -> bool {
    let rule = rules.protecting(repository);
    rule.is_some_and(|rule| rule.mutability_of(tag) == Mutability::Immutable)
}
