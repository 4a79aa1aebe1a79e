//! TLS on both sides, HTTP/2, and what is said to the wrong protocol.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::auth::nginx;
use crate::harness::*;
use crate::http::{self, raw};

/// An authority, and certificates it signs, as PEM files.
pub struct Authority {
    pub certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "the house's authority");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    pub fn write(&self, file: &Path) {
        fs::write(file, self.certificate.pem()).unwrap();
    }

    /// `<name>.pem` and `<name>.key` in this folder.
    pub fn issue(&self, folder: &Path, name: &str, host: &str) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, host);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

fn curl(more: &[&str]) -> String {
    let mut command = Command::new("curl");
    succeed(command.args(["-sS", "-i", "--max-time", "30"]).args(more))
}

fn curl_put(options: &[&str], url: &str, seed: &str) -> String {
    let body = String::from_utf8(manifest(seed)).unwrap();
    let kind = format!("Content-Type: {INDEX}");
    curl(&[options, &["-X", "PUT", "-H", &kind, "--data-binary", &body, url]].concat())
}

#[test]
fn http2_without_tls_is_served_and_judged() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let url = |path: &str| format!("http://{}{path}", taglock.address);
    let h2c = ["--http2-prior-knowledge"];
    assert!(curl(&[h2c[0], &url("/v2/")]).starts_with("HTTP/2 200"));
    let target = url("/v2/prod/app/manifests/v1");
    assert!(curl_put(&h2c, &target, "one").starts_with("HTTP/2 201"));
    let refused = curl_put(&h2c, &target, "two");
    assert!(refused.starts_with("HTTP/2 409"), "{refused}");
    assert!(refused.contains("DENIED"), "{refused}");
    // A large body that is refused early: the answer must still arrive.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    fs::write(&file, vec![b' '; 5 << 20]).unwrap();
    let body = format!("@{}", file.display());
    let kind = format!("Content-Type: {INDEX}");
    let answer = curl(&[h2c[0], "-X", "PUT", "-H", &kind, "--data-binary", &body, &target]);
    assert!(answer.starts_with("HTTP/2 413"), "{answer}");
    let escaped = url("/v2/prod/app/manifests/%761");
    assert!(
        curl_put(&["--http2-prior-knowledge", "--path-as-is"], &escaped, "two")
            .starts_with("HTTP/2 400")
    );
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(digest(&manifest("one"))));
}

#[test]
fn a_tls_listener_speaks_both_versions_and_names_itself_in_urls() {
    let registry = Registry::start();
    let authority = Authority::new();
    let certificates = tempfile::tempdir().unwrap();
    let dir = certificates.path();
    authority.write(&dir.join("ca.pem"));
    authority.issue(dir, "server", "localhost");
    let taglock = Taglock::from_file(|address, admin, folder| {
        format!(
            "[listen]\naddress = \"{address}\"\n\
             tls = {{ certificate = \"{0}/server.pem\", key = \"{0}/server.key\" }}\n\
             [upstream]\nurl = \"http://{1}\"\n[ledger]\npath = \"{folder}/ledger\"\n\
             [admin]\naddress = \"{admin}\"\n{RULES}",
            dir.display(),
            registry.address
        )
    });
    let port = taglock.address.rsplit(':').next().unwrap();
    let base = format!("https://localhost:{port}");
    let ca = dir.join("ca.pem").display().to_string();
    for (version, line) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2")] {
        let options = [version, "--cacert", &ca];
        let target = format!("{base}/v2/prod/app/manifests/v1");
        let pushed = curl_put(&options, &target, "one");
        assert!(pushed.starts_with(&format!("{line} 201")), "{pushed}");
        assert!(
            pushed.to_lowercase().contains(&format!("location: {base}/v2/prod/app/manifests/")),
            "{pushed}"
        );
        assert!(curl_put(&options, &target, "two").starts_with(&format!("{line} 409")));
        let upload = curl(&[
            version,
            "--cacert",
            &ca,
            "-X",
            "POST",
            &format!("{base}/v2/other/blobs/uploads/"),
        ]);
        assert!(upload.to_lowercase().contains(&format!("location: {base}/v2/other/")), "{upload}");
    }
}

