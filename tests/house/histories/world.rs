//! The proxies, their ledger and the registry of one history.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::registry::SlowRegistry;
use super::spec::{Deletes, Rule};
use crate::chaos::parts;
use crate::fault_proxy::{Fault, FaultProxy, Kind};
use crate::fleet;
use crate::harness::*;
use crate::http;
use crate::operators::TOKEN;

/// Where the ledger is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Embedded,
    /// One server, which has all that it acknowledged until it loses everything.
    Redis,
    /// A master and its replica, with `replicas = 1`.
    Replicated,
}

/// The servers of the ledger.
pub enum Servers {
    None,
    One(fleet::Redis),
    Two(Box<parts::Redis>),
}

impl Servers {
    pub fn start(store: Store) -> Self {
        match store {
            Store::Embedded => Self::None,
            Store::Redis => Self::One(fleet::Redis::start(&[])),
            Store::Replicated => Self::Two(Box::new(parts::Redis::start())),
        }
    }

    fn address(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::One(redis) => Some(&redis.address),
            Self::Two(redis) => Some(&redis.master.address),
        }
    }
}

/// What all proxies of a history have in common.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub store: Store,
    pub deletes: Deletes,
    pub cache_ttl: &'static str,
}

impl Settings {
    fn rules(&self, rule: Rule) -> String {
        let mutability = if rule == Rule::Mutable { "mutable" } else { "immutable" };
        let deletes = match self.deletes {
            Deletes::Refuse => "refuse",
            Deletes::Keep => "keep",
            Deletes::Release => "release",
        };
        format!(
            "[[rule]]\nname = \"r\"\nrepositories = \"prod/**\"\nmutability = \"{mutability}\"\n\
             delete = \"{deletes}\"\n"
        )
    }
}

/// A taglock, the processes that took over from it, and its link to Redis.
pub struct Proxy {
    /// Dropped before the taglock, whose folder names them.
    successors: Successors,
    pub taglock: Taglock,
    link: Option<FaultProxy>,
    settings: Settings,
}

/// The processes that took over are no children of the test's.
struct Successors {
    folder: String,
    log: PathBuf,
}

impl Successors {
    /// The newest last, those that are gone left out.
    fn pids(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let told = log.lines().filter(|line| line.contains("a newer process takes over"));
        let pid = |line: &str| -> Option<String> {
            let rest = line.split_once("pid=")?.1;
            Some(rest.chars().take_while(char::is_ascii_digit).collect())
        };
        told.filter_map(pid).filter(|pid| self.lives(pid)).collect()
    }

    /// Not ended, and no other process that got its number.
    fn lives(&self, pid: &str) -> bool {
        // Of a process that has ended and was not waited for, the command line is empty.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&self.folder)
    }

    fn kill(&self) {
        for pid in self.pids() {
            // It may end by itself meanwhile.
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
            eventually("the end of a successor", || has_ended(&pid));
        }
    }
}

/// Also where nobody waits for it. Its command line is gone before it has let go of its files, and so is its
/// first thread, as long as it has others.
fn has_ended(pid: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| threads <= 1 && (stat.contains(") Z ") || stat.contains(") X ")))
}

impl Drop for Successors {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    }
}

