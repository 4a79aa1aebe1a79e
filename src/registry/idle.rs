//! Connections to registries, and those among them that wait for their next request.
//!
//! pingora's own connector lets a task read from each idle connection, and gives a connection up
//! when it is asked for before that task has let go of it. A judged push sends its requests one
//! right after the other, so one in twenty opened a connection anew. Here nobody holds an idle one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use dashmap::DashMap;
use pingora::connectors::TransportConnector;
use pingora::protocols::Stream;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, sleep};

use super::peer::Way;

/// A runtime's idle connections beyond this number are closed, the longest unused first.
const MOST: usize = 128;
/// How long one may be kept past its time, as a part of it.
const LATE: u32 = 8;

pub struct Connections {
    connector: TransportConnector,
    idle: Arc<Idle>,
}

/// By the runtime that is told when something comes on them: another one's would have to be woken from
/// there.
struct Idle(DashMap<Id, VecDeque<Waiting>>);

impl Default for Idle {
    fn default() -> Self {
        // Of many parts, so that two runtimes hardly ever have one in common.
        Self(DashMap::with_shard_amount(256))
    }
}

struct Waiting {
    /// Whom it leads to, and how it was made.
    peer: u64,
    until: Instant,
    stream: Stream,
}

impl Connections {
    pub fn new() -> Self {
        Self { connector: TransportConnector::new(None), idle: Arc::default() }
    }

    /// A connection for one exchange over HTTP/1.1, and whether it has served one before.
    pub async fn take(&self, way: &Way) -> pingora::Result<(HttpSession, bool)> {
        let (stream, reused) = self.take_stream(way).await?;
        let session = v1::client::HttpSession::new_with_options(stream, &way.peer);
        Ok((HttpSession::H1(session), reused))
    }

    /// The same, for who speaks HTTP itself.
    pub async fn take_stream(&self, way: &Way) -> pingora::Result<(Stream, bool)> {
        while let Some(mut stream) = self.idle.take(way.hash) {
            if is_quiet(&mut stream) {
                return Ok((stream, true));
            }
        }
        // Boxed: a handshake is rare, and large.
        Ok((Box::pin(self.connector.new_stream(&way.peer)).await?, false))
    }

    /// Keeps the connection of an exchange that has come to its end, if both sides let it live.
    pub async fn give_back(&self, session: HttpSession, way: &Way, at_most: Duration) {
        let HttpSession::H1(mut session) = session else { return };
        session.respect_keepalive();
        let Some(stream) = session.reuse().await else { return };
        self.keep(stream, way, at_most);
    }

    /// Keeps a connection on which nothing is under way. Whether that is so is looked at when it is
    /// taken.
    pub fn keep(&self, stream: Stream, way: &Way, at_most: Duration) {
        self.idle.keep(way.hash, stream, at_most);
    }
}

impl Idle {
    /// The one used last: the others get old enough to be closed.
    fn take(&self, peer: u64) -> Option<Stream> {
        let now = Instant::now();
        let mut kept = self.0.get_mut(&Handle::current().id())?;
        let at = kept.iter().rposition(|waiting| waiting.peer == peer && waiting.until > now)?;
        kept.remove(at).map(|waiting| waiting.stream)
    }

    fn keep(self: &Arc<Self>, peer: u64, stream: Stream, at_most: Duration) {
        let home = Handle::current().id();
        let mut kept = self.0.entry(home).or_insert_with(|| {
            tokio::spawn(sweep(Arc::downgrade(self), home, at_most / LATE));
            VecDeque::new()
        });
        kept.push_back(Waiting { peer, until: Instant::now() + at_most, stream });
        let over = (kept.len() > MOST).then(|| kept.pop_front());
        drop(kept);
        // Closed outside the lock.
        drop(over);
    }

    /// Takes out those whose time is over. `None` where none is left to wait for.
    fn expired(&self, home: Id) -> Option<VecDeque<Waiting>> {
        let mut kept = self.0.get_mut(&home)?;
        let now = Instant::now();
        let (over, left) = kept.drain(..).partition(|waiting| waiting.until <= now);
        *kept = left;
        drop(kept);
        // Unless one was kept right now, whose sweeper is this one.
        let gone =
            VecDeque::is_empty(&over) && self.0.remove_if(&home, |_, k| k.is_empty()).is_some();
        (!gone).then_some(over)
    }
}

/// Ends when nothing is left to sweep, or nobody is left to keep anything.
async fn sweep(idle: Weak<Idle>, home: Id, every: Duration) {
    loop {
        sleep(every).await;
        let Some(idle) = idle.upgrade() else { return };
        let Some(over) = idle.expired(home) else { return };
        drop(over);
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

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as Tcp;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    impl Idle {
        /// Of this runtime; `None` where nobody sweeps.
        fn count(&self) -> Option<usize> {
            self.0.get(&Handle::current().id()).map(|kept| kept.len())
        }
    }

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Box::new(Tcp::from(near)), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_one_used_last_comes_first_and_each_only_for_its_peer() {
        let idle = Arc::new(Idle::default());
        let mut ids = Vec::new();
        for peer in [1, 2, 1] {
            let (stream, _far) = pair().await;
            ids.push(stream.id());
            idle.keep(peer, stream, MINUTE);
        }
        let take = |peer| idle.take(peer).map(|stream| stream.id());
        assert_eq!([take(1), take(1), take(1)], [Some(ids[2]), Some(ids[0]), None]);
        assert_eq!([take(3), take(2)], [None, Some(ids[1])]);
    }

    #[tokio::test]
    async fn one_that_lives_in_another_runtime_is_not_taken() {
        let idle = Arc::new(Idle::default());
        idle.keep(1, pair().await.0, MINUTE);
        let elsewhere = Arc::clone(&idle);
        let taken = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { elsewhere.take(1).is_some() })
        });
        assert!(!taken.join().unwrap());
        assert!(idle.take(1).is_some());
    }

    #[tokio::test]
    async fn there_are_no_more_than_may_be() {
        let idle = Arc::new(Idle::default());
        for peer in 0..MOST as u64 + 3 {
            idle.keep(peer, pair().await.0, MINUTE);
        }
        assert_eq!(idle.count(), Some(MOST));
        assert!(idle.take(2).is_none() && idle.take(3).is_some(), "the longest unused are closed");
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_closed_when_their_time_is_over_and_the_sweeper_ends() {
        let idle = Arc::new(Idle::default());
        for round in 0..2 {
            idle.keep(1, pair().await.0, MINUTE);
            sleep(MINUTE / 2).await;
            idle.keep(1, pair().await.0, MINUTE);
            assert_eq!(idle.count(), Some(2), "{round}");
            sleep(MINUTE / 2 + MINUTE / LATE).await;
            assert_eq!(idle.count(), Some(1), "{round}");
            idle.0.iter_mut().next().unwrap()[0].until = Instant::now();
            assert!(idle.take(1).is_none(), "not swept yet, and over its time");
            sleep(MINUTE).await;
            assert_eq!(idle.count(), None, "{round}");
        }
    }

    #[tokio::test]
    async fn what_has_ended_or_speaks_out_of_turn_is_not_quiet() {
        let (mut stream, far) = pair().await;
        assert!(is_quiet(&mut stream));
        drop(far);
        let (mut other, far) = pair().await;
        far.try_write(b"x").unwrap();
        sleep(Duration::from_millis(50)).await;
        assert!(!is_quiet(&mut stream) && !is_quiet(&mut other));
    }
}
