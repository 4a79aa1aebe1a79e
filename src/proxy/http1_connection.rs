//! A client's connection of HTTP/1.1: each request's header is read here to its end, within its bounds
//! in bytes and time, whoever serves the request.
//!
//! pingora would read a megabyte of an unfinished header. And who takes a body from the socket itself
//! must know how much of it was read along with the header: here that is counted.

use pingora::protocols::Stream;
use pingora::{Error, ErrorType};
use tokio::io::AsyncReadExt as _;

use super::request_memo::{Asked, Look};
use crate::runtime::buffer_pool::PooledBuffer;

/// A header that begins with something else than HTTP is given to pingora at once, which answers 400.
/// A client that tries TLS on a plain port waits for that. Longer beginnings are not looked at again.
const BEGINNING: usize = 4 * 1024;

/// What came next on a connection.
pub enum Next {
    /// A plain read of a manifest, which is answered without pingora where it can be.
    Asked(Box<Asked>),
    /// A request that pingora is to serve.
    Other(Received),
    /// A header that is longer than it may be, as far as it was read.
    TooLong(PooledBuffer),
}

/// The beginning of a request: its header, and what came along with it.
pub struct Received {
    pub bytes: PooledBuffer,
    /// Of the header. What is no HTTP has none.
    pub header: usize,
}

impl Received {
    /// How much of the body came along with the header.
    pub fn of_the_body(&self) -> usize {
        self.bytes.len() - self.header
    }
}

/// A client's connection, between requests and in one.
pub struct Line {
    pub stream: Stream,
    /// What came of the next request before this one was answered.
    early: Vec<u8>,
    /// The last request, with what was made of its lines.
    before: Option<Box<Asked>>,
}

impl Line {
    pub fn of(stream: Stream) -> Self {
        Self { stream, early: Vec::new(), before: None }
    }

    /// The next request; `None` at the connection's end. `own` where plain reads are told apart.
    pub async fn next(&mut self, own: bool, max_header: usize) -> Option<Next> {
        let mut reads = own;
        let mut raw = match self.early.is_empty() {
            true => PooledBuffer::small_later(),
            false => PooledBuffer::small(),
        };
        raw.append(&mut self.early);
        let mut end = HeaderEnd::default();
        loop {
            if reads {
                match Look::at(&raw) {
                    Look::Partial => {}
                    Look::Whole => match Asked::read(raw, self.before.take()) {
                        Ok(asked) => return Some(Next::Asked(asked)),
                        Err(other) => {
                            (raw, reads) = (other, false);
                            continue;
                        }
                    },
                    Look::Other => reads = false,
                }
            }
            if !reads {
                if let Some(header) = end.find(&raw) {
                    return Some(self.whole(raw, header, own));
                }
                if is_no_http(&raw) {
                    let header = raw.len();
                    return Some(Next::Other(Received { bytes: raw, header }));
                }
            }
            if raw.len() > max_header {
                return Some(Next::TooLong(raw));
            }
            if matches!(raw.fill(&mut self.stream).await, Ok(0) | Err(_)) {
                return None;
            }
        }
    }

    /// A request whose header is whole. What follows a plain read is the next request of a client that
    /// does not wait for answers.
    fn whole(&mut self, mut raw: PooledBuffer, header: usize, own: bool) -> Next {
        if own && raw.len() > header && Look::at(&raw[..header]) == Look::Whole {
            let rest = raw.split_off(header);
            match Asked::read(raw, self.before.take()) {
                Ok(asked) => {
                    self.early = rest;
                    return Next::Asked(asked);
                }
                Err(other) => {
                    raw = other;
                    raw.extend_from_slice(&rest);
                }
            }
        }
        Next::Other(Received { bytes: raw, header })
    }

    /// A request that was answered: the next one will be like it.
    pub fn keep(&mut self, mut asked: Box<Asked>) {
        asked.raw = PooledBuffer::small_later();
        self.before = asked.is_worth_keeping().then_some(asked);
    }

