//! Opening the file: the first start, the lock, and everything that can be wrong with it.

use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition};

use super::super::{Identity, Timestamp};
use super::{BY_DIGEST, ENTRIES, FREED, MARKS, SEQUENCES};

const FILE: &str = "ledger.redb";
/// A new ledger is made under this name and then renamed: a file named [`FILE`] is always whole.
const NEW_FILE: &str = "ledger.redb.new";
const LOCK: &str = "ledger.lock";

/// The version this program writes. A file of a lower version is migrated step by step at
/// open, one of a higher is refused.
const FORMAT: u32 = 2;

pub(super) const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");

/// Why the embedded ledger could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the ledger in `{}` is in use by another process; a folder serves one taglock at a time \
         (stop the other one, give this one a folder of its own, or use the store `redis` for a fleet)",
        folder.display()
    )]
    InUse { folder: PathBuf },
    #[error(
        "`{}` is not a ledger of taglock; it was left as it is (name another folder in `ledger.path`)",
        file.display()
    )]
    Foreign { file: PathBuf },
    #[error(
        "the ledger `{}` is damaged: {reason}; it was left as it is (restore it from a backup; \
         moving it away makes taglock start with an empty ledger, which adopts what the registry has)",
        file.display()
    )]
    Damaged { file: PathBuf, reason: String },
    #[error(
        "the ledger `{}` has format {found}, and this taglock knows formats up to {FORMAT}; \
         use the newer taglock that wrote it",
        file.display()
    )]
    TooNew { file: PathBuf, found: u32 },
    #[error(
        "the ledger in `{}` is `{found}`, and `ledger.id` names `{expected}`; name its own folder",
        folder.display()
    )]
    Another { folder: PathBuf, found: String, expected: String },
    #[error(
        "there is no ledger in `{}`, and `ledger.id` names `{expected}`: was it lost? \
         Restore it, or begin an empty one with this id: `taglock ledger init --config FILE`",
        folder.display()
    )]
    Empty { folder: PathBuf, expected: String },
    #[error("there is no ledger in `{}`", folder.display())]
    Missing { folder: PathBuf },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// An open ledger.
pub(super) struct Opened {
    pub database: Database,
    pub identity: Identity,
    pub path: PathBuf,
    pub lock: fs::File,
}

/// Which ledger may be there, and whether one may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any, and a new one where there is none.
    Any,
    /// The one with this id.
    Only(String),
    /// Any, and it must be there.
    Existing,
    /// A new one, with this id or one of its own; or one that began so before.
    New(Option<String>),
}

