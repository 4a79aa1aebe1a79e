//! Several proxies on one Redis.

use std::process::Command;
use std::thread;

use tempfile::TempDir;

use crate::harness::*;
use crate::http;

/// Debian's `redis-server`.
pub struct Redis {
    pub address: String,
    process: Process,
    folder: TempDir,
}

impl Redis {
    pub fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", port());
        let process = Self::spawn(&address, &folder, more);
        Self { address, process, folder }
    }

    fn spawn(address: &str, folder: &TempDir, more: &[&str]) -> Process {
        let mut command = Command::new("redis-server");
        command.args(["--port", address.rsplit(':').next().unwrap(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.arg("--dir").arg(folder.path()).args(more);
        let mut process = Process::start("redis-server", command, folder.path());
        process.wait_for(address);
        process
    }

    pub fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    pub fn stop(&mut self) {
        self.process.signal("-KILL");
        self.process.wait_for_end();
    }

    pub fn restart(&mut self) {
        self.process = Self::spawn(&self.address, &self.folder, &[]);
    }

    pub fn cli(&self, arguments: &[&str]) -> String {
        let port = self.address.rsplit(':').next().unwrap();
        succeed(Command::new("redis-cli").args(["-p", port]).args(arguments))
    }
}

pub fn proxy(registry: &str, redis: &str, more: &str) -> Taglock {
    proxy_with(registry, redis, more, RULES)
}

/// With these keys for `[ledger]`.
pub fn proxy_through(registry: &str, ledger: &str) -> Taglock {
    Taglock::from_file(|address, admin, _| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{registry}\"\n\
             [ledger]\nstore = \"redis\"\n{ledger}[admin]\naddress = \"{admin}\"\n{RULES}"
        )
    })
}

/// With more keys for `[ledger]`, and these rules.
pub fn proxy_with(registry: &str, redis: &str, more: &str, rules: &str) -> Taglock {
    Taglock::from_file(|address, admin, _| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{registry}\"\n\
             [ledger]\nstore = \"redis\"\nurl = \"redis://{redis}/0\"\n{more}\n\
             [admin]\naddress = \"{admin}\"\n{rules}"
        )
    })
}

#[test]
fn of_pushes_that_race_through_three_proxies_one_image_wins_for_all() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let proxies: Vec<_> = (0..3).map(|_| proxy(&registry.address, &redis.address, "")).collect();
    for round in 0..6 {
        let tag = format!("r{round}");
        let answers: Vec<_> = thread::scope(|scope| {
            let pushers: Vec<_> = (0..9)
                .map(|n| {
                    let (proxy, tag) = (&proxies[n % 3], &tag);
                    scope.spawn(move || {
                        let bytes = manifest(&format!("{round}-{}", n / 3));
                        (digest(&bytes), put(&proxy.address, "prod/race", tag, &bytes))
                    })
                })
                .collect();
            pushers.into_iter().map(|pusher| pusher.join().unwrap()).collect()
        });
        assert!(answers.iter().all(|(_, a)| matches!(a.status, 201 | 409 | 503)), "{answers:?}");
        let mut winners: Vec<_> =
            answers.iter().filter(|(_, a)| a.status == 201).map(|(d, _)| d.clone()).collect();
        winners.sort();
        winners.dedup();
        assert_eq!(winners.len(), 1, "{answers:?}");
        assert_eq!(tag_of(&registry.address, "prod/race", &tag), winners.pop());
    }
}

#[test]
fn what_one_proxy_bound_another_refuses_even_after_kills() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let mut first = proxy(&registry.address, &redis.address, "");
    let second = proxy(&registry.address, &redis.address, "");
    assert_eq!(put(&first.address, "prod/app", "v1", &manifest("one")).status, 201);
    first.process.signal("-KILL");
    first.process.wait_for_end();
    assert_eq!(put(&second.address, "prod/app", "v1", &manifest("two")).status, 409);
    assert_eq!(put(&second.address, "prod/app", "v1", &manifest("one")).status, 201);
}

