//! Where no rule matches, answers are the registry's own, byte for byte.

use std::io::{BufReader, Write};
use std::process::Command;

use crate::clients::Images;
use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{self, Answer, request};

/// A path of a URL, query included.
fn path_of(url: &str) -> &str {
    match url.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/').unwrap()..],
        None => url,
    }
}

#[test]
fn every_answer_of_a_read_equals_the_registrys() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let images = Images::new();
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--dest-tls-verify=false"]).arg(images.source("one"));
    succeed(copy.arg(format!("docker://{}/other/app:v1", registry.address)));
    put(&registry.address, "other/app", "index", &manifest("index"));
    let image =
        request(&registry.address, "GET", "/v2/other/app/manifests/v1", &[("Accept", OCI)], b"");
    let document: serde_json::Value = serde_json::from_slice(&image.body).unwrap();
    let layer = document["layers"][0]["digest"].as_str().unwrap();
    let blob = format!("/v2/other/app/blobs/{layer}");
    let both = format!("{OCI}, {INDEX}");
    let by_digest = format!("/v2/other/app/manifests/{}", digest(&image.body));

    type Case<'a> = (&'a str, String, Vec<(&'a str, &'a str)>);
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/v2/".into(), vec![]),
        ("GET", "/v2".into(), vec![]),
        ("GET", "/v2/_catalog?n=1".into(), vec![]),
        ("GET", "/v2/other/app/tags/list".into(), vec![]),
        ("GET", "/v2/other/app/tags/list?n=1".into(), vec![]),
        ("GET", "/v2/nothing/here/tags/list".into(), vec![]),
        ("GET", "/v2/other/app/manifests/v1".into(), vec![("Accept", OCI)]),
        ("GET", "/v2/other/app/manifests/v1".into(), vec![("Accept", INDEX), ("Accept", OCI)]),
        ("GET", "/v2/other/app/manifests/v1".into(), vec![("Accept", &both)]),
        ("GET", "/v2/other/app/manifests/index".into(), vec![("Accept", "*/*")]),
        ("HEAD", "/v2/other/app/manifests/v1".into(), vec![("Accept", OCI)]),
        ("GET", "/v2/other/app/manifests/v1?ns=docker.io".into(), vec![("Accept", OCI)]),
        ("GET", "/v2/other/app/manifests/nothing".into(), vec![]),
        ("GET", "/v2/other/app/manifests/.invalid".into(), vec![]),
        ("HEAD", "/v2/other/app/manifests/.invalid".into(), vec![]),
        ("GET", by_digest.clone(), vec![("Accept", OCI)]),
        ("GET", by_digest.replace(':', "%3A"), vec![("Accept", OCI)]),
        ("GET", by_digest, vec![("Accept", OCI), ("If-None-Match", "\"x\"")]),
        ("GET", blob.clone(), vec![]),
        ("HEAD", blob.clone(), vec![]),
        ("GET", blob.clone(), vec![("Range", "bytes=10-19")]),
        ("GET", blob.clone(), vec![("Range", "bytes=-5")]),
        ("HEAD", blob.clone(), vec![("Range", "bytes=5000-")]),
        ("GET", blob.clone(), vec![("Accept-Encoding", "gzip")]),
        ("GET", format!("/v2/other/app/blobs/{}", digest(b"nothing")), vec![]),
        ("OPTIONS", "/v2/".into(), vec![]),
        ("GET", "/".into(), vec![]),
        ("GET", "/nothing".into(), vec![]),
    ];
    for (method, target, headers) in cases {
        // Registries put the client's host into some answers: both are asked by one name.
        let headers = [headers.as_slice(), &[("Host", "registry.example.com")]].concat();
        let direct = request(&registry.address, method, &target, &headers, b"");
        let through = request(&taglock.address, method, &target, &headers, b"");
        assert_eq!(through.comparable(), direct.comparable(), "{method} {target} {headers:?}");
        assert_eq!(spelling(&through), spelling(&direct), "{method} {target}");
    }
}

/// The header names as they are spelled.
fn spelling(answer: &Answer) -> Vec<String> {
    let own = |name: &&String| !matches!(name.as_str(), "Date" | "Connection");
    let mut names: Vec<_> =
        answer.headers.iter().map(|(name, _)| name).filter(own).cloned().collect();
    names.sort();
    names
}

