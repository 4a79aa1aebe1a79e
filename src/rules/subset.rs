//! The set of texts that an expression matches, so that two of them can be compared exactly.
//!
//! `regex-automata` makes an automaton of an expression; a walk through several of them at once finds a
//! text that some match and others don't, or shows that there is none.

use std::collections::{HashSet, VecDeque};

use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start::Config as Start;
use regex_automata::util::syntax;
use regex_automata::{Anchored, MatchKind};

/// The memory one automaton may take.
const MAX_SIZE: usize = 1 << 20;
/// The states of all automata that may be looked at in one walk, and in all of them: beyond, nothing is
/// known. Counted, not timed, so that the same rules get the same remarks everywhere.
const MAX_WALK: usize = 400_000;
const MAX_WALKS: usize = 2_000_000;

/// The grammar of names, but for their length (distribution spec, "Pulling manifests").
const NAMES: &str =
    r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$";
const TAGS: &str = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$";

/// What an expression matches.
pub(super) struct Language(dense::DFA<Vec<u32>>);

/// What a walk came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The shortest of them.
    Text(String),
    None,
    /// It would take too long to say.
    Unknown,
}

impl Language {
    /// Of an expression that is anchored at both ends; `None` where it is too large.
    pub fn new(expression: &str) -> Option<Self> {
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            .match_kind(MatchKind::All)
            .dfa_size_limit(Some(MAX_SIZE))
            .determinize_size_limit(Some(MAX_SIZE));
        dense::Builder::new()
            .configure(config)
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false))
            .build(expression)
            .ok()
            .map(Self)
    }

    pub fn names() -> Option<Self> {
        Self::new(NAMES)
    }

    pub fn tags() -> Option<Self> {
        Self::new(TAGS)
    }

    fn start(&self) -> Option<StateID> {
        self.0.start_state(&Start::new().anchored(Anchored::Yes)).ok()
    }

    fn accepts(&self, state: StateID) -> bool {
        self.0.is_match_state(self.0.next_eoi_state(state))
    }
}

/// Walks through automata, within what they may cost together.
pub(super) struct Walks {
    left: usize,
}

impl Walks {
    pub fn new() -> Self {
        Self { left: MAX_WALKS }
    }

    /// Whether there was more to walk than may be.
    pub fn exhausted(&self) -> bool {
        self.left == 0
    }

    /// A text that all of `within` match and none of `without` does.
    pub fn find(&mut self, within: &[&Language], without: &[&Language]) -> Found {
        let mut left = self.left.min(MAX_WALK);
        let before = left;
        let found = walk(within, without, &mut left);
        self.left -= before - left;
        found
    }
}

/// `left` is what the walk may cost.
fn walk(within: &[&Language], without: &[&Language], left: &mut usize) -> Found {
    let all: Vec<_> = within.iter().chain(without).copied().collect();
    let Some(start) = all.iter().map(|language| language.start()).collect::<Option<Vec<_>>>()
    else {
        return Found::Unknown;
    };
    let wanted = |states: &[StateID]| {
        let mut accepted = all.iter().zip(states).map(|(language, s)| language.accepts(*s));
        accepted.by_ref().take(within.len()).all(|accepted| accepted)
            && !accepted.any(|accepted| accepted)
    };
    let bytes = different_bytes(&all);
    *left = left.saturating_sub(all.len() * 16);
    let mut queue = VecDeque::from([(start.clone(), 0)]);
    let mut seen = HashSet::from([start]);
    // Each step's predecessor and byte, to tell the text at the end.
    let mut steps: Vec<(usize, u8)> = vec![(0, 0)];
    while let Some((states, at)) = queue.pop_front() {
        if wanted(&states) {
            return Found::Text(told(&steps, at));
        }
        for byte in &bytes {
            let Some(rest) = left.checked_sub(all.len()) else {
                *left = 0;
                return Found::Unknown;
            };
            *left = rest;
            let pairs = all.iter().zip(&states);
            let next: Vec<_> =
                pairs.map(|(language, s)| language.0.next_state(*s, *byte)).collect();
            let mut needed = within.iter().zip(&next);
            if needed.any(|(language, s)| language.0.is_dead_state(*s)) || seen.contains(&next) {
                continue;
            }
            seen.insert(next.clone());
            steps.push((at, *byte));
            queue.push_back((next, steps.len() - 1));
        }
    }
    Found::None
}

/// One byte of each kind that some automaton tells apart from others. Letters first: examples read
/// better.
fn different_bytes(all: &[&Language]) -> Vec<u8> {
    let alphabet = (b'a'..=b'z').chain(b'0'..=b'9').chain(b'A'..=b'Z').chain(*b"/._-");
    let mut kinds = HashSet::new();
    let kind = |byte: u8| -> Vec<u8> {
        all.iter().map(|language| language.0.byte_classes().get(byte)).collect()
    };
    alphabet.filter(|byte| kinds.insert(kind(*byte))).collect()
}

fn told(steps: &[(usize, u8)], mut at: usize) -> String {
    let mut text = Vec::new();
    while at != 0 {
        let (before, byte) = steps[at];
        text.push(char::from(byte));
        at = before;
    }
    text.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(expression: &str) -> Language {
        Language::new(expression).unwrap()
    }

    #[test]
    fn the_shortest_text_is_found_or_shown_not_to_be() {
        let find = |within: &[&Language], without: &[&Language]| Walks::new().find(within, without);
        let (all, ab, a) = (language("^.*$"), language("^(?:ab|a)$"), language("^a*$"));
        assert_eq!(find(&[&ab], &[]), Found::Text("a".into()));
        assert_eq!(find(&[&ab], &[&a]), Found::Text("ab".into()));
        assert_eq!(find(&[&ab, &a], &[&all]), Found::None);
        assert_eq!(find(&[&a], &[&ab]), Found::Text(String::new()));
        assert_eq!(find(&[&language("^b$"), &a], &[]), Found::None);
    }

    #[test]
    fn a_walk_that_is_too_long_says_nothing_and_ends_all() {
        // The shortest text is found; that there is none would take 2^9 states to show.
        let deep = language("^[ab]*a[ab]{9}$");
        let one = |expression: &str| Language::new(expression);
        assert!(one("^[ab]*a[ab]{40}$").is_none(), "it is too large to be made");
        let mut walks = Walks { left: 500 };
        assert_eq!(walks.find(&[&deep], &[&language("^[ab]*$")]), Found::Unknown);
        assert!(walks.exhausted());
        assert_eq!(walks.find(&[&language("^a$")], &[]), Found::Unknown);
    }

    #[test]
    fn the_grammars_are_those_of_the_names() {
        use crate::name::{RepositoryName, Tag};
        let (names, tags) = (Language::names().unwrap(), Language::tags().unwrap());
        let has = |language: &Language, text: &str| {
            let mut state = language.start().unwrap();
            for byte in text.bytes() {
                state = language.0.next_state(state, byte);
            }
            language.accepts(state)
        };
        for text in
            ["a", "a/b", "a__b", "a---b", "a..b", "a_", "/a", "a/", "A", "a.b/c-d", "a___b", ""]
        {
            assert_eq!(has(&names, text), RepositoryName::parse(text).is_ok(), "{text}");
        }
        for text in ["a", "-a", ".a", "_", "A.b-c", "a/b", "", &"x".repeat(128), &"x".repeat(129)] {
            assert_eq!(has(&tags, text), Tag::parse(text).is_ok(), "{text}");
        }
    }
}
