//! `TAGLOCK_CRASH_AT=<point>[:<nth>]`: the process dies, as by SIGKILL, when a push passes the point
//! for the nth time. For tests; not in release builds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Failure;
use crate::judge::points::{Observer, Point};

pub fn observer() -> Result<Option<Observer>, Failure> {
    let Some(wish) = std::env::var_os("TAGLOCK_CRASH_AT") else { return Ok(None) };
    let wish = wish.to_string_lossy();
    let (name, nth) = wish.split_once(':').unwrap_or((&wish, "1"));
    let (Some(point), Ok(nth)) = (Point::named(name), nth.parse::<u64>()) else {
        return Err(Failure::Start(format!("`TAGLOCK_CRASH_AT` names no point: {wish}")));
    };
    let passed = AtomicU64::new(0);
    Ok(Some(Arc::new(move |at| {
        if at == point && passed.fetch_add(1, Ordering::Relaxed) + 1 == nth {
            std::process::abort();
        }
    })))
}
