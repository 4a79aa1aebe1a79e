//! What operators see: logs, metrics, traces, and the audit of decisions.

pub mod audit;
pub mod logging;
mod metrics;
pub mod notices;
mod presence;
pub mod refusals;
pub mod traces;

pub use metrics::Metrics;
pub use presence::{Presence, Present};
