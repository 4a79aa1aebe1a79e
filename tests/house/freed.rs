//! Names that are freed while something else is under way: a request is held in the registry, before it
//! takes effect or before it is answered, and another one goes by.

use std::thread::{self, ScopedJoinHandle};

use crate::fake::{Fake, Fault};
use crate::fleet::{Redis, proxy_with};
use crate::harness::*;
use crate::http::{Answer, request};
use crate::operators::{config, expect};

/// Not below `prod/`: there the fake takes every tag that moves for a failure.
const REPOSITORY: &str = "team/app";

fn rules(mutability: &str, delete: &str) -> String {
    format!(
        "[[rule]]\nname = \"r\"\nrepositories = \"team/**\"\nmutability = \"{mutability}\"\n\
         delete = \"{delete}\"\n"
    )
}

struct Place {
    fake: Fake,
    taglock: Taglock,
    a: Vec<u8>,
    b: Vec<u8>,
}

impl Place {
    fn new(delete: &str) -> Self {
        Self::with("", &rules("immutable", delete))
    }

    fn with(upstream: &str, tables: &str) -> Self {
        let fake = Fake::start();
        let taglock = Taglock::with(&fake.address, upstream, tables);
        Self { fake, taglock, a: manifest("a"), b: manifest("b") }
    }

    /// Puts it into the registry itself.
    fn place(&self, tag: &str, image: &[u8]) {
        self.fake.place(REPOSITORY, tag, &digest(image), (image, INDEX));
    }

    fn push(&self, tag: &str, image: &[u8]) -> Answer {
        put(&self.taglock.address, REPOSITORY, tag, image)
    }

    fn pull(&self, tag: &str) -> Option<String> {
        tag_of(&self.taglock.address, REPOSITORY, tag)
    }

    fn delete(&self, reference: &str) -> Answer {
        let target = format!("/v2/{REPOSITORY}/manifests/{reference}");
        request(&self.taglock.address, "DELETE", &target, &[], b"")
    }

    /// The registry has lately let this client pull and push.
    fn let_in(&self) {
        assert_eq!(self.push("let-in", &manifest("let in")).status, 201);
        assert!(self.pull("let-in").is_some());
    }

    /// The name is free, and bound by the next push of whatever image.
    fn is_free(&self, tag: &str) {
        assert_eq!(self.pull(tag), None);
        assert_eq!(self.push(tag, &self.b).status, 201);
        assert_eq!(self.pull(tag), Some(digest(&self.b)));
    }

    fn end<T>(&self, held: ScopedJoinHandle<'_, T>) -> T {
        self.fake.let_go();
        held.join().unwrap()
    }
}

/// A first pull, and a first push, have seen the tag in the registry, and hear of it after it was
/// deleted: what they saw binds nothing.
#[test]
fn what_was_seen_before_a_delete_binds_nothing_after_it() {
    for by in ["pull", "push"] {
        let place = Place::new("release");
        place.let_in();
        place.place("v1", &place.a);
        place.fake.plan("GET", "/manifests/v1", Fault::HeldAfter, 1);
        thread::scope(|scope| {
            let late = scope.spawn(|| match by {
                "pull" => request(
                    &place.taglock.address,
                    "GET",
                    &format!("/v2/{REPOSITORY}/manifests/v1"),
                    &[("Accept", INDEX)],
                    b"",
                ),
                _ => place.push("v1", &place.b),
            });
            place.fake.holds();
            place.fake.recover();
            assert_eq!(place.delete(&digest(&place.a)).status, 202);
            let answer = place.end(late);
            assert_eq!(answer.status, if by == "pull" { 404 } else { 201 }, "{answer:?}");
        });
        if by == "pull" {
            place.is_free("v1");
        }
        assert_eq!(place.pull("v1"), Some(digest(&place.b)));
    }
}

