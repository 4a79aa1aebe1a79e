//! The pipes that bytes are spliced through, and those that are kept for the next body.
//!
//! What a user's pipes may hold together is bounded (`fs.pipe-user-pages-soft`, 64 MiB unless it was
//! changed; root is not held to it). Beyond it a pipe holds two pages, and each turn moves so
//! little that copying costs less: such a pipe is not used, and never kept.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};

use super::socket::Socket;

/// A pipe's room. Small ones cost twice the time: each turn is two system calls.
pub const PIPE: usize = 1 << 20;
/// With less, copying costs less.
const ENOUGH: usize = 256 * 1024;
/// Empty ones that are kept: half of the user's share, which another process of theirs may need.
const KEPT: usize = 32;

/// A pipe for one body at a time.
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

static KEPT_ONES: Mutex<Kept> = Mutex::new(Kept { pipes: Vec::new(), at_most: KEPT });

struct Kept {
    pipes: Vec<Pipe>,
    at_most: usize,
}

impl Kept {
    fn all() -> MutexGuard<'static, Self> {
        KEPT_ONES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&mut self, pipe: Pipe) {
        if self.pipes.len() < self.at_most {
            self.pipes.push(pipe);
        }
    }

    fn none_any_more(&mut self) {
        self.at_most = 0;
        self.pipes = Vec::new();
    }
}

/// Keeps none any more: a newer process has a use for the user's share.
pub fn keep_none() {
    Kept::all().none_any_more();
}

impl Pipe {
    /// An empty one, or none where the user's share of pipes is used up.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn take() -> io::Result<Option<Self>> {
        // Not locked while one is made.
        let kept = Kept::all().pipes.pop();
        kept.map_or_else(Self::new, |pipe| Ok(Some(pipe)))
    }

    fn new() -> io::Result<Option<Self>> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // It says how much there is, also where that is not all.
        let room = fcntl_setpipe_size(&write, PIPE).or_else(|_| fcntl_getpipe_size(&write));
        Ok((room.unwrap_or(0) >= ENOUGH).then_some(Self { read, write }))
    }

    /// Keeps it for the next body: nothing is in it.
    pub fn give_back(self) {
        Kept::all().put(self);
    }

    /// Takes what a socket has, at most so much; 0 at its end. A pipe that is full takes nothing
    /// either.
    ///
    /// # Errors
    /// What became of the connection, or that it would have to wait.
    pub fn fill(&self, source: &Socket, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(source, None, &self.write, None, most, flags)?)
    }

    /// Gives some of the bytes that are held; more may follow at once.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn empty(&self, sink: &Socket, held: usize, more: bool) -> io::Result<usize> {
        sink.when_writable(|| self.drain(sink, held, more)).await
    }

    /// The same, of what the connection takes at once.
    ///
    /// # Errors
    /// What became of the connection, or that it would have to wait.
    pub fn drain(&self, sink: &Socket, held: usize, more: bool) -> io::Result<usize> {
        let more = if more { SpliceFlags::MORE } else { SpliceFlags::empty() };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK | more;
        Ok(splice(&self.read, None, sink, None, held, flags)?)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::{Uid, geteuid};
    use rustix::thread::set_thread_res_uid;

    use super::*;

    impl Pipe {
        /// Where tests don't run as root, the one below may have the user's whole share.
        pub fn of_a_test() -> Self {
            loop {
                if let Some(pipe) = Self::take().unwrap() {
                    return pipe;
                }
                thread::yield_now();
            }
        }

        fn room(&self) -> usize {
            fcntl_getpipe_size(&self.write).unwrap()
        }
    }

    #[test]
    fn so_many_are_kept_and_none_once_the_process_is_to_end() {
        let mut kept = Kept { pipes: Vec::new(), at_most: 2 };
        let mut left = |before: fn(&mut Kept)| {
            before(&mut kept);
            for _ in 0..3 {
                kept.put(Pipe::of_a_test());
            }
            kept.pipes.len()
        };
        assert_eq!((left(|_| {}), left(Kept::none_any_more)), (2, 0));
    }

    #[test]
    fn beyond_a_users_share_there_is_none_and_what_is_let_go_makes_room() {
        // A thread may be somebody of its own: root is not held to a share.
        let somebody = thread::spawn(|| {
            if geteuid().is_root() {
                let uid = Uid::from_raw(54_321);
                set_thread_res_uid(uid, uid, uid).unwrap();
            }
            let mut made: Vec<_> = (0..1000).map_while(|_| Pipe::new().unwrap()).collect();
            assert!((1..1000).contains(&made.len()), "{}", made.len());
            assert!(made.iter().all(|pipe| pipe.room() >= ENOUGH));
            made.truncate(made.len() / 2);
            assert_eq!(Pipe::new().unwrap().unwrap().room(), PIPE);
        });
        somebody.join().unwrap();
    }
}
