//! The rules and settings as they will be applied, for `taglock check`.

use std::fmt::Write;

use super::{Drift, HostPolicy, Kind, OnOutage, Settings, Store};
use crate::name::TagCase;
use crate::registry::manifest_cache::Bounds;
use crate::rules::{Deletes, RefusalStyle, Rule};
use crate::telemetry::audit::Output;

/// A description for people. It shows no secret.
pub fn describe(settings: &Settings) -> String {
    let mut out = String::new();
    let Settings {
        listen,
        upstream,
        ledger,
        drift,
        admin,
        limits,
        log: _,
        audit,
        traces,
        rules,
        shutdown_timeout,
        upgrade_timeout,
        threads,
        exposed: _,
    } = settings;
    let join = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
    let mut line = |name: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{name:<10} {value}");
    };
    let scheme = if listen.tls.is_some() { "https" } else { "http" };
    line("listen", join(&mut listen.addresses.iter().map(|a| format!("{scheme}://{a}"))));
    if !listen.hosts.is_empty() {
        line("hosts", join(&mut listen.hosts.iter().cloned()));
    }
    let host = match upstream.host {
        HostPolicy::Upstream => "",
        HostPolicy::Client => ", which is sent the client's Host",
    };
    let origin = &upstream.origin;
    line(
        "upstream",
        format!("{} at {}://{}{host}", upstream.name, origin.scheme(), origin.authority()),
    );
    if upstream.kind != Kind::Generic {
        line("kind", upstream.kind.as_str().to_owned());
    }
    line("ns", namespace(upstream.namespace.as_deref()));
    if !upstream.doors.open_paths.is_empty() {
        line("open", format!("{}, to every method", upstream.doors.open_paths.join(", ")));
    }
    let outage = match ledger.on_outage {
        OnOutage::Serve => "serve",
        OnOutage::Strict => "strict",
    };
    let store = match &ledger.store {
        Store::Embedded { path } => format!("embedded in `{}`", path.display()),
        Store::Redis(redis) => {
            format!("redis at {}, {} replicas confirm a claim", redis.shown, redis.replicas)
        }
    };
    line("ledger", format!("{store}, on outage {outage}"));
    let watched = match drift {
        Drift { watch: false, .. } => "not watched".to_owned(),
        Drift { interval, repair, .. } => {
            let repaired = if *repair { ", put back where they were moved" } else { "" };
            let interval = humantime::format_duration(*interval);
            format!("pulled tags are looked at every {interval}{repaired}")
        }
    };
    line("drift", watched);
    line(
        "admin",
        match admin {
            None => "none".into(),
            Some(admin) if admin.token.is_some() => {
                format!("http://{}, with a token", admin.address)
            }
            Some(admin) => format!("http://{}, without a token", admin.address),
        },
    );
    line("limits", format!("manifest {} bytes, header {} bytes", limits.manifest, limits.header));
    if rules.iter().any(|rule| rule.anonymous_pull) {
        let Bounds { bytes, grace } = limits.shelf;
        let grace = humantime::format_duration(grace);
        line("memory", format!("manifests of {bytes} bytes, for {grace} of an outage"));
    }
    let caps = &limits.caps;
    line(
        "at once",
        format!(
            "{} connections, {} manifests of {} bytes, {} pushes waiting for one tag",
            caps.connections, caps.manifests, caps.manifest_memory, limits.waiting
        ),
    );
    line(
        "in time",
        format!(
            "a header in {}, a manifest in {}, other bodies {} bytes a second",
            humantime::format_duration(limits.header_time),
            humantime::format_duration(limits.manifest_time),
            limits.body_rate
        ),
    );
    if let Some(traces) = traces {
        let share = traces.sample * 100.0;
        line("traces", format!("{share}% of those that begin here, to {}", traces.endpoint));
    }
    match audit {
        Output::Log => {}
        Output::Stdout => line("audit", "to standard output".into()),
        Output::File(path) => line("audit", format!("to `{}`", path.display())),
    }
    let (stop, upgrade) = (*shutdown_timeout, *upgrade_timeout);
    let [stop, upgrade] = [stop, upgrade].map(humantime::format_duration);
    line("stop", format!("within {stop}, after an upgrade within {upgrade}"));
    line("threads", threads.to_string());

    out.push_str("\nrules, the first that matches a repository decides:\n");
    for (n, rule) in rules.iter().enumerate() {
        describe_rule(&mut out, n + 1, rule);
    }
    let n = rules.iter().count() + 1;
    let _ = writeln!(out, "  {n}. everything else: mutable");
    for warning in warnings(settings) {
        let _ = writeln!(out, "\nwarning: {warning}");
    }
    out
}

