//! The end of a push: each tag is published once, with a permit, and what is in place is bound.

use super::permit::{Basis, Permit};
use super::push::{Machine, Phase};
use super::staging::Staging;
use super::step::{Action, Step, Undecided, Verdict};
use crate::ledger::{Bind, FreedNumber, Unavailable};
use crate::name::Tag;
use crate::registry::{Sighting, Trouble, Written};

/// A PUT by tag that was not answered with 201.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doubt<A> {
    Refused(A),
    Unknown(Trouble),
}

/// The outcomes of the permits so far, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Progress<A> {
    outcomes: Vec<Outcome<A>>,
    /// Tags whose claims are gone, and under which the registry shows the image.
    gone: Vec<Tag>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Outcome<A> {
    Created(A),
    /// Found in place, whatever the answer was.
    Confirmed,
    Refused(A),
    Unknown(Trouble),
}

impl<A> Progress<A> {
    fn unknown(&self) -> Option<Trouble> {
        self.outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Unknown(trouble) => Some(trouble.clone()),
            Outcome::Created(_) | Outcome::Confirmed | Outcome::Refused(_) => None,
        })
    }
}

impl<A: Clone> Machine<A> {
    // Step 5: each PUT once, and none again.

    pub(super) fn publish(&mut self) -> Step<A> {
        self.permits.extend(self.push.mutable.iter().map(Permit::mutable));
        self.publish_next(Progress { outcomes: Vec::new(), gone: Vec::new() })
    }

    fn publish_next(&mut self, progress: Progress<A>) -> Step<A> {
        match self.permits.get(progress.outcomes.len()).cloned() {
            Some(permit) => self.act(Phase::Publishing(progress), Action::Publish(permit)),
            None => self.disown(progress),
        }
    }

    pub(super) fn published(&mut self, mut progress: Progress<A>, written: Written<A>) -> Step<A> {
        let permit = &self.permits[progress.outcomes.len()];
        let doubt = match written {
            Written::Created(answer) => {
                progress.outcomes.push(Outcome::Created(answer));
                return self.publish_next(progress);
            }
            // Whether the tag is in place or not: who may not push is told so.
            Written::Denied(answer) => {
                progress.outcomes.push(Outcome::Refused(answer));
                return self.publish_next(progress);
            }
            Written::Refused(answer) => Doubt::Refused(answer),
            Written::Unknown(trouble) => Doubt::Unknown(trouble),
        };
        let look = Action::Look(permit.tag().clone());
        self.act(Phase::Checking(progress, doubt), look)
    }

    pub(super) fn checked(
        &mut self,
        mut progress: Progress<A>,
        doubt: Doubt<A>,
        seen: Sighting<A>,
    ) -> Step<A> {
        let basis = self.permits[progress.outcomes.len()].basis();
        let in_place = matches!(&seen, Sighting::Found(digest) if self.push.content.is(digest));
        progress.outcomes.push(match doubt {
            // A mutable tag may have been there before: its registry's no stands.
            Doubt::Refused(answer) if !in_place || basis == Basis::Mutable => {
                Outcome::Refused(answer)
            }
            Doubt::Unknown(trouble) if !in_place => Outcome::Unknown(trouble),
            // Registries with an immutability of their own refuse what is already so.
            Doubt::Refused(_) | Doubt::Unknown(_) => Outcome::Confirmed,
        });
        self.publish_next(progress)
    }

    /// The refused ones leave the claim: their only PUT has been definitively refused. One whose
    /// outcome is unknown stays among the owners for ever.
    fn disown(&mut self, progress: Progress<A>) -> Step<A> {
        let refused = |n: usize| matches!(progress.outcomes[n], Outcome::Refused(_));
        let tags = self.claimed_tags(refused);
        if tags.is_empty() || !self.push.options.abort {
            self.bind(progress)
        } else {
            self.abort(tags, Phase::Disowning(progress))
        }
    }

    // Step 6. A tag that was sealed before is asked for, too: it may have been freed, and bound anew.

