//! Real servers for the tests, on ports of their own, ended with the values that hold them.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use redis::{Value, cmd};
use tempfile::TempDir;

use crate::ledger::redis::{Access, Address, Config, Tls, Topology};

const PATIENCE: Duration = Duration::from_secs(30);

/// Debian's Redis, and Valkey where it is installed: Debian 12 has it in its backports only.
pub fn programs() -> Vec<&'static str> {
    static TOLD: Once = Once::new();
    let valkey = Command::new("valkey-server").arg("--version").output();
    let valkey = valkey.is_ok_and(|output| output.status.success());
    TOLD.call_once(|| {
        let told = if valkey { "the tests run against it, too" } else { "not installed" };
        // Past the test's captured output.
        let _ = writeln!(std::io::stderr(), "valkey-server: {told}");
    });
    if valkey { vec!["redis-server", "valkey-server"] } else { vec!["redis-server"] }
}

/// A port below those the system hands out, and so is the Cluster's own, ten thousand above.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 12_000 + (std::process::id() % 50) as u16 * 100;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 1000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

/// Waits until it holds, and fails the test when it never does.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One server, a sentinel among them.
pub struct Server {
    pub port: u16,
    pub folder: TempDir,
    program: &'static str,
    arguments: Vec<String>,
    child: Child,
}

impl Server {
    pub fn start(more: &[&str]) -> Self {
        Self::start_as("redis-server", more)
    }

    pub fn start_as(program: &'static str, more: &[&str]) -> Self {
        let port = port();
        let mut arguments = vec!["--port".to_owned(), port.to_string()];
        arguments.extend(["--save", "", "--appendonly", "yes"].map(str::to_owned));
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        Self::run(program, port, tempfile::tempdir().unwrap(), arguments)
    }

    /// With a file in place of arguments: sentinels write to it.
    pub fn start_sentinel(master: &Server, more: &str) -> Self {
        let (port, folder) = (port(), tempfile::tempdir().unwrap());
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nsentinel monitor mymaster 127.0.0.1 {} 2\n\
             sentinel down-after-milliseconds mymaster 1000\n\
             sentinel failover-timeout mymaster 5000\n{more}",
            master.port
        );
        std::fs::write(&file, text).unwrap();
        let arguments = vec![file.display().to_string(), "--sentinel".into()];
        Self::run("redis-server", port, folder, arguments)
    }

    fn run(program: &'static str, port: u16, folder: TempDir, arguments: Vec<String>) -> Self {
        let child = Self::spawn(program, port, &folder, &arguments);
        Self { port, folder, program, arguments, child }
    }

    fn spawn(program: &str, port: u16, folder: &TempDir, arguments: &[String]) -> Child {
        let mut command = Command::new(program);
        command.args(arguments).args(["--bind", "127.0.0.1", "--dir"]).arg(folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("`redis-server` is installed by scripts/test");
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "{program} does not answer");
            std::thread::yield_now();
        }
        child
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn stop(self) {}

    pub fn start_again(&mut self) {
        self.kill();
        self.child = Self::spawn(self.program, self.port, &self.folder, &self.arguments);
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    pub fn address(&self) -> Address {
        Address { host: "127.0.0.1".into(), port: self.port }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn config(&self) -> Config {
        Config::at(&self.url(), Tls::default(), self.address().to_string()).unwrap()
    }

    pub fn try_cli(&self, arguments: &[&str]) -> redis::RedisResult<String> {
        let mut client = redis::Client::open(self.url())?;
        let mut call = cmd(arguments[0]);
        for argument in &arguments[1..] {
            call.arg(*argument);
        }
        let value: Value = call.query(&mut client)?;
        Ok(match value {
            Value::BulkString(text) => String::from_utf8(text).unwrap(),
            value => format!("{value:?}"),
        })
    }

    pub fn cli(&self, arguments: &[&str]) -> String {
        self.try_cli(arguments).unwrap()
    }

    /// Nothing where its clients are being cut off, as in a failover.
    pub fn info(&self, section: &str) -> String {
        self.try_cli(&["INFO", section]).unwrap_or_default()
    }

    pub async fn wait_for_replicas(&self, count: usize) {
        eventually("the replicas", || {
            let info = self.info("replication");
            info.matches("state=online").count() == count
        })
        .await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A master, a replica, and three sentinels that watch them.
pub struct Watched {
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl Watched {
    pub async fn start() -> Self {
        let master = Server::start(&[]);
        let port = master.port.to_string();
        let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
        master.wait_for_replicas(1).await;
        let sentinels = [(); 3].map(|()| Server::start_sentinel(&master, ""));
        let watched = Self { servers: vec![master, replica], sentinels: sentinels.into() };
        for sentinel in &watched.sentinels {
            let knows = |text: &str| {
                let info = sentinel.try_cli(&["INFO", "sentinel"]);
                info.is_ok_and(|info| info.contains(text))
            };
            eventually("the sentinels", || knows("slaves=1,sentinels=3")).await;
        }
        watched
    }

    pub fn config(&self) -> Config {
        let topology = Topology::Sentinel {
            sentinels: self.sentinels.iter().map(Server::address).collect(),
            access: Access::new(None),
            master: "mymaster".into(),
        };
        let shown = "mymaster".into();
        Config { topology, access: Access::new(None), shown, replicas: 1, id: None }
    }
}

/// Three masters with a replica each.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    pub async fn start() -> Self {
        let more = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let nodes: Vec<_> = (0..6).map(|_| Server::start(&more)).collect();
        let cluster = Self { nodes };
        let addresses = cluster.nodes.iter().map(|node| node.address().to_string());
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(addresses);
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let output = create.output().expect("`redis-cli` is installed by scripts/test");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        for node in &cluster.nodes {
            eventually("the Cluster", || {
                let (info, replication) =
                    (node.cli(&["CLUSTER", "INFO"]), node.info("replication"));
                let synced =
                    replication.contains("state=online") || replication.contains("link_status:up");
                info.contains("cluster_state:ok") && synced
            })
            .await;
        }
        cluster
    }

    pub fn config(&self) -> Config {
        let seeds = self.nodes.iter().take(3).map(Server::address).collect();
        let shown = "the Cluster".into();
        let topology = Topology::Cluster(seeds);
        Config { topology, access: Access::new(None), shown, replicas: 1, id: None }
    }

    pub fn owner(&self, slot: u16) -> usize {
        self.find_owner(slot).expect("somebody serves the slot")
    }

    /// Which node, of those that live, serves this slot as its master.
    pub fn find_owner(&self, slot: u16) -> Option<usize> {
        let serves = |node: &Server| {
            let Ok(nodes) = node.try_cli(&["CLUSTER", "NODES"]) else { return false };
            let own = nodes.lines().find(|line| line.contains("myself,master")).unwrap_or("");
            own.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let bounds = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
                bounds.is_some_and(|(first, last)| (first..=last).contains(&slot))
            })
        };
        self.nodes.iter().position(serves)
    }
}
