//! The judge: takes a manifest write in protected scope through the claim protocol.
//!
//! [`push::Machine`] is the protocol; this is its driver, which does what the machine asks with a
//! ledger and a registry. It knows no pingora and no store.

mod adopting;
mod anchored;
pub mod artifacts;
pub mod delete;
mod deleting;
pub mod drift;
mod eyes;
pub mod inspection;
pub mod mutable;
mod mutable_delete;
mod parts;
pub mod permit;
#[cfg(debug_assertions)]
pub mod points;
mod publish;
pub mod pull;
pub mod push;
mod rival;
mod rivals;
mod serve;
mod staging;
pub mod step;
mod survey;
pub mod unjudged;

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashSet;
use http::header::AUTHORIZATION;

pub use permit::Permit;
pub use step::{Conflict, Content, Options, Push, RollForward, Undecided, Verdict};

use crate::ledger::cached::Witness;
use crate::ledger::{AttemptId, Holder, Ledger};
use crate::name::{Algorithm, Digest, Reference, RepositoryName, Tag};
use crate::registry::{
    Answer, Caller, Fetched, Manifest, Place, Reading, Registry, Sighting, Trouble, Written,
};
use drift::Drift;
use mutable::Moved;
use permit::Basis;
use push::Machine;
use rivals::Rivals;
use step::{Action, Blind, Event, Eyes, Step};
use unjudged::Unjudged;

/// Between two looks at a claim that somebody else holds, unless they end sooner.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a write is waited for that older rules let through unjudged.
const OLDER_WRITES: Duration = Duration::from_secs(2);
/// How long a repair of a tag is waited for by what frees or moves it.
pub const REPAIRS: Duration = Duration::from_secs(5);

/// Judges writes and pulls for one registry. Clones share all they know.
#[derive(Clone)]
pub struct Judge {
    ledger: Arc<Witness>,
    registry: Arc<dyn Registry>,
    rivals: Arc<Rivals>,
    unjudged: Arc<Unjudged>,
    /// The DELETEs that this process has under way.
    deletes: Arc<DashSet<AttemptId>>,
    /// How many may wait for one tag, and who is told of the others.
    waiting: Option<(usize, Arc<dyn Fn() + Send + Sync>)>,
    /// For tests that end the process between two steps.
    #[cfg(debug_assertions)]
    observer: Option<points::Observer>,
    drift: Option<Arc<Drift>>,
    /// The registry by taglock's own account, for clients that may push and not pull.
    account: Option<Arc<dyn Registry>>,
}

/// A verdict, and what else became of the ledger on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub verdict: Verdict<Answer>,
    /// Entries of mutable tags that the write took the place of.
    pub superseded: Vec<Holder>,
}

impl From<Verdict<Answer>> for Judged {
    fn from(verdict: Verdict<Answer>) -> Self {
        Self { verdict, superseded: Vec::new() }
    }
}

/// What a write carries to the registry.
#[derive(Clone, Debug)]
pub struct Cargo {
    pub caller: Caller,
    pub manifest: Manifest,
    /// `?digest=` of a push by tag, which the registry gets as the client sent it.
    pub named: Option<Digest>,
}

/// What a push picks up on its way.
#[derive(Default)]
struct Luggage {
    fetched: Option<Manifest>,
    superseded: Vec<Holder>,
    /// The last tag that was looked at and found.
    looked: Option<(Tag, Digest)>,
}

impl Judge {
    pub fn new(ledger: Arc<Witness>, registry: Arc<dyn Registry>) -> Self {
        Self {
            ledger,
            registry,
            rivals: Arc::default(),
            unjudged: Arc::default(),
            deletes: Arc::default(),
            waiting: None,
            drift: None,
            account: None,
            #[cfg(debug_assertions)]
            observer: None,
        }
    }

