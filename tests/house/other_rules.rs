//! A newer process that takes over with other rules than the older one's: what the older one let
//! through has ended before anything is bound, also where it was killed.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::fake::{Fake, Fault};
use crate::fleet::Redis;
use crate::harness::*;
use crate::http;
use crate::upgrade::Successors;

const REPOSITORY: &str = "team/app";
const STORES: [&str; 2] = ["embedded", "redis"];

fn rules(mutability: &str) -> String {
    format!("[[rule]]\nname = \"r\"\nrepositories = \"team/**\"\nmutability = \"{mutability}\"\n")
}

/// A taglock with mutable tags, whose successors find them immutable.
struct Changing {
    taglock: Taglock,
    fake: Fake,
    _redis: Option<Redis>,
    _program: tempfile::TempDir,
}

impl Changing {
    fn start(store: &str, upstream: &str) -> Self {
        let fake = Fake::start();
        let redis = (store == "redis").then(|| Redis::start(&[]));
        let program = tempfile::tempdir().unwrap();
        let script = program.path().join("taglock");
        // A successor is started by the name of its predecessor, with the same arguments.
        let text = format!(
            "#!/bin/bash\nif [ -n \"$TAGLOCK_TAKES_OVER\" ]; then\n  \
             set -- \"${{@/taglock.toml/newer.toml}}\"\nfi\nexec -a \"$0\" {} \"$@\"\n",
            env!("CARGO_BIN_EXE_taglock")
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let taglock = Taglock::from_program(&script, |address, admin, dir| {
            let ledger = match &redis {
                Some(redis) => format!("store = \"redis\"\nurl = \"redis://{}/0\"", redis.address),
                None => format!("path = \"{dir}/ledger\""),
            };
            let text = |mutability| {
                format!(
                    "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n{upstream}\n\
                     [ledger]\n{ledger}\n[admin]\naddress = \"{admin}\"\n{}",
                    fake.address,
                    rules(mutability)
                )
            };
            fs::write(format!("{dir}/newer.toml"), text("immutable")).unwrap();
            text("mutable")
        });
        Self { taglock, fake, _redis: redis, _program: program }
    }

    fn upgrade(&self) -> Successors<'_> {
        self.taglock.process.signal("-USR2");
        eventually("the newer process", || {
            self.taglock.process.log().contains("a newer process takes over")
        });
        Successors(&self.taglock)
    }
}

#[test]
fn a_process_with_other_rules_binds_nothing_beside_the_writes_of_the_older_one() {
    for store in STORES {
        let Changing { taglock, fake, .. } = &Changing::start(store, "");
        let [one, two] = ["one", "two"].map(manifest);
        fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
        thread::scope(|scope| {
            let older = scope.spawn(|| put(&taglock.address, REPOSITORY, "v1", &one).status);
            fake.holds();
            taglock.process.signal("-USR2");
            eventually("the newer process", || {
                taglock.process.log().contains("a newer process takes over")
            });
            let judged = scope.spawn(|| put(&taglock.address, REPOSITORY, "v1", &two));
            // A process that did not wait would have written by then.
            thread::sleep(Duration::from_secs(1));
            assert_eq!(fake.tag(REPOSITORY, "v1"), None, "{store}");
            fake.let_go();
            assert_eq!(older.join().unwrap(), 201, "{store}");
            let judged = judged.join().unwrap();
            assert_eq!(judged.status, 409, "{store}: {}", judged.text());
        });
        let successors = Successors(taglock);
        successors.wait(1);
        assert_eq!(tag_of(&taglock.address, REPOSITORY, "v1"), Some(digest(&one)), "{store}");
        drop(successors);
    }
}

/// The registry carries out what an older process has sent, though that was killed.
#[test]
fn what_a_process_had_sent_when_it_was_killed_is_waited_for() {
    for store in STORES {
        let changing = Changing::start(store, "exchange_timeout = \"6s\"");
        let Changing { taglock, fake, .. } = &changing;
        let [one, two] = ["one", "two"].map(manifest);
        fake.plan("PUT", "/manifests/v1", Fault::HeldBefore, 1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let target = format!("/v2/{REPOSITORY}/manifests/v1");
                let request = http::bytes("x", "PUT", &target, &[("Content-Type", INDEX)], &one);
                let mut client = http::connect(&taglock.address).unwrap();
                client.write_all(&request).unwrap();
                // Until it is cut.
                let _ = client.read(&mut [0]);
            });
            fake.holds();
            let successors = changing.upgrade();
            let killed = Instant::now();
            taglock.process.signal("-KILL");
            successors.wait(1);
            let judged = scope.spawn(|| put(&taglock.address, REPOSITORY, "v1", &two));
            thread::sleep(Duration::from_secs(1));
            assert_eq!(fake.tag(REPOSITORY, "v1"), None, "{store}");
            fake.let_go();
            let judged = judged.join().unwrap();
            assert_eq!(judged.status, 409, "{store}: {}", judged.text());
            assert!(killed.elapsed() > Duration::from_secs(5), "{store}: {:?}", killed.elapsed());
            drop(successors);
        });
        assert_eq!(fake.tag(REPOSITORY, "v1"), Some(digest(&one)), "{store}");
    }
}

/// With the embedded ledger the body streams, with Redis it is read before anything is sent.
#[test]
fn what_comes_whole_after_a_process_with_other_rules_judges_is_refused() {
    for store in STORES {
        let changing = Changing::start(store, "");
        let Changing { taglock, fake, .. } = &changing;
        let [one, two] = ["one", "two"].map(manifest);
        let target = format!("/v2/{REPOSITORY}/manifests/v1");
        let whole = http::bytes("x", "PUT", &target, &[("Content-Type", INDEX)], &one);
        let mut client = http::connect(&taglock.address).unwrap();
        client.write_all(&whole[..whole.len() - 5]).unwrap();
        eventually("the request", || taglock.metric("taglock_requests_in_flight") >= 1.0);
        let successors = changing.upgrade();
        successors.wait(1);
        let judged = put(&taglock.address, REPOSITORY, "v1", &two);
        assert_eq!(judged.status, 201, "{store}: {}", judged.text());
        client.write_all(&whole[whole.len() - 5..]).unwrap();
        let late = http::read_answer(&mut BufReader::new(client), false).unwrap();
        assert_eq!(late.status, 503, "{store}: {}", late.text());
        assert!(late.message().contains("rules changed"), "{store}: {}", late.text());
        assert_eq!(fake.tag(REPOSITORY, "v1"), Some(digest(&two)), "{store}");
        drop(successors);
    }
}
