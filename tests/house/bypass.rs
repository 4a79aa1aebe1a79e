//! Nobody gets round: every spelling and trick of the corpus, sent as it is through taglock to a
//! registry, and to one behind nginx that decodes and cleans paths first, as Harbor's does.
//!
//! After each request the registry itself is asked whether the protected tag is still what it was.

mod answers;
mod corpus;
mod h2;
mod recorder;
mod smuggling;
mod targets;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

use crate::auth::nginx;
use crate::harness::*;
use crate::http::{self, try_raw};
use crate::tls::Authority;
pub use corpus::SPELLINGS;
use corpus::{CASES, filled};
pub use h2::{Field, Outcome, Request, exchange, exchange_frames};
pub use recorder::{Reading, Recorder};

/// A registry, what stands before it, and taglocks before that.
struct Shape {
    name: &'static str,
    registry: Registry,
    /// What taglock forwards to.
    front: String,
    _nginx: Option<(Process, TempDir)>,
}

impl Shape {
    fn direct() -> Self {
        let registry = Registry::start();
        let front = registry.address.clone();
        Self { name: "direct", registry, front, _nginx: None }
    }

    fn behind_nginx() -> Self {
        let registry = Registry::start();
        let folder = tempfile::tempdir().unwrap();
        let front = format!("127.0.0.1:{}", port());
        let locations = format!(
            "client_max_body_size 0; location /v2/ {{ proxy_pass http://{}/v2/; \
             proxy_set_header Host $http_host; }}",
            registry.address
        );
        let process = nginx(folder.path(), &front, &locations, "");
        Self { name: "nginx", registry, front, _nginx: Some((process, folder)) }
    }

    /// The registry's own tag is what it was, and no other one came to be, in any repository.
    fn unmoved(&self, what: &str) {
        let one = Some(digest(&manifest("one")));
        assert_eq!(tag_of(&self.registry.address, "prod/app", "v1"), one, "{}: {what}", self.name);
        let tags = self.registry.all_tags();
        let known = |tag: &String| KNOWN.contains(&tag.as_str());
        assert!(tags.iter().all(known), "{}: {what}: {tags:?}", self.name);
    }
}

/// The protected tag, and those of the two repositories whose names the corpus spells out.
const KNOWN: [&str; 3] = ["prod/app/blobs/uploads:v1", "prod/app/manifests/v1:v1", "prod/app:v1"];

/// A way to send one request with any target: method, target, headers and body.
type Send<'a> = dyn Fn(&str, &str, &[(&str, &str)], &[u8]) -> Option<u16> + 'a;

/// Every case of the corpus by one protocol. `None` for an answer stands for a request that was not
/// even one to the server, which is as good as 400.
fn run(shape: &Shape, protocol: &str, http1: bool, send: &Send<'_>) {
    let mut sent = 0;
    for case in CASES.iter().filter(|case| http1 || !case.http1_only) {
        // What is a push of its own must be the same each time.
        let body = manifest(case.name);
        let (target, headers) = case.made_for(&digest(&body));
        let what = format!("{protocol}, {}: {} {target} {headers:?}", case.name, case.method);
        let status = send(case.method, &target, &headers, &body);
        assert!(
            status == Some(case.status) || status.is_none() && case.status == 400,
            "{what}: {status:?}"
        );
        shape.unmoved(&what);
        sent += 1;
    }
    for (n, target) in SPELLINGS.iter().enumerate() {
        let body = manifest(&n.to_string());
        // The route is the same by any protocol.
        let methods = if http1 { &["PUT", "POST", "PATCH", "DELETE"][..] } else { &["PUT"] };
        for method in methods.iter().copied() {
            let what = format!("{protocol}: {method} {target}");
            let status = send(method, target, &[("Content-Type", INDEX)], &body);
            // The library of HTTP/2 drops a fragment, so the target is the plain one, and judged.
            let put = if !http1 && target.contains('#') { 409 } else { 400 };
            let expected = if method == "PUT" { [put, put] } else { [400, 405] };
            assert!(status.is_none_or(|status| expected.contains(&status)), "{what}: {status:?}");
            shape.unmoved(&what);
            sent += 1;
        }
    }
    assert!(sent > 150, "{sent}");
}

