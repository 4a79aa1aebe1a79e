//! What a registry wants of those it does not know, and how its token service is asked.

use std::time::Duration;

use http::StatusCode;
use http::header::{Entry, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::Client;
use super::{Trouble, wire};

/// The spec's lifetime of a token that names none.
const LIFETIME: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Ask),
}

/// What a token service is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Challenge {
    /// A token is preferred to a password.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = false;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(challenges) = http_auth::parse_challenges(value.to_str().unwrap_or_default())
            else {
                continue;
            };
            for challenge in challenges {
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = param("realm")
                {
                    let (service, scope) = (param("service"), param("scope"));
                    return Some(Self::Bearer(Ask { realm, service, scope }));
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        basic.then_some(Self::Basic)
    }
}

/// Has the challenges of an answer ask for these actions, too, in the repository that they are about
/// (`scope="repository:<name>:<actions>"`, the token specification's "Resource Scope").
///
/// taglock's own requests on behalf of a client need other rights than the client's request, and a
/// client follows a challenge once.
pub fn widen(headers: &mut HeaderMap, actions: &[&str]) {
    let Entry::Occupied(mut challenges) = headers.entry(WWW_AUTHENTICATE) else { return };
    for value in challenges.iter_mut() {
        let widened = value.to_str().ok().and_then(|text| with_actions(text, actions));
        if let Some(widened) = widened.and_then(|text| HeaderValue::from_str(&text).ok()) {
            *value = widened;
        }
    }
}

/// `None` where nothing is to be added.
fn with_actions(challenge: &str, actions: &[&str]) -> Option<String> {
    const SCOPE: &str = "scope=\"";
    let start = challenge.to_ascii_lowercase().find(SCOPE)? + SCOPE.len();
    let end = start + challenge[start..].find('"')?;
    let scopes = challenge[start..end].split(' ');
    let mut changed = false;
    let wide: Vec<_> = scopes
        .map(|scope| match scope.rsplit_once(':') {
            Some((resource, has)) if resource.starts_with("repository:") => {
                let has = has.split(',').filter(|action| !action.is_empty()).collect::<Vec<_>>();
                let lacks = actions.iter().filter(|action| !has.contains(action)).copied();
                let lacks: Vec<_> = lacks.collect();
                changed |= !lacks.is_empty();
                format!("{resource}:{}", [has, lacks].concat().join(","))
            }
            _ => scope.to_owned(),
        })
        .collect();
    changed.then(|| format!("{}{}{}", &challenge[..start], wide.join(" "), &challenge[end..]))
}

impl Ask {
    /// An `Authorization` with a token that the service gives for these credentials, or to anybody,
    /// and how long it lives.
    pub async fn token(
        &self,
        client: &Client,
        credentials: Option<&HeaderValue>,
    ) -> Result<(HeaderValue, Duration), Trouble> {
        let pairs = [("service", &self.service), ("scope", &self.scope)];
        let pairs = pairs.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        let query: Vec<_> = pairs
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let answer = client.ask_elsewhere(&self.realm, &query.join("&"), credentials).await?;
        if answer.status != StatusCode::OK {
            return Err(Trouble::Status(answer.status.as_u16()));
        }
        let garbage = Trouble::Garbage("no token");
        let (token, lifetime) = wire::token(&answer.body).ok_or(garbage.clone())?;
        let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| garbage)?;
        header.set_sensitive(true);
        Ok((header, lifetime.map_or(LIFETIME, Duration::from_secs)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn a_challenge_asks_for_what_taglock_needs_as_well_and_stays_as_it_is_otherwise() {
        let wide = |challenge: &'static str, actions: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"x\""));
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            widen(&mut headers, actions);
            let mut values = headers.get_all(WWW_AUTHENTICATE).iter();
            assert_eq!(values.next().unwrap(), "Basic realm=\"x\"");
            values.next().unwrap().to_str().unwrap().to_owned()
        };
        for (before, actions, after) in [
            (
                r#"Bearer realm="http://a/t",service="r",scope="repository:prod/app:pull""#,
                &["pull", "delete"][..],
                r#"Bearer realm="http://a/t",service="r",scope="repository:prod/app:pull,delete""#,
            ),
            (
                r#"Bearer realm="http://a/t",Scope="repository:a:push repository:b:pull",error="x""#,
                &["pull", "push"],
                r#"Bearer realm="http://a/t",Scope="repository:a:push,pull repository:b:pull,push",error="x""#,
            ),
            // "All" holds no other, to a registry that looks for a word.
            (
                r#"Bearer scope="repository:a:*""#,
                &["pull", "delete"],
                r#"Bearer scope="repository:a:*,pull,delete""#,
            ),
            (
                r#"Bearer scope="repository:host:5000/a:pull""#,
                &["push"],
                r#"Bearer scope="repository:host:5000/a:pull,push""#,
            ),
        ] {
            assert_eq!(wide(before, actions), after);
        }
        for same in [
            r#"Bearer realm="http://a/t",scope="repository:a:pull,push""#,
            r#"Bearer realm="http://a/t",scope="registry:catalog:*""#,
            r#"Bearer realm="http://a/t""#,
            r#"Bearer scope="repository:a:pull"#,
        ] {
            assert_eq!(wide(same, &["pull", "push"]), same);
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password_and_quotes_are_understood() {
        let bearer = |scope: Option<&str>| {
            let (realm, service) =
                ("https://auth.example/token".to_owned(), Some("r,1".to_owned()));
            Some(Challenge::Bearer(Ask { realm, service, scope: scope.map(str::to_owned) }))
        };
        for (values, expected) in [
            (vec![r#"Basic realm="house""#], Some(Challenge::Basic)),
            (
                vec![
                    r#"Basic realm="x", Bearer realm="https://auth.example/token",service="r,1",scope="repository:a/b:pull,push""#,
                ],
                bearer(Some("repository:a/b:pull,push")),
            ),
            (
                vec![
                    r#"Basic realm="x""#,
                    r#"bearer Realm="https://auth.example/token", Service="r,1""#,
                ],
                bearer(None),
            ),
            (vec![r#"Negotiate"#], None),
            (vec![r#"Bearer service="x""#], None),
            (vec![], None),
        ] {
            assert_eq!(of(&values), expected, "{values:?}");
        }
    }
}
