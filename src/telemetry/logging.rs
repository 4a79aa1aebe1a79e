//! Logs: to standard error, as text or as JSON lines.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

/// # Errors
/// Why the filter can't be used.
pub fn check_filter(text: &str) -> Result<String, String> {
    EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|_| "not a filter, such as `info` or `warn,taglock=debug`".to_owned())
}

/// Sends all logs, pingora's too, to standard error from now on.
///
/// # Errors
/// When logs are sent somewhere already.
pub fn start(filter: &str, json: bool) -> Result<(), String> {
    // pingora reports every client that leaves as an error of its own; the access log and
    // the metrics have that already.
    let filter = format!("pingora_proxy=off,pingora_core=warn,{filter}");
    let filter = EnvFilter::builder().parse_lossy(filter);
    let (text, lines) = if json {
        (None, Some(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)))
    } else {
        (Some(fmt::layer().with_writer(std::io::stderr)), None)
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(text)
        .with(lines)
        .try_init()
        .map_err(|e| e.to_string())
}
