//! The edge: pingora's hooks, each a few lines, in the order of their phases.
//!
//! A request is admitted (`admission`), routed, and then either streams through pingora untouched
//! or is judged: its manifest is taken in (`intake`), the judge talks to the registry, and the
//! answer is written here. `refusal` is the only writer of taglock's own answers. Where clients speak
//! no TLS, small reads are answered before pingora sees them (`lean`).

mod accounting;
mod authorized;
mod blobs;
mod body_drain;
mod cached_pull;
mod context;
mod date_cache;
mod delete;
mod dispatch;
mod dry_run;
mod error_response;
mod harbor;
mod header_filter;
mod header_timeout;
mod http1_connection;
mod http2_drain;
mod ledger_gate;
mod limits;
mod listener;
mod manifest_body;
mod pull;
mod push;
mod relay;
mod request_headers;
mod request_memo;
mod small_read;
pub mod url_rewriting;
mod validate;
mod verified_cache;

pub use authorized::LetIn;
pub use blobs::chunked;
pub use http2_drain::Deliveries;
pub use ledger_gate::Gate;
pub use limits::{Cap, Caps, Crowd};
pub use listener::{Front, LULL};
pub use request_memo::Asked;

use std::any::Any;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_LENGTH;
use ipnet::IpNet;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::{FailToProxy, ProxyHttp, RangeType, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};

use crate::judge::artifacts::Desk;
use crate::judge::{Judge, Options};
use crate::ledger::RepositoryKey;
use crate::name::{RepositoryName, UpstreamName};
use crate::registry::client::{Client, MAX_ADDRESSES};
use crate::registry::framing;
use crate::registry::manifest_cache::Shelf;
use crate::registry::media::MediaTypes;
use crate::route::{Doors, Rejection, Route, check_namespace, query_of};
use crate::rules::Rules;
use crate::telemetry::Metrics;
use crate::telemetry::audit::Audit;
use crate::telemetry::refusals::Refusals;
use crate::telemetry::traces::Tracer;
use crate::transport::Home;
use crate::transport::endpoint::{Origin, Peers};
use context::{Passage, Start, Tally, Unjudged};
use dispatch::Course;
use error_response::Refusal;
use validate::Head;
use verified_cache::Familiar;

/// How long a client may leave its connection unused, or a header unfinished.
const KEEPALIVE_SECONDS: u64 = 60;
/// How long a client may take nothing of what it asked for.
const CLIENT_WRITE: Duration = Duration::from_secs(60);

/// What the edge is told by its settings.
pub struct Config {
    pub upstream: UpstreamName,
    pub doors: Doors,
    /// The only `?ns=` that is taken in protected repositories; without one, none is.
    pub namespace: Option<String>,
    /// Hosts that are answered, lower-case; empty for any.
    pub hosts: Vec<String>,
    pub external: Option<Origin>,
    pub trusted_proxies: Vec<IpNet>,
    /// Clients speak TLS to this listener.
    pub tls: bool,
    /// The registry is sent the client's `Host`.
    pub client_host: bool,
    pub media: Arc<MediaTypes>,
    pub options: Options,
    /// While the ledger is down, protected tags that were never seen are refused.
    pub strict: bool,
    pub max_manifest: usize,
    pub max_header: usize,
    /// How long the body of a protected manifest may take.
    pub manifest_time: Duration,
    /// What a body that streams must bring a second, in the mean.
    pub body_rate: u64,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Blobs and uploads may take their own path.
    pub swift: bool,
    /// The registry speaks TLS: what goes to it or comes from it is pingora's to encrypt.
    pub registry_tls: bool,
    /// So may small reads.
    pub relays: bool,
    /// Into how many parts the memory of lanes is divided.
    pub lanes: usize,
}

