//! Whether a request takes a media type (RFC 9110, section 12.5.1).

use http::HeaderMap;
use http::header::ACCEPT;

/// How a request's `Accept` lets a media type in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepts {
    /// It is named.
    ByName,
    /// By `*/*` or the like, or because nothing is said.
    ByRange,
    /// Not, or nothing that taglock understands.
    No,
}

/// `media_type` is one without parameters; those of a range other than its weight don't count, as
/// with registries.
pub(super) fn accepts(headers: &HeaderMap, media_type: &str) -> Accepts {
    if !headers.contains_key(ACCEPT) {
        return Accepts::ByRange;
    }
    let main_type = media_type.split('/').next().unwrap_or_default();
    // The most specific range that matches decides; by how specific it is, and whether it is wanted.
    let mut best: Option<(u8, bool)> = None;
    for value in headers.get_all(ACCEPT) {
        // A quoted text may hold any separator: the registry will know.
        let Some(text) = value.to_str().ok().filter(|text| !text.contains('"')) else {
            return Accepts::No;
        };
        for member in text.split(',') {
            let mut parts = member.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default();
            let rank = match range.split_once('/') {
                _ if range.eq_ignore_ascii_case(media_type) => 3,
                Some((of, "*")) if of.eq_ignore_ascii_case(main_type) => 2,
                Some(("*", "*")) => 1,
                _ => continue,
            };
            let wanted = !parts.any(is_weight_of_zero);
            best = best.max(Some((rank, wanted)));
        }
    }
    match best {
        Some((3, true)) => Accepts::ByName,
        Some((_, true)) => Accepts::ByRange,
        Some((_, false)) | None => Accepts::No,
    }
}

fn is_weight_of_zero(parameter: &str) -> bool {
    let weight = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
    weight
        .is_some_and(|weight| weight.starts_with('0') && weight.bytes().all(|b| b"0.".contains(&b)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_most_specific_range_decides_over_all_lines() {
        const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
        const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
        let docker = format!("{LIST}, {OCI}, application/json, */*");
        for (lines, expected) in [
            (vec![], Accepts::ByRange),
            (vec![OCI], Accepts::ByName),
            (vec!["application/vnd.oci.image.MANIFEST.v1+json"], Accepts::ByName),
            (vec![docker.as_str()], Accepts::ByName),
            (vec![LIST], Accepts::No),
            (vec![LIST, OCI], Accepts::ByName),
            (vec![LIST, "*/*"], Accepts::ByRange),
            (vec!["application/*"], Accepts::ByRange),
            (vec!["text/*"], Accepts::No),
            (vec!["*/*;q=0.1"], Accepts::ByRange),
            (vec!["*/*;q=0"], Accepts::No),
            (vec!["*/*", "application/vnd.oci.image.manifest.v1+json; q=0.000"], Accepts::No),
            (vec!["application/vnd.oci.image.manifest.v1+json;v=1;q=0.5"], Accepts::ByName),
            (vec!["application/vnd.oci.image.manifest.v1+jsonx"], Accepts::No),
            (vec![OCI, "text/x; a=\", */*\""], Accepts::No),
            (vec![""], Accepts::No),
        ] {
            let mut headers = HeaderMap::new();
            for line in &lines {
                headers.append(ACCEPT, HeaderValue::from_str(line).unwrap());
            }
            assert_eq!(accepts(&headers, OCI), expected, "{lines:?}");
        }
    }
}
