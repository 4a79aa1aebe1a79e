//! Why a tag is what it is, and what a push of it would get.

use super::export;
use super::model::{DecidingRule, Explanation, Forecast, PushOutcome, RegistrySays};
use crate::ledger::{Entry, RepositoryKey};
use crate::name::{Digest, Tag};
use crate::registry::Sighting;
use crate::rules::{Mutability, RefusalStyle, Rule, Rules, Why};

/// What is known of a tag now.
pub(super) struct Facts<'a> {
    pub rules: &'a Rules,
    pub key: &'a RepositoryKey,
    pub tag: &'a Tag,
    pub entry: &'a Entry,
    pub seen: &'a Sighting,
    /// What would be pushed.
    pub digest: Option<Digest>,
}

pub(super) fn explain(facts: &Facts<'_>) -> Explanation {
    let Facts { rules, key, tag, entry, seen, digest } = facts;
    let matching = rules.matching(&key.repository);
    let (mutability, because) = match &matching {
        None => (Mutability::Mutable, "no rule matches the repository".to_owned()),
        Some(found) => {
            let rule = found.rule;
            let (mutability, why) = rule.why(tag);
            let name = &rule.name;
            let because = match why {
                Why::Rule => format!("the rule `{name}` makes tags {}", mutability.as_str()),
                Why::Exception(pattern) => {
                    format!("`{pattern}` in `except` of the rule `{name}` matches the tag")
                }
                Why::Signature => format!(
                    "it is a tag of signatures or referrers, which tools rewrite by design; the rule \
                     `{name}` does not say `protect_signatures`"
                ),
            };
            let rehearsed = match rule.enforce {
                true => String::new(),
                false => "; the rule is not enforced, so nothing is refused".to_owned(),
            };
            let public = match rule.anonymous_pull && rule.protects() && rule.enforce {
                true => "; its manifests may be answered from memory (`anonymous_pull`)",
                false => "",
            };
            (mutability, format!("{because}{rehearsed}{public}"))
        }
    };
    let push = match matching.map(|found| found.rule) {
        Some(rule) if mutability == Mutability::Immutable && rule.enforce => {
            immutable(rule, entry, seen, digest.as_ref())
        }
        rule => mutable(rule, tag, entry),
    };
    Explanation {
        repository: key.repository.to_string(),
        tag: tag.to_string(),
        mutability: mutability.as_str().to_owned(),
        because,
        rule: matching.map(|found| DecidingRule {
            number: found.number,
            name: found.rule.name.clone(),
            source: found.rule.source.to_string(),
            pattern: found.pattern.to_string(),
            enforce: found.rule.enforce,
        }),
        entry: export::shown(key, tag, entry),
        registry: said(seen),
        push,
    }
}

fn said(seen: &Sighting) -> RegistrySays {
    let (answer, digest, why) = match seen {
        Sighting::Found(digest) => ("found", Some(digest.to_string()), None),
        Sighting::NotFound(_) => ("not-found", None, None),
        Sighting::Denied(answer) | Sighting::Failed(answer) => (
            "unclear",
            None,
            Some(format!("it answered {} to taglock's own account", answer.status)),
        ),
        Sighting::Unclear(trouble) => ("unclear", None, Some(trouble.to_string())),
    };
    RegistrySays { answer: answer.to_owned(), digest, why }
}

fn forecast(outcome: PushOutcome, text: impl Into<String>) -> Forecast {
    Forecast { outcome, text: text.into() }
}

fn immutable(rule: &Rule, entry: &Entry, seen: &Sighting, pushed: Option<&Digest>) -> Forecast {
    use PushOutcome::{Accepted, Depends, Refused};
    let refusal = match rule.refusal {
        RefusalStyle::Oci => "409 DENIED",
        RefusalStyle::Ecr => "400 TAG_INVALID",
    };
    let bound = |what: &str, bound: &Digest| match pushed {
        None => forecast(
            Depends,
            format!("{what} {bound}: that image is accepted, any other refused with {refusal}"),
        ),
        Some(pushed) if pushed == bound => forecast(Accepted, format!("{what} this very image")),
        Some(pushed) if pushed.algorithm() != bound.algorithm() => forecast(
            Depends,
            format!("{what} {bound}; the bytes decide whether this is the same image"),
        ),
        Some(_) => forecast(Refused, format!("{refusal}: {what} {bound}")),
    };
    match (entry, seen) {
        (Entry::Sealed(sealed), _) => match sealed.withdrawn {
            None => bound("the tag is bound to", &sealed.digest),
            Some(_) => bound("the tag was deleted, and its name stays bound to", &sealed.digest),
        },
        (Entry::Pending(pending), _) => {
            bound("a push that has not ended claims the tag for", &pending.digest)
        }
        (Entry::Absent, Sighting::Found(digest)) => bound(
            "the registry has the tag already, and the first push or pull binds it to",
            digest,
        ),
        (Entry::Absent, Sighting::NotFound(_)) => forecast(
            Accepted,
            "the tag is free: the first image that is pushed is its image for good",
        ),
        (Entry::Absent, Sighting::Denied(_) | Sighting::Failed(_) | Sighting::Unclear(_)) => {
            forecast(Depends, "the ledger has nothing, and the registry did not say what is there")
        }
    }
}

