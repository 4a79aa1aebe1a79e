//! What one line says.

use std::net::IpAddr;
use std::time::SystemTime;

use serde::Serialize;

use super::user::User;
use crate::name::{Digest, Reference, RepositoryName, Tag};

/// What was asked, and of whom the answer is known to be.
#[derive(Clone, Debug)]
pub struct Decision {
    pub id: String,
    /// As far as the credentials show a name.
    pub user: Option<User>,
    pub client: IpAddr,
    pub repository: RepositoryName,
    pub tags: Vec<Tag>,
    pub subject: Subject,
    /// The rule that was asked; none protects a tag whose entry is superseded.
    pub rule: Option<String>,
}

/// What the client wanted done.
#[derive(Clone, Debug)]
pub enum Subject {
    Push(Digest),
    /// What a pull found, and bound the tag to.
    Pull,
    Delete(Reference),
    /// All of it, by the registry's own API.
    DeleteRepository,
}

/// What became of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// One of a closed set: admitted, refused, relayed, undecided; of a delete also deleted,
    /// withdrawn and released.
    pub label: &'static str,
    /// What the tag is bound to, where that stood against the push.
    pub bound: Option<Digest>,
    /// The registry's own answer, where it gave one.
    pub registry_status: Option<u16>,
    pub detail: Option<String>,
}

/// What an operator had done to a tag's entry.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// As the operator names themselves; the admin token tells no more.
    pub actor: &'a str,
    pub repository: &'a RepositoryName,
    /// `None` where it was done to an image.
    pub tag: Option<&'a Tag>,
    pub digest: Option<&'a Digest>,
    pub reason: Option<&'a str>,
    /// One of a closed set: released, pending-released, delete-cleared, imported, restored.
    pub outcome: &'static str,
}

/// One line of the audit. `docs/observability.md` documents the fields.
#[derive(Debug, Default, Serialize)]
pub(super) struct Line {
    time: String,
    kind: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// The `sub` of a bearer token, whose signature taglock does not check.
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed_user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bound: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registry_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Line {
    fn new(kind: &'static str, outcome: &'static str) -> Self {
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        Self { time, kind, outcome, ..Self::default() }
    }

    pub fn decision(decision: &Decision, outcome: &Outcome) -> Self {
        let (user, claimed_user) = match &decision.user {
            Some(User::Named(name)) => (Some(name.clone()), None),
            Some(User::Claimed(name)) => (None, Some(name.clone())),
            None => (None, None),
        };
        let (kind, pushed, deleted) = match &decision.subject {
            Subject::Push(digest) => ("push", Some(digest.to_string()), None),
            Subject::Pull => ("pull", None, None),
            Subject::Delete(reference) => ("delete", None, Some(reference.to_string())),
            Subject::DeleteRepository => ("delete", None, None),
        };
        Self {
            id: Some(decision.id.clone()),
            user,
            claimed_user,
            client: Some(decision.client),
            repository: Some(decision.repository.to_string()),
            tags: decision.tags.iter().map(ToString::to_string).collect(),
            pushed,
            deleted,
            bound: outcome.bound.map(|digest| digest.to_string()),
            rule: decision.rule.clone(),
            registry_status: outcome.registry_status,
            detail: outcome.detail.clone(),
            ..Self::new(kind, outcome.label)
        }
    }

    pub fn act(act: &Act<'_>) -> Self {
        Self {
            actor: Some(act.actor.to_owned()),
            repository: Some(act.repository.to_string()),
            tags: act.tag.iter().map(ToString::to_string).collect(),
            bound: act.digest.map(ToString::to_string),
            reason: act.reason.map(str::to_owned),
            ..Self::new("operation", act.outcome)
        }
    }

    pub fn change(what: &'static str, outcome: &'static str, detail: String) -> Self {
        Self { detail: Some(detail), ..Self::new(what, outcome) }
    }

    /// As it stands in a file, its end included.
    pub fn json(&self) -> Vec<u8> {
        // A struct of texts and numbers has no key that JSON lacks.
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Writes it to the log.
    pub fn log(&self) {
        let Self { kind, outcome, id, user, claimed_user, actor, rule, reason, detail, .. } = self;
        let Self { repository, pushed, deleted, bound, registry_status, .. } = self;
        let client = self.client.map(tracing::field::display);
        let tags = (!self.tags.is_empty()).then(|| self.tags.join(","));
        tracing::info!(
            target: "taglock::audit",
            kind, id, user, claimed_user, actor, client, repository, tags, pushed, deleted, bound,
            rule, outcome, registry_status, reason, detail,
            "audit",
        );
    }
}
