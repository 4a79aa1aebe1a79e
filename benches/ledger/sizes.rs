//! What a tag weighs, and what looking costs among few and among many.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use taglock::ledger::embedded::Embedded;
use taglock::ledger::{Adopt, Entry, FreedNumber, Ledger, Origin};
use tokio::runtime::Runtime;

use crate::bare::Bare;
use crate::measure::{Series, digits, table};
use crate::names::{image, repository, tag};
use crate::redis_server::{RedisServer, disk};

const AT_ONCE: usize = 256;
/// Tags of one image. The embedded ledger is filled an image a call: each commit waits for the
/// disk.
const ALIKE: usize = 8;
/// Rounds of look-ups, and look-ups of one kind a round.
const ROUNDS: usize = 20;
const TURN: usize = 10;
const PAGE: usize = 100;

const LOOKS: [&str; 7] = [
    "lookup, sealed",
    "lookup, absent",
    "tags bound to a digest",
    "first page of a listing",
    "the page after it",
    "page in the middle",
    "sequence number",
];

/// So many repositories with so many tags each.
#[derive(Clone, Copy)]
struct Shape {
    repositories: usize,
    tags: usize,
}

impl Shape {
    fn all(self) -> usize {
        self.repositories * self.tags
    }

    fn title(self) -> String {
        format!("{} × {}", self.repositories, self.tags)
    }
}

struct Filled {
    shape: Shape,
    ledger: Arc<dyn Ledger>,
    series: [Series; LOOKS.len()],
}

