//! The ledger of a single node: one file, one process, every answer on the disk.
//!
//! [`redb`] gives atomic, durable transactions and locks the file. All changes go through one
//! writer thread that commits as many waiting operations as there are at once, with two-phase
//! commit: tags are chosen by clients, and the one-phase commit rests on checksums alone.

mod open;
mod writer;

pub use open::{Expected, OpenError};

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use super::transitions::{Operation as Rule, Outcome};
use super::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, Entry,
    FreedNumber, Holder, Identity, Ledger, Listed, Lookup, Origin, Position, Release,
    RepositoryKey, Token, Unavailable, codec,
};
use crate::name::{Digest, RepositoryName, Tag, UpstreamName};
use writer::{Change, Operation, Reply, Writer};

/// `upstream \0 repository \0 tag` to the entry's bytes.
const ENTRIES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("entries");
/// `upstream \0 repository \0 digest tag` to nothing: which tags have a digest.
const BY_DIGEST: TableDefinition<'static, &[u8], ()> = TableDefinition::new("by-digest");
/// `upstream \0 repository \0` to the sequence number.
const SEQUENCES: TableDefinition<'static, &[u8], u64> = TableDefinition::new("sequences");
/// `upstream \0 repository \0` to the freed number.
const FREED: TableDefinition<'static, &[u8], u64> = TableDefinition::new("freed");
/// `upstream \0 repository \0 digest` to the delete mark.
const MARKS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("delete-marks");

pub struct Embedded {
    identity: Identity,
    file: Arc<LedgerFile>,
    writer: Writer,
    /// Keeps other processes out for as long as it is held, whatever becomes of the file.
    lock: Mutex<Option<File>>,
}

/// The open file. The writer replaces it after a failure: redb refuses all work after one, until
/// the file is opened anew.
struct LedgerFile {
    path: PathBuf,
    /// `None` while it is not open.
    database: ArcSwapOption<Database>,
    closed: AtomicBool,
    /// Held while the file is opened anew.
    mending: Mutex<()>,
}

impl LedgerFile {
    /// The open file; after a failure, opened anew. Blocks.
    fn database(&self) -> Result<Arc<Database>, Unavailable> {
        if let Some(database) = self.database.load_full() {
            return Ok(database);
        }
        let _one = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return Err(Unavailable::Closed);
        }
        if let Some(database) = self.database.load_full() {
            return Ok(database);
        }
        // While somebody still reads from the old handle this fails, and is tried again.
        let database = Arc::new(Database::open(&self.path).map_err(failed)?);
        self.database.store(Some(Arc::clone(&database)));
        tracing::info!(file = %self.path.display(), "the ledger is open again");
        Ok(database)
    }
}

impl Embedded {
    /// Opens the ledger in this folder, creating both at the first start.
    ///
    /// # Errors
    /// See [`OpenError`]; its text tells the operator what to do.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Self::open_as(folder, &Expected::Any)
    }

    /// As `open`, where only a certain ledger may be there.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_as(folder: &Path, expected: &Expected) -> Result<Self, OpenError> {
        let open::Opened { database, identity, path, lock } = open::open(folder, expected)?;
        let file = Arc::new(LedgerFile {
            path,
            database: ArcSwapOption::new(Some(Arc::new(database))),
            closed: AtomicBool::new(false),
            mending: Mutex::new(()),
        });
        let writer = Writer::start(Arc::clone(&file)).map_err(|source| OpenError::Io {
            what: "the ledger's thread could not start".into(),
            source,
        })?;
        Ok(Self { identity, file, writer, lock: Mutex::new(Some(lock)) })
    }

    /// The ledger's own id, for `ledger.id`.
    pub fn id(&self) -> &str {
        &self.identity.id
    }

    async fn write(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        change: Change,
    ) -> Result<Reply, Unavailable> {
        let (reply, answered) = oneshot::channel();
        let operation =
            Operation { repository: repository.clone(), tags: tags.to_vec(), change, reply };
        self.writer.submit(operation)?;
        answered.await.map_err(|_| Unavailable::Closed)?
    }

    /// An operation of the table: what it came to, each tag's entry before it, and the freed number.
    async fn run(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        operation: Rule,
    ) -> Result<(Outcome, Vec<(Tag, Entry)>, FreedNumber), Unavailable> {
        match self.write(repository, tags, Change::Table(operation)).await? {
            Reply::Table { outcome, before, freed } => Ok((outcome, before, freed)),
            Reply::Begun(_) | Reply::NoMark => Err(failed("the writer answered something else")),
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        act: impl FnOnce(&redb::ReadTransaction) -> Result<T, Unavailable> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let file = Arc::clone(&self.file);
        let reading = tokio::task::spawn_blocking(move || {
            let database = file.database()?;
            let transaction = database.begin_read().map_err(failed)?;
            act(&transaction)
        });
        reading.await.map_err(failed)?
    }
}

