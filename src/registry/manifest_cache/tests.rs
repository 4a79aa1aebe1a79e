use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT, CONTENT_TYPE};
use tokio::time::{advance, sleep};

use super::*;
use crate::name::Algorithm;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const HOUR: Duration = Duration::from_secs(3600);

/// A registry, and what everybody sees of it.
struct Backend {
    served: Mutex<Serving>,
    reads: AtomicUsize,
    openness: Mutex<Openness>,
    questions: AtomicUsize,
    /// How long it takes to answer a question.
    slow: Duration,
}

#[async_trait]
impl Everybody for Backend {
    async fn sees(&self, caller: &Caller, _: &RepositoryName, _: &Digest) -> Openness {
        assert!(caller.public);
        self.questions.fetch_add(1, Ordering::Relaxed);
        sleep(self.slow).await;
        self.openness.lock().unwrap().clone()
    }
}

#[async_trait]
impl Registry for Backend {
    async fn serve(&self, _: &Caller, _: &RepositoryName, _: &Digest, reading: Reading) -> Serving {
        self.reads.fetch_add(1, Ordering::Relaxed);
        match (self.served.lock().unwrap().clone(), reading) {
            (Serving::Good(answer), Reading::Head) => {
                Serving::Good(Answer { body: Bytes::new(), ..answer })
            }
            (serving, _) => serving,
        }
    }

    async fn ask(
        &self,
        _: &Caller,
        _: &RepositoryName,
        _: &Reference,
        _: Reading,
    ) -> Result<Answer, Trouble> {
        unreachable!()
    }

    async fn delete(&self, _: &Caller, _: &RepositoryName, _: &Reference) -> Deleted {
        Deleted::Unknown(Trouble::Cut)
    }

    async fn look(&self, _: &Caller, _: &RepositoryName, _: &Reference) -> Sighting {
        unreachable!()
    }

    async fn resolve(&self, _: &Caller, _: &RepositoryName, _: &Tag) -> Sighting {
        unreachable!()
    }

    async fn first_sight(&self, _: &Caller, _: &RepositoryName, _: &Tag, _: Reading) -> Sighting {
        unreachable!()
    }

    async fn put(&self, _: &Caller, _: &RepositoryName, _: Place<'_>, _: &Manifest) -> Written {
        unreachable!()
    }

    async fn tags(&self, _: &Caller, _: &RepositoryName, _: usize) -> Listing {
        unreachable!()
    }

    async fn ping(&self) -> Result<(), Trouble> {
        unreachable!()
    }

    async fn fetch(&self, _: &Caller, _: &RepositoryName, _: &Digest) -> Fetched {
        unreachable!()
    }
}

struct House {
    backend: Arc<Backend>,
    shelf: Shelf,
    told: Arc<Mutex<Vec<&'static str>>>,
    bytes: Arc<AtomicU64>,
}

fn digest(seed: &str) -> Digest {
    Digest::of(Algorithm::Sha256, seed.as_bytes())
}

