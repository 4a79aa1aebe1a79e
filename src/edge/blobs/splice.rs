//! Bytes from one socket to another without a copy: `splice(2)` by way of a pipe.
//!
//! pingora shows a connection's descriptor as a number only. This is the one file that borrows it,
//! and so the one with `unsafe`. Everything else is rustix's and tokio's safe interface.
#![allow(unsafe_code, reason = "the argument stands where it is used")]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, BufMut, BytesMut};
use pingora::protocols::Stream;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A pipe's room. Small ones cost twice the time: each turn is two system calls.
const PIPE: usize = 1 << 20;
/// Empty pipes that are kept for the next blob.
const KEPT: usize = 64;
/// A piece where bytes must be copied.
pub const PIECE: usize = 256 * 1024;

/// A second descriptor of a connection that somebody else owns and reads and writes as well.
pub struct Socket(TcpStream);

impl Socket {
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn of(stream: &Stream) -> io::Result<Self> {
        let owned = descriptor(stream).try_clone_to_owned()?;
        // It does not block: that is a property of the connection, not of the descriptor.
        Ok(Self(TcpStream::from_std(owned.into())?))
    }

    /// Sends some of it; `more` follows at once.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        let more = if more { SendFlags::MORE } else { SendFlags::empty() };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | more;
        self.0.async_io(Interest::WRITABLE, || Ok(send(&self.0, bytes, flags)?)).await
    }

    /// Reads what is there into the room that is left; 0 at the end.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn receive(&self, room: &mut impl BufMut) -> io::Result<usize> {
        loop {
            self.0.readable().await?;
            match self.0.try_read_buf(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

fn descriptor(stream: &Stream) -> BorrowedFd<'_> {
    // SAFETY: the number is that of an open socket: `stream` owns it, and closes it only when it is
    // dropped. It is borrowed for as long as the descriptor is.
    unsafe { BorrowedFd::borrow_raw(stream.id()) }
}

/// Sends what a connection takes at once, perhaps nothing.
///
/// # Errors
/// What became of the connection.
pub fn send_now(stream: &Stream, bytes: &[u8]) -> io::Result<usize> {
    match send(descriptor(stream), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Err(Errno::AGAIN) => Ok(0),
        sent => Ok(sent?),
    }
}

pub async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout(patience, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// How long each side may keep the other waiting.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub source: Duration,
    pub sink: Duration,
}

/// Why not all of it went over.
#[derive(Debug)]
pub enum Stopped {
    Source(io::Error),
    Sink(io::Error),
    /// The sink has something to say before it has taken all. It may go on afterwards.
    Spoken,
}

/// What the sink is heard for meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heed {
    /// Its end. What else it sends is for whoever reads the connection next.
    End,
    /// Its end, and an answer.
    Answer,
}

/// A pipe that nothing is in.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

static PIPES: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());

impl Pipe {
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Beyond the user's share of pipe memory it stays small, and works.
        let _ = fcntl_setpipe_size(&write, PIPE);
        Ok(Self { read, write })
    }

    fn give_back(self) {
        let mut pipes = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
        if pipes.len() < KEPT {
            pipes.push(self);
        }
    }
}

/// The way of one body from socket to socket.
pub struct Through {
    source: Socket,
    sink: Socket,
    by: By,
    /// Taken from the source, and not given to the sink yet.
    held: usize,
    patience: Patience,
    heed: Heed,
}

