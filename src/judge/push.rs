//! The protocol of a push as a step machine: no I/O, no clock, no randomness of its own.
//!
//! Production drives it with a ledger and a registry, tests with schedules. The order of steps is
//! what the promises rest on; `docs/decisions/0002-claim-protocol.md` argues it.
//!
//! 0. look up; 1. see what the registry has; 2. store the manifest by digest; 3. claim;
//! 4. see again; 5. publish the tag, once; 6. bind.
//!
//! From a client that the registry has not lately let push, the manifest is stored before anything
//! else: it moves no tag, and a client that may not push is answered alike whatever the ledger holds.

use super::permit::{Basis, Permit};
use super::publish::{Doubt, Progress};
use super::rival::{Rival, Roll};
use super::staging::{Next, Staging};
use super::step::{Action, Conflict, Event, Eyes, Push, Step, Undecided, Verdict};
use crate::ledger::{Claim, Entry, FreedNumber, Lookup, Timestamp, Unavailable};
use crate::name::{Digest, Tag};
use crate::registry::{Sighting, Trouble};

/// How often a push may start over from a look-up besides its waits: each time, another push
/// has got ahead of it.
const RESTARTS: u8 = 20;

/// One push on its way to a verdict. `A` is an answer of the registry that may be relayed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine<A> {
    pub(super) push: Push,
    pub(super) phase: Phase<A>,
    /// What may be published, as far as is known.
    pub(super) permits: Vec<Permit>,
    /// The repository's freed number at the last look-up.
    pub(super) freed: FreedNumber,
    /// Tags that nobody else had claimed when this attempt did.
    fresh: Vec<Tag>,
    pub(super) staging: Staging<A>,
    /// What was stored by digest was found deleted once.
    restaged: bool,
    /// The registry has shown this client something.
    pub(super) let_in: bool,
    pub(super) eyes: Eyes,
    /// The client may push, may not look, and nobody looks in its stead.
    pub(super) unseeing: bool,
    /// A look was denied for good.
    pub(super) denied: bool,
    /// The look under way.
    pub(super) look: Option<Action>,
    pub(super) rival_seen: bool,
    /// After all waits for a rival, the ledger was asked once more.
    pub(super) looked_again: bool,
    waits: u8,
    lookups: u8,
}

/// What the machine waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase<A> {
    LookingUp,
    /// Whether the registry lets the client look at all.
    Asking,
    Waiting,
    /// The last of these is being asked for.
    Resolving(Vec<Tag>),
    Adopting(Tag, Digest),
    Staging(Next),
    /// This look was denied, with this answer: whether the client may push at all is tried.
    Proving(Box<Phase<A>>, A),
    Claiming,
    LookingAtParts,
    /// The last of these is being asked for.
    Rechecking(Vec<Tag>),
    LookingStaged,
    /// The attempt leaves the claim; then comes this.
    Leaving(After<A>),
    Publishing(Progress<A>),
    /// The tag whose PUT was not confirmed is looked at.
    Checking(Progress<A>, Doubt<A>),
    Disowning(Progress<A>),
    Binding(Progress<A>),
    /// The last of these tags, whose claims are gone, is looked at.
    Confirming(Progress<A>, Vec<Tag>),
    LettingIn(Conflict),
    /// Whether the client sees what it has stored, and so what is bound.
    Showing(Conflict),
    Rolling(Rival, Roll<A>),
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum After<A> {
    Relay(A),
    Undecided(Undecided),
    /// Start over: the next look finds what the registry turned out to have.
    LookUp,
    /// Start over a little later.
    Wait,
}

impl<A: Clone> Machine<A> {
    /// A machine and its first action.
    pub fn new(push: Push) -> (Self, Action) {
        let let_in = push.options.shown;
        let machine = Self {
            push,
            phase: Phase::LookingUp,
            permits: Vec::new(),
            freed: FreedNumber::default(),
            fresh: Vec::new(),
            staging: Staging::Not,
            restaged: false,
            let_in,
            eyes: Eyes::Client,
            unseeing: false,
            denied: false,
            look: None,
            rival_seen: false,
            looked_again: false,
            waits: 0,
            lookups: 1,
        };
        (machine, Action::Lookup)
    }

    pub fn push(&self) -> &Push {
        &self.push
    }

    /// By whose rights the looks that the machine asks for are to be done.
    pub fn eyes(&self) -> Eyes {
        self.eyes
    }

