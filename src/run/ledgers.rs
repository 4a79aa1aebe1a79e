//! From the settings to a store.

use std::path::PathBuf;
use std::sync::Arc;

use super::Failure;
use crate::ledger::Ledger;
use crate::ledger::embedded::{Embedded, Expected};
use crate::ledger::redis::{self, Address, Redis, Topology};
use crate::settings::{self, Secret, Server as RedisServer, Servers, Settings, Store};

/// The ledger to serve from.
pub(super) fn open(settings: &Settings) -> Result<Arc<dyn Ledger>, Failure> {
    let id = &settings.ledger.id;
    match &settings.ledger.store {
        Store::Embedded { path } => {
            let expected = id.clone().map_or(Expected::Any, Expected::Only);
            let ledger = Embedded::open_as(path, &expected).map_err(start)?;
            tracing::info!(folder = %path.display(), id = ledger.id(), "the ledger is open");
            Ok(Arc::new(ledger))
        }
        Store::Redis(redis) => {
            let ledger = Redis::open(&redis_config(redis, id)?).map_err(start)?;
            tracing::info!(redis = %redis.shown, id = ledger.id(), "the ledger is there");
            Ok(Arc::new(ledger))
        }
    }
}

/// The ledger of a taglock that does not run; `begin` where one may begin that is not there.
pub(super) fn open_stopped(settings: &Settings, begin: bool) -> Result<Arc<dyn Ledger>, Failure> {
    if begin {
        return open(settings);
    }
    let id = &settings.ledger.id;
    match &settings.ledger.store {
        Store::Embedded { path } => {
            let expected = id.clone().map_or(Expected::Existing, Expected::Only);
            Ok(Arc::new(Embedded::open_as(path, &expected).map_err(start)?))
        }
        Store::Redis(redis) => {
            Ok(Arc::new(Redis::existing(&redis_config(redis, id)?).map_err(start)?))
        }
    }
}

/// Where it is, for people.
pub(super) fn place(settings: &Settings) -> String {
    match &settings.ledger.store {
        Store::Embedded { path } => path.display().to_string(),
        Store::Redis(redis) => redis.shown.clone(),
    }
}

/// Begins a ledger where there is none, and says which one is there then, and where.
pub(super) fn init(settings: &Settings) -> Result<(String, String), Failure> {
    let id = &settings.ledger.id;
    let id = match &settings.ledger.store {
        Store::Embedded { path } => {
            let ledger = Embedded::open_as(path, &Expected::New(id.clone())).map_err(start)?;
            ledger.id().to_owned()
        }
        Store::Redis(redis) => {
            Redis::init(&redis_config(redis, id)?).map_err(start)?.id().to_owned()
        }
    };
    Ok((id, place(settings)))
}

fn start(error: impl std::fmt::Display) -> Failure {
    Failure::Start(error.to_string())
}

fn redis_config(settings: &settings::Redis, id: &Option<String>) -> Result<redis::Config, Failure> {
    let settings::Redis { servers, shown, username, password, tls, ca_file, client, replicas } =
        settings;
    // They were read once when the settings were checked.
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .map_err(|e| Failure::Start(format!("`{}` can't be read: {e}", path.display())))
    };
    let client = match client {
        Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
        None => None,
    };
    let tls_parts = redis::Tls { authorities: ca_file.as_ref().map(read).transpose()?, client };
    let exposed = |secret: &Option<Secret>| secret.as_ref().map(|s| s.expose().to_owned());
    let access = |username, password| {
        let access = redis::Access::new(tls.then(|| tls_parts.clone()));
        access.with_login(exposed(username).as_deref(), exposed(password).as_deref())
    };
    let addresses = |servers: &[RedisServer]| {
        let address =
            |server: &RedisServer| Address { host: server.host.clone(), port: server.port };
        servers.iter().map(address).collect()
    };
    let (topology, access) = match servers {
        Servers::One { url } => {
            let (address, access) = redis::Access::of_url(url.expose(), tls_parts)
                // The parser's own words could hold a part of the URL.
                .map_err(|_| {
                    Failure::Start(format!("`ledger.url` at {shown} can't be understood"))
                })?;
            let access =
                access.with_login(exposed(username).as_deref(), exposed(password).as_deref());
            (Topology::Fixed(address), access)
        }
        Servers::Sentinel { sentinels, master, username: user, password: pass, database } => {
            let topology = Topology::Sentinel {
                sentinels: addresses(sentinels),
                access: access(user, pass),
                master: master.clone(),
            };
            (topology, access(username, password).with_database(*database))
        }
        Servers::Cluster { nodes } => {
            (Topology::Cluster(addresses(nodes)), access(username, password))
        }
    };
    let shown = shown.clone();
    Ok(redis::Config { topology, access, shown, replicas: *replicas, id: id.clone() })
}
