//! Traces: what a collector is sent, what the registry is told, and that neither holds anything up.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

use crate::fake::Fake;
use crate::harness::*;
use crate::http;
use crate::tls::Authority;
use crate::upgrade::Successors;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
/// What the log says of a collector that is away.
const WORD: &str = "traces can't be sent";

/// A stand-in that takes everything.
struct Collector {
    address: String,
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start() -> Self {
        let (listener, address) = listener();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&taken);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, kept) = (stream.unwrap(), Arc::clone(&kept));
                thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { address, taken }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything it was sent, as it came.
    fn raw(&self) -> Vec<Vec<u8>> {
        self.taken.lock().unwrap().clone()
    }

    fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let decode = |bytes: &Vec<u8>| {
            let body = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            ExportTraceServiceRequest::decode(&bytes[body..]).unwrap()
        };
        self.raw().iter().map(decode).collect()
    }

    fn spans(&self) -> Vec<Span> {
        let scopes = self.requests().into_iter().flat_map(|r| r.resource_spans);
        scopes.flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
    }

    /// The span of the request with this id.
    fn span(&self, id: &str) -> Span {
        let of = |span: &Span| text(&span.attributes, "taglock.request_id") == id;
        eventually(&format!("the span of {id}"), || self.spans().iter().any(of));
        let mut found = self.spans().into_iter().filter(of);
        let span = found.next().unwrap();
        assert!(found.next().is_none(), "{id} has two spans");
        span
    }
}

/// Keeps each request whole, head and body, until the connection ends.
fn serve(stream: TcpStream, kept: &Mutex<Vec<Vec<u8>>>) {
    let mut answer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if reader.read_exact(&mut byte).is_err() {
                return;
            }
            request.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
        assert!(head.starts_with("post /v1/traces "), "{head}");
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        request.extend(body);
        kept.lock().unwrap().push(request);
        let said = answer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        if said.is_err() {
            return;
        }
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|a| a.value.as_ref()).and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => panic!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Taglock that traces, with more in its environment.
fn tracing(registry: &str, collector: &str, more: &str, environment: &[(&str, &str)]) -> Taglock {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
    // No test is to wait for long.
    command.env("OTEL_BSP_SCHEDULE_DELAY", "100").envs(environment.iter().copied());
    Taglock::begin(command, |address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{registry}\"\n\
             [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n\
             [traces]\nendpoint = \"{collector}\"\n{more}\n{RULES}"
        )
    })
}

/// A request of a trace that its client has begun; the flags are its decision.
fn ask(taglock: &Taglock, method: &str, target: &str, id: &str, flags: &str) -> http::Answer {
    let parent = format!("00-{TRACE}-{PARENT}-{flags}");
    let headers = [
        ("X-Request-Id", id),
        ("Traceparent", &parent),
        ("Tracestate", "vendor=value"),
        ("Authorization", "Basic c2VjcmV0LXVzZXI6c2VjcmV0LXdvcmQ="),
        ("Cookie", "session=secret-cookie"),
        ("Content-Type", INDEX),
    ];
    let body = if method == "PUT" { manifest("one") } else { Vec::new() };
    http::request(&taglock.address, method, target, &headers, &body)
}

/// The headers of this name, of the requests that this call made the registry see.
fn told(fake: &Fake, name: &str, call: impl FnOnce()) -> Vec<String> {
    let before = fake.headers().len();
    call();
    let requests = fake.headers().split_off(before);
    assert!(!requests.is_empty(), "the registry was asked nothing");
    let values = requests.iter().map(|headers| {
        let prefix = format!("{name}: ");
        let mut values = headers.iter().filter_map(|h| h.strip_prefix(&prefix));
        let value = values.next().unwrap_or_default().to_owned();
        assert!(values.next().is_none(), "{headers:?}");
        value
    });
    values.collect()
}