fn by_http1(address: &str) -> Box<Send<'_>> {
    Box::new(move |method, target, headers, body| {
        let bytes = http::bytes("x", method, target, headers, body);
        Some(try_raw(address, &bytes).unwrap_or_else(|e| panic!("{method} {target}: {e}")).status)
    })
}

fn by_http2<'a, S: Read + Write>(connect: impl Fn() -> S + 'a) -> Box<Send<'a>> {
    Box::new(move |method, target, headers, body| {
        let lower: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value)).collect();
        let host = lower.iter().find(|(name, _)| name == "host").map_or("x", |(_, host)| *host);
        let length = body.len().to_string();
        let mut fields: Vec<Field<'_>> = vec![
            (b":method", method.as_bytes()),
            (b":scheme", b"http"),
            (b":authority", host.as_bytes()),
            (b":path", target.as_bytes()),
        ];
        let others = lower.iter().filter(|(name, _)| name != "host");
        fields.extend(others.map(|(name, value)| (name.as_bytes(), value.as_bytes())));
        fields.push((b"content-length", length.as_bytes()));
        let request = Request { fields, body: body.to_vec(), trailers: Vec::new() };
        match h2::exchange(connect(), &request) {
            Outcome::Answer { status, .. } => Some(status),
            Outcome::Refused => None,
        }
    })
}

/// A taglock that speaks TLS, and how to connect to it for HTTP/2.
pub struct Tls {
    pub taglock: Taglock,
    config: Arc<ClientConfig>,
    _certificates: TempDir,
}

impl Tls {
    pub fn before(front: &str) -> Self {
        let authority = Authority::new();
        let certificates = tempfile::tempdir().unwrap();
        let dir = certificates.path();
        authority.issue(dir, "server", "localhost");
        let taglock = Taglock::from_file(|address, admin, folder| {
            format!(
                "[listen]\naddress = \"{address}\"\n\
                 tls = {{ certificate = \"{0}/server.pem\", key = \"{0}/server.key\" }}\n\
                 [upstream]\nurl = \"http://{front}\"\n[ledger]\npath = \"{folder}/ledger\"\n\
                 [admin]\naddress = \"{admin}\"\n{RULES}",
                dir.display(),
            )
        });
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { taglock, config: Arc::new(config), _certificates: certificates }
    }

    pub fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        self.connect_with(Arc::clone(&self.config))
    }

    pub fn connect_http1(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        self.connect_with(Arc::new(config))
    }

    fn connect_with(&self, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(config, name).unwrap();
        StreamOwned::new(connection, http::connect(&self.taglock.address).unwrap())
    }
}

fn the_corpus_moves_nothing(shape: &Shape) {
    let plain = Taglock::before(&shape.front);
    assert_eq!(put(&plain.address, "prod/app", "v1", &manifest("one")).status, 201);
    run(shape, "HTTP/1.1", true, &*by_http1(&plain.address));
    run(shape, "h2c", false, &*by_http2(|| http::connect(&plain.address).unwrap()));
    forged_http2(shape, "h2c", || http::connect(&plain.address).unwrap());
    let tls = Tls::before(&shape.front);
    run(shape, "h2", false, &*by_http2(|| tls.connect()));
    forged_http2(shape, "h2", || tls.connect());
    assert_eq!(shape.registry.all_tags(), KNOWN);
    // The proxies are as well as ever.
    assert_eq!(put(&plain.address, "prod/app", "v1", &manifest("one")).status, 201);
}

#[test]
fn the_corpus_moves_no_tag_of_a_registry() {
    the_corpus_moves_nothing(&Shape::direct());
}

#[test]
fn the_corpus_moves_no_tag_behind_nginx() {
    the_corpus_moves_nothing(&Shape::behind_nginx());
}

