//! Writes and deletes that are forwarded without being judged, because the rules leave their tags mutable.
//!
//! When a reload makes a tag immutable, such a write may still be under way. Nothing is bound until it
//! has ended: in-flight writes are counted, not timed. Only where the registry's answer will never be
//! seen, a write counts until its exchange would have timed out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::ledger::RepositoryKey;
use crate::name::{Reference, Tag};
use crate::rules::{Mutability, Rules};

/// How long an older process is waited for whose writes are not known one by one. It settles within 20 s
/// what needs no longer by itself.
const OLDER_PROCESS: Duration = Duration::from_secs(25);
/// `upstream.exchange_timeout`, where nothing else is said.
const EXCHANGE: Duration = Duration::from_secs(30);

/// What a write may set or delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affected {
    Tags(RepositoryKey, Vec<Tag>),
    /// Any tag of the repository: a delete by digest, or a copy.
    Repository(RepositoryKey),
    /// Any tag at all: the writes of an older process.
    Everything,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Tag(RepositoryKey, Tag),
    Repository(RepositoryKey),
    Everything,
}

impl Affected {
    /// What a DELETE of this may delete.
    pub fn of_delete(repository: RepositoryKey, reference: &Reference) -> Self {
        match reference {
            Reference::Tag(tag) => Self::Tags(repository, vec![tag.clone()]),
            Reference::Digest(_) => Self::Repository(repository),
        }
    }

    /// Whether a rule makes one of the tags immutable, so that this may not go unjudged.
    pub fn is_judged_by(&self, rules: &Rules) -> bool {
        match self {
            Self::Tags(key, tags) => rules.protecting(&key.repository).is_some_and(|rule| {
                tags.iter().any(|tag| rule.mutability_of(tag) == Mutability::Immutable)
            }),
            Self::Repository(key) => rules.protecting(&key.repository).is_some(),
            Self::Everything => true,
        }
    }

    fn keys(&self) -> Vec<Key> {
        match self {
            Self::Tags(repository, tags) => {
                tags.iter().map(|tag| Key::Tag(repository.clone(), tag.clone())).collect()
            }
            Self::Repository(repository) => vec![Key::Repository(repository.clone())],
            Self::Everything => vec![Key::Everything],
        }
    }
}

/// What writes that are under way may set or delete, by how many they are.
pub struct Unjudged {
    writes: DashMap<Key, usize>,
    /// Tags that taglock puts back itself (`drift.repair`). What frees or moves such a tag waits for it.
    repairs: DashMap<Key, usize>,
    ended: Notify,
    /// How long the registry may take to answer.
    exchange: Duration,
    /// A process with other rules judges from now on: none may begin here.
    closed: AtomicBool,
}

/// A write came too late: a newer process has the say, and its rules are others.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// One write under way; it has ended when this is dropped.
#[must_use]
pub struct Write {
    room: Arc<Unjudged>,
    affected: Affected,
    repair: bool,
    /// Since when the registry may have all of it, if it has not answered.
    sent: Option<Instant>,
}

impl Default for Unjudged {
    fn default() -> Self {
        Self::new(EXCHANGE)
    }
}

impl Unjudged {
    /// `exchange` is how long the registry may take to answer.
    pub fn new(exchange: Duration) -> Self {
        let (writes, repairs, ended) = Default::default();
        Self { writes, repairs, ended, exchange, closed: AtomicBool::new(false) }
    }

    /// Enters a write.
    ///
    /// To be called *before* the rules are read: whoever reads newer rules afterwards, and looks
    /// here, then finds every write that was let through under older ones.
    ///
    /// # Errors
    /// Where a newer process judges by other rules.
    pub fn enter(self: &Arc<Self>, affected: Affected) -> Result<Write, Closed> {
        let write = self.entered(affected, false);
        // It is counted by now: who closes afterwards waits for it.
        match self.closed.load(Ordering::SeqCst) {
            true => Err(Closed),
            false => Ok(write),
        }
    }

    /// Enters a repair of this tag, unless a write, a delete or a release of it is under way: those enter
    /// first, and look for repairs then. Whichever comes second sees the other.
    pub fn enter_repair(self: &Arc<Self>, repository: &RepositoryKey, tag: &Tag) -> Option<Write> {
        let tags = std::slice::from_ref(tag);
        let repair = self.entered(Affected::Tags(repository.clone(), tags.to_vec()), true);
        (!self.is_under_way(repository, tag)).then_some(repair)
    }

    fn entered(self: &Arc<Self>, affected: Affected, repair: bool) -> Write {
        let under_way = if repair { &self.repairs } else { &self.writes };
        for key in affected.keys() {
            *under_way.entry(key).or_insert(0) += 1;
        }
        Write { room: Arc::clone(self), affected, repair, sent: None }
    }

    fn is_under_way(&self, repository: &RepositoryKey, tag: &Tag) -> bool {
        let key = Key::Tag(repository.clone(), tag.clone());
        let wider = [Key::Repository(repository.clone()), Key::Everything];
        self.writes.contains_key(&key) || wider.iter().any(|key| self.writes.contains_key(key))
    }

