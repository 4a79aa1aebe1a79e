//! Deletes of an image by its digest, in two steps: a model of the drivers in `delete.rs`, `deleting.rs` and
//! `mutable_delete.rs`, which do what follows in this order. What the tags that have the image mean to the
//! delete is the production `plan`.

use super::network::{Reply, Request, Sender};
use super::pushes::{Call, Heard};
use super::specification::{End, Kind, Op};
use super::*;
use crate::judge::delete::{Plan, plan};
use crate::ledger::{Adopt, Begun, DeleteEnd, FreedNumber, Holder, Origin};
use crate::rules::{Mutability, RefusalStyle, RepositoryPattern, Rule, Source};

mod ending;

/// The image that is deleted.
const DELETED: &str = "one";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Deletion {
    pub proxy: usize,
    /// Under which rule; `None` for a mutable one.
    rule: Option<Deletes>,
    pub op: Op,
    attempt: AttemptId,
    /// False for one under a mutable rule that goes on without the ledger.
    marked: bool,
    /// DELETEs of other processes and of earlier times without a definitive answer.
    earlier: Vec<AttemptId>,
    /// The immutable tags that had the image when the mark was made.
    tags: Vec<Tag>,
    /// Entries that the delete frees because its rule leaves their tags mutable.
    superseded: Vec<(Tag, Entry)>,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The registry is asked whether the client may see the image.
    LettingIn,
    /// Every tag that the registry has and the ledger lacks is adopted first.
    LookingUp,
    /// The last of these tags is asked for. Where something was freed meanwhile, all begins `again`.
    Resolving {
        rest: Vec<usize>,
        freed: FreedNumber,
        again: bool,
    },
    Adopting {
        rest: Vec<usize>,
        shown: Digest,
        freed: FreedNumber,
        again: bool,
    },
    Beginning,
    /// For repairs that began before the mark: one would put the image back.
    Waiting,
    Sending,
    Sent,
    /// For the first or the second time.
    Superseding(u8),
    /// What has the digest still.
    LookingAtSuperseded(u8),
    /// What becomes of the names, and what the client is told.
    Ending(DeleteEnd, Told),
    /// The mark was gone: whether the names are as this end leaves them.
    LookingAtUnmarked(DeleteEnd),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Deleted,
    Nothing,
    /// The mark was taken back, and the DELETE is sent without it.
    GoesOn,
}

/// What the registry's answer means to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settle {
    Deleted,
    NotFound,
    Refused,
    Unknown,
}

impl Settle {
    pub fn of(reply: Reply) -> Self {
        match reply {
            Reply::Done => Self::Deleted,
            Reply::NotFound => Self::NotFound,
            Reply::Denied | Reply::Refused => Self::Refused,
            Reply::Unknown => Self::Unknown,
        }
    }
}

/// A rule that makes every tag immutable.
fn rule(deletes: Deletes) -> Rule {
    Rule {
        name: "r".into(),
        source: Source::CommandLine,
        repositories: vec![RepositoryPattern::parse("**").unwrap()],
        mutability: Mutability::Immutable,
        except: Vec::new(),
        protect_signatures: false,
        refusal: RefusalStyle::Oci,
        deletes,
        except_must_be_bound: false,
        enforce: true,
        anonymous_pull: false,
    }
}

type Pairs = Vec<(Tag, Entry)>;

fn pairs(holders: Vec<Holder>) -> Pairs {
    holders.into_iter().map(|Holder { tag, entry }| (tag, entry)).collect()
}

impl World {
    pub(super) fn begin_delete(&self, physics: &Physics, proxy: usize, next: &mut Next) {
        if self.budget.deletes == 0 || physics.upgrade && proxy == 1 {
            return;
        }
        let mut world = self.clone();
        let attempt = AttemptId::from_bytes([100 + self.budget.deletes; 16]);
        world.budget.deletes -= 1;
        let rule = (!self.proxies[proxy].mutable).then_some(physics.deletes);
        let kind = Kind::Delete(image(&digest(DELETED)), rule);
        let op = world.specification().begin(kind, 0..physics.tags.len());
        let deletion = Deletion {
            proxy,
            rule,
            op,
            attempt,
            marked: true,
            earlier: Vec::new(),
            tags: Vec::new(),
            superseded: Vec::new(),
            stage: Stage::LettingIn,
        };
        let id = world.enter(Job::Delete(deletion.clone()));
        world.delete_on(physics, id, &deletion, next);
    }

