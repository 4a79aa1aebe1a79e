//! Which server is the master, and of what: told by settings, by sentinels, or by a Cluster.
//!
//! Sentinels and nodes of a Cluster are asked all at once. What most of them have answered is
//! compared, and the highest epoch, which each failover raises, counts: one that was away and
//! still believes in an old master is outvoted.

use std::collections::HashMap;

use redis::{Pipeline, RedisError, RedisResult, Value, from_redis_value, pipe};
use tokio::task::JoinSet;

use super::connect::{ANSWER, Access, Address, connect};

/// The slots of a Cluster. Elsewhere all of them belong to the one master.
pub(super) const SLOTS: u16 = 16_384;
/// So many nodes of a large Cluster are asked for its map.
const ASKED: usize = 9;

/// How the servers stand to each other.
#[derive(Clone)]
pub enum Topology {
    /// One master, at a fixed address.
    Fixed(Address),
    /// One master that the sentinels name; they have credentials of their own.
    Sentinel { sentinels: Vec<Address>, access: Access, master: String },
    /// Masters that share the slots; some of the nodes, to begin with.
    Cluster(Vec<Address>),
}

/// A master and the slots it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub first: u16,
    pub last: u16,
    pub master: Address,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NotFound {
    #[error("no sentinel names a master `{master}`: {reasons}")]
    NoMaster { master: String, reasons: String },
    #[error("no node tells the Cluster's map: {reasons}")]
    NoMap { reasons: String },
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// The slot of a key: that of what stands between its braces.
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key);
    crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes()) % SLOTS
}

impl Topology {
    /// Finds the masters. `known` are those of the last time.
    pub(super) async fn masters(
        &self,
        access: &Access,
        known: Vec<Address>,
    ) -> Result<Vec<Range>, NotFound> {
        match self {
            Self::Fixed(master) => {
                Ok(vec![Range { first: 0, last: SLOTS - 1, master: master.clone() }])
            }
            Self::Sentinel { sentinels, access, master } => {
                let mut question = pipe();
                question.cmd("SENTINEL").arg("MASTER").arg(master);
                let answers = ask_all(sentinels.clone(), access, &question).await?;
                let master = newest(answers, named)
                    .map_err(|reasons| NotFound::NoMaster { master: master.clone(), reasons })?;
                Ok(vec![Range { first: 0, last: SLOTS - 1, master }])
            }
            Self::Cluster(seeds) => {
                let mut nodes = seeds.clone();
                nodes.extend(known.into_iter().filter(|address| !seeds.contains(address)));
                nodes.truncate(ASKED.max(seeds.len()));
                let mut question = pipe();
                question.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
                let answers = ask_all(nodes, access, &question).await?;
                newest(answers, map).map_err(|reasons| NotFound::NoMap { reasons })
            }
        }
    }
}

type Answer = (Address, RedisResult<Vec<Value>>);

/// Asks all at once, and ends when more than half have answered, or all who can.
async fn ask_all(
    addresses: Vec<Address>,
    access: &Access,
    question: &Pipeline,
) -> RedisResult<Vec<Answer>> {
    let enough = addresses.len() / 2 + 1;
    let mut asked = JoinSet::new();
    for address in addresses {
        let client = access.client(&address)?;
        let question = question.clone();
        asked.spawn(async move {
            let answer = async {
                let mut connection = connect(&client, ANSWER).await?;
                let values: Vec<Value> = question.query_async(&mut connection).await?;
                Ok(values)
            };
            (address, answer.await)
        });
    }
    let mut answers: Vec<Answer> = Vec::new();
    while let Some(joined) = asked.join_next().await {
        // A task of ours neither panics nor is it cancelled while its set is there.
        let Ok(answer) = joined else { continue };
        answers.push(answer);
        if answers.iter().filter(|(_, answer)| answer.is_ok()).count() >= enough {
            break;
        }
    }
    Ok(answers)
}

/// The answer of the highest epoch; or why there is none.
fn newest<T>(
    answers: Vec<Answer>,
    read: impl Fn(&Address, Vec<Value>) -> Result<(u64, T), String>,
) -> Result<T, String> {
    let mut best: Option<(u64, T)> = None;
    let mut reasons = Vec::new();
    for (address, answer) in answers {
        let answer = answer.map_err(|error| error.to_string());
        match answer.and_then(|values| read(&address, values)) {
            Ok(found) if best.as_ref().is_none_or(|(epoch, _)| found.0 > *epoch) => {
                best = Some(found);
            }
            Ok(_) => {}
            Err(reason) => reasons.push(format!("{address}: {reason}")),
        }
    }
    best.map(|(_, found)| found).ok_or_else(|| reasons.join("; "))
}

