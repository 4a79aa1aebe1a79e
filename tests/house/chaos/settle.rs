//! After the chaos: no tag is stuck, the winner's push succeeds, and nobody else's does.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::history::{Pulled, Pushed, winners};
use super::load::{self, Clients, To};
use crate::fault_proxy::pause;
use crate::harness::digest;

/// A claim that was left is brought to its end within one push, and a tag is settled within this time.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn settle(clients: &Clients, nodes: usize) {
    // Tags of one pair are wanted by the same images: one after the other, because the registry fails
    // in passing where it meets a link that somebody else is writing.
    let mut pairs = BTreeMap::<_, Vec<_>>::new();
    for (tag, winner) in winners(&clients.history()) {
        pairs.entry(load::pair_of(&tag)).or_default().push((tag, winner));
    }
    let pairs = Mutex::new(pairs.into_values());
    thread::scope(|scope| {
        for n in 0..6 {
            let pairs = &pairs;
            scope.spawn(move || {
                loop {
                    let Some(pair) = pairs.lock().unwrap().next() else { return };
                    for (tag, winner) in pair {
                        settle_tag(clients, nodes, n, &tag, winner);
                    }
                }
            });
        }
    });
}

fn settle_tag(clients: &Clients, nodes: usize, n: usize, tag: &str, winner: Option<String>) {
    let tags = [tag.to_owned()];
    let mut images = clients.images(tag);
    // The winner first, where one is known.
    images.sort_by_key(|(_, bytes)| winner.as_ref() != Some(&digest(bytes)));
    let deadline = Instant::now() + PATIENCE;
    // First what the registry has, into the history: a push of the winner would heal it.
    known(Pulled::Unclear, deadline, || clients.pull(To::Registry, tag, "GET"));
    let winner = 'found: loop {
        let mut outcomes = Vec::new();
        for image in &images {
            let outcome = clients.push(To::Taglock(n % nodes), &tags, image);
            if let Pushed::Acknowledged(_) = outcome {
                break 'found digest(&image.1);
            }
            outcomes.push(outcome);
        }
        assert!(Instant::now() < deadline, "{tag} is stuck, its winner {winner:?}: {outcomes:?}");
        pause(Duration::from_millis(200));
    };
    for node in (0..nodes).map(To::Taglock) {
        for image in &images {
            let outcome = known(Pushed::Unclear, deadline, || clients.push(node, &tags, image));
            let right = match &outcome {
                Pushed::Acknowledged(_) => digest(&image.1) == winner,
                Pushed::Refused { bound, .. } => *bound == winner && digest(&image.1) != winner,
                Pushed::Unclear | Pushed::Wrong(_) => false,
            };
            assert!(right, "{tag} is {winner}, and a push of {} is {outcome:?}", digest(&image.1));
        }
    }
    for to in (0..nodes).map(To::Taglock).chain([To::Registry]) {
        let outcome = known(Pulled::Unclear, deadline, || clients.pull(to, tag, "GET"));
        assert_eq!(outcome, Pulled::Found(winner.clone()), "{tag}");
    }
}

/// Asks until there is an answer: on a machine that is busy enough, taglock's small time-outs strike
/// without any fault.
fn known<T: PartialEq>(unclear: T, deadline: Instant, ask: impl Fn() -> T) -> T {
    loop {
        let outcome = ask();
        if outcome != unclear || Instant::now() > deadline {
            return outcome;
        }
        pause(Duration::from_millis(200));
    }
}
