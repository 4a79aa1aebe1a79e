//! Every metric, its help and its labels. Label sets are closed: no repository, tag, user or
//! address ever becomes a label.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use prometheus::local::{LocalHistogram, LocalIntCounter};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use tokio::runtime::{Handle, Id};

use super::Presence;
use crate::runtime::per_thread::PerThread;

/// The metrics of one proxy; names begin with `taglock_`.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    refusals: IntCounterVec,
    by_rule: IntCounterVec,
    usual: PerThread<Mutex<Usual>>,
    dry_run: IntCounterVec,
    pushes: HistogramVec,
    pulls: HistogramVec,
    drift: IntCounterVec,
    drifted: IntGauge,
    ledger: HistogramVec,
    in_flight: Presence,
    shown: Shown,
    connections: IntGauge,
    tasks: IntGauge,
    /// The proxy's.
    runtimes: DashMap<Id, Handle>,
    manifests: IntGauge,
    overloads: IntCounterVec,
    cache: IntCounterVec,
    manifest_cache: IntCounterVec,
    manifest_cache_bytes: IntGauge,
    public_questions: IntCounterVec,
    settling: Presence,
    protected: Presence,
    upgrades: IntCounterVec,
    audit: IntCounterVec,
    certificate_expiry: IntGaugeVec,
    certificate_reloads: IntCounterVec,
    reloads: IntCounterVec,
    rules_differ: IntGauge,
    ledger_losses: IntGauge,
}

/// What nearly every request counts, found once: to look a label up takes longer than to count. Each
/// thread has its own, and what it has counted goes into the sums when they are asked for.
struct Usual {
    bytes_in: LocalIntCounter,
    bytes_out: LocalIntCounter,
    /// Pulls that went by memory.
    hits: LocalIntCounter,
    /// Pulls that were served.
    served: LocalHistogram,
    /// Reads of manifests that were answered well, by tag and by digest.
    by_tag: LocalIntCounter,
    by_digest: LocalIntCounter,
}

impl Usual {
    fn flush(&self) {
        let Self { bytes_in, bytes_out, hits, served, by_tag, by_digest } = self;
        for counter in [bytes_in, bytes_out, hits, by_tag, by_digest] {
            counter.flush();
        }
        served.flush();
    }
}

/// The gauges of what is counted as it comes and goes, set when they are asked for.
struct Shown {
    in_flight: IntGauge,
    settling: IntGauge,
    protected: IntGauge,
}

/// From a memory look-up to the end of the ledger's patience.
const LEDGER_BUCKETS: [f64; 10] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 2.5];
/// A push takes several round trips to the registry, and may wait for a rival.
const PUSH_BUCKETS: [f64; 8] = [0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0];

