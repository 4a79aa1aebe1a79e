//! The processes that are frozen, killed and started again, and the faulty links between them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tempfile::TempDir;

use super::crash;
use crate::fault_proxy::{FaultProxy, Kind, pause};
use crate::harness::*;
use crate::http;

/// A process that may be down, and its folder, which stays.
pub struct Part {
    pub address: String,
    name: &'static str,
    /// Before the folder, where its log is: it is dropped first.
    process: Option<Process>,
    frozen: bool,
    folder: TempDir,
}

impl Part {
    fn new(name: &'static str) -> Self {
        let address = format!("127.0.0.1:{}", port());
        let folder = tempfile::tempdir().unwrap();
        Self { address, folder, name, process: None, frozen: false }
    }

    fn start(&mut self, command: Command) {
        self.kill();
        self.process = Some(Process::start(self.name, command, self.folder.path()));
    }

    fn wait(&mut self) {
        self.process.as_mut().unwrap().wait_for(&self.address);
    }

    fn port(&self) -> &str {
        self.address.rsplit(':').next().unwrap()
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.child.kill().unwrap();
            process.child.wait().unwrap();
        }
        self.frozen = false;
    }

    pub fn freeze(&mut self) {
        if let Some(process) = &self.process {
            process.signal("-STOP");
            self.frozen = true;
        }
    }

    pub fn thaw(&mut self) {
        if let Some(process) = self.process.as_ref().filter(|_| self.frozen) {
            process.signal("-CONT");
        }
        self.frozen = false;
    }

    pub fn is_down(&mut self) -> bool {
        self.ended().is_some() || self.process.is_none()
    }

    /// How it ended, the first time that somebody asks.
    fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.child.try_wait().unwrap();
        if status.is_some() {
            self.process = None;
        }
        status
    }
}

/// `docker-registry` on a folder that stays.
pub struct Backend(pub Part);

impl Backend {
    pub fn start() -> Self {
        let mut backend = Self(Part::new("docker-registry"));
        backend.restart();
        backend.0.wait();
        backend
    }

    pub fn restart(&mut self) {
        let file = self.0.folder.path().join("registry.yml");
        let settings = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {} }}\n",
            self.0.folder.path().join("data").display(),
            self.0.address
        );
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        self.0.start(command);
    }

    pub fn wait(&mut self) {
        self.0.wait();
    }
}

/// A Redis with a replica, of which either may be the master.
pub struct Redis {
    pub master: Part,
    pub replica: Part,
    /// A master that was replaced while it was frozen.
    pub zombie: Option<Part>,
}

impl Redis {
    pub fn start() -> Self {
        let mut master = Part::new("redis-server");
        serve(&mut master, None);
        master.wait();
        let mut replica = Part::new("redis-server");
        serve(&mut replica, Some(&master));
        replica.wait();
        let mut redis = Self { master, replica, zombie: None };
        eventually("the replica", || redis.is_in_sync());
        redis
    }

    /// Whether the replica has all that claims were granted for, and so may be promoted.
    pub fn is_in_sync(&mut self) -> bool {
        let well = |part: &mut Part| !part.is_down() && !part.frozen;
        if !well(&mut self.master) || !well(&mut self.replica) {
            return false;
        }
        let info = cli(&self.replica, &["INFO", "replication"]);
        info.contains("master_link_status:up") && info.contains("master_sync_in_progress:0")
    }

    /// Makes the replica the master; the old one is returned as it is. A new replica starts.
    pub fn promote(&mut self) -> Part {
        assert!(cli(&self.replica, &["REPLICAOF", "NO", "ONE"]).contains("OK"));
        let mut replica = Part::new("redis-server");
        serve(&mut replica, Some(&self.replica));
        let promoted = std::mem::replace(&mut self.replica, replica);
        std::mem::replace(&mut self.master, promoted)
    }

    pub fn restart_master(&mut self) {
        serve(&mut self.master, None);
    }

    /// Both, on what they had; then the replica catches up.
    pub fn restart(&mut self) {
        self.zombie = None;
        self.restart_master();
        self.master.wait();
        serve(&mut self.replica, Some(&self.master));
        self.replica.wait();
        eventually("the replica", || self.is_in_sync());
    }
}