#[test]
fn while_redis_is_down_protected_pushes_wait_and_the_rest_goes_on() {
    let registry = Registry::start();
    let mut redis = Redis::start(&[]);
    let taglock = proxy(&registry.address, &redis.address, "");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    redis.stop();
    let answer = put(&taglock.address, "prod/app", "v2", &manifest("two"));
    assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "{}", answer.text());
    assert_eq!(answer.header("Retry-After"), Some("5"));
    assert_eq!(tag_of(&registry.address, "prod/app", "v2"), None, "nothing was forwarded");
    assert_eq!(put(&taglock.address, "other", "v1", &manifest("two")).status, 201);
    assert_eq!(tag_of(&taglock.address, "prod/app", "v1"), Some(digest(&manifest("one"))));
    assert_eq!(http::get(&taglock.admin, "/readyz").status, 503);
    redis.restart();
    eventually("the ledger", || http::get(&taglock.admin, "/readyz").status == 200);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    assert_eq!(put(&taglock.address, "prod/app", "v2", &manifest("two")).status, 201);
}

#[test]
fn an_emptied_redis_is_noticed_and_the_registrys_own_tags_still_stand() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let taglock = proxy(&registry.address, &redis.address, "");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    redis.cli(&["FLUSHALL"]);
    let status = put(&taglock.address, "prod/app", "v1", &manifest("two")).status;
    assert!(matches!(status, 409 | 503), "{status}");
    let text = "what the proxies remember is bound again";
    eventually("the end of it", || taglock.process.log().contains(text));
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);
    eventually("the alarm", || {
        http::get(&taglock.admin, "/readyz").text().contains("ledger warning: it lost entries")
    });
    assert!(taglock.metric("taglock_ledger_losses") >= 1.0);
    assert_eq!(http::get(&taglock.admin, "/readyz").status, 200, "it serves on");
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&manifest("one"))));
}

#[test]
fn a_password_from_a_file_and_the_ledgers_id_are_used() {
    let registry = Registry::start();
    let redis = Redis::start(&["--requirepass", "hunter2hunter2"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter2hunter2\n").unwrap();
    let password = format!("password_file = {file:?}\n");
    let taglock = proxy(&registry.address, &redis.address, &password);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201);
    let log = taglock.process.log();
    assert!(!log.contains("hunter2"), "the password is in the log");
    let id = log.split("id=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap().to_owned();
    let again = proxy(&registry.address, &redis.address, &format!("{password}id = \"{id}\"\n"));
    assert_eq!(put(&again.address, "prod/app", "v1", &manifest("two")).status, 409);

    for (more, expected) in [
        (format!("{password}id = \"another\"\n"), "`ledger.id` names `another`"),
        (String::new(), "can't be reached"),
        (format!("{password}replicas = 1\n"), "has 0 replicas connected"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taglock.toml");
        let text = format!(
            "[listen]\naddress = \"127.0.0.1:{}\"\n[upstream]\nurl = \"http://{}\"\n\
             [ledger]\nstore = \"redis\"\nurl = \"redis://{}/0\"\n{more}",
            port(),
            registry.address,
            redis.address
        );
        std::fs::write(&file, text).unwrap();
        let output =
            run(Command::new(env!("CARGO_BIN_EXE_taglock")).args(["serve", "--config"]).arg(&file));
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}

/// What the ledger's other shapes are made of is tested with the ledger; here, that the file leads
/// to them.
#[test]
fn a_ledger_is_found_through_sentinels_and_in_a_cluster() {
    let registry = Registry::start();
    let redis = Redis::start(&["--requirepass", "hunter2hunter2"]);
    let folder = tempfile::tempdir().unwrap();
    let sentinel = format!("127.0.0.1:{}", port());
    let file = folder.path().join("sentinel.conf");
    let text = format!(
        "port {}\nbind 127.0.0.1\nrequirepass of-the-sentinel\n\
         sentinel monitor main {} 1\nsentinel auth-pass main hunter2hunter2\n",
        sentinel.rsplit(':').next().unwrap(),
        redis.address.replace(':', " ")
    );
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&file).arg("--sentinel");
    let mut process = Process::start("sentinel", command, folder.path());
    process.wait_for(&sentinel);
    let secret = |name: &str, secret: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, secret).unwrap();
        path
    };
    let through_sentinel = format!(
        "sentinels = \"redis://{sentinel}\"\nsentinel_master = \"main\"\n\
         password_file = {:?}\nsentinel_password_file = {:?}\n",
        secret("redis", "hunter2hunter2"),
        secret("sentinels", "of-the-sentinel")
    );

    let bus = port().to_string();
    let node = Redis::start(&["--cluster-enabled", "yes", "--cluster-port", &bus]);
    node.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    eventually("the Cluster", || node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let in_a_cluster = format!("cluster = [\"redis://{}\"]\n", node.address);

    for (n, ledger) in [through_sentinel, in_a_cluster].iter().enumerate() {
        let taglock = Taglock::from_file(|address, admin, _| {
            format!(
                "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
                 [ledger]\nstore = \"redis\"\n{ledger}[admin]\naddress = \"{admin}\"\n{RULES}",
                registry.address
            )
        });
        let repository = format!("prod/app{n}");
        assert_eq!(put(&taglock.address, &repository, "v1", &manifest("one")).status, 201);
        assert_eq!(put(&taglock.address, &repository, "v1", &manifest("two")).status, 409);
        let log = taglock.process.log();
        assert!(!log.contains("hunter2") && !log.contains("of-the-sentinel"), "{log}");
    }
}

#[test]
fn an_expected_ledger_that_is_gone_is_begun_only_by_an_operator() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let stores = |dir: &str| {
        [
            format!("store = \"redis\"\nurl = \"redis://{}/0\"\n", redis.address),
            format!("path = \"{dir}/ledger\"\n"),
        ]
    };
    for n in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taglock.toml");
        let store = &stores(&folder.path().display().to_string())[n];
        let address = format!("127.0.0.1:{}", port());
        let text = |id: &str| {
            format!(
                "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n[ledger]\n{store}id = \"{id}\"\n{RULES}",
                registry.address
            )
        };
        let taglock = |verb: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
            command.args(verb).arg("--config").arg(&file);
            command
        };
        std::fs::write(&file, text("mine")).unwrap();
        assert!(fail(&mut taglock(&["serve"])).contains("taglock ledger init"));
        assert!(succeed(&mut taglock(&["ledger", "init"])).contains(" is mine\n"));
        let mut process = Process::start("taglock", taglock(&["serve"]), folder.path());
        process.wait_for(&address);
        assert_eq!(put(&address, "prod/app", "v1", &manifest("one")).status, 201);
        process.signal("-TERM");
        assert_eq!(process.wait_for_end(), 0);
        std::fs::write(&file, text("other")).unwrap();
        for verb in [&["serve"][..], &["ledger", "init"]] {
            assert!(fail(&mut taglock(verb)).contains("`ledger.id` names `other`"));
        }
    }
}

