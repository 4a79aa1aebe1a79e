//! Rules that are not enforced yet (`enforce = false`): writes and deletes stream with the
//! registry's own answer, nothing is bound, and what would have been refused is told.

use bytes::{Bytes, BytesMut};
use http::header::WARNING;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

use super::context::Passage;
use super::error_response::Refusal;
use super::{Edge, manifest_body};
use crate::judge::delete::Deletion;
use crate::judge::{Conflict, Content};
use crate::ledger::{Holder, RepositoryKey};
use crate::name::{Algorithm, Digest, Reference, RepositoryName, Tag};
use crate::registry::Caller;
use crate::registry::client::CONTENT_DIGEST;
use crate::route::{ManifestWrite, Route};
use crate::rules::{Deletes, Mutability, Rule, Rules};
use crate::telemetry::audit::{Decision, Outcome, Subject, User, user_of};

/// One such request on its way through.
pub struct Rehearsal {
    key: RepositoryKey,
    rule: Rule,
    act: Act,
    caller: Caller,
    user: Option<User>,
    /// What is against it so far.
    refusal: Option<Refusal>,
    /// What its protected tags were bound to, or had in the registry, before it.
    standing: Vec<(Tag, Digest)>,
    body: BytesMut,
}

enum Act {
    Write(ManifestWrite),
    Delete(Reference),
    DeleteBlob(Digest),
}

impl Rehearsal {
    /// A request that a rule would judge if it were enforced, or the route as it came.
    #[expect(clippy::result_large_err, reason = "either side is moved on at once")]
    pub fn of(
        route: Route,
        rules: &Rules,
        key: impl Fn(&RepositoryName) -> RepositoryKey,
    ) -> Result<Box<Self>, Route> {
        let repository = match &route {
            Route::WriteManifest(write) => &write.repository,
            Route::DeleteManifest { repository, .. } | Route::DeleteBlob { repository, .. } => {
                repository
            }
            _ => return Err(route),
        };
        let Some(rule) = rules.rehearsing(repository).cloned() else { return Err(route) };
        let key = key(repository);
        let act = match route {
            Route::WriteManifest(write) => Act::Write(write),
            Route::DeleteManifest { reference, .. } => Act::Delete(reference),
            Route::DeleteBlob { digest, .. } => Act::DeleteBlob(digest),
            other => return Err(other),
        };
        Ok(Box::new(Self {
            key,
            rule,
            act,
            caller: Caller::default(),
            user: None,
            refusal: None,
            standing: Vec::new(),
            body: BytesMut::new(),
        }))
    }

    /// An attempt to send the request begins.
    pub fn begin(&mut self) {
        self.body.clear();
    }

    /// Takes a copy of a manifest's bytes as they stream by.
    pub fn watch(&mut self, chunk: &Bytes, max: usize) {
        match self.act {
            Act::Write(_) if self.refusal.is_some() => {}
            Act::Write(_) if self.body.len() + chunk.len() > max => {
                self.refusal = Some(Refusal::too_large(max));
            }
            Act::Write(_) => self.body.extend_from_slice(chunk),
            Act::Delete(_) | Act::DeleteBlob(_) => {}
        }
    }
}

impl Edge {
    /// Finds out what stands before the request is forwarded, on the client's own behalf.
    pub(super) async fn rehearse(
        &self,
        session: &Session,
        passage: &mut Passage,
        mut rehearsal: Box<Rehearsal>,
    ) {
        let headers = &session.req_header().headers;
        let Rehearsal { key, rule, act, .. } = &*rehearsal;
        let namespace = match act {
            Act::Write(write) => write.namespace.clone(),
            Act::Delete(_) | Act::DeleteBlob(_) => None,
        };
        let caller = self.caller(session.req_header(), passage, namespace);
        let judge = &self.rooms.judge;
        let protects = |tag: &Tag| rule.mutability_of(tag) == Mutability::Immutable;
        let mut standing = Vec::new();
        let refusal = match act {
            Act::Write(write) => {
                let tags: Vec<_> = write.tags.iter().filter(|tag| protects(tag)).cloned().collect();
                standing = judge.standing(&caller, key, &tags).await;
                manifest_body::check(headers, &self.config.media, self.config.max_manifest).err()
            }
            Act::Delete(Reference::Tag(tag)) if !protects(tag) => None,
            Act::Delete(reference) => {
                let (repository, reference) = (key.clone(), reference.clone());
                let deletion = Deletion { repository, reference, rule: rule.clone() };
                let no = judge.would_refuse(&deletion, &caller).await;
                let what = deletion.reference.to_string();
                no.map(|no| Refusal::delete(&no, &what, &key.repository))
            }
            Act::DeleteBlob(_) if rule.deletes == Deletes::Refuse => {
                Some(Refusal::blob_delete(&key.repository))
            }
            Act::DeleteBlob(_) => None,
        };
        rehearsal.user = user_of(headers);
        rehearsal.caller = caller;
        rehearsal.standing = standing;
        rehearsal.refusal = refusal;
        passage.rehearsal = Some(rehearsal);
    }

