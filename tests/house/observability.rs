//! Metrics, dashboards, alerts and their documentation agree; the access log.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::harness::*;
use crate::http;

/// All words of a text that begin like a metric's name.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let like = |word: &&str| word.strip_prefix("taglock_").is_some_and(|rest| !rest.is_empty());
    words.filter(like).map(str::to_owned).collect()
}

/// The table of metrics in the source.
fn existing() -> BTreeSet<String> {
    let source = fs::read_to_string("src/telemetry/metrics.rs").unwrap();
    let names = named(source.split("#[cfg(test)]").next().unwrap());
    assert!(names.len() > 15, "{names:?}");
    names
}

/// A name without what a histogram's series have behind it.
fn family(name: &str, existing: &BTreeSet<String>) -> String {
    let parts = ["_bucket", "_count", "_sum"].iter().filter_map(|part| name.strip_suffix(part));
    let mut whole = parts.filter(|whole| existing.contains(*whole));
    whole.next().unwrap_or(name).to_owned()
}

#[test]
fn dashboard_and_alerts_use_only_metrics_that_exist() {
    let existing = existing();
    for file in ["ops/grafana.json", "ops/alerts.yaml"] {
        let text = fs::read_to_string(file).unwrap();
        let used: BTreeSet<_> = named(&text).iter().map(|name| family(name, &existing)).collect();
        assert!(used.len() > 5, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&existing).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let dashboard = fs::read_to_string("ops/grafana.json").unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    succeed(Command::new("promtool").args(["check", "rules", "ops/alerts.yaml"]));
}

#[test]
fn the_documentation_names_each_metric_and_each_alert_and_no_other() {
    let text = fs::read_to_string("docs/observability.md").unwrap();
    let existing = existing();
    let rows: BTreeSet<_> = text.lines().filter_map(|l| l.strip_prefix("| `taglock_")).collect();
    let rows = rows.iter().map(|row| format!("taglock_{}", row.split('`').next().unwrap()));
    assert_eq!(rows.collect::<BTreeSet<_>>(), existing);
    let alerts = fs::read_to_string("ops/alerts.yaml").unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(text.contains(&format!("| `{alert}` |")), "{alert}");
    }
    // Every field that a line of the audit may have.
    let source = fs::read_to_string("src/telemetry/audit/line.rs").unwrap();
    let fields =
        source.split("pub(super) struct Line {").nth(1).unwrap().split("\n}").next().unwrap();
    for line in fields.lines().map(str::trim).filter(|line| line.ends_with(',')) {
        let field = line.split(':').next().unwrap();
        assert!(text.contains(&format!("| `{field}` |")), "{field}");
    }
}

#[test]
fn prometheus_finds_nothing_wrong_with_the_metrics() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let value = |line: &str| taglock.metric(line);
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    put(&taglock.address, "prod/app", "v1", &manifest("two"));
    http::request(&taglock.address, "DELETE", "/v2/prod/app/manifests/v1", &[], b"");
    tag_of(&taglock.address, "prod/app", "v1");
    http::get(&taglock.address, "/v2/../x");
    taglock.rests();
    assert_eq!(value("taglock_rule_refusals_total{rule=\"releases\"} "), 2.0);
    let body = manifest("one").len() as f64;
    assert!(value("taglock_body_bytes_total{direction=\"in\"} ") >= 2.0 * body);
    assert!(value("taglock_body_bytes_total{direction=\"out\"} ") > 0.0);
    let claims = "taglock_ledger_call_seconds_count{operation=\"claim\",result=\"ok\"} ";
    assert_eq!(value(claims), 1.0);

    // What the push has sealed is remembered.
    assert_eq!(value("taglock_cache_total{result=\"hit\"} "), 1.0);

    let text = http::get(&taglock.admin, "/metrics").text();
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap_or_else(|e| panic!("promtool: {e}"));
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    // No repository, tag, digest, or address is a label.
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        for word in ["prod", "v1", "sha256", "127.0.0.1"] {
            assert!(!line.contains(word), "{line}");
        }
    }
}

#[test]
fn the_access_log_has_a_line_a_request_unless_it_is_off() {
    let registry = Registry::start();
    let line = |log: &str| {
        let taglock = Taglock::with(&registry.address, "", &format!("[log]\n{log}\n{RULES}"));
        let headers = [("X-Request-Id", "build-7")];
        http::request(&taglock.address, "GET", "/v2/?secret=1", &headers, b"");
        let done = "taglock_requests_total{route=\"v2-read\",status=\"2xx\"} ";
        eventually("the request's end", || taglock.metric(done) == 1.0);
        let log = taglock.process.log();
        log.lines().find(|line| line.contains("taglock::access")).map(str::to_owned)
    };
    let told = line("format = \"json\"").unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    for (field, value) in [
        ("id", "build-7"),
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/v2/"),
        ("route", "v2-read"),
    ] {
        assert_eq!(told[field], value, "{told}");
    }
    assert_eq!(
        (&told["status"], &told["bytes_in"], &told["bytes_out"]),
        (&200.into(), &0.into(), &2.into())
    );
    assert!(told["ms"].is_u64(), "{told}");
    assert_eq!(line("access = false"), None);
}
