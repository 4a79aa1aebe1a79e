//! Pulls of protected tags: from the client to the judge, and what it found back to the client.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::Edge;
use super::authorized::Right;
use super::context::Passage;
use super::error_response::Refusal;
use super::push::{is_of_the_connection, legible, title_case};
use super::relay::SMALL;
use crate::judge::pull::{Basis, Pull, Pulled};
use crate::ledger::RepositoryKey;
use crate::name::{Digest, RepositoryName, Tag};
use crate::registry::client::CONTENT_DIGEST;
use crate::registry::framing;
use crate::registry::{Answer, Caller, Reading};
use crate::route::{namespace, query_of};
use crate::runtime::timer::Clock;
use crate::telemetry::audit::{Decision, Outcome, Subject, user_of};

/// RFC 7234, section 5.5.7: a miscellaneous persistent warning, of an agent with no name.
const UNVERIFIED: HeaderValue = HeaderValue::from_static(
    "299 - \"taglock's ledger is down and this tag was not seen before: it is what the registry says\"",
);

const REMEMBERED: HeaderValue = HeaderValue::from_static(
    "299 - \"taglock's ledger is down: the tag may have been freed since it was seen\"",
);

const DIFFERS: HeaderValue =
    HeaderValue::from_static("299 - \"the registry's own tag differs from the ledger\"");

pub(super) fn reading(method: &Method) -> Reading {
    if *method == Method::HEAD { Reading::Head } else { Reading::Get }
}

impl Edge {
    /// A GET or HEAD of a protected tag. False where the request is to stream after all.
    pub(super) async fn read(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        (repository, tag): (&RepositoryName, &Tag),
        public: bool,
    ) -> Result<bool> {
        let started = Instant::now();
        let header = session.req_header();
        let reading = reading(&header.method);
        let caller =
            self.caller(session.req_header(), passage, namespace(query_of(header.raw_path())));
        let identity = self.identity(session, passage);
        let let_in = self.has_let_in(identity, repository, Right::Pull);
        let caller = Caller { public, let_in, ..caller };
        let key = self.key(repository);
        let strict = self.config.strict;
        let pull = Pull { repository: key.clone(), tag: tag.clone(), strict };
        let pulled = self.rooms.judge.pull(pull, &caller, reading).await;
        self.rooms.metrics.pull(pulled.label(), started.elapsed());
        passage.judged(pulled.label());
        match pulled {
            Pulled::Served { digest, answer, basis } => {
                self.rooms.let_in.note(identity, repository, Right::Pull);
                let answer = with_digest(answer, &digest);
                self.warn_of_drift(passage, &key, tag, &digest);
                if basis == Basis::Memory {
                    passage.warning = Some(REMEMBERED);
                }
                if basis == Basis::FirstSight {
                    self.audit_first_sight(session, passage, repository, tag, digest);
                }
                self.pass_on(session, passage, reading, answer).await?;
            }
            Pulled::Relayed(answer) => {
                let answer = if reading == Reading::Get { legible(answer) } else { answer };
                self.pass_on(session, passage, reading, answer).await?;
            }
            Pulled::Unverified => {
                tracing::warn!(
                    id = %passage.id, %repository, %tag,
                    "the ledger is down and the tag was never seen: the registry's answer is passed on"
                );
                passage.warning = Some(UNVERIFIED);
                return Ok(false);
            }
            Pulled::Unknown => {
                self.refuse(session, passage, Refusal::manifest_unknown()).await?;
            }
            Pulled::Wrong { digest, what } => {
                tracing::error!(
                    id = %passage.id, %repository, %tag, %digest, what,
                    "the registry serves other bytes than it was asked for"
                );
                self.refuse(session, passage, Refusal::wrong_bytes(&digest, what)).await?;
            }
            Pulled::Undecided(unsure) => {
                self.refuse(session, passage, Refusal::unsure(&unsure)).await?;
            }
        }
        Ok(true)
    }

