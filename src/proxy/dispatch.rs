//! What is to be done with a request, as far as its route and the rules tell.

use super::dry_run::Rehearsal;
use super::error_response::Refusal;
use super::{Edge, harbor};
use crate::judge::artifacts::Clearance;
use crate::judge::delete::Deletion;
use crate::judge::unjudged::Affected;
use crate::ledger::RepositoryKey;
use crate::name::{Digest, Reference, RepositoryName, Tag};
use crate::route::{Harbor, ManifestWrite, Route};
use crate::rules::{Deletes, Mutability};

/// What is to be done with a request.
pub(super) enum Course {
    /// Streams through; nobody looks again.
    Stream,
    /// A read of a manifest: streams as well, in the bytes it came in where it can.
    Relay,
    /// A read of a blob: streams as well, on a path of its own.
    Blob,
    /// A part of an upload, or the whole: the same the other way.
    Upload,
    /// Answered by taglock alone.
    Refuse(Refusal),
    /// A manifest write in protected scope.
    Write(ManifestWrite),
    /// A write of tags that no rule protects: streams, unless the ledger knows one of them.
    WriteMutable(ManifestWrite),
    /// A write or a delete under a rule that is not enforced: streams, and is watched.
    Rehearse(Box<Rehearsal>),
    /// A pull of a protected tag; perhaps of a repository that everybody may pull from.
    Read { repository: RepositoryName, tag: Tag, public: bool },
    /// A pull by digest from such a repository.
    ReadPublic(RepositoryName, Digest),
    /// A delete in protected scope.
    Delete(Box<Deletion>),
    /// A delete of what no rule protects: streams, unless a rule or the ledger knows the repository.
    DeleteMutable(RepositoryName, Reference),
    /// One by Harbor's API.
    Clear(Box<Clearance>),
    /// A tag that is to be set by Harbor's API in protected scope.
    CreateTag(RepositoryName, Reference),
}

impl Course {
    /// Whether it may be answered without pingora.
    pub(super) fn is_a_small_read(&self) -> bool {
        matches!(self, Self::Relay | Self::Read { .. } | Self::ReadPublic(..))
    }

    pub(super) fn needs_the_ledger(&self) -> bool {
        match self {
            Self::Write(_)
            | Self::WriteMutable(_)
            | Self::Read { .. }
            | Self::Delete(_)
            | Self::DeleteMutable(..)
            | Self::Clear(_)
            | Self::CreateTag(..) => true,
            // A rehearsal is no more than told, and a digest needs no binding.
            Self::Stream | Self::Relay | Self::Blob | Self::Upload | Self::ReadPublic(..) => false,
            Self::Refuse(_) | Self::Rehearse(_) => false,
        }
    }
}

/// What a request may set or delete if it streams; `None` where that is no tag.
pub(super) fn affected(
    route: &Route,
    key: impl Fn(&RepositoryName) -> RepositoryKey,
) -> Option<Affected> {
    Some(match route {
        Route::WriteManifest(write) => Affected::Tags(key(&write.repository), write.tags.clone()),
        Route::DeleteManifest { repository, reference } => {
            Affected::of_delete(key(repository), reference)
        }
        Route::Harbor(Harbor::DeleteTag { repository, tag, .. }) => {
            Affected::Tags(key(repository), vec![tag.clone()])
        }
        Route::Harbor(
            Harbor::CreateTag { repository, .. }
            | Harbor::DeleteArtifact { repository, .. }
            | Harbor::Copy(repository)
            | Harbor::DeleteRepository(repository),
        ) => Affected::Repository(key(repository)),
        _ => return None,
    })
}

impl Edge {
    /// What the rules make of a route. Whatever is not named here streams.
    pub(super) fn course(&self, route: Route) -> Course {
        let rules = self.rooms.rules.load();
        let route = match Rehearsal::of(route, &rules, |name| self.key(name)) {
            Ok(rehearsal) => return Course::Rehearse(rehearsal),
            Err(route) => route,
        };
        match route {
            Route::WriteManifest(write) if rules.protecting(&write.repository).is_some() => {
                Course::Write(write)
            }
            Route::WriteManifest(write) if !write.tags.is_empty() => Course::WriteMutable(write),
            Route::ReadManifest { repository, reference } => {
                let rule = rules.protecting(&repository);
                let public = self.rooms.shelf.is_some() && rule.is_some_and(|r| r.anonymous_pull);
                match (rule, reference) {
                    (Some(rule), Reference::Tag(tag))
                        if rule.mutability_of(&tag) == Mutability::Immutable =>
                    {
                        Course::Read { repository, tag, public }
                    }
                    (Some(_), Reference::Digest(digest)) if public => {
                        Course::ReadPublic(repository, digest)
                    }
                    _ if self.config.relays => Course::Relay,
                    _ => Course::Stream,
                }
            }
            Route::DeleteManifest { repository, reference } => {
                match (rules.protecting(&repository), &reference) {
                    (None, _) => Course::DeleteMutable(repository, reference),
                    (Some(rule), Reference::Tag(tag))
                        if rule.mutability_of(tag) == Mutability::Mutable =>
                    {
                        Course::DeleteMutable(repository, reference)
                    }
                    (Some(rule), _) => {
                        let (repository, rule) = (self.key(&repository), rule.clone());
                        Course::Delete(Box::new(Deletion { repository, reference, rule }))
                    }
                }
            }
            Route::DeleteBlob { repository, .. } => match rules.protecting(&repository) {
                // It might be a part of an image that some tag is bound to.
                Some(rule) if rule.deletes == Deletes::Refuse => {
                    Course::Refuse(Refusal::blob_delete(&repository))
                }
                _ => Course::Stream,
            },
            Route::ReadUnnamable { repository } if rules.protecting(&repository).is_some() => {
                Course::Refuse(Refusal::unnamable())
            }
            Route::Harbor(harbor) => harbor::course(harbor, &rules, |name| self.key(name)),
            Route::ReadBlob { .. } if self.config.swift => Course::Blob,
            Route::Upload(_) if self.config.swift && !self.config.registry_tls => Course::Upload,
            _ => Course::Stream,
        }
    }
}
