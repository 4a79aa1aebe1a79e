//! Starts and ends the real parts.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::http::{self, Answer};

pub const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A port below those the system hands out, so that no outgoing connection takes it.
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 18_000 + (std::process::id() % 60) as u16 * 200;
    loop {
        let port = start + NEXT.fetch_add(1, Ordering::Relaxed) % 2000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A listener on such a port, and its address: taken at once, so that nobody gets between.
pub fn listener() -> (TcpListener, String) {
    loop {
        let address = format!("127.0.0.1:{}", port());
        if let Ok(listener) = TcpListener::bind(&address) {
            return (listener, address);
        }
    }
}

/// A process that ends with the test.
pub struct Process {
    pub child: Child,
    log: PathBuf,
    name: &'static str,
}

impl Process {
    pub fn start(name: &'static str, mut command: Command, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("`{name}` can't be started, run scripts/test: {e}"));
        Self { child, log, name }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Waits for a TCP port to answer.
    pub fn wait_for(&mut self, address: &str) {
        eventually(&format!("{} on {address}", self.name), || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            TcpStream::connect(address).is_ok()
        });
    }

    pub fn wait_for_end(&mut self) -> i32 {
        let mut code = None;
        eventually(&format!("the end of {}", self.name), || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // The end of it: a run may have gone on for long.
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(100)..].join("\n");
            eprintln!("--- {} ---\n{end}", self.name);
        } else if self.name == "taglock" {
            assert!(!self.log().contains("panicked"), "taglock panicked:\n{}", self.log());
        }
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come");
        sleep(Duration::from_millis(20));
    }
}

/// Debian's `docker-registry`.
pub struct Registry {
    pub address: String,
    _process: Process,
    folder: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::with("")
    }

    /// With more of its settings, `{dir}` standing for its folder. Where they have its `{address}`,
    /// they are those of `http`, too.
    pub fn with(more: &str) -> Self {
        Self::prepared(more, |_| {})
    }

    pub fn prepared(more: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let address = format!("127.0.0.1:{}", port());
        let dir = folder.path().display().to_string();
        let http = if more.contains("{address}") { "" } else { "http: { addr: {address} }\n" };
        let settings = format!(
            "version: 0.1\nlog: {{ level: warn }}\n\
             storage: {{ filesystem: {{ rootdirectory: {dir}/data }}, delete: {{ enabled: true }} }}\n\
             {http}{}\n",
            more.replace("{dir}", &dir)
        );
        let settings = settings.replace("{address}", &address);
        let file = folder.path().join("registry.yml");
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(file);
        let mut process = Process::start("docker-registry", command, folder.path());
        process.wait_for(&address);
        Self { address, _process: process, folder }
    }

    /// Every tag of every repository, as `repository:tag`, from its disk.
    pub fn all_tags(&self) -> Vec<String> {
        let root = self.folder.path().join("data/docker/registry/v2/repositories");
        let (mut tags, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                if folder.ends_with("_manifests/tags") {
                    let repository = folder.ancestors().nth(2).unwrap().strip_prefix(&root);
                    let tag = path.file_name().unwrap().to_string_lossy();
                    tags.push(format!("{}:{tag}", repository.unwrap().display()));
                } else if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        tags.sort();
        tags
    }
}

/// A running taglock.
pub struct Taglock {
    pub address: String,
    pub admin: String,
    pub process: Process,
    pub folder: TempDir,
}

/// Rules most tests use: `immutable-repo` and `prod/**`, but for `latest` and `dev-*`.
pub const RULES: &str = r#"
[[rule]]
name = "releases"
repositories = ["immutable-repo", "prod/**"]
mutability = "immutable"
except = ["latest", "dev-*"]
[[rule]]
name = "all"
repositories = "all/**"
mutability = "immutable"
"#;

impl Taglock {
    pub fn before(registry: &str) -> Self {
        Self::with(registry, "", RULES)
    }

    /// With more keys for `[upstream]`, and more tables.
    pub fn with(registry: &str, upstream: &str, tables: &str) -> Self {
        let url = if registry.contains("://") {
            registry.to_owned()
        } else {
            format!("http://{registry}")
        };
        Self::from_file(|address, admin, dir| {
            format!(
                "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"{url}\"\n{upstream}\n\
                 [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n{tables}"
            )
        })
    }

    /// From a file made of the address, the admin's address and the folder.
    pub fn from_file(file: impl FnOnce(&str, &str, &str) -> String) -> Self {
        Self::from_program(Path::new(env!("CARGO_BIN_EXE_taglock")), file)
    }

