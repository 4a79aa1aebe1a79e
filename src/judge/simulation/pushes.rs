//! Pushes in the simulated world: the production machine, and what may come of each of its actions.

use super::losses::State;
use super::network::{Request, Sender};
use super::specification::{End, Op};
use super::*;
use crate::judge::permit::Basis;
use crate::judge::push::Phase;
use crate::judge::step::{Event, Eyes, Step, Verdict};
use crate::ledger::{Bind, Unavailable};
use crate::registry::{Sighting, Trouble, Written};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pusher {
    machine: Machine<()>,
    pub doing: Doing,
    fetched: Option<Digest>,
    proxy: usize,
    /// From its first action on.
    op: Option<Op>,
    /// It waited for the unjudged writes of its process.
    waited: bool,
    /// The claim that it joined last had no other owner.
    joined_nothing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doing {
    Act(Action),
    /// Its PUT is on its way.
    Awaits,
    Over,
}

/// What a call of the ledger does, as far as replicas and a ledger that is restored are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// A binding that is met is confirmed.
    Reads,
    /// The delete marks alone.
    ReadsMarks,
    /// A claim, an adoption or a delete mark.
    Begins,
    Binds,
    /// This goes on while the ledger is restored.
    Aborts,
    Frees,
}

/// What the caller of the ledger hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Answer,
    /// No answer in time.
    Nothing,
    /// No answer, and the call is made again.
    Repeats,
}

impl Pusher {
    pub fn new(machine: Machine<()>, action: Action, proxy: usize) -> Self {
        Self {
            machine,
            doing: Doing::Act(action),
            fetched: None,
            proxy,
            op: None,
            waited: false,
            joined_nothing: false,
        }
    }

    fn digest(&self) -> Digest {
        *self.machine.push().content.digest()
    }
}

impl World {
    pub(super) fn pusher(&mut self, n: usize) -> &mut Pusher {
        Rc::make_mut(&mut self.pushers[n])
    }

    pub(super) fn push_on(&self, physics: &Physics, next: &mut Next) {
        for n in 0..self.pushers.len() {
            let Pusher { doing, op, .. } = &*self.pushers[n];
            if let Doing::Act(action) = doing {
                if op.is_some() {
                    self.act(physics, n, action.clone(), next);
                } else if !self.proxies[self.pushers[n].proxy].mutable {
                    // It is judged by the rules of the moment at which it begins.
                    let mut world = self.clone();
                    world.begin_push(n);
                    world.act(physics, n, action.clone(), next);
                }
            }
            if *doing != Doing::Over && op.is_some() && self.budget.crashes > 0 {
                let mut world = self.clone();
                world.budget.crashes -= 1;
                world.disturbed = true;
                world.forget(physics, Sender::Pusher(n));
                let ended = world.end_push(physics, n, |_| End::Unknown);
                let world = ended.and_then(|()| world.checked(physics));
                next.push((physics.label(|| format!("{n} crashes")), world));
            }
        }
    }

    /// The world in which the n-th pusher has sent its PUT, and nobody else has begun.
    pub(super) fn with_sent(mut self, physics: &Physics, n: usize) -> Self {
        self.begin_push(n);
        while let Doing::Act(action) = self.pushers[n].doing.clone() {
            let mut next = Vec::new();
            self.act(physics, n, action, &mut next);
            let (_, world) = next.pop().expect("it goes on");
            self = world.expect("alone it breaks no promise");
        }
        self
    }

    fn begin_push(&mut self, n: usize) {
        let image = image(&self.pushers[n].digest());
        let op = self.specification().begin_push(n, image);
        self.pusher(n).op = Some(op);
    }

