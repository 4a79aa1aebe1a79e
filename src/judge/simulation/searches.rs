#![allow(clippy::print_stdout, reason = "how much was searched")]

use super::search::{Found, search};
use super::*;

/// One thing more may go wrong in the largest searches with `TAGLOCK_DEEP=1`: minutes instead of
/// seconds.
pub(super) fn deep() -> u8 {
    u8::from(std::env::var_os("TAGLOCK_DEEP").is_some())
}

fn physics(flaw: Flaw, wait: bool) -> Physics {
    Physics { wait, ..Physics::new(flaw) }
}

#[track_caller]
pub(super) fn holds(images: &[&str], physics: &Physics, budget: &Budget) {
    println!("{images:?}, {budget:?}:");
    holds_from(World::new(images, physics, budget.clone()), physics);
}

#[track_caller]
pub(super) fn holds_from(world: World, physics: &Physics) {
    let start = std::time::Instant::now();
    match search(world, physics) {
        Found::Holds { states } => {
            println!("{states} states in {:?}", start.elapsed());
            assert!(states > 20, "nothing was searched");
        }
        Found::Violated { what, trace } => panic!("{what}:\n{}", trace.join("\n")),
    }
}

#[track_caller]
pub(super) fn violated(images: &[&str], physics: &Physics, budget: &Budget, expected: &str) {
    violated_from(World::new(images, physics, budget.clone()), physics, expected);
}

#[track_caller]
pub(super) fn violated_from(world: World, physics: &Physics, expected: &str) {
    match search(world, physics) {
        Found::Holds { states } => panic!("{physics:?} holds in {states} states"),
        Found::Violated { what, trace } => {
            println!("{:?}: {what} after {} steps", physics.flaw, trace.len());
            if std::env::var_os("TAGLOCK_TRACES").is_some() {
                println!("{}", trace.join("\n"));
            }
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
    violated(&["one"], &unsafe_pull(Flaw::PullIgnoresClaims), &lossy, "was put to another image");
    // A ledger that does not wait for its replica forgets what it was told at first sight.
    let failover = Budget { failovers: 1, ..twice };
    violated(&["one"], &unsafe_pull(Flaw::None), &failover, "v1");
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
    let twice_lossy = Budget { failovers: 2, timeouts: 1, ..Budget::default() };
    violated(&rivals, &physics(Flaw::None, false), &twice_lossy, "v1");
}

/// A push and a pull, or two pushes, beside deletes under this policy.
fn holds_beside_deletes(deletes: Deletes) {
    let pull = Budget { pulls: 1, deletes: 1, ..Budget::default() };
    let pushes = Budget { deletes: 1, ..Budget::default() };
    for present in [None, Some("one"), Some("two")] {
        let physics = Physics { deletes, present, ..physics(Flaw::None, false) };
        holds(&["one"], &physics, &Budget { timeouts: 1, ..pull.clone() });
        holds(&["one", "two"], &physics, &pushes);
    }
    let physics = Physics { deletes, present: Some("one"), ..physics(Flaw::None, false) };
    holds(&["one"], &physics, &Budget { deletes: 2, ..pushes });
}

/// The same, where calls fail and processes die.
fn holds_beside_deletes_that_fail(deletes: Deletes) {
    let pull = Budget { pulls: 1, deletes: 1, ..Budget::default() };
    let fixed = physics(Flaw::None, false);
    // A tag that was bound before makes the world a small one.
    let bound = deletes == Deletes::Release && deep() == 0;
    let physics = Physics { deletes, bound, present: Some("one"), ..fixed };
    holds(&["one"], &physics, &Budget { troubles: 1, ..pull.clone() });
    holds(&["one"], &physics, &Budget { crashes: 1, ..pull });
}

#[test]
fn the_protocol_holds_while_deletes_fail() {
    for deletes in [Deletes::Refuse, Deletes::Keep, Deletes::Release] {
        holds_beside_deletes_that_fail(deletes);
    }
}

#[test]
fn the_protocol_holds_while_images_are_deleted_that_no_name_has() {
    holds_beside_deletes(Deletes::Refuse);
}

#[test]
fn the_protocol_holds_while_names_are_withdrawn() {
    holds_beside_deletes(Deletes::Keep);
}

#[test]
fn the_protocol_holds_while_names_are_freed() {
    holds_beside_deletes(Deletes::Release);
    let released = Budget { releases: 1, pulls: 1, ..Budget::default() };
    for clears in [false, true] {
        holds(&["one"], &Physics { clears, ..physics(Flaw::None, false) }, &released);
        let physics = Physics { clears, present: Some("one"), ..physics(Flaw::None, false) };
        holds(&["one", "two"], &physics, &released);
    }
}
