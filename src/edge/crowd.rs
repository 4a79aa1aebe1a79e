//! How many may be here at once: connections, and manifests that are held until they are judged.
//! Who finds no place is told to come again; nothing grows without a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::timeout;

use crate::telemetry::Metrics;

/// How long a place is waited for: the usual push takes a fraction of it.
const PATIENCE: Duration = Duration::from_secs(1);
/// The memory of manifests is handed out in pieces of this size.
const PIECE: usize = 4096;

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
    metrics: Arc<Metrics>,
}

impl Crowd {
    pub fn new(caps: Caps, metrics: Arc<Metrics>) -> Self {
        Self {
            caps,
            connections: AtomicUsize::new(0),
            manifests: Arc::new(Semaphore::new(caps.manifests)),
            memory: Arc::new(Semaphore::new(caps.manifest_memory / PIECE)),
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

    /// A place for a manifest.
    pub async fn place(&self) -> Result<Place, Cap> {
        let one = acquire(&self.manifests, 1).await.ok_or_else(|| self.met(Cap::Manifests))?;
        let gauge = self.metrics.manifests().clone();
        gauge.inc();
        Ok(Place { _one: one, memory: None, bytes: 0, gauge })
    }

    /// Room for so many bytes in all.
    pub async fn grow(&self, place: &mut Place, bytes: usize) -> Result<(), Cap> {
        let missing = bytes.saturating_sub(place.bytes).div_ceil(PIECE);
        if missing == 0 {
            return Ok(());
        }
        let permits = acquire(&self.memory, missing).await;
        let permits = permits.ok_or_else(|| self.met(Cap::ManifestMemory))?;
        place.bytes += missing * PIECE;
        match &mut place.memory {
            Some(memory) => memory.merge(permits),
            None => place.memory = Some(permits),
        }
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
    _one: OwnedSemaphorePermit,
    memory: Option<OwnedSemaphorePermit>,
    bytes: usize,
    gauge: IntGauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gauge.dec();
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

    #[tokio::test(start_paused = true)]
    async fn a_place_is_waited_for_and_then_refused() {
        let crowd = crowd(1, 1, 2 * PIECE);
        let place = crowd.place().await.unwrap();
        assert_eq!(crowd.place().await.err(), Some(Cap::Manifests));
        let waiting = tokio::spawn({
            let crowd = Arc::clone(&crowd);
            async move { crowd.place().await.is_ok() }
        });
        tokio::time::sleep(PATIENCE / 2).await;
        drop(place);
        assert!(waiting.await.unwrap());
        assert_eq!(crowd.metrics.manifests().get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_shared_and_given_back() {
        let crowd = crowd(1, 2, 3 * PIECE);
        let (mut one, mut two) = (crowd.place().await.unwrap(), crowd.place().await.unwrap());
        crowd.grow(&mut one, 10).await.unwrap();
        crowd.grow(&mut one, PIECE).await.unwrap();
        crowd.grow(&mut one, 2 * PIECE).await.unwrap();
        crowd.grow(&mut two, 1).await.unwrap();
        assert_eq!(crowd.grow(&mut two, PIECE + 1).await, Err(Cap::ManifestMemory));
        drop(one);
        crowd.grow(&mut two, 3 * PIECE).await.unwrap();
        drop(two);
        assert_eq!(crowd.memory.available_permits(), 3);
    }
}
