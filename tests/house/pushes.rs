//! Judged writes against a real registry: what an operator is promised.

use std::thread;

use crate::fake::Fake;
use crate::harness::*;
use crate::http::{self, request};

#[test]
fn the_first_push_wins_another_is_refused_and_the_same_succeeds_for_ever() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    let (one, two) = (manifest("one"), manifest("two"));

    let first = put(&taglock.address, "immutable-repo", "v1", &one);
    assert_eq!(first.status, 201, "{}", first.text());
    assert_eq!(first.header("Docker-Content-Digest"), Some(digest(&one).as_str()));
    let location =
        format!("http://{}/v2/immutable-repo/manifests/{}", taglock.address, digest(&one));
    assert_eq!(first.header("Location"), Some(location.as_str()));

    for _ in 0..2 {
        let other = put(&taglock.address, "immutable-repo", "v1", &two);
        assert_eq!((other.status, other.code().as_str()), (409, "DENIED"));
        assert_eq!(
            other.message(),
            format!(
                "The image tag 'v1' already exists in the 'immutable-repo' repository and cannot be \
                 overwritten because the tag is immutable. It is bound to {}; the push was {}.",
                digest(&one),
                digest(&two)
            )
        );
        assert_eq!(other.header("Content-Type"), Some("application/json"));
        assert_eq!(other.header("Docker-Distribution-API-Version"), Some("registry/2.0"));
        assert_eq!(other.header("WWW-Authenticate"), None);
        assert!(!other.text().contains("detail"));

        let same = put(&taglock.address, "immutable-repo", "v1", &one);
        assert_eq!(same.status, 201, "{}", same.text());
        assert_eq!(tag_of(&registry.address, "immutable-repo", "v1"), Some(digest(&one)));
        // The second round is after a crash: what was acknowledged is still so.
        taglock.restart();
    }
}

#[test]
fn a_repository_without_exceptions_is_called_immutable_itself() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    put(&taglock.address, "all/app", "v1", &manifest("one"));
    let refused = put(&taglock.address, "all/app", "v1", &manifest("two"));
    assert!(refused.message().contains("because the repository is immutable. It is bound to"));
}

#[test]
fn the_style_of_ecr_is_its_very_sentence() {
    let registry = Registry::start();
    let rules = RULES.replace("mutability", "refusal = \"ecr\"\nmutability");
    let taglock = Taglock::with(&registry.address, "", &rules);
    put(&taglock.address, "immutable-repo", "v1", &manifest("one"));
    let refused = put(&taglock.address, "immutable-repo", "v1", &manifest("two"));
    assert_eq!((refused.status, refused.code().as_str()), (400, "TAG_INVALID"));
    assert_eq!(
        refused.message(),
        "The image tag 'v1' already exists in the 'immutable-repo' repository and cannot be \
         overwritten because the repository is immutable."
    );
}

#[test]
fn excepted_tags_and_unmatched_repositories_move() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let signature = format!("sha256-{}.sig", "ab".repeat(32));
    for (repository, tag) in [
        ("immutable-repo", "latest"),
        ("prod/a/b", "dev-1"),
        ("prod/a", signature.as_str()),
        ("other", "v1"),
        ("prod", "v1"),
    ] {
        for seed in ["one", "two"] {
            let answer = put(&taglock.address, repository, tag, &manifest(seed));
            assert_eq!(answer.status, 201, "{repository}:{tag} {}", answer.text());
            let now = tag_of(&registry.address, repository, tag);
            assert_eq!(now, Some(digest(&manifest(seed))));
        }
    }
}

#[test]
fn a_tag_that_was_there_before_taglock_is_protected_from_the_first_push_on() {
    let registry = Registry::start();
    let (old, new) = (manifest("old"), manifest("new"));
    for repository in ["immutable-repo", "prod/x"] {
        put(&registry.address, repository, "v1", &old);
    }
    let taglock = Taglock::before(&registry.address);
    // An index only: a narrow `Accept` would make this registry hide it.
    let refused = put(&taglock.address, "immutable-repo", "v1", &new);
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert!(refused.message().contains(&digest(&old)));
    assert_eq!(put(&taglock.address, "prod/x", "v1", &old).status, 201);
    assert_eq!(tag_of(&registry.address, "immutable-repo", "v1"), Some(digest(&old)));
}

#[test]
fn a_tag_moved_or_deleted_behind_the_proxy_is_healed_by_its_own_image_only() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let (one, two) = (manifest("one"), manifest("two"));
    put(&taglock.address, "prod/app", "v1", &one);
    put(&registry.address, "prod/app", "v1", &two);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &two).status, 409);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 201);
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&one)));

    let target = format!("/v2/prod/app/manifests/{}", digest(&one));
    assert_eq!(request(&registry.address, "DELETE", &target, &[], b"").status, 202);
    assert_eq!(
        put(&taglock.address, "prod/app", "v1", &two).status,
        409,
        "a deleted tag stays bound"
    );
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), None);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 201);
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&one)));
}

