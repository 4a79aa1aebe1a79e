//! The one suite every store passes: the operation table, sets, the index, listings.
//!
//! [`holds`] walks the table cell by cell; [`agrees_with_the_table`] runs random operations
//! against a store and against the table's own functions.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::memory::Memory;
use super::*;
use crate::name::Algorithm;

pub fn key(name: &str) -> RepositoryKey {
    RepositoryKey {
        upstream: UpstreamName::parse("default").unwrap(),
        repository: RepositoryName::parse(name).unwrap(),
    }
}

pub fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

pub fn digest(seed: u8) -> Digest {
    let algorithm = if seed.is_multiple_of(2) { Algorithm::Sha512 } else { Algorithm::Sha256 };
    Digest::of(algorithm, &[seed])
}

/// A claim of no digest that is offered.
pub fn pending(sequence: u64) -> Entry {
    let (owners, since) = (vec![AttemptId::from_bytes([7; 16])], Timestamp::EPOCH);
    Entry::Pending(Pending { digest: digest(9), owners, since, sequence })
}

/// What proxies may remember of one tag, `t`: lives of it, their ends, and a mark; some with equal
/// sequence numbers.
pub fn few_offers() -> Vec<Offer> {
    let since = Timestamp::from_seconds(5);
    let bound = |seed: u8, origin, withdrawn: bool, sequence| {
        let withdrawn = withdrawn.then_some(since);
        let state = Offered::Bound { digest: digest(seed), origin, since, withdrawn };
        Offer { tag: tag("t"), state, sequence }
    };
    let freed = |sequence| Offer { tag: tag("t"), state: Offered::Freed, sequence };
    vec![
        bound(1, Origin::Push, false, 2),
        bound(1, Origin::Push, true, 2),
        bound(2, Origin::Import, false, 5),
        bound(3, Origin::Import, false, 5),
        bound(3, Origin::FirstSight, false, 5),
        freed(2),
        freed(4),
        freed(5),
    ]
}

/// Every order of every choice of up to so many of these.
pub fn orders(all: &[Offer], most: usize) -> Vec<Vec<Offer>> {
    let mut found = vec![Vec::new()];
    for (n, first) in all.iter().enumerate().filter(|_| most > 0) {
        let others: Vec<_> = [&all[..n], &all[n + 1..]].concat();
        for mut rest in orders(&others, most - 1) {
            rest.insert(0, first.clone());
            found.push(rest);
        }
    }
    found
}

/// Offers to a store that can lose entries: what remains is what the table says, in whichever order.
pub async fn restores(ledger: &dyn Ledger, most: usize) {
    let mut model = transitions::Restoring { entry: Entry::Absent, off: None };
    for (n, offers) in orders(&few_offers(), most).into_iter().enumerate() {
        let key = key(&format!("contract/restored{n}"));
        model.off = None;
        model.entry = Entry::Absent;
        for offer in &offers {
            let expected = model.offered(offer);
            let one = std::slice::from_ref(offer);
            assert_eq!(ledger.restore(&key, one).await, Ok(vec![expected]), "{offers:?}");
            let found = ledger.lookup(&key, &[tag("t")]).await.unwrap();
            assert_eq!(found.entries, std::slice::from_ref(&model.entry), "{offers:?}");
        }
    }
    restored_repositories_go_on(ledger).await;
}

