use super::*;
use crate::name::{Alias, TagCase};

fn doors() -> Doors {
    Doors {
        token_paths: vec!["/service/token".into(), "/v2/token".into()],
        upload_paths: vec!["/artifacts-uploads/".into()],
        ..Doors::default()
    }
}

fn parse(method: &str, target: &str) -> Result<Route, Rejection> {
    Route::parse(&method.parse().unwrap(), target.as_bytes(), &doors())
}

fn status(method: &str, target: &str) -> u16 {
    parse(method, target).map_or_else(|rejection| rejection.status.as_u16(), |_| 200)
}

fn repository(name: &str) -> RepositoryName {
    RepositoryName::parse(name).unwrap()
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const E: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn a_push_names_its_tags() {
    let write = |method: &str, target: &str| match parse(method, target).unwrap() {
        Route::WriteManifest(write) => write,
        other => panic!("{other:?}"),
    };
    let by_tag = write("PUT", "/v2/team/app/manifests/v1");
    assert_eq!((by_tag.repository, by_tag.tags), (repository("team/app"), vec![tag("v1")]));
    assert_eq!((by_tag.digest, by_tag.by_digest), (None, false));

    let by_digest = write("PUT", &format!("/v2/app/manifests/{D}"));
    assert_eq!((by_digest.tags, by_digest.by_digest), (vec![], true));
    assert_eq!(by_digest.digest, Some(Digest::parse(D).unwrap()));
    assert_eq!(
        write("PUT", &format!("/v2/app/manifests/{}", D.replace(':', "%3A"))).digest,
        by_digest.digest
    );

    // end-7b; a key or a value may be encoded, and means the same then.
    let set = write("PUT", &format!("/v2/app/manifests/{D}?tag=a&%74ag=b&tag=%61&ns=docker.io"));
    assert_eq!(set.tags, vec![tag("a"), tag("b")]);
    assert_eq!(set.namespace.as_deref(), Some("docker.io"));

    let other_algorithm =
        write("PUT", &format!("/v2/app/manifests/v1?digest={}", D.replace(':', "%3A")));
    assert_eq!(other_algorithm.digest, by_digest.digest);
    assert_eq!(other_algorithm.tags, vec![tag("v1")]);
}

#[test]
fn names_are_parsed_from_the_right() {
    for (target, name) in [
        ("/v2/org/manifests/app/manifests/v1", "org/manifests/app"),
        ("/v2/a/manifests/b/manifests/v1", "a/manifests/b"),
        ("/v2/a/blobs/uploads/manifests/v1", "a/blobs/uploads"),
        ("/v2/a/tags/list/manifests/v1", "a/tags/list"),
        ("/v2/v2/manifests/v1", "v2"),
    ] {
        match parse("PUT", target).unwrap() {
            Route::WriteManifest(write) => {
                assert_eq!((write.repository, write.tags), (repository(name), vec![tag("v1")]));
            }
            other => panic!("{target}: {other:?}"),
        }
    }
    assert_eq!(
        parse("GET", "/v2/a/manifests/tags/list").unwrap(),
        Route::ReadOther(Some(repository("a/manifests")))
    );
}

#[test]
fn the_endpoints_of_the_spec_are_known() {
    for (method, target, expected) in [
        ("GET", "/v2/", Route::ReadOther(None)),
        ("GET", "/v2", Route::ReadOther(None)),
        ("HEAD", "/v2/", Route::ReadOther(None)),
        ("GET", "/v2/_catalog?n=10", Route::ReadOther(None)),
        ("GET", "/v2/app/tags/list?n=1&last=v%2f", Route::ReadOther(Some(repository("app")))),
        (
            "GET",
            &format!("/v2/app/referrers/{D}?artifactType=a%2Fb"),
            Route::ReadOther(Some(repository("app"))),
        ),
        ("GET", "/v2/_zot/ext/search?query=x", Route::ReadOther(None)),
        ("GET", &format!("/v2/app/blobs/{D}"), Route::ReadBlob { repository: repository("app") }),
        (
            "DELETE",
            &format!("/v2/app/blobs/{D}"),
            Route::DeleteBlob { repository: repository("app"), digest: Digest::parse(D).unwrap() },
        ),
        ("POST", "/v2/app/blobs/uploads/", Route::Upload(Some(repository("app")))),
        ("POST", "/v2/app/blobs/uploads", Route::Upload(Some(repository("app")))),
        (
            "POST",
            &format!("/v2/app/blobs/uploads/?mount={D}&from=a/b"),
            Route::Upload(Some(repository("app"))),
        ),
        (
            "PATCH",
            "/v2/app/blobs/uploads/0f3a-1?_state=a%3D%3D",
            Route::Upload(Some(repository("app"))),
        ),
        (
            "PUT",
            "/v2/app/blobs/uploads/0f3a-1?_state=a&digest=sha256%3Ae3",
            Route::Upload(Some(repository("app"))),
        ),
        ("PUT", "/v2/app/blobs/upload/7", Route::Upload(Some(repository("app")))),
        ("PATCH", "/artifacts-uploads/namespaces/x/uploads/7", Route::Upload(None)),
        ("POST", "/service/token", Route::Token),
        ("POST", "/v2/token", Route::Token),
        ("GET", "/v2/token?scope=repository%3Aapp%3Apull", Route::Token),
        ("OPTIONS", "/v2/", Route::Options),
        ("GET", "/", Route::ReadOutside),
        ("GET", "/api/v2.0/systeminfo", Route::ReadOutside),
        ("GET", "/harbor/projects/a%2fb//x", Route::ReadOutside),
        ("GET", "/v2.0/x", Route::ReadOutside),
        (
            "GET",
            "/v2/app/manifests/v1",
            Route::ReadManifest { repository: repository("app"), reference: tag("v1").into() },
        ),
        (
            "DELETE",
            "/v2/app/manifests/v1",
            Route::DeleteManifest { repository: repository("app"), reference: tag("v1").into() },
        ),
        (
            "HEAD",
            "/v2/app/manifests/.INVALID",
            Route::ReadUnnamable { repository: repository("app") },
        ),
    ] {
        assert_eq!(parse(method, target).as_ref(), Ok(&expected), "{method} {target}");
    }
}

/// The spellings that moved a tag on a real registry, or behind nginx, and their relatives.
#[test]
fn no_second_spelling_of_a_manifest_passes() {
    for target in [
        "/v2/library%2Fapp/manifests/v1",
        "/v2/library%2Fapp%2Fmanifests%2Fv1",
        "/v2/library/app/manifests/%761",
        "/v2/library/app/%6danifests/v1",
        "/%76%32/library/app/manifests/v1",
        "/%2576%2532/library/app/manifests/v1",
        "/v%32/library/app/manifests/v1",
        "/v2//library/app/manifests/v1",
        "//v2/library/app/manifests/v1",
        "/./v2/library/app/manifests/v1",
        "/v2/x/../library/app/manifests/v1",
        "/v2/x/%2e%2e/library/app/manifests/v1",
        "/v2/./library/app/manifests/v1",
        "/foo/../v2/library/app/manifests/v1",
        "/foo/%2e%2e/v2/library/app/manifests/v1",
        "/foo%2f..%2fv2/library/app/manifests/v1",
        "/foo/..;/v2/library/app/manifests/v1",
        // Found by fuzzing: whether one component or two are stepped over depends on who reads `\\`.
        "/fo\\o/../v2/library/app/manifests/v1",
        "/a/../../v2/library/app/manifests/v1",
        "/v2;x/library/app/manifests/v1",
        "/v2%2flibrary/app/manifests/v1",
        "/V2/library/app/manifests/v1",
        "/%c0%afv2/library/app/manifests/v1",
        // Dots resolved first, escapes decoded after it: neither alone shows `/v2/`.
        "/a%2fb/../%76%32/library/app/manifests/v1",
        "/a%252fb/../%2576%2532/library/app/manifests/v1",
        "/a%2fb/..;x/%76%32/library/app/manifests/v1",
        "/v2%00/library/app/manifests/v1",
        "\\v2\\library\\app\\manifests\\v1",
        "/\\v2/library/app/manifests/v1",
        "/v2/library/app/manifests/v1#x",
        "/v2/library/app/manifests/v1;x=1",
        "/v2/library/app/manifests/v1/",
        "/v2/library/app/Manifests/v1",
        "/v2/library/app/manifests//v1",
        "/v2/Library/app/manifests/v1",
        "/v2/library\\app/manifests/v1",
        "/v2/other/blobs/uploads/..%2f..%2f..%2flibrary%2fapp%2fmanifests%2fv1",
        "/v2/library/app/blobs/uploads/..%2f..%2fmanifests%2fv1",
        "/v2/library/app/blobs/uploads/../../manifests/v1",
        "/v2/app/blobs/uploads/x/manifests/y/z",
        "/artifacts-uploads/../v2/app/manifests/v1",
        "/artifacts-uploads/%2e%2e/v2/app/manifests/v1",
        "/artifacts-uploads/x/manifests/y",
        "http://evil.example/v2/library/app/manifests/v1",
        "v2/library/app/manifests/v1",
        "*",
        "",
        "/v2/library/app/manifests/v\u{e9}",
        "/v2/library/app/manifests/v 1",
        "/v2/library/app/manifests/v\u{1}",
    ] {
        for method in ["PUT", "GET", "HEAD", "DELETE", "OPTIONS", "POST", "PATCH"] {
            assert!(
                matches!(status(method, target), 400 | 403 | 405),
                "{method} {target}: {:?}",
                parse(method, target)
            );
        }
        // As a read it must not slip through either: an unpinned pull.
        assert_eq!(status("GET", target), 400, "GET {target}");
    }
}

#[test]
fn queries_that_could_name_a_tag_otherwise_are_refused() {
    let path = format!("/v2/app/manifests/{D}");
    for query in [
        "tag=%20v1",
        "tag=v1+",
        "tag=v1;tag=v2",
        "tag=",
        "tag",
        "tag=a%2fb",
        "tag=%ff",
        "tags=v1",
        "Tag=v1",
        "x=1",
        "tag=v1&_method=PUT",
        "digest=sha256:00",
        "ns=a&ns=b",
        "ns=a/b",
        "ns=",
    ] {
        assert_eq!(status("PUT", &format!("{path}?{query}")), 400, "{query}");
    }
    assert_eq!(status("PUT", &format!("{path}?digest={E}")), 400, "another digest");
    assert_eq!(status("PUT", "/v2/app/manifests/v1?tag=v2"), 400, "tag path and tag query");
    let many: Vec<_> = (0..65).map(|n| format!("tag=t{n}")).collect();
    assert_eq!(status("PUT", &format!("{path}?{}", many.join("&"))), 414);
    assert_eq!(status("PUT", &format!("{path}?{}", many[..64].join("&"))), 200);
}

#[test]
fn malformed_references_and_names_are_named_in_the_answer() {
    for (method, target, code) in [
        ("PUT", "/v2/app/manifests/.v1", ErrorCode::TagInvalid),
        ("PUT", "/v2/app/manifests/md5:00", ErrorCode::DigestInvalid),
        ("PUT", &format!("/v2/app/manifests/{}", D.to_uppercase()), ErrorCode::DigestInvalid),
        ("PUT", "/v2/App/manifests/v1", ErrorCode::NameInvalid),
        ("DELETE", "/v2/app/blobs/xyz", ErrorCode::DigestInvalid),
        ("GET", "/v2/App/referrers/xyz", ErrorCode::NameInvalid),
    ] {
        assert_eq!(parse(method, target).unwrap_err().code, code, "{method} {target}");
    }
}

#[test]
fn other_methods_are_refused() {
    for (method, target) in [
        ("POST", "/v2/app/manifests/v1"),
        ("PATCH", "/v2/app/manifests/v1"),
        ("put", "/v2/app/manifests/v1"),
        ("PUT", "/v2/_catalog"),
        ("POST", "/v2/"),
        ("PUT", "/v2/_zot/ext/userprefs"),
        ("PATCH", "/v2/namespaces/x/repositories/y/immutabletags"),
        ("TRACE", "/v2/"),
        ("CONNECT", "/v2/"),
        ("PUT", "/service/token"),
        ("PROPFIND", "/v2/app/blobs/uploads/1"),
    ] {
        assert_eq!(status(method, target), 405, "{method} {target}");
    }
    for (method, target) in [
        ("PUT", "/v1/repositories/app/tags/v1"),
        ("POST", "/api/v2.0/projects/p/repositories/r/artifacts?from=x"),
        ("DELETE", "/api/v4/projects/1/registry/repositories/1/tags/v1"),
    ] {
        assert_eq!(status(method, target), 403, "{method} {target}");
    }
}

/// A registry with aliases, folded tags, an implied namespace and two mounts.
fn many_names() -> Doors {
    let hosted = || Some(repository("hosted"));
    let mount = |path: &str, repository| Mount { path: path.into(), repository };
    let aliases = [("old/app", "new/app"), ("past/**", "new/**")];
    let aliases = aliases.map(|(from, to)| Alias::parse(from, to).unwrap());
    let mounts = vec![
        mount("/repository/hosted", hosted()),
        mount("/artifactory/api/docker/group", hosted()),
    ];
    let library = Some(repository("library"));
    let naming = Naming::new(TagCase::Fold, library, aliases.to_vec(), mounts).unwrap();
    Doors { naming: Arc::new(naming), open_paths: vec!["/api/v1/users".into()], ..doors() }
}

fn parse_named(method: &str, target: &str) -> Result<Route, Rejection> {
    Route::parse(&method.parse().unwrap(), target.as_bytes(), &many_names())
}

#[test]
fn every_spelling_of_a_name_is_one_route() {
    for (spelled, name, canonical) in [
        ("/v2/ubuntu/manifests/V1", "library/ubuntu", "v1"),
        ("/v2/library/ubuntu/manifests/v1", "library/ubuntu", "v1"),
        ("/v2/old/app/manifests/Rc-1", "new/app", "rc-1"),
        ("/v2/past/app/manifests/rc-1", "new/app", "rc-1"),
        ("/repository/hosted/v2/app/manifests/V1", "hosted/app", "v1"),
        ("/artifactory/api/docker/group/v2/app/manifests/v1", "hosted/app", "v1"),
        ("/v2/hosted/app/manifests/v1", "hosted/app", "v1"),
    ] {
        let (repository, one) = (repository(name), tag(canonical));
        for method in ["GET", "HEAD"] {
            let reference = one.clone().into();
            let expected = Route::ReadManifest { repository: repository.clone(), reference };
            assert_eq!(parse_named(method, spelled), Ok(expected), "{method} {spelled}");
        }
        let expected =
            Route::DeleteManifest { repository: repository.clone(), reference: one.clone().into() };
        assert_eq!(parse_named("DELETE", spelled), Ok(expected), "{spelled}");
        match parse_named("PUT", spelled) {
            Ok(Route::WriteManifest(write)) => {
                assert_eq!((write.repository, write.tags), (repository, vec![one]), "{spelled}");
            }
            other => panic!("{spelled}: {other:?}"),
        }
    }
    let set = format!("/repository/hosted/v2/app/manifests/{D}?tag=V1&tag=v1&tag=B");
    match parse_named("PUT", &set) {
        Ok(Route::WriteManifest(write)) => assert_eq!(write.tags, vec![tag("v1"), tag("b")]),
        other => panic!("{other:?}"),
    }
    for (method, target, expected) in [
        ("POST", "/repository/hosted/v2/token", Route::Token),
        ("GET", "/repository/hosted/v2", Route::ReadOther(None)),
        (
            "PATCH",
            "/repository/hosted/v2/app/blobs/uploads/1",
            Route::Upload(Some(repository("hosted/app"))),
        ),
        ("GET", "/repository/other/x.json", Route::ReadOutside),
    ] {
        assert_eq!(parse_named(method, target), Ok(expected), "{method} {target}");
    }
    let long = format!("/v2/{}/manifests/v1", "a".repeat(250));
    assert_eq!(parse_named("PUT", &long).unwrap_err().code, ErrorCode::NameInvalid);
}

#[test]
fn no_second_spelling_of_a_mount_passes() {
    for target in [
        "/repository/hosted/v2//app/manifests/v1",
        "/repository/hosted/v2/x/../app/manifests/v1",
        "/repository/hosted/v2/app/manifests/%761",
        "/repository/hosted/%762/app/manifests/v1",
        "/repository/%68osted/v2/app/manifests/v1",
        "/repository%2fhosted%2fv2%2fapp%2fmanifests%2fv1",
        "/repository/hosted/%25762/app/tags/list",
        "/repository//hosted/v2/app/tags/list",
        "/Repository/HOSTED/V2/app/tags/list",
        "/repository/hosted;x/v2/app/tags/list",
        "/repository/./hosted/v2/app/tags/list",
        "/x/../repository/hosted/v2/app/tags/list",
        "/repository/hosted/V2/app/tags/list",
        "/repository\\hosted\\v2\\app",
        // Mounts that nobody has set: a pull there would be nobody's.
        "/repository/other/v2/app/manifests/v1",
        "/repository/other/v2/app/%6danifests/v1",
        "/anything/V2/app/manifests/v1",
    ] {
        for method in ["PUT", "GET", "HEAD", "DELETE", "POST"] {
            let found = parse_named(method, target);
            let status = found.as_ref().map_err(|rejection| rejection.status.as_u16());
            assert_eq!(status.err(), Some(400), "{method} {target}: {found:?}");
        }
    }
}

#[test]
fn what_is_opened_is_open_and_nothing_else() {
    for target in ["/api/v1/users", "/api/v1/users/", "/api/v1/users/a%20b?x=1"] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            assert_eq!(parse_named(method, target), Ok(Route::WriteOutside), "{method} {target}");
        }
        assert_eq!(parse_named("GET", target), Ok(Route::ReadOutside), "{target}");
        assert_eq!(parse("POST", target).unwrap_err().status.as_u16(), 403, "{target}");
    }
    for target in [
        "/api/v1/usersx",
        "/api/v1",
        "/api/v1/users/../repository/a/tag/v1",
        "/api/v1/users/%2e%2e/repository/a/tag/v1",
        "/api/v1/users/..%2frepository/a/tag/v1",
        "/api/v1/users;/../../v2/app/manifests/v1",
        "/api/v1/users//x",
        "/api/v1/users/v2/app/manifests/v1",
        "/API/v1/users",
    ] {
        let refused = parse_named("PUT", target).map_err(|rejection| rejection.status.as_u16());
        assert!(matches!(refused, Err(400 | 403)), "{target}: {refused:?}");
    }
}

