//! Which rule decides for a tag, and by which of its words.

use super::{Mutability, RepositoryPattern, Rule, Rules, TagPattern};
use crate::name::{RepositoryName, Tag};

/// The rule that decides for a repository, and why it does.
#[derive(Clone, Copy, Debug)]
pub struct Match<'a> {
    pub rule: &'a Rule,
    /// Its place among the rules, from 1.
    pub number: usize,
    /// The first of its patterns that matches.
    pub pattern: &'a RepositoryPattern,
}

/// What in a rule decides for a tag.
#[derive(Clone, Copy, Debug)]
pub enum Why<'a> {
    /// Its `mutability`.
    Rule,
    /// A pattern of its `except`.
    Exception(&'a TagPattern),
    /// The tag is one that signing and referrers tools rewrite by design.
    Signature,
}

impl Rules {
    /// The rule that decides for a repository; `None` where none matches, and it is mutable.
    pub fn matching(&self, repository: &RepositoryName) -> Option<Match<'_>> {
        let first = self.matcher.matches(repository.as_str().as_bytes()).iter().next()?;
        let rule = self.rules.get(first)?;
        let pattern = rule.repositories.iter().find(|pattern| pattern.matches(repository))?;
        Some(Match { rule, number: first + 1, pattern })
    }
}

impl Rule {
    /// As [`Rule::mutability_of`], and what decided.
    pub fn why(&self, tag: &Tag) -> (Mutability, Why<'_>) {
        let why = if !self.protect_signatures && tag.is_signature_or_referrers() {
            Why::Signature
        } else {
            let exception = self.except.iter().find(|pattern| pattern.matches(tag));
            exception.map_or(Why::Rule, Why::Exception)
        };
        (self.mutability_of(tag), why)
    }
}
