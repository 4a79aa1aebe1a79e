//! What one tag is, in real-time order: a checker of linearizability that goes along with the world.
//!
//! Each operation takes effect once, at some time between its beginning and its end. The specification
//! keeps every state of the tag that is possible still, together with the operations under way that have
//! taken effect in it. An end that no state explains is a violation. Operations take effect
//! lazily, when something ends that asks for it.

use std::collections::BTreeSet;

use crate::rules::Deletes;

/// An image, by its number.
pub(super) type Image = u8;
/// An operation under way, by its number.
pub(super) type Op = usize;

/// How many operations may be under way at once.
const OPS: usize = 11;

/// What a tag is to those who use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name {
    bound: Option<Image>,
    withdrawn: bool,
    /// The image that it is bound to was deleted.
    gone: bool,
    /// What the registry has under the tag, to be adopted while it is not bound.
    shows: Option<Image>,
}

/// A state of the tag, and what each operation under way has come to by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct State {
    came_to: Progress,
    name: Name,
}

/// What each operation under way has come to, eleven bits each: states are compared more than all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Progress(u128);

impl Progress {
    const BITS: usize = 11;

    fn of(self, op: Op) -> CameTo {
        let bits = (self.0 >> (op * Self::BITS)) as u16;
        let step = match bits >> 7 & 0xf {
            0 => Step::No,
            1 => Step::Done,
            2 => Step::Taken,
            3 => Step::Half,
            bound => Step::Outrun(bound as u8 - 4),
        };
        CameTo { step, sees: bits as u8 & 0x7f }
    }

    fn with(self, op: Op, CameTo { step, sees }: CameTo) -> Self {
        let step = match step {
            Step::No => 0,
            Step::Done => 1,
            Step::Taken => 2,
            Step::Half => 3,
            Step::Outrun(bound) => 4 + bound,
        };
        let at = op * Self::BITS;
        let bits = u128::from(step) << 7 | u128::from(sees);
        Self(self.0 & !(0x7ff << at) | bits << at)
    }

    /// Whether everything came as far as in the other, and some saw less.
    fn sees_less_than(self, other: Self) -> bool {
        let steps = (0..OPS).fold(0, |mask, op| mask | 0x780 << (op * Self::BITS));
        self.0 & steps == other.0 & steps && self.0 & !other.0 & !steps == 0
    }
}

/// What an operation under way has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct CameTo {
    step: Step,
    /// The answers that it has got in passing, which change nothing: one bit for each.
    sees: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Step {
    /// It has changed nothing.
    No,
    Done,
    /// A push whose name is free again.
    Taken,
    /// A delete whose image is gone, and whose name is not free or withdrawn yet.
    Half,
    /// A mutable push, or one whose claim was lost, that came after the tag was bound to this.
    Outrun(Image),
}

const NONE: CameTo = CameTo { step: Step::No, sees: 0 };
/// The bit of "there is nothing"; those of images are below.
const NOTHING: u8 = 1 << 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Push(Image),
    Pull,
    /// A push under a mutable rule.
    Write(Image),
    /// Under this rule; `None` for a mutable one.
    Delete(Image, Option<Deletes>),
    /// An operator frees a name that is bound to this image.
    Release(Image),
    /// A PUT for which nobody waits any more.
    LatePut(Image),
    /// A DELETE for which nobody waits any more.
    LateDelete(Image, Option<Deletes>),
}

/// How an operation ends for one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Acknowledged, served as nothing, deleted, freed: it has taken effect.
    Done,
    /// A push was acknowledged, and its name had been freed meanwhile.
    Taken,
    /// Refused, because the tag is bound to this image.
    Conflict(Image),
    Served(Image),
    /// There is nothing under the tag.
    NotFound,
    /// The name is free, whoever freed it.
    Free,
    /// It has changed nothing.
    Nothing,
    /// Nobody knows.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Specification {
    ops: [Option<Kind>; OPS],
    /// Of each tag, the possible states.
    tags: Vec<Vec<State>>,
    /// Of each operation, the tags that it still goes on for.
    open: [u8; OPS],
    /// The first so many numbers are those of pushes, whichever begins first.
    pushes: usize,
    allows: Allows,
}

