//! Deletes: what is marked, what is freed, and when neither.

use super::*;
use crate::judge::delete::{Deletion, MAX_TAGS, NoDelete, Ruling, Unsettled};
use crate::ledger::Unavailable;
use crate::rules::{
    Deletes, Mutability, RefusalStyle, RepositoryPattern, Rule, Source, TagPattern,
};

const ALL: [Deletes; 3] = [Deletes::Refuse, Deletes::Keep, Deletes::Release];

pub fn rule(deletes: Deletes) -> Rule {
    Rule {
        name: "r".into(),
        source: Source::CommandLine,
        repositories: vec![RepositoryPattern::parse("**").unwrap()],
        mutability: Mutability::Immutable,
        except: vec![TagPattern::parse("dev-*").unwrap()],
        protect_signatures: false,
        refusal: RefusalStyle::Oci,
        deletes,
        except_must_be_bound: false,
        enforce: true,
        anonymous_pull: false,
    }
}

impl House {
    pub async fn delete(&self, deletes: Deletes, reference: impl Into<Reference>) -> Ruling {
        let deletion =
            Deletion { repository: key(), reference: reference.into(), rule: rule(deletes) };
        self.judge.delete(&deletion, &Caller::default()).await
    }

    async fn withdrawn(&self, name: &str) -> bool {
        match self.entry(name).await {
            Entry::Sealed(sealed) => sealed.withdrawn.is_some(),
            other => panic!("{other:?}"),
        }
    }

    pub fn deletes_sent(&self) -> usize {
        self.shelf.calls().iter().filter(|call| call.starts_with("delete")).count()
    }
}

