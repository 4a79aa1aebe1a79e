//! Commands that walk through many tags: several requests at once, each of few tags, so that a command
//! that is broken off has lost nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::entries::each_page;
use super::progress::Progress;
use super::queue::Queue;
use super::{Client, Failure, Telling, Way, actor, aside};
use crate::admin::model::{
    Change, Difference, Imported, ProtectedTags, RepositoryPage, TagsRequest, Unseen, Verified,
};

/// Tags of one request.
const AT_ONCE: usize = 20;
/// Between tries, where something did not answer: a registry that is asked for much may ask to slow
/// down.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(6),
];

/// What could not be looked at.
#[derive(Clone, Debug, Serialize)]
struct Missed {
    repository: String,
    why: String,
}

/// After so many requests that were not answered, more of them are of no use.
const ENOUGH: usize = 8;

/// Tries again where somebody did not answer; everything asked here is safe to repeat.
#[allow(clippy::disallowed_methods, reason = "a thread of its own, which has nothing else to do")]
fn patiently<T>(ask: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
    for pause in PAUSES {
        match ask() {
            Err(Failure::Down(_)) => std::thread::sleep(pause),
            result => return result,
        }
    }
    ask()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is in it is changed by single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Task {
    Repository(String),
    Tags(TagsRequest),
}

/// What an import came to.
#[derive(Default, Serialize)]
struct Import {
    repositories: usize,
    sealed: usize,
    already: usize,
    /// Claimed by pushes, whose end decides.
    pending: Vec<String>,
    absent: usize,
    unseen: Vec<Unseen>,
    missed: Vec<Missed>,
}

/// # Errors
/// See [`Failure`].
pub fn import(
    way: &Way,
    telling: Telling,
    repositories: Vec<String>,
    jobs: u8,
    named: Option<String>,
) -> Result<(), Failure> {
    let Way::Running(client) = way else {
        return Err(Failure::Unknown("tags are imported through a running taglock".into()));
    };
    let (actor, progress, queue) = (actor(named), Progress::new("import"), Queue::new());
    let result = Mutex::new(Import::default());
    let note = |name: String, failure: &Failure| {
        let mut result = lock(&result);
        missed(&mut result.missed, &progress, name, failure);
        if result.missed.len() >= ENOUGH && matches!(failure, Failure::Down(_)) {
            queue.stop();
        }
    };
    let act = |task| match task {
        Task::Repository(name) => {
            match patiently(|| {
                client.get::<ProtectedTags>("/v1/tags", &[("repository", name.as_str())])
            }) {
                Ok(found) => {
                    lock(&result).repositories += 1;
                    progress.found(found.tags.len());
                    let requests = found.tags.chunks(AT_ONCE).map(|tags| {
                        Task::Tags(TagsRequest {
                            repository: name.clone(),
                            tags: tags.to_vec(),
                            actor: Some(actor.clone()),
                        })
                    });
                    queue.add(requests.collect::<Vec<_>>().into_iter().rev());
                }
                Err(failure) => note(name, &failure),
            }
        }
        Task::Tags(request) => {
            match patiently(|| client.post::<Imported>("/v1/import", &request)) {
                Ok(imported) => {
                    let Imported { repository, sealed, already, pending, absent, unseen, .. } =
                        imported;
                    for Unseen { repository, tag, why } in &unseen {
                        progress.say(&format!("{repository}:{tag} could not be bound: {why}"));
                    }
                    if !sealed.is_empty() {
                        progress.plain(|| format!("{repository}: {} bound", sealed.len()));
                    }
                    let mut result = lock(&result);
                    result.sealed += sealed.len();
                    result.already += already.len();
                    result.absent += absent.len();
                    result.unseen.extend(unseen);
                    result.pending.extend(pending.iter().map(|tag| format!("{repository}:{tag}")));
                }
                Err(failure) => note(request.repository.clone(), &failure),
            }
            progress.done(request.tags.len());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| queue.work(act));
        }
        let brought = bring_repositories(client, repositories, &queue, &progress);
        // Whatever came of it: what was brought is done.
        queue.close();
        brought
    })?;
    progress.end();
    let mut result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    result.pending.sort();
    telling.tell(&result, || {
        let Import { repositories, sealed, already, pending, absent, .. } = &result;
        let mut text =
            format!("bound {sealed}, bound before {already}, in repositories {repositories}");
        if !pending.is_empty() {
            text += &format!(", claimed by pushes {}: {}", pending.len(), pending.join(", "));
        }
        if *absent > 0 {
            text += &format!(", gone {absent}");
        }
        text + "\n"
    })?;
    match result.missed.len() + result.unseen.len() {
        0 => Ok(()),
        _ => Err(Failure::Unknown("not all could be bound; import again to go on".into())),
    }
}

