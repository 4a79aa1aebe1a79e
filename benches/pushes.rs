//! What judging costs a push, in front of a real registry: how long one takes, and how many fit
//! into a second, direct, through taglock unprotected, and protected; in one interleaved run.
//!
//! `cargo bench --bench pushes`, and `-- --quick` for a fraction of the time. Prints markdown. A push
//! here is the PUT of a manifest, the one request that is judged; blobs stream through untouched.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    dead_code,
    reason = "a bench that can't be set up should end; it prints; it shares its harness with tests"
)]

#[path = "pushes/fleets.rs"]
mod fleets;
#[path = "../tests/house/harness.rs"]
mod harness;
#[path = "../tests/house/http.rs"]
mod http;
#[path = "pushes/latency.rs"]
mod latency;
#[path = "shared/measure.rs"]
mod measure;
#[path = "pushes/pusher.rs"]
mod pusher;
#[path = "shared/redis_server.rs"]
mod redis_server;
#[path = "pushes/throughput.rs"]
mod throughput;

use std::time::Duration;

fn main() {
    let quick = measure::is_quick();
    measure::preamble("Pushes");
    let seconds = |full, short| Duration::from_secs(if quick { short } else { full });
    let fleets = fleets::Fleets::start();
    latency::run(&fleets, seconds(30, 8));
    latency::whole_pushes(&fleets, seconds(15, 5));
    throughput::run(&fleets, seconds(70, 16));
    println!("\nLoad at the end: {}", measure::load());
}
