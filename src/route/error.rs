//! Why a request is not forwarded at all.

use std::borrow::Cow;

use http::StatusCode;

/// The error codes taglock answers with: the spec's ("Error Codes"), and the one of its legacy
/// codes that says what a bad tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    Denied,
    DigestInvalid,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    SizeInvalid,
    TagInvalid,
    TooManyRequests,
    Unavailable,
    Unsupported,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "DENIED",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TagInvalid => "TAG_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unsupported => "UNSUPPORTED",
        }
    }
}

/// A refusal that depends on nothing but the request itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub status: StatusCode,
    pub code: ErrorCode,
    pub message: Cow<'static, str>,
    /// The `Allow` header of a 405.
    pub allow: Option<&'static str>,
}

impl Rejection {
    fn bad(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into(), allow: None }
    }

    pub fn target(message: impl Into<Cow<'static, str>>) -> Self {
        Self::bad(ErrorCode::NameInvalid, message)
    }

    pub fn name(message: impl Into<Cow<'static, str>>) -> Self {
        Self::bad(ErrorCode::NameInvalid, message)
    }

    pub fn tag(message: impl Into<Cow<'static, str>>) -> Self {
        Self::bad(ErrorCode::TagInvalid, message)
    }

    pub fn digest(message: impl Into<Cow<'static, str>>) -> Self {
        Self::bad(ErrorCode::DigestInvalid, message)
    }

    pub fn method(message: &'static str, allow: &'static str) -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            code: ErrorCode::Unsupported,
            message: message.into(),
            allow: Some(allow),
        }
    }

    pub(super) fn too_many_tags(max: usize) -> Self {
        Self {
            status: StatusCode::URI_TOO_LONG,
            code: ErrorCode::TagInvalid,
            message: format!("a push may set at most {max} tags").into(),
            allow: None,
        }
    }

    /// Registries have other doors to the same tags: Harbor's and Quay's own APIs, promotion
    /// in Artifactory, docker v1. They stay shut until somebody opens them.
    pub(super) fn outside() -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            code: ErrorCode::Denied,
            message:
                "taglock forwards only GET and HEAD outside `/v2/`, because other routes of a \
                      registry can move tags; a token service is opened by `upstream.token_paths`, \
                      an upload path by `upstream.upload_paths`, Harbor's API by `upstream.kind`, \
                      anything else by `upstream.open_paths`"
                    .into(),
            allow: None,
        }
    }
}
