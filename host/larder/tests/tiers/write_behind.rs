//! Write-behind over a journal in a file: what is acknowledged, when the source has it, and what happens where something
//! fails. Time is paused; the disk is real.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::tiered::{
    BoxFuture, Bytes, Change, Codec, Contents, Failure, FarCopy, Journal, JournalBuilder, JournalError, Loaded,
    LocalBus, Looked, MemoryTier, Put, Save, Scope, Source, SourceError, Store, StoreError, Tier, TierError, Tiered,
    TieredBuildError, TieredBuilder, Token, WriteId, Written,
};
use tokio::time::sleep;

use crate::world::{FlakyTier, numbers};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a source was asked to do.
#[derive(Debug, Default)]
struct Database {
    values: Mutex<HashMap<u64, u64>>,
    /// Every save that was carried out, in order.
    saved: Mutex<Vec<(WriteId, u64, Option<u64>)>>,
    calls: AtomicUsize,
    down: AtomicBool,
    rejects: AtomicBool,
    many: AtomicBool,
    takes_ms: AtomicU64,
    /// The next save takes so much longer.
    late_ms: AtomicU64,
}

impl Database {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn saved(&self) -> Vec<(u64, Option<u64>)> {
        self.saved.lock().unwrap().iter().map(|(_, key, value)| (*key, *value)).collect()
    }

    fn ids(&self) -> Vec<WriteId> {
        self.saved.lock().unwrap().iter().map(|(id, ..)| *id).collect()
    }

    fn carry_out(&self, save: &Save<'_, u64, u64>) -> Result<(), SourceError> {
        if self.rejects.load(SeqCst) {
            return Err(SourceError::rejected("no such customer"));
        }
        let mut values = self.values.lock().unwrap();
        match save.value {
            Some(value) => values.insert(*save.key, *value),
            None => values.remove(save.key),
        };
        self.saved.lock().unwrap().push((save.id, *save.key, save.value.copied()));
        Ok(())
    }

    async fn takes(&self) -> Result<(), SourceError> {
        self.calls.fetch_add(1, SeqCst);
        sleep(ms(self.takes_ms.load(SeqCst) + self.late_ms.swap(0, SeqCst))).await;
        if self.down.load(SeqCst) { Err(io::Error::other("down").into()) } else { Ok(()) }
    }
}

impl Source<u64, u64> for Database {
    fn saves(&self) -> bool {
        true
    }
    fn load<'a>(&'a self, key: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        Box::pin(async move { Ok(self.values.lock().unwrap().get(key).copied().into()) })
    }
    fn save<'a>(&'a self, save: Save<'a, u64, u64>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.takes().await?;
            self.carry_out(&save)
        })
    }
    fn saves_many(&self) -> bool {
        self.many.load(SeqCst)
    }
    fn save_many<'a>(&'a self, saves: &'a [Save<'a, u64, u64>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>> {
        Box::pin(async move {
            match self.takes().await {
                Ok(()) => saves.iter().map(|save| self.carry_out(save)).collect(),
                Err(error) => saves.iter().map(|_| Err(error.clone())).collect(),
            }
        })
    }
}

/// One life of a process: all of it is gone at its end, but what is on disk.
fn life<T>(process: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(process)
}

fn journal() -> JournalBuilder {
    Journal::builder().flush_after(ms(100))
}

fn cache(journal: &Journal, database: &Arc<Database>) -> TieredBuilder<u64, u64> {
    Tiered::builder()
        .keyspace("orders")
        .max_capacity(100)
        .source(database.clone())
        .codec(Codec::new(|value: &u64| value.to_le_bytes().to_vec(), |bytes| bytes.try_into().map(u64::from_le_bytes)))
        .journal(journal.clone())
        .save_timeout(ms(1_000))
        .seed(1)
        .rule("write", "write-behind")
        .rule("backoff-ms", 10)
}

async fn open(directory: &Path) -> Journal {
    journal().open(directory.join("orders.journal")).await.unwrap()
}

