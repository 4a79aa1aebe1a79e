use std::collections::BTreeSet;

use super::*;
use crate::name::{RepositoryName, Tag};
use crate::rules::{Deletes, Mutability, RefusalStyle};

/// The file of the README and of the issue that asked for it.
const USUAL: &str = r#"
[listen]
address = "127.0.0.1:5000"
[upstream]
url = "http://127.0.0.1:5001"
[[rule]]
name = "releases"
repositories = ["immutable-repo", "prod/**"]
mutability = "immutable"
except = ["latest", "dev-*"]
"#;

fn parse(text: &str) -> Result<Settings, Problems> {
    read("taglock.toml", text, &|name| (name == "HOST").then(|| "registry.internal".into()))
}

fn problems(text: &str) -> Vec<String> {
    parse(text).unwrap_err().0.iter().map(ToString::to_string).collect()
}

#[test]
fn the_usual_file_is_read_with_its_defaults() {
    let settings = parse(USUAL).unwrap();
    assert_eq!(settings.listen.addresses, ["127.0.0.1:5000".parse().unwrap()]);
    assert_eq!(settings.upstream.origin.authority(), "127.0.0.1:5001");
    assert_eq!(settings.upstream.name.as_str(), "default");
    assert_eq!(settings.ledger.store, Store::Embedded { path: "taglock-data".into() });
    assert_eq!(settings.limits, Limits::default());
    assert_eq!(settings.admin, None);
    assert_eq!(settings.shutdown_timeout, Duration::from_secs(60));
    let rule = settings
        .rules
        .rule_for(&RepositoryName::parse("prod/a/b").unwrap())
        .expect("the rule matches");
    assert_eq!(rule.source.to_string(), "taglock.toml:6");
    assert_eq!(rule.mutability_of(&Tag::parse("v1").unwrap()), Mutability::Immutable);
    assert_eq!(rule.mutability_of(&Tag::parse("dev-1").unwrap()), Mutability::Mutable);
}

#[test]
fn the_four_modes_of_ecr_are_one_rule_each() {
    for (mutability, except, v1, latest) in [
        ("immutable", "", Mutability::Immutable, Mutability::Immutable),
        ("mutable", "", Mutability::Mutable, Mutability::Mutable),
        ("immutable", "except = [\"latest\"]", Mutability::Immutable, Mutability::Mutable),
        ("mutable", "except = [\"v*\"]", Mutability::Immutable, Mutability::Mutable),
    ] {
        let text = format!(
            "refusal = \"ecr\"\n[upstream]\nurl = \"http://x\"\n[[rule]]\nname = \"r\"\n\
             repositories = \"app\"\nmutability = \"{mutability}\"\n{except}\n"
        );
        let settings = parse(&text).unwrap();
        let rule = settings.rules.rule_for(&RepositoryName::parse("app").unwrap()).unwrap();
        assert_eq!(rule.mutability_of(&Tag::parse("v1").unwrap()), v1);
        assert_eq!(rule.mutability_of(&Tag::parse("latest").unwrap()), latest);
        assert_eq!(rule.refusal, RefusalStyle::Ecr, "the file's style is the rule's default");
    }
}

