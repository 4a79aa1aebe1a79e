use super::servers::{Cluster, Server};
use super::topology::slot_of;
use super::*;

#[tokio::test]
async fn over_a_cluster_the_contract_is_kept() {
    let cluster = Cluster::start().await;
    let ledger = Redis::open(&cluster.config()).unwrap();
    contract::holds(&ledger).await;
    contract::agrees_with_the_table(&ledger, 20).await;
    let error = Redis::open(&cluster.nodes[0].config()).err().unwrap();
    assert!(matches!(error, OpenError::Clustered { .. }), "{error}");
    let error = Redis::open(&Config { replicas: 2, ..cluster.config() }).err().unwrap();
    assert!(matches!(error, OpenError::TooFewReplicas { found: 1, wanted: 2, .. }), "{error}");
}

#[tokio::test]
async fn no_acknowledged_binding_is_lost_with_a_master_of_a_cluster() {
    let mut cluster = Cluster::start().await;
    let ledger = Redis::open(&cluster.config()).unwrap();
    // Enough that each master has some of them.
    let keys = ["a", "b", "c", "d", "e", "f"].map(contract::key);
    let mut owners: Vec<_> = keys.iter().map(|key| cluster.owner(slot_of(&hash_of(key)))).collect();
    let victim = owners[0];
    owners.sort_unstable();
    owners.dedup();
    assert_eq!(owners.len(), 3, "choose other names");
    let slot = slot_of(&hash_of(&keys[0]));
    load::survives(ledger, keys.into(), async || {
        cluster.nodes[victim].kill();
        servers::eventually("a new master", || cluster.find_owner(slot).is_some()).await;
        // Its replica has no replica now, and so confirms nothing, until the other is back.
        cluster.nodes[victim].start_again();
    })
    .await;
}

/// A slot that is under way, and one that has arrived: ASK and MOVED.
#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let cluster = Cluster::start().await;
    let ledger = Redis::open(&cluster.config()).unwrap();
    let key = contract::key("moving");
    let slot = slot_of(&hash_of(&key));
    let from = &cluster.nodes[cluster.owner(slot)];
    let to = &cluster.nodes[cluster.owner((slot + super::topology::SLOTS / 2) % 16_384)];
    assert_ne!(from.port, to.port);
    let id = |node: &Server| node.cli(&["CLUSTER", "MYID"]);
    let set = |node: &Server, words: &[&str]| {
        let slot = slot.to_string();
        node.cli(&[&["CLUSTER", "SETSLOT", &slot], words].concat());
    };
    let claim = async |name: &str| {
        let (tags, digest) = ([contract::tag(name)], contract::digest(1));
        let claim = ledger.claim(&key, &tags, &digest, AttemptId::random()).await;
        assert!(matches!(claim, Ok(Claim::Granted { .. })), "{claim:?}");
        let entries = ledger.lookup(&key, &tags).await.unwrap().entries;
        assert_eq!(entries[0].digest(), Some(&digest));
    };
    // The first call fetches the map and makes connections.
    assert_eq!(ledger.sequence(&key).await, Ok(0));
    set(to, &["IMPORTING", &id(from)]);
    set(from, &["MIGRATING", &id(to)]);
    claim("while-it-moves").await;
    assert_eq!(ledger.bound_to(&key, &contract::digest(1)).await.unwrap().len(), 1);
    for node in [to, from] {
        set(node, &["NODE", &id(to)]);
    }
    claim("after-it-moved").await;
    assert_eq!(ledger.bound_to(&key, &contract::digest(1)).await.unwrap().len(), 2);
    // The map follows, so that nobody goes round by the old place for long.
    servers::eventually("the new map", || ledger.reach.master_of(slot) == Some(to.address())).await;
}
