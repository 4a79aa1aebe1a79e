//! Answers with two readings, towards the client: whatever a registry sends, nobody is given a
//! second answer that he did not ask for, and the next request gets its own.

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use super::recorder::{Reading, Recorder};
use crate::harness::*;
use crate::http;

const EVIL: &str = "HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nevil";

/// Answers of the registry, `{E}` standing for a whole second one.
const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 64\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 64\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2, 64\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551618\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 64\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: xchunked\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: identity\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding : chunked\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokX0\r\n\r\n{E}",
    "HTTP/1.1 200 OK\nContent-Length: 2\n\nok{E}",
    "HTTP/1.1 200 OK\r\nX: y\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nX: y\r\n\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nX: y\rContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 64\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nX: y\0\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 204 No Content\r\n\r\n{E}",
    "HTTP/1.1 204 No Content\r\nContent-Length: 64\r\n\r\n{E}",
    "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.1 304 Not Modified\r\n\r\n{E}",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 64\r\n\r\n{E}",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 100 Continue\r\nContent-Length: 64\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{E}",
    "{1xx}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nX: {long}\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 99 Odd\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{E}",
    "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 200 OK\r\nConnection: keep-alive, Content-Length\r\nContent-Length: 2\r\n\r\nok{E}",
    "HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm=\"http://{long}/\"\r\nContent-Length: 2\r\n\r\nok{E}",
    "garbage{E}",
];

/// Sends two requests one after the other on a connection, and gives all that came.
fn twice(address: &str, first: &str, head: bool) -> Vec<u8> {
    let method = if head { "HEAD" } else { "GET" };
    let mut stream = http::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut all = Vec::new();
    let request = format!("{method} {first} HTTP/1.1\r\nHost: x\r\n\r\n");
    let _ = stream.write_all(request.as_bytes());
    // The first answer, as far as it is one.
    let mut buffer = [0; 64 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        all.extend(&buffer[..read]);
        stream.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    }
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = stream.write_all(b"GET /v2/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        all.extend(&buffer[..read]);
    }
    all
}

#[test]
fn no_answer_of_a_registry_is_taken_for_two() {
    let recorder = Recorder::start(|line| {
        let number = line.split("/answer-").nth(1).and_then(|text| text.split(' ').next());
        let Some(number) = number else {
            return b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext".to_vec();
        };
        let answer = ANSWERS[number.parse::<usize>().unwrap()];
        let answer = answer.replace("{E}", EVIL);
        let answer =
            answer.replace("{1xx}", &"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(500));
        let answer = answer.replace("{long}", &"y".repeat(200_000));
        answer.replace("{many}", &"X: y\r\n".repeat(500)).into_bytes()
    });
    let more = "read_timeout = \"1s\"\nexchange_timeout = \"1s\"";
    let taglock = Taglock::with(&recorder.address, more, RULES);
    for (n, answer) in ANSWERS.iter().enumerate() {
        // One that streams, two that are judged: a protected tag, and one of its shapes.
        for (first, head) in [
            (format!("/v2/open/app/tags/answer-{n}"), false),
            (format!("/v2/open/app/tags/answer-{n}"), true),
            (format!("/v2/prod/app/manifests/answer-{n}"), false),
            (format!("/v2/prod/app/manifests/answer-{n}"), true),
        ] {
            let what = format!("{first} {head}: {:?}", &answer[..answer.len().min(120)]);
            let all = twice(&taglock.address, &first, head);
            let text = String::from_utf8_lossy(&all).into_owned();
            for reading in Reading::all() {
                let read = answers(&all, head, reading);
                assert!(
                    !read.iter().any(|head| head.contains("x-evil")),
                    "{what}: {reading:?} reads {text:.3000}"
                );
            }
            // A connection of its own: what the registry's connections hold is not poisoned.
            let next = http::get(&taglock.address, "/v2/next");
            assert_eq!((next.status, next.text().as_str()), (200, "next"), "{what}");
        }
    }
}

/// The heads of all final answers, lower-case, as this client reads them.
fn answers(bytes: &[u8], mut head: bool, reading: Reading) -> Vec<String> {
    let mut heads = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.windows(4).position(|part| part == b"\r\n\r\n").map(|at| at + 4);
        let Some(end) = end else { break };
        let text = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        let status: u16 = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        if (100..200).contains(&status) {
            rest = &rest[end..];
            continue;
        }
        heads.push(text);
        let last = heads.last().map_or("", String::as_str);
        let framed = last.contains("content-length") || last.contains("transfer-encoding");
        rest = if std::mem::take(&mut head) || matches!(status, 204 | 304) {
            &rest[end..]
        } else if !framed {
            // It goes to the end of the connection.
            break;
        } else {
            match reading.first(rest) {
                Some((_, after)) => after,
                None => break,
            }
        };
    }
    heads
}

#[test]
fn an_answer_that_is_cut_is_not_a_whole_one() {
    for answer in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Le",
    ] {
        let recorder = Recorder::start(|_| answer.as_bytes().to_vec());
        let taglock = Taglock::with(&recorder.address, "read_timeout = \"1s\"", RULES);
        for target in ["/v2/open/app/tags/list", "/v2/prod/app/manifests/v1"] {
            let mut stream = http::connect(&taglock.address).unwrap();
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let read = http::read_answer(&mut BufReader::new(stream), false);
            assert!(read.as_ref().is_err() || read.as_ref().unwrap().status >= 500, "{read:?}");
        }
    }
}
