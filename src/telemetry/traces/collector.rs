//! The collector that spans are sent to, over plain HTTP or TLS.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// For one batch. The thread that sends waits, nothing else.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer is a few bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// A collector that is away is told of once in so long.
const QUIET: Duration = Duration::from_secs(60);

pub(super) struct Collector {
    agent: Agent,
    told: Mutex<Option<Instant>>,
}

impl Collector {
    /// # Errors
    /// When it speaks TLS and the system trusts nobody.
    pub fn at(endpoint: &str) -> Result<Self, String> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // What is said of requests goes where it was told to, and nowhere else.
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("taglock/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(PATIENCE));
        if endpoint.starts_with("https://") {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err(format!("the system has no trusted certificates: {:?}", found.errors));
            }
            let roots = found.certs.iter().map(|root| Certificate::from_der(root).to_owned());
            let tls = TlsConfig::builder().root_certs(RootCerts::from(roots)).build();
            config = config.tls_config(tls);
        }
        Ok(Self { agent: config.build().into(), told: Mutex::default() })
    }

    fn failed(&self, reason: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= QUIET) {
            *told = Some(Instant::now());
            tracing::warn!(reason, "traces can't be sent; this is told once a minute");
        }
    }
}

#[async_trait]
impl HttpClient for Collector {
    /// It blocks: the SDK calls it on a thread that does nothing else.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let sent = self.agent.run(Request::from_parts(parts, &body[..])).and_then(|answer| {
            let (parts, mut body) = answer.into_parts();
            let body = body.with_config().limit(MAX_ANSWER).read_to_vec()?;
            Ok(Response::from_parts(parts, Bytes::from(body)))
        });
        match &sent {
            Ok(answer) if answer.status().is_success() => {}
            // Not its words, which may repeat what it was sent.
            Ok(answer) => self.failed(&format!("the collector answered {}", answer.status())),
            Err(error) => self.failed(&error.to_string()),
        }
        Ok(sent?)
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").finish_non_exhaustive()
    }
}
