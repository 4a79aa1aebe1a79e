//! A client that sends exactly the bytes it is told to, and reads one answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An answer as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// In the order and spelling they came in.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = self.text().chars().take(400).collect();
        write!(f, "{} {:?} {text}", self.status, self.headers)
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of the first error of the spec's document.
    pub fn code(&self) -> String {
        let document: serde_json::Value =
            serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()));
        document["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn message(&self) -> String {
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        document["errors"][0]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// What must be equal with and without a proxy: all but the date and the connection.
    pub fn comparable(&self) -> (u16, BTreeMap<String, Vec<String>>, String) {
        let mut headers = BTreeMap::<_, Vec<_>>::new();
        for (name, value) in &self.headers {
            let name = name.to_ascii_lowercase();
            if !matches!(name.as_str(), "date" | "connection" | "keep-alive") {
                headers.entry(name).or_default().push(value.clone());
            }
        }
        (self.status, headers, self.text())
    }
}

/// Sends bytes on a new connection and reads one answer.
pub fn raw(address: &str, bytes: &[u8]) -> Answer {
    try_raw(address, bytes).unwrap_or_else(|e| panic!("no answer from {address}: {e}"))
}

pub fn try_raw(address: &str, bytes: &[u8]) -> std::io::Result<Answer> {
    let mut stream = connect(address)?;
    // A server that has answered early may close while we write; its answer is still there.
    let _ = stream.write_all(bytes);
    let head = bytes.starts_with(b"HEAD ");
    read_answer(&mut BufReader::new(stream), head)
}

pub fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn read_answer(reader: &mut impl BufRead, head: bool) -> std::io::Result<Answer> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let line = |reader: &mut dyn BufRead| -> std::io::Result<String> {
        let mut text = String::new();
        reader.read_line(&mut text)?;
        if text.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(text.trim_end().to_owned())
    };
    let status_line = line(reader)?;
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| bad(&status_line))?;
    let mut headers = Vec::new();
    loop {
        let text = line(reader)?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':').ok_or_else(|| bad(&text))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if status == 100 {
        return read_answer(reader, head);
    }
    let find = |wanted: &str| {
        headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(wanted)).map(|(_, v)| v.clone())
    };
    let mut body = Vec::new();
    if head || matches!(status, 204 | 304) {
    } else if find("transfer-encoding").is_some() {
        loop {
            let size = line(reader)?;
            let size = usize::from_str_radix(&size, 16).map_err(|_| bad(&size))?;
            let mut chunk = vec![0; size];
            reader.read_exact(&mut chunk)?;
            body.extend(chunk);
            line(reader)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = find("content-length") {
        body = vec![0; length.parse().map_err(|_| bad("length"))?];
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

/// An ordinary request with these headers and body.
pub fn request(
    address: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    try_raw(address, &bytes(address, method, target, headers, body))
        .unwrap_or_else(|e| panic!("{method} {target} at {address}: {e}"))
}

pub fn bytes(
    host: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        text += &format!("Host: {host}\r\n");
    }
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || matches!(method, "PUT" | "POST" | "PATCH") {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    [text.as_bytes(), body].concat()
}

pub fn get(address: &str, target: &str) -> Answer {
    request(address, "GET", target, &[], b"")
}
