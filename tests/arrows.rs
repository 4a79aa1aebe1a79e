//! The arrow law of ARCHITECTURE.md: which room may see which, who may know which library, and how
//! long a file may be.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by a panic, and may wait on its own thread"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Each room and the rooms it may name. What stands to the right of an arrow is never seen by what
/// stands to its left: `name ← route, rules ← ledger ← judge ← proxy ← run`; `runtime ← transport ← registry`.
const ROOMS: [(&str, &[&str]); 16] = [
    ("name", &[]),
    ("runtime", &[]),
    ("transport", &["name", "runtime"]),
    ("route", &["name"]),
    ("rules", &["name"]),
    ("ledger", &["name", "telemetry"]),
    ("registry", &["name", "runtime", "transport"]),
    ("judge", &["name", "rules", "ledger", "registry"]),
    ("telemetry", &["name", "runtime"]),
    (
        "proxy",
        &[
            "name",
            "route",
            "rules",
            "ledger",
            "transport",
            "registry",
            "judge",
            "telemetry",
            "runtime",
            "transport",
        ],
    ),
    ("admin", &["name", "rules", "ledger", "registry", "judge", "telemetry"]),
    ("console", &["name", "ledger", "admin"]),
    (
        "settings",
        &["name", "route", "rules", "ledger", "transport", "registry", "judge", "telemetry"],
    ),
    ("cli", &["name"]),
    (
        "run",
        &[
            "name",
            "route",
            "rules",
            "ledger",
            "transport",
            "registry",
            "judge",
            "telemetry",
            "proxy",
            "admin",
            "console",
            "settings",
            "cli",
        ],
    ),
    ("main", &["cli", "console", "run"]),
];

/// Libraries that only some files may name.
const LIBRARIES: [(&str, &[&str]); 23] = [
    (
        "pingora",
        &[
            "src/proxy",
            "src/registry/client.rs",
            "src/registry/client/opening.rs",
            "src/registry/client/relay.rs",
            "src/registry/framing.rs",
            "src/transport/pool.rs",
            "src/transport/endpoint.rs",
            "src/admin",
            "src/run",
        ],
    ),
    (
        "httparse",
        &[
            "src/registry/client/relay.rs",
            "src/proxy/request_memo.rs",
            "src/proxy/blobs/chunked.rs",
            "src/proxy/small_read.rs",
            "src/proxy/http1_connection.rs",
        ],
    ),
    // It has sockets, signals and processes besides: only an option that nobody else knows.
    ("nix", &["src/proxy/blobs/low_water.rs"]),
    ("redb", &["src/ledger/embedded"]),
    // `run` names taglock's own module of that name.
    ("redis", &["src/ledger/redis", "src/run/ledgers.rs"]),
    ("serde", &["src/registry/wire.rs", "src/admin", "src/console", "src/telemetry/audit"]),
    (
        "serde_json",
        &[
            "src/registry/wire.rs",
            "src/admin",
            "src/console",
            "src/run/commands.rs",
            "src/telemetry/audit",
        ],
    ),
    ("toml", &["src/settings/toml_reader.rs"]),
    ("clap", &["src/cli", "src/main.rs"]),
    ("clap_complete", &["src/cli"]),
    ("clap_mangen", &["src/cli"]),
    ("axum", &["src/admin"]),
    ("hyper", &["src/admin.rs"]),
    ("utoipa", &["src/admin"]),
    (
        "futures_util",
        &[
            "src/admin/export.rs",
            "src/console/saving.rs",
            "src/proxy/blobs.rs",
            "src/proxy/blobs/chunk_copy.rs",
            "src/proxy/blobs/uploads.rs",
        ],
    ),
    ("ureq", &["src/console/client.rs", "src/telemetry/traces/collector.rs"]),
    ("opentelemetry", &["src/telemetry/traces"]),
    ("opentelemetry_sdk", &["src/telemetry/traces"]),
    ("opentelemetry_otlp", &["src/telemetry/traces"]),
    ("opentelemetry_http", &["src/telemetry/traces"]),
    ("rustls_native_certs", &["src/telemetry/traces/collector.rs"]),
    ("indicatif", &["src/console/progress.rs"]),
    ("regex_automata", &["src/rules/subset.rs"]),
];

