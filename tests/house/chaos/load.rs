//! Clients that push rivals to the same tags through all proxies, and pull all the while.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::history::{Event, Pulled, Pushed, What};
use crate::fault_proxy::pause;
use crate::harness::*;
use crate::http::{self, Answer};

pub const REPOSITORY: &str = "prod/chaos";
/// How many images want each pair of tags.
const RIVALS: u64 = 4;
/// How long a pair of tags is new.
const NEW: Duration = Duration::from_millis(1500);
/// A client's patience.
const ANSWER: Duration = Duration::from_secs(4);

/// Clients of some taglocks and of the registry behind them.
pub struct Clients {
    seed: u64,
    taglocks: Vec<String>,
    registry: String,
    start: Instant,
    history: Mutex<Vec<Event>>,
    /// A blob that half the images refer to.
    blob: Vec<u8>,
}

/// Whom a request is sent to.
#[derive(Clone, Copy, Debug)]
pub enum To {
    Taglock(usize),
    /// Past taglock: what the registry itself has under a tag may never move either.
    Registry,
}

impl Clients {
    pub fn new(seed: u64, taglocks: Vec<String>, registry: &str) -> Self {
        let blob = format!("{{\"chaos\":{seed}}}").into_bytes();
        let clients = Self {
            seed,
            taglocks,
            registry: registry.to_owned(),
            start: Instant::now(),
            history: Mutex::default(),
            blob,
        };
        clients.upload();
        clients
    }

    /// Through taglock, while all is well.
    fn upload(&self) {
        let address = &self.taglocks[0];
        let target = format!("/v2/{REPOSITORY}/blobs/uploads/");
        let started = http::request(address, "POST", &target, &[], b"");
        let location = started.header("Location").unwrap_or_else(|| panic!("{started:?}"));
        let path = &location[location.find("/v2/").unwrap()..];
        let target = format!("{path}&digest={}", digest(&self.blob));
        let answer = http::request(address, "PUT", &target, &[], &self.blob);
        assert_eq!(answer.status, 201, "{answer:?}");
    }

