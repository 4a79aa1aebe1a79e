//! Patterns of repositories and tags: globs, or for tags a full-match regular expression.
//!
//! All of them run in time linear in the text; that is the `regex` crate's promise.

use std::fmt;

use regex::bytes::{RegexSet, RegexSetBuilder};
use regex::{Regex, RegexBuilder};

use crate::name::{RepositoryName, Tag};

/// A compiled pattern may take this much memory; a thousand rules of usual length need a tenth.
const MAX_SIZE: usize = 16 * 1024 * 1024;

/// A pattern that can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PatternError(String);

/// A glob over repository names: `*` stays within a component, `**` goes across.
///
/// `prod/**` matches everything below `prod`, not `prod` itself; `**/app` matches `app` at any
/// depth, the top included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepositoryPattern {
    text: String,
    regex: String,
}

impl RepositoryPattern {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let legal = |c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-' | '/' | '*')
        };
        if text.is_empty() {
            return Err(PatternError("an empty pattern matches nothing".into()));
        }
        if let Some(odd) = text.chars().find(|c| !legal(*c)) {
            let hint = match odd {
                'A'..='Z' => "repository names are lower-case",
                '?' | '[' | ']' | '{' | '}' => "only the wildcards `*` and `**` are known",
                ':' | '@' => "a pattern is for repositories; tags go into `except`",
                _ => "it can't stand in a repository's name",
            };
            return Err(PatternError(format!("`{odd}` is not allowed here: {hint}")));
        }
        if text.starts_with('/') || text.ends_with('/') || text.contains("//") {
            return Err(PatternError("a name has no empty component".into()));
        }
        if text.contains("***") {
            return Err(PatternError("`***` means nothing; `**` goes across components".into()));
        }
        Ok(Self { text: text.to_owned(), regex: glob(text) })
    }

    /// Whether it matches, for explanations; decisions ask all patterns at once.
    pub fn matches(&self, name: &RepositoryName) -> bool {
        Regex::new(&self.anchored()).is_ok_and(|regex| regex.is_match(name.as_str()))
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As an expression that matches whole names.
    pub(super) fn anchored(&self) -> String {
        format!("^(?:{})$", self.regex)
    }
}

impl fmt::Display for RepositoryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One set with one member for each rule's patterns together.
pub(super) fn set<'a>(
    rules: impl Iterator<Item = &'a [RepositoryPattern]>,
) -> Result<RegexSet, PatternError> {
    let members: Vec<_> = rules
        .map(|patterns| {
            let alternatives: Vec<_> = patterns.iter().map(|p| p.regex.as_str()).collect();
            format!("^(?:{})$", alternatives.join("|"))
        })
        .collect();
    RegexSetBuilder::new(members)
        .unicode(false)
        .size_limit(MAX_SIZE)
        .build()
        .map_err(|e| PatternError(format!("the rules' patterns can't be compiled together: {e}")))
}

/// A tag, a glob over tags, or `regex:` and an expression that must match the whole tag.
#[derive(Clone, Debug)]
pub struct TagPattern {
    text: String,
    regex: Regex,
}

impl TagPattern {
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let expression = match text.strip_prefix("regex:") {
            Some("") => return Err(PatternError("an empty expression matches no tag".into())),
            Some(expression) => expression.to_owned(),
            None => {
                let legal =
                    |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '*');
                if text.is_empty() {
                    return Err(PatternError("an empty pattern matches no tag".into()));
                }
                if let Some(odd) = text.chars().find(|c| !legal(*c)) {
                    return Err(PatternError(format!(
                        "`{odd}` can't stand in a tag; the wildcard is `*`, and `regex:` begins an \
                         expression"
                    )));
                }
                glob(text)
            }
        };
        let regex = RegexBuilder::new(&format!("^(?:{expression})$"))
            .size_limit(MAX_SIZE)
            .build()
            .map_err(|e| {
                // The parser's own text points into the expression as it was wrapped, over
                // several lines; its last line says what is wrong.
                let text = e.to_string();
                let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                PatternError(format!("not a regular expression: {last}"))
            })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    pub fn matches(&self, tag: &Tag) -> bool {
        self.regex.is_match(tag.as_str())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As an expression that matches whole tags.
    pub(super) fn anchored(&self) -> &str {
        self.regex.as_str()
    }
}

impl fmt::Display for TagPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A glob as a regular expression; in tags, which have no `/`, both wildcards are the same.
fn glob(text: &str) -> String {
    let mut regex = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at_start = regex.is_empty() || regex.ends_with('/');
        if at_start && let Some(after) = rest.strip_prefix("**/") {
            regex.push_str("(?:.*/)?");
            rest = after;
        } else if let Some(after) = rest.strip_prefix("**") {
            regex.push_str(".*");
            rest = after;
        } else if let Some(after) = rest.strip_prefix('*') {
            regex.push_str("[^/]*");
            rest = after;
        } else {
            let end = rest.find('*').unwrap_or(rest.len());
            // Up to a component's end, so that `**/` is seen where it stands.
            let end = rest[..end].find('/').map_or(end, |slash| slash + 1);
            regex.push_str(&regex::escape(&rest[..end]));
            rest = &rest[end..];
        }
    }
    regex
}
