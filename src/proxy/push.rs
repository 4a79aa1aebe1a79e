//! Manifest writes in protected scope: from the client to the judge, and its verdict
//! back to the client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LOCATION, TRANSFER_ENCODING,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, StatusCode};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use tokio::time::{Instant, timeout};

use super::authorized::{Identity, Right};
use super::context::Passage;
use super::error_response::Refusal;
use super::limits::Place;
use super::{Edge, manifest_body};
use crate::judge::mutable::Coverage;
use crate::judge::unjudged::{Affected, Write};
use crate::judge::{Cargo, Content, Judged, Options, Push, Undecided, Verdict};
use crate::ledger::{AttemptId, Holder};
use crate::name::{Algorithm, Digest, RepositoryName, Tag};
use crate::registry::client::CONTENT_DIGEST;
use crate::registry::framing;
use crate::registry::{Answer, Caller, Manifest, Trouble, widen, wire};
use crate::route::ManifestWrite;
use crate::rules::{Mutability, Rule};
use crate::telemetry::Metrics;
use crate::telemetry::audit::{Audit, Decision, Outcome, Subject, user_of};

const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// What a push needs to be let do: taglock looks before it writes.
const PUSH: &[&str] = &["pull", "push"];
/// A manifest's body is nearly always there at once.
const PROMPT: Duration = Duration::from_secs(1);