#[test]
fn policies_of_a_rule_are_read_shown_and_checked() {
    let with = |more: &str| parse(&format!("{USUAL}{more}\n"));
    let rule = |settings: &Settings| settings.rules.iter().next().unwrap().clone();
    let plain = with("").unwrap();
    let usual = rule(&plain);
    assert_eq!(usual.deletes, Deletes::Refuse);
    assert!(usual.enforce && !usual.except_must_be_bound);
    assert!(describe(&plain).contains("deletes       refused\n"));
    for (word, deletes, shown) in [
        ("refuse", Deletes::Refuse, "refused"),
        ("keep", Deletes::Keep, "the name stays bound"),
        ("release", Deletes::Release, "the name is free"),
    ] {
        let settings = with(&format!("delete = \"{word}\"")).unwrap();
        assert_eq!(rule(&settings).deletes, deletes);
        assert!(describe(&settings).contains(shown), "{}", describe(&settings));
    }
    let settings = with("except_must_be_bound = true\nenforce = false").unwrap();
    assert!(rule(&settings).except_must_be_bound && !rule(&settings).enforce);
    let shown = describe(&settings);
    assert!(shown.contains("move only to what an immutable tag is bound to"), "{shown}");
    assert!(shown.contains("a dry run, nothing is refused nor bound"), "{shown}");
    for (more, told) in [
        ("delete = \"never\"", "must be `refuse` or `keep` or `release`"),
        ("enforce = \"no\"", "is not `true` or `false`"),
    ] {
        let problems = with(more).unwrap_err().to_string();
        assert!(problems.contains(told), "{problems}");
    }
    let pointless =
        USUAL.replace("except = [\"latest\", \"dev-*\"]", "except_must_be_bound = true");
    assert!(problems(&pointless)[0].contains("excepts no mutable tags"));
    let mutable = USUAL.replace("\"immutable\"\n", "\"mutable\"\nexcept_must_be_bound = true\n");
    assert!(problems(&mutable)[0].contains("excepts no mutable tags"));
}

#[test]
fn only_immutable_tags_are_answered_from_memory_and_the_bounds_are_read() {
    const MARKED: &str = "anonymous_pull = true\n";
    let marked = parse(&format!("{USUAL}{MARKED}")).unwrap();
    let shelf = marked.limits.shelf;
    assert_eq!((shelf.bytes, shelf.grace), (64 << 20, Duration::from_secs(3600)));
    let shown = describe(&marked);
    assert!(shown.contains("manifests from memory"), "{shown}");
    assert!(shown.contains("manifests of 67108864 bytes, for 1h of an outage"), "{shown}");
    assert!(!describe(&parse(USUAL).unwrap()).contains("from memory"));
    // Exceptions of a mutable rule are immutable.
    let mutable = USUAL.replace("\"immutable\"\n", "\"mutable\"\n");
    assert!(parse(&format!("{mutable}{MARKED}")).is_ok());
    let none = mutable.replace("except = [\"latest\", \"dev-*\"]", MARKED);
    assert!(problems(&none)[0].contains("makes no tag immutable"), "{:?}", problems(&none));
    let limits = "[limits]\nmanifest_cache = \"0B\"\npublic_grace = \"0s\"\n[[rule]]";
    let none = format!("{USUAL}{MARKED}").replacen("[[rule]]", limits, 1);
    let none = parse(&none).unwrap();
    assert_eq!((none.limits.shelf.bytes, none.limits.shelf.grace), (0, Duration::ZERO));
    assert!(describe(&none).contains("`anonymous_pull` has no effect"), "{}", describe(&none));
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let found = problems(
        r#"refusal = "quay"
shutdown_timeout = 60
[listen]
address = "localhost"
adress = "127.0.0.1:5000"
hosts = ["ok.example.com", "a b"]
[upstream]
url = "ftp://x"
host = "proxy"
client_key = "key.pem"
[ledger]
store = "sqlite"
[admin]
address = "0.0.0.0:5080"
[limits]
manifest = "1GiB"
[[rule]]
name = "a b"
repositories = ["Prod/**", "ok/**", "x?"]
mutability = "frozen"
except = ["regex:("]
[[rule]]
nme = "x"
"#,
    );
    let expected = [
        "taglock.toml:1: `refusal`: `quay`: must be `oci` or `ecr`",
        "taglock.toml:2: `shutdown_timeout`: `60` is not a text",
        "taglock.toml:4: `listen.address`: `localhost`: not an IP address and a port",
        "taglock.toml:5: `listen.adress`: unknown key\n  hint: did you mean `address`?",
        "taglock.toml:6: `listen.hosts`: `a b`: not a host",
        "taglock.toml:7: `upstream.client_certificate`: this key is missing",
        "taglock.toml:8: `upstream.url`: `ftp://x`: only `http` and `https` are spoken",
        "taglock.toml:9: `upstream.host`: `proxy`: must be `upstream` or `client`",
        "taglock.toml:12: `ledger.store`: `sqlite`: must be `embedded` or `redis`",
        "taglock.toml:13: `admin.token_file`: this key is missing",
        "taglock.toml:16: `limits.manifest`: `1GiB`: must be from",
        "taglock.toml:18: `rule[1].name`: `a b`: a rule's name",
        "taglock.toml:19: `rule[1].repositories`: `Prod/**`: `P` is not allowed here: repository names are lower-case",
        "taglock.toml:19: `rule[1].repositories`: `x?`: `?` is not allowed here",
        "taglock.toml:20: `rule[1].mutability`: `frozen`: must be `immutable` or `mutable`",
        "taglock.toml:21: `rule[1].except`: `regex:(`: not a regular expression: unclosed group",
        "taglock.toml:22: `rule[2].name`: this key is missing",
        "taglock.toml:22: `rule[2].repositories`: this key is missing",
        "taglock.toml:22: `rule[2].mutability`: this key is missing",
        "taglock.toml:23: `rule[2].nme`: unknown key\n  hint: did you mean `name`?",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "found    {found}\nexpected {expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn what_is_not_toml_is_told_along_with_the_rest() {
    let found = problems("[listen\naddress = \n[upstream]\nurl = \"x\"\n");
    assert!(found.len() >= 2, "{found:#?}");
    assert!(found[0].starts_with("taglock.toml:1: "), "{found:#?}");
}

#[test]
fn traces_go_to_the_path_that_otlp_has_for_them() {
    let traces = |keys: &str| {
        let text = format!("[upstream]\nurl = \"http://x\"\n[traces]\n{keys}\n");
        parse(&text).unwrap().traces.map(|traces| (traces.endpoint, traces.sample))
    };
    for url in ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"] {
        let found = traces(&format!("endpoint = \"{url}\"\nsample = 0.25"));
        assert_eq!(found, Some(("http://c:4318/v1/traces".into(), 0.25)));
    }
    let found = traces("endpoint = \"https://c/otlp\"\nsample = 1");
    assert_eq!(found, Some(("https://c/otlp/v1/traces".into(), 1.0)));
    assert_eq!(traces("sample = 0.5"), None);
    assert_eq!(parse(USUAL).unwrap().traces, None);
}

