//! nginx as the backend and as a rival, and HAProxy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::harness::{INDEX, Process, digest, manifest, port};

/// Where Debian has them, whatever the caller's path.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin";

/// nginx works in children, which must end with it.
pub struct Nginx(pub Process);

impl Nginx {
    /// With these directives of its `http`.
    pub fn start(folder: &Path, address: &str, http: &str) -> Self {
        let dir = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {dir}/{kind};\n"))
            .collect();
        // The folders are this user's alone.
        let settings = format!(
            "daemon off; user root; worker_processes 2; worker_rlimit_nofile 16384;\n\
             pid {dir}/pid; error_log stderr error;\n\
             events {{ worker_connections 8000; }}\n\
             http {{\naccess_log off;\n{temporary}\
             tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 1h;\n{http}\n}}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, settings).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&file).args(["-e", "stderr"]);
        command.env("PATH", PATH);
        let mut process = Process::start("nginx", command, folder);
        process.wait_for(address);
        Self(process)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if matches!(self.0.child.try_wait(), Ok(None)) {
            self.0.signal("-TERM");
            // Killed after that, were it not to end.
            crate::harness::eventually("the end of nginx", || {
                !matches!(self.0.child.try_wait(), Ok(None))
            });
        }
    }
}

/// A registry as fast as one can be: nginx with files in memory. Every repository has one blob, and one
/// manifest under every tag.
pub struct Backend {
    pub address: String,
    pub blob: String,
    pub manifest: Vec<u8>,
    _nginx: Nginx,
    _folder: TempDir,
}

impl Backend {
    pub fn start(blob_size: u64) -> Self {
        let folder = memory();
        let dir = folder.path();
        fs::create_dir(dir.join("data")).unwrap();
        let blob = large_file(&dir.join("data/blob"), blob_size);
        // About what the index of an image for several platforms has.
        let manifest = manifest(&"m".repeat(1900));
        fs::write(dir.join("data/manifest"), &manifest).unwrap();
        let address = format!("127.0.0.1:{}", port());
        // Connections for blobs end after the third: the kernel deals them out to the two workers by
        // lot, and one lot for a whole run would be the luck of whoever keeps them.
        let http = format!(
            "sendfile on; sendfile_max_chunk 2m; open_file_cache max=16; etag off;\n\
             server {{ listen {address} reuseport backlog=4096;\n\
             location ~ /manifests/ {{ root {dir}/data; rewrite ^ /manifest break;\n\
             default_type {INDEX}; add_header Docker-Content-Digest {digest}; }}\n\
             location ~ /blobs/ {{ root {dir}/data; rewrite ^ /blob break;\n\
             keepalive_requests 3; default_type application/octet-stream; }}\n\
             location / {{ return 200 \"{{}}\"; }}\n}}",
            dir = dir.display(),
            digest = digest(&manifest),
        );
        let nginx = Nginx::start(dir, &address, &http);
        // The blob is not hashed by anybody.
        let blob = format!("/v2/{{repository}}/blobs/{}", digest(blob.as_bytes()));
        Self { address, blob, manifest, _nginx: nginx, _folder: folder }
    }

    pub fn blob(&self, repository: &str) -> String {
        self.blob.replace("{repository}", repository)
    }
}

/// A folder in memory, where the system has one.
pub fn memory() -> TempDir {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() {
        tempfile::tempdir_in(shared).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// A file with its pages there, and its path.
pub fn large_file(path: &PathBuf, size: u64) -> String {
    use std::io::Write;
    let mut file = File::create(path).unwrap();
    let piece = vec![b'b'; 1 << 20];
    for _ in 0..size >> 20 {
        file.write_all(&piece).unwrap();
    }
    path.display().to_string()
}

/// nginx as a proxy: large buffers, no file between, kept connections, uploads as they come.
pub fn nginx_proxy(
    folder: &Path,
    address: &str,
    upstream: &str,
    certificate: Option<&Path>,
) -> Nginx {
    let tls = certificate.map_or(String::new(), |pem| {
        let pem = pem.display();
        format!(
            "ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_protocols TLSv1.3;\n\
             ssl_session_cache shared:s:1m;\n"
        )
    });
    let ssl = if certificate.is_some() { "ssl" } else { "" };
    let http = format!(
        "upstream backend {{ server {upstream}; keepalive 128;\n\
         keepalive_requests 1000000000; keepalive_timeout 1h; }}\n{tls}\
         server {{ listen {address} {ssl} reuseport backlog=4096;\n\
         client_max_body_size 0;\n\
         location / {{ proxy_pass http://backend; proxy_http_version 1.1;\n\
         proxy_set_header Connection ''; proxy_set_header Host $host;\n\
         proxy_buffer_size 16k; proxy_buffers 8 256k; proxy_busy_buffers_size 512k;\n\
         proxy_max_temp_file_size 0; proxy_request_buffering off;\n\
         client_body_buffer_size 256k; }}\n}}"
    );
    Nginx::start(folder, address, &http)
}

/// HAProxy: splices with pipes of 1 MiB, keeps connections.
pub fn haproxy(
    folder: &Path,
    address: &str,
    upstream: &str,
    certificate: Option<&Path>,
) -> Process {
    let ssl =
        certificate.map_or(String::new(), |pem| format!("ssl crt {} alpn http/1.1", pem.display()));
    let settings = format!(
        "global\n  nbthread 2\n  maxconn 4000\n  tune.pipesize 1048576\n\
         \x20 ssl-default-bind-options ssl-min-ver TLSv1.3\n\
         defaults\n  mode http\n  option splice-auto\n  option splice-request\n\
         \x20 option splice-response\n  option http-keep-alive\n  http-reuse always\n\
         \x20 timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         frontend front\n  bind {address} {ssl} shards by-thread backlog 4096\n\
         \x20 default_backend back\n\
         backend back\n  server backend {upstream}\n"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, settings).unwrap();
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).env("PATH", PATH);
    let mut process = Process::start("haproxy", command, folder);
    process.wait_for(address);
    process
}
