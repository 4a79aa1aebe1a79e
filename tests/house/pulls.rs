//! Pulls of protected tags are answered by the ledger, wherever the registry's own tag has gone.

use std::process::Command;

use base64::prelude::*;

use crate::clients::{Docker, Images, containers};
use crate::fake::{Fake, Fault};
use crate::fleet::{Redis, proxy};
use crate::harness::*;
use crate::http::{self, Answer, request};

const ALL: &str = "application/vnd.oci.image.manifest.v1+json, \
                   application/vnd.oci.image.index.v1+json, \
                   application/vnd.docker.distribution.manifest.list.v2+json, \
                   application/vnd.docker.distribution.manifest.v2+json";

fn read(address: &str, method: &str, repository: &str, tag: &str) -> Answer {
    read_with(address, method, repository, tag, &[("Accept", ALL)])
}

fn read_with(
    address: &str,
    method: &str,
    repository: &str,
    tag: &str,
    headers: &[(&str, &str)],
) -> Answer {
    request(address, method, &format!("/v2/{repository}/manifests/{tag}"), headers, b"")
}

/// HEAD and GET both give this very image, and nothing gives a hint of anything else.
#[track_caller]
fn serves(address: &str, repository: &str, tag: &str, seed: &str) {
    let bytes = manifest(seed);
    let expected = digest(&bytes);
    for method in ["HEAD", "GET"] {
        let answer = read(address, method, repository, tag);
        assert_eq!(answer.status, 200, "{method} {tag}: {answer:?}");
        assert_eq!(answer.header("Docker-Content-Digest"), Some(expected.as_str()), "{method}");
        assert_eq!(answer.header("Content-Length"), Some(bytes.len().to_string().as_str()));
        if method == "GET" {
            assert_eq!(answer.body, bytes);
        }
    }
}

fn delete(address: &str, repository: &str, seed: &str) {
    let target = format!("/v2/{repository}/manifests/{}", digest(&manifest(seed)));
    assert_eq!(request(address, "DELETE", &target, &[], b"").status, 202);
}

#[test]
fn a_tag_moved_behind_taglock_is_pulled_as_it_was() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let open = Taglock::with(&registry.address, "", "");
    let address = &taglock.address;
    assert_eq!(put(address, "prod/app", "v1", &manifest("one")).status, 201);
    serves(address, "prod/app", "v1", "one");
    // In the registry itself; through a proxy without rules; by deleting and pushing anew.
    put(&registry.address, "prod/app", "v1", &manifest("two"));
    serves(address, "prod/app", "v1", "one");
    put(&open.address, "prod/app", "v1", &manifest("three"));
    serves(address, "prod/app", "v1", "one");
    serves(&open.address, "prod/app", "v1", "three");
    delete(&registry.address, "prod/app", "three");
    serves(address, "prod/app", "v1", "one");
    put(&registry.address, "prod/app", "v1", &manifest("four"));
    serves(address, "prod/app", "v1", "one");
    // The image itself is deleted: its name is nobody else's.
    delete(&registry.address, "prod/app", "one");
    for method in ["HEAD", "GET"] {
        assert_eq!(read(address, method, "prod/app", "v1").status, 404);
    }
    assert_eq!(read(address, "GET", "prod/app", "v1").code(), "MANIFEST_UNKNOWN");
    assert_eq!(put(address, "prod/app", "v1", &manifest("four")).status, 409);
    // Mutable tags follow the registry.
    put(address, "prod/app", "latest", &manifest("one"));
    put(&registry.address, "prod/app", "latest", &manifest("two"));
    serves(address, "prod/app", "latest", "two");
    // And a push of the bound image brings both back.
    assert_eq!(put(address, "prod/app", "v1", &manifest("one")).status, 201);
    serves(address, "prod/app", "v1", "one");
    serves(&registry.address, "prod/app", "v1", "one");
}

