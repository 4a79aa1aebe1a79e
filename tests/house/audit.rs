//! The audit: who did what, to where it goes, and what never stands in it.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::harness::*;
use crate::http;

fn audited(registry: &str, log: &str) -> Taglock {
    Taglock::from_file(|address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{registry}\"\n\
             [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n\
             [audit]\nfile = \"{dir}/audit.jsonl\"\n[log]\n{log}\n{RULES}"
        )
    })
}

/// The lines of a file once there are so many.
fn lines(file: &Path, count: usize) -> Vec<Value> {
    let read = || fs::read_to_string(file).unwrap_or_default();
    eventually(&format!("{count} lines of the audit"), || read().lines().count() >= count);
    let lines: Vec<_> = read().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), count, "{lines:#?}");
    lines
}

fn put_as(taglock: &Taglock, tag: &str, seed: &str, headers: &[(&str, &str)]) -> u16 {
    let headers = [&[("Content-Type", INDEX)], headers].concat();
    let target = format!("/v2/prod/app/manifests/{tag}");
    http::request(&taglock.address, "PUT", &target, &headers, &manifest(seed)).status
}

#[test]
fn each_decision_is_one_line_that_says_who_what_and_why() {
    let registry = Registry::start();
    let taglock = audited(&registry.address, "");
    let file = taglock.folder.path().join("audit.jsonl");
    let basic = format!("Basic {}", BASE64_STANDARD.encode("alice:secret"));
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let bearer = format!("Bearer {}.{}.{}", part("{}"), part(r#"{"sub":"robot$ci"}"#), part("s"));
    let alice = [("Authorization", basic.as_str()), ("X-Request-Id", "build-7")];
    assert_eq!(put_as(&taglock, "v1", "one", &alice), 201);
    assert_eq!(put_as(&taglock, "v1", "two", &[("Authorization", &bearer)]), 409);
    assert_eq!(put(&registry.address, "prod/app", "old", &manifest("old")).status, 201);
    assert!(tag_of(&taglock.address, "prod/app", "old").is_some());
    let delete = http::request(&taglock.address, "DELETE", "/v2/prod/app/manifests/v1", &[], b"");
    assert_eq!(delete.status, 405);
    let settings = taglock.folder.path().join("taglock.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(
        &settings,
        format!("{text}\n[[rule]]\nname = \"x\"\nrepositories = \"x\"\nmutability = \"mutable\"\n"),
    )
    .unwrap();
    taglock.process.signal("-HUP");

    let lines = lines(&file, 5);
    let expected = [
        r#"{"kind":"push","outcome":"admitted","user":"alice","id":"build-7","tags":["v1"],
            "registry_status":201,"rule":"releases","repository":"prod/app","client":"127.0.0.1"}"#,
        r#"{"kind":"push","outcome":"refused","claimed_user":"robot$ci","tags":["v1"]}"#,
        r#"{"kind":"pull","outcome":"first-sight","tags":["old"],"rule":"releases"}"#,
        r#"{"kind":"delete","outcome":"refused","deleted":"v1"}"#,
        r#"{"kind":"rules","outcome":"applied"}"#,
    ];
    for (line, expected) in lines.iter().zip(expected) {
        let expected: Value = serde_json::from_str(expected).unwrap();
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(line.get(key), Some(value), "{key} of {line}");
        }
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    }
    assert_eq!(lines[0]["pushed"], Value::from(digest(&manifest("one"))));
    assert_eq!(lines[1]["bound"], Value::from(digest(&manifest("one"))));
    assert!(lines[1].get("user").is_none(), "a claim is no name: {}", lines[1]);
    assert_eq!(lines[2]["bound"], Value::from(digest(&manifest("old"))));
    let written = || taglock.metric("taglock_audit_lines_total{result=\"written\"} ");
    eventually("the count", || written() == 5.0);
    assert!(!taglock.process.log().contains("taglock::audit"), "not in the log as well");
}

#[test]
fn log_rotation_loses_no_line() {
    let registry = Registry::start();
    let taglock = audited(&registry.address, "");
    let file = taglock.folder.path().join("audit.jsonl");
    let moved = taglock.folder.path().join("audit.jsonl.1");
    assert_eq!(put_as(&taglock, "v1", "v1", &[]), 201);
    lines(&file, 1);
    fs::rename(&file, &moved).unwrap();
    assert_eq!(put_as(&taglock, "v2", "v2", &[]), 201);
    assert_eq!(lines(&file, 1)[0]["tags"][0], "v2");
    fs::remove_file(&file).unwrap();
    taglock.process.signal("-HUP");
    assert_eq!(put_as(&taglock, "v3", "v3", &[]), 201);
    assert_eq!(lines(&file, 1)[0]["tags"][0], "v3");
    assert_eq!(lines(&moved, 1)[0]["tags"][0], "v1");
}

