//! URLs in answers that name the registry's own host, turned to name the proxy.
//!
//! Only `Location` and the realm in `WWW-Authenticate`, and only where they name the registry
//! itself; path and query stay byte for byte, and any other host is passed untouched.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use pingora::Result;
use pingora::http::ResponseHeader;

use super::Edge;
use super::forwarding::put_line;
use super::passage::Passage;
use crate::registry::peer::Origin;

/// From the registry's origin to what clients use.
pub struct Rewriting<'a> {
    registry: &'a Origin,
    client: Option<&'a Origin>,
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
        for (name, values) in self.changes(&response.headers) {
            response.remove_header(&name);
            for value in values {
                response.append_header(name.clone(), value)?;
            }
        }
        Ok(())
    }

    pub fn apply_to(&self, headers: &mut HeaderMap) {
        for (name, values) in self.changes(headers) {
            headers.remove(&name);
            for value in values {
                headers.append(&name, value);
            }
        }
    }

    /// The headers that change, with all their values.
    fn changes(&self, headers: &HeaderMap) -> Vec<(HeaderName, Vec<HeaderValue>)> {
        let Some(client) = self.client else { return Vec::new() };
        let mut changes = Vec::new();
        for name in [LOCATION, WWW_AUTHENTICATE] {
            let mut changed = false;
            let rewrite = |value: &HeaderValue| {
                let text = self.text(&name, value.to_str().ok()?, client)?;
                HeaderValue::from_str(&text).ok()
            };
            let values = headers
                .get_all(&name)
                .iter()
                .map(|value| {
                    rewrite(value).map_or_else(
                        || value.clone(),
                        |rewritten| {
                            changed = true;
                            rewritten
                        },
                    )
                })
                .collect();
            if changed {
                changes.push((name, values));
            }
        }
        changes
    }

    /// Writes a line of a header that has this name, with its end, as it is to be.
    pub fn line(&self, name: &HeaderName, line: &[u8], out: &mut Vec<u8>) {
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        match self.value(name, value) {
            Some(value) => put_line(out, &line[..colon], value.as_bytes()),
            None => out.extend_from_slice(line),
        }
    }

    /// A value where it changes.
    fn value(&self, name: &HeaderName, value: &[u8]) -> Option<String> {
        let value = HeaderValue::from_bytes(value).ok()?;
        self.text(name, value.to_str().ok()?, self.client?)
    }

    fn text(&self, name: &HeaderName, text: &str, client: &Origin) -> Option<String> {
        if *name == LOCATION { self.url(text, client) } else { self.challenge(text, client) }
    }

    /// The URL with the client's origin, where it has the registry's.
    fn url(&self, url: &str, client: &Origin) -> Option<String> {
        let (scheme, rest) = url.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        // A registry behind plain HTTP may believe in TLS, or not: its host is what counts.
        let own = [tls, self.registry.tls].into_iter().any(|tls| {
            let named = Origin { tls, ..self.registry.clone() }.authority();
            let with_port = format!("{}:{}", self.registry.host, self.registry.port);
            authority.eq_ignore_ascii_case(&named) || authority.eq_ignore_ascii_case(&with_port)
        });
        own.then(|| format!("{}://{}{path}", client.scheme(), client.authority()))
    }

    /// A challenge with its realm's URL rewritten: `Bearer realm="https://…",service="…"`.
    fn challenge(&self, challenge: &str, client: &Origin) -> Option<String> {
        let at = challenge.to_ascii_lowercase().find("realm=\"")? + "realm=\"".len();
        let end = at + challenge[at..].find('"')?;
        let url = self.url(&challenge[at..end], client)?;
        Some(format!("{}{url}{}", &challenge[..at], &challenge[end..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(tls: bool, host: &str, port: u16) -> Origin {
        Origin { tls, host: host.into(), port }
    }

    fn rewritten(name: HeaderName, value: &'static str) -> String {
        let registry = origin(false, "127.0.0.1", 5001);
        let client = origin(true, "registry.example.com", 443);
        let mut headers = HeaderMap::new();
        headers.append(&name, HeaderValue::from_static(value));
        Rewriting { registry: &registry, client: Some(&client) }.apply_to(&mut headers);
        headers.get(&name).unwrap().to_str().unwrap().to_owned()
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
            ("/v2/a/blobs/uploads/1", "/v2/a/blobs/uploads/1"),
            ("https://s3.example.com/a?sig=%2B", "https://s3.example.com/a?sig=%2B"),
            ("http://127.0.0.1:5002/v2/", "http://127.0.0.1:5002/v2/"),
            ("http://127.0.0.1:5001.evil.example/", "http://127.0.0.1:5001.evil.example/"),
            ("ftp://127.0.0.1:5001/", "ftp://127.0.0.1:5001/"),
        ] {
            assert_eq!(rewritten(LOCATION, value), expected);
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
            (
                r#"Bearer realm="http://127.0.0.1:5001/x"#,
                r#"Bearer realm="http://127.0.0.1:5001/x"#,
            ),
        ] {
            assert_eq!(rewritten(WWW_AUTHENTICATE, value), expected);
        }
    }

    #[test]
    fn several_challenges_stay_several() {
        let registry = origin(true, "r.example", 443);
        let client = origin(false, "localhost", 5000);
        let mut headers = HeaderMap::new();
        for value in [r#"Bearer realm="https://r.example/t""#, r#"Basic realm="x""#] {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Rewriting { registry: &registry, client: Some(&client) }.apply_to(&mut headers);
        let values: Vec<_> = headers.get_all(WWW_AUTHENTICATE).iter().collect();
        assert_eq!(values, [r#"Bearer realm="http://localhost:5000/t""#, r#"Basic realm="x""#]);
    }
}
