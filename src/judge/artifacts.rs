//! What comes by a registry's own API, where it has one beside the spec's: a tag is set there for an
//! artifact that is stored already, and goes alone; an artifact takes its tags and its
//! accessories along, and a repository all that is in it.
//!
//! The same protocol as for pushes, and the same plan as for deletes by the spec. What the registry
//! has is seen through that API, so that a client needs no other credentials.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use super::delete::{MAX_TAGS, NoDelete, Ruling, Unsettled, plan};
use super::mutable::Coverage;
use super::survey::Missed;
use super::{Cargo, Content, Judge, Judged, Options, Push, Undecided, Verdict};
use crate::ledger::{AttemptId, Entry, Ledger, RepositoryKey, Unavailable};
use crate::name::{Digest, Reference, Tag};
use crate::registry::{self, Answer, Artifacts, Caller, Listing, Manifest, Sighting, Trouble};
use crate::rules::{Deletes, Mutability, Rule};

/// How many accessories are looked through, those of accessories included.
const MAX_ACCESSORIES: usize = 100;

/// Judges what comes by that API.
pub struct Desk {
    judge: Judge,
    api: Arc<dyn Artifacts>,
}

/// What is to go.
#[derive(Clone, Debug)]
pub enum Removal {
    /// A protected tag, of this artifact.
    Tag {
        tag: Tag,
        artifact: Reference,
    },
    Artifact(Reference),
    Repository,
}

/// A tag that is to be set.
#[derive(Clone, Debug)]
pub struct Tagging {
    pub repository: RepositoryKey,
    pub tag: Tag,
    /// As the registry has shown it to this client.
    pub artifact: Digest,
    /// The one that protects the repository, if one does by now.
    pub rule: Option<Rule>,
    pub options: Options,
}

impl Tagging {
    /// Whether the tag is immutable.
    pub fn is_protected(&self) -> bool {
        let mutability = self.rule.as_ref().map(|rule| rule.mutability_of(&self.tag));
        mutability == Some(Mutability::Immutable)
    }
}

/// A delete by that API in protected scope.
#[derive(Clone, Debug)]
pub struct Clearance {
    pub repository: RepositoryKey,
    pub removal: Removal,
    /// The one that protects the repository.
    pub rule: Rule,
}

impl Desk {
    /// Beside a judge, with all that it knows of pushes under way.
    pub fn beside(judge: &Judge, api: Arc<dyn Artifacts>) -> Self {
        Self { judge: judge.through(Arc::<dyn Artifacts>::clone(&api)), api }
    }

    /// The digest under a reference, on this client's behalf.
    ///
    /// # Errors
    /// The registry's no, or why there is none.
    pub async fn artifact(
        &self,
        key: &RepositoryKey,
        reference: &Reference,
        caller: &Caller,
    ) -> Result<Digest, Verdict<Answer>> {
        match self.api.look(caller, &key.repository, reference).await {
            Sighting::Found(digest) => Ok(digest),
            Sighting::NotFound(answer) | Sighting::Denied(answer) | Sighting::Failed(answer) => {
                Err(Verdict::Relayed(answer))
            }
            Sighting::Unclear(trouble) => Err(Verdict::Undecided(Undecided::Registry(trouble))),
        }
    }

    /// Takes a tag to its verdict, as [`Judge::push`] an image. Nothing has to be stored first: the
    /// registry has shown the artifact, and checks this client's right where it sets the tag.
    pub async fn tag(&self, tagging: Tagging, caller: Caller) -> Judged {
        let protected = tagging.is_protected();
        let Tagging { repository, tag, artifact, rule, options } = tagging;
        let options = Options { stage: false, shown: true, ..options };
        // No bytes: a tag is put by the digest that is named.
        let manifest = Manifest { bytes: Bytes::new(), media_type: HeaderValue::from_static("") };
        let cargo = Cargo { caller, manifest, named: Some(artifact) };
        let tags = vec![tag];
        let (protected, mutable) = if protected { (tags, vec![]) } else { (vec![], tags) };
        let push = Push {
            repository,
            protected,
            mutable,
            content: Content::known(artifact),
            attempt: AttemptId::random(),
            errand: AttemptId::random(),
            options,
        };
        match rule.filter(|rule| rule.except_must_be_bound) {
            _ if !push.protected.is_empty() => self.judge.push(push, cargo).await,
            Some(rule) => self.judge.pass_anchored(&rule, &push, None, cargo).await,
            None => {
                let Push { repository, mutable, .. } = &push;
                self.judge.pass(repository, None, mutable, cargo, Coverage::Ruled).await
            }
        }
    }

