//! Loads in flight: one for each key, whoever asks.
//!
//! A load is either a closure that its leader runs on its own thread, or a future that belongs to the flight: whichever
//! of the tasks among its passengers is polled polls it. So a leader whose task is cancelled, or simply never polled again,
//! holds up no other task, and no runtime is needed. A load that panics fails the leader, whoever polled it; the others start
//! over. A leader that nobody joins, which is the rule, costs two short locks and allocates nothing.
//!
//! A *thread* that joins a future waits, and never polls: the future may need the runtime of its tasks (timers, sockets), in
//! which a thread is not. If all tasks leave, it starts over, with a load of its own. If the load has been woken and no task
//! has polled it for [`PATIENCE`], they are taken not to be polled any more: the thread *overtakes* them, which fences the
//! flight, and starts over, too. A load that is only slow is waited for.
//!
//! A load that asks for its own key would wait for itself. Where that is certain, it panics: a thread that joins the closure
//! that it is running, or the future that it is polling, and a task that is polled by the load that it waits for. Where a load
//! hands the question to another thread or task it cannot be told from anybody else's.
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
use std::sync::atomic::{compiler_fence, fence};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use hashbrown::HashTable;

use crate::locks::{Held, Lock};
use crate::sync::{AtomicU64, Mutex, Ordering, Parker, ThreadId, this_thread};

/// How long a load that was woken may wait to be polled while threads wait for it. A busy runtime takes milliseconds; to be
/// wrong costs a second load of the key, and no more.
const PATIENCE: Duration = Duration::from_millis(200);

/// To time a load takes some fifteen nanoseconds, a tenth of what else it takes here. So where all loads are *brief*, which is
/// less than this many nanoseconds (policies hear of microseconds), one in a few stands for the others.
const BRIEF: u64 = 1000;
/// How many must have been brief, one after the other, before that is done, and how many each stands for then.
const BRIEF_IN_A_ROW: u32 = 64;
const STANDS_FOR: u64 = 8;

/// What a load came to: a value, or an error that all passengers share (the leader's type, checked by each).
pub(crate) type Outcome<V> = Result<V, Arc<dyn Any + Send + Sync>>;
/// A load that is a future; it says how many nanoseconds it took.
pub(crate) type Load<V> = Pin<Box<dyn Future<Output = (Outcome<V>, u64)> + Send>>;

/// One load.
pub(crate) struct Flight<V> {
    state: Mutex<State<V>>,
    /// Whether the load is a future.
    is_future: bool,
    /// The load, if it is one and still lasts. Held while it is polled.
    load: Mutex<Option<Load<V>>>,
    /// How often it was woken. Whoever polled it looks again if that was meanwhile.
    wakes: AtomicU64,
    /// The tasks that still want it, if it is a future; when none does, it is dropped.
    tasks: AtomicU64,
}

struct State<V> {
    ended: Option<Ended<V>>,
    wakers: Vec<(u64, Waker)>,
    next_ticket: u64,
    /// What the load panicked with, for its leader.
    panic: Option<Box<dyn Any + Send>>,
    /// The thread that polls the load.
    polled_by: Option<ThreadId>,
    /// How often the load had been woken when it was polled last.
    seen: u64,
}

impl<V> State<V> {
    /// Notes whom to wake when there is something new, by a number of the passenger's own.
    fn note(&mut self, number: &mut Option<u64>, waker: &Waker) {
        let number = *number.get_or_insert_with(|| {
            self.next_ticket += 1;
            self.next_ticket
        });
        match self.wakers.iter_mut().find(|(n, _)| *n == number) {
            Some((_, noted)) => noted.clone_from(waker),
            None => self.wakers.push((number, waker.clone())),
        }
    }
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
            state: Mutex::new(State {
                ended: None,
                wakers: Vec::new(),
                next_ticket: 0,
                panic: None,
                polled_by: None,
                seen: 0,
            }),
            is_future: load.is_some(),
            load: Mutex::new(load),
            wakes: AtomicU64::new(0),
            tasks: AtomicU64::new(1),
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
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.wake_all();
    }
}

/// A load on the board.
struct Seat<K, V> {
    hash: u64,
    key: K,
    number: u64,
    /// The thread that runs the load, if it is a closure.
    thread: Option<ThreadId>,
    /// `None` while its leader, who runs a closure, is alone.
    flight: Option<Arc<Flight<V>>>,
}

