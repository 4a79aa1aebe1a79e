//! The protocol against everything that can happen: the production step machines of pushes and pulls, and
//! models of all else that changes a name, in a world of a ledger, its replica, a registry, requests on
//! their way, and the memory of proxies.
//!
//! Small worlds are searched exhaustively, large ones by seeded random schedules. Each state is checked
//! against a specification of one tag in real-time order (`specification`). A world may also have a
//! *flaw*: it then behaves as a known unsafe protocol would. Each of them must be found violated, so
//! that the search keeps its teeth.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::push::Machine;
use super::step::{Action, Blind, Content, Options, Push, RollForward};
use crate::ledger::{AttemptId, Entry, RepositoryKey};
use crate::name::{Algorithm, Digest, RepositoryName, Tag, UpstreamName};
use crate::rules::Deletes;

mod deletes;
mod flaws;
mod losses;
mod mutable;
mod network;
mod open;
mod operators;
mod probes;
mod pulls;
mod pushes;
mod repairs;
mod schedules;
mod search;
mod searches;
mod specification;
mod store;

use losses::Proxy;
use network::Message;
use pulls::Puller;
use pushes::{Doing, Pusher};
use specification::{Allows, End, Image, Kind, Specification};
use store::Store;

/// How a known unsafe protocol differs from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// A claim of another digest is taken over: a lease that has run out.
    TakeOver,
    /// An abort frees the tag although others hold the claim.
    AbortIgnoresOthers,
    /// A PUT that timed out is taken for refused.
    TimeoutIsRefusal,
    /// The second look sees nothing.
    NoSecondLook,
    /// The owners of a joined claim are forgotten: nobody may abort it.
    SharedOwner,
    /// A pull serves what the registry has under the tag.
    PullTakesTheRegistrysTag,
    /// A pull binds a tag to what is there although another image is claimed.
    PullIgnoresClaims,
    /// A pull serves what it saw without binding it.
    PullBindsNothing,
    /// A push binds a tag that is not claimed any more.
    BindNeedsNoClaim,
    /// A push of a tag that was bound before ends without asking the ledger again.
    BoundPushAsksNoMore,
    /// A look binds although something was freed since.
    AdoptIgnoresFreed,
    /// A DELETE is sent without a mark.
    NoDeleteMark,
    /// A mark keeps no claim out.
    MarkIgnoredByClaim,
    /// A mark keeps no adoption out.
    MarkIgnoredByAdopt,
    /// A mark keeps no push out whose tag was bound before.
    MarkIgnoredByBind,
    /// A DELETE that found a broken connection is sent again.
    DeleteSentTwice,
    /// A delete under a mutable rule leaves bindings.
    MutableDeleteKeepsBinding,
    /// A delete under a mutable rule frees what it saw when it began, and does not look once more.
    MutableDeleteLooksOnce,
    /// A DELETE whose outcome is unknown leaves no mark.
    UnknownDeleteIsUnmarked,
    /// A delete whose mark is gone by the end is acknowledged.
    LostMarkIsAcknowledged,
    /// Such a delete looks only at the tags that had the digest when the mark was made.
    LostMarkLooksAtItsTags,
    /// A push whose claim is gone is acknowledged whatever the registry shows.
    GoneIsAcknowledged,
    /// A claim that is only stored is published by whoever meets it.
    RollForwardWithOthersRights,
    /// A claim that is repeated does not know that it is the only owner.
    RepeatedClaimNotFresh,
    /// A push is acknowledged although its binding could not be written.
    AckUnbound,
    /// A release frees whatever the name is bound to by then.
    ReleaseAnyLife,
    /// A mutable write drops whatever the ledger holds by then.
    SupersedeWhatever,
    /// A judged write does not wait for the unjudged ones of its process.
    UnjudgedNotWaitedFor,
    /// A newer process does not wait for what the older one let through.
    NotHandedOver,
    /// A mutable write is acknowledged without another look at the ledger.
    NoLookAfterWrite,
    /// What was seen before a mutable write of another proxy binds after it.
    WriteInvalidatesNothing,
    /// A repair is waited for by nobody.
    RepairNotWaitedFor,
    /// A repair begins while a release or a mutable write of its process is under way.
    RepairIgnoresWrites,
    /// A repair begins while its image is deleted.
    RepairIgnoresMarks,
    /// What is remembered is served although the proxy knows that something was freed since.
    MemoryOfFreedNames,
    /// After a loss whoever offers first is believed.
    RestoreInAnyOrder,
    /// A push binds, or learns that its name is gone, while a ledger is restored.
    BindWhileRestored,
    /// A name that is pushed again after its image was deleted keeps its sequence number.
    RebindKeepsSequence,
    /// The freed number of a ledger that lost everything is the one from before.
    FreedNumberOutlivesLoss,
    /// After a loss names are bound before all proxies have offered.
    RestoreWaitsForNobody,
    /// A binding that no replica has yet is gone by.
    UnconfirmedReads,
    /// What frees a name waits for no replica.
    ReleaseWaitsForNoReplica,
}

