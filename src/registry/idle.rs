//! Connections to registries, and those among them that wait for their next request.
//!
//! pingora's own connector lets a task read from each idle connection, and gives a connection up
//! when it is asked for before that task has let go of it. A judged push sends its requests one
//! right after the other, so one in twenty opened a connection anew. Here nobody holds an idle one.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use pingora::connectors::TransportConnector;
use pingora::prelude::HttpPeer;
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1;
use pingora::upstreams::peer::Peer;
use pingora_pool::{ConnectionMeta, ConnectionPool};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;

/// Idle connections beyond this number are closed, the longest unused first.
const MOST: usize = 128;

pub struct Connections {
    connector: TransportConnector,
    idle: Arc<ConnectionPool<Stream>>,
    /// Its end closes what is idle.
    ended: watch::Sender<bool>,
}

impl Connections {
    pub fn new() -> Self {
        Self {
            connector: TransportConnector::new(None),
            idle: Arc::new(ConnectionPool::new(MOST)),
            ended: watch::Sender::new(false),
        }
    }

    /// A connection for one exchange over HTTP/1.1, and whether it has served one before.
    pub async fn take(&self, peer: &HttpPeer) -> pingora::Result<(HttpSession, bool)> {
        let session =
            |stream| HttpSession::H1(v1::client::HttpSession::new_with_options(stream, peer));
        while let Some(mut stream) = self.idle.get(&peer.reuse_hash()) {
            if is_quiet(&mut stream) {
                return Ok((session(stream), true));
            }
        }
        Ok((session(self.connector.new_stream(peer).await?), false))
    }

    /// Keeps the connection of an exchange that has come to its end, if both sides let it live.
    pub async fn give_back(&self, session: HttpSession, peer: &HttpPeer, at_most: Duration) {
        let HttpSession::H1(mut session) = session else { return };
        session.respect_keepalive();
        let Some(stream) = session.reuse().await else { return };
        self.keep(stream, peer, at_most);
    }

    /// Keeps a connection on which nothing is under way.
    pub fn keep(&self, mut stream: Stream, peer: &HttpPeer, at_most: Duration) {
        if !is_quiet(&mut stream) {
            return;
        }
        let meta = ConnectionMeta::new(peer.reuse_hash(), stream.id());
        let (evicted, taken) = self.idle.put(&meta, stream);
        let (idle, ended) = (Arc::clone(&self.idle), self.ended.subscribe());
        tokio::spawn(async move {
            idle.idle_timeout(&meta, Some(at_most), evicted, ended, taken).await;
        });
    }
}

/// Whether nothing came on an idle connection: neither its end, nor bytes nobody asked for.
fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let read = poll_fn(|context| Pin::new(&mut *stream).poll_read(context, &mut buffer));
    // Outside tokio's budget, which may say "not ready" for reasons of its own.
    let read = pin!(tokio::task::unconstrained(read));
    read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}
