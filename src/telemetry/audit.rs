//! The one place every protected decision goes through.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::name::{Digest, Reference, RepositoryName, Tag};

/// What was asked, and of whom the answer is known to be.
#[derive(Clone, Debug)]
pub struct Decision {
    pub id: String,
    /// As far as the credentials show a name.
    pub user: Option<String>,
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
}

impl Subject {
    fn pushed(&self) -> Option<String> {
        match self {
            Self::Push(digest) => Some(digest.to_string()),
            Self::Pull | Self::Delete(_) => None,
        }
    }

    fn deleted(&self) -> Option<String> {
        match self {
            Self::Push(_) | Self::Pull => None,
            Self::Delete(reference) => Some(reference.to_string()),
        }
    }
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

/// Writes decisions to the log, under the target `taglock::audit`.
#[derive(Debug, Default)]
pub struct Audit {}

impl Audit {
    pub fn record(&self, decision: &Decision, outcome: &Outcome) {
        let Decision { id, user, client, repository, tags, subject, rule } = decision;
        let Outcome { label, bound, registry_status, detail } = outcome;
        let tags = tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(",");
        let bound = bound.map(|digest| digest.to_string());
        tracing::info!(
            target: "taglock::audit",
            id, user, %client, %repository, tags, pushed = subject.pushed(),
            deleted = subject.deleted(), bound, rule,
            outcome = label, registry_status, detail,
            "decision",
        );
    }
}

impl Audit {
    /// A push that the rules let through took the place of an entry from stricter days.
    pub fn superseded(&self, decision: &Decision, tag: &Tag, bound: Option<&Digest>) {
        let Decision { id, user, client, repository, subject, rule, .. } = decision;
        let bound = bound.map(ToString::to_string);
        tracing::info!(
            target: "taglock::audit",
            id, user, %client, %repository, tags = %tag, pushed = subject.pushed(), bound, rule,
            outcome = "superseded",
            "decision",
        );
    }
}

/// What an operator had done to a tag's entry.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// As the operator names themselves; the admin token tells no more.
    pub actor: &'a str,
    pub repository: &'a RepositoryName,
    pub tag: &'a Tag,
    pub digest: Option<&'a Digest>,
    pub reason: Option<&'a str>,
    /// One of a closed set: released, pending-released, imported, restored.
    pub outcome: &'static str,
}

impl Audit {
    pub fn act(&self, act: &Act<'_>) {
        let Act { actor, repository, tag, digest, reason, outcome } = act;
        let bound = digest.map(ToString::to_string);
        tracing::info!(
            target: "taglock::audit",
            actor, %repository, tags = %tag, bound, reason, outcome,
            "operation",
        );
    }
}

/// The user's name in Basic credentials; a Bearer token's is the registry's to know.
pub fn user_of(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded =
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, credentials.trim()).ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (name, password) = decoded.split_once(':')?;
    // Some services take a token as the name, with itself, nothing or a fixed word behind it.
    let is_token = password.is_empty()
        || password == name
        || password == "x-oauth-basic"
        || TOKEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let plain = name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
    (plain && !is_token).then(|| name.to_owned())
}

/// How well-known tokens begin, where one might stand in a name's place.
const TOKEN_PREFIXES: [&str; 8] =
    ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "dop_v1_", "dckr_pat_", "eyJ"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_of_basic_credentials_is_taken() {
        let user = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, http::HeaderValue::from_static(value));
            user_of(&headers)
        };
        // alice:secret
        assert_eq!(user("Basic YWxpY2U6c2VjcmV0").as_deref(), Some("alice"));
        // Without a colon it could be a secret as a whole.
        assert_eq!(user("Basic c2VjcmV0"), None);
        // ghp_x:y, tok:tok, tok:x-oauth-basic, tok:
        for token in ["Z2hwX3g6eQ==", "dG9rOnRvaw==", "dG9rOngtb2F1dGgtYmFzaWM=", "dG9rOg=="] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, format!("Basic {token}").parse().unwrap());
            assert_eq!(user_of(&headers), None, "{token}");
        }
        assert_eq!(user("Bearer YWxpY2U6c2VjcmV0"), None);
        assert_eq!(user("Basic ???"), None);
    }
}