#[track_caller]
pub fn deleted(ruling: &Ruling, expected: &[&str]) {
    match ruling {
        Ruling::Deleted { tags, unmarked: None, .. } => {
            let mut tags: Vec<_> = tags.iter().map(Tag::as_str).collect();
            tags.sort_unstable();
            assert_eq!(tags, expected);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn refuse_sends_no_delete_of_what_an_immutable_tag_is_bound_to() {
    let house = House::new();
    let (one, old) = (r#"{"n":1}"#, r#"{"n":2}"#);
    house.push(&["v1"], one).await;
    let no = Ruling::Refused(NoDelete::Immutable(tag("v1")));
    assert_eq!(house.delete(Deletes::Refuse, tag("v1")).await, no);
    assert_eq!(house.delete(Deletes::Refuse, digest(one)).await, no);
    // A tag from before taglock counts like any other.
    house.shelf.set("old", &manifest(old));
    let no = Ruling::Refused(NoDelete::Immutable(tag("old")));
    assert_eq!(house.delete(Deletes::Refuse, digest(old)).await, no);
    assert_eq!(house.deletes_sent(), 0);
    // What only a mutable tag has may go.
    house.shelf.set("dev-1", &manifest("dev"));
    deleted(&house.delete(Deletes::Refuse, digest("dev")).await, &[]);
    assert_eq!(house.shelf.tag("dev-1"), None);
}

#[tokio::test(start_paused = true)]
async fn refuse_keeps_the_parts_of_an_image_too() {
    let house = House::new();
    let part = house.shelf.store(&manifest("part"));
    let index = format!(r#"{{"manifests":[{{"digest":"{part}"}}]}}"#);
    house.push(&["v1"], &index).await;
    let no = Ruling::Refused(NoDelete::Part(tag("v1")));
    assert_eq!(house.delete(Deletes::Refuse, part).await, no);
    assert_eq!(house.deletes_sent(), 0);
    // An old index of referrers is nobody's part: no image is read for it.
    let referrers = house.shelf.store(&manifest(r#"{"manifests":[]}"#));
    deleted(&house.delete(Deletes::Refuse, referrers).await, &[]);
    assert_eq!(house.shelf.calls().iter().filter(|call| call.starts_with("fetch")).count(), 1);
    deleted(&house.delete(Deletes::Keep, part).await, &[]);
}

#[tokio::test(start_paused = true)]
async fn parts_that_can_t_be_read_are_not_none() {
    let undecided = |why| Ruling::Undecided(Unsettled::Registry(Trouble::Garbage(why)));
    let part = manifest("part");
    for image in ["nonsense", r#"{"manifests":[{}]}"#, r#"{"Manifests":[]}"#] {
        let house = House::new();
        let part = house.shelf.store(&part);
        house.push(&["v1"], image).await;
        let ruling = house.delete(Deletes::Refuse, part).await;
        assert_eq!(ruling, undecided("an image whose parts can't be read"), "{image}");
        assert_eq!(house.deletes_sent(), 0);
    }
    // The first is the part itself, the second the tag's image.
    for (plays, why) in [
        (&[Play::Unclear][..], "too large"),
        (&[Play::Truth, Play::Unclear], "too large"),
        (&[Play::Truth, Play::Refuse], OTHER_BYTES),
    ] {
        let house = House::new();
        let part = house.shelf.store(&part);
        house.push(&["v1"], "{}").await;
        house.shelf.plan("fetch", plays);
        assert_eq!(house.delete(Deletes::Refuse, part).await, undecided(why), "{plays:?}");
        assert_eq!(house.deletes_sent(), 0);
    }
    for plays in [&[Play::Refuse][..], &[Play::Truth, Play::Deny]] {
        let house = House::new();
        let part = house.shelf.store(&part);
        house.push(&["v1"], "{}").await;
        house.shelf.plan("fetch", plays);
        deleted(&house.delete(Deletes::Refuse, part).await, &[]);
    }
}

#[tokio::test(start_paused = true)]
async fn keep_withdraws_every_tag_of_the_image_and_only_it_comes_back() {
    for by_tag in [true, false] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        let ruling = if by_tag {
            house.delete(Deletes::Keep, tag("v1")).await
        } else {
            house.push(&["v2"], "one").await;
            house.push(&["v3"], "three").await;
            house.shelf.set("old", &manifest("one"));
            house.shelf.set("dev-1", &manifest("one"));
            house.delete(Deletes::Keep, digest("one")).await
        };
        deleted(&ruling, if by_tag { &["v1"] } else { &["old", "v1", "v2"] });
        assert!(house.withdrawn("v1").await);
        if !by_tag {
            assert!(house.withdrawn("old").await && house.withdrawn("v2").await);
            assert!(!house.withdrawn("v3").await);
            assert_eq!(house.entry("dev-1").await, Entry::Absent);
        }
        // No other image ever.
        refused(&house.push(&["v1"], "two").await, "v1", "one");
        assert!(admitted(&house.push(&["v1"], "one").await));
        assert!(!house.withdrawn("v1").await);
    }
}

#[tokio::test(start_paused = true)]
async fn release_frees_the_names() {
    for by_tag in [true, false] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        let ruling = if by_tag {
            house.delete(Deletes::Release, tag("v1")).await
        } else {
            house.push(&["v2"], "one").await;
            house.delete(Deletes::Release, digest("one")).await
        };
        deleted(&ruling, if by_tag { &["v1"] } else { &["v1", "v2"] });
        assert_eq!(house.entry("v1").await, Entry::Absent);
        assert!(admitted(&house.push(&["v1"], "two").await));
        refused(&house.push(&["v1"], "one").await, "v1", "two");
    }
}

#[tokio::test(start_paused = true)]
async fn release_never_frees_a_later_life_of_the_name() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    let Entry::Sealed(first) = house.entry("v1").await else { panic!() };
    house.meanwhile(move |ledger| async move {
        ledger.release(&key(), &tag("v1"), first.token()).await.unwrap();
        bind(&ledger, "v1", "two").await;
    });
    deleted(&house.delete(Deletes::Release, tag("v1")).await, &[]);
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.digest == digest("two")));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_bound_to_an_image_while_the_registry_deletes_it() {
    for deletes in ALL {
        let house = House::new();
        house.shelf.set("dev-1", &manifest("one"));
        if deletes != Deletes::Refuse {
            house.push(&["v1"], "one").await;
        }
        let before = house.ledger.lookup(&key(), &[]).await.unwrap().freed;
        house.meanwhile(move |ledger| async move {
            let (v2, one, attempt) = ([tag("v2")], digest("one"), AttemptId::random());
            let claim = ledger.claim(&key(), &v2, &one, attempt).await;
            assert_eq!(claim, Ok(Claim::Deleting));
            let adopt = ledger.adopt(&key(), &v2, &one, Origin::Import, before).await;
            assert_eq!(adopt, Ok(Adopt::Deleting));
            bind(&ledger, "other", "two").await;
        });
        let tags: &[&str] = if deletes == Deletes::Refuse { &[] } else { &["v1"] };
        deleted(&house.delete(deletes, digest("one")).await, tags);
        // What was seen before proves nothing, and what comes after is bound as ever.
        let (v2, one) = ([tag("v2")], digest("one"));
        let late = house.ledger.adopt(&key(), &v2, &one, Origin::Import, before).await;
        assert_eq!(late, Ok(Adopt::Freed));
        assert!(admitted(&house.push(&["v2"], "one").await));
    }
}

/// The push of an image that lists the manifest is under way: the registry's list lacks its tag.
#[tokio::test(start_paused = true)]
async fn refuse_keeps_the_parts_of_an_image_that_is_claimed() {
    let part = manifest("part");
    let index = format!(r#"{{"manifests":[{{"digest":"{}"}}]}}"#, digest("part"));
    let undecided = |why| Ruling::Undecided(Unsettled::Registry(Trouble::Garbage(why)));
    let busy = Ruling::from(NoDelete::Busy(tag("v1")));
    for (image, stored, expected) in [
        (index.as_str(), true, Some(Ruling::from(NoDelete::Part(tag("v1"))))),
        (index.as_str(), false, Some(busy)),
        ("nonsense", true, Some(undecided("an image whose parts can't be read"))),
        (r#"{"manifests":[]}"#, true, None),
    ] {
        for deletes in ALL {
            let house = House::new();
            house.shelf.store(&part);
            if stored {
                house.shelf.store(&manifest(image));
            }
            house.claimed("v1", image).await;
            let ruling = house.delete(deletes, digest("part")).await;
            match (deletes, &expected) {
                (Deletes::Refuse, Some(expected)) => {
                    assert_eq!(ruling, *expected, "{image}");
                    assert_eq!(house.deletes_sent(), 0);
                    assert_eq!(house.ledger.delete_marks(&key()).await, Ok(vec![]));
                }
                _ => deleted(&ruling, &[]),
            }
        }
    }
}

#[test]
fn the_audit_has_a_label_for_every_ruling() {
    let none = || Ruling::Deleted { answer: answer(202), tags: vec![], unmarked: None };
    let one = || Ruling::Deleted { answer: answer(202), tags: vec![tag("v1")], unmarked: None };
    for (ruling, deletes, label) in [
        (none(), Deletes::Release, "deleted"),
        (none(), Deletes::Keep, "deleted"),
        (one(), Deletes::Release, "released"),
        (one(), Deletes::Keep, "withdrawn"),
        (NoDelete::TooManyTags.into(), Deletes::Refuse, "refused"),
        (Ruling::Relayed(answer(403)), Deletes::Keep, "relayed"),
        (Unavailable::TimedOut.into(), Deletes::Keep, "undecided"),
    ] {
        assert_eq!(ruling.label(deletes), label, "{ruling:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pending_tag_counts_as_bound() {
    for deletes in [Deletes::Keep, Deletes::Release] {
        let house = House::new();
        house.shelf.set("v1", &manifest("one"));
        house.claimed("v1", "one").await;
        let busy = Ruling::Refused(NoDelete::Busy(tag("v1")));
        assert_eq!(house.delete(deletes, tag("v1")).await, busy);
        assert_eq!(house.delete(deletes, digest("one")).await, busy);
        assert_eq!(house.deletes_sent(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_deleted_for_sure_is_not_marked() {
    for deletes in [Deletes::Keep, Deletes::Release] {
        for play in [Play::Deny, Play::Refuse, Play::NotFound, Play::Unclear, Play::DoneButUnclear]
        {
            let house = House::new();
            house.push(&["v1"], "one").await;
            let before = house.entry("v1").await;
            house.shelf.plan("delete", &[play]);
            let ruling = house.delete(deletes, digest("one")).await;
            match play {
                Play::Unclear | Play::DoneButUnclear => assert_eq!(
                    ruling,
                    Ruling::Undecided(Unsettled::OutcomeUnknown(Trouble::TimedOut))
                ),
                _ => assert!(matches!(ruling, Ruling::Relayed(_)), "{ruling:?}"),
            }
            assert_eq!(house.entry("v1").await, before);
            let marks = house.ledger.delete_marks(&key()).await.unwrap();
            let unknown = matches!(play, Play::Unclear | Play::DoneButUnclear);
            assert_eq!(!marks.is_empty(), unknown, "{play:?}");
            refused(&house.push(&["v1"], "two").await, "v1", "one");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_look_moves_nothing_and_hears_the_registry() {
    for deletes in ALL {
        let house = House::new();
        house.push(&["v1"], "one").await;
        house.shelf.set("old", &manifest("old"));
        house.shelf.calls();
        for reference in [Reference::Tag(tag("v1")), Reference::Digest(digest("one"))] {
            house.shelf.plan("look", &[Play::Deny]);
            house.shelf.plan("look-digest", &[Play::Deny]);
            house.shelf.plan("ask", &[Play::Deny]);
            let ruling = house.delete(deletes, reference).await;
            assert!(matches!(ruling, Ruling::Relayed(a) if a.status == 403));
            house.shelf.script.lock().unwrap().clear();
            assert_eq!(house.shelf.calls().len(), 2, "one look, the words to it, and nothing else");
        }
        assert!(!house.withdrawn("v1").await);
        assert_eq!(house.entry("old").await, Entry::Absent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_can_t_be_looked_through_keeps_its_images() {
    let house = House::new();
    house.shelf.set("dev-1", &manifest("dev"));
    for (play, expected) in [
        (Play::Unclear, Ruling::Undecided(Unsettled::Registry(Trouble::Status(500)))),
        (Play::Deny, Ruling::Relayed(answer(403))),
    ] {
        for deletes in [Deletes::Refuse, Deletes::Keep] {
            house.shelf.plan("tags", &[play]);
            assert_eq!(house.delete(deletes, digest("dev")).await, expected);
        }
    }
    for n in 0..MAX_TAGS {
        house.shelf.set(&format!("dev-1{n}"), &manifest("x"));
    }
    for deletes in [Deletes::Refuse, Deletes::Keep] {
        let ruling = house.delete(deletes, digest("dev")).await;
        assert_eq!(ruling, Ruling::Refused(NoDelete::TooManyTags));
    }
    assert_eq!(house.deletes_sent(), 0);
    // To release, only what the ledger binds matters.
    deleted(&house.delete(Deletes::Release, digest("dev")).await, &[]);
}

#[tokio::test(start_paused = true)]
async fn with_the_ledger_down_nothing_is_deleted_and_afterwards_the_name_stays() {
    for deletes in [Deletes::Keep, Deletes::Release] {
        let house = House::new();
        house.push(&["v1"], "one").await;
        house.meanwhile(|ledger| async move { ledger.close().await });
        match house.delete(deletes, tag("v1")).await {
            Ruling::Deleted { tags, unmarked: Some(Unavailable::Closed), .. } => {
                assert!(tags.is_empty());
            }
            other => panic!("{other:?}"),
        }
        house.shelf.set("v1", &manifest("one"));
        house.shelf.calls();
        for reference in [Reference::Tag(tag("v1")), Reference::Digest(digest("one"))] {
            let ruling = house.delete(deletes, reference).await;
            assert_eq!(ruling, Ruling::Undecided(Unsettled::Ledger(Unavailable::Closed)));
        }
        assert_eq!(house.deletes_sent(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_digest_of_another_algorithm_is_the_same_image() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    let other = Digest::of(Algorithm::Sha512, b"one");
    house.shelf.manifests.lock().unwrap().insert(other, manifest("one"));
    let no = Ruling::Refused(NoDelete::Immutable(tag("v1")));
    assert_eq!(house.delete(Deletes::Refuse, other).await, no);
    deleted(&house.delete(Deletes::Keep, other).await, &["v1"]);
}
