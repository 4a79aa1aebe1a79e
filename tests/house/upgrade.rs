//! A newer process takes over while clients push and pull, and a stop that cuts nobody off.

use std::fs;
use std::io::{BufReader, Cursor, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::fake::{Fake, Fault};
use crate::fleet::{Redis, proxy};
use crate::harness::*;
use crate::http::{self, Answer};

/// Ends, with the test, the processes that took over: they are no children of the test's.
pub struct Successors<'a>(pub &'a Taglock);

impl Successors<'_> {
    fn pids(&self) -> Vec<String> {
        let log = self.0.process.log();
        let told = log.lines().filter(|line| line.contains("a newer process takes over"));
        let pid = |line: &str| {
            let rest = line.split_once("pid=")?.1;
            Some(rest.chars().take_while(char::is_ascii_digit).collect())
        };
        told.filter_map(pid).collect()
    }

    fn signal(&self, signal: &str) {
        let pid = self.pids().pop().unwrap();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits until so many have taken over.
    pub fn wait(&self, count: usize) {
        eventually("the upgrade", || {
            self.0.process.log().matches("this process has taken over").count() == count
        });
    }
}

impl Drop for Successors<'_> {
    fn drop(&mut self) {
        let ours = self.0.folder.path().display().to_string();
        for pid in self.pids() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&ours) {
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
        }
    }
}

/// Stores a blob in the registry and returns its path.
fn blob_in(registry: &str, blob: &[u8]) -> String {
    let started = http::request(registry, "POST", "/v2/a/blobs/uploads/", &[], b"");
    let location = started.header("Location").unwrap().to_owned();
    let path = &location[location.find("/v2/").unwrap()..];
    let target = format!("{path}&digest={}", digest(blob));
    assert_eq!(http::request(registry, "PUT", &target, &[], blob).status, 201);
    format!("/v2/a/blobs/{}", digest(blob))
}

/// A download of which the client has taken the first bytes.
struct Download {
    stream: TcpStream,
    head: Vec<u8>,
}

impl Download {
    fn start(address: &str, target: &str) -> Self {
        let mut stream = http::connect(address).unwrap();
        stream.write_all(&http::bytes("x", "GET", target, &[], b"")).unwrap();
        let mut head = vec![0; 1000];
        stream.read_exact(&mut head).unwrap();
        Self { stream, head }
    }

    fn finish(self) -> Answer {
        let reader = Cursor::new(self.head).chain(self.stream);
        http::read_answer(&mut BufReader::new(reader), false).unwrap()
    }
}

/// Clients of all kinds, and what went wrong for them.
struct Load<'a> {
    address: &'a str,
    over: AtomicBool,
    wrong: Mutex<Vec<String>>,
    done: AtomicUsize,
    /// Images that were acknowledged, by tag.
    won: Mutex<Vec<(String, String)>>,
}

impl<'a> Load<'a> {
    fn new(address: &'a str) -> Self {
        let (wrong, won) = (Mutex::default(), Mutex::default());
        Self { address, over: false.into(), wrong, done: 0.into(), won }
    }

    fn go_on(&self, mut client: impl FnMut(&Self, usize)) {
        for round in 0.. {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            client(self, round);
            self.done.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(3));
        }
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    fn ask(&self, bytes: &[u8], expected: &[u16]) -> Option<Answer> {
        match http::try_raw(self.address, bytes) {
            Ok(answer) if expected.contains(&answer.status) => Some(answer),
            Ok(answer) => {
                self.wrong(format!("{answer:?}"));
                None
            }
            Err(error) => {
                let line = String::from_utf8_lossy(bytes);
                self.wrong(format!("{error}: {}", line.lines().next().unwrap_or_default()));
                None
            }
        }
    }

    fn push(&self, tag: &str, seed: &str, expected: &[u16]) {
        let target = format!("/v2/prod/app/manifests/{tag}");
        let kind = [("Content-Type", INDEX)];
        let body = manifest(seed);
        let answer = self.ask(&http::bytes("x", "PUT", &target, &kind, &body), expected);
        if answer.is_some_and(|answer| answer.status == 201) {
            self.won.lock().unwrap().push((tag.to_owned(), digest(&body)));
        }
    }

