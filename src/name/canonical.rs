//! The one name of what a registry knows by several: the ledger's key must not depend on how a
//! client spells it.
//!
//! `canonical` of a canonical name is that name: [`Naming::new`] takes nothing for which that would
//! not hold.

use std::collections::HashMap;

use super::{RepositoryName, RepositoryNameError, Tag};

/// Whether the registry tells `V1` from `v1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TagCase {
    #[default]
    Keep,
    Fold,
}

/// A second name of a repository, or with `below` of all repositories below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    from: RepositoryName,
    to: RepositoryName,
    below: bool,
}

impl Alias {
    /// `old/app` for `new/app`, or `old/**` for `new/**`.
    ///
    /// # Errors
    /// What is wrong with the pair, for people.
    pub fn parse(from: &str, to: &str) -> Result<Self, String> {
        let (from, to, below) = match (from.strip_suffix("/**"), to.strip_suffix("/**")) {
            (Some(from), Some(to)) => (from, to, true),
            (None, None) => (from, to, false),
            _ => return Err("`/**` stands at the end of both names, or of none".to_owned()),
        };
        let name = |text| RepositoryName::parse(text).map_err(|e| format!("`{text}`: {e}"));
        Ok(Self { from: name(from)?, to: name(to)?, below })
    }

    /// Whether some name this alias leads to has another name by `other`.
    fn leads_into(&self, other: &Self) -> bool {
        let (to, from) = (self.to.as_str(), other.from.as_str());
        match (self.below, other.below) {
            (false, false) => to == from,
            (false, true) => is_below(to, from),
            (true, false) => is_below(from, to),
            (true, true) => to == from || is_below(to, from) || is_below(from, to),
        }
    }
}

/// Where a registry serves its API below a path of its own, as Artifactory and Nexus do:
/// `<path>/v2/<name>/…` is the repository `<repository>/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Begins with `/` and does not end with it.
    pub path: String,
    /// `None` where the names are those of the root.
    pub repository: Option<RepositoryName>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    tag_case: TagCase,
    /// What a name of one component is in (`library`).
    implied: Option<RepositoryName>,
    aliases: HashMap<RepositoryName, RepositoryName>,
    /// Whole folders of names, by the folder.
    folders: HashMap<RepositoryName, RepositoryName>,
    mounts: Vec<Mount>,
}

