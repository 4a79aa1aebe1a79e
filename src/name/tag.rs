use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}` (distribution spec, "Pulling manifests").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// The text is not a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a tag is 1 to 128 letters, digits, `_`, `.` or `-`, and begins with a letter, a digit or `_`"
)]
pub struct TagError;

impl Tag {
    pub fn parse(text: &str) -> Result<Self, TagError> {
        let (first, rest) = text.as_bytes().split_first().ok_or(TagError)?;
        let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        if rest.len() < 128
            && word(first)
            && rest.iter().all(|b| word(b) || matches!(b, b'.' | b'-'))
        {
            Ok(Self(text.into()))
        } else {
            Err(TagError)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its lower-case form, for registries that don't tell the two apart.
    #[must_use]
    pub fn folded(self) -> Self {
        if self.0.bytes().any(|b| b.is_ascii_uppercase()) {
            Self(self.0.to_ascii_lowercase().into())
        } else {
            self
        }
    }

    /// Whether this is a name that signing and referrers tools rewrite by design:
    /// `sha256-<hex>` and `sha512-<hex>` (distribution spec, "Referrers Tag Schema", which
    /// cuts the hex to 64), and cosign's `sha256-<hex>.sig`, `.att` and `.sbom`.
    pub fn is_signature_or_referrers(&self) -> bool {
        let Some((algorithm, rest)) = self.0.split_once('-') else {
            return false;
        };
        let (hex, suffix) = rest.split_once('.').map_or((rest, ""), |(hex, suffix)| (hex, suffix));
        matches!(algorithm, "sha256" | "sha512")
            && hex.len() == 64
            && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && (matches!(suffix, "sig" | "att" | "sbom") || !rest.contains('.'))
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_holds() {
        for tag in ["latest", "_", "v1.2.3", "A-b_c.d", "0", &"x".repeat(128)] {
            assert_eq!(Tag::parse(tag).map(|t| t.to_string()), Ok(tag.to_owned()));
        }
        for tag in
            ["", ".a", "-a", "a/b", "a:b", "a b", "a%20", "é", "a\0", "a+b", &"x".repeat(129)]
        {
            assert_eq!(Tag::parse(tag), Err(TagError), "{tag:?}");
        }
    }

    #[test]
    fn signature_and_referrers_tags_are_told_apart() {
        let hex = "0123456789abcdef".repeat(4);
        for (tag, expected) in [
            (format!("sha256-{hex}"), true),
            (format!("sha256-{hex}.sig"), true),
            (format!("sha256-{hex}.att"), true),
            (format!("sha256-{hex}.sbom"), true),
            (format!("sha512-{hex}"), true),
            // Cosign writes no such name, and a trailing dot is not a suffix.
            (format!("sha256-{hex}."), false),
            (format!("sha256-{hex}.tar"), false),
            (format!("sha256-{hex}.sig.x"), false),
            (format!("sha256-{}", hex.to_uppercase()), false),
            (format!("sha256-{}", &hex[1..]), false),
            ("sha256-abc".to_owned(), false),
            ("latest".to_owned(), false),
        ] {
            let tag = Tag::parse(&tag).unwrap();
            assert_eq!(tag.is_signature_or_referrers(), expected, "{tag}");
        }
    }
}
