//! Connections to registries, and those among them that wait for their next request.
//!
//! pingora's own connector lets a task read from each idle connection, and gives a connection up
//! when it is asked for before that task has let go of it. A judged push sends its requests one
//! right after the other, so one in twenty opened a connection anew. Here nobody holds an idle one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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

use super::endpoint::Way;

/// A runtime's idle connections beyond this number are closed, the longest unused first.
const MOST: usize = 128;
/// How long one may be kept past its time, as a part of it.
const LATE: u32 = 8;

pub struct Connections {
    connector: TransportConnector,
    homes: DashMap<Id, Home>,
}

/// Where a runtime's idle connections are kept, which is told when something comes on them: another
/// one would have to be woken from there.
#[derive(Clone, Default)]
pub struct Home(Arc<Mutex<Lot>>);

#[derive(Default)]
struct Lot {
    waiting: VecDeque<Waiting>,
    /// Somebody closes those whose time is over.
    swept: bool,
}

struct Waiting {
    /// Whom it leads to, and how it was made.
    peer: u64,
    until: Instant,
    stream: Stream,
}

impl Default for Connections {
    fn default() -> Self {
        Self { connector: TransportConnector::new(None), homes: DashMap::new() }
    }
}

impl Connections {
    /// That of the runtime this is called in. Who asks for many connections there asks once for it.
    pub fn home(&self) -> Home {
        let here = Handle::current().id();
        // There, but for the first time.
        let home = self.homes.get(&here).map(|home| home.clone());
        home.unwrap_or_else(|| self.homes.entry(here).or_default().clone())
    }

    /// A connection for one exchange over HTTP/1.1, and whether it has served one before.
    pub async fn take(&self, way: &Way) -> pingora::Result<(HttpSession, bool)> {
        let (stream, reused) = self.take_stream(way, &self.home(), Instant::now()).await?;
        let session = v1::client::HttpSession::new_with_options(stream, &way.peer);
        Ok((HttpSession::H1(session), reused))
    }

    /// A connection of its own.
    pub async fn open(&self, way: &Way) -> pingora::Result<HttpSession> {
        let stream = Box::pin(self.connector.new_stream(&way.peer)).await?;
        let session = v1::client::HttpSession::new_with_options(stream, &way.peer);
        Ok(HttpSession::H1(session))
    }

    /// The same as [`Self::take`], for who speaks HTTP itself, and knows what time it is.
    pub async fn take_stream(
        &self,
        way: &Way,
        home: &Home,
        now: Instant,
    ) -> pingora::Result<(Stream, bool)> {
        while let Some(mut stream) = home.take(way.hash, now) {
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
        self.home().keep(stream, way, Instant::now(), at_most);
    }
}

impl Home {
    /// Keeps a connection on which nothing is under way. Whether that is so is looked at when it is
    /// taken.
    pub fn keep(&self, stream: Stream, way: &Way, now: Instant, at_most: Duration) {
        self.put(way.hash, stream, now, at_most);
    }

    /// The one used last: the others get old enough to be closed.
    fn take(&self, peer: u64, now: Instant) -> Option<Stream> {
        let waiting = &mut self.lot().waiting;
        let at = waiting.iter().rposition(|one| one.peer == peer && one.until > now)?;
        waiting.remove(at).map(|one| one.stream)
    }

    fn put(&self, peer: u64, stream: Stream, now: Instant, at_most: Duration) {
        let mut lot = self.lot();
        if !std::mem::replace(&mut lot.swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0), at_most / LATE));
        }
        lot.waiting.push_back(Waiting { peer, until: now + at_most, stream });
        let over = (lot.waiting.len() > MOST).then(|| lot.waiting.pop_front());
        drop(lot);
        // Closed outside the lock.
        drop(over);
    }

    /// Takes out those whose time is over. `None` where none is left to wait for.
    fn expired(&self) -> Option<VecDeque<Waiting>> {
        let (mut lot, now) = (self.lot(), Instant::now());
        lot.swept = !lot.waiting.is_empty();
        let (over, left) = lot.waiting.drain(..).partition(|one| one.until <= now);
        lot.waiting = left;
        lot.swept.then_some(over)
    }

    fn lot(&self) -> MutexGuard<'_, Lot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when nothing is left to sweep, or nobody is left to keep anything.
async fn sweep(lot: Weak<Mutex<Lot>>, every: Duration) {
    loop {
        sleep(every).await;
        let Some(lot) = lot.upgrade() else { return };
        let Some(over) = Home(lot).expired() else { return };
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

    impl Home {
        /// `None` where nobody sweeps.
        fn count(&self) -> Option<usize> {
            let lot = self.lot();
            lot.swept.then(|| lot.waiting.len())
        }
    }

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Box::new(Tcp::from(near)), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_one_used_last_comes_first_and_each_only_for_its_peer() {
        let idle = Home::default();
        let mut ids = Vec::new();
        for peer in [1, 2, 1] {
            let (stream, _far) = pair().await;
            ids.push(stream.id());
            idle.put(peer, stream, Instant::now(), MINUTE);
        }
        let take = |peer| idle.take(peer, Instant::now()).map(|stream| stream.id());
        assert_eq!([take(1), take(1), take(1)], [Some(ids[2]), Some(ids[0]), None]);
        assert_eq!([take(3), take(2)], [None, Some(ids[1])]);
    }

    #[tokio::test]
    async fn one_that_lives_in_another_runtime_is_not_taken() {
        let connections = Arc::new(Connections::default());
        connections.home().put(1, pair().await.0, Instant::now(), MINUTE);
        let elsewhere = Arc::clone(&connections);
        let taken = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async { elsewhere.home().take(1, Instant::now()).is_some() })
        });
        assert!(!taken.join().unwrap());
        assert!(connections.home().take(1, Instant::now()).is_some());
    }

    #[tokio::test]
    async fn there_are_no_more_than_may_be() {
        let idle = Home::default();
        for peer in 0..MOST as u64 + 3 {
            idle.put(peer, pair().await.0, Instant::now(), MINUTE);
        }
        assert_eq!(idle.count(), Some(MOST));
        assert!(
            idle.take(2, Instant::now()).is_none() && idle.take(3, Instant::now()).is_some(),
            "the longest unused are closed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_closed_when_their_time_is_over_and_the_sweeper_ends() {
        let idle = Home::default();
        for round in 0..2 {
            idle.put(1, pair().await.0, Instant::now(), MINUTE);
            sleep(MINUTE / 2).await;
            idle.put(1, pair().await.0, Instant::now(), MINUTE);
            assert_eq!(idle.count(), Some(2), "{round}");
            sleep(MINUTE / 2 + MINUTE / LATE).await;
            assert_eq!(idle.count(), Some(1), "{round}");
            idle.lot().waiting[0].until = Instant::now();
            assert!(idle.take(1, Instant::now()).is_none(), "not swept yet, and over its time");
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
