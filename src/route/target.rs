//! The bytes of a raw target: which are allowed, and what it would be after normalising.

use memchr::memchr;

use super::error::Rejection;
use crate::name::{Mount, Naming};

/// Longer targets are refused: the longest legitimate one is a name, a digest and a registry's
/// upload state of a few kilobytes.
const MAX: usize = 16 * 1024;

/// Splits an origin-form target into path and query.
pub(super) fn split(raw: &[u8]) -> Result<(&str, Option<&str>), Rejection> {
    if raw.len() > MAX {
        return Err(Rejection::target("the target is too long"));
    }
    // All at once, without an early end.
    let graphic = raw.iter().fold(true, |all, byte| all & byte.is_ascii_graphic());
    let text = std::str::from_utf8(raw)
        .ok()
        .filter(|_| graphic)
        .ok_or_else(|| Rejection::target("the target has bytes that are not printable ASCII"))?;
    if !text.starts_with('/') {
        return Err(Rejection::target("the target must be a path that begins with `/`"));
    }
    if memchr(b'#', raw).is_some() {
        return Err(Rejection::target("a target has no fragment"));
    }
    // Both are ASCII, of which no other character has a part.
    Ok(match memchr(b'?', raw) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    })
}

/// What stands below `/v2/`, and the mount it stands in, if any; `None` for a path outside.
///
/// # Errors
/// A path that some server would read as one below `/v2/`, though it is not spelled so.
pub(super) fn below_v2<'p, 'n>(
    path: &'p str,
    naming: &'n Naming,
) -> Result<Option<(Option<&'n Mount>, &'p str)>, Rejection> {
    if let Some(below) = below_root(path) {
        return Ok(Some((None, below)));
    }
    for mount in naming.mounts() {
        if let Some(below) = path.strip_prefix(mount.path.as_str()).and_then(below_root) {
            return Ok(Some((Some(mount), below)));
        }
    }
    match leads_to_v2(path, naming) {
        Some(why) => Err(Rejection::target(why)),
        None => Ok(None),
    }
}

fn below_root(path: &str) -> Option<&str> {
    if path == "/v2" { Some("") } else { path.strip_prefix("/v2/") }
}

/// Refuses what has a second reading: escapes, empty and dot segments, parameters.
pub(super) fn check_bytes(path: &str) -> Result<(), Rejection> {
    check_segments(path)?;
    if has_escape(path) {
        return Err(Rejection::target("the path is percent-encoded"));
    }
    Ok(())
}

/// The same but for escapes.
pub(super) fn check_segments(path: &str) -> Result<(), Rejection> {
    // Every request comes by here, and nearly none has to be looked at more closely.
    let bytes = path.as_bytes();
    if is_plain(bytes) {
        return Ok(());
    }
    let odd = |b: &u8| is_odd(*b);
    let reason = if bytes.windows(2).any(|pair| pair == b"//") {
        "the path has an empty component"
    } else if bytes.split(|b| *b == b'/').any(|segment| matches!(segment, b"." | b"..")) {
        "the path has a dot component"
    } else if bytes.iter().any(odd) {
        "the path has a byte that no registry needs"
    } else {
        return Ok(());
    };
    Err(Rejection::target(reason))
}

