//! Requests as a registry got them: read strictly, and compared part by part.

use crate::bypass::{Reading, Recorder};

/// One request.
pub struct Got {
    pub line: String,
    pub headers: Vec<(String, String)>,
    /// Without its chunks.
    pub body: Vec<u8>,
}

impl Got {
    pub fn all(&self, name: &str) -> Vec<&str> {
        let own = self.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        own.map(|(_, value)| value.as_str()).collect()
    }

    fn read(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
        let text = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let headers: Vec<(String, String)> = lines
            .map(|line| {
                let (name, value) = line.split_once(": ").unwrap();
                (name.to_owned(), value.to_owned())
            })
            .collect();
        let mut got = Self { line, headers, body: Vec::new() };
        let rest = &bytes[end + 4..];
        got.body = if got.all("transfer-encoding").is_empty() {
            rest.to_vec()
        } else {
            assert_eq!(got.all("transfer-encoding"), ["chunked"], "{}", got.line);
            assert!(got.all("content-length").is_empty(), "{}", got.line);
            chunks(rest)
        };
        got
    }
}

fn chunks(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|part| part == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let (chunk, after) = rest[end + 2..].split_at(size);
        body.extend(chunk);
        rest = after.strip_prefix(b"\r\n").unwrap();
        if size == 0 {
            assert!(rest.is_empty(), "{:?} after the end", String::from_utf8_lossy(rest));
            return body;
        }
    }
}

/// The requests that a recorder got since the last time. All are whole, and nothing is between them.
pub fn requests(recorder: &Recorder, what: &str) -> Vec<Got> {
    let mut all = Vec::new();
    for bytes in recorder.take() {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let read = Reading::STRICT.first(rest);
            let Some((line, after)) = read else {
                panic!("{what}: not whole: {:.2000}", String::from_utf8_lossy(rest))
            };
            let words: Vec<_> = line.split(' ').collect();
            let is_one = words.len() == 3 && words[1].starts_with('/') && words[2] == "HTTP/1.1";
            assert!(is_one, "{what}: {line:?} is no request");
            all.push(Got::read(&rest[..rest.len() - after.len()]));
            rest = after;
        }
    }
    all
}

/// A registry that has nothing, takes everything and names the digest that it is asked for.
pub fn registry() -> Recorder {
    Recorder::start(|line| {
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let reference = target.rsplit_once("/manifests/").map(|(_, reference)| reference);
        let digest = reference.filter(|reference| reference.starts_with("sha256:"));
        let digest = digest
            .map_or_else(String::new, |digest| format!("Docker-Content-Digest: {digest}\r\n"));
        let (status, more) = match (method, reference) {
            ("PUT", _) => ("201 Created", "Content-Length: 0\r\n"),
            ("POST" | "PATCH", _) => {
                ("202 Accepted", "Location: /v2/open/app/blobs/uploads/u\r\nContent-Length: 0\r\n")
            }
            ("DELETE", _) => ("202 Accepted", "Content-Length: 0\r\n"),
            ("HEAD", Some(_)) if !digest.is_empty() => ("200 OK", "Content-Length: 9\r\n"),
            (_, Some(_)) => ("404 Not Found", "Content-Length: 0\r\n"),
            ("HEAD", None) => ("200 OK", "Content-Length: 2\r\n"),
            _ => ("200 OK", "Content-Length: 2\r\n\r\nok"),
        };
        let end = if more.ends_with("ok") { "" } else { "\r\n" };
        format!("HTTP/1.1 {status}\r\n{digest}{more}{end}").into_bytes()
    })
}