pub(super) fn open(folder: &Path, expected: &Expected) -> Result<Opened, OpenError> {
    let io = |what: &str, path: &Path| {
        let what = format!("`{}` {what}", path.display());
        |source| OpenError::Io { what, source }
    };
    if *expected == Expected::Existing && !folder.join(FILE).exists() {
        return Err(OpenError::Missing { folder: folder.to_owned() });
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(io("can't be created", folder))?;
    // A lock of its own, so that one process at a time makes, opens and mends the file.
    let path = folder.join(LOCK);
    let lock = fs::File::options().create(true).append(true).open(&path);
    let lock = lock.map_err(io("can't be opened", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse { folder: folder.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(io("can't be locked", &path)(source)),
    }
    let (database, identity) = open_or_create(folder, expected)?;
    Ok(Opened { database, identity, path: folder.join(FILE), lock })
}

fn open_or_create(folder: &Path, expected: &Expected) -> Result<(Database, Identity), OpenError> {
    let file = folder.join(FILE);
    match fs::metadata(&file) {
        Ok(found) if !found.is_file() => Err(OpenError::Foreign { file }),
        // An empty file would be taken for a new database: a silent loss of every promise.
        Ok(found) if found.len() == 0 => {
            Err(OpenError::Damaged { file, reason: "the file is empty".into() })
        }
        Ok(_) => {
            let database = Database::open(&file).map_err(|e| cause(e, folder, &file))?;
            let identity = read_identity(&database, &file)?;
            let identity = migrated(&database, identity)
                .map_err(|e| OpenError::Damaged { file: file.clone(), reason: e.to_string() })?;
            match expected {
                Expected::Only(id) | Expected::New(Some(id)) if *id != identity.id => {
                    Err(OpenError::Another {
                        folder: folder.to_owned(),
                        found: identity.id,
                        expected: id.clone(),
                    })
                }
                Expected::Any | Expected::Existing | Expected::Only(_) | Expected::New(_) => {
                    Ok((database, identity))
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match expected {
            Expected::Only(id) => {
                Err(OpenError::Empty { folder: folder.to_owned(), expected: id.clone() })
            }
            Expected::Existing => Err(OpenError::Missing { folder: folder.to_owned() }),
            Expected::Any | Expected::New(None) => create(folder, &file, new_id()),
            Expected::New(Some(id)) => create(folder, &file, id.clone()),
        },
        Err(source) => {
            Err(OpenError::Io { what: format!("`{}` can't be read", file.display()), source })
        }
    }
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The first start. A crash on the way leaves only a file under the other name.
fn create(folder: &Path, file: &Path, id: String) -> Result<(Database, Identity), OpenError> {
    let io = |what: &str, path: &Path| {
        let what = format!("`{}` {what}", path.display());
        |source| OpenError::Io { what, source }
    };
    // What a start left that ended half-way; nobody else is here.
    let new = folder.join(NEW_FILE);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(io("can't be removed", &new)(e));
        }
        _ => {}
    }
    let database = Database::create(&new).map_err(|e| cause(e, folder, &new))?;
    let identity = Identity { id, created: Timestamp::now(), format: FORMAT };
    initialise(&database, &identity)
        .map_err(|e| OpenError::Damaged { file: new.clone(), reason: e.to_string() })?;
    // At this point a whole, empty ledger is on the disk, under its other name.
    fs::rename(&new, file).map_err(io("can't be created", file))?;
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(io("can't be synced", folder))?;
    Ok((database, identity))
}

fn initialise(database: &Database, identity: &Identity) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        transaction.open_table(ENTRIES)?;
        transaction.open_table(BY_DIGEST)?;
        transaction.open_table(SEQUENCES)?;
        transaction.open_table(FREED)?;
        transaction.open_table(MARKS)?;
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", identity.format.to_string().as_str())?;
        meta.insert("id", identity.id.as_str())?;
        meta.insert("created", identity.created.seconds().to_string().as_str())?;
    }
    transaction.commit()?;
    Ok(())
}

fn read_identity(database: &Database, file: &Path) -> Result<Identity, OpenError> {
    let foreign = || OpenError::Foreign { file: file.to_owned() };
    let damaged =
        |e: redb::Error| OpenError::Damaged { file: file.to_owned(), reason: e.to_string() };
    let transaction = database.begin_read().map_err(|e| damaged(e.into()))?;
    // Another program's database has no such table.
    let meta = transaction.open_table(META).map_err(|_| foreign())?;
    let text = |key: &str| match meta.get(key) {
        Ok(Some(value)) => Ok(value.value().to_owned()),
        Ok(None) => Err(foreign()),
        Err(e) => Err(damaged(e.into())),
    };
    let format: u32 = text("format")?.parse().map_err(|_| foreign())?;
    if format > FORMAT {
        return Err(OpenError::TooNew { file: file.to_owned(), found: format });
    }
    let created = text("created")?.parse().map_err(|_| foreign())?;
    Ok(Identity { id: text("id")?, created: Timestamp::from_seconds(created), format })
}

/// Brings an older file up to this format, one transaction a step. Format 2 has freed numbers and delete
/// marks; there are none before.
fn migrated(database: &Database, identity: Identity) -> Result<Identity, redb::Error> {
    if identity.format >= FORMAT {
        return Ok(identity);
    }
    let transaction = database.begin_write()?;
    {
        transaction.open_table(FREED)?;
        transaction.open_table(MARKS)?;
        let mut meta = transaction.open_table(META)?;
        meta.insert("format", FORMAT.to_string().as_str())?;
    }
    transaction.commit()?;
    Ok(Identity { format: FORMAT, ..identity })
}

fn cause(error: DatabaseError, folder: &Path, file: &Path) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { folder: folder.to_owned() },
        DatabaseError::Storage(StorageError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
            OpenError::Foreign { file: file.to_owned() }
        }
        DatabaseError::Storage(StorageError::Io(source)) => {
            OpenError::Io { what: format!("`{}` can't be opened", file.display()), source }
        }
        other => OpenError::Damaged { file: file.to_owned(), reason: other.to_string() },
    }
}
