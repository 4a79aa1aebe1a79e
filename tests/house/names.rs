//! Registries that know one tag by several names: whatever the client's spelling, there is one
//! winner.

use crate::fake::Fake;
use crate::harness::*;
use crate::http::{Answer, request};

fn put_at(address: &str, target: &str, manifest: &[u8]) -> u16 {
    request(address, "PUT", target, &[("Content-Type", INDEX)], manifest).status
}

fn pull(address: &str, target: &str) -> Answer {
    request(address, "GET", target, &[("Accept", INDEX)], b"")
}

#[test]
fn a_tag_has_one_image_under_all_its_names() {
    let registry = Registry::start();
    let upstream = "kind = \"quay\"\ntag_case = \"fold\"\n\
                    aliases = { \"old/app\" = \"prod/app\", \"legacy/**\" = \"prod/**\" }\n";
    let rules = "[[rule]]\nname = \"r\"\nrepositories = [\"prod/**\", \"library/**\"]\n\
                 mutability = \"immutable\"\n";
    let taglock = Taglock::with(&registry.address, upstream, rules);
    let (one, two) = (manifest("one"), manifest("two"));
    for (first, second, name, tag) in [
        ("old/app/manifests/V1", "prod/app/manifests/v1", "prod/app", "v1"),
        ("prod/app/manifests/v2", "legacy/app/manifests/V2", "prod/app", "v2"),
        ("ubuntu/manifests/V3", "library/ubuntu/manifests/v3", "library/ubuntu", "v3"),
        ("library/ubuntu/manifests/v4", "ubuntu/manifests/v4", "library/ubuntu", "v4"),
    ] {
        let (first, second) = (format!("/v2/{first}"), format!("/v2/{second}"));
        assert_eq!(put_at(&taglock.address, &first, &one), 201, "{first}");
        assert_eq!(put_at(&taglock.address, &second, &two), 409, "{second}");
        assert_eq!(put_at(&taglock.address, &second, &one), 201, "{second}");
        assert_eq!(tag_of(&registry.address, name, tag), Some(digest(&one)));
        for target in [&first, &second] {
            assert_eq!(pull(&taglock.address, target).body, one, "{target}");
            let answer = request(&taglock.address, "DELETE", target, &[], b"");
            assert_eq!(answer.status, 405, "{target}");
        }
        let set = format!(
            "{}/{}?tag={}",
            &second[..second.rfind('/').unwrap()],
            digest(&two),
            tag.to_uppercase()
        );
        assert_eq!(put_at(&taglock.address, &set, &two), 409, "{set}");
        assert_eq!(tag_of(&registry.address, name, tag), Some(digest(&one)));
    }
    // Both spellings of a tag from before taglock are one, and a DELETE by digest counts for it.
    put(&registry.address, "prod/older", "v1", &one);
    let by_digest = format!("/v2/legacy/older/manifests/{}", digest(&one));
    assert_eq!(request(&taglock.address, "DELETE", &by_digest, &[], b"").status, 405);
}

/// A registry whose list of tags has another case than the ledger's key.
#[test]
fn a_listed_tag_counts_in_its_canonical_case() {
    let fake = Fake::start();
    let one = manifest("one");
    assert_eq!(put(&fake.address, "prod/app", "V1", &one).status, 201);
    assert_eq!(put(&fake.address, "prod/app", "v1", &one).status, 201);
    let taglock = Taglock::with(&fake.address, "kind = \"gitea\"", RULES);
    let target = format!("/v2/prod/app/manifests/{}", digest(&one));
    let answer = request(&taglock.address, "DELETE", &target, &[], b"");
    assert_eq!(answer.status, 405, "{}", answer.text());
    assert!(answer.message().contains("'v1'"), "{}", answer.message());
}

