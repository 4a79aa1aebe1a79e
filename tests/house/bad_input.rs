//! Requests that are wrong in themselves.

use std::io::{BufReader, Write};

use crate::harness::*;
use crate::http::{self, raw, request};

fn start() -> (Registry, Taglock) {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    (registry, taglock)
}

#[test]
fn malformed_names_tags_digests_and_types_get_a_clear_error() {
    let (registry, taglock) = start();
    let one = manifest("one");
    let types = [("Content-Type", INDEX)];
    for (target, headers, status, code) in [
        ("/v2/Prod/app/manifests/v1", &types[..], 400, "NAME_INVALID"),
        ("/v2/prod//app/manifests/v1", &types, 400, "NAME_INVALID"),
        ("/v2/prod/app/manifests/.v1", &types, 400, "TAG_INVALID"),
        ("/v2/prod/app/manifests/sha256:12", &types, 400, "DIGEST_INVALID"),
        ("/v2/prod/app/manifests/v1?x=1", &types, 400, "NAME_INVALID"),
        ("/v2/prod/app/manifests/v1", &[], 415, "UNSUPPORTED"),
        ("/v2/prod/app/manifests/v1", &[("Content-Type", "application/json")], 415, "UNSUPPORTED"),
        (
            "/v2/prod/app/manifests/v1",
            &[("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")],
            415,
            "UNSUPPORTED",
        ),
        (
            "/v2/prod/app/manifests/v1",
            &[("Content-Type", INDEX), ("Content-Encoding", "gzip")],
            415,
            "UNSUPPORTED",
        ),
    ] {
        let answer = request(&taglock.address, "PUT", target, headers, &one);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{target}");
    }
    // What the registry itself finds wrong is its own to say.
    let answer = request(&taglock.address, "PUT", "/v2/prod/app/manifests/v1", &types, b"{");
    assert_eq!((answer.status, answer.code().as_str()), (400, "MANIFEST_INVALID"));
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), None);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 201);
}

#[test]
fn a_manifest_over_the_limit_is_413_however_it_is_framed() {
    let (_registry, taglock) = start();
    let large = vec![b' '; (4 << 20) + 1];
    let declared = put(&taglock.address, "prod/app", "v1", &large);
    assert_eq!((declared.status, declared.code().as_str()), (413, "SIZE_INVALID"));

    let mut chunked = format!(
        "PUT /v2/prod/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for part in large.chunks(1 << 20) {
        chunked.extend(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend(part);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let answer = raw(&taglock.address, &chunked);
    assert_eq!((answer.status, answer.code().as_str()), (413, "SIZE_INVALID"));
    // In a mutable repository the limit is the registry's.
    let other = put(&taglock.address, "other", "v1", &large);
    assert_ne!(other.code(), "SIZE_INVALID");
}

#[test]
fn a_chunked_manifest_is_hashed_whole_and_sent_with_its_length() {
    let (registry, taglock) = start();
    let one = manifest("chunked");
    let mut bytes = format!(
        "PUT /v2/prod/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for part in one.chunks(7) {
        bytes.extend(format!("{:x};ext=1\r\n", part.len()).as_bytes());
        bytes.extend(part);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    let answer = raw(&taglock.address, &bytes);
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&one)));
}

#[test]
fn a_client_that_expects_to_be_told_to_go_on_is_told() {
    let (_registry, taglock) = start();
    for (repository, tag) in [("prod/app", "v1"), ("other", "v1")] {
        let one = manifest("one");
        let mut stream = http::connect(&taglock.address).unwrap();
        let head = format!(
            "PUT /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            one.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
        std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
        stream.write_all(&one).unwrap();
        assert_eq!(http::read_answer(&mut reader, false).unwrap().status, 201, "{repository}");
    }
}

#[test]
fn framing_with_two_readings_is_refused_before_anything_is_sent() {
    let (registry, taglock) = start();
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    let two = String::from_utf8(manifest("two")).unwrap();
    let length = two.len();
    let line = "PUT /v2/prod/app/manifests/v1 HTTP/1.1\r\n";
    let kind = format!("Content-Type: {INDEX}\r\n");
    for (name, header) in [
        (
            "both lengths",
            format!(
                "{line}Host: x\r\n{kind}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
        ),
        (
            "two lengths",
            format!(
                "{line}Host: x\r\n{kind}Content-Length: {length}\r\nContent-Length: {length}\r\n\r\n"
            ),
        ),
        (
            "other lengths",
            format!("{line}Host: x\r\n{kind}Content-Length: {length}\r\nContent-Length: 1\r\n\r\n"),
        ),
        ("coding", format!("{line}Host: x\r\n{kind}Transfer-Encoding: gzip, chunked\r\n\r\n")),
        (
            "upgrade",
            format!(
                "{line}Host: x\r\n{kind}Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: {length}\r\n\r\n"
            ),
        ),
        ("bare line feed", format!("{line}Host: x\n{kind}Content-Length: {length}\r\n\r\n")),
        ("no host", format!("{line}{kind}Content-Length: {length}\r\n\r\n")),
        (
            "two hosts",
            format!("{line}Host: x\r\nHost: y\r\n{kind}Content-Length: {length}\r\n\r\n"),
        ),
        (
            "folded",
            format!("{line}Host: x\r\nX: a\r\n b\r\n{kind}Content-Length: {length}\r\n\r\n"),
        ),
        (
            "absolute",
            format!(
                "PUT http://x/v2/prod/app/manifests/v1 HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {length}\r\n\r\n"
            ),
        ),
        (
            "fragment",
            format!(
                "PUT /v2/prod/app/manifests/v1#y HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {length}\r\n\r\n"
            ),
        ),
        (
            "space",
            format!(
                "PUT /v2/prod/app/manifests/v1 x HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {length}\r\n\r\n"
            ),
        ),
    ] {
        let answer = raw(&taglock.address, format!("{header}{two}").as_bytes());
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&manifest("one"))));
    }
    let connect =
        raw(&taglock.address, b"CONNECT registry:5000 HTTP/1.1\r\nHost: registry:5000\r\n\r\n");
    assert_eq!(connect.status, 405);
    let long = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(70_000));
    assert_eq!(raw(&taglock.address, long.as_bytes()).status, 431);
}

#[test]
fn an_override_of_the_method_is_not_passed_on() {
    let (registry, taglock) = start();
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    let headers = [("Content-Type", INDEX), ("X-HTTP-Method-Override", "PUT")];
    let target = "/v2/prod/app/manifests/v1";
    let answer = request(&taglock.address, "POST", target, &headers, &manifest("two"));
    assert_eq!(answer.status, 405);
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&manifest("one"))));
}

#[test]
fn a_body_that_is_no_body_is_a_bad_request_and_is_told_even_after_go_on() {
    let (registry, taglock) = start();
    for chunk in ["0x5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\n"]
    {
        let head = format!(
            "PUT /v2/prod/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{chunk}"
        );
        let answer = raw(&taglock.address, head.as_bytes());
        assert_eq!((answer.status, answer.code().as_str()), (400, "UNSUPPORTED"), "{chunk:?}");
    }
    // Too large, told so after "100 Continue".
    let mut stream = http::connect(&taglock.address).unwrap();
    let head = format!(
        "PUT /v2/prod/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Type: {INDEX}\r\n\
         Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let part = vec![b' '; 1 << 20];
    for _ in 0..6 {
        stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).unwrap();
        stream.write_all(&part).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    let answer = http::read_answer(&mut BufReader::new(stream), false).unwrap();
    assert_eq!(answer.status, 413);
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), None);
}
