//! Where values come from: what an adapter has to do, and one made of closures.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::Failure;
use super::far::BoxFuture;

/// What a source has of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<V> {
    pub(crate) value: Answer<V>,
    pub(crate) fresh_for: Option<Duration>,
    pub(crate) stale_for: Option<Duration>,
    pub(crate) rescue_for: Option<Duration>,
    pub(crate) validator: Option<Arc<str>>,
    pub(crate) tags: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer<V> {
    Value(V),
    Absent,
    Unchanged,
}

impl<V> Loaded<V> {
    fn new(value: Answer<V>) -> Self {
        Loaded { value, fresh_for: None, stale_for: None, rescue_for: None, validator: None, tags: Vec::new() }
    }

    /// A value.
    pub fn value(value: V) -> Self {
        Loaded::new(Answer::Value(value))
    }

    /// The source has no such key.
    pub fn absent() -> Self {
        Loaded::new(Answer::Absent)
    }

    /// The value that was asked about by its validator is still right.
    pub fn unchanged() -> Self {
        Loaded::new(Answer::Unchanged)
    }

    /// The value; none if the source has no such key, or says that the copy which is there is still right.
    pub fn into_value(self) -> Option<V> {
        match self.value {
            Answer::Value(value) => Some(value),
            Answer::Absent | Answer::Unchanged => None,
        }
    }

    /// How long it is fresh, by what the source says. Zero: it is not to be kept.
    #[must_use]
    pub fn fresh_for(mut self, time: Duration) -> Self {
        self.fresh_for = Some(time);
        self
    }

    /// How long after that it may be served stale while it is refreshed.
    #[must_use]
    pub fn stale_while_revalidate(mut self, time: Duration) -> Self {
        self.stale_for = Some(time);
        self
    }

    /// How long after that it may be served where the source fails.
    #[must_use]
    pub fn stale_if_error(mut self, time: Duration) -> Self {
        self.rescue_for = Some(time);
        self
    }

    /// By which the source can be asked later whether the value is still right.
    #[must_use]
    pub fn validator(mut self, validator: impl Into<Arc<str>>) -> Self {
        self.validator = Some(validator.into());
        self
    }

    /// A tag, by which it can be invalidated together with others.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<Arc<str>>) -> Self {
        self.tags.push(tag.into());
        self
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Self {
        value.map_or_else(Loaded::absent, Loaded::value)
    }
}

/// Why a source did not do what it was asked. Made of any error: that is [`SourceError::unavailable`].
#[derive(Clone)]
pub struct SourceError {
    pub(crate) failure: Failure,
    pub(crate) cause: Arc<dyn Error + Send + Sync>,
}

impl SourceError {
    fn new(failure: Failure, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        SourceError { failure, cause: Arc::from(cause.into()) }
    }

    /// It could not be reached, or broke off: what was asked may have been done.
    pub fn unavailable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        SourceError::new(Failure::Unavailable, cause)
    }

    /// It understood and said no; nothing was done, and to try again does not help.
    pub fn rejected(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        SourceError::new(Failure::Rejected, cause)
    }

    /// It was not even tried: too much is going on.
    pub fn overloaded(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        SourceError::new(Failure::Overloaded, cause)
    }

    /// What kind of failure it is.
    pub fn failure(&self) -> Failure {
        self.failure
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.cause, f)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for SourceError {
    fn from(error: E) -> Self {
        SourceError::unavailable(error)
    }
}

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceError").field("failure", &self.failure).field("cause", &self.cause).finish()
    }
}

/// Names one write, whatever happens to it: a write that is tried again, by this process or by the one that recovers its
/// journal, has the same. A source that remembers the names of what it has done does nothing twice.
///
/// Names that one journal has given are ordered as the writes are. A source that keeps, with each key, the name of the write
/// that made it what it is, and leaves out what has a smaller one, is also safe from what a process that died had sent before.
/// (The upper half names the journal; names of different journals, and those of writes that were not logged, have no order.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub u128);

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a source is to save.
#[derive(Debug)]
#[non_exhaustive]
pub struct Save<'a, K, V> {
    /// Of which key.
    pub key: &'a K,
    /// The value; `None`: the key is to be removed.
    pub value: Option<&'a V>,
    /// Which write this is: the idempotency key.
    pub id: WriteId,
}

impl<'a, K, V> Save<'a, K, V> {
    /// For a test of a source.
    pub fn new(key: &'a K, value: Option<&'a V>, id: WriteId) -> Self {
        Save { key, value, id }
    }
}

impl<K, V> Clone for Save<'_, K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for Save<'_, K, V> {}

/// What a source has of many keys: of each, or why not.
pub type LoadedMany<V> = Vec<Result<Loaded<V>, SourceError>>;

