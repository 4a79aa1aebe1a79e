//! Mutable tags that may move only to what a protected tag is bound to.

use super::delete::rule;
use super::*;
use crate::ledger::Unavailable;
use crate::rules::{Deletes, Rule};

fn anchored() -> Rule {
    Rule { except_must_be_bound: true, ..rule(Deletes::Keep) }
}

impl House {
    async fn pass_anchored(&self, name: &str, seed: &str) -> Verdict<Answer> {
        let manifest = manifest(seed);
        let push = self.anchored_push(&[], &[name], seed);
        let cargo = Cargo { caller: Caller::default(), manifest, named: None };
        self.judge.pass_anchored(&anchored(), &push, None, cargo).await.verdict
    }

    async fn push_anchored(&self, tags: &[&str], moving: &[&str], seed: &str) -> Verdict<Answer> {
        let push = self.anchored_push(tags, moving, seed);
        let manifest = manifest(seed);
        let cargo = Cargo { caller: Caller::default(), manifest, named: None };
        self.judge.push_anchored(&anchored(), push, cargo).await.verdict
    }

    fn anchored_push(&self, tags: &[&str], moving: &[&str], seed: &str) -> Push {
        Push {
            repository: key(),
            protected: tags.iter().map(|t| tag(t)).collect(),
            mutable: moving.iter().map(|t| tag(t)).collect(),
            content: Content::new(&manifest(seed).bytes, None).unwrap(),
            attempt: AttemptId::random(),
            errand: AttemptId::random(),
            options: self.options,
        }
    }
}

fn unbound(name: &str) -> Verdict<Answer> {
    Verdict::Unbound(tag(name))
}

#[tokio::test(start_paused = true)]
async fn only_what_is_sealed_under_a_protected_tag_counts() {
    let house = House::new();
    house.shelf.set("dev-2", &manifest("one"));
    assert_eq!(house.pass_anchored("dev-1", "one").await, unbound("dev-1"));
    assert_eq!(house.shelf.tag("dev-1"), None);
    // Pending is not enough.
    let attempt = house.claimed("v1", "one").await;
    assert_eq!(house.pass_anchored("dev-1", "one").await, unbound("dev-1"));
    house.ledger.abort(&key(), &[tag("v1")], &digest("one"), attempt).await.unwrap();
    house.push(&["v1"], "one").await;
    house.shelf.calls();
    assert!(admitted(&house.pass_anchored("dev-1", "one").await));
    assert_eq!(house.shelf.calls(), ["stage ", "publish dev-1"], "the ledger knew");
    // Withdrawn is deleted.
    house.ledger.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
    house.shelf.tags.lock().unwrap().remove(&tag("v1"));
    assert_eq!(house.pass_anchored("dev-1", "one").await, unbound("dev-1"));
    // What the registry had before taglock counts.
    house.shelf.set("old", &manifest("old"));
    assert!(admitted(&house.pass_anchored("dev-1", "old").await));
    assert_eq!(house.shelf.tag("dev-1"), Some(digest("old")));
}

#[tokio::test(start_paused = true)]
async fn before_any_refusal_the_registry_must_have_let_the_client_in() {
    let house = House::new();
    house.shelf.plan("stage", &[Play::Deny]);
    relayed(&house.pass_anchored("dev-1", "one").await, 403);
    house.shelf.plan("tags", &[Play::Deny]);
    relayed(&house.pass_anchored("dev-1", "one").await, 403);
    house.shelf.plan("tags", &[Play::Unclear]);
    let verdict = house.pass_anchored("dev-1", "one").await;
    assert!(matches!(verdict, Verdict::Undecided(Undecided::Registry(_))), "{verdict:?}");
    house.ledger.close().await;
    let verdict = house.pass_anchored("dev-1", "one").await;
    assert_eq!(verdict, Verdict::Undecided(Undecided::Ledger(Unavailable::Closed)));
    assert_eq!(house.shelf.tag("dev-1"), None);
}

#[tokio::test(start_paused = true)]
async fn in_a_set_the_protected_tags_come_first() {
    let house = House::new();
    match house.push_anchored(&["v1"], &["dev-1"], "one").await {
        Verdict::Admitted { tags, sealed: true, .. } => assert_eq!(tags, [tag("v1"), tag("dev-1")]),
        other => panic!("{other:?}"),
    }
    assert!(house.shelf.calls().ends_with(&["publish v1".to_owned(), "publish dev-1".to_owned()]));
    refused(&house.push_anchored(&["v1"], &["dev-1"], "two").await, "v1", "one");
    assert_eq!(house.shelf.tag("dev-1"), Some(digest("one")));
    // What the registry refuses under the protected tag moves nothing.
    house.shelf.plan("publish", &[Play::Deny]);
    relayed(&house.push_anchored(&["v2"], &["dev-1"], "two").await, 403);
    house.shelf.plan("publish", &[Play::Unclear]);
    let verdict = house.push_anchored(&["v2"], &["dev-1"], "two").await;
    assert!(matches!(verdict, Verdict::Undecided(_)), "{verdict:?}");
    assert_eq!(house.shelf.tag("dev-1"), Some(digest("one")));
}