/// What the bytes go through on their way.
enum By {
    Pipe(Pipe),
    /// Where the kernel does not splice.
    Copy(BytesMut),
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
        let (source, sink) = (Socket::of(source)?, Socket::of(sink)?);
        Ok(Self { source, sink, by: By::Pipe(Pipe::take()?), held: 0, patience, heed })
    }

    /// Sends what is not in the source's socket.
    ///
    /// # Errors
    /// Where it could not be sent in time.
    pub async fn send(&self, mut bytes: &[u8], more: bool) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let sending = in_time(self.patience.sink, self.sink.send(bytes, more));
            bytes = &bytes[sending.await.map_err(Stopped::Sink)?..];
        }
        Ok(())
    }

    /// Ends when the sink has closed the connection, or says what is waited for.
    pub async fn interrupted(&self) -> Stopped {
        interrupted(&self.sink, self.heed).await
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
        let Self { source, sink, by, held, patience, heed } = self;
        if *held == 0 {
            let most = usize::try_from(*left).unwrap_or(usize::MAX).min(PIPE);
            let taken = tokio::select! {
                biased;
                taken = in_time(patience.source, by.take(source, most)) => taken,
                stopped = interrupted(sink, *heed) => return Err(stopped),
            };
            *held = match taken {
                Ok(0) => return Err(Stopped::Source(io::ErrorKind::UnexpectedEof.into())),
                Ok(taken) => taken,
                Err(error) if is_unable(&error) && matches!(by, By::Pipe(_)) => {
                    *by = By::Copy(BytesMut::new());
                    return Ok(());
                }
                Err(error) => return Err(Stopped::Source(error)),
            };
        }
        while *held > 0 {
            let more = *left > *held as u64;
            let given = tokio::select! {
                biased;
                given = in_time(patience.sink, by.give(sink, *held, more)) => given,
                stopped = interrupted(sink, *heed) => return Err(stopped),
            };
            let given = given.map_err(Stopped::Sink)?;
            *held -= given;
            *left -= given as u64;
            *moved += given as u64;
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

async fn interrupted(sink: &Socket, heed: Heed) -> Stopped {
    let mut byte = [0];
    match (sink.0.peek(&mut byte).await, heed) {
        (Ok(1..), Heed::Answer) => Stopped::Spoken,
        (Ok(1..), Heed::End) => std::future::pending().await,
        (Ok(0), _) => Stopped::Sink(io::ErrorKind::ConnectionReset.into()),
        (Err(error), _) => Stopped::Sink(error),
    }
}

impl By {
    /// At most so many bytes from the source; 0 at its end.
    async fn take(&mut self, source: &Socket, most: usize) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let into_pipe = || Ok(splice(&source.0, None, &pipe.write, None, most, flags)?);
                source.0.async_io(Interest::READABLE, into_pipe).await
            }
            Self::Copy(piece) => {
                piece.clear();
                piece.reserve(PIECE);
                source.receive(&mut piece.limit(most.min(PIECE))).await
            }
        }
    }

    /// Some of the bytes that are held to the sink; more may follow at once.
    async fn give(&mut self, sink: &Socket, held: usize, more: bool) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => {
                let more = if more { SpliceFlags::MORE } else { SpliceFlags::empty() };
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK | more;
                let from_pipe = || Ok(splice(&pipe.read, None, &sink.0, None, held, flags)?);
                sink.0.async_io(Interest::WRITABLE, from_pipe).await
            }
            Self::Copy(piece) => {
                let sent = sink.send(piece, more).await?;
                piece.advance(sent);
                Ok(sent)
            }
        }
    }
}

/// No splice in this kernel, for these sockets, or for this process.
fn is_unable(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSYS | Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    impl Through {
        fn test(source: Socket, sink: Socket, spliced: bool, patience: Patience) -> Self {
            let pipe = || By::Pipe(Pipe::take().unwrap());
            let by = if spliced { pipe() } else { By::Copy(BytesMut::new()) };
            Self { source, sink, by, held: 0, patience, heed: Heed::End }
        }
    }

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Socket(near), listener.accept().await.unwrap().0)
    }

    async fn moved(sizes: [usize; 3], spliced: bool) {
        let patience = Patience { source: Duration::from_secs(60), sink: Duration::from_secs(60) };
        let ((source, mut registry), (sink, mut client)) = (pair().await, pair().await);
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
                let ((source, mut registry), (sink, client)) = (pair().await, pair().await);
                let mut through = Through::test(source, sink, spliced, patience);
                let mut client = Some(client);
                registry.write_all(&[7; 100]).await.unwrap();
                let mut registry = Some(registry);
                let mut feeding = None;
                match case {
                    0 => registry = None,
                    2 => {
                        client = None;
                        through.patience.source = Duration::from_secs(60);
                    }
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
