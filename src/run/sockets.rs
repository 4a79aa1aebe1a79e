//! The sockets clients connect to. The process owns them beside pingora, so that a newer process
//! can be given them while connections go on arriving.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as PingoraService;
use pingora::services::listening::Service;

use super::Failure;

/// One for each address, listening.
pub(super) struct Sockets {
    list: Vec<(SocketAddr, TcpListener)>,
}

impl Sockets {
    /// Listens on these addresses: with a socket that was handed over, where there is one for it. The
    /// others of those are closed.
    pub fn open(
        addresses: impl IntoIterator<Item = SocketAddr>,
        mut inherited: Vec<TcpListener>,
    ) -> Result<Self, Failure> {
        let mut list = Vec::new();
        for address in addresses {
            let known = inherited.iter().position(|s| s.local_addr().ok() == Some(address));
            let socket = match known {
                Some(n) => Ok(inherited.swap_remove(n)),
                None => TcpListener::bind(address),
            };
            let socket = socket.and_then(|socket| {
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            let socket = socket.map_err(|error| {
                Failure::Start(format!("{address} can't be listened on: {error}"))
            })?;
            list.push((address, socket));
        }
        Ok(Self { list })
    }

    pub fn handles(&self) -> Vec<BorrowedFd<'_>> {
        self.list.iter().map(|(_, socket)| socket.as_fd()).collect()
    }

    /// The same sockets, as pingora wants to be given them. It closes its own when it stops.
    fn for_pingora(&self, addresses: &[SocketAddr]) -> Result<ListenFds, Failure> {
        let mut fds = Fds::new();
        for (address, socket) in self.list.iter().filter(|(a, _)| addresses.contains(a)) {
            let own = socket.try_clone();
            let own = own.map_err(|error| Failure::Start(format!("{address}: {error}")))?;
            fds.add(address.to_string(), own.into_raw_fd());
        }
        Ok(Arc::new(Mutex::new(fds)))
    }

    /// A service that accepts on these of the sockets.
    pub fn door<A>(
        &self,
        service: Service<A>,
        addresses: &[SocketAddr],
    ) -> Result<Door<A>, Failure> {
        Ok(Door { service, fds: self.for_pingora(addresses)?, opened: None })
    }
}

/// A service of pingora's on sockets of ours.
pub(super) struct Door<A> {
    service: Service<A>,
    fds: ListenFds,
    opened: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl<A> Door<A> {
    /// To be told when it opens: everything that could have failed at a start is past then.
    pub fn on_open(self, tell: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { opened: Some(Box::new(tell)), ..self }
    }
}

#[async_trait]
impl<A: ServerApp + Send + Sync + 'static> PingoraService for Door<A> {
    async fn start_service(
        &mut self,
        _of_the_server: Option<ListenFds>,
        shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        if let Some(tell) = self.opened.take() {
            tell();
        }
        let fds = Some(Arc::clone(&self.fds));
        PingoraService::start_service(&mut self.service, fds, shutdown, listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        PingoraService::name(&self.service)
    }

    fn threads(&self) -> Option<usize> {
        PingoraService::threads(&self.service)
    }
}