    /// Pushes tags of its own, and images that must be refused.
    fn pusher(&self) {
        self.go_on(|load, round| {
            let tag = format!("own-{round}");
            load.push(&tag, &tag, &[201]);
            load.push(&tag, "another", &[409]);
        });
    }

    /// One of several that want the same tags; one that meets another may be sent away for now.
    fn rival(&self, name: &str) {
        self.go_on(|load, round| {
            load.push(&format!("race-{round}"), &format!("{name}-{round}"), &[201, 409, 503]);
        });
    }

    fn puller(&self, target: &str, headers: &[(&str, &str)]) {
        let bytes = http::bytes("x", "GET", target, headers, b"");
        self.go_on(|load, _| {
            load.ask(&bytes, &[200]);
        });
    }

    fn uploader(&self) {
        self.go_on(|load, _| {
            let started = http::bytes("x", "POST", "/v2/other/blobs/uploads/", &[], b"");
            load.ask(&started, &[202]);
        });
    }

    /// Keeps its connection for as long as it may.
    fn keeper(&self) {
        let mut kept: Option<BufReader<TcpStream>> = None;
        self.go_on(|load, _| {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => match http::connect(load.address) {
                    Ok(stream) => BufReader::new(stream),
                    Err(error) => return load.wrong(format!("refused: {error}")),
                },
            };
            let request = http::bytes("x", "GET", "/v2/", &[], b"");
            let sent = connection.get_mut().write_all(&request);
            match sent.and_then(|()| http::read_answer(&mut connection, false)) {
                Ok(answer) if answer.header("Connection") == Some("close") => {}
                Ok(_) => kept = Some(connection),
                Err(error) => load.wrong(format!("a kept connection was cut: {error}")),
            }
        });
    }

    /// Is slow to say what it wants.
    fn hesitant(&self) {
        self.go_on(|load, _| {
            let answer = http::connect(load.address).and_then(|mut stream| {
                sleep(Duration::from_millis(200));
                stream.write_all(&http::bytes("x", "GET", "/v2/", &[], b""))?;
                http::read_answer(&mut BufReader::new(stream), false)
            });
            if let Err(error) = answer {
                load.wrong(format!("a connection was dropped unheard: {error}"));
            }
        });
    }
}

fn upgrade_under_load(registry: &Registry, mut taglock: Taglock) {
    let blob = vec![7; 50_000_000];
    let path = blob_in(&registry.address, &blob);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("v1")).status, 201);
    let download = Download::start(&taglock.address, &path);
    let load = Load::new(&taglock.address);
    let accept = [("Accept", INDEX)];
    thread::scope(|scope| {
        let mut clients = vec![scope.spawn(|| load.pusher())];
        clients.extend(["a", "b"].map(|name| scope.spawn(|| load.rival(name))));
        clients.push(scope.spawn(|| load.puller("/v2/prod/app/manifests/v1", &accept)));
        clients.push(scope.spawn(|| load.puller("/v2/", &[])));
        clients.push(scope.spawn(|| load.uploader()));
        clients.push(scope.spawn(|| load.keeper()));
        clients.push(scope.spawn(|| load.hesitant()));
        let end = End(&load.over);
        let successors = Successors(&taglock);
        sleep(Duration::from_secs(1));
        taglock.process.signal("-USR2");
        successors.wait(1);
        sleep(Duration::from_secs(1));
        // And the next one.
        successors.signal("-USR2");
        successors.wait(2);
        sleep(Duration::from_secs(1));
        drop(end);
        // Their last requests are with a successor, which goes with this scope.
        clients.into_iter().for_each(|client| client.join().unwrap());
        let pids = successors.pids();
        assert!(Path::new(&format!("/proc/{}", pids[1])).exists());
        eventually("the end of the one between", || {
            // It waits for nothing: the download is the first one's.
            let state = fs::read_to_string(format!("/proc/{}/stat", pids[0]));
            state.map_or(true, |state| state.contains(") Z "))
        });
        let log = taglock.process.log();
        assert_eq!(log.matches("stopped after").count(), 1, "the first one waits for its download");
        let answer = download.finish();
        assert!(answer.body == blob, "the blob was cut or changed");
        eventually("the end of the first", || {
            taglock.process.log().matches("stopped after").count() == 2
        });
        assert_eq!(http::get(&taglock.admin, "/readyz").status, 200);
        assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("v2")).status, 409);
        assert!(!taglock.process.log().contains("panicked"));
    });
    assert_eq!(taglock.process.wait_for_end(), 0);
    let wrong = load.wrong.into_inner().unwrap();
    let done = load.done.into_inner();
    assert!(wrong.is_empty(), "{} of {done}: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    let mut won = load.won.into_inner().unwrap();
    assert!(won.len() > 20, "only {} pushes", won.len());
    won.sort();
    won.dedup();
    for pair in won.windows(2) {
        assert_ne!(pair[0].0, pair[1].0, "two images won");
    }
    for (tag, image) in &won {
        assert_eq!(tag_of(&registry.address, "prod/app", tag).as_ref(), Some(image), "{tag}");
    }
    eprintln!("{done} requests, {} tags", won.len());
}