#[test]
fn a_write_is_acknowledged_before_the_source_has_it() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        database.takes_ms.store(20, SeqCst);
        let orders = cache(&journal, &database).build().unwrap();
        orders.insert(1, 10).await.unwrap();
        assert_eq!(database.saved(), [], "it is saved later");
        assert_eq!(journal.stats().pending, 1);
        assert_eq!(orders.get(&1).await.unwrap(), Some(10));
        // Without a copy, the journal says what the source will have.
        orders.invalidate(&1).await.unwrap();
        assert_eq!(orders.get(&1).await.unwrap(), Some(10));
        assert_eq!(orders.stats().journal_loads, 1);
        sleep(ms(200)).await;
        assert_eq!(database.saved(), [(1, Some(10))]);
        let stats = orders.stats();
        assert_eq!((stats.logged, stats.flushed, stats.pending, stats.wrong_answers), (1, 1, 0, 0));
        assert_eq!(journal.stats().pending, 0);
    });
}

#[test]
fn the_newest_write_of_a_key_is_saved_and_the_order_kept() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        let orders = cache(&journal, &database).build().unwrap();
        for value in 0..100 {
            orders.insert(1, value).await.unwrap();
        }
        orders.remove(&2).await.unwrap();
        sleep(ms(200)).await;
        assert_eq!(database.saved(), [(1, Some(99)), (2, None)]);
        assert_eq!(journal.stats().coalesced, 99);
        // What comes while a save is under way is saved after it.
        database.takes_ms.store(50, SeqCst);
        orders.insert(1, 200).await.unwrap();
        sleep(ms(120)).await;
        orders.insert(1, 201).await.unwrap();
        orders.insert(1, 202).await.unwrap();
        assert_eq!(orders.get(&1).await.unwrap(), Some(202));
        sleep(ms(400)).await;
        assert_eq!(database.saved()[2..], [(1, Some(200)), (1, Some(202))]);
        let mut ids = database.ids();
        ids.dedup();
        assert_eq!(ids.len(), 4, "each write has a name of its own");
        assert!(ids.is_sorted_by(|a, b| a.0 >> 64 == b.0 >> 64), "all of this journal");
        assert!(ids[0] < ids[2] && ids[2] < ids[3], "later names are greater");
    });
}

#[test]
fn a_removal_is_a_write_too() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        database.values.lock().unwrap().insert(1, 10);
        let orders = cache(&journal, &database).build().unwrap();
        assert_eq!(orders.get(&1).await.unwrap(), Some(10));
        orders.remove(&1).await.unwrap();
        assert_eq!(orders.get(&1).await.unwrap(), None, "though the source has it still");
        assert_eq!(database.values.lock().unwrap().get(&1), Some(&10));
        sleep(ms(200)).await;
        assert_eq!(database.saved(), [(1, None)]);
        assert_eq!(orders.get(&1).await.unwrap(), None);
    });
}

#[test]
fn what_was_acknowledged_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::new();
    database.down.store(true, SeqCst);
    let names = life(async {
        let journal = open(directory.path()).await;
        let orders = cache(&journal, &database).build().unwrap();
        for key in 0..3 {
            let value = Loaded::value(key + 10).tag("all").fresh_for(ms(60_000)).validator("v1");
            orders.insert(key, Written::with(value)).await.unwrap();
        }
        sleep(ms(5_000)).await;
        assert!(database.calls.load(SeqCst) > 3, "it has been tried");
        journal.pending().iter().map(|write| write.id).collect::<Vec<_>>()
    });
    assert_eq!(names.len(), 3);
    life(async {
        let journal = open(directory.path()).await;
        assert_eq!(journal.stats().pending, 3);
        let orphans = journal.stats().orphans;
        assert!(orphans.len() == 1 && *orphans[0] == *"orders", "nobody has the keyspace open yet: {orphans:?}");
        let orders = cache(&journal, &database).far(MemoryTier::new(10).unwrap()).build().unwrap();
        assert_eq!(orders.get(&2).await.unwrap(), Some(12));
        database.down.store(false, SeqCst);
        orders.insert(9, 9).await.unwrap();
        sleep(ms(70_000)).await;
        let mut saved = database.saved();
        saved.sort_unstable();
        assert_eq!(saved, [(0, Some(10)), (1, Some(11)), (2, Some(12)), (9, Some(9))]);
        let mut ids = database.ids();
        ids.sort_unstable();
        assert_eq!(ids[..3], names, "they have the names that they had, and a new one is greater");
        // Terms and tags came through: the flush kept a copy in the shared tier.
        orders.invalidate_tag("all").await.unwrap();
        assert_eq!(orders.stats().pending, 0);
    });
    life(async { assert_eq!(open(directory.path()).await.stats().pending, 0) });
}