pub fn run(runtime: &Runtime, quick: bool) {
    let shape = |repositories, tags| Shape { repositories, tags };
    let shapes = if quick {
        [shape(5, 200), shape(50, 200), shape(500, 200), shape(1, 20_000)]
    } else {
        [shape(5, 200), shape(500, 200), shape(5000, 200), shape(1, 20_000)]
    };
    let server = RedisServer::start("everysec", &[]);
    let folder = disk();
    let mut bare = runtime.block_on(Bare::connect(&server, 15));
    let (mut redis, mut embedded, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (n, shape) in shapes.into_iter().enumerate() {
        let ledger: Arc<dyn Ledger> = Arc::new(server.ledger(n as u8, 0));
        // Connections and buffers of the store's own come before the first look at the memory.
        runtime.block_on(ledger.identity()).unwrap();
        let before = runtime.block_on(bare.used_memory());
        let in_redis = fill(runtime, &ledger, shape, 1);
        // What is resized in the background, and buffers of connections, settle.
        std::thread::sleep(Duration::from_secs(1));
        let memory = runtime.block_on(bare.used_memory()) - before;
        redis.push(Filled { shape, ledger, series: <_>::default() });

        let path = folder.path().join(n.to_string());
        let ledger: Arc<dyn Ledger> = Arc::new(Embedded::open(&path).unwrap());
        let in_file = fill(runtime, &ledger, shape, ALIKE);
        let size = fs::metadata(path.join("ledger.redb")).unwrap().len();
        embedded.push(Filled { shape, ledger, series: <_>::default() });

        let each = |bytes: u64| digits(bytes as f64 / shape.all() as f64);
        let rate = |time: Duration| digits(shape.all() as f64 / time.as_secs_f64());
        weights.push(vec![shape.title(), each(memory), each(size), rate(in_redis), rate(in_file)]);
    }
    let heads = [
        "repositories × tags",
        "Redis, bytes a tag",
        "embedded file, bytes a tag",
        "Redis, seals/s",
        "embedded, seals/s",
    ];
    table("What a tag weighs", &heads, &weights);
    for _ in 0..ROUNDS {
        for filled in redis.iter_mut().chain(&mut embedded) {
            for look in 0..LOOKS.len() {
                let times = runtime.block_on(looks(filled, look));
                filled.series[look].round(times);
            }
        }
    }
    report("Redis", &redis);
    report("Embedded", &embedded);
    for filled in redis.iter().chain(&embedded) {
        runtime.block_on(filled.ledger.close());
    }
    let rows: Vec<_> = shapes
        .iter()
        .enumerate()
        .map(|(n, shape)| {
            let file = folder.path().join(n.to_string()).join("ledger.redb");
            let size = fs::metadata(&file).unwrap().len();
            let database = redb::Database::open(file).unwrap();
            let used = database.begin_write().unwrap().stats().unwrap();
            let each = |bytes: u64| digits(bytes as f64 / shape.all() as f64);
            vec![
                shape.title(),
                each(size),
                each(used.stored_bytes()),
                each(used.metadata_bytes()),
                each(used.fragmented_bytes()),
            ]
        })
        .collect();
    let heads = ["repositories × tags", "file", "stored", "keys of branches", "room in pages"];
    table("The embedded file once closed, bytes a tag", &heads, &rows);
}

/// Seals tag after tag, so many a call, as an import does. The repositories take turns.
fn fill(runtime: &Runtime, ledger: &Arc<dyn Ledger>, shape: Shape, a_call: usize) -> Duration {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (ledger, next) = (Arc::clone(ledger), Arc::clone(&next));
                tokio::spawn(async move {
                    loop {
                        let call = next.fetch_add(1, Ordering::Relaxed);
                        if call >= shape.all() / a_call {
                            break;
                        }
                        let (r, first) =
                            (call % shape.repositories, call / shape.repositories * a_call);
                        let tags: Vec<_> = (first..first + a_call).map(tag).collect();
                        let digest = image(r, first / ALIKE);
                        let (key, none) = (repository(r), FreedNumber::default());
                        let adopted =
                            ledger.adopt(&key, &tags, &digest, Origin::Import, none).await;
                        assert_eq!(adopted, Ok(Adopt::Adopted));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    start.elapsed()
}

/// One turn of one kind of look, all over the place.
async fn looks(filled: &Filled, look: usize) -> Vec<Duration> {
    let Filled { shape, ledger, .. } = filled;
    let mut times = Vec::new();
    // A few of the dear ones are enough.
    let turn = if (2..6).contains(&look) { TURN / 2 } else { TURN };
    for n in 0..turn {
        let place = (n * 7919 + 13) * 104_729;
        let (r, t) = (place % shape.repositories, place / 7 % shape.tags);
        let key = repository(r);
        let mut after = (key.clone(), tag(t));
        if look == 4 {
            let last = ledger.list(None, PAGE).await.unwrap().pop().unwrap();
            after = (last.repository, last.tag);
        }
        let start = Instant::now();
        match look {
            0 => {
                let found = ledger.lookup(&key, &[tag(t)]).await.unwrap();
                assert!(matches!(found.entries.as_slice(), [Entry::Sealed(_)]));
            }
            1 => {
                let found = ledger.lookup(&key, &[tag(t + 900_000)]).await.unwrap();
                assert_eq!(found.entries, [Entry::Absent]);
            }
            2 => {
                let tags = ledger.bound_to(&key, &image(r, t / ALIKE)).await.unwrap();
                assert_eq!(tags.len(), ALIKE);
            }
            3 => assert_eq!(ledger.list(None, PAGE).await.unwrap().len(), PAGE),
            4 | 5 => {
                assert!(ledger.list(Some(&after), PAGE).await.unwrap().len() <= PAGE);
            }
            _ => assert!(ledger.sequence(&key).await.unwrap() >= (shape.tags / ALIKE) as u64),
        }
        times.push(start.elapsed());
    }
    times
}

fn report(name: &str, filled: &[Filled]) {
    let titles: Vec<_> = filled.iter().map(|f| f.shape.title()).collect();
    let mut heads = vec!["µs, p50 / p99"];
    heads.extend(titles.iter().map(String::as_str));
    heads.push("most to least tags");
    let rows: Vec<_> = LOOKS
        .iter()
        .enumerate()
        .map(|(n, look)| {
            let cell = |f: &Filled| {
                let series = &f.series[n];
                format!("{} / {}", digits(series.quantile(0.5)), digits(series.quantile(0.99)))
            };
            let growth = digits(filled[2].series[n].ratio(&filled[0].series[n]));
            std::iter::once((*look).to_owned())
                .chain(filled.iter().map(cell))
                .chain([format!("{growth} ×")])
                .collect()
        })
        .collect();
    table(&format!("{name}: looking among few and among many"), &heads, &rows);
}
