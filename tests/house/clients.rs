//! What people use: skopeo, podman, buildah and docker, each telling its user why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::*;

/// Images in OCI layouts, as files.
pub struct Images {
    folder: TempDir,
}

impl Images {
    pub fn new() -> Self {
        // podman takes only lower-case paths for names.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("taglock-images-{}-{n}", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).rand_bytes(0).tempdir().unwrap();
        let images = Self { folder };
        for name in ["one", "two"] {
            images.image(name, "amd64");
        }
        images
    }

    /// skopeo's name of one of them.
    pub fn source(&self, name: &str) -> String {
        format!("oci:{}:latest", self.folder.path().join(name).display())
    }

    fn blob(dir: &Path, bytes: &[u8]) -> (String, usize) {
        let digest = digest(bytes);
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        (digest, bytes.len())
    }

    /// One image of one empty layer, told from others by a label.
    fn manifest(dir: &Path, label: &str, architecture: &str) -> (String, usize) {
        let (layer, layer_size) = Self::blob(dir, &[0; 1024]);
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Labels": { "maintainer": label } },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        });
        let (config, config_size) = Self::blob(dir, config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config, "size": config_size,
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer, "size": layer_size,
            }],
        });
        Self::blob(dir, manifest.to_string().as_bytes())
    }

    fn finish(dir: &Path, media_type: &str, digest: &str, size: usize) {
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": media_type, "digest": digest, "size": size,
                "annotations": { "org.opencontainers.image.ref.name": "latest" },
            }],
        });
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    fn image(&self, name: &str, architecture: &str) {
        let dir = self.folder.path().join(name);
        let (digest, size) = Self::manifest(&dir, name, architecture);
        Self::finish(&dir, OCI, &digest, size);
    }

    /// An image for two architectures.
    fn index(&self, name: &str) {
        let dir = self.folder.path().join(name);
        let children = ["amd64", "arm64"].map(|architecture| {
            let (digest, size) = Self::manifest(&dir, name, architecture);
            json!({
                "mediaType": OCI, "digest": digest, "size": size,
                "platform": { "architecture": architecture, "os": "linux" },
            })
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children });
        let (digest, size) = Self::blob(&dir, index.to_string().as_bytes());
        Self::finish(&dir, INDEX, &digest, size);
    }
}

const SENTENCE: &str = "The image tag 'v1' already exists in the 'prod/app' repository and cannot \
                        be overwritten because the tag is immutable.";

#[test]
fn skopeo_pushes_is_refused_readably_and_pulls() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let images = Images::new();
    let target = format!("docker://{}/prod/app:v1", taglock.address);
    let push = |image: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--dest-tls-verify=false"]).arg(images.source(image)).arg(&target);
        command
    };
    succeed(&mut push("one"));
    let bound = tag_of(&registry.address, "prod/app", "v1");
    let refused = || {
        taglock.rests();
        taglock.metric("taglock_requests_total{route=\"manifest-write\",status=\"4xx\"} ")
    };
    let before = refused();
    let said = fail(&mut push("two"));
    assert!(said.contains(&format!("denied: {SENTENCE}")), "{said}");
    assert_eq!(refused() - before, 1.0, "one PUT: no other formats were tried");
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), bound);
    succeed(&mut push("one"));
    let mut inspect = Command::new("skopeo");
    let said = succeed(inspect.args(["inspect", "--tls-verify=false"]).arg(&target));
    assert!(said.contains(&bound.unwrap()), "{said}");
}

#[test]
fn skopeo_copies_an_index_with_all_its_images() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let images = Images::new();
    images.index("many");
    images.index("other");
    let push = |image: &str| {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--all", "--dest-tls-verify=false"]).arg(images.source(image));
        command.arg(format!("docker://{}/prod/app:v1", taglock.address));
        command
    };
    succeed(&mut push("many"));
    let said = fail(&mut push("other"));
    assert!(said.contains(&format!("denied: {SENTENCE}")), "{said}");
    succeed(&mut push("many"));
    // Both of the first index's images are there, the second's only by digest.
    let mut raw = Command::new("skopeo");
    raw.args(["inspect", "--raw", "--tls-verify=false"]);
    let said = succeed(raw.arg(format!("docker://{}/prod/app:v1", taglock.address)));
    assert!(said.contains("amd64") && said.contains("arm64"), "{said}");
}

