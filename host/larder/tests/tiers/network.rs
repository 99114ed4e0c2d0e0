//! What is around the processes of a simulation: luck, death, and a network that loses, delays, and does things when nobody
//! waits any more. All that is random comes from one seed.

#![allow(dead_code)] // Each test uses a part.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use larder::tiered::{BoxFuture, FarCopy, Looked, MemoryTier, Put, Scope, Tier, TierError, Token};
use tokio::sync::watch;
use tokio::time::sleep;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Whether a process lives. To the world, one that is dead is one whose calls come to nothing: whatever it does in memory is
/// nothing to anybody.
#[derive(Clone, Debug)]
pub(crate) struct Alive(Arc<watch::Sender<bool>>);

impl Alive {
    pub(crate) fn new() -> Self {
        Alive(Arc::new(watch::Sender::new(true)))
    }

    pub(crate) fn kill(&self) {
        self.0.send_replace(false);
    }

    pub(crate) fn is(&self) -> bool {
        *self.0.borrow()
    }

    /// Goes on if it lives, and else never.
    pub(crate) async fn or_never(&self) {
        if !self.is() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when it dies.
    pub(crate) async fn dies(&self) {
        drop(self.0.subscribe().wait_for(|alive| !alive).await);
    }
}

/// SplitMix64, shared by all that is random in a run.
#[derive(Debug)]
pub(crate) struct Random(AtomicU64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(AtomicU64::new(seed.wrapping_mul(0xd134_2543_de82_ef95)))
    }

    pub(crate) fn below(&self, n: u64) -> u64 {
        let z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(crate) async fn while_passes(&self, most: u64) {
        sleep(ms(self.below(most + 1))).await;
    }
}

/// The seeds of a test: `LARDER_SEED` alone, or the first `LARDER_SEEDS`, or 500.
pub(crate) fn seeds() -> Range<u64> {
    let number_of = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
    };
    match number_of("LARDER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_of("LARDER_SEEDS").unwrap_or(500),
    }
}

/// What becomes of a call.
pub(crate) enum Luck {
    Fine,
    /// It is not done.
    Lost,
    /// It is done, and nobody hears of it.
    Unheard,
    /// It is done much later, and nobody hears of it.
    Late,
}

impl Random {
    pub(crate) fn luck(&self) -> Luck {
        match self.below(60) {
            0 => Luck::Lost,
            1 => Luck::Unheard,
            2 => Luck::Late,
            _ => Luck::Fine,
        }
    }
}

/// The shared tier behind a bad network.
pub(crate) struct Network {
    pub(crate) tier: Arc<MemoryTier>,
    pub(crate) random: Arc<Random>,
    /// Whose connection it is.
    pub(crate) alive: Alive,
    /// Nothing comes through.
    pub(crate) is_cut: Arc<AtomicBool>,
    pub(crate) fences: bool,
}

impl Network {
    fn call<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce(Arc<MemoryTier>) -> BoxFuture<'static, Result<T, TierError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, TierError>> {
        Box::pin(async move {
            self.alive.or_never().await;
            self.random.while_passes(3).await;
            let cut_off = || TierError::Unavailable("cut off".into());
            if self.is_cut.load(SeqCst) {
                return Err(cut_off());
            }
            let landing = call(self.tier.clone());
            match self.random.luck() {
                Luck::Fine => {
                    let answer = landing.await;
                    self.random.while_passes(3).await;
                    self.alive.or_never().await;
                    answer
                }
                Luck::Lost => Err(cut_off()),
                Luck::Unheard => {
                    landing.await.ok();
                    Err(cut_off())
                }
                Luck::Late => Err(TierError::TimedOut),
            }
        })
    }

    /// As `call`, for what changes something: what is late is done.
    fn change<'a, T: Send + 'static>(
        &'a self,
        call: impl Fn(Arc<MemoryTier>) -> BoxFuture<'static, Result<T, TierError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, TierError>> {
        if self.alive.is() && !self.is_cut.load(SeqCst) && self.random.below(40) == 0 {
            let late = call(self.tier.clone());
            let after = ms(self.random.below(60));
            tokio::spawn(async move {
                sleep(after).await;
                late.await.ok();
            });
            return Box::pin(async { Err(TierError::TimedOut) });
        }
        self.call(call)
    }
}

impl Tier for Network {
    fn summary(&self) -> String {
        "a bad network".into()
    }
    fn is_shared(&self) -> bool {
        self.tier.is_shared()
    }
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        let (key, random) = (key.to_string(), self.random.clone());
        self.call(move |tier| {
            Box::pin(async move {
                let looked = tier.get(&key).await?;
                if random.below(2) == 0 {
                    return Ok(looked);
                }
                // A fresh copy without a token; or else a token that is younger than the look.
                if looked.copy.as_ref().is_some_and(|copy| copy.fresh_ms > 0) {
                    return Ok(Looked { token: None, ..looked });
                }
                random.while_passes(3).await;
                Ok(Looked { token: Some(tier.token(&key).await?), ..looked })
            })
        })
    }
    fn token<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        let key = key.to_string();
        self.call(move |tier| Box::pin(async move { tier.token(&key).await }))
    }
    fn put<'a>(
        &'a self,
        key: &'a str,
        copy: FarCopy,
        token: Token,
        write: bool,
    ) -> BoxFuture<'a, Result<Put, TierError>> {
        self.change(move |tier| {
            let (key, copy, fences) = (key.to_string(), copy.clone(), self.fences);
            Box::pin(async move {
                let token = if fences { token } else { tier.token(&key).await? };
                tier.put(&key, copy, token, write).await
            })
        })
    }
    fn invalidate<'a>(&'a self, scope: &'a Scope, soft: bool) -> BoxFuture<'a, Result<(), TierError>> {
        self.change(move |tier| {
            let scope = scope.clone();
            Box::pin(async move { tier.invalidate(&scope, soft).await })
        })
    }
    fn leases(&self) -> bool {
        true
    }
    fn lease<'a>(&'a self, key: &'a str, holder: u64, time: Duration) -> BoxFuture<'a, Result<bool, TierError>> {
        let key = key.to_string();
        self.call(move |tier| Box::pin(async move { tier.lease(&key, holder, time).await }))
    }
    fn release<'a>(&'a self, key: &'a str, holder: u64) -> BoxFuture<'a, Result<(), TierError>> {
        let key = key.to_string();
        self.call(move |tier| Box::pin(async move { tier.release(&key, holder).await }))
    }
}