async fn restored_repositories_go_on(ledger: &dyn Ledger) {
    let cells = Cells { ledger, key: key("contract/restored") };
    let key = &cells.key;
    let all = few_offers();
    let other = |offer: &Offer| Offer { tag: tag("other"), ..offer.clone() };
    // Several at once, and more than one of a tag.
    let offers = [all[2].clone(), other(&all[5]), all[0].clone(), other(&all[0])];
    let (restored, newer) = (Restored::Restored, Restored::Newer);
    let taken = ledger.restore(key, &offers).await;
    assert_eq!(taken, Ok(vec![restored, restored, newer, newer]));
    let (sequence, freed) = (ledger.sequence(key).await.unwrap(), cells.freed().await);
    assert!(sequence > 1_000_000 && freed.0 > 1_000_000, "{sequence} {freed:?}");
    assert_eq!(ledger.restore(key, &offers[..1]).await, Ok(vec![Restored::Stands]));
    let after = (ledger.sequence(key).await.unwrap(), cells.freed().await);
    assert_eq!(after, (sequence, freed), "once");
    // A tag that is known to be free is bound as any other, and a late offer does not change it.
    assert_eq!(cells.adopt("other", &digest(7)).await, Adopt::Adopted);
    assert_eq!(ledger.restore(key, &[other(&all[2])]).await, Ok(vec![newer]));
    assert_eq!(cells.sealed("other").await.digest, digest(7));
    // An entry that an offer ends was a name that is free now: looks from before prove nothing.
    let old = cells.freed().await;
    let end = Offer { sequence: sequence + 5, ..all[7].clone() };
    assert_eq!(ledger.restore(key, &[end]).await, Ok(vec![restored]));
    assert_eq!(cells.entry("t").await, Entry::Absent);
    assert!(cells.freed().await > old);
    assert_eq!(ledger.bound_to(key, &digest(2)).await, Ok(vec![]));
    assert_eq!(ledger.delete_marks(key).await, Ok(vec![]));
}

/// Binds tags to what the registry shows, by the freed number of this moment.
pub async fn adopt(
    ledger: &dyn Ledger,
    key: &RepositoryKey,
    tags: &[Tag],
    digest: &Digest,
    origin: Origin,
) -> Result<Adopt, Unavailable> {
    let freed = ledger.lookup(key, &[]).await?.freed;
    ledger.adopt(key, tags, digest, origin, freed).await
}

/// Each cell of the table, on a ledger in which `repository` is still empty.
pub async fn holds(ledger: &dyn Ledger) {
    claims_and_bindings(ledger).await;
    names_that_are_freed(ledger).await;
    deletes(ledger).await;
    pages(ledger).await;
}

struct Cells<'l> {
    ledger: &'l dyn Ledger,
    key: RepositoryKey,
}

impl Cells<'_> {
    async fn entry(&self, name: &str) -> Entry {
        self.ledger.lookup(&self.key, &[tag(name)]).await.unwrap().entries.remove(0)
    }

    async fn pending(&self, name: &str) -> Pending {
        match self.entry(name).await {
            Entry::Pending(pending) => pending,
            entry => panic!("{entry:?} is not pending"),
        }
    }

    async fn sealed(&self, name: &str) -> Sealed {
        match self.entry(name).await {
            Entry::Sealed(sealed) => sealed,
            entry => panic!("{entry:?} is not sealed"),
        }
    }

    async fn freed(&self) -> FreedNumber {
        self.ledger.lookup(&self.key, &[]).await.unwrap().freed
    }

    /// Whether what is done frees something.
    async fn frees(&self, act: impl Future<Output = ()>) -> bool {
        let before = (self.freed().await, self.ledger.sequence(&self.key).await.unwrap());
        act.await;
        let after = (self.freed().await, self.ledger.sequence(&self.key).await.unwrap());
        assert!(after.1 > before.1, "no transition");
        assert!(after.0 == before.0 || after.0 == before.0.next());
        after.0 != before.0
    }

    async fn adopt(&self, name: &str, digest: &Digest) -> Adopt {
        adopt(self.ledger, &self.key, &[tag(name)], digest, Origin::Import).await.unwrap()
    }
}

