//! Which connection a call takes, and when another server is looked for.
//!
//! Each master has one connection that all calls share, and connections of their own for writes
//! that wait for replicas: `WAIT` blocks its connection. A server that can't be reached, or says
//! that it is no master any more, is given up with all its connections; the next call looks the
//! masters up again. No call is repeated here, but for one redirection within a Cluster.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use redis::aio::MultiplexedConnection;
use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, Value, cmd,
    from_redis_value,
};
use tokio::sync::{Mutex as AsyncMutex, OnceCell, OwnedMutexGuard};
use tokio::time::{Instant, sleep_until, timeout};

use super::connect::{ANSWER, Access, Address, connect};
use super::topology::{NotFound, Range, Topology, pointed_to, slot_of};
use super::{SCRIPT, failed};
use crate::ledger::Unavailable;

/// How long `WAIT` waits for replicas.
const WAIT: Duration = Duration::from_secs(1);
/// Bounds a look-up, which goes on when its caller has gone.
const LOOK_UP: Duration = Duration::from_secs(3);
/// Between two look-ups.
const PAUSE: Duration = Duration::from_millis(100);

/// All masters, and how to find them.
pub(super) struct Reach {
    topology: Topology,
    access: Access,
    map: ArcSwap<Map>,
    /// Every server that has been spoken to since the last look-up.
    nodes: DashMap<Address, Arc<Node>>,
    /// Held by the one look-up under way; when the last one began.
    looking: Arc<AsyncMutex<Option<Instant>>>,
    changes: AtomicU64,
}

/// Slots and their masters, in the order of the slots.
#[derive(Default)]
struct Map(Vec<(Range, Arc<Node>)>);

impl Map {
    fn node(&self, slot: u16) -> Option<&Arc<Node>> {
        let at = self.0.partition_point(|(range, _)| range.last < slot);
        self.0.get(at).filter(|(range, _)| range.first <= slot).map(|(_, node)| node)
    }

    fn masters(&self) -> Vec<Address> {
        let mut masters: Vec<Address> = Vec::new();
        for (range, _) in &self.0 {
            if !masters.contains(&range.master) {
                masters.push(range.master.clone());
            }
        }
        masters
    }
}

/// One server.
struct Node {
    address: Address,
    client: Client,
    /// Made at the first call: its task lives in the runtime that makes it.
    shared: OnceCell<MultiplexedConnection>,
    /// Each has made the write that it waits for.
    own: Mutex<Vec<MultiplexedConnection>>,
    given_up: AtomicBool,
}

/// One command on a key, and how many replicas must confirm it.
struct Call<'c> {
    command: &'c Cmd,
    replicas: u32,
}

impl Reach {
    pub(super) fn new(topology: Topology, access: Access) -> Self {
        Self {
            topology,
            access,
            map: ArcSwap::default(),
            nodes: DashMap::new(),
            looking: Arc::default(),
            changes: AtomicU64::new(0),
        }
    }

    /// Whether keys of one call must share a slot.
    pub(super) fn is_clustered(&self) -> bool {
        matches!(self.topology, Topology::Cluster(_))
    }

    /// Runs a command on the key's master.
    pub(super) async fn ask<T: FromRedisValue>(
        self: &Arc<Self>,
        key: &str,
        command: &Cmd,
    ) -> Result<T, Unavailable> {
        let values = self.call(key, &Call { command, replicas: 0 }).await?;
        let value = values.into_iter().next().ok_or_else(|| failed("an empty answer"))?;
        from_redis_value(value).map_err(failed)
    }

    /// Runs a write on the key's master, with `WAIT` behind it on the same connection: an error
    /// unless so many replicas have what it wrote.
    pub(super) async fn ask_and_wait(
        self: &Arc<Self>,
        key: &str,
        command: &Cmd,
        replicas: u32,
    ) -> Result<Value, Unavailable> {
        if replicas == 0 {
            return self.ask(key, command).await;
        }
        let values = self.call(key, &Call { command, replicas }).await?;
        let (value, confirmed): (Value, u32) =
            from_redis_value(Value::Array(values)).map_err(failed)?;
        if confirmed < replicas {
            // It may be a master that lost its replicas to another one.
            if !matches!(self.topology, Topology::Fixed(_)) {
                self.give_up(key);
            }
            // The write may stand: harmless, and repeating it waits again.
            return Err(failed(format!("{confirmed} of {replicas} replicas confirmed the write")));
        }
        Ok(value)
    }