    /// The images that want the tags of a pair: empty indexes, and images with a blob.
    pub fn image(&self, pair: u64, rival: u64) -> (&'static str, Vec<u8>) {
        let seed = format!("{}-{pair}-{rival}", self.seed);
        if rival.is_multiple_of(2) {
            return (INDEX, manifest(&seed));
        }
        let (blob, size) = (digest(&self.blob), self.blob.len());
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{blob}","size":{size}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{blob}","size":{size}}}],"annotations":{{"seed":"{seed}"}}}}"#
        );
        (OCI, text.into_bytes())
    }

    pub fn images(&self, tag: &str) -> Vec<(&'static str, Vec<u8>)> {
        (0..RIVALS).map(|rival| self.image(pair_of(tag), rival)).collect()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap()
    }

    /// Enters what is about to be asked, and what is known of it so far: nothing.
    fn begin(&self, to: To, what: What) -> usize {
        let mut history = self.history.lock().unwrap();
        let to = format!("{to:?}");
        history.push(Event { invoked: self.now(), completed: u64::MAX, to, what });
        history.len() - 1
    }

    fn end(&self, event: usize, what: What) {
        let mut history = self.history.lock().unwrap();
        let event = &mut history[event];
        event.completed = self.now();
        event.what = what;
    }

    pub fn history(&self) -> Vec<Event> {
        self.history.lock().unwrap().clone()
    }

    fn address(&self, to: To) -> &str {
        match to {
            To::Taglock(n) => &self.taglocks[n],
            To::Registry => &self.registry,
        }
    }

    pub fn push(&self, to: To, tags: &[String], image: &(&'static str, Vec<u8>)) -> Pushed {
        let (media_type, bytes) = image;
        let digest = digest(bytes);
        let base = format!("/v2/{REPOSITORY}/manifests");
        let target = match tags {
            [tag] => format!("{base}/{tag}"),
            tags => format!("{base}/{digest}?tag={}", tags.join("&tag=")),
        };
        let address = self.address(to);
        let headers = [("Content-Type", *media_type)];
        let request = http::bytes(address, "PUT", &target, &headers, bytes);
        let what = |outcome| What::Push { tags: tags.to_vec(), digest: digest.clone(), outcome };
        let event = self.begin(to, what(Pushed::Unclear));
        let outcome = match ask(address, &request) {
            Err(_) => Pushed::Unclear,
            Ok(answer) => pushed(&answer, tags, &digest),
        };
        self.end(event, what(outcome.clone()));
        outcome
    }

    pub fn pull(&self, to: To, tag: &str, method: &str) -> Pulled {
        let address = self.address(to);
        let target = format!("/v2/{REPOSITORY}/manifests/{tag}");
        let accept = format!("{OCI}, {INDEX}");
        let request = http::bytes(address, method, &target, &[("Accept", &accept)], b"");
        let what = |outcome| What::Pull { tag: tag.to_owned(), outcome };
        let event = self.begin(to, what(Pulled::Unclear));
        let outcome = match ask(address, &request) {
            Err(_) => Pulled::Unclear,
            Ok(answer) => pulled(&answer, method),
        };
        self.end(event, what(outcome.clone()));
        outcome
    }

    /// One client, until it is told to end.
    pub fn run(&self, mut rng: Rng, end: &AtomicBool) {
        let mut last = 0;
        while !end.load(Ordering::Relaxed) {
            let newest = u64::try_from(self.start.elapsed().as_millis() / NEW.as_millis()).unwrap();
            // All begin with a push to a pair that is new, so that rivals meet.
            let race = newest != last;
            last = newest;
            let pair = match rng.u32(0..100) {
                _ if race => newest,
                0..=84 => newest - rng.u64(0..3).min(newest),
                // Old tags stay what they are.
                _ => rng.u64(0..=newest),
            };
            let tags = [format!("t{pair}a"), format!("t{pair}b")];
            let one = usize::from(rng.bool());
            let taglock = To::Taglock(rng.usize(0..self.taglocks.len()));
            let known = match rng.u32(0..if race { 50 } else { 100 }) {
                0..=34 => {
                    let image = self.image(pair, rng.u64(0..RIVALS));
                    self.push(taglock, &tags[one..=one], &image) != Pushed::Unclear
                }
                35..=49 => {
                    let image = self.image(pair, rng.u64(0..RIVALS));
                    self.push(taglock, &tags, &image) != Pushed::Unclear
                }
                50..=69 => self.pull(taglock, &tags[one], "GET") != Pulled::Unclear,
                70..=84 => self.pull(taglock, &tags[one], "HEAD") != Pulled::Unclear,
                _ => self.pull(To::Registry, &tags[one], "GET") != Pulled::Unclear,
            };
            if !known {
                // What is down is not asked without a pause.
                pause(Duration::from_millis(50));
            }
        }
    }
}

pub fn pair_of(tag: &str) -> u64 {
    tag.trim_start_matches('t').trim_end_matches(['a', 'b']).parse().unwrap()
}

fn ask(address: &str, request: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.set_nodelay(true)?;
    stream.write_all(request)?;
    http::read_answer(&mut BufReader::new(stream), request.starts_with(b"HEAD "))
}

fn pushed(answer: &Answer, tags: &[String], digest: &str) -> Pushed {
    match answer.status {
        201 if answer.header("Docker-Content-Digest") != Some(digest) => {
            Pushed::Wrong(format!("another digest than was pushed: {answer:?}"))
        }
        201 if tags.len() == 1 => Pushed::Acknowledged(tags.to_vec()),
        201 => {
            let echoed =
                answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("OCI-Tag"));
            Pushed::Acknowledged(echoed.map(|(_, tag)| tag.clone()).collect())
        }
        409 => {
            let text = answer.text();
            let after = |what: &str, until: char| {
                let (_, rest) = text.split_once(what)?;
                Some(rest.split(until).next()?.to_owned())
            };
            match (after("image tag '", '\''), after("bound to ", ';')) {
                (Some(tag), Some(bound)) => Pushed::Refused { tag, bound },
                _ => Pushed::Wrong(format!("a refusal that says nothing: {answer:?}")),
            }
        }
        500..=599 => Pushed::Unclear,
        _ => Pushed::Wrong(format!("no answer to a push: {answer:?}")),
    }
}

fn pulled(answer: &Answer, method: &str) -> Pulled {
    match (answer.status, answer.header("Docker-Content-Digest")) {
        (200, Some(named)) if method == "GET" && digest(&answer.body) != named => {
            Pulled::Wrong(format!("a manifest that is not its digest: {answer:?}"))
        }
        (200, Some(named)) => Pulled::Found(named.to_owned()),
        (404, _) => Pulled::NotFound,
        (500..=599, _) => Pulled::Unclear,
        _ => Pulled::Wrong(format!("no answer to a pull: {answer:?}")),
    }
}
