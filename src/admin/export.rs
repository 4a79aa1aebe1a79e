//! The ledger as operators read, save and restore it: for the API, and for commands on the store of a
//! taglock that does not run.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};

use super::model::{
    EntryPage, ExportFooter, ExportHeader, LedgerEntry, ListQuery, RestoreConflict, Restored, State,
};
use crate::ledger::{
    Adopt, Entry, Ledger, Listed, Origin, Position, RepositoryKey, Timestamp, Unavailable,
};
use crate::name::{Digest, Naming, RepositoryName, Tag, UpstreamName};

/// The format of an export.
pub const FORMAT: &str = "taglock-ledger-1";
/// How many entries are read at once.
const PAGE: usize = 500;
/// How many are looked through for one answer.
const LOOKED_THROUGH: usize = 20_000;
/// How many are bound at once: the embedded store commits what waits together.
const AT_ONCE: usize = 64;

/// Why a request can't be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unread {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Ledger(#[from] Unavailable),
}

fn invalid(what: impl ToString) -> Unread {
    Unread::Invalid(what.to_string())
}

/// `repository:tag`.
///
/// # Errors
/// What is wrong with it.
pub fn reference(text: &str) -> Result<(RepositoryName, Tag), String> {
    let (repository, tag) = text
        .rsplit_once(':')
        .ok_or_else(|| format!("`{text}` is no `repository:tag`, such as `prod/app:v1`"))?;
    let repository =
        RepositoryName::parse(repository).map_err(|e| format!("`{repository}`: {e}"))?;
    let tag = Tag::parse(tag).map_err(|e| format!("`{tag}`: {e}"))?;
    Ok((repository, tag))
}

/// An entry for operators; `None` for an absent one.
pub fn shown(key: &RepositoryKey, tag: &Tag, entry: &Entry) -> Option<LedgerEntry> {
    let base = |state, digest: &Digest, since: Timestamp| LedgerEntry {
        upstream: key.upstream.to_string(),
        repository: key.repository.to_string(),
        tag: tag.to_string(),
        state,
        digest: digest.to_string(),
        since: since.to_string(),
        origin: None,
        withdrawn: None,
        pushes: None,
    };
    match entry {
        Entry::Absent => None,
        Entry::Pending(pending) => Some(LedgerEntry {
            pushes: Some(pending.owners.len()),
            ..base(State::Pending, &pending.digest, pending.since)
        }),
        Entry::Sealed(sealed) => Some(LedgerEntry {
            origin: Some(sealed.origin.as_str().to_owned()),
            withdrawn: sealed.withdrawn.map(|when| when.to_string()),
            ..base(State::Sealed, &sealed.digest, sealed.since)
        }),
    }
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    repository: Option<RepositoryName>,
    tag_prefix: String,
    state: Option<State>,
    after: Option<Position>,
    limit: usize,
    /// Only those that have been as they are for so long.
    pub older_than: Option<Duration>,
}

impl Wanted {
    /// # Errors
    /// What is wrong with the query.
    pub fn new(query: &ListQuery, naming: &Naming) -> Result<Self, String> {
        let state = match query.state.as_deref() {
            None => None,
            Some("pending") => Some(State::Pending),
            Some("sealed") => Some(State::Sealed),
            Some(other) => return Err(format!("`{other}` is no state: `pending` or `sealed`")),
        };
        let repository = query.repository.as_deref().map(RepositoryName::parse).transpose();
        let repository = repository.map_err(|e| e.to_string())?;
        let repository = repository.map(|name| naming.repository(name)).transpose();
        let limit = query.limit.unwrap_or(100);
        if !(1..=1000).contains(&limit) {
            return Err("`limit` is 1 to 1000".to_owned());
        }
        Ok(Self {
            repository: repository.map_err(|e| e.to_string())?,
            tag_prefix: query.tag_prefix.clone().unwrap_or_default(),
            state,
            after: query.after.as_deref().map(position).transpose()?,
            limit,
            older_than: None,
        })
    }

    /// Claims that have been pending for so long.
    ///
    /// # Errors
    /// When `after` is no position.
    pub fn pending(after: Option<&str>, older_than: Duration) -> Result<Self, String> {
        let after = after.map(position).transpose()?;
        let (state, older_than) = (Some(State::Pending), Some(older_than));
        Ok(Self { state, after, limit: 1000, older_than, ..Self::default() })
    }

