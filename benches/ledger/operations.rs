//! What each operation costs, one at a time.

use std::time::{Duration, Instant};

use taglock::ledger::embedded::Embedded;
use taglock::ledger::memory::Memory;
use taglock::ledger::{Adopt, AttemptId, Bind, Claim, Entry, FreedNumber, Ledger, Origin};
use tokio::runtime::Runtime;

use crate::bare::{Bare, Disk};
use crate::measure::{Series, digits, table};
use crate::names::{image, repository, tag};
use crate::redis_server::{RedisServer, disk};

/// A repository has so many tags before the next one begins.
const TAGS: usize = 200;
/// So many operations of one kind, then it is the next contestant's turn.
const TURN: usize = 8;

const OPERATIONS: [&str; 6] = [
    "lookup, absent",
    "lookup, sealed",
    "claim, absent",
    "claim, sealed alike",
    "seal, claimed",
    "abort, claimed",
];

/// Names that nobody has used yet, one after the other.
#[derive(Default)]
struct Fresh(usize);

impl Fresh {
    fn next(&mut self) -> (usize, usize) {
        self.0 += 1;
        (self.0 / TAGS, self.0 % TAGS)
    }
}

struct Store {
    name: &'static str,
    ledger: Box<dyn Ledger>,
    fresh: Fresh,
    series: [Series; OPERATIONS.len()],
}

impl Store {
    fn new(name: &'static str, ledger: impl Ledger + 'static) -> Self {
        Self { name, ledger: Box::new(ledger), fresh: Fresh::default(), series: <_>::default() }
    }

    /// One operation of this kind on a tag of its own, prepared untimed.
    async fn once(&mut self, operation: usize) -> Duration {
        let (r, t) = self.fresh.next();
        let (key, tags, digest, attempt) =
            (repository(r), [tag(t)], image(r, t), AttemptId::random());
        let (ledger, none) = (&self.ledger, FreedNumber::default());
        match operation {
            // A look-up of what is absent needs nothing.
            1 | 3 => {
                let adopted = ledger.adopt(&key, &tags, &digest, Origin::Push, none).await;
                assert_eq!(adopted, Ok(Adopt::Adopted));
            }
            4 | 5 => {
                let claim = ledger.claim(&key, &tags, &digest, attempt).await.unwrap();
                assert!(matches!(claim, Claim::Granted { .. }));
            }
            _ => {}
        }
        let start = Instant::now();
        match operation {
            0 => assert_eq!(ledger.lookup(&key, &tags).await.unwrap().entries, [Entry::Absent]),
            1 => {
                let found = ledger.lookup(&key, &tags).await.unwrap();
                assert!(matches!(found.entries.as_slice(), [Entry::Sealed(_)]));
            }
            2 | 3 => {
                let claim = ledger.claim(&key, &tags, &digest, attempt).await.unwrap();
                assert!(matches!(claim, Claim::Granted { .. }));
            }
            4 => {
                let bound = ledger.bind(&key, &tags, &digest, attempt, none).await;
                assert_eq!(bound, Ok(Bind::Bound));
            }
            _ => ledger.abort(&key, &tags, &digest, attempt).await.unwrap(),
        }
        start.elapsed()
    }
}

/// A bare thing, and what it has taken.
struct Rival {
    name: &'static str,
    on: &'static str,
    series: Series,
}

const BARE: [(&str, &str); 10] = [
    ("PING", "everysec"),
    ("EVALSHA of `return 1`", "everysec"),
    ("HMGET", "everysec"),
    ("HSET", "everysec"),
    ("HMGET", "always"),
    ("HSET", "always"),
    ("HMGET", "replica"),
    ("HSET", "replica"),
    ("HSET and WAIT 1", "replica"),
    ("write 4 KiB, fdatasync", "disk"),
];

