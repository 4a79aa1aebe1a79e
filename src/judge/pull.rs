//! The protocol of a pull by tag as a step machine: no I/O, no clock.
//!
//! What the ledger holds decides what is served, never what the registry has under the tag: a tag
//! that was moved behind taglock is the image it was. Only a tag that the ledger has never heard of
//! is asked for in the registry, and bound to what is there, before anything is served.

use crate::ledger::cached::Known;
use crate::ledger::{Adopt, Entry, FreedNumber, Origin, RepositoryKey, Unavailable};
use crate::name::{Digest, Tag};
use crate::registry::{Serving, Sighting, Trouble};

/// How often a pull may start over: each time, somebody else has got ahead of it.
const LOOKUPS: u8 = 8;
/// How often a pull waits for the delete of what the registry shows, a tenth of a second at most each.
const WAITS: u8 = 20;

/// GET or HEAD of a manifest by a tag that a rule makes immutable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pull {
    pub repository: RepositoryKey,
    pub tag: Tag,
    /// Whether nothing is served that the ledger has not told (`on_ledger_outage`).
    pub strict: bool,
}

/// What the machine wants done next; each action is answered by one event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// What the tag is bound to, as far as memory or the ledger tells. → [`Event::Known`]
    Recall,
    /// As `Recall`, and the ledger is asked in any case. → [`Event::Known`]
    Lookup,
    /// HEAD by tag. → [`Event::Seen`]
    Look,
    /// The tag, checked against the bytes. → [`Event::Seen`]
    Resolve,
    /// HEAD by digest. → [`Event::Seen`]
    LookAt(Digest),
    /// → [`Event::Adopted`]
    Adopt { digest: Digest, origin: Origin, freed: FreedNumber },
    /// Wait a little, or until something happens to the tag. → [`Event::Waited`]
    Wait,
    /// The client's own request, by digest. → [`Event::Served`]
    Serve(Digest),
}

/// What became of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<A> {
    Known(Known),
    Seen(Sighting<A>),
    Adopted(Result<Adopt, Unavailable>),
    Waited,
    Served(Serving<A>),
}

/// What the machine says after an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<A> {
    Do(Action),
    Done(Pulled<A>),
}

/// The end of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled<A> {
    /// The registry's answer for what the tag is bound to.
    Served { digest: Digest, answer: A, basis: Basis },
    /// The registry let this client in, and no image may be served under the tag.
    Unknown,
    /// The registry's own no.
    Relayed(A),
    /// Nobody knows what the tag is bound to: the registry's answer by tag, with a warning.
    Unverified,
    /// The registry has other bytes under the digest, or says so.
    Wrong { digest: Digest, what: &'static str },
    /// The truth could not be found out.
    Undecided(Unsure),
}

/// What a served digest rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Basis {
    /// The ledger's word, now or a moment ago.
    Ledger,
    /// This pull has bound the tag.
    FirstSight,
    /// What was last seen, while the ledger is down.
    Memory,
}

/// Why a pull has no answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unsure {
    #[error(transparent)]
    Ledger(#[from] Unavailable),
    #[error("{0}")]
    Registry(#[from] Trouble),
    #[error("the tag is being written; pull again")]
    Busy,
    /// What is claimed was never finished, and something else is there: written behind taglock, or
    /// bound before a failover that lost its binding.
    #[error("the tag is claimed for one image, and the registry has another under it")]
    Elsewhere,
}

impl<A> Pulled<A> {
    /// The closed set of outcomes in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Served { basis: Basis::Ledger, .. } => "served",
            Self::Served { basis: Basis::FirstSight, .. } => "first-sight",
            Self::Served { basis: Basis::Memory, .. } => "remembered",
            Self::Unknown => "unknown",
            Self::Relayed(_) => "relayed",
            Self::Unverified => "unverified",
            Self::Wrong { .. } => "wrong",
            Self::Undecided(_) => "undecided",
        }
    }
}

