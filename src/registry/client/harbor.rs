//! Harbor's own API (`/api/v2.0`), as far as tags are concerned, with the client's own session: its
//! user interface comes with a cookie, which the API takes where `/v2/` would not.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

use super::deletes::deleted;
use super::paging::{Next, Progress, UNREADABLE};
use super::status::{sighted, told};
use super::{Client, MAX_ANSWER, Repeat, request};
use crate::name::{Algorithm, Digest, Reference, RepositoryName, Tag};
use crate::registry::{
    Answer, Artifacts, Caller, Deleted, Fetched, Listing, Manifest, Place, Reading, Registry,
    Removal, Serving, Sighting, Trouble, Written, wire,
};

/// The largest page that Harbor gives.
const AT_ONCE: usize = 100;
const MAX_PAGE: usize = 16 * 1024 * 1024;

/// Harbor, seen through its API.
pub struct Harbor {
    client: Arc<Client>,
}

impl Harbor {
    pub fn new(client: Arc<Client>) -> Self {
        Self { client }
    }

    /// What of the client's headers goes with look-ups: its session, too.
    fn headers(&self, caller: &Caller) -> HeaderMap {
        let mut headers = self.client.lookup_headers(caller);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers
    }

    async fn get(&self, caller: &Caller, path: &str, max: usize) -> Result<Answer, Trouble> {
        let request = request(&Method::GET, path, &self.headers(caller))?;
        self.client.exchange(&self.client.peers, request, None, max, Repeat::Harmless).await
    }

    /// Everything of a list that comes in pages.
    async fn all<T>(
        &self,
        caller: &Caller,
        path: &str,
        at_most: usize,
        read: impl Fn(&[u8]) -> Option<(usize, Vec<T>)>,
    ) -> Listing<Answer, T> {
        let mut all = Vec::new();
        let mut progress = Progress::default();
        // Each page has something that counts, or is the last.
        for page in 1..=at_most / AT_ONCE + 2 {
            // Sorted by what is unique: otherwise pages might leave something out between them.
            let path = format!("{path}?sort=id&page={page}&page_size={AT_ONCE}");
            let answer = match self.get(caller, &path, MAX_PAGE).await {
                Ok(answer) => answer,
                Err(trouble) => return Listing::Unclear(trouble),
            };
            let answer = match sighted(answer) {
                Ok(answer) => answer,
                // Of a list that has begun, it says nothing.
                Err(Sighting::NotFound(answer)) if progress.pages > 0 => {
                    return Listing::Unclear(Trouble::Status(answer.status.as_u16()));
                }
                Err(Sighting::NotFound(_)) => return Listing::All(all),
                Err(Sighting::Denied(answer)) => return Listing::Denied(answer),
                Err(Sighting::Failed(answer)) => return Listing::Unclear(Trouble::from(&answer)),
                Err(Sighting::Unclear(trouble)) => return Listing::Unclear(trouble),
                Err(Sighting::Found(_)) => return Listing::Unclear(Trouble::Garbage(PAGE)),
            };
            let Some((length, some)) = read(&answer.body) else {
                return Listing::Unclear(Trouble::Garbage(PAGE));
            };
            all.extend(some);
            if all.len() > at_most {
                return Listing::TooMany;
            }
            // Pages may be smaller than asked for, and the next one is known by its number.
            match progress.next(&answer.headers, length) {
                Next::End if length < AT_ONCE => return Listing::All(all),
                Next::Query(_) | Next::Unreadable if length == 0 => {
                    return Listing::Unclear(Trouble::Garbage(UNREADABLE));
                }
                _ => {}
            }
        }
        Listing::TooMany
    }

    fn tags_in(&self, names: &[String]) -> Vec<Tag> {
        // What is no tag by the grammar can't have come through taglock, nor be pulled.
        let tags = names.iter().filter_map(|name| Tag::parse(name).ok());
        tags.map(|tag| self.client.naming.tag(tag)).collect()
    }
}

const PAGE: &str = "a page of its API is none";

/// Where a repository is in the API. Its name is escaped twice: Harbor's router takes one escape off,
/// its handlers the other.
fn place(repository: &RepositoryName) -> String {
    let (project, rest) = repository.as_str().split_once('/').unwrap_or(("", repository.as_str()));
    format!("/api/v2.0/projects/{project}/repositories/{}", rest.replace('/', "%252F"))
}

#[async_trait]
impl Artifacts for Harbor {
    async fn repository(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
    ) -> Result<(), Result<Answer, Trouble>> {
        let answer = self.get(caller, &place(repository), MAX_ANSWER).await.map_err(Err)?;
        match sighted(answer) {
            Ok(_) | Err(Sighting::Found(_)) => Ok(()),
            Err(
                Sighting::NotFound(answer) | Sighting::Denied(answer) | Sighting::Failed(answer),
            ) => Err(Ok(answer)),
            Err(Sighting::Unclear(trouble)) => Err(Err(trouble)),
        }
    }

