//! The operators' HTTP API.
//!
//! `/healthz`, `/readyz` and `/metrics` need no token, everything else does:
//! `Authorization: Bearer <token>`. `/openapi.json` describes all of it; it is made of the handlers
//! themselves. Answers are JSON, errors too, but for the three, which are text.

mod auth;
mod deletes;
mod explain;
pub mod export;
mod health;
mod ledger;
pub mod model;
mod registry;
mod response;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::judge::Judge;
use crate::ledger::Ledger;
use crate::name::{Naming, UpstreamName};
use crate::registry::Registry;
use crate::registry::catalog::Catalogue;
use crate::rules::Rules;
use crate::telemetry::Metrics;
use crate::telemetry::audit::Audit;
use crate::telemetry::refusals::Refusals;
use crate::telemetry::warnings::Notices;
use auth::Guard;
use response::No;

/// The largest body of a request.
const MAX_BODY: usize = 2 << 20;
/// How long a request may take until its answer begins. Commands wait a little longer.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection may be without a request.
const SILENCE: Duration = Duration::from_secs(30);

/// What the API is about.
pub struct Parts {
    pub upstream: UpstreamName,
    /// By which a tag is asked for, whatever it is called.
    pub naming: Arc<Naming>,
    pub ledger: Arc<dyn Ledger>,
    pub judge: Arc<Judge>,
    pub rules: Arc<ArcSwap<Rules>>,
    pub eyes: Eyes,
    pub metrics: Arc<Metrics>,
    pub notices: Arc<Notices>,
    pub audit: Arc<Audit>,
    pub refusals: Arc<Refusals>,
}

/// The registry as taglock itself sees it: by its own account, or as anybody.
pub struct Eyes {
    pub registry: Arc<dyn Registry>,
    pub catalogue: Arc<dyn Catalogue>,
    /// The registry's own authority.
    pub host: String,
}

/// The API behind one listener.
pub struct Admin {
    router: Router,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "taglock",
        description = "What operators ask of a running taglock, and have it do.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(model::ExportHeader, model::ExportFooter)),
    security(("token" = []))
)]
struct Description;

/// The description, as served.
#[derive(Clone)]
struct Described(Arc<serde_json::Value>);

impl Admin {
    /// `hosts` are names it may be asked by, beside addresses.
    pub fn new(parts: Parts, token: Option<&str>, hosts: Vec<String>) -> Self {
        let guard = Guard::new(token, hosts);
        let (open, mut description) = OpenApiRouter::with_openapi(Description::openapi())
            .routes(routes!(health::alive))
            .routes(routes!(health::ready))
            .routes(routes!(health::metrics))
            .split_for_parts();
        let (guarded, guarded_description) = OpenApiRouter::default()
            .routes(routes!(describe))
            .routes(routes!(ledger::list))
            .routes(routes!(ledger::entry))
            .routes(routes!(ledger::pending))
            .routes(routes!(ledger::release))
            .routes(routes!(deletes::list))
            .routes(routes!(deletes::clear))
            .routes(routes!(ledger::export))
            .routes(routes!(ledger::restore))
            .routes(routes!(registry::catalogue))
            .routes(routes!(registry::tags))
            .routes(routes!(registry::import))
            .routes(routes!(registry::verify))
            .routes(routes!(registry::drift))
            .routes(routes!(rules::list))
            .routes(routes!(rules::explain))
            .routes(routes!(rules::refusals))
            .split_for_parts();
        description.merge(guarded_description);
        description.components.get_or_insert_default().add_security_scheme(
            "token",
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
        );
        // Made of constants of this program; a test reads it.
        let described = serde_json::to_value(&description).unwrap_or_default();
        let guarded = guarded
            .fallback(|| async { No::not_found("there is nothing here; see /openapi.json") })
            .method_not_allowed_fallback(wrong_method)
            .layer(Extension(Described(Arc::new(described))))
            .layer(DefaultBodyLimit::max(MAX_BODY))
            .layer(from_fn_with_state(guard, auth::guard));
        let router = open
            .method_not_allowed_fallback(wrong_method)
            .merge(guarded)
            .layer(from_fn(in_time))
            .with_state(Arc::new(parts));
        Self { router }
    }
}

async fn wrong_method() -> No {
    No::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not by this method")
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(PATIENCE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = "it took too long; what was begun may have been done";
            No::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message).into_response()
        }
    }
}

/// This description.
#[utoipa::path(
    get,
    path = "/openapi.json",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
async fn describe(
    Extension(Described(described)): Extension<Described>,
) -> Json<serde_json::Value> {
    Json((*described).clone())
}

#[async_trait]
impl ServerApp for Admin {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SILENCE)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut shutdown = shutdown.clone();
        // Whether it ended well is the client's to know.
        tokio::select! {
            _ = connection.as_mut() => return None,
            _ = shutdown.changed() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
        None
    }
}
