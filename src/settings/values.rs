//! Values that stand in a text: addresses, URLs, times, sizes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use http::Uri;

use super::Server;
use crate::transport::endpoint::Origin;

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "not an IP address and a port, such as `127.0.0.1:5000` or `[::]:443`".to_owned()
    })
}

/// `http://host[:port]`, nothing behind it.
///
/// # Errors
/// What is wrong with it, for people.
pub fn parse_origin(text: &str) -> Result<Origin, String> {
    let example = "such as `https://registry.example.com` or `http://127.0.0.1:5001`";
    let uri: Uri = text.parse().map_err(|_| format!("not a URL, {example}"))?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        Some(_) => return Err("only `http` and `https` are spoken".into()),
        None => return Err(format!("the scheme is missing, {example}")),
    };
    let authority = uri.authority().ok_or_else(|| format!("the host is missing, {example}"))?;
    if authority.as_str().contains('@') {
        return Err("credentials don't belong into this URL".into());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("a path is not supported: registries are served from the root of a host".into());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    if host.is_empty() {
        return Err(format!("the host is missing, {example}"));
    }
    let port = match authority.port() {
        Some(port) => Some(port.as_u16()).filter(|p| *p != 0).ok_or("port 0 can't be reached")?,
        None if authority.as_str().ends_with(':') => return Err("the port is missing".into()),
        None if tls => 443,
        None => 80,
    };
    Ok(Origin { tls, host, port })
}

/// Where a collector takes traces: its own URL, and behind it the path that OTLP has for them.
pub(super) fn collector(text: &str) -> Result<String, String> {
    let example = "such as `http://127.0.0.1:4318`";
    let uri: Uri = text.parse().map_err(|_| format!("not a URL, {example}"))?;
    let (scheme, authority) = match (uri.scheme_str(), uri.authority()) {
        (Some(scheme @ ("http" | "https")), Some(authority)) => (scheme, authority.as_str()),
        (Some("http" | "https") | None, _) => return Err(format!("not a whole URL, {example}")),
        _ => return Err("traces are sent over `http` or `https`".into()),
    };
    if authority.contains('@') {
        return Err("credentials don't belong into this URL: `OTEL_EXPORTER_OTLP_HEADERS`".into());
    }
    if uri.query().is_some() {
        return Err(format!("no query is sent, {example}"));
    }
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix("/v1/traces").unwrap_or(path);
    Ok(format!("{scheme}://{authority}{path}/v1/traces"))
}

/// The id of a ledger, as taglock logs it.
pub(super) fn ledger_id(text: &str) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("the id of a ledger is 1 to 64 letters, digits or `-`")
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("a time of zero would end everything at once".into()),
        Ok(duration) if duration > Duration::from_secs(86_400) => {
            Err("longer than a day, which is as good as no bound".into())
        }
        Ok(duration) => Ok(duration),
        Err(_) => Err("not a time, such as `500ms`, `60s` or `5m`".into()),
    }
}

/// As `duration`, and a time of zero for none.
pub(super) fn grace(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

pub(super) fn size(text: &str, bounds: std::ops::RangeInclusive<u64>) -> Result<usize, String> {
    let size: ByteSize =
        text.parse().map_err(|_| "not a size, such as `4MiB` or `512KiB`".to_owned())?;
    if !bounds.contains(&size.as_u64()) {
        let (low, high) = (ByteSize(*bounds.start()), ByteSize(*bounds.end()));
        return Err(format!("must be from {low} to {high}"));
    }
    usize::try_from(size.as_u64()).map_err(|_| "too large for this machine".to_owned())
}

/// A `Host` as clients send it: a name or an address, perhaps with a port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let authority: http::uri::Authority =
        text.parse().map_err(|_| "not a host, such as `registry.example.com`".to_owned())?;
    if authority.as_str().contains('@') || authority.host().contains('*') {
        return Err("not a host: no user, no wildcard".into());
    }
    Ok(text.to_ascii_lowercase())
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("an empty path".into()) } else { Ok(text.into()) }
}

