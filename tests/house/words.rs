//! What a registry says to a push or a pull reaches the client: its status, its words, and when to come
//! again. Only where something may have been written, or must be looked at, does taglock answer itself.

use crate::auth::{basic, with_tokens};
use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{Answer, request};

const QUOTA: &str =
    r#"{"errors":[{"code":"DENIED","message":"storage quota of 10 GB is used up"}]}"#;
const WORDS: &str = "storage quota of 10 GB is used up";

fn said(status: u16) -> Fault {
    let headers =
        vec![("retry-after", "120".to_owned()), ("content-type", "application/json".to_owned())];
    Fault::Answer(status, headers, QUOTA)
}

fn both(upstream: &str, test: impl Fn(&Fake, &Taglock)) {
    for fast in [true, false] {
        let fake = Fake::start();
        let keys = format!("fast_path = {fast}\n{upstream}");
        test(&fake, &Taglock::with(&fake.address, &keys, RULES));
    }
}

fn read(taglock: &Taglock, method: &str, tag: &str) -> Answer {
    let target = format!("/v2/prod/app/manifests/{tag}");
    request(&taglock.address, method, &target, &[("Accept", INDEX)], b"")
}

fn is_the_registrys(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.text(), QUOTA, "{what}: {answer:?}");
    assert_eq!(answer.header("Retry-After"), Some("120"), "{what}: {answer:?}");
    assert_eq!(answer.header("Content-Type"), Some("application/json"), "{what}: {answer:?}");
}

#[test]
fn a_push_that_the_registry_takes_with_another_success_is_created() {
    both("", |fake, taglock| {
        for status in [200, 202, 204] {
            for part in ["sha256:", "v"] {
                let tag = format!("v{status}-{}", part.len());
                let part = format!("/manifests/{part}");
                fake.plan("PUT", &part, Fault::DoneBut(status), 99);
                let image = manifest(&tag);
                for _ in 0..2 {
                    let answer = put(&taglock.address, "prod/app", &tag, &image);
                    assert_eq!(answer.status, 201, "{status} {part}: {answer:?}");
                    let named = answer.header("Docker-Content-Digest");
                    assert_eq!(named, Some(digest(&image).as_str()), "{status} {part}: {answer:?}");
                }
                fake.recover();
                assert_eq!(fake.tag("prod/app", &tag), Some(digest(&image)));
                let other = put(&taglock.address, "prod/app", &tag, &manifest("other"));
                assert_eq!(other.status, 409, "{status} {part}: {other:?}");
            }
        }
    });
}

#[test]
fn what_the_registry_says_to_a_push_by_digest_is_passed_on_after_one_try() {
    both("", |fake, taglock| {
        for status in [402, 403, 429, 507, 503] {
            let image = manifest(&status.to_string());
            let part = format!("/manifests/{}", digest(&image));
            fake.plan("PUT", &part, said(status), 99);
            let answer = put(&taglock.address, "prod/app", "v1", &image);
            is_the_registrys(&answer, status, "by digest");
            assert_eq!(fake.count("PUT", &part), 1, "{status}");
            fake.recover();
        }
        // None of them has bound the tag.
        assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    });
}

#[test]
fn what_the_registry_says_to_a_push_by_tag_reaches_the_client() {
    both("", |fake, taglock| {
        for status in [402, 403, 429] {
            let tag = format!("v{status}");
            let part = format!("/manifests/{tag}");
            fake.plan("PUT", &part, said(status), 99);
            let answer = put(&taglock.address, "prod/app", &tag, &manifest("one"));
            is_the_registrys(&answer, status, "by tag");
            fake.recover();
            let again = put(&taglock.address, "prod/app", &tag, &manifest("one"));
            assert_eq!(again.status, 201, "{status}: {again:?}");
        }
        // It may have been written: taglock looks, and says what it knows.
        for status in [500, 503, 507] {
            let tag = format!("v{status}");
            fake.plan("PUT", &format!("/manifests/{tag}"), said(status), 99);
            let answer = put(&taglock.address, "prod/app", &tag, &manifest("one"));
            assert!(answer.status >= 500, "{status}: {answer:?}");
            assert!(answer.message().contains(WORDS), "{status}: {answer:?}");
            assert!(answer.message().len() > WORDS.len(), "{status}: {answer:?}");
            fake.recover();
            let again = put(&taglock.address, "prod/app", &tag, &manifest("one"));
            assert_eq!(again.status, 201, "{status}: {again:?}");
        }
    });
}

