//! taglock's own answers: the only writer of errors, in the form of the distribution spec
//! ("Error Codes"), each logged and counted once.

mod writing;

use http::StatusCode;
use http::header::HeaderValue;
use pingora::{Error, ErrorSource, ErrorType};

use super::limits::Cap;
use crate::judge::delete::{MAX_TAGS, NoDelete, Unsettled};
use crate::judge::pull::Unsure;
use crate::judge::{Conflict, Undecided};
use crate::ledger::Unavailable;
use crate::name::{RepositoryName, Tag};
use crate::registry::client::trouble_of;
use crate::registry::{Said, Trouble};
use crate::route::{ErrorCode, Rejection};
use crate::rules::{RefusalStyle, Rule};
pub use writing::{leave_with, turn_away};

/// Few clients wait for a second; those that do, and people, wait this many.
const RETRY_SECONDS: &str = "5";

/// The rules have changed while a write or a delete came that they had let through.
pub(super) const RULES_CHANGED: ErrorType = ErrorType::new("RulesChanged");
/// The client ended its side in the middle of a body: it may still read the answer.
pub(super) const INCOMPLETE_BODY: ErrorType = ErrorType::new("IncompleteBody");

/// An answer of taglock's own.
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    code: ErrorCode,
    message: String,
    /// The closed set of reasons in metrics.
    reason: &'static str,
    extra: Extra,
}

