//! The driver of a pull: what [`pull::Machine`] asks for, done.

use std::time::Duration;

use tokio::time::Instant;

use super::pull::{Action, Basis, Event, Machine, Pull, Pulled, Step, Unsure};
use super::{Judge, OLDER_WRITES};
use crate::ledger::Ledger;
use crate::ledger::RepositoryKey;
use crate::ledger::witness::Fresh;
use crate::name::Reference;
use crate::name::{Digest, Tag};
use crate::registry::{Answer, Caller, Reading, Serving};

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
    pub async fn pull(&self, pull: Pull, caller: &Caller, reading: Reading) -> Pulled<Answer> {
        let (mut machine, mut action) = Machine::new(pull);
        let mut from_memory = false;
        loop {
            let event = match self.act_for_pull(machine.pull(), caller, reading, action).await {
                Ok(event) => event,
                Err(unsure) => return Pulled::Undecided(unsure),
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
                    return pulled;
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
            Action::Seal { digest, origin } => {
                let sealed = self.ledger.seal(key, tags, &digest, origin).await;
                self.rivals.wake(key, tags);
                Event::Sealed(sealed)
            }
            Action::Serve(digest) => {
                Event::Served(self.registry.serve(caller, name, &digest, reading).await)
            }
        })
    }
}
