//! Harbor's own API, which knows other ways to the same tags (`/api/v2.0`, its published
//! description): what could move or delete one is told apart from everything else.
//!
//! Repository names stand percent-encoded in its paths, twice in the usual case. A component is
//! decoded to its end: whatever Harbor makes of it on the way is that name, or no name at all.

use http::Method;
use percent_encoding::percent_decode_str;

use super::error::Rejection;
use super::{Names, target};
use crate::name::{Naming, Reference, RepositoryName, Tag};

/// A write to Harbor's API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harbor {
    /// `POST …/artifacts/{reference}/tags`; the tag stands in the body.
    CreateTag {
        repository: RepositoryName,
        artifact: Reference,
    },
    DeleteTag {
        repository: RepositoryName,
        artifact: Reference,
        tag: Tag,
    },
    /// By digest or by tag; all tags of the artifact go with it, and its accessories.
    DeleteArtifact {
        repository: RepositoryName,
        reference: Reference,
    },
    /// `POST …/artifacts?from=`: brings the tags of its source along, and moves those that are there.
    Copy(RepositoryName),
    DeleteRepository(RepositoryName),
    /// Touches no tag (Harbor deletes no project that has a repository), or lets Harbor do so from within (retention, replication, garbage collection),
    /// where nobody could judge it.
    Other,
}

/// A method other than a read, and a path outside `/v2/`; `None` for one that is not Harbor's.
pub(super) fn parse(
    method: &Method,
    path: &str,
    naming: &Naming,
) -> Result<Option<Harbor>, Rejection> {
    let prefixes = ["/api/v2.0/", "/c/", "/service/", "/chartrepo/", "/api/chartrepo/"];
    if !prefixes.iter().any(|prefix| path.starts_with(prefix)) {
        return Ok(None);
    }
    target::check_segments(path)?;
    // Harbor's own parts talk there; its nginx answers 404, too.
    if path.to_ascii_lowercase().starts_with("/service/notifications") {
        return Err(Rejection::outside());
    }
    if path.ends_with('/') {
        return Err(Rejection::target("a write to Harbor's API ends without `/`"));
    }
    let raw: Vec<_> = path.split('/').skip(1).collect();
    let plain: Vec<_> = raw.iter().map(|component| decoded(component)).collect::<Result<_, _>>()?;
    let words: Vec<_> = plain.iter().map(String::as_str).collect();
    // The repository, and no other component, may hold slashes.
    let repository_at = match words[..] {
        ["api", "v2.0", "projects", _, "repositories", _, ..] => 5,
        _ => usize::MAX,
    };
    let odd = |text: &str| text.contains(['/', '\\', ';', '?', '#']) || matches!(text, "." | "..");
    if words.iter().enumerate().any(|(n, word)| odd(word) && n != repository_at) {
        return Err(Rejection::target("the path is percent-encoded where Harbor needs no escapes"));
    }
    // A word of the API in another spelling might be read as the word.
    let known = ["api", "v2.0", "projects", "repositories", "artifacts", "tags"];
    for (raw, word) in raw.iter().zip(&words) {
        if known.iter().any(|known| word.eq_ignore_ascii_case(known) && raw != known) {
            return Err(Rejection::target("a word of Harbor's API is spelled in another way"));
        }
    }
    let ["api", "v2.0", "projects", project, rest @ ..] = &words[..] else {
        return Ok(Some(Harbor::Other));
    };
    let names = Names { naming, mount: None };
    let repository = |name: &str| {
        // Where Harbor takes a project's number for its name, rules would be asked for another.
        if project.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Rejection::name("a project is named here, not numbered"));
        }
        names.repository(&format!("{project}/{name}"))
    };
    let tag = |text: &str| match names.reference(text)? {
        Reference::Tag(tag) => Ok(tag),
        Reference::Digest(_) => Err(Rejection::tag("a digest is no tag")),
    };
    let found = match (method, rest) {
        (&Method::DELETE, ["repositories", name]) => Harbor::DeleteRepository(repository(name)?),
        (&Method::PUT, ["repositories", name]) => repository(name).map(|_| Harbor::Other)?,
        (&Method::POST, ["repositories", name, "artifacts"]) => Harbor::Copy(repository(name)?),
        (&Method::DELETE, ["repositories", name, "artifacts", artifact]) => {
            let reference = names.reference(artifact)?;
            Harbor::DeleteArtifact { repository: repository(name)?, reference }
        }
        (&Method::POST, ["repositories", name, "artifacts", artifact, "tags"]) => {
            let artifact = names.reference(artifact)?;
            Harbor::CreateTag { repository: repository(name)?, artifact }
        }
        (&Method::DELETE, ["repositories", name, "artifacts", artifact, "tags", text]) => {
            let artifact = names.reference(artifact)?;
            Harbor::DeleteTag { repository: repository(name)?, artifact, tag: tag(text)? }
        }
        (
            &Method::POST | &Method::DELETE,
            ["repositories", name, "artifacts", _, "labels" | "scan" | "sbom", ..],
        ) => repository(name).map(|_| Harbor::Other)?,
        (_, ["repositories", ..]) => {
            return Err(Rejection::method(
                "no write of Harbor's API that taglock knows",
                "GET, HEAD",
            ));
        }
        _ => Harbor::Other,
    };
    Ok(Some(found))
}

