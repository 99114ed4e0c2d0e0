//! What a tier promises, as a suite.
//!
//! ```
//! use std::sync::Arc;
//! use larder::tiered::MemoryTier;
//! use larder::tiered::testkit::TierSuite;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let tier = Arc::new(MemoryTier::new(10_000)?.max_value_bytes(100_000));
//! TierSuite::new(move || {
//!     let tier = tier.clone();
//!     async move { tier as Arc<_> }
//! })
//! .too_large(100_001)
//! .run()
//! .await;
//! # Ok(()) }
//! ```
//!
//! It panics at the first promise that is not kept, with its text. Names of keys are its own at each run, so it can be run on a
//! store that has other entries, and leaves them alone; but for a moment it invalidates all of them.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::tiered::{BoxFuture, FarCopy, Group, Looked, Put, Scope, Tier, Token};

type Connect = Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Tier>> + Send + Sync>;
type Scribble = Box<dyn Fn(String, Vec<u8>) -> BoxFuture<'static, ()> + Send + Sync>;

/// The suite of a [`Tier`].
#[must_use]
pub struct TierSuite {
    connect: Connect,
    scribble: Option<Scribble>,
    too_large: Option<usize>,
    rounds: u64,
    run: u64,
}

impl std::fmt::Debug for TierSuite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TierSuite").finish_non_exhaustive()
    }
}

const FRESH: u64 = 600_000;

fn copy(value: impl Into<Vec<u8>>) -> FarCopy {
    FarCopy {
        value: Some(value.into().into()),
        validator: None,
        tags: [].into(),
        age_ms: 0,
        fresh_ms: FRESH,
        stale_ms: 0,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 0,
    }
}

fn tagged(value: impl Into<Vec<u8>>, tags: &[&str]) -> FarCopy {
    FarCopy { tags: tags.iter().map(|tag| Arc::from(*tag)).collect(), ..copy(value) }
}

fn value_of(looked: &Looked) -> Option<&[u8]> {
    looked.copy.as_ref()?.value.as_deref()
}

pub(super) fn keys_of(keys: &[&str]) -> Scope {
    Scope::Keys(keys.iter().map(|key| Arc::from(*key)).collect())
}

pub(super) fn tag(tag: &str) -> Scope {
    Scope::Group(Group::Tag(tag.into()))
}

pub(super) fn prefix(prefix: &str) -> Scope {
    Scope::Group(Group::Prefix(prefix.into()))
}

/// Calls that may not fail, with their names in the message if they do.
struct Sure(Arc<dyn Tier>);

impl Sure {
    async fn get(&self, key: &str) -> Looked {
        self.0.get(key).await.unwrap_or_else(|error| panic!("`get` of {key:?} failed: {error}"))
    }

    async fn value(&self, key: &str) -> Option<Vec<u8>> {
        value_of(&self.get(key).await).map(<[u8]>::to_vec)
    }

    async fn token(&self, key: &str) -> Token {
        self.0.token(key).await.unwrap_or_else(|error| panic!("`token` of {key:?} failed: {error}"))
    }

    /// The token that came with a look, or one that is taken now.
    async fn token_of(&self, key: &str, looked: &Looked) -> Token {
        let has_fresh = looked.copy.as_ref().is_some_and(|copy| copy.fresh_ms > 0);
        assert!(looked.token.is_some() || has_fresh, "without a fresh copy there is a token: {looked:?}");
        match looked.token {
            Some(token) => token,
            None => self.token(key).await,
        }
    }

    async fn fill(&self, key: &str, copy: FarCopy, token: Token) -> Put {
        self.0.put(key, copy, token, false).await.unwrap_or_else(|error| panic!("`put` of {key:?} failed: {error}"))
    }

    async fn write(&self, key: &str, copy: FarCopy, token: Token) -> Put {
        self.0.put(key, copy, token, true).await.unwrap_or_else(|error| panic!("`put` of {key:?} failed: {error}"))
    }

