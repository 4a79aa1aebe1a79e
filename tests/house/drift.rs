//! Tags that were moved in the registry itself are noticed, told, and, where wanted, put back.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use base64::prelude::*;

use crate::fake::Fake;
use crate::harness::*;
use crate::http::{Answer, request};
use crate::token_server::TokenServer;

const OFTEN: &str = "[drift]\ninterval = \"200ms\"\n";
const WARNING: &str = "299 - \"the registry's own tag differs from the ledger\"";

fn pull(address: &str, tag: &str) -> Answer {
    pull_as(address, tag, &[])
}

fn pull_as(address: &str, tag: &str, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("Accept", INDEX)], headers].concat();
    request(address, "GET", &format!("/v2/prod/app/manifests/{tag}"), &headers, b"")
}

fn known(taglock: &Taglock) -> f64 {
    taglock.metric("taglock_drifted_tags ")
}

fn changes(taglock: &Taglock, change: &str) -> f64 {
    taglock.metric(&format!("taglock_drift_total{{change=\"{change}\"}} "))
}

/// Pulls until the registry's tag is known to be what is expected, or not to be.
fn until_warned(taglock: &Taglock, tag: &str, warned: bool) {
    eventually("the look at the registry", || {
        let answer = pull(&taglock.address, tag);
        assert_eq!((answer.status, &answer.body), (200, &manifest("one")), "{answer:?}");
        answer.header("Warning").map(|w| assert_eq!(w, WARNING)).is_some() == warned
    });
}

#[test]
fn a_tag_moved_or_deleted_behind_taglock_is_told_once_and_never_adopted() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &format!("{OFTEN}{RULES}"));
    for tag in ["v1", "v2"] {
        assert_eq!(put(&taglock.address, "prod/app", tag, &manifest("one")).status, 201);
    }
    until_warned(&taglock, "v1", false);
    put(&registry.address, "prod/app", "v1", &manifest("two"));
    until_warned(&taglock, "v1", true);
    assert_eq!((known(&taglock), changes(&taglock, "moved")), (1.0, 1.0));
    until_warned(&taglock, "v2", false);
    // Deleting the strange image takes the tag away with it.
    let target = format!("/v2/prod/app/manifests/{}", digest(&manifest("two")));
    assert_eq!(request(&registry.address, "DELETE", &target, &[], b"").status, 202);
    eventually("the loss to be seen", || {
        pull(&taglock.address, "v1");
        changes(&taglock, "gone") > 0.0
    });
    until_warned(&taglock, "v1", true);
    // Pushing the bound image heals it, and that is known at once.
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    assert_eq!((known(&taglock), changes(&taglock, "healed")), (0.0, 1.0));
    assert_eq!(pull(&taglock.address, "v1").header("Warning"), None);
    let log = taglock.process.log();
    let told = log.lines().filter(|l| l.contains("the registry's own tag differs from the ledger"));
    assert_eq!(told.count(), 2, "once for each change: {log}");
}

#[test]
fn a_refused_push_notices_what_it_has_seen_anyway() {
    let fake = Fake::start();
    let quiet = "[drift]\nwatch = true\ninterval = \"1h\"\n";
    let taglock = Taglock::with(&fake.address, "", &format!("{quiet}{RULES}"));
    assert_eq!(put(&taglock.address, "all/app", "v1", &manifest("one")).status, 201);
    put(&fake.address, "all/app", "v1", &manifest("two"));
    let before = fake.seen().len();
    assert_eq!(put(&taglock.address, "all/app", "v1", &manifest("three")).status, 409);
    assert_eq!(fake.seen().len() - before, 1, "without another request");
    assert_eq!(known(&taglock), 1.0);
}

#[test]
fn looks_are_few_and_can_be_turned_off() {
    let fake = Fake::start();
    for (settings, expected) in
        [("[drift]\ninterval = \"1h\"\n", 1), ("[drift]\nwatch = false\n", 0)]
    {
        let taglock = Taglock::with(&fake.address, "", &format!("{settings}{RULES}"));
        assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
        let looks = || fake.count("HEAD", "/prod/app/manifests/v1");
        let before = looks();
        for _ in 0..20 {
            assert_eq!(pull(&taglock.address, "v1").status, 200);
        }
        if expected > 0 {
            eventually("the look", || looks() - before >= expected);
        }
        assert_eq!(looks() - before, expected, "{settings}");
    }
}

fn basic(account: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(account))
}

/// A taglock with an account of its own, which puts moved tags back.
fn repairing(registry: &Registry, account: &str) -> (Taglock, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("account");
    std::fs::write(&file, format!("{account}\n")).unwrap();
    // Otherwise a warning says that it holds a secret.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let upstream = format!("credentials_file = {file:?}");
    let tables = format!("{OFTEN}repair = true\n{RULES}");
    (Taglock::with(&registry.address, &upstream, &tables), folder)
}

