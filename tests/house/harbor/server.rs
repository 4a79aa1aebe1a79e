//! A stand-in for Harbor: its API over a real distribution. As Harbor's core does, it keeps tags in a
//! table of its own, asks distribution for manifests by digest alone, takes a session's cookie for
//! its API, and answers HEAD below `/v2/` without `Authorization` with 401.
//!
//! It polices: a test fails when a tag below `prod/` ever moves from one artifact to another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::prelude::*;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::fake::Fault;
use crate::harness::{Registry, digest, listener};
use crate::http;

/// May do everything; her session needs a token for what is no read.
pub const ALICE: &[(&str, &str)] = &[("Cookie", "sid=alice"), ("X-Harbor-CSRF-Token", "t")];
/// The same by her password.
pub const ALICE_BY_PASSWORD: &[(&str, &str)] = &[("Authorization", "Basic YWxpY2U6cHc=")];
/// May read.
pub const BOB: &[(&str, &str)] = &[("Cookie", "sid=bob"), ("X-Harbor-CSRF-Token", "t")];
/// Is no member of the project.
pub const EVE: &[(&str, &str)] = &[("Cookie", "sid=eve"), ("X-Harbor-CSRF-Token", "t")];
pub const NOBODY: &[(&str, &str)] = &[];

struct Plan {
    method: &'static str,
    part: String,
    fault: Fault,
}

type Named = (String, String);

#[derive(Default)]
struct State {
    /// Of a repository.
    artifacts: BTreeSet<Named>,
    tags: BTreeMap<Named, String>,
    /// From an artifact to what has it for its subject.
    accessories: BTreeMap<String, Vec<String>>,
    plans: Vec<Plan>,
    seen: Vec<String>,
    violations: Vec<String>,
}

pub struct Harbor {
    pub address: String,
    registry: Registry,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

struct Asked {
    method: String,
    path: String,
    query: String,
    user: Option<&'static str>,
    /// By a cookie, without the token that guards against other sites.
    forged: bool,
    by_header: bool,
    media_type: String,
    body: Bytes,
}

struct Told {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Harbor {
    pub fn start() -> Self {
        let registry = Registry::start();
        let (listener, address) = listener();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::<Mutex<State>>::default();
        let (shared, behind) = (Arc::clone(&state), registry.address.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, behind) = (Arc::clone(&shared), behind.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        answer(Arc::clone(&state), behind.clone(), request)
                    });
                    // A cut is an error of the connection, and wanted.
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, registry, state, _runtime: runtime }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next request of this method whose path has `part` goes wrong.
    pub fn plan(&self, method: &'static str, part: &str, fault: Fault) {
        self.state().plans.push(Plan { method, part: part.into(), fault });
    }

    pub fn recover(&self) {
        self.state().plans.clear();
    }

    pub fn tag(&self, repository: &str, tag: &str) -> Option<String> {
        self.state().tags.get(&(repository.into(), tag.into())).cloned()
    }

    /// Behind everybody's back: an artifact and its tags.
    pub fn store(&self, repository: &str, manifest: &[u8], tags: &[&str]) -> String {
        let put =
            crate::harness::put(&self.registry.address, repository, &digest(manifest), manifest);
        assert_eq!(put.status, 201, "{put:?}");
        let mut state = self.state();
        state.artifacts.insert((repository.into(), digest(manifest)));
        for tag in tags {
            state.tags.insert((repository.into(), (*tag).into()), digest(manifest));
        }
        digest(manifest)
    }

    pub fn attach(&self, subject: &str, accessory: &str) {
        self.state().accessories.entry(subject.into()).or_default().push(accessory.into());
    }

    /// The writes so far, as `METHOD path`.
    pub fn writes(&self) -> Vec<String> {
        let reads = |line: &&String| !line.starts_with("GET") && !line.starts_with("HEAD");
        self.state().seen.iter().filter(reads).cloned().collect()
    }
}

impl Drop for Harbor {
    fn drop(&mut self) {
        let violations = std::mem::take(&mut self.state().violations);
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "Harbor's tags moved: {violations:?}");
        }
    }
}

