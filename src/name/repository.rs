use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a repository: `team/app`.
///
/// Grammar (distribution spec, "Pulling manifests"), at most 255 bytes:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// Why a text is not the name of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepositoryNameError {
    #[error("a repository name has at most {} bytes", RepositoryName::MAX)]
    TooLong,
    #[error(
        "a repository name is made of lower-case letters and digits, with single `.`, `_`, `__` or dashes between them, and `/` between components"
    )]
    Grammar,
}

impl RepositoryName {
    /// Many clients hold host and name together to 255; the name alone may not be longer.
    pub const MAX: usize = 255;

    pub fn parse(text: &str) -> Result<Self, RepositoryNameError> {
        if text.len() > Self::MAX {
            return Err(RepositoryNameError::TooLong);
        }
        if text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(RepositoryNameError::Grammar)
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Alphanumeric runs joined by one separator each: `.`, `_`, `__`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let run = rest.iter().take_while(|b| alphanumeric(b)).count();
        if run == 0 {
            return false;
        }
        rest = &rest[run..];
        let separator = match rest {
            [] => return true,
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            [b'-', ..] => rest.iter().take_while(|b| **b == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

impl FromStr for RepositoryName {
    type Err = RepositoryNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_registries_are_accepted() {
        for name in [
            "app",
            "library/app",
            "org/manifests/app",
            "a/tags/list",
            "a.b/c_d/e__f/g-h/i---j",
            "0/1",
            &"a".repeat(255),
        ] {
            assert_eq!(RepositoryName::parse(name).map(|n| n.to_string()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for name in [
            "", "/", "a/", "/a", "a//b", "A", "a/B", ".a", "a.", "a..b", "a___b", "a._b", "-a",
            "a-", "_catalog", "a b", "a%2fb", "a\\b", "a/./b", "a/../b", "é", "a:b", "a@b", "a\n",
        ] {
            assert_eq!(RepositoryName::parse(name), Err(RepositoryNameError::Grammar), "{name:?}");
        }
        assert_eq!(RepositoryName::parse(&"a".repeat(256)), Err(RepositoryNameError::TooLong));
    }
}
