//! The operators' API: who may ask, and that its description is the truth.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::harness::*;
use crate::http::{self, Answer, request};
use crate::operators::{TOKEN, push, started};

fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

fn ask(taglock: &Taglock, method: &str, target: &str, body: &[u8]) -> Answer {
    let authorization = bearer();
    let mut headers = vec![("Authorization", authorization.as_str())];
    if body.first() == Some(&b'{') && !target.starts_with("/v1/restore") {
        headers.push(("Content-Type", "application/json"));
    }
    request(&taglock.admin, method, target, &headers, body)
}

fn parsed(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
}

#[test]
fn only_the_token_lets_in_and_no_web_page() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", "");
    let status = |target: &str, headers: &[(&str, &str)]| {
        let answer = request(&taglock.admin, "GET", target, headers, b"");
        if !matches!(target, "/healthz" | "/readyz" | "/metrics") {
            assert_eq!(answer.header("Content-Type"), Some("application/json"), "{answer:?}");
            if answer.status != 200 {
                assert!(parsed(&answer)["message"].as_str().is_some_and(|m| !m.is_empty()));
            }
        }
        answer.status
    };
    let authorization = bearer();
    let with = ("Authorization", authorization.as_str());
    for target in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(status(target, &[]), 200);
    }
    for target in ["/v1/rules", "/v1/ledger", "/openapi.json", "/v1/nothing", "/"] {
        assert_eq!(status(target, &[]), 401, "{target}");
        assert_eq!(status(target, &[("Authorization", "Bearer x")]), 401, "{target}");
        let found = if matches!(target, "/" | "/v1/nothing") { 404 } else { 200 };
        assert_eq!(status(target, &[with]), found, "{target}");
        for origin in ["http://evil.example", "null", &format!("http://{}", taglock.admin)] {
            assert_eq!(status(target, &[with, ("Origin", origin)]), 403, "{target} {origin}");
        }
    }
    for (host, expected) in [("evil.example", 421), ("localhost", 200), ("[::1]:5080", 200)] {
        let text = format!(
            "GET /v1/rules HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n\r\n"
        );
        assert_eq!(http::raw(&taglock.admin, text.as_bytes()).status, expected, "{host}");
        // Probes may use any name.
        let text = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(http::raw(&taglock.admin, text.as_bytes()).status, 200, "{host}");
    }
    let named = started(&registry.address, "", "");
    let file = named.folder.path().join("taglock.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("token_file", "hosts = [\"ops.example\"]\ntoken_file")).unwrap();
    let mut named = named;
    named.restart();
    let text = format!(
        "GET /v1/rules HTTP/1.1\r\nHost: ops.example:81\r\nAuthorization: {authorization}\r\n\r\n"
    );
    assert_eq!(http::raw(&named.admin, text.as_bytes()).status, 200);

    let code = |method: &str, target: &str, body: &[u8]| {
        let answer = ask(&taglock, method, target, body);
        (answer.status, parsed(&answer)["code"].as_str().unwrap().to_owned())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(code("DELETE", "/v1/rules", b""), is(405, "method_not_allowed"));
    assert_eq!(code("POST", "/healthz", b""), is(405, "method_not_allowed"));
    assert_eq!(code("GET", "/v1/ledger?limit=x", b""), is(400, "invalid"));
    assert_eq!(code("GET", "/v1/ledger?unknown=1", b""), is(400, "invalid"));
    assert_eq!(code("GET", "/v1/entry", b""), is(400, "invalid"));
    assert_eq!(code("GET", "/v1/entry?reference=prod/app:v1", b""), is(404, "not_found"));
    assert_eq!(code("POST", "/v1/release", b"{}"), is(400, "invalid"));
    assert_eq!(code("POST", "/v1/release", b"nonsense"), is(400, "invalid"));
    assert_eq!(code("POST", "/v1/restore", b""), is(400, "invalid"));
    let large = vec![b'{'; 3 << 20];
    assert_eq!(code("POST", "/v1/import", &large), is(413, "too_large"));
    assert_eq!(code("POST", "/v1/restore?actor=x", &large), is(413, "too_large"));
    let many: Vec<_> = (0..101).map(|n| format!("v{n}")).collect();
    let many = json!({"repository": "prod/app", "tags": many, "actor": "x"}).to_string();
    assert_eq!(code("POST", "/v1/import", many.as_bytes()), is(400, "invalid"));
    let unnamed = json!({"repository": "prod/app", "tags": ["v1"]}).to_string();
    assert_eq!(code("POST", "/v1/import", unnamed.as_bytes()), is(400, "invalid"));
    for actor in ["", "%0a", &"x".repeat(501)] {
        let target = format!("/v1/restore?actor={actor}");
        assert_eq!(code("POST", &target, b""), is(400, "invalid"), "{actor}");
    }
    let log = taglock.process.log();
    assert!(!log.contains(TOKEN), "the token is in the log");
}

