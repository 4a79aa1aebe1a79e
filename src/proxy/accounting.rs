//! What becomes of a request is logged, traced and counted once.

use pingora::Error;
use pingora::http::RequestHeader;

use super::Edge;
use super::context::{Passage, Tally};
use crate::telemetry::traces::Seen;

impl Edge {
    /// Tells of a request that is over, then counts it: who sees the count finds the line.
    pub(super) fn account(
        &self,
        header: &RequestHeader,
        error: Option<&Error>,
        passage: &Passage,
        tally: Tally,
    ) {
        let Tally { status, bytes_in, bytes_out } = tally;
        self.end_trace(header, error, passage, tally);
        if self.config.access_log {
            // Never the query: it holds upload states and tokens' scopes.
            tracing::info!(
                target: "taglock::access",
                id = %passage.id,
                client = %passage.client.address,
                method = %header.method,
                path = header.uri.path(),
                route = passage.route,
                status,
                bytes_in,
                bytes_out,
                ms = passage.started.elapsed().as_millis() as u64,
                error = error.map(|e| e.etype().as_str()),
                "request",
            );
        }
        self.rooms.metrics.bytes(bytes_in, bytes_out);
        self.rooms.metrics.request(passage.route, status);
    }

    fn end_trace(
        &self,
        header: &RequestHeader,
        error: Option<&Error>,
        passage: &Passage,
        Tally { status, bytes_in, bytes_out }: Tally,
    ) {
        let Some(trace) = &passage.trace else { return };
        let own_scheme = if self.config.tls { "https" } else { "http" };
        trace.end(&Seen {
            id: &passage.id.to_string(),
            client: passage.client.address,
            method: &header.method,
            scheme: passage.client.base.as_ref().map_or(own_scheme, |base| base.scheme()),
            path: header.uri.path(),
            route: passage.route,
            status: (status != 0).then_some(status),
            bytes_in,
            bytes_out,
            error: error.map(|e| e.etype().as_str()),
        });
    }
}
