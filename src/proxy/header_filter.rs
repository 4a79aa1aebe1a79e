//! Which header fields of a client's request reach the registry.
//!
//! Servers and frameworks read a second path, method, host or client address from many fields, each
//! under a name of its own, and CGI-like ones read `_` as `-`. A list of known names is never
//! complete, so a field is judged by the words of its name. What is standardised passes whatever
//! words it has; what says who the client is, is replaced by what taglock knows (`forwarding`).

use http::HeaderName;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT,
};

/// Standard fields of requests whose names have one of the words below and mean something else
/// (the registry of field names of RFC 9110, section 18.4).
const STANDARD: [&str; 1] = ["access-control-request-method"];

/// A field with one of these words tells a server another target, method, host, scheme, port or
/// client address than the request itself.
const WORDS: [&str; 39] = [
    "addr",
    "address",
    "authority",
    "backend",
    "base",
    "destination",
    "domain",
    "forward",
    "forwarded",
    "host",
    "hostname",
    "https",
    "ip",
    "ipv",
    "method",
    "mount",
    "original",
    "originating",
    "override",
    "path",
    "port",
    "prefix",
    "proto",
    "protocol",
    "proxy",
    "query",
    "replaced",
    "rewrite",
    "root",
    "route",
    "scheme",
    "script",
    "server",
    "subrequest",
    "upstream",
    "uri",
    "url",
    "verb",
    "vhost",
];

/// So does one with a word that begins or ends with one of these: "pathinfo", "requesturi".
const PARTS: [&str; 11] = [
    "addr", "forward", "hostname", "method", "original", "override", "path", "rewrite", "uri",
    "url", "host",
];

/// And one with a word that ends with one of these: "clientip".
const ENDS: [&str; 12] = [
    "address",
    "clientip",
    "connectingip",
    "ipaddr",
    "prefix",
    "proto",
    "realip",
    "remoteip",
    "scheme",
    "socketip",
    "sourceip",
    "userip",
];

/// Fields of a front server to its own applications, whatever comes after: how paths are mapped to
/// files.
const FAMILIES: [&str; 3] = ["x-accel-", "x-sendfile-", "x-forwarded"];

/// Whether a field of this name is passed on to the registry, as far as its meaning goes: what is of
/// the connection, or replaced, is dropped elsewhere.
pub fn may_pass(name: &HeaderName) -> bool {
    if is_usual(name) {
        return true;
    }
    let name = name.as_str();
    // Servers that hand fields on as variables (CGI, WSGI) take `_` for `-`, and some variables, as
    // SCRIPT_NAME, for the server's own.
    if name.contains('_') {
        return false;
    }
    if STANDARD.contains(&name) {
        return true;
    }
    !FAMILIES.iter().any(|family| name.starts_with(family))
        && !name.split(|c: char| !c.is_ascii_alphanumeric()).any(tells_another_request)
        && name != "alt-used"
}

/// Of nearly all requests: these are told at once, without a look at their words.
fn is_usual(name: &HeaderName) -> bool {
    matches!(
        *name,
        ACCEPT
            | ACCEPT_ENCODING
            | AUTHORIZATION
            | CONTENT_LENGTH
            | CONTENT_TYPE
            | HOST
            | USER_AGENT
    )
}