/// The seats of a part. Most of the time there is one at most, which needs no table.
struct Seats<K, V> {
    first: Option<Seat<K, V>>,
    rest: HashTable<Seat<K, V>>,
}

impl<K, V> Seats<K, V> {
    const NONE: Self = Seats { first: None, rest: HashTable::new() };

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.rest.is_empty()
    }

    fn iter(&self) -> impl Iterator<Item = &Seat<K, V>> {
        self.first.iter().chain(&self.rest)
    }

    #[inline]
    fn find(&mut self, hash: u64, is_it: impl Fn(&Seat<K, V>) -> bool) -> Option<&mut Seat<K, V>> {
        match &mut self.first {
            Some(first) if is_it(first) => Some(first),
            _ if self.rest.is_empty() => None,
            _ => self.rest.find_mut(hash, is_it),
        }
    }

    #[inline(always)]
    fn add(&mut self, seat: Seat<K, V>) {
        match &mut self.first {
            first @ None => *first = Some(seat),
            Some(_) => self.add_to_rest(seat),
        }
    }

    #[cold]
    #[inline(never)]
    fn add_to_rest(&mut self, seat: Seat<K, V>) {
        self.rest.insert_unique(seat.hash, seat, |seat| seat.hash);
    }

    #[inline]
    fn remove(&mut self, hash: u64, is_it: impl Fn(&Seat<K, V>) -> bool) -> Option<Seat<K, V>> {
        if self.first.as_ref().is_some_and(&is_it) {
            return self.first.take();
        }
        Some(self.rest.find_entry(hash, is_it).ok()?.remove().0)
    }
}

/// Who comes aboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A thread, which brings a closure and waits by blocking.
    Thread,
    /// A task, which brings a future and can poll one.
    Task,
}

/// Loads that came to an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LoadTally {
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    pub(crate) nanos: u64,
}

impl LoadTally {
    fn count(&mut self, nanos: u64, succeeded: bool) {
        *(if succeeded { &mut self.succeeded } else { &mut self.failed }) += 1;
        self.nanos = self.nanos.saturating_add(nanos);
    }
}

/// The loads of keys whose hashes begin alike.
struct Flights<K, V> {
    seats: Seats<K, V>,
    /// Loads that landed, fenced or not.
    loads: LoadTally,
    /// How many closures that were timed last were brief, as far as it matters; and how many were not timed since.
    brief: u32,
    untimed: u64,
    /// Flights whose leaders run closures, and which were fenced: the leader finds its passengers here.
    adrift: Vec<(u64, Arc<Flight<V>>)>,
    next_number: u64,
}

/// A part of the board.
#[repr(align(64))]
struct Part<K, V> {
    /// Busy where any are on the board.
    flights: Lock<Flights<K, V>>,
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
    _flights: Held<'b, Flights<K, V>>,
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
    /// How many loads the time of this one stands for. 0: it need not be timed.
    stands_for: u64,
}

/// A place in a flight; leaves when dropped.
pub(crate) struct Ticket<K, V> {
    board: Arc<Board<K, V>>,
    flight: Arc<Flight<V>>,
    by: By,
    hash: u64,
    /// Of the seat.
    number: u64,
    /// Of this passenger's waker.
    waker: Option<u64>,
    /// Whether the load is this passenger's own.
    leads: bool,
}

/// Later loads do not overtake earlier stores, of which one is to the source or the board. Where there are locked instructions a
/// lock does as much that was taken in between: the column's by a writer, and by a leader the board's, of whom it is seen
/// from then on.
#[inline]
fn store_before_load() {
    if cfg!(target_arch = "x86_64") { compiler_fence(Ordering::SeqCst) } else { fence(Ordering::SeqCst) }
}

/// Whether any are on the board, for who asks [without the lock](Board::is_idle).
fn say_whether_any<K, V>(flights: &mut Held<'_, Flights<K, V>>) {
    let any = !flights.seats.is_empty();
    flights.set_busy(any);
}

impl<K, V> Part<K, V> {
    /// Takes a seat off the board, if it was not fenced.
    fn take(&self, flights: &mut Flights<K, V>, hash: u64, number: u64) -> Option<Seat<K, V>> {
        // Not by the key: its comparison is the user's and may panic, and this runs in destructors.
        flights.seats.remove(hash, |seat| seat.number == number)
    }
}

