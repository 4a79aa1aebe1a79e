//! Pulls in the simulated world, and tags that are moved behind taglock.

use super::deletes::PULLS;
use super::*;
use crate::judge::pull::{Action as Ask, Event as Heard, Machine as Reader, Pull, Pulled, Step};
use crate::ledger::cached::Known;
use crate::name::Algorithm;
use crate::registry::Serving;

/// One pull under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Puller {
    machine: Reader<()>,
    asks: Ask,
    /// A push of the tag had been acknowledged before it began.
    after_push: bool,
    /// In the specification.
    number: Option<u8>,
}

/// What somebody puts under a tag in the registry itself.
fn stray() -> Digest {
    Digest::of(Algorithm::Sha256, b"stray")
}

impl World {
    /// Everything that can happen to pulls next, and to tags behind taglock.
    pub(super) fn pulls(&self, physics: &Physics, next: &mut Next) {
        if self.budget.pulls > 0 {
            for tag in &physics.tags {
                let mut world = self.clone();
                world.budget.pulls -= 1;
                let repository = self.pushers[0].machine.push().repository.clone();
                let pull = Pull { repository, tag: tag.clone(), strict: false };
                let (machine, asks) = Reader::new(pull);
                let after_push = self.acknowledged.iter().any(|(pushed, _)| pushed == tag);
                let freeing = physics.deletes.is_some();
                let number = freeing.then_some(PULLS + self.budget.pulls);
                if let Some(number) = number {
                    world.ghost.begin(number, Call::Pull);
                }
                world.pullers.push(Puller { machine, asks, after_push, number });
                next.push((physics.label(|| format!("a pull of {tag} begins")), Ok(world)));
            }
        }
        for n in 0..self.pullers.len() {
            self.pull(physics, n, next);
        }
        if self.budget.moves > 0 {
            for tag in &physics.tags {
                let mut world = self.clone();
                world.budget.moves -= 1;
                world.moved = true;
                world.disturbed = true;
                world.staged.insert(stray());
                world.registry.insert(tag.clone(), stray());
                next.push((
                    physics.label(|| format!("{tag} is moved behind")),
                    world.checked(physics),
                ));
            }
        }
    }

    /// What may come of a puller's action.
    fn pull(&self, physics: &Physics, n: usize, next: &mut Next) {
        let Puller { machine, asks, .. } = &self.pullers[n];
        let tag = &machine.pull().tag;
        let mut add = |what: &str, mut world: Self, event: Heard<()>| {
            let label = physics.label(|| format!("pull {n} {asks:?}{what}"));
            let told = world.tell_puller(physics, n, event);
            next.push((label, told.and_then(|()| world.checked(physics))));
        };
        let spend = |world: &Self| {
            (world.budget.troubles > 0).then(|| {
                let mut world = world.clone();
                world.budget.troubles -= 1;
                world.disturbed = true;
                world
            })
        };
        // What any proxy has served so far, this one may have seen.
        let seen = match (physics.deletes, self.memory) {
            (None, _) => self.served.iter().find(|(of, _)| of == tag).map(|(_, digest)| *digest),
            // A proxy forgets what it remembers once it has learned that something was freed.
            (Some(_), Some((digest, freed)))
                if freed == self.ledger.freed || physics.flaw == Flaw::MemoryOfFreedNames =>
            {
                Some(digest)
            }
            (Some(_), _) => None,
        };
        match asks {
            Ask::Recall | Ask::Lookup => {
                let entry = match &self.ledger.entries[tag] {
                    Entry::Pending(_) if physics.flaw == Flaw::PullIgnoresClaims => Entry::Absent,
                    entry => entry.clone(),
                };
                add("", self.clone(), Heard::Known(Known::Entry(entry, self.ledger.freed)));
                if let (Some(digest), Ask::Recall, None) = (seen, asks, physics.deletes) {
                    add(", from memory", self.clone(), Heard::Known(Known::Fresh(digest)));
                }
                if let Some(world) = spend(self) {
                    let known = match seen {
                        Some(digest) => Known::Remembered(digest, Unavailable::TimedOut),
                        None => Known::Nothing(Unavailable::TimedOut),
                    };
                    add(", no answer", world, Heard::Known(known));
                }
            }
            Ask::Look | Ask::Resolve => {
                let seen = self.registry.get(tag);
                let seen = seen.map_or(Sighting::NotFound(()), |d| Sighting::Found(*d));
                add("", self.clone(), Heard::Seen(seen));
            }
            Ask::LookAt(digest) => {
                add("", self.clone(), Heard::Seen(Sighting::Found(*digest)));
            }
            Ask::Adopt { digest, origin, freed } => {
                let mut world = self.clone();
                let tags = std::slice::from_ref(tag);
                let operation =
                    Operation::Adopt { digest: *digest, origin: *origin, freed: *freed };
                let adopted = match physics.flaw {
                    Flaw::PullBindsNothing => Adopt::Adopted,
                    Flaw::PullIgnoresClaims => {
                        if matches!(world.ledger.entries[tag], Entry::Pending(_)) {
                            world.ledger.entries.insert(tag.clone(), Entry::Absent);
                        }
                        world.adopt(physics, tags, &operation)
                    }
                    _ => world.adopt(physics, tags, &operation),
                };
                let lost = || Heard::Adopted(Err(Unavailable::TimedOut));
                if let Some(world) = spend(&world) {
                    add(", answer lost", world, lost());
                }
                if let Some(world) = spend(self) {
                    add(", not done", world, lost());
                }
                if physics.wait {
                    world.replica = world.ledger.clone();
                }
                add("", world, Heard::Adopted(Ok(adopted)));
            }
            Ask::Wait => add("", self.clone(), Heard::Waited),
            Ask::Serve(digest) => {
                let found = self.staged.contains(digest);
                let serving = if found { Serving::Good(()) } else { Serving::NotFound(()) };
                add("", self.clone(), Heard::Served(serving));
            }
        }
    }

