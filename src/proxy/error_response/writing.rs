//! How taglock's own answers are written, counted and logged.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use http::header::{EXPECT, HeaderValue};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::Session;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::Edge;
use super::super::body_drain::drain;
use super::super::context::Passage;
use super::super::limits::Cap;
use super::{Extra, RETRY_SECONDS, Refusal};
use crate::registry::wire;
use crate::telemetry::audit::{User, user_of};
use crate::telemetry::refusals::Refused;

/// What is taken off the wire of a connection that is turned away: these are many, and cost little.
const TURN_AWAY_BYTES: usize = 64 << 10;
const TURN_AWAY_TIME: Duration = Duration::from_millis(500);

impl Edge {
    /// Writes the answer, then takes a bounded rest of the body off the wire: an answer before its
    /// end is lost on HTTP/2 and reset on HTTP/1 otherwise.
    pub(in crate::proxy) async fn refuse(
        &self,
        session: &mut Session,
        passage: &Passage,
        refusal: Refusal,
    ) -> Result<()> {
        let (status, lines, body) = self.note_refusal(session.req_header(), passage, refusal);
        let mut header = ResponseHeader::build(status, Some(lines.len()))?;
        for (name, value) in lines {
            header.insert_header(name, value)?;
        }
        let told_to_go_on = session.response_written().is_some();
        let unread = !session.downstream_session.is_body_done();
        if unread {
            session.set_keepalive(None);
        }
        let head = session.req_header().method == http::Method::HEAD;
        session.write_response_header(Box::new(header), head).await?;
        if !head {
            session.write_response_body(Some(body.into()), true).await?;
        } else if session.is_http2() {
            // pingora's writer does not end the stream with the header, nor does it after an error.
            session.write_response_body(None, true).await?;
        }
        // Who waits for a "100 Continue" has sent nothing, and will not now.
        let waits = session.req_header().headers.contains_key(EXPECT)
            && !told_to_go_on
            && session.body_bytes_read() == 0;
        if unread && !waits {
            drain(session).await;
        }
        Ok(())
    }

    /// Counts and logs it, and says how it is told.
    pub(in crate::proxy) fn note_refusal(
        &self,
        request: &RequestHeader,
        passage: &Passage,
        refusal: Refusal,
    ) -> (StatusCode, Vec<(Bytes, HeaderValue)>, Vec<u8>) {
        let Refusal { status, code, message, reason, extra } = refusal;
        if let Some(trace) = &passage.trace {
            trace.refused(reason);
        }
        tracing::info!(
            id = %passage.id, status = status.as_u16(), code = code.as_str(), reason, message,
            "refused"
        );
        let body = wire::error_document(code.as_str(), &message);
        self.rooms.refusals.note(Refused {
            at: SystemTime::now(),
            id: passage.id.to_string(),
            client: passage.client.address,
            user: user_of(&request.headers).map(User::into_name),
            method: request.method.to_string(),
            // Not its query, which may hold a token.
            path: request.uri.path().to_owned(),
            status: status.as_u16(),
            code: code.as_str(),
            reason,
            message,
        });
        // Last: who sees the count finds the line, and the page's.
        self.rooms.metrics.refusal(reason);
        let line = |name, value| (Bytes::from_static(name), HeaderValue::from_static(value));
        let mut lines = vec![
            line(b"Content-Type", "application/json"),
            line(b"Docker-Distribution-API-Version", "registry/2.0"),
            (Bytes::from_static(b"X-Request-Id"), passage.id.header()),
            (Bytes::from_static(b"Content-Length"), HeaderValue::from(body.len())),
        ];
        match extra {
            Extra::None => {}
            Extra::Allow(methods) => lines.push(line(b"Allow", methods)),
            Extra::RetryAfter(after) => lines.push((Bytes::from_static(b"Retry-After"), after)),
        }
        (status, lines, body)
    }
}

/// Answers a connection for which there is no room, before it has asked for anything, and ends it.
pub async fn turn_away(stream: Stream) {
    let Refusal { status, code, message, .. } = Refusal::overloaded(Cap::Connections);
    let body = wire::error_document(code.as_str(), &message);
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
         Docker-Distribution-API-Version: registry/2.0\r\nRetry-After: {RETRY_SECONDS}\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    leave_with(stream, &[answer.as_bytes(), &body].concat()).await;
}

/// Writes an answer of HTTP/1.1 to a client that may still be sending, and ends its connection.
pub async fn leave_with(mut stream: Stream, answer: &[u8]) {
    let leaving = async {
        // HTTP/2 would not understand it; its client sees the end of the connection.
        if !matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            stream.write_all(answer).await?;
        }
        AsyncWriteExt::shutdown(&mut stream).await?;
        // What it has sent must be read, or the answer is lost.
        let mut left = TURN_AWAY_BYTES;
        let mut buffer = [0; 4096];
        while left > 0 {
            match stream.read(&mut buffer).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        std::io::Result::Ok(())
    };
    // A client that has left by itself is no trouble.
    let _ = timeout(TURN_AWAY_TIME, leaving).await;
}
