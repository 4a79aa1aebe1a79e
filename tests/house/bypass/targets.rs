//! Targets that a parser of URIs would cut, complete or replace: refused as they came, or, where a
//! library of HTTP/2 has cut them already, judged and forwarded as the same target.

use std::io::{BufReader, Write};

use super::recorder::Recorder;
use super::{Tls, by_http1, by_http2};
use crate::harness::*;
use crate::http;

/// Nothing of them may reach the registry over HTTP/1.1.
const TARGETS: &[&str] = &[
    "/v2/open/app/manifests/#1",
    "/v2/open/app/manifests/v1#x",
    "/v2/open/app/manifests/v1#",
    "/v2/open/app/manifests/v1?n=1#&ns=evil.example",
    "/v2/open/app/tags/list#/../../prod/app/manifests/v1",
    "/v2/open/app/blobs/uploads/#/../../../prod/app/manifests/v1",
    "/v2/prod/app/manifests/v1#x",
    "/v2/prod/app/manifests/v1?#ns=evil.example",
    "/v2/#",
    "/#/v2/prod/app/manifests/v1",
    "#",
    "*",
    "?ns=evil.example",
    "v2/open/app/manifests/v1",
    "http://x/v2/open/app/manifests/v1",
    "http://x/v2/open/app/manifests/v1#x",
    "http://x?/v2/open/app/manifests/v1",
    "http://user@x/v2/open/app/manifests/v1?ns=evil.example",
    "http:/v2/open/app/manifests/v1",
    "//user@x/v2/open/app/manifests/v1",
    "x:443",
    "/v2/open/app/manifests/v1?x=\u{e9}",
    "/v2/open/app/manifests/\u{e9}",
];

/// What a library of HTTP/2 leaves of a `:path`.
fn cut(target: &str) -> &str {
    match target.split('#').next() {
        None | Some("") => "/",
        Some(rest) => rest,
    }
}

/// The targets of what reached the registry.
fn reached(recorder: &Recorder) -> Vec<String> {
    let bytes = recorder.take().concat();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines = text.lines().filter_map(|line| line.strip_suffix(" HTTP/1.1"));
    lines.map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn registry() -> Recorder {
    Recorder::start(|_| b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec())
}

type Send<'a> = dyn Fn(&str, &str, &[(&str, &str)], &[u8]) -> Option<u16> + 'a;

fn over_http1(protocol: &str, recorder: &Recorder, send: &Send<'_>) {
    for target in TARGETS {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE"] {
            let what = format!("{protocol}: {method} {target}");
            let status = send(method, target, &[("Content-Type", INDEX)], b"");
            assert!(matches!(status, None | Some(400 | 405)), "{what}: {status:?}");
            assert_eq!(reached(recorder), Vec::<String>::new(), "{what}");
        }
    }
    // What is plain goes through, so that the above means something.
    assert_eq!(send("GET", "/v2/open/app/manifests/v1?ns=x", &[], b""), Some(404), "{protocol}");
    assert_eq!(reached(recorder), ["/v2/open/app/manifests/v1?ns=x"], "{protocol}");
}

fn over_http2(protocol: &str, recorder: &Recorder, send: &Send<'_>) {
    for target in TARGETS {
        for method in ["GET", "HEAD"] {
            let what = format!("{protocol}: {method} {target}");
            let status = send(method, target, &[], b"");
            let reached = reached(recorder);
            if reached.is_empty() {
                assert!(matches!(status, None | Some(400)), "{what}: {status:?}");
            } else {
                assert!(target.contains('#'), "{what}: {status:?} {reached:?}");
                // A look at a protected tag takes nothing of the query but `ns`.
                let plain = cut(target).trim_end_matches('?');
                assert!(reached.iter().all(|there| there == plain), "{what}: {reached:?}");
            }
        }
    }
}

#[test]
fn a_target_that_a_parser_would_cut_or_complete_is_refused_or_judged_as_it_is_forwarded() {
    let recorder = registry();
    for fast_path in [true, false] {
        let taglock = Taglock::with(&recorder.address, &format!("fast_path = {fast_path}"), RULES);
        let protocol = format!("HTTP/1.1, fast_path = {fast_path}");
        over_http1(&protocol, &recorder, &*by_http1(&taglock.address));
        let send = by_http2(|| http::connect(&taglock.address).unwrap());
        over_http2(&format!("h2c, fast_path = {fast_path}"), &recorder, &*send);
    }
    let tls = Tls::before(&recorder.address);
    over_http2("h2", &recorder, &*by_http2(|| tls.connect()));
    let send = |method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]| {
        let mut stream = tls.connect_http1();
        stream.write_all(&http::bytes("x", method, target, headers, body)).unwrap();
        let answer = http::read_answer(&mut BufReader::new(stream), method == "HEAD");
        Some(answer.unwrap().status)
    };
    over_http1("HTTP/1.1 over TLS", &recorder, &send);
}

/// The library of HTTP/2 cuts `#…` off before taglock sees it: what is left decides, also about `ns`.
#[test]
fn over_http2_a_fragment_takes_part_in_no_decision() {
    let recorder = registry();
    let taglock = Taglock::with(&recorder.address, "namespace = \"docker.io\"", RULES);
    let send = by_http2(|| http::connect(&taglock.address).unwrap());
    for (target, status) in [
        ("/v2/prod/app/blobs/x?ns=docker.io#&ns=evil.example", 404),
        ("/v2/prod/app/blobs/x?ns=evil.example#&ns=docker.io", 400),
        ("/v2/prod/app/blobs/x#?ns=evil.example", 404),
    ] {
        assert_eq!(send("GET", target, &[], b""), Some(status), "{target}");
        let expected = if status == 404 { vec![cut(target).to_owned()] } else { Vec::new() };
        assert_eq!(reached(&recorder), expected, "{target}");
    }
}
