//! Claims and seals that go on while masters are killed, and what must be left of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::servers::eventually;
use crate::ledger::{
    Adopt, AttemptId, Bind, Claim, FreedNumber, Ledger, Origin, RepositoryKey, Unavailable,
    contract, redis::Redis,
};
use crate::name::{Digest, Tag};

/// What was acknowledged, in the order of its acknowledgement.
type Acknowledged = Vec<(RepositoryKey, Tag, Digest)>;

/// One task for each of these repositories binds one tag after the other; every second one as if
/// it had been found in the registry. The disaster comes once all have bound some; the load ends
/// when all have bound some more after it. Then everything acknowledged must be there.
pub async fn survives(
    ledger: Redis,
    repositories: Vec<RepositoryKey>,
    disaster: impl AsyncFnOnce(),
) {
    let ledger = Arc::new(ledger);
    let stop = Arc::new(AtomicBool::new(false));
    let failures = Arc::new(AtomicU32::new(0));
    let counts: Vec<_> = repositories.iter().map(|_| Arc::new(AtomicU32::new(0))).collect();
    let mut tasks = Vec::new();
    for (key, count) in repositories.into_iter().zip(&counts) {
        let (ledger, stop, failures, count) =
            (Arc::clone(&ledger), Arc::clone(&stop), Arc::clone(&failures), Arc::clone(count));
        tasks.push(tokio::spawn(async move {
            let mut acknowledged = Acknowledged::new();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (tag, digest) = (contract::tag(&format!("v{n}")), contract::digest(n as u8));
                match bind(&ledger, &key, &tag, &digest, n % 2 == 0).await {
                    Ok(()) => {
                        acknowledged.push((key.clone(), tag, digest));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(Unavailable::Store(_) | Unavailable::TimedOut) => {
                        failures.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(Unavailable::Closed) => panic!("nobody closed it"),
                }
            }
            acknowledged
        }));
    }
    let all_beyond = |bounds: &[u32]| {
        let reached =
            |(count, bound): (&Arc<AtomicU32>, &u32)| count.load(Ordering::Relaxed) > *bound;
        counts.iter().zip(bounds).all(reached)
    };
    eventually("the load", || all_beyond(&vec![20; counts.len()])).await;
    let failed = failures.load(Ordering::Relaxed);
    disaster().await;
    assert!(failures.load(Ordering::Relaxed) > failed, "nobody noticed");
    // What was under way when the master died may still be counted.
    let bounds: Vec<_> = counts.iter().map(|count| count.load(Ordering::Relaxed) + 20).collect();
    eventually("the load after the failover", || all_beyond(&bounds)).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        for (key, tag, digest) in task.await.unwrap() {
            let entries = ledger.lookup(&key, std::slice::from_ref(&tag)).await.unwrap().entries;
            assert_eq!(entries[0].digest(), Some(&digest), "{key}:{tag} is lost");
        }
    }
}

async fn bind(
    ledger: &Redis,
    key: &RepositoryKey,
    tag: &Tag,
    digest: &Digest,
    claimed: bool,
) -> Result<(), Unavailable> {
    let tags = std::slice::from_ref(tag);
    if !claimed {
        let adopted = contract::adopt(ledger, key, tags, digest, Origin::Push).await?;
        assert_eq!(adopted, Adopt::Adopted);
        return Ok(());
    }
    let attempt = AttemptId::random();
    let claim = ledger.claim(key, tags, digest, attempt).await?;
    assert!(matches!(claim, Claim::Granted { .. }), "{claim:?}");
    let bound = ledger.bind(key, tags, digest, attempt, FreedNumber::default()).await?;
    assert_eq!(bound, Bind::Bound);
    Ok(())
}
