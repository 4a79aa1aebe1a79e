//! Blobs on their own path and on pingora's: each test runs over both, which clients and registries
//! must not be able to tell apart.

mod ahead;
mod slow;
mod source;
mod tls;
mod trouble;
mod uploads;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::auth::nginx;
use crate::harness::*;
use crate::http::{self, Answer};
use crate::tls::Authority;
use source::{Asked, KIND, Source, body, path};

const MIB: usize = 1 << 20;

/// On blobs' own path, and on pingora's.
fn both(registry: &str, upstream: &str, tables: &str, test: impl Fn(&Taglock, bool)) {
    for fast in [true, false] {
        let keys = format!("fast_path = {fast}\n{upstream}");
        test(&Taglock::with(registry, &keys, tables), fast);
    }
}

/// The same for manifests too, which are relayed where they have a length.
fn all(registry: &str, upstream: &str, tables: &str, test: impl Fn(&Taglock, bool)) {
    for kind in ["blobs", "manifests"] {
        KIND.set(kind);
        both(registry, upstream, tables, &test);
    }
}

fn length(length: usize) -> String {
    format!("200 OK\r\nContent-Length: {length}")
}

/// Answers `size-<n>` with so many bytes.
fn sized(asked: &mut Asked) -> bool {
    let size: usize = asked.what().strip_prefix("size-").unwrap().parse().unwrap();
    asked.say(&length(size), &body(size))
}

/// A kept connection of a client's.
struct Kept {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Kept {
    fn new(taglock: &Taglock) -> Self {
        let stream = http::connect(&taglock.address).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    fn ask(&mut self, what: &str) {
        self.stream.write_all(&http::bytes("x", "GET", &path(what), &[], b"")).unwrap();
    }

    fn read(&mut self) -> Answer {
        http::read_answer(&mut self.reader, false).unwrap()
    }

    fn get(&mut self, what: &str) -> Answer {
        self.ask(what);
        self.read()
    }

    /// All that still comes, whether the connection ends well or not.
    fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        if let Err(error) = self.reader.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        rest
    }

    /// What comes of a body until the connection's end.
    fn cut_body(mut self, what: &str) -> Vec<u8> {
        self.ask(what);
        let rest = self.rest();
        let head = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
        assert!(rest.starts_with(b"HTTP/1.1 200 "));
        rest[head + 4..].to_vec()
    }
}

fn descriptors(taglock: &Taglock) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{}/fd", taglock.process.child.id())).unwrap();
    let target = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    folder.filter_map(target).map(|path| path.display().to_string()).collect()
}

fn pipes(taglock: &Taglock) -> usize {
    descriptors(taglock).iter().filter(|target| target.starts_with("pipe:")).count()
}

#[test]
fn a_large_blob_arrives_byte_for_byte_and_on_its_own_path_without_a_copy() {
    let source = Source::start(sized);
    all(&source.address, "", "", |taglock, fast| {
        let before = pipes(taglock);
        let answer = http::get(&taglock.address, &path(&format!("size-{}", 64 * MIB)));
        assert!(answer.status == 200 && answer.body == body(64 * MIB), "{answer:?}");
        // A pipe shows which path it was: it is kept for the next blob.
        assert_eq!(pipes(taglock) > before, fast && KIND.get() == "blobs");
    });
}

