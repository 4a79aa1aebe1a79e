use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::unjudged::Affected;
use super::*;
use crate::ledger::cached::{Remembering, Witness};
use crate::ledger::memory::Memory;
use crate::ledger::{Adopt, AttemptId, Bind, Claim, Entry, FreedNumber, Origin, RepositoryKey};
use crate::name::{Algorithm, Tag, UpstreamName};
use crate::registry::client::{OTHER_BYTES, SCHEMA1};
use crate::registry::{Deleted, Listing, Reading, Serving};

mod anchored;
mod delete;
mod delete_dry_run;
mod delete_mark;
mod inspection;
mod mutable;
mod mutable_delete;
mod pulls;

/// A registry in memory that answers what it is told to before it answers truly.
#[derive(Default)]
struct Shelf {
    manifests: Mutex<HashMap<Digest, Manifest>>,
    tags: Mutex<HashMap<Tag, Digest>>,
    script: Mutex<HashMap<&'static str, VecDeque<Play>>>,
    calls: Mutex<Vec<String>>,
    algorithm: Option<Algorithm>,
    /// An owner of `v1`'s claim for "one" that gives up while somebody stages.
    gives_up: Mutex<Option<(Arc<Memory>, AttemptId)>>,
    /// What others do between the registry's DELETE and its answer.
    behind: Mutex<Option<Behind>>,
}

type Behind = Box<dyn FnOnce() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

#[derive(Clone, Copy, Debug)]
enum Play {
    Truth,
    Deny,
    NotFound,
    Refuse,
    /// An unclear answer to a PUT that took place.
    DoneButUnclear,
    Unclear,
}

impl Shelf {
    fn plan(&self, call: &'static str, plays: &[Play]) {
        self.script.lock().unwrap().entry(call).or_default().extend(plays);
    }

    fn play(&self, call: &'static str, what: &str) -> Play {
        self.calls.lock().unwrap().push(format!("{call} {what}"));
        let mut script = self.script.lock().unwrap();
        script.get_mut(call).and_then(VecDeque::pop_front).unwrap_or(Play::Truth)
    }

    fn tag(&self, name: &str) -> Option<Digest> {
        self.tags.lock().unwrap().get(&tag(name)).copied()
    }

    fn set(&self, name: &str, manifest: &Manifest) {
        self.tags.lock().unwrap().insert(tag(name), self.store(manifest));
    }

    fn store(&self, manifest: &Manifest) -> Digest {
        let digest = Digest::of(self.algorithm.unwrap_or(Algorithm::Sha256), &manifest.bytes);
        self.manifests.lock().unwrap().insert(digest, manifest.clone());
        digest
    }

