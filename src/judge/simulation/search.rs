//! The exhaustive search, breadth first, so that a counterexample is a shortest one.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};

use super::*;

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

impl World {
    fn fingerprint(&self) -> u64 {
        let mut hasher = Folded(0);
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// What an exhaustive search found.
#[derive(Debug)]
pub(super) enum Found {
    Holds { states: usize },
    Violated { what: Violation, trace: Vec<String> },
}

/// Where the number of states has no bound worth waiting for.
const MOST: usize = 5_000_000;

pub(super) fn search(start: World, physics: &Physics) -> Found {
    // Of each state, the one it was first reached from, and by which of its events.
    let first = start.fingerprint();
    let mut parents = HashMap::from([(first, (0, 0))]);
    let mut queue = VecDeque::from([(first, start.clone())]);
    while let Some((here, world)) = queue.pop_front() {
        assert!(parents.len() < MOST, "too many states");
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
