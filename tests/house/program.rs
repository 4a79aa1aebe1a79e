//! The program itself: how it starts, what it says, how it ends.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::fake::Fake;
use crate::harness::*;
use crate::http;

fn taglock() -> Command {
    Command::new(env!("CARGO_BIN_EXE_taglock"))
}

#[test]
fn check_prints_the_rules_as_they_will_be_applied() {
    let output = run(taglock().args(["check", "config/taglock.toml"]));
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "2. releases (config/taglock.toml:",
        "repositories  immutable-repo, prod/**",
        "but mutable   latest, dev-*",
        "4. everything else: mutable",
        "http://127.0.0.1:5001",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn a_bad_file_ends_with_status_2_and_every_mistake_before_anything_binds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    let address = format!("127.0.0.1:{}", port());
    fs::write(
        &file,
        format!(
            "[listen]\naddress = \"{address}\"\nport = 1\n[upstream]\nurl = \"registry\"\n\
             [[rule]]\nname = \"r\"\nrepositories = [\"A\"]\nmutability = \"frozen\"\n"
        ),
    )
    .unwrap();
    for arguments in [&["check"][..], &["serve", "--config"]] {
        let output = run(taglock().args(arguments).arg(&file));
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let text = said(&output);
        for expected in [":3: `listen.port`: unknown key", ":5: `upstream.url`", ":8: ", ":9: "] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }
    assert!(http::connect(&address).is_err());
    let missing = run(taglock().args(["serve", "--config", "/nowhere/taglock.toml"]));
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
    let nothing = run(taglock().arg("serve"));
    assert_eq!(nothing.status.code(), Some(2), "{}", said(&nothing));
}

#[test]
fn it_runs_without_a_file() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let address = format!("127.0.0.1:{}", port());
    let mut command = taglock();
    command.args(["serve", "--upstream", &format!("http://{}", registry.address)]);
    command.args(["--immutable", "prod/**", "--immutable", "app", "--listen", &address]);
    command.arg("--data").arg(folder.path().join("deep/data"));
    let mut process = Process::start("taglock", command, folder.path());
    process.wait_for(&address);
    for repository in ["prod/x", "app"] {
        assert_eq!(put(&address, repository, "latest", &manifest("one")).status, 201);
        assert_eq!(put(&address, repository, "latest", &manifest("two")).status, 409);
    }
    assert_eq!(put(&address, "prod", "v1", &manifest("one")).status, 201);
    assert_eq!(put(&address, "prod", "v1", &manifest("two")).status, 201);
}

#[test]
fn a_second_process_on_the_same_ledger_and_a_taken_port_are_refused_clearly() {
    let registry = Registry::start();
    let first = Taglock::before(&registry.address);
    let start = |listen: &str, data: &str| {
        let upstream = format!("http://{}", registry.address);
        let mut command = taglock();
        command.args(["serve", "--upstream", &upstream, "--immutable", "a"]);
        command.args(["--listen", listen, "--data", data]);
        let output = run(&mut command);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        said(&output)
    };
    let folder = first.folder.path().join("ledger").display().to_string();
    let text = start(&format!("127.0.0.1:{}", port()), &folder);
    assert!(text.contains("is in use by another process"), "{text}");
    let other = tempfile::tempdir().unwrap();
    let text = start(&first.address, &other.path().display().to_string());
    assert!(text.contains("can't be listened on"), "{text}");
    assert_eq!(put(&first.address, "prod/app", "v1", &manifest("one")).status, 201);
}

#[test]
fn an_idle_proxy_stops_at_once_and_frees_its_ledger() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    // A client that keeps its connection is no reason to wait.
    let mut idle = http::connect(&taglock.address).unwrap();
    idle.write_all(&http::bytes("x", "GET", "/v2/", &[], b"")).unwrap();
    let mut some = [0; 10];
    idle.read_exact(&mut some).unwrap();
    let start = Instant::now();
    taglock.process.signal("-TERM");
    assert_eq!(taglock.process.wait_for_end(), 0);
    // Well under the 60 s that requests would be given.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(taglock.process.log().contains("stopped after"));
}

#[test]
fn a_blob_under_way_is_finished_after_the_signal() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    let blob = vec![7; 50_000_000];
    let started = http::request(&registry.address, "POST", "/v2/a/blobs/uploads/", &[], b"");
    let location = started.header("Location").unwrap().to_owned();
    let path = &location[location.find("/v2/").unwrap()..];
    let target = format!("{path}&digest={}", digest(&blob));
    assert_eq!(http::request(&registry.address, "PUT", &target, &[], &blob).status, 201);

    let mut stream = http::connect(&taglock.address).unwrap();
    let target = format!("/v2/a/blobs/{}", digest(&blob));
    stream.write_all(&http::bytes("x", "GET", &target, &[], b"")).unwrap();
    let mut head = vec![0; 1000];
    stream.read_exact(&mut head).unwrap();
    taglock.process.signal("-TERM");
    sleep(Duration::from_secs(2));
    assert!(taglock.process.child.try_wait().unwrap().is_none(), "it left before the blob's end");
    assert!(http::connect(&taglock.address).is_err(), "nothing new is taken");
    let reader = std::io::Cursor::new(head).chain(stream);
    let answer = http::read_answer(&mut std::io::BufReader::new(reader), false).unwrap();
    assert!(answer.body == blob, "the blob was cut or changed");
    assert_eq!(taglock.process.wait_for_end(), 0);
}