fn mutable(rule: Option<&Rule>, tag: &Tag, entry: &Entry) -> Forecast {
    if rule.is_some_and(|rule| rule.enforce && rule.must_be_bound(tag)) {
        let text = "accepted if an immutable tag of the repository is bound to the image \
                    (`except_must_be_bound`), else refused";
        return forecast(PushOutcome::Depends, text);
    }
    let text = match entry {
        Entry::Absent => "any image: the registry alone decides",
        Entry::Pending(_) | Entry::Sealed(_) => {
            "any image: the registry alone decides; the entry from stricter days is dropped then"
        }
    };
    forecast(PushOutcome::Accepted, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{AttemptId, Origin, Pending, Sealed, Timestamp};
    use crate::name::{Algorithm, RepositoryName, UpstreamName};
    use crate::registry::Trouble;
    use crate::rules::{RepositoryPattern, Source, TagPattern};

    fn rules(change: impl FnOnce(&mut Rule)) -> Rules {
        let mut rule = Rule {
            name: "releases".into(),
            source: Source::CommandLine,
            repositories: vec![
                RepositoryPattern::parse("other").unwrap(),
                RepositoryPattern::parse("prod/**").unwrap(),
            ],
            mutability: Mutability::Immutable,
            except: vec![TagPattern::parse("latest").unwrap(), TagPattern::parse("dev-*").unwrap()],
            protect_signatures: false,
            refusal: RefusalStyle::Oci,
            deletes: Default::default(),
            except_must_be_bound: false,
            enforce: true,
            anonymous_pull: false,
        };
        change(&mut rule);
        Rules::new(vec![rule]).unwrap()
    }

    fn digest(seed: &str) -> Digest {
        Digest::of(Algorithm::Sha256, seed.as_bytes())
    }

    fn of(
        rules: &Rules,
        reference: &str,
        entry: &Entry,
        seen: &Sighting,
        pushed: Option<&str>,
    ) -> Explanation {
        let (repository, tag) = export::reference(reference).unwrap();
        let key = RepositoryKey { upstream: UpstreamName::parse("default").unwrap(), repository };
        let _: &RepositoryName = &key.repository;
        explain(&Facts { rules, key: &key, tag: &tag, entry, seen, digest: pushed.map(digest) })
    }

    #[test]
    fn the_rule_and_what_in_it_decides_are_told() {
        let rules = rules(|_| {});
        let unclear = Sighting::Unclear(Trouble::TimedOut);
        let why = |reference: &str| {
            let told = of(&rules, reference, &Entry::Absent, &unclear, None);
            (told.mutability, told.because, told.rule.map(|rule| rule.pattern))
        };
        let (mutability, because, pattern) = why("prod/a:v1");
        assert_eq!((mutability.as_str(), pattern.as_deref()), ("immutable", Some("prod/**")));
        assert!(because.contains("the rule `releases` makes tags immutable"), "{because}");
        let (mutability, because, _) = why("prod/a:dev-1");
        assert!(mutability == "mutable" && because.contains("`dev-*` in `except`"), "{because}");
        let (mutability, because, pattern) = why("test/a:v1");
        assert!(mutability == "mutable" && because.contains("no rule") && pattern.is_none());
        let (mutability, because, _) = why(&format!("prod/a:sha256-{}", "a".repeat(64)));
        assert!(mutability == "mutable" && because.contains("signatures"), "{because}");
    }

    #[test]
    fn what_a_push_would_get_follows_from_entry_registry_and_digest() {
        use PushOutcome::{Accepted, Depends, Refused};
        let sealed = |withdrawn| {
            Entry::Sealed(Sealed {
                digest: digest("one"),
                origin: Origin::Push,
                since: Timestamp::EPOCH,
                sequence: 1,
                withdrawn,
            })
        };
        let pending = Entry::Pending(Pending {
            digest: digest("one"),
            owners: vec![AttemptId::random()],
            since: Timestamp::EPOCH,
            sequence: 1,
        });
        let found = Sighting::Found(digest("one"));
        let none = Sighting::NotFound(crate::registry::Answer {
            status: http::StatusCode::NOT_FOUND,
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::new(),
        });
        let unclear = Sighting::Unclear(Trouble::TimedOut);
        let rules = rules(|_| {});
        for (entry, seen, same, other, any) in [
            (sealed(None), &none, Accepted, Refused, Depends),
            (sealed(Some(Timestamp::EPOCH)), &none, Accepted, Refused, Depends),
            (pending, &none, Accepted, Refused, Depends),
            (Entry::Absent, &found, Accepted, Refused, Depends),
            (Entry::Absent, &none, Accepted, Accepted, Accepted),
            (Entry::Absent, &unclear, Depends, Depends, Depends),
        ] {
            for (pushed, expected) in [(Some("one"), same), (Some("two"), other), (None, any)] {
                let told = of(&rules, "prod/a:v1", &entry, seen, pushed).push;
                assert_eq!(told.outcome, expected, "{entry:?} {seen:?} {pushed:?}: {}", told.text);
            }
            let latest = of(&rules, "prod/a:latest", &entry, seen, Some("two")).push;
            assert_eq!(latest.outcome, Accepted);
        }
        let ecr = super::tests::rules(|rule| rule.refusal = RefusalStyle::Ecr);
        let told = of(&ecr, "prod/a:v1", &sealed(None), &none, Some("two")).push;
        assert!(told.text.starts_with("400 TAG_INVALID"), "{}", told.text);
        let dry = super::tests::rules(|rule| rule.enforce = false);
        let told = of(&dry, "prod/a:v1", &sealed(None), &none, Some("two"));
        assert!(told.push.outcome == Accepted && told.because.contains("not enforced"));
        let public = super::tests::rules(|rule| rule.anonymous_pull = true);
        let told = of(&public, "prod/a:v1", &Entry::Absent, &none, None);
        assert!(told.because.contains("answered from memory"), "{}", told.because);
        let bound = super::tests::rules(|rule| rule.except_must_be_bound = true);
        assert_eq!(of(&bound, "prod/a:latest", &Entry::Absent, &none, None).push.outcome, Depends);
    }
}
