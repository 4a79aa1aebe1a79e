//! Documents of the distribution spec: the error document ("Error Codes") and the list of tags
//! ("Listing Tags"); those of Harbor's API, as far as they matter.

use std::collections::HashMap;

use base64::prelude::*;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Document<'a> {
    errors: [Entry<'a>; 1],
}

#[derive(Serialize)]
struct Entry<'a> {
    code: &'a str,
    message: &'a str,
}

/// The body of an error. It has no `detail`: clients print one as it comes, or not at all.
pub fn error_document(code: &str, message: &str) -> Vec<u8> {
    let document = Document { errors: [Entry { code, message }] };
    // Two texts in a fixed shape: nothing here that a serialiser could refuse.
    serde_json::to_vec(&document).expect("two strings are JSON")
}

/// Of a registry's words, at most so many characters are repeated.
const LONGEST_MESSAGE: usize = 400;

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: Option<String>,
    message: Option<String>,
}

/// What an error says: the messages of an error document, or a short text; in one line. `None` where
/// there are no words.
pub fn error_message(body: &[u8]) -> Option<String> {
    let words = match serde_json::from_slice::<Errors>(body) {
        Ok(document) => {
            let said = |error: OneError| match (error.code, error.message) {
                (Some(code), Some(message)) if !message.is_empty() => {
                    Some(format!("{code}: {message}"))
                }
                (code, message) => message.filter(|message| !message.is_empty()).or(code),
            };
            document.errors.into_iter().filter_map(said).collect::<Vec<_>>().join("; ")
        }
        // A page of HTML, or another document, says nothing in a line of text.
        Err(_) => {
            let text = std::str::from_utf8(body).ok()?;
            if text.trim_start().starts_with(['<', '{', '[']) {
                String::new()
            } else {
                text.to_owned()
            }
        }
    };
    let line: Vec<_> = words.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line = line.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let short: String = line.chars().take(LONGEST_MESSAGE).collect();
    (!short.is_empty()).then_some(short)
}

#[derive(Deserialize)]
struct TagList {
    /// Registries write `null` where there are none. A document without it is another one.
    #[serde(deserialize_with = "Option::deserialize")]
    tags: Option<Vec<String>>,
}

/// The tags of a list, as they stand there; `None` where it is no list.
pub fn tag_list(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice::<TagList>(body).ok().map(|list| list.tags.unwrap_or_default())
}

#[derive(Deserialize)]
struct Catalogue {
    #[serde(deserialize_with = "Option::deserialize")]
    repositories: Option<Vec<String>>,
}

/// The repositories of a catalogue, as they stand there; `None` where it is none.
pub fn catalogue(body: &[u8]) -> Option<Vec<String>> {
    let catalogue = serde_json::from_slice::<Catalogue>(body).ok()?;
    Some(catalogue.repositories.unwrap_or_default())
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The token of a token service's answer, and its lifetime in seconds, where it says one.
pub fn token(body: &[u8]) -> Option<(String, Option<u64>)> {
    let Token { token, access_token, expires_in } = serde_json::from_slice(body).ok()?;
    let token = token.or(access_token).filter(|token| !token.is_empty())?;
    Some((token, expires_in))
}

#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    artifact_type: Option<String>,
}

/// The manifests an index or a list is made of; none where it is neither. `None` where what it is made
/// of can't be told: it is no document, or its parts have no digests.
pub fn parts(manifest: &[u8]) -> Option<Vec<String>> {
    let manifest = manifest.trim_ascii_start();
    // An array would be read as the index's fields in their order.
    let index = Some(manifest).filter(|text| text.starts_with(b"{"))?;
    let index = serde_json::from_slice::<Index>(index).ok()?;
    if index.manifests.is_none() && names_parts(manifest) {
        return None;
    }
    let manifests = index.manifests.unwrap_or_default().into_iter();
    Some(manifests.map(|descriptor| descriptor.digest).collect())
}

