//! `kind = "harbor"`: Harbor's API passes, and what sets or deletes an immutable tag there is judged.
//!
//! A stand-in for Harbor serves its routes over a real distribution; where only matters what is
//! forwarded, one behind taglock takes every request and remembers it.

mod server;

use std::thread;
use std::time::Duration;

use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{Answer, request};
use server::{ALICE, ALICE_BY_PASSWORD, BOB, EVE, Harbor, NOBODY};

const BASE: &str = "/api/v2.0/projects";
const APP: &str = "/api/v2.0/projects/prod/repositories/app";

fn rules(delete: &str) -> String {
    RULES.replace("mutability", &format!("delete = \"{delete}\"\nmutability"))
}

fn before(harbor: &Harbor, delete: &str) -> Taglock {
    Taglock::with(&harbor.address, "kind = \"harbor\"\nexchange_timeout = \"3s\"", &rules(delete))
}

/// A push as docker does it.
fn push(taglock: &Taglock, repository: &str, tag: &str, seed: &str) -> Answer {
    let target = format!("/v2/{repository}/manifests/{tag}");
    let headers = [&[("Content-Type", INDEX)], ALICE_BY_PASSWORD].concat();
    request(&taglock.address, "PUT", &target, &headers, &manifest(seed))
}

/// What a pull through taglock gives.
fn pulled(taglock: &Taglock, repository: &str, tag: &str) -> Option<String> {
    tag_with(&taglock.address, repository, tag, ALICE_BY_PASSWORD)
}

fn delete(taglock: &Taglock, path: &str, who: &[(&str, &str)]) -> Answer {
    request(&taglock.address, "DELETE", path, who, b"")
}

/// `tag` for an artifact of `prod/app`.
fn create(taglock: &Taglock, artifact: &str, tag: &str, who: &[(&str, &str)]) -> Answer {
    let headers = [&[("Content-Type", "application/json")], who].concat();
    let body = format!("{{\"name\":\"{tag}\"}}");
    let path = format!("{APP}/artifacts/{artifact}/tags");
    request(&taglock.address, "POST", &path, &headers, body.as_bytes())
}

fn seed(seed: &str) -> String {
    digest(&manifest(seed))
}

#[test]
fn a_tag_is_deleted_as_its_rule_says() {
    for rule in ["refuse", "keep", "release"] {
        let harbor = Harbor::start();
        harbor.store("prod/app", &manifest("old"), &["old", "latest"]);
        let taglock = before(&harbor, rule);
        assert_eq!(push(&taglock, "prod/app", "v1", "one").status, 201);
        assert_eq!(push(&taglock, "prod/app", "v2", "one").status, 201);
        // Who may not look, or not delete, is told so by Harbor, and nothing is marked.
        let of_one = format!("{APP}/artifacts/{}/tags", seed("one"));
        let v1 = format!("{of_one}/v1");
        for (who, status) in [(NOBODY, 401), (EVE, 403)] {
            let answer = delete(&taglock, &v1, who);
            assert_eq!(answer.status, status, "{answer:?}");
            assert!(!answer.text().contains("immutable"), "{answer:?}");
        }
        assert_eq!(delete(&taglock, &v1, BOB).status, 403);
        assert_eq!(delete(&taglock, &v1, &ALICE[..1]).status, 403, "without its token");
        assert_ne!(delete(&taglock, &format!("{of_one}/none"), ALICE).status, 200);
        let elsewhere = format!("{APP}/artifacts/{}/tags/v1", seed("old"));
        assert_ne!(delete(&taglock, &elsewhere, ALICE).status, 200, "it is no tag of that one");
        assert_eq!(pulled(&taglock, "prod/app", "v1"), Some(seed("one")));

        // A mutable tag goes in any case.
        let latest = format!("{APP}/artifacts/latest/tags/latest");
        assert_eq!(delete(&taglock, &latest, ALICE).status, 200);
        assert_eq!(harbor.tag("prod/app", "latest"), None);

        for (path, tag, who) in [
            (v1, "v1", ALICE),
            (format!("{APP}/artifacts/v2/tags/v2"), "v2", ALICE_BY_PASSWORD),
            // From before taglock.
            (format!("{APP}/artifacts/old/tags/old"), "old", ALICE),
        ] {
            let was = harbor.tag("prod/app", tag).unwrap();
            let answer = delete(&taglock, &path, who);
            if rule == "refuse" {
                assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{path}");
                let told = format!("the tag '{tag}' of the 'prod/app' repository is immutable");
                assert!(answer.message().contains(&told), "{answer:?}");
                assert_eq!(harbor.tag("prod/app", tag), Some(was));
                continue;
            }
            assert_eq!(answer.status, 200, "{rule} {path} {answer:?}");
            assert_eq!(harbor.tag("prod/app", tag), None);
            assert_eq!(pulled(&taglock, "prod/app", tag), None);
            let other = push(&taglock, "prod/app", tag, "other");
            assert_eq!(other.status, if rule == "keep" { 409 } else { 201 }, "{other:?}");
            if rule == "keep" && tag != "old" {
                assert_eq!(push(&taglock, "prod/app", tag, "one").status, 201);
                assert_eq!(pulled(&taglock, "prod/app", tag), Some(was));
            }
        }
    }
}

