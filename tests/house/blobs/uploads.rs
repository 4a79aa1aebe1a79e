//! Uploads over both paths.

use std::io::Write;
use std::thread;
use std::time::Duration;

use super::source::{Source, body, path};
use super::{FillOnce, Kept, MIB, both, pipes, sized};
use crate::harness::*;
use crate::http::{self, Answer};

const UPLOADS: &str = "/v2/other/up/blobs/uploads/";

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
        let Some(_) = asked.length() else { return sized(asked) };
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
            let mut client = Kept::new(taglock);
            let head = format!(
                "PUT {UPLOADS}{what} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                8 * MIB
            );
            client.stream.write_all(head.as_bytes()).unwrap();
            client.stream.write_all(&body(300_000)).unwrap();
            let answer = client.read();
            assert_eq!(answer.status, status, "{answer:?}");
            if status != 502 {
                assert_eq!(answer.text(), "hello");
            }
            assert_eq!(answer.header("Connection"), Some("close"));
            // Neither connection is used again. pingora waits a minute for the rest of the body.
            if fast {
                assert!(client.rest().is_empty());
            }
            assert!(Kept::new(taglock).get("size-70000").body == body(70_000));
        }
        // Not those of the reads, of which a second may begin before the first one's is kept.
        eventually("the end of the registry's connections", || source.open() <= 3);
    });
}

#[test]
fn a_client_that_leaves_its_body_ends_the_registrys_connection() {
    let source = Source::start(|asked| match asked.length() {
        Some(length) => asked.read_body(length).len() == length,
        None => sized(asked),
    });
    both(&source.address, "", "", |taglock, _| {
        let open = source.open();
        for sent in [0, 10, 100_000, MIB] {
            let mut client = Kept::new(taglock);
            let asked = source.asked();
            let head = format!(
                "PUT {UPLOADS}1 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                2 * MIB
            );
            client.stream.write_all(head.as_bytes()).unwrap();
            client.stream.write_all(&body(sent)).unwrap();
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
