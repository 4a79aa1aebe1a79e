//! A ledger in memory, for tests: it forgets everything with the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::rollback::{Losses, Scope};
use super::transitions::{self, Around, Operation, Outcome, Restoring, Stamp};
use super::{
    Adopt, Announcement, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, Entry,
    FreedNumber, Holder, Identity, Ledger, Listed, Lookup, News, Offer, Origin, Position, Release,
    RepositoryKey, Restored, Timestamp, Token, Unavailable,
};
use crate::name::{Digest, Tag};

pub struct Memory {
    identity: Identity,
    /// `None` once closed. Held only for the length of one operation, never over an await.
    state: Mutex<Option<State>>,
    losses: Losses,
    shared: bool,
    /// What proxies said, and not what a loss took.
    announced: Mutex<BTreeMap<String, Announcement>>,
    /// Proxies can't say anything.
    muted: AtomicBool,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Position, Entry>,
    sequences: BTreeMap<RepositoryKey, u64>,
    freed: BTreeMap<RepositoryKey, FreedNumber>,
    marks: BTreeMap<(RepositoryKey, Digest), DeleteMark>,
    /// The sequence number up to which a restored tag is known to be free.
    off: BTreeMap<Position, u64>,
    /// How often something was freed, and the repositories by that count.
    count: u64,
    freed_in: BTreeMap<RepositoryKey, u64>,
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
        let (losses, announced) = (Losses::default(), Mutex::default());
        let muted = AtomicBool::new(false);
        Self { identity, state, losses, shared: false, announced, muted }
    }

    /// One that several proxies of a test use.
    pub fn shared() -> Self {
        Self { shared: true, ..Self::new() }
    }

    /// Forgets everything, as a Redis does that comes back without its file, and is noticed.
    pub fn lose(&self) {
        self.clear();
        self.losses.note(&Scope::Whole);
    }

    /// Everything is freed.
    pub fn clear(&self) {
        // A closed one has forgotten it already.
        let _ = self.with(|state| *state = State::default());
    }

    /// From now on announcements fail, or no more.
    pub fn mute(&self, muted: bool) {
        self.muted.store(muted, Ordering::Relaxed);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T, Unavailable> {
        // A panic while the lock was held would have been in plain map operations on
        // entries that are replaced whole, so the state is sound even then.
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        guard.as_mut().map(act).ok_or(Unavailable::Closed)
    }
}

impl State {
    fn entry(&self, repository: &RepositoryKey, tag: &Tag) -> Entry {
        self.entries.get(&(repository.clone(), tag.clone())).cloned().unwrap_or(Entry::Absent)
    }

    fn freed(&self, repository: &RepositoryKey) -> FreedNumber {
        self.freed.get(repository).copied().unwrap_or_default()
    }

    fn mark(&self, repository: &RepositoryKey, digest: &Digest) -> Option<DeleteMark> {
        self.marks.get(&(repository.clone(), *digest)).cloned()
    }

    fn set(&self, repository: &RepositoryKey, tags: &[Tag]) -> Vec<(Tag, Entry)> {
        tags.iter().map(|tag| (tag.clone(), self.entry(repository, tag))).collect()
    }

    /// Applies one operation to the whole set: all changes, or none.
    fn apply(
        &mut self,
        repository: &RepositoryKey,
        set: &[(Tag, Entry)],
        operation: &Operation,
    ) -> Outcome {
        let before = self.sequences.get(repository).copied().unwrap_or(0);
        let stamp = Stamp { now: Timestamp::now(), sequence: before + 1 };
        let freed = self.freed(repository);
        let marked = operation.digest().is_some_and(|d| self.mark(repository, d).is_some());
        let outcome = operation.on(set, Around { freed, marked }, stamp);
        let Outcome::Done { puts, frees } = &outcome else { return outcome };
        if !puts.is_empty() || *frees {
            self.sequences.insert(repository.clone(), stamp.sequence);
        }
        if *frees {
            self.free(repository, freed.next());
            if operation.is_news() {
                self.tell(repository);
            }
        }
        for (n, entry) in puts {
            let position = (repository.clone(), set[*n].0.clone());
            match entry {
                Entry::Absent => self.entries.remove(&position),
                entry => self.entries.insert(position, entry.clone()),
            };
        }
        outcome
    }

