//! Who asks, as far as the credentials show it. No part of them that is secret is ever kept.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// A user's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// Of Basic credentials: whose password it was, the registry says by its answer.
    Named(String),
    /// The `sub` of a token. Nobody has checked it on this side of the registry.
    Claimed(String),
}

impl User {
    /// The name, without a word on how far it is to be believed.
    pub fn into_name(self) -> String {
        match self {
            Self::Named(name) | Self::Claimed(name) => name,
        }
    }
}

/// The name in Basic credentials, or the subject that a bearer token claims.
pub fn user_of(headers: &HeaderMap) -> Option<User> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    let credentials = credentials.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        named(credentials).map(User::Named)
    } else if scheme.eq_ignore_ascii_case("bearer") {
        claimed(credentials).map(User::Claimed)
    } else {
        None
    }
}

fn named(credentials: &str) -> Option<String> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(credentials).ok()?).ok()?;
    let (name, password) = decoded.split_once(':')?;
    // Some services take a token as the name, with itself, nothing or a fixed word behind it.
    let is_token = password.is_empty() || password == name || password == "x-oauth-basic";
    (is_plain(name) && !is_token).then(|| name.to_owned())
}

fn claimed(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (Some(_header), Some(payload), Some(_signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let payload = BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let name = payload.get("sub")?.as_str()?;
    is_plain(name).then(|| name.to_owned())
}

/// Whether a text is a name, and no token in a name's place.
fn is_plain(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_graphic())
        && !TOKEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// How well-known tokens begin, where one might stand in a name's place.
const TOKEN_PREFIXES: [&str; 8] =
    ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "dop_v1_", "dckr_pat_", "eyJ"];

#[cfg(test)]
mod tests {
    use super::*;

    fn user(value: &str) -> Option<User> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        user_of(&headers)
    }

    #[test]
    fn only_the_name_of_basic_credentials_is_taken() {
        // alice:secret
        assert_eq!(user("Basic YWxpY2U6c2VjcmV0"), Some(User::Named("alice".into())));
        // Without a colon it could be a secret as a whole.
        assert_eq!(user("Basic c2VjcmV0"), None);
        // ghp_x:y, tok:tok, tok:x-oauth-basic, tok:
        for token in ["Z2hwX3g6eQ==", "dG9rOnRvaw==", "dG9rOngtb2F1dGgtYmFzaWM=", "dG9rOg=="] {
            assert_eq!(user(&format!("Basic {token}")), None, "{token}");
        }
        assert_eq!(user("Basic ???"), None);
    }

    #[test]
    fn of_a_token_only_the_subject_is_taken_and_as_claimed() {
        let token = |payload: &str| {
            let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
            format!("Bearer {}.{}.c2lnbmF0dXJl", part(r#"{"alg":"none"}"#), part(payload))
        };
        let payload = r#"{"sub":"robot$ci","jti":"secret"}"#;
        assert_eq!(user(&token(payload)), Some(User::Claimed("robot$ci".into())));
        for nobody in [r#"{"sub":7}"#, "{}", "no json", r#"{"sub":"ghp_x"}"#, r#"{"sub":"a b"}"#] {
            assert_eq!(user(&token(nobody)), None, "{nobody}");
        }
        assert_eq!(user("Bearer YWxpY2U6c2VjcmV0"), None, "an opaque token");
    }
}
