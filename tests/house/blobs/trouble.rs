//! Registries and clients that fail, leave, or are slow, and what becomes of their connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::source::{Asked, Source, body, path};
use super::{FillOnce, Kept, MIB, all, descriptors, length, sized};
use crate::harness::*;
use crate::http;
use std::io::Write;

#[test]
fn an_answer_of_another_length_than_it_says_ends_the_connection_and_nothing_slips_in() {
    let source = Source::start(|asked| {
        let smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        match asked.what() {
            "short" => {
                asked.say(&length(MIB), &body(300_000));
                false
            }
            "early" => {
                asked.say(&length(MIB), b"");
                false
            }
            "long" => asked.say(&length(MIB), &[body(MIB), smuggled.to_vec()].concat()),
            "little" => asked.say(&length(70_000), &[body(70_000), smuggled.to_vec()].concat()),
            "late" => {
                let whole = asked.say(&length(MIB), &body(MIB));
                thread::sleep(Duration::from_millis(100));
                whole && asked.stream.write_all(smuggled).is_ok()
            }
            _ => sized(asked),
        }
    });
    all(&source.address, "", "", |taglock, _| {
        assert!(Kept::new(taglock).cut_body("short") == body(300_000));
        assert!(Kept::new(taglock).cut_body("early").is_empty());
        for what in ["long", "little", "late"] {
            let mut client = Kept::new(taglock);
            let answer = client.get(what);
            let size = if what == "little" { 70_000 } else { MIB };
            assert!(answer.body == body(size), "{what}: {answer:?}");
            thread::sleep(Duration::from_millis(200));
            for size in [100_000, 3] {
                let answer = client.get(&format!("size-{size}"));
                assert!(answer.body == body(size), "after {what}: {answer:?}");
            }
        }
    });
}

#[test]
fn a_client_that_leaves_ends_the_registrys_connection_and_leaves_nothing_behind() {
    let source = Source::start(|asked| {
        let endless = |asked: &mut Asked| while asked.stream.write_all(&[0; 4096]).is_ok() {};
        match asked.what() {
            "endless" => {
                asked.say(&length(1 << 40), b"");
                endless(asked);
            }
            "stalled" => {
                asked.say(&length(MIB), &body(200_000));
            }
            "small" => {
                asked.say(&length(1000), &body(10));
            }
            "silent" => {}
            _ => return sized(asked),
        }
        true
    });
    all(&source.address, "", "", |taglock, _| {
        // What is made once, and kept.
        for _ in 0..2 {
            assert_eq!(http::get(&taglock.address, &path("size-2000000")).body, body(2_000_000));
        }
        let idle = || {
            let quiet = taglock.metric("taglock_connections ") == 0.0;
            quiet.then(|| (descriptors(taglock).len(), source.open()))
        };
        let mut before = None;
        eventually("quiet", || {
            before = idle();
            before.is_some()
        });
        let (descriptors_before, open_before) = before.unwrap();
        for what in ["endless", "stalled", "small", "silent"] {
            for _ in 0..5 {
                let mut client = Kept::new(taglock);
                let asked = source.asked();
                client.ask(what);
                eventually("the request", || source.asked() > asked);
                // What is short is sent when it is whole.
                if matches!(what, "endless" | "stalled") {
                    client.reader.fill_buf_once();
                }
            }
        }
        // The kept connection may have been taken for one of them.
        eventually("the end of them all", || {
            idle().is_some_and(|(fds, open)| fds <= descriptors_before && open <= open_before)
        });
        assert_eq!(taglock.metric("taglock_requests_in_flight "), 0.0);
    });
}

#[test]
fn a_registry_that_is_too_slow_is_given_up() {
    let source = Source::start(|asked| {
        if asked.what() == "half" {
            asked.say(&length(MIB), &body(MIB / 2));
        }
        thread::sleep(Duration::from_secs(5));
        false
    });
    all(&source.address, "read_timeout = \"1s\"", "", |taglock, _| {
        assert!(Kept::new(taglock).cut_body("half") == body(MIB / 2));
        let answer = http::get(&taglock.address, &path("silent"));
        assert_eq!((answer.status, answer.code().as_str()), (504, "UNAVAILABLE"));
        eventually("the log", || {
            let log = taglock.process.log();
            log.lines().filter(|line| line.contains("ReadTimedout")).count() == 2
        });
    });
}

#[test]
fn a_kept_connection_that_died_is_replaced_once_and_an_answer_that_breaks_is_not_asked_for_again() {
    let source = Source::start(|asked| match (asked.what(), asked.number) {
        ("stale", 2..) | ("never", _) => false,
        ("stale", _) => asked.say(&length(MIB), &body(MIB)),
        _ => sized(asked),
    });
    all(&source.address, "", "", |taglock, _| {
        let mut client = Kept::new(taglock);
        for _ in 0..3 {
            let asked = source.asked();
            assert!(client.get("size-1").body == body(1));
            // Until its connection is kept.
            thread::sleep(Duration::from_millis(100));
            assert!(client.get("stale").body == body(MIB));
            // Twice for the second: it came on a connection that was kept.
            assert!((3..=4).contains(&(source.asked() - asked)));
        }
        let asked = source.asked();
        let answer = client.get("never");
        assert_eq!((answer.status, answer.code().as_str()), (502, "UNAVAILABLE"));
        assert!(source.asked() - asked <= 2);
    });
}

