//! Debian's `redis-server`, started by the bench.

use std::process::Command;

use taglock::ledger::redis::{Config, Redis, Tls};
use tempfile::TempDir;

use crate::harness::{Process, port};

pub struct RedisServer {
    pub address: String,
    _process: Process,
    _folder: TempDir,
}

impl RedisServer {
    /// With an append-only file that is synced `"everysec"` or `"always"`, and more options.
    pub fn start(sync: &str, more: &[&str]) -> Self {
        let folder = disk();
        let address = format!("127.0.0.1:{}", port());
        let mut command = Command::new("redis-server");
        command.args(["--port", address.rsplit(':').next().unwrap(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", sync]);
        // A rewrite of the file in the middle would be measured along.
        command.args(["--auto-aof-rewrite-percentage", "0"]);
        command.arg("--dir").arg(folder.path()).args(more);
        let mut process = Process::start("redis-server", command, folder.path());
        process.wait_for(&address);
        Self { address, _process: process, _folder: folder }
    }

    pub fn url(&self, database: u8) -> String {
        format!("redis://{}/{database}", self.address)
    }

    /// A ledger in one of its databases, through the store's own code.
    pub fn ledger(&self, database: u8, replicas: u32) -> Redis {
        let config = Config::at(&self.url(database), Tls::default(), self.address.clone()).unwrap();
        Redis::open(&Config { replicas, ..config }).unwrap()
    }
}

/// A folder below `target/`: on a disk, where a temporary folder may be in memory.
pub fn disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
