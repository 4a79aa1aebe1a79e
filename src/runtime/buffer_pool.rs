//! Buffers that a thread has used and uses again.
//!
//! A small read needs a few for a moment: for the request, for the answer, for what goes out. Kept by
//! its thread, the last one used comes first, and is still in the processor's cache. Who waits for a
//! connection's first byte holds none.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The usual header fits.
const SMALL: usize = 4 * 1024;
/// A header and a manifest of the usual size fit.
const LARGE: usize = 16 * 1024;
/// A thread keeps so many bytes of each size.
const KEPT: usize = 256 * 1024;

#[derive(Default)]
struct Kept {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

thread_local! {
    static KEPT_HERE: RefCell<Kept> = RefCell::default();
}

#[derive(Clone, Copy)]
enum Size {
    Small,
    Large,
}

impl Size {
    fn bytes(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }

    fn of<T>(self, act: impl FnOnce(&mut Vec<Vec<u8>>) -> T) -> Option<T> {
        let act = |kept: &RefCell<Kept>| {
            let mut kept = kept.borrow_mut();
            act(match self {
                Self::Small => &mut kept.small,
                Self::Large => &mut kept.large,
            })
        };
        // A thread that ends keeps nothing any more.
        KEPT_HERE.try_with(act).ok()
    }
}

/// A buffer, empty at first, that goes back to whichever thread drops it.
pub struct PooledBuffer {
    bytes: Vec<u8>,
    size: Size,
}

impl PooledBuffer {
    /// For a request.
    pub fn small() -> Self {
        Self::take(Size::Small)
    }

    /// For an answer.
    pub fn large() -> Self {
        Self::take(Size::Large)
    }

    /// For a request that is still to come: see [`Self::fill`].
    pub fn small_later() -> Self {
        Self { bytes: Vec::new(), size: Size::Small }
    }

    /// For an answer that is still to come.
    pub fn large_later() -> Self {
        Self { bytes: Vec::new(), size: Size::Large }
    }

    fn take(size: Size) -> Self {
        let kept = size.of(Vec::pop).flatten();
        Self { bytes: kept.unwrap_or_else(|| Vec::with_capacity(size.bytes())), size }
    }

    /// Reads what there is after what was read before, as much as there is room for. As long as
    /// nothing was read, the buffer is there only while there is something to read. 0 at the end.
    ///
    /// # Errors
    /// What became of the connection.
    pub async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        poll_fn(|context| {
            if self.bytes.capacity() == 0 {
                *self = Self::take(self.size);
            }
            // It keeps nothing from one time to the next.
            let read = pin!(from.read_buf(&mut self.bytes)).poll(context);
            if self.bytes.is_empty() {
                self.give_back();
            }
            read
        })
        .await
    }

    /// Leaves it without room.
    fn give_back(&mut self) {
        let (mut bytes, size) = (std::mem::take(&mut self.bytes), self.size);
        // What has grown is not worth its memory.
        if bytes.capacity() == size.bytes() {
            bytes.clear();
            size.of(|kept| {
                if kept.len() < KEPT / size.bytes() {
                    kept.push(bytes);
                }
            });
        }
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Deref for PooledBuffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for PooledBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt as _, duplex};
    use tokio::time::{Duration, timeout};

    use super::*;

    fn kept(size: Size) -> usize {
        size.of(|kept| kept.len()).unwrap()
    }

    #[test]
    fn a_buffer_comes_back_empty_to_the_thread_that_drops_it() {
        let mut one = PooledBuffer::small();
        one.extend_from_slice(b"Authorization: Basic x");
        let place = one.as_ptr();
        assert_eq!(kept(Size::Small), 0);
        drop(one);
        let again = PooledBuffer::small();
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        std::thread::spawn(move || {
            drop(again);
            assert_eq!(kept(Size::Small), 1);
        })
        .join()
        .unwrap();
        assert_eq!(kept(Size::Small), 0);
    }

    #[test]
    fn a_thread_keeps_a_few_of_each_size_and_none_that_has_grown() {
        let many = KEPT / LARGE + 5;
        drop((0..many).map(|_| PooledBuffer::large()).collect::<Vec<_>>());
        assert_eq!((kept(Size::Large), kept(Size::Small)), (KEPT / LARGE, 0));
        let mut grown = PooledBuffer::large();
        grown.reserve(LARGE + 1);
        drop(grown);
        let mut shrunk = PooledBuffer::large();
        shrunk.shrink_to_fit();
        drop(shrunk);
        assert_eq!(kept(Size::Large), KEPT / LARGE - 2);
    }

    #[tokio::test]
    async fn who_waits_for_the_first_byte_holds_no_buffer() {
        let (mut near, mut far) = duplex(64);
        let mut buffer = PooledBuffer::small_later();
        let waiting = timeout(Duration::from_millis(20), buffer.fill(&mut near));
        assert!(waiting.await.is_err());
        assert_eq!((buffer.capacity(), kept(Size::Small)), (0, 1));
        far.write_all(b"GET ").await.unwrap();
        assert_eq!(buffer.fill(&mut near).await.unwrap(), 4);
        let waiting = timeout(Duration::from_millis(20), buffer.fill(&mut near));
        assert!(waiting.await.is_err());
        assert_eq!(&buffer[..], b"GET ", "what was read stays");
        far.write_all(b"/v2/").await.unwrap();
        drop(far);
        assert_eq!(buffer.fill(&mut near).await.unwrap(), 4);
        assert_eq!(buffer.fill(&mut near).await.unwrap(), 0);
        assert_eq!(&buffer[..], b"GET /v2/");
        let mut none = PooledBuffer::small_later();
        assert_eq!(none.fill(&mut near).await.unwrap(), 0);
        assert_eq!(none.capacity(), 0);
    }
}
