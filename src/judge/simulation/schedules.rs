#![allow(clippy::print_stdout, reason = "how much was tried")]
//! Large worlds, by seeded random schedules.

use super::*;

/// A generator that repeats itself for a seed: SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % count as u64) as usize
    }
}

/// A large world: pushers of a few images, one or two tags, some pulls, much that goes wrong.
fn large(chance: &mut Chance, named: bool) -> (Physics, World) {
    let tags = if chance.below(2) == 0 { vec![tag("a")] } else { vec![tag("a"), tag("b")] };
    let blind = chance.below(4) == 0;
    let stored = !blind && chance.below(3) == 0;
    let roll_forward = [RollForward::Published, RollForward::Staged][chance.below(2)];
    let remembers = chance.below(4) == 0;
    let fixed = Physics::new(Flaw::None);
    let physics =
        Physics { wait: true, tags, blind, named, stored, roll_forward, remembers, ..fixed };
    let mut few = |n: usize| u8::try_from(chance.below(n)).unwrap();
    let budget = Budget {
        crashes: few(3),
        timeouts: few(4),
        refusals: few(4),
        troubles: few(4),
        repeats: few(2),
        failovers: few(3),
        pulls: few(5),
        moves: few(2),
        ..Budget::default()
    };
    let images: Vec<_> = (0..4).map(|_| ["one", "two", "three"][chance.below(3)]).collect();
    let world = World::new(&images, &physics, budget);
    (physics, world)
}

/// One in which names are freed, too, and every state is probed.
fn freeing(chance: &mut Chance, named: bool) -> (Physics, World) {
    let tags = if chance.below(2) == 0 { vec![tag("a")] } else { vec![tag("a"), tag("b")] };
    let deletes = [Deletes::Refuse, Deletes::Keep, Deletes::Release][chance.below(3)];
    let present = ["one", "two"].get(chance.below(4)).copied();
    let physics = Physics {
        wait: true,
        tags,
        named,
        deletes,
        present,
        bound: present.is_some() && chance.below(2) == 0,
        stored: chance.below(3) == 0,
        // Else a release between a delete's look and its mark takes the image of a tag: see `open`.
        clears: deletes == Deletes::Refuse || chance.below(2) == 0,
        proxies: 1 + chance.below(2),
        remembers: chance.below(4) == 0,
        probes: true,
        ..Physics::new(Flaw::None)
    };
    let mut few = |n: usize| u8::try_from(chance.below(n)).unwrap();
    let budget = Budget {
        crashes: few(2),
        timeouts: few(3),
        refusals: few(3),
        troubles: few(3),
        repeats: few(2),
        failovers: few(2),
        pulls: few(3),
        moves: few(2),
        deletes: few(3),
        releases: few(2),
        polls: few(3),
        // A repair at one proxy is not waited for by another: see `open`.
        repairs: if physics.proxies == 1 { few(2) } else { 0 },
        ..Budget::default()
    };
    let images: Vec<_> =
        (0..1 + chance.below(3)).map(|_| ["one", "two", "three"][chance.below(3)]).collect();
    let world = World::new(&images, &physics, budget);
    (physics, world)
}

type Draw = fn(&mut Chance, bool) -> (Physics, World);

/// One schedule, and how many steps it takes.
fn schedule(seed: u64, named: bool, world: Draw) -> Result<usize, Violation> {
    let mut chance = Chance(seed);
    let (physics, mut world) = world(&mut chance, named);
    let mut steps = Vec::new();
    for step in 0..2000 {
        let mut next = world.next(&physics);
        if next.is_empty() {
            return Ok(step);
        }
        let (label, chosen) = next.swap_remove(chance.below(next.len()));
        steps.push(label);
        world = chosen.map_err(|what| format!("{what} at step {step}:\n{}", steps.join("\n")))?;
    }
    Err("the pushes and pulls do not come to an end".into())
}

/// The first seed of a run without `TAGLOCK_SEED`, and how many there are then.
const SEED: u64 = 0x7461_676c_6f63_6b00;
const SCHEDULES: u64 = 600;

/// Thousands of schedules, the same in each run. `TAGLOCK_SEED=<seed>` replays one and shows its steps;
/// with `TAGLOCK_SCHEDULES=<n>` it tries so many from that seed on.
fn keep_the_promises(world: Draw) {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (seed, schedules) = (given("TAGLOCK_SEED"), given("TAGLOCK_SCHEDULES"));
    let first = seed.unwrap_or(SEED);
    let count = schedules.unwrap_or(if seed.is_some() { 1 } else { SCHEDULES });
    let mut steps = 0;
    for seed in (0..count).map(|n| first.wrapping_add(n)) {
        match schedule(seed, count == 1, world) {
            Ok(taken) => steps += taken,
            Err(what) => panic!("TAGLOCK_SEED={seed}: {what}"),
        }
    }
    println!("{count} schedules, {steps} steps");
}

#[test]
fn random_schedules_of_large_worlds_keep_the_promises() {
    keep_the_promises(large);
}

#[test]
fn random_schedules_keep_the_promises_while_names_are_freed() {
    keep_the_promises(freeing);
}