/// What the world does that the promises leave room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Allows {
    /// The rules may leave the tags mutable for a time.
    pub mutable: bool,
    /// The ledger may lose claims. A push whose claim it lost may move the registry's own tag, and be
    /// refused then.
    pub lost_claims: bool,
}

impl Name {
    fn put(mut self, image: Image) -> Self {
        self.shows = Some(image);
        self.gone &= self.bound != Some(image);
        self
    }

    fn bind(self, image: Image) -> Self {
        Self { bound: Some(image), withdrawn: false, gone: false, shows: self.shows }
    }

    fn free(self) -> Self {
        Self { bound: None, withdrawn: false, gone: false, shows: self.shows }
    }

    fn delete(mut self, image: Image) -> Self {
        self.shows = self.shows.filter(|shown| *shown != image);
        self.gone |= self.bound == Some(image);
        self
    }

    fn holds(&self, image: Image) -> bool {
        self.bound == Some(image) || self.bound.is_none() && self.shows == Some(image)
    }

    /// The answers that this operation gets here without changing anything.
    fn answers(&self, kind: Kind) -> u8 {
        match (kind, self.bound) {
            (Kind::Push(image), Some(bound)) if bound != image => 1 << bound,
            (Kind::Pull, Some(_)) if self.withdrawn => NOTHING,
            (Kind::Pull, Some(bound)) if self.gone => NOTHING | 1 << bound,
            (Kind::Pull, Some(bound)) => 1 << bound,
            // What the registry shows is adopted first, and bound by then.
            (Kind::Pull, None) if self.shows.is_none() => NOTHING,
            (Kind::Release(_), None) => NOTHING,
            _ => 0,
        }
    }

    /// What comes of an operation that takes effect here, if it may.
    fn after(self, kind: Kind, so_far: Step, allows: Allows) -> [Option<(Self, Step)>; 2] {
        let one = |name, step| [Some((name, step)), None];
        match (kind, so_far) {
            (Kind::Delete(image, rule), _) => self.deleted(image, rule, so_far),
            // Taglock may push once more, as a client may that repeats its push.
            (Kind::Push(image), _) => self.pushed(image, allows),
            (_, so_far) if so_far != Step::No => [None; 2],
            (Kind::Write(image), _) => {
                let done = (self.free().put(image), Step::Done);
                let outrun = self.bound.map(|bound| (self.put(image), Step::Outrun(bound)));
                [Some(done), outrun]
            }
            (Kind::Release(image), _) if self.bound == Some(image) => one(self.free(), Step::Done),
            (Kind::LatePut(image), _) => one(self.put(image), Step::Done),
            (Kind::LateDelete(image, Some(Deletes::Refuse)), _) if self.holds(image) => [None; 2],
            (Kind::LateDelete(image, _), _) => one(self.delete(image), Step::Done),
            _ => [None; 2],
        }
    }

    /// Where rules change, one that began under the stricter ones may move the tag as a mutable one does.
    fn pushed(self, image: Image, allows: Allows) -> [Option<(Self, Step)>; 2] {
        let put = self.put(image);
        match self.bound {
            Some(bound) if bound != image && allows.lost_claims => {
                [Some((put, Step::Outrun(bound))), None]
            }
            Some(bound) if bound != image => [None; 2],
            Some(_) => [Some((put.bind(image), Step::Done)), None],
            None => {
                let other = self.shows.is_some_and(|shown| shown != image);
                let bound = (!other).then_some((put.bind(image), Step::Done));
                let taken = (!other || allows.mutable).then_some((put, Step::Taken));
                [taken, bound]
            }
        }
    }

    /// The image goes first, and then what the rule says of the name.
    fn deleted(
        self,
        image: Image,
        rule: Option<Deletes>,
        so_far: Step,
    ) -> [Option<(Self, Step)>; 2] {
        let after = match (rule, so_far) {
            (Some(Deletes::Refuse), Step::No) if self.holds(image) => None,
            (Some(Deletes::Refuse), Step::No) => Some((self, Step::Done)),
            (_, Step::No) => Some((self.delete(image), Step::Half)),
            // Not if it was pushed again since.
            (_, Step::Half) if self.bound != Some(image) || !self.gone => Some((self, Step::Done)),
            (Some(Deletes::Keep), Step::Half) => {
                Some((Self { withdrawn: true, ..self }, Step::Done))
            }
            (_, Step::Half) => Some((self.free(), Step::Done)),
            _ => None,
        };
        [after, None]
    }
}