async fn claims_and_bindings(ledger: &dyn Ledger) {
    let cells = Cells { ledger, key: key("contract/table") };
    let key = &cells.key;
    let (a, b) = (AttemptId::random(), AttemptId::random());
    let (d, e) = (digest(1), digest(3));
    let one = |name: &str| vec![tag(name)];
    let none = FreedNumber::default();
    let bind = async |name: &str, d: &Digest, a: AttemptId| {
        ledger.bind(key, &[tag(name)], d, a, cells.freed().await).await.unwrap()
    };

    // Absent.
    assert_eq!(ledger.lookup(key, &one("t")).await.unwrap().freed, none);
    ledger.abort(key, &one("t"), &d, a).await.unwrap();
    ledger.withdraw(key, &one("t"), &d).await.unwrap();
    let gone = Bind::Gone { tags: one("t"), freed: none };
    assert_eq!(bind("t", &d, a).await, gone, "nothing is claimed");
    assert_eq!(cells.entry("t").await, Entry::Absent);
    assert_eq!(ledger.sequence(key).await, Ok(0), "what does nothing is no transition");
    let fresh = Claim::Granted { sealed: vec![], fresh: one("t") };
    assert_eq!(ledger.claim(key, &one("t"), &d, a).await, Ok(fresh.clone()));

    // Pending: a call that is repeated is answered as before, the same digest joins, another is held off.
    assert_eq!(ledger.claim(key, &one("t"), &d, a).await, Ok(fresh));
    let granted = Claim::Granted { sealed: vec![], fresh: vec![] };
    assert_eq!(ledger.claim(key, &one("t"), &d, b).await, Ok(granted.clone()));
    assert_eq!(ledger.claim(key, &one("t"), &d, a).await, Ok(granted));
    let pending = cells.pending("t").await;
    assert_eq!((pending.digest, pending.owners.clone()), (d, vec![a, b]));
    let held = vec![Holder { tag: tag("t"), entry: Entry::Pending(pending.clone()) }];
    assert_eq!(ledger.claim(key, &one("t"), &e, b).await, Ok(Claim::Held(held.clone())));
    assert_eq!(bind("t", &e, b).await, Bind::Conflict(held.clone()));
    assert_eq!(cells.adopt("t", &e).await, Adopt::Conflict(held));
    assert_eq!(
        bind("t", &d, AttemptId::random()).await,
        Bind::Gone { tags: one("t"), freed: none }
    );
    let token = Token { since: pending.since, sequence: pending.sequence };
    assert_eq!(ledger.release(key, &tag("t"), token).await, Ok(Release::Changed));
    ledger.abort(key, &one("t"), &e, a).await.unwrap();
    ledger.abort(key, &one("t"), &d, AttemptId::random()).await.unwrap();
    assert_eq!(cells.entry("t").await, Entry::Pending(pending));

    // The last owner that leaves frees the tag, and only the last.
    assert!(!cells.frees(async { ledger.abort(key, &one("t"), &d, a).await.unwrap() }).await);
    assert_eq!(cells.pending("t").await.owners, vec![b]);
    assert_eq!(bind("t", &d, a).await, Bind::Gone { tags: one("t"), freed: none });
    assert_eq!(ledger.bound_to(key, &d).await, Ok(one("t")), "pending counts as bound");
    assert!(cells.frees(async { ledger.abort(key, &one("t"), &d, b).await.unwrap() }).await);
    assert_eq!(cells.entry("t").await, Entry::Absent);
    assert_eq!(ledger.bound_to(key, &d).await, Ok(vec![]));
    assert_eq!(bind("t", &d, b).await, Bind::Gone { tags: one("t"), freed: cells.freed().await });

    // Bound.
    ledger.claim(key, &one("t"), &d, a).await.unwrap();
    assert_eq!(bind("t", &d, a).await, Bind::Bound);
    assert_eq!(bind("t", &d, b).await, Bind::Bound, "another push of the image");
    assert_eq!(cells.adopt("t", &d).await, Adopt::Adopted);
    let sealed = cells.sealed("t").await;
    assert_eq!((sealed.digest, sealed.origin, sealed.withdrawn), (d, Origin::Push, None));
    let alike = Claim::Granted { sealed: one("t"), fresh: vec![] };
    assert_eq!(ledger.claim(key, &one("t"), &d, b).await, Ok(alike));
    ledger.abort(key, &one("t"), &d, a).await.unwrap();
    let held = vec![Holder { tag: tag("t"), entry: Entry::Sealed(sealed.clone()) }];
    assert_eq!(ledger.claim(key, &one("t"), &e, b).await, Ok(Claim::Held(held.clone())));
    assert_eq!(bind("t", &e, a).await, Bind::Conflict(held.clone()));
    assert_eq!(cells.adopt("t", &e).await, Adopt::Conflict(held));
    assert_eq!(cells.entry("t").await, Entry::Sealed(sealed.clone()));

    // A set is all or nothing.
    let set = vec![tag("u"), tag("t"), tag("v")];
    let Ok(Claim::Held(held)) = ledger.claim(key, &set, &e, b).await else { panic!("granted") };
    assert_eq!(held.len(), 1);
    let adopted = adopt(ledger, key, &set, &e, Origin::Import).await.unwrap();
    assert!(matches!(adopted, Adopt::Conflict(_)));
    let freed = cells.freed().await;
    let gone = Bind::Gone { tags: vec![tag("u"), tag("v")], freed };
    assert_eq!(ledger.bind(key, &set, &d, a, freed).await, Ok(gone));
    let entries = ledger.lookup(key, &set).await.unwrap().entries;
    assert_eq!(entries, [Entry::Absent, Entry::Sealed(sealed), Entry::Absent]);
    let granted = Claim::Granted { sealed: one("t"), fresh: vec![tag("u"), tag("v")] };
    assert_eq!(ledger.claim(key, &set, &d, b).await, Ok(granted));
    assert_eq!(ledger.bind(key, &set, &d, b, freed).await, Ok(Bind::Bound));
    let mut bound = ledger.bound_to(key, &d).await.unwrap();
    bound.sort();
    assert_eq!(bound, [tag("t"), tag("u"), tag("v")]);

    // Empty sets, and repositories apart.
    assert_eq!(ledger.lookup(key, &[]).await.unwrap().entries, vec![]);
    let nothing = Claim::Granted { sealed: vec![], fresh: vec![] };
    assert_eq!(ledger.claim(key, &[], &d, a).await, Ok(nothing));
    assert_eq!(ledger.bind(key, &[], &d, a, freed).await, Ok(Bind::Bound));
    let other = self::key("contract/table2");
    assert_eq!(ledger.lookup(&other, &one("t")).await.unwrap().entries, vec![Entry::Absent]);
    assert_eq!(ledger.sequence(&other).await, Ok(0));
    adopt(ledger, &other, &one("x"), &d, Origin::Import).await.unwrap();
    assert_eq!(ledger.bound_to(&other, &d).await, Ok(one("x")));
}

