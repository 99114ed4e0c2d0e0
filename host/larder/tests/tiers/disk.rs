//! The tier on disk: what it keeps over restarts, crashes and damage, and what it must not.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder::Policy;
use larder::tiered::{
    Bus, Codec, DiskSetupError, DiskTier, DiskTierBuilder, FarCopy, Group, LocalBus, Looked, Put, Scope, Tier, Tiered,
    TieredBuilder,
};

use crate::world::{Database, ms};

/// A copy with one tag, fresh for ten minutes and stale for as long.
pub(crate) fn copy(value: &[u8]) -> FarCopy {
    FarCopy {
        value: Some(value.to_vec().into()),
        validator: None,
        tags: ["t".into()].into(),
        age_ms: 0,
        fresh_ms: 600_000,
        stale_ms: 600_000,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 0,
    }
}

async fn fill(tier: &DiskTier, key: &str, copy: FarCopy) -> Put {
    let token = tier.token(key).await.unwrap();
    tier.put(key, copy, token, false).await.unwrap()
}

async fn get(tier: &DiskTier, key: &str) -> Option<Vec<u8>> {
    let Looked { copy, .. } = tier.get(key).await.unwrap();
    Some(copy?.value?.to_vec())
}

fn keys(key: &str) -> Scope {
    Scope::Keys(vec![key.into()])
}

fn tier(directory: &Path) -> DiskTierBuilder {
    DiskTier::builder(directory.join("cache")).max_bytes(4 << 20)
}

#[cfg(feature = "testkit")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_suite() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(tier(directory.path()).max_value_bytes(100_000).open().await.unwrap());
    larder::tiered::testkit::TierSuite::new(move || {
        let disk = disk.clone();
        async move { disk as Arc<_> }
    })
    .too_large(100_001)
    .run()
    .await;
}

#[tokio::test]
async fn what_is_kept_is_there_after_a_restart_and_what_was_dropped_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let disk = tier(directory.path()).open().await.unwrap();
    for key in ["a", "b", "c", "d", "p/1"] {
        assert_eq!(fill(&disk, key, copy(key.as_bytes())).await, Put::Kept);
    }
    let short = FarCopy { fresh_ms: 30, stale_ms: 0, ..copy(b"short") };
    fill(&disk, "short", short).await;
    let untagged = FarCopy { tags: [].into(), ..copy(b"untagged") };
    fill(&disk, "untagged", untagged).await;
    disk.invalidate(&keys("a"), false).await.unwrap();
    disk.invalidate(&keys("b"), true).await.unwrap();
    disk.invalidate(&Scope::Group(Group::Prefix("p/".into())), false).await.unwrap();
    let token = disk.token("c").await.unwrap();
    assert_eq!(disk.put("c", copy(b"written"), token, true).await.unwrap(), Put::Kept);
    drop(disk);
    tokio::time::sleep(ms(40)).await;

    let disk = tier(directory.path()).open().await.unwrap();
    let b = disk.get("b").await.unwrap().copy.unwrap();
    assert!(b.fresh_ms == 0 && b.stale_ms > 0 && b.stale_ms < 600_000, "it ages while nobody runs: {b:?}");
    for (key, value) in [("a", None), ("c", Some(&b"written"[..])), ("d", Some(b"d")), ("p/1", None), ("short", None)] {
        assert_eq!(get(&disk, key).await.as_deref(), value, "{key}");
    }
    disk.invalidate(&Scope::Group(Group::Tag("t".into())), false).await.unwrap();
    drop(disk);
    let disk = tier(directory.path()).open().await.unwrap();
    for (key, value) in [("d", None), ("c", None), ("untagged", Some(&b"untagged"[..]))] {
        assert_eq!(get(&disk, key).await.as_deref(), value, "{key}");
    }
}

