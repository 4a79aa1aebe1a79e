//! How many may be here at once: connections, and manifests that are held until they are judged.
//! Who finds no place is told to come again; nothing grows without a bound.
//!
//! A manifest has a place only once all of it is here: one that does not come keeps nobody from pushing.
//! What does come takes memory, of which one client address has a share.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{Instant, sleep, timeout};

use crate::telemetry::Metrics;

/// How long a place is waited for: the usual push takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(1);
/// The memory of manifests is handed out in pieces of this size.
const PIECE: usize = 4096;
/// What has not come whole may take one part in so many of the memory from one address, and what is
/// judged leaves one part in so many of the places to other addresses.
const PARTS: usize = 4;
/// Between two tries to get more than the share of an address.
const PAUSE: Duration = Duration::from_millis(20);

/// How many at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub connections: usize,
    /// Manifests taken in or judged at once.
    pub manifests: usize,
    /// The bytes of all of them.
    pub manifest_memory: usize,
}

/// The cap that was met: a closed set of labels in metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    Connections,
    Manifests,
    ManifestMemory,
    Waiting,
}

impl Cap {
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Manifests => "manifests",
            Self::ManifestMemory => "manifest-memory",
            Self::Waiting => "waiting",
        }
    }

    /// Its key in the settings.
    pub fn key(self) -> &'static str {
        match self {
            Self::ManifestMemory => "manifest_memory",
            other => other.label(),
        }
    }
}

pub struct Crowd {
    caps: Caps,
    connections: AtomicUsize,
    manifests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    shares: DashMap<IpAddr, Share>,
    metrics: Arc<Metrics>,
}

/// What one client address holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    /// Bytes of manifests that have not come whole.
    coming: usize,
    /// Manifests that are judged.
    judged: usize,
}

impl Crowd {
    pub fn new(caps: Caps, metrics: Arc<Metrics>) -> Self {
        Self {
            caps,
            connections: AtomicUsize::new(0),
            manifests: Arc::new(Semaphore::new(caps.manifests)),
            memory: Arc::new(Semaphore::new(caps.manifest_memory / PIECE)),
            shares: DashMap::new(),
            metrics,
        }
    }

    /// How many connections there are now.
    pub fn connected(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection for as long as it lives. `None` where there are too many.
    pub fn connect(self: &Arc<Self>) -> Option<Connected> {
        self.metrics.within_runtime();
        let count = self.connections.fetch_add(1, Ordering::Relaxed);
        // Given back by its drop, also where there are too many.
        let connected = Connected(Arc::clone(self));
        self.metrics.connections().inc();
        if count < self.caps.connections {
            return Some(connected);
        }
        self.met(Cap::Connections);
        None
    }

    /// A manifest that begins to come from this address. It has neither place nor memory yet.
    pub fn arrival(self: &Arc<Self>, address: IpAddr) -> Place {
        let gauge = self.metrics.manifests().clone();
        gauge.inc();
        let (address, held) = (network(address), Share::default());
        Place { crowd: Arc::clone(self), address, held, _one: None, memory: None, bytes: 0, gauge }
    }

    /// Room for so many bytes in all, of a manifest that has at most `longest`.
    ///
    /// # Errors
    /// The memory is used up, or what this address may have of it.
    pub async fn grow(&self, place: &mut Place, bytes: usize, longest: usize) -> Result<(), Cap> {
        let missing = bytes.saturating_sub(place.bytes).div_ceil(PIECE);
        if missing == 0 {
            return Ok(());
        }
        let most = (self.caps.manifest_memory / PARTS).max(longest.next_multiple_of(PIECE));
        let more = Share { coming: missing * PIECE, judged: 0 };
        if !place.take(more, |share| share.coming <= most).await {
            return Err(self.met(Cap::ManifestMemory));
        }
        let Some(permits) = acquire(&self.memory, missing).await else {
            place.give_back(more);
            return Err(self.met(Cap::ManifestMemory));
        };
        place.bytes += missing * PIECE;
        match &mut place.memory {
            Some(memory) => memory.merge(permits),
            None => place.memory = Some(permits),
        }
        Ok(())
    }

    /// A place to be judged at, for a manifest that has come whole.
    ///
    /// # Errors
    /// There is none, or this address has its share of them.
    pub async fn admit(&self, place: &mut Place) -> Result<(), Cap> {
        place.give_back(place.held);
        let most = self.caps.manifests - self.caps.manifests / PARTS;
        let one = Share { coming: 0, judged: 1 };
        if !place.take(one, |share| share.judged <= most).await {
            return Err(self.met(Cap::Manifests));
        }
        let permit = acquire(&self.manifests, 1).await;
        place._one = Some(permit.ok_or_else(|| self.met(Cap::Manifests))?);
        Ok(())
    }

    fn met(&self, cap: Cap) -> Cap {
        self.metrics.overload(cap.label());
        cap
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, count: usize) -> Option<OwnedSemaphorePermit> {
    let count = u32::try_from(count).ok()?;
    match Arc::clone(semaphore).try_acquire_many_owned(count) {
        Ok(permits) => Some(permits),
        Err(TryAcquireError::Closed) => None,
        Err(TryAcquireError::NoPermits) => {
            let waiting = Arc::clone(semaphore).acquire_many_owned(count);
            timeout(PATIENCE, waiting).await.ok()?.ok()
        }
    }
}

/// A connection that counts.
pub struct Connected(Arc<Crowd>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections().dec();
    }
}

/// A manifest's place, and the room it takes; both free at its drop.
pub struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
    /// Of the address's share.
    held: Share,
    _one: Option<OwnedSemaphorePermit>,
    memory: Option<OwnedSemaphorePermit>,
    bytes: usize,
    gauge: IntGauge,
}

