//! The specification of one tag: what each operation of a client, of an operator or of the registry may do
//! to it, one after the other.
//!
//! A tag has a binding, as the ledger should have it, and the image that the registry shows under it. The
//! test's registry notes each change of the latter with its instant, so nothing about it is a guess.
//!
//! The promises, as transitions:
//! - A push that was acknowledged under an immutable rule found the tag bound to its image, or free
//!   while the registry showed its image. A refusal names the image that the tag is bound to.
//! - A pull under an immutable rule serves the bound image, or binds what the registry shows of a free tag.
//!   404 is right for a tag that is free or withdrawn, and while a DELETE of its image is under way.
//! - Once the registry has deleted an image, no push of it to a tag that was bound to it is acknowledged
//!   until the DELETE has ended: its delete mark stands.
//! - A DELETE that was acknowledged has freed or withdrawn the tags of its image; under `refuse` no
//!   immutable tag had the image. An operator's release that was acknowledged has freed the tag.
//! - Under a mutable rule pulls show what the registry shows. A push or a DELETE that was acknowledged has
//!   removed the binding, so that the tag is adopted as the registry has it once it is immutable again.
//! - A Redis without a replica that loses everything loses no binding that the registry still shows.
//!
//! Documented limits, which `record.rs` marks (`may_keep`): the tag may stay bound to what it was bound to.
//! - A DELETE by tag frees the image that taglock found the tag bound to. A name that was freed and bound to
//!   another image meanwhile stays bound (decision 0008).
//! - A PUT whose outcome is unknown may reach the registry late, after the name was freed and claimed for another
//!   image, and move the registry's own tag (decision 0008): `Strayed`. The claim stands.
//!
//! Others are in the transitions: a loss takes delete marks with it, and a proxy's memory may serve a name
//! that was freed less than a second ago (decision 0010), or until the ledger is asked again.

use std::fmt;

/// One of the few images of a history, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Image(pub u8);

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", char::from(b'A' + self.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binding {
    Free,
    Bound(Image),
    /// Bound, the registry has deleted the image, and the DELETE has not ended.
    Deleting(Image),
    Withdrawn(Image),
}

impl Binding {
    fn image(self) -> Option<Image> {
        match self {
            Self::Free => None,
            Self::Bound(image) | Self::Deleting(image) | Self::Withdrawn(image) => Some(image),
        }
    }

    /// Bound, and its image was not deleted by a DELETE that has ended.
    fn needs(self, image: Image) -> bool {
        self == Self::Bound(image) || self == Self::Deleting(image)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub binding: Binding,
    /// What the registry shows under the tag.
    pub shown: Option<Image>,
    /// What it showed until somebody deleted the tag past taglock, or a PUT came late.
    pub hidden: Option<Image>,
}

impl State {
    /// A tag that taglock has not met.
    pub fn unknown(shown: Option<Image>) -> Self {
        Self { binding: Binding::Free, shown, hidden: None }
    }

    pub fn with(self, binding: Binding) -> Self {
        Self { binding, ..self }
    }

    /// Free, and the registry shows an image: who meets the tag binds it.
    fn adoptable(self) -> Option<Image> {
        self.shown.filter(|_| self.binding == Binding::Free)
    }
}

/// What the rule says of DELETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    Refuse,
    Keep,
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Immutable(Deletes),
    Mutable,
}

/// What happened to a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The registry shows this from now on.
    Shown(Option<Image>),
    /// Somebody has deleted the tag past taglock, as the book says before a release.
    Hidden,
    /// The same, by a push whose outcome nobody was told; the second says whether that is so of what was shown
    /// before, too.
    Strayed(Option<Image>, bool),
    /// A push that was acknowledged.
    Pushed(Image),
    /// A push that was refused because the tag is bound to this.
    Refused(Image),
    /// A push of this image that was refused by an answer that does not name the bound image.
    RefusedUnnamed(Image),
    Pulled(Image),
    NotFound,
    /// The registry has carried out a DELETE of the image, which has not ended.
    Gone(Image),
    /// A DELETE of the image was acknowledged.
    Deleted(Image),
    /// A DELETE of the tag was acknowledged, which took this image from it.
    Untagged(Image),
    /// An operator's release of the tag from this image was acknowledged.
    Released(Image),
    /// The ledger lost everything.
    Lost,
}

impl Action {
    /// Whether it tells what the tag is bound to and does nothing to it but adopt it, which somebody else
    /// may have done as well.
    pub fn is_read(self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::RefusedUnnamed(_) | Self::Pulled(_) | Self::NotFound
        )
    }
}

