//! Loads in flight: one for each key, whoever asks.
//!
//! A load is either a closure that its leader runs on its own thread, or a future that belongs to the flight: whichever
//! of its passengers is polled polls it. So a leader whose task is cancelled, or simply never polled again, holds up
//! nobody, and no runtime is needed. A load that panics fails the leader, whoever polled it; the others start over.
//!
//! An invalidation, or an insert from outside, *fences* a flight: it is taken off the board, and its passengers, who
//! asked before, get what it brings, but it is not kept. Looking at the board and keeping happen under one lock, so a
//! load that began before an invalidation never lands after it.
//!
//! Most of the time nothing is in flight, and then a writer takes no lock here: under the lock of the entry's column it
//! sees that the board is idle. A flight is counted before its leader looks at the entry, and until what it brought is
//! kept, so whoever boards after that glance finds what the writer left.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;

/// What a load came to: a value, or an error that all passengers share (the leader's type, checked by each).
pub(crate) type Outcome<V> = Result<V, Arc<dyn Any + Send + Sync>>;
type Load<V> = Pin<Box<dyn Future<Output = Outcome<V>> + Send>>;

/// One load.
pub(crate) struct Flight<V> {
    state: Mutex<State<V>>,
    /// The load, where it is a future.
    load: Mutex<Option<Load<V>>>,
    /// Woken while it was being polled: whoever polled looks again.
    woken: AtomicBool,
    /// Who still wants it. When nobody does, the load is dropped.
    passengers: AtomicUsize,
}

struct State<V> {
    ended: Option<Ended<V>>,
    wakers: Vec<(u64, Waker)>,
    next_ticket: u64,
    /// What the load panicked with, for its leader.
    panic: Option<Box<dyn Any + Send>>,
}

/// How a flight ended.
#[derive(Clone)]
pub(crate) enum Ended<V> {
    Landed(Outcome<V>),
    /// The leader panicked or gave up: ask again.
    Abandoned,
}

impl<V> Flight<V> {
    fn new(load: Option<Load<V>>) -> Self {
        Flight {
            state: Mutex::new(State { ended: None, wakers: Vec::new(), next_ticket: 0, panic: None }),
            load: Mutex::new(load),
            woken: AtomicBool::new(false),
            passengers: AtomicUsize::new(1),
        }
    }

