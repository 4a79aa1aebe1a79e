//! The one place every protected decision goes through.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::judge::Verdict;
use crate::name::{Digest, RepositoryName, Tag};
use crate::registry::Answer;

/// What was asked, and of whom the answer is known to be.
#[derive(Clone, Debug)]
pub struct Decision {
    pub id: String,
    /// As far as the credentials show a name.
    pub user: Option<String>,
    pub client: IpAddr,
    pub repository: RepositoryName,
    pub tags: Vec<Tag>,
    pub pushed: Digest,
    pub rule: String,
}

/// Writes decisions to the log, under the target `taglock::audit`.
#[derive(Default)]
pub struct Audit {}

impl Audit {
    pub fn record(&self, decision: &Decision, verdict: &Verdict<Answer>) {
        let Decision { id, user, client, repository, tags, pushed, rule } = decision;
        let tags = tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(",");
        let (bound, status, detail) = match verdict {
            Verdict::Admitted { answer, sealed, .. } => {
                let status = answer.as_ref().map(|answer| answer.status.as_u16());
                (None, status, (!sealed).then(|| "not sealed yet".to_owned()))
            }
            Verdict::Refused(conflict) => (Some(conflict.bound.to_string()), None, None),
            Verdict::Relayed(answer) => (None, Some(answer.status.as_u16()), None),
            Verdict::Undecided(undecided) => (None, None, Some(undecided.to_string())),
        };
        tracing::info!(
            target: "taglock::audit",
            id, user, %client, %repository, tags, %pushed, bound, rule,
            outcome = verdict.label(), registry_status = status, detail,
            "decision",
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
    let name = decoded.split(|b| *b == b':').next()?;
    let plain = |b: &u8| b.is_ascii_graphic();
    (name.len() <= 128 && name.len() < decoded.len() && name.iter().all(plain))
        .then(|| String::from_utf8_lossy(name).into_owned())
}

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
        assert_eq!(user("Bearer YWxpY2U6c2VjcmV0"), None);
        assert_eq!(user("Basic ???"), None);
    }
}