    /// Takes a delete to its ruling; to be run in a task of its own, as [`Judge::delete`].
    pub async fn remove(&self, clearance: &Clearance, caller: &Caller) -> Ruling {
        let Clearance { repository: key, removal, .. } = clearance;
        // Who may not look is told so by the registry, and moves nothing here.
        let seen = match removal {
            Removal::Tag { artifact: reference, .. } | Removal::Artifact(reference) => {
                match self.api.look(caller, &key.repository, reference).await {
                    Sighting::Found(digest) => Ok(Some(digest)),
                    Sighting::NotFound(answer)
                    | Sighting::Denied(answer)
                    | Sighting::Failed(answer) => Err(Ok(answer)),
                    Sighting::Unclear(trouble) => Err(Err(trouble)),
                }
            }
            Removal::Repository => {
                self.api.repository(caller, &key.repository).await.map(|()| None)
            }
        };
        let artifact = match seen {
            Ok(artifact) => artifact,
            Err(Ok(answer)) => return Ruling::Relayed(answer),
            Err(Err(trouble)) => return Ruling::Undecided(Unsettled::Registry(trouble)),
        };
        // Of the artifact that was looked at, wherever the client's reference leads by now.
        let target = match (removal, &artifact) {
            (Removal::Tag { tag, .. }, Some(artifact)) => registry::Removal::Tag { tag, artifact },
            (Removal::Artifact(_), Some(artifact)) => registry::Removal::Artifact(artifact),
            (Removal::Repository, _) => registry::Removal::Repository,
            (Removal::Tag { .. } | Removal::Artifact(_), None) => {
                let nowhere = Trouble::Garbage("an artifact without a digest");
                return Ruling::Undecided(Unsettled::Registry(nowhere));
            }
        };
        let digests = match self.taken(clearance, caller, target).await {
            Ok(digests) => digests,
            Err(ruling) => return ruling,
        };
        let (deleting, mut holders) = match self.judge.begin_delete(key, &digests).await {
            Ok(begun) => begun,
            Err(error) => return error.into(),
        };
        if let registry::Removal::Tag { tag, .. } = target {
            holders.retain(|holder| holder.tag == *tag);
        }
        match plan(&clearance.rule, holders) {
            Ok(plan) => {
                let deleted = self.api.remove(caller, &key.repository, target).await;
                self.judge.settle(deleting, plan, deleted).await
            }
            Err(no) => {
                self.judge.cancel_delete(deleting).await;
                no.into()
            }
        }
    }

    /// The digests of all that goes, once nothing is known that stands against it.
    async fn taken(
        &self,
        clearance: &Clearance,
        caller: &Caller,
        target: registry::Removal<'_>,
    ) -> Result<Vec<Digest>, Ruling> {
        let Clearance { repository: key, rule, .. } = clearance;
        match target {
            registry::Removal::Tag { tag, .. } if rule.deletes == Deletes::Refuse => {
                Err(NoDelete::Immutable(tag.clone()).into())
            }
            registry::Removal::Tag { tag, .. } => {
                let bound = self.judge.adopt(caller, key, vec![tag.clone()]).await?;
                let digests = bound.iter().filter_map(|(_, entry)| entry.digest());
                Ok(digests.copied().collect())
            }
            registry::Removal::Artifact(artifact) => {
                self.taken_by_artifact(clearance, caller, *artifact).await
            }
            registry::Removal::Repository => self.taken_by_repository(clearance, caller).await,
        }
    }

