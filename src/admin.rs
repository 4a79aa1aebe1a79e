//! The operators' HTTP listener.
//!
//! | | | token |
//! |---|---|---|
//! | `GET /healthz` | the process runs | no |
//! | `GET /readyz` | ledger and registry answer: 200, else 503; both are named, and notices | no |
//! | `GET /metrics` | Prometheus' text format | no |
//!
//! Everything else needs `Authorization: Bearer <token>`, and is not there yet.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use sha2::{Digest as _, Sha256};

use crate::ledger::Ledger;
use crate::registry::Registry;
use crate::telemetry::Metrics;
use crate::telemetry::notices::Notices;

pub struct Admin {
    ledger: Arc<dyn Ledger>,
    registry: Arc<dyn Registry>,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
    /// The token's hash: comparing hashes tells nothing of the token by its time.
    token: Option<[u8; 32]>,
}

impl Admin {
    pub fn new(
        ledger: Arc<dyn Ledger>,
        registry: Arc<dyn Registry>,
        metrics: Arc<Metrics>,
        notices: Arc<Notices>,
        token: Option<&str>,
    ) -> Self {
        let token = token.map(|token| Sha256::digest(token).into());
        Self { ledger, registry, metrics, notices, token }
    }

    async fn ready(&self) -> (StatusCode, String) {
        let (ledger, registry) = tokio::join!(self.ledger.identity(), self.registry.ping());
        let status = if ledger.is_ok() && registry.is_ok() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let ledger = ledger.map_or_else(|e| e.to_string(), |_| "ok".into());
        let registry = registry.map_or_else(|e| e.to_string(), |()| "ok".into());
        (status, format!("ledger: {ledger}\nregistry: {registry}\n{}", self.notices.lines()))
    }

    fn may(&self, authorization: Option<&http::HeaderValue>) -> bool {
        let sent = authorization.and_then(|value| value.to_str().ok()).and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Sha256::digest(token.trim()))
        });
        match (&self.token, sent) {
            (Some(token), Some(sent)) => token[..] == sent[..],
            _ => false,
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let header = session.req_header();
        let reading = matches!(header.method, Method::GET | Method::HEAD);
        let head = header.method == Method::HEAD;
        let (status, kind, body) = match header.uri.path() {
            "/healthz" if reading => (StatusCode::OK, TEXT, b"ok\n".to_vec()),
            "/readyz" if reading => {
                let (status, text) = self.ready().await;
                (status, TEXT, text.into_bytes())
            }
            "/metrics" if reading => (StatusCode::OK, METRICS, self.metrics.render()),
            "/healthz" | "/readyz" | "/metrics" => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, b"only GET and HEAD\n".to_vec())
            }
            _ if self.may(header.headers.get(AUTHORIZATION)) => {
                (StatusCode::NOT_FOUND, TEXT, b"there is nothing here\n".to_vec())
            }
            _ => (StatusCode::UNAUTHORIZED, TEXT, b"the admin token is needed\n".to_vec()),
        };
        let mut response = Response::new(Vec::new());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
        headers.insert(CONTENT_LENGTH, http::HeaderValue::from(body.len()));
        if !head {
            *response.body_mut() = body;
        }
        response
    }
}