#[tokio::test]
async fn it_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let disk = tier(directory.path()).policy(Policy::builtin("lru").unwrap()).open().await.unwrap();
    for i in 0..8_000u32 {
        fill(&disk, &i.to_string(), copy(&[i as u8; 2_000])).await;
    }
    let entries = disk.entry_count();
    assert!(entries <= 2_100 && entries > 1_500, "4 MiB are about 1,900 of them: {entries}");
    assert_eq!(get(&disk, "7999").await, Some(vec![63; 2_000]));
    assert_eq!(get(&disk, "1").await, None);
    disk.sync().await.unwrap();
    let size = fs::metadata(directory.path().join("cache")).unwrap().len();
    println!("{entries} copies, a file of {size} bytes");
    // Values of half a page take a page each.
    assert!(size < 6 * (4 << 20), "the file grows without end: {size}");
    drop(disk);
    // What was put out does not come back, and a smaller bound holds from the start.
    let disk = tier(directory.path()).max_bytes(1 << 20).open().await.unwrap();
    assert!(disk.entry_count() <= 520, "{}", disk.entry_count());
}

#[tokio::test]
async fn what_lies_there_already_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache");
    let disk = tier(directory.path()).open().await.unwrap();
    fill(&disk, "a", copy(b"a")).await;
    let again = tier(directory.path()).open().await;
    assert!(matches!(again, Err(DiskSetupError::InUse(_))), "{again:?}");
    drop(disk);

    // Somebody else's file is left as it is.
    let other = directory.path().join("notes.txt");
    fs::write(&other, "what I must not forget").unwrap();
    let refused = DiskTier::builder(&other).open().await.unwrap_err();
    assert!(matches!(refused, DiskSetupError::NotADiskTier(_)), "{refused}");
    assert_eq!(fs::read_to_string(&other).unwrap(), "what I must not forget");
    let nowhere = DiskTier::builder(directory.path().join("no/such/place")).open().await.unwrap_err();
    assert!(matches!(nowhere, DiskSetupError::Io { .. }), "{nowhere}");
    let opened = DiskTier::builder(directory.path()).open().await.map(|_| ());
    for no_file in [opened, DiskTier::look(directory.path()).await.map(|_| ())].map(Result::unwrap_err) {
        assert!(no_file.to_string().contains("it is a directory; name a file"), "{no_file}");
    }

    // A damaged one is set aside.
    let mut bytes = fs::read(&path).unwrap();
    let whole = bytes.len();
    bytes[64..whole].fill(0xaa);
    fs::write(&path, &bytes).unwrap();
    let disk = tier(directory.path()).open().await.unwrap();
    assert_eq!(get(&disk, "a").await, None);
    assert_eq!(fill(&disk, "a", copy(b"new")).await, Put::Kept);
    assert_eq!(fs::read(directory.path().join("cache.damaged")).unwrap(), bytes, "nothing is thrown away");
}

/// Bytes of copies that rot on the disk are misses, and never another value.
#[tokio::test]
async fn rot_is_a_miss() {
    let directory = tempfile::tempdir().unwrap();
    let disk = tier(directory.path()).open().await.unwrap();
    for i in 0..20u8 {
        fill(&disk, &format!("key {i}"), copy(&[0xe0 | i; 3_000])).await;
    }
    drop(disk);
    let path = directory.path().join("cache");
    let mut bytes = fs::read(&path).unwrap();
    // A bit in the middle of each value, wherever the file has it.
    let mut rotten = 0;
    let mut at = 0;
    while at + 1_000 < bytes.len() {
        let first = bytes[at];
        if first >= 0xe0 && bytes[at..at + 1_000].iter().all(|byte| *byte == first) {
            bytes[at + 500] ^= 1;
            rotten += 1;
            at += 3_000;
        } else {
            at += 1;
        }
    }
    assert!(rotten >= 20, "{rotten}");
    fs::write(&path, &bytes).unwrap();
    let disk = tier(directory.path()).open().await.unwrap();
    let mut damaged = 0;
    for i in 0..20u8 {
        let looked = disk.get(&format!("key {i}")).await.unwrap();
        damaged += usize::from(looked.damaged);
        assert!(looked.copy.is_none(), "key {i}");
    }
    // Where redb saw it first, the file was set aside.
    assert!(damaged == 20 || directory.path().join("cache.damaged").exists(), "{damaged}");
    assert_eq!(fill(&disk, "key 1", copy(b"new")).await, Put::Kept);
    assert_eq!(get(&disk, "key 1").await.as_deref(), Some(&b"new"[..]));
}

