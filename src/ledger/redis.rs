//! The ledger of a fleet: one Redis or Valkey, shared by all proxies.
//!
//! A hash for each repository holds its tags' entries, small enough for Redis' compact form; one
//! script (`ledger.lua`) applies the operation table to a set of tags at one instant. A sorted set
//! names the repositories, for listings, and a hash says who this ledger is.

mod open;

pub use open::{Config, OpenError};

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dashmap::{DashMap, DashSet};
use redis::aio::{ConnectionManager, MultiplexedConnection};
use redis::{AsyncCommands, Cmd, ErrorKind, RedisError, ServerErrorKind, Value, cmd};
use tokio::sync::OnceCell;

use super::{
    Announcement, AttemptId, Claim, Entry, Holder, Identity, Ledger, Listed, Origin, Position,
    Release, RepositoryKey, Seal, Timestamp, Token, Unavailable, codec,
};
use crate::name::{Digest, RepositoryName, Tag, UpstreamName};

const SCRIPT: &str = include_str!("redis/ledger.lua");
/// The field of a repository's hash that is no tag.
const SEQUENCE: &str = "\0seq";
const REPOSITORIES: &str = "taglock:1:repositories";
const META: &str = "taglock:1:meta";
/// Which rules each proxy applies: its name to `<fingerprint> <seconds since 1970>`.
const PROXIES: &str = "taglock:1:proxies";
/// A proxy that has not announced itself for so many seconds is gone.
const GONE: u64 = 60;
/// How long `WAIT` waits for replicas.
const WAIT: Duration = Duration::from_millis(1000);

pub struct Redis {
    identity: Identity,
    client: redis::Client,
    /// For everything but claims that wait for replicas. Made at the first call: its task lives in
    /// the runtime that makes it.
    shared: OnceCell<ConnectionManager>,
    script: redis::Script,
    /// Replicas that must have a claim before it is granted.
    replicas: u32,
    /// `WAIT` blocks its connection and counts only what that one wrote, so claims that wait have
    /// connections of their own.
    waiting: Mutex<Vec<MultiplexedConnection>>,
    /// The highest sequence number seen of each repository.
    seen: DashMap<RepositoryKey, u64>,
    /// Repositories that the sorted set is known to name.
    named: DashSet<RepositoryKey>,
    closed: AtomicBool,
}

/// What the script answered.
struct Done {
    stands: bool,
    before: Vec<Entry>,
}

fn failed(error: impl std::fmt::Display) -> Unavailable {
    Unavailable::Store(error.to_string())
}

/// `{…}` keeps all keys of one repository in one slot of a Cluster.
fn hash_of(repository: &RepositoryKey) -> String {
    format!("taglock:1:{{{}/{}}}", repository.upstream, repository.repository)
}

fn member_of(repository: &RepositoryKey) -> String {
    // A NUL sorts before every byte of a name, as the tuple of both does.
    format!("{}\0{}", repository.upstream, repository.repository)
}

fn repository_of(member: &str) -> Result<RepositoryKey, Unavailable> {
    let (upstream, repository) = member.split_once('\0').ok_or_else(|| failed(codec::Corrupt))?;
    Ok(RepositoryKey {
        upstream: UpstreamName::parse(upstream).map_err(failed)?,
        repository: RepositoryName::parse(repository).map_err(failed)?,
    })
}

fn entry_of(bytes: &[u8]) -> Result<Entry, Unavailable> {
    if bytes.is_empty() { Ok(Entry::Absent) } else { codec::decode(bytes).map_err(failed) }
}

fn bytes_of(value: &Value) -> Result<&[u8], Unavailable> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.as_bytes()),
        Value::Nil => Ok(&[]),
        _ => Err(failed("an answer of an unexpected kind")),
    }
}

