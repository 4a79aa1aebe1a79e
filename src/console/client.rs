//! The admin API of a running taglock.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::Failure;
use crate::admin::model::Problem;

const CONNECT: Duration = Duration::from_secs(5);
/// A page of a listing is far smaller.
const MAX_ANSWER: u64 = 64 << 20;

pub struct Client {
    agent: Agent,
    base: String,
    authorization: String,
}

impl Client {
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // The token is for the admin listener alone.
            .max_redirects(0)
            .proxy(None)
            .timeout_connect(Some(CONNECT))
            // Its own patience ends before.
            .timeout_recv_response(Some(crate::admin::PATIENCE + Duration::from_secs(10)))
            .build();
        Self {
            agent: config.into(),
            base: format!("http://{address}"),
            authorization: format!("Bearer {token}"),
        }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        self.read(self.stream(path, query)?)
    }

    /// The answer, to be read bit by bit.
    pub(super) fn stream(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Response<Body>, Failure> {
        let request = self
            .agent
            .get(format!("{}{path}", self.base))
            .header("Authorization", &self.authorization)
            .query_pairs(query.iter().copied());
        self.answered(request.call())
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let request = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("Authorization", &self.authorization);
        self.read(self.answered(request.send_json(body))?)
    }

    pub(super) fn post_lines<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        lines: &str,
    ) -> Result<T, Failure> {
        let request = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("Authorization", &self.authorization)
            .header("Content-Type", "application/x-ndjson")
            .query_pairs(query.iter().copied());
        self.read(self.answered(request.send(lines))?)
    }

    fn answered(
        &self,
        result: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failure> {
        let response = result.map_err(|error| self.failed(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = self.read::<Problem>(response).map(|problem| problem.message);
        let message = said.unwrap_or_else(|_| format!("{} answered {status}", self.base));
        Err(match status {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => Failure::No(message),
            StatusCode::BAD_REQUEST => Failure::Usage(message),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => {
                Failure::Usage(format!("the taglock at {} refused: {message}", self.base))
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Failure::Down(message),
            _ => Failure::Unknown(message),
        })
    }

    fn read<T: DeserializeOwned>(&self, mut response: Response<Body>) -> Result<T, Failure> {
        let body = response.body_mut().with_config().limit(MAX_ANSWER);
        body.read_json().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &ureq::Error) -> Failure {
        Failure::Down(format!("the taglock at {} did not answer: {error}", self.base))
    }
}
