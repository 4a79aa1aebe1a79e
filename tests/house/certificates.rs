//! Certificates that change under way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::auth::nginx;
use crate::harness::*;
use crate::http;
use crate::tls::Authority;

/// Whether a client that trusts this authority alone gets through.
fn trusted(taglock: &Taglock, authority: &Path) -> bool {
    let port = taglock.address.rsplit(':').next().unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "30", "-o", "/dev/null", "--cacert"]).arg(authority);
    run(curl.arg(format!("https://localhost:{port}/v2/"))).status.success()
}

#[test]
fn the_listeners_certificate_changes_under_way_and_a_bad_pair_keeps_the_old_one() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let ca = |n: usize| dir.join(format!("ca{n}.pem"));
    for n in 0..3 {
        let authority = Authority::new();
        authority.write(&ca(n));
        let version = dir.join(format!("v{n}"));
        fs::create_dir(&version).unwrap();
        authority.issue(&version, "server", "localhost");
    }
    // As Kubernetes mounts a Secret.
    let swap = |n: usize| {
        symlink(format!("v{n}"), dir.join("next")).unwrap();
        fs::rename(dir.join("next"), dir.join("data")).unwrap();
    };
    swap(0);
    let taglock = Taglock::from_file(|address, admin, folder| {
        format!(
            "[listen]\naddress = \"{address}\"\n\
             tls = {{ certificate = \"{0}/data/server.pem\", key = \"{0}/data/server.key\" }}\n\
             [upstream]\nurl = \"http://{1}\"\n[ledger]\npath = \"{folder}/ledger\"\n\
             [admin]\naddress = \"{admin}\"\n{RULES}",
            dir.display(),
            registry.address
        )
    });
    let reloads = |result: &str| {
        let labels = format!("certificate=\"listen\",result=\"{result}\"");
        taglock.metric(&format!("taglock_certificate_reloads_total{{{labels}}} "))
    };
    let ready = || http::get(&taglock.admin, "/readyz").text();
    assert!(trusted(&taglock, &ca(0)) && !trusted(&taglock, &ca(1)));
    let end = "taglock_certificate_expiry_timestamp_seconds{certificate=\"listen\"} ";
    assert!(taglock.metric(end) > 1.8e9);

    swap(1);
    eventually("the swapped certificate", || trusted(&taglock, &ca(1)));
    assert!(!trusted(&taglock, &ca(0)));

    // One file of two, and a signal in between.
    fs::copy(dir.join("v2/server.pem"), dir.join("v1/server.pem")).unwrap();
    taglock.process.signal("-HUP");
    eventually("the refusal", || reloads("refused") >= 1.0);
    assert!(trusted(&taglock, &ca(1)), "the old pair is served");
    eventually("the notice", || ready().contains("\ncertificate: the files were changed"));
    assert_eq!(http::get(&taglock.admin, "/readyz").status, 200);
    assert!(taglock.process.log().contains("changed and can't be used"));
    fs::copy(dir.join("v2/server.key"), dir.join("v1/server.key")).unwrap();
    eventually("the whole pair", || trusted(&taglock, &ca(2)));
    eventually("the end of the notice", || !ready().contains("certificate:"));

    let applied = reloads("applied");
    taglock.process.signal("-HUP");
    eventually("the signal", || reloads("applied") > applied);
    assert!(taglock.process.log().contains("kind=\"certificate\""), "the audit has it");
    assert!(!taglock.process.log().contains("the file changes more than rules"));
}

#[test]
fn the_registrys_authority_and_the_client_certificate_change_under_way() {
    let registry = Registry::start();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (authority, other) = (Authority::new(), Authority::new());
    authority.write(&dir.join("ca.pem"));
    authority.issue(dir, "server", "localhost");
    authority.issue(dir, "good", "taglock");
    other.write(&dir.join("trusted.pem"));
    other.issue(dir, "client", "taglock");
    let address = format!("127.0.0.1:{}", port());
    let tls = format!(
        "ssl; ssl_certificate {0}/server.pem; ssl_certificate_key {0}/server.key; \
         ssl_client_certificate {0}/ca.pem; ssl_verify_client on;",
        dir.display()
    );
    let locations = format!("location / {{ proxy_pass http://{}; }}", registry.address);
    let _front = nginx(dir, &address, &locations, &tls);
    let url = format!("https://localhost:{}", address.rsplit(':').next().unwrap());
    let keys = format!(
        "ca_file = \"{0}/trusted.pem\"\nclient_certificate = \"{0}/client.pem\"\n\
         client_key = \"{0}/client.key\"\n",
        dir.display()
    );
    let taglock = Taglock::with(&url, &keys, RULES);
    let status = || http::get(&taglock.address, "/v2/").status;
    assert_eq!(status(), 502, "an authority that is not trusted");
    fs::copy(dir.join("ca.pem"), dir.join("trusted.pem")).unwrap();
    eventually("the authority", || status() == 400);
    for part in ["key", "pem"] {
        fs::copy(dir.join(format!("good.{part}")), dir.join(format!("client.{part}"))).unwrap();
    }
    eventually("the client certificate", || status() == 200);
    assert_eq!(put(&taglock.address, "prod/app", "v1", &manifest("one")).status, 201, "judged");
}