#[test]
fn a_request_is_a_span_of_the_clients_trace_and_so_is_all_that_the_registry_is_asked() {
    let (fake, collector) = (Fake::start(), Collector::start());
    let taglock =
        tracing(&fake.address, &collector.url(), "", &[("OTEL_RESOURCE_ATTRIBUTES", "zone=a")]);
    for (method, target, id, route, outcome, status) in [
        ("GET", "/v2/other/tags/list?token=secret-query", "streamed", "v2-read", "", 200),
        ("PUT", "/v2/prod/app/manifests/v1", "push", "manifest-write", "admitted", 201),
        ("GET", "/v2/prod/app/manifests/v1", "pull", "manifest-read-tag", "served", 200),
        ("DELETE", "/v2/prod/app/manifests/v1", "delete", "manifest-delete", "refused", 405),
        ("GET", "/v2/prod/app/manifests/v2", "unknown", "manifest-read-tag", "relayed", 404),
    ] {
        let mut parents = Vec::new();
        if id == "delete" {
            // The rule alone says no.
            assert_eq!(ask(&taglock, method, target, id, "01").status, status);
        } else {
            parents = told(&fake, "traceparent", || {
                assert_eq!(ask(&taglock, method, target, id, "01").status, status, "{id}");
            });
        }
        let span = collector.span(id);
        assert_eq!(span.name, format!("{method} {route}"));
        assert_eq!(span.kind, SpanKind::Server as i32);
        assert_eq!(hex(&span.trace_id), TRACE, "{id}");
        assert_eq!(hex(&span.parent_span_id), PARENT, "{id}");
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
        let path = target.split('?').next().unwrap();
        let repository =
            target.split('/').skip(2).take_while(|part| !matches!(*part, "tags" | "manifests"));
        let repository = repository.collect::<Vec<_>>().join("/");
        for (key, value) in [
            ("http.request.method", method),
            ("http.response.status_code", &status.to_string()),
            ("http.route", route),
            ("url.path", path),
            ("url.scheme", "http"),
            ("client.address", "127.0.0.1"),
            ("taglock.repository", &repository),
            ("taglock.outcome", outcome),
        ] {
            assert_eq!(text(&span.attributes, key), value, "{id}: {key}: {:?}", span.attributes);
        }
        // Every single one is a child of this span.
        let child = format!("00-{TRACE}-{}-01", hex(&span.span_id));
        assert_ne!(hex(&span.span_id), PARENT);
        assert!(parents.iter().all(|parent| *parent == child), "{id}: {parents:?}");
    }
    let states = told(&fake, "tracestate", || {
        ask(&taglock, "PUT", "/v2/prod/app/manifests/v3", "states", "01");
    });
    assert!(states.iter().all(|state| state == "vendor=value"), "{states:?}");
    let resource = collector.requests().remove(0).resource_spans.remove(0).resource.unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), "taglock");
    assert_eq!(text(&resource.attributes, "service.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&resource.attributes, "zone"), "a");

    // Neither credentials nor queries.
    collector.span("states");
    for request in collector.raw() {
        let said = String::from_utf8_lossy(&request);
        for secret in ["secret", "c2VjcmV0", "Basic", "authorization", "token="] {
            assert!(!said.contains(secret), "{secret}: {said}");
        }
    }
}

#[test]
fn what_is_not_sampled_goes_on_as_such_and_is_not_sent() {
    let (fake, collector) = (Fake::start(), Collector::start());
    // Only those that clients want.
    let taglock = tracing(&fake.address, &collector.url(), "sample = 0.0", &[]);
    for target in ["/v2/other/tags/list", "/v2/prod/app/manifests/v1"] {
        let parents = told(&fake, "traceparent", || {
            ask(&taglock, "GET", target, "unwanted", "00");
        });
        let (start, own) = (format!("00-{TRACE}-"), format!("00-{TRACE}-{PARENT}-00"));
        for parent in parents {
            assert!(parent.starts_with(&start) && parent.ends_with("-00"), "{parent}");
            assert_ne!(parent, own, "taglock stands in between");
        }
    }
    let begun = told(&fake, "traceparent", || {
        http::request(&taglock.address, "GET", "/v2/", &[("X-Request-Id", "begun")], b"");
    });
    assert!(begun[0].len() == 55 && begun[0].ends_with("-00"), "{begun:?}");
    ask(&taglock, "GET", "/v2/", "wanted", "01");
    collector.span("wanted");
    let ids = collector.spans().into_iter().map(|s| text(&s.attributes, "taglock.request_id"));
    assert_eq!(ids.collect::<Vec<_>>(), ["wanted"]);
}

#[test]
fn a_failure_and_a_refusal_are_told_in_the_span() {
    let (fake, collector) = (Fake::start(), Collector::start());
    let taglock = tracing(&fake.address, &format!("{}/", collector.url()), "", &[]);
    assert_eq!(ask(&taglock, "GET", "/v2/../x?token=secret-query", "odd", "01").status, 400);
    let odd = collector.span("odd");
    assert_eq!(text(&odd.attributes, "taglock.refusal"), "malformed");
    assert_eq!(odd.status.unwrap_or_default().code, 0, "a client's mistake is none of ours");
    let gone = format!("127.0.0.1:{}", port());
    let taglock = tracing(&gone, &collector.url(), "", &[]);
    let status = ask(&taglock, "GET", "/v2/", "failed", "01").status;
    let failed = collector.span("failed");
    assert_eq!(text(&failed.attributes, "http.response.status_code"), status.to_string());
    assert_eq!(failed.status.unwrap().code, 2);
    assert!(!text(&failed.attributes, "error.type").is_empty());
}

#[test]
fn an_end_and_an_upgrade_send_what_is_left() {
    for signal in ["-TERM", "-USR2"] {
        let (fake, collector) = (Fake::start(), Collector::start());
        // By itself it would send nothing during this test.
        let never = [("OTEL_BSP_SCHEDULE_DELAY", "600000")];
        let taglock = tracing(&fake.address, &collector.url(), "", &never);
        let _successors = Successors(&taglock);
        ask(&taglock, "GET", "/v2/", "last", "01");
        assert!(collector.raw().is_empty());
        taglock.process.signal(signal);
        collector.span("last");
    }
}

/// Takes connections and says nothing.
fn hanging() -> (String, Receiver<TcpStream>) {
    let (listener, address) = listener();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            if sender.send(stream.unwrap()).is_err() {
                return;
            }
        }
    });
    (address, receiver)
}