/// Ends the load, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_upgrade_under_load_refuses_and_cuts_nobody_on_the_embedded_ledger() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    upgrade_under_load(&registry, taglock);
}

#[test]
fn an_upgrade_under_load_refuses_and_cuts_nobody_on_redis() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let taglock = proxy(&registry.address, &redis.address, "");
    upgrade_under_load(&registry, taglock);
}

#[test]
fn what_needs_the_ledger_waits_for_it_and_everything_else_does_not() {
    let fake = Fake::start();
    let taglock = Taglock::before(&fake.address);
    let successors = Successors(&taglock);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    fake.plan("PUT", "/manifests/v2", Fault::Delay(Duration::from_secs(4)), 1);
    thread::scope(|scope| {
        let slow =
            scope.spawn(|| put(&taglock.address, "prod/app", "v2", &manifest("slow")).status);
        eventually("the slow push", || fake.count("PUT", "/manifests/v2") == 1);
        taglock.process.signal("-USR2");
        eventually("the newer process", || !successors.pids().is_empty());
        sleep(Duration::from_millis(200));
        let held = scope.spawn(|| put(&taglock.address, "prod/app", "v1", &manifest("two")).status);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            assert_eq!(http::get(&taglock.address, "/v2/").status, 200);
        }
        assert!(!slow.is_finished() && !held.is_finished(), "the ledger is the older one's still");
        assert_eq!(slow.join().unwrap(), 201);
        assert_eq!(held.join().unwrap(), 409);
    });
    successors.wait(1);
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("other")).status, 409);
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("taglock");
    let install = |target: &Path| {
        let link = folder.path().join("new");
        symlink(target, &link).unwrap();
        fs::rename(&link, &program).unwrap();
    };
    let real = Path::new(env!("CARGO_BIN_EXE_taglock"));
    install(real);
    let taglock = Taglock::from_program(&program, |address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
             [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n{RULES}",
            registry.address
        )
    });
    let successors = Successors(&taglock);
    let file = taglock.folder.path().join("taglock.toml");
    let good = fs::read_to_string(&file).unwrap();
    let failures = || taglock.metric("taglock_upgrades_total{result=\"failed\"}");
    let fails = |reason: &str| {
        let before = failures();
        taglock.process.signal("-USR2");
        eventually("the failure", || failures() > before);
        assert!(taglock.process.log().contains(reason), "{reason}");
        assert!(http::get(&taglock.admin, "/readyz").text().contains("upgrade: the newer process"));
        assert_eq!(http::get(&taglock.admin, "/readyz").status, 200);
    };
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);

    fs::write(&file, good.replace("mutability", "mutabillity")).unwrap();
    fails("it ended with exit status: 2");
    fs::write(&file, &good).unwrap();

    // An address somebody else has.
    let taken = &registry.address;
    fs::write(&file, good.replace(&taglock.address, taken)).unwrap();
    fails("can't be listened on");
    fs::write(&file, &good).unwrap();

    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    install(&script);
    fails("it ended with exit status: 3");
    fs::remove_file(&program).unwrap();
    fails("can't be started");

    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("two")).status, 201);
    install(real);
    taglock.process.signal("-USR2");
    successors.wait(1);
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("one")).status, 409);
    assert!(!http::get(&taglock.admin, "/readyz").text().contains("upgrade:"));
}

