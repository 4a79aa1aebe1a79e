//! What in sound rules may not be meant: for `taglock check`.
//!
//! Whether a rule can ever decide is worked out exactly, over all names there can be.

use super::subset::{Found, Language, Walks};
use super::{Mutability, RepositoryPattern, Rule, Rules, Source, TagPattern};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Surely not meant: it has no effect, or takes all effect from the rule.
    Warning,
    /// It may surprise.
    Note,
}

impl Weight {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// Something to think about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub weight: Weight,
    pub rule: String,
    pub source: Source,
    pub text: String,
}

/// Everything worth a remark, in the order of the rules.
pub fn remarks(rules: &Rules) -> Vec<Remark> {
    let (Some(names), Some(tags)) = (Language::names(), Language::tags()) else {
        return Vec::new();
    };
    let rules: Vec<_> = rules.iter().collect();
    let languages = rules.iter().map(|rule| union(&rule.repositories)).collect();
    let mut lint = Lint { rules, languages, names, tags, walks: Walks::new(), out: Vec::new() };
    for n in 0..lint.rules.len() {
        if lint.walks.exhausted() {
            break;
        }
        lint.impossible_patterns(n);
        if lint.decides(n) {
            lint.overlaps(n);
        }
        lint.one_component(n);
        lint.exceptions(n);
    }
    // Once for the file: one mutable rule answers it for all.
    let _ = (0..lint.rules.len()).any(|n| lint.caches(n));
    if lint.walks.exhausted() {
        let text = "the rules are too many to compare each with each; some may never decide";
        lint.say(lint.rules.len() - 1, Weight::Note, text.to_owned());
    }
    lint.out
}

/// Tags of kaniko's cache: the SHA-256 of what a layer was made from.
const CACHE_TAGS: &str = "^[0-9a-f]{64}$";

struct Lint<'a> {
    rules: Vec<&'a Rule>,
    /// What the patterns of each rule match together; `None` where it is too large.
    languages: Vec<Option<Language>>,
    names: Language,
    tags: Language,
    walks: Walks,
    out: Vec<Remark>,
}

fn union(patterns: &[RepositoryPattern]) -> Option<Language> {
    let all: Vec<_> = patterns.iter().map(RepositoryPattern::anchored).collect();
    Language::new(&all.join("|"))
}

/// What a glob's names begin and end with.
fn ends(pattern: &RepositoryPattern) -> (&str, &str) {
    let text = pattern.as_str();
    match (text.find('*'), text.rfind('*')) {
        (Some(first), Some(last)) => {
            // `**/app` matches `app`, too.
            let deep = text.contains("**/");
            let end = &text[last + 1..];
            (&text[..first], if deep { end.trim_start_matches('/') } else { end })
        }
        _ => (text, text),
    }
}

/// Whether some name may match both; most rules are about different names, and this is quick.
fn may_meet(one: &Rule, other: &Rule) -> bool {
    let pairs =
        one.repositories.iter().flat_map(|a| other.repositories.iter().map(move |b| (a, b)));
    pairs.into_iter().any(|(a, b)| {
        let ((start, end), (other_start, other_end)) = (ends(a), ends(b));
        (start.starts_with(other_start) || other_start.starts_with(start))
            && (end.ends_with(other_end) || other_end.ends_with(end))
    })
}

