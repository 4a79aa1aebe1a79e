//! Bytes from one socket to another without a copy: `splice(2)` by way of a pipe.

use std::cell::Cell;
use std::io;

use bytes::{Buf as _, BufMut as _, BytesMut};
use pingora::protocols::Stream;
use rustix::io::Errno;
use tokio::task::{coop, yield_now};

use super::low_water::Feed;
use super::pipe::{PIPE, Pipe};
use super::socket::{Heed, Patience, Sink, Socket, Stopped, in_time};

/// A piece where bytes must be copied.
pub const PIECE: usize = 256 * 1024;
/// One where there are more bodies than the user's share of pipes is for: many, so each has less.
const ONE_OF_MANY: usize = 64 * 1024;
/// After a turn that moved less, the thread's other bodies go first: meanwhile more comes in, for
/// fewer, larger turns.
const LITTLE: usize = 256 * 1024;

thread_local! {
    /// Bodies that are under way in this thread.
    static UNDER_WAY: Cell<usize> = const { Cell::new(0) };
}

/// What one body moves at most before whatever else the thread has to do.
const STRIDE: usize = 4 << 20;

/// What a body has moved since it let others go first.
#[derive(Default)]
pub struct Stride(usize);

impl Stride {
    /// So much more was moved. Whether others go first now.
    pub fn is_over(&mut self, moved: usize) -> bool {
        self.0 += moved;
        let over = self.0 >= STRIDE;
        if over {
            self.0 = 0;
        }
        over
    }
}

/// Counts as long as it lives.
struct UnderWay;

impl UnderWay {
    fn new() -> Self {
        UNDER_WAY.set(UNDER_WAY.get() + 1);
        Self
    }

    fn is_alone() -> bool {
        UNDER_WAY.get() <= 1
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // In a runtime of several threads it may have begun in another one: this is a hint.
        UNDER_WAY.set(UNDER_WAY.get().saturating_sub(1));
    }
}

/// The way of one body from socket to socket.
pub struct Through {
    feed: Feed,
    pub sink: Sink,
    by: By,
    /// Taken from the source, and not given to the sink yet.
    held: usize,
    stride: Stride,
    _under_way: UnderWay,
}

/// What the bytes go through on their way.
enum By {
    Pipe(Pipe),
    /// Where the kernel does not splice, or has no room for another pipe: pieces of a size.
    Copy(BytesMut, usize),
}

impl Through {
    /// Has all descriptors at hand, before anything is sent.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn open(
        source: &Stream,
        sink: &Stream,
        patience: Patience,
        heed: Heed,
    ) -> io::Result<Self> {
        let (source, socket) = (Socket::of(source)?, Socket::of(sink)?);
        let sink = Sink { socket, patience: patience.sink, heed };
        Ok(Self::new(Feed::new(source, patience.source), sink, By::of(Pipe::take()?)))
    }

    fn new(feed: Feed, sink: Sink, by: By) -> Self {
        let (stride, _under_way) = (Stride::default(), UnderWay::new());
        Self { feed, sink, by, held: 0, stride, _under_way }
    }

    /// Moves `left` bytes, and counts them in `moved`, also where it stops early.
    ///
    /// # Errors
    /// The side that ended or was too slow.
    pub async fn pump(&mut self, mut left: u64, moved: &mut u64) -> Result<(), Stopped> {
        while left > 0 {
            self.turn(&mut left, moved).await?;
        }
        Ok(())
    }

    /// Moves what is there of `left` bytes.
    ///
    /// # Errors
    /// The side that ended or was too slow.
    pub async fn turn(&mut self, left: &mut u64, moved: &mut u64) -> Result<(), Stopped> {
        coop::consume_budget().await;
        let Self { feed, sink, by, held, stride, .. } = self;
        if *held == 0 {
            let most = usize::try_from(*left).unwrap_or(usize::MAX).min(PIPE);
            // What is there at once needs no timer and no look at the other side.
            let taken = match by.take_now(&feed.socket, most) {
                None => tokio::select! {
                    biased;
                    taken = feed.wait(by.take(&feed.socket, most)) => taken,
                    stopped = sink.interrupted() => return Err(stopped),
                },
                Some(taken) => taken,
            };
            *held = match taken {
                Ok(0) => return Err(Stopped::Source(io::ErrorKind::UnexpectedEof.into())),
                Ok(taken) => taken,
                Err(error) if is_unable(&error) && matches!(by, By::Pipe(_)) => {
                    *by = By::Copy(BytesMut::new(), PIECE);
                    return Ok(());
                }
                Err(error) => return Err(Stopped::Source(error)),
            };
            feed.note(*held, *left - *held as u64);
        }
        let all = *held;
        while *held > 0 {
            let more = *left > *held as u64;
            let given = match by.give_now(&sink.socket, *held, more) {
                None => tokio::select! {
                    biased;
                    given = in_time(sink.patience, by.give(&sink.socket, *held, more)) => given,
                    stopped = sink.interrupted() => return Err(stopped),
                },
                Some(given) => given,
            };
            let given = given.map_err(Stopped::Sink)?;
            *held -= given;
            *left -= given as u64;
            *moved += given as u64;
        }
        let others_first = stride.is_over(all) || all < LITTLE && !UnderWay::is_alone();
        if others_first && *left > 0 {
            yield_now().await;
        }
        Ok(())
    }

    /// Its end: an empty pipe is kept for the next body, one with something in it is closed.
    pub fn close(self) {
        if let (By::Pipe(pipe), 0) = (self.by, self.held) {
            pipe.give_back();
        }
    }
}

