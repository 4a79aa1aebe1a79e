//! Writes that nobody judges, as `mutable.rs` does them: pushes under a mutable rule. And rules that change
//! while they are under way.

use super::network::{Reply, Request, Sender};
use super::pushes::{Call, Heard};
use super::specification::{End, Kind, Op};
use super::*;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Writing {
    pub proxy: usize,
    tag: Tag,
    pub op: Op,
    /// What the ledger held before.
    held: Vec<(Tag, Entry)>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    LookingUp,
    /// For repairs that began before it.
    Waiting,
    Sending,
    Sent,
    Superseding,
    LookingAgain,
}

/// The image of mutable writes.
const WRITE: &str = "write";

impl World {
    /// The rules of a proxy are read again.
    pub(super) fn reload(&self, physics: &Physics, proxy: usize, next: &mut Next) {
        if self.budget.reloads == 0 || physics.upgrade && proxy == 1 {
            return;
        }
        let mut world = self.clone();
        world.budget.reloads -= 1;
        world.proxies[proxy].mutable ^= true;
        if physics.upgrade {
            // The newer process has them from the start.
            world.proxies[1].mutable = world.proxies[0].mutable;
        }
        let mutable = world.proxies[proxy].mutable;
        next.push((physics.label(|| format!("proxy {proxy}: mutable {mutable}")), Ok(world)));
    }

    /// Whether a judged write, or a look that may bind, waits for unjudged writes of its process, and of the
    /// older one whose place it has taken.
    pub(super) fn unjudged_writes(&self, physics: &Physics, proxy: usize) -> bool {
        if physics.has(Flaw::UnjudgedNotWaitedFor) {
            return false;
        }
        let older = physics.upgrade && !physics.has(Flaw::NotHandedOver);
        self.jobs.values().any(|job| match job {
            Job::Write(writing) => writing.proxy == proxy || older,
            // It has entered as a write does.
            Job::Release(releasing) => releasing.proxy == proxy && releasing.has_entered(),
            Job::Delete(_) | Job::Repair(_) => false,
        })
    }

    pub(super) fn begin_write(&self, physics: &Physics, proxy: usize, next: &mut Next) {
        if self.budget.writes == 0 || !self.proxies[proxy].mutable {
            return;
        }
        if physics.upgrade && proxy == 1 {
            return;
        }
        for (place, tag) in physics.tags.iter().enumerate() {
            let mut world = self.clone();
            world.budget.writes -= 1;
            let op = world.specification().begin(Kind::Write(image(&digest(WRITE))), [place]);
            let (tag, held, stage) = (tag.clone(), Vec::new(), Stage::LookingUp);
            let writing = Writing { proxy, tag, op, held, stage };
            let id = world.enter(Job::Write(writing.clone()));
            world.write_on(physics, id, &writing, next);
        }
    }

    pub(super) fn write_on(&self, physics: &Physics, id: u8, writing: &Writing, next: &mut Next) {
        let label =
            physics.label(|| format!("write {id} at {} {:?}", writing.proxy, writing.stage));
        let mut add = |how: &str, world: Result<Self, Violation>| {
            let world = world.and_then(|world| world.checked(physics));
            next.push((physics.label(|| format!("{label}{how}")), world));
        };
        let tag = &writing.tag;
        match writing.stage {
            Stage::LookingUp => self.look_up_held(physics, id, writing, &mut add),
            Stage::Waiting if self.repairs(physics, writing.proxy) => {}
            Stage::Waiting => add("", Ok(self.write_at(id, writing, Stage::Sending))),
            Stage::Sending => {
                let mut world = self.write_at(id, writing, Stage::Sent);
                let what = Request::Put { tag: tag.clone(), digest: digest(WRITE) };
                world.send(what, Sender::Job(id));
                add("", Ok(world));
            }
            Stage::Sent => {}
            Stage::Superseding => {
                let mut done = self.clone();
                let dropped = done.ledger.supersede(physics.flaw, &writing.held);
                if self.drops_unseen(&done, writing) {
                    return add("", Err("a write drops a binding that it has not seen".into()));
                }
                for (how, mut world, heard) in self.calls(physics, &done, Call::Frees) {
                    if heard == Heard::Repeats {
                        add(how, Ok(world));
                        continue;
                    }
                    let dropped = if heard == Heard::Answer { &dropped[..] } else { &[] };
                    let (proxy, held) = (writing.proxy, &writing.held);
                    world.remember_superseded(physics, proxy, held, dropped);
                    add(how, world.written(physics, id, writing));
                }
            }
            Stage::LookingAgain => {
                let end = match &self.ledger.entries[tag] {
                    Entry::Sealed(sealed) if sealed.digest != digest(WRITE) => {
                        End::Conflict(image(&sealed.digest))
                    }
                    // The client is told that the tag is claimed; whether its image stays is not known.
                    Entry::Pending(pending) if pending.digest != digest(WRITE) => End::Unknown,
                    _ => End::Done,
                };
                let mut done = self.clone();
                done.ledger.invalidate(physics.flaw);
                for (how, world, heard) in self.calls(physics, &done, Call::Frees) {
                    if heard == Heard::Repeats {
                        add(how, Ok(world));
                        continue;
                    }
                    let end = if heard == Heard::Answer { end } else { End::Unknown };
                    add(how, world.write_over(physics, id, writing, end));
                }
            }
        }
    }

