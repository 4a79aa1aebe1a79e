//! How the end of a body comes: two lengths, empty frames of HTTP/2, a client that ends its side. The
//! registry gets one whole request, or none.

use std::io::{BufReader, Write};
use std::net::Shutdown;
use std::time::Duration;

use crate::bypass::{Field, Outcome, Reading, Recorder, Request, Tls, exchange_frames};
use crate::harness::*;
use crate::http;
use crate::recorded::{registry, requests};

const UPLOAD: &str = "/v2/open/app/blobs/uploads/u";

fn both(test: impl Fn(&Recorder, &Taglock, &str)) {
    for fast in ["fast_path = true", "fast_path = false"] {
        let recorder = registry();
        let taglock = Taglock::with(&recorder.address, fast, RULES);
        test(&recorder, &taglock, fast);
    }
}

/// Sends a request with these frames of a body over HTTP/2.
type Send<'a> = dyn Fn(&Request<'_>, &[&[u8]], Duration) -> Outcome + 'a;

/// Over both paths without TLS, and over TLS.
fn over_http2(test: impl Fn(&Recorder, &Send<'_>, &str)) {
    both(|recorder, taglock, fast| {
        let send = |request: &Request<'_>, frames: &[&[u8]], pause| {
            exchange_frames(http::connect(&taglock.address).unwrap(), request, frames, pause)
        };
        test(recorder, &send, &format!("h2c, {fast}"));
    });
    let recorder = registry();
    let tls = Tls::before(&recorder.address);
    let send = |request: &Request<'_>, frames: &[&[u8]], pause| {
        exchange_frames(tls.connect(), request, frames, pause)
    };
    test(&recorder, &send, "h2");
}

fn fields_of<'a>(method: &'a str, target: &'a str, more: &[Field<'a>]) -> Vec<Field<'a>> {
    let mut fields: Vec<Field<'_>> = vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"http"),
        (b":authority", b"x"),
        (b":path", target.as_bytes()),
        (b"content-type", INDEX.as_bytes()),
    ];
    fields.extend(more);
    fields
}

/// Streamed, judged, and uploads.
fn targets() -> [(&'static str, String); 6] {
    [
        ("PUT", "/v2/open/app/manifests/v1".to_owned()),
        ("PUT", "/v2/prod/app/manifests/v1".to_owned()),
        ("PATCH", UPLOAD.to_owned()),
        ("POST", "/v2/open/app/blobs/uploads/".to_owned()),
        ("GET", "/v2/open/app/manifests/v1".to_owned()),
        ("DELETE", format!("/v2/open/app/manifests/{}", digest(b"x"))),
    ]
}

const TWO: [[&str; 2]; 5] = [["10", "10"], ["10", "010"], ["010", "10"], ["10", "9"], ["9", "10"]];

#[test]
fn two_lengths_reach_no_registry_over_any_protocol() {
    both(|recorder, taglock, fast| {
        for (method, target) in targets() {
            for [first, second] in TWO {
                let what = format!("{fast}: {method} {target} {first} {second}");
                let head = format!(
                    "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n\
                     Content-Length: {first}\r\nContent-Length: {second}\r\n\r\n0123456789"
                );
                assert_eq!(http::raw(&taglock.address, head.as_bytes()).status, 400, "{what}");
                assert!(recorder.take().is_empty(), "{what}");
            }
        }
    });
    over_http2(|recorder, send, protocol| {
        for (method, target) in targets() {
            for lengths in TWO {
                let what = format!("{protocol}: {method} {target} {lengths:?}");
                let two = lengths.map(|length| (&b"content-length"[..], length.as_bytes()));
                let fields = fields_of(method, &target, &two);
                let request = Request { fields, ..Request::default() };
                match send(&request, &[b"0123456789"], Duration::ZERO) {
                    Outcome::Answer { status, .. } => assert_eq!(status, 400, "{what}"),
                    // What the library of HTTP/2 sees itself is no request to taglock.
                    Outcome::Refused => {}
                }
                assert!(recorder.take().is_empty(), "{what}");
            }
        }
    });
}

/// A name, a method, a target, whether the length is told, and frames.
type Case<'a> = (&'a str, &'a str, &'a str, bool, &'a [&'a [u8]]);

