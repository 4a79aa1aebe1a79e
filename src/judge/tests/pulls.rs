//! Pulls of protected tags, step by step.

use super::*;
use crate::judge::pull::{Basis, Pull, Pulled, Unsure};
use crate::ledger::Unavailable;

impl House {
    async fn pull(&self, name: &str) -> Pulled<Answer> {
        self.pull_with(name, false).await
    }

    async fn pull_with(&self, name: &str, strict: bool) -> Pulled<Answer> {
        let pull = Pull { repository: key(), tag: tag(name), strict };
        let caller = Caller { let_in: true, ..Caller::default() };
        self.judge.pull(pull, &caller, Reading::Get).await
    }

    /// By a client of whom nothing is known.
    async fn pull_as_stranger(&self, name: &str) -> Pulled<Answer> {
        let pull = Pull { repository: key(), tag: tag(name), strict: false };
        self.judge.pull(pull, &Caller::default(), Reading::Get).await
    }

    /// One for each thing that the ledger may hold of `v1`, all the same to the registry: it has
    /// another image under the tag, and under no other.
    async fn of_each_state() -> Vec<(&'static str, Self)> {
        let mut houses = Vec::new();
        for state in ["absent", "pending", "bound", "bound elsewhere", "withdrawn", "down"] {
            let house = Self::new();
            let name = if state == "bound" { "behind" } else { "one" };
            match state {
                "absent" => {}
                "pending" => drop(house.claimed("v1", name).await),
                _ => drop(house.push(&["v1"], name).await),
            }
            if state == "withdrawn" {
                house.ledger.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
                house.judge.ledger.lookup(&key(), &[tag("v1")]).await.unwrap();
            }
            if state == "down" {
                tokio::time::advance(Duration::from_secs(3600)).await;
                house.ledger.close().await;
            }
            house.shelf.set("v1", &manifest("behind"));
            house.shelf.calls();
            houses.push((state, house));
        }
        houses
    }
}

