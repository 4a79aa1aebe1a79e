//! Connections to a registry: its addresses, TLS and timeouts, and the connections that are kept.

pub mod endpoint;
pub mod pool;

use std::fmt;

pub use pool::Home;

/// Why the registry's word could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Trouble {
    #[error("the registry can't be reached")]
    Unreachable,
    #[error("the registry did not answer in time")]
    TimedOut,
    #[error("the connection to the registry broke")]
    Cut,
    #[error("the registry answered {0}")]
    Status(u16),
    /// The same, with what it said.
    #[error("the registry answered {0}")]
    Answered(Said),
    #[error("the registry's answer makes no sense: {0}")]
    Garbage(&'static str),
    /// A mistake of taglock's own.
    #[error("taglock failed; its log says why")]
    Internal,
}

/// The words of an answer that is not passed on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    pub status: u16,
    pub message: String,
    /// The registry's `Retry-After`, as it stands there.
    pub retry_after: Option<String>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if self.message.is_empty() { Ok(()) } else { write!(f, " ({})", self.message) }
    }
}
