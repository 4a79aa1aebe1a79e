//! The file: which keys there are, their defaults, and what goes with what.
//!
//! `config/taglock.toml` documents every key; a test keeps the two the same.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::paths::{self, KINDS, Kind};
use super::problem::{Problem, Problems};
use super::rules::{self, STYLES};
use super::toml_reader::{Environment, Reader, Table};
use super::{
    Admin, Authorities, Caps, Drift, HostPolicy, KeyPair, Limits, Listen, Log, LogFormat, Secret,
    Settings, Upstream, ledger, values,
};
use crate::judge::{Options, RollForward};
use crate::name::UpstreamName;
use crate::registry::manifest_cache::Bounds;
use crate::registry::media::MediaTypes;
use crate::rules::Rules;
use crate::telemetry::{audit, traces};
use crate::transport::endpoint::{Origin, Timeouts};

/// Reads the file at this path.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_file(path: &Path) -> Result<Settings, Problems> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| {
        let message = format!("the file can't be read: {e}");
        let hint = Some("`--config` names it; `config/taglock.toml` is an example".to_owned());
        Problems(vec![Problem { place: file.clone(), key: String::new(), message, hint }])
    })?;
    read(&file, &text, &|name| std::env::var(name).ok())
}

/// Reads a document.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(file: &str, text: &str, environment: Environment<'_>) -> Result<Settings, Problems> {
    let reader = Reader::new(file, text, environment);
    let settings = document(&reader, file);
    reader.finish()?;
    // Whatever could not be read has been reported, and the reader would have ended above.
    settings.ok_or_else(|| {
        let message = "the file can't be read".to_owned();
        Problems(vec![Problem { place: file.into(), key: String::new(), message, hint: None }])
    })
}

/// The keys the reader looks for in a document that has every table.
#[cfg(test)]
pub(super) fn known_keys(text: &str) -> std::collections::BTreeSet<String> {
    let reader = Reader::new("test", text, &|_| None);
    document(&reader, "test");
    reader.asked()
}

fn document(reader: &Reader<'_>, file: &str) -> Option<Settings> {
    let mut top = reader.document();
    let style = top.text("refusal", |t| values::word(t, &STYLES)).unwrap_or_default();
    let shutdown_timeout = top.text("shutdown_timeout", values::duration);
    let upgrade_timeout = top.text("upgrade_timeout", values::duration);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = top.number("threads", 1..=1024).map_or(cores, |n| n as usize);
    let listen = listen(top.table("listen"));
    let upstream = upstream(&mut top);
    let drift = drift(top.table("drift"), upstream.as_ref());
    let ledger = ledger::ledger(top.table("ledger"));
    let admin = top.table("admin").map(admin);
    let limits = limits(top.table("limits"));
    let log = log(top.table("log"));
    let audit = audit(top.table("audit"));
    let traces = top.table("traces").and_then(traces);
    let rules: Vec<_> =
        top.tables("rule").into_iter().map(|t| rules::rule(t, file, style)).collect();
    let mut names: Vec<_> = rules.iter().flatten().map(|rule| rule.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let message = format!("two rules are named `{}`", twice[0]);
        top.problem("rule", message, "logs and metrics tell rules apart by name");
    }
    let all_rules: Option<Vec<_>> = rules.into_iter().collect();
    let rules = all_rules.and_then(|rules| match Rules::new(rules) {
        Ok(rules) => Some(Arc::new(rules)),
        Err(error) => {
            top.problem("rule", error, "fewer or shorter patterns");
            None
        }
    });
    if let (Some(listen), Some(upstream)) = (&listen, &upstream)
        && upstream.host == HostPolicy::Client
        && listen.hosts.is_empty()
    {
        top.problem(
            "upstream.host",
            "`client` passes any client's Host on to the registry",
            "set `listen.hosts` to the hosts that may be asked for",
        );
    }
    top.finish();
    Some(Settings {
        listen: listen?,
        upstream: upstream?,
        ledger: ledger?,
        drift: drift?,
        admin: match admin {
            Some(admin) => Some(admin?),
            None => None,
        },
        limits: limits?,
        log: log?,
        audit,
        traces,
        rules: rules?,
        shutdown_timeout: shutdown_timeout.unwrap_or(Duration::from_secs(60)),
        upgrade_timeout: upgrade_timeout.unwrap_or(Duration::from_secs(3600)),
        threads,
        exposed: reader.exposed(),
    })
}

