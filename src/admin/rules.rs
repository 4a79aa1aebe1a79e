//! The rules, what follows from them, and what was refused by them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::Parts;
use super::explain::{self, Facts};
use super::ledger::{key_of, looked_up};
use super::model::{ExplainQuery, Explanation, Problem, Refusal, RefusalList, RuleList, RuleView};
use super::registry::caller;
use super::response::{Answer, No, Query};
use crate::name::{Digest, Reference};
use crate::rules::Rule;
use crate::telemetry::refusals::Refused;

/// The rules as they are applied now.
#[utoipa::path(
    get,
    path = "/v1/rules",
    responses((status = 200, description = "the rules, in their order", body = RuleList))
)]
pub(super) async fn list(State(parts): State<Arc<Parts>>) -> Json<RuleList> {
    let rules = parts.rules.load_full();
    let shown = |rule: &Rule| RuleView {
        name: rule.name.clone(),
        source: rule.source.to_string(),
        repositories: rule.repositories.iter().map(ToString::to_string).collect(),
        mutability: rule.mutability.as_str().to_owned(),
        except: rule.except.iter().map(ToString::to_string).collect(),
        protect_signatures: rule.protect_signatures,
        delete: rule.deletes.as_str().to_owned(),
        except_must_be_bound: rule.except_must_be_bound,
        enforce: rule.enforce,
        anonymous_pull: rule.anonymous_pull,
    };
    let fingerprint = rules.fingerprint().to_string();
    Json(RuleList { fingerprint, rules: rules.iter().map(shown).collect() })
}

/// Why a tag is what it is, what ledger and registry say of it, and what a push would get.
#[utoipa::path(
    get,
    path = "/v1/explain",
    params(ExplainQuery),
    responses(
        (status = 200, description = "the explanation", body = Explanation),
        (status = "4XX", description = "what is wrong", body = Problem),
        (status = "5XX", description = "the ledger did not say", body = Problem)
    )
)]
pub(super) async fn explain(
    State(parts): State<Arc<Parts>>,
    Query(query): Query<ExplainQuery>,
) -> Answer<Explanation> {
    let (key, tag) = key_of(&parts, &query.reference)?;
    let digest = query.digest.as_deref().map(Digest::parse).transpose().map_err(No::invalid)?;
    let entry = looked_up(&parts, &key, &tag).await?;
    let reference = Reference::Tag(tag.clone());
    let seen = parts.eyes.registry.look(&caller(&parts), &key.repository, &reference).await;
    let rules = parts.rules.load_full();
    let facts = Facts { rules: &rules, key: &key, tag: &tag, entry: &entry, seen: &seen, digest };
    Ok(Json(explain::explain(&facts)))
}

/// The requests that this proxy refused last.
#[utoipa::path(
    get,
    path = "/v1/refusals",
    responses((status = 200, description = "the last one first", body = RefusalList))
)]
pub(super) async fn refusals(State(parts): State<Arc<Parts>>) -> Json<RefusalList> {
    let shown = |refused: Refused| Refusal {
        at: humantime::format_rfc3339_millis(refused.at).to_string(),
        id: refused.id,
        client: refused.client.to_string(),
        user: refused.user,
        method: refused.method,
        path: refused.path,
        status: refused.status,
        code: refused.code.to_owned(),
        reason: refused.reason.to_owned(),
        message: refused.message,
    };
    Json(RefusalList { refusals: parts.refusals.list().into_iter().map(shown).collect() })
}
