//! Step 2 of a push: the manifest is put by its digest. That is harmless, as it moves no tag, and it runs
//! the registry's own authorisation and validation.

use super::push::{Machine, Phase};
use super::rival::Rival;
use super::step::{Action, Conflict, Options, RollForward, Step, Undecided};
use crate::name::Digest;
use crate::registry::{Sighting, Written};

/// Whether the manifest is stored by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Staging<A> {
    Not,
    /// With the registry's 201, under this digest.
    Done(A, Digest),
}

/// What staging was for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Next {
    LookUp,
    Claim,
    Refuse(Conflict),
    Roll(Rival),
}

impl<A: Clone> Machine<A> {
    /// Whether the registry has not lately let this client push, and can be asked by what is stored.
    pub fn is_unproven(&self) -> bool {
        self.push.options.stage && !self.push.options.proven
    }

    /// The same, where the registry takes nothing by digest: then it is asked by a look.
    pub fn is_unasked(&self) -> bool {
        let Options { stage, proven, shown, .. } = self.push.options;
        !stage && !proven && !shown
    }

    pub(super) fn asked(&mut self, seen: Sighting<A>) -> Step<A> {
        match seen {
            Sighting::Found(_) | Sighting::NotFound(_) => {
                self.push.options.proven = true;
                self.act(Phase::LookingUp, Action::Lookup)
            }
            Sighting::Denied(answer) | Sighting::Failed(answer) => self.relay(answer),
            Sighting::Unclear(trouble) => self.undecided(Undecided::Registry(trouble)),
        }
    }

    pub(super) fn stage(&mut self, next: Next) -> Step<A> {
        match (&self.staging, next) {
            (Staging::Not, next) => self.act(Phase::Staging(next), Action::Stage),
            (Staging::Done(..), Next::LookUp) => self.act(Phase::LookingUp, Action::Lookup),
            (Staging::Done(..), Next::Claim) => self.claim(),
            (Staging::Done(..), Next::Refuse(conflict)) => {
                self.act(Phase::Showing(conflict), Action::LookStaged)
            }
            (Staging::Done(..), Next::Roll(rival)) => match self.push.options.roll_forward {
                RollForward::Staged => self.join(rival),
                RollForward::Published => self.look_again(rival),
            },
        }
    }

    pub(super) fn staged(&mut self, next: Next, written: Written<A>) -> Step<A> {
        match written {
            Written::Created(answer) => {
                self.staging = Staging::Done(answer, *self.push.content.digest());
                self.push.options.proven = true;
                self.stage(next)
            }
            Written::Denied(answer) | Written::Refused(answer) => self.relay(answer),
            Written::Unknown(trouble) => self.undecided(Undecided::Registry(trouble)),
        }
    }
}
