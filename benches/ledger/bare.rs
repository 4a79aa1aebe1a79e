//! Bare Redis commands through the crate's own connection, and a bare write to the disk.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo, cmd, pipe};
use taglock::name::Tag;

use crate::redis_server::RedisServer;

/// What a sealed entry weighs.
const ENTRY: [u8; 45] = [b'x'; 45];

/// Commands on hashes that look like the ledger's, in a database of their own.
#[derive(Clone)]
pub struct Bare {
    connection: MultiplexedConnection,
    /// As the ledger's: `WAIT` blocks its connection.
    waiting: MultiplexedConnection,
    script: String,
}

impl Bare {
    pub async fn connect(server: &RedisServer, database: u8) -> Self {
        // As the ledger's connections are.
        let at_once = TcpSettings::default().set_nodelay(true);
        let info = server.url(database).into_connection_info().unwrap();
        let client = Client::open(info.set_tcp_settings(at_once)).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let load = cmd("SCRIPT").arg("LOAD").arg("return 1").to_owned();
        let script = load.query_async(&mut connection).await.unwrap();
        let waiting = client.get_multiplexed_async_connection().await.unwrap();
        Self { connection, waiting, script }
    }

    pub async fn ping(&mut self) {
        cmd("PING").query_async::<()>(&mut self.connection).await.unwrap();
    }

    pub async fn hmget(&mut self, hash: &str, tag: &Tag) {
        let call = cmd("HMGET").arg(hash).arg("\0seq").arg(tag.as_str()).to_owned();
        call.query_async::<redis::Value>(&mut self.connection).await.unwrap();
    }

    pub async fn hset(&mut self, hash: &str, tag: &Tag) {
        hset(hash, tag).query_async::<()>(&mut self.connection).await.unwrap();
    }

    pub async fn evalsha(&mut self, hash: &str) {
        let call = cmd("EVALSHA").arg(&self.script).arg(1).arg(hash).to_owned();
        call.query_async::<()>(&mut self.connection).await.unwrap();
    }

    /// `HSET`, and `WAIT 1` right behind it.
    pub async fn hset_and_wait(&mut self, hash: &str, tag: &Tag) {
        let mut both = pipe();
        both.add_command(hset(hash, tag)).cmd("WAIT").arg(1).arg(1000);
        let (_, confirmed): (i64, u32) = both.query_async(&mut self.waiting).await.unwrap();
        assert_eq!(confirmed, 1, "the replica confirms");
    }

    pub async fn used_memory(&mut self) -> u64 {
        let info: String =
            cmd("INFO").arg("memory").to_owned().query_async(&mut self.connection).await.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        line.unwrap().trim().parse().unwrap()
    }

    pub async fn has_replica(&mut self) -> bool {
        let info: String = cmd("INFO")
            .arg("replication")
            .to_owned()
            .query_async(&mut self.connection)
            .await
            .unwrap();
        info.contains("state=online")
    }
}

fn hset(hash: &str, tag: &Tag) -> redis::Cmd {
    cmd("HSET").arg(hash).arg(tag.as_str()).arg(&ENTRY[..]).to_owned()
}

/// 4 KiB over and over in one place, synced each time.
pub struct Disk(File);

impl Disk {
    pub fn new(folder: &std::path::Path) -> Self {
        Self(File::create(folder.join("bare")).unwrap())
    }

    pub fn write_and_sync(&mut self) {
        self.0.seek(SeekFrom::Start(0)).unwrap();
        self.0.write_all(&[7; 4096]).unwrap();
        self.0.sync_data().unwrap();
    }
}