#[test]
fn a_tag_never_pushed_through_taglock_is_bound_at_first_sight() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    assert_eq!(read(&taglock.address, "GET", "prod/app", "v1").status, 404);
    put(&registry.address, "prod/app", "v1", &manifest("one"));
    serves(&taglock.address, "prod/app", "v1", "one");
    put(&registry.address, "prod/app", "v1", &manifest("two"));
    serves(&taglock.address, "prod/app", "v1", "one");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    taglock.restart();
    serves(&taglock.address, "prod/app", "v1", "one");
    let log = taglock.process.log();
    let bindings: Vec<_> = log.lines().filter(|l| l.contains("outcome=\"first-sight\"")).collect();
    assert_eq!(bindings.len(), 1, "{bindings:?}");
    assert!(bindings[0].contains("tags=\"v1\"") && bindings[0].contains("rule=\"releases\""));
    assert!(taglock.metric("taglock_protected_pull_seconds_count{outcome=\"served\"}") > 0.0);
}

#[test]
fn the_answer_looks_like_the_registrys_own() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "namespace = \"docker.io\"", RULES);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    let etag = format!("\"{}\"", digest(&manifest("one")));
    let target = "/v2/prod/app/manifests/v1";
    for (method, target, headers, status) in [
        ("GET", target, vec![("Accept", ALL)], 200),
        ("HEAD", target, vec![("Accept", ALL)], 200),
        ("GET", target, vec![("Accept", OCI), ("Accept", INDEX)], 200),
        ("GET", "/v2/prod/app/manifests/v1?ns=docker.io", vec![("Accept", ALL)], 200),
        ("GET", target, vec![("Accept", ALL), ("If-None-Match", etag.as_str())], 304),
        ("HEAD", target, vec![("Accept", ALL), ("If-None-Match", etag.as_str())], 304),
        ("GET", target, vec![("Accept", ALL), ("If-None-Match", "\"x\"")], 200),
        ("GET", target, vec![("Accept", ALL), ("Accept-Encoding", "gzip")], 200),
        ("GET", target, vec![("Accept", ALL), ("Range", "bytes=0-9")], 200),
        ("HEAD", "/v2/prod/app/manifests/nothing", vec![("Accept", ALL)], 404),
        ("GET", "/v2/prod/app/manifests/nothing", vec![("Accept", ALL)], 404),
        ("GET", "/v2/prod/none/manifests/v1", vec![("Accept", ALL)], 404),
    ] {
        let headers = [headers.as_slice(), &[("Host", "registry.example.com")]].concat();
        let direct = request(&registry.address, method, target, &headers, b"");
        let through = request(&taglock.address, method, target, &headers, b"");
        assert_eq!(through.status, status, "{method} {target} {headers:?}: {through:?}");
        assert_eq!(through.comparable(), direct.comparable(), "{method} {target} {headers:?}");
        let names = |answer: &Answer| {
            let mut names: Vec<_> = answer.headers.iter().map(|(n, _)| n.clone()).collect();
            names.retain(|name| !matches!(name.as_str(), "Date" | "Connection"));
            names.sort();
            names
        };
        assert_eq!(names(&through), names(&direct), "{method} {target}");
    }
    // A connection lives on, with a body where none belongs, too.
    let twice = http::bytes("x", "GET", target, &[("Accept", ALL)], b"body");
    assert_eq!(http::raw(&taglock.address, &twice).status, 200);
}

#[test]
fn a_narrow_accept_neither_hides_a_tag_from_the_ledger_nor_teaches_it_anything() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let narrow = [("Accept", OCI)];
    put(&registry.address, "prod/app", "v1", &manifest("index"));
    let direct = read_with(&registry.address, "GET", "prod/app", "v1", &narrow);
    assert_eq!(direct.status, 404, "this registry hides an index from those who don't name it");
    for method in ["GET", "HEAD"] {
        let through = read_with(&taglock.address, method, "prod/app", "v1", &narrow);
        assert_eq!(through.status, 404, "{through:?}");
    }
    // It is bound all the same: to the index.
    put(&registry.address, "prod/app", "v1", &manifest("other"));
    serves(&taglock.address, "prod/app", "v1", "index");
    let any = read_with(&taglock.address, "GET", "prod/app", "v1", &[("Accept", "*/*")]);
    assert!(matches!(any.status, 404 | 200), "{any:?}");
    if any.status == 200 {
        assert_eq!(any.body, manifest("index"));
    }
}