/// Holds a value to its schema, and notes which fields of which schema it has.
struct Held<'a> {
    api: &'a Value,
    seen: BTreeSet<String>,
}

impl Held<'_> {
    fn schema(&self, reference: &str) -> (String, Value) {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        (name.to_owned(), self.api["components"]["schemas"][name].clone())
    }

    /// The fields a schema has, those it is made of included, each with the schema it is from.
    fn properties(&self, name: &str, schema: &Value) -> Vec<(String, String, Value, bool)> {
        if let Some(reference) = schema["$ref"].as_str() {
            let (name, schema) = self.schema(reference);
            return self.properties(&name, &schema);
        }
        let parts = schema["allOf"].as_array().into_iter().flatten();
        let mut all: Vec<_> = parts.flat_map(|part| self.properties(name, part)).collect();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let needed = required.iter().any(|r| r == field);
            all.push((name.to_owned(), field.clone(), property.clone(), needed));
        }
        all
    }

    fn hold(&mut self, name: &str, schema: &Value, value: &Value) {
        if let Some(reference) = schema["$ref"].as_str() {
            let (name, schema) = self.schema(reference);
            return self.hold(&name, &schema, value);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = choices.iter().find(|choice| choice["type"] != "null").unwrap();
            return self.hold(name, choice, value);
        }
        let kinds: Vec<&str> = match &schema["type"] {
            Value::String(kind) => vec![kind],
            Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
            _ => vec!["object"],
        };
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        assert!(kinds.contains(&kind), "{name}: {value} is none of {kinds:?}");
        if let Some(allowed) = schema["enum"].as_array() {
            assert!(allowed.contains(value), "{name}: {value} is none of {allowed:?}");
        }
        for item in value.as_array().into_iter().flatten() {
            self.hold(name, &schema["items"], item);
        }
        let Value::Object(fields) = value else { return };
        let known = self.properties(name, schema);
        for (field, value) in fields {
            let found = known.iter().find(|(_, known, _, _)| known == field);
            let Some((owner, _, property, _)) = found else {
                panic!("{name}.{field} is not described");
            };
            self.seen.insert(format!("{owner}.{field}"));
            self.hold(&format!("{owner}.{field}"), property, value);
        }
        for (_, field, _, needed) in &known {
            assert!(!needed || fields.contains_key(field), "{name}.{field} is missing in {value}");
        }
    }

    /// Fields of all schemas that no value had.
    fn unseen(&self) -> Vec<String> {
        let schemas = self.api["components"]["schemas"].as_object().unwrap();
        let all = schemas.iter().flat_map(|(name, schema)| self.properties(name, schema));
        let all: BTreeSet<_> = all.map(|(owner, field, _, _)| format!("{owner}.{field}")).collect();
        all.difference(&self.seen).cloned().collect()
    }
}

const KEPT: &str = "[[rule]]\nname = \"kept\"\nrepositories = \"kept/**\"\n\
                    mutability = \"immutable\"\ndelete = \"keep\"\n";

