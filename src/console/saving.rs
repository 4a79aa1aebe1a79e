//! The ledger as a file, and back.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::Path;

use futures_util::StreamExt;

use super::{Failure, Telling, Way, actor, aside, json};
use crate::admin::export::{self, Unread};
use crate::admin::model::{ExportFooter, ExportHeader, LedgerEntry, RestoreConflict, Restored};

/// Lines of one request.
const AT_ONCE: usize = 1000;

/// # Errors
/// See [`Failure`].
pub fn export(way: &Way) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = match way {
        Way::Running(client) => {
            let response = client.stream("/v1/export", &[])?;
            let cut = |e| Failure::Unknown(format!("the export is cut: {e}"));
            let mut reader = response.into_body().into_reader();
            let mut buffer = vec![0; 64 << 10];
            loop {
                match reader.read(&mut buffer).map_err(cut)? {
                    0 => break Ok(()),
                    n => {
                        if let Err(error) = out.write_all(&buffer[..n]) {
                            break Err(error);
                        }
                    }
                }
            }
        }
        Way::Stopped(stopped) => stopped.runtime.block_on(async {
            let mut lines = std::pin::pin!(export::export(std::sync::Arc::clone(&stopped.ledger)));
            while let Some(text) = lines.next().await {
                if let Err(error) = out.write_all(text?.as_bytes()) {
                    return Ok(Err(error));
                }
            }
            Ok::<_, Failure>(Ok(()))
        })?,
    };
    match written.and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Failure::Unknown(format!("the export could not be written: {e}"))),
        Ok(()) => Ok(()),
    }
}

/// # Errors
/// See [`Failure`].
pub fn restore(
    way: &Way,
    telling: Telling,
    file: &Path,
    named: Option<String>,
) -> Result<(), Failure> {
    let actor = actor(named);
    let unread = |e: std::io::Error| Failure::Usage(format!("`{}`: {e}", file.display()));
    let reader: Box<dyn Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin()),
        _ => Box::new(File::open(file).map_err(unread)?),
    };
    let mut restored = Restored::default();
    let mut reading = Reading::default();
    let mut lines = BufReader::new(reader).lines();
    loop {
        let mut entries = Vec::new();
        for line in lines.by_ref() {
            entries.extend(reading.line(&line.map_err(unread)?).map_err(Failure::Usage)?);
            if entries.len() == AT_ONCE {
                break;
            }
        }
        if entries.is_empty() {
            break;
        }
        add(&mut restored, some(way, &entries, &actor)?);
    }
    if reading.header.is_none() {
        return Err(Failure::Usage(format!("`{}` is no export of a ledger", file.display())));
    }
    telling.tell(&restored, || {
        let mut text = String::new();
        for RestoreConflict { repository, tag, export, ledger } in &restored.conflicts {
            text += &format!(
                "{repository}:{tag} conflict: the ledger has {ledger}, the export {export}\n"
            );
        }
        text
    })?;
    let Restored { sealed, already, pending, conflicts } = &restored;
    aside(&format!(
        "bound {sealed}, bound before {already}, conflicts {} (left as the ledger has them), claims \
         not restored {pending}",
        conflicts.len()
    ));
    match reading.whole() {
        _ if !conflicts.is_empty() => Err(Failure::Told),
        Ok(()) => Ok(()),
        Err(why) => Err(Failure::Unknown(why)),
    }
}

/// Where in an export the reading is.
#[derive(Default)]
struct Reading {
    header: Option<ExportHeader>,
    footer: Option<ExportFooter>,
    entries: usize,
    number: usize,
}

impl Reading {
    fn line(&mut self, line: &str) -> Result<Option<LedgerEntry>, String> {
        self.number += 1;
        if line.trim().is_empty() {
            return Ok(None);
        }
        let wrong = |e: serde_json::Error| format!("line {}: {e}", self.number);
        if self.header.is_none() {
            let header: ExportHeader = serde_json::from_str(line)
                .map_err(|_| "it does not begin as an export of a ledger".to_owned())?;
            if header.format != export::FORMAT {
                return Err(format!(
                    "its format is `{}`, and not `{}`",
                    header.format,
                    export::FORMAT
                ));
            }
            aside(&format!("an export of {} of the ledger {}", header.exported, header.ledger));
            self.header = Some(header);
            return Ok(None);
        }
        if let Ok(footer) = serde_json::from_str(line) {
            self.footer = Some(footer);
            return Ok(None);
        }
        let entry = serde_json::from_str(line).map_err(wrong)?;
        self.entries += 1;
        Ok(Some(entry))
    }

    fn whole(&self) -> Result<(), String> {
        match &self.footer {
            Some(footer) if footer.entries == self.entries => Ok(()),
            _ => Err(format!(
                "the export is not whole: {} entries were there, and its end is missing",
                self.entries
            )),
        }
    }
}

fn some(way: &Way, entries: &[LedgerEntry], actor: &str) -> Result<Restored, Failure> {
    match way {
        Way::Running(client) => {
            let lines: String = entries.iter().map(json).collect();
            client.post_lines("/v1/restore", &[("actor", actor)], &lines)
        }
        Way::Stopped(stopped) => {
            let outcome = export::restore(&*stopped.ledger, entries);
            match stopped.runtime.block_on(outcome) {
                Ok(outcome) => Ok(outcome.restored),
                Err(Unread::Invalid(message)) => Err(Failure::Usage(message)),
                Err(Unread::Ledger(error)) => Err(error.into()),
            }
        }
    }
}

fn add(all: &mut Restored, more: Restored) {
    all.sealed += more.sealed;
    all.already += more.already;
    all.pending += more.pending;
    all.conflicts.extend(more.conflicts);
}
