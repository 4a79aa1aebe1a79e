//! Step 1 of a push: what the registry has already is adopted, so that a tag from before taglock is protected
//! from the first push on.

use super::push::{Machine, Phase};
use super::staging::Next;
use super::step::{Action, Step, Undecided};
use crate::ledger::{Adopt, Entry, Holder, Origin, Unavailable};
use crate::name::{Digest, Tag};
use crate::registry::Sighting;

impl<A: Clone> Machine<A> {
    pub(super) fn resolve(&mut self, rest: Vec<Tag>) -> Step<A> {
        match rest.last().cloned() {
            Some(tag) => self.act(Phase::Resolving(rest), Action::Resolve(tag)),
            None if self.push.options.stage => self.stage(Next::Claim),
            None => self.claim(),
        }
    }

    pub(super) fn resolved(&mut self, mut rest: Vec<Tag>, seen: Sighting<A>) -> Step<A> {
        match seen {
            Sighting::Found(digest) => {
                self.saw();
                match rest.pop() {
                    Some(tag) => self.adopt(tag, digest, Origin::Import),
                    None => self.look_up(),
                }
            }
            Sighting::NotFound(_) => {
                rest.pop();
                self.resolve(rest)
            }
            Sighting::Denied(answer) | Sighting::Failed(answer) => self.relay(answer),
            Sighting::Unclear(trouble) => self.undecided(Undecided::Registry(trouble)),
        }
    }

    pub(super) fn adopt(&mut self, tag: Tag, digest: Digest, origin: Origin) -> Step<A> {
        let adopt = Action::Adopt { tag: tag.clone(), digest, origin, freed: self.freed };
        self.act(Phase::Adopting(tag, digest), adopt)
    }

    pub(super) fn adopted(
        &mut self,
        tag: Tag,
        digest: Digest,
        adopted: Result<Adopt, Unavailable>,
    ) -> Step<A> {
        match adopted {
            Ok(Adopt::Adopted | Adopt::Freed) => self.look_up(),
            Ok(Adopt::Conflict(holders)) => self.outrun(holders),
            Ok(Adopt::Deleting) if self.may_wait() => self.wait(),
            // The image under the tag is being deleted: which one is not told to every client.
            Ok(Adopt::Deleting) => match self.shown(digest) {
                Some(digest) => self.undecided(Undecided::Deleting(digest)),
                None => self.undecided(Undecided::Busy(tag)),
            },
            Err(error) => self.undecided(error),
        }
    }

    /// What the registry has could not be adopted, because somebody holds the tag.
    fn outrun(&mut self, holders: Vec<Holder>) -> Step<A> {
        let pending = holders.into_iter().find_map(|holder| match holder.entry {
            Entry::Pending(pending) => Some((holder.tag, pending)),
            Entry::Absent | Entry::Sealed(_) => None,
        });
        match pending {
            // A claim whose tag is another image in the registry: only its owner can still move.
            Some((tag, pending)) if !self.may_wait() => {
                let digest = self.shown(pending.digest);
                self.undecided(Undecided::Stuck { tag, digest, since: pending.since })
            }
            Some(_) => self.wait(),
            None => self.look_up(),
        }
    }
}
