//! Work for several threads, which may make more of it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Whoever brings work waits while so much is there.
const FULL: usize = 1000;

pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: VecDeque<T>,
    under_way: usize,
    /// More may be brought from outside.
    open: bool,
    stopped: bool,
}

impl<T: Send> Queue<T> {
    pub fn new() -> Self {
        let state = State { waiting: VecDeque::new(), under_way: 0, open: true, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings work, once there is room. False where no more is wanted.
    pub fn bring(&self, work: T) -> bool {
        let state = self.lock();
        let full = |state: &mut State<T>| state.waiting.len() >= FULL && !state.stopped;
        let mut state =
            self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return false;
        }
        state.waiting.push_back(work);
        self.changed.notify_all();
        true
    }

    /// Work that came of other work: done before new work, and never waited for.
    pub fn add(&self, work: impl IntoIterator<Item = T>) {
        let mut state = self.lock();
        for work in work {
            state.waiting.push_front(work);
        }
        self.changed.notify_all();
    }

    /// Nothing more comes from outside.
    pub fn close(&self) {
        self.lock().open = false;
        self.changed.notify_all();
    }

    /// Nothing more is done.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.waiting.clear();
        self.changed.notify_all();
    }

    /// Does work until there is none, and none can come any more.
    pub fn work(&self, act: impl Fn(T)) {
        loop {
            let nothing_yet = |state: &mut State<T>| {
                state.waiting.is_empty() && !state.stopped && (state.open || state.under_way > 0)
            };
            let state = self.lock();
            let waited = self.changed.wait_while(state, nothing_yet);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(work) = state.waiting.pop_front() else { return };
            state.under_way += 1;
            drop(state);
            self.changed.notify_all();
            act(work);
            self.lock().under_way -= 1;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_work_is_done_once_and_then_it_ends() {
        let (queue, done) = (Queue::new(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    queue.work(|depth: u32| {
                        done.fetch_add(1, Ordering::Relaxed);
                        if depth > 0 {
                            queue.add([depth - 1, depth - 1]);
                        }
                    });
                });
            }
            for _ in 0..FULL * 2 {
                assert!(queue.bring(2));
            }
            queue.close();
        });
        assert_eq!(done.into_inner(), FULL * 2 * 7);
    }

    #[test]
    fn a_stop_ends_it_and_lets_go_of_who_waits() {
        let queue = Queue::new();
        std::thread::scope(|scope| {
            scope.spawn(|| while queue.bring(()) {});
            scope.spawn(|| queue.work(|()| queue.stop()));
        });
        assert!(!queue.bring(()));
    }
}
