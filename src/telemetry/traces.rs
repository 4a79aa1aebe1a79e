//! Traces, over OTLP: a span for each request, in the trace that the client began or in a new one.
//!
//! Spans are gathered and sent by a thread of their own. One for which there is no room is dropped:
//! no request ever waits for a collector.

mod collector;

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::name::RepositoryName;
use collector::Collector;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// How long an end waits for the spans that are left.
const FLUSH: Duration = Duration::from_secs(2);
/// How much of a path is told.
const PATH: usize = 512;

/// Where traces go, and how many.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The URL that batches are sent to.
    pub endpoint: String,
    /// Of the traces that begin here, from 0 to 1. Those that clients began are theirs to decide.
    pub sample: f64,
}

/// Begins the spans, and sends them.
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

impl Tracer {
    /// # Errors
    /// Why nothing can be sent there.
    pub fn to(output: &Output) -> Result<Self, String> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::at(&output.endpoint)?)
            .with_endpoint(output.endpoint.clone())
            // Whatever the environment says: nothing else was built in.
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|e| e.to_string())?;
        let begun_here = Sampler::TraceIdRatioBased(output.sample);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(begun_here)))
            .with_resource(resource())
            .build();
        let tracer = provider.tracer("taglock");
        Ok(Self { provider, tracer, propagator: TraceContextPropagator::new() })
    }

    /// A request has come, with these headers.
    pub fn begin(&self, client: &HeaderMap) -> Trace {
        let extractor = HeaderExtractor(client);
        let parent = self.propagator.extract_with_context(&Context::new(), &extractor);
        let builder = SpanBuilder::from_name("request").with_kind(SpanKind::Server);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = Context::new().with_span(span);
        let mut onwards = HeaderMap::new();
        self.propagator.inject_context(&context, &mut HeaderInjector(&mut onwards));
        if onwards.get(TRACESTATE).is_some_and(http::HeaderValue::is_empty) {
            onwards.remove(TRACESTATE);
        }
        Trace { context, onwards }
    }

    /// Sends what has ended, for a while at most. Nothing is traced any more.
    pub fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last traces may be lost");
        }
    }
}

/// What the spans are of. The environment may say otherwise, as it does to other programs.
fn resource() -> Resource {
    let named = std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", "taglock"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match named {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Whether a header says which trace a request belongs to.
pub fn is_trace_context(name: &HeaderName) -> bool {
    *name == TRACEPARENT || *name == TRACESTATE
}

/// The span of one request. It ends with `end`, or when it is dropped.
pub struct Trace {
    context: Context,
    onwards: HeaderMap,
}

/// What is known of a request when it has ended. Nothing here may be a credential: no header, no query.
pub struct Seen<'a> {
    pub id: &'a str,
    pub client: std::net::IpAddr,
    pub method: &'a Method,
    pub scheme: &'static str,
    pub path: &'a str,
    pub route: &'static str,
    /// `None` where nothing was answered.
    pub status: Option<u16>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub error: Option<&'a str>,
}

impl Trace {
    /// What requests to the registry carry in place of the client's own.
    pub fn onwards(&self) -> &HeaderMap {
        &self.onwards
    }

    pub fn repository(&self, repository: &RepositoryName) {
        self.tell("taglock.repository", || repository.to_string());
    }

    /// What the judge said, as in the metrics.
    pub fn outcome(&self, label: &'static str) {
        self.tell("taglock.outcome", || label);
    }

    /// Why taglock itself refused it, as in the metric.
    pub fn refused(&self, reason: &'static str) {
        self.tell("taglock.refusal", || reason);
    }

    fn tell<V: Into<Value>>(&self, key: &'static str, value: impl FnOnce() -> V) {
        let span = self.context.span();
        if span.is_recording() {
            span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// The request has ended. Names are those of OpenTelemetry's conventions for HTTP.
    pub fn end(&self, seen: &Seen<'_>) {
        let span = self.context.span();
        if span.is_recording() {
            let method = known(seen.method);
            let shown = if method == "_OTHER" { "HTTP" } else { method };
            span.update_name(format!("{shown} {}", seen.route));
            let path: String = seen.path.chars().take(PATH).collect();
            span.set_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", seen.route),
                KeyValue::new("url.scheme", seen.scheme),
                KeyValue::new("url.path", path),
                KeyValue::new("client.address", seen.client.to_string()),
                KeyValue::new("http.request.body.size", size(seen.bytes_in)),
                KeyValue::new("http.response.body.size", size(seen.bytes_out)),
                KeyValue::new("taglock.request_id", seen.id.to_owned()),
            ]);
            if let Some(status) = seen.status {
                span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            }
            let failed = seen.status.is_none_or(|status| status >= 500) || seen.error.is_some();
            if failed {
                let kind = match (seen.error, seen.status) {
                    (Some(error), _) => error.to_owned(),
                    (None, Some(status)) => status.to_string(),
                    (None, None) => "unanswered".to_owned(),
                };
                span.set_attribute(KeyValue::new("error.type", kind));
                span.set_status(Status::error(""));
            }
        }
        span.end();
    }
}

/// The methods that may be told, a closed set.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] =
        ["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0";

    /// One that reaches nobody; nothing is sent before it is dropped.
    fn tracer(sample: f64) -> Tracer {
        Tracer::to(&Output { endpoint: "http://127.0.0.1:9/v1/traces".into(), sample }).unwrap()
    }

    /// What goes on of these headers.
    fn onwards(sample: f64, headers: &[(&'static str, String)]) -> HeaderMap {
        let mut client = HeaderMap::new();
        for (name, value) in headers {
            client.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let tracer = tracer(sample);
        let trace = tracer.begin(&client);
        let onwards = trace.onwards().clone();
        tracer.end();
        onwards
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
        headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[test]
    fn the_clients_trace_and_its_decision_go_on_under_a_new_parent() {
        // Its decision, not the ratio's.
        for (flag, sample) in [("1", 0.0), ("0", 1.0)] {
            let parent = format!("{PARENT}{flag}");
            let state = ("tracestate", "vendor=value".to_owned());
            let sent = onwards(sample, &[("traceparent", parent.clone()), state]);
            let child = text(&sent, "traceparent");
            assert_eq!(child[..36], parent[..36], "the trace's id");
            assert_ne!(child[36..52], parent[36..52], "the parent's id");
            assert_eq!(child[52..], parent[52..], "the flags");
            assert_eq!(text(&sent, "tracestate"), "vendor=value");
        }
    }

    #[test]
    fn a_trace_begins_here_where_the_client_sent_none_that_is_sound() {
        for sent in
            [None, Some("00-0-0-01"), Some("x"), Some("ff-4bf92f3577b34da6a3ce929d0e0e4736")]
        {
            let state = ("tracestate", "vendor=value".to_owned());
            let mut headers = vec![state];
            headers.extend(sent.map(|sent| ("traceparent", sent.to_owned())));
            for (sample, flags) in [(1.0, "-01"), (0.0, "-00")] {
                let sent = onwards(sample, &headers);
                let begun = text(&sent, "traceparent");
                assert!(begun.len() == 55 && begun.ends_with(flags), "{begun}");
                // Without its traceparent it means nothing.
                assert!(sent.get("tracestate").is_none(), "{sent:?}");
            }
        }
    }

    #[test]
    fn methods_are_a_closed_set() {
        assert_eq!(known(&Method::PUT), "PUT");
        assert_eq!(known(&Method::from_bytes(b"SECRET").unwrap()), "_OTHER");
    }
}
