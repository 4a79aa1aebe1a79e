//! The start of serving: at once, or in two steps where an older process still has the ledger.

use std::process;
use std::sync::Arc;
use std::thread;

use super::handover::Older;
use super::{Failure, ledgers, service_manager};
use crate::edge::Gate;
use crate::ledger::guarded::Guarded;
use crate::settings::{Settings, Store};

pub(super) struct Takeover {
    gate: Arc<Gate>,
    /// What is still to come.
    pending: Option<Pending>,
}

struct Pending {
    older: Older,
    ledger: Arc<Guarded>,
    settings: Settings,
}

impl Takeover {
    /// Opens the ledger, unless an older process has it.
    ///
    /// A ledger that several may use is open in both for a moment. Where their rules differ, or the older one
    /// has let writes through unjudged that have not ended, this one waits all the same.
    pub fn begin(
        settings: &Settings,
        ledger: &Arc<Guarded>,
        older: Option<Older>,
    ) -> Result<Self, Failure> {
        let exclusive = matches!(settings.ledger.store, Store::Embedded { .. });
        if !(exclusive && older.is_some()) {
            ledger.fill(ledgers::open(settings)?);
        }
        let rules = settings.rules.fingerprint().to_string();
        let same = |older: &Older| older.rules == rules && older.unjudged == 0;
        let same = older.as_ref().is_none_or(same);
        let gate = Arc::new(Gate::new(same && !(exclusive && older.is_some())));
        let (ledger, settings) = (Arc::clone(ledger), settings.clone());
        let pending = older.map(|older| Pending { older, ledger, settings });
        Ok(Self { gate, pending })
    }

    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Everything is ready but, perhaps, the ledger. Returns at once.
    pub fn serve(self) {
        service_manager::ready();
        let Some(pending) = self.pending else { return };
        pending.older.serving();
        thread::spawn(move || {
            pending.older.wait_for_release();
            if let Store::Embedded { .. } = pending.settings.ledger.store {
                match ledgers::open(&pending.settings) {
                    Ok(ledger) => pending.ledger.fill(ledger),
                    Err(failure) => {
                        // Without it nothing protected is ever judged again: who watches this
                        // process must know.
                        tracing::error!("{failure}");
                        process::exit(1);
                    }
                }
            }
            self.gate.open();
            tracing::info!("this process has taken over");
        });
    }
}
