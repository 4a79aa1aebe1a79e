//! A registry that writes down every byte it gets, and how others would read them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::harness::listener;

/// Stands in an answer for a pause of 30 ms.
pub const PAUSE: &[u8] = b"{pause}";

/// The bytes of each connection so far.
type Log = Arc<Mutex<Vec<Vec<u8>>>>;

pub struct Recorder {
    pub address: String,
    log: Log,
}

impl Recorder {
    /// Answers each whole request with what `answer` makes of its first line; empty: not at all. What ends with
    /// an empty chunk is followed by the end of the connection.
    pub fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let (listener, address) = listener();
        let log = Log::default();
        let (answer, shared) = (Arc::new(answer), Arc::clone(&log));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let number = {
                    let mut log = shared.lock().unwrap();
                    log.push(Vec::new());
                    log.len() - 1
                };
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&shared));
                thread::spawn(move || serve(stream, number, &log, &*answer));
            }
        });
        Self { address, log }
    }

    /// The same once nothing more comes: a large body may be on its way still when its client is gone.
    pub fn take_settled(&self) -> Vec<Vec<u8>> {
        let count = || self.log.lock().unwrap().iter().map(Vec::len).sum::<usize>();
        let mut before = usize::MAX;
        loop {
            let now = count();
            if now == before {
                return self.take();
            }
            before = now;
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// What came on each connection since the last time.
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut log = self.log.lock().unwrap();
        log.iter_mut().map(std::mem::take).filter(|bytes| !bytes.is_empty()).collect()
    }
}

fn serve(mut stream: TcpStream, number: usize, log: &Log, answer: &dyn Fn(&str) -> Vec<u8>) {
    // A test is over long before.
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let (mut unread, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                log.lock().unwrap()[number].extend(&buffer[..read]);
                unread.extend(&buffer[..read]);
            }
        }
        while let Some((line, rest)) = Reading::STRICT.first(&unread) {
            unread = rest.to_vec();
            let answer = answer(&line);
            let closes = answer.windows(17).any(|part| part == b"Connection: close");
            let late = answer.windows(PAUSE.len()).position(|part| part == PAUSE);
            let (first, late) = match late {
                Some(at) => (&answer[..at], Some(&answer[at + PAUSE.len()..])),
                None => (&answer[..], None),
            };
            if stream.write_all(first).is_err() || closes {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            if let Some(late) = late {
                thread::sleep(Duration::from_millis(30));
                // The connection may be closed by then.
                let _ = stream.write_all(late);
            }
        }
    }
}

/// A way to read a stream of messages: servers and proxies differ in these.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// What ends a line besides CRLF.
    line: Line,
    /// A length counts even where there is a coding.
    length_first: bool,
    /// Of several lengths the last counts.
    last_length: bool,
    /// Any coding that holds the word is `chunked`.
    loose_coding: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Crlf,
    Lf,
    Cr,
}

impl Reading {
    pub const STRICT: Self =
        Self { line: Line::Crlf, length_first: false, last_length: false, loose_coding: false };

    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for line in [Line::Crlf, Line::Lf, Line::Cr] {
            for bits in 0..8 {
                let [length_first, last_length, loose_coding] =
                    [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0];
                all.push(Self { line, length_first, last_length, loose_coding });
            }
        }
        all
    }

    /// The first lines of all messages in these bytes. An unfinished message counts.
    pub fn messages(self, mut bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some((line, rest)) = self.first(bytes) {
            lines.push(line);
            bytes = rest;
        }
        if let Some((line, _)) = self.line(bytes) {
            lines.push(String::from_utf8_lossy(line).into_owned());
        }
        lines
    }

    /// The first line of a whole message, and what follows it.
    pub fn first(self, bytes: &[u8]) -> Option<(String, &[u8])> {
        let (first, mut rest) = self.line(bytes)?;
        let (mut lengths, mut chunked) = (Vec::new(), false);
        loop {
            let (line, after) = self.line(rest)?;
            rest = after;
            if line.is_empty() {
                break;
            }
            let text = String::from_utf8_lossy(line).to_ascii_lowercase();
            let Some((name, value)) = text.split_once(':') else { continue };
            match name.trim() {
                "content-length" => lengths.extend(value.split(',').map(|v| v.trim().to_owned())),
                "transfer-encoding" => {
                    chunked |=
                        value.trim() == "chunked" || self.loose_coding && value.contains("chunked");
                }
                _ => {}
            }
        }
        let length = if self.last_length { lengths.last() } else { lengths.first() };
        let length = length.and_then(|text| text.parse::<usize>().ok());
        let rest = match length {
            Some(length) if !chunked || self.length_first => rest.get(length..)?,
            _ if chunked => self.after_chunks(rest)?,
            _ => rest,
        };
        Some((String::from_utf8_lossy(first).into_owned(), rest))
    }

    fn after_chunks(self, mut bytes: &[u8]) -> Option<&[u8]> {
        loop {
            let (size, rest) = self.line(bytes)?;
            let size = String::from_utf8_lossy(size);
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size.trim_start_matches("0x"), 16).ok()?;
            bytes = rest;
            if size == 0 {
                loop {
                    let (line, rest) = self.line(bytes)?;
                    bytes = rest;
                    if line.is_empty() {
                        return Some(bytes);
                    }
                }
            }
            bytes = self.line(bytes.get(size..)?)?.1;
        }
    }

    fn line(self, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let crlf = bytes.windows(2).position(|pair| pair == b"\r\n").map(|at| (at, at + 2));
        let single = |end: u8| bytes.iter().position(|b| *b == end).map(|at| (at, at + 1));
        let other = match self.line {
            Line::Crlf => None,
            Line::Lf => single(b'\n'),
            Line::Cr => single(b'\r'),
        };
        // The carriage return of a CRLF is no end of its own.
        let (end, next) = match (crlf, other) {
            (Some(crlf), Some(other)) if other.0 >= crlf.0 => crlf,
            (crlf, other) => other.or(crlf)?,
        };
        Some((&bytes[..end], &bytes[next..]))
    }
}

#[test]
fn readings_differ_where_servers_do() {
    let read = |bytes: &str| -> Vec<usize> {
        let counts = Reading::all().into_iter().map(|r| r.messages(bytes.as_bytes()).len());
        let mut counts: Vec<_> = counts.collect();
        counts.sort_unstable();
        counts.dedup();
        counts
    };
    let plain = "PUT /a HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\n\r\n";
    assert_eq!(read(plain), [2]);
    let chunked =
        "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nT: u\r\n\r\n";
    assert_eq!(read(chunked), [1]);
    for two in [
        "PUT /a HTTP/1.1\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n",
        "PUT /a HTTP/1.1\r\nContent-Length: 25\r\nContent-Length: 0\r\n\r\nGET /b HTTP/1.1\r\nX: y\r\n\r\n",
        "PUT /a HTTP/1.1\r\nX: y\n\nGET /b HTTP/1.1\r\n\r\n",
        "PUT /a HTTP/1.1\r\nX: y\r\rGET /b HTTP/1.1\r\n\r\n",
        "PUT /a HTTP/1.1\r\nContent-Length: 30\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\nXX: y\r\n\r\n",
    ] {
        assert!(read(two).len() > 1, "{two:?}: {:?}", read(two));
    }
}
