//! Small reads, relayed in the bytes they came in.
//!
//! Most of what a small request costs is to take two headers apart and to put them together again.
//! Here an answer's header is checked as strictly as anywhere, and stays one piece. Only what has
//! one reading and a length is relayed; anything else is `Unfit`, and asked for again by pingora.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::BytesMut;
use http::StatusCode;
use memchr::{memchr, memchr_iter};
use pingora::ErrorType::{ConnectTimedout, ConnectionClosed, ReadError, ReadTimedout};
use pingora::ErrorType::{WriteError, WriteTimedout};
use pingora::protocols::Stream;
use pingora::{Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::{CONTENT_DIGEST, Client};
use crate::registry::clock::Time;
use crate::registry::peer::Way;

/// Room for a header and a manifest of the usual size.
const ROOM: usize = 8 * 1024;
/// Of a body that does not come with its header.
const PIECE: usize = 64 * 1024;
/// A header beyond this size is pingora's to judge.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;
/// After an answer that is not relayed, the registry is not asked for one for so long: each costs
/// it a second request.
const COOLING: Duration = Duration::from_secs(60);

/// Whether answers are relayed now.
#[derive(Default)]
pub(super) struct Fitness(ArcSwapOption<Instant>);

impl Fitness {
    fn is_fit(&self) -> bool {
        self.0.load().as_ref().is_none_or(|since| since.elapsed() >= COOLING)
    }

    fn is_not(&self) {
        self.0.store(Some(Arc::new(Instant::now())));
    }
}

/// What became of a request.
pub enum Relay {
    Answer(Relayed),
    /// Nothing that could be passed on as it is.
    Unfit,
}

/// An answer of which the header was read, and perhaps some of the body.
pub struct Relayed {
    head: Head,
    /// From the header's first byte on; what follows it is the body's.
    read: BytesMut,
    /// What is still to come of the body.
    rest: u64,
    stream: Stream,
    way: Arc<Way>,
}

impl Relayed {
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The status line, with its end.
    pub fn status_line(&self) -> &[u8] {
        &self.read[..self.head.status_line]
    }

    /// Bytes of the header, with its end.
    pub fn head_length(&self) -> usize {
        self.head.length
    }

    /// Each line of the header: its name, its value, and the line with its end.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8], &[u8])> {
        let Head { status_line, length, .. } = self.head;
        lines(self.read.get(status_line..length.saturating_sub(2)).unwrap_or_default())
    }

    /// Whether its header names a manifest other than the one of this digest, or several.
    pub fn names_another(&self, digest: &str) -> bool {
        match &self.head.named {
            Named::Nothing => false,
            Named::One(at) => self.read.get(at.clone()) != Some(digest.as_bytes()),
            Named::Several => true,
        }
    }

    /// What has come of the body.
    pub fn body(&self) -> &[u8] {
        &self.read[self.head.length..]
    }

    /// Whether some of the body is still to come.
    pub fn has_more(&self) -> bool {
        self.rest > 0
    }
}

/// A header of one reading.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: StatusCode,
    /// Bytes of the status line, and of the whole.
    status_line: usize,
    length: usize,
    /// Of the body.
    body: u64,
    keeps: bool,
    named: Named,
}

/// What a header says in `Docker-Content-Digest`, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Named {
    #[default]
    Nothing,
    One(Range<usize>),
    Several,
}

/// What the first bytes of an answer are.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Partial,
    Whole(Head),
    Unfit,
}

