//! A registry in process that can fail in every way, and polices: a test fails when a tag below
//! `prod/` ever moves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha512};
use tokio::sync::Semaphore;

use crate::harness::{digest, eventually, listener};

/// What goes wrong with a request. The pairs matter: "failed and did not happen" and "failed but
/// happened".
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers with this and does nothing.
    Answer(u16, Vec<(&'static str, String)>, &'static str),
    /// Does it, and answers with this status.
    DoneBut(u16),
    CutBefore,
    CutAfter,
    HangBefore,
    HangAfter,
    /// Does it, and reports another digest.
    Lie,
    /// Does it late.
    Delay(Duration),
    /// Does it, or has done it, and answers, once the test lets go: see [`Fake::let_go`].
    HeldBefore,
    HeldAfter,
}

struct Plan {
    method: &'static str,
    part: String,
    fault: Fault,
    times: u32,
}

#[derive(Default)]
struct State {
    manifests: HashMap<(String, String), (Bytes, String)>,
    tags: HashMap<(String, String), String>,
    plans: Vec<Plan>,
    seen: Vec<String>,
    /// Paths with their queries.
    targets: Vec<String>,
    /// The headers of each, as `name: value`.
    headers: Vec<Vec<String>>,
    violations: Vec<String>,
    /// Takes `?tag=` on a PUT by digest and echoes `OCI-Tag`, as newer registries do.
    takes_sets: bool,
    /// Stores manifests by sha512 too, and takes `?digest=` on a PUT by tag.
    knows_sha512: bool,
    /// Leaves `Docker-Content-Digest` out of answers to reads.
    hides_digests: bool,
    /// Whom it lets in, by `Authorization`, and the status for all others.
    lets_in: Option<(String, u16)>,
    /// Requests that wait for the test.
    held: usize,
    gate: Gate,
}

/// Shut at first.
#[derive(Clone)]
struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

pub struct Fake {
    pub address: String,
    state: Arc<Mutex<State>>,
    connections: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Fake {
    pub fn start() -> Self {
        let (listener, address) = listener();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    // A cut is an error of the connection, and wanted.
                    let _ = http1::Builder::new()
                        .half_close(true)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, state, connections, _runtime: runtime }
    }

    /// From now on `?tag=` is taken, and echoed in `OCI-Tag` (distribution spec, end-7b).
    pub fn take_sets(&self) {
        self.state.lock().unwrap().takes_sets = true;
    }

    /// From now on manifests have digests of sha512 too, also by `?digest=` (distribution spec, end-7a).
    pub fn know_sha512(&self) {
        self.state.lock().unwrap().knows_sha512 = true;
    }

    pub fn hide_digests(&self) {
        self.state.lock().unwrap().hides_digests = true;
    }

    /// Everybody without this `Authorization` gets this status, with a document that names the request.
    pub fn let_in(&self, authorization: &str, status: u16) {
        self.state.lock().unwrap().lets_in = Some((authorization.to_owned(), status));
    }

    /// Puts a manifest under a tag, with a digest that need not be that of its bytes.
    pub fn place(&self, repository: &str, tag: &str, digest: &str, stored: (&[u8], &str)) {
        let mut state = self.state.lock().unwrap();
        let stored = (Bytes::copy_from_slice(stored.0), stored.1.to_owned());
        state.manifests.insert((repository.into(), digest.into()), stored);
        state.tags.insert((repository.into(), tag.into()), digest.into());
    }

    /// The next `times` requests of this method whose path has `part` go wrong.
    pub fn plan(&self, method: &'static str, part: &str, fault: Fault, times: u32) {
        let plan = Plan { method, part: part.into(), fault, times };
        self.state.lock().unwrap().plans.push(plan);
    }

    /// Waits until a request is held.
    pub fn holds(&self) {
        eventually("a request that is held", || self.state.lock().unwrap().held > 0);
    }

    /// Whatever is held goes on.
    pub fn let_go(&self) {
        let mut state = self.state.lock().unwrap();
        let held = std::mem::take(&mut state.held);
        state.gate.0.add_permits(held);
    }

    pub fn recover(&self) {
        self.state.lock().unwrap().plans.clear();
    }

    pub fn tag(&self, repository: &str, tag: &str) -> Option<String> {
        self.state.lock().unwrap().tags.get(&(repository.into(), tag.into())).cloned()
    }

    /// The requests so far, as `METHOD path`.
    pub fn seen(&self) -> Vec<String> {
        self.state.lock().unwrap().seen.clone()
    }

