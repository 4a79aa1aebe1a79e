//! The short way of a small read: from the request's bytes to the answer's, without pingora.
//!
//! Admission, routing, rules, accounting and answers are those of any other request. What turns out
//! to need more is handed to pingora as if nobody had looked at it, with what is known of it.

use http::StatusCode;
use pingora::{Error, Result};

use super::Edge;
use super::asked::{Asked, Line};
use super::course::Course;
use super::passage::{Passage, Tally};
use super::reads::{reading, whole};
use super::refusal::Refusal;
use crate::registry::clock::Clock;

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
        line: &mut Line,
        asked: &mut Asked,
        clock: &mut Clock,
    ) -> Outcome {
        let mut passage = self.passage(clock.now().into_std());
        if let Some(tracer) = &self.rooms.tracer {
            passage.trace = Some(tracer.begin(&asked.header.headers));
        }
        let course = self.decide(&asked.head(line.peer), &mut passage);
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
}
