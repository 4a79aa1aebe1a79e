//! The start of serving: at once, or in two steps where an older process still has the ledger.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::handover::{Left, Older};
use super::{Failure, ledgers, service_manager};
use crate::judge::unjudged::{Affected, Unjudged, Write};
use crate::ledger::Ledger;
use crate::ledger::retrying::Guarded;
use crate::proxy::Gate;
use crate::settings::{Settings, Store};

/// How long the lock of an older process may stay after it has said that it is done, or has ended.
const UNLOCK: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

pub(super) struct Takeover {
    gate: Arc<Gate>,
    rules: String,
    /// What is still to come.
    pending: Option<Pending>,
}

struct Pending {
    older: Older,
    /// The writes of the older process, where its rules are others, or it has let some through by rules
    /// from before. Nothing is bound beside them.
    writes: Option<Write>,
    ledger: Arc<Guarded>,
    settings: Settings,
}

impl Takeover {
    /// Opens the ledger, unless an older process has it. One that several may use is open in both for a
    /// moment.
    pub fn begin(
        settings: &Settings,
        ledger: &Arc<Guarded>,
        older: Option<Older>,
    ) -> Result<Self, Failure> {
        let exclusive = matches!(settings.ledger.store, Store::Embedded { .. });
        let held = exclusive && older.is_some();
        if !held {
            ledger.fill(ledgers::open(settings)?);
        }
        let gate = Arc::new(Gate::new(!held));
        let rules = settings.rules.fingerprint().to_string();
        let (ledger, settings) = (Arc::clone(ledger), settings.clone());
        let pending = older.map(|older| Pending { older, writes: None, ledger, settings });
        Ok(Self { gate, rules, pending })
    }

    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Enters the older process's writes among this one's, before this one serves.
    pub fn beside(mut self, unjudged: &Arc<Unjudged>) -> Self {
        if let Some(pending) = &mut self.pending
            && (pending.older.rules != self.rules || pending.older.unjudged > 0)
        {
            // Nobody has closed it yet.
            pending.writes = unjudged.enter(Affected::Everything).ok();
        }
        self
    }

    /// Everything is ready but, perhaps, the ledger. Returns at once.
    pub fn serve(self) {
        service_manager::ready();
        let Self { gate, rules, pending } = self;
        let Some(pending) = pending else { return };
        pending.older.serving(&rules);
        thread::spawn(move || {
            let left = pending.older.wait_for_release();
            if let Store::Embedded { .. } = pending.settings.ledger.store {
                match open_soon(&pending.settings) {
                    Ok(ledger) => pending.ledger.fill(ledger),
                    Err(failure) => {
                        // Without it nothing protected is ever judged again: who watches this
                        // process must know.
                        tracing::error!("{failure}");
                        process::exit(1);
                    }
                }
            }
            gate.open();
            tracing::info!("this process has taken over");
            if left == Left::Ended {
                outlive(pending.writes, pending.settings.upstream.timeouts.exchange);
            }
        });
    }
}

/// One that was killed closes its files one after the other: its lock may go after its socket.
#[expect(clippy::disallowed_methods, reason = "it has a thread of its own")]
fn open_soon(settings: &Settings) -> Result<Arc<dyn Ledger>, Failure> {
    let start = Instant::now();
    loop {
        match ledgers::open(settings) {
            Err(failure) if start.elapsed() < UNLOCK => {
                tracing::debug!("{failure}");
                thread::sleep(PAUSE);
            }
            opened => return opened,
        }
    }
}

/// The older process has ended, and with it its connections to the registry: what it had sent there may be
/// carried out until its exchange would have timed out.
#[expect(clippy::disallowed_methods, reason = "it has a thread of its own")]
fn outlive(writes: Option<Write>, exchange: Duration) {
    let Some(writes) = writes else {
        tracing::warn!("the older process ended before it said that it was done");
        return;
    };
    tracing::warn!(
        "the older process ended before it said that it was done: no tag is bound for {exchange:?}, in which the registry may carry out its writes"
    );
    thread::sleep(exchange);
    drop(writes);
}