#[test]
fn real_clients_stay_on_the_first_image() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let images = Images::new();
    let copy = |image: &str, address: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false"]).arg(images.source(image));
        succeed(command.arg(format!("docker://{address}/prod/app:v1")));
    };
    let name = format!("{}/prod/app:v1", taglock.address);
    copy("one", &registry.address);
    let first = tag_of(&registry.address, "prod/app", "v1").unwrap();
    let inspect = || {
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"]);
        succeed(command.arg(format!("docker://{name}"))).trim().to_owned()
    };
    let storage = tempfile::tempdir().unwrap();
    let podman = || {
        let mut pull = containers("podman", storage.path());
        succeed(pull.args(["pull", "-q", "--tls-verify=false"]).arg(&name));
        let mut digest = containers("podman", storage.path());
        succeed(digest.args(["image", "inspect", "--format", "{{.Digest}}"]).arg(&name))
    };
    let daemon = Docker::start();
    let docker = || {
        let said = succeed(daemon.command().args(["pull", &name]));
        said.lines().find_map(|l| l.strip_prefix("Digest: ").map(str::to_owned)).unwrap()
    };
    assert_eq!(inspect(), first);
    copy("two", &registry.address);
    assert_ne!(tag_of(&registry.address, "prod/app", "v1").unwrap(), first, "it has moved");
    for _ in 0..2 {
        assert_eq!(inspect(), first);
        assert_eq!(podman().trim(), first);
        assert_eq!(docker(), first);
    }
}

#[test]
fn while_the_ledger_is_down_what_was_seen_is_served_and_the_rest_by_the_setting() {
    let registry = Registry::start();
    let mut redis = Redis::start(&[]);
    // A look of the watch that comes late would tell of the tag that is moved below.
    let proxy = |key: &str| {
        proxy(&registry.address, &redis.address, &format!("{key}\n[drift]\nwatch = false"))
    };
    let taglock = proxy("cache_ttl = \"1s\"");
    let strict = proxy("on_ledger_outage = \"strict\"");
    let proxies = [&taglock, &strict];
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    put(&registry.address, "prod/app", "v2", &manifest("two"));
    for proxy in proxies {
        serves(&proxy.address, "prod/app", "v1", "one");
    }
    put(&registry.address, "prod/app", "v1", &manifest("moved"));
    // Its memory is older than its time to live by now; that is no matter.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    redis.stop();
    for _ in 0..3 {
        serves(&taglock.address, "prod/app", "v1", "one");
        for method in ["GET", "HEAD"] {
            let answer = read(&taglock.address, method, "prod/app", "v1");
            let warning =
                answer.header("Warning").unwrap_or_else(|| panic!("no warning: {answer:?}"));
            assert!(warning.contains("ledger is down: the tag may have been freed"), "{warning}");
        }
        let answer = read(&strict.address, "GET", "prod/app", "v1");
        assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{answer:?}");
    }
    let answer = read(&taglock.address, "GET", "prod/app", "v2");
    assert_eq!((answer.status, &answer.body), (200, &manifest("two")), "{answer:?}");
    let warning = answer.header("Warning").expect("a warning");
    assert!(warning.starts_with("299 - \"taglock's ledger is down"), "{warning}");
    let answer = read(&strict.address, "GET", "prod/app", "v2");
    assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{answer:?}");
    assert_eq!(answer.header("Retry-After"), Some("5"));
    // Digests need no ledger.
    let by_digest = digest(&manifest("two"));
    assert_eq!(read(&strict.address, "GET", "prod/app", &by_digest).status, 200);
    redis.restart();
    eventually("the ledger", || read(&strict.address, "GET", "prod/app", "v2").status == 200);
    eventually("the warning's end", || {
        read(&taglock.address, "GET", "prod/app", "v2").header("Warning").is_none()
    });
    put(&registry.address, "prod/app", "v2", &manifest("moved"));
    for proxy in proxies {
        serves(&proxy.address, "prod/app", "v2", "two");
        serves(&proxy.address, "prod/app", "v1", "one");
        assert_eq!(read(&proxy.address, "GET", "prod/app", "v1").header("Warning"), None);
    }
}

