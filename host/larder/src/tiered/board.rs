//! Loads under way in this process: one leader for each key, and those who wait for it.
//!
//! Unlike the engine's board (`flights.rs`), whose load is a future that its passengers poll, a leader here is an
//! operation that runs in a task of its own and takes several steps: what its caller does is nothing to it. A leader that
//! ends in any way, a panic or the end of its runtime included, tells its passengers so.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::TieredError;
use crate::engine::steps::Failure;

/// How a flight ended.
#[derive(Debug)]
pub(crate) enum End<T> {
    Landed(Arc<T>),
    Failed(Failure, Option<TieredError>),
    Lost,
}

impl<T> Clone for End<T> {
    fn clone(&self) -> Self {
        match self {
            End::Landed(landed) => End::Landed(landed.clone()),
            End::Failed(failure, error) => End::Failed(*failure, error.clone()),
            End::Lost => End::Lost,
        }
    }
}

type Ends<T> = watch::Sender<Option<End<T>>>;
type Part<K, T> = Mutex<HashMap<K, (u64, Arc<Ends<T>>), foldhash::fast::RandomState>>;

/// All flights of a cache.
pub(crate) struct Board<K, T> {
    parts: Box<[Part<K, T>]>,
    hasher: foldhash::fast::RandomState,
    numbers: AtomicU64,
}

const PARTS: usize = 64;

/// What came of joining.
pub(crate) enum Joined<K: Hash + Eq, T, F> {
    Leads(Lead<K, T>),
    Waits(watch::Receiver<Option<End<T>>>),
    /// There is a copy by now.
    Found(F),
}

impl<K: Hash + Eq + Clone, T> Board<K, T> {
    pub(crate) fn new() -> Self {
        Board {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
            numbers: AtomicU64::new(0),
        }
    }

    fn part(&self, key: &K) -> &Part<K, T> {
        &self.parts[self.hasher.hash_one(key) as usize % PARTS]
    }

    /// Joins the flight of a key, or begins one. `present` looks once more, under the lock, whether the key is there.
    pub(crate) fn join<F>(self: &Arc<Self>, key: &K, present: impl FnOnce() -> Option<F>) -> Joined<K, T, F> {
        let mut flights = self.part(key).lock();
        if let Some((_, ends)) = flights.get(key) {
            return Joined::Waits(ends.subscribe());
        }
        if let Some(found) = present() {
            return Joined::Found(found);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let ends = Arc::new(watch::Sender::new(None));
        flights.insert(key.clone(), (number, ends.clone()));
        Joined::Leads(Lead { board: self.clone(), key: key.clone(), number, ends, ended: false })
    }

    /// Does something that fences the flight of a key, and takes it off the board, as one.
    pub(crate) fn fence<R>(&self, key: &K, fence: impl FnOnce() -> R) -> R {
        let mut flights = self.part(key).lock();
        flights.remove(key);
        fence()
    }

    /// Takes all flights off the board whose keys are meant.
    pub(crate) fn take_off(&self, is_meant: impl Fn(&K) -> bool) {
        for part in &self.parts {
            part.lock().retain(|key, _| !is_meant(key));
        }
    }

    /// How many loads are under way.
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }
}

/// The right to lead.
pub(crate) struct Lead<K: Hash + Eq, T> {
    board: Arc<Board<K, T>>,
    key: K,
    number: u64,
    ends: Arc<Ends<T>>,
    ended: bool,
}

impl<K: Hash + Eq, T> Lead<K, T> {
    /// Ends the flight: off the board first, so that nobody joins what is over.
    pub(crate) fn land(mut self, end: End<T>) {
        self.end(end);
    }

    fn end(&mut self, end: End<T>) {
        if self.ended {
            return;
        }
        self.ended = true;
        let part = &self.board.parts[self.board.hasher.hash_one(&self.key) as usize % PARTS];
        let mut flights = part.lock();
        if flights.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            flights.remove(&self.key);
        }
        drop(flights);
        self.ends.send_replace(Some(end));
    }
}

impl<K: Hash + Eq, T> Drop for Lead<K, T> {
    fn drop(&mut self) {
        self.end(End::Lost);
    }
}
