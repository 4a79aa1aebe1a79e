//! Small reads, relayed in the bytes they came in.
//!
//! Most of what a small request costs is to take two headers apart and to put them together again.
//! Here an answer's header is checked as strictly as anywhere, and stays one piece. Only what has
//! one reading and a length is relayed; anything else is `Unfit`, and asked for again by pingora.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::header::ALT_SVC;
use http::{HeaderName, StatusCode};
use memchr::memchr;
use pingora::ErrorType::{ConnectionClosed, ReadError, ReadTimedout};
use pingora::ErrorType::{WriteError, WriteTimedout};
use pingora::protocols::Stream;
use pingora::{Error, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::Client;
use crate::registry::framing::{is_bodiless, is_hop_by_hop, is_length};
use crate::registry::media::MediaTypes;
use crate::runtime::buffer_pool::PooledBuffer;
use crate::runtime::timer::Time;
use crate::transport::endpoint::Way;
use crate::transport::pool::Home;

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
    read: PooledBuffer,
    /// What is still to come of the body.
    rest: u64,
    stream: Stream,
    way: Arc<Way>,
}

impl Relayed {
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The header without its end, in parts that follow each other.
    pub fn header(&self) -> impl Iterator<Item = Part<'_>> {
        let bytes = self.read.get(..self.head.length.saturating_sub(2)).unwrap_or_default();
        self.head.marks.parts(bytes)
    }

    /// Whether its header names a manifest other than the one of this digest, or several.
    pub fn names_another(&self, digest: &str) -> bool {
        match &self.head.named {
            Named::Nothing => false,
            Named::One(at) => self.read.get(at.clone()) != Some(digest.as_bytes()),
            Named::Several => true,
        }
    }

    /// Whether it is an answer to a HEAD that only the bytes could tell to be the manifest's.
    pub fn is_unproven(&self) -> bool {
        self.head.unproven
    }

    /// Whether its header names any manifest.
    pub fn names_any(&self) -> bool {
        self.head.named != Named::Nothing
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

/// Some of a header.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The status line, or lines that a proxy passes on as they are.
    Plain(&'a [u8]),
    /// A line that it does not, with its end.
    Marked(Mark, &'a [u8]),
}

/// What a proxy says itself, does not pass on, or may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// Of the registry's connection, said by taglock itself, or not for clients.
    #[default]
    Dropped,
    Location,
    ContentLocation,
    Link,
    Refresh,
    Challenge,
}

/// Where those lines are in a header, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Marks {
    places: [Place; 8],
    count: u8,
}

/// Of one line, from its first byte to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    mark: Mark,
    start: u16,
    end: u16,
}

impl Marks {
    /// `None` where there are more than anybody has, or further on than a header may reach.
    fn add(&mut self, mark: Mark, line: &Range<usize>) -> Option<()> {
        let (start, end) = (line.start.try_into().ok()?, line.end.try_into().ok()?);
        *self.places.get_mut(usize::from(self.count))? = Place { mark, start, end };
        self.count += 1;
        Some(())
    }

    /// All of a header that they are of.
    fn parts<'a>(&self, header: &'a [u8]) -> impl Iterator<Item = Part<'a>> {
        let piece = move |start: u16, end: Option<u16>| {
            let end = end.map_or(header.len(), usize::from);
            header.get(usize::from(start)..end).unwrap_or_default()
        };
        let places = &self.places[..usize::from(self.count)];
        let rest = piece(places.last().map_or(0, |line| line.end), None);
        let before = move |at: &mut u16, line: &Place| {
            let between = piece(std::mem::replace(at, line.end), Some(line.start));
            let line = Part::Marked(line.mark, piece(line.start, Some(line.end)));
            Some([Part::Plain(between), line])
        };
        places.iter().scan(0, before).flatten().chain([Part::Plain(rest)])
    }
}

/// A header of one reading.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: StatusCode,
    /// Bytes of the whole.
    length: usize,
    /// Of the body.
    body: u64,
    keeps: bool,
    named: Named,
    /// 200 to a HEAD: of another type than manifests usually have.
    unproven: bool,
    marks: Marks,
}

/// What a header says in `Docker-Content-Digest`, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Named {
    #[default]
    Nothing,
    One(Range<usize>),
    Several,
}

impl Named {
    /// With one more name.
    fn and(self, at: Range<usize>) -> Self {
        if self == Self::Nothing { Self::One(at) } else { Self::Several }
    }
}

/// What the first bytes of an answer are.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    Partial,
    Whole(Head),
    Unfit,
}

