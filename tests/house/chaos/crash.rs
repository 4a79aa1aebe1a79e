//! Processes that die in the middle of a push, right after each of its actions.

/// Understood by taglocks that were built with debug assertions.
pub const VARIABLE: &str = "TAGLOCK_CRASH_AT";

/// The points at which a taglock can be told to die; none in a release build.
pub fn names() -> Vec<&'static str> {
    #[cfg(debug_assertions)]
    let names = taglock::judge::points::Point::ALL.iter().map(|point| point.name()).collect();
    #[cfg(not(debug_assertions))]
    let names = Vec::new();
    names
}

#[cfg(debug_assertions)]
mod tests {
    use std::thread;

    use taglock::judge::points::Point;

    use crate::chaos::history::{self, Pushed};
    use crate::chaos::load::{Clients, To};
    use crate::chaos::parts::{Backend, Node, Redis, Store};
    use crate::chaos::settle;
    use crate::fault_proxy::Fault;
    use crate::harness::eventually;

    #[test]
    fn a_taglock_that_dies_after_any_action_leaves_no_tag_stuck() {
        die_at_each_point(1, &Store::Embedded);
    }

    #[test]
    fn when_one_of_a_fleet_dies_after_any_action_another_goes_on() {
        die_at_each_point(2, &Store::Redis(Box::new(Redis::start())));
    }

    fn die_at_each_point(nodes: u64, store: &Store) {
        let backend = Backend::start();
        let mut nodes: Vec<_> = (0..nodes).map(|n| Node::start(&backend, store, n)).collect();
        let addresses = nodes.iter().map(|node| node.clients.address.clone()).collect();
        let clients = Clients::new(0, addresses, &backend.0.address);
        thread::scope(|scope| {
            for (pair, point) in Point::ALL.iter().enumerate() {
                let tags = [format!("t{pair}a"), format!("t{pair}b")];
                let images = clients.images(&tags[0]);
                let ours = |image: usize, at: &Point, nodes: &mut Vec<Node>| {
                    push_and_die(&clients, &mut nodes[0], &tags, &images[image], *at);
                };
                match point {
                    Point::LookedUp
                    | Point::Looked
                    | Point::Resolved
                    | Point::LookedStaged
                    | Point::Staged
                    | Point::Claimed
                    | Point::Published
                    | Point::Sealed => ours(0, point, &mut nodes),
                    // These are met where somebody else has left a claim.
                    Point::Waited | Point::Fetched | Point::PublishedFetched => {
                        ours(1, &Point::Claimed, &mut nodes);
                        ours(0, point, &mut nodes);
                    }
                    Point::Aborted => {
                        nodes[0].registry.script(|line| {
                            let staged = line.starts_with("HEAD ") && line.contains("sha256:");
                            staged.then_some(Fault::CutBefore)
                        });
                        ours(0, point, &mut nodes);
                        nodes[0].registry.script(|_| None);
                    }
                }
                if nodes.len() > 1 {
                    let (clients, rival) = (&clients, images[2].clone());
                    scope.spawn(move || clients.push(To::Taglock(1), &tags, &rival));
                }
            }
        });
        nodes[0].restart(None);
        nodes[0].wait();
        settle::settle(&clients, nodes.len());
        let wrong = history::violations(&clients.history());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(nodes[0].crashes, Point::ALL.len() as u64 + 3);
    }

    fn push_and_die(
        clients: &Clients,
        node: &mut Node,
        tags: &[String],
        image: &(&'static str, Vec<u8>),
        at: Point,
    ) {
        node.restart(Some(at.name()));
        node.wait_up();
        let outcome = clients.push(To::Taglock(0), tags, image);
        assert_eq!(outcome, Pushed::Unclear, "{at:?}");
        eventually(&format!("the end at {at:?}"), || node.is_down());
    }
}
