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
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::{HeaderName, StatusCode};
use tokio::time::Instant;

use super::catalog::{Catalogue, Repositories};
use super::challenge::Challenge;
use super::client::Client;
use super::{
    Answer, Caller, Deleted, Fetched, Listing, Manifest, Place, Reading, Registry, Serving,
    Sighting, Trouble, Written,
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

/// taglock itself in place of whoever's request is at hand, without credentials.
pub(super) fn nobody(caller: &Caller) -> Caller {
    let mut headers = HeaderMap::new();
    for passed_on in &PASSED_ON {
        for value in caller.headers.get_all(passed_on) {
            headers.append(passed_on, value.clone());
        }
    }
    let agent = concat!("taglock/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    Caller { headers, namespace: caller.namespace.clone(), ..Caller::default() }
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
        let mut own = nobody(caller);
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.get(scope)
            && kept.until.is_none_or(|until| Instant::now() < until)
        {
            own.headers.insert(AUTHORIZATION, kept.header.clone());
        }
        own
    }

    /// Takes a challenge up; true where there is something to come again with.
    async fn accept(&self, answer: &Answer, name: &RepositoryName, right: Right) -> bool {
        self.accept_for(answer, Scope::Repository(name.clone(), right)).await
    }

    async fn accept_for(&self, answer: &Answer, scope: Scope) -> bool {
        if answer.status != StatusCode::UNAUTHORIZED {
            return false;
        }
        let (header, until) = match Challenge::of(&answer.headers) {
            None => return false,
            Some(Challenge::Basic) => (self.basic.clone(), None),
            Some(Challenge::Bearer(ask)) => {
                match ask.token(&self.client, Some(&self.basic)).await {
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

    async fn ask(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
        reading: Reading,
    ) -> Result<Answer, Trouble> {
        let own = self.caller(caller, name, Right::Pull);
        let answer = self.client.ask(&own, name, reference, reading).await?;
        if !self.accept(&answer, name, Right::Pull).await {
            return Ok(answer);
        }
        let own = self.caller(caller, name, Right::Pull);
        self.client.ask(&own, name, reference, reading).await
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
