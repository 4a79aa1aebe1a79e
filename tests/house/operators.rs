//! An operator's commands, against the taglock that runs and the store of one that does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use serde_json::Value;

use crate::fake::{Fake, Fault};
use crate::harness::*;
use crate::http;

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A taglock whose admin API has a token.
pub fn started(registry: &str, upstream: &str, more: &str) -> Taglock {
    Taglock::from_file(|address, admin, dir| {
        fs::write(format!("{dir}/admin.token"), TOKEN).unwrap();
        let ledger = if more.contains("[ledger]") {
            String::new()
        } else {
            format!("[ledger]\npath = \"{dir}/ledger\"\n")
        };
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{registry}\"\n{upstream}\n\
             {ledger}[admin]\naddress = \"{admin}\"\ntoken_file = \"{dir}/admin.token\"\n{more}\n{RULES}"
        )
    })
}

pub fn config(taglock: &Taglock) -> PathBuf {
    taglock.folder.path().join("taglock.toml")
}

/// Runs a command on this file.
pub fn command(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
    run(command.args(arguments).arg("--config").arg(config))
}

pub fn expect(config: &Path, arguments: &[&str], status: i32) -> (String, String) {
    let output = command(config, arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", said(&output));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(!err.contains(TOKEN) && !out.contains(TOKEN), "the token was printed");
    (out, err)
}

pub fn expect_json(config: &Path, arguments: &[&str], status: i32) -> Value {
    let (out, _) = expect(config, &[arguments, &["--json"]].concat(), status);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

pub fn push(address: &str, reference: &str, seed: &str) {
    let (repository, tag) = reference.rsplit_once(':').unwrap();
    let answer = put(address, repository, tag, &manifest(seed));
    assert_eq!(answer.status, 201, "{reference}: {answer:?}");
}

/// Stores a blob: distribution's catalogue has only repositories with one.
pub fn with_blob(registry: &Registry, repository: &str, headers: &[(&str, &str)]) {
    let target = format!("/v2/{repository}/blobs/uploads/");
    let begun = http::request(&registry.address, "POST", &target, headers, b"");
    let location = begun.header("Location").unwrap();
    let path = &location[location.find("/v2/").unwrap()..];
    let target = format!("{path}&digest={}", digest(b"blob"));
    let put = http::request(&registry.address, "PUT", &target, headers, b"blob");
    assert_eq!(put.status, 201, "{put:?}");
}

fn listed(config: &Path, more: &[&str]) -> Vec<Value> {
    let (out, _) = expect(config, &[&["ledger", "list", "--json"], more].concat(), 0);
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(entries: &[Value]) -> Vec<String> {
    let name =
        |e: &Value| format!("{}:{}", e["repository"].as_str().unwrap(), e["tag"].as_str().unwrap());
    entries.iter().map(name).collect()
}

/// Deletes the image from the registry itself, and with it all its tags.
fn delete_image(registry: &Registry, repository: &str, seed: &str) {
    let target = format!("/v2/{repository}/manifests/{}", digest(&manifest(seed)));
    assert_eq!(http::request(&registry.address, "DELETE", &target, &[], b"").status, 202);
}

#[test]
fn existing_tags_are_imported_once_and_only_those_that_are_protected() {
    let registry = Registry::start();
    for n in 0..45 {
        push(&registry.address, &format!("prod/app:v{n}"), &format!("app {n}"));
    }
    for reference in ["prod/app:latest", "prod/app:dev-1", "immutable-repo:v1", "free:v1"] {
        push(&registry.address, reference, reference);
    }
    for repository in ["prod/app", "immutable-repo", "free"] {
        with_blob(&registry, repository, &[]);
    }
    let taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    let (_, err) = expect(&file, &["ledger", "import", "nothing/here"], 0);
    assert!(err.contains("asking the taglock at http://"), "{err}");
    assert!(listed(&file, &[]).is_empty());
    let first = expect_json(&file, &["ledger", "import", "immutable-repo", "--actor", "alice"], 0);
    assert_eq!((&first["sealed"], &first["already"]), (&1.into(), &0.into()), "{first}");
    let (out, err) = expect(&file, &["ledger", "import", "--jobs", "3"], 0);
    assert_eq!(out, "bound 45, bound before 1, in repositories 3\n");
    assert!(err.contains("prod/app: 20 bound") && err.contains("prod/app: 5 bound"), "{err}");
    let (out, _) = expect(&file, &["ledger", "import"], 0);
    assert_eq!(out, "bound 0, bound before 46, in repositories 3\n");

    let entries = listed(&file, &[]);
    assert_eq!(entries.len(), 46);
    assert!(entries.iter().all(|e| e["origin"] == "import" && e["state"] == "sealed"));
    assert!(!names(&entries).iter().any(|name| name.contains("latest") || name.contains("free")));
    let (out, _) = expect(&file, &["ledger", "show", "prod/app:v7"], 0);
    let expected = format!("bound to {}", digest(&manifest("app 7")));
    assert!(out.contains(&expected) && out.contains("by import"), "{out}");
    assert_eq!(put(&taglock.address, "prod/app", "v7", &manifest("other")).status, 409);
    let log = taglock.process.log();
    let told = log.lines().filter(|l| l.contains("taglock::audit") && l.contains("imported"));
    assert_eq!(told.clone().count(), 46, "{log}");
    assert!(told.clone().any(|line| line.contains("alice")), "{log}");
}

#[test]
fn an_import_beside_running_pushes_binds_each_tag_to_one_image_for_all() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    let count = 60;
    for n in (0..count).step_by(2) {
        push(&registry.address, &format!("prod/app:v{n}"), "old");
    }
    let acknowledged: Vec<bool> = thread::scope(|scope| {
        let pushes = scope.spawn(|| {
            let push = |n| put(&taglock.address, "prod/app", &format!("v{n}"), &manifest("new"));
            (0..count).map(|n| push(n).status == 201).collect()
        });
        for _ in 0..3 {
            expect(&file, &["ledger", "import", "prod/app", "--jobs", "4"], 0);
        }
        pushes.join().unwrap()
    });
    expect(&file, &["ledger", "import", "prod/app"], 0);
    for (n, acknowledged) in acknowledged.into_iter().enumerate() {
        assert_eq!(acknowledged, n % 2 == 1, "v{n}: what was there is never overwritten");
        let entry = expect_json(&file, &["ledger", "show", &format!("prod/app:v{n}")], 0);
        let truth = digest(&manifest(if acknowledged { "new" } else { "old" }));
        assert_eq!(entry["digest"], truth.as_str());
        assert_eq!(tag_of(&registry.address, "prod/app", &format!("v{n}")), Some(truth));
    }
}

#[test]
fn drift_is_listed_by_verify_and_known_from_then_on() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    for reference in ["prod/a:v1", "prod/a:v2", "prod/b:v1", "immutable-repo:v1"] {
        push(&taglock.address, reference, reference);
    }
    let (out, err) = expect(&file, &["ledger", "verify"], 0);
    assert!(out.is_empty() && err.contains("the same 4, different 0"), "{out}{err}");

    push(&registry.address, "prod/a:v1", "moved");
    delete_image(&registry, "prod/b", "prod/b:v1");
    let (out, _) = expect(&file, &["ledger", "verify", "--jobs", "1"], 1);
    let (bound, moved) = (digest(&manifest("prod/a:v1")), digest(&manifest("moved")));
    let gone = digest(&manifest("prod/b:v1"));
    assert_eq!(
        out,
        format!(
            "prod/a:v1 moved: the ledger has {bound}, the registry {moved}\n\
             prod/b:v1 gone: the ledger has {gone}, the registry nothing\n"
        )
    );
    // A tag whose image can't be seen either may be one that is hidden from taglock's account.
    assert_eq!(taglock.metric("taglock_drifted_tags "), 1.0);
    let found = expect_json(&file, &["ledger", "verify", "prod/a"], 1);
    assert_eq!((&found["equal"], &found["differences"][0]["change"]), (&1.into(), &"moved".into()));
    assert_eq!(found["differences"].as_array().unwrap().len(), 1);

    push(&taglock.address, "prod/a:v1", "prod/a:v1");
    push(&taglock.address, "prod/b:v1", "prod/b:v1");
    expect(&file, &["ledger", "verify"], 0);
    assert_eq!(taglock.metric("taglock_drifted_tags "), 0.0);
    let (_, err) = expect(&file, &["ledger", "verify", "prod/none"], 0);
    assert!(err.contains("the same 0,"), "{err}");
}

#[test]
fn a_name_is_released_by_hand_for_a_reason_and_by_nobody_by_mistake() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    push(&taglock.address, "prod/app:v1", "one");
    let release = |more: &[&str], status| {
        expect(&file, &[&["ledger", "release", "prod/app:v1"], more].concat(), status)
    };
    release(&[], 2);
    release(&["--reason", " "], 2);
    let (_, err) = release(&["--reason", "x", "--digest", &digest(b"other")], 1);
    assert!(err.contains(&digest(&manifest("one"))), "{err}");
    let (_, err) = release(&["--reason", "x", "--pending"], 1);
    assert!(err.contains("is bound, not pending"), "{err}");
    expect(&file, &["ledger", "release", "prod/app:v9", "--reason", "x"], 1);
    expect(&file, &["ledger", "release", "prod/app", "--reason", "x"], 2);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    assert!(!taglock.process.log().contains("operation"), "nothing was done");

    let (out, err) = release(&["--reason", "wrong build", "--actor", "alice"], 0);
    assert!(out.starts_with("prod/app:v1 is free; it was bound to sha256:"), "{out}");
    assert!(err.contains("the registry has under the tag counts again"), "{err}");
    let log = taglock.process.log();
    let line = log.lines().find(|line| line.contains("released")).unwrap();
    assert!(
        line.contains("alice") && line.contains("wrong build") && line.contains("v1"),
        "{line}"
    );
    // As it says: what is in the registry still stands, until it is deleted there.
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    let (_, _) = release(&["--reason", "wrong build"], 0);
    delete_image(&registry, "prod/app", "one");
    push(&taglock.address, "prod/app:v1", "two");
    expect(&file, &["ledger", "show", "prod/app:v2"], 1);
}