impl Redis {
    /// The ledger's own id, for `ledger.id`.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    fn open_still(&self) -> Result<(), Unavailable> {
        if self.closed.load(Ordering::Acquire) { Err(Unavailable::Closed) } else { Ok(()) }
    }

    /// Notices a ledger that went back in time: a lost failover, an old file.
    fn note(&self, repository: &RepositoryKey, sequence: u64) {
        let mut seen = self.seen.entry(repository.clone()).or_insert(0);
        if sequence < *seen {
            tracing::error!(
                %repository, sequence, seen = *seen,
                "the ledger went back in time: it lost bindings, the registry's own tags are asked again"
            );
            self.named.clear();
        }
        *seen = sequence;
    }

    /// Names the repository in the sorted set, before its first entry.
    async fn name(&self, repository: &RepositoryKey) -> Result<(), Unavailable> {
        if self.named.contains(repository) {
            return Ok(());
        }
        let mut connection = self.shared().await?;
        let member = member_of(repository);
        connection.zadd::<_, _, _, ()>(REPOSITORIES, member, 0).await.map_err(failed)?;
        self.named.insert(repository.clone());
        Ok(())
    }

    async fn shared(&self) -> Result<ConnectionManager, Unavailable> {
        let made = self.shared.get_or_try_init(|| open::manager(&self.client)).await;
        made.cloned().map_err(failed)
    }

    fn call(
        &self,
        repository: &RepositoryKey,
        operation: &str,
        digest: &[u8],
        attempt: &[u8],
        origin: u8,
        tags: &[Tag],
    ) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(self.script.get_hash()).arg(1).arg(hash_of(repository)).arg(operation);
        call.arg(digest).arg(attempt).arg(codec::time_bytes(Timestamp::now())).arg(&[origin][..]);
        for tag in tags {
            call.arg(tag.as_str());
        }
        call
    }

    async fn run(&self, repository: &RepositoryKey, call: &Cmd) -> Result<Done, Unavailable> {
        let mut connection = self.shared().await?;
        let value: Result<Value, RedisError> = call.query_async(&mut connection).await;
        let value = match value {
            Err(error) if is_no_script(&error) => {
                self.load(&mut connection).await?;
                call.query_async(&mut connection).await.map_err(failed)?
            }
            value => value.map_err(failed)?,
        };
        self.done(repository, &value)
    }

    async fn load(
        &self,
        connection: &mut impl redis::aio::ConnectionLike,
    ) -> Result<(), Unavailable> {
        let load = cmd("SCRIPT").arg("LOAD").arg(SCRIPT).to_owned();
        load.query_async::<()>(connection).await.map_err(failed)
    }

    /// A claim, and `WAIT` behind it on the same connection.
    async fn run_and_wait(
        &self,
        repository: &RepositoryKey,
        call: &Cmd,
    ) -> Result<Done, Unavailable> {
        let pooled = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match pooled {
            Some(connection) => connection,
            None => open::connection(&self.client).await.map_err(failed)?,
        };
        let mut both = redis::pipe();
        both.add_command(call.clone());
        both.cmd("WAIT").arg(self.replicas).arg(WAIT.as_millis() as u64);
        let result: Result<(Value, u32), RedisError> = both.query_async(&mut connection).await;
        let (value, confirmed) = match result {
            Err(error) if is_no_script(&error) => {
                self.load(&mut connection).await?;
                both.query_async(&mut connection).await.map_err(failed)?
            }
            // The connection may be in any state: it is not pooled again.
            result => result.map_err(failed)?,
        };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        if confirmed < self.replicas {
            // The claim may exist: harmless, and its image completes it.
            let wanted = self.replicas;
            return Err(failed(format!("{confirmed} of {wanted} replicas confirmed the claim")));
        }
        self.done(repository, &value)
    }

    fn done(&self, repository: &RepositoryKey, value: &Value) -> Result<Done, Unavailable> {
        let Value::Array(parts) = value else {
            return Err(failed("the script's answer is no list"));
        };
        let (Some(status), Some(Value::Int(sequence))) = (parts.first(), parts.get(1)) else {
            return Err(failed("the script's answer is too short"));
        };
        self.note(repository, u64::try_from(*sequence).map_err(failed)?);
        let before = parts[2..].iter().map(|value| entry_of(bytes_of(value)?));
        Ok(Done {
            stands: bytes_of(status)? == b"stands",
            before: before.collect::<Result<_, _>>()?,
        })
    }

    /// The entries that stand against `digest`.
    fn holders(tags: &[Tag], before: Vec<Entry>, digest: &Digest) -> Vec<Holder> {
        let stands = |entry: &Entry| entry.digest().is_some_and(|held| held != digest);
        let pairs = tags.iter().cloned().zip(before);
        pairs.filter(|(_, entry)| stands(entry)).map(|(tag, entry)| Holder { tag, entry }).collect()
    }
}

fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn stored(digest: &Digest) -> Vec<u8> {
    let mut out = Vec::with_capacity(65);
    codec::put_digest(&mut out, digest);
    out
}

#[async_trait]
impl Ledger for Redis {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Vec<Entry>, Unavailable> {
        self.open_still()?;
        let mut call = cmd("HMGET");
        call.arg(hash_of(repository)).arg(SEQUENCE);
        for tag in tags {
            call.arg(tag.as_str());
        }
        let mut connection = self.shared().await?;
        let values: Vec<Value> = call.query_async(&mut connection).await.map_err(failed)?;
        let (sequence, values) = values.split_first().ok_or_else(|| failed("an empty answer"))?;
        let sequence = std::str::from_utf8(bytes_of(sequence)?).map_err(failed)?;
        self.note(
            repository,
            if sequence.is_empty() { 0 } else { sequence.parse().map_err(failed)? },
        );
        values.iter().map(|value| entry_of(bytes_of(value)?)).collect()
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        self.open_still()?;
        self.name(repository).await?;
        let call = self.call(repository, "C", &stored(digest), attempt.as_bytes(), 0, tags);
        let done = if self.replicas == 0 {
            self.run(repository, &call).await?
        } else {
            self.run_and_wait(repository, &call).await?
        };
        if done.stands {
            return Ok(Claim::Held(Self::holders(tags, done.before, digest)));
        }
        Ok(Claim::granted(tags.iter().zip(&done.before)))
    }

