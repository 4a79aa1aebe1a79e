//! Uploads over both paths.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::source::{Source, body, path};
use super::{FillOnce, Kept, MIB, both, pipes, sized};
use crate::harness::*;
use crate::http::{self, Answer};

pub const UPLOADS: &str = "/v2/other/up/blobs/uploads/";

impl Kept {
    fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.stream.write_all(&http::bytes("x", method, target, headers, body)).unwrap();
        self.read()
    }
}

fn place(answer: &Answer) -> String {
    let location = answer.header("Location").unwrap();
    location[location.find("/v2/").unwrap()..].to_owned()
}

#[test]
fn uploads_in_parts_and_in_one_arrive_byte_for_byte_and_leave_the_connection_usable() {
    let registry = Registry::start();
    let (blob, whole) = (body(64 * MIB), &body(20 * MIB)[1..]);
    let (blob_digest, whole_digest, other_digest) = (digest(&blob), digest(whole), digest(b"x"));
    both(&registry.address, "", "", |taglock, fast| {
        let (mut client, before) = (Kept::new(taglock), pipes(taglock));
        let started = client.send("POST", UPLOADS, &[], b"");
        let mut next = place(&started);
        let cuts = [0, 65_535, 65_536 * 2, 10 * MIB, 10 * MIB + 1, blob.len()];
        for part in cuts.windows(2) {
            let range = format!("{}-{}", part[0], part[1] - 1);
            let headers = [("Content-Range", range.as_str())];
            let answer = client.send("PATCH", &next, &headers, &blob[part[0]..part[1]]);
            assert_eq!(answer.status, 202, "{range}: {answer:?}");
            next = place(&answer);
        }
        let finish = |next: &str, digest: &str| format!("{next}&digest={digest}");
        assert_eq!(client.send("PUT", &finish(&next, &blob_digest), &[], b"").status, 201);
        assert_eq!(pipes(taglock) > before, fast);
        // In one, and with a digest that it does not have.
        for (named, status) in [(&whole_digest, 201), (&other_digest, 400)] {
            let next = place(&client.send("POST", UPLOADS, &[], b""));
            let answer = client.send("PUT", &finish(&next, named), &[], whole);
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(answer.header("Connection"), Some("keep-alive"));
        }
        let mut read = |digest: &str| {
            let target = format!("/v2/other/up/blobs/{digest}");
            client.send("GET", &target, &[], b"").body
        };
        assert!(read(&blob_digest) == blob && read(&whole_digest) == whole);
    });
}

/// In chunks of these sizes, again and again.
fn chunked(body: &[u8], sizes: &[usize]) -> Vec<u8> {
    let (mut all, mut rest) = (Vec::new(), body);
    for size in sizes.iter().cycle() {
        let (chunk, others) = rest.split_at(rest.len().min(*size));
        if chunk.is_empty() {
            break;
        }
        all.extend(format!("{:X};by=docker\r\n", chunk.len()).bytes());
        all.extend(chunk);
        all.extend(b"\r\n");
        rest = others;
    }
    all.extend(b"0\r\nX-Trailer: 1\r\n\r\n");
    all
}

