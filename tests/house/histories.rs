//! Histories in which names change hands: clients push, pull and delete on few tags, operators release
//! them, rules change between immutable and mutable, proxies are killed and upgraded, and Redis fails over
//! or loses everything. The registry is slow, fails and answers late (`registry.rs`).
//!
//! What was asked and told, and what the registry did at which instant, must have an order that the
//! specification of one tag allows (`spec.rs`, `check.rs`): it is linearizable.
//!
//! Each test is a kind of world; what is left open is drawn from a seed. Only events after which the
//! promise is made belong to a kind:
//! - with the embedded ledger and with one Redis that stays, proxies are killed and upgraded;
//! - rules change where the ledger is well, because a mutable push goes on without it and leaves the binding;
//! - with `replicas = 1` the replica is promoted also when it had not heard of the master for a while:
//!   what was acknowledged waited for it;
//! - with one Redis that loses everything, proxies are not killed, because their memory and the
//!   registry's own tags are what brings bindings back. A binding that the registry does not show may
//!   be lost then, and an answer that came while everything was lost promises nothing. A name that was freed
//!   before stays free ("Losses" in decision 0010).
//!
//! No promise is made by a pull whose answer has a `Warning` that the ledger was not asked.
//!
//! `TAGLOCK_SEED` replays a world, though not the order in which threads meet it.
//! `TAGLOCK_HISTORY_SECONDS` makes each test go on for so long, with another seed for each world.

mod check;
mod clients;
mod events;
mod marks;
mod record;
mod registry;
mod right_and_wrong;
mod spec;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::harness::*;
use check::{NEVER, STEPS, Time, Verdict, check};
use clients::{Addresses, Clients, REPOSITORY};
use events::{Events, Happening};
use marks::pushed_under_a_mark;
use record::{Asked, Phase, Record, Seen, Told, story};
use registry::{Clock, Moods, SlowRegistry};
use spec::{Deletes, Image, Rule};
use world::{Proxy, Servers, Settings, Store};

/// What the worlds of one test have in common.
struct Worlds {
    name: &'static str,
    store: Store,
    proxies: std::ops::RangeInclusive<usize>,
    deletes: &'static [Deletes],
    happenings: &'static [Happening],
    seconds: u64,
}

/// The seed of a run without `TAGLOCK_SEED`; `scripts/chaos` draws one.
const SEED: u64 = 20;
const CLIENTS: usize = 8;
const TAGS: [&str; 2] = ["v1", "v2"];
const IMAGES: u8 = 3;

#[test]
fn names_are_freed_on_the_embedded_ledger() {
    run(&Worlds {
        name: "freed-embedded",
        store: Store::Embedded,
        proxies: 1..=1,
        deletes: &[Deletes::Release],
        happenings: &[Happening::Kill, Happening::Upgrade],
        seconds: 11,
    });
}

#[test]
fn names_are_withdrawn_and_released_on_redis() {
    run(&Worlds {
        name: "withdrawn-redis",
        store: Store::Redis,
        proxies: 2..=3,
        deletes: &[Deletes::Keep],
        happenings: &[Happening::Kill, Happening::Upgrade],
        seconds: 11,
    });
}

#[test]
fn rules_change_on_the_embedded_ledger() {
    run(&Worlds {
        name: "rules-embedded",
        store: Store::Embedded,
        proxies: 1..=1,
        deletes: &[Deletes::Refuse, Deletes::Keep, Deletes::Release],
        happenings: &[Happening::Reload, Happening::Reload, Happening::Upgrade, Happening::Kill],
        seconds: 11,
    });
}

#[test]
fn rules_change_in_a_fleet_on_redis() {
    run(&Worlds {
        name: "rules-fleet",
        store: Store::Redis,
        proxies: 2..=3,
        deletes: &[Deletes::Refuse, Deletes::Release],
        happenings: &[Happening::Reload, Happening::Reload, Happening::Upgrade],
        seconds: 11,
    });
}

#[test]
fn a_fleet_on_a_redis_with_a_replica_fails_over() {
    run(&Worlds {
        name: "failover",
        store: Store::Replicated,
        proxies: 2..=3,
        deletes: &[Deletes::Release, Deletes::Keep],
        happenings: &[
            Happening::Failover,
            Happening::CutLink,
            Happening::LostAnswer,
            Happening::Kill,
        ],
        seconds: 11,
    });
}

#[test]
fn a_fleet_on_one_redis_loses_everything() {
    run(&Worlds {
        name: "loss",
        store: Store::Redis,
        proxies: 2..=3,
        deletes: &[Deletes::Release],
        happenings: &[Happening::Loss, Happening::CutLink],
        seconds: 14,
    });
}

fn run(worlds: &Worlds) {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = given("TAGLOCK_SEED").unwrap_or(SEED);
    let seconds = given("TAGLOCK_HISTORY_SECONDS").unwrap_or(worlds.seconds);
    let start = Instant::now();
    for round in 0.. {
        // Its own seed is the one that a failure names.
        history(worlds, seed.wrapping_add(round));
        if start.elapsed() + Duration::from_secs(worlds.seconds) > Duration::from_secs(seconds) {
            return;
        }
    }
}