/// The master a sentinel names, and the epoch of its election.
fn named(_: &Address, values: Vec<Value>) -> Result<(u64, Address), String> {
    let value = values.into_iter().next().unwrap_or(Value::Nil);
    let fields: HashMap<String, String> = from_redis_value(value).map_err(|e| e.to_string())?;
    let field = |name: &str| fields.get(name).map(String::as_str).unwrap_or_default();
    let flags = field("flags");
    if flags.split(',').any(|flag| matches!(flag, "s_down" | "o_down")) {
        return Err(format!("the master does not answer it ({flags})"));
    }
    let (Ok(port), Ok(epoch)) = (field("port").parse(), field("config-epoch").parse()) else {
        return Err("its answer is not understood".into());
    };
    Ok((epoch, Address { host: field("ip").to_owned(), port }))
}

/// A node's view of the Cluster, and the epoch of that view.
fn map(node: &Address, values: Vec<Value>) -> Result<(u64, Vec<Range>), String> {
    let (info, slots): (String, Vec<Vec<Value>>) =
        from_redis_value(Value::Array(values)).map_err(|e| e.to_string())?;
    let field = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    if field("cluster_state") != Some("ok") {
        return Err("the Cluster is down".into());
    }
    let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let ranges = slots.into_iter().filter_map(|parts| range(node, parts)).collect();
    Ok((epoch, ranges))
}

/// One line of `CLUSTER SLOTS`: first slot, last slot, the master, its replicas.
fn range(node: &Address, parts: Vec<Value>) -> Option<Range> {
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = parts.as_slice() else {
        return None;
    };
    let [host, Value::Int(port), ..] = master.as_slice() else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        // A node that does not know its own address is where it was asked.
        _ => "",
    };
    let host = match host {
        "?" => return None,
        "" => node.host.clone(),
        host => host.to_owned(),
    };
    Some(Range {
        first: u16::try_from(*first).ok()?,
        last: u16::try_from(*last).ok()?,
        master: Address { host, port: u16::try_from(*port).ok()? },
    })
}

/// Where `MOVED` and `ASK` point; `from` is who said it.
pub(super) fn pointed_to(error: &RedisError, from: &Address) -> Option<Address> {
    let (address, _slot) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.is_empty() { from.host.clone() } else { host.to_owned() };
    Some(Address { host, port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_repository_share_a_slot() {
        // From the Cluster's specification.
        assert_eq!(slot_of("123456789"), 0x31C3 % SLOTS);
        assert_eq!(slot_of("a{user1000}b"), slot_of("{user1000}.following"));
        assert_eq!(slot_of("a{}b"), crc16::State::<crc16::XMODEM>::calculate(b"a{}b") % SLOTS);
        assert_ne!(slot_of("{a}"), slot_of("{b}"));
    }

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".into(), port }
    }

    #[test]
    fn the_highest_epoch_counts_and_a_master_that_is_down_does_not() {
        let says = |port: i64, epoch: &str, flags: &str| {
            let fields = ["ip", "10.0.0.1", "port", &port.to_string(), "config-epoch", epoch];
            let fields = fields.into_iter().chain(["flags", flags]);
            let fields = fields.map(|text| Value::BulkString(text.as_bytes().to_vec())).collect();
            (address(1), Ok(vec![Value::Array(fields)]))
        };
        let find = |answers| newest(answers, named);
        let old = || says(6379, "3", "master");
        assert_eq!(find(vec![old(), says(6380, "4", "master"), old()]), Ok(address(6380)));
        assert_eq!(find(vec![says(6380, "4", "s_down,master"), old()]), Ok(address(6379)));
        let reason = find(vec![says(6380, "4", "master,o_down")]).unwrap_err();
        assert!(reason.starts_with("10.0.0.1:1: the master does not answer it"), "{reason}");
    }

    #[test]
    fn a_map_is_read_and_a_missing_host_is_who_was_asked() {
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port)]);
        let line =
            |first, last, master| Value::Array(vec![Value::Int(first), Value::Int(last), master]);
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let info = |state: &str| text(&format!("cluster_state:{state}\r\ncluster_current_epoch:7"));
        let slots = || {
            Value::Array(vec![
                line(0, 99, node(text("10.0.0.1"), 7000)),
                line(100, 199, node(Value::Nil, 7001)),
                line(200, 299, node(text(""), 7002)),
                line(300, 399, node(text("?"), 7003)),
            ])
        };
        let (epoch, ranges) = map(&address(1), vec![info("ok"), slots()]).unwrap();
        assert_eq!(epoch, 7);
        let expected = [(0, 99, 7000), (100, 199, 7001), (200, 299, 7002)]
            .map(|(first, last, port)| Range { first, last, master: address(port) });
        assert_eq!(ranges, expected);
        assert!(map(&address(1), vec![info("fail"), slots()]).is_err());
    }
}