/// The stores behind the ledger's trait.
const STORES: [&str; 3] = ["embedded", "memory", "redis"];

fn sources() -> Vec<(PathBuf, String)> {
    below("src")
}

fn below(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, out: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut out = Vec::new();
    walk(Path::new(folder), &mut out);
    assert!(out.len() > 30, "the sources were not found");
    out
}

/// The code without its tests, line by line, comments and texts aside.
fn code(text: &str) -> Vec<&str> {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//")).collect()
}

fn room(path: &Path) -> String {
    let first = path.strip_prefix("src").unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

fn is_test(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let path = path.to_str().unwrap();
    matches!(name, "tests.rs" | "contract.rs")
        || path.contains("/simulation")
        || path.contains("/tests/")
}

/// The crate's own modules that a line names, by whatever path.
fn rooms_named(line: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for prefix in ["crate::", "taglock::"] {
        for part in line.split(prefix).skip(1) {
            let name = |text: &'_ str| {
                text.find(|c: char| !c.is_alphanumeric() && c != '_').map_or(text.len(), |n| n)
            };
            if let Some(group) = part.strip_prefix('{') {
                named.extend(group.split(',').map(str::trim).map(|p| &p[..name(p)]));
            } else {
                named.push(&part[..name(part)]);
            }
        }
    }
    named
}

