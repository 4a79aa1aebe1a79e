//! Large chunks of an upload, from socket to socket: their sizes are read, what is in them is spliced, and
//! as many as are there go on as one.
//!
//! Docker sends layers in chunks of 32 KiB. To read them costs two copies; here each costs two or three
//! system calls more, which is less.

use std::io;

use bytes::{Buf as _, Bytes};
use tokio::task::yield_now;

use super::chunk_copy::{Beyond, Framing, InChunks, invalid};
use super::chunked::Malformed;
use super::pipe::{PIPE, Pipe};
use super::socket::{Sink, Socket, Stopped, in_time};
use super::splice::{Stride, is_unable};
use super::{Side, failed};

/// A chunk from which on it pays.
const LARGE: u64 = 16 * 1024;
/// What stands between two chunks, where there is nothing odd in it, and some more.
const WINDOW: usize = 32;

/// What is in a pipe: data, and nothing else.
#[derive(Default)]
pub struct Stitch {
    /// From the first large chunk on.
    pipe: Option<Pipe>,
    pub held: usize,
    /// The chunk at hand is.
    large: bool,
    line: Line,
    stride: Stride,
}

/// What stood between the last chunks: most clients' are all of one size.
#[derive(Default)]
struct Line {
    length: usize,
    /// The one before was as long.
    steady: bool,
}

impl Line {
    fn note(&mut self, length: usize) {
        *self = Self { length, steady: self.length == length };
    }

    /// How long the next one probably is.
    fn guess(&self) -> Option<usize> {
        (self.steady && (1..=WINDOW).contains(&self.length)).then_some(self.length)
    }
}

/// What is still to be sent around a chunk's data.
pub struct Outgoing {
    before: Bytes,
    after: &'static [u8],
}

impl Outgoing {
    /// For so many bytes, perhaps the body's last.
    pub fn new(size: usize, over: bool) -> Self {
        let framing = Framing::Chunks;
        Self { before: framing.before(size).into(), after: framing.after(size, over) }
    }

    fn is_sent(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }
}

/// What came of waiting for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// What was there of large chunks is held; it may have been nothing but a size.
    Large,
    /// What comes next is to be read in memory.
    Small,
    /// Nothing can be spliced here.
    Unable,
}