    /// From now on no write may be entered: a newer process judges by other rules. Those under way still
    /// count.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// How many writes and repairs are under way, by what they may set or delete.
    pub fn count(&self) -> usize {
        self.writes.len() + self.repairs.len()
    }

    /// Waits until no write is under way that may set or delete one of these tags, at most this long; an
    /// older process is waited for [`OLDER_PROCESS`].
    ///
    /// # Errors
    /// A tag whose writes have not ended.
    pub async fn none(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        at_most: Duration,
    ) -> Result<(), Tag> {
        let Some(tag) = tags.first() else { return Ok(()) };
        let start = Instant::now();
        let older = start + OLDER_PROCESS.max(at_most);
        self.ended(&self.writes, &Key::Everything, older).await.map_err(|_| tag.clone())?;
        let deadline = Instant::now() + at_most;
        let key = Key::Repository(repository.clone());
        self.ended(&self.writes, &key, deadline).await.map_err(|_| tag.clone())?;
        self.of_tags(&self.writes, repository, tags, deadline).await
    }

    /// Waits until none of these tags is being repaired, at most this long.
    ///
    /// # Errors
    /// A tag whose repair has not ended.
    pub async fn no_repair(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        at_most: Duration,
    ) -> Result<(), Tag> {
        self.of_tags(&self.repairs, repository, tags, Instant::now() + at_most).await
    }

    async fn of_tags(
        &self,
        under_way: &DashMap<Key, usize>,
        repository: &RepositoryKey,
        tags: &[Tag],
        deadline: Instant,
    ) -> Result<(), Tag> {
        for tag in tags {
            let key = Key::Tag(repository.clone(), tag.clone());
            self.ended(under_way, &key, deadline).await.map_err(|_| tag.clone())?;
        }
        Ok(())
    }

    async fn ended(
        &self,
        under_way: &DashMap<Key, usize>,
        key: &Key,
        deadline: Instant,
    ) -> Result<(), tokio::time::error::Elapsed> {
        loop {
            // Listening begins before the look, so that no end is missed in between.
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if !under_way.contains_key(key) {
                return Ok(());
            }
            timeout_at(deadline, ended).await?;
        }
    }

    fn leave(&self, affected: &Affected, repair: bool) {
        let under_way = if repair { &self.repairs } else { &self.writes };
        for key in affected.keys() {
            under_way.entry(key.clone()).and_modify(|count| *count -= 1);
            under_way.remove_if(&key, |_, count| *count == 0);
        }
        self.ended.notify_waiters();
    }
}

impl Write {
    /// Lets go of the tags that turned out to be judged.
    pub fn keep_only(&mut self, unjudged: &[Tag]) {
        let Affected::Tags(repository, tags) = &mut self.affected else { return };
        let (kept, judged) =
            std::mem::take(tags).into_iter().partition(|tag| unjudged.contains(tag));
        *tags = kept;
        let judged = Affected::Tags(repository.clone(), judged);
        self.room.leave(&judged, self.repair);
    }

    /// From now on the registry may carry it out: until it has answered, the write counts, and where it
    /// does not, for as long as the exchange may take.
    pub fn is_sent(&mut self) {
        self.sent.get_or_insert_with(Instant::now);
    }

