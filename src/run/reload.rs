//! Rules and certificates change without a restart: on SIGHUP, and when the file's content changes.
//!
//! The content is compared, not the file's time or inode, so that the symlink swap of a Kubernetes
//! ConfigMap is seen like an editor's save.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::ServiceReadyNotifier;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

use super::certificates::Certificates;
use super::reload_check::Verify;
use super::service_manager;
use crate::rules::Rules;
use crate::settings::{self, Settings};
use crate::telemetry::Metrics;
use crate::telemetry::audit::Audit;
use crate::telemetry::warnings::{Notices, Topic};

/// Between two looks at the file.
const LOOK: Duration = Duration::from_secs(2);

pub(super) struct Reload {
    /// `None` where the settings came from the command line.
    file: Option<PathBuf>,
    /// The file as last read, and what beside the rules is applied of it.
    read: Mutex<Read>,
    rules: Arc<ArcSwap<Rules>>,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
    audit: Arc<Audit>,
    certificates: Certificates,
    verify: Arc<Verify>,
}

/// A file, and its content at a certain time.
pub(super) struct Watched {
    path: PathBuf,
    content: Option<Vec<u8>>,
}

impl Watched {
    pub fn read(path: PathBuf) -> Self {
        let content = std::fs::read(&path).ok();
        Self { path, content }
    }
}

struct Read {
    content: Option<Vec<u8>>,
    fixed: String,
}

impl Reload {
    pub fn new(
        file: Option<Watched>,
        settings: &Settings,
        rules: Arc<ArcSwap<Rules>>,
        (metrics, notices, audit): (Arc<Metrics>, Arc<Notices>, Arc<Audit>),
        certificates: Certificates,
        verify: Verify,
    ) -> Self {
        let (file, content) = file.map(|file| (file.path, file.content)).unzip();
        let content = content.flatten();
        let read = Mutex::new(Read { content, fixed: fixed(settings) });
        Self { file, read, rules, metrics, notices, audit, certificates, verify: Arc::new(verify) }
    }

    /// Applies the file, if it has changed or it is asked for.
    async fn look(&self, file: &Path, asked: bool) {
        let mut read = self.read.lock().await;
        // A small file, on a thread that does nothing else.
        let content = std::fs::read(file).ok();
        if content == read.content && !asked {
            return;
        }
        read.content = content;
        // Counted last: who sees the count finds what was told.
        let (result, path) = (settings::read_file(file), file.display());
        match result {
            Ok(settings) => {
                warn_of_exposed(&settings);
                let fingerprint = settings.rules.fingerprint();
                let before = self.rules.swap(Arc::clone(&settings.rules));
                self.notices.clear(Topic::Configuration);
                tracing::info!(
                    file = %path, rules = settings.rules.iter().count(), %fingerprint,
                    changed = before.fingerprint() != fingerprint,
                    "the rules of the file are applied"
                );
                if before.fingerprint() != fingerprint {
                    let from = before.fingerprint();
                    self.audit.change(
                        "rules",
                        "applied",
                        format!("{path}: {from} to {fingerprint}"),
                    );
                }
                if fixed(&settings) != read.fixed {
                    tracing::warn!(
                        file = %path,
                        "the file changes more than rules: the rest is applied at the next start"
                    );
                }
                self.metrics.reload("applied");
                let (verify, new) = (Arc::clone(&self.verify), Arc::clone(&settings.rules));
                tokio::spawn(async move { verify.widened(&before, &new).await });
            }
            Err(problems) => {
                let text = "the file was changed and could not be applied; the rules are as before";
                self.notices.put(Topic::Configuration, text);
                tracing::error!(file = %path, "{text}: {problems}");
                self.audit.change("rules", "refused", format!("{path}: {text}"));
                self.metrics.reload("refused");
            }
        }
    }
}

/// Files with secrets that too many users may read or change.
pub(super) fn warn_of_exposed(settings: &Settings) {
    for exposed in &settings.exposed {
        tracing::warn!("{exposed}");
    }
}

/// Everything that a reload doesn't change, as text. Secrets don't print.
fn fixed(settings: &Settings) -> String {
    let none = Rules::new(Vec::new()).map(Arc::new);
    let rules = none.unwrap_or_else(|_| Arc::clone(&settings.rules));
    format!("{:?}", Settings { rules, exposed: Vec::new(), ..settings.clone() })
}

#[async_trait]
impl BackgroundService for Reload {
    /// Ready when SIGHUP is caught: by itself it would end the process.
    async fn start_with_ready_notifier(
        &self,
        mut shutdown: ShutdownWatch,
        ready: ServiceReadyNotifier,
    ) {
        let hangup = signal(SignalKind::hangup());
        ready.notify_ready();
        let mut hangup = match hangup {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::error!(%error, "SIGHUP can't be caught");
                return;
            }
        };
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    self.audit.reopen();
                    service_manager::reloading();
                    if let Some(file) = &self.file {
                        self.look(file, true).await;
                    }
                    self.certificates.look(true);
                    service_manager::ready();
                }
                _ = look.tick() => {
                    if let Some(file) = &self.file {
                        self.look(file, false).await;
                    }
                    self.certificates.look(false);
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}
