//! What a rule may say besides "immutable": where mutable tags may move to, and that it is not
//! enforced yet.

use std::fs;
use std::process::Command;

use crate::auth::{basic, with_tokens};
use crate::clients::Images;
use crate::deletes::redis;
use crate::fake::Fake;
use crate::harness::*;
use crate::http::{self, Answer, request};

const ANCHORED: &str = r#"
[[rule]]
name = "releases"
repositories = "prod/**"
mutability = "immutable"
except = ["latest", "stable"]
except_must_be_bound = true
delete = "keep"
"#;

const TRIAL: &str = r#"
[[rule]]
name = "trial"
repositories = "prod/**"
mutability = "immutable"
except = ["latest", "dev-*"]
enforce = false
"#;

fn set(address: &str, bytes: &[u8], tags: &str) -> Answer {
    let target = format!("/v2/prod/app/manifests/{}?{tags}", digest(bytes));
    request(address, "PUT", &target, &[("Content-Type", INDEX)], bytes)
}

fn delete(address: &str, repository: &str, reference: &str) -> Answer {
    request(address, "DELETE", &format!("/v2/{repository}/manifests/{reference}"), &[], b"")
}

fn unbound(answer: &Answer, tag: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (409, "DENIED"), "{}", answer.text());
    assert_eq!(
        answer.message(),
        format!(
            "The tag '{tag}' of 'prod/app' may only move to an image that a protected tag is bound \
             to; push it under such a tag first."
        )
    );
}

#[test]
fn a_mutable_tag_may_move_only_to_what_a_protected_tag_is_bound_to() {
    let registry = Registry::start();
    put(&registry.address, "prod/app", "0.9", &manifest("old"));
    let taglock = Taglock::with(&registry.address, "", ANCHORED);
    let address = &taglock.address;
    let push = |tag: &str, seed: &str| put(address, "prod/app", tag, &manifest(seed));
    let latest = || tag_of(&registry.address, "prod/app", "latest");
    let is = |seed: &str| Some(digest(&manifest(seed)));

    // Nothing is there: the registry takes the manifest, so this client may push, and is told.
    unbound(&push("latest", "one"), "latest");
    assert_eq!(latest(), None);
    assert_eq!(push("1.0", "one").status, 201);
    assert_eq!(push("latest", "one").status, 201);
    assert_eq!(latest(), is("one"));
    // What another mutable tag has does not count.
    unbound(&push("latest", "two"), "latest");
    unbound(&push("stable", "two"), "stable");
    assert_eq!(latest(), is("one"));
    // A tag from before taglock does, and back it goes as well.
    assert_eq!(push("latest", "old").status, 201);
    assert_eq!(latest(), is("old"));
    assert_eq!(push("latest", "one").status, 201);
    assert!(taglock.process.log().contains("no protected tag is bound to it"));

    // A set: the protected tag first, then the mutable one may.
    assert_eq!(set(address, &manifest("two"), "tag=latest&tag=1.1").status, 201);
    assert_eq!(latest(), is("two"));
    let refused = set(address, &manifest("three"), "tag=latest&tag=1.1");
    assert!(refused.message().contains("'1.1' already exists"), "{}", refused.text());
    unbound(&set(address, &manifest("three"), "tag=latest&tag=stable"), "latest");
    assert_eq!(latest(), is("two"));
    assert_eq!(tag_of(&registry.address, "prod/app", "stable"), None);
    // Signatures and pushes by digest alone are free.
    let signature = format!("sha256-{}.sig", "ab".repeat(32));
    assert_eq!(push(&signature, "signature").status, 201);
    assert_eq!(push(&digest(&manifest("four")), "four").status, 201);

    // An image that was deleted is no release any more.
    assert_eq!(delete(address, "prod/app", &digest(&manifest("one"))).status, 202);
    unbound(&push("latest", "one"), "latest");
    assert_eq!(push("1.0", "one").status, 201);
    assert_eq!(push("latest", "one").status, 201);
}

#[test]
fn the_registry_decides_first_who_hears_of_a_mutable_tags_rule() {
    let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
    let taglock = Taglock::with(&registry.address, "", ANCHORED);
    let token = |account: Option<&str>, actions: &str| {
        let authorization = account.map(basic);
        let headers: Vec<_> =
            authorization.as_deref().map(|value| ("Authorization", value)).into_iter().collect();
        let target = format!("/token?service=house&scope=repository:prod/app:{actions}");
        let answer = request(&server.address, "GET", &target, &headers, b"");
        let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        format!("Bearer {}", document["token"].as_str().unwrap())
    };
    let push = |authorization: &str, tag: &str, seed: &str| {
        let target = format!("/v2/prod/app/manifests/{tag}");
        let headers = [("Content-Type", INDEX), ("Authorization", authorization)];
        request(&taglock.address, "PUT", &target, &headers, &manifest(seed))
    };
    let alice = token(Some("alice:secret"), "pull,push");
    let bob = token(Some("bob:secret"), "pull,push");
    let nobody = token(None, "pull,push");
    for who in [&bob, &nobody] {
        assert_eq!(push(who, "latest", "one").status, 401, "there is no tag to look at");
    }
    unbound(&push(&alice, "latest", "one"), "latest");
    assert_eq!(push(&alice, "1.0", "one").status, 201);
    assert_eq!(push(&alice, "latest", "one").status, 201);
    // Who may not push learns nothing, and moves nothing.
    for seed in ["one", "two"] {
        for who in [&nobody, &bob] {
            let answer = push(who, "latest", seed);
            assert_eq!(answer.status, 401, "{}", answer.text());
        }
    }
}

