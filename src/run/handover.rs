//! A newer process takes over from an older one: how the two talk.
//!
//! On SIGUSR2 the older process starts the program at the path it was started from, with its own
//! arguments, and a socket as its standard input. Over it go:
//!
//! 1. older → newer: the listening sockets, the fingerprint of the rules, and how many tags have writes under
//!    way that were not judged;
//! 2. newer → older: that it serves, and the fingerprint of its rules. If this does not come, the older one
//!    goes on as before;
//! 3. older → newer: that it has settled its protected writes and let go of the ledger.
//!
//! The end of either process is the end of the socket, which says the rest.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::sockets::Sockets;

/// In the environment of a process that is to take over.
const TAKES_OVER: &str = "TAGLOCK_TAKES_OVER";
/// The first word of the first message: of another version, the newer process understands nothing.
const GREETING: &str = "taglock-handover-3";
const SERVING: &str = "serving ";
const RELEASED: &str = "released\n";
/// How long the newer process may take until it serves.
const START: Duration = Duration::from_secs(60);
/// How long the older one may take to send the sockets.
const GREET: Duration = Duration::from_secs(10);
const MAX_SOCKETS: usize = 128;

/// The newer process, seen from the older one.
pub(super) struct Newer {
    pub pid: u32,
    /// The fingerprint of the rules it applies.
    pub rules: String,
    link: UnixStream,
}

impl Newer {
    /// Starts it and waits until it serves. Blocks.
    ///
    /// # Errors
    /// Why it does not; it has been ended then.
    pub fn start(sockets: &Sockets, rules: &str, unjudged: usize) -> Result<Self, String> {
        let (link, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
        let mut words = std::env::args_os();
        let program = words.next().ok_or("the program's own name is not known")?;
        let mut command = Command::new(&program);
        command.args(words).env(TAKES_OVER, "1").stdin(OwnedFd::from(theirs));
        let shown = program.to_string_lossy();
        let mut child = command.spawn().map_err(|e| format!("`{shown}` can't be started: {e}"))?;
        // Ours is the only other end: its death is heard then.
        drop(command);
        match Self::greet(&link, sockets, rules, unjudged) {
            Ok(rules) => Ok(Self { pid: child.id(), rules, link }),
            Err(error) => Err(end(&mut child, &error)),
        }
    }

    /// The fingerprint of its rules, once it serves.
    fn greet(
        link: &UnixStream,
        sockets: &Sockets,
        rules: &str,
        unjudged: usize,
    ) -> io::Result<String> {
        let handles = sockets.handles();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if handles.len() > MAX_SOCKETS || !control.push(SendAncillaryMessage::ScmRights(&handles)) {
            return Err(io::Error::other("too many listening sockets"));
        }
        let text = format!("{GREETING} {rules} {unjudged}\n");
        sendmsg(link, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        link.set_read_timeout(Some(START))?;
        let line = read_line(link)?;
        let rules = line.strip_prefix(SERVING).and_then(|rules| rules.strip_suffix('\n'));
        rules.map(str::to_owned).ok_or_else(unexpected)
    }

    /// The ledger is free.
    pub fn released(&mut self) {
        // One that has ended needs no word.
        let _ = self.link.write_all(RELEASED.as_bytes());
    }
}

/// Ends a newer process that does not serve, and says what became of it.
fn end(child: &mut Child, error: &io::Error) -> String {
    // A reset is an end with the greeting unread.
    let ended = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    if ended && let Ok(status) = child.wait() {
        return format!("it ended with {status}; the log has its reason");
    }
    let _ = child.kill();
    let _ = child.wait();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            format!("it did not serve within {START:?}, and was ended")
        }
        _ => format!("{error}; it was ended"),
    }
}

/// The older process, seen from the newer one.
pub(super) struct Older {
    /// The fingerprint of the rules it applies.
    pub rules: String,
    /// How many tags had writes under way that were not judged, by these rules or by older ones.
    pub unjudged: usize,
    link: UnixStream,
}

impl Older {
    /// The older process and its sockets, where this one was started to take over.
    ///
    /// # Errors
    /// Why they can't be had, for the log.
    pub fn meet() -> Result<Option<(Self, Vec<TcpListener>)>, String> {
        if std::env::var_os(TAKES_OVER).is_none() {
            return Ok(None);
        }
        let met = Self::receive().map_err(|e| format!("nothing can be taken over: {e}"))?;
        Ok(Some(met))
    }

    fn receive() -> io::Result<(Self, Vec<TcpListener>)> {
        let link = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        link.set_read_timeout(Some(GREET))?;
        let mut text = [0; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let length = recvmsg(&link, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let mut sockets = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(handles) = message {
                sockets.extend(handles.map(TcpListener::from));
            }
        }
        let text = std::str::from_utf8(&text[..length]).ok().and_then(|t| t.strip_suffix('\n'));
        let words = text.map(|text| text.split(' ').collect::<Vec<_>>()).unwrap_or_default();
        match words.as_slice() {
            [GREETING, rules, unjudged] => {
                let unjudged = unjudged.parse().map_err(io::Error::other)?;
                Ok((Self { rules: (*rules).to_owned(), unjudged, link }, sockets))
            }
            _ => Err(io::Error::other("the older process speaks another version of the handover")),
        }
    }

    /// Tells it that this process serves, and by which rules.
    pub fn serving(&self, rules: &str) {
        // If it has ended meanwhile, all that is left to do is to serve.
        let _ = (&self.link).write_all(format!("{SERVING}{rules}\n").as_bytes());
    }

    /// Waits until it has let go of the ledger, or has ended. Blocks.
    pub fn wait_for_release(&self) -> Left {
        let line = self.link.set_read_timeout(None).and_then(|()| read_line(&self.link));
        match line {
            Ok(line) if line == RELEASED => Left::Released,
            Ok(_) | Err(_) => Left::Ended,
        }
    }
}

/// How an older process let go of the ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// The registry has answered all its writes.
    Released,
    /// It has ended, and the registry may still carry out what it had sent.
    Ended,
}

fn read_line(link: &UnixStream) -> io::Result<String> {
    let mut line = String::new();
    match BufReader::new(link).read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

fn unexpected() -> io::Error {
    io::Error::other("it said something else than expected")
}
