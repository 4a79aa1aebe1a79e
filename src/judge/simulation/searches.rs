#![allow(clippy::print_stdout, reason = "how much was searched")]

use super::*;

/// One thing more may go wrong in the largest searches with `TAGLOCK_DEEP=1`: minutes instead of
/// seconds.
fn deep() -> u8 {
    u8::from(std::env::var_os("TAGLOCK_DEEP").is_some())
}

fn physics(flaw: Flaw, wait: bool) -> Physics {
    Physics {
        flaw,
        wait,
        tags: vec![tag("v1")],
        blind: false,
        named: false,
        stored: false,
        roll_forward: RollForward::Published,
        deletes: None,
        first: None,
    }
}

#[track_caller]
fn holds(images: &[&str], physics: &Physics, budget: &Budget) {
    let start = std::time::Instant::now();
    match search(World::new(images, physics, budget.clone()), physics) {
        Found::Holds { states } => {
            println!("{images:?} {budget:?}: {states} states in {:?}", start.elapsed());
            assert!(states > 20, "nothing was searched");
        }
        Found::Violated { what, trace } => panic!("{what}:\n{}", trace.join("\n")),
    }
}

#[track_caller]
fn violated(images: &[&str], physics: &Physics, budget: &Budget, expected: &str) {
    match search(World::new(images, physics, budget.clone()), physics) {
        Found::Holds { states } => panic!("{physics:?} holds in {states} states"),
        Found::Violated { what, trace } => {
            println!("{:?} is found after {} steps", physics.flaw, trace.len());
            assert!(what.contains(expected), "{what}:\n{}", trace.join("\n"));
        }
    }
}

#[test]
fn the_protocol_holds_for_rivals_through_crashes_delays_and_refusals() {
    let all = Budget { crashes: 1, timeouts: 1, refusals: 1, ..Budget::default() };
    holds(&["one", "two"], &physics(Flaw::None, false), &all);
    holds(&["one", "one"], &physics(Flaw::None, false), &Budget { refusals: 2, ..all });
}

#[test]
fn the_protocol_holds_for_pushers_that_may_not_look() {
    let all = Budget { crashes: 1, timeouts: 1, refusals: 1, ..Budget::default() };
    let blind = |flaw| Physics { blind: true, ..physics(flaw, false) };
    holds(&["one", "two"], &blind(Flaw::None), &all);
    let late = Budget { timeouts: 1, ..Budget::default() };
    violated(&["one", "two"], &blind(Flaw::TakeOver), &late, "v1");
}

#[test]
fn the_protocol_holds_for_those_who_set_a_tag_for_what_is_stored() {
    let all = Budget { crashes: 1, timeouts: 1, refusals: 1, ..Budget::default() };
    let stored = |flaw| Physics { stored: true, ..physics(flaw, false) };
    holds(&["one", "two"], &stored(Flaw::None), &all);
    holds(&["one", "one"], &stored(Flaw::None), &all);
    holds(
        &["one", "two", "three"],
        &stored(Flaw::None),
        &Budget { timeouts: 1, ..Budget::default() },
    );
    let late = Budget { timeouts: 1, ..Budget::default() };
    violated(&["one", "two"], &stored(Flaw::TakeOver), &late, "v1");
    violated(&["one", "two"], &stored(Flaw::TimeoutIsRefusal), &late, "v1");
}

#[test]
fn the_protocol_holds_when_the_ledgers_answers_are_lost() {
    let budget = Budget { troubles: 2, timeouts: 1, ..Budget::default() };
    holds(&["one", "two"], &physics(Flaw::None, false), &budget);
}

#[test]
fn the_protocol_holds_for_three_pushers_of_two_images() {
    let three = ["one", "two", "one"];
    let late = Budget { timeouts: 1, refusals: deep(), ..Budget::default() };
    holds(&three, &physics(Flaw::None, false), &late);
    let refused = Budget { refusals: 1, ..Budget::default() };
    holds(&three, &physics(Flaw::None, false), &refused);
}

#[test]
fn a_ledger_that_waits_for_its_replica_survives_failovers() {
    let budget = Budget { failovers: 2, timeouts: 1, ..Budget::default() };
    holds(&["one", "two"], &physics(Flaw::None, true), &budget);
}

#[test]
fn pulls_see_one_image_through_crashes_delays_and_moves_behind_taglock() {
    let budget =
        Budget { pulls: 2, moves: 1, timeouts: 1, refusals: 1, crashes: 1, ..Budget::default() };
    holds(&["one"], &physics(Flaw::None, false), &budget);
    let budget = Budget { pulls: 1, moves: deep(), timeouts: 1, ..Budget::default() };
    holds(&["one", "two"], &physics(Flaw::None, false), &budget);
}

#[test]
fn pulls_see_one_image_when_the_ledgers_answers_are_lost() {
    let budget = Budget { pulls: 2, moves: 2, troubles: 2, ..Budget::default() };
    holds(&["one"], &physics(Flaw::None, false), &budget);
    let budget = Budget { pulls: 1, troubles: 1 + deep(), timeouts: 1, ..Budget::default() };
    holds(&["one", "two"], &physics(Flaw::None, false), &budget);
}

