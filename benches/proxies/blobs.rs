//! Large bodies, down and up, with TLS to the client and without.

use std::fs;
use std::time::Duration;

use crate::aims::{Aim, Bound, report};
use crate::client;
use crate::field::{Contestant, DIRECT, Field, HAPROXY, NGINX, TAGLOCK};
use crate::measure::{digits, table};
use crate::plan::Plan;
use crate::rounds::{Table, sample};
use crate::servers::{Backend, large_file, memory};
use crate::sink::Sink;

/// No rule matches it.
const REPOSITORY: &str = "free/app";
/// Transfers of one load, over all its connections.
const TRANSFERS: usize = 16;
const ALL: [usize; 4] = [DIRECT, NGINX, HAPROXY, TAGLOCK];

pub fn get(plan: &Plan) {
    let (size, backend) = (plan.blob_size(), Backend::start(plan.blob_size()));
    let field = Field::before(&backend.address, &plan.program, None);
    let target = backend.blob(REPOSITORY);
    let fetch = |contestant: &Contestant, connections: usize, times: usize| {
        client::at_once(connections, || client::get(&contestant.address, &target, size, times));
    };
    let tables = measure(plan, &field.contestants, &ALL, 210, &[1, 8, 64], fetch);
    print(plan, "GET", &tables);
    let mut aims = aims_of_cpu("blob GET", &tables);
    for (connections, table) in &tables {
        aims.push(Aim {
            what: format!("blob GET, {connections} at once: MB/s to the better rival's"),
            bound: Bound::AtLeast(1.0),
            measured: to_the_better(table, |sample| sample.rate),
        });
    }
    if let Some((_, table)) = tables.iter().find(|(connections, _)| *connections == 64) {
        aims.push(Aim {
            what: "peak memory at 64 streams, MiB".into(),
            bound: Bound::AtMost(40.0),
            measured: table.median(TAGLOCK, |sample| sample.peak),
        });
    }
    report(&aims);
}

pub fn put(plan: &Plan) {
    let (sink, folder) = (Sink::start(), memory());
    let file = folder.path().join("blob");
    large_file(&file, plan.blob_size());
    let field = Field::before(&sink.address, &plan.program, None);
    let digest = crate::harness::digest(b"not looked at");
    let target = format!("/v2/{REPOSITORY}/blobs/uploads/7f3a?digest={digest}");
    let send = |contestant: &Contestant, connections: usize, times: usize| {
        client::at_once(connections, || client::put(&contestant.address, &target, &file, times));
    };
    let tables = measure(plan, &field.contestants, &ALL, 150, &[1, 4], send);
    print(plan, "PUT", &tables);
    let chunks = |contestant: &Contestant, connections: usize, times: usize| {
        let (address, size) = (&contestant.address, plan.blob_size());
        client::at_once(connections, || client::patch_in_chunks(address, &target, size, times));
    };
    let in_chunks = measure(plan, &field.contestants, &ALL, 150, &[1, 4], chunks);
    print(plan, "PATCH in chunks of 32 KiB", &in_chunks);
    let mut aims = aims_of_cpu("blob PUT", &tables);
    aims.extend(aims_of_cpu("blob PATCH in chunks", &in_chunks));
    report(&aims);
}

pub fn tls(plan: &Plan) {
    let (size, backend) = (plan.blob_size(), Backend::start(plan.blob_size()));
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let pem = folder.path().join("server.pem");
    fs::write(&pem, certificate.pem() + &key.serialize_pem()).unwrap();
    let field = Field::before(&backend.address, &plan.program, Some(&pem));
    let config = client::tls_config(&certificate);
    for contestant in &field.contestants[DIRECT + 1..] {
        let manifest = format!("/v2/{REPOSITORY}/manifests/v1");
        let answer = client::status_over_tls(&config, &contestant.address, &manifest).unwrap();
        assert_eq!(answer, ("200".to_owned(), backend.manifest.clone()), "{}", contestant.name);
    }
    let target = backend.blob(REPOSITORY);
    let fetch = |contestant: &Contestant, connections: usize, times: usize| {
        client::at_once(connections, || {
            client::get_over_tls(&config, &contestant.address, &target, size, times)
        });
    };
    // The backend speaks no TLS.
    let tables = measure(plan, &field.contestants, &[NGINX, HAPROXY, TAGLOCK], 150, &[1, 8], fetch);
    print(plan, "GET over TLS 1.3 (AES-128-GCM) to the client", &tables);
    let aim = |(connections, table): &(usize, Table)| Aim {
        what: format!("blob GET over TLS, {connections} at once: CPU s/GB to the better rival's"),
        bound: Bound::AtMost(1.0),
        measured: 1.0 / to_the_better(table, |sample| 1.0 / sample.cpu),
    };
    report(&tables.iter().map(aim).collect::<Vec<_>>());
}

