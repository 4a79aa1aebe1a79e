//! A token service as distribution's `auth: token` expects it: Basic credentials in, a signed
//! token out, with the actions the account has.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::prelude::*;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::harness::port;

pub struct TokenServer {
    pub address: String,
    certificate: rcgen::Certificate,
    granted: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

struct Signer {
    /// Whom it has given tokens.
    granted: Arc<Mutex<Vec<String>>>,
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
}

impl TokenServer {
    pub fn start() -> Self {
        let address = format!("127.0.0.1:{}", port());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["token".into()]).unwrap().self_signed(&key).unwrap();
        let signing = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &key.serialize_der(),
            &SystemRandom::new(),
        );
        let granted = Arc::new(Mutex::new(Vec::new()));
        let signer = Arc::new(Signer {
            granted: Arc::clone(&granted),
            key: signing.unwrap(),
            certificate: certificate.der().to_vec(),
        });
        let listener = TcpListener::bind(&address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let signer = Arc::clone(&signer);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let signer = Arc::clone(&signer);
                        async move { Ok::<_, std::convert::Infallible>(grant(&signer, &request)) }
                    });
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, certificate, granted, _runtime: runtime }
    }

    /// How many tokens this account was given.
    pub fn grants(&self, user: &str) -> usize {
        self.granted.lock().unwrap().iter().filter(|granted| *granted == user).count()
    }

    /// What the registry needs to believe the tokens.
    pub fn write_certificate(&self, folder: &Path) {
        std::fs::write(folder.join("token.pem"), self.certificate.pem()).unwrap();
    }

    /// The registry's settings, with this realm.
    pub fn registry_settings(realm: &str) -> String {
        format!(
            "auth: {{ token: {{ realm: '{realm}', service: house, issuer: house, \
             rootcertbundle: '{{dir}}/token.pem' }} }}"
        )
    }
}

/// alice may pull and push, and so may keeper; bob may pull; carol what is hers alone; anybody else,
/// nothing.
fn grant(signer: &Signer, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let authorization = request.headers().get("authorization").map(|v| v.to_str().unwrap());
    let account = authorization
        .and_then(|value| BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let (user, allowed): (_, &[&str]) = match account.as_deref() {
        Some("alice:secret") => ("alice", &["pull", "push", "delete"]),
        Some("keeper:secret") => ("keeper", &["pull", "push"]),
        Some("bob:secret") => ("bob", &["pull"]),
        Some("carol:secret") => ("carol", &["pull", "push"]),
        Some(_) => return plain(401, &json!({"details": "unauthorized"})),
        None => ("", &[]),
    };
    signer.granted.lock().unwrap().push(user.to_owned());
    let query = request.uri().query().unwrap_or_default();
    let access: Vec<Value> = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("scope="))
        .map(|scope| scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ","))
        .filter_map(|scope| {
            let mut parts = scope.splitn(3, ':');
            let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
            let allowed = match (user, name) {
                ("carol", name) if name != "prod/carol" => &[],
                // For everybody, as Docker Hub's public repositories.
                ("", "prod/public") => &["pull"][..],
                _ => allowed,
            };
            let actions: Vec<_> = actions.split(',').filter(|a| allowed.contains(a)).collect();
            Some(json!({"type": kind, "name": name, "actions": actions}))
        })
        .collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let header = json!({
        "typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(&signer.certificate)],
    });
    let claims = json!({
        "iss": "house", "sub": user, "aud": "house", "exp": now + 300, "nbf": now - 10, "iat": now,
        "jti": now.to_string(), "access": access,
    });
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let payload = format!("{}.{}", encode(&header), encode(&claims));
    let signature = signer.key.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
    let token = format!("{payload}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
    plain(200, &json!({"token": token, "access_token": token, "expires_in": 300}))
}

fn plain(status: u16, body: &Value) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap()
}
