//! A request that taglock reads itself, past pingora: a read of a manifest in the plainest form of
//! HTTP/1.1, with nothing after it.
//!
//! Nothing is refused here. What is not as plain as this is pingora's, from its first byte on.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{HeaderMap, Method, Version};
use memchr::memmem::{self, Finder};
use pingora::http::RequestHeader;
use tokio::time::Instant;

use super::authorized::Identity;
use super::context::Client;
use super::request_headers::Kind;
use super::validate::Head;
use crate::name::RepositoryName;
use crate::runtime::buffer_pool::PooledBuffer;

/// A header beyond this size is pingora's to read.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Longer lines are not kept while a connection is idle: with what is made of them they take four times
/// as much.
const LONGEST_KEPT: usize = 4 * 1024;
const END: &[u8] = b"\r\n\r\n";
/// Made once: to make one takes longer than to find with it.
static MANIFESTS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("/manifests/"));

pub struct Asked {
    pub header: RequestHeader,
    /// The header as it came.
    pub raw: PooledBuffer,
    /// Whether the client may ask again on this connection.
    pub keeps: bool,
    manner: Manner,
}

/// What a client says below a header's first line, and what was made of it. Nearly always it is what
/// it said before on its connection, and need not be taken apart again.
struct Manner {
    /// Up to the header's end.
    lines: Bytes,
    keeps: bool,
    /// Who says so, where that was admitted.
    client: Option<Client>,
    /// The same, as the registry may tell clients apart.
    identity: Option<Identity>,
    /// Where the registry has let it in, and until when that is taken for granted.
    let_in: Option<(RepositoryName, Instant)>,
    /// What of it goes on to the registry.
    passed: Passed,
}

/// By what a read is for.
#[derive(Default)]
struct Passed {
    plain: Option<Box<[u8]>>,
    bound: Option<Box<[u8]>>,
}

impl Passed {
    fn of(&mut self, kind: Kind) -> &mut Option<Box<[u8]>> {
        match kind {
            Kind::Plain => &mut self.plain,
            Kind::Bound => &mut self.bound,
        }
    }
}

impl Asked {
    pub fn head(&self, peer: SocketAddr) -> Head<'_> {
        let known = self.manner.client.as_ref();
        Head { header: &self.header, raw: Some(&self.raw), peer, known }
    }

    pub fn is_head(&self) -> bool {
        self.header.method == Method::HEAD
    }

    /// A request of which these are all bytes; `None` where it is none that is read here.
    pub fn of(bytes: &[u8]) -> Option<Box<Self>> {
        Self::after(None, bytes)
    }

    /// The same, after another one on its connection.
    pub fn after(before: Option<Box<Self>>, bytes: &[u8]) -> Option<Box<Self>> {
        let mut raw = PooledBuffer::small();
        raw.extend_from_slice(bytes);
        (Look::at(&raw) == Look::Whole).then(|| Self::read(raw, before).ok())?
    }

    /// A whole header, after the one `before` it on its connection.
    ///
    /// # Errors
    /// The header, where it has anything that is not plain.
    pub(super) fn read(
        raw: PooledBuffer,
        before: Option<Box<Self>>,
    ) -> Result<Box<Self>, PooledBuffer> {
        let first = memchr::memchr(b'\n', &raw).map_or(raw.len(), |end| end + 1);
        let asked = match before {
            Some(before) if before.manner.lines == raw[first..] => before.again(&raw[..first]),
            _ => Self::anew(&raw, first),
        };
        match asked {
            Some(mut asked) => {
                asked.raw = raw;
                Ok(asked)
            }
            None => Err(raw),
        }
    }

    /// With another first line.
    fn again(mut self: Box<Self>, first: &[u8]) -> Option<Box<Self>> {
        let mut request = httparse::Request::new(&mut []);
        // As the lines below it are plain, it is all there is to see.
        let Ok(httparse::Status::Partial) = request.parse(first) else { return None };
        let (Some(method), Some(path), Some(1)) = (request.method, request.path, request.version)
        else {
            return None;
        };
        self.header.set_method(Method::from_bytes(method.as_bytes()).ok()?);
        self.header.set_raw_path(complete(path)?).ok()?;
        self.keeps = self.manner.keeps;
        Some(self)
    }

    fn anew(raw: &[u8], first: usize) -> Option<Box<Self>> {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(raw, &mut headers) {
            Ok(httparse::Status::Complete(length)) if length == raw.len() => {}
            _ => return None,
        }
        let (Some(method), Some(path), Some(1)) = (request.method, request.path, request.version)
        else {
            return None;
        };
        let count = Some(request.headers.len());
        let mut header = RequestHeader::build_no_case(method, complete(path)?, count).ok()?;
        header.set_version(Version::HTTP_11);
        // Values are parts of it, by their place.
        let lines = Bytes::copy_from_slice(&raw[first..]);
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
            let start = (line.value.as_ptr().addr() - raw.as_ptr().addr()).checked_sub(first)?;
            let value = lines.slice(start..start + line.value.len());
            header.append_header(name, HeaderValue::from_maybe_shared(value).ok()?).ok()?;
        }
        let passed = Passed::default();
        let manner = Manner { lines, keeps, client: None, identity: None, let_in: None, passed };
        Some(Box::new(Self { header, raw: PooledBuffer::small_later(), keeps, manner }))
    }

    /// Whether the lines below the first were admitted before.
    #[cfg(test)]
    pub fn is_known(&self) -> bool {
        self.manner.client.is_some()
    }

    /// Whether what was made of its lines is little enough to be kept while a connection is idle.
    pub fn is_worth_keeping(&self) -> bool {
        self.manner.lines.len() <= LONGEST_KEPT
    }

    /// The lines below the first were admitted, and say that this is the client.
    pub fn admitted(&mut self, client: &Client) {
        self.manner.client.get_or_insert_with(|| client.clone());
    }

    /// Who asks, made once of the header.
    pub fn identity(&mut self, make: impl FnOnce(&HeaderMap) -> Identity) -> Identity {
        let Self { header, manner, .. } = self;
        *manner.identity.get_or_insert_with(|| make(&header.headers))
    }

    /// Whether it is known of this connection that the registry lets the client in.
    pub fn is_let_in(&self, repository: &RepositoryName, now: Instant) -> bool {
        let known = self.manner.let_in.as_ref();
        known.is_some_and(|(known, until)| known == repository && *until > now)
    }

    /// Until then that is so.
    pub fn note_let_in(&mut self, repository: &RepositoryName, until: Instant) {
        self.manner.let_in = Some((repository.clone(), until));
    }

    /// What of the lines below the first goes on to the registry, made once of them and of the header.
    /// `None` where none may.
    pub fn pass(
        &mut self,
        kind: Kind,
        make: impl FnOnce(&HeaderMap, &[u8]) -> Option<Box<[u8]>>,
    ) -> Option<()> {
        let Manner { lines, passed, .. } = &mut self.manner;
        let passed = passed.of(kind);
        if passed.is_none() {
            *passed = make(&self.header.headers, lines);
        }
        passed.as_ref().map(|_| ())
    }

    pub fn passed(&self, kind: Kind) -> &[u8] {
        let Passed { plain, bound } = &self.manner.passed;
        let passed = match kind {
            Kind::Plain => plain,
            Kind::Bound => bound,
        };
        passed.as_deref().unwrap_or_default()
    }
}

