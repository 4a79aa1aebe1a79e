//! Headers that are longer than they may be, or never end, and what is no HTTP.

use std::io::{BufReader, Read, Write};

use crate::bypass::Tls;
use crate::harness::*;
use crate::http;
use crate::recorded::registry;

/// `limits.header` where it is not set.
const MOST: usize = 64 << 10;

/// First lines of what taglock reads itself, of what pingora serves, and of writes.
const LINES: [&str; 5] = [
    "GET /v2/ HTTP/1.1",
    "GET /v2/open/app/manifests/v1 HTTP/1.1",
    "GET /v2/prod/app/manifests/v1 HTTP/1.1",
    "PUT /v2/prod/app/manifests/v1 HTTP/1.1",
    "PATCH /v2/open/app/blobs/uploads/u HTTP/1.1",
];

/// A header of this size, but for its end.
fn unfinished(line: &str, size: usize) -> String {
    let mut head = format!("{line}\r\nHost: x\r\n");
    // Lines of a usual length, and the last one as long as is left.
    while size - head.len() > 8000 {
        head += &format!("X-Long: {}\r\n", "y".repeat(4000));
    }
    head += "X-Last: ";
    head += &"y".repeat(size - head.len());
    head
}

/// All that comes until the connection ends.
fn told(mut stream: impl Read + Write, bytes: &str) -> String {
    // The other side may have enough before it has all of it.
    let _ = stream.write_all(bytes.as_bytes()).and_then(|()| stream.flush());
    let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => said.extend(&buffer[..read]),
            Err(error) => {
                use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
                assert!(matches!(error.kind(), ConnectionReset | UnexpectedEof), "{error}");
                break;
            }
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn is_431(said: &str, what: &str) {
    assert!(said.starts_with("HTTP/1.1 431 "), "{what}: {said}");
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{what}: {said}");
    assert!(said.to_lowercase().contains("connection: close"), "{what}: {said}");
    assert!(said.contains("\"errors\""), "{what}: {said}");
}

#[test]
fn a_header_that_never_ends_is_told_so_at_its_limit_and_ends_the_connection() {
    let recorder = registry();
    for fast in ["fast_path = true", "fast_path = false"] {
        let taglock = Taglock::with(&recorder.address, fast, RULES);
        for line in LINES {
            for size in [MOST + 1, MOST + 4000, 1_000_000] {
                let what = format!("{fast}: {line} {size}");
                let stream = http::connect(&taglock.address).unwrap();
                is_431(&told(stream, &unfinished(line, size)), &what);
                // One line without an end, too.
                let stream = http::connect(&taglock.address).unwrap();
                let head = format!("{line}\r\nHost: x\r\nX: ");
                let head = format!("{head}{}", "y".repeat(size - head.len()));
                is_431(&told(stream, &head), &what);
            }
        }
        let refused = taglock.metric("taglock_refusals_total{reason=\"malformed\"} ");
        assert!(refused >= 30.0, "{refused}");
    }
    let tls = Tls::before(&recorder.address);
    for line in LINES {
        is_431(&told(tls.connect_http1(), &unfinished(line, MOST + 1)), line);
    }
    assert!(recorder.take().is_empty());
}

#[test]
fn a_header_of_just_the_size_that_it_may_have_passes() {
    let recorder = registry();
    for fast in ["fast_path = true", "fast_path = false"] {
        let taglock = Taglock::with(&recorder.address, fast, RULES);
        let tls = Tls::before(&recorder.address);
        for line in &LINES[..3] {
            for (size, passes) in [(MOST - 1, true), (MOST, true), (MOST + 1, false)] {
                let what = format!("{fast}: {line} {size}");
                let head = format!("{}\r\n\r\n", unfinished(line, size - 4));
                assert_eq!(head.len(), size);
                let well = |status: u16| match passes {
                    true => matches!(status, 200 | 404),
                    false => status == 431,
                };
                let plain = http::raw(&taglock.address, head.as_bytes());
                assert!(well(plain.status), "{what}: {}", plain.status);
                let mut stream = tls.connect_http1();
                stream.write_all(head.as_bytes()).unwrap();
                let answer = http::read_answer(&mut BufReader::new(stream), false).unwrap();
                assert!(well(answer.status), "{what} over TLS: {}", answer.status);
            }
        }
    }
}

/// A client that tries TLS waits for what is said to it before it tries anything else.
#[test]
fn a_tls_hello_on_the_plain_port_is_answered_while_the_client_waits() {
    let recorder = registry();
    for fast in ["fast_path = true", "fast_path = false"] {
        let taglock = Taglock::with(&recorder.address, fast, RULES);
        let beginning = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice();
        for hello in [&[beginning, &[7; 506]].concat()[..], beginning] {
            let mut stream = http::connect(&taglock.address).unwrap();
            stream.write_all(hello).unwrap();
            let mut said = [0; 12];
            stream.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"HTTP/1.1 400", "{fast}: {}", hello.len());
        }
    }
    assert!(recorder.take().is_empty());
}
