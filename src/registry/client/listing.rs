//! The tags of a repository, page by page (distribution spec, "Listing Tags"), and the catalogue.

use async_trait::async_trait;
use http::header::LINK;
use http::{HeaderMap, Method, StatusCode};

use super::Client;
use crate::name::{RepositoryName, Tag};
use crate::registry::catalogue::{Catalogue, Repositories};
use crate::registry::{Caller, Listing, Trouble, wire};

/// One page: a registry that knows no pages answers with everything at once.
const MAX_PAGE: usize = 16 * 1024 * 1024;
/// How many tags, or repositories, are asked for at once: some registries refuse more.
const AT_ONCE: usize = 1000;
/// A registry may make its pages smaller than it was asked to.
const MAX_PAGES: usize = 100;

impl Client {
    pub(super) async fn list_tags(
        &self,
        headers: HeaderMap,
        caller: &Caller,
        repository: &RepositoryName,
        at_most: usize,
    ) -> Listing {
        let mut tags = Vec::new();
        let mut query = format!("n={}", at_most.min(AT_ONCE));
        for _ in 0..MAX_PAGES {
            let path = format!("{}/tags/list?{query}", self.naming.place(repository));
            let answer = match self
                .read_with(headers.clone(), caller, &Method::GET, &path, MAX_PAGE)
                .await
            {
                Ok(answer) => answer,
                Err(trouble) => return Listing::Unclear(trouble),
            };
            match answer.status {
                StatusCode::OK => {}
                // A repository whose manifests have no tags.
                StatusCode::NOT_FOUND => return Listing::All(distinct(tags)),
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::TOO_MANY_REQUESTS => return Listing::Denied(answer),
                status => return Listing::Unclear(Trouble::Status(status.as_u16())),
            }
            let Some(page) = wire::tag_list(&answer.body) else {
                return Listing::Unclear(Trouble::Garbage("its list of tags is none"));
            };
            // What is no tag by the grammar can't have come through taglock, nor be pulled.
            let page = page.iter().filter_map(|text| Tag::parse(text).ok());
            tags.extend(page.map(|tag| self.naming.tag(tag)));
            if tags.len() > at_most {
                return Listing::TooMany;
            }
            match next_query(&answer.headers) {
                None => return Listing::All(distinct(tags)),
                Some(next) if next == query => {
                    return Listing::Unclear(Trouble::Garbage("its list of tags has no end"));
                }
                Some(next) => query = next,
            }
        }
        Listing::TooMany
    }
}

/// A registry that folds case may list one tag twice.
fn distinct(mut tags: Vec<Tag>) -> Vec<Tag> {
    let mut seen = std::collections::HashSet::new();
    tags.retain(|tag| seen.insert(tag.clone()));
    tags
}

#[async_trait]
impl Catalogue for Client {
    async fn repositories(&self, caller: &Caller, page: Option<&str>) -> Repositories {
        let first = format!("n={AT_ONCE}");
        let query = page.unwrap_or(&first);
        let path = format!("/v2/_catalog?{query}");
        let answer = match self.read(caller, &Method::GET, &path, MAX_PAGE).await {
            Ok(answer) => answer,
            Err(trouble) => return Repositories::Unclear(trouble),
        };
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                return Repositories::Denied(answer);
            }
            status => return Repositories::Unclear(Trouble::Status(status.as_u16())),
        }
        let Some(listed) = wire::catalogue(&answer.body) else {
            return Repositories::Unclear(Trouble::Garbage("its catalogue is none"));
        };
        let next = next_query(&answer.headers);
        if next.as_deref() == Some(query) {
            return Repositories::Unclear(Trouble::Garbage("its catalogue has no end"));
        }
        let (mut names, mut odd) = (Vec::new(), Vec::new());
        for text in listed {
            match RepositoryName::parse(&text) {
                // Under the name it is known by; one too long for it is none that is judged.
                Ok(name) => names.extend(self.naming.repository(name).ok()),
                Err(_) => odd.push(text),
            }
        }
        Repositories::Page { names, odd, next }
    }
}

/// The query of the next page. The path is known, and whatever host a registry names in its
/// `Link`, it is the registry itself that is asked on.
fn next_query(headers: &HeaderMap) -> Option<String> {
    let mut links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.find_map(|mut text| {
        // `<target>; parameter, <target>; parameter`; a target may hold commas.
        while let Some((_, rest)) = text.split_once('<') {
            let (target, rest) = rest.split_once('>')?;
            let (parameters, others) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
            let is_next = parameters.split([';', ',']).any(|parameter| {
                let parameter = parameter.trim();
                parameter.eq_ignore_ascii_case("rel=next")
                    || parameter.eq_ignore_ascii_case("rel=\"next\"")
            });
            if is_next {
                // The caller's own namespace is named with each request.
                let pairs = target.split_once('?')?.1.split('&');
                let query = pairs.filter(|pair| !pair.starts_with("ns=")).collect::<Vec<_>>();
                let query = query.join("&");
                let plain = query.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
                return (plain && query.len() <= 2048).then_some(query);
            }
            text = others;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_every_form_of_link() {
        for (link, expected) in [
            ("</v2/a/tags/list?last=b&n=2>; rel=\"next\"", Some("last=b&n=2")),
            ("<http://elsewhere/x?n=2&last=b>; rel=next", Some("n=2&last=b")),
            ("<?last=b>;rel=\"next\"", Some("last=b")),
            ("<?a=1,2>; rel=\"prev\", <?b=3>; rel=\"next\"", Some("b=3")),
            ("<?last=b&ns=docker.io>; rel=\"next\"", Some("last=b")),
            ("<?last=b>; rel=\"prev\"", None),
            ("</v2/a/tags/list>; rel=\"next\"", None),
            ("<?last=a b>; rel=\"next\"", None),
            ("nonsense", None),
            ("<unclosed", None),
        ] {
            let headers = HeaderMap::from_iter([(LINK, link.parse().unwrap())]);
            assert_eq!(next_query(&headers).as_deref(), expected, "{link}");
        }
        assert_eq!(next_query(&HeaderMap::new()), None);
    }
}
