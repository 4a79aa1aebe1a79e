//! Which tags are immutable, and which rule said so.
//!
//! Rules are compiled once into a snapshot that is swapped whole. The first rule whose repository
//! patterns match decides; a repository that no rule matches is mutable.

mod explain;
pub mod lint;
mod pattern;
mod subset;

pub use explain::{Match, Why};
pub use pattern::{PatternError, RepositoryPattern, TagPattern};

use std::fmt;

use regex::bytes::RegexSet;

use crate::name::{Algorithm, Digest, RepositoryName, Tag};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutability {
    Immutable,
    Mutable,
}

impl Mutability {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Immutable => "immutable",
            Self::Mutable => "mutable",
        }
    }

    fn opposite(self) -> Self {
        match self {
            Self::Immutable => Self::Mutable,
            Self::Mutable => Self::Immutable,
        }
    }
}

/// How a refusal is worded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RefusalStyle {
    /// 409 `DENIED`, and what the tag is bound to.
    #[default]
    Oci,
    /// 400 `TAG_INVALID` with the sentence of Amazon ECR.
    Ecr,
}

/// What becomes of a delete that touches a tag the rule makes immutable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Deletes {
    #[default]
    Refuse,
    /// The image goes, the name stays bound to it.
    Keep,
    /// The image goes, and the name is free.
    Release,
}

impl Deletes {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Keep => "keep",
            Self::Release => "release",
        }
    }
}

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    CommandLine,
    File { path: String, line: usize },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::File { path, line } => write!(f, "{path}:{line}"),
        }
    }
}

/// One rule, as written.
#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    pub source: Source,
    pub repositories: Vec<RepositoryPattern>,
    pub mutability: Mutability,
    /// Tags for which the opposite holds.
    pub except: Vec<TagPattern>,
    /// Whether signature and referrers tags, which tools rewrite by design, are held to the
    /// rule too.
    pub protect_signatures: bool,
    pub refusal: RefusalStyle,
    pub deletes: Deletes,
    /// A mutable tag may move only to what an immutable one is bound to.
    pub except_must_be_bound: bool,
    /// Whether anything is refused; otherwise what would have been is told.
    pub enforce: bool,
    /// The registry lets everybody pull what the rule matches, so that manifests may be answered
    /// from memory for as long as it does.
    pub anonymous_pull: bool,
}

impl Rule {
    /// What the rule says of a tag in a repository it matches.
    pub fn mutability_of(&self, tag: &Tag) -> Mutability {
        if !self.protect_signatures && tag.is_signature_or_referrers() {
            return Mutability::Mutable;
        }
        if self.except.iter().any(|pattern| pattern.matches(tag)) {
            self.mutability.opposite()
        } else {
            self.mutability
        }
    }

    /// Whether some tag may be immutable under this rule.
    pub fn protects(&self) -> bool {
        self.mutability == Mutability::Immutable || !self.except.is_empty()
    }

    /// Whether this tag may move only to what a tag that the rule protects is bound to. Signature
    /// and referrers tags are free where they are exempt.
    pub fn must_be_bound(&self, tag: &Tag) -> bool {
        self.except_must_be_bound
            && self.mutability_of(tag) == Mutability::Mutable
            && (self.protect_signatures || !tag.is_signature_or_referrers())
    }

    /// Whether every tag is, so that "the repository is immutable" is the whole truth.
    pub fn is_without_exceptions(&self) -> bool {
        self.mutability == Mutability::Immutable && self.except.is_empty()
    }
}

/// Tells rules apart; where they stand and how they are spelled aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(Digest);

impl fmt::Display for Fingerprint {
    /// The first eight bytes, hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hash().iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A snapshot of all rules.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    /// One pattern a rule, so that finding the first match is one pass over the name.
    matcher: RegexSet,
}

impl Rules {
    /// # Errors
    /// Where all patterns together are larger than a matcher may be.
    pub fn new(rules: Vec<Rule>) -> Result<Self, PatternError> {
        let matcher = pattern::set(rules.iter().map(|rule| rule.repositories.as_slice()))?;
        Ok(Self { rules, matcher })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// What the rules say, as a short hash: equal where every decision is the same.
    ///
    /// Made of the rules as compiled in, every field of them, so that a new one can't be
    /// forgotten; proxies of different versions may differ for a moment during an upgrade.
    pub fn fingerprint(&self) -> Fingerprint {
        let said = |rule: &Rule| Rule { source: Source::CommandLine, ..rule.clone() };
        let text = format!("{:?}", self.rules.iter().map(said).collect::<Vec<_>>());
        Fingerprint(Digest::of(Algorithm::Sha256, text.as_bytes()))
    }

    /// The rule that decides for a repository: the first that matches.
    pub fn rule_for(&self, repository: &RepositoryName) -> Option<&Rule> {
        let first = self.matcher.matches(repository.as_str().as_bytes()).iter().next()?;
        self.rules.get(first)
    }

    /// The rule that puts this repository in protected scope, if one does: some tag of it may be
    /// immutable, so no manifest write to it goes unjudged.
    pub fn protecting(&self, repository: &RepositoryName) -> Option<&Rule> {
        self.rule_for(repository).filter(|rule| rule.protects() && rule.enforce)
    }

    /// The rule that would put it there if it were enforced.
    pub fn rehearsing(&self, repository: &RepositoryName) -> Option<&Rule> {
        self.rule_for(repository).filter(|rule| rule.protects() && !rule.enforce)
    }
}

#[cfg(test)]
mod tests;