#[test]
fn a_collector_that_is_dead_or_hangs_holds_up_neither_requests_nor_the_end() {
    let fake = Fake::start();
    let dead = format!("127.0.0.1:{}", port());
    let (hanging, connections) = hanging();
    let mut kept = Vec::new();
    for collector in [dead.clone(), hanging] {
        let mut taglock = tracing(&fake.address, &format!("http://{collector}"), "", &[]);
        ask(&taglock, "GET", "/v2/", "first", "01");
        if collector == dead {
            eventually("a word in the log", || taglock.process.log().contains(WORD));
        } else {
            // It is being sent right now, and will not be answered.
            kept.push(connections.recv_timeout(Duration::from_secs(60)).unwrap());
        }
        // More than may wait: what finds no room is dropped.
        let mut stream = http::connect(&taglock.address).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let request = http::bytes(&taglock.address, "GET", "/v2/", &[], b"");
        let started = Instant::now();
        for _ in 0..2500 {
            stream.write_all(&request).unwrap();
            assert_eq!(http::read_answer(&mut reader, false).unwrap().status, 200);
        }
        let took = started.elapsed();
        assert!(took < Duration::from_secs(60), "requests waited: {took:?}");
        drop((stream, reader));
        put(&taglock.address, "prod/app", "v1", &manifest("one"));
        let words = taglock.process.log().matches(WORD).count();
        assert!(words <= 1, "told {words} times");
        let started = Instant::now();
        taglock.process.signal("-TERM");
        assert_eq!(taglock.process.wait_for_end(), 0);
        let took = started.elapsed();
        // It would wait for 10 seconds and try again, but for the bound of 2.
        assert!(took < Duration::from_secs(8), "the end took {took:?}");
    }
}

#[test]
fn traces_go_over_tls_where_the_system_trusts_the_collector() {
    let (fake, collector) = (Fake::start(), Collector::start());
    let certificates = tempfile::tempdir().unwrap();
    let dir = certificates.path();
    let (known, other) = (Authority::new(), Authority::new());
    known.write(&dir.join("known.pem"));
    other.write(&dir.join("other.pem"));
    known.issue(dir, "server", "localhost");
    // A taglock that opens its path ends TLS for the collector.
    let front = Taglock::from_file(|address, admin, folder| {
        format!(
            "[listen]\naddress = \"{address}\"\n\
             tls = {{ certificate = \"{0}/server.pem\", key = \"{0}/server.key\" }}\n\
             [upstream]\nurl = \"{1}\"\nopen_paths = [\"/v1/\"]\n\
             [ledger]\npath = \"{folder}/ledger\"\n[admin]\naddress = \"{admin}\"\n{RULES}",
            dir.display(),
            collector.url()
        )
    });
    let url = format!("https://localhost:{}", front.address.rsplit(':').next().unwrap());
    for (roots, trusted) in [("known.pem", true), ("other.pem", false)] {
        let roots = dir.join(roots).display().to_string();
        let taglock = tracing(&fake.address, &url, "", &[("SSL_CERT_FILE", roots.as_str())]);
        ask(&taglock, "GET", "/v2/", &roots, "01");
        if trusted {
            collector.span(&roots);
        } else {
            eventually("a word in the log", || taglock.process.log().contains(WORD));
            let ids = collector.spans().into_iter();
            let mut ids = ids.map(|span| text(&span.attributes, "taglock.request_id"));
            assert!(ids.all(|id| id != roots));
        }
    }
}
