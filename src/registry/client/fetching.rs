//! A manifest by its digest, whole and checked.

use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};

use super::Client;
use crate::name::{Digest, Reference, RepositoryName};
use crate::registry::media::MediaTypes;
use crate::registry::{Answer, Caller, Fetched, Manifest, Trouble, wire};

/// Why a manifest is not found by its digest though the registry has it.
pub const OTHER_BYTES: &str = "a manifest that does not have its digest";
pub const SCHEMA1: &str = "a manifest of schema 1, whose digest its bytes do not tell";
/// Why what the registry gives for a manifest is not taken for one.
pub const NO_MANIFEST: &str =
    "an answer without Docker-Content-Digest, of a media type that is no manifest's";

impl Client {
    pub(super) async fn fetch_manifest(
        &self,
        caller: &Caller,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Fetched {
        let path = self.manifest_path(repository, &Reference::Digest(*digest));
        let answer = match self.read(caller, &Method::GET, &path, self.max_manifest).await {
            Ok(answer) => answer,
            Err(trouble) => return Fetched::Unclear(trouble),
        };
        match answer.status {
            StatusCode::OK if digest.matches(&answer.body) => {
                let unnamed = Trouble::Garbage("a manifest without a Content-Type");
                match answer.headers.get(CONTENT_TYPE).cloned() {
                    Some(media_type) => Fetched::Found(Manifest { bytes: answer.body, media_type }),
                    None => Fetched::Unclear(unnamed),
                }
            }
            StatusCode::OK if is_schema1(&answer) => Fetched::Unclear(Trouble::Garbage(SCHEMA1)),
            StatusCode::OK => Fetched::Unclear(Trouble::Garbage(OTHER_BYTES)),
            StatusCode::NOT_FOUND => Fetched::NotFound,
            // A challenge, which taglock's own account takes up.
            StatusCode::UNAUTHORIZED => Fetched::Unclear(Trouble::Status(401)),
            status if status.as_u16() >= 400 => Fetched::Unclear(Trouble::from(&answer)),
            status => Fetched::Unclear(Trouble::Status(status.as_u16())),
        }
    }
}

/// By its type, and by its bytes as well: they show that it has no parts.
fn is_schema1(answer: &Answer) -> bool {
    answer.content_type().is_some_and(MediaTypes::is_schema1) && wire::is_schema1(&answer.body)
}
