//! The ledger: looked through, let go of, saved and restored.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body as Stream;
use axum::extract::State;
use axum::extract::rejection::StringRejection;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::Parts;
use super::export::{self, Unread, Wanted};
use super::model::{
    After, EntryPage, ExportFooter, ExportHeader, LedgerEntry, ListQuery, Problem, ReferenceQuery,
    ReleaseRequest, Released, Restored,
};
use super::response::{Answer, Body, No, Query};
use crate::judge::REPAIRS;
use crate::judge::unjudged::Affected;
use crate::ledger::{Entry, Release, RepositoryKey};
use crate::name::{Digest, RepositoryName, Tag};
use crate::telemetry::audit::Act;

/// Within so long a proxy of a shared ledger hears what others have freed: it asks twice a second.
const HEARD_SECONDS: u64 = 1;
/// A push ends sooner; what is pending for longer needs somebody.
const STUCK: Duration = Duration::from_secs(60);

/// Entries, page by page.
#[utoipa::path(
    get,
    path = "/v1/ledger",
    params(ListQuery),
    responses(
        (status = 200, description = "a page", body = EntryPage),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "could not be found out", body = Problem)
    )
)]
pub(super) async fn list(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<ListQuery>,
) -> Answer<EntryPage> {
    let wanted = Wanted::new(&query, &parts.naming).map_err(No::invalid)?;
    Ok(Json(export::page(&*parts.ledger, &parts.upstream, wanted).await?))
}

/// One entry.
#[utoipa::path(
    get,
    path = "/v1/entry",
    params(ReferenceQuery),
    responses(
        (status = 200, description = "the entry", body = LedgerEntry),
        (status = "4XX", description = "there is none, or what is wrong", body = Problem),
        (status = "5XX", description = "could not be found out", body = Problem)
    )
)]
pub(super) async fn entry(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<ReferenceQuery>,
) -> Answer<LedgerEntry> {
    let (key, tag) = key_of(&parts, &query.reference)?;
    let entry = looked_up(&parts, &key, &tag).await?;
    let shown = export::shown(&key, &tag, &entry);
    shown.map(Json).ok_or_else(|| No::not_found(format!("the ledger has no `{}`", query.reference)))
}

/// Claims of pushes that have not ended within a minute.
#[utoipa::path(
    get,
    path = "/v1/pending",
    params(After),
    responses(
        (status = 200, description = "a page", body = EntryPage),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "could not be found out", body = Problem)
    )
)]
pub(super) async fn pending(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<After>,
) -> Answer<EntryPage> {
    let wanted = Wanted::pending(query.after.as_deref(), STUCK).map_err(No::invalid)?;
    Ok(Json(export::page(&*parts.ledger, &parts.upstream, wanted).await?))
}

/// Frees a name: any image may be pushed to it then.
#[utoipa::path(
    post,
    path = "/v1/release",
    request_body = ReleaseRequest,
    responses(
        (status = 200, description = "it is free", body = Released),
        (status = "4XX", description = "it is not what was meant, or what is wrong", body = Problem),
        (status = "5XX", description = "could not be found out; try again", body = Problem)
    )
)]
pub(super) async fn release(
    State(parts): State<Arc<Parts>>,
    Body(request): Body<ReleaseRequest>,
) -> Answer<Released> {
    let (key, tag) = key_of(&parts, &request.reference)?;
    let reason = text(&request.reason, "reason")?;
    let actor = text(&request.actor, "actor")?;
    let expected = request.digest.as_deref().map(Digest::parse).transpose().map_err(No::invalid)?;
    let entry = looked_up(&parts, &key, &tag).await?;
    let reference = &request.reference;
    let Some(digest) = entry.digest().copied() else {
        return Err(No::not_found(format!("the ledger has no `{reference}`")));
    };
    if expected.is_some_and(|expected| expected != digest) {
        return Err(No::conflict(format!("`{reference}` is bound to {digest}")));
    }
    let changed = || No::conflict(format!("`{reference}` has changed meanwhile; look again"));
    // A repair that begins from here on sees this; one that is under way would bring the image back.
    let unjudged = parts.judge.unjudged();
    let (affected, tags) = (Affected::Tags(key.clone(), vec![tag.clone()]), [tag.clone()]);
    let Ok(_entered) = unjudged.enter(affected) else {
        return Err(No::unavailable("a newer taglock takes over; release it again".to_owned()));
    };
    if unjudged.no_repair(&key, &tags, REPAIRS).await.is_err() {
        let text = format!("taglock repairs `{reference}` in the registry; release it again");
        return Err(No::unavailable(text));
    }
    let outcome = match (&entry, request.pending) {
        (Entry::Sealed(sealed), false) => {
            match parts.ledger.release(&key, &tag, sealed.token()).await? {
                Release::Freed => "released",
                // An earlier call of this release may have freed it, and its answer was lost.
                Release::Changed if looked_up(&parts, &key, &tag).await? == Entry::Absent => {
                    "released"
                }
                Release::Changed => return Err(changed()),
            }
        }
        (Entry::Pending(pending), true) => {
            // Exactly the pushes that were seen; one that joins meanwhile keeps its claim.
            let tags = std::slice::from_ref(&tag);
            for owner in &pending.owners {
                parts.ledger.abort(&key, tags, &digest, *owner).await?;
            }
            if looked_up(&parts, &key, &tag).await? != Entry::Absent {
                return Err(changed());
            }
            "pending-released"
        }
        (Entry::Pending(_), false) => {
            return Err(No::conflict(format!(
                "a push that has not ended claims `{reference}`: push the same image again to settle \
                 it, or let go of it with `pending`, at the risk that the push still lands"
            )));
        }
        _ => return Err(No::conflict(format!("`{reference}` is bound, not pending"))),
    };
    if let Some(drift) = parts.judge.drift() {
        drift.forget(&key, &tag);
    }
    parts.audit.act(&Act {
        actor,
        repository: &key.repository,
        tag: Some(&tag),
        digest: Some(&digest),
        reason: Some(reason),
        outcome,
    });
    let entry = export::shown(&key, &tag, &entry).ok_or_else(changed)?;
    let remembered_seconds = if parts.ledger.is_shared() { HEARD_SECONDS } else { 0 };
    Ok(Json(Released { entry, remembered_seconds }))
}

