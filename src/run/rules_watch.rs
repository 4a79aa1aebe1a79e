//! What proxies of one ledger owe each other: the same rules, the same ledger, and word of what they freed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::ledger::cached::Witness;
use crate::ledger::rollback::Losses;
use crate::ledger::{Announcement, Ledger, Unavailable};
use crate::rules::Rules;
use crate::telemetry::Metrics;
use crate::telemetry::warnings::{Notices, Topic};

/// Between two announcements. Proxies whose rules are reloaded one after the other differ for a
/// moment, which is no alarm yet: see [`Fleet::heard`].
const BEAT: Duration = Duration::from_secs(5);
/// An alarm is raised when the rules differ for so many beats in a row.
const ROLL_OUT: u32 = 3;
/// Between two polls: what other proxies freed is known in less than a second.
const POLL: Duration = Duration::from_millis(500);
/// Who announced itself so long ago may still be there.
const LIVE: Duration = Duration::from_secs(60);
/// After a loss, nobody waits longer for what other proxies remember.
const OFFERS: Duration = Duration::from_secs(10);
/// And nobody waits less, for proxies that this one has not heard of before: they have polled by then.
const FIRST: Duration = Duration::from_secs(1);
/// Between two looks whether they have offered it.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Fleet {
    proxy: String,
    ledger: Arc<Witness>,
    rules: Arc<ArcSwap<Rules>>,
    metrics: Arc<Metrics>,
    notices: Arc<Notices>,
    others: Mutex<HashMap<String, Other>>,
    /// The loss after which this proxy has offered what it remembers.
    offered: Mutex<String>,
}

/// Another proxy, as last heard.
struct Other {
    at: Instant,
    offered: String,
}

impl Fleet {
    pub fn new(
        ledger: Arc<Witness>,
        rules: Arc<ArcSwap<Rules>>,
        metrics: Arc<Metrics>,
        notices: Arc<Notices>,
    ) -> Self {
        let proxy = uuid::Uuid::new_v4().to_string();
        let (others, offered) = (Mutex::default(), Mutex::default());
        Self { proxy, ledger, rules, metrics, notices, others, offered }
    }

    fn others(&self) -> MutexGuard<'_, HashMap<String, Other>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> Announcement {
        Announcement {
            proxy: self.proxy.clone(),
            rules: self.rules.load().fingerprint().to_string(),
            offered: self.offered.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    async fn announce(&self) -> Result<(Announcement, Vec<Announcement>), Unavailable> {
        let own = self.own();
        let heard = self.ledger.announce(&own).await?;
        let (mut others, at) = (self.others(), Instant::now());
        for Announcement { proxy, offered, .. } in &heard {
            others.insert(proxy.clone(), Other { at, offered: offered.clone() });
        }
        others.retain(|_, other| other.at.elapsed() < LIVE);
        drop(others);
        Ok((own, heard))
    }

    /// Says which rules this proxy applies, and looks who the ledger is.
    async fn beats(&self) {
        let mut beat = interval(BEAT);
        let mut differing_beats = 0;
        loop {
            beat.tick().await;
            // An error is told by /readyz; a ledger that forgot who it is counts it as a loss.
            let _ = self.ledger.identity().await;
            // A ledger that is down is reported by those who need it.
            if let Ok((own, others)) = self.announce().await {
                let differ = self.heard(&own, &others, differing_beats);
                differing_beats = if differ { differing_beats + 1 } else { 0 };
            }
        }
    }

    /// Counts those that apply other rules; true while there are some.
    fn heard(&self, own: &Announcement, others: &[Announcement], beats: u32) -> bool {
        let differ = others.iter().filter(|other| other.rules != own.rules).count();
        self.metrics.rules_differ().set(i64::try_from(differ).unwrap_or(i64::MAX));
        if differ == 0 {
            self.notices.clear(Topic::Rules);
        } else if beats + 1 == ROLL_OUT {
            let text = format!("{differ} other proxies of this ledger apply other rules");
            tracing::error!(rules = own.rules, "{text}; give all of them the same file");
            self.notices.put(Topic::Rules, text);
        }
        differ > 0
    }

    /// Hears what other proxies have freed, and that the ledger lost entries: whatever is to be restored
    /// has been published by then, under the name that is sent on.
    async fn polls(&self, losses: &watch::Sender<String>) {
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            poll.tick().await;
            // A ledger that is down is reported by those who need it.
            let Ok(news) = self.ledger.hear().await else { continue };
            self.report_losses();
            let restoring = self.ledger.losses().is_some_and(Losses::is_restoring_any);
            let loss = if restoring { news.loss } else { String::new() };
            losses.send_if_modified(|known| std::mem::replace(known, loss.clone()) != loss);
        }
    }

