//! Who may do what: robots that may push and not pull, and users with a repository each.

use std::fs;
use std::process::Command;

use crate::auth::{basic, nginx, with_tokens};
use crate::harness::*;
use crate::http::{Answer, request};

/// A registry whose robot may push and not pull, behind a front that hides manifests from it with
/// this status.
fn before_robots(status: u16) -> (Registry, Process, String, tempfile::TempDir) {
    let registry =
        Registry::prepared("auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }", |dir| {
            let file = dir.join("htpasswd");
            for (create, user) in [("-Bbc", "alice"), ("-Bb", "robot"), ("-Bb", "keeper")] {
                succeed(Command::new("htpasswd").arg(create).arg(&file).args([user, "secret"]));
            }
        });
    let folder = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", port());
    // "cm9ib3Q6" is `robot:`.
    let locations = format!(
        "location / {{ set $robot \"\"; \
         if ($request_method ~ \"GET|HEAD\") {{ set $robot R; }} \
         if ($http_authorization ~ \"^Basic cm9ib3Q6\") {{ set $robot \"${{robot}}B\"; }} \
         if ($robot = RB) {{ return {status}; }} \
         proxy_pass http://{}; proxy_set_header Host $http_host; client_max_body_size 0; }}",
        registry.address
    );
    let front = nginx(folder.path(), &address, &locations, "");
    (registry, front, address, folder)
}

fn push_as(address: &str, account: &str, repository: &str, tag: &str, seed: &str) -> Answer {
    let target = format!("/v2/{repository}/manifests/{tag}");
    let authorization = basic(account);
    let headers = [("Content-Type", INDEX), ("Authorization", authorization.as_str())];
    request(address, "PUT", &target, &headers, &manifest(seed))
}

fn with_account(registry: &str, folder: &std::path::Path) -> Taglock {
    let file = folder.join("account");
    fs::write(&file, "keeper:secret\n").unwrap();
    Taglock::with(registry, &format!("credentials_file = \"{}\"", file.display()), RULES)
}

#[test]
fn a_robot_that_may_not_pull_pushes_by_the_eyes_of_taglocks_account() {
    for status in [403, 404] {
        let (registry, _front, address, folder) = before_robots(status);
        let taglock = with_account(&address, folder.path());
        let robot = |tag: &str, seed: &str| {
            push_as(&taglock.address, "robot:secret", "prod/app", tag, seed)
        };
        let answer = robot("v1", "one");
        assert_eq!(answer.status, 201, "{status} {}", answer.text());
        assert_eq!(robot("v1", "one").status, 201, "{status}");
        // What was there before taglock is protected from the robot, too.
        let there = push_as(&registry.address, "alice:secret", "prod/app", "old", "before");
        assert_eq!(there.status, 201);
        for tag in ["v1", "old"] {
            let answer = robot(tag, "two");
            assert_eq!(answer.status, 409, "{status} {}", answer.text());
            assert!(answer.message().contains("already exists"), "{}", answer.text());
            // It may not see what is there, so it is told its own digest and no other.
            let [bound, pushed] = ["one", "two"].map(|seed| digest(&manifest(seed)));
            assert!(answer.text().contains(&pushed), "{}", answer.text());
            assert!(!answer.text().contains(&bound), "{}", answer.text());
            assert!(!answer.text().contains(&digest(&manifest("before"))), "{}", answer.text());
        }
        // Who may pull is told what the tag is bound to.
        let answer = push_as(&taglock.address, "alice:secret", "prod/app", "v1", "two");
        assert!(answer.text().contains(&digest(&manifest("one"))), "{}", answer.text());
        assert!(!taglock.process.log().contains("c2VjcmV0"));
    }
}

