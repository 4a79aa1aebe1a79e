//! The query of a manifest PUT, the one query that names tags.

use percent_encoding::percent_decode_str;

use super::error::Rejection;
use crate::name::{Digest, Tag};

/// The spec wants at least 10 tags a request; nobody needs more than this.
const MAX_TAGS: usize = 64;

/// `?tag=…&tag=…&digest=…&ns=…`, each value decoded once and held to its grammar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestQuery {
    pub tags: Vec<Tag>,
    pub digest: Option<Digest>,
    pub namespace: Option<String>,
}

impl ManifestQuery {
    /// Parses the raw query. Any other key is refused: a registry may know one that moves tags.
    pub fn parse(raw: Option<&str>) -> Result<Self, Rejection> {
        let mut query = Self::default();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            // Some stacks split at `;`, some read `+` as a blank: neither stands in a legal value.
            if pair.contains([';', '+']) {
                return Err(Rejection::target("the query of a manifest may not hold `;` or `+`"));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match decode(key)?.as_str() {
                "tag" => {
                    let tag = Tag::parse(&value).map_err(|e| Rejection::tag(e.to_string()))?;
                    if !query.tags.contains(&tag) {
                        query.tags.push(tag);
                    }
                    if query.tags.len() > MAX_TAGS {
                        return Err(Rejection::too_many_tags(MAX_TAGS));
                    }
                }
                "digest" if query.digest.is_none() => {
                    let digest = Digest::parse(&value);
                    query.digest = Some(digest.map_err(|e| Rejection::digest(e.to_string()))?);
                }
                "ns" if query.namespace.is_none() && is_host(&value) => {
                    query.namespace = Some(value);
                }
                "digest" | "ns" => {
                    return Err(Rejection::target(
                        "`digest` or `ns` is repeated, or no legal value",
                    ));
                }
                _ => {
                    return Err(Rejection::target(
                        "the query of a manifest may hold only `tag`, `digest` and `ns`",
                    ));
                }
            }
        }
        Ok(query)
    }
}

/// `?ns=` of a read, which is passed on. Whatever else stands in the query of a read says nothing to a
/// registry that is asked by digest.
pub fn namespace(raw: Option<&str>) -> Option<String> {
    let pairs = raw?.split('&').filter_map(|pair| pair.split_once('='));
    let values = pairs.filter(|(key, _)| *key == "ns").filter_map(|(_, value)| decode(value).ok());
    values.into_iter().find(|value| is_host(value))
}

/// The query of a raw target, as it is sent on. A parsed URI may have dropped or replaced bytes of it.
pub fn query_of(target: &[u8]) -> Option<&str> {
    let (_, query) = std::str::from_utf8(target).ok()?.split_once('?')?;
    Some(query)
}

/// Refuses a query that asks for another registry than the one that tags are bound for
/// (`upstream.namespace`). Where none is set, there is no value that a tag could be bound for.
///
/// # Errors
/// Where `ns` has another value, or where no value is its own, in any spelling of key or value.
pub fn check_namespace(raw: Option<&str>, own: Option<&str>) -> Result<(), Rejection> {
    let Some(raw) = raw else { return Ok(()) };
    // Some servers also split at `;`, or at a second `?`.
    for pair in raw.split(['&', ';', '?']) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_own = |own: &str| decode(value).is_ok_and(|value| value.eq_ignore_ascii_case(own));
        if may_be_ns(key) && !own.is_some_and(is_own) {
            return Err(Rejection::target(match own {
                Some(_) => "`ns` names another registry (`upstream.namespace`)",
                None => {
                    "`ns` is not taken in a repository with immutable tags: \
                         `upstream.namespace` names no registry"
                }
            }));
        }
    }
    Ok(())
}

/// How often a key is decoded to see whether some server reads it as `ns`.
const LAYERS: usize = 4;

/// Whether some server may read this key as `ns`: decoded more than once, in another case, with white
/// space or control characters around it, or as the name of a list (`ns[]`). A key that is no text
/// after decoding may be anything.
fn may_be_ns(key: &str) -> bool {
    let mut key = key.replace('+', " ");
    for _ in 0..LAYERS {
        let name = key.split(['[', '\0']).next().unwrap_or_default();
        let name = name.trim_matches(|c: char| c.is_whitespace() || c.is_control());
        if name.eq_ignore_ascii_case("ns") {
            return true;
        }
        match decode(&key) {
            Ok(decoded) if decoded == key => return false,
            Ok(decoded) => key = decoded,
            Err(_) => return true,
        }
    }
    true
}

fn decode(text: &str) -> Result<String, Rejection> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Rejection::target("the query is not UTF-8 after decoding"))
}

/// `ns` names a registry: a host, perhaps with a port.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}
