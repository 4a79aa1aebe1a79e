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
    use std::time::{Duration, Instant};

    use taglock::judge::points::Point;

    use crate::chaos::history::{self, Pushed};
    use crate::chaos::load::{Clients, To};
    use crate::chaos::parts::{Backend, Node, Redis, Store};
    use crate::chaos::settle;
    use crate::fault_proxy::{Fault, pause};

    #[test]
    fn a_taglock_that_dies_after_any_action_leaves_no_tag_stuck() {
        die_at_each_point(1, &Store::Embedded);
    }

    #[test]
    fn when_one_of_a_fleet_dies_after_any_action_another_goes_on() {
        die_at_each_point(2, &Store::Redis(Box::new(Redis::start())));
    }

    /// A point is tried with tags of its own: on a machine that is busy enough, taglock's small
    /// time-outs end a push before it gets there.
    const ATTEMPTS: usize = 5;
    /// How long a process takes to be gone that has aborted.
    const DEATH: Duration = Duration::from_secs(2);

    fn die_at_each_point(nodes: u64, store: &Store) {
        let backend = Backend::start();
        let mut nodes: Vec<_> =
            (0..nodes).map(|n| Node::rolling(&backend, store, n, "staged")).collect();
        let addresses = nodes.iter().map(|node| node.clients.address.clone()).collect();
        let clients = Clients::new(0, addresses, &backend.0.address);
        let mut pairs = (0..).map(|pair| [format!("t{pair}a"), format!("t{pair}b")]);
        thread::scope(|scope| {
            for point in Point::ALL.iter().filter(|point| !is_a_mere_look(**point)) {
                let attempts = pairs.by_ref().take(ATTEMPTS);
                let died =
                    attempts.into_iter().find(|tags| dies(&clients, &mut nodes[0], tags, *point));
                let tags = died.unwrap_or_else(|| panic!("no push got to {point:?}"));
                if nodes.len() > 1 {
                    let (clients, rival) = (&clients, clients.images(&tags[0])[2].clone());
                    scope.spawn(move || clients.push(To::Taglock(1), &tags, &rival));
                }
            }
        });
        nodes[0].restart(None);
        nodes[0].wait();
        settle::settle(&clients, nodes.len());
        let wrong = history::violations(&clients.history());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // Four points are met where somebody else has died, and one is not tried.
        assert!(nodes[0].crashes >= Point::ALL.len() as u64 + 3);
    }

    /// A death after this one is a death after the claim, which is tried: only pushes of indexes look,
    /// and a look changes nothing.
    fn is_a_mere_look(point: Point) -> bool {
        point == Point::LookedAtParts
    }

    /// Whether the taglock died at this point of a push of these tags.
    fn dies(clients: &Clients, node: &mut Node, tags: &[String], point: Point) -> bool {
        let images = clients.images(&tags[0]);
        let mut at = |image: usize, point| push_and_die(clients, node, tags, &images[image], point);
        match point {
            Point::LookedUp
            | Point::Looked
            | Point::Resolved
            | Point::LookedStaged
            | Point::Staged
            | Point::Claimed
            | Point::Published
            | Point::Bound => at(0, point),
            // The one that died has published, and not bound.
            Point::Adopted => at(1, Point::Published) && at(0, point),
            Point::LookedAtParts => unreachable!("it is not tried"),
            // These are met where somebody else has left a claim.
            Point::Waited | Point::Fetched | Point::PublishedFetched => {
                at(1, Point::Claimed) && at(0, point)
            }
            Point::Aborted => {
                node.registry.script(|line| {
                    let staged = line.starts_with("HEAD ") && line.contains("sha256:");
                    staged.then_some(Fault::CutBefore)
                });
                let died = push_and_die(clients, node, tags, &images[0], point);
                node.registry.script(|_| None);
                died
            }
        }
    }

    fn push_and_die(
        clients: &Clients,
        node: &mut Node,
        tags: &[String],
        image: &(&'static str, Vec<u8>),
        at: Point,
    ) -> bool {
        node.restart_to_die(at.name());
        let crashes = node.crashes;
        let outcome = clients.push(To::Taglock(0), tags, image);
        assert_eq!(outcome, Pushed::Unclear, "{at:?}");
        let deadline = Instant::now() + DEATH;
        while !node.is_down() && Instant::now() < deadline {
            pause(Duration::from_millis(20));
        }
        node.crashes > crashes
    }
}