    /// How often the masters have changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The masters as they are now.
    pub(super) async fn masters(self: &Arc<Self>) -> Result<Vec<(Address, Client)>, String> {
        let looking = Arc::clone(&self.looking).lock_owned().await;
        self.look_up(looking).await?;
        let masters = self.map.load().masters();
        let client = |address: Address| match self.access.client(&address) {
            Ok(client) => Ok((address, client)),
            Err(error) => Err(error.to_string()),
        };
        masters.into_iter().map(client).collect()
    }

    /// Closes every connection once its calls are done.
    pub(super) fn close(&self) {
        self.map.store(Arc::default());
        self.nodes.clear();
    }

    #[cfg(test)]
    pub(super) fn master_of(&self, slot: u16) -> Option<Address> {
        self.map.load().node(slot).map(|node| node.address.clone())
    }

    async fn call(self: &Arc<Self>, key: &str, call: &Call<'_>) -> Result<Vec<Value>, Unavailable> {
        let node = self.node(slot_of(key)).await?;
        let error = match node.call(call, false).await {
            Ok(values) => return Ok(values),
            Err(error) => error,
        };
        let pointed = pointed_to(&error, &node.address).filter(|_| self.is_clustered());
        let Some(address) = pointed else { return Err(node.after(&error)) };
        // The slot has moved, or is about to: it is followed there, once.
        let asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
        if !asking {
            self.look_up_aside();
        }
        let node = self.node_at(&address)?;
        node.call(call, asking).await.map_err(|error| node.after(&error))
    }

    /// The slot's master. Only a call that has none waits for a look-up.
    async fn node(self: &Arc<Self>, slot: u16) -> Result<Arc<Node>, Unavailable> {
        let found = || self.map.load().node(slot).filter(|node| !node.is_given_up()).cloned();
        if let Some(node) = found() {
            return Ok(node);
        }
        let looking = Arc::clone(&self.looking).lock_owned().await;
        // Another call may have looked meanwhile.
        if let Some(node) = found() {
            return Ok(node);
        }
        // In a task of its own: a caller whose time is over does not end it.
        let this = Arc::clone(self);
        let looked = tokio::spawn(async move { this.look_up(looking).await });
        looked.await.map_err(failed)?.map_err(Unavailable::Store)?;
        found().ok_or_else(|| failed(format!("no server of the Cluster serves slot {slot}")))
    }

    /// Looks up while calls go on, unless somebody does already.
    fn look_up_aside(self: &Arc<Self>) {
        if let Ok(looking) = Arc::clone(&self.looking).try_lock_owned() {
            let this = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(reason) = this.look_up(looking).await {
                    tracing::warn!(reason, "the ledger's masters can't be looked up");
                }
            });
        }
    }

    async fn look_up(&self, mut looking: OwnedMutexGuard<Option<Instant>>) -> Result<(), String> {
        if let Some(last) = *looking {
            sleep_until(last + PAUSE).await;
        }
        *looking = Some(Instant::now());
        let before = self.map.load().masters();
        let found = timeout(LOOK_UP, self.topology.masters(&self.access, before.clone())).await;
        let found = found.map_err(|_| "the look-up of the masters took too long".to_owned())?;
        let mut ranges = found.map_err(|error: NotFound| error.to_string())?;
        ranges.sort_by_key(|range| range.first);
        let map = ranges.into_iter().map(|range| {
            let node = self.node_at(&range.master).map_err(|error| error.to_string())?;
            Ok((range, node))
        });
        let map = Map(map.collect::<Result<_, String>>()?);
        let mut masters = map.masters();
        self.nodes.retain(|address, _| masters.contains(address));
        self.map.store(Arc::new(map));
        let mut sorted = before;
        sorted.sort_by_key(ToString::to_string);
        masters.sort_by_key(ToString::to_string);
        if sorted != masters {
            self.changes.fetch_add(1, Ordering::AcqRel);
            let listed = masters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::info!(masters = listed, "the ledger's masters");
        }
        Ok(())
    }

    /// The server there, made anew where it was given up.
    fn node_at(&self, address: &Address) -> Result<Arc<Node>, Unavailable> {
        if let Some(node) = self.nodes.get(address).filter(|node| !node.is_given_up()) {
            return Ok(Arc::clone(&node));
        }
        let node = Arc::new(Node {
            address: address.clone(),
            client: self.access.client(address).map_err(failed)?,
            shared: OnceCell::new(),
            own: Mutex::default(),
            given_up: AtomicBool::new(false),
        });
        self.nodes.insert(address.clone(), Arc::clone(&node));
        Ok(node)
    }

    fn give_up(&self, key: &str) {
        if let Some(node) = self.map.load().node(slot_of(key)) {
            node.give_up();
        }
    }
}

