//! Tells HTTP/2 without TLS from HTTP/1.1 by a connection's first bytes, and takes a connection of
//! HTTP/1.1 from one request to the next.
//!
//! pingora's own way waits for as many bytes as HTTP/2's preface has, without a bound: it never
//! answers the 22 bytes of `OPTIONS / HTTP/1.0`, which load balancers send to see whether a server
//! is alive, and holds a silent connection for ever. Four bytes are enough, and they must come in time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::BytesMut;
use pingora::apps::{HttpServerApp as _, HttpServerOptions, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::blobs::keep_no_pipes;
use super::context::{Passage, Start};
use super::http1_connection::{Line, Next, Received};
use super::http2_drain::Deliveries;
use super::limits::Crowd;
use super::small_read::Outcome;
use super::{Config, Edge, KEEPALIVE_SECONDS, error_response, header_timeout, unknown_address};
use crate::runtime::timer::Clock;

/// What HTTP/2 begins with (RFC 9113, section 3.4). No request of HTTP/1.1 begins with `PRI `.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may be silent before a request.
const SILENCE: Duration = Duration::from_secs(60);
/// When the proxy stops, connections that are open have so long to bring a request, which is answered
/// with `Connection: close`. Clients are told so before they are cut off.
pub const LULL: Duration = Duration::from_secs(1);
/// Between two looks whether some are left.
const LOOK: Duration = Duration::from_millis(20);
/// How long an HTTP/2 connection may be kept without a request.
const IDLE_HTTP2: Duration = Duration::from_secs(120);

/// The proxy in one lane, behind its listeners.
pub struct Front {
    crowd: Arc<Crowd>,
    deliveries: Arc<Deliveries>,
    /// How long a connection may take to the next whole header of HTTP/1.1.
    header_time: Duration,
    http1: Arc<HttpProxy<Edge>>,
    /// `None` behind TLS, where the handshake has settled the version.
    http2: Option<Arc<HttpProxy<Edge>>>,
    /// Answers small reads itself, where it may, and headers that are too long.
    own: Edge,
    /// Says when the lull is over.
    over: watch::Sender<bool>,
}

impl Front {
    /// `edge` makes one edge for each version.
    pub fn new(
        configuration: &Arc<ServerConf>,
        tls: bool,
        (crowd, deliveries): (Arc<Crowd>, Arc<Deliveries>),
        header_time: Duration,
        edge: impl Fn() -> Edge,
    ) -> Self {
        let own = edge();
        let max_header = u32::try_from(own.config.max_header).unwrap_or(u32::MAX);
        let proxy = |h2c: bool| {
            let mut proxy = http_proxy(configuration, edge());
            let mut http2 = default_h2_options();
            http2.max_header_list_size(max_header);
            proxy.h2_options = Some(http2);
            let mut options = HttpServerOptions::default();
            options.h2c = h2c;
            options.h2_idle_timeout = Some(IDLE_HTTP2);
            proxy.server_options = Some(options);
            Arc::new(proxy)
        };
        let (http1, http2) = (proxy(false), (!tls).then(|| proxy(true)));
        let over = watch::Sender::new(false);
        Self { crowd, deliveries, header_time, http1, http2, own, over }
    }

    async fn serve(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            return self.serve_http2(&self.http1, stream, shutdown).await;
        }
        let since = Instant::now();
        let Some(http2) = &self.http2 else {
            return self.serve_http1(stream, since, shutdown).await;
        };
        let (due, over) = (since + self.patience(), self.over.subscribe());
        if starts_with(&mut stream, &PREFACE[..4], due, &over).await? {
            // All of it must come in time, too: pingora waits for it without a bound.
            starts_with(&mut stream, PREFACE, due, &over).await?;
            self.serve_http2(http2, stream, shutdown).await
        } else {
            self.serve_http1(stream, since, shutdown).await
        }
    }

    /// How long a connection may take to its next whole header.
    fn patience(&self) -> Duration {
        self.header_time.min(SILENCE)
    }

    async fn serve_http2(
        &self,
        proxy: &Arc<HttpProxy<Edge>>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let _watched = self.deliveries.watch(&stream);
        proxy.process_new(stream, shutdown).await
    }

    /// One request after the other: small reads are answered here, the others by pingora. The first
    /// header has been waited for since then.
    async fn serve_http1(
        &self,
        stream: Stream,
        since: Instant,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let peer = stream
            .get_socket_digest()
            .and_then(|digest| digest.peer_addr().and_then(|address| address.as_inet().copied()))
            .unwrap_or_else(unknown_address);
        let mut line = Line::of(stream);
        let mut over = self.over.subscribe();
        let over = over.wait_for(|over| *over);
        let mut due = since + self.patience();
        let mut clock = Clock::default();
        let Config { relays, max_header, .. } = *self.own.config;
        tokio::pin!(over);
        loop {
            let mut time = clock.until(due);
            let next = tokio::select! {
                biased;
                next = time.left(line.next(relays, max_header)) => next.ok()??,
                _ = &mut over => return None,
            };
            let (received, known) = match next {
                Next::Other(received) => (received, None),
                Next::TooLong(read) => {
                    self.own.refuse_header(line.stream, peer, &read).await;
                    return None;
                }
                Next::Asked(mut asked) => {
                    asked.keeps &= !*shutdown.borrow();
                    let mut client = (&mut line, peer);
                    match self.own.answer_asked(&mut client, &mut asked, &mut clock).await {
                        Outcome::Answered { keeps: true } => {
                            line.keep(asked);
                            due = clock.now() + self.patience();
                            continue;
                        }
                        Outcome::Answered { keeps: false } => return None,
                        Outcome::Other(passage) => {
                            let header = asked.raw.len();
                            (Received { bytes: asked.raw, header }, Some(passage))
                        }
                    }
                }
            };
            line = self.hand_over(line, &received, known, shutdown).await?;
            clock.passes();
            due = clock.now() + self.patience();
        }
    }

    /// Has pingora serve one request, of which this much was read. `None` where the connection is
    /// not to be used again.
    async fn hand_over(
        &self,
        line: Line,
        received: &Received,
        known: Option<Box<Passage>>,
        shutdown: &ShutdownWatch,
    ) -> Option<Line> {
        let (stream, lent) = line.lend();
        let mut session = ServerSession::new_http1(stream);
        if let ServerSession::H1(http1) = &mut session {
            http1.set_pipelined_prefix(BytesMut::from(&received.bytes[..]));
        }
        let keepalive = (!*shutdown.borrow()).then_some(KEEPALIVE_SECONDS);
        session.set_keepalive(keepalive);
        let start = Start { passage: known, body_received: received.of_the_body() };
        session.set_connection_user_context(Some(Box::new(start)));
        let serving = self.http1.process_new_http(session, shutdown);
        let served = header_timeout::kept(self.header_time, Instant::now(), serving).await;
        let (stream, _) = served.flatten()?.consume();
        Some(lent.back(stream))
    }
}

