//! What the test does to proxies and the ledger while clients go on, one after the other.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::record::{Event, Kind, Phase, Record};
use super::spec::{Deletes, Rule};
use super::world::{Proxy, Servers};
use crate::fault_proxy::pause;
use crate::harness::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Happening {
    /// kill -9 of a proxy, which is started again.
    Kill,
    /// SIGUSR2.
    Upgrade,
    /// From immutable to mutable or back, one proxy after the other.
    Reload,
    /// A proxy can't reach Redis for a while.
    CutLink,
    /// Redis has done what a proxy asked, and the proxy is not told.
    LostAnswer,
    /// kill -9 of the master; its replica, which may not have heard of it for a while, is promoted.
    Failover,
    /// FLUSHALL.
    Loss,
}

/// Between two losses the proxies have brought back what they can.
const BETWEEN_LOSSES: Duration = Duration::from_secs(12);
/// How much longer than it should a history may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Events<'a> {
    pub record: &'a Record,
    pub proxies: Vec<Proxy>,
    pub servers: Servers,
    pub rng: Rng,
    pub deletes: Deletes,
    pub rule: Rule,
    pub lost: Option<Instant>,
    pub done: BTreeMap<Happening, u64>,
}

impl Events<'_> {
    /// Draws what happens until the time is over. On a machine that is busy it may take longer until each has
    /// happened once, and clients have done enough.
    pub fn play(&mut self, happenings: &[Happening], length: Duration, enough: impl Fn() -> bool) {
        let start = Instant::now();
        // Each once, then by chance.
        let mut queue = happenings.to_vec();
        self.rng.shuffle(&mut queue);
        let lacks = |queue: &[Happening]| {
            start.elapsed() < length + PATIENCE && (!queue.is_empty() || !enough())
        };
        while start.elapsed() < length || lacks(&queue) {
            pause(Duration::from_millis(self.rng.u64(500..2500)));
            let next =
                queue.pop().unwrap_or_else(|| happenings[self.rng.usize(0..happenings.len())]);
            self.happen(next);
        }
        if self.rule == Rule::Mutable {
            self.happen(Happening::Reload);
        }
    }

    fn happen(&mut self, happening: Happening) {
        let proxy = self.rng.usize(0..self.proxies.len());
        let invoked = self.record.clock.now();
        let mut told = format!("{happening:?}");
        let mut kind = Kind::Other;
        match happening {
            Happening::Kill => {
                self.proxies[proxy].kill();
                (told, kind) = (format!("kill of proxy {}", proxy + 1), Kind::Kill(proxy));
            }
            Happening::Upgrade => {
                self.proxies[proxy].upgrade();
                told = format!("upgrade of proxy {}", proxy + 1);
            }
            Happening::Reload => told = self.reload(),
            Happening::CutLink => {
                self.proxies[proxy].cut(true);
                pause(Duration::from_millis(self.rng.u64(300..2500)));
                self.proxies[proxy].cut(false);
                told = format!("proxy {} is cut off from Redis", proxy + 1);
            }
            Happening::LostAnswer => {
                self.proxies[proxy].lose_an_answer();
                told = format!("an answer of Redis to proxy {} gets lost", proxy + 1);
            }
            Happening::Failover => {
                self.fail_over();
                kind = Kind::Failover;
            }
            Happening::Loss => {
                let Servers::One(redis) = &self.servers else { return };
                if self.lost.is_some_and(|at| at.elapsed() < BETWEEN_LOSSES) {
                    return;
                }
                redis.cli(&["FLUSHALL"]);
                self.lost = Some(Instant::now());
                kind = Kind::Loss;
            }
        }
        let ended = self.record.clock.now();
        self.record.events.lock().unwrap().push(Event { invoked, ended, told, kind });
        *self.done.entry(happening).or_default() += 1;
    }

    fn reload(&mut self) -> String {
        self.rule = match self.rule {
            Rule::Mutable => Rule::Immutable(self.deletes),
            Rule::Immutable(_) => Rule::Mutable,
        };
        for (n, proxy) in self.proxies.iter().enumerate() {
            let from = self.record.clock.now();
            self.record.phases.lock().unwrap()[n].push(Phase {
                rule: self.rule,
                from,
                until: super::check::NEVER,
            });
            proxy.reload(self.rule);
            let until = self.record.clock.now();
            let phases = &mut self.record.phases.lock().unwrap()[n];
            let before = phases.len() - 2;
            phases[before].until = until;
        }
        format!("reload to {:?}", self.rule)
    }

    fn fail_over(&mut self) {
        let Servers::Two(redis) = &mut self.servers else { return };
        eventually("the replica", || redis.is_in_sync());
        if self.rng.bool() {
            // What needs a replica is refused meanwhile.
            let port = redis.replica.address.rsplit(':').next().unwrap();
            succeed(Command::new("redis-cli").args(["-p", port, "REPLICAOF", "127.0.0.1", "1"]));
            pause(Duration::from_millis(self.rng.u64(500..2500)));
        }
        redis.master.kill();
        drop(redis.promote());
        for proxy in &self.proxies {
            proxy.aim(&self.servers);
        }
    }

    /// No fault any more.
    pub fn calm(&mut self) {
        self.proxies.iter().for_each(|proxy| proxy.cut(false));
        if let Servers::Two(redis) = &mut self.servers {
            eventually("the replica", || redis.is_in_sync());
        }
    }
}