/// One pull on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine<A> {
    pub(super) pull: Pull,
    phase: Phase<A>,
    lookups: u8,
    waits: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase<A> {
    Recalling,
    /// The ledger is asked again, because what memory named is not in the registry: this digest,
    /// with this answer.
    Doubting(Digest, A),
    /// The registry is asked whether it has what is claimed. A look proves something only while
    /// nothing was freed since this number was read.
    Looking(Digest, FreedNumber),
    Resolving(FreedNumber),
    Adopting(Digest, Origin),
    Waiting,
    /// Whether this client may know of a withdrawn tag.
    LettingIn,
    Serving(Digest, Source),
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Sure(Basis),
    /// Memory, younger than its time to live.
    Fresh,
}

impl<A: Clone> Machine<A> {
    /// A machine and its first action.
    pub fn new(pull: Pull) -> (Self, Action) {
        (Self { pull, phase: Phase::Recalling, lookups: 1, waits: 0 }, Action::Recall)
    }

    pub fn pull(&self) -> &Pull {
        &self.pull
    }

    /// Takes the outcome of the last action.
    pub fn on(&mut self, event: Event<A>) -> Step<A> {
        match (std::mem::replace(&mut self.phase, Phase::Ended), event) {
            (Phase::Recalling, Event::Known(known)) => self.known(known),
            (Phase::Doubting(digest, answer), Event::Known(known)) => {
                self.doubted(digest, answer, known)
            }
            (Phase::Looking(digest, freed), Event::Seen(seen)) => self.looked(digest, freed, seen),
            (Phase::Resolving(freed), Event::Seen(seen)) => self.resolved(freed, seen),
            (Phase::Adopting(digest, origin), Event::Adopted(adopted)) => {
                self.adopted(digest, origin, adopted)
            }
            (Phase::Waiting, Event::Waited) => self.act(Phase::Recalling, Action::Lookup),
            (Phase::LettingIn, Event::Seen(seen)) => match seen {
                // The image may be there still, under another tag.
                Sighting::Found(_) | Sighting::NotFound(_) => Step::Done(Pulled::Unknown),
                Sighting::Denied(answer) | Sighting::Failed(answer) => {
                    Step::Done(Pulled::Relayed(answer))
                }
                Sighting::Unclear(trouble) => self.unsure(trouble),
            },
            (Phase::Serving(digest, source), Event::Served(serving)) => {
                self.served(digest, source, serving)
            }
            (_, _) => {
                tracing::error!("a pull was told of something that it did not ask for");
                self.unsure(Trouble::Internal)
            }
        }
    }

    fn known(&mut self, known: Known) -> Step<A> {
        match known {
            Known::Fresh(digest) => self.serve(digest, Source::Fresh),
            Known::Remembered(_, error) if self.pull.strict => self.outage(error),
            Known::Remembered(digest, _) => self.serve(digest, Source::Sure(Basis::Memory)),
            Known::Nothing(error) => self.outage(error),
            Known::Entry(Entry::Absent, freed) => {
                self.act(Phase::Resolving(freed), Action::Resolve)
            }
            // A claim is what its tag will be, if anything; what isn't there yet may still come.
            Known::Entry(Entry::Pending(pending), freed) => {
                self.act(Phase::Looking(pending.digest, freed), Action::Look)
            }
            Known::Entry(Entry::Sealed(sealed), _) => match sealed.withdrawn {
                None => self.serve(sealed.digest, Source::Sure(Basis::Ledger)),
                // Deleted, whatever the registry may still have under its digest.
                Some(_) => self.act(Phase::LettingIn, Action::LookAt(sealed.digest)),
            },
        }
    }

    fn looked(&mut self, claimed: Digest, freed: FreedNumber, seen: Sighting<A>) -> Step<A> {
        match seen {
            Sighting::Found(digest) if digest == claimed => self.adopt(digest, Origin::Push, freed),
            // "No such tag" would be wrong: a store that went back in time may have forgotten that
            // this other image was acknowledged.
            Sighting::Found(_) => Step::Done(Pulled::Undecided(Unsure::Elsewhere)),
            Sighting::NotFound(_) => Step::Done(Pulled::Unknown),
            Sighting::Denied(answer) | Sighting::Failed(answer) => {
                Step::Done(Pulled::Relayed(answer))
            }
            Sighting::Unclear(trouble) => self.unsure(trouble),
        }
    }