#[test]
fn single_mistakes_are_told_as_they_are() {
    let upstream = "[upstream]\nurl = \"http://x\"\n";
    let rule = "[[rule]]\nname = \"r\"\nrepositories = \"a\"\nmutability = \"mutable\"\n";
    let redis = |keys: &str| format!("{upstream}[ledger]\nstore = \"redis\"\n{keys}");
    let traces = |key: &str| format!("{upstream}[traces]\n{key}\n");
    for (text, expected) in [
        ("".to_owned(), "`upstream`: which registry taglock stands in front of is missing"),
        ("[upstream]".to_owned(), "`upstream.url`: this key is missing"),
        ("upstream = 3".to_owned(), "`upstream`: `3` is not a table or a list of tables"),
        (format!("{upstream}x = 1\n"), "`upstream.x`: unknown key"),
        (format!("x = 1\n{upstream}"), "`x`: unknown key"),
        (format!("{upstream}{rule}{rule}"), "`rule`: two rules are named `r`"),
        (format!("{upstream}host = \"client\"\n"), "`upstream.host`: `client` passes any"),
        (format!("{upstream}ca_file = \"x\"\n"), "`upstream.ca_file`: the registry is spoken to"),
        (
            "[[upstream]]\nurl = \"http://x\"\n[[upstream]]\nurl = \"http://y\"\n".to_owned(),
            "`upstream`: several upstreams are not supported yet",
        ),
        (traces("endpoint = \"collector:4318\""), "`collector:4318`: not a whole URL"),
        (traces("endpoint = \"grpc://x\""), "traces are sent over `http` or `https`"),
        (traces("endpoint = \"http://a:b@x\""), "credentials don't belong into this URL"),
        (traces("endpoint = \"http://x/?key=1\""), "no query is sent"),
        (traces("sample = 1.5"), "`traces.sample`: `1.5` is not a number from 0 to 1"),
        (traces("sample = \"all\""), "`traces.sample`: `all` is not a number from 0 to 1"),
        (format!("{upstream}[ledger]\nstore = \"redis\"\n"), "`ledger.url`: this key is missing"),
        (
            format!("{upstream}[ledger]\nstore = \"redis\"\nurl = \"http://x\"\n"),
            "only `redis` and `rediss` are spoken",
        ),
        (
            redis("url = \"redis://x\"\ncluster = \"redis://y\"\n"),
            "`ledger.cluster`: `url` says already",
        ),
        (redis("sentinels = \"redis://x\"\n"), "`ledger.sentinel_master`: this key is missing"),
        (
            redis("sentinels = []\nsentinel_master = \"m\"\n"),
            "`ledger.sentinels`: the list is empty",
        ),
        (redis("url = \"redis://x\"\nsentinel_master = \"m\"\n"), "there are no sentinels"),
        (redis("cluster = \"redis://x\"\ndatabase = 1\n"), "`ledger.database`: this key goes with"),
        (redis("cluster = [\"redis://x\", \"rediss://y\"]\n"), "some with TLS and some without"),
        (redis("cluster = [\"redis://a:b@x\"]\n"), "they stand in files"),
        (redis("cluster = [\"redis://x/1\"]\n"), "only a host and a port"),
        (
            redis("url = \"redis://x\"\nca_file = \"x\"\n"),
            "`ledger.ca_file`: the Redis is spoken to",
        ),
        (redis("url = \"rediss://x\"\nca_file = \"/none\"\n"), "`ledger.ca_file`: `/none`"),
        (
            redis("url = \"rediss://x\"\nclient_key = \"k\"\n"),
            "`ledger.client_certificate`: this key",
        ),
        ("[upstream]\nurl = \"http://${NOPE}\"".to_owned(), "the environment variable `NOPE`"),
        ("[upstream]\nurl = \"http://a:b@x\"".to_owned(), "credentials don't belong"),
        ("[upstream]\nurl = \"http://x/y\"".to_owned(), "a path is not supported"),
        (format!("{upstream}[log]\nfilter = \"loud=shout\"\n"), "`log.filter`"),
        (format!("threads = 0\n{upstream}"), "`0` is not a whole number from 1 to 1024"),
        (format!("{upstream}upload_paths = [\"/v2/x/\"]\n"), "uploads below `/v2/`"),
        (format!("{upstream}token_paths = [\"/v2/a/manifests/b\"]\n"), "no component may be"),
        (format!("{upstream}[listen.tls]\nkey = \"k\"\n"), "`listen.tls.certificate`: this key is"),
    ] {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].contains(expected), "{text}: {found:#?}");
    }
}

