//! What is done to the processes, and when: drawn from the seed, all of it beforehand.

use std::fmt;

use fastrand::Rng;

use super::crash;

/// Times are milliseconds from the start.
#[derive(Clone, Debug)]
pub struct Blow {
    pub at: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// SIGSTOP for longer than every time-out of taglock.
    FreezeTaglock {
        node: usize,
        time: u64,
    },
    KillTaglock {
        node: usize,
        down: u64,
    },
    /// Started anew so that it dies in the middle of a push.
    CrashTaglock {
        node: usize,
        at: String,
    },
    KillRegistry {
        down: u64,
    },
    FreezeRegistry {
        time: u64,
    },
    Redis(RedisWhat),
}

#[derive(Clone, Debug)]
pub enum RedisWhat {
    /// kill -9 of the master; its replica is promoted, and gets a replica of its own.
    FailOver,
    /// The replica is promoted while the master is frozen; it comes back and goes on for a while.
    Zombie {
        time: u64,
    },
    Freeze {
        master: bool,
        time: u64,
    },
    Restart {
        down: u64,
    },
}

impl What {
    pub fn name(&self) -> &'static str {
        match self {
            Self::FreezeTaglock { .. } => "freeze-taglock",
            Self::KillTaglock { .. } => "kill-taglock",
            Self::CrashTaglock { .. } => "crash-taglock",
            Self::KillRegistry { .. } => "kill-registry",
            Self::FreezeRegistry { .. } => "freeze-registry",
            Self::Redis(RedisWhat::FailOver) => "fail-over",
            Self::Redis(RedisWhat::Zombie { .. }) => "zombie",
            Self::Redis(RedisWhat::Freeze { .. }) => "freeze-redis",
            Self::Redis(RedisWhat::Restart { .. }) => "restart-redis",
        }
    }

    fn drawn(rng: &mut Rng, nodes: usize, redis: bool) -> Self {
        let node = rng.usize(0..nodes);
        match rng.u32(0..if redis { 100 } else { 60 }) {
            0..=11 => Self::FreezeTaglock { node, time: rng.u64(2500..5000) },
            12..=22 => Self::KillTaglock { node, down: rng.u64(0..1000) },
            23..=44 => {
                let points = crash::names();
                match points.get(rng.usize(0..points.len().max(1))) {
                    Some(point) => {
                        Self::CrashTaglock { node, at: format!("{point}:{}", rng.u32(1..4)) }
                    }
                    None => Self::KillTaglock { node, down: 0 },
                }
            }
            45..=53 => Self::KillRegistry { down: rng.u64(0..1500) },
            54..=59 => Self::FreezeRegistry { time: rng.u64(500..2500) },
            60..=72 => Self::Redis(RedisWhat::FailOver),
            73..=81 => Self::Redis(RedisWhat::Zombie { time: rng.u64(500..3000) }),
            82..=93 => {
                Self::Redis(RedisWhat::Freeze { master: rng.bool(), time: rng.u64(500..3500) })
            }
            _ => Self::Redis(RedisWhat::Restart { down: rng.u64(0..1000) }),
        }
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} ms  {:?}", self.at, self.what)
    }
}

pub fn drawn(rng: &mut Rng, length: u64, nodes: usize, redis: bool) -> Vec<Blow> {
    let mut blows = Vec::new();
    let mut at = 1000;
    while at < length {
        blows.push(Blow { at, what: What::drawn(rng, nodes, redis) });
        // One alone gets more time between two blows: it is down all the while.
        at += rng.u64(600..2200) * if nodes == 1 { 2 } else { 1 };
    }
    blows
}
