//! The one thread that changes the file: it commits every operation that waits, together.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use redb::{Database, ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::super::table::{self, Stamp};
use super::super::{
    AttemptId, Entry, Holder, Origin, RepositoryKey, Timestamp, Token, Unavailable, codec,
};
use super::{BY_DIGEST, ENTRIES, LedgerFile, SEQUENCES, digest_key, entry_key, failed, prefix};
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
    pub reply: oneshot::Sender<Result<Outcome, Unavailable>>,
}

pub(super) enum Change {
    Claim { digest: Digest, attempt: AttemptId },
    Seal { digest: Digest, origin: Origin },
    Abort { digest: Digest, attempt: AttemptId },
    Release { token: Token },
    Withdraw { digest: Digest },
    Supersede,
}

/// What became of the whole set.
pub(super) enum Outcome {
    /// Took effect; each tag with the entry it had before.
    Done { before: Vec<(Tag, Entry)> },
    /// Nothing was changed, because of these.
    Standing(Vec<Holder>),
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
type Applied = Result<Outcome, Unavailable>;

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
    let mut entries = transaction.open_table(ENTRIES).map_err(failed)?;
    let mut sequences = transaction.open_table(SEQUENCES).map_err(failed)?;
    let sequence_key = prefix(repository);
    let sequence =
        sequences.get(sequence_key.as_slice()).map_err(failed)?.map_or(0, |value| value.value());
    let stamp = Stamp { now: Timestamp::now(), sequence: sequence + 1 };

    let mut before = Vec::with_capacity(tags.len());
    let mut puts = Vec::new();
    let mut standing = Vec::new();
    for tag in tags {
        let key = entry_key(repository, tag);
        // One entry that can't be read is no reason to refuse the rest of the batch.
        let entry = match entries.get(key.as_slice()).map_err(failed)? {
            None => Entry::Absent,
            Some(bytes) => match codec::decode(bytes.value()) {
                Ok(entry) => entry,
                Err(corrupt) => return Ok(Err(failed(corrupt))),
            },
        };
        match change.on(&entry, stamp) {
            table::Change::Keep => {}
            table::Change::Put(new) => puts.push((key, tag, entry.clone(), new)),
            table::Change::Stands => {
                standing.push(Holder { tag: tag.clone(), entry: entry.clone() });
            }
        }
        before.push((tag.clone(), entry));
    }
    if !standing.is_empty() {
        return Ok(Ok(Outcome::Standing(standing)));
    }
    if puts.is_empty() {
        return Ok(Ok(Outcome::Done { before }));
    }
    *changed = true;
    let mut by_digest = transaction.open_table(BY_DIGEST).map_err(failed)?;
    sequences.insert(sequence_key.as_slice(), stamp.sequence).map_err(failed)?;
    for (key, tag, old, new) in puts {
        if let Some(digest) = old.digest() {
            let index = digest_key(repository, digest, tag);
            by_digest.remove(index.as_slice()).map_err(failed)?;
        }
        if let Some(digest) = new.digest() {
            let index = digest_key(repository, digest, tag);
            by_digest.insert(index.as_slice(), ()).map_err(failed)?;
        }
        match codec::encode(&new) {
            Some(bytes) => entries.insert(key.as_slice(), bytes.as_slice()).map_err(failed)?,
            None => entries.remove(key.as_slice()).map_err(failed)?,
        };
    }
    Ok(Ok(Outcome::Done { before }))
}

impl Change {
    fn on(&self, entry: &Entry, stamp: Stamp) -> table::Change {
        match self {
            Self::Claim { digest, attempt } => table::claim(entry, digest, *attempt, stamp),
            Self::Seal { digest, origin } => table::seal(entry, digest, *origin, stamp),
            Self::Abort { digest, attempt } => table::abort(entry, digest, *attempt),
            Self::Release { token } => table::release(entry, *token),
            Self::Withdraw { digest } => table::withdraw(entry, digest, stamp),
            Self::Supersede => table::supersede(entry),
        }
    }
}