    /// Takes the outcome of the last action.
    pub fn on(&mut self, event: Event<A>) -> Step<A> {
        match (std::mem::replace(&mut self.phase, Phase::Ended), event) {
            (phase, Event::Seen(Sighting::Denied(answer))) if self.may_prove() => {
                self.prove(phase, answer)
            }
            (Phase::Proving(phase, answer), Event::Written(written)) => {
                self.proved(*phase, answer, written)
            }
            (Phase::LookingUp, Event::Entries(entries)) => match entries {
                // What they say shows only once the registry has let this client push, or look where it
                // takes nothing by digest.
                Ok(_) if self.is_unproven() => self.stage(Next::LookUp),
                Ok(_) if self.is_unasked() => {
                    let look = Action::Look(self.push.protected[0].clone());
                    self.act(Phase::Asking, look)
                }
                Ok(found) => self.entries(found),
                Err(error) => self.undecided(error),
            },
            (Phase::Asking, Event::Seen(seen)) => self.asked(seen),
            (Phase::Waiting, Event::Waited) => self.look_up(),
            (Phase::Resolving(rest), Event::Seen(seen)) => self.resolved(rest, seen),
            (Phase::Adopting(tag, digest), Event::Adopted(adopted)) => {
                self.adopted(tag, digest, adopted)
            }
            (Phase::Staging(next), Event::Written(written)) => self.staged(next, written),
            (Phase::Claiming, Event::Claimed(claimed)) => self.claimed(claimed),
            (Phase::LookingAtParts, Event::Parts(deleting)) => match deleting {
                Ok(None) => {
                    let claimed = self.claimed_tags(|_| true);
                    self.recheck(claimed)
                }
                Ok(Some(_)) if self.may_wait() => self.leave(After::Wait),
                Ok(Some(part)) => self.leave(After::Undecided(Undecided::Deleting(part))),
                Err(error) => self.leave(After::Undecided(error.into())),
            },
            (Phase::Rechecking(rest), Event::Seen(seen)) => self.rechecked(rest, seen),
            (Phase::LookingStaged, Event::Seen(seen)) => self.saw_staged(seen),
            // Whether the ledger heard it or not: the claim is harmless, only in the way.
            (Phase::Leaving(after), Event::Aborted(_)) => self.left(after),
            (Phase::Publishing(progress), Event::Written(written)) => {
                self.published(progress, written)
            }
            (Phase::Checking(progress, doubt), Event::Seen(seen)) => {
                self.checked(progress, doubt, seen)
            }
            (Phase::Disowning(progress), Event::Aborted(_)) => self.bind(progress),
            (Phase::Binding(progress), Event::Bound(bound)) => self.bound(progress, bound),
            (Phase::Confirming(progress, gone), Event::Seen(seen)) => {
                self.confirmed(progress, gone, seen)
            }
            (Phase::LettingIn(conflict), Event::Seen(seen)) => self.let_in(conflict, seen),
            (Phase::Showing(conflict), Event::Seen(seen)) => {
                let visible = matches!(seen, Sighting::Found(_)) && self.eyes == Eyes::Client;
                self.done(Verdict::Refused(Conflict { visible, ..conflict }))
            }
            (Phase::Rolling(rival, roll), event) => self.rolled(rival, roll, event),
            (_, _) => self.astray(),
        }
    }

    /// An event that answers no action: nothing is known to have been decided.
    pub(super) fn astray(&mut self) -> Step<A> {
        tracing::error!("a push was told of something that it did not ask for");
        self.undecided(Undecided::OutcomeUnknown(Trouble::Internal))
    }

    // Step 0.

    /// Starts over. What the ledger holds decides what comes next, whatever happened before.
    pub(super) fn look_up(&mut self) -> Step<A> {
        let tags = u8::try_from(self.push.protected.len()).unwrap_or(u8::MAX);
        if self.lookups >= self.push.options.patience.saturating_add(RESTARTS).saturating_add(tags)
        {
            return self.undecided(Undecided::Busy(self.push.protected[0].clone()));
        }
        self.lookups += 1;
        // An abort that was not answered may be carried out late: it must not meet a new claim.
        self.push.attempt = self.push.attempt.successor();
        self.push.errand = self.push.errand.successor();
        self.act(Phase::LookingUp, Action::Lookup)
    }

