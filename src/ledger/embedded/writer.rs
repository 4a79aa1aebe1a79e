//! The one thread that changes the file: it commits every operation that waits, together.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use redb::{Database, ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::super::transitions::{self, Around, Outcome, Stamp};
use super::super::{
    AttemptId, Begun, DeleteEnd, Entry, FreedNumber, Holder, RepositoryKey, Timestamp, Unavailable,
    codec,
};
use super::{
    BY_DIGEST, ENTRIES, FREED, LedgerFile, MARKS, SEQUENCES, digest_key, digest_prefix, entry_key,
    failed, prefix, read_entry,
};
use crate::name::{Digest, Tag};

/// More operations than this wait for the next commit, so that one commit stays short.
const BATCH: usize = 256;
/// More than this waiting is overload, and answered as such.
const QUEUE: usize = 4096;

/// One call on the ledger that may change it.
pub(super) struct Operation {
    pub repository: RepositoryKey,
    pub tags: Vec<Tag>,
    pub change: Change,
    pub reply: oneshot::Sender<Result<Reply, Unavailable>>,
}

pub(super) enum Change {
    Table(transitions::Operation),
    BeginDelete { digest: Digest, attempt: AttemptId },
    EndDelete { digest: Digest, attempts: Vec<AttemptId>, end: DeleteEnd },
}

/// What became of a call.
pub(super) enum Reply {
    /// What the operation came to, with each tag's entry before it and the freed number then.
    Table {
        outcome: Outcome,
        before: Vec<(Tag, Entry)>,
        freed: FreedNumber,
    },
    Begun(Begun),
    /// The mark of the DELETE that was to end does not stand.
    NoMark,
}

pub(super) struct Writer {
    /// `None` once closed: no operation is accepted any more.
    queue: Mutex<Option<mpsc::Sender<Operation>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Writer {
    pub fn start(file: Arc<LedgerFile>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let thread = thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || run(&file, receiver))?;
        Ok(Self { queue: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    pub fn submit(&self, operation: Operation) -> Result<(), Unavailable> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = queue.as_ref().ok_or(Unavailable::Closed)?;
        queue.try_send(operation).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => failed("too many operations wait for the disk"),
            mpsc::error::TrySendError::Closed(_) => Unavailable::Closed,
        })
    }

