//! The claim protocol and pulls against everything that can happen: the production step machines
//! themselves, in a world of delayed and lost PUTs, lost answers, crashes, refusals, failovers, and
//! tags that are moved behind taglock.
//!
//! Small worlds are searched exhaustively, large ones by seeded random schedules. A world may
//! also have a *flaw*: a ledger or a registry that behaves as a known unsafe protocol would. Each of
//! them must be found violated, so that the search keeps its teeth.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use super::push::{Machine, Phase};
use super::step::{Action, Blind, Content, Event, Eyes, Options, Push, RollForward, Step, Verdict};
use crate::ledger::transitions::{Around, Operation, Outcome, Stamp};
use crate::ledger::{
    Adopt, AttemptId, Bind, Claim, Entry, FreedNumber, Lookup, Pending, RepositoryKey, Timestamp,
    Unavailable,
};
use crate::name::{Algorithm, Digest, RepositoryName, Tag, UpstreamName};
use crate::registry::{Sighting, Trouble, Written};

mod deletes;
mod pulls;
mod searches;
mod specification;

use crate::rules::Deletes;
use deletes::{Deleter, Sent};
use pulls::Puller;
use specification::{Call, Ghost, Told};

/// How a known unsafe protocol differs from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A claim of another digest is taken over: a lease that has run out.
    TakeOver,
    /// An abort frees the tag although others hold the claim.
    AbortIgnoresOthers,
    /// A PUT that timed out is taken for refused.
    TimeoutIsRefusal,
    /// The second look sees nothing.
    NoSecondLook,
    /// The owners of a joined claim are forgotten: nobody may abort it.
    SharedOwner,
    /// A pull serves what the registry has under the tag.
    PullTakesTheRegistrysTag,
    /// A pull binds a tag to what is there although another image is claimed.
    PullIgnoresClaims,
    /// A pull serves what it saw without binding it.
    PullBindsNothing,
    /// A push binds a tag that nobody has claimed any more.
    BindNeedsNoClaim,
    /// What a look has shown is bound, whatever was freed since.
    AdoptIgnoresFreed,
    /// An image is claimed and adopted while it is deleted.
    NoDeleteMark,
    /// A push of a bound image does not ask the ledger after its PUT.
    BoundAsksNoMore,
    /// A push is acknowledged though its binding was not written.
    UnboundIsAcknowledged,
    /// A DELETE is sent again.
    DeleteSentTwice,
    /// A DELETE whose outcome is unknown leaves no mark.
    UnknownDeleteIsUnmarked,
    /// What a proxy remembers serves it whatever was freed since.
    MemoryOfFreedNames,
}

/// What of the world doesn't change.
#[derive(Clone, Debug)]
struct Physics {
    flaw: Flaw,
    /// A claim is granted only once the replica has it.
    wait: bool,
    tags: Vec<Tag>,
    /// The pushers may push and not look: taglock's own account does it for them.
    blind: bool,
    /// Whether events are given names: only for a trace, they cost more than all the rest.
    named: bool,
    /// All pushers but the first set a tag for what is stored, as by a registry's own API.
    stored: bool,
    roll_forward: RollForward,
    /// What the rule says of deletes; `None` where no name is ever freed.
    deletes: Option<Deletes>,
    /// The image that the registry has under each tag before taglock knows of it.
    first: Option<&'static str>,
}

impl Physics {
    fn label(&self, text: impl FnOnce() -> String) -> String {
        if self.named { text() } else { String::new() }
    }
}