#[test]
fn uploads_in_chunks_arrive_byte_for_byte_and_leave_the_connection_usable() {
    let registry = Registry::start();
    both(&registry.address, "", "", |taglock, _| {
        let mut client = Kept::new(taglock);
        for (size, sizes) in [
            (0, &[1][..]),
            (1, &[1]),
            (70_000, &[1, 4096, 65_536]),
            (300_000, &[32 << 10]),
            (9 * MIB + 1, &[32 << 10, 7, 300_000]),
            // Hundreds of them in one piece.
            (100_000, &[1, 2, 3]),
            (5 * MIB, &[5 * MIB]),
            // As docker does, and on both sides of what is spliced.
            (20 * MIB + 3, &[32 << 10]),
            (3 * MIB, &[16_384, 16_383, 100_000]),
        ] {
            let whole = body(size);
            let next = place(&client.send("POST", UPLOADS, &[], b""));
            let head =
                format!("PATCH {next} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.stream.write_all(head.as_bytes()).unwrap();
            let all = chunked(&whole, sizes);
            // Once in a while by little and little, sizes and ends in parts.
            let (write, pause) = if size == 300_000 { (7_001, 1) } else { (all.len(), 0) };
            for part in all.chunks(write) {
                client.stream.write_all(part).unwrap();
                thread::sleep(Duration::from_millis(pause));
            }
            let answer = client.read();
            assert_eq!(answer.status, 202, "{size}: {answer:?}");
            assert_eq!(answer.header("Connection"), Some("keep-alive"));
            let name = digest(&whole);
            let target = format!("{}&digest={name}", place(&answer));
            let answer = client.send("PUT", &target, &[], b"");
            assert_eq!(answer.status, 201, "{size}: {answer:?}");
            let target = format!("/v2/other/up/blobs/{name}");
            assert!(client.send("GET", &target, &[], b"").body == whole, "{size}");
        }
        let sizes = [1, 70_000, 300_000, 9 * MIB + 1, 100_000, 5 * MIB, 20 * MIB + 3, 3 * MIB];
        let bytes: usize = sizes.iter().sum();
        eventually("the account of it", || {
            taglock.metric("taglock_body_bytes_total{direction=\"in\"}") == bytes as f64
        });
    });
}

#[test]
fn a_body_in_no_chunks_is_refused_and_does_not_reach_the_registry_whole() {
    let smuggled = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&smuggled);
    let source = Source::start(move |asked| {
        seen.fetch_or(asked.target.ends_with("/manifests/v1"), Ordering::Relaxed);
        if asked.method != "PATCH" {
            return sized(asked);
        }
        let read = asked.read_body(MIB);
        assert!(!read.ends_with(b"0\r\n\r\n"), "a bad body was ended");
        false
    });
    both(&source.address, "", "", |taglock, fast| {
        let head =
            format!("PATCH {UPLOADS}1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let good = format!("8000\r\n{}\r\n", "x".repeat(0x8000)).repeat(3);
        let refused = |before: &str, bad: &str| {
            let mut client = Kept::new(taglock);
            // A second request, were the first one to end where only one side thinks it does.
            let next = "GET /v2/other/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n";
            client.stream.write_all([&head, before, bad, next].concat().as_bytes()).unwrap();
            assert_eq!(client.read().status, 400, "{bad:?}");
            assert!(client.rest().is_empty(), "{bad:?}: more than one answer");
        };
        let mut all = vec![
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello!\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\nX: y\n\r\n",
        ];
        if fast {
            // pingora takes the first for a size of nothing, and anything for a trailer.
            all.extend(["\r\n0\r\n\r\n", "0\r\nX\r\n\r\n"]);
        }
        thread::scope(|scope| {
            for bad in all {
                for before in ["", &good] {
                    let refused = &refused;
                    scope.spawn(move || refused(before, bad));
                }
            }
        });
        assert!(Kept::new(taglock).get("size-70000").body == body(70_000));
    });
    assert!(!smuggled.load(Ordering::Relaxed));
}

#[test]
fn uploads_arrive_over_tls_and_http2() {
    let registry = Registry::start();
    let authority = crate::tls::Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().display().to_string();
    authority.write(&folder.path().join("ca.pem"));
    authority.issue(folder.path(), "server", "localhost");
    let (whole, file, ca) = (body(9 * MIB + 1), format!("{dir}/blob"), format!("{dir}/ca.pem"));
    std::fs::write(&file, &whole).unwrap();
    let name = digest(&whole);
    for fast in [true, false] {
        for tls in [false, true] {
            let listener = match tls {
                true => format!(
                    "tls = {{ certificate = \"{dir}/server.pem\", key = \"{dir}/server.key\" }}"
                ),
                false => String::new(),
            };
            let taglock = Taglock::from_file(|address, admin, folder| {
                format!(
                    "[listen]\naddress = \"{address}\"\n{listener}\n[upstream]\nurl = \"http://{}\"\n\
                     fast_path = {fast}\n[ledger]\npath = \"{folder}/ledger\"\n[admin]\n\
                     address = \"{admin}\"\n",
                    registry.address
                )
            });
            let port = taglock.address.rsplit(':').next().unwrap();
            let base = format!("http{}://localhost:{port}", if tls { "s" } else { "" });
            let curl = |options: &[&str], url: &str| {
                let mut command = std::process::Command::new("curl");
                command.args(["-sSi", "--max-time", "60", "--cacert", &ca]).args(options);
                succeed(command.arg(url))
            };
            let versions = if tls {
                ["--http1.1", "--http2"]
            } else {
                ["--http1.1", "--http2-prior-knowledge"]
            };
            for version in versions {
                // With a length, and without one.
                for length in [&["-H", "Transfer-Encoding: chunked"][..], &[]] {
                    let place = |answer: &str| {
                        let lower = "location: ";
                        let line = answer.lines().find(|l| l.to_lowercase().starts_with(lower));
                        let url = line.unwrap_or_else(|| panic!("{answer}"))[lower.len()..].trim();
                        format!("{base}{}", &url[url.find("/v2/").unwrap()..])
                    };
                    let started =
                        curl(&[version, "-X", "POST", "-d", ""], &format!("{base}{UPLOADS}"));
                    let file = format!("@{file}");
                    let mut options = vec![version, "-X", "PATCH", "-H", "Expect:"];
                    options.extend(["-H", "Content-Type: application/octet-stream"]);
                    options.extend(length);
                    options.extend(["--data-binary", &file]);
                    let sent = curl(&options, &place(&started));
                    assert!(sent.lines().next().unwrap().contains(" 202"), "{version}: {sent}");
                    let target = format!("{}&digest={name}", place(&sent));
                    let done = curl(&[version, "-X", "PUT", "-d", ""], &target);
                    assert!(done.lines().next().unwrap().contains(" 201"), "{version}: {done}");
                }
            }
        }
    }
}

#[test]
fn uploads_of_all_sizes_and_reads_take_turns_on_one_connection() {
    let source = Source::start(|asked| match asked.what() {
        "up" => {
            let length = asked.length().unwrap();
            let same = asked.read_body(length) == body(length);
            asked
                .say(if same { "201 Created\r\nContent-Length: 0" } else { "400 Other Bytes" }, b"")
        }
        _ => sized(asked),
    });
    both(&source.address, "", "", |taglock, fast| {
        let (mut client, mut seed, before) = (Kept::new(taglock), 11_u64, source.connections());
        for n in 0..150 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let around = [0, 4096, 64 << 10, 256 << 10, MIB, 2 * MIB][(seed >> 33) as usize % 6];
            let size = around + (seed >> 50) as usize % 9 - 4.min(around);
            let target = format!("{UPLOADS}{n}?digest=x");
            let answer = client.send("PUT", &target, &[("X-Request-Id", "one")], &body(size));
            assert_eq!(answer.status, 201, "{n}: {size}: {answer:?}");
            if n % 3 == 0 {
                assert!(client.get(&format!("size-{size}")).body == body(size), "{n}: {size}");
            }
        }
        let used = source.connections() - before;
        assert!(used <= 2 || !fast && used < 50, "{used} connections");
    });
    // The registry is told the same, but for the length of a body that was sent so in any case.
    let all = source.counts.headers.lock().unwrap();
    let told = |n: usize| {
        let mut lines = all[n].clone();
        lines.sort();
        lines
    };
    for n in 0..all.len() / 2 {
        let (fast, slow) = (told(n), told(n + all.len() / 2));
        let own = |line: &&String| !line.to_ascii_lowercase().starts_with("x-request-id: 01");
        let lines = |told: &[String]| told.iter().filter(own).cloned().collect::<Vec<_>>();
        assert_eq!(lines(&fast), lines(&slow));
    }
}

