//! Signatures, attestations and referrers: their tags are rewritten by design, also where tags
//! are immutable.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::*;
use crate::http::{self, Answer, request};

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn blob(address: &str, bytes: &[u8]) -> Value {
    let start = request(address, "POST", "/v2/prod/app/blobs/uploads/", &[], b"");
    let location = start.header("Location").unwrap();
    let target = location.trim_start_matches("http://").split_once('/').unwrap().1;
    let target = format!("/{target}&digest={}", digest(bytes));
    let answer = request(address, "PUT", &target, &[], bytes);
    assert_eq!(answer.status, 201, "{}", answer.text());
    json!({ "mediaType": "application/octet-stream", "digest": digest(bytes), "size": bytes.len() })
}

fn put_as(address: &str, media_type: &str, reference: &str, document: &Value) -> (Answer, String) {
    let bytes = document.to_string().into_bytes();
    let target = format!("/v2/prod/app/manifests/{reference}");
    let answer = request(address, "PUT", &target, &[("Content-Type", media_type)], &bytes);
    (answer, digest(&bytes))
}

fn delete(address: &str, reference: &str) -> u16 {
    let target = format!("/v2/prod/app/manifests/{reference}");
    request(address, "DELETE", &target, &[], b"").status
}

/// `cosign sign` twice: each signature makes the manifest under `.sig` grow. Then `cosign clean`.
#[test]
fn cosign_signs_an_immutable_image_twice_and_cleans_up() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let address = &taglock.address;
    let image = manifest("image");
    assert_eq!(put(address, "prod/app", "v1", &image).status, 201);
    let config = blob(address, b"{}");
    for suffix in ["sig", "att", "sbom"] {
        let tag = format!("sha256-{}.{suffix}", hex(&digest(&image)));
        let mut layers = Vec::new();
        let mut signed = Vec::new();
        for n in 0..2 {
            assert_eq!(tag_of(address, "prod/app", &tag).is_some(), n > 0);
            layers.push(blob(address, format!("{suffix} {n}").as_bytes()));
            let document = json!({
                "schemaVersion": 2, "mediaType": OCI, "config": config, "layers": layers,
            });
            let (answer, digest) = put_as(address, OCI, &tag, &document);
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert_eq!(tag_of(&registry.address, "prod/app", &tag), Some(digest.clone()));
            signed.push(digest);
        }
        // What the first signature was is untagged now; the second goes with its tag.
        for digest in signed {
            assert_eq!(delete(address, &digest), 202);
        }
        assert_eq!(tag_of(&registry.address, "prod/app", &tag), None);
    }
    assert_eq!(put(address, "prod/app", "v1", &manifest("other")).status, 409);
    assert_eq!(delete(address, &digest(&image)), 405);
}

/// `oras attach` twice: the index of referrers is written anew, and the old one deleted.
#[test]
fn oras_attaches_twice_by_the_referrers_tag_schema() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let address = &taglock.address;
    let image = manifest("image");
    assert_eq!(put(address, "prod/app", "v1", &image).status, 201);
    let subject = json!({ "mediaType": INDEX, "digest": digest(&image), "size": image.len() });
    let config = blob(address, b"{}");
    let tag = format!("sha256-{}", hex(&digest(&image)));
    let mut referrers = Vec::new();
    let mut old: Option<String> = None;
    for n in 0..3 {
        let artifact = json!({
            "schemaVersion": 2, "mediaType": OCI, "artifactType": "application/x.sbom",
            "config": config, "layers": [config], "subject": subject,
            "annotations": { "n": n.to_string() },
        });
        let size = artifact.to_string().len();
        let by_digest = digest(artifact.to_string().as_bytes());
        let (answer, artifact_digest) = put_as(address, OCI, &by_digest, &artifact);
        assert_eq!(answer.status, 201, "{}", answer.text());
        assert_eq!(tag_of(address, "prod/app", &tag), old);
        referrers.push(json!({
            "mediaType": OCI, "digest": artifact_digest, "size": size,
            "artifactType": "application/x.sbom",
        }));
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": referrers });
        let (answer, index_digest) = put_as(address, INDEX, &tag, &index);
        assert_eq!(answer.status, 201, "{}", answer.text());
        if let Some(old) = old {
            assert_eq!(delete(address, &old), 202, "the old index");
        }
        assert_eq!(tag_of(&registry.address, "prod/app", &tag), Some(index_digest.clone()));
        old = Some(index_digest);
    }
    assert_eq!(tag_of(address, "prod/app", "v1"), Some(digest(&image)));
}

#[test]
fn a_rule_may_hold_signatures_too() {
    let registry = Registry::start();
    let rules = RULES.replace("mutability", "protect_signatures = true\nmutability");
    let taglock = Taglock::with(&registry.address, "", &rules);
    let tag = format!("sha256-{}.sig", "ab".repeat(32));
    assert_eq!(put(&taglock.address, "prod/app", &tag, &manifest("one")).status, 201);
    assert_eq!(put(&taglock.address, "prod/app", &tag, &manifest("two")).status, 409);
    assert_eq!(http::get(&taglock.address, "/v2/prod/app/tags/list").status, 200);
}

const CLIENT: &str = r#"
import sys
import oras.client
import oras.oci

address, target, subject = sys.argv[1:4]
client = oras.client.OrasClient(hostname=address, insecure=True)
if subject:
    subject = oras.oci.Subject("application/vnd.oci.image.manifest.v1+json", subject, 1)
answer = client.push(
    target=f"{address}/{target}", files=sys.argv[4:], disable_path_validation=True,
    subject=subject or None,
)
print(answer.headers["Docker-Content-Digest"])
"#;

fn oras(home: &Path, address: &str, target: &str, subject: &str, file: &Path) -> Command {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/oras/bin/python");
    assert!(python.exists(), "oras is not installed, run scripts/test");
    let mut command = Command::new(python);
    command.env("HOME", home).args(["-c", CLIENT, address, target, subject]).arg(file);
    command
}

#[test]
fn the_oras_client_of_python_pushes_artifacts_and_attaches_to_them() {
    let registry = Registry::start();
    let taglock = Taglock::before(&registry.address);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (one, two) = (dir.join("one.txt"), dir.join("two.txt"));
    fs::write(&one, "one").unwrap();
    fs::write(&two, "two").unwrap();
    let push = |target: &str, subject: &str, file: &Path| {
        oras(dir, &taglock.address, target, subject, file)
    };
    succeed(&mut push("prod/app:v1", "", &one));
    succeed(&mut push("prod/app:v1", "", &one));
    let bound = tag_of(&registry.address, "prod/app", "v1").unwrap();
    let said = fail(&mut push("prod/app:v1", "", &two));
    assert!(said.contains("The image tag 'v1' already exists in the 'prod/app'"), "{said}");
    assert_eq!(tag_of(&registry.address, "prod/app", "v1"), Some(bound.clone()));
    // Attached under its own tag, the same again, and another one there.
    succeed(&mut push("prod/app:v1-sbom", &bound, &one));
    succeed(&mut push("prod/app:v1-sbom", &bound, &one));
    fail(&mut push("prod/app:v1-sbom", &bound, &two));
    // And under a referrers tag, which moves.
    let referrers = format!("prod/app:sha256-{}", hex(&bound));
    succeed(&mut push(&referrers, &bound, &one));
    succeed(&mut push(&referrers, &bound, &two));
}