/// How much may go wrong yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Budget {
    crashes: u8,
    /// PUTs that time out, arriving late or never, and answers that are lost.
    timeouts: u8,
    refusals: u8,
    /// Ledger calls that fail, having taken effect or not, and looks that do.
    troubles: u8,
    failovers: u8,
    /// Pulls, each beginning at any time.
    pulls: u8,
    /// Tags put elsewhere in the registry itself.
    moves: u8,
    /// Deletes of the image "one", and releases by an operator.
    deletes: u8,
    releases: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ledger: Store,
    replica: Store,
    registry: BTreeMap<Tag, Digest>,
    staged: BTreeSet<Digest>,
    /// Shared with the worlds around: most steps change one of them.
    pushers: Vec<Rc<Pusher>>,
    /// PUTs by tag on their way; they may arrive at any later time.
    net: Vec<Put>,
    acknowledged: BTreeSet<(Tag, Digest)>,
    pullers: Vec<Puller>,
    served: BTreeSet<(Tag, Digest)>,
    /// Somebody moved a tag behind taglock.
    moved: bool,
    budget: Budget,
    /// Something happened after which a claim may rightly be left.
    disturbed: bool,
    deleters: Vec<Deleter>,
    sent: Vec<Sent>,
    /// How often the registry has deleted something.
    deleted: u8,
    /// Kept where names are freed.
    ghost: Ghost,
    /// What a proxy has served last, with the freed number then.
    memory: Option<(Digest, FreedNumber)>,
}

/// What a ledger holds of the one repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Store {
    entries: BTreeMap<Tag, Entry>,
    freed: FreedNumber,
    /// Tells lives of a name apart.
    sequence: u64,
    /// Digests with a delete mark, and whose it is.
    marks: BTreeSet<(Digest, u8)>,
}

impl Store {
    fn new(tags: &[Tag]) -> Self {
        let entries = tags.iter().map(|tag| (tag.clone(), Entry::Absent)).collect();
        let (freed, sequence, marks) = Default::default();
        Self { entries, freed, sequence, marks }
    }

    fn lookup(&self, tags: &[Tag]) -> Lookup {
        let entries = tags.iter().map(|tag| self.entries[tag].clone()).collect();
        Lookup { entries, freed: self.freed }
    }

    fn set(&self, tags: &[Tag]) -> Vec<(Tag, Entry)> {
        tags.iter().map(|tag| (tag.clone(), self.entries[tag].clone())).collect()
    }

    /// Applies an operation of the table; `marked` where its digest counts as being deleted.
    fn apply(&mut self, tags: &[Tag], operation: &Operation) -> Outcome {
        let marked = operation.digest().is_some_and(|d| self.marks.iter().any(|(m, _)| m == d));
        self.apply_as(tags, operation, Around { freed: self.freed, marked })
    }

