//! The chunks of a body (RFC 9112, section 7.1), told apart where they lie.
//!
//! What is in them is passed on, framed anew: neither a client's extensions and trailers nor another
//! way to read its sizes reach the registry. The bounds are pingora's.

use std::ops::Range;

use http::HeaderName;

/// Of a chunk's size with its extensions.
const MAX_SIZE_LINE: usize = 8 * 1024;
/// Of what comes after the last chunk.
const MAX_TRAILERS: usize = 64 * 1024;
/// More pieces than this are not told apart at once.
pub const MAX_PIECES: usize = 64;

/// How far a body has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before a chunk's size.
    Size,
    /// So many bytes before a chunk's end.
    Data(u64),
    /// Between a chunk's data and the next size.
    End,
    /// After the last chunk, and so many bytes of trailers.
    Trailers(usize),
    Over,
}

/// A body that comes in chunks.
#[derive(Clone, Copy, Debug)]
pub struct Chunks(Place);

impl Default for Chunks {
    fn default() -> Self {
        Self::new()
    }
}

/// Something that is no chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl Chunks {
    pub fn new() -> Self {
        Self(Place::Size)
    }

    /// Whether the last line of the body was read.
    pub fn is_over(&self) -> bool {
        self.0 == Place::Over
    }

    /// What is still to come of the chunk at hand; 0 between two.
    pub fn left(&self) -> u64 {
        if let Place::Data(left) = self.0 { left } else { 0 }
    }

    /// So many bytes of the chunk at hand were read elsewhere.
    pub fn skip(&mut self, bytes: u64) {
        if let Place::Data(left) = self.0 {
            let left = left.saturating_sub(bytes);
            self.0 = if left == 0 { Place::End } else { Place::Data(left) };
        }
    }

    /// Reads on, puts where data lies to `pieces`, and says how many bytes were read. It stops before
    /// what is not whole yet, after the body's end, and where there are too many pieces.
    ///
    /// # Errors
    /// Where the bytes are no chunks.
    pub fn read(
        &mut self,
        bytes: &[u8],
        pieces: &mut Vec<Range<usize>>,
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        while pieces.len() < MAX_PIECES {
            at += self.read_to_data(&bytes[at..])?;
            let rest = bytes.len() - at;
            let here = usize::try_from(self.left()).unwrap_or(usize::MAX).min(rest);
            if here == 0 {
                break;
            }
            pieces.push(at..at + here);
            self.skip(here as u64);
            at += here;
        }
        Ok(at)
    }

    /// Reads on to where data begins, and says how many bytes were read. It stops before what is not
    /// whole yet, and after the body's end.
    ///
    /// # Errors
    /// Where the bytes are no chunks.
    pub fn read_to_data(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            at += match self.0 {
                // An empty line is no size, though the parser takes it for one.
                Place::Size if !rest.first().is_none_or(u8::is_ascii_hexdigit) => {
                    return Err(Malformed("a chunk's size is no number"));
                }
                Place::Size => match httparse::parse_chunk_size(rest) {
                    // Some end a line at it, within an extension as well.
                    Ok(httparse::Status::Complete((length, _)))
                        if memchr::memchr(b'\n', &rest[..length]) != Some(length - 1) =>
                    {
                        return Err(Malformed("a chunk's extension has a line's end in it"));
                    }
                    Ok(httparse::Status::Complete((length, size))) if length <= MAX_SIZE_LINE => {
                        self.0 = if size == 0 { Place::Trailers(0) } else { Place::Data(size) };
                        length
                    }
                    Ok(httparse::Status::Partial) if rest.len() <= MAX_SIZE_LINE => break,
                    Ok(_) => return Err(Malformed("a chunk's extensions are too long")),
                    Err(_) => return Err(Malformed("a chunk's size is no number")),
                },
                Place::End => match rest {
                    [b'\r', b'\n', ..] => {
                        self.0 = Place::Size;
                        2
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(Malformed("a chunk is longer than its size")),
                },
                Place::Trailers(before) => {
                    let line = memchr::memchr(b'\n', rest).map(|end| &rest[..=end]);
                    let length = line.map_or(rest.len(), <[u8]>::len);
                    if before + length > MAX_TRAILERS {
                        return Err(Malformed("the trailers are too long"));
                    }
                    match line {
                        None => break,
                        Some(b"\r\n") => self.0 = Place::Over,
                        Some(line) if is_trailer(line) => self.0 = Place::Trailers(before + length),
                        Some(_) => return Err(Malformed("a trailer that is no header")),
                    }
                    length
                }
                Place::Data(_) | Place::Over => break,
            };
        }
        Ok(at)
    }
}

