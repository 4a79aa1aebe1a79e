//! What is written for people agrees with the program: links lead somewhere, the reference has every key,
//! the example files can be used, and every message can be looked up.
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use taglock::settings;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// All files of this kind below these folders and files.
fn files(places: &[&str], kind: &str) -> Vec<PathBuf> {
    fn walk(path: &Path, kind: &str, out: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(&entry.unwrap().path(), kind, out);
            }
        } else if path.extension().is_some_and(|extension| extension == kind) {
            out.push(path.to_owned());
        }
    }
    let mut out = Vec::new();
    for place in places {
        walk(&root().join(place), kind, &mut out);
    }
    out.sort();
    out
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files(&["docs", ".github"], "md");
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        pages.extend(path.extension().is_some_and(|e| e == "md").then_some(path));
    }
    pages
}

/// The names that a page's headings can be linked by, as forges make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut code = false;
    let mut found = BTreeSet::new();
    for line in page.lines() {
        code ^= line.trim_start().starts_with("```");
        if !code && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.insert(kept.collect::<String>().replace(' ', "-"));
        }
    }
    found
}

#[test]
fn every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut seen = 0;
    for page in pages() {
        let content = fs::read_to_string(&page).unwrap();
        for target in link.captures_iter(&content).map(|found| found[1].to_owned()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            assert!(file.exists(), "{}: {target} leads nowhere", page.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&file).unwrap());
                assert!(there.contains(anchor), "{}: {target} is no heading", page.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} links were found");
}

/// `table.key` → the value that stands in `config/taglock.toml`, commented or not.
fn documented_keys() -> BTreeMap<String, String> {
    let mut table = String::new();
    let mut keys = BTreeMap::new();
    for line in text("config/taglock.toml").lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        if line.starts_with('[') || (bare.starts_with('[') && bare.ends_with(']')) {
            table = format!("{}.", bare.trim_matches(['[', ']']));
        } else if let Some((key, value)) = bare.split_once(" = ")
            && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            keys.entry(format!("{table}{key}")).or_insert_with(|| value.trim().to_owned());
        }
    }
    keys
}

/// `config/taglock.toml` has every key that the program reads and no other: a test of the settings
/// sees to that. So the reference has, too.
#[test]
fn the_reference_has_every_key_and_no_other() {
    let keys = documented_keys();
    assert!(keys.len() > 50, "{keys:#?}");
    let mut table = String::new();
    let mut written = BTreeSet::new();
    for line in text("docs/configuration.md").lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            table = heading
                .strip_prefix("`[")
                .and_then(|rest| rest.split_once(']'))
                .map_or(String::new(), |(name, _)| format!("{}.", name.trim_matches(['[', ']'])));
        }
        let Some(cells) = line.strip_prefix("| `") else { continue };
        let cells: Vec<_> = cells.split(" | ").collect();
        let key = format!("{table}{}", cells[0].trim_end_matches('`'));
        let value = keys.get(&key).unwrap_or_else(|| panic!("`{key}` is no key"));
        // A default is the value that stands in the documented file.
        let default = cells[2].trim().trim_matches('`');
        if !matches!(default, "–" | "required") && !default.contains(' ') {
            assert_eq!(default, value, "the default of `{key}`");
        }
        assert!(written.insert(key.clone()), "`{key}` stands there twice");
    }
    let missing: Vec<_> = keys.keys().filter(|key| !written.contains(*key)).collect();
    assert!(missing.is_empty(), "not in docs/configuration.md: {missing:?}");
}

