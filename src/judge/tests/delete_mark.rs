//! Delete marks: which DELETE leaves one, and what ends it.

use super::delete::{deleted, rule};
use super::*;
use crate::judge::delete::{Deletion, Ruling, Unsettled};
use crate::ledger::DeleteEnd;
use crate::rules::Deletes;

#[tokio::test(start_paused = true)]
async fn a_delete_whose_outcome_is_unknown_keeps_its_mark_until_one_is_answered() {
    for (deletes, second) in [
        (Deletes::Keep, Play::Truth),
        (Deletes::Release, Play::Truth),
        (Deletes::Release, Play::NotFound),
    ] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        house.shelf.plan("delete", &[Play::Unclear, second]);
        let unknown = Ruling::Undecided(Unsettled::OutcomeUnknown(Trouble::TimedOut));
        assert_eq!(house.delete(deletes, digest("one")).await, unknown);
        // A push of the image waits, and says why it ends; others go on.
        for _ in 0..2 {
            let verdict = house.push(&["v2"], "one").await;
            let expected = Verdict::Undecided(Undecided::Deleting(digest("one")));
            assert_eq!(verdict, expected);
        }
        assert!(admitted(&house.push(&["v3"], "two").await));
        assert_eq!(house.entry("v2").await, Entry::Absent);
        deleted(&house.delete(deletes, digest("one")).await, &["v1"]);
        assert_eq!(house.ledger.delete_marks(&key()).await, Ok(vec![]));
        assert!(admitted(&house.push(&["v1"], "one").await));
    }
    // One that the registry refuses says nothing about the first.
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.plan("delete", &[Play::Unclear, Play::Refuse]);
    house.delete(Deletes::Keep, digest("one")).await;
    house.delete(Deletes::Keep, digest("one")).await;
    assert_eq!(house.ledger.delete_marks(&key()).await.unwrap()[0].1.attempts.len(), 1);
}

/// Another DELETE, whose first answer never came, finds the image gone; a client that was let in before
/// hears so, and the mark ends.
#[tokio::test(start_paused = true)]
async fn a_404_ends_a_delete_of_unknown_outcome_for_whom_the_registry_lets_in() {
    let let_in = Caller { let_in: true, ..Caller::default() };
    for (caller, ends) in [(Caller::default(), false), (let_in, true)] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        house.shelf.plan("delete", &[Play::DoneButUnclear]);
        let reference = Reference::Digest(digest("one"));
        let deletion = Deletion { repository: key(), reference, rule: rule(Deletes::Release) };
        let unknown = Ruling::Undecided(Unsettled::OutcomeUnknown(Trouble::TimedOut));
        assert_eq!(house.judge.delete(&deletion, &caller).await, unknown);
        // The image is gone, and so the registry lets nobody look at it.
        house.shelf.plan("delete", &[Play::NotFound]);
        let ruling = house.judge.delete(&deletion, &caller).await;
        let left = house.ledger.delete_marks(&key()).await.unwrap();
        if ends {
            deleted(&ruling, &["v1"]);
            assert_eq!((left, house.entry("v1").await), (vec![], Entry::Absent));
        } else {
            assert!(matches!(&ruling, Ruling::Relayed(a) if a.status == 404), "{ruling:?}");
            // By each algorithm.
            assert_eq!(left.len(), 2);
        }
        // Of an image without a mark a 404 is the registry's.
        let other = Deletion { reference: digest("other").into(), ..deletion.clone() };
        let ruling = house.judge.delete(&other, &caller).await;
        assert!(matches!(&ruling, Ruling::Relayed(a) if a.status == 404), "{ruling:?}");
    }
}

/// A DELETE ends its own marks and those of earlier ones of its image: another image's stay.
#[tokio::test(start_paused = true)]
async fn a_delete_ends_no_mark_of_another_image() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.push(&["v2"], "two").await;
    house.shelf.plan("delete", &[Play::Unclear, Play::Unclear]);
    for seed in ["one", "two"] {
        let ruling = house.delete(Deletes::Release, digest(seed)).await;
        assert!(matches!(ruling, Ruling::Undecided(Unsettled::OutcomeUnknown(_))), "{ruling:?}");
    }
    let both = house.ledger.delete_marks(&key()).await.unwrap();
    deleted(&house.delete(Deletes::Release, digest("one")).await, &["v1"]);
    let left = house.ledger.delete_marks(&key()).await.unwrap();
    assert_eq!((both.len(), left.len()), (4, 2));
    assert!(left.iter().any(|(marked, _)| *marked == digest("two")));
    assert!(matches!(house.entry("v2").await, Entry::Sealed(_)));
}

/// Whether a DELETE is under way tells an operator who would clear its mark.
#[tokio::test(start_paused = true)]
async fn a_delete_is_under_way_until_it_has_an_answer() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    let judge = house.judge.clone();
    house.meanwhile(move |ledger| async move {
        let marks = ledger.delete_marks(&key()).await.unwrap();
        assert!(judge.deletes_now(&marks[0].1.attempts));
        assert!(!judge.deletes_now(&[AttemptId::random()]));
    });
    house.shelf.plan("delete", &[Play::Unclear]);
    house.delete(Deletes::Keep, digest("one")).await;
    let marks = house.ledger.delete_marks(&key()).await.unwrap();
    assert!(!house.judge.deletes_now(&marks[0].1.attempts));
}

/// The mark is what orders a delete among pushes. Where it was lost, what is bound now may be a later push.
#[tokio::test(start_paused = true)]
async fn a_delete_whose_mark_was_lost_says_that_the_names_stay_bound() {
    for deletes in [Deletes::Keep, Deletes::Release] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        let before = house.entry("v1").await;
        house.meanwhile(|ledger| async move {
            let marks = ledger.delete_marks(&key()).await.unwrap();
            let (one, mark) = &marks[0];
            let kept = DeleteEnd::Kept;
            ledger.end_delete(&key(), one, &mark.attempts, &[], kept).await.unwrap();
        });
        match house.delete(deletes, digest("one")).await {
            Ruling::Deleted { tags, unmarked: Some(_), .. } => assert!(tags.is_empty()),
            other => panic!("{other:?}"),
        }
        assert_eq!(house.entry("v1").await, before);
        // Another tag is bound to the image once the mark is gone.
        let house = House::new();
        house.shelf.set("dev-1", &manifest("one"));
        house.meanwhile(|ledger| async move {
            let marks = ledger.delete_marks(&key()).await.unwrap();
            for (digest, mark) in &marks {
                let kept = DeleteEnd::Kept;
                ledger.end_delete(&key(), digest, &mark.attempts, &[], kept).await.unwrap();
            }
            bind(&ledger, "v2", "one").await;
        });
        let ruling = house.delete(deletes, digest("one")).await;
        assert!(matches!(ruling, Ruling::Deleted { unmarked: Some(_), .. }), "{ruling:?}");
    }
}
