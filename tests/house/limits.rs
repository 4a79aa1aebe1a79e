//! Slow ones and many: each ends within its bound, the others are served, and nobody is left
//! without an answer.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::bypass::Recorder;
use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{self, Answer};

/// Long after every bound that is set here.
const LONG: Duration = Duration::from_secs(30);

fn limited(registry: &str, limits: &str) -> Taglock {
    Taglock::with(registry, "", &format!("[limits]\n{limits}\n{RULES}"))
}

fn put_head(repository: &str, more: &str) -> String {
    format!(
        "PUT /v2/{repository}/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n{more}\r\n"
    )
}

/// Sends bytes one after the other until the other side has enough, and gives what it said.
fn dribble(address: &str, head: &str, bytes: &str, pause: Duration) -> (Vec<u8>, Duration) {
    let start = Instant::now();
    let mut stream = http::connect(address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(pause)).unwrap();
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    for byte in bytes.bytes().cycle() {
        assert!(start.elapsed() < LONG, "still listened to after {LONG:?}");
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => said.extend(&buffer[..read]),
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
        if said.is_empty() && stream.write_all(&[byte]).is_err() {
            break;
        }
    }
    (said, start.elapsed())
}

fn overloads(taglock: &Taglock, limit: &str) -> f64 {
    taglock.metric(&format!("taglock_overloads_total{{limit=\"{limit}\"}}"))
}

fn assert_turned_away(answer: &Answer, limit: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{answer:?}");
    assert_eq!(answer.header("Retry-After"), Some("5"));
    assert!(answer.message().contains(&format!("limits.{limit}")), "{}", answer.message());
}

