use std::sync::Arc;

use super::*;
use crate::ledger::contract::adopt;
use crate::ledger::memory::Memory;
use crate::ledger::{AttemptId, FreedNumber};
use crate::name::Algorithm;

fn upstream(name: &str) -> UpstreamName {
    UpstreamName::parse(name).unwrap()
}

fn key(upstream_name: &str, name: &str) -> RepositoryKey {
    RepositoryKey {
        upstream: upstream(upstream_name),
        repository: RepositoryName::parse(name).unwrap(),
    }
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

fn digest(seed: &str) -> Digest {
    Digest::of(Algorithm::Sha256, seed.as_bytes())
}

async fn filled() -> Arc<dyn Ledger> {
    let ledger = Memory::new();
    for (up, name, tags) in [
        ("default", "a", vec!["0", "00", "v1"]),
        ("default", "a/b", vec!["0", "v1", "v2"]),
        ("default", "b", vec!["x"]),
        ("other", "a", vec!["v1"]),
    ] {
        for name_of_tag in tags {
            let (repository, image) = (key(up, name), digest(name_of_tag));
            let tags = [tag(name_of_tag)];
            let adopted = adopt(&ledger, &repository, &tags, &image, Origin::Push).await;
            assert_eq!(adopted, Ok(Adopt::Adopted));
        }
    }
    let claimed = [tag("claimed")];
    ledger.claim(&key("default", "b"), &claimed, &digest("c"), AttemptId::random()).await.unwrap();
    ledger.withdraw(&key("default", "b"), &[tag("x")], &digest("x")).await.unwrap();
    Arc::new(ledger)
}

/// All pages of a query, as `repository:tag`, and how many there were.
async fn listed(ledger: &dyn Ledger, query: ListQuery) -> (Vec<String>, usize) {
    let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let wanted =
            Wanted::new(&ListQuery { after, ..query.clone() }, &Naming::default()).unwrap();
        let page = page(ledger, &upstream("default"), wanted).await.unwrap();
        assert!(page.entries.len() <= query.limit.unwrap_or(100));
        all.extend(page.entries.iter().map(|e| format!("{}:{}", e.repository, e.tag)));
        pages += 1;
        after = page.next;
        if after.is_none() {
            return (all, pages);
        }
    }
}

#[tokio::test]
async fn pages_hold_what_is_wanted_once_and_in_order() {
    let ledger = filled().await;
    let all = ["a:0", "a:00", "a:v1", "a/b:0", "a/b:v1", "a/b:v2", "b:claimed", "b:x"];
    for limit in 1..=9 {
        let query = ListQuery { limit: Some(limit), ..ListQuery::default() };
        let (found, pages) = listed(&*ledger, query).await;
        assert_eq!(
            (found.as_slice(), pages),
            (&all.map(str::to_owned)[..], 8_usize.div_ceil(limit))
        );
        let repository = Some("a/b".to_owned());
        let query = ListQuery { limit: Some(limit), repository, ..ListQuery::default() };
        assert_eq!(listed(&*ledger, query).await.0, ["a/b:0", "a/b:v1", "a/b:v2"], "{limit}");
    }
    let of = |repository: Option<&str>, prefix: Option<&str>, state: Option<&str>| ListQuery {
        repository: repository.map(str::to_owned),
        tag_prefix: prefix.map(str::to_owned),
        state: state.map(str::to_owned),
        ..ListQuery::default()
    };
    for (query, expected) in [
        (of(None, Some("v1"), None), vec!["a:v1", "a/b:v1"]),
        (of(Some("a"), Some("0"), None), vec!["a:0", "a:00"]),
        (of(Some("a"), Some("v"), None), vec!["a:v1"]),
        (of(None, None, Some("pending")), vec!["b:claimed"]),
        (of(Some("b"), None, Some("sealed")), vec!["b:x"]),
        (of(Some("c"), None, None), vec![]),
    ] {
        assert_eq!(listed(&*ledger, query.clone()).await.0, expected, "{query:?}");
    }
    let old = Wanted::pending(None, Duration::from_secs(60)).unwrap();
    let old = page(&*ledger, &upstream("default"), old).await.unwrap();
    assert!(old.entries.is_empty(), "it was claimed just now");
    let new = Wanted::pending(None, Duration::ZERO).unwrap();
    assert_eq!(page(&*ledger, &upstream("default"), new).await.unwrap().entries[0].pushes, Some(1));
}