/// Pulls by every spelling, when somebody has moved the tag in the registry itself.
#[test]
fn no_spelling_pulls_another_image_than_the_tag_is_bound_to() {
    for shape in [Shape::direct(), Shape::behind_nginx()] {
        let taglock = Taglock::before(&shape.front);
        assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
        put(&shape.registry.address, "prod/app", "v1", &manifest("moved"));
        let (mut pulled, two) = (0, digest(&manifest("moved")));
        let plain = CASES.iter().map(|case| case.target).filter(|t| !t.contains("{D}"));
        for target in SPELLINGS.iter().copied().chain(plain) {
            for method in ["GET", "HEAD"] {
                let bytes = http::bytes("x", method, target, &[("Accept", INDEX)], b"");
                let answer = try_raw(&taglock.address, &bytes).unwrap();
                let what = format!("{}: {method} {target}: {answer:?}", shape.name);
                let all = format!("{:?} {}", answer.headers, answer.text());
                assert!(!all.contains(&two) && !all.contains("moved"), "{what}");
                pulled += usize::from(answer.status == 200 && answer.text().contains("one"));
            }
        }
        assert!(pulled > 0, "{}: not even the plain one is pulled", shape.name);
    }
}

/// The same requests without taglock: the corpus has teeth.
#[test]
fn the_corpus_moves_tags_without_taglock() {
    for (shape, least) in [(Shape::direct(), 8), (Shape::behind_nginx(), 13 + 5)] {
        let mut moved = Vec::new();
        let plain = CASES.iter().filter(|case| case.method == "PUT").map(|case| case.target);
        for (n, target) in SPELLINGS.iter().copied().chain(plain).enumerate() {
            put(&shape.registry.address, "prod/app", "v1", &manifest("before"));
            let body = manifest(&n.to_string());
            let target = filled(target, &digest(&body));
            let bytes = http::bytes("x", "PUT", &target, &[("Content-Type", INDEX)], &body);
            let _ = try_raw(&shape.front, &bytes);
            if tag_of(&shape.registry.address, "prod/app", "v1") == Some(digest(&body)) {
                moved.push(target);
            }
        }
        moved.sort();
        moved.dedup();
        eprintln!("{}: {} requests move the tag: {moved:#?}", shape.name, moved.len());
        assert!(moved.len() >= least, "{}: only {moved:?}", shape.name);
    }
}

