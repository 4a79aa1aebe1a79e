//! Reaching the registry: where it is, how it is spoken to, and for how long.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use pingora::prelude::HttpPeer;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{HttpUpstreamRequestPolicy, Peer as _};
use pingora::utils::tls::CertKey;
use tokio::net::lookup_host;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Trouble;
use crate::runtime::per_thread::PerThread;

/// A host that is spoken to over HTTP: scheme, name, port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub tls: bool,
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    pub port: u16,
}

impl Origin {
    /// As it stands in a `Host` header and in URLs: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// How long each part of an exchange with the registry may take. None is unbounded: pingora's
/// own defaults would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP alone.
    pub connect: Duration,
    /// Between two reads of an answer, and before its first byte.
    pub read: Duration,
    pub write: Duration,
    /// How long an unused connection is kept.
    pub idle: Duration,
    /// A whole exchange of the judge: a look-up, or the PUT of a manifest.
    pub exchange: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            // A registry over an object store may take minutes to finish a large upload.
            read: Duration::from_secs(300),
            write: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            exchange: Duration::from_secs(30),
        }
    }
}

/// Makes peers for one origin.
pub struct Peers {
    origin: Origin,
    timeouts: Timeouts,
    credentials: ArcSwap<Credentials>,
    addresses: Addresses,
    /// Those that were made, to be used again: a registry has a handful of addresses.
    ways: PerThread<ArcSwap<Vec<Arc<Way>>>>,
}

/// How a connection to one address is made.
pub struct Way {
    pub peer: HttpPeer,
    /// Connections of the same number were made alike, and to the same address.
    pub hash: u64,
    address: SocketAddr,
    credentials: Arc<Credentials>,
}

/// What a TLS connection to the registry is made with.
#[derive(Default)]
pub struct Credentials {
    /// Instead of the system's roots.
    pub ca: Option<Arc<CaType>>,
    pub client: Option<Arc<CertKey>>,
}

impl Peers {
    pub fn new(origin: Origin, timeouts: Timeouts, credentials: Credentials) -> Self {
        let addresses = Addresses::new(&origin, timeouts.connect);
        let credentials = ArcSwap::from_pointee(credentials);
        Self { origin, timeouts, credentials, addresses, ways: PerThread::default() }
    }