#[test]
fn of_many_that_race_for_a_tag_one_digest_wins() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    for round in 0..5 {
        let tag = format!("r{round}");
        let answers: Vec<_> = thread::scope(|scope| {
            let pushers: Vec<_> = (0..8)
                .map(|n| {
                    let (address, tag) = (&taglock.address, &tag);
                    // Two pushers of each image.
                    scope.spawn(move || {
                        let bytes = manifest(&format!("{round}-{}", n / 2));
                        (digest(&bytes), put(address, "prod/race", tag, &bytes))
                    })
                })
                .collect();
            pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect()
        });
        let mut winners: Vec<_> =
            answers.iter().filter(|(_, a)| a.status == 201).map(|(d, _)| d.clone()).collect();
        assert!(answers.iter().all(|(_, a)| matches!(a.status, 201 | 409)), "{answers:?}");
        winners.dedup();
        winners.sort();
        winners.dedup();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert_eq!(tag_of(&registry.address, "prod/race", &tag), winners.pop());
    }
}

#[test]
fn two_jobs_that_push_the_same_image_at_once_both_succeed() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    for round in 0..10 {
        let bytes = manifest(&format!("{round}"));
        let tag = format!("v{round}");
        let statuses: Vec<_> = thread::scope(|scope| {
            let jobs: Vec<_> = (0..2)
                .map(|_| scope.spawn(|| put(&taglock.address, "prod/ci", &tag, &bytes).status))
                .collect();
            jobs.into_iter().map(|job| job.join().unwrap()).collect()
        });
        assert_eq!(statuses, [201, 201]);
    }
}

#[test]
fn a_set_of_tags_is_pushed_whole_or_not_at_all() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let (one, two) = (manifest("one"), manifest("two"));
    let set = |bytes: &[u8], tags: &str| {
        let target = format!("/v2/prod/set/manifests/{}?{tags}", digest(bytes));
        request(&taglock.address, "PUT", &target, &[("Content-Type", INDEX)], bytes)
    };
    // Debian's registry ignores the query; taglock publishes each tag itself.
    let first = set(&one, "tag=a&tag=b&tag=latest");
    assert_eq!(first.status, 201, "{}", first.text());
    let mut echoed: Vec<_> = first
        .headers
        .iter()
        .filter(|(n, _)| n.eq_ignore_ascii_case("oci-tag"))
        .map(|(_, v)| v.as_str())
        .collect();
    echoed.sort_unstable();
    assert_eq!(echoed, ["a", "b", "latest"]);
    for tag in ["a", "b", "latest"] {
        assert_eq!(tag_of(&registry.address, "prod/set", tag), Some(digest(&one)));
    }
    let refused = set(&two, "tag=c&tag=b&tag=latest");
    assert_eq!(refused.status, 409);
    assert!(refused.message().contains("'b'"), "{}", refused.message());
    assert_eq!(tag_of(&registry.address, "prod/set", "c"), None);
    assert_eq!(tag_of(&registry.address, "prod/set", "latest"), Some(digest(&one)));
    assert_eq!(set(&two, "tag=c&tag=latest").status, 201);
    assert_eq!(tag_of(&registry.address, "prod/set", "latest"), Some(digest(&two)));
}

#[test]
fn a_registry_that_takes_sets_of_tags_itself_is_never_sent_one() {
    let fake = Fake::start();
    fake.take_sets();
    let taglock = Taglock::before(&fake.address);
    let (one, two) = (manifest("one"), manifest("two"));
    let set = |name: &str, bytes: &[u8], tags: &str| {
        let target = format!("/v2/{name}/manifests/{}?{tags}", digest(bytes));
        request(&taglock.address, "PUT", &target, &[("Content-Type", INDEX)], bytes)
    };
    let tags_of = |answer: &http::Answer| {
        let echoed = answer.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("oci-tag"));
        let mut tags: Vec<_> = echoed.map(|(_, value)| value.clone()).collect();
        tags.sort_unstable();
        tags
    };
    let first = set("prod/set", &one, "tag=a&tag=latest");
    assert_eq!((first.status, tags_of(&first)), (201, vec!["a".into(), "latest".into()]));
    // One that it would move by itself: refused, and the fake fails the test if it moves.
    assert_eq!(set("prod/set", &two, "tag=c&tag=a").status, 409);
    assert_eq!(fake.tag("prod/set", "c"), None);
    for tag in ["a", "latest"] {
        assert_eq!(fake.tag("prod/set", tag), Some(digest(&one)));
    }
    // Where no rule matches the registry does it its own way.
    let outside = set("other/set", &two, "tag=a&tag=b");
    assert_eq!((outside.status, tags_of(&outside)), (201, vec!["a".into(), "b".into()]));
    assert_eq!(fake.tag("other/set", "b"), Some(digest(&two)));
}

#[test]
fn a_push_by_digest_alone_binds_nothing_and_must_have_its_digest() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let (one, two) = (manifest("one"), manifest("two"));
    let answer = put(&taglock.address, "prod/app", &digest(&one), &one);
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("OCI-Tag"), None);
    let wrong = put(&taglock.address, "prod/app", &digest(&one), &two);
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "DIGEST_INVALID"));
    assert_eq!(http::get(&taglock.address, "/v2/prod/app/tags/list").status, 404);
}
