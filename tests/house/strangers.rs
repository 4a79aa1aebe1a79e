//! What a client that the registry does not let in is told, and what the registry is asked for it: the
//! same, whatever the ledger holds of a tag.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::auth::basic;
use crate::bypass::{Field, Outcome, Request, exchange};
use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{self, request};

/// Of each the ledger holds something else. All names have the length of `unknown`.
const STATES: [&str; 4] = ["bound00", "moved00", "pending", "gone000"];

const KEEP: &str = r#"
[[rule]]
name = "releases"
repositories = "prod/**"
mutability = "immutable"
delete = "keep"
"#;

/// A kept connection, and answers byte for byte.
struct Line {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Line {
    fn to(address: &str) -> Self {
        let stream = http::connect(address).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    /// The answer, but for its date and the request's id, with `NAME` for this tag or digest.
    fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        name: &str,
    ) -> String {
        self.stream.write_all(&http::bytes("x", method, target, headers, body)).unwrap();
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            assert!(!line.is_empty(), "{method} {target}: no answer");
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            assert!(!lower.starts_with("transfer-encoding:"), "{method} {target}: {line}");
            if !lower.starts_with("date:") && !lower.starts_with("x-request-id:") {
                head += &line;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
        self.reader.read_exact(&mut body).unwrap();
        (head + &String::from_utf8_lossy(&body)).replace(name, "NAME")
    }
}

type Try = (&'static str, String, Vec<u8>);

fn at(reference: &str) -> String {
    format!("/v2/prod/app/manifests/{reference}")
}

/// What a stranger tries with a tag: pulls, pushes of the bound image and of another, a delete.
fn of_a_tag(tag: &str) -> Vec<Try> {
    let (bound, other) = (manifest("one"), manifest("other"));
    let set = format!("{}?tag={tag}", at(&digest(&bound)));
    vec![
        ("GET", at(tag), Vec::new()),
        ("HEAD", at(tag), Vec::new()),
        ("PUT", at(tag), bound.clone()),
        ("PUT", at(tag), other),
        ("PUT", set, bound),
        ("DELETE", at(tag), Vec::new()),
    ]
}

/// And with an image.
fn of_a_digest(digest: &str) -> Vec<Try> {
    ["GET", "HEAD", "DELETE"].map(|method| (method, at(digest), Vec::new())).to_vec()
}

struct Place<'a> {
    taglock: &'a Taglock,
    /// The requests of strangers that the registry got so far.
    asked: &'a dyn Fn() -> Vec<String>,
    alice: String,
    /// Whether only the number of those requests must be the same.
    by_number: bool,
}

impl Place<'_> {
    /// A stranger's answers about a name, and what the registry was asked for each.
    fn answers(&self, tries: &[Try], name: &str, after_alice: bool) -> Vec<(String, Vec<String>)> {
        let answer = |(method, target, body): &Try| {
            let mut line = Line::to(&self.taglock.address);
            if after_alice {
                let own = [
                    ("Authorization", self.alice.as_str()),
                    ("Content-Type", INDEX),
                    ("Accept", INDEX),
                ];
                let mine = "/v2/prod/app/manifests/bound00";
                let pulled = line.ask("GET", mine, &own, b"", "bound00");
                assert!(pulled.starts_with("HTTP/1.1 200 "), "{pulled}");
                let pushed = line.ask("PUT", mine, &own, &manifest("one"), "bound00");
                assert!(pushed.starts_with("HTTP/1.1 201 "), "{pushed}");
            }
            let before = (self.asked)().len();
            let headers = [("Content-Type", INDEX), ("Accept", INDEX)];
            let answer = line.ask(method, target, &headers, body, name);
            self.taglock.rests();
            let asked = (self.asked)().split_off(before);
            (answer, asked.iter().map(|line| self.named(line, name)).collect())
        };
        tries.iter().map(answer).collect()
    }

    /// The same over HTTP/2: status and body of the answer, and what the registry was asked.
    fn answers_over_http2(&self, tries: &[Try], name: &str) -> Vec<(u16, String, Vec<String>)> {
        let answer = |(method, target, body): &Try| {
            let fields: Vec<Field<'_>> = vec![
                (b":method", method.as_bytes()),
                (b":scheme", b"http"),
                (b":authority", b"x"),
                (b":path", target.as_bytes()),
                (b"content-type", INDEX.as_bytes()),
                (b"accept", INDEX.as_bytes()),
            ];
            let request = Request { fields, body: body.clone(), trailers: Vec::new() };
            let before = (self.asked)().len();
            let outcome = exchange(http::connect(&self.taglock.address).unwrap(), &request);
            let Outcome::Answer { status, body } = outcome else { panic!("{method} {target}") };
            self.taglock.rests();
            let asked = (self.asked)().split_off(before);
            let asked = asked.iter().map(|line| self.named(line, name)).collect();
            (status, String::from_utf8_lossy(&body).replace(name, "NAME"), asked)
        };
        tries.iter().map(answer).collect()
    }

