//! Header fields that tell a server another request, host or client than the request itself: none
//! reaches the registry, by any path, over any protocol.

use crate::bypass::{Field, Outcome, Request, exchange};
use crate::harness::*;
use crate::http;
use crate::recorded::{registry, requests};

/// All their values have this in them.
const EVIL: &str = "evil";

const DROPPED: &[(&str, &str)] = &[
    ("SCRIPT_NAME", "/v2/evil"),
    ("PATH_INFO", "/v2/evil/manifests/v1"),
    ("REQUEST_METHOD", "evil"),
    ("X_Forwarded_Host", "evil.example"),
    ("X_Custom", "evil"),
    ("Script-Name", "/v2/evil"),
    ("Path-Info", "/evil"),
    ("X-Script-Name", "/v2/evil"),
    ("X-Original-URL", "/v2/evil/manifests/v1"),
    ("X-Original-URI", "/v2/evil/manifests/v1"),
    ("X-Original-Method", "evil"),
    ("X-Rewrite-URL", "/v2/evil/manifests/v1"),
    ("X-Replaced-Path", "/evil"),
    ("X-Envoy-Original-Path", "/evil"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Forwarded-Path", "/evil"),
    ("X-Forwarded-Server", "evil.example"),
    ("X-Forwarded-For", "evil.example"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Forwarded-Proto", "evil"),
    ("Forwarded", "host=evil.example"),
    ("X-Real-IP", "evil"),
    ("X-Client-IP", "evil"),
    ("True-Client-IP", "evil"),
    ("CF-Connecting-IP", "evil"),
    ("X-Remote-Addr", "evil"),
    ("X-HTTP-Method", "evil"),
    ("X-HTTP-Method-Override", "evil"),
    ("X-Method-Override", "evil"),
    ("X-Host", "evil.example"),
    ("X-Url-Scheme", "evil"),
    ("X-Accel-Mapping", "/evil"),
    ("X-Sendfile-Type", "evil"),
    ("Proxy", "evil.example"),
];

const PASSED: &[(&str, &str)] = &[
    ("Authorization", "Basic eDp5"),
    ("Cookie", "a=b"),
    ("X-JFrog-Art-Api", "key"),
    ("X-Custom", "c"),
    ("X-Checksum-Sha256", "0123"),
    ("Referer", "http://x/"),
];

/// Reads, a judged push, a streamed one, a delete and uploads of both sizes.
fn cases() -> Vec<(&'static str, String, Vec<u8>)> {
    let upload = "/v2/open/app/blobs/uploads/u";
    vec![
        ("GET", "/v2/".to_owned(), Vec::new()),
        ("GET", "/v2/open/app/manifests/v1".to_owned(), Vec::new()),
        ("HEAD", "/v2/prod/app/manifests/v1".to_owned(), Vec::new()),
        ("GET", "/v2/prod/app/manifests/v1".to_owned(), Vec::new()),
        ("GET", format!("/v2/prod/app/blobs/{}", digest(b"x")), Vec::new()),
        ("GET", "/v2/prod/app/tags/list".to_owned(), Vec::new()),
        ("PUT", "/v2/prod/app/manifests/v1".to_owned(), manifest("judged")),
        ("PUT", "/v2/open/app/manifests/v1".to_owned(), manifest("streamed")),
        ("DELETE", format!("/v2/open/app/manifests/{}", digest(b"x")), Vec::new()),
        ("POST", "/v2/open/app/blobs/uploads/".to_owned(), Vec::new()),
        ("PATCH", upload.to_owned(), b"small".to_vec()),
        ("PATCH", upload.to_owned(), vec![b'x'; 60_000]),
        ("PUT", format!("{upload}?digest={}", digest(b"x")), b"x".to_vec()),
    ]
}

type Send<'a> = dyn Fn(&str, &str, &[(&str, &str)], &[u8]) -> u16 + 'a;

fn check(protocol: &str, upstream: &str, send: impl Fn(&str) -> Box<Send<'_>>) {
    let recorder = registry();
    let taglock = Taglock::with(&recorder.address, upstream, RULES);
    let send = send(&taglock.address);
    for (method, target, body) in cases() {
        let what = format!("{protocol}, {upstream}: {method} {target}");
        let more = [("Content-Type", INDEX), ("If-None-Match", "\"etag\"")];
        let headers = [DROPPED, PASSED, &more].concat();
        let status = send(method, &target, &headers, &body);
        assert!(matches!(status, 200..=202 | 404), "{what}: {status}");
        let got = requests(&recorder, &what);
        assert!(!got.is_empty(), "{what}");
        for request in got {
            let what = format!("{what}: {} {:?}", request.line, request.headers);
            for (name, value) in &request.headers {
                assert!(!name.contains('_') && !value.contains(EVIL), "{what}: {name}");
            }
            // taglock's own requests, too: the registry may know the client by any of them.
            for (name, value) in PASSED {
                assert_eq!(request.all(name), [*value], "{what}: {name}");
            }
            assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"], "{what}");
            // What a judged request asks of the registry depends on nothing that the client has.
            if matches!(method, "GET" | "HEAD") && !target.contains("/prod/app/manifests/") {
                assert_eq!(request.all("if-none-match"), ["\"etag\""], "{what}");
            }
        }
    }
}

fn by_http1(address: &str) -> Box<Send<'_>> {
    Box::new(move |method, target, headers, body| {
        http::request(address, method, target, headers, body).status
    })
}

fn by_http2(address: &str) -> Box<Send<'_>> {
    Box::new(move |method, target, headers, body| {
        let lower: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value)).collect();
        let mut fields: Vec<Field<'_>> = vec![
            (b":method", method.as_bytes()),
            (b":scheme", b"http"),
            (b":authority", b"x"),
            (b":path", target.as_bytes()),
        ];
        fields.extend(lower.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        let request = Request { fields, body: body.to_vec(), trailers: Vec::new() };
        match exchange(http::connect(address).unwrap(), &request) {
            Outcome::Answer { status, .. } => status,
            Outcome::Refused => 0,
        }
    })
}

#[test]
fn fields_that_tell_a_server_another_request_reach_no_registry() {
    for upstream in ["fast_path = true", "fast_path = false"] {
        check("HTTP/1.1", upstream, by_http1);
        check("h2c", upstream, by_http2);
    }
}
