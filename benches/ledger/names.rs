//! Names as real ones are: `team-07/service-00042`, `v3.14.2-9f3c21`.

use taglock::ledger::RepositoryKey;
use taglock::name::{Algorithm, Digest, RepositoryName, Tag, UpstreamName};

pub fn repository(number: usize) -> RepositoryKey {
    RepositoryKey {
        upstream: UpstreamName::parse("default").unwrap(),
        repository: RepositoryName::parse(&format!("team-{:02}/service-{number:05}", number % 50))
            .unwrap(),
    }
}

pub fn tag(number: usize) -> Tag {
    // A multiplier that is odd shuffles the numbers and repeats none.
    let commit = (number as u32).wrapping_mul(0x9e37_79b1) >> 8;
    let (major, minor, patch) = (number / 1000, number / 50 % 20, number % 50);
    Tag::parse(&format!("v{major}.{minor}.{patch}-{commit:06x}")).unwrap()
}

/// Another image for each tag.
pub fn image(repository: usize, tag: usize) -> Digest {
    Digest::of(Algorithm::Sha256, format!("{repository} {tag}").as_bytes())
}
