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

use crate::harness::{digest, listener};

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

    /// The next `times` requests of this method whose path has `part` go wrong.
    pub fn plan(&self, method: &'static str, part: &str, fault: Fault, times: u32) {
        let plan = Plan { method, part: part.into(), fault, times };
        self.state.lock().unwrap().plans.push(plan);
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
    let headers = request.headers().iter();
    let headers: Vec<_> =
        headers.map(|(n, v)| format!("{n}: {}", v.to_str().unwrap_or("?"))).collect();
    let body = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(format!("{method} {path}"));
        state.headers.push(headers);
        state.targets.push(target);
        let plan = state
            .plans
            .iter_mut()
            .find(|p| p.times > 0 && p.method == method && path.contains(&p.part));
        plan.map(|plan| {
            plan.times -= 1;
            plan.fault.clone()
        })
    };
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
    }
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
            let digest = digest(body);
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
            let headers = [
                ("docker-content-digest", digest),
                ("content-type", media_type),
                ("content-length", bytes.len().to_string()),
            ];
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