fn read_head(bytes: &[u8], bodiless: bool) -> Reading {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Reading::Partial,
        Ok(httparse::Status::Partial) | Err(_) => return Reading::Unfit,
    };
    let head = &bytes[..length];
    let mut ends = memchr_iter(b'\n', head);
    let Some(first) = ends.next() else { return Reading::Unfit };
    let whole = |at: usize| at.checked_sub(1).is_some_and(|before| head[before] == b'\r');
    // Leading empty lines, and lines without a carriage return.
    if first < 2 || !whole(first) || !ends.all(whole) {
        return Reading::Unfit;
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status.filter(|s| !s.is_informational() && response.version == Some(1))
    else {
        return Reading::Unfit;
    };
    let (mut body, mut keeps, mut named) = (None, true, Named::Nothing);
    for header in response.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("transfer-encoding") {
            return Reading::Unfit;
        }
        if is("content-length") {
            match plain_length(header.value) {
                Some(length) if body.is_none() => body = Some(length),
                _ => return Reading::Unfit,
            }
        }
        if is(CONTENT_DIGEST.as_str()) {
            // The value is a part of these bytes.
            let start = header.value.as_ptr().addr() - bytes.as_ptr().addr();
            named = match named {
                Named::Nothing => Named::One(start..start + header.value.len()),
                _ => Named::Several,
            };
        }
        if is("connection") {
            keeps &= header.value.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    let none = bodiless || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let Some(body) = body.filter(|_| !none).or(none.then_some(0)) else { return Reading::Unfit };
    Reading::Whole(Head { status, status_line: first + 1, length, body, keeps, named })
}

/// One number, as everybody reads it.
fn plain_length(value: &[u8]) -> Option<u64> {
    let octal = value.len() > 1 && value.starts_with(b"0");
    if octal || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The lines of a header without its last, empty one.
fn lines(header: &[u8]) -> impl Iterator<Item = (&[u8], &[u8], &[u8])> {
    let mut start = 0;
    memchr_iter(b'\n', header).map(move |end| {
        let line = &header[start..=end];
        start = end + 1;
        let colon = memchr(b':', line).unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        (&line[..colon], value.trim_ascii(), line)
    })
}

impl Client {
    /// Sends a read, whose bytes are all of it, and reads the header of its answer. `bodiless` is a
    /// HEAD.
    ///
    /// # Errors
    /// Where there is no answer, or the time is over.
    pub async fn relay(
        &self,
        request: &[u8],
        bodiless: bool,
        time: &mut Time<'_>,
    ) -> Result<Relay> {
        if !self.fitness.is_fit() {
            return Ok(Relay::Unfit);
        }
        loop {
            let connected = time.left(self.connection()).await;
            let connected = connected.map_err(|late| Error::because(ConnectTimedout, "it", late));
            let (stream, way, reused) = connected.map_err(Error::into_up)??;
            match self.ask(stream, way, (request, bodiless), time).await {
                // The pool may hold several dead connections; each is tried once and gone.
                Err(Failure { unheard: true, .. }) if reused => {}
                Err(failure) => return Err(failure.error.into_up()),
                Ok(relay) => return Ok(relay),
            }
        }
    }

    async fn ask(
        &self,
        mut stream: Stream,
        way: Arc<Way>,
        (request, bodiless): (&[u8], bool),
        time: &mut Time<'_>,
    ) -> Result<Relay, Failure> {
        let timeouts = self.peers.timeouts();
        let sending = async {
            stream.write_all(request).await?;
            stream.flush().await
        };
        match time.within(timeouts.write, sending).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failure::unheard(WriteError, &error)),
            Err(late) => {
                return Err(Failure::heard(Error::because(WriteTimedout, "a request", late)));
            }
        }
        let mut read = BytesMut::with_capacity(ROOM);
        let head = loop {
            let before = read.len();
            match time.within(timeouts.read, stream.read_buf(&mut read)).await {
                Ok(Ok(0)) if before == 0 => {
                    let error = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(Failure::unheard(ConnectionClosed, &error));
                }
                Ok(Err(error)) if before == 0 => return Err(Failure::unheard(ReadError, &error)),
                Ok(Ok(0)) => return Err(Failure::cut()),
                Ok(Err(error)) => {
                    return Err(Failure::heard(Error::because(ReadError, "a header", error)));
                }
                Err(late) => {
                    return Err(Failure::heard(Error::because(ReadTimedout, "a header", late)));
                }
                Ok(Ok(_)) => {}
            }
            match read_head(&read, bodiless) {
                Reading::Partial => {}
                Reading::Whole(head) => break head,
                Reading::Unfit => {
                    self.fitness.is_not();
                    return Ok(Relay::Unfit);
                }
            }
        };
        let came = (read.len() - head.length) as u64;
        let mut relayed = Relayed { rest: head.body.saturating_sub(came), head, read, stream, way };
        if came > relayed.head.body {
            // More than was said: none of it is the client's, and the connection is not kept.
            let whole = relayed.head.length + usize::try_from(relayed.head.body).unwrap_or(0);
            relayed.read.truncate(whole);
            relayed.head.keeps = false;
        }
        Ok(Relay::Answer(relayed))
    }

    /// More of the body, after what was read before is gone. At its end there is nothing more.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn relay_more<'a>(
        &self,
        relayed: &'a mut Relayed,
        time: &mut Time<'_>,
    ) -> Result<&'a [u8]> {
        relayed.read.clear();
        (relayed.head.status_line, relayed.head.length) = (0, 0);
        relayed.head.named = Named::Nothing;
        self.receive(relayed, time).await?;
        Ok(&relayed.read)
    }

    /// Reads the rest of a body of at most so many bytes. False where it is longer.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn relay_whole(
        &self,
        relayed: &mut Relayed,
        at_most: u64,
        time: &mut Time<'_>,
    ) -> Result<bool> {
        if relayed.rest > at_most {
            return Ok(false);
        }
        while relayed.has_more() {
            self.receive(relayed, time).await?;
        }
        Ok(true)
    }

    /// Some more of the body, after what was read before.
    async fn receive(&self, relayed: &mut Relayed, time: &mut Time<'_>) -> Result<()> {
        let Relayed { read, rest, stream, .. } = relayed;
        let most = usize::try_from(*rest).unwrap_or(usize::MAX).min(PIECE);
        if most == 0 {
            return Ok(());
        }
        read.reserve(most);
        let mut room = bytes::BufMut::limit(read, most);
        let patience = self.peers.timeouts().read;
        let received = match time.within(patience, stream.read_buf(&mut room)).await {
            Ok(Ok(0)) => Err(Error::explain(ConnectionClosed, "in a body")),
            Ok(Ok(received)) => Ok(received),
            Ok(Err(error)) => Err(Error::because(ReadError, "a body", error)),
            Err(late) => Err(Error::because(ReadTimedout, "a body", late)),
        };
        *rest -= received.map_err(Error::into_up)? as u64;
        Ok(())
    }

    /// Takes back an answer that is not what it was asked for. After one that the next will be like,
    /// none is relayed for a while.
    pub fn relay_in_vain(&self, relayed: Relayed) {
        let status = relayed.status();
        if status.is_redirection() || status.is_server_error() {
            self.fitness.is_not();
        }
        self.relay_over(relayed);
    }

    /// Keeps the connection of an answer whose body has come to its end.
    pub fn relay_over(&self, relayed: Relayed) {
        let Relayed { head, rest, stream, way, .. } = relayed;
        if head.keeps && rest == 0 {
            self.connections.keep(stream, &way, self.peers.timeouts().idle);
        }
    }
}