#[test]
fn a_tls_hello_on_the_plain_port_gets_http_400() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    // The first bytes of a ClientHello, with and without enough of them.
    for hello in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        &[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[7; 506]].concat(),
    ] {
        let mut stream = http::connect(&taglock.address).unwrap();
        std::io::Write::write_all(&mut stream, hello).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = http::read_answer(&mut std::io::BufReader::new(stream), false);
        if hello.len() > 100 {
            assert_eq!(answer.unwrap().status, 400);
        }
    }
    // docker's containerd store does this, and goes on over plain HTTP only after it.
    let said = fail(
        Command::new("curl")
            .args(["-sS", "--max-time", "10"])
            .arg(format!("https://{}/v2/", taglock.address)),
    );
    assert!(said.contains("wrong version number") || said.contains("SSL"), "{said}");
    assert_eq!(raw(&taglock.address, b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").status, 200);
}

#[test]
fn the_shortest_requests_are_answered() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    // Shorter than HTTP/2's preface: what load balancers ask with.
    for request in
        ["OPTIONS / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET /v2/ HTTP/1.0\r\n\r\n"]
    {
        let direct = raw(&registry.address, request.as_bytes());
        assert_eq!(raw(&taglock.address, request.as_bytes()).status, direct.status, "{request}");
    }
}

#[test]
fn a_registry_over_tls_is_verified_and_shown_a_certificate() {
    let registry = Registry::start();
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    authority.write(&dir.join("ca.pem"));
    authority.issue(dir, "server", "localhost");
    authority.issue(dir, "client", "taglock");
    Authority::new().write(&dir.join("other.pem"));
    let address = format!("127.0.0.1:{}", port());
    let tls = format!(
        "ssl; ssl_certificate {0}/server.pem; ssl_certificate_key {0}/server.key; \
         ssl_client_certificate {0}/ca.pem; ssl_verify_client on;",
        dir.display()
    );
    let locations = format!(
        "location / {{ proxy_pass http://{}; proxy_set_header Host $http_host; }}",
        registry.address
    );
    let _front = nginx(dir, &address, &locations, &tls);
    let url = format!("https://localhost:{}", address.rsplit(':').next().unwrap());
    let dir = dir.display();
    let trusted = format!(
        "ca_file = \"{dir}/ca.pem\"\nclient_certificate = \"{dir}/client.pem\"\n\
         client_key = \"{dir}/client.key\"\n"
    );
    let taglock = Taglock::with(&url, &trusted, RULES);
    assert_eq!(http::get(&taglock.address, "/v2/").status, 200, "streamed");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201, "judged");
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("two")).status, 409);

    for untrusted in [
        // Another authority, no authority but the system's, no certificate to show, another name.
        trusted.replace("ca.pem", "other.pem"),
        trusted.lines().skip(1).collect::<Vec<_>>().join("\n"),
    ] {
        let taglock = Taglock::with(&url, &untrusted, RULES);
        assert_eq!(http::get(&taglock.address, "/v2/").status, 502);
        assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 503);
    }
    let without = trusted.lines().next().unwrap();
    let taglock = Taglock::with(&url, without, RULES);
    assert_eq!(http::get(&taglock.address, "/v2/").status, 400, "nginx wants a certificate");
    let taglock = Taglock::with(&format!("https://{address}"), &trusted, RULES);
    assert_eq!(http::get(&taglock.address, "/v2/").status, 502, "not the certificate's name");
}

#[test]
fn behind_a_load_balancer_that_ends_tls_urls_say_https() {
    let registry = Registry::start();
    let location = |answer: &http::Answer| answer.header("Location").unwrap().to_owned();
    let start = |more: &str| {
        let more = more.to_owned();
        Taglock::from_file(|address, admin, dir| {
            format!(
                "[listen]\naddress = \"{address}\"\n{more}\n[upstream]\nurl = \"http://{}\"\n\
                 [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n{RULES}",
                registry.address
            )
        })
    };
    let headers = [("Host", "registry.example.com"), ("X-Forwarded-Proto", "https")];
    let upload = |taglock: &Taglock| {
        http::request(&taglock.address, "POST", "/v2/other/blobs/uploads/", &headers, b"")
    };
    let trusting = start("trusted_proxies = [\"127.0.0.0/8\"]");
    assert!(location(&upload(&trusting)).starts_with("https://registry.example.com/v2/other/"));
    let told = start("external_url = \"https://registry.example.com\"");
    assert!(location(&upload(&told)).starts_with("https://registry.example.com/v2/other/"));
    let pushed = put(&told.address, "prod/app", "v1", &manifest("one"));
    assert!(location(&pushed).starts_with("https://registry.example.com/v2/prod/app/"));
    // Anybody's word is not taken.
    let plain = start("");
    assert!(location(&upload(&plain)).starts_with("http://registry.example.com/v2/other/"));
}