    fn has(&self, tag: &Tag, entry: &Entry) -> bool {
        let (state, since) = match entry {
            Entry::Absent => return false,
            Entry::Pending(pending) => (State::Pending, pending.since),
            Entry::Sealed(sealed) => (State::Sealed, sealed.since),
        };
        let age = Timestamp::now().seconds().saturating_sub(since.seconds());
        self.state.is_none_or(|wanted| wanted == state)
            && self.older_than.is_none_or(|than| age >= than.as_secs())
            && tag.as_str().starts_with(&self.tag_prefix)
    }
}

/// `upstream/repository:tag`: where a listing goes on.
fn position(text: &str) -> Result<Position, String> {
    let wrong = || format!("`{text}` is no `next` of a page");
    let (upstream, rest) = text.split_once('/').ok_or_else(wrong)?;
    let upstream = UpstreamName::parse(upstream).map_err(|_| wrong())?;
    let (repository, tag) = reference(rest).map_err(|_| wrong())?;
    Ok((RepositoryKey { upstream, repository }, tag))
}

/// A page of the entries of an upstream.
///
/// # Errors
/// When the ledger can't be asked.
pub async fn page(
    ledger: &dyn Ledger,
    upstream: &UpstreamName,
    wanted: Wanted,
) -> Result<EntryPage, Unavailable> {
    let (mut entries, mut looked) = (Vec::new(), 0);
    let mut after = wanted.after.clone();
    if let (None, Some(repository)) = (&after, &wanted.repository) {
        // The least tag there can be is where a repository begins.
        let key = RepositoryKey { upstream: upstream.clone(), repository: repository.clone() };
        let Ok(least) = Tag::parse("0") else { return Ok(EntryPage { entries, next: None }) };
        let first = ledger.lookup(&key, std::slice::from_ref(&least)).await?;
        let first = first.entries.first().filter(|entry| wanted.has(&least, entry));
        entries.extend(first.and_then(|entry| shown(&key, &least, entry)));
        after = Some((key, least));
    }
    loop {
        let rows = ledger.list(after.as_ref(), PAGE).await?;
        let last = rows.len() < PAGE;
        for Listed { repository: key, tag, entry } in rows {
            if wanted.repository.as_ref().is_some_and(|wanted| key.repository != *wanted) {
                return Ok(EntryPage { entries, next: None });
            }
            looked += 1;
            if key.upstream == *upstream && wanted.has(&tag, &entry) {
                if entries.len() == wanted.limit {
                    return Ok(EntryPage { entries, next: after.map(written) });
                }
                entries.extend(shown(&key, &tag, &entry));
            }
            after = Some((key, tag));
        }
        if last {
            return Ok(EntryPage { entries, next: None });
        }
        if looked >= LOOKED_THROUGH {
            return Ok(EntryPage { entries, next: after.map(written) });
        }
    }
}

fn written((key, tag): Position) -> String {
    format!("{key}:{tag}")
}

fn line(value: &impl serde::Serialize) -> String {
    // Texts and numbers in fixed shapes: nothing here that a serialiser could refuse.
    serde_json::to_string(value).expect("texts and numbers are JSON") + "\n"
}

/// Where an export stands.
enum At {
    Start,
    After(Option<Position>),
    End,
}

/// The whole ledger as JSON lines, page by page: a header, the entries of all upstreams, a footer.
pub fn export(
    ledger: std::sync::Arc<dyn Ledger>,
) -> impl Stream<Item = Result<String, Unavailable>> + Send + 'static {
    stream::try_unfold((ledger, At::Start, 0_usize), |(ledger, at, told)| async move {
        let after = match at {
            At::End => return Ok(None),
            At::Start => {
                let header = ExportHeader {
                    format: FORMAT.to_owned(),
                    ledger: ledger.identity().await?.id,
                    exported: Timestamp::now().to_string(),
                };
                return Ok(Some((line(&header), (ledger, At::After(None), told))));
            }
            At::After(after) => after,
        };
        let rows = ledger.list(after.as_ref(), PAGE).await?;
        let told = told + rows.len();
        let last = rows.last().map(|row| (row.repository.clone(), row.tag.clone()));
        let entries = rows.iter().filter_map(|row| shown(&row.repository, &row.tag, &row.entry));
        let mut text: String = entries.map(|entry| line(&entry)).collect();
        let next = match last {
            Some(last) if rows.len() == PAGE => At::After(Some(last)),
            _ => {
                text += &line(&ExportFooter { entries: told });
                At::End
            }
        };
        Ok(Some((text, (ledger, next, told))))
    })
}