#[test]
fn what_a_proxy_remembers_outlives_a_redis_that_lost_everything() {
    let registry = Registry::start();
    let redis = Redis::start(&[]);
    let (first, second) = (
        proxy(&registry.address, &redis.address, ""),
        proxy(&registry.address, &redis.address, ""),
    );
    let (one, two) = (manifest("one"), manifest("two"));
    for tag in ["v1", "v2"] {
        assert_eq!(put(&first.address, "prod/app", tag, &one).status, 201);
        // Behind taglock, where only the ledger tells that it is not so.
        assert_eq!(put(&registry.address, "prod/app", tag, &two).status, 201);
    }
    redis.cli(&["FLUSHALL"]);
    // Nobody binds anything before the one that remembers has offered it.
    for proxy in [&second, &first] {
        let status = put(&proxy.address, "prod/app", "v1", &two).status;
        assert!(matches!(status, 409 | 503), "{status}");
    }
    for proxy in [&first, &second] {
        let text = "what the proxies remember is bound again";
        eventually("the binding", || proxy.process.log().contains(text));
    }
    assert_eq!(put(&first.address, "prod/app", "v1", &two).status, 409);
    assert_eq!(tag_of(&first.address, "prod/app", "v1"), Some(digest(&one)));
    assert_eq!(put(&second.address, "prod/app", "v2", &two).status, 409);
    assert_eq!(tag_of(&second.address, "prod/app", "v2"), Some(digest(&one)));
    assert_eq!(put(&second.address, "prod/app", "v2", &one).status, 201, "and healed");
    assert_eq!(tag_of(&registry.address, "prod/app", "v2"), Some(digest(&one)));
}