#[test]
fn queries_that_make_no_sense_are_refused() {
    let query = |change: fn(&mut ListQuery)| {
        let mut query = ListQuery::default();
        change(&mut query);
        Wanted::new(&query, &Naming::default()).unwrap_err()
    };
    assert!(query(|q| q.limit = Some(0)).contains("1 to 1000"));
    assert!(query(|q| q.limit = Some(1001)).contains("1 to 1000"));
    assert!(query(|q| q.state = Some("open".into())).contains("no state"));
    assert!(query(|q| q.after = Some("nowhere".into())).contains("no `next`"));
    assert!(query(|q| q.repository = Some("A".into())).contains("lower-case"));
    for bad in ["app", "App:v1", "app:", ":v1", "app:-v"] {
        assert!(reference(bad).is_err(), "{bad}");
    }
    let (name, tag) = reference("a/b:v1").unwrap();
    assert_eq!((name.as_str(), tag.as_str()), ("a/b", "v1"));
}

async fn exported(ledger: Arc<dyn Ledger>) -> Vec<String> {
    let text: Vec<_> = export(ledger).try_collect().await.unwrap();
    text.concat().lines().map(str::to_owned).collect()
}

fn entries(lines: &[String]) -> Vec<LedgerEntry> {
    lines[1..lines.len() - 1].iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn an_export_restores_an_empty_ledger_and_never_overwrites_another() {
    let ledger = filled().await;
    let lines = exported(Arc::clone(&ledger)).await;
    let header: ExportHeader = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(header.ledger, ledger.identity().await.unwrap().id);
    let footer: ExportFooter = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!((footer.entries, lines.len()), (9, 11));

    let empty: Arc<dyn Ledger> = Arc::new(Memory::new());
    let outcome = restore(&*empty, &entries(&lines)).await.unwrap();
    let counts = |r: &Restored| (r.sealed, r.already, r.pending, r.conflicts.len());
    assert_eq!(counts(&outcome.restored), (8, 0, 1, 0));
    assert_eq!(outcome.sealed.len(), 8);
    let timeless = |lines: Vec<LedgerEntry>| {
        let mut out = lines;
        for entry in &mut out {
            entry.since.clear();
            entry.withdrawn = entry.withdrawn.take().map(|_| String::new());
        }
        out.retain(|entry| entry.state == State::Sealed);
        out
    };
    let restored = entries(&exported(Arc::clone(&empty)).await);
    assert_eq!(timeless(restored), timeless(entries(&lines)));
    let again = restore(&*empty, &entries(&lines)).await.unwrap().restored;
    assert_eq!(counts(&again), (0, 8, 1, 0), "it is safe to repeat");

    // A ledger that went on meanwhile keeps what it has.
    let other: Arc<dyn Ledger> = Arc::new(Memory::new());
    let moved = key("default", "a");
    let none = FreedNumber::default();
    other.adopt(&moved, &[tag("v1")], &digest("newer"), Origin::Push, none).await.unwrap();
    other.claim(&moved, &[tag("0")], &digest("claim"), AttemptId::random()).await.unwrap();
    other.claim(&moved, &[tag("00")], &digest("00"), AttemptId::random()).await.unwrap();
    let outcome = restore(&*other, &entries(&lines)).await.unwrap().restored;
    assert_eq!(counts(&outcome), (6, 0, 1, 2));
    let conflict = &outcome.conflicts[1];
    assert_eq!(
        (conflict.tag.as_str(), conflict.ledger.as_str()),
        ("v1", digest("newer").to_string().as_str())
    );
    let kept = other.lookup(&moved, &[tag("v1"), tag("00")]).await.unwrap();
    assert_eq!(kept.entries[0].digest(), Some(&digest("newer")));
    assert!(matches!(kept.entries[1], Entry::Sealed(_)), "a claim of the same image is settled");
}

#[tokio::test]
async fn a_line_that_makes_no_sense_stops_it_before_anything_is_done() {
    let lines = entries(&exported(filled().await).await);
    for change in [
        (|e| e.digest = "sha256:1".into()) as fn(&mut LedgerEntry),
        |e| e.origin = None,
        |e| e.origin = Some("guess".into()),
        |e| e.tag = "-".into(),
        |e| e.repository = "A".into(),
        |e| e.upstream = String::new(),
    ] {
        let mut lines = lines.clone();
        change(&mut lines[2]);
        let empty: Arc<dyn Ledger> = Arc::new(Memory::new());
        let refused = restore(&*empty, &lines).await;
        assert!(matches!(refused, Err(Unread::Invalid(_))));
        assert!(empty.list(None, 10).await.unwrap().is_empty());
    }
}
