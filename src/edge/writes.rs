//! Manifest writes in protected scope: from the client to the judge, and its verdict
//! back to the client.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LOCATION, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, StatusCode};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use super::crowd::Place;
use super::passage::Passage;
use super::refusal::Refusal;
use super::{Edge, intake};
use crate::judge::{Cargo, Content, Judged, Push, Undecided, Verdict};
use crate::ledger::{AttemptId, Holder};
use crate::name::{Digest, RepositoryName, Tag};
use crate::registry::client::CONTENT_DIGEST;
use crate::registry::framing;
use crate::registry::{Answer, Caller, Trouble, wire};
use crate::route::ManifestWrite;
use crate::rules::{Mutability, Rule};
use crate::telemetry::Metrics;
use crate::telemetry::audit::{Audit, Decision, Outcome, Subject, user_of};

const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// A manifest that was taken in, and the place it keeps until it is judged.
struct Load {
    content: Content,
    cargo: Cargo,
    place: Place,
}

impl Edge {
    /// A manifest PUT in protected scope.
    pub(super) async fn write(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        write: ManifestWrite,
    ) -> Result<()> {
        let max = self.config.max_manifest;
        let headers = &session.req_header().headers;
        let media_type = match intake::check(headers, &self.config.media, max) {
            Ok(media_type) => media_type,
            Err(refusal) => return self.refuse(session, passage, refusal).await,
        };
        let time = self.config.manifest_time;
        let bounds = intake::Bounds { max, time, crowd: &self.rooms.crowd };
        let (manifest, place) = match intake::read(session, media_type, bounds).await? {
            Ok(taken) => taken,
            Err(refusal) => return self.refuse(session, passage, refusal).await,
        };
        let content = match Content::new(&manifest.bytes, write.digest) {
            Ok(content) => content,
            Err(real) => {
                return self.refuse(session, passage, Refusal::digest_mismatch(&real)).await;
            }
        };
        // Judged under the rules of this moment: they may have changed while the body came.
        let rules = self.rooms.rules.load_full();
        let rule = rules.protecting(&write.repository).cloned();
        let caller = self.caller(session.req_header(), passage, write.namespace.clone());
        let named = if write.by_digest { None } else { write.digest };
        let cargo = Cargo { caller, manifest, named };
        let rule = rule.as_ref();
        let load = Load { content: content.clone(), cargo, place };
        let verdict = self.judged(session, passage, &write, rule, load).await;
        passage.judged(verdict.label());
        self.answer(session, passage, &write, rule, &content, verdict).await
    }