    /// The registry has done it: tells what taglock would have refused of it.
    pub(super) async fn warn(
        &self,
        passage: &Passage,
        rehearsal: &Rehearsal,
        response: &mut ResponseHeader,
    ) -> Result<()> {
        let Rehearsal { key, rule, act, user, .. } = rehearsal;
        let content = match act {
            Act::Write(write) if rehearsal.refusal.is_none() => {
                Content::new(&rehearsal.body, write.digest).ok()
            }
            _ => None,
        };
        let (tags, subject) = match act {
            Act::Write(write) => {
                let pushed = pushed(response, content.as_ref(), &rehearsal.body);
                (write.tags.clone(), Subject::Push(pushed))
            }
            Act::Delete(reference) => (Vec::new(), Subject::Delete(reference.clone())),
            Act::DeleteBlob(digest) => (Vec::new(), Subject::Delete(Reference::Digest(*digest))),
        };
        let decision = Decision {
            id: passage.id.to_string(),
            user: user.clone(),
            client: passage.client.address,
            repository: key.repository.clone(),
            tags,
            subject,
            rule: Some(rule.name.clone()),
        };
        let refusal = match (act, &content) {
            (Act::Write(write), Some(content)) => {
                self.would_refuse(rehearsal, write, content).await
            }
            _ => rehearsal.refusal.clone(),
        };
        if let Act::Write(write) = act {
            self.give_way(rehearsal, write, content.as_ref(), &decision).await;
        }
        let Some(refusal) = refusal else { return Ok(()) };
        let outcome = Outcome {
            label: "dry-run",
            bound: None,
            registry_status: Some(response.status.as_u16()),
            detail: Some(refusal.message().to_owned()),
        };
        self.rooms.audit.record(&decision, &outcome);
        self.rooms.metrics.dry_run_refusal(refusal.reason());
        response.append_header(WARNING, warning(refusal.message()))?;
        Ok(())
    }

    /// What stands against a manifest, as the judge would see it.
    async fn would_refuse(
        &self,
        rehearsal: &Rehearsal,
        write: &ManifestWrite,
        content: &Content,
    ) -> Option<Refusal> {
        let Rehearsal { key, rule, caller, standing, .. } = rehearsal;
        if let Some((tag, bound)) = standing.iter().find(|(_, bound)| !content.is(bound)) {
            let (tag, bound, pushed) = (tag.clone(), *bound, *content.digest());
            let conflict = Conflict { tag, bound, pushed, visible: true };
            return Some(Refusal::immutable(&conflict, &key.repository, rule));
        }
        let anchored = write.tags.iter().find(|tag| rule.must_be_bound(tag))?;
        let beside = |tag: &Tag| rule.mutability_of(tag) == Mutability::Immutable;
        let bound = write.tags.iter().any(beside)
            || self.rooms.judge.would_be_bound(caller, key, rule, content).await;
        (!bound).then(|| Refusal::unbound(anchored, &key.repository))
    }

    /// An entry from stricter days gives way, as to any push that the rules let through: a rule
    /// that is enforced again finds the tag where the push put it.
    async fn give_way(
        &self,
        rehearsal: &Rehearsal,
        write: &ManifestWrite,
        content: Option<&Content>,
        decision: &Decision,
    ) {
        let stays = |tag: &Tag| {
            let same = |bound: &Digest| content.is_some_and(|content| content.is(bound));
            rehearsal.standing.iter().any(|(standing, bound)| standing == tag && same(bound))
        };
        let moved: Vec<_> = write.tags.iter().filter(|tag| !stays(tag)).cloned().collect();
        for Holder { tag, entry } in self.rooms.judge.moved(&rehearsal.key, &moved).await {
            self.rooms.audit.superseded(decision, &tag, entry.digest());
        }
    }
}

/// The digest the registry reports; else that of what streamed by.
fn pushed(response: &ResponseHeader, content: Option<&Content>, body: &[u8]) -> Digest {
    let reported = response.headers.get(CONTENT_DIGEST).and_then(|value| value.to_str().ok());
    let reported = reported.and_then(|text| Digest::parse(text).ok());
    reported
        .or_else(|| content.map(|content| *content.digest()))
        .unwrap_or_else(|| Digest::of(Algorithm::Sha256, body))
}

/// RFC 7234, section 5.5: a "miscellaneous persistent warning".
fn warning(message: &str) -> String {
    let plain = |c: char| match c {
        '"' | '\\' => '\'',
        ' '..='~' => c,
        _ => ' ',
    };
    let message: String = message.chars().map(plain).collect();
    format!("299 - \"taglock would have refused this: {message}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_one_quoted_text() {
        assert_eq!(
            warning("a \"b\" c\\d\né"),
            "299 - \"taglock would have refused this: a 'b' c'd  \""
        );
    }
}
