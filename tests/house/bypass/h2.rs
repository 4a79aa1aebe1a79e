//! HTTP/2 by hand: frames and literal header fields, so that what no library would send can be sent.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const MAX_FRAME: usize = 16 * 1024;

/// What became of the one request of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    /// RST_STREAM, GOAWAY, or an end without a word: not even a request to the server.
    Refused,
}

pub type Field<'a> = (&'a [u8], &'a [u8]);

/// One request as it goes over the wire.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    pub fields: Vec<Field<'a>>,
    pub body: Vec<u8>,
    pub trailers: Vec<Field<'a>>,
}

/// Sends a request on a new connection and waits for what becomes of it.
pub fn exchange(stream: impl Read + Write, request: &Request<'_>) -> Outcome {
    let frames: Vec<_> = request.body.chunks(MAX_FRAME).collect();
    exchange_frames(stream, request, &frames, Duration::ZERO)
}

/// The same with these DATA frames as the body, empty ones too. The last frame ends the request. `pause` is
/// what passes before each of them.
pub fn exchange_frames(
    mut stream: impl Read + Write,
    request: &Request<'_>,
    frames: &[&[u8]],
    pause: Duration,
) -> Outcome {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, SETTINGS, 0, 0, &[]);
    let bodiless = frames.is_empty() && request.trailers.is_empty();
    headers(&mut out, &request.fields, bodiless);
    for (n, part) in frames.iter().enumerate() {
        if !pause.is_zero() {
            let _ = stream.write_all(&std::mem::take(&mut out)).and_then(|()| stream.flush());
            thread::sleep(pause);
        }
        let last = n + 1 == frames.len() && request.trailers.is_empty();
        frame(&mut out, DATA, u8::from(last) * END_STREAM, 1, part);
    }
    if !request.trailers.is_empty() {
        headers(&mut out, &request.trailers, true);
    }
    // A server that refuses may close while we write.
    let _ = stream.write_all(&out).and_then(|()| stream.flush());
    receive(&mut stream).unwrap_or(Outcome::Refused)
}

/// `Err` where the connection ended first.
fn receive(stream: &mut (impl Read + Write)) -> std::io::Result<Outcome> {
    let (mut status, mut body) = (0, Vec::new());
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, s1, s2, s3, s4] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload)?;
        let ours = u32::from_be_bytes([s1, s2, s3, s4]) == 1;
        match kind {
            SETTINGS if flags & ACK == 0 => reply(stream, SETTINGS, &[])?,
            PING if flags & ACK == 0 => reply(stream, PING, &payload)?,
            HEADERS if ours && status < 200 => status = status_of(&payload),
            DATA if ours => body.extend(payload),
            RST_STREAM if ours && status >= 200 => return Ok(Outcome::Answer { status, body }),
            RST_STREAM if ours => return Ok(Outcome::Refused),
            GOAWAY => return Ok(Outcome::Refused),
            _ => {}
        }
        if ours && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            return Ok(Outcome::Answer { status, body });
        }
    }
}

fn reply(stream: &mut impl Write, kind: u8, payload: &[u8]) -> std::io::Result<()> {
    let mut out = Vec::new();
    frame(&mut out, kind, ACK, 0, payload);
    stream.write_all(&out)?;
    stream.flush()
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    out.extend(&length[1..]);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// Literal fields without indexing and without Huffman's code (RFC 7541, section 6.2.2).
fn headers(out: &mut Vec<u8>, fields: &[Field<'_>], end: bool) {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    frame(out, HEADERS, END_HEADERS | (u8::from(end) * END_STREAM), 1, &block);
}

fn text(block: &mut Vec<u8>, text: &[u8]) {
    // An integer with a prefix of seven bits.
    let mut rest = text.len();
    if rest < 127 {
        block.push(rest as u8);
    } else {
        block.push(127);
        rest -= 127;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend(text);
}

/// The status is always the first field of a block.
fn status_of(block: &[u8]) -> u16 {
    // A change of the table's size may stand before it.
    let block = &block[block.iter().take_while(|b| **b & 0xe0 == 0x20).count()..];
    match block[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        // A status seen before on this connection; there is but one.
        0x48 | 0x08 | 0x18 => {
            let length = usize::from(block[1] & 0x7f);
            let value = &block[2..2 + length];
            let digits = if block[1] & 0x80 == 0 { value.to_vec() } else { huffman_digits(value) };
            String::from_utf8(digits).unwrap().parse().unwrap()
        }
        other => panic!("a block that begins with {other:#x}"),
    }
}

/// Three digits in Huffman's code (RFC 7541, appendix B): `0` to `2` in five bits, the others in six.
fn huffman_digits(value: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = value.iter().flat_map(|b| (0..8).rev().map(move |n| b >> n & 1)).collect();
    let mut digits = Vec::new();
    let mut at = 0;
    while digits.len() < 3 {
        let five = bits[at..at + 5].iter().fold(0, |sum, bit| sum * 2 + bit);
        if five <= 2 {
            digits.push(b'0' + five);
            at += 5;
        } else {
            let six = five * 2 + bits[at + 5];
            digits.push(b'3' + (six - 0b01_1001));
            at += 6;
        }
    }
    digits
}

#[test]
fn statuses_are_read_in_every_spelling() {
    assert_eq!(status_of(&[0x88]), 200);
    assert_eq!(status_of(&[0x20, 0x8d, 0]), 404);
    assert_eq!(status_of(b"\x48\x03409"), 409);
    // "409" and "201" in Huffman's code, the rest filled with ones.
    assert_eq!(status_of(&[0x48, 0x83, 0b0110_1000, 0b0000_1111, 0b1111_1111]), 409);
    assert_eq!(status_of(&[0x48, 0x82, 0b0001_0000, 0b0000_0011]), 201);
}
