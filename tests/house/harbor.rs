//! `kind = "harbor"`: Harbor's API passes, but for what could move or delete an immutable tag.
//!
//! The stand-in behind taglock takes every request and remembers it; a request it has seen was
//! forwarded.

use crate::fake::Fake;
use crate::harness::*;
use crate::http::request;

const BASE: &str = "/api/v2.0/projects";

#[test]
fn what_could_move_or_delete_an_immutable_tag_is_not_forwarded() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "kind = \"harbor\"", RULES);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    let artifact = format!("prod/repositories/app/artifacts/{}", digest(&manifest("one")));
    let nested = "prod/repositories/team%252Fapp/artifacts/v1";
    for (method, path, told) in [
        ("POST", format!("{BASE}/{artifact}/tags"), "push the image"),
        ("POST", format!("{BASE}/prod/repositories/app/artifacts?from=a/b:v1"), "copied"),
        ("DELETE", format!("{BASE}/{artifact}/tags/v1"), "'prod/app'"),
        ("DELETE", format!("{BASE}/{artifact}"), "/v2/"),
        ("DELETE", format!("{BASE}/{nested}"), "'prod/team/app'"),
        ("DELETE", format!("{BASE}/{nested}/tags/v1"), "'prod/team/app'"),
        ("DELETE", format!("{BASE}/prod/repositories/team%2Fapp"), "'prod/team/app'"),
        ("DELETE", format!("{BASE}/prod"), "no project"),
    ] {
        let before = fake.seen().len();
        let answer = request(&taglock.address, method, &path, &[], b"{\"name\":\"v1\"}");
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{method} {path}");
        assert!(answer.message().contains(told), "{}", answer.message());
        assert_eq!(fake.seen().len(), before, "{method} {path} was forwarded");
    }
    let rest = "projects/prod/repositories/app/artifacts/v1/tags/v1";
    for path in [
        format!("/api/v2.0/{rest}/"),
        format!("/api/v2.0//{rest}"),
        format!("/api/v2.0/../v2.0/{rest}"),
        format!("/api/v2.0/x%2f..%2f{rest}"),
        format!("/api/v2.0/Projects{}", &rest[8..]),
        format!("/api/v2.0/%70rojects{}", &rest[8..]),
        format!("/api/v2.0/projects;x{}", &rest[8..]),
        format!("/API/v2.0/{rest}"),
        format!("/api//v2.0/{rest}"),
        format!("/api/internal/{rest}"),
    ] {
        for method in ["DELETE", "POST", "PUT", "PATCH"] {
            let before = fake.seen().len();
            let overridden = [("X-HTTP-Method-Override", "DELETE")];
            let answer = request(&taglock.address, method, &path, &overridden, b"");
            assert!(matches!(answer.status, 400 | 403 | 405), "{method} {path}: {answer:?}");
            assert_eq!(fake.seen().len(), before, "{method} {path} was forwarded");
        }
    }
}

#[test]
fn everything_else_of_harbors_passes_untouched() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "kind = \"harbor\"", RULES);
    for (method, path) in [
        ("GET", format!("{BASE}/prod/repositories/app/artifacts?with_tag=true")),
        ("POST", "/c/login".to_owned()),
        ("POST", BASE.to_owned()),
        ("PUT", format!("{BASE}/prod/repositories/app")),
        ("POST", format!("{BASE}/prod/repositories/team%252Fapp/artifacts/v1/scan")),
        // A mutable tag, and a repository without immutable ones.
        ("DELETE", format!("{BASE}/prod/repositories/app/artifacts/v1/tags/latest")),
        ("DELETE", format!("{BASE}/dev/repositories/app/artifacts/v1/tags/v1")),
        ("POST", format!("{BASE}/dev/repositories/app/artifacts?from=a/b:v1")),
        ("DELETE", format!("{BASE}/dev/repositories/app")),
        ("GET", "/harbor/projects".to_owned()),
    ] {
        let own =
            [("Cookie", "sid=1"), ("X-Harbor-CSRF-Token", "t"), ("X-HTTP-Method-Override", "PUT")];
        request(&taglock.address, method, &path, &own, b"");
        assert_eq!(fake.targets().last(), Some(&path), "{method}");
        let headers = fake.last_headers();
        for kept in ["cookie: sid=1", "x-harbor-csrf-token: t"] {
            assert!(headers.iter().any(|header| header == kept), "{headers:?}");
        }
        assert!(!headers.iter().any(|header| header.contains("override")), "{headers:?}");
    }
    // Without the kind, all of its writes are refused.
    let taglock = Taglock::before(&fake.address);
    assert_eq!(request(&taglock.address, "POST", "/c/login", &[], b"").status, 403);
}
