//! A TCP proxy that fails: it delays, cuts before or after a request was forwarded, closes one half,
//! delivers requests late, and delivers them twice. What it does is drawn from a seed.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::Duration;

use fastrand::Rng;

use crate::harness::{eventually, listener};

/// Nothing that answers at all takes longer; what is frozen is given up.
const ANSWER: Duration = Duration::from_secs(15);

/// What happens to one message on its way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Delay(Duration),
    /// The server never hears of it.
    CutBefore,
    /// The server has answered, and nobody hears of it.
    CutAfter,
    /// The connection is cut, and the request delivered after this time all the same.
    CutAndLate(Duration),
    /// No answer comes, and the request is delivered after this time.
    HangAndLate(Duration),
    /// Answered as usual, and delivered once more after this time.
    Twice(Duration),
    /// The server is told that nothing more will come.
    HalfCloseServer,
    /// The client gets its answer, and is told that nothing more will come.
    HalfCloseClient,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::CutBefore => "cut-before",
            Self::CutAfter => "cut-after",
            Self::CutAndLate(_) => "cut-and-late",
            Self::HangAndLate(_) => "hang-and-late",
            Self::Twice(_) => "twice",
            Self::HalfCloseServer => "half-close-server",
            Self::HalfCloseClient => "half-close-client",
        }
    }

    fn drawn(rng: &mut Rng, kind: Kind, line: &str) -> Option<Self> {
        let delay = Duration::from_millis(rng.u64(2..200));
        let late = Duration::from_millis(rng.u64(50..4000));
        let http = kind == Kind::Http;
        let repeatable = is_repeatable(line);
        // What the protocol must survive above all.
        let writes_a_tag = line.starts_with("PUT ") && repeatable && !line.contains("/sha256:");
        match rng.u32(0..100) {
            0..=11 => Some(Self::Delay(delay)),
            12 => Some(Self::CutBefore),
            13 => Some(Self::CutAfter),
            14 => Some(Self::HalfCloseServer),
            15 if http => Some(Self::HalfCloseClient),
            16 if repeatable => Some(Self::CutAndLate(late)),
            17 if repeatable => Some(Self::HangAndLate(late)),
            18..=24 if repeatable => Some(Self::Twice(late)),
            25..=32 if writes_a_tag => Some(Self::CutAndLate(late)),
            33..=40 if writes_a_tag => Some(Self::HangAndLate(late)),
            41..=50 if writes_a_tag => Some(Self::Twice(late)),
            _ => None,
        }
    }
}

/// What a proxy knows of what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests and answers.
    Http,
    /// What is read at once counts as one message.
    Bytes,
}

/// What happens to a request with this first line, or to these bytes.
type Script = Box<dyn Fn(&str) -> Option<Fault> + Send + Sync>;

pub struct FaultProxy {
    pub address: String,
    shared: Arc<Shared>,
}

struct Shared {
    kind: Kind,
    seed: u64,
    target: Mutex<String>,
    calm: AtomicBool,
    script: Mutex<Option<Script>>,
    /// Requests to be delivered, or delivered once more, whose answer has not come.
    late: AtomicUsize,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    closed: AtomicBool,
}

