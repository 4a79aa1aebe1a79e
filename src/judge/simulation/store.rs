//! The world's ledger: what it holds, and the production operation table on it; the flaws of stores.

use std::collections::BTreeMap;

use super::{Flaw, Physics};
use crate::ledger::transitions::{self, Around, Operation, Outcome, Restoring, Stamp};
use crate::ledger::{
    Adopt, AttemptId, Begun, Bind, Claim, DeleteEnd, DeleteMark, Ended, Entry, FreedNumber, Holder,
    Lookup, Offer, Origin, Pending, Release, Restored, Timestamp, Token,
};
use crate::name::{Digest, Tag};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Store {
    pub entries: BTreeMap<Tag, Entry>,
    pub freed: FreedNumber,
    /// How often entries were lost, as far as proxies have noticed.
    pub losses: u64,
    pub sequence: u64,
    pub marks: BTreeMap<Digest, DeleteMark>,
    /// The sequence number up to which a restored tag is known to be free.
    off: BTreeMap<Tag, u64>,
    /// The sequence number that was left when it was restored last.
    fell: Option<u64>,
}

type Set = Vec<(Tag, Entry)>;

impl Store {
    pub fn new(tags: &[Tag]) -> Self {
        Self {
            entries: tags.iter().map(|tag| (tag.clone(), Entry::Absent)).collect(),
            freed: FreedNumber::default(),
            losses: 0,
            sequence: 0,
            marks: BTreeMap::new(),
            off: BTreeMap::new(),
            fell: None,
        }
    }

    /// One that binds all tags.
    pub fn bound(tags: &[Tag], digest: &Digest) -> Self {
        let mut store = Self::new(tags);
        let (origin, freed) = (Origin::Push, store.freed);
        for tag in tags {
            store.adopt(Flaw::None, tag, digest, origin, freed);
        }
        store
    }

    pub fn lookup(&self, tags: &[Tag]) -> Lookup {
        let entries = tags.iter().map(|tag| self.entries[tag].clone()).collect();
        Lookup { entries, freed: self.number() }
    }

    /// The freed number as proxies are told it.
    pub fn number(&self) -> FreedNumber {
        self.freed.after(self.losses)
    }

    /// Raises the freed number.
    pub fn invalidate(&mut self, flaw: Flaw) {
        if flaw != Flaw::WriteInvalidatesNothing {
            self.apply(flaw, &Vec::new(), &Operation::Invalidate);
        }
    }

    /// Whether any tag is bound.
    pub fn binds(&self) -> bool {
        self.entries.values().any(|entry| matches!(entry, Entry::Sealed(_)))
    }

    fn set(&self, tags: &[Tag]) -> Set {
        tags.iter().map(|tag| (tag.clone(), self.entries[tag].clone())).collect()
    }

    /// Applies one operation to the tags; `set` is what it takes them for.
    fn apply(&mut self, flaw: Flaw, set: &Set, operation: &Operation) -> Outcome {
        let stamp = Stamp { now: Timestamp::EPOCH, sequence: self.sequence + 1 };
        let marked = operation.digest().is_some_and(|digest| self.marks.contains_key(digest));
        let ignored = match operation {
            Operation::Claim { .. } => flaw == Flaw::MarkIgnoredByClaim,
            Operation::Adopt { .. } => flaw == Flaw::MarkIgnoredByAdopt,
            Operation::Bind { .. } => flaw == Flaw::MarkIgnoredByBind,
            _ => false,
        };
        let freed = match operation {
            Operation::Adopt { freed, .. } if flaw == Flaw::AdoptIgnoresFreed => *freed,
            _ => self.freed,
        };
        let marked = marked && !ignored && flaw != Flaw::NoDeleteMark;
        let outcome = operation.on(set, Around { freed, marked }, stamp);
        if let Outcome::Done { puts, frees } = &outcome {
            if !puts.is_empty() || *frees {
                self.sequence = stamp.sequence;
            }
            if *frees {
                self.freed = self.freed.next();
            }
            for (n, entry) in puts {
                self.entries.insert(set[*n].0.clone(), entry.clone());
            }
        }
        outcome
    }

