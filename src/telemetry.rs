//! What operators see: logs, metrics, and the audit of decisions.

pub mod audit;
pub mod logging;
mod metrics;
pub mod notices;
pub mod refusals;

pub use metrics::Metrics;
