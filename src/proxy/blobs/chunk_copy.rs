//! The body of an upload in large pieces: taken apart where it lies in a client's socket, or collected
//! from pingora's reader where a client speaks TLS or HTTP/2.

use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::protocols::Stream;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::chunked::{Chunks, MAX_PIECES, Malformed};
use super::socket::{Socket, in_time};
use super::splice::PIECE;
use super::{Side, failed};

/// As pingora calls it.
const INVALID_CHUNK: ErrorType = ErrorType::new("InvalidChunk");
/// As good as endless: pingora's reader then passes on whatever comes, as it comes.
const ENDLESS: &str = "9007199254740991";
/// Where the pieces of a body come from.
pub trait Source {
    /// Waits for the next piece, which may be empty: who sends must be heard of again and again, or
    /// a client could take its time. Nothing is lost where it is left before its end.
    async fn next(&mut self, session: &mut Session) -> Result<()>;

    /// Where the piece lies.
    fn parts(&self) -> impl Iterator<Item = &[u8]>;

    /// Whether this is the last piece.
    fn is_over(&self) -> bool;
}

/// A body in chunks, out of a client's socket.
pub struct InChunks {
    socket: Socket,
    patience: Duration,
    /// What came along with the header, and is still pingora's to give.
    buffered: usize,
    buffer: Box<[u8]>,
    /// What was received and not read yet.
    unread: Range<usize>,
    chunks: Chunks,
    /// In the buffer, the piece's.
    parts: Vec<Range<usize>>,
}

impl InChunks {
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn of(stream: &Stream, patience: Duration, buffered: usize) -> io::Result<Self> {
        Ok(Self::new(Socket::of(stream)?, patience, buffered))
    }

    fn new(socket: Socket, patience: Duration, buffered: usize) -> Self {
        Self {
            socket,
            patience,
            buffered,
            buffer: vec![0; PIECE].into(),
            unread: 0..0,
            chunks: Chunks::new(),
            parts: Vec::with_capacity(MAX_PIECES),
        }
    }

    /// Has pingora hand on what it read of the body without looking for chunks in it.
    pub fn take_over(session: &mut Session) -> Result<()> {
        let header = session.req_header_mut();
        header.remove_header(&TRANSFER_ENCODING);
        header.insert_header(CONTENT_LENGTH, ENDLESS)
    }

    /// What was received after the body's end.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.unread.clone()]
    }

    /// For who takes large chunks from the socket past the buffer, while nothing is in it.
    pub fn beyond(&mut self) -> Option<Beyond<'_>> {
        let empty = self.unread.is_empty() && self.buffered == 0;
        let Self { socket, patience, buffer, unread, chunks, .. } = self;
        let patience = *patience;
        (empty && !chunks.is_over()).then_some(Beyond { socket, patience, chunks, buffer, unread })
    }

    /// Reads on in what was received. False where nothing in it is whole.
    fn read(&mut self) -> Result<bool> {
        self.parts.clear();
        let start = self.unread.start;
        let read = self.chunks.read(&self.buffer[self.unread.clone()], &mut self.parts);
        let read = read.map_err(invalid);
        self.unread.start += read?;
        for part in &mut self.parts {
            *part = part.start + start..part.end + start;
        }
        Ok(!self.parts.is_empty() || self.chunks.is_over())
    }

    async fn receive(&mut self, session: &mut Session) -> Result<()> {
        if self.buffered == 0 {
            return self.receive_from_socket().await;
        }
        let bytes = session.downstream_session.read_request_body().await;
        let bytes = bytes.map_err(Error::into_down)?.unwrap_or_default();
        self.buffered =
            if bytes.is_empty() { 0 } else { self.buffered.saturating_sub(bytes.len()) };
        let mut room = self.room();
        if bytes.len() > room.len() {
            // Cannot be: headers are bounded, and what is read with one is no longer than it.
            let error = Error::explain(ErrorType::InternalError, "more than a buffer holds");
            return Err(error.into_in());
        }
        room.put_slice(&bytes);
        self.unread.end += bytes.len();
        Ok(())
    }

    async fn receive_from_socket(&mut self) -> Result<()> {
        self.room();
        let mut room = &mut self.buffer[self.unread.end..];
        let received = match in_time(self.patience, self.socket.receive(&mut room)).await {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        self.unread.end += received.map_err(|error| failed(&error, Side::Client))?;
        Ok(())
    }

    /// The room behind what was not read yet, which is never much: a size, or a trailer.
    fn room(&mut self) -> &mut [u8] {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        &mut self.buffer[self.unread.end..]
    }
}

