//! A request that taglock reads itself, past pingora: a read of a manifest in the plainest form of
//! HTTP/1.1, with nothing after it.
//!
//! Nothing is refused here. What is not as plain as this is pingora's, from its first byte on.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{Method, Version};
use memchr::memmem;
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::Stream as Tcp;
use pingora::{Error, ErrorType};
use tokio::io::AsyncReadExt as _;

use super::admission::Head;
use super::forwarding::Introduction;
use super::passage::Client;

/// The usual header fits; a longer one grows it.
const ROOM: usize = 4 * 1024;
/// A header beyond this size is pingora's to read.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
const END: &[u8] = b"\r\n\r\n";

pub struct Asked {
    pub header: RequestHeader,
    /// The header as it came.
    pub raw: Bytes,
    /// Whether the client may ask again on this connection.
    pub keeps: bool,
}

impl Asked {
    pub fn head(&self, peer: SocketAddr) -> Head<'_> {
        Head { header: &self.header, raw: Some(&self.raw), peer }
    }

    pub fn is_head(&self) -> bool {
        self.header.method == Method::HEAD
    }

    /// A request of which these are all bytes; `None` where it is none that is read here.
    pub fn of(raw: Bytes) -> Option<Self> {
        (Look::at(&raw) == Look::Whole).then(|| Self::read(raw))?
    }

    /// A whole header; `None` where it has anything that is not plain.
    fn read(raw: Bytes) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&raw) {
            Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
            _ => return None,
        }
        let (Some(method), Some(path), Some(1)) = (request.method, request.path, request.version)
        else {
            return None;
        };
        let count = Some(request.headers.len());
        let mut header = RequestHeader::build_no_case(method, path.as_bytes(), count).ok()?;
        header.set_version(Version::HTTP_11);
        let mut keeps = true;
        for line in request.headers.iter() {
            let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
            if matches!(name, CONTENT_LENGTH | TRANSFER_ENCODING | EXPECT) {
                return None;
            }
            if name == CONNECTION {
                let mut tokens = line.value.split(|byte| *byte == b',');
                keeps &= !tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"));
            }
            let value = HeaderValue::from_maybe_shared(raw.slice_ref(line.value)).ok()?;
            header.append_header(name, value).ok()?;
        }
        Some(Self { header, raw, keeps })
    }
}

/// What the first bytes of a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// May become one that is read here.
    Partial,
    /// One header, or more: that is seen when it is read.
    Whole,
    /// Pingora's.
    Other,
}

impl Look {
    fn at(bytes: &[u8]) -> Self {
        let begins = |start: &[u8]| {
            let common = start.len().min(bytes.len());
            bytes[..common] == start[..common]
        };
        if !begins(b"GET /v2/") && !begins(b"HEAD /v2/") {
            return Self::Other;
        }
        if let Some(end) = memchr::memchr(b'\n', bytes)
            && memmem::find(&bytes[..end], b"/manifests/").is_none()
        {
            return Self::Other;
        }
        if bytes.ends_with(END) {
            return Self::Whole;
        }
        // With lines that end otherwise it may be whole already.
        let partial = memmem::find(bytes, END).is_none() && !has_a_bare_line_feed(bytes);
        if partial && bytes.len() < MAX_HEAD { Self::Partial } else { Self::Other }
    }
}

fn has_a_bare_line_feed(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| at == 0 || bytes[at - 1] != b'\r')
}

/// What came next on a connection.
pub enum Next {
    Asked(Box<Asked>),
    /// The beginning of a request that pingora is to read.
    Other(Bytes),
}

/// A client's connection, between requests and in one.
pub struct Line {
    pub stream: Stream,
    pub peer: SocketAddr,
    /// What came of the next request before this one was answered.
    early: Vec<u8>,
    /// How its client was introduced to the registry: nearly always the same as before.
    introduced: Option<(Client, Introduction)>,
}

impl Line {
    /// # Errors
    /// The stream, where bytes that were read could not be put back.
    pub fn of(stream: Stream, peer: SocketAddr) -> Result<Self, Stream> {
        match stream.as_any().is::<Tcp>() {
            true => Ok(Self { stream, peer, early: Vec::new(), introduced: None }),
            false => Err(stream),
        }
    }

    /// The next request; `None` at the connection's end.
    pub async fn next(&mut self) -> Option<Next> {
        let mut bytes = BytesMut::with_capacity(ROOM);
        bytes.extend_from_slice(&self.early);
        self.early.clear();
        loop {
            match Look::at(&bytes) {
                Look::Partial => {}
                Look::Whole => {
                    let raw = bytes.freeze();
                    let asked = Asked::read(raw.clone());
                    return Some(
                        asked.map_or(Next::Other(raw), |asked| Next::Asked(Box::new(asked))),
                    );
                }
                Look::Other => return Some(Next::Other(bytes.freeze())),
            }
            if matches!(self.stream.read_buf(&mut bytes).await, Ok(0) | Err(_)) {
                return None;
            }
        }
    }

