//! The whole program against real registries and real clients.
//!
//! Each test starts what it needs on ports and folders of its own. A part that is missing or does
//! not start fails the test; `scripts/test` installs all of them.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by a panic, and may wait on its own thread"
)]

mod audit;
mod auth;
mod bad_input;
mod blobs;
mod bypass;
mod certificates;
mod chaos;
mod clients;
mod deletes;
mod disk;
mod drift;
mod fake;
mod fault_proxy;
mod faults;
mod fields;
mod fleet;
mod framing;
mod freed;
mod fuzz;
mod harbor;
mod harness;
mod histories;
mod http;
mod limits;
mod long_headers;
mod names;
mod observability;
mod older_rules;
mod operators;
mod operators_api;
mod operators_fleet;
mod other_rules;
mod policies;
mod program;
mod pulls;
mod pushes;
mod recorded;
mod reload;
mod rights;
mod routes;
mod schema1;
mod sentinel;
mod shelf;
mod signatures;
mod soak;
mod strangers;
mod tls;
mod token_server;
mod traces;
mod transparency;
mod upgrade;
mod words;
