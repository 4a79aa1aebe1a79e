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

/// A request that names `prod/app` by each route, without its query.
fn routes_of_a_protected_repository() -> Vec<(&'static str, String)> {
    let digest = digest(&manifest("one"));
    let routes = [
        ("GET", "manifests/v1"),
        ("HEAD", "manifests/v1"),
        ("GET", "manifests/latest"),
        ("GET", "manifests/{D}"),
        ("PUT", "manifests/v1"),
        ("PUT", "manifests/latest"),
        ("DELETE", "manifests/v1"),
        ("DELETE", "manifests/{D}"),
        ("GET", "blobs/{D}"),
        ("HEAD", "blobs/{D}"),
        ("DELETE", "blobs/{D}"),
        ("GET", "tags/list"),
        ("GET", "referrers/{D}"),
        ("POST", "blobs/uploads/"),
        ("PATCH", "blobs/uploads/7"),
        ("PUT", "blobs/uploads/7"),
        ("GET", "blobs/uploads/7"),
        ("DELETE", "blobs/uploads/7"),
    ];
    routes.map(|(method, path)| (method, path.replace("{D}", &digest))).into()
}

#[test]
fn without_a_namespace_no_ns_is_taken_where_tags_are_immutable() {
    let fake = Fake::start();
    for fast_path in [true, false] {
        let taglock = Taglock::with(&fake.address, &format!("fast_path = {fast_path}"), RULES);
        let before = fake.seen().len();
        for (method, path) in routes_of_a_protected_repository() {
            for query in [
                "ns=evil.example",
                "ns=docker.io",
                "ns=",
                "ns",
                "NS=evil.example",
                "%6es=evil.example",
                "x=1;ns=evil.example",
                "ns=a&ns=b",
                "from=other/app&ns=evil.example",
            ] {
                let target = format!("/v2/prod/app/{path}?{query}");
                let body = if method == "PUT" { manifest("one") } else { Vec::new() };
                let headers = [("Content-Type", INDEX)];
                let answer = request(&taglock.address, method, &target, &headers, &body);
                assert_eq!(answer.status, 400, "{method} {target}");
                // A write of a manifest has a stricter look at its whole query.
                let told = answer.text().contains("`upstream.namespace`");
                assert!(told || matches!(method, "HEAD" | "PUT"), "{method} {target}: {answer:?}");
            }
        }
        assert_eq!(fake.seen().split_off(before), Vec::<String>::new());
        // Nobody has bound anything, and where no tag is immutable, it is the registry's business.
        put(&fake.address, "prod/app", "v1", &manifest("one"));
        assert_eq!(pull(&taglock.address, "/v2/prod/app/manifests/v1").body, manifest("one"));
        put(&fake.address, "open/app", "v1", &manifest("two"));
        for target in ["/v2/open/app/manifests/v1?ns=evil.example", "/v2/open/app/tags/list?ns=x"] {
            pull(&taglock.address, target);
            assert_eq!(fake.targets().last().map(String::as_str), Some(target));
        }
        // Where a blob is to be mounted from is no repository that the request writes to.
        let target = "/v2/open/app/blobs/uploads/?from=prod/app&ns=evil.example";
        request(&taglock.address, "POST", target, &[], b"");
        assert_eq!(fake.targets().last().map(String::as_str), Some(target));
    }
}

#[test]
fn without_a_namespace_dry_runs_go_on() {
    let fake = Fake::start();
    let rules = RULES.replacen("mutability", "enforce = false\nmutability", 1);
    let taglock = Taglock::with(&fake.address, "", &rules);
    put(&fake.address, "prod/app", "v1", &manifest("one"));
    let target = "/v2/prod/app/manifests/v1?ns=evil.example";
    assert_eq!(pull(&taglock.address, target).status, 200, "nothing is bound in a dry run");
}

#[test]
fn a_mirror_of_docker_hub_takes_its_namespace_and_no_other() {
    let fake = Fake::start();
    put(&fake.address, "prod/app", "v1", &manifest("one"));
    for (upstream, own, other) in [
        ("kind = \"docker-hub\"", "docker.io", "quay.io"),
        ("kind = \"docker-hub\"\nnamespace = \"quay.io\"", "quay.io", "docker.io"),
    ] {
        let taglock = Taglock::with(&fake.address, upstream, RULES);
        for (method, path) in routes_of_a_protected_repository() {
            let target = |namespace| format!("/v2/prod/app/{path}?ns={namespace}");
            let headers = [("Content-Type", INDEX)];
            let send = |namespace| {
                let body = if method == "PUT" { manifest("one") } else { Vec::new() };
                request(&taglock.address, method, &target(namespace), &headers, &body)
            };
            assert_eq!(send(other).status, 400, "{method} {path} {upstream}");
            let answer = send(own);
            assert!(!answer.text().contains("upstream.namespace"), "{method} {path} {answer:?}");
        }
        assert_eq!(pull(&taglock.address, "/v2/prod/app/manifests/v1").status, 200);
    }
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
