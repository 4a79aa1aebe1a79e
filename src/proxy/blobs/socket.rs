//! The sockets of two connections that pingora owns, read and written past its buffers.
//!
//! pingora shows a connection's descriptor as a number only. This is the one file that borrows it,
//! and so the one with `unsafe`. Everything else is rustix's and tokio's safe interface.
#![allow(unsafe_code, reason = "the argument stands where it is used")]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bytes::BufMut;
use pingora::protocols::Stream;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A second descriptor of a connection that somebody else owns and reads and writes as well.
pub struct Socket(TcpStream);

impl Socket {
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn of(stream: &Stream) -> io::Result<Self> {
        let owned = second_descriptor(stream)?;
        // It does not block: that is a property of the connection, not of the descriptor.
        Ok(Self(TcpStream::from_std(owned.into())?))
    }

    /// Sends some of it; `more` follows at once.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        self.when_writable(|| Ok(send(&self.0, bytes, flags(more))?)).await
    }

    /// Sends some of what lies in several places.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn send_slices(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let sending = || {
            let mut nothing = SendAncillaryBuffer::default();
            Ok(sendmsg(&self.0, slices, &mut nothing, flags(false))?)
        };
        self.when_writable(sending).await
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

    /// Looks at what is there, and leaves it there.
    ///
    /// # Errors
    /// What became of the connection, or that there is nothing yet.
    pub fn peek_now(&self, window: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, window, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1)
    }

    /// Takes what was looked at.
    ///
    /// # Errors
    /// What became of the connection.
    pub fn take_now(&self, looked_at: &mut [u8]) -> io::Result<()> {
        match recv(&self.0, &mut *looked_at, RecvFlags::DONTWAIT)?.1 {
            taken if taken == looked_at.len() => Ok(()),
            // Nobody else reads it, and what is there stays.
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes what is there, as far as there is room; 0 at the end.
    ///
    /// # Errors
    /// What became of the connection, or that there is nothing yet.
    pub fn receive_now(&self, room: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.0, room, RecvFlags::DONTWAIT)?.1)
    }

    /// What this does where the socket has something to read, as far as is known.
    ///
    /// # Errors
    /// What this does not do, or that it would have to wait.
    pub fn if_readable<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.0.try_io(Interest::READABLE, act)
    }

    /// What this does where the socket takes something, as far as is known.
    ///
    /// # Errors
    /// What this does not do, or that it would have to wait.
    pub fn if_writable<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.0.try_io(Interest::WRITABLE, act)
    }

    /// What this does once the socket has something to read, or is at its end.
    pub async fn when_readable<T>(&self, act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.0.async_io(Interest::READABLE, act).await
    }

    /// What this does once the socket takes something.
    pub async fn when_writable<T>(&self, act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        self.0.async_io(Interest::WRITABLE, act).await
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn flags(more: bool) -> SendFlags {
    let more = if more { SendFlags::MORE } else { SendFlags::empty() };
    SendFlags::NOSIGNAL | SendFlags::DONTWAIT | more
}

fn descriptor(stream: &Stream) -> BorrowedFd<'_> {
    // SAFETY: the number is that of an open socket: `stream` owns it, and closes it only when it is
    // dropped. It is borrowed for as long as the descriptor is.
    unsafe { BorrowedFd::borrow_raw(stream.id()) }
}

/// Another descriptor of a connection, which stays open when the first is closed.
///
/// # Errors
/// Where the process has none left.
pub fn second_descriptor(stream: &Stream) -> io::Result<OwnedFd> {
    descriptor(stream).try_clone_to_owned()
}

/// Sends what a connection takes at once, perhaps nothing.
///
/// # Errors
/// What became of the connection.
pub fn send_now(stream: &Stream, bytes: &[u8]) -> io::Result<usize> {
    match send(descriptor(stream), bytes, flags(false)) {
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

/// The side that bytes go to.
pub struct Sink {
    pub socket: Socket,
    pub patience: Duration,
    pub heed: Heed,
}

impl Sink {
    /// Sends it whole, whatever the other side says meanwhile.
    ///
    /// # Errors
    /// Where it could not be sent in time.
    pub async fn send(&self, mut bytes: &[u8], more: bool) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let sending = in_time(self.patience, self.socket.send(bytes, more));
            bytes = &bytes[sending.await.map_err(Stopped::Sink)?..];
        }
        Ok(())
    }

    /// Sends what is left in `slices`. Where it stops, what is left there still is to be sent.
    ///
    /// # Errors
    /// Where it could not be sent in time, or the other side speaks before it was.
    pub async fn put(&self, slices: &mut &mut [IoSlice<'_>]) -> Result<(), Stopped> {
        while !slices.is_empty() {
            let sent = tokio::select! {
                biased;
                sent = in_time(self.patience, self.socket.send_slices(slices)) => sent,
                stopped = self.interrupted() => return Err(stopped),
            };
            IoSlice::advance_slices(slices, sent.map_err(Stopped::Sink)?);
        }
        Ok(())
    }

    /// Ends when it has closed the connection, or says what is waited for.
    pub async fn interrupted(&self) -> Stopped {
        let mut byte = [0];
        match (self.socket.0.peek(&mut byte).await, self.heed) {
            (Ok(1..), Heed::Answer) => Stopped::Spoken,
            (Ok(1..), Heed::End) => std::future::pending().await,
            (Ok(0), _) => Stopped::Sink(io::ErrorKind::ConnectionReset.into()),
            (Err(error), _) => Stopped::Sink(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    impl Socket {
        /// One end of a connection, and the other.
        pub async fn pair() -> (Self, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (Self(near), listener.accept().await.unwrap().0)
        }
    }

    #[tokio::test]
    async fn what_lies_in_several_places_arrives_in_order_and_goes_on_where_it_stopped() {
        let (socket, mut far) = Socket::pair().await;
        let sink = Sink { socket, patience: Duration::from_secs(60), heed: Heed::Answer };
        let parts: Vec<Vec<u8>> = (0..60u8).map(|n| vec![n; usize::from(n) * 9973]).collect();
        let whole = parts.concat();
        // More than sockets hold is on its way when the other side speaks, and before it reads.
        let length = whole.len();
        let reading = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            far.write_all(b"early").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut read = vec![0; length];
            far.read_exact(&mut read).await.unwrap();
            (read, far)
        });
        let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        let mut spoken = 0;
        while let Err(stopped) = sink.put(&mut left).await {
            assert!(matches!(stopped, Stopped::Spoken), "{stopped:?}");
            spoken += 1;
            sink.socket.receive(&mut bytes::BytesMut::with_capacity(16)).await.unwrap();
        }
        assert_eq!(spoken, 1);
        let (read, _far) = reading.await.unwrap();
        assert!(read == whole, "other bytes came out than went in");
    }
}
