//! Writes that older rules let through, and repairs: what is bound, freed or moved waits for their end,
//! though their client has left, or another process has taken over.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread;

use crate::fake::{Fake, Fault};
use crate::fleet::{Redis, proxy_with};
use crate::harness::*;
use crate::http::{self, request};
use crate::upgrade::Successors;

fn rules(mutability: &str) -> String {
    format!("[[rule]]\nname = \"r\"\nrepositories = \"team/**\"\nmutability = \"{mutability}\"\n")
}

const REPOSITORY: &str = "team/app";

/// The registry takes its time, and the client does not wait for it.
#[test]
fn a_write_whose_client_has_left_is_waited_for() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "exchange_timeout = \"10s\"\n", &rules("mutable"));
    let [one, two] = ["one", "two"].map(manifest);
    fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
    let target = format!("/v2/{REPOSITORY}/manifests/v1");
    let mut client = http::connect(&taglock.address).unwrap();
    client.write_all(&http::bytes("x", "PUT", &target, &[("Content-Type", INDEX)], &one)).unwrap();
    fake.holds();
    drop(client);
    taglock.reload(&rules("immutable"));
    let early = put(&taglock.address, REPOSITORY, "v1", &two);
    assert_eq!(early.status, 503, "{}", early.text());
    assert!(early.message().contains("under way"), "{}", early.text());
    fake.let_go();
    eventually("the write", || fake.tag(REPOSITORY, "v1") == Some(digest(&one)));
    // Once its exchange would have timed out, what it left is bound.
    eventually("the end of the wait", || {
        put(&taglock.address, REPOSITORY, "v1", &two).status == 409
    });
    assert_eq!(tag_of(&taglock.address, REPOSITORY, "v1"), Some(digest(&one)));
}

/// A client that leaves in the middle of a body keeps nobody waiting: the registry has not got all of it.
#[test]
fn a_write_that_never_came_whole_is_not_waited_for() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "exchange_timeout = \"60s\"\n", &rules("mutable"));
    let one = manifest("one");
    let target = format!("/v2/{REPOSITORY}/manifests/v1");
    let whole = http::bytes("x", "PUT", &target, &[("Content-Type", INDEX)], &one);
    let mut client = http::connect(&taglock.address).unwrap();
    client.write_all(&whole[..whole.len() - 5]).unwrap();
    eventually("the request", || taglock.metric("taglock_requests_in_flight") >= 1.0);
    drop(client);
    taglock.rests();
    taglock.reload(&rules("immutable"));
    assert_eq!(put(&taglock.address, REPOSITORY, "v1", &manifest("two")).status, 201);
}