/// The registry takes its time to delete: meanwhile nothing is bound to the image.
#[test]
fn nothing_is_bound_to_an_image_while_the_registry_deletes_it() {
    for (delete, by) in [("release", "pull"), ("release", "push"), ("refuse", "push")] {
        let except = if delete == "refuse" { "except = [\"dev\"]\n" } else { "" };
        let place = Place::with("", &(rules("immutable", delete) + except));
        place.let_in();
        // Under `refuse`, only a mutable tag has it.
        place.place(if by == "push" && delete == "refuse" { "dev" } else { "v1" }, &place.a);
        place.fake.plan("DELETE", &digest(&place.a), Fault::HeldBefore, 1);
        thread::scope(|scope| {
            let deleting = scope.spawn(|| place.delete(&digest(&place.a)).status);
            place.fake.holds();
            let looks = place.fake.seen().len();
            let other = scope.spawn(|| match by {
                "pull" => place.pull("v1").map_or(404, |_| 200),
                _ => place.push("v1", &place.a).status,
            });
            eventually("the other one", || place.fake.seen().len() > looks);
            assert_eq!(place.end(deleting), 202);
            assert_eq!(other.join().unwrap(), if by == "pull" { 404 } else { 201 });
        });
        match by {
            "pull" => place.is_free("v1"),
            // It was stored once more.
            _ => assert_eq!(place.pull("v1"), Some(digest(&place.a)), "{delete}"),
        }
    }
}

/// The registry has taken a push, and answers it after the name was freed and the image deleted: nothing is
/// bound, and nothing shows that the push took place.
#[test]
fn a_push_whose_name_was_freed_before_its_answer_binds_nothing() {
    let place = Place::new("release");
    place.let_in();
    place.fake.plan("PUT", "/manifests/v1", Fault::HeldAfter, 1);
    thread::scope(|scope| {
        let pushing = scope.spawn(|| place.push("v1", &place.a).status);
        place.fake.holds();
        // Who looks finds what is claimed, and binds it.
        assert_eq!(place.pull("v1"), Some(digest(&place.a)));
        assert_eq!(place.delete(&digest(&place.a)).status, 202);
        assert_eq!(place.end(pushing), 503);
    });
    place.is_free("v1");
}

/// A second push of a bound image gets to the registry after the name was freed and bound to another one.
#[test]
fn a_push_of_a_bound_image_is_refused_where_the_name_is_another_images_by_then() {
    let place = Place::new("release");
    place.let_in();
    assert_eq!(place.push("v1", &place.a).status, 201);
    place.fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
    thread::scope(|scope| {
        let pushing = scope.spawn(|| place.push("v1", &place.a));
        place.fake.holds();
        assert_eq!(place.delete(&digest(&place.a)).status, 202);
        assert_eq!(place.push("v1", &place.b).status, 201);
        let late = place.end(pushing);
        assert_eq!(late.status, 409, "{late:?}");
        assert!(late.message().contains(&digest(&place.b)), "{}", late.text());
    });
    assert_eq!(place.pull("v1"), Some(digest(&place.b)));
}

#[test]
fn a_tag_stays_where_the_last_push_put_it_though_an_older_one_is_answered_later() {
    let place = Place::new("refuse");
    place.let_in();
    place.fake.plan("PUT", "/manifests/v1", Fault::HeldAfter, 1);
    thread::scope(|scope| {
        let pushing = scope.spawn(|| place.push("v1", &place.a).status);
        place.fake.holds();
        place.taglock.reload(&rules("mutable", "refuse"));
        assert_eq!(place.push("v1", &place.b).status, 201);
        // It took place, or did not: its claim is gone.
        assert_eq!(place.end(pushing), 503);
    });
    assert_eq!(place.pull("v1"), Some(digest(&place.b)));
    place.taglock.reload(&rules("immutable", "refuse"));
    assert_eq!(place.pull("v1"), Some(digest(&place.b)));
    assert_eq!(place.push("v1", &place.a).status, 409);
    assert_eq!(place.push("v1", &place.b).status, 201);
}