#[test]
fn pulls_see_one_image_through_failovers_of_a_ledger_that_waits() {
    let budget = Budget { pulls: 2, moves: 1, failovers: 2, ..Budget::default() };
    holds(&["one"], &physics(Flaw::None, true), &budget);
    let budget = Budget { pulls: 1, failovers: 1, timeouts: 1, ..Budget::default() };
    holds(&["one", "two"], &physics(Flaw::None, true), &budget);
}

#[test]
fn every_known_unsafe_pull_is_found_violated() {
    let moved = Budget { pulls: 2, moves: 1, ..Budget::default() };
    let unsafe_pull = |flaw| physics(flaw, false);
    violated(&["one"], &unsafe_pull(Flaw::PullTakesTheRegistrysTag), &moved, "was served as");
    let twice = Budget { moves: 2, ..moved.clone() };
    violated(&["one"], &unsafe_pull(Flaw::PullBindsNothing), &moved, "served");
    let lossy = Budget { pulls: 1, troubles: 1, moves: 1, ..Budget::default() };
    violated(&["one"], &unsafe_pull(Flaw::PullIgnoresClaims), &lossy, "another image than the");
    // A ledger that does not wait for its replica forgets what it was told at first sight.
    let failover = Budget { failovers: 1, ..twice };
    violated(&["one"], &unsafe_pull(Flaw::None), &failover, "served");
}

#[test]
fn every_known_unsafe_protocol_is_found_violated() {
    let late = Budget { timeouts: 1, ..Budget::default() };
    let refusals = Budget { refusals: 2, timeouts: 1, ..Budget::default() };
    let rivals = ["one", "two"];
    violated(&rivals, &physics(Flaw::TakeOver, false), &late, "v1");
    violated(&rivals, &physics(Flaw::TimeoutIsRefusal, false), &late, "v1");
    let three = ["one", "one", "two"];
    violated(&three, &physics(Flaw::AbortIgnoresOthers, false), &refusals, "v1");
    let same = ["one", "one"];
    let twice = Budget { refusals: 2, ..Budget::default() };
    violated(&same, &physics(Flaw::SharedOwner, false), &twice, "is left pending");
    let lossy = Budget { failovers: 1, ..Budget::default() };
    violated(&rivals, &physics(Flaw::NoSecondLook, false), &lossy, "v1");
    let unwritten = Budget { failovers: 1, troubles: 1, ..Budget::default() };
    // Held to the specification alone: the registry's own tag may be the other's after a loss.
    let acknowledged = |flaw| freeing(flaw, Deletes::Refuse, None);
    let place = "no place in the history";
    violated(&rivals, &acknowledged(Flaw::UnboundIsAcknowledged), &unwritten, place);
    holds(&rivals, &acknowledged(Flaw::None), &unwritten);
    let twice_lossy = Budget { failovers: 2, timeouts: 1, ..Budget::default() };
    violated(&rivals, &physics(Flaw::None, false), &twice_lossy, "v1");
}

fn freeing(flaw: Flaw, deletes: Deletes, first: Option<&'static str>) -> Physics {
    Physics { deletes: Some(deletes), first, ..physics(flaw, false) }
}

/// A push and a pull, or two pushes, beside what frees their name.
#[test]
fn the_protocol_holds_while_names_are_freed() {
    let pull = Budget { pulls: 1, deletes: 1, ..Budget::default() };
    let pushes = Budget { deletes: 1, ..Budget::default() };
    for policy in [Deletes::Refuse, Deletes::Keep, Deletes::Release] {
        for first in [None, Some("one"), Some("two")] {
            let physics = freeing(Flaw::None, policy, first);
            holds(&["one"], &physics, &Budget { timeouts: 1, ..pull.clone() });
            holds(&["one", "two"], &physics, &pushes);
        }
        let physics = freeing(Flaw::None, policy, Some("one"));
        holds(&["one"], &physics, &Budget { deletes: 2, ..pushes.clone() });
        holds(&["one"], &physics, &Budget { troubles: 1, ..pull.clone() });
        holds(&["one"], &physics, &Budget { crashes: 1, ..pull.clone() });
    }
    let released = Budget { releases: 1, pulls: 1, ..Budget::default() };
    holds(&["one"], &freeing(Flaw::None, Deletes::Keep, None), &released);
}

/// What was so before a mend breaks a promise.
#[test]
fn every_known_unsafe_way_to_free_a_name_is_found_violated() {
    let (release, keep, refuse) = (Deletes::Release, Deletes::Keep, Deletes::Refuse);
    let once = Budget { pulls: 1, deletes: 1, ..Budget::default() };
    let twice = Budget { pulls: 2, ..once.clone() };
    let late = Budget { timeouts: 1, ..once.clone() };
    let lossy = Budget { troubles: 1, releases: 1, deletes: 0, ..twice.clone() };
    let (one, two) = (Some("one"), &["one", "two"][..]);
    for (flaw, policy, first, images, budget) in [
        (Flaw::BindNeedsNoClaim, release, None, two, &once),
        (Flaw::AdoptIgnoresFreed, release, one, &["two"][..], &once),
        (Flaw::NoDeleteMark, refuse, None, &["one"], &once),
        (Flaw::NoDeleteMark, keep, one, &["one"], &twice),
        (Flaw::BoundAsksNoMore, release, one, two, &once),
        (Flaw::UnknownDeleteIsUnmarked, refuse, None, &["one"], &late),
        (Flaw::DeleteSentTwice, keep, one, &["one"], &twice),
        (Flaw::MemoryOfFreedNames, release, None, &["two"], &lossy),
    ] {
        violated(images, &freeing(flaw, policy, first), budget, "no place in the history");
    }
}

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