#[test]
fn environment_references_are_put_in_place_and_never_shown() {
    let settings = parse("[upstream]\nurl = \"https://${HOST}\"\n").unwrap();
    assert_eq!(settings.upstream.origin.host, "registry.internal");
    let found = problems("[upstream]\nurl = \"ftp://${HOST}\"\n");
    assert!(!found[0].contains("registry.internal"), "{found:#?}");
}

#[test]
fn sentinels_and_clusters_are_lists_of_servers() {
    let ledger = |keys: &str| {
        let text = format!("[upstream]\nurl = \"http://x\"\n[ledger]\nstore = \"redis\"\n{keys}");
        let settings = parse(&text).unwrap();
        let shown = describe(&settings);
        let Store::Redis(redis) = settings.ledger.store else { panic!("{shown}") };
        (redis, shown)
    };
    let server = |host: &str, port| Server { host: host.into(), port };
    let (redis, shown) = ledger(
        "sentinels = [\"redis://s1\", \"redis://[::1]:7\"]\nsentinel_master = \"main\"\ndatabase = 2\n",
    );
    let servers = Servers::Sentinel {
        sentinels: vec![server("s1", 26_379), server("::1", 7)],
        master: "main".into(),
        username: None,
        password: None,
        database: 2,
    };
    assert_eq!((&redis.servers, redis.tls), (&servers, false));
    assert!(shown.contains("redis at `main` of the sentinels s1:26379"), "{shown}");
    let (redis, shown) = ledger("cluster = \"rediss://c1\"\n");
    let nodes = vec![server("c1", 6379)];
    assert_eq!((&redis.servers, redis.tls), (&Servers::Cluster { nodes }, true));
    assert!(shown.contains("redis at the Cluster of c1:6379"), "{shown}");
}

