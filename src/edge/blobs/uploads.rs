//! Bodies of blobs on their way to the registry, past pingora's copying.
//!
//! The other way round, and harder: a body may be refused while it comes, and its end must be told
//! from the next request. pingora has read the header, and perhaps some of the body with it, which
//! goes first. When the body is over, pingora reads the same header once more, with no body to it.

use std::io::ErrorKind;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{Method, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::super::passage::Passage;
use super::super::{CLIENT_WRITE, Edge, refusal};
use super::splice::{Heed, Patience, Stopped, Through};
use super::{Client, Side, WORTH, failed, left};
use crate::registry::client::{Begun, is_early};

/// How a body ended.
enum Sent {
    Whole,
    /// All of it, and pingora has read it itself.
    Read,
    /// The registry has answered before it had all of it.
    Answered(Box<ResponseHeader>),
}

impl Edge {
    /// Takes the body of an upload to the registry, and its answer back. False where pingora is to
    /// do it.
    pub(in crate::edge) async fn stream_upload(
        &self,
        session: &mut Session,
        passage: &mut Passage,
    ) -> Result<bool> {
        let header = session.req_header();
        let Some(length) = worth(header).filter(|_| !self.config.tls) else { return Ok(false) };
        let Some(http1) = session.as_http1() else { return Ok(false) };
        let request = self.forwarding(passage).streamed(header)?;
        let mut begun = self.rooms.client.begin(&request).await?;
        let patience = Patience {
            source: http1.get_read_timeout().unwrap_or(CLIENT_WRITE),
            sink: self.rooms.peers.timeouts().write,
        };
        let through = Through::open(http1.stream(), begun.stream(), patience, Heed::Answer);
        // Without descriptors pingora begins again, on a connection of its own.
        let Ok(mut through) = through else { return Ok(false) };
        let sent = self.send_body(session, passage, &mut begun, &mut through, length).await?;
        through.close();
        match sent {
            whole @ (Sent::Whole | Sent::Read) => {
                if matches!(whole, Sent::Whole) {
                    forget_body(session).await?;
                }
                let header = self.last_answer(session, passage, &mut begun).await?;
                self.hand_on(session, begun.opened(header, Vec::new()), Client::Waits).await?;
            }
            Sent::Answered(header) => {
                // The rest of the body may still come: neither connection is kept.
                session.set_keepalive(None);
                let opened = begun.opened(self.told(passage, *header)?, Vec::new()).at_last();
                self.hand_on(session, opened, Client::Sends).await?;
                refusal::drain(session).await;
            }
        }
        Ok(true)
    }

    async fn send_body(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        begun: &mut Begun,
        through: &mut Through,
        length: u64,
    ) -> Result<Sent> {
        let mut rest = length;
        // What came along with the header is in pingora's buffers: some of it was read with it, and
        // the next read brings all that is left, as it has as much room as the buffer before it.
        for _ in 0..2 {
            let chunk = loop {
                tokio::select! {
                    biased;
                    chunk = session.downstream_session.read_request_body(), if rest > 0 => {
                        break chunk.map_err(Error::into_down)?.unwrap_or_default();
                    }
                    stopped = through.interrupted(), if rest > 0 => {
                        if let Some(sent) = self.heard(session, passage, begun, stopped).await? {
                            return Ok(sent);
                        }
                    }
                    else => return Ok(Sent::Read),
                }
            };
            rest = rest.saturating_sub(chunk.len() as u64);
            passage.received += chunk.len() as u64;
            if let Err(stopped) = through.send(&chunk, rest > 0).await
                && let Some(sent) = self.heard(session, passage, begun, stopped).await?
            {
                return Ok(sent);
            }
        }
        if rest == 0 {
            return Ok(Sent::Read);
        }
        while rest > 0 {
            if let Err(stopped) = through.turn(&mut rest, &mut passage.received).await
                && let Some(sent) = self.heard(session, passage, begun, stopped).await?
            {
                return Ok(sent);
            }
            self.check_pace(passage)?;
        }
        Ok(Sent::Whole)
    }

    /// What the registry has said, where it stopped the body. Nothing, where that may go on.
    async fn heard(
        &self,
        session: &mut Session,
        passage: &Passage,
        begun: &mut Begun,
        stopped: Stopped,
    ) -> Result<Option<Sent>> {
        match stopped {
            Stopped::Source(error) => Err(failed(&error, Side::Client)),
            Stopped::Sink(error) if error.kind() == ErrorKind::TimedOut => {
                Err(failed(&error, Side::Registry))
            }
            // A registry that closes may have said why.
            Stopped::Sink(_) | Stopped::Spoken => match begun.answer().await? {
                header if is_early(&header) => {
                    self.hand_early(session, passage, header).await?;
                    Ok(None)
                }
                header => Ok(Some(Sent::Answered(Box::new(header)))),
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

/// The length of a body that is worth it.
fn worth(header: &RequestHeader) -> Option<u64> {
    let plain = matches!(header.method, Method::PATCH | Method::PUT | Method::POST)
        && header.version == Version::HTTP_11
        // It waits for the registry's word, which pingora passes on.
        && !header.headers.contains_key(EXPECT);
    let length = header.headers.get(CONTENT_LENGTH).filter(|_| plain)?;
    let length = length.to_str().ok()?.parse().ok()?;
    (length >= WORTH).then_some(length)
}

/// The body was taken from under pingora: it is told that there is none, by the same header without
/// one. Or else it would wait for the rest of it before the next request.
async fn forget_body(session: &mut Session) -> Result<()> {
    let ServerSession::H1(http1) = &mut *session.downstream_session else {
        return Error::e_explain(ErrorType::InternalError, "not a connection of HTTP/1.1");
    };
    let keepalive = http1.get_keepalive_timeout();
    let header = without_body(&http1.get_headers_raw_bytes());
    http1.set_pipelined_prefix(header);
    http1.read_request().await?;
    http1.set_server_keepalive(keepalive);
    Ok(())
}

/// Each line but the one of the length, of which there is one (`admission`).
fn without_body(header: &[u8]) -> BytesMut {
    let mut without = BytesMut::with_capacity(header.len());
    for line in header.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default().trim_ascii();
        if !name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str().as_bytes()) {
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
