//! Mutable tags that may move only to what a protected tag is bound to
//! (`except_must_be_bound`).

use super::delete::still_sealed;
use super::mutable::Coverage;
use super::survey::Missed;
use super::{Cargo, Content, Judge, Judged, Push, Undecided, Verdict};
use crate::ledger::{RepositoryKey, Unavailable};
use crate::name::{Digest, Reference, Tag};
use crate::registry::{Answer, Caller, Place, Sighting, Written};
use crate::rules::Rule;

impl Judge {
    /// A write that names no protected tag, under such a rule. As [`Judge::pass`], once its image
    /// is known to be bound.
    pub async fn pass_anchored(
        &self,
        rule: &Rule,
        push: &Push,
        by_digest: Option<&Digest>,
        cargo: Cargo,
    ) -> Judged {
        let anchored = push.mutable.iter().find(|tag| rule.must_be_bound(tag));
        if let Some(tag) = anchored
            && let Err(verdict) = self.check_bound(rule, push, tag, &cargo).await
        {
            return verdict.into();
        }
        self.pass(&push.repository, by_digest, &push.mutable, cargo, Coverage::Ruled).await
    }

    /// A write that names protected tags and such mutable ones: those come last, and only if a
    /// protected tag of the write is sealed by then.
    pub async fn push_anchored(&self, rule: &Rule, push: Push, cargo: Cargo) -> Judged {
        let (anchored, free) =
            push.mutable.iter().cloned().partition::<Vec<_>, _>(|tag| rule.must_be_bound(tag));
        let key = push.repository.clone();
        let protected = push.protected.clone();
        let mut judged = self.push(Push { mutable: free, ..push }, cargo.clone()).await;
        let Verdict::Admitted { answer, tags, sealed: true } = &mut judged.verdict else {
            return judged;
        };
        if !tags.iter().any(|tag| protected.contains(tag)) {
            return judged;
        }
        let moved = self.pass(&key, None, &anchored, cargo, Coverage::Ruled).await;
        judged.superseded.extend(moved.superseded);
        match moved.verdict {
            Verdict::Admitted { answer: own, tags: moved, .. } => {
                *answer = answer.take().or(own);
                tags.extend(moved);
            }
            // As a registry that takes a set would: what it refused is not echoed.
            Verdict::Relayed(_)
            | Verdict::Unseeing(_)
            | Verdict::Refused(_)
            | Verdict::Unbound(_) => {}
            Verdict::Undecided(undecided) => judged.verdict = Verdict::Undecided(undecided),
        }
        judged
    }

    /// Whether a protected tag of the repository is sealed with this image. Tags that were there
    /// before taglock count; before the ledger's word shows the registry must have let this client in.
    async fn check_bound(
        &self,
        rule: &Rule,
        push: &Push,
        tag: &Tag,
        cargo: &Cargo,
    ) -> Result<(), Verdict<Answer>> {
        let (key, content) = (&push.repository, &push.content);
        let sealed = self.is_sealed(key, rule, content).await.map_err(undecided)?;
        if !push.options.shown && !push.options.proven {
            self.let_push_in(push, tag, cargo).await?;
        }
        if sealed {
            return Ok(());
        }
        match self.adopt_all(&cargo.caller, key, rule).await {
            // Too many to look through: once it is pushed under such a tag, the ledger knows it.
            Ok(_) | Err(Missed::TooMany) => {}
            Err(Missed::Busy(tag)) => return Err(Verdict::Undecided(Undecided::Busy(tag))),
            Err(Missed::Denied(answer)) => return Err(Verdict::Relayed(answer)),
            Err(Missed::Registry(trouble)) => {
                return Err(Verdict::Undecided(Undecided::Registry(trouble)));
            }
            Err(Missed::Ledger(error)) => return Err(undecided(error)),
        }
        if self.is_sealed(key, rule, content).await.map_err(undecided)? {
            Ok(())
        } else {
            Err(Verdict::Unbound(tag.clone()))
        }
    }

    /// By what a push has to store first; where the registry takes nothing by digest, by a look at the
    /// tag.
    async fn let_push_in(
        &self,
        push: &Push,
        tag: &Tag,
        cargo: &Cargo,
    ) -> Result<(), Verdict<Answer>> {
        let name = &push.repository.repository;
        if !push.options.stage {
            let reference = Reference::Tag(tag.clone());
            return match self.registry.look(&cargo.caller, name, &reference).await {
                Sighting::Found(_) => Ok(()),
                Sighting::NotFound(answer)
                | Sighting::Denied(answer)
                | Sighting::Failed(answer) => Err(Verdict::Relayed(answer)),
                Sighting::Unclear(trouble) => Err(Verdict::Undecided(Undecided::Registry(trouble))),
            };
        }
        let place = Place::Digest(push.content.digest());
        match self.registry.put(&cargo.caller, name, place, &cargo.manifest).await {
            Written::Created(_) => Ok(()),
            Written::Denied(answer) | Written::Refused(answer) => Err(Verdict::Relayed(answer)),
            Written::Unknown(trouble) => Err(Verdict::Undecided(Undecided::Registry(trouble))),
        }
    }

    /// By the ledger alone. A pending tag does not count, nor one whose image was deleted.
    async fn is_sealed(
        &self,
        key: &RepositoryKey,
        rule: &Rule,
        content: &Content,
    ) -> Result<bool, Unavailable> {
        let bound = self.bound(key, rule, content.digests()).await?;
        Ok(bound.iter().any(|(_, entry)| still_sealed(entry)))
    }

    /// The same, without telling the ledger anything: for a rule that is not enforced.
    pub async fn would_be_bound(
        &self,
        caller: &Caller,
        key: &RepositoryKey,
        rule: &Rule,
        content: &Content,
    ) -> bool {
        let seen = match self.is_sealed(key, rule, content).await {
            Ok(true) => return true,
            _ => self.seen_all(caller, key, rule).await,
        };
        seen.is_ok_and(|seen| seen.iter().any(|(_, digest)| content.is(digest)))
    }
}

fn undecided(error: Unavailable) -> Verdict<Answer> {
    Verdict::Undecided(error.into())
}