    fn sight(&self, play: Play, truth: Option<Digest>) -> Sighting {
        match (play, truth) {
            (Play::Deny, _) => Sighting::Denied(answer(403)),
            (Play::NotFound, _) | (_, None) => Sighting::NotFound(answer(404)),
            (Play::Unclear, _) => Sighting::Unclear(Trouble::Status(500)),
            (_, Some(digest)) => Sighting::Found(digest),
        }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

fn answer(status: u16) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

#[async_trait]
impl Registry for Shelf {
    async fn look(&self, _: &Caller, _: &RepositoryName, reference: &Reference) -> Sighting {
        match reference {
            Reference::Tag(tag) => {
                let play = self.play("look", tag.as_str());
                self.sight(play, self.tag(tag.as_str()))
            }
            Reference::Digest(digest) => {
                let play = self.play("look-digest", "");
                let stored = self.manifests.lock().unwrap().contains_key(digest);
                self.sight(play, stored.then_some(*digest))
            }
        }
    }

    async fn resolve(&self, _: &Caller, _: &RepositoryName, tag: &Tag) -> Sighting {
        let play = self.play("resolve", tag.as_str());
        self.sight(play, self.tag(tag.as_str()))
    }

    async fn first_sight(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        tag: &Tag,
        _: Reading,
    ) -> Sighting {
        self.resolve(caller, name, tag).await
    }

    async fn ask(
        &self,
        _: &Caller,
        _: &RepositoryName,
        reference: &Reference,
        _: Reading,
    ) -> Result<Answer, Trouble> {
        let digest = match reference {
            Reference::Tag(tag) => self.tag(tag.as_str()),
            Reference::Digest(digest) => Some(*digest),
        };
        let found = digest.and_then(|d| self.manifests.lock().unwrap().get(&d).cloned());
        match (self.play("ask", &reference.to_string()), found) {
            (Play::Deny, _) => Ok(answer(403)),
            (Play::NotFound, _) | (_, None) => Ok(answer(404)),
            (Play::Refuse, _) => Ok(answer(400)),
            (Play::Unclear | Play::DoneButUnclear, _) => Err(Trouble::TimedOut),
            (Play::Truth, Some(found)) => Ok(Answer { body: found.bytes, ..answer(200) }),
        }
    }

    async fn serve(&self, _: &Caller, _: &RepositoryName, digest: &Digest, _: Reading) -> Serving {
        let found = self.manifests.lock().unwrap().get(digest).cloned();
        match (self.play("serve", ""), found) {
            (Play::Deny, _) => Serving::Other(answer(403)),
            (Play::NotFound, _) | (_, None) => Serving::NotFound(answer(404)),
            (Play::Refuse, _) => Serving::Wrong("other bytes"),
            (Play::Unclear | Play::DoneButUnclear, _) => Serving::Unclear(Trouble::TimedOut),
            (Play::Truth, Some(found)) => {
                Serving::Good(Answer { body: found.bytes, ..answer(200) })
            }
        }
    }

    async fn put(
        &self,
        _: &Caller,
        _: &RepositoryName,
        place: Place<'_>,
        manifest: &Manifest,
    ) -> Written {
        let (call, what) = match place {
            Place::Digest(_) => ("stage", String::new()),
            Place::Tag { tag, .. } => ("publish", tag.to_string()),
        };
        let play = self.play(call, &what);
        let gives_up = self.gives_up.lock().unwrap().take_if(|_| call == "stage");
        if let Some((ledger, owner)) = gives_up {
            ledger.abort(&key(), &[tag("v1")], &digest("one"), owner).await.unwrap();
        }
        if matches!(play, Play::Truth | Play::DoneButUnclear) {
            match place {
                Place::Digest(digest) => {
                    self.manifests.lock().unwrap().insert(*digest, manifest.clone());
                }
                Place::Tag { tag, .. } => self.set(tag.as_str(), manifest),
            }
        }
        let behind = self.behind.lock().unwrap().take_if(|_| call == "publish");
        if let Some(behind) = behind {
            behind().await;
        }
        match play {
            Play::Truth => Written::Created(answer(201)),
            Play::Deny => Written::Denied(answer(403)),
            Play::Refuse | Play::NotFound => Written::Refused(answer(400)),
            Play::DoneButUnclear | Play::Unclear => Written::Unknown(Trouble::TimedOut),
        }
    }

    async fn delete(&self, _: &Caller, _: &RepositoryName, reference: &Reference) -> Deleted {
        let play = self.play("delete", &reference.to_string());
        let behind = self.behind.lock().unwrap().take();
        if matches!(play, Play::Truth | Play::DoneButUnclear) {
            let mut tags = self.tags.lock().unwrap();
            match reference {
                Reference::Tag(tag) => drop(tags.remove(tag)),
                Reference::Digest(digest) => {
                    tags.retain(|_, bound| bound != digest);
                    self.manifests.lock().unwrap().remove(digest);
                }
            }
        }
        if let Some(behind) = behind {
            behind().await;
        }
        match play {
            Play::Truth => Deleted::Done(answer(202)),
            Play::Deny => Deleted::Refused(answer(403)),
            Play::Refuse => Deleted::Refused(answer(405)),
            Play::NotFound => Deleted::Refused(answer(404)),
            Play::DoneButUnclear | Play::Unclear => Deleted::Unknown(Trouble::TimedOut),
        }
    }

    async fn tags(&self, _: &Caller, _: &RepositoryName, at_most: usize) -> Listing {
        let tags = self.tags.lock().unwrap();
        match self.play("tags", "") {
            Play::Deny => Listing::Denied(answer(403)),
            Play::Unclear => Listing::Unclear(Trouble::Status(500)),
            _ if tags.len() > at_most => Listing::TooMany,
            _ => Listing::All(tags.keys().cloned().collect()),
        }
    }

    async fn ping(&self) -> Result<(), Trouble> {
        Ok(())
    }

    async fn fetch(&self, _: &Caller, _: &RepositoryName, digest: &Digest) -> Fetched {
        let garbage = |why| Fetched::Unclear(Trouble::Garbage(why));
        match self.play("fetch", "") {
            Play::Unclear => return garbage("too large"),
            Play::Refuse => return garbage(OTHER_BYTES),
            Play::Deny => return garbage(SCHEMA1),
            _ => {}
        }
        let found = self.manifests.lock().unwrap().get(digest).cloned();
        found.map_or(Fetched::NotFound, Fetched::Found)
    }
}

struct House {
    judge: Judge,
    ledger: Arc<Memory>,
    shelf: Arc<Shelf>,
    options: Options,
}

impl House {
    fn new() -> Self {
        Self::with(Shelf::default())
    }

    fn with(shelf: Shelf) -> Self {
        Self::on(Memory::new(), shelf)
    }

    /// One proxy of several.
    fn shared() -> Self {
        Self::on(Memory::shared(), Shelf::default())
    }

    fn on(ledger: Memory, shelf: Shelf) -> Self {
        let (ledger, shelf) = (Arc::new(ledger), Arc::new(shelf));
        let witness = Witness::new(Arc::<Memory>::clone(&ledger), Remembering::default());
        let judge = Judge::new(Arc::new(witness), Arc::<Shelf>::clone(&shelf));
        Self { judge, ledger, shelf, options: Options::default() }
    }

    fn rolling(roll_forward: RollForward) -> Self {
        let house = Self::new();
        Self { options: Options { roll_forward, ..house.options }, ..house }
    }

    async fn push(&self, tags: &[&str], seed: &str) -> Verdict<Answer> {
        self.push_with(tags, &[], seed).await
    }

    async fn push_with(&self, tags: &[&str], mutable: &[&str], seed: &str) -> Verdict<Answer> {
        let manifest = manifest(seed);
        let push = Push {
            repository: key(),
            protected: tags.iter().map(|t| tag(t)).collect(),
            mutable: mutable.iter().map(|t| tag(t)).collect(),
            content: Content::new(&manifest.bytes, None).unwrap(),
            attempt: AttemptId::random(),
            errand: AttemptId::random(),
            options: self.options,
        };
        let cargo = Cargo { caller: Caller::default(), manifest, named: None };
        self.judge.push(push, cargo).await.verdict
    }

    async fn entry(&self, name: &str) -> Entry {
        self.ledger.lookup(&key(), &[tag(name)]).await.unwrap().entries.remove(0)
    }

    /// What somebody else does while the registry publishes, or deletes.
    fn meanwhile<F>(&self, what: impl FnOnce(Arc<Memory>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ledger = Arc::clone(&self.ledger);
        *self.shelf.behind.lock().unwrap() = Some(Box::new(move || Box::pin(what(ledger))));
    }

    /// Leaves a claim behind, as a push does that crashed.
    async fn claimed(&self, name: &str, seed: &str) -> AttemptId {
        let attempt = AttemptId::random();
        self.ledger.claim(&key(), &[tag(name)], &digest(seed), attempt).await.unwrap();
        attempt
    }
}

/// Binds a tag in the ledger, as a push by another proxy does.
async fn bind(ledger: &Memory, name: &str, seed: &str) {
    let (tags, digest, attempt) = ([tag(name)], digest(seed), AttemptId::random());
    let claim = ledger.claim(&key(), &tags, &digest, attempt).await;
    assert!(matches!(claim, Ok(Claim::Granted { .. })), "{claim:?}");
    let none = FreedNumber::default();
    assert_eq!(ledger.bind(&key(), &tags, &digest, attempt, none).await, Ok(Bind::Bound));
}

fn key() -> RepositoryKey {
    RepositoryKey {
        upstream: UpstreamName::parse("default").unwrap(),
        repository: RepositoryName::parse("app").unwrap(),
    }
}

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

fn manifest(seed: &str) -> Manifest {
    Manifest {
        bytes: Bytes::copy_from_slice(seed.as_bytes()),
        media_type: HeaderValue::from_static("application/vnd.oci.image.index.v1+json"),
    }
}

fn digest(seed: &str) -> Digest {
    Digest::of(Algorithm::Sha256, seed.as_bytes())
}

fn admitted(verdict: &Verdict<Answer>) -> bool {
    matches!(verdict, Verdict::Admitted { sealed: true, .. })
}

#[track_caller]
fn refused(verdict: &Verdict<Answer>, name: &str, bound: &str) {
    match verdict {
        Verdict::Refused(conflict) => {
            assert_eq!((&conflict.tag, conflict.bound), (&tag(name), digest(bound)));
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn relayed(verdict: &Verdict<Answer>, status: u16) {
    assert!(matches!(verdict, Verdict::Relayed(a) if a.status == status), "{verdict:?}");
}

#[tokio::test(start_paused = true)]
async fn a_push_of_the_bound_image_is_one_put_and_another_is_one_look() {
    let mut house = House::new();
    assert!(admitted(&house.push(&["v1"], "one").await));
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.origin == Origin::Push));
    house.shelf.calls();
    // From a client of whom nothing is known, the image is stored first.
    for (proven, first) in [(true, &[][..]), (false, &["stage "])] {
        house.options.proven = proven;
        assert!(admitted(&house.push(&["v1"], "one").await));
        assert_eq!(house.shelf.calls(), [first, &["publish v1"]].concat());
        refused(&house.push(&["v1"], "two").await, "v1", "one");
        assert_eq!(house.shelf.calls(), [first, &["look v1"]].concat());
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_not_push_is_answered_alike_whatever_the_ledger_holds() {
    for (play, status) in [(Play::Deny, 403), (Play::Refuse, 400)] {
        for state in ["absent", "pending", "bound", "bound to this", "withdrawn", "busy"] {
            let house = House::new();
            let name = if state == "bound to this" { "two" } else { "one" };
            match state {
                "absent" | "busy" => {}
                "pending" => drop(house.claimed("v1", name).await),
                _ => drop(house.push(&["v1"], name).await),
            }
            if state == "withdrawn" {
                house.ledger.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
            }
            let busy = (state == "busy").then(|| {
                house.judge.unjudged().enter(Affected::Tags(key(), vec![tag("v1")])).unwrap()
            });
            house.shelf.calls();
            house.shelf.plan("stage", &[play]);
            relayed(&house.push(&["v1"], "two").await, status);
            assert_eq!(house.shelf.calls(), ["stage "], "{state}");
            drop(busy);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_may_push_no_more_is_told_so_by_the_registry() {
    let mut house = House::new();
    house.options.proven = true;
    assert!(admitted(&house.push(&["v1"], "one").await));
    house.shelf.plan("look", &[Play::Deny]);
    house.shelf.plan("stage", &[Play::Refuse]);
    relayed(&house.push(&["v1"], "two").await, 400);
}

#[tokio::test(start_paused = true)]
async fn what_the_registry_has_is_sealed_before_it_is_compared() {
    let house = House::new();
    house.shelf.set("v1", &manifest("old"));
    refused(&house.push(&["v1"], "new").await, "v1", "old");
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.origin == Origin::Import));
    assert!(admitted(&house.push(&["v1"], "old").await));
}

#[tokio::test(start_paused = true)]
async fn a_registry_of_another_algorithm_is_compared_by_content() {
    let house = House::with(Shelf { algorithm: Some(Algorithm::Sha512), ..Shelf::default() });
    house.shelf.set("v1", &manifest("old"));
    assert!(admitted(&house.push(&["v1"], "old").await), "the same bytes");
    let entry = house.entry("v1").await;
    assert_eq!(entry.digest().unwrap().algorithm(), Algorithm::Sha512);
    assert!(matches!(house.push(&["v1"], "new").await, Verdict::Refused(_)));
}

#[tokio::test(start_paused = true)]
async fn no_refusal_is_told_to_whom_the_registry_does_not_let_in() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.shelf.plan("look", &[Play::Deny]);
    relayed(&house.push(&["v1"], "two").await, 403);
    // A 404 may mean "no access": only who may push is told.
    house.shelf.plan("look", &[Play::NotFound]);
    house.shelf.plan("stage", &[Play::Deny]);
    relayed(&house.push(&["v1"], "two").await, 403);
    house.shelf.plan("look", &[Play::NotFound]);
    refused(&house.push(&["v1"], "two").await, "v1", "one");
    // And who may not push the bound image hears no 201.
    house.shelf.plan("publish", &[Play::Deny]);
    relayed(&house.push(&["v1"], "one").await, 403);
}

#[tokio::test(start_paused = true)]
async fn denials_and_troubles_before_the_publication_leave_no_claim() {
    for (call, play) in [
        ("resolve", Play::Deny),
        ("resolve", Play::Unclear),
        ("stage", Play::Deny),
        ("stage", Play::Refuse),
        ("stage", Play::Unclear),
        ("look", Play::Deny),
        ("look", Play::Unclear),
        ("look-digest", Play::NotFound),
        ("look-digest", Play::Deny),
        ("look-digest", Play::Unclear),
    ] {
        let house = House::new();
        if matches!(call, "resolve" | "look") {
            // There is something to see, so that the play is not a mere 404.
            house.shelf.set("v1", &manifest("one"));
        }
        if call == "look" {
            house.shelf.plan("resolve", &[Play::NotFound]);
        }
        // What was stored and is gone is stored once more.
        let times = if call == "look-digest" { 2 } else { 1 };
        house.shelf.plan(call, &[play; 2][..times]);
        let verdict = house.push(&["v1"], "one").await;
        assert!(matches!(verdict, Verdict::Relayed(_) | Verdict::Undecided(_)), "{verdict:?}");
        assert_eq!(house.entry("v1").await, Entry::Absent, "{call}");
        assert!(!house.shelf.calls().iter().any(|c| c.starts_with("publish")), "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_whose_claim_is_gone_is_acknowledged_only_where_the_registry_shows_its_image() {
    for is_there in [true, false] {
        let house = House::new();
        let shelf = Arc::clone(&house.shelf);
        house.meanwhile(move |ledger| async move {
            let v1 = [tag("v1")];
            let entries = ledger.lookup(&key(), &v1).await.unwrap().entries;
            ledger.supersede(&key(), &Holder::present(&v1, entries)).await.unwrap();
            if !is_there {
                shelf.tags.lock().unwrap().clear();
            }
        });
        let verdict = house.push(&["v1"], "one").await;
        match verdict {
            Verdict::Admitted { sealed: false, .. } if is_there => {}
            Verdict::Undecided(Undecided::ClaimLost(_)) if !is_there => {}
            other => panic!("{is_there}: {other:?}"),
        }
        assert_eq!(house.entry("v1").await, Entry::Absent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_definitive_refusal_frees_the_tag_and_an_unknown_outcome_does_not() {
    let house = House::new();
    house.shelf.plan("publish", &[Play::Refuse, Play::Deny, Play::Unclear]);
    relayed(&house.push(&["v1"], "one").await, 400);
    assert_eq!(house.entry("v1").await, Entry::Absent);
    relayed(&house.push(&["v1"], "one").await, 403);
    assert_eq!(house.entry("v1").await, Entry::Absent);
    let verdict = house.push(&["v1"], "one").await;
    assert!(matches!(verdict, Verdict::Undecided(Undecided::OutcomeUnknown(_))), "{verdict:?}");
    assert!(matches!(house.entry("v1").await, Entry::Pending(_)));
    assert!(admitted(&house.push(&["v1"], "one").await), "the same image completes it");
    house.shelf.plan("publish", &[Play::DoneButUnclear]);
    assert!(admitted(&house.push(&["v2"], "one").await), "a look resolves it");
}

#[tokio::test(start_paused = true)]
async fn two_refused_pushers_of_one_image_leave_nothing_behind() {
    let house = House::new();
    let other = house.claimed("v1", "one").await;
    house.shelf.plan("publish", &[Play::Refuse]);
    relayed(&house.push(&["v1"], "one").await, 400);
    assert!(matches!(house.entry("v1").await, Entry::Pending(p) if p.owners == [other]));
    house.ledger.abort(&key(), &[tag("v1")], &digest("one"), other).await.unwrap();
    assert_eq!(house.entry("v1").await, Entry::Absent);
}

#[tokio::test(start_paused = true)]
async fn a_rivals_claim_is_waited_for_then_brought_to_its_end() {
    // Its owner staged the manifest and crashed.
    let house = House::rolling(RollForward::Staged);
    house.claimed("v1", "one").await;
    house.shelf.store(&manifest("one"));
    let start = tokio::time::Instant::now();
    refused(&house.push(&["v1"], "two").await, "v1", "one");
    assert!(start.elapsed() >= Duration::from_secs(1), "it was given time");
    assert_eq!(house.shelf.tag("v1"), Some(digest("one")));
    assert!(matches!(house.entry("v1").await, Entry::Sealed(_)));

    // It published and crashed before the seal: one look is enough.
    let house = House::new();
    house.claimed("v1", "one").await;
    house.shelf.set("v1", &manifest("one"));
    let start = tokio::time::Instant::now();
    refused(&house.push(&["v1"], "two").await, "v1", "one");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_rivals_claim_that_cannot_end_stays_and_says_so() {
    // What it staged is gone.
    let house = House::new();
    let owner = house.claimed("v1", "one").await;
    let verdict = house.push(&["v1"], "two").await;
    assert!(matches!(verdict, Verdict::Undecided(Undecided::Stuck { .. })), "{verdict:?}");
    assert!(matches!(house.entry("v1").await, Entry::Pending(p) if p.owners == [owner]));
    // Its own image ends it.
    assert!(admitted(&house.push(&["v1"], "one").await));

    // The registry refuses the errand: it leaves the claim to its owner.
    let house = House::rolling(RollForward::Staged);
    let owner = house.claimed("v1", "one").await;
    house.shelf.store(&manifest("one"));
    house.shelf.plan("publish", &[Play::Refuse]);
    let verdict = house.push(&["v1"], "two").await;
    assert!(matches!(verdict, Verdict::Undecided(Undecided::Stuck { .. })), "{verdict:?}");
    assert!(matches!(house.entry("v1").await, Entry::Pending(p) if p.owners == [owner]));

    // Who may not push moves nothing forward.
    let house = House::rolling(RollForward::Staged);
    house.claimed("v1", "one").await;
    house.shelf.store(&manifest("one"));
    house.shelf.plan("stage", &[Play::Deny]);
    relayed(&house.push(&["v1"], "two").await, 403);
    assert_eq!(house.shelf.tag("v1"), None);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_only_stored_is_published_with_nobody_elses_rights() {
    let house = House::new();
    let owner = house.claimed("v1", "one").await;
    house.shelf.store(&manifest("one"));
    let start = tokio::time::Instant::now();
    let verdict = house.push(&["v1"], "two").await;
    let Verdict::Undecided(Undecided::Stuck { digest, .. }) = &verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(*digest, Some(super::tests::digest("one")));
    assert!(start.elapsed() >= Duration::from_secs(1), "it was given time");
    assert_eq!(house.shelf.tag("v1"), None);
    assert!(matches!(house.entry("v1").await, Entry::Pending(p) if p.owners == [owner]));
    // Its owner's PUT lands while the next one waits.
    house.shelf.plan("look", &[Play::NotFound]);
    house.shelf.set("v1", &manifest("one"));
    refused(&house.push(&["v1"], "two").await, "v1", "one");
}

/// The registry has refused the image to its owner, who left the claim meanwhile; the first answer to
/// the next push's claim was lost, so the claim is repeated, and finds itself.
#[tokio::test(start_paused = true)]
async fn a_claim_that_finds_only_itself_is_nobody_elses() {
    let attempt = AttemptId::random();
    let house = House::new();
    house.ledger.claim(&key(), &[tag("v1")], &digest("one"), attempt).await.unwrap();
    let again = house.ledger.claim(&key(), &[tag("v1")], &digest("one"), attempt).await;
    let Ok(Claim::Granted { fresh, .. }) = again else { panic!("{again:?}") };
    assert_eq!(fresh, [tag("v1")]);
}

#[tokio::test(start_paused = true)]
async fn a_rival_that_gave_its_claim_up_is_not_revived() {
    let house = House::rolling(RollForward::Staged);
    let owner = house.claimed("v1", "one").await;
    house.shelf.store(&manifest("one"));
    *house.shelf.gives_up.lock().unwrap() = Some((Arc::clone(&house.ledger), owner));
    // It was refused by the registry while the other staged: the tag is free, and the other's
    // rights are not for its image.
    assert!(admitted(&house.push(&["v1"], "two").await));
    assert_eq!(house.shelf.tag("v1"), Some(digest("two")));
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_tag_is_another_image_ends_and_says_so() {
    let house = House::new();
    let owner = house.claimed("v1", "one").await;
    house.shelf.set("v1", &manifest("behind"));
    for image in ["two", "one", "behind"] {
        let verdict = house.push(&["v1"], image).await;
        let stuck = matches!(verdict, Verdict::Undecided(Undecided::Stuck { .. }));
        assert!(stuck, "{image}: {verdict:?}");
    }
    assert!(matches!(house.entry("v1").await, Entry::Pending(p) if p.owners == [owner]));
    assert_eq!(house.shelf.tag("v1"), Some(digest("behind")), "nothing was written over it");
}

#[tokio::test(start_paused = true)]
async fn an_image_whose_rival_pushes_the_same_waits_and_joins() {
    let house = House::new();
    house.claimed("v1", "one").await;
    let start = tokio::time::Instant::now();
    assert!(admitted(&house.push(&["v1"], "one").await));
    assert!(start.elapsed() >= Duration::from_secs(2), "it waited before it joined");
    assert!(matches!(house.entry("v1").await, Entry::Sealed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_set_is_claimed_whole_published_each_and_refused_ones_given_back() {
    let house = House::new();
    let verdict = house.push_with(&["a", "b"], &["latest"], "one").await;
    let Verdict::Admitted { tags, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(tags, [tag("a"), tag("b"), tag("latest")]);
    assert_eq!(house.entry("latest").await, Entry::Absent, "a mutable tag is not bound");
    house.shelf.calls();

    let verdict = house.push_with(&["c", "b"], &["latest"], "two").await;
    refused(&verdict, "b", "one");
    assert_eq!(house.entry("c").await, Entry::Absent);
    assert_eq!(house.shelf.tag("latest"), Some(digest("one")));

    house.shelf.plan("publish", &[Play::Truth, Play::Refuse]);
    let verdict = house.push(&["d", "e"], "two").await;
    let Verdict::Admitted { tags, .. } = verdict else { panic!("{verdict:?}") };
    assert_eq!(tags, [tag("d")]);
    assert_eq!(house.entry("e").await, Entry::Absent);
    assert!(matches!(house.entry("d").await, Entry::Sealed(_)));
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_tag_comes_back_with_its_own_image_only() {
    let house = House::new();
    house.push(&["v1"], "one").await;
    house.ledger.withdraw(&key(), &[tag("v1")], &digest("one")).await.unwrap();
    refused(&house.push(&["v1"], "two").await, "v1", "one");
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.withdrawn.is_some()));
    assert!(admitted(&house.push(&["v1"], "one").await));
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.withdrawn.is_none()));
}

#[tokio::test(start_paused = true)]
async fn without_a_ledger_nothing_is_sent() {
    let house = House::new();
    house.ledger.close().await;
    let verdict = house.push(&["v1"], "one").await;
    assert!(matches!(verdict, Verdict::Undecided(Undecided::Ledger(_))), "{verdict:?}");
    assert_eq!(house.shelf.calls(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn an_out_of_band_write_between_the_looks_wins_and_frees_the_claim() {
    let house = House::new();
    house.shelf.set("v1", &manifest("behind"));
    house.shelf.plan("resolve", &[Play::NotFound]);
    refused(&house.push(&["v1"], "one").await, "v1", "behind");
    assert!(matches!(house.entry("v1").await, Entry::Sealed(s) if s.origin == Origin::Import));
}

#[tokio::test]
async fn a_wrong_digest_is_told_by_its_own_algorithm() {
    let named = Digest::of(Algorithm::Sha512, b"x");
    assert_eq!(Content::new(b"y", Some(named)), Err(Digest::of(Algorithm::Sha512, b"y")));
    let content = Content::new(b"x", Some(named)).unwrap();
    assert_eq!(*content.digest(), named);
    assert!(content.is(&Digest::of(Algorithm::Sha256, b"x")));
    assert!(!content.is(&Digest::of(Algorithm::Sha256, b"y")));
}

#[tokio::test]
async fn a_conflict_when_sealing_is_only_believed_after_another_look() {
    // The ledger lost the claim and somebody else got the tag: nothing false is acknowledged.
    let house = House::new();
    house.shelf.plan("resolve", &[Play::NotFound]);
    house.shelf.set("v1", &manifest("one"));
    bind(&house.ledger, "v1", "two").await;
    refused(&house.push(&["v1"], "one").await, "v1", "two");
}
