//! Deletes of an image, and releases by an operator, in the simulated world: the steps of
//! `judge/delete.rs` in their order, any time apart.

use super::specification::{Call, Told};
use super::*;
use crate::ledger::{DeleteEnd, Origin};
use crate::rules::Deletes;

/// In the specification, pushes have the first numbers, then come pulls.
pub(super) const PULLS: u8 = 50;
const DELETES: u8 = 100;
const RELEASES: u8 = 150;

/// One delete under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Deleter {
    digest: Digest,
    /// In the specification.
    number: u8,
    /// Tells its mark from others'.
    attempt: u8,
    does: Does,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Does {
    /// Whether the registry has the image.
    Look,
    /// The ledger is asked, before the registry is asked for the tag.
    LookUp,
    LookAtTag(FreedNumber),
    Adopt(Digest, FreedNumber),
    Mark,
    /// The tags that had the digest when the mark was made.
    Send(Vec<Tag>),
    Awaits(Vec<Tag>),
    End(Vec<Tag>),
    Over,
}

/// A DELETE on its way to the registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    deleter: usize,
    digest: Digest,
    awaited: bool,
}

impl World {
    pub(super) fn deletes(&self, physics: &Physics, next: &mut Next) {
        let Some(policy) = physics.deletes else { return };
        if self.budget.deletes > 0 {
            let mut world = self.clone();
            world.budget.deletes -= 1;
            world.begin_delete(policy);
            next.push((physics.label(|| "a delete begins".into()), Ok(world)));
        }
        for n in 0..self.deleters.len() {
            self.delete(physics, policy, n, next);
            if self.deleters[n].does != Does::Over && self.budget.crashes > 0 {
                let mut world = self.clone();
                world.budget.crashes -= 1;
                world.disturbed = true;
                world.deleters[n].does = Does::Over;
                world.sent.iter_mut().filter(|s| s.deleter == n).for_each(|s| s.awaited = false);
                next.push((physics.label(|| format!("delete {n} crashes")), Ok(world)));
            }
        }
        for m in 0..self.sent.len() {
            self.travels(physics, m, next);
        }
        self.release(physics, next);
    }

    fn begin_delete(&mut self, policy: Deletes) {
        let digest = Digest::of(Algorithm::Sha256, b"one");
        let call = match policy {
            Deletes::Keep => Call::Withdraw(digest),
            Deletes::Release => Call::Free(digest),
            Deletes::Refuse => Call::Clean,
        };
        let attempt = u8::try_from(self.deleters.len()).unwrap();
        let number = DELETES + attempt;
        self.ghost.begin(number, call);
        self.deleters.push(Deleter { digest, number, attempt, does: Does::Look });
    }

    fn delete(&self, physics: &Physics, policy: Deletes, n: usize, next: &mut Next) {
        let Deleter { digest, does, .. } = self.deleters[n].clone();
        let tag = &physics.tags[0];
        let mut world = self.clone();
        let then = match does {
            Does::Awaits(_) | Does::Over => return,
            Does::Look if !self.staged.contains(&digest) => world.ends_without_effect(n),
            Does::Look if policy == Deletes::Release => Does::Mark,
            Does::Look => Does::LookUp,
            Does::LookUp => match &self.ledger.entries[tag] {
                Entry::Absent => Does::LookAtTag(self.ledger.freed),
                _ => Does::Mark,
            },
            Does::LookAtTag(freed) => match self.registry.get(tag) {
                Some(seen) => Does::Adopt(*seen, freed),
                None => Does::Mark,
            },
            Does::Adopt(seen, freed) => {
                let operation = Operation::Adopt { digest: seen, origin: Origin::Import, freed };
                match world.adopt(physics, std::slice::from_ref(tag), &operation) {
                    Adopt::Adopted | Adopt::Conflict(_) => Does::Mark,
                    Adopt::Freed => Does::LookUp,
                    Adopt::Deleting => world.ends_without_effect(n),
                }
            }
            Does::Mark => world.mark(physics, policy, n),
            Does::Send(tags) => {
                world.sent.push(Sent { deleter: n, digest, awaited: true });
                if physics.flaw == Flaw::DeleteSentTwice {
                    world.sent.push(Sent { deleter: n, digest, awaited: false });
                }
                Does::Awaits(tags)
            }
            Does::End(tags) => match world.end_delete(policy, n, &tags) {
                Ok(then) => then,
                Err(what) => {
                    next.push((physics.label(|| format!("delete {n} ends")), Err(what)));
                    return;
                }
            },
        };
        let label = physics.label(|| format!("delete {n}: {then:?}"));
        world.deleters[n].does = then;
        next.push((label, world.checked(physics)));
    }