    async fn seal(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
    ) -> Result<Seal, Unavailable> {
        self.open_still()?;
        self.name(repository).await?;
        let origin = codec::origin_bits(origin);
        let call = self.call(repository, "S", &stored(digest), b"", origin, tags);
        let done = self.run(repository, &call).await?;
        Ok(if done.stands {
            Seal::Conflict(Self::holders(tags, done.before, digest))
        } else {
            Seal::Sealed
        })
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        self.open_still()?;
        let call = self.call(repository, "A", &stored(digest), attempt.as_bytes(), 0, tags);
        self.run(repository, &call).await.map(drop)
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        self.open_still()?;
        let tags = std::slice::from_ref(tag);
        let call = self.call(repository, "R", &codec::token_bytes(token), b"", 0, tags);
        let done = self.run(repository, &call).await?;
        let freed = matches!(
            done.before.as_slice(),
            [Entry::Sealed(sealed)] if sealed.token() == token
        );
        Ok(if freed { Release::Freed } else { Release::Changed })
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.open_still()?;
        let call = self.call(repository, "W", &stored(digest), b"", 0, tags);
        self.run(repository, &call).await.map(drop)
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Vec<Holder>, Unavailable> {
        self.open_still()?;
        let call = self.call(repository, "X", b"", b"", 0, tags);
        let done = self.run(repository, &call).await?;
        Ok(Holder::present(tags, done.before))
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.open_still()?;
        let mut tags = BTreeSet::new();
        let mut cursor = 0_u64;
        // In pieces: a repository may have many thousand tags, and Redis serves others meanwhile.
        loop {
            let mut call = cmd("HSCAN");
            call.arg(hash_of(repository)).arg(cursor).arg("COUNT").arg(500);
            let mut connection = self.shared().await?;
            let (next, page): (u64, Vec<(Vec<u8>, Vec<u8>)>) =
                call.query_async(&mut connection).await.map_err(failed)?;
            for (field, value) in page {
                if field != SEQUENCE.as_bytes() && entry_of(&value)?.digest() == Some(digest) {
                    let text = std::str::from_utf8(&field).map_err(failed)?;
                    tags.insert(Tag::parse(text).map_err(failed)?);
                }
            }
            if next == 0 {
                return Ok(tags.into_iter().collect());
            }
            cursor = next;
        }
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.open_still()?;
        let mut connection = self.shared().await?;
        let mut out = Vec::new();
        let mut from = after.map_or("-".to_owned(), |(key, _)| format!("[{}", member_of(key)));
        while out.len() < limit {
            let mut call = cmd("ZRANGE");
            call.arg(REPOSITORIES).arg(&from).arg("+").arg("BYLEX").arg("LIMIT").arg(0).arg(1);
            let found: Vec<String> = call.query_async(&mut connection).await.map_err(failed)?;
            let Some(member) = found.into_iter().next() else { break };
            let repository = repository_of(&member)?;
            let fields: Vec<(Vec<u8>, Vec<u8>)> =
                connection.hgetall(hash_of(&repository)).await.map_err(failed)?;
            let mut entries = Vec::new();
            for (field, value) in fields {
                if field == SEQUENCE.as_bytes() {
                    continue;
                }
                let text = std::str::from_utf8(&field).map_err(failed)?;
                let tag = Tag::parse(text).map_err(failed)?;
                if after.is_none_or(|after| (&repository, &tag) > (&after.0, &after.1)) {
                    entries.push((tag, entry_of(&value)?));
                }
            }
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            let listed = |(tag, entry)| Listed { repository: repository.clone(), tag, entry };
            out.extend(entries.into_iter().map(listed));
            from = format!("({member}");
        }
        out.truncate(limit);
        Ok(out)
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        self.open_still()?;
        let mut connection = self.shared().await?;
        let id: Option<String> = connection.hget(META, "id").await.map_err(failed)?;
        match id {
            Some(id) if id == self.identity.id => Ok(self.identity.clone()),
            _ => Err(failed("the Redis is not the one it was: its ledger's id is gone or another")),
        }
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        self.open_still()?;
        let mut connection = self.shared().await?;
        let sequence: Option<u64> =
            connection.hget(hash_of(repository), SEQUENCE).await.map_err(failed)?;
        Ok(sequence.unwrap_or(0))
    }

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        self.open_still()?;
        let mut connection = self.shared().await?;
        let now = Timestamp::now().seconds();
        let said = format!("{} {now}", own.rules);
        connection.hset::<_, _, _, ()>(PROXIES, &own.proxy, said).await.map_err(failed)?;
        let all: Vec<(String, String)> = connection.hgetall(PROXIES).await.map_err(failed)?;
        let mut others = Vec::new();
        for (proxy, said) in all.into_iter().filter(|(proxy, _)| *proxy != own.proxy) {
            let (rules, at) = said.split_once(' ').unwrap_or((&said, "0"));
            // Clocks of proxies may differ a little; nothing but an alarm depends on it.
            if now.saturating_sub(at.parse().unwrap_or(0)) <= GONE {
                others.push(Announcement { proxy, rules: rules.to_owned() });
            } else {
                connection.hdel::<_, _, ()>(PROXIES, &proxy).await.map_err(failed)?;
            }
        }
        Ok(others)
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests;