#[test]
fn the_admin_listener_shows_health_and_metrics_and_keeps_the_rest() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    let taglock = Taglock::from_file(|address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
             [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\ntoken_file = {token:?}\n{RULES}",
            registry.address
        )
    });
    assert_eq!(http::get(&taglock.admin, "/healthz").text(), "ok\n");
    assert_eq!(http::get(&taglock.admin, "/readyz").text(), "ledger: ok\nregistry: ok\n");
    put(&taglock.address, "prod/app", "v1", &manifest("one"));
    put(&taglock.address, "prod/app", "v1", &manifest("two"));
    assert_eq!(taglock.metric("taglock_refusals_total{reason=\"immutable\"} "), 1.0);
    let route = "taglock_requests_total{route=\"manifest-write\",status=";
    eventually("the access log", || taglock.metric(&format!("{route}\"2xx\"}} ")) == 1.0);
    let with = |token: &str| {
        let value = format!("Bearer {token}");
        http::request(&taglock.admin, "GET", "/tags", &[("Authorization", &value)], b"").status
    };
    assert_eq!(http::get(&taglock.admin, "/tags").status, 401);
    assert_eq!(with("wrong"), 401);
    assert_eq!(with("0123456789abcdef0123456789abcdef"), 404);
    assert!(!taglock.process.log().contains("0123456789abcdef"), "the token is in the log");
}

#[test]
fn health_asks_the_admin_listener() {
    let ask = |address: &str, more: &[&str]| {
        taglock().arg("health").args(more).env("TAGLOCK_ADMIN", address).output().unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let well = ask(&taglock.admin, &[]);
    assert_eq!((well.status.code(), text(&well.stdout)), (Some(0), "ok\n".to_owned()));
    let ready = ask(&taglock.admin, &["--ready"]);
    assert_eq!(ready.status.code(), Some(0));
    assert!(text(&ready.stdout).contains("registry: ok"), "{ready:?}");
    drop(registry);
    assert_eq!(ask(&taglock.admin, &[]).status.code(), Some(0), "taglock itself lives");
    let not_ready = ask(&taglock.admin, &["--ready"]);
    assert_eq!(not_ready.status.code(), Some(1));
    assert!(text(&not_ready.stderr).contains("/readyz answers 503"), "{not_ready:?}");
    let nobody = ask(&format!("127.0.0.1:{}", port()), &[]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("can't be asked"), "{nobody:?}");
}

/// A token that every user may read is warned about at start, at each reload and by `check`, and used.
#[test]
fn a_secret_file_that_others_may_read_is_warned_about() {
    let fake = Fake::start();
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").unwrap();
    let mode = |mode| fs::set_permissions(&token, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let taglock = Taglock::from_file(|address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
             [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n\
             token_file = {token:?}\n{RULES}",
            fake.address
        )
    });
    let warning = format!(
        "`admin.token_file`: the file `{0}` holds a secret and has the mode 0644: every user can read \
         it; `chmod 600 {0}`",
        token.display()
    );
    let warned = || taglock.process.log().matches(&warning).count();
    assert_eq!(warned(), 1, "{}", taglock.process.log());
    let reloads = || taglock.metric("taglock_reloads_total{result=\"applied\"}");
    let reload = || {
        let before = reloads();
        taglock.process.signal("-HUP");
        eventually("the reload", || reloads() > before);
    };
    reload();
    assert_eq!(warned(), 2);
    let file = taglock.folder.path().join("taglock.toml");
    let check = || {
        let output = run(self::taglock().arg("check").arg(&file));
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(check().contains(&format!("warning: {warning}\n")), "{}", check());
    let json = run(self::taglock().arg("check").arg(&file).arg("--json")).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["warnings"], serde_json::json!([warning]));
    let answer = http::request(
        &taglock.admin,
        "GET",
        "/healthz",
        &[("Authorization", "Bearer 0123456789abcdef0123456789abcdef")],
        b"",
    );
    assert_eq!(answer.status, 200);
    for strict in [0o600, 0o400, 0o640] {
        mode(strict);
        reload();
        assert_eq!(warned(), 2, "{strict:o}");
        assert!(!check().contains("holds a secret"), "{strict:o}");
    }
    let log = taglock.process.log();
    assert!(!log.contains("changes more than rules"), "a mode is no setting: {log}");
}
