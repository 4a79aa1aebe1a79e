//! What in sound rules may not be meant: for `taglock check`.
//!
//! Whether a rule can ever decide is worked out exactly, over all names there can be.

use super::language::{Found, Language, Walks};
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
    if lint.walks.exhausted() {
        let text = "the rules are too many to compare each with each; some may never decide";
        lint.say(lint.rules.len() - 1, Weight::Note, text.to_owned());
    }
    lint.out
}

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
            if same_decisions(self.rules[n], self.rules[other]) {
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

    fn said(rules: Vec<Rule>) -> Vec<String> {
        let remarks = remarks(&Rules::new(rules).unwrap());
        let line = |r: Remark| format!("{} {}: {}", r.weight.as_str(), r.rule, r.text);
        remarks.into_iter().map(line).collect()
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
