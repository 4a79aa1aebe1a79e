//! Pulls from repositories that everybody may pull from: manifests from memory where there are any.

use std::sync::Arc;
use tokio::time::Instant;

use http::header::RANGE;
use pingora::Result;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::Edge;
use super::context::Passage;
use super::error_response::Refusal;
use super::pull::reading;
use crate::name::{Digest, RepositoryName, Tag};
use crate::registry::manifest_cache::Kept;
use crate::registry::{Caller, Registry, Serving, Trouble};
use crate::route::{namespace, query_of};

impl Edge {
    /// The shortest way there is: nothing is asked of anybody. False where something must be.
    pub(super) async fn read_at_hand(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<bool> {
        let Some(kept) = self.at_hand(session.req_header(), passage, repository, tag) else {
            return Ok(false);
        };
        self.write_kept(session, passage, &kept).await?;
        Ok(true)
    }

    /// The manifest of a tag, where memory has both.
    pub(super) fn at_hand(
        &self,
        header: &RequestHeader,
        passage: &mut Passage,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Option<Arc<Kept>> {
        // Not when the request came: it may have waited for the ledger's gate.
        let started = Instant::now();
        let key = self.key(repository);
        let digest = self.rooms.judge.fresh(&key, tag, started)?.digest;
        let kept = self.rooms.shelf.as_ref()?.at_hand(repository, &digest, &header.headers)?;
        self.rooms.metrics.pull_by_memory("served", started.elapsed());
        passage.judged("served");
        self.warn_of_drift(passage, &key, tag, &digest);
        Some(kept)
    }

    /// The manifest of a digest, where memory has it.
    pub(super) fn public_at_hand(
        &self,
        header: &RequestHeader,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Option<Arc<Kept>> {
        // A part can't be checked against the digest of the whole.
        if header.headers.contains_key(RANGE) {
            return None;
        }
        self.rooms.shelf.as_ref()?.at_hand(repository, digest, &header.headers)
    }

    /// A GET or HEAD by digest. False where the request is to stream after all.
    pub(super) async fn read_public(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool> {
        let Some(shelf) = &self.rooms.shelf else { return Ok(false) };
        let header = session.req_header();
        if header.headers.contains_key(RANGE) {
            return Ok(false);
        }
        if let Some(kept) = self.public_at_hand(header, repository, digest) {
            self.write_kept(session, passage, &kept).await?;
            return Ok(true);
        }
        let reading = reading(&header.method);
        let caller =
            self.caller(session.req_header(), passage, namespace(query_of(header.raw_path())));
        let caller = Caller { public: true, ..caller };
        match shelf.serve(&caller, repository, digest, reading).await {
            Serving::Good(answer)
            | Serving::Kept(answer)
            | Serving::NotFound(answer)
            | Serving::Other(answer) => self.pass_on(session, passage, reading, answer).await?,
            Serving::Unclear(
                trouble @ (Trouble::Unreachable | Trouble::TimedOut | Trouble::Cut),
            ) => {
                self.refuse(session, passage, Refusal::trouble(&trouble)).await?;
            }
            // Whoever asks by digest checks it; what the registry says is passed on as it comes, a
            // redirect or other bytes.
            Serving::Wrong(_)
            | Serving::Unclear(
                Trouble::Status(_) | Trouble::Answered(_) | Trouble::Garbage(_) | Trouble::Internal,
            ) => {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn write_kept(
        &self,
        session: &mut Session,
        passage: &mut Passage,
        kept: &Kept,
    ) -> Result<()> {
        let reading = reading(&session.req_header().method);
        let answer = kept.answer();
        let parts = (answer.status, &answer.headers, answer.body.clone());
        self.write_answer(session, passage, reading, parts).await
    }
}