/// A header's line, and one line: a bare carriage return could be another one's end.
fn is_trailer(line: &[u8]) -> bool {
    let Some(line) = line.strip_suffix(b"\r\n") else { return false };
    let Some(colon) = memchr::memchr(b':', line) else { return false };
    memchr::memchr(b'\r', line).is_none() && HeaderName::from_bytes(&line[..colon]).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a body that comes in parts of these sizes, again and again; what was in it, and what
    /// came after it.
    fn read(body: &[u8], sizes: &[usize]) -> Result<(Vec<u8>, bool, usize), Malformed> {
        let (mut chunks, mut pieces, mut data) = (Chunks::new(), Vec::new(), Vec::new());
        let (mut start, mut end) = (0, 0);
        let mut sizes = sizes.iter().cycle();
        loop {
            pieces.clear();
            let window = &body[start..end];
            let used = chunks.read(window, &mut pieces)?;
            for piece in &pieces {
                data.extend_from_slice(&window[piece.clone()]);
            }
            start += used;
            if chunks.is_over() || used == 0 && end == body.len() {
                return Ok((data, chunks.is_over(), body.len() - start));
            }
            if used == 0 {
                end = body.len().min(end + sizes.next().copied().unwrap_or(1).max(1));
            }
        }
    }

    #[test]
    fn chunks_are_told_apart_wherever_they_are_cut() {
        let body =
            b"3\r\nabc\r\n00A;by=x;\"y\r\n0123456789\r\n1 \r\n\n\r\n0;z\r\nX: y\r\nZ:\r\n\r\nGET /";
        for size in 1..body.len() {
            let (data, over, after) = read(body, &[size]).unwrap();
            assert_eq!((&data[..], over), (&b"abc0123456789\n"[..], true), "{size}");
            assert_eq!(after, 5, "{size}");
        }
        for end in 0..body.len() - 5 {
            assert!(!read(&body[..end], &[7]).unwrap().1, "{end}");
        }
    }

    #[test]
    fn what_has_two_readings_is_none() {
        for bad in [
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\r\nabc\r0\r\n\r\n",
            "-3\r\nabc\r\n0\r\n\r\n",
            "+3\r\nabc\r\n0\r\n\r\n",
            "0x3\r\nabc\r\n0\r\n\r\n",
            "3 4\r\nabc\r\n0\r\n\r\n",
            "11111111111111111\r\n",
            "\r\n0\r\n\r\n",
            "3\r\nabc\r\n\r\n0\r\n\r\n",
            ";x\r\n\r\n",
            " 0\r\n\r\n",
            "5;a\nhello\r\n0\r\n\r\n",
            "3\r;\nabc",
            "0\r\n\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\rZ: 1\r\n\r\n",
            "0\r\n0\r\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\n: y\r\n\r\n",
        ] {
            for size in [1, 2, bad.len()] {
                assert!(read(bad.as_bytes(), &[size]).is_err(), "{bad:?} by {size}");
            }
        }
    }

    #[test]
    fn sizes_and_trailers_have_bounds() {
        let line = |length: usize| format!("1;{}", "a".repeat(length - 4));
        assert!(
            read(format!("{}\r\nb\r\n0\r\n\r\n", line(MAX_SIZE_LINE)).as_bytes(), &[999]).is_ok()
        );
        for size in [999, usize::MAX / 2] {
            let long = format!("{}\r\nb\r\n0\r\n\r\n", line(MAX_SIZE_LINE + 1));
            assert!(read(long.as_bytes(), &[size]).is_err());
        }
        assert!(read("a;".repeat(MAX_SIZE_LINE).as_bytes(), &[100]).is_err());
        let trailers = |count: usize| format!("0\r\n{}\r\n", "X: yz\r\n".repeat(count));
        assert!(read(trailers(MAX_TRAILERS / 7 - 1).as_bytes(), &[4096]).is_ok());
        assert!(read(trailers(MAX_TRAILERS / 7 + 1).as_bytes(), &[4096]).is_err());
        assert!(read(format!("0\r\nX: {}", "y".repeat(MAX_TRAILERS)).as_bytes(), &[4096]).is_err());
    }

    #[test]
    fn more_pieces_than_fit_are_read_the_next_time() {
        let body = format!("{}0\r\n\r\n", "1\r\na\r\n".repeat(3 * MAX_PIECES));
        let (mut chunks, mut pieces) = (Chunks::new(), Vec::new());
        let used = chunks.read(body.as_bytes(), &mut pieces).unwrap();
        assert_eq!(pieces.len(), MAX_PIECES);
        assert!(used < body.len() && !chunks.is_over());
        assert_eq!(read(body.as_bytes(), &[body.len()]).unwrap().0.len(), 3 * MAX_PIECES);
    }

    proptest! {
        #[test]
        fn whatever_goes_into_chunks_comes_out(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
            sizes in prop::collection::vec(1usize..400, 1..10),
        ) {
            let mut body = Vec::new();
            for part in &parts {
                body.extend(format!("{:x}\r\n", part.len()).bytes());
                body.extend(part);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\nafter");
            prop_assert_eq!(read(&body, &sizes), Ok((parts.concat(), true, 5)));
        }

        #[test]
        fn nothing_is_read_past_what_is_there(
            bytes in prop::collection::vec(prop::sample::select(&b"0123aF;\r\n \tx"[..]), 0..60),
            sizes in prop::collection::vec(1usize..9, 1..5),
        ) {
            // However it is cut: one reading.
            prop_assert_eq!(read(&bytes, &sizes), read(&bytes, &[bytes.len().max(1)]));
        }
    }
}