/// Any failure of the store, as its text.
fn failed(error: impl std::fmt::Display) -> Unavailable {
    Unavailable::Store(error.to_string())
}

/// `upstream \0 repository \0`. No name holds a NUL, so keys of a repository are a range.
fn prefix(repository: &RepositoryKey) -> Vec<u8> {
    let RepositoryKey { upstream, repository } = repository;
    [upstream.as_str().as_bytes(), b"\0", repository.as_str().as_bytes(), b"\0"].concat()
}

fn entry_key(repository: &RepositoryKey, tag: &Tag) -> Vec<u8> {
    let mut key = prefix(repository);
    key.extend(tag.as_str().as_bytes());
    key
}

fn digest_prefix(repository: &RepositoryKey, digest: &Digest) -> Vec<u8> {
    let mut key = prefix(repository);
    codec::put_digest(&mut key, digest);
    key
}

fn digest_key(repository: &RepositoryKey, digest: &Digest, tag: &Tag) -> Vec<u8> {
    let mut key = digest_prefix(repository, digest);
    key.extend(tag.as_str().as_bytes());
    key
}

/// The tags of an index of digests that stand behind this prefix.
fn tags_with(
    table: &impl ReadableTable<&'static [u8], ()>,
    prefix: &[u8],
) -> Result<Vec<Tag>, Unavailable> {
    let mut tags = Vec::new();
    for row in table.range(prefix..).map_err(failed)? {
        let (key, _) = row.map_err(failed)?;
        let Some(tag) = key.value().strip_prefix(prefix) else { break };
        let text = std::str::from_utf8(tag).map_err(failed)?;
        tags.push(Tag::parse(text).map_err(failed)?);
    }
    Ok(tags)
}

fn position_of(key: &[u8]) -> Result<Position, Unavailable> {
    let corrupt = || failed(codec::Corrupt);
    let text = std::str::from_utf8(key).map_err(|_| corrupt())?;
    let mut parts = text.splitn(3, '\0');
    let mut next = || parts.next().ok_or_else(corrupt);
    let upstream = UpstreamName::parse(next()?).map_err(failed)?;
    let repository = RepositoryName::parse(next()?).map_err(failed)?;
    let tag = Tag::parse(next()?).map_err(failed)?;
    Ok((RepositoryKey { upstream, repository }, tag))
}

fn read_entry(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
) -> Result<Entry, Unavailable> {
    match table.get(key).map_err(failed)? {
        Some(bytes) => codec::decode(bytes.value()).map_err(failed),
        None => Ok(Entry::Absent),
    }
}

