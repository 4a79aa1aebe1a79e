//! Bodies of blobs on their way to the registry, past pingora's copying.
//!
//! The other way round, and harder: a body may be refused while it comes, and its end must be told
//! from the next request. pingora has read the header, and perhaps some of the body with it, which
//! goes first. When a body that was taken from under pingora is over, pingora reads the same header
//! once more, with no body to it.

use std::io::ErrorKind;

use bytes::BytesMut;
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING};
use http::{Method, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::super::body_drain::drain;
use super::super::context::Passage;
use super::super::{CLIENT_WRITE, Edge};
use super::chunk_copy::{Collected, Framing, InChunks, Source, slices};
use super::coalesce::{Gathered, Outgoing, Stitch};
use super::socket::{Heed, Patience, Sink, Socket, Stopped};
use super::splice::Through;
use super::{Client, Side, WORTH, failed, left};
use crate::registry::client::{Begun, is_early};

/// How a body ended.
enum Sent {
    Whole,
    /// The registry has answered before it had all of it.
    Answered(Box<ResponseHeader>),
}

/// How one ended that was moved from socket to socket.
enum Moved {
    Spliced,
    /// All of it, and pingora has read it itself.
    Read,
    Answered(Box<ResponseHeader>),
}

impl Edge {
    /// Takes the body of an upload to the registry, and its answer back. False where pingora is to
    /// do it.
    pub(in crate::proxy) async fn stream_upload(
        &self,
        session: &mut Session,
        passage: &mut Passage,
    ) -> Result<bool> {
        let Some(framing) = framing(session) else { return Ok(false) };
        let mut request = self.forwarding(passage).streamed(session.req_header())?;
        // Whatever the client said of them: the registry finds the body's end by these alone.
        match framing {
            Framing::Length(length) => request.insert_header(CONTENT_LENGTH, length)?,
            Framing::Chunks => {
                request.remove_header(&CONTENT_LENGTH);
                request.insert_header(TRANSFER_ENCODING, "chunked")?;
            }
        }
        let mut begun = self.rooms.client.begin(&request).await?;
        let sent = match (framing, session.as_http1().filter(|_| !self.config.tls)) {
            (Framing::Length(length), Some(_)) => {
                self.splice_body(session, passage, &mut begun, length).await?
            }
            (Framing::Chunks, Some(_)) => self.rechunk_body(session, passage, &mut begun).await?,
            (_, None) => self.collect_body(session, passage, &mut begun, framing).await?,
        };
        match sent {
            // Without descriptors pingora begins again, on a connection of its own.
            None => return Ok(false),
            Some(Sent::Whole) => {
                let header = self.last_answer(session, passage, &mut begun).await?;
                self.hand_on(session, begun.opened(header, Vec::new()), Client::Waits).await?;
            }
            Some(Sent::Answered(header)) => {
                // The rest of the body may still come: neither connection is kept.
                session.set_keepalive(None);
                let opened = begun.opened(self.told(passage, *header)?, Vec::new()).at_last();
                self.hand_on(session, opened, Client::Sends).await?;
                drain(session).await;
            }
        }
        Ok(true)
    }

    /// From socket to socket. `None` where there are no descriptors for it.
    async fn splice_body(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
        length: u64,
    ) -> Result<Option<Sent>> {
        let Some(http1) = session.as_http1() else { return Ok(None) };
        let patience = Patience {
            source: http1.get_read_timeout().unwrap_or(CLIENT_WRITE),
            sink: self.rooms.peers.timeouts().write,
        };
        let through = Through::open(http1.stream(), begun.stream(), patience, Heed::Answer);
        let Ok(mut through) = through else { return Ok(None) };
        let mut rest = length;
        let sent = self.move_body(session, passage, begun, (&mut through, &mut rest)).await?;
        through.close();
        match sent {
            // The rest of it pingora has not seen.
            Moved::Spliced => forget_body(session, b"").await?,
            Moved::Read => {}
            Moved::Answered(header) => return Ok(Some(Sent::Answered(header))),
        }
        Ok(Some(Sent::Whole))
    }

    /// From the client's socket, in chunks of its own. `None` where there are no descriptors for it.
    async fn rechunk_body(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
    ) -> Result<Option<Sent>> {
        let Some(http1) = session.as_http1() else { return Ok(None) };
        let patience = http1.get_read_timeout().unwrap_or(CLIENT_WRITE);
        let (source, sink) =
            (InChunks::of(http1.stream(), patience, passage.body_received), self.sink(begun));
        let (Ok(mut source), Ok(sink)) = (source, sink) else { return Ok(None) };
        InChunks::take_over(session)?;
        passage.unparsed = true;
        let mut stitch = Some(Stitch::default());
        let sent = loop {
            let mut gathered = Gathered::Small;
            if let Some(stitch) = &mut stitch {
                gathered = loop {
                    tokio::select! {
                        biased;
                        gathered = stitch.gather(&mut source) => break gathered?,
                        stopped = sink.interrupted() => {
                            let heard = self.heard(session, passage, begun, stopped).await?;
                            if let Some(header) = heard {
                                return Ok(Some(Sent::Answered(header)));
                            }
                        }
                    }
                };
            }
            let sent = match (gathered, &mut stitch) {
                (Gathered::Large, Some(stitch)) => {
                    let over = source.is_over();
                    self.send_held(session, passage, begun, (stitch, &sink, over)).await?
                }
                (Gathered::Unable, unable) => {
                    *unable = None;
                    None
                }
                _ => {
                    let whole = (&mut source, &sink, Framing::Chunks);
                    self.send_piece(session, passage, begun, whole).await?
                }
            };
            if let Some(sent) = sent {
                break sent;
            }
        };
        if let Some(stitch) = stitch {
            stitch.close();
        }
        if matches!(sent, Sent::Whole) {
            let rest = source.rest().to_vec();
            drop(source);
            forget_body(session, &rest).await?;
        }
        Ok(Some(sent))
    }

    /// From pingora's reader. `None` where there is no descriptor for it.
    async fn collect_body(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
        framing: Framing,
    ) -> Result<Option<Sent>> {
        let Ok(sink) = self.sink(begun) else { return Ok(None) };
        let mut source = Collected::default();
        loop {
            let piece = (&mut source, &sink, framing);
            if let Some(sent) = self.send_piece(session, passage, begun, piece).await? {
                return Ok(Some(sent));
            }
        }
    }

    fn sink(&self, begun: &Begun) -> std::io::Result<Sink> {
        let socket = Socket::of(begun.stream())?;
        Ok(Sink { socket, patience: self.rooms.peers.timeouts().write, heed: Heed::Answer })
    }

    /// The next piece. Nothing, where more of them follow.
    async fn send_piece(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
        (source, sink, framing): (&mut impl Source, &Sink, Framing),
    ) -> Result<Option<Sent>> {
        tokio::select! {
            biased;
            next = source.next(session) => next?,
            stopped = sink.interrupted() => {
                let heard = self.heard(session, passage, begun, stopped).await?;
                return Ok(heard.map(Sent::Answered));
            }
        }
        let size = source.parts().map(<[u8]>::len).sum();
        passage.received += size as u64;
        self.check_pace(passage)?;
        let before = framing.before(size);
        let mut slices = slices(&before, source.parts(), framing.after(size, source.is_over()));
        let mut unsent = &mut slices[..];
        while let Err(stopped) = sink.put(&mut unsent).await {
            if let Some(header) = self.heard(session, passage, begun, stopped).await? {
                return Ok(Some(Sent::Answered(header)));
            }
        }
        Ok(source.is_over().then_some(Sent::Whole))
    }

    /// What a pipe holds, as one chunk. Nothing, where more of them follow.
    async fn send_held(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
        (stitch, sink, over): (&mut Stitch, &Sink, bool),
    ) -> Result<Option<Sent>> {
        let size = stitch.held;
        passage.received += size as u64;
        self.check_pace(passage)?;
        let mut chunk = Outgoing::new(size, over);
        while let Err(stopped) = stitch.send(sink, &mut chunk).await {
            if let Some(header) = self.heard(session, passage, begun, stopped).await? {
                return Ok(Some(Sent::Answered(header)));
            }
        }
        Ok(over.then_some(Sent::Whole))
    }

    async fn move_body(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
        (through, rest): (&mut Through, &mut u64),
    ) -> Result<Moved> {
        // What came along with the header is pingora's to give; the rest is in the socket.
        let mut buffered = passage.body_received;
        while buffered > 0 {
            let chunk = loop {
                tokio::select! {
                    biased;
                    chunk = session.downstream_session.read_request_body(), if *rest > 0 => {
                        break chunk.map_err(Error::into_down)?.unwrap_or_default();
                    }
                    stopped = through.sink.interrupted(), if *rest > 0 => {
                        if let Some(header) = self.heard(session, passage, begun, stopped).await? {
                            return Ok(Moved::Answered(header));
                        }
                    }
                    else => return Ok(Moved::Read),
                }
            };
            *rest = rest.saturating_sub(chunk.len() as u64);
            buffered = if chunk.is_empty() { 0 } else { buffered.saturating_sub(chunk.len()) };
            passage.received += chunk.len() as u64;
            if let Err(stopped) = through.sink.send(&chunk, *rest > 0).await
                && let Some(header) = self.heard(session, passage, begun, stopped).await?
            {
                return Ok(Moved::Answered(header));
            }
        }
        if *rest == 0 {
            return Ok(Moved::Read);
        }
        while *rest > 0 {
            if let Err(stopped) = through.turn(rest, &mut passage.received).await
                && let Some(header) = self.heard(session, passage, begun, stopped).await?
            {
                return Ok(Moved::Answered(header));
            }
            self.check_pace(passage)?;
        }
        Ok(Moved::Spliced)
    }

    /// What the registry has said, where it stopped the body. Nothing, where that may go on.
    async fn heard(
        &self,
        session: &mut Session,
        passage: &Passage,
        begun: &mut Begun,
        stopped: Stopped,
    ) -> Result<Option<Box<ResponseHeader>>> {
        match stopped {
            Stopped::Source(error) => Err(failed(&error, Side::Client)),
            // Its last answer may have come along with an informational one, and been read with it.
            Stopped::Sink(error) if error.kind() == ErrorKind::TimedOut => {
                match begun.answer().now_or_never() {
                    Some(Ok(header)) if !is_early(&header) => Ok(Some(Box::new(header))),
                    _ => Err(failed(&error, Side::Registry)),
                }
            }
            // A registry that closes may have said why.
            Stopped::Sink(_) | Stopped::Spoken => match begun.answer().await? {
                header if is_early(&header) => {
                    self.hand_early(session, passage, header).await?;
                    Ok(None)
                }
                header => Ok(Some(Box::new(header))),
            },
        }
    }

    async fn last_answer(
        &self,
        session: &mut Session,
        passage: &Passage,
        begun: &mut Begun,
    ) -> Result<ResponseHeader> {
        loop {
            let header = tokio::select! {
                biased;
                header = begun.answer() => header?,
                error = left(session) => return Err(error),
            };
            if !is_early(&header) {
                return self.told(passage, header);
            }
            self.hand_early(session, passage, header).await?;
        }
    }
}

/// Of a body that is worth it.
fn framing(session: &mut Session) -> Option<Framing> {
    let header = session.req_header();
    let plain = matches!(header.method, Method::PATCH | Method::PUT | Method::POST)
        && header.version >= Version::HTTP_11
        // It waits for the registry's word, which pingora passes on.
        && !header.headers.contains_key(EXPECT);
    if !plain {
        return None;
    }
    if let Some(length) = header.headers.get(CONTENT_LENGTH) {
        let length = length.to_str().ok()?.parse().ok()?;
        return (length >= WORTH).then_some(Framing::Length(length));
    }
    let chunked = match header.version {
        Version::HTTP_11 => header.headers.contains_key(TRANSFER_ENCODING),
        // A body without a length.
        _ => !session.downstream_session.is_body_empty(),
    };
    chunked.then_some(Framing::Chunks)
}

/// The body was taken from under pingora: it is told that there is none, by the same header without
/// one, and what came after the body. Or else it would wait for the rest of it before the next request.
async fn forget_body(session: &mut Session, rest: &[u8]) -> Result<()> {
    let ServerSession::H1(http1) = &mut *session.downstream_session else {
        return Error::e_explain(ErrorType::InternalError, "not a connection of HTTP/1.1");
    };
    let keepalive = http1.get_keepalive_timeout();
    let mut header = without_body(&http1.get_headers_raw_bytes());
    header.extend_from_slice(rest);
    http1.set_pipelined_prefix(header);
    http1.read_request().await?;
    http1.set_server_keepalive(keepalive);
    Ok(())
}

/// Each line but those that tell of a body, of which there is one (`admission`).
fn without_body(header: &[u8]) -> BytesMut {
    let mut without = BytesMut::with_capacity(header.len());
    for line in header.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
        let framing = [CONTENT_LENGTH, TRANSFER_ENCODING];
        if !framing.iter().any(|own| name.eq_ignore_ascii_case(own.as_str().as_bytes())) {
            without.extend_from_slice(line);
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_without_its_body_is_the_same_otherwise() {
        let header =
            b"PUT /x HTTP/1.1\r\nHost: x\r\ncontent-Length : 7\r\nX: Content-Length: 9\r\n\r\n";
        let without = b"PUT /x HTTP/1.1\r\nHost: x\r\nX: Content-Length: 9\r\n\r\n";
        assert_eq!(&without_body(header)[..], without);
    }
}
