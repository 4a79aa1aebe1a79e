//! What each proxy remembers, ledgers that lose what they were told, and how they are restored: a model of
//! `ledger/cached.rs` and of `ledger/redis/restore.rs`, on the production order of offers.
//!
//! All live proxies offer what they remember, and the newest state of each tag wins. Until all have offered,
//! the ledger answers nothing that depends on what is there.

use super::*;
use crate::ledger::{FreedNumber, Offer, Offered, Origin, Restored, Sealed, Timestamp};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Proxy {
    /// Whether its rule leaves the tags mutable.
    pub mutable: bool,
    memory: BTreeMap<Tag, Memory>,
    /// The highest freed number that it has heard of.
    freed: FreedNumber,
    /// The highest sequence number that an answer of the ledger had.
    pub heard: u64,
    /// Up to this sequence number, the replicas are known to have everything.
    confirmed: u64,
    /// It has offered what it remembers since the last loss.
    offered: bool,
    /// Of each tag, the images that it may have been bound to since this proxy last heard of freed names.
    recent: Vec<BTreeSet<Image>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Memory {
    digest: Digest,
    state: State,
    sequence: u64,
    /// What its proxy had heard of freed names by then; `None` for what is to be looked up again.
    heard: Option<FreedNumber>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    Bound,
    /// Bound, unless a call that failed has freed it.
    Doubted,
    Withdrawn,
    Freed,
}

impl Proxy {
    pub fn new(physics: &Physics) -> Self {
        let recent = vec![BTreeSet::new(); physics.tags.len()];
        Self {
            mutable: physics.mutable,
            memory: BTreeMap::new(),
            freed: FreedNumber::default(),
            heard: 0,
            confirmed: 0,
            offered: true,
            recent,
        }
    }

    /// What a pull may go by.
    pub fn remembered(&self, physics: &Physics, tag: &Tag) -> Option<Digest> {
        let memory = self.memory.get(tag)?;
        let current = memory.heard == Some(self.freed) || physics.has(Flaw::MemoryOfFreedNames);
        (memory.state == State::Bound && current).then_some(memory.digest)
    }

    /// Whether the tag may have been bound to this image, for all that this proxy knows.
    pub fn may_be(&self, place: usize, image: Image) -> bool {
        self.recent[place].contains(&image)
    }
}

impl Memory {
    /// A name that was perhaps freed is offered as bound.
    fn offer(&self, tag: &Tag) -> Offer {
        let (digest, origin, since) = (self.digest, Origin::Import, Timestamp::EPOCH);
        let bound = |withdrawn| Offered::Bound { digest, origin, since, withdrawn };
        let state = match self.state {
            State::Bound | State::Doubted => bound(None),
            State::Withdrawn => bound(Some(Timestamp::EPOCH)),
            State::Freed => Offered::Freed,
        };
        Offer { tag: tag.clone(), state, sequence: self.sequence }
    }
}

impl World {
    /// A proxy has had an answer of the ledger, and remembers what it holds.
    pub(super) fn learn(&mut self, physics: &Physics, proxy: usize) {
        if !physics.remembers {
            return;
        }
        self.hear(physics, proxy);
        let own = &mut self.proxies[proxy];
        own.freed = self.ledger.freed;
        let heard = Some(own.freed);
        for (tag, entry) in &self.ledger.entries {
            match entry {
                Entry::Sealed(Sealed { withdrawn, digest, sequence, .. }) => {
                    let state = withdrawn.map_or(State::Bound, |_| State::Withdrawn);
                    let (digest, sequence) = (*digest, *sequence);
                    own.memory.insert(tag.clone(), Memory { digest, state, sequence, heard });
                }
                // It knows the name still, and when it was bound.
                Entry::Absent | Entry::Pending(_) => {
                    if let Some(memory) = own.memory.get_mut(tag) {
                        memory.state = State::Freed;
                    }
                }
            }
        }
    }

    /// A proxy has had an answer of the ledger that names no entries.
    pub(super) fn hear(&mut self, physics: &Physics, proxy: usize) {
        if physics.remembers {
            let own = &mut self.proxies[proxy];
            own.heard = own.heard.max(self.ledger.sequence);
            if physics.wait {
                own.confirmed = own.confirmed.max(self.replica.sequence);
            }
        }
    }

    /// A proxy has bound these names. What it knows is that they were bound by now.
    pub(super) fn learn_bound(&mut self, physics: &Physics, proxy: usize, tags: &[Tag]) {
        let known = |tag: &&Tag| self.proxies[proxy].remembered(physics, tag).is_none();
        let new: Vec<_> = tags.iter().filter(known).cloned().collect();
        self.learn(physics, proxy);
        for tag in new {
            if let Some(memory) = self.proxies[proxy].memory.get_mut(&tag) {
                memory.sequence = self.ledger.sequence;
            }
        }
    }

    /// What a proxy did to a name ended what it remembers of it. By this sequence number it was this;
    /// `None` where the call failed, and may have happened.
    pub(super) fn remember_end(
        &mut self,
        physics: &Physics,
        proxy: usize,
        tag: &Tag,
        is: Option<(State, u64)>,
    ) {
        if let Some(memory) = self.proxies[proxy].memory.get_mut(tag)
            && physics.remembers
        {
            match is {
                Some((state, sequence)) => {
                    memory.state = state;
                    memory.sequence = memory.sequence.max(sequence);
                }
                None if memory.state == State::Bound => memory.state = State::Doubted,
                None => {}
            }
        }
    }

    /// Notes what tags may be bound to by now, for those who may go by an older state.
    pub(super) fn watch(&mut self, physics: &Physics) {
        if !physics.remembers {
            return;
        }
        for place in 0..physics.tags.len() {
            let possible = self.specification.possible(place);
            for proxy in &mut self.proxies {
                proxy.recent[place].extend(&possible);
            }
        }
    }

    /// Whether a proxy has not offered yet what it remembers, so that nothing is looked up or bound.
    pub(super) fn restoring(&self, physics: &Physics) -> bool {
        !physics.has(Flaw::RestoreWaitsForNobody) && self.proxies.iter().any(|proxy| !proxy.offered)
    }

    pub(super) fn losses(&self, physics: &Physics, next: &mut Next) {
        if self.budget.failovers > 0 && self.replica != self.ledger {
            let mut world = self.clone();
            world.replica = world.ledger.clone();
            next.push((physics.label(|| "the replica catches up".into()), Ok(world)));
            let mut world = self.clone();
            world.budget.failovers -= 1;
            let losses = world.ledger.losses;
            world.ledger = world.replica.clone();
            world.ledger.losses = losses;
            world.lost(physics);
            next.push((physics.label(|| "the ledger fails over".into()), world.checked(physics)));
        }
        let claimed = self.ledger.entries.values().any(|entry| matches!(entry, Entry::Pending(_)));
        let deletes = self.jobs.values().any(|job| matches!(job, Job::Delete(_)));
        let may_lose = (physics.loses_claims || !claimed) && (physics.loses_marks || !deletes);
        if self.budget.losses > 0 && may_lose {
            let mut world = self.clone();
            world.budget.losses -= 1;
            let losses = world.ledger.losses;
            world.ledger = Store::new(&physics.tags);
            world.ledger.losses = losses;
            world.replica = world.ledger.clone();
            world.lost(physics);
            let label = physics.label(|| "the ledger forgets everything".into());
            next.push((label, world.checked(physics)));
        }
        for n in 0..self.proxies.len() {
            if !self.proxies[n].offered {
                let mut world = self.clone();
                world.offer(physics, n);
                let label = physics.label(|| format!("proxy {n} offers its memory"));
                next.push((label, world.checked(physics)));
            }
            if self.budget.polls > 0 {
                let mut world = self.clone();
                world.budget.polls -= 1;
                world.poll(physics, n);
                next.push((physics.label(|| format!("proxy {n} hears of freed names")), Ok(world)));
            }
        }
    }

    /// A ledger of which no answer is missing has lost nothing that anybody knows of.
    fn lost(&mut self, physics: &Physics) {
        self.disturbed = true;
        let sequence = self.ledger.sequence;
        if physics.remembers && self.proxies.iter().any(|proxy| proxy.heard > sequence) {
            self.ledger.losses += 1;
            self.replica.losses = self.ledger.losses;
            for proxy in &mut self.proxies {
                proxy.offered = false;
                proxy.heard = 0;
            }
        }
    }

    fn offer(&mut self, physics: &Physics, n: usize) {
        self.proxies[n].offered = true;
        let mut offers: Vec<_> =
            self.proxies[n].memory.iter().map(|(tag, memory)| memory.offer(tag)).collect();
        if physics.has(Flaw::RestoreInAnyOrder) {
            let missing = |offer: &Offer| self.ledger.entries[&offer.tag] == Entry::Absent;
            offers.retain(|offer| offer.state != Offered::Freed && missing(offer));
        }
        let kept = self.proxies[n].confirmed;
        let restored = self.ledger.restore(&offers, kept);
        for (offer, restored) in offers.iter().zip(restored) {
            if restored == Restored::Newer {
                self.proxies[n].memory.remove(&offer.tag);
            }
        }
        if physics.wait {
            self.replica = self.ledger.clone();
        }
        if self.proxies.iter().all(|proxy| proxy.offered) {
            // Nothing that is remembered is served before it was looked up.
            let all = self.proxies.iter_mut().flat_map(|proxy| proxy.memory.values_mut());
            all.for_each(|memory| memory.heard = None);
        }
    }

    /// A proxy reads the counter of freed names, and serves nothing that it remembers from before.
    fn poll(&mut self, physics: &Physics, n: usize) {
        self.proxies[n].freed = self.ledger.freed;
        for place in 0..physics.tags.len() {
            self.proxies[n].recent[place] = self.specification.possible(place);
        }
    }
}
