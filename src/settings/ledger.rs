//! The table `[ledger]`: which store, and where it is.

use std::path::{Path, PathBuf};

use super::toml_reader::Table;
use super::{
    Authorities, KeyPair, Ledger, OnOutage, Redis, Secret, Server, Servers, Store, values,
};
use crate::ledger::cached::Remembering;

pub(super) fn ledger(table: Option<Table<'_>>) -> Option<Ledger> {
    let default = "taglock-data".into();
    let Some(mut table) = table else {
        let store = Store::Embedded { path: default };
        let remembering = Remembering::default();
        return Some(Ledger { store, id: None, on_outage: OnOutage::Serve, remembering });
    };
    let stores = [("embedded", false), ("redis", true)];
    let shared = table.text("store", |t| values::word(t, &stores)).unwrap_or(false);
    let path = table.text("path", values::path);
    let redis = redis(&mut table, shared);
    let id = table.text("id", values::ledger_id);
    let outage = [("serve", OnOutage::Serve), ("strict", OnOutage::Strict)];
    let on_outage = table.text("on_ledger_outage", |t| values::word(t, &outage));
    let defaults = Remembering::default();
    let remembering = Remembering {
        ttl: table.text("cache_ttl", values::duration).unwrap_or(defaults.ttl),
        bytes: table
            .text("cache_size", |t| values::size(t, 64 << 10..=64 << 30))
            .map_or(defaults.bytes, |bytes| bytes as u64),
    };
    table.finish();
    let store = if shared {
        Store::Redis(Box::new(redis?))
    } else {
        Store::Embedded { path: path.unwrap_or(default) }
    };
    Some(Ledger { store, id, on_outage: on_outage.unwrap_or(OnOutage::Serve), remembering })
}

/// The keys of the store `redis`; `None` where it is not the store, or can't be reached by them.
fn redis(table: &mut Table<'_>, wanted: bool) -> Option<Redis> {
    let found = servers(table, wanted);
    let plain = found.as_ref().is_some_and(|found| !found.tls);
    for key in ["ca_file", "client_certificate", "client_key"] {
        if plain && table.has(key) {
            table.problem(key, "the Redis is spoken to without TLS", "use `rediss://`");
        }
    }
    let username = table.secret("username_file", secret);
    let password = table.secret("password_file", secret);
    let ca_file = table.text("ca_file", |text| match plain {
        false => Authorities::load(Path::new(text)).map(|authorities| authorities.file),
        true => Ok(PathBuf::new()),
    });
    let client = client(table, plain);
    let replicas = table.number("replicas", 0..=16).map_or(0, |n| n as u32);
    let Found { servers, shown, tls } = found?;
    let redis = Redis { servers, shown, username, password, tls, ca_file, client, replicas };
    wanted.then_some(redis)
}

fn secret(content: String) -> Result<Secret, String> {
    Ok(Secret::new(content))
}

/// The certificate that is shown to the servers, and its key.
fn client(table: &mut Table<'_>, plain: bool) -> Option<(PathBuf, PathBuf)> {
    let pair = (table.text("client_certificate", values::path), table.secret_path("client_key"));
    match pair {
        _ if plain => None,
        (Some(certificate), Some(key)) => match KeyPair::load(&certificate, &key) {
            Ok(_) => Some((certificate, key)),
            Err(message) => {
                table.problem("", message, "both are PEM files");
                None
            }
        },
        (None, None) => None,
        (found, _) => {
            let missing = if found.is_some() { "client_key" } else { "client_certificate" };
            table.problem(missing, "this key is missing", "a certificate and its key go together");
            None
        }
    }
}

struct Found {
    servers: Servers,
    shown: String,
    tls: bool,
}

/// Where the servers are: in one of `url`, `sentinels` and `cluster`.
fn servers(table: &mut Table<'_>, wanted: bool) -> Option<Found> {
    let named: Vec<_> =
        ["url", "sentinels", "cluster"].into_iter().filter(|key| table.has(key)).collect();
    match named.as_slice() {
        [] if wanted => table.problem(
            "url",
            "this key is missing",
            "such as `url = \"redis://127.0.0.1:6379/0\"`; or `sentinels`, or `cluster`",
        ),
        [one, other, ..] => {
            let message = format!("`{one}` says already where the ledger is");
            table.problem(other, message, "one of `url`, `sentinels` and `cluster`");
        }
        _ => {}
    }
    let through_sentinels = named == ["sentinels"];
    for key in ["sentinel_master", "sentinel_username_file", "sentinel_password_file"] {
        if table.has(key) && !through_sentinels {
            table.problem(key, "there are no sentinels", "`sentinels` lists them");
        }
    }
    if table.has("database") && !through_sentinels {
        let hint = "it stands in the URL of a single Redis; a Cluster has none but 0";
        table.problem("database", "this key goes with `sentinels`", hint);
    }
    if through_sentinels && !table.has("sentinel_master") {
        let hint = "such as `sentinel_master = \"mymaster\"`";
        table.problem("sentinel_master", "this key is missing", hint);
    }
    table.password_in_file("url");
    let url = table
        .text("url", |text| values::redis_url(text).map(|shown| (Secret::new(text.into()), shown)));
    let sentinels = list(table, "sentinels", 26_379);
    let master = table.text("sentinel_master", |text| match text {
        "" => Err("the empty name"),
        name => Ok(name.to_owned()),
    });
    let username = table.secret("sentinel_username_file", secret);
    let password = table.secret("sentinel_password_file", secret);
    let database = table.number("database", 0..=u16::MAX.into()).map_or(0, |n| n as u16);
    let cluster = list(table, "cluster", 6379);
    match *named.as_slice() {
        ["url"] => {
            let (url, shown) = url?;
            let tls = shown.starts_with("rediss:");
            Some(Found { servers: Servers::One { url }, shown, tls })
        }
        ["sentinels"] => {
            let (sentinels, tls) = sentinels?;
            let master = master?;
            let shown = format!("`{master}` of the sentinels {}", shown(&sentinels));
            let servers = Servers::Sentinel { sentinels, master, username, password, database };
            Some(Found { servers, shown, tls })
        }
        ["cluster"] => {
            let (nodes, tls) = cluster?;
            let shown = format!("the Cluster of {}", shown(&nodes));
            Some(Found { servers: Servers::Cluster { nodes }, shown, tls })
        }
        _ => None,
    }
}

fn shown(servers: &[Server]) -> String {
    let servers = servers.iter().map(|Server { host, port }| format!("{host}:{port}"));
    servers.collect::<Vec<_>>().join(", ")
}

/// A list of servers that are all spoken to with TLS, or all without.
fn list(table: &mut Table<'_>, key: &'static str, port: u16) -> Option<(Vec<Server>, bool)> {
    let there = table.has(key);
    let servers = table.texts(key, |text| values::redis_server(text, port))?;
    let tls = servers.first().is_some_and(|(_, tls)| *tls);
    if there && servers.is_empty() {
        table.problem(key, "the list is empty", "one server at least, better three");
        return None;
    }
    if servers.iter().any(|(_, other)| *other != tls) {
        table.problem(key, "some with TLS and some without", "all `redis://`, or all `rediss://`");
        return None;
    }
    Some((servers.into_iter().map(|(server, _)| server).collect(), tls))
}
