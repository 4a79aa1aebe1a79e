//! What the registry is told of a request besides what the client said.

use std::sync::Arc;

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName,
    HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Version};
use pingora::Result;
use pingora::http::RequestHeader;

use super::Edge;
use super::passage::{Client, Passage};
use crate::telemetry::traces;

/// Headers by which a framework behind the registry's own front might be told to see another
/// method or target than the one that was judged.
const OVERRIDES: [&str; 6] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
];

/// Of the connection, not of the request (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What the registry is told of a client, the same in each of its requests.
pub type Introduction = Arc<[(HeaderName, HeaderValue)]>;

/// The changes to one request's header: these are set, and what could contradict them goes.
pub struct Forwarding {
    introduction: Introduction,
    /// Of this request alone.
    set: Vec<(HeaderName, HeaderValue)>,
    /// The trace of `set` is told in place of the client's.
    traced: bool,
}

impl Edge {
    /// `X-Forwarded-*` and `Forwarded` say what taglock knows, whatever the client said: registries
    /// build the URLs of uploads from them.
    pub(super) fn forwarding(&self, passage: &Passage) -> Forwarding {
        Forwarding::of(passage, self.introduction(&passage.client))
    }

    pub(super) fn introduction(&self, client: &Client) -> Introduction {
        let mut set = Vec::with_capacity(5);
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
        set.into()
    }
}

impl Forwarding {
    pub(super) fn of(passage: &Passage, introduction: Introduction) -> Self {
        let mut set = Vec::with_capacity(3);
        set.push((REQUEST_ID, passage.id.header().clone()));
        if let Some(trace) = &passage.trace {
            set.extend(trace.onwards().iter().map(|(n, v)| (n.clone(), v.clone())));
        }
        Self { introduction, set, traced: passage.trace.is_some() }
    }

    fn all(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.set.iter().chain(self.introduction.iter())
    }

