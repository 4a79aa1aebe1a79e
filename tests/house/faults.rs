//! A registry that fails at each step of a push: every failure has a clear answer, and leaves
//! no tag half bound.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http::{self, Answer};

/// Short bounds, so that a hang is seen within the test.
const QUICK: &str = "exchange_timeout = \"1s\"\nread_timeout = \"2s\"\nconnect_timeout = \"1s\"";

fn start() -> (Fake, Taglock) {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, QUICK, RULES);
    (fake, taglock)
}

fn push(taglock: &Taglock, seed: &str) -> Answer {
    put(&taglock.address, "prod/app", "v1", &manifest(seed))
}

/// After whatever went wrong: the registry is well again, some image gets the tag, and from then
/// on no other.
fn settles(fake: &Fake, taglock: &Taglock, expected: &[&str]) {
    fake.recover();
    let mut winner = None;
    eventually("a verdict for the tag", || {
        for seed in expected {
            let answer = push(taglock, seed);
            match answer.status {
                201 => winner = Some(*seed),
                409 | 503 => {}
                other => panic!("{other}: {}", answer.text()),
            }
        }
        winner.is_some()
    });
    let winner = winner.unwrap();
    assert_eq!(fake.tag("prod/app", "v1"), Some(digest(&manifest(winner))));
    assert_eq!(push(taglock, "somebody-else").status, 409);
    assert_eq!(push(taglock, winner).status, 201);
}

#[test]
fn a_new_tag_takes_the_steps_of_the_protocol_and_each_put_once() {
    let (fake, taglock) = start();
    let one = digest(&manifest("one"));
    assert_eq!(push(&taglock, "one").status, 201);
    let steps: Vec<_> = fake
        .seen()
        .into_iter()
        .map(|l| l.replace("/v2/prod/app/manifests/", "").replace(&one, "D"))
        .collect();
    assert_eq!(
        steps,
        ["PUT D", "HEAD v1", "HEAD v1", "HEAD D", "PUT v1"],
        "stage, look, look again, see the staged one, publish"
    );
    // The same again: it carries the ledger's digest, so one PUT is enough.
    assert_eq!(push(&taglock, "one").status, 201);
    assert_eq!(fake.seen().len(), 6);
    // Another: the registry lets this client look, and that is all it hears of it.
    assert_eq!(push(&taglock, "two").status, 409);
    assert_eq!(fake.seen().last().unwrap(), "HEAD /v2/prod/app/manifests/v1");
    assert_eq!(fake.seen().len(), 7);
}

#[test]
fn pushes_one_after_another_share_a_connection_to_the_registry() {
    let (fake, taglock) = start();
    for n in 0..50 {
        let answer = put(&taglock.address, "prod/app", &format!("v{n}"), &manifest("one"));
        assert_eq!(answer.status, 201, "{}", answer.text());
    }
    // One, but for a request that took too long on a busy machine. Where each connection was given
    // up that was asked for again at once, it was one in twenty requests.
    let (connections, requests) = (fake.connections(), fake.seen().len());
    assert!(connections < 4, "{connections} for {requests} requests");
}

#[test]
fn a_failing_first_look_claims_nothing() {
    for (fault, status) in [
        (Fault::Answer(500, vec![], ""), 500),
        (Fault::Answer(307, vec![("location", "http://elsewhere.example/".into())], ""), 503),
        (Fault::HangBefore, 503),
        (Fault::CutBefore, 503),
        (Fault::Answer(401, vec![("www-authenticate", "Basic realm=\"x\"".into())], ""), 401),
        (Fault::Answer(403, vec![], ""), 403),
        (Fault::Answer(429, vec![("retry-after", "7".into())], ""), 429),
    ] {
        let (fake, taglock) = start();
        fake.plan("HEAD", "/v1", fault.clone(), 100);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, status, "{fault:?}: {}", answer.text());
        assert!(!answer.code().is_empty());
        match status {
            503 => assert_eq!(answer.header("Retry-After"), Some("5")),
            401 => assert_eq!(answer.header("WWW-Authenticate"), Some("Basic realm=\"x\"")),
            429 => assert_eq!(answer.header("Retry-After"), Some("7")),
            _ => {}
        }
        assert_eq!(fake.count("PUT", "/v1"), 0, "{fault:?}");
        settles(&fake, &taglock, &["two"]);
    }
}