/// In one and in many, numbered or not.
fn tells_another_request(word: &str) -> bool {
    let one = word.trim_end_matches(|c: char| c.is_ascii_digit());
    let forms = [one, one.strip_suffix('s').unwrap_or(one)];
    forms.iter().any(|word| {
        WORDS.contains(word)
            || PARTS.iter().any(|part| word.starts_with(part) || word.ends_with(part))
            || ENDS.iter().any(|end| word.ends_with(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(name: &str) -> bool {
        may_pass(&HeaderName::from_bytes(name.as_bytes()).unwrap())
    }

    #[test]
    fn what_tells_a_server_another_request_is_not_passed_on() {
        for name in [
            "SCRIPT_NAME",
            "PATH_INFO",
            "REQUEST_METHOD",
            "X_Custom",
            "x-forwarded_host",
            "Content_Length",
            "Script-Name",
            "Path-Info",
            "X-Script-Name",
            "X-Original-URL",
            "X-Original-Uri",
            "X-Original-Host",
            "X-Original-Method",
            "X-Original-Forwarded-For",
            "X-Rewrite-URL",
            "X-Rewrite-Uri",
            "X-Replaced-Path",
            "X-Ingress-Path",
            "X-Base-Path",
            "X-Context-Path",
            "X-Mount-Path",
            "X-Path",
            "X-Url",
            "X-Uri",
            "Request-Uri",
            "X-Request-Uri",
            "X-Envoy-Original-Path",
            "X-Forwarded",
            "X-Forwarded-Prefix",
            "X-Forwarded-Path",
            "X-Forwarded-Uri",
            "X-Forwarded-Server",
            "X-Forwarded-Port",
            "X-Forwarded-Scheme",
            "X-ForwardedFor",
            "Forwarded-For",
            "X-Real-IP",
            "X-Client-IP",
            "X-Cluster-Client-Ip",
            "True-Client-IP",
            "CF-Connecting-IP",
            "Fastly-Client-IP",
            "X-Azure-ClientIP",
            "X-Azure-SocketIP",
            "X-Remote-Addr",
            "X-Remote-IP",
            "X-Originating-IP",
            "X-ProxyUser-Ip",
            "X-Envoy-External-Address",
            "X-HTTP-Method",
            "X-HTTP-Method-Override",
            "X-Method-Override",
            "X-Method",
            "X-Host",
            "X-HTTP-Host-Override",
            "X-Backend-Host",
            "X-Scheme",
            "X-Url-Scheme",
            "Front-End-Https",
            "Proxy",
            "X-Accel-Mapping",
            "X-Sendfile-Type",
            "X-JFrog-Override-Base-Url",
            "X-HTTPMethod",
            "X-HTTPMethodOverride",
            "X-RewriteUrl",
            "X-OriginalPath",
            "X-RequestUri",
            "X-BasePath",
            "X-PathPrefix",
            "X-URLPath",
            "X-ProxyContextPath",
            "X-HTTPHost",
            "X-HostOverride",
            "X-HTTP-Verb",
            "X-Vhost",
            "X-Server-Name",
            "X-Domain",
            "X-Backend-Server",
            "Destination",
            "X-Query-String",
            "X-Middleware-Subrequest",
            "Alt-Used",
            "TrueClientIP",
            "CF-Connecting-IPv6",
            "X-RemoteAddr",
            "X-SourceIP",
            "X-Forwarder-For",
            "X-Originating",
            "X!Script!Name",
            "X~Original~URL",
            "X-Urls",
            "X-Host1",
        ] {
            assert!(!passes(name), "{name}");
        }
    }

    #[test]
    fn standard_fields_and_those_of_registries_and_their_clients_pass() {
        for name in [
            "Accept",
            "Accept-Encoding",
            "Access-Control-Request-Headers",
            "Access-Control-Request-Method",
            "Authorization",
            "Cache-Control",
            "Content-Length",
            "Content-Range",
            "Content-Type",
            "Cookie",
            "Docker-Distribution-API-Version",
            "Expect",
            "Host",
            "If-Match",
            "If-None-Match",
            "OCI-Chunk-Min-Length",
            "OCI-Subject",
            "Origin",
            "Range",
            "Referer",
            "Sec-Fetch-Mode",
            "Traceparent",
            "User-Agent",
            "Via",
            "X-Amz-Content-Sha256",
            "X-Amz-Security-Token",
            "X-Amz-Target",
            "X-Subscription-Id",
            "X-Support-Gzip",
            "X-Checksum-Sha256",
            "X-Docker-Token",
            "X-Harbor-CSRF-Token",
            "X-Is-Resource-Name",
            "X-JFrog-Art-Api",
            "X-Meta-Source-Client",
            "X-Registry-Auth",
            "X-Request-Id",
            "X-Requested-With",
        ] {
            assert!(passes(name), "{name}");
        }
    }
}