    /// The program at this path, from such a file.
    pub fn from_program(program: &Path, file: impl FnOnce(&str, &str, &str) -> String) -> Self {
        Self::begin(Command::new(program), file)
    }

    /// With more in its environment.
    pub fn with_environment(registry: &str, environment: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_taglock"));
        command.envs(environment.iter().copied());
        Self::begin(command, |address, admin, dir| {
            format!(
                "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{registry}\"\n\
                 [ledger]\npath = \"{dir}/ledger\"\n[admin]\naddress = \"{admin}\"\n{RULES}"
            )
        })
    }

    /// By this command, from a file made of the address, the admin's address and the folder.
    pub fn begin(command: Command, file: impl FnOnce(&str, &str, &str) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", port());
        let admin = format!("127.0.0.1:{}", port());
        let text = file(&address, &admin, &folder.path().display().to_string());
        fs::write(folder.path().join("taglock.toml"), text).unwrap();
        let process = Self::spawn(command, folder.path());
        let mut taglock = Self { address, admin, process, folder };
        taglock.process.wait_for(&taglock.address);
        taglock
    }

    fn spawn(mut command: Command, folder: &Path) -> Process {
        command.arg("serve").arg("--config").arg(folder.join("taglock.toml"));
        command.env("RUST_BACKTRACE", "1");
        Process::start("taglock", command, folder)
    }

    /// The same file and ledger, in a new process.
    pub fn restart(&mut self) {
        if self.process.child.try_wait().unwrap().is_none() {
            self.process.signal("-KILL");
        }
        self.process.wait_for_end();
        let command = Command::new(env!("CARGO_BIN_EXE_taglock"));
        self.process = Self::spawn(command, self.folder.path());
        self.process.wait_for(&self.address);
    }

    /// Waits until the connections of the harness itself were counted, and have ended. Each is accepted
    /// by one of several threads, so an earlier one may be counted after a later one.
    pub fn forgets_the_harness(&self) {
        for _ in 0..4 {
            // Answered by taglock alone.
            http::raw(&self.address, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            eventually("the end of the harness's own connections", || {
                self.metric("taglock_connections ") == 0.0
            });
        }
    }

    pub fn metric(&self, line: &str) -> f64 {
        let text = http::get(&self.admin, "/metrics").text();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    /// Waits until no request is under way. One is counted after its last byte: a client that has
    /// its answer may be ahead of the count.
    pub fn rests(&self) {
        let lines = ["taglock_requests_in_flight ", "taglock_protected_pushes_in_flight "];
        eventually("rest", || lines.iter().all(|line| self.metric(line) == 0.0));
    }
}

/// An empty image index that differs by its seed: a manifest that needs no blobs.
pub fn manifest(seed: &str) -> Vec<u8> {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[],"annotations":{{"seed":"{seed}"}}}}"#
    )
    .into_bytes()
}

pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

pub fn put(address: &str, repository: &str, reference: &str, manifest: &[u8]) -> Answer {
    let target = format!("/v2/{repository}/manifests/{reference}");
    http::request(address, "PUT", &target, &[("Content-Type", INDEX)], manifest)
}

/// The digest a registry itself has under a tag, every type accepted.
pub fn tag_of(address: &str, repository: &str, tag: &str) -> Option<String> {
    tag_with(address, repository, tag, &[])
}

pub fn tag_with(
    address: &str,
    repository: &str,
    tag: &str,
    headers: &[(&str, &str)],
) -> Option<String> {
    let accept = format!(
        "{OCI}, {INDEX}, application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.docker.distribution.manifest.v2+json"
    );
    let headers = [&[("Accept", accept.as_str())], headers].concat();
    let target = format!("/v2/{repository}/manifests/{tag}");
    let answer = http::request(address, "HEAD", &target, &headers, b"");
    match answer.status {
        200 => Some(answer.header("Docker-Content-Digest").unwrap().to_owned()),
        404 => None,
        other => panic!("{other} for {target}"),
    }
}

/// Runs a client to its end, at most two minutes.
pub fn run(command: &mut Command) -> Output {
    let name = format!("{command:?}");
    let mut bounded = Command::new("timeout");
    bounded.arg("120").arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(key, value),
            None => bounded.env_remove(key),
        };
    }
    bounded.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// All a client printed.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    said(&output)
}

pub fn fail(command: &mut Command) -> String {
    let output = run(command);
    assert!(!output.status.success(), "{command:?} succeeded: {}", said(&output));
    assert_ne!(output.status.code(), Some(127), "{command:?} is not installed");
    said(&output)
}
