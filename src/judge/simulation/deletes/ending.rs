//! What follows from the registry's word, once it has deleted or has not.

use super::*;
use crate::judge::deleting::is_ended;
use crate::judge::simulation::losses::State;
use crate::ledger::Ended;

impl World {
    pub(super) fn supersede_deleted(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        pass: u8,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let mut done = self.clone();
        let dropped = done.ledger.supersede(physics.flaw, &deletion.superseded);
        for (how, mut world, heard) in self.calls(physics, &done, Call::Frees) {
            if heard != Heard::Repeats {
                let dropped = if heard == Heard::Answer { &dropped[..] } else { &[] };
                let seen = &deletion.superseded;
                world.remember_superseded(physics, deletion.proxy, seen, dropped);
                world = world.delete_at(id, deletion, Stage::LookingAtSuperseded(pass));
            }
            add(how, Ok(world));
        }
    }

    /// A claim may have been bound since it was seen.
    pub(super) fn look_at_superseded(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        pass: u8,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let mut left = Vec::new();
        for (tag, _) in &deletion.superseded {
            let entry = &self.ledger.entries[tag];
            if entry.digest() == Some(&digest(DELETED)) {
                left.push((tag.clone(), entry.clone()));
            }
        }
        let last = pass == 1 || left.is_empty() || physics.has(Flaw::MutableDeleteLooksOnce);
        let ends = Stage::Ending(deletion.end(), Told::Deleted);
        for (how, mut world, heard) in self.calls(physics, self, Call::Reads) {
            let answered = heard == Heard::Answer;
            if answered {
                world.learn(physics, deletion.proxy);
            }
            let again = Deletion { superseded: left.clone(), ..deletion.clone() };
            add(
                how,
                Ok(match answered && !last {
                    true => world.delete_at(id, &again, Stage::Superseding(1)),
                    false => world.delete_at(id, deletion, ends.clone()),
                }),
            );
        }
    }

    /// The names are withdrawn or freed, and the mark goes, in one transition.
    pub(super) fn unmark(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        (end, told): (DeleteEnd, Told),
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let image = digest(DELETED);
        let (mut attempts, tags) = match end {
            DeleteEnd::Refused => (vec![deletion.attempt], &[][..]),
            _ => (vec![deletion.attempt], &deletion.tags[..]),
        };
        if end != DeleteEnd::Refused {
            attempts.extend(&deletion.earlier);
        }
        let mut done = self.clone();
        let ended = done.ledger.end_delete(physics, &image, &attempts, tags, end);
        for (how, mut world, heard) in self.calls(physics, &done, Call::Frees) {
            if heard == Heard::Repeats {
                add(how, Ok(world));
                continue;
            }
            world.remember_deleted(physics, deletion, end, (heard, &ended));
            let world = match (told, heard, &ended) {
                (Told::Nothing, _, _) => world.delete_over(physics, id, deletion, End::Nothing),
                (Told::GoesOn, _, _) => {
                    let deletion = Deletion { marked: false, ..deletion.clone() };
                    Ok(world.delete_at(id, &deletion, Stage::Sending))
                }
                (Told::Deleted, Heard::Answer, Ended::NoMark)
                    if !physics.has(Flaw::LostMarkIsAcknowledged) =>
                {
                    Ok(world.delete_at(id, deletion, Stage::LookingAtUnmarked(end)))
                }
                (Told::Deleted, Heard::Answer, _) => {
                    world.delete_over(physics, id, deletion, End::Done)
                }
                // The image is gone; whether its names are free is not known.
                (Told::Deleted, _, _) => world.delete_over(physics, id, deletion, End::Unknown),
            };
            add(how, world);
        }
    }

    /// What is bound now may be a later push, and stays: the client is told so.
    pub(super) fn look_at_unmarked(
        &self,
        physics: &Physics,
        id: u8,
        deletion: &Deletion,
        end: DeleteEnd,
        add: &mut impl FnMut(&str, Result<Self, Violation>),
    ) {
        let stays = |tag: &Tag| {
            let entry = &self.ledger.entries[tag];
            !is_ended(entry, end) && entry.digest() == Some(&digest(DELETED))
        };
        let looked_at = match physics.has(Flaw::LostMarkLooksAtItsTags) {
            true => &deletion.tags,
            false => &physics.tags,
        };
        let unmarked = end != DeleteEnd::Kept && looked_at.iter().any(stays);
        let mut done = self.clone();
        done.ledger.invalidate(physics.flaw);
        for (how, mut world, heard) in self.calls(physics, &done, Call::Frees) {
            if heard == Heard::Repeats {
                add(how, Ok(world));
                continue;
            }
            let known = heard == Heard::Answer;
            if known {
                world.learn(physics, deletion.proxy);
            }
            let over = if known && !unmarked { End::Done } else { End::Unknown };
            add(how, world.delete_over(physics, id, deletion, over));
        }
    }

    fn remember_deleted(
        &mut self,
        physics: &Physics,
        deletion: &Deletion,
        end: DeleteEnd,
        (heard, ended): (Heard, &Ended),
    ) {
        let state = match end {
            DeleteEnd::Refused | DeleteEnd::Kept => return,
            DeleteEnd::Withdrawn => State::Withdrawn,
            DeleteEnd::Released => State::Freed,
        };
        let proxy = deletion.proxy;
        let before = self.proxies[proxy].heard;
        let changed = match (heard, ended) {
            (Heard::Answer, Ended::Done(changed)) => &changed[..],
            _ => &[],
        };
        if heard == Heard::Answer {
            self.hear(physics, proxy);
        }
        for tag in &deletion.tags {
            let is = changed.contains(tag).then_some((state, before));
            self.remember_end(physics, proxy, tag, is);
        }
    }

    /// What a proxy remembers once it has superseded what it had seen.
    pub(in crate::judge::simulation) fn remember_superseded(
        &mut self,
        physics: &Physics,
        proxy: usize,
        seen: &[(Tag, Entry)],
        dropped: &[Holder],
    ) {
        let before = self.proxies[proxy].heard;
        self.hear(physics, proxy);
        for (tag, entry) in seen {
            let dropped = dropped.iter().any(|dropped| dropped.tag == *tag);
            let token = entry.token().filter(|_| dropped);
            let is = token.map(|token| (State::Freed, token.sequence.max(before)));
            self.remember_end(physics, proxy, tag, is);
        }
    }
}
