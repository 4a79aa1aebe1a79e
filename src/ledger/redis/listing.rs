//! Reading repositories whole, and the ledger page by page.
//!
//! Redis keeps a repository's tags in no order, so a page needs all of them. What is left of a
//! large one is kept for the next page: otherwise each page would read the whole again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use redis::cmd;

use super::keys::{entry_of, hash_of, member_of, repository_of};
use super::{MARK, NO_TAG, REPOSITORIES, Redis, failed};
use crate::ledger::{DeleteMark, Entry, Listed, Position, RepositoryKey, Unavailable, codec};
use crate::name::{Digest, Tag};

/// A page that is asked for later than this after its repository was read reads it anew.
const KEPT: Duration = Duration::from_secs(10);

/// The cursor of the next piece, and fields with their values.
type Piece = (u64, Vec<(Vec<u8>, Vec<u8>)>);

/// The rest of the repository that was listed last.
#[derive(Default)]
pub(super) struct Rest(Mutex<Option<Left>>);

struct Left {
    repository: RepositoryKey,
    /// The last tag that was handed out.
    after: Tag,
    entries: IntoIter<(Tag, Entry)>,
    read: Instant,
}

impl Rest {
    /// What comes after this position, if it is known and fresh.
    fn take(&self, (repository, tag): &Position) -> Option<Left> {
        let mut rest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |left: &mut Left| {
            left.repository == *repository && left.after == *tag && left.read.elapsed() < KEPT
        };
        rest.take_if(fits)
    }

    fn keep(&self, left: Left) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
    }
}

impl Redis {
    /// The entries of a repository that are wanted, in the order of their tags. Reads it in pieces: it may have many thousand
    /// tags, and Redis serves others meanwhile.
    pub(super) async fn entries(
        &self,
        repository: &RepositoryKey,
        wanted: impl Fn(&Entry) -> bool + Send + Sync,
    ) -> Result<Vec<(Tag, Entry)>, Unavailable> {
        let mut entries = Vec::new();
        self.scan(repository, |field, value| {
            if field.first() == Some(&NO_TAG) {
                return Ok(());
            }
            let entry = entry_of(value)?;
            if wanted(&entry) {
                let text = std::str::from_utf8(field).map_err(failed)?;
                entries.push((Tag::parse(text).map_err(failed)?, entry));
            }
            Ok(())
        })
        .await?;
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        // What moves within Redis meanwhile may come twice.
        entries.dedup_by(|(a, _), (b, _)| a == b);
        Ok(entries)
    }

    /// The delete marks of a repository, in the order of their digests.
    pub(super) async fn marks(
        &self,
        repository: &RepositoryKey,
    ) -> Result<Vec<(Digest, DeleteMark)>, Unavailable> {
        let mut marks = Vec::new();
        self.scan(repository, |field, value| {
            if let Some(digest) = field.strip_prefix(MARK) {
                let digest = codec::decode_digest(digest).map_err(failed)?;
                marks.push((digest, codec::decode_mark(value).map_err(failed)?));
            }
            Ok(())
        })
        .await?;
        marks.sort_by_key(|(digest, _)| *digest);
        marks.dedup_by_key(|(digest, _)| *digest);
        Ok(marks)
    }

    /// Hands over each field of a repository's hash, at least once.
    async fn scan(
        &self,
        repository: &RepositoryKey,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Unavailable> + Send,
    ) -> Result<(), Unavailable> {
        let hash = hash_of(repository);
        let mut cursor = 0_u64;
        loop {
            let mut call = cmd("HSCAN");
            call.arg(&hash).arg(cursor).arg("COUNT").arg(500);
            let (next, fields): Piece = self.reach.ask(&hash, &call).await?;
            for (field, value) in fields {
                each(&field, &value)?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    pub(super) async fn page(
        &self,
        after: Option<&Position>,
        limit: usize,
    ) -> Result<Vec<Listed>, Unavailable> {
        let mut out = Vec::new();
        let mut from = after.map_or("-".to_owned(), |(key, _)| format!("[{}", member_of(key)));
        let mut left = after.and_then(|after| self.rest.take(after));
        while out.len() < limit {
            let (repository, mut entries, read) = match left.take() {
                Some(left) => (left.repository, left.entries, left.read),
                None => {
                    let Some(repository) = self.repository_from(&from).await? else { break };
                    let read = Instant::now();
                    let mut entries = self.entries(&repository, |_| true).await?;
                    if let Some((_, after)) = after.filter(|(key, _)| *key == repository) {
                        entries.drain(..entries.partition_point(|(tag, _)| tag <= after));
                    }
                    (repository, entries.into_iter(), read)
                }
            };
            from = format!("({}", member_of(&repository));
            let page = entries.by_ref().take(limit - out.len());
            out.extend(page.map(|(tag, entry)| Listed {
                repository: repository.clone(),
                tag,
                entry,
            }));
            if let Some(last) = out.last()
                && out.len() == limit
            {
                let after = last.tag.clone();
                self.rest.keep(Left { repository, after, entries, read });
            }
        }
        Ok(out)
    }

    /// The first repository of the sorted set from here.
    async fn repository_from(&self, from: &str) -> Result<Option<RepositoryKey>, Unavailable> {
        let mut call = cmd("ZRANGE");
        call.arg(REPOSITORIES).arg(from).arg("+").arg("BYLEX").arg("LIMIT").arg(0).arg(1);
        let found: Vec<String> = self.reach.ask(REPOSITORIES, &call).await?;
        found.first().map(|member| repository_of(member)).transpose()
    }
}
