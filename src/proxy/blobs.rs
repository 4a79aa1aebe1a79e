//! Blobs on their way to clients, past pingora's copying.
//!
//! pingora copies each byte of a body several times, in pieces of 64 KiB. Here a blob goes from the
//! registry's socket to the client's by `splice(2)` where neither speaks TLS and the client speaks
//! HTTP/1.1, and in pieces of 256 KiB otherwise. Header, rewriting, time-outs, accounting and what
//! becomes of the connections are as they are for everything else that streams.

mod chunk_copy;
pub mod chunked;
mod coalesce;
mod low_water;
mod pipe;
mod socket;
mod splice;
mod uploads;

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::date::get_cached_date;
use pingora::protocols::http::v1::server::HttpSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::context::{Passage, Sent};
use super::error_response::INCOMPLETE_BODY;
use super::{CLIENT_WRITE, Edge};
use crate::registry::client::Opened;
use crate::registry::framing;
pub(super) use pipe::keep_none as keep_no_pipes;
use socket::{Heed, Patience, Stopped};
pub(super) use socket::{Socket, in_time, second_descriptor, send_now};
use splice::{PIECE, Through};

/// A body from which on its own path pays: shorter ones cost less in one write.
const WORTH: u64 = 64 * 1024;
/// What pingora reads, and so writes, at a time.
const AT_A_TIME: usize = 64 * 1024;

impl Edge {
    /// Answers a GET of a blob. False where pingora is to do it.
    pub(super) async fn stream_blob(
        &self,
        session: &mut Session,
        passage: &mut Passage,
    ) -> Result<bool> {
        let header = session.req_header();
        if !is_plain(header) {
            return Ok(false);
        }
        let request = self.forwarding(passage).streamed(header)?;
        let mut opened = tokio::select! {
            biased;
            opened = self.rooms.client.open(&request) => opened?,
            error = left(session) => return Err(error),
        };
        for early in std::mem::take(&mut opened.early) {
            self.hand_early(session, passage, early).await?;
        }
        opened.header = self.told(passage, opened.header)?;
        match body_length(&opened.header).filter(|length| *length >= WORTH) {
            Some(length) if self.config.registry_tls => {
                self.collect(session, opened, length).await?;
            }
            Some(length) => match self.through(session, &opened) {
                Some(through) => self.splice(session, passage, opened, through, length).await?,
                // Without descriptors it goes as it comes, which needs none.
                None => match Socket::of(opened.stream()) {
                    Ok(source) => self.copy(session, opened, source, length).await?,
                    Err(_) => self.hand_on(session, opened, Client::Waits).await?,
                },
            },
            None => self.hand_on(session, opened, Client::Waits).await?,
        }
        Ok(true)
    }

    /// What the client is told of the registry's answer.
    fn told(&self, passage: &Passage, mut header: ResponseHeader) -> Result<ResponseHeader> {
        framing::settle(&mut header)?;
        self.rewriting(passage).apply(&mut header)?;
        Ok(header)
    }

    /// A way from socket to socket, where there is one.
    fn through(&self, session: &Session, opened: &Opened) -> Option<Through> {
        let http1 = session.as_http1().filter(|_| !self.config.tls)?;
        let patience = Patience { source: self.rooms.peers.timeouts().read, sink: CLIENT_WRITE };
        Through::open(opened.stream(), http1.stream(), patience, Heed::End).ok()
    }

    /// pingora's writer is told nothing of it: to its eyes there was no answer, and the connection
    /// is ready for the next request.
    async fn splice(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        mut opened: Opened,
        mut through: Through,
        length: u64,
    ) -> Result<()> {
        let keeps = session.as_http1().is_some_and(HttpSession::will_keepalive);
        let head = head(&mut opened.header, if keeps { "keep-alive" } else { "close" })?;
        // From here on nothing else may be answered.
        let sent = passage.sent.insert(Sent { status: opened.header.status, bytes: 0 });
        let moving = async {
            through.sink.send(&head, true).await.map_err(stopped)?;
            // What was read along with the header, or the first that comes, is pingora's already.
            let first = tokio::select! {
                biased;
                first = opened.chunk() => first?.unwrap_or_default(),
                interrupted = through.sink.interrupted() => return Err(stopped(interrupted)),
            };
            let rest = length.saturating_sub(first.len() as u64);
            through.sink.send(first, rest > 0).await.map_err(stopped)?;
            sent.bytes = first.len() as u64;
            through.pump(rest, &mut sent.bytes).await.map_err(stopped)
        };
        moving.await?;
        through.close();
        self.rooms.client.close_emptied(opened);
        Ok(())
    }

