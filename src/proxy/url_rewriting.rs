//! URLs in answers that name the registry's own host, turned to name the proxy.
//!
//! Only fields that carry a URL for the client to go on with, and only where it names the registry
//! itself; path and query stay byte for byte, and any other host is passed untouched. `Alt-Svc` names
//! another way to the registry, past taglock, and is dropped.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Once;

use http::HeaderMap;
use http::header::{
    ALT_SVC, CONTENT_LOCATION, HeaderName, HeaderValue, LINK, LOCATION, REFRESH, WWW_AUTHENTICATE,
};
use pingora::Result;
use pingora::http::ResponseHeader;

use super::Edge;
use super::context::Passage;
use super::request_headers::put_line;
use crate::registry::client::Mark;
use crate::transport::endpoint::Origin;

/// From the registry's origin to what clients use.
pub struct Rewriting<'a> {
    registry: &'a Origin,
    client: Option<&'a Origin>,
}

/// The fields with URLs, and how those stand in them.
const FIELDS: [(HeaderName, Form); 5] = [
    (LOCATION, Form::Url),
    (CONTENT_LOCATION, Form::Url),
    (LINK, Form::Links),
    (REFRESH, Form::Refresh),
    (WWW_AUTHENTICATE, Form::Challenges),
];

#[derive(Clone, Copy)]
enum Form {
    /// The whole value is one URL.
    Url,
    /// `<URL>; rel=…, <URL>; anchor="URL"` (RFC 8288).
    Links,
    /// `5; url=URL`.
    Refresh,
    /// `Bearer realm="URL",service=…, Basic realm="…"` (RFC 9110, section 11.3).
    Challenges,
}

impl Edge {
    pub(super) fn rewriting<'a>(&'a self, passage: &'a Passage) -> Rewriting<'a> {
        Rewriting::new(self.rooms.peers.origin(), passage.client.base.as_deref())
    }
}

impl<'a> Rewriting<'a> {
    /// Of a registry's answers, for a client that named a host, or none.
    pub fn new(registry: &'a Origin, client: Option<&'a Origin>) -> Self {
        Self { registry, client }
    }
}

impl Rewriting<'_> {
    pub fn apply(&self, response: &mut ResponseHeader) -> Result<()> {
        response.remove_header(&ALT_SVC);
        for (name, values) in self.changes(&response.headers) {
            response.remove_header(&name);
            for value in values {
                response.append_header(name.clone(), value)?;
            }
        }
        Ok(())
    }

    pub fn apply_to(&self, headers: &mut HeaderMap) {
        headers.remove(ALT_SVC);
        for (name, values) in self.changes(headers) {
            headers.remove(&name);
            for value in values {
                headers.append(&name, value);
            }
        }
    }

    /// The headers that change, with all their values.
    fn changes(&self, headers: &HeaderMap) -> Vec<(HeaderName, Vec<HeaderValue>)> {
        let mut changes = Vec::new();
        for (name, form) in FIELDS {
            let mut changed = false;
            let values = headers.get_all(&name).iter().map(|value| {
                let rewritten = self.value(form, value.as_bytes());
                changed |= rewritten.is_some();
                rewritten.unwrap_or_else(|| value.clone())
            });
            let values = values.collect();
            if changed {
                changes.push((name, values));
            }
        }
        changes
    }

    /// Writes a marked line of a header, with its end, as it is to be.
    pub fn line(&self, mark: Mark, line: &[u8], out: &mut Vec<u8>) {
        let form = match mark {
            Mark::Dropped => return,
            Mark::Location | Mark::ContentLocation => Form::Url,
            Mark::Link => Form::Links,
            Mark::Refresh => Form::Refresh,
            Mark::Challenge => Form::Challenges,
        };
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        match self.value(form, value) {
            Some(value) => put_line(out, &line[..colon], value.as_bytes()),
            None => out.extend_from_slice(line),
        }
    }

    /// A value where it changes. What stands beside its URLs stays as it is, in whatever encoding.
    fn value(&self, form: Form, value: &[u8]) -> Option<HeaderValue> {
        let client = self.client?;
        let mut out = Vec::new();
        let mut copied = 0;
        for place in places(form, value) {
            let Some(url) = std::str::from_utf8(&value[place.clone()]).ok() else { continue };
            let Some(url) = self.url(&unescaped(form, url), client, form) else { continue };
            out.extend_from_slice(&value[copied..place.start]);
            out.extend_from_slice(url.as_bytes());
            copied = place.end;
        }
        if copied == 0 {
            return None;
        }
        out.extend_from_slice(&value[copied..]);
        HeaderValue::from_bytes(&out).ok()
    }

    /// The URL with the client's origin, where it has the registry's: with a scheme, or without one
    /// (`//host/…`).
    fn url(&self, url: &str, client: &Origin, form: Form) -> Option<String> {
        let (scheme, rest) = match url.strip_prefix("//") {
            Some(rest) => (None, rest),
            None => url.split_once("://").map(|(scheme, rest)| (Some(scheme), rest))?,
        };
        let tls = match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some("https") => Some(true),
            Some("http") => Some(false),
            None => None,
            Some(_) => return None,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        // Userinfo is for the registry, and no part of its name.
        let (user, host) = match authority.rsplit_once('@') {
            Some((_, host)) => (&authority[..authority.len() - host.len()], host),
            None => ("", authority),
        };
        if !self.is_registry(tls, host, form) {
            return None;
        }
        Some(format!("{}://{user}{}{path}", client.scheme(), client.authority()))
    }

    /// Whether this authority is the registry's, in a URL of this scheme.
    fn is_registry(&self, tls: Option<bool>, authority: &str, form: Form) -> bool {
        let Some((host, port)) = host_and_port(authority) else { return false };
        let registry = self.registry;
        let same = host.eq_ignore_ascii_case(&registry.host)
            || host.parse::<IpAddr>().is_ok_and(|host| registry.host.parse() == Ok(host));
        if !same {
            return false;
        }
        let default_port = |tls: bool| if tls { 443 } else { 80 };
        // A registry behind plain HTTP may believe in TLS, or not: its host is what counts.
        let own = match port {
            Some(port) => port == registry.port,
            None => [tls.unwrap_or(registry.tls), registry.tls]
                .into_iter()
                .any(|tls| default_port(tls) == registry.port),
        };
        // A token service of its own, on another port, is nothing unusual.
        if !own && !matches!(form, Form::Challenges) {
            warn_of_another_port(authority, registry);
        }
        own
    }
}