#[test]
fn a_claim_is_let_go_of_only_when_asked_for() {
    let registry = Registry::start();
    let mut taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    taglock.process.signal("-TERM");
    taglock.process.wait_for_end();
    let mut crashing = Command::new(env!("CARGO_BIN_EXE_taglock"));
    crashing.args(["serve", "--config"]).arg(&file).env("TAGLOCK_CRASH_AT", "claimed");
    let mut crashing = Process::start("taglock crashing", crashing, taglock.folder.path());
    crashing.wait_for(&taglock.address);
    let pushed = http::try_raw(
        &taglock.address,
        &http::bytes(
            "x",
            "PUT",
            "/v2/prod/app/manifests/v1",
            &[("Content-Type", INDEX)],
            &manifest("one"),
        ),
    );
    assert!(pushed.is_err(), "{pushed:?}");
    crashing.wait_for_end();
    // Where none runs, the store itself is read.
    let (out, err) = expect(&file, &["ledger", "list", "--state", "pending"], 0);
    assert!(out.starts_with("prod/app:v1") && out.contains("pending"), "{out}");
    assert!(err.contains("using the store itself"), "{err}");
    let (_, err) = expect(&file, &["ledger", "release", "prod/app:v1", "--reason", "x"], 3);
    assert!(err.contains("no taglock answers"), "{err}");

    taglock.restart();
    let (_, err) = expect(&file, &["ledger", "release", "prod/app:v1", "--reason", "x"], 1);
    assert!(err.contains("push the same image again"), "{err}");
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("one")).status, 201);
    let arguments = ["ledger", "release", "prod/app:v1", "--reason", "stuck", "--pending"];
    let (out, err) = expect(&file, &arguments, 0);
    assert!(out.contains("is free") && err.contains("may land"), "{out}{err}");
    assert!(taglock.process.log().contains("pending-released"));
    push(&taglock.address, "prod/app:v1", "two");
}

