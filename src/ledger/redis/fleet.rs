//! What the proxies of one Redis tell each other: names that were freed, losses, and their rules.

use std::sync::atomic::Ordering;

use redis::{Cmd, cmd};

use super::keys::{member_of, repository_of};
use super::{ANOTHER, FREED_IN, META, PROXIES, Redis, failed};
use crate::ledger::rollback::Scope;
use crate::ledger::{Announcement, Identity, News, RepositoryKey, Timestamp, Unavailable};

/// A proxy that has not announced itself for so many seconds is gone.
pub(super) const GONE: u64 = 60;
/// After which loss a proxy has offered what it remembers: its name to the loss. Older proxies do not know
/// of it, and count as such that have offered nothing.
const OFFERED: &str = "taglock:1:offered";
/// Stands for the whole ledger, and for no loss.
const NONE: &str = "-";

/// What is known of the ledger as a whole. A change that means a loss is noted first, so that nobody binds
/// anything by the new one before the loss is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    /// The id that was found last; `None` where there was none.
    pub id: Option<String>,
    /// The last loss that was published: its name, the name of the one before, and its scope.
    pub loss: String,
}

impl Whole {
    fn loss_name(&self) -> &str {
        name_of(&self.loss)
    }
}

fn name_of(loss: &str) -> &str {
    loss.split(' ').next().unwrap_or("")
}

/// What a published loss means to a proxy that knew of one before: where it has missed any between, the
/// whole ledger.
fn scope_of(loss: &str, known: &str) -> Scope {
    let mut parts = loss.splitn(3, ' ').skip(1);
    let before = parts.next().unwrap_or("");
    let known = if known.is_empty() { NONE } else { known };
    match parts.next().map(repository_of) {
        Some(Ok(repository)) if before == known => Scope::Repository(repository),
        _ => Scope::Whole,
    }
}

impl Redis {
    /// Who is found there now. One that lost its id lost everything with it; one with another id
    /// is served only where the settings name none.
    pub(super) fn look_at(&self, id: Option<String>) -> Result<Identity, Unavailable> {
        let mut whole = self.whole();
        if whole.id != id {
            let now = id.as_deref().unwrap_or("none");
            tracing::error!(
                id = self.identity.id,
                now,
                "the Redis is not the one it was: its ledger's id is gone, or another"
            );
            if id.as_ref() != Some(&self.identity.id) {
                self.lost(Scope::Whole);
            }
            whole.id.clone_from(&id);
        }
        match id {
            Some(id) if id != self.identity.id && self.pinned => Err(failed(ANOTHER)),
            Some(id) => Ok(Identity { id, ..self.identity.clone() }),
            None => Ok(self.identity.clone()),
        }
    }

    /// A loss that this proxy has noticed itself, to be published at the next poll.
    pub(super) fn lost(&self, scope: Scope) {
        let mut unpublished = self.unpublished();
        if !unpublished.iter().any(|own| own.covers(&scope)) {
            self.losses.note(&scope);
            self.named.clear();
            unpublished.push(scope);
        }
    }

    /// A loss that another proxy has published.
    fn hear_of(&self, loss: &str) {
        let mut whole = self.whole();
        if whole.loss == loss {
            return;
        }
        if loss.is_empty() {
            // It was there, so the ledger has lost it.
            self.lost(Scope::Whole);
        } else {
            let scope = scope_of(loss, whole.loss_name());
            let mut unpublished = self.unpublished();
            if !unpublished.contains(&scope) {
                self.losses.note(&scope);
                self.named.clear();
            }
            unpublished.retain(|own| !scope.covers(own));
        }
        loss.clone_into(&mut whole.loss);
    }

    /// Tells the other proxies of what this one has noticed.
    async fn publish(&self) -> Result<(), Unavailable> {
        let scope = match self.unpublished().as_slice() {
            [] => return Ok(()),
            [Scope::Repository(repository)] => member_of(repository),
            _ => NONE.to_owned(),
        };
        let known = self.whole().loss.clone();
        let before = if known.is_empty() { NONE } else { name_of(&known) };
        let loss = format!("{} {before} {scope}", uuid::Uuid::new_v4());
        let call = self.on_one_key(META, 'L', &[loss.as_bytes(), known.as_bytes()]);
        let found = self.reach.ask_and_wait(META, &call, self.replicas).await?;
        let found: String = redis::from_redis_value(found).map_err(failed)?;
        if found == loss {
            let mut whole = self.whole();
            self.unpublished().retain(|own| scope != NONE && !is_repository(own, &scope));
            whole.loss = loss;
            Ok(())
        } else {
            // Another one was faster. The next poll tells this proxy's own, if that is another.
            self.hear_of(&found);
            Ok(())
        }
    }

