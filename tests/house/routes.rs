//! The spellings that moved a tag on a real registry, sent as raw bytes through taglock.

use crate::harness::*;
use crate::http::{self, request, try_raw};

/// Targets that reach `prod/app:v1` on some registry, or behind some proxy before it.
const SPELLINGS: [&str; 24] = [
    "/v2/prod%2Fapp/manifests/v1",
    "/v2/prod%2Fapp%2Fmanifests%2Fv1",
    "/v2/prod/app/manifests/%761",
    "/v2/prod/app/%6danifests/v1",
    "/%76%32/prod/app/manifests/v1",
    "/v2//prod/app/manifests/v1",
    "//v2/prod/app/manifests/v1",
    "/v2/x/../prod/app/manifests/v1",
    "/v2/x/%2e%2e/prod/app/manifests/v1",
    "/v2/./prod/app/manifests/v1",
    "/foo/../v2/prod/app/manifests/v1",
    "/foo/%2e%2e/v2/prod/app/manifests/v1",
    "/v2/prod/app/manifests/v1#x",
    "/v2/prod/app/manifests/v1?x=1",
    "/v2/prod/app/manifests/v1/",
    "/v2/prod/app/manifests/v1;x=1",
    "/V2/prod/app/manifests/v1",
    "http://evil.example/v2/prod/app/manifests/v1",
    "/v2/prod/app/blobs/uploads/..%2f..%2fmanifests%2fv1",
    "/v2/other/blobs/uploads/..%2f..%2f..%2fprod%2fapp%2fmanifests%2fv1",
    "/v2/other/blobs/uploads/../../../prod/app/manifests/v1",
    "/artifacts-uploads/../v2/prod/app/manifests/v1",
    "/v2/prod\\app/manifests/v1",
    "/v2/prod/app/manifests/v1%00",
];

#[test]
fn no_spelling_moves_a_protected_tag() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let one = manifest("one");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 201);
    for target in SPELLINGS {
        for method in ["PUT", "POST", "PATCH", "DELETE"] {
            let bytes =
                http::bytes("x", method, target, &[("Content-Type", INDEX)], &manifest("two"));
            let answer = try_raw(&taglock.address, &bytes).expect(target);
            assert!((400..410).contains(&answer.status), "{method} {target}: {}", answer.status);
            let now = tag_of(&registry.address, "prod/app", "v1");
            assert_eq!(now, Some(digest(&one)), "{method} {target}");
        }
    }
}

/// The same targets, sent to the registry itself, do move it: the table above has teeth.
#[test]
fn some_of_the_spellings_move_it_without_taglock() {
    let registry = Registry::start();
    let mut moved = 0;
    for (n, target) in SPELLINGS.iter().enumerate() {
        let bytes = manifest(&n.to_string());
        put(&registry.address, "prod/app", "v1", &manifest("before"));
        let request = http::bytes("x", "PUT", target, &[("Content-Type", INDEX)], &bytes);
        let _ = try_raw(&registry.address, &request);
        moved += usize::from(tag_of(&registry.address, "prod/app", "v1") == Some(digest(&bytes)));
    }
    assert!(moved >= 5, "only {moved} moved");
}

#[test]
fn doors_outside_v2_are_shut_for_writes_and_say_how_to_open_them() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    for (method, target) in [
        ("POST", "/api/v2.0/projects/p/repositories/r/artifacts?from=a/b:c"),
        ("DELETE", "/api/v2.0/projects/p/repositories/r/artifacts/x/tags/v1"),
        ("PUT", "/api/v1/repository/prod/app/tag/v1"),
        ("PUT", "/v1/repositories/prod/app/tags/v1"),
        ("POST", "/artifactory/api/docker/r/v2/promote"),
    ] {
        let answer = request(&taglock.address, method, target, &[], b"{}");
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{target}");
        assert!(answer.message().contains("upstream.token_paths"), "{}", answer.message());
    }
    // Reading passes: the registry's own 404, not ours.
    assert_eq!(
        http::get(&taglock.address, "/api/v2.0/systeminfo").comparable(),
        http::get(&registry.address, "/api/v2.0/systeminfo").comparable()
    );
    // The token service passes, GET and POST; Debian's registry has none.
    for target in ["/service/token", "/token?service=x&scope=y"] {
        let answer = request(&taglock.address, "POST", target, &[], b"grant_type=password");
        assert_eq!(answer.status, 404, "{target}");
    }
}

#[test]
fn only_hosts_that_are_served_are_answered() {
    let registry = Registry::start();
    let taglock = Taglock::from_file(|address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\nhosts = [\"registry.example.com\", \"{address}\"]\n\
             [upstream]\nurl = \"http://{}\"\n[ledger]\npath = \"{dir}/ledger\"\n\
             [admin]\naddress = \"{admin}\"\n{RULES}",
            registry.address
        )
    });
    for (host, status) in [
        ("registry.example.com", 200),
        ("Registry.Example.com:80", 200),
        ("evil.example", 421),
        ("registry.example.com:81", 421),
        ("registry.example.com.evil.example", 421),
    ] {
        let answer = request(&taglock.address, "GET", "/v2/", &[("Host", host)], b"");
        assert_eq!(answer.status, status, "{host}");
    }
    assert_eq!(http::get(&taglock.address, "/v2/").status, 200);
}
