//! Deletes where tags are immutable: refused, or the name is kept, or let go.

use std::io::{BufReader, Write};
use std::process::Command;

use crate::auth::{basic, with_tokens};
use crate::clients::Images;
use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{self, Answer, request};

fn rules(delete: &str) -> String {
    RULES.replace("mutability", &format!("delete = \"{delete}\"\nmutability"))
}

fn delete(address: &str, repository: &str, reference: &str) -> Answer {
    request(address, "DELETE", &format!("/v2/{repository}/manifests/{reference}"), &[], b"")
}

#[test]
fn where_deletes_are_refused_only_what_no_immutable_tag_needs_goes() {
    let registry = Registry::start();
    let one = manifest("one");
    // A tag from before taglock.
    put(&registry.address, "prod/app", "old", &manifest("old"));
    let taglock = Taglock::before(&registry.address);
    let index_of = |part: &[u8]| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{INDEX}","digest":"{}","size":{}}}]}}"#,
            digest(part),
            part.len()
        )
        .into_bytes()
    };
    let (leaf, part) = (manifest("leaf"), index_of(&manifest("leaf")));
    for bytes in [&leaf, &part] {
        assert_eq!(put(&taglock.address, "prod/app", &digest(bytes), bytes).status, 201);
    }
    assert_eq!(put(&taglock.address, "prod/app", "v2", &index_of(&part)).status, 201);
    put(&taglock.address, "prod/app", "v1", &one);
    put(&taglock.address, "prod/app", "latest", &manifest("moving"));
    put(&taglock.address, "other", "v1", &one);
    for (reference, tag) in [
        ("v1".to_owned(), "'v1'"),
        (digest(&one), "'v1'"),
        (digest(&manifest("old")), "'old'"),
        (digest(&part), "part of the image that the immutable tag 'v2'"),
    ] {
        let answer = delete(&taglock.address, "prod/app", &reference);
        assert_eq!((answer.status, answer.code().as_str()), (405, "UNSUPPORTED"), "{reference}");
        assert!(answer.message().contains(tag), "{}", answer.text());
        assert_eq!(answer.header("Allow"), Some("GET, HEAD, PUT"));
    }
    let blob = format!("/v2/prod/app/blobs/{}", digest(&one));
    assert_eq!(request(&taglock.address, "DELETE", &blob, &[], b"").status, 405);
    for (tag, seed) in [("v1", "one"), ("old", "old")] {
        let expected = Some(digest(&manifest(seed)));
        assert_eq!(tag_of(&registry.address, "prod/app", tag), expected);
    }
    // An image that only a mutable tag has, what is not there, and other repositories.
    let moving = digest(&manifest("moving"));
    assert_eq!(delete(&taglock.address, "prod/app", &moving).status, 202);
    assert_eq!(tag_of(&registry.address, "prod/app", "latest"), None);
    assert_eq!(delete(&taglock.address, "prod/app", &moving).status, 404);
    assert_eq!(delete(&taglock.address, "other", &digest(&one)).status, 202);
}

#[test]
fn with_keep_a_deleted_tag_waits_for_its_image() {
    let registry = Registry::start();
    put(&registry.address, "prod/app", "old", &manifest("one"));
    let mut taglock = Taglock::with(&registry.address, "", &rules("keep"));
    let (one, two) = (manifest("one"), manifest("two"));
    put(&taglock.address, "prod/app", "v1", &one);
    put(&taglock.address, "prod/app", "v2", &two);
    // This registry takes no DELETE by tag: what it says is passed on, and nothing is marked.
    let by_tag = delete(&taglock.address, "prod/app", "v1");
    let own = delete(&registry.address, "prod/app", "v1");
    assert_eq!((by_tag.status, by_tag.text()), (own.status, own.text()));
    assert!(matches!(own.status, 400 | 405), "{own:?}");
    assert_eq!(tag_of(&taglock.address, "prod/app", "v1"), Some(digest(&one)));

    let answer = delete(&taglock.address, "prod/app", &digest(&one));
    assert_eq!(answer.status, 202, "{}", answer.text());
    let audit = taglock.process.log();
    assert!(audit.contains("outcome=\"withdrawn\"") && audit.contains("old,v1"), "{audit}");
    for round in 0..2 {
        for tag in ["v1", "old"] {
            assert_eq!(tag_of(&taglock.address, "prod/app", tag), None, "{tag} is deleted");
            let other = put(&taglock.address, "prod/app", tag, &two);
            assert_eq!(other.status, 409, "{round} {}", other.text());
            assert!(other.message().contains(&digest(&one)));
            assert_eq!(tag_of(&registry.address, "prod/app", tag), None);
        }
        assert_eq!(tag_of(&taglock.address, "prod/app", "v2"), Some(digest(&two)));
        taglock.restart();
    }
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 201);
    assert_eq!(tag_of(&taglock.address, "prod/app", "v1"), Some(digest(&one)));
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&one)));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &two).status, 409);
    // Blobs go where the rule lets go of images.
    let blob = format!("/v2/prod/app/blobs/{}", digest(b"no such blob"));
    let own = request(&registry.address, "DELETE", &blob, &[], b"");
    let answer = request(&taglock.address, "DELETE", &blob, &[], b"");
    assert_eq!((answer.status, answer.code()), (own.status, own.code()));
}

