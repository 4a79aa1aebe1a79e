//! What proxies of one ledger owe each other: the same rules, and the same ledger.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::ledger::witness::Witness;
use crate::ledger::{Announcement, Ledger};
use crate::rules::Rules;
use crate::telemetry::Metrics;
use crate::telemetry::notices::{Notices, Topic};

/// Between two announcements. Proxies whose rules are reloaded one after the other differ for a
/// moment, which is no alarm yet: see [`Fleet::heard`].
const BEAT: Duration = Duration::from_secs(5);
/// An alarm is raised when the rules differ for so many beats in a row.
const ROLL_OUT: u32 = 3;

pub(super) struct Fleet {
    proxy: String,
    ledger: Arc<Witness>,
    rules: Arc<ArcSwap<Rules>>,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
}

impl Fleet {
    pub fn new(
        ledger: Arc<Witness>,
        rules: Arc<ArcSwap<Rules>>,
        metrics: Arc<Metrics>,
        notices: Arc<Notices>,
    ) -> Self {
        let proxy = uuid::Uuid::new_v4().to_string();
        Self { proxy, ledger, rules, metrics, notices }
    }

    /// Looks who the ledger is, and reports what it lost.
    async fn look_for_losses(&self) {
        // An error is told by /readyz; a ledger that forgot who it is counts it as a loss.
        let _ = self.ledger.identity().await;
        let Some(losses) = self.ledger.losses() else { return };
        let total = i64::try_from(losses.total()).unwrap_or(i64::MAX);
        if self.metrics.ledger_losses().get() != total {
            self.metrics.ledger_losses().set(total);
            let text = "it lost entries, and what this proxy and the registry remember is bound anew; \
                        compare it with a backup";
            self.notices.put(Topic::Ledger, text);
            let restored = self.ledger.restore_all().await;
            tracing::error!(restored, "the ledger lost entries; what is remembered is bound again");
        }
    }

    /// Counts those that apply other rules; true while there are some.
    fn heard(&self, own: &Announcement, others: &[Announcement], beats: u32) -> bool {
        let differ = others.iter().filter(|other| other.rules != own.rules).count();
        self.metrics.rules_differ().set(i64::try_from(differ).unwrap_or(i64::MAX));
        if differ == 0 {
            self.notices.clear(Topic::Rules);
        } else if beats + 1 == ROLL_OUT {
            let text = format!("{differ} other proxies of this ledger apply other rules");
            tracing::error!(rules = own.rules, "{text}; give all of them the same file");
            self.notices.put(Topic::Rules, text);
        }
        differ > 0
    }
}

#[async_trait]
impl BackgroundService for Fleet {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut beat = tokio::time::interval(BEAT);
        let mut differing_beats = 0;
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                _ = shutdown.changed() => return,
            }
            self.look_for_losses().await;
            let rules = self.rules.load().fingerprint().to_string();
            let own = Announcement { proxy: self.proxy.clone(), rules };
            // A ledger that is down is reported by those who need it.
            if let Ok(others) = self.ledger.announce(&own).await {
                let differ = self.heard(&own, &others, differing_beats);
                differing_beats = if differ { differing_beats + 1 } else { 0 };
            }
        }
    }
}