impl Proxy {
    pub fn start(registry: &SlowRegistry, servers: &Servers, settings: Settings) -> Self {
        let link = servers.address().map(|address| FaultProxy::start(Kind::Bytes, address, 0));
        let ttl = settings.cache_ttl;
        let taglock = Taglock::from_file(|address, admin, folder| {
            fs::write(format!("{folder}/admin.token"), TOKEN).unwrap();
            let ledger = match &link {
                None => format!("path = \"{folder}/ledger\""),
                Some(link) => {
                    let replicas = if settings.store == Store::Replicated { 1 } else { 0 };
                    let url = format!("redis://{}/0", link.address);
                    format!("store = \"redis\"\nurl = \"{url}\"\nreplicas = {replicas}")
                }
            };
            format!(
                "threads = 1\nshutdown_timeout = \"5s\"\n[listen]\naddress = \"{address}\"\n\
                 [upstream]\nurl = \"http://{}\"\nconnect_timeout = \"500ms\"\nexchange_timeout = \"2s\"\n\
                 read_timeout = \"2s\"\nwrite_timeout = \"2s\"\n\
                 [ledger]\n{ledger}\ncache_ttl = \"{ttl}\"\n\
                 [admin]\naddress = \"{admin}\"\ntoken_file = \"{folder}/admin.token\"\n\
                 [limits]\nwaiting = 64\n[log]\naccess = false\nfilter = \"info\"\n{}",
                registry.address,
                settings.rules(Rule::Immutable(settings.deletes))
            )
        });
        let folder = taglock.folder.path();
        let successors =
            Successors { folder: folder.display().to_string(), log: folder.join("taglock.log") };
        Self { successors, taglock, link, settings }
    }

    fn pid(&self) -> String {
        self.successors.pids().pop().unwrap_or_else(|| self.taglock.process.child.id().to_string())
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid()]).status().unwrap().success());
    }

    pub fn kill(&mut self) {
        self.successors.kill();
        self.taglock.restart();
    }

    /// Until the newer process has taken over, and the older one has ended.
    pub fn upgrade(&mut self) {
        let count = |text: &str| self.taglock.process.log().matches(text).count();
        let done = || count("this process has taken over");
        let under_way = || {
            count("starting a newer process") > done() + count("the newer process did not start")
        };
        let (before, older) = (done(), self.pid());
        let mut sent = None;
        eventually("the upgrade", || {
            let again = sent.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(2));
            // One that came before the process listens for it is lost, and on a machine that is busy
            // enough the newer process does not start in time.
            if done() == before && again && !under_way() {
                // It may have ended since.
                let _ = Command::new("kill").args(["-USR2", &older]).status();
                sent = Some(Instant::now());
            }
            done() > before
        });
        let child = self.taglock.process.child.id().to_string();
        if older == child {
            self.taglock.process.wait_for_end();
        } else {
            eventually("the end of the older process", || has_ended(&older));
        }
    }

    /// Until the rule is in force.
    pub fn reload(&self, rule: Rule) {
        let before = self.reloads();
        let file = self.taglock.folder.path().join("taglock.toml");
        let text = fs::read_to_string(&file).unwrap();
        let kept = text.split("[[rule]]").next().unwrap();
        // Whole at once: taglock may look at the file by itself.
        let new = file.with_extension("new");
        fs::write(&new, format!("{kept}{}", self.settings.rules(rule))).unwrap();
        fs::rename(&new, &file).unwrap();
        self.signal("-HUP");
        eventually("the reload", || self.reloads() > before);
    }

    /// How many files this process has applied. One that is on its end may cut the connection.
    fn reloads(&self) -> u64 {
        let line = "taglock_reloads_total{result=\"applied\"}";
        let mut count = None;
        eventually("the metrics", || {
            let request = http::bytes("x", "GET", "/metrics", &[], b"");
            let answer = http::try_raw(&self.taglock.admin, &request);
            count = answer.ok().filter(|answer| answer.status == 200).map(|answer| {
                let text = answer.text();
                let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
                found.unwrap_or(0)
            });
            count.is_some()
        });
        count.unwrap()
    }

    /// Nothing gets through to Redis any more, or all.
    pub fn cut(&self, cut: bool) {
        if let Some(link) = &self.link {
            link.script(move |_| cut.then_some(Fault::CutBefore));
        }
    }

    /// The answer to the next call of Redis gets lost, and with it the connection.
    pub fn lose_an_answer(&self) {
        if let Some(link) = &self.link {
            let lost = Arc::new(AtomicBool::new(false));
            link.script(move |_| (!lost.swap(true, Ordering::SeqCst)).then_some(Fault::CutAfter));
        }
    }

    pub fn aim(&self, servers: &Servers) {
        if let (Some(link), Some(address)) = (&self.link, servers.address()) {
            link.aim(address);
        }
    }
}
