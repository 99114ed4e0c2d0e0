//! Any file is a journal or an error; and what one journal recovers, the next one that opens the file recovers too.
//!
//! Bytes seldom get past the checksums of the file's engine. So the first byte says what the rest is: a file, damage to a
//! good file, or the content of its tables, as a version with a defect could have written them.

use std::path::Path;
use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use redb::TableDefinition;

use crate::redb_files;
use crate::tiered::WriteId;
use crate::tiered::journal::{Journal, JournalError, Logged};

// As the journal names them.
const WRITES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("larder-journal-writes");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("larder-journal");

/// A record of the format that is written: the one of the journal's own test.
const RECORD: &[u8] = b"\x01\x06orders\x017\x01\x02ab\x01\x02v7\x02\x03red\x04blue\x01\x01\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x80\xd0\x95\xff\xbc\x31\x00";

/// One file.
pub fn check(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    redb_files::let_it_panic();
    let path = redb_files::scratch().join("fuzzed.journal");
    let _ = std::fs::remove_file(&path);
    let written = match first % 4 {
        0 => std::fs::write(&path, rest).is_ok(),
        1 => std::fs::write(&path, damaged(rest)).is_ok(),
        _ => tables(&path, &mut Unstructured::new(rest)).is_ok(),
    };
    assert!(written, "the harness can write its file");
    let Ok(found) = opened(&path, false) else { return };
    assert_eq!(opened(&path, true).ok(), Some(found), "what was recovered once is recovered again");
    // And what became of its letters is.
    opened(&path, false).expect("what a journal has written opens");
}

/// What a journal says of its writes: those that wait, and dead letters.
type Found = (Vec<(WriteId, String)>, Vec<(WriteId, String)>);

/// Opens the file. `revive`: and makes some of the dead letters writes again.
fn opened(path: &Path, revive: bool) -> Result<Found, JournalError> {
    let said = |logged: Vec<Logged>| logged.into_iter().map(|one| (one.id, format!("{one:?}"))).collect::<Vec<_>>();
    // Its own: with it end the tasks that have the file open.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let journal = Journal::builder().open(path).await?;
        let found = (said(journal.pending()), said(journal.dead_letters()));
        let stats = journal.stats();
        assert_eq!((stats.pending, stats.dead), (found.0.len(), found.1.len()));
        for (id, _) in found.1.iter().take(if revive { 4 } else { 0 }) {
            match journal.retry(*id).await {
                Ok(()) | Err(JournalError::Superseded(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Ok(found)
    })
}

fn damaged(damage: &[u8]) -> Vec<u8> {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let path = redb_files::scratch().join("good.journal");
        let _ = std::fs::remove_file(&path);
        let records = (1..40).map(|number| (number, RECORD.to_vec())).collect();
        write(&path, &[("format", 1), ("id", 7), ("last", 40)], &records).expect("a good journal");
        std::fs::read(&path).expect("a good journal")
    });
    let mut bytes = good.clone();
    for piece in damage.chunks_exact(5).take(64) {
        let at = u32::from_le_bytes([piece[0], piece[1], piece[2], piece[3]]) as usize;
        if piece[4] == 0 {
            bytes.truncate(at.max(1));
        } else {
            let at = at % bytes.len();
            bytes[at] ^= piece[4];
        }
    }
    bytes
}

fn tables(path: &Path, data: &mut Unstructured<'_>) -> Result<(), redb::Error> {
    let (mut about, mut records) = (Vec::new(), Vec::new());
    for name in ["format", "id", "last"] {
        match u8::arbitrary(data).unwrap_or(1) {
            0 => {}
            1..=127 => about.push((name, 1)),
            _ => about.push((name, u64::arbitrary(data).unwrap_or(1))),
        }
    }
    while !data.is_empty() {
        let kind = u8::arbitrary(data).unwrap_or(0);
        let number = if kind & 1 == 0 { records.len() as u64 } else { u64::arbitrary(data).unwrap_or(u64::MAX) };
        let mut record = if kind & 2 == 0 { RECORD.to_vec() } else { Vec::<u8>::arbitrary(data).unwrap_or_default() };
        if kind & 4 != 0 && !record.is_empty() {
            // A dead letter, if it was a good one.
            record.pop();
            record.extend_from_slice(b"\x01\x02no");
        }
        if kind & 8 != 0 && !record.is_empty() {
            let at = usize::from(kind >> 4) % record.len();
            record[at] ^= u8::arbitrary(data).unwrap_or(0);
        }
        records.push((number, record));
    }
    write(path, &about, &records)
}

fn write(path: &Path, about: &[(&str, u64)], records: &Vec<(u64, Vec<u8>)>) -> Result<(), redb::Error> {
    let database = redb::Database::create(path)?;
    let writing = database.begin_write()?;
    {
        let mut table = writing.open_table(ABOUT)?;
        for (name, value) in about {
            table.insert(name, value)?;
        }
        let mut table = writing.open_table(WRITES)?;
        for (number, record) in records {
            table.insert(number, record.as_slice())?;
        }
    }
    writing.commit()?;
    Ok(())
}