    /// Puts whatever is there.
    async fn set(&self, key: &str, copy: FarCopy) {
        // Keys may share a fence, and others may be at work.
        for _ in 0..100 {
            let token = self.token(key).await;
            if self.fill(key, copy.clone(), token).await == Put::Kept {
                return;
            }
        }
        panic!("`put` of {key:?} by a token that was just taken is fenced, a hundred times in a row");
    }

    async fn invalidate(&self, scope: Scope, soft: bool) {
        let done = self.0.invalidate(&scope, soft).await;
        done.unwrap_or_else(|error| panic!("`invalidate` of {scope:?} failed: {error}"));
    }
}

impl TierSuite {
    /// The suite of what `connect` connects to: the same store each time, as another process would.
    pub fn new<F: Future<Output = Arc<dyn Tier>> + Send + 'static>(
        connect: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        TierSuite {
            connect: Box::new(move || Box::pin(connect())),
            scribble: None,
            too_large: None,
            rounds: 300,
            run: RandomState::new().hash_one("run"),
        }
    }

    /// How to write these bytes where the tier has what belongs to this key, behind its back: tries what it does about damage.
    pub fn scribble<F: Future<Output = ()> + Send + 'static>(
        mut self,
        scribble: impl Fn(String, Vec<u8>) -> F + Send + Sync + 'static,
    ) -> Self {
        self.scribble = Some(Box::new(move |key, bytes| Box::pin(scribble(key, bytes))));
        self
    }

    /// A number of bytes that the tier declines as too many.
    pub fn too_large(mut self, bytes: usize) -> Self {
        self.too_large = Some(bytes);
        self
    }

    /// How many rounds the race takes, 300 if nothing is said.
    pub fn rounds(mut self, rounds: u64) -> Self {
        self.rounds = rounds;
        self
    }

    async fn tier(&self) -> Sure {
        Sure((self.connect)().await)
    }

    fn key(&self, name: &str) -> String {
        format!("suite{:016x}:{name}", self.run)
    }

    /// Runs all of it.
    ///
    /// # Panics
    /// At the first promise that is not kept.
    pub async fn run(&self) {
        self.what_is_put_is_got().await;
        self.odd_keys_and_values().await;
        self.many_at_once().await;
        self.what_is_renewed().await;
        self.terms_pass_with_time().await;
        self.tokens_of_keys().await;
        self.tokens_of_groups().await;
        self.hard_and_soft().await;
        self.groups_reach_their_own().await;
        self.what_is_declined_is_gone().await;
        self.leases().await;
        self.damage_is_absence().await;
        self.no_stale_copy_in_a_race().await;
    }

    async fn what_is_put_is_got(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        let key = self.key("put");
        let looked = tier.get(&key).await;
        assert!(looked.copy.is_none() && !looked.damaged, "what was never put is absent");
        let full = FarCopy {
            value: Some((0..=255).collect::<Vec<u8>>().into()),
            validator: Some("W/\"7\"".into()),
            tags: ["suite:a".into(), "suite:größe".into()].into(),
            age_ms: 5,
            fresh_ms: FRESH,
            stale_ms: 1_000,
            rescue_ms: FarCopy::FOREVER,
            early_us: 77,
            cost_us: 88,
        };
        assert_eq!(
            tier.fill(&key, full.clone(), tier.token_of(&key, &looked).await).await,
            Put::Kept,
            "a token is good until the fence moves"
        );
        let got = other.get(&key).await.copy.expect("what one process has kept, another gets");
        let FarCopy { age_ms, fresh_ms, .. } = got;
        assert_eq!(FarCopy { age_ms: 5, fresh_ms: FRESH, ..got }, full, "a copy comes back as it was put");
        assert_eq!(age_ms + fresh_ms, FRESH + 5, "what it ages by is what it is fresh for less");
        let other_fill = other.fill(&key, copy("second"), tier.token_of(&key, &looked).await).await;
        assert_eq!(other_fill, Put::Kept, "a fill does not move the fence");
        assert_eq!(tier.value(&key).await.as_deref(), Some(&b"second"[..]));
        let token = tier.token(&key).await;
        let nothing = FarCopy { fresh_ms: 0, ..copy("nothing") };
        assert_eq!(tier.fill(&key, nothing, token).await, Put::Kept, "terms that allow nothing are taken");
        assert_eq!(other.value(&key).await, None, "terms that allow nothing make the tier forget what it has");
        assert!(!tier.0.summary().is_empty(), "a tier says what it is");
    }

    async fn odd_keys_and_values(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        let long = "long".repeat(500);
        let odd =
            ["", " ", "a b", "a:b:c", "{a}b", "}{", "größe/東京/🦀", "line\r\nbreak\0zero", "\u{7f}\t*?[x]\\", &long];
        for (at, name) in odd.iter().enumerate() {
            let key = self.key(name);
            let token = tier.token(&key).await;
            assert_eq!(tier.fill(&key, copy(at.to_string()), token).await, Put::Kept, "{key:?} is a key");
        }
        for (at, name) in odd.iter().enumerate() {
            let value = other.value(&self.key(name)).await;
            assert_eq!(value, Some(at.to_string().into_bytes()), "{name:?} is a key unlike all others");
        }
        let values: [&[u8]; 4] = [b"", b"\r\nEND\r\n", &[0, 255, 254, 128], &[7; 70_000]];
        for value in values {
            let key = self.key("value");
            tier.set(&key, copy(value)).await;
            assert_eq!(other.value(&key).await.as_deref(), Some(value), "any bytes are a value");
        }
        let key = self.key("negative");
        tier.set(&key, FarCopy { value: None, ..copy("") }).await;
        let negative = other.get(&key).await.copy.expect("that the source has no such key is a copy, too");
        assert_eq!(negative.value, None, "no value is not an empty one");
    }

    async fn many_at_once(&self) {
        let tier = self.tier().await;
        let keys: Vec<Arc<str>> = (0..150).map(|at| self.key(&format!("many/{at}")).into()).collect();
        for (at, key) in keys.iter().enumerate().filter(|(at, _)| at % 3 != 0) {
            tier.set(key, copy(at.to_string())).await;
        }
        let names: Vec<&str> = keys.iter().map(|key| &**key).collect();
        let looked = tier.0.get_many(&names).await.expect("`get_many`");
        assert_eq!(looked.len(), keys.len(), "an answer for each key");
        for (at, (key, looked)) in keys.iter().zip(&looked).enumerate() {
            let expected = (at % 3 != 0).then(|| at.to_string().into_bytes());
            assert_eq!(value_of(looked).map(<[u8]>::to_vec), expected, "answers come in the order of the keys");
            let fill = tier.fill(key, copy("by its token"), tier.token_of(key, looked).await).await;
            assert_eq!(fill, Put::Kept, "a token of `get_many` is as good as one of `get`");
        }
        assert_eq!(tier.0.get_many(&[]).await, Ok(Vec::new()), "no keys are no answers");
        let looked = tier.0.get_many(&[names[1]; 2]).await.expect("`get_many`");
        assert_eq!(looked[0], looked[1], "one key twice is two answers");
    }

    /// A tier need not renew; one that does changes the terms of that very copy, and minds the fence.
    async fn what_is_renewed(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        let key = self.key("renewed");
        let tags: Arc<[Arc<str>]> = [Arc::from(self.key("tag").as_str())].into();
        let old = FarCopy { validator: Some("v1".into()), tags, fresh_ms: 5_000, ..copy("the value") };
        let terms = FarCopy { value: None, fresh_ms: 600_000, stale_ms: 7, rescue_ms: 8, cost_us: 9, ..old.clone() };
        let renew = async |copy: &FarCopy, token| tier.0.renew(&key, copy.clone(), token).await.expect("`renew`");

        assert_eq!(renew(&terms, tier.token(&key).await).await, None, "what is not there cannot be renewed");
        tier.set(&key, old.clone()).await;
        let token = tier.token(&key).await;
        let Some(put) = renew(&terms, token).await else { return };
        assert_eq!(put, Put::Kept);
        let renewed = other.get(&key).await.copy.expect("it is there");
        assert!(renewed.fresh_ms > 500_000, "it has the new terms: {renewed:?}");
        let as_it_was =
            FarCopy { fresh_ms: renewed.fresh_ms, age_ms: renewed.age_ms, value: old.value.clone(), ..terms.clone() };
        assert_eq!(renewed, as_it_was, "and the old value");

        let another = FarCopy { validator: Some("v2".into()), ..terms.clone() };
        assert_eq!(renew(&another, token).await, None, "another value is not renewed");
        let none = FarCopy { validator: None, ..terms.clone() };
        assert_eq!(renew(&none, token).await, None, "nor one of which nobody can say that it is right");
        tier.invalidate(Scope::Group(Group::Tag(terms.tags[0].clone())), true).await;
        assert_eq!(renew(&terms, token).await, Some(Put::Fenced), "what was invalidated meanwhile is not renewed");
        let token = tier.token(&key).await;
        assert_eq!(renew(&terms, token).await, Some(Put::Kept));
        assert!(other.get(&key).await.copy.is_some_and(|copy| copy.fresh_ms > 0), "a soft invalidation is over then");
        tier.invalidate(Scope::Keys(vec![key.as_str().into()]), false).await;
        let renewed = renew(&terms, token).await;
        assert!(matches!(renewed, None | Some(Put::Fenced)), "what is gone stays gone: {renewed:?}");
        assert_eq!(other.get(&key).await.copy, None);
        // Terms that allow nothing make it go.
        tier.set(&key, old.clone()).await;
        let nothing = FarCopy { fresh_ms: 0, stale_ms: 0, rescue_ms: 0, ..terms };
        assert_eq!(renew(&nothing, tier.token(&key).await).await, Some(Put::Kept));
        assert_eq!(other.get(&key).await.copy, None);
    }

    async fn terms_pass_with_time(&self) {
        let tier = self.tier().await;
        let key = self.key("terms");
        tier.set(&key, FarCopy { fresh_ms: 30, stale_ms: 600_000, rescue_ms: FarCopy::FOREVER, ..copy("v") }).await;
        self.until("freshness ends by itself", async || {
            tier.get(&key).await.copy.expect("a window is open").fresh_ms == 0
        })
        .await;
        sleep(Duration::from_millis(20)).await;
        let stale = tier.get(&key).await.copy.expect("a window is open");
        assert!(stale.age_ms >= 50, "it ages: {stale:?}");
        assert_eq!(stale.age_ms - 30 + stale.stale_ms, 600_000, "the stale window counts from the end of freshness");
        assert_eq!(stale.rescue_ms, FarCopy::FOREVER, "without end stays without end");
        tier.set(&key, FarCopy { fresh_ms: FarCopy::FOREVER, ..copy("v") }).await;
        sleep(Duration::from_millis(5)).await;
        let forever = tier.get(&key).await.copy.expect("it never ends");
        assert_eq!(forever.fresh_ms, FarCopy::FOREVER, "without end stays without end");
        tier.set(&key, FarCopy { fresh_ms: 20, ..copy("v") }).await;
        self.until("what may not be served in any way is absent", async || tier.get(&key).await.copy.is_none()).await;
    }

    /// Waits for something that comes by itself. There is a limit only so that it ends.
    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !is_so().await {
            assert!(Instant::now() < end, "{what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn tokens_of_keys(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        for (name, had) in [("fence/absent", false), ("fence/present", true)] {
            let key = self.key(name);
            for soft in [false, true] {
                if had {
                    tier.set(&key, FarCopy { stale_ms: FRESH, ..copy("old") }).await;
                }
                let token = tier.token_of(&key, &tier.get(&key).await).await;
                other.invalidate(keys_of(&[&key]), soft).await;
                let put = tier.fill(&key, copy("late"), token).await;
                assert_eq!(
                    put,
                    Put::Fenced,
                    "a fill that began before an invalidation never lands ({name}, soft: {soft})"
                );
                let value = other.value(&key).await;
                assert_ne!(value.as_deref(), Some(&b"late"[..]), "what is fenced changes nothing");
                let put = tier.write(&key, copy("late"), token).await;
                assert_eq!(put, Put::Fenced, "nor does a write by an old token");
                let token = tier.token(&key).await;
                assert_eq!(tier.fill(&key, copy("new"), token).await, Put::Kept, "one that began after it does");
                other.invalidate(keys_of(&[&key]), false).await;
            }
        }
        let key = self.key("fence/written");
        let (first, second) = (tier.token(&key).await, other.token_of(&key, &other.get(&key).await).await);
        assert_eq!(tier.write(&key, copy("one"), first).await, Put::Kept);
        let put = other.write(&key, copy("two"), second).await;
        assert_eq!(put, Put::Fenced, "of two writers who began together one keeps: a write moves the fence");
        assert_eq!(other.fill(&key, copy("two"), second).await, Put::Fenced, "and fences fills that began before it");
        assert_eq!(other.value(&key).await.as_deref(), Some(&b"one"[..]));
        // A fence outlives what it fences: the copy is gone by its time, not by an invalidation.
        let key = self.key("fence/expired");
        let token = tier.token(&key).await;
        tier.set(&key, FarCopy { fresh_ms: 10, ..copy("short") }).await;
        other.invalidate(keys_of(&[&key]), false).await;
        tier.set(&key, FarCopy { fresh_ms: 10, ..copy("short") }).await;
        self.until("a copy ends", async || tier.get(&key).await.copy.is_none()).await;
        assert_eq!(tier.fill(&key, copy("late"), token).await, Put::Fenced, "a fence outlives copies");
    }

    async fn tokens_of_groups(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        let key = self.key("stamp/key");
        let groups =
            [(tag(&self.key("red")), "a tag"), (prefix(&self.key("stamp/")), "a prefix"), (prefix(""), "all keys")];
        for (scope, name) in groups {
            for soft in [false, true] {
                let late = tagged("late", &[&self.key("blue"), &self.key("red")]);
                let token = tier.token_of(&key, &tier.get(&key).await).await;
                other.invalidate(scope.clone(), soft).await;
                let put = tier.fill(&key, late.clone(), token).await;
                assert_eq!(put, Put::Fenced, "a fill that began before an invalidation of {name} never lands");
                assert_eq!(tier.write(&key, late.clone(), token).await, Put::Fenced, "nor does a write");
                assert_eq!(other.value(&key).await, None);
                tier.set(&key, late).await;
                assert!(other.get(&key).await.copy.is_some(), "one that began after it does");
                other.invalidate(keys_of(&[&key]), false).await;
            }
        }
        // What is not of the group does not care.
        let token = tier.token(&key).await;
        other.invalidate(tag(&self.key("red")), false).await;
        other.invalidate(prefix(&self.key("elsewhere/")), false).await;
        let put = tier.fill(&key, tagged("v", &[&self.key("blue")]), token).await;
        assert_eq!(put, Put::Kept, "an invalidation of a group fences its own only");
    }

    async fn hard_and_soft(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        let (key, red) = (self.key("soft/key"), self.key("soft-red"));
        let scopes = [keys_of(&[&key, &self.key("soft/other")]), tag(&red), prefix(&self.key("soft/")), prefix("")];
        for scope in scopes {
            let full = FarCopy { stale_ms: 400_000, rescue_ms: 500_000, ..tagged("v", &[&red]) };
            tier.set(&key, full.clone()).await;
            other.invalidate(scope.clone(), true).await;
            let ended = tier.get(&key).await.copy.expect("a soft invalidation leaves the copy");
            assert_eq!(ended.fresh_ms, 0, "a soft invalidation ends freshness: {scope:?}");
            assert!(ended.stale_ms <= 400_000 && ended.stale_ms > 0, "its windows begin when it ended: {ended:?}");
            assert_eq!(ended.rescue_ms - ended.stale_ms, 100_000, "they begin at the same moment");
            assert_eq!(ended.value, full.value, "a soft invalidation leaves the value");
            let again = other.get(&key).await.copy.expect("it is there still");
            sleep(Duration::from_millis(5)).await;
            other.invalidate(scope.clone(), true).await;
            let twice = tier.get(&key).await.copy.expect("it is there still");
            // Of a group, which has one moment for all its copies, it may be the later one.
            let is_of_keys = matches!(scope, Scope::Keys(_));
            let is_no_longer = twice.fresh_ms == 0 && (!is_of_keys || twice.stale_ms <= again.stale_ms);
            assert!(is_no_longer, "to end what has ended does not make it last longer: {scope:?}");
            other.invalidate(scope.clone(), false).await;
            assert_eq!(tier.get(&key).await.copy, None, "after a hard invalidation there is no copy: {scope:?}");
        }
        tier.set(&key, copy("v")).await;
        other.invalidate(keys_of(&[&key]), true).await;
        assert_eq!(tier.get(&key).await.copy, None, "what was fresh and nothing else is gone after a soft one, too");
        tier.set(&key, FarCopy { stale_ms: FarCopy::FOREVER, ..copy("v") }).await;
        other.invalidate(keys_of(&[&key]), true).await;
        let endless = tier.get(&key).await.copy.expect("a window without end");
        assert_eq!((endless.fresh_ms, endless.stale_ms), (0, FarCopy::FOREVER), "without end stays without end");
        let forever = FarCopy { fresh_ms: FarCopy::FOREVER, stale_ms: 400_000, ..copy("v") };
        tier.set(&key, forever).await;
        other.invalidate(keys_of(&[&key]), true).await;
        let ended = tier.get(&key).await.copy.expect("a window");
        assert!(ended.fresh_ms == 0 && ended.stale_ms <= 400_000, "freshness without end ends: {ended:?}");
        other.invalidate(keys_of(&[&self.key("never/put")]), true).await;
        other.invalidate(keys_of(&[]), false).await;
    }

    async fn groups_reach_their_own(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        let names: Vec<_> = ["g/a/1", "g/a/2", "g/b/1", "gab"].map(|name| self.key(name)).into();
        let tags: Vec<_> = ["red", "blue", "re"].map(|name| self.key(name)).into();
        let put = async || {
            tier.set(&names[0], tagged("0", &[&tags[0]])).await;
            tier.set(&names[1], tagged("1", &[&tags[1], &tags[0]])).await;
            tier.set(&names[2], tagged("2", &[&tags[2]])).await;
            tier.set(&names[3], copy("3")).await;
        };
        let is_there = async |by: &Sure| {
            let mut there = String::new();
            for name in &names {
                there.push(if by.get(name).await.copy.is_some() { 'x' } else { '-' });
            }
            there
        };
        put().await;
        other.invalidate(tag(&tags[0]), false).await;
        assert_eq!(is_there(&tier).await, "--xx", "a tag reaches all that carry it, and no others");
        put().await;
        other.invalidate(prefix(&self.key("g/a")), false).await;
        assert_eq!(is_there(&tier).await, "--xx", "a prefix reaches all keys that begin so, and no others");
        put().await;
        other.invalidate(prefix(&self.key("g/a/1")), false).await;
        other.invalidate(prefix(&self.key("g/b/1/and-more")), false).await;
        assert_eq!(is_there(&tier).await, "-xxx", "a whole key is a prefix, too, and a longer one is none");
        put().await;
        assert_eq!(is_there(&tier).await, "xxxx", "what was loaded after it is not reached");
        // Many groups, seen by one who was away, and by one who is new.
        for at in 0..40 {
            other.invalidate(tag(&self.key(&format!("other/{at}"))), at % 2 == 0).await;
        }
        assert_eq!(is_there(&tier).await, "xxxx", "other groups do not matter");
        other.invalidate(tag(&tags[1]), false).await;
        for at in 40..700 {
            other.invalidate(tag(&self.key(&format!("other/{}", at % 90))), at % 2 == 0).await;
        }
        assert_eq!(is_there(&tier).await, "x-xx", "one who was away hears of all that happened");
        let new = self.tier().await;
        assert_eq!(is_there(&new).await, "x-xx", "and so does one who is new");
        other.invalidate(prefix(""), false).await;
        assert_eq!(is_there(&new).await, "----", "all are reached by the empty prefix");
    }

    async fn what_is_declined_is_gone(&self) {
        let Some(too_large) = self.too_large else { return };
        let (tier, other) = (self.tier().await, self.tier().await);
        let key = self.key("large");
        for write in [false, true] {
            tier.set(&key, copy("small")).await;
            let token = tier.token(&key).await;
            let large = copy(vec![1; too_large]);
            let put = if write { tier.write(&key, large, token).await } else { tier.fill(&key, large, token).await };
            assert_eq!(put, Put::Declined, "what is too large is declined");
            assert_eq!(other.get(&key).await.copy, None, "what it had of the key is gone");
            if write {
                assert_eq!(
                    tier.fill(&key, copy("late"), token).await,
                    Put::Fenced,
                    "a write moves the fence all the same"
                );
            }
        }
        let token = tier.token(&key).await;
        tier.set(&key, copy("small")).await;
        other.invalidate(keys_of(&[&key]), false).await;
        tier.set(&key, copy("new")).await;
        let put = tier.fill(&key, copy(vec![1; too_large]), token).await;
        assert_eq!(put, Put::Fenced, "what is too large and too late is fenced");
        assert_eq!(other.value(&key).await.as_deref(), Some(&b"new"[..]), "and changes nothing");
    }

    async fn leases(&self) {
        let (tier, other) = (self.tier().await, self.tier().await);
        if !tier.0.leases() {
            return;
        }
        let (tier, other) = (&tier.0, &other.0);
        let key = self.key("lease");
        let long = Duration::from_secs(600);
        let taken = async |tier: &Arc<dyn Tier>, holder, time| tier.lease(&key, holder, time).await.expect("`lease`");
        assert!(taken(tier, 1, long).await, "a lease that nobody has is there to be taken");
        assert!(!taken(other, 2, long).await, "one that somebody has is not");
        assert!(taken(tier, 1, long).await, "its holder renews it");
        other.release(&key, 2).await.expect("`release`");
        assert!(!taken(other, 2, long).await, "who does not hold it cannot give it back");
        tier.release(&key, 1).await.expect("`release`");
        assert!(taken(other, u64::MAX, long).await, "what was given back is there to be taken");
        other.release(&key, u64::MAX).await.expect("`release`");
        assert!(taken(tier, 1, Duration::from_millis(20)).await);
        self.until("a lease ends by itself", async || taken(other, 2, long).await).await;
        assert!(!taken(tier, 1, long).await, "who lost a lease does not renew it");
        other.release(&key, 2).await.expect("`release`");
        // Many at once: one has it.
        let mut asking = JoinSet::new();
        for holder in 1..=20 {
            let (tier, key) = (tier.clone(), key.clone());
            asking.spawn(async move { tier.lease(&key, holder, long).await.expect("`lease`") });
        }
        let holders = asking.join_all().await.into_iter().filter(|taken| *taken).count();
        assert_eq!(holders, 1, "of many who ask at once one gets it");
    }

    async fn damage_is_absence(&self) {
        let Some(scribble) = &self.scribble else { return };
        let tier = self.tier().await;
        let key = self.key("damage");
        let mut newer = crate::tiered::Envelope::new(copy("newer"), 0).encode();
        newer[4] = 9;
        for bytes in [b"".to_vec(), b"somebody else's".to_vec(), vec![0; 500], b"LRDR\x02".to_vec(), newer] {
            tier.set(&key, copy("right")).await;
            let (whole, newer_before) = (bytes.clone(), tier.0.newer());
            scribble(key.clone(), bytes).await;
            let looked = tier.get(&key).await;
            assert_eq!(looked.copy, None, "what cannot be read is absent: {whole:?}");
            let is_newer = whole.get(4) == Some(&9) && tier.0.newer() > newer_before;
            assert!(looked.damaged != is_newer || whole.is_empty(), "and said to be damaged, or newer: {whole:?}");
            tier.invalidate(keys_of(&[&key]), true).await;
            let token = tier.token(&key).await;
            assert_eq!(
                tier.fill(&key, copy("right"), token).await,
                Put::Kept,
                "it is replaced as if it were not there"
            );
            assert_eq!(tier.value(&key).await.as_deref(), Some(&b"right"[..]));
        }
    }

    /// Readers who fill what they miss, and writers who invalidate, over several connections: a copy that is got is never older
    /// than what had been invalidated before the `get` began.
    async fn no_stale_copy_in_a_race(&self) {
        const KEYS: usize = 3;
        /// What the source has, and what has been invalidated and acknowledged.
        #[derive(Default)]
        struct State {
            source: AtomicU64,
            acknowledged: AtomicU64,
        }
        let states: Arc<[State; KEYS]> = Arc::default();
        let mut racing = JoinSet::new();
        let (race, rounds) = (self.key("race/"), self.rounds);
        for connection in 0..4u64 {
            let tier = self.tier().await;
            let (states, race) = (states.clone(), race.clone());
            racing.spawn(async move {
                let mut hits = 0;
                for round in 0..rounds {
                    let random = RandomState::new().hash_one((connection, round));
                    let at = random as usize % KEYS;
                    let (state, key) = (&states[at], format!("{race}{at}"));
                    if connection == 0 {
                        let version = state.source.fetch_add(1, SeqCst) + 1;
                        let scope = match random >> 8 & 3 {
                            0 => keys_of(&[&key]),
                            1 => tag(&format!("{race}tag/{at}")),
                            2 => prefix(&key),
                            _ => prefix(&race),
                        };
                        tier.invalidate(scope, random >> 16 & 3 == 0).await;
                        state.acknowledged.fetch_max(version, SeqCst);
                        sleep(Duration::from_micros(random >> 20 & 2047)).await;
                        continue;
                    }
                    let expected = state.acknowledged.load(SeqCst);
                    let looked = tier.get(&key).await;
                    if let Some(copy) = looked.copy.as_ref().filter(|copy| copy.fresh_ms > 0) {
                        let bytes = copy.value.as_deref().and_then(|bytes| bytes.try_into().ok());
                        let version = bytes.map(u64::from_be_bytes);
                        assert!(
                            version >= Some(expected),
                            "{version:?} is fresh after {expected} was invalidated ({key})"
                        );
                        hits += 1;
                        continue;
                    }
                    let version = state.source.load(SeqCst);
                    if random >> 32 & 1 == 0 {
                        sleep(Duration::from_micros(random >> 40 & 1023)).await;
                    }
                    let loaded = tagged(version.to_be_bytes(), &[&format!("{race}tag/{at}")]);
                    let token = tier.token_of(&key, &looked).await;
                    tier.fill(&key, FarCopy { stale_ms: FRESH, ..loaded }, token).await;
                }
                hits
            });
        }
        let hits: u64 = racing.join_all().await.into_iter().sum();
        assert!(hits > 0, "the race has no hits: it says nothing");
    }
}