    /// Connections made from now on are made with these.
    pub fn renew(&self, credentials: Credentials) {
        self.credentials.store(Arc::new(credentials));
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Notes that a peer could not be connected to; another address comes first for a while.
    pub fn shun(&self, peer: &HttpPeer) {
        if let Some(address) = peer._address.as_inet() {
            self.addresses.shun(*address);
        }
    }

    /// The way to the next address of the registry.
    ///
    /// # Errors
    /// Where its name has none.
    pub async fn way(&self) -> Result<Arc<Way>, Trouble> {
        let address = self.addresses.next().await?;
        let credentials = self.credentials.load();
        let ways = self.ways.own();
        let made = ways.load();
        let good = |way: &&Arc<Way>| Arc::ptr_eq(&way.credentials, &credentials);
        if let Some(way) = made.iter().find(|way| way.address == address && good(way)) {
            return Ok(Arc::clone(way));
        }
        let way = Arc::new(self.make(address, Arc::clone(&credentials)));
        // Another one that is made at this moment may be lost, and is made again.
        let others = made.iter().filter(|way| way.address != address).filter(good);
        let all = std::iter::once(&way).chain(others).take(MOST_WAYS).cloned();
        ways.store(Arc::new(all.collect()));
        Ok(way)
    }

    /// Everything is set that pingora leaves open.
    fn make(&self, address: SocketAddr, credentials: Arc<Credentials>) -> Way {
        // SNI is always set: an empty one would silently turn verification off.
        let mut peer = HttpPeer::new(address, self.origin.tls, self.origin.host.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(self.timeouts.connect);
        options.total_connection_timeout = Some(self.timeouts.connect * 2);
        options.read_timeout = Some(self.timeouts.read);
        options.write_timeout = Some(self.timeouts.write);
        options.idle_timeout = Some(self.timeouts.idle);
        options.set_http_version(1, 1);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
        options.ca.clone_from(&credentials.ca);
        peer.client_cert_key.clone_from(&credentials.client);
        Way { hash: peer.reuse_hash(), peer, address, credentials }
    }
}

/// The addresses of a name, looked up again as DNS changes.
struct Addresses {
    host: String,
    port: u16,
    deadline: Duration,
    known: ArcSwapOption<Known>,
    /// One look-up at a time; the rest go on with what is known.
    looking: Mutex<()>,
    turn: AtomicUsize,
    /// Where a connection failed, and when: asked last for a while.
    failed: DashMap<SocketAddr, Instant>,
}

struct Known {
    /// Empty where a look-up found none.
    addresses: Vec<SocketAddr>,
    /// `None` for a literal address, which never changes.
    since: Option<Instant>,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.since.is_none_or(|since| since.elapsed() < HOLD)
    }
}

/// The system's resolver tells no time to live; nginx and HAProxy hold names about as long.
const HOLD: Duration = Duration::from_secs(10);
/// An address that could not be connected to is left alone for so long, while there are others.
const SHUN: Duration = Duration::from_secs(10);
/// More addresses than a name has.
const MOST_WAYS: usize = 64;

impl Addresses {
    fn new(origin: &Origin, deadline: Duration) -> Self {
        let literal = origin.host.parse::<IpAddr>().ok().map(|address| {
            let addresses = vec![SocketAddr::new(address, origin.port)];
            Arc::new(Known { addresses, since: None })
        });
        Self {
            host: origin.host.clone(),
            port: origin.port,
            deadline,
            known: ArcSwapOption::new(literal),
            looking: Mutex::new(()),
            turn: AtomicUsize::new(0),
            failed: DashMap::new(),
        }
    }

