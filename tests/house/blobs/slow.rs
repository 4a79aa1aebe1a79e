//! Uploads of which a side takes its time, or says much before the end.

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::source::{Source, body};
use super::uploads::UPLOADS;
use super::{Kept, MIB, both, sized};
use crate::harness::*;

/// What an upload begins with, and 300 000 bytes of it.
fn begun(taglock: &Taglock, in_chunks: bool) -> Kept {
    let mut client = Kept::new(taglock);
    let (framing, before) = match in_chunks {
        true => ("Transfer-Encoding: chunked".to_owned(), "493e0\r\n"),
        false => (format!("Content-Length: {}", 40 * MIB), ""),
    };
    let head = format!("PUT {UPLOADS}1 HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{before}");
    client.stream.write_all(head.as_bytes()).unwrap();
    client.stream.write_all(&body(300_000)).unwrap();
    client
}

/// The status lines of all answers, to the connection's end.
fn statuses(client: &mut Kept) -> Vec<String> {
    let mut text = String::new();
    let _ = client.reader.read_to_string(&mut text);
    let lines = text.lines().filter(|line| line.starts_with("HTTP/1.1 "));
    lines.map(|line| line["HTTP/1.1 ".len()..][..3].to_owned()).collect()
}

#[test]
fn a_registry_that_only_ever_announces_an_answer_is_given_up() {
    let source = Source::start(|asked| {
        asked.read_body(100_000);
        for _ in 0..1000 {
            if !asked.say("103 Early Hints\r\nLink: </x>", b"") {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It would go on for as long as it is listened to.
        thread::sleep(Duration::from_secs(60));
        false
    });
    both(&source.address, "", "", |taglock, fast| {
        // pingora's own path passes on as many as there are.
        for in_chunks in [false, true].into_iter().filter(|_| fast) {
            let start = Instant::now();
            let seen = statuses(&mut begun(taglock, in_chunks));
            assert_eq!(seen.last().unwrap(), "502", "{seen:?}");
            assert!(seen.len() <= 20 && start.elapsed() < Duration::from_secs(30), "{seen:?}");
        }
    });
}

#[test]
fn the_last_answer_reaches_the_client_though_it_came_along_with_another_and_nothing_more_is_taken()
{
    let source = Source::start(|asked| {
        if asked.method != "PUT" {
            return sized(asked);
        }
        asked.read_body(100_000);
        // Both in one write, and not a byte is read from here on.
        let last = "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nhello";
        asked.say("103 Early Hints", last.as_bytes());
        thread::sleep(Duration::from_secs(8));
        false
    });
    both(&source.address, "write_timeout = \"1s\"", "", |taglock, fast| {
        for in_chunks in [false, true] {
            let mut client = begun(taglock, in_chunks);
            let mut stream = client.stream.try_clone().unwrap();
            // More than sockets hold, as far as it is taken.
            let sending = thread::spawn(move || {
                let rest = if in_chunks { b"\r\n2000000\r\n".to_vec() } else { Vec::new() };
                let _ = stream.write_all(&[rest, body(30 * MIB)].concat());
            });
            let seen = statuses(&mut client);
            assert_eq!(seen.last().unwrap(), "413", "{fast}: {seen:?}");
            drop(client);
            sending.join().unwrap();
        }
    });
}

#[test]
fn chunks_that_bring_next_to_nothing_are_too_slow_however_often_they_come() {
    let source = Source::start(|asked| {
        asked.read_body(100 * MIB);
        false
    });
    let taglock = Taglock::with(&source.address, "fast_path = true", "");
    // A chunk's extension that never ends, and a byte at a time.
    thread::scope(|scope| {
        for (begin, again) in [("5;x=", "y"), ("", "1\r\na\r\n")] {
            let taglock = &taglock;
            scope.spawn(move || {
                let start = Instant::now();
                let mut client = Kept::new(taglock);
                let framing = "Transfer-Encoding: chunked";
                let head =
                    format!("PUT {UPLOADS}1 HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{begin}");
                client.stream.write_all(head.as_bytes()).unwrap();
                while client.stream.write_all(again.as_bytes()).is_ok() {
                    assert!(start.elapsed() < Duration::from_secs(60), "{again:?} may go on");
                    thread::sleep(Duration::from_millis(300));
                }
                assert!(
                    start.elapsed() > Duration::from_secs(29),
                    "{again:?}: a body may begin slowly"
                );
            });
        }
    });
    eventually("quiet", || taglock.metric("taglock_connections ") == 0.0);
}