    /// Hands a puller its event and records what it served.
    fn tell_puller(
        &mut self,
        physics: &Physics,
        n: usize,
        event: Heard<()>,
    ) -> Result<(), Violation> {
        let puller = &mut self.pullers[n];
        let pulled = match puller.machine.on(event) {
            Step::Do(asks) => {
                puller.asks = asks;
                return Ok(());
            }
            Step::Done(pulled) => pulled,
        };
        let Puller { machine, after_push, number, .. } = self.pullers.remove(n);
        let tag = machine.pull().tag.clone();
        if let Some(number) = number {
            let (told, what) = match pulled {
                Pulled::Served { digest, .. } => {
                    self.memory = Some((digest, self.ledger.freed));
                    (Told::Found(digest), "an image")
                }
                Pulled::Unknown | Pulled::Relayed(()) => (Told::Nothing, "404"),
                _ => return Ok(()),
            };
            let fits = self.ghost.end(number, told);
            let wrong = || format!("{what} to a pull of {tag} has no place in the history");
            return if fits { Ok(()) } else { Err(wrong()) };
        }
        match pulled {
            Pulled::Served { digest, .. } => {
                let digest = match (physics.flaw, self.registry.get(&tag)) {
                    (Flaw::PullTakesTheRegistrysTag, Some(there)) => *there,
                    _ => digest,
                };
                self.served.insert((tag, digest));
            }
            Pulled::Unknown | Pulled::Relayed(()) if after_push && !self.moved => {
                return Err(format!("{tag} was acknowledged, and a later pull got 404"));
            }
            Pulled::Unknown
            | Pulled::Relayed(())
            | Pulled::Unverified
            | Pulled::Wrong { .. }
            | Pulled::Undecided(_) => {}
        }
        Ok(())
    }

    /// P2: one image for all pulls of a tag, and the acknowledged one.
    pub(super) fn check_pulls(&self, tag: &Tag) -> Result<(), Violation> {
        let of = |pairs: &BTreeSet<(Tag, Digest)>| -> BTreeSet<Digest> {
            pairs.iter().filter(|(t, _)| t == tag).map(|(_, digest)| *digest).collect()
        };
        let served = of(&self.served);
        if served.len() > 1 {
            return Err(format!("two images were served for {tag}"));
        }
        if !served.is_empty() && !of(&self.acknowledged).is_subset(&served) {
            return Err(format!("{tag} was served as another image than the acknowledged one"));
        }
        Ok(())
    }
}
