//! A thousand tags in the embedded ledger, and a million.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use taglock::ledger::embedded::Embedded;
use taglock::ledger::{Adopt, Entry, FreedNumber, Ledger, Origin, RepositoryKey};
use taglock::name::{Algorithm, Digest, RepositoryName, Tag, UpstreamName};
use tokio::runtime::Runtime;

use crate::cost::Tree;
use crate::field::QUIET;
use crate::measure::{Series, digits, table};
use crate::plan::Plan;
use crate::servers::Backend;
use crate::wrk::wrk;

const TAGS_OF_A_REPOSITORY: usize = 200;
const LOOKS: usize = 2000;

pub fn run(plan: &Plan) {
    let counts: &[usize] = if plan.is_quick() {
        &[1_000, 10_000, 100_000]
    } else {
        &[1_000, 10_000, 100_000, 1_000_000]
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let backend = Backend::start(1 << 20);
    let digest = Digest::of(Algorithm::Sha256, &backend.manifest);
    let rows: Vec<_> = counts.iter().map(|n| row(plan, &runtime, &backend, &digest, *n)).collect();
    let heads = [
        "tags",
        "file MiB",
        "bytes a tag",
        "start ms",
        "look-up p50 µs",
        "p99 µs",
        "MiB at the start",
        "MiB after the pulls",
        "pull of any tag, p50 ms",
        "p99 ms",
        "pulls/s",
        "CPU µs each",
    ];
    table("taglock by tags in the embedded ledger", &heads, &rows);
}

fn repository(number: usize) -> String {
    format!("prod/team-{:02}/service-{number:05}", number % 50)
}

fn row(
    plan: &Plan,
    runtime: &Runtime,
    backend: &Backend,
    digest: &Digest,
    count: usize,
) -> Vec<String> {
    let repositories = count / TAGS_OF_A_REPOSITORY;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let ledger = folder.path().join("ledger");
    let looks = runtime.block_on(fill(&ledger, digest, repositories));
    let file = fs::metadata(ledger.join("ledger.redb")).unwrap().len();
    // Another tag for each pull, all over the place.
    let script = folder.path().join("pulls.lua");
    let lua = format!(
        "request = function()\n  local n = math.random(0, {})\n\
         \x20 return wrk.format('GET', string.format('/v2/prod/team-%02d/service-%05d/manifests/v%d', \
         n % 50, n, math.random(0, {})))\nend\n",
        repositories - 1,
        TAGS_OF_A_REPOSITORY - 1
    );
    fs::write(&script, lua).unwrap();
    let start = Instant::now();
    let rule =
        "[[rule]]\nname = \"prod\"\nrepositories = \"prod/**\"\nmutability = \"immutable\"\n";
    let taglock = crate::harness::Taglock::from_program(&plan.program, |address, admin, _| {
        format!(
            "threads = 2\n[listen]\naddress = \"{address}\"\n\
             [upstream]\nurl = \"http://{}\"\n[ledger]\npath = \"{}\"\n\
             [admin]\naddress = \"{admin}\"\n{QUIET}{rule}",
            backend.address,
            ledger.display()
        )
    });
    let started = start.elapsed();
    let tree = Tree::of(taglock.process.child.id());
    let at_start = tree.resident();
    let seconds = plan.seconds();
    let load = wrk(&taglock.address, "/", 16, seconds, Some(&script), Some(&tree));
    vec![
        count.to_string(),
        digits(file as f64 / f64::from(1 << 20)),
        digits(file as f64 / count as f64),
        digits(started.as_secs_f64() * 1e3),
        digits(looks.quantile(0.5)),
        digits(looks.quantile(0.99)),
        digits(at_start),
        digits(tree.resident()),
        digits(load.p50),
        digits(load.p99),
        digits(load.rate),
        digits(load.cpu),
    ]
}

/// Seals all tags, a repository a call, and looks some up.
async fn fill(path: &Path, digest: &Digest, repositories: usize) -> Series {
    let ledger: Arc<dyn Ledger> = Arc::new(Embedded::open(path).unwrap());
    let tags: Vec<_> =
        (0..TAGS_OF_A_REPOSITORY).map(|n| Tag::parse(&format!("v{n}")).unwrap()).collect();
    let key = |number| RepositoryKey {
        upstream: UpstreamName::parse("default").unwrap(),
        repository: RepositoryName::parse(&repository(number)).unwrap(),
    };
    // Each commit waits for the disk; what comes meanwhile shares the next one.
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..repositories {
        if tasks.len() >= 64 {
            tasks.join_next().await.unwrap().unwrap();
        }
        let (ledger, tags, digest, key) = (Arc::clone(&ledger), tags.clone(), *digest, key(number));
        tasks.spawn(async move {
            let none = FreedNumber::default();
            let adopted = ledger.adopt(&key, &tags, &digest, Origin::Import, none).await;
            assert_eq!(adopted, Ok(Adopt::Adopted));
        });
    }
    tasks.join_all().await;
    let mut times = Vec::new();
    for n in 0..LOOKS {
        let place = (n * 7919 + 13) * 104_729;
        let (key, tag) = (key(place % repositories), &tags[place / 7 % tags.len()]);
        let start = Instant::now();
        let found = ledger.lookup(&key, std::slice::from_ref(tag)).await.unwrap();
        times.push(start.elapsed());
        assert!(matches!(found.entries.as_slice(), [Entry::Sealed(_)]));
    }
    ledger.close().await;
    drop(ledger);
    // The lock goes with the last of its threads.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut series = Series::default();
    series.round(times);
    series
}