/// What a registry says of an upload, its state and its ids aside.
fn shape(answer: &Answer) -> (u16, Vec<String>, String) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .filter(|(n, _)| !matches!(n.as_str(), "Date" | "Connection"))
        .map(|(name, value)| match name.as_str() {
            "Location" | "Docker-Upload-Uuid" => name.clone(),
            _ => format!("{name}: {value}"),
        })
        .collect();
    headers.sort();
    (answer.status, headers, answer.text())
}

#[test]
fn uploads_in_chunks_mounts_and_their_errors_pass_through() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let blob = vec![b'x'; 300_000];
    let name = digest(&blob);
    let mut transcripts = Vec::new();
    for (address, repository) in [(&registry.address, "direct"), (&taglock.address, "through")] {
        let mut transcript = Vec::new();
        let mut step = |method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]| {
            let answer = request(address, method, path_of(url), headers, body);
            transcript.push(shape(&answer));
            let location = answer.header("Location").map(str::to_owned);
            if let Some(location) = location.as_ref().filter(|l| l.contains("://")) {
                assert!(location.starts_with(&format!("http://{address}/")), "{location}");
            }
            location.unwrap_or_default()
        };
        let uploads = format!("/v2/{repository}/blobs/uploads/");
        let next = step("POST", &uploads, &[], b"");
        let next = step(
            "PATCH",
            &next,
            &[("Content-Type", "application/octet-stream"), ("Content-Range", "0-99999")],
            &blob[..100_000],
        );
        step("GET", &next, &[], b"");
        let next = step("PATCH", &next, &[("Content-Range", "100000-299999")], &blob[100_000..]);
        let separator = if next.contains('?') { '&' } else { '?' };
        let last = format!("{next}{separator}digest={}", name.replace(':', "%3A"));
        step("PUT", &last, &[], b"");
        step("HEAD", &format!("/v2/{repository}/blobs/{name}"), &[], b"");
        // One whole PUT, a wrong digest, a mount, a cancelled upload, an unknown one.
        let next = step("POST", &uploads, &[], b"");
        step("PUT", &format!("{next}&digest={}", digest(b"other")), &[], b"something");
        step("POST", &format!("{uploads}?mount={name}&from={repository}"), &[], b"");
        let next = step("POST", &uploads, &[], b"");
        step("DELETE", &next, &[], b"");
        step("DELETE", &next, &[], b"");
        step("DELETE", &format!("/v2/{repository}/blobs/{name}"), &[], b"");
        transcripts.push(transcript);
    }
    let through = transcripts.pop().unwrap();
    let direct = transcripts.pop().unwrap();
    for (n, (through, direct)) in through.iter().zip(&direct).enumerate() {
        let plain = |s: &(u16, Vec<String>, String)| {
            format!("{s:?}").replace("through", "R").replace("direct", "R")
        };
        assert_eq!(plain(through), plain(direct), "step {n}");
    }
    assert_eq!(through.len(), direct.len());
}

#[test]
fn blobs_pass_unchanged_in_chunks_and_on_one_connection() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let blob: Vec<u8> = (0..10_000_000_u32).map(|n| (n * 31 % 251) as u8).collect();
    // One PATCH with the chunked coding, as docker does, then the PUT; all on one connection.
    let mut stream = http::connect(&taglock.address).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut exchange = |bytes: &[u8]| {
        stream.write_all(bytes).unwrap();
        http::read_answer(&mut reader, false).unwrap()
    };
    let started = exchange(&http::bytes("x", "POST", "/v2/all/big/blobs/uploads/", &[], b""));
    assert_eq!(started.status, 202);
    let location = path_of(started.header("Location").unwrap()).to_owned();
    let mut patch =
        format!("PATCH {location} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            .into_bytes();
    for part in blob.chunks(777_777) {
        patch.extend(format!("{:x}\r\n", part.len()).as_bytes());
        patch.extend(part);
        patch.extend(b"\r\n");
    }
    patch.extend(b"0\r\n\r\n");
    let patched = exchange(&patch);
    assert_eq!(patched.status, 202, "{}", patched.text());
    let location = path_of(patched.header("Location").unwrap()).to_owned();
    let target = format!("{location}&digest={}", digest(&blob));
    assert_eq!(exchange(&http::bytes("x", "PUT", &target, &[], b"")).status, 201);
    let target = format!("/v2/all/big/blobs/{}", digest(&blob));
    assert_eq!(exchange(&http::bytes("x", "GET", &target, &[], b"")).body, blob);
}

