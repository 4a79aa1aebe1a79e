//! A client's own request for a manifest, by the digest its tag is bound to.

use http::header::{ACCEPT_ENCODING, HeaderName, IF_RANGE, RANGE};
use http::{Method, StatusCode};

use super::status::digest_of;
use super::{CONTENT_DIGEST, Client, Relayed};
use crate::name::Digest;
use crate::registry::media::MediaTypes;
use crate::registry::{Answer, Caller, Reading, Serving, Trouble, wire};

/// What taglock reads of a manifest at least, whatever `limits.manifest` says of pushes: it must
/// never refuse what the registry serves. Registries take 4 MiB, few up to 32; each manifest is in
/// memory for the time of its check.
pub(super) const MAX_READ: usize = 64 << 20;

/// What is not sent on: a part can't be checked against the digest of the whole, nor can an
/// encoded body.
pub const UNSENT: [HeaderName; 3] = [RANGE, IF_RANGE, ACCEPT_ENCODING];

impl Client {
    pub(super) async fn serve_manifest(
        &self,
        caller: &Caller,
        path: &str,
        digest: &Digest,
        reading: Reading,
    ) -> Serving {
        let answer = match self.read_as_client(caller, path, reading).await {
            Ok(answer) => answer,
            Err(trouble) => return Serving::Unclear(trouble),
        };
        match checked(answer, digest, reading, &self.media) {
            Checked::Unproven(answer) => {
                match self.read_as_client(caller, path, Reading::Get).await {
                    Ok(whole) if whole.status == StatusCode::OK && has(&whole, digest) => {
                        Serving::Good(answer)
                    }
                    Ok(whole) if whole.status == StatusCode::OK => Serving::Wrong(BYTES),
                    Ok(other) => Serving::Unclear(Trouble::from(&other)),
                    Err(trouble) => Serving::Unclear(trouble),
                }
            }
            Checked::Serving(serving) => serving,
        }
    }

    pub(super) async fn read_as_client(
        &self,
        caller: &Caller,
        path: &str,
        reading: Reading,
    ) -> Result<Answer, Trouble> {
        let mut headers = caller.headers.clone();
        for name in UNSENT {
            headers.remove(name);
        }
        let method = match reading {
            Reading::Get => Method::GET,
            Reading::Head => Method::HEAD,
        };
        self.read_with(headers, caller, &method, path, self.max_manifest).await
    }
}

/// Whether a client's own request, by whatever reference, was answered with the manifest of this
/// digest: its bytes have it, or, to a HEAD, the registry names it.
pub fn is_of(answer: &Answer, digest: &Digest, reading: Reading) -> bool {
    let named = answer.headers.get(CONTENT_DIGEST).map(digest_of);
    let is_named = |named: &Result<Digest, Trouble>| named.as_ref().is_ok_and(|n| n == digest);
    answer.status == StatusCode::OK
        && match reading {
            Reading::Get => named.as_ref().is_none_or(is_named) && digest.matches(&answer.body),
            Reading::Head => named.as_ref().is_some_and(is_named) && !is_schema1(answer),
        }
}

fn is_manifest(answer: &Answer, media: &MediaTypes) -> bool {
    answer.content_type().is_some_and(|text| media.may_read(text))
}

fn is_schema1(answer: &Answer) -> bool {
    answer.content_type().is_some_and(MediaTypes::is_schema1)
}

/// Whether these are the bytes of a signed manifest of schema 1 whose digest this is: such a digest
/// leaves the signatures out.
pub(super) fn is_schema1_of(body: &[u8], digest: &Digest) -> bool {
    wire::schema1_payload(body).is_some_and(|payload| digest.matches(&payload))
}

/// Whether an answer's bytes have this digest. What a registry says of their type switches nothing off:
/// a tag that was bound by a push is of no schema 1, and its payload has another digest.
fn has(answer: &Answer, digest: &Digest) -> bool {
    digest.matches(&answer.body) || is_schema1(answer) && is_schema1_of(&answer.body, digest)
}

impl Relayed {
    /// Whether this is what a tag that is bound to the digest of this name may be answered with, if its
    /// bytes have that digest, as [`Registry::serve`](crate::registry::Registry::serve) finds it without
    /// asking again. What isn't may be good all the same.
    pub fn is_plainly(&self, name: &str) -> bool {
        let good = matches!(self.status(), StatusCode::OK | StatusCode::NOT_MODIFIED);
        good && !self.names_another(name) && !self.is_unproven()
    }

    /// Whether this is a manifest whose digest the registry does not name.
    pub fn is_unnamed(&self) -> bool {
        self.status() == StatusCode::OK && !self.names_any()
    }
}

const BYTES: &str = "the manifest's bytes do not have its digest";
const NAMED: &str = "its Docker-Content-Digest names another manifest";

