//! What the calendar says, without asking the system's clock each time.
//!
//! An answer has a `Date`, and a request's id begins with when it came. Both follow from a time that was
//! looked at anyway, as long as the second is the same.

use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use pingora::protocols::http::date::get_cached_date;

const SECOND: Duration = Duration::from_secs(1);

/// One second of it.
struct Second {
    from: Instant,
    until: Instant,
    /// Since 1970, at `from`.
    unix: Duration,
    date: HeaderValue,
}

impl Second {
    fn now() -> Self {
        // Should time pass between these, the second ends the earlier.
        let from = Instant::now();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date = get_cached_date();
        let rest = SECOND - Duration::from_nanos(unix.subsec_nanos().into());
        Self { from, until: from + rest, unix, date }
    }

    /// A time shortly before it is as good as its beginning.
    fn has(&self, at: Instant) -> bool {
        at < self.until
    }
}

thread_local! {
    static SECOND_HERE: RefCell<Option<Second>> = const { RefCell::new(None) };
}

/// What this thread's second tells of a time that was looked at a moment ago.
fn at<T>(at: Instant, tell: impl FnOnce(&Second) -> T) -> T {
    SECOND_HERE.with_borrow_mut(|second| {
        let known = second.take().filter(|second| second.has(at));
        tell(second.insert(known.unwrap_or_else(Second::now)))
    })
}

/// Time since 1970.
pub fn unix(now: Instant) -> Duration {
    at(now, |second| second.unix + now.saturating_duration_since(second.from))
}

/// Writes the value of a `Date` (RFC 9110, section 6.6.1).
pub fn with_date<T>(now: Instant, write: impl FnOnce(&[u8]) -> T) -> T {
    at(now, |second| write(second.date.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_what_the_systems_clock_says() {
        // As long as this thread may have to wait between two looks.
        let near = Duration::from_millis(200);
        // Over the end of a second.
        for _ in 0..130 {
            let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let now = Instant::now();
            let (told, date) = (unix(now), with_date(now, <[u8]>::to_vec));
            let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            assert!(before <= told + near && told <= after + near, "{before:?} {told:?} {after:?}");
            if before.as_secs() == (after + near).as_secs() && before.as_millis() % 1000 > 200 {
                assert_eq!(date, get_cached_date().as_bytes());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let early = Instant::now().checked_sub(Duration::from_millis(5)).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(unix(early).abs_diff(now) < near);
    }
}