/// Spellings that some server may read as `ns`, whatever the value.
const OTHER_NAMESPACES: &[&str] = &[
    "ns=quay.io",
    "ns",
    "ns=",
    "ns=docker.io&ns=quay.io",
    "ns=docker.io;ns=quay.io",
    "ns=docker.io?ns=quay.io",
    "%6es=quay.io",
    "%256es=quay.io",
    "%25256Es=quay.io",
    "NS=quay.io",
    "Ns=quay.io",
    "a=b&ns=quay%2eio",
    "a=b;nS=quay.io",
    "ns=%ff",
    "ns[]=quay.io",
    "ns%5b0%5d=quay.io",
    "+ns=quay.io",
    "%20ns=quay.io",
    "ns%00=quay.io",
    "%0ans=quay.io",
    "%ffns=quay.io",
    "&&ns=quay.io",
];

#[test]
fn another_namespace_is_seen_in_every_spelling() {
    for query in ["", "x=1", "ns=docker.io", "n%73=docker%2eio&ns=Docker.io", "nsx=a", "xns=a"] {
        assert!(check_namespace(Some(query), Some("docker.io")).is_ok(), "{query}");
    }
    for query in OTHER_NAMESPACES {
        let refused =
            check_namespace(Some(query), Some("docker.io")).map_err(|r| r.status.as_u16());
        assert_eq!(refused, Err(400), "{query}");
    }
}

