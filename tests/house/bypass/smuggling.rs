//! Request smuggling, towards the registry: what taglock sends on is recorded byte by byte, and has
//! one reading, however it is read. What has two never leaves taglock.

use std::io::{Read, Write};
use std::time::Duration;

use super::recorder::{Reading, Recorder};
use crate::harness::*;
use crate::http;

/// A whole request that nobody sent.
const SMUGGLED: &str =
    "PUT /v2/open/app/manifests/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";

/// What is sent after `Host`, and the status that comes of it.
type Tail = (&'static str, u16);

/// Headers with two readings, each with a body that is a request in one of them: 400 for all, before
/// anything is sent on.
const TWO_READINGS: &[&str] = &[
    // Both framings.
    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{S}",
    "Content-Length: 5\r\nTransfer-Encoding: identity\r\n\r\nhello{S}",
    "Content-Length: 5\r\nTransfer-Encoding:\r\n\r\nhello{S}",
    "content-length: 5\r\nX: y\r\ntransfer-ENCODING: Chunked\r\n\r\n0\r\n\r\n{S}",
    // Codings.
    "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: 'chunked'\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: identity\r\n\r\n{S}",
    "Transfer-Encoding:\r\n\r\n{S}",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding\r\n: chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked\u{0}\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: chunked\u{c}\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding: ch\u{fc}nked\r\n\r\n0\r\n\r\n{S}",
    "Transfer\u{0}-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "\u{0}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    // Lengths.
    "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello{S}",
    "Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello{S}",
    "Content-Length: 0\r\ncontent-length: 5\r\n\r\nhello{S}",
    "Content-Length: 5, 5\r\n\r\nhello{S}",
    "Content-Length: 0, 5\r\n\r\nhello{S}",
    "Content-Length: +5\r\n\r\nhello{S}",
    "Content-Length: -5\r\n\r\nhello{S}",
    "Content-Length: 0x5\r\n\r\nhello{S}",
    "Content-Length: 5h\r\n\r\nhello{S}",
    "Content-Length: 5 0\r\n\r\nhello{S}",
    "Content-Length: 5.0\r\n\r\nhello{S}",
    "Content-Length: 010\r\n\r\nhellohello{S}",
    "Content-Length: 00\r\n\r\n{S}",
    "Content-Length:\r\n\r\n{S}",
    "Content-Length: \u{b}5\r\n\r\nhello{S}",
    "Content-Length: 18446744073709551621\r\n\r\nhello{S}",
    "Content-Length : 5\r\n\r\nhello{S}",
    "Content-Length\r\n : 5\r\n\r\nhello{S}",
    "Content-Length: 5\u{0}\r\n\r\nhello{S}",
    // Ends of lines.
    "X: y\nContent-Length: 0\r\n\r\n{S}",
    "Content-Length: 5\n\r\nhello{S}",
    "Content-Length: 5\r\n\nhello{S}",
    "X: y\n\n{S}",
    "X: y\r\n\n{S}",
    "X: y\n\r\n{S}",
    "X: y\rContent-Length: 0\r\n\r\n{S}",
    "X: y\r\rPUT /v2/open/app/manifests/smuggled HTTP/1.1\r\n\r\n",
    "X: y\r\r\n\r\n{S}",
    "X\r: y\r\n\r\n{S}",
    "X: y\u{0}z\r\n\r\n{S}",
    "X\u{0}: y\r\n\r\n{S}",
    // Folded lines.
    "X: y\r\n Content-Length: 5\r\n\r\nhello{S}",
    "X: y\r\n\tTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{S}",
    "Content-Length: 5\r\n 0\r\n\r\nhello{S}",
    " Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    " Content-Length: 5\r\n\r\nhello{S}",
    // No headers at all.
    "no colon\r\n\r\n{S}",
    ": no name\r\n\r\n{S}",
    "(x): y\r\n\r\n{S}",
    "X y: z\r\n\r\n{S}",
    // Other protocols.
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{S}",
    "Upgrade: h2c\r\n\r\n{S}",
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n\r\n{S}",
    "Connection: upgrade\r\n\r\n{S}",
    "Connection: x, UPGRADE\r\n\r\n{S}",
    "HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n{S}",
    // What ends at this hop would be missing at the next.
    "Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello{S}",
    "Connection: close, content-LENGTH\r\nContent-Length: 5\r\n\r\nhello{S}",
    "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{S}",
    "Connection: X\r\nConnection: y ,Host\r\nContent-Length: 0\r\n\r\n{S}",
    // Hosts.
    "Host: y\r\nContent-Length: 0\r\n\r\n{S}",
    "Host:\r\nContent-Length: 0\r\n\r\n{S}",
    "hOST: x\r\nContent-Length: 0\r\n\r\n{S}",
];

/// First lines that are none, or that name another target to some.
const FIRST_LINES: &[&str] = &[
    "PUT /v2/open/app/manifests/v1",
    "PUT /v2/open/app/manifests/v1 HTTP/1.1 HTTP/1.1",
    "PUT /v2/open/app/manifests/v1 HTTP/2.0",
    "PUT /v2/open/app/manifests/v1 HTTP/1.2",
    "PUT /v2/open/app/manifests/v1 HTTP/0.9",
    "PUT /v2/open/app/manifests/v1 HTTP/11",
    "PUT /v2/open/app/manifests/v1 http/1.1",
    "PUT /v2/open/app/manifests/v1 HTTPS/1.1",
    "PUT /v2/open/app/manifests/v1 HTTP/1.1 ",
    "PUT /v2/open/app/manifests/v1 HTTP/1.1\t",
    "PUT\t/v2/open/app/manifests/v1\tHTTP/1.1",
    "PUT  /v2/open/app/manifests/v1 HTTP/1.1",
    "PUT /v2/open/app/manifests/v1  HTTP/1.1",
    "PUT /v2/open/app/manifests/v1\u{0} HTTP/1.1",
    "PUT /v2/open/app/manifests/v1\u{b}HTTP/1.1 HTTP/1.1",
    "PUT /v2/open/app/manifests/v1\rX HTTP/1.1",
    "PUT /v2/open/app/manifests/v1\u{7f} HTTP/1.1",
    "PUT /v2/open/app/manifests/v\u{e9} HTTP/1.1",
    "P\u{0}UT /v2/open/app/manifests/v1 HTTP/1.1",
    "P(UT /v2/open/app/manifests/v1 HTTP/1.1",
    " PUT /v2/open/app/manifests/v1 HTTP/1.1",
    "PUT http://x/v2/open/app/manifests/v1 HTTP/1.1",
    "PUT http://x@y/v2/open/app/manifests/v1 HTTP/1.1",
    "PUT //x/v2/open/app/manifests/v1 HTTP/1.1",
    "PUT x/v2/open/app/manifests/v1 HTTP/1.1",
    "PUT * HTTP/1.1",
    "PUT /v2/open/app/manifests/v1#/../v2 HTTP/1.1",
    "\nPUT /v2/open/app/manifests/v1 HTTP/1.1",
    "X: y\r\nPUT /v2/open/app/manifests/v1 HTTP/1.1",
];

/// Bodies in chunks, as they follow `Transfer-Encoding: chunked`.
const CHUNKS: &[Tail] = &[
    ("5\r\nhello\r\n0\r\n\r\n", 200),
    ("5;ext=1\r\nhello\r\n0;x\r\n\r\n", 200),
    ("000005\r\nhello\r\n000\r\n\r\n", 200),
    ("0\r\n\r\n", 200),
    ("A\r\nhellohello\r\n0\r\n\r\n", 200),
    // Trailers end here, whatever they say.
    ("5\r\nhello\r\n0\r\nContent-Length: 0\r\nX-HTTP-Method-Override: PUT\r\n\r\n", 200),
    ("0x5\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("+5\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("-5\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("5_0\r\nhello\r\n0\r\n\r\n{S}", 400),
    // To pingora an empty size is none: the body ends there, and with it the connection.
    ("\r\nhello\r\n0\r\n\r\n{S}", 200),
    ("g\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("5\u{0}\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("fffffffffffffffff\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("10000000000000005\r\nhello\r\n0\r\n\r\n{S}", 400),
    ("5\r\nhelloX0\r\n\r\n{S}", 400),
    ("5\r\nhello0\r\n\r\n{S}", 400),
    ("5\r\nhello!\r\n0\r\n\r\n{S}", 400),
];

fn requests(target: &str, tail: &str) -> Vec<u8> {
    let text = format!("{target} HTTP/1.1\r\nHost: x\r\n{tail}").replace("{S}", SMUGGLED);
    // `ü` and `é` as single bytes.
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Requests that stream through, and one that is judged.
fn targets() -> [String; 4] {
    [
        "PATCH /v2/open/app/blobs/uploads/id".to_owned(),
        format!("GET /v2/open/app/blobs/{}", digest(b"x")),
        "PUT /v2/open/app/manifests/v1".to_owned(),
        "PUT /v2/prod/app/manifests/v1".to_owned(),
    ]
}

/// Sends bytes on a connection of their own, and gives all that comes back.
fn talk(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = http::connect(address).unwrap();
    let _ = stream.write_all(bytes);
    // On a busy machine the first byte takes its time.
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    // Until the end of the connection, or of patience.
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        all.extend(&buffer[..read]);
        // Where something well was answered, more would come at once.
        let more = if all.starts_with(b"HTTP/1.1 4") { 400 } else { 60 };
        stream.set_read_timeout(Some(Duration::from_millis(more))).unwrap();
    }
    all
}

fn status(answer: &[u8]) -> u16 {
    let text = String::from_utf8_lossy(answer);
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

fn recording() -> (Recorder, Taglock) {
    let recorder = Recorder::start(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDocker-Content-Digest: x\r\n\r\nok".to_vec()
    });
    let more = "read_timeout = \"2s\"\nexchange_timeout = \"2s\"";
    let taglock = Taglock::with(&recorder.address, more, RULES);
    (recorder, taglock)
}

/// The first lines that came to the registry. All ways to read the bytes agree.
fn sent_on(recorder: &Recorder, what: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for bytes in recorder.take() {
        let strict = Reading::STRICT.messages(&bytes);
        for reading in Reading::all() {
            let read = reading.messages(&bytes);
            let text = String::from_utf8_lossy(&bytes);
            assert_eq!(read, strict, "{what}: {reading:?} of {text:?}");
        }
        lines.extend(strict);
    }
    assert!(!lines.iter().any(|line| line.contains("smuggled")), "{what}: {lines:?}");
    lines
}

#[test]
fn what_has_two_readings_is_refused_before_a_byte_is_sent_on() {
    let (recorder, taglock) = recording();
    recorder.take();
    for tail in TWO_READINGS {
        for target in targets() {
            let what = format!("{target}: {tail:?}");
            let answer = talk(&taglock.address, &requests(&target, tail));
            let text = String::from_utf8_lossy(&answer);
            assert_eq!(status(&answer), 400, "{what}: {text}");
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{what}: {text}");
            assert_eq!(sent_on(&recorder, &what), [""; 0], "{what}");
        }
    }
    for line in FIRST_LINES {
        let text = format!("{line}\r\nHost: x\r\nContent-Length: 0\r\n\r\n{SMUGGLED}");
        let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        let answer = talk(&taglock.address, &bytes);
        assert!(matches!(status(&answer), 400 | 403 | 405), "{line:?}: {}", status(&answer));
        assert_eq!(sent_on(&recorder, line), [""; 0], "{line:?}");
    }
}

#[test]
fn bodies_in_chunks_are_sent_on_with_one_reading_or_not_to_their_end() {
    let (recorder, taglock) = recording();
    recorder.take();
    for (tail, expected) in CHUNKS {
        for target in &targets()[..3] {
            let what = format!("{target}: {tail:?}");
            let bytes = requests(target, &format!("Transfer-Encoding: chunked\r\n\r\n{tail}"));
            let answer = talk(&taglock.address, &bytes);
            // Uploads are read by taglock itself, to which it is no size.
            let uploads = target.starts_with("PATCH") && tail.starts_with('\r');
            assert_eq!(status(&answer), if uploads { 400 } else { *expected }, "{what}");
            // What was given up may be written down late.
            for line in sent_on(&recorder, &what) {
                let known = targets().iter().any(|target| line == format!("{target} HTTP/1.1"));
                assert!(known, "{what}: {line}");
            }
        }
    }
}

#[test]
fn what_follows_a_request_is_not_part_of_it() {
    let (recorder, taglock) = recording();
    recorder.take();
    let first = targets();
    // Well framed: the second request is one of its own, or is not read at all.
    for target in &first {
        for tail in [
            "Content-Length: 5\r\n\r\nhello{S}",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{S}",
            "Connection: close\r\nContent-Length: 0\r\n\r\n{S}",
            "Connection: X-Y\r\nX-Y: Content-Length\r\nContent-Length: 5\r\n\r\nhello{S}",
            // Large bodies take a path of their own. What is in them are no requests.
            "Content-Length: {size}\r\n\r\n{body}{S}",
            "Connection: Content-Length\r\nContent-Length: {size}\r\n\r\n{body}",
            "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n{hex}\r\n{body}\r\n0\r\n\r\n{S}",
            "Transfer-Encoding: chunked\r\n\r\n{hex}\r\n{body}\r\n0\r\n\r\n{S}",
            "Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello{S}",
            "Expect: something\r\nContent-Length: 5\r\n\r\nhello{S}",
            // For `-` is taken what some servers take for it.
            "Content-Length: 5\r\nTransfer_Encoding: chunked\r\n\r\nhello{S}",
            "Content_Length: 99\r\nContent-Length: 5\r\n\r\nhello{S}",
            // Refused for other reasons, with a body.
            "Content-Length: 5\r\nX-Y: {long}\r\n\r\nhello{S}",
        ] {
            let what = format!("{target}: {tail:?}");
            let large = tail.contains("{body}");
            let tail = tail.replace("{long}", &"y".repeat(70_000));
            let body = SMUGGLED.replace("PUT", "POST").repeat(2000);
            let tail = tail.replace("{size}", &body.len().to_string());
            let tail = tail.replace("{hex}", &format!("{:x}", body.len())).replace("{body}", &body);
            talk(&taglock.address, &requests(target, &tail));
            for bytes in if large { recorder.take_settled() } else { recorder.take() } {
                let strict = Reading::STRICT.messages(&bytes);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                // The judge asks before it writes; a request that follows is seen as one.
                assert!(
                    Reading::all().into_iter().all(|r| r.messages(&bytes) == strict),
                    "{what}: {text:?}"
                );
                assert!(!text.contains("ransfer_"), "{what}: {text}");
                for line in strict {
                    let smuggled = line.contains("smuggled");
                    assert!(!smuggled || line.starts_with("PUT "), "{what}: {line}");
                }
            }
        }
    }
    // HTTP/1.0 has no chunks.
    let old = format!(
        "PUT /v2/open/app/manifests/v1 HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
    );
    assert_eq!(status(&talk(&taglock.address, old.as_bytes())), 400);
    assert_eq!(sent_on(&recorder, "HTTP/1.0"), [""; 0]);
}