/// The same of a body that announces no length: in chunks, and over HTTP/2.
#[test]
fn a_write_without_a_length_that_never_came_whole_is_not_waited_for() {
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let fake = Fake::start();
        let slow = "exchange_timeout = \"60s\"\n";
        let taglock = Taglock::with(&fake.address, slow, &rules("mutable"));
        let one = manifest("one");
        let url = format!("http://{}/v2/{REPOSITORY}/manifests/v1", taglock.address);
        let mut client = Command::new("curl")
            .args(["--silent", "--no-buffer", protocol, "--header", "Expect:"])
            .args(["--header", &format!("Content-Type: {INDEX}"), "--upload-file", "-", &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut body = client.stdin.take().unwrap();
        body.write_all(&one[..one.len() - 5]).unwrap();
        body.flush().unwrap();
        eventually("the request", || taglock.metric("taglock_requests_in_flight") >= 1.0);
        // What has come of it is passed on.
        thread::sleep(std::time::Duration::from_millis(300));
        client.kill().unwrap();
        client.wait().unwrap();
        taglock.rests();
        taglock.reload(&rules("immutable"));
        let answer = put(&taglock.address, REPOSITORY, "v1", &manifest("two"));
        assert_eq!(answer.status, 201, "{protocol}: {}", answer.text());
    }
}

/// A delete by older rules would take away what newer ones let nobody delete. It streams where no rule
/// knows the repository.
#[test]
fn a_delete_that_older_rules_let_through_is_waited_for() {
    let unknown = rules("immutable").replace("team/**", "other/**");
    for (older, by) in [(&unknown, "digest"), (&unknown, "tag"), (&rules("mutable"), "tag")] {
        let fake = Fake::start();
        let taglock = Taglock::with(&fake.address, "", older);
        let one = manifest("one");
        assert_eq!(put(&taglock.address, REPOSITORY, "v1", &one).status, 201);
        let reference = if by == "tag" { "v1".to_owned() } else { digest(&one) };
        fake.plan("DELETE", "/manifests/", Fault::HeldBefore, 1);
        let target = format!("/v2/{REPOSITORY}/manifests/{reference}");
        thread::scope(|scope| {
            let delete =
                scope.spawn(|| request(&taglock.address, "DELETE", &target, &[], b"").status);
            fake.holds();
            taglock.reload(&rules("immutable"));
            let early = put(&taglock.address, REPOSITORY, "v1", &one);
            assert_eq!(early.status, 503, "{by}: {}", early.text());
            assert!(early.message().contains("under way"), "{by}: {}", early.text());
            fake.let_go();
            assert_eq!(delete.join().unwrap(), 202, "{by}");
        });
        assert_eq!(put(&taglock.address, REPOSITORY, "v1", &one).status, 201, "{by}");
        assert_eq!(fake.tag(REPOSITORY, "v1"), Some(digest(&one)), "{by}");
    }
}

/// The registry gives the connection up: it may carry the write out all the same.
#[test]
fn a_write_whose_connection_the_registry_gave_up_is_waited_for() {
    let (fake, redis) = (Fake::start(), Redis::start(&[]));
    let slow = "[upstream]\nexchange_timeout = \"5s\"\n";
    let taglock = Taglock::from_file(|address, admin, _| {
        format!(
            "[listen]\naddress = \"{address}\"\n{slow}url = \"http://{}\"\n\
             [ledger]\nstore = \"redis\"\nurl = \"redis://{}/0\"\n\
             [admin]\naddress = \"{admin}\"\n{}",
            fake.address,
            redis.address,
            rules("mutable")
        )
    });
    let [one, two] = ["one", "two"].map(manifest);
    fake.plan("PUT", "/manifests/v1", Fault::CutAfter, 1);
    let cut = put(&taglock.address, REPOSITORY, "v1", &one);
    assert_eq!(cut.status, 502, "{}", cut.text());
    taglock.reload(&rules("immutable"));
    let early = put(&taglock.address, REPOSITORY, "v1", &two);
    assert_eq!(early.status, 503, "{}", early.text());
    assert!(early.message().contains("under way"), "{}", early.text());
    eventually("the end of the wait", || {
        put(&taglock.address, REPOSITORY, "v1", &two).status == 409
    });
}

/// The rules are the newer ones before another process takes over, and the write is from before.
#[test]
fn a_newer_process_judges_nothing_beside_the_writes_that_the_older_one_let_through() {
    let (fake, redis) = (Fake::start(), Redis::start(&[]));
    let taglock = proxy_with(&fake.address, &redis.address, "", &rules("mutable"));
    let successors = Successors(&taglock);
    let [one, two] = ["one", "two"].map(manifest);
    fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
    thread::scope(|scope| {
        let older = scope.spawn(|| put(&taglock.address, REPOSITORY, "v1", &one).status);
        fake.holds();
        taglock.reload(&rules("immutable"));
        taglock.process.signal("-USR2");
        eventually("the newer process", || {
            taglock.process.log().contains("a newer process takes over")
        });
        let judged = scope.spawn(|| put(&taglock.address, REPOSITORY, "v1", &two));
        // A process that did not wait would have written by then.
        thread::sleep(std::time::Duration::from_secs(1));
        assert_eq!(fake.tag(REPOSITORY, "v1"), None);
        fake.let_go();
        assert_eq!(older.join().unwrap(), 201);
        let judged = judged.join().unwrap();
        assert_eq!(judged.status, 409, "{}", judged.text());
    });
    successors.wait(1);
    assert_eq!(tag_of(&taglock.address, REPOSITORY, "v1"), Some(digest(&one)));
}

/// taglock puts a moved tag back; a delete, and a push under a mutable rule, come meanwhile.
#[test]
fn a_repair_under_way_undoes_neither_a_delete_nor_a_push() {
    for by in ["delete", "push"] {
        let fake = Fake::start();
        let folder = tempfile::tempdir().unwrap();
        let account = folder.path().join("account");
        std::fs::write(&account, "keeper:secret\n").unwrap();
        std::fs::set_permissions(&account, std::fs::Permissions::from_mode(0o600)).unwrap();
        let upstream = format!("credentials_file = {account:?}");
        let drift = "[drift]\ninterval = \"1s\"\nrepair = true\n";
        let immutable = rules("immutable") + "delete = \"release\"\n";
        let taglock = Taglock::with(&fake.address, &upstream, &format!("{drift}{immutable}"));
        let [one, other, two] = ["one", "other", "two"].map(manifest);
        assert_eq!(put(&taglock.address, REPOSITORY, "v1", &one).status, 201);
        // Somebody moves it in the registry itself, and a pull finds out.
        fake.place(REPOSITORY, "v1", &digest(&other), (&other, INDEX));
        fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
        eventually("the repair", || {
            assert_eq!(tag_of(&taglock.address, REPOSITORY, "v1"), Some(digest(&one)));
            fake.count("PUT", "/manifests/v1") == 2
        });
        fake.holds();
        thread::scope(|scope| {
            let free = scope.spawn(|| match by {
                "delete" => {
                    let target = format!("/v2/{REPOSITORY}/manifests/v1");
                    request(&taglock.address, "DELETE", &target, &[], b"").status
                }
                _ => {
                    taglock.reload(&rules("mutable"));
                    put(&taglock.address, REPOSITORY, "v1", &two).status
                }
            });
            // It waits: nothing of it has reached the registry.
            thread::sleep(std::time::Duration::from_secs(1));
            assert_eq!(fake.count("DELETE", ""), 0);
            assert_eq!(fake.count("PUT", "/manifests/v1"), 2);
            fake.let_go();
            assert_eq!(free.join().unwrap(), if by == "delete" { 202 } else { 201 });
        });
        let expected = (by == "push").then(|| digest(&two));
        assert_eq!(fake.tag(REPOSITORY, "v1"), expected, "{by}");
        assert_eq!(tag_of(&taglock.address, REPOSITORY, "v1"), expected, "{by}");
    }
}
