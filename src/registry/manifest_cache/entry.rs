//! A manifest in memory, and the answer that is made of it.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
    RANGE, REFERRER_POLICY, SERVER, STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tokio::time::Instant;

use super::accept::{Accepts, accepts};
use super::visibility::Standing;
use crate::name::Digest;
use crate::registry::Answer;
use crate::registry::client::CONTENT_DIGEST;

/// What of the registry's answer is of the manifest, or the same to everybody. Anything else might be
/// of the one client that asked first: a cookie, a request id, what is left of its rate.
const KEPT: [HeaderName; 15] = [
    CONTENT_TYPE,
    CONTENT_DIGEST,
    HeaderName::from_static("docker-distribution-api-version"),
    ETAG,
    LAST_MODIFIED,
    CACHE_CONTROL,
    VARY,
    SERVER,
    STRICT_TRANSPORT_SECURITY,
    CONTENT_SECURITY_POLICY,
    REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
    X_XSS_PROTECTION,
    HeaderName::from_static("permissions-policy"),
];

/// A request with one of these wants more than the manifest.
const CONDITIONS: [HeaderName; 6] =
    [RANGE, IF_RANGE, IF_NONE_MATCH, IF_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];

/// A manifest whose bytes have the digest it is kept under.
pub struct Kept {
    answer: Answer,
    /// Without parameters.
    media_type: Box<str>,
    /// Whether the registry gave it to a request that did not name its type.
    unnamed: bool,
    pub(super) standing: Arc<Standing>,
    /// When the registry was last seen to have it.
    pub(super) seen: ArcSwap<Instant>,
}

/// Whether a manifest is what a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The registry would answer the same.
    Whole,
    /// It would be a right answer, but perhaps another than the registry's.
    Loose,
    Not,
}

/// Whether a request wants a manifest and nothing else of it.
pub(super) fn is_plain(headers: &HeaderMap) -> bool {
    !CONDITIONS.iter().any(|name| headers.contains_key(name))
}