#[test]
fn what_the_registry_says_to_a_pull_is_passed_on() {
    both("", |fake, taglock| {
        let image = manifest("one");
        assert_eq!(put(&taglock.address, "prod/app", "known", &image).status, 201);
        for status in [402, 403, 429, 451, 503] {
            for tag in ["known", "unknown"] {
                // To the tag, and to what it is bound to.
                for method in ["GET", "HEAD"] {
                    fake.plan(method, "/manifests/", said(status), 99);
                }
                let what = format!("{status} {tag}");
                is_the_registrys(&read(taglock, "GET", tag), status, &what);
                let head = read(taglock, "HEAD", tag);
                assert_eq!(head.status, status, "{what}: {head:?}");
                assert_eq!(head.header("Retry-After"), Some("120"), "{what}: {head:?}");
                fake.recover();
            }
        }
        assert_eq!(read(taglock, "GET", "known").body, image);
    });
}

#[test]
fn of_a_bound_tag_the_digest_is_told_where_the_registry_tells_none() {
    both("", |fake, taglock| {
        fake.hide_digests();
        let (image, there) = (manifest("one"), manifest("there"));
        assert_eq!(put(&taglock.address, "prod/app", "v1", &image).status, 201);
        assert_eq!(put(&fake.address, "prod/app", "old", &there).status, 201);
        for (tag, image) in [("v1", &image), ("old", &there)] {
            for method in ["GET", "HEAD", "GET", "HEAD"] {
                let answer = read(taglock, method, tag);
                assert_eq!(answer.status, 200, "{method} {tag}: {answer:?}");
                let named: Vec<_> = answer
                    .headers
                    .iter()
                    .filter(|(name, _)| name.eq_ignore_ascii_case("Docker-Content-Digest"))
                    .map(|(_, value)| value.clone())
                    .collect();
                assert_eq!(named, [digest(image)], "{method} {tag}: {answer:?}");
                assert!(method == "HEAD" || answer.body == *image, "{tag}: {answer:?}");
            }
        }
    });
}

/// A login page with 200, as some proxies before a registry have it.
#[test]
fn a_page_that_is_no_manifest_binds_no_tag() {
    both("", |fake, taglock| {
        let html = vec![("content-type", "text/html".to_owned())];
        for method in ["GET", "HEAD"] {
            fake.plan(method, "/manifests/", Fault::Answer(200, html.clone(), "<html>log in"), 99);
        }
        for method in ["GET", "HEAD"] {
            let answer = read(taglock, method, "v1");
            assert_eq!(answer.header("Docker-Content-Digest"), None, "{answer:?}");
        }
        let pushed = put(&taglock.address, "prod/app", "v1", &manifest("one"));
        assert!(pushed.status >= 500, "{pushed:?}");
        fake.recover();
        let pushed = put(&taglock.address, "prod/app", "v1", &manifest("one"));
        assert_eq!(pushed.status, 201, "{pushed:?}");
        // Of a tag that is bound, a page in the manifest's place is not passed on.
        for method in ["GET", "HEAD"] {
            fake.plan(method, "/manifests/", Fault::Answer(200, html.clone(), "<html>log in"), 99);
        }
        for method in ["GET", "HEAD"] {
            let answer = read(taglock, method, "v1");
            assert_eq!(answer.status, 502, "{method}: {answer:?}");
        }
    });
}

fn sha512(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha512};
    let hex: String = Sha512::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha512:{hex}")
}

