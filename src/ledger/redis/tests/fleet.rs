//! What proxies of one Redis hear of each other: freed names, and losses.

use super::*;
use crate::ledger::Sealed;
use crate::ledger::{News, Offered};
use servers::Cluster;

fn one(name: &str) -> [Tag; 1] {
    [contract::tag(name)]
}

async fn bound(ledger: &Redis, key: &RepositoryKey, name: &str, seed: u8) -> Sealed {
    let digest = contract::digest(seed);
    let adopt = contract::adopt(ledger, key, &one(name), &digest, Origin::Push).await;
    assert_eq!(adopt, Ok(Adopt::Adopted));
    let Entry::Sealed(sealed) = ledger.lookup(key, &one(name)).await.unwrap().entries.remove(0)
    else {
        panic!("it is not sealed")
    };
    sealed
}

fn offer(name: &str, sealed: &Sealed) -> Offer {
    let Sealed { digest, origin, since, sequence, withdrawn } = sealed.clone();
    let state = Offered::Bound { digest, origin, since, withdrawn };
    Offer { tag: contract::tag(name), state, sequence }
}

/// Every way in which something is freed; `other` hears of each. How much the count rises each time.
async fn is_heard_of(ledger: &Redis, other: &Redis, rise: u64) {
    let (key, d) = (contract::key("news"), contract::digest(1));
    let (a, b) = (AttemptId::random(), AttemptId::random());
    let mut count = other.poll(None).await.unwrap().count;
    let mut heard = async |way: &str| {
        let news = other.poll(Some(count)).await.unwrap();
        assert_eq!((news.count, news.freed), (count + rise, vec![key.clone()]), "{way}");
        count = news.count;
        let again = other.poll(Some(count)).await.unwrap();
        assert_eq!((again.count, again.freed), (count, vec![]), "{way}");
    };
    ledger.claim(&key, &one("v1"), &d, a).await.unwrap();
    ledger.abort(&key, &one("v1"), &d, a).await.unwrap();
    heard("abort").await;
    let sealed = bound(ledger, &key, "v1", 1).await;
    ledger.release(&key, &contract::tag("v1"), sealed.token()).await.unwrap();
    heard("release").await;
    let sealed = bound(ledger, &key, "v1", 1).await;
    ledger.withdraw(&key, &one("v1"), &d).await.unwrap();
    heard("withdraw").await;
    let seen = [Holder { tag: contract::tag("v1"), entry: Entry::Sealed(sealed) }];
    assert_eq!(ledger.supersede(&key, &seen).await.unwrap().len(), 1);
    heard("supersede").await;
    for end in [DeleteEnd::Kept, DeleteEnd::Withdrawn, DeleteEnd::Released] {
        bound(ledger, &key, "v1", 1).await;
        ledger.begin_delete(&key, &d, b).await.unwrap();
        ledger.end_delete(&key, &d, &[b], &one("v1"), end).await.unwrap();
        heard("delete").await;
    }
}

#[tokio::test]
async fn freed_names_are_heard_of_at_the_next_poll() {
    for program in servers::programs() {
        let server = Server::start_as(program, &[]);
        let (ledger, other) =
            (Redis::open(&server.config()).unwrap(), Redis::open(&server.config()).unwrap());
        is_heard_of(&ledger, &other, 1).await;
        // What frees nothing is no news.
        let last = other.poll(None).await.unwrap().count;
        let (key, d, a) = (contract::key("quiet"), contract::digest(1), AttemptId::random());
        ledger.claim(&key, &one("v1"), &d, a).await.unwrap();
        ledger.bind(&key, &one("v1"), &d, a, FreedNumber::default()).await.unwrap();
        ledger.abort(&key, &one("v1"), &d, a).await.unwrap();
        ledger.begin_delete(&key, &d, a).await.unwrap();
        ledger.end_delete(&key, &d, &[a], &one("v1"), DeleteEnd::Refused).await.unwrap();
        let quiet = News { count: last, ..News::default() };
        assert_eq!(other.poll(Some(last)).await, Ok(quiet));
    }
}

