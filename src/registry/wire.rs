//! The error document of the distribution spec ("Error Codes").

use serde::Serialize;

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

#[cfg(test)]
mod tests {
    #[test]
    fn messages_are_escaped() {
        let body = super::error_document("DENIED", "a \"quote\"\nand a line");
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"errors":[{"code":"DENIED","message":"a \"quote\"\nand a line"}]}"#
        );
    }
}
