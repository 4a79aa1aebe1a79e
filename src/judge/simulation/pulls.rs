//! Pulls in the simulated world, and tags that are moved behind taglock.

use super::pushes::{Call, Heard};
use super::specification::{End, Kind, Op};
use super::*;
use crate::judge::pull::{Action as Ask, Event, Machine as Reader, Pull, Pulled, Step};
use crate::ledger::cached::Known;
use crate::ledger::{Adopt, Unavailable};
use crate::registry::{Serving, Sighting};

/// One pull under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Puller {
    machine: Reader<()>,
    asks: Ask,
    proxy: usize,
    op: Op,
    /// It goes by memory, which may be as old as what its proxy knows of freed names.
    from_memory: bool,
}

impl World {
    /// Everything that can happen to pulls next, and to tags behind taglock.
    pub(super) fn pulls(&self, physics: &Physics, next: &mut Next) {
        if self.budget.pulls > 0 {
            for (place, tag) in physics.tags.iter().enumerate() {
                for proxy in 0..self.proxies.len() {
                    if !self.proxies[proxy].mutable {
                        // It begins with its first step: a longer wait allows only more.
                        let world = self.begin_pull(place, tag, proxy);
                        world.pull(physics, world.pullers.len() - 1, next);
                    }
                }
            }
        }
        for n in 0..self.pullers.len() {
            self.pull(physics, n, next);
        }
        if self.budget.moves > 0 {
            for (place, tag) in physics.tags.iter().enumerate() {
                let mut world = self.clone();
                world.budget.moves -= 1;
                world.disturbed = true;
                let stray = digest("stray");
                world.stored.insert(stray);
                world.registry.insert(tag.clone(), stray);
                world.specification().put(place, image(&stray));
                let label = physics.label(|| format!("{tag} is moved behind taglock"));
                next.push((label, world.checked(physics)));
            }
        }
    }

    fn begin_pull(&self, place: usize, tag: &Tag, proxy: usize) -> Self {
        let mut world = self.clone();
        world.budget.pulls -= 1;
        let pull = Pull { repository: repository(), tag: tag.clone(), strict: false };
        let (machine, asks) = Reader::new(pull);
        let op = world.specification().begin(Kind::Pull, [place]);
        world.pullers.push(Puller { machine, asks, proxy, op, from_memory: false });
        world
    }

    /// What may come of a puller's action.
    fn pull(&self, physics: &Physics, n: usize, next: &mut Next) {
        let Puller { machine, asks, proxy, .. } = &self.pullers[n];
        let tag = &machine.pull().tag;
        let mut add = |how: &str, mut world: Self, event: Option<Event<()>>| {
            let label = physics.label(|| format!("pull {n} at {proxy} {asks:?}{how}"));
            let told = event.map_or(Ok(()), |event| world.tell_puller(physics, n, event));
            next.push((label, told.and_then(|()| world.checked(physics))));
        };
        match asks {
            Ask::Recall | Ask::Lookup => self.recall(physics, n, &mut add),
            Ask::Wait => add("", self.clone(), Some(Event::Waited)),
            Ask::Resolve if self.unjudged_writes(physics, *proxy) => {}
            Ask::Look | Ask::Resolve => {
                let seen = self.registry.get(tag);
                let seen = seen.map_or(Sighting::NotFound(()), |d| Sighting::Found(*d));
                add("", self.clone(), Some(Event::Seen(seen)));
            }
            Ask::LookAt(digest) => {
                let found = self.stored.contains(digest);
                let seen = if found { Sighting::Found(*digest) } else { Sighting::NotFound(()) };
                add("", self.clone(), Some(Event::Seen(seen)));
            }
            Ask::Adopt { digest, origin, freed } => {
                let mut world = self.clone();
                let adopted = match physics.flaw {
                    Flaw::PullBindsNothing => Adopt::Adopted,
                    flaw => world.ledger.adopt(flaw, tag, digest, *origin, *freed),
                };
                for (how, mut world, heard) in self.calls(physics, &world, Call::Begins) {
                    let event = match heard {
                        Heard::Answer => {
                            world.learn(physics, *proxy);
                            Some(Event::Adopted(Ok(adopted.clone())))
                        }
                        Heard::Nothing => Some(Event::Adopted(Err(Unavailable::TimedOut))),
                        Heard::Repeats => None,
                    };
                    add(how, world, event);
                }
            }
            Ask::Serve(digest) => {
                let found = self.stored.contains(digest);
                let serving = if found { Serving::Good(()) } else { Serving::NotFound(()) };
                add("", self.clone(), Some(Event::Served(serving)));
            }
        }
    }