    /// What the ledger binds the tags of the repository to.
    async fn taken_by_repository(
        &self,
        clearance: &Clearance,
        caller: &Caller,
    ) -> Result<Vec<Digest>, Ruling> {
        let Clearance { repository: key, rule, .. } = clearance;
        match rule.deletes {
            Deletes::Refuse => return Err(NoDelete::Repository.into()),
            // Their names stay bound: so those the ledger lacks are adopted first.
            Deletes::Keep => drop(self.judge.adopt_all(caller, key, rule).await?),
            // A tag that the ledger lacks is free already.
            Deletes::Release => {}
        }
        let entries = self.judge.entries_after(key, None, MAX_TAGS + 1).await?;
        if entries.len() > MAX_TAGS {
            return Err(Missed::TooMany.into());
        }
        let digests: BTreeSet<_> = entries.iter().filter_map(|(_, entry)| entry.digest()).collect();
        Ok(digests.into_iter().copied().collect())
    }

    /// The digests of the artifact and of what goes with it; every tag of theirs is bound.
    async fn taken_by_artifact(
        &self,
        clearance: &Clearance,
        caller: &Caller,
        artifact: Digest,
    ) -> Result<Vec<Digest>, Ruling> {
        let Clearance { repository: key, rule, .. } = clearance;
        let digests = self.with_accessories(key, caller, artifact).await?;
        let mut tags = BTreeSet::new();
        for digest in &digests {
            let own = self.api.tags_of(caller, &key.repository, digest, MAX_TAGS).await;
            tags.extend(listed(own)?);
        }
        tags.retain(|tag| rule.mutability_of(tag) == Mutability::Immutable);
        if tags.len() > MAX_TAGS {
            return Err(Missed::TooMany.into());
        }
        // A tag that was there before taglock counts like any other.
        self.judge.adopt(caller, key, tags.into_iter().collect()).await?;
        let bound = self.judge.bound(key, rule, &digests).await?;
        match bound.first() {
            Some((tag, _)) if rule.deletes == Deletes::Refuse => {
                Err(NoDelete::Immutable(tag.clone()).into())
            }
            _ => Ok(digests),
        }
    }

    /// The artifact, its accessories, theirs, and so on.
    async fn with_accessories(
        &self,
        key: &RepositoryKey,
        caller: &Caller,
        artifact: Digest,
    ) -> Result<Vec<Digest>, Ruling> {
        let mut digests = vec![artifact];
        let mut next = 0;
        while let Some(digest) = digests.get(next).copied() {
            let accessories =
                self.api.accessories(caller, &key.repository, &digest, MAX_ACCESSORIES).await;
            for accessory in listed(accessories)? {
                if !digests.contains(&accessory) {
                    digests.push(accessory);
                }
            }
            if digests.len() > MAX_ACCESSORIES {
                return Err(Missed::TooMany.into());
            }
            next += 1;
        }
        Ok(digests)
    }
}

impl Judge {
    /// The entries of a repository behind this tag, in the order of the tags, up to so many.
    pub(super) async fn entries_after(
        &self,
        key: &RepositoryKey,
        after: Option<&Tag>,
        at_most: usize,
    ) -> Result<Vec<(Tag, Entry)>, Unavailable> {
        if let Some(after) = after {
            let listed = self.ledger.list(Some(&(key.clone(), after.clone())), at_most).await?;
            let own = listed.into_iter().take_while(|listed| listed.repository == *key);
            return Ok(own.map(|listed| (listed.tag, listed.entry)).collect());
        }
        // No tag comes before this one, which a list that begins after it leaves out.
        let Ok(first) = Tag::parse("0") else { return Ok(Vec::new()) };
        let entry = self.ledger.lookup(key, std::slice::from_ref(&first)).await?.entries.pop();
        let listed = self.ledger.list(Some(&(key.clone(), first.clone())), at_most).await?;
        let rest = listed.into_iter().take_while(|listed| listed.repository == *key);
        let first = entry.filter(|entry| *entry != Entry::Absent).map(|entry| (first, entry));
        Ok(first.into_iter().chain(rest.map(|listed| (listed.tag, listed.entry))).collect())
    }
}

#[expect(clippy::result_large_err, reason = "the ruling is the answer itself, moved once")]
fn listed<T>(listing: Listing<Answer, T>) -> Result<Vec<T>, Ruling> {
    match listing {
        Listing::All(all) => Ok(all),
        Listing::TooMany => Err(Missed::TooMany.into()),
        Listing::Denied(answer) => Err(Ruling::Relayed(answer)),
        Listing::Unclear(trouble) => Err(Missed::Registry(trouble).into()),
    }
}