    /// For a request that streams through pingora, which strips the hop-by-hop headers itself.
    pub fn apply(&self, request: &mut RequestHeader) -> Result<()> {
        let names: Vec<_> = request.headers.keys().filter(|n| self.replaces(n)).cloned().collect();
        for name in names {
            request.remove_header(&name);
        }
        for (name, value) in self.all() {
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
        for name in &HOP_BY_HOP {
            request.remove_header(name);
        }
        self.apply(&mut request)?;
        Ok(request)
    }

    /// For a read that is relayed, of this target: the client's own lines, given its header as it
    /// came, but for some. `None` where one of them is not plain.
    pub fn relayed(
        &self,
        client: &RequestHeader,
        raw: &[u8],
        target: &[u8],
        unsent: &[HeaderName],
    ) -> Option<Vec<u8>> {
        if raw.starts_with(b"\r") {
            // Empty lines before the first: where the header begins is pingora's to say.
            return None;
        }
        let nominated = nominated(&client.headers);
        let mut out = Vec::with_capacity(raw.len() + 512);
        for part in [client.method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
            out.extend_from_slice(part);
        }
        for line in raw.split_inclusive(|byte| *byte == b'\n').skip(1) {
            if line == b"\r\n" {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            if matches!(name, CONTENT_LENGTH | TRANSFER_ENCODING | EXPECT) {
                return None;
            }
            let dropped = self.replaces(&name)
                || HOP_BY_HOP.contains(&name)
                || unsent.contains(&name)
                || nominated.iter().any(|nominated| nominated == name.as_str())
                || self.all().any(|(set, _)| *set == name);
            if !dropped {
                out.extend_from_slice(line);
            }
        }
        for (name, value) in self.all() {
            // As pingora spells it.
            let name = if *name == HOST { "Host" } else { name.as_str() };
            for part in [name.as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
        out.extend_from_slice(b"\r\n");
        Some(out)
    }

    /// For a request that taglock makes itself: the client's end-to-end headers, and these.
    pub fn end_to_end(&self, client: &HeaderMap) -> HeaderMap {
        let nominated = nominated(client);
        let mut headers = HeaderMap::with_capacity(client.len() + self.all().count());
        for (name, value) in client {
            let dropped = self.replaces(name)
                || HOP_BY_HOP.contains(name)
                || nominated.iter().any(|nominated| nominated == name.as_str())
                || matches!(*name, CONTENT_LENGTH | EXPECT | HOST);
            if !dropped {
                headers.append(name, value.clone());
            }
        }
        for (name, value) in self.all() {
            headers.insert(name, value.clone());
        }
        headers
    }

    fn replaces(&self, name: &HeaderName) -> bool {
        is_replaced(name) || self.traced && traces::is_trace_context(name)
    }
}

/// The headers that `Connection` names: of the connection as well.
fn nominated(client: &HeaderMap) -> Vec<String> {
    let values = client.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let names = values.flat_map(|value| value.split(','));
    names.map(|name| name.trim().to_ascii_lowercase()).collect()
}

fn is_replaced(name: &HeaderName) -> bool {
    let replaced = |name: &str| {
        name.starts_with("x-forwarded-") || name == "forwarded" || OVERRIDES.contains(&name)
    };
    if !name.as_str().contains('_') {
        return replaced(name.as_str());
    }
    // Servers that hand headers on as variables take `_` for `-`: framing and host, too.
    let name = name.as_str().replace('_', "-");
    let of_the_message = [CONTENT_LENGTH, TRANSFER_ENCODING, HOST, CONTENT_TYPE, CONTENT_ENCODING];
    replaced(&name) || of_the_message.iter().any(|header| header.as_str() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_lines_are_relayed_as_they_are_but_for_ours_and_never_with_a_body() {
        let relayed = |lines: &str| {
            let mut client = RequestHeader::build("GET", b"/v2/a/manifests/b?c", None).unwrap();
            if lines.contains("X-Private") {
                client.append_header("Connection", "keep-alive, X-Private").unwrap();
            }
            let raw = format!("GET /v2/a/manifests/b?c HTTP/1.1\r\n{lines}\r\n");
            let host = (HOST, HeaderValue::from_static("registry:5000"));
            let forwarding =
                Forwarding { introduction: [host].into(), set: Vec::new(), traced: false };
            let unsent = [http::header::RANGE];
            let bytes =
                forwarding.relayed(&client, raw.as_bytes(), b"/v2/a/manifests/d", &unsent)?;
            Some(String::from_utf8(bytes).unwrap())
        };
        let lines = "hOst: evil.example\r\nACCEPT:a/b \r\naccept: c/d\r\nRange: bytes=0-\r\n\
                     Connection: keep-alive, X-Private\r\nX-Private: 1\r\nTE: trailers\r\n\
                     X-Forwarded-Host: evil.example\r\nx_forwarded_for: 6.6.6.6\r\n\
                     Content_Length: 5\r\nAuthorization: Basic x\r\n";
        assert_eq!(
            relayed(lines).as_deref(),
            Some(
                "GET /v2/a/manifests/d HTTP/1.1\r\nACCEPT:a/b \r\naccept: c/d\r\n\
                 Authorization: Basic x\r\nHost: registry:5000\r\n\r\n"
            )
        );
        for line in
            ["Content-Length: 0", "transfer-encoding: chunked", "Expect: x", "A : b", "no", ": x"]
        {
            assert_eq!(relayed(&format!("Host: x\r\n{line}\r\n")), None, "{line}");
        }
        let client = RequestHeader::build("GET", b"/", None).unwrap();
        let forwarding = Forwarding { introduction: [].into(), set: Vec::new(), traced: false };
        let raw = b"\r\n\r\nGET / HTTP/1.1\r\nAuthorization: Basic x\r\n\r\n";
        assert_eq!(forwarding.relayed(&client, raw, b"/", &[]), None);
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
            ("user-agent", "docker"),
        ] {
            client.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let introduction = [(HOST, HeaderValue::from_static("registry:5000"))].into();
        let forwarding = Forwarding { introduction, set: Vec::new(), traced: false };
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