impl Node {
    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What a failed call means for the server.
    fn after(&self, error: &RedisError) -> Unavailable {
        if !is_about_the_call(error) {
            self.give_up();
        }
        Unavailable::Store(format!("{}: {error}", self.address))
    }

    /// A new connection, to a master only.
    async fn connect(&self, patience: Duration) -> RedisResult<MultiplexedConnection> {
        if self.is_given_up() {
            // Others waited while it failed.
            return Err((ErrorKind::Io, "the server has just been given up").into());
        }
        let made = async {
            let mut connection = connect(&self.client, patience).await?;
            let role: Vec<Value> = cmd("ROLE").query_async(&mut connection).await?;
            match role.first() {
                Some(Value::BulkString(role)) if role == b"master" => Ok(connection),
                _ => Err((ErrorKind::Client, "the server is no master").into()),
            }
        };
        made.await.inspect_err(|_| self.give_up())
    }

    async fn call(&self, call: &Call<'_>, asking: bool) -> RedisResult<Vec<Value>> {
        if call.replicas == 0 {
            let shared = self.shared.get_or_try_init(|| self.connect(ANSWER)).await?;
            return call.send(&mut shared.clone(), asking).await;
        }
        let pooled = self.own.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut own = match pooled {
            Some(connection) => connection,
            None => self.connect(WAIT + ANSWER).await?,
        };
        // After an error it may be in any state, and is not pooled again.
        let values = call.send(&mut own, asking).await?;
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push(own);
        Ok(values)
    }
}

impl Call<'_> {
    async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        asking: bool,
    ) -> RedisResult<Vec<Value>> {
        match self.send_once(connection, asking).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async::<()>(connection).await?;
                self.send_once(connection, asking).await
            }
            sent => sent,
        }
    }

    async fn send_once(
        &self,
        connection: &mut MultiplexedConnection,
        asking: bool,
    ) -> RedisResult<Vec<Value>> {
        if self.replicas == 0 && !asking {
            let value = connection.send_packed_command(self.command).await?;
            return Ok(vec![value.extract_error()?]);
        }
        let mut line = redis::pipe();
        if asking {
            line.cmd("ASKING");
        }
        line.add_command(self.command.clone());
        if self.replicas > 0 {
            line.cmd("WAIT").arg(self.replicas).arg(WAIT.as_millis() as u64);
        }
        let values = connection.send_packed_commands(&line, 0, line.len()).await?;
        let values = values.into_iter().skip(usize::from(asking)).map(Value::extract_error);
        values.collect()
    }
}

/// Errors that say nothing against the server's being the master. Every other one does:
/// connections that break or stay silent, READONLY, LOADING, MASTERDOWN, CLUSTERDOWN, NOREPLICAS,
/// UNKILLABLE and whatever a later version invents.
fn is_about_the_call(error: &RedisError) -> bool {
    let codes = ["ERR", "NOPERM", "NOSCRIPT", "WRONGTYPE", "OOM", "MISCONF", "TRYAGAIN"];
    error.code().is_some_and(|code| codes.contains(&code))
}