    /// How many connections it has been asked for so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// The paths of the requests so far, with their queries.
    pub fn targets(&self) -> Vec<String> {
        self.state.lock().unwrap().targets.clone()
    }

    /// The headers of the requests so far.
    pub fn all_headers(&self) -> Vec<Vec<String>> {
        self.state.lock().unwrap().headers.clone()
    }

    /// All requests so far that came without `Authorization`, as `METHOD path?query`.
    pub fn of_strangers(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let all = state.seen.iter().zip(&state.targets).zip(&state.headers);
        all.filter(|(_, headers)| !headers.iter().any(|line| line.starts_with("authorization:")))
            .map(|((seen, target), _)| format!("{} {target}", seen.split(' ').next().unwrap()))
            .collect()
    }

    /// The headers of the last request.
    pub fn last_headers(&self) -> Vec<String> {
        self.state.lock().unwrap().headers.last().cloned().unwrap_or_default()
    }

    /// The headers of all requests so far.
    pub fn headers(&self) -> Vec<Vec<String>> {
        self.state.lock().unwrap().headers.clone()
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        let matches = |line: &&String| line.starts_with(method) && line.contains(part);
        self.seen().iter().filter(matches).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let violations = std::mem::take(&mut self.state.lock().unwrap().violations);
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "the registry's tags moved: {violations:?}");
        }
    }
}

type Reply = Result<Response<Full<Bytes>>, std::io::Error>;

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Reply {
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let target = request.uri().to_string();
    let media_type = request
        .headers()
        .get("content-type")
        .map(|v| v.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let authorization = request.headers().get("authorization").cloned();
    let headers = request.headers().iter();
    let headers: Vec<_> =
        headers.map(|(n, v)| format!("{n}: {}", v.to_str().unwrap_or("?"))).collect();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(format!("{method} {path}"));
        state.headers.push(headers);
        state.targets.push(target.clone());
        let plan = state
            .plans
            .iter_mut()
            .find(|p| p.times > 0 && p.method == method && path.contains(&p.part));
        plan.map(|plan| {
            plan.times -= 1;
            plan.fault.clone()
        })
    };
    let denied = {
        let state = state.lock().unwrap();
        let lets_in = state.lets_in.as_ref();
        lets_in.filter(|(own, _)| authorization.as_ref().is_none_or(|value| value != own)).cloned()
    };
    if let Some((_, status)) = denied {
        return Ok(denial(status, &method, &target));
    }
    let act = || act(&state, &method, (&path, &query), &media_type, &body);
    let cut = || Err(std::io::ErrorKind::ConnectionAborted.into());
    match fault {
        None => Ok(act()),
        Some(Fault::Answer(status, headers, text)) => Ok(plain(status, &headers, text)),
        Some(Fault::DoneBut(status)) => {
            act();
            Ok(plain(status, &[], ""))
        }
        Some(Fault::CutBefore) => cut(),
        Some(Fault::CutAfter) => {
            act();
            cut()
        }
        Some(fault @ (Fault::HangBefore | Fault::HangAfter)) => {
            if matches!(fault, Fault::HangAfter) {
                act();
            }
            tokio::time::sleep(Duration::from_secs(600)).await;
            cut()
        }
        Some(Fault::Lie) => {
            let mut response = act();
            let other = digest(b"something else").parse().unwrap();
            response.headers_mut().insert("docker-content-digest", other);
            Ok(response)
        }
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            Ok(act())
        }
        Some(Fault::HeldBefore) => {
            held(&state).await;
            Ok(act())
        }
        Some(Fault::HeldAfter) => {
            let response = act();
            held(&state).await;
            Ok(response)
        }
    }
}

/// Until the test lets go.
async fn held(state: &Mutex<State>) {
    let gate = {
        let mut state = state.lock().unwrap();
        state.held += 1;
        state.gate.clone()
    };
    gate.0.acquire().await.unwrap().forget();
}