impl Place {
    /// Takes more of the address's share, where that stays within a bound. Waits a little for it.
    async fn take(&mut self, more: Share, within: impl Fn(&Share) -> bool) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            let taken = {
                let mut share = self.crowd.shares.entry(self.address).or_default();
                let sum = Share {
                    coming: share.coming + more.coming,
                    judged: share.judged + more.judged,
                };
                let fits = within(&sum);
                if fits {
                    *share = sum;
                }
                fits
            };
            if taken {
                self.held.coming += more.coming;
                self.held.judged += more.judged;
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            sleep(PAUSE).await;
        }
    }

    /// Gives back some of what it has of the address's share.
    fn give_back(&mut self, Share { coming, judged }: Share) {
        self.held.coming -= coming;
        self.held.judged -= judged;
        if let Some(mut share) = self.crowd.shares.get_mut(&self.address) {
            share.coming -= coming;
            share.judged -= judged;
        }
        self.crowd.shares.remove_if(&self.address, |_, share| *share == Share::default());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back(self.held);
        self.gauge.dec();
    }
}

/// Who has one address of IPv6 has as many as a /64 has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crowd(connections: usize, manifests: usize, manifest_memory: usize) -> Arc<Crowd> {
        let caps = Caps { connections, manifests, manifest_memory };
        Arc::new(Crowd::new(caps, Arc::new(Metrics::new())))
    }

    #[tokio::test]
    async fn connections_are_counted_and_given_back() {
        let crowd = crowd(2, 1, PIECE);
        let (first, second) = (crowd.connect(), crowd.connect());
        assert!(first.is_some() && second.is_some() && crowd.connect().is_none());
        drop(first);
        assert!(crowd.connect().is_some());
        assert_eq!(crowd.metrics.connections().get(), 1);
    }

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[tokio::test(start_paused = true)]
    async fn a_place_is_waited_for_and_then_refused_and_what_comes_needs_none() {
        let crowd = crowd(1, 1, 2 * PIECE);
        let (mut place, mut other) = (crowd.arrival(A), crowd.arrival(B));
        let _many: Vec<_> = (0..100).map(|_| crowd.arrival(A)).collect();
        crowd.admit(&mut place).await.unwrap();
        assert_eq!(crowd.admit(&mut other).await, Err(Cap::Manifests));
        let waiting = tokio::spawn({
            let crowd = Arc::clone(&crowd);
            async move { crowd.admit(&mut other).await.is_ok() }
        });
        sleep(PATIENCE / 2).await;
        drop(place);
        assert!(waiting.await.unwrap());
        drop(_many);
        assert_eq!(crowd.metrics.manifests().get(), 0);
        assert!(crowd.shares.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_address_has_all_places() {
        let crowd = crowd(1, 8, 2 * PIECE);
        let mut places: Vec<_> = (0..7).map(|_| crowd.arrival(A)).collect();
        for place in &mut places[..6] {
            crowd.admit(place).await.unwrap();
        }
        assert_eq!(crowd.admit(&mut places[6]).await, Err(Cap::Manifests));
        crowd.admit(&mut crowd.arrival(B)).await.unwrap();
        drop(places.remove(0));
        crowd.admit(&mut places[5]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_shared_and_given_back() {
        let crowd = crowd(1, 2, 3 * PIECE);
        let longest = 3 * PIECE;
        let (mut one, mut two) = (crowd.arrival(A), crowd.arrival(B));
        crowd.grow(&mut one, 10, longest).await.unwrap();
        crowd.grow(&mut one, PIECE, longest).await.unwrap();
        crowd.grow(&mut one, 2 * PIECE, longest).await.unwrap();
        crowd.grow(&mut two, 1, longest).await.unwrap();
        assert_eq!(crowd.grow(&mut two, PIECE + 1, longest).await, Err(Cap::ManifestMemory));
        drop(one);
        crowd.grow(&mut two, 3 * PIECE, longest).await.unwrap();
        drop(two);
        assert_eq!(crowd.memory.available_permits(), 3);
        assert!(crowd.shares.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_not_come_whole_takes_no_more_than_a_share() {
        let crowd = crowd(1, 2, 16 * PIECE);
        let mut places: Vec<_> = (0..5).map(|_| crowd.arrival(A)).collect();
        for place in &mut places[..4] {
            crowd.grow(place, PIECE, PIECE).await.unwrap();
        }
        assert_eq!(crowd.grow(&mut places[4], 1, PIECE).await, Err(Cap::ManifestMemory));
        crowd.grow(&mut crowd.arrival(B), PIECE, PIECE).await.unwrap();
        // What has come whole is bounded by its place.
        crowd.admit(&mut places[0]).await.unwrap();
        crowd.grow(&mut places[4], 1, PIECE).await.unwrap();
    }

    #[test]
    fn addresses_are_told_apart_as_far_as_they_cost_something() {
        let network = |text: &str| super::network(text.parse().unwrap()).to_string();
        assert_eq!(network("10.0.0.1"), "10.0.0.1");
        assert_eq!(network("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(network("2001:db8:1:2:3::4"), "2001:db8:1:2::");
    }
}