    /// In large pieces, each written as one.
    async fn copy(
        &self,
        session: &mut Session,
        mut opened: Opened,
        source: Socket,
        length: u64,
    ) -> Result<()> {
        session.write_response_header(Box::new(opened.header.clone()), false).await?;
        let first = tokio::select! {
            biased;
            first = opened.chunk() => Bytes::copy_from_slice(first?.unwrap_or_default()),
            error = left(session) => return Err(error),
        };
        let mut rest = length.saturating_sub(first.len() as u64);
        session.write_response_body(Some(first), rest == 0).await?;
        let patience = self.rooms.peers.timeouts().read;
        let mut buffer = BytesMut::new();
        while rest > 0 {
            // The same memory again, but where the client's side still holds the last piece.
            buffer.reserve(PIECE);
            let most = usize::try_from(rest).unwrap_or(PIECE).min(PIECE);
            let mut room = (&mut buffer).limit(most);
            let received = tokio::select! {
                biased;
                received = in_time(patience, source.receive(&mut room)) => received,
                error = left(session) => return Err(error),
            };
            let received = match received {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                other => other,
            };
            let received = received.map_err(|error| stopped(Stopped::Source(error)))?;
            rest -= received as u64;
            write_piece(session, buffer.split().freeze(), rest == 0).await?;
        }
        self.rooms.client.close_emptied(opened);
        Ok(())
    }

    /// The same from a registry over TLS, whose bytes pingora's reader decrypts a little at a time.
    async fn collect(
        &self,
        session: &mut Session,
        mut opened: Opened,
        mut rest: u64,
    ) -> Result<()> {
        session.write_response_header(Box::new(opened.header.clone()), false).await?;
        let mut buffer = BytesMut::new();
        while rest > 0 {
            buffer.reserve(PIECE);
            tokio::select! {
                biased;
                filled = fill(&mut opened, &mut buffer) => filled?,
                error = left(session) => return Err(error),
            }
            let piece = buffer.split().freeze();
            rest = rest.saturating_sub(piece.len() as u64);
            write_piece(session, piece, rest == 0).await?;
        }
        // pingora's reader is told that there is no more.
        if opened.chunk().await?.is_none() {
            self.rooms.client.close(opened).await;
        }
        Ok(())
    }

    /// An informational answer, before the last one.
    async fn hand_early(
        &self,
        session: &mut Session,
        passage: &Passage,
        header: ResponseHeader,
    ) -> Result<()> {
        let header = self.told(passage, header)?;
        session.write_response_header(Box::new(header), false).await
    }

    /// As it comes, through pingora's reader and writer.
    async fn hand_on(
        &self,
        session: &mut Session,
        mut opened: Opened,
        client: Client,
    ) -> Result<()> {
        let mut header = Box::new(opened.header.clone());
        let length = header.headers.get(CONTENT_LENGTH);
        let bodiless = framing::is_bodiless(header.status);
        let (endless, empty) = (length.is_none(), length.is_some_and(|length| length == "0"));
        let empty = bodiless || empty;
        if !bodiless && endless && !header.headers.contains_key(TRANSFER_ENCODING) {
            // It ends with the connection: clients are told its end by a last chunk.
            header.set_version(Version::HTTP_11);
            header.insert_header(TRANSFER_ENCODING, "chunked")?;
        }
        session.write_response_header(header, empty).await?;
        let mut over = empty;
        while !over {
            let chunk = tokio::select! {
                biased;
                chunk = opened.chunk() => chunk?.map(Bytes::copy_from_slice),
                error = left(session), if client == Client::Waits => return Err(error),
            };
            over = chunk.is_none();
            session.write_response_body(chunk, over).await?;
        }
        self.rooms.client.close(opened).await;
        Ok(())
    }
}

