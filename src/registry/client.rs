//! The registry over HTTP, through pingora's client side.
//!
//! Protected manifests never ride pingora's own proxying: that sends the request's header before
//! the body is judged, and may send a request again.

mod deletes;
mod fetching;
pub mod harbor;
mod listing;
mod opening;
mod paging;
mod relay;
mod repeat;
mod serving;
mod status;
mod target;
mod token_service;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, IF_NONE_MATCH, LOCATION, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use tokio::time::{sleep, timeout};

use super::media::MediaTypes;
use super::{
    Answer, Caller, Deleted, Fetched, Listing, Manifest, Place, Reading, Registry, Serving,
    Sighting, Trouble, Written,
};
use crate::name::{Algorithm, Digest, Naming, Reference, RepositoryName, Tag};
use crate::transport::endpoint::{Credentials, Origin, Peers, Way};
use crate::transport::pool::Connections;
use fetching::NO_MANIFEST;
pub use fetching::{OTHER_BYTES, SCHEMA1};
use opening::read_header;
pub use opening::{Begun, Opened, is_early};
pub use relay::{Mark, Part, Relay, Relayed};
use repeat::Repeat;
use serving::is_schema1_of;
pub use serving::{UNSENT, is_of};
use status::{digest_of, is_redirect, sighted, stored, written};
use target::with_query;

pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Answers to a look-up or a PUT are small; a larger one is no registry's.
const MAX_ANSWER: usize = 1024 * 1024;
const MAX_REDIRECTS: usize = 3;
/// How many addresses of a registry are tried before it counts as unreachable.
pub const MAX_ADDRESSES: u32 = 3;
/// Registries fail in passing while somebody else writes the same thing: distribution's look-ups
/// answer 500 when they meet a link that is half written.
const SECOND_TRIES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(400)];

/// What of the client's headers does not go with taglock's own look-ups: what they ask for, and under
/// which conditions, is taglock's. All else may be what the registry knows the client by.
fn is_of_the_look_up(name: &HeaderName) -> bool {
    let name = name.as_str();
    name == "range" || ["accept", "if-", "content-"].iter().any(|start| name.starts_with(start))
}

/// What of them goes to a host that the registry redirects to.
const REDIRECT_HEADERS: [HeaderName; 4] =
    [ACCEPT, IF_NONE_MATCH, USER_AGENT, HeaderName::from_static("x-request-id")];

pub struct Client {
    peers: Arc<Peers>,
    media: Arc<MediaTypes>,
    /// Hosts (`name` or `name:port`) that the client's own reads may be redirected to.
    redirect_hosts: Vec<String>,
    /// The largest manifest that is read.
    max_manifest: usize,
    naming: Arc<Naming>,
    connections: Connections,
    fitness: relay::Fitness,
}

impl Client {
    pub fn new(
        peers: Arc<Peers>,
        media: Arc<MediaTypes>,
        redirect_hosts: Vec<String>,
        max_manifest: usize,
    ) -> Self {
        let max_manifest = max_manifest.max(serving::MAX_READ);
        let connections = Connections::default();
        let (naming, fitness) = Default::default();
        Self { peers, media, redirect_hosts, max_manifest, naming, connections, fitness }
    }

    /// A read, following redirects to configured hosts.
    async fn read(
        &self,
        caller: &Caller,
        method: &Method,
        path: &str,
        max: usize,
    ) -> Result<Answer, Trouble> {
        self.read_with(self.lookup_headers(caller), caller, method, path, max).await
    }

    async fn read_with(
        &self,
        mut headers: HeaderMap,
        caller: &Caller,
        method: &Method,
        path: &str,
        max: usize,
    ) -> Result<Answer, Trouble> {
        let target = with_query(path, None, caller.namespace.as_deref());
        let request = request(method, &target, &headers)?;
        let mut answer = self.exchange(&self.peers, request, None, max, Repeat::Harmless).await?;
        for _ in 0..MAX_REDIRECTS {
            if !is_redirect(answer.status) {
                return Ok(answer);
            }
            let (origin, target) = self.redirect(&answer)?;
            // Nothing of the client's but what it wants: another host is no business of its own.
            headers = headers_of(&headers, &REDIRECT_HEADERS);
            headers.insert(HOST, header_value(&origin.authority())?);
            // Another host: its own addresses, the system's roots, no client certificate.
            let peers = Peers::new(origin, self.peers.timeouts().clone(), Credentials::default());
            let request = self::request(method, &target, &headers)?;
            answer = self.exchange(&peers, request, None, max, Repeat::Harmless).await?;
        }
        Ok(answer)
    }

