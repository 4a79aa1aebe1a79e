//! The registry as taglock's own account sees it (`upstream.credentials_file`): for its own
//! look-ups and repairs, never for a client.
//!
//! It answers the registry's challenge as clients do: Basic with the account's name and password,
//! Bearer with a token that the service named in the challenge gives for them, kept until it
//! expires.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use base64::prelude::*;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, USER_AGENT, WWW_AUTHENTICATE};
use http::{HeaderName, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use super::catalogue::{Catalogue, Repositories};
use super::client::Client;
use super::{
    Answer, Caller, Deleted, Fetched, Listing, Manifest, Place, Reading, Registry, Serving,
    Sighting, Trouble, Written, wire,
};
use crate::name::{Digest, Reference, RepositoryName, Tag};

/// What goes along of the request at hand: where the registry believes to be, and whose it was.
const PASSED_ON: [HeaderName; 7] = [
    HOST,
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// The spec's lifetime of a token that names none.
const LIFETIME: Duration = Duration::from_secs(60);
/// A token is not used any more for so long before it expires.
const MARGIN: Duration = Duration::from_secs(5);
/// How many repositories' tokens are kept at most.
const KEPT: usize = 1_000;

/// What a request needs to be let do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Right {
    Pull,
    Push,
}

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Repository(RepositoryName, Right),
    Catalogue,
}

struct Kept {
    header: HeaderValue,
    /// `None` for what does not expire.
    until: Option<Instant>,
}

pub struct Account {
    client: Arc<Client>,
    basic: HeaderValue,
    kept: Mutex<HashMap<Scope, Kept>>,
}