#[test]
fn an_export_restores_a_lost_ledger_and_a_cut_one_says_so() {
    let registry = Registry::start();
    let mut taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    for n in 0..30 {
        push(&taglock.address, &format!("prod/app:v{n}"), &n.to_string());
    }
    let (running, err) = expect(&file, &["ledger", "export"], 0);
    assert!(err.contains("asking the taglock"), "{err}");
    let stop = |taglock: &mut Taglock| {
        taglock.process.signal("-TERM");
        assert_eq!(taglock.process.wait_for_end(), 0);
    };
    stop(&mut taglock);
    let (stopped, err) = expect(&file, &["ledger", "export"], 0);
    assert!(err.contains("using the store itself"), "{err}");
    let body = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(&running), body(&stopped));
    assert_eq!(body(&stopped).len(), 31);
    let backup = taglock.folder.path().join("backup.jsonl");
    let saved = backup.to_str().unwrap();
    fs::write(&backup, &stopped).unwrap();

    // The ledger is lost, and the registry was tampered with.
    fs::remove_dir_all(taglock.folder.path().join("ledger")).unwrap();
    expect(&file, &["ledger", "list"], 3);
    assert!(!taglock.folder.path().join("ledger").exists(), "reading begins no ledger");
    push(&registry.address, "prod/app:v3", "evil");
    let (_, err) = expect(&file, &["ledger", "restore", saved], 0);
    assert!(err.contains("bound 30, bound before 0"), "{err}");
    taglock.restart();
    let pulled = http::request(
        &taglock.address,
        "GET",
        "/v2/prod/app/manifests/v3",
        &[("Accept", INDEX)],
        b"",
    );
    assert_eq!((pulled.status, pulled.body), (200, manifest("3")));
    let again = expect_json(&file, &["ledger", "restore", saved], 0);
    assert_eq!((&again["sealed"], &again["already"]), (&0.into(), &30.into()));

    // Another image in the ledger stands, and is told.
    let (one, other) = (digest(&manifest("5")), digest(b"other"));
    fs::write(&backup, stopped.replace(&one, &other)).unwrap();
    let (out, _) = expect(&file, &["ledger", "restore", saved], 1);
    assert_eq!(out, format!("prod/app:v5 conflict: the ledger has {one}, the export {other}\n"));
    // Not whole, and no export at all.
    let lines: Vec<_> = stopped.lines().take(10).collect();
    fs::write(&backup, lines.join("\n")).unwrap();
    let (_, err) = expect(&file, &["ledger", "restore", saved], 3);
    assert!(err.contains("not whole"), "{err}");
    for bad in [
        "",
        "{}",
        "nonsense",
        "{\"format\":\"taglock-ledger-9\",\"ledger\":\"x\",\"exported\":\"x\"}",
    ] {
        fs::write(&backup, bad).unwrap();
        expect(&file, &["ledger", "restore", saved], 2);
    }
    let broken = stopped.replacen("sha256:", "sha257:", 1);
    fs::write(&backup, broken).unwrap();
    let (_, err) = expect(&file, &["ledger", "restore", saved], 2);
    assert!(err.contains("prod/app:v"), "{err}");
    let log = taglock.process.log();
    assert!(!log.contains("restored"), "nothing was bound through the running one: {log}");
}