/// One schedule of a large world: four pushers, two tags, some pulls, much that goes wrong.
fn schedule(seed: u64, named: bool) -> Result<usize, Violation> {
    let mut chance = Chance(seed);
    let tags = if chance.below(2) == 0 { vec![tag("a")] } else { vec![tag("a"), tag("b")] };
    let blind = chance.below(4) == 0;
    let stored = !blind && chance.below(3) == 0;
    let roll_forward = [RollForward::Published, RollForward::Staged][chance.below(2)];
    let fixed = physics(Flaw::None, true);
    let physics = Physics { tags, blind, named, stored, roll_forward, ..fixed };
    let mut few = |n: usize| u8::try_from(chance.below(n)).unwrap();
    let budget = Budget {
        crashes: few(3),
        timeouts: few(4),
        refusals: few(4),
        troubles: few(4),
        failovers: few(3),
        pulls: few(5),
        moves: few(2),
        ..Budget::default()
    };
    let images: Vec<_> = (0..4).map(|_| ["one", "two", "three"][chance.below(3)]).collect();
    let mut world = World::new(&images, &physics, budget);
    for step in 0..2000 {
        let mut next = world.next(&physics);
        if next.is_empty() {
            return Ok(step);
        }
        let (label, chosen) = next.swap_remove(chance.below(next.len()));
        world = chosen.map_err(|what| format!("{what} at step {step}: {label}"))?;
    }
    Err("the pushes and pulls do not come to an end".into())
}

/// The first seed of a run without `TAGLOCK_SEED`, and how many there are then.
const SEED: u64 = 0x7461_676c_6f63_6b00;
const SCHEDULES: u64 = 3000;

/// Thousands of schedules, the same in each run. `TAGLOCK_SEED=<seed>` replays one and shows its steps;
/// with `TAGLOCK_SCHEDULES=<n>` it tries so many from that seed on.
#[test]
fn random_schedules_of_large_worlds_keep_the_promises() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (seed, schedules) = (given("TAGLOCK_SEED"), given("TAGLOCK_SCHEDULES"));
    let first = seed.unwrap_or(SEED);
    let count = schedules.unwrap_or(if seed.is_some() { 1 } else { SCHEDULES });
    let mut steps = 0;
    for seed in (0..count).map(|n| first.wrapping_add(n)) {
        match schedule(seed, count == 1) {
            Ok(taken) => steps += taken,
            Err(what) => panic!("TAGLOCK_SEED={seed}: {what}"),
        }
    }
    println!("{count} schedules, {steps} steps");
}

/// The same where names are freed: each answer is held to the specification of a tag.
#[test]
fn random_schedules_keep_the_promises_while_names_are_freed() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (seed, schedules) = (given("TAGLOCK_SEED"), given("TAGLOCK_SCHEDULES"));
    let first = seed.unwrap_or(SEED);
    let count = schedules.unwrap_or(if seed.is_some() { 1 } else { SCHEDULES });
    for seed in (0..count).map(|n| first.wrapping_add(n)) {
        if let Err(what) = freeing_schedule(seed, count == 1) {
            panic!("TAGLOCK_SEED={seed}: {what}");
        }
    }
}

fn freeing_schedule(seed: u64, named: bool) -> Result<(), Violation> {
    let mut chance = Chance(seed);
    let policy = [Deletes::Refuse, Deletes::Keep, Deletes::Release][chance.below(3)];
    let first = [None, Some("one"), Some("two")][chance.below(3)];
    let physics = Physics { named, ..freeing(Flaw::None, policy, first) };
    let mut few = |n: usize| u8::try_from(chance.below(n)).unwrap();
    let budget = Budget {
        crashes: few(2),
        timeouts: few(3),
        troubles: few(3),
        pulls: few(4),
        deletes: few(3),
        releases: few(2),
        ..Budget::default()
    };
    let images: Vec<_> =
        (0..1 + chance.below(3)).map(|_| ["one", "two"][chance.below(2)]).collect();
    let mut world = World::new(&images, &physics, budget);
    let mut names = Vec::new();
    for step in 0..2000 {
        let mut next = world.next(&physics);
        if next.is_empty() {
            return Ok(());
        }
        let (label, chosen) = next.swap_remove(chance.below(next.len()));
        names.push(label);
        world = chosen.map_err(|what| format!("{what} at step {step}:\n{}", names.join("\n")))?;
    }
    Err("the pushes, pulls and deletes do not come to an end".into())
}