fn with_redis(registry: &Registry, rules: &str) -> (Process, Taglock) {
    let (redis, address) = redis();
    let url = format!("http://{}", registry.address);
    let taglock = Taglock::from_file(|listen, admin, _| {
        format!(
            "[listen]\naddress = \"{listen}\"\n[upstream]\nurl = \"{url}\"\n[ledger]\n\
             store = \"redis\"\nurl = \"redis://{address}\"\n[admin]\naddress = \"{admin}\"\n{rules}"
        )
    });
    (redis, taglock)
}

#[test]
fn with_the_ledger_down_such_a_tag_does_not_move() {
    let registry = Registry::start();
    let (mut redis, taglock) = with_redis(&registry, ANCHORED);
    assert_eq!(put(&taglock.address, "prod/app", "1.0", &manifest("one")).status, 201);
    redis.signal("-KILL");
    redis.wait_for_end();
    let answer = put(&taglock.address, "prod/app", "latest", &manifest("one"));
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("5")), "{answer:?}");
    assert_eq!(tag_of(&registry.address, "prod/app", "latest"), None);
}

fn warned(answer: &Answer, text: &str) {
    let warning = answer.header("Warning").unwrap_or_else(|| panic!("no warning: {answer:?}"));
    assert!(warning.starts_with("299 - \"taglock would have refused this: "), "{warning}");
    assert!(warning.contains(text) && warning.ends_with('"'), "{warning}");
}

fn dry_refusals(taglock: &Taglock, reason: &str) -> f64 {
    taglock.metric(&format!("taglock_dry_run_refusals_total{{reason=\"{reason}\"}} "))
}

#[test]
fn a_rule_that_is_not_enforced_refuses_nothing_and_says_what_it_would_have() {
    let registry = Registry::start();
    let twin = Registry::start();
    let taglock = Taglock::with(&registry.address, "", TRIAL);
    let address = &taglock.address;
    let push = |tag: &str, seed: &str| put(address, "prod/app", tag, &manifest(seed));
    // A new tag, the same again, and a mutable one: the registry's own answer, and no more.
    for (tag, seed) in [("v1", "one"), ("v1", "one"), ("latest", "one"), ("latest", "two")] {
        let answer = push(tag, seed);
        let own = put(&twin.address, "prod/app", tag, &manifest(seed));
        let plain = |answer: &Answer, address: &str| {
            let (status, mut headers, text) = answer.comparable();
            let location = headers.get_mut("location").unwrap();
            location[0] = location[0].replace(address, "");
            (status, headers, text)
        };
        assert_eq!(plain(&answer, address), plain(&own, &twin.address));
    }
    // Another image: it moves, as it would without taglock.
    let moved = push("v1", "two");
    assert_eq!(moved.status, 201, "{}", moved.text());
    warned(&moved, "The image tag 'v1' already exists in the 'prod/app' repository");
    warned(&moved, &format!("It is bound to {}", digest(&manifest("one"))));
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&manifest("two"))));
    // This registry ignores the query; taglock would have published the tag, and so refused it.
    warned(&set(address, &manifest("three"), "tag=v1"), "'v1'");
    assert_eq!(dry_refusals(&taglock, "immutable"), 2.0);
    let log = taglock.process.log();
    assert!(log.contains("outcome=\"dry-run\"") && log.contains("rule=\"trial\""), "{log}");

    // Deletes: of a blob, of what only a mutable tag has, and of what an immutable one has.
    put(&registry.address, "prod/app", "v2", &manifest("v2"));
    put(&registry.address, "prod/app", "dev-1", &manifest("dev"));
    let answer = delete(address, "prod/app", &digest(&manifest("dev")));
    assert_eq!((answer.status, answer.header("Warning")), (202, None));
    let answer = delete(address, "prod/app", &digest(&manifest("v2")));
    assert_eq!(answer.status, 202);
    warned(&answer, "the tag 'v2' of the 'prod/app' repository is immutable");
    assert_eq!(dry_refusals(&taglock, "delete"), 1.0);
    assert_eq!(taglock.metric("taglock_refusals_total{reason=\"immutable\"} "), 0.0);
    // What the registry refuses is its own affair.
    let answer = delete(address, "prod/app", &digest(&manifest("v2")));
    assert_eq!((answer.status, answer.header("Warning")), (404, None));

    // Nothing was bound: enforced from now on, the tags are where they are.
    let file = taglock.folder.path().join("taglock.toml");
    let text = fs::read_to_string(&file).unwrap().replace("enforce = false", "");
    fs::write(&file, text).unwrap();
    let mut taglock = taglock;
    taglock.restart();
    let refused = put(&taglock.address, "prod/app", "v1", &manifest("one"));
    assert!(refused.message().contains(&digest(&manifest("two"))), "{}", refused.text());
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("new")).status, 201);
}

