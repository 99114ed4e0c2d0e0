//! What the tests put around a cache: a database, a far tier that fails, processes.

#![allow(dead_code)] // Each test uses a part.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use larder::tiered::{
    BoxFuture, Codec, FarCopy, Loaded, LocalBus, Looked, MemoryTier, Put, Save, Scope, Source, SourceError, Tier,
    TierError, Tiered, TieredBuilder, Token,
};
use tokio::time::sleep;

pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A database of numbers: every key below a million has 1 until something is written. It reads when it is asked, and
/// answers later.
#[derive(Debug)]
pub(crate) struct Database {
    values: Mutex<HashMap<u64, u64>>,
    takes_ms: AtomicU64,
    fails: AtomicBool,
    loads: AtomicU64,
    saves: AtomicU64,
}

impl Database {
    pub(crate) fn new(takes: Duration) -> Arc<Self> {
        Arc::new(Database {
            values: Mutex::default(),
            takes_ms: AtomicU64::new(takes.as_millis() as u64),
            fails: AtomicBool::new(false),
            loads: AtomicU64::new(0),
            saves: AtomicU64::new(0),
        })
    }

    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(SeqCst)
    }

    pub(crate) fn saves(&self) -> u64 {
        self.saves.load(SeqCst)
    }

    pub(crate) fn fail(&self, fails: bool) {
        self.fails.store(fails, SeqCst);
    }

    pub(crate) fn slow(&self, takes: Duration) {
        self.takes_ms.store(takes.as_millis() as u64, SeqCst);
    }

    pub(crate) fn write(&self, key: u64, value: u64) {
        self.values.lock().unwrap().insert(key, value);
    }

    pub(crate) fn value(&self, key: u64) -> u64 {
        self.values.lock().unwrap().get(&key).copied().unwrap_or(1)
    }

    async fn takes(&self) -> io::Result<()> {
        sleep(ms(self.takes_ms.load(SeqCst))).await;
        if self.fails.load(SeqCst) { Err(io::Error::other("the database is down")) } else { Ok(()) }
    }

    pub(crate) async fn read(&self, key: u64) -> io::Result<u64> {
        self.loads.fetch_add(1, SeqCst);
        let value = self.value(key);
        self.takes().await?;
        Ok(value)
    }
}

impl Source<u64, u64> for Database {
    fn saves(&self) -> bool {
        true
    }

    fn load<'a>(&'a self, key: &'a u64, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<u64>, SourceError>> {
        Box::pin(async move {
            let value = self.read(*key).await?;
            Ok(if *key < 1_000_000 { Loaded::value(value) } else { Loaded::absent() })
        })
    }

    fn save<'a>(&'a self, save: Save<'a, u64, u64>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.saves.fetch_add(1, SeqCst);
            self.takes().await?;
            self.write(*save.key, save.value.copied().unwrap_or(0));
            Ok(())
        })
    }
}

/// A tier that fails when told to.
#[derive(Debug)]
pub(crate) struct FlakyTier {
    tier: MemoryTier,
    fails: AtomicBool,
    calls: AtomicU64,
    puts: AtomicU64,
}

impl FlakyTier {
    pub(crate) fn new(entries: u64) -> Self {
        let tier = MemoryTier::new(entries).unwrap();
        FlakyTier { tier, fails: AtomicBool::new(false), calls: AtomicU64::new(0), puts: AtomicU64::new(0) }
    }

    pub(crate) fn fail(&self, fails: bool) {
        self.fails.store(fails, SeqCst);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(SeqCst)
    }

    /// How often it was given a value.
    pub(crate) fn puts(&self) -> u64 {
        self.puts.load(SeqCst)
    }

    fn check(&self) -> Result<(), TierError> {
        self.calls.fetch_add(1, SeqCst);
        if self.fails.load(SeqCst) { Err(TierError::Unavailable("cut off".into())) } else { Ok(()) }
    }
}

impl Tier for FlakyTier {
    fn summary(&self) -> String {
        "a tier that fails".into()
    }
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Box::pin(async move {
            self.check()?;
            let looked = self.tier.get(key).await?;
            // As a tier may: nobody asks for the token of what is fresh.
            let is_fresh = looked.copy.as_ref().is_some_and(|copy| copy.fresh_ms > 0);
            Ok(Looked { token: looked.token.filter(|_| !is_fresh), ..looked })
        })
    }
    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Box::pin(async move {
            self.check()?;
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
        Box::pin(async move {
            self.check()?;
            self.puts.fetch_add(1, SeqCst);
            self.tier.put(key, copy, token, write).await
        })
    }
    fn renew<'a>(&'a self, key: &'a str, copy: FarCopy, token: Token) -> BoxFuture<'a, Result<Option<Put>, TierError>> {
        Box::pin(async move {
            self.check()?;
            self.tier.renew(key, copy, token).await
        })
    }
    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Box::pin(async move {
            self.check()?;
            self.tier.invalidate(scope, soft).await
        })
    }
}

/// Numbers as bytes.
pub(crate) fn numbers() -> Codec<u64> {
    Codec::new(|value: &u64| value.to_le_bytes().to_vec(), |bytes| bytes.try_into().map(u64::from_le_bytes))
}

/// A process: a cache with memory of its own over a shared tier and a bus.
pub(crate) struct Process;

impl Process {
    pub(crate) fn over(database: &Arc<Database>, far: Arc<dyn Tier>, bus: &Arc<LocalBus>) -> TieredBuilder<u64, u64> {
        Tiered::builder()
            .keyspace("test")
            .max_capacity(1_000)
            .far(far)
            .codec(numbers())
            .source(database.clone())
            .bus(bus.clone())
            .seed(1)
            .rule("ttl-ms", ms(1_000))
    }
}
