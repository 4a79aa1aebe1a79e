//! Harbor's own API where tags are immutable: a tag that is set there is judged like a push, and what
//! deletes like a DELETE below `/v2/`. A copy is refused.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::Result;
use pingora::proxy::Session;

use super::context::Passage;
use super::error_response::Refusal;
use super::limits::Place;
use super::push::{answered, record};
use super::{Course, Edge, manifest_body};
use crate::judge::artifacts::{Clearance, Removal, Tagging};
use crate::judge::delete::Ruling;
use crate::judge::unjudged::Affected;
use crate::judge::{Undecided, Verdict};
use crate::ledger::RepositoryKey;
use crate::name::{Reference, RepositoryName, Tag};
use crate::registry::{Answer, Trouble, wire};
use crate::route::Harbor;
use crate::rules::{Mutability, Rules};
use crate::telemetry::audit::{Decision, Subject, user_of};

/// A request for a tag is one name.
const MAX_BODY: usize = 64 << 10;

/// What is to be done with a write to it.
pub(super) fn course(
    harbor: Harbor,
    rules: &Rules,
    key: impl Fn(&RepositoryName) -> RepositoryKey,
) -> Course {
    let (repository, removal) = match harbor {
        Harbor::Other => return Course::Stream,
        Harbor::CreateTag { repository, artifact } => {
            return match rules.protecting(&repository) {
                Some(_) => Course::CreateTag(repository, artifact),
                None => Course::Stream,
            };
        }
        // Harbor brings those tags of the source along that it finds once it copies, and moves those
        // that are there: no look could say before which these are.
        Harbor::Copy(repository) => {
            return match rules.protecting(&repository) {
                Some(_) => Course::Refuse(Refusal::copy(&repository)),
                None => Course::Stream,
            };
        }
        Harbor::DeleteTag { repository, artifact, tag } => {
            (repository, Removal::Tag { tag, artifact })
        }
        Harbor::DeleteArtifact { repository, reference } => {
            (repository, Removal::Artifact(reference))
        }
        Harbor::DeleteRepository(repository) => (repository, Removal::Repository),
    };
    match rules.protecting(&repository) {
        None => Course::Stream,
        Some(rule) => match &removal {
            Removal::Tag { tag, .. } if rule.mutability_of(tag) == Mutability::Mutable => {
                Course::Stream
            }
            _ => {
                let (repository, rule) = (key(&repository), rule.clone());
                Course::Clear(Box::new(Clearance { repository, removal, rule }))
            }
        },
    }
}

impl Edge {
    /// DELETE of a protected tag, an artifact, or a repository.
    pub(super) async fn clear(
        &self,
        session: &mut Session,
        passage: &Passage,
        clearance: Clearance,
    ) -> Result<()> {
        let repository = clearance.repository.repository.clone();
        let (what, subject) = match &clearance.removal {
            Removal::Tag { tag, .. } => {
                (tag.to_string(), Subject::Delete(Reference::Tag(tag.clone())))
            }
            Removal::Artifact(reference) => {
                (reference.to_string(), Subject::Delete(reference.clone()))
            }
            Removal::Repository => (repository.to_string(), Subject::DeleteRepository),
        };
        let decision = Decision {
            id: passage.id.to_string(),
            user: user_of(&session.req_header().headers),
            client: passage.client.address,
            repository: repository.clone(),
            tags: Vec::new(),
            subject,
            rule: Some(clearance.rule.name.clone()),
        };
        let caller = self.caller(session.req_header(), passage, None);
        let (desk, deletes) = (Arc::clone(&self.rooms.desk), clearance.rule.deletes);
        let shelf = self.rooms.shelf.clone();
        let ruling = async move {
            let ruling = desk.remove(&clearance, &caller).await;
            if let (Some(shelf), Ruling::Deleted { .. } | Ruling::Undecided(_)) = (shelf, &ruling) {
                shelf.forget(&clearance.repository.repository);
            }
            ruling
        };
        let ruling = self.ruled(decision, deletes, ruling).await;
        passage.judged(ruling.label(deletes));
        let refused = |no: &_| Refusal::delete(no, &what, &repository).by_harbor();
        self.deleted(session, passage, ruling, refused).await
    }

