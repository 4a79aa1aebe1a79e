//! A registry that is slow, fails and answers late, and notes what it did at which instant.
//!
//! It carries DELETEs out in the order in which they arrived. Of one that does not, taglock promises less
//! ("What remains" in decision 0030).

use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::check::Time;
use crate::fault_proxy::{Of, message, pause};
use crate::harness::*;

/// One time for all who note something.
#[derive(Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(self) -> Time {
        u64::try_from(self.0.elapsed().as_micros()).unwrap()
    }
}

/// How often it is slow or fails, in percent.
#[derive(Clone, Copy, Debug)]
pub struct Moods {
    /// It waits before it does something, or before it answers.
    pub slow: u32,
    /// It does it and says 500, or cuts the connection, or does it after that.
    pub unclear: u32,
    /// It refuses a PUT by tag with 403.
    pub refuses: u32,
    /// Whether it takes DELETE by tag.
    pub deletes_tags: bool,
}

/// What it did, and when.
#[derive(Clone, Debug)]
pub struct Noted {
    pub at: Time,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// This tag shows this digest from now on.
    Shown { tag: String, digest: Option<String> },
    /// The tag was deleted past taglock.
    Hidden { tag: String },
    /// A DELETE by tag has taken the tag from this digest.
    Untagged { tag: String, digest: String },
    /// This DELETE of a digest has arrived.
    Asked { digest: String, request: u64 },
    /// It was carried out.
    Deleted { digest: String, request: u64 },
}

#[derive(Default)]
struct State {
    manifests: HashMap<String, Vec<u8>>,
    tags: HashMap<String, String>,
    noted: Vec<Noted>,
    /// The DELETEs that were not carried out yet, by their numbers.
    deletes: BTreeSet<u64>,
}

struct Shared {
    clock: Clock,
    repository: String,
    seed: u64,
    moods: Moods,
    requests: AtomicU64,
    calm: AtomicBool,
    closed: AtomicBool,
    late: AtomicU64,
    state: Mutex<State>,
    /// A DELETE was carried out.
    deleted: Condvar,
}

/// Of one repository.
pub struct SlowRegistry {
    pub address: String,
    shared: Arc<Shared>,
}

/// What becomes of one request.
struct Plan {
    before: Duration,
    after: Duration,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Answer,
    /// Done, and answered with this.
    DoneBut(u16),
    DoneAndCut,
    /// The connection is cut, and it is done after this time.
    CutAndLate(Duration),
    Refused(u16),
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn error(status: u16, code: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"as planned"}}]}}"#);
        let headers = vec![("Content-Type", "application/json".to_owned())];
        Self { status, headers, body: body.into_bytes() }
    }
}

struct Request {
    number: u64,
    method: String,
    path: String,
    body: Vec<u8>,
}

impl Request {
    fn reference(&self) -> Option<&str> {
        Some(self.path.split_once("/manifests/")?.1)
    }

    fn digest(&self) -> Option<&str> {
        self.reference().filter(|reference| reference.contains(':'))
    }
}

