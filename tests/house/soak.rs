//! A long run of mixed load over a faulty link: memory, file descriptors and tasks stay flat, and
//! when the load ends nothing is left of it. `scripts/soak` runs it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::bypass::{Outcome, Request, SPELLINGS, exchange};
use crate::fault_proxy::{FaultProxy, Kind, pause};
use crate::harness::*;
use crate::http::{self, try_raw};

const CLIENTS: usize = 12;
/// Names come again, as in a registry that is there for years; what grows with them is bounded.
const REPOSITORIES: u32 = 40;
const TAGS: u32 = 25;
const BLOBS: u32 = 8;
const SAMPLES: u32 = 60;
/// Those of the runtimes, and as many as the clients could keep in blocking calls at once.
const MOST_THREADS: u64 = 16 + CLIENTS as u64;

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// KiB.
    memory: u64,
    files: u64,
    threads: u64,
    tasks: u64,
}

/// The seed of a run without `TAGLOCK_SEED`; `scripts/soak` draws one.
const SEED: u64 = 1_895_025_113;

#[test]
#[ignore = "takes minutes; `scripts/soak` runs it"]
fn nothing_grows_under_mixed_load_with_faults() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = given("TAGLOCK_SOAK_SECONDS").unwrap_or(180);
    let seed = given("TAGLOCK_SEED").unwrap_or(SEED);
    let registry = Registry::start();
    let link = FaultProxy::start(Kind::Http, &registry.address, seed);
    let taglock = Taglock::with(
        &link.address,
        "read_timeout = \"3s\"\nexchange_timeout = \"3s\"\nidle_timeout = \"2s\"",
        &format!(
            "[limits]\nheader_time = \"3s\"\nmanifest_time = \"2s\"\nmanifests = 32\n\
             [log]\nfilter = \"error\"\n{RULES}"
        ),
    );
    let load =
        Load { address: &taglock.address, end: AtomicBool::new(false), done: Mutex::default() };
    // All that is there once a first request was served.
    load.once(&mut Rng::with_seed(seed));
    let mut rng = Rng::with_seed(seed);
    let mut samples = Vec::new();
    thread::scope(|scope| {
        let _guard = EndAtLast(&load.end);
        link.calm(false);
        for _ in 0..CLIENTS {
            let (mut rng, load) = (rng.fork(), &load);
            scope.spawn(move || {
                while !load.end.load(Ordering::Relaxed) {
                    load.once(&mut rng);
                    pause(Duration::from_millis(rng.u64(0..8)));
                }
            });
        }
        let begin = Instant::now();
        for n in 1..=SAMPLES {
            let at = Duration::from_secs(seconds) * n / SAMPLES;
            pause(at.saturating_sub(begin.elapsed()));
            samples.push(sample(&taglock));
        }
    });
    link.calm(true);
    link.wait_for_the_late();
    let done = load.done.lock().unwrap().clone();
    let third = samples.len() / 3;
    let most = |part: &[Sample]| {
        part.iter().fold(Sample::default(), |most, s| Sample {
            memory: most.memory.max(s.memory),
            files: most.files.max(s.files),
            threads: most.threads.max(s.threads),
            tasks: most.tasks.max(s.tasks),
        })
    };
    // The first third warms up: caches fill, pools open.
    let (first, second, last) =
        (most(&samples[..third]), most(&samples[third..2 * third]), most(&samples[2 * third..]));
    eprintln!("TAGLOCK_SEED={seed}, {seconds} s, faults {:?}\n  {done:?}", link.counts());
    eprintln!("  the most in each third: {first:?}\n  {second:?}\n  {last:?}");
    for kind in ["push 201", "push again 201", "refused 409", "pull 200", "blob 200", "bad 400"] {
        assert!(done.get(kind).is_some_and(|count| *count > 10), "hardly any `{kind}`: {done:?}");
    }
    assert!(last.memory <= second.memory + second.memory / 10 + 4096, "memory grows");
    assert!(last.files <= second.files + 32, "file descriptors grow");
    assert!(last.tasks <= second.tasks + 32, "tasks grow");
    // Those for blocking calls come and go with the load, and with how slow the disk is: a whole hour
    // had 14, 14 and 17 of them.
    let threads = last.threads;
    assert!(threads <= MOST_THREADS, "{threads} threads");

    for gauge in [
        "taglock_connections ",
        "taglock_manifests_held ",
        "taglock_requests_in_flight ",
        "taglock_protected_pushes_in_flight ",
    ] {
        eventually(gauge, || taglock.metric(gauge) == 0.0);
    }
    // No connection, no task of one: what stays is what stays in an idle process, for each of its
    // threads.
    let lanes = thread::available_parallelism().unwrap().get() as u64;
    let mut rest = Sample::default();
    eventually("rest", || {
        rest = sample(&taglock);
        rest.tasks <= 4 + 3 * lanes && rest.files <= 34 + 8 * lanes
    });
    eprintln!("  at rest: {rest:?}");
}

struct EndAtLast<'a>(&'a AtomicBool);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn sample(taglock: &Taglock) -> Sample {
    let process = format!("/proc/{}", taglock.process.child.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Sample {
        memory: field("VmRSS:"),
        threads: field("Threads:"),
        files: fs::read_dir(format!("{process}/fd")).unwrap().count() as u64,
        tasks: taglock.metric("taglock_tasks ") as u64,
    }
}

struct Load<'a> {
    address: &'a str,
    end: AtomicBool,
    done: Mutex<BTreeMap<String, u64>>,
}

