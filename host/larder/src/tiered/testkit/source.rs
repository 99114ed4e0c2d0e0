//! The suite of sources.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::tiered::source::Answer;
use crate::tiered::{BoxFuture, Failure, Key, Loaded, Save, Source, SourceError, WriteId};

type Prepare<K, V> = Box<dyn Fn(K, Option<V>) -> BoxFuture<'static, ()> + Send + Sync>;

/// The suite of a [`Source`].
///
/// ```
/// use std::collections::HashMap;
/// use std::io::Error;
/// use std::sync::{Arc, Mutex};
/// use larder::tiered::FromFn;
/// use larder::tiered::testkit::SourceSuite;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let rows = Arc::new(Mutex::new(HashMap::new()));
/// let saved = rows.clone();
/// let source = FromFn::new(move |id: u64| {
///     let row = rows.lock().unwrap().get(&id).cloned();
///     async move { Ok::<Option<String>, Error>(row) }
/// })
/// .saving(move |id, row| {
///     match row {
///         Some(row) => saved.lock().unwrap().insert(id, row),
///         None => saved.lock().unwrap().remove(&id),
///     };
///     async { Ok::<_, Error>(()) }
/// });
/// SourceSuite::new(source, |n| n, |n| format!("product {n}")).run().await;
/// # }
/// ```
///
/// It panics at the first promise that is not kept, with its text. The keys are other ones at each run, so it can be run on a
/// database that has other rows, and leaves those alone.
#[must_use]
pub struct SourceSuite<K, V> {
    source: Arc<dyn Source<K, V>>,
    key: Box<dyn Fn(u64) -> K + Send + Sync>,
    value: Arc<dyn Fn(u64) -> V + Send + Sync>,
    prepare: Option<Prepare<K, V>>,
    refused: Option<(K, V)>,
    slow: Option<K>,
    unreachable: Option<Arc<dyn Source<K, V>>>,
    thousands: u64,
    first: u64,
}

impl<K, V> Debug for SourceSuite<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceSuite").field("first", &self.first).finish_non_exhaustive()
    }
}

