//! Ending: on SIGTERM or SIGINT nothing new is taken, what is under way ends, the ledger is closed,
//! and the process is gone as soon as that is done. SIGUSR2 starts a newer process first, which takes
//! everything over; one that does not start changes nothing.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::handover::Newer;
use super::service_manager;
use super::sockets::Sockets;
use crate::judge::unjudged::Unjudged;
use crate::ledger::Ledger;
use crate::proxy::{Deliveries, Gate, LULL};
use crate::rules::Rules;
use crate::telemetry::Metrics;
use crate::telemetry::audit::Audit;
use crate::telemetry::traces::Tracer;
use crate::telemetry::warnings::{Notices, Topic};

/// Connections accepted just before the listeners closed still bring their requests.
const SETTLE: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(20);
/// How long connections may take to close that have nothing under way.
const CLOSING: Duration = Duration::from_secs(3);
/// How long a client may take nothing of an answer's end.
const STALLED: Duration = Duration::from_secs(20);
/// How long clients have for it where the kernel does not tell what they have got.
const UNTOLD: Duration = Duration::from_secs(10);
/// Packets, or bytes: what HTTP/2 connections are told at their end, of which those that are gone get
/// nothing.
const FAREWELL: u64 = 256;
/// A newer process gets the ledger after so long at the latest, whatever is still to be settled.
const HAND_OVER: Duration = Duration::from_secs(20);

/// What is needed for an end.
pub(super) struct Shutdown {
    pub metrics: Arc<Metrics>,
    pub deliveries: Arc<Deliveries>,
    pub notices: Arc<Notices>,
    pub ledger: Arc<dyn Ledger>,
    pub audit: Arc<Audit>,
    pub tracer: Option<Arc<Tracer>>,
    /// Only one process at a time has the ledger.
    pub exclusive: bool,
    pub gate: Arc<Gate>,
    pub rules: Arc<ArcSwap<Rules>>,
    pub unjudged: Arc<Unjudged>,
    pub sockets: Arc<Sockets>,
    /// After SIGTERM.
    pub timeout: Duration,
    /// After a newer process has taken over.
    pub upgrade_timeout: Duration,
}

/// From now on SIGUSR2 and SIGHUP do not end the process, as they would by themselves. Before this one
/// listens for them there is nothing that a newer process could take over, and its file is just being
/// read.
pub(super) fn keep_from_ending() {
    if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
        let _inside = runtime.enter();
        // What is caught once stays caught.
        drop(signal(SignalKind::user_defined2()));
        drop(signal(SignalKind::hangup()));
    }
}

#[async_trait]
impl ShutdownSignalWatch for Shutdown {
    async fn recv(&self) -> ShutdownSignal {
        let mut signals = Signals::new();
        let newer = loop {
            match signals.next().await {
                Asked::Stop => break None,
                Asked::Upgrade => match self.upgrade().await {
                    Ok(newer) => break Some(newer),
                    Err(reason) => {
                        let text = "the newer process did not start; this one goes on";
                        tracing::error!(reason, "{text}");
                        self.notices.put(Topic::Upgrade, text);
                        self.metrics.upgrade("failed");
                    }
                },
            }
        };
        let bound = match &newer {
            Some(newer) => {
                tracing::info!(
                    pid = newer.pid,
                    "a newer process takes over: requests under way may take {:?} to end",
                    self.upgrade_timeout
                );
                self.metrics.upgrade("taken-over");
                service_manager::taken_over_by(newer.pid);
                self.upgrade_timeout
            }
            None => {
                tracing::info!("stopping: requests under way may take {:?} to end", self.timeout);
                service_manager::stopping();
                self.timeout
            }
        };
        // pingora's own loop ends after this and then only sleeps, so the waiting is done on
        // threads of ours, the ledger's closing among it.
        let deadline = watch::Sender::new(Instant::now() + bound);
        let end = End {
            metrics: Arc::clone(&self.metrics),
            deliveries: Arc::clone(&self.deliveries),
            ledger: Arc::clone(&self.ledger),
            audit: Arc::clone(&self.audit),
            tracer: self.tracer.clone(),
            exclusive: self.exclusive,
            rules: Arc::clone(&self.rules),
            unjudged: Arc::clone(&self.unjudged),
            deadline: deadline.subscribe(),
        };
        let hurried = newer.is_some().then_some(self.timeout);
        on_a_thread(end.run(newer));
        on_a_thread(async move {
            let mut signals = Signals::new();
            if let Some(timeout) = hurried {
                signals.stop().await;
                tracing::info!("requests under way may take {timeout:?} to end");
                deadline
                    .send_modify(|deadline| *deadline = (Instant::now() + timeout).min(*deadline));
            }
            signals.stop().await;
            tracing::warn!("stopped at once by a second signal");
            process::exit(1);
        });
        ShutdownSignal::GracefulTerminate
    }
}

