//! Deletes in protected repositories: from the client to the judge, and its ruling back to the client.

use std::sync::Arc;

use pingora::Result;
use pingora::proxy::Session;

use super::Edge;
use super::authorized::Right;
use super::context::Passage;
use super::error_response::Refusal;
use crate::judge::delete::{Deletion, NoDelete, Ruling, Unsettled};
use crate::judge::mutable::Coverage;
use crate::judge::unjudged::Affected;
use crate::name::{Reference, RepositoryName, Tag};
use crate::registry::{Caller, Trouble, widen};
use crate::rules::Deletes;
use crate::telemetry::audit::{Decision, Outcome, Subject, user_of};

/// What a delete needs to be let do: taglock looks before it deletes.
const DELETE: &[&str] = &["pull", "delete"];

impl Edge {
    /// DELETE of a manifest, or of a protected tag.
    pub(super) async fn delete(
        &self,
        session: &mut Session,
        passage: &Passage,
        deletion: Deletion,
    ) -> Result<()> {
        let Deletion { repository, reference, rule } = deletion.clone();
        let (name, identity) = (&repository.repository, self.identity(session, passage));
        let let_in = self.has_let_in(identity, name, Right::Pull)
            || self.has_let_in(identity, name, Right::Push);
        let caller = self.caller(session.req_header(), passage, None);
        let caller = Caller { let_in, ..caller };
        let decision = Decision {
            id: passage.id.to_string(),
            user: user_of(&session.req_header().headers),
            client: passage.client.address,
            repository: repository.repository.clone(),
            tags: Vec::new(),
            subject: Subject::Delete(reference.clone()),
            rule: Some(rule.name),
        };
        let judge = Arc::clone(&self.rooms.judge);
        let ruling = async move { judge.delete(&deletion, &caller).await };
        let ruling = self.ruled(decision, rule.deletes, ruling).await;
        passage.judged(ruling.label(rule.deletes));
        let what = reference.to_string();
        let refused = |no: &_| Refusal::delete(no, &what, &repository.repository);
        self.deleted(session, passage, ruling, refused).await
    }

    /// DELETE of what no rule protects; `Ok(false)` where it streams, since neither a rule nor the ledger
    /// knows anything of it.
    pub(super) async fn delete_mutable(
        &self,
        session: &mut Session,
        passage: &Passage,
        repository: &RepositoryName,
        reference: Reference,
    ) -> Result<bool> {
        let (judge, key) = (Arc::clone(&self.rooms.judge), self.key(repository));
        let coverage = self.coverage(repository);
        let known = coverage == Coverage::Ruled || judge.is_shared();
        if !known && !judge.holds_reference(&key, &reference).await {
            return Ok(false);
        }
        let what = reference.to_string();
        let affected = Affected::of_delete(key.clone(), &reference);
        // Before the rules are read: see there.
        let entered = judge.unjudged().enter(affected.clone());
        let Some(mut unjudged) =
            entered.ok().filter(|_| !affected.is_judged_by(&self.rooms.rules.load()))
        else {
            self.refuse(session, passage, Refusal::rules_changed()).await?;
            return Ok(true);
        };
        let caller = self.caller(session.req_header(), passage, None);
        let settling = self.rooms.metrics.settling().enter();
        unjudged.is_sent();
        let task = tokio::spawn(async move {
            let _settling = settling;
            let ruling = judge.delete_mutable(&key, &reference, &caller, coverage).await;
            if !matches!(ruling, Ruling::Undecided(Unsettled::OutcomeUnknown(_))) {
                unjudged.is_answered();
            }
            ruling
        });
        let ruling = task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a delete's task ended without a ruling");
            Ruling::Undecided(Unsettled::OutcomeUnknown(Trouble::Internal))
        });
        let refused = |no: &_| Refusal::delete(no, &what, repository);
        self.deleted(session, passage, ruling, refused).await?;
        Ok(true)
    }

    /// Tells the client of a ruling.
    pub(super) async fn deleted(
        &self,
        session: &mut Session,
        passage: &Passage,
        ruling: Ruling,
        refused: impl FnOnce(&NoDelete) -> Refusal + Send,
    ) -> Result<()> {
        match ruling {
            Ruling::Deleted { unmarked: Some(error), .. } => {
                self.refuse(session, passage, Refusal::unmarked(&error)).await
            }
            Ruling::Relayed(answer) if answer.status.is_redirection() => {
                self.refuse(session, passage, Refusal::redirected()).await
            }
            Ruling::Relayed(mut answer) => {
                widen(&mut answer.headers, DELETE);
                self.relay(session, passage, answer).await
            }
            Ruling::Deleted { answer, .. } => self.relay(session, passage, answer).await,
            Ruling::Refused(no) => self.refuse(session, passage, refused(&no)).await,
            Ruling::Undecided(unsettled) => {
                self.refuse(session, passage, Refusal::unsettled(&unsettled)).await
            }
        }
    }

    /// Runs the judge in a task of its own: a client that leaves between the registry's word and
    /// the ledger's changes nothing then.
    pub(super) async fn ruled(
        &self,
        decision: Decision,
        deletes: Deletes,
        ruling: impl Future<Output = Ruling> + Send + 'static,
    ) -> Ruling {
        let audit = Arc::clone(&self.rooms.audit);
        let metrics = Arc::clone(&self.rooms.metrics);
        let settling = metrics.settling().enter();
        let task = tokio::spawn(async move {
            let _settling = settling;
            let ruling = ruling.await;
            let tags = tags_of(&ruling).to_vec();
            if let Ruling::Refused(_) = &ruling {
                metrics.refused_by(decision.rule.as_deref());
            }
            audit.record(&Decision { tags, ..decision }, &outcome_of(&ruling, deletes));
            ruling
        });
        task.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a delete's task ended without a ruling");
            Ruling::Undecided(Unsettled::OutcomeUnknown(Trouble::Internal))
        })
    }
}

fn tags_of(ruling: &Ruling) -> &[Tag] {
    match ruling {
        Ruling::Deleted { tags, .. } => tags,
        Ruling::Refused(_) | Ruling::Relayed(_) | Ruling::Undecided(_) => &[],
    }
}

/// A ruling as the audit tells it.
fn outcome_of(ruling: &Ruling, deletes: Deletes) -> Outcome {
    let (registry_status, detail) = match ruling {
        Ruling::Deleted { answer, unmarked, .. } => {
            let detail = unmarked.as_ref().map(|error| format!("not marked: {error}"));
            (Some(answer.status.as_u16()), detail)
        }
        Ruling::Relayed(answer) => (Some(answer.status.as_u16()), None),
        Ruling::Refused(no) => (None, Some(no.to_string())),
        Ruling::Undecided(unsettled) => (None, Some(unsettled.to_string())),
    };
    let label = ruling.label(deletes);
    Outcome { label, bound: None, registry_status, detail }
}
