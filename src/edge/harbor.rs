//! Harbor's own API where tags are immutable: what could move or delete one there is refused, and
//! told of the way through `/v2/`, which is judged.

use super::refusal::Refusal;
use crate::route::Harbor;
use crate::rules::{Mutability, Rules};

const PUSH: &str = "push the image under that tag instead";
const DELETE: &str = "its manifest can be deleted below `/v2/`, as far as the rule lets it";
const ELSEWHERE: &str = "that is done on Harbor's own address";

/// What stands against a write to it.
pub(super) fn against(harbor: &Harbor, rules: &Rules) -> Option<Refusal> {
    let (repository, what, instead) = match harbor {
        Harbor::Other => return None,
        // Whichever project it is, some repository of it might have immutable tags.
        Harbor::DeleteProject => {
            let any = rules.iter().any(|rule| rule.protects() && rule.enforce);
            let message = "no project can be deleted here: some repositories have immutable tags";
            return any.then(|| Refusal::harbor(format!("{message}; {ELSEWHERE}")));
        }
        Harbor::DeleteTag { repository, tag } => {
            let rule = rules.protecting(repository)?;
            if rule.mutability_of(tag) == Mutability::Mutable {
                return None;
            }
            (repository, "this tag can't be deleted by Harbor's API", DELETE)
        }
        Harbor::DeleteArtifact { repository, .. } => {
            (repository, "no artifact can be deleted by Harbor's API", DELETE)
        }
        Harbor::DeleteRepository(repository) => {
            (repository, "it can't be deleted by Harbor's API", ELSEWHERE)
        }
        Harbor::CreateTag(repository) => (repository, "no tag can be set by Harbor's API", PUSH),
        // Harbor brings the tags of the source along, and moves those that are there.
        Harbor::Copy(repository) => {
            (repository, "no artifact can be copied into it by Harbor's API", PUSH)
        }
    };
    rules.protecting(repository)?;
    let message = format!("The '{repository}' repository has immutable tags: {what}; {instead}.");
    Some(Refusal::harbor(message))
}