/// Once: a registry that does so does it with each answer.
fn warn_of_another_port(authority: &str, registry: &Origin) {
    static WARNED: Once = Once::new();
    let own = registry.authority();
    WARNED.call_once(|| {
        tracing::warn!(
            "the registry names itself as `{authority}` in a `Location` or `Link`, but `upstream.url` has `{own}`: \
             the URL is passed on as it is, and leads clients past taglock. If it is the same registry, set \
             `upstream.url` to that port, or let the registry answer with relative URLs (this is said once)"
        );
    });
}

/// A host without brackets and without the dot of the root, and its port where it is named.
fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = match port.strip_prefix(':') {
        // A colon without a port means the scheme's own.
        Some("") | None => None,
        Some(port) => Some(port.parse().ok()?),
    };
    Some((host.strip_suffix('.').unwrap_or(host), port))
}

/// Where the URLs stand in a value.
fn places(form: Form, value: &[u8]) -> Vec<Range<usize>> {
    match form {
        Form::Url => std::iter::once(0..value.len()).collect(),
        Form::Links => {
            let mut places = parameters(value, "anchor");
            // Some registries leave the angle brackets out.
            if !value.contains(&b'<') {
                let end = value.iter().position(|b| b";, ".contains(b)).unwrap_or(value.len());
                places.insert(0, 0..end);
            }
            places.extend(targets(value));
            places.sort_by_key(|place| place.start);
            places
        }
        Form::Refresh => parameters(value, "url"),
        Form::Challenges => parameters(value, "realm"),
    }
}

/// A quoted value without its backslashes: `realm="https:\/\/…"`.
fn unescaped(form: Form, url: &str) -> Cow<'_, str> {
    match form {
        Form::Challenges | Form::Links if url.contains('\\') => url.replace('\\', "").into(),
        _ => url.into(),
    }
}

/// What stands in angle brackets, outside of quotes.
fn targets(value: &[u8]) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut at = 0;
    while at < value.len() {
        match value[at] {
            b'"' => at = end_of_quotes(value, at + 1) + 1,
            b'<' => {
                let end = find(value, at, b'>');
                places.push(at + 1..end);
                at = end + 1;
            }
            _ => at += 1,
        }
    }
    places
}

/// The values of all parameters of this name, without their quotes, outside of other values.
fn parameters(value: &[u8], name: &str) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut at = 0;
    while at < value.len() {
        match value[at] {
            b'"' => at = end_of_quotes(value, at + 1) + 1,
            b'<' => at = find(value, at, b'>') + 1,
            b'=' => {
                let named = is_named(&value[..at], name);
                at += 1;
                at += value[at..].iter().take_while(|b| b" \t".contains(b)).count();
                let (start, end) = match value.get(at) {
                    Some(b'"') => (at + 1, end_of_quotes(value, at + 1)),
                    // Browsers take these for `Refresh`.
                    Some(b'\'') => (at + 1, find(value, at + 1, b'\'')),
                    _ => {
                        let rest = &value[at..];
                        let length = rest.iter().position(|b| b",; \t".contains(b));
                        (at, at + length.unwrap_or(rest.len()))
                    }
                };
                if named {
                    places.push(start..end);
                }
                // Behind a closing quote.
                at = if start == at { end } else { end + 1 };
            }
            _ => at += 1,
        }
    }
    places
}