#[test]
fn a_redis_is_shown_without_its_credentials() {
    let text = "[upstream]\nurl = \"http://x\"\n[ledger]\nstore = \"redis\"\n\
                url = \"redis://alice:hunter2hunter2@redis.internal:6380/3\"\nreplicas = 1\n";
    let settings = parse(text).unwrap();
    let shown = format!("{settings:?}{}", describe(&settings));
    assert!(shown.contains("redis://redis.internal:6380"), "{shown}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_token_is_read_from_its_file_and_shown_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("admin.token");
    let text = format!(
        "[upstream]\nurl = \"http://x\"\n[admin]\naddress = \"0.0.0.0:5080\"\ntoken_file = {file:?}\n"
    );
    assert!(problems(&text)[0].contains("can't be read"));
    std::fs::write(&file, "short").unwrap();
    assert!(problems(&text)[0].contains("less than 16"));
    std::fs::write(&file, "a-very-secret-token\n").unwrap();
    let settings = parse(&text).unwrap();
    let shown = format!("{settings:?}{}", describe(&settings));
    assert!(!shown.contains("a-very-secret"), "{shown}");
    let token = settings.admin.unwrap().token.unwrap();
    assert_eq!(token.expose(), "a-very-secret-token");
}

#[test]
fn certificates_and_keys_are_read_and_checked_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    std::fs::write(path("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    std::fs::write(path("other.pem"), other.serialize_pem()).unwrap();
    // PEM, but no certificate in it.
    let armour = |what: &str| format!("-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n");
    std::fs::write(path("garbage.pem"), armour("CERTIFICATE")).unwrap();
    std::fs::write(path("empty.pem"), "").unwrap();
    let text = |ca: &str, certificate: &str, key: &str| {
        format!(
            "[listen]\ntls = {{ certificate = {:?}, key = {:?} }}\n\
             [upstream]\nurl = \"https://x\"\nca_file = {:?}\n",
            path(certificate),
            path(key),
            path(ca)
        )
    };
    assert!(parse(&text("cert.pem", "cert.pem", "key.pem")).is_ok());
    for (ca, certificate, key, count) in [
        ("garbage.pem", "garbage.pem", "key.pem", 2),
        ("empty.pem", "cert.pem", "other.pem", 2),
        ("none.pem", "cert.pem", "empty.pem", 2),
    ] {
        assert_eq!(problems(&text(ca, certificate, key)).len(), count, "{ca} {certificate} {key}");
    }
}

#[test]
fn what_a_registry_knows_by_several_names_is_set_by_kind_or_by_hand() {
    let named = |keys: &str, repository: &str, tag: &str| {
        let settings = parse(&format!("[upstream]\nurl = \"http://x\"\n{keys}")).unwrap();
        let naming = &settings.upstream.doors.naming;
        let repository = naming.repository(RepositoryName::parse(repository).unwrap()).unwrap();
        format!("{repository}:{}", naming.tag(Tag::parse(tag).unwrap()))
    };
    for (keys, expected) in [
        ("", "app:V1"),
        ("kind = \"generic\"", "app:V1"),
        ("kind = \"harbor\"", "app:V1"),
        ("kind = \"nexus\"", "app:V1"),
        ("kind = \"gitea\"", "app:v1"),
        ("kind = \"gitea\"\ntag_case = \"keep\"", "app:V1"),
        ("tag_case = \"fold\"", "app:v1"),
        ("kind = \"quay\"", "library/app:V1"),
        ("kind = \"docker-hub\"", "library/app:V1"),
        ("kind = \"quay\"\nimplied_namespace = \"\"", "app:V1"),
        ("implied_namespace = \"team\"", "team/app:V1"),
        ("[upstream.aliases]\n\"app\" = \"new/app\"", "new/app:V1"),
    ] {
        assert_eq!(named(keys, "app", "V1"), expected, "{keys}");
    }
    let found = problems(
        "[upstream]\nurl = \"http://x\"\nkind = \"ghcr\"\ntag_case = \"lower\"\n\
         implied_namespace = \"A\"\nopen_paths = [\"/v2/x\", \"/\", \"/V2\"]\nnamespace = \"a b\"\n\
         [[upstream.mount]]\npath = \"/a/v2\"\n[[upstream.mount]]\nrepository = \"x\"\n\
         [upstream.aliases]\n\"a\" = \"b/**\"\n\"C\" = \"d\"\n\"e\" = 1\n",
    );
    assert_eq!(found.len(), 12, "{found:#?}");
    let found = problems(
        "[upstream]\nurl = \"http://x\"\n[upstream.aliases]\n\"a/b\" = \"c/d\"\n\"c/d\" = \"a/b\"\n",
    );
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn patterns_that_name_what_has_another_name_are_warned_of() {
    let rule = "[[rule]]\nname = \"r\"\nrepositories = [\"old/app\", \"new/**\"]\n\
                mutability = \"mutable\"\nexcept = [\"V*\", 'regex:\\D+', \"v*\"]\n";
    let shown = |keys: &str| {
        describe(&parse(&format!("[upstream]\nurl = \"http://x\"\n{keys}\n{rule}")).unwrap())
    };
    assert!(!shown("").contains("warning:"));
    let shown = shown("kind = \"gitea\"\naliases = { \"old/app\" = \"new/app\" }");
    assert_eq!(shown.matches("warning:").count(), 2, "{shown}");
    assert!(shown.contains("`old/app` matches nothing"), "{shown}");
    assert!(shown.contains("`V*` has upper-case letters"), "{shown}");
}

/// `config/taglock.toml` with its commented keys.
fn documented_keys() -> String {
    let documented = include_str!("../../config/taglock.toml");
    // Commented keys are keys too.
    let mut text = String::new();
    for line in documented.lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let is_key = bare
            .split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        if is_key || line.starts_with('[') {
            text.push_str(bare);
        }
        text.push('\n');
    }
    text
}

/// Every key that is read stands in `config/taglock.toml`, and the other way round.
#[test]
fn the_documented_file_has_every_key_and_no_other() {
    let text = documented_keys();
    let read = super::file::known_keys(&text);
    let mut written = BTreeSet::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_matches(['[', ']']).to_owned();
            written.insert(table.clone());
        } else if let Some((key, _)) = line.split_once(" = ") {
            let path = if table.is_empty() { key.into() } else { format!("{table}.{key}") };
            written.insert(path.clone());
            // An inline table's keys.
            if key == "tls" {
                written.extend(["certificate", "key"].map(|k| format!("{path}.{k}")));
            }
            if key == "mount" {
                written.extend(["path", "repository"].map(|k| format!("{path}.{k}")));
            }
        }
    }
    assert_eq!(read, written);
    let settings = parse(include_str!("../../config/taglock.toml"))
        .expect("the documented file is a working one");
    assert_eq!(settings.rules.iter().count(), 3);
}

