//! Tells HTTP/2 without TLS from HTTP/1.1 by a connection's first bytes.
//!
//! pingora's own way waits for as many bytes as HTTP/2's preface has, without a bound: it never
//! answers the 22 bytes of `OPTIONS / HTTP/1.0`, which load balancers send to see whether a server
//! is alive, and holds a silent connection for ever. Four bytes are enough, and they must come in time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::crowd::Crowd;
use super::{Edge, pace, refusal};

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

/// The proxy behind one listener.
pub struct Front {
    crowd: Arc<Crowd>,
    /// How long a connection may take to the next whole header of HTTP/1.1.
    header_time: Duration,
    http1: Arc<HttpProxy<Edge>>,
    /// `None` behind TLS, where the handshake has settled the version.
    http2: Option<Arc<HttpProxy<Edge>>>,
    /// Says when the lull is over.
    over: watch::Sender<bool>,
}

impl Front {
    /// `edge` makes one edge for each version.
    pub fn new(
        configuration: &Arc<ServerConf>,
        tls: bool,
        crowd: Arc<Crowd>,
        header_time: Duration,
        edge: impl Fn() -> Edge,
    ) -> Self {
        let proxy = |h2c: bool| {
            let mut proxy = http_proxy(configuration, edge());
            let mut options = HttpServerOptions::default();
            options.h2c = h2c;
            options.h2_idle_timeout = Some(IDLE_HTTP2);
            proxy.server_options = Some(options);
            Arc::new(proxy)
        };
        let (http1, http2) = (proxy(false), (!tls).then(|| proxy(true)));
        Self { crowd, header_time, http1, http2, over: watch::Sender::new(false) }
    }

    async fn serve(
        self: &Arc<Self>,
        mut stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            return self.http1.process_new(stream, shutdown).await;
        }
        let Some(http2) = &self.http2 else { return self.serve_http1(stream, shutdown).await };
        let over = self.over.subscribe();
        if starts_with(&mut stream, &PREFACE[..4], &over).await? {
            // All of it must come in time, too: pingora waits for it without a bound.
            starts_with(&mut stream, PREFACE, &over).await?;
            http2.process_new(stream, shutdown).await
        } else {
            self.serve_http1(stream, shutdown).await
        }
    }

    async fn serve_http1(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        pace::kept(self.header_time, self.http1.process_new(stream, shutdown)).await.flatten()
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
                refusal::turn_away(stream).await;
                None
            }
        }
    }

    /// No connection is accepted any more; those that wait for a request are closed.
    async fn cleanup(&self) {
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
    over: &watch::Receiver<bool>,
) -> Option<bool> {
    let mut over = over.clone();
    let mut start = vec![0; bytes.len()];
    let peeked = tokio::select! {
        biased;
        peeked = timeout(SILENCE, stream.try_peek(&mut start)) => peeked,
        _ = over.wait_for(|over| *over) => return None,
    };
    matches!(peeked, Ok(Ok(true))).then(|| start == bytes)
}