    /// The stream, for somebody else to serve a request on, and what makes it a line again.
    pub fn lend(self) -> (Stream, Lent) {
        (self.stream, Lent(self.early))
    }

    /// Ends when the client has left.
    pub async fn left(&mut self) -> Box<Error> {
        if !self.early.is_empty() {
            // It does not wait for the answer before it asks again. One byte is enough to see that, and
            // whether it is still there the answer will show.
            return std::future::pending().await;
        }
        let mut byte = [0];
        match self.stream.read(&mut byte).await {
            Ok(0) | Err(_) => Error::explain(ErrorType::ConnectionClosed, "the client").into_down(),
            Ok(_) => {
                self.early.extend_from_slice(&byte);
                std::future::pending().await
            }
        }
    }
}

/// What a line keeps while its stream is with somebody else.
pub struct Lent(Vec<u8>);

impl Lent {
    pub fn back(self, stream: Stream) -> Line {
        Line { stream, early: self.0, before: None }
    }
}

/// Looks for a header's end in bytes that become more. Lines may end with a line feed alone, as pingora
/// reads them, and empty lines may stand before the first.
#[derive(Default)]
struct HeaderEnd {
    /// Before it there is none.
    seen: usize,
}

impl HeaderEnd {
    /// How long the header is, where it is whole.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let from = self.seen.max(empty);
        for at in memchr::memchr_iter(b'\n', bytes.get(from..)?) {
            let after = from + at + 1;
            match &bytes[after..] {
                [b'\n', ..] => return Some(after + 1),
                [b'\r', b'\n', ..] => return Some(after + 2),
                _ => {}
            }
        }
        // The last bytes may be the beginning of its end.
        self.seen = bytes.len().saturating_sub(2);
        None
    }
}

