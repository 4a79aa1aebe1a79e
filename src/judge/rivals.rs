//! Where pushes of one tag in one process meet, so that the second goes on as soon as the first
//! is done. Only a hint: other processes are not here, so nobody waits longer than told.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::ledger::RepositoryKey;
use crate::name::Tag;

#[derive(Default)]
pub struct Rivals {
    waiting: DashMap<(RepositoryKey, Tag), Arc<Notify>>,
}

impl Rivals {
    /// Waits until something happens to the first of these tags, at most this long.
    pub async fn wait(&self, repository: &RepositoryKey, tags: &[Tag], at_most: Duration) {
        let Some(tag) = tags.first() else { return };
        let key = (repository.clone(), tag.clone());
        let notify = Arc::clone(&self.waiting.entry(key.clone()).or_default());
        // A time-out is the usual end where the rival is in another process.
        let _ = timeout(at_most, notify.notified()).await;
        // The map's, and ours: nobody else waits.
        self.waiting.remove_if(&key, |_, waiting| Arc::strong_count(waiting) <= 2);
    }

    /// How many wait for this tag now.
    pub fn waiting_for(&self, repository: &RepositoryKey, tag: &Tag) -> usize {
        let key = (repository.clone(), tag.clone());
        // One is the map's own.
        self.waiting.get(&key).map_or(0, |notify| Arc::strong_count(&notify) - 1)
    }

    pub fn wake(&self, repository: &RepositoryKey, tags: &[Tag]) {
        for tag in tags {
            if let Some(notify) = self.waiting.get(&(repository.clone(), tag.clone())) {
                notify.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{RepositoryName, UpstreamName};

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_with_a_wake_or_in_time_and_leaves_nothing() {
        let rivals = Arc::new(Rivals::default());
        let key = RepositoryKey {
            upstream: UpstreamName::parse("default").unwrap(),
            repository: RepositoryName::parse("app").unwrap(),
        };
        let tags = vec![Tag::parse("v1").unwrap()];
        let start = tokio::time::Instant::now();
        let waiter = tokio::spawn({
            let (rivals, key, tags) = (Arc::clone(&rivals), key.clone(), tags.clone());
            async move { rivals.wait(&key, &tags, Duration::from_secs(60)).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(rivals.waiting_for(&key, &tags[0]), 1);
        rivals.wake(&key, &tags);
        waiter.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        rivals.wait(&key, &tags, Duration::from_secs(2)).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert!(rivals.waiting.is_empty());
        assert_eq!(rivals.waiting_for(&key, &tags[0]), 0);
    }
}