#[test]
fn redirects_to_other_hosts_are_passed_untouched() {
    let fake = Fake::start();
    let taglock = Taglock::before(&fake.address);
    let away = "https://s3.example.com/bucket/x?sig=a%2Bb%3D";
    let home = format!("http://{}/elsewhere?x=%2F", fake.address);
    for (target, location, expected) in [
        ("/v2/other/blobs/x", away.to_owned(), away.to_owned()),
        ("/v2/other/blobs/y", home, format!("http://{}/elsewhere?x=%2F", taglock.address)),
    ] {
        let answer = Fault::Answer(307, vec![("location", location)], "");
        fake.plan("GET", target, answer, 1);
        let answer = http::get(&taglock.address, target);
        assert_eq!(answer.status, 307);
        assert_eq!(answer.header("Location"), Some(expected.as_str()));
    }
}

#[test]
fn the_namespace_of_a_mirrors_client_is_passed_on_with_writes_too() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "namespace = \"docker.io\"", RULES);
    let target = "/v2/prod/app/manifests/v1?ns=docker.io";
    let headers = [("Content-Type", INDEX)];
    assert_eq!(request(&taglock.address, "PUT", target, &headers, &manifest("one")).status, 201);
    let bad = "/v2/prod/app/manifests/v1?ns=docker.io&tag=x";
    assert_eq!(request(&taglock.address, "PUT", bad, &headers, &manifest("two")).status, 400);
}

/// Streamed or judged: what the registry is told of the client is taglock's word, and the rest
/// is the client's, repeated headers repeated.
#[test]
fn the_registry_is_told_who_asks_and_every_header_of_the_client() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let fake = Fake::start();
    let taglock = Taglock::before(&fake.address);
    let headers = [
        ("Host", "registry.example.com"),
        ("X-Request-Id", "ci-4711"),
        ("Traceparent", TRACE),
        ("Accept", "a/b"),
        ("Accept", "c/d"),
        ("User-Agent", "docker/28"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Prefix", "/evil"),
        ("Forwarded", "host=evil.example"),
        ("X-Original-URL", "/v2/prod/app/manifests/v1"),
        ("Content-Type", INDEX),
    ];
    for (method, target) in [
        ("GET", "/v2/other/tags/list"),
        ("PUT", "/v2/other/manifests/v1"),
        ("PUT", "/v2/prod/app/manifests/v1"),
    ] {
        let body = if method == "PUT" { manifest("one") } else { Vec::new() };
        request(&taglock.address, method, target, &headers, &body);
        let sent = fake.last_headers();
        for expected in [
            format!("host: {}", fake.address).as_str(),
            "x-request-id: ci-4711",
            format!("traceparent: {TRACE}").as_str(),
            "accept: a/b",
            "accept: c/d",
            "user-agent: docker/28",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: registry.example.com",
            "x-forwarded-proto: http",
        ] {
            assert!(sent.iter().any(|h| h == expected), "{method} {target}: {expected}: {sent:?}");
        }
        assert!(!sent.iter().any(|h| h.contains("evil") || h.contains("original")), "{sent:?}");
    }
}