    /// A judge that tells an observer of each action it has done.
    #[cfg(debug_assertions)]
    pub fn observed(mut self, observer: Option<points::Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// With at most so many pushes of one tag that wait for another one to end; `told` is called
    /// for each that may not.
    #[must_use]
    pub fn crowded(self, most: usize, told: impl Fn() + Send + Sync + 'static) -> Self {
        Self { waiting: Some((most, Arc::new(told))), ..self }
    }

    /// The tag for which too many are waiting already.
    fn too_many_wait(&self, push: &Push) -> Option<Tag> {
        let ((most, told), tag) = (self.waiting.as_ref()?, push.protected.first()?);
        (self.rivals.waiting_for(&push.repository, tag) >= *most).then(|| {
            told();
            tag.clone()
        })
    }

    /// With a registry that has so long to answer. First of all: who is given this judge's writes under way
    /// keeps them.
    #[must_use]
    pub fn exchanging(self, timeout: Duration) -> Self {
        Self { unjudged: Arc::new(Unjudged::new(timeout)), ..self }
    }

    /// With an eye on the registry's own tags.
    #[must_use]
    pub fn watching(self, drift: Arc<Drift>) -> Self {
        drift.beside(&self.unjudged);
        Self { drift: Some(drift), ..self }
    }

    /// With an account that looks for clients that may push and not pull.
    #[must_use]
    pub fn looking_as(self, account: Arc<dyn Registry>) -> Self {
        Self { account: Some(account), ..self }
    }

    /// The same judge, who sees the registry and writes to it in another way. All it knows of pushes
    /// under way is shared.
    #[must_use]
    pub fn through(&self, registry: Arc<dyn Registry>) -> Self {
        Self {
            ledger: Arc::clone(&self.ledger),
            registry,
            rivals: Arc::clone(&self.rivals),
            unjudged: Arc::clone(&self.unjudged),
            deletes: Arc::clone(&self.deletes),
            waiting: self.waiting.clone(),
            drift: self.drift.clone(),
            account: None,
            #[cfg(debug_assertions)]
            observer: self.observer.clone(),
        }
    }

    /// Whether other proxies may use the ledger.
    pub fn is_shared(&self) -> bool {
        self.ledger.is_shared()
    }

    pub fn drift(&self) -> Option<&Arc<Drift>> {
        self.drift.as_ref()
    }

    /// Where writes are entered that may turn out to need no judging.
    pub fn unjudged(&self) -> &Arc<Unjudged> {
        &self.unjudged
    }

    /// Takes a write with protected tags to its verdict.
    ///
    /// To be run in a task of its own: a client that leaves changes nothing then. Each step is
    /// bounded in time by the ledger's and the registry's own limits, and their number by the
    /// machine's.
    pub async fn push(&self, push: Push, cargo: Cargo) -> Judged {
        let blind = match (cargo.caller.headers.contains_key(AUTHORIZATION), &self.account) {
            (false, _) => Blind::Relay,
            (true, None) => Blind::Tell,
            (true, Some(_)) => Blind::Account,
        };
        let options = Options { blind, ..push.options };
        let (mut machine, mut action) = Machine::new(Push { options, ..push });
        let mut luggage = Luggage::default();
        let mut older = true;
        loop {
            // What older rules let through unjudged must have ended before anything is bound. Not
            // before the registry has let this client push: who waits is told that there is something.
            let asked = !machine.is_unproven() && !machine.is_unasked();
            let looks_up = matches!(action, Action::Lookup) && asked;
            if looks_up && std::mem::take(&mut older) {
                let Push { repository, protected, .. } = machine.push();
                let none = self.unjudged.none(repository, protected, OLDER_WRITES).await;
                if let Err(tag) = none {
                    return Verdict::Undecided(Undecided::Busy(tag)).into();
                }
            }
            if matches!(action, Action::Wait)
                && let Some(tag) = self.too_many_wait(machine.push())
            {
                // Left as by a crash: who waits holds no claim, and the tag's own push goes on.
                return Verdict::Undecided(Undecided::Busy(tag)).into();
            }
            #[cfg(debug_assertions)]
            let point = points::Point::after(&action);
            let event = self.act(&machine, &cargo, &mut luggage, action).await;
            #[cfg(debug_assertions)]
            if let Some(observer) = &self.observer {
                observer(point);
            }
            match machine.on(event) {
                Step::Do(next) => action = next,
                Step::Done(verdict) => {
                    self.notice(machine.push(), &luggage, &verdict);
                    return Judged { verdict, superseded: luggage.superseded };
                }
            }
        }
    }

    /// What a push has seen of the registry's own tags in passing.
    fn notice(&self, push: &Push, luggage: &Luggage, verdict: &Verdict<Answer>) {
        let Some(drift) = &self.drift else { return };
        match verdict {
            Verdict::Refused(conflict) => {
                if let Some((tag, seen)) = &luggage.looked
                    && *tag == conflict.tag
                {
                    drift.saw(&push.repository, tag, &conflict.bound, Some(*seen));
                }
            }
            // The registry has just taken what the ledger binds them to.
            Verdict::Admitted { tags, answer: Some(_), .. } => {
                let digest = push.content.digest();
                for tag in tags.iter().filter(|tag| drift.differs(&push.repository, tag, digest)) {
                    drift.saw(&push.repository, tag, digest, Some(*digest));
                }
            }
            Verdict::Admitted { .. }
            | Verdict::Unbound(_)
            | Verdict::Relayed(_)
            | Verdict::Unseeing(_)
            | Verdict::Undecided(_) => {}
        }
    }

    /// Does one action and reports what became of it.
    async fn act(
        &self,
        machine: &Machine<Answer>,
        cargo: &Cargo,
        luggage: &mut Luggage,
        action: Action,
    ) -> Event<Answer> {
        let push = machine.push();
        let key = &push.repository;
        let name = &key.repository;
        let caller = &cargo.caller;
        let eyes = match (machine.eyes(), &self.account) {
            (Eyes::Account, Some(account)) => account,
            _ => &self.registry,
        };
        match action {
            Action::Lookup => Event::Entries(self.ledger.lookup(key, &push.protected).await),
            Action::Wait => {
                self.rivals.wait(key, &push.protected, PAUSE).await;
                Event::Waited
            }
            Action::Look(tag) => {
                let seen = eyes.look(caller, name, &Reference::Tag(tag.clone())).await;
                if let Sighting::Found(digest) = &seen {
                    luggage.looked = Some((tag, *digest));
                }
                Event::Seen(seen)
            }
            Action::Resolve(tag) => Event::Seen(eyes.resolve(caller, name, &tag).await),
            Action::LookStaged => {
                let reference = Reference::Digest(*push.content.digest());
                Event::Seen(eyes.look(caller, name, &reference).await)
            }
            Action::Stage => {
                let place = Place::Digest(push.content.digest());
                Event::Written(self.registry.put(caller, name, place, &cargo.manifest).await)
            }
            Action::LookAtParts => {
                let deleting = self.ledger.marked(key, push.content.parts()).await;
                Event::Parts(deleting.map(|deleting| deleting.first().copied()))
            }
            Action::Claim { tags, digest, attempt } => {
                Event::Claimed(self.ledger.claim(key, &tags, &digest, attempt).await)
            }
            Action::Bind { tags, digest, attempt, freed } => {
                let bound = self.ledger.bind(key, &tags, &digest, attempt, freed).await;
                self.rivals.wake(key, &tags);
                Event::Bound(bound)
            }
            Action::Adopt { tag, digest, origin, freed } => {
                let tags = std::slice::from_ref(&tag);
                let adopted = self.ledger.adopt(key, tags, &digest, origin, freed).await;
                self.rivals.wake(key, tags);
                Event::Adopted(adopted)
            }
            Action::Abort { tags, digest, attempt } => {
                let aborted = self.ledger.abort(key, &tags, &digest, attempt).await;
                self.rivals.wake(key, &tags);
                Event::Aborted(aborted)
            }
            Action::Publish(permit) if permit.basis() == Basis::Mutable => {
                let named = push.content.digest();
                Event::Written(match self.publish_mutable(key, cargo, permit, named).await {
                    Moved::Written(written, held) => {
                        luggage.superseded.extend(held);
                        written
                    }
                    Moved::Outrun(_) | Moved::Unknown(..) | Moved::Repaired => Written::Unknown(
                        Trouble::Garbage("a tag that another proxy may have bound"),
                    ),
                })
            }
            Action::Publish(permit) => {
                let named = push.content.digest();
                Event::Written(self.publish(cargo, name, permit, named).await)
            }
            Action::Fetch(digest) => {
                Event::Fetched(match eyes.fetch(caller, name, &digest).await {
                    Fetched::Found(manifest) => {
                        luggage.fetched = Some(manifest);
                        Ok(true)
                    }
                    Fetched::NotFound => Ok(false),
                    Fetched::Unclear(trouble) => Err(trouble),
                })
            }
            Action::PublishFetched(permit) => Event::Written(match luggage.fetched.take() {
                Some(manifest) => {
                    let place = Place::Tag { tag: permit.tag(), digest: None };
                    self.registry.put(caller, name, place, &manifest).await
                }
                // The machine asks for this only after a fetch that found it.
                None => Written::Unknown(Trouble::Garbage("no manifest was fetched")),
            }),
        }
    }

    /// The only way a tag is ever written: with a permit, once. A registry takes a manifest for its
    /// sha256 unless it is told another digest (`?digest=`), and the tag must be the one that is bound.
    async fn publish(
        &self,
        cargo: &Cargo,
        name: &RepositoryName,
        permit: Permit,
        digest: &Digest,
    ) -> Written {
        let other = (digest.algorithm() != Algorithm::Sha256).then_some(digest);
        let place = Place::Tag { tag: permit.tag(), digest: cargo.named.as_ref().or(other) };
        self.registry.put(&cargo.caller, name, place, &cargo.manifest).await
    }

    /// Whether the registry lets this caller see the reference: before taglock's own no is told.
    ///
    /// # Errors
    /// The registry's no, in words where it has some, or why there is none.
    pub async fn let_in(
        &self,
        caller: &Caller,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<(), Result<Answer, Trouble>> {
        match self.registry.look(caller, name, reference).await {
            Sighting::Found(_) => Ok(()),
            Sighting::NotFound(answer) | Sighting::Denied(answer) | Sighting::Failed(answer) => {
                // An answer to HEAD has no body, and so no words.
                match self.registry.ask(caller, name, reference, Reading::Get).await {
                    Ok(worded) if worded.status == answer.status => Err(Ok(worded)),
                    _ => Err(Ok(answer)),
                }
            }
            Sighting::Unclear(trouble) => Err(Err(trouble)),
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
