//! Deletes of tags that the rules leave mutable.

use super::delete::deleted;
use super::*;
use crate::judge::delete::{NoDelete, Ruling};
use crate::judge::mutable::Coverage;
use crate::ledger::Bind;
use crate::rules::Deletes;

#[tokio::test(start_paused = true)]
async fn a_delete_under_a_mutable_rule_frees_what_was_bound_under_a_stricter_one() {
    let caller = Caller::default();
    let house = House::new();
    house.push(&["v1", "v2"], "one").await;
    house.push(&["v3"], "two").await;
    assert!(house.judge.holds_reference(&key(), &Reference::Digest(digest("one"))).await);
    let one = Reference::Digest(digest("one"));
    let ruling = house.judge.delete_mutable(&key(), &one, &caller, Coverage::Ruled).await;
    assert!(matches!(ruling, Ruling::Deleted { .. }), "{ruling:?}");
    assert_eq!(house.entry("v1").await, Entry::Absent);
    assert_eq!(house.entry("v2").await, Entry::Absent);
    let v3 = Reference::Tag(tag("v3"));
    house.shelf.plan("delete", &[Play::Refuse]);
    let ruling = house.judge.delete_mutable(&key(), &v3, &caller, Coverage::Ruled).await;
    assert!(matches!(ruling, Ruling::Relayed(_)), "{ruling:?}");
    assert!(matches!(house.entry("v3").await, Entry::Sealed(_)), "it was not deleted");
    let ruling = house.judge.delete_mutable(&key(), &v3, &caller, Coverage::Ruled).await;
    assert!(matches!(ruling, Ruling::Deleted { .. }), "{ruling:?}");
    assert_eq!(house.entry("v3").await, Entry::Absent);
    assert!(!house.judge.holds_reference(&key(), &v3).await);
    // With the ledger down it goes on.
    house.shelf.set("v4", &manifest("four"));
    house.ledger.close().await;
    let four = Reference::Digest(digest("four"));
    let ruling = house.judge.delete_mutable(&key(), &four, &caller, Coverage::Ruled).await;
    assert!(matches!(ruling, Ruling::Deleted { .. }), "{ruling:?}");
    assert_eq!(house.shelf.tag("v4"), None);
}

#[tokio::test(start_paused = true)]
async fn a_delete_under_a_mutable_rule_waits_for_the_repair_of_its_tag() {
    for by_tag in [true, false] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        let repair = house.judge.unjudged().enter_repair(&key(), &tag("v1")).unwrap();
        let reference: Reference = if by_tag { tag("v1").into() } else { digest("one").into() };
        let busy = Ruling::from(NoDelete::Busy(tag("v1")));
        let caller = Caller::default();
        let key = key();
        let delete = || house.judge.delete_mutable(&key, &reference, &caller, Coverage::Ruled);
        assert_eq!(delete().await, busy);
        assert_eq!(house.deletes_sent(), 0);
        assert_eq!(house.ledger.delete_marks(&key).await, Ok(vec![]));
        drop(repair);
        assert!(matches!(delete().await, Ruling::Deleted { .. }));
    }
}

/// A mutable tag that is another image's by the end of the delete keeps its entry.
#[tokio::test(start_paused = true)]
async fn a_mutable_tag_that_is_another_images_by_then_is_not_freed() {
    let house = House::new();
    house.shelf.set("dev-1", &manifest("one"));
    bind(&house.ledger, "dev-1", "one").await;
    let Entry::Sealed(sealed) = house.entry("dev-1").await else { panic!("it is bound") };
    house.meanwhile(move |ledger| async move {
        ledger.release(&key(), &tag("dev-1"), sealed.token()).await.unwrap();
        bind(&ledger, "dev-1", "two").await;
    });
    deleted(&house.delete(Deletes::Keep, digest("one")).await, &[]);
    let entry = house.entry("dev-1").await;
    assert!(matches!(&entry, Entry::Sealed(s) if s.digest == digest("two")), "{entry:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mutable_delete_among_several_proxies_says_what_is_bound_by_then() {
    let caller = Caller::default();
    let v1 = Reference::Tag(tag("v1"));
    for bound in [false, true] {
        let house = House::shared();
        house.shelf.set("v1", &manifest("one"));
        let before = house.ledger.lookup(&key(), &[]).await.unwrap().freed;
        house.meanwhile(move |ledger| async move {
            if bound {
                bind(&ledger, "v1", "one").await;
            }
        });
        let ruling = house.judge.delete_mutable(&key(), &v1, &caller, Coverage::Unruled).await;
        let is = |ruling: &Ruling| matches!(ruling, Ruling::Deleted { unmarked: Some(_), .. });
        assert_eq!(is(&ruling), bound, "{ruling:?}");
        let (tags, one) = ([tag("v2")], digest("one"));
        let late = house.ledger.adopt(&key(), &tags, &one, Origin::FirstSight, before).await;
        assert_eq!(late, Ok(Adopt::Freed));
    }
    for (coverage, told) in [(Coverage::Ruled, true), (Coverage::Unruled, false)] {
        let house = House::shared();
        house.shelf.set("v1", &manifest("one"));
        house.meanwhile(|ledger| async move { ledger.close().await });
        let ruling = house.judge.delete_mutable(&key(), &v1, &caller, coverage).await;
        let unmarked = matches!(&ruling, Ruling::Deleted { unmarked: Some(_), .. });
        assert_eq!(unmarked, told, "{ruling:?}");
    }
    // Nobody else uses it.
    let house = House::new();
    house.shelf.set("v1", &manifest("one"));
    house.ledger.close().await;
    deleted(&house.judge.delete_mutable(&key(), &v1, &caller, Coverage::Ruled).await, &[]);
}

/// A push under a mutable rule's tag is bound between the mark and the registry's answer: its entry has
/// another life then, and the same image.
#[tokio::test(start_paused = true)]
async fn a_mutable_tag_that_is_bound_during_a_delete_is_freed_by_it() {
    for by in ["mutable rule", "mixed rule"] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        house.shelf.set("dev-1", &manifest("one"));
        let attempt = house.claimed("dev-1", "one").await;
        let freed = house.ledger.lookup(&key(), &[]).await.unwrap().freed;
        house.meanwhile(move |ledger| async move {
            let (dev, one) = ([tag("dev-1")], digest("one"));
            let bound = ledger.bind(&key(), &dev, &one, attempt, freed).await;
            assert_eq!(bound, Ok(Bind::Bound));
        });
        let one = Reference::Digest(digest("one"));
        let ruling = match by {
            "mutable rule" => {
                house.judge.delete_mutable(&key(), &one, &Caller::default(), Coverage::Ruled).await
            }
            _ => house.delete(Deletes::Keep, one).await,
        };
        assert!(matches!(ruling, Ruling::Deleted { unmarked: None, .. }), "{by}: {ruling:?}");
        assert_eq!(house.entry("dev-1").await, Entry::Absent, "{by}");
    }
}