    /// POST of a tag.
    pub(super) async fn create_tag(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        repository: RepositoryName,
        artifact: Reference,
    ) -> Result<()> {
        let (tag, place) = match self.new_tag(session, passage).await? {
            Ok(new) => new,
            Err(refusal) => return self.refuse(session, passage, refusal).await,
        };
        let key = self.key(&repository);
        let affected = Affected::Tags(key.clone(), vec![tag.clone()]);
        let Ok(mut unjudged) = self.rooms.judge.unjudged().enter(affected) else {
            return self.refuse(session, passage, Refusal::rules_changed()).await;
        };
        // Judged under the rules of this moment: they may have changed while the body came.
        let rule = self.rooms.rules.load().protecting(&repository).cloned();
        let caller = self.caller(session.req_header(), passage, None);
        let artifact = match self.rooms.desk.artifact(&key, &artifact, &caller).await {
            Ok(artifact) => artifact,
            Err(verdict) => {
                return self.unadmitted(session, passage, &repository, None, verdict).await;
            }
        };
        let options = self.config.options;
        let tagging =
            Tagging { repository: key, tag: tag.clone(), artifact, rule: rule.clone(), options };
        let judged = tagging.is_protected();
        if judged {
            unjudged.keep_only(&[]);
        }
        let decision = Decision {
            id: passage.id.to_string(),
            user: user_of(&session.req_header().headers),
            client: passage.client.address,
            repository: repository.clone(),
            tags: vec![tag],
            subject: Subject::Push(artifact),
            rule: rule.as_ref().map(|rule| rule.name.clone()),
        };
        let desk = Arc::clone(&self.rooms.desk);
        let (audit, metrics) = (Arc::clone(&self.rooms.audit), Arc::clone(&self.rooms.metrics));
        let settling = metrics.settling().enter();
        // In a task of its own: the client going away changes nothing then.
        unjudged.is_sent();
        let task = tokio::spawn(async move {
            let _under_way = (settling, place);
            let started = Instant::now();
            let outcome = desk.tag(tagging, caller).await;
            answered(unjudged, &outcome.verdict);
            record(&audit, &metrics, &decision, judged, &outcome);
            metrics.push(outcome.verdict.label(), started.elapsed());
            outcome.verdict
        });
        let verdict = task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a tag's task ended without a verdict");
            Verdict::Undecided(Undecided::OutcomeUnknown(Trouble::Internal))
        });
        passage.judged(verdict.label());
        match verdict {
            // Harbor's 201, or one in the stead of its 409 for a tag that is there already.
            Verdict::Admitted { answer, .. } => {
                let created = || Answer {
                    status: StatusCode::CREATED,
                    headers: HeaderMap::new(),
                    body: Bytes::new(),
                };
                self.relay(session, passage, answer.unwrap_or_else(created)).await
            }
            other => self.unadmitted(session, passage, &repository, rule.as_ref(), other).await,
        }
    }

    /// The tag that the body names, and the place the request keeps until it is judged.
    async fn new_tag(
        &self,
        session: &mut Session,
        passage: &Passage,
    ) -> Result<Result<(Tag, Place), Refusal>> {
        let headers = &session.req_header().headers;
        if manifest_body::is_encoded(headers) {
            return Ok(Err(Refusal::new_tag()));
        }
        let media_type = headers.get(CONTENT_TYPE).cloned();
        let media_type = media_type.unwrap_or(HeaderValue::from_static("application/json"));
        let (max, time) = (MAX_BODY.min(self.config.max_manifest), self.config.manifest_time);
        let (crowd, address) = (&self.rooms.crowd, passage.client.address);
        let bounds = manifest_body::Bounds { max, time, crowd, address };
        let (body, place) = match manifest_body::read(session, media_type, bounds).await? {
            Ok(taken) => taken,
            Err(refusal) if refusal.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                return Ok(Err(Refusal::new_tag()));
            }
            Err(refusal) => return Ok(Err(refusal)),
        };
        let name = wire::new_tag(&body.bytes).and_then(|name| Tag::parse(&name).ok());
        let tag = name.map(|tag| self.config.doors.naming.tag(tag));
        Ok(tag.map(|tag| (tag, place)).ok_or_else(Refusal::new_tag))
    }
}