    fn lookup_headers(&self, caller: &Caller) -> HeaderMap {
        let own = caller.headers.iter().filter(|(name, _)| !is_of_the_look_up(name));
        let own = own.map(|(name, value)| (name.clone(), value.clone()));
        let mut headers: HeaderMap = own.collect();
        headers.insert(ACCEPT, self.media.accept().clone());
        headers
    }

    fn redirect(&self, answer: &Answer) -> Result<(Origin, String), Trouble> {
        let status = Trouble::Status(answer.status.as_u16());
        let location = answer.headers.get(LOCATION).and_then(|v| v.to_str().ok());
        let uri: http::Uri = location.and_then(|l| l.parse().ok()).ok_or(status.clone())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(status);
        };
        let allowed = |host: &String| {
            host.eq_ignore_ascii_case(authority.as_str())
                || host.eq_ignore_ascii_case(authority.host())
        };
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(status),
        };
        if !self.redirect_hosts.iter().any(allowed) {
            return Err(status);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let target = uri.path_and_query().map_or("/", |pq| pq.as_str()).to_owned();
        Ok((Origin { tls, host, port }, target))
    }

    /// One request and its answer, bounded in time and size.
    async fn exchange(
        &self,
        peers: &Peers,
        request: RequestHeader,
        body: Option<Bytes>,
        max: usize,
        repeat: Repeat,
    ) -> Result<Answer, Trouble> {
        let whole = async {
            let mut pauses = SECOND_TRIES.iter();
            let mut addresses = 1;
            loop {
                let way = peers.way().await?;
                let fresh = repeat == Repeat::Never;
                let sent = Sent { request: request.clone(), body: body.clone(), max, fresh };
                match self.once(&way, sent).await {
                    Ok(answer) if answer.status.is_server_error() && repeat == Repeat::Harmless => {
                        match pauses.next() {
                            Some(pause) => sleep(*pause).await,
                            None => return Ok(answer),
                        }
                    }
                    Ok(answer) => return Ok(answer),
                    // The pool may hold several dead connections; each is tried once and gone.
                    Err(failure)
                        if failure.reused
                            && (repeat != Repeat::BeforeBody || !failure.body_begun)
                            && failure.trouble == Trouble::Cut => {}
                    // Nothing was sent: a registry may have several addresses, not all of them well.
                    Err(failure) if !failure.connected && addresses < MAX_ADDRESSES => {
                        peers.shun(&way.peer);
                        addresses += 1;
                    }
                    Err(failure) => return Err(failure.trouble),
                }
            }
        };
        timeout(self.peers.timeouts().exchange, whole).await.unwrap_or(Err(Trouble::TimedOut))
    }

    async fn once(&self, way: &Way, sent: Sent) -> Result<Answer, Failure> {
        let Sent { request, body, max, fresh } = sent;
        let method = request.method.clone();
        let taken = match fresh {
            true => self.connections.open(way).await.map(|session| (session, false)),
            false => self.connections.take(way).await,
        };
        let (mut session, reused) = taken.map_err(|e| Failure {
            trouble: trouble_of(&e),
            connected: false,
            reused: false,
            body_begun: false,
        })?;
        let timeouts = self.peers.timeouts();
        session.set_read_timeout(Some(timeouts.exchange));
        session.set_write_timeout(Some(timeouts.exchange));
        let mut body_begun = false;
        let result = async {
            session.write_request_header(Box::new(request)).await?;
            if let Some(body) = body {
                body_begun = true;
                session.write_request_body(body, true).await?;
            }
            session.finish_request_body().await?;
            let header = read_header(&mut session).await?;
            let mut content = BytesMut::new();
            if method != Method::HEAD {
                while let Some(chunk) = session.read_response_body().await? {
                    if content.len() + chunk.len() > max {
                        let too_large = ErrorType::InvalidHTTPHeader;
                        return pingora::Error::e_explain(too_large, "an answer too large");
                    }
                    content.extend_from_slice(&chunk);
                }
            }
            let http::response::Parts { status, headers, .. } = header.into();
            Ok(Answer { status, headers, body: content.freeze() })
        }
        .await;
        match result {
            Ok(answer) => {
                self.connections.give_back(session, way, timeouts.idle).await;
                Ok(answer)
            }
            Err(error) => {
                Err(Failure { trouble: trouble_of(&error), connected: true, reused, body_begun })
            }
        }
    }
}

