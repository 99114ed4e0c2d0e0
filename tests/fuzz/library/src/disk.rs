//! Any file is a disk tier or an error, and what it says of groups and copies does no harm: not when it is opened, nor
//! when the tier is used, nor when it is opened again.
//!
//! Bytes seldom get past the checksums of the file's engine. So the first byte says what the rest is: a file, damage to a
//! good file, or the content of its tables, as a version with a defect could have written them.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::redb_files;
use larder::Policy;
use larder::tiered::{DiskTier, Envelope, FarCopy, Group, Scope, Tier, TierError};
use redb::TableDefinition;
use tokio::runtime::Runtime;

// As the tier names them.
const COPIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("larder-disk-copies");
const DESCRIBED: TableDefinition<'_, u64, (u64, u64, u32, &str)> = TableDefinition::new("larder-disk-described");
const GROUPS: TableDefinition<'_, &str, (u64, u64, u64)> = TableDefinition::new("larder-disk-groups");
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("larder-disk");

const GONE: &str = "shop:1";
const KEYS: [&str; 4] = ["", GONE, "shop:größer", "k"];

/// One file.
pub fn check(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    redb_files::let_it_panic();
    let path = redb_files::scratch().join("fuzzed.disk");
    let _ = std::fs::remove_file(&path);
    let _ = std::fs::remove_file(path.with_added_extension("damaged"));
    let written = match first % 4 {
        0 => std::fs::write(&path, rest).is_ok(),
        1 => std::fs::write(&path, damaged(rest)).is_ok(),
        _ => tables(&path, &mut Bytes(rest)).is_ok(),
    };
    assert!(written, "the harness can write its file");
    match runtime().block_on(used(&path)) {
        Ok(true) => runtime().block_on(reopened(&path)),
        Ok(false) => {}
        // A disk that fails, which is seen when it is read.
        Err(error) => assert!(first % 4 == 1 && matches!(error, TierError::Unavailable(_)), "{error}"),
    }
}

/// Each its own: with it end the tasks that have the file open.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Whether it is a tier.
async fn used(path: &Path) -> Result<bool, TierError> {
    let Ok(tier) = open(path).await else { return Ok(false) };
    let gone: Arc<str> = GONE.into();
    for key in KEYS {
        let looked = tier.get(key).await?;
        if let Some(copy) = looked.copy {
            assert!(copy.fresh_ms > 0 || copy.stale_ms > 0 || copy.rescue_ms > 0, "it may be served");
        }
    }
    tier.invalidate(&Scope::Keys(vec![gone.clone()]), false).await?;
    assert!(tier.get(&gone).await?.copy.is_none());
    // A fill, by the token of now, is kept or declined, and is found.
    let token = tier.token(&gone).await?;
    tier.put(&gone, copy(), token, false).await?;
    tier.invalidate(&Scope::Group(Group::Tag("red".into())), false).await?;
    assert!(tier.get(&gone).await?.copy.is_none(), "it carries the tag");
    tier.keys("", None, 100).await?;
    tier.groups().await?;
    tier.sync().await?;
    Ok(true)
}

async fn reopened(path: &Path) {
    let tier = open(path).await.expect("what a tier has written opens");
    assert!(tier.get(GONE).await.expect("a copy or none").copy.is_none(), "what was invalidated stays so");
}

async fn open(path: &Path) -> Result<DiskTier, larder::tiered::DiskSetupError> {
    // Compiled once, and not for each file.
    static POLICY: OnceLock<larder::Module> = OnceLock::new();
    let module = POLICY.get_or_init(|| Policy::builtin("lru").and_then(|lru| lru.load()).expect("it is built in"));
    DiskTier::builder(path).max_bytes(1 << 20).policy(Policy::native("lru", |limits| module.open(limits))).open().await
}

fn copy() -> FarCopy {
    FarCopy {
        value: Some("seven".into()),
        validator: Some("v7".into()),
        tags: ["red".into(), "blue".into()].into(),
        age_ms: 0,
        fresh_ms: FarCopy::FOREVER,
        stale_ms: 1_000,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 12,
    }
}

/// A copy as the tier writes it.
fn record(key: &str, stamp: u64) -> Vec<u8> {
    let envelope = Envelope { stamp, ..Envelope::new(copy(), 1_700_000_000_000) };
    [&(key.len() as u32).to_be_bytes(), key.as_bytes(), &envelope.encode()].concat()
}

#[derive(Default)]
struct Content {
    about: Vec<(&'static str, u64)>,
    groups: Vec<(String, (u64, u64, u64))>,
    copies: Vec<(u64, (u64, u64, u32, String), Vec<u8>)>,
}

fn damaged(damage: &[u8]) -> Vec<u8> {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let path = redb_files::scratch().join("good.disk");
        let _ = std::fs::remove_file(&path);
        let mut content = Content { about: vec![("format", 1), ("counter", 3), ("moment", 1)], ..Content::default() };
        content.groups.push(("tred".into(), (0, 3, 5)));
        for (number, key) in KEYS.iter().enumerate() {
            let described = (u64::MAX, u64::MAX, 200, key.to_string());
            content.copies.push((number as u64, described, record(key, 3)));
        }
        write(&path, &content).expect("a good file");
        std::fs::read(&path).expect("a good file")
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

/// Takes its input apart.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// Small, or the largest, or any.
    fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::MAX - u64::from(self.byte()),
            254 => u64::from_be_bytes(std::array::from_fn(|_| self.byte())),
            small => small.into(),
        }
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.byte()).min(self.0.len());
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        String::from_utf8_lossy(text).into_owned()
    }
}

fn tables(path: &Path, data: &mut Bytes<'_>) -> Result<(), redb::Error> {
    let mut content = Content::default();
    for name in ["format", "counter", "moment"] {
        content.about.push((name, data.number()));
    }
    while !data.0.is_empty() {
        let kind = data.byte();
        if kind & 1 == 0 {
            let name =
                if kind & 2 == 0 { format!("t{}", ["red", "blue"][usize::from(kind >> 7)]) } else { data.text() };
            content.groups.push((name, (data.number(), data.number(), data.number())));
            continue;
        }
        let key = if kind & 2 == 0 { KEYS[usize::from(kind >> 6)].to_string() } else { data.text() };
        let number = data.number();
        let mut bytes = record(&key, data.number());
        if kind & 4 != 0 {
            let at = data.number() as usize % bytes.len();
            bytes[at] ^= data.byte();
        }
        let ends_at = if kind & 8 == 0 { u64::MAX } else { data.number() };
        let weight = if kind & 16 == 0 { bytes.len() as u32 } else { data.number() as u32 };
        content.copies.push((number, (ends_at, data.number(), weight, key), bytes));
    }
    write(path, &content)
}

fn write(path: &Path, content: &Content) -> Result<(), redb::Error> {
    let database = redb::Database::create(path)?;
    let writing = database.begin_write()?;
    {
        let mut about = writing.open_table(ABOUT)?;
        for (name, value) in &content.about {
            about.insert(name, value)?;
        }
        let mut groups = writing.open_table(GROUPS)?;
        for (name, versions) in &content.groups {
            groups.insert(name.as_str(), versions)?;
        }
        let mut described = writing.open_table(DESCRIBED)?;
        let mut copies = writing.open_table(COPIES)?;
        for (number, (ends_at, ended_at, weight, key), bytes) in &content.copies {
            described.insert(number, (*ends_at, *ended_at, *weight, key.as_str()))?;
            copies.insert(number, bytes.as_slice())?;
        }
    }
    writing.commit()?;
    Ok(())
}