#[async_trait]
impl Ledger for Embedded {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        let keys: Vec<_> = tags.iter().map(|tag| entry_key(repository, tag)).collect();
        let own = prefix(repository);
        self.read(move |transaction| {
            let table = transaction.open_table(ENTRIES).map_err(failed)?;
            let entries = keys.iter().map(|key| read_entry(&table, key)).collect::<Result<_, _>>();
            let freed = transaction.open_table(FREED).map_err(failed)?;
            let freed = freed.get(own.as_slice()).map_err(failed)?.map_or(0, |n| n.value());
            Ok(Lookup { entries: entries?, freed: FreedNumber(freed) })
        })
        .await
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        let claim = Rule::Claim { digest: *digest, attempt };
        let (outcome, before, _) = self.run(repository, tags, claim).await?;
        Ok(Claim::of(outcome, &before, attempt))
    }

    async fn bind(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable> {
        let bind = Rule::Bind { digest: *digest, attempt, freed };
        let (outcome, _, now) = self.run(repository, tags, bind).await?;
        Ok(Bind::of(outcome, now))
    }

    async fn adopt(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable> {
        let adopt = Rule::Adopt { digest: *digest, origin, freed };
        self.run(repository, tags, adopt).await.map(|(outcome, ..)| outcome.into())
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        self.run(repository, tags, Rule::Abort { digest: *digest, attempt }).await.map(drop)
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        let tags = std::slice::from_ref(tag);
        self.run(repository, tags, Rule::Release { token })
            .await
            .map(|(outcome, ..)| outcome.into())
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.run(repository, tags, Rule::Withdraw { digest: *digest }).await.map(drop)
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        let (tags, supersede) = Rule::supersede(seen);
        let (outcome, before, _) = self.run(repository, &tags, supersede).await?;
        Ok(outcome.dropped(&before))
    }

    async fn invalidate(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        let (_, before, freed) = self.run(repository, tags, Rule::Invalidate).await?;
        let entries = before.into_iter().map(|(_, entry)| entry).collect();
        Ok(Lookup { entries, freed: freed.next() })
    }

    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        let begin = Change::BeginDelete { digest: *digest, attempt };
        match self.write(repository, &[], begin).await? {
            Reply::Begun(begun) => Ok(begun),
            Reply::Table { .. } | Reply::NoMark => {
                Err(failed("the writer answered something else"))
            }
        }
    }

    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        let ending = Change::EndDelete { digest: *digest, attempts: attempts.to_vec(), end };
        match self.write(repository, tags, ending).await? {
            Reply::Table { outcome, before, .. } => Ok(Ended::Done(outcome.changed(&before))),
            Reply::NoMark => Ok(Ended::NoMark),
            Reply::Begun(_) => Err(failed("the writer answered something else")),
        }
    }

    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        let keys: Vec<_> =
            digests.iter().map(|digest| (*digest, digest_prefix(repository, digest))).collect();
        self.read(move |transaction| {
            let table = transaction.open_table(MARKS).map_err(failed)?;
            let mut marked = Vec::new();
            for (digest, key) in keys {
                if table.get(key.as_slice()).map_err(failed)?.is_some() {
                    marked.push(digest);
                }
            }
            Ok(marked)
        })
        .await
    }

    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        let own = prefix(repository);
        self.read(move |transaction| {
            let table = transaction.open_table(MARKS).map_err(failed)?;
            let mut marks = Vec::new();
            for row in table.range(own.as_slice()..).map_err(failed)? {
                let (key, value) = row.map_err(failed)?;
                let Some(digest) = key.value().strip_prefix(own.as_slice()) else { break };
                let digest = codec::decode_digest(digest).map_err(failed)?;
                marks.push((digest, codec::decode_mark(value.value()).map_err(failed)?));
            }
            Ok(marks)
        })
        .await
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        let prefix = digest_prefix(repository, digest);
        self.read(move |transaction| {
            tags_with(&transaction.open_table(BY_DIGEST).map_err(failed)?, &prefix)
        })
        .await
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        // The smallest key above `after` is the same key with a NUL behind it.
        let from = after.map_or_else(Vec::new, |(repository, tag)| {
            let mut key = entry_key(repository, tag);
            key.push(0);
            key
        });
        self.read(move |transaction| {
            let table = transaction.open_table(ENTRIES).map_err(failed)?;
            let rows = table.range(from.as_slice()..).map_err(failed)?.take(limit);
            rows.map(|row| {
                let (key, value) = row.map_err(failed)?;
                let (repository, tag) = position_of(key.value())?;
                let entry = codec::decode(value.value()).map_err(failed)?;
                Ok(Listed { repository, tag, entry })
            })
            .collect()
        })
        .await
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        if !self.writer.is_alive() {
            if self.file.closed.load(Ordering::Acquire) {
                return Err(Unavailable::Closed);
            }
            return Err(failed("its writer has ended; the log says why"));
        }
        // Whether it can be read is seen by reading.
        let id = self
            .read(|transaction| {
                let table = transaction.open_table(open::META).map_err(failed)?;
                let id = table.get("id").map_err(failed)?;
                Ok(id.map(|value| value.value().to_owned()))
            })
            .await?;
        match id {
            Some(id) if id == self.identity.id => Ok(self.identity.clone()),
            _ => Err(failed("its file is another ledger's")),
        }
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        let key = prefix(repository);
        self.read(move |transaction| {
            let table = transaction.open_table(SEQUENCES).map_err(failed)?;
            let found = table.get(key.as_slice()).map_err(failed)?;
            Ok(found.map_or(0, |value| value.value()))
        })
        .await
    }

    async fn announce(&self, _own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        // One process, one proxy.
        Ok(Vec::new())
    }

    async fn close(&self) {
        self.writer.close().await;
        self.file.closed.store(true, Ordering::Release);
        self.file.database.store(None);
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests;