    fn end(&self, how: Ended<V>) {
        let wakers = {
            let mut state = self.state.lock();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(how);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn wake_all(&self) {
        let wakers: Vec<Waker> = self.state.lock().wakers.iter().map(|(_, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// The waker that a load gets: it wakes every passenger.
impl<V: Send + Sync + 'static> Wake for Flight<V> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.wake_all();
    }
}

/// One part of the board: which keys are being loaded.
type Part<K, V> = HashMap<K, Arc<Flight<V>>, foldhash::fast::RandomState>;

/// All flights of a cache.
pub(crate) struct Board<K, V> {
    parts: Box<[Mutex<Part<K, V>>]>,
    /// How many are in flight, so that an insert need not look.
    active: AtomicU64,
}

/// Keeps loads of a key, and of those that share its part of the board, out. The lock is let go of before what was taken
/// off is dropped, which is the user's key.
pub(crate) struct Fenced<'b, K, V> {
    _flights: MutexGuard<'b, Part<K, V>>,
    _off: Option<(K, Arc<Flight<V>>)>,
}

/// What a caller that found nothing in the cache is to do.
pub(crate) enum Boarding<K: std::hash::Hash + Eq, V> {
    /// Run the load and [`Ticket::land`] it.
    Lead(Ticket<K, V>),
    /// Wait for it.
    Join(Ticket<K, V>),
}

/// A place in a flight; leaves when dropped.
pub(crate) struct Ticket<K: std::hash::Hash + Eq, V> {
    board: Arc<Board<K, V>>,
    pub(crate) flight: Arc<Flight<V>>,
    part: usize,
    number: Option<u64>,
    /// Whether the load is this passenger's own.
    leads: bool,
}

impl<K: std::hash::Hash + Eq, V> Board<K, V> {
    pub(crate) fn new() -> Self {
        Board { parts: (0..32).map(|_| Mutex::default()).collect(), active: AtomicU64::new(0) }
    }

    fn part(hash: u64) -> usize {
        (hash >> 59) as usize
    }

    /// Whether nothing is in flight: asked under the lock of an entry's column, a writer then need not fence.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(Ordering::SeqCst) == 0
    }

    /// Joins the flight of a key, or starts one: `present` looks once more whether the key is there, under the lock
    /// under which loads land, and `load` makes the future, if there is to be one.
    pub(crate) fn board<T>(
        self: &Arc<Self>,
        hash: u64,
        key: K,
        present: impl FnOnce() -> Option<T>,
        load: impl FnOnce() -> Option<Load<V>>,
    ) -> Result<T, Boarding<K, V>> {
        let part = Self::part(hash);
        let mut flights = self.parts[part].lock();
        if let Some(flight) = flights.get(&key) {
            flight.passengers.fetch_add(1, Ordering::SeqCst);
            let flight = flight.clone();
            return Err(Boarding::Join(Ticket { board: self.clone(), flight, part, number: None, leads: false }));
        }
        // Counted before the look: see the module's documentation.
        self.active.fetch_add(1, Ordering::SeqCst);
        let uncount = Uncount(&self.active);
        if let Some(found) = present() {
            return Ok(found);
        }
        let flight = Arc::new(Flight::new(load()));
        flights.insert(key, flight.clone());
        std::mem::forget(uncount);
        Err(Boarding::Lead(Ticket { board: self.clone(), flight, part, number: None, leads: true }))
    }

    /// Takes the flight of a key off the board, if there is one, so that what it brings is not kept. No other begins, nor
    /// lands, until the answer is dropped.
    pub(crate) fn fence<Q>(&self, hash: u64, key: &Q) -> Fenced<'_, K, V>
    where
        K: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ?Sized,
    {
        let mut flights = self.parts[Self::part(hash)].lock();
        let off = flights.remove_entry(key);
        if off.is_some() {
            self.active.fetch_sub(1, Ordering::SeqCst);
        }
        Fenced { _flights: flights, _off: off }
    }

    /// Takes all flights off the board.
    pub(crate) fn fence_all(&self) {
        for part in &self.parts {
            let fenced = {
                let mut part = part.lock();
                self.active.fetch_sub(part.len() as u64, Ordering::SeqCst);
                std::mem::take(&mut *part)
            };
            drop(fenced);
        }
    }
}

impl<K: std::hash::Hash + Eq, V> Ticket<K, V> {
    /// The leader's load is done: calls `keep` with the value if the flight was not fenced, under the board's lock, and
    /// gives the outcome to all.
    pub(crate) fn land(&self, outcome: Outcome<V>, keep: impl FnOnce(&V))
    where
        V: Clone,
    {
        /// Ends the flight, also where `keep` panics: it runs code of the user's.
        struct EndOnDrop<'f, V>(&'f Flight<V>, Option<Outcome<V>>);
        impl<V> Drop for EndOnDrop<'_, V> {
            fn drop(&mut self) {
                if let Some(outcome) = self.1.take() {
                    self.0.end(Ended::Landed(outcome));
                }
            }
        }
        let kept = outcome.as_ref().ok().cloned();
        let _end = EndOnDrop(&self.flight, Some(outcome));
        let mut flights = self.board.parts[self.part].lock();
        if let Some(off) = self.take_off(&mut flights) {
            if let Some(value) = &kept {
                keep(value);
            }
            drop(flights);
            drop(off);
        }
    }

    /// Takes this flight off the board if it is still there. It counts as active until the answer is dropped.
    fn take_off(&self, flights: &mut MutexGuard<'_, Part<K, V>>) -> Option<Off<'_, K>> {
        // Not by the key: its comparison is the user's and may panic, and this runs in destructors. There are few.
        let (key, _) = flights.extract_if(|_, flight| Arc::ptr_eq(flight, &self.flight)).next()?;
        Some(Off { _key: key, _uncount: Uncount(&self.board.active) })
    }

    /// The load will not come to an end: all start over.
    pub(crate) fn abandon(&self) {
        drop(self.take_off(&mut self.board.parts[self.part].lock()));
        self.flight.end(Ended::Abandoned);
    }
}

/// A flight that was taken off the board.
struct Off<'b, K> {
    _key: K,
    _uncount: Uncount<'b>,
}