/// The registry has deleted and has not said so: a push of the image waits for its word.
#[test]
fn a_push_after_a_delete_is_not_hidden_by_its_late_mark() {
    let place = Place::new("keep");
    place.let_in();
    assert_eq!(place.push("v1", &place.a).status, 201);
    place.fake.plan("DELETE", &digest(&place.a), Fault::HeldAfter, 1);
    thread::scope(|scope| {
        let deleting = scope.spawn(|| place.delete(&digest(&place.a)).status);
        place.fake.holds();
        assert_eq!(place.pull("v1"), None);
        let puts = place.fake.count("PUT", "/manifests/v1");
        let pushing = scope.spawn(|| place.push("v1", &place.a).status);
        eventually("the push", || place.fake.count("PUT", "/manifests/v1") > puts);
        assert_eq!(place.end(deleting), 202);
        assert_eq!(pushing.join().unwrap(), 201);
    });
    assert_eq!(place.pull("v1"), Some(digest(&place.a)));
    assert_eq!(place.push("v1", &place.b).status, 409);
}

/// The registry cuts the connection, and may carry the DELETE out later.
#[test]
fn a_delete_is_sent_once_and_its_image_bound_by_nobody_until_it_is_answered() {
    let place = Place::new("keep");
    place.let_in();
    assert_eq!(place.push("v1", &place.a).status, 201);
    place.fake.plan("DELETE", &digest(&place.a), Fault::CutBefore, 1);
    let answer = place.delete(&digest(&place.a));
    assert_eq!(answer.status, 502);
    assert!(answer.message().contains("whether it was deleted is unknown"), "{}", answer.text());
    assert_eq!(place.fake.count("DELETE", &digest(&place.a)), 1);
    let waits = place.push("v2", &place.a);
    assert_eq!(waits.status, 503);
    assert!(waits.message().contains("a delete of sha256:"), "{}", waits.text());
    assert_eq!(place.push("v3", &place.b).status, 201, "other images go on");
    assert_eq!(place.pull("v1"), Some(digest(&place.a)));
    // Deleted again, and answered.
    assert_eq!(place.delete(&digest(&place.a)).status, 202);
    assert_eq!(place.pull("v1"), None);
    assert_eq!(place.push("v2", &place.a).status, 201);
}

#[test]
fn an_operator_clears_the_mark_of_a_delete_that_was_never_answered() {
    let fake = Fake::start();
    let tables = rules("immutable", "keep");
    let taglock = crate::operators::started(&fake.address, "", &tables);
    let (file, a) = (config(&taglock), manifest("a"));
    let push = |tag: &str| put(&taglock.address, REPOSITORY, tag, &a).status;
    assert_eq!(push("v1"), 201);
    let target = format!("/v2/{REPOSITORY}/manifests/{}", digest(&a));
    fake.plan("DELETE", &digest(&a), Fault::CutBefore, 1);
    assert_eq!(request(&taglock.address, "DELETE", &target, &[], b"").status, 502);
    assert_eq!(push("v2"), 503);
    let (marks, _) = expect(&file, &["ledger", "delete-marks", REPOSITORY], 0);
    assert!(marks.contains(&digest(&a)) && marks.contains("1 without"), "{marks}");
    let clear = ["ledger", "clear-delete", REPOSITORY, &digest(&a), "--reason", "gone"];
    let (said, _) = expect(&file, &clear, 0);
    assert!(said.contains("can be bound to"), "{said}");
    assert_eq!(push("v2"), 201);
    assert_eq!(expect(&file, &["ledger", "delete-marks", REPOSITORY], 0).0, "");
    expect(&file, &clear, 1);
    let audit = std::fs::read_to_string(taglock.folder.path().join("audit.jsonl"));
    if let Ok(audit) = audit {
        assert!(audit.contains("delete-cleared"), "{audit}");
    }
}