enum Checked {
    Serving(Serving),
    /// To a HEAD, of a manifest that is named by another algorithm, or is of schema 1, or of a type that
    /// is no manifest's: only the bytes can tell.
    Unproven(Answer),
}

fn checked(answer: Answer, digest: &Digest, reading: Reading, media: &MediaTypes) -> Checked {
    let serving = match answer.status {
        StatusCode::OK | StatusCode::NOT_MODIFIED => {
            let named = match answer.headers.get(CONTENT_DIGEST).map(digest_of).transpose() {
                Ok(named) => named,
                Err(trouble) => return Checked::Serving(Serving::Unclear(trouble)),
            };
            let whole = answer.status == StatusCode::OK && reading == Reading::Get;
            let head = answer.status == StatusCode::OK && reading == Reading::Head;
            match named {
                _ if whole && !has(&answer, digest) => Serving::Wrong(BYTES),
                // Of a page of whoever stands before the registry, too.
                None if head && !is_manifest(&answer, media) => return Checked::Unproven(answer),
                None => Serving::Good(answer),
                Some(named) if named == *digest && head && is_schema1(&answer) => {
                    return Checked::Unproven(answer);
                }
                Some(named) if named == *digest => Serving::Good(answer),
                Some(named) if whole && named.matches(&answer.body) => Serving::Good(answer),
                Some(named) if named.algorithm() != digest.algorithm() && !whole => {
                    return Checked::Unproven(answer);
                }
                Some(_) => Serving::Wrong(NAMED),
            }
        }
        StatusCode::NOT_FOUND => Serving::NotFound(answer),
        status if status.is_client_error() || status.is_server_error() => Serving::Other(answer),
        status => Serving::Unclear(Trouble::Status(status.as_u16())),
    };
    Checked::Serving(serving)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::CONTENT_TYPE;
    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::name::Algorithm;

    fn answer(status: u16, named: Option<&Digest>, content_type: &str, body: &str) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(named) = named {
            headers.insert(CONTENT_DIGEST, named.to_string().parse().unwrap());
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn label(checked: &Checked) -> &'static str {
        match checked {
            Checked::Unproven(_) => "unproven",
            Checked::Serving(Serving::Good(_) | Serving::Kept(_)) => "good",
            Checked::Serving(Serving::NotFound(_)) => "not found",
            Checked::Serving(Serving::Other(_)) => "other",
            Checked::Serving(Serving::Wrong(_)) => "wrong",
            Checked::Serving(Serving::Unclear(_)) => "unclear",
        }
    }

    #[test]
    fn only_the_digests_own_bytes_are_good() {
        const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
        const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        let one = Digest::of(Algorithm::Sha256, b"one");
        let long = Digest::of(Algorithm::Sha512, b"one");
        let two = Digest::of(Algorithm::Sha256, b"two");
        let media = MediaTypes::new(Vec::new()).unwrap();
        let (get, head) = (Reading::Get, Reading::Head);
        for (reading, status, named, content_type, body, expected) in [
            (get, 200, Some(&one), OCI, "one", "good"),
            (get, 200, None, OCI, "one", "good"),
            (get, 200, Some(&long), OCI, "one", "good"),
            (get, 200, Some(&one), OCI, "two", "wrong"),
            (get, 200, None, OCI, "two", "wrong"),
            (get, 200, Some(&two), OCI, "two", "wrong"),
            (get, 200, Some(&two), OCI, "one", "wrong"),
            (get, 200, Some(&one), SCHEMA1, "one and signatures", "wrong"),
            (get, 200, Some(&one), SCHEMA1, "one", "good"),
            (get, 200, Some(&two), SCHEMA1, "one and signatures", "wrong"),
            (get, 200, None, SCHEMA1, "one and signatures", "wrong"),
            (head, 200, Some(&one), OCI, "", "good"),
            (head, 200, None, OCI, "", "good"),
            (head, 200, None, "text/html", "", "unproven"),
            (head, 200, Some(&two), OCI, "", "wrong"),
            (head, 200, Some(&long), OCI, "", "unproven"),
            (head, 200, Some(&one), SCHEMA1, "", "unproven"),
            (get, 304, None, OCI, "", "good"),
            (get, 304, Some(&one), OCI, "", "good"),
            (get, 304, Some(&two), OCI, "", "wrong"),
            (get, 404, None, OCI, "", "not found"),
            (get, 401, None, OCI, "", "other"),
            (get, 429, None, OCI, "", "other"),
            (head, 503, None, OCI, "", "other"),
            (get, 206, Some(&one), OCI, "one", "unclear"),
            (get, 307, None, OCI, "", "unclear"),
        ] {
            let answer = answer(status, named, content_type, body);
            let found = label(&checked(answer.clone(), &one, reading, &media));
            assert_eq!(found, expected, "{reading:?} {answer:?}");
        }
    }
}
