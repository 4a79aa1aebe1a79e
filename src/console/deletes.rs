//! Delete marks.

use super::{Failure, Telling, Way, actor};
use crate::admin::model::{ClearDelete, ClearedDelete, DeleteMark, DeleteMarks};

/// # Errors
/// See [`Failure`].
pub fn delete_marks(way: &Way, telling: Telling, repository: &str) -> Result<(), Failure> {
    let Way::Running(client) = way else {
        return Err(Failure::Unknown("only a running taglock tells its delete marks".into()));
    };
    let marks: DeleteMarks = client.get("/v1/delete-marks", &[("repository", repository)])?;
    telling.tell(&marks, || marks.marks.iter().map(line).collect())
}

fn line(mark: &DeleteMark) -> String {
    let DeleteMark { digest, since, deletes } = mark;
    format!("{digest} since {since}, {deletes} without a definitive answer\n")
}

/// # Errors
/// See [`Failure`].
pub fn clear_delete(
    way: &Way,
    telling: Telling,
    mut request: ClearDelete,
    named: Option<String>,
) -> Result<(), Failure> {
    let Way::Running(client) = way else {
        return Err(Failure::Unknown("a delete mark is removed by a running taglock".into()));
    };
    if request.reason.trim().is_empty() {
        return Err(Failure::Usage("`--reason` says why, for the audit".into()));
    }
    request.actor = actor(named);
    let cleared: ClearedDelete = client.post("/v1/clear-delete", &request)?;
    let ClearDelete { repository, digest, .. } = &request;
    if cleared.deletes == 0 {
        return Err(Failure::No(format!("no delete mark stands on {digest} in `{repository}`")));
    }
    telling.tell(&cleared, || format!("tags of `{repository}` can be bound to {digest} again\n"))
}