/// Whether a field may be the index's, in another case: Go takes it for the same.
fn names_parts(manifest: &[u8]) -> bool {
    let named = |field: &String| field != "manifests" && field.eq_ignore_ascii_case("manifests");
    let fields = serde_json::from_slice::<HashMap<String, IgnoredAny>>(manifest);
    fields.is_ok_and(|fields| fields.keys().any(named))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    schema_version: u64,
}

/// Whether this is a manifest of schema 1: it is made of layers alone.
pub fn is_schema1(manifest: &[u8]) -> bool {
    let version = serde_json::from_slice::<Version>(manifest);
    version.is_ok_and(|version| version.schema_version == 1)
        && parts(manifest).is_some_and(|parts| parts.is_empty())
}

#[derive(Deserialize)]
struct Signed {
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    protected: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protected {
    format_length: usize,
    format_tail: String,
}

/// What the digest of a signed manifest of schema 1 is of: the manifest before it was signed ("Image
/// Manifest Version 2, Schema 1", "Signed Manifests"). `None` where the bytes are none, or where two
/// signatures are about different ones.
pub fn schema1_payload(body: &[u8]) -> Option<Vec<u8>> {
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    let signed = serde_json::from_slice::<Signed>(body).ok()?;
    let payloads = signed.signatures.iter().map(|signature| {
        let protected = decode(&signature.protected)?;
        let protected = serde_json::from_slice::<Protected>(&protected).ok()?;
        let mut payload = body.get(..protected.format_length)?.to_vec();
        payload.extend(decode(&protected.format_tail)?);
        Some(payload)
    });
    let mut payloads = payloads.collect::<Option<Vec<_>>>()?;
    payloads.dedup();
    let payload = payloads.pop().filter(|_| payloads.is_empty())?;
    let version = serde_json::from_slice::<Version>(&payload).ok()?;
    (version.schema_version == 1).then_some(payload)
}

/// Whether this is an index of referrers (distribution spec, "Referrers Tag Schema"): all it
/// names has an artifact's type. Tools write it anew and delete the old one.
pub fn is_referrers_index(manifest: &[u8]) -> bool {
    let index = serde_json::from_slice::<Index>(manifest).ok();
    let manifests = index.and_then(|index| index.manifests);
    manifests.is_some_and(|all| all.iter().all(|descriptor| descriptor.artifact_type.is_some()))
}

#[derive(Deserialize)]
struct Artifact {
    digest: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The digest of Harbor's artifact, or accessory.
pub fn artifact(body: &[u8]) -> Option<String> {
    serde_json::from_slice::<Artifact>(body).ok().map(|artifact| artifact.digest)
}

/// A page of Harbor's accessories: their digests.
pub fn accessories(body: &[u8]) -> Option<Vec<String>> {
    let page = serde_json::from_slice::<Option<Vec<Artifact>>>(body).ok()?.unwrap_or_default();
    Some(page.into_iter().map(|accessory| accessory.digest).collect())
}

/// A page of Harbor's tags.
pub fn tags(body: &[u8]) -> Option<Vec<String>> {
    let tags = serde_json::from_slice::<Option<Vec<Named>>>(body).ok()?.unwrap_or_default();
    Some(tags.into_iter().map(|tag| tag.name).collect())
}

/// What Harbor's model of a tag has besides its name, none of which counts where one is created.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "named so that they are known, and read by nobody")]
struct NewTag {
    name: String,
    #[serde(default)]
    id: IgnoredAny,
    #[serde(default)]
    repository_id: IgnoredAny,
    #[serde(default)]
    artifact_id: IgnoredAny,
    #[serde(default)]
    push_time: IgnoredAny,
    #[serde(default)]
    pull_time: IgnoredAny,
    #[serde(default)]
    immutable: IgnoredAny,
    #[serde(default)]
    signed: IgnoredAny,
}

/// The name in a request for a new tag. Go takes keys in any case, the last of several, and what
/// stands before trailing bytes: where it could read another name, none is read here.
pub fn new_tag(body: &[u8]) -> Option<String> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    serde_json::from_slice::<NewTag>(body).ok().map(|tag| tag.name)
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
}

/// Such a request.
pub fn new_tag_document(name: &str) -> Vec<u8> {
    // One text in a fixed shape: nothing here that a serialiser could refuse.
    serde_json::to_vec(&Name { name }).expect("a string is JSON")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_new_tag_has_one_reading_or_none() {
        use super::{new_tag, new_tag_document};
        let name = |text: &str| new_tag(text.as_bytes());
        let v1 = Some("v1".to_owned());
        assert_eq!(name(r#" {"name":"v1"} "#), v1);
        assert_eq!(name(r#"{"name":"\u0076\u0031"}"#), v1);
        assert_eq!(
            name(r#"{"repository_id":0,"artifact_id":null,"name":"v1","signed":false}"#),
            v1
        );
        assert_eq!(new_tag(&new_tag_document("v1")), v1);
        for odd in [
            "",
            "null",
            "[]",
            r#""v1""#,
            "{}",
            r#"{"name":null}"#,
            r#"{"name":1}"#,
            r#"{"name":["v1"]}"#,
            r#"{"Name":"v1"}"#,
            r#"{"name":"v1","NAME":"v2"}"#,
            r#"{"name":"v1","name":"v2"}"#,
            r#"{"name":"v1","n\u0061me":"v2"}"#,
            r#"{"name":"v1","ſigned":1}"#,
            r#"{"name":"v1","tag":"v2"}"#,
            r#"{"name":"v1"}{"name":"v2"}"#,
            r#"{"name":"v1"} x"#,
            r#"{"name":"v1",}"#,
            r#"["v1",0,0,0,0,0,0,0]"#,
        ] {
            assert_eq!(name(odd), None, "{odd}");
        }
    }

    #[test]
    fn harbors_pages_are_read() {
        use super::{accessories, artifact, tags};
        let one = r#"{"digest":"d","tags":[{"name":"a","id":1}],"more":{}}"#;
        assert_eq!(artifact(one.as_bytes()).as_deref(), Some("d"));
        let page = format!(r#"[{one},{{"digest":"e","tags":null}}]"#);
        assert_eq!(accessories(page.as_bytes()), Some(vec!["d".to_owned(), "e".to_owned()]));
        assert_eq!(accessories(b"null"), Some(vec![]));
        assert_eq!(tags(br#"[{"name":"a"}]"#), Some(vec!["a".to_owned()]));
        for bad in ["", "7", "{}", r#"[{"id":1}]"#] {
            assert_eq!((accessories(bad.as_bytes()), tags(bad.as_bytes())), (None, None), "{bad}");
        }
    }

    #[test]
    fn parts_of_an_index_are_read_and_referrers_told_apart() {
        use super::{is_referrers_index, is_schema1, parts};
        let image = br#"{"config":{"digest":"c"},"layers":[]}"#;
        let index = br#"{"manifests":[{"digest":"a","size":1},{"digest":"b","artifactType":"t"}]}"#;
        let referrers = br#"{"manifests":[{"digest":"b","artifactType":"t"}]}"#;
        assert_eq!(parts(index), Some(vec!["a".to_owned(), "b".to_owned()]));
        let none: [&[u8]; 4] = [image, b" {}", br#"{"manifests":null}"#, br#"{"manifests":[]}"#];
        for none in none {
            assert_eq!(parts(none), Some(vec![]));
        }
        for unreadable in [
            "",
            "nonsense",
            "7",
            "null",
            "[]",
            r#"[[{"digest":"a"}]]"#,
            r#"{"manifests":7}"#,
            r#"{"manifests":[{}]}"#,
            r#"{"manifests":[{"digest":1}]}"#,
            r#"{"manifests":[{"digest":"a"}],"manifests":[]}"#,
            r#"{"Manifests":[{"digest":"a"}]}"#,
            r#"{"manifests":[{"digest":"a"}]"#,
        ] {
            assert_eq!(parts(unreadable.as_bytes()), None, "{unreadable}");
        }
        assert!(is_schema1(br#"{"schemaVersion":1,"fsLayers":[]}"#));
        for other in [
            r#"{"schemaVersion":1,"manifests":[{"digest":"a"}]}"#,
            r#"{"schemaVersion":2}"#,
            "nonsense",
        ] {
            assert!(!is_schema1(other.as_bytes()), "{other}");
        }
        assert!(is_referrers_index(referrers) && is_referrers_index(br#"{"manifests":[]}"#));
        for other in [&image[..], index, b"nonsense"] {
            assert!(!is_referrers_index(other));
        }
    }

    #[test]
    fn the_payload_of_a_signed_manifest_is_what_was_signed() {
        use base64::prelude::*;

        use super::schema1_payload;
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let signature = |length: usize, tail: &str| {
            let tail = encode(tail);
            let protected = format!(r#"{{"formatLength":{length},"formatTail":"{tail}"}}"#);
            format!(r#"{{"header":{{}},"signature":"x","protected":"{}"}}"#, encode(&protected))
        };
        let payload = "{\n   \"schemaVersion\": 1,\n   \"tag\": \"v1\"\n}";
        let length = payload.len() - 2;
        let signed = |signatures: &str| {
            format!("{},\n   \"signatures\": [{signatures}]\n}}", &payload[..length])
        };
        let good = signature(length, "\n}");
        let read = |text: &str| schema1_payload(text.as_bytes());
        assert_eq!(read(&signed(&good)).unwrap(), payload.as_bytes());
        assert_eq!(read(&signed(&format!("{good},{good}"))).unwrap(), payload.as_bytes());
        for bad in [
            payload.to_owned(),
            signed(""),
            signed(&format!("{good},{}", signature(length, "\n} "))),
            signed(&signature(1 << 20, "\n}")),
            signed(r#"{"protected":"!"}"#),
            signed(&signature(0, r#"{"schemaVersion":2}"#)),
            signed(&signature(0, "nonsense")),
            "nonsense".to_owned(),
        ] {
            assert_eq!(read(&bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_of_tags_are_read() {
        use super::tag_list;
        let list = |text: &str| tag_list(text.as_bytes());
        let two = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(list(r#"{"name":"x","tags":["a","b"],"more":1}"#), two);
        assert_eq!(list(r#"{"name":"x","tags":null}"#), Some(vec![]));
        for bad in ["", "7", "{}", r#"{"errors":[]}"#, r#"{"tags":"a"}"#, r#"{"tags":[1]}"#] {
            assert_eq!(list(bad), None, "{bad}");
        }
        assert_eq!(super::catalogue(br#"{"repositories":null}"#), Some(vec![]));
        assert_eq!(super::catalogue(br#"{"errors":[]}"#), None);
    }

    #[test]
    fn the_words_of_an_error_are_one_line() {
        use super::error_message;
        let words = |text: &str| error_message(text.as_bytes());
        for (text, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"quota\nis used up","detail":1}]}"#,
                "DENIED: quota is used up",
            ),
            (
                r#"{"errors":[{"code":"A","message":"b"},{"message":"c"},{"code":"D"},{}]}"#,
                "A: b; c; D",
            ),
            ("upstream timed out\r\n", "upstream timed out"),
        ] {
            assert_eq!(words(text).as_deref(), Some(expected));
        }
        for none in ["", " \n", "<html><body>503</body></html>", r#"{"errors":[]}"#, "{}"] {
            assert_eq!(words(none), None, "{none}");
        }
        assert_eq!(words(&"é".repeat(1000)).map(|text| text.chars().count()), Some(400));
    }

    #[test]
    fn messages_are_escaped() {
        let body = super::error_document("DENIED", "a \"quote\"\nand a line");
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"errors":[{"code":"DENIED","message":"a \"quote\"\nand a line"}]}"#
        );
    }
}