/// A manifest that was taken in, and what it keeps until it is judged.
struct Load {
    content: Content,
    cargo: Cargo,
    place: Place,
    unjudged: Write,
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
        let media_type = match manifest_body::check(headers, &self.config.media, max) {
            Ok(media_type) => media_type,
            Err(refusal) => return self.refuse(session, passage, refusal).await,
        };
        let (manifest, place) = match self.take_in(session, passage, media_type).await? {
            Ok(taken) => taken,
            Err(refusal) => return self.refuse(session, passage, refusal).await,
        };
        if let Some(refusal) = self.unstorable(&write) {
            return self.refuse(session, passage, refusal).await;
        }
        let content = match Content::new(&manifest.bytes, write.digest) {
            Ok(content) => content,
            Err(real) => {
                return self.refuse(session, passage, Refusal::digest_mismatch(&real)).await;
            }
        };
        // Judged under the rules of this moment: they may have changed while the body came. Entered
        // before they are read: see there. Not before the body is whole, as others wait for it.
        let affected = Affected::Tags(self.key(&write.repository), write.tags.clone());
        let Ok(unjudged) = self.rooms.judge.unjudged().enter(affected) else {
            return self.refuse(session, passage, Refusal::rules_changed()).await;
        };
        let rules = self.rooms.rules.load_full();
        let rule = rules.protecting(&write.repository).cloned();
        let caller = self.caller(session.req_header(), passage, write.namespace.clone());
        let named = if write.by_digest { None } else { write.digest };
        let cargo = Cargo { caller, manifest, named };
        let rule = rule.as_ref();
        let load = Load { content: content.clone(), cargo, place, unjudged };
        let identity = self.identity(session, passage);
        let proven = self.has_let_in(identity, &write.repository, Right::Push);
        let verdict = self.judged(session, passage, &write, rule, (load, proven)).await;
        passage.judged(verdict.label());
        if matches!(verdict, Verdict::Admitted { .. } | Verdict::Refused(_) | Verdict::Unbound(_)) {
            self.rooms.let_in.note(identity, &write.repository, Right::Push);
        }
        self.answer(session, passage, &write, rule, &content, verdict).await
    }

    /// Whether a write that no rule protects goes through the judge all the same: the ledger holds one of
    /// its tags, or proxies with newer rules may bind one while it is under way.
    pub(super) async fn looks_after(&self, write: &ManifestWrite) -> bool {
        let judge = &self.rooms.judge;
        judge.is_shared() || judge.holds_any(&self.key(&write.repository), &write.tags).await
    }

    /// Whether a rule names the repository.
    pub(super) fn coverage(&self, repository: &RepositoryName) -> Coverage {
        match self.rooms.rules.load().rule_for(repository) {
            Some(_) => Coverage::Ruled,
            None => Coverage::Unruled,
        }
    }

    /// Reads the body to its end.
    async fn take_in(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        media_type: HeaderValue,
    ) -> Result<Result<(Manifest, Place), Refusal>> {
        let (max, time) = (self.config.max_manifest, self.config.manifest_time);
        let (crowd, address) = (&self.rooms.crowd, passage.client.address);
        let bounds = manifest_body::Bounds { max, time, crowd, address };
        let mut reading = std::pin::pin!(manifest_body::read(session, media_type, bounds));
        let read = match timeout(PROMPT, &mut reading).await {
            Ok(read) => read,
            Err(_) => {
                // An upgrade does not wait for a body that may never come.
                passage.protected = None;
                reading.await
            }
        };
        passage.protected.get_or_insert_with(|| self.rooms.metrics.protected().enter());
        read
    }

    /// A write that could be bound to a digest under which the registry would not have it: most take a
    /// manifest for its sha256, whatever is asked for, unless it is stored by another digest first.
    fn unstorable(&self, write: &ManifestWrite) -> Option<Refusal> {
        let digest = write.digest.filter(|digest| digest.algorithm() != Algorithm::Sha256)?;
        let tagged = !write.tags.is_empty() && !self.config.options.stage;
        tagged.then(|| Refusal::algorithm(&digest))
    }

    pub(super) fn identity(&self, session: &Session, passage: &Passage) -> Identity {
        self.rooms.let_in.identity(passage.client.address, &session.req_header().headers)
    }

    pub(super) fn has_let_in(
        &self,
        identity: Identity,
        repository: &RepositoryName,
        right: Right,
    ) -> bool {
        self.rooms.let_in.until(identity, repository, right, Instant::now()).is_some()
    }

    /// Runs the judge in a task of its own: the client going away changes nothing then. `proven` where
    /// the registry has lately let this client push.
    async fn judged(
        &self,
        session: &Session,
        passage: &mut Passage,
        write: &ManifestWrite,
        rule: Option<&Rule>,
        (load, proven): (Load, bool),
    ) -> Verdict<Answer> {
        let Load { content, cargo, place, mut unjudged } = load;
        let immutable = |tag: &Tag| has_immutable(rule, std::slice::from_ref(tag));
        let (protected, mutable): (Vec<_>, Vec<_>) =
            write.tags.iter().cloned().partition(immutable);
        unjudged.keep_only(&mutable);
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
        let coverage = self.coverage(&write.repository);
        let push = Push {
            repository: self.key(&write.repository),
            protected,
            mutable,
            content,
            attempt: AttemptId::random(),
            errand: AttemptId::random(),
            options: Options { proven, ..self.config.options },
        };
        let anchored = rule.filter(|rule| rule.except_must_be_bound).cloned();
        unjudged.is_sent();
        let task = tokio::spawn(async move {
            let _under_way = (settling, place);
            let started = Instant::now();
            let by_digest = by_digest.as_ref();
            let judged = !push.protected.is_empty();
            let outcome = match (judged, anchored) {
                (false, None) => {
                    judge.pass(&push.repository, by_digest, &push.mutable, cargo, coverage).await
                }
                (false, Some(rule)) => judge.pass_anchored(&rule, &push, by_digest, cargo).await,
                (true, None) => judge.push(push, cargo).await,
                (true, Some(rule)) => judge.push_anchored(&rule, push, cargo).await,
            };
            answered(unjudged, &outcome.verdict);
            record(&audit, &metrics, &decision, judged, &outcome);
            metrics.push(outcome.verdict.label(), started.elapsed());
            outcome.verdict
        });
        match task.await {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::error!(%error, "a push's task ended without a verdict");
                Verdict::Undecided(Undecided::OutcomeUnknown(Trouble::Internal))
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
                // What nobody has stored by its own digest is what the registry says it is.
                let stored = write.by_digest || has_immutable(rule, &write.tags);
                let digest = stored.then(|| content.digest());
                let answer = created(answer, &place, (content.digest(), digest), &echoed);
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
            Verdict::Relayed(mut answer) => {
                widen(&mut answer.headers, PUSH);
                self.relay(session, passage, answer).await
            }
            Verdict::Unseeing(answer) => {
                let mut answer = unseeing(answer);
                widen(&mut answer.headers, PUSH);
                self.relay(session, passage, answer).await
            }
            Verdict::Refused(conflict) => {
                let refusal = match rule {
                    Some(rule) => Refusal::immutable(&conflict, repository, rule),
                    // Another proxy has newer rules.
                    None => Refusal::bound_meanwhile(&conflict, repository),
                };
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
        Caller { headers, namespace, ..Caller::default() }
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
        if !framing::is_bodiless(status) {
            header.insert_header(CONTENT_LENGTH, body.len())?;
        }
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
            detail: (!sealed).then(|| "not bound: its claim is gone".to_owned()),
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

/// The end of a write that went unjudged, as far as its verdict knows of one.
pub(super) fn answered(mut write: Write, verdict: &Verdict<Answer>) {
    if !matches!(verdict, Verdict::Undecided(Undecided::OutcomeUnknown(_))) {
        write.is_answered();
    }
}

pub(super) fn has_immutable(rule: Option<&Rule>, tags: &[Tag]) -> bool {
    let immutable = |rule: &Rule, tag: &Tag| rule.mutability_of(tag) == Mutability::Immutable;
    rule.is_some_and(|rule| tags.iter().any(|tag| immutable(rule, tag)))
}

/// The registry's 201 for a tag, or one in its stead where the tag was found in place without
/// one. It has the digest in any case: docker fails without.
fn created(
    answer: Option<Answer>,
    place: &str,
    (digest, stored): (&Digest, Option<&Digest>),
    tags: &[Tag],
) -> Answer {
    let answer = answer.unwrap_or_else(|| {
        let mut headers = HeaderMap::new();
        let location = format!("{place}/manifests/{digest}");
        headers.extend(HeaderValue::from_str(&location).map(|location| (LOCATION, location)));
        headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        Answer { status: StatusCode::CREATED, headers, body: Bytes::new() }
    });
    // Some clients take nothing else for success, whatever the registry says it with.
    let mut answer = Answer { status: StatusCode::CREATED, ..answer };
    let named = HeaderValue::from_str(&digest.to_string()).ok();
    let location = HeaderValue::from_str(&format!("{place}/manifests/{digest}")).ok();
    let other = answer.headers.get(CONTENT_DIGEST).is_none_or(|own| Some(own) != named.as_ref());
    if stored.is_some() && other {
        // As the client names it: the registry's name of the same bytes is of another algorithm.
        answer.headers.extend(location.map(|location| (LOCATION, location)));
        answer.headers.extend(named.map(|named| (CONTENT_DIGEST, named)));
    } else if let Some(named) = named {
        answer.headers.entry(CONTENT_DIGEST).or_insert(named);
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
        status if status.is_server_error() => "UNAVAILABLE",
        status if status.is_client_error() => "UNSUPPORTED",
        _ => return answer,
    };
    if answer.body.is_empty() {
        let status = answer.status.as_u16();
        let message = format!(
            "the registry answered {status} without a message to a request that taglock made for this \
             client"
        );
        answer.body = wire::error_document(code, &message).into();
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
