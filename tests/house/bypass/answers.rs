//! Answers with two readings, towards the client: whatever a registry sends, nobody is given a
//! second answer that he did not ask for, and the next request gets its own.

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use super::recorder::{PAUSE, Reading, Recorder};
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

/// Answers that no client may be given as they are: refused (502), or cleaned.
const UNFIT: &[(u16, &str)] = &[
    (502, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
    (502, "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok"),
    (502, "HTTP/1.1 200 OK\r\nContent-Length: 02\r\n\r\nok"),
    (502, "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
    (502, "HTTP/1.1 404 Not Found\r\nContent-Length: 02\r\n\r\nok"),
    (502, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    (502, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    (502, "HTTP/1.1 200 OK\r\nConnection: close, Content-Length\r\nContent-Length: 2\r\n\r\nok"),
    (502, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
    (502, "{17}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    (200, "{16}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    // pingora's parser drops the length before anybody sees it.
    (
        200,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    (200, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nok"),
    (204, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
    (204, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (304, "HTTP/1.1 304 Not Modified\r\nContent-Length: 64\r\n\r\n"),
    (304, "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    (
        200,
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\nKeep-Alive: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        200,
        "HTTP/1.1 200 OK\r\nConnection: X-Private\r\nX-Private: 1\r\nContent-Length: 2\r\n\r\nok",
    ),
    (
        200,
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nProxy-Authenticate: Basic\r\nTE: x\r\nTrailer: X\r\nUpgrade: h2\r\nContent-Length: 2\r\n\r\nok",
    ),
];

const FIT: usize = 10;

/// Everything that is answered to one request.
fn once(address: &str, method: &str, target: &str) -> String {
    let mut stream = http::connect(address).unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut all = Vec::new();
    // What a client is cut off in is judged as far as it came.
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

fn curl_h2(address: &str, method: &str, target: &str) -> String {
    let mut command = std::process::Command::new("curl");
    command.args(["-s", "-i", "-m", "20", "--http2-prior-knowledge"]);
    match method {
        "HEAD" => command.arg("-I"),
        other => command.args(["-X", other]),
    };
    let output = command.arg(format!("http://{address}{target}")).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The last status, after a look at the lines of all heads.
fn status_of_a_clean_answer(text: &str, what: &str) -> u16 {
    let mut rest = text;
    let mut early = 0;
    loop {
        let (head, after) = rest.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what}: {text}"));
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lines: Vec<_> = head.lines().skip(1).map(str::to_ascii_lowercase).collect();
        let count = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
        let (lengths, codings) = (count("content-length:"), count("transfer-encoding:"));
        let framings = lengths + codings;
        let most = usize::from(status >= 200 && !matches!(status, 204 | 304));
        assert!(framings <= most, "{what}: {text}");
        let plain = |length: &str| length.parse().is_ok_and(|n: u64| n.to_string() == length);
        for line in &lines {
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            match name {
                "content-length" => assert!(plain(value), "{what}: {text}"),
                "transfer-encoding" => assert_eq!(value, "chunked", "{what}"),
                // taglock's own.
                "connection" => assert!(matches!(value, "close" | "keep-alive"), "{what}: {text}"),
                "keep-alive" | "proxy-connection" | "proxy-authenticate" | "te" | "trailer"
                | "upgrade" | "x-private" => panic!("{what}: {text}"),
                _ => {}
            }
        }
        if status >= 200 {
            assert!(early <= 16, "{what}: {early}");
            return status;
        }
        early += 1;
        rest = after;
    }
}

#[test]
fn an_answer_has_one_framing_and_nothing_of_the_registrys_connection_or_is_refused() {
    let recorder = Recorder::start(|line| {
        let number = line.split("answer-").nth(1).or(line.split("sha256:").nth(1));
        let number = number.and_then(|text| text.split(' ').next()?.parse::<usize>().ok());
        // Another digest: of a tag that was found fit, and bound.
        let (_, answer) = UNFIT[number.unwrap_or(FIT)];
        let early = "HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n";
        let answer = answer.replace("{16}", &early.repeat(16));
        answer.replace("{17}", &early.repeat(17)).into_bytes()
    });
    for fast in [true, false] {
        let more = format!("read_timeout = \"2s\"\nexchange_timeout = \"4s\"\nfast_path = {fast}");
        let taglock = Taglock::with(&recorder.address, &more, RULES);
        for (n, (expected, answer)) in UNFIT.iter().enumerate() {
            for (method, target, streams) in [
                ("GET", format!("/v2/open/app/tags/list?answer-{n}"), true),
                ("HEAD", format!("/v2/open/app/tags/list?answer-{n}"), true),
                ("GET", format!("/v2/open/app/manifests/answer-{n}"), true),
                ("HEAD", format!("/v2/open/app/manifests/answer-{n}"), true),
                ("GET", format!("/v2/open/app/blobs/sha256:{n:064}"), true),
                ("HEAD", format!("/v2/open/app/blobs/sha256:{n:064}"), true),
                ("DELETE", format!("/v2/open/app/manifests/answer-{n}"), true),
                ("GET", format!("/v2/prod/app/manifests/answer-{n}"), false),
                ("HEAD", format!("/v2/prod/app/manifests/answer-{n}"), false),
            ] {
                for (version, ask) in [("1.1", once as fn(&str, &str, &str) -> _), ("2", curl_h2)] {
                    let what = format!("{fast} HTTP/{version} {method} {target}: {answer:?}");
                    let text = ask(&taglock.address, method, &target);
                    let status = status_of_a_clean_answer(&text, &what);
                    if streams {
                        assert_eq!(status, *expected, "{what}: {text}");
                    }
                }
            }
        }
    }
}

/// Bytes after the end of an answer, which come when its connection waits for the next request.
#[test]
fn bytes_that_come_late_are_never_the_next_clients() {
    let evil = [PAUSE, EVIL.as_bytes()].concat();
    let recorder = Recorder::start(move |line| {
        let first = line.contains("late");
        let head = line.starts_with("HEAD");
        let answer: &[u8] = match line {
            _ if !first && head => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
            _ if !first => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext",
            _ if head => b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n",
            _ if line.contains("late-304") => b"HTTP/1.1 304 Not Modified\r\n\r\n",
            _ if line.starts_with("DELETE") => b"HTTP/1.1 204 No Content\r\n\r\n",
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        if first { [answer, &evil[..]].concat() } else { answer.to_vec() }
    });
    let next = format!("/v2/open/app/blobs/{}", digest(b"next"));
    for fast in [true, false] {
        let more = format!("read_timeout = \"2s\"\nfast_path = {fast}");
        let taglock = Taglock::with(&recorder.address, &more, RULES);
        for (method, target) in [
            ("HEAD", "/v2/open/app/tags/late"),
            ("HEAD", "/v2/open/app/manifests/late"),
            ("GET", "/v2/open/app/manifests/late"),
            ("GET", "/v2/open/app/manifests/late-304"),
            ("GET", "/v2/open/app/tags/late-304"),
            ("HEAD", "/v2/open/app/blobs/late"),
            ("GET", "/v2/open/app/blobs/late"),
            ("DELETE", "/v2/open/app/manifests/late"),
            ("HEAD", "/v2/prod/app/manifests/late"),
            ("GET", "/v2/prod/app/manifests/late"),
        ] {
            let what = format!("{fast} {method} {target}");
            http::request(&taglock.address, method, target, &[], b"");
            std::thread::sleep(Duration::from_millis(80));
            for target in ["/v2/next", "/v2/open/app/manifests/next", &next] {
                let answer = http::get(&taglock.address, target);
                let read = (answer.status, answer.text());
                assert_eq!(read, (200, "next".to_owned()), "{what}, then {target}");
            }
        }
    }
}
