//! Logs: to standard error, as text or as JSON lines.

use std::io::{IsTerminal, stderr};

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
    // pingora reports every client that leaves, and every pooled connection it gives up, as an
    // error of its own; the access log and the metrics have what matters of that.
    let quiet = "pingora_proxy=off,pingora_core=warn,pingora_core::connectors=off";
    let filter = format!("{quiet},{filter}");
    let filter = EnvFilter::builder().parse_lossy(filter);
    let (text, lines) = if json {
        (None, Some(fmt::layer().json().flatten_event(true).with_writer(stderr)))
    } else {
        (Some(fmt::layer().with_ansi(stderr().is_terminal()).with_writer(stderr)), None)
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(text)
        .with(lines)
        .try_init()
        .map_err(|e| e.to_string())
}