#[test]
fn with_release_a_deleted_name_is_free() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("release"));
    let (one, two) = (manifest("one"), manifest("two"));
    put(&taglock.address, "prod/app", "v1", &one);
    put(&taglock.address, "prod/app", "v1.0", &one);
    assert_eq!(delete(&taglock.address, "prod/app", &digest(&one)).status, 202);
    let audit = taglock.process.log();
    assert!(audit.contains("outcome=\"released\"") && audit.contains("v1,v1.0"), "{audit}");
    for tag in ["v1", "v1.0"] {
        assert_eq!(put(&taglock.address, "prod/app", tag, &two).status, 201);
        assert_eq!(put(&taglock.address, "prod/app", tag, &one).status, 409, "bound anew");
    }
}

/// Each lane has its own memory of what it has served, and none of it outlives the binding.
#[test]
fn a_released_name_is_pulled_nowhere_any_more_and_then_as_what_it_is_bound_to() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("release"));
    // More than there are lanes, so that all of them have some, or nearly.
    let mut clients: Vec<_> = (0..24)
        .map(|_| {
            let stream = http::connect(&taglock.address).unwrap();
            (stream.try_clone().unwrap(), BufReader::new(stream))
        })
        .collect();
    let mut pulled = |expected: Option<&Vec<u8>>| {
        for (stream, reader) in &mut clients {
            let accept = ("Accept", "application/vnd.oci.image.index.v1+json");
            let target = "/v2/prod/app/manifests/v1";
            stream.write_all(&http::bytes("x", "GET", target, &[accept], b"")).unwrap();
            let answer = http::read_answer(reader, false).unwrap();
            match expected {
                Some(manifest) => assert!(answer.body == *manifest, "{answer:?}"),
                None => assert_eq!(answer.status, 404),
            }
        }
    };
    for seed in ["one", "two", "one"] {
        let image = manifest(seed);
        assert_eq!(put(&taglock.address, "prod/app", "v1", &image).status, 201);
        // What it was bound to before is in the registry, too.
        for other in ["one", "two"].map(manifest) {
            put(&registry.address, "prod/app", &digest(&other), &other);
        }
        for _ in 0..3 {
            pulled(Some(&image));
        }
        assert_eq!(delete(&taglock.address, "prod/app", &digest(&image)).status, 202);
        pulled(None);
    }
}

#[test]
fn skopeo_deletes_and_copies_the_same_image_back() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("keep"));
    let images = Images::new();
    let target = format!("docker://{}/prod/app:v1", taglock.address);
    let push = |image: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false"]).arg(images.source(image)).arg(&target);
        command
    };
    let inspect = || {
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--tls-verify=false"]).arg(&target);
        command
    };
    succeed(&mut push("one"));
    succeed(Command::new("skopeo").args(["delete", "--tls-verify=false"]).arg(&target));
    fail(&mut inspect());
    let said = fail(&mut push("two"));
    assert!(said.contains("denied: The image tag 'v1' already exists"), "{said}");
    fail(&mut inspect());
    succeed(&mut push("one"));
    succeed(&mut inspect());

    let refusing = Taglock::before(&registry.address);
    let target = format!("docker://{}/prod/app:v1", refusing.address);
    fail(Command::new("skopeo").args(["delete", "--tls-verify=false"]).arg(&target));
    succeed(&mut inspect());
}

