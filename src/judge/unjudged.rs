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
    ended: Notify,
}

/// One write under way; it has ended when this is dropped.
pub struct Write {
    room: Arc<Unjudged>,
    repository: RepositoryKey,
    tags: Vec<Tag>,
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
        Write { room: Arc::clone(self), repository: repository.clone(), tags: tags.to_vec() }
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
        let deadline = Instant::now() + at_most;
        for tag in tags {
            let key = (repository.clone(), tag.clone());
            loop {
                // Listening begins before the look, so that no end is missed in between.
                let mut ended = std::pin::pin!(self.ended.notified());
                ended.as_mut().enable();
                if !self.writes.contains_key(&key) {
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
            self.room.writes.entry(key.clone()).and_modify(|count| *count -= 1);
            self.room.writes.remove_if(&key, |_, count| *count == 0);
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
