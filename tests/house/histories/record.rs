//! What clients and operators asked and were told, what the registry and the test did meanwhile, and the
//! operations of one tag that follow from it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::check::{NEVER, Operation, Time};
use super::registry::{Clock, Noted, What};
use super::spec::{Action, Deletes, Image, Rule, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Push(Image),
    Pull,
    /// By digest, for every tag.
    Delete(Image),
    DeleteTag,
    Release(Image),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was done.
    Done,
    /// A push: the tag is bound to this.
    Bound(Image),
    /// The same, and the answer does not name the image.
    BoundToAnother,
    Found(Image),
    NotFound,
    /// For sure nothing was done.
    Nothing(u16),
    /// From memory, or unverified, and the answer says so: no promise is made.
    Warned,
    /// An error that says that nothing is known, or no answer.
    Unclear(u16),
    /// What nothing may be answered with here.
    Wrong(String),
}

#[derive(Clone, Debug)]
pub struct Request {
    pub invoked: Time,
    pub ended: Time,
    pub proxy: usize,
    /// `None` for a DELETE by digest.
    pub tag: Option<usize>,
    pub asked: Asked,
    pub told: Told,
}

/// Something that the test did to a proxy or to the ledger.
#[derive(Clone, Debug)]
pub struct Event {
    pub invoked: Time,
    pub ended: Time,
    pub told: String,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The ledger lost everything.
    Loss,
    Kill(usize),
    /// A replica was promoted.
    Failover,
    Other,
}

/// From when until when a rule may have been in force at a proxy.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    pub rule: Rule,
    pub from: Time,
    pub until: Time,
}

/// All that is noted of one history.
pub struct Record {
    pub clock: Clock,
    pub tags: Vec<String>,
    /// The digest of each image.
    pub images: Vec<String>,
    pub requests: Mutex<Vec<Request>>,
    pub events: Mutex<Vec<Event>>,
    /// For each proxy.
    pub phases: Mutex<Vec<Vec<Phase>>>,
    /// How old the memory of a proxy may be that answers a pull.
    pub staleness: Time,
}

impl Record {
    pub fn image(&self, digest: &str) -> Option<Image> {
        let at = self.images.iter().position(|own| own == digest)?;
        Some(Image(u8::try_from(at).unwrap()))
    }

    /// The rules of which one was in force for a request.
    pub fn rules(&self, request: &Request) -> Vec<Rule> {
        let phases = self.phases.lock().unwrap();
        let phases = phases[request.proxy].iter();
        let there =
            phases.filter(|phase| phase.from <= request.ended && phase.until >= request.invoked);
        let mut rules = Vec::new();
        for phase in there {
            if !rules.contains(&phase.rule) {
                rules.push(phase.rule);
            }
        }
        rules
    }

    /// For people.
    pub fn rules_told(&self, request: &Request) -> &'static str {
        let rules = self.rules(request);
        match (rules.contains(&Rule::Mutable), rules.len()) {
            (true, 1) => " m",
            (true, _) => "im",
            (false, _) => "i ",
        }
    }

    /// What the registry noted, the test's images by their numbers.
    pub fn seen(&self, noted: &[Noted]) -> Seen {
        let image = |digest: &str| self.image(digest).unwrap();
        let tag = |name: &str| self.tags.iter().position(|tag| tag == name).unwrap();
        let mut seen = Seen { shown: vec![Vec::new(); self.tags.len()], ..Seen::default() };
        for Noted { at, what } in noted {
            match what {
                What::Shown { tag: name, digest } => {
                    seen.shown[tag(name)].push((*at, digest.as_deref().map(image)));
                }
                What::Hidden { tag: name } => {
                    seen.shown[tag(name)].push((*at, None));
                    seen.hidden.push((*at, tag(name)));
                }
                What::Untagged { tag: name, digest } => {
                    seen.untagged.push((*at, tag(name), image(digest)));
                }
                What::Asked { digest, request } => {
                    seen.asked.insert(*request, (*at, image(digest)));
                }
                What::Deleted { digest, request } => {
                    seen.deleted.push((*at, image(digest), *request));
                }
            }
        }
        seen
    }
}

/// What the registry did.
#[derive(Default)]
pub struct Seen {
    /// Of each tag, what it shows from when on.
    pub shown: Vec<Vec<(Time, Option<Image>)>>,
    /// When a tag was deleted past taglock.
    pub hidden: Vec<(Time, usize)>,
    pub untagged: Vec<(Time, usize, Image)>,
    /// DELETEs of a digest by their numbers, and when they arrived.
    pub asked: BTreeMap<u64, (Time, Image)>,
    pub deleted: Vec<(Time, Image, u64)>,
}