/// Over HTTP/2 pingora gives a client `CLIENT_WRITE` for all of one write, however slowly it takes it:
/// so there it is as much at a time as pingora itself would write.
async fn write_piece(session: &mut Session, mut piece: Bytes, last: bool) -> Result<()> {
    while session.is_http2() && piece.len() > AT_A_TIME {
        session.write_response_body(Some(piece.split_to(AT_A_TIME)), false).await?;
    }
    session.write_response_body(Some(piece), last).await
}

/// Puts to a buffer what comes next, and what is there already, up to a piece.
async fn fill(opened: &mut Opened, buffer: &mut BytesMut) -> Result<()> {
    while buffer.len() < PIECE {
        let reading = opened.chunk();
        let read = if buffer.is_empty() {
            reading.await
        } else {
            let Some(read) = reading.now_or_never() else { break };
            read
        };
        match read? {
            Some(bytes) => buffer.extend_from_slice(bytes),
            None if buffer.is_empty() => {
                return Err(stopped(Stopped::Source(io::ErrorKind::UnexpectedEof.into())));
            }
            None => break,
        }
    }
    Ok(())
}

/// What a client does while it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    Waits,
    /// Its body may still come.
    Sends,
}

/// Ends when the client has left, or speaks out of turn.
pub(super) async fn left(session: &mut Session) -> Box<Error> {
    match session.read_body_or_idle(true).await {
        Err(error) => error.into_down(),
        Ok(_) => Error::explain(ErrorType::ConnectionClosed, "a body after its end").into_down(),
    }
}

/// A GET that has no body, of a client that knows chunks.
fn is_plain(header: &RequestHeader) -> bool {
    header.method == Method::GET && header.version >= Version::HTTP_11 && has_no_body(header)
}

/// Neither has a body nor waits for leave to send one.
pub(super) fn has_no_body(header: &RequestHeader) -> bool {
    let names = [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT];
    !names.iter().any(|name| header.headers.contains_key(name))
}

/// The length of a whole body or a part of it, where there can be no doubt about it.
fn body_length(header: &ResponseHeader) -> Option<u64> {
    if !matches!(header.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
        || header.headers.contains_key(TRANSFER_ENCODING)
    {
        return None;
    }
    let mut lengths = header.headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next().filter(|length| framing::is_length(length.as_bytes()))?;
    let length = length.to_str().ok()?.parse().ok()?;
    lengths.next().is_none().then_some(length)
}

/// The answer's header as pingora would write it.
fn head(header: &mut ResponseHeader, connection: &'static str) -> Result<Vec<u8>> {
    header.insert_header(DATE, get_cached_date())?;
    header.insert_header(CONNECTION, HeaderValue::from_static(connection))?;
    let mut out = Vec::with_capacity(1024);
    let reason = header.get_reason_phrase().unwrap_or_default();
    let version = if header.version == Version::HTTP_10 { "1.0" } else { "1.1" };
    out.extend(format!("HTTP/{version} {} {reason}\r\n", header.status.as_u16()).as_bytes());
    header.header_to_h1_wire(&mut out);
    out.extend(b"\r\n");
    Ok(out)
}

fn stopped(stopped: Stopped) -> Box<Error> {
    match stopped {
        Stopped::Source(error) => failed(&error, Side::Registry),
        Stopped::Sink(error) => failed(&error, Side::Client),
        Stopped::Spoken => failed(&io::ErrorKind::ConnectionAborted.into(), Side::Client),
    }
}

#[derive(Clone, Copy)]
pub(super) enum Side {
    Registry,
    Client,
}

/// What pingora would say of a side that read or wrote no further.
pub(super) fn failed(error: &io::Error, side: Side) -> Box<Error> {
    let late = error.kind() == io::ErrorKind::TimedOut;
    let etype = |timed_out, other| if late { timed_out } else { other };
    let explained = |etype| Error::explain(etype, error.to_string());
    match side {
        Side::Registry => {
            explained(etype(ErrorType::ReadTimedout, ErrorType::ConnectionClosed)).into_up()
        }
        // Only who reads is told of an end.
        Side::Client if error.kind() == io::ErrorKind::UnexpectedEof => {
            explained(INCOMPLETE_BODY).into_down()
        }
        Side::Client => {
            explained(etype(ErrorType::WriteTimedout, ErrorType::WriteError)).into_down()
        }
    }
}