impl By {
    fn of(pipe: Option<Pipe>) -> Self {
        pipe.map_or_else(|| Self::Copy(BytesMut::new(), ONE_OF_MANY), Self::Pipe)
    }

    /// What is there at once, where it can be spliced.
    fn take_now(&self, source: &Socket, most: usize) -> Option<io::Result<usize>> {
        let Self::Pipe(pipe) = self else { return None };
        ready(source.if_readable(|| pipe.fill(source, most)))
    }

    /// What is taken at once of what is held in the pipe.
    fn give_now(&self, sink: &Socket, held: usize, more: bool) -> Option<io::Result<usize>> {
        let Self::Pipe(pipe) = self else { return None };
        ready(sink.if_writable(|| pipe.drain(sink, held, more)))
    }

    /// At most so many bytes from the source; 0 at its end.
    async fn take(&mut self, source: &Socket, most: usize) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => source.when_readable(|| pipe.fill(source, most)).await,
            Self::Copy(piece, size) => {
                piece.clear();
                piece.reserve(*size);
                source.receive(&mut piece.limit(most.min(*size))).await
            }
        }
    }

    /// Some of the bytes that are held to the sink; more may follow at once.
    async fn give(&mut self, sink: &Socket, held: usize, more: bool) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.empty(sink, held, more).await,
            Self::Copy(piece, _) => {
                let sent = sink.send(piece, more).await?;
                piece.advance(sent);
                Ok(sent)
            }
        }
    }
}

/// What was done, unless it would have to wait.
fn ready<T>(done: io::Result<T>) -> Option<io::Result<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        done => Some(done),
    }
}

