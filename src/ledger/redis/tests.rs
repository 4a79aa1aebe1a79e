mod access;
mod cluster;
mod fleet;
mod load;
mod sentinel;
mod servers;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::fleet::GONE;
use super::*;
use crate::ledger::retrying::Guarded;
use crate::ledger::rollback::restoring;
use crate::ledger::{Timestamp, contract};
use crate::telemetry::Metrics;
use servers::Server;

/// A look-up of one tag in a repository that nothing was ever done to.
fn nothing() -> Lookup {
    Lookup { entries: vec![Entry::Absent], freed: FreedNumber::default() }
}

#[tokio::test]
async fn redis_and_valkey_keep_the_contract() {
    for program in servers::programs() {
        let server = Server::start_as(program, &[]);
        let ledger = Redis::open(&server.config()).unwrap();
        contract::holds(&ledger).await;
        contract::agrees_with_the_table(&ledger, 60).await;
        contract::restores(&ledger, 3).await;
        ledger.close().await;
        assert_eq!(ledger.identity().await, Err(Unavailable::Closed));
    }
}

#[tokio::test]
async fn of_many_that_claim_a_tag_at_once_one_digest_wins() {
    let server = Server::start(&[]);
    // As proxies have it: a busy machine may take longer than one try.
    let proxy = || {
        let ledger = Arc::new(Redis::open(&server.config()).unwrap());
        Guarded::new(ledger, Arc::new(Metrics::new()))
    };
    let (first, second) = (proxy(), proxy());
    for round in 0..50 {
        let tags = [contract::tag(&format!("v{round}"))];
        let key = contract::key("race");
        let claims = (0..16_u8).map(|n| {
            let ledger = if n % 2 == 0 { &first } else { &second };
            let (key, tags) = (&key, &tags);
            async move {
                let digest = contract::digest(n / 2);
                ledger.claim(key, tags, &digest, AttemptId::random()).await.map(|c| (digest, c))
            }
        });
        let mut winners = BTreeSet::new();
        for claim in futures_in_turn(claims).await {
            if let (digest, Claim::Granted { .. }) = claim.unwrap() {
                winners.insert(digest);
            }
        }
        assert_eq!(winners.len(), 1);
    }
}

/// Runs them all at once.
async fn futures_in_turn<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, slot) in running.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn entries_stay_small_and_in_the_compact_form() {
    let server = Server::start(&[]);
    let ledger = Redis::open(&server.config()).unwrap();
    let key = contract::key("compact");
    let digest = Digest::of(crate::name::Algorithm::Sha256, b"x");
    for n in 0..200 {
        let tags = [contract::tag(&format!("v1.2.{n}"))];
        let attempt = AttemptId::random();
        ledger.claim(&key, &tags, &digest, attempt).await.unwrap();
        let none = FreedNumber::default();
        assert_eq!(ledger.bind(&key, &tags, &digest, attempt, none).await, Ok(Bind::Bound));
    }
    assert!(server.cli(&["OBJECT", "ENCODING", &hash_of(&key)]).contains("listpack"));
}

