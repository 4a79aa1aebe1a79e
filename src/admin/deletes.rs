//! Delete marks: what the registry has not answered for good, and an operator's word in its place.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Parts;
use super::ledger::{canonical, key, text};
use super::model::{ClearDelete, ClearedDelete, DeleteMark, DeleteMarks, Problem, RepositoryQuery};
use super::response::{Answer, Body, No, Query};
use crate::ledger::{DeleteEnd, Ended, RepositoryKey};
use crate::name::{Digest, RepositoryName};
use crate::telemetry::audit::Act;

/// The delete marks of a repository: of deletes that are under way, or whose outcome is unknown.
#[utoipa::path(
    get,
    path = "/v1/delete-marks",
    params(RepositoryQuery),
    responses(
        (status = 200, description = "all of them", body = DeleteMarks),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "could not be found out", body = Problem)
    )
)]
pub(super) async fn list(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<RepositoryQuery>,
) -> Answer<DeleteMarks> {
    let key = key_of(&parts, &query.repository)?;
    let marks = parts.ledger.delete_marks(&key).await?;
    let shown = marks.into_iter().map(|(digest, mark)| DeleteMark {
        digest: digest.to_string(),
        since: mark.since.to_string(),
        deletes: mark.attempts.len(),
    });
    Ok(Json(DeleteMarks { repository: key.repository.to_string(), marks: shown.collect() }))
}

/// Removes the delete mark of an image, so that tags can be bound to it again. The names that the delete
/// was to withdraw or free stay as they are.
#[utoipa::path(
    post,
    path = "/v1/clear-delete",
    request_body = ClearDelete,
    responses(
        (status = 200, description = "there is none any more", body = ClearedDelete),
        (status = "4XX", description = "the delete is under way, or what is wrong", body = Problem),
        (status = "5XX", description = "could not be found out; try again", body = Problem)
    )
)]
pub(super) async fn clear(
    State(parts): State<Arc<Parts>>,
    Body(request): Body<ClearDelete>,
) -> Answer<ClearedDelete> {
    let key = key_of(&parts, &request.repository)?;
    let digest = Digest::parse(&request.digest).map_err(No::invalid)?;
    let reason = text(&request.reason, "reason")?;
    let actor = text(&request.actor, "actor")?;
    let marks = parts.ledger.delete_marks(&key).await?;
    let mark = marks.iter().find(|(marked, _)| *marked == digest);
    let attempts = mark.map(|(_, mark)| mark.attempts.clone()).unwrap_or_default();
    if attempts.is_empty() {
        return Ok(Json(ClearedDelete { deletes: 0 }));
    }
    if parts.judge.deletes_now(&attempts) {
        return Err(No::conflict(format!(
            "the registry has not answered a delete of `{digest}` yet; wait for its end"
        )));
    }
    // A delete marks an image by its digests of every algorithm. The image may be gone: whatever was seen
    // of it before is to be looked at again.
    let mut deletes = 0;
    for (marked, mark) in marks {
        let own: Vec<_> = mark.attempts.into_iter().filter(|a| attempts.contains(a)).collect();
        let end = DeleteEnd::Kept;
        match parts.ledger.end_delete(&key, &marked, &own, &[], end).await? {
            Ended::Done(_) if marked == digest => deletes = own.len(),
            // Its own end, or another operator, was faster.
            Ended::Done(_) | Ended::NoMark => {}
        }
    }
    parts.audit.act(&Act {
        actor,
        repository: &key.repository,
        tag: None,
        digest: Some(&digest),
        reason: Some(reason),
        outcome: "delete-cleared",
    });
    Ok(Json(ClearedDelete { deletes }))
}

fn key_of(parts: &Parts, repository: &str) -> Result<RepositoryKey, No> {
    let name = RepositoryName::parse(repository).map_err(No::invalid)?;
    Ok(key(parts, canonical(parts, name)?))
}
