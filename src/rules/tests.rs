use proptest::prelude::*;

use super::*;

fn rule(name: &str, repositories: &[&str], mutability: Mutability, except: &[&str]) -> Rule {
    Rule {
        name: name.into(),
        source: Source::CommandLine,
        repositories: repositories.iter().map(|p| RepositoryPattern::parse(p).unwrap()).collect(),
        mutability,
        except: except.iter().map(|p| TagPattern::parse(p).unwrap()).collect(),
        protect_signatures: false,
        refusal: RefusalStyle::Oci,
        deletes: Deletes::Refuse,
        except_must_be_bound: false,
        enforce: true,
        anonymous_pull: false,
    }
}

fn repository(name: &str) -> RepositoryName {
    RepositoryName::parse(name).unwrap()
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

fn matches(pattern: &str, name: &str) -> bool {
    let rules = Rules::new(vec![rule("r", &[pattern], Mutability::Immutable, &[])]).unwrap();
    rules.rule_for(&repository(name)).is_some()
}

#[test]
fn repository_globs_match_as_documented() {
    for (pattern, yes, no) in [
        ("app", &["app"][..], &["app/x", "xapp", "apps"][..]),
        ("prod/*", &["prod/a"], &["prod", "prod/a/b", "xprod/a"]),
        ("prod/**", &["prod/a", "prod/a/b"], &["prod", "prodx/a", "x/prod/a"]),
        ("**/app", &["app", "a/app", "a/b/app"], &["xapp", "a/xapp", "app/a"]),
        ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["az", "a/bz", "a/z/b"]),
        ("*", &["app"], &["a/b"]),
        ("**", &["app", "a/b/c"], &[]),
        ("team-*/svc", &["team-a/svc", "team-b/svc"], &["team-a/b/svc"]),
        ("a.b", &["a.b"], &["axb"]),
        ("rel**", &["rel", "release", "rel/a/b"], &["a/rel"]),
    ] {
        for name in yes {
            assert!(matches(pattern, name), "{pattern} should match {name}");
        }
        for name in no {
            assert!(!matches(pattern, name), "{pattern} should not match {name}");
        }
    }
}

#[test]
fn tag_patterns_match_the_whole_tag() {
    for (pattern, yes, no) in [
        ("latest", &["latest"][..], &["latest2", "xlatest", "LATEST"][..]),
        ("dev-*", &["dev-1", "dev-"], &["xdev-1", "dev"]),
        ("*.x", &["1.x", "1.2.x"], &["1.2.3", "ax"]),
        (r"regex:v\d+", &["v1", "v22"], &["v", "v1x", "xv1"]),
        (r"regex:a|b", &["a", "b"], &["ab", "xa", "bx"]),
        (r"regex:(?i)snapshot", &["SNAPSHOT"], &["snapshots"]),
    ] {
        let compiled = TagPattern::parse(pattern).unwrap();
        for name in yes {
            assert!(compiled.matches(&tag(name)), "{pattern} should match {name}");
        }
        for name in no {
            assert!(!compiled.matches(&tag(name)), "{pattern} should not match {name}");
        }
    }
}

#[test]
fn patterns_that_could_not_mean_what_they_say_are_refused() {
    for pattern in ["", "/a", "a/", "a//b", "A", "a?", "[ab]", "a:b", "a b", "a***", "é"] {
        assert!(RepositoryPattern::parse(pattern).is_err(), "{pattern:?}");
    }
    for pattern in ["", "a/b", "a?", "regex:", "regex:(", "regex:a{100000}{1000}", "é"] {
        assert!(TagPattern::parse(pattern).is_err(), "{pattern:?}");
    }
}

