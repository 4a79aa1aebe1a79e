//! The sockets clients connect to. The process owns them beside pingora, so that a newer process
//! can be given them while connections go on arriving.
//!
//! Each lane has its own where it can be: the kernel deals connections out among those of one address
//! (`SO_REUSEPORT`), and wakes only the lane that gets one. With one for all, a lane that is quick to
//! wake takes all that arrive together.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as PingoraService;
use pingora::services::listening::Service;
use rustix::net::sockopt::{set_socket_reuseaddr, set_socket_reuseport};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use super::Failure;

/// Of all addresses together. A newer process is given them in one message, which takes 128.
const MOST: usize = 96;
/// Connections of one socket that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Some for each address, listening.
pub(super) struct Sockets {
    list: Vec<(SocketAddr, TcpListener)>,
}

impl Sockets {
    /// Listens on these addresses, with so many sockets for each, or as many as there is room for: with
    /// those that were handed over, where there are some for it. The others of those are closed.
    pub fn open(
        addresses: &[(SocketAddr, usize)],
        mut inherited: Vec<TcpListener>,
    ) -> Result<Self, Failure> {
        let mut list = Vec::new();
        for &(address, wanted) in addresses {
            let of_it = |socket: &mut TcpListener| socket.local_addr().ok() == Some(address);
            // All of them, however many are wanted: connections may wait in each.
            let mut sockets: Vec<_> = inherited.extract_if(.., of_it).collect();
            let wanted = wanted.min(MOST / addresses.len()).max(1);
            while sockets.len() < wanted {
                match open_one(address, &sockets) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) if sockets.is_empty() => {
                        let text = format!("{address} can't be listened on: {error}");
                        return Err(Failure::Start(text));
                    }
                    Err(error) => {
                        let text = "threads share a listening socket: no other can be opened";
                        tracing::warn!(%address, %error, text);
                        break;
                    }
                }
            }
            list.extend(sockets.into_iter().map(|socket| (address, socket)));
        }
        Ok(Self { list })
    }

    pub fn handles(&self) -> Vec<BorrowedFd<'_>> {
        self.list.iter().map(|(_, socket)| socket.as_fd()).collect()
    }

    fn of(&self, address: SocketAddr) -> impl Iterator<Item = &TcpListener> {
        self.list.iter().filter(move |(own, _)| *own == address).map(|(_, socket)| socket)
    }

    /// How many lanes these addresses need, so that no socket is without one.
    pub fn most(&self, addresses: &[SocketAddr]) -> usize {
        addresses.iter().map(|address| self.of(*address).count()).max().unwrap_or(0)
    }

    /// A lane's sockets, as pingora wants to be given them. It closes its own when it stops.
    fn for_pingora(&self, addresses: &[SocketAddr], lane: usize) -> Result<ListenFds, Failure> {
        let mut fds = Fds::new();
        for address in addresses {
            let count = self.of(*address).count().max(1);
            let Some(socket) = self.of(*address).nth(lane % count) else { continue };
            let own = socket.try_clone();
            let own = own.map_err(|error| Failure::Start(format!("{address}: {error}")))?;
            fds.add(address.to_string(), own.into_raw_fd());
        }
        Ok(Arc::new(Mutex::new(fds)))
    }

    /// A service that accepts on these of the sockets, in this lane.
    pub fn door<A>(
        &self,
        service: Service<A>,
        addresses: &[SocketAddr],
        lane: usize,
    ) -> Result<Door<A>, Failure> {
        Ok(Door { service, fds: self.for_pingora(addresses, lane)?, opened: None })
    }
}

/// Another socket of this address.
fn open_one(address: SocketAddr, others: &[TcpListener]) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    set_socket_reuseaddr(&socket, true)?;
    // The first one is bound without: where another process has the address, it must not be shared.
    match others {
        [] => {
            bind(&socket, &address)?;
            set_socket_reuseport(&socket, true)?;
        }
        others => {
            for other in others {
                set_socket_reuseport(other, true)?;
            }
            set_socket_reuseport(&socket, true)?;
            bind(&socket, &address)?;
        }
    }
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
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

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    /// A free address of the loopback.
    fn free() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn open(address: SocketAddr, wanted: usize, inherited: Vec<TcpListener>) -> Sockets {
        Sockets::open(&[(address, wanted)], inherited).unwrap()
    }

    #[test]
    fn connections_are_dealt_out_among_an_addresss_sockets() {
        let address = free();
        let sockets = open(address, 3, Vec::new());
        let _kept: Vec<_> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
        for socket in sockets.of(address) {
            let mut accepted = 0;
            while socket.accept().is_ok() {
                accepted += 1;
            }
            assert!((1..59).contains(&accepted), "{accepted} of 60");
        }
    }

    #[test]
    fn an_address_that_is_taken_is_not_shared() {
        let address = free();
        for wanted in [1, 2] {
            let _sockets = open(address, wanted, Vec::new());
            let failure = Sockets::open(&[(address, 2)], Vec::new()).err().unwrap();
            assert!(failure.to_string().contains("can't be listened on"), "{failure}");
        }
        let _other = TcpListener::bind(address).unwrap();
        assert!(Sockets::open(&[(address, 2)], Vec::new()).is_err());
    }

    #[test]
    fn what_was_handed_over_stays_open_and_more_are_opened_where_more_are_wanted() {
        let (address, gone) = (free(), free());
        for (had, wanted) in [(1, 3), (3, 1), (2, 2)] {
            let older = open(address, had, Vec::new());
            let mut handed: Vec<_> =
                older.list.iter().map(|(_, socket)| socket.try_clone().unwrap()).collect();
            handed.push(TcpListener::bind(gone).unwrap());
            let newer = open(address, wanted, handed);
            assert_eq!(newer.most(&[address, gone]), had.max(wanted));
            assert!(TcpStream::connect(gone).is_err(), "closed");
            drop(older);
            let _kept: Vec<_> = (0..30).map(|_| TcpStream::connect(address).unwrap()).collect();
        }
        // One that a process without lanes has bound.
        let older = TcpListener::bind(address).unwrap();
        assert_eq!(open(address, 2, vec![older]).most(&[address]), 2);
    }

    #[test]
    fn there_are_no_more_than_one_message_takes() {
        let addresses: Vec<_> = (0..3).map(|_| (free(), 1000)).collect();
        let sockets = Sockets::open(&addresses, Vec::new()).unwrap();
        assert_eq!(sockets.handles().len(), MOST);
    }
}