#[test]
fn every_example_file_can_be_used() {
    // What the examples read from elsewhere.
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["registry.example.com".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let stand_in = |path: &str| {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap().to_owned();
        let content = match name.as_str() {
            "key.pem" => key.serialize_pem(),
            name if name.ends_with(".pem") => certificate.pem(),
            _ => "somebody:a-long-enough-secret".to_owned(),
        };
        let file = folder.path().join(name);
        fs::write(&file, content).unwrap();
        file.display().to_string()
    };
    let path = Regex::new(r#""(/run/secrets/[^"]*|/etc/taglock/[^"]*)""#).unwrap();
    let examples = files(&["config", "deploy"], "toml");
    assert!(examples.len() >= 8, "{examples:?}");
    for example in examples {
        let content = fs::read_to_string(&example).unwrap();
        let content = path.replace_all(&content, |found: &regex::Captures<'_>| {
            format!("\"{}\"", stand_in(&found[1]))
        });
        let read = settings::read("example.toml", &content, &|_| None);
        let settings = read.unwrap_or_else(|e| panic!("{}: {e}", example.display()));
        assert!(settings.rules.iter().count() > 0, "{} protects nothing", example.display());
    }
}

/// The blocks of TOML in README and docs are whole files, or tables of one.
#[test]
fn what_the_pages_show_of_files_is_right() {
    let block = Regex::new(r"(?s)```toml\n(.*?)```").unwrap();
    let mut seen = 0;
    for page in pages() {
        let content = fs::read_to_string(&page).unwrap();
        for found in block.captures_iter(&content) {
            let mut file = found[1].to_owned();
            if !file.contains("[upstream]") && !file.contains("[[upstream]]") {
                file.push_str("\n[upstream]\nurl = \"https://registry.internal\"\n");
            }
            let read = settings::read("page.toml", &file, &|_| Some("from-the-environment".into()));
            if let Err(problems) = read {
                // Files with secrets are on the reader's machine.
                let bad = problems
                    .0
                    .iter()
                    .find(|problem| !problem.to_string().contains("can't be read"));
                assert!(bad.is_none(), "{}: {}\n{file}", page.display(), bad.unwrap());
            }
            seen += 1;
        }
    }
    assert!(seen > 3, "only {seen} blocks were found");
}

/// The texts of a source file's string literals, cut where something is put in, if they have some words.
fn phrases(source: &str) -> Vec<String> {
    let production = source.split("#[cfg(test)]").next().unwrap();
    let code: Vec<_> = production.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    let literal = Regex::new(r#"(?s)"((?:[^"\\]|\\.)*)""#).unwrap();
    let continued = Regex::new(r"\\\n\s*").unwrap();
    let inserted = Regex::new(r"\{[^}]*\}").unwrap();
    let code = code.join("\n");
    let mut phrases = Vec::new();
    for found in literal.captures_iter(&code) {
        let whole = continued.replace_all(&found[1], "").replace("\\\"", "\"");
        for phrase in inserted.split(&whole) {
            let phrase = phrase.trim_matches([' ', '\'', '`', ':', ';', ',', '.', '(', ')']);
            if phrase.split(' ').count() >= 4 {
                phrases.push(phrase.to_owned());
            }
        }
    }
    phrases
}

/// A page without its line breaks and markup, so that a message is found as it is printed.
fn plain(page: &str) -> String {
    page.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What nobody sees: it stands for a defect in the judge itself.
const INTERNAL: [&str; 1] = ["a pull was told of something that it did not ask for"];

#[test]
fn every_message_can_be_looked_up() {
    let page = plain(&text("docs/troubleshooting.md"));
    let mut missing = Vec::new();
    let mut seen = 0;
    for source in [
        "src/proxy/error_response.rs",
        "src/judge/step.rs",
        "src/judge/pull.rs",
        "src/registry.rs",
        "src/ledger/embedded/open.rs",
        "src/ledger/redis/open.rs",
        "src/ledger/redis/topology.rs",
        "src/run.rs",
        "src/run/ledgers.rs",
        "src/run/health.rs",
    ] {
        for phrase in phrases(&text(source)) {
            seen += 1;
            if !INTERNAL.contains(&phrase.as_str()) && !page.contains(&phrase) {
                missing.push(format!("{source}: {phrase}"));
            }
        }
    }
    assert!(seen > 40, "only {seen} phrases were found");
    assert!(missing.is_empty(), "not in docs/troubleshooting.md:\n{}", missing.join("\n"));
}

#[test]
fn every_reason_of_a_refusal_can_be_looked_up() {
    let source = text("src/proxy/error_response.rs");
    let reason = Regex::new(r#"(?:ErrorCode::\w+,\s*|unavailable\(|=> \()"([a-z-]+)","#).unwrap();
    let reasons: BTreeSet<_> = reason.captures_iter(&source).map(|f| f[1].to_owned()).collect();
    assert!(reasons.len() > 12, "{reasons:?}");
    let page = text("docs/troubleshooting.md");
    for reason in reasons {
        assert!(
            page.contains(&format!("`{reason}`")),
            "`{reason}` is not in docs/troubleshooting.md"
        );
    }
}

#[test]
fn images_and_packages_are_built_by_the_toolchain_that_is_pinned() {
    let pinned = text("rust-toolchain.toml");
    let version = pinned.split("channel = \"").nth(1).unwrap().split('"').next().unwrap();
    assert!(text("Dockerfile").contains(&format!("FROM rust:{version}-")), "{version}");
}