#[test]
fn an_artifact_takes_its_tags_along_as_their_rule_says() {
    for rule in ["refuse", "keep", "release"] {
        let harbor = Harbor::start();
        let old = harbor.store("prod/app", &manifest("old"), &["old", "latest"]);
        // What goes with another one, under a tag of its own.
        let subject = harbor.store("prod/app", &manifest("subject"), &["dev-1"]);
        let accessory = harbor.store("prod/app", &manifest("accessory"), &["report"]);
        harbor.attach(&subject, &accessory);
        let taglock = before(&harbor, rule);
        push(&taglock, "prod/app", "v1", "one");
        push(&taglock, "prod/app", "v1.0", "one");
        push(&taglock, "prod/app", "dev-2", "two");
        let one = format!("{APP}/artifacts/{}", seed("one"));
        assert_eq!(delete(&taglock, &one, NOBODY).status, 401);
        assert_eq!(delete(&taglock, &one, BOB).status, 403);
        assert_eq!(delete(&taglock, &format!("{APP}/artifacts/none"), ALICE).status, 404);
        for (artifact, tags, first) in [
            (seed("one").replace(':', "%3A"), vec!["v1", "v1.0"], "one"),
            (old, vec!["old"], "old"),
            (subject, vec!["report"], "accessory"),
        ] {
            let answer = delete(&taglock, &format!("{APP}/artifacts/{artifact}"), ALICE);
            let refused = rule == "refuse";
            assert_eq!(answer.status, if refused { 403 } else { 200 }, "{rule} {answer:?}");
            for tag in tags {
                assert_eq!(harbor.tag("prod/app", tag).is_some(), refused, "{rule} {tag}");
                let expected = refused.then(|| seed(first));
                assert_eq!(pulled(&taglock, "prod/app", tag), expected, "{rule} {tag}");
                let other = push(&taglock, "prod/app", tag, "other");
                // The second of "one" meets what the first was pushed as, and is its own.
                let expected = if rule == "release" { 201 } else { 409 };
                assert_eq!(other.status, expected, "{rule} {tag} {other:?}");
            }
        }
        // By a tag, of what no immutable tag is bound to.
        assert_eq!(delete(&taglock, &format!("{APP}/artifacts/dev-2"), ALICE).status, 200);
        assert_eq!(harbor.tag("prod/app", "dev-2"), None);
    }
}

#[test]
fn a_failed_delete_marks_nothing_it_is_not_sure_of() {
    let harbor = Harbor::start();
    let taglock = before(&harbor, "release");
    for (tag, fault, status, gone) in [
        ("a", Fault::Answer(500, vec![], ""), 502, false),
        ("b", Fault::DoneBut(500), 502, true),
        ("c", Fault::CutBefore, 502, false),
        ("d", Fault::CutAfter, 502, true),
        ("e", Fault::Answer(412, vec![], ""), 412, false),
        ("f", Fault::HangAfter, 504, true),
    ] {
        push(&taglock, "prod/app", tag, tag);
        harbor.plan("DELETE", "/tags/", fault.clone());
        let answer = delete(&taglock, &format!("{APP}/artifacts/{tag}/tags/{tag}"), ALICE);
        harbor.recover();
        assert_eq!(answer.status, status, "{tag} {answer:?}");
        assert_eq!(harbor.tag("prod/app", tag).is_none(), gone, "{tag}");
        assert_eq!(push(&taglock, "prod/app", tag, "other").status, 409, "{tag} stays bound");
        if status != 412 {
            // Whatever it is by then: a delete that is answered ends the one that was not.
            assert_eq!(push(&taglock, "prod/app", tag, tag).status, 503, "{tag}");
            let again = delete(&taglock, &format!("{APP}/artifacts/{tag}/tags/{tag}"), ALICE);
            assert!(matches!(again.status, 200 | 404), "{tag} {again:?}");
        }
        assert_eq!(push(&taglock, "prod/app", tag, tag).status, 201, "{tag}");
    }
}

