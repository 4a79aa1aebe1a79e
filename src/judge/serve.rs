//! The driver of a pull: what [`pull::Machine`] asks for, done.

use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::pull::{Action, Basis, Event, Machine, Pull, Pulled, Step, Unsure};
use super::{Judge, OLDER_WRITES, PAUSE};
use crate::ledger::Ledger;
use crate::ledger::RepositoryKey;
use crate::ledger::cached::Fresh;
use crate::name::Reference;
use crate::name::{Digest, Tag};
use crate::registry::client::is_of;
use crate::registry::{Answer, Caller, Reading, Serving};

/// Whether a client may be let in all the same: the tag is hidden by a narrow `Accept`, or gone; or what
/// a registry mirrors can't be asked for the tag, while it has the image.
fn says_nothing(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
}

/// Where nobody looks for drift at all: as good as never.
const NEVER: Duration = Duration::from_secs(3600);

impl Judge {
    /// What a tag is bound to, where a pull may go by that without asking anybody.
    pub fn fresh(&self, repository: &RepositoryKey, tag: &Tag, now: Instant) -> Option<Fresh> {
        self.ledger.fresh(repository, tag, now)
    }

    /// Whether a pull may go by that still.
    pub fn is_still(&self, fresh: &Fresh, now: Instant) -> bool {
        self.ledger.is_still(fresh, now)
    }

    /// Such a pull was answered with that image: what the registry itself has under the tag is looked
    /// at, now and then. Until the time that is returned, if any, that need not be asked for again.
    pub fn served(
        &self,
        pull: &Pull,
        digest: Digest,
        caller: impl FnOnce() -> Caller,
    ) -> Option<Instant> {
        match &self.drift {
            Some(drift) => drift.look(&self.ledger, &self.registry, caller, pull, digest),
            None => Some(Instant::now() + NEVER),
        }
    }

    /// Takes a GET or HEAD of a protected tag to its end.
    ///
    /// A client that the registry has not lately let in is answered by the registry, to the request
    /// that it made, before anything of the ledger shows. Where that answer is the bound image
    /// already, nothing else is asked for.
    pub async fn pull(&self, pull: Pull, caller: &Caller, reading: Reading) -> Pulled<Answer> {
        if caller.let_in {
            return self.pull_let_in(pull, caller, reading).await;
        }
        let (name, reference) = (&pull.repository.repository, Reference::Tag(pull.tag.clone()));
        let own = match self.registry.ask(caller, name, &reference, reading).await {
            Ok(answer) => Some(answer),
            // What everybody may pull may be in memory, whether the registry is there or not.
            Err(_) if caller.public => None,
            Err(trouble) => return Pulled::Undecided(trouble.into()),
        };
        let status = own.as_ref().map(|answer| answer.status);
        let shown = status.is_none_or(|s| matches!(s, StatusCode::OK | StatusCode::NOT_MODIFIED));
        match own {
            Some(answer) if !shown && !says_nothing(answer.status) => Pulled::Relayed(answer),
            own => {
                let (pulled, _) = self.pull_known(pull, caller, reading, own.as_ref()).await;
                match (pulled, own) {
                    (served @ Pulled::Served { .. }, _) => served,
                    // Nothing that the registry has not said of this very request.
                    (_, Some(answer)) if !shown => Pulled::Relayed(answer),
                    (pulled, _) => pulled,
                }
            }
        }
    }

    /// For a client that the registry has lately let in. Should that have changed, it is told what the
    /// registry says to the request that it made.
    async fn pull_let_in(&self, pull: Pull, caller: &Caller, reading: Reading) -> Pulled<Answer> {
        let (name, tag) = (pull.repository.repository.clone(), pull.tag.clone());
        let (pulled, by_digest) = self.pull_known(pull, caller, reading, None).await;
        // A look by tag that found nothing is what the registry says to the request, too.
        match &pulled {
            Pulled::Relayed(answer) if by_digest || answer.status != StatusCode::NOT_FOUND => {}
            _ => return pulled,
        }
        match self.registry.ask(caller, &name, &Reference::Tag(tag), reading).await {
            Ok(answer) if answer.status.is_client_error() || answer.status.is_server_error() => {
                Pulled::Relayed(answer)
            }
            // It is let in, and what it was told of the digest stands.
            Ok(_) => pulled,
            Err(trouble) => Pulled::Undecided(trouble.into()),
        }
    }

    /// By what the ledger knows; `own` is the answer to the client's own request, if it was asked. The
    /// second is whether the registry was asked for a digest that the client did not name.
    async fn pull_known(
        &self,
        pull: Pull,
        caller: &Caller,
        reading: Reading,
        own: Option<&Answer>,
    ) -> (Pulled<Answer>, bool) {
        let (mut machine, mut action) = Machine::new(pull);
        let (mut from_memory, mut by_digest) = (false, false);
        loop {
            by_digest |= matches!(action, Action::Serve(_) | Action::LookAt(_));
            let event = match (action, own) {
                // What everybody may pull is kept in memory on its way by digest.
                (Action::Serve(digest), Some(own))
                    if !caller.public && is_of(own, &digest, reading) =>
                {
                    Event::Served(Serving::Good(own.clone()))
                }
                (action, _) => {
                    match self.act_for_pull(machine.pull(), caller, reading, action).await {
                        Ok(event) => event,
                        Err(unsure) => return (Pulled::Undecided(unsure), by_digest),
                    }
                }
            };
            from_memory |= matches!(event, Event::Served(Serving::Kept(_)));
            match machine.on(event) {
                Step::Do(next) => action = next,
                Step::Done(pulled) => {
                    // What is answered from memory is not to cost the registry a request.
                    if let (Some(drift), Pulled::Served { digest, basis: Basis::Ledger, .. }) =
                        (&self.drift, &pulled)
                        && !from_memory
                    {
                        let pull = machine.pull();
                        let caller = || caller.clone();
                        drift.look(&self.ledger, &self.registry, caller, pull, *digest);
                    }
                    return (pulled, by_digest);
                }
            }
        }
    }

    async fn act_for_pull(
        &self,
        pull: &Pull,
        caller: &Caller,
        reading: Reading,
        action: Action,
    ) -> Result<Event<Answer>, Unsure> {
        let Pull { repository: key, tag, strict: _ } = pull;
        let name = &key.repository;
        let tags = std::slice::from_ref(tag);
        Ok(match action {
            Action::Recall => Event::Known(self.ledger.known(key, tag).await),
            Action::Lookup => Event::Known(self.ledger.asked(key, tag).await),
            Action::Look => {
                let reference = Reference::Tag(tag.clone());
                Event::Seen(self.registry.look(caller, name, &reference).await)
            }
            Action::Resolve => {
                // A write that older rules let through unjudged could move what is seen now.
                if self.unjudged.none(key, tags, OLDER_WRITES).await.is_err() {
                    return Err(Unsure::Busy);
                }
                Event::Seen(self.registry.first_sight(caller, name, tag, reading).await)
            }
            Action::LookAt(digest) => {
                let reference = Reference::Digest(digest);
                Event::Seen(self.registry.look(caller, name, &reference).await)
            }
            Action::Adopt { digest, origin, freed } => {
                let adopted = self.ledger.adopt(key, tags, &digest, origin, freed).await;
                self.rivals.wake(key, tags);
                Event::Adopted(adopted)
            }
            Action::Wait => {
                self.rivals.wait(key, tags, PAUSE).await;
                Event::Waited
            }
            Action::Serve(digest) => {
                Event::Served(self.registry.serve(caller, name, &digest, reading).await)
            }
        })
    }
}