    /// False after a panic of the thread.
    pub fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Lets the operations already accepted finish, then ends the thread.
    pub async fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Only a panic of the thread itself is an error here; it has been reported then,
            // and every waiting operation has got `Closed`.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

fn run(file: &LedgerFile, mut queue: mpsc::Receiver<Operation>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.push(next);
        }
        let committed = file.database().and_then(|database| commit(&database, &batch));
        match committed {
            Ok(outcomes) => {
                for (operation, outcome) in batch.into_iter().zip(outcomes) {
                    // The caller may have left; its operation has taken effect all the same.
                    let _ = operation.reply.send(outcome);
                }
            }
            Err(error) => {
                tracing::error!(%error, file = %file.path.display(), "the ledger failed");
                // Nothing of the batch is on the disk. redb does no more with this handle.
                file.database.store(None);
                for operation in batch {
                    let _ = operation.reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// What became of one operation of a batch that was committed.
type Applied = Result<Reply, Unavailable>;

/// Applies the batch in one transaction. At its return all of it is on the disk, or none. The inner
/// errors are of single operations, which changed nothing.
fn commit(database: &Database, batch: &[Operation]) -> Result<Vec<Applied>, Unavailable> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction.set_two_phase_commit(true);
    let mut changed = false;
    let outcomes: Result<Vec<_>, _> =
        batch.iter().map(|operation| apply(&transaction, operation, &mut changed)).collect();
    let outcomes = outcomes?;
    if changed {
        transaction.commit().map_err(failed)?;
    } else {
        // What the outcomes tell was on the disk before: there is nothing to wait for.
        transaction.abort().map_err(failed)?;
    }
    Ok(outcomes)
}

fn apply(
    transaction: &WriteTransaction,
    operation: &Operation,
    changed: &mut bool,
) -> Result<Applied, Unavailable> {
    let Operation { repository, tags, change, .. } = operation;
    match change {
        Change::Table(operation) => {
            let marked = match operation.digest() {
                Some(digest) => {
                    let marks = transaction.open_table(MARKS).map_err(failed)?;
                    let key = digest_prefix(repository, digest);
                    marks.get(key.as_slice()).map_err(failed)?.is_some()
                }
                None => false,
            };
            on_table(transaction, repository, tags, operation, marked, changed)
        }
        Change::BeginDelete { digest, attempt } => {
            *changed = true;
            begin_delete(transaction, repository, digest, *attempt)
        }
        Change::EndDelete { digest, attempts, end } => {
            let key = digest_prefix(repository, digest);
            {
                let mut marks = transaction.open_table(MARKS).map_err(failed)?;
                let mark = match marks.get(key.as_slice()).map_err(failed)? {
                    Some(bytes) => Some(codec::decode_mark(bytes.value()).map_err(failed)?),
                    None => None,
                };
                if !transitions::stands(mark.as_ref(), attempts) {
                    return Ok(Ok(Reply::NoMark));
                }
                *changed = true;
                match transitions::unmarked(mark, attempts) {
                    Some(left) => {
                        let bytes = codec::encode_mark(&left);
                        marks.insert(key.as_slice(), bytes.as_slice()).map_err(failed)?
                    }
                    None => marks.remove(key.as_slice()).map_err(failed)?,
                };
            }
            let operation = transitions::Operation::EndDelete { digest: *digest, end: *end };
            on_table(transaction, repository, tags, &operation, false, changed)
        }
    }
}

fn begin_delete(
    transaction: &WriteTransaction,
    repository: &RepositoryKey,
    digest: &Digest,
    attempt: AttemptId,
) -> Result<Applied, Unavailable> {
    let key = digest_prefix(repository, digest);
    let mut marks = transaction.open_table(MARKS).map_err(failed)?;
    let before = match marks.get(key.as_slice()).map_err(failed)? {
        Some(bytes) => Some(codec::decode_mark(bytes.value()).map_err(failed)?),
        None => None,
    };
    let earlier = before.iter().flat_map(|mark| mark.attempts.clone());
    let earlier = earlier.filter(|other| *other != attempt).collect();
    let mark = transitions::marked(before, attempt, Timestamp::now());
    marks.insert(key.as_slice(), codec::encode_mark(&mark).as_slice()).map_err(failed)?;
    let entries = transaction.open_table(ENTRIES).map_err(failed)?;
    let by_digest = transaction.open_table(BY_DIGEST).map_err(failed)?;
    let mut holders = Vec::new();
    for tag in super::tags_with(&by_digest, &key)? {
        let entry = read_entry(&entries, &entry_key(repository, &tag))?;
        holders.push(Holder { tag, entry });
    }
    Ok(Ok(Reply::Begun(Begun { holders, earlier })))
}

/// Applies an operation of the table.
fn on_table(
    transaction: &WriteTransaction,
    repository: &RepositoryKey,
    tags: &[Tag],
    operation: &transitions::Operation,
    marked: bool,
    changed: &mut bool,
) -> Result<Applied, Unavailable> {
    let mut entries = transaction.open_table(ENTRIES).map_err(failed)?;
    let mut sequences = transaction.open_table(SEQUENCES).map_err(failed)?;
    let mut freed_numbers = transaction.open_table(FREED).map_err(failed)?;
    let key = prefix(repository);
    let number = |table: &Table<'_, &[u8], u64>| {
        Ok(table.get(key.as_slice()).map_err(failed)?.map_or(0, |value| value.value()))
    };
    let stamp = Stamp { now: Timestamp::now(), sequence: number(&sequences)? + 1 };
    let freed = FreedNumber(number(&freed_numbers)?);
    let mut before = Vec::with_capacity(tags.len());
    for tag in tags {
        // One entry that can't be read is no reason to refuse the rest of the batch.
        match read_entry(&entries, &entry_key(repository, tag)) {
            Ok(entry) => before.push((tag.clone(), entry)),
            Err(error) => return Ok(Err(error)),
        }
    }
    let outcome = operation.on(&before, Around { freed, marked }, stamp);
    if let Outcome::Done { puts, frees } = &outcome
        && (*frees || !puts.is_empty())
    {
        *changed = true;
        sequences.insert(key.as_slice(), stamp.sequence).map_err(failed)?;
        if *frees {
            freed_numbers.insert(key.as_slice(), freed.next().0).map_err(failed)?;
        }
        let mut by_digest = transaction.open_table(BY_DIGEST).map_err(failed)?;
        for (n, new) in puts {
            let (tag, old) = &before[*n];
            put(&mut entries, &mut by_digest, repository, tag, old, new)?;
        }
    }
    Ok(Ok(Reply::Table { outcome, before, freed }))
}

fn put(
    entries: &mut Table<'_, &[u8], &[u8]>,
    by_digest: &mut Table<'_, &[u8], ()>,
    repository: &RepositoryKey,
    tag: &Tag,
    old: &Entry,
    new: &Entry,
) -> Result<(), Unavailable> {
    if let Some(digest) = old.digest() {
        let index = digest_key(repository, digest, tag);
        by_digest.remove(index.as_slice()).map_err(failed)?;
    }
    if let Some(digest) = new.digest() {
        let index = digest_key(repository, digest, tag);
        by_digest.insert(index.as_slice(), ()).map_err(failed)?;
    }
    let key = entry_key(repository, tag);
    match codec::encode(new) {
        Some(bytes) => entries.insert(key.as_slice(), bytes.as_slice()).map_err(failed)?,
        None => entries.remove(key.as_slice()).map_err(failed)?,
    };
    Ok(())
}