#[test]
fn a_tag_is_set_as_a_push_would_set_it() {
    let harbor = Harbor::start();
    harbor.store("prod/app", &manifest("old"), &["old"]);
    let taglock = before(&harbor, "refuse");
    push(&taglock, "prod/app", "v1", "one");
    push(&taglock, "prod/app", "v2", "two");
    push(&taglock, "prod/app", "dev-1", "two");
    let (one, two) = (seed("one"), seed("two"));

    // Who may not is told so by Harbor, and nothing is bound.
    for (who, status) in [(NOBODY, 401), (EVE, 403), (BOB, 403), (&ALICE[..1], 403)] {
        let answer = create(&taglock, &one, "new", who);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!answer.text().contains("sha256"), "{answer:?}");
    }
    for (who, status) in [(NOBODY, 401), (EVE, 403)] {
        let answer = create(&taglock, &one, "v2", who);
        assert_eq!(answer.status, status);
        assert!(!answer.text().contains("sha256"), "{answer:?}");
    }
    assert_eq!(create(&taglock, &seed("none"), "new", ALICE).status, 404);
    assert_eq!(push(&taglock, "prod/app", "new", "three").status, 201, "nobody has bound it");

    // Absent: it is bound, to what the reference is at.
    assert_eq!(create(&taglock, &one, "v1.0", ALICE).status, 201);
    assert_eq!(create(&taglock, "v1", "v1.1", ALICE_BY_PASSWORD).status, 201);
    for tag in ["v1.0", "v1.1"] {
        assert_eq!(harbor.tag("prod/app", tag), Some(one.clone()));
        assert_eq!(pulled(&taglock, "prod/app", tag), Some(one.clone()));
        assert_eq!(push(&taglock, "prod/app", tag, "two").status, 409);
    }
    let audit = taglock.process.log();
    assert!(audit.contains("outcome=\"admitted\"") && audit.contains("v1.1"), "{audit}");

    // Bound to the same: it succeeds. To another, or from before taglock: refused.
    assert_eq!(create(&taglock, &one, "v1", ALICE).status, 201);
    for (tag, bound) in [("v2", &two), ("old", &seed("old"))] {
        let answer = create(&taglock, &one, tag, ALICE);
        assert_eq!((answer.status, answer.code().as_str()), (409, "DENIED"), "{answer:?}");
        let message = answer.message();
        assert!(message.contains(bound.as_str()) && message.contains(&one), "{message}");
        assert_eq!(harbor.tag("prod/app", tag).as_ref(), Some(bound));
    }

    // A tag that is gone behind taglock: the same image brings it back, no other.
    let behind = format!("{APP}/artifacts/v1.0/tags/v1.0");
    assert_eq!(request(&harbor.address, "DELETE", &behind, ALICE, b"").status, 200);
    assert_eq!(create(&taglock, &two, "v1.0", ALICE).status, 409);
    assert_eq!(create(&taglock, &one, "v1.0", ALICE).status, 201);
    assert_eq!(harbor.tag("prod/app", "v1.0"), Some(one.clone()));

    // A mutable tag is Harbor's own business.
    assert_eq!(create(&taglock, &one, "dev-2", ALICE).status, 201);
    assert_eq!(create(&taglock, &two, "dev-2", ALICE).status, 409, "Harbor's own no");
    assert_eq!(harbor.tag("prod/app", "dev-2"), Some(one));
    assert_eq!(push(&taglock, "prod/app", "dev-2", "two").status, 201);
}