/// A path of a URL below which something is let through.
pub(super) fn url_path(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._~:@+,!$&'()*=-".contains(&b);
    if !text.starts_with('/') || text.contains("//") || !text.bytes().all(plain) {
        return Err("not a plain path that begins with `/`".into());
    }
    if text.split('/').any(|c| matches!(c, "." | "..") || c.eq_ignore_ascii_case("manifests")) {
        return Err("no component may be `.`, `..` or `manifests`".into());
    }
    Ok(text.to_owned())
}

/// A prefix for uploads: a folder outside `/v2/`, so that no manifest lies below it.
pub(super) fn upload_path(text: &str) -> Result<String, String> {
    let path = url_path(text)?;
    if !path.ends_with('/') || path == "/" {
        return Err("a prefix begins and ends with `/`, such as `/artifacts-uploads/`".into());
    }
    if path.split('/').nth(1).is_some_and(|first| first.eq_ignore_ascii_case("v2")) {
        return Err("uploads below `/v2/` need no setting".into());
    }
    Ok(path)
}

/// A prefix below which every method passes: never the registry's API itself.
pub(super) fn open_path(text: &str) -> Result<String, String> {
    let path = url_path(text)?;
    let mut components = path.split('/').filter(|component| !component.is_empty());
    match components.next() {
        None => Err("`/` would open everything".into()),
        Some(first) if first.eq_ignore_ascii_case("v2") => {
            Err("what lies below `/v2/` is judged and can't be opened".into())
        }
        Some(_) => Ok(path),
    }
}

/// Where a registry's API is mounted.
pub(super) fn mount_path(text: &str) -> Result<String, String> {
    let path = url_path(text)?;
    if path.ends_with('/') {
        return Err("a mount's path does not end with `/`; `<path>/v2/` is its API".into());
    }
    if path.split('/').any(|component| component.eq_ignore_ascii_case("v2")) {
        return Err("a mount's path has no component `v2`; taglock adds it".into());
    }
    Ok(path)
}

/// One of a few words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let known = || words.iter().map(|(w, _)| format!("`{w}`")).collect::<Vec<_>>().join(" or ");
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("must be {}", known()))
}

/// A secret's file, its surrounding white space aside.
pub(super) fn secret_file(path: &str) -> Result<String, String> {
    let content = std::fs::read_to_string(path).map_err(|e| format!("can't be read: {e}"))?;
    match content.trim() {
        "" => Err("the file is empty".to_owned()),
        secret => Ok(secret.to_owned()),
    }
}

/// Checks the address of a Redis and returns what of it may be shown.
pub(super) fn redis_url(text: &str) -> Result<String, String> {
    let example = "such as `redis://127.0.0.1:6379/0` or `rediss://redis.internal`";
    let (scheme, rest) =
        text.split_once("://").ok_or_else(|| format!("not the URL of a Redis, {example}"))?;
    if !matches!(scheme, "redis" | "rediss") {
        return Err(format!("only `redis` and `rediss` are spoken, {example}"));
    }
    let address = rest.split(['/', '?']).next().unwrap_or_default();
    let shown = address.rsplit('@').next().unwrap_or_default();
    if shown.is_empty() {
        return Err(format!("the host is missing, {example}"));
    }
    Ok(format!("{scheme}://{shown}"))
}

/// `redis://host[:port]` or `rediss://…`, nothing more; whether it is spoken to with TLS.
pub(super) fn redis_server(text: &str, default: u16) -> Result<(Server, bool), String> {
    let example = format!("such as `redis://10.0.0.1:{default}`");
    let uri: Uri = text.parse().map_err(|_| format!("not a URL, {example}"))?;
    let tls = match uri.scheme_str() {
        Some("redis") => false,
        Some("rediss") => true,
        _ => return Err(format!("only `redis` and `rediss` are spoken, {example}")),
    };
    let authority = uri.authority().ok_or_else(|| format!("the host is missing, {example}"))?;
    if authority.as_str().contains('@') {
        return Err("credentials don't belong into a list of servers: they stand in files".into());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(format!("only a host and a port, {example}"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = match authority.port() {
        Some(port) => Some(port.as_u16()).filter(|p| *p != 0).ok_or("port 0 can't be reached")?,
        None if authority.as_str().ends_with(':') => return Err("the port is missing".into()),
        None => default,
    };
    if host.is_empty() {
        return Err(format!("the host is missing, {example}"));
    }
    Ok((Server { host, port }, tls))
}