    pub fn claim(
        &mut self,
        flaw: Flaw,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
    ) -> Claim {
        let mut set = self.set(tags);
        for (_, entry) in &mut set {
            if let (Flaw::TakeOver, Entry::Pending(pending)) = (flaw, &*entry)
                && pending.digest != *digest
            {
                *entry = Entry::Absent;
            }
        }
        let operation = Operation::Claim { digest: *digest, attempt };
        let claim = Claim::of(self.apply(flaw, &set, &operation), &set, attempt);
        for (tag, before) in &set {
            if let (Flaw::SharedOwner, Entry::Pending(before)) = (flaw, before)
                && before.digest == *digest
                && !before.owners.contains(&attempt)
            {
                let owners = vec![AttemptId::from_bytes([0; 16])];
                let shared = Entry::Pending(Pending { owners, ..before.clone() });
                self.entries.insert(tag.clone(), shared);
            }
        }
        match claim {
            Claim::Granted { sealed, fresh } if flaw == Flaw::RepeatedClaimNotFresh => {
                let repeated =
                    |tag: &&Tag| set.iter().any(|(t, entry)| t == *tag && *entry == Entry::Absent);
                Claim::Granted { sealed, fresh: fresh.iter().filter(repeated).cloned().collect() }
            }
            claim => claim,
        }
    }

    pub fn bind(
        &mut self,
        flaw: Flaw,
        tags: &[Tag],
        digest: &Digest,
        attempt: AttemptId,
        freed: FreedNumber,
    ) -> Bind {
        let mut set = self.set(tags);
        for (_, entry) in &mut set {
            if flaw == Flaw::BindNeedsNoClaim && *entry == Entry::Absent {
                let owners = vec![attempt];
                let (since, sequence) = (Timestamp::EPOCH, 0);
                *entry = Entry::Pending(Pending { digest: *digest, owners, since, sequence });
            }
        }
        let count = freed.since(self.losses).unwrap_or(FreedNumber(u64::MAX));
        let operation = Operation::Bind { digest: *digest, attempt, freed: count };
        let outcome = self.apply(flaw, &set, &operation);
        for (tag, before) in &set {
            if let (Flaw::RebindKeepsSequence, Entry::Sealed(before)) = (flaw, before)
                && let Some(Entry::Sealed(after)) = self.entries.get_mut(tag)
            {
                after.sequence = before.sequence;
            }
        }
        Bind::of(outcome, self.number())
    }

    pub fn adopt(
        &mut self,
        flaw: Flaw,
        tag: &Tag,
        digest: &Digest,
        origin: Origin,
        freed: FreedNumber,
    ) -> Adopt {
        let lasts = flaw == Flaw::FreedNumberOutlivesLoss;
        let losses = if lasts { freed.0 >> 40 } else { self.losses };
        let Some(freed) = freed.since(losses) else { return Adopt::Freed };
        let mut set = self.set(std::slice::from_ref(tag));
        if flaw == Flaw::PullIgnoresClaims && origin == Origin::FirstSight {
            let claims = set.iter_mut().filter(|(_, entry)| matches!(entry, Entry::Pending(_)));
            claims.for_each(|(_, entry)| *entry = Entry::Absent);
        }
        self.apply(flaw, &set, &Operation::Adopt { digest: *digest, origin, freed }).into()
    }

    pub fn abort(&mut self, flaw: Flaw, tags: &[Tag], digest: &Digest, attempt: AttemptId) {
        let mut set = self.set(tags);
        for (_, entry) in &mut set {
            if let (Flaw::AbortIgnoresOthers, Entry::Pending(pending)) = (flaw, entry)
                && pending.digest == *digest
            {
                pending.owners = vec![attempt];
            }
        }
        self.apply(flaw, &set, &Operation::Abort { digest: *digest, attempt });
    }

    pub fn release(&mut self, flaw: Flaw, tag: &Tag, seen: Token) -> Release {
        let set = self.set(std::slice::from_ref(tag));
        let token = match flaw {
            Flaw::ReleaseAnyLife => set[0].1.token().unwrap_or(seen),
            _ => seen,
        };
        self.apply(flaw, &set, &Operation::Release { token }).into()
    }