fn cache(disk: &Arc<DiskTier>, bus: &Arc<LocalBus>, database: &Arc<Database>) -> TieredBuilder<u64, u64> {
    Tiered::builder()
        .keyspace("k")
        .max_capacity(100)
        .far(disk.clone())
        .bus(bus.clone() as Arc<dyn Bus>)
        .codec(Codec::new(|value: &u64| value.to_le_bytes().to_vec(), |bytes| bytes.try_into().map(u64::from_le_bytes)))
        .source(database.clone())
        .rule("ttl-ms", Duration::from_secs(600))
}

/// It is this process's own: what others invalidate reaches it by the bus, and what was invalidated while it did not
/// listen is not served.
#[tokio::test]
async fn what_others_invalidate_is_gone_here_too() {
    let directory = tempfile::tempdir().unwrap();
    let (bus, database) = (Arc::new(LocalBus::new()), Database::new(ms(0)));
    let (mine, theirs) = (directory.path().join("mine"), directory.path().join("theirs"));
    let disk = Arc::new(DiskTier::builder(&mine).open().await.unwrap());
    let other_disk = Arc::new(DiskTier::builder(&theirs).open().await.unwrap());
    let here = cache(&disk, &bus, &database).build().unwrap();
    let there = cache(&other_disk, &bus, &database).build().unwrap();
    let settled = async |cache: &Tiered<u64, u64>| {
        while cache.stats().owed > 0 {
            tokio::time::sleep(ms(5)).await;
        }
    };
    settled(&here).await;
    settled(&there).await;
    database.write(1, 10);
    assert_eq!(here.get(&1).await.unwrap(), Some(10));
    while disk.entry_count() == 0 {
        tokio::time::sleep(ms(5)).await;
    }
    database.write(1, 11);
    there.invalidate(&1).await.unwrap();
    assert_eq!(disk.entry_count(), 0, "the bus reaches the disk");
    assert_eq!(here.get(&1).await.unwrap(), Some(11));
    while disk.entry_count() == 0 {
        tokio::time::sleep(ms(5)).await;
    }
    // While this process is not there, it hears nothing.
    drop(here);
    while Arc::strong_count(&disk) > 1 {
        tokio::time::sleep(ms(5)).await;
    }
    database.write(1, 12);
    there.invalidate(&1).await.unwrap();
    let here = cache(&disk, &bus, &database).build().unwrap();
    assert_eq!(here.get(&1).await.unwrap(), Some(12));
}

/// Without a bus nobody else invalidates: what is on disk serves after a restart, without a load.
#[tokio::test]
async fn a_restart_begins_warm() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::new(ms(0));
    let start = async || {
        let disk = DiskTier::builder(directory.path().join("cache")).open().await.unwrap();
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes);
        let codec = Codec::new(|value: &u64| value.to_le_bytes().to_vec(), number);
        let cache = Tiered::<u64, u64>::builder().keyspace("k").max_capacity(10).far(disk).codec(codec);
        cache.source(database.clone()).rule("ttl-ms", Duration::from_secs(600)).build().unwrap()
    };
    let cache = start().await;
    for key in 0..50 {
        database.write(key, key + 100);
        assert_eq!(cache.get(&key).await.unwrap(), Some(key + 100));
    }
    cache.invalidate(&7).await.unwrap();
    database.write(7, 1);
    // The tasks that keep what was served have it in hand still.
    while cache.stats().loading > 0 {
        tokio::time::sleep(ms(5)).await;
    }
    tokio::time::sleep(ms(50)).await;
    let loads = cache.stats().loads;
    drop(cache);
    let mut again = None;
    for _ in 0..200 {
        match DiskTier::builder(directory.path().join("cache")).open().await {
            Ok(disk) => {
                again = Some(disk);
                break;
            }
            Err(_) => tokio::time::sleep(ms(10)).await,
        }
    }
    drop(again.expect("the last handle lets go of the file"));
    let cache = start().await;
    for key in 0..50 {
        let expected = if key == 7 { 1 } else { key + 100 };
        assert_eq!(cache.get(&key).await.unwrap(), Some(expected));
    }
    let stats = cache.stats();
    assert_eq!((stats.loads, loads), (1, 50), "only what was invalidated is loaded: {stats:?}");
}