fn decoded(component: &str) -> Result<String, Rejection> {
    let mut text = component.to_owned();
    for _ in 0..4 {
        let next = percent_decode_str(&text).decode_utf8();
        let next = next.map_err(|_| Rejection::target("the path is not UTF-8 after decoding"))?;
        if next == text {
            return Ok(text);
        }
        text = next.into_owned();
    }
    Err(Rejection::target("the path is percent-encoded many times over"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parsed(method: &str, path: &str) -> Result<Option<Harbor>, u16> {
        let parsed = parse(&method.parse().unwrap(), path, &Naming::default());
        parsed.map_err(|rejection| rejection.status.as_u16())
    }

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    #[test]
    fn what_harbors_parts_tell_each_other_comes_from_nobody_else() {
        for path in ["/service/notifications/jobs/1", "/service/Notifications"] {
            assert_eq!(parsed("POST", path), Err(403), "{path}");
        }
        assert_eq!(parsed("POST", "/service/token"), Ok(Some(Harbor::Other)));
    }

    #[test]
    fn what_moves_or_deletes_tags_is_told_apart() {
        let base = "/api/v2.0/projects/prod/repositories";
        let (app, nested) = (name("prod/app"), name("prod/team/app"));
        let tag = Tag::parse("v1").unwrap();
        let by_digest = Reference::Digest(crate::name::Digest::parse(D).unwrap());
        let delete_tag = |repository: &RepositoryName, artifact: &Reference| Harbor::DeleteTag {
            repository: repository.clone(),
            artifact: artifact.clone(),
            tag: tag.clone(),
        };
        let by_tag = Reference::Tag(tag.clone());
        let create = Harbor::CreateTag { repository: app.clone(), artifact: by_digest.clone() };
        for (method, path, expected) in [
            ("POST", format!("{base}/app/artifacts/{D}/tags"), create),
            ("DELETE", format!("{base}/app/artifacts/{D}/tags/v1"), delete_tag(&app, &by_digest)),
            ("DELETE", format!("{base}/app/artifacts/v1/tags/%761"), delete_tag(&app, &by_tag)),
            (
                "DELETE",
                format!("{base}/team%2Fapp/artifacts/v1/tags/v1"),
                delete_tag(&nested, &by_tag),
            ),
            (
                "DELETE",
                format!("{base}/team%252Fapp/artifacts/v1/tags/v1"),
                delete_tag(&nested, &by_tag),
            ),
            (
                "DELETE",
                format!("{base}/team%25252fapp/artifacts/v1/tags/v1"),
                delete_tag(&nested, &by_tag),
            ),
            (
                "DELETE",
                format!("{base}/app/artifacts/{}", D.replace(':', "%3A")),
                Harbor::DeleteArtifact { repository: app.clone(), reference: by_digest },
            ),
            (
                "DELETE",
                format!("{base}/app/artifacts/v1"),
                Harbor::DeleteArtifact { repository: app.clone(), reference: tag.clone().into() },
            ),
            ("POST", format!("{base}/app/artifacts"), Harbor::Copy(app.clone())),
            ("DELETE", format!("{base}/team%252Fapp"), Harbor::DeleteRepository(nested.clone())),
            ("DELETE", "/api/v2.0/projects/prod".into(), Harbor::Other),
            ("PUT", format!("{base}/app"), Harbor::Other),
            ("POST", format!("{base}/app/artifacts/{D}/scan"), Harbor::Other),
            ("POST", "/api/v2.0/projects".into(), Harbor::Other),
            ("PUT", "/api/v2.0/projects/prod".into(), Harbor::Other),
            ("DELETE", "/api/v2.0/projects/prod/members/3".into(), Harbor::Other),
            ("POST", "/api/v2.0/retentions/1/executions".into(), Harbor::Other),
            ("POST", "/c/login".into(), Harbor::Other),
        ] {
            assert_eq!(parsed(method, &path), Ok(Some(expected)), "{method} {path}");
        }
        for path in ["/api/internal/x", "/api/v2.1/projects/prod", "/api", "/v1/x", "/cx/y"] {
            assert_eq!(parsed("DELETE", path), Ok(None), "{path}");
        }
    }

    #[test]
    fn no_second_spelling_of_them_passes() {
        let rest = "projects/prod/repositories/app/artifacts/v1/tags/v1";
        for path in [
            format!("/api/v2.0/{rest}/"),
            format!("/api/v2.0//{rest}"),
            format!("/api/v2.0/../v2.0/{rest}"),
            format!("/api/v2.0/x/../{rest}"),
            format!("/api/v2.0/x%2f..%2f{rest}"),
            format!("/api/v2.0/%70rojects{}", &rest[8..]),
            format!("/api/v2.0/PROJECTS{}", &rest[8..]),
            format!("/api/v2.0/projects;x{}", &rest[8..]),
            format!("/api/v2.0/{}", rest.replace("/tags/", "/%2574ags/")),
            format!("/api/v2.0/{}", rest.replace("/tags/", "/Tags/")),
            format!("/api/v2.0/{}", rest.replace("/artifacts/v1/tags/", "/artifacts/v1%2ftags%2f")),
            format!("/api/v2.0/{}", rest.replace("/app/", "/a/b/")),
            format!("/api/v2.0/{}", rest.replace("/app/", "/App/")),
            format!("/api/v2.0/{}", rest.replace("/app/", "/..%252f..%252fapp/")),
            format!("/api/v2.0/{}", rest.replace("/prod/", "/7/")),
            format!("/c/..%2fapi%2fv2.0%2f{rest}"),
        ] {
            let found = parsed("DELETE", &path);
            assert!(matches!(found, Err(400 | 405)), "{path}: {found:?}");
        }
    }
}