/// Tells of a run that went wrong, wherever it did.
struct Report<'a> {
    worlds: &'a Worlds,
    seed: u64,
    settings: Settings,
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}: TAGLOCK_SEED={} {:?}", self.worlds.name, self.seed, self.settings);
        }
    }
}

/// One world, from its start to the judgement.
fn history(worlds: &Worlds, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let deletes = worlds.deletes[rng.usize(0..worlds.deletes.len())];
    let fleet = rng.usize(worlds.proxies.clone());
    // And how long another proxy may go by memory then, in microseconds.
    let (cache_ttl, staleness) = [("1ms", 50_000), ("1s", 2_500_000)][rng.usize(0..2)];
    let settings = Settings { store: worlds.store, deletes, cache_ttl };
    let _report = Report { worlds, seed, settings };
    let moods = Moods { slow: 40, unclear: 3, refuses: 3, deletes_tags: rng.bool() };
    let manifests: Vec<_> = (0..IMAGES).map(|n| manifest(&format!("{seed}-{n}"))).collect();
    let clock = Clock::start();
    let registry = SlowRegistry::start(clock, REPOSITORY, moods, rng.u64(..));
    // One tag was there before taglock.
    registry.place(TAGS[0], &manifests[0]);
    let servers = Servers::start(worlds.store);
    let proxies = (0..fleet).map(|_| Proxy::start(&registry, &servers, settings)).collect();
    let rule = Rule::Immutable(deletes);
    let record = Record {
        clock,
        tags: TAGS.map(str::to_owned).to_vec(),
        images: manifests.iter().map(|manifest| digest(manifest)).collect(),
        requests: Mutex::default(),
        events: Mutex::default(),
        phases: Mutex::new(vec![vec![Phase { rule, from: 0, until: NEVER }]; fleet]),
        // One process knows at once what it has freed.
        staleness: if fleet > 1 { staleness } else { 0 },
    };
    let (lost, done) = (None, BTreeMap::new());
    let mut events = Events { record: &record, proxies, servers, rng, deletes, rule, lost, done };
    play(worlds, &record, &registry, &mut events, manifests);
    judge(worlds, &record, &registry, &events);
}

/// Lets clients go on while events happen; then all faults end, and each tag is asked for once more.
fn play(
    worlds: &Worlds,
    record: &Record,
    registry: &SlowRegistry,
    events: &mut Events<'_>,
    manifests: Vec<Vec<u8>>,
) {
    let address = |proxy: &Proxy| Addresses {
        clients: proxy.taglock.address.clone(),
        admin: proxy.taglock.admin.clone(),
    };
    let proxies = events.proxies.iter().map(address).collect();
    let clients = Clients { record, registry, proxies, manifests };
    registry.calm(false);
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = EndAtLast(&end);
        for _ in 0..CLIENTS {
            let (rng, clients, end) = (events.rng.fork(), &clients, &end);
            scope.spawn(move || clients.run(rng, end));
        }
        let deletes = events.deletes;
        let enough = || missing(&counted(record), deletes).is_none();
        events.play(worlds.happenings, Duration::from_secs(worlds.seconds), enough);
    });
    registry.calm(true);
    events.calm();
    registry.wait_for_the_late();
    last_words(&clients, &mut events.rng);
}

struct EndAtLast<'a>(&'a AtomicBool);

impl Drop for EndAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each proxy is asked once more for each tag, and each image is pushed once more.
fn last_words(clients: &Clients<'_>, rng: &mut Rng) {
    for tag in 0..TAGS.len() {
        for _ in 0..2 {
            for proxy in 0..clients.proxies.len() {
                clients.pull(proxy, tag, "GET");
            }
            for image in 0..IMAGES {
                clients.push(rng.usize(0..clients.proxies.len()), tag, Image(image));
            }
        }
    }
}

