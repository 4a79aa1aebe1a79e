//! What operators have done to many tags at once: existing ones are bound, and bound ones compared with the
//! registry. Both look with taglock's own eyes, never with a client's.

use http::StatusCode;

use super::{Judge, OLDER_WRITES};
use crate::ledger::{
    Adopt, Entry, FreedNumber, Ledger, Origin, RepositoryKey, Sealed, Unavailable,
};
use crate::name::{Digest, Reference, Tag};
use crate::registry::{Answer, Caller, Registry, Sighting};

/// How often an import looks at a tag, where names are freed meanwhile.
const IMPORTS: usize = 5;

/// What an import came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Bound now, to what the registry has.
    pub sealed: Vec<(Tag, Digest)>,
    /// Bound before, and left as they are.
    pub already: Vec<Tag>,
    /// Claimed by a push: its end decides.
    pub pending: Vec<Tag>,
    /// Neither bound nor in the registry.
    pub absent: Vec<Tag>,
    /// What the registry has was not to be found out, and why.
    pub unseen: Vec<(Tag, String)>,
}

/// Why it did not go through all of them; it is safe to come again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halted {
    #[error("{0}")]
    Ledger(#[from] Unavailable),
    #[error("the registry asks to slow down (429)")]
    SlowDown,
}

/// A no of the registry to taglock itself: about this tag, or a reason to stop.
fn denied(answer: &Answer) -> Result<String, Halted> {
    match answer.status {
        StatusCode::TOO_MANY_REQUESTS => Err(Halted::SlowDown),
        status => Ok(format!("the registry answered {status} to taglock's own account")),
    }
}

/// How a tag's entry and the registry stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    Equal,
    /// The registry has another image under it, or none.
    Differs {
        bound: Digest,
        seen: Option<Digest>,
    },
    /// Deleted through taglock, and gone.
    Withdrawn,
    Pending,
    Absent,
    /// The registry did not say.
    Unseen(String),
}

impl Judge {
    /// Binds those of these protected tags that the ledger lacks to what the registry has.
    ///
    /// Safe beside running pushes, and cheap to repeat: a tag with an entry is not looked at.
    ///
    /// # Errors
    /// When it can't go on; some tags may be bound already.
    pub async fn import(
        &self,
        registry: &dyn Registry,
        caller: &Caller,
        key: &RepositoryKey,
        tags: Vec<Tag>,
    ) -> Result<Imported, Halted> {
        let mut imported = Imported::default();
        let before = self.ledger.lookup(key, &tags).await?;
        for (tag, entry) in tags.into_iter().zip(before.entries) {
            match entry {
                Entry::Absent => {
                    let mut freed = Some(before.freed);
                    for _ in 0..IMPORTS {
                        let Some(number) = freed else { break };
                        let one = (&tag, number);
                        freed = self.import_one(registry, caller, key, one, &mut imported).await?;
                    }
                    if freed.is_some() {
                        let why = "names of the repository are being freed; import it again";
                        imported.unseen.push((tag, why.to_owned()));
                    }
                }
                Entry::Pending(_) => imported.pending.push(tag),
                Entry::Sealed(_) => imported.already.push(tag),
            }
        }
        Ok(imported)
    }