    fn named(&self, line: &str, name: &str) -> String {
        if self.by_number { String::new() } else { line.replace(name, "NAME") }
    }

    /// All are what they are of a name that nobody has heard of.
    fn hold(&self, unknown: &str, names: &[&str], tries: impl Fn(&str) -> Vec<Try>, what: &str) {
        let over_http2 = self.answers_over_http2(&tries(unknown), unknown);
        for name in names {
            let own = self.answers_over_http2(&tries(name), name);
            assert_eq!(own, over_http2, "{what}: {name} over HTTP/2");
        }
        let unknown = self.answers(&tries(unknown), unknown, false);
        for after_alice in [false, true] {
            for name in names {
                let tries = tries(name);
                let answers = self.answers(&tries, name, after_alice);
                for (((method, target, _), own), unknown) in tries.iter().zip(answers).zip(&unknown)
                {
                    let what = format!("{what}: {method} {target}, after alice: {after_alice}");
                    assert_eq!(&own, unknown, "{what}");
                    let no = ["HTTP/1.1 401 ", "HTTP/1.1 403 ", "HTTP/1.1 404 "];
                    assert!(no.iter().any(|no| own.0.starts_with(no)), "{what}: {own:?}");
                }
            }
        }
    }

    fn hold_all(&self, states: &[&str], what: &str) {
        self.hold("unknown", states, of_a_tag, what);
        let seeds = ["one", "behind", "gone"].map(|seed| digest(&manifest(seed)));
        let unknown = digest(&manifest("nobody has it"));
        self.hold(&unknown, &seeds.each_ref().map(String::as_str), of_a_digest, what);
    }
}

fn write(address: &str, method: &str, reference: &str, authorization: &str, seed: &str) -> u16 {
    let target = format!("/v2/prod/app/manifests/{reference}");
    let headers = [("Authorization", authorization), ("Content-Type", INDEX)];
    let body = if method == "PUT" { manifest(seed) } else { Vec::new() };
    request(address, method, &target, &headers, &body).status
}

#[test]
fn distribution_tells_strangers_the_same_of_every_tag() {
    let alice = basic("alice:secret");
    for fast in ["fast_path = true", "fast_path = false"] {
        let registry = Registry::prepared(
            "auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }",
            |dir| {
                let file = dir.join("htpasswd");
                succeed(Command::new("htpasswd").arg("-Bbc").arg(file).args(["alice", "secret"]));
            },
        );
        let taglock = Taglock::with(&registry.address, fast, KEEP);
        let push = |tag, seed| assert_eq!(write(&taglock.address, "PUT", tag, &alice, seed), 201);
        push("bound00", "one");
        push("moved00", "one");
        assert_eq!(write(&registry.address, "PUT", "moved00", &alice, "behind"), 201);
        push("gone000", "gone");
        let gone = digest(&manifest("gone"));
        assert_eq!(write(&taglock.address, "DELETE", &gone, &alice, ""), 202);
        let place =
            Place { taglock: &taglock, asked: &Vec::new, alice: alice.clone(), by_number: false };
        place.hold_all(&["bound00", "moved00", "gone000"], fast);
        // Nobody's tries have bound anything.
        push("unknown", "three");
    }
}

/// A registry that names the request in its denial, and one that calls what it does not show unknown.
#[test]
fn a_registry_that_names_the_request_is_asked_the_same_for_strangers_about_every_tag() {
    for status in [401, 404] {
        for fast in ["fast_path = true", "fast_path = false", "stage = false"] {
            if fast == "stage = false" && status == 404 {
                // Nothing tells such a registry's no from a tag that is not there (decision 0029).
                continue;
            }
            let fake = Fake::start();
            let alice = basic("alice:secret");
            fake.let_in(&alice, status);
            let taglock = Taglock::with(&fake.address, fast, KEEP);
            let push = |tag: &str, seed: &str| write(&taglock.address, "PUT", tag, &alice, seed);
            assert_eq!(push("bound00", "one"), 201);
            assert_eq!(push("moved00", "one"), 201);
            let behind = manifest("behind");
            fake.place("prod/app", "moved00", &digest(&behind), (&behind, INDEX));
            assert_eq!(push("gone000", "gone"), 201);
            let gone = digest(&manifest("gone"));
            assert_eq!(write(&taglock.address, "DELETE", &gone, &alice, ""), 202);
            // Its claim is there, and what became of the write is not known.
            fake.plan("PUT", "/manifests/pending", Fault::CutBefore, 99);
            assert!(push("pending", "one") >= 500);
            fake.recover();
            let asked = || fake.of_strangers();
            // That a tag is not there may be for a narrow `Accept`: the registry is asked once more, for
            // what the tag is bound to, or for the tag.
            let by_number = status == 404;
            let place = Place { taglock: &taglock, asked: &asked, alice: alice.clone(), by_number };
            place.hold_all(&STATES, &format!("{status} {fast}"));
            // It was pending all the time.
            let rival = push("pending", "rival");
            assert!(rival == 409 || rival >= 500, "{rival}");
        }
    }
}
