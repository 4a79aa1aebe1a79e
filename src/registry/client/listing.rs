//! The tags of a repository, page by page (distribution spec, "Listing Tags"), and the catalogue.

use async_trait::async_trait;
use http::{HeaderMap, Method, StatusCode};

use super::Client;
use super::paging::{Next, Progress, UNREADABLE, next_of_any};
use crate::name::{RepositoryName, Tag};
use crate::registry::catalog::{Catalogue, Repositories};
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
        let mut progress = Progress::default();
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
                // A repository whose manifests have no tags; of one that has some, it says nothing.
                StatusCode::NOT_FOUND if progress.pages == 0 => {
                    return Listing::All(distinct(tags));
                }
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::TOO_MANY_REQUESTS => return Listing::Denied(answer),
                status => return Listing::Unclear(Trouble::Status(status.as_u16())),
            }
            let Some(page) = wire::tag_list(&answer.body) else {
                return Listing::Unclear(Trouble::Garbage("its list of tags is none"));
            };
            let next = progress.next(&answer.headers, page.len());
            // What is no tag by the grammar can't have come through taglock, nor be pulled.
            let page = page.iter().filter_map(|text| Tag::parse(text).ok());
            tags.extend(page.map(|tag| self.naming.tag(tag)));
            if tags.len() > at_most {
                return Listing::TooMany;
            }
            match next {
                Next::End => return Listing::All(distinct(tags)),
                Next::Unreadable => return Listing::Unclear(Trouble::Garbage(UNREADABLE)),
                Next::Query(next) if next == query => {
                    return Listing::Unclear(Trouble::Garbage("its list of tags has no end"));
                }
                Next::Query(next) => query = next,
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
        let next = match page {
            None => Progress::default().next(&answer.headers, listed.len()),
            Some(_) => next_of_any(&answer.headers),
        };
        let next = match next {
            Next::End => None,
            Next::Unreadable => return Repositories::Unclear(Trouble::Garbage(UNREADABLE)),
            Next::Query(next) if next == query => {
                return Repositories::Unclear(Trouble::Garbage("its catalogue has no end"));
            }
            Next::Query(next) => Some(next),
        };
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
