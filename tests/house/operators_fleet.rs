//! An operator's commands for a fleet on one Redis.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::fault_proxy::{Fault, FaultProxy, Kind};
use crate::fleet::Redis;
use crate::harness::*;
use crate::operators::{command, config, expect, push, started, with_blob};

fn on(redis: &Redis) -> String {
    format!(
        "[ledger]\nstore = \"redis\"\nurl = \"redis://{}/0\"\ncache_ttl = \"1s\"\n",
        redis.address
    )
}

#[test]
fn two_imports_at_once_through_two_proxies_bind_each_tag_once() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    for n in 0..40 {
        push(&registry.address, &format!("prod/app:v{n}"), &n.to_string());
    }
    with_blob(&registry, "prod/app", &[]);
    let proxies = [0, 1].map(|_| started(&registry.address, "", &on(&redis)));
    let totals: Vec<_> = thread::scope(|scope| {
        let import = |proxy| move || expect(&config(proxy), &["ledger", "import", "--json"], 0).0;
        let running = proxies.each_ref().map(|proxy| scope.spawn(import(proxy)));
        running.map(|thread| thread.join().unwrap()).to_vec()
    });
    for total in totals {
        let total: serde_json::Value = serde_json::from_str(&total).unwrap();
        let sum = total["sealed"].as_u64().unwrap() + total["already"].as_u64().unwrap();
        assert_eq!((sum, &total["pending"]), (40, &serde_json::json!([])), "{total}");
    }
    let (out, err) = expect(&config(&proxies[0]), &["ledger", "verify"], 0);
    assert!(out.is_empty() && err.contains("the same 40,"), "{err}");
    for n in [0, 39] {
        let other = put(&proxies[1].address, "prod/app", &format!("v{n}"), &manifest("other"));
        assert_eq!(other.status, 409);
    }
}

#[test]
fn a_shared_ledger_is_read_saved_and_restored_with_and_without_a_proxy() {
    let registry = Registry::start();
    let mut redis = Redis::start(&[]);
    let mut proxy = started(&registry.address, "", &on(&redis));
    let file = config(&proxy);
    for n in 0..5 {
        push(&proxy.address, &format!("prod/app:v{n}"), &n.to_string());
    }
    let running = expect(&file, &["ledger", "export"], 0).0;
    proxy.process.signal("-TERM");
    assert_eq!(proxy.process.wait_for_end(), 0);
    let (stopped, err) = expect(&file, &["ledger", "export"], 0);
    assert!(err.contains("using the store itself (redis://"), "{err}");
    let body = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(&running), body(&stopped));
    expect(&file, &["ledger", "show", "prod/app:v0"], 0);
    expect(&file, &["ledger", "show", "prod/app:v9"], 1);

    // Emptied: reading begins nothing, restoring does.
    redis.cli(&["flushall"]);
    let (_, err) = expect(&file, &["ledger", "list"], 3);
    assert!(err.contains("holds no ledger"), "{err}");
    assert_eq!(redis.cli(&["dbsize"]).trim(), "0");
    let backup = proxy.folder.path().join("backup.jsonl");
    fs::write(&backup, &stopped).unwrap();
    let (_, err) = expect(&file, &["ledger", "restore", backup.to_str().unwrap()], 0);
    assert!(err.contains("bound 5,"), "{err}");
    proxy.restart();
    assert_eq!(put(&proxy.address, "prod/app", "v4", &manifest("other")).status, 409);
    push(&proxy.address, "prod/app:v4", "4");

    // A ledger that is down is no "no".
    redis.stop();
    for arguments in [
        &["ledger", "list"][..],
        &["ledger", "show", "prod/app:v0"],
        &["ledger", "export"],
        &["ledger", "release", "prod/app:v0", "--reason", "x"],
        &["explain", "prod/app:v0"],
    ] {
        let output = command(&file, arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", said(&output));
    }
    redis.restart();
    eventually("the ledger", || command(&file, &["ledger", "list"]).status.success());
}

#[test]
fn a_name_released_through_one_proxy_is_free_in_all() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let proxies = [0, 1].map(|_| started(&registry.address, "", &on(&redis)));
    push(&proxies[0].address, "prod/app:v1", "one");
    assert_eq!(put(&proxies[1].address, "prod/app", "v1", &manifest("two")).status, 409);
    let target = format!("/v2/prod/app/manifests/{}", digest(&manifest("one")));
    assert_eq!(crate::http::request(&registry.address, "DELETE", &target, &[], b"").status, 202);
    let (_, err) =
        expect(&config(&proxies[0]), &["ledger", "release", "prod/app:v1", "--reason", "x"], 0);
    assert!(err.contains("for another 1 s"), "{err}");
    push(&proxies[1].address, "prod/app:v1", "two");
}

/// Redis frees the name, and its answer gets lost: the call that is repeated finds it free.
#[test]
fn a_release_whose_answer_was_lost_is_told_as_one() {
    let (registry, redis) = (Registry::start(), Redis::start(&[]));
    let way = FaultProxy::start(Kind::Bytes, &redis.address, 1);
    way.calm(true);
    let ledger = format!("[ledger]\nstore = \"redis\"\nurl = \"redis://{}/0\"\n", way.address);
    let taglock = started(&registry.address, "", &ledger);
    push(&taglock.address, "prod/app:v1", "one");
    let cut = AtomicBool::new(false);
    way.script(move |bytes| {
        let releases = bytes.contains("EVALSHA") && bytes.contains("\r\nR\r\n");
        (releases && !cut.swap(true, Ordering::SeqCst)).then_some(Fault::CutAfter)
    });
    let release = ["ledger", "release", "prod/app:v1", "--reason", "x"];
    let (out, _) = expect(&config(&taglock), &release, 0);
    assert!(out.starts_with("prod/app:v1 is free"), "{out}");
    assert_eq!(way.counts().get("cut-after"), Some(&1));
    let log = taglock.process.log();
    let told = log.lines().filter(|line| line.contains("outcome=\"released\"")).count();
    assert_eq!(told, 1, "{log}");
}
