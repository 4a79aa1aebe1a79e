//! Manifests of repositories that everybody may pull from, answered from memory: with the registry's
//! own answer, for as long as it is for everybody, and without asking it.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::auth::{basic, with_tokens};
use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{Answer, request};

const ALL: &str = "application/vnd.oci.image.manifest.v1+json, \
                   application/vnd.oci.image.index.v1+json, \
                   application/vnd.docker.distribution.manifest.list.v2+json, \
                   application/vnd.docker.distribution.manifest.v2+json";

const PUBLIC: &str = r#"
[[rule]]
name = "releases"
repositories = "prod/**"
mutability = "immutable"
except = "latest"
delete = "release"
anonymous_pull = true
[[rule]]
name = "others"
repositories = "**"
mutability = "immutable"
delete = "release"
"#;

fn public(registry: &str) -> Taglock {
    Taglock::with(registry, "", PUBLIC)
}

fn target(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

fn get(taglock: &Taglock, reference: &str) -> Answer {
    request(&taglock.address, "GET", &target("prod/app", reference), &[("Accept", ALL)], b"")
}

fn hits(taglock: &Taglock) -> f64 {
    taglock.metric("taglock_manifest_cache_total{result=\"hit\"}")
}

/// Pulls until an answer comes from memory.
fn warm(taglock: &Taglock, reference: &str) {
    let before = hits(taglock);
    eventually("an answer from memory", || {
        assert_eq!(get(taglock, reference).status, 200);
        hits(taglock) > before
    });
}

#[track_caller]
fn is(answer: &Answer, seed: &str) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body, manifest(seed));
}

#[test]
fn the_answer_is_the_registrys_own_and_outlives_it() {
    let registry = Registry::start();
    let taglock = public(&registry.address);
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    put(&taglock.address, "prod/app", "latest", &manifest("one"));
    let one = digest(&manifest("one"));
    warm(&taglock, "v1");
    let etag = format!("\"{one}\"");
    let names = |answer: &Answer| {
        let mut names: Vec<_> = answer.headers.iter().map(|(n, _)| n.clone()).collect();
        names.retain(|name| !matches!(name.as_str(), "Date" | "Connection"));
        names.sort();
        names
    };
    let mut answers = Vec::new();
    for reference in ["v1", one.as_str()] {
        for method in ["GET", "HEAD"] {
            for (more, from_memory) in [
                (vec![("Accept", ALL)], true),
                (vec![("Accept", OCI), ("Accept", INDEX)], true),
                (vec![("Accept", ALL), ("Accept-Encoding", "gzip")], true),
                (vec![("Accept", ALL), ("Range", "bytes=0-9")], false),
                (vec![("Accept", ALL), ("If-None-Match", etag.as_str())], false),
                (vec![("Accept", OCI)], false),
                (vec![("Accept", "*/*")], false),
                (vec![], false),
            ] {
                let headers = [more.as_slice(), &[("Host", "registry.example.com")]].concat();
                let target = target("prod/app", reference);
                let direct = request(&registry.address, method, &target, &headers, b"");
                let before = hits(&taglock);
                let through = request(&taglock.address, method, &target, &headers, b"");
                let what = format!("{method} {target} {more:?}");
                assert_eq!(through.comparable(), direct.comparable(), "{what}");
                assert_eq!(names(&through), names(&direct), "{what}");
                assert_eq!(hits(&taglock) > before, from_memory, "{what}");
                answers.push((method, target, headers, from_memory, through));
            }
        }
    }
    drop(registry);
    for (method, target, headers, from_memory, before) in answers {
        if from_memory {
            let after = request(&taglock.address, method, &target, &headers, b"");
            assert_eq!(after.comparable(), before.comparable(), "{method} {target} {headers:?}");
        }
    }
    // By HTTP's rules `*/*` takes it, and nobody is there to say otherwise.
    let any = request(&taglock.address, "GET", &target("prod/app", &one), &[], b"");
    is(&any, "one");
    // What may move is the registry's to say.
    assert_eq!(get(&taglock, "latest").status, 502);
    assert_eq!(get(&taglock, &digest(&manifest("two"))).status, 502);
    assert!(taglock.metric("taglock_manifest_cache_bytes") > 0.0);
}