fn judge(worlds: &Worlds, record: &Record, registry: &SlowRegistry, events: &Events<'_>) {
    let seen = record.seen(&registry.noted());
    let mut wrong = Vec::new();
    for request in record.requests.lock().unwrap().iter() {
        if let Told::Wrong(text) = &request.told {
            wrong.push(format!("{text}: {request:?}"));
        }
    }
    for push in pushed_under_a_mark(record, &seen) {
        let tag = push.tag.unwrap();
        wrong.push(format!(
            "{}: this push was acknowledged while the registry was asked to delete its image, which it did \
             afterwards: {}\n{}",
            TAGS[tag],
            story(&push),
            around(record, &seen, tag, (push.invoked, push.ended))
        ));
    }
    let mut sizes = Vec::new();
    for (tag, name) in TAGS.iter().enumerate() {
        let operations = record.operations(&seen, tag);
        let unknown = operations.iter().filter(|operation| operation.optional).count();
        sizes.push(format!("{name}: {} operations, {unknown} optional", operations.len()));
        match check(&operations, record.start(&seen, tag), STEPS) {
            Verdict::Allowed => {}
            Verdict::TooHard => wrong.push(format!("{name}: the search was given up: {sizes:?}")),
            Verdict::Wrong { explained, state, at } => wrong.push(format!(
                "{name}: with this the history has no order that is allowed: {}\n\
                 ({explained} of {} operations have one, which leaves the tag as {state:?})\n{}",
                operations[at].told,
                operations.len() - unknown,
                around(record, &seen, tag, operations[at].seen)
            )),
        }
    }
    let counts = counted(record);
    let name = worlds.name;
    assert!(
        wrong.is_empty(),
        "{name}: {} violations: {}\n{counts:?}",
        wrong.len(),
        wrong.join("\n\n")
    );
    eprintln!("{name}: {counts:?}\n  {:?}\n  {sizes:?}", events.done);
    not_vacuous(worlds, &counts, events);
}

/// Of a history in which too little happened nothing follows.
fn not_vacuous(worlds: &Worlds, counts: &BTreeMap<&str, u64>, events: &Events<'_>) {
    let missing = missing(counts, events.deletes);
    assert_eq!(missing, None, "{counts:?}");
    for happening in worlds.happenings {
        assert!(events.done.contains_key(happening), "no {happening:?}: {:?}", events.done);
    }
}

/// What clients have not seen yet.
fn missing(counts: &BTreeMap<&str, u64>, deletes: Deletes) -> Option<&'static str> {
    let seldom = |what| deletes == Deletes::Refuse && what == "deletes done";
    ["pushes done", "pushes refused", "pulls served", "deletes done", "releases done"]
        .into_iter()
        .find(|what| !seldom(*what) && !counts.contains_key(what))
}

fn counted(record: &Record) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for request in record.requests.lock().unwrap().iter() {
        let label = match (request.asked, &request.told) {
            (Asked::Push(_), Told::Done) => "pushes done",
            (Asked::Push(_), Told::Bound(_) | Told::BoundToAnother) => "pushes refused",
            (Asked::Push(_), _) => "pushes without a verdict",
            (Asked::Pull, Told::Found(_)) => "pulls served",
            (Asked::Pull, Told::NotFound) => "pulls of nothing",
            (Asked::Pull, Told::Warned) => "pulls with a warning",
            (Asked::Pull, _) => "pulls without an answer",
            (Asked::Delete(_) | Asked::DeleteTag, Told::Done) => "deletes done",
            (Asked::Delete(_) | Asked::DeleteTag, Told::Unclear(_)) => "deletes unclear",
            (Asked::Delete(_) | Asked::DeleteTag, _) => "deletes refused",
            (Asked::Release(_), Told::Done) => "releases done",
            (Asked::Release(_), _) => "releases refused",
        };
        *counts.entry(label).or_default() += 1;
    }
    counts
}

/// How many lines before and after the operation that can't be are told.
const BEFORE: usize = 30;
const AFTER: usize = 6;

/// What happened to the tag around the one with these times, in the order of the ends. Times are
/// milliseconds; `i` and `m` are the rules by which a request was let through.
fn around(record: &Record, seen: &Seen, tag: usize, this: (Time, Time)) -> String {
    let requests = record.requests.lock().unwrap();
    let ours = requests.iter().filter(|request| request.tag.is_none_or(|of| of == tag));
    let told = |r| format!("{} {}", record.rules_told(r), story(r));
    let mut lines: Vec<_> = ours.map(|r| (r.ended, r.invoked, told(r))).collect();
    for (at, image) in &seen.shown[tag] {
        let told = image.map_or("nothing".to_owned(), |image| image.to_string());
        lines.push((*at, *at, format!("   registry         the tag shows {told}")));
    }
    for (at, image, _) in &seen.deleted {
        lines.push((*at, *at, format!("   registry         the image {image} is deleted")));
    }
    for event in record.events.lock().unwrap().iter() {
        lines.push((event.ended, event.invoked, format!("   test             {}", event.told)));
    }
    lines.sort();
    let is_this = |(ended, invoked, _): &(Time, Time, String)| (*invoked, *ended) == this;
    let at = lines.iter().position(is_this).unwrap_or_default();
    let (from, to) = (at.saturating_sub(BEFORE), (at + AFTER).min(lines.len()));
    let line = |line: &(Time, Time, String)| {
        let mark = if is_this(line) { ">>" } else { "  " };
        format!("{mark}{:>10.1} {:>10.1}  {}\n", ms(line.1), ms(line.0), line.2)
    };
    // And what was under way beside it and ended later.
    let beside = lines[to..].iter().filter(|(_, invoked, _)| *invoked <= this.1);
    lines[from..to].iter().chain(beside).map(line).collect()
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn ms(time: u64) -> f64 {
    time as f64 / 1000.0
}
