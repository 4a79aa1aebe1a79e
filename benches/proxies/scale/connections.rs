//! Connections that are kept and say nothing, and such as take a blob slowly.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::client::read_head;
use crate::field::{Contestant, DIRECT, Field, QUIET, RULES, TAGLOCK, taglock};
use crate::http;
use crate::measure::{digits, table};
use crate::plan::Plan;
use crate::servers::Backend;
use crate::wrk::wrk;

const IDLE: [usize; 5] = [0, 1, 100, 1000, 2000];
const SLOW: [usize; 4] = [8, 64, 500, 2000];
/// nginx and HAProxy show what is usual; their buffers for more would fill a small machine.
const MOST_OF_RIVALS: usize = 500;
const TARGET: &str = "/v2/free/app/manifests/v1";

pub fn run(plan: &Plan) {
    let backend = Backend::start(plan.blob_size());
    let taglock = taglock(&plan.program, &backend.address, "", &format!("{QUIET}{RULES}"));
    let taglock = (Contestant::new("taglock", &taglock.address, &taglock.process), taglock);
    wrk(&taglock.0.address, TARGET, 16, 1, None, None);
    idle(plan, &taglock.0);
    drop(taglock);
    // Others anew: what was freed is not given back at once.
    let field = Field::before(&backend.address, &plan.program, None);
    slow(plan, &field.contestants, &backend.blob("free/app"));
}

fn idle(plan: &Plan, taglock: &Contestant) {
    let tree = taglock.tree.as_ref().unwrap();
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    let mut first = f64::NAN;
    for count in IDLE {
        kept.extend((kept.len()..count).map(|_| {
            let mut stream = http::connect(&taglock.address).unwrap();
            let request = http::bytes(&taglock.address, "GET", TARGET, &[], b"");
            stream.write_all(&request).unwrap();
            let mut reader = std::io::BufReader::new(stream);
            assert_eq!(http::read_answer(&mut reader, false).unwrap().status, 200);
            reader.into_inner()
        }));
        sleep(Duration::from_millis(300));
        let memory = tree.resident();
        if count == 0 {
            first = memory;
        }
        let load = wrk(&taglock.address, TARGET, 16, plan.seconds(), None, Some(tree));
        rows.push(vec![
            count.to_string(),
            digits(memory),
            if count < 100 {
                "–".into()
            } else {
                digits((memory - first) * 1024.0 / count as f64)
            },
            digits(load.p50),
            digits(load.p99),
            digits(load.rate),
            digits(load.cpu),
        ]);
    }
    let heads = [
        "kept, idle",
        "MiB",
        "KiB each",
        "small GET p50 ms",
        "p99 ms",
        "requests/s",
        "CPU µs each",
    ];
    table("taglock with idle connections, and 16 that ask", &heads, &rows);
}

/// The most memory while so many take a large blob at 1 MB/s at the most.
fn slow(plan: &Plan, contestants: &[Contestant], target: &str) {
    let proxies = &contestants[DIRECT + 1..];
    let rows: Vec<_> = SLOW
        .iter()
        .map(|count| {
            let mut row = vec![count.to_string()];
            for proxy in proxies {
                let rival = proxy.name != contestants[TAGLOCK].name;
                if rival && *count > MOST_OF_RIVALS {
                    row.push("–".into());
                    continue;
                }
                let tree = proxy.tree.as_ref().unwrap();
                tree.forget_peak();
                read_slowly(&proxy.address, target, *count, Duration::from_secs(plan.seconds()));
                row.push(digits(tree.peak()));
            }
            row
        })
        .collect();
    let heads = ["slow readers", "nginx, peak MiB", "HAProxy, peak MiB", "taglock, peak MiB"];
    table("Streams that are taken slowly", &heads, &rows);
}

fn read_slowly(address: &str, target: &str, count: usize, time: Duration) {
    let mut streams: Vec<TcpStream> = (0..count)
        .map(|_| {
            let mut stream = http::connect(address).unwrap();
            stream.write_all(&http::bytes(address, "GET", target, &[], b"")).unwrap();
            stream
        })
        .collect();
    for stream in &mut streams {
        let (head, _) = read_head(stream).unwrap();
        assert!(head.start.starts_with("HTTP/1.1 200"), "{}", head.start);
        stream.set_nonblocking(true).unwrap();
    }
    let mut piece = vec![0; 100_000];
    let start = Instant::now();
    while start.elapsed() < time {
        for stream in &streams {
            match recv(stream, &mut piece[..], RecvFlags::TRUNC | RecvFlags::DONTWAIT) {
                Ok((_, 0)) => panic!("{}", ErrorKind::UnexpectedEof),
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(e) => panic!("{e}"),
            }
        }
        sleep(Duration::from_millis(100));
    }
}
