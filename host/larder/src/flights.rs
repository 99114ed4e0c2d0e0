//! Loads in flight: one for each key, whoever asks.
//!
//! A load is either a closure that its leader runs on its own thread, or a future that belongs to the flight: whichever
//! of its passengers is polled polls it. So a leader whose task is cancelled, or simply never polled again, holds up
//! nobody, and no runtime is needed. A load that panics fails the leader, whoever polled it; the others start over.
//! A leader that nobody joins, which is the rule, costs two short locks and allocates nothing.
//!
//! An invalidation, or an insert from outside, *fences* a flight: it is taken off the board, and its passengers, who
//! asked before, get what it brings, but it is not kept. Looking at the board and keeping happen under one lock, so a
//! load that began before an invalidation never lands after it.
//!
//! Most of the time nothing is in flight, and then a writer takes no lock here: under the lock of the entry's column it
//! sees that the board is idle. That is enough: if it sees so, no load of its key has begun, since one is counted before
//! it begins; and a load that begins later sees what its source holds by then. It may still land after the writer has
//! put its own entry in, and so a load is only kept where there is no entry.
//!
//! Between a reader's miss and its boarding another load of the key may have landed. Each part of the board counts its
//! landings, and a reader that finds another number than before its miss looks again.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};

/// What a load came to: a value, or an error that all passengers share (the leader's type, checked by each).
pub(crate) type Outcome<V> = Result<V, Arc<dyn Any + Send + Sync>>;
type Load<V> = Pin<Box<dyn Future<Output = Outcome<V>> + Send>>;

/// One load.
pub(crate) struct Flight<V> {
    state: Mutex<State<V>>,
    /// Whether the load is a future.
    is_future: bool,
    /// The load, if it is one and still lasts.
    load: Mutex<Option<Load<V>>>,
    /// Woken while it was being polled: whoever polled looks again.
    woken: AtomicBool,
    /// Who still wants it. When nobody does, a future is dropped.
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
            is_future: load.is_some(),
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

/// A load on the board.
struct Seat<K, V> {
    hash: u64,
    key: K,
    number: u64,
    /// `None` while its leader, who runs a closure, is alone.
    flight: Option<Arc<Flight<V>>>,
}

/// The loads of keys whose hashes begin alike.
struct Flights<K, V> {
    seats: HashTable<Seat<K, V>>,
    /// Flights whose leaders run closures, and which were fenced: the leader finds its passengers here.
    adrift: Vec<(u64, Arc<Flight<V>>)>,
    next_number: u64,
}

/// A part of the board.
#[repr(align(64))]
struct Part<K, V> {
    flights: Mutex<Flights<K, V>>,
    /// How many are on the board: written under the lock.
    active: AtomicU64,
    /// How many landed so far: written under the lock.
    landed: AtomicU64,
}

/// All flights of a cache.
pub(crate) struct Board<K, V> {
    parts: Box<[Part<K, V>; PARTS]>,
}

const PARTS: usize = 32;

/// Keeps loads of a key, and of those that share its part of the board, out. The lock is let go of before what was taken
/// off is dropped, which is the user's key.
pub(crate) struct Fenced<'b, K, V> {
    _flights: MutexGuard<'b, Flights<K, V>>,
    _off: Option<Seat<K, V>>,
}

/// What a caller that found nothing in the cache is to do.
pub(crate) enum Boarding<'b, K, V> {
    /// Run the load and [`Lead::land`] it.
    Lead(Lead<'b, K, V>),
    /// Wait for it.
    Join(Ticket<K, V>),
}

/// The right to run a load, as a closure. Dropped without having landed, it abandons the flight: all start over.
pub(crate) struct Lead<'b, K, V> {
    part: &'b Part<K, V>,
    hash: u64,
    number: u64,
}

/// A place in a flight; leaves when dropped.
pub(crate) struct Ticket<K, V> {
    board: Arc<Board<K, V>>,
    pub(crate) flight: Arc<Flight<V>>,
    hash: u64,
    /// Of the seat.
    number: u64,
    /// Of this passenger's waker.
    waker: Option<u64>,
    /// Whether the load is this passenger's own.
    leads: bool,
}

/// Later loads do not overtake earlier stores, of which one is to the source or the board.
fn store_before_load() {
    fence(Ordering::SeqCst);
}

impl<K, V> Part<K, V> {
    /// Takes a seat off the board, if it was not fenced.
    fn take(&self, flights: &mut Flights<K, V>, hash: u64, number: u64) -> Option<Seat<K, V>> {
        // Not by the key: its comparison is the user's and may panic, and this runs in destructors.
        let seat = flights.seats.find_entry(hash, |seat| seat.number == number).ok()?;
        Some(seat.remove().0)
    }

