//! Who may ask: those with the token, and no web page.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest as _, Sha256};

use super::response::No;

/// The token's hash: comparing hashes tells nothing of the token by its time.
#[derive(Clone)]
pub(super) struct Guard {
    token: Option<[u8; 32]>,
    /// Names it may be asked by, beside addresses and `localhost`.
    hosts: Vec<String>,
}

impl Guard {
    pub fn new(token: Option<&str>, hosts: Vec<String>) -> Self {
        Self { token: token.map(|token| Sha256::digest(token).into()), hosts }
    }

    fn may(&self, headers: &HeaderMap) -> bool {
        let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let sent = sent.and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Sha256::digest(token.trim()))
        });
        match (&self.token, sent) {
            (Some(token), Some(sent)) => token[..] == sent[..],
            _ => false,
        }
    }

    /// A page of another site names its own host, also where that site's name was made to
    /// lead here. No page of ours exists, so none has an origin.
    fn foreign(&self, headers: &HeaderMap) -> Option<No> {
        if headers.contains_key(ORIGIN) {
            let message = "requests of web pages are not answered";
            return Some(No::new(StatusCode::FORBIDDEN, "foreign", message));
        }
        let host = headers.get(HOST).map(HeaderValue::to_str);
        let known = match host {
            Some(Ok(host)) => self.knows(host),
            Some(Err(_)) => false,
            None => true,
        };
        let message =
            "asked by a name it does not know; `admin.hosts` lists those it may be asked by";
        (!known).then(|| No::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", message))
    }

    fn knows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<std::net::IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self
                .hosts
                .iter()
                .any(|known| known.eq_ignore_ascii_case(name) || known.eq_ignore_ascii_case(host))
    }
}

/// Before everything that needs the token.
pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    if let Some(no) = guard.foreign(request.headers()) {
        return no.into_response();
    }
    if !guard.may(request.headers()) {
        let message = match guard.token {
            Some(_) => "the admin token is needed: `Authorization: Bearer …`",
            None => "the admin token is needed, and `admin.token_file` names none",
        };
        let no = No::new(StatusCode::UNAUTHORIZED, "unauthorized", message);
        let mut response = no.into_response();
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_pages_and_foreign_names_are_told_apart() {
        let guard = Guard::new(None, vec!["admin.example:8443".into(), "ops.example".into()]);
        let code = |host: Option<&'static str>, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            host.map(|host| headers.insert(HOST, HeaderValue::from_static(host)));
            origin.map(|origin| headers.insert(ORIGIN, HeaderValue::from_static(origin)));
            guard.foreign(&headers).map(|no| no.status.as_u16())
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:5080",
            "10.1.2.3:1",
            "[::1]:5080",
            "[::1]",
            "localhost:5080",
            "LOCALHOST",
            "admin.example:8443",
            "ops.example",
            "ops.example:5080",
        ] {
            assert_eq!(code(Some(host), None), None, "{host}");
            assert_eq!(code(Some(host), Some("http://127.0.0.1:5080")), Some(403), "{host}");
        }
        assert_eq!(code(None, None), None);
        assert_eq!(code(Some("127.0.0.1"), Some("null")), Some(403));
        for host in
            ["evil.example", "evil.example:5080", "127.0.0.1.evil.example", "admin.example:1", ""]
        {
            assert_eq!(code(Some(host), None), Some(421), "{host}");
        }
    }

    #[test]
    fn only_the_token_lets_in() {
        let may = |token: Option<&str>, sent: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            sent.map(|sent| headers.insert(AUTHORIZATION, HeaderValue::from_static(sent)));
            Guard::new(token, Vec::new()).may(&headers)
        };
        assert!(
            may(Some("secret"), Some("Bearer secret"))
                && may(Some("secret"), Some("bearer  secret"))
        );
        for sent in
            [None, Some("Bearer other"), Some("Bearer "), Some("Basic secret"), Some("secret")]
        {
            assert!(!may(Some("secret"), sent), "{sent:?}");
        }
        assert!(!may(None, Some("Bearer ")) && !may(None, None));
    }
}
