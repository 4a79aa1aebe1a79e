//! Whether a repository is public, as far as taglock has seen, and whether that is good enough now.

use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long it is good that a repository was seen public, and how long that it was not.
pub(super) const GOOD: Duration = Duration::from_secs(60);
/// After this it is asked again, out of everybody's way.
const AGING: Duration = Duration::from_secs(45);
/// Between two questions to which there was no answer.
const PAUSE: Duration = Duration::from_secs(5);

/// What was seen of one repository.
#[derive(Default)]
pub(super) struct Standing {
    seen: ArcSwap<Seen>,
    /// Held by whoever asks the registry: one at a time.
    pub turn: Mutex<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// When the question was put to which it last answered "for everybody".
    open: Option<Instant>,
    /// When it last answered no, if that was its last answer.
    closed: Option<Instant>,
    /// Since that answer, when it was last asked in vain.
    failed: Option<Instant>,
}

/// What may be done with a manifest of the repository now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// It may be served.
    Good { renew: bool },
    /// The registry can't be asked; what was seen is good for a while.
    Outage { renew: bool },
    /// It may not, before the registry was asked.
    Ask,
    /// It may not, and the registry was asked a moment ago. `renew`: it may be again.
    Shut { renew: bool },
}

impl Stand {
    /// Whether the registry should be asked.
    pub fn is_due(self) -> bool {
        match self {
            Self::Ask => true,
            Self::Good { renew } | Self::Outage { renew } | Self::Shut { renew } => renew,
        }
    }
}

impl Standing {
    /// For a manifest that the registry was seen to have at this time.
    pub fn now(&self, manifest: Instant, grace: Duration) -> Stand {
        let Seen { open, closed, failed } = **self.seen.load();
        if closed.is_some_and(|at| at.elapsed() < GOOD) {
            return Stand::Shut { renew: false };
        }
        let failed = failed.map(|at| at.elapsed()).filter(|ago| *ago < GOOD);
        let renew = failed.is_none_or(|ago| ago >= PAUSE);
        let age = open.map(|open| open.min(manifest).elapsed());
        match (age, failed) {
            (Some(age), _) if age < AGING => Stand::Good { renew: false },
            (Some(age), _) if age < GOOD => Stand::Good { renew },
            (_, None) => Stand::Ask,
            (Some(age), Some(_)) if age < grace => Stand::Outage { renew },
            (_, Some(_)) => Stand::Shut { renew },
        }
    }

    /// Whether the registry has said a moment ago that it is not for everybody.
    pub fn is_closed(&self) -> bool {
        self.seen.load().closed.is_some_and(|at| at.elapsed() < GOOD)
    }

    /// It was seen public, by a question that was put at this time.
    pub fn open(&self, asked: Instant) {
        self.seen.store(Seen { open: Some(asked), ..Seen::default() }.into());
    }

    pub fn close(&self) {
        self.seen.store(Seen { closed: Some(Instant::now()), ..Seen::default() }.into());
    }

    /// Nothing was found out. True where it is the first time since an answer.
    pub fn fail(&self) -> bool {
        let seen = **self.seen.load();
        self.seen.store(Seen { failed: Some(Instant::now()), ..seen }.into());
        seen.failed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    async fn seconds(seconds: u64) {
        advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_is_good_for_a_minute_and_asked_again_before() {
        let (standing, begin) = (Standing::default(), Instant::now());
        assert_eq!(standing.now(begin, HOUR), Stand::Ask);
        standing.open(begin);
        assert_eq!(standing.now(begin, HOUR), Stand::Good { renew: false });
        seconds(45).await;
        assert_eq!(standing.now(begin, HOUR), Stand::Good { renew: true });
        // A manifest not seen for as long as the repository is no better.
        standing.open(Instant::now());
        assert_eq!(standing.now(begin, HOUR), Stand::Good { renew: true });
        assert_eq!(standing.now(Instant::now(), HOUR), Stand::Good { renew: false });
        seconds(15).await;
        assert_eq!(standing.now(begin, HOUR), Stand::Ask);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_borne_for_so_long_and_no_longer() {
        let (standing, begin) = (Standing::default(), Instant::now());
        standing.open(begin);
        seconds(50).await;
        assert!(standing.fail() && !standing.fail());
        assert_eq!(standing.now(begin, HOUR), Stand::Good { renew: false });
        seconds(5).await;
        assert_eq!(standing.now(begin, HOUR), Stand::Good { renew: true });
        seconds(5).await;
        assert_eq!(standing.now(begin, HOUR), Stand::Outage { renew: true });
        // Without grace, a minute is a minute.
        assert_eq!(standing.now(begin, Duration::ZERO), Stand::Shut { renew: true });
        standing.fail();
        assert_eq!(standing.now(begin, HOUR), Stand::Outage { renew: false });
        seconds(3600 - 61).await;
        standing.fail();
        assert_eq!(standing.now(begin, HOUR), Stand::Outage { renew: false });
        seconds(1).await;
        assert_eq!(standing.now(begin, HOUR), Stand::Shut { renew: false });
    }

    #[tokio::test(start_paused = true)]
    async fn a_no_ends_it_at_once_outage_or_not() {
        let (standing, begin) = (Standing::default(), Instant::now());
        standing.open(begin);
        standing.close();
        assert_eq!(standing.now(begin, HOUR), Stand::Shut { renew: false });
        standing.fail();
        assert_eq!(standing.now(begin, HOUR), Stand::Shut { renew: false });
        seconds(61).await;
        assert_eq!(standing.now(begin, HOUR), Stand::Ask, "and is no yes a minute later");
        standing.fail();
        assert_eq!(standing.now(begin, HOUR), Stand::Shut { renew: false });
        standing.open(Instant::now());
        assert!(!standing.is_closed());
        assert_eq!(standing.now(Instant::now(), HOUR), Stand::Good { renew: false });
    }
}