/// Takes one from a counter when dropped.
struct Uncount<'a>(&'a AtomicU64);

impl Drop for Uncount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<K: std::hash::Hash + Eq, V> Drop for Ticket<K, V> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let mut state = self.flight.state.lock();
            let at = state.wakers.iter().position(|(n, _)| *n == number);
            let waker = at.map(|at| state.wakers.swap_remove(at));
            drop(state);
            // Of an executor that may drop the task with it.
            drop(waker);
        }
        // Under the board's lock nobody can come aboard while the last one leaves.
        let mut flights = self.board.parts[self.part].lock();
        if self.flight.passengers.fetch_sub(1, Ordering::SeqCst) == 1 {
            let off = self.take_off(&mut flights);
            drop(flights);
            drop(off);
            let load = self.flight.load.lock().take();
            drop(load);
        }
    }
}

impl<K, V> Ticket<K, V>
where
    K: std::hash::Hash + Eq,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the end, and polls the load if it is a future. `keep` is as for [`Ticket::land`].
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>, keep: &mut dyn FnMut(&V)) -> Poll<Ended<V>> {
        {
            let mut state = self.flight.state.lock();
            if let Some(ended) = &state.ended {
                let ended = ended.clone();
                if self.leads
                    && let Some(panic) = state.panic.take()
                {
                    drop(state);
                    resume_unwind(panic);
                }
                return Poll::Ready(ended);
            }
            let number = *self.number.get_or_insert_with(|| {
                state.next_ticket += 1;
                state.next_ticket
            });
            match state.wakers.iter_mut().find(|(n, _)| *n == number) {
                Some((_, waker)) => waker.clone_from(cx.waker()),
                None => state.wakers.push((number, cx.waker().clone())),
            }
        }
        // If it is taken, somebody polls it right now, and looks at `woken` after that.
        let Some(mut load) = self.flight.load.try_lock() else { return Poll::Pending };
        let Some(future) = load.as_mut() else { return Poll::Pending };
        self.flight.woken.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.flight.clone());
        // The load is dropped after a panic, and nobody sees what it left behind.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        let polled = match polled {
            Ok(polled) => polled,
            Err(panic) => {
                let broken = load.take();
                drop(load);
                if self.leads {
                    self.abandon();
                    resume_unwind(panic);
                }
                self.flight.state.lock().panic = Some(panic);
                self.abandon();
                drop(broken);
                return Poll::Ready(Ended::Abandoned);
            }
        };
        if let Poll::Ready(outcome) = polled {
            let done = load.take();
            drop(load);
            self.land(outcome.clone(), |value| keep(value));
            drop(done);
            return Poll::Ready(Ended::Landed(outcome));
        }
        drop(load);
        // Woken while we held the load: another passenger may have looked in vain, and must look again.
        if self.flight.woken.load(Ordering::SeqCst) {
            self.flight.wake_all();
        }
        Poll::Pending
    }

    /// As [`Self::poll_end`], on this thread.
    pub(crate) fn wait(&mut self, keep: &mut dyn FnMut(&V)) -> Ended<V> {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            match self.poll_end(&mut cx, keep) {
                Poll::Ready(ended) => return ended,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

/// Abandons a flight that is led by a closure unless it landed.
pub(crate) struct LeadGuard<K: std::hash::Hash + Eq, V>(Option<Ticket<K, V>>);

impl<K: std::hash::Hash + Eq, V> LeadGuard<K, V> {
    pub(crate) fn new(ticket: Ticket<K, V>) -> Self {
        LeadGuard(Some(ticket))
    }

    pub(crate) fn land(mut self, outcome: Outcome<V>, keep: impl FnOnce(&V))
    where
        V: Clone,
    {
        if let Some(ticket) = self.0.take() {
            ticket.land(outcome, keep);
        }
    }
}

impl<K: std::hash::Hash + Eq, V> Drop for LeadGuard<K, V> {
    fn drop(&mut self) {
        if let Some(ticket) = &self.0 {
            ticket.abandon();
        }
    }
}