    pub(super) async fn news(&self, last: Option<u64>) -> Result<News, Unavailable> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Unavailable::Closed);
        }
        let mut call = cmd("HMGET");
        call.arg(META).arg("id").arg("losses").arg("freed");
        let (id, loss, count): (Option<String>, Option<String>, Option<u64>) =
            self.reach.ask(META, &call).await?;
        let early = self.reach.is_clustered();
        let count = if early { self.count_of_freed().await? } else { count.unwrap_or(0) };
        let found = self.look_at(id).map(drop);
        if self.counted.swap(count, Ordering::AcqRel) > count {
            tracing::error!(count, "the ledger went back in time: names that were freed are bound");
            self.lost(Scope::Whole);
        }
        self.hear_of(&loss.unwrap_or_default());
        found?;
        self.publish().await?;
        if last.is_none() && !self.whole().loss.is_empty() {
            // Others may be restoring what this process has not seen.
            self.losses.await_others();
        }
        let freed = match last {
            Some(last) if last < count => self.freed_since(last).await?,
            _ => Vec::new(),
        };
        Ok(News { count, freed, early, loss: self.whole().loss_name().to_owned() })
    }

    async fn freed_since(&self, last: u64) -> Result<Vec<RepositoryKey>, Unavailable> {
        let mut call = cmd("ZRANGE");
        call.arg(FREED_IN).arg(format!("({last}")).arg("+inf").arg("BYSCORE");
        let members: Vec<String> = self.reach.ask(FREED_IN, &call).await?;
        let members = members.iter().filter(|member| !member.is_empty());
        members.map(|member| repository_of(member)).collect()
    }

    /// In a Cluster: the highest score.
    async fn count_of_freed(&self) -> Result<u64, Unavailable> {
        let mut call = cmd("ZRANGE");
        call.arg(FREED_IN).arg(0).arg(0).arg("REV").arg("WITHSCORES");
        let highest: Vec<(String, u64)> = self.reach.ask(FREED_IN, &call).await?;
        Ok(highest.first().map_or(0, |(_, count)| *count))
    }

    /// In a Cluster, where the script has no access to the set: tells that something is freed in the
    /// repository, before and after it is.
    ///
    /// A proxy that polls after the second call forgets what it remembered, as it does elsewhere; only
    /// then is the freeing acknowledged. If this process dies between the two, others have forgotten at the
    /// first call, and may have looked the name up again before it was freed. They forget once
    /// more five seconds later (see `witness`): by then no try of this process is under way, since its
    /// patience is two seconds.
    pub(super) async fn announce_freeing(
        &self,
        repository: &RepositoryKey,
    ) -> Result<(), Unavailable> {
        if !self.reach.is_clustered() {
            return Ok(());
        }
        let call = self.on_one_key(FREED_IN, 'F', &[b"", b"", b"", b"", b""]);
        let mut call = call;
        call.arg(member_of(repository));
        self.reach.ask_and_wait(FREED_IN, &call, self.replicas).await.map(drop)
    }

    /// The script on a key that is no repository's.
    fn on_one_key(&self, key: &str, letter: char, arguments: &[&[u8]]) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(self.script.get_hash()).arg(1).arg(key).arg(letter.to_string());
        for argument in arguments {
            call.arg(*argument);
        }
        call
    }

    pub(super) async fn tell(&self, own: &Announcement) -> Result<Vec<Announcement>, Unavailable> {
        let now = Timestamp::now().seconds();
        let said = format!("{} {now}", own.rules);
        let mut call = cmd("HSET");
        call.arg(PROXIES).arg(&own.proxy).arg(said);
        self.reach.ask::<i64>(PROXIES, &call).await?;
        let offered = self.tell_offered(own).await?;
        let all: Vec<(String, String)> =
            self.reach.ask(PROXIES, cmd("HGETALL").arg(PROXIES)).await?;
        let mut others = Vec::new();
        for (proxy, said) in all.into_iter().filter(|(proxy, _)| *proxy != own.proxy) {
            let (rules, at) = said.split_once(' ').unwrap_or((&said, "0"));
            // Clocks of proxies may differ a little; nothing but an alarm depends on it.
            if now.saturating_sub(at.parse().unwrap_or(0)) <= GONE {
                let offer = offered.iter().find(|(other, _)| *other == proxy);
                let offered = offer.map(|(_, loss)| loss.clone()).unwrap_or_default();
                others.push(Announcement { proxy, rules: rules.to_owned(), offered });
            } else {
                for key in [PROXIES, OFFERED] {
                    let mut call = cmd("HDEL");
                    call.arg(key).arg(&proxy);
                    self.reach.ask::<i64>(key, &call).await?;
                }
            }
        }
        Ok(others)
    }

    /// A ledger that lost nothing is spared the calls.
    async fn tell_offered(&self, own: &Announcement) -> Result<Vec<(String, String)>, Unavailable> {
        if own.offered.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = cmd("HSET");
        call.arg(OFFERED).arg(&own.proxy).arg(&own.offered);
        self.reach.ask::<i64>(OFFERED, &call).await?;
        self.reach.ask(OFFERED, cmd("HGETALL").arg(OFFERED)).await
    }
}

fn is_repository(scope: &Scope, member: &str) -> bool {
    matches!(scope, Scope::Repository(repository) if member_of(repository) == member)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::contract::key;

    #[test]
    fn who_missed_a_loss_takes_the_next_one_for_a_loss_of_everything() {
        let repository = Scope::Repository(key("app"));
        let first = format!("n1 - {}", member_of(&key("app")));
        let second = format!("n2 n1 {}", member_of(&key("app")));
        assert_eq!(scope_of(&first, ""), repository);
        assert_eq!(scope_of(&second, "n1"), repository);
        assert_eq!(scope_of(&second, ""), Scope::Whole);
        assert_eq!(scope_of(&first, "n0"), Scope::Whole);
        for whole in ["n1 - -", "n1", "", "n1 n0 -"] {
            assert_eq!(scope_of(whole, "n0"), Scope::Whole, "{whole}");
        }
    }
}