async fn names_that_are_freed(ledger: &dyn Ledger) {
    let cells = Cells { ledger, key: key("contract/freed") };
    let key = &cells.key;
    let (a, b) = (AttemptId::random(), AttemptId::random());
    let (d, e) = (digest(1), digest(3));
    let one = |name: &str| vec![tag(name)];
    assert_eq!(cells.adopt("t", &d).await, Adopt::Adopted);
    let sealed = cells.sealed("t").await;

    // Withdrawn: bound still, until it is pushed again. What the registry shows is no push.
    ledger.withdraw(key, &one("t"), &e).await.unwrap();
    assert_eq!(cells.entry("t").await, Entry::Sealed(sealed.clone()));
    let old = cells.freed().await;
    assert!(cells.frees(async { ledger.withdraw(key, &one("t"), &d).await.unwrap() }).await);
    let withdrawn = cells.sealed("t").await;
    assert!(withdrawn.withdrawn.is_some());
    assert_eq!(withdrawn.token(), sealed.token());
    assert!(matches!(ledger.claim(key, &one("t"), &e, b).await, Ok(Claim::Held(_))));
    assert_eq!(cells.adopt("t", &d).await, Adopt::Adopted);
    assert_eq!(cells.entry("t").await, Entry::Sealed(withdrawn));
    assert_eq!(ledger.bind(key, &one("t"), &d, a, old).await, Ok(Bind::Freed));
    let now = cells.freed().await;
    let before = ledger.sequence(key).await.unwrap();
    assert_eq!(ledger.bind(key, &one("t"), &d, a, now).await, Ok(Bind::Bound));
    // Another state of the name, by which the older one is known to be older.
    let sealed = Sealed { sequence: before + 1, ..sealed };
    assert_eq!(cells.entry("t").await, Entry::Sealed(sealed.clone()));

    // A release frees the life its token was taken from, and no later one.
    let stale = Token { sequence: sealed.sequence + 100, ..sealed.token() };
    assert_eq!(ledger.release(key, &tag("t"), stale).await, Ok(Release::Changed));
    let release = async {
        let freed = ledger.release(key, &tag("t"), sealed.token()).await;
        assert_eq!(freed, Ok(Release::Freed));
    };
    assert!(cells.frees(release).await);
    assert_eq!(ledger.release(key, &tag("t"), sealed.token()).await, Ok(Release::Changed));
    assert_eq!(cells.entry("t").await, Entry::Absent);

    // What was seen before a name was freed proves nothing.
    assert_eq!(ledger.adopt(key, &one("t"), &d, Origin::Import, now).await, Ok(Adopt::Freed));
    assert_eq!(cells.entry("t").await, Entry::Absent);
    ledger.claim(key, &one("p"), &d, a).await.unwrap();
    assert_eq!(ledger.adopt(key, &one("p"), &d, Origin::Push, now).await, Ok(Adopt::Freed));
    assert_eq!(cells.adopt("p", &d).await, Adopt::Adopted, "the registry shows what is claimed");
    assert_eq!(cells.adopt("t", &e).await, Adopt::Adopted);
    assert_eq!(ledger.adopt(key, &one("t"), &e, Origin::Import, now).await, Ok(Adopt::Adopted));
    assert_eq!(ledger.release(key, &tag("t"), sealed.token()).await, Ok(Release::Changed));

    // Invalidated: nothing changes but what was seen before.
    let before = ledger.lookup(key, &one("t")).await.unwrap();
    let found = ledger.invalidate(key, &one("t")).await.unwrap();
    assert_eq!(found, Lookup { freed: before.freed.next(), ..before.clone() });
    assert_eq!(ledger.lookup(key, &one("t")).await, Ok(found));
    let late = ledger.adopt(key, &one("seen"), &d, Origin::FirstSight, before.freed).await;
    assert_eq!(late, Ok(Adopt::Freed));

    // Superseded: pending or sealed, with whatever digest, the entry that was seen is gone.
    ledger.claim(key, &one("s"), &d, a).await.unwrap();
    let set = vec![tag("s"), tag("absent"), tag("t")];
    let seen = Holder::present(&set, ledger.lookup(key, &set).await.unwrap().entries);
    assert_eq!(seen.len(), 2);
    let supersede = async {
        assert_eq!(ledger.supersede(key, &seen).await, Ok(seen.clone()));
    };
    assert!(cells.frees(supersede).await);
    assert_eq!(ledger.lookup(key, &set).await.unwrap().entries, vec![Entry::Absent; 3]);
    assert_eq!(ledger.bound_to(key, &e).await, Ok(vec![]));
    let sequence = ledger.sequence(key).await.unwrap();
    assert_eq!(ledger.supersede(key, &seen).await, Ok(vec![]));
    assert_eq!(ledger.sequence(key).await, Ok(sequence), "what does nothing is no transition");
    cells.adopt("t", &e).await;
    assert_eq!(ledger.supersede(key, &seen).await, Ok(vec![]), "another life of the name");
    assert_eq!(cells.sealed("t").await.digest, e);
}

