//! What is to be measured, and for how long.

use std::path::PathBuf;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

pub struct Plan {
    quick: bool,
    rounds: usize,
    parts: Vec<String>,
    /// The taglock that is measured: another build, or this one's.
    pub program: PathBuf,
}

impl Plan {
    /// What `scripts/bench` passes; what cargo itself passes means nothing here.
    pub fn of_arguments() -> Self {
        let mut plan = Self {
            quick: false,
            rounds: 0,
            parts: Vec::new(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_taglock")),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => plan.quick = true,
                "--rounds" => plan.rounds = arguments.next().unwrap().parse().unwrap(),
                "--program" => plan.program = arguments.next().unwrap().into(),
                "--bench" | "--quiet" => {}
                part => {
                    let known = crate::PARTS.iter().any(|(name, ..)| *name == part);
                    assert!(known, "`{part}` is no part of this bench");
                    plan.parts.push(part.to_owned());
                }
            }
        }
        if plan.rounds == 0 {
            plan.rounds = if plan.quick { 2 } else { 5 };
        }
        plan
    }

    pub fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    pub fn is_quick(&self) -> bool {
        self.quick
    }

    pub fn blob_size(&self) -> u64 {
        if self.quick { 64 * MIB } else { 256 * MIB }
    }

    /// How long one load of small requests takes.
    pub fn seconds(&self) -> u64 {
        if self.quick { 1 } else { 3 }
    }

    /// The rounds of a part, fewer where the machine is slow; at least two.
    pub fn rounds(&self, budget: Duration) -> impl Iterator<Item = usize> + use<> {
        let (start, budget) = (Instant::now(), if self.quick { budget / 4 } else { budget });
        (0..self.rounds).take_while(move |n| *n < 2 || start.elapsed() < budget)
    }
}