impl Seen {
    /// The first instant from this one on at which the tag shows the image.
    fn shows(&self, tag: usize, image: Image, from: Time) -> Option<Time> {
        let shown = &self.shown[tag];
        let before = shown.iter().take_while(|(at, _)| *at <= from).last();
        if before.is_some_and(|(_, now)| *now == Some(image)) {
            return Some(from);
        }
        let mut later = shown.iter().filter(|(at, now)| *at > from && *now == Some(image));
        later.next().map(|(at, _)| *at)
    }

    /// When a DELETE of the image that began then had been carried out, at the earliest.
    fn deleted_from(&self, image: Image, from: Time) -> Option<Time> {
        self.deleted.iter().find(|(at, of, _)| *at >= from && *of == image).map(|(at, ..)| at + 1)
    }

    fn untagged_from(&self, tag: usize, from: Time) -> Option<(Time, Image)> {
        let mut of = self.untagged.iter().filter(|(at, of, _)| *at >= from && *of == tag);
        of.next().map(|(at, _, image)| (at + 1, *image))
    }
}

/// How long a proxy may go on with a push whose client has no answer: it was killed, or has answered.
const SOON: Time = 1_000_000;

/// What people read, and when that was asked and told.
type Story = (String, (Time, Time));

/// The operations of one tag, in a row.
struct Row<'a> {
    record: &'a Record,
    seen: &'a Seen,
    tag: usize,
    losses: Vec<Event>,
    /// When masters were gone.
    failovers: Vec<Time>,
    operations: Vec<Operation>,
}

impl Record {
    pub fn operations(&self, seen: &Seen, tag: usize) -> Vec<Operation> {
        let events = self.events.lock().unwrap();
        let losses = events.iter().filter(|event| event.kind == Kind::Loss).cloned().collect();
        let failovers = events.iter().filter(|event| event.kind == Kind::Failover);
        let failovers = failovers.map(|event| event.ended).collect();
        let mut row = Row { record: self, seen, tag, losses, failovers, operations: Vec::new() };
        let requests = self.requests.lock().unwrap();
        row.registry(&requests);
        for request in requests.iter().filter(|request| request.tag.is_none_or(|of| of == tag)) {
            row.request(request, &requests);
        }
        for loss in std::mem::take(&mut row.losses) {
            let time = (loss.invoked, loss.ended);
            row.sure(time, Action::Lost, &[Rule::Mutable], (loss.told, time));
        }
        row.operations
    }

    /// What the tag is before the first request.
    pub fn start(&self, seen: &Seen, tag: usize) -> State {
        let first = self.requests.lock().unwrap().iter().map(|r| r.invoked).min().unwrap_or(0);
        let before = seen.shown[tag].iter().take_while(|(at, _)| *at < first).last();
        State::unknown(before.and_then(|(_, image)| *image))
    }
}