/// Whether no more bytes could make a request of HTTP of these.
fn is_no_http(bytes: &[u8]) -> bool {
    let mut request = httparse::Request::new(&mut []);
    bytes.len() <= BEGINNING
        && request.parse(bytes).is_err_and(|error| error != httparse::Error::TooManyHeaders)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use pingora::protocols::l4::stream::Stream as Tcp;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::super::context::Client;
    use super::*;

    const PLAIN: &str = "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nX-Odd:  a:b \r\n\r\n";
    const MAX: usize = 64 << 10;

    async fn line() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, _) = listener.accept().await.unwrap();
        (Line::of(Box::new(Tcp::from(near))), far)
    }

    #[test]
    fn a_header_ends_where_pingora_ends_it_however_it_comes() {
        for (header, rest) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "body"),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n\r\n"),
            ("\n\nGET / HTTP/1.1\nHost: x\n\n", "\n\n"),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", ""),
            ("GET / HTTP/1.1\n\r\n", "x"),
            ("GET / HTTP/1.1\r\n\n", "x"),
        ] {
            let all = format!("{header}{rest}");
            for step in 1..=all.len() {
                let mut end = HeaderEnd::default();
                let mut found = None;
                for upto in (step..all.len()).step_by(step).chain([all.len()]) {
                    found = end.find(&all.as_bytes()[..upto]);
                    if found.is_some() {
                        break;
                    }
                }
                assert_eq!(found, Some(header.len()), "{all:?} by {step}");
            }
            let mut headers = [httparse::EMPTY_HEADER; 8];
            let mut request = httparse::Request::new(&mut headers);
            let parsed = request.parse(all.as_bytes());
            assert_eq!(parsed, Ok(httparse::Status::Complete(header.len())), "{all:?}");
        }
        for none in ["", "\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\n\r"] {
            assert_eq!(HeaderEnd::default().find(none.as_bytes()), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_no_http_is_seen_at_its_beginning() {
        for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"\0", b"GET / FTP/1.1\r\n", b"G\x01"] {
            assert!(is_no_http(bytes), "{}", bytes.escape_ascii());
        }
        for bytes in [&b""[..], b"\r\n", b"G", b"GET /v2/ HTTP/1.1\r\nHost: x\r\nA: b\r\n"] {
            assert!(!is_no_http(bytes), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn the_body_that_came_along_is_counted() {
        let (mut line, mut client) = line().await;
        let header = "PATCH /v2/a/blobs/uploads/u HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n";
        client.write_all(format!("{header}12345").as_bytes()).await.unwrap();
        let Some(Next::Other(received)) = line.next(true, MAX).await else { panic!("not read") };
        assert_eq!((received.header, received.of_the_body()), (header.len(), 5));
    }

    #[tokio::test]
    async fn a_header_that_is_too_long_is_not_read_on() {
        for reads in [true, false] {
            let (mut line, mut client) = line().await;
            let long = format!("{}{}", PLAIN.trim_end(), "y".repeat(2000));
            client.write_all(long.as_bytes()).await.unwrap();
            let next = line.next(reads, 1000).await;
            assert!(matches!(next, Some(Next::TooLong(read)) if read.len() > 1000), "{reads}");
        }
    }

    #[tokio::test]
    async fn what_is_not_for_here_keeps_its_order() {
        let (mut line, mut client) = line().await;
        client.write_all(b"GET ").await.unwrap();
        {
            // The client does not wait, and is still there. One byte is taken, however often it is asked.
            for _ in 0..3 {
                let left = pin!(line.left());
                tokio::time::timeout(Duration::from_millis(20), left).await.unwrap_err();
            }
            assert_eq!(line.early, b"G");
        }
        let rest = "/v2/ HTTP/1.1\r\nHost: x\r\n\r\nand more";
        client.write_all(rest.as_bytes()).await.unwrap();
        let Some(Next::Other(received)) = line.next(true, MAX).await else {
            panic!("it was taken")
        };
        assert_eq!(received.bytes[..], *format!("GET {rest}").as_bytes());
        assert_eq!(received.of_the_body(), "and more".len());
    }

    #[tokio::test]
    async fn a_plain_read_is_told_from_the_request_behind_it() {
        let (mut line, mut client) = line().await;
        client.write_all(format!("{PLAIN}{PLAIN}PUT /").as_bytes()).await.unwrap();
        for _ in 0..2 {
            let Some(Next::Asked(asked)) = line.next(true, MAX).await else { panic!("not read") };
            assert_eq!(&asked.raw[..], PLAIN.as_bytes());
        }
        assert_eq!(line.early, b"PUT /");
        // One with a body is not plain.
        let (mut line, mut client) = super::tests::line().await;
        let with_body = PLAIN.replace("X-Odd:  a:b ", "Content-Length: 1");
        client.write_all(format!("{with_body}x{PLAIN}").as_bytes()).await.unwrap();
        let Some(Next::Other(received)) = line.next(true, MAX).await else { panic!("not read") };
        assert_eq!(received.bytes[..], *format!("{with_body}x{PLAIN}").as_bytes());
        assert_eq!(received.header, with_body.len());
    }

    #[tokio::test]
    async fn what_is_no_http_is_given_to_pingora_at_once() {
        let (mut line, mut client) = line().await;
        client.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
        let next =
            tokio::time::timeout(Duration::from_secs(5), line.next(true, MAX)).await.unwrap();
        assert!(matches!(next, Some(Next::Other(received)) if received.of_the_body() == 0));
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
        for again in [false, true] {
            let Some(Next::Asked(mut asked)) = line.next(true, MAX).await else {
                panic!("not read")
            };
            assert_eq!(&asked.raw[..], PLAIN.as_bytes());
            // What was made of the first one's lines is there for the second.
            assert_eq!(asked.is_known(), again);
            asked.admitted(&Client::unknown());
            line.keep(asked);
        }
        assert!(line.before.is_some());
        let long = PLAIN.replace("a:b", &"y".repeat(8 << 10));
        line.keep(Asked::of(long.as_bytes()).unwrap());
        assert!(line.before.is_none(), "too much for an idle connection");
        sending.await.unwrap();
        assert!(line.next(true, MAX).await.is_none());
        assert_eq!(line.left().await.etype(), &ErrorType::ConnectionClosed);
    }
}
