//! What is fuzzed: functions of bytes that must never panic, and whose answers must hold together.
//!
//! libFuzzer runs them (`scripts/fuzz`), and so do the tests, over the corpus and over inputs of a
//! generator of its own.

use std::collections::BTreeSet;

use http::header::{HeaderName, HeaderValue, LINK, LOCATION, REFRESH, WWW_AUTHENTICATE};
use http::{HeaderMap, Method};
use taglock::ledger::codec;
use taglock::name::{Digest, RepositoryName, Tag};
use taglock::proxy::Asked;
use taglock::proxy::chunked::Chunks;
use taglock::proxy::url_rewriting::Rewriting;
use taglock::registry::media::MediaTypes;
use taglock::registry::wire;
use taglock::route::{Doors, Route};
use taglock::rules::{RepositoryPattern, TagPattern};
use taglock::settings;
use taglock::transport::endpoint::Origin;

/// A target and its name, which is also that of its corpus.
pub type Target = (&'static str, fn(&[u8]));

pub const ALL: [Target; 9] = [
    ("route", route),
    ("names", names),
    ("rules", rules),
    ("settings", settings),
    ("headers", headers),
    ("documents", documents),
    ("codec", codec),
    ("chunks", chunks),
    ("reads", reads),
];

const METHODS: [&str; 9] =
    ["PUT", "GET", "HEAD", "DELETE", "POST", "PATCH", "OPTIONS", "put", "LOCK"];

/// The first byte is the method, the rest the raw target.
///
/// Whatever a lenient registry, or a proxy in front of it, might take for a manifest's path is that
/// very manifest to taglock, or is refused.
pub fn route(data: &[u8]) {
    let Some((method, raw)) = data.split_first() else { return };
    let name = METHODS[usize::from(*method) % METHODS.len()];
    let Ok(method) = Method::from_bytes(name.as_bytes()) else { return };
    let Ok(route) = Route::parse(&method, raw, &Doors::default()) else { return };
    let readings = lenient::manifests(raw);
    // A method that only spells another one's name in small letters may be taken for it, too.
    let name = name.to_ascii_uppercase();
    let seen: BTreeSet<(String, String)> = match &route {
        Route::WriteManifest(write) => {
            assert_eq!(method, "PUT");
            let repository = write.repository.to_string();
            let path = match (&write.tags[..], write.digest) {
                ([tag], _) if !write.by_digest => tag.to_string(),
                (_, Some(digest)) => digest.to_string(),
                (tags, None) => panic!("a write of {tags:?} without a digest"),
            };
            for tag in lenient::tags(raw) {
                assert!(
                    write.tags.iter().any(|known| known.as_str() == tag),
                    "`{tag}` of the query is not judged: {route:?}"
                );
            }
            BTreeSet::from([(repository, path)])
        }
        Route::ReadManifest { repository, reference }
        | Route::DeleteManifest { repository, reference } => {
            BTreeSet::from([(repository.to_string(), reference.to_string())])
        }
        Route::Options => return,
        _ => BTreeSet::new(),
    };
    assert!(
        readings.is_subset(&seen),
        "{name} {:?} is {route:?}, and may be read as {readings:?}",
        String::from_utf8_lossy(raw)
    );
}

/// How others may read a target. Distribution's router (Go's `net/http` and gorilla/mux) decodes once,
/// cleans and redirects; nginx with a path in `proxy_pass` decodes, merges and resolves; servlet
/// containers drop parameters; some file systems and frameworks fold case or end at a NUL.
pub mod lenient {
    use super::{BTreeSet, Digest, RepositoryName, Tag};

    /// Every manifest the target's path may be taken for.
    pub fn manifests(raw: &[u8]) -> BTreeSet<(String, String)> {
        let path = raw.split(|b| *b == b'?').next().unwrap_or_default();
        let mut seen = BTreeSet::from([path.to_vec()]);
        let mut last: Vec<Vec<u8>> = seen.iter().cloned().collect();
        for _ in 0..3 {
            let mut next = Vec::new();
            for path in last {
                for reading in readings(&path) {
                    if seen.len() < 400 && seen.insert(reading.clone()) {
                        next.push(reading);
                    }
                }
            }
            last = next;
        }
        seen.iter().filter_map(|path| manifest(path)).collect()
    }

    fn readings(path: &[u8]) -> Vec<Vec<u8>> {
        let cut = |at: &[u8]| path.split(|b| at.contains(b)).next().unwrap_or_default().to_vec();
        let without_parameters = path
            .split(|b| *b == b'/')
            .map(|segment| segment.split(|b| *b == b';').next().unwrap_or_default())
            .collect::<Vec<_>>()
            .join(&b'/');
        let slashes = path.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
        // The absolute form, which has no slash before its scheme.
        let host = path
            .strip_prefix(b"/")
            .map_or(path, |_| b"")
            .windows(3)
            .position(|w| w == b"://")
            .and_then(|at| {
                let rest = &path[at + 3..];
                rest.iter().position(|b| *b == b'/').map(|slash| rest[slash..].to_vec())
            })
            .unwrap_or_default();
        vec![
            percent_encoding::percent_decode(path).collect(),
            clean(path),
            without_parameters,
            slashes,
            cut(b"\0"),
            cut(b"#?"),
            path.trim_ascii().to_vec(),
            host,
        ]
    }

    /// Empty and dot components resolved, as by Go's `path.Clean`.
    fn clean(path: &[u8]) -> Vec<u8> {
        let mut stack: Vec<&[u8]> = Vec::new();
        for segment in path.split(|b| *b == b'/') {
            match segment {
                b"" | b"." => {}
                b".." => drop(stack.pop()),
                other => stack.push(other),
            }
        }
        let mut out = vec![b'/'];
        out.extend(stack.join(&b'/'));
        out
    }

    /// The last `manifests` wins, and case does not count where it is fixed.
    fn manifest(path: &[u8]) -> Option<(String, String)> {
        let text = std::str::from_utf8(path).ok()?;
        let lower = text.to_ascii_lowercase();
        let below = lower.strip_prefix("/v2/").map(|_| &text["/v2/".len()..])?;
        let below = below.strip_suffix('/').unwrap_or(below);
        let (before, reference) = below.rsplit_once('/')?;
        let at = before.len().checked_sub("/manifests".len())?;
        if !before.is_char_boundary(at) || !before[at..].eq_ignore_ascii_case("/manifests") {
            return None;
        }
        let name = RepositoryName::parse(&before[..at]).ok()?;
        let known = Tag::parse(reference).is_ok() || Digest::parse(reference).is_ok();
        known.then(|| (name.to_string(), reference.to_owned()))
    }

    /// The tags a lenient server may find in the query.
    pub fn tags(raw: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(raw).into_owned();
        let query = text.split_once('?').map(|(_, query)| query.to_owned()).unwrap_or_default();
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        query
            .split(['&', ';'])
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(key, _)| decode(key).trim().eq_ignore_ascii_case("tag"))
            .map(|(_, value)| decode(value))
            .collect()
    }
}

