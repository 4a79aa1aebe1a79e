//! How many there are now of what comes and goes with every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::runtime::per_thread::PerThread;

/// Counted apart by thread.
#[derive(Default)]
pub struct Presence(PerThread<Arc<Count>>);

/// PerThread from what else is allocated, too.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicI64);

impl Presence {
    /// One more, for as long as this lives.
    #[must_use]
    pub fn enter(&self) -> Present {
        let count = Arc::clone(self.0.own());
        count.0.fetch_add(1, Ordering::AcqRel);
        Present(count)
    }

    pub fn get(&self) -> i64 {
        self.0.all().map(|count| count.0.load(Ordering::Acquire)).sum()
    }
}

/// Is counted as long as it lives.
pub struct Present(Arc<Count>);

impl Drop for Present {
    fn drop(&mut self) {
        // Where it entered, wherever it ends.
        // Who sees this has seen what it had entered before.
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leaves_by_another_thread_is_gone_all_the_same() {
        let presence = Presence::default();
        let (here, there) = (presence.enter(), presence.enter());
        let from_there = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                drop(there);
                presence.enter()
            });
            other.join().unwrap()
        });
        assert_eq!(presence.get(), 2);
        drop(from_there);
        assert_eq!(presence.get(), 1);
        drop(here);
        assert_eq!(presence.get(), 0);
    }
}
