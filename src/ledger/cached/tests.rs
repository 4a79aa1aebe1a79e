use async_trait::async_trait;

use super::*;
use crate::ledger::contract;
use crate::ledger::memory::Memory;
use crate::ledger::rollback::{Losses, restoring};
use crate::ledger::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, Identity,
    Listed, Lookup, News, Offer, Position, Release, Restored, Token,
};
use crate::name::{Algorithm, RepositoryName, UpstreamName};

/// A ledger that can be taken away and brought back, and counts its look-ups.
struct Switch {
    inner: Memory,
    fault: Mutex<Option<Fault>>,
    lookups: AtomicU64,
    early: AtomicBool,
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

    async fn invalidate(&self, key: &RepositoryKey, tags: &[Tag]) -> Result<Lookup, Unavailable> {
        self.inner.invalidate(key, tags).await
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

    async fn poll(&self, last: Option<u64>) -> Result<News, Unavailable> {
        self.up().await?;
        let early = self.early.load(Ordering::Relaxed);
        Ok(News { early, ..self.inner.poll(last).await? })
    }

    async fn restore(
        &self,
        key: &RepositoryKey,
        offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        self.inner.restore(key, offers).await
    }

    fn heard(&self, key: &RepositoryKey) -> u64 {
        self.inner.heard(key)
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn losses(&self) -> Option<&Losses> {
        self.inner.losses()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

const TTL: Duration = Duration::from_secs(60);

fn over(inner: Memory) -> (Arc<Switch>, Witness) {
    let (lookups, early) = (AtomicU64::new(0), AtomicBool::new(false));
    let inner = Arc::new(Switch { inner, fault: Mutex::new(None), lookups, early });
    let witness = Witness::new(Arc::<Switch>::clone(&inner), Remembering::default());
    (inner, witness)
}

fn house() -> (Arc<Switch>, Witness) {
    over(Memory::new())
}

/// A ledger that other proxies use, too, and this proxy has polled.
async fn fleet() -> (Arc<Switch>, Witness) {
    let (inner, witness) = over(Memory::shared());
    witness.hear().await.unwrap();
    (inner, witness)
}

fn state(witness: &Witness, name: &str) -> Option<State> {
    witness.last_seen(&key(), &tag(name)).map(|seen| seen.state)
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
    assert_eq!(seen.details.origin, Origin::Push);
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
    assert_eq!(state(&witness, "v1"), Some(State::Freed));
    assert!(is_absent(&witness.known(&key(), &tag("v1")).await));
    seal(&witness, "v1", "two").await;
    assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Fresh(digest("two")));
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
            // A call that began before something was forgotten, and brings something else.
            "late" => {
                witness.forget(&key(), &tag("v2"), None);
                fresh = witness.fresh(&key(), &tag("v1"), now).unwrap();
                let bound = (State::Bound, None);
                witness.remember(&key(), &tag("v1"), digest("one"), bound, &late);
                assert!(witness.is_still(&fresh, now), "it brought what is known");
                witness.remember(&key(), &tag("v1"), digest("two"), bound, &late);
                assert_eq!(state(&witness, "v1"), Some(State::Doubted));
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
    assert!(seen.state == State::Freed && seen.digest == digest("one"));
    // And not by memory when the ledger goes down after that.
    inner.set(Some(Fault::Fails));
    assert!(matches!(witness.known(&key(), &tag("v1")).await, Known::Nothing(_)));
}

#[tokio::test(start_paused = true)]
async fn memory_is_served_without_the_ledgers_word_only_where_this_look_up_failed() {
    for fault in [Fault::Fails, Fault::Hangs] {
        let (inner, witness) = house();
        seal(&witness, "v1", "one").await;
        tokio::time::advance(TTL * 100).await;
        inner.set(Some(fault));
        // Each pull asks, and waits a little.
        for _ in 0..3 {
            let start = Instant::now();
            inner.lookups();
            let known = witness.known(&key(), &tag("v1")).await;
            assert!(matches!(known, Known::Remembered(d, _) if d == digest("one")), "{known:?}");
            assert!(start.elapsed() <= SHORT);
            assert_eq!(inner.lookups(), 1);
        }
        if matches!(fault, Fault::Fails) {
            let attempt = AttemptId::random();
            witness.claim(&key(), &[tag("v2")], &digest("one"), attempt).await.unwrap_err();
        }
        inner.set(None);
        // Another call has just failed; this one does not.
        let known = witness.known(&key(), &tag("v1")).await;
        assert!(matches!(known, Known::Entry(Entry::Sealed(_), _)), "it is back: {known:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_down_is_waited_for_a_little_where_polls_have_told() {
    let (inner, witness) = fleet().await;
    inner.set(Some(Fault::Hangs));
    let hear = timeout(Duration::from_secs(1), witness.hear());
    assert!(hear.await.is_err(), "the guard ends it");
    inner.set(Some(Fault::Fails));
    assert!(witness.hear().await.is_err());
    inner.set(Some(Fault::Hangs));
    let start = Instant::now();
    assert!(matches!(witness.known(&key(), &tag("v2")).await, Known::Nothing(_)));
    assert!(start.elapsed() <= SHORT);
}

#[tokio::test(start_paused = true)]
async fn what_another_proxy_freed_is_served_no_longer_than_to_the_next_poll() {
    let (inner, witness) = fleet().await;
    seal(&witness, "v1", "one").await;
    seal(&witness, "v2", "one").await;
    let now = Instant::now();
    let fresh = witness.fresh(&key(), &tag("v1"), now).unwrap();
    release(&*inner, "v1").await;
    seal(&*inner, "v1", "two").await;
    assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Fresh(digest("one")));
    witness.hear().await.unwrap();
    assert!(!witness.is_still(&fresh, now));
    assert_eq!(witness.fresh(&key(), &tag("v1"), now), None);
    assert_eq!(witness.fresh(&key(), &tag("v2"), now), None, "it is not told which name");
    // Nor without the ledger, however the pull fails.
    inner.set(Some(Fault::Fails));
    assert!(matches!(witness.known(&key(), &tag("v1")).await, Known::Nothing(_)));
    inner.set(None);
    let known = witness.known(&key(), &tag("v1")).await;
    assert!(matches!(known, Known::Entry(Entry::Sealed(s), _) if s.digest == digest("two")));
    assert_eq!(witness.known(&key(), &tag("v1")).await, Known::Fresh(digest("two")));
    // A repository in which nothing was freed keeps what is remembered.
    let other = contract::key("other");
    bind(&witness, &other, &[tag("v1")], &digest("one")).await;
    release(&*inner, "v1").await;
    witness.hear().await.unwrap();
    assert!(witness.fresh(&other, &tag("v1"), now).is_some());
}

#[tokio::test(start_paused = true)]
async fn pulls_go_by_memory_without_asking_for_a_second_after_a_poll() {
    let (inner, witness) = fleet().await;
    seal(&witness, "v1", "one").await;
    let fresh = witness.fresh(&key(), &tag("v1"), Instant::now()).unwrap();
    tokio::time::advance(Duration::from_millis(999)).await;
    assert!(witness.is_still(&fresh, Instant::now()));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!witness.is_still(&fresh, Instant::now()));
    assert_eq!(witness.fresh(&key(), &tag("v1"), Instant::now()), None);
    assert!(matches!(witness.known(&key(), &tag("v1")).await, Known::Entry(..)));
    inner.set(Some(Fault::Fails));
    assert!(witness.hear().await.is_err());
    let known = witness.known(&key(), &tag("v1")).await;
    let remembered = matches!(&known, Known::Remembered(d, _) if *d == digest("one"));
    assert!(remembered, "this look-up failed: {known:?}");
    inner.set(None);
    witness.hear().await.unwrap();
    assert!(witness.is_still(&fresh, Instant::now()), "nothing has changed meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_shows_a_higher_freed_number_tells_of_the_whole_repository() {
    let (inner, witness) = fleet().await;
    for name in ["v1", "v2", "v3"] {
        seal(&witness, name, "one").await;
        witness.lookup(&key(), &[tag(name)]).await.unwrap();
    }
    let now = Instant::now();
    assert!(witness.fresh(&key(), &tag("v1"), now).is_some());
    release(&*inner, "v1").await;
    witness.lookup(&key(), &[tag("v2")]).await.unwrap();
    assert_eq!(witness.fresh(&key(), &tag("v1"), now), None);
    assert_eq!(witness.fresh(&key(), &tag("v3"), now), None);
    assert!(witness.fresh(&key(), &tag("v2"), now).is_some(), "it was just looked up");
}

#[tokio::test(start_paused = true)]
async fn what_was_announced_early_is_heard_of_once_more() {
    let (inner, witness) = fleet().await;
    inner.early.store(true, Ordering::Relaxed);
    seal(&witness, "v1", "one").await;
    seal(&witness, "v2", "one").await;
    release(&*inner, "v2").await;
    witness.hear().await.unwrap();
    // Looked up between the announcement and what was announced.
    witness.lookup(&key(), &[tag("v1")]).await.unwrap();
    assert!(witness.fresh(&key(), &tag("v1"), Instant::now()).is_some());
    tokio::time::advance(Duration::from_secs(5)).await;
    witness.hear().await.unwrap();
    assert_eq!(witness.fresh(&key(), &tag("v1"), Instant::now()), None);
    witness.lookup(&key(), &[tag("v1")]).await.unwrap();
    tokio::time::advance(Duration::from_secs(5)).await;
    witness.hear().await.unwrap();
    assert!(witness.fresh(&key(), &tag("v1"), Instant::now()).is_some(), "once");
}

#[tokio::test]
async fn a_look_up_that_began_before_a_poll_is_not_gone_by() {
    let (inner, witness) = fleet().await;
    // Of a repository of which nothing is remembered, and of one of which something is.
    for round in 0..2 {
        let begun = witness.begin(&key());
        bind(&*inner, &key(), &[tag("other")], &digest("one")).await;
        supersede(&*inner, &key(), &[tag("other")]).await;
        witness.hear().await.unwrap();
        let bound = (State::Bound, None);
        witness.remember(&key(), &tag("v1"), digest("one"), bound, &begun);
        assert_eq!(witness.fresh(&key(), &tag("v1"), Instant::now()), None, "{round}");
        seal(&witness, &format!("new{round}"), "one").await;
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
    witness.forget(&key(), &tag("v1"), None);
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

/// A ledger that can lose everything, as a Redis that comes back without its file, and two of its proxies.
fn forgetful() -> (Arc<Memory>, [Witness; 2]) {
    let memory = Arc::new(Memory::shared());
    let proxy = || Witness::new(Arc::<Memory>::clone(&memory), Remembering::default());
    (Arc::clone(&memory), [proxy(), proxy()])
}

/// As the fleet does after a loss.
async fn restore(memory: &Memory, proxies: &[&Witness]) {
    let total = memory.losses().unwrap().total();
    for proxy in proxies {
        proxy.offer().await.unwrap();
    }
    for proxy in proxies {
        proxy.settle(total);
    }
}

#[tokio::test]
async fn a_ledger_that_lost_entries_answers_nothing_until_it_is_restored() {
    let (memory, [witness, _]) = forgetful();
    let (key, v1, v2) = (contract::key("app"), [contract::tag("v1")], [contract::tag("v2")]);
    let (one, two) = (contract::digest(1), contract::digest(3));
    contract::adopt(&witness, &key, &v1, &one, Origin::Import).await.unwrap();
    let before = entries(&witness, &key, &v1).await;
    memory.lose();
    assert_eq!(witness.lookup(&key, &v2).await, Err(restoring()));
    let claim = witness.claim(&key, &v2, &two, AttemptId::random()).await;
    assert_eq!(claim, Err(restoring()));
    restore(&memory, &[&witness]).await;
    let entries = entries(&witness, &key, &[v1[0].clone(), v2[0].clone()]).await;
    assert_eq!(entries[0], before[0], "as it was");
    assert_eq!(entries[1], Entry::Absent, "what is not remembered is the registry's to tell");
    let claim = witness.claim(&key, &v1, &two, AttemptId::random()).await;
    assert!(matches!(claim, Ok(Claim::Held(_))));
}

#[tokio::test]
async fn what_was_adopted_a_moment_ago_is_restored_though_it_is_not_served() {
    let (memory, [witness, _]) = forgetful();
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    contract::adopt(&witness, &key, &tags, &digest, Origin::FirstSight).await.unwrap();
    witness.hear().await.unwrap();
    assert_eq!(witness.fresh(&key, &tags[0], Instant::now()), None);
    memory.lose();
    restore(&memory, &[&witness]).await;
    assert_eq!(entries(&witness, &key, &tags).await[0].digest(), Some(&digest));
}

#[tokio::test]
async fn the_newest_binding_or_release_is_restored_whoever_offers_first() {
    for order in [[0, 1], [1, 0]] {
        for again in [true, false] {
            let (memory, proxies) = forgetful();
            let [stale, newer] = &proxies;
            seal(newer, "v1", "one").await;
            stale.lookup(&key(), &[tag("v1")]).await.unwrap();
            release(newer, "v1").await;
            if again {
                seal(newer, "v1", "two").await;
            }
            memory.lose();
            restore(&memory, &order.map(|n| &proxies[n])).await;
            let expected = again.then(|| digest("two"));
            let entries = entries(&*memory, &key(), &[tag("v1")]).await;
            assert_eq!(entries[0].digest(), expected.as_ref(), "{order:?}");
            // What lost is not offered at the next loss.
            memory.lose();
            restore(&memory, &[stale]).await;
            let left = self::entries(&*memory, &key(), &[tag("v1")]).await;
            if order == [1, 0] {
                assert_eq!(left, [Entry::Absent]);
            }
        }
    }
}

#[tokio::test]
async fn every_way_in_which_a_name_is_freed_is_remembered() {
    for way in ["release", "supersede", "delete", "seen", "withdraw", "delete, withdrawn"] {
        let (memory, proxies) = forgetful();
        let [stale, newer] = &proxies;
        seal(newer, "v1", "one").await;
        for proxy in &proxies {
            proxy.lookup(&key(), &[tag("v1")]).await.unwrap();
        }
        let (tags, attempt) = ([tag("v1")], AttemptId::random());
        let end = async |end| {
            newer.begin_delete(&key(), &digest("one"), attempt).await.unwrap();
            let ended = newer.end_delete(&key(), &digest("one"), &[attempt], &tags, end).await;
            assert_eq!(ended, Ok(Ended::Done(tags.to_vec())));
        };
        match way {
            "release" => release(newer, "v1").await,
            "supersede" => supersede(newer, &key(), &tags).await,
            "delete" => end(DeleteEnd::Released).await,
            "seen" => {
                release(&*memory, "v1").await;
                newer.lookup(&key(), &tags).await.unwrap();
            }
            "withdraw" => newer.withdraw(&key(), &tags, &digest("one")).await.unwrap(),
            _ => end(DeleteEnd::Withdrawn).await,
        }
        memory.lose();
        restore(&memory, &[stale, newer]).await;
        match entries(newer, &key(), &tags).await.remove(0) {
            Entry::Absent => assert!(!way.contains("withdraw"), "{way}"),
            Entry::Sealed(sealed) => assert!(sealed.withdrawn.is_some(), "{way}"),
            entry @ Entry::Pending(_) => panic!("{way}: {entry:?}"),
        }
    }
}

#[tokio::test]
async fn what_was_bound_after_a_loss_is_newer_than_any_offer() {
    let (memory, [first, late]) = forgetful();
    seal(&first, "v1", "one").await;
    late.lookup(&key(), &[tag("v1")]).await.unwrap();
    seal(&late, "v2", "one").await;
    memory.lose();
    restore(&memory, &[&first]).await;
    release(&first, "v1").await;
    seal(&first, "v1", "two").await;
    memory.losses().unwrap().await_others();
    late.offer().await.unwrap();
    late.settle(1);
    let entries = entries(&*memory, &key(), &[tag("v1"), tag("v2")]).await;
    assert_eq!(entries[0].digest(), Some(&digest("two")));
    assert_eq!(entries[1].digest(), Some(&digest("one")), "which only the late one knew");
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
    // The third has nothing to go by.
    for name in ["v1", "v1", "v2"] {
        witness.known(&key(), &tag(name)).await;
    }
    assert_eq!(counted(), [1, 2, 3]);
}
