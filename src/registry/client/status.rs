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
        status if status.as_u16() >= 400 => Err(Sighting::Failed(answer)),
        status => Err(Sighting::Unclear(Trouble::Status(status.as_u16()))),
    }
}

/// What the answer to a PUT by digest says, which moves no tag: the answer is the registry's to give,
/// whatever it is. Registries say success with 200, 202 or 204, too.
pub(super) fn stored(answer: Answer, manifest: &Manifest) -> Written {
    match answer.status.as_u16() {
        200..=299 => created(answer, manifest),
        401 | 403 | 429 => Written::Denied(answer),
        _ => Written::Refused(answer),
    }
}

/// What the answer to a PUT says of it. Definitive is only what a registry says having looked at
/// the request; a time-out or a failure on its side may still be carried out.
pub(super) fn written(answer: Answer, manifest: &Manifest) -> Written {
    match answer.status.as_u16() {
        201 => created(answer, manifest),
        _ => told(answer),
    }
}

fn created(answer: Answer, manifest: &Manifest) -> Written {
    match answer.headers.get(CONTENT_DIGEST).map(digest_of).transpose() {
        Ok(Some(digest)) if !digest.matches(&manifest.bytes) => {
            tracing::error!(%digest, "the registry reports another digest than was pushed");
            Written::Unknown(Trouble::Garbage("it reports another digest than was pushed"))
        }
        Err(trouble) => Written::Unknown(trouble),
        Ok(_) => Written::Created(answer),
    }
}

/// The same, where no manifest went along.
pub(super) fn told(answer: Answer) -> Written {
    match answer.status.as_u16() {
        201 => Written::Created(answer),
        401 | 403 | 429 => Written::Denied(answer),
        // A redirect of a write is "not written": taglock doesn't follow it, the client must not.
        300..=399 => Written::Refused(answer),
        status if is_refusal(status) => Written::Refused(answer),
        _ => Written::Unknown(Trouble::from(&answer)),
    }
}

/// A registered status of 400 to 499 says that the request was not carried out; 408 says nothing of
/// it, nor does what is not registered (<https://www.iana.org/assignments/http-status-codes>).
fn is_refusal(status: u16) -> bool {
    matches!(status, 400..=407 | 409..=417 | 421..=426 | 428 | 429 | 431 | 451)
}

pub(super) fn digest_of(value: &HeaderValue) -> Result<Digest, Trouble> {
    let text = value.to_str().ok().and_then(|text| Digest::parse(text).ok());
    text.ok_or(Trouble::Garbage("its Docker-Content-Digest is no digest"))
}

pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