/// A pull is usually one round trip to the registry.
const PULL_BUCKETS: [f64; 8] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels);
            register(&registry, metric)
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(&registry, HistogramVec::new(options, labels))
        };
        let bytes = counter(
            "taglock_body_bytes_total",
            "Bytes of requests' and answers' bodies: from clients (in) and to them (out).",
            &["direction"],
        );
        let pulls = histogram(
            "taglock_protected_pull_seconds",
            "Time from the request for a protected tag to what is answered, by outcome.",
            &["outcome"],
            &PULL_BUCKETS,
        );
        let cache = counter(
            "taglock_cache_total",
            "Pulls of protected tags by what they went by: memory, the ledger, or what is left in an outage.",
            &["result"],
        );
        let requests = counter(
            "taglock_requests_total",
            "Requests answered, by route and by class of status.",
            &["route", "status"],
        );
        let usual = || Usual {
            bytes_in: bytes.with_label_values(&["in"]).local(),
            bytes_out: bytes.with_label_values(&["out"]).local(),
            hits: cache.with_label_values(&["hit"]).local(),
            served: pulls.with_label_values(&["served"]).local(),
            by_tag: requests.with_label_values(&["manifest-read-tag", "2xx"]).local(),
            by_digest: requests.with_label_values(&["manifest-read-digest", "2xx"]).local(),
        };
        let usual = PerThread::new(|| Mutex::new(usual()));
        let shown = Shown {
            in_flight: gauge("taglock_requests_in_flight", "Requests being answered now."),
            settling: gauge(
                "taglock_protected_pushes_in_flight",
                "Protected manifest writes under way, those whose client has left included.",
            ),
            protected: gauge(
                "taglock_protected_requests_in_flight",
                "Requests being answered now that need the ledger, or may turn out to.",
            ),
        };
        let (in_flight, settling, protected) = Default::default();
        Self {
            usual,
            requests,
            refusals: counter(
                "taglock_refusals_total",
                "Requests refused by taglock itself, by reason.",
                &["reason"],
            ),
            by_rule: counter(
                "taglock_rule_refusals_total",
                "Pushes and deletes that a rule refused, by the rule's name in the file.",
                &["rule"],
            ),
            dry_run: counter(
                "taglock_dry_run_refusals_total",
                "Requests that a rule which is not enforced would have refused, by reason.",
                &["reason"],
            ),
            pushes: histogram(
                "taglock_protected_push_seconds",
                "Time from the last byte of a protected manifest to its verdict, by verdict.",
                &["verdict"],
                &PUSH_BUCKETS,
            ),
            pulls,
            drift: counter(
                "taglock_drift_total",
                "Changes seen in the registry's own tags against the ledger, by kind.",
                &["change"],
            ),
            drifted: gauge(
                "taglock_drifted_tags",
                "Tags known to differ from the ledger in the registry itself.",
            ),
            ledger: histogram(
                "taglock_ledger_call_seconds",
                "Calls on the ledger, repeats included, by operation and result.",
                &["operation", "result"],
                &LEDGER_BUCKETS,
            ),
            in_flight,
            shown,
            connections: gauge("taglock_connections", "Connections of clients now."),
            tasks: gauge("taglock_tasks", "Tasks of the proxy's runtimes now."),
            runtimes: DashMap::new(),
            manifests: gauge(
                "taglock_manifests_held",
                "Manifests being taken in or judged now, at most `limits.manifests`.",
            ),
            cache,
            manifest_cache: counter(
                "taglock_manifest_cache_total",
                "Pulls from repositories with `anonymous_pull`, by whether they were answered from memory.",
                &["result"],
            ),
            manifest_cache_bytes: gauge(
                "taglock_manifest_cache_bytes",
                "Memory that manifests take now, at most `limits.manifest_cache`.",
            ),
            public_questions: counter(
                "taglock_public_questions_total",
                "Questions to the registry, without credentials, whether a repository is public, by answer.",
                &["answer"],
            ),
            overloads: counter(
                "taglock_overloads_total",
                "Requests and connections that found no place, by the limit they met.",
                &["limit"],
            ),
            settling,
            protected,
            upgrades: counter(
                "taglock_upgrades_total",
                "Times a newer process was to take over from this one, by what came of it.",
                &["result"],
            ),
            certificate_expiry: gauges(
                "taglock_certificate_expiry_timestamp_seconds",
                "When a certificate in use ends, in seconds since 1970: the listener's, or the one the \
                 registry is shown.",
                &["certificate"],
            ),
            certificate_reloads: counter(
                "taglock_certificate_reloads_total",
                "Times certificates were read again, by what came of it.",
                &["certificate", "result"],
            ),
            audit: counter(
                "taglock_audit_lines_total",
                "Lines of the audit that went to its own file or to standard output, by result; \
                 those not written there are in the log.",
                &["result"],
            ),
            reloads: counter(
                "taglock_reloads_total",
                "Times the settings' file was read again, by what came of it.",
                &["result"],
            ),
            rules_differ: gauge(
                "taglock_proxies_with_other_rules",
                "Proxies of the same ledger that apply other rules than this one.",
            ),
            ledger_losses: gauge(
                "taglock_ledger_losses",
                "Times the ledger was seen to have lost entries since this process began.",
            ),
            registry,
        }
    }

    /// How often the ledger was seen to have lost entries.
    pub fn ledger_losses(&self) -> &IntGauge {
        &self.ledger_losses
    }

    /// The file was read again: `applied`, or `refused` and the old rules kept.
    pub fn reload(&self, result: &'static str) {
        self.reloads.with_label_values(&[result]).inc();
    }

    /// Proxies of the same ledger that apply other rules.
    pub fn rules_differ(&self) -> &IntGauge {
        &self.rules_differ
    }

    fn usual(&self) -> MutexGuard<'_, Usual> {
        self.usual.own().lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn request(&self, route: &'static str, status: u16) {
        let class = match status {
            100..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "none",
        };
        match (route, class) {
            ("manifest-read-tag", "2xx") => self.usual().by_tag.inc(),
            ("manifest-read-digest", "2xx") => self.usual().by_digest.inc(),
            _ => self.requests.with_label_values(&[route, class]).inc(),
        }
    }

    pub fn refusal(&self, reason: &'static str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// The rules' names are a closed set: the file's.
    pub fn refused_by(&self, rule: Option<&str>) {
        self.by_rule.with_label_values(&[rule.unwrap_or("none")]).inc();
    }

    pub fn bytes(&self, from_client: u64, to_client: u64) {
        let usual = self.usual();
        usual.bytes_in.inc_by(from_client);
        usual.bytes_out.inc_by(to_client);
    }

    pub fn dry_run_refusal(&self, reason: &'static str) {
        self.dry_run.with_label_values(&[reason]).inc();
    }

    pub fn push(&self, verdict: &'static str, took: Duration) {
        self.pushes.with_label_values(&[verdict]).observe(took.as_secs_f64());
    }

    pub fn pull(&self, outcome: &'static str, took: Duration) {
        match outcome {
            "served" => self.usual().served.observe(took.as_secs_f64()),
            other => self.pulls.with_label_values(&[other]).observe(took.as_secs_f64()),
        }
    }

    /// The same of a pull that went by memory.
    pub fn pull_by_memory(&self, outcome: &'static str, took: Duration) {
        if outcome == "served" {
            let usual = self.usual();
            usual.hits.inc();
            usual.served.observe(took.as_secs_f64());
        } else {
            self.cache("hit");
            self.pull(outcome, took);
        }
    }

    pub fn drift(&self, change: &'static str, known: usize) {
        self.drift.with_label_values(&[change]).inc();
        self.drifted.set(i64::try_from(known).unwrap_or(i64::MAX));
    }

    pub fn ledger_call(&self, operation: &'static str, result: &'static str, took: Duration) {
        self.ledger.with_label_values(&[operation, result]).observe(took.as_secs_f64());
    }

    /// Connections of clients now.
    pub fn connections(&self) -> &IntGauge {
        &self.connections
    }

    /// To be called within one of the proxy's runtimes, whose tasks are counted from then on.
    pub fn within_runtime(&self) {
        let runtime = Handle::current();
        if !self.runtimes.contains_key(&runtime.id()) {
            self.runtimes.insert(runtime.id(), runtime);
        }
    }

    /// Manifests being taken in or judged now.
    pub fn manifests(&self) -> &IntGauge {
        &self.manifests
    }

    /// What a pull went by: `hit`, `miss`, or `outage`.
    pub fn cache(&self, result: &'static str) {
        match result {
            "hit" => self.usual().hits.inc(),
            other => self.cache.with_label_values(&[other]).inc(),
        }
    }

    /// Whether a pull was answered from memory: `hit`, `outage`, `miss`, `other` or `unconfirmed`.
    pub fn manifest_cache(&self, result: &'static str) {
        self.manifest_cache.with_label_values(&[result]).inc();
    }

    pub fn manifest_cache_bytes(&self, bytes: u64) {
        self.manifest_cache_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Whether a repository is public: `open`, `closed` or `unclear`.
    pub fn public_question(&self, answer: &'static str) {
        self.public_questions.with_label_values(&[answer]).inc();
    }

    pub fn overload(&self, limit: &'static str) {
        self.overloads.with_label_values(&[limit]).inc();
    }

    /// Requests being answered now.
    pub fn in_flight(&self) -> &Presence {
        &self.in_flight
    }

    /// Protected writes under way, whether or not their client is still there.
    pub fn settling(&self) -> &Presence {
        &self.settling
    }

    /// Requests being answered that need the ledger.
    pub fn protected(&self) -> &Presence {
        &self.protected
    }

    /// A certificate is in use that ends at this time.
    pub fn certificate_expiry(&self, certificate: &'static str, seconds: i64) {
        self.certificate_expiry.with_label_values(&[certificate]).set(seconds);
    }

    /// Certificates were read again: `applied`, or `refused` and the old ones kept.
    pub fn certificate_reload(&self, certificate: &'static str, result: &'static str) {
        self.certificate_reloads.with_label_values(&[certificate, result]).inc();
    }

    /// A line of the audit: `written`, or in the log instead because the disk did not take it
    /// (`failed`) or was too slow (`not-kept-up`).
    pub fn audit(&self, result: &'static str) {
        self.audit.with_label_values(&[result]).inc();
    }

    /// A newer process was started: `taken-over`, or `failed` and this one goes on.
    pub fn upgrade(&self, result: &'static str) {
        self.upgrades.with_label_values(&[result]).inc();
    }

    /// The Prometheus text format.
    pub fn render(&self) -> Vec<u8> {
        let tasks: usize = self.runtimes.iter().map(|r| r.metrics().num_alive_tasks()).sum();
        self.tasks.set(i64::try_from(tasks).unwrap_or(i64::MAX));
        for usual in self.usual.all() {
            usual.lock().unwrap_or_else(PoisonError::into_inner).flush();
        }
        self.shown.in_flight.set(self.in_flight.get());
        self.shown.settling.set(self.settling.get());
        self.shown.protected.set(self.protected.get());
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            tracing::error!(%error, "metrics could not be written");
        }
        out
    }
}

