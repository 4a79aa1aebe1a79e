//! Any ledger, with a deadline and another try: what stores leave to their caller.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::rollback::Losses;
use super::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, FreedNumber,
    Holder, Identity, Ledger, Listed, Lookup, News, Offer, Origin, Position, Release,
    RepositoryKey, Restored, Token, Unavailable,
};
use crate::name::{Digest, Tag};
use crate::telemetry::Metrics;

/// Few clients wait after a 503, so short outages are bridged here.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// Bounds a poll.
const POLL: Duration = Duration::from_secs(1);

/// Repeats calls that fail until [`PATIENCE`] is over; every operation is safe to repeat.
pub struct Guarded {
    /// Empty until an older process has let go of it.
    inner: OnceLock<Arc<dyn Ledger>>,
    metrics: Arc<Metrics>,
    patience: Duration,
}

impl Guarded {
    pub fn new(inner: Arc<dyn Ledger>, metrics: Arc<Metrics>) -> Self {
        let guarded = Self::waiting(metrics);
        guarded.fill(inner);
        guarded
    }

    /// A ledger that is not there yet: until it is filled, calls fail as in an outage.
    pub fn waiting(metrics: Arc<Metrics>) -> Self {
        Self { inner: OnceLock::new(), metrics, patience: PATIENCE }
    }

    /// Here it is. A second one is not taken.
    pub fn fill(&self, inner: Arc<dyn Ledger>) {
        if self.inner.set(inner).is_err() {
            tracing::error!("a ledger was opened twice");
        }
    }

    fn inner(&self) -> Result<&Arc<dyn Ledger>, Unavailable> {
        self.inner.get().ok_or_else(|| Unavailable::Store("an older process still has it".into()))
    }

    async fn call<T, F>(
        &self,
        operation: &'static str,
        run: impl Fn() -> F,
    ) -> Result<T, Unavailable>
    where
        F: Future<Output = Result<T, Unavailable>>,
    {
        let start = Instant::now();
        let deadline = start + self.patience;
        let mut reason = Unavailable::TimedOut;
        let result = loop {
            let Ok(result) = timeout_at(deadline, run()).await else {
                // The last try may have been cut short: what the one before met says more.
                break Err(reason);
            };
            match result {
                Err(error @ (Unavailable::Store(_) | Unavailable::TimedOut))
                    if Instant::now() + PAUSE < deadline =>
                {
                    reason = error;
                    sleep(PAUSE).await;
                }
                result => break result,
            }
        };
        self.count(operation, &result, start);
        result
    }

    fn count<T>(&self, operation: &'static str, result: &Result<T, Unavailable>, start: Instant) {
        let outcome = match result {
            Ok(_) => "ok",
            Err(Unavailable::TimedOut) => "timeout",
            Err(Unavailable::Closed) => "closed",
            Err(Unavailable::Store(_)) => "error",
        };
        self.metrics.ledger_call(operation, outcome, start.elapsed());
    }
}