/// Two paths and the root are one registry; taglock asks where the first mount is.
#[test]
fn a_mounted_repository_is_asked_for_in_one_place() {
    let registry = Registry::with("http: { addr: {address}, prefix: /repository/hosted/ }");
    let mounts = "mount = [{ path = \"/repository/hosted\", repository = \"hosted\" },\n\
                  { path = \"/repository/group\", repository = \"hosted\" }]\n";
    let rules =
        "[[rule]]\nname = \"r\"\nrepositories = \"hosted/**\"\nmutability = \"immutable\"\n";
    let taglock = Taglock::with(&registry.address, mounts, rules);
    let (one, two) = (manifest("one"), manifest("two"));
    let hosted = "/repository/hosted/v2/app/manifests/v1";
    assert_eq!(put_at(&taglock.address, hosted, &one), 201);
    let own = pull(&registry.address, hosted);
    assert_eq!((own.status, own.body), (200, one.clone()));
    for target in [hosted, "/repository/group/v2/app/manifests/v1", "/v2/hosted/app/manifests/v1"] {
        assert_eq!(put_at(&taglock.address, target, &two), 409, "{target}");
        assert_eq!(put_at(&taglock.address, target, &one), 201, "{target}");
        assert_eq!(pull(&taglock.address, target).body, one, "{target}");
        assert_eq!(request(&taglock.address, "DELETE", target, &[], b"").status, 405, "{target}");
    }
    for target in [
        "/repository/hosted/%762/app/manifests/v1",
        "/repository//hosted/v2/app/manifests/v1",
        "/repository/other/v2/app/manifests/v1",
    ] {
        assert_eq!(put_at(&taglock.address, target, &two), 400, "{target}");
        assert_eq!(pull(&taglock.address, target).status, 400, "{target}");
    }
    assert_eq!(pull(&registry.address, hosted).body, one);
}

#[test]
fn another_registrys_namespace_is_refused_where_tags_are_immutable() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "namespace = \"docker.io\"", RULES);
    let one = manifest("one");
    assert_eq!(put_at(&taglock.address, "/v2/prod/app/manifests/v1?ns=docker.io", &one), 201);
    for query in ["ns=quay.io", "n%73=quay.io", "ns=docker.io&ns=quay.io"] {
        let target = format!("/v2/prod/app/manifests/v1?{query}");
        assert_eq!(pull(&taglock.address, &target).status, 400, "{query}");
    }
    assert_eq!(pull(&taglock.address, "/v2/prod/app/manifests/v1").status, 200);
    assert_eq!(pull(&taglock.address, "/v2/other/manifests/v1?ns=quay.io").status, 404);
}

#[test]
fn an_opened_path_takes_every_method_and_opens_nothing_beside_it() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "open_paths = [\"/api/v1/users\"]", RULES);
    for (target, passes) in [
        ("/api/v1/users/a", true),
        ("/api/v1/repository/prod/app/tag/v1", false),
        ("/api/v1/users/..%2frepository", false),
        ("/v1/repositories/prod/app/tags/v1", false),
    ] {
        let before = fake.seen().len();
        request(&taglock.address, "PUT", target, &[], b"{}");
        assert_eq!(fake.seen().len() > before, passes, "{target}");
    }
}

#[test]
fn operators_may_call_a_tag_by_any_of_its_names() {
    use crate::operators::{config, expect, expect_json, push, started, with_blob};
    let registry = Registry::start();
    let upstream = "tag_case = \"fold\"\naliases = { \"old/app\" = \"prod/app\" }\n";
    let taglock = started(&registry.address, upstream, "");
    push(&taglock.address, "prod/app:v1", "one");
    with_blob(&registry, "prod/app", &[]);
    let file = config(&taglock);
    let shown = |file: &std::path::Path| expect_json(file, &["ledger", "show", "old/app:V1"], 0);
    assert_eq!(shown(&file)["repository"], "prod/app");
    assert_eq!(shown(&file)["digest"], digest(&manifest("one")));
    let list = ["ledger", "list", "--repository", "old/app", "--json"];
    assert_eq!(expect(&file, &list, 0).0.lines().count(), 1);
    assert_eq!(expect_json(&file, &["explain", "old/app:V1"], 0)["repository"], "prod/app");
    expect(&file, &["ledger", "import", "old/app"], 0);
    expect(&file, &["ledger", "release", "old/app:V1", "--reason", "a test"], 0);
    expect(&file, &["ledger", "show", "prod/app:v1"], 1);
}