#[test]
fn the_example_for_harbor_knows_its_api() {
    let settings = parse(include_str!("../../config/harbor.toml")).unwrap();
    assert_eq!(settings.upstream.kind, Kind::Harbor);
    assert!(settings.upstream.doors.harbor && settings.upstream.host == HostPolicy::Client);
    assert!(settings.rules.protecting(&RepositoryName::parse("prod/team/app").unwrap()).is_some());
}

/// The worked example for a mirror holds what names one release, and nothing that moves by design.
#[test]
fn the_example_for_a_docker_hub_mirror_pins_full_versions_alone() {
    let settings = parse(include_str!("../../config/docker-hub-mirror.toml")).unwrap();
    let repository = RepositoryName::parse("library/nginx").unwrap();
    let rule = settings.rules.protecting(&repository).expect("it is in protected scope");
    let held = |name: &str| rule.mutability_of(&Tag::parse(name).unwrap()) == Mutability::Immutable;
    for name in [
        "1.27.3",
        "v2.10.0",
        "3.20.1-alpine",
        "1.27.3-alpine3.20",
        "17.2.0-bookworm",
        "8.0.404-jammy-amd64",
        "10.0.14393.6529",
        "2025-01-31",
        "20250131",
        "20250131-slim",
        "1.0.0-rc.1",
    ] {
        assert!(held(name), "{name} names one release");
    }
    for name in [
        "latest",
        "edge",
        "stable",
        "stable-alpine",
        "stable-alpine3.20",
        "mainline",
        "1",
        "1.27",
        "1-alpine",
        "1.27-alpine",
        "1.27-alpine3.20",
        "v2",
        "v2.10",
        "bookworm",
        "bookworm-slim",
        "24.04",
        "noble",
        "nightly",
        "17-bookworm",
        "17.2-bookworm",
        "sha256-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.sig",
    ] {
        assert!(!held(name), "{name} moves by design");
    }
    let postgres = RepositoryName::parse("library/postgres").unwrap();
    let rule = settings.rules.protecting(&postgres).expect("it is in protected scope");
    for (name, held) in [
        ("17.2", Mutability::Immutable),
        ("17.2-bookworm", Mutability::Immutable),
        ("17", Mutability::Mutable),
        ("17-bookworm", Mutability::Mutable),
        ("latest", Mutability::Mutable),
    ] {
        assert_eq!(rule.mutability_of(&Tag::parse(name).unwrap()), held, "{name}");
    }
}

