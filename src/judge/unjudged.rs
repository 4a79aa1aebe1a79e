//! Tag writes that are forwarded without being judged, because the rules leave their tags mutable.
//!
//! When a reload makes a tag immutable, such a write may still be under way. Nothing is bound until it
//! has ended: in-flight writes are counted, not timed.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::ledger::RepositoryKey;
use crate::name::Tag;

type Key = (RepositoryKey, Tag);

/// The tags with such writes under way, by how many each.
#[derive(Default)]
pub struct Unjudged {
    writes: DashMap<Key, usize>,
    /// Tags that taglock puts back itself (`drift.repair`). What frees or moves such a tag waits for it.
    repairs: DashMap<Key, usize>,
    ended: Notify,
}

/// One write under way; it has ended when this is dropped.
pub struct Write {
    room: Arc<Unjudged>,
    repository: RepositoryKey,
    tags: Vec<Tag>,
    repair: bool,
}

impl Unjudged {
    /// Enters a write of these tags.
    ///
    /// To be called *before* the rules are read: whoever reads newer rules afterwards, and looks
    /// here, then finds every write that was let through under older ones.
    pub fn enter(self: &Arc<Self>, repository: &RepositoryKey, tags: &[Tag]) -> Write {
        for tag in tags {
            *self.writes.entry((repository.clone(), tag.clone())).or_insert(0) += 1;
        }
        self.entered(repository, tags, false)
    }

    /// Enters a repair of this tag, unless a write, a delete or a release of it is under way: those enter
    /// first, and look for repairs then. Whichever comes second sees the other.
    pub fn enter_repair(self: &Arc<Self>, repository: &RepositoryKey, tag: &Tag) -> Option<Write> {
        let key = (repository.clone(), tag.clone());
        *self.repairs.entry(key.clone()).or_insert(0) += 1;
        let repair = self.entered(repository, std::slice::from_ref(tag), true);
        (!self.writes.contains_key(&key)).then_some(repair)
    }

    fn entered(self: &Arc<Self>, repository: &RepositoryKey, tags: &[Tag], repair: bool) -> Write {
        let (room, repository) = (Arc::clone(self), repository.clone());
        Write { room, repository, tags: tags.to_vec(), repair }
    }

    /// How many tags have writes or repairs under way.
    pub fn count(&self) -> usize {
        self.writes.len() + self.repairs.len()
    }

    /// Waits until none of these tags has one under way, at most this long.
    ///
    /// # Errors
    /// A tag whose writes have not ended.
    pub async fn none(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        at_most: Duration,
    ) -> Result<(), Tag> {
        self.ended(&self.writes, repository, tags, at_most).await
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
        self.ended(&self.repairs, repository, tags, at_most).await
    }

    async fn ended(
        &self,
        under_way: &DashMap<Key, usize>,
        repository: &RepositoryKey,
        tags: &[Tag],
        at_most: Duration,
    ) -> Result<(), Tag> {
        let deadline = Instant::now() + at_most;
        for tag in tags {
            let key = (repository.clone(), tag.clone());
            loop {
                // Listening begins before the look, so that no end is missed in between.
                let mut ended = std::pin::pin!(self.ended.notified());
                ended.as_mut().enable();
                if !under_way.contains_key(&key) {
                    break;
                }
                if timeout_at(deadline, ended).await.is_err() {
                    return Err(tag.clone());
                }
            }
        }
        Ok(())
    }
}

impl Write {
    /// Lets go of the tags that turned out to be judged.
    pub fn keep_only(&mut self, unjudged: &[Tag]) {
        let (kept, judged) =
            std::mem::take(&mut self.tags).into_iter().partition(|tag| unjudged.contains(tag));
        self.tags = kept;
        self.leave(&judged);
    }

    fn leave(&self, tags: &[Tag]) {
        for tag in tags {
            let key = (self.repository.clone(), tag.clone());
            let under_way = if self.repair { &self.room.repairs } else { &self.room.writes };
            under_way.entry(key.clone()).and_modify(|count| *count -= 1);
            under_way.remove_if(&key, |_, count| *count == 0);
        }
        self.room.ended.notify_waiters();
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.leave(&self.tags);
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

    #[tokio::test(start_paused = true)]
    async fn a_judged_write_waits_for_every_unjudged_one_of_its_tag() {
        let room = Arc::new(Unjudged::default());
        let first = room.enter(&key(), &tags(&["v1", "v2"]));
        let second = room.enter(&key(), &tags(&["v1"]));
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
        let write = room.enter(&key(), &v1);
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
        let mut write = room.enter(&key(), &tags(&["v1", "dev"]));
        write.keep_only(&tags(&["dev"]));
        assert_eq!(room.none(&key(), &tags(&["v1"]), Duration::ZERO).await, Ok(()));
        assert!(room.none(&key(), &tags(&["dev"]), Duration::ZERO).await.is_err());
        drop(write);
        assert!(room.writes.is_empty());
    }
}
