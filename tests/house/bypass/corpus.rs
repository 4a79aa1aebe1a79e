//! Requests that set `prod/app:v1` on some registry, behind some proxy, or in somebody's dreams,
//! and what taglock says to each. `{D}` stands for the digest of the body, `{H}` for its hex.

use crate::harness::INDEX;

pub struct Case {
    pub name: &'static str,
    pub method: &'static str,
    pub target: &'static str,
    /// Beside the media type of an index, unless one of them is a `Content-Type`.
    pub headers: &'static [(&'static str, &'static str)],
    pub status: u16,
    /// HTTP/2 has one host by its very form.
    pub http1_only: bool,
}

/// Other spellings of the target; each is refused for every method that writes.
pub const SPELLINGS: &[&str] = &[
    // Measured to move a tag on a registry itself, or behind nginx.
    "/v2/prod%2Fapp/manifests/v1",
    "/v2/prod%2Fapp%2Fmanifests%2Fv1",
    "/v2/prod/app/manifests/%761",
    "/v2/prod/app/%6danifests/v1",
    "/%76%32/prod/app/manifests/v1",
    "/v2//prod/app/manifests/v1",
    "//v2/prod/app/manifests/v1",
    "/v2/x/../prod/app/manifests/v1",
    "/v2/x/%2e%2e/prod/app/manifests/v1",
    "/v2/./prod/app/manifests/v1",
    "/foo/../v2/prod/app/manifests/v1",
    "/v2/prod/app/manifests/v1#x",
    "http://evil.example/v2/prod/app/manifests/v1",
    "/v2/prod/app/blobs/uploads/..%2f..%2fmanifests%2fv1",
    "/v2/other/blobs/uploads/..%2f..%2f..%2fprod%2fapp%2fmanifests%2fv1",
    // Escapes.
    "/v2/prod/app/manifests/%2576%2531",
    "/v2/prod/app%2fmanifests/v1",
    "/v2/prod/app/manifests%2fv1",
    "/v2%2fprod/app/manifests/v1",
    "/v%32/prod/app/manifests/v1",
    "/%2576%2532/prod/app/manifests/v1",
    "/%2525762/prod/app/../../v2/prod/app/manifests/v1",
    "/v2/prod/app/manifests/v1%00",
    "/v2/prod/app/manifests/v1%20",
    "/v2/prod/app/manifests/%20v1",
    "/v2/prod/app/manifests/v1%0a",
    "/v2/prod/app/manifests/v1%0d%0aX:%20y",
    "/v2/prod/app/manifests/v1%2f",
    "/v2/prod/app/manifests/v1%23x",
    "/v2/prod/app/manifests/v1%3fx",
    "/v2/prod/app/manifests/v1%3bx",
    "/v2/prod/app/manifests/v1%3A",
    "/v2/prod/app/manifests/%3Av1",
    "/v2/prod/app/manifests/v%u0031",
    "/v2/prod/app/manifests/%c0%76%c0%b1",
    "/v2/prod/app/manifests/v%EF%BC%91",
    // Slashes, dots, parameters.
    "///v2/prod/app/manifests/v1",
    "/v2/prod//app/manifests/v1",
    "/v2/prod/app//manifests/v1",
    "/v2/prod/app/manifests//v1",
    "/v2/prod/app/manifests/v1/",
    "/v2/prod/app/manifests/v1//",
    "/v2/prod/app/manifests/v1/.",
    "/v2/prod/app/manifests/v1/x/..",
    "/v2/prod/app/manifests/./v1",
    "/v2/prod/app/manifests/x/../v1",
    "/v2/prod/app/manifests/%2e/v1",
    "/v2/prod/app/x/../manifests/v1",
    "/v2/prod/app/.%2e/app/manifests/v1",
    "/v2/..;/v2/prod/app/manifests/v1",
    "/v2/prod;x/app/manifests/v1",
    "/v2/prod/app/manifests;x/v1",
    "/v2/prod/app/manifests/v1;x=1",
    "/v2;x/prod/app/manifests/v1",
    "/v2/;/prod/app/manifests/v1",
    "/v2\\prod\\app\\manifests\\v1",
    "/v2/prod\\app/manifests/v1",
    "/\\v2/prod/app/manifests/v1",
    "/./v2/prod/app/manifests/v1",
    "/.//v2/prod/app/manifests/v1",
    "/%2e/v2/prod/app/manifests/v1",
    "/%2e%2e/v2/prod/app/manifests/v1",
    "/..%2fv2/prod/app/manifests/v1",
    "/x/..%5cv2/prod/app/manifests/v1",
    "/foo/%2e%2e/v2/prod/app/manifests/v1",
    "/foo%2f..%2fv2/prod/app/manifests/v1",
    "/foo/..;/v2/prod/app/manifests/v1",
    "/foo/..;x=/v2/prod/app/manifests/v1",
    // Dots resolved first and escapes decoded after it, and the other way round.
    "/a%2fb/../%76%32/prod/app/manifests/v1",
    "/a/b%2f../../v2/prod/app/manifests/v1",
    "/a/%2e%2e%2f%76%32/prod/app/manifests/v1",
    "/a%252fb/../%2576%2532/prod/app/manifests/v1",
    // Case.
    "/V2/prod/app/manifests/v1",
    "/v2/Prod/app/manifests/v1",
    "/v2/prod/app/Manifests/v1",
    "/v2/prod/app/MANIFESTS/v1",
    // A host, or none, in the target.
    "http://x/v2/prod/app/manifests/v1",
    "HTTP://x/v2/prod/app/manifests/v1",
    "https://x/v2/prod/app/manifests/v1",
    "http:/v2/prod/app/manifests/v1",
    "http:///v2/prod/app/manifests/v1",
    "http://x@y/v2/prod/app/manifests/v1",
    "//x/../v2/prod/app/manifests/v1",
    "x/v2/prod/app/manifests/v1",
    "v2/prod/app/manifests/v1",
    "x:5000/v2/prod/app/manifests/v1",
    "?/v2/prod/app/manifests/v1",
    "*",
    // Upload and token doors.
    "/v2/prod/app/blobs/uploads/../../manifests/v1",
    "/v2/prod/app/blobs/uploads/%2e%2e/%2e%2e/manifests/v1",
    "/v2/prod/app/blobs/uploads/..%5c..%5cmanifests%5cv1",
    "/v2/other/blobs/uploads/../../../prod/app/manifests/v1",
    "/v2/prod/app/blobs/uploads//../../manifests/v1",
    "/v2/prod/app/blobs/uploads/;/../../../manifests/v1",
    "/v2/prod/app/blobs/uploads/x/Manifests/v1",
    "/v2/prod/app/blobs/uploads/manifests",
    "/v2/prod/app/blobs/uploads/x/manifests/y/v1",
    "/v2/prod/app/blobs/uploads/x/%6danifests/v1",
    "/v2/prod/app/blobs/upload/..%2f..%2fmanifests%2fv1",
    "/v2/prod/app/blobs/upload/x%3Ay/../../../manifests/v1",
    "/artifacts-uploads/../v2/prod/app/manifests/v1",
    "/artifacts-uploads/%2e%2e/v2/prod/app/manifests/v1",
    "/artifacts-uploads//../v2/prod/app/manifests/v1",
    "/artifacts-uploads/x/manifests/v1",
    "/token/../v2/prod/app/manifests/v1",
    "/v2/token/../prod/app/manifests/v1",
    "/v2/auth/%2e%2e/prod/app/manifests/v1",
    "/service/token/../../v2/prod/app/manifests/v1",
];

