//! One rule, and a thousand.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use taglock::name::RepositoryName;
use taglock::settings;

use crate::cost::Tree;
use crate::field::{QUIET, taglock};
use crate::measure::{digits, table};
use crate::plan::Plan;
use crate::servers::Backend;
use crate::wrk::wrk;

const COUNTS: [usize; 4] = [1, 10, 100, 1000];
const CONNECTIONS: usize = 64;

pub fn run(plan: &Plan) {
    let backend = Backend::start(1 << 20);
    let rows: Vec<_> = COUNTS.iter().map(|count| row(plan, &backend, *count)).collect();
    let heads = [
        "rules",
        "decision, none matches, ns",
        "the last matches, ns",
        "MiB",
        "small GET requests/s",
        "p50 ms",
        "CPU µs each",
    ];
    let title = format!("taglock by rules of two patterns each, {CONNECTIONS} at once");
    table(&title, &heads, &rows);
}

fn row(plan: &Plan, backend: &Backend, count: usize) -> Vec<String> {
    let mut text = String::new();
    for n in 0..count {
        write!(
            text,
            "[[rule]]\nname = \"rule-{n}\"\nrepositories = [\"team-{n}/**\", \"*/released-{n}\"]\n\
             mutability = \"immutable\"\nexcept = [\"latest\", \"dev-*\"]\n"
        )
        .unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taglock.toml");
    let upstream = "[upstream]\nurl = \"http://127.0.0.1:1\"\n";
    std::fs::write(&file, format!("{upstream}{text}")).unwrap();
    let rules = settings::read_file(&file).unwrap().rules;
    let decide = |repository: &str| {
        let repository = RepositoryName::parse(repository).unwrap();
        let (times, start) = (200_000, Instant::now());
        for _ in 0..times {
            black_box(rules.protecting(black_box(&repository)).is_some());
        }
        digits(start.elapsed().as_secs_f64() * 1e9 / f64::from(times))
    };
    let (none, last) = (decide("free/app"), decide(&format!("team-{}/app", count - 1)));
    let taglock = taglock(&plan.program, &backend.address, "", &format!("{QUIET}{text}"));
    let tree = Tree::of(taglock.process.child.id());
    let target = "/v2/free/app/manifests/v1";
    wrk(&taglock.address, target, CONNECTIONS, 1, None, None);
    let load = wrk(&taglock.address, target, CONNECTIONS, plan.seconds(), None, Some(&tree));
    vec![
        count.to_string(),
        none,
        last,
        digits(tree.resident()),
        digits(load.rate),
        digits(load.p50),
        digits(load.cpu),
    ]
}