#[test]
fn explain_tells_rule_entry_registry_and_what_a_push_would_get() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", "");
    let file = config(&taglock);
    push(&taglock.address, "prod/app:v1", "one");
    let one = digest(&manifest("one"));
    let (out, _) = expect(&file, &["explain", "prod/app:v1"], 0);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "prod/app:v1 is immutable: the rule `releases` makes tags immutable");
    assert!(
        lines[1].starts_with("rule      1. releases (") && lines[1].ends_with("by its `prod/**`")
    );
    assert!(
        lines[2].starts_with(&format!("ledger    bound to {one} since 2"))
            && lines[2].ends_with("by a push")
    );
    assert_eq!(lines[3], format!("registry  {one}"));
    assert!(
        lines[4].starts_with(&format!("a push    depends: the tag is bound to {one}")),
        "{out}"
    );

    let told = |reference: &str, digest: Option<&str>| {
        let mut arguments = vec!["explain", reference];
        arguments.extend(digest.iter().flat_map(|digest| ["--digest", digest]));
        expect_json(&file, &arguments, 0)
    };
    // What it says is what a push gets.
    let two = digest(&manifest("two"));
    assert_eq!(told("prod/app:v1", Some(&one))["push"]["outcome"], "accepted");
    assert_eq!(told("prod/app:v1", Some(&two))["push"]["outcome"], "refused");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    assert_eq!(told("prod/app:v2", Some(&two))["push"]["outcome"], "accepted");
    push(&registry.address, "prod/app:v2", "one");
    assert_eq!(told("prod/app:v2", Some(&two))["push"]["outcome"], "refused");
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("two")).status, 409);
    assert_eq!(told("prod/app:latest", Some(&two))["push"]["outcome"], "accepted");
    assert_eq!(told("prod/app:latest", None)["mutability"], "mutable");
    let other = told("elsewhere:v1", None);
    assert_eq!((&other["mutability"], other.get("rule")), (&"mutable".into(), None));
    // Moved behind taglock.
    push(&registry.address, "prod/app:v1", "two");
    let (out, _) = expect(&file, &["explain", "prod/app:v1"], 0);
    assert!(out.contains(&format!("registry  {two}, which is another image")), "{out}");

    expect(&file, &["explain", "nonsense"], 2);
    expect(&file, &["explain", "prod/app:v1", "--digest", "sha256:1"], 2);
    let plain = Taglock::before(&registry.address);
    let (_, err) = expect(&config(&plain), &["explain", "prod/app:v1"], 2);
    assert!(err.contains("`admin.token_file`"), "{err}");
    // Its store is in use, and it can't be asked.
    let (_, err) = expect(&config(&plain), &["ledger", "list"], 3);
    assert!(err.contains("is in use by another process"), "{err}");
    expect(Path::new("/nowhere/taglock.toml"), &["explain", "prod/app:v1"], 2);
}

