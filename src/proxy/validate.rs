//! What is refused before anybody looks at the target: framing that has two readings, tunnels,
//! hosts that are not ours.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, StatusCode, Version};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::context::Client;
use super::{Config, unknown_address};
use crate::registry::framing::is_length;
use crate::route::{ErrorCode, Rejection};
use crate::transport::endpoint::Origin;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A request's header, whoever has read it.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    pub header: &'a RequestHeader,
    /// As it came, in HTTP/1.
    pub raw: Option<&'a [u8]>,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Who sent it, where the same lines below the first were admitted before on its connection.
    pub known: Option<&'a Client>,
}

/// Checks a request's header and says who sent it.
pub fn admit(head: &Head<'_>, config: &Config) -> Result<Client, Rejection> {
    let header = head.header;
    if let (Some(raw), Some(client)) = (head.raw, head.known) {
        check_first_line(raw, config.max_header)?;
        return Ok(client.clone());
    }
    match head.raw {
        Some(raw) => check_raw(raw, config.max_header)?,
        None => check_size(&header.headers, config.max_header)?,
    }
    check_framing(header.version, &header.headers)?;
    let authority = authority(header.version, &header.uri, &header.headers)?;
    check_host(authority.as_deref(), config)?;
    Ok(client(head.peer, authority, &header.headers, config))
}

/// The other end of the connection.
pub fn peer_of(session: &Session) -> SocketAddr {
    let socket = session.client_addr().and_then(|address| address.as_inet());
    socket.copied().unwrap_or_else(unknown_address)
}

/// The header as it came over the wire: pingora hands on a tidied one, in which some of what has
/// two readings is gone.
fn check_raw(raw: &[u8], max: usize) -> Result<(), Rejection> {
    let lines = check_first_line(raw, max)?;
    let mut lengths = 0;
    let mut codings = 0;
    for line in lines.split_inclusive(|b| *b == b'\n') {
        if !line.ends_with(b"\r\n") {
            return Err(bare_line_feed());
        }
        if line.starts_with(b" ") || line.starts_with(b"\t") {
            return Err(bad("a header is folded over two lines"));
        }
        let name = line.split(|b| *b == b':').next().unwrap_or_default().trim_ascii();
        lengths += usize::from(name.eq_ignore_ascii_case(b"content-length"));
        codings += usize::from(name.eq_ignore_ascii_case(b"transfer-encoding"));
    }
    check_counts(lengths, codings)
}

/// A body has one length, or one coding, whatever the version of HTTP.
fn check_counts(lengths: usize, codings: usize) -> Result<(), Rejection> {
    match (lengths, codings) {
        (0..=1, 0) | (0, 1) => Ok(()),
        (0, _) => Err(bad("more than one Transfer-Encoding")),
        (_, 0) => Err(bad("more than one Content-Length")),
        (_, _) => Err(bad("both a Content-Length and a Transfer-Encoding")),
    }
}

/// What a header is besides the lines below its first, which are left.
fn check_first_line(raw: &[u8], max: usize) -> Result<&[u8], Rejection> {
    if raw.len() > max {
        return Err(too_large());
    }
    let end = memchr::memchr(b'\n', raw).map_or(raw.len(), |end| end + 1);
    let (line, lines) = raw.split_at(end);
    if line.contains(&b'#') {
        return Err(Rejection::target("a target has no fragment"));
    }
    if line.ends_with(b"\r\n") { Ok(lines) } else { Err(bare_line_feed()) }
}

/// HTTP/2 has no raw lines, but as much room.
fn check_size(headers: &HeaderMap, max: usize) -> Result<(), Rejection> {
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if size > max { Err(too_large()) } else { Ok(()) }
}

fn check_framing(version: Version, headers: &HeaderMap) -> Result<(), Rejection> {
    let count = |name: HeaderName| headers.get_all(name).iter().count();
    check_counts(count(CONTENT_LENGTH), count(TRANSFER_ENCODING))?;
    if let Some(coding) = headers.get(TRANSFER_ENCODING)
        && !coding.as_bytes().eq_ignore_ascii_case(b"chunked")
    {
        return Err(bad("a Transfer-Encoding other than `chunked`"));
    }
    if version >= Version::HTTP_2 && headers.contains_key(TRANSFER_ENCODING) {
        return Err(bad("HTTP/2 has no Transfer-Encoding"));
    }
    if headers.get(CONTENT_LENGTH).is_some_and(|value| !is_length(value.as_bytes())) {
        return Err(bad("a Content-Length that is not one number"));
    }
    let tokens = headers.get_all(CONNECTION).iter().flat_map(|value| {
        let tokens = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        tokens.filter(|token| !token.is_empty())
    });
    // What can't be read can't be taken off at this hop.
    let named: Vec<_> = tokens
        .map(HeaderName::from_bytes)
        .collect::<Result<_, _>>()
        .map_err(|_| bad("`Connection` is not a list of names"))?;
    let names = |some: &[HeaderName]| some.iter().any(|name| named.contains(name));
    // What `Connection` names ends at the next hop, and with these a request's end, or its host.
    if names(&[CONTENT_LENGTH, TRANSFER_ENCODING, HOST]) {
        return Err(bad("`Connection` names a header that frames the request"));
    }
    // A connection that changes its protocol would be a tunnel past every check.
    let of_a_tunnel = [UPGRADE, HeaderName::from_static("http2-settings")];
    if of_a_tunnel.iter().any(|name| headers.contains_key(name)) || names(&of_a_tunnel) {
        return Err(bad("no request is upgraded to another protocol"));
    }
    Ok(())
}

