//! Operators that free a name: a model of `release` in `admin/ledger.rs`. They look at its entry, and
//! release the life that they have seen.

use super::losses::State;
use super::pushes::{Call, Heard};
use super::specification::{End, Kind, Op};
use super::*;
use crate::ledger::{Release, Token};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Releasing {
    pub proxy: usize,
    tag: Tag,
    token: Token,
    pub op: Op,
    /// An answer was lost, so the name may be free already.
    repeated: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Looked,
    /// From here on no repair begins, and judged writes wait. Those that have begun are waited for.
    Entered,
    Waited,
    LookingAgain,
}

impl Releasing {
    pub fn has_entered(&self) -> bool {
        self.stage != Stage::Looked
    }
}

impl World {
    /// An operator has seen a bound name.
    pub(super) fn begin_release(&self, physics: &Physics, proxy: usize, next: &mut Next) {
        if self.budget.releases == 0 || self.restoring(physics) {
            return;
        }
        for (place, tag) in physics.tags.iter().enumerate() {
            let Entry::Sealed(sealed) = &self.ledger.entries[tag] else { continue };
            let mut world = self.clone();
            world.budget.releases -= 1;
            world.learn(physics, proxy);
            if physics.clears {
                world.registry.remove(tag);
                world.specification().clear(place);
            }
            let kind = Kind::Release(image(&sealed.digest));
            let op = world.specification().begin(kind, [place]);
            let (tag, token, stage) = (tag.clone(), sealed.token(), Stage::Looked);
            world.enter(Job::Release(Releasing { proxy, tag, token, op, repeated: false, stage }));
            let label = physics.label(|| format!("a release begins at {proxy}"));
            next.push((label, world.checked(physics)));
        }
    }

    pub(super) fn release_on(
        &self,
        physics: &Physics,
        id: u8,
        releasing: &Releasing,
        next: &mut Next,
    ) {
        let Releasing { proxy, tag, repeated, stage, .. } = releasing;
        match stage {
            Stage::Looked => {
                let world = self.release_at(id, releasing, Stage::Entered);
                next.push((physics.label(|| format!("release {id} enters")), Ok(world)));
            }
            Stage::Entered if self.repairs(physics, *proxy) => {}
            Stage::Entered => {
                let world = self.release_at(id, releasing, Stage::Waited);
                next.push((physics.label(|| format!("release {id} has waited")), Ok(world)));
            }
            Stage::Waited => self.release(physics, id, releasing, next),
            Stage::LookingAgain => {
                let free = self.ledger.entries[tag] == Entry::Absent;
                for (how, world, heard) in self.calls(physics, self, Call::Reads) {
                    let end = match heard {
                        Heard::Answer if free => End::Free,
                        Heard::Answer if !*repeated => End::Nothing,
                        _ => End::Unknown,
                    };
                    let world = world.release_over(physics, id, releasing, end);
                    next.push((physics.label(|| format!("release {id} looks again{how}")), world));
                }
            }
        }
    }

    fn release(&self, physics: &Physics, id: u8, releasing: &Releasing, next: &mut Next) {
        let Releasing { proxy, tag, token, .. } = releasing;
        let mut done = self.clone();
        let released = done.ledger.release(physics.flaw, tag, *token);
        let there = self.ledger.entries[tag].token();
        if released == Release::Freed && there != Some(*token) {
            let what = format!("a life of {tag} is released that the operator has not seen");
            return next.push((physics.label(|| format!("release {id}")), Err(what)));
        }
        for (how, mut world, heard) in self.calls(physics, &done, Call::Frees) {
            let before = world.proxies[*proxy].heard;
            if heard == Heard::Answer {
                world.hear(physics, *proxy);
            }
            let freed = (heard, released) == (Heard::Answer, Release::Freed);
            let is = freed.then_some((State::Freed, token.sequence.max(before)));
            if heard != Heard::Repeats {
                world.remember_end(physics, *proxy, tag, is);
            }
            let world = match (heard, released) {
                (Heard::Repeats, _) => {
                    let releasing = Releasing { repeated: true, ..releasing.clone() };
                    Ok(world.release_at(id, &releasing, Stage::Waited))
                }
                (Heard::Nothing, _) => world.release_over(physics, id, releasing, End::Unknown),
                (Heard::Answer, Release::Freed) => {
                    world.release_over(physics, id, releasing, End::Done)
                }
                (Heard::Answer, Release::Changed) => {
                    Ok(world.release_at(id, releasing, Stage::LookingAgain))
                }
            };
            next.push((physics.label(|| format!("release {id} {released:?}{how}")), world));
        }
    }

    fn release_at(&self, id: u8, releasing: &Releasing, stage: Stage) -> Self {
        let mut world = self.clone();
        world.jobs.insert(id, Job::Release(Releasing { stage, ..releasing.clone() }));
        world
    }

    fn release_over(
        &self,
        physics: &Physics,
        id: u8,
        releasing: &Releasing,
        end: End,
    ) -> Result<Self, Violation> {
        let mut world = self.clone();
        world.jobs.remove(&id);
        let tag = &releasing.tag;
        match world.specification().end(releasing.op, physics.place(tag), end) {
            true => world.checked(physics),
            false => Err(format!("{tag} was released as another image than the operator saw")),
        }
    }
}
