//! Takes a manifest in: bounded in bytes and in time, with a type and an encoding that leave one
//! reading of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderMap, HeaderValue};
use pingora::proxy::Session;
use pingora::{ErrorType, Result};
use tokio::time::timeout;

use super::error_response::Refusal;
use super::limits::{Crowd, Place};
use crate::registry::Manifest;
use crate::registry::media::MediaTypes;

/// What a manifest may take of taglock.
#[derive(Clone, Copy)]
pub struct Bounds<'a> {
    pub max: usize,
    pub time: Duration,
    pub crowd: &'a Arc<Crowd>,
    /// The client's.
    pub address: IpAddr,
}

/// What must hold before the body is read.
pub fn check(headers: &HeaderMap, media: &MediaTypes, max: usize) -> Result<HeaderValue, Refusal> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let media_type = match (types.next(), types.next()) {
        (Some(one), None) => one,
        (None, _) => return Err(Refusal::media_type("a manifest needs a Content-Type")),
        (Some(_), Some(_)) => return Err(Refusal::media_type("more than one Content-Type")),
    };
    if !media_type.to_str().is_ok_and(|text| media.may_write(text)) {
        return Err(Refusal::media_type(
            "this media type can't be pushed to a repository with immutable tags \
             (`upstream.media_types` adds types; Docker's schema 1 is never taken)",
        ));
    }
    // A registry that decodes would hash other bytes than were judged.
    if is_encoded(headers) {
        return Err(Refusal::media_type("a manifest with a Content-Encoding is not taken"));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > max as u64) {
        return Err(Refusal::too_large(max));
    }
    Ok(media_type.clone())
}

/// Whether the body is something else once it is decoded.
pub fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Reads the body to its end.
///
/// # Errors
/// The outer one where the client has left: there is nobody to answer.
pub async fn read(
    session: &mut Session,
    media_type: HeaderValue,
    bounds: Bounds<'_>,
) -> Result<Result<(Manifest, Place), Refusal>> {
    let mut place = bounds.crowd.arrival(bounds.address);
    if session.req_header().headers.contains_key(EXPECT) {
        // pingora never says so by itself.
        session.write_continue_response().await?;
    }
    match timeout(bounds.time, body(session, &bounds, &mut place)).await {
        Err(_) => Ok(Err(Refusal::slow_client())),
        Ok(Err(error)) if *error.etype() == ErrorType::ReadTimedout => {
            Ok(Err(Refusal::slow_client()))
        }
        Ok(Err(error)) => match error.etype() {
            // It may still read the answer.
            ErrorType::ConnectionClosed => Ok(Err(Refusal::incomplete())),
            // The client has left.
            ErrorType::ReadError | ErrorType::WriteError => Err(error.into_down()),
            // What it sends is no body.
            _ => Ok(Err(Refusal::malformed())),
        },
        Ok(Ok(Err(refusal))) => Ok(Err(refusal)),
        Ok(Ok(Ok(bytes))) => match bounds.crowd.admit(&mut place).await {
            Ok(()) => Ok(Ok((Manifest { bytes, media_type }, place))),
            Err(cap) => Ok(Err(Refusal::overloaded(cap))),
        },
    }
}

/// The whole body.
async fn body(
    session: &mut Session,
    bounds: &Bounds<'_>,
    place: &mut Place,
) -> Result<Result<Bytes, Refusal>> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = session.downstream_session.read_request_body().await? {
        let length = bytes.len() + chunk.len();
        if length > bounds.max {
            return Ok(Err(Refusal::too_large(bounds.max)));
        }
        if let Err(cap) = bounds.crowd.grow(place, length, bounds.max).await {
            return Ok(Err(Refusal::overloaded(cap)));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Ok(bytes.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(pairs: &[(&'static str, &'static str)]) -> Result<HeaderValue, u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let media = MediaTypes::new(Vec::new()).unwrap();
        check(&headers, &media, 1000).map_err(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn one_known_type_and_no_encoding_is_required() {
        const OCI: (&str, &str) = ("content-type", "application/vnd.oci.image.manifest.v1+json");
        assert!(checked(&[OCI]).is_ok());
        assert!(checked(&[OCI, ("content-encoding", "identity")]).is_ok());
        assert!(checked(&[OCI, ("content-length", "1000")]).is_ok());
        for (bad, status) in [
            (&[][..], 415),
            (&[OCI, OCI], 415),
            (&[("content-type", "application/json")], 415),
            (&[("content-type", "application/vnd.docker.distribution.manifest.v1+json")], 415),
            (&[OCI, ("content-encoding", "gzip")], 415),
            (&[OCI, ("content-length", "1001")], 413),
        ] {
            assert_eq!(checked(bad), Err(status), "{bad:?}");
        }
    }
}
