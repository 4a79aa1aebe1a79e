//! Reads of manifests in the bytes they came in: of those that nobody judges, and of tags whose
//! binding is known.
//!
//! The client's lines go to the registry, and the registry's to the client, but for those that a
//! proxy changes. What can't be relayed is pingora's: an answer without a length, HTTP/2, TLS.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::protocols::Stream;
use pingora::{Error, Result};
use tokio::time::Instant;

use super::authorized::Right;
use super::blobs::{Side, Socket, failed, send_now};
use super::context::{Passage, Sent};
use super::error_response::Refusal;
use super::http1_connection::Line;
use super::pull::reading;
use super::request_headers::{Kind, put_line, relayed};
use super::request_memo::Asked;
use super::verified_cache::Face;
use super::{CLIENT_WRITE, Edge, date_cache};
use crate::judge::pull::{Pull, Unsure};
use crate::ledger::RepositoryKey;
use crate::name::{RepositoryName, Tag};
use crate::registry::Reading;
use crate::registry::client::{Part, Relay, Relayed, trouble_of};
use crate::route::{namespace, query_of};
use crate::runtime::buffer_pool::PooledBuffer;
use crate::runtime::timer::Clock;

/// Of a body that is copied, to go out with its header.
pub(super) const SMALL: usize = 64 * 1024;
/// Of a body that is checked before it is passed on; the judge reads longer ones.
const MOST: u64 = 4 << 20;

impl Edge {
    /// Answers a GET or HEAD of what nobody judges. False where pingora is to do it.
    pub(super) async fn stream_relayed(
        &self,
        line: &mut Line,
        asked: &mut Asked,
        passage: &mut Passage,
        clock: &mut Clock,
    ) -> Result<bool> {
        let Some(request) = self.relayed_request(asked, passage, Kind::Plain, None) else {
            return Ok(false);
        };
        let mut time = clock.freely();
        let relay = tokio::select! {
            biased;
            relay = self.rooms.client.relay(&request, asked.is_head(), self.home(), &mut time) => relay?,
            error = line.left() => return Err(error),
        };
        let Relay::Answer(answer) = relay else { return Ok(false) };
        self.give(line, asked, passage, (answer, None), clock).await?;
        Ok(true)
    }