#[test]
fn a_rule_that_is_suspended_for_a_while_finds_tags_where_pushes_put_them() {
    let registry = Registry::start();
    let rules = TRIAL.replace("enforce = false", "enforce = true");
    let mut taglock = Taglock::with(&registry.address, "", &rules);
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    put(&taglock.address, "prod/app", "v2", &manifest("one"));
    let enforce = |taglock: &mut Taglock, to: &str| {
        let file = taglock.folder.path().join("taglock.toml");
        let text = fs::read_to_string(&file).unwrap();
        let from = if to == "true" { "enforce = false" } else { "enforce = true" };
        fs::write(&file, text.replace(from, &format!("enforce = {to}"))).unwrap();
        taglock.restart();
    };
    enforce(&mut taglock, "false");
    // Its own image keeps the entry, another one takes its place.
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("one")).header("Warning"), None);
    warned(&put(&taglock.address, "prod/app", "v1", &manifest("two")), "'v1'");
    assert!(taglock.process.log().contains("outcome=\"superseded\""));
    enforce(&mut taglock, "true");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 409);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 201);
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("two")).status, 409);
}

#[test]
fn a_dry_run_tells_of_manifests_and_mutable_tags_too() {
    let fake = Fake::start();
    let rules =
        ANCHORED.replace("delete = \"keep\"", "enforce = false").replace("prod/**", "all/**");
    let taglock =
        Taglock::with(&fake.address, "", &format!("[limits]\nmanifest = \"64KiB\"\n{rules}"));
    let address = &taglock.address;
    let push = |tag: &str, media_type: &str, bytes: &[u8]| {
        let target = format!("/v2/all/app/manifests/{tag}");
        let answer = request(address, "PUT", &target, &[("Content-Type", media_type)], bytes);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer
    };
    warned(&push("v1", "application/json", b"{}"), "this media type");
    warned(&push("v2", INDEX, &[b' '; 70_000]), "larger than 65536 bytes");
    assert_eq!(fake.tag("all/app", "v2"), Some(digest(&[b' '; 70_000])), "all of it arrived");
    let one = manifest("one");
    warned(&push("latest", INDEX, &one), "may only move to an image that a protected tag");
    assert_eq!(push("v3", INDEX, &one).header("Warning"), None);
    assert_eq!(push("latest", INDEX, &one).header("Warning"), None);
    for reason in ["media-type", "too-large", "unbound"] {
        assert_eq!(dry_refusals(&taglock, reason), 1.0, "{reason}");
    }
    // By tag, where the registry can.
    let answer = delete(address, "all/app", "latest");
    assert_eq!((answer.status, answer.header("Warning")), (202, None));
    let answer = delete(address, "all/app", "v3");
    assert_eq!(answer.status, 202);
    warned(&answer, "the tag 'v3' of the 'all/app' repository is immutable");
    assert_eq!(fake.tag("all/app", "v3"), None);
}

#[test]
fn a_dry_run_needs_no_ledger_and_tells_strangers_nothing() {
    let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
    let (mut redis, taglock) = with_redis(&registry, TRIAL);
    redis.signal("-KILL");
    redis.wait_for_end();
    let images = Images::new();
    let push = |image: &str, creds: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false", "--dest-creds", creds]);
        command.arg(images.source(image)).arg(format!("docker://{}/prod/app:v1", taglock.address));
        command
    };
    succeed(&mut push("one", "alice:secret"));
    succeed(&mut push("two", "alice:secret"));
    assert_eq!(dry_refusals(&taglock, "immutable"), 1.0);
    fail(&mut push("one", "bob:secret"));
    let target = "/v2/prod/app/manifests/v1";
    let answer =
        request(&taglock.address, "PUT", target, &[("Content-Type", INDEX)], &manifest("x"));
    assert_eq!((answer.status, answer.header("Warning")), (401, None));
    assert_eq!(http::get(&server.address, "/nothing").status, 200, "the token service is there");
    assert_eq!(dry_refusals(&taglock, "immutable"), 1.0);
}
