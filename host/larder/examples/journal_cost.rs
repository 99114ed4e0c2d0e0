//! What write-behind costs a writer: inserts through the whole stack into a journal in a file, by one writer and by many, who
//! share commits. A source that takes a batch at a time and a millisecond for each follows behind.
//!
//! ```sh
//! cargo run --release -p larder --features journal --example journal_cost [DIRECTORY]
//! ```

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder::tiered::{BoxFuture, Codec, Journal, Loaded, Save, Source, SourceError, Tiered};

/// A source that takes what it gets.
struct Taking;

impl Source<u64, u64> for Taking {
    fn saves(&self) -> bool {
        true
    }
    fn load<'a>(&'a self, _: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        Box::pin(async { Err(io::Error::other("nothing is read here").into()) })
    }
    fn save<'a>(&'a self, save: Save<'a, u64, u64>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move { self.save_many(&[save]).await.pop().unwrap_or(Ok(())) })
    }
    fn saves_many(&self) -> bool {
        true
    }
    fn save_many<'a>(&'a self, saves: &'a [Save<'a, u64, u64>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            saves.iter().map(|_| Ok(())).collect()
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for (writers, each) in [(1u64, 500u64), (64, 400)] {
        let directory = tempfile::tempdir_in(&place)?;
        let path = directory.path().join("journal");
        let journal = Journal::builder().open(&path).await?;
        let cache = Tiered::<u64, u64>::builder()
            .max_capacity(100_000)
            .source(Taking)
            .codec(Codec::new(
                |value: &u64| value.to_le_bytes().to_vec(),
                |bytes| bytes.try_into().map(u64::from_le_bytes),
            ))
            .journal(journal.clone())
            .rule("write", "write-behind")
            .build()?;
        let began = Instant::now();
        let mut tasks = Vec::new();
        for writer in 0..writers {
            let cache = cache.clone();
            tasks.push(tokio::spawn(async move {
                let mut took = Vec::with_capacity(each as usize);
                for i in 0..each {
                    let began = Instant::now();
                    cache.insert(writer * each + i, i).await?;
                    took.push(began.elapsed());
                }
                Ok::<_, larder::tiered::TieredError>(took)
            }));
        }
        let mut took = Vec::new();
        for task in tasks {
            took.extend(task.await??);
        }
        let rate = took.len() as f64 / began.elapsed().as_secs_f64();
        took.sort_unstable();
        let left = cache.shutdown(Duration::from_secs(60)).await;
        let (stats, size) = (journal.stats(), std::fs::metadata(&path)?.len() as f64 / 1e6);
        println!(
            "{writers:2} writers: {rate:.0} writes/s, p50 {:?}, p99 {:?}; {} commits, {left} left, {size:.1} MB on disk",
            took[took.len() / 2],
            took[took.len() * 99 / 100],
            stats.commits,
        );
    }
    Ok(())
}
