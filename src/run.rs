//! The composition root: the only file that sees every room. It builds them from the settings,
//! connects them, and ends them in order.

mod certificates;
mod commands;
#[cfg(debug_assertions)]
mod crash;
mod handover;
mod health;
mod ledgers;
mod reload;
mod reload_check;
mod rules_watch;
mod service_manager;
mod shutdown;
mod sockets;
mod takeover;

use std::sync::Arc;

use arc_swap::ArcSwap;
use pingora::listeners::ListenerConfig;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;

use crate::admin::{Admin, Eyes, Parts};
use crate::cli::{Command, Serve};
use crate::console;
use crate::judge::Judge;
use crate::judge::artifacts::Desk;
use crate::judge::drift::{Change, Drift, Servant};
use crate::ledger::Ledger;
use crate::ledger::cached::Witness;
use crate::ledger::retrying::Guarded;
use crate::proxy::{Cap, Caps, Config, Crowd, Deliveries, Edge, Front, Rooms};
use crate::registry::Registry;
use crate::registry::anonymous::Anonymous;
use crate::registry::client::Client;
use crate::registry::client::harbor::Harbor;
use crate::registry::manifest_cache::{Shelf, Told};
use crate::registry::service_account::Account;
use crate::settings::{self, Flags, HostPolicy, LogFormat, OnOutage, Problems, Settings, Store};
use crate::telemetry::audit::Audit;
use crate::telemetry::refusals::Refusals;
use crate::telemetry::traces::Tracer;
use crate::telemetry::warnings::Notices;
use crate::telemetry::{Metrics, logging};
use crate::transport::endpoint::Peers;
use certificates::{Certificates, Served};
use handover::Older;
use reload::{Reload, Watched};
use reload_check::Verify;
use rules_watch::Fleet;
use shutdown::Shutdown;
use sockets::{Door, Sockets};
use takeover::Takeover;

/// Connections to the registry that pingora keeps, in all.
const KEPT: usize = 128;

/// Why a command ended otherwise than well; `main` turns it into an exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Settings(#[from] Problems),
    #[error("{0}")]
    Start(String),
    #[error("{0}")]
    Console(#[from] console::Failure),
}

