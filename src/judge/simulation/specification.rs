//! The specification of one tag in real-time order, and whether what clients were told fits it.
//!
//! Each operation takes effect at one instant between its beginning and its answer; one without a known
//! outcome takes effect at any later time, or never. All orders that fit so far are kept: none left is a
//! broken promise. (The just-in-time form of Wing & Gong's search.)

use std::collections::BTreeSet;

use crate::name::Digest;

/// What a tag is to its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct State {
    pub bound: Option<Digest>,
    /// Its image was deleted, and the name kept.
    pub withdrawn: bool,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Call {
    Push(Digest),
    Pull,
    /// A delete of an image that keeps the name, or of one that frees it.
    Withdraw(Digest),
    Free(Digest),
    /// A delete of an image that no name is bound to.
    Clean,
    /// A release by an operator.
    Release,
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Told {
    /// It took place.
    Done,
    /// A push was refused, since the tag is bound to this.
    Refused(Digest),
    /// A pull found this, or no such tag.
    Found(Digest),
    Nothing,
}

/// An operation that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Operation {
    number: u8,
    call: Call,
}

/// One order of what has taken effect: the state that it leads to, and what operations without an answer
/// will be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Order {
    state: State,
    told: BTreeSet<(u8, Told)>,
}

/// All that is possible so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ghost {
    begun: BTreeSet<Operation>,
    orders: BTreeSet<Order>,
}

impl Ghost {
    pub fn new(bound: Option<Digest>) -> Self {
        let state = State { bound, withdrawn: false };
        let orders = BTreeSet::from([Order { state, told: BTreeSet::new() }]);
        Self { begun: BTreeSet::new(), orders }
    }

    /// `number` is this operation's alone.
    pub fn begin(&mut self, number: u8, call: Call) {
        self.begun.insert(Operation { number, call });
    }

    /// It had no effect, for sure.
    pub fn void(&mut self, number: u8) {
        self.begun.retain(|operation| operation.number != number);
        self.orders.retain(|order| order.told.iter().all(|(other, _)| *other != number));
    }

    /// False where no order is left that tells it so.
    pub fn end(&mut self, number: u8, told: Told) -> bool {
        // Others take effect before it, if they do so before its answer; after it they may still.
        let (mut left, mut seen) = (BTreeSet::new(), std::mem::take(&mut self.orders));
        let mut new: Vec<_> = seen.iter().cloned().collect();
        while let Some(mut order) = new.pop() {
            if order.told.iter().any(|(other, _)| *other == number) {
                if order.told.remove(&(number, told)) {
                    left.insert(order);
                }
                continue;
            }
            for Operation { number, call } in &self.begun {
                if order.told.iter().any(|(other, _)| other == number) {
                    continue;
                }
                let (state, told) = order.state.after(*call);
                let mut next = Order { state, told: order.told.clone() };
                next.told.insert((*number, told));
                if seen.insert(next.clone()) {
                    new.push(next);
                }
            }
        }
        self.orders = left;
        self.begun.retain(|operation| operation.number != number);
        !self.orders.is_empty()
    }
}

impl State {
    /// The sequential specification.
    fn after(self, call: Call) -> (Self, Told) {
        let bound = |digest| Self { bound: Some(digest), withdrawn: false };
        match (call, self.bound) {
            (Call::Push(digest), Some(held)) if held != digest => (self, Told::Refused(held)),
            (Call::Push(digest), _) => (bound(digest), Told::Done),
            (Call::Pull, Some(held)) if !self.withdrawn => (self, Told::Found(held)),
            (Call::Pull, _) => (self, Told::Nothing),
            (Call::Withdraw(digest), Some(held)) if held == digest => {
                (Self { withdrawn: true, ..self }, Told::Done)
            }
            (Call::Free(digest), Some(held)) if held == digest => (Self::default(), Told::Done),
            (Call::Withdraw(_) | Call::Free(_) | Call::Clean, _) => (self, Told::Done),
            (Call::Release, _) => (Self::default(), Told::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Algorithm;

    fn image(seed: &str) -> Digest {
        Digest::of(Algorithm::Sha256, seed.as_bytes())
    }

    /// A history of calls that come one after the other, each with its answer.
    fn fits(bound: Option<&str>, history: &[(Call, Told)]) -> bool {
        let mut ghost = Ghost::new(bound.map(image));
        history.iter().all(|(call, told)| {
            ghost.begin(0, *call);
            ghost.end(0, *told)
        })
    }

    #[test]
    fn histories_that_are_right_fit_and_wrong_ones_do_not() {
        let (a, b) = (image("a"), image("b"));
        let (push_a, push_b) = ((Call::Push(a), Told::Done), (Call::Push(b), Told::Done));
        let (pull_a, pull_b) = ((Call::Pull, Told::Found(a)), (Call::Pull, Told::Found(b)));
        let (none, free) = ((Call::Pull, Told::Nothing), (Call::Free(a), Told::Done));
        let (gone, refused) = ((Call::Withdraw(a), Told::Done), (Call::Push(b), Told::Refused(a)));
        for right in [
            &[push_a, refused, pull_a, push_a][..],
            &[none, push_a, free, none, push_b, pull_b],
            &[push_a, gone, none, refused, push_a, pull_a],
            &[push_a, (Call::Free(b), Told::Done), pull_a],
            &[push_a, (Call::Release, Told::Done), push_b],
        ] {
            assert!(fits(None, right), "{right:?}");
        }
        assert!(fits(Some("a"), &[pull_a, refused, free, push_b]));
        for wrong in [
            &[push_a, push_b][..],
            &[push_a, none],
            &[push_a, pull_b],
            &[push_a, free, pull_a],
            &[push_a, free, refused],
            &[push_a, gone, pull_a],
            &[push_a, gone, push_b],
            &[refused],
        ] {
            assert!(!fits(None, wrong), "{wrong:?}");
        }
    }

    #[test]
    fn what_overlaps_has_either_order_and_an_unknown_outcome_any_later_time() {
        let (a, b) = (image("a"), image("b"));
        for first in [true, false] {
            let mut ghost = Ghost::new(None);
            ghost.begin(1, Call::Push(a));
            ghost.begin(2, Call::Push(b));
            let (winner, loser, held) = if first { (1, 2, a) } else { (2, 1, b) };
            assert!(ghost.end(loser, Told::Refused(held)));
            assert!(ghost.end(winner, Told::Done));
        }
        // The first one's outcome is not known.
        for effect in [true, false] {
            let mut ghost = Ghost::new(None);
            ghost.begin(1, Call::Push(a));
            ghost.begin(2, Call::Push(b));
            let told = if effect { Told::Refused(a) } else { Told::Done };
            assert!(ghost.end(2, told));
            ghost.begin(3, Call::Pull);
            assert!(!ghost.end(3, Told::Nothing));
        }
        let mut ghost = Ghost::new(None);
        ghost.begin(1, Call::Push(a));
        ghost.void(1);
        ghost.begin(2, Call::Pull);
        assert!(!ghost.end(2, Told::Found(a)), "it had no effect");
    }
}