async fn deletes(ledger: &dyn Ledger) {
    let cells = Cells { ledger, key: key("contract/deletes") };
    let key = &cells.key;
    let (a, b, x, y) =
        (AttemptId::random(), AttemptId::random(), AttemptId::random(), AttemptId::random());
    let (d, e) = (digest(1), digest(3));
    let one = |name: &str| vec![tag(name)];
    let holders = async |names: &[&str]| {
        let tags: Vec<_> = names.iter().map(|name| tag(name)).collect();
        let entries = ledger.lookup(key, &tags).await.unwrap().entries;
        Holder::present(&tags, entries)
    };
    cells.adopt("t", &d).await;
    cells.adopt("other", &e).await;
    ledger.claim(key, &one("p"), &d, a).await.unwrap();

    // The mark keeps the digest from being claimed and adopted, and nothing else.
    let begun = ledger.begin_delete(key, &d, x).await.unwrap();
    assert_eq!(begun, Begun { holders: holders(&["p", "t"]).await, earlier: vec![] });
    assert_eq!(ledger.begin_delete(key, &d, x).await.unwrap().earlier, vec![], "repeated");
    assert_eq!(ledger.claim(key, &one("n"), &d, b).await, Ok(Claim::Deleting));
    assert_eq!(ledger.claim(key, &one("p"), &d, b).await, Ok(Claim::Deleting), "no one joins");
    let again = ledger.claim(key, &one("p"), &d, a).await;
    assert_eq!(again, Ok(Claim::Granted { sealed: vec![], fresh: one("p") }), "repeated");
    assert_eq!(cells.adopt("n", &d).await, Adopt::Deleting);
    assert_eq!(cells.adopt("p", &d).await, Adopt::Deleting);
    assert_eq!(cells.adopt("t", &d).await, Adopt::Adopted, "it is bound already");
    let freed = cells.freed().await;
    assert_eq!(ledger.bind(key, &one("t"), &d, b, freed).await, Ok(Bind::Deleting));
    assert_eq!(
        ledger.bind(key, &one("p"), &d, b, freed).await,
        Ok(Bind::Deleting),
        "not its claim"
    );
    assert_eq!(ledger.bind(key, &one("p"), &d, a, freed).await, Ok(Bind::Bound), "claimed before");
    assert_eq!(ledger.bind(key, &one("gone"), &d, a, freed).await, Ok(Bind::Deleting));
    assert!(matches!(ledger.claim(key, &one("n"), &e, b).await, Ok(Claim::Granted { .. })));
    assert_eq!(cells.adopt("m", &e).await, Adopt::Adopted);
    let elsewhere = self::key("contract/deletes2");
    assert!(matches!(ledger.claim(&elsewhere, &one("n"), &d, b).await, Ok(Claim::Granted { .. })));

    // Another DELETE joins, and hears of the first.
    assert_eq!(ledger.begin_delete(key, &d, y).await.unwrap().earlier, vec![x]);
    let marks = ledger.delete_marks(key).await.unwrap();
    let [(marked, mark)] = marks.as_slice() else { panic!("{marks:?}") };
    assert_eq!((marked, &mark.attempts), (&d, &vec![x, y]));
    assert_eq!(ledger.marked(key, &[e, d]).await, Ok(vec![d]));
    assert_eq!(ledger.marked(key, &[]).await, Ok(vec![]));

    // A refused one changes nothing, and the other stands.
    let refused = ledger.end_delete(key, &d, &[x], &[tag("t")], DeleteEnd::Refused).await;
    assert_eq!(refused, Ok(Ended::Done(vec![])));
    assert_eq!(cells.adopt("new", &d).await, Adopt::Deleting);
    assert_eq!(cells.freed().await, freed);

    // Its end withdraws those that have the digest then.
    let set = vec![tag("t"), tag("m"), tag("nothing")];
    let end = async {
        let ended = ledger.end_delete(key, &d, &[y], &set, DeleteEnd::Withdrawn).await;
        assert_eq!(ended, Ok(Ended::Done(one("t"))));
    };
    assert!(cells.frees(end).await);
    assert!(cells.sealed("t").await.withdrawn.is_some());
    assert_eq!(cells.sealed("m").await.withdrawn, None);
    assert_eq!(ledger.delete_marks(key).await, Ok(vec![]));
    let ended = ledger.end_delete(key, &d, &[y], &set, DeleteEnd::Released).await;
    assert_eq!(ended, Ok(Ended::NoMark), "it has ended");
    assert!(cells.sealed("t").await.withdrawn.is_some());
    assert_eq!(cells.adopt("new", &d).await, Adopt::Adopted);

    // One that ends takes those of earlier times along, and frees the names.
    ledger.begin_delete(key, &d, x).await.unwrap();
    ledger.begin_delete(key, &d, y).await.unwrap();
    let set = vec![tag("new"), tag("t"), tag("p")];
    let end = async {
        let ended = ledger.end_delete(key, &d, &[y, x], &set, DeleteEnd::Released).await;
        assert_eq!(ended, Ok(Ended::Done(set.clone())));
    };
    assert!(cells.frees(end).await);
    assert_eq!(ledger.bound_to(key, &d).await, Ok(vec![]));
    assert_eq!(ledger.delete_marks(key).await, Ok(vec![]));

    // An image that no tag has is freed, too: whoever has seen it is to look again.
    let seen = cells.freed().await;
    ledger.begin_delete(key, &d, x).await.unwrap();
    ledger.end_delete(key, &d, &[x], &[], DeleteEnd::Kept).await.unwrap();
    assert_eq!(ledger.adopt(key, &one("n2"), &d, Origin::Import, seen).await, Ok(Adopt::Freed));
    assert_eq!(cells.sealed("m").await.digest, e);
}