    /// Answers a GET or HEAD of a tag whose binding is known without asking anybody, where all is as
    /// it should be. False where the judge is to find out.
    pub(super) async fn relay_bound(
        &self,
        line: &mut Line,
        asked: &mut Asked,
        passage: &mut Passage,
        (repository, tag): (RepositoryName, Tag),
        clock: &mut Clock,
    ) -> Result<bool> {
        let started = Instant::from_std(passage.started);
        let key = RepositoryKey { upstream: self.upstream.clone(), repository };
        let pull = Pull { repository: key, tag, strict: self.config.strict };
        let (key, tag) = (&pull.repository, &pull.tag);
        // Any other client is answered by the registry first, to what it asked for.
        if !self.is_let_in(asked, passage, &key.repository, started) {
            return Ok(false);
        }
        let (client, judge) = (&self.rooms.client, &self.rooms.judge);
        let known = self.familiar.recall(&pull);
        let face = match known.filter(|face| judge.is_still(&face.bound, started)) {
            Some(face) => face,
            None => {
                let Some(bound) = judge.fresh(key, tag, started) else { return Ok(false) };
                let target_of = |name: &str| client.manifest_target(&key.repository, name, None);
                self.familiar.meet(&pull, bound, target_of)
            }
        };
        let digest = face.bound.digest;
        let reading = reading(&asked.header.method);
        let namespace = namespace(query_of(asked.header.raw_path()));
        let of_namespace = namespace
            .as_deref()
            .map(|namespace| client.manifest_target(&key.repository, &face.name, Some(namespace)));
        let target = of_namespace.as_deref().unwrap_or(&face.target).as_bytes();
        let request = self.relayed_request(asked, passage, Kind::Bound, Some(target));
        let Some(request) = request else { return Ok(false) };
        // Whether the client is still there is nobody's question, as where the judge asks.
        let mut time = clock.until(started + self.rooms.peers.timeouts().exchange);
        let asking = async {
            let relay =
                client.relay(&request, reading == Reading::Head, self.home(), &mut time).await?;
            let Relay::Answer(mut answer) = relay else { return Ok(None) };
            let whole = client.relay_whole(&mut answer, MOST, &mut time).await?;
            Ok::<_, Box<Error>>(whole.then_some(answer))
        };
        let answer = match asking.await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(false),
            Err(error) => {
                self.pulled_past_the_judge(passage, "undecided", clock.now() - started);
                let refusal = Refusal::unsure(&Unsure::Registry(trouble_of(&error)));
                self.refuse_asked(line, asked, passage, (refusal, asked.keeps), clock).await?;
                return Ok(true);
            }
        };
        let brings = reading == Reading::Get && answer.status() == StatusCode::OK;
        let content = brings.then(|| answer.body());
        let known = content.is_none_or(|content| face.has(content));
        let is_its = known || content.is_some_and(|content| digest.matches(content));
        let label = if answer.is_plainly(&face.name) && is_its {
            self.warn_of_drift(passage, key, tag, &digest);
            let quiet = face.quiet.filter(|until| started < *until);
            let content = content.filter(|content| !known && Face::takes(content));
            if quiet.is_none() || content.is_some() {
                let caller = || self.caller(&asked.header, passage, namespace);
                let quiet = quiet.or_else(|| judge.served(&pull, digest, caller));
                if quiet.is_some() || content.is_some() {
                    self.familiar.keep(pull, &face, content, quiet);
                }
            }
            "served"
        } else {
            client.relay_in_vain(answer, self.home(), clock.now());
            return Ok(false);
        };
        self.pulled_past_the_judge(passage, label, clock.now() - started);
        let name = Arc::clone(&face.name);
        self.give(line, asked, passage, (answer, Some(name)), clock).await?;
        Ok(true)
    }

    /// Whether the registry has lately let this client pull from the repository.
    fn is_let_in(
        &self,
        asked: &mut Asked,
        passage: &Passage,
        repository: &RepositoryName,
        now: Instant,
    ) -> bool {
        if asked.is_let_in(repository, now) {
            return true;
        }
        let (let_in, address) = (&self.rooms.let_in, passage.client.address);
        let identity = asked.identity(|headers| let_in.identity(address, headers));
        let until = let_in.until(identity, repository, Right::Pull, now);
        if let Some(until) = until {
            asked.note_let_in(repository, until);
        }
        until.is_some()
    }

    fn pulled_past_the_judge(&self, passage: &Passage, label: &'static str, took: Duration) {
        self.rooms.metrics.pull_by_memory(label, took);
        passage.judged(label);
    }

    /// The client's request for the registry, of its own target or of another one. `None` where it can't
    /// be relayed.
    fn relayed_request(
        &self,
        asked: &mut Asked,
        passage: &Passage,
        kind: Kind,
        target: Option<&[u8]>,
    ) -> Option<PooledBuffer> {
        let make = |headers: &HeaderMap, lines: &[u8]| {
            self.passed(kind, &passage.client, (headers, lines))
        };
        asked.pass(kind, make)?;
        let header = &asked.header;
        let target = target.unwrap_or_else(|| header.raw_path());
        Some(relayed(&header.method, target, asked.passed(kind), passage))
    }

    /// To the client, and the connection back to where it is kept. `digest` is the manifest's, where
    /// that is known and the registry may have left it out.
    async fn give(
        &self,
        line: &mut Line,
        asked: &Asked,
        passage: &mut Passage,
        (mut answer, digest): (Relayed, Option<Arc<str>>),
        clock: &mut Clock,
    ) -> Result<()> {
        let digest = digest.filter(|_| answer.is_unnamed());
        let said = (&answer, digest.as_deref());
        let mut out = self.relayed_head(passage, said, asked.keeps, clock.now());
        // From here on nothing else may be answered.
        let sent = passage.sent.insert(Sent { status: answer.status(), bytes: 0 });
        if answer.body().len() > SMALL {
            send(&line.stream, &out, clock).await?;
            send(&line.stream, answer.body(), clock).await?;
        } else {
            out.extend_from_slice(answer.body());
            send(&line.stream, &out, clock).await?;
        }
        sent.bytes = answer.body().len() as u64;
        while answer.has_more() {
            let mut time = clock.freely();
            let more = tokio::select! {
                biased;
                more = self.rooms.client.relay_more(&mut answer, &mut time) => more?,
                error = line.left() => return Err(error),
            };
            send(&line.stream, more, clock).await?;
            sent.bytes += more.len() as u64;
        }
        self.rooms.client.relay_over(answer, self.home(), clock.now());
        Ok(())
    }

    /// The registry's header, as the client is told it: with our own `Date` and `Connection`, as
    /// pingora has them, and URLs that name the proxy. Its connection's life is no business of the
    /// client's.
    fn relayed_head(
        &self,
        passage: &Passage,
        (answer, digest): (&Relayed, Option<&str>),
        keeps: bool,
        now: Instant,
    ) -> PooledBuffer {
        let rewriting = self.rewriting(passage);
        let mut out = PooledBuffer::large();
        for part in answer.header() {
            match part {
                Part::Plain(lines) => out.extend_from_slice(lines),
                Part::Marked(mark, line) => rewriting.line(mark, line, &mut out),
            }
        }
        if let Some(digest) = digest {
            put_line(&mut out, b"Docker-Content-Digest", digest.as_bytes());
        }
        end_head(&mut out, passage, keeps, now);
        out
    }

    /// Writes an answer that is whole, header and body at once.
    pub(super) async fn write_whole(
        &self,
        client: &Stream,
        passage: &mut Passage,
        keeps: bool,
        (status, headers, body): (StatusCode, &[(Bytes, HeaderValue)], &[u8]),
        clock: &mut Clock,
    ) -> Result<()> {
        let mut out = PooledBuffer::large();
        let reason = status.canonical_reason().unwrap_or_default();
        for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            put_line(&mut out, name, value.as_bytes());
        }
        end_head(&mut out, passage, keeps, clock.now());
        out.extend_from_slice(body);
        // From here on nothing else may be answered.
        let sent = passage.sent.insert(Sent { status, bytes: 0 });
        send(client, &out, clock).await?;
        sent.bytes = body.len() as u64;
        Ok(())
    }
}

