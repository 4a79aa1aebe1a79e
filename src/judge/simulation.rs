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
use super::step::{Action, Blind, Content, Event, Eyes, Options, Push, Step, Verdict};
use crate::ledger::table::{self, Change, Stamp};
use crate::ledger::{
    AttemptId, Claim, Entry, Holder, Pending, RepositoryKey, Seal, Timestamp, Unavailable,
};
use crate::name::{Algorithm, Digest, RepositoryName, Tag, UpstreamName};
use crate::registry::{Sighting, Trouble, Written};

mod pulls;
mod searches;

use pulls::Puller;

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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ledger: BTreeMap<Tag, Entry>,
    replica: BTreeMap<Tag, Entry>,
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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pusher {
    machine: Machine<()>,
    doing: Doing,
    fetched: Option<Digest>,
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
}

/// A promise that was broken.
type Violation = String;
type Next = Vec<(String, Result<World, Violation>)>;

const STAMP: Stamp = Stamp { now: Timestamp::EPOCH, sequence: 0 };

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

impl World {
    /// One pusher for each image, each of these tags.
    fn new(images: &[&str], physics: &Physics, budget: Budget) -> Self {
        let blind = if physics.blind { Blind::Account } else { Blind::Relay };
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
                    true => {
                        Options { stage: false, shown: true, patience: 1, ..Options::default() }
                    }
                    false => Options { patience: 1, blind, ..Options::default() },
                },
            });
            Rc::new(Pusher { machine, doing: Doing::Act(action), fetched: None })
        });
        let stored = images.iter().skip(1).filter(|_| physics.stored);
        let stored = stored.map(|image| Digest::of(Algorithm::Sha256, image.as_bytes()));
        let absent: BTreeMap<_, _> =
            physics.tags.iter().map(|tag| (tag.clone(), Entry::Absent)).collect();
        Self {
            ledger: absent.clone(),
            replica: absent,
            registry: BTreeMap::new(),
            staged: stored.collect(),
            pushers: pushers.collect(),
            net: Vec::new(),
            acknowledged: BTreeSet::new(),
            pullers: Vec::new(),
            served: BTreeSet::new(),
            moved: false,
            budget,
            disturbed: false,
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
                next.push((physics.label(|| format!("{n} crashes")), world.checked()));
            }
        }
        for m in 0..self.net.len() {
            self.travel(physics, m, &mut next);
        }
        self.pulls(physics, &mut next);
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
            let told = world.tell(n, event);
            let world = told.and_then(|()| world.checked());
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
                let entries = physics.tags.iter().map(|tag| self.ledger[tag].clone()).collect();
                add("", self.clone(), Event::Entries(Ok(entries)));
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
            Action::Seal { tags, digest, origin } => {
                let mut world = self.clone();
                let sealed = world
                    .apply(&tags, |entry| table::seal(entry, &digest, origin, STAMP))
                    .map_or_else(Seal::Conflict, |()| Seal::Sealed);
                if let Some(world) = spend(&world) {
                    add(", answer lost", world, Event::Sealed(Err(lost())));
                }
                if let Some(world) = spend(self) {
                    add(", not done", world, Event::Sealed(Err(lost())));
                }
                add("", world, Event::Sealed(Ok(sealed)));
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
        world.net.push(Put { pusher, tag: tag.clone(), digest, awaited: true });
        world.pusher(pusher).doing = Doing::Awaits;
        world
    }

    /// What may come of a PUT on its way.
    fn travel(&self, physics: &Physics, m: usize, next: &mut Next) {
        let put = &self.net[m];
        let mut add = |what: &str, mut world: Self, event: Option<Written<()>>| {
            let told = match event {
                Some(written) => world.tell(put.pusher, Event::Written(written)),
                None => Ok(()),
            };
            let Put { digest, tag, pusher, .. } = put;
            let label =
                physics.label(|| format!("the PUT of {digest} for {tag} by {pusher} {what}"));
            let world = told.and_then(|()| world.checked());
            next.push((label, world));
        };
        let unknown = || match physics.flaw {
            Flaw::TimeoutIsRefusal => Written::Refused(()),
            _ => Written::Unknown(Trouble::TimedOut),
        };
        let mut arrived = self.clone();
        arrived.net.remove(m);
        let gone = arrived.clone();
        arrived.registry.insert(put.tag.clone(), put.digest);
        if !put.awaited {
            add("arrives late", arrived, None);
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
        let before: Vec<_> = tags.iter().map(|tag| self.ledger[tag].clone()).collect();
        let done = self.apply(tags, |entry| match (physics.flaw, entry) {
            (Flaw::TakeOver, Entry::Pending(pending)) if pending.digest != *digest => {
                table::claim(&Entry::Absent, digest, a, STAMP)
            }
            (Flaw::SharedOwner, Entry::Pending(pending))
                if pending.digest == *digest && !pending.owners.contains(&a) =>
            {
                let owners = vec![AttemptId::from_bytes([0; 16])];
                Change::Put(Entry::Pending(Pending { owners, ..pending.clone() }))
            }
            (_, entry) => table::claim(entry, digest, a, STAMP),
        });
        done.map_or_else(Claim::Held, |()| Claim::granted(tags.iter().zip(&before)))
    }

    fn abort(&mut self, physics: &Physics, tags: &[Tag], digest: &Digest, a: AttemptId) {
        let flaw = physics.flaw;
        // Nothing stands against an abort.
        let _ = self.apply(tags, |entry| match (flaw, entry) {
            (Flaw::AbortIgnoresOthers, Entry::Pending(pending)) if pending.digest == *digest => {
                Change::Put(Entry::Absent)
            }
            (_, entry) => table::abort(entry, digest, a),
        });
    }

    fn apply(&mut self, tags: &[Tag], on: impl Fn(&Entry) -> Change) -> Result<(), Vec<Holder>> {
        let mut puts = Vec::new();
        let mut standing = Vec::new();
        for tag in tags {
            match on(&self.ledger[tag]) {
                Change::Keep => {}
                Change::Put(entry) => puts.push((tag.clone(), entry)),
                Change::Stands => {
                    standing.push(Holder { tag: tag.clone(), entry: self.ledger[tag].clone() });
                }
            }
        }
        if standing.is_empty() {
            self.ledger.extend(puts);
            Ok(())
        } else {
            Err(standing)
        }
    }

    /// Hands a pusher its event and records a verdict.
    fn tell(&mut self, n: usize, event: Event<()>) -> Result<(), Violation> {
        let pusher = self.pusher(n);
        match pusher.machine.on(event) {
            Step::Do(action) => pusher.doing = Doing::Act(action),
            Step::Done(verdict) => {
                pusher.doing = Doing::Over;
                let digest = *pusher.machine.push().content.digest();
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

    /// The promises, in every state.
    fn checked(self) -> Result<Self, Violation> {
        for tag in self.ledger.keys() {
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
            for (tag, entry) in &self.ledger {
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
