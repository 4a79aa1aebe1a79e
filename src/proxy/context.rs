//! One request on its way through the edge.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderValue, StatusCode};
use pingora::proxy::Session;
use uuid::fmt::Hyphenated;
use uuid::timestamp::context::ThreadLocalContext;
use uuid::{ContextV7, Timestamp, Uuid};

use super::dry_run::Rehearsal;
use super::{date_cache, unknown_address};
use crate::judge::unjudged::{Affected, Write};
use crate::name::Reference;
use crate::route::Route;
use crate::telemetry::Present;
use crate::telemetry::traces::Trace;
use crate::transport::endpoint::Origin;

pub struct Passage {
    /// In logs and in the audit, and as `X-Request-Id` to the registry.
    pub id: RequestId,
    pub started: Instant,
    pub client: Client,
    /// The route's label in logs and metrics.
    pub route: &'static str,
    /// Addresses of the registry that could not be connected to.
    pub addresses: u32,
    /// Informational answers (1xx) of the registry so far, where pingora streams.
    pub early: usize,
    /// Bytes of a body that streams.
    pub received: u64,
    /// How much of the body was read along with the header, in HTTP/1.1.
    pub body_received: usize,
    /// All of that body has come, where pingora streams it.
    pub body_is_whole: bool,
    /// pingora has seen some of that body with its chunks' sizes, and counted those.
    pub unparsed: bool,
    /// A manifest write that streams: what nobody may bind while it is under way.
    pub unjudged: Unjudged,
    /// A write or a delete under a rule that is not enforced.
    pub rehearsal: Option<Box<Rehearsal>>,
    /// What an answer is to be taken with care for.
    pub warning: Option<HeaderValue>,
    /// A request that needs the ledger, or may turn out to.
    pub protected: Option<Present>,
    /// Where traces are wanted.
    pub trace: Option<Trace>,
    /// An answer that pingora's own writer did not write.
    pub sent: Option<Sent>,
    _in_flight: Present,
}

/// A manifest write or a delete that streams, unjudged.
pub enum Unjudged {
    None,
    /// Its body is not whole: the registry can't carry it out, and nobody need wait for it.
    Coming(Affected),
    /// It may be carried out at any time. pingora gives the registry's connection up with the client's,
    /// and the registry may carry it out all the same.
    UnderWay(Write),
}

/// What is known of a request when it is handed to pingora.
pub struct Start {
    /// Where it was looked at already.
    pub passage: Option<Box<Passage>>,
    /// How much of its body came along with its header, and is not in the socket any more.
    pub body_received: usize,
}

/// An answer as far as it has gone out.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    pub status: StatusCode,
    /// Of its body.
    pub bytes: u64,
}

/// What a request came to.
#[derive(Clone, Copy)]
pub struct Tally {
    /// 0 where there was no answer.
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Tally {
    pub fn of(session: &Session, passage: &Passage) -> Self {
        let written = session.response_written().map_or(0, |response| response.status.as_u16());
        let (status, bytes_out) = match &passage.sent {
            Some(sent) => (sent.status.as_u16(), sent.bytes),
            None => (written, session.body_bytes_sent() as u64),
        };
        let bytes_in = match passage.unparsed {
            true => passage.received,
            // pingora does not count what it did not read itself.
            false => passage.received.max(session.body_bytes_read() as u64),
        };
        Self { status, bytes_in, bytes_out }
    }

    /// Of a request without a body that pingora has not seen.
    pub fn of_sent(passage: &Passage) -> Self {
        let (status, bytes_out) =
            passage.sent.map_or((0, 0), |sent| (sent.status.as_u16(), sent.bytes));
        Self { status, bytes_in: 0, bytes_out }
    }
}

/// The client's own request id where it sent a sound one, else a new one.
#[derive(Clone, Debug)]
pub enum RequestId {
    New([u8; Hyphenated::LENGTH]),
    Adopted(HeaderValue),
}

impl RequestId {
    fn new(now: Instant) -> Self {
        thread_local! {
            // One for all threads would be waited for.
            static COUNTER: ContextV7 = const { ContextV7::new() };
        }
        let (counter, unix) = (ThreadLocalContext::new(&COUNTER), date_cache::unix(now));
        let now = Timestamp::from_unix(counter, unix.as_secs(), unix.subsec_nanos());
        let mut text = [0; Hyphenated::LENGTH];
        Uuid::new_v7(now).hyphenated().encode_lower(&mut text);
        Self::New(text)
    }

