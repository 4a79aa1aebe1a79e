//! TLS, and a user who may do no more than is needed.

use std::path::Path;

use super::servers::{Cluster, Server, Watched, port};
use super::*;

/// An authority, and certificates it signs.
struct Authority {
    pem: Vec<u8>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// Certificate and key, PEM.
    fn issue(&self, host: &str) -> (Vec<u8>, Vec<u8>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    /// A Redis with TLS on a second port, whose certificate is for `host`.
    fn server(&self, folder: &Path, host: &str, clients: &str) -> (Server, u16) {
        let (certificate, key) = self.issue(host);
        let path = |name: &str| folder.join(name).display().to_string();
        for (name, content) in [("ca", &self.pem), ("pem", &certificate), ("key", &key)] {
            std::fs::write(path(name), content).unwrap();
        }
        let tls = port();
        let server = Server::start(&[
            "--tls-port",
            &tls.to_string(),
            "--tls-auth-clients",
            clients,
            "--tls-ca-cert-file",
            &path("ca"),
            "--tls-cert-file",
            &path("pem"),
            "--tls-key-file",
            &path("key"),
        ]);
        (server, tls)
    }
}

fn open(host: &str, port: u16, tls: Tls) -> Result<Redis, String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("rediss://{host}:{port}/0");
    let config = Config::at(&url, tls, format!("{host}:{port}")).unwrap();
    Redis::open(&config).map_err(|error| error.to_string())
}

#[tokio::test]
async fn tls_takes_the_right_authority_and_the_right_name_only() {
    let (authority, another) = (Authority::new("one"), Authority::new("another"));
    let folder = tempfile::tempdir().unwrap();
    let (_server, port) = authority.server(folder.path(), "localhost", "no");
    let trust =
        |authority: &Authority| Tls { authorities: Some(authority.pem.clone()), ..Tls::default() };
    let ledger = open("localhost", port, trust(&authority)).unwrap();
    contract::holds(&ledger).await;
    for (host, tls, expected) in [
        ("localhost", trust(&another), "UnknownIssuer"),
        ("localhost", Tls::default(), "UnknownIssuer"),
        ("127.0.0.1", trust(&authority), "not valid for name"),
    ] {
        let error = open(host, port, tls).err().unwrap();
        assert!(error.contains("can't be reached") && error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let (authority, another) = (Authority::new("one"), Authority::new("another"));
    let folder = tempfile::tempdir().unwrap();
    let (_server, port) = authority.server(folder.path(), "localhost", "yes");
    let tls = |client| Tls { authorities: Some(authority.pem.clone()), client };
    let ledger = open("localhost", port, tls(Some(authority.issue("taglock")))).unwrap();
    contract::holds(&ledger).await;
    for client in [None, Some(another.issue("taglock"))] {
        let error = open("localhost", port, tls(client)).err().unwrap();
        assert!(error.contains("can't be reached"), "{error}");
    }
}

/// What README tells operators to allow, word by word.
fn documented(name: &str) -> Vec<&'static str> {
    let readme = include_str!("../../../../README.md");
    let begin = format!("ACL SETUSER {name} ");
    let line = readme.lines().find_map(|line| line.trim().strip_prefix(&begin));
    line.expect("README has it").split_whitespace().collect()
}

fn allow(server: &Server, name: &str, words: &[&str]) {
    server.cli(&[&["ACL", "SETUSER", name, "reset"], words].concat());
}

fn as_user(config: Config) -> Config {
    let access = config.access.clone().with_login(Some("taglock"), Some("change-me"));
    Config { access, ..config }
}

#[tokio::test]
async fn the_documented_user_may_do_all_that_is_needed() {
    let server = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    server.wait_for_replicas(1).await;
    allow(&server, "taglock", &documented("taglock"));
    let config = Config { replicas: 1, ..as_user(server.config()) };
    let ledger = Redis::open(&config).unwrap();
    contract::holds(&ledger).await;
    contract::agrees_with_the_table(&ledger, 10).await;
    let denied = server.cli(&["ACL", "LOG"]);
    assert!(!denied.contains("taglock"), "{denied}");
    replica.stop();
}

#[tokio::test]
async fn the_documented_users_do_for_sentinels_and_a_cluster() {
    let watched = Watched::start().await;
    for server in &watched.servers {
        allow(server, "taglock", &documented("taglock"));
    }
    for sentinel in &watched.sentinels {
        allow(sentinel, "taglock", &documented("taglock-of-sentinels"));
    }
    let mut config = as_user(watched.config());
    let Topology::Sentinel { access, .. } = &mut config.topology else { panic!() };
    *access = access.clone().with_login(Some("taglock"), Some("change-me"));
    contract::holds(&Redis::open(&config).unwrap()).await;
    drop(watched);

    let cluster = Cluster::start().await;
    let words =
        [documented("taglock"), vec!["+cluster|info", "+cluster|slots", "+asking"]].concat();
    for node in &cluster.nodes {
        allow(node, "taglock", &words);
    }
    contract::holds(&Redis::open(&as_user(cluster.config())).unwrap()).await;
}

/// Each command that the documented user may give is given.
#[tokio::test]
async fn the_documented_user_may_do_no_more() {
    let server = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port.to_string()]);
    server.wait_for_replicas(1).await;
    let config = Config { replicas: 1, ..as_user(server.config()) };
    let words = documented("taglock");
    let commands: Vec<_> = words.iter().filter(|word| word.starts_with('+')).collect();
    assert!(commands.len() > 10, "{words:?}");
    for needless in commands {
        server.cli(&["FLUSHALL"]);
        server.cli(&["SCRIPT", "FLUSH"]);
        let rest: Vec<_> = words.iter().copied().filter(|word| word != needless).collect();
        allow(&server, "taglock", &rest);
        let Ok(ledger) = Redis::open(&config) else { continue };
        let done = everything(&ledger).await;
        assert!(done.is_err(), "{needless} is not needed");
    }
    replica.stop();
}

async fn everything(ledger: &Redis) -> Result<(), Unavailable> {
    let (key, tags, digest) = (contract::key("app"), [contract::tag("v1")], contract::digest(1));
    let attempt = AttemptId::random();
    ledger.identity().await?;
    ledger.claim(&key, &tags, &digest, attempt).await?;
    ledger.abort(&key, &tags, &digest, attempt).await?;
    ledger.claim(&key, &tags, &digest, attempt).await?;
    ledger.bind(&key, &tags, &digest, attempt, FreedNumber::default()).await?;
    contract::adopt(ledger, &key, &tags, &digest, Origin::Push).await?;
    ledger.begin_delete(&key, &digest, attempt).await?;
    ledger.end_delete(&key, &digest, &[attempt], &tags, DeleteEnd::Released).await?;
    ledger.delete_marks(&key).await?;
    ledger.lookup(&key, &tags).await?;
    ledger.bound_to(&key, &digest).await?;
    ledger.list(None, 10).await?;
    let announcement =
        Announcement { proxy: "one".into(), rules: "none".into(), offered: "x".into() };
    ledger.announce(&announcement).await?;
    ledger.poll(Some(0)).await?;
    ledger.restore(&key, &contract::few_offers()).await?;
    // A loss is published.
    ledger.lost(Scope::Whole);
    ledger.poll(Some(0)).await?;
    ledger.losses.settle(1);
    ledger.sequence(&key).await.map(drop)
}