#[tokio::test]
async fn a_large_repository_is_read_once_for_all_its_pages() {
    let server = Server::start(&[]);
    let ledger = Redis::open(&server.config()).unwrap();
    let (before, large, behind) =
        (contract::key("large"), contract::key("large2"), contract::key("large3"));
    let tags: Vec<_> = (0..3000).map(|n| contract::tag(&format!("v{n:04}"))).collect();
    let digest = contract::digest(1);
    for set in tags.chunks(500) {
        contract::adopt(&ledger, &large, set, &digest, Origin::Import).await.unwrap();
    }
    for key in [&before, &behind] {
        contract::adopt(&ledger, key, &tags[..1], &digest, Origin::Import).await.unwrap();
    }
    server.cli(&["CONFIG", "RESETSTAT"]);
    let (mut listed, mut after) = (Vec::new(), None);
    while let page = ledger.list(after.as_ref(), 100).await.unwrap()
        && let Some(last) = page.last()
    {
        after = Some((last.repository.clone(), last.tag.clone()));
        listed.extend(page.into_iter().map(|one| (one.repository, one.tag)));
    }
    let whole = tags.iter().map(|tag| (large.clone(), tag.clone()));
    let first = std::iter::once((before, tags[0].clone()));
    let expected: Vec<_> = first.chain(whole).chain([(behind, tags[0].clone())]).collect();
    assert!(listed == expected, "{} of {} in order", listed.len(), expected.len());
    // Thirty pages, and 500 tags or so in a piece.
    let stats = server.cli(&["INFO", "commandstats"]);
    let calls = stats.lines().find_map(|l| l.strip_prefix("cmdstat_hscan:calls="));
    let calls: u32 = calls.unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(calls < 20, "{calls} pieces were read");
}

#[tokio::test]
async fn a_claim_waits_for_replicas_and_fails_without_them() {
    let server = Server::start(&[]);
    let wanting = Config { replicas: 1, ..server.config() };
    let error = Redis::open(&wanting).err().unwrap();
    assert!(matches!(error, OpenError::TooFewReplicas { found: 0, wanted: 1, .. }), "{error}");

    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    server.wait_for_replicas(1).await;
    assert!(matches!(Redis::open(&replica.config()), Err(OpenError::Replica { .. })));
    let ledger = Redis::open(&wanting).unwrap();
    let (key, digest) = (contract::key("wait"), contract::digest(1));
    let claim = |name: &str| {
        let tags = [contract::tag(name)];
        let (ledger, key) = (&ledger, &key);
        async move { ledger.claim(key, &tags, &digest, AttemptId::random()).await }
    };
    assert!(matches!(claim("v1").await, Ok(Claim::Granted { .. })));
    drop(replica);
    let unconfirmed = claim("v2").await;
    assert!(
        matches!(&unconfirmed, Err(Unavailable::Store(text)) if text.contains("0 of 1 replicas")),
        "{unconfirmed:?}"
    );
}

/// A repeated call changes nothing, and must not take the replicas' word for something older.
#[tokio::test]
async fn a_repeated_write_waits_for_what_the_first_try_wrote() {
    for program in servers::programs() {
        let server = Server::start_as(program, &[]);
        let replica =
            Server::start_as(program, &["--replicaof", "127.0.0.1", &server.port.to_string()]);
        server.wait_for_replicas(1).await;
        let config = Config { replicas: 1, ..server.config() };
        // The second one repeats on a connection that has written nothing.
        let (ledger, again) = (Redis::open(&config).unwrap(), Redis::open(&config).unwrap());
        let (key, digest, other) =
            (contract::key("wait"), contract::digest(1), contract::digest(3));
        let (tags, attempt) = ([contract::tag("v1")], AttemptId::random());
        let seen = [contract::tag("v2")];
        let first = [contract::tag("v0")];
        contract::adopt(&ledger, &key, &first, &digest, Origin::Import).await.unwrap();
        replica.signal("-STOP");
        for ledger in [&ledger, &again] {
            let claim = ledger.claim(&key, &tags, &digest, attempt).await;
            assert!(matches!(&claim, Err(Unavailable::Store(text)) if text.contains("0 of 1")));
            let adopt = contract::adopt(ledger, &key, &seen, &other, Origin::Import).await;
            assert!(matches!(&adopt, Err(Unavailable::Store(text)) if text.contains("0 of 1")));
        }
        replica.signal("-CONT");
        let start = Instant::now();
        while ledger.claim(&key, &tags, &digest, attempt).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the replica does not come back");
        }
        let adopted = contract::adopt(&ledger, &key, &seen, &other, Origin::Import).await;
        assert_eq!(adopted, Ok(Adopt::Adopted));
        let set = [first[0].clone(), seen[0].clone()];
        let entries = ledger.lookup(&key, &set).await.unwrap().entries;
        let holders = Holder::present(&set, entries);
        let token = holders[0].entry.token().unwrap();
        replica.signal("-STOP");
        // What frees a name or keeps one from being bound is as durable as what binds it.
        for ledger in [&ledger, &again] {
            let unconfirmed = |done: Result<(), Unavailable>| {
                assert!(matches!(&done, Err(Unavailable::Store(text)) if text.contains("0 of 1")));
            };
            unconfirmed(ledger.supersede(&key, &holders[1..]).await.map(drop));
            unconfirmed(ledger.abort(&key, &tags, &digest, attempt).await);
            unconfirmed(ledger.withdraw(&key, &first, &digest).await);
            unconfirmed(ledger.release(&key, &first[0], token).await.map(drop));
            unconfirmed(ledger.begin_delete(&key, &digest, attempt).await.map(drop));
            let end = DeleteEnd::Kept;
            unconfirmed(ledger.end_delete(&key, &digest, &[attempt], &[], end).await.map(drop));
        }
        replica.signal("-CONT");
        server.stop();
    }
}

