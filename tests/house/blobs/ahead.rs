//! Uploads that are sent ahead of an answer, and bodies of which a part came along with the header: the
//! registry gets the bytes that were sent, and the next request is its own.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::source::{Asked, Source, body};
use super::uploads::UPLOADS;
use super::{Kept, both};
use crate::http;

const WHOLE: usize = 200_000;
/// More of them than are ever read ahead.
const PIECES: usize = 2000;

/// The body of an upload, as its framing has it.
fn uploaded(asked: &mut Asked) -> Vec<u8> {
    if let Some(length) = asked.length() {
        return asked.read_body(length);
    }
    assert_eq!(asked.header("transfer-encoding"), Some("chunked"));
    let mut all = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let byte = asked.read_body(1);
            assert!(!byte.is_empty(), "it ends within a chunk's size");
            line.extend(byte);
        }
        let size = std::str::from_utf8(&line).unwrap().trim();
        let size = usize::from_str_radix(size, 16).unwrap();
        all.extend(asked.read_body(size));
        assert_eq!(asked.read_body(2), b"\r\n", "after a chunk");
        if size == 0 {
            return all;
        }
    }
}

/// Keeps what is uploaded, and answers reads in many pieces.
fn source() -> (Source, Arc<Mutex<Vec<Vec<u8>>>>) {
    let kept = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let shared = Arc::clone(&kept);
    let source = Source::start(move |asked| {
        if asked.method == "PATCH" {
            let body = uploaded(asked);
            shared.lock().unwrap().push(body);
            return asked.say("202 Accepted\r\nContent-Length: 0", b"");
        }
        if !asked.target.contains("slow") {
            return asked.say("200 OK\r\nContent-Length: 4", b"next");
        }
        let head = format!("200 OK\r\nContent-Type: x/y\r\nContent-Length: {PIECES}");
        let mut well = asked.say(&head, b"");
        for _ in 0..PIECES {
            well &= asked.stream.write_all(b"x").is_ok();
            thread::sleep(Duration::from_micros(50));
        }
        well
    });
    (source, kept)
}

fn patch(chunked: bool, body: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", body.len()),
    };
    let head = format!("PATCH {UPLOADS}1 HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
    if !chunked {
        return (head.into_bytes(), body.to_vec());
    }
    let mut framed = Vec::new();
    for chunk in body.chunks(30_011) {
        framed.extend(format!("{:x}\r\n", chunk.len()).bytes());
        framed.extend(chunk);
        framed.extend(b"\r\n");
    }
    framed.extend(b"0\r\n\r\n");
    (head.into_bytes(), framed)
}

const NEXT: &str = "/v2/other/next/manifests/v1";

#[test]
fn an_upload_sent_ahead_of_an_answer_in_many_pieces_arrives_byte_for_byte() {
    let (source, kept) = source();
    both(&source.address, "", "", |taglock, fast| {
        for target in ["/v2/other/slow/manifests/v1", "/v2/other/slow/blobs/sha256:0"] {
            for chunked in [false, true] {
                let what = format!("{fast} {target} {chunked}");
                let target = target.replace(":0", &format!(":{}", "0".repeat(64)));
                let (whole, mut client) = (body(WHOLE), Kept::new(taglock));
                let (head, framed) = patch(chunked, &whole);
                let next = http::bytes("x", "GET", NEXT, &[], b"");
                client.stream.write_all(&http::bytes("x", "GET", &target, &[], b"")).unwrap();
                // While its answer is under way.
                thread::sleep(Duration::from_millis(20));
                let mut writing = client.stream.try_clone().unwrap();
                let ahead = [head, framed].concat();
                let writing = thread::spawn(move || writing.write_all(&ahead));
                let mut answers = 0;
                while let Ok(answer) = http::read_answer(&mut client.reader, false) {
                    answers += 1;
                    // pingora's own path ends what a client does not wait for.
                    if answers == 1 && answer.status == 400 && !fast {
                        continue;
                    }
                    if answers == 1 {
                        assert_eq!((answer.status, answer.body.len()), (200, PIECES), "{what}");
                        continue;
                    }
                    assert_eq!(answer.status, 202, "{what}: {answer:?}");
                    assert!(kept.lock().unwrap().pop() == Some(whole), "{what}");
                    client.stream.write_all(&next).unwrap();
                    assert_eq!(client.read().text(), "next", "{what}");
                    break;
                }
                let relayed = fast && target.contains("/manifests/");
                assert!(answers == 2 || !relayed, "{what}: {answers}");
                // Where it is not answered, the connection has ended, and nothing of it is at the registry.
                let _ = client.stream.shutdown(std::net::Shutdown::Both);
                let _ = writing.join().unwrap();
                assert!(kept.lock().unwrap().is_empty(), "{what}");
            }
        }
    });
}

#[test]
fn a_body_of_which_a_part_comes_with_the_header_arrives_byte_for_byte() {
    let (source, kept) = source();
    both(&source.address, "", "", |taglock, fast| {
        for chunked in [false, true] {
            let mut client = Kept::new(taglock);
            for size in [0, 1, 2, 4000, 4096, 5000, 65_536, 70_000, WHOLE - 1] {
                let what = format!("{fast} {chunked} {size}");
                let (head, framed) = patch(chunked, &body(WHOLE));
                let (first, rest) = framed.split_at(size);
                client.stream.write_all(&[&head, first].concat()).unwrap();
                thread::sleep(Duration::from_millis(10));
                client.stream.write_all(rest).unwrap();
                let answer = client.read();
                assert_eq!(answer.status, 202, "{what}: {answer:?}");
                assert!(kept.lock().unwrap().pop() == Some(body(WHOLE)), "{what}");
                client.stream.write_all(&http::bytes("x", "GET", NEXT, &[], b"")).unwrap();
                assert_eq!(client.read().text(), "next", "{what}");
            }
        }
    });
}
