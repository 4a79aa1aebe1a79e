//! Operations that take no time, tried in every state.

use super::*;

impl World {
    /// What a pull would get now, and a push of another image, must have its place in the order, too.
    pub(super) fn probe(&self, physics: &Physics) -> Result<(), Violation> {
        let immutable = |proxy: &usize| !self.proxies[*proxy].mutable;
        let Some(proxy) = (0..self.proxies.len()).rev().find(immutable) else { return Ok(()) };
        if self.restoring(physics) {
            return Ok(());
        }
        for (place, tag) in physics.tags.iter().enumerate() {
            let shown = self.registry.get(tag);
            let served = |digest: &Digest| match self.stored.contains(digest) {
                true => End::Served(image(digest)),
                false => End::NotFound,
            };
            let pulled = match &self.ledger.entries[tag] {
                Entry::Sealed(sealed) if sealed.withdrawn.is_none() => served(&sealed.digest),
                Entry::Sealed(_) => End::NotFound,
                Entry::Pending(pending) => match shown {
                    Some(shown) if *shown == pending.digest => served(shown),
                    Some(_) => continue,
                    None => End::NotFound,
                },
                Entry::Absent if self.unjudged_writes(physics, proxy) => continue,
                Entry::Absent => shown.map_or(End::NotFound, served),
            };
            let mut all = vec![(Kind::Pull, pulled)];
            if let Entry::Sealed(sealed) = &self.ledger.entries[tag] {
                let push = Kind::Push(image(&digest(OTHER)));
                all.push((push, End::Conflict(image(&sealed.digest))));
            }
            if !self.specification.allows(place, &all) {
                return Err(format!("now {tag} would be {all:?}"));
            }
        }
        self.probe_registry(physics)
    }

    /// Where nothing is under way, the registry's own tag is no acknowledged write that the ledger does not
    /// bind it to; and what is remembered is no older than what its proxy knows.
    fn probe_registry(&self, physics: &Physics) -> Result<(), Violation> {
        for (place, tag) in physics.tags.iter().enumerate() {
            if let Entry::Sealed(sealed) = &self.ledger.entries[tag]
                && self.written
                && self.net.is_empty()
                && self.jobs.is_empty()
                && self.registry.get(tag) == Some(&digest("write"))
                && sealed.digest != digest("write")
            {
                return Err(format!("{tag} was written, and is bound to another image"));
            }
            for proxy in self.proxies.iter().filter(|_| physics.remembers) {
                let old = |digest: &Digest| !proxy.may_be(place, image(digest));
                if proxy.remembered(physics, tag).as_ref().is_some_and(old) {
                    return Err(format!("a memory of {tag} is older than what its proxy knows"));
                }
            }
        }
        Ok(())
    }
}