#[test]
fn what_the_source_will_never_take_is_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::new();
    database.rejects.store(true, SeqCst);
    database.values.lock().unwrap().insert(1, 5);
    let letter = life(async {
        let journal = open(directory.path()).await;
        let orders = cache(&journal, &database).build().unwrap();
        orders.insert(1, 10).await.unwrap();
        orders.insert(2, 20).await.unwrap();
        sleep(ms(300)).await;
        assert_eq!(orders.stats().buried, 2);
        assert_eq!(orders.get(&1).await.unwrap(), Some(5), "copies of it are gone");
        let letters = journal.dead_letters();
        assert_eq!(letters.iter().map(|letter| &*letter.key).collect::<Vec<_>>(), ["1", "2"]);
        assert!(letters[0].reason.as_ref().unwrap().contains("no such customer"), "{letters:?}");
        letters[0].id
    });
    life(async {
        let journal = open(directory.path()).await;
        assert_eq!(journal.dead_letters().len(), 2, "they are kept");
        let orders = cache(&journal, &database).build().unwrap();
        assert_eq!(orders.get(&1).await.unwrap(), Some(5));
        // A newer write waits: the letter would come too late.
        orders.insert(2, 21).await.unwrap();
        let other = journal.dead_letters()[1].id;
        assert!(matches!(journal.retry(other).await, Err(JournalError::Superseded(_))));
        journal.discard(other).await.unwrap();
        assert!(matches!(journal.discard(other).await, Err(JournalError::NoSuchLetter(_))));
        database.rejects.store(false, SeqCst);
        journal.retry(letter).await.unwrap();
        sleep(ms(300)).await;
        assert_eq!(orders.get(&1).await.unwrap(), Some(10), "what was cached meanwhile is not served on");
        assert_eq!(database.ids()[0], letter);
        assert_eq!(database.saved(), [(1, Some(10)), (2, Some(21))]);
        assert_eq!((journal.dead_letters().len(), journal.stats().pending, journal.stats().bytes), (0, 0, 0));
    });
    life(async { assert_eq!(open(directory.path()).await.dead_letters().len(), 0) });
}

#[test]
fn a_full_journal_holds_writers_up_and_then_turns_them_away() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let database = Database::new();
        database.down.store(true, SeqCst);
        let path = directory.path().join("orders.journal");
        let journal = Journal::builder().max_entries(4).flush_after(ms(100)).open(&path).await.unwrap();
        let orders = cache(&journal, &database).rule("log-wait-ms", 500).build().unwrap();
        for key in 0..4 {
            orders.insert(key, key).await.unwrap();
        }
        let began = tokio::time::Instant::now();
        let error = orders.insert(4, 4).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Overloaded, "{error}");
        assert!(error.to_string().contains("full"), "{error}");
        assert_eq!(began.elapsed().as_millis(), 500);
        // The cache goes on.
        assert_eq!(orders.get(&3).await.unwrap(), Some(3));
        // One waits, the source comes back, and it goes through.
        let waiting = {
            let orders = orders.clone();
            tokio::spawn(async move { orders.insert(5, 5).await })
        };
        sleep(ms(10)).await;
        assert_eq!(journal.stats().waiting, 1);
        database.down.store(false, SeqCst);
        orders.set_rules([("write", larder::Value::from("write-behind")), ("log-wait-ms", 20_000.into())]).unwrap();
        let late = {
            let orders = orders.clone();
            tokio::spawn(async move { orders.insert(6, 6).await })
        };
        drop(waiting.await.unwrap());
        late.await.unwrap().unwrap();
        sleep(ms(60_000)).await;
        assert_eq!((journal.stats().pending, journal.stats().waiting), (0, 0));
        assert!(database.saved().contains(&(6, Some(6))));
        assert!(!database.saved().contains(&(4, Some(4))), "what was turned away is nowhere");
        // What could never fit is said at once.
        let small = Journal::builder().max_bytes(200).open(directory.path().join("small")).await.unwrap();
        let texts = Tiered::<u64, String>::builder()
            .max_capacity(10)
            .source(
                larder::tiered::FromFn::new(|_: u64| async { Ok::<_, io::Error>(None::<String>) })
                    .saving(|_, _| async { Ok::<_, io::Error>(()) }),
            )
            .codec(Codec::raw())
            .journal(small)
            .rule("write", "write-behind")
            .build()
            .unwrap();
        assert_eq!(texts.insert(1, "x".repeat(1_000)).await.unwrap_err().failure(), Failure::Rejected);
    });
}