#[test]
fn a_robot_that_may_not_pull_is_told_so_where_taglock_has_no_account() {
    let (_registry, _front, address, _folder) = before_robots(403);
    let taglock = Taglock::before(&address);
    for (tag, seed) in [("v1", "one"), ("v1", "two")] {
        let answer = push_as(&taglock.address, "robot:secret", "prod/app", tag, seed);
        assert_eq!((answer.status, answer.code().as_str()), (403, "DENIED"), "{}", answer.text());
        assert!(answer.message().contains("upstream.credentials_file"), "{}", answer.text());
    }
    // It has bound nothing.
    let answer = push_as(&taglock.address, "alice:secret", "prod/app", "v1", "three");
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn taglocks_account_looks_for_nobody_who_may_not_push() {
    let (registry, _front, address, folder) = before_robots(403);
    let taglock = with_account(&address, folder.path());
    assert_eq!(push_as(&taglock.address, "alice:secret", "prod/app", "v1", "one").status, 201);
    for account in ["robot:wrong", "mallory:secret"] {
        let answers = ["v1", "v2"].map(|tag| {
            let answer = push_as(&taglock.address, account, "prod/app", tag, "two");
            assert!(matches!(answer.status, 401 | 403), "{account} {}", answer.text());
            assert!(!answer.text().contains("exists"), "{}", answer.text());
            (answer.status, answer.text())
        });
        assert_eq!(answers[0], answers[1], "what is bound and what is not look the same");
    }
    assert_eq!(push_as(&registry.address, "alice:secret", "prod/app", "v2", "x").status, 201);
}

/// Of each user: tokens for a repository of their own and, to pull, for the one of alice's.
#[test]
fn of_a_repository_that_is_not_theirs_users_learn_what_the_registry_tells_them() {
    let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
    let taglock = Taglock::before(&registry.address);
    let token = |user: &str, scope: &str| {
        let target = format!("/token?service=house&scope=repository:{scope}");
        let authorization = basic(&format!("{user}:secret"));
        let headers = [("Authorization", authorization.as_str())];
        let answer = request(&server.address, "GET", &target, &headers, b"");
        let answer: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
        format!("Bearer {}", answer["token"].as_str().unwrap())
    };
    let push = |address: &str, authorization: &str, repository: &str, tag: &str, seed: &str| {
        let target = format!("/v2/{repository}/manifests/{tag}");
        let headers = [("Content-Type", INDEX), ("Authorization", authorization)];
        request(address, "PUT", &target, &headers, &manifest(seed))
    };
    let alice = token("alice", "prod/app:pull,push");
    let carol = token("carol", "prod/carol:pull,push");
    assert_eq!(push(&taglock.address, &alice, "prod/app", "bound", "one").status, 201);
    assert_eq!(push(&registry.address, &alice, "prod/app", "unseen", "two").status, 201);
    assert_eq!(push(&taglock.address, &carol, "prod/carol", "bound", "mine").status, 201);
    let refused = push(&taglock.address, &carol, "prod/carol", "bound", "other");
    assert_eq!(refused.status, 409, "{}", refused.text());

    let one = digest(&manifest("one"));
    // carol's own token, one that she asked for and got nothing with, and bob's to pull alone.
    let strangers =
        [carol.clone(), token("carol", "prod/app:pull,push"), token("bob", "prod/app:pull")];
    for (n, stranger) in strangers.iter().enumerate() {
        let may_pull = n == 2;
        for reference in ["bound", "unseen", "nothing", one.as_str()] {
            let target = format!("/v2/prod/app/manifests/{reference}");
            let headers =
                [("Content-Type", INDEX), ("Accept", INDEX), ("Authorization", stranger.as_str())];
            for (method, body) in
                [("GET", &b""[..]), ("HEAD", b""), ("DELETE", b""), ("PUT", &manifest("one"))]
            {
                if may_pull && matches!(method, "GET" | "HEAD") {
                    continue;
                }
                let through = request(&taglock.address, method, &target, &headers, body);
                if may_pull {
                    // bob sees what is there, so the tag may be the reason; but never yes.
                    let no = [401, 404, 405, 409].contains(&through.status);
                    assert!(no, "{method} {target} {through:?}");
                    continue;
                }
                let direct = request(&registry.address, method, &target, &headers, body);
                assert_eq!(through.status, direct.status, "{n} {method} {target} {through:?}");
                assert_eq!(
                    through.header("WWW-Authenticate").is_some(),
                    direct.header("WWW-Authenticate").is_some(),
                    "{method} {target}"
                );
                if reference != one {
                    assert!(!format!("{through:?}").contains(&one), "{method} {through:?}");
                }
            }
        }
    }
    // Nobody's tries have bound anything: alice's tag is where she put it in the meantime.
    assert_eq!(push(&registry.address, &alice, "prod/app", "nothing", "three").status, 201);
    let answer = push(&taglock.address, &alice, "prod/app", "nothing", "three");
    assert_eq!(answer.status, 201, "{}", answer.text());
    for tag in ["bound", "unseen"] {
        let seed = if tag == "bound" { "one" } else { "two" };
        let answer = push(&taglock.address, &alice, "prod/app", tag, seed);
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
}