    /// Returns what was dropped.
    pub fn supersede(&mut self, flaw: Flaw, seen: &[(Tag, Entry)]) -> Vec<Holder> {
        let holder =
            |(tag, entry): &(Tag, Entry)| Holder { tag: tag.clone(), entry: entry.clone() };
        let seen: Vec<_> = seen.iter().map(holder).collect();
        let (tags, mut operation) = Operation::supersede(&seen);
        let set = self.set(&tags);
        if let (Flaw::SupersedeWhatever, Operation::Supersede { lives }) = (flaw, &mut operation) {
            *lives = set.iter().filter_map(|(_, entry)| entry.token()).collect();
        }
        self.apply(flaw, &set, &operation).dropped(&set)
    }

    pub fn begin_delete(&mut self, digest: &Digest, attempt: AttemptId) -> Begun {
        let before = self.marks.get(digest).cloned();
        let earlier = before.iter().flat_map(|mark| mark.attempts.clone());
        let earlier = earlier.filter(|other| *other != attempt).collect();
        self.marks.insert(*digest, transitions::marked(before, attempt, Timestamp::EPOCH));
        let all = self.entries.iter().filter(|(_, entry)| entry.digest() == Some(digest));
        let holder =
            |(tag, entry): (&Tag, &Entry)| Holder { tag: tag.clone(), entry: entry.clone() };
        Begun { holders: all.map(holder).collect(), earlier }
    }

    /// Takes one DELETE out of the mark.
    pub fn clear_mark(&mut self, digest: &Digest, attempt: AttemptId) {
        match transitions::unmarked(self.marks.get(digest).cloned(), &[attempt]) {
            Some(left) => self.marks.insert(*digest, left),
            None => self.marks.remove(digest),
        };
    }

    pub fn end_delete(
        &mut self,
        physics: &Physics,
        digest: &Digest,
        attempts: &[AttemptId],
        tags: &[Tag],
        end: DeleteEnd,
    ) -> Ended {
        let mark = self.marks.get(digest).cloned();
        if !transitions::stands(mark.as_ref(), attempts) {
            return Ended::NoMark;
        }
        match transitions::unmarked(mark, attempts) {
            Some(left) => self.marks.insert(*digest, left),
            None => self.marks.remove(digest),
        };
        let set = self.set(tags);
        let operation = Operation::EndDelete { digest: *digest, end };
        Ended::Done(self.apply(physics.flaw, &set, &operation).changed(&set))
    }

    /// Takes what a proxy remembers from before a loss; `kept` is the sequence number up to which the
    /// replicas are known to have had everything.
    pub fn restore(&mut self, offers: &[Offer], kept: u64) -> Vec<Restored> {
        let highest = offers.iter().map(|offer| offer.sequence).max();
        let left = match self.fell {
            Some(fell) if highest.is_none_or(|highest| highest <= self.sequence) => fell,
            _ => self.sequence,
        };
        let kept = if kept > left { 0 } else { kept };
        let mut frees = false;
        let mut all = Vec::new();
        for offer in offers {
            let entry = self.entries[&offer.tag].clone();
            let had = entry != Entry::Absent;
            let mut state = Restoring { entry, off: self.off.remove(&offer.tag) };
            let restored = match offer.sequence > kept {
                true => state.offered(offer),
                false => Restored::Newer,
            };
            frees |= had && restored == Restored::Restored;
            if let Some(off) = state.off {
                self.off.insert(offer.tag.clone(), off);
            }
            self.entries.insert(offer.tag.clone(), state.entry);
            all.push(restored);
        }
        let changed = all.contains(&Restored::Restored);
        let (sequence, raised) = transitions::sequence_after(self.sequence, offers, changed);
        if raised {
            self.fell = Some(self.sequence);
            self.freed = FreedNumber(sequence);
        } else if frees {
            self.freed = self.freed.next();
        }
        self.sequence = sequence;
        all
    }
}
