//! What the registry is told of a request besides what the client said.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
    TRANSFER_ENCODING,
};
use http::{HeaderMap, Method, Version};
use pingora::Result;
use pingora::http::RequestHeader;

use super::context::{Client, Passage};
use super::{Edge, header_filter};
use crate::registry::client::UNSENT;
use crate::registry::framing;
use crate::runtime::buffer_pool::PooledBuffer;
use crate::telemetry::traces;

/// Of the connection in a request alone, besides [`framing::HOP_BY_HOP`].
const HOP_BY_HOP: [HeaderName; 2] = [PROXY_AUTHORIZATION, TRANSFER_ENCODING];

fn is_hop_by_hop(name: &HeaderName) -> bool {
    framing::is_hop_by_hop(name) || HOP_BY_HOP.contains(name)
}

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What a read is for that is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For what nobody judges.
    Plain,
    /// For a bound tag's image, which is to come whole and as it is.
    Bound,
}

impl Kind {
    /// Of the client's headers, those that don't go on.
    fn unsent(self) -> &'static [HeaderName] {
        match self {
            Self::Plain => &[],
            Self::Bound => &UNSENT,
        }
    }
}

/// The changes to one request's header: these are set, and what could contradict them goes.
pub struct Forwarding {
    set: Vec<(HeaderName, HeaderValue)>,
    /// The trace of `set` is told in place of the client's.
    traced: bool,
}

impl Edge {
    /// `X-Forwarded-*` and `Forwarded` say what taglock knows, whatever the client said: registries
    /// build the URLs of uploads from them.
    pub(super) fn forwarding(&self, passage: &Passage) -> Forwarding {
        let mut set = Vec::with_capacity(8);
        set.push((REQUEST_ID, passage.id.header()));
        if let Some(trace) = &passage.trace {
            set.extend(trace.onwards().iter().map(|(n, v)| (n.clone(), v.clone())));
        }
        self.introduce(&passage.client, &mut set);
        Forwarding { set, traced: passage.trace.is_some() }
    }

    /// What the registry is told of a client, the same in each of its requests.
    fn introduce(&self, client: &Client, set: &mut Vec<(HeaderName, HeaderValue)>) {
        let host = client.host.as_ref().or(self.host.as_ref());
        set.extend(host.map(|host| (HOST, host.clone())));
        let address = client.address.to_string();
        let chain = match &client.via {
            Some(via) => format!("{via}, {}", client.peer),
            None => address.clone(),
        };
        // A text's bytes become the value's: they are not copied.
        let mut put = |name, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                set.push((name, value));
            }
        };
        put(FORWARDED_FOR, chain);
        if let Some(base) = &client.base {
            let (scheme, authority) = (base.scheme(), base.authority());
            let (open, close) = if client.address.is_ipv6() { ("\"[", "]\"") } else { ("", "") };
            let forwarded =
                ["for=", open, &address, close, ";host=\"", &authority, "\";proto=", scheme];
            put(FORWARDED, forwarded.concat());
            put(FORWARDED_HOST, authority);
            set.push((FORWARDED_PROTO, HeaderValue::from_static(scheme)));
        }
    }

    /// For a read that is relayed: the client's own lines, but for some, and what introduces it. It is
    /// the same for each request with the same lines below its first. `None` where a line is not plain.
    pub(super) fn passed(
        &self,
        kind: Kind,
        client: &Client,
        (headers, lines): (&HeaderMap, &[u8]),
    ) -> Option<Box<[u8]>> {
        let mut set = Vec::with_capacity(5);
        self.introduce(client, &mut set);
        let forwarding = Forwarding { set, traced: self.rooms.tracer.is_some() };
        forwarding.passed(kind, headers, lines)
    }
}