impl Lint<'_> {
    fn say(&mut self, n: usize, weight: Weight, text: String) {
        let (rule, source) = (self.rules[n].name.clone(), self.rules[n].source.clone());
        self.out.push(Remark { weight, rule, source, text });
    }

    fn impossible_patterns(&mut self, n: usize) {
        for pattern in &self.rules[n].repositories {
            let Some(language) = Language::new(&pattern.anchored()) else { continue };
            if self.walks.find(&[&self.names, &language], &[]) == Found::None {
                let text = format!("`{pattern}` matches no name that a repository can have");
                self.say(n, Weight::Warning, text);
            }
        }
    }

    /// Earlier rules that some of its names may match.
    fn met(&self, n: usize) -> Vec<usize> {
        (0..n).filter(|other| may_meet(self.rules[n], self.rules[*other])).collect()
    }

    /// Whether the rule is the first that matches for some name.
    fn decides(&mut self, n: usize) -> bool {
        let met = self.met(n);
        let Some(own) = &self.languages[n] else { return true };
        let within = [&self.names, own];
        let earlier: Vec<_> = met.iter().filter_map(|m| self.languages[*m].as_ref()).collect();
        if self.walks.find(&within, &earlier) != Found::None {
            return true;
        }
        if self.walks.find(&within, &[]) == Found::None {
            // Told already, of each of its patterns.
            return false;
        }
        let mut covering = None;
        for other in met {
            let Some(language) = &self.languages[other] else { continue };
            if self.walks.find(&within, &[language]) == Found::None {
                covering = Some(self.rules[other].name.clone());
                break;
            }
        }
        let by = match covering {
            Some(other) => format!("`{other}`, which stands before it, matches"),
            None => "the rules before it together match".to_owned(),
        };
        let text = format!("it never decides: {by} every repository that it names");
        self.say(n, Weight::Warning, text);
        false
    }

    /// The first earlier rule that takes some of its repositories and leaves some, and says
    /// otherwise.
    fn overlaps(&mut self, n: usize) {
        for other in self.met(n) {
            let (Some(own), Some(language)) = (&self.languages[n], &self.languages[other]) else {
                continue;
            };
            if same_decisions(self.rules[n], self.rules[other]) || is_for_caches(self.rules[other])
            {
                continue;
            }
            let Found::Text(both) = self.walks.find(&[&self.names, own, language], &[]) else {
                continue;
            };
            // A narrow rule before a wide one is how exceptions are written.
            if self.walks.find(&[&self.names, language], &[own]) == Found::None {
                continue;
            }
            let name = &self.rules[other].name;
            let text = format!(
                "it and `{name}` overlap: `{both}` matches both, and `{name}` decides, which stands \
                 first"
            );
            return self.say(n, Weight::Note, text);
        }
    }

    /// `prod/*` where `prod/a/b` is left to no rule at all.
    fn one_component(&mut self, n: usize) {
        let rule = self.rules[n];
        for pattern in rule.repositories.iter().filter(|_| rule.protects()) {
            let text = pattern.as_str();
            if !text.ends_with("/*") {
                continue;
            }
            let Ok(deeper) = RepositoryPattern::parse(&format!("{text}/**")) else { continue };
            let deep = Rule { repositories: vec![deeper], ..rule.clone() };
            let Some(language) = union(&deep.repositories) else { continue };
            let all = self.rules.iter().zip(&self.languages);
            let met: Vec<_> = all
                .filter(|(other, _)| may_meet(&deep, other))
                .filter_map(|(_, language)| language.as_ref())
                .collect();
            if let Found::Text(example) = self.walks.find(&[&self.names, &language], &met) {
                let text = format!(
                    "`{text}` stays within one component: `{example}` matches no rule, and is \
                     mutable; `{text}*` goes deeper"
                );
                self.say(n, Weight::Note, text);
            }
        }
    }

    /// `prod/app/cache`, where kaniko keeps its cache of `prod/app` unless it is told another place, is
    /// immutable like `prod/app`.
    fn caches(&mut self, n: usize) -> bool {
        let rule = self.rules[n];
        if !self.holds_cache_tags(rule) {
            return false;
        }
        let below: Vec<_> = rule
            .repositories
            .iter()
            .map(|p| RepositoryPattern::parse(&format!("{p}/cache")))
            .collect();
        let below: Vec<_> = below.into_iter().flatten().collect();
        let caches = Rule { repositories: below, ..rule.clone() };
        // Exactly those of its names: `prod/**/cache` would match `prod/cache`, too.
        let of_each = rule.repositories.iter().map(RepositoryPattern::anchored);
        let of_each = of_each.map(|all| format!("{}/cache$", all.trim_end_matches('$')));
        let of_own = Language::new(&of_each.collect::<Vec<_>>().join("|"));
        let (Some(of_own), Some(own)) = (of_own, &self.languages[n]) else {
            return false;
        };
        let earlier: Vec<_> = (0..n)
            .filter(|other| may_meet(&caches, self.rules[*other]))
            .filter_map(|other| self.languages[other].as_ref())
            .collect();
        let within = [&self.names, own, &of_own];
        let Found::Text(example) = self.walks.find(&within, &earlier) else { return false };
        let text = format!(
            "`{example}` is immutable, too: kaniko keeps its cache there by default and writes its tags \
             again; a mutable rule for `**/cache` before this one leaves caches mutable"
        );
        self.say(n, Weight::Note, text);
        true
    }

    /// Whether a tag of kaniko's cache may be immutable by this rule.
    fn holds_cache_tags(&mut self, rule: &Rule) -> bool {
        let Some(tags) = Language::new(CACHE_TAGS) else { return false };
        let all: Vec<_> = rule.except.iter().map(TagPattern::anchored).collect();
        let except = if all.is_empty() { None } else { Language::new(&all.join("|")) };
        let found = match (rule.mutability, &except) {
            (Mutability::Immutable, None) => return true,
            (Mutability::Immutable, Some(except)) => self.walks.find(&[&tags], &[except]),
            (Mutability::Mutable, Some(except)) => self.walks.find(&[&tags, except], &[]),
            (Mutability::Mutable, None) => return false,
        };
        matches!(found, Found::Text(_))
    }

    fn exceptions(&mut self, n: usize) {
        let rule = self.rules[n];
        for pattern in &rule.except {
            let language = Language::new(pattern.anchored());
            let none = language.is_some_and(|language| {
                self.walks.find(&[&self.tags, &language], &[]) == Found::None
            });
            if none {
                let text = format!("`{pattern}` in `except` matches no tag that there can be");
                self.say(n, Weight::Warning, text);
            } else if let Some((weight, text)) = exception(pattern) {
                self.say(n, weight, text);
            }
        }
        if rule.mutability == Mutability::Immutable && !rule.except.is_empty() {
            let all: Vec<_> = rule.except.iter().map(TagPattern::anchored).collect();
            let Some(language) = Language::new(&all.join("|")) else { return };
            if self.walks.find(&[&self.tags], &[&language]) == Found::None {
                let text = "`except` names every tag, so the rule protects nothing".to_owned();
                self.say(n, Weight::Warning, text);
            }
        }
    }
}

