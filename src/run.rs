//! The composition root: the only file that sees every room. It builds them from the settings,
//! connects them, and ends them in order.

#[cfg(debug_assertions)]
mod crash;
mod fleet;
mod health;
mod ledgers;
mod reload;
mod shutdown;
mod verify;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::ListenerConfig;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::sign::SingleCertAndKey;

use crate::admin::Admin;
use crate::cli::{Command, LedgerCommand, Serve};
use crate::edge::{Config, Edge, Front, Rooms};
use crate::judge::Judge;
use crate::judge::drift::{Change, Drift, Servant};
use crate::ledger::Ledger;
use crate::ledger::guarded::Guarded;
use crate::ledger::witness::Witness;
use crate::registry::Registry;
use crate::registry::account::Account;
use crate::registry::client::Client;
use crate::registry::peer::Peers;
use crate::settings::{self, Flags, HostPolicy, KeyPair, LogFormat, OnOutage, Problems, Settings};
use crate::telemetry::audit::Audit;
use crate::telemetry::notices::Notices;
use crate::telemetry::{Metrics, logging};
use fleet::Fleet;
use reload::Reload;
use shutdown::Shutdown;
use verify::Verify;

/// Why a command ended otherwise than well; `main` turns it into an exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Settings(#[from] Problems),
    #[error("{0}")]
    Start(String),
}

/// # Errors
/// See [`Failure`]; its text is for the operator.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(flags) => {
            let file = flags.config.clone();
            serve(settings_of(flags)?, file)
        }
        Command::Check { file } => check(&file),
        Command::Health { address, ready } => print(&health::ask(address, ready)?),
        Command::Ledger(LedgerCommand::Init { config }) => {
            let settings = settings::read_file(&config)?;
            print(&ledgers::init(&settings)?)
        }
    }
}

fn check(file: &Path) -> Result<(), Failure> {
    let settings = settings::read_file(file)?;
    print(&settings::describe(&settings))
}

/// Data goes to standard output; a reader that has left is no failure of ours.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::Start(e.to_string())),
        _ => Ok(()),
    }
}

fn settings_of(serve: Serve) -> Result<Settings, Failure> {
    let Serve { config, upstream, immutable, listen, data, admin } = serve;
    match (config, upstream) {
        (Some(file), _) => Ok(settings::read_file(&file)?),
        (None, Some(upstream)) => {
            let data = data.unwrap_or_else(|| "taglock-data".into());
            Ok(settings::from_flags(Flags { upstream, immutable, listen, data, admin })?)
        }
        // The command line requires one of the two.
        (None, None) => Err(Failure::Start("either `--config` or `--upstream` is needed".into())),
    }
}

/// Runs until a signal; the process then ends with status 0 from `shutdown`.
fn serve(settings: Settings, file: Option<PathBuf>) -> Result<(), Failure> {
    logging::start(&settings.log.filter, settings.log.format == LogFormat::Json)
        .map_err(Failure::Start)?;
    // Both TLS sides use ring; an error says that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // pingora panics where it can't bind; the operator gets a sentence instead.
    let admin_address = settings.admin.as_ref().map(|admin| admin.address);
    for address in settings.listen.addresses.iter().copied().chain(admin_address) {
        check_bind(address)?;
    }
    let ledger = ledgers::open(&settings)?;
    let metrics = Arc::new(Metrics::new());
    let notices = Arc::new(Notices::default());
    let guarded: Arc<dyn Ledger> =
        Arc::new(Guarded::new(Arc::clone(&ledger), Arc::clone(&metrics)));
    let witness = Arc::new(Witness::new(Arc::clone(&guarded), settings.ledger.remembering));
    let peers = Arc::new(peers(&settings));
    let client = Arc::new(Client::new(
        Arc::clone(&peers),
        Arc::clone(&settings.upstream.media),
        settings.upstream.redirect_hosts.clone(),
        settings.limits.manifest,
    ));
    let registry: Arc<dyn Registry> = Arc::<Client>::clone(&client);

    let configuration = ServerConf {
        threads: settings.threads,
        // pingora sleeps this through and then cuts what is left; `shutdown` ends the process
        // before, as soon as nothing is left.
        grace_period_seconds: Some(settings.shutdown_timeout.as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();

    let rules = Arc::new(ArcSwap::new(Arc::clone(&settings.rules)));
    let account = account(&settings, client)?;
    let reload = Reload::new(
        file,
        &settings,
        Arc::clone(&rules),
        Arc::clone(&metrics),
        Arc::clone(&notices),
        Verify {
            ledger: Arc::clone(&guarded),
            registry: account.clone().unwrap_or_else(|| Arc::clone(&registry)),
            host: settings.upstream.origin.authority(),
        },
    );
    server.add_service(background_service("reload", reload));
    let fleet = Fleet::new(
        Arc::clone(&witness),
        Arc::clone(&rules),
        Arc::clone(&metrics),
        Arc::clone(&notices),
    );
    server.add_service(background_service("fleet", fleet));
    let judge = Judge::new(Arc::clone(&witness), Arc::clone(&registry));
    let judge = match settings.drift.watch {
        true => judge.watching(Arc::new(drift(&settings, account.clone(), &metrics))),
        false => judge,
    };
    let judge = match account {
        Some(account) => judge.looking_as(account),
        None => judge,
    };
    #[cfg(debug_assertions)]
    let judge = judge.observed(crash::observer()?);
    let rooms = Rooms {
        judge: Arc::new(judge),
        peers,
        rules,
        metrics: Arc::clone(&metrics),
        audit: Arc::new(Audit::default()),
    };
    server.add_service(proxy(&server, &settings, rooms)?);
    if let Some(admin) = &settings.admin {
        let token = admin.token.as_ref().map(settings::Secret::expose);
        let app = Admin::new(witness, registry, Arc::clone(&metrics), notices, token);
        let mut service = Service::new("admin".into(), app);
        service.add_tcp(&admin.address.to_string());
        service.threads = Some(1);
        server.add_service(service);
    }

    for address in &settings.listen.addresses {
        tracing::info!(%address, tls = settings.listen.tls.is_some(), "listening");
    }
    let origin = &settings.upstream.origin;
    tracing::info!(
        upstream = %format_args!("{}://{}", origin.scheme(), origin.authority()),
        rules = settings.rules.iter().count(),
        "taglock {} serves", env!("CARGO_PKG_VERSION")
    );
    let shutdown = Shutdown::new(metrics, ledger, settings.shutdown_timeout);
    server.run(RunArgs { shutdown_signal: Box::new(shutdown) });
    Ok(())
}

fn check_bind(address: SocketAddr) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Start(format!("{address} can't be listened on: {error}"))),
    }
}

