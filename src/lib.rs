//! taglock is a reverse proxy that makes tags immutable in front of any container registry.
//!
//! One PUT of a manifest, in ten lines:
//!
//! 1. [`run`] has built the rooms from [`settings`]; [`cli`] has named the file.
//! 2. [`proxy`] accepts the request and refuses framing that has two readings.
//! 3. [`route`] makes a [`route::Route`] of method and raw target, or refuses them.
//! 4. [`rules`] say whether some tag of the repository may be immutable. If not, the request
//!    streams through pingora and nobody looks again.
//! 5. The proxy reads the manifest, bounded, and hashes it.
//! 6. [`judge`] takes it through the claim protocol in a task of its own: it looks the tags up in
//!    the [`ledger`], asks the [`registry`] what it has, and stores the manifest by its digest.
//! 7. It claims the tags for the digest, all or none. A claim never changes its digest because
//!    time passed.
//! 8. With a [`judge::Permit`] it publishes each tag, once, and seals the claim.
//! 9. The verdict is recorded by [`telemetry::audit`], whether or not the client is still there.
//! 10. The proxy answers: with the registry's words, or in the one place that writes refusals.
//!
//! A pull of an immutable tag is shorter: [`judge::pull`] looks up what the tag is bound to, and the
//! registry is asked for that digest.
//!
//! The names of the distribution spec are types in [`name`]; operators look in through [`admin`],
//! and from the command line through [`console`].

pub mod admin;
pub mod cli;
pub mod console;
pub mod judge;
pub mod ledger;
pub mod name;
pub mod proxy;
pub mod registry;
pub mod route;
pub mod rules;
pub mod run;
mod runtime;
pub mod settings;
pub mod telemetry;
pub mod transport;