struct Sent {
    request: RequestHeader,
    body: Option<Bytes>,
    max: usize,
    /// Over no kept connection.
    fresh: bool,
}

struct Failure {
    trouble: Trouble,
    connected: bool,
    /// The connection came from the pool, so it may have been dead all along.
    reused: bool,
    body_begun: bool,
}

#[async_trait]
impl Registry for Client {
    async fn look(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Sighting {
        let path = self.manifest_path(repository, reference);
        let answer = match self.read(caller, &Method::HEAD, &path, MAX_ANSWER).await {
            Ok(answer) => answer,
            Err(trouble) => return Sighting::Unclear(trouble),
        };
        match sighted(answer) {
            Ok(answer) => match answer.headers.get(CONTENT_DIGEST) {
                Some(value) => digest_of(value).map_or_else(Sighting::Unclear, Sighting::Found),
                // Some registries, and proxies before them, leave it out: hash the bytes.
                None => self.read_and_hash(caller, &path).await,
            },
            Err(sighting) => sighting,
        }
    }

    async fn resolve(&self, caller: &Caller, repository: &RepositoryName, tag: &Tag) -> Sighting {
        let path = self.manifest_path(repository, &Reference::Tag(tag.clone()));
        // HEAD first: new tags are the usual case, and some registries count each GET.
        match self.read(caller, &Method::HEAD, &path, MAX_ANSWER).await.map(sighted) {
            Ok(Ok(_)) => self.read_and_hash(caller, &path).await,
            Ok(Err(sighting)) => sighting,
            Err(trouble) => Sighting::Unclear(trouble),
        }
    }

    async fn first_sight(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        tag: &Tag,
        reading: Reading,
    ) -> Sighting {
        match reading {
            Reading::Head => self.resolve(caller, repository, tag).await,
            // The bytes are needed in any case, and a no has a body, as the client expects it.
            Reading::Get => {
                let path = self.manifest_path(repository, &Reference::Tag(tag.clone()));
                self.read_and_hash(caller, &path).await
            }
        }
    }

    async fn ask(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        reading: Reading,
    ) -> Result<Answer, Trouble> {
        let path = self.manifest_path(repository, reference);
        self.read_as_client(caller, &path, reading).await
    }

    async fn serve(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
        reading: Reading,
    ) -> Serving {
        let path = self.manifest_path(repository, &Reference::Digest(*digest));
        self.serve_manifest(caller, &path, digest, reading).await
    }

    async fn put(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        place: Place<'_>,
        manifest: &Manifest,
    ) -> Written {
        let by_digest = matches!(place, Place::Digest(_));
        let (path, named, repeat) = match place {
            Place::Digest(digest) => (
                self.manifest_path(repository, &Reference::Digest(*digest)),
                None,
                Repeat::Unanswered,
            ),
            Place::Tag { tag, digest } => {
                let path = self.manifest_path(repository, &Reference::Tag(tag.clone()));
                (path, digest, Repeat::BeforeBody)
            }
        };
        let target = with_query(&path, named, caller.namespace.as_deref());
        let mut headers = caller.headers.clone();
        headers.insert(CONTENT_TYPE, manifest.media_type.clone());
        headers.insert(CONTENT_LENGTH, HeaderValue::from(manifest.bytes.len()));
        let sending = async {
            let request = request(&Method::PUT, &target, &headers)?;
            let body = Some(manifest.bytes.clone());
            self.exchange(&self.peers, request, body, MAX_ANSWER, repeat).await
        };
        match sending.await {
            Ok(answer) if by_digest => stored(answer, manifest),
            Ok(answer) => written(answer, manifest),
            Err(trouble) => Written::Unknown(trouble),
        }
    }

    async fn delete(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Deleted {
        self.delete_manifest(caller, repository, reference).await
    }

    async fn tags(&self, caller: &Caller, repository: &RepositoryName, at_most: usize) -> Listing {
        self.list_tags(self.lookup_headers(caller), caller, repository, at_most).await
    }

    async fn ping(&self) -> Result<(), Trouble> {
        let host = header_value(&self.peers.origin().authority())?;
        let headers = HeaderMap::from_iter([(HOST, host)]);
        let caller = Caller { headers, ..Caller::default() };
        let answer = self.read(&caller, &Method::GET, "/v2/", MAX_ANSWER).await?;
        match answer.status.as_u16() {
            status @ 500.. => Err(Trouble::Status(status)),
            _ => Ok(()),
        }
    }

    async fn fetch(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Fetched {
        self.fetch_manifest(caller, repository, digest).await
    }
}

impl Client {
    /// GET, and the digest of what came: by the registry's own algorithm, and not its word alone.
    async fn read_and_hash(&self, caller: &Caller, path: &str) -> Sighting {
        let answer = match self.read(caller, &Method::GET, path, self.max_manifest).await {
            Ok(answer) => answer,
            Err(trouble) => return Sighting::Unclear(trouble),
        };
        let answer = match sighted(answer) {
            Ok(answer) => answer,
            Err(sighting) => return sighting,
        };
        let named = answer.headers.get(CONTENT_DIGEST).map(digest_of).transpose();
        let content_type = answer.content_type();
        match named {
            Err(trouble) => Sighting::Unclear(trouble),
            // Some registries name none. But a page of whoever stands before one is no manifest.
            Ok(None) if content_type.is_some_and(|text| self.media.may_read(text)) => {
                Sighting::Found(Digest::of(Algorithm::Sha256, &answer.body))
            }
            Ok(None) => Sighting::Unclear(Trouble::Garbage(NO_MANIFEST)),
            Ok(Some(digest)) if digest.matches(&answer.body) => Sighting::Found(digest),
            // The digest of schema 1 leaves the signatures out.
            Ok(Some(digest))
                if content_type.is_some_and(MediaTypes::is_schema1)
                    && is_schema1_of(&answer.body, &digest) =>
            {
                Sighting::Found(digest)
            }
            Ok(Some(_)) => Sighting::Unclear(Trouble::Garbage(
                "the manifest does not have the digest of its Docker-Content-Digest",
            )),
        }
    }
}

fn headers_of(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let values = names.iter().flat_map(|name| headers.get_all(name).iter().map(move |v| (name, v)));
    values.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn request(method: &Method, target: &str, headers: &HeaderMap) -> Result<RequestHeader, Trouble> {
    let malformed = Trouble::Garbage("no request can be made of it");
    let mut request = RequestHeader::build(method.clone(), target.as_bytes(), Some(headers.len()))
        .map_err(|_| malformed.clone())?;
    for (name, value) in headers {
        request.append_header(name.clone(), value.clone()).map_err(|_| malformed.clone())?;
    }
    Ok(request)
}

fn header_value(text: &str) -> Result<HeaderValue, Trouble> {
    HeaderValue::from_str(text).map_err(|_| Trouble::Garbage("a redirect to no host"))
}

/// pingora's errors, as far as they differ for the judge.
pub fn trouble_of(error: &pingora::Error) -> Trouble {
    use ErrorType as E;
    match error.etype() {
        E::ConnectTimedout | E::TLSHandshakeTimedout | E::ReadTimedout | E::WriteTimedout => {
            Trouble::TimedOut
        }
        E::ConnectRefused
        | E::ConnectNoRoute
        | E::ConnectError
        | E::SocketError
        | E::BindError
        | E::TLSHandshakeFailure
        | E::TLSWantX509Lookup
        | E::InvalidCert
        | E::HandshakeError
        | E::ConnectProxyFailure => Trouble::Unreachable,
        E::InvalidHTTPHeader | E::H1Error => Trouble::Garbage("it is not HTTP, or too large"),
        _ => Trouble::Cut,
    }
}