impl End {
    fn is_of(self, CameTo { step, sees }: CameTo) -> bool {
        match self {
            Self::Unknown => true,
            Self::Done => step == Step::Done,
            Self::Taken => matches!(step, Step::Done | Step::Taken),
            Self::Conflict(image) => step == Step::Outrun(image) || sees & 1 << image != 0,
            Self::Served(image) => sees & 1 << image != 0,
            Self::NotFound => sees & NOTHING != 0,
            Self::Free => step == Step::Done || sees & NOTHING != 0,
            Self::Nothing => step == Step::No,
        }
    }
}

impl Specification {
    /// What the registry shows under the tags at the start, and whether they are bound to it.
    pub fn new(
        tags: usize,
        (shows, bound): (Option<Image>, bool),
        pushes: usize,
        allows: Allows,
    ) -> Self {
        let bound = shows.filter(|_| bound);
        let name = Name { bound, withdrawn: false, gone: false, shows };
        let start = State { name, came_to: Progress::default() };
        Self { ops: [None; OPS], tags: vec![vec![start]; tags], open: [0; OPS], pushes, allows }
    }

    /// An operation on these tags begins.
    pub fn begin(&mut self, kind: Kind, tags: impl IntoIterator<Item = usize>) -> Op {
        let mut free = (self.pushes..OPS).filter(|op| self.ops[*op].is_none());
        let op = free.next().expect("few operations are under way");
        self.begin_as(op, kind, tags);
        op
    }

    /// The n-th push begins.
    pub fn begin_push(&mut self, n: usize, image: Image) -> Op {
        self.begin_as(n, Kind::Push(image), 0..self.tags.len());
        n
    }

    fn begin_as(&mut self, op: Op, kind: Kind, tags: impl IntoIterator<Item = usize>) {
        self.ops[op] = Some(kind);
        self.open[op] = tags.into_iter().fold(0, |set, tag| set | 1 << tag);
        for tag in 0..self.tags.len() {
            let states = self.tags[tag].iter().map(|state| self.noted(tag, *state)).collect();
            self.tags[tag] = states;
        }
    }

    /// It ends for one of its tags. False where no order explains that.
    #[must_use]
    pub fn end(&mut self, op: Op, tag: usize, end: End) -> bool {
        let mut after = BTreeSet::new();
        let again = matches!(self.ops[op], Some(Kind::Push(_)));
        self.explore(tag, |state| {
            let came_to = state.came_to.of(op);
            if !end.is_of(came_to) {
                return true;
            }
            let mut ended = *state;
            ended.came_to = ended.came_to.with(op, NONE);
            after.insert(ended);
            // What else takes effect can do so later.
            again || end == End::Unknown
        });
        self.open[op] &= !(1 << tag);
        if self.open[op] == 0 {
            self.ops[op] = None;
        }
        self.keep(tag, after);
        !self.tags[tag].is_empty()
    }

    /// Somebody else puts an image under a tag.
    pub fn put(&mut self, tag: usize, image: Image) {
        let mut after = BTreeSet::new();
        self.explore(tag, |state| {
            let moved = State { name: state.name.put(image), ..*state };
            after.insert(self.noted(tag, moved));
            true
        });
        self.keep(tag, after);
    }

    /// Somebody else removes what the registry has under a tag. A pull that asked the ledger before the tag
    /// was bound finds nothing then.
    pub fn clear(&mut self, tag: usize) {
        let mut after = BTreeSet::new();
        self.explore(tag, |state| {
            let mut cleared = State { name: Name { shows: None, ..state.name }, ..*state };
            for op in (0..OPS).filter(|op| self.ops[*op] == Some(Kind::Pull)) {
                let CameTo { step, sees } = cleared.came_to.of(op);
                let seen = CameTo { step, sees: sees | NOTHING };
                cleared.came_to = cleared.came_to.with(op, seen);
            }
            after.insert(self.noted(tag, cleared));
            true
        });
        self.keep(tag, after);
    }

