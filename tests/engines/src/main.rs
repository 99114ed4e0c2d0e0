//! redb beside fjall, at the two things that Larder asks of a storage engine.
//!
//! *The journal*: records of 512 bytes from 64 writers, each told only when its record would survive a power cut; one commit
//! for all who wait together; of what is in it, a thousand records at most, the oldest are taken out. *The disk tier*: values
//! of 4 KiB that nobody waits for, 64 MiB of them at most, whatever comes in.
//!
//! ```sh
//! cargo run --release [DIRECTORY]      # on the file system that is meant
//! ```

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use redb::{ReadableDatabase, ReadableTable};

const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("t");

/// What both engines are asked.
trait Engine: Send + Sync {
    fn commit(&self, put: &[(u64, Vec<u8>)], remove: &[u64], durable: bool) -> Result<()>;
    fn get(&self, key: u64) -> Result<Option<Vec<u8>>>;
    fn keys(&self) -> Result<Vec<u64>>;
}

struct Redb(redb::Database);

impl Redb {
    fn open(directory: &Path, cache: usize) -> Result<Self> {
        let database = redb::Builder::new().set_cache_size(cache).create(directory.join("redb"))?;
        let begun = database.begin_write()?;
        begun.open_table(TABLE)?;
        begun.commit()?;
        Ok(Redb(database))
    }
}

impl Engine for Redb {
    fn commit(&self, put: &[(u64, Vec<u8>)], remove: &[u64], durable: bool) -> Result<()> {
        let mut writing = self.0.begin_write()?;
        if !durable {
            writing.set_durability(redb::Durability::None)?;
        }
        {
            let mut table = writing.open_table(TABLE)?;
            for (key, value) in put {
                table.insert(key, value.as_slice())?;
            }
            for key in remove {
                table.remove(key)?;
            }
        }
        writing.commit()?;
        Ok(())
    }
    fn get(&self, key: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.0.begin_read()?.open_table(TABLE)?.get(key)?.map(|value| value.value().to_vec()))
    }
    fn keys(&self) -> Result<Vec<u64>> {
        let table = self.0.begin_read()?.open_table(TABLE)?;
        table.iter()?.map(|entry| Ok(entry?.0.value())).collect()
    }
}

struct Fjall(fjall::Database, fjall::Keyspace);

impl Fjall {
    fn open(directory: &Path, cache: usize) -> Result<Self> {
        let database = fjall::Database::builder(directory.join("fjall"))
            .cache_size(cache as u64)
            .max_journaling_size(64 << 20)
            .open()?;
        let keyspace = database.keyspace("t", || fjall::KeyspaceCreateOptions::default().max_memtable_size(8 << 20))?;
        Ok(Fjall(database, keyspace))
    }
}

impl Engine for Fjall {
    fn commit(&self, put: &[(u64, Vec<u8>)], remove: &[u64], durable: bool) -> Result<()> {
        let mut batch = self.0.batch().durability(durable.then_some(fjall::PersistMode::SyncData));
        for (key, value) in put {
            batch.insert(&self.1, key.to_be_bytes(), value.as_slice());
        }
        for key in remove {
            batch.remove(&self.1, key.to_be_bytes());
        }
        Ok(batch.commit()?)
    }
    fn get(&self, key: u64) -> Result<Option<Vec<u8>>> {
        Ok(self.1.get(key.to_be_bytes())?.map(|value| value.to_vec()))
    }
    fn keys(&self) -> Result<Vec<u64>> {
        self.1.iter().map(|entry| Ok(u64::from_be_bytes(entry.key()?.as_ref().try_into()?))).collect()
    }
}

fn open(engine: &str, directory: &Path, cache: usize) -> Result<Arc<dyn Engine>> {
    Ok(match engine {
        "redb" => Arc::new(Redb::open(directory, cache)?),
        "fjall" => Arc::new(Fjall::open(directory, cache)?),
        other => bail!("no engine {other}: redb or fjall"),
    })
}

