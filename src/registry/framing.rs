//! The framing of a registry's answers: what has two readings is refused, what is of the connection
//! is removed.
//!
//! Every answer goes through [`settle`], whoever reads it: pingora's streaming, the blobs, taglock's
//! own requests. The relay (`client/relay.rs`) reads bytes; it takes only answers that [`settle`]
//! would leave as they are but for lines that it marks and drops, by the same functions.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderName, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{StatusCode, Version};
use pingora::ErrorType::InvalidHTTPHeader;
use pingora::http::ResponseHeader;
use pingora::{Error, Result};

/// The largest number of informational answers (1xx) before the final one.
pub const MAX_EARLY: usize = 16;

/// Of the connection, not of the message (RFC 9110, section 7.6.1), whether `Connection` names them
/// or not. `Transfer-Encoding` is not among them: pingora's writer frames the body by it.
pub const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    TE,
    TRAILER,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Whether this header is of the connection alone.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name)
}

/// A plain number, without sign, list or leading zero: some readers take `010` for eight.
pub fn is_length(text: &[u8]) -> bool {
    text.iter().all(u8::is_ascii_digit) && !text.is_empty() && (text[0] != b'0' || text.len() == 1)
}

/// Whether an answer with this status has no body, whatever its header says (RFC 9112, section 6.3).
pub fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Whether informational answers are too many.
///
/// # Errors
/// With more than [`MAX_EARLY`].
pub fn check_early(count: usize) -> Result<()> {
    if count > MAX_EARLY { refused("too many informational answers (1xx)") } else { Ok(()) }
}

/// Refuses an answer with two readings, and removes what is of the connection.
///
/// pingora's parser has changed some of it before: of a length beside a `Transfer-Encoding` it drops the
/// length and reads the body by the coding, so that the answer is clean here and the evidence is gone.
/// Two equal lengths it keeps as two lines: they are refused. Folded lines it makes one.
///
/// # Errors
/// Where the end of the answer, or of one of its lines, is a matter of opinion.
pub fn settle(header: &mut ResponseHeader) -> Result<()> {
    if header.status == StatusCode::SWITCHING_PROTOCOLS {
        return refused("a protocol is switched that nobody asked to be");
    }
    for name in nominated(header)? {
        if matches!(name, CONTENT_LENGTH | TRANSFER_ENCODING) {
            return refused("`Connection` names a header that frames the answer");
        }
        header.remove_header(&name);
    }
    for name in &HOP_BY_HOP {
        header.remove_header(name);
    }
    if is_bodiless(header.status) {
        header.remove_header(&CONTENT_LENGTH);
        header.remove_header(&TRANSFER_ENCODING);
        return Ok(());
    }
    check_length(header)?;
    check_coding(header)
}

fn check_length(header: &ResponseHeader) -> Result<()> {
    let mut lengths = header.headers.get_all(CONTENT_LENGTH).iter();
    let one = lengths.next().is_none_or(|length| is_length(length.as_bytes()));
    if one && lengths.next().is_none() {
        return Ok(());
    }
    refused("a Content-Length that is not one number")
}

fn check_coding(header: &ResponseHeader) -> Result<()> {
    let mut codings = header.headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
        return refused("an answer with a Transfer-Encoding other than `chunked`");
    }
    if header.version < Version::HTTP_11 {
        return refused("HTTP/1.0 has no Transfer-Encoding");
    }
    if header.headers.contains_key(CONTENT_LENGTH) {
        return refused("both a Content-Length and a Transfer-Encoding");
    }
    Ok(())
}

/// The headers that `Connection` names: they end at this hop.
fn nominated(header: &ResponseHeader) -> Result<Vec<HeaderName>> {
    let mut names = Vec::new();
    for value in header.headers.get_all(CONNECTION) {
        let tokens = value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii);
        for token in tokens.filter(|token| !token.is_empty()) {
            match HeaderName::from_bytes(token) {
                Ok(name) => names.push(name),
                // What can't be read can't be removed.
                Err(_) => return refused("`Connection` is not a list of names"),
            }
        }
    }
    Ok(names)
}

fn refused<T>(why: &'static str) -> Result<T> {
    Err(Error::explain(InvalidHTTPHeader, why).into_up())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of an answer, a line each, or `None` where it is refused.
    fn settled(version: Version, status: u16, lines: &[(&'static str, &str)]) -> Option<String> {
        let mut header = ResponseHeader::build(status, None).unwrap();
        header.set_version(version);
        for (name, value) in lines {
            header.append_header(*name, *value).unwrap();
        }
        settle(&mut header).ok()?;
        let line = |(name, value): (&HeaderName, &http::HeaderValue)| {
            format!("{name}: {}\n", value.to_str().unwrap())
        };
        Some(header.headers.iter().map(line).collect())
    }

    #[test]
    fn an_answer_has_one_length_or_one_coding_or_is_refused() {
        let check = |status, lines: &[(&'static str, &str)]| {
            settled(Version::HTTP_11, status, lines).is_some()
        };
        for good in [
            &[][..],
            &[("content-length", "0")],
            &[("content-length", "10")],
            &[("transfer-encoding", "Chunked")],
        ] {
            assert!(check(200, good), "{good:?}");
        }
        for bad in [
            &[("content-length", "5"), ("content-length", "5")][..],
            &[("content-length", "5"), ("content-length", "6")],
            &[("content-length", "5, 5")],
            &[("content-length", "010")],
            &[("content-length", "+5")],
            &[("content-length", "-5")],
            &[("content-length", "0x5")],
            &[("content-length", "5 ")],
            &[("content-length", "")],
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "xchunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("connection", "close, Content-Length"), ("content-length", "5")],
            &[("connection", "transfer-encoding"), ("transfer-encoding", "chunked")],
            &[("connection", "x y")],
        ] {
            assert!(!check(200, bad), "{bad:?}");
            assert!(!check(404, bad), "{bad:?}");
        }
        assert!(!check(101, &[]));
        for version in [Version::HTTP_09, Version::HTTP_10] {
            assert_eq!(settled(version, 200, &[("transfer-encoding", "chunked")]), None);
            assert!(settled(version, 200, &[("content-length", "5")]).is_some());
        }
    }

    #[test]
    fn an_answer_that_has_no_body_is_told_without_length_and_coding() {
        for status in [100, 102, 103, 204, 304] {
            for lines in [
                &[("content-length", "5")][..],
                &[("content-length", "5"), ("content-length", "6")],
                &[("content-length", "010")],
                &[("transfer-encoding", "chunked")],
                &[("transfer-encoding", "gzip")],
            ] {
                let left = settled(Version::HTTP_11, status, &[lines, &[("etag", "x")]].concat());
                assert_eq!(left.as_deref(), Some("etag: x\n"), "{status} {lines:?}");
            }
        }
    }

    #[test]
    fn what_is_of_the_connection_is_removed() {
        let lines = [
            ("connection", "close, X-Private ,, keep-alive"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authenticate", "Basic"),
            ("te", "trailers"),
            ("trailer", "X"),
            ("upgrade", "h2"),
            ("content-length", "5"),
            ("x-public", "1"),
        ];
        let left = settled(Version::HTTP_11, 200, &lines);
        assert_eq!(left.as_deref(), Some("content-length: 5\nx-public: 1\n"));
    }

    #[test]
    fn informational_answers_are_bounded() {
        assert!(check_early(MAX_EARLY).is_ok() && check_early(MAX_EARLY + 1).is_err());
    }
}
