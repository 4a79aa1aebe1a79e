//! Reaching a Redis: what must hold before it may keep a ledger, and its first start.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dashmap::{DashMap, DashSet};
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Commands, ConnectionInfo, IntoConnectionInfo, RedisError,
    RedisResult, TlsCertificates, cmd,
};
use tokio::sync::OnceCell;

use super::{META, Redis, SCRIPT};
use crate::ledger::{Identity, Timestamp};

const FORMAT: u32 = 1;
/// A Redis on the same network answers in less than a millisecond.
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(1);

/// Where the Redis is, and how sure a claim must be.
#[derive(Clone)]
pub struct Config {
    /// `redis://` or `rediss://`, credentials within. Never shown.
    pub info: ConnectionInfo,
    /// Authorities for `rediss://`, PEM, instead of the system's.
    pub authorities: Option<Vec<u8>>,
    /// For messages: the address alone.
    pub shown: String,
    /// Replicas that must have a claim before it is granted.
    pub replicas: u32,
    /// The only ledger that may be found there.
    pub id: Option<String>,
}

impl Config {
    /// From a URL, and credentials that stand apart from it.
    ///
    /// # Errors
    /// When the URL is none of a Redis.
    pub fn new(
        url: &str,
        username: Option<&str>,
        password: Option<&str>,
        shown: String,
    ) -> RedisResult<Self> {
        let info = url.into_connection_info()?;
        let mut settings = info.redis_settings().clone();
        if let Some(username) = username {
            settings = settings.set_username(username);
        }
        if let Some(password) = password {
            settings = settings.set_password(password);
        }
        let info = info.set_redis_settings(settings);
        Ok(Self { info, authorities: None, shown, replicas: 0, id: None })
    }
}

/// Why the ledger in Redis can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the Redis at {shown} can't be reached: {source}")]
    Unreachable { shown: String, source: RedisError },
    #[error("the Redis at {shown} is a replica; a ledger is written to its master")]
    Replica { shown: String },
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
         point `ledger.url` to the right one"
    )]
    Another { shown: String, found: String, expected: String },
    #[error(
        "the Redis at {shown} holds no ledger, and `ledger.id` names `{expected}`: was it emptied? \
         Restore it, or leave `ledger.id` out once to begin an empty ledger"
    )]
    Empty { shown: String, expected: String },
    #[error(
        "the ledger at {shown} has format {found}, and this taglock knows formats up to {FORMAT}"
    )]
    TooNew { shown: String, found: u32 },
}

impl Redis {
    /// Checks the Redis and begins a ledger in an empty one. Blocks for as long as that takes, two
    /// seconds at most a step; connections for serving are made later, inside the runtime that
    /// serves.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let shown = || config.shown.clone();
        let unreachable = |source| OpenError::Unreachable { shown: config.shown.clone(), source };
        let client = match &config.authorities {
            None => Client::open(config.info.clone()),
            Some(pem) => {
                let root_cert = Some(pem.clone());
                let certificates = TlsCertificates { client_tls: None, root_cert };
                Client::build_with_tls(config.info.clone(), certificates)
            }
        };
        let client = client.map_err(unreachable)?;
        let mut connection = client.get_connection_with_timeout(CONNECT).map_err(unreachable)?;
        connection.set_read_timeout(Some(ANSWER)).map_err(unreachable)?;
        connection.set_write_timeout(Some(ANSWER)).map_err(unreachable)?;

        let info = |connection: &mut redis::Connection, section: &str| -> RedisResult<String> {
            cmd("INFO").arg(section).query(connection)
        };
        let replication = info(&mut connection, "replication").map_err(unreachable)?;
        if field(&replication, "role") != Some("master") {
            return Err(OpenError::Replica { shown: shown() });
        }
        let found =
            field(&replication, "connected_slaves").and_then(|n| n.parse().ok()).unwrap_or(0);
        if found < config.replicas {
            let wanted = config.replicas;
            return Err(OpenError::TooFewReplicas { shown: shown(), found, wanted });
        }
        let memory = info(&mut connection, "memory").map_err(unreachable)?;
        if let Some(policy) = field(&memory, "maxmemory_policy").filter(|p| *p != "noeviction") {
            return Err(OpenError::Evicts { shown: shown(), policy: policy.to_owned() });
        }
        let persistence = info(&mut connection, "persistence").map_err(unreachable)?;
        if field(&persistence, "aof_enabled") == Some("0") {
            tracing::warn!(
                redis = %config.shown,
                "this Redis keeps no append-only file: a restart may lose the latest bindings"
            );
        }
        let identity = identify(&mut connection, config)?;
        Ok(Self {
            identity,
            client,
            shared: OnceCell::new(),
            script: redis::Script::new(SCRIPT),
            replicas: config.replicas,
            waiting: Mutex::default(),
            seen: DashMap::new(),
            named: DashSet::new(),
            closed: AtomicBool::new(false),
        })
    }
}

/// Who the ledger there is; an empty Redis becomes one, unless another is expected.
fn identify(connection: &mut redis::Connection, config: &Config) -> Result<Identity, OpenError> {
    let shown = || config.shown.clone();
    let unreachable = |source| OpenError::Unreachable { shown: config.shown.clone(), source };
    let found: Option<String> = connection.hget(META, "id").map_err(unreachable)?;
    let id = match (found, &config.id) {
        (Some(found), Some(expected)) if found != *expected => {
            return Err(OpenError::Another { shown: shown(), found, expected: expected.clone() });
        }
        (None, Some(expected)) => {
            return Err(OpenError::Empty { shown: shown(), expected: expected.clone() });
        }
        (Some(found), _) => found,
        (None, None) => {
            let id = uuid::Uuid::new_v4().to_string();
            // Proxies of a fleet may start at once: the first one's id stands for all.
            let ours: bool = connection.hset_nx(META, "id", &id).map_err(unreachable)?;
            let created = Timestamp::now().seconds();
            connection.hset_nx::<_, _, _, ()>(META, "created", created).map_err(unreachable)?;
            connection.hset_nx::<_, _, _, ()>(META, "format", FORMAT).map_err(unreachable)?;
            if ours {
                tracing::warn!(redis = %config.shown, id, "an empty Redis: a new ledger begins");
            }
            connection.hget(META, "id").map_err(unreachable)?
        }
    };
    let format: Option<u32> = connection.hget(META, "format").map_err(unreachable)?;
    let format = format.unwrap_or(FORMAT);
    if format > FORMAT {
        return Err(OpenError::TooNew { shown: shown(), found: format });
    }
    let created: Option<u64> = connection.hget(META, "created").map_err(unreachable)?;
    let created = Timestamp::from_seconds(created.unwrap_or(0));
    Ok(Identity { id, created, format })
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The connection that most calls share; it comes back by itself after a failure.
pub(super) async fn manager(client: &Client) -> RedisResult<ConnectionManager> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(ANSWER))
        // The caller has patience and a deadline of its own.
        .set_number_of_retries(1);
    ConnectionManager::new_with_config(client.clone(), config).await
}

/// A connection for one claim at a time.
pub(super) async fn connection(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        // `WAIT` takes up to a second of its own.
        .set_response_timeout(Some(ANSWER * 2));
    client.get_multiplexed_async_connection_with_config(&config).await
}