impl Shutdown {
    /// Starts a newer process and waits until it serves.
    async fn upgrade(&self) -> Result<Newer, String> {
        if !self.gate.is_open() {
            return Err("this process has not taken over itself yet".into());
        }
        tracing::info!("starting a newer process");
        let rules = self.rules.load().fingerprint().to_string();
        let sockets = Arc::clone(&self.sockets);
        let unjudged = self.unjudged.count();
        let started = spawn_blocking(move || Newer::start(&sockets, &rules, unjudged)).await;
        started.unwrap_or_else(|e| Err(e.to_string()))
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

struct End {
    metrics: Arc<Metrics>,
    deliveries: Arc<Deliveries>,
    ledger: Arc<dyn Ledger>,
    audit: Arc<Audit>,
    tracer: Option<Arc<Tracer>>,
    exclusive: bool,
    rules: Arc<ArcSwap<Rules>>,
    unjudged: Arc<Unjudged>,
    deadline: watch::Receiver<Instant>,
}

impl End {
    async fn run(self, newer: Option<Newer>) {
        let start = Instant::now();
        sleep(SETTLE).await;
        if let Some(mut newer) = newer {
            self.settle(start, &newer.rules).await;
            if self.exclusive {
                self.ledger.close().await;
            }
            newer.released();
            tracing::info!("the newer process judges alone after {:?}", start.elapsed());
        }
        let under_way = || self.metrics.in_flight().get() + self.metrics.settling().get();
        while under_way() > 0 && Instant::now() < *self.deadline.borrow() {
            sleep(POLL).await;
        }
        self.deliver().await;
        match (under_way(), self.deliveries.on_the_way()) {
            (0, None | Some(..=FAREWELL)) => tracing::info!("stopped after {:?}", start.elapsed()),
            (0, Some(_)) => {
                tracing::warn!("stopped, the end of an answer that was not taken is cut");
            }
            (left, _) => {
                tracing::warn!(requests = left, "stopped, requests that took too long are cut");
            }
        }
        self.ledger.close().await;
        self.audit.flush();
        // Last, for it may take a while, and nobody waits for it.
        if let Some(tracer) = &self.tracer {
            tracer.end();
        }
        process::exit(0)
    }

    /// Over HTTP/2 the end of an answer may be on its way when its request has ended. What has nothing
    /// on its way, or does not move, is not waited for.
    async fn deliver(&self) {
        let (mut least, mut moved) = (u64::MAX, Instant::now());
        while self.metrics.connections().get() > 0 && Instant::now() < *self.deadline.borrow() {
            let left = self.deliveries.on_the_way();
            // Only what clients take counts: with a word now and then one could hold the stop.
            if let Some(left) = left.filter(|left| *left < least) {
                (least, moved) = (left, Instant::now());
            }
            let patience = match left {
                Some(..=FAREWELL) => CLOSING,
                Some(_) => STALLED,
                None => UNTOLD,
            };
            if moved.elapsed() > patience {
                return;
            }
            sleep(POLL).await;
        }
    }

    /// Waits until no request can need the ledger any more: idle connections are closed, and what
    /// is protected has ended. By other rules than this process's nothing is written here afterwards, also
    /// of what comes whole later.
    async fn settle(&self, start: Instant, newer_rules: &str) {
        let quiet = || start.elapsed() > LULL + SETTLE || self.metrics.connections().get() == 0;
        let protected = || self.metrics.protected().get() + self.metrics.settling().get();
        while !(quiet() && protected() == 0) && start.elapsed() < HAND_OVER {
            sleep(POLL).await;
        }
        match protected() {
            0 => {}
            left => tracing::warn!(requests = left, "protected requests under way lose the ledger"),
        }
        if self.rules.load().fingerprint().to_string() != newer_rules {
            self.unjudged.close();
        }
        // A newer process binds nothing beside them. Each ends by `upstream.exchange_timeout`.
        while self.unjudged.count() > 0 {
            sleep(POLL).await;
        }
    }
}

enum Asked {
    Stop,
    Upgrade,
}

/// The signals that mean "stop", and the one that means "let a newer process take over".
struct Signals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
    upgrade: Option<Signal>,
}

impl Signals {
    fn new() -> Self {
        // A signal that can't be caught keeps what it does by default: it ends the process.
        Self {
            terminate: signal(SignalKind::terminate()).ok(),
            interrupt: signal(SignalKind::interrupt()).ok(),
            upgrade: signal(SignalKind::user_defined2()).ok(),
        }
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            () = caught(&mut self.terminate) => Asked::Stop,
            () = caught(&mut self.interrupt) => Asked::Stop,
            () = caught(&mut self.upgrade) => Asked::Upgrade,
        }
    }

    async fn stop(&mut self) {
        while let Asked::Upgrade = self.next().await {
            tracing::warn!("this process is ending; the newer one can be asked");
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
