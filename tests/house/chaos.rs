//! Chaos with real processes: taglocks, a registry, a Redis with its replica, and a faulty link
//! between each two. Whatever is frozen, killed or cut, the history that clients see is right.
//!
//! `scripts/chaos` runs it for longer. `TAGLOCK_SEED` replays a plan: the faults of each connection
//! and the blows to the processes, though not the order in which threads meet them.

mod crash;
mod history;
mod load;
pub mod parts;
mod plan;
mod settle;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::fault_proxy::pause;
use load::Clients;
use parts::{Backend, Node, Redis, Store};
use plan::{Blow, RedisWhat, What};

const CLIENTS: usize = 16;
const TICK: Duration = Duration::from_millis(20);

#[test]
fn a_fleet_on_redis_keeps_its_promises_in_chaos() {
    run("fleet", 3, || Store::Redis(Box::new(Redis::start())), 35);
}

#[test]
fn a_taglock_on_its_own_ledger_keeps_its_promises_in_chaos() {
    run("single", 1, || Store::Embedded, 20);
}

/// The seed of a run without `TAGLOCK_SEED`, so that each run of the tests has the same plan.
/// `scripts/chaos` draws one.
const SEED: u64 = 1_895_025_113;

fn log_filter() -> String {
    std::env::var("TAGLOCK_CHAOS_LOG").unwrap_or_else(|_| "warn".to_owned())
}

fn run(name: &'static str, nodes: usize, store: impl FnOnce() -> Store, seconds: u64) {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = given("TAGLOCK_SEED").unwrap_or(SEED);
    let length = 1000 * given("TAGLOCK_CHAOS_SECONDS").unwrap_or(seconds);
    let backend = Backend::start();
    let store = store();
    let nodes: Vec<_> = (0..nodes as u64)
        .map(|n| Node::start(&backend, &store, seed.wrapping_add(n << 50)))
        .collect();
    let start = Instant::now();
    let mut rng = Rng::with_seed(seed);
    let redis = matches!(store, Store::Redis(_));
    let plan = plan::drawn(&mut rng, length, nodes.len(), redis);
    let report = Report { name, seed, plan: plan.iter().map(ToString::to_string).collect() };
    let addresses = nodes.iter().map(|node| node.clients.address.clone()).collect();
    let clients = Clients::new(seed, addresses, &backend.0.address);
    let starts = vec![None; nodes.len()];
    let mut scene =
        Scene { backend, store, nodes, rng, starts, undo: Vec::new(), done: BTreeMap::new() };

    scene.calm(false);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _guard = EndAtLast(&end);
        for _ in 0..CLIENTS {
            let (rng, clients, end) = (scene.rng.fork(), &clients, &end);
            scope.spawn(move || clients.run(rng, end));
        }
        scene.play(plan, length, &clients, &report);
    });
    let chaos = history::summary(&clients.history());
    // Of a run in which nothing went through nothing follows.
    assert!(chaos.contains("pushes acknowledged"), "nothing was pushed: {chaos}");
    scene.recover();
    settle::settle(&clients, scene.nodes.len());
    report.check(&clients, start);

    let mut faults = BTreeMap::new();
    scene.nodes.iter().for_each(|node| node.faults(&mut faults));
    let crashes: u64 = scene.nodes.iter().map(|node| node.crashes).sum();
    eprintln!(
        "{name}: TAGLOCK_SEED={seed}, {} s: {chaos}\n  blows {:?}, of the crashes {crashes} took place\n  faults {faults:?}",
        length / 1000,
        scene.done
    );
}

struct EndAtLast<'a>(&'a AtomicBool);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is told of a run that went wrong, wherever it did.
struct Report {
    name: &'static str,
    seed: u64,
    plan: Vec<String>,
}

impl Report {
    /// How long the check took.
    fn check(&self, clients: &Clients, start: Instant) -> Duration {
        let checking = Instant::now();
        let history = clients.history();
        let wrong = history::violations(&history);
        if let Some(first) = wrong.first() {
            panic!(
                "after {:?} {} violations, the first of them:\n{}\nall that concerns it:\n{}",
                start.elapsed(),
                wrong.len(),
                wrong[..wrong.len().min(5)].join("\n"),
                history::story(&history, first)
            );
        }
        checking.elapsed()
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if thread::panicking() {
            let Self { name, seed, plan } = self;
            eprintln!("{name}: TAGLOCK_SEED={seed} has this plan:\n{}", plan.join("\n"));
        }
    }
}

/// What ends a blow.
enum Undo {
    ThawTaglock(usize),
    ThawRegistry,
    StartRegistry,
    ThawMaster,
    ThawReplica,
    ThawZombie,
    EndZombie,
    StartMaster,
}

struct Scene {
    backend: Backend,
    store: Store,
    nodes: Vec<Node>,
    rng: Rng,
    /// When a taglock that is down is started again.
    starts: Vec<Option<u64>>,
    undo: Vec<(u64, Undo)>,
    done: BTreeMap<&'static str, u64>,
}

impl Scene {
    fn calm(&self, calm: bool) {
        self.nodes.iter().flat_map(Node::proxies).for_each(|proxy| proxy.calm(calm));
    }

