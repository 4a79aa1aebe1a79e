//! One call of the script, and what it answered.

use redis::{Cmd, Value, cmd};

use super::{FREED_IN, META, Mark, Redis, bytes_of, entry_of, failed, hash_of, member_of};
use crate::ledger::rollback::restoring;
use crate::ledger::transitions::{self, Around, Outcome, Stamp};
use crate::ledger::{
    AttemptId, DeleteMark, Entry, FreedNumber, RepositoryKey, Timestamp, Unavailable, codec,
};
use crate::name::Tag;

/// A call of the script, beside its tags.
pub(super) struct Script<'c> {
    pub letter: char,
    /// The digest, or a token.
    pub subject: Vec<u8>,
    /// The attempts that take part, one behind the other.
    pub attempts: Vec<u8>,
    pub origin: u8,
    pub freed: FreedNumber,
    pub tags: &'c [Tag],
    /// Of each tag: tokens, to supersede; numbers and then entries, to restore.
    pub more: Vec<Vec<u8>>,
}

impl<'c> Script<'c> {
    pub fn new(letter: char, subject: Vec<u8>, tags: &'c [Tag]) -> Self {
        let freed = FreedNumber::default();
        let (attempts, more) = (Vec::new(), Vec::new());
        Self { letter, subject, attempts, origin: 0, freed, tags, more }
    }

    pub fn by(mut self, attempt: AttemptId) -> Self {
        self.attempts = attempt.as_bytes().to_vec();
        self
    }

    /// Whether it binds something new, which nobody may in a ledger that has lost entries.
    pub fn binds(&self) -> bool {
        matches!(self.letter, 'C' | 'D')
    }

    /// Whether it may free something.
    pub fn frees(&self) -> bool {
        matches!(self.letter, 'A' | 'R' | 'W' | 'X' | 'E')
    }

    pub fn since(mut self, freed: FreedNumber) -> Self {
        self.freed = freed;
        self
    }
}

/// What the script answered.
pub(super) struct Done {
    pub status: Vec<u8>,
    pub sequence: u64,
    pub freed: FreedNumber,
    pub mark: Option<DeleteMark>,
    pub before: Vec<(Tag, Entry)>,
}

impl Done {
    /// What the operation came to, by the same table as everywhere. The script has the last word: an
    /// answer that the table would not give is an error.
    pub fn outcome(&self, operation: &transitions::Operation) -> Result<Outcome, Unavailable> {
        let stamp = Stamp { now: Timestamp::now(), sequence: 0 };
        let around = Around { freed: self.freed, marked: self.mark.is_some() };
        let outcome = operation.on(&self.before, around, stamp);
        let status: &[u8] = match &outcome {
            Outcome::Done { .. } => b"done",
            Outcome::Standing(_) => b"stands",
            Outcome::Gone(_) => b"gone",
            Outcome::Freed => b"freed",
            Outcome::Deleting => b"deleting",
        };
        if status == self.status {
            Ok(outcome)
        } else {
            Err(failed("the script's answer does not follow from the entries"))
        }
    }
}

impl Redis {
    pub(super) fn command(&self, repository: &RepositoryKey, script: &Script<'_>) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(self.script.get_hash());
        // In a Cluster, keys of one call must share a slot.
        if self.reach.is_clustered() {
            call.arg(1).arg(hash_of(repository));
        } else {
            call.arg(3).arg(hash_of(repository)).arg(META).arg(FREED_IN);
        }
        let waits = if self.replicas > 0 { "+" } else { "" };
        call.arg(format!("{}{waits}", script.letter));
        call.arg(&script.subject).arg(&script.attempts).arg(codec::time_bytes(Timestamp::now()));
        call.arg(&[script.origin][..]).arg(script.freed.0).arg(member_of(repository));
        let whole = self.whole().clone();
        call.arg(self.mark(repository).sequence);
        call.arg(whole.id.unwrap_or_default()).arg(whole.loss);
        call.arg(script.tags.len());
        for tag in script.tags {
            call.arg(tag.as_str());
        }
        for more in &script.more {
            call.arg(more);
        }
        call
    }

    /// What replicas must have before it is told. The operation's `+` makes a repeated call wait for
    /// what the first one wrote.
    pub(super) async fn run(
        &self,
        repository: &RepositoryKey,
        script: &Script<'_>,
    ) -> Result<Done, Unavailable> {
        self.open_still()?;
        if script.frees() {
            self.announce_freeing(repository).await?;
        }
        let (key, begun) = (hash_of(repository), self.mark(repository));
        let losses = self.losses.of(repository);
        let call = self.command(repository, script);
        // By what the call names as known: what is known later was noted as a loss before.
        if script.binds() {
            self.losses.check(repository)?;
        }
        let value = self.reach.ask_and_wait(&key, &call, self.replicas).await;
        if script.frees() {
            // One that failed may have happened.
            self.announce_freeing(repository).await?;
        }
        let done = self.done(repository, script.tags, begun, &value?)?;
        if done.status == b"lost" {
            return Err(restoring());
        }
        self.confirm(repository, done.sequence, losses);
        Ok(done)
    }

    fn done(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        begun: Mark,
        value: &Value,
    ) -> Result<Done, Unavailable> {
        let Value::Array(parts) = value else {
            return Err(failed("the script's answer is no list"));
        };
        let [status, Value::Int(sequence), Value::Int(freed), mark, before @ ..] = parts.as_slice()
        else {
            return Err(failed("the script's answer is too short"));
        };
        let sequence = u64::try_from(*sequence).map_err(failed)?;
        self.note(repository, begun, sequence);
        let mark = bytes_of(mark)?;
        let mark = (!mark.is_empty()).then(|| codec::decode_mark(mark)).transpose();
        let before = before.iter().map(|value| entry_of(bytes_of(value)?));
        let before = before.collect::<Result<Vec<_>, _>>()?;
        Ok(Done {
            status: bytes_of(status)?.to_vec(),
            sequence,
            freed: FreedNumber(u64::try_from(*freed).map_err(failed)?),
            mark: mark.map_err(failed)?,
            before: tags.iter().cloned().zip(before).collect(),
        })
    }
}