    fn entries(&mut self, found: Lookup) -> Step<A> {
        self.permits.clear();
        self.freed = found.freed;
        let mut absent = Vec::new();
        let mut claimed_alike = false;
        let mut rival = None;
        for (tag, entry) in self.push.protected.clone().iter().zip(&found.entries) {
            match entry {
                Entry::Absent => absent.push(tag.clone()),
                Entry::Sealed(sealed) if !self.push.content.is(&sealed.digest) => {
                    let conflict = self.conflict(tag.clone(), sealed.digest);
                    return self.refuse(conflict);
                }
                Entry::Sealed(sealed) => {
                    let is = |digest: &_| self.push.content.is(digest);
                    self.permits.extend(Permit::of_entry(tag, entry, is));
                    self.name(sealed.digest);
                }
                Entry::Pending(pending) if self.push.content.is(&pending.digest) => {
                    self.name(pending.digest);
                    claimed_alike = true;
                }
                Entry::Pending(pending) => {
                    let (digest, since) = (pending.digest, pending.since);
                    rival.get_or_insert(Rival { tag: tag.clone(), digest, since });
                }
            }
        }
        if let Some(rival) = rival {
            self.meet(rival)
        } else if claimed_alike && self.waits < self.push.options.patience {
            // Somebody pushes the same image: let them finish, then the tag is simply there.
            self.wait()
        } else if absent.is_empty() && !claimed_alike {
            // The PUT carries the ledger's digest, so it can only write what is there, or heal it;
            // and the registry checks this client's right.
            self.publish()
        } else {
            self.resolve(absent)
        }
    }

    /// The ledger may know the same bytes by another algorithm: that is their name from here on.
    fn name(&mut self, digest: Digest) {
        self.push.content = self.push.content.clone().named(digest);
        if matches!(&self.staging, Staging::Done(_, staged) if *staged != digest) {
            self.staging = Staging::Not;
        }
    }

    /// A delete of this image is under way: it is waited for.
    pub(super) fn wait_for_delete(&mut self) -> Step<A> {
        if self.may_wait() {
            return self.wait();
        }
        self.undecided(Undecided::Deleting(*self.push.content.digest()))
    }

    pub(super) fn wait(&mut self) -> Step<A> {
        self.waits += 1;
        self.act(Phase::Waiting, Action::Wait)
    }

    pub(super) fn may_wait(&self) -> bool {
        self.waits < self.push.options.patience
    }

    // Step 3.

    pub(super) fn claim(&mut self) -> Step<A> {
        let tags = self.push.protected.clone();
        let digest = *self.push.content.digest();
        self.act(Phase::Claiming, Action::Claim { tags, digest, attempt: self.push.attempt })
    }

    fn claimed(&mut self, claimed: Result<Claim, Unavailable>) -> Step<A> {
        let claim = match claimed {
            Ok(claim) => claim,
            // The claim may exist: nothing is sent for it, and the same digest joins.
            Err(error) => return self.undecided(Undecided::LedgerUnknown(error)),
        };
        match &claim {
            Claim::Held(_) => return self.look_up(),
            Claim::Deleting => return self.wait_for_delete(),
            Claim::Granted { fresh, .. } => self.fresh.clone_from(fresh),
        }
        // At this point the claim is durable. A crash leaves it pending, and whoever pushes the
        // same digest, or looks and finds it published, brings it to its end.
        self.permits = Permit::of_claim(&self.push.protected, &claim);
        if !self.push.content.parts().is_empty() {
            // A delete of a part that begins after this look sees the claim.
            return self.act(Phase::LookingAtParts, Action::LookAtParts);
        }
        let claimed = self.claimed_tags(|_| true);
        self.recheck(claimed)
    }

    /// The tags this attempt owns, whose permits pass.
    pub(super) fn claimed_tags(&self, pass: impl Fn(usize) -> bool) -> Vec<Tag> {
        let permits = self.permits.iter().enumerate();
        permits
            .filter(|(n, permit)| permit.basis() == Basis::Claimed && pass(*n))
            .map(|(_, permit)| permit.tag().clone())
            .collect()
    }

    // Step 4: the registry may have got the tag between the first look and the claim.

    fn recheck(&mut self, rest: Vec<Tag>) -> Step<A> {
        match rest.last().cloned() {
            Some(tag) => self.act(Phase::Rechecking(rest), Action::Look(tag)),
            None if self.claimed_tags(|_| true).is_empty() => self.publish(),
            None if self.push.options.stage => self.act(Phase::LookingStaged, Action::LookStaged),
            None => self.publish(),
        }
    }