fn bring_repositories(
    client: &Client,
    named: Vec<String>,
    queue: &Queue<Task>,
    progress: &Progress,
) -> Result<(), Failure> {
    if !named.is_empty() {
        for name in named {
            queue.bring(Task::Repository(name));
        }
        return Ok(());
    }
    let (mut after, mut all) = (None::<String>, 0);
    let mut pages = HashSet::new();
    loop {
        let query: Vec<_> = after.iter().map(|after| ("after", after.as_str())).collect();
        let page: RepositoryPage = patiently(|| client.get("/v1/catalogue", &query))?;
        for odd in &page.odd {
            progress
                .say(&format!("`{odd}` is no name by the spec, and can't be reached by taglock"));
        }
        all += page.repositories.len();
        for name in page.repositories {
            queue.bring(Task::Repository(name));
        }
        match page.next {
            Some(next) if pages.insert(next.clone()) => after = Some(next),
            Some(_) => {
                let circle = "the pages of the registry's catalogue lead in a circle";
                return Err(Failure::Unknown(circle.into()));
            }
            None => break,
        }
    }
    if all == 0 {
        progress.say("the registry's catalogue is empty; repositories can be named instead");
    }
    Ok(())
}

fn missed(all: &mut Vec<Missed>, progress: &Progress, repository: String, failure: &Failure) {
    progress.say(&format!("{repository}: {failure}"));
    all.push(Missed { repository, why: failure.to_string() });
}

/// What a comparison came to.
#[derive(Default, Serialize)]
struct Verification {
    equal: usize,
    differences: Vec<Difference>,
    unseen: Vec<Unseen>,
    withdrawn: usize,
    pending: usize,
    mutable: usize,
    missed: Vec<Missed>,
}

/// # Errors
/// See [`Failure`].
pub fn verify(
    way: &Way,
    telling: Telling,
    repositories: &[String],
    jobs: u8,
) -> Result<(), Failure> {
    let Way::Running(client) = way else {
        return Err(Failure::Unknown("the registry is compared by a running taglock".into()));
    };
    let (progress, queue) = (Progress::new("verify"), Queue::new());
    let result = Mutex::new(Verification::default());
    let note = |name: String, failure: &Failure| {
        let mut result = lock(&result);
        missed(&mut result.missed, &progress, name, failure);
        if result.missed.len() >= ENOUGH && matches!(failure, Failure::Down(_)) {
            queue.stop();
        }
    };
    let act = |request: TagsRequest| {
        match patiently(|| client.post::<Verified>("/v1/verify", &request)) {
            Ok(verified) => add(&mut lock(&result), verified),
            Err(failure) => note(request.repository.clone(), &failure),
        }
        progress.done(request.tags.len());
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| queue.work(act));
        }
        let bring = |repository: Option<&str>| {
            each_page(way, repository, |entries| {
                let mut chunks: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for entry in entries {
                    chunks.entry(entry.repository).or_default().push(entry.tag);
                }
                for (repository, tags) in chunks {
                    progress.found(tags.len());
                    for tags in tags.chunks(AT_ONCE) {
                        let (repository, tags) = (repository.clone(), tags.to_vec());
                        queue.bring(TagsRequest { repository, tags, actor: None });
                    }
                }
                Ok(())
            })
        };
        let brought = match repositories {
            [] => bring(None),
            named => named.iter().try_for_each(|name| bring(Some(name))),
        };
        queue.close();
        brought
    })?;
    progress.end();
    let mut result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
    let by_name = |d: &Difference| (d.repository.clone(), d.tag.clone());
    result.differences.sort_by_key(by_name);
    telling.tell(&result, || result.differences.iter().map(line).collect())?;
    let Verification { equal, differences, unseen, withdrawn, pending, mutable, missed } = &result;
    for Unseen { repository, tag, why } in unseen {
        aside(&format!("{repository}:{tag} could not be compared: {why}"));
    }
    aside(&format!(
        "the same {equal}, different {}, not compared {}, withdrawn {withdrawn}, claimed {pending}, \
         mutable by now {mutable}",
        differences.len(),
        unseen.len(),
    ));
    match (differences.is_empty(), unseen.is_empty() && missed.is_empty()) {
        (false, _) => Err(Failure::Told),
        (true, true) => Ok(()),
        (true, false) => Err(Failure::Unknown("not all could be compared".into())),
    }
}

fn add(result: &mut Verification, verified: Verified) {
    let Verified { equal, differences, unseen, withdrawn, pending, absent: _, mutable } = verified;
    result.equal += equal;
    result.differences.extend(differences);
    result.unseen.extend(unseen);
    result.withdrawn += withdrawn;
    result.pending += pending;
    result.mutable += mutable;
}

fn line(difference: &Difference) -> String {
    let Difference { repository, tag, change, ledger, registry } = difference;
    let change = match change {
        Change::Moved => "moved",
        Change::Gone => "gone",
    };
    let registry = registry.as_deref().unwrap_or("nothing");
    format!("{repository}:{tag} {change}: the ledger has {ledger}, the registry {registry}\n")
}
