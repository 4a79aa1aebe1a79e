use super::*;
use crate::ledger::contract;

fn key() -> RepositoryKey {
    contract::key("app")
}

async fn adopt(ledger: &Embedded, tag: &Tag, digest: &Digest) -> Result<Adopt, Unavailable> {
    contract::adopt(ledger, &key(), std::slice::from_ref(tag), digest, Origin::Push).await
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (tag, digest) = (contract::tag("v1"), contract::digest(1));
    let first = Embedded::open(folder.path()).unwrap();
    let id = first.identity().await.unwrap().id;
    assert_eq!(adopt(&first, &tag, &digest).await, Ok(Adopt::Adopted));
    first.close().await;
    assert_eq!(first.lookup(&key(), std::slice::from_ref(&tag)).await, Err(Unavailable::Closed));
    assert_eq!(adopt(&first, &tag, &digest).await, Err(Unavailable::Closed));

    let second = Embedded::open(folder.path()).unwrap();
    assert_eq!(second.identity().await.unwrap().id, id);
    let entries = second.lookup(&key(), &[tag]).await.unwrap().entries;
    assert_eq!(entries[0].digest(), Some(&digest));
    assert_eq!(second.sequence(&key()).await, Ok(1));
}

#[tokio::test]
async fn what_changes_nothing_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Embedded::open(folder.path()).unwrap();
    let (tags, attempt) = ([contract::tag("v1")], AttemptId::random());
    let written = || std::fs::metadata(folder.path().join("ledger.redb")).unwrap().modified();
    assert_eq!(adopt(&ledger, &tags[0], &contract::digest(1)).await, Ok(Adopt::Adopted));
    let before = written().unwrap();
    // Past what the file system's clock may round.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    for n in [1, 2] {
        adopt(&ledger, &tags[0], &contract::digest(n)).await.unwrap();
        ledger.claim(&key(), &tags, &contract::digest(n), attempt).await.unwrap();
        ledger.abort(&key(), &tags, &contract::digest(n), attempt).await.unwrap();
    }
    assert_eq!(written().unwrap(), before);
    assert_eq!(
        adopt(&ledger, &contract::tag("v2"), &contract::digest(1)).await,
        Ok(Adopt::Adopted)
    );
    assert_ne!(written().unwrap(), before);
}

#[tokio::test]
async fn a_second_opening_of_the_same_folder_is_refused_until_the_first_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let first = Embedded::open(folder.path()).unwrap();
    let second = Embedded::open(folder.path()).err().unwrap();
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    first.close().await;
    Embedded::open(folder.path()).unwrap();
}

#[test]
fn files_that_are_no_ledger_are_refused_and_left_as_they_are() {
    let foreign: &[(&[u8], &str)] = &[
        (b"not a database at all, but long enough to have a header in it", "not a ledger"),
        (b"", "damaged"),
        (b"x", "ledger"),
    ];
    for (content, expected) in foreign {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.redb");
        std::fs::write(&file, content).unwrap();
        let error = Embedded::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), *content);
    }
}

#[test]
fn another_programs_database_and_a_newer_format_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ledger.redb");
    drop(Database::create(&file).unwrap());
    let error = Embedded::open(folder.path()).err().unwrap();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");
    let database = Database::open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(META).unwrap().insert("format", "3").unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Embedded::open(folder.path()).err().unwrap();
    assert!(matches!(error, OpenError::TooNew { found: 3, .. }), "{error}");
}

/// A file of format 1 has no table of freed numbers and none of delete marks.
#[tokio::test]
async fn a_file_of_an_older_format_is_brought_up_and_keeps_its_entries() {
    const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");
    let folder = tempfile::tempdir().unwrap();
    let (tag, digest) = (contract::tag("v1"), contract::digest(1));
    let ledger = Embedded::open(folder.path()).unwrap();
    let id = ledger.id().to_owned();
    adopt(&ledger, &tag, &digest).await.unwrap();
    ledger.close().await;
    let database = Database::open(folder.path().join("ledger.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.delete_table(FREED).unwrap();
    transaction.delete_table(MARKS).unwrap();
    transaction.open_table(META).unwrap().insert("format", "1").unwrap();
    transaction.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let ledger = Embedded::open(folder.path()).unwrap();
        let identity = ledger.identity().await.unwrap();
        assert_eq!((identity.id, identity.format), (id.clone(), 2));
        let found = ledger.lookup(&key(), std::slice::from_ref(&tag)).await.unwrap();
        assert_eq!(found.entries[0].digest(), Some(&digest));
        ledger.begin_delete(&key(), &digest, AttemptId::random()).await.unwrap();
        ledger.close().await;
    }
}

#[test]
fn a_start_that_ended_half_way_is_started_over() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ledger.redb.new"), b"half a file").unwrap();
    Embedded::open(folder.path()).unwrap();
    assert!(!folder.path().join("ledger.redb.new").exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, b"").unwrap();
    let error = Embedded::open(&blocked.join("data")).err().unwrap().to_string();
    assert!(error.contains("file/data"), "{error}");
}

#[tokio::test]
async fn one_entry_that_cannot_be_read_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    Embedded::open(folder.path()).unwrap().close().await;
    let database = Database::open(folder.path().join("ledger.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    let bad = entry_key(&key(), &contract::tag("bad"));
    transaction.open_table(ENTRIES).unwrap().insert(bad.as_slice(), &b"?"[..]).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let ledger = Embedded::open(folder.path()).unwrap();
    let digest = contract::digest(1);
    let (bad, good) = (contract::tag("bad"), contract::tag("good"));
    let (bad, good) = tokio::join!(adopt(&ledger, &bad, &digest), adopt(&ledger, &good, &digest));
    assert!(matches!(bad, Err(Unavailable::Store(_))), "{bad:?}");
    assert_eq!(good, Ok(Adopt::Adopted));
    assert!(ledger.identity().await.is_ok());
}