    fn play(&mut self, plan: Vec<Blow>, length: u64, clients: &Clients, report: &Report) {
        let start = Instant::now();
        let mut plan = plan.into_iter().peekable();
        let mut check = Duration::from_secs(2);
        loop {
            let now = u64::try_from(start.elapsed().as_millis()).unwrap();
            if now >= length {
                return;
            }
            while let Some(blow) = plan.next_if(|blow| blow.at <= now) {
                if self.strike(&blow.what, now) {
                    *self.done.entry(blow.what.name()).or_default() += 1;
                }
            }
            let due = |(at, _): &mut (u64, Undo)| *at <= now;
            for (_, undo) in self.undo.extract_if(.., due).collect::<Vec<_>>() {
                self.end(&undo);
            }
            self.supervise(now);
            if start.elapsed() > check {
                // Seldom enough that most of the time is left for the run itself.
                let took = report.check(clients, start);
                check = start.elapsed() + Duration::from_secs(1) + took * 10;
            }
            pause(TICK);
        }
    }

    /// Whether it was possible.
    fn strike(&mut self, what: &What, now: u64) -> bool {
        match what {
            What::FreezeTaglock { node, time } => {
                self.nodes[*node].taglock.freeze();
                self.undo.push((now + time, Undo::ThawTaglock(*node)));
            }
            What::KillTaglock { node, down } => {
                self.nodes[*node].taglock.kill();
                self.starts[*node] = Some(now + down);
            }
            What::CrashTaglock { node, at } => {
                self.nodes[*node].restart(Some(at));
                self.starts[*node] = None;
            }
            What::KillRegistry { down } => {
                self.backend.0.kill();
                self.undo.push((now + down, Undo::StartRegistry));
            }
            What::FreezeRegistry { time } => {
                self.backend.0.freeze();
                self.undo.push((now + time, Undo::ThawRegistry));
            }
            What::Redis(what) => return self.strike_redis(what, now),
        }
        true
    }

    fn strike_redis(&mut self, what: &RedisWhat, now: u64) -> bool {
        let Store::Redis(redis) = &mut self.store else { return false };
        match what {
            // A replica that is behind is not promoted: whoever does that has lost its ledger.
            RedisWhat::FailOver | RedisWhat::Zombie { .. } if !redis.is_in_sync() => return false,
            RedisWhat::Zombie { .. } if redis.zombie.is_some() => return false,
            RedisWhat::FailOver => {
                redis.master.kill();
                drop(redis.promote());
                self.aim();
            }
            RedisWhat::Zombie { time } => {
                redis.master.freeze();
                redis.zombie = Some(redis.promote());
                self.undo.push((now + time, Undo::ThawZombie));
                self.undo.push((now + time + 3000, Undo::EndZombie));
                self.aim();
            }
            RedisWhat::Freeze { master, time } => {
                let (part, undo) = match master {
                    true => (&mut redis.master, Undo::ThawMaster),
                    false => (&mut redis.replica, Undo::ThawReplica),
                };
                part.freeze();
                self.undo.push((now + time, undo));
            }
            RedisWhat::Restart { down } => {
                redis.master.kill();
                self.undo.push((now + down, Undo::StartMaster));
            }
        }
        true
    }

    fn end(&mut self, undo: &Undo) {
        match (undo, &mut self.store) {
            (Undo::ThawTaglock(node), _) => self.nodes[*node].taglock.thaw(),
            (Undo::ThawRegistry, _) => self.backend.0.thaw(),
            (Undo::StartRegistry, _) => self.backend.restart(),
            (Undo::ThawMaster, Store::Redis(redis)) => redis.master.thaw(),
            (Undo::ThawReplica, Store::Redis(redis)) => redis.replica.thaw(),
            (Undo::ThawZombie, Store::Redis(redis)) => {
                if let Some(zombie) = &mut redis.zombie {
                    zombie.thaw();
                }
            }
            (Undo::EndZombie, Store::Redis(redis)) => redis.zombie = None,
            (Undo::StartMaster, Store::Redis(redis)) => {
                if redis.master.is_down() {
                    redis.restart_master();
                }
            }
            (_, Store::Embedded) => {}
        }
    }

    /// Links lead to the master; connections that are there stay.
    fn aim(&self) {
        if let Store::Redis(redis) = &self.store {
            for node in &self.nodes {
                node.redis.iter().for_each(|proxy| proxy.aim(&redis.master.address));
            }
        }
    }

    /// Starts what has ended by itself: at a crash point, or because its ledger was not well.
    fn supervise(&mut self, now: u64) {
        for (node, start) in self.nodes.iter_mut().zip(&mut self.starts) {
            if !node.is_down() {
                continue;
            }
            match *start {
                None => *start = Some(now + self.rng.u64(100..800)),
                Some(at) if at <= now => {
                    node.restart(None);
                    *start = None;
                }
                Some(_) => {}
            }
        }
    }

    /// No faults, all of it started anew, and what was under way at its end.
    fn recover(&mut self) {
        self.calm(true);
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.end(&undo);
        }
        for node in &mut self.nodes {
            node.taglock.kill();
        }
        if let Store::Redis(redis) = &mut self.store {
            redis.restart();
        }
        self.backend.restart();
        self.backend.wait();
        for node in &mut self.nodes {
            node.restart(None);
            node.wait();
        }
        for proxy in self.nodes.iter().flat_map(Node::proxies) {
            proxy.wait_for_the_late();
        }
    }
}
