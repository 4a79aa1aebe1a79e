//! What the registry's answers say.

use http::{HeaderValue, StatusCode};

use super::CONTENT_DIGEST;
use crate::name::Digest;
use crate::registry::{Answer, Manifest, Sighting, Trouble, Written};

/// The answer of a look-up that found something, or what it means otherwise.
#[expect(clippy::result_large_err, reason = "either side is the answer itself, moved once")]
pub(super) fn sighted(answer: Answer) -> Result<Answer, Sighting> {
    match answer.status {
        StatusCode::OK => Ok(answer),
        StatusCode::NOT_FOUND => Err(Sighting::NotFound(answer)),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            Err(Sighting::Denied(answer))
        }
        status => Err(Sighting::Unclear(Trouble::Status(status.as_u16()))),
    }
}

/// What the answer to a PUT says of it. Definitive is only what a registry says having looked at
/// the request; a time-out or a failure on its side may still be carried out.
pub(super) fn written(answer: Answer, manifest: &Manifest) -> Written {
    match answer.status.as_u16() {
        201 => match answer.headers.get(CONTENT_DIGEST).map(digest_of).transpose() {
            Ok(Some(digest)) if !digest.matches(&manifest.bytes) => {
                tracing::error!(%digest, "the registry reports another digest than was pushed");
                Written::Unknown(Trouble::Garbage("it reports another digest than was pushed"))
            }
            Err(trouble) => Written::Unknown(trouble),
            Ok(_) => Written::Created(answer),
        },
        _ => told(answer),
    }
}

/// The same, where no manifest went along.
pub(super) fn told(answer: Answer) -> Written {
    match answer.status.as_u16() {
        201 => Written::Created(answer),
        401 | 403 | 429 => Written::Denied(answer),
        // A redirect of a write is "not written": taglock doesn't follow it, the client must not.
        300..=399 | 400 | 404 | 405 | 409 | 412 | 413 | 415 | 422 => Written::Refused(answer),
        status => Written::Unknown(Trouble::Status(status)),
    }
}

pub(super) fn digest_of(value: &HeaderValue) -> Result<Digest, Trouble> {
    let text = value.to_str().ok().and_then(|text| Digest::parse(text).ok());
    text.ok_or(Trouble::Garbage("its Docker-Content-Digest is no digest"))
}

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
