//! What an operator has set, validated: each room gets its own small part.
//!
//! `file` turns a TOML document into these, or into a list of everything wrong with it.

mod check;
mod exposed;
mod file;
mod flags;
mod ledger;
mod paths;
mod pem;
mod problem;
mod rules;
mod secret;
mod toml_reader;
mod values;

pub use check::{describe, warnings};
pub use exposed::Exposed;
pub use file::{read, read_file};
pub use flags::{Flags, from_flags};
pub use paths::Kind;
pub use pem::{Authorities, KeyPair};
pub use problem::{Problem, Problems};
pub use secret::Secret;
pub use values::parse_origin;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::judge::Options;
use crate::ledger::cached::Remembering;
use crate::name::UpstreamName;
use crate::registry::manifest_cache::Bounds;
use crate::registry::media::MediaTypes;
use crate::route::Doors;
use crate::rules::Rules;
use crate::telemetry::{audit, traces};
use crate::transport::endpoint::{Origin, Timeouts};

/// Everything, as it will be applied.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Listen,
    pub upstream: Upstream,
    pub ledger: Ledger,
    pub drift: Drift,
    /// `None` where no admin listener is wanted.
    pub admin: Option<Admin>,
    pub limits: Limits,
    pub log: Log,
    pub audit: audit::Output,
    /// `None` where no traces are wanted.
    pub traces: Option<traces::Output>,
    pub rules: Arc<Rules>,
    /// How long requests under way may take to end after a stop.
    pub shutdown_timeout: Duration,
    /// How long they may take once a newer process has taken over.
    pub upgrade_timeout: Duration,
    /// Worker threads of the proxy.
    pub threads: usize,
    /// Files with secrets that too many users may read or change.
    pub exposed: Vec<Exposed>,
}

#[derive(Clone, Debug)]
pub struct Listen {
    pub addresses: Vec<SocketAddr>,
    /// Hosts that are answered, lower-case; empty for any.
    pub hosts: Vec<String>,
    /// The scheme and authority clients use, where a load balancer hides them.
    pub external: Option<Origin>,
    /// Whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    pub tls: Option<Arc<KeyPair>>,
}

/// Which `Host` the registry is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// The registry's own, from `upstream.url`.
    Upstream,
    /// The client's.
    Client,
}

#[derive(Clone, Debug)]
pub struct Upstream {
    pub name: UpstreamName,
    pub origin: Origin,
    pub host: HostPolicy,
    /// Instead of the system's roots.
    pub authorities: Option<Arc<Authorities>>,
    pub client: Option<Arc<KeyPair>>,
    pub timeouts: Timeouts,
    pub kind: Kind,
    /// The only `?ns=` that is taken in protected repositories; without one, none is.
    pub namespace: Option<String>,
    pub doors: Doors,
    pub redirect_hosts: Vec<String>,
    pub media: Arc<MediaTypes>,
    pub options: Options,
    /// Blobs and small reads take paths of their own.
    pub fast_path: bool,
    /// Taglock's own account there, `user:password`.
    pub account: Option<Secret>,
}

/// How the registry's own tags are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    pub watch: bool,
    /// At most one look at a tag in so long.
    pub interval: Duration,
    /// Whether a moved tag is put back.
    pub repair: bool,
}

impl Default for Drift {
    fn default() -> Self {
        Self { watch: true, interval: Duration::from_secs(60), repair: false }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    pub store: Store,
    /// The only ledger that may be found there.
    pub id: Option<String>,
    pub on_outage: OnOutage,
    pub remembering: Remembering,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    Embedded { path: PathBuf },
    Redis(Box<Redis>),
}

/// A Redis or Valkey that a fleet shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    pub servers: Servers,
    /// The addresses alone, for messages.
    pub shown: String,
    pub username: Option<Secret>,
    pub password: Option<Secret>,
    pub tls: bool,
    /// PEM, instead of the system's roots.
    pub ca_file: Option<PathBuf>,
    /// A certificate and its key that are shown to the servers, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Replicas that must have a binding before it is granted.
    pub replicas: u32,
}

/// How the servers stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One; the URL may hold credentials.
    One { url: Secret },
    /// One that the sentinels name.
    Sentinel {
        sentinels: Vec<Server>,
        master: String,
        username: Option<Secret>,
        password: Option<Secret>,
        database: u16,
    },
    /// A Cluster, known by some of its nodes.
    Cluster { nodes: Vec<Server> },
}

/// A host and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub host: String,
    pub port: u16,
}

/// What a pull of a protected tag gets that was never seen, while the ledger is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// The registry's answer, with a `Warning`.
    Serve,
    /// 503.
    Strict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: SocketAddr,
    /// Without one, only what needs none is served.
    pub token: Option<Secret>,
    /// Names it may be asked by, beside addresses and `localhost`.
    pub hosts: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest manifest in protected scope, in bytes.
    pub manifest: usize,
    /// The largest request header, in bytes.
    pub header: usize,
    pub caps: Caps,
    /// Pushes of one tag that may wait for another one to end.
    pub waiting: usize,
    /// How long a connection may take to the next whole header.
    pub header_time: Duration,
    /// How long the body of a manifest in protected scope may take.
    pub manifest_time: Duration,
    /// What a body that streams must bring a second, in the mean; 0 for nothing.
    pub body_rate: u64,
    pub shelf: Bounds,
}

/// How many clients and manifests there may be at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    pub connections: usize,
    pub manifests: usize,
    /// In bytes.
    pub manifest_memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // The spec asks for "at least 4 megabytes"; 64 KiB of header hold the longest tokens.
        Self {
            manifest: 4 << 20,
            header: 64 << 10,
            caps: Caps { connections: 10_000, manifests: 256, manifest_memory: 128 << 20 },
            waiting: 32,
            header_time: Duration::from_secs(60),
            manifest_time: Duration::from_secs(60),
            body_rate: 1024,
            shelf: Bounds::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter of `tracing`: a level, or levels by target.
    pub filter: String,
    pub format: LogFormat,
    /// One line for each request.
    pub access: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text, access: true }
    }
}

#[cfg(test)]
mod tests;