/// Go's client ends each body of unknown length by an empty frame.
#[test]
fn empty_frames_end_a_request_once_and_the_next_one_gets_its_own_answer() {
    let bytes = manifest("frames");
    let (first, second) = bytes.split_at(40);
    let length = bytes.len().to_string();
    let none: &[&[u8]] = &[b""];
    let shapes: [(&str, &[&[u8]]); 10] = [
        ("one", &[&bytes]),
        ("empty at the end", &[&bytes, b""]),
        ("several empty at the end", &[&bytes, b"", b"", b""]),
        ("empty in the middle", &[first, b"", second]),
        ("empty in the middle and at the end", &[first, b"", second, b""]),
        ("empty first", &[b"", &bytes]),
        ("empty everywhere", &[b"", first, b"", b"", second, b""]),
        ("in pieces", &[first, second]),
        ("with trailers", &[&bytes]),
        ("empty at the end, with trailers", &[&bytes, b""]),
    ];
    let targets = targets();
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (name, frames) in shapes {
        for (method, target) in &targets[..4] {
            for known in [false, true] {
                cases.push((name, method, target, known, frames));
            }
        }
    }
    for (method, target) in &targets[3..] {
        cases.push(("an empty frame alone", method, target, false, none));
        cases.push(("two empty frames", method, target, false, &[b"", b""]));
    }
    let (head, read) = ("/v2/open/app/manifests/v1", "/v2/prod/app/manifests/none");
    cases.push(("an empty frame alone", "HEAD", head, false, none));
    cases.push(("an empty frame alone", "GET", read, false, none));
    over_http2(|recorder, send, protocol| {
        for &(name, method, target, known, frames) in &cases {
            for pause in [Duration::ZERO, Duration::from_millis(2)] {
                let what = format!("{protocol}: {method} {target}: {name}, {known} {pause:?}");
                let length: Field<'_> = (b"content-length", length.as_bytes());
                let more: &[Field<'_>] = if known { &[length] } else { &[] };
                let fields = fields_of(method, target, more);
                let trailers: &[Field<'_>] = &[(b"x-trailer", b"1")];
                let trailers = if name.ends_with("trailers") { trailers } else { &[] };
                let request = Request { fields, trailers: trailers.to_vec(), ..Request::default() };
                let outcome = send(&request, frames, pause);
                let Outcome::Answer { status, .. } = outcome else { panic!("{what}: {outcome:?}") };
                assert!(matches!(status, 200..=202 | 404), "{what}: {status}");
                // Of another client, and surely on the connection that is kept.
                let get = Request { fields: fields_of("GET", "/v2/", &[]), ..Request::default() };
                let next = Outcome::Answer { status: 200, body: b"ok".to_vec() };
                assert_eq!(send(&get, &[], Duration::ZERO), next, "{what}");
                let got = requests(recorder, &what);
                let own: Vec<_> = got
                    .iter()
                    .filter(|got| got.line == format!("{method} {target} HTTP/1.1"))
                    .collect();
                let judged = target.starts_with("/v2/prod/");
                // A tag that is there already is not written again.
                assert!(own.len() == 1 || judged && method != "PUT", "{what}: {}", own.len());
                if !judged {
                    assert_eq!(got.len(), 2, "{what}");
                }
                assert_eq!(own[0].body, frames.concat(), "{what}");
                let next = got.iter().filter(|got| got.line == "GET /v2/ HTTP/1.1");
                assert_eq!(next.count(), 1, "{what}");
            }
        }
    });
}

/// The client may still read what is said to it.
#[test]
fn a_client_that_ends_its_side_in_a_body_is_told_and_nothing_whole_is_sent_on() {
    both(|recorder, taglock, fast| {
        let (small, large) = (manifest("half"), vec![b'x'; 300_000]);
        let counted = || taglock.metric("taglock_refusals_total{reason=\"malformed\"} ");
        let mut expected = counted();
        for (method, target, body) in [
            ("PUT", "/v2/prod/app/manifests/v1", &small),
            ("PUT", "/v2/open/app/manifests/v1", &small),
            ("PATCH", UPLOAD, &small),
            ("PATCH", UPLOAD, &large),
            ("POST", "/v2/open/app/blobs/uploads/", &small),
        ] {
            for chunked in [false, true] {
                for sent in [0, 10, body.len() - 1] {
                    let what = format!("{fast}: {method} {target} {chunked} {sent}");
                    let framing = match chunked {
                        true => "Transfer-Encoding: chunked".to_owned(),
                        false => format!("Content-Length: {}", body.len()),
                    };
                    let head = format!(
                        "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n{framing}\r\n\r\n"
                    );
                    let size =
                        if chunked { format!("{:x}\r\n", body.len()) } else { String::new() };
                    let all = [head.as_bytes(), size.as_bytes(), &body[..sent]].concat();
                    let mut stream = http::connect(&taglock.address).unwrap();
                    stream.write_all(&all).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let answer = http::read_answer(&mut BufReader::new(stream), false).unwrap();
                    assert_eq!(answer.status, 400, "{what}: {answer:?}");
                    let told = answer.message().contains("before its body was complete");
                    assert!(told && !answer.code().is_empty(), "{what}: {answer:?}");
                    expected += 1.0;
                    eventually("the count of it", || counted() == expected);
                    for bytes in recorder.take_settled() {
                        let whole = Reading::STRICT.first(&bytes);
                        assert!(whole.is_none(), "{what}: {whole:?}");
                    }
                    assert_eq!(http::get(&taglock.address, "/v2/").text(), "ok", "{what}");
                    recorder.take();
                }
            }
        }
    });
}