impl<K: Key + Debug, V: Clone + PartialEq + Debug + Send + Sync + 'static> SourceSuite<K, V> {
    /// For a source; with what makes keys of numbers, and values of numbers. Different numbers are different keys and values.
    pub fn new(
        source: impl Source<K, V>,
        key: impl Fn(u64) -> K + Send + Sync + 'static,
        value: impl Fn(u64) -> V + Send + Sync + 'static,
    ) -> Self {
        SourceSuite {
            source: Arc::new(source),
            key: Box::new(key),
            value: Arc::new(value),
            prepare: None,
            refused: None,
            slow: None,
            unreachable: None,
            thousands: 3_000,
            // Room for every key type, and for a suite's keys above it.
            first: 100_000 + RandomState::new().hash_one(0) % 1_000_000_000,
        }
    }

    /// How a value gets to where the source loads from, if it cannot save; `None`: the key is to be absent there.
    pub fn prepare<F>(mut self, prepare: impl Fn(K, Option<V>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.prepare = Some(Box::new(move |key, value| Box::pin(prepare(key, value))));
        self
    }

    /// A write that the source understands and refuses.
    pub fn refuses(mut self, key: K, value: V) -> Self {
        self.refused = Some((key, value));
        self
    }

    /// A key whose load takes long: some tenths of a second. Such loads are cancelled on their way.
    pub fn slow(mut self, key: K) -> Self {
        self.slow = Some(key);
        self
    }

    /// The same source over a server that cannot be reached.
    pub fn unreachable(mut self, source: impl Source<K, V>) -> Self {
        self.unreachable = Some(Arc::new(source));
        self
    }

    /// How many keys are many; 3,000 if nothing is said.
    pub fn many(mut self, keys: u64) -> Self {
        self.thousands = keys;
        self
    }

    /// Runs it.
    ///
    /// # Panics
    /// A promise is not kept.
    pub async fn run(self) {
        self.one_key().await;
        self.many_keys().await;
        self.validators().await;
        if self.source.saves() {
            self.many_writes().await;
            self.writes_again().await;
        }
        self.failures().await;
        self.concurrency().await;
        self.cancelled_loads().await;
    }

    fn key(&self, n: u64) -> K {
        (self.key)(self.first + n)
    }

    fn value(&self, n: u64) -> V {
        (self.value)(n)
    }

    async fn put(&self, key: &K, value: Option<&V>) {
        if let Some(prepare) = &self.prepare {
            return prepare(key.clone(), value.cloned()).await;
        }
        assert!(self.source.saves(), "a source that cannot save needs `prepare`");
        let done = self.source.save(Save::new(key, value, write_id())).await;
        done.unwrap_or_else(|error| panic!("saving {key:?}: {error:?}"));
    }

    async fn load(&self, key: &K) -> Option<V> {
        let loaded = self.source.load(key, None).await;
        Self::answer(loaded.unwrap_or_else(|error| panic!("loading {key:?}: {error:?}")))
    }

    fn answer(loaded: Loaded<V>) -> Option<V> {
        match loaded.value {
            Answer::Value(value) => Some(value),
            Answer::Absent => None,
            Answer::Unchanged => panic!("`unchanged`, and nothing was asked about a validator"),
        }
    }

    fn answer_of_one(loaded: Result<Loaded<V>, SourceError>) -> Option<V> {
        Self::answer(loaded.unwrap_or_else(|error| panic!("loading one of many: {error:?}")))
    }

    async fn one_key(&self) {
        assert!(self.source.loads(), "the source can be loaded from");
        let key = self.key(1);
        assert_eq!(self.load(&key).await, None, "a key that was never saved is absent");
        for n in [1, 2] {
            self.put(&key, Some(&self.value(n))).await;
            assert_eq!(self.load(&key).await, Some(self.value(n)), "what was saved is loaded, the newest of it");
        }
        assert_eq!(self.load(&self.key(2)).await, None, "another key is none of it");
        for _ in 0..2 {
            self.put(&key, None).await;
            assert_eq!(self.load(&key).await, None, "a removed key is absent, also where it was so already");
        }
    }

    async fn many_keys(&self) {
        if !self.source.loads_many() {
            return;
        }
        let source = &self.source;
        let keys: Vec<K> = (10..20).map(|n| self.key(n)).collect();
        for (n, key) in keys.iter().enumerate().filter(|(n, _)| n % 3 != 0) {
            self.put(key, Some(&self.value(n as u64))).await;
        }
        let wanted = |n: usize| (!n.is_multiple_of(3)).then(|| self.value(n as u64));
        let load = async |wish: &[usize]| {
            let keys: Vec<K> = wish.iter().map(|n| keys[*n].clone()).collect();
            let loaded = source.load_many(&keys).await.unwrap_or_else(|error| panic!("loading many: {error:?}"));
            loaded.into_iter().map(Self::answer_of_one).collect::<Vec<_>>()
        };
        for wish in
            [&[][..], &[1], &[0], &[9, 8, 7, 6, 5, 4, 3, 2, 1, 0], &[2, 2, 0, 0, 2, 5], &[0, 3, 6, 9], &[4, 4, 4]]
        {
            let expected: Vec<_> = wish.iter().map(|n| wanted(*n)).collect();
            assert_eq!(load(wish).await, expected, "values in the order of the keys {wish:?}, absent ones among them");
        }
        // Far more than one statement may hold; one in a hundred is there.
        let keys: Vec<K> = (0..self.thousands).map(|n| self.key(1_000 + n)).collect();
        for n in (0..self.thousands).step_by(100) {
            self.put(&keys[n as usize], Some(&self.value(n))).await;
        }
        let loaded = source.load_many(&keys).await.unwrap_or_else(|error| panic!("loading thousands: {error:?}"));
        assert_eq!(loaded.len(), keys.len(), "an answer for each key");
        for (n, loaded) in loaded.into_iter().enumerate() {
            let expected = (n % 100 == 0).then(|| self.value(n as u64));
            assert_eq!(Self::answer_of_one(loaded), expected, "key {n} of {}", keys.len());
        }
    }

    async fn validators(&self) {
        let key = self.key(30);
        self.put(&key, Some(&self.value(1))).await;
        let load = async |validator: Option<&str>| {
            self.source.load(&key, validator).await.unwrap_or_else(|error| panic!("a conditional load: {error:?}"))
        };
        let Some(validator) = load(None).await.validator else { return };
        assert_eq!(load(Some(&validator)).await.value, Answer::Unchanged, "the copy with its validator is right");
        let other = load(Some("another validator")).await;
        assert_eq!(other.value, Answer::Value(self.value(1)), "a copy with another validator is not");
        assert_eq!(other.validator.as_ref(), Some(&validator));
        self.put(&key, Some(&self.value(2))).await;
        let changed = load(Some(&validator)).await;
        assert_eq!(changed.value, Answer::Value(self.value(2)), "after a change the copy is not right any more");
        assert_ne!(changed.validator, Some(validator.clone()), "another value, another validator");
        self.put(&key, None).await;
        assert_eq!(load(Some(&validator)).await.value, Answer::Absent, "a removed key is absent, whoever asks");
    }

    async fn many_writes(&self) {
        let keys: Vec<K> = (0..self.thousands).map(|n| self.key(10_000 + n)).collect();
        let values: Vec<V> = (0..self.thousands).map(|n| self.value(n)).collect();
        assert!(self.source.save_many(&[]).await.is_empty(), "nothing comes of no writes");
        let all = async |writes: &[(usize, Option<usize>)]| {
            let saves: Vec<_> = writes
                .iter()
                .map(|(key, value)| Save::new(&keys[*key], value.map(|n| &values[n]), write_id()))
                .collect();
            let results = self.source.save_many(&saves).await;
            assert_eq!(results.len(), saves.len(), "an answer for each write");
            results.into_iter().for_each(|result| result.unwrap_or_else(|error| panic!("saving many: {error:?}")));
        };
        let count = keys.len();
        all(&(0..count).map(|n| (n, Some(n))).collect::<Vec<_>>()).await;
        for n in [0, 1, count / 2, count - 1] {
            assert_eq!(self.load(&keys[n]).await, Some(values[n].clone()), "write {n} of {count}");
        }
        // Removals among writes, and one of what is not there.
        all(&[(0, None), (1, Some(5)), (2, None), (count - 1, None), (3, Some(3))]).await;
        all(&[(0, None), (4, Some(0))]).await;
        let expected = [None, Some(5), None, Some(3), Some(0)];
        for (n, value) in expected.iter().enumerate() {
            assert_eq!(self.load(&keys[n]).await, value.map(|n| values[n].clone()), "key {n} after removals");
        }
        assert_eq!(self.load(&keys[count - 1]).await, None);
        let removals: Vec<_> = (0..count).map(|n| (n, None)).collect();
        all(&removals).await;
        assert_eq!(self.load(&keys[count / 2]).await, None, "all are removed");
    }

    async fn writes_again(&self) {
        let (key, value, id) = (self.key(40), self.value(7), write_id());
        for _ in 0..3 {
            let done = self.source.save(Save::new(&key, Some(&value), id)).await;
            done.unwrap_or_else(|error| panic!("the same write again is done, and no error: {error:?}"));
            assert_eq!(self.load(&key).await, Some(value.clone()));
        }
    }

    async fn failures(&self) {
        let failure = |result: Result<(), SourceError>| result.err().map(|error| error.failure);
        if let Some((key, value)) = &self.refused {
            let before = self.load(key).await;
            let refused = Save::new(key, Some(value), write_id());
            assert_eq!(failure(self.source.save(refused).await), Some(Failure::Rejected), "it says no");
            assert_eq!(self.load(key).await, before, "what was refused was not done");
            // Among others it is refused alone.
            let (good, other) = (self.key(50), self.key(51));
            let (first, second) = (self.value(1), self.value(2));
            let saves =
                [Save::new(&good, Some(&first), write_id()), refused, Save::new(&other, Some(&second), write_id())];
            let results: Vec<_> = self.source.save_many(&saves).await.into_iter().map(failure).collect();
            assert_eq!(results, [None, Some(Failure::Rejected), None], "one that is refused takes no other along");
            assert_eq!(self.load(&good).await, Some(first));
            assert_eq!(self.load(&other).await, Some(second));
        }
        if let Some(unreachable) = &self.unreachable {
            let (key, value) = (self.key(52), self.value(1));
            let loaded = unreachable.load(&key, None).await.map(drop);
            assert_eq!(failure(loaded), Some(Failure::Unavailable), "a server that is not there");
            if unreachable.loads_many() {
                let loaded = unreachable.load_many(&[key.clone(), self.key(53)]).await.map(drop);
                assert_eq!(failure(loaded), Some(Failure::Unavailable), "a server that is not there");
            }
            if unreachable.saves() {
                let save = Save::new(&key, Some(&value), write_id());
                assert_eq!(failure(unreachable.save(save).await), Some(Failure::Unavailable));
                for result in unreachable.save_many(&[save, Save::new(&self.key(53), None, write_id())]).await {
                    assert_eq!(
                        failure(result),
                        Some(Failure::Unavailable),
                        "it may have been done, and can be tried again"
                    );
                }
            }
        }
    }

    async fn concurrency(&self) {
        const KEYS: u64 = 64;
        let keys: Vec<K> = (0..KEYS).map(|n| self.key(60 + n)).collect();
        let mut tasks = JoinSet::new();
        for (n, key) in keys.iter().cloned().enumerate() {
            self.put(&key, Some(&self.value(0))).await;
            let (source, value) = (self.source.clone(), self.value.clone());
            tasks.spawn(async move {
                let mut newest = 0;
                for round in 1..=5 {
                    if source.saves() {
                        newest = round * 1_000 + n as u64;
                        let saved = value(newest);
                        let save = Save::new(&key, Some(&saved), write_id());
                        source.save(save).await.unwrap_or_else(|error| panic!("one of many at once: {error:?}"));
                    }
                    let loaded = source.load(&key, None).await;
                    let loaded = loaded.unwrap_or_else(|error| panic!("one of many at once: {error:?}"));
                    assert_eq!(Self::answer(loaded), Some(value(newest)), "each gets its own answer");
                }
                (key, newest)
            });
        }
        let done: HashMap<K, u64> = tasks.join_all().await.into_iter().collect();
        for (key, newest) in done {
            assert_eq!(self.load(&key).await, Some(self.value(newest)));
        }
    }

    /// Loads that are dropped on their way, in all kinds of moments, leave nothing behind that the next one trips over.
    async fn cancelled_loads(&self) {
        let key = self.key(1);
        self.put(&key, Some(&self.value(1))).await;
        let mut tasks = JoinSet::new();
        for n in 0..100 {
            let source = self.source.clone();
            let wanted = match &self.slow {
                Some(slow) if n % 10 == 0 => slow.clone(),
                _ => key.clone(),
            };
            tasks.spawn(async move {
                // Polled so often, and then dropped: after a step of the protocol each time.
                let mut loading = source.load(&wanted, None);
                for _ in 0..n % 10 {
                    let poll = std::future::poll_fn(|context| {
                        std::task::Poll::Ready(loading.as_mut().poll(context).is_ready())
                    });
                    if poll.await {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        tasks.join_all().await;
        for n in 0..20 {
            assert_eq!(self.load(&key).await, Some(self.value(1)), "load {n} after others were cancelled");
        }
    }
}

/// A name for a write, that no other has.
fn write_id() -> WriteId {
    WriteId(u128::from(RandomState::new().hash_one(1)) << 64 | u128::from(RandomState::new().hash_one(2)))
}

/// For a source that carries no write out twice: saves a value that adds to what is there, more than once under each name.
/// `count` tells how often it was added, of what is loaded.
///
/// # Panics
/// A write was carried out twice, or not at all.
pub async fn carries_out_once<K: Key + Debug, V: 'static>(
    source: &dyn Source<K, V>,
    key: &K,
    value: &V,
    count: impl Fn(&V) -> u64,
) {
    let counted = async || match source.load(key, None).await {
        Ok(Loaded { value: Answer::Value(value), .. }) => count(&value),
        Ok(_) => 0,
        Err(error) => panic!("loading {key:?}: {error:?}"),
    };
    let before = counted().await;
    let ids: Vec<WriteId> = (0..3).map(|_| write_id()).collect();
    for (id, added) in [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2), (2, 3)] {
        let done = source.save(Save::new(key, Some(value), ids[id])).await;
        done.unwrap_or_else(|error| panic!("a write that was done already is no error: {error:?}"));
        assert_eq!(counted().await, before + added, "each write counts once");
    }
}