#[test]
fn a_client_may_wait_for_the_word_to_go_on_and_send_its_next_request_ahead() {
    let source = Source::start(|asked| {
        let Some(length) = asked.length() else { return sized(asked) };
        if asked.expects() && !asked.say("100 Continue", b"") {
            return false;
        }
        assert!(asked.read_body(length) == body(length));
        asked.say("201 Created\r\nContent-Length: 0", b"")
    });
    both(&source.address, "", "", |taglock, fast| {
        let mut client = Kept::new(taglock);
        let head = format!(
            "PUT {UPLOADS}1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {MIB}\r\n\r\n"
        );
        client.stream.write_all(head.as_bytes()).unwrap();
        client.reader.fill_buf_once();
        client.stream.write_all(&body(MIB)).unwrap();
        assert_eq!(client.read().status, 201);
        // pingora closes after that, and refuses what is sent ahead of an answer.
        if fast {
            let mut client = Kept::new(taglock);
            let put = http::bytes("x", "PUT", &format!("{UPLOADS}2"), &[], &body(MIB));
            let get = http::bytes("x", "GET", &path("size-70000"), &[], b"");
            client.stream.write_all(&[put, get].concat()).unwrap();
            let status = client.read().status;
            assert!(matches!(status, 201 | 400), "{status}");
            if let Ok(answer) = http::read_answer(&mut client.reader, false) {
                assert!(answer.body == body(70_000), "{answer:?}");
            }
        }
    });
}