/// As `regctl tag delete` does where there is no DELETE by tag: another manifest is put under the
/// tag, then deleted by its digest.
#[test]
fn a_tag_can_t_be_deleted_by_way_of_another_manifest() {
    let registry = Registry::start();
    for policy in ["refuse", "keep", "release"] {
        let taglock = Taglock::with(&registry.address, "", &rules(policy));
        let repository = format!("prod/{policy}");
        let (one, dummy) = (manifest("one"), manifest("dummy"));
        put(&taglock.address, &repository, "v1", &one);
        assert_eq!(put(&taglock.address, &repository, "v1", &dummy).status, 409);
        delete(&taglock.address, &repository, &digest(&dummy));
        assert_eq!(tag_of(&registry.address, &repository, "v1"), Some(digest(&one)));
        // A mutable tag is nobody's business.
        put(&taglock.address, &repository, "latest", &one);
        assert_eq!(put(&taglock.address, &repository, "latest", &dummy).status, 201);
        assert_eq!(delete(&taglock.address, &repository, &digest(&dummy)).status, 202);
        assert_eq!(tag_of(&registry.address, &repository, "latest"), None);
        assert_eq!(tag_of(&taglock.address, &repository, "v1"), Some(digest(&one)));
    }
}

/// In front of a registry that takes DELETE by tag.
#[test]
fn a_tag_is_deleted_alone_where_the_registry_can() {
    for (policy, then) in [("keep", 409), ("release", 201)] {
        let fake = Fake::start();
        let taglock = Taglock::with(&fake.address, "", &rules(policy));
        // The fake one watches `prod/` only.
        for tag in ["v1", "v2"] {
            put(&taglock.address, "all/app", tag, &manifest("one"));
        }
        assert_eq!(delete(&taglock.address, "all/app", "v1").status, 202);
        assert_eq!(fake.tag("all/app", "v1"), None);
        assert_eq!(fake.tag("all/app", "v2"), Some(digest(&manifest("one"))));
        assert_eq!(put(&taglock.address, "all/app", "v1", &manifest("two")).status, then);
        assert_eq!(put(&taglock.address, "all/app", "v2", &manifest("two")).status, 409);
    }
}

#[test]
fn a_delete_whose_outcome_is_unknown_says_so_and_marks_nothing() {
    let quick = "exchange_timeout = \"1s\"\nread_timeout = \"2s\"";
    for (fault, status) in [
        (Fault::Answer(500, vec![], ""), 502),
        (Fault::DoneBut(500), 502),
        (Fault::CutAfter, 502),
        (Fault::HangBefore, 504),
        (Fault::HangAfter, 504),
    ] {
        for policy in ["keep", "release"] {
            let fake = Fake::start();
            let taglock = Taglock::with(&fake.address, quick, &rules(policy));
            put(&taglock.address, "prod/app", "v1", &manifest("one"));
            fake.plan("DELETE", "/manifests/", fault.clone(), 1);
            let answer = delete(&taglock.address, "prod/app", &digest(&manifest("one")));
            assert_eq!(fake.count("DELETE", ""), 1, "{fault:?}: it is sent once");
            assert_eq!(answer.status, status, "{fault:?}: {}", answer.text());
            assert!(answer.message().contains("unknown"), "{fault:?}: {}", answer.text());
            fake.recover();
            assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
            let audit = taglock.process.log();
            assert!(!audit.contains("withdrawn") && !audit.contains("released"), "{audit}");
            // Nothing is bound to an image that may go yet, until a delete of it is answered.
            let waits = put(&taglock.address, "prod/app", "v1", &manifest("one"));
            assert_eq!(waits.status, 503, "{fault:?}: {}", waits.text());
            assert!(waits.message().contains("a delete of sha256:"), "{}", waits.text());
            let again = delete(&taglock.address, "prod/app", &digest(&manifest("one")));
            assert!(matches!(again.status, 202 | 404), "{fault:?}: {}", again.text());
            assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
        }
    }
    // A redirect is not passed on: the client would delete past the ledger.
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "", &rules("keep"));
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    let elsewhere = vec![("location", "http://elsewhere.example/".into())];
    fake.plan("DELETE", "", Fault::Answer(307, elsewhere, ""), 1);
    assert_eq!(delete(&taglock.address, "prod/app", "v1").status, 502);
}

#[test]
fn many_tags_are_looked_through_page_by_page_and_too_many_are_not() {
    let fake = Fake::start();
    let old = manifest("old");
    for n in 0..1000 {
        put(&fake.address, "prod/app", &format!("v{n:04}"), &old);
    }
    let taglock = Taglock::before(&fake.address);
    put(&taglock.address, "prod/app", &digest(&manifest("x")), &manifest("x"));
    assert_eq!(delete(&taglock.address, "prod/app", &digest(&old)).status, 405);
    assert_eq!(fake.count("GET", "/tags/list"), 3, "pages of 400");
    let answer = delete(&taglock.address, "prod/app", &digest(&manifest("x")));
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(fake.count("GET", "/tags/list"), 6);
    // Each was sealed once.
    assert_eq!(fake.count("GET", "/manifests/v"), 1000);
    put(&fake.address, "prod/app", "one-more", &manifest("y"));
    let answer = delete(&taglock.address, "prod/app", &digest(&manifest("y")));
    assert_eq!(answer.status, 405);
    assert!(answer.message().contains("more than 1000 tags"), "{}", answer.text());
}