#[test]
fn connections_over_the_limit_are_turned_away_and_room_is_made_again() {
    let registry = Registry::start();
    let taglock = limited(&registry.address, "connections = 5");
    let metric = || taglock.metric("taglock_connections ");
    taglock.forgets_the_harness();
    let kept: Vec<_> = (0..5)
        .map(|_| {
            let mut stream = http::connect(&taglock.address).unwrap();
            stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert_eq!(
                http::read_answer(&mut BufReader::new(stream.try_clone().unwrap()), false)
                    .unwrap()
                    .status,
                200
            );
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_turned_away(&http::get(&taglock.address, "/v2/"), "connections");
    }
    // HTTP/2 is told by the end of the connection.
    let mut stream = http::connect(&taglock.address).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP/1.1 2"));
    assert!(overloads(&taglock, "connections") >= 21.0);
    // Those that were there are served as ever.
    for mut stream in kept {
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(http::read_answer(&mut BufReader::new(stream), false).unwrap().status, 200);
    }
    eventually("room", || metric() == 0.0);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
}

#[test]
fn manifests_over_the_limit_wait_a_little_and_are_turned_away() {
    let fake = Fake::start();
    let taglock = limited(&fake.address, "manifests = 2\nmanifest_time = \"20s\"");
    // Two that are judged, by a registry that takes its time.
    fake.plan("PUT", "/prod/app/manifests/sha256:", Fault::Delay(Duration::from_secs(4)), 2);
    let address = &taglock.address;
    thread::scope(|scope| {
        for tag in ["v3", "v4"] {
            scope.spawn(move || {
                assert_eq!(put(address, "prod/app", tag, &manifest(tag)).status, 201);
            });
        }
        eventually("both being judged", || fake.count("PUT", "sha256:") == 2);
        assert_turned_away(&put(address, "prod/app", "v2", &manifest("two")), "manifests");
        // What holds no manifest is not in their way.
        assert_eq!(http::get(address, "/v2/").status, 200);
        assert_eq!(put(address, "open/app", "v2", &manifest("two")).status, 201);
        assert!(overloads(&taglock, "manifests") >= 1.0);
    });
    eventually("room", || taglock.metric("taglock_manifests_held ") == 0.0);
    assert_eq!(put(address, "prod/app", "v2", &manifest("two")).status, 201);
}

/// Three connections are enough to open more requests than there are places.
#[test]
fn manifests_that_do_not_come_keep_nobody_from_pushing() {
    let registry = Registry::start();
    let taglock = limited(&registry.address, "manifests = 2\nmanifest_time = \"20s\"");
    let tags = (0..64).map(|n| format!("tag=v{n}")).collect::<Vec<_>>().join("&");
    let set = format!("sha256:{}?{tags}", "a".repeat(64));
    let open = |body: &str| {
        let mut stream = http::connect(&taglock.address).unwrap();
        let head =
            put_head("prod/app", "Content-Length: 100\r\n").replace("v1 ", &format!("{set} "));
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    };
    let kept: Vec<TcpStream> = (0..8).map(|n| open(&"{".repeat(n))).collect();
    eventually("all of them", || taglock.metric("taglock_manifests_held ") == 8.0);
    let start = Instant::now();
    for tag in ["v0", "v63", "v64"] {
        assert_eq!(put(&taglock.address, "prod/app", tag, &manifest(tag)).status, 201);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "they waited {:?}", start.elapsed());
    // Nor do writes that nobody judges, before they are whole.
    let mut streaming = http::connect(&taglock.address).unwrap();
    let head = put_head("open/app", "Content-Length: 100\r\n");
    streaming.write_all(head.as_bytes()).unwrap();
    drop((kept, streaming));
    eventually("room", || taglock.metric("taglock_manifests_held ") == 0.0);
}

#[test]
fn the_memory_of_manifests_is_bounded_and_shared() {
    let registry = Registry::start();
    let taglock = limited(
        &registry.address,
        "manifest = \"256KiB\"\nmanifest_memory = \"320KiB\"\nmanifest_time = \"20s\"",
    );
    let mut held = http::connect(&taglock.address).unwrap();
    held.write_all(put_head("prod/app", "Content-Length: 262144\r\n").as_bytes()).unwrap();
    held.write_all(&vec![b' '; 200 << 10]).unwrap();
    eventually("it being taken in", || taglock.metric("taglock_manifests_held ") == 1.0);
    // Its bytes arrive in their own time.
    let large = vec![b' '; 200 << 10];
    let mut last = None;
    eventually("the memory being full", || {
        let answer = put(&taglock.address, "prod/app", "v2", &large);
        let full = answer.status == 503;
        last = Some(answer);
        full
    });
    assert_turned_away(&last.unwrap(), "manifest_memory");
    // A small one still fits.
    assert_eq!(put(&taglock.address, "prod/app", "v3", &manifest("small")).status, 201);
    assert!(overloads(&taglock, "manifest-memory") >= 1.0);
    drop(held);
    eventually("room", || put(&taglock.address, "prod/app", "v2", &large).status != 503);
}

#[test]
fn rivals_over_the_limit_do_not_wait() {
    // A registry that has no tag and answers no push: its claim stays, and rivals wait for it.
    let recorder = Recorder::start(|line| match line.split(' ').next() {
        Some("PUT") if line.contains("sha256:") => {
            let digest = line.split("/manifests/").nth(1).unwrap().split(' ').next().unwrap();
            format!("HTTP/1.1 201 Created\r\nDocker-Content-Digest: {digest}\r\nContent-Length: 0\r\n\r\n")
                .into_bytes()
        }
        Some("PUT") => Vec::new(),
        Some("HEAD") if line.contains("sha256:") => {
            let digest = line.split("/manifests/").nth(1).unwrap().split(' ').next().unwrap();
            format!(
                "HTTP/1.1 200 OK\r\nDocker-Content-Digest: {digest}\r\nContent-Length: 9\r\n\r\n"
            )
            .into_bytes()
        }
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    });
    let taglock = Taglock::with(
        &recorder.address,
        "exchange_timeout = \"8s\"",
        &format!("[limits]\nwaiting = 2\n{RULES}"),
    );
    let statuses = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let first = scope.spawn(|| put(&taglock.address, "prod/app", "v1", &manifest("first")));
        eventually("its claim", || {
            recorder.take().iter().any(|bytes| {
                let text = String::from_utf8_lossy(bytes);
                text.contains("PUT /v2/prod/app/manifests/v1 ")
            })
        });
        for n in 0..12 {
            let (taglock, statuses) = (&taglock, &statuses);
            scope.spawn(move || {
                let answer = put(&taglock.address, "prod/app", "v1", &manifest(&n.to_string()));
                assert!(answer.header("Retry-After").is_some() || answer.status != 503);
                statuses.lock().unwrap().push(answer.status);
            });
        }
        let first = first.join().unwrap();
        assert!(matches!(first.status, 502..=504), "{first:?}");
    });
    assert!(overloads(&taglock, "waiting") >= 1.0, "{statuses:?}");
    assert!(statuses.lock().unwrap().iter().all(|status| *status >= 500), "{statuses:?}");
}