#[test]
fn a_failing_stage_claims_nothing() {
    for (fault, status) in [
        (
            Fault::Answer(
                400,
                vec![],
                r#"{"errors":[{"code":"MANIFEST_INVALID","message":"no"}]}"#,
            ),
            400,
        ),
        (Fault::Answer(403, vec![], ""), 403),
        (Fault::Answer(307, vec![("location", "http://elsewhere.example/".into())], ""), 502),
        (Fault::Answer(500, vec![], ""), 500),
        (Fault::DoneBut(502), 502),
        (Fault::HangAfter, 503),
        (Fault::Lie, 503),
    ] {
        let (fake, taglock) = start();
        fake.plan("PUT", "sha256:", fault.clone(), 100);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, status, "{fault:?}: {}", answer.text());
        assert_eq!(fake.count("PUT", "/v1"), 0, "{fault:?}");
        // An answer is the registry's to give: it is not asked again.
        assert_eq!(fake.count("PUT", "sha256:"), 1, "{fault:?}");
        settles(&fake, &taglock, &["two"]);
    }
}

#[test]
fn a_failing_second_look_gives_the_claim_back() {
    for (method, part, fault, status) in [
        ("HEAD", "sha256:", Fault::Answer(500, vec![], ""), 500),
        ("HEAD", "sha256:", Fault::HangBefore, 503),
        // A 404 for what was just stored: this account can't see, so its 404s prove nothing.
        ("HEAD", "sha256:", Fault::Answer(404, vec![], ""), 503),
        ("HEAD", "sha256:", Fault::Lie, 503),
        ("HEAD", "sha256:", Fault::Answer(403, vec![], ""), 403),
    ] {
        let (fake, taglock) = start();
        fake.plan(method, part, fault.clone(), 100);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, status, "{fault:?}: {}", answer.text());
        assert_eq!(fake.count("PUT", "/v1"), 0, "{fault:?}");
        settles(&fake, &taglock, &["two"]);
    }
}

#[test]
fn a_tag_that_appears_between_the_looks_wins() {
    let (fake, taglock) = start();
    // The manifest is stored late; meanwhile somebody writes the tag behind the proxy.
    fake.plan("PUT", "sha256:", Fault::Delay(Duration::from_millis(500)), 1);
    let address = taglock.address.clone();
    let pusher = std::thread::spawn(move || put(&address, "prod/app", "v1", &manifest("one")));
    eventually("the stage", || fake.count("PUT", "sha256:") == 1);
    put(&fake.address, "prod/app", "v1", &manifest("behind"));
    let answer = pusher.join().unwrap();
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(answer.message().contains(&digest(&manifest("behind"))));
    assert_eq!(push(&taglock, "behind").status, 201);
}

#[test]
fn a_refused_publication_gives_the_claim_back_and_is_relayed() {
    for status in [400, 403, 405, 409, 412, 415, 422, 429] {
        let (fake, taglock) = start();
        let text = r#"{"errors":[{"code":"DENIED","message":"quota exceeded"}]}"#;
        fake.plan("PUT", "/v1", Fault::Answer(status, vec![], text), 1);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, status, "{}", answer.text());
        if status != 429 {
            assert_eq!(answer.text(), text);
        }
        assert_eq!(fake.tag("prod/app", "v1"), None);
        settles(&fake, &taglock, &["two"]);
    }
}

#[test]
fn a_publication_with_an_unclear_answer_is_resolved_by_a_look() {
    for fault in
        [Fault::DoneBut(500), Fault::DoneBut(409), Fault::CutAfter, Fault::HangAfter, Fault::Lie]
    {
        let (fake, taglock) = start();
        fake.plan("PUT", "/v1", fault.clone(), 1);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, 201, "{fault:?}: {}", answer.text());
        assert_eq!(fake.count("PUT", "/v1"), 1, "{fault:?}: it was sent once");
        assert_eq!(push(&taglock, "two").status, 409);
    }
}

#[test]
fn a_publication_with_an_unknown_outcome_says_so_and_only_its_image_completes_it() {
    for (fault, status) in
        [(Fault::Answer(500, vec![], ""), 502), (Fault::CutBefore, 502), (Fault::HangBefore, 504)]
    {
        let (fake, taglock) = start();
        fake.plan("PUT", "/v1", fault.clone(), 1);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, status, "{fault:?}: {}", answer.text());
        assert!(answer.message().contains("push the same image again"), "{}", answer.text());
        assert_eq!(fake.count("PUT", "/v1"), 1, "{fault:?}: it was sent once");
        // The claim stands: another image is not let in, and nobody else publishes the first one.
        let other = push(&taglock, "two");
        assert_eq!(other.status, 503, "{fault:?}: {}", other.text());
        assert_eq!(fake.tag("prod/app", "v1"), None);
        assert_eq!(push(&taglock, "one").status, 201);
        assert_eq!(push(&taglock, "two").status, 409);
    }
}

