//! The embedded ledger on a disk that is full.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::*;
use crate::http;

/// A small file system of its own, in memory.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        succeed(mount.args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(folder.path()));
        Self { folder }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process of a failed test may still have files there.
        run(Command::new("umount").arg("-l").arg(self.folder.path()));
    }
}

#[test]
fn a_full_disk_refuses_pushes_loses_nothing_and_is_survived() {
    let registry = Registry::start();
    let disk = Disk::new();
    let ledger = disk.folder.path().join("ledger");
    let mut taglock = Taglock::from_file(|address, admin, _| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
             [ledger]\npath = {ledger:?}\n[admin]\naddress = \"{admin}\"\n{RULES}",
            registry.address
        )
    });
    let push = |taglock: &Taglock, n: u32| {
        put(&taglock.address, "prod/app", &format!("v{n}"), &manifest(&n.to_string())).status
    };
    assert_eq!(push(&taglock, 0), 201);
    // Fill what is left, then push until the ledger's own room is used up.
    let filler = disk.folder.path().join("filler");
    let mut dd = Command::new("dd");
    run(dd.arg("if=/dev/zero").arg(format!("of={}", filler.display())).arg("bs=4k"));
    let mut acknowledged = vec![0];
    let refused = (1..400).find(|n| match push(&taglock, *n) {
        201 => {
            acknowledged.push(*n);
            false
        }
        503 => true,
        other => panic!("{other}"),
    });
    let refused = refused.expect("the disk never filled up");
    assert_eq!(
        put(&taglock.address, "other", "v1", &manifest("x")).status,
        201,
        "the rest goes on"
    );
    assert!(taglock.process.log().contains("the ledger failed"));

    fs::remove_file(&filler).unwrap();
    eventually("the ledger", || push(&taglock, refused) == 201);
    assert_eq!(http::get(&taglock.admin, "/readyz").status, 200);
    taglock.restart();
    for n in acknowledged {
        let other = put(&taglock.address, "prod/app", &format!("v{n}"), &manifest("other"));
        assert_eq!(other.status, 409, "v{n} was lost");
    }
}

#[test]
fn kills_in_the_middle_of_pushes_lose_nothing_that_was_acknowledged() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let address = taglock.address.clone();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let pusher = std::thread::spawn(move || {
            let mut done = Vec::new();
            for n in 0..10_000 {
                let tag = format!("r{round}-{n}");
                let bytes = manifest(&tag);
                let target = format!("/v2/prod/app/manifests/{tag}");
                let request =
                    http::bytes(&address, "PUT", &target, &[("Content-Type", INDEX)], &bytes);
                match http::try_raw(&address, &request) {
                    Ok(answer) if answer.status == 201 => {
                        done.push(tag);
                        counted.store(done.len(), Ordering::Relaxed);
                    }
                    // Killed.
                    _ => break,
                }
            }
            done
        });
        // However slow the machine is, some were acknowledged; then at any point of the next.
        eventually("some pushes", || count.load(Ordering::Relaxed) >= 2);
        std::thread::sleep(std::time::Duration::from_millis(37 * round));
        taglock.process.signal("-KILL");
        acknowledged.extend(pusher.join().unwrap());
        taglock.restart();
    }
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    for tag in acknowledged {
        let other = put(&taglock.address, "prod/app", &tag, &manifest("other"));
        assert_eq!(other.status, 409, "{tag} was lost");
    }
}