async fn pages(ledger: &dyn Ledger) {
    let expected = [("table", "t"), ("table", "u"), ("table", "v"), ("table2", "x")];
    // Pages: everything once, whatever the size.
    for limit in 1..4 {
        let mut after = None;
        let mut seen = Vec::new();
        loop {
            let page = ledger.list(after.as_ref(), limit).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some((last.repository.clone(), last.tag.clone()));
            seen.extend(page.into_iter().map(|l| (l.repository.to_string(), l.tag.to_string())));
        }
        seen.sort();
        seen.retain(|(repository, _)| repository.contains("/table"));
        let expected =
            expected.map(|(name, tag)| (format!("default/contract/{name}"), tag.to_owned()));
        assert_eq!(seen, expected);
    }
}

/// An operation with small numbers for digests, attempts and tags. `bool`: by a freed number that is older
/// by one.
#[derive(Clone, Debug)]
enum Op {
    Claim(Vec<u8>, u8, u8),
    Bind(Vec<u8>, u8, u8, bool),
    Adopt(Vec<u8>, u8, bool),
    Abort(Vec<u8>, u8, u8),
    Withdraw(Vec<u8>, u8),
    Release(u8),
    Supersede(Vec<u8>),
    Invalidate(Vec<u8>),
    BeginDelete(u8, u8),
    EndDelete(Vec<u8>, u8, u8, DeleteEnd),
}

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let set = || prop::collection::btree_set(0..4_u8, 0..3).prop_map(|s| s.into_iter().collect());
    let end = prop_oneof![
        Just(DeleteEnd::Refused),
        Just(DeleteEnd::Kept),
        Just(DeleteEnd::Withdrawn),
        Just(DeleteEnd::Released),
    ];
    let few = || 0..3_u8;
    let op = prop_oneof![
        4 => (set(), few(), few()).prop_map(|(s, d, a)| Op::Claim(s, d, a)),
        3 => (set(), few(), few(), prop::bool::weighted(0.2))
            .prop_map(|(s, d, a, stale)| Op::Bind(s, d, a, stale)),
        2 => (set(), few(), prop::bool::weighted(0.2)).prop_map(|(s, d, stale)| Op::Adopt(s, d, stale)),
        3 => (set(), few(), few()).prop_map(|(s, d, a)| Op::Abort(s, d, a)),
        1 => (set(), few()).prop_map(|(s, d)| Op::Withdraw(s, d)),
        1 => (0..4_u8).prop_map(Op::Release),
        1 => set().prop_map(Op::Supersede),
        1 => set().prop_map(Op::Invalidate),
        1 => (few(), few()).prop_map(|(d, a)| Op::BeginDelete(d, a)),
        2 => (set(), few(), few(), end).prop_map(|(s, d, a, end)| Op::EndDelete(s, d, a, end)),
    ];
    prop::collection::vec(op, 1..40)
}