pub(super) fn default_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5000))
}

fn audit(table: Option<Table<'_>>) -> audit::Output {
    let Some(mut table) = table else { return audit::Output::default() };
    let output = table.text("file", |text| {
        Ok::<_, String>(match text {
            "log" => audit::Output::Log,
            "stdout" => audit::Output::Stdout,
            path => audit::Output::File(values::path(path)?),
        })
    });
    table.finish();
    output.unwrap_or_default()
}

fn traces(mut table: Table<'_>) -> Option<traces::Output> {
    let endpoint = table.text("endpoint", values::collector);
    let sample = table.share("sample").unwrap_or(1.0);
    table.finish();
    endpoint.map(|endpoint| traces::Output { endpoint, sample })
}

fn listen(table: Option<Table<'_>>) -> Option<Listen> {
    let Some(mut table) = table else {
        return Some(Listen {
            addresses: vec![default_address()],
            hosts: Vec::new(),
            external: None,
            trusted_proxies: Vec::new(),
            tls: None,
        });
    };
    let addresses = table.texts("address", values::address);
    if addresses.as_ref().is_some_and(Vec::is_empty) {
        table.problem("address", "the list is empty", "leave the key out for `127.0.0.1:5000`");
    }
    let listen = Listen {
        addresses: addresses.unwrap_or_else(|| vec![default_address()]),
        hosts: table.texts("hosts", values::host).unwrap_or_default(),
        external: table.text("external_url", values::parse_origin),
        trusted_proxies: table
            .texts("trusted_proxies", |text| {
                let network = text
                    .parse()
                    .or_else(|_| text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from));
                network.map_err(|_| "not a network, such as `10.0.0.0/8`, nor an address")
            })
            .unwrap_or_default(),
        tls: table.table("tls").and_then(|mut tls| {
            let pair = key_pair(&mut tls, "certificate", "key", true);
            tls.finish();
            pair
        }),
    };
    table.finish();
    Some(listen)
}

/// Two files that go together, read and checked.
fn key_pair(
    table: &mut Table<'_>,
    certificate: &'static str,
    key: &'static str,
    required: bool,
) -> Option<Arc<KeyPair>> {
    let pair = (table.text(certificate, values::path), table.secret_path(key));
    match pair {
        (Some(certificate), Some(key)) => match KeyPair::load(&certificate, &key) {
            Ok(pair) => Some(Arc::new(pair)),
            Err(message) => {
                table.problem(
                    "",
                    message,
                    "both are PEM files; the chain begins with the server's own",
                );
                None
            }
        },
        (None, None) if !required => None,
        (found, _) => {
            let missing = if found.is_some() { key } else { certificate };
            table.problem(missing, "this key is missing", "a certificate and its key go together");
            None
        }
    }
}

fn upstream(top: &mut Table<'_>) -> Option<Upstream> {
    let named = top.has("upstream");
    let mut tables = top.tables("upstream");
    if tables.len() > 1 {
        let message = "several upstreams are not supported yet";
        top.problem("upstream", message, "run one taglock for each registry");
        // Their own mistakes are still worth telling.
        for table in tables {
            one_upstream(table);
        }
        return None;
    }
    match tables.pop() {
        Some(table) => one_upstream(table),
        None if named => None,
        None => {
            let hint = "`[upstream]` with `url = \"http://127.0.0.1:5001\"`";
            top.problem("upstream", "which registry taglock stands in front of is missing", hint);
            None
        }
    }
}

