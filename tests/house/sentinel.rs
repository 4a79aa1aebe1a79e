//! A fleet on a Redis with Sentinel, whose master dies while pushes race.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::fleet::{Redis, proxy_through};
use crate::harness::*;
use crate::http;

/// Three of them, two of which must agree.
fn sentinels(master: &Redis) -> (Vec<String>, Vec<(Process, tempfile::TempDir)>) {
    let mut processes = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", port());
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "port {}\nbind 127.0.0.1\nsentinel monitor main {} 2\n\
             sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 6000\n",
            address.rsplit(':').next().unwrap(),
            master.address.replace(':', " ")
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel");
        let mut process = Process::start("sentinel", command, folder.path());
        process.wait_for(&address);
        processes.push((process, folder));
        addresses.push(address);
    }
    (addresses, processes)
}

#[test]
fn a_failover_by_sentinel_loses_nothing_that_was_acknowledged() {
    let registry = Registry::start();
    let mut master = Redis::start(&[]);
    let replica = Redis::start(&["--replicaof", "127.0.0.1", master.port()]);
    eventually("the replica", || master.cli(&["INFO", "replication"]).contains("state=online"));
    let (addresses, _sentinels) = sentinels(&master);
    let urls: Vec<_> = addresses.iter().map(|address| format!("\"redis://{address}\"")).collect();
    let ledger =
        format!("sentinels = [{}]\nsentinel_master = \"main\"\nreplicas = 1\n", urls.join(", "));
    // Each knows the others and the replica before anything dies.
    for address in &addresses {
        let port = address.rsplit(':').next().unwrap();
        eventually("the sentinels", || {
            let text = succeed(Command::new("redis-cli").args(["-p", port, "info", "sentinel"]));
            text.contains("slaves=1,sentinels=3")
        });
    }
    let proxies: Vec<_> = (0..3).map(|_| proxy_through(&registry.address, &ledger)).collect();

    let acknowledged = Mutex::new(BTreeMap::<String, BTreeSet<String>>::new());
    let (end, turn) = (AtomicBool::new(false), AtomicUsize::new(0));
    let count = || acknowledged.lock().unwrap().len();
    thread::scope(|scope| {
        for pusher in 0..6 {
            let (proxy, acknowledged, end, turn) =
                (&proxies[pusher % 3], &acknowledged, &end, &turn);
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    // About three pushers meet at each tag.
                    let tag = format!("t{}", turn.fetch_add(1, Ordering::Relaxed) / 3);
                    let bytes = manifest(&format!("{tag}-{pusher}"));
                    let target = format!("/v2/prod/app/manifests/{tag}");
                    let headers = [("Content-Type", INDEX)];
                    let request = http::bytes(&proxy.address, "PUT", &target, &headers, &bytes);
                    if http::try_raw(&proxy.address, &request).is_ok_and(|a| a.status == 201) {
                        let mut acknowledged = acknowledged.lock().unwrap();
                        acknowledged.entry(tag).or_default().insert(digest(&bytes));
                    }
                }
            });
        }
        // Whatever goes wrong here ends the pushers, too.
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("some pushes", || count() >= 5);
            master.stop();
            // A sentinel ends the connections of the one it promotes, perhaps this one as well.
            let promoted = || {
                let mut ask = Command::new("redis-cli");
                said(&run(ask.args(["-p", replica.port(), "INFO", "replication"])))
            };
            eventually("the promotion", || promoted().contains("role:master"));
            master.restart();
            let before = count();
            eventually("pushes after the failover", || count() >= before + 5);
        }));
        end.store(true, Ordering::Relaxed);
        watched.unwrap();
    });
    for (n, (tag, digests)) in acknowledged.into_inner().unwrap().iter().enumerate() {
        assert_eq!(digests.len(), 1, "{tag}: two images were acknowledged");
        let proxy = &proxies[n % 3];
        eventually("the refusal of another image", || {
            let status = put(&proxy.address, "prod/app", tag, &manifest("other")).status;
            assert_ne!(status, 201, "{tag} was lost");
            status == 409
        });
        assert_eq!(tag_of(&proxy.address, "prod/app", tag), digests.first().cloned(), "{tag}");
    }
}
