//! How many new tags a store binds in a second, a claim and a seal each, with so many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use taglock::ledger::embedded::Embedded;
use taglock::ledger::{AttemptId, Bind, Claim, FreedNumber, Ledger};
use tokio::runtime::Runtime;

use crate::bare::Bare;
use crate::measure::{digits, quantile, table};
use crate::names::{image, repository, tag};
use crate::redis_server::{RedisServer, disk};

const AT_ONCE: [usize; 3] = [1, 16, 64];
/// Each round takes so long.
const ROUND: Duration = Duration::from_millis(300);

enum Contestant {
    Store(Arc<dyn Ledger>),
    /// Two `HSET`s instead of a claim and a seal.
    Bare(Bare),
}

pub fn run(runtime: &Runtime, budget: Duration) {
    let folder = disk();
    let servers = [RedisServer::start("everysec", &[]), RedisServer::start("always", &[])];
    let embedded: Arc<dyn Ledger> = Arc::new(Embedded::open(folder.path()).unwrap());
    let bare = |n: usize| Contestant::Bare(runtime.block_on(Bare::connect(&servers[n], 1)));
    let redis = |n: usize| Contestant::Store(Arc::new(servers[n].ledger(0, 0)));
    let contestants = [
        ("embedded", Contestant::Store(Arc::clone(&embedded))),
        ("Redis, everysec", redis(0)),
        ("two bare HSETs, everysec", bare(0)),
        ("Redis, always", redis(1)),
        ("two bare HSETs, always", bare(1)),
    ];
    let next = Arc::new(AtomicUsize::new(0));
    let mut rates = vec![vec![Vec::new(); AT_ONCE.len()]; contestants.len()];
    let start = Instant::now();
    while start.elapsed() < budget {
        for (column, at_once) in AT_ONCE.into_iter().enumerate() {
            for (row, (_, contestant)) in contestants.iter().enumerate() {
                rates[row][column].push(runtime.block_on(round(contestant, &next, at_once)));
            }
        }
    }
    runtime.block_on(embedded.close());
    let rows: Vec<_> = contestants
        .iter()
        .zip(&rates)
        .map(|((name, _), rates)| {
            let medians = rates.iter().map(|rounds| digits(quantile(rounds.clone(), 0.5)));
            std::iter::once((*name).to_owned()).chain(medians).collect()
        })
        .collect();
    let title = format!("New tags a second, claim and seal ({} rounds)", rates[0][0].len());
    table(&title, &["store", "1 at once", "16 at once", "64 at once"], &rows);
}

async fn round(contestant: &Contestant, next: &Arc<AtomicUsize>, at_once: usize) -> f64 {
    let start = Instant::now();
    let end = start + ROUND;
    let tasks: Vec<_> = (0..at_once)
        .map(|_| {
            let next = Arc::clone(next);
            match contestant {
                Contestant::Store(ledger) => tokio::spawn(bind(Arc::clone(ledger), next, end)),
                Contestant::Bare(bare) => tokio::spawn(set(bare.clone(), next, end)),
            }
        })
        .collect();
    let mut bound = 0;
    for task in tasks {
        bound += task.await.unwrap();
    }
    f64::from(bound) / start.elapsed().as_secs_f64()
}

fn name(next: &AtomicUsize) -> (usize, usize) {
    let n = next.fetch_add(1, Ordering::Relaxed);
    (n % 1000, n / 1000)
}

async fn bind(ledger: Arc<dyn Ledger>, next: Arc<AtomicUsize>, end: Instant) -> u32 {
    let mut bound = 0;
    while Instant::now() < end {
        let (r, t) = name(&next);
        let (key, tags, digest) = (repository(r), [tag(t)], image(r, t));
        let (attempt, none) = (AttemptId::random(), FreedNumber::default());
        let claim = ledger.claim(&key, &tags, &digest, attempt).await.unwrap();
        assert!(matches!(claim, Claim::Granted { .. }));
        let end = ledger.bind(&key, &tags, &digest, attempt, none).await.unwrap();
        assert_eq!(end, Bind::Bound);
        bound += 1;
    }
    bound
}

async fn set(mut bare: Bare, next: Arc<AtomicUsize>, end: Instant) -> u32 {
    let mut bound = 0;
    while Instant::now() < end {
        let (r, t) = name(&next);
        let (hash, tag) = (format!("bare:{{{}}}", repository(r)), tag(t));
        bare.hset(&hash, &tag).await;
        bare.hset(&hash, &tag).await;
        bound += 1;
    }
    bound
}