#[tokio::test]
async fn unfit_redis_and_other_ledgers_are_refused_at_start() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    let error = Redis::open(&server.config()).err().unwrap();
    assert!(matches!(error, OpenError::Evicts { .. }), "{error}");

    let server = Server::start(&[]);
    let expecting = |id: &str| Config { id: Some(id.to_owned()), ..server.config() };
    let error = Redis::open(&expecting("mine")).err().unwrap();
    assert!(matches!(error, OpenError::Empty { .. }), "{error}");
    let id = Redis::open(&server.config()).unwrap().identity.id;
    assert_eq!(Redis::open(&server.config()).unwrap().identity.id, id, "begun once");
    Redis::open(&expecting(&id)).unwrap();
    let error = Redis::open(&expecting("mine")).err().unwrap();
    assert!(matches!(error, OpenError::Another { .. }), "{error}");
    server.cli(&["HSET", META, "format", "3"]);
    let error = Redis::open(&server.config()).err().unwrap();
    assert!(matches!(error, OpenError::TooNew { found: 3, .. }), "{error}");

    let mut gone = server.config();
    gone.topology = Topology::Fixed(Address { host: "127.0.0.1".into(), port: 1 });
    assert!(matches!(Redis::open(&gone), Err(OpenError::Unreachable { .. })));
}

