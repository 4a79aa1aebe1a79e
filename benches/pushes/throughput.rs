//! As many pushes of distinct tags as fit into a second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fleets::Fleets;
use crate::harness::{digest, manifest};
use crate::measure::{digits, quantile, table};
use crate::pusher::Pusher;

const PUSHERS: [usize; 2] = [16, 64];
/// Each round takes so long.
const ROUND: Duration = Duration::from_millis(1200);

struct Contestant<'a> {
    name: &'static str,
    addresses: Vec<&'a str>,
    prefix: &'static str,
    as_judged: bool,
}

pub fn run(fleets: &Fleets, budget: Duration) {
    let direct = fleets.registry.address.as_str();
    let embedded = fleets.embedded.address.as_str();
    let fleet: Vec<_> = fleets.fleet.iter().map(|taglock| taglock.address.as_str()).collect();
    let contestant =
        |name, addresses, prefix, as_judged| Contestant { name, addresses, prefix, as_judged };
    let contestants = [
        contestant("direct", vec![direct], "many/direct", false),
        contestant("direct, all five requests of a judged push", vec![direct], "many/five", true),
        contestant("through taglock, unprotected", vec![embedded], "many/free", false),
        contestant("protected, embedded", vec![embedded], "all/many-embedded", false),
        contestant("protected, one proxy on Redis", vec![fleet[0]], "all/many-one", false),
        contestant("protected, three proxies on Redis", fleet.clone(), "all/many-three", false),
    ];
    let next = AtomicUsize::new(0);
    let mut rates = vec![vec![Vec::new(); PUSHERS.len()]; contestants.len()];
    let start = Instant::now();
    while start.elapsed() < budget {
        for (column, pushers) in PUSHERS.into_iter().enumerate() {
            for (row, contestant) in contestants.iter().enumerate() {
                rates[row][column].push(round(contestant, &next, pushers));
            }
        }
    }
    let rows: Vec<_> = contestants
        .iter()
        .zip(&rates)
        .map(|(contestant, columns)| {
            let mut row = vec![contestant.name.to_owned()];
            for (column, rounds) in columns.iter().enumerate() {
                let pairs = rounds.iter().zip(&rates[0][column]);
                let ratio = quantile(pairs.map(|(own, direct)| own / direct).collect(), 0.5);
                row.push(digits(quantile(rounds.clone(), 0.5)));
                row.push(format!("{} ×", digits(ratio)));
            }
            row
        })
        .collect();
    let title = format!("Pushes of distinct tags a second ({} rounds)", rates[0][0].len());
    let heads = ["push", "16 pushers, pushes/s", "to direct", "64 pushers, pushes/s", "to direct"];
    table(&title, &heads, &rows);
}

/// Pushes a second of this many pushers, spread over the proxies.
fn round(contestant: &Contestant<'_>, next: &AtomicUsize, pushers: usize) -> f64 {
    let start = Instant::now();
    let pushed: usize = thread::scope(|scope| {
        let handles: Vec<_> = (0..pushers)
            .map(|n| {
                let address = contestant.addresses[n % contestant.addresses.len()];
                scope.spawn(move || push(contestant, address, next, start + ROUND))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).sum()
    });
    pushed as f64 / start.elapsed().as_secs_f64()
}

fn push(contestant: &Contestant<'_>, address: &str, next: &AtomicUsize, end: Instant) -> usize {
    let mut pusher = Pusher::connect(address);
    let mut pushed = 0;
    while Instant::now() < end {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let repository = format!("{}/r{}", contestant.prefix, number % 50);
        let tag = format!("v{number}");
        let bytes = manifest(&tag);
        if contestant.as_judged {
            pusher.put_as_judged(&repository, &tag, &digest(&bytes), &bytes);
        } else {
            pusher.put(&repository, &tag, &bytes);
        }
        pushed += 1;
    }
    pushed
}