/// The script of a repository has no access to the count there: it is told before and after.
#[tokio::test]
async fn in_a_cluster_freed_names_are_announced_before_and_after() {
    let cluster = Cluster::start().await;
    let (ledger, other) =
        (Redis::open(&cluster.config()).unwrap(), Redis::open(&cluster.config()).unwrap());
    is_heard_of(&ledger, &other, 2).await;
    assert!(other.poll(None).await.unwrap().early);
    contract::restores(&ledger, 1).await;
}

#[tokio::test]
async fn nothing_is_bound_in_a_ledger_that_lost_its_id_before_what_is_remembered_was_offered() {
    for program in servers::programs() {
        let server = Server::start_as(program, &[]);
        let (first, second) =
            (Redis::open(&server.config()).unwrap(), Redis::open(&server.config()).unwrap());
        let (key, d) = (contract::key("app"), contract::digest(1));
        let sealed = bound(&first, &key, "v1", 1).await;
        let settle = |ledger: &Redis| ledger.losses.settle(ledger.losses.total());
        let refused = async |ledger: &Redis| {
            let claim = ledger.claim(&key, &one("v1"), &d, AttemptId::random()).await;
            let none = FreedNumber::default();
            let adopt = ledger.adopt(&key, &one("v1"), &d, Origin::Push, none).await;
            assert_eq!((claim, adopt), (Err(restoring()), Err(restoring())));
            assert_eq!(server.cli(&["EXISTS", &hash_of(&key)]), "int(0)", "nothing is written");
        };
        // The second time there was no id before, either.
        let mut names = Vec::new();
        for _ in 0..2 {
            server.cli(&["FLUSHALL"]);
            // The second one has seen nothing of the repository: only the ledger as a whole tells it.
            refused(&second).await;
            let news = first.poll(Some(0)).await.unwrap();
            assert!(first.losses.is_restoring(&key) && !names.contains(&news.loss));
            names.push(news.loss.clone());
            refused(&second).await;
            // It hears of the loss by the name that the first one gave it, and gives it no other.
            assert_eq!(second.poll(Some(0)).await.unwrap().loss, news.loss);
            assert_eq!(first.poll(Some(0)).await.unwrap().loss, news.loss);
            refused(&second).await;
            let restored = first.restore(&key, &[offer("v1", &sealed)]).await;
            assert_eq!(restored, Ok(vec![Restored::Restored]));
            settle(&first);
            settle(&second);
            let claim = second.claim(&key, &one("v1"), &d, AttemptId::random()).await;
            assert_eq!(claim, Ok(Claim::Granted { sealed: one("v1").to_vec(), fresh: vec![] }));
        }
        // One that starts later waits for those that may be restoring still, and counts no loss.
        let third = Redis::open(&server.config()).unwrap();
        assert_eq!(third.poll(None).await.unwrap().loss, names[1]);
        assert!(third.losses.is_restoring(&key));
        assert_eq!(third.losses.total(), 0);
    }
}

#[tokio::test]
async fn a_call_by_who_has_seen_more_of_a_repository_binds_nothing() {
    let server = Server::start(&[]);
    let ledger = Redis::open(&server.config()).unwrap();
    let (key, d) = (contract::key("app"), contract::digest(1));
    bound(&ledger, &key, "v1", 1).await;
    bound(&ledger, &key, "v2", 1).await;
    // An old file: of the repository, not of its id.
    server.cli(&["HDEL", &hash_of(&key), "v2"]);
    server.cli(&["HSET", &hash_of(&key), SEQUENCE, "1"]);
    let before = server.cli(&["HGETALL", &hash_of(&key)]);
    let claim = ledger.claim(&key, &one("v2"), &contract::digest(3), AttemptId::random()).await;
    assert_eq!(claim, Err(restoring()));
    assert_eq!(server.cli(&["HGETALL", &hash_of(&key)]), before);
    let other = contract::key("other");
    let claim = ledger.claim(&other, &one("v1"), &d, AttemptId::random()).await;
    assert!(claim.is_ok(), "another repository has lost nothing: {claim:?}");
}