/// What the edge talks to.
pub struct Rooms {
    pub judge: Arc<Judge>,
    pub client: Arc<Client>,
    /// For what comes by the registry's own API.
    pub desk: Arc<Desk>,
    pub peers: Arc<Peers>,
    pub rules: Arc<ArcSwap<Rules>>,
    pub metrics: Arc<Metrics>,
    pub audit: Arc<Audit>,
    pub crowd: Arc<Crowd>,
    pub let_in: Arc<LetIn>,
    pub refusals: Arc<Refusals>,
    pub gate: Arc<Gate>,
    /// `None` where traces are not wanted.
    pub tracer: Option<Arc<Tracer>>,
    /// Manifests of public repositories in memory; the judge asks through it, too.
    pub shelf: Option<Arc<Shelf>>,
}

pub struct Edge {
    config: Arc<Config>,
    rooms: Arc<Rooms>,
    /// The registry's own.
    host: Option<HeaderValue>,
    /// As in the settings.
    upstream: UpstreamName,
    familiar: Familiar,
    /// Of the lane this edge is in, once it runs.
    home: OnceLock<Home>,
}

impl Edge {
    pub fn new(config: Arc<Config>, rooms: Arc<Rooms>) -> Self {
        let host = HeaderValue::try_from(rooms.peers.origin().authority()).ok();
        let (upstream, lanes) = (config.upstream.detached(), config.lanes);
        Self {
            config,
            rooms,
            host,
            upstream,
            familiar: Familiar::new(lanes),
            home: OnceLock::new(),
        }
    }

    /// Where the registry's connections are kept.
    fn home(&self) -> &Home {
        self.home.get_or_init(|| self.rooms.client.home())
    }

    /// The ledger's key of a repository. Nothing of it comes from `Host` or `?ns=`.
    fn key(&self, repository: &RepositoryName) -> RepositoryKey {
        RepositoryKey { upstream: self.upstream.clone(), repository: repository.clone() }
    }

    /// A request that has come.
    fn passage(&self, started: Instant) -> Passage {
        Passage::new(self.rooms.metrics.in_flight().enter(), started)
    }

    /// A body that streams must not be too slow in the mean.
    fn check_pace(&self, passage: &Passage) -> Result<()> {
        if passage.is_slower_than(self.config.body_rate) {
            let slow = Error::explain(ErrorType::ReadTimedout, "a body that comes too slowly");
            return Err(slow.into_down());
        }
        Ok(())
    }

    /// A write that streams has come whole: from here on whoever binds its tags waits for it.
    ///
    /// # Errors
    /// Where the rules have changed while it came, so that one of its tags is immutable now. The
    /// registry has not got all of it, and so can't carry it out.
    fn enter_unjudged(&self, passage: &mut Passage) -> Result<()> {
        let Unjudged::Coming(affected) = std::mem::replace(&mut passage.unjudged, Unjudged::None)
        else {
            return Ok(());
        };
        let changed = || Error::explain(error_response::RULES_CHANGED, "while it came").into_down();
        // Before the rules are read: see there.
        let write = self.rooms.judge.unjudged().enter(affected.clone());
        let mut write = write.map_err(|_closed| changed())?;
        if affected.is_judged_by(&self.rooms.rules.load()) {
            return Err(changed());
        }
        write.is_sent();
        passage.unjudged = Unjudged::UnderWay(write);
        Ok(())
    }

