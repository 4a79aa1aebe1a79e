//! A client that costs next to nothing: what it is sent stays in the kernel, and so does what it sends.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::sendfile;
use rustix::net::{RecvFlags, recv};
use rustls::{ClientConfig, ClientConnection};

use crate::http;

/// At most so much is dropped at once.
const PIECE: usize = 1 << 20;

pub struct Head {
    pub start: String,
    pub length: Option<u64>,
    /// Nothing more is answered on this connection.
    pub closes: bool,
}

/// A head, and how many bytes of the body came with it.
pub fn read_head(stream: &mut impl Read) -> Result<(Head, u64)> {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        text.extend_from_slice(&piece[..count]);
        if let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&text[..end]).into_owned();
            let value = |wanted: &str| {
                head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case(wanted).then(|| value.trim())
                })
            };
            let length = value("content-length").and_then(|value| value.parse().ok());
            let closes = value("connection").is_some_and(|value| value == "close");
            let start = head.lines().next().unwrap_or_default().to_owned();
            return Ok((Head { start, length, closes }, (text.len() - end - 4) as u64));
        }
    }
}

/// Drops so many bytes without copying them; fewer are an error.
pub fn discard(stream: &TcpStream, mut length: u64) -> Result<()> {
    let mut piece = vec![0; PIECE];
    while length > 0 {
        let most = usize::try_from(length).map_or(PIECE, |left| left.min(PIECE));
        let (_, count) = recv(stream, &mut piece[..most], RecvFlags::TRUNC)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        length -= count as u64;
    }
    Ok(())
}

/// Drops a body in chunks, which nothing follows and in which its last line is nowhere else.
pub fn discard_chunks(stream: &mut TcpStream) -> Result<()> {
    const LAST: &[u8] = b"\r\n0\r\n\r\n";
    let (mut piece, mut kept) = (vec![0; PIECE], 0);
    loop {
        let count = stream.read(&mut piece[kept..])?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let end = kept + count;
        if piece[..end].ends_with(LAST) {
            return Ok(());
        }
        kept = end.min(LAST.len());
        piece.copy_within(end - kept..end, 0);
    }
}

/// Drops all that comes until the other side ends, and says how much it was.
fn discard_to_end(stream: &TcpStream) -> Result<u64> {
    let (mut piece, mut length) = (vec![0; PIECE], 0);
    loop {
        match recv(stream, &mut piece[..], RecvFlags::TRUNC)? {
            (_, 0) => return Ok(length),
            (_, count) => length += count as u64,
        }
    }
}

/// So many connections at once, each doing this.
pub fn at_once(connections: usize, act: impl Fn() -> Result<()> + Sync) {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(&act)).collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
}

/// GETs a blob of this size again and again on one connection.
pub fn get(address: &str, target: &str, size: u64, times: usize) -> Result<()> {
    let mut stream = http::connect(address)?;
    for _ in 0..times {
        stream.write_all(&http::bytes(address, "GET", target, &[], b""))?;
        let (head, early) = read_head(&mut stream)?;
        if !head.start.starts_with("HTTP/1.1 200") || head.length != Some(size) {
            return Err(Error::other(head.start));
        }
        discard(&stream, size - early)?;
        if head.closes {
            stream = http::connect(address)?;
        }
    }
    Ok(())
}

/// PUTs a file again and again on one connection.
pub fn put(address: &str, target: &str, file: &Path, times: usize) -> Result<()> {
    let mut stream = http::connect(address)?;
    let size = file.metadata()?.len();
    for _ in 0..times {
        let request =
            format!("PUT {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {size}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let file = File::open(file)?;
        let mut offset = 0;
        while offset < size {
            if sendfile(&stream, &file, Some(&mut offset), PIECE)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        let (head, _) = read_head(&mut stream)?;
        if !head.start.starts_with("HTTP/1.1 201") {
            return Err(Error::other(head.start));
        }
    }
    Ok(())
}

/// Sends so many bytes again and again on one connection, in chunks as docker does: of 32 KiB.
pub fn patch_in_chunks(address: &str, target: &str, size: u64, times: usize) -> Result<()> {
    const CHUNK: usize = 32 << 10;
    let chunk = [format!("{CHUNK:x}\r\n").as_bytes(), &[b'b'; CHUNK], b"\r\n"].concat();
    let mut stream = http::connect(address)?;
    for _ in 0..times {
        let request = format!(
            "PATCH {target} HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        for _ in 0..size / CHUNK as u64 {
            stream.write_all(&chunk)?;
        }
        stream.write_all(b"0\r\n\r\n")?;
        let (head, _) = read_head(&mut stream)?;
        if !head.start.starts_with("HTTP/1.1 201") {
            return Err(Error::other(head.start));
        }
    }
    Ok(())
}

/// One suite, so that all encrypt alike: the one Go's clients name first.
pub fn tls_config(authority: &rcgen::Certificate) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// GETs a blob of this size over TLS, each on a new connection. What comes is not decrypted, which
/// would cost as much as all the proxy does; its amount must be right.
pub fn get_over_tls(
    config: &Arc<ClientConfig>,
    address: &str,
    target: &str,
    size: u64,
    times: usize,
) -> Result<()> {
    for _ in 0..times {
        let mut stream = http::connect(address)?;
        let mut tls = open(config, &mut stream)?;
        let close = [("Connection", "close")];
        tls.writer().write_all(&http::bytes(address, "GET", target, &close, b""))?;
        while tls.wants_write() {
            tls.write_tls(&mut stream)?;
        }
        let came = discard_to_end(&stream)?;
        if came < size || came > size + size / 50 + 65_536 {
            return Err(Error::other(format!("{came} bytes came for a blob of {size}")));
        }
    }
    Ok(())
}

/// The same for something small, to the last byte: its status line.
pub fn status_over_tls(
    config: &Arc<ClientConfig>,
    address: &str,
    target: &str,
) -> Result<(String, Vec<u8>)> {
    let mut stream = http::connect(address)?;
    let mut tls = open(config, &mut stream)?;
    let mut stream = rustls::Stream::new(&mut tls, &mut stream);
    let close = [("Connection", "close")];
    stream.write_all(&http::bytes(address, "GET", target, &close, b""))?;
    let mut reader = std::io::BufReader::new(stream);
    let answer = http::read_answer(&mut reader, false)?;
    Ok((answer.status.to_string(), answer.body))
}

fn open(config: &Arc<ClientConfig>, stream: &mut TcpStream) -> Result<ClientConnection> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let name = rustls_pki_types::ServerName::try_from("localhost").map_err(Error::other)?;
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(stream)?;
    }
    Ok(tls)
}
