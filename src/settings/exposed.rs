//! Files with secrets that more users may read or change than their owner and their group.
//!
//! They are warned about and used all the same: Kubernetes mounts secrets with the mode 0644 unless it
//! is told otherwise. See decision 0028.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

const MODE: u32 = 0o7777;
const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;

/// Where descriptors of this process stand as files: their modes say nothing about who can open them.
const DESCRIPTORS: [&str; 2] = ["/proc", "/dev"];

/// A file with a secret whose mode lets in too many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// The key that names the file.
    pub key: String,
    pub file: PathBuf,
    pub mode: u32,
}

impl Exposed {
    /// Looks at the mode of a file. `None` where it is strict enough, or where there is no such file.
    pub(super) fn look(key: &str, file: &Path) -> Option<Self> {
        if DESCRIPTORS.iter().any(|folder| file.starts_with(folder)) {
            return None;
        }
        let metadata = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file)?;
        let mode = metadata.permissions().mode() & MODE;
        let open = mode & (OTHERS_READ | OTHERS_WRITE | GROUP_WRITE) != 0;
        open.then(|| Self { key: key.to_owned(), file: file.to_owned(), mode })
    }

    fn who(&self) -> &'static str {
        match (self.mode & OTHERS_READ != 0, self.mode & OTHERS_WRITE != 0) {
            (true, true) => "every user can read and change it",
            (true, false) if self.mode & GROUP_WRITE != 0 => {
                "every user can read it, and its group can change it"
            }
            (true, false) => "every user can read it",
            (false, true) => "every user can change it",
            (false, false) => "its group can change it",
        }
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, file, mode, who) = (&self.key, self.file.display(), self.mode, self.who());
        write!(
            f,
            "`{key}`: the file `{file}` holds a secret and has the mode {mode:04o}: {who}; \
             `chmod 600 {file}`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mode(folder: &Path, mode: u32) -> PathBuf {
        let file = folder.join(format!("{mode:o}"));
        std::fs::write(&file, "secret").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_mode_that_lets_in_others_or_lets_the_group_write_is_exposed() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, who) in [
            (0o600, None),
            (0o400, None),
            (0o440, None),
            (0o640, None),
            (0o644, Some("every user can read it")),
            (0o604, Some("every user can read it")),
            (0o444, Some("every user can read it")),
            (0o666, Some("every user can read and change it")),
            (0o602, Some("every user can change it")),
            (0o660, Some("its group can change it")),
            (0o664, Some("every user can read it, and its group can change it")),
        ] {
            let file = with_mode(folder.path(), mode);
            let found = Exposed::look("admin.token_file", &file).map(|found| found.to_string());
            let path = file.display();
            let expected = who.map(|who| {
                format!(
                    "`admin.token_file`: the file `{path}` holds a secret and has the mode {mode:04o}: \
                     {who}; `chmod 600 {path}`"
                )
            });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn links_are_followed_and_descriptors_are_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(with_mode(folder.path(), 0o644), &link).unwrap();
        assert_eq!(Exposed::look("k", &link).map(|found| found.mode), Some(0o644));
        let descriptor = std::fs::File::open(&link).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&descriptor);
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/dev/fd/{number}"),
            "/dev/stdin".to_owned(),
            folder.path().join("none").display().to_string(),
            folder.path().display().to_string(),
        ] {
            assert_eq!(Exposed::look("k", Path::new(&path)), None, "{path}");
        }
    }
}