/// The tag is moved by somebody who may; a pull by somebody who may only pull has it put back.
fn is_repaired(registry: &Registry, taglock: &Taglock, writer: &str, reader: &str) {
    let push = |address: &str, seed: &str| {
        let headers = [("Content-Type", INDEX), ("Authorization", writer)];
        request(address, "PUT", "/v2/prod/app/manifests/v1", &headers, &manifest(seed)).status
    };
    let accept = format!("{OCI}, {INDEX}");
    let there = || {
        let headers = [("Authorization", writer), ("Accept", accept.as_str())];
        let ask = || request(&registry.address, "GET", "/v2/prod/app/manifests/v1", &headers, b"");
        let mut answer = ask();
        // distribution answers 500 where it meets a tag that is being written.
        eventually("an answer", || {
            if answer.status == 500 {
                answer = ask();
            }
            answer.status != 500
        });
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    assert_eq!(push(&taglock.address, "one"), 201);
    for seed in ["two", "three"] {
        assert_eq!(push(&registry.address, seed), 201);
        assert_eq!(there(), manifest(seed));
        eventually("the repair", || {
            let answer = pull_as(&taglock.address, "v1", &[("Authorization", reader)]);
            assert_eq!((answer.status, &answer.body), (200, &manifest("one")), "{answer:?}");
            there() == manifest("one")
        });
    }
    eventually("the account of it", || changes(taglock, "healed") == 2.0);
    assert_eq!(known(taglock), 0.0);
    let log = taglock.process.log();
    assert!(log.contains("a moved tag was repaired"), "{log}");
    for secret in ["secret", &BASE64_STANDARD.encode("keeper:secret"), "Bearer ", "eyJ"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_moved_tag_is_put_back_with_a_password() {
    let registry =
        Registry::prepared("auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }", |dir| {
            let file = dir.join("htpasswd");
            for (flags, user) in [("-Bbc", "keeper"), ("-Bb", "alice"), ("-Bb", "bob")] {
                succeed(Command::new("htpasswd").arg(flags).arg(&file).args([user, "secret"]));
            }
        });
    let (taglock, _folder) = repairing(&registry, "keeper:secret");
    is_repaired(&registry, &taglock, &basic("alice:secret"), &basic("bob:secret"));
}

#[test]
fn a_moved_tag_is_put_back_with_tokens() {
    let server = TokenServer::start();
    let realm = format!("http://{}/token", server.address);
    let settings = TokenServer::registry_settings(&realm);
    let registry = Registry::prepared(&settings, |dir| server.write_certificate(dir));
    let (taglock, _folder) = repairing(&registry, "keeper:secret");
    let token = |account: &str, actions: &str| {
        let target = format!("/token?service=house&scope=repository%3Aprod%2Fapp%3A{actions}");
        let answer =
            request(&server.address, "GET", &target, &[("Authorization", &basic(account))], b"");
        let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        format!("Bearer {}", document["token"].as_str().unwrap())
    };
    let (writer, reader) = (token("alice:secret", "pull%2Cpush"), token("bob:secret", "pull"));
    let before = server.grants("keeper");
    is_repaired(&registry, &taglock, &writer, &reader);
    // One to look and to fetch, one to write: they are kept until they expire.
    assert_eq!(server.grants("keeper") - before, 2);
}

#[test]
fn an_account_that_may_not_write_repairs_nothing_and_says_so() {
    let server = TokenServer::start();
    let realm = format!("http://{}/token", server.address);
    let settings = TokenServer::registry_settings(&realm);
    let registry = Registry::prepared(&settings, |dir| server.write_certificate(dir));
    let (taglock, _folder) = repairing(&registry, "bob:secret");
    let target = "/token?service=house&scope=repository%3Aprod%2Fapp%3Apull%2Cpush";
    let authorization = basic("alice:secret");
    let answer = request(&server.address, "GET", target, &[("Authorization", &authorization)], b"");
    let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let alice = format!("Bearer {}", document["token"].as_str().unwrap());
    for (address, seed) in [(&taglock.address, "one"), (&registry.address, "two")] {
        let headers = [("Content-Type", INDEX), ("Authorization", alice.as_str())];
        let target = "/v2/prod/app/manifests/v1";
        assert_eq!(request(address, "PUT", target, &headers, &manifest(seed)).status, 201);
    }
    eventually("the attempt", || {
        let answer = pull_as(&taglock.address, "v1", &[("Authorization", &alice)]);
        assert_eq!((answer.status, &answer.body), (200, &manifest("one")), "{answer:?}");
        taglock.process.log().contains("a tag could not be repaired")
    });
    assert_eq!(known(&taglock), 1.0);
}
