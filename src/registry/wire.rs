//! Documents of the distribution spec: the error document ("Error Codes") and the list of tags
//! ("Listing Tags").

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

#[derive(Deserialize)]
struct TagList {
    /// Registries write `null` where there are none.
    tags: Option<Vec<String>>,
}

/// The tags of a list, as they stand there; `None` where it is no list.
pub fn tag_list(body: &[u8]) -> Option<Vec<String>> {
    serde_json::from_slice::<TagList>(body).ok().map(|list| list.tags.unwrap_or_default())
}

#[derive(Deserialize)]
struct Catalogue {
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

/// The manifests an index or a list is made of; none where it is neither.
pub fn parts(manifest: &[u8]) -> Vec<String> {
    let index = serde_json::from_slice::<Index>(manifest).ok();
    let manifests = index.and_then(|index| index.manifests).unwrap_or_default();
    manifests.into_iter().map(|descriptor| descriptor.digest).collect()
}

/// Whether this is an index of referrers (distribution spec, "Referrers Tag Schema"): all it
/// names has an artifact's type. Tools write it anew and delete the old one.
pub fn is_referrers_index(manifest: &[u8]) -> bool {
    let index = serde_json::from_slice::<Index>(manifest).ok();
    let manifests = index.and_then(|index| index.manifests);
    manifests.is_some_and(|all| all.iter().all(|descriptor| descriptor.artifact_type.is_some()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn parts_of_an_index_are_read_and_referrers_told_apart() {
        use super::{is_referrers_index, parts};
        let image = br#"{"config":{"digest":"c"},"layers":[]}"#;
        let index = br#"{"manifests":[{"digest":"a","size":1},{"digest":"b","artifactType":"t"}]}"#;
        let referrers = br#"{"manifests":[{"digest":"b","artifactType":"t"}]}"#;
        assert_eq!(parts(index), ["a", "b"]);
        assert!(parts(image).is_empty() && parts(b"nonsense").is_empty());
        assert!(is_referrers_index(referrers) && is_referrers_index(br#"{"manifests":[]}"#));
        for other in [&image[..], index, b"nonsense"] {
            assert!(!is_referrers_index(other));
        }
    }

    #[test]
    fn lists_of_tags_are_read() {
        use super::tag_list;
        let list = |text: &str| tag_list(text.as_bytes());
        let two = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(list(r#"{"name":"x","tags":["a","b"],"more":1}"#), two);
        assert_eq!(list(r#"{"name":"x","tags":null}"#), Some(vec![]));
        for bad in ["", "7", r#"{"tags":"a"}"#, r#"{"tags":[1]}"#] {
            assert_eq!(list(bad), None, "{bad}");
        }
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