/// One client may store images and not set the tag; the next one may.
#[test]
fn an_image_that_its_owner_could_not_tag_is_published_with_nobody_elses_rights() {
    for (roll_forward, status) in [("published", 503), ("staged", 409)] {
        let upstream = format!("roll_forward = \"{roll_forward}\"\n");
        let place = Place::with(&upstream, &rules("immutable", "refuse"));
        place.fake.plan("PUT", "/manifests/v1", Fault::CutBefore, 1);
        assert_eq!(place.push("v1", &place.a).status, 502);
        let other = place.push("v1", &place.b);
        assert_eq!(other.status, status, "{other:?}");
        assert!(other.message().contains(&digest(&place.a)), "{}", other.text());
        let published = (roll_forward == "staged").then(|| digest(&place.a));
        assert_eq!(place.fake.tag(REPOSITORY, "v1"), published);
        // Its own image ends the claim.
        assert_eq!(place.push("v1", &place.a).status, 201);
        assert_eq!(place.push("v1", &place.b).status, 409);
    }
}

#[test]
fn a_delete_while_a_tag_is_mutable_frees_its_name() {
    let place = Place::new("release");
    assert_eq!(place.push("v1", &place.a).status, 201);
    place.taglock.reload(&rules("mutable", "release"));
    assert_eq!(place.delete(&digest(&place.a)).status, 202);
    place.taglock.reload(&rules("immutable", "release"));
    place.is_free("v1");
}

/// A DELETE that a mutable rule let through has not ended when the rule is immutable: nothing is bound to
/// what it takes away.
#[test]
fn a_delete_that_older_rules_let_through_is_waited_for() {
    let place = Place::with("", &rules("mutable", "refuse"));
    assert_eq!(place.push("v1", &place.a).status, 201);
    place.fake.plan("DELETE", &digest(&place.a), Fault::HeldBefore, 1);
    thread::scope(|scope| {
        let deleting = scope.spawn(|| place.delete(&digest(&place.a)).status);
        place.fake.holds();
        place.taglock.reload(&rules("immutable", "refuse"));
        let seen = place.fake.seen().len();
        let pushing = scope.spawn(|| place.push("v1", &place.a).status);
        eventually("the push", || place.fake.seen().len() > seen);
        assert_eq!(place.end(deleting), 202);
        assert_eq!(pushing.join().unwrap(), 201);
    });
    assert_eq!(place.pull("v1"), Some(digest(&place.a)));
}

/// Both proxies have the newer rules by the time the registry answers the older write.
#[test]
fn a_mutable_push_that_another_proxy_has_outrun_is_not_acknowledged() {
    // The older rules name the repository, or another one.
    outrun(&rules("mutable", "refuse"));
    outrun(&rules("immutable", "refuse").replace("team/", "other/"));
}

fn outrun(mutable: &str) {
    let (fake, redis) = (Fake::start(), Redis::start(&[]));
    let proxies = [0, 1].map(|_| proxy_with(&fake.address, &redis.address, "", mutable));
    let [a, b] = ["a", "b"].map(manifest);
    fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
    thread::scope(|scope| {
        let older = scope.spawn(|| put(&proxies[1].address, REPOSITORY, "v1", &b));
        fake.holds();
        for proxy in &proxies {
            proxy.reload(&rules("immutable", "refuse"));
        }
        assert_eq!(put(&proxies[0].address, REPOSITORY, "v1", &a).status, 201);
        fake.let_go();
        let older = older.join().unwrap();
        assert_eq!(older.status, 409, "{older:?}");
    });
    for proxy in &proxies {
        assert_eq!(tag_of(&proxy.address, REPOSITORY, "v1"), Some(digest(&a)));
    }
    // Without another's binding, the registry's word stands.
    proxies.iter().for_each(|proxy| proxy.reload(mutable));
    assert_eq!(put(&proxies[1].address, REPOSITORY, "v2", &b).status, 201);
}