#[test]
fn a_request_for_a_tag_has_one_reading_or_is_not_forwarded() {
    let harbor = Harbor::start();
    let taglock = before(&harbor, "refuse");
    push(&taglock, "prod/app", "v1", "one");
    push(&taglock, "prod/app", "v2", "two");
    let path = format!("{APP}/artifacts/{}/tags", seed("two"));
    let writes = harbor.writes().len();
    let long = format!("{{\"name\":\"dev-1\",\"signed\":\"{}\"}}", "x".repeat(70_000));
    for body in [
        "",
        "{}",
        "[]",
        r#"{"name":"dev-1","name":"v1"}"#,
        r#"{"name":"dev-1","Name":"v1"}"#,
        r#"{"NAME":"v1"}"#,
        r#"{"name":"dev-1"}{"name":"v1"}"#,
        r#"{"name":"dev-1","tag":{"name":"v1"}}"#,
        r#"{"name":["v1"]}"#,
        r#"{"name":"../v1"}"#,
        r#"{"name":"v1@sha256:0"}"#,
        r#"{"name":" v1"}"#,
        &long,
    ] {
        let answer = request(&taglock.address, "POST", &path, ALICE, body.as_bytes());
        assert_eq!((answer.status, answer.code().as_str()), (400, "TAG_INVALID"), "{body:.80}");
    }
    let encoded = [&[("Content-Encoding", "gzip")], ALICE].concat();
    let answer = request(&taglock.address, "POST", &path, &encoded, br#"{"name":"dev-1"}"#);
    assert_eq!(answer.status, 400);
    assert_eq!(harbor.writes().len(), writes, "{:?}", harbor.writes());
    // What Harbor's user interface may add; an escape is a spelling of the same name.
    let body = r#"{"repository_id":0,"artifact_id":0,"name":"\u0076\u0033","immutable":false}"#;
    assert_eq!(request(&taglock.address, "POST", &path, ALICE, body.as_bytes()).status, 201);
    assert_eq!(harbor.tag("prod/app", "v3"), Some(seed("two")));
}

#[test]
fn a_failed_request_for_a_tag_frees_it_only_for_sure() {
    let harbor = Harbor::start();
    let taglock = before(&harbor, "refuse");
    push(&taglock, "prod/app", "one", "one");
    push(&taglock, "prod/app", "two", "two");
    let (one, two) = (seed("one"), seed("two"));
    // Definitive: the claim is taken back.
    for (tag, status) in [("a", 409), ("b", 412), ("c", 403)] {
        harbor.plan("POST", "/tags", Fault::Answer(status, vec![], ""));
        assert_eq!(create(&taglock, &one, tag, ALICE).status, status);
        assert_eq!(create(&taglock, &two, tag, ALICE).status, 201, "{tag} is free");
    }
    // It happened: the look finds it.
    for (tag, fault) in
        [("d", Fault::DoneBut(500)), ("e", Fault::CutAfter), ("f", Fault::HangAfter)]
    {
        harbor.plan("POST", "/tags", fault);
        assert_eq!(create(&taglock, &one, tag, ALICE).status, 201, "{tag}");
        assert_eq!(create(&taglock, &two, tag, ALICE).status, 409, "{tag}");
    }
    // It did not, or not yet: nobody else gets the tag.
    for (tag, fault, status) in [
        ("g", Fault::Answer(500, vec![], ""), 502),
        ("h", Fault::CutBefore, 502),
        ("i", Fault::Delay(Duration::from_secs(5)), 504),
    ] {
        harbor.plan("POST", "/tags", fault);
        assert_eq!(create(&taglock, &one, tag, ALICE).status, status, "{tag}");
        let other = create(&taglock, &two, tag, ALICE);
        assert_eq!(other.status, if tag == "i" { other.status } else { 503 }, "{tag} {other:?}");
        assert_ne!(other.status, 201, "{tag}");
        assert_eq!(create(&taglock, &one, tag, ALICE).status, 201, "{tag}");
        assert_eq!(harbor.tag("prod/app", tag), Some(one.clone()));
        assert_eq!(create(&taglock, &two, tag, ALICE).status, 409, "{tag}");
    }
}

#[test]
fn of_two_who_set_a_tag_one_wins() {
    let harbor = Harbor::start();
    let taglock = before(&harbor, "refuse");
    push(&taglock, "prod/app", "one", "one");
    push(&taglock, "prod/app", "two", "two");
    for round in 0..9 {
        let tag = format!("r{round}");
        // A push is about to land when the others come: what is not judged gets in between.
        let late = Fault::Delay(Duration::from_millis(200));
        harbor.plan("PUT", &format!("/manifests/{tag}"), late);
        let ways = |n: usize| match (round + n) % 3 {
            0 => create(&taglock, &seed("one"), &tag, ALICE).status,
            1 => create(&taglock, &seed("two"), &tag, ALICE).status,
            _ => push(&taglock, "prod/app", &tag, "three").status,
        };
        let statuses: Vec<_> = thread::scope(|scope| {
            let racers: Vec<_> = (0..3).map(|n| scope.spawn(move || ways(n))).collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let won = statuses.iter().filter(|status| **status == 201).count();
        assert_eq!(won, 1, "{tag} {statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, 201 | 409)), "{statuses:?}");
        let bound = pulled(&taglock, "prod/app", &tag);
        assert_eq!(bound, harbor.tag("prod/app", &tag));
        let winner = statuses.iter().position(|status| *status == 201).unwrap();
        let expected = seed(["one", "two", "three"][(round + winner) % 3]);
        assert_eq!(bound, Some(expected), "{tag} {statuses:?}");
    }
}

#[test]
fn a_repository_is_deleted_as_its_rule_says() {
    for rule in ["refuse", "keep", "release"] {
        let harbor = Harbor::start();
        harbor.store("prod/team/app", &manifest("old"), &["old", "latest"]);
        let taglock = before(&harbor, rule);
        let path = format!("{BASE}/prod/repositories/team%252Fapp");
        for tag in ["0", "v1", "v2"] {
            assert_eq!(push(&taglock, "prod/team/app", tag, "one").status, 201);
        }
        // Its neighbours stay.
        push(&taglock, "prod/team/app2", "v1", "one");
        push(&taglock, "prod/team", "v1", "one");
        assert_eq!(delete(&taglock, &path, NOBODY).status, 401);
        assert_eq!(delete(&taglock, &path, BOB).status, 403);
        let none = format!("{BASE}/prod/repositories/none");
        assert_eq!(delete(&taglock, &none, ALICE).status, 404);
        let answer = delete(&taglock, &path, ALICE);
        if rule == "refuse" {
            assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"));
            assert!(answer.message().contains("'prod/team/app'"), "{answer:?}");
            assert_eq!(harbor.tag("prod/team/app", "v1"), Some(seed("one")));
            continue;
        }
        assert_eq!(answer.status, 200, "{answer:?}");
        for tag in ["0", "v1", "v2", "old"] {
            assert_eq!(pulled(&taglock, "prod/team/app", tag), None);
            let other = push(&taglock, "prod/team/app", tag, "other");
            assert_eq!(other.status, if rule == "keep" { 409 } else { 201 }, "{rule} {tag}");
        }
        for neighbour in ["prod/team/app2", "prod/team"] {
            assert_eq!(pulled(&taglock, neighbour, "v1"), Some(seed("one")));
            assert_eq!(push(&taglock, neighbour, "v1", "other").status, 409);
        }
        // Harbor deletes no project that has a repository.
        assert_eq!(delete(&taglock, &format!("{BASE}/prod"), ALICE).status, 412);
    }
}

#[test]
fn no_artifact_is_copied_to_where_it_could_move_a_tag() {
    let harbor = Harbor::start();
    let one = harbor.store("dev/app", &manifest("one"), &["v1"]);
    let taglock = before(&harbor, "release");
    push(&taglock, "prod/app", "v1", "two");
    let copy = |to: &str| {
        let path = format!("{BASE}/{to}/repositories/app/artifacts?from=dev/app@{one}");
        request(&taglock.address, "POST", &path, ALICE, b"")
    };
    let answer = copy("prod");
    assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"));
    assert!(answer.message().contains("copied"), "{answer:?}");
    assert_eq!(harbor.tag("prod/app", "v1"), Some(seed("two")));
    assert_eq!(copy("test").status, 201);
    assert_eq!(harbor.tag("test/app", "v1"), Some(one));
}

#[test]
fn no_second_spelling_of_its_writes_is_forwarded() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "kind = \"harbor\"", RULES);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    let rest = "projects/prod/repositories/app/artifacts/v1/tags/v1";
    for path in [
        format!("/api/v2.0/{rest}/"),
        format!("/api/v2.0//{rest}"),
        format!("/api/v2.0/../v2.0/{rest}"),
        format!("/api/v2.0/x%2f..%2f{rest}"),
        format!("/api/v2.0/Projects{}", &rest[8..]),
        format!("/api/v2.0/%70rojects{}", &rest[8..]),
        format!("/api/v2.0/projects;x{}", &rest[8..]),
        format!("/API/v2.0/{rest}"),
        format!("/api//v2.0/{rest}"),
        format!("/api/internal/{rest}"),
    ] {
        for method in ["DELETE", "POST", "PUT", "PATCH"] {
            let before = fake.seen().len();
            let overridden = [("X-HTTP-Method-Override", "DELETE")];
            let answer = request(&taglock.address, method, &path, &overridden, b"");
            assert!(matches!(answer.status, 400 | 403 | 405), "{method} {path}: {answer:?}");
            assert_eq!(fake.seen().len(), before, "{method} {path} was forwarded");
        }
    }
}

#[test]
fn everything_else_of_harbors_passes_untouched() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "kind = \"harbor\"", RULES);
    for (method, path) in [
        ("GET", format!("{BASE}/prod/repositories/app/artifacts?with_tag=true")),
        ("POST", "/c/login".to_owned()),
        ("POST", BASE.to_owned()),
        ("DELETE", format!("{BASE}/prod")),
        ("PUT", format!("{BASE}/prod/repositories/app")),
        ("POST", format!("{BASE}/prod/repositories/team%252Fapp/artifacts/v1/scan")),
        // A mutable tag, and a repository without immutable ones.
        ("DELETE", format!("{BASE}/prod/repositories/app/artifacts/v1/tags/latest")),
        ("DELETE", format!("{BASE}/dev/repositories/app/artifacts/v1/tags/v1")),
        ("POST", format!("{BASE}/dev/repositories/app/artifacts/v1/tags")),
        ("POST", format!("{BASE}/dev/repositories/app/artifacts?from=a/b:v1")),
        ("DELETE", format!("{BASE}/dev/repositories/app")),
        ("GET", "/harbor/projects".to_owned()),
    ] {
        let own =
            [("Cookie", "sid=1"), ("X-Harbor-CSRF-Token", "t"), ("X-HTTP-Method-Override", "PUT")];
        request(&taglock.address, method, &path, &own, b"");
        assert_eq!(fake.targets().last(), Some(&path), "{method}");
        let headers = fake.last_headers();
        for kept in ["cookie: sid=1", "x-harbor-csrf-token: t"] {
            assert!(headers.iter().any(|header| header == kept), "{headers:?}");
        }
        assert!(!headers.iter().any(|header| header.contains("override")), "{headers:?}");
    }
    // Without the kind, all of its writes are refused.
    let taglock = Taglock::before(&fake.address);
    assert_eq!(request(&taglock.address, "POST", "/c/login", &[], b"").status, 403);
}

