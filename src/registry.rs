//! What the judge asks of the registry, and how the answers are told apart.

pub mod anonymous;
pub mod catalog;
mod challenge;
pub mod client;
pub mod framing;
pub mod manifest_cache;
pub mod media;
pub mod service_account;
pub mod wire;

pub use crate::transport::{Said, Trouble};
pub use challenge::widen;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::name::{Algorithm, Digest, Reference, RepositoryName, Tag};

/// On whose behalf the registry is asked: the client's own headers, its credentials among them.
///
/// taglock knows no users; the registry decides what this client may see and write.
#[derive(Clone, Default)]
pub struct Caller {
    /// The end-to-end headers of the client's request, made ready for the registry.
    pub headers: HeaderMap,
    /// `?ns=`, passed on (distribution spec, "Registry Proxying").
    pub namespace: Option<String>,
    /// A rule says of what is asked for that the registry lets everybody pull it.
    pub public: bool,
    /// The registry has lately shown this client a manifest of the repository. Any other client is
    /// told nothing before the registry has answered what it asked for itself.
    pub let_in: bool,
}

impl fmt::Debug for Caller {
    /// Never the headers: they hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Caller {
    /// taglock itself, without credentials; `authority` is the registry's own.
    pub fn taglock(authority: &str) -> Self {
        let host = HeaderValue::from_str(authority).ok().map(|host| (HOST, host));
        Self { headers: HeaderMap::from_iter(host), ..Self::default() }
    }
}

/// A manifest's exact bytes, as hashed and as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub bytes: Bytes,
    pub media_type: HeaderValue,
}

impl Manifest {
    /// By the algorithm that registries take where none is named.
    pub fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.bytes)
    }
}

/// An answer of the registry that may be passed on to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// Its `Content-Type`, where it is text.
    pub fn content_type(&self) -> Option<&str> {
        self.headers.get(CONTENT_TYPE)?.to_str().ok()
    }
}

impl From<&Answer> for Trouble {
    /// An answer of 400 or above, as a reason why something could not be found out.
    fn from(answer: &Answer) -> Self {
        let status = answer.status.as_u16();
        let message = wire::error_message(&answer.body).unwrap_or_default();
        let retry_after = answer.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.map(str::to_owned);
        if message.is_empty() && retry_after.is_none() {
            return Self::Status(status);
        }
        Self::Answered(Said { status, message, retry_after })
    }
}

/// What the registry has under a reference, as far as this caller may know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sighting<A = Answer> {
    Found(Digest),
    /// 404. Registries say so for "no access", too.
    NotFound(A),
    /// 401, 403 or 429: the registry's to say, challenge and all.
    Denied(A),
    /// Any other status of 400 and above: what is there is not known, and these are the registry's
    /// words about it.
    Failed(A),
    Unclear(Trouble),
}

/// What became of a PUT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Written<A = Answer> {
    /// 201, for the digest that was sent; by digest, any 2xx.
    Created(A),
    /// 401, 403 or 429: a definitive no that is about the client.
    Denied(A),
    /// Any other definitive no: it was not written, and nothing is under way.
    Refused(A),
    /// It may have been written, or may yet be.
    Unknown(Trouble),
}

/// A manifest asked for by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Its bytes have the digest.
    Found(Manifest),
    NotFound,
    Unclear(Trouble),
}

/// What became of a DELETE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted<A = Answer> {
    Done(A),
    /// Any definitive no: nothing was deleted.
    Refused(A),
    /// It may have been deleted, or may yet be.
    Unknown(Trouble),
}

/// The tags of a repository, or what else there are many of, as far as this caller may know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing<A = Answer, T = Tag> {
    /// All of them; none where the registry says 404.
    All(Vec<T>),
    /// More than were asked for.
    TooMany,
    /// 401, 403 or 429.
    Denied(A),
    Unclear(Trouble),
}

/// How a client asks for a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reading {
    Get,
    Head,
}

/// A client's own request for a manifest by its digest, checked before a byte of it is passed on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Serving<A = Answer> {
    /// The manifest, whose bytes have the digest; or, without bytes, nothing that says otherwise.
    Good(A),
    /// As `Good`, from taglock's memory: the registry was not asked.
    Kept(A),
    NotFound(A),
    /// Any other answer of the registry about this client or this request, or its failure.
    Other(A),
    /// Other bytes than the digest's, or the word that it would serve such.
    Wrong(&'static str),
    Unclear(Trouble),
}

/// Where a manifest is put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// `manifests/<digest>`: moves no tag.
    Digest(&'a Digest),
    /// `manifests/<tag>`, and `?digest=` where the client said one.
    Tag { tag: &'a Tag, digest: Option<&'a Digest> },
}

/// What is taken away by a registry's own API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal<'a> {
    /// This tag of this artifact; others of it stay.
    Tag { tag: &'a Tag, artifact: &'a Digest },
    /// The artifact, all its tags, and its accessories with theirs.
    Artifact(&'a Digest),
    /// All that is in it.
    Repository,
}

/// A registry whose own API, beside the spec's, knows tags by themselves.
///
/// As a [`Registry`] it is seen through that API alone, by whatever credentials the client has for
/// it, and a tag is put by naming a manifest that is there by its digest.
#[async_trait]
pub trait Artifacts: Registry {
    /// Whether there is such a repository, for this caller: a digest plays no part in the answer.
    async fn repository(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
    ) -> Result<(), Result<Answer, Trouble>>;

    /// All tags of an artifact.
    async fn tags_of(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        artifact: &Digest,
        at_most: usize,
    ) -> Listing;

    /// What goes with an artifact: signatures and whatever else has it for its subject.
    async fn accessories(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        artifact: &Digest,
        at_most: usize,
    ) -> Listing<Answer, Digest>;

    async fn remove(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        removal: Removal<'_>,
    ) -> Deleted;
}

/// The registry behind the proxy.
///
/// Each call is bounded in time and in bytes. A PUT is sent at most once: it is tried again only
/// on a connection that turned out dead before anything of it was sent.
#[async_trait]
pub trait Registry: Send + Sync {
    /// HEAD, with every manifest type named in `Accept`: a narrow one makes registries hide or
    /// convert what they have.
    async fn look(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Sighting;

    /// As `look`, and the digest is checked against the manifest's bytes: what the ledger is
    /// about to be told must be true.
    async fn resolve(&self, caller: &Caller, repository: &RepositoryName, tag: &Tag) -> Sighting;

    /// As `resolve`, on behalf of a pull: the registry's no is one to a request of this method.
    async fn first_sight(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        tag: &Tag,
        reading: Reading,
    ) -> Sighting;

    /// The client's own request for a manifest, with its own headers, and the registry's answer to it.
    /// Nothing of it is told to the ledger: what a client is shown depends on what it accepts.
    ///
    /// # Errors
    /// Where there is no answer.
    async fn ask(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
        reading: Reading,
    ) -> Result<Answer, Trouble>;

    /// The client's own request, by digest, with its own headers.
    async fn serve(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
        reading: Reading,
    ) -> Serving;

    async fn put(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        place: Place<'_>,
        manifest: &Manifest,
    ) -> Written;

    /// DELETE of a manifest or a tag.
    async fn delete(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Deleted;

    /// The tags there are, all pages of them.
    async fn tags(&self, caller: &Caller, repository: &RepositoryName, at_most: usize) -> Listing;

    /// Whether it answers at all; what it answers doesn't matter.
    async fn ping(&self) -> Result<(), Trouble>;

    /// GET by digest, checked against it.
    async fn fetch(&self, caller: &Caller, repository: &RepositoryName, digest: &Digest)
    -> Fetched;
}