/// A target that a parsed header keeps whole: of one with a `#`, what follows that would be gone
/// before anybody has judged it. Pingora's header is no different, so admission looks at the bytes.
fn complete(target: &str) -> Option<&[u8]> {
    memchr::memchr(b'#', target.as_bytes()).is_none().then_some(target.as_bytes())
}

/// What the first bytes of a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// May become one that is read here.
    Partial,
    /// One header, or more: that is seen when it is read.
    Whole,
    /// Pingora's.
    Other,
}

impl Look {
    pub(super) fn at(bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Partial;
        }
        let begins = |start: &[u8]| {
            let common = start.len().min(bytes.len());
            bytes[..common] == start[..common]
        };
        if !begins(b"GET /v2/") && !begins(b"HEAD /v2/") {
            return Self::Other;
        }
        if let Some(end) = memchr::memchr(b'\n', bytes)
            && MANIFESTS.find(&bytes[..end]).is_none()
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

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\nX-Odd:  a:b \r\n\r\n";

    fn read(text: &str) -> Option<Box<Asked>> {
        Asked::of(text.as_bytes())
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

    /// What the second of two requests on a connection is.
    fn after(first: &str, second: &str) -> Option<Box<Asked>> {
        let mut before = read(first).unwrap();
        before.admitted(&Client::unknown());
        before.keeps = false;
        before.pass(Kind::Plain, |_, _| Some(first.as_bytes().into())).unwrap();
        Asked::after(Some(before), second.as_bytes())
    }

    #[test]
    fn what_was_made_of_the_same_lines_is_used_again_and_of_no_others() {
        let second = PLAIN.replace("GET", "HEAD").replace("v1 ", "v2?ns=x ");
        let asked = after(PLAIN, &second).unwrap();
        let anew = read(&second).unwrap();
        assert_eq!(asked.header.raw_path(), b"/v2/a/manifests/v2?ns=x");
        assert_eq!((asked.header.uri.query(), asked.is_head()), (Some("ns=x"), true));
        assert_eq!((&asked.raw[..], asked.keeps), (second.as_bytes(), true));
        assert_eq!(asked.header.headers, anew.header.headers);
        assert_eq!(asked.header.version, anew.header.version);
        assert!(asked.manner.client.is_some() && asked.passed(Kind::Plain) == PLAIN.as_bytes());
        assert!(asked.passed(Kind::Bound).is_empty(), "nobody has made it");
        for other in
            ["a:b \r\nAuthorization: Basic x", "a:c ", "a:b  ", "a:b \r\nConnection: close"]
        {
            let second = PLAIN.replace("a:b ", other);
            for (first, second) in [(PLAIN, &*second), (&*second, PLAIN)] {
                let (asked, anew) = (after(first, second).unwrap(), read(second).unwrap());
                assert!(asked.manner.client.is_none(), "{first:?} {second:?}");
                assert!(asked.passed(Kind::Plain).is_empty());
                assert_eq!(asked.header.headers, anew.header.headers);
                assert_eq!(asked.keeps, anew.keeps);
            }
        }
    }

    #[test]
    fn a_first_line_is_as_plain_with_the_lines_of_before() {
        for line in [
            "GET /v2/a/manifests/v1 HTTP/1.0\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1 \r\n",
            "GET /v2/a/manifests/v1\r\n",
            "GET /v2/a/manifests/v1 x HTTP/1.1\r\n",
            "GET /v2/a/manifests/v\0 HTTP/1.1\r\n",
            "GET /v2/a/manifests/v1 HTTP/1.1\rX\r\n",
        ] {
            let (_, lines) = PLAIN.split_once('\n').unwrap();
            let second = format!("{line}{lines}");
            assert!(after(PLAIN, &second).is_none(), "{line:?}");
            assert!(read(&second).is_none(), "{line:?}");
        }
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
}
