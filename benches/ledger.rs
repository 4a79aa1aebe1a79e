//! The ledger's figures, beside the bare thing that does the same work, in one interleaved run:
//! what each operation costs, how many fit through at once, what a tag weighs, and whether any of
//! it grows with the number of tags.
//!
//! `cargo bench --bench ledger`, and `-- --quick` for a fraction of the time. Prints markdown.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    dead_code,
    reason = "a bench that can't be set up should end; it prints; it shares its harness with tests"
)]

#[path = "ledger/bare.rs"]
mod bare;
#[path = "../tests/house/harness.rs"]
mod harness;
#[path = "../tests/house/http.rs"]
mod http;
#[path = "ledger/in_flight.rs"]
mod in_flight;
#[path = "shared/measure.rs"]
mod measure;
#[path = "ledger/names.rs"]
mod names;
#[path = "ledger/operations.rs"]
mod operations;
#[path = "shared/redis_server.rs"]
mod redis_server;
#[path = "ledger/sizes.rs"]
mod sizes;

use std::time::Duration;

fn main() {
    let quick = measure::is_quick();
    measure::preamble("The ledger");
    // As many workers as taglock itself has.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let seconds = |full, short| Duration::from_secs(if quick { short } else { full });
    operations::run(&runtime, seconds(30, 8));
    in_flight::run(&runtime, seconds(20, 5));
    sizes::run(&runtime, quick);
    println!("\nLoad at the end: {}", measure::load());
}
