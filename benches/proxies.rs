//! taglock beside nginx and HAProxy, each tuned, in front of one backend: blobs down and up, with
//! TLS and without, small manifests, and what taglock's costs grow with. In interleaved rounds.
//!
//! `scripts/bench` installs the rivals and runs this; its usage tells the options. Prints markdown,
//! each part between the markers that `docs/performance.md` has for it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    dead_code,
    reason = "a bench that can't be set up should end; it prints; it shares its harness with tests"
)]

#[path = "proxies/aims.rs"]
mod aims;
#[path = "proxies/blobs.rs"]
mod blobs;
#[path = "proxies/client.rs"]
mod client;
#[path = "proxies/cost.rs"]
mod cost;
#[path = "proxies/field.rs"]
mod field;
#[path = "../tests/house/harness.rs"]
mod harness;
#[path = "../tests/house/http.rs"]
mod http;
#[path = "shared/measure.rs"]
mod measure;
#[path = "proxies/plan.rs"]
mod plan;
#[path = "proxies/rounds.rs"]
mod rounds;
#[path = "proxies/scale.rs"]
mod scale;
#[path = "proxies/servers.rs"]
mod servers;
#[path = "proxies/sink.rs"]
mod sink;
#[path = "proxies/small.rs"]
mod small;
#[path = "proxies/wrk.rs"]
mod wrk;

use plan::Plan;

/// Its name, its title, and what measures it.
type Part = (&'static str, &'static str, fn(&Plan));

const PARTS: [Part; 7] = [
    ("get", "Blobs down", blobs::get),
    ("put", "Blobs up", blobs::put),
    ("tls", "Blobs down over TLS", blobs::tls),
    ("small", "Small manifests", small::run),
    ("connections", "What connections cost", scale::connections::run),
    ("rules", "What rules cost", scale::rules::run),
    ("tags", "What tags cost", scale::tags::run),
];

fn main() {
    // The same program is the backend of uploads, in a process of its own.
    if let Some(address) = std::env::var_os(sink::ADDRESS) {
        return sink::run(&address.into_string().unwrap());
    }
    // Tests ask each bench binary for its tests: none here.
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plan = Plan::of_arguments();
    for (part, title, run) in PARTS {
        if plan.has(part) {
            println!("<!-- bench: {part} -->");
            measure::preamble(title);
            run(&plan);
            println!("\nLoad at the end: {}\n<!-- /bench: {part} -->\n", measure::load());
        }
    }
}
