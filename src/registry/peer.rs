//! Reaching the registry: where it is, how it is spoken to, and for how long.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use pingora::prelude::HttpPeer;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;
use pingora::utils::tls::CertKey;
use tokio::net::lookup_host;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Trouble;

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
    /// Instead of the system's roots.
    ca: Option<Arc<CaType>>,
    client: Option<Arc<CertKey>>,
    addresses: Addresses,
}

impl Peers {
    pub fn new(
        origin: Origin,
        timeouts: Timeouts,
        ca: Option<Arc<CaType>>,
        client: Option<Arc<CertKey>>,
    ) -> Self {
        let addresses = Addresses::new(&origin, timeouts.connect);
        Self { origin, timeouts, ca, client, addresses }
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The next address of the registry, with everything set that pingora leaves open.
    pub async fn peer(&self) -> Result<HttpPeer, Trouble> {
        let address = self.addresses.next().await?;
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
        options.ca.clone_from(&self.ca);
        peer.client_cert_key.clone_from(&self.client);
        Ok(peer)
    }
}

/// The addresses of a name, looked up again as DNS changes.
struct Addresses {
    host: String,
    port: u16,
    deadline: Duration,
    known: ArcSwapOption<Known>,
    /// One look-up at a time.
    looking: Mutex<()>,
    turn: AtomicUsize,
}

struct Known {
    addresses: Vec<SocketAddr>,
    /// `None` for a literal address, which never changes.
    since: Option<Instant>,
}

/// The system's resolver tells no time to live; nginx and HAProxy hold names about as long.
const HOLD: Duration = Duration::from_secs(10);

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
        }
    }

    async fn next(&self) -> Result<SocketAddr, Trouble> {
        let known = match self.fresh() {
            Some(known) => known,
            None => self.look_up().await?,
        };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        known
            .addresses
            .get(turn % known.addresses.len().max(1))
            .copied()
            .ok_or(Trouble::Unreachable)
    }

    fn fresh(&self) -> Option<Arc<Known>> {
        self.known.load_full().filter(|known| known.since.is_none_or(|s| s.elapsed() < HOLD))
    }

    async fn look_up(&self) -> Result<Arc<Known>, Trouble> {
        let _one = self.looking.lock().await;
        if let Some(known) = self.fresh() {
            return Ok(known);
        }
        let found = timeout(self.deadline, lookup_host((self.host.as_str(), self.port))).await;
        let addresses: Vec<_> = match found {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        if addresses.is_empty() {
            tracing::warn!(host = %self.host, "the registry's name has no address now");
            // The last addresses are a better guess than none.
            return self.known.load_full().ok_or(Trouble::Unreachable);
        }
        let known = Arc::new(Known { addresses, since: Some(Instant::now()) });
        self.known.store(Some(Arc::clone(&known)));
        Ok(known)
    }
}

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
        let peers = Peers::new(origin(true, "localhost", 1), Timeouts::default(), None, None);
        let peer = peers.peer().await.unwrap();
        assert_eq!(peer.sni, "localhost");
        let options = &peer.options;
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
    async fn a_name_without_an_address_is_trouble_not_a_hang() {
        let peers =
            Peers::new(origin(false, "no-such-host.invalid", 80), Timeouts::default(), None, None);
        assert_eq!(peers.peer().await.err(), Some(Trouble::Unreachable));
    }
}