    fn report_losses(&self) {
        let Some(losses) = self.ledger.losses() else { return };
        let total = i64::try_from(losses.total()).unwrap_or(i64::MAX);
        if self.metrics.ledger_losses().get() != total {
            self.metrics.ledger_losses().set(total);
            let text = "it lost entries, and what the proxies and the registry remember is bound anew; \
                        compare it with a backup";
            self.notices.put(Topic::Ledger, text);
            tracing::error!(
                "the ledger lost entries; until it is restored, nothing is bound in it"
            );
        }
    }

    async fn restores(&self, mut losses: watch::Receiver<String>) {
        loop {
            let loss = losses.borrow_and_update().clone();
            if loss.is_empty() || self.restore(&loss, &losses).await {
                // The sender lives as long as this future. A poll may be late, and is waited for no longer.
                let _ = timeout(BEAT, losses.changed()).await;
            } else {
                sleep(PAUSE).await;
            }
        }
    }

    /// Offers what this proxy remembers, says so, and waits for the others. False when that has to be begun
    /// again.
    async fn restore(&self, loss: &str, losses: &watch::Receiver<String>) -> bool {
        let (noticed, total) = (Instant::now(), self.ledger.losses().map_or(0, Losses::total));
        // Once: the others may have ended it since, and freed what was bound again.
        let restored = if self.own().offered == loss {
            0
        } else {
            match self.ledger.offer().await {
                Ok(restored) => restored,
                Err(error) => {
                    tracing::warn!(%error, "what this proxy remembers waits to be bound again");
                    return false;
                }
            }
        };
        loss.clone_into(&mut self.offered.lock().unwrap_or_else(PoisonError::into_inner));
        let missing = loop {
            if self.announce().await.is_err() || *losses.borrow() != loss {
                return false;
            }
            let missing = self.others().values().filter(|other| other.offered != loss).count();
            // A process that was not there to see the loss finds all others in the ledger.
            let least = if total == 0 { Duration::ZERO } else { FIRST };
            let waited = noticed.elapsed();
            if (missing == 0 && waited >= least) || waited >= OFFERS {
                break missing;
            }
            sleep(PAUSE).await;
        };
        self.ledger.settle(total);
        tracing::warn!(restored, missing, "what the proxies remember is bound again");
        // The next poll sees whether something else was lost meanwhile.
        true
    }
}

