//! Imports and comparisons, on behalf of an operator.

use std::time::Duration;

use super::*;
use crate::judge::drift::Drift;
use crate::judge::inspection::{Compared, Imported};
use crate::ledger::Release;

impl House {
    async fn import(&self, tags: &[&str]) -> Imported {
        let tags = tags.iter().map(|name| tag(name)).collect();
        self.judge.import(&*self.shelf, &Caller::default(), &key(), tags).await.unwrap()
    }

    async fn compare(&self, name: &str) -> Compared {
        let caller = Caller::default();
        let compared = self.judge.compare(&*self.shelf, &caller, &key(), vec![tag(name)]).await;
        compared.unwrap().remove(0).1
    }

    fn watching() -> Self {
        let mut house = Self::new();
        let drift = Drift::new(Duration::from_secs(60), None, Box::new(|_, _| ()));
        house.judge = house.judge.watching(Arc::new(drift));
        house
    }

    fn known(&self) -> usize {
        self.judge.drift().unwrap().list().len()
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_ledger_lacks_is_bound_and_what_it_has_is_not_looked_at() {
    let house = House::new();
    assert!(admitted(&house.push(&["bound"], "one").await));
    house.claimed("claimed", "one").await;
    for (name, seed) in [("bound", "moved"), ("claimed", "other"), ("new", "two")] {
        house.shelf.set(name, &manifest(seed));
    }
    house.shelf.calls();
    let imported = house.import(&["bound", "claimed", "new", "none"]).await;
    assert_eq!(imported.sealed, [(tag("new"), digest("two"))]);
    assert_eq!((imported.already, imported.pending), (vec![tag("bound")], vec![tag("claimed")]));
    assert_eq!((imported.absent, imported.unseen), (vec![tag("none")], vec![]));
    assert_eq!(house.shelf.calls(), ["resolve new", "resolve none"]);
    assert!(matches!(house.entry("new").await, Entry::Sealed(s) if s.origin == Origin::Import));
    assert_eq!(house.entry("bound").await.digest(), Some(&digest("one")));
    assert_eq!(house.import(&["new"]).await.already, [tag("new")]);
}

#[tokio::test(start_paused = true)]
async fn what_can_t_be_seen_keeps_nothing_else_from_being_bound() {
    let house = House::new();
    for name in ["a", "b", "c", "d"] {
        house.shelf.set(name, &manifest(name));
    }
    let under_way = house.judge.unjudged().enter(Affected::Tags(key(), vec![tag("c")])).unwrap();
    house.shelf.plan("resolve", &[Play::Deny, Play::Unclear]);
    let imported = house.import(&["a", "b", "c", "d"]).await;
    assert_eq!(imported.sealed, [(tag("d"), digest("d"))]);
    let unseen: Vec<_> = imported.unseen.iter().map(|(tag, _)| tag.as_str()).collect();
    assert_eq!(unseen, ["a", "b", "c"]);
    drop(under_way);
    assert_eq!(house.import(&["a", "b", "c"]).await.sealed.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn differences_are_told_and_those_that_may_be_hidden_are_not_taken_for_drift() {
    let house = House::watching();
    assert_eq!(house.compare("v1").await, Compared::Absent);
    house.claimed("claimed", "one").await;
    assert_eq!(house.compare("claimed").await, Compared::Pending);
    assert!(admitted(&house.push(&["v1"], "one").await));
    assert_eq!((house.compare("v1").await, house.known()), (Compared::Equal, 0));
    for play in [Play::Deny, Play::Unclear] {
        house.shelf.plan("look", &[play]);
        assert!(matches!(house.compare("v1").await, Compared::Unseen(_)));
        assert_eq!(house.known(), 0);
    }
    let differs = |seen| Compared::Differs { bound: digest("one"), seen };
    // Neither the tag nor its image is shown: told here, and not to those who pull.
    house.shelf.plan("look", &[Play::NotFound]);
    house.shelf.plan("look-digest", &[Play::NotFound]);
    assert_eq!((house.compare("v1").await, house.known()), (differs(None), 0));
    house.shelf.plan("look", &[Play::NotFound]);
    assert_eq!((house.compare("v1").await, house.known()), (differs(None), 1));
    house.shelf.set("v1", &manifest("two"));
    assert_eq!((house.compare("v1").await, house.known()), (differs(Some(digest("two"))), 1));
    // Nothing of it was adopted.
    assert_eq!(house.entry("v1").await.digest(), Some(&digest("one")));
    let Entry::Sealed(sealed) = house.entry("v1").await else { panic!("it is bound") };
    let released = house.ledger.release(&key(), &tag("v1"), sealed.token()).await;
    assert_eq!(released, Ok(Release::Freed));
    house.judge.drift().unwrap().forget(&key(), &tag("v1"));
    assert_eq!((house.compare("v1").await, house.known()), (Compared::Absent, 0));
}

#[tokio::test(start_paused = true)]
async fn a_tag_deleted_through_taglock_is_no_drift() {
    let house = House::watching();
    assert!(admitted(&house.push(&["v1"], "one").await));
    house.ledger.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
    house.shelf.tags.lock().unwrap().clear();
    assert_eq!((house.compare("v1").await, house.known()), (Compared::Withdrawn, 0));
}