#[test]
fn every_route_and_every_field_is_described_and_the_other_way_round() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", KEPT);
    let api = parsed(&ask(&taglock, "GET", "/openapi.json", b""));
    assert_eq!(api["openapi"].as_str().unwrap().split('.').next(), Some("3"));
    assert_eq!(api["components"]["securitySchemes"]["token"]["scheme"], "bearer");

    for (reference, seed) in [("prod/app:v1", "1"), ("prod/app:v2", "2"), ("kept/app:v1", "k")] {
        push(&taglock.address, reference, seed);
    }
    for tag in ["v7", "v8", "latest"] {
        push(&registry.address, &format!("prod/app:{tag}"), tag);
    }
    push(&registry.address, "prod/app:v2", "moved");
    let target = format!("/v2/kept/app/manifests/{}", digest(&manifest("k")));
    assert_eq!(request(&taglock.address, "DELETE", &target, &[], b"").status, 202);
    let basic = [("Content-Type", INDEX), ("Authorization", "Basic YWxpY2U6c2VjcmV0")];
    let target = "/v2/prod/app/manifests/v1";
    assert_eq!(request(&taglock.address, "PUT", target, &basic, &manifest("x")).status, 409);
    let export = ask(&taglock, "GET", "/v1/export", b"").text();
    let conflicting = export.replace(&digest(&manifest("1")), &digest(b"other"));
    let tags = |tags: &[&str]| {
        json!({"repository": "prod/app", "tags": tags, "actor": "alice"}).to_string()
    };
    let release = json!({
        "reference": "prod/app:v1", "reason": "why", "actor": "alice", "pending": false,
        "digest": digest(&manifest("1")),
    });
    let clear = json!({
        "repository": "prod/app", "digest": digest(&manifest("1")), "reason": "why", "actor": "alice",
    });
    let calls = [
        ("GET /healthz", "", String::new()),
        ("GET /readyz", "", String::new()),
        ("GET /metrics", "", String::new()),
        ("GET /openapi.json", "", String::new()),
        ("GET /v1/catalogue", "?after=n%3D1%26last%3Da", String::new()),
        ("GET /v1/tags", "?repository=prod/app", String::new()),
        ("POST /v1/import", "", tags(&["v1", "v7", "v99", "latest"])),
        ("POST /v1/verify", "", tags(&["v1", "v2", "v98", "latest"])),
        ("GET /v1/drift", "", String::new()),
        ("GET /v1/ledger", "?repository=prod/app&tag_prefix=v&state=sealed&limit=1", String::new()),
        ("GET /v1/ledger", "?after=default/prod/app:v1", String::new()),
        ("GET /v1/entry", "?reference=prod/app:v7", String::new()),
        ("GET /v1/pending", "?after=default/prod/app:v1", String::new()),
        ("GET /v1/rules", "", String::new()),
        (
            "GET /v1/explain",
            &format!("?reference=prod/app:v2&digest={}", digest(b"x")),
            String::new(),
        ),
        ("GET /v1/refusals", "", String::new()),
        ("GET /v1/delete-marks", "?repository=prod/app", String::new()),
        ("POST /v1/clear-delete", "", clear.to_string()),
        ("GET /v1/export", "", String::new()),
        ("POST /v1/restore", "?actor=alice", conflicting),
        ("POST /v1/release", "", release.to_string()),
    ];
    let (mut driven, mut held) = (BTreeSet::new(), Held { api: &api, seen: BTreeSet::new() });
    for (call, query, body) in &calls {
        let (method, path) = call.split_once(' ').unwrap();
        let answer = ask(&taglock, method, &format!("{path}{query}"), body.as_bytes());
        assert_eq!(answer.status, 200, "{call}: {answer:?}");
        if path == "/v1/import" {
            // The rules decide, not who asks.
            let imported = parsed(&answer);
            assert_eq!(imported["mutable"], json!(["latest"]), "{imported}");
            assert_eq!(imported["sealed"][0]["tag"], "v7", "{imported}");
            assert_eq!(imported["sealed"].as_array().unwrap().len(), 1, "{imported}");
        }
        let operation = &api["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "{call} is not described");
        driven.insert((*call).to_owned());
        let content = operation["responses"]["200"]["content"].as_object().unwrap();
        let (kind, content) = content.iter().next().unwrap();
        assert!(
            answer.header("Content-Type").unwrap().starts_with(kind.as_str()),
            "{call}: {answer:?}"
        );
        if kind == "application/json" && path != "/openapi.json" {
            held.hold(call, &content["schema"], &parsed(&answer));
        }
        // Its parameters are all there are: an unknown one is refused, a known one not.
        let known: Vec<_> = operation["parameters"].as_array().into_iter().flatten().collect();
        for pair in query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty()) {
            let name = pair.split('=').next().unwrap();
            assert!(known.iter().any(|p| p["name"] == name), "{call}: {name} is not described");
        }
        assert_eq!(!body.is_empty(), operation["requestBody"].is_object(), "{call}: its body");
        let content = &operation["requestBody"]["content"]["application/json"];
        if content.is_object() {
            held.hold(call, &content["schema"], &serde_json::from_str(body).unwrap());
        }
    }
    let mut all = BTreeSet::new();
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            all.insert(format!("{} {path}", method.to_uppercase()));
            let open = matches!(path.as_str(), "/healthz" | "/readyz" | "/metrics");
            assert_eq!(operation["security"].is_array(), open, "{path}: who needs a token");
            // And so it is.
            let answer = request(&taglock.admin, &method.to_uppercase(), path, &[], b"");
            assert_eq!(answer.status == 401, !open, "{path}: {answer:?}");
        }
    }
    assert_eq!(driven, all, "each route is driven, and each described");
    // Lines of an export are described, too.
    let (mut lines, schemas) = (export.lines(), &api["components"]["schemas"]);
    let line = |held: &mut Held<'_>, name: &str, text: &str| {
        held.hold(name, &schemas[name], &serde_json::from_str(text).unwrap());
    };
    line(&mut held, "ExportHeader", lines.next().unwrap());
    let rest: Vec<_> = lines.collect();
    let (footer, entries) = rest.split_last().unwrap();
    assert_eq!(entries.len(), 3);
    entries.iter().for_each(|text| line(&mut held, "LedgerEntry", text));
    line(&mut held, "ExportFooter", footer);
    line(&mut held, "Problem", &ask(&taglock, "GET", "/v1/entry?reference=x", b"").text());
    // What is told where the registry does not answer.
    drop(registry);
    let verified = ask(&taglock, "POST", "/v1/verify", tags(&["v2"]).as_bytes());
    line(&mut held, "Verified", &verified.text());
    let explained = ask(&taglock, "GET", "/v1/explain?reference=prod/app:v2", b"");
    line(&mut held, "Explanation", &explained.text());
    // Only a push that hangs, a delete without an answer, and a registry with a thousand repositories show
    // the rest.
    let mark = ["DeleteMark.deletes", "DeleteMark.digest", "DeleteMark.since"];
    let rest = ["LedgerEntry.pushes", "RepositoryPage.next"];
    assert_eq!(held.unseen(), [&mark[..], &rest].concat());
}