    /// Adopts what the client sent, if it can stand in a log line.
    pub fn adopt(&mut self, sent: &HeaderValue) {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(b);
        if (1..=128).contains(&sent.len()) && sent.as_bytes().iter().all(plain) {
            *self = Self::Adopted(sent.clone());
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::New(text) => text,
            Self::Adopted(sent) => sent.as_bytes(),
        }
    }

    pub fn header(&self) -> HeaderValue {
        match self {
            // A UUID's text is hex and dashes.
            Self::New(text) => {
                HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static("none"))
            }
            Self::Adopted(sent) => sent.clone(),
        }
    }
}

impl std::fmt::Display for RequestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::str::from_utf8(self.as_bytes()).unwrap_or("none"))
    }
}

/// What is known of the client, its load balancers taken at their word where they are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// The other end of the connection.
    pub peer: IpAddr,
    /// The scheme and authority it used; `None` where it named no host.
    pub base: Option<Arc<Origin>>,
    /// Its `Host`, where the registry is sent it.
    pub host: Option<HeaderValue>,
    /// The addresses a trusted proxy reported, the client's first.
    pub via: Option<String>,
}

impl Client {
    /// Before anything is known.
    pub fn unknown() -> Self {
        let nobody = unknown_address().ip();
        Self { address: nobody, peer: nobody, base: None, host: None, via: None }
    }
}

impl Passage {
    /// The registry has answered: a write that nobody judged has ended.
    pub fn is_answered(&mut self) {
        if matches!(self.unjudged, Unjudged::UnderWay(_))
            && let Unjudged::UnderWay(mut write) =
                std::mem::replace(&mut self.unjudged, Unjudged::None)
        {
            write.is_answered();
        }
    }

    pub fn new(in_flight: Present, started: Instant) -> Self {
        Self {
            id: RequestId::new(started),
            started,
            client: Client::unknown(),
            route: "rejected",
            addresses: 0,
            early: 0,
            received: 0,
            body_received: 0,
            body_is_whole: false,
            unparsed: false,
            unjudged: Unjudged::None,
            rehearsal: None,
            warning: None,
            protected: None,
            trace: None,
            sent: None,
            _in_flight: in_flight,
        }
    }
}

/// A body may begin slowly.
const BODY_GRACE: Duration = Duration::from_secs(30);

impl Passage {
    /// The judge has said this, as in the metrics.
    pub fn judged(&self, outcome: &'static str) {
        if let Some(trace) = &self.trace {
            trace.outcome(outcome);
        }
    }

    /// Whether so far less came than this many bytes a second.
    pub fn is_slower_than(&self, rate: u64) -> bool {
        is_slow(self.received, self.started.elapsed(), rate)
    }
}

fn is_slow(received: u64, took: Duration, rate: u64) -> bool {
    took > BODY_GRACE && received / took.as_secs().max(1) < rate
}

/// The closed set of route labels.
pub fn label(route: &Route) -> &'static str {
    match route {
        Route::ReadManifest { reference: Reference::Tag(_), .. } => "manifest-read-tag",
        Route::ReadManifest { reference: Reference::Digest(_), .. } => "manifest-read-digest",
        Route::ReadUnnamable { .. } => "manifest-read-unnamable",
        Route::WriteManifest(_) => "manifest-write",
        Route::DeleteManifest { .. } => "manifest-delete",
        Route::ReadBlob { .. } => "blob-read",
        Route::DeleteBlob { .. } => "blob-delete",
        Route::Upload(_) => "upload",
        Route::ReadOther(_) => "v2-read",
        Route::Token => "token",
        Route::Options => "options",
        Route::ReadOutside => "outside-read",
        Route::WriteOutside => "outside-write",
        Route::Harbor(_) => "harbor-write",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_slow_in_the_mean_and_not_at_its_beginning() {
        let seconds = Duration::from_secs;
        assert!(!is_slow(0, seconds(30), 1024));
        assert!(is_slow(31 * 1024 - 1, seconds(31), 1024));
        assert!(!is_slow(31 * 1024, seconds(31), 1024));
        // A pause after much is none.
        assert!(!is_slow(100 << 20, seconds(3600), 1024));
        assert!(!is_slow(0, seconds(3600), 0));
    }
}
