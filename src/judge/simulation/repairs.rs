//! Repairs of tags that were moved behind taglock: a model of the driver in `drift.rs`.

use super::network::{Request, Sender};
use super::pushes::{Call, Heard};
use super::*;
use crate::ledger::Sealed;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Repairing {
    pub proxy: usize,
    tag: Tag,
    /// What the tag was bound to when the registry was seen to show something else.
    bound: Sealed,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Seen,
    /// From here on what frees or moves the tag waits for the repair.
    Entered,
    LookingUp,
    Sending,
    Sent,
}

impl World {
    /// Whether what frees or moves a tag waits for a repair of its process.
    pub(super) fn repairs(&self, physics: &Physics, proxy: usize) -> bool {
        let here = |job: &Job| match job {
            Job::Repair(repairing) => repairing.proxy == proxy && repairing.stage != Stage::Seen,
            _ => false,
        };
        !physics.has(Flaw::RepairNotWaitedFor) && self.jobs.values().any(here)
    }

    /// Without repairs nothing waits for any.
    pub(super) fn may_repair(&self) -> bool {
        self.budget.repairs > 0 || self.jobs.values().any(|job| matches!(job, Job::Repair(_)))
    }

    /// A pull has shown that the registry's own tag is another, and the registry has the bound image still.
    pub(super) fn begin_repair(&self, physics: &Physics, proxy: usize, next: &mut Next) {
        if self.budget.repairs == 0 || self.restoring(physics) {
            return;
        }
        for tag in &physics.tags {
            let Entry::Sealed(bound) = &self.ledger.entries[tag] else { continue };
            let shown = self.registry.get(tag);
            if bound.withdrawn.is_some()
                || shown.is_none_or(|shown| *shown == bound.digest)
                || !self.stored.contains(&bound.digest)
            {
                continue;
            }
            let mut world = self.clone();
            world.budget.repairs -= 1;
            world.learn(physics, proxy);
            let (tag, bound, stage) = (tag.clone(), bound.clone(), Stage::Seen);
            world.enter(Job::Repair(Repairing { proxy, tag, bound, stage }));
            next.push((physics.label(|| format!("a repair begins at {proxy}")), Ok(world)));
        }
    }

    pub(super) fn repair_on(
        &self,
        physics: &Physics,
        id: u8,
        repairing: &Repairing,
        next: &mut Next,
    ) {
        let Repairing { proxy, tag, bound, stage } = repairing;
        let label = physics.label(|| format!("repair {id} at {proxy} {stage:?}"));
        match stage {
            // It does not begin while a write or a release of the tag is under way in its process.
            Stage::Seen => {
                let enters = !self.moves_names(*proxy) || physics.has(Flaw::RepairIgnoresWrites);
                let world = self.repair_at(id, repairing, enters.then_some(Stage::Entered));
                next.push((label, Ok(world)));
            }
            Stage::Entered => {
                let marked = self.ledger.marks.contains_key(&bound.digest);
                let goes_on = !marked || physics.has(Flaw::RepairIgnoresMarks);
                for (how, world, heard) in self.calls(physics, self, Call::ReadsMarks) {
                    let stage = (heard == Heard::Answer && goes_on).then_some(Stage::LookingUp);
                    let world = world.repair_at(id, repairing, stage);
                    next.push((physics.label(|| format!("{label}{how}")), Ok(world)));
                }
            }
            Stage::LookingUp => {
                let stands = self.ledger.entries[tag] == Entry::Sealed(bound.clone());
                for (how, mut world, heard) in self.calls(physics, self, Call::Reads) {
                    let answered = heard == Heard::Answer;
                    if answered {
                        world.learn(physics, *proxy);
                    }
                    let stage = (answered && stands).then_some(Stage::Sending);
                    let world = world.repair_at(id, repairing, stage);
                    next.push((physics.label(|| format!("{label}{how}")), Ok(world)));
                }
            }
            Stage::Sending => {
                let mut world = self.repair_at(id, repairing, Some(Stage::Sent));
                let what = Request::Put { tag: tag.clone(), digest: bound.digest };
                world.send(what, Sender::Job(id));
                next.push((label, Ok(world)));
            }
            Stage::Sent => {}
        }
    }

    fn repair_at(&self, id: u8, repairing: &Repairing, stage: Option<Stage>) -> Self {
        let mut world = self.clone();
        match stage {
            Some(stage) => {
                world.jobs.insert(id, Job::Repair(Repairing { stage, ..repairing.clone() }));
            }
            None => {
                world.jobs.remove(&id);
            }
        }
        world
    }

    /// Whether a write or a release is under way in this process.
    fn moves_names(&self, proxy: usize) -> bool {
        self.jobs.values().any(|job| match job {
            Job::Release(releasing) => releasing.proxy == proxy && releasing.has_entered(),
            Job::Write(writing) => writing.proxy == proxy,
            Job::Delete(_) | Job::Repair(_) => false,
        })
    }
}