impl Stitch {
    /// Waits for more, and takes what is there of large chunks into the pipe, which is empty. Nothing is
    /// lost where it is left before its end.
    ///
    /// # Errors
    /// What became of the client's connection, or that this is no chunk.
    pub async fn gather(&mut self, source: &mut InChunks) -> pingora::Result<Gathered> {
        let Some(mut beyond) = source.beyond() else { return Ok(Gathered::Small) };
        let (socket, patience) = (beyond.socket, beyond.patience);
        let mut step = in_time(patience, socket.when_readable(|| self.step(&mut beyond))).await;
        loop {
            match step {
                Ok(Ok(Gathered::Large)) if !beyond.chunks.is_over() && self.held < PIPE => {}
                // What is held goes out first.
                Ok(Ok(_)) if self.held > 0 => return Ok(Gathered::Large),
                Ok(gathered) => {
                    self.large = false;
                    return gathered.map_err(invalid);
                }
                // Or the pipe is full. So nobody is told that the socket has nothing.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Gathered::Large);
                }
                Err(error) if is_unable(&error) && self.held == 0 => return Ok(Gathered::Unable),
                Err(error) => return Err(failed(&error, Side::Client)),
            }
            step = self.step(&mut beyond);
        }
    }

    /// One look at the socket.
    fn step(&mut self, beyond: &mut Beyond<'_>) -> io::Result<Result<Gathered, Malformed>> {
        if beyond.chunks.left() == 0 {
            return self.read_line(beyond);
        }
        let Beyond { socket, chunks, .. } = beyond;
        // The rest of a large one as well.
        self.large |= chunks.left() >= LARGE;
        if !self.large {
            return Ok(Ok(Gathered::Small));
        }
        let pipe = match &self.pipe {
            Some(pipe) => pipe,
            None => match Pipe::take().ok().flatten() {
                Some(pipe) => self.pipe.insert(pipe),
                // No descriptor is left for one, or the user's share of pipes is used up.
                None => return Ok(Ok(Gathered::Unable)),
            },
        };
        let most = usize::try_from(chunks.left()).unwrap_or(usize::MAX).min(PIPE - self.held);
        match pipe.fill(socket, most)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            taken => {
                self.held += taken;
                chunks.skip(taken as u64);
                Ok(Ok(Gathered::Large))
            }
        }
    }

    /// What stands between two chunks. Where its length can be guessed it is taken at once; otherwise it is
    /// looked at first, as what follows it is not to be taken.
    fn read_line(&mut self, beyond: &mut Beyond<'_>) -> io::Result<Result<Gathered, Malformed>> {
        let mut window = [0; WINDOW];
        let guess = self.line.guess();
        let seen = match guess {
            Some(length) => beyond.socket.receive_now(&mut window[..length])?,
            None => beyond.socket.peek_now(&mut window)?,
        };
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut ahead = *beyond.chunks;
        let read = match ahead.read_to_data(&window[..seen]) {
            Ok(read) => read,
            Err(malformed) => return Ok(Err(malformed)),
        };
        self.large = false;
        self.line.note(read);
        if guess.is_some() {
            *beyond.chunks = ahead;
            if read < seen {
                // A shorter one, or some of a longer one.
                beyond.leave(&window[read..seen]);
                return Ok(Ok(Gathered::Small));
            }
            return Ok(Ok(Gathered::Large));
        }
        if read == 0 {
            // Not whole yet, or longer than usual.
            return Ok(Ok(Gathered::Small));
        }
        beyond.socket.take_now(&mut window[..read])?;
        *beyond.chunks = ahead;
        Ok(Ok(Gathered::Large))
    }

    /// Sends what is held as this chunk. Where it stops, what is left of both still is to be sent.
    ///
    /// # Errors
    /// Where it could not be sent in time, or the other side speaks before it was.
    pub async fn send(&mut self, sink: &Sink, chunk: &mut Outgoing) -> Result<(), Stopped> {
        let held = self.held;
        while self.held > 0 || !chunk.is_sent() {
            let sent = tokio::select! {
                biased;
                sent = in_time(sink.patience, self.send_some(&sink.socket, chunk)) => sent,
                stopped = sink.interrupted() => return Err(stopped),
            };
            sent.map_err(Stopped::Sink)?;
        }
        if self.stride.is_over(held) {
            yield_now().await;
        }
        Ok(())
    }

    async fn send_some(&mut self, socket: &Socket, chunk: &mut Outgoing) -> io::Result<()> {
        if !chunk.before.is_empty() {
            let sent = socket.send(&chunk.before, true).await?;
            chunk.before.advance(sent);
        } else if let Some(pipe) = self.pipe.as_ref().filter(|_| self.held > 0) {
            self.held -= pipe.empty(socket, self.held, true).await?;
        } else {
            let sent = socket.send(chunk.after, false).await?;
            chunk.after = &chunk.after[sent..];
        }
        Ok(())
    }

    /// Its end: with something in it, it is closed.
    pub fn close(self) {
        if let (Some(pipe), 0) = (self.pipe, self.held) {
            pipe.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::super::chunk_copy::Source as _;
    use super::super::chunked::Chunks;
    use super::super::socket::Heed;
    use super::*;

    const AFTER: &[u8] = b"GET / HTTP/1.1\r\n";

    fn sink(socket: Socket) -> Sink {
        Sink { socket, patience: Duration::from_secs(60), heed: Heed::Answer }
    }

    /// A body in chunks of these sizes, and what follows it.
    fn in_chunks(data: &[u8], sizes: &[usize]) -> Vec<u8> {
        let (mut all, mut rest) = (Vec::new(), data);
        for size in sizes.iter().cycle() {
            let (chunk, others) = rest.split_at(rest.len().min(*size));
            if chunk.is_empty() {
                break;
            }
            all.extend(format!("{:x}\r\n", chunk.len()).bytes());
            all.extend(chunk);
            all.extend(b"\r\n");
            rest = others;
        }
        all.extend(b"0\r\n\r\n");
        all.extend(AFTER);
        all
    }

    /// What the registry gets of a body that comes in writes of this size; how much of it was spliced.
    async fn moved(data: &[u8], sizes: &[usize], write: usize) -> usize {
        let ((near, mut client), (registry, mut far)) =
            (Socket::pair().await, Socket::pair().await);
        let all = in_chunks(data, sizes);
        let sending = tokio::spawn(async move {
            for part in all.chunks(write) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            read
        });
        let (mut source, sink) = (InChunks::test(near), sink(registry));
        let (mut stitch, mut spliced) = (Stitch::default(), 0);
        while !source.is_over() {
            match stitch.gather(&mut source).await.unwrap() {
                Gathered::Large => {
                    spliced += stitch.held;
                    let mut chunk = Outgoing::new(stitch.held, source.is_over());
                    stitch.send(&sink, &mut chunk).await.unwrap();
                }
                Gathered::Small => {
                    source.next_in_memory().await;
                    let size = source.parts().map(<[u8]>::len).sum();
                    let before = Framing::Chunks.before(size);
                    let parts = source.parts().collect::<Vec<_>>().concat();
                    let after = Framing::Chunks.after(size, source.is_over());
                    let whole = [before.as_bytes(), &parts, after].concat();
                    sink.send(&whole, false).await.unwrap();
                }
                Gathered::Unable => panic!("this kernel has splice"),
            }
        }
        stitch.close();
        drop(sink);
        let (mut chunks, mut parts) = (Chunks::new(), Vec::new());
        let read = reading.await.unwrap();
        let (mut at, mut got) = (0, Vec::new());
        while !chunks.is_over() {
            parts.clear();
            let used = chunks.read(&read[at..], &mut parts).unwrap();
            assert!(used > 0, "no end of it");
            parts.iter().for_each(|part| got.extend_from_slice(&read[at..][part.clone()]));
            at += used;
        }
        assert!(at == read.len() && got == data, "{sizes:?} by {write}");
        // Not a byte of what follows was lost.
        let _client = sending.await.unwrap();
        let mut after = source.rest().to_vec();
        while after.len() < AFTER.len() {
            assert!(source.socket().receive(&mut after).await.unwrap() > 0);
        }
        assert_eq!(after, AFTER, "{sizes:?} by {write}");
        spliced
    }

    #[tokio::test]
    async fn chunks_of_all_sizes_arrive_as_they_were_and_large_ones_are_spliced() {
        let data: Vec<u8> = (0..3_000_000).map(|n: usize| (n * 31 % 251) as u8).collect();
        let large = 32 << 10;
        for (sizes, least) in [
            (&[large][..], data.len() - large),
            // After a small one as much as a buffer holds is read in memory.
            (&[large, 7, 300_000], data.len() / 8),
            (&[16_383], 0),
            (&[1_000_000, 1, 1, 1], data.len() / 4),
            (&[5_000_000], data.len() - large),
            // What stands between them is longer, and shorter, than it was.
            (&[large, large, large, large, 70_000], data.len() / 8),
            (&[70_000, 70_000, 70_000, 70_000, large], data.len() / 8),
            (&[70_000, 70_000, 70_000, 5], data.len() / 8),
        ] {
            for write in [usize::MAX, 4096, 10_007] {
                let moved = moved(&data, sizes, write);
                // Were a byte lost, somebody would wait for it.
                let spliced = tokio::time::timeout(Duration::from_secs(60), moved).await.unwrap();
                assert!(spliced >= least, "{sizes:?} by {write}: {spliced}");
            }
        }
        // Sizes, and the end, in parts.
        moved(&data[..70_000], &[large], 3).await;
        moved(&data[..5000], &[1, 2, 3], 1).await;
        moved(b"", &[1], 2).await;
    }

    #[tokio::test]
    async fn what_is_no_chunk_is_refused_and_an_early_end_is_one() {
        for (bad, count) in
            ["xx\r\n", "4000\n", "\r\n", "-1\r\n"].map(|bad| [(bad, 1), (bad, 4)]).concat()
        {
            let (near, mut client) = Socket::pair().await;
            let (mut source, mut stitch) = (InChunks::test(near), Stitch::default());
            // Lines of one length, too.
            let good = in_chunks(&vec![7; 40_000 * count], &[40_000]);
            client.write_all(&good[..40_008 * count]).await.unwrap();
            client.write_all(bad.as_bytes()).await.unwrap();
            let refused = async {
                loop {
                    if let Err(error) = stitch.gather(&mut source).await {
                        return error;
                    }
                    // Sent, as far as this test is concerned.
                    (stitch.pipe, stitch.held) = (None, 0);
                }
            };
            let error = refused.await;
            assert_eq!(stitch.line.steady, count > 1);
            assert_eq!(error.etype().as_str(), "InvalidChunk", "{bad:?}");
        }
        let (near, mut client) = Socket::pair().await;
        let (mut source, mut stitch) = (InChunks::test(near), Stitch::default());
        client.write_all(&in_chunks(&[7; 40_000], &[40_000])[..30_000]).await.unwrap();
        drop(client);
        let end = loop {
            match stitch.gather(&mut source).await {
                Ok(gathered) => assert_eq!(gathered, Gathered::Large),
                Err(error) => break error,
            }
            stitch.close();
            stitch = Stitch::default();
        };
        assert_ne!(end.etype().as_str(), "InvalidChunk");
    }

    #[tokio::test]
    async fn a_chunk_goes_on_where_the_registry_interrupted_it() {
        let ((near, mut client), (registry, mut far)) =
            (Socket::pair().await, Socket::pair().await);
        let (mut source, sink) = (InChunks::test(near), sink(registry));
        let mut stitch = Stitch::default();
        // More than the sockets hold, so that there is always something left to send.
        let data = vec![7; 40 << 20];
        let all = in_chunks(&data, &[1 << 20]);
        let sending = tokio::spawn(async move {
            client.write_all(&all).await.unwrap();
            client
        });
        far.write_all(b"early").await.unwrap();
        let reading = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            read
        });
        let mut spoken = 0;
        while !source.is_over() {
            stitch.gather(&mut source).await.unwrap();
            let mut chunk = Outgoing::new(stitch.held, source.is_over());
            while let Err(stopped) = stitch.send(&sink, &mut chunk).await {
                assert!(matches!(stopped, Stopped::Spoken), "{stopped:?}");
                spoken += 1;
                sink.socket.take_now(&mut [0; 5]).unwrap();
            }
        }
        drop((sink, sending.await.unwrap()));
        assert_eq!(spoken, 1);
        let (mut chunks, mut parts, mut at, mut got) = (Chunks::new(), Vec::new(), 0, 0);
        let read = reading.await.unwrap();
        while !chunks.is_over() {
            parts.clear();
            at += chunks.read(&read[at..], &mut parts).unwrap();
            got += parts.iter().map(ExactSizeIterator::len).sum::<usize>();
        }
        assert_eq!((at, got), (read.len(), data.len()));
    }
}