#[test]
fn pulls_cost_the_registry_one_question_without_credentials_a_minute() {
    let fake = Fake::start();
    let taglock = public(&fake.address);
    put(&fake.address, "prod/app", "v1", &manifest("one"));
    let one = digest(&manifest("one"));
    let credentials = basic("alice:secret");
    let pull = |reference: &str| {
        let headers =
            [("Accept", ALL), ("Authorization", credentials.as_str()), ("Cookie", "sid=secret")];
        is(&request(&taglock.address, "GET", &target("prod/app", reference), &headers, b""), "one");
    };
    pull("v1");
    let question =
        |headers: &Vec<String>| headers.iter().any(|h| h.starts_with("user-agent: taglock"));
    eventually("the question", || fake.all_headers().iter().any(question));
    warm(&taglock, "v1");
    let before = fake.seen().len();
    for _ in 0..20 {
        pull("v1");
        pull(&one);
    }
    assert_eq!(fake.seen()[before..], [""; 0], "the registry was asked");
    let questions: Vec<_> = fake.all_headers().into_iter().filter(question).collect();
    assert_eq!(questions.len(), 1, "{questions:?}");
    for header in &questions[0] {
        let name = header.split(':').next().unwrap();
        assert!(!matches!(name, "authorization" | "cookie"), "{header}");
    }
    assert_eq!(fake.count("HEAD", &one), 1);
    // One that has run out of patience with the proxy, and one that fails.
    for status in [429, 503] {
        fake.recover();
        for method in ["GET", "HEAD"] {
            fake.plan(method, "/manifests/", Fault::Answer(status, vec![], ""), 1_000);
        }
        pull("v1");
        pull(&one);
    }
    fake.recover();
}

#[test]
fn mutable_tags_follow_the_registry_and_without_memory_everything_does() {
    let registry = Registry::start();
    let taglock = public(&registry.address);
    for seed in ["one", "two"] {
        put(&registry.address, "prod/app", "latest", &manifest(seed));
        warm(&taglock, &digest(&manifest(seed)));
        for _ in 0..2 {
            is(&get(&taglock, "latest"), seed);
        }
    }
    let tables = format!("[limits]\nmanifest_cache = \"0B\"\n{PUBLIC}");
    let none = Taglock::with(&registry.address, "", &tables);
    put(&none.address, "prod/app", "v2", &manifest("two"));
    for reference in ["v2", &digest(&manifest("two"))] {
        for _ in 0..3 {
            is(&get(&none, reference), "two");
        }
    }
    assert_eq!(hits(&none) + none.metric("taglock_manifest_cache_total{result=\"miss\"}"), 0.0);
}

#[test]
fn what_one_repository_has_another_has_not() {
    let registry = Registry::start();
    let taglock = public(&registry.address);
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    put(&taglock.address, "prod/other", "v1", &manifest("two"));
    let one = digest(&manifest("one"));
    warm(&taglock, "v1");
    for repository in ["prod/other", "prod/none", "elsewhere/app"] {
        for method in ["GET", "HEAD"] {
            let target = target(repository, &one);
            let answer = request(&taglock.address, method, &target, &[("Accept", ALL)], b"");
            assert_eq!(answer.status, 404, "{method} {repository}");
        }
    }
    // Nor is anything kept of a repository that no rule marks.
    put(&taglock.address, "elsewhere/app", "v1", &manifest("one"));
    let before = hits(&taglock);
    for reference in ["v1", one.as_str()] {
        for _ in 0..3 {
            let target = target("elsewhere/app", reference);
            is(&request(&taglock.address, "GET", &target, &[("Accept", ALL)], b""), "one");
        }
    }
    assert_eq!(hits(&taglock), before);
}

#[test]
fn a_delete_through_taglock_is_seen_at_once() {
    for policy in ["release", "keep"] {
        let registry = Registry::start();
        let rules = PUBLIC.replace("delete = \"release\"", &format!("delete = \"{policy}\""));
        let taglock = Taglock::with(&registry.address, "", &rules);
        put(&taglock.address, "prod/app", "v1", &manifest(policy));
        let one = digest(&manifest(policy));
        warm(&taglock, "v1");
        warm(&taglock, &one);
        let deleted = request(&taglock.address, "DELETE", &target("prod/app", &one), &[], b"");
        assert_eq!(deleted.status, 202, "{deleted:?}");
        for reference in ["v1", one.as_str()] {
            assert_eq!(get(&taglock, reference).status, 404, "{policy} {reference}");
        }
        // Its manifest comes back, and so does the answer.
        put(&taglock.address, "prod/app", "v1", &manifest(policy));
        warm(&taglock, "v1");
    }
}

#[test]
fn other_bytes_are_passed_on_once_and_never_kept() {
    let fake = Fake::start();
    let taglock = public(&fake.address);
    put(&fake.address, "prod/app", "v1", &manifest("one"));
    let one = digest(&manifest("one"));
    let other = vec![("content-type", OCI.to_owned()), ("docker-content-digest", one.clone())];
    let text: &'static str = String::from_utf8(manifest("two")).unwrap().leak();
    fake.plan("GET", &one, Fault::Answer(200, other, text), 2);
    // By digest, the client checks; the registry's answer is its own.
    let answer = get(&taglock, &one);
    assert_eq!((answer.status, answer.text().as_str()), (200, text));
    for _ in 0..3 {
        is(&get(&taglock, &one), "one");
    }
    warm(&taglock, &one);
    is(&get(&taglock, &one), "one");
}

