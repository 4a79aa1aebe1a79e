//! What an operator should know beside "ready": shown by `/readyz`, one line each.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What can be amiss while requests are still answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// The file was changed and could not be applied.
    Configuration,
    /// A certificate was changed and could not be used.
    Certificate,
    /// Likewise, for connections to the registry.
    UpstreamCertificate,
    /// A newer process did not start, and this one goes on.
    Upgrade,
    /// Proxies of one ledger apply different rules.
    Rules,
    /// The ledger lost bindings.
    Ledger,
}

impl Topic {
    fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Certificate => "certificate",
            Self::UpstreamCertificate => "upstream certificate",
            Self::Upgrade => "upgrade",
            Self::Rules => "rules",
            Self::Ledger => "ledger warning",
        }
    }
}

/// The notices of one proxy.
#[derive(Debug, Default)]
pub struct Notices {
    current: Mutex<BTreeMap<Topic, String>>,
}

impl Notices {
    /// Puts up a notice, in place of the topic's last one. It may hold nothing secret: `/readyz`
    /// needs no token.
    pub fn put(&self, topic: Topic, text: impl Into<String>) {
        self.lock().insert(topic, text.into());
    }

    pub fn clear(&self, topic: Topic) {
        self.lock().remove(&topic);
    }

    /// As lines of text.
    pub fn lines(&self) -> String {
        self.lock().iter().map(|(topic, text)| format!("{}: {text}\n", topic.as_str())).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Topic, String>> {
        // Each change is one call on the map, so it is sound whoever panicked.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
