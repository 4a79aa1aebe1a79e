//! Reaching a Redis: what must hold before it may keep a ledger, and its first start.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use redis::{Client, Cmd, FromRedisValue, RedisResult, cmd};

use super::connect::{ANSWER, Access, Address, Tls, connect};
use super::fleet::Whole;
use super::routing::Reach;
use super::{META, Redis, SCRIPT, Topology};
use crate::ledger::rollback::Losses;
use crate::ledger::{Identity, Timestamp};

const FORMAT: u32 = 2;

/// Where the ledger is, and how sure a binding must be.
#[derive(Clone)]
pub struct Config {
    pub topology: Topology,
    pub access: Access,
    /// For messages: the addresses alone.
    pub shown: String,
    /// Replicas that must have a binding before it is granted.
    pub replicas: u32,
    /// The only ledger that may be found there.
    pub id: Option<String>,
}

impl Config {
    /// One Redis, at a URL that may hold credentials.
    ///
    /// # Errors
    /// When the URL is none of a Redis.
    pub fn at(url: &str, tls: Tls, shown: String) -> RedisResult<Self> {
        let (address, access) = Access::of_url(url, tls)?;
        Ok(Self { topology: Topology::Fixed(address), access, shown, replicas: 0, id: None })
    }

    fn unreachable(&self, reason: impl ToString) -> OpenError {
        OpenError::Unreachable { shown: self.shown.clone(), reason: reason.to_string() }
    }
}

/// Why the ledger in Redis can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the Redis at {shown} can't be reached: {reason}")]
    Unreachable { shown: String, reason: String },
    #[error("the Redis at {shown} is a replica; a ledger is written to its master")]
    Replica { shown: String },
    #[error(
        "the Redis at {shown} is part of a Cluster: name some of its nodes in `ledger.cluster`, \
         in place of `ledger.url`"
    )]
    Clustered { shown: String },
    #[error(
        "the Redis at {shown} may evict keys (`maxmemory-policy` is `{policy}`), and so forget what \
         tags are bound to; set it to `noeviction`"
    )]
    Evicts { shown: String, policy: String },
    #[error(
        "the Redis at {shown} has {found} replicas connected, and `ledger.replicas` asks for {wanted}"
    )]
    TooFewReplicas { shown: String, found: u32, wanted: u32 },
    #[error(
        "the Redis at {shown} holds the ledger `{found}`, and `ledger.id` names `{expected}`; \
         point the settings to the right one"
    )]
    Another { shown: String, found: String, expected: String },
    #[error(
        "the Redis at {shown} holds no ledger, and `ledger.id` names `{expected}`: was it emptied? \
         Restore it, or begin an empty one with this id: `taglock ledger init --config FILE`"
    )]
    Empty { shown: String, expected: String },
    #[error("the Redis at {shown} holds no ledger")]
    Missing { shown: String },
    #[error(
        "the ledger at {shown} has format {found}, and this taglock knows formats up to {FORMAT}"
    )]
    TooNew { shown: String, found: u32 },
}

impl Redis {
    /// Checks the Redis and begins a ledger in an empty one. Blocks for as long as that takes, a
    /// few seconds at most; connections for serving are made later, inside the runtime that
    /// serves.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        Self::start(config, Beginning::Unpinned)
    }

    /// As `open`, for a Redis that may have lost its ledger: an empty one becomes the ledger that
    /// `Config::id` names, or a new one.
    ///
    /// # Errors
    /// See [`OpenError`]; another ledger that is there stays as it is.
    pub fn init(config: &Config) -> Result<Self, OpenError> {
        Self::start(config, Beginning::Always)
    }

    /// As `open`, and a ledger must be there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn existing(config: &Config) -> Result<Self, OpenError> {
        Self::start(config, Beginning::Never)
    }

    fn start(config: &Config, beginning: Beginning) -> Result<Self, OpenError> {
        let reach = Arc::new(Reach::new(config.topology.clone(), config.access.clone()));
        // On a thread of its own, so that it may be called from wherever.
        let opened = std::thread::scope(|scope| {
            let check = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|e| config.unreachable(e))?;
                runtime.block_on(check(&reach, config, beginning))
            };
            scope.spawn(check).join()
        });
        let (identity, loss) = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        // What it connected belonged to that thread.
        reach.close();
        Ok(Self {
            losses: Losses::default(),
            pinned: config.id.is_some(),
            whole: Mutex::new(Whole { id: Some(identity.id.clone()), loss }),
            unpublished: Mutex::default(),
            counted: AtomicU64::new(0),
            confirmed: DashMap::new(),
            identity,
            reach,
            script: redis::Script::new(SCRIPT),
            replicas: config.replicas,
            seen: DashMap::new(),
            named: DashMap::new(),
            rest: super::listing::Rest::default(),
            closed: AtomicBool::new(false),
        })
    }
}

