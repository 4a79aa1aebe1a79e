//! The contestants, in front of one backend.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::cost::Tree;
use crate::harness::{Process, Taglock, port, run};
use crate::servers::{Nginx, haproxy, nginx_proxy};

pub const DIRECT: usize = 0;
pub const NGINX: usize = 1;
pub const HAPROXY: usize = 2;
pub const TAGLOCK: usize = 3;

/// Rules that no repository of the bench matches but where it is meant to.
pub const RULES: &str = r#"
[[rule]]
name = "releases"
repositories = "prod/**"
mutability = "immutable"
"#;

/// Everybody may pull these.
const ANONYMOUS: &str = r#"
[[rule]]
name = "public"
repositories = "public/**"
mutability = "immutable"
anonymous_pull = true
"#;

pub struct Contestant {
    pub name: &'static str,
    pub address: String,
    /// Nobody's, where there is no proxy.
    pub tree: Option<Tree>,
}

impl Contestant {
    pub fn new(name: &'static str, address: &str, process: &Process) -> Self {
        let tree = Some(Tree::of(process.child.id()));
        Self { name, address: address.to_owned(), tree }
    }

    pub fn direct(address: &str) -> Self {
        Self { name: "direct", address: address.to_owned(), tree: None }
    }
}

/// Direct, nginx, HAProxy and taglock, in this order.
pub struct Field {
    pub contestants: Vec<Contestant>,
    pub taglock: Taglock,
    _nginx: Nginx,
    _haproxy: Process,
    _folder: TempDir,
}

impl Field {
    /// `certificate`, a chain with its key, where clients are to speak TLS.
    pub fn before(upstream: &str, program: &Path, certificate: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let [nginx_at, haproxy_at] = [(); 2].map(|()| format!("127.0.0.1:{}", port()));
        let nginx = nginx_proxy(folder.path(), &nginx_at, upstream, certificate);
        let haproxy = haproxy(folder.path(), &haproxy_at, upstream, certificate);
        let listen = certificate.map_or(String::new(), |pem| {
            let pem = pem.display();
            format!("tls = {{ certificate = \"{pem}\", key = \"{pem}\" }}")
        });
        let anonymous = if knows_anonymous_pulls(program) { ANONYMOUS } else { "" };
        let taglock = taglock(program, upstream, &listen, &format!("{QUIET}{RULES}{anonymous}"));
        let contestants = vec![
            Contestant::direct(upstream),
            Contestant::new("nginx", &nginx_at, &nginx.0),
            Contestant::new("HAProxy", &haproxy_at, &haproxy),
            Contestant::new("taglock", &taglock.address, &taglock.process),
        ];
        Self { contestants, taglock, _nginx: nginx, _haproxy: haproxy, _folder: folder }
    }
}

/// Without an access log, as the rivals.
pub const QUIET: &str = "[log]\nfilter = \"warn\"\naccess = false\n";

/// With two threads, as the rivals; with more keys of `[listen]`, and more tables.
pub fn taglock(program: &Path, upstream: &str, listen: &str, tables: &str) -> Taglock {
    Taglock::from_program(program, |address, admin, dir| {
        format!(
            "threads = 2\n[listen]\naddress = \"{address}\"\n{listen}\n\
             [upstream]\nurl = \"http://{upstream}\"\n[ledger]\npath = \"{dir}/ledger\"\n\
             [admin]\naddress = \"{admin}\"\n{tables}"
        )
    })
}

/// Whether this build has the rule's key; its row is left out where it has not.
pub fn knows_anonymous_pulls(program: &Path) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taglock.toml");
    let text = format!("[upstream]\nurl = \"http://127.0.0.1:1\"\n{ANONYMOUS}");
    fs::write(&file, text).unwrap();
    let output = run(Command::new(program).arg("check").arg(&file));
    let said = crate::harness::said(&output);
    assert!(output.status.success() || said.contains("anonymous_pull"), "{said}");
    output.status.success()
}