#[async_trait]
impl ServerApp for Front {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        match self.crowd.connect() {
            Some(_connected) => self.serve(stream, shutdown).await,
            None => {
                error_response::turn_away(stream).await;
                None
            }
        }
    }

    /// No connection is accepted any more; those that wait for a request are closed.
    async fn cleanup(&self) {
        keep_no_pipes();
        let start = Instant::now();
        while self.crowd.connected() > 0 && start.elapsed() < LULL {
            sleep(LOOK).await;
        }
        self.over.send_replace(true);
        ServerApp::cleanup(&*self.http1).await;
        if let Some(http2) = &self.http2 {
            ServerApp::cleanup(&**http2).await;
        }
    }
}

/// Whether the next bytes are these; they stay to be read. `None` where none come in time, the
/// client leaves, or the proxy has stopped.
async fn starts_with(
    stream: &mut Stream,
    bytes: &[u8],
    due: Instant,
    over: &watch::Receiver<bool>,
) -> Option<bool> {
    let mut over = over.clone();
    let mut start = vec![0; bytes.len()];
    let peeked = tokio::select! {
        biased;
        peeked = timeout_at(due, stream.try_peek(&mut start)) => peeked,
        _ = over.wait_for(|over| *over) => return None,
    };
    matches!(peeked, Ok(Ok(true))).then(|| start == bytes)
}