    async fn tags_of(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        artifact: &Digest,
        at_most: usize,
    ) -> Listing {
        let path = format!("{}/artifacts/{artifact}/tags", place(repository));
        let read = |body: &[u8]| wire::tags(body).map(|tags| (tags.len(), self.tags_in(&tags)));
        self.all(caller, &path, at_most, read).await
    }

    async fn accessories(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        artifact: &Digest,
        at_most: usize,
    ) -> Listing<Answer, Digest> {
        let path = format!("{}/artifacts/{artifact}/accessories", place(repository));
        let read = |body: &[u8]| {
            let digests = wire::accessories(body)?.into_iter();
            let digests = digests.map(|digest| Digest::parse(&digest).ok());
            let digests = digests.collect::<Option<Vec<_>>>()?;
            Some((digests.len(), digests))
        };
        self.all(caller, &path, at_most, read).await
    }

    async fn remove(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        removal: Removal<'_>,
    ) -> Deleted {
        let place = place(repository);
        let path = match removal {
            Removal::Tag { tag, artifact } => format!("{place}/artifacts/{artifact}/tags/{tag}"),
            Removal::Artifact(digest) => format!("{place}/artifacts/{digest}"),
            Removal::Repository => place,
        };
        let sending = async {
            let request = request(&Method::DELETE, &path, &caller.headers)?;
            let (client, again) = (&self.client, Repeat::Never);
            client.exchange(&client.peers, request, None, MAX_ANSWER, again).await
        };
        sending.await.map_or_else(Deleted::Unknown, deleted)
    }
}

#[async_trait]
impl Registry for Harbor {
    async fn look(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Sighting {
        let path = format!("{}/artifacts/{reference}?with_tag=false", place(repository));
        let answer = match self.get(caller, &path, MAX_ANSWER).await {
            Ok(answer) => answer,
            Err(trouble) => return Sighting::Unclear(trouble),
        };
        match sighted(answer) {
            Ok(answer) => {
                let digest = wire::artifact(&answer.body);
                match digest.and_then(|digest| Digest::parse(&digest).ok()) {
                    Some(digest) => Sighting::Found(digest),
                    None => Sighting::Unclear(Trouble::Garbage("an artifact without a digest")),
                }
            }
            Err(sighting) => sighting,
        }
    }

    /// By the row that Harbor itself goes by; a pull checks the bytes in any case.
    async fn resolve(&self, caller: &Caller, repository: &RepositoryName, tag: &Tag) -> Sighting {
        self.look(caller, repository, &Reference::Tag(tag.clone())).await
    }

    async fn first_sight(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        tag: &Tag,
        _reading: Reading,
    ) -> Sighting {
        self.resolve(caller, repository, tag).await
    }

    async fn ask(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        reading: Reading,
    ) -> Result<Answer, Trouble> {
        self.client.ask(caller, repository, reference, reading).await
    }

    async fn serve(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
        reading: Reading,
    ) -> Serving {
        self.client.serve(caller, repository, digest, reading).await
    }

    /// A tag that is there already is not moved by this: Harbor answers 409.
    async fn put(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        at: Place<'_>,
        manifest: &Manifest,
    ) -> Written {
        let (tag, digest) = match at {
            Place::Digest(_) => return self.client.put(caller, repository, at, manifest).await,
            Place::Tag { tag, digest } => {
                let of_bytes = || Digest::of(Algorithm::Sha256, &manifest.bytes);
                (tag, digest.copied().unwrap_or_else(of_bytes))
            }
        };
        let path = format!("{}/artifacts/{digest}/tags", place(repository));
        let body = wire::new_tag_document(tag.as_str());
        let mut headers = caller.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let sending = async {
            let request = request(&Method::POST, &path, &headers)?;
            let (client, again) = (&self.client, Repeat::BeforeBody);
            client.exchange(&client.peers, request, Some(body.into()), MAX_ANSWER, again).await
        };
        sending.await.map_or_else(Written::Unknown, told)
    }

    async fn delete(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Deleted {
        self.client.delete(caller, repository, reference).await
    }

    /// By `/v2/`: Harbor takes a session for what is no HEAD there, and this list alone has the tags
    /// of accessories, too.
    async fn tags(&self, caller: &Caller, repository: &RepositoryName, at_most: usize) -> Listing {
        let headers = self.headers(caller);
        match self.client.list_tags(headers, caller, repository, at_most).await {
            // Its challenge is for docker: nothing to show to a browser.
            Listing::Denied(answer) => Listing::Unclear(Trouble::Status(answer.status.as_u16())),
            listing => listing,
        }
    }

    async fn ping(&self) -> Result<(), Trouble> {
        self.client.ping().await
    }

    async fn fetch(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Fetched {
        self.client.fetch(caller, repository, digest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repositorys_name_stands_in_one_component() {
        let at = |name: &str| place(&RepositoryName::parse(name).unwrap());
        assert_eq!(at("prod/app"), "/api/v2.0/projects/prod/repositories/app");
        assert_eq!(at("prod/a/b.c"), "/api/v2.0/projects/prod/repositories/a%252Fb.c");
    }
}
