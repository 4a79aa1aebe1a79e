//! Certificates change without a restart: on SIGHUP, and when the content of their files changes.
//!
//! As with the rules the content is compared, so that a Kubernetes Secret's symlink swap is seen. What
//! is found changed is looked at once more before it is used: a certificate and its key are two files.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::settings::{Authorities, KeyPair, Settings, Upstream};
use crate::telemetry::Metrics;
use crate::telemetry::audit::Audit;
use crate::telemetry::warnings::{Notices, Topic};
use crate::transport::endpoint::{Credentials, Peers};

/// The listener's certificate at this moment.
pub(super) struct Served(ArcSwap<CertifiedKey>);

impl Served {
    pub fn new(pair: &KeyPair) -> Self {
        Self(ArcSwap::new(pair.certified()))
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Served")
    }
}

/// What connections to the registry are made with.
pub(super) fn upstream(settings: &Upstream) -> Credentials {
    credentials(settings.authorities.as_deref(), settings.client.as_deref())
}

fn credentials(authorities: Option<&Authorities>, client: Option<&KeyPair>) -> Credentials {
    let ca = authorities.map(|authorities| {
        let wrapped = |der: &Vec<u8>| WrappedX509::new(der.clone(), parse_x509);
        authorities.list.iter().map(wrapped).collect::<Arc<[_]>>()
    });
    let pair =
        |pair: &KeyPair| Arc::new(CertKey::new(pair.chain.clone(), pair.expose_key().to_vec()));
    Credentials { ca, client: client.map(pair) }
}

/// All certificates in use, and their files.
pub(super) struct Certificates {
    watched: Mutex<Vec<Watched>>,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
    audit: Arc<Audit>,
}

type Content = Vec<Option<Vec<u8>>>;

struct Watched {
    /// Its label in metrics: `listen` or `upstream`.
    name: &'static str,
    files: Vec<PathBuf>,
    /// As last applied or refused.
    known: Content,
    /// As last seen.
    seen: Content,
    sound: bool,
    /// Reads the files and uses them; returns when the certificate ends, if there is one.
    apply: Box<dyn Fn() -> Result<Option<i64>, String> + Send + Sync>,
}

impl Certificates {
    pub fn new(
        settings: &Settings,
        served: Option<&Arc<Served>>,
        peers: &Arc<Peers>,
        (metrics, notices, audit): (Arc<Metrics>, Arc<Notices>, Arc<Audit>),
    ) -> Self {
        let mut watched = Vec::new();
        if let (Some(served), Some(pair)) = (served, &settings.listen.tls) {
            let (served, certificate, key) =
                (Arc::clone(served), pair.certificate.clone(), pair.key.clone());
            let files = vec![certificate.clone(), key.clone()];
            watched.push(Watched::new("listen", files, move || {
                let pair = KeyPair::load(&certificate, &key)?;
                served.0.store(pair.certified());
                Ok(expiry(&pair))
            }));
            if let Some(end) = expiry(pair) {
                metrics.certificate_expiry("listen", end);
            }
        }
        let authorities = settings.upstream.authorities.as_ref().map(|ca| ca.file.clone());
        let client = settings.upstream.client.as_ref();
        if let Some(end) = client.and_then(|pair| expiry(pair)) {
            metrics.certificate_expiry("upstream", end);
        }
        let client = client.map(|pair| (pair.certificate.clone(), pair.key.clone()));
        let mut files: Vec<_> = authorities.iter().cloned().collect();
        files.extend(
            client.iter().flat_map(|(certificate, key)| [certificate.clone(), key.clone()]),
        );
        if !files.is_empty() {
            let peers = Arc::clone(peers);
            watched.push(Watched::new("upstream", files, move || {
                let authorities = authorities.as_deref().map(Authorities::load).transpose()?;
                let pair = client.as_ref().map(|(c, k)| KeyPair::load(c, k)).transpose()?;
                peers.renew(credentials(authorities.as_ref(), pair.as_ref()));
                Ok(pair.as_ref().and_then(expiry))
            }));
        }
        Self { watched: Mutex::new(watched), metrics, notices, audit }
    }

    /// Uses what has changed, or all of it where it is asked for.
    pub fn look(&self, asked: bool) {
        // A look that panicked has changed nothing by half.
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for one in &mut *watched {
            self.look_at(one, asked);
        }
    }

    fn look_at(&self, one: &mut Watched, asked: bool) {
        let content = read(&one.files);
        let settled = content == one.seen;
        one.seen.clone_from(&content);
        if !asked && (content == one.known || !settled) {
            return;
        }
        let changed = content != one.known;
        one.known = content;
        let files: Vec<_> = one.files.iter().map(|file| file.display().to_string()).collect();
        let (name, files) = (one.name, files.join(", "));
        match (one.apply)() {
            Ok(end) => {
                one.sound = true;
                if let Some(end) = end {
                    self.metrics.certificate_expiry(name, end);
                }
                tracing::info!(certificate = name, files, changed, "certificates are read again");
                if changed {
                    self.audit.change("certificate", "applied", format!("{name}: {files}"));
                }
                self.metrics.certificate_reload(name, "applied");
            }
            Err(reason) => {
                one.sound = false;
                let text = "changed and can't be used; the one from before is";
                tracing::error!(certificate = name, reason, "{text}");
                self.audit.change("certificate", "refused", format!("{name}: {reason}"));
                self.metrics.certificate_reload(name, "refused");
            }
        }
        self.tell(one);
    }

    fn tell(&self, one: &Watched) {
        let topic = match one.name {
            "listen" => Topic::Certificate,
            _ => Topic::UpstreamCertificate,
        };
        if one.sound {
            self.notices.clear(topic);
        } else {
            self.notices
                .put(topic, "the files were changed and can't be used; those from before are");
        }
    }
}

impl Watched {
    fn new(
        name: &'static str,
        files: Vec<PathBuf>,
        apply: impl Fn() -> Result<Option<i64>, String> + Send + Sync + 'static,
    ) -> Self {
        let known = read(&files);
        let seen = known.clone();
        Self { name, files, known, seen, sound: true, apply: Box::new(apply) }
    }
}

fn read(files: &[PathBuf]) -> Content {
    files.iter().map(|file| std::fs::read(file).ok()).collect()
}

/// When the pair's own certificate ends, in seconds since 1970.
fn expiry(pair: &KeyPair) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(pair.chain.first()?).ok()?;
    Some(certificate.validity().not_after.timestamp())
}
