//! The last refusals, kept in memory for operators: what somebody asks about is seldom old.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// How many are kept.
pub const KEPT: usize = 200;
/// How much of a path is.
const PATH: usize = 300;

/// A request that taglock itself refused. Nothing in it is a credential: no header, no query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub at: SystemTime,
    pub id: String,
    pub client: IpAddr,
    /// As far as the credentials show a name.
    pub user: Option<String>,
    pub method: String,
    pub path: String,
    pub status: u16,
    /// The code of the error document.
    pub code: &'static str,
    /// As in the metric.
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Default)]
pub struct Refusals {
    kept: Mutex<VecDeque<Refused>>,
}

impl Refusals {
    pub fn note(&self, mut refused: Refused) {
        if let Some((end, _)) = refused.path.char_indices().nth(PATH) {
            refused.path.truncate(end);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_back();
        }
        kept.push_front(refused);
    }

    /// The latest first.
    pub fn list(&self) -> Vec<Refused> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_long_paths_cut() {
        let refusals = Refusals::default();
        for n in 0..KEPT + 3 {
            refusals.note(Refused {
                at: SystemTime::UNIX_EPOCH,
                id: n.to_string(),
                client: [127, 0, 0, 1].into(),
                user: None,
                method: "PUT".into(),
                path: "é".repeat(PATH + 1),
                status: 409,
                code: "DENIED",
                reason: "immutable",
                message: "no".into(),
            });
        }
        let list = refusals.list();
        assert_eq!((list.len(), list[0].id.as_str()), (KEPT, "202"));
        assert_eq!(list[0].path.chars().count(), PATH);
    }
}
