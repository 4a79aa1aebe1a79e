//! Rules that change under way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::fake::{Fake, Fault};
use crate::fleet::{Redis, proxy_with};
use crate::harness::*;
use crate::http;

/// Makes everything below `prod/` immutable, or nothing.
fn rules(mutability: &str) -> String {
    format!("[[rule]]\nname = \"r\"\nrepositories = \"prod/**\"\nmutability = \"{mutability}\"\n")
}

/// Writes the rules of the file anew.
fn rewrite(folder: &Path, rules: &str) {
    let file = folder.join("taglock.toml");
    let text = fs::read_to_string(&file).unwrap();
    let kept = text.split("[[rule]]").next().unwrap();
    fs::write(&file, format!("{kept}{rules}")).unwrap();
}

impl Taglock {
    pub fn reload(&self, rules: &str) {
        let before = self.reloads();
        rewrite(self.folder.path(), rules);
        self.process.signal("-HUP");
        eventually("the reload", || self.reloads() > before);
    }

    fn reloads(&self) -> f64 {
        let count = |result| self.metric(&format!("taglock_reloads_total{{result=\"{result}\"}}"));
        count("applied") + count("refused")
    }
}

#[test]
fn a_push_while_mutable_is_where_the_tag_stays_when_it_is_immutable_again() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("immutable"));
    let [one, two, three] = ["one", "two", "three"].map(manifest);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 201);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &two).status, 409);
    taglock.reload(&rules("mutable"));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &two).status, 201);
    assert!(taglock.process.log().contains("superseded"));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &three).status, 201);
    taglock.reload(&rules("immutable"));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &one).status, 409);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &three).status, 201);
    assert_eq!(tag_of(&taglock.address, "prod/app", "v1"), Some(digest(&three)));
}

#[test]
fn a_write_that_was_let_through_ends_before_its_tag_is_bound() {
    let fake = Fake::start();
    let taglock = Taglock::with(&fake.address, "", &rules("mutable"));
    let [one, two] = ["one", "two"].map(manifest);
    fake.plan("PUT", "/manifests/v1", Fault::Delay(Duration::from_millis(1500)), 1);
    thread::scope(|scope| {
        let late = scope.spawn(|| put(&taglock.address, "prod/app", "v1", &one));
        eventually("the write", || fake.count("PUT", "/manifests/v1") == 1);
        taglock.reload(&rules("immutable"));
        // Judged at once, and after what older rules let through: a fake that polices fails the
        // test when the late one lands on another image.
        let judged = put(&taglock.address, "prod/app", "v1", &two);
        assert_eq!(judged.status, 409, "{judged:?}");
        assert_eq!(late.join().unwrap().status, 201);
    });
    assert_eq!(fake.tag("prod/app", "v1"), Some(digest(&one)));
    // One that takes longer than a push waits: nothing is bound meanwhile.
    taglock.reload(&rules("mutable"));
    fake.plan("PUT", "/manifests/v2", Fault::Delay(Duration::from_secs(5)), 1);
    thread::scope(|scope| {
        let late = scope.spawn(|| put(&taglock.address, "prod/app", "v2", &one));
        eventually("the write", || fake.count("PUT", "/manifests/v2") == 1);
        taglock.reload(&rules("immutable"));
        let judged = put(&taglock.address, "prod/app", "v2", &two);
        assert_eq!((judged.status, judged.header("Retry-After")), (503, Some("5")), "{judged:?}");
        assert_eq!(late.join().unwrap().status, 201);
    });
    assert_eq!(put(&taglock.address, "prod/app", "v2", &two).status, 409);
}

#[test]
fn a_bad_file_keeps_the_rules_and_says_so() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("immutable"));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    taglock.reload("[[rule]]\nname = \"r\"\nrepositories = \"prod/**\"\nmutability = \"maybe\"\n");
    assert_eq!(taglock.metric("taglock_reloads_total{result=\"refused\"}"), 1.0);
    let ready = http::get(&taglock.admin, "/readyz");
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("configuration: the file was changed and could not be applied"));
    assert!(taglock.process.log().contains("maybe"), "the log says what is wrong");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    taglock.reload(&rules("mutable"));
    assert!(!http::get(&taglock.admin, "/readyz").text().contains("configuration"));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 201);
}

#[test]
fn a_file_that_is_swapped_by_a_link_is_seen_without_a_signal() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("mutable"));
    let (folder, file) = (taglock.folder.path(), taglock.folder.path().join("taglock.toml"));
    let swapped = folder.join("new.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&swapped, text.replace("\"mutable\"", "\"immutable\"")).unwrap();
    symlink(&swapped, folder.join("link")).unwrap();
    fs::rename(folder.join("link"), &file).unwrap();
    eventually("the new rules", || taglock.reloads() > 0.0);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
}

#[test]
fn proxies_with_different_files_are_an_alarm() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let proxy =
        |mutability: &str| proxy_with(&registry.address, &redis.address, "", &rules(mutability));
    let (first, second) = (proxy("immutable"), proxy("mutable"));
    for taglock in [&first, &second] {
        eventually("the alarm", || {
            http::get(&taglock.admin, "/readyz").text().contains("1 other proxies")
        });
        assert_eq!(taglock.metric("taglock_proxies_with_other_rules"), 1.0);
    }
    second.reload(&rules("immutable"));
    eventually("the end of the alarm", || {
        !http::get(&first.admin, "/readyz").text().contains("other proxies")
    });
    assert_eq!(first.metric("taglock_proxies_with_other_rules"), 0.0);
}

#[test]
fn what_moved_while_a_tag_was_mutable_is_told_when_it_is_protected_again() {
    let registry = Registry::start();
    let taglock = Taglock::with(&registry.address, "", &rules("immutable"));
    let [one, two] = ["one", "two"].map(manifest);
    for tag in ["v1", "v2"] {
        assert_eq!(put(&taglock.address, "prod/app", tag, &one).status, 201);
    }
    taglock.reload(&rules("mutable"));
    // Not through taglock, so nothing was superseded.
    assert_eq!(put(&registry.address, "prod/app", "v2", &two).status, 201);
    taglock.reload(&rules("immutable"));
    eventually("the comparison", || {
        taglock.process.log().contains("were compared with the registry equal=1 differ=1 unseen=0")
    });
    assert!(taglock.process.log().contains("the registry has another image under it"));
    assert_eq!(tag_of(&taglock.address, "prod/app", "v2"), Some(digest(&one)), "never adopted");
}

#[test]
fn a_signal_to_reload_does_not_end_a_process_that_starts() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    taglock.process.signal("-KILL");
    taglock.process.wait_for_end();
    let lines = || taglock.process.log().matches("the ledger is open").count();
    let before = lines();
    let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
    command.arg("serve").arg("--config").arg(taglock.folder.path().join("taglock.toml"));
    let mut started = Process::start("taglock", command, taglock.folder.path());
    eventually("the start", || lines() > before);
    // Nobody listens for it yet: the ledger is opened first.
    started.signal("-HUP");
    started.wait_for(&taglock.address);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
}