/// When an empty Redis becomes a ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Never,
    /// Where no other one is expected.
    Unpinned,
    /// When an operator says so.
    Always,
}

async fn check(
    reach: &Arc<Reach>,
    config: &Config,
    beginning: Beginning,
) -> Result<(Identity, String), OpenError> {
    let masters = reach.masters().await.map_err(|e| config.unreachable(e))?;
    for (address, client) in &masters {
        check_master(address, client, config).await?;
    }
    identify(reach, config, beginning).await
}

async fn check_master(
    address: &Address,
    client: &Client,
    config: &Config,
) -> Result<(), OpenError> {
    let shown = || address.to_string();
    let unreachable = |error| OpenError::Unreachable {
        shown: shown(),
        reason: redis::RedisError::to_string(&error),
    };
    let mut connection = connect(client, ANSWER).await.map_err(unreachable)?;
    let mut info = async |section: &str| -> Result<String, OpenError> {
        cmd("INFO").arg(section).query_async(&mut connection).await.map_err(unreachable)
    };
    let replication = info("replication").await?;
    if field(&replication, "role") != Some("master") {
        return Err(OpenError::Replica { shown: shown() });
    }
    let clustered = field(&info("cluster").await?, "cluster_enabled") == Some("1");
    if clustered && !matches!(config.topology, Topology::Cluster(_)) {
        return Err(OpenError::Clustered { shown: shown() });
    }
    let found = field(&replication, "connected_slaves").and_then(|n| n.parse().ok()).unwrap_or(0);
    if found < config.replicas {
        let wanted = config.replicas;
        return Err(OpenError::TooFewReplicas { shown: shown(), found, wanted });
    }
    let memory = info("memory").await?;
    if let Some(policy) = field(&memory, "maxmemory_policy").filter(|p| *p != "noeviction") {
        return Err(OpenError::Evicts { shown: shown(), policy: policy.to_owned() });
    }
    if field(&info("persistence").await?, "aof_enabled") == Some("0") {
        tracing::warn!(
            redis = %address,
            "this Redis keeps no append-only file: a restart may lose the latest bindings"
        );
    }
    Ok(())
}

/// Who the ledger there is, and the last loss of it that was published; an empty Redis becomes one,
/// unless another is expected.
async fn identify(
    reach: &Arc<Reach>,
    config: &Config,
    beginning: Beginning,
) -> Result<(Identity, String), OpenError> {
    let shown = || config.shown.clone();
    let of_meta = |name: &str| {
        let mut call = cmd(name);
        call.arg(META);
        call
    };
    let get =
        async |field: &str| ask::<Option<String>>(reach, config, of_meta("HGET").arg(field)).await;
    let begin = async |field: &str, value: &str| {
        ask::<bool>(reach, config, of_meta("HSETNX").arg(field).arg(value)).await
    };
    let id = match (get("id").await?, &config.id) {
        (Some(found), Some(expected)) if found != *expected => {
            return Err(OpenError::Another { shown: shown(), found, expected: expected.clone() });
        }
        (None, None) if beginning == Beginning::Never => {
            return Err(OpenError::Missing { shown: shown() });
        }
        (None, Some(expected)) if beginning != Beginning::Always => {
            return Err(OpenError::Empty { shown: shown(), expected: expected.clone() });
        }
        (Some(found), _) => found,
        (None, expected) => {
            let id = expected.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
            // Proxies of a fleet may start at once: the first one's id stands for all.
            let ours = begin("id", &id).await?;
            begin("created", &Timestamp::now().seconds().to_string()).await?;
            begin("format", &FORMAT.to_string()).await?;
            if ours {
                tracing::warn!(redis = %config.shown, id, "an empty Redis: a new ledger begins");
            }
            let missing = || config.unreachable("the ledger's id is gone again");
            get("id").await?.ok_or_else(missing)?
        }
    };
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let format = number(get("format").await?).map_or(1, |n| u32::try_from(n).unwrap_or(u32::MAX));
    if format > FORMAT {
        return Err(OpenError::TooNew { shown: shown(), found: format });
    }
    if format < FORMAT {
        // Format 2 has freed numbers and delete marks; there are none before.
        let mut raise = of_meta("HSET");
        raise.arg("format").arg(FORMAT);
        ask::<i64>(reach, config, &raise).await?;
    }
    let created = Timestamp::from_seconds(number(get("created").await?).unwrap_or(0));
    let loss = get("losses").await?.unwrap_or_default();
    Ok((Identity { id, created, format: FORMAT }, loss))
}

async fn ask<T: FromRedisValue>(
    reach: &Arc<Reach>,
    config: &Config,
    call: &Cmd,
) -> Result<T, OpenError> {
    reach.ask(META, call).await.map_err(|e| config.unreachable(e))
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