    /// What may come of a delete's next step.
    pub(super) fn delete_on(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        next: &mut Next,
    ) {
        let Deletion { proxy, rule, stage, .. } = deletion;
        let label = physics.label(|| format!("delete {id} at {proxy} under {rule:?} {stage:?}"));
        let mut add = |how: &str, world: Result<Self, Violation>| {
            let world = world.and_then(|world| world.checked(physics));
            next.push((physics.label(|| format!("{label}{how}")), world));
        };
        match stage {
            Stage::LettingIn => add("", self.let_in(physics, id, deletion)),
            Stage::LookingUp => self.look_for_absent(physics, id, deletion, &mut add),
            Stage::Resolving { rest, freed, again } => {
                let (freed, again) = (*freed, *again);
                let place = *rest.last().expect("there is one");
                let shown = self.registry.get(&physics.tags[place]);
                let stage = match shown {
                    Some(shown) => {
                        Stage::Adopting { rest: rest.clone(), shown: *shown, freed, again }
                    }
                    None => Stage::after(rest, freed, again),
                };
                add("", Ok(self.delete_at(id, deletion, stage)));
            }
            Stage::Adopting { .. } => self.adopt_shown(physics, id, deletion, &mut add),
            Stage::Beginning => self.mark(physics, id, deletion, &mut add),
            Stage::Waiting if self.repairs(physics, *proxy) => {}
            Stage::Waiting => add("", Ok(self.delete_at(id, deletion, Stage::Sending))),
            Stage::Sending => {
                let mut world = self.delete_at(id, deletion, Stage::Sent);
                let what = Request::Delete { digest: digest(DELETED), rule: *rule };
                world.send(what, Sender::Job(id));
                add("", Ok(world));
            }
            Stage::Sent => {}
            Stage::Superseding(pass) => {
                self.supersede_deleted(physics, id, deletion, *pass, &mut add);
            }
            Stage::LookingAtSuperseded(pass) => {
                self.look_at_superseded(physics, id, deletion, *pass, &mut add);
            }
            Stage::Ending(end, told) => self.unmark(physics, id, deletion, (*end, *told), &mut add),
            Stage::LookingAtUnmarked(end) => {
                self.look_at_unmarked(physics, id, deletion, *end, &mut add);
            }
        }
    }

    fn let_in(&self, physics: &Physics, id: u8, deletion: &Deletion) -> Result<Self, Violation> {
        let image = digest(DELETED);
        let seen = self.stored.contains(&image) || self.ledger.marks.contains_key(&image);
        match deletion.rule {
            None => Ok(self.delete_at(id, deletion, Stage::Beginning)),
            Some(_) if !seen => self.delete_over(physics, id, deletion, End::Nothing),
            Some(Deletes::Release) => Ok(self.delete_at(id, deletion, Stage::Beginning)),
            Some(Deletes::Refuse | Deletes::Keep) => {
                Ok(self.delete_at(id, deletion, Stage::LookingUp))
            }
        }
    }

    fn delete_at(&self, id: u8, deletion: &Deletion, stage: Stage) -> Self {
        let mut world = self.clone();
        world.jobs.insert(id, Job::Delete(Deletion { stage, ..deletion.clone() }));
        world
    }

    fn delete_over(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        end: End,
    ) -> Result<Self, Violation> {
        let mut world = self.clone();
        world.jobs.remove(&id);
        for place in 0..physics.tags.len() {
            if !world.specification().end(deletion.op, place, end) {
                return Err(match end {
                    End::Done => "a delete was acknowledged against what was acknowledged before",
                    _ => "a delete has changed something that it was told it has not",
                }
                .into());
            }
        }
        Ok(world)
    }

    /// Tags that were there before taglock count like any other.
    fn look_for_absent(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let absent = |place: &usize| self.ledger.entries[&physics.tags[*place]] == Entry::Absent;
        let rest: Vec<_> = (0..physics.tags.len()).filter(absent).collect();
        if !rest.is_empty() && self.unjudged_writes(physics, deletion.proxy) {
            return;
        }
        let stage = match rest.is_empty() {
            true => Stage::Beginning,
            false => Stage::Resolving { rest, freed: self.ledger.number(), again: false },
        };
        for (how, mut world, heard) in self.calls(physics, self, Call::Reads) {
            add(
                how,
                match heard {
                    Heard::Answer => {
                        world.learn(physics, deletion.proxy);
                        Ok(world.delete_at(id, deletion, stage.clone()))
                    }
                    _ => world.delete_over(physics, id, deletion, End::Nothing),
                },
            );
        }
    }

    fn adopt_shown(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let Stage::Adopting { rest, shown, freed, again } = &deletion.stage else { return };
        let tag = &physics.tags[*rest.last().expect("there is one")];
        let mut done = self.clone();
        let adopted = done.ledger.adopt(physics.flaw, tag, shown, Origin::Import, *freed);
        for (how, mut world, heard) in self.calls(physics, &done, Call::Begins) {
            let again = *again || adopted == Adopt::Freed;
            add(
                how,
                match (heard, &adopted) {
                    (Heard::Repeats, _) => Ok(world),
                    (Heard::Answer, Adopt::Adopted | Adopt::Conflict(_) | Adopt::Freed) => {
                        world.learn(physics, deletion.proxy);
                        Ok(world.delete_at(id, deletion, Stage::after(rest, *freed, again)))
                    }
                    (Heard::Answer, Adopt::Deleting) | (Heard::Nothing, _) => {
                        world.delete_over(physics, id, deletion, End::Nothing)
                    }
                },
            );
        }
    }