    /// How the registry is told of this client, put together anew where it was another before.
    pub fn introduction(
        &mut self,
        client: &Client,
        make: impl FnOnce() -> Introduction,
    ) -> Introduction {
        if let Some((known, introduction)) = &self.introduced
            && known == client
        {
            return Arc::clone(introduction);
        }
        let introduction = make();
        self.introduced = Some((client.clone(), Arc::clone(&introduction)));
        introduction
    }

    /// The connection, with these bytes before what is still to be read.
    pub fn put_back(self, bytes: &[u8]) -> Option<Stream> {
        let mut stream = self.stream.into_any().downcast::<Tcp>().ok()?;
        stream.rewind(&self.early);
        stream.rewind(bytes);
        Some(stream)
    }

    /// Ends when the client has left.
    pub async fn left(&mut self) -> Box<Error> {
        let mut byte = [0];
        match self.stream.read(&mut byte).await {
            Ok(0) | Err(_) => Error::explain(ErrorType::ConnectionClosed, "the client").into_down(),
            Ok(_) => {
                // It does not wait for the answer before it asks again.
                self.early.extend_from_slice(&byte);
                std::future::pending().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const PLAIN: &str = "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nX-Odd:  a:b \r\n\r\n";

    fn read(text: &str) -> Option<Asked> {
        Asked::of(text.to_owned().into())
    }

    #[test]
    fn a_plain_read_of_a_manifest_is_read_here() {
        let asked = read(PLAIN).unwrap();
        assert_eq!((&asked.header.method, asked.is_head()), (&Method::GET, false));
        assert_eq!(asked.header.raw_path(), b"/v2/a/manifests/v1");
        assert_eq!(asked.header.headers["x-odd"], "a:b");
        assert_eq!(&asked.raw[..], PLAIN.as_bytes());
        assert!(asked.keeps);
        assert!(read(&PLAIN.replace("GET", "HEAD")).unwrap().is_head());
        for end in 0..PLAIN.len() {
            assert_eq!(Look::at(&PLAIN.as_bytes()[..end]), Look::Partial, "{end}");
        }
    }

    #[test]
    fn everything_else_is_pingoras() {
        for other in [
            "PUT /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /v2/a/blobs/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET http://x/v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /V2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "get /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "\r\nGET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.0\r\nHost: x\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/2.0\r\nHost: x\r\n\r\n",
            "GET /v2/a/manifests/v1\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n y: z\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
            // The next request, or a body, is there as well.
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\nG",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\nHost: x\n\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\n\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\nHost: x\n\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        ] {
            assert!(read(other).is_none(), "{other:?}");
            assert_ne!(Look::at(other.as_bytes()), Look::Partial, "{other:?}");
        }
        let many = PLAIN.replace("X-Odd", &"X: y\r\n".repeat(MAX_HEADERS));
        assert!(read(&many).is_none());
        let endless = PLAIN.replace("a:b", &"y".repeat(MAX_HEAD));
        assert_eq!(Look::at(&endless.as_bytes()[..MAX_HEAD]), Look::Other);
    }

    #[test]
    fn only_a_client_that_says_close_may_not_ask_again() {
        let keeps = |value: &str| {
            let line = format!("Connection: {value}\r\nHost");
            read(&PLAIN.replace("Host", &line)).unwrap().keeps
        };
        assert!(keeps("keep-alive") && keeps("X-Odd") && keeps("closed"));
        assert!(
            !keeps("close") && !keeps("X-Odd, Close") && !keeps("keep-alive\r\nConnection: CLOSE")
        );
    }

    async fn line() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, peer) = listener.accept().await.unwrap();
        (Line::of(Box::new(Tcp::from(near)), peer).ok().unwrap(), far)
    }

    #[tokio::test]
    async fn what_is_not_for_here_is_put_back_in_order() {
        let (mut line, mut client) = line().await;
        client.write_all(b"GE").await.unwrap();
        {
            // The client does not wait, and is still there.
            let left = pin!(line.left());
            tokio::time::timeout(Duration::from_millis(50), left).await.unwrap_err();
        }
        let rest = "T /v2/ HTTP/1.1\r\nHost: x\r\n\r\nand more";
        client.write_all(rest.as_bytes()).await.unwrap();
        let Some(Next::Other(read)) = line.next().await else { panic!("it was taken") };
        let mut stream = line.put_back(&read).unwrap();
        let mut all = vec![0; 2 + rest.len()];
        stream.read_exact(&mut all).await.unwrap();
        assert_eq!(String::from_utf8(all).unwrap(), format!("GE{rest}"));
    }

    #[tokio::test]
    async fn requests_come_in_parts_one_after_the_other_until_the_client_leaves() {
        let (mut line, mut client) = line().await;
        let sending = tokio::spawn(async move {
            for _ in 0..2 {
                for part in PLAIN.as_bytes().chunks(7) {
                    client.write_all(part).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        for _ in 0..2 {
            let Some(Next::Asked(asked)) = line.next().await else { panic!("it was not read") };
            assert_eq!(&asked.raw[..], PLAIN.as_bytes());
        }
        sending.await.unwrap();
        assert!(line.next().await.is_none());
        assert_eq!(line.left().await.etype(), &ErrorType::ConnectionClosed);
    }
}