fn one_upstream(mut table: Table<'_>) -> Option<Upstream> {
    let origin = table.required_text("url", "\"http://127.0.0.1:5001\"", values::parse_origin);
    let hosts = [("upstream", HostPolicy::Upstream), ("client", HostPolicy::Client)];
    let defaults = Timeouts::default();
    let mut time = |key, default| table.text(key, values::duration).unwrap_or(default);
    let timeouts = Timeouts {
        connect: time("connect_timeout", defaults.connect),
        read: time("read_timeout", defaults.read),
        write: time("write_timeout", defaults.write),
        idle: time("idle_timeout", defaults.idle),
        exchange: time("exchange_timeout", defaults.exchange),
    };
    let media = table.texts("media_types", |text| Ok::<_, String>(text.to_owned()));
    let media = MediaTypes::new(media.unwrap_or_default()).map_err(|bad| {
        table.problem("media_types", format!("`{bad}` is not a media type"), "");
    });
    let name = table.text("name", UpstreamName::parse);
    let plain = origin.as_ref().is_some_and(|origin| !origin.tls);
    if plain && table.has("ca_file") {
        table.problem("ca_file", "the registry is spoken to without TLS", "use an `https` url");
    }
    let authorities = table.text("ca_file", |text| match values::path(text)? {
        file if plain => Ok(Authorities { file, list: Vec::new() }),
        file => Authorities::load(&file),
    });
    let authorities = authorities.map(Arc::new);
    // Parsed for the day when several upstreams are told apart by them.
    table.texts("hosts", values::host);
    let abort = [("refused", true), ("never", false)];
    let roll_forward = [("published", RollForward::Published), ("staged", RollForward::Staged)];
    let account = table.secret("credentials_file", |account| match account {
        account if account.contains(':') => Ok(Secret::new(account)),
        _ => Err("the file holds no `user:password`".to_owned()),
    });
    let kind = table.text("kind", |t| values::word(t, &KINDS)).unwrap_or_default();
    let upstream = Upstream {
        account,
        name: name.or_else(|| UpstreamName::parse("default").ok())?,
        host: table.text("host", |t| values::word(t, &hosts)).unwrap_or(HostPolicy::Upstream),
        authorities,
        client: key_pair(&mut table, "client_certificate", "client_key", false),
        timeouts,
        kind,
        namespace: namespace(&mut table, kind),
        doors: paths::doors(&mut table, kind),
        redirect_hosts: table.texts("redirect_hosts", values::host).unwrap_or_default(),
        options: Options {
            stage: table.flag("stage").unwrap_or(true),
            abort: table.text("abort", |t| values::word(t, &abort)).unwrap_or(true),
            roll_forward: table
                .text("roll_forward", |t| values::word(t, &roll_forward))
                .unwrap_or_default(),
            ..Options::default()
        },
        fast_path: table.flag("fast_path").unwrap_or(true),
        media: Arc::new(media.ok()?),
        origin: match origin {
            Some(origin) => origin,
            None => {
                table.finish();
                return None;
            }
        },
    };
    table.finish();
    Some(upstream)
}

/// The registry that `?ns=` may name: its own key, or else what the kind says.
fn namespace(table: &mut Table<'_>, kind: Kind) -> Option<String> {
    let usual = || kind.mirrored().map(str::to_owned);
    table.text("namespace", values::host).or_else(usual)
}

/// An upstream with nothing but its origin, as on the command line.
pub(super) fn plain_upstream(origin: Origin) -> Upstream {
    Upstream {
        // Both are constants of this program, and a test makes them.
        name: UpstreamName::parse("default").expect("`default` is a name"),
        media: Arc::new(MediaTypes::new(Vec::new()).expect("the built-in types are types")),
        origin,
        host: HostPolicy::Upstream,
        authorities: None,
        client: None,
        timeouts: Timeouts::default(),
        kind: Kind::Generic,
        namespace: None,
        doors: paths::plain(Kind::Generic),
        redirect_hosts: Vec::new(),
        options: Options::default(),
        fast_path: true,
        account: None,
    }
}

