//! Settings from the command line alone, for a start without a file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::file::{default_address, plain_upstream};
use super::problem::{Problem, Problems};
use super::{Admin, Drift, Ledger, Limits, Listen, Log, OnOutage, Settings, Store, values};
use crate::ledger::cached::Remembering;
use crate::rules::{Deletes, Mutability, RefusalStyle, RepositoryPattern, Rule, Rules, Source};
use crate::telemetry::audit::Output;

/// What `taglock serve` was given instead of a file.
#[derive(Clone, Debug)]
pub struct Flags {
    pub upstream: String,
    pub immutable: Vec<String>,
    pub listen: Vec<SocketAddr>,
    pub data: PathBuf,
    pub admin: Option<SocketAddr>,
}

/// # Errors
/// Everything that is wrong with them.
pub fn from_flags(flags: Flags) -> Result<Settings, Problems> {
    let mut problems = Vec::new();
    let mut report = |option: &str, message: String| {
        let place = "command line".to_owned();
        problems.push(Problem { place, key: option.into(), message, hint: None });
    };
    let Flags { upstream, immutable, listen, data, admin } = flags;
    let upstream = values::parse_origin(&upstream)
        .map_err(|e| report("--upstream", format!("`{upstream}`: {e}")))
        .ok();
    let patterns = immutable.iter().filter_map(|text| {
        RepositoryPattern::parse(text)
            .map_err(|e| report("--immutable", format!("`{text}`: {e}")))
            .ok()
    });
    let rule = Rule {
        name: "command-line".into(),
        source: Source::CommandLine,
        repositories: patterns.collect(),
        mutability: Mutability::Immutable,
        except: Vec::new(),
        protect_signatures: false,
        refusal: RefusalStyle::Oci,
        deletes: Deletes::Refuse,
        except_must_be_bound: false,
        enforce: true,
        anonymous_pull: false,
    };
    let rules = if immutable.is_empty() { Vec::new() } else { vec![rule] };
    let rules = Rules::new(rules).map_err(|e| report("--immutable", e.to_string())).ok();
    if let Some(admin) = admin.filter(|admin| !admin.ip().is_loopback()) {
        report("--admin", format!("`{admin}`: other than loopback needs a file and a token"));
    }
    match (upstream, rules) {
        (Some(origin), Some(rules)) if problems.is_empty() => Ok(Settings {
            listen: Listen {
                addresses: if listen.is_empty() { vec![default_address()] } else { listen },
                hosts: Vec::new(),
                external: None,
                trusted_proxies: Vec::new(),
                tls: None,
            },
            upstream: plain_upstream(origin),
            ledger: Ledger {
                store: Store::Embedded { path: data },
                id: None,
                on_outage: OnOutage::Serve,
                remembering: Remembering::default(),
            },
            drift: Drift::default(),
            admin: admin.map(|address| Admin { address, token: None, hosts: Vec::new() }),
            limits: Limits::default(),
            log: Log::default(),
            audit: Output::default(),
            traces: None,
            rules: Arc::new(rules),
            shutdown_timeout: Duration::from_secs(60),
            upgrade_timeout: Duration::from_secs(3600),
            exposed: Vec::new(),
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        }),
        _ => Err(Problems(problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::RepositoryName;

    fn flags(upstream: &str, immutable: &[&str]) -> Flags {
        Flags {
            upstream: upstream.into(),
            immutable: immutable.iter().map(|text| (*text).to_owned()).collect(),
            listen: Vec::new(),
            data: "data".into(),
            admin: None,
        }
    }

    #[test]
    fn an_upstream_and_patterns_are_enough() {
        let settings = from_flags(flags("http://127.0.0.1:5001", &["prod/**", "app"])).unwrap();
        let protected =
            |name: &str| settings.rules.protecting(&RepositoryName::parse(name).unwrap()).is_some();
        assert!(protected("prod/x") && protected("app") && !protected("dev"));
        assert_eq!(settings.listen.addresses, ["127.0.0.1:5000".parse().unwrap()]);
        assert!(from_flags(flags("http://x", &[])).is_ok(), "nothing protected is legal");
    }

    #[test]
    fn every_mistake_is_told() {
        let problems = from_flags(flags("x", &["A", "b", "c?"])).unwrap_err().to_string();
        for expected in ["--upstream", "`A`", "`c?`"] {
            assert!(problems.contains(expected), "{problems}");
        }
    }
}