#[test]
fn a_batch_is_one_call_where_the_source_can_do_that() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let database = Database::new();
        database.many.store(true, SeqCst);
        let path = directory.path().join("orders.journal");
        let journal = Journal::builder().flush_batch(10).flush_after(ms(10_000)).open(&path).await.unwrap();
        let orders = cache(&journal, &database).build().unwrap();
        let insert = |key| {
            let orders = orders.clone();
            async move { orders.insert(key, key).await.unwrap() }
        };
        let all: Vec<_> = (0..25).map(|key| tokio::spawn(insert(key))).collect();
        for one in all {
            one.await.unwrap();
        }
        sleep(ms(50)).await;
        let (calls, saved) = (database.calls.load(SeqCst), database.saved().len());
        assert!(saved >= 20 && calls <= 4, "whole batches are not kept waiting: {saved} in {calls} calls");
        sleep(ms(11_000)).await;
        assert_eq!(database.saved().len(), 25);
        assert!(database.calls.load(SeqCst) <= 5);
        // A failure of the call is one of each, and each is tried again by itself.
        database.down.store(true, SeqCst);
        for key in 0..10 {
            orders.insert(key, key + 100).await.unwrap();
        }
        sleep(ms(5)).await;
        database.down.store(false, SeqCst);
        sleep(ms(100_000)).await;
        assert_eq!((database.saved().len(), journal.stats().pending), (35, 0));
    });
}

#[test]
fn a_save_that_lands_late_is_not_overtaken() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        let orders = cache(&journal, &database).build().unwrap();
        // Longer than the save may take: it is given up, and lands all the same.
        database.late_ms.store(5_000, SeqCst);
        orders.insert(1, 10).await.unwrap();
        sleep(ms(500)).await;
        orders.insert(1, 11).await.unwrap();
        sleep(ms(30_000)).await;
        let saved = database.saved();
        assert_eq!((saved[0], *saved.last().unwrap()), ((1, Some(10)), (1, Some(11))), "{saved:?}");
        assert_eq!(journal.stats().pending, 0);
    });
}

#[test]
fn other_writes_wait_for_what_is_in_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        let orders = cache(&journal, &database).build().unwrap();
        orders.insert(1, 10).await.unwrap();
        orders.set_rules([("write", "write-through")]).unwrap();
        orders.insert(1, 11).await.unwrap();
        assert_eq!(database.saved(), [(1, Some(10)), (1, Some(11))], "the logged one at once, and first");
        assert_eq!(orders.get(&1).await.unwrap(), Some(11));
        // Where that does not go, nothing is tried.
        orders.set_rules([("write", "write-behind")]).unwrap();
        database.down.store(true, SeqCst);
        orders.insert(1, 12).await.unwrap();
        orders.set_rules([("write", "write-through")]).unwrap();
        let error = orders.insert(1, 13).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Overloaded, "{error}");
        assert_eq!(orders.get(&1).await.unwrap(), Some(12));
        database.down.store(false, SeqCst);
        assert_eq!(orders.shutdown(ms(60_000)).await, 0);
        assert_eq!(*database.saved().last().unwrap(), (1, Some(12)));
    });
}