#[test]
fn blobs_arrive_over_tls_and_http2_and_from_a_registry_over_tls() {
    let source = Source::start(sized);
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    authority.write(&dir.join("ca.pem"));
    authority.issue(dir, "server", "localhost");
    let dir = dir.display().to_string();
    let front = format!("127.0.0.1:{}", port());
    let tls =
        format!("ssl; ssl_certificate {dir}/server.pem; ssl_certificate_key {dir}/server.key;");
    let locations = format!("location / {{ proxy_pass http://{}; }}", source.address);
    let _front = nginx(folder.path(), &front, &locations, &tls);
    let over_tls = format!("https://localhost:{}", front.rsplit(':').next().unwrap());
    let plain = format!("http://{}", source.address);
    let (size, file) = (16 * MIB + 1, format!("{dir}/blob"));
    let get = |options: &[&str], url: String| {
        let mut command = Command::new("curl");
        command.args([
            "-sS",
            "--max-time",
            "60",
            "-o",
            &file,
            "-w",
            "%{http_code} %{http_version}",
        ]);
        let said = succeed(command.args(options).arg(url));
        assert!(fs::read(&file).unwrap() == body(size), "{options:?}: {said}");
        said
    };
    let blob = path(&format!("size-{size}"));
    for fast in [true, false] {
        for (url, ca) in [(&plain, ""), (&over_tls, "ca_file")] {
            let ca = if ca.is_empty() { String::new() } else { format!("{ca} = \"{dir}/ca.pem\"") };
            for listener in [
                String::new(),
                format!(
                    "tls = {{ certificate = \"{dir}/server.pem\", key = \"{dir}/server.key\" }}"
                ),
            ] {
                let taglock = Taglock::from_file(|address, admin, folder| {
                    format!(
                        "[listen]\naddress = \"{address}\"\n{listener}\n[upstream]\nurl = \"{url}\"\n\
                         fast_path = {fast}\n{ca}\n[ledger]\npath = \"{folder}/ledger\"\n\
                         [admin]\naddress = \"{admin}\"\n"
                    )
                });
                let port = taglock.address.rsplit(':').next().unwrap();
                if listener.is_empty() {
                    let url = format!("http://localhost:{port}{blob}");
                    assert_eq!(get(&["--http1.1"], url.clone()), "200 1.1");
                    assert_eq!(get(&["--http2-prior-knowledge"], url), "200 2");
                } else {
                    let url = format!("https://localhost:{port}{blob}");
                    let ca = format!("{dir}/ca.pem");
                    assert_eq!(get(&["--http1.1", "--cacert", &ca], url.clone()), "200 1.1");
                    assert_eq!(get(&["--http2", "--cacert", &ca], url), "200 2");
                }
            }
        }
    }
}

#[test]
fn blobs_of_all_sizes_share_one_connection_on_either_side() {
    let source = Source::start(sized);
    all(&source.address, "", "", |taglock, fast| {
        let (mut client, mut seed, before) = (Kept::new(taglock), 7_u64, source.connections());
        for n in 0..200 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let around = [0, 1, 4096, 64 << 10, 256 << 10, MIB, 2 * MIB][(seed >> 33) as usize % 7];
            let size = around + (seed >> 50) as usize % 9 - 4.min(around);
            let answer = client.get(&format!("size-{size}"));
            assert!(answer.status == 200 && answer.body == body(size), "{n}: {size}: {answer:?}");
            assert_eq!(answer.header("Connection"), Some("keep-alive"));
        }
        let used = source.connections() - before;
        // The next request may come before the connection of the last one is kept.
        assert!(used < if fast { 10 } else { 50 }, "{used} connections");
        client
            .stream
            .write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
    });
}

#[test]
fn urls_of_the_registry_in_a_relayed_answer_name_the_proxy() {
    let source = Source::start(|asked| {
        let own = asked.header("host").unwrap().to_owned();
        let head = format!(
            "401 Unauthorized\r\nwww-Authenticate: Bearer realm=\"http://{own}/token\",service=\"r\"\r\n\
             LOCATION:http://{own}/v2/x?a=%2F\r\nX-Location: http://{own}/\r\nContent-Length: 2"
        );
        asked.say(&head, b"{}")
    });
    all(&source.address, "", "", |taglock, _| {
        let (own, proxy) = (&source.address, &taglock.address);
        let answer = http::get(proxy, &path("x"));
        let realm = format!("Bearer realm=\"http://{proxy}/token\",service=\"r\"");
        assert_eq!(answer.header("WWW-Authenticate"), Some(realm.as_str()));
        let location = format!("http://{proxy}/v2/x?a=%2F");
        assert_eq!(answer.header("Location"), Some(location.as_str()));
        assert_eq!(answer.header("X-Location"), Some(format!("http://{own}/").as_str()));
        assert_eq!((answer.status, answer.text().as_str()), (401, "{}"));
    });
}

