//! One timer for many waits, one after the other.
//!
//! Nearly every wait of a small read ends long before its time. A timer of its own for each would
//! cost more than what is waited for: it is made, entered and taken out again. This one stays where
//! it is, and is moved only when it has run out, or a shorter wait begins.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Nothing came of it in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it took too long")]
pub struct Late;

#[derive(Default)]
pub struct Clock {
    /// Made by the first wait that is one.
    timer: Option<Pin<Box<Sleep>>>,
    /// What it was when it was looked at, if nothing was waited for since.
    now: Option<Instant>,
}

impl Clock {
    /// What time it is. As long as nothing is waited for with this clock it is looked at once: to look
    /// at the time takes as long as some other parts of a small read. Who waits for something else in
    /// between says so by [`Self::passes`].
    pub fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(Instant::now)
    }

    /// Time passes.
    pub fn passes(&mut self) {
        self.now = None;
    }

    /// For a wait of at most so long.
    ///
    /// # Errors
    /// When that is over.
    pub async fn within<T>(
        &mut self,
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Late> {
        self.freely().within(patience, work).await
    }

    /// For several waits, each with an end of its own.
    pub fn freely(&mut self) -> Time<'_> {
        Time { clock: self, end: None }
    }

    /// For several waits that all end then.
    pub fn until(&mut self, end: Instant) -> Time<'_> {
        Time { clock: self, end: Some(end) }
    }

    async fn wait<T>(
        &mut self,
        due: impl FnOnce(Instant) -> Instant,
        work: impl Future<Output = T>,
    ) -> Result<T, Late> {
        let mut work = pin!(work);
        let (mut due, mut known) = (Some(due), None);
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            // What is there at once doesn't look at the time at all.
            if let Some(due) = due.take() {
                known = Some(due(self.now()));
            }
            self.passes();
            let Some(due) = known else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            loop {
                ready!(timer.as_mut().poll(context));
                if timer.deadline() >= due {
                    return Poll::Ready(Err(Late));
                }
                timer.as_mut().reset(due);
            }
        })
        .await
    }

    /// However long it takes.
    async fn endlessly<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            if polled.is_pending() {
                self.passes();
            }
            polled
        })
        .await
    }
}

/// What is left of the time for several waits.
pub struct Time<'a> {
    clock: &'a mut Clock,
    /// Of all of them.
    end: Option<Instant>,
}

impl Time<'_> {
    /// What time it is: see [`Clock::now`].
    pub fn now(&mut self) -> Instant {
        self.clock.now()
    }

    /// One of them, of at most so long.
    ///
    /// # Errors
    /// When that is over, or the time of all.
    pub async fn within<T>(
        &mut self,
        patience: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Late> {
        let end = self.end;
        let due = |now| {
            let due = now + patience;
            end.map_or(due, |end: Instant| end.min(due))
        };
        self.clock.wait(due, work).await
    }

    /// One that has an end of its own.
    ///
    /// # Errors
    /// When the time of all is over.
    pub async fn left<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Late> {
        match self.end {
            Some(end) => self.clock.wait(|_| end, work).await,
            None => Ok(self.clock.endlessly(work).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_end_whatever_was_waited_for_before() {
        let mut clock = Clock::default();
        for patience in [MINUTE, MINUTE / 60, MINUTE * 5, MINUTE / 2, MINUTE * 2, MINUTE * 2] {
            let start = Instant::now();
            assert_eq!(clock.within(patience, ready(1)).await, Ok(1));
            assert_eq!(clock.within(patience, sleep(patience / 2)).await, Ok(()));
            assert_eq!(start.elapsed(), patience / 2);
            let start = Instant::now();
            assert_eq!(clock.within(patience, pending::<()>()).await, Err(Late));
            assert_eq!(start.elapsed(), patience);
        }
        // A time that is over before it begins.
        assert_eq!(clock.within(Duration::ZERO, pending::<()>()).await, Err(Late));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_looked_at_anew_after_each_wait() {
        let mut clock = Clock::default();
        let start = Instant::now();
        assert_eq!(clock.now(), start);
        tokio::time::advance(MINUTE).await;
        assert_eq!(clock.now(), start, "it was not this one that waited");
        assert_eq!(clock.within(MINUTE, ready(1)).await, Ok(1));
        assert_eq!(clock.now(), start, "that was there at once");
        clock.passes();
        assert_eq!(clock.now(), start + MINUTE);
        // Each of these waits lets time pass, also one that is given up.
        assert_eq!(clock.within(MINUTE, sleep(MINUTE / 2)).await, Ok(()));
        assert_eq!(clock.now(), start + MINUTE * 3 / 2);
        assert_eq!(clock.freely().left(sleep(MINUTE / 2)).await, Ok(()));
        assert_eq!(clock.now(), start + MINUTE * 2);
        assert_eq!(clock.within(MINUTE, pending::<()>()).await, Err(Late));
        assert_eq!(clock.now(), start + MINUTE * 3);
        tokio::select! {
            biased;
            _ = clock.within(MINUTE, pending::<()>()) => {}
            () = sleep(MINUTE / 2) => {}
        }
        assert_eq!(clock.now(), start + MINUTE * 7 / 2);
        let mut time = clock.freely();
        tokio::select! {
            biased;
            _ = time.left(pending::<()>()) => {}
            () = sleep(MINUTE / 2) => {}
        }
        assert_eq!(time.now(), start + MINUTE * 4);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_together_take_no_longer_than_all_may() {
        let mut clock = Clock::default();
        let start = Instant::now();
        let mut time = clock.until(Instant::now() + MINUTE);
        assert_eq!(time.within(MINUTE / 2, sleep(MINUTE / 3)).await, Ok(()));
        assert_eq!(time.left(sleep(MINUTE / 3)).await, Ok(()));
        assert_eq!(time.within(MINUTE / 2, pending::<()>()).await, Err(Late));
        assert_eq!(start.elapsed(), MINUTE);
        assert_eq!(time.left(pending::<()>()).await, Err(Late));
        assert_eq!(time.left(ready(1)).await, Ok(1));
        assert_eq!(start.elapsed(), MINUTE);

        let mut time = clock.freely();
        assert_eq!(time.left(sleep(MINUTE * 9)).await, Ok(()));
        assert_eq!(time.within(MINUTE / 2, pending::<()>()).await, Err(Late));
        assert_eq!(start.elapsed(), MINUTE * 10 + MINUTE / 2);
    }
}