    fn free(&mut self, repository: &RepositoryKey, number: FreedNumber) {
        self.freed.insert(repository.clone(), number);
    }

    fn tell(&mut self, repository: &RepositoryKey) {
        self.count += 1;
        self.freed_in.insert(repository.clone(), self.count);
    }

    fn restore(&mut self, repository: &RepositoryKey, offers: &[Offer]) -> Vec<Restored> {
        let (mut frees, mut restored) = (false, Vec::with_capacity(offers.len()));
        for offer in offers {
            let position = (repository.clone(), offer.tag.clone());
            let entry = self.entry(repository, &offer.tag);
            let had = entry != Entry::Absent;
            let mut state = Restoring { entry, off: self.off.remove(&position) };
            restored.push(state.offered(offer));
            frees |= had && restored.last() == Some(&Restored::Restored);
            if let Some(off) = state.off {
                self.off.insert(position.clone(), off);
            }
            match state.entry {
                Entry::Absent => self.entries.remove(&position),
                entry => self.entries.insert(position, entry),
            };
        }
        let before = self.sequences.get(repository).copied().unwrap_or(0);
        let changed = restored.contains(&Restored::Restored);
        let (sequence, raised) = transitions::sequence_after(before, offers, changed);
        self.sequences.insert(repository.clone(), sequence);
        if raised {
            self.free(repository, FreedNumber(sequence));
            self.tell(repository);
        } else if frees {
            self.free(repository, self.freed(repository).next());
            self.tell(repository);
        }
        restored
    }

    fn with_digest(&self, repository: &RepositoryKey, digest: &Digest) -> Vec<Holder> {
        let bound = |((key, _), entry): &(&Position, &Entry)| {
            key == repository && entry.digest() == Some(digest)
        };
        let holder = |((_, tag), entry): (&Position, &Entry)| Holder {
            tag: tag.clone(),
            entry: entry.clone(),
        };
        self.entries.iter().filter(bound).map(holder).collect()
    }
}