fn drift(table: Option<Table<'_>>, upstream: Option<&Upstream>) -> Option<Drift> {
    let defaults = Drift::default();
    let Some(mut table) = table else { return Some(defaults) };
    let drift = Drift {
        watch: table.flag("watch").unwrap_or(defaults.watch),
        interval: table.text("interval", values::duration).unwrap_or(defaults.interval),
        repair: table.flag("repair").unwrap_or(defaults.repair),
    };
    if drift.repair && upstream.is_some_and(|upstream| upstream.account.is_none()) {
        table.problem(
            "repair",
            "taglock needs an account of its own to put a tag back",
            "`upstream.credentials_file` names a file with `user:password`",
        );
    }
    table.finish();
    Some(drift)
}

fn admin(mut table: Table<'_>) -> Option<Admin> {
    let address = table.text("address", values::address);
    let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 5080)));
    if !table.has("token_file") && !address.ip().is_loopback() {
        let hint = "without one the admin listener may only be on a loopback address";
        table.problem("token_file", "this key is missing", hint);
    }
    let token = table.secret("token_file", |token| match token {
        token if token.len() < 16 => {
            Err("the token has less than 16 characters; `openssl rand -hex 32` makes one"
                .to_owned())
        }
        token => Ok(Secret::new(token)),
    });
    let hosts = table.texts("hosts", values::host).unwrap_or_default();
    table.finish();
    Some(Admin { address, token, hosts })
}

fn limits(table: Option<Table<'_>>) -> Option<Limits> {
    let defaults = Limits::default();
    let Some(mut table) = table else { return Some(defaults) };
    let limits = Limits {
        manifest: table
            .text("manifest", |t| values::size(t, 64 << 10..=256 << 20))
            .unwrap_or(defaults.manifest),
        header: table
            .text("header", |t| values::size(t, 4 << 10..=512 << 10))
            .unwrap_or(defaults.header),
        caps: Caps {
            connections: table
                .number("connections", 1..=1_000_000)
                .map_or(defaults.caps.connections, |n| n as usize),
            manifests: table
                .number("manifests", 1..=100_000)
                .map_or(defaults.caps.manifests, |n| n as usize),
            manifest_memory: table
                .text("manifest_memory", |t| values::size(t, 64 << 10..=1 << 40))
                .unwrap_or(defaults.caps.manifest_memory),
        },
        waiting: table.number("waiting", 1..=100_000).map_or(defaults.waiting, |n| n as usize),
        header_time: table.text("header_time", values::duration).unwrap_or(defaults.header_time),
        manifest_time: table
            .text("manifest_time", values::duration)
            .unwrap_or(defaults.manifest_time),
        body_rate: table
            .text("body_rate", |t| values::size(t, 0..=1 << 30))
            .map_or(defaults.body_rate, |n| n as u64),
        shelf: Bounds {
            bytes: table
                .text("manifest_cache", |t| values::size(t, 0..=1 << 40))
                .map_or(defaults.shelf.bytes, |n| n as u64),
            grace: table.text("public_grace", values::grace).unwrap_or(defaults.shelf.grace),
        },
    };
    if limits.caps.manifest_memory < limits.manifest {
        table.problem(
            "manifest_memory",
            "the largest manifest (`limits.manifest`) does not fit into it",
            "several times as much",
        );
    }
    table.finish();
    Some(limits)
}

fn log(table: Option<Table<'_>>) -> Option<Log> {
    let defaults = Log::default();
    let Some(mut table) = table else { return Some(defaults) };
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log {
        filter: table
            .text("filter", crate::telemetry::logging::check_filter)
            .unwrap_or(defaults.filter),
        format: table.text("format", |t| values::word(t, &formats)).unwrap_or(defaults.format),
        access: table.flag("access").unwrap_or(defaults.access),
    };
    table.finish();
    Some(log)
}