/// The one authority of a request: `Host`, and in HTTP/2 `:authority`, which must agree.
fn authority(
    version: Version,
    uri: &http::Uri,
    headers: &HeaderMap,
) -> Result<Option<String>, Rejection> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("more than one Host"));
    }
    let host = match host {
        Some(host) => Some(host.to_str().map_err(|_| bad("a Host that is no host"))?.to_owned()),
        None => None,
    };
    let named = uri.authority().map(|authority| authority.as_str().to_owned());
    let authority = match (named, host) {
        (Some(named), Some(host)) if !named.eq_ignore_ascii_case(&host) => {
            return Err(bad("the Host and the target's authority differ"));
        }
        (Some(named), _) => Some(named),
        (None, host) => host,
    };
    match &authority {
        None if version >= Version::HTTP_11 => Err(bad("the Host is missing")),
        Some(text) if !is_authority(text) => Err(bad("a Host that is no host")),
        _ => Ok(authority),
    }
}

fn is_authority(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:[]".contains(&b))
}

fn check_host(authority: Option<&str>, config: &Config) -> Result<(), Rejection> {
    if config.hosts.is_empty() {
        return Ok(());
    }
    let host = authority.unwrap_or_default().to_ascii_lowercase();
    let default_port = if config.tls { ":443" } else { ":80" };
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    if config.hosts.iter().any(|known| known == host) {
        Ok(())
    } else {
        Err(Rejection {
            status: StatusCode::MISDIRECTED_REQUEST,
            code: ErrorCode::Denied,
            message: "this host is not served here (`listen.hosts`)".into(),
            allow: None,
        })
    }
}

/// What the connection tells of the client, corrected by `listen.external_url` and by what
/// trusted proxies report. Anybody else's `X-Forwarded-*` is not looked at.
fn client(
    peer: SocketAddr,
    authority: Option<String>,
    headers: &HeaderMap,
    config: &Config,
) -> Client {
    let host = authority.as_deref().filter(|_| config.client_host);
    let host = host.and_then(|text| text.parse().ok());
    let mut scheme_tls = config.tls;
    let mut authority = authority;
    let mut address = peer.ip();
    let mut via = None;
    if config.trusted_proxies.iter().any(|network| network.contains(&address)) {
        // Proxies append: the last line, and the last of a list, is the nearest one's.
        let last = |name: &HeaderName| {
            let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
            line.rsplit(',').next().map(str::trim)
        };
        match last(&FORWARDED_PROTO) {
            Some("https") => scheme_tls = true,
            Some("http") => scheme_tls = false,
            _ => {}
        }
        if let Some(forwarded) = last(&FORWARDED_HOST).filter(|h| is_authority(h)) {
            authority = Some(forwarded.to_owned());
        }
        let lines = headers.get_all(&FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
        let chain = lines.collect::<Vec<_>>().join(", ");
        // The nearest address that no trusted proxy speaks for.
        for part in chain.rsplit(',') {
            let Ok(reported) = part.trim().parse::<IpAddr>() else { break };
            address = reported;
            if !config.trusted_proxies.iter().any(|network| network.contains(&reported)) {
                break;
            }
        }
        via = (!chain.is_empty()).then_some(chain);
    }
    let base = config
        .external
        .clone()
        .or_else(|| authority.as_deref().and_then(|text| origin(scheme_tls, text)))
        .map(Arc::new);
    Client { address, peer: peer.ip(), base, host, via }
}

fn origin(tls: bool, authority: &str) -> Option<Origin> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Some(Origin { tls, host, port })
}

fn bare_line_feed() -> Rejection {
    bad("a line of the header ends without a carriage return")
}

fn bad(message: &'static str) -> Rejection {
    Rejection {
        status: StatusCode::BAD_REQUEST,
        code: ErrorCode::Unsupported,
        message: message.into(),
        allow: None,
    }
}