/// # Errors
/// See [`Failure`]; its text is for the operator.
pub fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(flags) => {
            // Before it is understood: a change in between is one that is seen later.
            let file = flags.config.clone().map(Watched::read);
            serve(settings_of(flags)?, file)
        }
        Command::Health { address, ready } => print(&health::ask(address, ready)?),
        Command::Check { file, strict, json } => commands::check(&file, strict, json),
        Command::Explain { reference, digest, common } => {
            commands::explain(&reference, digest.as_deref(), &common)
        }
        Command::Ledger(command) => commands::ledger(command),
        Command::Completions { shell } => commands::completions(shell),
        Command::Man { folder } => commands::manual(folder.as_deref()),
    }
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
fn serve(settings: Settings, file: Option<Watched>) -> Result<(), Failure> {
    logging::start(&settings.log.filter, settings.log.format == LogFormat::Json)
        .map_err(Failure::Start)?;
    reload::warn_of_exposed(&settings);
    // Both TLS sides use ring; an error says that it was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    shutdown::keep_from_ending();
    // An older process, if this one is to take over from it, and its sockets.
    let (older, inherited) = Older::meet().map_err(Failure::Start)?.unzip();
    let metrics = Arc::new(Metrics::new());
    let notices = Arc::new(Notices::default());
    let audit = Audit::to(&settings.audit, Arc::clone(&metrics));
    let audit = Arc::new(
        audit.map_err(|e| Failure::Start(format!("the audit's file can't be opened: {e}")))?,
    );
    let tracer = settings.traces.as_ref().map(Tracer::to).transpose();
    let tracer = tracer.map_err(|e| Failure::Start(format!("traces can't be sent: {e}")))?;
    let tracer = tracer.map(Arc::new);
    let waiting = Arc::new(Guarded::waiting(Arc::clone(&metrics)));
    let guarded: Arc<dyn Ledger> = Arc::<Guarded>::clone(&waiting);
    let witness = Witness::new(Arc::clone(&guarded), settings.ledger.remembering);
    let witness = Arc::new(witness.counted(Arc::clone(&metrics)));
    let peers = Arc::new(Peers::new(
        settings.upstream.origin.clone(),
        settings.upstream.timeouts.clone(),
        certificates::upstream(&settings.upstream),
    ));
    let served = settings.listen.tls.as_ref().map(|pair| Arc::new(Served::new(pair)));
    let certificates = Certificates::new(
        &settings,
        served.as_ref(),
        &peers,
        (Arc::clone(&metrics), Arc::clone(&notices), Arc::clone(&audit)),
    );
    // Before anybody can connect: a start that fails here was never there.
    let takeover = Takeover::begin(&settings, &waiting, older)?;
    let gate = takeover.gate();
    let client = Client::new(
        Arc::clone(&peers),
        Arc::clone(&settings.upstream.media),
        settings.upstream.redirect_hosts.clone(),
        settings.limits.manifest,
    );
    let client = Arc::new(client.naming(Arc::clone(&settings.upstream.doors.naming)));
    let registry: Arc<dyn Registry> = Arc::<Client>::clone(&client);
    let shelf = shelf(&settings, &client, &metrics);

    let configuration = ServerConf {
        threads: settings.threads,
        // See `lanes`.
        work_stealing: false,
        // Of each lane's own.
        upstream_keepalive_pool_size: (KEPT / settings.threads).max(4),
        // pingora sleeps this through and then cuts what is left; `shutdown` ends the process
        // before, as soon as nothing is left.
        grace_period_seconds: Some(
            settings.shutdown_timeout.max(settings.upgrade_timeout).as_secs() + 60,
        ),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();

    let rules = Arc::new(ArcSwap::new(Arc::clone(&settings.rules)));
    let account = account(&settings, &client)?;
    let reload = Reload::new(
        file,
        &settings,
        Arc::clone(&rules),
        (Arc::clone(&metrics), Arc::clone(&notices), Arc::clone(&audit)),
        certificates,
        Verify {
            ledger: Arc::clone(&guarded),
            registry: match &account {
                Some(account) => Arc::<Account>::clone(account),
                None => Arc::clone(&registry),
            },
            host: settings.upstream.origin.authority(),
        },
    );
    let reload = server.add_service(background_service("reload", reload));
    let fleet = Fleet::new(
        Arc::clone(&witness),
        Arc::clone(&rules),
        Arc::clone(&metrics),
        Arc::clone(&notices),
    );
    server.add_service(background_service("fleet", fleet));
    let for_clients = match &shelf {
        Some(shelf) => Arc::<Shelf>::clone(shelf),
        None => Arc::clone(&registry),
    };
    let judge = Judge::new(Arc::clone(&witness), for_clients);
    let judge = judge.exchanging(peers.timeouts().exchange);
    let judge = match settings.drift.watch {
        true => judge.watching(Arc::new(drift(&settings, account.clone(), &metrics))),
        false => judge,
    };
    let judge = match account.clone() {
        Some(account) => judge.looking_as(account),
        None => judge,
    };
    #[cfg(debug_assertions)]
    let judge = judge.observed(crash::observer()?);
    let judge = judge.crowded(settings.limits.waiting, {
        let metrics = Arc::clone(&metrics);
        move || metrics.overload(Cap::Waiting.label())
    });
    let settings::Caps { connections, manifests, manifest_memory } = settings.limits.caps;
    let caps = Caps { connections, manifests, manifest_memory };
    let harbor = Arc::new(Harbor::new(Arc::clone(&client)));
    let rooms = Rooms {
        desk: Arc::new(Desk::beside(&judge, harbor)),
        crowd: Arc::new(Crowd::new(caps, Arc::clone(&metrics))),
        let_in: Arc::default(),
        judge: Arc::new(judge),
        client: Arc::clone(&client),
        peers,
        rules: Arc::clone(&rules),
        metrics: Arc::clone(&metrics),
        audit: Arc::clone(&audit),
        gate: Arc::clone(&gate),
        tracer: tracer.clone(),
        refusals: Arc::new(Refusals::default()),
        shelf,
    };
    let unjudged = Arc::clone(rooms.judge.unjudged());
    let takeover = takeover.beside(&unjudged);
    let parts = Parts {
        upstream: settings.upstream.name.clone(),
        naming: Arc::clone(&settings.upstream.doors.naming),
        ledger: witness,
        judge: Arc::clone(&rooms.judge),
        rules: Arc::clone(&rooms.rules),
        eyes: eyes(&settings, client, account),
        metrics: Arc::clone(&metrics),
        notices: Arc::clone(&notices),
        audit: Arc::clone(&rooms.audit),
        refusals: Arc::clone(&rooms.refusals),
    };
    // Who can connect may change files at once: they have been read above. Where an older process has
    // fewer sockets, the kernel deals connections out to these as well from here on.
    let admin_address = settings.admin.as_ref().map(|admin| admin.address);
    let of_lanes = settings.listen.addresses.iter().map(|address| (*address, settings.threads));
    let addresses: Vec<_> = of_lanes.chain(admin_address.map(|address| (address, 1))).collect();
    let sockets = Arc::new(Sockets::open(&addresses, inherited.unwrap_or_default())?);
    let deliveries = Arc::new(Deliveries::default());
    let mut serving = Some(|| takeover.serve());
    for lane in lanes(&server, &settings, (rooms, &deliveries), (&sockets, served))? {
        let lane = match serving.take() {
            Some(serve) => lane.on_open(serve),
            None => lane,
        };
        server.add_service(lane).add_dependency(&reload);
    }
    if let Some(admin) = &settings.admin {
        let token = admin.token.as_ref().map(settings::Secret::expose);
        let app = Admin::new(parts, token, admin.hosts.clone());
        let mut service = Service::new("admin".into(), app);
        service.add_tcp(&admin.address.to_string());
        service.threads = Some(1);
        // Who is answered there may send SIGHUP, which must be caught by then.
        let door = sockets.door(service, &[admin.address], 0)?;
        server.add_service(door).add_dependency(&reload);
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
    let shutdown = Shutdown {
        metrics,
        deliveries,
        notices,
        ledger: guarded,
        audit,
        tracer,
        exclusive: matches!(settings.ledger.store, Store::Embedded { .. }),
        gate,
        rules,
        unjudged,
        sockets,
        timeout: settings.shutdown_timeout,
        upgrade_timeout: settings.upgrade_timeout,
    };
    server.run(RunArgs { shutdown_signal: Box::new(shutdown) });
    Ok(())
}

/// Taglock's own account at the registry, where it has one.
fn account(settings: &Settings, client: &Arc<Client>) -> Result<Option<Arc<Account>>, Failure> {
    let account = settings.upstream.account.as_ref().map(|account| {
        Account::new(Arc::clone(client), account.expose()).map(Arc::new).ok_or_else(|| {
            Failure::Start("`upstream.credentials_file` can't stand in a header".into())
        })
    });
    account.transpose()
}

/// Manifests of public repositories, where there is memory for them.
fn shelf(settings: &Settings, client: &Arc<Client>, metrics: &Arc<Metrics>) -> Option<Arc<Shelf>> {
    let everybody = Arc::new(Anonymous::new(Arc::clone(client)));
    let metrics = Arc::clone(metrics);
    let tell = move |told| match told {
        Told::Pull(result) => metrics.manifest_cache(result),
        Told::Question(answer) => metrics.public_question(answer),
        Told::Bytes(bytes) => metrics.manifest_cache_bytes(bytes),
    };
    let registry = Arc::<Client>::clone(client);
    Shelf::new(registry, everybody, settings.limits.shelf, tell).map(Arc::new)
}

fn drift(settings: &Settings, account: Option<Arc<Account>>, metrics: &Arc<Metrics>) -> Drift {
    let repair = settings.drift.repair;
    let servant = account.map(|registry| Servant { registry, repair });
    let metrics = Arc::clone(metrics);
    let told = move |change: Change, known| metrics.drift(change.as_str(), known);
    Drift::new(settings.drift.interval, servant, Box::new(told))
}

/// Its own account's, or anybody's.
fn eyes(settings: &Settings, client: Arc<Client>, account: Option<Arc<Account>>) -> Eyes {
    let host = settings.upstream.origin.authority();
    match account {
        Some(account) => {
            Eyes { registry: Arc::<Account>::clone(&account), catalogue: account, host }
        }
        None => Eyes { registry: Arc::<Client>::clone(&client), catalogue: client, host },
    }
}

/// The proxy, once for each thread: a connection stays in the thread that accepted it, and so do the
/// registry's that serve it. Nothing of a request is handed from one thread to another.
fn lanes(
    server: &Server,
    settings: &Settings,
    (rooms, deliveries): (Rooms, &Arc<Deliveries>),
    (sockets, served): (&Sockets, Option<Arc<Served>>),
) -> Result<Vec<Door<Front>>, Failure> {
    let Settings { listen, upstream, limits, log, .. } = settings;
    let config = Arc::new(Config {
        upstream: upstream.name.clone(),
        doors: upstream.doors.clone(),
        namespace: upstream.namespace.clone(),
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
        manifest_time: limits.manifest_time,
        body_rate: limits.body_rate,
        access_log: log.access,
        swift: upstream.fast_path,
        registry_tls: upstream.origin.tls,
        relays: upstream.fast_path && listen.tls.is_none(),
        lanes: settings.threads,
    });
    let rooms = Arc::new(rooms);
    let edge = || Edge::new(Arc::clone(&config), Arc::clone(&rooms));
    let lane = |number| {
        let counted = (Arc::clone(&rooms.crowd), Arc::clone(deliveries));
        let (over_tls, header_time) = (listen.tls.is_some(), limits.header_time);
        let front = Front::new(&server.configuration, over_tls, counted, header_time, edge);
        let mut service = Service::new("proxy".into(), front);
        for address in &listen.addresses {
            // Header and body of a small answer leave in one write. Where bodies may be taken from the
            // socket itself, none of them may lie in a buffer before it.
            let read = if listen.tls.is_some() { 16 * 1024 } else { 0 };
            let buffer = L4BufferSettings::default().read(read).write(16 * 1024);
            let endpoint = ListenerConfig::tcp(address.to_string()).l4_buffer(buffer);
            service.add_listener(match &served {
                Some(served) => endpoint.tls(tls(served)?),
                None => endpoint,
            });
        }
        service.threads = Some(1);
        sockets.door(service, &listen.addresses, number)
    };
    // A newer process may have been given more sockets than it has threads.
    (0..settings.threads.max(sockets.most(&listen.addresses))).map(lane).collect()
}

fn tls(served: &Arc<Served>) -> Result<TlsSettings, Failure> {
    let start = |e: Box<pingora::Error>| Failure::Start(e.to_string());
    let mut tls = TlsSettings::intermediate("", "").map_err(start)?;
    tls.set_cert_resolver(Arc::<Served>::clone(served));
    tls.enable_h2();
    Ok(tls)
}