/// A shared tier that is out of reach when its token is first asked for, and slow the second time.
struct BadStart {
    tier: MemoryTier,
    tokens: AtomicUsize,
    put: Mutex<Vec<Option<Bytes>>>,
}

impl Tier for BadStart {
    fn summary(&self) -> String {
        "a tier with a bad start".into()
    }
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        self.tier.get(key)
    }
    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(async move {
            match self.tokens.fetch_add(1, SeqCst) {
                0 => return Err(TierError::Unavailable("not yet".into())),
                1 => sleep(ms(20)).await,
                _ => {}
            }
            self.tier.token(key).await
        })
    }
    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        self.put.lock().unwrap().push(copy.value.clone());
        self.tier.put(key, copy, token, write)
    }
    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        self.tier.invalidate(scope, soft)
    }
}

#[test]
fn what_could_not_fence_a_tier_replaces_nothing_there() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        let far = Arc::new(BadStart {
            tier: MemoryTier::new(10).unwrap(),
            tokens: AtomicUsize::default(),
            put: Mutex::default(),
        });
        let orders = cache(&journal, &database).far(far.clone()).build().unwrap();
        // The first is logged without a token, and the second is logged, and kept in the tier, before the first is.
        let first = tokio::spawn({
            let orders = orders.clone();
            async move { orders.insert(1, 10).await }
        });
        while journal.stats().pending == 0 {
            sleep(ms(1)).await;
        }
        sleep(ms(2)).await;
        orders.insert(1, 20).await.unwrap();
        first.await.unwrap().unwrap();
        assert_eq!(orders.shutdown(ms(60_000)).await, 0);
        let put = far.put.lock().unwrap();
        let newer: Bytes = 20u64.to_le_bytes().to_vec().into();
        assert!(put.iter().all(|value| value.as_ref() == Some(&newer)), "{put:?}");
    });
}

/// Another process that misses loads what the source has still, and puts that into the shared tier.
#[test]
fn what_another_process_put_into_a_tier_is_not_read_over_what_is_logged() {
    use crate::hostile::{Guest, TRAP};
    type Read = for<'a> fn(&'a Tiered<u64, u64>) -> BoxFuture<'a, Vec<Option<u64>>>;
    let reads: [(&str, Read); 5] = [
        ("get", |orders| Box::pin(async { vec![orders.get(&1).await.unwrap(), orders.get(&2).await.unwrap()] })),
        ("get_many", |orders| {
            Box::pin(async { orders.get_many(&[1, 2]).await.into_iter().map(Result::unwrap).collect() })
        }),
        ("a refresh", |orders| {
            Box::pin(async {
                orders.keep_hot(1);
                sleep(ms(100)).await;
                vec![orders.get(&1).await.unwrap(), orders.get(&2).await.unwrap()]
            })
        }),
        ("a fleet's read", |orders| {
            Box::pin(async {
                orders.set_rules([("write", "write-behind"), ("flight", "fleet")]).unwrap();
                vec![orders.get(&1).await.unwrap(), orders.get(&2).await.unwrap()]
            })
        }),
        ("the fallback", |orders| {
            Box::pin(async {
                orders.set_rules([] as [(&str, larder::Value); 0]).unwrap();
                let module = larder::Patterns::bytes(Guest::stepping(TRAP).build());
                orders.swap_patterns(module.load().unwrap()).unwrap();
                vec![orders.get(&1).await.unwrap(), orders.get(&2).await.unwrap()]
            })
        }),
    ];
    for (what, read) in reads {
        let directory = tempfile::tempdir().unwrap();
        life(async {
            let database = Database::new();
            database.values.lock().unwrap().extend([(1, 5), (2, 20)]);
            let path = directory.path().join("orders.journal");
            let journal = Journal::builder().flush_after(ms(60_000)).open(&path).await.unwrap();
            let (far, bus) = (Arc::new(MemoryTier::new(10).unwrap()), Arc::new(LocalBus::new()));
            let orders = cache(&journal, &database).far(far.clone()).bus(bus.clone()).build().unwrap();
            let other = Tiered::builder().keyspace("orders").max_capacity(100).source(database.clone());
            let other = other.far(far.clone()).bus(bus).codec(numbers()).build().unwrap();
            orders.insert(1, 10).await.unwrap();
            other.invalidate(&1).await.unwrap();
            for (key, value) in [(1, 5), (2, 20)] {
                assert_eq!(other.get(&key).await.unwrap(), Some(value), "what the source has");
            }
            assert!(far.get("orders:1").await.unwrap().copy.is_some());
            assert_eq!(read(&orders).await, [Some(10), Some(20)], "{what}");
            assert_eq!(orders.stats().far_hits, 1, "{what}: what is not logged is read there as ever");
            assert_eq!(orders.get(&1).await.unwrap(), Some(10), "{what}: nor is it kept nearer");
            // Once it is saved, the tier has it.
            assert_eq!(orders.shutdown(ms(60_000)).await, 0);
            assert_eq!(other.get(&1).await.unwrap(), Some(10));
        });
    }
}