/// Whether a rule leaves caches mutable and nothing else, wherever they are: meant to overlap.
fn is_for_caches(rule: &Rule) -> bool {
    let cache = |pattern: &RepositoryPattern| pattern.as_str().ends_with("/cache");
    rule.mutability == Mutability::Mutable
        && rule.except.is_empty()
        && rule.repositories.iter().all(cache)
}

fn same_decisions(one: &Rule, other: &Rule) -> bool {
    let said = |rule: &Rule| {
        let rule = Rule {
            name: String::new(),
            source: Source::CommandLine,
            repositories: Vec::new(),
            ..rule.clone()
        };
        format!("{rule:?}")
    };
    said(one) == said(other)
}

/// What about the spelling of an exception may surprise.
fn exception(pattern: &TagPattern) -> Option<(Weight, String)> {
    let text = pattern.as_str();
    let Some(expression) = text.strip_prefix("regex:") else {
        let mut pairs = text.as_bytes().windows(2);
        let longer = pairs.any(|pair| pair[0].is_ascii_digit() && pair[1] == b'*');
        let example = text.replace('*', "0");
        let text =
            format!("`{text}` in `except` matches longer numbers as well, such as `{example}`");
        return longer.then_some((Weight::Note, text));
    };
    let (begins, ends) = (expression.starts_with('^'), expression.ends_with('$'));
    if begins != ends {
        let hint = if begins { "with `.*` behind it" } else { "with `.*` before it" };
        let text = format!(
            "`{text}` in `except` is held to the whole tag, so one `^` or `$` alone changes nothing; \
             {hint} it would match a part"
        );
        return Some((Weight::Warning, text));
    }
    let literal = regex::escape(expression) == expression && !begins;
    let text = format!(
        "`{text}` in `except` is held to the whole tag, and matches `{expression}` alone; \
         `regex:.*{expression}.*` matches tags that contain it"
    );
    literal.then_some((Weight::Note, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, mutability: Mutability, repositories: &[&str], except: &[&str]) -> Rule {
        Rule {
            name: name.into(),
            source: Source::CommandLine,
            repositories: repositories
                .iter()
                .map(|p| RepositoryPattern::parse(p).unwrap())
                .collect(),
            mutability,
            except: except.iter().map(|p| TagPattern::parse(p).unwrap()).collect(),
            protect_signatures: false,
            refusal: Default::default(),
            deletes: Default::default(),
            except_must_be_bound: false,
            enforce: true,
            anonymous_pull: false,
        }
    }

    fn immutable(name: &str, repositories: &[&str], except: &[&str]) -> Rule {
        rule(name, Mutability::Immutable, repositories, except)
    }

    fn mutable(name: &str, repositories: &[&str]) -> Rule {
        rule(name, Mutability::Mutable, repositories, &[])
    }

    fn all_said(rules: Vec<Rule>) -> Vec<String> {
        let remarks = remarks(&Rules::new(rules).unwrap());
        let line = |r: Remark| format!("{} {}: {}", r.weight.as_str(), r.rule, r.text);
        remarks.into_iter().map(line).collect()
    }

    /// But for caches.
    fn said(rules: Vec<Rule>) -> Vec<String> {
        let mut said = all_said(rules);
        said.retain(|line| !line.contains("kaniko"));
        said
    }

    fn one(rules: Vec<Rule>, expected: &str) {
        let said = said(rules);
        assert!(matches!(said.as_slice(), [one] if one.contains(expected)), "{said:#?}");
    }

    #[test]
    fn sound_rules_need_no_remark() {
        let none: [String; 0] = [];
        assert_eq!(said(vec![]), none);
        let usual = vec![
            mutable("scratch", &["prod/scratch/**"]),
            immutable("releases", &["immutable-repo", "prod/**"], &["latest", "dev-*"]),
            immutable("versions", &["**"], &[r"regex:v[0-9]+\.[0-9]+", "regex:^edge|nightly$"]),
        ];
        assert_eq!(said(usual), none);
    }

    #[test]
    fn caches_that_lie_inside_what_is_immutable_are_noted_once() {
        let noted = |rules: Vec<Rule>| {
            let mut said = all_said(rules);
            said.retain(|line| line.contains("kaniko"));
            said
        };
        let releases = || immutable("releases", &["immutable-repo", "prod/**"], &["latest"]);
        let caches = || mutable("caches", &["**/cache"]);
        for rules in [
            vec![releases()],
            vec![releases(), caches()],
            vec![mutable("scratch", &["prod/scratch/**"]), releases()],
            vec![mutable("shallow", &["prod/*/cache"]), releases()],
            vec![releases(), immutable("all", &["**"], &[])],
            vec![rule("most", Mutability::Mutable, &["prod/**"], &["regex:[0-9a-f]+"])],
        ] {
            let said = noted(rules);
            assert!(matches!(said.as_slice(), [one] if one.starts_with("note ")), "{said:#?}");
            assert!(said[0].contains("/cache` is immutable, too"), "{said:#?}");
        }
        // The second rule's are found, too.
        let second = noted(vec![immutable("one", &["a"], &[]), releases()]);
        assert!(second[0].starts_with("note releases: `prod/a/cache`"), "{second:#?}");
        for rules in [
            vec![],
            vec![caches(), releases()],
            vec![mutable("deep", &["prod/**/cache"]), releases()],
            // A cache of no repository that is protected: `prod/cache` may be one of `prod`.
            vec![immutable("one", &["prod/*"], &[]), mutable("rest", &["**"])],
            vec![immutable("one", &["prod/app"], &[])],
            vec![immutable("some", &["prod/**"], &["regex:[0-9a-f]{64}"])],
            vec![rule("versions", Mutability::Mutable, &["**"], &[r"regex:v\d+\.\d+"])],
        ] {
            assert_eq!(noted(rules), [""; 0]);
        }
        // The rule that is asked for brings no remark of its own.
        assert_eq!(all_said(vec![caches(), releases()]), [""; 0]);
        assert_eq!(all_said(vec![mutable("deep", &["prod/**/cache"]), releases()]), [""; 0]);
    }

    #[test]
    fn many_rules_are_compared_as_far_as_it_takes_no_time() {
        let many = (0..300).map(|n| {
            let patterns = [format!("team{n}/**"), format!("**/svc-{n}-*"), format!("x/y{n}")];
            let patterns = patterns.each_ref().map(String::as_str);
            match n % 2 {
                0 => immutable(&format!("r{n}"), &patterns, &[]),
                _ => mutable(&format!("r{n}"), &patterns),
            }
        });
        let said = said(many.collect());
        assert!(said.iter().all(|line| line.starts_with("note")), "{said:#?}");
        assert!(said.len() <= 301, "at most one overlap a rule, and that there is more");
        // Plain rules are compared to the last one.
        let mut plain: Vec<_> =
            (0..300).map(|n| immutable(&format!("r{n}"), &[&format!("team{n}/**")], &[])).collect();
        plain.push(mutable("late", &["team299/x/**"]));
        one(plain, "warning late: it never decides: `r299`");
    }

    #[test]
    fn rules_that_never_decide_are_found() {
        let wide = || immutable("wide", &["prod/**"], &[]);
        one(
            vec![wide(), mutable("late", &["prod/scratch/**"])],
            "warning late: it never decides: `wide`",
        );
        let halves = vec![
            immutable("short", &["p/*"], &[]),
            immutable("deep", &["p/*/**"], &[]),
            mutable("late", &["p/**"]),
        ];
        one(halves, "the rules before it together match every");
        one(
            vec![wide(), mutable("half", &["test/a", "test/b"]), mutable("other", &["test/a"])],
            "warning other: it never decides: `half`",
        );
    }

    #[test]
    fn patterns_that_match_nothing_are_found() {
        one(vec![immutable("a", &["prod/-x", "prod/y"], &[])], "`prod/-x` matches no name");
        one(vec![immutable("a", &["a..b"], &[])], "`a..b` matches no name");
        one(vec![immutable("a", &["x"], &["-dev*"])], "`-dev*` in `except` matches no tag");
        one(vec![immutable("a", &["x"], &["regex:a/b"])], "`regex:a/b` in `except` matches no tag");
        one(vec![immutable("a", &["x"], &["*"])], "protects nothing");
        one(
            vec![immutable("a", &["x"], &["regex:[a-m_].*", "regex:[^a-m_].*"])],
            "protects nothing",
        );
    }

    #[test]
    fn what_may_surprise_is_noted() {
        one(
            vec![immutable("a", &["prod/*"], &[])],
            "note a: `prod/*` stays within one component: `prod/a/a` matches no rule",
        );
        one(
            vec![immutable("a", &["a/**"], &[]), mutable("b", &["**/x"])],
            "note b: it and `a` overlap: `a/x` matches both, and `a` decides",
        );
        one(vec![immutable("a", &["x"], &["v1*"])], "longer numbers as well, such as `v10`");
        one(vec![immutable("a", &["x"], &["regex:^dev"])], "warning a: `regex:^dev`");
        one(vec![immutable("a", &["x"], &["regex:dev"])], "matches `dev` alone");
    }
}
