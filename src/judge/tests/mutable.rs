//! Rules that change: writes of mutable tags against entries of stricter days.

use super::*;
use crate::judge::mutable::Coverage;
use crate::ledger::Holder;

impl House {
    async fn pass(&self, name: &str, seed: &str) -> Judged {
        let cargo = Cargo { caller: Caller::default(), manifest: manifest(seed), named: None };
        self.judge.pass(&key(), None, &[tag(name)], cargo, Coverage::Ruled).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_under_a_mutable_rule_takes_the_entrys_place() {
    let house = House::new();
    assert!(admitted(&house.push(&["v1"], "one").await));
    let before = house.entry("v1").await;
    assert!(house.judge.holds_any(&key(), &[tag("v0"), tag("v1")]).await);
    let Judged { verdict, superseded } = house.pass("v1", "two").await;
    assert!(admitted(&verdict));
    assert_eq!(superseded, [Holder { tag: tag("v1"), entry: before }]);
    assert_eq!(house.entry("v1").await, Entry::Absent);
    // Immutable again: the tag is where that push put it.
    refused(&house.push(&["v1"], "one").await, "v1", "two");
    assert!(admitted(&house.push(&["v1"], "two").await));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_push_supersedes_nothing() {
    for stage in [true, false] {
        let mut house = House::new();
        house.options.stage = stage;
        assert!(admitted(&house.push(&["v1"], "one").await));
        let before = house.entry("v1").await;
        house.shelf.plan("publish", &[Play::Deny]);
        let Judged { verdict, superseded } = house.pass("v1", "two").await;
        relayed(&verdict, 403);
        assert_eq!((superseded, house.entry("v1").await), (vec![], before));
        assert_eq!(house.shelf.tag("v1"), Some(digest("one")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_without_staging_is_asked_before_the_entry_goes() {
    let mut house = House::new();
    house.options.stage = false;
    assert!(admitted(&house.push(&["v1"], "one").await));
    house.shelf.calls();
    assert!(admitted(&house.pass("v1", "two").await.verdict));
    assert_eq!(house.shelf.calls(), ["publish v1"]);
    assert_eq!(house.entry("v1").await, Entry::Absent);
}

#[tokio::test(start_paused = true)]
async fn a_mutable_tag_of_a_judged_set_is_superseded_too() {
    let house = House::new();
    assert!(admitted(&house.push(&["dev"], "one").await));
    assert!(admitted(&house.push_with(&["v1"], &["dev"], "two").await));
    assert_eq!(house.entry("dev").await, Entry::Absent);
    assert_eq!(house.shelf.tag("dev"), Some(digest("two")));
}

#[tokio::test(start_paused = true)]
async fn with_the_ledger_down_a_mutable_push_goes_on() {
    let house = House::new();
    house.ledger.close().await;
    assert!(!house.judge.holds_any(&key(), &[tag("v1")]).await);
    assert!(admitted(&house.pass("v1", "two").await.verdict));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_bound_while_an_unjudged_write_of_the_tag_is_under_way() {
    let mut house = House::new();
    house.options.proven = true;
    let write = house.judge.unjudged().enter(Affected::Tags(key(), vec![tag("v1")])).unwrap();
    let verdict = house.push(&["v1"], "one").await;
    assert_eq!(verdict, Verdict::Undecided(Undecided::Busy(tag("v1"))));
    assert_eq!((house.entry("v1").await, house.shelf.calls()), (Entry::Absent, vec![]));
    // It lands, and only then is what it left looked at.
    let later = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        house.shelf.set("v1", &manifest("old"));
        drop(write);
    };
    let (verdict, ()) = tokio::join!(house.push(&["v1"], "one"), later);
    refused(&verdict, "v1", "old");
}

/// Another proxy, by newer rules, binds the tag while this one's write is under way, or is about to bind what
/// it has seen.
#[tokio::test(start_paused = true)]
async fn a_mutable_push_among_several_proxies_asks_once_more() {
    for other in ["", "one", "two"] {
        let house = House::shared();
        let before = house.ledger.lookup(&key(), &[]).await.unwrap().freed;
        house.meanwhile(move |ledger| async move {
            if !other.is_empty() {
                bind(&ledger, "v1", other).await;
            }
        });
        let verdict = house.pass("v1", "two").await.verdict;
        match other {
            "one" => refused(&verdict, "v1", "one"),
            _ => assert!(admitted(&verdict), "{verdict:?}"),
        }
        let (tags, old) = ([tag("v2")], digest("old"));
        let late = house.ledger.adopt(&key(), &tags, &old, Origin::FirstSight, before).await;
        assert_eq!(late, Ok(Adopt::Freed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_mutable_push_whose_last_question_fails_ends_by_its_coverage() {
    for (coverage, acknowledged) in [(Coverage::Ruled, false), (Coverage::Unruled, true)] {
        let house = House::shared();
        house.meanwhile(|ledger| async move { ledger.close().await });
        let cargo = Cargo { caller: Caller::default(), manifest: manifest("one"), named: None };
        let verdict = house.judge.pass(&key(), None, &[tag("v1")], cargo, coverage).await.verdict;
        match &verdict {
            Verdict::Undecided(Undecided::LedgerUnknown(_)) => assert!(!acknowledged),
            verdict => assert!(admitted(verdict) && acknowledged, "{verdict:?}"),
        }
    }
}