/// A first pull through a proxy with newer rules has looked at the registry before an older write lands there.
#[test]
fn what_was_seen_before_a_mutable_push_is_bound_by_nobody() {
    for older in
        [rules("mutable", "refuse"), rules("immutable", "refuse").replace("team/", "other/")]
    {
        let (fake, redis) = (Fake::start(), Redis::start(&[]));
        let newer = rules("immutable", "refuse");
        let [newer, older] =
            [&newer, &older].map(|rules| proxy_with(&fake.address, &redis.address, "", rules));
        let [a, b] = ["a", "b"].map(manifest);
        fake.place(REPOSITORY, "v1", &digest(&a), (&a, INDEX));
        fake.plan("GET", "/manifests/v1", Fault::HeldAfter, 1);
        thread::scope(|scope| {
            let pull = scope.spawn(|| tag_of(&newer.address, REPOSITORY, "v1"));
            fake.holds();
            assert_eq!(put(&older.address, REPOSITORY, "v1", &b).status, 201);
            fake.let_go();
            assert_eq!(pull.join().unwrap(), Some(digest(&b)));
        });
        assert_eq!(tag_of(&newer.address, REPOSITORY, "v1"), Some(digest(&b)));
    }
}

/// The same beside a delete that older rules let through.
#[test]
fn what_was_seen_before_a_mutable_delete_is_bound_by_nobody() {
    for older in
        [rules("mutable", "refuse"), rules("immutable", "refuse").replace("team/", "other/")]
    {
        let (fake, redis) = (Fake::start(), Redis::start(&[]));
        let newer = rules("immutable", "release");
        let [newer, older] =
            [&newer, &older].map(|rules| proxy_with(&fake.address, &redis.address, "", rules));
        let [a, b] = ["a", "b"].map(manifest);
        fake.place(REPOSITORY, "v1", &digest(&a), (&a, INDEX));
        fake.plan("GET", "/manifests/v1", Fault::HeldAfter, 1);
        let target = format!("/v2/{REPOSITORY}/manifests/v1");
        thread::scope(|scope| {
            let pull = scope.spawn(|| tag_of(&newer.address, REPOSITORY, "v1"));
            fake.holds();
            assert_eq!(request(&older.address, "DELETE", &target, &[], b"").status, 202);
            fake.let_go();
            assert_eq!(pull.join().unwrap(), None);
        });
        assert_eq!(put(&newer.address, REPOSITORY, "v1", &b).status, 201);
        // By the newer rules another proxy binds the tag while the DELETE is under way.
        fake.place(REPOSITORY, "v2", &digest(&a), (&a, INDEX));
        let target = format!("/v2/{REPOSITORY}/manifests/v2");
        fake.plan("DELETE", "/manifests/v2", Fault::HeldBefore, 1);
        thread::scope(|scope| {
            let delete = scope.spawn(|| request(&older.address, "DELETE", &target, &[], b""));
            fake.holds();
            assert_eq!(tag_of(&newer.address, REPOSITORY, "v2"), Some(digest(&a)));
            fake.let_go();
            let delete = delete.join().unwrap();
            assert_eq!(delete.status, 503, "{}", delete.text());
            assert!(delete.message().contains("stay bound"), "{}", delete.text());
        });
    }
}

/// Where no rule names the repository, the registry's word is enough.
#[test]
fn a_push_that_no_rule_names_needs_no_ledger() {
    let (fake, mut redis) = (Fake::start(), Redis::start(&[]));
    let other = rules("immutable", "refuse").replace("team/", "other/");
    let proxies = [&other, &rules("mutable", "refuse")]
        .map(|rules| proxy_with(&fake.address, &redis.address, "", rules));
    redis.stop();
    let one = manifest("one");
    let unruled = put(&proxies[0].address, REPOSITORY, "v1", &one);
    let ruled = put(&proxies[1].address, REPOSITORY, "v2", &one);
    assert_eq!(unruled.status, 201, "{}", unruled.text());
    assert_eq!(ruled.status, 503, "{}", ruled.text());
    assert!(ruled.message().contains("unknown"), "{}", ruled.text());
}