#[test]
fn pages_of_its_api_that_may_go_on_let_nothing_go() {
    let harbor = Harbor::start();
    let taglock = before(&harbor, "refuse");
    let one = format!("{APP}/artifacts/{}", harbor.store("prod/app", &manifest("one"), &["v1"]));
    let tags = |headers: &[(&'static str, &str)], body| {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned()));
        harbor.plan("GET", "/tags", Fault::Answer(200, headers.collect(), body));
    };
    // A page that is smaller than asked for, and where it goes on, is followed; or it is said so.
    for (header, next, status) in [
        (("x-total-count", "2"), Some(r#"[{"name":"v1"}]"#), 403),
        (("link", "</api?page=2>; rel=next"), Some(r#"[{"name":"v1"}]"#), 403),
        (("x-total-count", "2"), Some("[]"), 502),
        (("x-total-count", "many"), Some("[]"), 502),
        (("x-total-count", "2"), None, 502),
    ] {
        tags(&[header], r#"[{"name":"dev-9"}]"#);
        match next {
            Some(body) => tags(&[], body),
            None => harbor.plan("GET", "/tags", Fault::Answer(404, vec![], "{}")),
        }
        let answer = delete(&taglock, &one, ALICE);
        assert_eq!(answer.status, status, "{header:?} {next:?} {answer:?}");
        harbor.recover();
    }
    assert!(harbor.tag("prod/app", "v1").is_some());
}