/// An invalidation while the source is saving fences what the flush keeps, and what another process loads then is old.
#[test]
fn a_flush_that_is_fenced_leaves_nothing_old_in_a_tier() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (journal, database) = (open(directory.path()).await, Database::new());
        database.values.lock().unwrap().insert(1, 5);
        database.takes_ms.store(200, SeqCst);
        let (far, bus) = (Arc::new(MemoryTier::new(10).unwrap()), Arc::new(LocalBus::new()));
        let orders = cache(&journal, &database).far(far.clone()).bus(bus.clone()).build().unwrap();
        let other = Tiered::builder().keyspace("orders").max_capacity(100).source(database.clone());
        let other = other.far(far.clone()).bus(bus).codec(numbers()).build().unwrap();
        orders.insert(1, 10).await.unwrap();
        while database.calls.load(SeqCst) == 0 {
            sleep(ms(1)).await;
        }
        other.invalidate(&1).await.unwrap();
        assert_eq!(other.get(&1).await.unwrap(), Some(5), "it is not saved yet");
        assert_eq!(orders.shutdown(ms(60_000)).await, 0);
        assert_eq!(database.saved(), [(1, Some(10))]);
        for process in [&orders, &other] {
            assert_eq!(process.get(&1).await.unwrap(), Some(10));
        }
    });
}

/// It traps, says that what is logged is done, buries it, saves for ever, saves in tiers that are not there.
#[test]
fn a_module_cannot_lose_what_is_logged() {
    use crate::hostile::{Guest, TRAP};
    let [finish, bury, save, log] = [12, 9, 4, 5].map(|action| Guest::answering(action, ""));
    let elsewhere = Guest::answering(4, "(i32.store8 (i32.const 2064) (i32.const 128))");
    for guest in [Guest::stepping(TRAP), finish, bury, save, log, elsewhere] {
        let directory = tempfile::tempdir().unwrap();
        life(async {
            let (journal, database) = (open(directory.path()).await, Database::new());
            let orders = cache(&journal, &database).build().unwrap();
            orders.insert(1, 10).await.unwrap();
            orders.remove(&2).await.unwrap();
            orders.set_rules([] as [(&str, larder::Value); 0]).unwrap();
            orders.swap_patterns(larder::Patterns::bytes(guest.build()).load().unwrap()).unwrap();
            sleep(ms(60_000)).await;
            assert_eq!(database.saved(), [(1, Some(10)), (2, None)]);
            let stats = orders.stats();
            assert_eq!((stats.pending, stats.flushed, stats.buried), (0, 2, 0), "{stats:?}");
            assert!(stats.fallbacks >= 2, "{stats:?}");
        });
    }
}