#[async_trait]
impl Ledger for Memory {
    async fn lookup(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| Lookup {
            entries: tags.iter().map(|tag| state.entry(repository, tag)).collect(),
            freed: state.freed(repository),
        })
    }

    async fn claim(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Claim, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let set = state.set(repository, tags);
            let operation = Operation::Claim { digest: *digest, attempt };
            Claim::of(state.apply(repository, &set, &operation), &set, attempt)
        })
    }

    async fn bind(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Result<Bind, Unavailable> {
        self.with(|state| {
            let set = state.set(repository, tags);
            let operation = Operation::Bind { digest: *digest, attempt, freed };
            let outcome = state.apply(repository, &set, &operation);
            Bind::of(outcome, state.freed(repository))
        })
    }

    async fn adopt(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Result<Adopt, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let set = state.set(repository, tags);
            let operation = Operation::Adopt { digest: *digest, origin, freed };
            state.apply(repository, &set, &operation).into()
        })
    }

    async fn abort(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<(), Unavailable> {
        self.with(|state| {
            let set = state.set(repository, tags);
            state.apply(repository, &set, &Operation::Abort { digest: *digest, attempt });
        })
    }

    async fn release(
        &self,
        repository: &RepositoryKey,
        tag: &Tag,
        token: Token,
    ) -> Result<Release, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let set = state.set(repository, std::slice::from_ref(tag));
            state.apply(repository, &set, &Operation::Release { token }).into()
        })
    }

    async fn withdraw(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
        digest: &Digest,
    ) -> Result<(), Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let set = state.set(repository, tags);
            state.apply(repository, &set, &Operation::Withdraw { digest: *digest });
        })
    }

    async fn supersede(
        &self,
        repository: &RepositoryKey,
        seen: &[Holder],
    ) -> Result<Vec<Holder>, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let (tags, operation) = Operation::supersede(seen);
            let set = state.set(repository, &tags);
            state.apply(repository, &set, &operation).dropped(&set)
        })
    }

    async fn invalidate(
        &self,
        repository: &RepositoryKey,
        tags: &[Tag],
    ) -> Result<Lookup, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let set = state.set(repository, tags);
            state.apply(repository, &set, &Operation::Invalidate);
            let entries = set.into_iter().map(|(_, entry)| entry).collect();
            Lookup { entries, freed: state.freed(repository) }
        })
    }

    async fn begin_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempt: AttemptId,
    ) -> Result<Begun, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let before = state.mark(repository, digest);
            let earlier = before.iter().flat_map(|mark| mark.attempts.clone());
            let earlier = earlier.filter(|other| *other != attempt).collect();
            let mark = transitions::marked(before, attempt, Timestamp::now());
            state.marks.insert((repository.clone(), *digest), mark);
            Begun { holders: state.with_digest(repository, digest), earlier }
        })
    }

    async fn end_delete(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Result<Ended, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            let mark = state.mark(repository, digest);
            if !transitions::stands(mark.as_ref(), attempts) {
                return Ended::NoMark;
            }
            let key = (repository.clone(), *digest);
            match transitions::unmarked(mark, attempts) {
                Some(left) => state.marks.insert(key, left),
                None => state.marks.remove(&key),
            };
            let set = state.set(repository, tags);
            let operation = Operation::EndDelete { digest: *digest, end };
            Ended::Done(state.apply(repository, &set, &operation).changed(&set))
        })
    }

    async fn marked(
        &self,
        repository: &RepositoryKey,
        digests: &[Digest],
    ) -> Result<Vec<Digest>, Unavailable> {
        self.with(|state| {
            let marked = |digest: &&Digest| state.mark(repository, digest).is_some();
            digests.iter().filter(marked).copied().collect()
        })
    }

    async fn delete_marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        self.with(|state| {
            let own = state.marks.iter().filter(|((key, _), _)| key == repository);
            own.map(|((_, digest), mark)| (*digest, mark.clone())).collect()
        })
    }

    async fn bound_to(
        &self,
        repository: &RepositoryKey,
        digest: &Digest,
    ) -> Result<Vec<Tag>, Unavailable> {
        self.losses.check(repository)?;
        self.with(|state| {
            state.with_digest(repository, digest).into_iter().map(|holder| holder.tag).collect()
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

    async fn announce(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        if self.muted.load(Ordering::Relaxed) {
            return Err(Unavailable::TimedOut);
        }
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.insert(own.proxy.clone(), own.clone());
        Ok(announced.values().filter(|other| other.proxy != own.proxy).cloned().collect())
    }

    async fn poll(&self, last: Option<u64>) -> Result<News, Unavailable> {
        self.with(|state| {
            let since = last.unwrap_or(state.count);
            let freed = state.freed_in.iter().filter(|(_, count)| **count > since);
            let freed = freed.map(|(repository, _)| repository.clone()).collect();
            let total = self.losses.total();
            let loss = if total == 0 { String::new() } else { format!("loss {total}") };
            News { count: state.count, freed, early: false, loss }
        })
    }

    async fn restore(
        &self,
        repository: &RepositoryKey,
        offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        self.with(|state| state.restore(repository, offers))
    }

    fn heard(&self, repository: &RepositoryKey) -> u64 {
        let heard = self.with(|state| state.sequences.get(repository).copied());
        heard.ok().flatten().unwrap_or(0)
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    fn losses(&self) -> Option<&Losses> {
        Some(&self.losses)
    }

    async fn close(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