/// A body that is read past the buffer.
pub struct Beyond<'a> {
    pub socket: &'a Socket,
    pub patience: Duration,
    pub chunks: &'a mut Chunks,
    buffer: &'a mut [u8],
    unread: &'a mut Range<usize>,
}

impl Beyond<'_> {
    /// Leaves a few bytes in the buffer that were taken from the socket too early. Nothing is read past
    /// it until they are.
    pub fn leave(&mut self, bytes: &[u8]) {
        self.buffer[..bytes.len()].copy_from_slice(bytes);
        *self.unread = 0..bytes.len();
    }
}

pub fn invalid(malformed: Malformed) -> Box<Error> {
    Error::explain(INVALID_CHUNK, malformed.0).into_down()
}

impl Source for InChunks {
    async fn next(&mut self, session: &mut Session) -> Result<()> {
        if !self.read()? {
            self.receive(session).await?;
            self.read()?;
        }
        Ok(())
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| &self.buffer[part.clone()])
    }

    fn is_over(&self) -> bool {
        self.chunks.is_over()
    }
}

#[cfg(test)]
impl InChunks {
    /// Of which pingora has read nothing.
    pub fn test(socket: Socket) -> Self {
        Self::new(socket, Duration::from_secs(60), 0)
    }

    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// As [`Source::next`].
    pub async fn next_in_memory(&mut self) {
        if !self.read().unwrap() {
            self.receive_from_socket().await.unwrap();
            self.read().unwrap();
        }
    }
}

/// A body that pingora's reader has taken apart, or decrypted.
#[derive(Default)]
pub struct Collected {
    parts: Vec<Bytes>,
    over: bool,
}

impl Source for Collected {
    async fn next(&mut self, session: &mut Session) -> Result<()> {
        self.parts.clear();
        let mut size = 0;
        while size < PIECE && self.parts.len() < MAX_PIECES {
            let reading = session.downstream_session.read_request_body();
            let read = if self.parts.is_empty() {
                reading.await
            } else {
                // No more than is there already.
                let Some(read) = reading.now_or_never() else { break };
                read
            };
            match read.map_err(Error::into_down)? {
                Some(bytes) if bytes.is_empty() => break,
                Some(bytes) => {
                    size += bytes.len();
                    self.parts.push(bytes);
                }
                None => {
                    self.over = true;
                    break;
                }
            }
        }
        Ok(())
    }

    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| &part[..])
    }

    fn is_over(&self) -> bool {
        self.over
    }
}

/// How the registry is told where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It was told so many bytes at first.
    Length(u64),
    Chunks,
}

impl Framing {
    /// What stands before a piece of so many bytes.
    pub fn before(self, size: usize) -> String {
        match self {
            Self::Chunks if size > 0 => format!("{size:x}\r\n"),
            _ => String::new(),
        }
    }

    /// What stands after it.
    pub fn after(self, size: usize, over: bool) -> &'static [u8] {
        match (self, size, over) {
            (Self::Length(_), ..) | (_, 0, false) => b"",
            (_, 0, true) => b"0\r\n\r\n",
            (_, _, false) => b"\r\n",
            (_, _, true) => b"\r\n0\r\n\r\n",
        }
    }
}

/// A piece as it is sent.
pub fn slices<'a>(
    before: &'a str,
    parts: impl Iterator<Item = &'a [u8]>,
    after: &'a [u8],
) -> Vec<IoSlice<'a>> {
    let parts = std::iter::once(before.as_bytes()).chain(parts).chain([after]);
    parts.filter(|part| !part.is_empty()).map(IoSlice::new).collect()
}