#[test]
fn a_shutdown_saves_what_there_is() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::new();
    life(async {
        let journal = open(directory.path()).await;
        let orders = cache(&journal, &database).build().unwrap();
        for key in 0..50 {
            orders.insert(key, key).await.unwrap();
        }
        assert_eq!(orders.shutdown(ms(1_000)).await, 0);
        assert_eq!(database.saved().len(), 50);
        let error = orders.insert(1, 1).await.unwrap_err();
        assert_eq!(error.failure(), Failure::Overloaded, "it takes no more: {error}");
        assert_eq!(orders.get(&1).await.unwrap(), Some(1), "reads go on");
    });
    life(async {
        let journal = open(directory.path()).await;
        database.down.store(true, SeqCst);
        let orders = cache(&journal, &database).build().unwrap();
        orders.insert(1, 2).await.unwrap();
        assert_eq!(orders.shutdown(ms(1_000)).await, 1, "what is left is said, and stays");
    });
    life(async { assert_eq!(open(directory.path()).await.stats().pending, 1) });
}

#[test]
fn what_cannot_be_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let database = Database::new();
    let without_journal = || {
        Tiered::<u64, u64>::builder()
            .keyspace("orders")
            .max_capacity(10)
            .source(database.clone())
            .rule("write", "write-behind")
    };
    let error = without_journal().build().unwrap_err().to_string();
    assert!(error.contains("`orders`") && error.contains("write") && error.contains("journal"), "{error}");
    let journal = life(async {
        let journal = open(directory.path()).await;
        let error = without_journal().journal(journal.clone()).build().unwrap_err();
        assert!(matches!(error, TieredBuildError::NoCodec), "{error}");
        let _orders = cache(&journal, &database).build().unwrap();
        let error = cache(&journal, &database).build().unwrap_err().to_string();
        assert!(error.contains("`orders`") && error.contains("already"), "{error}");
        let again = Journal::builder().open(directory.path().join("orders.journal")).await;
        assert!(matches!(again, Err(JournalError::InUse(_))), "{again:?}");
        let opened = Journal::builder().open(directory.path()).await.map(|_| ());
        for no_file in [opened, Journal::look(directory.path()).await.map(|_| ())].map(Result::unwrap_err) {
            assert!(no_file.to_string().contains("it is a directory; name a file"), "{no_file}");
        }
        journal
    });
    assert!(matches!(cache(&journal, &database).build(), Err(TieredBuildError::NoRuntime)));
    // Under cache-aside the application would load what is not saved yet.
    let error = life(async { cache(&journal, &database).rule("read", "cache-aside").build().unwrap_err().to_string() });
    assert!(error.contains("cache-aside"), "{error}");
}

/// A store that fails, or does not end, until it is told otherwise.
#[derive(Clone, Default)]
struct Shaky {
    fails: Arc<AtomicBool>,
    hangs: Arc<AtomicBool>,
    /// The numbers that were ever to be put.
    put: Arc<Mutex<BTreeSet<u64>>>,
    /// Those of them that nobody has taken out.
    there: Arc<Mutex<BTreeSet<u64>>>,
}

impl Store for Shaky {
    fn summary(&self) -> String {
        "a shaky store".into()
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            while self.hangs.load(SeqCst) {
                sleep(ms(1)).await;
            }
            let (mut put, mut there) = (self.put.lock().unwrap(), self.there.lock().unwrap());
            let fails = self.fails.load(SeqCst);
            for change in changes {
                match change {
                    // Nobody knows whether what failed is there: this disk has it.
                    Change::Put(number, _) => drop((put.insert(number), there.insert(number))),
                    Change::Remove(number) if !fails => drop(there.remove(&number)),
                    Change::Remove(_) => {}
                }
            }
            if fails { Err(Arc::new(io::Error::other("no")) as StoreError) } else { Ok(()) }
        })
    }
}

#[test]
fn what_failed_commits_leave_is_bounded_and_goes() {
    life(async {
        let (store, database) = (Shaky::default(), Database::new());
        let journal = journal().max_entries(10).open_on(store.clone(), Contents::default());
        let cache = cache(&journal, &database).build().unwrap();
        store.fails.store(true, SeqCst);
        for key in 0..100 {
            assert!(cache.insert(key, key).await.is_err());
        }
        let put = store.put.lock().unwrap().len();
        assert!((5..=20).contains(&put), "{put} for 10 that there may be");
        store.fails.store(false, SeqCst);
        cache.insert(7, 70).await.unwrap();
        assert_eq!(cache.shutdown(ms(10_000)).await, 0);
        assert_eq!(database.saved(), [(7, Some(70))]);
        assert!(store.there.lock().unwrap().is_empty());
    });
}

