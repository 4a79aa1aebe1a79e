//! One push at a time.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::fleets::Fleets;
use crate::harness::{OCI, digest, manifest, succeed};
use crate::measure::{Series, digits, table};
use crate::pusher::Pusher;

/// So many pushes, then it is the next contestant's turn.
const TURN: usize = 5;
/// New tags in a repository before the next one begins.
const TAGS: usize = 100;

struct Contestant {
    name: &'static str,
    pusher: Pusher,
    /// Where its repositories are; `all/` is protected.
    prefix: &'static str,
    as_judged: bool,
    new: Series,
    again: Series,
}

pub fn run(fleets: &Fleets, budget: Duration) {
    let [direct, embedded, redis] =
        [&fleets.registry.address, &fleets.embedded.address, &fleets.fleet[0].address];
    let contestant = |name, address: &str, prefix, as_judged| Contestant {
        name,
        pusher: Pusher::connect(address),
        prefix,
        as_judged,
        new: Series::default(),
        again: Series::default(),
    };
    let mut contestants = [
        contestant("direct", direct, "direct", false),
        contestant("direct, all five requests of a judged push", direct, "five", true),
        contestant("through taglock, unprotected", embedded, "free", false),
        contestant("protected, embedded", embedded, "all/embedded", false),
        contestant("protected, Redis", redis, "all/redis", false),
    ];
    let start = Instant::now();
    let mut round = 0;
    while start.elapsed() < budget {
        for Contestant { pusher, prefix, as_judged, new, again, .. } in &mut contestants {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            for turn in 0..TURN {
                let number = round * TURN + turn;
                let repository = format!("{prefix}/r{}", number / TAGS);
                let tag = format!("v{number}");
                let bytes = manifest(&format!("{prefix} {number}"));
                first.push(if *as_judged {
                    pusher.put_as_judged(&repository, &tag, &digest(&bytes), &bytes)
                } else {
                    pusher.put(&repository, &tag, &bytes)
                });
                second.push(pusher.put(&repository, &tag, &bytes));
            }
            // The first round connects and fills caches.
            if round > 0 {
                new.round(first);
                again.round(second);
            }
        }
        round += 1;
    }
    let direct = &contestants[0];
    let rows: Vec<_> = contestants
        .iter()
        .map(|c| {
            vec![
                c.name.to_owned(),
                milliseconds(&c.new, 0.5),
                milliseconds(&c.new, 0.99),
                format!("{} ×", digits(c.new.ratio(&direct.new))),
                milliseconds(&c.again, 0.5),
                milliseconds(&c.again, 0.99),
                format!("{} ×", digits(c.again.ratio(&direct.again))),
            ]
        })
        .collect();
    let title = format!("The PUT of a manifest, one at a time ({} samples)", direct.new.count());
    let heads = [
        "push",
        "new tag p50 ms",
        "p99 ms",
        "to direct",
        "same image again p50 ms",
        "p99 ms",
        "to direct",
    ];
    table(&title, &heads, &rows);
}

fn milliseconds(series: &Series, at: f64) -> String {
    digits(series.quantile(at) / 1000.0)
}

/// A whole push by a real client: what a user of the command line waits for.
pub fn whole_pushes(fleets: &Fleets, budget: Duration) {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path());
    let contestants = [
        ("direct", &fleets.registry.address, "whole/direct"),
        ("through taglock, unprotected", &fleets.embedded.address, "whole/free"),
        ("protected, embedded", &fleets.embedded.address, "all/whole-embedded"),
        ("protected, Redis", &fleets.fleet[0].address, "all/whole-redis"),
    ];
    let mut series = [(); 4].map(|()| Series::default());
    let (start, mut round) = (Instant::now(), 0);
    while start.elapsed() < budget {
        for ((_, address, prefix), series) in contestants.iter().zip(&mut series) {
            let source = format!("oci:{}:image", folder.path().display());
            let target = format!("docker://{address}/{prefix}/app:v{round}");
            let mut skopeo = Command::new("skopeo");
            skopeo.args(["copy", "--quiet", "--dest-tls-verify=false", &source, &target]);
            let start = Instant::now();
            succeed(&mut skopeo);
            // The blobs go up with the first round.
            if round > 0 {
                series.round(vec![start.elapsed()]);
            }
        }
        round += 1;
    }
    let rows = contestants.iter().zip(&series).map(|((name, ..), times)| {
        let ratio = format!("{} ×", digits(times.ratio(&series[0])));
        vec![(*name).to_owned(), milliseconds(times, 0.5), ratio]
    });
    let rows: Vec<_> = rows.collect();
    let title = format!("A new tag by `skopeo copy`, start to end ({} samples)", series[0].count());
    table(&title, &["push", "p50 ms", "to direct"], &rows);
}

/// An image layout with one small layer.
fn layout(folder: &Path) {
    let blob = |bytes: &[u8]| {
        let digest = digest(bytes);
        let path = folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        format!("\"digest\":\"{digest}\",\"size\":{}", bytes.len())
    };
    // An empty tar archive.
    let layer = blob(&[0; 1024]);
    let diff = digest(&[0; 1024]);
    let config = blob(
        format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
        )
        .as_bytes(),
    );
    let manifest = blob(
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{layer}}}]}}"#
        )
        .as_bytes(),
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI}",{manifest},"annotations":{{"org.opencontainers.image.ref.name":"image"}}}}]}}"#
    );
    fs::write(folder.join("index.json"), index).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
