//! Whether some order of a tag's operations, each at one instant between its start and its end, is allowed
//! by the specification: a search in depth with memory (Wing and Gong; Lowe).

use std::collections::HashSet;

use super::spec::{Action, Rule, State, step};

/// By the clock of the test, in microseconds.
pub type Time = u64;
pub const NEVER: Time = Time::MAX;

/// How many steps a search may take. No history of the sizes that the tests have comes near.
pub const STEPS: usize = 1_000_000;

/// One operation on a tag.
#[derive(Clone, Debug)]
pub struct Operation {
    pub invoked: Time,
    /// When it had taken effect, if it did.
    pub ended: Time,
    pub action: Action,
    /// Its outcome is unknown: it took effect at one instant, or never.
    pub optional: bool,
    /// The rules of which one was in force for it.
    pub rules: Vec<Rule>,
    /// By a limit that is documented, the tag may stay bound to what it was bound to.
    pub may_keep: bool,
    /// For people, with the times at which it was asked and told.
    pub told: String,
    pub seen: (Time, Time),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// With the end of this one, by its place, the history has no order that is allowed; at most `explained`
    /// of the operations until then have one, which leaves the tag in this state.
    Wrong {
        explained: usize,
        state: State,
        at: usize,
    },
    /// The search was given up: the history is too long, or too many outcomes are unknown.
    TooHard,
}

/// How many operations that took effect are looked at beside each other, and how many unknown ones.
const WINDOW: usize = 256;
const UNKNOWN: usize = 128;

/// Which operations have an order so far, and where that leaves the tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    /// All sure operations before this one are done.
    base: usize,
    /// Which of those from there on are.
    mask: [u64; WINDOW / 64],
    unknown: u128,
    state: State,
}

impl Node {
    fn has(&self, sure: usize) -> bool {
        let at = sure.wrapping_sub(self.base);
        sure < self.base || (at < WINDOW && self.mask[at / 64] >> (at % 64) & 1 == 1)
    }

    /// `None` where it is too far ahead.
    fn with(mut self, sure: usize) -> Option<Self> {
        let at = sure - self.base;
        *self.mask.get_mut(at / 64)? |= 1 << (at % 64);
        while self.mask[0] & 1 == 1 {
            for n in 0..self.mask.len() {
                let next = self.mask.get(n + 1).copied().unwrap_or(0);
                self.mask[n] = self.mask[n] >> 1 | next << 63;
            }
            self.base += 1;
        }
        Some(self)
    }

    fn done(&self) -> usize {
        self.base + self.mask.iter().map(|word| word.count_ones() as usize).sum::<usize>()
    }
}

/// The operations, those that surely took effect in the order of their starts.
struct Search<'a> {
    all: &'a [Operation],
    sure: Vec<usize>,
    unknown: Vec<usize>,
}

pub fn check(operations: &[Operation], start: State, steps: usize) -> Verdict {
    let whole = search(operations, start, steps);
    if whole == Verdict::Allowed {
        return whole;
    }
    // The shortest beginning that has no order, by bisection: all longer ones have none either.
    let mut ends: Vec<_> = operations.iter().filter(|o| !o.optional).map(|o| o.ended).collect();
    ends.sort_unstable();
    let wrong = ends.partition_point(|end| {
        !matches!(search(&until(operations, *end), start, steps), Verdict::Wrong { .. })
    });
    let Some(end) = ends.get(wrong) else { return whole };
    match search(&until(operations, *end), start, steps) {
        Verdict::Wrong { explained, state, .. } => {
            let last = |o: &Operation| !o.optional && o.ended == *end;
            let at = operations.iter().position(last).unwrap_or_default();
            Verdict::Wrong { explained, state, at }
        }
        // The search was given up for a beginning.
        other => other,
    }
}

/// What had happened at this time: what was under way may have taken effect.
fn until(operations: &[Operation], end: Time) -> Vec<Operation> {
    let begun = operations.iter().filter(|operation| operation.invoked <= end);
    let known = |operation: &Operation| {
        let optional = operation.optional || operation.ended > end;
        Operation { optional, ..operation.clone() }
    };
    begun.map(known).collect()
}