const fn put(name: &'static str, target: &'static str, status: u16) -> Case {
    Case { name, method: "PUT", target, headers: &[], status, http1_only: false }
}

const fn with(
    name: &'static str,
    headers: &'static [(&'static str, &'static str)],
    status: u16,
) -> Case {
    Case { name, method: "PUT", target: V1, headers, status, http1_only: false }
}

const fn method(method: &'static str, headers: &'static [(&'static str, &'static str)]) -> Case {
    let (name, target) = ("another method", V1);
    Case { name, method, target, headers, status: 405, http1_only: false }
}

const V1: &str = "/v2/prod/app/manifests/v1";
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// What is not a matter of spelling.
pub const CASES: &[Case] = &[
    put("the plain way", V1, 409),
    put("an empty query", "/v2/prod/app/manifests/v1?", 409),
    put("nothing between ampersands", "/v2/prod/app/manifests/v1?&&", 409),
    put("an unknown key", "/v2/prod/app/manifests/v1?x=1", 400),
    put("a tag of a tag", "/v2/prod/app/manifests/v2?tag=v1", 400),
    put("the digest of the body", "/v2/prod/app/manifests/v1?digest={D}", 409),
    put("a digest with a tag", "/v2/prod/app/manifests/{D}?tag=v1", 409),
    put("an escaped colon", "/v2/prod/app/manifests/sha256%3A{H}?tag=v1", 409),
    put("a colon escaped twice", "/v2/prod/app/manifests/sha256%253A{H}?tag=v1", 400),
    put("an escaped key", "/v2/prod/app/manifests/{D}?%74ag=v1", 409),
    put("an escaped value", "/v2/prod/app/manifests/{D}?tag=%76%31", 409),
    put("a value escaped twice", "/v2/prod/app/manifests/{D}?tag=%2576%2531", 400),
    put("a new tag with an old one", "/v2/prod/app/manifests/{D}?tag=v2&tag=v1", 409),
    put("an old tag with a new one", "/v2/prod/app/manifests/{D}?tag=v1&tag=v2", 409),
    put("an old tag with a mutable one", "/v2/prod/app/manifests/{D}?tag=latest&tag=v1", 409),
    put("a tag behind a mirror's name", "/v2/prod/app/manifests/{D}?ns=docker.io&tag=v1", 400),
    put("a blank before the tag", "/v2/prod/app/manifests/{D}?tag=%20v1", 400),
    put("a plus before the tag", "/v2/prod/app/manifests/{D}?tag=+v1", 400),
    put("a semicolon between tags", "/v2/prod/app/manifests/{D}?tag=v2;tag=v1", 400),
    put("a comma between tags", "/v2/prod/app/manifests/{D}?tag=v2,v1", 400),
    put("a key in capitals", "/v2/prod/app/manifests/{D}?Tag=v1", 400),
    put("a key as an array", "/v2/prod/app/manifests/{D}?tag[]=v1", 400),
    put("a line feed behind the tag", "/v2/prod/app/manifests/{D}?tag=v1%0a", 400),
    put("a second question mark", "/v2/prod/app/manifests/{D}?x?tag=v1", 400),
    put("a digest in capitals", "/v2/prod/app/manifests/SHA256:{H}?tag=v1", 400),
    put("an override in the query", "/v2/prod/app/manifests/{D}?_method=PUT&tag=v1", 400),
    put("a name with a port", "/v2/localhost:5000/prod/app/manifests/v1", 400),
    // Longer names are other repositories, on every registry.
    put("a repository below uploads", "/v2/prod/app/blobs/uploads/manifests/v1", 201),
    put("a repository below manifests", "/v2/prod/app/manifests/v1/manifests/v1", 201),
    // Not below `/v2/`, and not an upload.
    put("docker's first protocol", "/v1/repositories/prod/app/tags/v1", 403),
    put("an API", "/api/v2.0/projects/prod/repositories/app/artifacts/x/tags/v1", 403),
    put("below the token service", "/token/v2/prod/app/manifests/v1", 400),
    put("a prefix", "/artifactory/api/docker/local/v2/prod/app/manifests/v1", 400),
    put("not the token service", "/v2/token/prod/app", 405),
    method("POST", &[]),
    method("PATCH", &[]),
    method("DELETE", &[]),
    method("put", &[]),
    method("Put", &[]),
    method("PUTX", &[]),
    method("MOVE", &[("Destination", V1)]),
    method("COPY", &[("Destination", V1)]),
    method("POST", &[("X-HTTP-Method-Override", "PUT")]),
    method("POST", &[("X_HTTP_METHOD_OVERRIDE", "PUT")]),
    method("POST", &[("X-HTTP-Method", "PUT")]),
    method("POST", &[("X-Method-Override", "PUT")]),
    Case {
        name: "another target in a header",
        method: "PUT",
        target: "/v2/other/blobs/uploads/none?digest={D}",
        headers: &[("X-Original-URL", V1), ("X-Rewrite-URL", V1), ("X_Original_URL", V1)],
        status: 404,
        http1_only: false,
    },
    with("no type", &[("Content-Type", "")], 415),
    with("json", &[("Content-Type", "application/json")], 415),
    with("schema 1", &[("Content-Type", SCHEMA1)], 415),
    with("two types", &[("Content-Type", INDEX), ("Content-Type", SCHEMA1)], 415),
    with("a type and another", &[("Content-Type", "application/json, application/xml")], 415),
    with("a coding", &[("Content-Type", INDEX), ("Content-Encoding", "gzip")], 415),
    with("two codings", &[("Content-Type", INDEX), ("Content-Encoding", "identity, gzip")], 415),
    Case {
        name: "schema 1 by its digest",
        method: "PUT",
        target: "/v2/prod/app/manifests/{D}",
        headers: &[("Content-Type", SCHEMA1)],
        status: 415,
        http1_only: false,
    },
    with("a path in the Host", &[("Host", "x/v2/prod/app/manifests/v1")], 400),
    with("a query in the Host", &[("Host", "x?y")], 400),
    with("a fragment in the Host", &[("Host", "x#y")], 400),
    with("a user in the Host", &[("Host", "user@x")], 400),
    with("a blank in the Host", &[("Host", "x y")], 400),
    with("another Host", &[("Host", "evil.example:1")], 409),
    Case { http1_only: true, ..with("two Hosts", &[("Host", "x"), ("Host", "x")], 400) },
    Case { http1_only: true, ..with("an empty Host", &[("Host", "")], 400) },
    Case { http1_only: true, ..with("an upgrade", &[("Upgrade", "h2c")], 400) },
    Case {
        http1_only: true,
        ..with("an upgrade, told", &[("Connection", "Upgrade, HTTP2-Settings")], 400)
    },
    Case { http1_only: true, ..with("settings", &[("HTTP2-Settings", "AAMAAABk")], 400) },
    Case {
        http1_only: true,
        ..with("a nominated Content-Length", &[("Connection", "Content-Length")], 400)
    },
    Case { http1_only: true, ..with("a nominated type", &[("Connection", "Content-Type")], 409) },
    Case {
        http1_only: true,
        ..with("a nominated host", &[("Connection", "Content-Type, Host")], 400)
    },
];

impl Case {
    /// Target and headers for this body.
    pub fn made_for(&self, digest: &str) -> (String, Vec<(&'static str, &'static str)>) {
        let target = filled(self.target, digest);
        let mut headers = self.headers.to_vec();
        if !headers.iter().any(|(name, _)| *name == "Content-Type") {
            headers.push(("Content-Type", INDEX));
        }
        headers.retain(|(_, value)| !value.is_empty() || self.name == "an empty Host");
        (target, headers)
    }
}

pub fn filled(target: &str, digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap();
    target.replace("{D}", digest).replace("{H}", hex)
}