/// Registers a metric of the table above.
fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    // The names, helps and labels are constants of this file, each used once: a test makes them all.
    let metric = metric.expect("the table of metrics is well formed");
    registry.register(Box::new(metric.clone())).expect("no metric stands in the table twice");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_metrics_are_written_under_their_prefix() {
        let metrics = Metrics::new();
        metrics.request("blob", 206);
        metrics.refusal("immutable");
        metrics.dry_run_refusal("immutable");
        metrics.push("admitted", Duration::from_millis(3));
        metrics.ledger_call("claim", "ok", Duration::from_micros(90));
        let _one = metrics.in_flight().enter();
        metrics.refused_by(Some("releases"));
        metrics.bytes(1, 2);
        let text = String::from_utf8(metrics.render()).unwrap();
        let has = |line: &str| assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        has(r#"taglock_requests_total{route="blob",status="2xx"} 1"#);
        has("taglock_requests_in_flight 1");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("taglock_"), "{line}");
        }
    }

    #[test]
    fn what_threads_count_apart_is_in_the_sums() {
        let metrics = Metrics::new();
        for rounds in 1..=2 {
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        metrics.request("manifest-read-tag", 200);
                        metrics.request("manifest-read-digest", 200);
                        metrics.bytes(1, 20);
                        metrics.pull_by_memory("served", Duration::from_millis(2));
                    });
                }
            });
            let text = String::from_utf8(metrics.render()).unwrap();
            let has = |name: &str, count: u32| {
                let line = format!("{name} {count}");
                assert!(text.lines().any(|own| own == line), "{line}\n{text}");
            };
            has(r#"taglock_requests_total{route="manifest-read-tag",status="2xx"}"#, 3 * rounds);
            has(r#"taglock_requests_total{route="manifest-read-digest",status="2xx"}"#, 3 * rounds);
            has(r#"taglock_body_bytes_total{direction="in"}"#, 3 * rounds);
            has(r#"taglock_body_bytes_total{direction="out"}"#, 60 * rounds);
            has(r#"taglock_cache_total{result="hit"}"#, 3 * rounds);
            has(r#"taglock_protected_pull_seconds_count{outcome="served"}"#, 3 * rounds);
            let bucket = r#"taglock_protected_pull_seconds_bucket{outcome="served",le="0.0025"}"#;
            has(bucket, 3 * rounds);
        }
    }
}
