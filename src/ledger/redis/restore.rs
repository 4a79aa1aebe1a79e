//! After a loss: what proxies offer. And before one: what the replicas are known to have.

use redis::Value;

use super::script::Script;
use super::{Redis, bytes_of, failed, hash_of};
use crate::ledger::rollback::restoring;
use crate::ledger::{Entry, FreedNumber, Offer, RepositoryKey, Restored, Unavailable, codec};
use crate::name::Tag;

/// Of one call: the server does nothing else meanwhile.
const MOST: usize = 200;

/// What the replicas are known to have of a repository: everything up to this sequence number, as long as
/// nothing more is lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Confirmed {
    sequence: u64,
    /// How often entries were lost by then.
    losses: u64,
    /// The same before the last loss.
    before: u64,
}

#[cfg(test)]
impl Confirmed {
    pub(super) fn test_at(self, sequence: u64) -> Self {
        Self { sequence, ..self }
    }
}

impl Redis {
    pub(super) async fn offer(
        &self,
        repository: &RepositoryKey,
        offers: &[Offer],
    ) -> Result<Vec<Restored>, Unavailable> {
        self.open_still()?;
        self.name(repository).await?;
        let mut restored = Vec::with_capacity(offers.len());
        for some in offers.chunks(MOST) {
            let tags: Vec<Tag> = some.iter().map(|offer| offer.tag.clone()).collect();
            let mut script = Script::new('O', Vec::new(), &tags);
            let numbers = some.iter().map(|offer| offer.sequence.to_string().into_bytes());
            let entries = some.iter().map(|o| codec::encode(&o.entry()).unwrap_or_default());
            script.more = numbers.chain(entries).collect();
            script.freed = FreedNumber(self.kept(repository));
            let call = self.command(repository, &script);
            let begun = self.mark(repository);
            let key = hash_of(repository);
            let value = self.reach.ask_and_wait(&key, &call, self.replicas).await?;
            let Value::Array(parts) = value else {
                return Err(failed("the script's answer is no list"));
            };
            let [_, Value::Int(sequence), _, _, words @ ..] = parts.as_slice() else {
                return Err(failed("the script's answer is too short"));
            };
            self.note(repository, begun, u64::try_from(*sequence).map_err(failed)?);
            for word in words {
                restored.push(match bytes_of(word)? {
                    b"restored" => Restored::Restored,
                    b"stands" => Restored::Stands,
                    b"newer" => Restored::Newer,
                    _ => return Err(failed("the script's answer is none for an offer")),
                });
            }
        }
        Ok(restored)
    }

    /// The replicas have everything up to this number.
    pub(super) fn confirm(&self, repository: &RepositoryKey, sequence: u64, losses: u64) {
        if self.replicas == 0 || sequence == 0 {
            return;
        }
        let mut known = self.confirmed.entry(repository.clone()).or_default();
        if known.losses != losses {
            *known = Confirmed { sequence, losses, before: known.sequence };
        } else {
            known.sequence = known.sequence.max(sequence);
        }
    }

    /// What the replicas had when the last loss took place.
    fn kept(&self, repository: &RepositoryKey) -> u64 {
        let losses = self.losses.of(repository);
        self.confirmed
            .get(repository)
            .map_or(0, |known| if known.losses == losses { known.before } else { known.sequence })
    }

    /// Before a binding is gone by that the master alone may have: another proxy wrote it, and was perhaps
    /// told that no replica has it. An error where that is so still.
    pub(super) async fn ensure(
        &self,
        repository: &RepositoryKey,
        entries: &[Entry],
        sequence: u64,
    ) -> Result<(), Unavailable> {
        let needed = entries.iter().filter_map(|entry| match entry {
            Entry::Sealed(sealed) if sealed.withdrawn.is_none() => Some(sealed.sequence),
            // The mark is younger than the entry.
            Entry::Sealed(_) => Some(sequence),
            Entry::Absent | Entry::Pending(_) => None,
        });
        let Some(needed) = needed.max().filter(|_| self.replicas > 0) else { return Ok(()) };
        let losses = self.losses.of(repository);
        let known = self.confirmed.get(repository).map_or_else(Confirmed::default, |known| *known);
        if known.losses == losses && needed <= known.sequence {
            return Ok(());
        }
        let done = self.run(repository, &Script::new('T', Vec::new(), &[])).await?;
        // Less is there than was: it was lost between the two calls.
        if done.sequence < needed { Err(restoring()) } else { Ok(()) }
    }
}
