//! What needs no token, for probes and for Prometheus. Nothing here is secret.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};

use super::Parts;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

fn text(status: StatusCode, kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = (status, body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The process runs.
#[utoipa::path(
    get,
    path = "/healthz",
    security(()),
    responses((status = 200, description = "it does", body = String, content_type = "text/plain"))
)]
pub(super) async fn alive() -> Response {
    text(StatusCode::OK, TEXT, "ok\n")
}

/// Ledger and registry answer. Both are named, and notices.
#[utoipa::path(
    get,
    path = "/readyz",
    security(()),
    responses(
        (status = 200, description = "they do", body = String, content_type = "text/plain"),
        (status = 503, description = "one does not", body = String, content_type = "text/plain")
    )
)]
pub(super) async fn ready(State(parts): State<Arc<Parts>>) -> Response {
    let (ledger, registry) = tokio::join!(parts.ledger.identity(), parts.eyes.registry.ping());
    let status = match ledger.is_ok() && registry.is_ok() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let ledger = ledger.map_or_else(|e| e.to_string(), |_| "ok".into());
    let registry = registry.map_or_else(|e| e.to_string(), |()| "ok".into());
    let notices = parts.notices.lines();
    text(status, TEXT, format!("ledger: {ledger}\nregistry: {registry}\n{notices}"))
}

/// Prometheus' text format.
#[utoipa::path(
    get,
    path = "/metrics",
    security(()),
    responses((status = 200, description = "the metrics", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(parts): State<Arc<Parts>>) -> Response {
    text(StatusCode::OK, METRICS, parts.metrics.render())
}
