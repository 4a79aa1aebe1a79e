//! One call of the script, and what it answered.

use super::failed;
use crate::ledger::table::{self, Around, Outcome, Stamp};
use crate::ledger::{AttemptId, DeleteMark, Entry, FreedNumber, Timestamp, Unavailable};
use crate::name::Tag;

/// A call of the script, beside its tags.
pub(super) struct Script<'c> {
    /// Whether replicas must have what it wrote.
    pub durable: bool,
    pub letter: char,
    /// The digest, or a token.
    pub subject: Vec<u8>,
    /// The attempts that take part, one behind the other.
    pub attempts: Vec<u8>,
    pub origin: u8,
    pub freed: FreedNumber,
    pub tags: &'c [Tag],
    /// Of each tag, to supersede.
    pub tokens: Vec<Vec<u8>>,
}

impl<'c> Script<'c> {
    pub fn new(letter: char, subject: Vec<u8>, tags: &'c [Tag]) -> Self {
        let freed = FreedNumber::default();
        let (attempts, tokens) = (Vec::new(), Vec::new());
        Self { durable: true, letter, subject, attempts, origin: 0, freed, tags, tokens }
    }

    pub fn by(mut self, attempt: AttemptId) -> Self {
        self.attempts = attempt.as_bytes().to_vec();
        self
    }

    pub fn since(mut self, freed: FreedNumber) -> Self {
        self.freed = freed;
        self
    }
}

/// What the script answered.
pub(super) struct Done {
    pub status: Vec<u8>,
    pub freed: FreedNumber,
    pub mark: Option<DeleteMark>,
    pub before: Vec<(Tag, Entry)>,
}

impl Done {
    /// What the operation came to, by the same table as everywhere. The script has the last word: an
    /// answer that the table would not give is an error.
    pub fn outcome(&self, operation: &table::Operation) -> Result<Outcome, Unavailable> {
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
