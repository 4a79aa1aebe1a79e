//! What is on its way to clients over HTTP/2.
//!
//! An answer has ended for the proxy when the kernel, or HTTP/2's own buffer, has the last of it; a slow
//! client may be megabytes behind. Over HTTP/2 it goes on telling how much more it takes, and the
//! connection of a process that has ended answers that with a reset, which throws away what has not
//! arrived. So a stop has to know. Before it is asked to stop, HTTP/2 itself sees to it: a connection is
//! closed only when its client has answered the last word.
//!
//! The kernel tells what a client has not got from Linux 6.2 on, in the form that pingora reads.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use dashmap::DashMap;
use pingora::protocols::Stream;
use pingora::protocols::l4::ext::get_tcp_info;

use super::blobs::second_descriptor;

/// The connections of HTTP/2 that there are.
#[derive(Default)]
pub struct Deliveries(DashMap<RawFd, OwnedFd>);

impl Deliveries {
    /// Knows of a connection for as long as what is returned lives. One for which the process has no
    /// descriptor is not waited for.
    pub fn watch(self: &Arc<Self>, stream: &Stream) -> Watched {
        let descriptor = second_descriptor(stream).ok().map(|descriptor| {
            let number = descriptor.as_raw_fd();
            self.0.insert(number, descriptor);
            number
        });
        Watched { deliveries: Arc::clone(self), descriptor }
    }

    /// What was written to clients that they have not got, in bytes and packets. `None` where the
    /// kernel does not tell.
    pub fn on_the_way(&self) -> Option<u64> {
        self.0.iter().map(|descriptor| on_the_way(&descriptor)).sum()
    }
}

/// A connection's place among them.
pub struct Watched {
    deliveries: Arc<Deliveries>,
    descriptor: Option<RawFd>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(descriptor) = self.descriptor {
            self.deliveries.0.remove(&descriptor);
        }
    }
}

fn on_the_way(descriptor: &OwnedFd) -> Option<u64> {
    let info = get_tcp_info(descriptor.as_raw_fd()).ok()?;
    Some(u64::from(info.tcpi_unacked) + u64::from(info.tcpi_notsent_bytes))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pingora::protocols::l4::stream::Stream as Tcp;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{sleep, timeout};

    use super::*;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Box::new(Tcp::from(listener.accept().await.unwrap().0)), far)
    }

    #[tokio::test]
    async fn what_clients_have_not_got_is_known_until_they_have_it() {
        let deliveries = Arc::new(Deliveries::default());
        let (mut stream, mut far) = pair().await;
        let (idle, _other) = pair().await;
        let watched = [&stream, &idle].map(|stream| deliveries.watch(stream));
        assert_eq!(deliveries.on_the_way(), Some(0));
        // As much as the kernel takes, which is more than the other side's takes.
        let piece = vec![7; 64 * 1024];
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_millis(100), stream.write(&piece)).await {
            sent += written.unwrap();
        }
        assert!(deliveries.on_the_way() > Some(1000));
        far.read_exact(&mut vec![0; sent]).await.unwrap();
        while deliveries.on_the_way() != Some(0) {
            sleep(Duration::from_millis(5)).await;
        }
        drop(watched);
        assert!(deliveries.0.is_empty());
    }
}