    /// Counts what is on the board.
    fn count(&self, flights: &Flights<K, V>) {
        self.active.store(flights.seats.len() as u64, Ordering::Release);
    }
}

impl<K, V> Board<K, V> {
    pub(crate) fn new() -> Self {
        let part = |_| Part {
            flights: Mutex::new(Flights { seats: HashTable::new(), adrift: Vec::new(), next_number: 0 }),
            active: AtomicU64::new(0),
            landed: AtomicU64::new(0),
        };
        Board { parts: Box::new(std::array::from_fn(part)) }
    }

    #[inline]
    fn part(&self, hash: u64) -> &Part<K, V> {
        &self.parts[(hash >> 59) as usize]
    }

    /// Whether nothing is in flight for a key: asked under the lock of its column, a writer then need not fence.
    #[inline]
    pub(crate) fn is_idle(&self, hash: u64) -> bool {
        // That lock is such a fence already where locked instructions are.
        if cfg!(not(target_arch = "x86_64")) {
            store_before_load();
        }
        self.part(hash).active.load(Ordering::SeqCst) == 0
    }

    /// How many loads have landed, of keys like this: to be asked before looking whether the key is there.
    #[inline]
    pub(crate) fn landed(&self, hash: u64) -> u64 {
        self.part(hash).landed.load(Ordering::Acquire)
    }
}

impl<K: Eq, V> Board<K, V> {
    /// Joins the flight of a key, or begins one: `load` makes the future, if there is to be one. `present` looks once
    /// more whether the key is there, if a load may have landed since [`Self::landed`] said `landed`.
    pub(crate) fn board<T>(
        self: &Arc<Self>,
        hash: u64,
        key: &K,
        landed: Option<u64>,
        present: impl FnOnce() -> Option<T>,
        load: impl FnOnce() -> Option<Load<V>>,
    ) -> Result<T, Boarding<'_, K, V>>
    where
        K: Clone,
    {
        let part = self.part(hash);
        let mut flights = part.flights.lock();
        if let Some(seat) = flights.seats.find_mut(hash, |seat| seat.hash == hash && seat.key == *key) {
            // The leader, and this one.
            let flight = seat.flight.get_or_insert_with(|| Arc::new(Flight::new(None)));
            flight.passengers.fetch_add(1, Ordering::SeqCst);
            let (flight, number) = (flight.clone(), seat.number);
            drop(flights);
            let board = self.clone();
            return Err(Boarding::Join(Ticket { board, flight, hash, number, waker: None, leads: false }));
        }
        if landed.is_some_and(|landed| landed != part.landed.load(Ordering::Relaxed))
            && let Some(found) = present()
        {
            return Ok(found);
        }
        let flight = load().map(|load| Arc::new(Flight::new(Some(load))));
        let number = flights.next_number;
        flights.next_number += 1;
        let seat = Seat { hash, key: key.clone(), number, flight: flight.clone() };
        flights.seats.insert_unique(hash, seat, |seat| seat.hash);
        part.count(&flights);
        drop(flights);
        // A writer that saw the board idle has told the source before; the load asks it after.
        store_before_load();
        Err(match flight {
            None => Boarding::Lead(Lead { part, hash, number }),
            Some(flight) => {
                Boarding::Join(Ticket { board: self.clone(), flight, hash, number, waker: None, leads: true })
            }
        })
    }

    /// Takes the flight of a key off the board, if there is one, so that what it brings is not kept. No other begins, nor
    /// lands, until the answer is dropped.
    pub(crate) fn fence<Q>(&self, hash: u64, key: &Q) -> Fenced<'_, K, V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let part = self.part(hash);
        let mut flights = part.flights.lock();
        let off = match flights.seats.find_entry(hash, |seat| seat.hash == hash && seat.key.borrow() == key) {
            Ok(seat) => Some(seat.remove().0),
            Err(_) => None,
        };
        if let Some(seat) = &off {
            flights.set_adrift(seat);
            part.count(&flights);
        }
        Fenced { _flights: flights, _off: off }
    }

    /// Takes all flights off the board.
    pub(crate) fn fence_all(&self) {
        for part in self.parts.iter() {
            let mut flights = part.flights.lock();
            let seats = std::mem::take(&mut flights.seats);
            seats.iter().for_each(|seat| flights.set_adrift(seat));
            part.count(&flights);
            drop(flights);
            drop(seats);
        }
    }
}

impl<K, V> Flights<K, V> {
    /// A seat was fenced: if its leader runs a closure, and has passengers, it must find them.
    fn set_adrift(&mut self, seat: &Seat<K, V>) {
        if let Some(flight) = &seat.flight
            && !flight.is_future
        {
            self.adrift.push((seat.number, flight.clone()));
        }
    }