#[test]
fn an_answer_that_is_not_relayed_is_asked_for_again_and_no_other_for_a_while() {
    let source = Source::start(|asked| match asked.what() {
        "chunked" => asked.say("200 OK\r\nTransfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
        _ => sized(asked),
    });
    KIND.set("manifests");
    let taglock = Taglock::with(&source.address, "", "");
    let get = |what: &str| {
        let before = source.asked();
        let answer = Kept::new(&taglock).get(what);
        assert_eq!(answer.status, 200);
        (answer.body.len(), source.asked() - before)
    };
    assert_eq!(get("size-70000"), (70_000, 1));
    assert_eq!(get("chunked"), (2, 2));
    for _ in 0..3 {
        assert_eq!(get("chunked"), (2, 1));
        assert_eq!(get("size-70000"), (70_000, 1));
    }
}

#[test]
fn requests_sent_ahead_are_answered_in_their_order_or_not_at_all() {
    let source = Source::start(sized);
    all(&source.address, "", "", |taglock, _| {
        let sizes = [300_000, 65_536, 2_000_000];
        let ask = |size| http::bytes("x", "GET", &path(&format!("size-{size}")), &[], b"");
        // In one write, and one while the answer before it comes.
        for apart in [false, true] {
            let mut client = Kept::new(taglock);
            if apart {
                client.stream.write_all(&ask(sizes[0])).unwrap();
                client.reader.fill_buf_once();
                client.stream.write_all(&[ask(sizes[1]), ask(sizes[2])].concat()).unwrap();
            } else {
                client.stream.write_all(&sizes.map(ask).concat()).unwrap();
            }
            for size in sizes {
                match http::read_answer(&mut client.reader, false) {
                    Ok(answer) if answer.status == 200 => assert!(answer.body == body(size)),
                    Ok(answer) => panic!("{answer:?}"),
                    Err(_) => break,
                }
            }
        }
    });
}

trait FillOnce {
    fn fill_buf_once(&mut self);
}

impl FillOnce for BufReader<TcpStream> {
    fn fill_buf_once(&mut self) {
        assert!(!std::io::BufRead::fill_buf(self).unwrap().is_empty());
    }
}

/// Heads of answers, each for a body of this size.
fn kinds() -> Vec<(&'static str, String, usize)> {
    let large = 300_000;
    let of = |status: &str, more: &str| format!("{status}\r\nContent-Length: {large}{more}");
    vec![
        ("whole", of("200 OK", "\r\nDocker-Content-Digest: x\r\nETag: \"y\"\r\nX-Repeated: 1\r\nX-Repeated: 2"), large),
        ("part", of("206 Partial Content", "\r\nContent-Range: bytes 0-299999/900000"), large),
        ("small", "200 OK\r\nContent-Length: 5".into(), 5),
        ("empty", "200 OK\r\nContent-Length: 0".into(), 0),
        ("range", "416 Range Not Satisfiable\r\nContent-Range: bytes */7\r\nContent-Length: 3".into(), 3),
        ("same", "304 Not Modified\r\nETag: \"y\"".into(), 0),
        ("away", "307 Temporary Redirect\r\nLocation: https://s3.example.com/x?sig=a%2Bb%3D\r\nContent-Length: 0".into(), 0),
        ("unknown", "404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 70000".into(), 70_000),
        ("who", "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 20".into(), 20),
        ("busy", "429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 2".into(), 2),
        ("broken", of("500 Internal Server Error", ""), large),
        ("closes", of("200 OK", "\r\nConnection: close"), large),
        ("reason", of("200 Very Well", ""), large),
        ("hints", format!("103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 {}", of("200 OK", "")), large),
        ("ended", "200 OK\r\nConnection: close".into(), large),
        ("twice", format!("{}\r\nContent-Length: {large}", of("200 OK", "")), large),
    ]
}

#[test]
fn every_kind_of_answer_is_the_same_on_both_paths() {
    let chunked = |asked: &mut Asked| {
        let mut all = Vec::new();
        for part in body(700_000).chunks(70_001) {
            all.extend(format!("{:x};x=y\r\n", part.len()).bytes());
            all.extend(part);
            all.extend(b"\r\n");
        }
        all.extend(b"0\r\n\r\n");
        asked.say("200 OK\r\nTransfer-Encoding: chunked", &all)
    };
    let source = Source::start(move |asked| {
        let what = asked.what().to_owned();
        if what == "chunked" {
            return chunked(asked);
        }
        if what == "old" {
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {MIB}\r\n\r\n");
            let _ = asked.stream.write_all(&[head.as_bytes(), &body(MIB)].concat());
            return false;
        }
        let (_, head, size) = kinds().into_iter().find(|(name, ..)| *name == what).unwrap();
        asked.say(&head, &body(size)) && !head.contains("Connection: close")
    });
    let names = || kinds().into_iter().map(|(name, ..)| name).chain(["chunked", "old"]);
    let requests = || {
        let all = names().flat_map(|name| {
            let ask = |method, version, more: &str| {
                let line = format!("{method} {} HTTP/{version}\r\nHost: x\r\n", path(name));
                format!("{line}X-Request-Id: one\r\nRange: bytes=0-\r\nX-Own: 1\r\nX-Own: 2\r\n{more}\r\n")
            };
            let get = |version, more: &str| ask("GET", version, more);
            [
                ask("HEAD", "1.1", "Connection: close\r\n"),
                get("1.1", "Connection: close\r\n"),
                get("1.1", "Connection: close, X-Own\r\nTE: trailers\r\nKeep-Alive: 5\r\n"),
                get("1.1", "Connection: close\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_Host: y\r\n"),
                get("1.0", ""),
                get("1.1", "Connection: close\r\nContent-Length: 0\r\n"),
            ]
        });
        all.collect::<Vec<_>>()
    };
    let told = std::cell::RefCell::new(Vec::new());
    all(&source.address, "", "", |taglock, _| {
        let one = requests().into_iter().map(|request| {
            let mut stream = http::connect(&taglock.address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let head = answer.windows(4).rposition(|end| end == b"\r\n\r\n");
            let at = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap();
            assert!(head.is_some() && answer.starts_with(b"HTTP/1."), "{request}");
            let mut lines: Vec<_> =
                String::from_utf8_lossy(&answer[..at]).lines().map(str::to_owned).collect();
            lines.retain(|line| !line.to_ascii_lowercase().starts_with("date:"));
            lines[1..].sort();
            (request, lines, without_chunks_and_dates(&answer[at + 4..]), source.last_headers())
        });
        told.borrow_mut().push(one.collect::<Vec<_>>());
    });
    let told = told.into_inner();
    for (fast, slow) in told.chunks(2).flat_map(|told| told[0].iter().zip(&told[1])) {
        assert_eq!((&fast.1, &fast.3), (&slow.1, &slow.3), "{}", fast.0);
        assert!(fast.2 == slow.2, "{}: {} and {} bytes", fast.0, fast.2.len(), slow.2.len());
    }
}

/// Chunks may be cut otherwise, and a second passes between two answers.
fn without_chunks_and_dates(bytes: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    if let Some(at) = rest.windows(4).position(|end| end == b"\r\n\r\n")
        && rest.starts_with(b"HTTP/1.1 ")
    {
        let head = String::from_utf8_lossy(&rest[..at]);
        let mut lines: Vec<_> = head.lines().filter(|line| !line.starts_with("Date:")).collect();
        lines.sort_unstable();
        return [lines.concat().as_bytes(), &rest[at..]].concat();
    }
    let mut all = Vec::new();
    while let Some(end) = rest.windows(2).take(9).position(|end| end == b"\r\n") {
        let size = std::str::from_utf8(&rest[..end]).ok();
        let Some(size) = size.and_then(|size| usize::from_str_radix(size, 16).ok()) else { break };
        if rest.len() < end + 4 + size {
            break;
        }
        all.extend(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    [&all, rest].concat()
}

#[test]
fn reads_of_every_kind_take_turns_on_one_connection() {
    let source = Source::start(|asked| match asked.what() {
        "none" => asked.say("404 Not Found\r\nContent-Length: 2", b"{}"),
        "chunked" => asked.say("200 OK\r\nTransfer-Encoding: chunked", b"2\r\n{}\r\n0\r\n\r\n"),
        _ => sized(asked),
    });
    both(&source.address, "", "", |taglock, _| {
        let mut client = Kept::new(taglock);
        for round in 0..20 {
            for (n, what) in ["size-2000", "none", "chunked", "size-70000"].iter().enumerate() {
                KIND.set(if (round + n) % 3 == 0 { "blobs" } else { "manifests" });
                let answer = client.get(what);
                let expected = if *what == "none" { 404 } else { 200 };
                assert_eq!(answer.status, expected, "{round} {what}");
                assert_eq!(answer.header("Connection"), Some("keep-alive"), "{round} {what}");
            }
            // Refused here, and by nobody else: it has no such path, and no such method.
            for (method, target, status) in
                [("GET", "/v2/other/../manifests/v1", 400), ("TRACE", "/v2/", 405)]
            {
                let bytes = http::bytes("x", method, target, &[], b"");
                client.stream.write_all(&bytes).unwrap();
                assert_eq!(client.read().status, status, "{round} {target}");
            }
        }
        // Who says so is let go.
        KIND.set("manifests");
        let close = [("Connection", "close")];
        client.stream.write_all(&http::bytes("x", "GET", &path("size-9"), &close, b"")).unwrap();
        let answer = client.read();
        assert_eq!((answer.header("Connection"), &answer.body), (Some("close"), &body(9)));
        assert!(client.rest().is_empty());
    });
}

#[test]
fn a_first_line_is_checked_whatever_was_said_below_it_before() {
    let source = Source::start(sized);
    KIND.set("manifests");
    let taglock = Taglock::with(&source.address, "", "[limits]\nheader = \"4KiB\"\n");
    let long = path(&"a".repeat(4100));
    for (line, status) in [
        (format!("GET {}#x HTTP/1.1\r\n", path("size-9")), 400),
        (format!("GET {} HTTP/1.1\n", path("size-9")), 400),
        (format!("GET {}%2e HTTP/1.1\r\n", path("size-9")), 400),
        (format!("GET {} HTTP/2.0\r\n", path("size-9")), 400),
        (format!("GET {long} HTTP/1.1\r\n"), 431),
        (format!("HEAD {} HTTP/1.1\r\n", path("size-9")), 200),
        (format!("GET {} HTTP/1.1\r\n", path("size-10")), 200),
    ] {
        let mut client = Kept::new(&taglock);
        for _ in 0..2 {
            assert_eq!(client.get("size-9").body, body(9));
        }
        let usual = http::bytes("x", "GET", &path("size-9"), &[], b"");
        let end = usual.iter().position(|byte| *byte == b'\n').unwrap();
        client.stream.write_all(&[line.as_bytes(), &usual[end + 1..]].concat()).unwrap();
        let head = line.starts_with("HEAD");
        let answer = http::read_answer(&mut client.reader, head).unwrap();
        assert_eq!(answer.status, status, "{line}");
        if line.contains("size-10") {
            assert_eq!(answer.body, body(10));
        }
    }
}

#[test]
fn an_answer_has_the_date_it_was_given_and_says_nothing_of_the_registrys_connection() {
    let source = Source::start(|asked| {
        let own = format!("http://{}/v2/", asked.header("Host").unwrap_or_default());
        let lines = format!(
            "404 Not Found\r\nX-First: 1\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nKeep-Alive: timeout=5\r\n\
             X-Odd:  a:b \r\nLocation: {own}here\r\nWWW-Authenticate: Bearer realm=\"{own}token\"\r\n\
             www-authenticate: Basic realm=\"x\"\r\nConnection: keep-alive\r\nContent-Length: 2\r\nX-Last: 2"
        );
        asked.say(&lines, b"{}")
    });
    KIND.set("manifests");
    let taglock = Taglock::with(&source.address, "", "");
    let mut client = Kept::new(&taglock);
    for _ in 0..3 {
        let answer = client.get("none");
        let lines = |name: &str| -> Vec<&str> {
            let named = answer.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
            named.map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!((answer.status, &answer.body[..]), (404, &b"{}"[..]));
        let now = std::time::SystemTime::now();
        let [date] = lines("date")[..] else { panic!("{answer:?}") };
        let told = httpdate::parse_http_date(date).unwrap();
        let apart = now.duration_since(told).unwrap_or_else(|before| before.duration());
        assert!(apart < std::time::Duration::from_secs(5), "{date}");
        assert_eq!(lines("keep-alive"), [""; 0]);
        assert_eq!(lines("connection"), ["keep-alive"]);
        assert_eq!(lines("location"), ["http://x/v2/here"]);
        assert_eq!(
            lines("www-authenticate"),
            ["Bearer realm=\"http://x/v2/token\"", "Basic realm=\"x\""]
        );
        assert_eq!(
            (lines("x-first"), lines("x-odd"), lines("x-last")),
            (vec!["1"], vec!["a:b"], vec!["2"])
        );
    }
    assert_eq!(source.connections(), 1, "it is kept all the same");
}

#[test]
fn each_request_of_a_connection_is_introduced_as_its_own_clients() {
    const TOLD: [&str; 5] =
        ["Host", "X-Forwarded-For", "Forwarded", "Authorization", "X-Request-Id"];
    let source = Source::start(|asked| {
        let told = TOLD.map(|name| asked.header(name).unwrap_or("-").to_owned());
        let told = [asked.what(), &told.join(" | ")].join(" | ");
        asked.say(&format!("200 OK\r\nContent-Length: {}", told.len()), told.as_bytes())
    });
    // Behind a load balancer, which has the requests of many clients on one connection.
    let taglock = Taglock::from_file(|address, admin, folder| {
        format!(
            "[listen]\naddress = \"{address}\"\ntrusted_proxies = [\"127.0.0.0/8\"]\nhosts = [\"a.example\", \"b.example\"]\n\
             [upstream]\nurl = \"http://{}\"\nhost = \"client\"\n\
             [ledger]\npath = \"{folder}/ledger\"\n[admin]\naddress = \"{admin}\"\n",
            source.address
        )
    });
    KIND.set("manifests");
    let mut client = Kept::new(&taglock);
    let mut ids = BTreeSet::new();
    for round in 0..2 {
        for (n, (host, from, proto, whose)) in [
            ("a.example", "1.1.1.1", "https", "Basic YTox"),
            ("b.example", "1.1.1.1", "https", "Basic YTox"),
            ("b.example", "2.2.2.2", "https", "Basic YTox"),
            ("b.example", "2.2.2.2", "http", "Basic YTox"),
            ("b.example", "2.2.2.2", "http", "Basic Yjox"),
            ("b.example", "3.3.3.3, 2.2.2.2", "http", "Basic Yjox"),
        ]
        .iter()
        .enumerate()
        {
            let nearest = from.rsplit(", ").next().unwrap();
            let introduced = format!(
                "{host} | {from}, 127.0.0.1 | for={nearest};host=\"{host}\";proto={proto} | {whose} | "
            );
            // The very same lines several times, with an id of the client's own and without.
            for (own, what) in
                [(Some("1"), "x"), (Some("1"), "y"), (Some("2"), "x"), (None, "x"), (None, "y")]
            {
                let mut headers = vec![
                    ("X-Forwarded-For", *from),
                    ("X-Forwarded-Proto", *proto),
                    ("Authorization", *whose),
                ];
                headers.extend(own.map(|id| ("X-Request-Id", id)));
                let what = format!("{what}-{round}-{n}");
                let target = path(&what);
                client.stream.write_all(&http::bytes(host, "GET", &target, &headers, b"")).unwrap();
                let told = client.read().text();
                let expected = format!("{what} | {introduced}");
                let id = told.strip_prefix(&expected).unwrap_or_else(|| panic!("{told}"));
                match own {
                    Some(own) => assert_eq!(id, own),
                    None => assert!(id.len() == 36 && ids.insert(id.to_owned()), "{told}"),
                }
            }
        }
    }
    assert_eq!(ids.len(), 24);
    assert_eq!(source.connections(), 1);
}

#[test]
fn a_request_sent_ahead_of_an_answer_is_answered_next_where_taglock_reads_itself() {
    let source = Source::start(|asked| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        sized(asked)
    });
    KIND.set("manifests");
    let (taglock, first) = (Taglock::with(&source.address, "", ""), body(1000));
    let mut client = Kept::new(&taglock);
    client.ask("size-1000");
    // Not along with the first one: both together are pingora's, which ends the connection.
    eventually("the first request", || source.asked() == 1);
    client.ask("size-2000");
    assert!(client.read().body == first);
    assert!(client.read().body == body(2000));
}
