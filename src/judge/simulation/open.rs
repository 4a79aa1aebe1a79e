//! Violations that the protocol has still, at the edges: each is found, and is to hold once it is mended.

use super::searches::violated;
use super::*;

fn world() -> Physics {
    Physics { probes: true, ..Physics::new(Flaw::None) }
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
