use async_trait::async_trait;

use super::*;
use crate::ledger::contract;
use crate::ledger::memory::Memory;
use crate::ledger::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, Identity,
    Listed, Lookup, Position, Release, Token,
};
use crate::name::{Algorithm, RepositoryName, UpstreamName};

/// A ledger that can be taken away and brought back, and counts its look-ups.
struct Switch {
    inner: Memory,
    fault: Mutex<Option<Fault>>,
    lookups: AtomicU64,
}

#[derive(Clone, Copy)]
enum Fault {
    Fails,
    Hangs,
}

impl Switch {
    fn set(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = fault;
    }

    fn lookups(&self) -> u64 {
        self.lookups.swap(0, Ordering::Relaxed)
    }

    async fn up(&self) -> Result<(), Unavailable> {
        let fault = *self.fault.lock().unwrap();
        match fault {
            None => Ok(()),
            Some(Fault::Fails) => Err(Unavailable::Store("down".into())),
            Some(Fault::Hangs) => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Ledger for Switch {
    async fn lookup(&self, key: &RepositoryKey, tags: &[Tag]) -> Result<Lookup, Unavailable> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        self.up().await?;
        self.inner.lookup(key, tags).await
    }

    async fn claim(
        &self,
        key: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        self.up().await?;
        self.inner.claim(key, tags, digest, attempt).await
    }

    async fn bind(
        &self,
        key: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable> {
        self.up().await?;
        self.inner.bind(key, tags, digest, attempt, freed).await
    }

    async fn adopt(
        &self,
        key: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable> {
        self.up().await?;
        self.inner.adopt(key, tags, digest, origin, freed).await
    }

    async fn abort(
        &self,
        key: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        self.inner.abort(key, tags, digest, attempt).await
    }

    async fn release(
        &self,
        key: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        self.inner.release(key, tag, token).await
    }

    async fn withdraw(
        &self,
        key: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.inner.withdraw(key, tags, digest).await
    }

    async fn supersede(
        &self,
        key: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        self.inner.supersede(key, seen).await
    }

    async fn begin_delete(
        &self,
        key: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        self.inner.begin_delete(key, digest, attempt).await
    }

    async fn end_delete(
        &self,
        key: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        self.inner.end_delete(key, digest, attempts, tags, end).await
    }

    async fn marked(
        &self,
        key: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        self.inner.marked(key, digests).await
    }

    async fn delete_marks(
        &self,
        key: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        self.inner.delete_marks(key).await
    }

    async fn bound_to(
        &self,
        key: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.inner.bound_to(key, digest).await
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.inner.list(after, limit).await
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        self.inner.identity().await
    }

    async fn sequence(&self, key: &RepositoryKey) -> Result<u64, Unavailable> {
        self.inner.sequence(key).await
    }

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        self.inner.announce(own).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

const TTL: Duration = Duration::from_secs(60);

fn house() -> (Arc<Switch>, Witness) {
    let inner =
        Switch { inner: Memory::new(), fault: Mutex::new(None), lookups: AtomicU64::new(0) };
    let inner = Arc::new(inner);
    let witness = Witness::new(Arc::<Switch>::clone(&inner), Remembering::default());
    (inner, witness)
}

fn key() -> RepositoryKey {
    RepositoryKey {
        upstream: UpstreamName::parse("default").unwrap(),
        repository: RepositoryName::parse("prod/app").unwrap(),
    }
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

fn digest(seed: &str) -> Digest {
    Digest::of(Algorithm::Sha256, seed.as_bytes())
}

async fn seal(ledger: &dyn Ledger, name: &str, seed: &str) {
    bind(ledger, &key(), &[tag(name)], &digest(seed)).await;
}

/// As a push does.
async fn bind(ledger: &dyn Ledger, key: &RepositoryKey, tags: &[Tag], digest: &Digest) {
    let attempt = AttemptId::random();
    let claim = ledger.claim(key, tags, digest, attempt).await;
    assert!(matches!(claim, Ok(Claim::Granted { .. })), "{claim:?}");
    let none = FreedNumber::default();
    assert_eq!(ledger.bind(key, tags, digest, attempt, none).await, Ok(Bind::Bound));
}

async fn entries(ledger: &dyn Ledger, key: &RepositoryKey, tags: &[Tag]) -> Vec<Entry> {
    ledger.lookup(key, tags).await.unwrap().entries
}

async fn supersede(ledger: &dyn Ledger, key: &RepositoryKey, tags: &[Tag]) {
    let seen = Holder::present(tags, entries(ledger, key, tags).await);
    assert_eq!(ledger.supersede(key, &seen).await.unwrap().len(), tags.len());
}

async fn release(ledger: &dyn Ledger, name: &str) {
    let Entry::Sealed(sealed) = entries(ledger, &key(), &[tag(name)]).await.remove(0) else {
        panic!("it is not sealed");
    };
    let released = ledger.release(&key(), &tag(name), sealed.token()).await;
    assert_eq!(released, Ok(Release::Freed));
}

fn is_absent(known: &Known) -> bool {
    matches!(known, Known::Entry(Entry::Absent, _))
}

#[tokio::test]
async fn a_witnessed_ledger_keeps_the_contract() {
    contract::holds(&house().1).await;
}

#[tokio::test(start_paused = true)]
async fn pulls_go_by_memory_within_its_time_and_pushes_never_do() {
    let (inner, witness) = house();
    seal(&*inner, "v1", "one").await;
    assert!(matches!(witness.known(&key(), &tag("v1")).await, Known::Entry(Entry::Sealed(_), _)));
    inner.lookups();
    for _ in 0..5 {
        assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Fresh(digest("one")));
    }
    assert_eq!(inner.lookups(), 0);
    witness.lookup(&key(), &[tag("v1")]).await.unwrap();
    assert_eq!(inner.lookups(), 1, "a push's look-up asks the store");
    tokio::time::advance(TTL).await;
    assert!(matches!(witness.known(&key(), &tag("v1")).await, Known::Entry(..)));
    assert_eq!(inner.lookups(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_push_sealed_or_met_is_remembered() {
    let (inner, witness) = house();
    seal(&witness, "v1", "one").await;
    assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Fresh(digest("one")));
    seal(&*inner, "v2", "one").await;
    let attempt = AttemptId::random();
    let claim = witness.claim(&key(), &[tag("v2")], &digest("two"), attempt).await.unwrap();
    assert!(matches!(claim, Claim::Held(_)));
    assert_eq!(witness.known(&key(), &tag("v2")).await, Known::Fresh(digest("one")));
    let seen = witness.last_seen(&key(), &tag("v2")).unwrap();
    assert_eq!(seen.details.map(|d| d.origin), Some(Origin::Push));
}

#[tokio::test(start_paused = true)]
async fn absent_pending_and_withdrawn_entries_are_never_served_from_memory() {
    let (inner, witness) = house();
    assert!(is_absent(&witness.known(&key(), &tag("v1")).await));
    witness.claim(&key(), &[tag("v2")], &digest("one"), AttemptId::random()).await.unwrap();
    seal(&witness, "v3", "one").await;
    witness.withdraw(&key(), &[tag("v3")], &digest("one")).await.unwrap();
    inner.lookups();
    for _ in 0..2 {
        let known = witness.known(&key(), &tag("v1")).await;
        assert!(is_absent(&known));
        let known = witness.known(&key(), &tag("v2")).await;
        assert!(matches!(known, Known::Entry(Entry::Pending(_), _)), "{known:?}");
        let known = witness.known(&key(), &tag("v3")).await;
        assert!(matches!(known, Known::Entry(Entry::Sealed(s), _) if s.withdrawn.is_some()));
    }
    assert_eq!(inner.lookups(), 6);
    inner.set(Some(Fault::Fails));
    for name in ["v1", "v2", "v3"] {
        let known = witness.known(&key(), &tag(name)).await;
        assert!(matches!(known, Known::Nothing(_)), "{name}: {known:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_released_or_superseded_name_is_forgotten_at_once() {
    let (_, witness) = house();
    seal(&witness, "v1", "one").await;
    release(&witness, "v1").await;
    assert!(is_absent(&witness.known(&key(), &tag("v1")).await));
    assert_eq!(witness.last_seen(&key(), &tag("v1")), None);
    seal(&witness, "v1", "two").await;
    supersede(&witness, &key(), &[tag("v1")]).await;
    assert!(is_absent(&witness.known(&key(), &tag("v1")).await));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_memory_is_so_no_longer_than_memory_says_it() {
    for change in [
        "release",
        "supersede",
        "withdraw",
        "look",
        "absent",
        "evicted, look",
        "evicted, withdraw",
        "late",
        "age",
        "none",
    ] {
        let (inner, witness) = house();
        seal(&witness, "v1", "one").await;
        seal(&witness, "v2", "two").await;
        let late = witness.begin(&key());
        let now = Instant::now();
        let mut fresh = witness.fresh(&key(), &tag("v1"), now).unwrap();
        assert!(fresh.digest == digest("one") && witness.is_still(&fresh, now), "{change}");
        let change = match change.strip_prefix("evicted, ") {
            Some(change) => {
                witness.memory.clear();
                assert!(witness.is_still(&fresh, now), "it is no news");
                change
            }
            None => change,
        };
        match change {
            "release" => release(&witness, "v1").await,
            "withdraw" => {
                witness.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
            }
            "supersede" => {
                supersede(&witness, &key(), &[tag("v1")]).await;
            }
            // Elsewhere it was let go of, and bound to something else, or not.
            "look" | "absent" => {
                release(&*inner, "v1").await;
                if change == "look" {
                    seal(&*inner, "v1", "two").await;
                }
                assert!(witness.is_still(&fresh, now), "nobody has told");
                witness.lookup(&key(), &[tag("v1")]).await.unwrap();
            }
            // A call that began before something was forgotten puts back what is taken out again.
            "late" => {
                witness.forget(&key(), &tag("v2"));
                fresh = witness.fresh(&key(), &tag("v1"), now).unwrap();
                witness.remember(&key(), &tag("v1"), digest("one"), None, &late);
                assert_eq!(witness.last_seen(&key(), &tag("v1")), None);
            }
            "age" => tokio::time::advance(TTL).await,
            _ => {
                // Looks that bring what is known change nothing.
                witness.lookup(&key(), &[tag("v1"), tag("v2")]).await.unwrap();
                assert!(witness.is_still(&fresh, Instant::now()));
                continue;
            }
        }
        assert!(!witness.is_still(&fresh, Instant::now()), "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_released_elsewhere_is_served_no_longer_than_the_time_to_live() {
    let (inner, witness) = house();
    seal(&witness, "v1", "one").await;
    release(&*inner, "v1").await;
    assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Fresh(digest("one")));
    tokio::time::advance(TTL).await;
    assert!(is_absent(&witness.known(&key(), &tag("v1")).await));
    let seen = witness.last_seen(&key(), &tag("v1")).expect("it is a witness still");
    assert!(!seen.stands && seen.digest == digest("one"));
    // And not by memory when the ledger goes down after that.
    inner.set(Some(Fault::Fails));
    assert!(matches!(witness.known(&key(), &tag("v1")).await, Known::Nothing(_)));
}

#[tokio::test(start_paused = true)]
async fn without_the_ledger_memory_is_served_whatever_its_age_and_at_once() {
    for fault in [Fault::Fails, Fault::Hangs] {
        let (inner, witness) = house();
        seal(&witness, "v1", "one").await;
        tokio::time::advance(TTL * 100).await;
        inner.set(Some(fault));
        let start = Instant::now();
        assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Remembered(digest("one")));
        assert!(start.elapsed() <= SHORT);
        // From now on it is not even asked, for a while.
        let start = Instant::now();
        inner.lookups();
        for _ in 0..10 {
            assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Remembered(digest("one")));
        }
        assert_eq!((inner.lookups(), start.elapsed()), (0, Duration::ZERO));
        let start = Instant::now();
        assert!(matches!(witness.known(&key(), &tag("v2")).await, Known::Nothing(_)));
        assert!(start.elapsed() <= SHORT);
        inner.set(None);
        tokio::time::advance(DOWN).await;
        let known = witness.known(&key(), &tag("v1")).await;
        assert!(matches!(known, Known::Entry(Entry::Sealed(_), _)), "it is back: {known:?}");
    }
}

#[tokio::test]
async fn a_lookup_that_began_before_a_release_brings_nothing_back() {
    let (_, witness) = house();
    let sealed = Sealed {
        digest: digest("one"),
        origin: Origin::Push,
        since: Timestamp::EPOCH,
        sequence: 1,
        withdrawn: None,
    };
    let begun = witness.begin(&key());
    witness.forget(&key(), &tag("v1"));
    witness.note(&key(), &tag("v1"), &Entry::Sealed(sealed), &begun);
    assert_eq!(witness.last_seen(&key(), &tag("v1")), None);
}

#[tokio::test]
async fn the_memory_is_bounded() {
    let remembering = Remembering { bytes: 64 << 10, ..Remembering::default() };
    let witness = Witness::new(Arc::new(Memory::new()), remembering);
    for n in 0..2000 {
        seal(&witness, &format!("v{n}"), "one").await;
    }
    assert!(witness.memory.weight() <= 64 << 10, "{}", witness.memory.weight());
    assert!(witness.memory.len() > 50, "{}", witness.memory.len());
}

/// A ledger that can lose everything, as a Redis that comes back without its file.
fn forgetful() -> (Arc<Memory>, Witness) {
    let memory = Arc::new(Memory::new());
    let witness = Witness::new(Arc::<Memory>::clone(&memory), Remembering::default());
    (memory, witness)
}

#[tokio::test]
async fn what_the_ledger_lost_is_bound_again_before_anything_else_is() {
    let (memory, witness) = forgetful();
    let (key, v1, v2) = (contract::key("app"), [contract::tag("v1")], [contract::tag("v2")]);
    let (one, two) = (contract::digest(1), contract::digest(3));
    contract::adopt(&witness, &key, &v1, &one, Origin::Import).await.unwrap();
    witness.lookup(&key, &v1).await.unwrap();
    memory.lose();
    let entries = entries(&witness, &key, &[v1[0].clone(), v2[0].clone()]).await;
    assert!(
        matches!(&entries[0], Entry::Sealed(s) if s.digest == one && s.origin == Origin::Import)
    );
    assert_eq!(entries[1], Entry::Absent, "what is not remembered is the registry's to tell");
    let claim = witness.claim(&key, &v1, &two, AttemptId::random()).await;
    assert!(matches!(claim, Ok(Claim::Held(_))));
}

#[tokio::test]
async fn a_name_that_is_let_go_of_after_a_loss_stays_free() {
    let (memory, witness) = forgetful();
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    bind(&witness, &key, &tags, &digest).await;
    memory.lose();
    assert_eq!(witness.restore_all().await, 1);
    assert_eq!(witness.restore_all().await, 0, "once for each loss");
    // Another proxy lets go of it; this one only sees that it is gone.
    supersede(&*memory, &key, &tags).await;
    assert_eq!(entries(&witness, &key, &tags).await, [Entry::Absent]);
    assert_eq!(witness.restore_all().await, 0);
}

#[tokio::test]
async fn a_tag_that_was_free_before_a_loss_is_not_bound_by_it() {
    let (memory, witness) = forgetful();
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    bind(&witness, &key, &tags, &digest).await;
    supersede(&*memory, &key, &tags).await;
    witness.lookup(&key, &tags).await.unwrap();
    memory.lose();
    assert_eq!(entries(&witness, &key, &tags).await, [Entry::Absent]);
    // Nor is one that somebody else took in the meantime moved.
    bind(&witness, &key, &tags, &digest).await;
    memory.lose();
    let other = contract::digest(3);
    bind(&*memory, &key, &tags, &other).await;
    assert_eq!(witness.restore_all().await, 1);
    let entries = entries(&witness, &key, &tags).await;
    assert_eq!(entries[0].digest(), Some(&other));
}

#[tokio::test(start_paused = true)]
async fn pulls_are_counted_by_what_they_went_by() {
    let metrics = Arc::new(Metrics::new());
    let (inner, witness) = house();
    let witness = witness.counted(Arc::clone(&metrics));
    let counted = || {
        let text = String::from_utf8(metrics.render()).unwrap();
        ["hit", "miss", "outage"].map(|result| {
            let begin = format!("taglock_cache_total{{result=\"{result}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(begin.as_str()));
            value.map_or(0, |value| value.parse::<u32>().unwrap())
        })
    };
    seal(&witness, "v1", "one").await;
    witness.known(&key(), &tag("v1")).await;
    assert_eq!(counted(), [1, 0, 0]);
    witness.known(&key(), &tag("v2")).await;
    tokio::time::advance(TTL).await;
    witness.known(&key(), &tag("v1")).await;
    assert_eq!(counted(), [1, 2, 0]);
    tokio::time::advance(TTL).await;
    inner.set(Some(Fault::Fails));
    // The first finds out, the second knows, the third has nothing to go by.
    for name in ["v1", "v1", "v2"] {
        witness.known(&key(), &tag(name)).await;
    }
    assert_eq!(counted(), [1, 2, 3]);
}
