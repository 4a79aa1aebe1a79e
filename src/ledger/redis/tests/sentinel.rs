use std::time::{Duration, Instant};

use super::servers::{Server, Watched};
use super::*;

#[tokio::test]
async fn through_sentinels_the_contract_is_kept() {
    let watched = Watched::start().await;
    let ledger = Redis::open(&watched.config()).unwrap();
    contract::holds(&ledger).await;
    contract::agrees_with_the_table(&ledger, 20).await;
}

#[tokio::test]
async fn no_acknowledged_binding_is_lost_with_the_master() {
    let mut watched = Watched::start().await;
    let ledger = Redis::open(&watched.config()).unwrap();
    let keys = ["a", "b", "c", "d"].map(contract::key);
    load::survives(ledger, keys.into(), async || {
        let [master, replica] = watched.servers.as_mut_slice() else { panic!("two servers") };
        master.kill();
        servers::eventually("a new master", || replica.info("replication").contains("role:master"))
            .await;
        // It comes back as a master that nobody should believe, and is then made a replica:
        // until then no replica confirms anything.
        master.start_again();
    })
    .await;
}

/// Sentinels that name a server don't make it a master, and one that is down is no way to another.
#[tokio::test]
async fn a_demoted_or_unknown_master_is_not_used() {
    let watched = Watched::start().await;
    let config = watched.config();
    let ledger = Redis::open(&config).unwrap();
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    contract::adopt(&ledger, &key, &tags, &digest, Origin::Push).await.unwrap();

    // Both masters live; the proxy leaves the one that lost its office.
    watched.sentinels[0].cli(&["SENTINEL", "FAILOVER", "mymaster"]);
    let start = Instant::now();
    let other = [contract::tag("v2")];
    loop {
        let promoted = watched.servers[1].info("replication").contains("role:master");
        let adopted = contract::adopt(&ledger, &key, &other, &digest, Origin::Push).await;
        if promoted && adopted.is_ok() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{adopted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let set = [tags[0].clone(), other[0].clone()];
    let entries = ledger.lookup(&key, &set).await.unwrap().entries;
    assert!(entries.iter().all(|entry| entry.digest() == Some(&digest)), "{entries:?}");

    let Topology::Sentinel { sentinels, access, .. } = config.topology.clone() else { panic!() };
    let named = |name: &str, sentinels: Vec<Address>| {
        let master = name.to_owned();
        let topology = Topology::Sentinel { sentinels, access: access.clone(), master };
        Redis::open(&Config { topology, ..config.clone() }).err().unwrap().to_string()
    };
    let error = named("another", sentinels.clone());
    assert!(error.contains("no sentinel names a master `another`"), "{error}");
    assert!(error.contains("No such master with that name"), "{error}");
    // A Redis is no sentinel.
    let error = named("mymaster", vec![watched.servers[0].address()]);
    assert!(error.contains("unknown command"), "{error}");
    let error = named("mymaster", vec![Address { host: "127.0.0.1".into(), port: 1 }]);
    assert!(error.contains("127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn sentinels_have_their_own_password_and_some_may_be_away() {
    let master = Server::start(&["--requirepass", "of-the-redis"]);
    let more = "requirepass of-the-sentinels\nsentinel auth-pass mymaster of-the-redis\n";
    let sentinel = Server::start_sentinel(&master, more);
    let away = Address { host: "127.0.0.1".into(), port: 1 };
    let config = |redis: &str, sentinels: &str| {
        let access = |password: &str| Access::new(None).with_login(None, Some(password));
        let topology = Topology::Sentinel {
            sentinels: vec![away.clone(), sentinel.address(), away.clone()],
            access: access(sentinels),
            master: "mymaster".into(),
        };
        let access = access(redis).with_database(3);
        Config { topology, access, shown: "mymaster".into(), replicas: 0, id: None }
    };
    let start = Instant::now();
    let ledger = loop {
        match Redis::open(&config("of-the-redis", "of-the-sentinels")) {
            Ok(ledger) => break ledger,
            // The sentinel begins with a look of its own.
            Err(error) => assert!(start.elapsed() < Duration::from_secs(20), "{error}"),
        }
    };
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    let adopted = contract::adopt(&ledger, &key, &tags, &digest, Origin::Push).await;
    assert_eq!(adopted, Ok(Adopt::Adopted));
    for (redis, sentinels) in [("wrong", "of-the-sentinels"), ("of-the-redis", "wrong")] {
        let error = Redis::open(&config(redis, sentinels)).err().unwrap().to_string();
        assert!(error.to_lowercase().contains("password"), "{error}");
        assert!(!error.contains("of-the-"), "{error}");
    }
}
