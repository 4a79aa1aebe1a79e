//! Keys, and values as Redis gives them.

use redis::Value;

use super::failed;
use crate::ledger::{Entry, RepositoryKey, Unavailable, codec};
use crate::name::{Digest, RepositoryName, UpstreamName};

/// `{…}` keeps all keys of one repository in one slot of a Cluster.
pub(super) fn hash_of(repository: &RepositoryKey) -> String {
    format!("taglock:1:{{{}/{}}}", repository.upstream, repository.repository)
}

pub(super) fn member_of(repository: &RepositoryKey) -> String {
    // A NUL sorts before every byte of a name, as the tuple of both does.
    format!("{}\0{}", repository.upstream, repository.repository)
}

pub(super) fn repository_of(member: &str) -> Result<RepositoryKey, Unavailable> {
    let (upstream, repository) = member.split_once('\0').ok_or_else(|| failed(codec::Corrupt))?;
    Ok(RepositoryKey {
        upstream: UpstreamName::parse(upstream).map_err(failed)?,
        repository: RepositoryName::parse(repository).map_err(failed)?,
    })
}

pub(super) fn entry_of(bytes: &[u8]) -> Result<Entry, Unavailable> {
    if bytes.is_empty() { Ok(Entry::Absent) } else { codec::decode(bytes).map_err(failed) }
}

/// A number as Redis keeps it; nothing is 0.
pub(super) fn number_of(value: &Value) -> Result<u64, Unavailable> {
    let text = std::str::from_utf8(bytes_of(value)?).map_err(failed)?;
    if text.is_empty() { Ok(0) } else { text.parse().map_err(failed) }
}

pub(super) fn bytes_of(value: &Value) -> Result<&[u8], Unavailable> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.as_bytes()),
        Value::Nil => Ok(&[]),
        _ => Err(failed("an answer of an unexpected kind")),
    }
}

pub(super) fn stored(digest: &Digest) -> Vec<u8> {
    let mut out = Vec::with_capacity(65);
    codec::put_digest(&mut out, digest);
    out
}