impl Row<'_> {
    fn push(
        &mut self,
        (invoked, ended): (Time, Time),
        action: Action,
        rules: &[Rule],
        optional: bool,
        (told, seen): Story,
    ) {
        let (rules, may_keep) = (rules.to_vec(), false);
        self.operations.push(Operation {
            invoked,
            ended,
            action,
            optional,
            rules,
            may_keep,
            told,
            seen,
        });
    }

    /// The last one meets a limit that is documented (`spec.rs`).
    fn may_keep(&mut self, may_keep: bool) {
        if let Some(last) = self.operations.last_mut() {
            last.may_keep |= may_keep;
        }
    }

    fn sure(&mut self, time: (Time, Time), action: Action, rules: &[Rule], told: Story) {
        self.push(time, action, rules, false, told);
    }

    /// What the registry did, each at its instant.
    fn registry(&mut self, all: &[Request]) {
        let first = all.iter().map(|request| request.invoked).min().unwrap_or(0);
        let (seen, mut stray) = (self.seen, false);
        for (at, image) in seen.shown[self.tag].iter().filter(|(at, _)| *at >= first) {
            let told = match image {
                Some(image) => format!("registry         the tag is {image}"),
                None => "registry         the tag is gone".to_owned(),
            };
            let before = std::mem::replace(&mut stray, self.is_stray(all, *image, *at));
            let action = match seen.hidden.contains(&(*at, self.tag)) {
                true => Action::Hidden,
                false if stray || before && image.is_none() => Action::Strayed(*image, before),
                false => Action::Shown(*image),
            };
            self.sure((*at, *at), action, &[Rule::Mutable], (told, (*at, *at)));
        }
        for (at, image, _) in &seen.deleted {
            let rules = self.rules_of_delete(all, *image, *at);
            let told = format!("registry         the image {image} is deleted");
            self.sure((*at, *at), Action::Gone(*image), &rules, (told, (*at, *at)));
        }
    }

    /// Whether no push that was acknowledged can have moved the tag to this image then.
    fn is_stray(&self, all: &[Request], image: Option<Image>, at: Time) -> bool {
        let Some(image) = image else { return false };
        let moved = |r: &Request| {
            (r.tag, r.asked, &r.told) == (Some(self.tag), Asked::Push(image), &Told::Done)
                && (r.invoked..=r.ended).contains(&at)
        };
        !all.iter().any(moved)
    }

    /// The rules of the DELETEs that the registry may have carried out at this instant. One that was
    /// answered before has no right to it.
    fn rules_of_delete(&self, all: &[Request], image: Image, at: Time) -> Vec<Rule> {
        let mut rules = Vec::new();
        for request in all.iter().filter(|r| r.asked == Asked::Delete(image)) {
            let open = matches!(request.told, Told::Unclear(_)) || request.ended >= at;
            if request.invoked <= at && open {
                rules.extend(self.record.rules(request));
            }
        }
        if rules.is_empty() {
            rules.push(Rule::Immutable(Deletes::Refuse));
        }
        rules
    }

    fn request(&mut self, request: &Request, all: &[Request]) {
        let Request { invoked, ended, .. } = *request;
        let (time, rules) = ((invoked, ended), self.record.rules(request));
        let story = (story(request), time);
        match (request.asked, &request.told) {
            (Asked::Push(image), Told::Done) => self.done_push(request, image, rules, story),
            (Asked::Push(_), Told::Bound(image)) => {
                self.sure(time, Action::Refused(*image), &rules, story);
            }
            (Asked::Push(image), Told::BoundToAnother) => {
                self.sure(time, Action::RefusedUnnamed(image), &rules, story);
            }
            (Asked::Push(image), Told::Unclear(_)) => {
                self.unclear_push(request, image, &rules, story);
            }
            (Asked::Pull, Told::Found(image)) => {
                let from = invoked.saturating_sub(self.record.staleness);
                self.sure((from, ended), Action::Pulled(*image), &rules, story);
            }
            // It may be the word of a master alone, and undone by a failover.
            (Asked::Pull, Told::NotFound) if self.freed_by_a_master(request, all) => {}
            (Asked::Pull, Told::NotFound) => self.sure(time, Action::NotFound, &rules, story),
            (Asked::Push(_) | Asked::Pull, _) => {}
            (Asked::Delete(image), _) => {
                let carried_out = self.seen.deleted_from(image, invoked);
                let earlier = |other: &Request| {
                    other.asked == request.asked
                        && matches!(other.told, Told::Unclear(_))
                        && other.invoked < ended
                };
                // A DELETE of what is not there ends an earlier one, too.
                if request.told == Told::NotFound && all.iter().any(earlier) {
                    self.push(time, Action::Deleted(image), &rules, true, story);
                } else {
                    self.frees(request, carried_out, Action::Deleted(image), &rules);
                }
            }
            (Asked::DeleteTag, _) => {
                if let Some((at, image)) = self.seen.untagged_from(self.tag, invoked) {
                    let others = self.had_another(all, (request, at), image);
                    let before = self.operations.len();
                    self.frees(request, Some(at), Action::Untagged(image), &rules);
                    self.may_keep(others && self.operations.len() > before);
                }
            }
            (Asked::Release(image), _) => {
                self.frees(request, Some(invoked), Action::Released(image), &rules);
            }
        }
    }

    /// A DELETE or a release that took effect at this time at the earliest, if it did. The acknowledgement
    /// of one during which the ledger lost everything promises nothing.
    fn frees(&mut self, request: &Request, from: Option<Time>, action: Action, rules: &[Rule]) {
        let Request { invoked, ended, .. } = *request;
        let story = (story(request), (invoked, ended));
        match (&request.told, from) {
            (Told::Done, from) => {
                let from = from.unwrap_or(invoked).min(ended);
                let mut losses = self.losses.iter();
                let lost = losses.any(|loss| loss.invoked <= ended && loss.ended >= invoked);
                self.push((from, ended), action, rules, lost, story);
            }
            (Told::Unclear(_), Some(from)) => {
                self.push((from, NEVER), action, rules, true, story);
            }
            _ => {}
        }
    }

    /// The registry has shown the image at some time. Under a mutable rule the tag is free from then on, at
    /// the latest when the client is told.
    fn done_push(&mut self, request: &Request, image: Image, mut rules: Vec<Rule>, told: Story) {
        let Request { invoked, ended, .. } = *request;
        let mutable = rules.contains(&Rule::Mutable);
        let shown = self.seen.shows(self.tag, image, invoked).filter(|at| *at <= ended);
        let from = match shown {
            Some(at) if mutable && at > invoked => (at + 1).min(ended),
            Some(_) => invoked,
            // Not by a mutable rule, then.
            None => {
                rules.retain(|rule| *rule != Rule::Mutable);
                invoked
            }
        };
        self.sure((from, ended), Action::Pushed(image), &rules, told);
    }

    /// Whether the tag may have been freed when this pull asked by what no replica had got: somebody was told so,
    /// or not told anything, and the master is gone since. A look-up that finds nothing waits for no replica.
    fn freed_by_a_master(&self, pull: &Request, all: &[Request]) -> bool {
        let frees = |r: &&Request| {
            matches!(r.asked, Asked::Delete(_) | Asked::DeleteTag | Asked::Release(_))
                && matches!(r.told, Told::Unclear(_))
        };
        let ours = |r: &&Request| r.tag.is_none_or(|tag| tag == self.tag);
        let mut frees = all.iter().filter(frees).filter(ours);
        frees.any(|r| {
            let after = |at: &Time| *at >= pull.invoked && *at >= r.invoked;
            r.invoked <= pull.ended && self.failovers.iter().any(after)
        })
    }

    /// Whether the tag may have been bound to another image when this DELETE by tag looked: the registry has
    /// shown one before it carried it out, or somebody else has freed one meanwhile.
    fn had_another(&self, all: &[Request], (request, at): (&Request, Time), image: Image) -> bool {
        let shown = &self.seen.shown[self.tag];
        let other = |now: &Option<Image>| now.is_some_and(|now| now != image);
        let before = shown.iter().take_while(|(time, _)| *time <= request.invoked).last();
        let since = shown.iter().filter(|(time, _)| (request.invoked..at).contains(time));
        let mut frees = all.iter().filter(|r| match r.asked {
            Asked::Delete(of) | Asked::Release(of) => of != image,
            Asked::DeleteTag | Asked::Push(_) | Asked::Pull => false,
        });
        before.into_iter().chain(since).any(|(_, now)| other(now))
            || frees.any(|r| r.invoked <= at && r.ended >= request.invoked)
    }

    /// Binding what the registry shows of a free tag needs no push. The rest of what it may have done
    /// by itself, it has done soon after its client was told, or was left.
    fn unclear_push(&mut self, request: &Request, image: Image, rules: &[Rule], told: Story) {
        let matters = |rule: &Rule| matches!(rule, Rule::Immutable(Deletes::Keep) | Rule::Mutable);
        let rules: Vec<_> = rules.iter().copied().filter(matters).collect();
        let until = request.ended + SOON;
        let from = self.seen.shows(self.tag, image, request.invoked);
        if let (false, Some(from)) = (rules.is_empty(), from.filter(|from| *from <= until)) {
            self.push((from, until), Action::Pushed(image), &rules, true, told);
        }
    }
}

/// One line for people.
pub fn story(request: &Request) -> String {
    let asked = match request.asked {
        Asked::Push(image) => format!("push {image}"),
        Asked::Pull => "pull".to_owned(),
        Asked::Delete(image) => format!("DELETE image {image}"),
        Asked::DeleteTag => "DELETE tag".to_owned(),
        Asked::Release(image) => format!("release from {image}"),
    };
    let told = match &request.told {
        Told::Done => "done".to_owned(),
        Told::Bound(image) => format!("refused, bound to {image}"),
        Told::BoundToAnother => "refused".to_owned(),
        Told::Found(image) => format!("{image}"),
        Told::NotFound => "404".to_owned(),
        Told::Nothing(status) => format!("{status}, nothing was done"),
        Told::Warned => "with a warning".to_owned(),
        Told::Unclear(0) => "no answer".to_owned(),
        Told::Unclear(status) => format!("{status}, outcome unknown"),
        Told::Wrong(text) => text.clone(),
    };
    format!("proxy {}          {asked:14} {told}", request.proxy + 1)
}