/// Does it, and tells all that came of it: the answer, and what the repository holds then.
async fn done(ledger: &dyn Ledger, key: &RepositoryKey, op: &Op) -> String {
    let names = |set: &[u8]| set.iter().map(|t| tag(&format!("t{t}"))).collect::<Vec<_>>();
    let attempt = |a: u8| AttemptId::from_bytes([a; 16]);
    let all = names(&[0, 1, 2, 3]);
    let before = ledger.lookup(key, &all).await.unwrap();
    let number = |stale: bool| FreedNumber(before.freed.0.saturating_sub(u64::from(stale)));
    let answer = match op {
        Op::Claim(set, d, a) => {
            let claim = ledger.claim(key, &names(set), &digest(*d), attempt(*a)).await.unwrap();
            match claim {
                Claim::Held(holders) => format!("{:?}", timeless_holders(holders)),
                claim => format!("{claim:?}"),
            }
        }
        Op::Bind(set, d, a, stale) => {
            let (d, a) = (digest(*d), attempt(*a));
            match ledger.bind(key, &names(set), &d, a, number(*stale)).await.unwrap() {
                Bind::Conflict(holders) => format!("{:?}", timeless_holders(holders)),
                bind => format!("{bind:?}"),
            }
        }
        Op::Adopt(set, d, stale) => {
            let (tags, d, freed) = (names(set), digest(*d), number(*stale));
            match ledger.adopt(key, &tags, &d, Origin::Import, freed).await.unwrap() {
                Adopt::Conflict(holders) => format!("{:?}", timeless_holders(holders)),
                adopt => format!("{adopt:?}"),
            }
        }
        Op::Abort(set, d, a) => {
            format!("{:?}", ledger.abort(key, &names(set), &digest(*d), attempt(*a)).await)
        }
        Op::Withdraw(set, d) => {
            format!("{:?}", ledger.withdraw(key, &names(set), &digest(*d)).await)
        }
        Op::Release(t) => match &before.entries[usize::from(*t)] {
            Entry::Sealed(sealed) => {
                let tag = &all[usize::from(*t)];
                format!("{:?}", ledger.release(key, tag, sealed.token()).await)
            }
            _ => String::new(),
        },
        Op::Supersede(set) => {
            let entries = set.iter().map(|t| before.entries[usize::from(*t)].clone()).collect();
            let seen = Holder::present(&names(set), entries);
            let dropped = ledger.supersede(key, &seen).await.unwrap();
            format!("{:?}", timeless_holders(dropped))
        }
        Op::Invalidate(set) => {
            let found = ledger.invalidate(key, &names(set)).await.unwrap();
            format!(
                "{:?}",
                (found.entries.into_iter().map(timeless).collect::<Vec<_>>(), found.freed)
            )
        }
        Op::BeginDelete(d, a) => {
            let begun = ledger.begin_delete(key, &digest(*d), attempt(*a)).await.unwrap();
            format!("{:?} {:?}", timeless_holders(begun.holders), begun.earlier)
        }
        Op::EndDelete(set, d, a, end) => {
            let attempts = [attempt(*a)];
            let ended = ledger.end_delete(key, &digest(*d), &attempts, &names(set), *end).await;
            format!("{:?}", ended.unwrap())
        }
    };
    let Lookup { entries, freed } = ledger.lookup(key, &all).await.unwrap();
    let entries: Vec<_> = entries.into_iter().map(timeless).collect();
    let marks = ledger.delete_marks(key).await.unwrap().into_iter();
    let marks: Vec<_> = marks.map(|(digest, mark)| (digest, mark.attempts)).collect();
    let mut bound = Vec::new();
    for d in 0..3 {
        let mut tags = ledger.bound_to(key, &digest(d)).await.unwrap();
        tags.sort();
        bound.push(tags);
    }
    let sequence = ledger.sequence(key).await.unwrap();
    format!("{answer}\n{entries:?}\n{freed:?} {sequence} {marks:?} {bound:?}")
}

