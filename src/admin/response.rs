//! Answers of the API: JSON, errors as well.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use super::model::Problem;
use crate::judge::inspection::Halted;
use crate::ledger::Unavailable;

/// An answer that is a no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct No {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
}

pub(super) type Answer<T> = Result<Json<T>, No>;

impl No {
    pub fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }

    pub fn invalid(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// It is there, and is not what was meant.
    pub fn conflict(message: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// Could not be found out.
    pub fn unavailable(message: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }
}

impl From<Unavailable> for No {
    fn from(error: Unavailable) -> Self {
        Self::unavailable(error)
    }
}

impl From<Halted> for No {
    fn from(halted: Halted) -> Self {
        Self::unavailable(halted)
    }
}

impl No {
    /// The registry's no to taglock's own account.
    pub fn denied(status: StatusCode) -> Self {
        let message = format!(
            "the registry answered {status} to taglock's own account; \
             `upstream.credentials_file` names one that may look"
        );
        match status {
            StatusCode::TOO_MANY_REQUESTS => {
                Self::unavailable("the registry asks to slow down (429)")
            }
            _ => Self::new(StatusCode::BAD_GATEWAY, "denied", message),
        }
    }
}

impl From<QueryRejection> for No {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<JsonRejection> for No {
    fn from(rejection: JsonRejection) -> Self {
        match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large")
            }
            _ => Self::invalid(rejection.body_text()),
        }
    }
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let problem = Problem { code: self.code.to_owned(), message: self.message };
        (self.status, Json(problem)).into_response()
    }
}

/// The query, or a no in JSON.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(No))]
pub(super) struct Query<T>(pub T);

/// The body, or a no in JSON.
#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(No))]
pub(super) struct Body<T>(pub T);