#[test]
fn a_registry_that_lies_about_a_tag_binds_nothing() {
    let (fake, taglock) = start();
    put(&fake.address, "prod/app", "v1", &manifest("old"));
    fake.plan("GET", "/v1", Fault::Lie, 100);
    let answer = push(&taglock, "one");
    assert_eq!(answer.status, 503, "{}", answer.text());
    fake.recover();
    assert_eq!(push(&taglock, "one").status, 409);
    assert_eq!(push(&taglock, "old").status, 201);
}

#[test]
fn a_registry_that_is_down_or_speaks_no_http_is_told_so() {
    // Nobody listens.
    let dead = format!("127.0.0.1:{}", port());
    let taglock = Taglock::with(&dead, QUICK, RULES);
    let answer = push(&taglock, "one");
    assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{}", answer.text());
    let streamed = http::get(&taglock.address, "/v2/other/tags/list");
    assert_eq!((streamed.status, streamed.code().as_str()), (502, "UNAVAILABLE"));
    let ready = http::get(&taglock.admin, "/readyz");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("ledger: ok"), "{}", ready.text());
    assert_eq!(http::get(&taglock.admin, "/healthz").status, 200);

    // Somebody listens and talks nonsense, or nothing.
    for nonsense in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"HTTP/1.1 banana\r\n\r\n", b""] {
        let address = format!("127.0.0.1:{}", port());
        let listener = std::net::TcpListener::bind(&address).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                stream.write_all(nonsense).unwrap();
                std::thread::spawn(move || {
                    sleep(Duration::from_secs(30));
                    drop(stream);
                });
            }
        });
        let taglock = Taglock::with(&address, QUICK, RULES);
        let answer = push(&taglock, "one");
        assert_eq!(answer.status, 503, "{nonsense:?}: {}", answer.text());
        let streamed = http::get(&taglock.address, "/v2/other/tags/list");
        assert!(matches!(streamed.status, 502 | 504), "{nonsense:?}: {}", streamed.status);
    }
}

/// At each step of the protocol: the push ends all the same, or leaves nothing.
#[test]
fn a_client_that_leaves_in_the_middle_changes_nothing() {
    for (method, part) in [("HEAD", "/v1"), ("PUT", "sha256:"), ("HEAD", "sha256:"), ("PUT", "/v1")]
    {
        let (fake, taglock) = start();
        fake.plan(method, part, Fault::Delay(Duration::from_millis(400)), 1);
        let bytes = http::bytes(
            &taglock.address,
            "PUT",
            "/v2/prod/app/manifests/v1",
            &[("Content-Type", INDEX)],
            &manifest("one"),
        );
        let mut stream = http::connect(&taglock.address).unwrap();
        stream.write_all(&bytes).unwrap();
        eventually("the delayed step", || fake.count(method, part) == 1);
        drop(stream);
        eventually("the push's end", || fake.tag("prod/app", "v1").is_some());
        eventually("the seal", || taglock.metric("taglock_protected_pushes_in_flight ") == 0.0);
        assert_eq!(push(&taglock, "two").status, 409, "left at {method} {part}");
        assert_eq!(push(&taglock, "one").status, 201);
    }
}

#[test]
fn a_client_that_leaves_before_the_body_is_whole_binds_nothing() {
    let (fake, taglock) = start();
    let whole = http::bytes(
        &taglock.address,
        "PUT",
        "/v2/prod/app/manifests/v1",
        &[("Content-Type", INDEX)],
        &manifest("one"),
    );
    let mut stream = http::connect(&taglock.address).unwrap();
    stream.write_all(&whole[..whole.len() - 5]).unwrap();
    sleep(Duration::from_millis(200));
    drop(stream);
    sleep(Duration::from_millis(200));
    assert_eq!(fake.seen(), [""; 0], "nothing was sent to the registry");
    assert_eq!(push(&taglock, "two").status, 201);
}

#[test]
fn a_registry_without_puts_by_digest_is_served_with_stage_off() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "stage = false", RULES);
    fake.plan("PUT", "sha256:", Fault::Answer(405, vec![], ""), 100);
    assert_eq!(push(&taglock, "one").status, 201);
    assert_eq!(fake.count("PUT", "sha256:"), 0);
    assert_eq!(push(&taglock, "two").status, 409);
    assert_eq!(push(&taglock, "one").status, 201);
}

#[test]
fn with_abort_never_a_refused_push_keeps_its_claim() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "abort = \"never\"", RULES);
    fake.plan("PUT", "/v1", Fault::Answer(409, vec![], ""), 1);
    assert_eq!(push(&taglock, "one").status, 409);
    // Nothing moves; the tag stays claimed.
    let other = push(&taglock, "two");
    assert_eq!(other.status, 503, "{}", other.text());
    assert!(other.message().contains("push that image again"), "{}", other.text());
    assert_eq!(push(&taglock, "one").status, 201);
    assert_eq!(push(&taglock, "two").status, 409);
}