/// Runs random operations against the store and against one that is made of the table alone, and
/// compares their answers and all they hold after each: times aside, which are for people.
pub async fn agrees_with_the_table(ledger: &dyn Ledger, cases: u32) {
    let mut runner = TestRunner::new(Config::default());
    let model = Memory::new();
    for case in 0..cases {
        let operations = operations().new_tree(&mut runner).unwrap().current();
        let key = key(&format!("contract/random{case}"));
        for (step, op) in operations.iter().enumerate() {
            let (found, expected) = (done(ledger, &key, op).await, done(&model, &key, op).await);
            assert_eq!(found, expected, "{operations:?} at {step}");
        }
    }
}

fn timeless_holders(holders: Vec<Holder>) -> Vec<Holder> {
    let timeless = |holder: Holder| Holder { entry: timeless(holder.entry), ..holder };
    holders.into_iter().map(timeless).collect()
}

/// What of an entry doesn't depend on when it was made.
fn timeless(entry: Entry) -> Entry {
    let zero = Timestamp::from_seconds(0);
    match entry {
        Entry::Absent => Entry::Absent,
        Entry::Pending(pending) => Entry::Pending(Pending { since: zero, ..pending }),
        Entry::Sealed(sealed) => Entry::Sealed(Sealed {
            since: zero,
            withdrawn: sealed.withdrawn.map(|_| zero),
            ..sealed
        }),
    }
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    holds(&Memory::new()).await;
    agrees_with_the_table(&Memory::new(), 200).await;
    restores(&Memory::new(), 4).await;
}

#[tokio::test]
async fn embedded_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = embedded::Embedded::open(folder.path()).unwrap();
    holds(&ledger).await;
    agrees_with_the_table(&ledger, 20).await;
    let offered = ledger.restore(&key("contract/restored"), &few_offers()).await;
    assert!(matches!(offered, Err(Unavailable::Store(_))), "it loses nothing");
}
