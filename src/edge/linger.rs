//! The ends of connections of HTTP/2, which their last bytes are still on the way to.
//!
//! An answer has ended for the proxy when the kernel has the last of it; a slow client may be megabytes
//! behind. Over HTTP/2 it goes on telling how much more it takes, and a connection that was closed
//! answers that with a reset, which throws away what has not arrived. So a connection is held until its
//! client has it all, and what it says meanwhile is read.
//!
//! The kernel tells what a client has not got from Linux 6.2 on, in the form that pingora reads. Older
//! ones don't; there the client's silence has to tell.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use pingora::protocols::Stream;
use pingora::protocols::l4::ext::get_tcp_info;
use rustix::net::{Shutdown, shutdown};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::CLIENT_WRITE;
use super::blobs::second_descriptor;

/// How long a client may take for what is in the kernel.
const LONGEST: Duration = Duration::from_secs(600);
/// Between two looks at what it has got.
const LOOK: Duration = Duration::from_millis(100);
/// Who says nothing for so long has it all, where the kernel does not tell.
const SILENCE: Duration = Duration::from_secs(10);
/// What it may say meanwhile: it has nothing to say but how much more it takes.
const MOST_SAID: usize = 1 << 20;

/// The connections of HTTP/2 that there are.
#[derive(Default)]
pub struct Deliveries(DashMap<RawFd, Arc<OwnedFd>>);

impl Deliveries {
    /// Holds a connection that somebody else is going to close.
    pub fn hold(self: &Arc<Self>, stream: &Stream) -> Held {
        // Without a descriptor to spare it ends as it does.
        let descriptor = second_descriptor(stream).ok().map(Arc::new);
        if let Some(descriptor) = &descriptor {
            self.0.insert(descriptor.as_raw_fd(), Arc::clone(descriptor));
        }
        Held { deliveries: Arc::clone(self), descriptor }
    }

    /// What was written to clients that they have not got, in bytes and packets. `None` where the
    /// kernel does not tell.
    pub fn on_the_way(&self) -> Option<u64> {
        self.0.iter().map(|descriptor| on_the_way(&descriptor)).sum()
    }
}

/// One of them.
pub struct Held {
    deliveries: Arc<Deliveries>,
    descriptor: Option<Arc<OwnedFd>>,
}

impl Held {
    /// To be called when the other owner is done with it.
    pub async fn linger(self) {
        let Some(descriptor) = &self.descriptor else { return };
        // Where it can't be waited for, or the client has left, it ends at once.
        let _ = timeout(LONGEST, linger(descriptor, on_the_way, CLIENT_WRITE)).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(descriptor) = &self.descriptor {
            self.deliveries.0.remove(&descriptor.as_raw_fd());
        }
    }
}

fn on_the_way(descriptor: &OwnedFd) -> Option<u64> {
    let info = get_tcp_info(descriptor.as_raw_fd()).ok()?;
    Some(u64::from(info.tcpi_unacked) + u64::from(info.tcpi_notsent_bytes))
}

/// Waits until the other side has it all, as long as it takes some now and then.
async fn linger(
    descriptor: &OwnedFd,
    on_the_way: impl Fn(&OwnedFd) -> Option<u64>,
    stalled: Duration,
) -> io::Result<()> {
    shutdown(descriptor, Shutdown::Write)?;
    let mut connection = TcpStream::from_std(descriptor.try_clone()?.into())?;
    let (mut dropped, mut said) = (vec![0; 4096], 0);
    let (mut least, mut moved) = (u64::MAX, Instant::now());
    while said <= MOST_SAID && moved.elapsed() < stalled {
        match on_the_way(descriptor) {
            Some(0) => break,
            // Only what it takes counts, or a word now and then would do.
            Some(left) if left < least => (least, moved) = (left, Instant::now()),
            _ => {}
        }
        let patience = if least == u64::MAX { SILENCE.min(stalled) } else { LOOK };
        match timeout(patience, connection.read(&mut dropped)).await {
            Ok(Ok(0)) => break,
            Ok(read) => {
                said += read?;
                if least == u64::MAX {
                    moved = Instant::now();
                }
            }
            Err(_silent) if least == u64::MAX => break,
            Err(_silent) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as Tcp;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Box::new(Tcp::from(listener.accept().await.unwrap().0)), far)
    }

    /// Writes as much as the kernel takes, which is more than the other side's takes.
    async fn fill(stream: &mut Stream) -> usize {
        let piece = vec![7; 64 * 1024];
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_millis(100), stream.write(&piece)).await {
            sent += written.unwrap();
        }
        sent
    }

    /// As older kernels do.
    fn untold(_: &OwnedFd) -> Option<u64> {
        None
    }

    #[tokio::test]
    async fn what_was_written_arrives_though_the_client_goes_on_talking() {
        for told in [on_the_way, untold] {
            let deliveries = Arc::new(Deliveries::default());
            let (mut stream, mut far) = pair().await;
            let held = deliveries.hold(&stream);
            let sent = fill(&mut stream).await;
            assert!(deliveries.on_the_way().is_some_and(|left| left > 0), "the test's own kernel");
            drop(stream);
            let lingering = tokio::spawn(async move {
                linger(held.descriptor.as_ref().unwrap(), told, CLIENT_WRITE).await.unwrap();
            });
            let mut piece = vec![0; 256 * 1024];
            let mut read = 0;
            loop {
                // One word after its end may be too late to be heard.
                if read < sent {
                    far.write_all(b"more, please").await.unwrap();
                }
                match far.read(&mut piece).await.unwrap() {
                    0 => break,
                    count => read += count,
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(read, sent);
            drop(far);
            lingering.await.unwrap();
            assert_eq!((deliveries.on_the_way(), deliveries.0.len()), (Some(0), 0));
        }
    }

    #[tokio::test]
    async fn a_client_that_has_it_all_is_not_waited_for() {
        for (told, stalled) in [(on_the_way as fn(&OwnedFd) -> _, 3600), (untold, 1)] {
            let (mut stream, mut far) = pair().await;
            let held = Arc::new(Deliveries::default()).hold(&stream);
            stream.write_all(b"all").await.unwrap();
            stream.flush().await.unwrap();
            drop(stream);
            // It neither reads nor closes.
            let start = Instant::now();
            let descriptor = held.descriptor.as_ref().unwrap();
            linger(descriptor, told, Duration::from_secs(stalled)).await.unwrap();
            assert!(start.elapsed() < Duration::from_secs(10));
            assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 3);
        }
    }

    #[tokio::test]
    async fn one_that_takes_nothing_or_only_talks_is_not_waited_for_for_ever() {
        for (talks, told) in
            [(false, on_the_way as fn(&OwnedFd) -> _), (true, on_the_way), (true, untold)]
        {
            let (mut stream, mut far) = pair().await;
            let held = Arc::new(Deliveries::default()).hold(&stream);
            fill(&mut stream).await;
            drop(stream);
            let stalled = Duration::from_secs(if talks { 3600 } else { 1 });
            let talking = tokio::spawn(async move {
                while talks && far.write_all(&[0; 64 * 1024]).await.is_ok() {}
                // Until it has been given up.
                std::future::pending::<()>().await;
            });
            let descriptor = held.descriptor.as_ref().unwrap();
            let lingering = linger(descriptor, told, stalled);
            timeout(Duration::from_secs(60), lingering).await.unwrap().unwrap();
            assert!(on_the_way(descriptor).unwrap() > 0, "{talks}");
            talking.abort();
        }
    }
}
