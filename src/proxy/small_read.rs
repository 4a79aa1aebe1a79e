//! The short way of a small read: from the request's bytes to the answer's, without pingora.
//!
//! Admission, routing, rules, accounting and answers are those of any other request. What turns out
//! to need more is handed to pingora as if nobody had looked at it, with what is known of it.

use std::net::SocketAddr;
use std::time::Instant;

use http::{Method, StatusCode};
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use pingora::{Error, Result};

use super::context::{Passage, Tally};
use super::dispatch::Course;
use super::error_response::{Refusal, leave_with};
use super::http1_connection::Line;
use super::pull::{reading, whole};
use super::request_headers::put_line;
use super::request_memo::Asked;
use super::{Edge, validate};
use crate::runtime::timer::Clock;

/// What became of a request.
pub enum Outcome {
    Answered {
        /// Whether the client may ask again.
        keeps: bool,
    },
    /// It is pingora's.
    Other(Box<Passage>),
}

impl Edge {
    pub(super) async fn answer_asked(
        &self,
        (line, peer): &mut (&mut Line, SocketAddr),
        asked: &mut Asked,
        clock: &mut Clock,
    ) -> Outcome {
        let mut passage = self.passage(clock.now().into_std());
        if let Some(tracer) = &self.rooms.tracer {
            passage.trace = Some(tracer.begin(&asked.header.headers));
        }
        let course = self.decide(&asked.head(*peer), &mut passage);
        if course.is_ok() {
            asked.admitted(&passage.client);
        }
        let answered = match course {
            // Where it has to wait for the ledger it does so there.
            Ok(course) if course.needs_the_ledger() && !self.rooms.gate.is_open() => Ok(false),
            Ok(course) if course.is_a_small_read() => {
                self.answer_course(line, asked, &mut passage, course, clock).await
            }
            // Its refusal, too, is written there.
            _ => Ok(false),
        };
        let error = match answered {
            Ok(false) => return Outcome::Other(Box::new(passage)),
            Ok(true) => None,
            Err(error) => {
                self.tell_failure(line, asked, &mut passage, &error, clock).await;
                Some(error)
            }
        };
        let tally = Tally::of_sent(&passage);
        self.account(&asked.header, error.as_deref(), &passage, tally);
        Outcome::Answered { keeps: asked.keeps && error.is_none() }
    }

    async fn answer_course(
        &self,
        line: &mut Line,
        asked: &mut Asked,
        passage: &mut Passage,
        course: Course,
        clock: &mut Clock,
    ) -> Result<bool> {
        let kept = match course {
            Course::Relay => return self.stream_relayed(line, asked, passage, clock).await,
            Course::Read { repository, tag, public: false } => {
                return self.relay_bound(line, asked, passage, (repository, tag), clock).await;
            }
            Course::Read { repository, tag, public: true } => {
                self.at_hand(&asked.header, passage, &repository, &tag)
            }
            Course::ReadPublic(repository, digest) => {
                self.public_at_hand(&asked.header, &repository, &digest)
            }
            _ => None,
        };
        let Some(kept) = kept else { return Ok(false) };
        let answer = kept.answer();
        let reading = reading(&asked.header.method);
        let (lines, body) = whole(reading, answer.status, &answer.headers, &answer.body);
        let answer = (answer.status, &lines[..], body);
        self.write_whole(&line.stream, passage, asked.keeps, answer, clock).await?;
        Ok(true)
    }

    /// Tells the client what went wrong, where it is there and has not been told anything yet.
    async fn tell_failure(
        &self,
        line: &Line,
        asked: &Asked,
        passage: &mut Passage,
        error: &Error,
        clock: &mut Clock,
    ) {
        if passage.sent.is_some() {
            return;
        }
        let Some(refusal) = Refusal::of(error) else { return };
        if let Err(error) = self.refuse_asked(line, asked, passage, (refusal, false), clock).await {
            tracing::debug!(%error, "an error could not be answered");
        }
    }

    pub(super) async fn refuse_asked(
        &self,
        line: &Line,
        asked: &Asked,
        passage: &mut Passage,
        (refusal, keeps): (Refusal, bool),
        clock: &mut Clock,
    ) -> Result<()> {
        let (status, lines, body): (StatusCode, _, _) =
            self.note_refusal(&asked.header, passage, refusal);
        let body = if asked.is_head() { &[][..] } else { &body };
        self.write_whole(&line.stream, passage, keeps, (status, &lines, body), clock).await
    }

    /// Answers a header that is longer than it may be, of which this much was read, and ends the
    /// connection.
    pub(super) async fn refuse_header(&self, stream: Stream, peer: SocketAddr, read: &[u8]) {
        let mut passage = self.passage(Instant::now());
        passage.client.address = peer.ip();
        let request = first_line(read);
        let refusal = Refusal::from(validate::too_large());
        let (status, lines, body) = self.note_refusal(&request, &passage, refusal);
        let mut answer = format!("HTTP/1.1 {status}\r\n").into_bytes();
        for (name, value) in &lines {
            put_line(&mut answer, name, value.as_bytes());
        }
        answer.extend_from_slice(b"Connection: close\r\n\r\n");
        if request.method != Method::HEAD {
            answer.extend_from_slice(&body);
        }
        leave_with(stream, &answer).await;
        let (bytes_in, bytes_out) = (read.len() as u64, body.len() as u64);
        let tally = Tally { status: status.as_u16(), bytes_in, bytes_out };
        self.account(&request, None, &passage, tally);
    }
}

/// What the first line asks for, as far as it can be read: for logs alone.
fn first_line(read: &[u8]) -> RequestHeader {
    let mut request = httparse::Request::new(&mut []);
    // There are more lines than none, and so it stops after the first.
    let _ = request.parse(read);
    let (method, path) = (request.method.unwrap_or("GET"), request.path.unwrap_or("/"));
    let named = RequestHeader::build(method, path.as_bytes(), None);
    // A method that is none, or a path that is no URI's, of a header that is not answered otherwise.
    named.unwrap_or_else(|_| RequestHeader::build("GET", b"/", None).expect("it is a request"))
}