/// What becomes of `?ns=`, which clients send to a mirror.
fn namespace(own: Option<&str>) -> String {
    let place = "in repositories with immutable tags";
    match own {
        Some(own) => format!("`?ns={own}` alone is taken {place}; any other is refused (400)"),
        None => format!(
            "`?ns=` is refused (400) {place}; where taglock stands before a mirror, \
             `upstream.namespace` names the registry that it mirrors"
        ),
    }
}

/// Docker Hub, or what stands in front of it, by its name.
fn is_docker_hub(host: &str) -> bool {
    host == "docker.io" || host.ends_with(".docker.io")
}

/// Files that too many can read, a mirror without its namespace, and patterns that can match nothing,
/// because the registry knows what they name by another name.
pub fn warnings(settings: &Settings) -> Vec<String> {
    let naming = &settings.upstream.doors.naming;
    let mut warnings: Vec<_> = settings.exposed.iter().map(ToString::to_string).collect();
    let upstream = &settings.upstream;
    if upstream.namespace.is_none() && is_docker_hub(&upstream.origin.host) {
        let why = "clients of a mirror of Docker Hub send `?ns=docker.io`, which is refused in \
                   repositories with immutable tags: set `upstream.kind = \"docker-hub\"` or \
                   `upstream.namespace = \"docker.io\"`";
        warnings.push(why.to_owned());
    }
    for rule in settings.rules.iter() {
        let mut warn = |pattern: &str, why: &str| {
            let Rule { name, source, .. } = rule;
            warnings.push(format!("the rule {name} ({source}): `{pattern}` {why}"));
        };
        for pattern in rule.repositories.iter().map(ToString::to_string) {
            if naming.is_never_canonical(&pattern) {
                warn(&pattern, "matches nothing: the registry's repositories have other names");
            }
        }
        for pattern in rule.except.iter().map(ToString::to_string) {
            if naming.tag_case() == TagCase::Fold && has_upper_case(&pattern) {
                warn(&pattern, "has upper-case letters, and this registry's tags have none");
            }
        }
        if rule.anonymous_pull && settings.limits.shelf.bytes == 0 {
            warn("anonymous_pull", "has no effect: `limits.manifest_cache` leaves no memory to it");
        }
    }
    warnings
}

/// Letters behind a backslash are classes of a regular expression.
fn has_upper_case(pattern: &str) -> bool {
    let mut escaped = false;
    pattern.chars().any(|c| {
        let counts = c.is_ascii_uppercase() && !escaped;
        escaped = c == '\\' && !escaped;
        counts
    })
}

fn describe_rule(out: &mut String, number: usize, rule: &Rule) {
    let repositories: Vec<_> = rule.repositories.iter().map(ToString::to_string).collect();
    let mutability = rule.mutability.as_str();
    let _ = writeln!(out, "  {number}. {} ({})", rule.name, rule.source);
    let _ = writeln!(out, "     repositories  {}", repositories.join(", "));
    let _ = writeln!(out, "     tags          {mutability}");
    if !rule.except.is_empty() {
        let except: Vec<_> = rule.except.iter().map(ToString::to_string).collect();
        let opposite = if mutability == "immutable" { "mutable" } else { "immutable" };
        let _ = writeln!(out, "     but {opposite:<9} {}", except.join(", "));
    }
    if rule.protects() {
        let signatures = if rule.protect_signatures {
            "held to the rule"
        } else {
            "mutable (`sha256-…`, `.sig`, `.att`, `.sbom`)"
        };
        let _ = writeln!(out, "     signatures    {signatures}");
        let style = match rule.refusal {
            RefusalStyle::Oci => "409 DENIED",
            RefusalStyle::Ecr => "400 TAG_INVALID, as Amazon ECR",
        };
        let _ = writeln!(out, "     refusal       {style}");
        let deletes = match rule.deletes {
            Deletes::Refuse => "refused",
            Deletes::Keep => "forwarded; the name stays bound to its image",
            Deletes::Release => "forwarded; the name is free then",
        };
        let _ = writeln!(out, "     deletes       {deletes}");
        if rule.except_must_be_bound {
            let _ =
                writeln!(out, "     mutable tags  move only to what an immutable tag is bound to");
        }
        if rule.anonymous_pull {
            let _ = writeln!(out, "     pulls         for everybody: manifests from memory");
        }
        if !rule.enforce {
            let _ = writeln!(out, "     enforced      no: a dry run, nothing is refused nor bound");
        }
    }
}