#[test]
fn the_service_manager_is_told() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let heard = || {
        let mut text = [0; 500];
        let length = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let environment = [("NOTIFY_SOCKET", path.as_path())];
    let taglock = Taglock::with_environment(&registry.address, &environment);
    let successors = Successors(&taglock);
    assert_eq!(heard(), "READY=1\n");
    taglock.process.signal("-HUP");
    assert!(heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(heard(), "READY=1\n");
    taglock.process.signal("-USR2");
    let mut told = [heard(), heard()];
    told.sort();
    let pid = || successors.pids().pop().unwrap();
    assert_eq!(told, [format!("MAINPID={}\nREADY=1\n", pid()), "READY=1\n".into()]);
    successors.wait(1);
    successors.signal("-TERM");
    assert_eq!(heard(), "STOPPING=1\n");
}

#[test]
fn a_stop_tells_kept_connections_and_finishes_http2() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    let blob = vec![7; 6_000_000];
    let path = blob_in(&registry.address, &blob);
    assert_eq!(put(&registry.address, "other/app", "v1", &manifest("one")).status, 201);
    // Requests of pingora's, and those that taglock reads itself.
    let targets = ["/v2/", "/v2/other/app/manifests/v1"];
    let ask = |kept: &mut BufReader<TcpStream>, target: &str| {
        kept.get_mut()
            .write_all(&http::bytes("x", "GET", target, &[("Accept", INDEX)], b""))
            .unwrap();
        let answer = http::read_answer(kept, false).unwrap();
        assert_eq!(answer.status, 200, "{target}");
        answer.header("Connection").map(str::to_owned)
    };
    let asked = |target: &str| {
        let mut kept = BufReader::new(http::connect(&taglock.address).unwrap());
        assert_ne!(ask(&mut kept, target).as_deref(), Some("close"));
        kept
    };
    let kept = targets.map(asked);
    let mut idle: Vec<_> = targets.map(asked).into_iter().map(BufReader::into_inner).collect();
    idle.push(http::connect(&taglock.address).unwrap());
    let url = format!("http://{}{path}", taglock.address);
    let file = taglock.folder.path().join("blob");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--http2-prior-knowledge", "--limit-rate", "1M", "-o"]).arg(&file).arg(&url);
    let mut curl = curl.spawn().unwrap();
    eventually("the download", || fs::metadata(&file).is_ok_and(|f| f.len() > 0));
    taglock.process.signal("-TERM");
    eventually("the stop", || taglock.process.log().contains("stopping:"));
    for (mut kept, target) in kept.into_iter().zip(targets) {
        // Told, not cut: connections hear of the stop a moment after the log does.
        while ask(&mut kept, target).as_deref() != Some("close") {}
    }
    for mut idle in idle {
        match idle.read(&mut [0]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
    // By itself, and not with the process, which the download holds.
    assert!(matches!(curl.try_wait(), Ok(None)), "the connections were closed late");
    assert!(curl.wait().unwrap().success());
    assert!(fs::read(&file).unwrap() == blob, "the blob was cut or changed");
    assert_eq!(taglock.process.wait_for_end(), 0);
}

#[test]
fn a_silent_http2_client_holds_neither_a_stop_nor_the_older_process() {
    let registry = Registry::start();
    let mut taglock = Taglock::before(&registry.address);
    // It never says anything again: neither to a PING nor to a GOAWAY.
    let mut silent = http::connect(&taglock.address).unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    eventually("its connection", || taglock.metric("taglock_connections ") >= 1.0);
    let start = Instant::now();
    taglock.process.signal("-TERM");
    assert_eq!(taglock.process.wait_for_end(), 0);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(taglock.process.log().contains("stopped after"));
}
