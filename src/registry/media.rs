//! Media types of manifests.

use http::HeaderValue;

/// What may be pushed to a repository in protected scope. Docker's schema 1 is not among them:
/// its body names a tag, and Quay moves that tag even on a push by digest.
const WRITABLE: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Nobody pushes these any more, but a registry may still hold one.
const READABLE: [&str; 1] = ["application/vnd.oci.artifact.manifest.v1+json"];

/// The media types taglock knows, the configured ones among them.
#[derive(Clone, Debug)]
pub struct MediaTypes {
    extra: Vec<String>,
    accept: HeaderValue,
}

impl MediaTypes {
    /// # Errors
    /// The first extra type that can't stand in a header.
    pub fn new(extra: Vec<String>) -> Result<Self, String> {
        let legal = |text: &String| {
            text.contains('/')
                && text.bytes().all(|b| b.is_ascii_graphic() && !b",;\"".contains(&b))
        };
        if let Some(bad) = extra.iter().find(|text| !legal(text)) {
            return Err(bad.clone());
        }
        let all: Vec<_> =
            WRITABLE.into_iter().chain(READABLE).chain(extra.iter().map(String::as_str)).collect();
        let accept = HeaderValue::from_str(&all.join(", ")).map_err(|_| extra.join(", "))?;
        Ok(Self { extra, accept })
    }

    /// The `Accept` of taglock's own look-ups: every type by name. `*/*` is not among them: it makes
    /// registries convert, and hides what they can't convert.
    pub fn accept(&self) -> &HeaderValue {
        &self.accept
    }

    /// Whether a manifest with this `Content-Type` may be pushed in protected scope; parameters
    /// don't count.
    pub fn may_write(&self, content_type: &str) -> bool {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        WRITABLE.iter().any(|known| essence.eq_ignore_ascii_case(known))
            || self.extra.iter().any(|known| essence.eq_ignore_ascii_case(known))
    }

    /// Whether this is the type of a manifest, which a registry may hold though nobody may push it.
    pub fn may_read(&self, content_type: &str) -> bool {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        self.may_write(content_type)
            || READABLE.iter().any(|known| essence.eq_ignore_ascii_case(known))
            || Self::is_schema1(content_type)
            || essence.eq_ignore_ascii_case("application/vnd.docker.distribution.manifest.v1+json")
    }

    /// Whether this is one of the types that nearly all manifests have.
    pub fn is_usual(content_type: &[u8]) -> bool {
        WRITABLE.iter().any(|known| content_type.eq_ignore_ascii_case(known.as_bytes()))
    }

    /// Schema 1, whose digest is not that of its bytes: a signature inside is left out.
    pub fn is_schema1(content_type: &str) -> bool {
        content_type.to_ascii_lowercase().contains("vnd.docker.distribution.manifest.v1+")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_types_may_be_written() {
        let types = MediaTypes::new(vec!["application/vnd.example.thing+json".into()]).unwrap();
        for good in [
            "application/vnd.oci.image.manifest.v1+json",
            "Application/vnd.oci.image.INDEX.v1+json; charset=utf-8",
            "application/vnd.example.thing+json",
        ] {
            assert!(types.may_write(good), "{good}");
        }
        for bad in [
            "",
            "application/json",
            "application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "application/vnd.oci.image.manifest.v1+jsonx",
            "text/plain, application/vnd.oci.image.manifest.v1+json",
        ] {
            assert!(!types.may_write(bad), "{bad}");
        }
        for (read, known) in [
            ("application/vnd.oci.artifact.manifest.v1+json", true),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", true),
            ("application/vnd.example.thing+json", true),
            ("application/vnd.oci.image.manifest.v1+json; charset=utf-8", true),
            ("text/html", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(types.may_read(read), known, "{read}");
        }
        assert!(!types.accept().to_str().unwrap().contains("*/*"));
        assert!(types.accept().to_str().unwrap().contains("vnd.example.thing"));
        assert!(MediaTypes::new(vec!["a b/c".into()]).is_err());
    }
}