type Reply = Result<Response<Full<Bytes>>, std::io::Error>;

async fn answer(state: Arc<Mutex<State>>, behind: String, request: Request<Incoming>) -> Reply {
    let header = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
    let session = header("cookie").and_then(|cookie| {
        let known = ["alice", "bob", "eve"];
        known.into_iter().find(|user| cookie.contains(&format!("sid={user}")))
    });
    let by_header = header("authorization").and_then(|value| {
        let text = BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
        (text == b"alice:pw").then_some("alice")
    });
    let read = matches!(request.method().as_str(), "GET" | "HEAD");
    let asked = Asked {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        user: by_header.or(session),
        forged: by_header.is_none() && !read && header("x-harbor-csrf-token").is_none(),
        by_header: header("authorization").is_some(),
        media_type: header("content-type").unwrap_or_default(),
        body: request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes(),
    };
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(format!("{} {}", asked.method, asked.path));
        let fits = |plan: &Plan| plan.method == asked.method && asked.path.contains(&plan.part);
        let found = state.plans.iter().position(fits);
        found.map(|n| state.plans.remove(n).fault)
    };
    let act =
        async || tokio::task::spawn_blocking(move || act(&state, &behind, &asked)).await.unwrap();
    let cut = || Err(std::io::ErrorKind::ConnectionAborted.into());
    let plain = |status| Ok(response(Told { status, headers: Vec::new(), body: Vec::new() }));
    match fault {
        None => Ok(response(act().await)),
        Some(Fault::Answer(status, headers, body)) if !body.is_empty() => {
            Ok(response(Told { status, headers, body: body.into() }))
        }
        Some(Fault::Answer(status, ..)) => plain(status),
        Some(Fault::DoneBut(status)) => {
            act().await;
            plain(status)
        }
        Some(Fault::CutBefore) => cut(),
        Some(Fault::CutAfter) => {
            act().await;
            cut()
        }
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            Ok(response(act().await))
        }
        Some(fault) => {
            // Late, when the client has given up.
            if matches!(fault, Fault::HangAfter) {
                act().await;
            }
            tokio::time::sleep(Duration::from_secs(600)).await;
            cut()
        }
    }
}

fn response(told: Told) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(told.status);
    for (name, value) in told.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(told.body.into())).unwrap()
}

/// As Harbor words its errors.
fn no(status: u16, code: &str) -> Told {
    told(status, &json!({ "errors": [{ "code": code, "message": code.to_lowercase() }] }))
}

fn told(status: u16, body: &Value) -> Told {
    let headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
    Told { status, headers, body: body.to_string().into_bytes() }
}

fn empty(status: u16) -> Told {
    Told { status, headers: vec![], body: vec![] }
}

fn act(state: &Mutex<State>, behind: &str, asked: &Asked) -> Told {
    if asked.forged && asked.user.is_some() {
        return no(403, "FORBIDDEN");
    }
    let read = matches!(asked.method.as_str(), "GET" | "HEAD");
    let allowed = match (asked.user, read) {
        (Some("alice"), _) | (Some("bob"), true) => None,
        (Some(_), _) => Some(no(403, "FORBIDDEN")),
        (None, _) => Some(no(401, "UNAUTHORIZED")),
    };
    if let Some(rest) = asked.path.strip_prefix("/v2/") {
        // Its own client's HEAD, even of somebody with a session.
        if allowed.is_some() || (asked.method == "HEAD" && !asked.by_header) {
            let mut no = no(401, "UNAUTHORIZED");
            no.headers.push(("www-authenticate", "Basic realm=\"harbor\"".to_owned()));
            return no;
        }
        return registry(state, behind, asked, rest);
    }
    if let Some(no) = allowed {
        return no;
    }
    let words: Vec<_> = asked.path.split('/').skip(1).collect();
    let ["api", "v2.0", "projects", project, rest @ ..] = &words[..] else {
        return no(404, "NOT_FOUND");
    };
    let Some(name) = rest.get(1) else {
        let mut state = state.lock().unwrap();
        let within = |(repository, _): &Named| repository.starts_with(&format!("{project}/"));
        return match asked.method.as_str() {
            "DELETE" if state.artifacts.iter().any(within) => no(412, "PRECONDITION"),
            "DELETE" => {
                state.tags.retain(|named, _| !within(named));
                empty(200)
            }
            _ => no(404, "NOT_FOUND"),
        };
    };
    assert!(name.contains("%252F") || !name.contains('%'), "{name}");
    let repository = format!("{project}/{}", name.replace("%252F", "/"));
    let mut state = state.lock().unwrap();
    api(&mut state, behind, asked, (&repository, &rest[2..]))
}

