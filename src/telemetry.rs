//! What operators see: logs, metrics, traces, and the audit of decisions.

pub mod audit;
pub mod logging;
mod metrics;
pub mod refusals;
mod sharded_gauge;
pub mod traces;
pub mod warnings;

pub use metrics::Metrics;
pub use sharded_gauge::{Presence, Present};