/// What of the world doesn't change.
#[derive(Clone, Debug)]
struct Physics {
    flaw: Flaw,
    /// Calls that change the ledger are answered only once the replica has it.
    wait: bool,
    tags: Vec<Tag>,
    /// The pushers may push and not look: taglock's own account does it for them.
    blind: bool,
    /// Whether events are given names: only for a trace, they cost more than all the rest.
    named: bool,
    /// All pushers but the first set a tag for what is stored, as by a registry's own API.
    stored: bool,
    /// `upstream.roll_forward`.
    roll_forward: RollForward,
    /// The registry refuses the first pusher's PUTs by tag, and nobody else's.
    outsider: bool,
    /// How many proxies there are. Pushers and all else take turns among them.
    proxies: usize,
    /// Proxy 1 is the newer process of proxy 0, which judges nothing any more.
    upgrade: bool,
    /// A mutable write looks at the ledger again, because several proxies share it.
    shared: bool,
    /// The rule of the proxies at the start.
    mutable: bool,
    /// `delete` of the immutable rule.
    deletes: Deletes,
    /// An operator deletes the registry's own tag before the name is released.
    clears: bool,
    /// What the registry has under each tag at the start.
    present: Option<&'static str>,
    /// The ledger binds the tags to that, and every proxy remembers it.
    bound: bool,
    /// Proxies remember bindings.
    remembers: bool,
    /// All pushes are of this proxy.
    pushes_at: Option<usize>,
    /// A ledger may lose claims.
    loses_claims: bool,
    /// It may lose delete marks.
    loses_marks: bool,
    /// In every state, a push and a pull that take no time are tried, too.
    probes: bool,
}

impl Physics {
    fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            wait: false,
            tags: vec![tag("v1")],
            blind: false,
            named: false,
            stored: false,
            roll_forward: RollForward::Published,
            outsider: false,
            proxies: 1,
            upgrade: false,
            shared: false,
            mutable: false,
            deletes: Deletes::Refuse,
            clears: false,
            present: None,
            bound: false,
            remembers: false,
            pushes_at: None,
            loses_claims: false,
            loses_marks: false,
            probes: false,
        }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn label(&self, text: impl FnOnce() -> String) -> String {
        if self.named { text() } else { String::new() }
    }
}

/// How much may go wrong yet, and how much may begin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Budget {
    crashes: u8,
    /// Requests that time out, arriving late or never, and answers that are lost.
    timeouts: u8,
    refusals: u8,
    /// Ledger calls that fail, having taken effect or not, and looks that do.
    troubles: u8,
    /// Ledger calls that take effect and are repeated, because their answer was lost.
    repeats: u8,
    failovers: u8,
    /// The ledger forgets everything.
    losses: u8,
    /// Pulls, each beginning at any time; so for the rest.
    pulls: u8,
    /// Tags put elsewhere in the registry itself.
    moves: u8,
    /// Deletes of the first image.
    deletes: u8,
    releases: u8,
    /// Mutable pushes of the image "write".
    writes: u8,
    repairs: u8,
    /// The rule of one proxy becomes immutable, or mutable.
    reloads: u8,
    /// A proxy reads the counter of freed names.
    polls: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ledger: Store,
    replica: Store,
    registry: BTreeMap<Tag, Digest>,
    /// The images the registry has.
    stored: BTreeSet<Digest>,
    /// Shared with the worlds around: most steps change one of them.
    pushers: Vec<Rc<Pusher>>,
    /// Requests on their way; they may arrive at any later time.
    net: Vec<Message>,
    pullers: Vec<Puller>,
    /// Deletes, releases, mutable writes and repairs under way, by a number of each.
    jobs: BTreeMap<u8, Job>,
    proxies: Vec<Proxy>,
    specification: Rc<Specification>,
    /// Nothing in this world frees a name.
    frees_nothing: bool,
    /// Nor moves the registry's own tag.
    still: bool,
    /// Pushes that were acknowledged in such a world.
    acknowledged: BTreeSet<(Tag, Digest)>,
    /// The last mutable write was acknowledged.
    written: bool,
    budget: Budget,
    /// Something happened after which a claim may rightly be left.
    disturbed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Job {
    Delete(deletes::Deletion),
    Release(operators::Releasing),
    Write(mutable::Writing),
    Repair(repairs::Repairing),
}

