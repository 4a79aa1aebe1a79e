//! The registry as anybody sees it who has no account there.
//!
//! Each time anew: a token for everybody may outlive the day on which the repository was for
//! everybody, and so none is kept.

use std::sync::Arc;

use async_trait::async_trait;
use http::StatusCode;
use http::header::AUTHORIZATION;

use super::challenge::Challenge;
use super::client::Client;
use super::manifest_cache::{Everybody, Openness};
use super::service_account::nobody;
use super::{Caller, Registry, Sighting, Trouble};
use crate::name::{Digest, Reference, RepositoryName};

pub struct Anonymous {
    client: Arc<Client>,
}

impl Anonymous {
    pub fn new(client: Arc<Client>) -> Self {
        Self { client }
    }
}

#[async_trait]
impl Everybody for Anonymous {
    /// HEAD by digest, and again with the token that its service gives to anybody, as docker
    /// does where nobody has logged in.
    async fn sees(&self, caller: &Caller, name: &RepositoryName, digest: &Digest) -> Openness {
        let reference = Reference::Digest(*digest);
        let mut own = nobody(caller);
        let seen = self.client.look(&own, name, &reference).await;
        let challenge = match &seen {
            Sighting::Denied(answer) if answer.status == StatusCode::UNAUTHORIZED => {
                Challenge::of(&answer.headers)
            }
            _ => None,
        };
        let Some(Challenge::Bearer(mut ask)) = challenge else { return openness(seen) };
        ask.scope.get_or_insert_with(|| format!("repository:{name}:pull"));
        match ask.token(&self.client, None).await {
            Ok((token, _)) => {
                own.headers.insert(AUTHORIZATION, token);
                openness(self.client.look(&own, name, &reference).await)
            }
            // Its service gives nobody a token for nothing.
            Err(trouble) => of_trouble(trouble),
        }
    }
}

fn openness(seen: Sighting) -> Openness {
    match seen {
        Sighting::Found(_) => Openness::Open,
        Sighting::Denied(answer) | Sighting::NotFound(answer) | Sighting::Failed(answer) => {
            of_trouble(Trouble::Status(answer.status.as_u16()))
        }
        Sighting::Unclear(trouble) => of_trouble(trouble),
    }
}

/// Anything that is said about the request is a no; a failure, or that too many have asked, is no word
/// on who may.
fn of_trouble(trouble: Trouble) -> Openness {
    match trouble {
        Trouble::Status(status) if status < 500 && status != 429 => Openness::Closed(status),
        trouble => Openness::Unclear(trouble),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::name::Algorithm;
    use crate::registry::Answer;

    #[test]
    fn an_outage_is_not_a_no() {
        let answer = |status| {
            let status = StatusCode::from_u16(status).unwrap();
            Answer { status, headers: HeaderMap::new(), body: bytes::Bytes::new() }
        };
        let digest = Digest::of(Algorithm::Sha256, b"one");
        assert_eq!(openness(Sighting::Found(digest)), Openness::Open);
        for status in [401, 403] {
            assert_eq!(openness(Sighting::Denied(answer(status))), Openness::Closed(status));
        }
        assert_eq!(openness(Sighting::NotFound(answer(404))), Openness::Closed(404));
        for status in [302, 400, 410] {
            let seen = Sighting::Unclear(Trouble::Status(status));
            assert_eq!(openness(seen), Openness::Closed(status));
        }
        for seen in [
            Sighting::Denied(answer(429)),
            Sighting::Unclear(Trouble::Status(503)),
            Sighting::Unclear(Trouble::TimedOut),
            Sighting::Unclear(Trouble::Unreachable),
            Sighting::Unclear(Trouble::Cut),
        ] {
            assert!(matches!(openness(seen.clone()), Openness::Unclear(_)), "{seen:?}");
        }
    }
}