/// Names, tags and digests: what is parsed says again what it was parsed from.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = RepositoryName::parse(text) {
        assert_eq!(name.to_string(), text);
        assert!(text.len() <= 255 && !text.contains("//") && !text.contains(".."));
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b))
        );
        assert!(!text.starts_with(['.', '_', '-', '/']) && !text.ends_with(['.', '_', '-', '/']));
    }
    let tag = Tag::parse(text);
    let digest = Digest::parse(text);
    assert!(tag.is_err() || digest.is_err(), "`{text}` is a tag and a digest");
    if let Ok(tag) = tag {
        assert_eq!(tag.to_string(), text);
        assert!((1..=128).contains(&text.len()) && !text.starts_with(['.', '-']));
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
    }
    if let Ok(digest) = digest {
        assert_eq!(digest.to_string(), text);
        assert!(matches!(text.len(), 71 | 135));
    }
}

/// A pattern, a line's end, and a name or tag for it: globs agree with a matcher written plainly.
pub fn rules(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (pattern, subject) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(parsed) = RepositoryPattern::parse(pattern) {
        assert_eq!(parsed.to_string(), pattern);
    }
    let Ok(parsed) = TagPattern::parse(pattern) else { return };
    assert_eq!(parsed.to_string(), pattern);
    let Ok(tag) = Tag::parse(subject) else { return };
    let matched = parsed.matches(&tag);
    if !pattern.starts_with("regex:") {
        assert_eq!(
            matched,
            plain(pattern.as_bytes(), subject.as_bytes()),
            "`{pattern}` and `{tag}`"
        );
    }
}

/// Whether a glob matches: each row says which beginnings of the text the pattern so far does.
fn plain(pattern: &[u8], text: &[u8]) -> bool {
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for byte in pattern {
        let mut next = vec![false; text.len() + 1];
        if *byte == b'*' {
            let first = row.iter().position(|matches| *matches);
            next.iter_mut().skip(first.unwrap_or(text.len() + 1)).for_each(|cell| *cell = true);
        } else {
            for at in 0..text.len() {
                next[at + 1] = row[at] && text[at] == *byte;
            }
        }
        row = next;
    }
    row[text.len()]
}