/// The whole ledger, of all upstreams: a header, one entry a line, a footer.
#[utoipa::path(
    get,
    path = "/v1/export",
    responses(
        (
            status = 200,
            description = "an `ExportHeader`, then each `LedgerEntry`, then an `ExportFooter`, one a line",
            body = String,
            content_type = "application/x-ndjson"
        ),
        (status = "5XX", description = "could not be found out", body = Problem)
    )
)]
pub(super) async fn export(State(parts): State<Arc<Parts>>) -> Result<Response, No> {
    // A ledger that is down is told as such; one that goes down later cuts the answer.
    parts.ledger.identity().await?;
    let lines = Stream::from_stream(export::export(Arc::clone(&parts.ledger)));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}

/// Binds what is missing of some lines of an export. What the ledger has stays as it is.
#[utoipa::path(
    post,
    path = "/v1/restore",
    params(("actor" = String, Query, description = "who, for the audit")),
    request_body(
        content = String,
        content_type = "application/x-ndjson",
        description = "lines of an export; its header and its footer are looked over"
    ),
    responses(
        (status = 200, description = "what became of them", body = Restored),
        (status = "4XX", description = "a line makes no sense, and nothing was done", body = Problem),
        (status = "5XX", description = "some may be bound; try again", body = Problem)
    )
)]
pub(super) async fn restore(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<Actor>,
    body: Result<String, StringRejection>,
) -> Answer<Restored> {
    let actor = text(&query.actor, "actor")?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => No::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "the body is too large; send fewer lines",
        ),
        _ => No::invalid(rejection.body_text()),
    })?;
    let lines = lines(&body).map_err(No::invalid)?;
    let outcome = match export::restore(&*parts.ledger, &lines).await {
        Ok(outcome) => outcome,
        Err(Unread::Invalid(message)) => return Err(No::invalid(message)),
        Err(Unread::Ledger(error)) => return Err(error.into()),
    };
    for (repository, tag, digest) in &outcome.sealed {
        let digest = Some(digest);
        let outcome = "restored";
        let tag = Some(tag);
        parts.audit.act(&Act { actor, repository, tag, digest, reason: None, outcome });
    }
    Ok(Json(outcome.restored))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Actor {
    actor: String,
}

fn lines(body: &str) -> Result<Vec<LedgerEntry>, String> {
    let mut entries = Vec::new();
    for (n, line) in body.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let around = serde_json::from_str::<ExportHeader>(line).is_ok()
            || serde_json::from_str::<ExportFooter>(line).is_ok();
        if !around {
            let entry = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", n + 1))?;
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// A text for the audit.
pub(super) fn text<'a>(text: &'a str, name: &str) -> Result<&'a str, No> {
    let text = text.trim();
    if text.is_empty() || text.len() > 500 || text.chars().any(char::is_control) {
        return Err(No::invalid(format!(
            "`{name}` is 1 to 500 characters on one line, for the audit"
        )));
    }
    Ok(text)
}

pub(super) fn key_of(parts: &Parts, reference: &str) -> Result<(RepositoryKey, Tag), No> {
    let (repository, tag) = export::reference(reference).map_err(No::invalid)?;
    Ok((key(parts, canonical(parts, repository)?), parts.naming.tag(tag)))
}

/// The repository as the ledger knows it.
pub(super) fn canonical(parts: &Parts, name: RepositoryName) -> Result<RepositoryName, No> {
    parts.naming.repository(name).map_err(No::invalid)
}

pub(super) fn key(parts: &Parts, repository: RepositoryName) -> RepositoryKey {
    RepositoryKey { upstream: parts.upstream.clone(), repository }
}

pub(super) async fn looked_up(parts: &Parts, key: &RepositoryKey, tag: &Tag) -> Result<Entry, No> {
    let mut found = parts.ledger.lookup(key, std::slice::from_ref(tag)).await?;
    found.entries.pop().ok_or_else(|| No::unavailable("the ledger returned no entry"))
}