/// It names the request, as some registries do.
fn denial(status: u16, method: &str, target: &str) -> Response<Full<Bytes>> {
    let body =
        format!(r#"{{"errors":[{{"code":"DENIED","message":"you may not {method} {target}"}}]}}"#);
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if status == 401 {
        headers.push((
            "www-authenticate",
            format!("Basic realm=\"house\", for=\"{method} {target}\""),
        ));
    }
    plain(status, &headers, &body)
}

fn plain(status: u16, headers: &[(&'static str, String)], body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
}

fn act(
    state: &Mutex<State>,
    method: &str,
    (path, query): (&str, &str),
    media_type: &str,
    body: &Bytes,
) -> Response<Full<Bytes>> {
    let mut state = state.lock().unwrap();
    if path == "/v2/" {
        return plain(200, &[], "{}");
    }
    let listed = path.strip_prefix("/v2/").and_then(|rest| rest.strip_suffix("/tags/list"));
    if let Some(repository) = listed {
        return tags_list(&state, repository, query);
    }
    let unknown = || {
        plain(
            404,
            &[("content-type", "application/json".into())],
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#,
        )
    };
    let Some((repository, reference)) =
        path.strip_prefix("/v2/").and_then(|rest| rest.split_once("/manifests/"))
    else {
        return unknown();
    };
    let key = (repository.to_owned(), reference.to_owned());
    let name = if reference.contains(':') {
        Some(reference.to_owned())
    } else {
        state.tags.get(&key).cloned()
    };
    match method {
        "PUT" => {
            let mut digest = digest(body);
            if state.knows_sha512 {
                let named = query.split('&').find_map(|pair| pair.strip_prefix("digest="));
                let named = named.unwrap_or(reference).replace("%3A", ":");
                if named.starts_with("sha512:") {
                    let hex: String =
                        Sha512::digest(body).iter().map(|b| format!("{b:02x}")).collect();
                    if named != format!("sha512:{hex}") {
                        return plain(400, &[], "");
                    }
                    digest = named;
                }
            }
            let stored = (body.clone(), media_type.to_owned());
            state.manifests.insert((repository.to_owned(), digest.clone()), stored);
            let mut tags = Vec::new();
            if !reference.contains(':') {
                tags.push(reference);
            } else if state.takes_sets {
                tags.extend(query.split('&').filter_map(|pair| pair.strip_prefix("tag=")));
            }
            for tag in &tags {
                let key = (repository.to_owned(), (*tag).to_owned());
                let before = state.tags.insert(key, digest.clone());
                if repository.starts_with("prod/")
                    && before.as_ref().is_some_and(|before| *before != digest)
                {
                    let moved = format!("{repository}:{tag} {before:?} {digest}");
                    state.violations.push(moved);
                }
            }
            let location = format!("/v2/{repository}/manifests/{digest}");
            let mut headers = vec![("docker-content-digest", digest), ("location", location)];
            if reference.contains(':') {
                headers.extend(tags.iter().map(|tag| ("oci-tag", (*tag).to_owned())));
            }
            plain(201, &headers, "")
        }
        "GET" | "HEAD" => {
            let found = name.and_then(|digest| {
                let stored = state.manifests.get(&(repository.to_owned(), digest.clone()))?;
                Some((digest, stored.clone()))
            });
            let Some((digest, (bytes, media_type))) = found else { return unknown() };
            let mut headers =
                vec![("content-type", media_type), ("content-length", bytes.len().to_string())];
            if !state.hides_digests {
                headers.insert(0, ("docker-content-digest", digest));
            }
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            plain(200, &headers, &text)
        }
        "DELETE" => {
            if name.is_none_or(|digest| {
                !state.manifests.contains_key(&(repository.to_owned(), digest))
            }) {
                return unknown();
            }
            if reference.contains(':') {
                state.manifests.remove(&key);
                state.tags.retain(|(owner, _), digest| owner != repository || digest != reference);
            } else {
                state.tags.remove(&key);
            }
            plain(202, &[], "")
        }
        _ => plain(405, &[], ""),
    }
}

/// Pages of at most 400.
fn tags_list(state: &State, repository: &str, query: &str) -> Response<Full<Bytes>> {
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    let n = value("n=").and_then(|n| n.parse().ok()).unwrap_or(400).min(400);
    let last = value("last=").unwrap_or_default();
    let mut tags: Vec<_> = state.tags.keys().filter(|(owner, _)| owner == repository).collect();
    tags.sort();
    let mut tags = tags.into_iter().map(|(_, tag)| tag.as_str()).filter(|tag| *tag > last);
    let page: Vec<_> = tags.by_ref().take(n).collect();
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if let (Some(_), Some(last)) = (tags.next(), page.last()) {
        let next = format!("</v2/{repository}/tags/list?n={n}&last={last}>; rel=\"next\"");
        headers.push(("link", next));
    }
    plain(200, &headers, &serde_json::json!({ "name": repository, "tags": page }).to_string())
}