#[track_caller]
fn serves(pulled: &Pulled<Answer>, seed: &str, expected: Basis) {
    match pulled {
        Pulled::Served { digest: served, answer, basis } => {
            assert_eq!((*served, *basis), (digest(seed), expected));
            assert_eq!(answer.body, seed.as_bytes());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_bound_tag_is_one_request_by_digest_wherever_the_registrys_tag_is() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.set("v1", &manifest("behind"));
    house.shelf.calls();
    for _ in 0..2 {
        serves(&house.pull("v1").await, "one", Basis::Ledger);
    }
    house.shelf.tags.lock().unwrap().clear();
    serves(&house.pull("v1").await, "one", Basis::Ledger);
    assert_eq!(house.shelf.calls(), ["serve "; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_tag_never_heard_of_is_bound_to_what_is_there_before_it_is_served() {
    let house = House::new();
    house.shelf.set("v1", &manifest("one"));
    serves(&house.pull("v1").await, "one", Basis::FirstSight);
    assert_eq!(house.shelf.calls(), ["resolve v1", "serve "]);
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.origin == Origin::FirstSight));
    house.shelf.set("v1", &manifest("two"));
    serves(&house.pull("v1").await, "one", Basis::Ledger);
    refused(&house.push(&["v1"], "two").await, "v1", "one");
}

#[tokio::test(start_paused = true)]
async fn whom_the_registry_does_not_let_in_it_answers_alike_whatever_the_ledger_holds() {
    for (play, status) in [(Play::Deny, 403), (Play::Refuse, 400)] {
        for (state, house) in House::of_each_state().await {
            house.shelf.plan("ask", &[play]);
            let pulled = house.pull_as_stranger("v1").await;
            assert!(matches!(&pulled, Pulled::Relayed(a) if a.status == status), "{pulled:?}");
            assert_eq!(house.shelf.calls(), ["ask v1"], "{state}: one request, to what was asked");
        }
    }
    for (state, house) in House::of_each_state().await {
        house.shelf.plan("ask", &[Play::Unclear]);
        let pulled = house.pull_as_stranger("v1").await;
        let expected = Pulled::Undecided(Unsure::Registry(Trouble::TimedOut));
        assert_eq!((pulled, house.shelf.calls()), (expected, vec!["ask v1".to_owned()]), "{state}");
    }
    // Some say 404 for "no access".
    for (state, house) in House::of_each_state().await {
        house.shelf.plan("ask", &[Play::NotFound]);
        for call in ["look", "look-digest", "resolve", "serve"] {
            house.shelf.plan(call, &[Play::NotFound]);
        }
        let pulled = house.pull_as_stranger("v1").await;
        assert!(matches!(&pulled, Pulled::Relayed(a) if a.status == 404), "{state}: {pulled:?}");
        let calls = house.shelf.calls().len();
        // With the ledger down nothing is known to ask for.
        assert_eq!(calls, if state == "down" { calls } else { 2 }, "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn whom_the_registry_lets_in_it_is_asked_once_where_its_tag_is_the_bound_image() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.calls();
    serves(&house.pull_as_stranger("v1").await, "one", Basis::Ledger);
    assert_eq!(house.shelf.calls(), ["ask v1"]);
    house.shelf.set("v1", &manifest("behind"));
    serves(&house.pull_as_stranger("v1").await, "one", Basis::Ledger);
    assert_eq!(house.shelf.calls(), ["ask v1", "serve "]);
    // A tag that is gone, or hidden by a narrow `Accept`.
    house.shelf.tags.lock().unwrap().clear();
    serves(&house.pull_as_stranger("v1").await, "one", Basis::Ledger);
    assert_eq!(house.shelf.calls(), ["ask v1", "serve "]);
}

#[tokio::test(start_paused = true)]
async fn who_is_let_in_no_more_is_told_what_the_registry_says_to_the_tag() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.calls();
    house.shelf.plan("serve", &[Play::Deny]);
    house.shelf.plan("ask", &[Play::Refuse]);
    let pulled = house.pull("v1").await;
    assert!(matches!(&pulled, Pulled::Relayed(a) if a.status == 400), "{pulled:?}");
    assert_eq!(house.shelf.calls(), ["serve ", "ask v1"]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_bound_to_what_the_registry_does_not_show() {
    for (play, status) in [(Play::NotFound, 404), (Play::Deny, 403)] {
        let house = House::new();
        house.shelf.set("v1", &manifest("one"));
        house.shelf.plan("resolve", &[play]);
        let pulled = house.pull("v1").await;
        assert!(matches!(&pulled, Pulled::Relayed(a) if a.status == status), "{pulled:?}");
        assert_eq!(house.entry("v1").await, Entry::Absent);
    }
    let house = House::new();
    house.shelf.plan("resolve", &[Play::Unclear]);
    house.shelf.set("v1", &manifest("one"));
    let pulled = house.pull("v1").await;
    assert_eq!(pulled, Pulled::Undecided(Unsure::Registry(Trouble::Status(500))));
    assert_eq!(house.entry("v1").await, Entry::Absent);
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_served_once_its_tag_is_there_and_no_other_image_is() {
    let house = House::new();
    house.claimed("v1", "one").await;
    assert_eq!(house.pull("v1").await, Pulled::Unknown);
    house.shelf.set("v1", &manifest("behind"));
    assert_eq!(house.pull("v1").await, Pulled::Undecided(Unsure::Elsewhere));
    assert!(matches!(house.entry("v1").await, Entry::Pending(_)), "nothing was learned");
    house.shelf.plan("look", &[Play::Deny, Play::Unclear]);
    assert!(matches!(house.pull("v1").await, Pulled::Relayed(a) if a.status == 403));
    assert!(matches!(house.pull("v1").await, Pulled::Undecided(Unsure::Registry(_))));
    house.shelf.set("v1", &manifest("one"));
    serves(&house.pull("v1").await, "one", Basis::Ledger);
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.origin == Origin::Push));
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_tag_is_unknown_to_whom_the_registry_lets_in() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.ledger.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
    house.judge.ledger.lookup(&key(), &[tag("v1")]).await.unwrap();
    assert_eq!(house.pull("v1").await, Pulled::Unknown);
    house.shelf.manifests.lock().unwrap().clear();
    assert_eq!(house.pull("v1").await, Pulled::Unknown);
    house.shelf.store(&manifest("one"));
    house.shelf.plan("look-digest", &[Play::Deny, Play::Unclear]);
    assert!(matches!(house.pull("v1").await, Pulled::Relayed(a) if a.status == 403));
    assert!(matches!(house.pull("v1").await, Pulled::Undecided(Unsure::Registry(_))));
}

#[tokio::test(start_paused = true)]
async fn the_registrys_word_on_a_bound_digest_is_told_as_it_is() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.plan("serve", &[Play::NotFound, Play::Deny, Play::Refuse, Play::Unclear]);
    assert!(matches!(house.pull("v1").await, Pulled::Relayed(a) if a.status == 404));
    assert!(matches!(house.pull("v1").await, Pulled::Relayed(a) if a.status == 403));
    assert!(
        matches!(house.pull("v1").await, Pulled::Wrong { digest: d, .. } if d == digest("one"))
    );
    assert!(matches!(house.pull("v1").await, Pulled::Undecided(Unsure::Registry(_))));
    assert!(matches!(house.entry("v1").await, Entry::Sealed(_)), "the name stays bound");
}

#[tokio::test(start_paused = true)]
async fn a_name_let_go_of_elsewhere_is_asked_for_again_once_its_image_is_gone() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    serves(&house.pull("v1").await, "one", Basis::Ledger);
    // Another proxy frees the name and pushes anew; the old image is collected.
    let Entry::Sealed(sealed) = house.entry("v1").await else { panic!("it is not sealed") };
    house.ledger.release(&key(), &tag("v1"), sealed.token()).await.unwrap();
    house.shelf.manifests.lock().unwrap().clear();
    house.shelf.set("v1", &manifest("two"));
    bind(&house.ledger, "v1", "two").await;
    serves(&house.pull("v1").await, "two", Basis::Ledger);
}

#[tokio::test(start_paused = true)]
async fn without_a_ledger_what_was_seen_is_served_and_the_rest_by_the_setting() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.set("v1", &manifest("behind"));
    house.shelf.set("v2", &manifest("two"));
    tokio::time::advance(Duration::from_secs(3600)).await;
    house.ledger.close().await;
    serves(&house.pull("v1").await, "one", Basis::Memory);
    assert_eq!(house.pull("v2").await, Pulled::Unverified);
    for name in ["v1", "v2"] {
        let pulled = house.pull_with(name, true).await;
        assert_eq!(pulled, Pulled::Undecided(Unsure::Ledger(Unavailable::Closed)), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_that_gets_ahead_of_a_first_sight_wins() {
    // Claimed for another image than is there: while that is so, neither is served.
    let house = House::new();
    house.shelf.set("v1", &manifest("behind"));
    let mut machine = crate::judge::pull::Machine::<Answer>::new(Pull {
        repository: key(),
        tag: tag("v1"),
        strict: false,
    })
    .0;
    use crate::judge::pull::{Action, Event, Step};
    use crate::ledger::cached::Known;
    let step = machine.on(Event::Known(Known::Entry(Entry::Absent, FreedNumber(7))));
    assert_eq!(step, Step::Do(Action::Resolve));
    let step = machine.on(Event::Seen(Sighting::Found(digest("behind"))));
    let (behind, origin) = (digest("behind"), Origin::FirstSight);
    let seal = Action::Adopt { digest: behind, origin, freed: FreedNumber(7) };
    assert_eq!(step, Step::Do(seal));
    assert_eq!(machine.on(Event::Adopted(Ok(Adopt::Conflict(vec![])))), Step::Do(Action::Lookup));
    let step = machine.on(Event::Known(Known::Fresh(digest("one"))));
    assert_eq!(step, Step::Do(Action::Serve(digest("one"))));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_bound_at_first_sight_beside_an_unjudged_write() {
    let house = House::new();
    house.shelf.set("v1", &manifest("one"));
    let write = house.judge.unjudged().enter(Affected::Tags(key(), vec![tag("v1")])).unwrap();
    assert_eq!(house.pull("v1").await, Pulled::Undecided(Unsure::Busy));
    assert_eq!((house.entry("v1").await, house.shelf.calls()), (Entry::Absent, vec![]));
    drop(write);
    serves(&house.pull("v1").await, "one", Basis::FirstSight);
}