    /// What may come of a call of the ledger, after which the world is `done`.
    pub(super) fn calls(
        &self,
        physics: &Physics,
        done: &Self,
        call: Call,
    ) -> Vec<(&'static str, Self, Heard)> {
        let goes_on = match call {
            Call::ReadsMarks | Call::Aborts => true,
            Call::Binds => physics.has(Flaw::BindWhileRestored),
            Call::Reads | Call::Begins | Call::Frees => false,
        };
        if self.restoring(physics) && !goes_on {
            return Vec::new();
        }
        let mut all = Vec::new();
        if self.budget.troubles > 0 {
            let spend = |world: &Self| {
                let mut world = world.clone();
                world.budget.troubles -= 1;
                world.disturbed = true;
                world
            };
            if done.ledger != self.ledger {
                all.push((", answer lost", spend(done), Heard::Nothing));
            }
            all.push((", not done", spend(self), Heard::Nothing));
        }
        if self.budget.repeats > 0 && done.ledger != self.ledger {
            let mut world = done.clone();
            world.budget.repeats -= 1;
            all.push((", to be repeated", world, Heard::Repeats));
        }
        let mut done = done.clone();
        let waits = match call {
            Call::Begins | Call::Binds => true,
            Call::ReadsMarks => false,
            Call::Aborts | Call::Frees => !physics.has(Flaw::ReleaseWaitsForNoReplica),
            Call::Reads => !physics.has(Flaw::UnconfirmedReads) && done.ledger.binds(),
        };
        if physics.wait && waits {
            // The replica has it, or it would not have been answered.
            done.replica = done.ledger.clone();
        }
        all.push(("", done, Heard::Answer));
        all
    }

    /// A call of the ledger by a pusher.
    fn call(
        &self,
        physics: &Physics,
        n: usize,
        (done, call): (&Self, Call),
        add: &mut impl FnMut(&str, Self, Event<()>),
        (answer, lost): (Event<()>, Event<()>),
    ) {
        for (how, mut world, heard) in self.calls(physics, done, call) {
            match heard {
                Heard::Answer => {
                    world.learn_of(physics, self.pushers[n].proxy, &answer);
                    add(how, world, answer.clone());
                }
                Heard::Nothing => add(how, world, lost.clone()),
                // It is asked for again, by the same action.
                Heard::Repeats => add(how, world, Event::Waited),
            }
        }
    }

    /// What the proxy remembers of an answer of the ledger.
    fn learn_of(&mut self, physics: &Physics, proxy: usize, answer: &Event<()>) {
        match answer {
            Event::Aborted(_) => self.hear(physics, proxy),
            Event::Bound(Ok(Bind::Gone { tags, .. })) => {
                self.hear(physics, proxy);
                for tag in tags {
                    self.remember_end(physics, proxy, tag, Some((State::Freed, 0)));
                }
            }
            Event::Bound(Ok(Bind::Bound)) => {
                let tags = physics.tags.clone();
                self.learn_bound(physics, proxy, &tags);
            }
            _ => self.learn(physics, proxy),
        }
    }

    /// What may come of a pusher's action.
    fn act(&self, physics: &Physics, n: usize, action: Action, next: &mut Next) {
        let label = physics.label(|| format!("{n} {action:?}"));
        let repeatable = matches!(
            action,
            Action::Claim { .. }
                | Action::Bind { .. }
                | Action::Adopt { .. }
                | Action::Abort { .. }
        );
        let mut add = |how: &str, mut world: Self, event: Event<()>| {
            let told = match event {
                Event::Waited if repeatable => Ok(()),
                event => world.tell(physics, n, event),
            };
            let world = told.and_then(|()| world.checked(physics));
            next.push((physics.label(|| format!("{label}{how}")), world));
        };
        let looks = matches!(action, Action::Look(_) | Action::Resolve(_) | Action::LookStaged);
        if physics.blind && looks && self.pushers[n].machine.eyes() == Eyes::Client {
            return add(", denied", self.clone(), Event::Seen(Sighting::Denied(())));
        }
        match action {
            Action::Look(_) | Action::Resolve(_) | Action::LookStaged => {
                self.look(physics, n, &action, &mut add);
            }
            Action::Lookup => self.look_up(physics, n, &mut add),
            Action::Wait => add("", self.clone(), Event::Waited),
            Action::Stage => {
                let mut world = self.clone();
                world.stored.insert(self.pushers[n].digest());
                add("", world.clone(), Event::Written(Written::Created(())));
                if let Some(world) = world.troubled() {
                    let unknown = Written::Unknown(Trouble::TimedOut);
                    add(", answer lost", world, Event::Written(unknown));
                }
            }
            // No image of this world lists others.
            Action::LookAtParts => add("", self.clone(), Event::Parts(Ok(None))),
            Action::Claim { .. } | Action::Bind { .. } => self.bind(physics, n, action, &mut add),
            Action::Adopt { .. } | Action::Abort { .. } => {
                self.settle(physics, n, action, &mut add);
            }
            Action::Publish(permit) => {
                let digest = self.pushers[n].digest();
                let world = self.sent(n, permit.tag(), digest);
                next.push((label, Ok(world)));
            }
            Action::Fetch(digest) => {
                let mut world = self.clone();
                let found = self.stored.contains(&digest);
                world.pusher(n).fetched = found.then_some(digest);
                add("", world, Event::Fetched(Ok(found)));
            }
            Action::PublishFetched(permit) => {
                next.push((label, self.sent_fetched(physics, n, permit.tag())));
            }
        }
    }