#[test]
fn a_registry_that_is_not_there_and_answers_with_two_readings_are_refused_alike() {
    let source = Source::start(|asked| {
        let head = match asked.what() {
            "gzip" => "200 OK\r\nTransfer-Encoding: gzip, chunked",
            "two" => "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "switch" => "101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade",
            "lengths" => "200 OK\r\nContent-Length: 5\r\nContent-Length: 70000",
            _ => "200 OK\r\nNo header\r\n",
        };
        asked.say(head, b"5\r\nhello\r\n0\r\n\r\n");
        false
    });
    let nobody = format!("127.0.0.1:{}", port());
    let told = std::cell::RefCell::new(Vec::new());
    all(&source.address, "", "", |taglock, _| {
        for what in ["gzip", "two", "switch", "lengths", "line"] {
            let answer = http::get(&taglock.address, &path(what));
            assert_eq!((answer.status, answer.code().as_str()), (502, "UNAVAILABLE"), "{what}");
            told.borrow_mut().push(answer.message());
        }
    });
    all(&nobody, "", "", |taglock, _| {
        let answer = http::get(&taglock.address, &path("x"));
        assert_eq!((answer.status, answer.code().as_str()), (502, "UNAVAILABLE"));
        told.borrow_mut().push(answer.message());
    });
    let told = told.into_inner();
    for same in told[..20].chunks(5) {
        assert_eq!(same, &told[..5]);
    }
    assert!(told[20..].iter().all(|nobody| *nobody == told[20]) && told.len() == 24);
}

#[test]
fn the_access_log_and_the_metrics_tell_the_same_of_both() {
    let source = Source::start(|asked| {
        if asked.what() == "short" {
            asked.say(&length(MIB), &body(300_000));
            return false;
        }
        sized(asked)
    });
    let told = std::cell::RefCell::new(Vec::new());
    all(&source.address, "", "", |taglock, _| {
        for what in ["size-0", "size-70000", "size-3000000"] {
            assert_eq!(Kept::new(taglock).get(what).status, 200);
        }
        assert!(Kept::new(taglock).cut_body("short") == body(300_000));
        let lines = || {
            let log = taglock.process.log();
            let mut lines: Vec<_> = log
                .lines()
                .filter(|line| line.contains("taglock::access"))
                .map(|line| {
                    let own = |part: &&str| {
                        !["id=", "ms=", "\"id\"", "\"ms\""].iter().any(|own| part.contains(own))
                            && !part.ends_with('Z')
                    };
                    line.split(' ').filter(own).collect::<Vec<_>>().join(" ")
                })
                .collect();
            lines.sort();
            lines
        };
        eventually("the log", || lines().len() == 4);
        eventually("the end", || taglock.metric("taglock_connections ") == 0.0);
        let bytes = taglock.metric("taglock_body_bytes_total{direction=\"out\"}");
        assert_eq!(bytes, 3_370_000.0);
        told.borrow_mut().push(lines());
    });
    for told in told.into_inner().chunks(2) {
        assert_eq!(told[0], told[1]);
    }
}

#[test]
fn a_stop_waits_for_a_blob_and_a_blob_counts_as_a_connection() {
    let (go_on, goes) = mpsc::channel::<()>();
    let goes = std::sync::Mutex::new(goes);
    let source = Source::start(move |asked| {
        if asked.what() == "waits" {
            let whole = body(3 * MIB);
            asked.say(&length(whole.len()), &whole[..MIB]);
            goes.lock().unwrap().recv().unwrap();
            return asked.stream.write_all(&whole[MIB..]).is_ok();
        }
        sized(asked)
    });
    for fast in [true, false] {
        let keys = format!("fast_path = {fast}");
        let limits = "[limits]\nconnections = 1\n";
        let mut taglock = Taglock::with(&source.address, &keys, limits);
        taglock.forgets_the_harness();
        let mut client = Kept::new(&taglock);
        client.ask("waits");
        client.reader.fill_buf_once();
        let turned_away = http::get(&taglock.address, "/v2/");
        assert_eq!(turned_away.status, 503);
        taglock.process.signal("-TERM");
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let reading = thread::spawn(move || {
            let answer = client.read();
            ended.store(true, Ordering::Relaxed);
            answer
        });
        thread::sleep(Duration::from_millis(1500));
        assert!(!over.load(Ordering::Relaxed), "it was not waited for");
        assert!(taglock.process.child.try_wait().unwrap().is_none(), "it was cut");
        go_on.send(()).unwrap();
        assert!(reading.join().unwrap().body == body(3 * MIB));
        assert_eq!(taglock.process.wait_for_end(), 0);
    }
}