#[test]
fn refusals_are_listed_without_credentials() {
    let registry = Registry::start();
    let taglock = started(&registry.address, "", "");
    push(&taglock.address, "prod/app:v1", "one");
    let headers = [("Content-Type", INDEX), ("Authorization", "Basic YWxpY2U6c2VjcmV0")];
    let target = "/v2/prod/app/manifests/v1?tag=v1";
    for _ in 0..2 {
        let refused = request(&taglock.address, "PUT", target, &headers, &manifest("two"));
        assert!(refused.status >= 400, "{refused:?}");
    }
    let refused =
        request(&taglock.address, "PUT", "/v2/prod/app/manifests/v1", &headers, &manifest("two"));
    assert_eq!(refused.status, 409);
    let answer = ask(&taglock, "GET", "/v1/refusals", b"");
    for secret in ["secret", "YWxpY2U6c2VjcmV0", "tag=v1"] {
        assert!(!answer.text().contains(secret), "{}", answer.text());
    }
    let list = parsed(&answer);
    let last = &list["refusals"][0];
    assert_eq!(
        (&last["reason"], &last["user"], &last["status"], &last["client"]),
        (&"immutable".into(), &"alice".into(), &409.into(), &"127.0.0.1".into())
    );
    assert_eq!(
        (&last["method"], &last["path"]),
        (&"PUT".into(), &"/v2/prod/app/manifests/v1".into())
    );
    assert_eq!(list["refusals"].as_array().unwrap().len(), 3);
}
