//! The one place every protected decision goes through, and what operators change: one line each.

mod line;
mod user;
mod writer;

pub use line::{Act, Decision, Outcome, Subject};
pub use user::{User, user_of};

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Metrics;
use crate::name::{Digest, Tag};
use line::Line;
use writer::Writer;

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// To the log, under the target `taglock::audit`.
    #[default]
    Log,
    /// To standard output, as JSON.
    Stdout,
    /// To this file, as JSON. It may be moved away at any time, and goes on under its name.
    File(PathBuf),
}

#[derive(Default)]
pub struct Audit {
    /// `None` for the log.
    writer: Option<Writer>,
}

impl Audit {
    /// # Errors
    /// When the file can't be opened, or its thread not started.
    pub fn to(output: &Output, metrics: Arc<Metrics>) -> io::Result<Self> {
        let writer = match output {
            Output::Log => None,
            Output::Stdout => Some(Writer::stdout(metrics)?),
            Output::File(path) => Some(Writer::file(path, metrics)?),
        };
        Ok(Self { writer })
    }

    /// What was asked, and what became of it.
    pub fn record(&self, decision: &Decision, outcome: &Outcome) {
        self.write(Line::decision(decision, outcome));
    }

    /// A push that the rules let through took the place of an entry from stricter days.
    pub fn superseded(&self, decision: &Decision, tag: &Tag, bound: Option<&Digest>) {
        let decision = Decision { tags: vec![tag.clone()], ..decision.clone() };
        let outcome = Outcome {
            label: "superseded",
            bound: bound.copied(),
            registry_status: None,
            detail: None,
        };
        self.write(Line::decision(&decision, &outcome));
    }

    /// What an operator had done to a tag's entry.
    pub fn act(&self, act: &Act<'_>) {
        self.write(Line::act(act));
    }

    /// The settings changed while the process ran: `what` is one of `rules` and `certificate`, and
    /// `outcome` one of `applied` and `refused`.
    pub fn change(&self, what: &'static str, outcome: &'static str, detail: String) {
        self.write(Line::change(what, outcome, detail));
    }

    /// The file may have been moved: it is opened anew.
    pub fn reopen(&self) {
        if let Some(writer) = &self.writer {
            writer.reopen();
        }
    }

    /// Waits, bounded, until what was recorded has been written. Blocks.
    pub fn flush(&self) {
        if let Some(writer) = &self.writer {
            writer.flush();
        }
    }

    fn write(&self, line: Line) {
        match &self.writer {
            Some(writer) => writer.write(line),
            None => line.log(),
        }
    }
}