#[test]
fn a_repository_that_is_not_for_everybody_is_the_registrys_each_time() {
    let registry = Registry::prepared(
        "auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }",
        |dir: &Path| {
            let mut command = std::process::Command::new("htpasswd");
            succeed(command.arg("-Bbc").arg(dir.join("htpasswd")).args(["alice", "secret"]));
        },
    );
    let taglock = public(&registry.address);
    let alice = basic("alice:secret");
    let target = target("prod/app", "v1");
    let headers = [("Content-Type", INDEX), ("Authorization", alice.as_str())];
    let pushed = request(&taglock.address, "PUT", &target, &headers, &manifest("index"));
    assert_eq!(pushed.status, 201);
    let closed = || taglock.metric("taglock_public_questions_total{answer=\"closed\"}");
    let headers = [("Accept", ALL), ("Authorization", alice.as_str())];
    for _ in 0..5 {
        assert_eq!(request(&taglock.address, "GET", &target, &headers, b"").status, 200);
        let stranger = request(&taglock.address, "GET", &target, &[("Accept", ALL)], b"");
        assert_eq!(stranger.status, 401);
        assert!(stranger.header("WWW-Authenticate").is_some());
    }
    eventually("the registry's no", || closed() == 1.0);
    for _ in 0..5 {
        assert_eq!(request(&taglock.address, "GET", &target, &headers, b"").status, 200);
    }
    assert_eq!((hits(&taglock), closed()), (0.0, 1.0));
    assert_eq!(taglock.metric("taglock_manifest_cache_bytes"), 0.0);
    assert!(taglock.process.log().contains("a rule says that everybody may pull"));
}

#[test]
fn where_tokens_are_wanted_one_for_everybody_is_asked_for() {
    let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
    let taglock = public(&registry.address);
    let token = |repository: &str| {
        let query = format!("/token?service=house&scope=repository:{repository}:pull,push");
        let headers = [("Authorization", &*basic("alice:secret"))];
        let answer = request(&server.address, "GET", &query, &headers, b"");
        let document: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        format!("Bearer {}", document["token"].as_str().unwrap())
    };
    for repository in ["prod/public", "prod/app"] {
        let (bearer, target) = (token(repository), target(repository, "v1"));
        let headers = [("Content-Type", INDEX), ("Authorization", bearer.as_str())];
        let pushed = request(&taglock.address, "PUT", &target, &headers, &manifest("index"));
        assert_eq!(pushed.status, 201, "{pushed:?}");
        let headers = [("Accept", ALL), ("Authorization", bearer.as_str())];
        let read = || request(&taglock.address, "GET", &target, &headers, b"").status;
        assert_eq!(read(), 200);
        let answer = if repository == "prod/public" { "open" } else { "closed" };
        let line = format!("taglock_public_questions_total{{answer=\"{answer}\"}}");
        eventually("the question's answer", || taglock.metric(&line) == 1.0);
        let before = hits(&taglock);
        for _ in 0..3 {
            assert_eq!(read(), 200);
        }
        let expected = if repository == "prod/public" { 3.0 } else { 0.0 };
        assert_eq!(hits(&taglock) - before, expected, "{repository}");
    }
    // taglock asked as nobody, for each of them.
    assert_eq!(server.grants(""), 2);
    let stranger = |repository: &str| {
        request(&taglock.address, "GET", &target(repository, "v1"), &[("Accept", ALL)], b"").status
    };
    assert_eq!((stranger("prod/public"), stranger("prod/app")), (200, 401));
}

/// Takes a minute: that is how long it may take.
#[test]
fn a_repository_that_becomes_private_is_private_a_minute_later() {
    let fake = Fake::start();
    let taglock = public(&fake.address);
    put(&fake.address, "prod/app", "v1", &manifest("one"));
    let one = digest(&manifest("one"));
    warm(&taglock, "v1");
    for method in ["GET", "HEAD"] {
        fake.plan(method, "/manifests/", Fault::Answer(401, vec![], ""), 10_000);
    }
    let mut statuses = Vec::new();
    for _ in 0..130 {
        statuses.push((get(&taglock, "v1").status, get(&taglock, &one).status));
        sleep(Duration::from_millis(500));
    }
    assert_eq!(statuses[0], (200, 200), "the question is not put each time");
    assert_eq!(statuses.last(), Some(&(401, 401)));
    let first = statuses.iter().position(|both| *both == (401, 401)).unwrap();
    assert!(statuses[first..].iter().all(|both| *both == (401, 401)), "{statuses:?}");
    assert_eq!(taglock.metric("taglock_manifest_cache_bytes"), 0.0);
    fake.recover();
}
