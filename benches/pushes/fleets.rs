//! A registry, and taglocks in front of it.

use crate::harness::{Registry, Taglock};
use crate::redis_server::RedisServer;

const RULE: &str = r#"
[[rule]]
name = "all"
repositories = "all/**"
mutability = "immutable"
"#;

/// One registry for all contestants.
pub struct Fleets {
    pub registry: Registry,
    pub embedded: Taglock,
    /// Three on one Redis.
    pub fleet: [Taglock; 3],
    _redis: RedisServer,
}

impl Fleets {
    pub fn start() -> Self {
        let registry = Registry::start();
        let redis = RedisServer::start("everysec", &[]);
        let embedded = taglock(&registry, |dir| format!("path = \"{dir}/ledger\""));
        let url = redis.url(0);
        let fleet =
            [(); 3].map(|()| taglock(&registry, |_| format!("store = \"redis\"\nurl = \"{url}\"")));
        Self { registry, embedded, fleet, _redis: redis }
    }
}

fn taglock(registry: &Registry, ledger: impl FnOnce(&str) -> String) -> Taglock {
    Taglock::from_file(|address, admin, dir| {
        format!(
            "[listen]\naddress = \"{address}\"\n[upstream]\nurl = \"http://{}\"\n\
             [ledger]\n{}\n[admin]\naddress = \"{admin}\"\n{RULE}",
            registry.address,
            ledger(dir)
        )
    })
}