    fn resolved(&mut self, freed: FreedNumber, seen: Sighting<A>) -> Step<A> {
        match seen {
            Sighting::Found(digest) => self.adopt(digest, Origin::FirstSight, freed),
            Sighting::NotFound(answer) | Sighting::Denied(answer) | Sighting::Failed(answer) => {
                Step::Done(Pulled::Relayed(answer))
            }
            Sighting::Unclear(trouble) => self.unsure(trouble),
        }
    }

    /// Binds the tag before anything is served: two first pulls of a moving tag get one image.
    fn adopt(&mut self, digest: Digest, origin: Origin, freed: FreedNumber) -> Step<A> {
        self.act(Phase::Adopting(digest, origin), Action::Adopt { digest, origin, freed })
    }

    fn adopted(
        &mut self,
        digest: Digest,
        origin: Origin,
        adopted: Result<Adopt, Unavailable>,
    ) -> Step<A> {
        match adopted {
            Ok(Adopt::Adopted) => {
                let basis = match origin {
                    Origin::FirstSight => Basis::FirstSight,
                    Origin::Push | Origin::Import => Basis::Ledger,
                };
                self.serve(digest, Source::Sure(basis))
            }
            Ok(Adopt::Conflict(_) | Adopt::Freed) if self.lookups < LOOKUPS => {
                self.lookups += 1;
                self.act(Phase::Recalling, Action::Lookup)
            }
            Ok(Adopt::Deleting) if self.waits < WAITS => {
                self.waits += 1;
                self.act(Phase::Waiting, Action::Wait)
            }
            Ok(_) => Step::Done(Pulled::Undecided(Unsure::Busy)),
            Err(error) => self.outage(error),
        }
    }

    /// The ledger can't be asked, and what this proxy has seen is not enough.
    fn outage(&mut self, error: Unavailable) -> Step<A> {
        Step::Done(if self.pull.strict {
            Pulled::Undecided(error.into())
        } else {
            Pulled::Unverified
        })
    }

    fn serve(&mut self, digest: Digest, source: Source) -> Step<A> {
        self.act(Phase::Serving(digest, source), Action::Serve(digest))
    }

    fn served(&mut self, digest: Digest, source: Source, serving: Serving<A>) -> Step<A> {
        match (serving, source) {
            (Serving::Good(answer) | Serving::Kept(answer), Source::Fresh) => {
                Step::Done(Pulled::Served { digest, answer, basis: Basis::Ledger })
            }
            (Serving::Good(answer) | Serving::Kept(answer), Source::Sure(basis)) => {
                Step::Done(Pulled::Served { digest, answer, basis })
            }
            // The name may have been let go of elsewhere.
            (Serving::NotFound(answer), Source::Fresh) => {
                self.lookups += 1;
                self.act(Phase::Doubting(digest, answer), Action::Lookup)
            }
            (Serving::NotFound(answer), Source::Sure(_)) | (Serving::Other(answer), _) => {
                Step::Done(Pulled::Relayed(answer))
            }
            (Serving::Wrong(what), _) => Step::Done(Pulled::Wrong { digest, what }),
            (Serving::Unclear(trouble), _) => self.unsure(trouble),
        }
    }

    fn doubted(&mut self, digest: Digest, answer: A, known: Known) -> Step<A> {
        match &known {
            // A deleted image: the name stays bound.
            Known::Entry(Entry::Sealed(sealed), _)
                if sealed.digest == digest && sealed.withdrawn.is_none() =>
            {
                Step::Done(Pulled::Relayed(answer))
            }
            Known::Fresh(_) | Known::Remembered(..) | Known::Nothing(_) => {
                Step::Done(Pulled::Relayed(answer))
            }
            Known::Entry(..) => self.known(known),
        }
    }

    fn unsure(&mut self, trouble: Trouble) -> Step<A> {
        Step::Done(Pulled::Undecided(trouble.into()))
    }

    fn act(&mut self, phase: Phase<A>, action: Action) -> Step<A> {
        self.phase = phase;
        Step::Do(action)
    }
}
