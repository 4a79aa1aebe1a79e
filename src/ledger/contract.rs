//! The one suite every store passes: the operation table, sets, the index, listings.
//!
//! [`holds`] walks the table cell by cell; [`agrees_with_the_table`] runs random operations
//! against a store and against the table's own functions.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

use super::memory::Memory;
use super::table::{self, Change, Stamp};
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

/// Each cell of the table, on a ledger in which `repository` is still empty.
pub async fn holds(ledger: &dyn Ledger) {
    let key = key("contract/table");
    let (a, b) = (AttemptId::random(), AttemptId::random());
    let (d, e) = (digest(1), digest(3));
    let one = |name: &str| vec![tag(name)];
    let entry = async |name: &str| ledger.lookup(&key, &one(name)).await.unwrap().remove(0);

    // Absent.
    assert_eq!(entry("t").await, Entry::Absent);
    ledger.abort(&key, &one("t"), &d, a).await.unwrap();
    ledger.withdraw(&key, &one("t"), &d).await.unwrap();
    assert_eq!(entry("t").await, Entry::Absent);
    assert_eq!(ledger.sequence(&key).await, Ok(0), "what does nothing is no transition");
    let fresh = Claim::Granted { sealed: vec![], fresh: one("t") };
    assert_eq!(ledger.claim(&key, &one("t"), &d, a).await, Ok(fresh));
    let granted = Claim::Granted { sealed: vec![], fresh: vec![] };

    // Pending: the same digest joins, another is held off, and repeating changes nothing.
    assert_eq!(ledger.claim(&key, &one("t"), &d, a).await, Ok(granted.clone()));
    assert_eq!(ledger.claim(&key, &one("t"), &d, b).await, Ok(granted));
    let Entry::Pending(pending) = entry("t").await else { panic!("not pending") };
    assert_eq!((pending.digest, pending.owners.clone()), (d, vec![a, b]));
    let held = vec![Holder { tag: tag("t"), entry: Entry::Pending(pending.clone()) }];
    assert_eq!(ledger.claim(&key, &one("t"), &e, b).await, Ok(Claim::Held(held.clone())));
    assert_eq!(ledger.seal(&key, &one("t"), &e, Origin::Push).await, Ok(Seal::Conflict(held)));
    let token = Token { since: pending.since, sequence: pending.sequence };
    assert_eq!(ledger.release(&key, &tag("t"), token).await, Ok(Release::Changed));
    ledger.abort(&key, &one("t"), &e, a).await.unwrap();
    ledger.abort(&key, &one("t"), &d, AttemptId::random()).await.unwrap();
    assert_eq!(entry("t").await, Entry::Pending(pending));

    // The last owner that leaves frees the tag, and only the last.
    ledger.abort(&key, &one("t"), &d, a).await.unwrap();
    let Entry::Pending(pending) = entry("t").await else { panic!("not pending") };
    assert_eq!(pending.owners, vec![b]);
    assert_eq!(ledger.bound_to(&key, &d).await, Ok(one("t")), "pending counts as bound");
    ledger.abort(&key, &one("t"), &d, b).await.unwrap();
    assert_eq!(entry("t").await, Entry::Absent);
    assert_eq!(ledger.bound_to(&key, &d).await, Ok(vec![]));

    // Sealed.
    ledger.claim(&key, &one("t"), &d, a).await.unwrap();
    assert_eq!(ledger.seal(&key, &one("t"), &d, Origin::Push).await, Ok(Seal::Sealed));
    assert_eq!(ledger.seal(&key, &one("t"), &d, Origin::Import).await, Ok(Seal::Sealed));
    let Entry::Sealed(sealed) = entry("t").await else { panic!("not sealed") };
    assert_eq!((sealed.digest, sealed.origin, sealed.withdrawn), (d, Origin::Push, None));
    assert_eq!(
        ledger.claim(&key, &one("t"), &d, b).await,
        Ok(Claim::Granted { sealed: one("t"), fresh: vec![] })
    );
    ledger.abort(&key, &one("t"), &d, a).await.unwrap();
    let held = vec![Holder { tag: tag("t"), entry: Entry::Sealed(sealed.clone()) }];
    assert_eq!(ledger.claim(&key, &one("t"), &e, b).await, Ok(Claim::Held(held.clone())));
    assert_eq!(ledger.seal(&key, &one("t"), &e, Origin::Push).await, Ok(Seal::Conflict(held)));
    assert_eq!(entry("t").await, Entry::Sealed(sealed.clone()));

    // Withdrawn: bound still, until the same digest is sealed again.
    ledger.withdraw(&key, &one("t"), &e).await.unwrap();
    assert_eq!(entry("t").await, Entry::Sealed(sealed.clone()));
    ledger.withdraw(&key, &one("t"), &d).await.unwrap();
    let Entry::Sealed(withdrawn) = entry("t").await else { panic!("not sealed") };
    assert!(withdrawn.withdrawn.is_some());
    assert_eq!(withdrawn.token(), sealed.token());
    assert!(matches!(ledger.claim(&key, &one("t"), &e, b).await, Ok(Claim::Held(_))));
    assert_eq!(ledger.seal(&key, &one("t"), &d, Origin::Push).await, Ok(Seal::Sealed));
    assert_eq!(entry("t").await, Entry::Sealed(sealed.clone()));

    // A set is all or nothing.
    let set = vec![tag("u"), tag("t"), tag("v")];
    let Ok(Claim::Held(held)) = ledger.claim(&key, &set, &e, b).await else { panic!("granted") };
    assert_eq!(held.len(), 1);
    assert!(matches!(ledger.seal(&key, &set, &e, Origin::Push).await, Ok(Seal::Conflict(_))));
    let entries = ledger.lookup(&key, &set).await.unwrap();
    assert_eq!(entries, [Entry::Absent, Entry::Sealed(sealed.clone()), Entry::Absent]);
    let fresh = vec![tag("u"), tag("v")];
    let granted = Claim::Granted { sealed: one("t"), fresh };
    assert_eq!(ledger.claim(&key, &set, &d, b).await, Ok(granted));
    assert_eq!(ledger.seal(&key, &set, &d, Origin::Push).await, Ok(Seal::Sealed));
    let mut bound = ledger.bound_to(&key, &d).await.unwrap();
    bound.sort();
    assert_eq!(bound, [tag("t"), tag("u"), tag("v")]);

    // A release frees the life its token was taken from, and no later one.
    let stale = Token { sequence: sealed.sequence + 100, ..sealed.token() };
    assert_eq!(ledger.release(&key, &tag("t"), stale).await, Ok(Release::Changed));
    assert_eq!(ledger.release(&key, &tag("t"), sealed.token()).await, Ok(Release::Freed));
    assert_eq!(ledger.release(&key, &tag("t"), sealed.token()).await, Ok(Release::Changed));
    assert_eq!(entry("t").await, Entry::Absent);
    ledger.seal(&key, &one("t"), &e, Origin::FirstSight).await.unwrap();
    assert_eq!(ledger.release(&key, &tag("t"), sealed.token()).await, Ok(Release::Changed));

    // Superseded: pending or sealed, with whatever digest, the entry is gone and its index too.
    ledger.claim(&key, &one("s"), &d, a).await.unwrap();
    let set = vec![tag("s"), tag("absent"), tag("t")];
    let before = ledger.lookup(&key, &set).await.unwrap();
    let superseded = ledger.supersede(&key, &set).await.unwrap();
    assert_eq!(superseded, Holder::present(&set, before));
    assert_eq!(superseded.len(), 2);
    assert_eq!(ledger.lookup(&key, &set).await.unwrap(), vec![Entry::Absent; 3]);
    assert_eq!(ledger.bound_to(&key, &e).await, Ok(vec![]));
    let sequence = ledger.sequence(&key).await.unwrap();
    assert_eq!(ledger.supersede(&key, &set).await, Ok(vec![]));
    assert_eq!(ledger.sequence(&key).await, Ok(sequence), "what does nothing is no transition");
    ledger.seal(&key, &one("t"), &e, Origin::Push).await.unwrap();

    // Empty sets, and repositories apart.
    assert_eq!(ledger.lookup(&key, &[]).await, Ok(vec![]));
    let nothing = Claim::Granted { sealed: vec![], fresh: vec![] };
    assert_eq!(ledger.claim(&key, &[], &d, a).await, Ok(nothing));
    assert_eq!(ledger.seal(&key, &[], &d, Origin::Push).await, Ok(Seal::Sealed));
    let other = self::key("contract/table2");
    assert_eq!(ledger.lookup(&other, &one("t")).await, Ok(vec![Entry::Absent]));
    assert_eq!(ledger.sequence(&other).await, Ok(0));
    ledger.seal(&other, &one("x"), &d, Origin::Import).await.unwrap();
    assert_eq!(ledger.bound_to(&other, &d).await, Ok(one("x")));

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
        let expected = [("table", "t"), ("table", "u"), ("table", "v"), ("table2", "x")]
            .map(|(name, tag)| (format!("default/contract/{name}"), tag.to_owned()));
        assert_eq!(seen, expected);
    }
}