    pub(super) fn bind(&mut self, progress: Progress<A>) -> Step<A> {
        let in_place =
            |n: usize| matches!(progress.outcomes[n], Outcome::Created(_) | Outcome::Confirmed);
        let permits = self.permits.iter().enumerate();
        let tags: Vec<_> = permits
            .filter(|(n, permit)| permit.basis() != Basis::Mutable && in_place(*n))
            .map(|(_, permit)| permit.tag().clone())
            .filter(|tag| !progress.gone.contains(tag))
            .collect();
        if tags.is_empty() {
            return self.conclude(progress);
        }
        let (digest, attempt) = (*self.push.content.digest(), self.push.attempt);
        let bind = Action::Bind { tags, digest, attempt, freed: self.freed };
        self.act(Phase::Binding(progress), bind)
    }

    pub(super) fn bound(
        &mut self,
        progress: Progress<A>,
        bound: Result<Bind, Unavailable>,
    ) -> Step<A> {
        match bound {
            Ok(Bind::Bound) => self.conclude(progress),
            // Its name was freed after the PUT took place, or the ledger has lost the claim and something
            // else was freed.
            Ok(Bind::Gone { tags, freed }) if self.was_freed(freed) => self.confirm(progress, tags),
            Ok(Bind::Gone { mut tags, .. }) => self.claim_lost(&progress, tags.pop()),
            // A PUT whose outcome is unknown must not be forgotten over the others.
            Ok(Bind::Conflict(_) | Bind::Freed | Bind::Deleting)
                if progress.unknown().is_some() =>
            {
                self.conclude(progress)
            }
            // Freed, and bound to another image since; or deleted, and to be published again.
            Ok(Bind::Conflict(_) | Bind::Freed) => self.look_up(),
            Ok(Bind::Deleting) => self.wait_for_delete(),
            Err(error) => self.undecided(Undecided::LedgerUnknown(error)),
        }
    }

    fn was_freed(&self, now: FreedNumber) -> bool {
        now > self.freed
    }

    /// Looks at the last of these tags, whose claims are gone. The push is acknowledged only for what the
    /// registry shows then: bound to nothing, it is bound when somebody looks at it.
    fn confirm(&mut self, progress: Progress<A>, gone: Vec<Tag>) -> Step<A> {
        match gone.last().cloned() {
            Some(tag) => self.act(Phase::Confirming(progress, gone), Action::Look(tag)),
            None => self.bind(progress),
        }
    }

    pub(super) fn confirmed(
        &mut self,
        mut progress: Progress<A>,
        mut gone: Vec<Tag>,
        seen: Sighting<A>,
    ) -> Step<A> {
        let tag = gone.pop();
        if !matches!(seen, Sighting::Found(digest) if self.push.content.is(&digest)) {
            return self.claim_lost(&progress, tag);
        }
        progress.gone.extend(tag);
        self.confirm(progress, gone)
    }

    /// The registry took the image under a claim that is no more, and nothing shows what became of it.
    fn claim_lost(&mut self, progress: &Progress<A>, tag: Option<Tag>) -> Step<A> {
        self.undecided(match (progress.unknown(), tag) {
            (None, Some(tag)) => Undecided::ClaimLost(tag),
            (trouble, _) => Undecided::OutcomeUnknown(trouble.unwrap_or(Trouble::Internal)),
        })
    }

    fn conclude(&mut self, progress: Progress<A>) -> Step<A> {
        let sealed = progress.gone.is_empty();
        let mut answer = None;
        let mut tags = Vec::new();
        let mut refusal = None;
        for (permit, outcome) in self.permits.iter().zip(progress.outcomes) {
            match outcome {
                Outcome::Created(created) => {
                    answer.get_or_insert(created);
                    tags.push(permit.tag().clone());
                }
                Outcome::Confirmed => tags.push(permit.tag().clone()),
                Outcome::Refused(refused) => {
                    refusal.get_or_insert(refused);
                }
                Outcome::Unknown(trouble) => {
                    return self.undecided(Undecided::OutcomeUnknown(trouble));
                }
            }
        }
        match refusal {
            Some(refusal) if tags.is_empty() => self.relay(refusal),
            _ => {
                let staged = match &self.staging {
                    Staging::Done(staged, _) => Some(staged.clone()),
                    Staging::Not => None,
                };
                self.done(Verdict::Admitted { answer: answer.or(staged), tags, sealed })
            }
        }
    }
}