/// A file with every key that names a secret file, and the folder they are in.
fn with_secret_files(mode: u32) -> (tempfile::TempDir, [String; 2]) {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["registry.example.com".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = |name: &str, content: &str, mode| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Certificates are for everybody.
    file("certificate.pem", &certificate.pem(), 0o644);
    file("key.pem", &key.serialize_pem(), mode);
    file("secret", "user:a-long-enough-secret", mode);
    let path = folder.path().display();
    let pair = |prefix| {
        format!(
            "{prefix}certificate = \"{path}/certificate.pem\"\n{prefix}key = \"{path}/key.pem\"\n"
        )
    };
    let (own, client) = (pair(""), pair("client_"));
    let common = format!(
        "[listen.tls]\n{own}[upstream]\nurl = \"https://x\"\n{client}\
         credentials_file = \"{path}/secret\"\n[admin]\ntoken_file = \"{path}/secret\"\n\
         [ledger]\nstore = \"redis\"\nusername_file = \"{path}/secret\"\n\
         password_file = \"{path}/secret\"\n{client}"
    );
    let sentinels = format!(
        "{common}sentinels = \"rediss://s1\"\nsentinel_master = \"m\"\n\
         sentinel_username_file = \"{path}/secret\"\nsentinel_password_file = \"{path}/secret\"\n"
    );
    let one = format!("{common}url = \"rediss://r1\"\n");
    (folder, [sentinels, one])
}

#[test]
fn every_secret_file_that_others_may_read_is_warned_about() {
    let documented = super::file::known_keys(&documented_keys());
    let secret = |key: &String| {
        let last = key.rsplit('.').next().unwrap();
        matches!(last, "key" | "client_key") || last.ends_with("_file") && last != "ca_file"
    };
    let expected: BTreeSet<_> = documented.into_iter().filter(secret).collect();
    assert!(expected.len() >= 9, "{expected:?}");
    let (_folder, [sentinels, one]) = with_secret_files(0o644);
    let settings = parse(&sentinels).unwrap();
    let found: BTreeSet<_> = settings.exposed.iter().map(|found| found.key.clone()).collect();
    assert_eq!(found, expected);
    assert_eq!(settings.exposed.len(), expected.len(), "each is told once");
    let shown = describe(&settings);
    for key in &expected {
        let line = shown.lines().find(|line| line.starts_with(&format!("warning: `{key}`: ")));
        let line = line.unwrap_or_else(|| panic!("{key}: {shown}"));
        assert!(line.contains(" has the mode 0644: every user can read it; `chmod 600 "), "{line}");
    }
    assert!(!format!("{settings:?}{shown}").contains("a-long-enough-secret"));
    assert_eq!(parse(&one).unwrap().exposed.len(), expected.len() - 2);
    for mode in [0o600, 0o400, 0o440, 0o640] {
        let (_folder, texts) = with_secret_files(mode);
        for text in texts {
            assert_eq!(parse(&text).unwrap().exposed, [], "{mode:o}");
        }
    }
    for mode in [0o660, 0o602] {
        let (_folder, [text, _]) = with_secret_files(mode);
        assert_eq!(parse(&text).unwrap().exposed.len(), expected.len(), "{mode:o}");
    }
}

#[test]
fn a_password_in_the_file_itself_makes_it_a_secret_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taglock.toml");
    let exposed = |url: &str, mode| {
        let text = format!(
            "[upstream]\nurl = \"http://x\"\n[ledger]\nstore = \"redis\"\nurl = \"{url}\"\n"
        );
        std::fs::write(&path, &text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let environment = |_: &str| Some("from-the-environment".to_owned());
        let settings = read(&path.display().to_string(), &text, &environment).unwrap();
        settings.exposed.into_iter().map(|found| (found.key, found.file)).collect::<Vec<_>>()
    };
    let told = vec![("ledger.url".to_owned(), path.clone())];
    for url in ["redis://user:password@r1", "redis://:password@r1:6379/0"] {
        assert_eq!(exposed(url, 0o644), told, "{url}");
        assert_eq!(exposed(url, 0o600), [], "{url}");
    }
    for url in ["redis://r1", "redis://user@r1", "redis://user:${PASSWORD}@r1"] {
        assert_eq!(exposed(url, 0o644), [], "{url}");
    }
}

#[test]
fn check_says_what_becomes_of_the_namespace_of_a_mirrors_clients() {
    let shown = |upstream: &str| {
        describe(&parse(&format!("[upstream]\nurl = \"https://x\"\n{upstream}\n")).unwrap())
    };
    let refused = "ns         `?ns=` is refused (400) in repositories with immutable tags; ";
    let own = |own: &str| format!("ns         `?ns={own}` alone is taken in repositories with ");
    for (upstream, expected) in [
        ("", refused.to_owned()),
        ("kind = \"harbor\"", refused.to_owned()),
        ("namespace = \"quay.io\"", own("quay.io")),
        ("kind = \"docker-hub\"", own("docker.io")),
        ("kind = \"docker-hub\"\nnamespace = \"mirror.gcr.io\"", own("mirror.gcr.io")),
    ] {
        let shown = shown(upstream);
        assert!(shown.contains(&expected), "{upstream}: {shown}");
    }
    let hub = parse("[upstream]\nurl = \"https://registry-1.docker.io\"\n").unwrap();
    assert!(describe(&hub).contains("warning: clients of a mirror of Docker Hub"));
    let set = "[upstream]\nurl = \"https://registry-1.docker.io\"\nnamespace = \"docker.io\"\n";
    assert!(!describe(&parse(set).unwrap()).contains("warning"));
}
