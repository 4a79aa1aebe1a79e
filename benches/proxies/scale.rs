//! What taglock's costs grow with. What grows faster than it must is a defect.

#[path = "scale/connections.rs"]
pub mod connections;
#[path = "scale/rules.rs"]
pub mod rules;
#[path = "scale/tags.rs"]
pub mod tags;