/// What it does to its tables.
fn api(
    state: &mut State,
    behind: &str,
    asked: &Asked,
    (repository, rest): (&str, &[&str]),
) -> Told {
    let find = |state: &State, reference: &str| {
        let digest = match reference.contains(':') {
            true => Some(reference.to_owned()),
            false => state.tags.get(&(repository.to_owned(), reference.to_owned())).cloned(),
        };
        digest.filter(|digest| state.artifacts.contains(&(repository.to_owned(), digest.clone())))
    };
    match (asked.method.as_str(), rest) {
        ("POST", ["artifacts"]) => return copy(state, behind, asked, repository),
        (method, []) => {
            if !state.artifacts.iter().any(|(owner, _)| owner == repository) {
                return no(404, "NOT_FOUND");
            }
            if method == "DELETE" {
                state.artifacts.retain(|(owner, _)| owner != repository);
                state.tags.retain(|(owner, _), _| owner != repository);
            }
            return told(200, &json!({ "name": repository }));
        }
        _ => {}
    }
    let Some(digest) = rest.get(1).and_then(|reference| find(state, reference)) else {
        return no(404, "NOT_FOUND");
    };
    let of = |state: &State, digest: &str| -> Vec<String> {
        let own = state.tags.iter().filter(|((owner, _), d)| owner == repository && *d == digest);
        own.map(|((_, tag), _)| tag.clone()).collect()
    };
    match (asked.method.as_str(), &rest[2..]) {
        ("GET", []) => told(200, &json!({ "digest": digest, "id": 1, "tags": null })),
        ("GET", ["tags"]) => {
            let tags = of(state, &digest).into_iter().map(|name| json!({ "name": name }));
            page(asked, tags.collect())
        }
        ("GET", ["accessories"]) => {
            let own = state.accessories.get(&digest).cloned().unwrap_or_default();
            page(asked, own.into_iter().map(|digest| json!({ "digest": digest })).collect())
        }
        ("DELETE", []) => {
            let mut going = vec![digest];
            while let Some(digest) = going.pop() {
                going.extend(state.accessories.remove(&digest).unwrap_or_default());
                for tag in of(state, &digest) {
                    state.tags.remove(&(repository.to_owned(), tag));
                }
                state.artifacts.remove(&(repository.to_owned(), digest));
            }
            empty(200)
        }
        ("POST", ["tags"]) => {
            // As Go reads it: the first value, keys in any case, the last of several.
            let mut values = serde_json::Deserializer::from_slice(&asked.body).into_iter::<Value>();
            let Some(Ok(Value::Object(fields))) = values.next() else {
                return no(422, "UNPROCESSABLE");
            };
            let named = fields.iter().rfind(|(key, _)| key.eq_ignore_ascii_case("name"));
            let Some(tag) = named.and_then(|(_, name)| name.as_str()) else {
                return no(422, "UNPROCESSABLE");
            };
            let key = (repository.to_owned(), tag.to_owned());
            if state.tags.contains_key(&key) {
                return no(409, "CONFLICT");
            }
            state.tags.insert(key, digest);
            empty(201)
        }
        ("DELETE", ["tags", tag]) => {
            let key = (repository.to_owned(), (*tag).to_owned());
            if state.tags.get(&key) != Some(&digest) {
                return no(404, "NOT_FOUND");
            }
            state.tags.remove(&key);
            empty(200)
        }
        _ => no(405, "METHOD_NOT_ALLOWED"),
    }
}