/// A line of an export, understood.
struct Wish {
    key: RepositoryKey,
    tag: Tag,
    digest: Digest,
    origin: Origin,
    withdrawn: bool,
}

fn wish(entry: &LedgerEntry) -> Result<Wish, String> {
    let LedgerEntry { upstream, repository, tag, digest, origin, withdrawn, .. } = entry;
    let place = |what: &dyn std::fmt::Display| format!("{repository}:{tag}: {what}");
    let origin = origin.as_deref().unwrap_or_default();
    let origin = Origin::ALL.into_iter().find(|known| known.as_str() == origin);
    Ok(Wish {
        key: RepositoryKey {
            upstream: UpstreamName::parse(upstream).map_err(|e| place(&e))?,
            repository: RepositoryName::parse(repository).map_err(|e| place(&e))?,
        },
        tag: Tag::parse(tag).map_err(|e| place(&e))?,
        digest: Digest::parse(digest).map_err(|e| place(&e))?,
        origin: origin.ok_or_else(|| place(&"it has no known `origin`"))?,
        withdrawn: withdrawn.is_some(),
    })
}

/// What became of one line.
enum Fate {
    Sealed(RepositoryName, Tag, Digest),
    Already,
    Conflict(RestoreConflict),
}

/// What a restore came to, and what it bound.
pub struct Outcome {
    pub restored: Restored,
    pub sealed: Vec<(RepositoryName, Tag, Digest)>,
}

/// Binds what is missing. What the ledger has stays as it is, whatever the lines say.
///
/// # Errors
/// When a line makes no sense, nothing was done; when the ledger can't be asked, some may be.
pub async fn restore(ledger: &dyn Ledger, lines: &[LedgerEntry]) -> Result<Outcome, Unread> {
    let mut outcome = Outcome { restored: Restored::default(), sealed: Vec::new() };
    let mut wishes: BTreeMap<RepositoryKey, Vec<Wish>> = BTreeMap::new();
    for entry in lines {
        if entry.state == State::Pending {
            outcome.restored.pending += 1;
            continue;
        }
        let wish = wish(entry).map_err(invalid)?;
        wishes.entry(wish.key.clone()).or_default().push(wish);
    }
    let mut missing = Vec::new();
    for (key, wishes) in wishes {
        let tags: Vec<_> = wishes.iter().map(|wish| wish.tag.clone()).collect();
        let there = ledger.lookup(&key, &tags).await?;
        for (wish, entry) in wishes.into_iter().zip(there.entries) {
            match entry {
                Entry::Sealed(sealed) if sealed.digest == wish.digest => {
                    outcome.restored.already += 1;
                }
                _ => missing.push(wish),
            }
        }
    }
    let mut fates = stream::iter(missing).map(|wish| one(ledger, wish)).buffer_unordered(AT_ONCE);
    while let Some(fate) = fates.try_next().await? {
        match fate {
            Fate::Sealed(repository, tag, digest) => {
                outcome.restored.sealed += 1;
                outcome.sealed.push((repository, tag, digest));
            }
            Fate::Already => outcome.restored.already += 1,
            Fate::Conflict(conflict) => outcome.restored.conflicts.push(conflict),
        }
    }
    let by_name = |conflict: &RestoreConflict| (conflict.repository.clone(), conflict.tag.clone());
    outcome.restored.conflicts.sort_by_key(by_name);
    Ok(outcome)
}

async fn one(ledger: &dyn Ledger, wish: Wish) -> Result<Fate, Unavailable> {
    let Wish { key, tag, digest, origin, withdrawn } = wish;
    let tags = std::slice::from_ref(&tag);
    let freed = ledger.lookup(&key, tags).await?.freed;
    match ledger.adopt(&key, tags, &digest, origin, freed).await? {
        Adopt::Adopted => {}
        Adopt::Freed | Adopt::Deleting => {
            let why = "names of the repository are being freed; restore again";
            return Err(Unavailable::Store(why.to_owned()));
        }
        Adopt::Conflict(holders) => {
            let Some(holder) = holders.first().and_then(|holder| holder.entry.digest()) else {
                return Ok(Fate::Already);
            };
            return Ok(Fate::Conflict(RestoreConflict {
                repository: key.repository.to_string(),
                tag: tag.to_string(),
                export: digest.to_string(),
                ledger: holder.to_string(),
            }));
        }
    }
    if withdrawn {
        ledger.withdraw(&key, tags, &digest).await?;
    }
    Ok(Fate::Sealed(key.repository, tag, digest))
}

#[cfg(test)]
mod tests;
