//! Violations that the protocol has still, at the edges: each is found, and is to hold once it is mended.

use super::searches::violated;
use super::*;

fn world() -> Physics {
    Physics { probes: true, ..Physics::new(Flaw::None) }
}

/// Two proxies that remember what a ledger may lose.
fn losing() -> Physics {
    let deletes = Deletes::Release;
    Physics { proxies: 2, remembers: true, present: Some("one"), deletes, ..world() }
}

/// The first of what remains by decision 30: a first pull at a proxy with newer rules has looked at the
/// registry; a mutable write at another proxy lands, finds no entry when it looks again, and is
/// acknowledged; then the pull binds what it saw.
#[test]
fn a_look_from_before_a_mutable_write_of_another_proxy_binds_after_it() {
    let physics =
        Physics { proxies: 2, mutable: true, shared: true, present: Some("two"), ..world() };
    let budget = Budget { reloads: 1, writes: 1, pulls: 1, ..Budget::default() };
    violated(&[], &physics, &budget, "v1");
}

/// By decision 30: a repair at one proxy is on its way while another frees the name.
#[test]
fn a_repair_of_another_proxy_is_not_waited_for() {
    let physics = Physics {
        proxies: 2,
        present: Some("one"),
        bound: true,
        deletes: Deletes::Release,
        ..world()
    };
    let budget = Budget { moves: 1, repairs: 1, deletes: 1, ..Budget::default() };
    violated(&[], &physics, &budget, "v1");
}

/// By decision 30: under `refuse` a delete has adopted the tags that show its image; an operator frees one
/// before the mark is made, so that nothing stands against the delete, and the tag loses its image.
#[test]
fn a_delete_under_refuse_takes_the_image_of_a_name_that_was_just_freed() {
    let physics = Physics { present: Some("one"), ..world() };
    let budget = Budget { deletes: 1, releases: 1, ..Budget::default() };
    violated(&[], &physics, &budget, "v1");
}

/// Not written down yet: a ledger loses the mark of a DELETE under way, and then the tag is bound. The
/// delete looks only at the tags that were bound when the mark was made, and is acknowledged.
#[test]
fn a_delete_whose_mark_was_lost_overlooks_what_was_bound_since() {
    let physics = Physics { loses_marks: true, ..losing() };
    let budget = Budget { pulls: 1, deletes: 1, losses: 1, ..Budget::default() };
    violated(&[], &physics, &budget, "v1");
}

/// Not written down yet: a pull has looked at the registry before a name was freed; the ledger loses
/// everything, no proxy remembers anything of the repository, and so its freed number is 0 again: the pull
/// binds what it saw.
#[test]
fn a_look_from_before_a_loss_binds_after_it() {
    let budget = Budget { pulls: 1, deletes: 1, losses: 1, ..Budget::default() };
    violated(&[], &losing(), &budget, "v1");
}

/// Not written down yet: a push of a bound image finds, when it binds, that the ledger has lost the name. Its
/// proxy takes that for "freed", and offers it so.
#[test]
fn a_push_during_a_loss_lets_go_of_a_bound_name() {
    let physics = Physics { bound: true, binds_while_restored: true, ..losing() };
    let budget = Budget { moves: 1, losses: 1, ..Budget::default() };
    violated(&["one"], &physics, &budget, "v1");
}

/// Not written down yet: a name that was withdrawn and pushed again keeps the sequence number of its first
/// push, and one proxy remembers the withdrawal under a higher one. After a loss the name is withdrawn
/// again.
#[test]
fn a_name_that_was_pushed_again_after_a_delete_is_withdrawn_by_a_loss() {
    let physics = Physics { bound: true, deletes: Deletes::Keep, ..losing() };
    let budget = Budget { deletes: 1, losses: 1, pulls: 1, ..Budget::default() };
    violated(&["one"], &physics, &budget, "v1");
}