#[test]
fn an_account_of_its_own_sees_what_anybody_may_not() {
    let registry =
        Registry::prepared("auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }", |dir| {
            succeed(
                Command::new("htpasswd")
                    .arg("-Bbc")
                    .arg(dir.join("htpasswd"))
                    .args(["keeper", "secret"]),
            );
        });
    use base64::prelude::*;
    let basic = format!("Basic {}", BASE64_STANDARD.encode("keeper:secret"));
    let headers = [("Content-Type", INDEX), ("Authorization", basic.as_str())];
    with_blob(&registry, "prod/app", &headers[1..]);
    for tag in ["v1", "v2"] {
        let target = format!("/v2/prod/app/manifests/{tag}");
        assert_eq!(
            http::request(&registry.address, "PUT", &target, &headers, &manifest(tag)).status,
            201
        );
    }
    let anybody = started(&registry.address, "", "");
    let (_, err) = expect(&config(&anybody), &["ledger", "import"], 3);
    assert!(err.contains("401") && err.contains("upstream.credentials_file"), "{err}");
    let (_, err) = expect(&config(&anybody), &["ledger", "import", "prod/app"], 3);
    assert!(err.contains("prod/app: ") && err.contains("401"), "{err}");

    let folder = tempfile::tempdir().unwrap();
    let account = folder.path().join("account");
    fs::write(&account, "keeper:secret\n").unwrap();
    let keeper = started(&registry.address, &format!("credentials_file = {account:?}"), "");
    let (out, _) = expect(&config(&keeper), &["ledger", "import"], 0);
    assert_eq!(out, "bound 2, bound before 0, in repositories 1\n");
    expect(&config(&keeper), &["ledger", "verify"], 0);
    let told = expect_json(&config(&keeper), &["explain", "prod/app:v1"], 0);
    assert_eq!(told["registry"]["digest"], digest(&manifest("v1")).as_str());
    // One that lost its account can't compare, which is no drift.
    fs::write(&account, "keeper:changed\n").unwrap();
    let mut keeper = keeper;
    keeper.restart();
    let (out, err) = expect(&config(&keeper), &["ledger", "verify"], 3);
    assert!(out.is_empty() && err.contains("prod/app:v1 could not be compared"), "{err}");
}

