//! The safe rule: a method and a raw target become one of a closed set of routes, or are refused.
//!
//! Registries decode, clean and match targets in ways of their own: measured, sixteen
//! spellings of one target moved a tag past a proxy that compared paths. So the raw target is
//! parsed once, from the right, by the grammar of the distribution spec ("Endpoints"), and
//! what has a second reading anywhere is refused rather than interpreted.

mod error;
mod harbor;
mod query;
mod target;

pub use error::{ErrorCode, Rejection};
pub use harbor::Harbor;
pub use query::{ManifestQuery, check_namespace, namespace, query_of};

use std::sync::Arc;

use http::Method;

use crate::name::{Digest, DigestError, Mount, Naming, Reference, RepositoryName, Tag};

/// What a request asks of the registry, in canonical names, whatever the client's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// GET or HEAD of a manifest by tag or by digest (end-3).
    ReadManifest { repository: RepositoryName, reference: Reference },
    /// GET or HEAD of a manifest by something that is neither tag nor digest: no registry
    /// has it, but the answer is the registry's to give.
    ReadUnnamable { repository: RepositoryName },
    /// PUT of a manifest (end-7a, end-7b).
    WriteManifest(ManifestWrite),
    /// DELETE of a manifest or a tag (end-9).
    DeleteManifest { repository: RepositoryName, reference: Reference },
    /// GET or HEAD of a blob (end-2).
    ReadBlob { repository: RepositoryName },
    /// DELETE of a blob (end-10).
    DeleteBlob { repository: RepositoryName, digest: Digest },
    /// Any request of an upload's session (end-4, 5, 6, 11, 13, 14). Never touches a tag.
    Upload(Option<RepositoryName>),
    /// A read below `/v2/` that is about no manifest and no blob: the base, the catalogue, tag
    /// lists, referrers, and what registries have added of their own.
    ReadOther(Option<RepositoryName>),
    /// The token service on the registry's own host.
    Token,
    /// OPTIONS, which changes nothing.
    Options,
    /// GET or HEAD outside `/v2/`.
    ReadOutside,
    /// Any other method outside `/v2/`, below a path that was opened.
    WriteOutside,
    /// Such a one to Harbor's API.
    Harbor(Harbor),
}

/// `PUT /v2/<name>/manifests/<reference>[?tag=…]`: a write names a *set* of tags, which is
/// empty for a push by digest alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestWrite {
    pub repository: RepositoryName,
    /// The tags it would set, without repetition, in the order the client named them.
    pub tags: Vec<Tag>,
    /// The digest the client says the body has: in the path, or as `?digest=`.
    pub digest: Option<Digest>,
    /// Whether the path names the digest, so that tags can only come from the query.
    pub by_digest: bool,
    /// `?ns=`, which a mirror's client sends and which is passed on.
    pub namespace: Option<String>,
}

/// Doors beside the spec's own, as configured for the registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// Paths of the token service, GET and POST.
    pub token_paths: Vec<String>,
    /// Prefixes of upload URLs outside `/v2/…/blobs/`, as `/artifacts-uploads/`.
    pub upload_paths: Vec<String>,
    /// Prefixes outside `/v2/` below which every method passes unjudged.
    pub open_paths: Vec<String>,
    /// Harbor's API passes, and what could move a tag there is told apart.
    pub harbor: bool,
    /// What the registry knows by several names: each route holds the one.
    pub naming: Arc<Naming>,
}

