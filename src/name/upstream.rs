use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name an operator gives a registry: the namespace of its tags in the ledger.
///
/// `[a-z0-9]` then up to 62 of `[a-z0-9._-]`, so that it can stand in a key and in a metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamName(Arc<str>);

/// The text is not the name of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an upstream's name is 1 to 63 lower-case letters, digits, `.`, `_` or `-`, and begins with a letter or a digit"
)]
pub struct UpstreamNameError;

impl UpstreamName {
    pub fn parse(text: &str) -> Result<Self, UpstreamNameError> {
        let (first, rest) = text.as_bytes().split_first().ok_or(UpstreamNameError)?;
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if plain(first)
            && rest.len() < 63
            && rest.iter().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
        {
            Ok(Self(text.into()))
        } else {
            Err(UpstreamNameError)
        }
    }

    /// The same in memory of its own: what all threads clone, they wait for each other for.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self(Arc::from(&*self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpstreamName {
    type Err = UpstreamNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_holds() {
        for name in ["default", "hub", "0", "a.b-c_d", &"a".repeat(63)] {
            assert!(UpstreamName::parse(name).is_ok(), "{name:?}");
        }
        for name in ["", "-a", "A", "a/b", "a b", "a\0", &"a".repeat(64)] {
            assert_eq!(UpstreamName::parse(name), Err(UpstreamNameError), "{name:?}");
        }
    }
}