#[async_trait]
impl Ledger for Guarded {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        self.call("lookup", || async { self.inner()?.lookup(repository, tags).await }).await
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        self.call("claim", || async {
            self.inner()?.claim(repository, tags, digest, attempt).await
        })
        .await
    }

    async fn bind(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable> {
        self.call("bind", || async {
            self.inner()?.bind(repository, tags, digest, attempt, freed).await
        })
        .await
    }

    async fn adopt(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable> {
        self.call("adopt", || async {
            self.inner()?.adopt(repository, tags, digest, origin, freed).await
        })
        .await
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        self.call("abort", || async {
            self.inner()?.abort(repository, tags, digest, attempt).await
        })
        .await
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        self.call("release", || async { self.inner()?.release(repository, tag, token).await }).await
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.call("withdraw", || async { self.inner()?.withdraw(repository, tags, digest).await })
            .await
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        self.call("supersede", || async { self.inner()?.supersede(repository, seen).await }).await
    }

    async fn invalidate(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        self.call("invalidate", || async { self.inner()?.invalidate(repository, tags).await }).await
    }

    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        self.call("begin_delete", || async {
            self.inner()?.begin_delete(repository, digest, attempt).await
        })
        .await
    }

    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        self.call("end_delete", || async {
            self.inner()?.end_delete(repository, digest, attempts, tags, end).await
        })
        .await
    }

    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        self.call("marked", || async { self.inner()?.marked(repository, digests).await }).await
    }

    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        self.call("delete_marks", || async { self.inner()?.delete_marks(repository).await }).await
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.call("bound_to", || async { self.inner()?.bound_to(repository, digest).await }).await
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.call("list", || async { self.inner()?.list(after, limit).await }).await
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        self.call("identity", || async { self.inner()?.identity().await }).await
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        self.call("sequence", || async { self.inner()?.sequence(repository).await }).await
    }

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        self.call("announce", || async { self.inner()?.announce(own).await }).await
    }

    async fn poll(&self, last: Option<u64>) -> Result<News, Unavailable> {
        // Once: what an older poll brings is of no use.
        let start = Instant::now();
        let polled = async { self.inner()?.poll(last).await };
        let polled = timeout(POLL, polled).await.unwrap_or(Err(Unavailable::TimedOut));
        self.count("poll", &polled, start);
        polled
    }

    async fn restore(
        &self,
        repository: &RepositoryKey,
        offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        self.call("restore", || async { self.inner()?.restore(repository, offers).await }).await
    }

    fn heard(&self, repository: &RepositoryKey) -> u64 {
        self.inner.get().map_or(0, |inner| inner.heard(repository))
    }

    fn is_shared(&self) -> bool {
        self.inner.get().is_some_and(|inner| inner.is_shared())
    }

    fn losses(&self) -> Option<&Losses> {
        self.inner.get()?.losses()
    }

    async fn close(&self) {
        if let Some(inner) = self.inner.get() {
            inner.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::ledger::contract;
    use crate::ledger::memory::Memory;

    fn guarded(patience: Duration) -> Guarded {
        let guarded = Guarded::new(Arc::new(Memory::new()), Arc::new(Metrics::new()));
        Guarded { patience, ..guarded }
    }

    #[tokio::test]
    async fn a_guarded_ledger_keeps_the_contract() {
        contract::holds(&guarded(PATIENCE)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_ledger_that_comes_later_is_an_outage_until_then() {
        let guarded = Guarded::waiting(Arc::new(Metrics::new()));
        assert!(matches!(guarded.identity().await, Err(Unavailable::Store(_))));
        guarded.fill(Arc::new(Memory::new()));
        assert!(guarded.identity().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_outage_is_bridged() {
        let tries = AtomicU32::new(0);
        let guarded = guarded(PATIENCE);
        let result = guarded.call("lookup", || async {
            match tries.fetch_add(1, Ordering::Relaxed) {
                0..=4 => Err(Unavailable::Store("down".into())),
                _ => Ok(()),
            }
        });
        assert_eq!(result.await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_outage_and_a_hang_end_in_time() {
        let start = Instant::now();
        let guarded = guarded(PATIENCE);
        let down = || async { Err::<(), _>(Unavailable::Store("down".into())) };
        assert_eq!(guarded.call("claim", down).await, Err(Unavailable::Store("down".into())));
        let hang = || std::future::pending::<Result<(), Unavailable>>();
        assert_eq!(guarded.call("claim", hang).await, Err(Unavailable::TimedOut));
        assert!(start.elapsed() <= PATIENCE * 2);
        let tries = AtomicU32::new(0);
        let fails_then_hangs = || async {
            if tries.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err::<(), _>(Unavailable::Store("why".into()));
            }
            std::future::pending().await
        };
        let failed = guarded.call("claim", fails_then_hangs).await;
        assert_eq!(failed, Err(Unavailable::Store("why".into())), "the reason is kept");
    }

    #[tokio::test]
    async fn a_closed_ledger_is_not_asked_again() {
        let guarded = guarded(Duration::from_secs(3600));
        guarded.close().await;
        assert_eq!(guarded.identity().await, Err(Unavailable::Closed));
    }
}
