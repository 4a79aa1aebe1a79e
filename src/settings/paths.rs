//! What else than the spec's endpoints a registry has: by its kind, and by hand.

use std::sync::Arc;

use super::toml_reader::Table;
use super::values;
use crate::name::{Alias, Mount, Naming, RepositoryName, TagCase};
use crate::route::Doors;

/// Where tokens are asked for at well-known registries, on the registry's own host.
const TOKEN_PATHS: [&str; 6] =
    ["/service/token", "/auth/token", "/token", "/jwt/auth", "/v2/token", "/v2/auth"];
/// Where uploads go at well-known registries, outside `/v2/`.
const UPLOAD_PATHS: [&str; 1] = ["/artifacts-uploads/"];

/// Which registry it is: what would have to be set by hand otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Generic,
    Harbor,
    Quay,
    Gitea,
    GitLab,
    Artifactory,
    Nexus,
    DockerHub,
}

pub(super) const KINDS: [(&str, Kind); 8] = [
    ("generic", Kind::Generic),
    ("harbor", Kind::Harbor),
    ("quay", Kind::Quay),
    ("gitea", Kind::Gitea),
    ("gitlab", Kind::GitLab),
    ("artifactory", Kind::Artifactory),
    ("nexus", Kind::Nexus),
    ("docker-hub", Kind::DockerHub),
];

impl Kind {
    pub fn as_str(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("generic", |(word, _)| word)
    }

    fn tag_case(self) -> TagCase {
        match self {
            Self::Gitea => TagCase::Fold,
            _ => TagCase::Keep,
        }
    }

    /// The registry that clients of such a mirror name in `?ns=`.
    pub(super) fn mirrored(self) -> Option<&'static str> {
        match self {
            Self::DockerHub => Some("docker.io"),
            _ => None,
        }
    }

    fn implied_namespace(self) -> Option<&'static str> {
        match self {
            Self::Quay | Self::DockerHub => Some("library"),
            _ => None,
        }
    }
}

/// Nothing but what every registry of this kind has.
pub(super) fn plain(kind: Kind) -> Doors {
    with(kind, Naming::default(), Vec::new(), Vec::new(), Vec::new())
}

fn with(
    kind: Kind,
    naming: Naming,
    token_paths: Vec<String>,
    upload_paths: Vec<String>,
    open_paths: Vec<String>,
) -> Doors {
    let known = |defaults: &[&str], extra: Vec<String>| {
        defaults.iter().map(|path| (*path).to_owned()).chain(extra).collect()
    };
    Doors {
        token_paths: known(&TOKEN_PATHS, token_paths),
        upload_paths: known(&UPLOAD_PATHS, upload_paths),
        open_paths,
        harbor: kind == Kind::Harbor,
        naming: Arc::new(naming),
    }
}

pub(super) fn doors(table: &mut Table<'_>, kind: Kind) -> Doors {
    let token_paths = table.texts("token_paths", values::url_path).unwrap_or_default();
    let upload_paths = table.texts("upload_paths", values::upload_path).unwrap_or_default();
    let open_paths = table.texts("open_paths", values::open_path).unwrap_or_default();
    // What is parsed there must not have a door beside it, in whatever spelling.
    let beside = |path: &&String| **path == "/api" || path.starts_with("/api/");
    if kind == Kind::Harbor
        && let Some(path) = open_paths.iter().find(beside)
    {
        let message = format!("`{path}` would open Harbor's own API, which `kind` judges");
        table.problem("open_paths", message, "leave it out: what moves no tag there passes anyway");
    }
    with(kind, naming(table, kind), token_paths, upload_paths, open_paths)
}

fn naming(table: &mut Table<'_>, kind: Kind) -> Naming {
    let cases = [("keep", TagCase::Keep), ("fold", TagCase::Fold)];
    let tag_case = table.text("tag_case", |t| values::word(t, &cases));
    let implied = table.text("implied_namespace", |text| match text {
        "" => Ok(None),
        text => RepositoryName::parse(text).map(Some),
    });
    let usual = || kind.implied_namespace().and_then(|name| RepositoryName::parse(name).ok());
    let aliases = table.pairs("aliases", Alias::parse);
    let mut mounts = Vec::new();
    for mut mount in table.tables("mount") {
        let path = mount.required_text("path", "\"/repository/docker-hosted\"", values::mount_path);
        let repository = mount.text("repository", |text| match text {
            "" => Ok(None),
            text => RepositoryName::parse(text).map(Some),
        });
        if let Some(path) = path {
            mounts.push(Mount { path, repository: repository.flatten() });
        }
        mount.finish();
    }
    let made = Naming::new(
        tag_case.unwrap_or_else(|| kind.tag_case()),
        implied.unwrap_or_else(usual),
        aliases.unwrap_or_default(),
        mounts,
    );
    made.unwrap_or_else(|wrong| {
        for message in wrong {
            table.problem("aliases", message, "every name must lead to one name, in one step");
        }
        Naming::default()
    })
}
