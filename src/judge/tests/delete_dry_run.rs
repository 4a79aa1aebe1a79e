//! Dry runs of deletes: what a rule that is not enforced would refuse.

use super::delete::rule;
use super::*;
use crate::judge::delete::{Deletion, MAX_TAGS, NoDelete};
use crate::rules::Deletes;

/// A rule that is not enforced tells what it would refuse, and leaves nothing in the ledger.
#[tokio::test(start_paused = true)]
async fn a_dry_run_of_a_delete_refuses_what_the_rule_would() {
    let index = format!(r#"{{"manifests":[{{"digest":"{}"}}]}}"#, digest("part"));
    // The parts of each can be read.
    let image = |name: &str| format!(r#"{{"name":"{name}"}}"#);
    let immutable = |name| Some(NoDelete::Immutable(tag(name)));
    let part = Some(NoDelete::Part(tag("v2")));
    let busy = Some(NoDelete::Busy(tag("v3")));
    for (deletes, reference, expected) in [
        (Deletes::Refuse, Reference::Tag(tag("v1")), immutable("v1")),
        (Deletes::Refuse, Reference::Digest(digest(&image("one"))), immutable("v1")),
        (Deletes::Refuse, Reference::Digest(digest(&image("old"))), immutable("old")),
        (Deletes::Refuse, Reference::Digest(digest("part")), part),
        (Deletes::Refuse, Reference::Digest(digest(&image("dev"))), None),
        (Deletes::Keep, Reference::Tag(tag("v1")), None),
        (Deletes::Keep, Reference::Tag(tag("v3")), busy.clone()),
        (Deletes::Keep, Reference::Digest(digest(&image("claimed"))), busy.clone()),
        (Deletes::Keep, Reference::Digest(digest(&image("old"))), None),
        (Deletes::Keep, Reference::Digest(digest("part")), None),
        (Deletes::Release, Reference::Digest(digest(&image("claimed"))), busy),
        (Deletes::Release, Reference::Digest(digest(&image("one"))), None),
        (Deletes::Release, Reference::Digest(digest(&image("old"))), None),
        (Deletes::Release, Reference::Digest(digest("part")), None),
    ] {
        let house = House::new();
        house.shelf.store(&manifest("part"));
        assert!(admitted(&house.push(&["v1"], &image("one")).await));
        assert!(admitted(&house.push(&["v2"], &index).await));
        house.shelf.set("old", &manifest(&image("old")));
        house.shelf.set("dev-1", &manifest(&image("dev")));
        house.shelf.set("v3", &manifest(&image("claimed")));
        house.claimed("v3", &image("claimed")).await;
        let before = house.ledger.sequence(&key()).await;
        let deletion = Deletion { repository: key(), reference, rule: rule(deletes) };
        let no = house.judge.would_refuse(&deletion, &Caller::default()).await;
        assert_eq!(no, expected, "{deletes:?} {}", deletion.reference);
        assert_eq!(house.ledger.sequence(&key()).await, before, "nothing is adopted");
        assert_eq!(house.deletes_sent(), 0);
        // The registry says so to whom it does not let in.
        house.shelf.plan("look", &[Play::Deny]);
        house.shelf.plan("look-digest", &[Play::Deny]);
        assert_eq!(house.judge.would_refuse(&deletion, &Caller::default()).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_of_a_delete_among_too_many_tags_says_so() {
    for (deletes, expected) in [
        (Deletes::Refuse, Some(NoDelete::TooManyTags)),
        (Deletes::Keep, Some(NoDelete::TooManyTags)),
        (Deletes::Release, None),
    ] {
        let house = House::new();
        for n in 0..=MAX_TAGS {
            house.shelf.tags.lock().unwrap().insert(tag(&format!("t{n}")), digest("many"));
        }
        house.shelf.store(&manifest("one"));
        let reference = Reference::Digest(digest("one"));
        let deletion = Deletion { repository: key(), reference, rule: rule(deletes) };
        let no = house.judge.would_refuse(&deletion, &Caller::default()).await;
        assert_eq!(no, expected, "{deletes:?}");
    }
}