    /// The passengers of a fenced flight.
    fn take_adrift(&mut self, number: u64) -> Option<Arc<Flight<V>>> {
        let at = self.adrift.iter().position(|(n, _)| *n == number)?;
        Some(self.adrift.swap_remove(at).1)
    }
}

/// Ends a flight, also where what runs meanwhile panics.
struct EndOnDrop<'f, V>(Option<&'f Flight<V>>, Option<Ended<V>>);

impl<V> Drop for EndOnDrop<'_, V> {
    fn drop(&mut self) {
        if let (Some(flight), Some(ended)) = (self.0, self.1.take()) {
            flight.end(ended);
        }
    }
}

impl<K, V> Lead<'_, K, V> {
    /// The load is done: calls `keep` under the board's lock if the flight was not fenced, and gives the outcome, if
    /// anybody waits for it, to all.
    pub(crate) fn land(self, outcome: impl FnOnce() -> Outcome<V>, keep: impl FnOnce()) {
        let Lead { part, hash, number } = self;
        std::mem::forget(self);
        let mut flights = part.flights.lock();
        let Some(mut seat) = part.take(&mut flights, hash, number) else {
            let flight = flights.take_adrift(number);
            drop(flights);
            if let Some(flight) = flight {
                flight.end(Ended::Landed(outcome()));
            }
            return;
        };
        let flight = seat.flight.take();
        let landed = flight.as_deref().map(|_| Ended::Landed(outcome()));
        let end = EndOnDrop(flight.as_deref(), landed);
        {
            // Counted out after it was kept, also where `keep` panics, which runs code of the user's.
            let _off = Off { part, flights };
            keep();
        }
        drop(end);
        drop(seat);
    }
}

impl<K, V> Drop for Lead<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.part.flights.lock();
        let off = self.part.take(&mut flights, self.hash, self.number);
        self.part.count(&flights);
        let flight = match &off {
            Some(seat) => seat.flight.clone(),
            None => flights.take_adrift(self.number),
        };
        drop(flights);
        if let Some(flight) = flight {
            flight.end(Ended::Abandoned);
        }
    }
}

/// A flight was taken off, and lands: counts that when dropped, and lets go of the lock.
struct Off<'b, K, V> {
    part: &'b Part<K, V>,
    flights: MutexGuard<'b, Flights<K, V>>,
}

impl<K, V> Drop for Off<'_, K, V> {
    fn drop(&mut self) {
        let landed = self.part.landed.load(Ordering::Relaxed);
        self.part.landed.store(landed + 1, Ordering::Release);
        self.part.count(&self.flights);
    }
}

impl<K, V> Ticket<K, V> {
    /// The load, a future, is done.
    fn land(&self, outcome: Outcome<V>, keep: impl FnOnce(&V))
    where
        V: Clone,
    {
        let kept = outcome.as_ref().ok().cloned();
        let end = EndOnDrop(Some(&self.flight), Some(Ended::Landed(outcome)));
        let part = self.board.part(self.hash);
        let mut flights = part.flights.lock();
        let off = part.take(&mut flights, self.hash, self.number);
        if off.is_some() {
            let _off = Off { part, flights };
            if let Some(value) = &kept {
                keep(value);
            }
        } else {
            drop(flights);
        }
        drop(end);
        drop(off);
    }

    /// Takes the flight off the board if it is still there.
    fn take_off(&self, mut flights: MutexGuard<'_, Flights<K, V>>) {
        let part = self.board.part(self.hash);
        let off = part.take(&mut flights, self.hash, self.number);
        part.count(&flights);
        drop(flights);
        drop(off);
    }

    /// The load will not come to an end: all start over.
    fn abandon(&self) {
        self.take_off(self.board.part(self.hash).flights.lock());
        self.flight.end(Ended::Abandoned);
    }
}

impl<K, V> Drop for Ticket<K, V> {
    fn drop(&mut self) {
        if let Some(number) = self.waker {
            let mut state = self.flight.state.lock();
            let at = state.wakers.iter().position(|(n, _)| *n == number);
            let waker = at.map(|at| state.wakers.swap_remove(at));
            drop(state);
            // Of an executor that may drop the task with it.
            drop(waker);
        }
        if !self.flight.is_future {
            return;
        }
        // Under the board's lock nobody can come aboard while the last one leaves.
        let flights = self.board.part(self.hash).flights.lock();
        if self.flight.passengers.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.take_off(flights);
            let load = self.flight.load.lock().take();
            drop(load);
        }
    }
}

impl<K, V> Ticket<K, V>
where
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
            let number = *self.waker.get_or_insert_with(|| {
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
