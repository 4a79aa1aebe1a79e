//! Which clients the registry has lately let in, by all that they show of themselves.
//!
//! taglock knows no users: what a client may see and write the registry decides, at each request. But
//! in what order the registry and the ledger are asked must not tell a stranger anything, and the
//! order that tells nothing costs a request more where a tag has moved. So whom the registry has let
//! in a moment ago is asked for in the shorter order. Nothing is served or refused by this alone.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::name::RepositoryName;

/// How long it is taken for granted that a client is let in still.
const HOLD: Duration = Duration::from_secs(300);
/// How many clients and repositories are remembered.
const MOST: usize = 32_768;

/// What the registry has let a client do in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    Pull,
    Push,
}

/// All that a client shows, as a number that nobody else can choose to have: its hash is keyed anew in
/// each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity([u64; 2]);

pub struct LetIn {
    keys: [RandomState; 2],
    known: Cache<[u64; 2], Instant>,
}

impl Default for LetIn {
    fn default() -> Self {
        Self { keys: [RandomState::new(), RandomState::new()], known: Cache::new(MOST) }
    }
}

impl LetIn {
    /// Of its headers all count by which a registry might tell clients apart, in any order.
    pub fn identity(&self, address: IpAddr, headers: &HeaderMap) -> Identity {
        let mut all = self.keys.each_ref().map(|key| key.hash_one(address));
        for (name, value) in headers.iter().filter(|(name, _)| tells_clients_apart(name)) {
            for (sum, key) in all.iter_mut().zip(&self.keys) {
                *sum = sum.wrapping_add(key.hash_one((name.as_str(), value.as_bytes())));
            }
        }
        Identity(all)
    }

    fn key(&self, identity: Identity, repository: &RepositoryName, right: Right) -> [u64; 2] {
        [0, 1].map(|n: usize| self.keys[n].hash_one((identity.0[n], repository, right)))
    }

    /// Until when the registry counts as having let this client in; `None` where it does not.
    pub fn until(
        &self,
        identity: Identity,
        repository: &RepositoryName,
        right: Right,
        now: Instant,
    ) -> Option<Instant> {
        let key = self.key(identity, repository, right);
        self.known.get(&key).map(|since| since + HOLD).filter(|until| *until > now)
    }

    /// The registry has let this client in now.
    pub fn note(&self, identity: Identity, repository: &RepositoryName, right: Right) {
        self.known.insert(self.key(identity, repository, right), Instant::now());
    }
}

/// What a request is for, and by which way it came, says nothing of who made it.
fn tells_clients_apart(name: &HeaderName) -> bool {
    const NOT: [&str; 18] = [
        "accept",
        "b3",
        "baggage",
        "cache-control",
        "connection",
        "date",
        "expect",
        "forwarded",
        "keep-alive",
        "pragma",
        "range",
        "te",
        "traceparent",
        "tracestate",
        "transfer-encoding",
        "uber-trace-id",
        "user-agent",
        "x-request-id",
    ];
    const NO_PREFIX: [&str; 5] = ["accept-", "content-", "if-", "x-b3-", "x-forwarded-"];
    let name = name.as_str();
    !NOT.contains(&name) && !NO_PREFIX.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn clients_are_told_apart_by_what_a_registry_may_go_by_and_by_nothing_else() {
        let let_in = LetIn::default();
        let address = IpAddr::from([10, 0, 0, 1]);
        let of = |pairs: &[_]| let_in.identity(address, &headers(pairs));
        let own = of(&[("authorization", "Basic x"), ("cookie", "a=b"), ("host", "r")]);
        for same in [
            &[("host", "r"), ("cookie", "a=b"), ("authorization", "Basic x")][..],
            &[
                ("accept", "a/b"),
                ("authorization", "Basic x"),
                ("cookie", "a=b"),
                ("host", "r"),
                ("user-agent", "docker"),
                ("content-length", "7"),
                ("if-none-match", "x"),
                ("x-request-id", "1"),
            ],
        ] {
            assert_eq!(of(same), own, "{same:?}");
        }
        for other in [
            &[("authorization", "Basic y"), ("cookie", "a=b"), ("host", "r")][..],
            &[("authorization", "Basic x"), ("host", "r")],
            &[("authorization", "a=b"), ("cookie", "Basic x"), ("host", "r")],
            &[("authorization", "Basic x"), ("cookie", "a=b"), ("host", "r"), ("x-key", "1")],
            &[
                ("authorization", "Basic x"),
                ("authorization", "Basic x"),
                ("cookie", "a=b"),
                ("host", "r"),
            ],
            &[],
        ] {
            assert_ne!(of(other), own, "{other:?}");
        }
        let elsewhere = IpAddr::from([10, 0, 0, 2]);
        assert_ne!(let_in.identity(elsewhere, &headers(&[])), of(&[]));
        assert_ne!(LetIn::default().identity(address, &headers(&[])), of(&[]), "keyed anew");
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_let_in_is_so_for_a_while_in_that_repository_and_for_that() {
        let let_in = LetIn::default();
        let who = let_in.identity(IpAddr::from([10, 0, 0, 1]), &HeaderMap::new());
        let name = |text: &str| RepositoryName::parse(text).unwrap();
        let known = |repository: &str, right| {
            let_in.until(who, &name(repository), right, Instant::now()).is_some()
        };
        assert!(!known("a", Right::Pull));
        let_in.note(who, &name("a"), Right::Pull);
        assert!(known("a", Right::Pull) && !known("a", Right::Push) && !known("b", Right::Pull));
        tokio::time::advance(HOLD).await;
        assert!(!known("a", Right::Pull));
    }
}