/// A read of this target that is relayed, given what goes on of the client's lines.
pub(super) fn relayed(
    method: &Method,
    target: &[u8],
    passed: &[u8],
    passage: &Passage,
) -> PooledBuffer {
    let mut out = PooledBuffer::small();
    for part in [method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n", passed] {
        out.extend_from_slice(part);
    }
    put_line(&mut out, REQUEST_ID.as_str().as_bytes(), passage.id.as_bytes());
    if let Some(trace) = &passage.trace {
        for (name, value) in trace.onwards() {
            put_line(&mut out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// One line of a header.
pub(super) fn put_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

impl Forwarding {
    /// For a request that streams through pingora, which strips the hop-by-hop headers itself.
    pub fn apply(&self, request: &mut RequestHeader) -> Result<()> {
        let names: Vec<_> = request.headers.keys().filter(|n| self.replaces(n)).cloned().collect();
        for name in names {
            request.remove_header(&name);
        }
        for (name, value) in &self.set {
            request.insert_header(name, value.clone())?;
        }
        Ok(())
    }

    /// For a request that streams on a path of taglock's own.
    pub fn streamed(&self, client: &RequestHeader) -> Result<RequestHeader> {
        let mut request = match client.version {
            // With the spelling of its names.
            Version::HTTP_11 => client.clone(),
            _ => {
                let method = client.method.clone();
                let mut request = RequestHeader::build(method, client.raw_path(), None)?;
                for (name, value) in &client.headers {
                    request.append_header(name.clone(), value.clone())?;
                }
                request
            }
        };
        for name in nominated(&client.headers) {
            request.remove_header(&name);
        }
        for name in framing::HOP_BY_HOP.iter().chain(&HOP_BY_HOP) {
            request.remove_header(name);
        }
        self.apply(&mut request)?;
        Ok(request)
    }

    /// Of lines of a header, below its first, those that go on, and then these.
    fn passed(&self, kind: Kind, client: &HeaderMap, lines: &[u8]) -> Option<Box<[u8]>> {
        let nominated = nominated(client);
        let mut out = Vec::with_capacity(lines.len() + 512);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if line == b"\r\n" {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            if matches!(name, CONTENT_LENGTH | TRANSFER_ENCODING | EXPECT) {
                return None;
            }
            let dropped = self.replaces(&name)
                || name == REQUEST_ID
                || is_hop_by_hop(&name)
                || kind.unsent().contains(&name)
                || nominated.iter().any(|nominated| nominated == name.as_str())
                || self.set.iter().any(|(set, _)| *set == name);
            if !dropped {
                out.extend_from_slice(line);
            }
        }
        for (name, value) in &self.set {
            // As pingora spells it.
            let name = if *name == HOST { "Host" } else { name.as_str() };
            put_line(&mut out, name.as_bytes(), value.as_bytes());
        }
        Some(out.into())
    }

    /// For a request that taglock makes itself: the client's end-to-end headers, and these.
    pub fn end_to_end(&self, client: &HeaderMap) -> HeaderMap {
        let nominated = nominated(client);
        let mut headers = HeaderMap::with_capacity(client.len() + self.set.len());
        for (name, value) in client {
            let dropped = self.replaces(name)
                || is_hop_by_hop(name)
                || nominated.iter().any(|nominated| nominated == name.as_str())
                || matches!(*name, CONTENT_LENGTH | EXPECT | HOST);
            if !dropped {
                headers.append(name, value.clone());
            }
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        headers
    }

    fn replaces(&self, name: &HeaderName) -> bool {
        !header_filter::may_pass(name) || self.traced && traces::is_trace_context(name)
    }
}

/// The headers that `Connection` names: of the connection as well.
fn nominated(client: &HeaderMap) -> Vec<String> {
    let values = client.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    names.map(|name| name.trim().to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Presence;

    #[test]
    fn the_clients_lines_are_relayed_as_they_are_but_for_ours_and_never_with_a_body() {
        let passed = |kind: Kind, lines: &str| {
            let mut client = HeaderMap::new();
            if lines.contains("X-Private") {
                client.append(CONNECTION, HeaderValue::from_static("keep-alive, X-Private"));
            }
            let host = (HOST, HeaderValue::from_static("registry:5000"));
            let forwarding = Forwarding { set: vec![host], traced: false };
            let bytes = forwarding.passed(kind, &client, format!("{lines}\r\n").as_bytes())?;
            Some(String::from_utf8(bytes.into()).unwrap())
        };
        let lines = "hOst: evil.example\r\nACCEPT:a/b \r\naccept: c/d\r\nRange: bytes=0-\r\n\
                     Connection: keep-alive, X-Private\r\nX-Private: 1\r\nTE: trailers\r\n\
                     X-Forwarded-Host: evil.example\r\nx_forwarded_for: 6.6.6.6\r\n\
                     Content_Length: 5\r\nX-Request-ID: 7\r\nAuthorization: Basic x\r\n";
        for (kind, range) in [(Kind::Plain, "Range: bytes=0-\r\n"), (Kind::Bound, "")] {
            let expected = format!(
                "ACCEPT:a/b \r\naccept: c/d\r\n{range}Authorization: Basic x\r\nHost: registry:5000\r\n"
            );
            assert_eq!(passed(kind, lines), Some(expected));
        }
        for line in
            ["Content-Length: 0", "transfer-encoding: chunked", "Expect: x", "A : b", "no", ": x"]
        {
            assert_eq!(passed(Kind::Plain, &format!("Host: x\r\n{line}\r\n")), None, "{line}");
        }
        let passage = Passage::new(Presence::default().enter(), std::time::Instant::now());
        let request = relayed(&Method::HEAD, b"/v2/a/manifests/b?c", b"Host: x\r\n", &passage);
        let id = &passage.id;
        assert_eq!(
            String::from_utf8(request.to_vec()).unwrap(),
            format!("HEAD /v2/a/manifests/b?c HTTP/1.1\r\nHost: x\r\nx-request-id: {id}\r\n\r\n")
        );
    }

    #[test]
    fn only_end_to_end_headers_go_on_and_repeated_ones_stay_repeated() {
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("accept", "a/b"),
            ("accept", "c/d"),
            ("authorization", "Basic x"),
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("host", "evil.example"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-prefix", "/x"),
            ("forwarded", "host=evil.example"),
            ("x-http-method-override", "PUT"),
            ("x_http_method_override", "PUT"),
            ("x_forwarded_host", "evil.example"),
            ("x-forwarded_host", "evil.example"),
            ("transfer_encoding", "chunked"),
            ("content_type", "text/plain"),
            ("script_name", "/v2/x"),
            ("x-script-name", "/v2/x"),
            ("x-real-ip", "6.6.6.6"),
            ("user-agent", "docker"),
        ] {
            client.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let set = vec![(HOST, HeaderValue::from_static("registry:5000"))];
        let forwarding = Forwarding { set, traced: false };
        let sent = forwarding.end_to_end(&client);
        let mut sent: Vec<_> = sent
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        sent.sort();
        assert_eq!(
            sent,
            [
                "accept: a/b",
                "accept: c/d",
                "authorization: Basic x",
                "host: registry:5000",
                "user-agent: docker"
            ]
        );
    }
}