    fn ends_without_effect(&mut self, n: usize) -> Does {
        self.ghost.void(self.deleters[n].number);
        Does::Over
    }

    /// Leaves the mark, and looks who has the digest then.
    fn mark(&mut self, physics: &Physics, policy: Deletes, n: usize) -> Does {
        let Deleter { digest, attempt, .. } = self.deleters[n];
        let has = |entry: &&Entry| entry.digest() == Some(&digest);
        let holders: Vec<_> = self.ledger.entries.iter().filter(|(_, entry)| has(entry)).collect();
        let busy = holders.iter().any(|(_, entry)| matches!(entry, Entry::Pending(_)));
        if busy || (policy == Deletes::Refuse && !holders.is_empty()) {
            return self.ends_without_effect(n);
        }
        let tags = holders.into_iter().map(|(tag, _)| tag.clone()).collect();
        if physics.flaw != Flaw::NoDeleteMark {
            self.ledger.marks.insert((digest, attempt));
        }
        Does::Send(tags)
    }

    fn end_delete(&mut self, policy: Deletes, n: usize, tags: &[Tag]) -> Result<Does, Violation> {
        let Deleter { digest, number, attempt, .. } = self.deleters[n];
        let end = match policy {
            Deletes::Refuse => DeleteEnd::Kept,
            Deletes::Keep => DeleteEnd::Withdrawn,
            Deletes::Release => DeleteEnd::Released,
        };
        self.ledger.apply(tags, &Operation::EndDelete { digest, end });
        self.ledger.marks.remove(&(digest, attempt));
        match self.ghost.end(number, Told::Done) {
            true => Ok(Does::Over),
            false => Err(format!("the delete of {digest} has no place in the history")),
        }
    }

    /// What may come of a DELETE on its way.
    fn travels(&self, physics: &Physics, m: usize, next: &mut Next) {
        let Sent { deleter, digest, awaited } = self.sent[m].clone();
        let mut add = |what: &str, world: Self| {
            let label = physics.label(|| format!("the DELETE by {deleter} {what}"));
            next.push((label, world.checked(physics)));
        };
        let mut gone = self.clone();
        gone.sent.remove(m);
        let mut arrived = gone.clone();
        arrived.staged.remove(&digest);
        arrived.registry.retain(|_, tagged| *tagged != digest);
        arrived.deleted += 1;
        if !awaited {
            add("arrives late", arrived);
            return add("is lost", gone);
        }
        let Does::Awaits(tags) = self.deleters[deleter].does.clone() else { return };
        let mut answered = arrived.clone();
        // An image that is gone by now: the registry's no, which changes nothing here.
        answered.deleters[deleter].does = match self.staged.contains(&digest) {
            true => Does::End(tags),
            false => {
                let attempt = answered.deleters[deleter].attempt;
                answered.ledger.marks.remove(&(digest, attempt));
                answered.ends_without_effect(deleter)
            }
        };
        add("is carried out", answered);
        if self.budget.timeouts > 0 {
            let unknown = |mut world: Self| {
                world.budget.timeouts -= 1;
                world.disturbed = true;
                world.deleters[deleter].does = Does::Over;
                if physics.flaw == Flaw::UnknownDeleteIsUnmarked {
                    let attempt = world.deleters[deleter].attempt;
                    world.ledger.marks.remove(&(digest, attempt));
                }
                world
            };
            add("is carried out, its answer is lost", unknown(arrived));
            let mut delayed = self.clone();
            delayed.sent[m].awaited = false;
            add("times out", unknown(delayed));
        }
    }

    /// An operator has deleted the tag in the registry, and frees the name.
    fn release(&self, physics: &Physics, next: &mut Next) {
        let tag = &physics.tags[0];
        let Entry::Sealed(sealed) = &self.ledger.entries[tag] else { return };
        if self.budget.releases == 0 {
            return;
        }
        let mut world = self.clone();
        world.budget.releases -= 1;
        world.registry.remove(tag);
        world.deleted += 1;
        let number = RELEASES + self.budget.releases;
        world.ghost.begin(number, Call::Release);
        let release = Operation::Release { token: sealed.token() };
        world.ledger.apply(std::slice::from_ref(tag), &release);
        let fits = world.ghost.end(number, Told::Done);
        let world =
            if fits { world.checked(physics) } else { Err("no place for a release".into()) };
        next.push((physics.label(|| format!("{tag} is released")), world));
    }
}