    fn look_up(&self, physics: &Physics, n: usize, add: &mut impl FnMut(&str, Self, Event<()>)) {
        let Pusher { machine, proxy, waited, .. } = &*self.pushers[n];
        let mut world = self.clone();
        // As the driver does: once, and not before the registry has let this client push.
        if !waited && !machine.is_unproven() && !machine.is_unasked() {
            if self.unjudged_writes(physics, *proxy) {
                return;
            }
            world.pusher(n).waited = true;
        }
        let found = Event::Entries(Ok(self.ledger.lookup(&physics.tags)));
        let lost = Event::Entries(Err(Unavailable::TimedOut));
        self.call(physics, n, (&world, Call::Reads), add, (found, lost));
    }

    fn look(
        &self,
        physics: &Physics,
        n: usize,
        action: &Action,
        add: &mut impl FnMut(&str, Self, Event<()>),
    ) {
        let pusher = &self.pushers[n];
        let second = matches!(pusher.machine.phase, Phase::Rechecking(_));
        let confirms = matches!(pusher.machine.phase, Phase::Confirming(..));
        let seen = match action {
            Action::Look(_) if confirms && physics.has(Flaw::GoneIsAcknowledged) => {
                Some(pusher.digest())
            }
            Action::Look(_) if second && physics.has(Flaw::NoSecondLook) => None,
            Action::Look(tag) | Action::Resolve(tag) => self.registry.get(tag).copied(),
            _ => Some(pusher.digest()).filter(|digest| self.stored.contains(digest)),
        };
        add("", self.clone(), Event::Seen(seen.map_or(Sighting::NotFound(()), Sighting::Found)));
        if let Some(world) = self.troubled() {
            add(", unclear", world, Event::Seen(Sighting::Unclear(Trouble::TimedOut)));
        }
    }

    fn bind(
        &self,
        physics: &Physics,
        n: usize,
        action: Action,
        add: &mut impl FnMut(&str, Self, Event<()>),
    ) {
        let mut world = self.clone();
        let lost = Unavailable::TimedOut;
        match action {
            Action::Claim { tags, digest, attempt } => {
                let absent = tags.iter().any(|tag| match &self.ledger.entries[tag] {
                    Entry::Absent => true,
                    Entry::Pending(pending) => pending.owners == [attempt],
                    Entry::Sealed(_) => false,
                });
                world.pusher(n).joined_nothing = absent;
                let claim = world.ledger.claim(physics.flaw, &tags, &digest, attempt);
                let (answer, lost) = (Event::Claimed(Ok(claim)), Event::Claimed(Err(lost)));
                self.call(physics, n, (&world, Call::Begins), add, (answer, lost));
            }
            Action::Bind { tags, digest, attempt, freed } => {
                let permits = &self.pushers[n].machine.permits;
                let bound = permits.iter().all(|permit| permit.basis() == Basis::Sealed);
                if physics.has(Flaw::BoundPushAsksNoMore) && bound {
                    return add("", world, Event::Bound(Ok(Bind::Bound)));
                }
                let bound = world.ledger.bind(physics.flaw, &tags, &digest, attempt, freed);
                let (answer, lost) = match physics.flaw {
                    Flaw::AckUnbound => (bound, Ok(Bind::Bound)),
                    _ => (bound, Err(lost)),
                };
                let (answer, lost) = (Event::Bound(Ok(answer)), Event::Bound(lost));
                self.call(physics, n, (&world, Call::Binds), add, (answer, lost));
            }
            _ => unreachable!("a claim or a binding"),
        }
    }

