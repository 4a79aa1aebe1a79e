//! A registry that answers with the bytes a test writes, and counts who comes.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::harness::{digest, listener};

/// A request's header, and the connection it came on.
pub struct Asked {
    pub method: String,
    pub target: String,
    /// The how manieth of its connection, from 1.
    pub number: usize,
    pub stream: TcpStream,
    headers: Vec<String>,
    reader: BufReader<TcpStream>,
}

impl Asked {
    /// The last component of the repository: what is asked for.
    pub fn what(&self) -> &str {
        let name = self.target.split("/blobs/").next().unwrap();
        let name = name.split("/manifests/").next().unwrap();
        &name[name.rfind('/').unwrap() + 1..]
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ String| {
            let (own, _) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then(|| own.len() + 1)
        };
        self.headers.iter().find_map(|line| value(line).map(|at| line[at..].trim()))
    }

    /// Of its body, where it has one.
    pub fn length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }

    pub fn expects(&self) -> bool {
        self.header("expect").is_some()
    }

    /// So much of its body, or what there is.
    pub fn read_body(&mut self, length: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(length);
        let _ = self.reader.by_ref().take(length as u64).read_to_end(&mut body);
        body
    }

    /// Whether all of it could be written. A HEAD has no body.
    pub fn say(&mut self, head: &str, body: &[u8]) -> bool {
        let body = if self.method == "HEAD" { b"" } else { body };
        let head = format!("HTTP/1.1 {head}\r\n\r\n");
        self.stream.write_all(head.as_bytes()).is_ok() && self.stream.write_all(body).is_ok()
    }
}

thread_local! {
    /// What this test's thread asks for: `blobs` or `manifests`.
    pub static KIND: Cell<&'static str> = const { Cell::new("blobs") };
}

/// The path of a blob, or a manifest, that is asked for by this name.
pub fn path(what: &str) -> String {
    format!("/v2/other/{what}/{}/{}", KIND.get(), digest(what.as_bytes()))
}

/// Bytes in which a shift by any number of them shows.
pub fn body(length: usize) -> Vec<u8> {
    static LONGEST: OnceLock<Vec<u8>> = OnceLock::new();
    let byte = |n: u64| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8;
    LONGEST.get_or_init(|| (0..64 << 20).map(byte).collect())[..length].to_vec()
}

#[derive(Default)]
pub struct Counts {
    pub connections: AtomicUsize,
    /// Connections that are over.
    pub ended: AtomicUsize,
    pub asked: AtomicUsize,
    /// The headers of each request.
    pub headers: Mutex<Vec<Vec<String>>>,
}

pub struct Source {
    pub address: String,
    pub counts: Arc<Counts>,
}

impl Source {
    /// Answers each request so; the connection ends where that gives false.
    pub fn start(answer: impl Fn(&mut Asked) -> bool + Send + Sync + 'static) -> Self {
        let (listener, address) = listener();
        let (counts, answer) = (Arc::<Counts>::default(), Arc::new(answer));
        let shared = Arc::clone(&counts);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (counts, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                thread::spawn(move || {
                    serve(stream, &counts, &*answer);
                    counts.ended.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, counts }
    }

    pub fn connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    pub fn open(&self) -> usize {
        self.connections() - self.counts.ended.load(Ordering::Relaxed)
    }

    pub fn asked(&self) -> usize {
        self.counts.asked.load(Ordering::Relaxed)
    }

    /// Sorted, names in lower case.
    pub fn last_headers(&self) -> Vec<String> {
        let all = self.counts.headers.lock().unwrap();
        let mut last = all.last().unwrap().clone();
        last.sort_by_key(|line| line.to_ascii_lowercase());
        last
    }
}

fn serve(stream: TcpStream, counts: &Counts, answer: &dyn Fn(&mut Asked) -> bool) {
    // A test is over long before.
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.set_nodelay(true).unwrap();
    let reader = BufReader::new(stream.try_clone().unwrap());
    let (method, target, headers) = Default::default();
    let mut asked = Asked { method, target, number: 0, stream, headers, reader };
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match asked.reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => lines.push(line.trim_end().to_owned()),
            }
        }
        let line = lines.remove(0);
        let mut words = line.split(' ').map(str::to_owned);
        (asked.method, asked.target) = (words.next().unwrap(), words.next().unwrap());
        asked.number += 1;
        counts.headers.lock().unwrap().push(lines.clone());
        counts.asked.fetch_add(1, Ordering::Relaxed);
        asked.headers = lines;
        if !answer(&mut asked) {
            return;
        }
    }
}