pub fn run(runtime: &Runtime, budget: Duration) {
    let servers = [
        RedisServer::start("everysec", &[]),
        RedisServer::start("always", &[]),
        RedisServer::start("everysec", &[]),
    ];
    let master = servers[2].address.replace(':', " ");
    let _replica = RedisServer::start("everysec", &["--replicaof", &master]);
    let mut bares: Vec<_> = servers.iter().map(|s| runtime.block_on(Bare::connect(s, 1))).collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !runtime.block_on(bares[2].has_replica()) {
        assert!(Instant::now() < deadline, "the replica did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
    let folder = disk();
    let mut bare_disk = Disk::new(folder.path());
    let mut stores = [
        Store::new("memory", Memory::new()),
        Store::new("embedded", Embedded::open(&folder.path().join("ledger")).unwrap()),
        Store::new("Redis, everysec", servers[0].ledger(0, 0)),
        Store::new("Redis, always", servers[1].ledger(0, 0)),
        Store::new("Redis, replica, WAIT", servers[2].ledger(0, 1)),
    ];
    let mut rivals = BARE.map(|(name, on)| Rival { name, on, series: Series::default() });
    let mut fresh = Fresh::default();

    let start = Instant::now();
    let mut warm = false;
    while start.elapsed() < budget {
        for store in &mut stores {
            for operation in 0..OPERATIONS.len() {
                let times = runtime.block_on(async {
                    let mut times = Vec::new();
                    for _ in 0..TURN {
                        times.push(store.once(operation).await);
                    }
                    times
                });
                if warm {
                    store.series[operation].round(times);
                }
            }
        }
        for rival in &mut rivals {
            let times = runtime.block_on(async {
                let mut times = Vec::new();
                for _ in 0..TURN {
                    times.push(bare(rival, &mut bares, &mut bare_disk, &mut fresh).await);
                }
                times
            });
            if warm {
                rival.series.round(times);
            }
        }
        // The first round connects, loads the script and fills caches.
        warm = true;
    }
    report(&stores, &rivals);
    for store in &stores {
        runtime.block_on(store.ledger.close());
    }
}

async fn bare(rival: &Rival, bares: &mut [Bare], disk: &mut Disk, fresh: &mut Fresh) -> Duration {
    let (r, t) = fresh.next();
    let (hash, tag) = (format!("bare:{{{}}}", repository(r)), tag(t));
    let server = ["everysec", "always", "replica"].iter().position(|on| *on == rival.on);
    let start = Instant::now();
    match (rival.name, server) {
        ("PING", Some(n)) => bares[n].ping().await,
        ("HMGET", Some(n)) => bares[n].hmget(&hash, &tag).await,
        ("HSET", Some(n)) => bares[n].hset(&hash, &tag).await,
        ("HSET and WAIT 1", Some(n)) => bares[n].hset_and_wait(&hash, &tag).await,
        (_, Some(n)) => bares[n].evalsha(&hash).await,
        (_, None) => disk.write_and_sync(),
    }
    start.elapsed()
}

fn report(stores: &[Store], rivals: &[Rival]) {
    let find = |name: &str, on: &str| {
        rivals.iter().find(|rival| rival.name == name && rival.on == on).unwrap()
    };
    let mut rows = Vec::new();
    for store in stores {
        for (operation, series) in OPERATIONS.iter().zip(&store.series) {
            let read = operation.starts_with("lookup");
            let beside = match (store.name, read) {
                ("embedded", false) => Some(find("write 4 KiB, fdatasync", "disk")),
                ("Redis, everysec", true) => Some(find("HMGET", "everysec")),
                ("Redis, everysec", false) => Some(find("HSET", "everysec")),
                ("Redis, always", true) => Some(find("HMGET", "always")),
                ("Redis, always", false) => Some(find("HSET", "always")),
                ("Redis, replica, WAIT", true) => Some(find("HMGET", "replica")),
                // An abort need not wait for the replica.
                ("Redis, replica, WAIT", false) if operation.starts_with("abort") => {
                    Some(find("HSET", "replica"))
                }
                ("Redis, replica, WAIT", false) => Some(find("HSET and WAIT 1", "replica")),
                _ => None,
            };
            rows.push(vec![
                store.name.to_owned(),
                (*operation).to_owned(),
                digits(series.quantile(0.5)),
                digits(series.quantile(0.99)),
                beside.map_or("–".into(), |bare| {
                    format!("{} × {}", digits(series.ratio(&bare.series)), bare.name)
                }),
            ]);
        }
    }
    let title = format!(
        "One operation at a time ({} samples each, in turns of {TURN})",
        stores[0].series[0].count()
    );
    table(&title, &["store", "operation", "p50 µs", "p99 µs", "ratio to the bare thing"], &rows);
    let rows = rivals.iter().map(|rival| {
        let series = &rival.series;
        vec![
            rival.on.to_owned(),
            rival.name.to_owned(),
            digits(series.quantile(0.5)),
            digits(series.quantile(0.99)),
        ]
    });
    let rows: Vec<_> = rows.collect();
    table("The bare things of that run", &["on", "what", "p50 µs", "p99 µs"], &rows);
}