/// A file: settings, or mistakes that each say something.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Files that the text names are not to be read: only the ones that don't exist are.
    if text.contains("file") || text.contains("tls") || text.contains("client_") {
        return;
    }
    match settings::read("fuzz.toml", text, &|_| None) {
        Ok(settings) => {
            assert!(!settings::describe(&settings).is_empty());
        }
        Err(problems) => {
            assert!(!problems.0.is_empty());
            assert!(problems.0.iter().all(|problem| !problem.message.is_empty()));
        }
    }
}

/// Headers of answers and of pushes: what is rewritten names the client's host and keeps the rest.
pub fn headers(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let registry = Origin { tls: false, host: "registry.internal".into(), port: 5001 };
    let client = Origin { tls: true, host: "registry.example.com".into(), port: 443 };
    for name in [LOCATION, LINK, REFRESH, WWW_AUTHENTICATE] {
        let mut headers = HeaderMap::from_iter([(name.clone(), value.clone())]);
        Rewriting::new(&registry, Some(&client)).apply_to(&mut headers);
        check_rewritten(&name, &value, &headers);
        // A client that named no host gets everything as it is.
        let mut untouched = HeaderMap::from_iter([(name.clone(), value.clone())]);
        Rewriting::new(&registry, None).apply_to(&mut untouched);
        assert_eq!(untouched[&name], value);
    }
    if let Ok(text) = value.to_str() {
        let media = MediaTypes::new(Vec::new()).expect("none is extra");
        let essence = text.split(';').next().unwrap_or_default().trim();
        if media.may_write(text) {
            assert!(!MediaTypes::is_schema1(essence), "{text}");
        }
    }
}

fn check_rewritten(name: &HeaderName, before: &HeaderValue, after: &HeaderMap) {
    assert_eq!(after.get_all(name).iter().count(), 1);
    let after = &after[name];
    if after == before {
        return;
    }
    // Each URL that is gone from one is in the other. Quoted values lose their backslashes.
    let text = |value: &HeaderValue| {
        String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase().replace('\\', "")
    };
    let (before, after) = (text(before), text(after));
    let count = |text: &str, host: &str| text.matches(host).count();
    let came = count(&after, "registry.example.com") - count(&before, "registry.example.com");
    let went = count(&before, "registry.internal") - count(&after, "registry.internal");
    assert!(came >= 1 && came == went, "{before} became {after}");
    assert!(after.contains("https://"), "{before} became {after}");
}

/// Documents of the registry and of its token service.
pub fn documents(data: &[u8]) {
    let _ = wire::tag_list(data);
    let _ = wire::parts(data);
    let _ = wire::is_referrers_index(data);
    if let Some((token, _)) = wire::token(data) {
        assert!(!token.is_empty());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let document = wire::error_document("DENIED", text);
        assert!(document.starts_with(b"{\"errors\":[{\"code\":\"DENIED\""));
    }
}

/// Bytes of the ledger: what can be read is written as it was.
pub fn codec(data: &[u8]) {
    let Ok(entry) = codec::decode(data) else { return };
    let again = codec::encode(&entry).expect("an absent entry has no bytes");
    assert_eq!(codec::decode(&again).as_ref(), Ok(&entry));
    assert!(again.len() <= data.len(), "{entry:?}");
}

/// The first byte says in which pieces the rest comes, a body in chunks and what follows it.
///
/// It is read alike however it comes, and a body that is taken for whole is whole, and the same, to who
/// reads it line by line.
pub fn chunks(data: &[u8]) {
    let Some((step, body)) = data.split_first() else { return };
    let (at_once, in_pieces) =
        (read_chunks(body, body.len()), read_chunks(body, 1 + usize::from(*step)));
    assert_eq!(at_once, in_pieces, "in pieces of {step}");
    if let Ok((data, Some(end))) = &at_once {
        let plain = plain_chunks(body).expect("it is whole");
        assert_eq!((&plain.0, plain.1), (data, *end), "{:?}", String::from_utf8_lossy(body));
    }
}

/// A body's data, and where it ends, if it does.
type Body = (Vec<u8>, Option<usize>);