/// The registry by taglock's own account, where it has one.
fn account(settings: &Settings, client: Arc<Client>) -> Result<Option<Arc<dyn Registry>>, Failure> {
    let account = settings.upstream.account.as_ref().map(|account| {
        let account = Account::new(client, account.expose()).ok_or_else(|| {
            Failure::Start("`upstream.credentials_file` can't stand in a header".into())
        })?;
        Ok(Arc::new(account) as Arc<dyn Registry>)
    });
    account.transpose()
}

fn drift(settings: &Settings, account: Option<Arc<dyn Registry>>, metrics: &Arc<Metrics>) -> Drift {
    let repair = settings.drift.repair;
    let servant = account.map(|registry| Servant { registry, repair });
    let metrics = Arc::clone(metrics);
    let told = move |change: Change, known| metrics.drift(change.as_str(), known);
    Drift::new(settings.drift.interval, servant, Box::new(told))
}

fn peers(settings: &Settings) -> Peers {
    let upstream = &settings.upstream;
    let authorities = upstream.authorities.as_ref().map(|list| {
        let wrapped = |der: &Vec<u8>| WrappedX509::new(der.clone(), parse_x509);
        list.iter().map(wrapped).collect::<Arc<[_]>>()
    });
    let client = upstream
        .client
        .as_ref()
        .map(|pair| Arc::new(CertKey::new(pair.chain.clone(), pair.expose_key().to_vec())));
    Peers::new(upstream.origin.clone(), upstream.timeouts.clone(), authorities, client)
}

fn proxy(server: &Server, settings: &Settings, rooms: Rooms) -> Result<Service<Front>, Failure> {
    let Settings { listen, upstream, limits, .. } = settings;
    let config = Arc::new(Config {
        upstream: upstream.name.clone(),
        doors: upstream.doors.clone(),
        hosts: listen.hosts.clone(),
        external: listen.external.clone(),
        trusted_proxies: listen.trusted_proxies.clone(),
        tls: listen.tls.is_some(),
        client_host: upstream.host == HostPolicy::Client,
        media: Arc::clone(&upstream.media),
        options: upstream.options,
        strict: settings.ledger.on_outage == OnOutage::Strict,
        max_manifest: limits.manifest,
        max_header: limits.header,
    });
    let rooms = Arc::new(rooms);
    let edge = || Edge::new(Arc::clone(&config), Arc::clone(&rooms));
    let front = Front::new(&server.configuration, listen.tls.is_some(), edge);
    let mut service = Service::new("proxy".into(), front);
    for address in &listen.addresses {
        // Header and body of a small answer leave in one write.
        let buffer = L4BufferSettings::default().write(16 * 1024);
        let endpoint = ListenerConfig::tcp(address.to_string()).l4_buffer(buffer);
        service.add_listener(match &listen.tls {
            Some(pair) => endpoint.tls(tls(pair)?),
            None => endpoint,
        });
    }
    Ok(service)
}

fn tls(pair: &KeyPair) -> Result<TlsSettings, Failure> {
    let start = |e: Box<pingora::Error>| Failure::Start(e.to_string());
    let mut tls = TlsSettings::intermediate("", "").map_err(start)?;
    tls.set_cert_resolver(Arc::new(SingleCertAndKey::from(pair.certified())));
    tls.enable_h2();
    Ok(tls)
}
