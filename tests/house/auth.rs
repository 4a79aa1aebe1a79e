//! Credentials are the registry's business: they pass through, and nobody learns from taglock
//! what the registry would not tell.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::prelude::*;

use crate::clients::Images;
use crate::harness::*;
use crate::http::{self, Answer, request};
use crate::token_server::TokenServer;

pub fn basic(account: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(account))
}

fn push_as(address: &str, account: Option<&str>, tag: &str, seed: &str) -> Answer {
    let target = format!("/v2/prod/app/manifests/{tag}");
    let authorization = account.map(basic);
    let mut headers = vec![("Content-Type", INDEX)];
    headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
    request(address, "PUT", &target, &headers, &manifest(seed))
}

fn with_htpasswd() -> Registry {
    Registry::prepared("auth: { htpasswd: { realm: house, path: '{dir}/htpasswd' } }", |dir| {
        let file = dir.join("htpasswd");
        let mut command = Command::new("htpasswd");
        succeed(command.arg("-Bbc").arg(file).args(["alice", "secret"]));
    })
}

#[test]
fn basic_credentials_pass_through_and_strangers_learn_nothing() {
    let registry = with_htpasswd();
    let taglock = Taglock::before(&registry.address);
    let alice = Some("alice:secret");
    assert_eq!(push_as(&taglock.address, alice, "v1", "one").status, 201);
    let refused = push_as(&taglock.address, alice, "v1", "two");
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert_eq!(push_as(&taglock.address, alice, "v1", "one").status, 201);

    for account in [None, Some("alice:wrong"), Some("mallory:secret")] {
        // A tag that is bound, one that is not, and the very image that is bound: all the same.
        let answers = [("v1", "two"), ("v2", "two"), ("v1", "one")].map(|(tag, seed)| {
            let answer = push_as(&taglock.address, account, tag, seed);
            assert_eq!(answer.status, 401, "{account:?} {}", answer.text());
            assert_eq!(answer.header("WWW-Authenticate"), Some("Basic realm=\"house\""));
            assert!(!answer.text().contains("sha256"), "{}", answer.text());
            answer.code()
        });
        assert_eq!(answers, ["UNAUTHORIZED"; 3]);
        let mut headers = Vec::new();
        let authorization = account.map(basic);
        headers.extend(authorization.as_deref().map(|value| ("Authorization", value)));
        for target in ["/v2/prod/app/manifests/v1", "/v2/prod/app/manifests/nothing"] {
            let delete = request(&taglock.address, "DELETE", target, &headers, b"");
            assert_eq!(delete.status, 401, "{target}");
        }
    }
    // Nothing that strangers did bound anything.
    assert_eq!(push_as(&taglock.address, alice, "v2", "three").status, 201);
    assert!(!taglock.process.log().contains("c2VjcmV0"), "credentials in the log");
    assert!(!taglock.process.log().contains(&BASE64_STANDARD.encode("alice:secret")));
    assert!(taglock.process.log().contains("user=\"alice\""));
}

#[test]
fn skopeo_logs_in_and_pushes_through_a_registry_with_passwords() {
    let registry = with_htpasswd();
    let taglock = Taglock::before(&registry.address);
    let images = Images::new();
    let push = |image: &str, creds: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false", "--dest-creds", creds]);
        command.arg(images.source(image)).arg(format!("docker://{}/prod/app:v1", taglock.address));
        command
    };
    succeed(&mut push("one", "alice:secret"));
    let said = fail(&mut push("two", "alice:secret"));
    assert!(said.contains("denied: The image tag 'v1' already exists"), "{said}");
    assert!(fail(&mut push("one", "alice:wrong")).contains("unauthorized"));
    succeed(&mut push("one", "alice:secret"));
}

/// A registry that wants tokens, and the service that signs them.
pub fn with_tokens(realm: impl FnOnce(&TokenServer) -> String) -> (TokenServer, Registry) {
    let server = TokenServer::start();
    let settings = TokenServer::registry_settings(&realm(&server));
    let registry = Registry::prepared(&settings, |dir| server.write_certificate(dir));
    (server, registry)
}

fn skopeo(images: &Images, address: &str, image: &str, creds: &str, tag: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--dest-tls-verify=false", "--dest-creds", creds]);
    command.arg(images.source(image)).arg(format!("docker://{address}/prod/app:{tag}"));
    command
}

#[test]
fn bearer_tokens_from_another_host_pass_through() {
    let (server, registry) = with_tokens(|server| format!("http://{}/token", server.address));
    let taglock = Taglock::before(&registry.address);
    let challenge = http::get(&taglock.address, "/v2/");
    assert_eq!(challenge.status, 401);
    let realm = format!("realm=\"http://{}/token\"", server.address);
    assert!(challenge.header("WWW-Authenticate").unwrap().contains(&realm));

    let images = Images::new();
    succeed(&mut skopeo(&images, &taglock.address, "one", "alice:secret", "v1"));
    let said = fail(&mut skopeo(&images, &taglock.address, "two", "alice:secret", "v1"));
    assert!(said.contains("denied: The image tag 'v1' already exists"), "{said}");
    succeed(&mut skopeo(&images, &taglock.address, "one", "alice:secret", "v1"));
    // bob may pull only: for a new tag the registry says so, before anything is claimed.
    let said = fail(&mut skopeo(&images, &taglock.address, "two", "bob:secret", "v2"));
    assert!(said.contains("denied") || said.contains("unauthorized"), "{said}");
    succeed(&mut skopeo(&images, &taglock.address, "two", "alice:secret", "v2"));
    fail(&mut skopeo(&images, &taglock.address, "two", "mallory:secret", "v3"));
}

#[test]
fn a_realm_on_the_registrys_own_host_is_reached_through_taglock() {
    let server = TokenServer::start();
    let front_address = format!("127.0.0.1:{}", port());
    let settings = TokenServer::registry_settings(&format!("http://{front_address}/service/token"));
    let registry = Registry::prepared(&settings, |dir| server.write_certificate(dir));
    let folder = tempfile::tempdir().unwrap();
    let _front = nginx(
        folder.path(),
        &front_address,
        &format!(
            "location /service/token {{ proxy_pass http://{}; }}\n\
             location / {{ proxy_pass http://{}; proxy_set_header Host $http_host; client_max_body_size 0; }}",
            server.address, registry.address
        ),
        "",
    );
    let taglock = Taglock::before(&front_address);
    let challenge = http::get(&taglock.address, "/v2/");
    let realm = format!("realm=\"http://{}/service/token\"", taglock.address);
    assert!(challenge.header("WWW-Authenticate").unwrap().contains(&realm), "{challenge:?}");
    let images = Images::new();
    succeed(&mut skopeo(&images, &taglock.address, "one", "alice:secret", "v1"));
    let said = fail(&mut skopeo(&images, &taglock.address, "two", "alice:secret", "v1"));
    assert!(said.contains("denied: The image tag 'v1' already exists"), "{said}");
}

/// nginx with one server, and perhaps TLS; one process, so that nothing of it is left when it is killed.
pub fn nginx(folder: &Path, address: &str, locations: &str, listen: &str) -> Process {
    let dir = folder.display();
    let settings = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
         server {{ listen {address} {listen}\n{locations}\n}} }}\n",
        listen = if listen.is_empty() { ";" } else { listen },
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, settings).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "stderr"]);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
    let mut process = Process::start("nginx", command, folder);
    process.wait_for(address);
    process
}