impl<K, V> Board<K, V> {
    pub(crate) fn new() -> Self {
        let part = |_| Part {
            flights: Lock::new(Flights {
                seats: Seats::NONE,
                loads: LoadTally::default(),
                brief: 0,
                untimed: 0,
                adrift: Vec::new(),
                next_number: 0,
            }),
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
        store_before_load();
        self.part(hash).flights.is_idle()
    }

    /// How many loads have landed, of keys like this: to be asked before looking whether the key is there.
    #[inline]
    pub(crate) fn landed(&self, hash: u64) -> u64 {
        self.part(hash).landed.load(Ordering::Acquire)
    }

    /// Loads that came to an end so far.
    pub(crate) fn loads(&self) -> LoadTally {
        let mut all = LoadTally::default();
        for part in self.parts.iter() {
            let LoadTally { succeeded, failed, nanos } = part.flights.lock().loads;
            all.succeeded += succeeded;
            all.failed += failed;
            all.nanos = all.nanos.saturating_add(nanos);
        }
        all
    }
}

impl<K: Eq, V> Board<K, V> {
    /// Joins the flight of a key, or begins one: `load` makes the future, if it is a task that asks. `present` looks once
    /// more whether the key is there, if a load may have landed since [`Self::landed`] said `landed`.
    ///
    /// # Panics
    /// This thread is running the load of that very key.
    // Inlined, as is the rest of the way of a load that nobody joins: what its functions hand on would go through memory
    // otherwise, which took a twentieth of the time of a miss.
    #[inline(always)]
    pub(crate) fn board<T>(
        self: &Arc<Self>,
        by: By,
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
        if let Some(seat) = flights.seats.find(hash, |seat| seat.hash == hash && seat.key == *key) {
            if by == By::Thread && seat.thread.is_some_and(|thread| thread == this_thread()) {
                drop(flights);
                waits_for_itself();
            }
            let flight = seat.flight.get_or_insert_with(|| Arc::new(Flight::new(None)));
            if by == By::Task {
                flight.tasks.fetch_add(1, Ordering::SeqCst);
            }
            let (flight, number) = (flight.clone(), seat.number);
            drop(flights);
            let board = self.clone();
            return Err(Boarding::Join(Ticket { board, flight, by, hash, number, waker: None, leads: false }));
        }
        if landed.is_some_and(|landed| landed != part.landed.load(Ordering::Relaxed))
            && let Some(found) = present()
        {
            return Ok(found);
        }
        let flight = load().map(|load| Arc::new(Flight::new(Some(load))));
        let number = flights.next_number;
        flights.next_number += 1;
        let thread = flight.is_none().then(this_thread);
        let seat = Seat { hash, key: key.clone(), number, thread, flight: flight.clone() };
        flights.seats.add(seat);
        say_whether_any(&mut flights);
        let stands_for = flights.stands_for();
        drop(flights);
        // A writer that saw the board idle has told the source before; the load asks it after.
        store_before_load();
        Err(match flight {
            None => Boarding::Lead(Lead { part, hash, number, stands_for }),
            Some(flight) => {
                Boarding::Join(Ticket { board: self.clone(), flight, by, hash, number, waker: None, leads: true })
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
        let off = flights.seats.remove(hash, |seat| seat.hash == hash && seat.key.borrow() == key);
        if let Some(seat) = &off {
            flights.set_adrift(seat);
            say_whether_any(&mut flights);
        }
        Fenced { _flights: flights, _off: off }
    }

    /// Takes all flights off the board.
    pub(crate) fn fence_all(&self) {
        for part in self.parts.iter() {
            let mut flights = part.flights.lock();
            let seats = std::mem::replace(&mut flights.seats, Seats::NONE);
            seats.iter().for_each(|seat| flights.set_adrift(seat));
            say_whether_any(&mut flights);
            drop(flights);
            drop(seats);
        }
    }
}

impl<K, V> Flights<K, V> {
    /// How many loads the time of the next one is to stand for.
    #[inline]
    fn stands_for(&self) -> u64 {
        match self.brief {
            ..BRIEF_IN_A_ROW => 1,
            _ if self.untimed + 1 >= STANDS_FOR => STANDS_FOR,
            _ => 0,
        }
    }

    /// Counts the load of a closure, of which that was to be so. One that is not brief stands for itself alone, and all after it
    /// are timed.
    #[inline]
    fn count(&mut self, nanos: u64, stands_for: u64, succeeded: bool) {
        let is_brief = nanos < BRIEF;
        self.untimed = if stands_for == 0 { self.untimed + 1 } else { 0 };
        self.loads.count(if is_brief { nanos * stands_for } else { nanos }, succeeded);
        if !is_brief {
            self.brief = 0;
        } else if stands_for > 0 {
            self.brief = (self.brief + 1).min(BRIEF_IN_A_ROW);
        }
    }

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

impl<'f, V> EndOnDrop<'f, V> {
    /// All start over, unless it comes to more.
    fn of(flight: Option<&'f Flight<V>>) -> Self {
        EndOnDrop(flight, Some(Ended::Abandoned))
    }

    /// It came to this, which is asked for only if somebody waits for it, and may panic: it is a clone of the user's value.
    fn landed(&mut self, outcome: impl FnOnce() -> Outcome<V>) {
        if self.0.is_some() {
            self.1 = Some(Ended::Landed(outcome()));
        }
    }
}

impl<V> Drop for EndOnDrop<'_, V> {
    fn drop(&mut self) {
        if let (Some(flight), Some(ended)) = (self.0, self.1.take()) {
            flight.end(ended);
        }
    }
}

impl<K, V> Lead<'_, K, V> {
    /// Whether the load is to be timed.
    #[inline]
    pub(crate) fn is_timed(&self) -> bool {
        self.stands_for > 0
    }

    /// The load is done: calls `keep` under the board's lock if the flight was not fenced, and gives the outcome, if
    /// anybody waits for it, to all. `load` is how many nanoseconds it took (0 if that is [not known](Self::is_timed)) and whether
    /// it succeeded, if it is to be counted.
    #[inline(always)]
    pub(crate) fn land(self, load: Option<(u64, bool)>, outcome: impl FnOnce() -> Outcome<V>, keep: impl FnOnce()) {
        let Lead { part, hash, number, stands_for } = self;
        std::mem::forget(self);
        let mut flights = part.flights.lock();
        if let Some((nanos, succeeded)) = load {
            flights.count(nanos, stands_for, succeeded);
        }
        let Some(mut seat) = part.take(&mut flights, hash, number) else {
            let flight = flights.take_adrift(number);
            drop(flights);
            EndOnDrop::of(flight.as_deref()).landed(outcome);
            return;
        };
        let flight = seat.flight.take();
        let mut end = EndOnDrop::of(flight.as_deref());
        {
            // Counted out after it was kept, also where `outcome` or `keep` panics, which run code of the user's.
            let _off = Off { part, flights };
            end.landed(outcome);
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
        say_whether_any(&mut flights);
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
    flights: Held<'b, Flights<K, V>>,
}

impl<K, V> Drop for Off<'_, K, V> {
    fn drop(&mut self) {
        let landed = self.part.landed.load(Ordering::Relaxed);
        self.part.landed.store(landed + 1, Ordering::Release);
        say_whether_any(&mut self.flights);
    }
}

impl<K, V> Ticket<K, V> {
    /// The load, a future, is done.
    fn land(&self, outcome: &Outcome<V>, nanos: u64, keep: impl FnOnce(&V))
    where
        V: Clone,
    {
        let mut end = EndOnDrop::of(Some(&self.flight));
        // The clone is the user's. If it panics, its flight is off the board before that is passed on.
        let broken = match catch_unwind(AssertUnwindSafe(|| outcome.clone())) {
            Ok(shared) => {
                end.landed(|| shared);
                None
            }
            Err(panic) => Some(panic),
        };
        let part = self.board.part(self.hash);
        let mut flights = part.flights.lock();
        flights.loads.count(nanos, outcome.is_ok());
        let off = part.take(&mut flights, self.hash, self.number);
        if off.is_some() {
            let _off = Off { part, flights };
            if let (None, Ok(value)) = (&broken, outcome) {
                keep(value);
            }
        } else {
            drop(flights);
        }
        if let Some(panic) = broken {
            resume_unwind(panic);
        }
        drop(end);
        drop(off);
    }

    /// Takes the flight off the board if it is still there.
    fn take_off(&self, mut flights: Held<'_, Flights<K, V>>) {
        let part = self.board.part(self.hash);
        let off = part.take(&mut flights, self.hash, self.number);
        say_whether_any(&mut flights);
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
        if !self.flight.is_future || self.by == By::Thread {
            return;
        }
        // Under the board's lock nobody can come aboard while the last one leaves.
        let flights = self.board.part(self.hash).flights.lock();
        if self.flight.tasks.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.take_off(flights);
            let load = self.flight.load.lock().take();
            // Threads that wait start over, also where dropping the load panics.
            let _end = EndOnDrop(Some(&self.flight), Some(Ended::Abandoned));
            drop(load);
        }
    }
}

/// A load asked for what it is to bring.
#[cold]
fn waits_for_itself() -> ! {
    panic!(
        "a load asked the cache for its own key, and would have waited for itself for ever: let the load bring the value \
         from its source, or ask for another key"
    )
}

impl<K, V> Ticket<K, V>
where
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the end, as a task, and polls the load if it is a future. `keep` is as for [`Lead::land`], and is told how
    /// many nanoseconds the load took.
    ///
    /// # Panics
    /// The load's own panic, if it is the leader's; or it is polled by the very load that it waits for.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>, keep: &mut dyn FnMut(&V, u64)) -> Poll<Ended<V>> {
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
            state.note(&mut self.waker, cx.waker());
        }
        // If it is taken, somebody polls it right now, and looks at `wakes` after that.
        let Some(mut load) = self.flight.load.try_lock() else {
            let is_within = self.flight.state.lock().polled_by == Some(this_thread());
            if is_within {
                waits_for_itself();
            }
            return Poll::Pending;
        };
        let Some(future) = load.as_mut() else { return Poll::Pending };
        let seen = self.flight.wakes.load(Ordering::SeqCst);
        {
            let mut state = self.flight.state.lock();
            (state.polled_by, state.seen) = (Some(this_thread()), seen);
        }
        let waker = Waker::from(self.flight.clone());
        // The load is dropped after a panic, and nobody sees what it left behind.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        self.flight.state.lock().polled_by = None;
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
        if let Poll::Ready((outcome, nanos)) = polled {
            let done = load.take();
            drop(load);
            self.land(&outcome, nanos, |value| keep(value, nanos));
            drop(done);
            return Poll::Ready(Ended::Landed(outcome));
        }
        drop(load);
        // Woken while we held the load: another passenger may have looked in vain, and must look again.
        if self.flight.wakes.load(Ordering::SeqCst) != seen {
            self.flight.wake_all();
        }
        Poll::Pending
    }