    fn mark(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let mut done = self.clone();
        let begun = done.ledger.begin_delete(&digest(DELETED), deletion.attempt);
        for (how, mut world, heard) in self.calls(physics, &done, Call::Begins) {
            add(
                how,
                Ok(match heard {
                    Heard::Repeats => world,
                    Heard::Answer => {
                        world.learn(physics, deletion.proxy);
                        world.decide(physics, id, deletion, begun.clone())
                    }
                    // The mark may have been made all the same: it is taken back.
                    Heard::Nothing => {
                        let told = deletion.rule.map_or(Told::GoesOn, |_| Told::Nothing);
                        let stage = Stage::Ending(DeleteEnd::Refused, told);
                        world.delete_at(id, deletion, stage)
                    }
                }),
            );
        }
    }

    /// Whether the DELETE is sent, by the tags that have the image while the mark stands.
    fn decide(&self, physics: &Physics, id: u8, deletion: &Deletion, begun: Begun) -> Self {
        let Begun { holders, mut earlier } = begun;
        let under_way = |attempt: &AttemptId| {
            self.jobs.values().any(|job| match job {
                Job::Delete(other) => other.proxy == deletion.proxy && other.attempt == *attempt,
                _ => false,
            })
        };
        earlier.retain(|other| !under_way(other));
        let planned = match deletion.rule {
            Some(deletes) => plan(&rule(deletes), holders),
            None => {
                Ok(Plan { tags: Vec::new(), end: DeleteEnd::Kept, superseded: holders.clone() })
            }
        };
        let mut deletion = Deletion { earlier, ..deletion.clone() };
        match planned {
            Ok(Plan { tags, superseded, .. }) => {
                deletion.tags = tags;
                if !physics.has(Flaw::MutableDeleteKeepsBinding) {
                    deletion.superseded = pairs(superseded);
                }
                let waits = !deletion.tags.is_empty() && self.may_repair();
                self.delete_at(id, &deletion, if waits { Stage::Waiting } else { Stage::Sending })
            }
            Err(_) => {
                let stage = Stage::Ending(DeleteEnd::Refused, Told::Nothing);
                self.delete_at(id, &deletion, stage)
            }
        }
    }

    /// The registry has answered, or has not in time.
    pub(super) fn delete_answered(
        &mut self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        answer: Settle,
    ) -> Result<(), Violation> {
        if matches!(answer, Settle::Deleted | Settle::NotFound) {
            self.outdate_deletes(physics, &digest(DELETED));
        }
        let gone = match answer {
            Settle::Deleted => true,
            // Gone by an earlier DELETE, whose outcome was unknown.
            Settle::NotFound => !deletion.earlier.is_empty(),
            Settle::Refused => false,
            Settle::Unknown => {
                if physics.has(Flaw::UnknownDeleteIsUnmarked) {
                    self.ledger.clear_mark(&digest(DELETED), deletion.attempt);
                }
                *self = self.delete_over(physics, id, deletion, End::Unknown)?;
                return Ok(());
            }
        };
        if !deletion.marked {
            // It does nothing to the ledger, which was away: bindings may be left.
            let end = if gone { End::Unknown } else { End::Nothing };
            *self = self.delete_over(physics, id, deletion, end)?;
            return Ok(());
        }
        let stage = match gone {
            false => Stage::Ending(DeleteEnd::Refused, Told::Nothing),
            true if deletion.superseded.is_empty() => Stage::Ending(deletion.end(), Told::Deleted),
            true => Stage::Superseding(0),
        };
        *self = self.delete_at(id, deletion, stage);
        Ok(())
    }
}

impl Stage {
    /// Once the last of these tags is adopted, or is not there.
    fn after(rest: &[usize], freed: FreedNumber, again: bool) -> Self {
        match rest {
            [] | [_] if again => Self::LookingUp,
            [] | [_] => Self::Beginning,
            [rest @ .., _] => Self::Resolving { rest: rest.to_vec(), freed, again },
        }
    }
}

impl Deletion {
    fn end(&self) -> DeleteEnd {
        match self.rule {
            None | Some(Deletes::Refuse) => DeleteEnd::Kept,
            Some(Deletes::Keep) => DeleteEnd::Withdrawn,
            Some(Deletes::Release) => DeleteEnd::Released,
        }
    }
}