impl Naming {
    /// # Errors
    /// Every alias or mount that would leave something with two names.
    pub fn new(
        tag_case: TagCase,
        implied: Option<RepositoryName>,
        aliases: Vec<Alias>,
        mounts: Vec<Mount>,
    ) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        for alias in &aliases {
            let Alias { from, to, below } = alias;
            if let Some(other) = aliases.iter().find(|other| alias.leads_into(other)) {
                let other = &other.from;
                wrong.push(format!(
                    "`{from}` leads to `{to}`, which has another name by the alias of `{other}`"
                ));
            }
            let single = [from, to].into_iter().find(|name| !name.as_str().contains('/'));
            if let (Some(namespace), Some(name), false) = (&implied, single, *below) {
                wrong.push(format!("`{name}` is `{namespace}/{name}`: write it so"));
            }
        }
        for (n, mount) in mounts.iter().enumerate() {
            if mounts[..n].iter().any(|other| other.path.eq_ignore_ascii_case(&mount.path)) {
                wrong.push(format!("`{}` is mounted twice", mount.path));
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let (folders, aliases): (Vec<_>, Vec<_>) = aliases.into_iter().partition(|a| a.below);
        let pairs = |list: Vec<Alias>| list.into_iter().map(|a| (a.from, a.to)).collect();
        let (aliases, folders) = (pairs(aliases), pairs(folders));
        Ok(Self { tag_case, implied, aliases, folders, mounts })
    }

    pub fn tag_case(&self) -> TagCase {
        self.tag_case
    }

    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The tag as the ledger and the rules know it.
    pub fn tag(&self, tag: Tag) -> Tag {
        match self.tag_case {
            TagCase::Fold => tag.folded(),
            TagCase::Keep => tag,
        }
    }

    /// The repository as the ledger and the rules know it.
    ///
    /// # Errors
    /// Where the name is too long then.
    pub fn repository(&self, name: RepositoryName) -> Result<RepositoryName, RepositoryNameError> {
        let name = match &self.implied {
            Some(namespace) if !name.as_str().contains('/') => joined(namespace, name.as_str())?,
            _ => name,
        };
        if let Some(canonical) = self.aliases.get(&name) {
            return Ok(canonical.clone());
        }
        if self.folders.is_empty() {
            return Ok(name);
        }
        // The nearest folder that has an alias.
        for (end, _) in name.as_str().rmatch_indices('/') {
            let folder = RepositoryName::parse(&name.as_str()[..end])?;
            if let Some(canonical) = self.folders.get(&folder) {
                return joined(canonical, &name.as_str()[end + 1..]);
            }
        }
        Ok(name)
    }

    /// The same for a name below a mount.
    ///
    /// # Errors
    /// Where the name is too long then.
    pub fn mounted(
        &self,
        mount: &Mount,
        name: RepositoryName,
    ) -> Result<RepositoryName, RepositoryNameError> {
        self.repository(match &mount.repository {
            Some(repository) => joined(repository, name.as_str())?,
            None => name,
        })
    }

    /// Where taglock itself asks the registry for a repository: `/v2/team/app`, or below the first
    /// mount that has it.
    pub fn place(&self, canonical: &RepositoryName) -> String {
        let below = |mount: &Mount| match &mount.repository {
            Some(repository) => Some(
                canonical.as_str().strip_prefix(repository.as_str())?.strip_prefix('/')?.to_owned(),
            ),
            None => Some(canonical.to_string()),
        };
        let mounted = self.mounts.iter().find_map(|mount| Some((&mount.path, below(mount)?)));
        match mounted {
            Some((path, name)) => format!("{path}/v2/{name}"),
            None => ["/v2/", canonical.as_str()].concat(),
        }
    }

    /// Whether a pattern for repositories is certain to match no canonical name.
    pub fn is_never_canonical(&self, pattern: &str) -> bool {
        let Some(star) = pattern.find('*') else {
            let name = RepositoryName::parse(pattern);
            return name.is_ok_and(|name| self.repository(name.clone()) != Ok(name));
        };
        if !pattern.contains('/') && !pattern.contains("**") {
            return self.implied.is_some();
        }
        let folder = pattern[..star].rsplit_once('/').map_or("", |(folder, _)| folder);
        self.folders.keys().any(|f| folder == f.as_str() || is_below(folder, f.as_str()))
    }
}

fn joined(folder: &RepositoryName, name: &str) -> Result<RepositoryName, RepositoryNameError> {
    RepositoryName::parse(&format!("{folder}/{name}"))
}

fn is_below(name: &str, folder: &str) -> bool {
    name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    fn naming(implied: Option<&str>, aliases: &[(&str, &str)]) -> Result<Naming, Vec<String>> {
        let aliases = aliases.iter().map(|(from, to)| Alias::parse(from, to).unwrap()).collect();
        let mounts = vec![
            Mount { path: "/repository/hosted".into(), repository: Some(name("hosted")) },
            Mount { path: "/repository/group".into(), repository: Some(name("hosted")) },
        ];
        Naming::new(TagCase::Fold, implied.map(name), aliases, mounts)
    }

    #[test]
    fn every_name_leads_to_one() {
        let naming = naming(
            Some("library"),
            &[("old/app", "new/app"), ("past/**", "now/x/**"), ("past/deep/**", "deep/**")],
        )
        .unwrap();
        for (spelled, canonical) in [
            ("ubuntu", "library/ubuntu"),
            ("library/ubuntu", "library/ubuntu"),
            ("old/app", "new/app"),
            ("old/app/sub", "old/app/sub"),
            ("past/a/b", "now/x/a/b"),
            ("past/deep/b", "deep/b"),
            ("pastel/a", "pastel/a"),
            ("past", "library/past"),
        ] {
            assert_eq!(naming.repository(name(spelled)), Ok(name(canonical)), "{spelled}");
        }
        let tag = |text: &str| Tag::parse(text).unwrap();
        assert_eq!(naming.tag(tag("V1.0-RC")), tag("v1.0-rc"));
        let mount = &naming.mounts()[1];
        assert_eq!(naming.mounted(mount, name("app")), Ok(name("hosted/app")));
        assert_eq!(naming.place(&name("hosted/app")), "/repository/hosted/v2/app");
        assert_eq!(naming.place(&name("hosted")), "/v2/hosted");
        assert_eq!(naming.place(&name("hostedx/app")), "/v2/hostedx/app");
        let long = format!("past/{}", "a".repeat(250));
        assert_eq!(naming.repository(name(&long)), Err(RepositoryNameError::TooLong));
        for (pattern, never) in [
            ("old/app", true),
            ("ubuntu", true),
            ("ubu*", true),
            ("past/**", true),
            ("past/x-*", true),
            ("**", false),
            ("*/app", false),
            ("past*/**", false),
            ("library/*", false),
            ("new/app", false),
        ] {
            assert_eq!(naming.is_never_canonical(pattern), never, "{pattern}");
        }
    }

    #[test]
    fn aliases_that_lead_to_aliases_are_refused_every_one() {
        for (aliases, wrong) in [
            (&[("a/b", "c/d")][..], 0),
            (&[("a/**", "b/**"), ("a/x", "b/x")], 0),
            (&[("a/b", "a/b")], 1),
            (&[("a/b", "c/d"), ("c/d", "a/b")], 2),
            (&[("a/b", "c/d"), ("c/**", "e/**")], 1),
            (&[("a/**", "b/**"), ("b/x", "b/y")], 1),
            (&[("a/**", "a/b/**")], 1),
            (&[("a/b/**", "a/**")], 1),
            (&[("a/**", "b/c/**"), ("b/**", "d/**")], 1),
            (&[("app", "team/app")], 1),
            (&[("team/app", "app")], 1),
        ] {
            let found = naming(Some("library"), aliases).err().unwrap_or_default();
            assert_eq!(found.len(), wrong, "{aliases:?}: {found:?}");
        }
        assert!(Alias::parse("a/**", "b").is_err() && Alias::parse("A", "b").is_err());
        assert!(Alias::parse("**", "b/**").is_err() && Alias::parse("a/*", "b/*").is_err());
        let mount = |path: &str| Mount { path: path.into(), repository: None };
        let twice = vec![mount("/a"), mount("/A")];
        assert!(Naming::new(TagCase::Keep, None, Vec::new(), twice).is_err());
    }

    proptest! {
        /// What settings let through gives one key, whatever the aliases are.
        #[test]
        fn a_canonical_name_stays(
            names in prop::collection::vec(("[ab](/[ab]){0,3}(/\\*\\*)?", "[ab](/[ab]){0,3}"), 0..4),
            implied in any::<bool>(),
            asked in "[ab](/[ab]){0,4}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,9}",
        ) {
            let aliases = names.iter().map(|(from, to)| {
                let below = if from.ends_with("/**") { "/**" } else { "" };
                Alias::parse(from, &format!("{to}{below}")).unwrap()
            });
            let implied = implied.then(|| name("library"));
            if let Ok(naming) = Naming::new(TagCase::Fold, implied, aliases.collect(), Vec::new()) {
                let once = naming.repository(name(&asked)).unwrap();
                prop_assert_eq!(naming.repository(once.clone()), Ok(once));
                let tag = Tag::parse(&tag).unwrap();
                let once = naming.tag(tag.clone());
                prop_assert!(once.as_str().eq_ignore_ascii_case(tag.as_str()));
                prop_assert_eq!(naming.tag(once.clone()), once);
            }
        }
    }
}
