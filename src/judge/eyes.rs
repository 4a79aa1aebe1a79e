//! A client that may push and not pull: the registry shows it nothing, and a 404 proves nothing.
//!
//! Once it has shown that it may push, by a manifest it could store, taglock's own account looks in its
//! stead. What that account sees is not told to the client.

use super::push::{Machine, Phase};
use super::staging::Staging;
use super::step::{Action, Blind, Event, Eyes, Options, Step};
use crate::name::Digest;
use crate::registry::{Sighting, Written};

impl<A: Clone> Machine<A> {
    pub(super) fn may_prove(&self) -> bool {
        let Options { stage, blind, .. } = self.push.options;
        let staged = matches!(self.staging, Staging::Done(..));
        // Who has stored nothing yet is told what the registry says to a push, not to a look.
        self.eyes == Eyes::Client && stage && (blind != Blind::Relay || !staged) && !self.denied
    }

    pub(super) fn may_borrow(&self) -> bool {
        self.eyes == Eyes::Client && self.push.options.blind == Blind::Account
    }

    /// Nobody's eyes but the client's own are used for it before it has shown that it may push.
    pub(super) fn prove(&mut self, phase: Phase<A>, answer: A) -> Step<A> {
        match self.staging {
            Staging::Done(..) => self.proven(phase, answer),
            Staging::Not => {
                self.phase = Phase::Proving(Box::new(phase), answer);
                Step::Do(Action::Stage)
            }
        }
    }

    pub(super) fn proved(&mut self, phase: Phase<A>, answer: A, written: Written<A>) -> Step<A> {
        match written {
            Written::Created(created) => {
                self.staging = Staging::Done(created, *self.push.content.digest());
                self.push.options.proven = true;
                self.proven(phase, answer)
            }
            Written::Denied(answer) | Written::Refused(answer) => self.denied(phase, answer),
            Written::Unknown(_) => self.denied(phase, answer),
        }
    }

    fn proven(&mut self, phase: Phase<A>, answer: A) -> Step<A> {
        match (self.push.options.blind, self.look.clone()) {
            (Blind::Account, Some(look)) => {
                self.eyes = Eyes::Account;
                self.act(phase, look)
            }
            (blind, _) => {
                self.unseeing = blind != Blind::Relay;
                self.denied(phase, answer)
            }
        }
    }

    /// Back to where the look was denied, for good.
    fn denied(&mut self, phase: Phase<A>, answer: A) -> Step<A> {
        self.denied = true;
        self.phase = phase;
        self.on(Event::Seen(Sighting::Denied(answer)))
    }

    /// The registry has shown something.
    pub(super) fn saw(&mut self) {
        self.let_in |= self.eyes == Eyes::Client;
    }

    /// A digest, for a client that may see it.
    pub(super) fn shown(&self, digest: Digest) -> Option<Digest> {
        (self.eyes == Eyes::Client).then_some(digest)
    }
}