/// A promise that was broken.
type Violation = String;
type Next = Vec<(String, Result<World, Violation>)>;

fn tag(name: &str) -> Tag {
    Tag::parse(name).unwrap()
}

/// All images there are. Some are of mutable writes, and of those who write behind taglock.
const IMAGES: [&str; 6] = ["one", "two", "three", "write", "stray", OTHER];

/// One that nobody pushes.
const OTHER: &str = "other";

fn digest(image: &str) -> Digest {
    Digest::of(Algorithm::Sha256, image.as_bytes())
}

thread_local! {
    static DIGESTS: [Digest; IMAGES.len()] = IMAGES.map(digest);
}

/// The image of a digest, by its number.
fn image(digest: &Digest) -> Image {
    let place = DIGESTS.with(|all| all.iter().position(|known| known == digest));
    u8::try_from(place.expect("an image of this world")).expect("few")
}

fn repository() -> RepositoryKey {
    RepositoryKey {
        upstream: UpstreamName::parse("default").unwrap(),
        repository: RepositoryName::parse("app").unwrap(),
    }
}

fn pusher(n: usize, image: &str, physics: &Physics) -> Rc<Pusher> {
    let attempt = |kind: u8| AttemptId::from_bytes([u8::try_from(n).unwrap() * 2 + kind; 16]);
    let roll_forward = match physics.flaw {
        Flaw::RollForwardWithOthersRights => RollForward::Staged,
        _ => physics.roll_forward,
    };
    let blind = if physics.blind { Blind::Account } else { Blind::Relay };
    let options = Options { patience: 1, roll_forward, ..Options::default() };
    let (machine, action) = Machine::new(Push {
        repository: repository(),
        protected: physics.tags.clone(),
        mutable: Vec::new(),
        content: Content::new(image.as_bytes(), None).unwrap(),
        attempt: attempt(1),
        errand: attempt(2),
        options: match physics.stored && n > 0 {
            true => Options { stage: false, shown: true, ..options },
            false => Options { blind, ..options },
        },
    });
    Rc::new(Pusher::new(machine, action, physics.proxy_of(n)))
}

impl Physics {
    /// The proxy at which the n-th of its kind begins.
    fn proxy_of(&self, n: usize) -> usize {
        self.pushes_at.unwrap_or(if self.upgrade { 1 } else { n % self.proxies })
    }
}

impl World {
    /// One pusher for each image, each of these tags.
    fn new(images: &[&str], physics: &Physics, budget: Budget) -> Self {
        let pushers = images.iter().enumerate().map(|(n, image)| pusher(n, image, physics));
        let stored = images.iter().skip(1).filter(|_| physics.stored);
        let present = physics.present.map(digest);
        let Budget { moves, deletes, releases, writes, repairs, losses, .. } = budget;
        let frees_nothing = [deletes, releases, writes, losses] == [0; 4];
        let still = frees_nothing && moves + repairs == 0;
        let shows = present.as_ref().map(image);
        let registry = physics.tags.iter().filter_map(|tag| Some((tag.clone(), present?)));
        let bound = present.filter(|_| physics.bound);
        let ledger = bound
            .map_or_else(|| Store::new(&physics.tags), |bound| Store::bound(&physics.tags, &bound));
        let mut world = Self {
            replica: ledger.clone(),
            ledger,
            registry: registry.collect(),
            stored: stored.map(|image| digest(image)).chain(present).collect(),
            pushers: pushers.collect(),
            net: Vec::new(),
            pullers: Vec::new(),
            jobs: BTreeMap::new(),
            proxies: (0..physics.proxies).map(|_| Proxy::new(physics)).collect(),
            specification: Rc::new(Specification::new(
                physics.tags.len(),
                (shows, physics.bound),
                images.len(),
                Allows {
                    mutable: physics.mutable || budget.reloads > 0,
                    lost_claims: physics.loses_claims && budget.losses > 0,
                },
            )),
            frees_nothing,
            still,
            acknowledged: BTreeSet::new(),
            written: false,
            budget,
            disturbed: false,
        };
        if physics.bound {
            world.watch(physics);
            (0..physics.proxies).for_each(|proxy| world.learn(physics, proxy));
        }
        world
    }

