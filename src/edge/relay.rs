//! Reads of manifests in the bytes they came in: of those that nobody judges, and of tags whose
//! binding is known.
//!
//! The client's lines go to the registry, and the registry's to the client, but for those that a
//! proxy changes. What can't be relayed is pingora's: an answer without a length, HTTP/2, TLS.

use std::io;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use pingora::protocols::Stream;
use pingora::protocols::http::date::get_cached_date;
use pingora::{Error, Result};
use tokio::time::Instant;

use super::asked::{Asked, Line};
use super::blobs::{Side, Socket, failed, in_time, send_now};
use super::familiar::Face;
use super::forwarding::Forwarding;
use super::passage::{Passage, Sent};
use super::reads::reading;
use super::refusal::Refusal;
use super::{CLIENT_WRITE, Edge};
use crate::judge::pull::{Pull, Unsure};
use crate::ledger::RepositoryKey;
use crate::name::{RepositoryName, Tag};
use crate::registry::Reading;
use crate::registry::client::{Relay, Relayed, UNSENT, trouble_of};
use crate::registry::clock::Clock;
use crate::route::namespace;

/// Besides the registry's lines.
const OURS: usize = 128;
/// Of a body that is copied, to go out with its header.
pub(super) const SMALL: usize = 64 * 1024;
/// Of a body that is checked before it is passed on; the judge reads longer ones.
const MOST: u64 = 4 << 20;

impl Edge {
    /// Answers a GET or HEAD of what nobody judges. False where pingora is to do it.
    pub(super) async fn stream_relayed(
        &self,
        line: &mut Line,
        asked: &Asked,
        passage: &mut Passage,
        clock: &mut Clock,
    ) -> Result<bool> {
        let Some(request) =
            self.relayed_request(line, asked, passage, asked.header.raw_path(), &[])
        else {
            return Ok(false);
        };
        let mut time = clock.freely();
        let relay = tokio::select! {
            biased;
            relay = self.rooms.client.relay(&request, asked.is_head(), &mut time) => relay?,
            error = line.left() => return Err(error),
        };
        let Relay::Answer(answer) = relay else { return Ok(false) };
        self.give(line, asked, passage, answer, clock).await?;
        Ok(true)
    }

