//! Known unsafe protocols around names that are freed: each is found violated, and its world holds without
//! the flaw.

use super::searches::{holds, holds_from, violated, violated_from};
use super::*;

/// A world of one tag, in which everything is watched closely.
fn world(flaw: Flaw) -> Physics {
    Physics { probes: true, ..Physics::new(flaw) }
}

/// That this flaw breaks the promises in this world, in these words, and that nothing does without it.
#[track_caller]
fn breaks(flaw: Flaw, images: &[&str], physics: &Physics, budget: &Budget, expected: &str) {
    violated(images, &Physics { flaw, ..physics.clone() }, budget, expected);
    holds(images, physics, budget);
}

fn deleting(deletes: Deletes) -> Physics {
    Physics { deletes, ..world(Flaw::None) }
}

/// Two proxies that remember what a ledger may lose.
fn losing() -> Physics {
    Physics { proxies: 2, remembers: true, present: Some("one"), ..deleting(Deletes::Release) }
}

#[test]
fn a_bind_finds_its_claim() {
    let budget = Budget { deletes: 1, pulls: 1, ..Budget::default() };
    let physics = deleting(Deletes::Release);
    breaks(Flaw::BindNeedsNoClaim, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_push_of_a_bound_tag_asks_once_more() {
    let physics = Physics { present: Some("one"), ..deleting(Deletes::Keep) };
    let budget = Budget { deletes: 1, ..Budget::default() };
    breaks(Flaw::BoundPushAsksNoMore, &["one"], &physics, &budget, "v1");
    let budget = Budget { pulls: 1, ..budget };
    breaks(Flaw::MarkIgnoredByBind, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_look_binds_nothing_once_something_was_freed() {
    let budget = Budget { deletes: 1, pulls: 1, ..Budget::default() };
    let physics = Physics { present: Some("one"), ..deleting(Deletes::Release) };
    breaks(Flaw::AdoptIgnoresFreed, &[], &physics, &budget, "v1");
    breaks(Flaw::MarkIgnoredByAdopt, &[], &physics, &budget, "v1");
}

#[test]
fn a_delete_leaves_a_mark_before_it_is_sent() {
    let budget = Budget { deletes: 1, ..Budget::default() };
    let physics = deleting(Deletes::Refuse);
    breaks(Flaw::NoDeleteMark, &["one"], &physics, &budget, "v1");
    breaks(Flaw::MarkIgnoredByClaim, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_delete_is_sent_once() {
    let budget = Budget { deletes: 1, timeouts: 1, ..Budget::default() };
    let physics = Physics { present: Some("one"), ..deleting(Deletes::Release) };
    breaks(Flaw::DeleteSentTwice, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_delete_whose_outcome_is_unknown_keeps_its_mark() {
    let budget = Budget { pulls: 1, deletes: 1, timeouts: 1, ..Budget::default() };
    let physics = deleting(Deletes::Refuse);
    breaks(Flaw::UnknownDeleteIsUnmarked, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_mutable_delete_frees_bindings() {
    let budget = Budget { pulls: 1, deletes: 1, reloads: 2, ..Budget::default() };
    let physics = Physics { present: Some("one"), ..deleting(Deletes::Refuse) };
    breaks(Flaw::MutableDeleteKeepsBinding, &[], &physics, &budget, "v1");
    let budget = Budget { pulls: 0, ..budget };
    let physics = world(Flaw::None);
    breaks(Flaw::MutableDeleteLooksOnce, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_delete_whose_mark_was_lost_is_not_acknowledged() {
    let physics = Physics { loses_marks: true, bound: true, ..losing() };
    let budget = Budget { deletes: 1, losses: 1, ..Budget::default() };
    breaks(Flaw::LostMarkIsAcknowledged, &[], &physics, &budget, "v1");
    // The tag is bound after the loss.
    let physics = Physics { bound: false, ..physics };
    let budget = Budget { pulls: 1, ..budget };
    breaks(Flaw::LostMarkLooksAtItsTags, &[], &physics, &budget, "v1");
}

#[test]
fn a_look_from_before_a_loss_binds_nothing() {
    let budget = Budget { pulls: 1, deletes: 1, losses: 1, ..Budget::default() };
    breaks(Flaw::FreedNumberOutlivesLoss, &[], &losing(), &budget, "v1");
}

#[test]
fn a_push_during_a_loss_learns_nothing() {
    let physics = Physics { bound: true, ..losing() };
    let budget = Budget { moves: 1, losses: 1, ..Budget::default() };
    breaks(Flaw::BindWhileRestored, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_name_that_was_pushed_again_is_newer_than_its_delete() {
    let physics = Physics { bound: true, deletes: Deletes::Keep, ..losing() };
    let budget = Budget { deletes: 1, losses: 1, pulls: 1, ..Budget::default() };
    breaks(Flaw::RebindKeepsSequence, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_push_whose_claim_is_gone_looks_at_the_registry() {
    let physics =
        Physics { proxies: 1, loses_claims: true, stored: true, present: None, ..losing() };
    let flawed = Physics { flaw: Flaw::GoneIsAcknowledged, ..physics.clone() };
    let budget = Budget { deletes: 1, losses: 1, ..Budget::default() };
    // Its PUT is on its way when the ledger loses its claim.
    let world =
        |physics| World::new(&["two", "one"], physics, budget.clone()).with_sent(physics, 0);
    violated_from(world(&flawed), &flawed, "v1");
    holds_from(world(&physics), &physics);
}

#[test]
fn nobodys_rights_are_used_for_somebody_elses_image() {
    let physics = Physics { outsider: true, ..world(Flaw::None) };
    let budget = Budget { timeouts: 1, ..Budget::default() };
    let rivals = ["one", "two"];
    breaks(
        Flaw::RollForwardWithOthersRights,
        &rivals,
        &physics,
        &budget,
        "another client's rights",
    );
    let physics = Physics { roll_forward: RollForward::Staged, ..physics };
    let budget = Budget { repeats: 1, ..Budget::default() };
    breaks(Flaw::RepeatedClaimNotFresh, &rivals, &physics, &budget, "claim was taken back");
}

#[test]
fn nothing_is_acknowledged_that_could_not_be_bound() {
    let physics = Physics { proxies: 2, remembers: true, loses_claims: true, ..world(Flaw::None) };
    let budget = Budget { losses: 1, troubles: 1, ..Budget::default() };
    breaks(Flaw::AckUnbound, &["one", "two"], &physics, &budget, "v1");
}

#[test]
fn a_release_frees_the_life_that_was_seen() {
    let budget = Budget { pulls: 2, releases: 2, ..Budget::default() };
    let physics = Physics { present: Some("one"), ..world(Flaw::None) };
    breaks(Flaw::ReleaseAnyLife, &[], &physics, &budget, "has not seen");
}

#[test]
fn a_mutable_write_drops_what_it_has_seen() {
    let physics = Physics {
        proxies: 2,
        mutable: true,
        shared: true,
        pushes_at: Some(1),
        ..world(Flaw::None)
    };
    let flawed = Physics { flaw: Flaw::SupersedeWhatever, ..physics.clone() };
    let budget = Budget { refusals: 1, writes: 1, ..Budget::default() };
    // The second proxy has newer rules, and a push under them is on its way.
    let world = |physics| {
        let mut world = World::new(&["two", "one"], physics, budget.clone());
        world.proxies[1].mutable = false;
        world.with_sent(physics, 0)
    };
    violated_from(world(&flawed), &flawed, "has not seen");
    holds_from(world(&physics), &physics);
}

#[test]
fn a_judged_write_waits_for_unjudged_ones() {
    let physics = Physics { mutable: true, ..world(Flaw::None) };
    let budget = Budget { reloads: 1, writes: 1, ..Budget::default() };
    breaks(Flaw::UnjudgedNotWaitedFor, &["one"], &physics, &budget, "v1");
    let physics = Physics { proxies: 2, upgrade: true, ..physics };
    breaks(Flaw::NotHandedOver, &["one"], &physics, &budget, "v1");
}

#[test]
fn a_mutable_write_looks_again_in_a_fleet() {
    let physics = Physics { mutable: true, proxies: 2, shared: true, ..world(Flaw::None) };
    let budget = Budget { reloads: 2, writes: 1, ..Budget::default() };
    breaks(Flaw::NoLookAfterWrite, &["one"], &physics, &budget, "v1");
    let physics = Physics { present: Some("two"), ..physics };
    let budget = Budget { reloads: 1, writes: 1, pulls: 1, ..Budget::default() };
    breaks(Flaw::WriteInvalidatesNothing, &[], &physics, &budget, "v1");
}

#[test]
fn a_repair_is_waited_for() {
    let physics = Physics { present: Some("one"), bound: true, ..deleting(Deletes::Release) };
    let deletes = Budget { moves: 1, repairs: 1, deletes: 1, ..Budget::default() };
    breaks(Flaw::RepairNotWaitedFor, &["one"], &physics, &deletes, "v1");
    breaks(Flaw::RepairIgnoresMarks, &[], &physics, &deletes, "v1");
    let releases = Budget { releases: 1, deletes: 0, ..deletes };
    breaks(Flaw::RepairIgnoresWrites, &[], &physics, &releases, "v1");
    let writes = Budget { writes: 1, reloads: 2, releases: 0, ..releases };
    breaks(Flaw::RepairIgnoresWrites, &[], &physics, &writes, "v1");
}

#[test]
fn memory_of_freed_names_is_not_gone_by() {
    let physics =
        Physics { proxies: 2, remembers: true, present: Some("one"), ..deleting(Deletes::Release) };
    let budget = Budget { deletes: 1, pulls: 1, polls: 1, ..Budget::default() };
    breaks(Flaw::MemoryOfFreedNames, &[], &physics, &budget, "a memory of v1");
}

#[test]
fn the_newest_word_wins_after_a_loss() {
    let budget = Budget { releases: 1, losses: 1, ..Budget::default() };
    let physics = Physics { bound: true, clears: true, ..losing() };
    breaks(Flaw::RestoreInAnyOrder, &[], &physics, &budget, "v1");
    let physics = Physics { present: None, ..losing() };
    let budget = Budget { moves: 1, losses: 1, pulls: 1, ..Budget::default() };
    breaks(Flaw::RestoreWaitsForNobody, &["one"], &physics, &budget, "v1");
}

#[test]
fn what_no_replica_has_is_not_gone_by() {
    let physics = Physics { wait: true, present: Some("one"), ..world(Flaw::None) };
    let budget = Budget { troubles: 1, failovers: 1, moves: 1, pulls: 2, ..Budget::default() };
    breaks(Flaw::UnconfirmedReads, &[], &physics, &budget, "v1");
}

#[test]
fn what_frees_a_name_waits_for_replicas() {
    let physics = Physics { wait: true, ..deleting(Deletes::Release) };
    let budget = Budget { deletes: 1, failovers: 1, ..Budget::default() };
    breaks(Flaw::ReleaseWaitsForNoReplica, &["one"], &physics, &budget, "v1");
}