fn search(operations: &[Operation], start: State, steps: usize) -> Verdict {
    let by_start = |optional: bool| {
        let mut places: Vec<_> =
            (0..operations.len()).filter(|n| operations[*n].optional == optional).collect();
        places.sort_by_key(|n| (operations[*n].invoked, operations[*n].ended));
        places
    };
    let search = Search { all: operations, sure: by_start(false), unknown: by_start(true) };
    if search.unknown.len() > UNKNOWN {
        return Verdict::TooHard;
    }
    let first = Node { base: 0, mask: [0; WINDOW / 64], unknown: 0, state: start };
    let (mut stack, mut seen) = (vec![(first, 0)], HashSet::from([first]));
    let mut best = (first, 0);
    while let Some((node, latest)) = stack.pop() {
        if node.base == search.sure.len() {
            return Verdict::Allowed;
        }
        if node.done() > best.0.done() {
            best = (node, latest);
        }
        let Some(next) = search.next(&node, latest) else { return Verdict::TooHard };
        // The last one is looked at first: a sure operation that ends early.
        stack.extend(next.into_iter().rev().filter(|(node, _)| seen.insert(*node)));
        if seen.len() > steps {
            return Verdict::TooHard;
        }
    }
    let (node, _) = best;
    let left = search.sure.iter().enumerate().filter(|(n, _)| !node.has(*n)).map(|(_, at)| *at);
    let at = left.min_by_key(|at| operations[*at].ended).unwrap_or_default();
    Verdict::Wrong { explained: node.done(), state: node.state, at }
}

impl Search<'_> {
    /// The nodes after this one, the likeliest first, each with the latest start of what it holds; `None`
    /// where too much is under way at once.
    fn next(&self, node: &Node, latest: Time) -> Option<Vec<(Node, Time)>> {
        // What begins after something left has ended comes after it.
        let mut first_end = NEVER;
        let mut sure = Vec::new();
        for n in node.base..self.sure.len() {
            let operation = &self.all[self.sure[n]];
            if operation.invoked > first_end {
                break;
            }
            if !node.has(n) {
                first_end = first_end.min(operation.ended);
                sure.push(n);
            }
        }
        sure.retain(|n| self.all[self.sure[*n]].invoked <= first_end);
        sure.sort_by_key(|n| self.all[self.sure[*n]].ended);
        // Of two that do the same, the one that can be neither earlier nor later than the other comes second.
        let all = sure.clone();
        sure.retain(|n| !all.iter().any(|other| self.comes_first(*other, *n, latest)));
        let mut next = Vec::new();
        for n in sure {
            let operation = &self.all[self.sure[n]];
            let now = latest.max(operation.invoked);
            let states = states(operation, node);
            // A read that changes nothing is as good here as later, unless the time of an unknown operation
            // would be over then. A write may change something later.
            let read = operation.action.is_read() && states == [node.state];
            if read && !self.is_due(node, latest, now) {
                return Some(vec![(node.with(n)?, now)]);
            }
            for state in states {
                next.push((Node { state, ..*node }.with(n)?, now));
            }
        }
        for (n, at) in self.unknown.iter().enumerate() {
            let operation = &self.all[*at];
            let late = operation.invoked > first_end || operation.ended < latest;
            if node.unknown >> n & 1 == 1 || late || self.has_twin(node, n) {
                continue;
            }
            for state in states(operation, node) {
                // One without effect need not have taken place.
                if state != node.state {
                    let after = Node { state, unknown: node.unknown | 1 << n, ..*node };
                    next.push((after, latest.max(operation.invoked)));
                }
            }
        }
        Some(next)
    }

    /// Whether this sure operation does the same as the second one, and may take place wherever that may,
    /// while that can do so in its place.
    fn comes_first(&self, first: usize, second: usize, latest: Time) -> bool {
        let (a, b) = (&self.all[self.sure[first]], &self.all[self.sure[second]]);
        let same = (a.action, a.may_keep) == (b.action, b.may_keep) && a.rules == b.rules;
        let order = |o: &Operation, place: usize| (o.ended, place);
        same && a.invoked.max(latest) <= b.invoked.max(latest) && order(a, first) < order(b, second)
    }

    /// Whether this node lacks an earlier unknown operation that would do the same.
    fn has_twin(&self, node: &Node, n: usize) -> bool {
        let this = &self.all[self.unknown[n]];
        let twin = |earlier: usize| {
            let other = &self.all[self.unknown[earlier]];
            node.unknown >> earlier & 1 == 0
                && (other.action, other.ended) == (this.action, this.ended)
                && (&other.rules, other.may_keep) == (&this.rules, this.may_keep)
        };
        (0..n).any(twin)
    }

    /// Whether this node lacks an unknown operation that ends between these times.
    fn is_due(&self, node: &Node, latest: Time, now: Time) -> bool {
        let due = |(n, at): (usize, &usize)| {
            node.unknown >> n & 1 == 0 && (latest..now).contains(&self.all[*at].ended)
        };
        self.unknown.iter().enumerate().any(due)
    }
}

/// The states after this operation, by one or the other rule.
fn states(operation: &Operation, node: &Node) -> Vec<State> {
    let mut states = Vec::new();
    for rule in &operation.rules {
        for state in step(node.state, operation.action, *rule) {
            if !states.contains(&state) {
                states.push(state);
            }
        }
    }
    if operation.may_keep && !states.is_empty() && !states.contains(&node.state) {
        states.push(node.state);
    }
    states
}