#[test]
fn with_the_ledger_of_a_fleet_down_nothing_is_deleted() {
    let registry = Registry::start();
    let (mut redis, address) = redis();
    let url = format!("http://{}", registry.address);
    let taglock = Taglock::from_file(|listen, admin, _| {
        format!(
            "[listen]\naddress = \"{listen}\"\n[upstream]\nurl = \"{url}\"\n[ledger]\n\
             store = \"redis\"\nurl = \"redis://{address}\"\n[admin]\naddress = \"{admin}\"\n{}",
            rules("keep")
        )
    });
    let one = manifest("one");
    put(&taglock.address, "prod/app", "v1", &one);
    redis.signal("-KILL");
    redis.wait_for_end();
    let answer = delete(&taglock.address, "prod/app", &digest(&one));
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("5")), "{answer:?}");
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&one)));
}

pub fn redis() -> (Process, String) {
    let port = port();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("redis-server");
    command.args(["--save", "", "--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"]);
    command.arg(folder.path());
    let address = format!("127.0.0.1:{port}");
    let mut process = Process::start("redis-server", command, folder.path());
    process.wait_for(&address);
    // It keeps its log open; the rest of the folder stays empty.
    std::mem::forget(folder);
    (process, address)
}

/// Who may pull but not delete frees nothing, and who may not pull learns nothing.
#[test]
fn the_registry_decides_who_may_delete() {
    let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
    let token = |account: Option<&str>, actions: &str| {
        let authorization = account.map(basic);
        let headers: Vec<_> =
            authorization.as_deref().map(|value| ("Authorization", value)).into_iter().collect();
        let target = format!("/token?service=house&scope=repository:prod/app:{actions}");
        let answer = request(&server.address, "GET", &target, &headers, b"");
        let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        format!("Bearer {}", document["token"].as_str().unwrap())
    };
    let (alice, bob) = (Some("alice:secret"), Some("bob:secret"));
    for policy in ["keep", "release", "refuse"] {
        let taglock = Taglock::with(&registry.address, "", &rules(policy));
        let bytes = manifest(policy);
        let act = |authorization: &str, method: &str, reference: &str, body: &[u8]| {
            let target = format!("/v2/prod/app/manifests/{reference}");
            let headers = [("Content-Type", INDEX), ("Authorization", authorization)];
            request(&taglock.address, method, &target, &headers, body)
        };
        let push = token(alice, "pull,push");
        assert_eq!(act(&push, "PUT", policy, &bytes).status, 201);
        for stranger in [token(None, "pull,delete"), token(bob, "push,delete")] {
            for reference in [policy, "nothing", digest(&bytes).as_str()] {
                let answer = act(&stranger, "DELETE", reference, b"");
                // A token that lacks the right to pull: the same for what is there and what is not.
                let own = http::request(
                    &registry.address,
                    "HEAD",
                    &format!("/v2/prod/app/manifests/{reference}"),
                    &[("Authorization", stranger.as_str())],
                    b"",
                );
                assert_eq!(answer.status, own.status, "{policy} {reference} {}", answer.text());
                assert!(matches!(answer.status, 401 | 403));
                assert!(!answer.text().contains("sha256"));
            }
        }
        let by_digest = act(&token(bob, "pull,delete"), "DELETE", &digest(&bytes), b"");
        if policy == "refuse" {
            assert_eq!(by_digest.status, 405);
            continue;
        }
        assert_eq!(by_digest.status, 401, "{}", by_digest.text());
        assert!(by_digest.header("WWW-Authenticate").unwrap().contains(":delete"));
        assert_eq!(act(&push, "PUT", policy, &manifest("another")).status, 409, "still bound");
        let done = act(&token(alice, "pull,delete"), "DELETE", &digest(&bytes), b"");
        assert_eq!(done.status, 202, "{}", done.text());
    }
}