    fn look_up_held(
        &self,
        physics: &Physics,
        id: u8,
        writing: &Writing,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let tag = &writing.tag;
        let entry = self.ledger.entries[tag].clone();
        let held = Some((tag.clone(), entry)).filter(|(_, entry)| *entry != Entry::Absent);
        let held: Vec<_> = held.into_iter().collect();
        for (how, mut world, heard) in self.calls(physics, self, Call::Reads) {
            if heard == Heard::Answer {
                world.learn(physics, writing.proxy);
            }
            // With the ledger down it goes on all the same.
            let held = if heard == Heard::Answer { held.clone() } else { Vec::new() };
            let waits = !held.is_empty() && self.may_repair();
            let next = if waits { Stage::Waiting } else { Stage::Sending };
            let writing = Writing { held, ..writing.clone() };
            add(how, Ok(world.write_at(id, &writing, next)));
        }
    }

    /// Whether a binding is gone that the write had not seen.
    fn drops_unseen(&self, after: &Self, writing: &Writing) -> bool {
        let bound = |world: &Self| matches!(world.ledger.entries[&writing.tag], Entry::Sealed(_));
        let seen = writing.held.iter().find_map(|(_, entry)| entry.token());
        bound(self) && !bound(after) && seen != self.ledger.entries[&writing.tag].token()
    }

    fn write_at(&self, id: u8, writing: &Writing, stage: Stage) -> Self {
        let mut world = self.clone();
        world.jobs.insert(id, Job::Write(Writing { stage, ..writing.clone() }));
        world
    }

    /// Whether it is acknowledged now, or after another look.
    fn written(&self, physics: &Physics, id: u8, writing: &Writing) -> Result<Self, Violation> {
        if physics.shared && !physics.has(Flaw::NoLookAfterWrite) {
            return Ok(self.write_at(id, writing, Stage::LookingAgain));
        }
        self.write_over(physics, id, writing, End::Done)
    }

    fn write_over(
        &self,
        physics: &Physics,
        id: u8,
        writing: &Writing,
        end: End,
    ) -> Result<Self, Violation> {
        let mut world = self.clone();
        world.jobs.remove(&id);
        world.written = end == End::Done;
        let place = physics.place(&writing.tag);
        match world.specification().end(writing.op, place, end) {
            true => Ok(world),
            false => Err(format!("a mutable write ended as {end:?} against what was acknowledged")),
        }
    }

    pub(super) fn write_answered(
        &mut self,
        physics: &Physics,
        id: u8,
        writing: Writing,
        reply: Reply,
    ) -> Result<(), Violation> {
        *self = match reply {
            Reply::Done if writing.held.is_empty() => self.written(physics, id, &writing)?,
            Reply::Done => self.write_at(id, &writing, Stage::Superseding),
            Reply::Unknown => self.write_over(physics, id, &writing, End::Unknown)?,
            Reply::Denied | Reply::Refused | Reply::NotFound => {
                self.write_over(physics, id, &writing, End::Nothing)?
            }
        };
        Ok(())
    }
}
