//! The bytes of a raw target: which are allowed, and what it would be after normalising.

use super::rejection::Rejection;

/// Longer targets are refused: the longest legitimate one is a name, a digest and a registry's
/// upload state of a few kilobytes.
const MAX: usize = 16 * 1024;

/// Splits an origin-form target into path and query.
pub(super) fn split(raw: &[u8]) -> Result<(&str, Option<&str>), Rejection> {
    if raw.len() > MAX {
        return Err(Rejection::target("the target is too long"));
    }
    let text = std::str::from_utf8(raw)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_graphic()))
        .ok_or_else(|| Rejection::target("the target has bytes that are not printable ASCII"))?;
    if !text.starts_with('/') {
        return Err(Rejection::target("the target must be a path that begins with `/`"));
    }
    if text.contains('#') {
        return Err(Rejection::target("a target has no fragment"));
    }
    Ok(match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    })
}

/// What stands below `/v2/`, `None` for a path outside.
///
/// # Errors
/// A path that some server would read as one below `/v2/`, though it is not spelled so.
pub(super) fn below_v2(path: &str) -> Result<Option<&str>, Rejection> {
    if path == "/v2" {
        return Ok(Some(""));
    }
    if let Some(below) = path.strip_prefix("/v2/") {
        return Ok(Some(below));
    }
    if leads_to_v2(path) {
        return Err(Rejection::target("the path leads to `/v2/` only after decoding or cleaning"));
    }
    Ok(None)
}

/// Refuses what has a second reading: escapes, empty and dot segments, parameters.
pub(super) fn check_bytes(path: &str) -> Result<(), Rejection> {
    let reason = if path.contains("//") {
        "the path has an empty component"
    } else if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        "the path has a dot component"
    } else if path.contains(['\\', ';', '"', '<', '>', '^', '`', '{', '|', '}']) {
        "the path has a byte that no registry needs"
    } else if has_escape(path) {
        "the path is percent-encoded"
    } else {
        return Ok(());
    };
    Err(Rejection::target(reason))
}

/// Any `%`, except the one colon of a digest in the last component.
fn has_escape(path: &str) -> bool {
    let (before, last) = path.rsplit_once('/').unwrap_or(("", path));
    let plain =
        ["/manifests", "/blobs", "/referrers"].iter().any(|parent| before.ends_with(parent));
    let last = match last.split_once("%3A").or_else(|| last.split_once("%3a")) {
        Some((algorithm, hex)) if plain && !algorithm.contains('%') => hex,
        _ => last,
    };
    before.contains('%') || last.contains('%')
}

/// Whether a component is, or for a lenient server becomes, `manifests`.
pub(super) fn is_manifests(component: &str) -> bool {
    component.eq_ignore_ascii_case("manifests")
}

/// Decodes as a lenient server might, up to four times over: true where any layer begins with `/v2`,
/// or leads somewhere else than it says.
fn leads_to_v2(path: &str) -> bool {
    let mut text = path.as_bytes().to_vec();
    for _ in 0..4 {
        if first_component(&text).eq_ignore_ascii_case(b"v2") || is_crooked(&text) {
            return true;
        }
        // What decodes to no text, or to control characters, is cut or read anew by some servers.
        if std::str::from_utf8(&text).is_err() || text.iter().any(u8::is_ascii_control) {
            return true;
        }
        let decoded = percent_encoding::percent_decode(&text).collect::<Vec<u8>>();
        if decoded == text {
            return false;
        }
        text = decoded;
    }
    // Nothing honest is encoded four times over.
    true
}

/// Steps back, and separators that only some take for one: where they lead depends on who reads
/// them, and no browser sends them.
fn is_crooked(path: &[u8]) -> bool {
    path.contains(&b'\\') || path.split(|b| *b == b'/').any(|part| component(part) == b"..")
}

/// The first component once slashes are merged and parameters dropped.
fn first_component(path: &[u8]) -> &[u8] {
    let end = path.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(path.len());
    let mut components = path[..end].split(|b| *b == b'/').map(component);
    components.find(|component| !matches!(*component, b"" | b".")).unwrap_or_default()
}

fn component(part: &[u8]) -> &[u8] {
    part.split(|b| *b == b';').next().unwrap_or_default().trim_ascii()
}
