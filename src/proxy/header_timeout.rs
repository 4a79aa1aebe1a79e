//! How long a connection of HTTP/1.1 may take until the header of its next request is whole.
//!
//! pingora bounds the time between two bytes, so a byte a minute keeps a connection for ever. Here
//! the front gives each connection a clock, and the edge, which runs within the connection's own
//! task, stops it while a request is served. HTTP/2 has a bound of its own for silence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

tokio::task_local! {
    static PACE: Arc<Pace>;
}

/// While a request is served.
const SERVING: u64 = u64::MAX;

pub struct Pace {
    begin: Instant,
    /// Milliseconds after `begin` since when a header has been waited for.
    since: AtomicU64,
}

impl Pace {
    fn new(begin: Instant) -> Self {
        Self { begin, since: AtomicU64::new(0) }
    }

    fn waits(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(0);
        self.since.store(now, Ordering::Relaxed);
    }

    /// Ends when a header was waited for too long.
    async fn overdue(&self, at_most: Duration) {
        loop {
            match self.since.load(Ordering::Relaxed) {
                SERVING => sleep(at_most / 4).await,
                since => {
                    sleep_until(self.begin + Duration::from_millis(since) + at_most).await;
                    if self.since.load(Ordering::Relaxed) == since {
                        return;
                    }
                }
            }
        }
    }
}

/// Serves a connection until its end, whose next header has been waited for since then. `None`
/// where it was left because a header did not come.
pub async fn kept<T>(
    at_most: Duration,
    since: Instant,
    serving: impl Future<Output = T>,
) -> Option<T> {
    let pace = Arc::new(Pace::new(since));
    tokio::select! {
        biased;
        served = PACE.scope(Arc::clone(&pace), serving) => Some(served),
        () = pace.overdue(at_most) => None,
    }
}

/// The header of a request is whole.
pub fn begun() {
    // HTTP/2 has a task for each request, and no clock.
    let _ = PACE.try_with(|pace| pace.since.store(SERVING, Ordering::Relaxed));
}

/// A request has been answered: the next header is waited for.
pub fn ended() {
    let _ = PACE.try_with(|pace| pace.waits());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_header_must_come_in_time_and_an_answer_may_take_longer() {
        let start = Instant::now();
        let silent = kept(MOST, start, std::future::pending::<()>()).await;
        assert_eq!((silent, start.elapsed()), (None, MOST));

        let start = Instant::now();
        sleep(MOST / 2).await;
        let silent = kept(MOST, start, std::future::pending::<()>()).await;
        assert_eq!((silent, start.elapsed()), (None, MOST), "what went before counts");

        let start = Instant::now();
        let served = kept(MOST, start, async {
            for _ in 0..3 {
                sleep(MOST / 2).await;
                begun();
                sleep(MOST * 10).await;
                ended();
            }
            "served"
        });
        assert_eq!((served.await, start.elapsed()), (Some("served"), MOST * 3 / 2 + MOST * 30));

        let start = Instant::now();
        let left: Option<()> = kept(MOST, start, async {
            begun();
            sleep(MOST * 2).await;
            ended();
            std::future::pending::<()>().await;
        })
        .await;
        assert_eq!((left, start.elapsed().as_secs()), (None, 180));
    }
}