/// A repository whose list comes as this: `DELETE` of the image of a tag on its second page.
fn delete_with_list(
    (fake, taglock): (&Fake, &Taglock),
    repository: &str,
    headers: &[(&'static str, &str)],
    body: &'static str,
) -> Answer {
    let image = manifest("from before taglock");
    put(&fake.address, repository, "t3", &image);
    let list = format!("{repository}/tags/list");
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    fake.plan("GET", &list, Fault::Answer(200, headers, body), 1);
    delete(&taglock.address, repository, &digest(&image))
}

const FIRST_PAGE: &str = r#"{"name":"x","tags":["t0","t1"]}"#;

#[test]
fn a_list_of_tags_that_may_go_on_lets_no_image_go() {
    let fake = Fake::start();
    let taglock = Taglock::before(&fake.address);
    let on = (&fake, &taglock);
    for (n, link) in [
        r#"</v2/x/tags/list?last=t1&n=2>; rel="next""#,
        r#"<?last=t1>; title="a, <b>; rel=x" ; REL = "prefetch Next""#,
        r#"<http://elsewhere/?last=t1>; rel=next, <?x=y>; rel=prev"#,
    ]
    .into_iter()
    .enumerate()
    {
        let repository = format!("all/understood-{n}");
        let answer = delete_with_list(on, &repository, &[("link", link)], FIRST_PAGE);
        assert_eq!(answer.status, 405, "{link} {answer:?}");
        assert!(answer.message().contains("'t3'"), "{}", answer.text());
    }
    for (n, (headers, body)) in [
        (vec![("link", r#"/v2/x/tags/list?last=t1&n=2; rel="next""#)], FIRST_PAGE),
        (vec![("link", "</v2/x/tags/list>; rel=next")], FIRST_PAGE),
        (vec![("link", "<?last=t1>; rel=\"next")], FIRST_PAGE),
        (vec![("link", "<?n=1>; rel=prev"), ("link", "next")], FIRST_PAGE),
        (vec![("x-total-count", "3")], FIRST_PAGE),
        (vec![("x-next-page", "2")], FIRST_PAGE),
        (vec![], "{}"),
        (vec![], r#"{"errors":[{"code":"UNKNOWN"}]}"#),
    ]
    .into_iter()
    .enumerate()
    {
        let repository = format!("all/odd-{n}");
        let answer = delete_with_list(on, &repository, &headers, body);
        assert_eq!(answer.status, 502, "{headers:?} {body} {answer:?}");
    }
    // A page that is not found is not the end of a list that has begun.
    let list = "all/lost/tags/list";
    put(&fake.address, "all/lost", "t3", &manifest("from before taglock"));
    let link = vec![("link", "<?last=t1>; rel=next".to_owned())];
    fake.plan("GET", list, Fault::Answer(200, link, FIRST_PAGE), 1);
    fake.plan("GET", list, Fault::Answer(404, vec![], "{}"), 1);
    let answer = delete(&taglock.address, "all/lost", &digest(&manifest("from before taglock")));
    assert_eq!(answer.status, 502, "{answer:?}");
    assert_eq!(fake.count("DELETE", ""), 0);
}

#[test]
fn an_image_whose_parts_are_not_known_keeps_what_may_be_one() {
    let fake = Fake::start();
    let taglock = Taglock::before(&fake.address);
    // Not an empty index, which would be one of referrers.
    let part = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI}","layers":[]}}"#).into_bytes();
    put(&fake.address, "all/app", &digest(&part), &part);
    let whole = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{OCI}","digest":"{}","size":{}}}]}}"#,
        digest(&part),
        part.len()
    );
    assert_eq!(put(&taglock.address, "all/app", "v1", whole.as_bytes()).status, 201);
    let text: &'static str = Box::leak(whole.clone().into_boxed_str());
    let by_digest = format!("manifests/{}", digest(text.as_bytes()));
    for fault in [
        // Without a type, cut, longer than it may be, other bytes.
        Fault::Answer(200, vec![], text),
        Fault::Answer(200, vec![("content-type", INDEX.to_owned())], "{}"),
        Fault::Answer(200, vec![("content-length", "010".to_owned())], "0123456789"),
        Fault::Answer(206, vec![("content-type", INDEX.to_owned())], text),
        // A type alone does not make it one of schema 1.
        Fault::Answer(
            200,
            vec![(
                "content-type",
                "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned(),
            )],
            r#"{"schemaVersion":1,"manifests":[{"digest":"sha256:0"}]}"#,
        ),
    ] {
        fake.plan("GET", &by_digest, fault.clone(), 9);
        let answer = delete(&taglock.address, "all/app", &digest(&part));
        assert_eq!(answer.status, 502, "{fault:?} {answer:?}");
        fake.recover();
    }
    assert_eq!(fake.count("DELETE", ""), 0);
    assert_eq!(delete(&taglock.address, "all/app", &digest(&part)).status, 405);
}