    fn apply_as(&mut self, tags: &[Tag], operation: &Operation, around: Around) -> Outcome {
        let set = self.set(tags);
        let stamp = Stamp { now: Timestamp::EPOCH, sequence: self.sequence + 1 };
        let outcome = operation.on(&set, around, stamp);
        if let Outcome::Done { puts, frees } = &outcome {
            self.sequence += u64::from(*frees || !puts.is_empty());
            for (n, entry) in puts {
                self.entries.insert(set[*n].0.clone(), entry.clone());
            }
            if *frees {
                self.freed = self.freed.next();
            }
        }
        outcome
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pusher {
    machine: Machine<()>,
    doing: Doing,
    fetched: Option<Digest>,
    /// In the specification, once it has begun.
    number: Option<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Act(Action),
    /// Its PUT is on its way.
    Awaits,
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Put {
    pusher: usize,
    tag: Tag,
    digest: Digest,
    /// The pusher still waits for its answer.
    awaited: bool,
    /// What the registry had deleted by then.
    deleted: u8,
}

/// A promise that was broken.
type Violation = String;
type Next = Vec<(String, Result<World, Violation>)>;

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

impl World {
    /// One pusher for each image, each of these tags.
    fn new(images: &[&str], physics: &Physics, budget: Budget) -> Self {
        let blind = if physics.blind { Blind::Account } else { Blind::Relay };
        let roll_forward = physics.roll_forward;
        let pushers = images.iter().enumerate().map(|(n, image)| {
            let attempt =
                |kind: u8| AttemptId::from_bytes([u8::try_from(n).unwrap() * 2 + kind; 16]);
            let (machine, action) = Machine::new(Push {
                repository: RepositoryKey {
                    upstream: UpstreamName::parse("default").unwrap(),
                    repository: RepositoryName::parse("app").unwrap(),
                },
                protected: physics.tags.clone(),
                mutable: Vec::new(),
                content: Content::new(image.as_bytes(), None).unwrap(),
                attempt: attempt(1),
                errand: attempt(2),
                options: match physics.stored && n > 0 {
                    true => Options {
                        stage: false,
                        shown: true,
                        patience: 1,
                        roll_forward,
                        ..Options::default()
                    },
                    false => Options { patience: 1, blind, roll_forward, ..Options::default() },
                },
            });
            Rc::new(Pusher { machine, doing: Doing::Act(action), fetched: None, number: None })
        });
        let stored = images.iter().skip(1).filter(|_| physics.stored);
        let stored = stored.map(|image| Digest::of(Algorithm::Sha256, image.as_bytes()));
        let empty = Store::new(&physics.tags);
        let first = physics.first.map(|seed| Digest::of(Algorithm::Sha256, seed.as_bytes()));
        let tagged = physics.tags.iter().filter_map(|tag| Some((tag.clone(), first?)));
        Self {
            ledger: empty.clone(),
            replica: empty,
            registry: tagged.collect(),
            staged: stored.chain(first).collect(),
            pushers: pushers.collect(),
            net: Vec::new(),
            acknowledged: BTreeSet::new(),
            pullers: Vec::new(),
            served: BTreeSet::new(),
            moved: false,
            budget,
            disturbed: false,
            deleters: Vec::new(),
            sent: Vec::new(),
            deleted: 0,
            ghost: Ghost::new(first),
            memory: None,
        }
    }

    fn pusher(&mut self, n: usize) -> &mut Pusher {
        Rc::make_mut(&mut self.pushers[n])
    }

    /// Everything that can happen next.
    fn next(&self, physics: &Physics) -> Next {
        let mut next = Vec::new();
        for n in 0..self.pushers.len() {
            match self.pushers[n].doing.clone() {
                Doing::Act(action) => self.act(physics, n, action, &mut next),
                Doing::Awaits | Doing::Over => {}
            }
            if self.pushers[n].doing != Doing::Over && self.budget.crashes > 0 {
                let mut world = self.clone();
                world.budget.crashes -= 1;
                world.disturbed = true;
                world.pusher(n).doing = Doing::Over;
                world.forget(n);
                next.push((physics.label(|| format!("{n} crashes")), world.checked(physics)));
            }
        }
        for m in 0..self.net.len() {
            self.travel(physics, m, &mut next);
        }
        self.pulls(physics, &mut next);
        self.deletes(physics, &mut next);
        if self.budget.failovers > 0 && self.replica != self.ledger {
            let mut world = self.clone();
            world.replica = world.ledger.clone();
            next.push((physics.label(|| "the replica catches up".into()), Ok(world)));
            let mut world = self.clone();
            world.budget.failovers -= 1;
            world.disturbed = true;
            world.ledger = world.replica.clone();
            next.push((physics.label(|| "the ledger fails over".into()), Ok(world)));
        }
        next
    }

    /// What may come of a pusher's action.
    fn act(&self, physics: &Physics, n: usize, action: Action, next: &mut Next) {
        let label = physics.label(|| format!("{n} {action:?}"));
        let mut add = |what: &str, mut world: Self, event: Event<()>| {
            let told = world.tell(physics, n, event);
            let world = told.and_then(|()| world.checked(physics));
            next.push((physics.label(|| format!("{label}{what}")), world));
        };
        // The answer is lost, or the call never took place.
        let spend = |world: &Self| {
            (world.budget.troubles > 0).then(|| {
                let mut world = world.clone();
                world.budget.troubles -= 1;
                world.disturbed = true;
                world
            })
        };
        let lost = || Unavailable::TimedOut;
        let looks = matches!(action, Action::Look(_) | Action::Resolve(_) | Action::LookStaged);
        if physics.blind && looks && self.pushers[n].machine.eyes() == Eyes::Client {
            return add(", denied", self.clone(), Event::Seen(Sighting::Denied(())));
        }
        match action {
            Action::Lookup => {
                let found = self.ledger.lookup(&physics.tags);
                add("", self.clone(), Event::Entries(Ok(found)));
                if let Some(world) = spend(self) {
                    add(", no answer", world, Event::Entries(Err(lost())));
                }
            }
            Action::Wait => add("", self.clone(), Event::Waited),
            Action::Look(tag) | Action::Resolve(tag) => {
                let second = matches!(self.pushers[n].machine.phase, Phase::Rechecking(_));
                let blind = physics.flaw == Flaw::NoSecondLook && second;
                let seen = self.registry.get(&tag).filter(|_| !blind);
                let seen = seen.map_or(Sighting::NotFound(()), |d| Sighting::Found(*d));
                add("", self.clone(), Event::Seen(seen));
                if let Some(world) = spend(self) {
                    add(", unclear", world, Event::Seen(Sighting::Unclear(Trouble::TimedOut)));
                }
            }
            Action::LookStaged => {
                let digest = *self.pushers[n].machine.push().content.digest();
                let found = self.staged.contains(&digest);
                let seen = if found { Sighting::Found(digest) } else { Sighting::NotFound(()) };
                add("", self.clone(), Event::Seen(seen));
            }
            Action::Stage => {
                let mut world = self.clone();
                world.staged.insert(*self.pushers[n].machine.push().content.digest());
                add("", world.clone(), Event::Written(Written::Created(())));
                if let Some(world) = spend(&world) {
                    let unknown = Written::Unknown(Trouble::TimedOut);
                    add(", answer lost", world, Event::Written(unknown));
                }
            }
            Action::Claim { tags, digest, attempt } => {
                let mut world = self.clone();
                let claim = world.claim(physics, &tags, &digest, attempt);
                if let Some(mut world) = spend(&world) {
                    let again = world.claim(physics, &tags, &digest, attempt);
                    if physics.wait {
                        world.replica = world.ledger.clone();
                    }
                    add(", repeated", world, Event::Claimed(Ok(again)));
                }
                if let Some(world) = spend(&world) {
                    add(", answer lost", world, Event::Claimed(Err(lost())));
                }
                if let Some(world) = spend(self) {
                    add(", not done", world, Event::Claimed(Err(lost())));
                }
                if physics.wait {
                    // The replica has it, or the claim would not have been granted.
                    world.replica = world.ledger.clone();
                }
                add("", world, Event::Claimed(Ok(claim)));
            }
            Action::LookAtParts => add("", self.clone(), Event::Parts(Ok(None))),
            Action::Bind { tags, digest, attempt, freed } => {
                let mut world = self.clone();
                let operation = Operation::Bind { digest, attempt, freed };
                let bound = world.bind(physics, &tags, &operation);
                // A repeated call finds what the first one made.
                if let Some(mut world) = spend(&world) {
                    let again = world.bind(physics, &tags, &operation);
                    add(", repeated", world, Event::Bound(Ok(again)));
                }
                let unknown = || match physics.flaw {
                    Flaw::UnboundIsAcknowledged | Flaw::PullIgnoresClaims => {
                        Event::Bound(Ok(Bind::Bound))
                    }
                    _ => Event::Bound(Err(lost())),
                };
                if let Some(world) = spend(&world) {
                    add(", answer lost", world, unknown());
                }
                if let Some(world) = spend(self) {
                    add(", not done", world, unknown());
                }
                add("", world, Event::Bound(Ok(bound)));
            }
            Action::Adopt { tag, digest, origin, freed } => {
                let mut world = self.clone();
                let operation = Operation::Adopt { digest, origin, freed };
                let adopted = world.adopt(physics, std::slice::from_ref(&tag), &operation);
                if let Some(world) = spend(&world) {
                    add(", answer lost", world, Event::Adopted(Err(lost())));
                }
                if let Some(world) = spend(self) {
                    add(", not done", world, Event::Adopted(Err(lost())));
                }
                add("", world, Event::Adopted(Ok(adopted)));
            }
            Action::Abort { tags, digest, attempt } => {
                let mut world = self.clone();
                world.abort(physics, &tags, &digest, attempt);
                add("", world, Event::Aborted(Ok(())));
                if let Some(world) = spend(self) {
                    add(", not done", world, Event::Aborted(Err(lost())));
                }
            }
            Action::Publish(permit) => {
                let digest = *self.pushers[n].machine.push().content.digest();
                next.push((label, Ok(self.sent(n, permit.tag(), digest))));
            }
            Action::Fetch(digest) => {
                let mut world = self.clone();
                let found = self.staged.contains(&digest);
                world.pusher(n).fetched = found.then_some(digest);
                add("", world, Event::Fetched(Ok(found)));
            }
            Action::PublishFetched(permit) => {
                let digest = self.pushers[n].fetched.expect("it was fetched");
                next.push((label, Ok(self.sent(n, permit.tag(), digest))));
            }
        }
    }

    fn sent(&self, pusher: usize, tag: &Tag, digest: Digest) -> Self {
        let mut world = self.clone();
        let deleted = self.deleted;
        world.net.push(Put { pusher, tag: tag.clone(), digest, awaited: true, deleted });
        world.pusher(pusher).doing = Doing::Awaits;
        world
    }

    /// What may come of a PUT on its way.
    fn travel(&self, physics: &Physics, m: usize, next: &mut Next) {
        let put = &self.net[m];
        let mut add = |what: &str, mut world: Self, event: Option<Written<()>>| {
            let told = match event {
                Some(written) => world.tell(physics, put.pusher, Event::Written(written)),
                None => Ok(()),
            };
            let Put { digest, tag, pusher, .. } = put;
            let label =
                physics.label(|| format!("the PUT of {digest} for {tag} by {pusher} {what}"));
            let world = told.and_then(|()| world.checked(physics));
            next.push((label, world));
        };
        let unknown = || match physics.flaw {
            Flaw::TimeoutIsRefusal => Written::Refused(()),
            _ => Written::Unknown(Trouble::TimedOut),
        };
        let mut arrived = self.clone();
        arrived.net.remove(m);
        let gone = arrived.clone();
        arrived.staged.insert(put.digest);
        arrived.registry.insert(put.tag.clone(), put.digest);
        if !put.awaited {
            // One that lands after its image was deleted brings it back: what remains, by decision 30.
            if put.deleted == self.deleted {
                add("arrives late", arrived, None);
            }
            add("is lost", gone, None);
            return;
        }
        add("arrives", arrived.clone(), Some(Written::Created(())));
        if self.budget.refusals > 0 {
            let mut world = gone;
            world.budget.refusals -= 1;
            add("is refused", world, Some(Written::Refused(())));
        }
        if self.budget.timeouts > 0 {
            let spent = |mut world: Self| {
                world.budget.timeouts -= 1;
                world.disturbed = true;
                world
            };
            add("arrives, its answer is lost", spent(arrived), Some(unknown()));
            let mut delayed = self.clone();
            delayed.net[m].awaited = false;
            add("times out", spent(delayed), Some(unknown()));
        }
    }

    /// Nobody waits any more for the PUTs of this pusher.
    fn forget(&mut self, n: usize) {
        for put in self.net.iter_mut().filter(|put| put.pusher == n) {
            put.awaited = false;
        }
    }

    fn claim(&mut self, physics: &Physics, tags: &[Tag], digest: &Digest, a: AttemptId) -> Claim {
        let before = self.ledger.set(tags);
        for (tag, entry) in &before {
            let entry = match (physics.flaw, entry) {
                (Flaw::TakeOver, Entry::Pending(pending)) if pending.digest != *digest => {
                    Entry::Absent
                }
                (Flaw::SharedOwner, Entry::Pending(pending))
                    if pending.digest == *digest && !pending.owners.contains(&a) =>
                {
                    let owners = vec![AttemptId::from_bytes([0; 16]), a];
                    Entry::Pending(Pending { owners, ..pending.clone() })
                }
                _ => continue,
            };
            self.ledger.entries.insert(tag.clone(), entry);
        }
        let operation = Operation::Claim { digest: *digest, attempt: a };
        let outcome = self.applied(physics, tags, &operation);
        if physics.flaw == Flaw::SharedOwner {
            for entry in self.ledger.entries.values_mut() {
                if let Entry::Pending(pending) = entry {
                    let shared = AttemptId::from_bytes([0; 16]);
                    if pending.owners.contains(&shared) {
                        pending.owners = vec![shared];
                    }
                }
            }
        }
        Claim::of(outcome, &before, a)
    }

    fn bind(&mut self, physics: &Physics, tags: &[Tag], operation: &Operation) -> Bind {
        let Operation::Bind { digest, attempt, .. } = operation else { panic!("{operation:?}") };
        let before = self.ledger.set(tags);
        if physics.flaw == Flaw::BoundAsksNoMore
            && before.iter().all(|(_, entry)| !matches!(entry, Entry::Pending(_)))
        {
            return Bind::Bound;
        }
        if physics.flaw == Flaw::BindNeedsNoClaim {
            for (tag, entry) in before {
                if entry == Entry::Absent || entry.digest() == Some(digest) {
                    let claim = Operation::Claim { digest: *digest, attempt: *attempt };
                    let around = Around { freed: self.ledger.freed, marked: false };
                    self.ledger.apply_as(&[tag], &claim, around);
                }
            }
        }
        let outcome = self.applied(physics, tags, operation);
        Bind::of(outcome, self.ledger.freed)
    }

    fn adopt(&mut self, physics: &Physics, tags: &[Tag], operation: &Operation) -> Adopt {
        let Operation::Adopt { digest, origin, .. } = operation else { panic!("{operation:?}") };
        let freed = self.ledger.freed;
        match physics.flaw {
            Flaw::AdoptIgnoresFreed => {
                let (digest, origin) = (*digest, *origin);
                let operation = Operation::Adopt { digest, origin, freed };
                self.applied(physics, tags, &operation).into()
            }
            _ => self.applied(physics, tags, operation).into(),
        }
    }

    fn applied(&mut self, physics: &Physics, tags: &[Tag], operation: &Operation) -> Outcome {
        if physics.flaw == Flaw::NoDeleteMark {
            let around = Around { freed: self.ledger.freed, marked: false };
            return self.ledger.apply_as(tags, operation, around);
        }
        self.ledger.apply(tags, operation)
    }

    fn abort(&mut self, physics: &Physics, tags: &[Tag], digest: &Digest, a: AttemptId) {
        if physics.flaw == Flaw::AbortIgnoresOthers {
            for tag in tags {
                if let Entry::Pending(pending) = &mut self.ledger.entries.get_mut(tag).unwrap()
                    && pending.digest == *digest
                {
                    pending.owners = vec![a];
                }
            }
        }
        self.ledger.apply(tags, &Operation::Abort { digest: *digest, attempt: a });
    }

    /// Hands a pusher its event and records a verdict.
    fn tell(&mut self, physics: &Physics, n: usize, event: Event<()>) -> Result<(), Violation> {
        if physics.deletes.is_some() && self.pushers[n].number.is_none() {
            let digest = *self.pushers[n].machine.push().content.digest();
            let number = u8::try_from(n).unwrap();
            self.ghost.begin(number, Call::Push(digest));
            self.pusher(n).number = Some(number);
        }
        let pusher = self.pusher(n);
        let number = pusher.number;
        match pusher.machine.on(event) {
            Step::Do(action) => pusher.doing = Doing::Act(action),
            Step::Done(verdict) => {
                pusher.doing = Doing::Over;
                let digest = *pusher.machine.push().content.digest();
                if let Some(number) = number {
                    return self.ended(number, &verdict);
                }
                match verdict {
                    Verdict::Admitted { tags, .. } => {
                        self.acknowledged.extend(tags.into_iter().map(|tag| (tag, digest)));
                    }
                    Verdict::Refused(conflict) if conflict.bound == digest => {
                        return Err(format!("{n} was refused for its own image"));
                    }
                    Verdict::Refused(_)
                    | Verdict::Unbound(_)
                    | Verdict::Relayed(())
                    | Verdict::Unseeing(())
                    | Verdict::Undecided(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Whether the verdict has a place in the history.
    fn ended(&mut self, number: u8, verdict: &Verdict<()>) -> Result<(), Violation> {
        let fits = match verdict {
            Verdict::Admitted { tags, .. } if !tags.is_empty() => {
                self.ghost.end(number, Told::Done)
            }
            Verdict::Refused(conflict) => self.ghost.end(number, Told::Refused(conflict.bound)),
            // It may have taken place, or take place yet: its PUT may.
            _ => true,
        };
        if fits { Ok(()) } else { Err(format!("{verdict:?} has no place in the history")) }
    }

    /// The promises, in every state.
    fn checked(self, physics: &Physics) -> Result<Self, Violation> {
        if physics.deletes.is_some() {
            // Where names are freed, each answer is held to the specification instead.
            return Ok(self);
        }
        for tag in self.ledger.entries.keys() {
            let acknowledged = self.acknowledged.iter().filter(|(t, _)| t == tag);
            let digests: Vec<_> = acknowledged.map(|(_, digest)| *digest).collect();
            if digests.len() > 1 {
                return Err(format!("two images were acknowledged for {tag}"));
            }
            // A PUT through taglock never moves an acknowledged tag; somebody else's may.
            if !self.moved && digests.iter().any(|digest| self.registry.get(tag) != Some(digest)) {
                return Err(format!("{tag} was acknowledged and is another image in the registry"));
            }
            self.check_pulls(tag)?;
        }
        let at_rest =
            self.net.is_empty() && self.pushers.iter().all(|pusher| pusher.doing == Doing::Over);
        if at_rest && !self.disturbed {
            for (tag, entry) in &self.ledger.entries {
                if matches!(entry, Entry::Pending(_)) {
                    return Err(format!("{tag} is left pending though every push has ended"));
                }
            }
        }
        Ok(self)
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = Folded(0);
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// A hash of 64 bits that costs little without optimisation: each eight bytes are multiplied to twice
/// their length and folded.
struct Folded(u64);

impl Folded {
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x2d35_8dcc_aa6c_78a5) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word) ^ chunk.len() as u64);
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.fold(u64::from(n));
    }

    fn write_usize(&mut self, n: usize) {
        self.fold(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.fold(n as u64);
    }

    fn write_u64(&mut self, n: u64) {
        self.fold(n);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What an exhaustive search found.
#[derive(Debug)]
enum Found {
    Holds { states: usize },
    Violated { what: Violation, trace: Vec<String> },
}

/// Breadth first, so that a counterexample is a shortest one.
fn search(start: World, physics: &Physics) -> Found {
    // Of each state, the one it was first reached from, and by which of its events.
    let first = start.fingerprint();
    let mut parents = HashMap::from([(first, (0, 0))]);
    let mut queue = VecDeque::from([(first, start.clone())]);
    while let Some((here, world)) = queue.pop_front() {
        for (n, (_, next)) in world.next(physics).into_iter().enumerate() {
            match next {
                Ok(next) => {
                    let there = next.fingerprint();
                    if let Slot::Vacant(slot) = parents.entry(there) {
                        slot.insert((here, n));
                        queue.push_back((there, next));
                    }
                }
                Err(what) => {
                    let mut events = vec![n];
                    let mut at = here;
                    while at != first {
                        let (parent, event) = parents[&at];
                        events.push(event);
                        at = parent;
                    }
                    events.reverse();
                    return Found::Violated { what, trace: trace(start, physics, &events) };
                }
            }
        }
    }
    Found::Holds { states: parents.len() }
}

/// The names of these events, one after the other.
fn trace(start: World, physics: &Physics, events: &[usize]) -> Vec<String> {
    let physics = Physics { named: true, ..physics.clone() };
    let mut world = start;
    let mut names = Vec::new();
    for event in events {
        let (name, next) = world.next(&physics).swap_remove(*event);
        names.push(name);
        match next {
            Ok(next) => world = next,
            Err(_) => break,
        }
    }
    names
}
