//! `kill -9` at random moments, under load: the test starts itself as a process that takes writes through the real driver
//! into a real file, kills it, starts it again over the same file, and at last lets it save what is left. The source is a
//! file that is appended to, a line for each save, in the order of saving; another has a line for each write that was
//! acknowledged, written after that. What `write(2)` has written survives its process, and a line whose end is there is
//! there whole: see `Lines`.
//!
//! Twenty kills here; `LARDER_KILLS=100 cargo test -p larder --test tiers journal_kill` is the long form (12 s).

#![cfg(unix)]

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use larder::tiered::{BoxFuture, Codec, Journal, Loaded, Save, Source, SourceError, Tiered};

/// What the process is told by its environment.
const PLACE: &str = "LARDER_KILL_PLACE";
const RUN: &str = "LARDER_KILL_RUN";

const WRITERS: u64 = 16;

/// A file of lines that outlives the processes that append to it.
///
/// A kill can cut a `write(2)` short: Linux looks for a fatal signal at each page, so that now and then the first part of a
/// line is left, up to the page's end. It does not count, as with every log: who opens the file takes it away. The lock is
/// for what is written meanwhile: who was cut short never gives it back, so nobody's line follows the part.
struct Lines(Mutex<File>);

impl Lines {
    fn open(path: &Path) -> Self {
        let text = fs::read(path).unwrap_or_default();
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let file = File::options().create(true).append(true).open(path).expect("the file opens");
        file.set_len(whole as u64).expect("it can be cut");
        Self(Mutex::new(file))
    }

    fn append(&self, line: &str) -> io::Result<()> {
        self.0.lock().expect("nobody panics here").write_all(format!("{line}\n").as_bytes())
    }
}

/// Saves by appending a line.
struct Appending(Lines);

impl Source<u64, u64> for Appending {
    fn saves(&self) -> bool {
        true
    }
    fn load<'a>(&'a self, _: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        Box::pin(async { Ok(Loaded::absent()) })
    }
    fn save<'a>(&'a self, save: Save<'a, u64, u64>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            // Some take longer, so that more than one is under way at most moments.
            tokio::time::sleep(Duration::from_millis(save.key % 4)).await;
            self.0.append(&format!("{} {} {}", save.id, save.key, save.value.copied().unwrap_or(0)))?;
            Ok(())
        })
    }
}

/// The process that is killed. A test only in name: without its environment it does nothing.
#[test]
fn process() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let run: Option<u64> = std::env::var(RUN).ok().and_then(|run| run.parse().ok());
    // It does not outlive the test.
    thread::spawn(|| {
        drop(io::stdin().read(&mut [0]));
        std::process::exit(1);
    });
    let place = Path::new(&place);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let journal = Journal::builder().flush_after(Duration::from_millis(5)).flush_batch(8);
        let journal = journal.open(place.join("journal")).await.unwrap_or_else(|error| panic!("{error}"));
        let cache = Tiered::<u64, u64>::builder()
            .max_capacity(1_000)
            .source(Appending(Lines::open(&place.join("source"))))
            .codec(Codec::new(
                |value: &u64| value.to_le_bytes().to_vec(),
                |bytes| bytes.try_into().map(u64::from_le_bytes),
            ))
            .journal(journal)
            .rule("write", "write-behind")
            .build()
            .unwrap_or_else(|error| panic!("{error}"));
        let Some(run) = run else {
            assert_eq!(cache.shutdown(Duration::from_secs(60)).await, 0, "all is saved");
            return;
        };
        let acknowledged = Arc::new(Lines::open(&place.join("acknowledged")));
        for writer in 0..WRITERS {
            let (cache, acknowledged) = (cache.clone(), acknowledged.clone());
            tokio::spawn(async move {
                for i in 1.. {
                    // Half the writers have keys of every run, and half such that no later run hides what this one lost.
                    let key = if writer % 2 == 0 { writer } else { (run + 1) * 1_000 + writer * 10 + i % 3 };
                    let value = run * 1_000_000 + i;
                    cache.insert(key, value).await.unwrap_or_else(|error| panic!("{error}"));
                    acknowledged.append(&format!("{key} {value}")).expect("told");
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

fn start(place: &Path, run: Option<u64>) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["journal_kill::process", "--exact", "--nocapture"]).env(PLACE, place).env_remove(RUN);
    if let Some(run) = run {
        command.env(RUN, run.to_string());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts")
}

fn lines(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.split(' ').map(String::from).collect()).collect()
}

#[test]
fn nothing_is_lost_or_out_of_order() {
    if std::env::var(PLACE).is_ok() {
        return;
    }
    let kills = std::env::var("LARDER_KILLS").map_or(20, |text| text.parse().expect("a number"));
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let told = place.join("acknowledged");
    let length = || fs::metadata(&told).map_or(0, |file| file.len());
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    for run in 0..kills {
        let before = length();
        let mut child = start(place, Some(run));
        // Under load: something has been acknowledged.
        let began = Instant::now();
        while length() <= before {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            assert!(began.elapsed() < Duration::from_secs(120), "it acknowledges nothing");
            thread::sleep(Duration::from_millis(2));
        }
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(Duration::from_millis(random % 150));
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        // What a kill leaves of a line that was under way, seldom by itself.
        if run % 2 == 0 {
            for file in ["source", "acknowledged"] {
                let file = File::options().append(true).open(place.join(file));
                file.and_then(|mut file| file.write_all(b"12 1")).expect("a part of a line");
            }
        }
    }
    let mut last = start(place, None);
    // `wait` would close it, and so end the process.
    let _stdin = last.stdin.take();
    assert!(last.wait().expect("it ends").success(), "what is left is saved");

    // The source, a line for each save.
    let (mut newest, mut names, mut twice) = (BTreeMap::<u64, u64>::new(), HashMap::new(), 0);
    for line in lines(&place.join("source")) {
        let [name, key, value] = &line[..] else { panic!("{line:?}") };
        let (key, value) = (key.parse::<u64>().unwrap(), value.parse::<u64>().unwrap());
        if let Some(known) = names.insert(name.clone(), (key, value)) {
            assert_eq!(known, (key, value), "one name for two writes");
            twice += 1;
            // The same write again, and nothing in between: a source that knows names would have left it out.
            assert_eq!(newest.get(&key), Some(&value), "key {key}: an older write again");
            continue;
        }
        let before = newest.insert(key, value);
        assert!(before.is_none_or(|before| before < value), "key {key}: {value} after {before:?}");
    }
    let mut acknowledged = BTreeMap::<u64, u64>::new();
    let told = lines(&told);
    for line in &told {
        let [key, value] = &line[..] else { panic!("{line:?}") };
        acknowledged.insert(key.parse().unwrap(), value.parse().unwrap());
    }
    for (key, value) in &acknowledged {
        assert!(
            newest.get(key) >= Some(value),
            "key {key}: {value} was acknowledged, the source has {:?}",
            newest.get(key)
        );
    }
    println!(
        "{kills} kills: {} acknowledged, {} saved, {twice} of these twice with one name, 0 lost, 0 out of order",
        told.len(),
        names.len() + twice
    );
    assert!(told.len() as u64 > 16 * kills && acknowledged.len() as u64 > 8 * kills, "there was no load");
}