    /// Admits, routes and decides, before anything is sent anywhere.
    fn decide(&self, head: &Head<'_>, passage: &mut Passage) -> Result<Course, Rejection> {
        let header = head.header;
        // Known even of a request that is refused at the door.
        passage.client.address = head.peer.ip();
        if let Some(id) = header.headers.get(request_headers::REQUEST_ID) {
            passage.id.adopt(id);
        }
        passage.client = validate::admit(head, &self.config)?;
        let route = Route::parse(&header.method, header.raw_path(), &self.config.doors)?;
        passage.route = context::label(&route);
        if let (Some(trace), Some(repository)) = (&passage.trace, route.repository()) {
            trace.repository(repository);
        }
        if let Some(affected) = dispatch::affected(&route, |name| self.key(name)) {
            passage.unjudged = Unjudged::Coming(affected);
        }
        if let Route::WriteManifest(_) = &route {
            passage.protected = Some(self.rooms.metrics.protected().enter());
        }
        // Of the target that is forwarded, not of the parsed URI, which may differ from it.
        if let (Some(query), Some(repository)) = (query_of(header.raw_path()), route.repository())
            && self.rooms.rules.load().protecting(repository).is_some()
        {
            check_namespace(Some(query), self.config.namespace.as_deref())?;
        }
        let course = self.course(route);
        if course.needs_the_ledger() && passage.protected.is_none() {
            passage.protected = Some(self.rooms.metrics.protected().enter());
        }
        Ok(course)
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = Passage;

    fn new_ctx(&self) -> Passage {
        self.passage(Instant::now())
    }

    /// What was known of the request before it was handed to pingora.
    fn on_connection_reuse(
        &self,
        _session: &mut Session,
        passage: &mut Passage,
        known: Box<dyn Any + Send + Sync>,
    ) {
        if let Ok(start) = known.downcast::<Start>() {
            let Start { passage: known, body_received } = *start;
            if let Some(known) = known {
                *passage = *known;
            }
            passage.body_received = body_received;
        }
    }

    /// No modules: the default is one that could compress.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, passage: &mut Passage) -> Result<bool> {
        header_timeout::begun();
        if let Some(tracer) = self.rooms.tracer.as_ref().filter(|_| passage.trace.is_none()) {
            passage.trace = Some(tracer.begin(&session.req_header().headers));
        }
        // pingora bounds only the first header of a connection, and no write to a client.
        if session.get_keepalive() == Some(0) {
            session.set_keepalive(Some(KEEPALIVE_SECONDS));
        }
        session.set_write_timeout(Some(CLIENT_WRITE));
        let raw = session.as_http1().map(HttpSession::get_headers_raw_bytes);
        let (header, peer) = (session.req_header(), validate::peer_of(session));
        let head = Head { header, raw: raw.as_deref(), peer, known: None };
        let course = match self.decide(&head, passage) {
            Ok(course) => course,
            Err(rejection) => Course::Refuse(rejection.into()),
        };
        if course.needs_the_ledger() {
            self.rooms.gate.pass().await;
        }
        match course {
            // What can be relayed was (`lean`).
            Course::Stream | Course::Relay => return Ok(false),
            // Boxed: what only some requests need is not to be room in each one's future.
            Course::Blob => return Box::pin(self.stream_blob(session, passage)).await,
            Course::Upload => return Box::pin(self.stream_upload(session, passage)).await,
            Course::Rehearse(rehearsal) => {
                Box::pin(self.rehearse(session, passage, rehearsal)).await;
                return Ok(false);
            }
            Course::Refuse(refusal) => Box::pin(self.refuse(session, passage, refusal)).await?,
            Course::Write(write) => Box::pin(self.write(session, passage, write)).await?,
            Course::WriteMutable(write) => {
                if !Box::pin(self.looks_after(&write)).await {
                    return Ok(false);
                }
                Box::pin(self.write(session, passage, write)).await?;
            }
            Course::Read { repository, tag, public } => {
                if public && self.read_at_hand(session, passage, &repository, &tag).await? {
                    return Ok(true);
                }
                let asked = (&repository, &tag);
                return Box::pin(self.read(session, passage, asked, public)).await;
            }
            Course::ReadPublic(repository, digest) => {
                return Box::pin(self.read_public(session, passage, &repository, &digest)).await;
            }
            Course::Delete(deletion) => {
                Box::pin(self.delete(session, passage, *deletion)).await?;
            }
            Course::DeleteMutable(repository, reference) => {
                return Box::pin(self.delete_mutable(session, passage, &repository, reference))
                    .await;
            }
            Course::Clear(clearance) => {
                Box::pin(self.clear(session, passage, *clearance)).await?;
            }
            Course::CreateTag(repository, artifact) => {
                Box::pin(self.create_tag(session, passage, repository, artifact)).await?;
            }
        }
        Ok(true)
    }

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        _passage: &mut Passage,
    ) -> Result<Box<HttpPeer>> {
        match self.rooms.peers.way().await {
            Ok(way) => Ok(Box::new(way.peer.clone())),
            Err(trouble) => {
                Err(Error::explain(ErrorType::ConnectError, trouble.to_string()).into_up())
            }
        }
    }

    /// Nothing was sent yet: another address of the registry may be well.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        peer: &HttpPeer,
        passage: &mut Passage,
        mut error: Box<Error>,
    ) -> Box<Error> {
        self.rooms.peers.shun(peer);
        passage.addresses += 1;
        error.set_retry(passage.addresses < MAX_ADDRESSES);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        passage: &mut Passage,
    ) -> Result<()> {
        if let Some(rehearsal) = &mut passage.rehearsal {
            rehearsal.begin();
        }
        // The header does not tell: pingora has taken the chunked coding out, and a body over HTTP/2 needs
        // no length.
        if session.as_mut().is_body_empty() {
            self.enter_unjudged(passage)?;
        }
        self.forwarding(passage).apply(request)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        passage: &mut Passage,
    ) -> Result<()> {
        // Over HTTP/2 a body may end in an empty piece. pingora would write it as a last chunk, and
        // then another last chunk, which the registry takes for the beginning of the next request.
        if end_of_stream && body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        passage.body_is_whole |= end_of_stream;
        if let Some(chunk) = body {
            if let Some(rehearsal) = &mut passage.rehearsal {
                rehearsal.watch(chunk, self.config.max_manifest);
            }
            passage.received += chunk.len() as u64;
        }
        if matches!(passage.unjudged, Unjudged::Coming(_)) {
            // With the last byte that was announced, too, the registry has all of it.
            let announced = session.req_header().headers.get(CONTENT_LENGTH);
            let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
            if passage.body_is_whole || announced.is_some_and(|length| passage.received >= length) {
                self.enter_unjudged(passage)?;
            }
        }
        self.check_pace(passage)
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        passage: &mut Passage,
    ) -> Result<()> {
        framing::settle(response)?;
        if response.status.is_informational() {
            passage.early += 1;
            framing::check_early(passage.early)?;
        } else {
            passage.is_answered();
        }
        self.rewriting(passage).apply(response)?;
        if let Some(warning) = &passage.warning {
            response.append_header("Warning", warning.clone())?;
        }
        if response.status.is_success()
            && let Some(rehearsal) = passage.rehearsal.take()
        {
            self.warn(passage, &rehearsal, response).await?;
        }
        Ok(())
    }

    /// Ranges are the registry's to answer; pingora would cut them out of a full answer itself.
    fn range_header_filter(
        &self,
        _session: &mut Session,
        _response: &mut ResponseHeader,
        _passage: &mut Passage,
    ) -> RangeType {
        RangeType::None
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        passage: &mut Passage,
    ) -> FailToProxy {
        let of_the_body = is_of_the_body(session, error, passage);
        let refusal = Refusal::of(error).or_else(|| of_the_body.then(Refusal::incomplete));
        let Some(refusal) = refusal else {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let error_code = refusal.status().as_u16();
        // Where an answer had begun, all that is left is to end the connection, as pingora does.
        let begun = |response: &ResponseHeader| !response.status.is_informational();
        if passage.sent.is_none()
            && !session.response_written().is_some_and(begun)
            && let Err(error) = self.refuse(session, passage, refusal).await
        {
            tracing::debug!(%error, "an error could not be answered");
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    /// The access log says it already, and once.
    fn suppress_error_log(&self, _session: &Session, _passage: &Passage, _error: &Error) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, passage: &mut Passage) {
        header_timeout::ended();
        let tally = Tally::of(session, passage);
        self.account(session.req_header(), error, passage, tally);
    }
}

/// Whether a client of HTTP/1.1 has ended its side in the middle of a body that pingora streams.
fn is_of_the_body(session: &Session, error: &Error, passage: &Passage) -> bool {
    let closed = *error.etype() == ErrorType::ConnectionClosed
        && *error.esource() == ErrorSource::Downstream;
    let announced = !blobs::has_no_body(session.req_header());
    closed && announced && !passage.body_is_whole && session.as_http1().is_some()
}

/// Where a client is, as far as its connection tells.
fn unknown_address() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}
