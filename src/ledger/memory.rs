//! A ledger in memory, for tests: it forgets everything with the process.

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;

use super::losses::Losses;
use super::table::{self, Change, Stamp};
use super::{
    Announcement, AttemptId, Claim, Entry, Holder, Identity, Ledger, Listed, Origin, Position,
    Release, RepositoryKey, Seal, Timestamp, Token, Unavailable,
};
use crate::name::{Digest, Tag};

pub struct Memory {
    identity: Identity,
    /// `None` once closed. Held only for the length of one operation, never over an await.
    state: Mutex<Option<State>>,
    losses: Losses,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Position, Entry>,
    sequences: BTreeMap<RepositoryKey, u64>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    pub fn new() -> Self {
        let identity =
            Identity { id: uuid::Uuid::new_v4().to_string(), created: Timestamp::now(), format: 1 };
        let state = Mutex::new(Some(State::default()));
        Self { identity, state, losses: Losses::default() }
    }

    /// Forgets everything, as a Redis does that comes back without its file, and is noticed.
    pub fn lose(&self) {
        // A closed one has forgotten it already.
        let _ = self.with(|state| *state = State::default());
        self.losses.note_whole();
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T, Unavailable> {
        // A panic while the lock was held would have been in plain map operations on
        // entries that are replaced whole, so the state is sound even then.
        let mut guard = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        guard.as_mut().map(act).ok_or(Unavailable::Closed)
    }
}

impl State {
    fn entry(&self, repository: &RepositoryKey, tag: &Tag) -> Entry {
        self.entries.get(&(repository.clone(), tag.clone())).cloned().unwrap_or(Entry::Absent)
    }

    /// Applies one operation to the whole set: all changes, or the entries in its way.
    fn apply(
        &mut self,
        repository: &RepositoryKey,
        tags: &[Tag],
        operation: impl Fn(&Entry, Stamp) -> Change,
    ) -> Result<(), Vec<Holder>> {
        let before = self.sequences.get(repository).copied().unwrap_or(0);
        let stamp = Stamp { now: Timestamp::now(), sequence: before + 1 };
        let mut puts = Vec::new();
        let mut standing = Vec::new();
        for tag in tags {
            let entry = self.entry(repository, tag);
            match operation(&entry, stamp) {
                Change::Keep => {}
                Change::Put(entry) => puts.push(((repository.clone(), tag.clone()), entry)),
                Change::Stands => standing.push(Holder { tag: tag.clone(), entry }),
            }
        }
        if !standing.is_empty() {
            return Err(standing);
        }
        if !puts.is_empty() {
            self.sequences.insert(repository.clone(), stamp.sequence);
        }
        for (position, entry) in puts {
            match entry {
                Entry::Absent => self.entries.remove(&position),
                entry => self.entries.insert(position, entry),
            };
        }
        Ok(())
    }
}

#[async_trait]
impl Ledger for Memory {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Vec<Entry>, Unavailable> {
        self.with(|state| tags.iter().map(|tag| state.entry(repository, tag)).collect())
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        self.with(|state| {
            let before: Vec<_> = tags.iter().map(|tag| state.entry(repository, tag)).collect();
            let done = state.apply(repository, tags, |entry, stamp| {
                table::claim(entry, digest, attempt, stamp)
            });
            done.map_or_else(Claim::Held, |()| Claim::granted(tags.iter().zip(&before)))
        })
    }

    async fn seal(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
    ) -> Result<Seal, Unavailable> {
        self.with(|state| {
            let done = state
                .apply(repository, tags, |entry, stamp| table::seal(entry, digest, origin, stamp));
            done.map_or_else(Seal::Conflict, |()| Seal::Sealed)
        })
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        // Nothing stands against an abort, so there are no holders to report.
        self.with(|state| {
            let _ = state.apply(repository, tags, |entry, _| table::abort(entry, digest, attempt));
        })
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        self.with(|state| {
            let before = state.entry(repository, tag);
            let _ = state.apply(repository, std::slice::from_ref(tag), |entry, _| {
                table::release(entry, token)
            });
            if before != Entry::Absent && state.entry(repository, tag) == Entry::Absent {
                Release::Freed
            } else {
                Release::Changed
            }
        })
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.with(|state| {
            let _ =
                state.apply(repository, tags, |entry, stamp| table::withdraw(entry, digest, stamp));
        })
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Vec<Holder>, Unavailable> {
        self.with(|state| {
            let before = tags.iter().map(|tag| state.entry(repository, tag)).collect();
            let _ = state.apply(repository, tags, |entry, _| table::supersede(entry));
            Holder::present(tags, before)
        })
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.with(|state| {
            let bound = |((key, _), entry): &(&Position, &Entry)| {
                key == repository && entry.digest() == Some(digest)
            };
            state.entries.iter().filter(bound).map(|((_, tag), _)| tag.clone()).collect()
        })
    }

    async fn list(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        self.with(|state| {
            let later = |(position, _): &(&Position, &Entry)| after.is_none_or(|a| *position > a);
            let listed = |((repository, tag), entry): (&Position, &Entry)| Listed {
                repository: repository.clone(),
                tag: tag.clone(),
                entry: entry.clone(),
            };
            state.entries.iter().filter(later).take(limit).map(listed).collect()
        })
    }

    async fn identity(&self) -> Result<Identity, Unavailable> {
        self.with(|_| self.identity.clone())
    }

    async fn sequence(&self, repository: &RepositoryKey) -> Result<u64, Unavailable> {
        self.with(|state| state.sequences.get(repository).copied().unwrap_or(0))
    }

    async fn announce(&self, _own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        // One process, one proxy.
        Ok(Vec::new())
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.losses)
    }

    async fn close(&self) {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}