/// The states in which the tag may be after an action; none where the action can't be.
pub fn step(state: State, action: Action, rule: Rule) -> Vec<State> {
    match (action, rule) {
        (Action::Shown(image), _) => shown(state, image),
        (Action::Hidden, _) => {
            let hidden = |after| State { hidden: state.shown, ..after };
            shown(state, None).into_iter().map(hidden).collect()
        }
        (Action::Strayed(image, again), _) => {
            let before = if again { None } else { state.shown };
            let hidden = |after| State { hidden: before.or(state.hidden), ..after };
            shown(state, image).into_iter().map(hidden).collect()
        }
        (Action::Pushed(image), Rule::Immutable(_)) => pushed(state, image),
        // The registry has it for a while, and taglock frees the tag when it is told: the record has this begin
        // once the registry shows it.
        (Action::Pushed(_), Rule::Mutable) => vec![state.with(Binding::Free)],
        (Action::Refused(image), Rule::Immutable(_)) => refused(state, image),
        (Action::RefusedUnnamed(pushed), Rule::Immutable(_)) => {
            let held = state.binding.image().or(state.adoptable());
            held.filter(|held| *held != pushed).map_or(Vec::new(), |held| refused(state, held))
        }
        // Another proxy may have bound the tag meanwhile, or be about to.
        (Action::Refused(_) | Action::RefusedUnnamed(_), Rule::Mutable) => vec![state],
        (Action::Pulled(image), Rule::Immutable(_)) if state.adoptable() == Some(image) => {
            vec![state.with(Binding::Bound(image))]
        }
        (Action::Pulled(image), Rule::Immutable(_)) => only(state.binding.needs(image), state),
        (Action::Pulled(image), Rule::Mutable) => only(state.shown == Some(image), state),
        (Action::NotFound, Rule::Immutable(_)) => {
            only(!matches!(state.binding, Binding::Bound(_)), state)
        }
        (Action::NotFound, Rule::Mutable) => only(state.shown.is_none(), state),
        (Action::Gone(image), _) if state.binding != Binding::Bound(image) => vec![state],
        (Action::Gone(image), rule) => {
            let allowed = rule != Rule::Immutable(Deletes::Refuse);
            only(allowed, state.with(Binding::Deleting(image)))
        }
        (Action::Deleted(image), rule) => deleted(state, image, rule),
        (Action::Untagged(image), rule) => untagged(state, image, rule),
        (Action::Released(image), _) => {
            let held = state.binding.image().or(state.adoptable());
            only(held == Some(image), state.with(Binding::Free))
        }
        (Action::Lost, _) => lost(state),
    }
}

fn only(possible: bool, state: State) -> Vec<State> {
    possible.then_some(state).into_iter().collect()
}

/// Until now whoever met a free tag may have bound it, also one who was not told so.
fn shown(state: State, image: Option<Image>) -> Vec<State> {
    let now = State { shown: image, hidden: None, ..state };
    match state.adoptable().filter(|adopted| Some(*adopted) != image) {
        Some(adopted) => vec![now, now.with(Binding::Bound(adopted))],
        None => vec![now],
    }
}

/// Delete marks may be lost with the bindings.
fn lost(state: State) -> Vec<State> {
    let mut after = vec![state];
    if let Binding::Deleting(image) = state.binding {
        after.push(state.with(Binding::Bound(image)));
    }
    if state.binding.image().is_some_and(|image| state.shown != Some(image)) {
        after.push(state.with(Binding::Free));
    }
    after
}

fn pushed(state: State, image: Image) -> Vec<State> {
    // A push that has published is not told when somebody deletes the tag past taglock, or moves it.
    let published = state.shown == Some(image) || state.hidden == Some(image);
    let possible = match state.binding {
        Binding::Free => published,
        Binding::Bound(bound) => bound == image,
        Binding::Withdrawn(bound) => bound == image && published,
        Binding::Deleting(_) => false,
    };
    only(possible, state.with(Binding::Bound(image)))
}

fn refused(state: State, image: Image) -> Vec<State> {
    match state.adoptable() {
        Some(adopted) => only(adopted == image, state.with(Binding::Bound(image))),
        None => only(state.binding.image() == Some(image), state),
    }
}

fn deleted(state: State, image: Image, rule: Rule) -> Vec<State> {
    let holds = state.binding.image() == Some(image);
    match rule {
        Rule::Immutable(Deletes::Refuse) => only(!state.binding.needs(image), state),
        _ if !holds => vec![state],
        Rule::Immutable(Deletes::Keep) => vec![state.with(Binding::Withdrawn(image))],
        Rule::Immutable(Deletes::Release) | Rule::Mutable => vec![state.with(Binding::Free)],
    }
}

/// Where the registry has shown another image than the bound one, the DELETE may have been for either.
fn untagged(state: State, image: Image, rule: Rule) -> Vec<State> {
    if rule == Rule::Immutable(Deletes::Refuse) {
        return Vec::new();
    }
    match state.binding.image() {
        Some(bound) if bound != image => [vec![state], deleted(state, bound, rule)].concat(),
        _ => deleted(state, image, rule),
    }
}