fn read_chunks(body: &[u8], step: usize) -> Result<Body, ()> {
    let (mut chunks, mut data, mut at, mut seen) = (Chunks::new(), Vec::new(), 0, 0);
    while !chunks.is_over() && seen < body.len() {
        seen = body.len().min(seen + step);
        loop {
            let mut pieces = Vec::new();
            let read = chunks.read(&body[at..seen], &mut pieces).map_err(drop)?;
            pieces.into_iter().for_each(|piece| data.extend(&body[at..seen][piece]));
            at += read;
            if read == 0 {
                break;
            }
        }
    }
    Ok((data, chunks.is_over().then_some(at)))
}

fn plain_chunks(body: &[u8]) -> Option<(Vec<u8>, usize)> {
    fn line<'a>(body: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
        let length = body[*at..].windows(2).position(|pair| pair == b"\r\n")?;
        let line = &body[*at..*at + length];
        *at += length + 2;
        // Some end a line there.
        (!line.contains(&b'\n')).then_some(line)
    }
    let (mut data, mut at) = (Vec::new(), 0);
    loop {
        let size = line(body, &mut at)?.split(|b| *b == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?.trim(), 16).ok()?;
        if size == 0 {
            while !line(body, &mut at)?.is_empty() {}
            return Some((data, at));
        }
        data.extend(body.get(at..at.checked_add(size)?)?);
        at += size;
        if line(body, &mut at)? != b"" {
            return None;
        }
    }
}

/// The bytes of a request: one that taglock reads itself has one reading, no body, and nothing after it.
pub fn reads(data: &[u8]) {
    let asked = Asked::of(data);
    // Whatever was made of the same lines before, it is the same request.
    let lines = data.iter().position(|byte| *byte == b'\n').map_or(&[][..], |end| &data[end + 1..]);
    let before = Asked::of(&[b"HEAD /v2/x/manifests/y HTTP/1.1\r\n", lines].concat());
    let again = before.and_then(|before| Asked::after(Some(before), data));
    let told = |asked: &Asked| {
        let header = &asked.header;
        let target = header.raw_path().to_vec();
        (header.method.clone(), target, header.version, header.headers.clone(), asked.keeps)
    };
    assert_eq!(asked.as_deref().map(told), again.as_deref().map(told));
    let Some(asked) = asked else { return };
    let text = data.strip_suffix(b"\r\n\r\n").expect("its end");
    if (0..text.len()).any(|at| text[at] == b'\n' && !text[..at].ends_with(b"\r")) {
        // What admits requests refuses it, as it does what pingora reads.
        return;
    }
    let lines: Vec<_> = String::from_utf8_lossy(text).split("\r\n").map(str::to_owned).collect();
    let (first, others) = lines.split_first().expect("a line");
    assert!(!text.contains(&b'\0') && lines.iter().all(|line| !line.contains(['\r', '\n'])));
    let parts: Vec<_> = first.split(' ').collect();
    assert_eq!((parts.len(), parts[2]), (3, "HTTP/1.1"), "{first}");
    assert_eq!(asked.header.method.as_str(), parts[0]);
    assert!(matches!(parts[0], "GET" | "HEAD") && parts[1].contains("/manifests/"), "{first}");
    assert_eq!(String::from_utf8_lossy(asked.header.raw_path()), parts[1]);
    let mut closes = false;
    for line in others {
        let (name, value) = line.split_once(':').expect("a header");
        let name = name.to_ascii_lowercase();
        assert!(!name.is_empty() && !name.contains([' ', '\t']), "{line:?}");
        assert!(!["content-length", "transfer-encoding", "expect"].contains(&&*name), "{line}");
        let mut tokens = value.split(',').map(|token| token.trim().to_ascii_lowercase());
        closes |= name == "connection" && tokens.any(|token| token == "close");
        let known = asked.header.headers.get_all(&name).iter();
        assert!(
            known
                .into_iter()
                .any(|v| v.as_bytes().trim_ascii() == value.trim().as_bytes() || !value.is_ascii())
        );
    }
    assert_eq!(asked.header.headers.len(), others.len());
    assert_eq!(asked.keeps, !closes);
}