    pub(super) fn warn_of_drift(
        &self,
        passage: &mut Passage,
        key: &RepositoryKey,
        tag: &Tag,
        digest: &Digest,
    ) {
        if self.rooms.judge.drift().is_some_and(|drift| drift.differs(key, tag, digest)) {
            passage.warning = Some(DIFFERS);
        }
    }

    fn audit_first_sight(
        &self,
        session: &Session,
        passage: &Passage,
        repository: &RepositoryName,
        tag: &Tag,
        digest: Digest,
    ) {
        let rules = self.rooms.rules.load();
        let decision = Decision {
            id: passage.id.to_string(),
            user: user_of(&session.req_header().headers),
            client: passage.client.address,
            repository: repository.clone(),
            tags: vec![tag.clone()],
            subject: Subject::Pull,
            rule: rules.protecting(repository).map(|rule| rule.name.clone()),
        };
        let bound = Some(digest);
        let outcome =
            Outcome { label: "first-sight", bound, registry_status: Some(200), detail: None };
        self.rooms.audit.record(&decision, &outcome);
    }

    /// Passes on what the registry said, as its answer to the request by tag would look.
    pub(super) async fn pass_on(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        reading: Reading,
        answer: Answer,
    ) -> Result<()> {
        let Answer { status, mut headers, body } = answer;
        self.rewriting(passage).apply_to(&mut headers);
        self.write_answer(session, passage, reading, (status, &headers, body)).await
    }

    /// Writes an answer whose URLs name the proxy already.
    pub(super) async fn write_answer(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        reading: Reading,
        (status, headers, body): (StatusCode, &HeaderMap, Bytes),
    ) -> Result<()> {
        let (lines, at_once) = whole(reading, status, headers, &body);
        if !session.downstream_session.is_body_done() {
            // A GET with a body is none of ours: what is left of it must not be the next request.
            session.set_keepalive(None);
        }
        if let Some(http1) = session.as_http1().filter(|_| self.config.relays)
            && session.req_header().version == Version::HTTP_11
            && at_once.len() <= SMALL
        {
            let (stream, keeps) = (http1.stream(), http1.will_keepalive());
            let (answer, mut clock) = ((status, &lines[..], at_once), Clock::default());
            return self.write_whole(stream, passage, keeps, answer, &mut clock).await;
        }
        let empty = at_once.is_empty();
        let mut header = ResponseHeader::build(status, Some(lines.len() + 1))?;
        for (name, value) in lines {
            header.append_header(name, value)?;
        }
        if let Some(warning) = &passage.warning {
            header.append_header("Warning", warning.clone())?;
        }
        session.write_response_header(Box::new(header), empty).await?;
        if !empty {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }
}

/// A client that asked by tag learns the digest from nothing else; some registries, and proxies before
/// them, leave it out.
fn with_digest(mut answer: Answer, digest: &Digest) -> Answer {
    if answer.status == StatusCode::OK
        && let Ok(digest) = HeaderValue::from_str(&digest.to_string())
    {
        answer.headers.entry(CONTENT_DIGEST).or_insert(digest);
    }
    answer
}

/// The lines of an answer's header, and the body that is sent with it.
pub(super) fn whole<'a>(
    reading: Reading,
    status: StatusCode,
    headers: &HeaderMap,
    body: &'a [u8],
) -> (Vec<(Bytes, HeaderValue)>, &'a [u8]) {
    let bodiless = reading == Reading::Head || framing::is_bodiless(status);
    let length = match headers.get(CONTENT_LENGTH) {
        _ if !bodiless => Some(HeaderValue::from(body.len())),
        _ if status == StatusCode::NO_CONTENT => None,
        // The length of what a GET would bring.
        of_a_get => of_a_get.cloned(),
    };
    let own = |(name, _): &(&HeaderName, &HeaderValue)| {
        // The date of an answer is when it is given.
        !is_of_the_connection(name) && **name != DATE
    };
    let lines = headers.iter().filter(own).map(|(name, value)| (title_case(name), value.clone()));
    let length = length.map(|length| (Bytes::from_static(b"Content-Length"), length));
    (lines.chain(length).collect(), if bodiless { &[] } else { body })
}