    fn settle(
        &self,
        physics: &Physics,
        n: usize,
        action: Action,
        add: &mut impl FnMut(&str, Self, Event<()>),
    ) {
        let mut world = self.clone();
        let lost = Unavailable::TimedOut;
        match action {
            Action::Adopt { tag, digest, origin, freed } => {
                let adopted = world.ledger.adopt(physics.flaw, &tag, &digest, origin, freed);
                let (answer, lost) = (Event::Adopted(Ok(adopted)), Event::Adopted(Err(lost)));
                self.call(physics, n, (&world, Call::Begins), add, (answer, lost));
            }
            Action::Abort { tags, digest, attempt } => {
                world.ledger.abort(physics.flaw, &tags, &digest, attempt);
                let (answer, lost) = (Event::Aborted(Ok(())), Event::Aborted(Err(lost)));
                self.call(physics, n, (&world, Call::Aborts), add, (answer, lost));
            }
            _ => unreachable!("an adoption or an abort"),
        }
    }

    fn sent(&self, n: usize, tag: &Tag, digest: Digest) -> Self {
        let mut world = self.clone();
        world.send(Request::Put { tag: tag.clone(), digest }, Sender::Pusher(n));
        world.pusher(n).doing = Doing::Awaits;
        world
    }

    fn sent_fetched(&self, physics: &Physics, n: usize, tag: &Tag) -> Result<Self, Violation> {
        if physics.roll_forward == RollForward::Published {
            return Err("an image is published with another client's rights".into());
        }
        if self.pushers[n].joined_nothing {
            return Err("an image is published whose claim was taken back".into());
        }
        Ok(self.sent(n, tag, self.pushers[n].fetched.expect("it was fetched")))
    }

    /// A look, or an answer of the registry, that fails.
    pub(super) fn troubled(&self) -> Option<Self> {
        (self.budget.troubles > 0).then(|| {
            let mut world = self.clone();
            world.budget.troubles -= 1;
            world.disturbed = true;
            world
        })
    }

    /// Hands a pusher its event and records a verdict.
    pub(super) fn tell(
        &mut self,
        physics: &Physics,
        n: usize,
        event: Event<()>,
    ) -> Result<(), Violation> {
        let verdict = match self.pusher(n).machine.on(event) {
            Step::Do(action) => {
                self.pusher(n).doing = Doing::Act(action);
                return Ok(());
            }
            Step::Done(verdict) => verdict,
        };
        let digest = self.pushers[n].digest();
        match verdict {
            Verdict::Admitted { tags, sealed, .. } => {
                let end = if sealed { End::Done } else { End::Taken };
                let of = |tag: &Tag| if tags.contains(tag) { end } else { End::Nothing };
                self.end_push(physics, n, of)?;
                if self.still {
                    self.acknowledged.extend(tags.into_iter().map(|tag| (tag, digest)));
                }
                Ok(())
            }
            Verdict::Refused(conflict) if conflict.bound == digest => {
                Err(format!("{n} was refused for its own image"))
            }
            Verdict::Refused(conflict) => {
                let bound = image(&conflict.bound);
                let of = |tag: &Tag| match *tag == conflict.tag {
                    true => End::Conflict(bound),
                    false => End::Nothing,
                };
                self.end_push(physics, n, of)
            }
            Verdict::Relayed(()) => self.end_push(physics, n, |_| End::Nothing),
            Verdict::Unbound(_) | Verdict::Unseeing(()) | Verdict::Undecided(_) => {
                self.end_push(physics, n, |_| End::Unknown)
            }
        }
    }

    fn end_push(
        &mut self,
        physics: &Physics,
        n: usize,
        of: impl Fn(&Tag) -> End,
    ) -> Result<(), Violation> {
        let pusher = self.pusher(n);
        pusher.doing = Doing::Over;
        let Some(op) = pusher.op else { return Ok(()) };
        for (place, tag) in physics.tags.iter().enumerate() {
            let end = of(tag);
            // One that others may publish still is never over.
            let open = matches!(end, End::Nothing | End::Unknown);
            if open && physics.roll_forward == RollForward::Staged {
                continue;
            }
            if !self.specification().end(op, place, end) {
                return Err(match end {
                    End::Done | End::Taken => {
                        format!(
                            "a push of {tag} was acknowledged against what was acknowledged before"
                        )
                    }
                    End::Conflict(_) => {
                        format!("a push of {tag} was refused for an image it is not")
                    }
                    _ => {
                        format!("a push of {tag} has changed something that it was told it has not")
                    }
                });
            }
        }
        Ok(())
    }
}