    /// The registry has answered, or never gets it.
    pub fn is_answered(&mut self) {
        self.sent = None;
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        let (room, repair) = (Arc::clone(&self.room), self.repair);
        let affected = std::mem::replace(&mut self.affected, Affected::Everything);
        match (self.sent, Handle::try_current()) {
            (Some(sent), Ok(runtime)) => {
                let end = sent + room.exchange;
                runtime.spawn(async move {
                    sleep_until(end).await;
                    room.leave(&affected, repair);
                });
            }
            // Without a runtime the process ends.
            (Some(_), Err(_)) | (None, _) => room.leave(&affected, repair),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{RepositoryName, UpstreamName};

    const LONG: Duration = Duration::from_secs(3600);

    fn key() -> RepositoryKey {
        RepositoryKey {
            upstream: UpstreamName::parse("default").unwrap(),
            repository: RepositoryName::parse("app").unwrap(),
        }
    }

    fn tags(names: &[&str]) -> Vec<Tag> {
        names.iter().map(|name| Tag::parse(name).unwrap()).collect()
    }

    fn enter(room: &Arc<Unjudged>, names: &[&str]) -> Write {
        room.enter(Affected::Tags(key(), tags(names))).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_judged_write_waits_for_every_unjudged_one_of_its_tag() {
        let room = Arc::new(Unjudged::default());
        let first = enter(&room, &["v1", "v2"]);
        let second = enter(&room, &["v1"]);
        assert_eq!(room.none(&key(), &tags(&["v3"]), LONG).await, Ok(()));
        let short = Duration::from_secs(1);
        assert_eq!(
            room.none(&key(), &tags(&["v3", "v2"]), short).await,
            Err(tags(&["v2"])[0].clone())
        );
        let waiter = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.none(&key(), &tags(&["v1"]), LONG).await }
        });
        drop(first);
        tokio::time::sleep(short).await;
        assert!(!waiter.is_finished(), "the second is under way");
        drop(second);
        assert_eq!(waiter.await.unwrap(), Ok(()));
        assert!(room.writes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_repair_and_what_moves_its_tag_keep_each_other_out() {
        let room = Arc::new(Unjudged::default());
        let v1 = tags(&["v1"]);
        let repair = room.enter_repair(&key(), &v1[0]);
        assert!(repair.is_some());
        assert_eq!(room.count(), 1);
        // A write that comes now is entered, and finds the repair.
        let write = enter(&room, &["v1"]);
        let short = Duration::from_secs(1);
        assert_eq!(room.no_repair(&key(), &v1, short).await, Err(v1[0].clone()));
        drop(repair);
        assert_eq!(room.no_repair(&key(), &v1, short).await, Ok(()));
        assert!(room.enter_repair(&key(), &v1[0]).is_none(), "the write is under way");
        assert_eq!(room.no_repair(&key(), &v1, Duration::ZERO).await, Ok(()), "it left nothing");
        drop(write);
        assert!(room.enter_repair(&key(), &v1[0]).is_some());
        assert_eq!(room.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn tags_that_are_judged_are_waited_for_by_nobody() {
        let room = Arc::new(Unjudged::default());
        let mut write = enter(&room, &["v1", "dev"]);
        write.keep_only(&tags(&["dev"]));
        assert_eq!(room.none(&key(), &tags(&["v1"]), Duration::ZERO).await, Ok(()));
        assert!(room.none(&key(), &tags(&["dev"]), Duration::ZERO).await.is_err());
        drop(write);
        assert!(room.writes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_delete_by_digest_is_waited_for_by_every_tag_of_its_repository() {
        let room = Arc::new(Unjudged::default());
        let digest = crate::name::Digest::of(crate::name::Algorithm::Sha256, b"one");
        let delete = room.enter(Affected::of_delete(key(), &Reference::Digest(digest))).unwrap();
        let v1 = tags(&["v1"]);
        assert_eq!(room.none(&key(), &v1, Duration::from_secs(1)).await, Err(v1[0].clone()));
        assert!(room.enter_repair(&key(), &v1[0]).is_none());
        let other = RepositoryKey { repository: RepositoryName::parse("b").unwrap(), ..key() };
        assert_eq!(room.none(&other, &v1, Duration::ZERO).await, Ok(()));
        assert_eq!(room.none(&key(), &[], Duration::ZERO).await, Ok(()), "nothing is bound");
        drop(delete);
        assert_eq!(room.none(&key(), &v1, Duration::ZERO).await, Ok(()));
        let by_tag =
            room.enter(Affected::of_delete(key(), &Reference::Tag(v1[0].clone()))).unwrap();
        assert!(room.none(&key(), &v1, Duration::ZERO).await.is_err());
        assert_eq!(room.none(&key(), &tags(&["v2"]), Duration::ZERO).await, Ok(()));
        drop(by_tag);
        assert_eq!(room.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_answer_was_not_seen_counts_until_its_exchange_would_have_timed_out() {
        let room = Arc::new(Unjudged::new(Duration::from_secs(60)));
        let v1 = tags(&["v1"]);
        let start = Instant::now();
        let mut unknown = enter(&room, &["v1"]);
        unknown.is_sent();
        tokio::time::sleep(Duration::from_secs(20)).await;
        drop(unknown);
        assert!(room.none(&key(), &v1, Duration::from_secs(39)).await.is_err());
        assert_eq!(room.none(&key(), &v1, LONG).await, Ok(()));
        assert_eq!(start.elapsed().as_secs(), 60);
        let mut answered = enter(&room, &["v1"]);
        answered.is_sent();
        answered.is_answered();
        drop(answered);
        assert_eq!(room.none(&key(), &v1, Duration::ZERO).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_process_is_waited_for_by_every_tag() {
        let room = Arc::new(Unjudged::default());
        let older = room.enter(Affected::Everything).unwrap();
        assert_eq!(room.count(), 1, "a process that takes over from this one is told");
        let v1 = tags(&["v1"]);
        let start = Instant::now();
        assert_eq!(room.none(&key(), &v1, Duration::from_secs(1)).await, Err(v1[0].clone()));
        assert_eq!(start.elapsed(), OLDER_PROCESS);
        assert!(room.enter_repair(&key(), &v1[0]).is_none());
        drop(older);
        assert_eq!(room.none(&key(), &v1, Duration::ZERO).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_entered_once_a_newer_process_judges_by_other_rules() {
        let room = Arc::new(Unjudged::default());
        let before = enter(&room, &["v1"]);
        room.close();
        assert_eq!(room.enter(Affected::Tags(key(), tags(&["v1"]))).err(), Some(Closed));
        assert_eq!(room.count(), 1, "the one from before is still under way");
        drop(before);
        assert_eq!(room.count(), 0);
    }
}
