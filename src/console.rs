//! The operators' commands: what they ask of a running taglock, or read in the store of one that does
//! not run, and how they tell it. Data goes to standard output, everything else to standard error.

mod client;
mod deletes;
mod entries;
mod progress;
mod queue;
mod saving;
mod walks;

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;

use serde::Serialize;

use crate::ledger::Ledger;
use crate::name::{Naming, UpstreamName};

pub use client::Client;
pub use deletes::{clear_delete, delete_marks};
pub use entries::{explain, list, release, show};
pub use saving::{export, restore};
pub use walks::{import, verify};

/// Why a command ended otherwise than well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The answer is no, and has been told.
    #[error("")]
    Told,
    /// The answer is no.
    #[error("{0}")]
    No(String),
    /// What was asked makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It could not be found out.
    #[error("{0}")]
    Unknown(String),
    /// Somebody did not answer: it could not be found out now.
    #[error("{0}")]
    Down(String),
}

/// A store that no taglock serves from now.
pub struct Stopped {
    pub ledger: Arc<dyn Ledger>,
    pub upstream: UpstreamName,
    pub naming: Arc<Naming>,
    pub runtime: tokio::runtime::Runtime,
}

/// How the ledger is reached.
pub enum Way {
    Running(Client),
    Stopped(Stopped),
}

/// How a command tells what it found.
#[derive(Clone, Copy, Debug)]
pub struct Telling {
    pub json: bool,
}

impl Telling {
    /// Data, as JSON or as text.
    fn tell(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.json {
            true => data(&json(value)),
            false => data(&text()),
        }
    }
}

/// One line of JSON.
fn json(value: &impl Serialize) -> String {
    // Texts and numbers in fixed shapes: nothing here that a serialiser could refuse.
    serde_json::to_string(value).expect("texts and numbers are JSON") + "\n"
}

/// To standard output; a reader that has left is no failure of ours, but needs no more.
fn data(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::Unknown(e.to_string())),
        _ => Ok(()),
    }
}

/// To standard error.
pub fn aside(text: &str) {
    // Where it can't be written, there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "taglock: {text}");
}

fn on_a_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Who runs the command, for the audit.
fn actor(named: Option<String>) -> String {
    named.unwrap_or_else(|| whoami::username().unwrap_or_else(|_| "unknown".to_owned()))
}