#[test]
fn a_registry_that_serves_other_bytes_is_not_passed_on() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "exchange_timeout = \"2s\"", RULES);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    // From a client that is let in, the tag is asked for by its digest.
    serves(&taglock.address, "prod/app", "v1", "one");
    let lying = Fault::Answer(200, vec![("content-type", INDEX.into())], "{\"other\": 1}");
    // What is out of the ordinary is asked for once more, by the judge.
    fake.plan("GET", "sha256:", lying, 2);
    let answer = read(&taglock.address, "GET", "prod/app", "v1");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.message().contains("do not have its digest"), "{answer:?}");
    assert!(!answer.text().contains("other\\\""));
    assert!(taglock.process.log().contains("the registry serves other bytes"));
    for method in ["HEAD", "GET"] {
        fake.plan(method, "sha256:", Fault::Lie, 2);
        assert_eq!(read(&taglock.address, method, "prod/app", "v1").status, 502, "{method}");
    }
    assert_eq!(taglock.metric("taglock_protected_pull_seconds_count{outcome=\"wrong\"}"), 3.0);
    serves(&taglock.address, "prod/app", "v1", "one");
    // Failures and refusals of the registry are told as they are.
    for (fault, status) in [
        (Fault::Answer(401, vec![("www-authenticate", "Basic realm=\"x\"".into())], "{}"), 401),
        (Fault::Answer(403, vec![], ""), 403),
        (Fault::Answer(429, vec![("retry-after", "7".into())], "{}"), 429),
        (Fault::Answer(503, vec![], ""), 503),
        (Fault::Answer(307, vec![("location", "http://elsewhere.example/x".into())], ""), 502),
        (Fault::CutBefore, 502),
        (Fault::HangBefore, 504),
    ] {
        for (tag, part) in [("v1", "sha256:"), ("v2", "/v2")] {
            if tag == "v2" && status == 503 {
                continue;
            }
            fake.plan(
                "GET",
                &format!("manifests/{}", part.trim_start_matches('/')),
                fault.clone(),
                9,
            );
            let answer = read(&taglock.address, "GET", "prod/app", tag);
            assert_eq!(answer.status, status, "{tag} {fault:?}: {answer:?}");
            assert!(!answer.body.is_empty() || status == 503, "{tag} {fault:?}: {answer:?}");
            fake.recover();
        }
    }
    serves(&taglock.address, "prod/app", "v1", "one");
    assert_eq!(read(&taglock.address, "GET", "prod/app", "v2").status, 404);
}

#[test]
fn manifests_larger_than_may_be_pushed_are_served_all_the_same() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "", RULES);
    let large = manifest(&"x".repeat(9 << 20));
    put(&fake.address, "prod/app", "v1", &large);
    assert_eq!(put(&taglock.address, "prod/app", "v2", &large).status, 413);
    for _ in 0..2 {
        let answer = read(&taglock.address, "GET", "prod/app", "v1");
        assert_eq!((answer.status, answer.body.len()), (200, large.len()));
    }
}