#[async_trait]
impl BackgroundService for Fleet {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let (sender, receiver) = watch::channel(String::new());
        tokio::select! {
            () = self.beats() => {}
            () = self.polls(&sender) => {}
            () = self.restores(receiver) => {}
            _ = shutdown.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;
    use crate::ledger::cached::Remembering;
    use crate::ledger::contract::{adopt, digest, key, tag};
    use crate::ledger::memory::Memory;
    use crate::ledger::{Adopt, Entry, Origin};

    /// A proxy of a ledger that other proxies use, too, with one binding that it remembers.
    struct House {
        memory: Arc<Memory>,
        running: JoinHandle<()>,
        _shutdown: watch::Sender<bool>,
    }

    impl House {
        async fn start() -> Self {
            let memory = Arc::new(Memory::shared());
            let ledger = Witness::new(Arc::<Memory>::clone(&memory), Remembering::default());
            let ledger = Arc::new(ledger);
            let rules = ArcSwap::from_pointee(Rules::new(Vec::new()).unwrap());
            let (metrics, notices) = (Arc::new(Metrics::new()), Arc::default());
            let fleet = Fleet::new(Arc::clone(&ledger), Arc::new(rules), metrics, notices);
            let (_shutdown, receiver) = watch::channel(false);
            let running = tokio::spawn(async move { fleet.start(receiver).await });
            // It has polled, and heard of nobody.
            sleep(Duration::from_secs(1)).await;
            let adopted =
                adopt(&*ledger, &key("app"), &[tag("v1")], &digest(1), Origin::Push).await;
            assert_eq!(adopted, Ok(Adopt::Adopted));
            Self { memory, running, _shutdown }
        }

        /// Another proxy says that it is there.
        async fn hears(&self, offered: &str) {
            let own = Announcement {
                proxy: "another".into(),
                rules: String::new(),
                offered: offered.into(),
            };
            self.memory.announce(&own).await.unwrap();
        }

        /// So long later.
        async fn is_restoring(&self, later: f32) -> bool {
            sleep(Duration::from_secs_f32(later)).await;
            let restoring = self.memory.losses().unwrap().is_restoring_any();
            if !restoring {
                let found = self.memory.lookup(&key("app"), &[tag("v1")]).await.unwrap();
                assert_eq!(found.entries[0].digest(), Some(&digest(1)), "it was offered");
            }
            restoring
        }
    }

    impl Drop for House {
        fn drop(&mut self) {
            self.running.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_loss_nothing_is_bound_until_every_proxy_has_offered_what_it_remembers() {
        let house = House::start().await;
        house.hears("").await;
        assert!(!house.is_restoring(6.0).await);
        house.memory.lose();
        assert!(house.is_restoring(5.0).await);
        house.hears("an older loss").await;
        assert!(house.is_restoring(1.0).await);
        house.hears("loss 1").await;
        assert!(!house.is_restoring(0.5).await);
        // And once more, for the next one.
        house.memory.lose();
        assert!(house.is_restoring(5.0).await);
        house.hears("loss 2").await;
        assert!(!house.is_restoring(0.5).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_offered_is_not_offered_again_by_a_proxy_that_was_cut_off() {
        let house = House::start().await;
        house.hears("").await;
        assert!(!house.is_restoring(6.0).await);
        house.memory.lose();
        assert!(house.is_restoring(1.0).await);
        house.memory.mute(true);
        // The other proxy has heard of the offer, and what it bound again is freed.
        house.memory.clear();
        sleep(Duration::from_secs(2)).await;
        house.memory.mute(false);
        house.hears("loss 1").await;
        sleep(Duration::from_secs(2)).await;
        assert!(!house.memory.losses().unwrap().is_restoring_any());
        let found = house.memory.lookup(&key("app"), &[tag("v1")]).await.unwrap();
        assert_eq!(found.entries, [Entry::Absent]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_proxy_is_waited_for_longer_than_ten_seconds() {
        let house = House::start().await;
        house.hears("").await;
        assert!(!house.is_restoring(6.0).await);
        house.memory.lose();
        assert!(house.is_restoring(9.9).await);
        assert!(!house.is_restoring(1.0).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_was_not_heard_of_before_has_a_second_to_say_that_it_is_there() {
        for others in [false, true] {
            let house = House::start().await;
            house.memory.lose();
            assert!(house.is_restoring(1.0).await, "the poll, and some of that second");
            if others {
                house.hears("").await;
            }
            assert_eq!(house.is_restoring(1.0).await, others);
            house.hears("loss 1").await;
            assert!(!house.is_restoring(0.5).await);
        }
    }
}