/// A header over `limits.header`.
pub fn too_large() -> Rejection {
    Rejection {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        code: ErrorCode::SizeInvalid,
        message: "the request's header is too large (`limits.header`)".into(),
        allow: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Result<(), Rejection> {
        check_raw(text.as_bytes(), 1000)
    }

    #[test]
    fn headers_with_two_readings_are_refused() {
        assert_eq!(raw("GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"), Ok(()));
        assert_eq!(
            raw("PUT /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Ok(())
        );
        for bad in [
            "GET /v2/ HTTP/1.1\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\n\r\n",
            "GET /v2/#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(raw(bad).unwrap_err().status, 400, "{bad:?}");
        }
        let long = format!("GET /v2/ HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(1000));
        assert_eq!(raw(&long).unwrap_err().status, 431);
    }

    #[test]
    fn what_is_not_below_the_first_line_is_checked_of_each_request() {
        let check = |raw: &str| check_first_line(raw.as_bytes(), 100).map(<[u8]>::to_vec);
        let lines = "Host: a\r\n\r\n";
        assert_eq!(check(&format!("GET /v2/ HTTP/1.1\r\n{lines}")), Ok(lines.as_bytes().to_vec()));
        let long = format!("/v2/{}", "a".repeat(100));
        for (line, status) in [
            ("GET /v2/#x HTTP/1.1\r\n".to_owned(), 400),
            ("GET /v2/ HTTP/1.1\n".to_owned(), 400),
            (format!("GET {long} HTTP/1.1\r\n"), 431),
        ] {
            let raw = format!("{line}{lines}");
            assert_eq!(check(&raw).unwrap_err().status, status, "{line:?}");
            // Also where the lines are known.
            let header = RequestHeader::build("GET", b"/v2/", None).unwrap();
            let (peer, client) = (unknown_address(), Client::unknown());
            let head =
                Head { header: &header, raw: Some(raw.as_bytes()), peer, known: Some(&client) };
            let config = Config { max_header: 100, ..config() };
            assert_eq!(admit(&head, &config).unwrap_err().status, status, "{line:?}");
        }
    }

    #[test]
    fn no_connection_may_name_what_frames_a_request_or_what_is_no_name() {
        let framing = |connection: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.append(CONNECTION, "keep-alive".parse().unwrap());
            headers.append(CONNECTION, http::HeaderValue::from_bytes(connection).unwrap());
            check_framing(Version::HTTP_11, &headers)
        };
        for good in ["close", "X-Y, keep-alive", "content-lengthy", "", ", a,,b\t"] {
            assert_eq!(framing(good.as_bytes()), Ok(()), "{good}");
        }
        let bad: [&[u8]; 9] = [
            b"Content-Length",
            b"x ,\tTRANSFER-ENCODING",
            b"close,host",
            b"Upgrade",
            b"a, http2-settings",
            // Nor what nobody can tell the name of.
            b"X-Y, \xe9",
            b"X Y",
            b"close;X-Y",
            b"\"X-Y\"",
        ];
        for bad in bad {
            assert_eq!(framing(bad).unwrap_err().status, 400, "{}", bad.escape_ascii());
        }
    }

    fn config() -> Config {
        Config {
            upstream: crate::name::UpstreamName::parse("default").unwrap(),
            doors: crate::route::Doors::default(),
            namespace: None,
            hosts: Vec::new(),
            external: None,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            tls: false,
            client_host: false,
            media: std::sync::Arc::new(
                crate::registry::media::MediaTypes::new(Vec::new()).unwrap(),
            ),
            options: crate::judge::Options::default(),
            strict: false,
            max_manifest: 1,
            swift: true,
            registry_tls: false,
            relays: true,
            lanes: 1,
            max_header: 1,
            manifest_time: std::time::Duration::from_secs(1),
            body_rate: 0,
            access_log: true,
        }
    }

    #[test]
    fn the_nearest_untrusted_address_is_the_client() {
        let config = config();
        let seen = |peer: &str, lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, http::HeaderValue::from_static(line));
            }
            let peer = SocketAddr::new(peer.parse().unwrap(), 1);
            let client = client(peer, Some("r.example".into()), &headers, &config);
            (client.address.to_string(), client.via)
        };
        let owned = |text: &str| Some(text.to_owned());
        assert_eq!(seen("10.0.0.1", &[]), ("10.0.0.1".into(), None));
        assert_eq!(seen("10.0.0.1", &["1.2.3.4"]), ("1.2.3.4".into(), owned("1.2.3.4")));
        // A forged first line, and the balancer's own second one.
        assert_eq!(
            seen("10.0.0.1", &["6.6.6.6", "1.2.3.4"]),
            ("1.2.3.4".into(), owned("6.6.6.6, 1.2.3.4"))
        );
        assert_eq!(seen("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"]).0, "1.2.3.4");
        // From anybody else it is not looked at.
        assert_eq!(seen("9.9.9.9", &["1.2.3.4"]), ("9.9.9.9".into(), None));
    }

    #[test]
    fn framing_and_tunnels_are_refused() {
        let check = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, http::HeaderValue::from_static(value));
            }
            check_framing(Version::HTTP_11, &headers).is_ok()
        };
        assert!(check(&[]));
        assert!(check(&[("transfer-encoding", "Chunked"), ("connection", "keep-alive")]));
        for bad in [
            ("transfer-encoding", "gzip, chunked"),
            ("transfer-encoding", "chunked, identity"),
            ("transfer-encoding", "xchunked"),
            ("content-length", "1, 1"),
            ("content-length", "+1"),
            ("content-length", "010"),
            ("content-length", ""),
            ("upgrade", "h2c"),
            ("connection", "keep-alive, Upgrade"),
            ("connection", "HTTP2-Settings"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ] {
            assert!(!check(&[bad]), "{bad:?}");
        }
    }
}