#[test]
fn what_the_file_does_not_take_is_in_the_log_and_no_push_fails() {
    let registry = Registry::start();
    let taglock = audited(&registry.address, "");
    let file = taglock.folder.path().join("audit.jsonl");
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/full", &file).unwrap();
    for n in 0..3 {
        assert_eq!(put_as(&taglock, &format!("v{n}"), "one", &[]), 201);
    }
    let failed = || taglock.metric("taglock_audit_lines_total{result=\"failed\"} ");
    eventually("the count", || failed() == 3.0);
    let log = taglock.process.log();
    assert!(log.contains("the audit can't be written"));
    assert_eq!(log.matches("taglock::audit").count(), 3, "{log}");
    fs::remove_file(&file).unwrap();
    assert_eq!(put_as(&taglock, "v9", "one", &[]), 201);
    assert_eq!(lines(&file, 1)[0]["tags"][0], "v9", "it recovers without a restart");
}

#[test]
fn no_secret_is_ever_written_anywhere() {
    let registry = Registry::start();
    let taglock = audited(&registry.address, "filter = \"trace\"");
    let secret = "s3cr3t-of-the-house";
    let encoded = BASE64_STANDARD.encode(format!("alice:{secret}"));
    let payload = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"bob","key":"{secret}"}}"#));
    let sent = [
        format!("Basic {encoded}"),
        format!("Basic {}", BASE64_STANDARD.encode(secret)),
        format!("Basic {}", BASE64_STANDARD.encode(format!("{secret}:"))),
        format!("Bearer {secret}"),
        format!("Bearer {secret}.{payload}.{secret}"),
        format!("Digest username=\"{secret}\""),
    ];
    for (n, value) in sent.iter().enumerate() {
        for name in ["Authorization", "Proxy-Authorization", "Cookie", "X-Registry-Auth"] {
            let headers = [(name, value.as_str())];
            put_as(&taglock, &format!("v{n}"), &format!("{n}"), &headers);
            put_as(&taglock, &format!("v{n}"), "other", &headers);
            for target in ["/v2/prod/app/manifests/v0", "/v2/prod/app/manifests/none", "/v2/"] {
                http::request(&taglock.address, "GET", target, &headers, b"");
                http::request(&taglock.address, "DELETE", target, &headers, b"");
            }
        }
    }
    let query = format!("/v2/token?account={secret}&password={secret}&scope=x");
    http::get(&taglock.address, &query);
    http::request(&taglock.address, "POST", "/v2/token", &[], secret.as_bytes());
    http::get(&taglock.admin, &format!("/none?token={secret}"));
    let bearer = format!("Bearer {secret}");
    http::request(&taglock.admin, "GET", "/none", &[("Authorization", &bearer)], b"");
    lines(&taglock.folder.path().join("audit.jsonl"), count_of(&taglock));
    let metrics = http::get(&taglock.admin, "/metrics").text();
    let audit = fs::read_to_string(taglock.folder.path().join("audit.jsonl")).unwrap();
    let found = |text: &str| {
        let needles = [secret.to_owned(), encoded.clone(), payload.clone()];
        needles.into_iter().chain([BASE64_STANDARD.encode(secret)]).find(|n| text.contains(n))
    };
    for (what, text) in [("log", taglock.process.log()), ("audit", audit), ("metrics", metrics)] {
        let line = text.lines().find(|line| found(line).is_some());
        assert_eq!(line, None, "in the {what}");
    }
    assert!(taglock.process.log().len() > 10_000, "the log was looked at");
}

/// The lines that were written so far, when no request is under way.
fn count_of(taglock: &Taglock) -> usize {
    taglock.rests();
    let count = || taglock.metric("taglock_audit_lines_total{result=\"written\"} ");
    let mut before = -1.0;
    eventually("the last line", || {
        let now = count();
        let same = now == before;
        before = now;
        std::thread::sleep(std::time::Duration::from_millis(200));
        same
    });
    before as usize
}

#[test]
fn it_may_go_to_standard_output_alone() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let (out, file) = (folder.path().join("out"), folder.path().join("taglock.toml"));
    let address = format!("127.0.0.1:{}", port());
    let text = format!(
        "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
         [ledger]\npath = \"{}/ledger\"\n[audit]\nfile = \"stdout\"\n{RULES}",
        registry.address,
        folder.path().display()
    );
    fs::write(&file, text).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" serve --config \"$1\" >\"$2\""]);
    command.arg(env!("CARGO_BIN_EXE_taglock")).arg(&file).arg(&out);
    let mut process = Process::start("taglock", command, folder.path());
    process.wait_for(&address);
    assert_eq!(put(&address, "prod/app", "v1", &manifest("one")).status, 201);
    process.signal("-TERM");
    assert_eq!(process.wait_for_end(), 0);
    assert_eq!(lines(&out, 1)[0]["outcome"], "admitted");
}