    /// Runs the judge in a task of its own: the client going away changes nothing then.
    async fn judged(
        &self,
        session: &Session,
        passage: &mut Passage,
        write: &ManifestWrite,
        rule: Option<&Rule>,
        load: Load,
    ) -> Verdict<Answer> {
        let Load { content, cargo, place } = load;
        let immutable =
            |tag: &Tag| rule.is_some_and(|rule| rule.mutability_of(tag) == Mutability::Immutable);
        let (protected, mutable): (Vec<_>, Vec<_>) =
            write.tags.iter().cloned().partition(immutable);
        let mut unjudged = passage.unjudged.take();
        if let Some(unjudged) = &mut unjudged {
            unjudged.keep_only(&mutable);
        }
        let decision = Decision {
            id: passage.id.to_string(),
            user: user_of(&session.req_header().headers),
            client: passage.client.address,
            repository: write.repository.clone(),
            tags: protected.clone(),
            subject: Subject::Push(*content.digest()),
            rule: rule.map(|rule| rule.name.clone()),
        };
        let judge = Arc::clone(&self.rooms.judge);
        let audit = Arc::clone(&self.rooms.audit);
        let metrics = Arc::clone(&self.rooms.metrics);
        let settling = metrics.settling().enter();
        let by_digest = write.by_digest.then(|| *content.digest());
        let push = Push {
            repository: self.key(&write.repository),
            protected,
            mutable,
            content,
            attempt: AttemptId::random(),
            errand: AttemptId::random(),
            options: self.config.options,
        };
        let anchored = rule.filter(|rule| rule.except_must_be_bound).cloned();
        let task = tokio::spawn(async move {
            let _under_way = (settling, unjudged, place);
            let started = Instant::now();
            let by_digest = by_digest.as_ref();
            let judged = !push.protected.is_empty();
            let outcome = match (judged, anchored) {
                (false, None) => {
                    let (key, stage) = (&push.repository, push.options.stage);
                    judge.pass(key, by_digest, &push.mutable, stage, cargo).await
                }
                (false, Some(rule)) => judge.pass_anchored(&rule, &push, by_digest, cargo).await,
                (true, None) => judge.push(push, cargo).await,
                (true, Some(rule)) => judge.push_anchored(&rule, push, cargo).await,
            };
            record(&audit, &metrics, &decision, judged, &outcome);
            metrics.push(outcome.verdict.label(), started.elapsed());
            outcome.verdict
        });
        match task.await {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::error!(%error, "a push's task ended without a verdict");
                Verdict::Undecided(Undecided::OutcomeUnknown(Trouble::Garbage("taglock failed")))
            }
        }
    }

    async fn answer(
        &self,
        session: &mut Session,
        passage: &Passage,
        write: &ManifestWrite,
        rule: Option<&Rule>,
        content: &Content,
        verdict: Verdict<Answer>,
    ) -> Result<()> {
        match verdict {
            Verdict::Admitted { answer, tags, .. } => {
                let echoed = if write.by_digest { tags } else { Vec::new() };
                let place = self.config.doors.naming.place(&write.repository);
                let answer = created(answer, &place, content.digest(), &echoed);
                self.relay(session, passage, answer).await
            }
            other => self.unadmitted(session, passage, &write.repository, rule, other).await,
        }
    }

    /// Tells the client of a verdict that is no admission.
    pub(super) async fn unadmitted(
        &self,
        session: &mut Session,
        passage: &Passage,
        repository: &RepositoryName,
        rule: Option<&Rule>,
        verdict: Verdict<Answer>,
    ) -> Result<()> {
        match verdict {
            // Answered by who knows what was asked for.
            Verdict::Admitted { .. } => self.refuse(session, passage, Refusal::internal()).await,
            Verdict::Relayed(answer) if answer.status.is_redirection() => {
                self.refuse(session, passage, Refusal::redirected()).await
            }
            Verdict::Relayed(answer) => self.relay(session, passage, answer).await,
            Verdict::Unseeing(answer) => self.relay(session, passage, unseeing(answer)).await,
            Verdict::Refused(conflict) => {
                // Only a tag that a rule protects is ever refused.
                let refusal = rule.map_or_else(Refusal::internal, |rule| {
                    Refusal::immutable(&conflict, repository, rule)
                });
                self.refuse(session, passage, refusal).await
            }
            Verdict::Unbound(tag) => {
                let refusal = Refusal::unbound(&tag, repository);
                self.refuse(session, passage, refusal).await
            }
            Verdict::Undecided(undecided) => {
                self.refuse(session, passage, Refusal::undecided(&undecided)).await
            }
        }
    }

    /// The client, as the registry will see it in requests that taglock makes.
    pub(super) fn caller(
        &self,
        header: &RequestHeader,
        passage: &Passage,
        namespace: Option<String>,
    ) -> Caller {
        let headers = self.forwarding(passage).end_to_end(&header.headers);
        Caller { headers, namespace, public: false }
    }

    /// Passes on what the registry said.
    pub(super) async fn relay(
        &self,
        session: &mut Session,
        passage: &Passage,
        answer: Answer,
    ) -> Result<()> {
        let Answer { status, mut headers, body } = legible(answer);
        self.rewriting(passage).apply_to(&mut headers);
        let mut header = ResponseHeader::build(status, Some(headers.len() + 2))?;
        for (name, value) in &headers {
            if !is_of_the_connection(name) {
                header.append_header(title_case(name), value.clone())?;
            }
        }
        header.insert_header(CONTENT_LENGTH, body.len())?;
        session.write_response_header(Box::new(header), body.is_empty()).await?;
        if !body.is_empty() {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }
}

/// Tells audit and metrics of a verdict; `judged` where a protected tag was among what was asked for.
pub(super) fn record(
    audit: &Audit,
    metrics: &Metrics,
    decision: &Decision,
    judged: bool,
    outcome: &Judged,
) {
    let Judged { verdict, superseded } = outcome;
    match verdict {
        Verdict::Unbound(tag) => {
            let decision = Decision { tags: vec![tag.clone()], ..decision.clone() };
            audit.record(&decision, &outcome_of(verdict));
            metrics.refused_by(decision.rule.as_deref());
        }
        Verdict::Refused(_) => {
            audit.record(decision, &outcome_of(verdict));
            metrics.refused_by(decision.rule.as_deref());
        }
        _ if judged => audit.record(decision, &outcome_of(verdict)),
        _ => {}
    }
    for Holder { tag, entry } in superseded {
        audit.superseded(decision, tag, entry.digest());
    }
}