impl Route {
    /// Parses a method and the raw target of a request line (or h2's `:path`).
    ///
    /// # Errors
    /// The answer to give when the request must not be forwarded.
    pub fn parse(method: &Method, raw: &[u8], doors: &Doors) -> Result<Self, Rejection> {
        if matches!(*method, Method::CONNECT | Method::TRACE) {
            return Err(Rejection::method("no request of this method is forwarded", ""));
        }
        if *method == Method::OPTIONS && raw == b"*" {
            return Err(Rejection::target("`OPTIONS *` asks about the proxy, not the registry"));
        }
        let (path, query) = target::split(raw)?;
        if doors.is_token(path) {
            return match *method {
                Method::GET | Method::HEAD | Method::POST => Ok(Self::Token),
                Method::OPTIONS => Ok(Self::Options),
                _ => Err(Rejection::method("the token service takes GET and POST", "GET, POST")),
            };
        }
        let reading = matches!(*method, Method::GET | Method::HEAD);
        let Some((mount, below)) = target::below_v2(path, &doors.naming)? else {
            return Self::outside(method, path, doors);
        };
        target::check_bytes(path)?;
        let names = Names { naming: &doors.naming, mount };
        let name_of = |text| names.repository(text);
        let shape = shape(below)?;
        if *method == Method::OPTIONS {
            return shape
                .name()
                .map_or(Ok(()), |name| name_of(name).map(drop))
                .map(|()| Self::Options);
        }
        match shape {
            Shape::Manifest { name, last } => {
                let repository = name_of(name)?;
                match *method {
                    Method::GET | Method::HEAD => Ok(match names.reference(last) {
                        Ok(reference) => Self::ReadManifest { repository, reference },
                        Err(_) => Self::ReadUnnamable { repository },
                    }),
                    Method::PUT => {
                        let query = ManifestQuery::parse(query)?;
                        let write = write(repository, names.reference(last)?, query);
                        write.map(|write| Self::WriteManifest(names.write(write)))
                    }
                    Method::DELETE => {
                        Ok(Self::DeleteManifest { repository, reference: names.reference(last)? })
                    }
                    _ => Err(Rejection::method(
                        "a manifest takes GET, HEAD, PUT and DELETE",
                        "GET, HEAD, PUT, DELETE",
                    )),
                }
            }
            Shape::Blob { name, last } => {
                let repository = name_of(name)?;
                match *method {
                    Method::GET | Method::HEAD => Ok(Self::ReadBlob { repository }),
                    Method::DELETE => Ok(Self::DeleteBlob { repository, digest: digest(last)? }),
                    _ => Err(Rejection::method(
                        "a blob takes GET, HEAD and DELETE",
                        "GET, HEAD, DELETE",
                    )),
                }
            }
            Shape::Upload { name } => {
                let repository = name_of(name)?;
                upload(method, Some(repository))
            }
            Shape::Listing { name } => {
                let repository = name.map(name_of).transpose()?;
                if reading {
                    Ok(Self::ReadOther(repository))
                } else {
                    Err(Rejection::method("this endpoint takes GET and HEAD", "GET, HEAD"))
                }
            }
            Shape::Unknown if reading => Ok(Self::ReadOther(None)),
            Shape::Unknown => Err(Rejection::method(
                "this is no endpoint of the distribution spec; only GET and HEAD are forwarded",
                "GET, HEAD",
            )),
        }
    }

    /// The repository that the request names.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::ReadManifest { repository, .. }
            | Self::ReadUnnamable { repository }
            | Self::WriteManifest(ManifestWrite { repository, .. })
            | Self::DeleteManifest { repository, .. }
            | Self::ReadBlob { repository }
            | Self::DeleteBlob { repository, .. } => Some(repository),
            Self::Upload(repository) | Self::ReadOther(repository) => repository.as_ref(),
            Self::Token
            | Self::Options
            | Self::ReadOutside
            | Self::WriteOutside
            | Self::Harbor(_) => None,
        }
    }

    fn outside(method: &Method, path: &str, doors: &Doors) -> Result<Self, Rejection> {
        if doors.upload_paths.iter().any(|prefix| path.starts_with(prefix)) {
            target::check_bytes(path)?;
            if path.split('/').any(target::is_manifests) {
                return Err(Rejection::target("an upload's path may not hold `manifests`"));
            }
            return if *method == Method::OPTIONS {
                Ok(Self::Options)
            } else {
                upload(method, None)
            };
        }
        match *method {
            Method::GET | Method::HEAD => return Ok(Self::ReadOutside),
            Method::OPTIONS => return Ok(Self::Options),
            _ => {}
        }
        if doors.harbor
            && let Some(harbor) = harbor::parse(method, path, &doors.naming)?
        {
            return Ok(Self::Harbor(harbor));
        }
        if doors.open_paths.iter().any(|prefix| target::is_below(path, prefix)) {
            return target::check_segments(path).map(|()| Self::WriteOutside);
        }
        Err(Rejection::outside())
    }
}

/// The shapes below `/v2/`, before names and digests are looked at.
enum Shape<'a> {
    Manifest {
        name: &'a str,
        last: &'a str,
    },
    Blob {
        name: &'a str,
        last: &'a str,
    },
    Upload {
        name: &'a str,
    },
    /// Read-only endpoints; the base and the catalogue have no name.
    Listing {
        name: Option<&'a str>,
    },
    Unknown,
}

impl<'a> Shape<'a> {
    fn name(&self) -> Option<&'a str> {
        match self {
            Self::Manifest { name, .. } | Self::Blob { name, .. } | Self::Upload { name } => {
                Some(name)
            }
            Self::Listing { name } => *name,
            Self::Unknown => None,
        }
    }
}

