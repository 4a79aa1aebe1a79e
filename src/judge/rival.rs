//! A claim of another digest: its end is waited for, or it is brought to its end.
//!
//! Nobody ever replaces a claim. What the registry shows under the tag is bound, whoever looks. An image
//! that is only stored is published with this client's rights under `upstream.roll_forward = "staged"`
//! alone: its owner may lack the right to the tag.

use super::permit::{Basis, Permit};
use super::push::{After, Machine, Phase};
use super::staging::Next;
use super::step::{Action, Event, Step, Undecided};
use crate::ledger::{Bind, Claim, Origin, Timestamp, Unavailable};
use crate::name::{Digest, Tag};
use crate::registry::{Sighting, Written};

/// A pending claim of another digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rival {
    pub tag: Tag,
    pub digest: Digest,
    /// When it was claimed: for people.
    pub since: Timestamp,
}

/// What rolling a rival forward waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Roll<A> {
    Looking,
    /// For the last time, after all waits.
    LookingAgain,
    Joining,
    Rechecking(Permit),
    Fetching(Permit),
    Publishing,
    /// Whether the refusal was definitive, so that the errand may leave the claim.
    Checking {
        definitive: bool,
    },
    Leaving(After<A>),
    Binding,
}

impl<A> From<Undecided> for After<A> {
    fn from(undecided: Undecided) -> Self {
        Self::Undecided(undecided)
    }
}

impl<A: Clone> Machine<A> {
    pub(super) fn meet(&mut self, rival: Rival) -> Step<A> {
        if !self.rival_seen {
            self.rival_seen = true;
            let look = Action::Look(rival.tag.clone());
            self.act(Phase::Rolling(rival, Roll::Looking), look)
        } else if self.may_wait() {
            self.wait()
        } else if self.push.options.stage {
            // Only a client that may push here moves anything.
            self.stage(Next::Roll(rival))
        } else if self.let_in {
            self.look_again(rival)
        } else {
            // A 404 may mean "no access": no digest is told.
            self.undecided(Undecided::Busy(rival.tag))
        }
    }

    pub(super) fn join(&mut self, rival: Rival) -> Step<A> {
        let (tags, digest) = (vec![rival.tag.clone()], rival.digest);
        let claim = Action::Claim { tags, digest, attempt: self.push.errand };
        self.act(Phase::Rolling(rival, Roll::Joining), claim)
    }

    pub(super) fn rolled(&mut self, rival: Rival, roll: Roll<A>, event: Event<A>) -> Step<A> {
        match (roll, event) {
            (Roll::Looking, Event::Seen(seen)) => self.saw_rival(rival, seen),
            (Roll::LookingAgain, Event::Seen(seen)) => match seen {
                Sighting::Found(digest) if digest == rival.digest => {
                    self.saw();
                    self.adopt(rival.tag, digest, Origin::Push)
                }
                // Its owner may have left it while this image was stored.
                Sighting::Found(_) | Sighting::NotFound(_) if !self.looked_again => {
                    self.looked_again = true;
                    self.look_up()
                }
                Sighting::Found(_) | Sighting::NotFound(_) => self.stuck(rival),
                Sighting::Denied(answer) | Sighting::Failed(answer) => self.relay(answer),
                Sighting::Unclear(trouble) => self.undecided(Undecided::Registry(trouble)),
            },
            (Roll::Joining, Event::Claimed(claimed)) => self.joined(rival, claimed),
            (Roll::Rechecking(permit), Event::Seen(seen)) => self.saw_joined(rival, permit, seen),
            (Roll::Fetching(permit), Event::Fetched(fetched)) => match fetched {
                Ok(true) => self
                    .act(Phase::Rolling(rival, Roll::Publishing), Action::PublishFetched(permit)),
                // What was staged has been collected: only its owner can push it again.
                Ok(false) => self.give_up(rival),
                Err(trouble) => self.leave_claim(rival, Undecided::Registry(trouble).into()),
            },
            (Roll::Publishing, Event::Written(written)) => {
                let definitive = match written {
                    Written::Created(_) => return self.bind_rival(rival),
                    Written::Denied(answer) if self.push.options.abort => {
                        return self.leave_claim(rival, After::Relay(answer));
                    }
                    Written::Denied(_) | Written::Refused(_) => true,
                    Written::Unknown(_) => false,
                };
                let look = Action::Look(rival.tag.clone());
                self.act(Phase::Rolling(rival, Roll::Checking { definitive }), look)
            }
            (Roll::Checking { definitive }, Event::Seen(seen)) => match seen {
                Sighting::Found(digest) if digest == rival.digest => self.bind_rival(rival),
                _ if definitive && self.push.options.abort => self.give_up(rival),
                _ => self.stuck(rival),
            },
            (Roll::Leaving(after), Event::Aborted(_)) => self.left(after),
            (Roll::Binding, Event::Bound(bound)) => match bound {
                Ok(Bind::Deleting) if self.may_wait() => self.wait(),
                Ok(_) => self.look_up(),
                Err(error) => self.undecided(error),
            },
            (_, _) => self.astray(),
        }
    }

