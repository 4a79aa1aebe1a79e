//! Blobs from a registry over TLS.

use super::source::{Source, body};
use super::{Kept, MIB, both, length, sized};
use crate::auth::nginx;
use crate::harness::port;
use crate::tls::Authority;

#[test]
fn blobs_of_a_registry_over_tls_arrive_byte_for_byte_or_are_cut_where_it_is() {
    let source = Source::start(|asked| match asked.what() {
        "cut" => {
            asked.say(&length(3 * MIB), &body(MIB));
            false
        }
        _ => sized(asked),
    });
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let dir = folder.path();
    authority.write(&dir.join("ca.pem"));
    authority.issue(dir, "server", "localhost");
    let address = format!("127.0.0.1:{}", port());
    let tls = format!(
        "ssl; ssl_certificate {0}/server.pem; ssl_certificate_key {0}/server.key;",
        dir.display()
    );
    let locations =
        format!("location / {{ proxy_pass http://{}; proxy_buffering off; }}", source.address);
    let _front = nginx(dir, &address, &locations, &tls);
    let url = format!("https://localhost:{}", address.rsplit(':').next().unwrap());
    let trusted = format!("ca_file = \"{}/ca.pem\"", dir.display());
    both(&url, &trusted, "", |taglock, _| {
        let mut client = Kept::new(taglock);
        let around = |size: usize| [size - 1, size, size + 1];
        let sizes = [around(64 << 10), around(256 << 10), around(9 * MIB)].concat();
        for size in [0, 1, 5].into_iter().chain(sizes) {
            assert!(client.get(&format!("size-{size}")).body == body(size), "{size}");
        }
        let cut = Kept::new(taglock).cut_body("cut");
        assert!(!cut.is_empty() && cut.len() <= MIB && cut == body(cut.len()), "{}", cut.len());
        assert!(client.get("size-70000").body == body(70_000));
    });
}