fn answer(status: u16, body: &str) -> Answer {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(OCI))]);
    let status = StatusCode::from_u16(status).unwrap();
    Answer { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn name(text: &str) -> RepositoryName {
    RepositoryName::parse(text).unwrap()
}

fn caller(accept: &'static str) -> Caller {
    let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
    Caller { headers, public: true, ..Caller::default() }
}

impl House {
    fn new() -> Self {
        Self::with(Bounds::default(), Duration::ZERO)
    }

    fn with(bounds: Bounds, slow: Duration) -> Self {
        let backend = Arc::new(Backend {
            served: Mutex::new(Serving::Good(answer(200, "one"))),
            reads: AtomicUsize::new(0),
            openness: Mutex::new(Openness::Open),
            questions: AtomicUsize::new(0),
            slow,
        });
        let told = Arc::new(Mutex::new(Vec::new()));
        let bytes = Arc::new(AtomicU64::new(0));
        let (heard, size) = (Arc::clone(&told), Arc::clone(&bytes));
        let tell = move |told| match told {
            Told::Pull(result) => heard.lock().unwrap().push(result),
            Told::Question(_) => {}
            Told::Bytes(bytes) => size.store(bytes, Ordering::Relaxed),
        };
        let (registry, everybody) =
            (Arc::<Backend>::clone(&backend), Arc::<Backend>::clone(&backend));
        let shelf = Shelf::new(registry, everybody, bounds, tell).unwrap();
        Self { backend, shelf, told, bytes }
    }

    /// A pull of the manifest `one`, and how it was answered.
    async fn pull(&self) -> Serving {
        self.pull_as(&caller(OCI), "prod/app", "one").await
    }

    async fn pull_as(&self, caller: &Caller, repository: &str, seed: &str) -> Serving {
        let serving =
            self.shelf.serve(caller, &name(repository), &digest(seed), Reading::Get).await;
        // What runs in the background has run.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        serving
    }

    fn at_hand(&self) -> bool {
        let headers = caller(OCI).headers;
        self.shelf.at_hand(&name("prod/app"), &digest("one"), &headers).is_some()
    }

    fn reads(&self) -> usize {
        self.backend.reads.swap(0, Ordering::Relaxed)
    }

    fn questions(&self) -> usize {
        self.backend.questions.swap(0, Ordering::Relaxed)
    }

    fn told(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }

    fn becomes(&self, openness: Openness) {
        *self.backend.openness.lock().unwrap() = openness;
    }

    fn serves(&self, serving: Serving) {
        *self.backend.served.lock().unwrap() = serving;
    }

    /// The registry can't be reached, by anybody.
    fn is_down(&self) {
        self.becomes(Openness::Unclear(Trouble::Unreachable));
        self.serves(Serving::Unclear(Trouble::Unreachable));
    }
}

#[track_caller]
fn kept(serving: &Serving) {
    assert!(matches!(serving, Serving::Kept(answer) if answer.body == "one"), "{serving:?}");
}

#[track_caller]
fn asked(serving: &Serving) {
    assert!(!matches!(serving, Serving::Kept(_)), "{serving:?}");
}

async fn seconds(seconds: u64) {
    advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_registry_is_asked_once_and_the_question_put_once_a_minute() {
    let house = House::new();
    assert!(!house.at_hand());
    asked(&house.pull().await);
    assert_eq!((house.reads(), house.questions()), (1, 1));
    for _ in 0..100 {
        kept(&house.pull().await);
        assert!(house.at_hand());
    }
    assert_eq!((house.reads(), house.questions()), (0, 0));
    assert_eq!(house.told()[..3], ["miss", "hit", "hit"]);
    // Shortly before the minute is over, a pull has it asked in the background.
    seconds(50).await;
    assert!(!house.at_hand(), "that is no matter of nobody's");
    kept(&house.pull().await);
    assert_eq!((house.reads(), house.questions()), (0, 1));
    seconds(50).await;
    kept(&house.pull().await);
    assert_eq!((house.reads(), house.questions()), (0, 1));
    // After a pause it is asked before anything is served.
    seconds(3600).await;
    kept(&house.pull().await);
    assert_eq!((house.reads(), house.questions()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn many_pulls_at_once_put_one_question() {
    let house = Arc::new(House::with(Bounds::default(), Duration::from_secs(1)));
    asked(&house.pull().await);
    seconds(2).await;
    house.questions();
    seconds(100).await;
    let pulls: Vec<_> = (0..50)
        .map(|_| {
            let house = Arc::clone(&house);
            tokio::spawn(async move { house.pull().await })
        })
        .collect();
    house.reads();
    for pull in pulls {
        kept(&pull.await.unwrap());
    }
    assert_eq!((house.reads(), house.questions()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_no_empties_the_shelf_at_once_and_nothing_is_kept_for_a_minute() {
    let house = House::new();
    house.pull().await;
    kept(&house.pull().await);
    let other = digest("two");
    house.serves(Serving::Good(answer(200, "two")));
    house.pull_as(&caller(OCI), "prod/app", "two").await;
    house.becomes(Openness::Closed(401));
    house.serves(Serving::Other(answer(401, "")));
    seconds(50).await;
    // Still within the minute, and the last that is: this pull has it asked.
    kept(&house.pull().await);
    assert!(house.bytes.load(Ordering::Relaxed) == 0 && !house.at_hand());
    house.questions();
    asked(&house.pull().await);
    let headers = caller(OCI).headers;
    assert!(house.shelf.at_hand(&name("prod/app"), &other, &headers).is_none());
    // Whoever has an account is served by the registry, and nothing is kept nor asked.
    house.serves(Serving::Good(answer(200, "one")));
    for _ in 0..3 {
        asked(&house.pull().await);
    }
    assert_eq!(house.questions(), 0);
    seconds(61).await;
    asked(&house.pull().await);
    assert_eq!(house.questions(), 1);
    asked(&house.pull().await);
    // It is public again.
    house.becomes(Openness::Open);
    seconds(61).await;
    asked(&house.pull().await);
    kept(&house.pull().await);
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_a_no_comes_before_anything_is_served() {
    let house = House::new();
    house.pull().await;
    house.becomes(Openness::Closed(404));
    seconds(61).await;
    asked(&house.pull().await);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_borne_for_the_grace_and_not_longer() {
    for (grace, lasts) in [(HOUR, true), (Duration::ZERO, false)] {
        let house = House::with(Bounds { grace, ..Bounds::default() }, Duration::ZERO);
        house.pull().await;
        house.is_down();
        seconds(30).await;
        kept(&house.pull().await);
        seconds(40).await;
        let serving = house.pull().await;
        assert_eq!(matches!(serving, Serving::Kept(_)), lasts, "{serving:?}");
        if lasts {
            assert_eq!(house.told().last(), Some(&"outage"));
        } else {
            assert_eq!(serving, Serving::Unclear(Trouble::Unreachable));
        }
    }
    let house = House::new();
    house.pull().await;
    house.is_down();
    house.questions();
    for _ in 0..71 {
        seconds(50).await;
        kept(&house.pull().await);
    }
    assert!(house.questions() >= 70, "and asked all the time");
    seconds(50).await;
    asked(&house.pull().await);
    // A no in the midst of an outage is a no.
    let house = House::new();
    house.pull().await;
    house.is_down();
    seconds(70).await;
    kept(&house.pull().await);
    house.becomes(Openness::Closed(403));
    seconds(10).await;
    house.pull().await;
    asked(&house.pull().await);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_hangs_holds_up_one_pull_for_a_moment() {
    let house = House::with(Bounds::default(), Duration::from_secs(600));
    house.pull().await;
    // The question is given up after a while, and nothing is served on the word of nobody.
    seconds(6).await;
    asked(&house.pull().await);
    assert_eq!(house.told(), ["miss", "unconfirmed"]);
}

#[tokio::test(start_paused = true)]
async fn other_bytes_are_passed_on_and_not_kept() {
    let house = House::new();
    house.serves(Serving::Good(answer(200, "two")));
    asked(&house.pull().await);
    assert_eq!(house.bytes.load(Ordering::Relaxed), 0);
    house.serves(Serving::Wrong("other bytes"));
    asked(&house.pull().await);
    house.serves(Serving::Good(answer(200, "one")));
    asked(&house.pull().await);
    kept(&house.pull().await);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_is_of_its_repository_and_of_marked_ones_alone() {
    let house = House::new();
    house.pull().await;
    kept(&house.pull().await);
    house.reads();
    asked(&house.pull_as(&caller(OCI), "prod/other", "one").await);
    asked(&house.pull_as(&Caller { public: false, ..caller(OCI) }, "prod/app", "one").await);
    assert_eq!(house.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_the_accept_does_not_name_is_the_registrys_to_answer_while_it_can() {
    let house = House::new();
    house.pull().await;
    house.reads();
    // Some registries hide what is not named.
    let hidden = Serving::NotFound(answer(404, ""));
    house.serves(hidden.clone());
    for accept in ["*/*", "text/plain"] {
        assert_eq!(house.pull_as(&caller(accept), "prod/app", "one").await, hidden);
    }
    assert_eq!(house.reads(), 2);
    kept(&house.pull().await);
    house.is_down();
    kept(&house.pull_as(&caller("*/*"), "prod/app", "one").await);
    asked(&house.pull_as(&caller("text/plain"), "prod/app", "one").await);
    // Others don't.
    house.serves(Serving::Good(answer(200, "one")));
    asked(&house.pull_as(&caller("*/*"), "prod/app", "one").await);
    kept(&house.pull_as(&caller("*/*"), "prod/app", "one").await);
    asked(&house.pull_as(&caller("text/plain"), "prod/app", "one").await);
}

#[tokio::test(start_paused = true)]
async fn a_delete_lets_go_of_it_at_once_and_so_does_a_404() {
    let house = House::new();
    house.pull().await;
    kept(&house.pull().await);
    let reference = Reference::Digest(digest("one"));
    house.shelf.delete(&caller(OCI), &name("prod/app"), &reference).await;
    assert!(!house.at_hand());
    assert_eq!(house.bytes.load(Ordering::Relaxed), 0);
    house.pull().await;
    // Another taglock has deleted it: the question finds it out.
    house.becomes(Openness::Closed(404));
    house.serves(Serving::NotFound(answer(404, "")));
    seconds(50).await;
    house.pull().await;
    assert!(matches!(house.pull().await, Serving::NotFound(_)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_asked_for_before_a_delete_is_not_kept_after_it() {
    let house = House::new();
    let (caller, name, digest) = (caller(OCI), name("prod/app"), digest("one"));
    let request = Request { caller: &caller, name: &name, digest: &digest };
    let inner = &house.shelf.0;
    let begun = Beginning { at: Instant::now(), let_go: inner.let_go.load(Ordering::Acquire) };
    house.shelf.delete(&caller, &name, &Reference::Digest(digest)).await;
    assert!(inner.keep(request, &answer(200, "one"), &begun).is_none());
    assert_eq!(inner.manifests.len(), 0);
    let begun = Beginning { let_go: inner.let_go.load(Ordering::Acquire), ..begun };
    assert!(inner.keep(request, &answer(200, "one"), &begun).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_bound_holds_and_the_least_used_goes() {
    let bytes = 256 << 10;
    let house = House::with(Bounds { bytes, grace: HOUR }, Duration::ZERO);
    let of = |n: usize| format!("{n:0>4000}");
    for n in 0..200 {
        house.serves(Serving::Good(answer(200, &of(n))));
        house.pull_as(&caller(OCI), "prod/app", &of(n)).await;
        // One that everybody wants.
        house.shelf.at_hand(&name("prod/app"), &digest(&of(0)), &caller(OCI).headers);
        assert!(house.bytes.load(Ordering::Relaxed) <= bytes);
    }
    let kept = house.shelf.0.manifests.len();
    assert!((40..=64).contains(&kept), "{kept} of some 4,600 bytes each");
    house.reads();
    house.pull_as(&caller(OCI), "prod/app", &of(0)).await;
    assert_eq!(house.reads(), 0);
    // What is larger than all of it is served and not kept.
    let large = "x".repeat(300 << 10);
    house.serves(Serving::Good(answer(200, &large)));
    for _ in 0..2 {
        asked(&house.pull_as(&caller(OCI), "prod/app", &large).await);
    }
    let none = Bounds { bytes: 0, grace: HOUR };
    let backend = Arc::<Backend>::clone(&house.backend);
    assert!(Shelf::new(Arc::<Backend>::clone(&backend), backend, none, |_| {}).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_head_is_answered_from_memory_and_fills_none() {
    let house = House::new();
    let head = || async {
        let (name, digest) = (name("prod/app"), digest("one"));
        house.shelf.serve(&caller(OCI), &name, &digest, Reading::Head).await
    };
    asked(&head().await);
    asked(&head().await);
    house.pull().await;
    let Serving::Kept(answer) = head().await else { panic!("it is kept") };
    assert_eq!(answer.headers["content-length"], "3");
}