#[test]
fn the_first_match_wins_and_no_match_is_mutable() {
    let rules = Rules::new(vec![
        rule("sandbox", &["prod/sandbox/**"], Mutability::Mutable, &[]),
        rule("releases", &["prod/**", "immutable-repo"], Mutability::Immutable, &["latest"]),
        rule("late", &["prod/a"], Mutability::Mutable, &[]),
        rule("pinned", &["dev/*"], Mutability::Mutable, &["v*"]),
    ])
    .unwrap();
    let says = |name: &str, t: &str| {
        rules
            .rule_for(&repository(name))
            .map(|rule| (rule.name.as_str(), rule.mutability_of(&tag(t))))
    };
    use Mutability::{Immutable, Mutable};
    assert_eq!(says("prod/sandbox/x", "v1"), Some(("sandbox", Mutable)));
    assert_eq!(says("prod/a", "v1"), Some(("releases", Immutable)));
    assert_eq!(says("prod/a", "latest"), Some(("releases", Mutable)));
    assert_eq!(says("immutable-repo", "latest"), Some(("releases", Mutable)));
    assert_eq!(says("dev/a", "v1"), Some(("pinned", Immutable)));
    assert_eq!(says("dev/a", "main"), Some(("pinned", Mutable)));
    assert_eq!(says("other", "v1"), None);

    let protected = |name: &str| rules.protecting(&repository(name)).is_some();
    assert!(!protected("prod/sandbox/x") && !protected("other"));
    assert!(protected("prod/a") && protected("dev/a"), "exceptions of a mutable rule protect");
}

#[test]
fn signature_tags_stay_mutable_unless_the_rule_says_otherwise() {
    let signature = tag(&format!("sha256-{}.sig", "ab".repeat(32)));
    let mut strict = rule("r", &["**"], Mutability::Immutable, &[]);
    assert_eq!(strict.mutability_of(&signature), Mutability::Mutable);
    strict.protect_signatures = true;
    assert_eq!(strict.mutability_of(&signature), Mutability::Immutable);
    let pinned = rule("r", &["**"], Mutability::Mutable, &["*"]);
    assert_eq!(pinned.mutability_of(&signature), Mutability::Mutable);
}

#[test]
fn a_rule_that_is_not_enforced_protects_nothing_and_rehearses() {
    let mut trial = rule("trial", &["prod/**"], Mutability::Immutable, &[]);
    trial.enforce = false;
    let mut idle = rule("idle", &["idle"], Mutability::Mutable, &[]);
    idle.enforce = false;
    let rules = Rules::new(vec![trial, idle, rule("all", &["**"], Mutability::Immutable, &[])]);
    let rules = rules.unwrap();
    let name = |name| repository(name);
    assert!(rules.protecting(&name("prod/a")).is_none(), "it is the first that matches still");
    assert_eq!(rules.rehearsing(&name("prod/a")).map(|rule| rule.name.as_str()), Some("trial"));
    assert!(rules.rehearsing(&name("idle")).is_none(), "nothing would be refused");
    assert!(rules.rehearsing(&name("dev")).is_none() && rules.protecting(&name("dev")).is_some());
}

#[test]
fn only_excepted_tags_must_be_bound_and_signatures_are_free() {
    let signature = tag(&format!("sha256-{}.sig", "ab".repeat(32)));
    let mut rule = rule("r", &["**"], Mutability::Immutable, &["latest", "sha256-*"]);
    assert!(!rule.must_be_bound(&tag("latest")));
    rule.except_must_be_bound = true;
    assert!(rule.must_be_bound(&tag("latest")));
    assert!(!rule.must_be_bound(&tag("v1")) && !rule.must_be_bound(&signature));
    rule.protect_signatures = true;
    assert!(rule.must_be_bound(&signature), "excepted by name, not exempt");
}

proptest! {
    /// A glob without wildcards is its own name, and one made of a name by putting wildcards
    /// in the place of parts still matches it.
    #[test]
    fn globs_made_from_a_name_match_it(
        components in prop::collection::vec("[a-z0-9]{1,6}", 1..5),
        stars in prop::collection::vec(0..3_u8, 5),
    ) {
        let name = components.join("/");
        prop_assert!(matches(&name, &name));
        let pattern: Vec<_> = components.iter().zip(&stars).map(|(component, star)| match star {
            0 => component.clone(),
            1 => "*".to_owned(),
            _ => format!("{}*", &component[..1]),
        }).collect();
        prop_assert!(matches(&pattern.join("/"), &name));
        let (below, deeper) = (format!("{}/**", components[0]), format!("{name}/x"));
        prop_assert!(matches(&below, &deeper));
    }
}