    /// Answers a GET or HEAD of a tag whose binding is known without asking anybody, where all is as
    /// it should be. False where the judge is to find out.
    pub(super) async fn relay_bound(
        &self,
        line: &mut Line,
        asked: &Asked,
        passage: &mut Passage,
        (repository, tag): (RepositoryName, Tag),
        clock: &mut Clock,
    ) -> Result<bool> {
        let started = Instant::from_std(passage.started);
        let key = RepositoryKey { upstream: self.upstream.clone(), repository };
        let pull = Pull { repository: key, tag, strict: self.config.strict };
        let (key, tag) = (&pull.repository, &pull.tag);
        let Some(digest) = self.rooms.judge.fresh(key, tag, started) else { return Ok(false) };
        let face = self.familiar.recall(&pull, digest);
        let reading = reading(&asked.header.method);
        let namespace = namespace(asked.header.uri.query());
        let client = &self.rooms.client;
        let target = client.manifest_target(&key.repository, &face.name, namespace.as_deref());
        let request = self.relayed_request(line, asked, passage, target.as_bytes(), &UNSENT);
        let Some(request) = request else { return Ok(false) };
        // Whether the client is still there is nobody's question, as where the judge asks.
        let mut time = clock.until(started + self.rooms.peers.timeouts().exchange);
        let asking = async {
            let relay = client.relay(&request, reading == Reading::Head, &mut time).await?;
            let Relay::Answer(mut answer) = relay else { return Ok(None) };
            let whole = client.relay_whole(&mut answer, MOST, &mut time).await?;
            Ok::<_, Box<Error>>(whole.then_some(answer))
        };
        let answer = match asking.await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(false),
            Err(error) => {
                self.pulled_past_the_judge(passage, "undecided", started);
                let refusal = Refusal::unsure(&Unsure::Registry(trouble_of(&error)));
                self.refuse_asked(line, asked, passage, refusal, asked.keeps).await?;
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
                let quiet = quiet.or_else(|| self.rooms.judge.served(&pull, digest, caller));
                if quiet.is_some() || content.is_some() {
                    self.familiar.keep(pull, &face, content, quiet);
                }
            }
            "served"
        } else if answer.is_plain_no(reading) {
            "relayed"
        } else {
            client.relay_in_vain(answer);
            return Ok(false);
        };
        self.pulled_past_the_judge(passage, label, started);
        self.give(line, asked, passage, answer, clock).await?;
        Ok(true)
    }

    fn pulled_past_the_judge(&self, passage: &Passage, label: &'static str, started: Instant) {
        self.rooms.metrics.pull_by_memory(label, started.elapsed());
        passage.judged(label);
    }

    /// The client's request, of this target, for the registry. `None` where it can't be relayed.
    fn relayed_request(
        &self,
        line: &mut Line,
        asked: &Asked,
        passage: &Passage,
        target: &[u8],
        unsent: &[HeaderName],
    ) -> Option<Vec<u8>> {
        let client = &passage.client;
        let introduction = line.introduction(client, || self.introduction(client));
        Forwarding::of(passage, introduction).relayed(&asked.header, &asked.raw, target, unsent)
    }

    /// To the client, and the connection back to where it is kept.
    async fn give(
        &self,
        line: &mut Line,
        asked: &Asked,
        passage: &mut Passage,
        mut answer: Relayed,
        clock: &mut Clock,
    ) -> Result<()> {
        let mut out = self.relayed_head(passage, &answer, asked.keeps);
        // From here on nothing else may be answered.
        let sent = passage.sent.insert(Sent { status: answer.status(), bytes: 0 });
        if answer.body().len() > SMALL {
            send(&line.stream, &out).await?;
            send(&line.stream, answer.body()).await?;
        } else {
            out.extend_from_slice(answer.body());
            send(&line.stream, &out).await?;
        }
        sent.bytes = answer.body().len() as u64;
        let mut time = clock.freely();
        while answer.has_more() {
            let more = tokio::select! {
                biased;
                more = self.rooms.client.relay_more(&mut answer, &mut time) => more?,
                error = line.left() => return Err(error),
            };
            send(&line.stream, more).await?;
            sent.bytes += more.len() as u64;
        }
        self.rooms.client.relay_over(answer);
        Ok(())
    }

    /// The registry's header, as the client is told it: with our own `Date` and `Connection`, as
    /// pingora has them, and URLs that name the proxy. Its connection's life is no business of the
    /// client's.
    fn relayed_head(&self, passage: &Passage, answer: &Relayed, keeps: bool) -> Vec<u8> {
        let rewriting = self.rewriting(passage);
        let mut out = Vec::with_capacity(answer.head_length() + answer.body().len() + OURS);
        out.extend_from_slice(answer.status_line());
        for (name, value, line) in answer.lines() {
            let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
            if is("date") || is("connection") || is("keep-alive") {
                continue;
            }
            match rewriting.value(name, value) {
                Some(value) => put_line(&mut out, name, value.as_bytes()),
                None => out.extend_from_slice(line),
            }
        }
        end_head(&mut out, passage, keeps);
        out
    }

    /// Writes an answer that is whole, header and body at once.
    pub(super) async fn write_whole(
        &self,
        client: &Stream,
        passage: &mut Passage,
        keeps: bool,
        (status, headers, body): (StatusCode, &[(Bytes, HeaderValue)], &[u8]),
    ) -> Result<()> {
        let lines: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let mut out = Vec::with_capacity(lines + body.len() + OURS);
        let reason = status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
        for (name, value) in headers {
            put_line(&mut out, name, value.as_bytes());
        }
        end_head(&mut out, passage, keeps);
        out.extend_from_slice(body);
        // From here on nothing else may be answered.
        let sent = passage.sent.insert(Sent { status, bytes: 0 });
        send(client, &out).await?;
        sent.bytes = body.len() as u64;
        Ok(())
    }
}

fn put_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// What taglock says itself in a header.
fn end_head(out: &mut Vec<u8>, passage: &Passage, keeps: bool) {
    if let Some(warning) = &passage.warning {
        put_line(out, b"Warning", warning.as_bytes());
    }
    put_line(out, b"Date", get_cached_date().as_bytes());
    put_line(out, b"Connection", if keeps { b"keep-alive" } else { b"close" });
    out.extend_from_slice(b"\r\n");
}

/// Past pingora's writer, in which nothing waits: what it wrote before, it has sent.
async fn send(client: &Stream, bytes: &[u8]) -> Result<()> {
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
    in_time(CLIENT_WRITE, sending).await.map_err(failed)
}