#[test]
fn where_no_namespace_is_set_every_one_is_another() {
    for query in ["", "x=1&last=ns", "nsx=a", "_state=a%3D%3D&digest=sha256%3Aab", "n=5;s=ns"] {
        assert!(check_namespace(Some(query), None).is_ok(), "{query}");
    }
    assert!(check_namespace(None, None).is_ok());
    for query in OTHER_NAMESPACES.iter().chain(&["ns=docker.io", "n%73=docker.io&ns=docker.io"]) {
        let refused = check_namespace(Some(query), None).map_err(|r| r.status.as_u16());
        assert_eq!(refused, Err(400), "{query}");
    }
}

#[test]
fn the_repository_of_every_route_below_v2_is_known() {
    for (method, target) in [
        ("GET", "/v2/prod/app/manifests/v1".to_owned()),
        ("GET", "/v2/prod/app/manifests/.odd".to_owned()),
        ("PUT", "/v2/prod/app/manifests/v1".to_owned()),
        ("DELETE", "/v2/prod/app/manifests/v1".to_owned()),
        ("GET", format!("/v2/prod/app/blobs/{D}")),
        ("DELETE", format!("/v2/prod/app/blobs/{D}")),
        ("GET", "/v2/prod/app/tags/list".to_owned()),
        ("GET", format!("/v2/prod/app/referrers/{D}")),
        ("POST", "/v2/prod/app/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/prod/app/blobs/uploads/7".to_owned()),
        ("PUT", "/v2/prod/app/blobs/upload/7".to_owned()),
    ] {
        let route = parse(method, &target).unwrap();
        assert_eq!(route.repository(), Some(&repository("prod/app")), "{method} {target}");
    }
}