    fn specification(&mut self) -> &mut Specification {
        Rc::make_mut(&mut self.specification)
    }

    /// Everything that can happen next.
    fn next(&self, physics: &Physics) -> Next {
        let mut next = Vec::new();
        self.push_on(physics, &mut next);
        for m in 0..self.net.len() {
            self.travel(physics, m, &mut next);
        }
        self.pulls(physics, &mut next);
        self.losses(physics, &mut next);
        self.begin_jobs(physics, &mut next);
        for (id, job) in &self.jobs {
            if self.budget.crashes > 0 {
                let world = self.crash_job(physics, *id, job);
                next.push((physics.label(|| format!("job {id} crashes")), world));
            }
            match job {
                Job::Delete(deletion) => self.delete_on(physics, *id, deletion, &mut next),
                Job::Release(releasing) => self.release_on(physics, *id, releasing, &mut next),
                Job::Write(writing) => self.write_on(physics, *id, writing, &mut next),
                Job::Repair(repairing) => self.repair_on(physics, *id, repairing, &mut next),
            }
        }
        next
    }

    /// What may begin besides pushes and pulls.
    fn begin_jobs(&self, physics: &Physics, next: &mut Next) {
        for proxy in 0..self.proxies.len() {
            self.begin_delete(physics, proxy, next);
            self.begin_release(physics, proxy, next);
            self.begin_write(physics, proxy, next);
            self.begin_repair(physics, proxy, next);
            self.reload(physics, proxy, next);
        }
    }

    fn crash_job(&self, physics: &Physics, id: u8, job: &Job) -> Result<Self, Violation> {
        let mut world = self.clone();
        world.budget.crashes -= 1;
        world.disturbed = true;
        world.jobs.remove(&id);
        world.forget(physics, network::Sender::Job(id));
        let op = match job {
            Job::Delete(deletion) => Some(deletion.op),
            Job::Release(releasing) => Some(releasing.op),
            Job::Write(writing) => Some(writing.op),
            Job::Repair(_) => None,
        };
        for place in 0..physics.tags.len() {
            // That nobody knows its outcome is always right.
            let _ = op.is_none_or(|op| world.specification().end(op, place, End::Unknown));
        }
        world.checked(physics)
    }

    /// Enters a job under the lowest number that is free.
    fn enter(&mut self, job: Job) -> u8 {
        let id = (0..=u8::MAX).find(|id| !self.jobs.contains_key(id)).expect("few");
        self.jobs.insert(id, job);
        id
    }

    /// The promises, in every state. That the specification has an order is checked where something ends.
    fn checked(mut self, physics: &Physics) -> Result<Self, Violation> {
        for tag in &physics.tags {
            let acknowledged = self.acknowledged.iter().filter(|(t, _)| t == tag);
            let digests: Vec<_> = acknowledged.map(|(_, digest)| *digest).collect();
            if digests.len() > 1 {
                return Err(format!("two images were acknowledged for {tag}"));
            }
            // A PUT through taglock never moves an acknowledged tag.
            if digests.iter().any(|digest| self.registry.get(tag) != Some(digest)) {
                return Err(format!("{tag} was acknowledged and is another image in the registry"));
            }
        }
        if self.at_rest() && !self.disturbed {
            for (tag, entry) in &self.ledger.entries {
                if matches!(entry, Entry::Pending(_)) {
                    return Err(format!("{tag} is left pending though every push has ended"));
                }
            }
            if !self.ledger.marks.is_empty() {
                return Err("a delete mark is left though every delete has ended".into());
            }
        }
        self.watch(physics);
        if physics.probes {
            self.probe(physics)?;
        }
        Ok(self)
    }

    fn at_rest(&self) -> bool {
        let over = self.pushers.iter().all(|pusher| pusher.doing == Doing::Over);
        over && self.net.is_empty() && self.jobs.is_empty()
    }
}