// ---- kill -9

const PLACE: &str = "LARDER_TEST_DISK";

/// A process that keeps, writes and drops for as long as it lives, and tells before and after each what it does: versions
/// of a key grow.
#[test]
fn process() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let mut told = std::io::stdout();
    let mut tell = |line: String| {
        told.write_all(line.as_bytes()).and_then(|()| told.flush()).expect("told");
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let disk = DiskTier::builder(&place).max_bytes(200_000).open().await.unwrap();
        // What is there now is where versions begin.
        let mut random = u64::from(std::process::id()) << 20 | 1;
        let mut version = std::env::var("LARDER_TEST_VERSION").unwrap().parse::<u64>().unwrap();
        loop {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = format!("k{}", random % 40);
            version += 1;
            let value = format!("{version}{}", " ".repeat((random >> 32) as usize % 9_000));
            match random >> 8 & 7 {
                0 | 1 => {
                    // From here on no older one may be served; until then either may.
                    disk.invalidate(&keys(&key), false).await.unwrap();
                    tell(format!("{key} {version}.\n"));
                }
                2 => {
                    disk.invalidate(&Scope::Group(Group::Tag("t".into())), false).await.unwrap();
                    tell(format!("all {version}.\n"));
                }
                3 => {
                    let token = disk.token(&key).await.unwrap();
                    if disk.put(&key, copy(value.as_bytes()), token, true).await.unwrap() == Put::Kept {
                        tell(format!("{key} {version}.\n"));
                    }
                }
                _ => {
                    fill(&disk, &key, copy(value.as_bytes())).await;
                }
            }
        }
    });
}

fn start(place: &Path, version: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["disk::process", "--exact", "--nocapture"]).env(PLACE, place);
    command.env("LARDER_TEST_VERSION", version.to_string());
    command.stdout(Stdio::piped()).spawn().expect("it starts")
}

/// After `kill -9` nothing is there that an acknowledged invalidation or write has superseded.
#[test]
fn what_was_invalidated_does_not_come_back_after_a_kill() {
    if std::env::var(PLACE).is_ok() {
        return;
    }
    let kills = std::env::var("LARDER_KILLS").map_or(15, |text| text.parse().expect("a number"));
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("cache");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let mut floors: HashMap<String, u64> = HashMap::new();
    let (mut told, mut there) = (0, 0);
    for run in 0..kills {
        let mut child = start(&place, run * 1_000_000);
        std::thread::sleep(ms(60 + run * 67 % 240));
        child.kill().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        for line in text.lines().filter_map(|line| line.strip_suffix('.')) {
            let Some((key, version)) = line.split_once(' ') else { continue };
            let Ok(version) = version.parse::<u64>() else { continue };
            told += 1;
            if key == "all" {
                floors.extend((0..40).map(|key| (format!("k{key}"), version)));
            } else {
                floors.insert(key.to_string(), version);
            }
        }
        runtime.block_on(async {
            let disk = DiskTier::builder(&place).max_bytes(200_000).open().await.unwrap();
            for (key, floor) in &floors {
                let Some(value) = get(&disk, key).await else { continue };
                let version: u64 = String::from_utf8(value).unwrap().trim_end().parse().unwrap();
                assert!(version >= *floor, "run {run}, {key}: {version} after {floor}");
                there += 1;
            }
        });
    }
    assert!(told > 100 && there > 0, "too little was checked: {told} told, {there} there");
}
