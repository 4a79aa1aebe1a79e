//! Writes lines off the path of requests.
//!
//! A line that can't be written, because the disk is full or does not keep up, goes to the log
//! instead and is counted: no push waits for its audit, and none fails for it
//! (`docs/decisions/0016-audit.md`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write, stdout};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use super::super::Metrics;
use super::line::Line;

/// How many lines may wait; some 4 MiB.
const QUEUE: usize = 8192;
/// How long an end waits for the last lines.
const FLUSH: Duration = Duration::from_secs(5);

pub(super) struct Writer {
    queue: SyncSender<Job>,
    metrics: Arc<Metrics>,
}

enum Job {
    Write(Box<Line>),
    Reopen,
    Flush(SyncSender<()>),
}

impl Writer {
    pub fn stdout(metrics: Arc<Metrics>) -> io::Result<Self> {
        Self::start(Target::Stdout, metrics)
    }

    pub fn file(path: &Path, metrics: Arc<Metrics>) -> io::Result<Self> {
        let file = Some(open(path)?);
        Self::start(Target::File(AuditFile { path: path.to_owned(), file, torn: false }), metrics)
    }

    fn start(target: Target, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (queue, jobs) = sync_channel(QUEUE);
        let counted = Arc::clone(&metrics);
        let thread = thread::Builder::new().name("audit".into());
        thread.spawn(move || run(&jobs, target, &counted))?;
        Ok(Self { queue, metrics })
    }

    pub fn write(&self, line: Line) {
        match self.queue.try_send(Job::Write(Box::new(line))) {
            Ok(()) => {}
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                if let Job::Write(line) = job {
                    to_log(&line, "not-kept-up", &self.metrics);
                }
            }
        }
    }

    pub fn reopen(&self) {
        // A queue that is full is looked at for a moved file with every line anyway.
        let _ = self.queue.try_send(Job::Reopen);
    }

    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Job::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

fn run(jobs: &Receiver<Job>, mut target: Target, metrics: &Metrics) {
    let mut failing = false;
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Write(line) => match target.write(&line.json()) {
                Ok(()) => {
                    failing = false;
                    metrics.audit("written");
                }
                Err(error) => {
                    if !failing {
                        tracing::error!(%error, "the audit can't be written; it goes to the log");
                    }
                    failing = true;
                    to_log(&line, "failed", metrics);
                }
            },
            Job::Reopen => target.reopen(),
            // Who asked may have left.
            Job::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// Counted once it is there: who sees the count finds the line.
fn to_log(line: &Line, why: &'static str, metrics: &Metrics) {
    line.log();
    metrics.audit(why);
}

enum Target {
    Stdout,
    File(AuditFile),
}

impl Target {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = stdout().lock();
                out.write_all(line)?;
                out.flush()
            }
            Self::File(file) => file.write(line),
        }
    }

    fn reopen(&mut self) {
        if let Self::File(file) = self {
            file.file = None;
        }
    }
}

struct AuditFile {
    path: PathBuf,
    /// `None` where it is to be opened.
    file: Option<File>,
    /// The last line is there in part.
    torn: bool,
}

impl AuditFile {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.has_moved() {
            self.file = None;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.torn = false;
                self.file.insert(open(&self.path)?)
            }
        };
        if self.torn {
            file.write_all(b"\n")?;
            self.torn = false;
        }
        // One call for a line: of two processes that write to the file, neither tears the other's.
        let result = file.write_all(line);
        self.torn = result.is_err();
        result
    }

    /// Whether another file, or none, has the name now.
    fn has_moved(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let identity =
            |found: io::Result<std::fs::Metadata>| found.ok().map(|m| (m.dev(), m.ino()));
        identity(file.metadata()) != identity(std::fs::metadata(&self.path))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing_subscriber::Layer;
    use tracing_subscriber::layer::{Context, SubscriberExt};

    use super::*;

    fn line(detail: &str) -> Line {
        Line::change("rules", "applied", detail.into())
    }

    #[test]
    fn a_file_that_is_moved_or_removed_goes_on_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let writer = Writer::file(&path, Arc::new(Metrics::new())).unwrap();
        let read = |path: &Path| {
            writer.flush();
            std::fs::read_to_string(path).unwrap()
        };
        writer.write(line("one"));
        assert!(read(&path).ends_with("\"detail\":\"one\"}\n"));
        let moved = folder.path().join("audit.jsonl.1");
        std::fs::rename(&path, &moved).unwrap();
        writer.write(line("two"));
        assert!(!read(&moved).contains("two") && read(&path).contains("two"));
        std::fs::remove_file(&path).unwrap();
        writer.write(line("three"));
        assert_eq!(read(&path).lines().count(), 1);
        writer.reopen();
        writer.write(line("four"));
        assert_eq!(read(&path).lines().count(), 2);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_nobody_waits() {
        let metrics = Arc::new(Metrics::new());
        let writer = Writer::file(Path::new("/dev/full"), Arc::clone(&metrics)).unwrap();
        for n in 0..10 {
            writer.write(line(&n.to_string()));
        }
        writer.flush();
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains("taglock_audit_lines_total{result=\"failed\"} 10"), "{text}");
    }

    #[test]
    fn what_a_slow_disk_does_not_take_is_counted_and_nobody_waits() {
        let metrics = Arc::new(Metrics::new());
        let (queue, _jobs) = sync_channel(2);
        let writer = Writer { queue, metrics: Arc::clone(&metrics) };
        for n in 0..5 {
            writer.write(line(&n.to_string()));
        }
        let text = String::from_utf8(metrics.render()).unwrap();
        assert!(text.contains("taglock_audit_lines_total{result=\"not-kept-up\"} 3"), "{text}");
    }

    #[test]
    fn what_goes_to_the_log_is_there_before_it_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let (queue, _jobs) = sync_channel(0);
        let writer = Writer { queue, metrics: Arc::clone(&metrics) };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Log { metrics, seen: Arc::clone(&seen) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log), || {
            for n in 0..3 {
                writer.write(line(&n.to_string()));
            }
        });
        assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
    }

    /// A log that notes, with each line, how many are counted.
    struct Log {
        metrics: Arc<Metrics>,
        seen: Arc<Mutex<Vec<usize>>>,
    }

    impl<S: tracing::Subscriber> Layer<S> for Log {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            let text = String::from_utf8(self.metrics.render()).unwrap();
            let counted = |n: &usize| text.contains(&format!("{{result=\"not-kept-up\"}} {n}\n"));
            self.seen.lock().unwrap().push((1..9).find(counted).unwrap_or(0));
        }
    }
}