/// The lesser of the ratios to the two rivals, of something of which more is better.
fn to_the_better(table: &Table, of: impl Fn(&crate::rounds::Sample) -> f64 + Copy) -> f64 {
    table.ratio(TAGLOCK, NGINX, of).min(table.ratio(TAGLOCK, HAPROXY, of))
}

fn aims_of_cpu(what: &str, tables: &[(usize, Table)]) -> Vec<Aim> {
    let mut aims = Vec::new();
    for (connections, table) in tables {
        for (rival, name, bound) in [(HAPROXY, "HAProxy", 1.0), (NGINX, "nginx", 0.7)] {
            aims.push(Aim {
                what: format!("{what}, {connections} at once: CPU s/GB to {name}'s"),
                bound: Bound::AtMost(bound),
                measured: table.ratio(TAGLOCK, rival, |sample| sample.cpu),
            });
        }
    }
    aims
}

/// For each number of connections, rounds in which the contestants take turns.
fn measure(
    plan: &Plan,
    contestants: &[Contestant],
    taking_part: &[usize],
    seconds: u64,
    connections: &[usize],
    transfer: impl Fn(&Contestant, usize, usize),
) -> Vec<(usize, Table)> {
    let mut tables: Vec<_> =
        connections.iter().map(|n| (*n, Table::new(contestants.len()))).collect();
    // Connections to the backend open, allocators grow.
    for n in taking_part {
        transfer(&contestants[*n], 4, 1);
    }
    for number in plan.rounds(Duration::from_secs(seconds)) {
        for (connections, table) in &mut tables {
            let times = (TRANSFERS / *connections).max(1);
            let gigabytes = plan.blob_size() as f64 * (times * *connections) as f64 / 1e9;
            table.round(number, taking_part, |contestant| {
                let contestant = &contestants[contestant];
                sample(contestant.tree.as_ref(), || {
                    transfer(contestant, *connections, times);
                    gigabytes
                })
            });
        }
    }
    tables
}

fn print(plan: &Plan, what: &str, tables: &[(usize, Table)]) {
    let names = ["direct", "nginx", "HAProxy", "taglock"];
    let rows: Vec<_> = tables
        .iter()
        .flat_map(|(connections, table)| {
            let there = |(n, _): &(usize, _)| !table.contestants[*n].is_empty();
            names.iter().enumerate().filter(there).map(move |(n, name)| {
                vec![
                    connections.to_string(),
                    (*name).to_owned(),
                    digits(table.median(n, |sample| sample.rate * 1000.0)),
                    digits(table.median(n, |sample| sample.cpu)),
                    digits(table.median(n, |sample| sample.peak)),
                    digits(table.ratio(TAGLOCK, n, |sample| sample.rate)),
                    digits(table.ratio(TAGLOCK, n, |sample| sample.cpu)),
                ]
            })
        })
        .collect();
    let heads = [
        "at once",
        "through",
        "MB/s",
        "CPU s/GB",
        "peak MiB",
        "taglock's MB/s to it",
        "taglock's CPU to it",
    ];
    let rounds = tables[0].1.rounds();
    let size = plan.blob_size() >> 20;
    table(&format!("Blob {what}, {size} MiB each ({rounds} rounds)"), &heads, &rows);
}