struct Failure {
    error: Box<Error>,
    /// A kept connection may have been dead all along: nothing came of it.
    unheard: bool,
}

impl Failure {
    fn heard(error: Box<Error>) -> Self {
        Self { error, unheard: false }
    }

    fn unheard(etype: pingora::ErrorType, error: &std::io::Error) -> Self {
        Self { error: Error::explain(etype, error.to_string()), unheard: true }
    }

    fn cut() -> Self {
        Self::heard(Error::explain(ConnectionClosed, "in a header"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Reading {
        read_head(text.as_bytes(), false)
    }

    #[test]
    fn a_header_of_one_reading_is_taken_and_its_lines_stay_as_they_are() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Odd:  a:b \r\nempty:\r\n\r\n{}";
        let Reading::Whole(head) = read(text) else { panic!("{text}") };
        assert_eq!((head.status, head.body, head.keeps), (StatusCode::OK, 2, true));
        assert_eq!(&text[..head.status_line], "HTTP/1.1 200 OK\r\n");
        assert_eq!(&text[head.length..], "{}");
        let lines: Vec<_> = lines(&text.as_bytes()[head.status_line..head.length - 2]).collect();
        let expected: [(&str, &str, &str); 3] = [
            ("Content-Length", "2", "Content-Length: 2\r\n"),
            ("X-Odd", "a:b", "X-Odd:  a:b \r\n"),
            ("empty", "", "empty:\r\n"),
        ];
        let bytes = |(a, b, c): (&'static str, &'static str, &'static str)| {
            (a.as_bytes(), b.as_bytes(), c.as_bytes())
        };
        assert_eq!(lines, expected.map(bytes));
        for end in 0..head.length {
            assert_eq!(read(&text[..end]), Reading::Partial, "{end}");
        }
    }

    #[test]
    fn whatever_has_no_length_or_two_readings_is_left_to_pingora() {
        for text in [
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 01\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
            "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
            "ICY 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert_eq!(read(text), Reading::Unfit, "{text:?}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(MAX_HEAD));
        assert_eq!(read(&endless), Reading::Unfit);
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: a\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(read(&many), Reading::Unfit);
    }

    #[test]
    fn an_answer_to_a_head_has_no_body_and_some_statuses_have_none() {
        let body = |text: &str, head| match read_head(text.as_bytes(), head) {
            Reading::Whole(head) => head.body,
            other => panic!("{text:?}: {other:?}"),
        };
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", true), 0);
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n", true), 0);
        assert_eq!(body("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", false), 0);
        assert_eq!(body("HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\n", false), 7);
    }

    #[test]
    fn only_a_connection_that_both_keep_is_kept() {
        let keeps = |lines: &str| match read(&format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{lines}\r\n"
        )) {
            Reading::Whole(head) => head.keeps,
            other => panic!("{lines:?}: {other:?}"),
        };
        assert!(keeps("") && keeps("Connection: Keep-Alive\r\n"));
        assert!(!keeps("Connection: close\r\n") && !keeps("connection: keep-alive, X-Y\r\n"));
        assert!(!keeps("Connection: keep-alive\r\nConnection: close\r\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn after_an_answer_that_is_not_relayed_none_is_asked_for_in_vain() {
        let fitness = Fitness::default();
        assert!(fitness.is_fit());
        fitness.is_not();
        tokio::time::advance(COOLING - Duration::from_millis(1)).await;
        assert!(!fitness.is_fit());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(fitness.is_fit());
    }
}