/// What a registry wants of those it does not know.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Account {
    /// `credentials` are `user:password`; `None` where they can't stand in a header.
    pub fn new(client: Arc<Client>, credentials: &str) -> Option<Self> {
        let encoded = BASE64_STANDARD.encode(credentials);
        let mut basic = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
        basic.set_sensitive(true);
        Some(Self { client, basic, kept: Mutex::default() })
    }

    /// The account in place of whoever's request is at hand.
    fn caller(&self, caller: &Caller, name: &RepositoryName, right: Right) -> Caller {
        self.caller_for(caller, &Scope::Repository(name.clone(), right))
    }

    fn caller_for(&self, caller: &Caller, scope: &Scope) -> Caller {
        let mut headers = HeaderMap::new();
        for passed_on in &PASSED_ON {
            for value in caller.headers.get_all(passed_on) {
                headers.append(passed_on, value.clone());
            }
        }
        let agent = concat!("taglock/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.get(scope)
            && kept.until.is_none_or(|until| Instant::now() < until)
        {
            headers.insert(AUTHORIZATION, kept.header.clone());
        }
        Caller { headers, namespace: caller.namespace.clone() }
    }

    /// Takes a challenge up; true where there is something to come again with.
    async fn accept(&self, answer: &Answer, name: &RepositoryName, right: Right) -> bool {
        self.accept_for(answer, Scope::Repository(name.clone(), right)).await
    }

    async fn accept_for(&self, answer: &Answer, scope: Scope) -> bool {
        if answer.status != StatusCode::UNAUTHORIZED {
            return false;
        }
        let (header, until) = match challenge(&answer.headers) {
            None => return false,
            Some(Challenge::Basic) => (self.basic.clone(), None),
            Some(Challenge::Bearer { realm, service, scope: wanted }) => {
                match self.token(&realm, service.as_deref(), wanted.as_deref()).await {
                    Ok((header, lifetime)) => {
                        (header, Some(Instant::now() + lifetime.saturating_sub(MARGIN)))
                    }
                    Err(trouble) => {
                        tracing::warn!(%trouble, ?scope, "taglock's account got no token");
                        return false;
                    }
                }
            }
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(scope, Kept { header, until });
        true
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<(HeaderValue, Duration), Trouble> {
        let pairs = [("service", service), ("scope", scope)];
        let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let query: Vec<_> = pairs
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let answer = self.client.ask_elsewhere(realm, &query.join("&"), &self.basic).await?;
        if answer.status != StatusCode::OK {
            return Err(Trouble::Status(answer.status.as_u16()));
        }
        let garbage = Trouble::Garbage("no token");
        let (token, lifetime) = wire::token(&answer.body).ok_or(garbage.clone())?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| garbage)?;
        header.set_sensitive(true);
        Ok((header, lifetime.map_or(LIFETIME, Duration::from_secs)))
    }
}

fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(challenges) = http_auth::parse_challenges(value.to_str().unwrap_or_default()) else {
            continue;
        };
        for challenge in challenges {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                let (service, scope) = (param("service"), param("scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
            basic |= challenge.scheme.eq_ignore_ascii_case("basic");
        }
    }
    basic.then_some(Challenge::Basic)
}

#[async_trait]
impl Registry for Account {
    async fn look(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Sighting {
        let own = self.caller(caller, name, Right::Pull);
        match self.client.look(&own, name, reference).await {
            Sighting::Denied(answer) if self.accept(&answer, name, Right::Pull).await => {
                let own = self.caller(caller, name, Right::Pull);
                self.client.look(&own, name, reference).await
            }
            seen => seen,
        }
    }

    async fn resolve(&self, caller: &Caller, name: &RepositoryName, tag: &Tag) -> Sighting {
        let own = self.caller(caller, name, Right::Pull);
        match self.client.resolve(&own, name, tag).await {
            Sighting::Denied(answer) if self.accept(&answer, name, Right::Pull).await => {
                let own = self.caller(caller, name, Right::Pull);
                self.client.resolve(&own, name, tag).await
            }
            seen => seen,
        }
    }

    async fn first_sight(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        tag: &Tag,
        _reading: Reading,
    ) -> Sighting {
        self.resolve(caller, name, tag).await
    }

    async fn serve(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        digest: &Digest,
        reading: Reading,
    ) -> Serving {
        let own = self.caller(caller, name, Right::Pull);
        match self.client.serve(&own, name, digest, reading).await {
            Serving::Other(answer) if self.accept(&answer, name, Right::Pull).await => {
                let own = self.caller(caller, name, Right::Pull);
                self.client.serve(&own, name, digest, reading).await
            }
            serving => serving,
        }
    }

    async fn put(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        place: Place<'_>,
        manifest: &Manifest,
    ) -> Written {
        let own = self.caller(caller, name, Right::Push);
        match self.client.put(&own, name, place.clone(), manifest).await {
            // Denied, so nothing was written: this is not a second PUT of the same attempt.
            Written::Denied(answer) if self.accept(&answer, name, Right::Push).await => {
                let own = self.caller(caller, name, Right::Push);
                self.client.put(&own, name, place, manifest).await
            }
            written => written,
        }
    }

    async fn delete(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Deleted {
        // Taglock deletes nothing of its own.
        let own = self.caller(caller, name, Right::Push);
        self.client.delete(&own, name, reference).await
    }

    async fn tags(&self, caller: &Caller, name: &RepositoryName, at_most: usize) -> Listing {
        let own = self.caller(caller, name, Right::Pull);
        match self.client.tags(&own, name, at_most).await {
            Listing::Denied(answer) if self.accept(&answer, name, Right::Pull).await => {
                let own = self.caller(caller, name, Right::Pull);
                self.client.tags(&own, name, at_most).await
            }
            listing => listing,
        }
    }

    async fn ping(&self) -> Result<(), Trouble> {
        self.client.ping().await
    }

    async fn fetch(&self, caller: &Caller, name: &RepositoryName, digest: &Digest) -> Fetched {
        let own = self.caller(caller, name, Right::Pull);
        match self.client.fetch(&own, name, digest).await {
            // It tells no challenge; a look does.
            Fetched::Unclear(Trouble::Status(401)) => {
                self.look(caller, name, &Reference::Digest(*digest)).await;
                let own = self.caller(caller, name, Right::Pull);
                self.client.fetch(&own, name, digest).await
            }
            fetched => fetched,
        }
    }
}

#[async_trait]
impl Catalogue for Account {
    async fn repositories(&self, caller: &Caller, page: Option<&str>) -> Repositories {
        let own = self.caller_for(caller, &Scope::Catalogue);
        match self.client.repositories(&own, page).await {
            Repositories::Denied(answer) if self.accept_for(&answer, Scope::Catalogue).await => {
                let own = self.caller_for(caller, &Scope::Catalogue);
                self.client.repositories(&own, page).await
            }
            listed => listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        challenge(&headers)
    }

    #[test]
    fn a_token_is_preferred_to_a_password_and_quotes_are_understood() {
        let bearer = |scope: Option<&str>| {
            let (realm, service) =
                ("https://auth.example/token".to_owned(), Some("r,1".to_owned()));
            Some(Challenge::Bearer { realm, service, scope: scope.map(str::to_owned) })
        };
        for (values, expected) in [
            (vec![r#"Basic realm="house""#], Some(Challenge::Basic)),
            (
                vec![
                    r#"Basic realm="x", Bearer realm="https://auth.example/token",service="r,1",scope="repository:a/b:pull,push""#,
                ],
                bearer(Some("repository:a/b:pull,push")),
            ),
            (
                vec![
                    r#"Basic realm="x""#,
                    r#"bearer Realm="https://auth.example/token", Service="r,1""#,
                ],
                bearer(None),
            ),
            (vec![r#"Negotiate"#], None),
            (vec![r#"Bearer service="x""#], None),
            (vec![], None),
        ] {
            assert_eq!(of(&values), expected, "{values:?}");
        }
    }
}