    fn saw_rival(&mut self, rival: Rival, seen: Sighting<A>) -> Step<A> {
        match seen {
            // Published, and its owner crashed before the seal.
            Sighting::Found(digest) if digest == rival.digest => {
                self.saw();
                self.adopt(rival.tag, digest, Origin::Push)
            }
            Sighting::Found(_) => {
                self.saw();
                if self.may_wait() { self.wait() } else { self.stuck(rival) }
            }
            Sighting::NotFound(_) if self.may_wait() => self.wait(),
            Sighting::NotFound(_) => self.meet(rival),
            Sighting::Denied(answer) | Sighting::Failed(answer) => self.relay(answer),
            Sighting::Unclear(trouble) => self.undecided(Undecided::Registry(trouble)),
        }
    }

    fn joined(&mut self, rival: Rival, claimed: Result<Claim, Unavailable>) -> Step<A> {
        match claimed {
            // Its owner gave it up in the meantime: there is no claim to bring to an end, and
            // this client's rights are not for somebody else's image.
            Ok(Claim::Granted { fresh, .. }) if !fresh.is_empty() => {
                self.leave_claim(rival, After::LookUp)
            }
            Ok(claim @ Claim::Granted { .. }) => {
                let permit = Permit::of_claim(std::slice::from_ref(&rival.tag), &claim).pop();
                match permit.filter(|permit| permit.basis() == Basis::Claimed) {
                    Some(permit) => {
                        let look = Action::Look(rival.tag.clone());
                        self.act(Phase::Rolling(rival, Roll::Rechecking(permit)), look)
                    }
                    None => self.look_up(),
                }
            }
            Ok(Claim::Held(_)) => self.look_up(),
            Ok(Claim::Deleting) => self.stuck(rival),
            Err(error) => self.undecided(error),
        }
    }

    fn saw_joined(&mut self, rival: Rival, permit: Permit, seen: Sighting<A>) -> Step<A> {
        match seen {
            Sighting::Found(digest) if digest == rival.digest => self.bind_rival(rival),
            Sighting::Found(_) => self.give_up(rival),
            Sighting::NotFound(_) => {
                let fetch = Action::Fetch(rival.digest);
                self.act(Phase::Rolling(rival, Roll::Fetching(permit)), fetch)
            }
            Sighting::Denied(answer) | Sighting::Failed(answer) => {
                self.leave_claim(rival, After::Relay(answer))
            }
            Sighting::Unclear(trouble) => {
                self.leave_claim(rival, Undecided::Registry(trouble).into())
            }
        }
    }

    fn bind_rival(&mut self, rival: Rival) -> Step<A> {
        let (tags, digest) = (vec![rival.tag.clone()], rival.digest);
        let (attempt, freed) = (self.push.errand, self.freed);
        let bind = Action::Bind { tags, digest, attempt, freed };
        self.act(Phase::Rolling(rival, Roll::Binding), bind)
    }

    /// Nothing is published for a rival: it may have ended meanwhile.
    pub(super) fn look_again(&mut self, rival: Rival) -> Step<A> {
        let look = Action::Look(rival.tag.clone());
        self.act(Phase::Rolling(rival, Roll::LookingAgain), look)
    }

    fn give_up(&mut self, rival: Rival) -> Step<A> {
        let digest = self.shown(rival.digest);
        let stuck = Undecided::Stuck { tag: rival.tag.clone(), digest, since: rival.since };
        self.leave_claim(rival, stuck.into())
    }

    /// Takes the errand out of the rival's claim: it has sent no PUT, or had it refused.
    fn leave_claim(&mut self, rival: Rival, after: After<A>) -> Step<A> {
        let (tags, digest) = (vec![rival.tag.clone()], rival.digest);
        let abort = Action::Abort { tags, digest, attempt: self.push.errand };
        self.act(Phase::Rolling(rival, Roll::Leaving(after)), abort)
    }

    fn stuck(&mut self, rival: Rival) -> Step<A> {
        let digest = self.shown(rival.digest);
        self.undecided(Undecided::Stuck { tag: rival.tag, digest, since: rival.since })
    }
}
