//! The pipes that bytes are spliced through, and those that are kept for the next body.
//!
//! What a user's pipes may hold together is bounded (`fs.pipe-user-pages-soft`, 64 MiB unless it was
//! changed; root is not held to it, but often is in a container). Beyond it a pipe holds two pages,
//! and each turn moves so little that copying costs less: such a pipe is not used. So that the share
//! is enough for more bodies at once, the later ones get less of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::socket::Socket;

/// The room of a large pipe. One of half of it costs little more, one of a quarter half as much
/// again: each turn is two system calls.
pub const PIPE: usize = 1 << 20;
/// With less, copying costs less.
const ENOUGH: usize = PIPE / 4;
/// So many are large, and as many empty ones are kept: half of the share, which another process of the
/// user's may need.
const LARGE: usize = 32;
/// With so many, those of half the room take 24 MiB; 32 of the smallest take the last 8.
const MEDIUM: usize = LARGE + 48;

/// How many there are.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// The room of one more.
const fn room_for(alive: usize) -> usize {
    match alive {
        0..LARGE => PIPE,
        LARGE..MEDIUM => PIPE / 2,
        _ => ENOUGH,
    }
}

/// A pipe for one body at a time.
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes that it holds at the least.
    room: usize,
    _counted: Counted,
}

/// Counts as long as it lives.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

static KEPT_ONES: Mutex<Kept> = Mutex::new(Kept { pipes: Vec::new(), at_most: LARGE });

struct Kept {
    pipes: Vec<Pipe>,
    at_most: usize,
}

impl Kept {
    fn all() -> MutexGuard<'static, Self> {
        KEPT_ONES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&mut self, pipe: Pipe) {
        // Only large ones: those to come may be fewer.
        if self.pipes.len() < self.at_most && pipe.room >= PIPE {
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
        let wanted = room_for(ALIVE.fetch_add(1, Ordering::Relaxed));
        let _counted = Counted;
        // Refused where so much is not left of the share, or is more than one may have
        // (`fs.pipe-max-size`).
        let mut rooms = [wanted, PIPE / 2, ENOUGH].into_iter();
        let room = rooms.find_map(|room| fcntl_setpipe_size(&write, room).ok());
        Ok(room.map(|room| Self { read, write, room, _counted }))
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

    use rustix::pipe::fcntl_getpipe_size;
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
    }

    #[test]
    fn so_many_large_ones_are_kept_and_none_once_the_process_is_to_end() {
        let mut kept = Kept { pipes: Vec::new(), at_most: 2 };
        let mut left = |before: fn(&mut Kept), room| {
            before(&mut kept);
            for _ in 0..3 {
                kept.put(Pipe { room, ..Pipe::of_a_test() });
            }
            kept.pipes.len()
        };
        assert_eq!(left(|_| {}, PIPE - 1), 0, "one of those that are less large");
        assert_eq!((left(|_| {}, PIPE), left(Kept::none_any_more, PIPE)), (2, 0));
    }

    #[test]
    fn beyond_a_users_share_there_is_none_and_what_is_let_go_makes_room() {
        // A thread may be somebody of its own: root is not held to a share.
        let somebody = thread::spawn(|| {
            if geteuid().is_root() {
                let uid = Uid::from_raw(54_321);
                set_thread_res_uid(uid, uid, uid).unwrap();
            }
            let mut made: Vec<_> = (0..200).map_while(|_| Pipe::new().unwrap()).collect();
            let share = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
            // 0 is no bound, and where there is more nobody may be refused.
            let usual = (1..=16_384).contains(&share.trim().parse::<u32>().unwrap());
            assert!(!made.is_empty() && (made.len() < 200 || !usual), "{} of {share}", made.len());
            let size = |pipe: &Pipe| fcntl_getpipe_size(&pipe.write).unwrap();
            assert!(made.iter().all(|pipe| size(pipe) >= ENOUGH && size(pipe) == pipe.room));
            made.truncate(made.len() / 2);
            assert!(Pipe::new().unwrap().is_some());
        });
        somebody.join().unwrap();
    }

    #[test]
    fn the_usual_share_is_enough_for_a_hundred_and_twelve() {
        let share = 16_384 * 4096;
        assert_eq!((0..112).map(room_for).sum::<usize>(), share);
        assert_eq!((room_for(31), room_for(32), room_for(80)), (PIPE, PIPE / 2, ENOUGH));
    }
}