/// Answers of a registry that names itself in other fields than `Location`.
#[test]
fn fields_that_name_the_registry_name_the_proxy_on_every_route() {
    let fake = Fake::start();
    let own = &fake.address;
    let (host, port) = own.split_once(':').unwrap();
    let headers = |status: u16| {
        let texts = [
            ("link", format!("<HTTP://{own}/v2/a?last=b>; rel=\"next\", </v2/a>; rel=first")),
            ("link", format!("<//{own}/v2/a>; rel=self; title=\"<http://{own}/>\"")),
            // With the date, no more than are relayed without pingora.
            ("location", format!("http://{own}/v2/a")),
            ("content-location", format!("http://{own}/v2/a")),
            ("refresh", format!("5; url=http://{own}/v2/a")),
            ("alt-svc", format!("h2=\"{host}:{port}\"")),
            (
                "www-authenticate",
                format!(
                    "Basic realm=\"x\", Bearer realm=\"http://{own}/t\",service=\"http://{own}\""
                ),
            ),
        ];
        Fault::Answer(status, texts.to_vec(), "{\"name\":\"x\",\"tags\":[]}")
    };
    for fast in [true, false] {
        let taglock = Taglock::with(own, &format!("fast_path = {fast}"), RULES);
        let proxy = format!("http://{}", taglock.address);
        let expected = [
            ("link", format!("<{proxy}/v2/a?last=b>; rel=\"next\", </v2/a>; rel=first")),
            ("link", format!("<{proxy}/v2/a>; rel=self; title=\"<http://{own}/>\"")),
            ("location", format!("{proxy}/v2/a")),
            ("content-location", format!("{proxy}/v2/a")),
            ("refresh", format!("5; url={proxy}/v2/a")),
            (
                "www-authenticate",
                format!("Basic realm=\"x\", Bearer realm=\"{proxy}/t\",service=\"http://{own}\""),
            ),
        ];
        let blob = format!("/v2/other/app/blobs/{}", digest(b"blob"));
        for (method, target, status) in [
            ("GET", "/v2/other/app/tags/list", 200),
            ("HEAD", "/v2/other/app/tags/list", 200),
            ("GET", "/v2/_catalog", 200),
            ("GET", "/v2/other/app/referrers/sha256:0", 200),
            ("GET", "/v2/other/app/manifests/v1", 200),
            ("HEAD", "/v2/other/app/manifests/v1", 200),
            ("GET", &blob, 200),
            ("HEAD", &blob, 200),
            ("DELETE", "/v2/other/app/manifests/v1", 202),
            ("POST", "/v2/other/app/blobs/uploads/", 202),
            ("GET", "/v2/prod/app/tags/list", 200),
            // By taglock's own requests.
            ("GET", "/v2/prod/app/manifests/v1", 403),
            ("PUT", "/v2/prod/app/manifests/v1", 403),
        ] {
            fake.plan("GET", "", headers(status), 1);
            for other in ["HEAD", "PUT", "POST", "DELETE"] {
                fake.plan(other, "", headers(status), 1);
            }
            let body = if method == "PUT" { manifest("one") } else { vec![] };
            let answer = request(&taglock.address, method, target, &[("Content-Type", OCI)], &body);
            fake.recover();
            assert_eq!(answer.status, status, "{fast} {method} {target} {answer:?}");
            let mut found: Vec<_> = answer.headers.iter().collect();
            found.retain(|(name, _)| {
                name.eq_ignore_ascii_case("alt-svc")
                    || expected.iter().any(|(known, _)| name.eq_ignore_ascii_case(known))
            });
            let lower = |(name, value): &&(String, String)| (name.to_lowercase(), value.clone());
            let mut found: Vec<_> = found.iter().map(lower).collect();
            let mut wanted: Vec<_> =
                expected.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            // The order of values of one name counts, that of names does not.
            found.sort_by(|a, b| a.0.cmp(&b.0));
            wanted.sort_by(|a, b| a.0.cmp(&b.0));
            assert_eq!(found, wanted, "{fast} {method} {target}");
        }
    }
}

#[test]
fn a_registry_that_names_itself_with_another_port_is_told_of_once() {
    let fake = Fake::start();
    let taglock = Taglock::before(&fake.address);
    let other = "http://127.0.0.1:1/v2/other/app/tags/list?last=b";
    for (name, value) in
        [("location", other.to_owned()), ("link", format!("<{other}>; rel=\"next\""))]
    {
        fake.plan("GET", "", Fault::Answer(200, vec![(name, value.clone())], "{}"), 1);
        let answer = http::get(&taglock.address, "/v2/other/app/tags/list");
        assert_eq!(answer.header(name), Some(value.as_str()));
    }
    let log = taglock.process.log();
    assert_eq!(log.matches("the registry names itself as `127.0.0.1:1`").count(), 1, "{log}");
}