fn size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return fs::metadata(path).map_or(0, |file| file.len()) };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

/// Bytes that do not compress.
fn value(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

const MB: f64 = 1e6;

type Waiting = (u64, Vec<u8>, mpsc::SyncSender<()>);

/// Writers who wait, one thread that commits for all of them, and a thousand records at most. Tells of each record that is
/// durable.
fn journal(engine: &dyn Engine, writers: u64, each: u64, told: impl Fn(u64) + Sync) -> Result<(u64, Histogram<u64>)> {
    let (queue, waiting) = mpsc::channel::<Waiting>();
    let latencies = Mutex::new(Histogram::<u64>::new(3)?);
    let mut commits = 0;
    thread::scope(|scope| -> Result<()> {
        for writer in 0..writers {
            let (queue, latencies, told) = (queue.clone(), &latencies, &told);
            scope.spawn(move || {
                for i in 0..each {
                    let key = i * writers + writer;
                    let (done, wait) = mpsc::sync_channel(1);
                    let began = Instant::now();
                    if queue.send((key, value(key, 512), done)).is_err() || wait.recv().is_err() {
                        return;
                    }
                    told(key);
                    let mut latencies = latencies.lock().expect("not poisoned");
                    latencies.record(began.elapsed().as_micros() as u64).expect("in range");
                }
            });
        }
        drop(queue);
        let mut kept = VecDeque::new();
        while let Ok(first) = waiting.recv() {
            let batch: Vec<Waiting> = std::iter::once(first).chain(waiting.try_iter()).collect();
            let put: Vec<_> = batch.iter().map(|(key, value, _)| (*key, value.clone())).collect();
            kept.extend(put.iter().map(|(key, _)| *key));
            let gone: Vec<u64> = kept.drain(..kept.len().saturating_sub(1_000)).collect();
            engine.commit(&put, &gone, true)?;
            commits += 1;
            batch.iter().for_each(|(_, _, done)| drop(done.send(())));
        }
        Ok(())
    })?;
    Ok((commits, latencies.into_inner()?))
}

fn measure_journal(name: &str, directory: &Path) -> Result<()> {
    for (writers, each) in [(1, 300), (64, 400)] {
        let directory = tempfile::tempdir_in(directory)?;
        let engine = open(name, directory.path(), 16 << 20)?;
        let began = Instant::now();
        let (commits, latencies) = journal(&*engine, writers, each, |_| ())?;
        let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
        let (p50, p99) = (latencies.value_at_quantile(0.5), latencies.value_at_quantile(0.99));
        let disk = size(directory.path()) as f64 / MB;
        println!(
            "{name:5} journal, {writers:2} writers: {rate:7.0} records/s, p50 {p50:6} µs, p99 {p99:6} µs, \
             {commits} commits, {disk:.1} MB on disk for {:.1} MB",
            (latencies.len().min(1_000) * 512) as f64 / MB
        );
    }
    // A long life: what is left of a hundred thousand records of which a thousand are kept.
    let place = tempfile::tempdir_in(directory)?;
    let engine = open(name, place.path(), 16 << 20)?;
    let mut most = 0;
    for batch in 0..500u64 {
        let put: Vec<_> = (batch * 200..(batch + 1) * 200).map(|key| (key, value(key, 512))).collect();
        let gone: Vec<_> = ((batch * 200).saturating_sub(1_000)..((batch + 1) * 200).saturating_sub(1_000)).collect();
        engine.commit(&put, &gone, batch % 10 == 0)?;
        most = most.max(size(place.path()));
    }
    let (most, now) = (most as f64 / MB, size(place.path()) as f64 / MB);
    println!("{name:5} journal, 100,000 records, 1,000 kept: {most:.1} MB at most, {now:.1} MB at the end, for 0.5 MB");
    drop(engine);
    let began = Instant::now();
    let count = open(name, place.path(), 16 << 20)?.keys()?.len();
    println!("{name:5} opened again in {:.1} ms, {count} records", began.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Kills a process that writes, and looks what is there of what it was told is durable.
fn measure_kill(name: &str, directory: &Path) -> Result<()> {
    let (mut acknowledged, mut lost, mut opening) = (0usize, 0usize, Duration::ZERO);
    let runs = 20;
    for run in 0..runs {
        let place = tempfile::tempdir_in(directory)?;
        let output = place.path().join("told");
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--child", name])
            .arg(place.path())
            .stdout(Stdio::from(fs::File::create(&output)?))
            .spawn()?;
        thread::sleep(Duration::from_millis(100 + 37 * run));
        child.kill()?;
        child.wait()?;
        let told = fs::read_to_string(&output)?;
        let told: Vec<u64> = told.lines().filter_map(|line| line.strip_suffix('.')?.parse().ok()).collect();
        let began = Instant::now();
        let there = open(name, place.path(), 16 << 20)?.keys().context("what is there")?;
        opening += began.elapsed();
        let there: std::collections::HashSet<u64> = there.into_iter().collect();
        acknowledged += told.len();
        // A thousand are kept; of those that were told last, the sixteen writers may have told a few late.
        lost += told.iter().rev().take(900).filter(|key| !there.contains(key)).count();
    }
    let each = opening.as_secs_f64() * 1e3 / f64::from(runs as u32);
    println!("{name:5} kill -9, {runs} runs: {acknowledged} acknowledged, {lost} lost; opened in {each:.1} ms");
    Ok(())
}

fn child(name: &str, directory: &Path) -> Result<()> {
    use std::io::Write;
    let engine = open(name, directory, 16 << 20)?;
    // One write(2) for each line, so that what is told is told before the next.
    journal(&*engine, 16, 1_000_000, |key| {
        std::io::stdout().lock().write_all(format!("{key}.\n").as_bytes()).expect("told");
    })?;
    Ok(())
}

fn measure_tier(name: &str, directory: &Path) -> Result<()> {
    const BOUND: u64 = 64 << 20;
    const EACH: usize = 4 << 10;
    let place = tempfile::tempdir_in(directory)?;
    let engine = open(name, place.path(), 8 << 20)?;
    let most_entries = BOUND / EACH as u64;
    let (mut kept, mut most) = (VecDeque::new(), 0);
    let began = Instant::now();
    let puts = most_entries * 4;
    // Sixteen values a commit, as puts that come together share one; a durable one now and then.
    for batch in 0..puts / 16 {
        let put: Vec<_> =
            (batch * 16..batch * 16 + 16).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15), value(i, EACH))).collect();
        kept.extend(put.iter().map(|(key, _)| *key));
        let gone: Vec<u64> = kept.drain(..kept.len().saturating_sub(most_entries as usize)).collect();
        engine.commit(&put, &gone, batch % 64 == 0)?;
        if batch % 64 == 0 {
            most = most.max(size(place.path()));
        }
    }
    let rate = puts as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let gets = 100_000;
    for i in 0..gets {
        let key = kept[(i * 7919) % kept.len()];
        if engine.get(key)?.is_none_or(|value| value.len() != EACH) {
            bail!("a value is not there");
        }
    }
    let each = began.elapsed().as_secs_f64() * 1e6 / gets as f64;
    println!(
        "{name:5} tier: {rate:.0} puts/s, {each:.1} µs a get, {:.0} MB on disk at most for {:.0} MB",
        most as f64 / MB,
        BOUND as f64 / MB
    );
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, engine, directory] = &arguments[..]
        && flag == "--child"
    {
        return child(engine, Path::new(directory));
    }
    let directory = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from);
    for engine in ["redb", "fjall"] {
        measure_journal(engine, &directory)?;
        measure_kill(engine, &directory)?;
        measure_tier(engine, &directory)?;
    }
    Ok(())
}