/// What is spliced together where bytes alone would seldom be a target, a pattern or a file.
pub const WORDS: [&[&str]; 9] = [
    &[
        "/",
        "//",
        "/v2/",
        "v2",
        "V2",
        "%76%32",
        "/v2",
        "manifests",
        "Manifests",
        "%6danifests",
        "/manifests/",
        "%2fmanifests%2f",
        "%252f",
        "blobs",
        "/blobs/uploads/",
        "uploads",
        "tags/list",
        "referrers",
        "_catalog",
        "library",
        "app",
        "prod/app",
        "a",
        "v1",
        "latest",
        "..",
        ".",
        "/../",
        "/./",
        "%2e%2e",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        ";",
        ";x=y",
        "#",
        "%23",
        "?",
        "%3f",
        "%00",
        "%0a",
        "?tag=v1",
        "&tag=v2",
        "tag=v1",
        "TAG=v1",
        "%74ag=v1",
        "&digest=",
        "ns=docker.io",
        "+",
        "%20",
        "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "sha256%3Aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "http://registry/v2/",
        "*",
        ":",
        "@",
        "~",
        "token",
        "/service/token",
        "/artifacts-uploads/",
        "/api/v2.0/",
        "\u{e9}",
        " ",
    ],
    &[
        "a",
        "app",
        "library/app",
        "/",
        "//",
        "-",
        "--",
        "_",
        "__",
        "___",
        ".",
        "..",
        "A",
        "0",
        "sha256:",
        "sha512:",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "F",
        "v1.2.3",
        "%2f",
        "\u{e9}",
        " ",
        "\n",
    ],
    &[
        "*", "**", "v", "1", ".", "-", "_", "a", "regex:", "(", ")", "[", "]", "\\d", "+", "|",
        "^", "$", "{2}", "\n", "v1", "v1.2", "latest", "/", "prod/**",
    ],
    &[
        "[listen]\n",
        "[upstream]\n",
        "[ledger]\n",
        "[[rule]]\n",
        "[limits]\n",
        "[drift]\n",
        "[admin]\n",
        "[log]\n",
        "address = \"127.0.0.1:5000\"\n",
        "url = \"http://127.0.0.1:5001\"\n",
        "name = \"r\"\n",
        "repositories = [\"prod/**\"]\n",
        "repositories = \"**\"\n",
        "mutability = \"immutable\"\n",
        "mutability = \"mutable\"\n",
        "except = [\"latest\"]\n",
        "except = 'regex:v\\d+'\n",
        "delete = \"keep\"\n",
        "enforce = false\n",
        "manifest = \"4MiB\"\n",
        "header = \"1KiB\"\n",
        "store = \"redis\"\n",
        "refusal = \"ecr\"\n",
        "x = 1\n",
        "\"",
        "[",
        "]",
        "=",
        "${HOME}",
        "\n",
        "5s",
        "-1",
        "1e9",
        "#",
    ],
    &[
        "http://",
        "https://",
        "HTTP://",
        "registry.internal",
        "registry.internal:5001",
        ":5001",
        "/v2/",
        "@",
        "?",
        "#",
        "Bearer ",
        "Basic ",
        "realm=\"",
        "REALM=\"",
        "\"",
        ",",
        "service=\"r\"",
        "\\",
        " ",
        "evil.example",
        "%2f",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ";",
        "charset=utf-8",
        "\t",
    ],
    &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"tags\"",
        "\"manifests\"",
        "\"digest\"",
        "\"artifactType\"",
        "\"token\"",
        "\"access_token\"",
        "\"expires_in\"",
        "\"a\"",
        "null",
        "1",
        "-1",
        "1e400",
        "\\u0000",
    ],
    &[
        "S",
        "P",
        "\0",
        "\u{1}",
        "\u{2}",
        "\u{3}",
        "\u{7f}",
        "aaaaaaaaaaaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaa",
    ],
    &[
        "0\r\n",
        "\r\n",
        "1\r\na\r\n",
        "5\r\nabcde\r\n",
        "5;x=y\r\nabcde\r\n",
        "0a\r\n0123456789\r\n",
        "0\r\n\r\n",
        "0\r\nX-Y: z\r\n\r\n",
        "\n",
        ";",
        "\"",
        "-",
        "+",
        "ffffffffffffffff",
        "1 \r\n",
        " 1\r\n",
        "GET / HTTP/1.1\r\n",
        ":",
    ],
    &[
        "GET /v2/a/manifests/v1 HTTP/1.1\r\n",
        "GET /v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n",
        "HEAD /v2/a/manifests/v1?ns=y HTTP/1.1\r\n",
        "GET ",
        "HEAD ",
        "/v2/",
        "/v2/a/manifests/v1",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "Host: x\r\n",
        "Accept: a/b \r\n",
        "X:\r\n",
        "Connection: keep-alive, Close\r\n",
        "Connection: close\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        "content_length: 5\r\n",
        " folded\r\n",
        "Host : y\r\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        "\t",
        "\0",
        ":",
        "\u{e9}",
    ],
];