impl SlowRegistry {
    pub fn start(clock: Clock, repository: &str, moods: Moods, seed: u64) -> Self {
        let (listener, address) = listener();
        let shared = Arc::new(Shared {
            clock,
            repository: repository.to_owned(),
            seed,
            moods,
            requests: AtomicU64::new(0),
            calm: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            late: AtomicU64::new(0),
            state: Mutex::default(),
            deleted: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared }
    }

    /// Neither slow nor failing, or as its moods have it.
    pub fn calm(&self, calm: bool) {
        self.shared.calm.store(calm, Ordering::SeqCst);
    }

    /// Waits until it has done what it does late.
    pub fn wait_for_the_late(&self) {
        eventually("what is late", || self.shared.late.load(Ordering::SeqCst) == 0);
    }

    pub fn noted(&self) -> Vec<Noted> {
        self.shared.state.lock().unwrap().noted.clone()
    }

    /// Stores an image under a tag, past taglock.
    pub fn place(&self, tag: &str, manifest: &[u8]) {
        let mut state = self.shared.state.lock().unwrap();
        let named = digest(manifest);
        state.manifests.insert(named.clone(), manifest.to_vec());
        self.shared.show(&mut state, tag, Some(named));
    }

    pub fn tag(&self, tag: &str) -> Option<String> {
        self.shared.state.lock().unwrap().tags.get(tag).cloned()
    }

    /// As an operator may, past taglock: the tag is deleted if it is this digest's, and its image stays.
    pub fn untag(&self, tag: &str, digest: &str) {
        let mut state = self.shared.state.lock().unwrap();
        if state.tags.get(tag).is_some_and(|shown| shown == digest) {
            state.tags.remove(tag);
            self.shared.note(&mut state, What::Hidden { tag: tag.to_owned() });
        }
    }
}

impl Drop for SlowRegistry {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // The listener wakes and goes.
        let _ = TcpStream::connect(&self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.closed.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // An error of the connection ends it; what it had asked for has been done.
            let _ = shared.serve(client);
        });
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut requests = BufReader::new(client.try_clone()?);
        while let Some(bytes) = message(&mut requests, Of::Client)? {
            let number = self.requests.fetch_add(1, Ordering::Relaxed);
            let Some(request) = parsed(number, &bytes) else { return Ok(()) };
            let plan = self.plan(&request);
            if request.method == "DELETE" {
                self.asked_to_delete(&request);
            }
            pause(plan.before);
            let reply = match plan.end {
                End::Answer => self.act_in_turn(&request),
                End::DoneBut(status) => {
                    self.act_in_turn(&request);
                    Reply::error(status, "UNKNOWN")
                }
                End::DoneAndCut => {
                    self.act_in_turn(&request);
                    return Ok(());
                }
                End::CutAndLate(late) => {
                    self.act_late(request, late);
                    return Ok(());
                }
                End::Refused(status) => Reply::error(status, "DENIED"),
            };
            pause(plan.after);
            client.write_all(&written(&reply, request.method == "HEAD"))?;
        }
        Ok(())
    }

    fn plan(&self, request: &Request) -> Plan {
        let mut rng = Rng::with_seed(self.seed.wrapping_add(request.number));
        let none = Duration::ZERO;
        if self.calm.load(Ordering::SeqCst) {
            return Plan { before: none, after: none, end: End::Answer };
        }
        let Moods { slow, unclear, refuses, .. } = self.moods;
        let by_tag = request.reference().is_some() && request.digest().is_none();
        let writes = request.method == "DELETE" || (request.method == "PUT" && by_tag);
        // Mostly not for long, so that much happens; a write sometimes for as long as much else takes.
        let wait = |rng: &mut Rng| match rng.u32(0..100) {
            n if writes && n < slow / 2 => Duration::from_millis(rng.u64(100..700)),
            n if n < slow => Duration::from_millis(rng.u64(10..120)),
            _ => none,
        };
        let (before, after) = (wait(&mut rng), wait(&mut rng));
        let late = Duration::from_millis(rng.u64(200..2000));
        let end = match rng.u32(0..100) {
            n if writes && n < unclear => match rng.u32(0..3) {
                0 => End::DoneBut(500),
                1 => End::DoneAndCut,
                _ => End::CutAndLate(late),
            },
            n if request.method == "PUT" && by_tag && n < unclear + refuses => End::Refused(403),
            _ => End::Answer,
        };
        Plan { before, after, end }
    }

    fn act_late(self: &Arc<Self>, request: Request, late: Duration) {
        let shared = Arc::clone(self);
        shared.late.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            pause(late);
            shared.act_in_turn(&request);
            shared.late.fetch_sub(1, Ordering::SeqCst);
        });
    }

    fn note(&self, state: &mut State, what: What) {
        state.noted.push(Noted { at: self.clock.now(), what });
    }

    fn show(&self, state: &mut State, tag: &str, digest: Option<String>) {
        let before = match &digest {
            Some(digest) => state.tags.insert(tag.to_owned(), digest.clone()),
            None => state.tags.remove(tag),
        };
        if before != digest {
            self.note(state, What::Shown { tag: tag.to_owned(), digest });
        }
    }

    fn asked_to_delete(&self, request: &Request) {
        let mut state = self.state.lock().unwrap();
        state.deletes.insert(request.number);
        if let Some(digest) = request.digest() {
            let asked = What::Asked { digest: digest.to_owned(), request: request.number };
            self.note(&mut state, asked);
        }
    }

    /// A DELETE after all that came before it.
    fn act_in_turn(&self, request: &Request) -> Reply {
        let mut state = self.state.lock().unwrap();
        if request.method == "DELETE" {
            let earlier = |state: &mut State| state.deletes.first() != Some(&request.number);
            state = self.deleted.wait_while(state, earlier).unwrap();
            state.deletes.remove(&request.number);
            self.deleted.notify_all();
        }
        self.act(&mut state, request)
    }

    fn act(&self, state: &mut State, request: &Request) -> Reply {
        let path = request.path.as_str();
        let unknown = || Reply::error(404, "MANIFEST_UNKNOWN");
        if path == "/v2/" {
            return Reply::of(200);
        }
        let Some(path) = path.strip_prefix(&format!("/v2/{}/", self.repository)) else {
            return unknown();
        };
        if path == "tags/list" {
            let mut tags: Vec<_> = state.tags.keys().collect();
            tags.sort();
            let text = format!(r#"{{"name":"{}","tags":{tags:?}}}"#, self.repository);
            let headers = vec![("Content-Type", "application/json".to_owned())];
            return Reply { status: 200, headers, body: text.into_bytes() };
        }
        let Some(reference) = path.strip_prefix("manifests/") else { return unknown() };
        match request.method.as_str() {
            "GET" | "HEAD" => read(state, reference).unwrap_or_else(unknown),
            "PUT" => self.put(state, reference, &request.body),
            "DELETE" => self.delete(state, reference, request.number),
            _ => Reply::error(405, "UNSUPPORTED"),
        }
    }

    fn put(&self, state: &mut State, reference: &str, body: &[u8]) -> Reply {
        let named = digest(body);
        state.manifests.insert(named.clone(), body.to_vec());
        if !reference.contains(':') {
            self.show(state, reference, Some(named.clone()));
        }
        let location = format!("/v2/{}/manifests/{named}", self.repository);
        let headers = vec![("Docker-Content-Digest", named), ("Location", location)];
        Reply { status: 201, headers, body: Vec::new() }
    }

    fn delete(&self, state: &mut State, reference: &str, request: u64) -> Reply {
        if !reference.contains(':') {
            let Some(digest) = state.tags.get(reference).cloned() else {
                return Reply::error(404, "MANIFEST_UNKNOWN");
            };
            if !self.moods.deletes_tags {
                return Reply::error(405, "UNSUPPORTED");
            }
            self.show(state, reference, None);
            self.note(state, What::Untagged { tag: reference.to_owned(), digest });
            return Reply::of(202);
        }
        if state.manifests.remove(reference).is_none() {
            return Reply::error(404, "MANIFEST_UNKNOWN");
        }
        self.note(state, What::Deleted { digest: reference.to_owned(), request });
        let tags: Vec<_> = state
            .tags
            .iter()
            .filter(|(_, shown)| *shown == reference)
            .map(|(t, _)| t.clone())
            .collect();
        for tag in tags {
            self.show(state, &tag, None);
        }
        Reply::of(202)
    }
}

fn read(state: &State, reference: &str) -> Option<Reply> {
    let named = match reference.contains(':') {
        true => reference,
        false => state.tags.get(reference)?,
    };
    let body = state.manifests.get(named)?.clone();
    let headers =
        vec![("Content-Type", INDEX.to_owned()), ("Docker-Content-Digest", named.to_owned())];
    Some(Reply { status: 200, headers, body })
}

fn parsed(number: u64, bytes: &[u8]) -> Option<Request> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    assert!(!head.to_lowercase().contains("transfer-encoding"), "a body in chunks: {head}");
    let mut line = head.lines().next()?.split(' ');
    let (method, target) = (line.next()?.to_owned(), line.next()?);
    let path = target.split('?').next()?.to_owned();
    Some(Request { number, method, path, body: bytes[end + 4..].to_vec() })
}

fn written(reply: &Reply, head: bool) -> Vec<u8> {
    let mut text =
        format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    let body = if head { &[][..] } else { &reply.body };
    [text.as_bytes(), body].concat()
}
