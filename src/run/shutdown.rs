//! Ending: on SIGTERM or SIGINT nothing new is taken, what is under way ends, the ledger is closed,
//! and the process is gone as soon as that is done.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::ledger::Ledger;
use crate::telemetry::Metrics;

/// Connections accepted just before the listeners closed still bring their requests.
const SETTLE: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(20);

pub struct Shutdown {
    metrics: Arc<Metrics>,
    ledger: Arc<dyn Ledger>,
    timeout: Duration,
}

impl Shutdown {
    pub fn new(metrics: Arc<Metrics>, ledger: Arc<dyn Ledger>, timeout: Duration) -> Self {
        Self { metrics, ledger, timeout }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Shutdown {
    async fn recv(&self) -> ShutdownSignal {
        let mut signals = Signals::new();
        signals.next().await;
        tracing::info!("stopping: requests under way may take {:?} to end", self.timeout);
        // pingora's own loop ends after this and then only sleeps, so the waiting is done on
        // threads of ours, the ledger's closing among it.
        let (metrics, ledger, timeout) =
            (Arc::clone(&self.metrics), Arc::clone(&self.ledger), self.timeout);
        on_a_thread(end(metrics, ledger, timeout));
        on_a_thread(async {
            Signals::new().next().await;
            tracing::warn!("stopped at once by a second signal");
            process::exit(1);
        });
        ShutdownSignal::GracefulTerminate
    }
}

/// Runs on a thread and a runtime of its own, whatever becomes of pingora's.
fn on_a_thread(work: impl Future<Output = ()> + Send + 'static) {
    thread::spawn(move || {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(work),
            Err(error) => tracing::error!(%error, "no runtime for stopping; pingora ends later"),
        }
    });
}

async fn end(metrics: Arc<Metrics>, ledger: Arc<dyn Ledger>, timeout: Duration) {
    let start = Instant::now();
    sleep(SETTLE).await;
    let under_way = || metrics.in_flight().get() + metrics.settling().get();
    while under_way() > 0 && start.elapsed() < timeout {
        sleep(POLL).await;
    }
    match under_way() {
        0 => tracing::info!("stopped after {:?}", start.elapsed()),
        left => tracing::warn!(requests = left, "stopped, requests that took too long are cut"),
    }
    ledger.close().await;
    process::exit(0)
}

/// The signals that mean "stop".
struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
}

impl Signals {
    fn new() -> Self {
        // A signal that can't be caught keeps what it does by default: it ends the process.
        Self {
            terminate: signal(SignalKind::terminate()).ok(),
            interrupt: signal(SignalKind::interrupt()).ok(),
        }
    }

    async fn next(&mut self) {
        tokio::select! {
            () = caught(&mut self.terminate) => {}
            () = caught(&mut self.interrupt) => {}
        }
    }
}

async fn caught(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