#[test]
fn slow_headers_end_in_time() {
    slow_headers_end("header_time = \"2s\"");
}

/// The clock of a kept connection is set by the end of a request, told or not.
#[test]
fn slow_headers_end_in_time_without_an_access_log() {
    slow_headers_end("header_time = \"2s\"\n[log]\naccess = false");
}

fn slow_headers_end(limits: &str) {
    let registry = Registry::start();
    let taglock = limited(&registry.address, limits);
    let pause = Duration::from_millis(50);
    thread::scope(|scope| {
        for head in [
            "",
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ",
            // A request that was answered, and another one that does not end.
            "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            let address = &taglock.address;
            scope.spawn(move || {
                let start = Instant::now();
                let mut stream = http::connect(address).unwrap();
                stream.write_all(head.as_bytes()).unwrap();
                if head.ends_with("\r\n\r\n") {
                    let read = http::read_answer(&mut BufReader::new(&stream), false).unwrap();
                    assert_eq!(read.status, 200);
                }
                // Writing fails once the other side is gone.
                while stream.write_all(b"G").is_ok() {
                    assert!(start.elapsed() < LONG, "{head:?}");
                    thread::sleep(pause);
                }
                assert!(start.elapsed() >= Duration::from_secs(2), "{head:?}");
            });
        }
    });
    eventually("their end", || taglock.metric("taglock_connections ") == 0.0);
}

#[test]
fn silent_connections_end_in_time_too_and_those_that_may_be_http2() {
    let registry = Registry::start();
    let taglock = limited(&registry.address, "header_time = \"2s\"");
    let start = Instant::now();
    let begun = ["", "GE", "PRI ", "PRI * HTTP/2.0\r\n\r\nSM"].map(|begin| {
        let mut stream = http::connect(&taglock.address).unwrap();
        stream.write_all(begin.as_bytes()).unwrap();
        (begin, stream)
    });
    for (begin, mut stream) in begun {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let read = stream.read(&mut [0; 1]);
        assert!(matches!(read, Ok(0)), "{begin:?}: {read:?}");
        assert!(start.elapsed() >= Duration::from_secs(2), "{begin:?}");
    }
}

#[test]
fn an_answer_may_take_longer_than_a_header() {
    let recorder = Recorder::start(|_| {
        thread::sleep(Duration::from_secs(3));
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()
    });
    let taglock = limited(&recorder.address, "header_time = \"1s\"");
    assert_eq!(http::get(&taglock.address, "/v2/").text(), "ok");
}

#[test]
fn slow_manifests_end_in_time_however_they_are_framed() {
    let registry = Registry::start();
    let taglock = limited(&registry.address, "manifest_time = \"2s\"");
    let pause = Duration::from_millis(50);
    for (more, bytes) in [
        ("Content-Length: 100000\r\n", " "),
        ("Transfer-Encoding: chunked\r\n", "1\r\n \r\n"),
        // The extension of a chunk that never ends.
        (
            "Transfer-Encoding: chunked\r\n",
            "1;x=yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
        ),
    ] {
        let head = put_head("prod/app", more);
        // Cycled, the last one would begin a new chunk: it has no line end, so it does not.
        let (said, _) = dribble(&taglock.address, &head, bytes, pause);
        let said = String::from_utf8_lossy(&said);
        assert!(said.starts_with("HTTP/1.1 408 ") || said.starts_with("HTTP/1.1 400 "), "{said}");
    }
    eventually("room", || taglock.metric("taglock_manifests_held ") == 0.0);
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), None);
}

#[test]
fn endless_extensions_and_trailers_of_chunks_end() {
    let registry = Registry::start();
    let taglock = limited(&registry.address, "manifest_time = \"20s\"");
    for begin in ["1;", "0\r\nX: "] {
        for repository in ["prod/app", "open/app"] {
            let start = Instant::now();
            let mut stream = http::connect(&taglock.address).unwrap();
            let head = put_head(repository, "Transfer-Encoding: chunked\r\n") + begin;
            stream.write_all(head.as_bytes()).unwrap();
            let mut sent = 0;
            while stream.write_all(&[b'x'; 4096]).is_ok() && sent < 64 << 20 {
                assert!(start.elapsed() < LONG, "{repository} {begin:?}: {sent} bytes");
                sent += 4096;
            }
            assert!(sent < 64 << 20, "{repository} {begin:?}: {sent} bytes were taken");
        }
    }
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
}