fn is_odd(byte: u8) -> bool {
    matches!(byte, b'\\' | b';' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

/// Whether it has nothing odd, and no component that is empty or begins with a dot. In one pass
/// without an early end, which compilers make a few instructions of.
fn is_plain(bytes: &[u8]) -> bool {
    let odd = bytes.iter().fold(false, |odd, byte| odd | is_odd(*byte));
    let next = bytes.iter().skip(1);
    let begins = bytes.iter().zip(next).fold(false, |begins, (byte, next)| {
        begins | (*byte == b'/' && matches!(next, b'/' | b'.'))
    });
    // A path begins with a slash, or its first component is not looked at.
    !odd && !begins && bytes.first() == Some(&b'/')
}

/// Any `%`, except the one colon of a digest in the last component.
fn has_escape(path: &str) -> bool {
    if !path.as_bytes().contains(&b'%') {
        return false;
    }
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

/// How often a path is decoded to see what it could become. Nothing honest is encoded more often.
const LAYERS: usize = 4;

const CLEANED: &str = "the path leads to `/v2/` only after decoding or cleaning";

/// A path's components as a lenient server might read them, slashes merged and parameters dropped,
/// at each layer of decoding.
///
/// # Errors
/// What is read in too many ways: steps back, and separators that only some take for one, lead
/// elsewhere depending on who reads them; what decodes to no text, or to control characters, is cut
/// or read anew by some. No browser sends them.
fn readings(path: &str) -> Result<Vec<Vec<Vec<u8>>>, &'static str> {
    let mut text = path.as_bytes().to_vec();
    let mut readings = Vec::with_capacity(1);
    for _ in 0..LAYERS {
        if std::str::from_utf8(&text).is_err() || text.iter().any(u8::is_ascii_control) {
            return Err(CLEANED);
        }
        let end = text.iter().position(|b| matches!(b, b'?' | b'#')).unwrap_or(text.len());
        let components = text[..end].split(|b| *b == b'/').map(component);
        let reading: Vec<_> = components.filter(|c| !c.is_empty()).map(<[u8]>::to_vec).collect();
        if text.contains(&b'\\') || reading.iter().any(|c| matches!(&c[..], b"." | b"..")) {
            return Err("the path has a dot component, or a backslash, that leads elsewhere");
        }
        readings.push(reading);
        let decoded = percent_encoding::percent_decode(&text).collect::<Vec<u8>>();
        if decoded == text {
            return Ok(readings);
        }
        text = decoded;
    }
    Err(CLEANED)
}

fn component(part: &[u8]) -> &[u8] {
    part.split(|b| *b == b';').next().unwrap_or_default().trim_ascii()
}

/// Why a path outside `/v2/` might be one below it, or below a mount, to a lenient server.
fn leads_to_v2(path: &str, naming: &Naming) -> Option<&'static str> {
    let readings = match readings(path) {
        Ok(readings) => readings,
        Err(why) => return Some(why),
    };
    let is = |component: Option<&Vec<u8>>, word: &str| {
        component.is_some_and(|c| c.eq_ignore_ascii_case(word.as_bytes()))
    };
    for reading in readings {
        if is(reading.first(), "v2") {
            return Some(CLEANED);
        }
        let mounted = naming.mounts().iter().any(|mount| {
            let mut rest = reading.iter();
            mount.path.split('/').skip(1).all(|c| is(rest.next(), c)) && is(rest.next(), "v2")
        });
        if mounted {
            return Some("the path leads below a mount only after decoding or cleaning");
        }
        // A registry's API at another place: nobody judges what is pulled or pushed there.
        let mut rest = reading.iter().skip_while(|c| !is(Some(*c), "v2"));
        if rest.any(|c| is(Some(c), "manifests")) {
            return Some("a registry's API below another path is opened by `upstream.mount` alone");
        }
    }
    None
}

/// Whether a path lies below this prefix in every reading of it.
pub(super) fn is_below(path: &str, prefix: &str) -> bool {
    let prefix: Vec<_> = prefix.split('/').filter(|c| !c.is_empty()).collect();
    let within = |reading: &Vec<Vec<u8>>| {
        reading.len() >= prefix.len()
            && prefix.iter().zip(reading).all(|(wanted, found)| wanted.as_bytes() == found)
    };
    readings(path).is_ok_and(|readings| readings.iter().all(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_plain_at_a_glance_is_plain_at_a_closer_look() {
        let odd = r#"\;"<>^`{|}"#;
        let plain = |path: &str| {
            !path.contains("//")
                && !path.split('/').any(|component| matches!(component, "." | ".."))
                && !path.contains(|c| odd.contains(c))
        };
        let bytes = || (1..=127_u8).map(char::from);
        for (a, b) in bytes().flat_map(|a| bytes().map(move |b| (a, b))) {
            for path in [
                format!("/v2/x{a}{b}y"),
                format!("/v2/{a}{b}/y"),
                format!("/v2/y/{a}{b}"),
                format!("/{a}{b}"),
                format!("{a}{b}/v2/some-longer/name-of-it/manifests/v1"),
                format!("/v2/some-longer/name-of-it/manifests/v1{a}{b}"),
            ] {
                assert_eq!(check_segments(&path).is_ok(), plain(&path), "{path:?}");
            }
        }
        let usual = "/v2/library/alpine/manifests/v1.2.3";
        assert!(is_plain(usual.as_bytes()) && !is_plain(b"") && !is_plain(b"v2/"));
    }
}