#[test]
fn a_shutdown_waits_for_what_is_being_logged() {
    life(async {
        let (store, database) = (Shaky::default(), Database::new());
        let journal = journal().flush_after(Duration::MAX).open_on(store.clone(), Contents::default());
        let cache = cache(&journal, &database).build().unwrap();
        store.hangs.store(true, SeqCst);
        let writing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.insert(1, 10).await }
        });
        sleep(ms(10)).await;
        assert_eq!(cache.shutdown(ms(10)).await, 1);
        store.hangs.store(false, SeqCst);
        assert_eq!(cache.shutdown(Duration::MAX).await, 0);
        writing.await.unwrap().unwrap();
        assert_eq!(database.saved(), [(1, Some(10))]);
    });
}

#[test]
fn what_a_tier_is_owed_outlives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    life(async {
        let (database, far) = (Database::new(), Arc::new(FlakyTier::new(100)));
        database.values.lock().unwrap().extend((1..=20).map(|key| (key, 10)));
        let neighbour = || {
            let builder = Tiered::<u64, u64>::builder().keyspace("orders").max_capacity(100).seed(2);
            builder.source(database.clone()).codec(numbers()).far(far.clone()).build().unwrap()
        };
        let old = neighbour();
        let open = || journal().max_entries(64).open(directory.path().join("orders.journal"));
        let file = open().await.unwrap();
        let orders = cache(&file, &database).far(far.clone()).build().unwrap();
        // Between log and flush, another process puts into the tier what the source has still.
        let (orders_of, old_of, far_of) = (&orders, &old, &far);
        let write = async |key, value| {
            orders_of.insert(key, value).await.unwrap();
            old_of.invalidate(&key).await.unwrap();
            assert_eq!(old_of.get(&key).await.unwrap(), Some(10));
        };
        let flush = async || {
            far_of.fail(true);
            sleep(ms(300)).await;
        };
        write(1, 11).await;
        flush().await;
        assert_eq!((database.saved().len(), file.stats().pending, file.stats().owed), (1, 0, 1));
        // One that is written again takes the place.
        orders.insert(1, 12).await.unwrap_err();
        assert_eq!((file.stats().pending, file.stats().owed), (1, 0));
        flush().await;
        assert_eq!((file.stats().pending, file.stats().owed), (0, 1));
        // More than a part of the journal: all of the keyspace.
        far.fail(false);
        sleep(ms(20_000)).await;
        assert_eq!((file.stats().owed, file.stats().bytes), (0, 0));
        for key in 2..=20 {
            write(key, 11).await;
        }
        flush().await;
        assert_eq!((file.stats().pending, file.stats().owed), (0, 19), "one batch");
        orders.insert(21, 11).await.unwrap_err();
        flush().await;
        assert_eq!((database.saved().len(), file.stats().pending, file.stats().owed), (22, 0, 1));
        // It dies, and so does the next one, before the tier is back.
        drop((orders, file));
        let file = open().await.unwrap();
        let orders = cache(&file, &database).far(far.clone()).build().unwrap();
        assert_eq!(orders.get(&2).await.unwrap(), Some(11));
        sleep(ms(300)).await;
        assert_eq!(file.stats().owed, 1);
        drop((orders, file));
        far.fail(false);
        let file = open().await.unwrap();
        let orders = cache(&file, &database).far(far.clone()).build().unwrap();
        assert_eq!(orders.get(&2).await.unwrap(), Some(11));
        sleep(ms(20_000)).await;
        assert_eq!((orders.stats().owed, file.stats().owed, file.stats().bytes), (0, 0, 0));
        let new = neighbour();
        for key in 1..=20 {
            assert_eq!(new.get(&key).await.unwrap(), Some(if key == 1 { 12 } else { 11 }), "of {key}");
        }
        assert_eq!(database.saved().len(), 22, "nothing is saved again");
    });
}