#[tokio::test]
async fn a_restart_is_survived_and_an_emptied_ledger_is_noticed() {
    let mut server = Server::start(&["--appendfsync", "always"]);
    let ledger = Redis::open(&server.config()).unwrap();
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    contract::adopt(&ledger, &key, &tags, &digest, Origin::Push).await.unwrap();

    server.kill();
    assert!(ledger.lookup(&key, &tags).await.is_err());
    server.start_again();
    let start = Instant::now();
    let entries = loop {
        match ledger.lookup(&key, &tags).await {
            Ok(found) => break found.entries,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(entries[0].digest(), Some(&digest));
    assert!(ledger.identity().await.is_ok());

    let losses = ledger.losses().unwrap();
    let lost = |key| losses.of(key);
    let other = contract::key("other");
    assert_eq!((lost(&key), lost(&other)), (0, 0));
    server.cli(&["FLUSHALL"]);
    assert_eq!(ledger.lookup(&key, &tags).await, Err(restoring()));
    assert_eq!((lost(&key), lost(&other)), (1, 0), "its sequence number fell");
    for _ in 0..2 {
        assert_eq!(ledger.identity().await.as_ref(), Ok(&ledger.identity), "it is there");
        assert_eq!(ledger.lookup(&key, &tags).await, Err(restoring()));
        assert_eq!((lost(&key), lost(&other)), (2, 1), "its id is gone, which counts once");
    }
    losses.settle(losses.total());
    assert_eq!(ledger.lookup(&key, &tags).await, Ok(nothing()), "it serves on");
}

#[tokio::test]
async fn a_ledger_with_another_id_is_served_only_where_the_settings_name_none() {
    let server = Server::start(&[]);
    let free = Redis::open(&server.config()).unwrap();
    let id = free.id().to_owned();
    let pinned = Redis::open(&Config { id: Some(id.clone()), ..server.config() }).unwrap();
    let (key, tags) = (contract::key("app"), [contract::tag("v1")]);
    server.cli(&["HSET", META, "id", "another"]);
    assert_eq!(free.identity().await.unwrap().id, "another");
    assert_eq!(free.losses().unwrap().of(&key), 1);
    free.losses().unwrap().settle(1);
    assert_eq!(free.lookup(&key, &tags).await, Ok(nothing()));
    assert!(pinned.identity().await.is_err());
    assert!(pinned.lookup(&key, &tags).await.is_err(), "nothing is bound in a foreign ledger");
    server.cli(&["HSET", META, "id", &id]);
    assert_eq!(pinned.identity().await.unwrap().id, id);
    let losses = pinned.losses().unwrap();
    losses.settle(losses.total());
    assert_eq!(pinned.lookup(&key, &tags).await, Ok(nothing()));
}

#[tokio::test]
async fn an_emptied_redis_becomes_the_ledger_it_was_when_an_operator_says_so() {
    let server = Server::start(&[]);
    let pinned = Config { id: Some("mine".into()), ..server.config() };
    assert!(matches!(Redis::open(&pinned), Err(OpenError::Empty { .. })));
    assert_eq!(Redis::init(&pinned).unwrap().id(), "mine");
    assert_eq!(Redis::init(&pinned).unwrap().id(), "mine", "safe to repeat");
    assert_eq!(Redis::open(&pinned).unwrap().id(), "mine");
    let other = Config { id: Some("other".into()), ..server.config() };
    assert!(matches!(Redis::init(&other), Err(OpenError::Another { .. })));
}

#[tokio::test]
async fn answers_that_overtake_each_other_are_no_loss() {
    let server = Server::start(&[]);
    let ledger = Redis::open(&server.config()).unwrap();
    let key = contract::key("app");
    let (first, second) = (ledger.mark(&key), ledger.mark(&key));
    ledger.note(&key, second, 2);
    ledger.note(&key, first, 1);
    assert_eq!((ledger.losses.total(), ledger.mark(&key).sequence), (0, 2));
    let third = ledger.mark(&key);
    ledger.note(&key, third, 1);
    assert_eq!((ledger.losses.total(), ledger.mark(&key).sequence), (1, 1));
    // One that began before the loss, with an answer from before it.
    ledger.note(&key, third, 3);
    assert_eq!((ledger.losses.total(), ledger.mark(&key).sequence), (1, 1));
}

#[tokio::test]
async fn proxies_of_one_redis_hear_of_each_others_rules_until_they_are_gone() {
    let server = Server::start(&[]);
    let ledger = Redis::open(&server.config()).unwrap();
    let announcement = |proxy: &str, rules: &str| Announcement {
        proxy: proxy.into(),
        rules: rules.into(),
        offered: String::new(),
    };
    let (first, second) = (announcement("a", "r1"), announcement("b", "r2"));
    assert_eq!(ledger.announce(&first).await, Ok(vec![]));
    assert_eq!(ledger.announce(&second).await, Ok(vec![first.clone()]));
    assert_eq!(ledger.announce(&first).await, Ok(vec![second.clone()]));
    let long_ago = format!("r2 {}", Timestamp::now().seconds() - GONE - 1);
    server.cli(&["HSET", PROXIES, "b", &long_ago]);
    assert_eq!(ledger.announce(&first).await, Ok(vec![]));
    assert!(!server.cli(&["HGETALL", PROXIES]).contains("r2"), "what is gone is cleared away");
}