/// Recognises a shape from the right: `manifests` and `tags` are also legitimate components of
/// names (`org/manifests/app`), so what counts is what stands last.
fn shape(below: &str) -> Result<Shape<'_>, Rejection> {
    if matches!(below, "" | "_catalog") {
        return Ok(Shape::Listing { name: None });
    }
    if let Some(name) = below.strip_suffix("/tags/list") {
        return Ok(Shape::Listing { name: Some(name) });
    }
    let (before, last) = below.rsplit_once('/').unwrap_or(("", below));
    if last.is_empty() {
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Ok(Shape::Upload { name });
        }
    } else if let Some(name) = before.strip_suffix("/manifests") {
        return Ok(Shape::Manifest { name, last });
    } else if let Some(name) = before.strip_suffix("/referrers") {
        return Ok(Shape::Listing { name: Some(name) });
    } else if let Some(name) = before.strip_suffix("/blobs") {
        return if last == "uploads" {
            Ok(Shape::Upload { name })
        } else {
            Ok(Shape::Blob { name, last })
        };
    }
    // An upload's URL is the registry's own invention: `blobs/uploads/<id>`, `blobs/upload/<id>`,
    // with as many components as it likes, but none that could turn it into a manifest.
    for marker in ["/blobs/uploads/", "/blobs/upload/"] {
        if let Some((name, session)) = below.split_once(marker) {
            return if session.split('/').any(target::is_manifests) {
                Err(Rejection::target("an upload's path may not hold `manifests`"))
            } else {
                Ok(Shape::Upload { name })
            };
        }
    }
    // Some registries strip a trailing slash or fold case: `…/manifests/v1/` is then a pull of
    // the tag that nothing has judged.
    if below.split('/').any(target::is_manifests) {
        return Err(Rejection::target("not a manifest's path, though it holds `manifests`"));
    }
    Ok(Shape::Unknown)
}

fn upload(method: &Method, repository: Option<RepositoryName>) -> Result<Route, Rejection> {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::POST
        | Method::PATCH
        | Method::PUT
        | Method::DELETE => Ok(Route::Upload(repository)),
        _ => Err(Rejection::method(
            "an upload takes GET, HEAD, POST, PATCH, PUT and DELETE",
            "GET, HEAD, POST, PATCH, PUT, DELETE",
        )),
    }
}

fn write(
    repository: RepositoryName,
    reference: Reference,
    query: ManifestQuery,
) -> Result<ManifestWrite, Rejection> {
    let ManifestQuery { tags, digest, namespace } = query;
    match reference {
        Reference::Tag(_) if !tags.is_empty() => Err(Rejection::target(
            "`tag` in the query goes with a digest in the path, not with a tag",
        )),
        Reference::Tag(tag) => {
            Ok(ManifestWrite { repository, tags: vec![tag], digest, by_digest: false, namespace })
        }
        Reference::Digest(path) if digest.is_some_and(|digest| digest != path) => {
            Err(Rejection::digest("the digests in the path and in the query differ"))
        }
        Reference::Digest(path) => {
            Ok(ManifestWrite { repository, tags, digest: Some(path), by_digest: true, namespace })
        }
    }
}

/// The `:` of a digest may be percent-encoded, as some clients do; nothing else may.
fn digest(text: &str) -> Result<Digest, Rejection> {
    let result = match text.split_once("%3A").or_else(|| text.split_once("%3a")) {
        Some((algorithm, hex)) => Digest::parse(&format!("{algorithm}:{hex}")),
        None => Digest::parse(text),
    };
    result.map_err(|e: DigestError| Rejection::digest(e.to_string()))
}

impl Doors {
    /// Whether this is the path of a token service, at the root or below a mount.
    fn is_token(&self, path: &str) -> bool {
        let known = |path: &str| self.token_paths.iter().any(|token| token == path);
        let below = |mount: &Mount| {
            let path = path.strip_prefix(mount.path.as_str());
            path.is_some_and(|path| path.starts_with("/v2/") && known(path))
        };
        known(path) || self.naming.mounts().iter().any(below)
    }
}

/// From a client's spelling of names to the one there is.
struct Names<'a> {
    naming: &'a Naming,
    mount: Option<&'a Mount>,
}

impl Names<'_> {
    fn repository(&self, text: &str) -> Result<RepositoryName, Rejection> {
        let name = RepositoryName::parse(text).and_then(|name| match self.mount {
            Some(mount) => self.naming.mounted(mount, name),
            None => self.naming.repository(name),
        });
        name.map_err(|e| Rejection::name(e.to_string()))
    }

    fn reference(&self, text: &str) -> Result<Reference, Rejection> {
        if text.bytes().any(|byte| matches!(byte, b':' | b'%')) {
            return digest(text).map(Reference::Digest);
        }
        let tag = Tag::parse(text).map_err(|e| Rejection::tag(e.to_string()))?;
        Ok(Reference::Tag(self.naming.tag(tag)))
    }

    /// Two tags of the query may be one.
    fn write(&self, mut write: ManifestWrite) -> ManifestWrite {
        let mut tags = Vec::with_capacity(write.tags.len());
        for tag in write.tags {
            let tag = self.naming.tag(tag);
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        write.tags = tags;
        write
    }
}

#[cfg(test)]
mod tests;