#[test]
fn check_tells_what_may_not_be_meant() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taglock.toml");
    let check = |rules: &str, more: &[&str], status: i32| {
        fs::write(&file, format!("[upstream]\nurl = \"http://127.0.0.1:1\"\n{rules}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
        let output = run(command.arg("check").arg(&file).args(more));
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let rule = |name: &str, repositories: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\nrepositories = \"{repositories}\"\nmutability = \"immutable\"\n"
        )
    };
    // One note: where kaniko keeps its cache by default.
    let (out, err) = check(RULES, &["--strict"], 0);
    assert!(out.contains("1. releases") && err.lines().count() == 1, "{err}");
    assert!(err.contains("note: ") && err.contains("`prod/a/cache` is immutable, too"), "{err}");
    let caches =
        "[[rule]]\nname = \"caches\"\nrepositories = \"**/cache\"\nmutability = \"mutable\"\n";
    let (_, err) = check(&format!("{caches}{RULES}"), &["--strict"], 0);
    assert!(err.is_empty(), "{err}");
    for example in fs::read_dir("config").unwrap() {
        let text = fs::read_to_string(example.unwrap().path()).unwrap();
        let (first, last) = (text.find("[[rule]]").unwrap(), text.len());
        let (_, err) = check(&text[first..last], &["--strict"], 0);
        assert!(!err.contains("/cache` is immutable"), "{err}");
    }
    let shadowed = format!("{}{}", rule("all", "**"), rule("late", "prod/**"));
    let (_, err) = check(&shadowed, &[], 0);
    assert!(
        err.contains("warning: ") && err.contains("rule `late`: it never decides: `all`"),
        "{err}"
    );
    assert!(err.contains("taglock.toml:7"), "{err}");
    check(&shadowed, &["--strict"], 1);
    // A note is no warning.
    let (_, err) = check(&rule("flat", "prod/*"), &["--strict"], 0);
    assert!(err.contains("note: ") && err.contains("`prod/**` goes deeper"), "{err}");
    let (out, _) = check(&shadowed, &["--json"], 0);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["ok"], &found["remarks"][0]["rule"]), (&true.into(), &"late".into()));
    let (out, _) = check("[nonsense]\n", &["--json"], 2);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&found["ok"], &found["problems"][0]["key"]), (&false.into(), &"nonsense".into()));
    for example in ["config/taglock.toml", "config/docker-hub-mirror.toml"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
        let output = run(command.arg("check").arg(example));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("warning:"), "{example}: {text}");
    }
}

#[test]
fn completions_and_manual_pages_know_all_commands() {
    let taglock = |arguments: &[&str]| {
        let output = run(Command::new(env!("CARGO_BIN_EXE_taglock")).args(arguments));
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = taglock(&["completions", shell]);
        for word in ["ledger", "restore", "explain", "tag-prefix"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    // bash itself finds nothing wrong, and completes.
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("taglock.bash");
    fs::write(&script, taglock(&["completions", "bash"])).unwrap();
    let asked = format!(
        "source {}; COMP_WORDS=(taglock ledger re); COMP_CWORD=2; _taglock taglock re ledger; \
         echo ${{COMPREPLY[@]}}",
        script.display()
    );
    let found = succeed(Command::new("bash").args(["-c", &asked]));
    assert!(found.contains("release") && found.contains("restore"), "{found}");

    assert!(taglock(&["man"]).contains(".TH taglock 1"));
    taglock(&["man", folder.path().join("man").to_str().unwrap()]);
    for page in ["taglock", "taglock-serve", "taglock-explain", "taglock-ledger-release"] {
        let text = fs::read_to_string(folder.path().join(format!("man/{page}.1"))).unwrap();
        assert!(text.contains(".SH DESCRIPTION") && text.contains("Exit status"), "{page}");
    }
}

#[test]
fn an_import_of_lists_that_are_not_known_to_their_end_is_told_to_be_incomplete() {
    let fake = Fake::start();
    let taglock = started(&fake.address, "", "");
    let config = config(&taglock);
    for (n, (header, value)) in
        [("link", "nonsense; rel=next"), ("x-total-count", "7")].into_iter().enumerate()
    {
        let repository = format!("all/app-{n}");
        put(&fake.address, &repository, "v1", &manifest("one"));
        let list = r#"{"name":"x","tags":["v1"]}"#;
        let odd = Fault::Answer(200, vec![(header, value.to_owned())], list);
        fake.plan("GET", &format!("{repository}/tags/list"), odd.clone(), 99);
        let (_, err) = expect(&config, &["ledger", "import", &repository], 3);
        assert!(err.contains(&repository) && err.contains("not understood"), "{err}");
        fake.recover();
        expect(&config, &["ledger", "import", &repository], 0);
    }
    let catalogue = r#"{"repositories":["all/app-0"]}"#;
    let odd = vec![("link", "</v2/_catalog>; rel=next".to_owned())];
    fake.plan("GET", "/v2/_catalog", Fault::Answer(200, odd, catalogue), 99);
    expect(&config, &["ledger", "import"], 3);
    fake.recover();
    // Pages that lead in a circle.
    for (n, next) in ["<?a=1>; rel=next", "<?a=2>; rel=next", "<?a=1>; rel=next"].iter().enumerate()
    {
        let link = vec![("link", (*next).to_owned())];
        fake.plan("GET", "/v2/_catalog", Fault::Answer(200, link, catalogue), 1 + n as u32 / 2 * 9);
    }
    expect(&config, &["ledger", "import"], 3);
}
