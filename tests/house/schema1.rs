//! Docker's schema 1, whose digest is not that of its bytes: it opens no door to other bytes.

use base64::prelude::*;

use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{Answer, request};

const SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const UNSIGNED: &str = "application/vnd.docker.distribution.manifest.v1+json";

/// A signed manifest, and its digest: that of the manifest before it was signed.
fn signed(seed: &str) -> (Vec<u8>, String) {
    let head = format!(
        "{{\n   \"schemaVersion\": 1,\n   \"name\": \"prod/app\",\n   \"tag\": \"old\",\n   \
         \"architecture\": \"{seed}\",\n   \"fsLayers\": [],\n   \"history\": []"
    );
    let tail = "\n}";
    let protected = serde_json::json!({
        "formatLength": head.len(),
        "formatTail": BASE64_URL_SAFE_NO_PAD.encode(tail),
        "time": "2015-03-01T12:00:00Z",
    });
    let protected = BASE64_URL_SAFE_NO_PAD.encode(protected.to_string());
    let signature = serde_json::json!([{
        "header": { "jwk": { "crv": "P-256", "kid": "x", "kty": "EC", "x": "eA", "y": "eQ" }, "alg": "ES256" },
        "signature": BASE64_URL_SAFE_NO_PAD.encode("nonsense"),
        "protected": protected,
    }]);
    let bytes = format!("{head},\n   \"signatures\": {signature}{tail}");
    (bytes.into_bytes(), digest(format!("{head}{tail}").as_bytes()))
}

fn read(taglock: &Taglock, method: &str, tag: &str, user: &str) -> Answer {
    let accept = format!("{INDEX}, {OCI}, {SIGNED}, {UNSIGNED}");
    let headers = [("Accept", accept.as_str()), ("Authorization", user)];
    let target = format!("/v2/prod/app/manifests/{tag}");
    request(&taglock.address, method, &target, &headers, b"")
}

#[test]
fn a_type_of_schema_1_does_not_make_other_bytes_of_a_pushed_tag_good() {
    for fast in ["fast_path = true", "fast_path = false"] {
        let fake = Fake::start();
        let taglock = Taglock::with(&fake.address, fast, RULES);
        let pushed = manifest("one");
        assert_eq!(put(&taglock.address, "prod/app", "v1", &pushed).status, 201);
        assert_eq!(read(&taglock, "GET", "v1", "Basic known").body, pushed);
        let (other, _) = signed("evil");
        let other: &'static str = String::from_utf8(other).unwrap().leak();
        let mut stranger = 0;
        for media_type in [
            SIGNED,
            UNSIGNED,
            "application/vnd.docker.distribution.manifest.v1+json; charset=utf-8",
        ] {
            for evil in [r#"{"schemaVersion":1,"evil":true}"#, other] {
                for method in ["GET", "HEAD"] {
                    let what = format!("{fast}: {method} {media_type} {evil:.20}");
                    let named = digest(&pushed);
                    let headers = vec![
                        ("content-type", media_type.to_owned()),
                        ("docker-content-digest", named),
                    ];
                    let fault = Fault::Answer(200, headers, evil);
                    for part in ["manifests/sha256:", "/manifests/"] {
                        for of in ["GET", "HEAD"] {
                            fake.plan(of, part, fault.clone(), 99);
                        }
                        // The registry has let the first one in before; the second asks by the tag first.
                        stranger += 1;
                        let second = format!("Basic {stranger}");
                        let users = if part == "/manifests/" { 2 } else { 1 };
                        for user in &["Basic known", &second][..users] {
                            let answer = read(&taglock, method, "v1", user);
                            assert_eq!(answer.status, 502, "{what} {part} {user}: {answer:?}");
                            assert!(!answer.text().contains("evil"), "{what}: {answer:?}");
                        }
                        fake.recover();
                    }
                }
            }
        }
        assert_eq!(read(&taglock, "GET", "v1", "Basic known").body, pushed);
        assert_eq!(read(&taglock, "GET", "v1", "Basic new").body, pushed);
    }
}

#[test]
fn a_manifest_of_schema_1_that_was_there_before_taglock_is_adopted_and_stays() {
    for fast in ["fast_path = true", "fast_path = false"] {
        let fake = Fake::start();
        let taglock = Taglock::with(&fake.address, fast, RULES);
        let (old, its_digest) = signed("old");
        fake.place("prod/app", "old", &its_digest, (&old, SIGNED));
        let is_old = |method: &str, user: &str| {
            let answer = read(&taglock, method, "old", user);
            assert_eq!(answer.status, 200, "{fast} {method}: {answer:?}");
            assert_eq!(answer.header("Docker-Content-Digest"), Some(its_digest.as_str()));
            assert_eq!(answer.header("Content-Type"), Some(SIGNED));
            assert!(method == "HEAD" || answer.body == old, "{fast}: {answer:?}");
        };
        is_old("GET", "Basic a");
        is_old("HEAD", "Basic a");
        is_old("GET", "Basic b");
        // Moved at the registry itself: pulls stay.
        let (new, new_digest) = signed("new");
        fake.place("prod/app", "old", &new_digest, (&new, SIGNED));
        for user in ["Basic a", "Basic c"] {
            is_old("GET", user);
            is_old("HEAD", user);
        }
        // Other bytes than its payload's are none of it.
        fake.place("prod/app", "old", &its_digest, (&new, SIGNED));
        for user in ["Basic a", "Basic d"] {
            assert_eq!(read(&taglock, "GET", "old", user).status, 502, "{fast} {user}");
        }
        assert_eq!(put(&taglock.address, "prod/app", "old", &manifest("other")).status, 409);
    }
}