    /// The next address in turn that has not failed lately, or the next at all.
    async fn next(&self) -> Result<SocketAddr, Trouble> {
        // Nearly always one is known, and only looked at.
        if let Some(known) = &*self.known.load()
            && let [only] = known.addresses[..]
            && known.is_fresh()
        {
            return Ok(only);
        }
        let known = self.current().await;
        let count = known.addresses.len();
        match known.addresses[..] {
            [] => return Err(Trouble::Unreachable),
            [only] => return Ok(only),
            _ => {}
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = |n: usize| known.addresses[(turn + n) % count];
        let sound = |address: &SocketAddr| {
            self.failed.get(address).is_none_or(|failed| failed.elapsed() >= SHUN)
        };
        Ok((0..count).map(in_turn).find(sound).unwrap_or_else(|| in_turn(0)))
    }

    /// Notes that this address could not be connected to.
    fn shun(&self, address: SocketAddr) {
        self.failed.insert(address, Instant::now());
        // A name has a handful of addresses; what it no longer has need not be remembered.
        self.failed.retain(|_, failed| failed.elapsed() < SHUN);
    }

    async fn current(&self) -> Arc<Known> {
        let stale = match self.known.load_full() {
            Some(known) if known.is_fresh() => return known,
            stale => stale,
        };
        match stale {
            // Whoever comes first looks; for the others the old addresses are good enough.
            Some(known) if !known.addresses.is_empty() => match self.looking.try_lock() {
                Ok(_one) => self.look_up(known.addresses.clone()).await,
                Err(_) => known,
            },
            _ => {
                let _one = self.looking.lock().await;
                match self.known.load_full() {
                    Some(known) if known.is_fresh() => known,
                    _ => self.look_up(Vec::new()).await,
                }
            }
        }
    }

    /// Looks the name up. Without an answer the last addresses are a better guess than none; either
    /// way nobody asks again until they are stale.
    async fn look_up(&self, last: Vec<SocketAddr>) -> Arc<Known> {
        let found = timeout(self.deadline, lookup_host((self.host.as_str(), self.port))).await;
        let addresses: Vec<_> = match found {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        // Having found none, the next look may come a little sooner than otherwise.
        let (addresses, since) = if addresses.is_empty() {
            tracing::warn!(host = %self.host, "the registry's name has no address now");
            (last, Instant::now().checked_sub(HOLD - NONE_HOLD))
        } else {
            (addresses, None)
        };
        let since = Some(since.unwrap_or_else(Instant::now));
        let known = Arc::new(Known { addresses, since });
        self.known.store(Some(Arc::clone(&known)));
        known
    }
}

/// How long it is believed that a name has no address.
const NONE_HOLD: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(tls: bool, host: &str, port: u16) -> Origin {
        Origin { tls, host: host.into(), port }
    }

    #[test]
    fn an_authority_names_the_port_only_where_it_must() {
        for (origin, expected) in [
            (origin(false, "registry.example.com", 80), "registry.example.com"),
            (origin(true, "registry.example.com", 443), "registry.example.com"),
            (origin(true, "registry.example.com", 80), "registry.example.com:80"),
            (origin(false, "127.0.0.1", 5001), "127.0.0.1:5001"),
            (origin(false, "::1", 5001), "[::1]:5001"),
        ] {
            assert_eq!(origin.authority(), expected);
        }
    }

    #[tokio::test]
    async fn every_timeout_and_the_server_name_are_set() {
        let peers =
            Peers::new(origin(true, "localhost", 1), Timeouts::default(), Credentials::default());
        let way = peers.way().await.unwrap();
        assert_eq!(way.peer.sni, "localhost");
        let options = &way.peer.options;
        for set in [
            options.connection_timeout,
            options.total_connection_timeout,
            options.read_timeout,
            options.write_timeout,
            options.idle_timeout,
        ] {
            assert!(set.is_some());
        }
        assert!(options.verify_cert && options.verify_hostname);
    }

    #[tokio::test]
    async fn a_way_is_made_once_and_anew_with_other_credentials() {
        let origin = origin(false, "127.0.0.1", 1);
        let peers = Peers::new(origin, Timeouts::default(), Credentials::default());
        let first = peers.way().await.unwrap();
        assert!(Arc::ptr_eq(&first, &peers.way().await.unwrap()));
        peers.renew(Credentials { ca: Some(Arc::new([])), client: None });
        let renewed = peers.way().await.unwrap();
        assert!(renewed.peer.options.ca.is_some() && first.peer.options.ca.is_none());
        assert!(Arc::ptr_eq(&renewed, &peers.way().await.unwrap()));
    }

    #[tokio::test]
    async fn an_address_that_failed_comes_last_for_a_while() {
        let addresses = Addresses::new(&origin(false, "registry.example", 80), HOLD);
        let [a, b] = [1, 2].map(|n| SocketAddr::from(([127, 0, 0, n], 80)));
        let known = Known { addresses: vec![a, b], since: None };
        addresses.known.store(Some(Arc::new(known)));
        let first = addresses.next().await.unwrap();
        assert_ne!(addresses.next().await.unwrap(), first, "they take turns");
        addresses.shun(a);
        for _ in 0..4 {
            assert_eq!(addresses.next().await, Ok(b));
        }
        addresses.shun(b);
        assert!(addresses.next().await.is_ok(), "where all failed, one is tried");
    }

    #[tokio::test(start_paused = true)]
    async fn without_dns_the_last_addresses_go_on_and_nobody_queues() {
        let addresses = Arc::new(Addresses::new(&origin(false, "gone.invalid", 80), HOLD));
        let known = SocketAddr::from(([127, 0, 0, 1], 80));
        let since = Some(Instant::now());
        addresses.known.store(Some(Arc::new(Known { addresses: vec![known], since })));
        tokio::time::advance(HOLD * 2).await;
        for _ in 0..100 {
            assert_eq!(addresses.next().await, Ok(known));
        }
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_trouble_not_a_hang() {
        let peers = Peers::new(
            origin(false, "no-such-host.invalid", 80),
            Timeouts::default(),
            Credentials::default(),
        );
        assert_eq!(peers.way().await.err(), Some(Trouble::Unreachable));
    }
}
