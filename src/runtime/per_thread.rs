//! Values that each thread has one of, so that none waits for another's memory.
//!
//! What two threads change in turn is fetched from one core's cache into the other's each time, which
//! takes longer than most of what a small request needs. Counted, kept and found apart, what threads
//! share is only read.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Further threads share with others.
const PLACES: usize = 32;

/// Alone on its line, and on the next, which processors fetch along with it.
#[derive(Default)]
#[repr(align(128))]
struct Place<T>(T);

/// A value for each thread.
pub struct PerThread<T>(Box<[Place<T>]>);

impl<T: Default> Default for PerThread<T> {
    fn default() -> Self {
        Self::new(T::default)
    }
}

impl<T> PerThread<T> {
    pub fn new(make: impl Fn() -> T) -> Self {
        Self((0..PLACES).map(|_| Place(make())).collect())
    }

    /// This thread's. Where there are many, another one may have the same.
    pub fn own(&self) -> &T {
        thread_local! {
            static PLACE: usize = {
                static NEXT: AtomicUsize = AtomicUsize::new(0);
                NEXT.fetch_add(1, Ordering::Relaxed) % PLACES
            };
        }
        &self.0[PLACE.with(|place| *place)].0
    }

    /// All threads'.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|place| &place.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_own_and_all_are_seen() {
        let apart = PerThread::<AtomicUsize>::default();
        let counted = |n: usize| {
            for _ in 0..n {
                apart.own().fetch_add(1, Ordering::Relaxed);
            }
            std::ptr::from_ref(apart.own()).addr()
        };
        let mine = counted(1);
        let (first, second) = std::thread::scope(|scope| {
            let (first, second) = (scope.spawn(|| counted(2)), scope.spawn(|| counted(3)));
            (first.join().unwrap(), second.join().unwrap())
        });
        assert_eq!(mine, std::ptr::from_ref(apart.own()).addr());
        assert!(mine.abs_diff(first) >= 128 || mine == first);
        assert!(
            first.abs_diff(second) >= 128,
            "one after the other, they have neighbouring places"
        );
        assert_eq!(apart.all().map(|n| n.load(Ordering::Relaxed)).sum::<usize>(), 6);
    }
}