fn read_head(bytes: &[u8], bodiless: bool) -> Reading {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsing = httparse::ParserConfig::default();
    let length =
        match parsing.parse_response_with_uninit_headers(&mut response, bytes, &mut headers) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Reading::Partial,
            Ok(httparse::Status::Partial) | Err(_) => return Reading::Unfit,
        };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let Some(status) = status.filter(|s| !s.is_informational() && response.version == Some(1))
    else {
        return Reading::Unfit;
    };
    let place = |part: &[u8]| part.as_ptr().addr() - bytes.as_ptr().addr();
    let whole = |end: usize| bytes[..end].ends_with(b"\r\n");
    let none = is_bodiless(status);
    let (mut body, mut keeps, mut named) = (None, true, Named::Nothing);
    let mut usual = false;
    let mut marks = Marks::default();
    for header in response.headers.iter() {
        // Nearly always it is spelled like this.
        let is = |name: &str| header.name == name || header.name.eq_ignore_ascii_case(name);
        let (start, end) =
            (place(header.name.as_bytes()), place(header.value) + header.value.len());
        // The line before it.
        if !whole(start) {
            return Reading::Unfit;
        }
        // Nearly all names are told apart by their length.
        let mark = match header.name.len() {
            10 if is("Connection") => {
                let Some(kept) = is_kept(header.value) else { return Reading::Unfit };
                keeps &= kept;
                Some(Mark::Dropped)
            }
            14 if is("Content-Length") => {
                let length = plain_length(header.value).filter(|_| body.is_none());
                let Some(length) = length else { return Reading::Unfit };
                body = Some(length);
                none.then_some(Mark::Dropped)
            }
            17 if is("Transfer-Encoding") => return Reading::Unfit,
            12 if is("Content-Type") => {
                usual = MediaTypes::is_usual(header.value);
                None
            }
            21 if is("Docker-Content-Digest") => {
                named = named.and(place(header.value)..end);
                None
            }
            _ => mark_of(header.name),
        };
        if let Some(mark) = mark {
            let length = memchr(b'\n', &bytes[end..]);
            let added = length.and_then(|length| marks.add(mark, &(start..end + length + 1)));
            if added.is_none() {
                return Reading::Unfit;
            }
        }
    }
    // Nor any line's end that is but a line feed, nor empty lines before the first.
    if !bytes[..length].ends_with(b"\r\n\r\n") || !bytes.starts_with(b"HTTP/1.1 ") {
        return Reading::Unfit;
    }
    let none = none || bodiless;
    let Some(body) = body.filter(|_| !none).or(none.then_some(0)) else { return Reading::Unfit };
    let unproven = bodiless && status == StatusCode::OK && !usual;
    Reading::Whole(Head { status, length, body, keeps, named, unproven, marks })
}

/// Whether a `Connection` keeps the connection. `None` where it may name other headers of the answer.
fn is_kept(value: &[u8]) -> Option<bool> {
    let kept = value.eq_ignore_ascii_case(b"keep-alive");
    (kept || value.eq_ignore_ascii_case(b"close")).then_some(kept)
}

/// Of lines that leave the frame of an answer alone. Nearly all names are told apart by their length.
fn mark_of(name: &str) -> Option<Mark> {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        4 if is("Date") => Some(Mark::Dropped),
        4 if is("Link") => Some(Mark::Link),
        7 if is("Refresh") => Some(Mark::Refresh),
        8 if is("Location") => Some(Mark::Location),
        16 if is("Content-Location") => Some(Mark::ContentLocation),
        16 if is("WWW-Authenticate") => Some(Mark::Challenge),
        2 | 7 | 10 | 14 | 16 | 18 | 25 => {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            (is_hop_by_hop(&name) || name == ALT_SVC).then_some(Mark::Dropped)
        }
        _ => None,
    }
}