impl Load<'_> {
    /// One thing that some client does.
    fn once(&self, rng: &mut Rng) {
        let (repository, tag) = (rng.u32(0..REPOSITORIES), rng.u32(0..TAGS));
        let (name, tag) = (format!("prod/app{repository}"), format!("v{tag}"));
        let one = manifest(&format!("{name}:{tag}"));
        let kind = [("Content-Type", INDEX)];
        let manifests = format!("/v2/{name}/manifests/{tag}");
        let (what, bytes) = match rng.u32(0..100) {
            0..=24 => ("push", self.bytes("PUT", &manifests, &kind, &one)),
            25..=34 => {
                // One image, in two spellings of a push.
                let target = format!("/v2/{name}/manifests/{}?tag={tag}", digest(&one));
                ("push again", self.bytes("PUT", &target, &kind, &one))
            }
            35..=44 => ("refused", self.bytes("PUT", &manifests, &kind, &manifest("other"))),
            45..=59 => ("pull", self.bytes("GET", &manifests, &[("Accept", INDEX)], b"")),
            60..=64 => ("look", self.bytes("HEAD", &manifests, &[("Accept", INDEX)], b"")),
            65..=67 => ("delete", self.bytes("DELETE", &manifests, &[], b"")),
            68..=70 => ("open", self.bytes("PUT", "/v2/open/app/manifests/latest", &kind, &one)),
            71..=78 => return self.blob(rng),
            79..=83 => {
                let target = SPELLINGS[rng.usize(0..SPELLINGS.len())];
                ("bad", self.bytes("PUT", target, &kind, &one))
            }
            84..=86 => {
                let mut bytes = self.bytes("PUT", &manifests, &kind, &one);
                bytes.splice(..3, *b"P\0T");
                ("garbage", bytes)
            }
            87..=91 => return self.leave(rng, &self.bytes("PUT", &manifests, &kind, &one)),
            92..=93 => return self.leave(rng, &self.bytes("GET", &manifests, &[], b"")),
            94 => return self.stay(rng, &self.bytes("PUT", &manifests, &kind, &one)),
            95..=96 => ("large", self.bytes("PUT", &manifests, &kind, &vec![b' '; 5 << 20])),
            _ => return self.http2(&manifests, &one),
        };
        self.count_answer(what, try_raw(self.address, &bytes));
    }

    fn count(&self, what: &str, status: u16) {
        *self.done.lock().unwrap().entry(format!("{what} {status}")).or_default() += 1;
    }

    fn count_answer(&self, what: &str, answer: std::io::Result<http::Answer>) {
        if let Some(failed) = answer.as_ref().ok().filter(|answer| answer.status == 500) {
            eprintln!("{what}: {failed:?}");
        }
        self.count(what, answer.map_or(0, |answer| answer.status));
    }

    fn bytes(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let headers = [headers, &[("Connection", "close")]].concat();
        http::bytes(self.address, method, target, &headers, body)
    }

    fn blob(&self, rng: &mut Rng) {
        let bytes = vec![rng.u32(0..BLOBS) as u8; 256 << 10];
        let blob = format!("/v2/open/app/blobs/{}", digest(&bytes));
        let target = format!("/v2/open/app/blobs/uploads/?digest={}", digest(&bytes));
        // Whole in one request, or by a session; some registries know only the second.
        let begun = try_raw(self.address, &self.bytes("POST", &target, &[], b""));
        let place = begun.ok().and_then(|a| a.header("Location").map(str::to_owned));
        if let Some(place) = place.as_deref().and_then(|url| url.split_once("/v2/")) {
            let separator = if place.1.contains('?') { '&' } else { '?' };
            let target = format!("/v2/{}{separator}digest={}", place.1, digest(&bytes));
            let kind = [("Content-Type", "application/octet-stream")];
            let put = try_raw(self.address, &self.bytes("PUT", &target, &kind, &bytes));
            self.count("upload", put.map_or(0, |answer| answer.status));
        }
        let got = try_raw(self.address, &self.bytes("GET", &blob, &[], b""));
        self.count_answer("blob", got);
    }

    /// Leaves in the middle of a request, or before its answer.
    fn leave(&self, rng: &mut Rng, bytes: &[u8]) {
        if let Ok(mut stream) = http::connect(self.address) {
            let _ = stream.write_all(&bytes[..rng.usize(0..=bytes.len())]);
            pause(Duration::from_millis(rng.u64(0..20)));
        }
        self.count("left", 0);
    }

    /// Sends a part of a request, and is silent until taglock has had enough.
    fn stay(&self, rng: &mut Rng, bytes: &[u8]) {
        if let Ok(mut stream) = http::connect(self.address) {
            let _ = stream.write_all(&bytes[..rng.usize(0..bytes.len())]);
            let answer = http::read_answer(&mut std::io::BufReader::new(stream), false);
            self.count("stayed", answer.map_or(0, |answer| answer.status));
        }
    }

    fn http2(&self, target: &str, manifest: &[u8]) {
        let fields: Vec<(&[u8], &[u8])> = vec![
            (b":method", b"PUT"),
            (b":scheme", b"http"),
            (b":authority", b"x"),
            (b":path", target.as_bytes()),
            (b"content-type", INDEX.as_bytes()),
        ];
        let request = Request { fields, body: manifest.to_vec(), trailers: Vec::new() };
        let Ok(stream) = http::connect(self.address) else { return };
        let status = match exchange(stream, &request) {
            Outcome::Answer { status, .. } => status,
            Outcome::Refused => 0,
        };
        self.count("http2", status);
    }
}