    /// Waits for the end, as a thread.
    ///
    /// # Panics
    /// This thread is polling the very load that it would wait for.
    pub(crate) fn wait(mut self) -> Ended<V> {
        let parker = Parker::new();
        let waker = Waker::from(parker.clone());
        let mut over = None;
        loop {
            let (unseen, is_within) = {
                let mut state = self.flight.state.lock();
                if let Some(ended) = &state.ended {
                    return ended.clone();
                }
                state.note(&mut self.waker, &waker);
                let is_unseen = state.polled_by.is_none() && self.flight.wakes.load(Ordering::SeqCst) != state.seen;
                (is_unseen.then_some(state.seen), state.polled_by == Some(this_thread()))
            };
            if is_within {
                waits_for_itself();
            }
            match unseen {
                // It is polled right now, or waits for something itself.
                None => {
                    over = None;
                    parker.park();
                }
                // Woken, and not polled for all that time.
                Some(seen) if over == Some(seen) => {
                    self.take_off(self.board.part(self.hash).flights.lock());
                    return Ended::Abandoned;
                }
                Some(seen) => over = (!parker.park_for(PATIENCE)).then_some(seen),
            }
        }
    }
}

/// Flights over one key, by the calls that a cache makes: on real threads, and as shuttle interleaves them.
#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use super::*;
    use crate::sync::{interleave, spawn};

    const KEY: u64 = 7;
    const HASH: u64 = 7 << 59;

    /// A cache of one key, and its source.
    struct World {
        board: Arc<Board<u64, u64>>,
        entry: Mutex<Option<u64>>,
        source: AtomicU64,
        /// What the source had when an invalidation that has returned began.
        acknowledged: AtomicU64,
        loads: AtomicU64,
        bell: Mutex<(bool, Vec<Waker>)>,
    }

    /// What becomes of a load.
    #[derive(Clone, Copy, PartialEq)]
    enum End {
        Well,
        Panics,
        Fails,
    }

    impl World {
        fn new() -> Arc<World> {
            Arc::new(World {
                board: Arc::new(Board::new()),
                entry: Mutex::new(None),
                source: AtomicU64::new(1),
                acknowledged: AtomicU64::new(0),
                loads: AtomicU64::new(0),
                bell: Mutex::new((false, Vec::new())),
            })
        }

        fn present(&self) -> Option<u64> {
            *self.entry.lock()
        }

        fn keep(&self, value: u64) {
            self.entry.lock().get_or_insert(value);
        }

        /// What the source has; or a panic, without the hook that prints it.
        fn load(&self, end: End) -> Outcome<u64> {
            self.loads.fetch_add(1, Ordering::SeqCst);
            let value = self.source.load(Ordering::SeqCst);
            match end {
                End::Well => Ok(value),
                End::Panics => resume_unwind(Box::new("the load's own")),
                End::Fails => Err(Arc::new(value)),
            }
        }

        /// As `Cache::try_get_with`.
        fn read(&self, end: End) -> Outcome<u64> {
            let mut landed = self.board.landed(HASH);
            if let Some(value) = self.present() {
                return Ok(value);
            }
            loop {
                match self.board.board(By::Thread, HASH, &KEY, Some(landed), || self.present(), || None) {
                    Ok(value) => return Ok(value),
                    Err(Boarding::Lead(lead)) => {
                        let loaded = self.load(end);
                        let keep = || loaded.iter().for_each(|value| self.keep(*value));
                        lead.land(Some((1, loaded.is_ok())), || loaded.clone(), keep);
                        return loaded;
                    }
                    Err(Boarding::Join(ticket)) => {
                        if let Ended::Landed(outcome) = ticket.wait() {
                            return outcome;
                        }
                        landed = u64::MAX;
                    }
                }
            }
        }

        /// As `Cache::try_get_with_async`. The load is not ready at once, and is woken by itself or by the bell.
        async fn read_async(self: Arc<Self>, end: End, by_bell: bool) -> Outcome<u64> {
            let mut landed = self.board.landed(HASH);
            if let Some(value) = self.present() {
                return Ok(value);
            }
            let mut first = true;
            loop {
                let make = || {
                    let world = self.clone();
                    assert!(std::mem::take(&mut first), "a load is begun once");
                    let load = async move {
                        let mut polled = false;
                        poll_fn(|cx| {
                            let mut bell = world.bell.lock();
                            if bell.0 || polled && !by_bell {
                                return Poll::Ready(());
                            }
                            polled = true;
                            if by_bell {
                                bell.1.push(cx.waker().clone());
                            } else {
                                drop(bell);
                                cx.waker().wake_by_ref();
                            }
                            Poll::Pending
                        })
                        .await;
                        (world.load(end), 1u64)
                    };
                    Some(Box::pin(load) as Load<u64>)
                };
                let mut ticket = match self.board.board(By::Task, HASH, &KEY, Some(landed), || self.present(), make) {
                    Ok(value) => return Ok(value),
                    Err(Boarding::Join(ticket)) => ticket,
                    Err(Boarding::Lead(_)) => unreachable!("it made a future"),
                };
                if let Ended::Landed(outcome) =
                    poll_fn(|cx| ticket.poll_end(cx, &mut |value, _| self.keep(*value))).await
                {
                    return outcome;
                }
                landed = u64::MAX;
            }
        }

        fn ring(&self) {
            let mut bell = self.bell.lock();
            bell.0 = true;
            let wakers = std::mem::take(&mut bell.1);
            drop(bell);
            wakers.into_iter().for_each(Waker::wake);
        }

        /// A write of the source, by the one who writes, and an invalidation as `Cache::invalidate` makes it.
        fn write(&self) {
            let written = self.source.fetch_add(1, Ordering::SeqCst) + 1;
            let taken = {
                let mut entry = self.entry.lock();
                self.board.is_idle(HASH).then(|| entry.take())
            };
            if taken.is_none() {
                let _fenced = self.board.fence(HASH, &KEY);
                self.entry.lock().take();
            }
            assert!(self.present().is_none_or(|value| value >= written), "an old value after an invalidation");
            self.acknowledged.store(written, Ordering::SeqCst);
        }

        /// When all have gone.
        fn check(&self) {
            assert!(self.present().is_none_or(|value| value >= self.acknowledged.load(Ordering::SeqCst)));
            let part = self.board.part(HASH);
            assert!(part.flights.is_idle(), "nobody is left on the board");
            let flights = part.flights.lock();
            assert!(flights.seats.is_empty() && flights.adrift.is_empty());
        }
    }

    /// Polls to the end; or leaves after so many polls.
    fn run<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
        let parker = Parker::new();
        let waker = Waker::from(parker.clone());
        let mut future = pin!(future);
        for left in (0..polls).rev() {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Some(value);
            }
            if left > 0 {
                parker.park();
            }
        }
        None
    }

    const ALL: usize = usize::MAX;

    fn value(outcome: Outcome<u64>) -> u64 {
        outcome.unwrap_or_else(|_| unreachable!("no load fails"))
    }

    #[test]
    fn concurrent_callers_have_one_load() {
        interleave(200, |seed| {
            let world = World::new();
            let callers: Vec<_> = (0..3)
                .map(|_| {
                    let world = world.clone();
                    spawn(move || match seed % 3 {
                        0 => world.read(End::Well),
                        by_bell => run(world.read_async(End::Well, by_bell == 1), ALL).expect("it stays"),
                    })
                })
                .collect();
            world.ring();
            for caller in callers {
                assert_eq!(value(caller.join().expect("it ends well")), 1);
            }
            assert_eq!(world.loads.load(Ordering::SeqCst), 1);
            assert_eq!(world.present(), Some(1));
            world.check();
        });
    }

    /// Leaders that panic, fail, or leave: whoever waits has a value, or the error of a load that was not its own.
    #[test]
    fn a_leader_that_does_not_land_hands_over() {
        interleave(400, |seed| {
            let world = World::new();
            let by_bell = seed % 2 == 0;
            let leader = {
                let world = world.clone();
                spawn(move || match seed / 2 % 6 {
                    0 => drop(catch_unwind(AssertUnwindSafe(|| world.read(End::Panics)))),
                    1 => drop(catch_unwind(AssertUnwindSafe(|| run(world.read_async(End::Panics, by_bell), ALL)))),
                    2 => drop(world.read(End::Fails)),
                    3 => drop(run(world.read_async(End::Fails, by_bell), ALL)),
                    polls => drop(run(world.read_async(End::Well, by_bell), polls as usize - 3)),
                })
            };
            let others: Vec<_> = (0..2)
                .map(|at| {
                    let world = world.clone();
                    spawn(move || match (at + seed / 12) % 2 {
                        0 => world.read(End::Well),
                        _ => run(world.read_async(End::Well, by_bell), ALL).expect("it stays"),
                    })
                })
                .collect();
            world.ring();
            leader.join().expect("its panic was caught");
            for other in others {
                let outcome = other.join().expect("the panic of a load is its leader's");
                assert!(outcome.map_or_else(|_| matches!(seed / 2 % 6, 2 | 3), |value| value == 1));
            }
            world.check();
        });
    }

    /// A thread that waits for a task which is not polled any more, though its load could go on, loads for itself; the task
    /// has its own load's value if it is polled after all, and that is not kept.
    #[test]
    fn a_thread_overtakes_tasks_that_nobody_polls() {
        interleave(4, |_| {
            let world = World::new();
            let mut leader = pin!(world.clone().read_async(End::Well, true));
            assert!(leader.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let waiting = {
                let world = world.clone();
                spawn(move || world.read(End::Well))
            };
            world.ring();
            assert_eq!(value(waiting.join().expect("it does not wait for ever")), 1);
            assert_eq!(world.present(), Some(1));
            world.write();
            let Some(late) = run(leader, ALL) else { unreachable!("it is polled to its end") };
            assert_eq!(value(late), 2, "it asked before, and loads after");
            assert_eq!(world.present(), None, "what was overtaken is not kept");
            world.check();
        });
    }

    /// Readers of every kind, and a writer who invalidates: nobody who asks after an invalidation reads what was before it, and
    /// nothing of before is kept.
    #[test]
    fn an_invalidation_during_a_load_keeps_the_old_value_out() {
        interleave(400, |seed| {
            let world = World::new();
            let readers: Vec<_> = (0..2)
                .map(|at| {
                    let world = world.clone();
                    spawn(move || {
                        for round in 0..2 {
                            let before = world.acknowledged.load(Ordering::SeqCst);
                            let kind = (seed >> (2 * at + round)) & 3;
                            let read = match kind {
                                0 | 1 => Some(world.read(End::Well)),
                                2 => run(world.clone().read_async(End::Well, false), ALL),
                                _ => run(world.clone().read_async(End::Well, false), 1),
                            };
                            assert!(read.is_none_or(|read| value(read) >= before), "{kind}");
                        }
                    })
                })
                .collect();
            let writer = {
                let world = world.clone();
                spawn(move || (0..2).for_each(|_| world.write()))
            };
            readers.into_iter().for_each(|reader| reader.join().expect("it reads"));
            writer.join().expect("it writes");
            world.check();
        });
    }

    /// Of loads that are all brief one in a few is timed, and stands for the others; one that is not has all timed again.
    #[cfg(not(shuttle))]
    #[test]
    fn brief_loads_are_timed_now_and_then() {
        let world = World::new();
        // How many of so many loads are timed, each of which takes so long.
        let load = |loads: u64, nanos: u64| {
            let mut timed = 0;
            for _ in 0..loads {
                let lead = || match world.board.board(By::Thread, HASH, &KEY, None, || None::<u64>, || None) {
                    Err(Boarding::Lead(lead)) => lead,
                    _ => unreachable!("nobody else is here"),
                };
                // What is no load, as an update, takes no load's turn.
                lead().land(None, || Ok(1), || {});
                let lead = lead();
                timed += u64::from(lead.is_timed());
                let nanos = if lead.is_timed() { nanos } else { 0 };
                lead.land(Some((nanos, true)), || Ok(1), || {});
            }
            timed
        };
        let row = u64::from(BRIEF_IN_A_ROW);
        assert_eq!(load(row, BRIEF - 1), row, "until it is known that they are brief");
        let before = world.board.loads();
        assert_eq!((before.succeeded, before.nanos), (row, row * (BRIEF - 1)));
        assert_eq!(load(10 * STANDS_FOR, 50), 10);
        let after = world.board.loads();
        assert_eq!(after.succeeded - before.succeeded, 10 * STANDS_FOR, "each is counted");
        assert_eq!(after.nanos - before.nanos, 10 * STANDS_FOR * 50, "and those that were timed stand for the others");
        // Of loads that take longer all of a sudden the first that is timed stands for itself, and all after it are timed.
        let timed = load(STANDS_FOR + row, BRIEF);
        assert!((row + 1..=row + STANDS_FOR).contains(&timed), "{timed}");
        assert_eq!(world.board.loads().nanos - after.nanos, timed * BRIEF);
        assert_eq!(load(row, 50), row, "they must prove brief again");
    }

    /// A load that asks for its own key, on the thread that runs or polls it.
    #[cfg(not(shuttle))]
    #[test]
    fn a_load_that_asks_for_its_own_key_is_told() {
        let is_told = |asks: &dyn Fn(&Arc<World>)| {
            let world = World::new();
            let panic = catch_unwind(AssertUnwindSafe(|| asks(&world))).expect_err("it would wait for ever");
            let text = panic.downcast_ref::<&str>().expect("a text");
            assert!(text.contains("its own key"), "{text}");
            world.check();
        };
        is_told(&|world| match world.board.board(By::Thread, HASH, &KEY, None, || None::<u64>, || None) {
            Err(Boarding::Lead(_lead)) => drop(world.read(End::Well)),
            _ => unreachable!("it leads"),
        });
        for by_task in [true, false] {
            is_told(&|world| {
                let inner = world.clone();
                let load: Load<u64> = Box::pin(async move {
                    let read = if by_task { inner.read_async(End::Well, false).await } else { inner.read(End::Well) };
                    (read, 1)
                });
                let mut load = Some(load);
                let boarding = world.board.board(By::Task, HASH, &KEY, None, || None::<u64>, || load.take());
                let Err(Boarding::Join(mut ticket)) = boarding else { unreachable!("it leads") };
                drop(run(poll_fn(|cx| ticket.poll_end(cx, &mut |_, _| {})), ALL));
            });
        }
    }
}