/// podman and buildah share their options for storage.
pub fn containers(program: &str, storage: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command.env("HOME", storage).env("XDG_RUNTIME_DIR", storage);
    command
}

#[test]
fn podman_and_buildah_push_and_are_refused_readably() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let images = Images::new();
    for program in ["podman", "buildah"] {
        let storage = tempfile::tempdir().unwrap();
        let target = format!("docker://{}/prod/app:v1", taglock.address);
        let push = |image: &str, target: &str| {
            let mut pull = containers(program, storage.path());
            let said = succeed(pull.args(["pull", "-q"]).arg(images.source(image)));
            let id = said.lines().last().unwrap().trim().to_owned();
            let mut push = containers(program, storage.path());
            push.args(["push", "--tls-verify=false", &id, target]);
            push
        };
        succeed(&mut push("one", &target));
        let said = fail(&mut push("two", &target));
        assert!(said.contains(&format!("denied: {SENTENCE}")), "{program}: {said}");
        succeed(&mut push("one", &target));
        succeed(&mut push("two", &target.replace(":v1", ":latest")));
    }
    let one = tag_of(&registry.address, "prod/app", "v1");
    assert_ne!(one, tag_of(&registry.address, "prod/app", "latest"));
}

/// A docker daemon of its own.
pub struct Docker {
    _daemon: Process,
    folder: TempDir,
}

impl Docker {
    pub fn start() -> Self {
        Self::with(&[])
    }

    pub fn with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let mut command = Command::new("dockerd");
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin");
        command.arg("--data-root").arg(dir.join("data")).arg("--exec-root").arg(dir.join("exec"));
        command.arg("--pidfile").arg(dir.join("pid"));
        command.arg("-H").arg(format!("unix://{}", dir.join("sock").display()));
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        command.args(["--storage-driver", "vfs"]).args(more);
        let daemon = Process::start("dockerd", command, dir);
        let docker = Self { _daemon: daemon, folder };
        eventually("docker", || run(docker.command().arg("version")).status.success());
        docker
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        let socket: PathBuf = self.folder.path().join("sock");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        command.env("DOCKER_CONFIG", self.folder.path().join("config"));
        command.env("DOCKER_BUILDKIT", "0");
        command
    }

    /// `FROM scratch` and a label.
    pub fn build(&self, label: &str, name: &str) {
        let context = self.folder.path().join(label);
        fs::create_dir_all(&context).unwrap();
        let text = format!("FROM scratch\nLABEL maintainer=\"{label}\"\n");
        fs::write(context.join("Dockerfile"), text).unwrap();
        succeed(self.command().args(["build", "-q", "-t", name]).arg(context));
    }
}

/// The story that users of Amazon ECR know.
#[test]
fn docker_push_of_another_image_under_an_existing_tag_fails_as_on_ecr() {
    let registry = Registry::start();
    let docker = Docker::start();
    for (rules, expected) in [
        (
            RULES
                .replace("mutability", "refusal = \"ecr\"\nmutability")
                .replace("except = [\"latest\", \"dev-*\"]", ""),
            "tag invalid: The image tag 'latest' already exists in the 'immutable-repo' repository \
             and cannot be overwritten because the repository is immutable.\n",
        ),
        (
            RULES.replace("except = [\"latest\", \"dev-*\"]", ""),
            "denied: The image tag 'latest' already exists in the 'immutable-repo' repository \
             and cannot be overwritten because the repository is immutable. It is bound to",
        ),
    ] {
        let taglock = Taglock::with(&registry.address, "", &rules);
        let name = format!("{}/immutable-repo:latest", taglock.address);
        docker.build("one", &name);
        succeed(docker.command().args(["push", &name]));
        let first = docker_tag(&registry);
        docker.build("two", &name);
        let said = fail(docker.command().args(["push", &name]));
        assert!(said.contains(expected), "{said}");
        assert_eq!(docker_tag(&registry), first, "the registry still serves the first");
        docker.build("one", &name);
        succeed(docker.command().args(["push", &name]));
        // And what was pushed can be pulled.
        succeed(docker.command().args(["rmi", &name]));
        succeed(docker.command().args(["pull", &name]));
    }
}

fn docker_tag(registry: &Registry) -> String {
    tag_of(&registry.address, "immutable-repo", "latest").expect("the tag is there")
}