fn serve(part: &mut Part, master: Option<&Part>) {
    let mut command = Command::new("redis-server");
    command.args(["--port", part.port(), "--bind", "127.0.0.1", "--save", ""]);
    command.args([
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    command.arg("--dir").arg(part.folder.path());
    if let Some(master) = master {
        command.args(["--replicaof", "127.0.0.1", master.port()]);
    }
    part.start(command);
}

fn cli(part: &Part, arguments: &[&str]) -> String {
    let output = run(Command::new("redis-cli").args(["-p", part.port()]).args(arguments));
    said(&output)
}

/// Where taglocks keep their ledger.
pub enum Store {
    Embedded,
    Redis(Box<Redis>),
}

/// What `abort` ends a process with.
const SIGABRT: i32 = 6;

/// A taglock with a faulty link on each side.
pub struct Node {
    pub taglock: Part,
    pub clients: FaultProxy,
    pub registry: FaultProxy,
    pub redis: Option<FaultProxy>,
    pub crashes: u64,
}

/// Small, so that a freeze is longer than all of them.
const QUICK: &str = "connect_timeout = \"500ms\"\nread_timeout = \"1s\"\nwrite_timeout = \"1s\"\n\
                     exchange_timeout = \"1s\"\nidle_timeout = \"5s\"";

impl Node {
    pub fn start(backend: &Backend, store: &Store, seed: u64) -> Self {
        Self::rolling(backend, store, seed, "published")
    }

    /// With this `roll_forward`.
    pub fn rolling(backend: &Backend, store: &Store, seed: u64, roll_forward: &str) -> Self {
        let taglock = Part::new("taglock");
        let clients = FaultProxy::start(Kind::Http, &taglock.address, seed);
        let registry =
            FaultProxy::start(Kind::Http, &backend.0.address, seed.wrapping_add(1 << 20));
        let redis = match store {
            Store::Embedded => None,
            Store::Redis(redis) => {
                let seed = seed.wrapping_add(1 << 40);
                Some(FaultProxy::start(Kind::Bytes, &redis.master.address, seed))
            }
        };
        let ledger = match &redis {
            None => format!("path = \"{}/ledger\"", taglock.folder.path().display()),
            Some(proxy) => {
                format!("store = \"redis\"\nurl = \"redis://{}/0\"\nreplicas = 1", proxy.address)
            }
        };
        let text = format!(
            "[listen]\naddress = \"{}\"\n[upstream]\nurl = \"http://{}\"\n{QUICK}\n\
             roll_forward = \"{roll_forward}\"\n\
             [ledger]\n{ledger}\n[log]\nfilter = \"{}\"\n{RULES}",
            taglock.address,
            registry.address,
            super::log_filter()
        );
        fs::write(taglock.folder.path().join("taglock.toml"), text).unwrap();
        let mut node = Self { taglock, clients, registry, redis, crashes: 0 };
        node.restart(None);
        node.wait();
        node
    }

    pub fn restart(&mut self, crash: Option<&str>) {
        let mut command = taglock(self.taglock.folder.path());
        if let Some(crash) = crash {
            command.env(crash::VARIABLE, crash);
        }
        self.taglock.start(command);
    }

    /// Whether it has ended, by itself or by somebody's hand.
    pub fn is_down(&mut self) -> bool {
        if let Some(status) = self.taglock.ended() {
            self.crashes += u64::from(status.signal() == Some(SIGABRT));
        }
        self.taglock.process.is_none()
    }

    /// Until it answers. A start may fail while its ledger is not well, as under any supervisor.
    pub fn wait(&mut self) {
        self.wait_for(None);
    }

    /// The same, and it is to die at this point.
    pub fn restart_to_die(&mut self, crash: &str) {
        self.restart(Some(crash));
        self.wait_for(Some(crash));
    }

    fn wait_for(&mut self, crash: Option<&str>) {
        eventually("taglock", || {
            if self.is_down() {
                self.restart(crash);
                pause(Duration::from_millis(200));
            }
            self.answers()
        });
    }

    fn answers(&self) -> bool {
        http::try_raw(&self.taglock.address, &http::bytes("x", "GET", "/v2/", &[], b""))
            .is_ok_and(|answer| answer.status == 200)
    }

    pub fn proxies(&self) -> impl Iterator<Item = &FaultProxy> {
        [&self.clients, &self.registry].into_iter().chain(&self.redis)
    }

    pub fn faults(&self, sum: &mut BTreeMap<&'static str, u64>) {
        for proxy in self.proxies() {
            for (name, count) in proxy.counts() {
                *sum.entry(name).or_default() += count;
            }
        }
    }
}

fn taglock(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
    command.arg("serve").arg("--config").arg(folder.join("taglock.toml"));
    command.env("RUST_BACKTRACE", "1").env_remove(crash::VARIABLE);
    command
}