/// An operation with small numbers for digests, attempts and tags.
#[derive(Clone, Debug)]
enum Op {
    Claim(Vec<u8>, u8, u8),
    Seal(Vec<u8>, u8),
    Abort(Vec<u8>, u8, u8),
    Withdraw(Vec<u8>, u8),
    Release(u8),
    Supersede(Vec<u8>),
}

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let set = || prop::collection::btree_set(0..4_u8, 0..3).prop_map(|s| s.into_iter().collect());
    let op = prop_oneof![
        4 => (set(), 0..3_u8, 0..3_u8).prop_map(|(s, d, a)| Op::Claim(s, d, a)),
        2 => (set(), 0..3_u8).prop_map(|(s, d)| Op::Seal(s, d)),
        3 => (set(), 0..3_u8, 0..3_u8).prop_map(|(s, d, a)| Op::Abort(s, d, a)),
        1 => (set(), 0..3_u8).prop_map(|(s, d)| Op::Withdraw(s, d)),
        1 => (0..4_u8).prop_map(Op::Release),
        1 => set().prop_map(Op::Supersede),
    ];
    prop::collection::vec(op, 1..40)
}

/// Runs random operations against the store and against the table itself, and compares every
/// entry after each: an entry's times aside, which are for people.
pub async fn agrees_with_the_table(ledger: &dyn Ledger, cases: u32) {
    let mut runner = TestRunner::new(Config::default());
    let attempts = [0, 1, 2].map(|n| AttemptId::from_bytes([n; 16]));
    for case in 0..cases {
        let operations = operations().new_tree(&mut runner).unwrap().current();
        let key = key(&format!("contract/random{case}"));
        let mut model: BTreeMap<u8, Entry> = (0..4).map(|t| (t, Entry::Absent)).collect();
        for (step, operation) in operations.iter().enumerate() {
            let names = |set: &[u8]| set.iter().map(|t| tag(&format!("t{t}"))).collect::<Vec<_>>();
            let sequence = ledger.sequence(&key).await.unwrap();
            let stamp = Stamp { now: Timestamp::from_seconds(0), sequence: sequence + 1 };
            let stood = match operation {
                Op::Claim(set, d, a) => {
                    let (d, a) = (digest(*d), attempts[usize::from(*a)]);
                    let claim = ledger.claim(&key, &names(set), &d, a).await.unwrap();
                    let stands = play(&mut model, set, |e| table::claim(e, &d, a, stamp));
                    assert_eq!(matches!(claim, Claim::Held(_)), stands, "{operations:?} at {step}");
                    stands
                }
                Op::Seal(set, d) => {
                    let d = digest(*d);
                    let seal = ledger.seal(&key, &names(set), &d, Origin::Push).await.unwrap();
                    let stands = play(&mut model, set, |e| table::seal(e, &d, Origin::Push, stamp));
                    assert_eq!(seal != Seal::Sealed, stands, "{operations:?} at {step}");
                    stands
                }
                Op::Abort(set, d, a) => {
                    let (d, a) = (digest(*d), attempts[usize::from(*a)]);
                    ledger.abort(&key, &names(set), &d, a).await.unwrap();
                    play(&mut model, set, |e| table::abort(e, &d, a))
                }
                Op::Withdraw(set, d) => {
                    ledger.withdraw(&key, &names(set), &digest(*d)).await.unwrap();
                    play(&mut model, set, |e| table::withdraw(e, &digest(*d), stamp))
                }
                Op::Supersede(set) => {
                    let before = names(set).into_iter().zip(set.iter().map(|t| model[t].clone()));
                    let before = before.filter(|(_, entry)| *entry != Entry::Absent);
                    let there = ledger.supersede(&key, &names(set)).await.unwrap();
                    let there = there.into_iter().map(|h| (h.tag, timeless(h.entry)));
                    let before = before.map(|(tag, entry)| (tag, timeless(entry)));
                    assert_eq!(there.collect::<Vec<_>>(), before.collect::<Vec<_>>());
                    play(&mut model, set, table::supersede)
                }
                Op::Release(t) => {
                    let entry = ledger.lookup(&key, &names(&[*t])).await.unwrap().remove(0);
                    if let Entry::Sealed(sealed) = entry {
                        let tag = tag(&format!("t{t}"));
                        let freed = ledger.release(&key, &tag, sealed.token()).await;
                        assert_eq!(freed, Ok(Release::Freed));
                        model.insert(*t, Entry::Absent);
                    }
                    false
                }
            };
            let entries = ledger.lookup(&key, &names(&[0, 1, 2, 3])).await.unwrap();
            let plain = |entries: Vec<Entry>| entries.into_iter().map(timeless).collect::<Vec<_>>();
            assert_eq!(
                plain(entries.clone()),
                plain(model.values().cloned().collect()),
                "{operations:?} at {step}, stood: {stood}"
            );
            for d in 0..3 {
                let mut bound = ledger.bound_to(&key, &digest(d)).await.unwrap();
                bound.sort();
                let expected = model.iter().filter(|(_, e)| e.digest() == Some(&digest(d)));
                let expected: Vec<_> = expected.map(|(t, _)| tag(&format!("t{t}"))).collect();
                assert_eq!(bound, expected, "{operations:?} at {step}");
            }
        }
    }
}

/// Applies one operation to the model's set; true when something stood against it.
fn play(model: &mut BTreeMap<u8, Entry>, set: &[u8], on: impl Fn(&Entry) -> Change) -> bool {
    let changes: Vec<_> = set.iter().map(|t| (*t, on(&model[t]))).collect();
    if changes.iter().any(|(_, change)| *change == Change::Stands) {
        return true;
    }
    for (t, change) in changes {
        if let Change::Put(entry) = change {
            model.insert(t, entry);
        }
    }
    false
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
}

#[tokio::test]
async fn embedded_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = embedded::Embedded::open(folder.path()).unwrap();
    holds(&ledger).await;
    agrees_with_the_table(&ledger, 20).await;
}