#[test]
fn rooms_see_only_what_the_arrows_allow() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let own = room(&path);
        if own == "lib" || is_test(&path) {
            continue;
        }
        let (_, allowed) = ROOMS
            .iter()
            .find(|(name, _)| *name == own)
            .unwrap_or_else(|| panic!("{own} is no room"));
        for line in code(&text) {
            for named in rooms_named(line) {
                let known = ROOMS.iter().any(|(name, _)| *name == named);
                if known && named != own && !allowed.contains(&named) {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn libraries_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (library, allowed) in LIBRARIES {
            if allowed.iter().any(|prefix| path.to_str().unwrap().starts_with(prefix)) {
                continue;
            }
            for line in code(&text) {
                let names = |text: &str| {
                    line.find(text).is_some_and(|at| {
                        !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                    })
                };
                if names(&format!("{library}::")) {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_run_sees_a_ledgers_store() {
    for (path, text) in sources() {
        if matches!(room(&path).as_str(), "ledger" | "run") || is_test(&path) {
            continue;
        }
        for line in code(&text) {
            for store in STORES {
                let named = line.contains(&format!("ledger::{store}"));
                assert!(!named, "{}: {}", path.display(), line.trim());
            }
        }
    }
}

#[test]
fn the_judge_and_the_names_do_no_input_or_output() {
    for (path, text) in sources() {
        if !matches!(room(&path).as_str(), "name" | "route" | "rules" | "judge") || is_test(&path) {
            continue;
        }
        for line in code(&text) {
            for io in ["std::fs", "std::net", "tokio::net", "tokio::fs", "std::io"] {
                assert!(!line.contains(io), "{}: {}", path.display(), line.trim());
            }
        }
    }
    // The step machine itself does not even know the time.
    for file in ["pull.rs", "push.rs", "rival.rs", "step.rs", "permit.rs"] {
        let text = fs::read_to_string(Path::new("src/judge").join(file)).unwrap();
        for word in ["tokio", "async ", ".await", "Instant", "SystemTime", "random"] {
            let used = code(&text).iter().any(|line| line.contains(word));
            assert!(!used, "src/judge/{file} uses {word}");
        }
    }
}

/// A parser of URIs drops a fragment, completes an empty path and replaces what is no text: decisions go
/// by the raw target, which is what is forwarded. What is logged may be the parsed one.
#[test]
fn no_request_is_decided_by_its_parsed_uri() {
    // The access log, the trace, and the page of refusals.
    let told = [("src/proxy/accounting.rs", 2), ("src/proxy/error_response/writing.rs", 1)];
    for (path, text) in sources() {
        if !matches!(room(&path).as_str(), "proxy" | "route" | "judge") || is_test(&path) {
            continue;
        }
        let parsed = ["uri.query()", "uri.path()", "path_and_query", "uri.to_string()"];
        let uses = |line: &&&str| parsed.iter().any(|word| line.contains(word));
        let found = code(&text).iter().filter(uses).count();
        let allowed = told.iter().find(|(file, _)| path == Path::new(file)).map_or(0, |(_, n)| *n);
        assert_eq!(found, allowed, "{}: the parsed URI is used", path.display());
    }
}

#[test]
fn no_file_is_long_and_no_module_is_a_mod_rs() {
    let mut lengths = Vec::new();
    for (path, text) in sources() {
        assert_ne!(path.file_name().unwrap(), "mod.rs");
        if is_test(&path) {
            continue;
        }
        let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
        let lines = text[..end].lines().count();
        assert!(lines <= 500, "{} has {lines} lines without its tests", path.display());
        lengths.push(lines);
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= 200, "the median file has {median} lines");
}

#[test]
fn nothing_is_left_for_later_or_left_unsafe() {
    // Borrowing a connection's descriptor, which pingora shows as a number only.
    let may_be_unsafe = Path::new("src/proxy/blobs/socket.rs");
    for (path, text) in sources() {
        let text = if path == may_be_unsafe { text.replacen("unsafe {", "", 1) } else { text };
        for word in
            ["todo!(", "unimplemented!(", "dbg!(", "unsafe {", "unsafe fn", concat!("#[", "ignore")]
        {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

/// Two runs of the tests try the same inputs: a seed is a constant, or given (CONTRIBUTING.md, "Seeds").
#[test]
fn no_test_draws_a_seed_of_its_own() {
    let drawn = ["Rng::new()", "fastrand::", "thread_rng", "from_entropy", "RngSeed::Random"];
    let own =
        |line: &str| line.contains("use fastrand::Rng") || line.trim_start().starts_with("//");
    for (path, text) in sources().into_iter().chain(below("tests/house")) {
        for line in text.lines().filter(|line| !own(line)) {
            let found = drawn.iter().any(|word| line.contains(word));
            assert!(!found, "{}: {}", path.display(), line.trim());
        }
    }
    let schedules = fs::read_to_string("src/judge/simulation/schedules.rs").unwrap();
    assert!(!schedules.contains("new_v4"), "a seed is drawn for the schedules");
    let cargo = fs::read_to_string(".cargo/config.toml").unwrap();
    assert!(cargo.contains("\nPROPTEST_RNG_SEED = \""), "property tests draw a seed");
    // What cargo makes of it, where it is cargo that runs this.
    let seed = std::env::var("PROPTEST_RNG_SEED");
    let sound = seed.is_ok_and(|seed| seed.parse::<u64>().is_ok());
    assert!(sound || std::env::var_os("CARGO").is_none(), "cargo sets no seed");
}

/// A door of the threat model without its test would be a promise of nobody's.
#[test]
fn every_test_the_threat_model_names_exists() {
    let text = fs::read_to_string("docs/threat-model.md").unwrap();
    let mut known = Vec::new();
    for (path, source) in sources().into_iter().chain(below("tests/house")) {
        let module = path
            .with_extension("")
            .components()
            .map(|c| c.as_os_str().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join("::");
        for after in source.split("fn ").skip(1) {
            let name = after.split('(').next().unwrap_or_default();
            known.push(format!("{module}::{name}"));
        }
    }
    let named: Vec<_> = text.split('`').filter(|word| word.contains("::")).collect();
    assert!(named.len() > 50, "{}", named.len());
    for name in named {
        // Unit tests stand in a `tests` module of their own, or of the file.
        let (module, test) = name.rsplit_once("::").unwrap();
        let there = known.iter().any(|known| {
            let (of, function) = known.rsplit_once("::").unwrap();
            function == test && of.ends_with(module)
        });
        assert!(there, "docs/threat-model.md names `{name}`, which does not exist");
    }
}