#[tokio::test]
async fn a_loss_that_one_proxy_has_seen_is_known_to_all_at_their_next_poll() {
    let server = Server::start(&[]);
    let open = || Redis::open(&server.config()).unwrap();
    let (first, second, late) = (open(), open(), open());
    let (app, other) = (contract::key("app"), contract::key("other"));
    let lost = |ledger: &Redis| (ledger.losses.of(&app), ledger.losses.of(&other));
    let poll = async |ledger: &Redis| ledger.poll(Some(0)).await.unwrap().loss;
    for ledger in [&first, &second, &late] {
        assert_eq!(poll(ledger).await, "");
    }
    first.lost(Scope::Repository(app.clone()));
    let name = poll(&first).await;
    assert_eq!((poll(&second).await, lost(&second)), (name.clone(), (1, 0)));
    assert!(second.losses.is_restoring(&app) && !second.losses.is_restoring(&other));
    assert_eq!((poll(&first).await, lost(&first)), (name, (1, 0)), "its own");
    // Two that notice at once: neither is missed.
    first.lost(Scope::Repository(other.clone()));
    second.lost(Scope::Repository(app.clone()));
    let before = poll(&first).await;
    assert_eq!((poll(&second).await, lost(&second)), (poll(&second).await, (2, 1)));
    let after = poll(&first).await;
    assert!(before != after);
    assert_eq!(lost(&first), (2, 1));
    // Who has missed some takes the last one for a loss of everything.
    assert_eq!((poll(&late).await, lost(&late)), (after, (1, 1)));
    // Freed names that are not freed any more.
    server.cli(&["HSET", META, "freed", "5"]);
    poll(&first).await;
    server.cli(&["HSET", META, "freed", "4"]);
    let name = poll(&first).await;
    assert_eq!(lost(&first), (3, 2));
    assert_eq!((poll(&second).await, lost(&second)), (name.clone(), (3, 2)));
    // Even where the news of a loss is lost.
    server.cli(&["HDEL", META, "losses"]);
    assert!(poll(&first).await != name);
    assert_eq!(lost(&first), (4, 3));
}

#[tokio::test]
async fn proxies_say_after_which_loss_they_have_offered_and_older_ones_say_nothing() {
    let server = Server::start(&[]);
    let ledger = Redis::open(&server.config()).unwrap();
    let said = |proxy: &str, offered: &str| Announcement {
        proxy: proxy.into(),
        rules: "r".into(),
        offered: offered.into(),
    };
    ledger.announce(&said("a", "")).await.unwrap();
    ledger.announce(&said("b", "n1")).await.unwrap();
    // As an older version does.
    let now = format!("r {}", Timestamp::now().seconds());
    server.cli(&["HSET", PROXIES, "old", &now]);
    let mut others = ledger.announce(&said("c", "n1")).await.unwrap();
    others.sort_by(|one, other| one.proxy.cmp(&other.proxy));
    assert_eq!(others, [said("a", ""), said("b", "n1"), said("old", "")]);
    // And what an older version reads is as it was.
    assert!(server.cli(&["HGET", PROXIES, "b"]).starts_with("r "));
    server.cli(&["HSET", PROXIES, "b", "r 1"]);
    ledger.announce(&said("c", "n1")).await.unwrap();
    assert!(!server.cli(&["HGETALL", "taglock:1:offered"]).contains("\"b\""));
}

/// A master, a replica that can be stopped, and two proxies that want it to have what they go by.
struct Replicated {
    server: Server,
    replica: Server,
    first: Redis,
    second: Redis,
}

impl Replicated {
    async fn start(program: &'static str) -> Self {
        let server = Server::start_as(program, &[]);
        let port = server.port.to_string();
        let replica = Server::start_as(program, &["--replicaof", "127.0.0.1", &port]);
        server.wait_for_replicas(1).await;
        let config = Config { replicas: 1, ..server.config() };
        let (first, second) = (Redis::open(&config).unwrap(), Redis::open(&config).unwrap());
        Self { server, replica, first, second }
    }

    fn scripts(&self) -> u32 {
        let stats = self.server.info("commandstats");
        let calls = stats.lines().find_map(|l| l.strip_prefix("cmdstat_evalsha:calls="));
        calls.map_or(0, |calls| calls.split(',').next().unwrap().parse().unwrap())
    }
}