/// Whether what stands before an equals sign ends with this name.
fn is_named(before: &[u8], name: &str) -> bool {
    let before = before.trim_ascii_end();
    let start = before.iter().rposition(|b| b",; \t\"".contains(b)).map_or(0, |at| at + 1);
    before[start..].eq_ignore_ascii_case(name.as_bytes())
}

/// The place of the closing quote, or the value's end.
fn end_of_quotes(value: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(byte) = value.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    value.len()
}

fn find(value: &[u8], start: usize, byte: u8) -> usize {
    let rest = value.get(start..).unwrap_or_default();
    memchr::memchr(byte, rest).map_or(value.len(), |at| start + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(tls: bool, host: &str, port: u16) -> Origin {
        Origin { tls, host: host.into(), port }
    }

    fn rewritten_of(registry: &Origin, name: HeaderName, value: &str) -> String {
        let client = origin(true, "registry.example.com", 443);
        let rewriting = Rewriting { registry, client: Some(&client) };
        let mut headers = HeaderMap::new();
        headers.append(&name, HeaderValue::from_str(value).unwrap());
        rewriting.apply_to(&mut headers);
        let map = headers.get(&name).unwrap().to_str().unwrap().to_owned();
        // The same in a line.
        let mark = match name {
            LOCATION => Mark::Location,
            CONTENT_LOCATION => Mark::ContentLocation,
            LINK => Mark::Link,
            REFRESH => Mark::Refresh,
            _ => Mark::Challenge,
        };
        let mut out = Vec::new();
        rewriting.line(mark, format!("{name}: {value}\r\n").as_bytes(), &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{name}: {map}\r\n"));
        map
    }

    fn rewritten(name: HeaderName, value: &str) -> String {
        rewritten_of(&origin(false, "127.0.0.1", 5001), name, value)
    }

    #[test]
    fn locations_of_the_registry_itself_name_the_proxy_and_keep_their_bytes() {
        for (value, expected) in [
            (
                "http://127.0.0.1:5001/v2/a/blobs/uploads/1?_state=x%3D%3D&b=%2F",
                "https://registry.example.com/v2/a/blobs/uploads/1?_state=x%3D%3D&b=%2F",
            ),
            ("https://127.0.0.1:5001", "https://registry.example.com"),
            ("HTTP://127.0.0.1:5001?x", "https://registry.example.com?x"),
            ("//127.0.0.1:5001/v2/a", "https://registry.example.com/v2/a"),
            ("http://me@127.0.0.1:5001/v2/a", "https://me@registry.example.com/v2/a"),
            ("/v2/a/blobs/uploads/1", "/v2/a/blobs/uploads/1"),
            ("?x=http://127.0.0.1:5001/", "?x=http://127.0.0.1:5001/"),
            ("https://s3.example.com/a?sig=%2B", "https://s3.example.com/a?sig=%2B"),
            ("//s3.example.com/a", "//s3.example.com/a"),
            ("http://127.0.0.1:5002/v2/", "http://127.0.0.1:5002/v2/"),
            ("http://127.0.0.1:5001.evil.example/", "http://127.0.0.1:5001.evil.example/"),
            ("http://127.0.0.1:5001@evil.example/", "http://127.0.0.1:5001@evil.example/"),
            ("ftp://127.0.0.1:5001/", "ftp://127.0.0.1:5001/"),
        ] {
            assert_eq!(rewritten(LOCATION, value), expected);
            assert_eq!(rewritten(CONTENT_LOCATION, value), expected);
        }
    }

    #[test]
    fn the_registry_is_known_by_every_spelling_of_its_host_and_port() {
        let tls = origin(true, "r.example", 443);
        for value in [
            "https://r.example/x",
            "https://r.example:443/x",
            "https://r.example:/x",
            "HTTPS://R.Example./x",
            "//R.EXAMPLE/x",
            "http://r.example/x",
        ] {
            assert_eq!(rewritten_of(&tls, LOCATION, value), "https://registry.example.com/x");
        }
        for value in ["https://r.example:8443/x", "http://r.example:80/x", "https://a.r.example/x"]
        {
            assert_eq!(rewritten_of(&tls, LOCATION, value), value);
        }
        let six = origin(false, "::1", 5000);
        for value in ["http://[::1]:5000/x", "//[0:0::1]:5000/x"] {
            assert_eq!(rewritten_of(&six, LOCATION, value), "https://registry.example.com/x");
        }
    }

    #[test]
    fn links_of_the_registry_itself_name_the_proxy_and_relative_ones_stay() {
        for (value, expected) in [
            (
                r#"<http://127.0.0.1:5001/v2/a/tags/list?last=b&n=1>; rel="next""#,
                r#"<https://registry.example.com/v2/a/tags/list?last=b&n=1>; rel="next""#,
            ),
            (
                r#"<HTTP://127.0.0.1:5001/1>;rel=prev,<//127.0.0.1:5001/2> ; REL="next" ; title="a, <http://127.0.0.1:5001/>""#,
                r#"<https://registry.example.com/1>;rel=prev,<https://registry.example.com/2> ; REL="next" ; title="a, <http://127.0.0.1:5001/>""#,
            ),
            (
                r#"<http://127.0.0.1:5001/1,2>; rel=next; anchor="http://127.0.0.1:5001/""#,
                r#"<https://registry.example.com/1,2>; rel=next; anchor="https://registry.example.com/""#,
            ),
            (
                r#"http://127.0.0.1:5001/v2/?n=1; rel="next""#,
                r#"https://registry.example.com/v2/?n=1; rel="next""#,
            ),
            ("</v2/a?last=b>; rel=next", "</v2/a?last=b>; rel=next"),
            ("<?last=b>; rel=next", "<?last=b>; rel=next"),
            ("<http://127.0.0.1:5002/>; rel=next", "<http://127.0.0.1:5002/>; rel=next"),
            ("<https://elsewhere.example/>; rel=help", "<https://elsewhere.example/>; rel=help"),
            ("<http://127.0.0.1:5001/x", "<https://registry.example.com/x"),
            ("<", "<"),
        ] {
            assert_eq!(rewritten(LINK, value), expected);
        }
    }

    #[test]
    fn a_refresh_names_the_proxy() {
        for (value, expected) in [
            ("5; url=http://127.0.0.1:5001/x", "5; url=https://registry.example.com/x"),
            ("5;URL = 'http://127.0.0.1:5001/x'", "5;URL = 'https://registry.example.com/x'"),
            ("5", "5"),
            ("5; url=/x", "5; url=/x"),
        ] {
            assert_eq!(rewritten(REFRESH, value), expected);
        }
    }

    #[test]
    fn realms_on_the_registry_itself_name_the_proxy() {
        for (value, expected) in [
            (
                r#"Bearer realm="http://127.0.0.1:5001/auth/token",service="r",scope="a:b,c""#,
                r#"Bearer realm="https://registry.example.com/auth/token",service="r",scope="a:b,c""#,
            ),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#,
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io""#,
            ),
            (r#"Basic realm="test""#, r#"Basic realm="test""#),
            (r#"Negotiate abc=="#, r#"Negotiate abc=="#),
            // Several in one value, the last of which counts for docker.
            (
                r#"Basic realm="x", Bearer service="realm=", Realm = "http:\/\/127.0.0.1:5001/t", Bearer realm=http://127.0.0.1:5001/u,service=r"#,
                r#"Basic realm="x", Bearer service="realm=", Realm = "https://registry.example.com/t", Bearer realm=https://registry.example.com/u,service=r"#,
            ),
            (
                r#"Bearer error="\"realm=\"http://127.0.0.1:5001/",xrealm="http://127.0.0.1:5001/""#,
                r#"Bearer error="\"realm=\"http://127.0.0.1:5001/",xrealm="http://127.0.0.1:5001/""#,
            ),
        ] {
            assert_eq!(rewritten(WWW_AUTHENTICATE, value), expected);
        }
    }

    #[test]
    fn several_lines_stay_several_and_no_other_service_is_named() {
        let registry = origin(true, "r.example", 443);
        let client = origin(false, "localhost", 5000);
        let mut headers = HeaderMap::new();
        for value in [r#"Bearer realm="https://r.example/t""#, r#"Basic realm="x""#] {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        for value in ["<https://r.example/1>; rel=prev", "<https://r.example/2>; rel=next"] {
            headers.append(LINK, HeaderValue::from_static(value));
        }
        headers.append(
            LINK,
            HeaderValue::from_bytes(b"<https://r.example/3>; title=\"\xe9\"").unwrap(),
        );
        headers.append(ALT_SVC, HeaderValue::from_static("h3=\"r.example:443\""));
        Rewriting { registry: &registry, client: Some(&client) }.apply_to(&mut headers);
        let values =
            |name| headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        assert_eq!(
            values(WWW_AUTHENTICATE),
            [&br#"Bearer realm="http://localhost:5000/t""#[..], br#"Basic realm="x""#]
        );
        assert_eq!(
            values(LINK),
            [
                &b"<http://localhost:5000/1>; rel=prev"[..],
                b"<http://localhost:5000/2>; rel=next",
                b"<http://localhost:5000/3>; title=\"\xe9\"",
            ]
        );
        assert!(!headers.contains_key(ALT_SVC));
    }
}