impl FaultProxy {
    pub fn start(kind: Kind, target: &str, seed: u64) -> Self {
        let (listener, address) = listener();
        let shared = Arc::new(Shared {
            kind,
            seed,
            target: Mutex::new(target.to_owned()),
            calm: AtomicBool::new(true),
            script: Mutex::default(),
            late: AtomicUsize::new(0),
            counts: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    /// Without faults, or with them.
    pub fn calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::Relaxed);
    }

    /// Where new connections go.
    pub fn aim(&self, target: &str) {
        *self.shared.target.lock().unwrap() = target.to_owned();
    }

    /// Faults by the first line of a request, or by what is read at once, instead of chance.
    pub fn script(&self, script: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Waits until all that is late has been delivered.
    pub fn wait_for_the_late(&self) {
        eventually("what is late", || self.shared.late.load(Ordering::SeqCst) == 0);
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.counts.lock().unwrap().clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // The listener wakes and goes.
        let _ = TcpStream::connect(&self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, client) in listener.incoming().enumerate() {
        if shared.closed.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = Arc::clone(shared);
        // Each connection draws from a seed of its own.
        let rng = Rng::with_seed(shared.seed.wrapping_add(number as u64));
        thread::spawn(move || {
            // An error of either side ends the connection, as it would without a proxy.
            let _ = match shared.kind {
                Kind::Http => shared.http(client, rng),
                Kind::Bytes => shared.bytes(client, rng),
            };
        });
    }
}

impl Shared {
    fn connect(&self) -> io::Result<TcpStream> {
        let target = self.target.lock().unwrap().clone();
        let stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn fault(&self, rng: &mut Rng, line: &str) -> Option<Fault> {
        let fault = match &*self.script.lock().unwrap() {
            Some(script) => script(line),
            // Chance is drawn in any case, so that a calm time does not shift what follows.
            None => {
                let line = if self.kind == Kind::Http { line } else { "" };
                Fault::drawn(rng, self.kind, line).filter(|_| !self.calm.load(Ordering::Relaxed))
            }
        };
        if let Some(fault) = fault {
            *self.counts.lock().unwrap().entry(fault.name()).or_default() += 1;
        }
        fault
    }

    fn http(self: &Arc<Self>, mut client: TcpStream, mut rng: Rng) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut requests = BufReader::new(client.try_clone()?);
        let mut server: Option<BufReader<TcpStream>> = None;
        loop {
            let Some(request) = message(&mut requests, Of::Client)? else { return Ok(()) };
            let line = first_line(&request);
            let fault = self.fault(&mut rng, &line);
            match fault {
                Some(Fault::Delay(delay)) => pause(delay),
                Some(Fault::CutBefore) => return Ok(()),
                Some(Fault::CutAndLate(delay)) => {
                    self.deliver_later(request, delay);
                    return Ok(());
                }
                Some(Fault::HangAndLate(delay)) => {
                    self.deliver_later(request, delay);
                    client.set_read_timeout(Some(ANSWER))?;
                    // Until the client has had enough.
                    let _ = client.read(&mut [0]);
                    return Ok(());
                }
                _ => {}
            }
            if server.is_none() {
                server = Some(BufReader::new(self.connect()?));
            }
            let Some(answers) = &mut server else { return Ok(()) };
            answers.get_mut().write_all(&request)?;
            if fault == Some(Fault::HalfCloseServer) {
                answers.get_ref().shutdown(Shutdown::Write)?;
            }
            answers.get_ref().set_read_timeout(Some(ANSWER))?;
            let of = Of::Server { head: line.starts_with("HEAD ") };
            let Some(answer) = message(answers, of)? else { return Ok(()) };
            match fault {
                Some(Fault::CutAfter) => return Ok(()),
                // What a server has refused for good is not sent again: a load balancer that does
                // is the one that `upstream.abort = "never"` is for.
                Some(Fault::Twice(delay)) if !answer.starts_with(b"HTTP/1.1 4") => {
                    self.deliver_later(request, delay);
                }
                _ => {}
            }
            client.write_all(&answer)?;
            match fault {
                Some(Fault::HalfCloseServer) => return Ok(()),
                Some(Fault::HalfCloseClient) => {
                    client.shutdown(Shutdown::Write)?;
                    client.set_read_timeout(Some(ANSWER))?;
                    let _ = client.read(&mut [0]);
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    /// Delivers a request on a connection of its own; nobody hears the answer.
    fn deliver_later(self: &Arc<Self>, request: Vec<u8>, delay: Duration) {
        let shared = Arc::clone(self);
        shared.late.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            pause(delay);
            let deliver = || -> io::Result<()> {
                let mut server = shared.connect()?;
                server.write_all(&request)?;
                server.set_read_timeout(Some(ANSWER))?;
                let head = request.starts_with(b"HEAD ");
                message(&mut BufReader::new(server), Of::Server { head }).map(drop)
            };
            // A server that is down has missed it.
            let _ = deliver();
            shared.late.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn bytes(self: &Arc<Self>, mut client: TcpStream, mut rng: Rng) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut server = self.connect()?;
        let cut = Arc::new(AtomicBool::new(false));
        let back = thread::spawn({
            let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
            let cut = Arc::clone(&cut);
            move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(n @ 1..) = from.read(&mut buffer) {
                    if cut.load(Ordering::SeqCst) || to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            }
        });
        let mut buffer = [0; 16 * 1024];
        while let Ok(n @ 1..) = client.read(&mut buffer) {
            let fault = self.fault(&mut rng, &String::from_utf8_lossy(&buffer[..n]));
            match fault {
                Some(Fault::Delay(delay)) => pause(delay),
                Some(Fault::CutBefore) => break,
                Some(Fault::CutAfter) => cut.store(true, Ordering::SeqCst),
                _ => {}
            }
            if server.write_all(&buffer[..n]).is_err() {
                break;
            }
            if fault == Some(Fault::HalfCloseServer) {
                server.shutdown(Shutdown::Write)?;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        let _ = back.join();
        Ok(())
    }
}

pub fn pause(time: Duration) {
    sleep(time);
}

/// Reads and manifest writes; an upload goes on where the last piece ended.
fn is_repeatable(line: &str) -> bool {
    let method = line.split(' ').next().unwrap_or_default();
    matches!(method, "GET" | "HEAD") || method == "PUT" && line.contains("/manifests/")
}

fn first_line(request: &[u8]) -> String {
    let end = request.iter().position(|b| *b == b'\r').unwrap_or(request.len());
    String::from_utf8_lossy(&request[..end]).into_owned()
}

/// Whose message it is.
#[derive(Clone, Copy)]
pub enum Of {
    Client,
    Server { head: bool },
}

/// One whole message as it came, or `None` where the sender has closed before it.
pub fn message(reader: &mut impl BufRead, of: Of) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        let (mut length, mut chunked) = (None, false);
        loop {
            let line = bytes.len();
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                let whole = if start == line { Ok(None) } else { Err(cut()) };
                return whole;
            }
            let text = String::from_utf8_lossy(&bytes[line..]).trim_end().to_ascii_lowercase();
            if text.is_empty() {
                break;
            }
            if let Some(value) = text.strip_prefix("content-length:") {
                length = value.trim().parse::<u64>().ok();
            }
            chunked |= text.starts_with("transfer-encoding:") && text.ends_with("chunked");
        }
        let status = || String::from_utf8_lossy(&bytes[start..]).split(' ').nth(1)?.parse().ok();
        match of {
            Of::Server { head } => match status().unwrap_or(0) {
                100..=199 => continue,
                204 | 304 => return Ok(Some(bytes)),
                _ if head => return Ok(Some(bytes)),
                _ => {}
            },
            Of::Client if length.is_none() && !chunked => return Ok(Some(bytes)),
            Of::Client => {}
        }
        if chunked {
            loop {
                let at = bytes.len();
                reader.read_until(b'\n', &mut bytes)?;
                let size = String::from_utf8_lossy(&bytes[at..]).trim().to_owned();
                let size = u64::from_str_radix(&size, 16).map_err(|_| cut())?;
                exactly(reader, size + 2, &mut bytes)?;
                if size == 0 {
                    return Ok(Some(bytes));
                }
            }
        }
        match length {
            Some(length) => exactly(reader, length, &mut bytes)?,
            None => drop(reader.read_to_end(&mut bytes)?),
        }
        return Ok(Some(bytes));
    }
}

fn exactly(reader: &mut impl BufRead, count: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    match reader.take(count).read_to_end(bytes)? as u64 == count {
        true => Ok(()),
        false => Err(cut()),
    }
}

fn cut() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

#[test]
fn messages_are_taken_whole() {
    let request = b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET /y HTTP/1.1\r\n\r\n";
    let mut reader = BufReader::new(&request[..]);
    let first = message(&mut reader, Of::Client).unwrap().unwrap();
    assert!(first.ends_with(b"\r\n\r\nabc"));
    assert_eq!(first_line(&first), "PUT /x HTTP/1.1");
    assert!(message(&mut reader, Of::Client).unwrap().unwrap().starts_with(b"GET /y"));
    assert_eq!(message(&mut reader, Of::Client).unwrap(), None);

    let answers = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\n\r\nrest";
    let mut reader = BufReader::new(&answers[..]);
    let mut next = |head| message(&mut reader, Of::Server { head }).unwrap().unwrap();
    assert!(next(false).ends_with(b"0\r\n\r\n"));
    assert!(next(true).ends_with(b"9\r\n\r\n"));
    assert!(next(false).ends_with(b"rest"));
    let short = b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nab";
    assert!(message(&mut BufReader::new(&short[..]), Of::Client).is_err());
}