#[test]
fn an_early_answer_reaches_the_client_while_it_sends() {
    let source = Source::start(|asked| {
        if asked.method != "PUT" {
            return sized(asked);
        }
        asked.read_body(200_000);
        let head = match asked.target.rsplit('/').next().unwrap() {
            "large" => "413 Too Large\r\nContent-Length: 5",
            "who" => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 5",
            _ => return false,
        };
        asked.say(head, b"hello");
        // As some do, it reads no further.
        thread::sleep(Duration::from_millis(500));
        false
    });
    both(&source.address, "", "", |taglock, fast| {
        for (what, status) in [("large", 413), ("who", 401), ("cut", 502)] {
            for framing in
                [format!("Content-Length: {}", 8 * MIB), "Transfer-Encoding: chunked".into()]
            {
                let mut client = Kept::new(taglock);
                let head = format!("PUT {UPLOADS}{what} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
                client.stream.write_all(head.as_bytes()).unwrap();
                if framing.starts_with('C') {
                    client.stream.write_all(&body(300_000)).unwrap();
                } else {
                    let all = chunked(&body(300_000), &[32 << 10]);
                    client.stream.write_all(&all[..all.len() - 100]).unwrap();
                }
                let answer = client.read();
                assert_eq!(answer.status, status, "{answer:?}");
                if status != 502 {
                    assert_eq!(answer.text(), "hello");
                }
                assert_eq!(answer.header("Connection"), Some("close"));
                // Neither connection is used again. pingora waits a minute for the rest of the body.
                if fast && framing.starts_with('C') {
                    assert!(client.rest().is_empty());
                }
                assert!(Kept::new(taglock).get("size-70000").body == body(70_000));
            }
        }
        // Not those of the reads, of which a second may begin before the first one's is kept.
        eventually("the end of the registry's connections", || source.open() <= 6);
    });
}

#[test]
fn a_client_that_leaves_its_body_ends_the_registrys_connection() {
    let source = Source::start(|asked| match (asked.length(), asked.method.as_str()) {
        (Some(length), _) => asked.read_body(length).len() == length,
        // To the connection's end, which no last chunk comes before.
        (None, "PUT") => {
            let read = asked.read_body(4 * MIB);
            assert!(!read.ends_with(b"0\r\n\r\n"), "a cut body was ended");
            false
        }
        _ => sized(asked),
    });
    both(&source.address, "", "", |taglock, _| {
        let open = source.open();
        for (sent, in_chunks) in
            [0, 10, 100_000, MIB].into_iter().flat_map(|n| [(n, false), (n, true)])
        {
            let mut client = Kept::new(taglock);
            let asked = source.asked();
            let framing = match in_chunks {
                true => "Transfer-Encoding: chunked".to_owned(),
                false => format!("Content-Length: {}", 2 * MIB),
            };
            let head = format!("PUT {UPLOADS}1 HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
            client.stream.write_all(head.as_bytes()).unwrap();
            if in_chunks {
                let all = chunked(&body(sent), &[4096]);
                client.stream.write_all(&all[..all.len().saturating_sub(20)]).unwrap();
            } else {
                client.stream.write_all(&body(sent)).unwrap();
            }
            eventually("the request", || source.asked() > asked);
            drop(client);
            eventually("its end", || source.open() <= open);
        }
        assert!(Kept::new(taglock).get("size-70000").body == body(70_000));
        eventually("quiet", || taglock.metric("taglock_connections ") == 0.0);
        assert_eq!(taglock.metric("taglock_requests_in_flight "), 0.0);
    });
}

#[test]
fn a_registry_that_takes_no_more_is_given_up_and_bytes_are_counted() {
    let source = Source::start(|asked| {
        let length = asked.length().unwrap();
        if asked.target.ends_with("stuck") {
            thread::sleep(Duration::from_secs(6));
            return false;
        }
        asked.read_body(length);
        asked.say("201 Created\r\nContent-Length: 0", b"")
    });
    let told = std::cell::RefCell::new(Vec::new());
    both(&source.address, "write_timeout = \"1s\"\nread_timeout = \"3s\"", "", |taglock, _| {
        let put = |what: &str, size| {
            let mut client = Kept::new(taglock);
            let bytes = http::bytes("x", "PUT", &format!("{UPLOADS}{what}"), &[], &body(size));
            let mut stream = client.stream.try_clone().unwrap();
            let sending = thread::spawn(move || stream.write_all(&bytes).is_ok());
            let status = client.read().status;
            drop(client);
            sending.join().unwrap();
            status
        };
        assert_eq!((put("one", 70_000), put("two", 3_000_000)), (201, 201));
        eventually("the end", || taglock.metric("taglock_connections ") == 0.0);
        let bytes = taglock.metric("taglock_body_bytes_total{direction=\"in\"}");
        assert_eq!(put("stuck", 40 * MIB), 504);
        told.borrow_mut().push(bytes);
    });
    assert_eq!(told.into_inner(), [3_070_000.0, 3_070_000.0]);
}