/// One number, as everybody reads it.
fn plain_length(value: &[u8]) -> Option<u64> {
    let value = Some(value).filter(|value| is_length(value))?;
    std::str::from_utf8(value).ok()?.parse().ok()
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
        home: &Home,
        time: &mut Time<'_>,
    ) -> Result<Relay> {
        if !self.fitness.is_fit() {
            return Ok(Relay::Unfit);
        }
        loop {
            let (stream, way, reused) = self.connection(home, time).await?;
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
        let mut read = PooledBuffer::large_later();
        let head = loop {
            let before = read.len();
            match time.within(timeouts.read, read.fill(&mut stream)).await {
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
        relayed.head.length = 0;
        (relayed.head.named, relayed.head.marks) = (Named::Nothing, Marks::default());
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
        let mut room = bytes::BufMut::limit(&mut **read, most);
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
    pub fn relay_in_vain(&self, relayed: Relayed, home: &Home, now: Instant) {
        let status = relayed.status();
        if status.is_redirection() || status.is_server_error() {
            self.fitness.is_not();
        }
        self.relay_over(relayed, home, now);
    }

    /// Keeps the connection of an answer whose body has come to its end.
    pub fn relay_over(&self, relayed: Relayed, home: &Home, now: Instant) {
        let Relayed { head, rest, stream, way, .. } = relayed;
        if head.keeps && rest == 0 {
            home.keep(stream, &way, now, self.peers.timeouts().idle);
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
        let text = "HTTP/1.1 200 OK\r\nDATE: x\r\nContent-Length: 2\r\nX-Odd:  a:b \r\nempty:\r\n\
                    location:\r\nConnection:\t keep-alive \r\ndates: y\r\n\r\n{}";
        let Reading::Whole(head) = read(text) else { panic!("{text}") };
        assert_eq!((head.status, head.body, head.keeps), (StatusCode::OK, 2, true));
        assert_eq!(&text[head.length..], "{}");
        let parts: Vec<_> = head.marks.parts(&text.as_bytes()[..head.length - 2]).collect();
        let plain = |text: &'static str| Part::Plain(text.as_bytes());
        let marked = |mark, line: &'static str| Part::Marked(mark, line.as_bytes());
        let expected = [
            plain("HTTP/1.1 200 OK\r\n"),
            marked(Mark::Dropped, "DATE: x\r\n"),
            plain("Content-Length: 2\r\nX-Odd:  a:b \r\nempty:\r\n"),
            marked(Mark::Location, "location:\r\n"),
            plain(""),
            marked(Mark::Dropped, "Connection:\t keep-alive \r\n"),
            plain("dates: y\r\n"),
        ];
        assert_eq!(parts, expected);
        for end in 0..head.length {
            assert_eq!(read(&text[..end]), Reading::Partial, "{end}");
        }
        let names = ["keep-alive", "WWW-Authenticate", "Keep_Alive", "X-WWW-Authenticate", "age"];
        let lines = names.map(|name| format!("{name}: {name}\r\n")).concat();
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{lines}\r\n");
        let Reading::Whole(head) = read(&text) else { panic!("{text}") };
        let marks: Vec<_> = head.marks.places[..2].iter().map(|place| place.mark).collect();
        assert_eq!((marks, head.marks.count), (vec![Mark::Dropped, Mark::Challenge], 2));
        let (bare, none) = ("HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content\r\n");
        let Reading::Whole(head) = read(bare) else { panic!("{bare}") };
        assert!(head.marks.parts(none.as_bytes()).eq([plain(none)]));
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
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Y\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: Content-Length\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
            "HTTP/1.1 200 OK\nX: a\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 204 No Content\n\r\n",
            "\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
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
        let length = "Content-Length: 0\r\n";
        for (line, most) in [("X: a\r\n", MAX_HEADERS - 1), ("WWW-Authenticate: a\r\n", 8)] {
            let with = |n| read(&format!("HTTP/1.1 200 OK\r\n{length}{}\r\n", line.repeat(n)));
            assert!(matches!(with(most), Reading::Whole(_)), "{line}");
            assert_eq!(with(most + 1), Reading::Unfit, "{line}");
        }
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
    fn what_is_of_the_connection_or_leads_past_taglock_is_marked() {
        for (status, line, mark) in [
            ("200 OK", "TE: trailers", Mark::Dropped),
            ("200 OK", "trailer: X", Mark::Dropped),
            ("200 OK", "Upgrade: h2", Mark::Dropped),
            ("200 OK", "Keep-Alive: timeout=5", Mark::Dropped),
            ("200 OK", "Proxy-Connection: keep-alive", Mark::Dropped),
            ("200 OK", "Proxy-Authenticate: Basic", Mark::Dropped),
            ("200 OK", "Proxy-Authentication-Info: x", Mark::Dropped),
            ("200 OK", "Alt-Svc: h2=\":443\"", Mark::Dropped),
            ("304 Not Modified", "Content-Length: 7", Mark::Dropped),
            ("204 No Content", "Content-Length: 7", Mark::Dropped),
            ("200 OK", "LINK: <x>; rel=next", Mark::Link),
            ("200 OK", "Refresh: 0; url=x", Mark::Refresh),
            ("200 OK", "Content-Location: x", Mark::ContentLocation),
        ] {
            let length = if status.starts_with("200") { "Content-Length: 0\r\n" } else { "" };
            let text = format!("HTTP/1.1 {status}\r\n{length}{line}\r\n\r\n");
            let Reading::Whole(head) = read(&text) else { panic!("{text}") };
            assert_eq!((head.marks.count, head.marks.places[0].mark), (1, mark), "{line}");
        }
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
        assert!(!keeps("Connection: close\r\n") && !keeps("connection: Close\r\n"));
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