/// A verdict as the audit tells it.
fn outcome_of(verdict: &Verdict<Answer>) -> Outcome {
    let outcome =
        Outcome { label: verdict.label(), bound: None, registry_status: None, detail: None };
    match verdict {
        Verdict::Admitted { answer, sealed, .. } => Outcome {
            registry_status: answer.as_ref().map(|answer| answer.status.as_u16()),
            detail: (!sealed).then(|| "not sealed yet".to_owned()),
            ..outcome
        },
        Verdict::Refused(conflict) => Outcome { bound: Some(conflict.bound), ..outcome },
        Verdict::Unbound(_) => {
            let detail = "no protected tag is bound to it".to_owned();
            Outcome { detail: Some(detail), ..outcome }
        }
        Verdict::Relayed(answer) => {
            Outcome { registry_status: Some(answer.status.as_u16()), ..outcome }
        }
        Verdict::Unseeing(answer) => Outcome {
            registry_status: Some(answer.status.as_u16()),
            detail: Some("the account may push and not pull".to_owned()),
            ..outcome
        },
        Verdict::Undecided(undecided) => Outcome { detail: Some(undecided.to_string()), ..outcome },
    }
}

/// The registry's 201 for a tag, or one in its stead where the tag was found in place without
/// one. It has the digest in any case: docker fails without.
fn created(answer: Option<Answer>, place: &str, digest: &Digest, tags: &[Tag]) -> Answer {
    let mut answer = answer.unwrap_or_else(|| {
        let mut headers = HeaderMap::new();
        let location = format!("{place}/manifests/{digest}");
        headers.extend(HeaderValue::from_str(&location).map(|location| (LOCATION, location)));
        headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        Answer { status: StatusCode::CREATED, headers, body: Bytes::new() }
    });
    if let Ok(digest) = HeaderValue::from_str(&digest.to_string()) {
        answer.headers.entry(CONTENT_DIGEST).or_insert(digest);
    }
    if !tags.is_empty() {
        answer.headers.remove(OCI_TAG);
    }
    for tag in tags {
        if let Ok(tag) = HeaderValue::from_str(tag.as_str()) {
            answer.headers.append(OCI_TAG, tag);
        }
    }
    answer
}

/// Answers to HEAD have no body, and clients print nothing of an error without one.
pub(super) fn legible(mut answer: Answer) -> Answer {
    let code = match answer.status {
        StatusCode::UNAUTHORIZED => "UNAUTHORIZED",
        StatusCode::FORBIDDEN => "DENIED",
        StatusCode::NOT_FOUND => "NAME_UNKNOWN",
        StatusCode::TOO_MANY_REQUESTS => "TOOMANYREQUESTS",
        _ => return answer,
    };
    if answer.body.is_empty() {
        let message = "the registry said so without a word when taglock looked for this client";
        answer.body = wire::error_document(code, message).into();
        answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    answer
}

/// With its challenge, since a token for more may be had; the words are for when there is none.
fn unseeing(answer: Answer) -> Answer {
    let code = if answer.status == StatusCode::FORBIDDEN { "DENIED" } else { "UNAUTHORIZED" };
    let message = "this account may push to the repository and not pull from it, and taglock looks with it \
                   whether an immutable tag is there already: let it pull as well, or give taglock an \
                   account of its own (`upstream.credentials_file`)";
    let mut answer = Answer { body: wire::error_document(code, message).into(), ..answer };
    answer.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

const TITLES: [(HeaderName, &str); 5] = [
    (CONTENT_TYPE, "Content-Type"),
    (CONTENT_DIGEST, "Docker-Content-Digest"),
    (HeaderName::from_static("docker-distribution-api-version"), "Docker-Distribution-Api-Version"),
    (ETAG, "Etag"),
    (X_CONTENT_TYPE_OPTIONS, "X-Content-Type-Options"),
];

/// As registries write header names in HTTP/1.1; HTTP/2 makes them lower-case again.
pub(super) fn title_case(name: &HeaderName) -> Bytes {
    // Those of each pull, which need not be made anew.
    for (known, title) in &TITLES {
        if name == known {
            return Bytes::from_static(title.as_bytes());
        }
    }
    let mut begins = true;
    let titled = name.as_str().chars().map(|c| {
        let titled = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        titled
    });
    titled.collect::<String>().into()
}

pub(super) fn is_of_the_connection(name: &HeaderName) -> bool {
    matches!(*name, CONTENT_LENGTH | TRANSFER_ENCODING) || framing::is_hop_by_hop(name)
}
