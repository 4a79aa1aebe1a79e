//! Where tests stop the process: after each action of a push. Not in release builds.

use std::sync::Arc;

use super::step::Action;

/// Told of each point that a push passes.
pub type Observer = Arc<dyn Fn(Point) + Send + Sync>;

macro_rules! points {
    ($($point:ident = $name:literal,)+) => {
        /// The action that has just been done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($point,)+
        }

        impl Point {
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

points! {
    LookedUp = "looked-up",
    Waited = "waited",
    Looked = "looked",
    Resolved = "resolved",
    LookedStaged = "looked-staged",
    Staged = "staged",
    Claimed = "claimed",
    LookedAtParts = "looked-at-parts",
    Bound = "bound",
    Adopted = "adopted",
    Aborted = "aborted",
    Published = "published",
    Fetched = "fetched",
    PublishedFetched = "published-fetched",
}

impl Point {
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }

    pub(super) fn after(action: &Action) -> Self {
        match action {
            Action::Lookup => Self::LookedUp,
            Action::Wait => Self::Waited,
            Action::Look(_) => Self::Looked,
            Action::Resolve(_) => Self::Resolved,
            Action::LookStaged => Self::LookedStaged,
            Action::Stage => Self::Staged,
            Action::Claim { .. } => Self::Claimed,
            Action::LookAtParts => Self::LookedAtParts,
            Action::Bind { .. } => Self::Bound,
            Action::Adopt { .. } => Self::Adopted,
            Action::Abort { .. } => Self::Aborted,
            Action::Publish(_) => Self::Published,
            Action::Fetch(_) => Self::Fetched,
            Action::PublishFetched(_) => Self::PublishedFetched,
        }
    }
}