impl Kept {
    /// `None` for what may not be kept: bytes without the digest, an answer whose type is in doubt,
    /// or one that its registry wants nobody to store.
    pub(super) fn of(
        answer: &Answer,
        digest: &Digest,
        asked: &HeaderMap,
        (standing, seen): (Arc<Standing>, Instant),
    ) -> Option<Self> {
        let Answer { status, headers, body } = answer;
        if *status != StatusCode::OK || !digest.matches(body) {
            return None;
        }
        let one = |name: &HeaderName| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())?.to_str().ok()
        };
        let content_type = one(&CONTENT_TYPE)?;
        let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
        if headers.contains_key(CONTENT_DIGEST) {
            let named = Digest::parse(one(&CONTENT_DIGEST)?).ok()?;
            named.matches(body).then_some(())?;
        }
        let has = |name: HeaderName, word: &str| {
            let values = headers.get_all(name);
            values.iter().any(|value| {
                value.to_str().is_ok_and(|text| {
                    text.split(',').any(|member| member.trim().eq_ignore_ascii_case(word))
                })
            })
        };
        if !media_type.contains('/')
            || headers.contains_key(CONTENT_ENCODING)
            || has(CACHE_CONTROL, "no-store")
            || has(VARY, "*")
        {
            return None;
        }
        let unnamed = match accepts(asked, &media_type) {
            Accepts::ByName => false,
            // It was given all the same.
            Accepts::ByRange => true,
            Accepts::No => return None,
        };
        let mut kept = HeaderMap::with_capacity(8);
        for name in &KEPT {
            for value in headers.get_all(name) {
                kept.append(name, value.clone());
            }
        }
        kept.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        let answer = Answer { status: *status, headers: kept, body: body.clone() };
        let seen = ArcSwap::from_pointee(seen);
        Some(Self { answer, media_type: media_type.into(), unnamed, standing, seen })
    }

    /// What an older one of the same manifest was known to answer, this one is, too.
    pub(super) fn after(self, older: Option<&Self>) -> Self {
        Self { unnamed: self.unnamed || older.is_some_and(|older| older.unnamed), ..self }
    }

    pub(super) fn fit(&self, headers: &HeaderMap) -> Fit {
        match accepts(headers, &self.media_type) {
            Accepts::No => Fit::Not,
            _ if !is_plain(headers) => Fit::Loose,
            Accepts::ByName => Fit::Whole,
            // Some registries hide what is not named.
            Accepts::ByRange if self.unnamed => Fit::Whole,
            Accepts::ByRange => Fit::Loose,
        }
    }

    /// As the registry has answered; `Content-Length` and all, for a HEAD, too.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The bytes it takes.
    pub(super) fn weight(&self) -> usize {
        let headers = self.answer.headers.iter();
        let headers: usize = headers.map(|(name, value)| name.as_str().len() + value.len()).sum();
        // A header map takes as much again for its table.
        self.answer.body.len() + 2 * headers + self.media_type.len() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::name::Algorithm;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn kept(
        status: u16,
        lines: &[(&'static str, &str)],
        asked: &[(&'static str, &str)],
    ) -> Option<Kept> {
        let status = StatusCode::from_u16(status).unwrap();
        let body = Bytes::from_static(b"one");
        let answer = Answer { status, headers: headers(lines), body };
        let digest = Digest::of(Algorithm::Sha512, b"one");
        Kept::of(&answer, &digest, &headers(asked), (Arc::default(), Instant::now()))
    }

    #[test]
    fn only_what_is_surely_the_manifest_is_kept() {
        let own = Digest::of(Algorithm::Sha256, b"one").to_string();
        let other = Digest::of(Algorithm::Sha256, b"two").to_string();
        let (of, named) = (("content-type", OCI), "docker-content-digest");
        for (status, lines, keeps) in [
            (200, vec![of], true),
            (200, vec![of, (named, own.as_str())], true),
            (200, vec![of, (named, other.as_str())], false),
            (200, vec![of, (named, "nonsense")], false),
            (200, vec![], false),
            (200, vec![of, of], false),
            (200, vec![("content-type", "nonsense")], false),
            (200, vec![of, ("content-encoding", "gzip")], false),
            (200, vec![of, ("cache-control", "private, max-age=0")], true),
            (200, vec![of, ("cache-control", "private, No-Store")], false),
            (200, vec![of, ("vary", "Cookie")], true),
            (200, vec![of, ("vary", "Cookie, *")], false),
            (206, vec![of], false),
            (304, vec![of], false),
            (404, vec![of], false),
        ] {
            let kept = kept(status, &lines, &[("accept", OCI)]);
            assert_eq!(kept.is_some(), keeps, "{status} {lines:?}");
        }
        // The bytes decide, by each algorithm.
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for (bytes, keeps) in [(b"one", true), (b"two", false)] {
                let answer = Answer {
                    status: StatusCode::OK,
                    headers: headers(&[of]),
                    body: Bytes::from_static(bytes),
                };
                let digest = Digest::of(algorithm, b"one");
                let standing = (Arc::default(), Instant::now());
                let kept = Kept::of(&answer, &digest, &HeaderMap::new(), standing);
                assert_eq!(kept.is_some(), keeps, "{algorithm:?}");
            }
        }
    }

    #[test]
    fn nothing_of_the_first_client_is_in_the_answer() {
        let lines = [
            ("content-type", OCI),
            ("etag", "\"x\""),
            ("docker-distribution-api-version", "registry/2.0"),
            ("set-cookie", "sid=secret"),
            ("www-authenticate", "Bearer realm=\"x\""),
            ("ratelimit-remaining", "99;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
            ("x-request-id", "1"),
            ("date", "Wed, 25 Nov 2026 00:00:00 GMT"),
            ("connection", "keep-alive"),
            ("content-length", "3"),
        ];
        let kept = kept(200, &lines, &[]).unwrap();
        let mut names: Vec<_> = kept.answer().headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["content-length", "content-type", "docker-distribution-api-version", "etag"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_request_that_wants_something_else_is_the_registrys() {
        let named = kept(200, &[("content-type", OCI)], &[("accept", OCI)]).unwrap();
        let open = kept(200, &[("content-type", OCI)], &[("accept", "*/*")]).unwrap();
        for (asked, by_name, by_range) in [
            (vec![("accept", OCI)], Fit::Whole, Fit::Whole),
            (vec![], Fit::Loose, Fit::Whole),
            (vec![("accept", "*/*")], Fit::Loose, Fit::Whole),
            (vec![("accept", "text/plain")], Fit::Not, Fit::Not),
            (vec![("accept", OCI), ("range", "bytes=0-1")], Fit::Loose, Fit::Loose),
            (vec![("accept", OCI), ("if-none-match", "\"x\"")], Fit::Loose, Fit::Loose),
            (vec![("accept", "text/plain"), ("range", "bytes=0-1")], Fit::Not, Fit::Not),
        ] {
            let asked = headers(&asked);
            assert_eq!((named.fit(&asked), open.fit(&asked)), (by_name, by_range), "{asked:?}");
        }
        let again = kept(200, &[("content-type", OCI)], &[("accept", OCI)]).unwrap();
        assert_eq!(again.after(Some(&open)).fit(&headers(&[])), Fit::Whole);
    }
}
