//! The registry against the ledger: what is there is bound, what is bound compared.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Parts;
use super::ledger::{canonical, key, text};
use super::model::{
    After, Change, Difference, DriftReport, Imported, KnownDifference, Problem, ProtectedTags,
    RepositoryPage, RepositoryQuery, TagDigest, TagsRequest, Unseen, Verified,
};
use super::response::{Answer, Body, No, Query};
use crate::judge::drift;
use crate::judge::inspection::Compared;
use crate::ledger::RepositoryKey;
use crate::name::{Digest, RepositoryName, Tag};
use crate::registry::catalog::Repositories;
use crate::registry::{Caller, Listing};
use crate::rules::{Mutability, Rules};
use crate::telemetry::audit::Act;

/// How many tags one request may name: each is a request to the registry.
pub(super) const MAX_TAGS: usize = 100;
/// How many tags of a repository are listed.
const LISTED: usize = 100_000;

/// The repositories of the registry, page by page.
#[utoipa::path(
    get,
    path = "/v1/catalogue",
    params(After),
    responses(
        (status = 200, description = "a page", body = RepositoryPage),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "the registry did not say", body = Problem)
    )
)]
pub(super) async fn catalogue(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<After>,
) -> Answer<RepositoryPage> {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    let page = query.after.as_deref();
    if page.is_some_and(|page| !plain(page)) {
        return Err(No::invalid("`after` is no `next` of a page"));
    }
    match parts.eyes.catalogue.repositories(&caller(&parts), page).await {
        Repositories::Page { names, odd, next } => {
            let repositories = names.iter().map(ToString::to_string).collect();
            Ok(Json(RepositoryPage { repositories, odd, next }))
        }
        Repositories::Denied(answer) => Err(No::denied(answer.status)),
        Repositories::Unclear(trouble) => Err(No::unavailable(format!(
            "the registry's catalogue could not be read: {trouble}; repositories can be named instead"
        ))),
    }
}

/// The tags of a repository that the rules make immutable, as the registry lists them.
#[utoipa::path(
    get,
    path = "/v1/tags",
    params(RepositoryQuery),
    responses(
        (status = 200, description = "the tags", body = ProtectedTags),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "the registry did not say", body = Problem)
    )
)]
pub(super) async fn tags(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<RepositoryQuery>,
) -> Answer<ProtectedTags> {
    let name = RepositoryName::parse(&query.repository).map_err(No::invalid)?;
    let name = canonical(&parts, name)?;
    let rules = parts.rules.load_full();
    let mut found = ProtectedTags { repository: name.to_string(), tags: Vec::new(), mutable: 0 };
    // Most repositories may be mutable: the registry needs not be asked for their tags.
    if rules.protecting(&name).is_none() {
        return Ok(Json(found));
    }
    let listed = match parts.eyes.registry.tags(&caller(&parts), &name, LISTED).await {
        Listing::All(tags) => tags,
        Listing::TooMany => return Err(No::unavailable(format!("it has more than {LISTED} tags"))),
        Listing::Denied(answer) => return Err(No::denied(answer.status)),
        Listing::Unclear(trouble) => return Err(No::unavailable(trouble)),
    };
    let (mut immutable, mutable): (Vec<_>, Vec<_>) =
        listed.into_iter().partition(|tag| protects(&rules, &name, tag));
    immutable.sort();
    found.tags = immutable.iter().map(ToString::to_string).collect();
    found.mutable = mutable.len();
    Ok(Json(found))
}

/// Binds tags that the ledger lacks to what the registry has. Cheap to repeat, and safe beside
/// running pushes.
#[utoipa::path(
    post,
    path = "/v1/import",
    request_body = TagsRequest,
    responses(
        (status = 200, description = "what became of them", body = Imported),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "some may be bound; try again", body = Problem)
    )
)]
pub(super) async fn import(
    State(parts): State<Arc<Parts>>,
    Body(request): Body<TagsRequest>,
) -> Answer<Imported> {
    let actor = text(request.actor.as_deref().unwrap_or_default(), "actor")?;
    let (key, immutable, mutable) = sorted(&parts, &request)?;
    let (caller, registry) = (caller(&parts), &*parts.eyes.registry);
    let imported = parts.judge.import(registry, &caller, &key, immutable).await?;
    for (tag, digest) in &imported.sealed {
        let (repository, digest) = (&key.repository, Some(digest));
        let outcome = "imported";
        let tag = Some(tag);
        parts.audit.act(&Act { actor, repository, tag, digest, reason: None, outcome });
    }
    let sealed = |(tag, digest): &(Tag, Digest)| TagDigest {
        tag: tag.to_string(),
        digest: digest.to_string(),
    };
    Ok(Json(Imported {
        repository: key.repository.to_string(),
        sealed: imported.sealed.iter().map(sealed).collect(),
        already: texts(&imported.already),
        pending: texts(&imported.pending),
        absent: texts(&imported.absent),
        unseen: imported.unseen.into_iter().map(|(tag, why)| unseen(&key, &tag, why)).collect(),
        mutable: texts(&mutable),
    }))
}

