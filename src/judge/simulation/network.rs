//! Requests on their way to the registry. Each arrives once, at any time, or never; with its answer, or
//! after whoever sent it has given up.

use super::deletes::Settle;
use super::specification::{End, Kind, Op};
use super::*;
use crate::judge::step::Event;
use crate::registry::{Trouble, Written};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Message {
    pub what: Request,
    pub awaited: Option<Sender>,
    /// Its own operation of the specification, once nobody waits for it any more.
    late: Option<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Request {
    Put {
        tag: Tag,
        digest: Digest,
    },
    /// Under this rule; `None` for a mutable one.
    Delete {
        digest: Digest,
        rule: Option<Deletes>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sender {
    Pusher(usize),
    Job(u8),
}

/// What the registry has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Done,
    NotFound,
    Denied,
    Refused,
    Unknown,
}

impl Reply {
    pub fn written(self) -> Written<()> {
        match self {
            Self::Done => Written::Created(()),
            Self::Denied => Written::Denied(()),
            Self::Refused | Self::NotFound => Written::Refused(()),
            Self::Unknown => Written::Unknown(Trouble::TimedOut),
        }
    }
}

impl World {
    pub(super) fn send(&mut self, what: Request, sender: Sender) {
        self.net.push(Message { what, awaited: Some(sender), late: None });
    }

    /// What may come of a request on its way.
    pub(super) fn travel(&self, physics: &Physics, m: usize, next: &mut Next) {
        let Message { what, awaited, .. } = &self.net[m];
        let mut add = |how: &str, mut world: Self, reply: Option<Reply>| {
            let told = match (reply, awaited) {
                (Some(reply), Some(sender)) => world.reply(physics, *sender, reply),
                _ => Ok(()),
            };
            let label = physics.label(|| format!("{what:?} of {awaited:?} {how}"));
            let told = told.and_then(|()| world.is_of_its_entry(what, how));
            next.push((label, told.and_then(|()| world.checked(physics))));
        };
        let mut gone = self.clone();
        let message = gone.net.remove(m);
        if awaited.is_none() {
            let mut arrived = gone.clone();
            arrived.arrive(what);
            if arrived.end_late(physics, &message, End::Done) {
                add("arrives late", arrived, None);
            } else {
                next.push((String::new(), Err(format!("{what:?} arrives too late"))));
                return;
            }
            // One that never arrives has done nothing.
            if gone.end_late(physics, &message, End::Nothing) {
                add("is lost", gone, None);
            }
            return;
        }
        if physics.outsider && *awaited == Some(Sender::Pusher(0)) {
            add("is denied", gone, Some(Reply::Denied));
        } else {
            let mut arrived = gone.clone();
            let reply = arrived.arrive(what);
            arrived.note_repair(physics, what, *awaited);
            add("arrives", arrived.clone(), Some(reply));
            if self.budget.refusals > 0 {
                let mut world = gone;
                world.budget.refusals -= 1;
                add("is refused", world, Some(Reply::Refused));
            }
            if self.budget.timeouts > 0 {
                arrived.spend_timeout();
                add("arrives, its answer is lost", arrived, Some(physics.unknown(what)));
            }
        }
        if self.budget.timeouts > 0 {
            let mut delayed = self.clone();
            delayed.spend_timeout();
            if physics.has(Flaw::DeleteSentTwice) && matches!(what, Request::Delete { .. }) {
                delayed.net[m].awaited = None;
                delayed.net.push(message);
                next.push((physics.label(|| format!("{what:?} is sent again")), Ok(delayed)));
            } else {
                delayed.leave(physics, m);
                add("times out", delayed, Some(physics.unknown(what)));
            }
        }
    }

    /// Every PUT that arrives carries the digest of its entry, unless a name was freed.
    fn is_of_its_entry(&self, what: &Request, how: &str) -> Result<(), Violation> {
        match what {
            Request::Put { tag, digest } if self.frees_nothing && how.starts_with("arrives") => {
                match &self.ledger.entries[tag] {
                    Entry::Sealed(sealed) if sealed.digest != *digest => {
                        Err(format!("{tag} was put to another image than the ledger binds it to"))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn spend_timeout(&mut self) {
        self.budget.timeouts -= 1;
        self.disturbed = true;
    }

    /// What a request does to the registry.
    fn arrive(&mut self, what: &Request) -> Reply {
        match what {
            Request::Put { tag, digest } => {
                self.stored.insert(*digest);
                self.registry.insert(tag.clone(), *digest);
                Reply::Done
            }
            Request::Delete { digest, .. } => {
                self.registry.retain(|_, shown| shown != digest);
                if self.stored.remove(digest) { Reply::Done } else { Reply::NotFound }
            }
        }
    }

    /// Nobody waits for this request any more; it may arrive all the same.
    pub(super) fn leave(&mut self, physics: &Physics, m: usize) {
        let (kind, tags) = match &self.net[m].what {
            Request::Put { tag, digest } => {
                (Kind::LatePut(image(digest)), vec![physics.place(tag)])
            }
            Request::Delete { digest, rule } => {
                (Kind::LateDelete(image(digest), *rule), (0..physics.tags.len()).collect())
            }
        };
        let op = self.specification().begin(kind, tags);
        self.net[m].awaited = None;
        self.net[m].late = Some(op);
    }

    /// Whether an order explains that it has arrived, or never will.
    fn end_late(&mut self, physics: &Physics, message: &Message, end: End) -> bool {
        let Some(op) = message.late else { return true };
        let tags = match &message.what {
            Request::Put { tag, .. } => vec![physics.place(tag)],
            Request::Delete { .. } => (0..physics.tags.len()).collect(),
        };
        tags.into_iter().all(|tag| self.specification().end(op, tag, end))
    }

    /// The registry has answered a DELETE of this image: one that was sent before is not carried out
    /// any more. The threat model names registries that do so all the same.
    pub(super) fn outdate_deletes(&mut self, physics: &Physics, gone: &Digest) {
        if physics.has(Flaw::DeleteSentTwice) {
            return;
        }
        let outdated = |message: &Message| match &message.what {
            Request::Delete { digest, .. } => digest == gone && message.awaited.is_none(),
            Request::Put { .. } => false,
        };
        let (late, net) = self.net.drain(..).partition(outdated);
        self.net = net;
        let late: Vec<Message> = late;
        for message in late {
            // It may have been carried out before.
            self.end_late(physics, &message, End::Unknown);
        }
    }

    /// Nobody waits any more for the requests of this one.
    pub(super) fn forget(&mut self, physics: &Physics, sender: Sender) {
        for m in 0..self.net.len() {
            if self.net[m].awaited == Some(sender) {
                self.leave(physics, m);
            }
        }
    }

    fn note_repair(&mut self, physics: &Physics, what: &Request, sender: Option<Sender>) {
        if let (Request::Put { tag, digest }, Some(Sender::Job(id))) = (what, sender)
            && matches!(self.jobs.get(&id), Some(Job::Repair(_)))
        {
            let place = physics.place(tag);
            self.specification().repair(place, image(digest));
        }
    }

    fn reply(&mut self, physics: &Physics, to: Sender, reply: Reply) -> Result<(), Violation> {
        match to {
            Sender::Pusher(n) => self.tell(physics, n, Event::Written(reply.written())),
            Sender::Job(id) => match self.jobs.get(&id).cloned() {
                Some(Job::Delete(deletion)) => {
                    self.delete_answered(physics, id, &deletion, Settle::of(reply))
                }
                Some(Job::Write(writing)) => self.write_answered(physics, id, writing, reply),
                Some(Job::Repair(_)) => {
                    self.jobs.remove(&id);
                    Ok(())
                }
                Some(Job::Release(_)) | None => unreachable!("it has sent nothing"),
            },
        }
    }
}

impl Physics {
    pub(super) fn place(&self, tag: &Tag) -> usize {
        self.tags.iter().position(|own| own == tag).expect("a tag of this world")
    }

    fn unknown(&self, what: &Request) -> Reply {
        match what {
            Request::Put { .. } if self.has(Flaw::TimeoutIsRefusal) => Reply::Refused,
            _ => Reply::Unknown,
        }
    }
}
