//! What the operators' API takes and gives, for its handlers and for the commands that call it.
//!
//! Digests, times (RFC 3339) and names are texts here; whoever reads one parses it.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Why a request was not done.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// One of a closed set, such as `not_found`.
    pub code: String,
    /// For people.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Claimed by a push that has not ended.
    Pending,
    /// Bound for good.
    Sealed,
}

/// An entry of the ledger. A line of an export is one, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerEntry {
    pub upstream: String,
    pub repository: String,
    pub tag: String,
    pub state: State,
    pub digest: String,
    pub since: String,
    /// How it came to be bound: `push`, `import` or `first-sight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When it was deleted through taglock; the name stays bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
    /// Of a pending one: the pushes that hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushes: Option<usize>,
}

/// Which entries, and from where on.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only of this repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Only tags that begin so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag_prefix: Option<String>,
    /// `pending` or `sealed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many, up to 1000 [100].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// A page of entries, in the order of their names.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EntryPage {
    pub entries: Vec<LedgerEntry>,
    /// Where it goes on, for `after`; also where a page is empty because much was looked through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct After {
    /// The `next` of the page before.
    pub after: Option<String>,
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ReferenceQuery {
    /// `repository:tag`.
    pub reference: String,
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RepositoryQuery {
    pub repository: String,
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// `repository:tag`.
    pub reference: String,
    /// What would be pushed.
    pub digest: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// `repository:tag`.
    pub reference: String,
    /// Why, for the audit.
    pub reason: String,
    /// Who, for the audit.
    pub actor: String,
    /// Only if it is bound to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// A claim rather than a bound name: a push of it that is still under way may land later.
    #[serde(default)]
    pub pending: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Released {
    /// What was let go of.
    pub entry: LedgerEntry,
    /// Other proxies of the ledger may serve what the name was bound to for so many seconds.
    pub remembered_seconds: u64,
}

/// A delete of an image that is under way, or whose outcome is unknown. While it stands, no tag can be
/// bound to the image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeleteMark {
    pub digest: String,
    pub since: String,
    /// How many DELETEs had no definitive answer.
    pub deletes: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeleteMarks {
    pub repository: String,
    pub marks: Vec<DeleteMark>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClearDelete {
    pub repository: String,
    pub digest: String,
    /// Why, for the audit.
    pub reason: String,
    /// Who, for the audit.
    pub actor: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClearedDelete {
    /// How many DELETEs were taken out of the mark; 0 where there was none.
    pub deletes: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RepositoryPage {
    pub repositories: Vec<String>,
    /// Names of the catalogue that are none by the spec.
    pub odd: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The tags of a repository in the registry, as far as taglock's account sees them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProtectedTags {
    pub repository: String,
    /// Those that the rules make immutable, in order.
    pub tags: Vec<String>,
    /// How many others there are.
    pub mutable: usize,
}

/// Tags of one repository; at most 100.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagsRequest {
    pub repository: String,
    pub tags: Vec<String>,
    /// Who, for the audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TagDigest {
    pub tag: String,
    pub digest: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    pub repository: String,
    /// Bound now.
    pub sealed: Vec<TagDigest>,
    /// Bound before.
    pub already: Vec<String>,
    /// Claimed by a push, whose end decides.
    pub pending: Vec<String>,
    /// Neither bound nor in the registry.
    pub absent: Vec<String>,
    /// What the registry has was not to be found out.
    pub unseen: Vec<Unseen>,
    /// What the rules leave mutable is not bound.
    pub mutable: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Another image is there.
    Moved,
    /// The registry shows none.
    Gone,
}

/// A tag whose registry's own is not what the ledger binds it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    pub repository: String,
    pub tag: String,
    pub change: Change,
    pub ledger: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}

/// A tag that could not be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unseen {
    pub repository: String,
    pub tag: String,
    pub why: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// How many are the same.
    pub equal: usize,
    pub differences: Vec<Difference>,
    pub unseen: Vec<Unseen>,
    /// Deleted through taglock, and gone.
    pub withdrawn: usize,
    pub pending: usize,
    /// Not in the ledger any more.
    pub absent: usize,
    /// From stricter days: what the rules leave mutable now is not compared.
    pub mutable: usize,
}

/// A difference that this proxy knows of.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KnownDifference {
    #[serde(flatten)]
    pub difference: Difference,
    pub first_seen: String,
    pub last_seen: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DriftReport {
    /// Whether the registry's own tags are watched at all (`drift.watch`).
    pub watched: bool,
    pub differences: Vec<KnownDifference>,
}

/// A request that taglock itself refused.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    pub at: String,
    pub id: String,
    pub client: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    pub method: String,
    pub path: String,
    pub status: u16,
    pub code: String,
    /// As in the metric `taglock_refusals_total`.
    pub reason: String,
    pub message: String,
}

/// The latest refusals of this proxy, the last one first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RefusalList {
    pub refusals: Vec<Refusal>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleView {
    pub name: String,
    /// Where it stands.
    pub source: String,
    pub repositories: Vec<String>,
    pub mutability: String,
    /// Tags for which the opposite holds.
    pub except: Vec<String>,
    pub protect_signatures: bool,
    /// What becomes of deletes: `refuse`, `keep` or `release`.
    pub delete: String,
    pub except_must_be_bound: bool,
    /// Whether anything is refused.
    pub enforce: bool,
    /// Whether manifests of these repositories may be answered from memory.
    #[serde(default)]
    pub anonymous_pull: bool,
}

/// The rules as they are applied now, the first match wins.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleList {
    /// Equal where two proxies decide the same.
    pub fingerprint: String,
    pub rules: Vec<RuleView>,
}

/// The rule that decides for a repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DecidingRule {
    /// Its place, from 1.
    pub number: usize,
    pub name: String,
    pub source: String,
    /// Its pattern that matches the repository.
    pub pattern: String,
    pub enforce: bool,
}

/// What the registry says of a tag now, to taglock's own account.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RegistrySays {
    /// `found`, `not-found` or `unclear`.
    pub answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a push would get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PushOutcome {
    /// Taken, if the registry takes it.
    Accepted,
    Refused,
    /// Depends on what is pushed, or on what could not be found out.
    Depends,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    pub outcome: PushOutcome,
    pub text: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    pub repository: String,
    pub tag: String,
    /// `immutable` or `mutable`.
    pub mutability: String,
    /// Why it is.
    pub because: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<DecidingRule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<LedgerEntry>,
    pub registry: RegistrySays,
    pub push: Forecast,
}

/// The first line of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportHeader {
    /// `taglock-ledger-1`.
    pub format: String,
    /// The ledger's id.
    pub ledger: String,
    pub exported: String,
}

/// The last line of an export: without it, it is not whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportFooter {
    /// How many lines stand between the first and this one.
    pub entries: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreConflict {
    pub repository: String,
    pub tag: String,
    pub export: String,
    /// What the ledger has, and keeps.
    pub ledger: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Restored {
    pub sealed: usize,
    pub already: usize,
    /// Claims of the export, which are not restored: the next push or pull decides.
    pub pending: usize,
    pub conflicts: Vec<RestoreConflict>,
}