/// The one header beside the usual ones.
#[derive(Clone, Debug)]
enum Extra {
    None,
    Allow(&'static str),
    RetryAfter(HeaderValue),
}

impl Refusal {
    fn new(
        status: StatusCode,
        code: ErrorCode,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), reason, extra: Extra::None }
    }

    fn again_later(self) -> Self {
        Self { extra: Extra::RetryAfter(HeaderValue::from_static(RETRY_SECONDS)), ..self }
    }

    /// With the time after which the registry wants to be asked again, if it has said one.
    fn when_it_says(self, trouble: &Trouble) -> Self {
        let Trouble::Answered(Said { retry_after: Some(after), .. }) = trouble else { return self };
        match HeaderValue::from_str(after) {
            Ok(after) => Self { extra: Extra::RetryAfter(after), ..self },
            Err(_) => self,
        }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// A tag is bound to another digest. The first sentence is the one users of Amazon ECR know.
    pub fn immutable(conflict: &Conflict, repository: &RepositoryName, rule: &Rule) -> Self {
        let Conflict { tag, bound, pushed, visible } = conflict;
        let because = match rule.refusal {
            RefusalStyle::Oci if !rule.is_without_exceptions() => "tag",
            // What docker prints is exactly what ECR's users know.
            RefusalStyle::Oci | RefusalStyle::Ecr => "repository",
        };
        let sentence = format!(
            "The image tag '{tag}' already exists in the '{repository}' repository and cannot be \
             overwritten because the {because} is immutable."
        );
        match rule.refusal {
            RefusalStyle::Ecr => {
                Self::new(StatusCode::BAD_REQUEST, ErrorCode::TagInvalid, "immutable", sentence)
            }
            RefusalStyle::Oci => {
                let message = match visible {
                    true => format!("{sentence} It is bound to {bound}; the push was {pushed}."),
                    false => format!("{sentence} The push was {pushed}."),
                };
                Self::new(StatusCode::CONFLICT, ErrorCode::Denied, "immutable", message)
            }
        }
    }

    /// A tag that was mutable by this proxy's rules, and that another proxy has bound meanwhile.
    pub fn bound_meanwhile(conflict: &Conflict, repository: &RepositoryName) -> Self {
        let Conflict { tag, pushed, .. } = conflict;
        let message = format!(
            "The image tag '{tag}' of the '{repository}' repository became immutable while {pushed} was \
             pushed, and is bound to another image."
        );
        Self::new(StatusCode::CONFLICT, ErrorCode::Denied, "immutable", message)
    }

    /// A tag that may move only to what a protected tag is bound to.
    pub fn unbound(tag: &Tag, repository: &RepositoryName) -> Self {
        let message = format!(
            "The tag '{tag}' of '{repository}' may only move to an image that a protected tag is bound \
             to; push it under such a tag first."
        );
        Self::new(StatusCode::CONFLICT, ErrorCode::Denied, "unbound", message)
    }

    /// A push without a verdict.
    pub fn undecided(undecided: &Undecided) -> Self {
        let message = undecided.to_string();
        let unavailable = |reason, message| {
            Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, reason, message)
                .again_later()
        };
        match undecided {
            Undecided::Ledger(error) => {
                let text = ledger_trouble(error);
                unavailable("ledger", format!("{text}; the tag was not written, push again"))
            }
            Undecided::LedgerUnknown(error) => {
                let text = ledger_trouble(error);
                let text = format!("{text}; the outcome is unknown: push the same image again");
                unavailable("ledger", text)
            }
            Undecided::ClaimLost(_) => unavailable("ledger", message),
            Undecided::Deleting(_) => unavailable("deleting", message),
            Undecided::Registry(trouble) => unavailable("registry", message).when_it_says(trouble),
            Undecided::Busy(_) => unavailable("busy", message),
            Undecided::Stuck { .. } => unavailable("stuck", message),
            Undecided::Invisible => unavailable("invisible", message),
            Undecided::OutcomeUnknown(trouble) => {
                let status = match trouble {
                    Trouble::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::BAD_GATEWAY,
                };
                let refusal = Self::new(status, ErrorCode::Unavailable, "outcome-unknown", message);
                refusal.when_it_says(trouble)
            }
        }
    }

    /// The registry could not be asked, for a request that changes nothing or that it may have
    /// got.
    pub fn trouble(trouble: &Trouble) -> Self {
        let status = match trouble {
            Trouble::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let message = trouble.to_string();
        Self::new(status, ErrorCode::Unavailable, "registry", message).when_it_says(trouble)
    }

    pub fn redirected() -> Self {
        Self::new(
            StatusCode::BAD_GATEWAY,
            ErrorCode::Unavailable,
            "registry",
            "the registry redirects writes elsewhere; nothing was written \
             (point `upstream.url` to where it redirects)",
        )
    }

    pub fn digest_mismatch(real: &crate::name::Digest) -> Self {
        let message = format!("the manifest's digest is {real}, not the one it was pushed under");
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, "malformed", message)
    }

    /// A digest that the registry might not have a tagged manifest under.
    pub fn algorithm(digest: &crate::name::Digest) -> Self {
        let message = format!(
            "a tag can't be pushed by the digest {digest}: where manifests are not stored by digest first \
             (`upstream.stage = false`), only sha256 is taken"
        );
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, "malformed", message)
    }

    pub fn media_type(message: &'static str) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new(status, ErrorCode::Unsupported, "media-type", message)
    }

    pub fn too_large(max: usize) -> Self {
        let message = format!("the manifest is larger than {max} bytes (`limits.manifest`)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::SizeInvalid, "too-large", message)
    }

    pub fn slow_client() -> Self {
        let status = StatusCode::REQUEST_TIMEOUT;
        Self::new(
            status,
            ErrorCode::SizeInvalid,
            "slow-client",
            "the request took too long to arrive",
        )
    }

    /// Too many at once.
    pub fn overloaded(cap: Cap) -> Self {
        let message =
            format!("taglock has too much to do (`limits.{}`); nothing was decided", cap.key());
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, ErrorCode::Unavailable, "overload", message).again_later()
    }

    pub fn malformed() -> Self {
        let status = StatusCode::BAD_REQUEST;
        Self::new(status, ErrorCode::Unsupported, "malformed", "the request can't be read")
    }

    /// A body of which the client sent less than it had announced.
    pub fn incomplete() -> Self {
        let status = StatusCode::BAD_REQUEST;
        let message = "the client ended the request before its body was complete";
        Self::new(status, ErrorCode::SizeInvalid, "malformed", message)
    }

    /// A write that began under other rules.
    pub fn rules_changed() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let message = "taglock's rules changed while the request was being sent; nothing was written, send it again";
        Self::new(status, ErrorCode::Unavailable, "busy", message).again_later()
    }

    /// What a client is told of an error; `None` where it has left and nobody is there to be told.
    pub fn of(error: &Error) -> Option<Self> {
        Some(match error.esource() {
            ErrorSource::Upstream => Self::trouble(&trouble_of(error)),
            ErrorSource::Downstream => match error.etype() {
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed => {
                    return None;
                }
                ErrorType::ReadTimedout | ErrorType::WriteTimedout => Self::slow_client(),
                etype if *etype == INCOMPLETE_BODY => Self::incomplete(),
                etype if *etype == RULES_CHANGED => Self::rules_changed(),
                _ => Self::malformed(),
            },
            ErrorSource::Internal | ErrorSource::Unset => Self::internal(),
        })
    }

    pub fn internal() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, ErrorCode::Unavailable, "internal", "taglock failed; its log says why")
    }

    /// The spec wants 400 or 405 where deletes are disabled.
    fn unsupported(message: String) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let refusal = Self::new(status, ErrorCode::Unsupported, "delete", message);
        Self { extra: Extra::Allow("GET, HEAD, PUT"), ..refusal }
    }

    /// A delete that is not forwarded.
    pub fn delete(no: &NoDelete, what: &str, repository: &RepositoryName) -> Self {
        let why = match no {
            NoDelete::Immutable(tag) => {
                format!("the tag '{tag}' of the '{repository}' repository is immutable")
            }
            NoDelete::Part(tag) => format!(
                "it is a part of the image that the immutable tag '{tag}' of the '{repository}' \
                 repository is bound to"
            ),
            NoDelete::Busy(tag) => {
                let message = format!(
                    "'{what}' can't be deleted: a push of the tag '{tag}' of the '{repository}' \
                     repository is under way, or did not end (push its image again to end it)"
                );
                return Self::new(StatusCode::CONFLICT, ErrorCode::Denied, "delete", message);
            }
            NoDelete::Repository => {
                format!("the '{repository}' repository has immutable tags")
            }
            NoDelete::TooManyTags => format!(
                "the '{repository}' repository has more than {MAX_TAGS} tags, too many to look \
                 through for immutable ones"
            ),
        };
        Self::unsupported(format!("'{what}' can't be deleted: {why}"))
    }

    /// A delete without a ruling.
    pub fn unsettled(unsettled: &Unsettled) -> Self {
        let (reason, trouble) = match unsettled {
            Unsettled::Ledger(error) => {
                let message = format!("{}; nothing was deleted", ledger_trouble(error));
                let status = StatusCode::SERVICE_UNAVAILABLE;
                let refusal = Self::new(status, ErrorCode::Unavailable, "ledger", message);
                return refusal.again_later();
            }
            Unsettled::Registry(trouble) => ("registry", trouble),
            Unsettled::OutcomeUnknown(trouble) => ("outcome-unknown", trouble),
        };
        Self { reason, message: unsettled.to_string(), ..Self::trouble(trouble) }
    }

    /// The registry has deleted, and the ledger did not hear of it.
    pub fn unmarked(error: &Unavailable) -> Self {
        let message = format!(
            "the registry has deleted it, but {}: the names of its tags stay bound as they were",
            ledger_trouble(error)
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, "ledger", message)
    }

    pub fn blob_delete(repository: &RepositoryName) -> Self {
        Self::unsupported(format!(
            "no blob can be deleted: the '{repository}' repository has immutable tags"
        ))
    }

    /// The no to a delete, as Harbor's API says it.
    pub fn by_harbor(self) -> Self {
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => {
                let message = self.message;
                Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, "harbor", message)
            }
            _ => self,
        }
    }

    /// A copy by Harbor's API into a repository with immutable tags.
    pub fn copy(repository: &RepositoryName) -> Self {
        let message = format!(
            "no artifact can be copied into the '{repository}' repository, which has immutable tags: \
             Harbor would move those that the source has, too; push the image instead"
        );
        Self::new(StatusCode::FORBIDDEN, ErrorCode::Denied, "harbor", message)
    }

    /// A request for a tag that has more than one reading, or none.
    pub fn new_tag() -> Self {
        let message = "a request for a tag is one object of JSON with the tag's name, and nothing that \
                       could be read in another way";
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::TagInvalid, "malformed", message)
    }

    /// A pull of a tag under which nothing may be served.
    pub fn manifest_unknown() -> Self {
        let status = StatusCode::NOT_FOUND;
        Self::new(status, ErrorCode::ManifestUnknown, "not-served", "manifest unknown")
    }

    pub fn wrong_bytes(digest: &crate::name::Digest, what: &'static str) -> Self {
        let message = format!(
            "the registry was asked for {digest}, which the tag is bound to, and answered with something \
             else: {what}; nothing of it was passed on"
        );
        Self::new(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, "wrong-bytes", message)
    }

    /// A pull without an answer.
    pub fn unsure(unsure: &Unsure) -> Self {
        match unsure {
            Unsure::Registry(Trouble::Status(300..=399)) => Self::new(
                StatusCode::BAD_GATEWAY,
                ErrorCode::Unavailable,
                "registry",
                "the registry redirects this manifest to a host that taglock does not follow to, so it \
                 can't be checked (`upstream.redirect_hosts`)",
            ),
            Unsure::Registry(trouble) => Self::trouble(trouble),
            Unsure::Ledger(error) => {
                let text = ledger_trouble(error);
                let message = format!("{text}, and this taglock serves no tag without it");
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, ErrorCode::Unavailable, "ledger", message).again_later()
            }
            Unsure::Busy | Unsure::Elsewhere => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, ErrorCode::Unavailable, "busy", unsure.to_string()).again_later()
            }
        }
    }

    /// A reference that is neither tag nor digest: nothing can be there.
    pub fn unnamable() -> Self {
        let status = StatusCode::NOT_FOUND;
        Self::new(status, ErrorCode::ManifestUnknown, "malformed", "no manifest can have this name")
    }
}

fn ledger_trouble(error: &Unavailable) -> &'static str {
    match error {
        Unavailable::TimedOut => "taglock's ledger did not answer in time",
        Unavailable::Closed => "taglock is stopping",
        Unavailable::Store(_) => "taglock's ledger is unavailable",
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let Rejection { status, code, message, allow } = rejection;
        let extra = allow.map_or(Extra::None, Extra::Allow);
        Self { extra, ..Self::new(status, code, "malformed", message) }
    }
}