#[test]
fn only_whom_the_registry_lets_in_learns_or_binds_anything() {
    let registry =
        Registry::prepared("auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }", |dir| {
            let file = dir.join("htpasswd");
            succeed(Command::new("htpasswd").arg("-Bbc").arg(file).args(["alice", "secret"]));
        });
    let taglock = Taglock::before(&registry.address);
    let basic = |account: &str| format!("Basic {}", BASE64_STANDARD.encode(account));
    let (alice, mallory) = (basic("alice:secret"), basic("mallory:secret"));
    let push = |address: &str, tag: &str, seed: &str| {
        let target = format!("/v2/prod/app/manifests/{tag}");
        let headers = [("Content-Type", INDEX), ("Authorization", alice.as_str())];
        assert_eq!(request(address, "PUT", &target, &headers, &manifest(seed)).status, 201);
    };
    push(&taglock.address, "bound", "one");
    push(&registry.address, "unseen", "two");
    for method in ["GET", "HEAD"] {
        for credentials in [None, Some(mallory.as_str())] {
            let answers = ["bound", "unseen", "nothing"].map(|tag| {
                let mut headers = vec![("Accept", ALL)];
                headers.extend(credentials.map(|value| ("Authorization", value)));
                let answer = read_with(&taglock.address, method, "prod/app", tag, &headers);
                assert_eq!(answer.status, 401, "{tag} {answer:?}");
                assert_eq!(answer.header("WWW-Authenticate"), Some("Basic realm=\"house\""));
                answer.comparable()
            });
            // Whoever is not let in sees no difference between what is bound and what is not.
            assert!(answers.iter().all(|a| a.1 == answers[0].1), "{answers:?}");
        }
    }
    // And nothing was bound by them: the tag is where the registry has it when alice comes.
    push(&registry.address, "unseen", "three");
    let headers = [("Accept", ALL), ("Authorization", alice.as_str())];
    let answer = read_with(&taglock.address, "GET", "prod/app", "unseen", &headers);
    assert_eq!((answer.status, answer.body), (200, manifest("three")));
}

/// A registry, and Debian's own as a pull-through mirror of it.
fn mirror() -> (Registry, Registry) {
    let hub = Registry::start();
    let mirror = Registry::with(&format!("proxy: {{ remoteurl: 'http://{}' }}", hub.address));
    (hub, mirror)
}

#[test]
fn the_tags_of_a_mirror_stay_and_the_excepted_ones_follow() {
    let (hub, mirror) = mirror();
    let taglock = Taglock::before(&mirror.address);
    for tag in ["v1", "latest"] {
        put(&hub.address, "prod/app", tag, &manifest("one"));
        serves(&taglock.address, "prod/app", tag, "one");
        put(&hub.address, "prod/app", tag, &manifest("two"));
    }
    serves(&mirror.address, "prod/app", "v1", "two");
    for _ in 0..2 {
        serves(&taglock.address, "prod/app", "v1", "one");
        serves(&taglock.address, "prod/app", "latest", "two");
    }
}

#[test]
fn a_docker_daemon_whose_mirror_is_taglock_stays_on_the_first_image() {
    let (hub, mirror) = mirror();
    let taglock = Taglock::with(&mirror.address, "", &RULES.replace("prod/**", "library/*"));
    let docker = Docker::with(&["--registry-mirror", &format!("http://{}", taglock.address)]);
    let images = Images::new();
    let publish = |image: &str, tag: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false"]).arg(images.source(image));
        succeed(command.arg(format!("docker://{}/library/app:{tag}", hub.address)));
        tag_of(&hub.address, "library/app", tag).unwrap()
    };
    let pull = |tag: &str| {
        let said = succeed(docker.command().args(["pull", &format!("app:{tag}")]));
        said.lines().find_map(|l| l.strip_prefix("Digest: ").map(str::to_owned)).unwrap()
    };
    let first = publish("one", "1.2.3");
    assert_eq!(publish("one", "latest"), first);
    assert_eq!((pull("1.2.3"), pull("latest")), (first.clone(), first.clone()));
    let second = publish("two", "1.2.3");
    assert_eq!(publish("two", "latest"), second);
    assert_ne!(first, second);
    assert_eq!((pull("1.2.3"), pull("latest")), (first, second));
    assert!(taglock.metric("taglock_protected_pull_seconds_count{outcome=\"first-sight\"}") > 0.0);
}

#[test]
fn the_namespace_of_a_mirrors_client_is_passed_on_with_every_request() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "namespace = \"docker.io\"", RULES);
    put(&fake.address, "prod/app", "v1", &manifest("one"));
    let before = fake.targets().len();
    let target = "/v2/prod/app/manifests/v1?ns=docker.io";
    for method in ["HEAD", "GET"] {
        assert_eq!(request(&taglock.address, method, target, &[], b"").status, 200);
    }
    let targets = fake.targets().split_off(before);
    assert!(targets.len() >= 3, "{targets:?}");
    assert!(targets.iter().all(|t| t.ends_with("?ns=docker.io")), "{targets:?}");
}