fn is_unconfirmed<T: std::fmt::Debug>(result: &Result<T, Unavailable>) -> bool {
    matches!(result, Err(Unavailable::Store(text)) if text.contains("0 of 1 replicas"))
}

#[tokio::test]
async fn a_binding_that_the_master_alone_may_have_is_confirmed_before_it_is_gone_by() {
    for program in servers::programs() {
        let house = Replicated::start(program).await;
        let Replicated { server, replica, first, second } = &house;
        let (key, d, e) = (contract::key("app"), contract::digest(1), contract::digest(3));
        bound(first, &key, "v0", 1).await;
        second.lookup(&key, &one("v0")).await.unwrap();
        replica.signal("-STOP");
        let adopt = contract::adopt(first, &key, &one("v1"), &d, Origin::FirstSight).await;
        assert!(is_unconfirmed(&adopt), "{adopt:?}");
        for _ in 0..2 {
            assert!(is_unconfirmed(&second.lookup(&key, &one("v1")).await));
        }
        // Nor is a push refused, or taken for one of the image that is bound.
        for digest in [&e, &d] {
            let claim = second.claim(&key, &one("v1"), digest, AttemptId::random()).await;
            assert!(is_unconfirmed(&claim), "{claim:?}");
        }
        // What the replica has, and what binds nothing, needs no word of it.
        second.lookup(&key, &[one("v0"), one("v9")].concat()).await.unwrap();
        replica.signal("-CONT");
        server.wait_for_replicas(1).await;
        let start = Instant::now();
        while second.lookup(&key, &one("v1")).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(20), "the replica does not come back");
        }
        let calls = house.scripts();
        for name in ["v1", "v0", "v9"] {
            second.lookup(&key, &one(name)).await.unwrap();
        }
        assert_eq!(house.scripts(), calls, "once");
        // The mark of a withdrawn one is younger than the entry.
        replica.signal("-STOP");
        assert!(is_unconfirmed(&first.withdraw(&key, &one("v1"), &d).await));
        assert!(is_unconfirmed(&second.lookup(&key, &one("v1")).await));
        second.lookup(&key, &one("v0")).await.unwrap();
        replica.signal("-CONT");
    }
}

/// A failover that lost no more than what was not confirmed: a name that was freed before stays free,
/// whoever remembers it as bound.
#[tokio::test]
async fn what_the_replicas_had_is_lost_by_no_failover_and_not_restored() {
    let house = Replicated::start("redis-server").await;
    let Replicated { server, first, second, .. } = &house;
    let key = contract::key("app");
    let old = bound(second, &key, "v1", 1).await;
    let kept = bound(second, &key, "v2", 1).await;
    first.lookup(&key, &[one("v1"), one("v2")].concat()).await.unwrap();
    second.release(&key, &contract::tag("v1"), old.token()).await.unwrap();
    let confirmed = bound(first, &key, "v3", 1).await;
    let lost = bound(first, &key, "v4", 1).await;
    assert_eq!(lost.sequence, confirmed.sequence + 1);
    // The replica had everything up to here, as `first` knows; but not what follows.
    first.confirmed.alter(&key, |_, known| known.test_at(confirmed.sequence));
    server.cli(&["HDEL", &hash_of(&key), "v4"]);
    server.cli(&["HSET", &hash_of(&key), SEQUENCE, &confirmed.sequence.to_string()]);
    assert_eq!(first.lookup(&key, &one("v1")).await, Err(restoring()));
    let offers =
        [offer("v1", &old), offer("v2", &kept), offer("v3", &confirmed), offer("v4", &lost)];
    let (newer, stands, restored) = (Restored::Newer, Restored::Stands, Restored::Restored);
    for last in [restored, stands] {
        let came = first.restore(&key, &offers).await;
        assert_eq!(came, Ok(vec![newer, stands, stands, last]));
    }
    // An old file: less is there than the replicas had.
    server.cli(&["FLUSHALL"]);
    first.losses.note(&Scope::Whole);
    let came = first.restore(&key, &offers).await;
    assert_eq!(came, Ok(vec![restored; 4]));
}
