//! The side that bytes come from. A quick one is not looked at until it has much: the kernel keeps count,
//! by `SO_RCVLOWAT`, and each look costs the same however little it brings.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};
use tokio::time::timeout;

use super::socket::{Socket, in_time};

/// What a quick source is to have before anybody is woken for it.
pub const MUCH: u32 = 512 * 1024;
/// A source that had as much at one look is quick.
const QUICK: usize = 256 * 1024;
/// It is no longer where it lets wait for so long: what it has is taken then, and what comes as it comes.
const GRACE: Duration = Duration::from_millis(2);

sockopt_impl!(
    /// How much is to be there before a socket counts as readable. Its end always does, and so does
    /// one whose buffer is full.
    LowMark,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    u32
);

/// A connection that bytes are taken from. Whoever reads it next is woken for each byte again.
pub struct Feed {
    pub socket: Socket,
    /// How long it may be silent.
    patience: Duration,
    /// It is not readable before it has much. Atomic only for who waits while it is shared.
    raised: AtomicBool,
    /// What is taken next has gathered while it was waited for, which says nothing of its pace.
    gathered: AtomicBool,
}

impl Feed {
    pub fn new(socket: Socket, patience: Duration) -> Self {
        let (raised, gathered) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { socket, patience, raised, gathered }
    }

    /// Waits until this, which takes from the socket, has taken something.
    ///
    /// # Errors
    /// What this does not do, or that nothing came in time.
    pub async fn wait<T>(&self, take: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let mut take = pin!(take);
        if self.raised.load(Relaxed) {
            if let Ok(taken) = timeout(GRACE, &mut take).await {
                return taken;
            }
            // If there is anything, the kernel wakes us for it now.
            self.mark(false);
            self.gathered.store(true, Relaxed);
        }
        in_time(self.patience, take).await
    }

    /// So much was taken at one look, and so much is still to come.
    pub fn note(&self, taken: usize, to_come: u64) {
        let is_raised = self.raised.load(Relaxed);
        let gathered = self.gathered.swap(false, Relaxed);
        let quick = taken >= QUICK && !gathered;
        // What is waited for must come, or a body's last bytes would be late.
        let raised = (is_raised || quick) && to_come > u64::from(MUCH);
        if raised != is_raised {
            self.mark(raised);
        }
    }

    fn mark(&self, raised: bool) {
        let least = if raised { MUCH } else { 1 };
        // Where the kernel refuses, it goes on to wake us for each byte. It takes back what it took.
        let set = setsockopt(&self.socket, LowMark, &least);
        self.raised.store(raised && set.is_ok(), Relaxed);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if *self.raised.get_mut() {
            self.mark(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::task::{Context, Poll, Waker};

    use bytes::BytesMut;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;
    use tokio::time::sleep;

    use super::*;

    impl Feed {
        pub fn is_raised(&self) -> bool {
            self.raised.load(Relaxed)
        }
    }

    const PATIENCE: Duration = Duration::from_secs(60);
    /// For the kernel to have told tokio.
    const A_WHILE: Duration = Duration::from_millis(50);
    const ENDLESS: u64 = u64::MAX;

    async fn feed() -> (Feed, TcpStream) {
        let (socket, far) = Socket::pair().await;
        (Feed::new(socket, PATIENCE), far)
    }

    async fn take(feed: &Feed) -> io::Result<usize> {
        feed.wait(feed.socket.receive(&mut BytesMut::with_capacity(2 << 20))).await
    }

    /// What is there is taken without any waiting.
    fn at_once(feed: &Feed) -> Option<io::Result<usize>> {
        match pin!(take(feed)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(taken) => Some(taken),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn a_quick_source_is_waited_for_until_it_has_much() {
        let (feed, mut far) = feed().await;
        feed.note(QUICK, ENDLESS);
        let writing = tokio::spawn(async move {
            far.write_all(&[7; 1000]).await.unwrap();
            sleep(A_WHILE).await;
            far.write_all(&vec![7; MUCH as usize]).await.unwrap();
            far
        });
        sleep(A_WHILE / 2).await;
        assert!(at_once(&feed).is_none(), "it was looked at for a few bytes");
        let _far = writing.await.unwrap();
        sleep(A_WHILE).await;
        assert!(at_once(&feed).unwrap().unwrap() > 1000);
        assert!(feed.is_raised(), "it is as quick as before");
    }

    #[tokio::test]
    async fn one_that_is_not_quick_any_more_is_taken_from_as_it_comes() {
        let (feed, mut far) = feed().await;
        feed.note(QUICK, ENDLESS);
        far.write_all(&[7; 1000]).await.unwrap();
        sleep(A_WHILE).await;
        assert!(at_once(&feed).is_none(), "it was looked at for a few bytes");
        assert_eq!(take(&feed).await.unwrap(), 1000, "what it has is taken after a moment");
        // What gathered meanwhile may be much: it does not make it quick.
        for taken in [QUICK, QUICK - 1, 0] {
            feed.note(taken, ENDLESS);
            assert!(at_once(&feed).is_none(), "it is known that there is nothing");
            far.write_all(&[7; 10]).await.unwrap();
            sleep(A_WHILE).await;
            assert_eq!(at_once(&feed).unwrap().unwrap(), 10, "after a look at {taken}");
        }
        feed.note(QUICK, ENDLESS);
        assert!(feed.is_raised(), "it is quick again");
        far.write_all(&[7; 10]).await.unwrap();
        assert_eq!(take(&feed).await.unwrap(), 10);
        feed.note(10, ENDLESS);
        feed.note(QUICK, ENDLESS);
        assert!(feed.is_raised(), "only the look after the wait does not count");
    }

    #[tokio::test]
    async fn the_last_bytes_and_the_end_are_not_waited_with() {
        let (feed, mut far) = feed().await;
        feed.note(QUICK, u64::from(MUCH));
        far.write_all(&[7; 10]).await.unwrap();
        sleep(A_WHILE).await;
        assert_eq!(at_once(&feed).unwrap().unwrap(), 10, "less than much is to come");
        assert!(at_once(&feed).is_none(), "and it is known that there is no more");
        feed.note(QUICK, u64::from(MUCH) + 1);
        far.write_all(&[7; 10]).await.unwrap();
        sleep(A_WHILE).await;
        assert!(at_once(&feed).is_none(), "much is to come");
        feed.note(0, u64::from(MUCH));
        sleep(A_WHILE).await;
        assert_eq!(at_once(&feed).unwrap().unwrap(), 10, "what was there when it was lowered");
        assert!(at_once(&feed).is_none(), "and it is known that there is no more");
        feed.note(QUICK, ENDLESS);
        drop(far);
        sleep(A_WHILE).await;
        assert_eq!(at_once(&feed).unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn one_that_is_silent_for_too_long_is_given_up() {
        let (socket, _far) = Socket::pair().await;
        let feed = Feed::new(socket, Duration::from_millis(20));
        for taken in [0, QUICK] {
            feed.note(taken, ENDLESS);
            assert_eq!(take(&feed).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn whoever_reads_the_connection_next_is_woken_for_a_byte() {
        let (feed, mut far) = feed().await;
        let next = feed.socket.as_fd().try_clone_to_owned().unwrap();
        let next = TcpStream::from_std(next.into()).unwrap();
        feed.note(QUICK, ENDLESS);
        far.write_all(b"H").await.unwrap();
        assert!(timeout(A_WHILE, next.readable()).await.is_err(), "the mark is the connection's");
        drop(feed);
        timeout(PATIENCE, next.readable()).await.unwrap().unwrap();
    }
}