/// Where values come from, and go to. What is promised here is a suite, too, to hold an implementation against:
/// `testkit::SourceSuite` (feature `testkit`).
pub trait Source<K, V>: Send + Sync + 'static {
    /// Whether it can be loaded from.
    fn loads(&self) -> bool {
        true
    }

    /// Whether it can be saved to.
    fn saves(&self) -> bool {
        false
    }

    /// Loads a value. With a validator: the caller has a copy with it, and [`Loaded::unchanged`] says that it is right.
    ///
    /// Runs in a task of its own, which is dropped if it takes longer than the keyspace's rule or the cache's own limit
    /// allow.
    fn load<'a>(&'a self, key: &'a K, validator: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>>;

    /// Whether [`Self::load_many`] is better than as many loads.
    fn loads_many(&self) -> bool {
        false
    }

    /// Loads the values of many keys, in their order. Asked of a source that [`loads_many`](Self::loads_many), for the keys
    /// of one batch that no tier has. What is wrong with one key is an error of that key alone, as far as the source
    /// can tell; an error of the whole is one of each. Dropped once nobody waits for it any more.
    fn load_many<'a>(&'a self, keys: &'a [K]) -> BoxFuture<'a, Result<LoadedMany<V>, SourceError>> {
        let _ = keys;
        Box::pin(async { Err(SourceError::rejected("this source loads one key at a time")) })
    }

    /// Saves a value, or removes the key. It is not stopped if it takes too long, for nobody would know what it has done. In a
    /// keyspace with a journal no other save of the key begins before it has ended, so it should have a limit of its own.
    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        let _ = save;
        Box::pin(async { Err(SourceError::rejected("this source cannot be saved to")) })
    }

    /// Whether [`Self::save_many`] is better than as many saves.
    fn saves_many(&self) -> bool {
        false
    }

    /// Carries many writes out, each of another key; what came of each, in their order. Where it is all or nothing, all
    /// have the same error.
    fn save_many<'a>(&'a self, saves: &'a [Save<'a, K, V>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>>
    where
        K: Sync,
        V: Sync,
    {
        Box::pin(async move {
            let mut results = Vec::with_capacity(saves.len());
            for save in saves {
                results.push(self.save(*save).await);
            }
            results
        })
    }
}

impl<K, V, S: Source<K, V> + ?Sized> Source<K, V> for Arc<S> {
    fn loads(&self) -> bool {
        (**self).loads()
    }

    fn saves(&self) -> bool {
        (**self).saves()
    }

    fn load<'a>(&'a self, key: &'a K, validator: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>> {
        (**self).load(key, validator)
    }

    fn loads_many(&self) -> bool {
        (**self).loads_many()
    }

    fn load_many<'a>(&'a self, keys: &'a [K]) -> BoxFuture<'a, Result<LoadedMany<V>, SourceError>> {
        (**self).load_many(keys)
    }

    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        (**self).save(save)
    }

    fn saves_many(&self) -> bool {
        (**self).saves_many()
    }

    fn save_many<'a>(&'a self, saves: &'a [Save<'a, K, V>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>>
    where
        K: Sync,
        V: Sync,
    {
        (**self).save_many(saves)
    }
}

type LoadFn<K, V> = dyn Fn(K) -> BoxFuture<'static, Result<Loaded<V>, SourceError>> + Send + Sync;
type SaveFn<K, V> = dyn Fn(K, Option<V>, WriteId) -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync;

/// A source made of closures.
///
/// ```
/// use larder::tiered::{FromFn, Loaded};
///
/// let source = FromFn::new(|id: u64| async move {
///     // Ask a database here.
///     Ok::<_, std::io::Error>((id < 100).then(|| format!("product {id}")))
/// });
/// # let _ = source;
/// ```
pub struct FromFn<K, V> {
    load: Option<Box<LoadFn<K, V>>>,
    save: Option<Box<SaveFn<K, V>>>,
    kinds: PhantomData<fn() -> (K, V)>,
}

impl<K, V> fmt::Debug for FromFn<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").field("loads", &self.load.is_some()).field("saves", &self.save.is_some()).finish()
    }
}

impl<K: Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> FromFn<K, V> {
    /// Loads by a closure, which answers with `Option<V>` or [`Loaded`].
    pub fn new<F, L, E>(load: impl Fn(K) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<L, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<SourceError>,
    {
        let load: Box<LoadFn<K, V>> = Box::new(move |key| {
            let loading = load(key);
            Box::pin(async move { loading.await.map(Into::into).map_err(Into::into) })
        });
        FromFn { load: Some(load), save: None, kinds: PhantomData }
    }

    /// Saves by a closure, too; it gets `None` for a removal. Where it matters that no write is carried out twice, see
    /// [`Self::saving_once`].
    #[must_use]
    pub fn saving<F, E>(self, save: impl Fn(K, Option<V>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<SourceError>,
    {
        self.saving_once(move |key, value, _| save(key, value))
    }

    /// As [`Self::saving`], with the name of the write.
    #[must_use]
    pub fn saving_once<F, E>(mut self, save: impl Fn(K, Option<V>, WriteId) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<SourceError>,
    {
        self.save = Some(Box::new(move |key, value, id| {
            let saving = save(key, value, id);
            Box::pin(async move { saving.await.map_err(Into::into) })
        }));
        self
    }
}

impl<K: Clone + Send + Sync + 'static, V: Clone + Send + Sync + 'static> Source<K, V> for FromFn<K, V> {
    fn loads(&self) -> bool {
        self.load.is_some()
    }

    fn saves(&self) -> bool {
        self.save.is_some()
    }

    fn load<'a>(&'a self, key: &'a K, _: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>> {
        match &self.load {
            Some(load) => load(key.clone()),
            None => Box::pin(async { Err(SourceError::rejected("this source cannot be loaded from")) }),
        }
    }

    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        match &self.save {
            Some(saving) => saving(save.key.clone(), save.value.cloned(), save.id),
            None => Box::pin(async { Err(SourceError::rejected("this source cannot be saved to")) }),
        }
    }
}