/// No splice in this kernel, for these sockets, or for this process.
pub fn is_unable(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::low_water::MUCH;
    use super::*;

    impl Through {
        fn test(source: Socket, sink: Socket, spliced: bool, patience: Patience) -> Self {
            let by = match spliced {
                true => By::Pipe(Pipe::of_a_test()),
                false => By::Copy(BytesMut::new(), PIECE),
            };
            let sink = Sink { socket: sink, patience: patience.sink, heed: Heed::End };
            Self::new(Feed::new(source, patience.source), sink, by)
        }
    }

    async fn moved(sizes: [usize; 3], spliced: bool) {
        let patience = Patience { source: Duration::from_secs(60), sink: Duration::from_secs(60) };
        let ((source, mut registry), (sink, mut client)) =
            (Socket::pair().await, Socket::pair().await);
        let mut through = Through::test(source, sink, spliced, patience);
        let bytes: Vec<u8> =
            (0..sizes.iter().sum::<usize>()).map(|n| (n * 31 % 251) as u8).collect();
        let (body, length) = (bytes.clone(), bytes.len() as u64);
        let sending = tokio::spawn(async move {
            let mut rest = &body[..];
            for size in sizes {
                registry.write_all(&rest[..size]).await.unwrap();
                rest = &rest[size..];
                tokio::task::yield_now().await;
            }
            registry.write_all(b"of the next answer").await.unwrap();
            registry
        });
        let reading = tokio::spawn(async move {
            let mut read = vec![0; bytes.len()];
            client.read_exact(&mut read).await.unwrap();
            assert!(read == bytes, "other bytes came out than went in");
            client
        });
        let mut count = 0;
        through.pump(length, &mut count).await.unwrap();
        through.close();
        assert_eq!(count, length);
        let (_registry, _client) = (sending.await.unwrap(), reading.await.unwrap());
    }

    #[tokio::test]
    async fn sizes_around_those_of_pipes_and_pieces_come_out_as_they_went_in() {
        let around = |size: usize| [size - 1, size, size + 1];
        for spliced in [true, false] {
            for size in [around(64 << 10), around(PIECE), around(PIPE)].concat() {
                moved([size, 0, 0], spliced).await;
                moved([1, size, 4097], spliced).await;
                moved([size, size, size], spliced).await;
            }
        }
    }

    #[tokio::test]
    async fn it_stops_where_a_side_ends_and_says_which() {
        let patience =
            Patience { source: Duration::from_millis(100), sink: Duration::from_millis(100) };
        for spliced in [true, false] {
            // The source ends too early, is silent, or the sink leaves or takes nothing.
            for case in 0..4 {
                let ((source, mut registry), (sink, client)) =
                    (Socket::pair().await, Socket::pair().await);
                let mut patience = patience;
                if case == 2 {
                    patience.source = Duration::from_secs(60);
                }
                let mut through = Through::test(source, sink, spliced, patience);
                let mut client = Some(client);
                registry.write_all(&[7; 100]).await.unwrap();
                let mut registry = Some(registry);
                let mut feeding = None;
                match case {
                    0 => registry = None,
                    2 => client = None,
                    3 => {
                        let mut registry = registry.take().unwrap();
                        feeding = Some(tokio::spawn(async move {
                            while registry.write_all(&[7; PIECE]).await.is_ok() {}
                        }));
                    }
                    _ => {}
                }
                let mut count = 0;
                let stopped = through.pump(1 << 30, &mut count).await;
                through.close();
                let source = matches!(&stopped, Err(Stopped::Source(_)));
                assert_eq!(source, case < 2, "{case} {spliced}: {stopped:?}");
                let (Err(Stopped::Source(error)) | Err(Stopped::Sink(error))) = stopped else {
                    panic!("{case}: it did not stop");
                };
                let late = error.kind() == io::ErrorKind::TimedOut;
                assert_eq!(late, matches!(case, 1 | 3), "{case} {spliced}: {error}");
                drop((registry, client));
                if let Some(feeding) = feeding {
                    feeding.await.unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn others_go_first_after_a_small_turn_and_after_much_unless_there_are_none() {
        let patience = Patience { source: Duration::from_secs(60), sink: Duration::from_secs(60) };
        for (others, before, waits) in
            [(false, 0, false), (true, 0, true), (false, STRIDE - 1000, true)]
        {
            let ((source, mut registry), (sink, _client)) =
                (Socket::pair().await, Socket::pair().await);
            registry.write_all(&[7; 1000]).await.unwrap();
            source.when_readable(|| Ok(())).await.unwrap();
            sink.when_writable(|| Ok(())).await.unwrap();
            let mut through = Through::test(source, sink, true, patience);
            through.stride = Stride(before);
            let other = others.then(UnderWay::new);
            let (mut left, mut moved) = (1 << 20, 0);
            {
                let turn = pin!(through.turn(&mut left, &mut moved));
                let ended = turn.poll(&mut Context::from_waker(Waker::noop()));
                assert_eq!(ended.is_pending(), waits, "{others} {before}");
            }
            drop(other);
            assert_eq!(moved, 1000, "it has moved what was there");
        }
    }

    #[tokio::test]
    async fn the_last_of_a_body_is_not_waited_with_however_quick_it_was() {
        let patience = Patience { source: Duration::from_secs(60), sink: Duration::from_secs(60) };
        let much = u64::from(MUCH);
        for (to_come, raised) in [(much, false), (much + 1, true)] {
            let ((source, mut registry), (sink, mut client)) =
                (Socket::pair().await, Socket::pair().await);
            let reading =
                tokio::spawn(
                    async move { tokio::io::copy(&mut client, &mut tokio::io::sink()).await },
                );
            let mut through = Through::test(source, sink, true, patience);
            through.feed.note(PIPE, u64::MAX);
            assert!(through.feed.is_raised());
            registry.write_all(&vec![7; much as usize]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (mut left, mut moved) = (much + to_come, 0);
            through.turn(&mut left, &mut moved).await.unwrap();
            assert_eq!((moved, left), (much, to_come));
            assert_eq!(through.feed.is_raised(), raised, "{to_come}");
            drop(through);
            assert_eq!(reading.await.unwrap().unwrap(), much);
        }
    }

    #[test]
    fn without_a_pipe_it_is_copied_in_pieces_that_many_may_have() {
        assert!(matches!(By::of(None), By::Copy(_, ONE_OF_MANY)));
        assert!(matches!(By::of(Some(Pipe::of_a_test())), By::Pipe(_)));
    }

    #[test]
    fn only_a_kernel_that_cannot_is_worked_around() {
        for errno in [Errno::NOSYS, Errno::INVAL, Errno::PERM] {
            assert!(is_unable(&errno.into()));
        }
        for errno in [Errno::PIPE, Errno::CONNRESET, Errno::TIMEDOUT, Errno::MFILE] {
            assert!(!is_unable(&errno.into()));
        }
    }
}