fn page(asked: &Asked, all: Vec<Value>) -> Told {
    let value = |name: &str| {
        let found = asked.query.split('&').find_map(|pair| pair.strip_prefix(name));
        found.and_then(|text| text.parse::<usize>().ok())
    };
    let (page, size) = (value("page=").unwrap_or(1), value("page_size=").unwrap_or(10).min(100));
    told(200, &all.into_iter().skip((page - 1) * size).take(size).collect())
}

/// The artifact with all tags that it has by now; those that are there move.
fn copy(state: &mut State, behind: &str, asked: &Asked, to: &str) -> Told {
    let from = asked.query.strip_prefix("from=").unwrap_or_default();
    let (from, digest) = from.split_once('@').unwrap();
    let target = format!("/v2/{from}/manifests/{digest}");
    let found = http::request(behind, "GET", &target, &[("Accept", crate::harness::INDEX)], b"");
    let put = crate::harness::put(behind, to, digest, &found.body);
    assert_eq!(put.status, 201, "{put:?}");
    state.artifacts.insert((to.into(), digest.into()));
    let tags: Vec<_> = state.tags.iter().filter(|((o, _), d)| o == from && *d == digest).collect();
    let tags: Vec<_> = tags.into_iter().map(|((_, tag), _)| tag.clone()).collect();
    for tag in tags {
        set(state, to, &tag, digest);
    }
    empty(201)
}

fn set(state: &mut State, repository: &str, tag: &str, digest: &str) {
    let before = state.tags.insert((repository.into(), tag.into()), digest.into());
    if repository.starts_with("prod/")
        && tag != "latest"
        && !tag.starts_with("dev-")
        && before.as_ref().is_some_and(|before| before != digest)
    {
        state.violations.push(format!("{repository}:{tag} {before:?} {digest}"));
    }
}

/// What it does below `/v2/`.
fn registry(state: &Mutex<State>, behind: &str, asked: &Asked, rest: &str) -> Told {
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        let state = state.lock().unwrap();
        let own = state.tags.keys().filter(|(owner, _)| owner == repository);
        let tags: Vec<_> = own.map(|(_, tag)| tag).collect();
        return told(200, &json!({ "name": repository, "tags": tags }));
    }
    let Some((repository, reference)) = rest.split_once("/manifests/") else {
        return empty(if rest.is_empty() { 200 } else { 404 });
    };
    let key = (repository.to_owned(), reference.to_owned());
    if asked.method == "PUT" {
        let by = if reference.contains(':') { reference.to_owned() } else { digest(&asked.body) };
        let put = crate::harness::put(behind, repository, &by, &asked.body);
        if put.status == 201 {
            assert_eq!(asked.media_type, crate::harness::INDEX);
            let mut state = state.lock().unwrap();
            state.artifacts.insert((repository.into(), by.clone()));
            if by != reference {
                set(&mut state, repository, reference, &by);
            }
        }
        let headers = vec![("docker-content-digest", by)];
        return Told { status: put.status, headers, body: put.body };
    }
    let mut state = state.lock().unwrap();
    let digest = match reference.contains(':') {
        true => Some(reference.to_owned()),
        false => state.tags.get(&key).cloned(),
    };
    let known = |digest: &String| state.artifacts.contains(&(repository.into(), digest.clone()));
    let Some(digest) = digest.filter(known) else { return no(404, "MANIFEST_UNKNOWN") };
    if asked.method == "DELETE" {
        state.tags.retain(|(owner, _), d| owner != repository || *d != digest);
        state.artifacts.remove(&(repository.into(), digest));
        return empty(202);
    }
    let target = format!("/v2/{repository}/manifests/{digest}");
    let accept = [("Accept", crate::harness::INDEX)];
    let found = http::request(behind, "GET", &target, &accept, b"");
    let media_type = found.header("content-type").unwrap_or_default().to_owned();
    let headers = vec![("docker-content-digest", digest), ("content-type", media_type)];
    Told { status: found.status, headers, body: found.body }
}