/// Compares tags' entries with the registry. What differs is known as drift from then on.
#[utoipa::path(
    post,
    path = "/v1/verify",
    request_body = TagsRequest,
    responses(
        (status = 200, description = "how they stand to each other", body = Verified),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "the ledger did not say", body = Problem)
    )
)]
pub(super) async fn verify(
    State(parts): State<Arc<Parts>>,
    Body(request): Body<TagsRequest>,
) -> Answer<Verified> {
    let (key, immutable, mutable) = sorted(&parts, &request)?;
    let (caller, registry) = (caller(&parts), &*parts.eyes.registry);
    let compared = parts.judge.compare(registry, &caller, &key, immutable).await?;
    let mut verified = Verified {
        equal: 0,
        differences: Vec::new(),
        unseen: Vec::new(),
        withdrawn: 0,
        pending: 0,
        absent: 0,
        mutable: mutable.len(),
    };
    for (tag, compared) in compared {
        match compared {
            Compared::Equal => verified.equal += 1,
            Compared::Withdrawn => verified.withdrawn += 1,
            Compared::Pending => verified.pending += 1,
            Compared::Absent => verified.absent += 1,
            Compared::Differs { bound, seen } => {
                verified.differences.push(difference(&key, &tag, &bound, seen.as_ref()));
            }
            Compared::Unseen(why) => verified.unseen.push(unseen(&key, &tag, why)),
        }
    }
    Ok(Json(verified))
}

/// Tags that this proxy knows to differ from the ledger in the registry itself.
#[utoipa::path(
    get,
    path = "/v1/drift",
    responses((status = 200, description = "what is known", body = DriftReport))
)]
pub(super) async fn drift(State(parts): State<Arc<Parts>>) -> Json<DriftReport> {
    let watch = parts.judge.drift();
    let mut known = watch.map(|drift| drift.list()).unwrap_or_default();
    known.sort_by(|a, b| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag)));
    let shown = |found: &drift::Difference| KnownDifference {
        difference: difference(&found.repository, &found.tag, &found.bound, found.seen.as_ref()),
        first_seen: found.first.to_string(),
        last_seen: found.last.to_string(),
    };
    let differences = known.iter().map(shown).collect();
    Json(DriftReport { watched: watch.is_some(), differences })
}

fn difference(key: &RepositoryKey, tag: &Tag, bound: &Digest, seen: Option<&Digest>) -> Difference {
    Difference {
        repository: key.repository.to_string(),
        tag: tag.to_string(),
        change: if seen.is_some() { Change::Moved } else { Change::Gone },
        ledger: bound.to_string(),
        registry: seen.map(ToString::to_string),
    }
}

fn unseen(key: &RepositoryKey, tag: &Tag, why: String) -> Unseen {
    Unseen { repository: key.repository.to_string(), tag: tag.to_string(), why }
}

pub(super) fn caller(parts: &Parts) -> Caller {
    Caller::taglock(&parts.eyes.host)
}

fn texts(tags: &[Tag]) -> Vec<String> {
    tags.iter().map(ToString::to_string).collect()
}

fn protects(rules: &Rules, repository: &RepositoryName, tag: &Tag) -> bool {
    let rule = rules.protecting(repository);
    rule.is_some_and(|rule| rule.mutability_of(tag) == Mutability::Immutable)
}

/// The tags asked for: those the rules make immutable, and the others.
fn sorted(parts: &Parts, request: &TagsRequest) -> Result<(RepositoryKey, Vec<Tag>, Vec<Tag>), No> {
    let name = RepositoryName::parse(&request.repository).map_err(No::invalid)?;
    let name = canonical(parts, name)?;
    if request.tags.len() > MAX_TAGS {
        return Err(No::invalid(format!("at most {MAX_TAGS} tags at once")));
    }
    let tags: Result<Vec<_>, _> = request.tags.iter().map(|tag| Tag::parse(tag)).collect();
    let tags = tags.map_err(No::invalid)?.into_iter();
    let mut tags = tags.map(|tag| parts.naming.tag(tag)).collect::<Vec<_>>();
    tags.sort();
    tags.dedup();
    let rules = parts.rules.load_full();
    let (immutable, mutable) = tags.into_iter().partition(|tag| protects(&rules, &name, tag));
    Ok((key(parts, name), immutable, mutable))
}