    /// What the ledger says, or memory.
    fn recall(
        &self,
        physics: &Physics,
        n: usize,
        add: &mut impl FnMut(&str, Self, Option<Event<()>>),
    ) {
        let Puller { machine, asks, proxy, .. } = &self.pullers[n];
        let tag = &machine.pull().tag;
        let entry = match &self.ledger.entries[tag] {
            Entry::Pending(_) if physics.has(Flaw::PullIgnoresClaims) => Entry::Absent,
            entry => entry.clone(),
        };
        let remembered = self.proxies[*proxy].remembered(physics, tag);
        let away = || match remembered {
            Some(digest) => Known::Remembered(digest, Unavailable::TimedOut),
            None => Known::Nothing(Unavailable::TimedOut),
        };
        if self.restoring(physics) {
            return add(", the ledger is restored", self.clone(), Some(Event::Known(away())));
        }
        if let (Some(digest), Ask::Recall) = (remembered, asks) {
            add(", from memory", self.clone(), Some(Event::Known(Known::Fresh(digest))));
        }
        for (how, mut world, heard) in self.calls(physics, self, Call::Reads) {
            let known = match heard {
                Heard::Answer => {
                    world.learn(physics, *proxy);
                    Known::Entry(entry.clone(), self.ledger.number())
                }
                Heard::Nothing | Heard::Repeats => away(),
            };
            add(how, world, Some(Event::Known(known)));
        }
    }

    /// Hands a puller its event and records what it served.
    fn tell_puller(
        &mut self,
        physics: &Physics,
        n: usize,
        event: Event<()>,
    ) -> Result<(), Violation> {
        if let Event::Known(known) = &event {
            let memory = match known {
                Known::Fresh(digest) | Known::Remembered(digest, _) => Some(digest),
                Known::Entry(..) | Known::Nothing(_) => None,
            };
            // A ledger that can't be asked adds nothing to what memory has said.
            let asked = matches!(known, Known::Entry(..));
            let puller = &mut self.pullers[n];
            puller.from_memory = memory.is_some() || puller.from_memory && !asked;
            let Puller { machine, proxy, .. } = &self.pullers[n];
            let tag = &machine.pull().tag;
            if let Some(digest) = memory
                && !self.proxies[*proxy].may_be(physics.place(tag), image(digest))
            {
                return Err(format!(
                    "{tag} is served from a memory older than what its proxy knows"
                ));
            }
        }
        let puller = &mut self.pullers[n];
        let pulled = match puller.machine.on(event) {
            Step::Do(asks) => {
                puller.asks = asks;
                return Ok(());
            }
            Step::Done(pulled) => pulled,
        };
        let Puller { machine, op, from_memory, .. } = self.pullers.remove(n);
        let tag = machine.pull().tag.clone();
        let end = match pulled {
            _ if from_memory => End::Unknown,
            Pulled::Served { digest, .. } => {
                End::Served(image(match (physics.flaw, self.registry.get(&tag)) {
                    (Flaw::PullTakesTheRegistrysTag, Some(there)) => there,
                    _ => &digest,
                }))
            }
            Pulled::Unknown | Pulled::Relayed(()) => End::NotFound,
            Pulled::Unverified | Pulled::Wrong { .. } | Pulled::Undecided(_) => End::Unknown,
        };
        match (self.specification().end(op, physics.place(&tag), end), end) {
            (true, _) => Ok(()),
            (false, End::NotFound) => Err(format!("a pull of {tag} got 404 though it was there")),
            (false, _) => Err(format!("{tag} was served as another image than it was")),
        }
    }
}
