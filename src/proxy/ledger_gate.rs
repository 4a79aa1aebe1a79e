//! Where protected requests wait while the ledger is still with an older process.
//!
//! On an upgrade the newer process accepts clients at once, and has the ledger a moment later.
//! What needs the ledger waits here, bounded in number and time; beyond either bound a request goes
//! on and meets what a ledger that is down means for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// How long a request waits; the older process lets go of the ledger sooner.
const HOLD: Duration = Duration::from_secs(25);
/// How many wait. None has been read further than its header.
const PLACES: usize = 4096;

pub struct Gate {
    /// What `opened` will say, for those who need not wait.
    is_open: AtomicBool,
    opened: watch::Sender<bool>,
    places: Semaphore,
}

impl Gate {
    pub fn new(open: bool) -> Self {
        Self {
            is_open: AtomicBool::new(open),
            opened: watch::Sender::new(open),
            places: Semaphore::new(PLACES),
        }
    }

    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
        self.opened.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Returns once the gate is open, or the wait is over.
    pub(super) async fn pass(&self) {
        if self.is_open() {
            return;
        }
        let Ok(_place) = self.places.try_acquire() else { return };
        let mut opened = self.opened.subscribe();
        // The sender lives as long as the gate.
        let _ = timeout(HOLD, opened.wait_for(|open| *open)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_wait_for_the_gate_within_both_bounds() {
        let gate = Arc::new(Gate::new(false));
        let start = Instant::now();
        gate.pass().await;
        assert_eq!(start.elapsed(), HOLD, "bounded in time");
        let waiting: Vec<_> = (0..PLACES)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move { gate.pass().await })
            })
            .collect();
        tokio::task::yield_now().await;
        while gate.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        gate.pass().await;
        assert!(start.elapsed() < HOLD / 2, "bounded in number");
        gate.open();
        for one in waiting {
            one.await.unwrap();
        }
        gate.pass().await;
        assert!(start.elapsed() < HOLD / 2, "open for all");
    }
}