    /// The repository's freed number of this moment, where a name was freed since the one that was given: what
    /// the registry showed proves nothing, and is to be looked at again.
    async fn import_one(
        &self,
        registry: &dyn Registry,
        caller: &Caller,
        key: &RepositoryKey,
        (tag, freed): (&Tag, FreedNumber),
        imported: &mut Imported,
    ) -> Result<Option<FreedNumber>, Halted> {
        let tags = std::slice::from_ref(tag);
        let tag = tag.clone();
        // What older rules let through must have ended before anything is bound.
        if self.unjudged.none(key, tags, OLDER_WRITES).await.is_err() {
            imported.unseen.push((tag, "a push to it is under way".to_owned()));
            return Ok(None);
        }
        let digest = match registry.resolve(caller, &key.repository, &tag).await {
            Sighting::Found(digest) => digest,
            Sighting::NotFound(_) => {
                imported.absent.push(tag);
                return Ok(None);
            }
            Sighting::Denied(answer) | Sighting::Failed(answer) => {
                imported.unseen.push((tag, denied(&answer)?));
                return Ok(None);
            }
            Sighting::Unclear(trouble) => {
                imported.unseen.push((tag, trouble.to_string()));
                return Ok(None);
            }
        };
        let adopted = self.ledger.adopt(key, tags, &digest, Origin::Import, freed).await?;
        self.rivals.wake(key, tags);
        match adopted {
            Adopt::Adopted => imported.sealed.push((tag, digest)),
            // Somebody got ahead: then that stands.
            Adopt::Conflict(holders) => match holders.first().map(|holder| &holder.entry) {
                Some(Entry::Sealed(_)) => imported.already.push(tag),
                _ => imported.pending.push(tag),
            },
            Adopt::Freed => return Ok(Some(self.ledger.lookup(key, &[]).await?.freed)),
            Adopt::Deleting => {
                imported.unseen.push((tag, "a delete of its image is under way".to_owned()));
            }
        }
        Ok(None)
    }

    /// Compares these tags' entries with the registry. What differs is known as drift from then on;
    /// nothing is adopted.
    ///
    /// # Errors
    /// When it can't go on.
    pub async fn compare(
        &self,
        registry: &dyn Registry,
        caller: &Caller,
        key: &RepositoryKey,
        tags: Vec<Tag>,
    ) -> Result<Vec<(Tag, Compared)>, Halted> {
        let entries = self.ledger.lookup(key, &tags).await?.entries;
        let mut compared = Vec::new();
        for (tag, entry) in tags.into_iter().zip(entries) {
            let result = match entry {
                Entry::Absent => Compared::Absent,
                Entry::Pending(_) => Compared::Pending,
                Entry::Sealed(sealed) => {
                    self.compare_one(registry, caller, key, &tag, &sealed).await?
                }
            };
            compared.push((tag, result));
        }
        Ok(compared)
    }

    async fn compare_one(
        &self,
        registry: &dyn Registry,
        caller: &Caller,
        key: &RepositoryKey,
        tag: &Tag,
        sealed: &Sealed,
    ) -> Result<Compared, Halted> {
        let reference = Reference::Tag(tag.clone());
        let seen = match registry.look(caller, &key.repository, &reference).await {
            Sighting::Found(digest) => Some(digest),
            Sighting::NotFound(_) => None,
            Sighting::Denied(answer) | Sighting::Failed(answer) => {
                return Ok(Compared::Unseen(denied(&answer)?));
            }
            Sighting::Unclear(trouble) => return Ok(Compared::Unseen(trouble.to_string())),
        };
        let bound = sealed.digest;
        let told = |seen| {
            if let Some(drift) = &self.drift
                && sealed.withdrawn.is_none()
            {
                drift.saw(key, tag, &bound, seen);
            }
        };
        if seen == Some(bound) {
            told(seen);
            return Ok(Compared::Equal);
        }
        if seen.is_some_and(|seen| seen.algorithm() != bound.algorithm()) {
            let other = "the registry names it by another algorithm than the ledger";
            return Ok(Compared::Unseen(other.to_owned()));
        }
        // Meanwhile the name may have been let go of, or the image deleted through taglock.
        let now = self.ledger.lookup(key, std::slice::from_ref(tag)).await?;
        match now.entries.into_iter().next() {
            Some(Entry::Sealed(now)) if now.token() == sealed.token() => {
                if seen.is_none() && now.withdrawn.is_some() {
                    return Ok(Compared::Withdrawn);
                }
            }
            _ => return Ok(Compared::Absent),
        }
        // A registry says 404 for "no access", too: then the image can't be seen either, and it
        // is told here, but not to those who pull.
        let image = Reference::Digest(bound);
        let lets_in = seen.is_some()
            || matches!(registry.look(caller, &key.repository, &image).await, Sighting::Found(_));
        if lets_in {
            told(seen);
        }
        Ok(Compared::Differs { bound, seen })
    }
}