    /// The registry has what a tag is bound to under it again.
    pub fn repair(&mut self, tag: usize, image: Image) {
        let mut after = BTreeSet::new();
        self.explore(tag, |state| {
            let bound = state.name.bound == Some(image);
            let name = if bound { state.name.put(image) } else { state.name };
            after.insert(self.noted(tag, State { name, ..*state }));
            true
        });
        self.keep(tag, after);
    }

    /// Whether these operations could begin and end so at this moment, one after the other.
    pub fn allows(&self, tag: usize, all: &[(Kind, End)]) -> bool {
        let mut probed = self.clone();
        all.iter().all(|(kind, end)| {
            let op = probed.begin(*kind, [tag]);
            probed.end(op, tag, *end)
        })
    }

    /// The images that the tag may be bound to now.
    pub fn possible(&self, tag: usize) -> BTreeSet<Image> {
        let mut possible = BTreeSet::new();
        self.explore(tag, |state| {
            possible.extend(state.name.bound.filter(|_| !state.name.withdrawn));
            true
        });
        possible
    }

    /// The answers that operations get in this state.
    fn noted(&self, tag: usize, mut state: State) -> State {
        for (op, kind) in self.ops.iter().enumerate() {
            if let Some(kind) = kind
                && self.open[op] & 1 << tag != 0
            {
                let CameTo { step, sees } = state.came_to.of(op);
                let sees = sees | state.name.answers(*kind);
                state.came_to = state.came_to.with(op, CameTo { step, sees });
            }
        }
        state
    }

    /// What comes of a state by one step.
    fn steps(&self, tag: usize, state: State, mut reach: impl FnMut(State)) {
        let State { name, came_to } = state;
        // Whoever looks may bind what the registry shows.
        if let Name { bound: None, shows: Some(shown), .. } = name {
            reach(self.noted(tag, State { name: name.bind(shown), came_to }));
        }
        for (op, kind) in self.ops.iter().enumerate() {
            let Some(kind) = kind.filter(|_| self.open[op] & 1 << tag != 0) else { continue };
            for (name, step) in
                name.after(kind, came_to.of(op).step, self.allows).into_iter().flatten()
            {
                let came_to = came_to.with(op, CameTo { step, sees: came_to.of(op).sees });
                reach(self.noted(tag, State { name, came_to }));
            }
        }
    }

    /// Shows every state that operations under way may have led to by now. Goes on from one where told so.
    fn explore(&self, tag: usize, mut show: impl FnMut(&State) -> bool) {
        let mut seen: BTreeSet<State> = self.tags[tag].iter().copied().collect();
        let mut stack = self.tags[tag].clone();
        while let Some(state) = stack.pop() {
            if show(&state) {
                self.steps(tag, state, |next| {
                    if seen.insert(next) {
                        stack.push(next);
                    }
                });
            }
        }
    }

    /// Keeps those states that the others do not lead to, and that allow more than the others.
    fn keep(&mut self, tag: usize, states: BTreeSet<State>) {
        let mut reached = BTreeSet::new();
        let mut first: Vec<State> = Vec::new();
        for state in &states {
            if states.len() > 1 && !reached.contains(state) {
                let mut stack = vec![*state];
                while let Some(here) = stack.pop() {
                    self.steps(tag, here, |next| {
                        if next != *state && reached.insert(next) {
                            stack.push(next);
                        }
                    });
                }
                first.retain(|earlier| !reached.contains(earlier));
            }
            if !reached.contains(state) {
                first.push(*state);
            }
        }
        let others = |state: &State| first.iter().all(|other| !state.allows_less_than(other));
        self.tags[tag] = first.iter().filter(|state| others(state)).copied().collect();
    }
}

impl State {
    fn allows_less_than(&self, other: &Self) -> bool {
        self != other && self.name == other.name && self.came_to.sees_less_than(other.came_to)
    }
}

#[cfg(test)]
mod tests;