/// What taglock says itself in a header.
fn end_head(out: &mut Vec<u8>, passage: &Passage, keeps: bool, now: Instant) {
    if let Some(warning) = &passage.warning {
        put_line(out, b"Warning", warning.as_bytes());
    }
    date_cache::with_date(now.into_std(), |date| put_line(out, b"Date", date));
    put_line(out, b"Connection", if keeps { b"keep-alive" } else { b"close" });
    out.extend_from_slice(b"\r\n");
}

/// Past pingora's writer, in which nothing waits: what it wrote before, it has sent.
async fn send(client: &Stream, bytes: &[u8], clock: &mut Clock) -> Result<()> {
    let failed = |error: io::Error| failed(&error, Side::Client);
    // Nearly always the socket has room for it all.
    let mut bytes = &bytes[send_now(client, bytes).map_err(failed)?..];
    if bytes.is_empty() {
        return Ok(());
    }
    let socket = Socket::of(client).map_err(failed)?;
    let sending = async {
        while !bytes.is_empty() {
            bytes = &bytes[socket.send(bytes, false).await?..];
        }
        Ok(())
    };
    // As long as pingora gives a client for one write, however slowly it takes it.
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    clock.within(CLIENT_WRITE, sending).await.unwrap_or_else(late).map_err(failed)
}