/// What HTTP/2 forbids, or what would become another request in HTTP/1.1.
fn forged_http2<S: Read + Write>(shape: &Shape, protocol: &str, connect: impl Fn() -> S) {
    const V1: &[u8] = b"/v2/prod/app/manifests/v1";
    const UPLOAD: &[u8] = b"/v2/other/blobs/uploads/none";
    const KIND: Field<'static> = (b"content-type", INDEX.as_bytes());
    const INJECTED: &[u8] =
        b"a\r\nContent-Length: 0\r\n\r\nPUT /v2/prod/app/manifests/v1 HTTP/1.1\r\nHost: x\r\nX: b";
    let body = manifest("forged");
    let (whole, short, long) =
        (body.len().to_string(), (body.len() - 1).to_string(), (body.len() + 1).to_string());
    let whole: Field<'_> = (b"content-length", whole.as_bytes());
    let (put, http, x): (Field<'_>, Field<'_>, Field<'_>) =
        ((b":method", b"PUT"), (b":scheme", b"http"), (b":authority", b"x"));
    let path: Field<'_> = (b":path", V1);
    let upload: Field<'_> = (b":path", UPLOAD);
    let smuggled = [b"PUT ", V1, b" HTTP/1.1\r\nHost: x\r\n\r\n"].concat();
    let cases: Vec<(&str, Vec<Field<'_>>)> = vec![
        ("two paths", vec![put, http, x, upload, path, KIND, whole]),
        ("two methods", vec![(b":method", b"GET"), put, http, x, path, KIND, whole]),
        ("two authorities", vec![put, http, x, (b":authority", b"y"), path, KIND, whole]),
        ("a late path", vec![put, http, x, KIND, whole, path]),
        ("no path", vec![put, http, x, KIND, whole]),
        ("an empty path", vec![put, http, x, (b":path", b""), KIND, whole]),
        ("another host", vec![put, http, x, path, (b"host", b"y"), KIND, whole]),
        ("two hosts", vec![put, http, path, (b"host", b"x"), (b"host", b"x"), KIND, whole]),
        ("no host", vec![put, http, path, KIND, whole]),
        ("a user", vec![put, http, (b":authority", b"u@x"), path, KIND, whole]),
        ("a path in the host", vec![put, http, (b":authority", b"x/v2"), path, KIND, whole]),
        (
            "a scheme that is a target",
            vec![put, (b":scheme", b"http://x/v2/prod/app/manifests/v1?"), x, upload, KIND, whole],
        ),
        (
            "a version in the path",
            vec![
                put,
                http,
                x,
                (b":path", b"/v2/prod/app/manifests/v1 HTTP/1.1\r\nX: "),
                KIND,
                whole,
            ],
        ),
        (
            "a blank in the path",
            vec![
                put,
                http,
                x,
                (b":path", b"/v2/other/blobs/uploads/a /v2/prod/app/manifests/v1"),
                KIND,
                whole,
            ],
        ),
        (
            "a NUL in the path",
            vec![put, http, x, (b":path", b"/v2/prod/app/manifests/v1\0"), KIND, whole],
        ),
        (
            "a request in the method",
            vec![
                (b":method", b"PUT /v2/prod/app/manifests/v1 HTTP/1.1\r\nX:"),
                http,
                x,
                upload,
                KIND,
                whole,
            ],
        ),
        ("a request in a value", vec![put, http, x, upload, (b"x-a", INJECTED), whole]),
        (
            "a request in the authority",
            vec![put, http, (b":authority", INJECTED), upload, KIND, whole],
        ),
        ("a header in a name", vec![put, http, x, upload, (b"x: a\r\nx-b", b"c"), whole]),
        (
            "a name with a colon",
            vec![put, http, x, upload, (b"transfer-encoding:", b"chunked"), whole],
        ),
        (
            "a name with a blank",
            vec![put, http, x, upload, (b"transfer-encoding ", b"chunked"), whole],
        ),
        ("a name in capitals", vec![put, http, x, path, (b"Content-Type", KIND.1), whole]),
        ("an unknown pseudo-header", vec![put, http, x, path, (b":x", b"y"), KIND, whole]),
        ("a status", vec![put, http, x, path, (b":status", b"200"), KIND, whole]),
        ("a coding", vec![put, http, x, upload, (b"transfer-encoding", b"chunked"), whole]),
        ("a coding alone", vec![put, http, x, upload, (b"transfer-encoding", b"chunked")]),
        ("a connection", vec![put, http, x, upload, (b"connection", b"content-length"), whole]),
        ("an upgrade", vec![put, http, x, path, (b"upgrade", b"h2c"), KIND, whole]),
        ("te", vec![put, http, x, path, (b"te", b"gzip"), KIND, whole]),
        (
            "a length too short",
            vec![put, http, x, path, KIND, (b"content-length", short.as_bytes())],
        ),
        ("a length too long", vec![put, http, x, path, KIND, (b"content-length", long.as_bytes())]),
        (
            "no length of an upload, and another one",
            vec![put, http, x, upload, (b"content-length", b"0")],
        ),
        ("two lengths", vec![put, http, x, path, KIND, whole, (b"content-length", b"0")]),
        ("a signed length", vec![put, http, x, path, KIND, (b"content-length", b"+5")]),
        ("a tunnel", vec![(b":method", b"CONNECT"), x]),
        (
            "a tunnel with a protocol",
            vec![(b":method", b"CONNECT"), (b":protocol", b"websocket"), http, x, path],
        ),
    ];
    for (name, fields) in cases {
        for body in [&body, &smuggled] {
            let request = Request { fields: fields.clone(), body: body.clone(), trailers: vec![] };
            let outcome = h2::exchange(connect(), &request);
            let what = format!("{protocol}: {name}: {outcome:?}");
            match outcome {
                Outcome::Refused => {}
                // Blobs may be sent anywhere; a length that ends early leaves nothing to send on.
                Outcome::Answer { status, .. } => assert!((400..=431).contains(&status), "{what}"),
            }
            shape.unmoved(&what);
        }
    }
    // Trailers are no headers: what they say of the request is not taken.
    let fields = vec![put, http, x, path, whole];
    let trailers = vec![KIND, (&b"x-http-method-override"[..], &b"PUT"[..])];
    let outcome = h2::exchange(connect(), &Request { fields, body, trailers });
    assert!(matches!(outcome, Outcome::Answer { status: 415, .. }), "{protocol}: {outcome:?}");
    shape.unmoved("trailers");
}