    fn rechecked(&mut self, mut rest: Vec<Tag>, seen: Sighting<A>) -> Step<A> {
        match (seen, rest.pop()) {
            (Sighting::Found(digest), Some(tag)) if !self.push.content.is(&digest) => {
                self.saw();
                if self.fresh.contains(&tag) {
                    self.leave(After::LookUp)
                } else {
                    // Others hold the claim still, so what is there can't be adopted either.
                    let digest = Some(*self.push.content.digest());
                    let since = Timestamp::now();
                    self.leave(After::Undecided(Undecided::Stuck { tag, digest, since }))
                }
            }
            (Sighting::Found(_) | Sighting::NotFound(_), _) => self.recheck(rest),
            (Sighting::Denied(answer) | Sighting::Failed(answer), _) => {
                self.leave(After::Relay(answer))
            }
            (Sighting::Unclear(trouble), _) => {
                self.leave(After::Undecided(Undecided::Registry(trouble)))
            }
        }
    }

    /// A 404 for the tag counts only when this client can see what it has just stored.
    fn saw_staged(&mut self, seen: Sighting<A>) -> Step<A> {
        let undecided = match seen {
            Sighting::Found(digest) if self.push.content.is(&digest) => return self.publish(),
            Sighting::Found(_) => {
                Undecided::Registry(Trouble::Garbage("a digest other than the one asked for"))
            }
            // As registries answer that hide what an account may not pull. What was seen so far proves
            // nothing: all over again with other eyes.
            Sighting::NotFound(_) if self.may_borrow() => {
                self.eyes = Eyes::Account;
                return self.leave(After::LookUp);
            }
            // It may have been deleted before the claim kept deletes out: it is stored once more.
            Sighting::NotFound(_) if !self.restaged => {
                self.restaged = true;
                self.staging = Staging::Not;
                return self.leave(After::LookUp);
            }
            Sighting::NotFound(_) => Undecided::Invisible,
            Sighting::Denied(answer) | Sighting::Failed(answer) => {
                return self.leave(After::Relay(answer));
            }
            Sighting::Unclear(trouble) => Undecided::Registry(trouble),
        };
        self.leave(After::Undecided(undecided))
    }

    /// Takes the attempt out of its claim: right, because it has sent no PUT.
    fn leave(&mut self, after: After<A>) -> Step<A> {
        let tags = self.claimed_tags(|_| true);
        self.abort(tags, Phase::Leaving(after))
    }

    pub(super) fn left(&mut self, after: After<A>) -> Step<A> {
        match after {
            After::Relay(answer) => self.relay(answer),
            After::Undecided(undecided) => self.undecided(undecided),
            After::LookUp => self.look_up(),
            After::Wait => self.wait(),
        }
    }

    pub(super) fn abort(&mut self, tags: Vec<Tag>, phase: Phase<A>) -> Step<A> {
        let digest = *self.push.content.digest();
        self.act(phase, Action::Abort { tags, digest, attempt: self.push.attempt })
    }

    // Before any refusal the registry must have let this client in.

    fn refuse(&mut self, conflict: Conflict) -> Step<A> {
        if self.let_in {
            self.done(Verdict::Refused(conflict))
        } else {
            let look = Action::Look(conflict.tag.clone());
            self.act(Phase::LettingIn(conflict), look)
        }
    }

    fn let_in(&mut self, conflict: Conflict, seen: Sighting<A>) -> Step<A> {
        match seen {
            Sighting::Found(_) => {
                self.saw();
                let visible = self.let_in;
                self.done(Verdict::Refused(Conflict { visible, ..conflict }))
            }
            Sighting::NotFound(_) if self.push.options.stage => self.stage(Next::Refuse(conflict)),
            Sighting::NotFound(answer) | Sighting::Denied(answer) | Sighting::Failed(answer) => {
                self.relay(answer)
            }
            Sighting::Unclear(trouble) => self.undecided(Undecided::Registry(trouble)),
        }
    }

    pub(super) fn conflict(&self, tag: Tag, bound: Digest) -> Conflict {
        Conflict { tag, bound, pushed: *self.push.content.digest(), visible: self.let_in }
    }

    // Ends.

    pub(super) fn act(&mut self, phase: Phase<A>, action: Action) -> Step<A> {
        self.phase = phase;
        self.look = match &action {
            Action::Look(_) | Action::Resolve(_) | Action::LookStaged => Some(action.clone()),
            _ => None,
        };
        Step::Do(action)
    }

    pub(super) fn relay(&mut self, answer: A) -> Step<A> {
        self.done(match self.unseeing {
            true => Verdict::Unseeing(answer),
            false => Verdict::Relayed(answer),
        })
    }

    pub(super) fn undecided(&mut self, why: impl Into<Undecided>) -> Step<A> {
        self.done(Verdict::Undecided(why.into()))
    }

    pub(super) fn done(&mut self, verdict: Verdict<A>) -> Step<A> {
        self.phase = Phase::Ended;
        Step::Done(verdict)
    }
}
