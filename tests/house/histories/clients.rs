//! Clients that push, pull and delete on few tags, and an operator that releases them.

use std::io::{self, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use super::record::{Asked, Record, Request, Told};
use super::registry::SlowRegistry;
use super::spec::Image;
use crate::fault_proxy::pause;
use crate::harness::*;
use crate::http::{self, Answer};
use crate::operators::TOKEN;

pub const REPOSITORY: &str = "prod/history";
/// Longer than taglock takes for anything here.
const ANSWER: Duration = Duration::from_secs(15);

/// Where a proxy listens.
pub struct Addresses {
    pub clients: String,
    pub admin: String,
}

pub struct Clients<'a> {
    pub record: &'a Record,
    pub registry: &'a SlowRegistry,
    pub proxies: Vec<Addresses>,
    pub manifests: Vec<Vec<u8>>,
}

/// How often what is asked, in percent; the rest are pulls.
const PUSHES: u32 = 45;
const DELETES: u32 = 20;
const RELEASES: u32 = 7;

impl Clients<'_> {
    /// One client, until it is told to end.
    pub fn run(&self, mut rng: Rng, end: &AtomicBool) {
        while !end.load(Ordering::Relaxed) {
            let proxy = rng.usize(0..self.proxies.len());
            let tag = rng.usize(0..self.record.tags.len());
            let image = Image(rng.u8(0..u8::try_from(self.manifests.len()).unwrap()));
            let told = match rng.u32(0..100) {
                n if n < PUSHES => self.push(proxy, tag, image),
                n if n < PUSHES + DELETES => match rng.u32(0..4) == 0 {
                    true => self.delete_tag(proxy, tag),
                    // Mostly one that a tag has.
                    false => match self.registry.tag(&self.record.tags[tag]) {
                        Some(shown) if rng.u32(0..4) > 0 => {
                            self.delete(proxy, self.record.image(&shown).unwrap())
                        }
                        _ => self.delete(proxy, image),
                    },
                },
                n if n < PUSHES + DELETES + RELEASES => self.release(proxy, tag, rng.bool()),
                n => self.pull(proxy, tag, if n % 2 == 0 { "GET" } else { "HEAD" }),
            };
            // A proxy that is down is not asked without a pause.
            let longest = if matches!(told, Told::Unclear(_)) { 300 } else { 30 };
            pause(Duration::from_millis(rng.u64(0..longest)));
        }
    }

    fn entered(
        &self,
        proxy: usize,
        tag: Option<usize>,
        asked: Asked,
        ask: impl FnOnce() -> Told,
    ) -> Told {
        let invoked = self.record.clock.now();
        let told = ask();
        let ended = self.record.clock.now();
        let request = Request { invoked, ended, proxy, tag, asked, told: told.clone() };
        self.record.requests.lock().unwrap().push(request);
        told
    }

    fn ask(&self, proxy: usize, method: &str, reference: &str, body: &[u8]) -> io::Result<Answer> {
        let address = &self.proxies[proxy].clients;
        let target = format!("/v2/{REPOSITORY}/manifests/{reference}");
        let kind = if method == "PUT" { "Content-Type" } else { "Accept" };
        exchange(address, &http::bytes(address, method, &target, &[(kind, INDEX)], body))
    }

    pub fn push(&self, proxy: usize, tag: usize, image: Image) -> Told {
        self.entered(proxy, Some(tag), Asked::Push(image), || {
            let manifest = &self.manifests[usize::from(image.0)];
            match self.ask(proxy, "PUT", &self.record.tags[tag], manifest) {
                Ok(answer) => self.pushed(&answer, image),
                Err(_) => Told::Unclear(0),
            }
        })
    }

    fn pushed(&self, answer: &Answer, image: Image) -> Told {
        let text = answer.text();
        let bound = || {
            let (_, rest) = text.split_once("bound to ")?;
            self.record.image(rest.split(';').next()?)
        };
        match answer.status {
            201 if answer.header("Docker-Content-Digest").and_then(|d| self.record.image(d))
                == Some(image) =>
            {
                Told::Done
            }
            409 => match bound() {
                Some(bound) => Told::Bound(bound),
                None if says_bound(&text) => Told::BoundToAnother,
                None => Told::Wrong(format!("a refusal that says nothing: {answer:?}")),
            },
            // Of the registry.
            403 => Told::Nothing(403),
            status @ 500..=599 => Told::Unclear(status),
            _ => Told::Wrong(format!("no answer to a push: {answer:?}")),
        }
    }

    pub fn pull(&self, proxy: usize, tag: usize, method: &str) -> Told {
        self.entered(proxy, Some(tag), Asked::Pull, || {
            match self.ask(proxy, method, &self.record.tags[tag], b"") {
                Ok(answer) => self.pulled(&answer, method),
                Err(_) => Told::Unclear(0),
            }
        })
    }

    fn pulled(&self, answer: &Answer, method: &str) -> Told {
        let named = answer.header("Docker-Content-Digest");
        let warned = answer.headers.iter().any(|(name, text)| {
            name.eq_ignore_ascii_case("Warning") && !text.contains("differs from the ledger")
        });
        match (answer.status, named.and_then(|named| self.record.image(named))) {
            (200, _) if method == "GET" && named != Some(&digest(&answer.body)) => {
                Told::Wrong(format!("a manifest that is not its digest: {answer:?}"))
            }
            (200, Some(_)) | (404, _) if warned => Told::Warned,
            (200, Some(image)) => Told::Found(image),
            (404, _) => Told::NotFound,
            (status @ 500..=599, _) => Told::Unclear(status),
            _ => Told::Wrong(format!("no answer to a pull: {answer:?}")),
        }
    }

    fn delete(&self, proxy: usize, image: Image) -> Told {
        let named = digest(&self.manifests[usize::from(image.0)]);
        self.entered(proxy, None, Asked::Delete(image), || {
            deleted(self.ask(proxy, "DELETE", &named, b""))
        })
    }

    fn delete_tag(&self, proxy: usize, tag: usize) -> Told {
        self.entered(proxy, Some(tag), Asked::DeleteTag, || {
            deleted(self.ask(proxy, "DELETE", &self.record.tags[tag], b""))
        })
    }

    /// By the book the tag is deleted in the registry first. Where it is not, the tag that is free is adopted
    /// again by the next who meets it.
    fn release(&self, proxy: usize, tag: usize, by_the_book: bool) -> Told {
        let name = &self.record.tags[tag];
        let Some(named) = self.registry.tag(name) else { return Told::NotFound };
        let image = self.record.image(&named).unwrap();
        self.entered(proxy, Some(tag), Asked::Release(image), || {
            if by_the_book {
                self.registry.untag(name, &named);
            }
            let body = json!({
                "reference": format!("{REPOSITORY}:{name}"), "digest": named,
                "reason": "history", "actor": "tester", "pending": false,
            });
            let address = &self.proxies[proxy].admin;
            let authorization = format!("Bearer {TOKEN}");
            let headers =
                [("Content-Type", "application/json"), ("Authorization", authorization.as_str())];
            let body = body.to_string();
            match exchange(
                address,
                &http::bytes(address, "POST", "/v1/release", &headers, body.as_bytes()),
            ) {
                Ok(answer) => match answer.status {
                    200 => Told::Done,
                    404 | 409 => Told::Nothing(answer.status),
                    500..=599 => Told::Unclear(answer.status),
                    _ => Told::Wrong(format!("no answer to a release: {answer:?}")),
                },
                Err(_) => Told::Unclear(0),
            }
        })
    }
}

/// A refusal of a client that may not know the image, or whose rule became immutable meanwhile.
fn says_bound(text: &str) -> bool {
    text.contains("cannot be overwritten") || text.contains("bound to another image")
}

fn deleted(answer: io::Result<Answer>) -> Told {
    let Ok(answer) = answer else { return Told::Unclear(0) };
    match answer.status {
        202 => Told::Done,
        404 => Told::NotFound,
        400 | 403 | 405 | 409 => Told::Nothing(answer.status),
        500..=599 => Told::Unclear(answer.status),
        _ => Told::Wrong(format!("no answer to a DELETE: {answer:?}")),
    }
}

fn exchange(address: &str, request: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    stream.write_all(request)?;
    http::read_answer(&mut BufReader::new(stream), request.starts_with(b"HEAD "))
}