#[test]
fn tags_pushed_by_a_sha512_are_published_by_it() {
    both("", |fake, taglock| {
        fake.know_sha512();
        let image = manifest("one");
        let named = sha512(&image);
        let set = format!("{named}?tag=a&tag=b");
        for _ in 0..2 {
            let answer = put(&taglock.address, "prod/app", &set, &image);
            assert_eq!(answer.status, 201, "{answer:?}");
            assert_eq!(answer.header("Docker-Content-Digest"), Some(named.as_str()), "{answer:?}");
        }
        for tag in ["a", "b"] {
            assert_eq!(fake.tag("prod/app", tag), Some(named.clone()), "{tag}");
            let pulled = read(taglock, "GET", tag);
            assert_eq!((pulled.status, &pulled.body), (200, &image), "{pulled:?}");
            let written = format!("/v2/prod/app/manifests/{tag}?digest={named}");
            let written = written.replace("sha512:", "sha512%3A");
            let targets = fake.targets();
            let plain = written.replace("%3A", ":");
            assert!(targets.iter().any(|own| *own == written || *own == plain), "{targets:?}");
        }
        let other = put(&taglock.address, "prod/app", "a", &manifest("two"));
        assert_eq!(other.status, 409, "{other:?}");
    });
}

#[test]
fn tags_by_a_sha512_are_refused_where_nothing_is_stored_by_digest_first() {
    both("stage = false", |fake, taglock| {
        fake.know_sha512();
        let image = manifest("one");
        let set = format!("{}?tag=a&tag=b", sha512(&image));
        let answer = put(&taglock.address, "prod/app", &set, &image);
        assert_eq!((answer.status, answer.code().as_str()), (400, "DIGEST_INVALID"), "{answer:?}");
        assert_eq!(fake.count("PUT", ""), 0, "{:?}", fake.seen());
        assert_eq!(put(&taglock.address, "prod/app", "a", &manifest("two")).status, 201);
    });
}

/// A client that has no token asks, is told by the registry what it needs, fetches that and asks once more.
#[test]
fn a_client_that_follows_the_challenge_once_is_let_in() {
    let rules = RULES
        .replace("mutability = \"immutable\"", "mutability = \"immutable\"\ndelete = \"keep\"");
    for fast in ["fast_path = true", "fast_path = false"] {
        let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
        let taglock = Taglock::with(&registry.address, fast, &rules);
        let follow = |method: &str, reference: &str, body: &[u8], actions: &str| {
            let target = format!("/v2/prod/app/manifests/{reference}");
            let kind = [("Content-Type", INDEX)];
            let refused = request(&taglock.address, method, &target, &kind, body);
            assert_eq!(refused.status, 401, "{method} {reference}: {refused:?}");
            let challenge = refused.header("WWW-Authenticate").unwrap();
            let value = |key: &str| {
                let start = challenge.find(&format!("{key}=\"")).unwrap() + key.len() + 2;
                challenge[start..].split('"').next().unwrap()
            };
            let scope = value("scope");
            let mut asked: Vec<_> = scope.rsplit(':').next().unwrap().split(',').collect();
            asked.sort_unstable();
            assert_eq!(asked.join(","), actions, "{method} {reference}: {challenge}");
            let token = format!("/token?service={}&scope={scope}", value("service"));
            let alice = [("Authorization", basic("alice:secret"))];
            let alice = [("Authorization", alice[0].1.as_str())];
            let token = request(&server.address, "GET", &token, &alice, b"");
            let token: serde_json::Value = serde_json::from_slice(&token.body).unwrap();
            let token = format!("Bearer {}", token["token"].as_str().unwrap());
            let headers = [kind[0], ("Authorization", token.as_str())];
            request(&taglock.address, method, &target, &headers, body)
        };
        let (one, two) = (manifest("one"), manifest("two"));
        for (reference, image) in [("v1".to_owned(), &one), (digest(&two), &two)] {
            let answer = follow("PUT", &reference, image, "pull,push");
            assert_eq!(answer.status, 201, "{fast}: {reference} {answer:?}");
        }
        for image in [&two, &one] {
            let answer = follow("DELETE", &digest(image), b"", "delete,pull");
            assert_eq!(answer.status, 202, "{fast}: {answer:?}");
        }
        // A tag is bound still, and nobody has learned of it without a token.
        let answer = follow("PUT", "v1", &two, "pull,push");
        assert_eq!(answer.status, 409, "{fast}: {answer:?}");
    }
}
