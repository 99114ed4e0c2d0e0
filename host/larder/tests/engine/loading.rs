//! One load for all who ask, whatever happens to it; and nothing that began before a write lands after it.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use crate::common::{Census, Counted, eventually};
use larder::{Cache, Clock, Policy};

fn cache<V: Clone + Send + Sync + 'static>() -> Cache<u64, V> {
    Cache::builder().max_capacity(100).policy(Policy::builtin("lru").unwrap()).build().unwrap()
}

/// Closed until it is opened; for threads and for tasks.
#[derive(Clone, Default)]
#[allow(clippy::type_complexity)] // Whether it is open, and who waits.
struct Gate(Arc<(Mutex<(bool, Vec<Waker>)>, Condvar)>);

impl Gate {
    fn open(&self) {
        let mut state = self.0.0.lock().unwrap();
        state.0 = true;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        self.0.1.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn pass(&self) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |state| !state.0).unwrap());
    }

    async fn passed(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.0.lock().unwrap();
            if state.0 {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

struct Flag(AtomicUsize);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A task that is polled by hand.
struct Task<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
    woken: Arc<Flag>,
}

impl<'a, T> Task<'a, T> {
    fn new(future: impl Future<Output = T> + 'a) -> Self {
        Task { future: Box::pin(future), woken: Arc::new(Flag(AtomicUsize::new(0))) }
    }

    fn poll(&mut self) -> Poll<T> {
        self.future.as_mut().poll(&mut Context::from_waker(&Waker::from(self.woken.clone())))
    }

    fn times_woken(&self) -> usize {
        self.woken.0.load(Ordering::SeqCst)
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Threads and tasks of two runtimes ask for the same key at the same time.
#[test]
fn one_load_for_all_who_ask() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    for round in 0..200 {
        let cache = cache::<u64>();
        let loads = Arc::new(AtomicUsize::new(0));
        let start = Arc::new(Barrier::new(5));
        let load = move |loads: &AtomicUsize| loads.fetch_add(1, Ordering::SeqCst) as u64 + 1000 + round;
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let (cache, loads) = (cache.clone(), loads.clone());
                runtime.spawn(async move {
                    cache
                        .get_with_async(7, async move {
                            tokio::task::yield_now().await;
                            load(&loads)
                        })
                        .await
                })
            })
            .collect();
        let values: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..5)
                .map(|at| {
                    let (cache, loads, start) = (cache.clone(), loads.clone(), start.clone());
                    scope.spawn(move || {
                        start.wait();
                        match at % 2 {
                            0 => cache.get_with(7, || load(&loads)),
                            _ => block_on(cache.get_with_async(7, async move { load(&loads) })),
                        }
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let others: Vec<u64> = tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
        assert!(values.iter().chain(&others).all(|&value| value == 1000 + round), "{values:?} {others:?}");
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(cache.stats().loads, 1);
    }
}

#[test]
fn a_load_goes_on_without_its_leader() {
    // Cancelled, and never polled again.
    for cancelled in [true, false] {
        let (cache, gate) = (cache::<u64>(), Gate::default());
        let loads = Arc::new(AtomicUsize::new(0));
        let load = || {
            let (gate, loads) = (gate.clone(), loads.clone());
            async move {
                loads.fetch_add(1, Ordering::SeqCst);
                gate.passed().await;
                5
            }
        };
        let mut leader = Some(Task::new(cache.get_with_async(1, load())));
        assert!(leader.as_mut().unwrap().poll().is_pending());
        let mut follower = Task::new(cache.get_with_async(1, load()));
        assert!(follower.poll().is_pending());
        if cancelled {
            leader = None;
        }
        gate.open();
        assert!(follower.times_woken() > 0, "whoever waits is woken");
        assert_eq!(follower.poll(), Poll::Ready(5));
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(cache.get(&1), Some(5));
        // Late, but not lost.
        assert!(leader.is_none_or(|mut leader| leader.poll() == Poll::Ready(5)));
    }
}

/// Nothing but its own task polls it: a thread that waits is not within the runtime that it needs.
#[test]
fn a_thread_waits_for_a_load_of_a_runtime() {
    let cache = cache::<u64>();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let (began, begun) = mpsc::channel();
    let leader = runtime.spawn({
        let cache = cache.clone();
        async move {
            let load = async move {
                began.send(()).unwrap();
                for _ in 0..10 {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                5
            };
            cache.get_with_async(1, load).await
        }
    });
    begun.recv().unwrap();
    assert_eq!(cache.get_with(1, || unreachable!("it is being loaded")), 5);
    assert_eq!(cache.entry(1).or_insert_with(|| unreachable!("it is there")).into_value(), 5);
    assert_eq!(runtime.block_on(leader).unwrap(), 5);
}

/// The tasks of a load are gone, or will not be polled any more: a thread that waits for them loads for itself.
#[test]
fn a_thread_that_waits_for_nobody_loads_for_itself() {
    for dropped in [true, false] {
        let (cache, gate) = (cache::<u64>(), Gate::default());
        let mut leader = Some(Task::new(cache.get_with_async(1, {
            let gate = gate.clone();
            async move {
                gate.passed().await;
                5
            }
        })));
        assert!(leader.as_mut().unwrap().poll().is_pending());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cache.get_with(1, || 6));
            if dropped {
                leader = None;
            } else {
                // From now on it could go on.
                gate.open();
            }
            assert_eq!(waiting.join().unwrap(), 6);
        });
        assert_eq!(cache.get(&1), Some(6));
        assert!(leader.is_none_or(|mut leader| leader.poll() == Poll::Ready(5)), "late, and not lost");
        assert_eq!(cache.get(&1), Some(6), "nor kept");
    }
}

/// It would wait for itself for ever.
#[test]
fn a_load_that_asks_for_its_own_key_is_told() {
    let told = |ask: &dyn Fn(&Cache<u64, u64>) -> u64| {
        let cache = cache::<u64>();
        let panic = catch_unwind(AssertUnwindSafe(|| ask(&cache))).expect_err("it cannot have a value");
        let text = panic.downcast_ref::<&str>().expect("a text");
        assert!(text.contains("asked the cache for its own key"), "{text}");
        assert_eq!(cache.get_with(1, || 9), 9, "and the next asks anew");
    };
    told(&|cache| cache.get_with(1, || cache.get_with(1, || 5)));
    told(&|cache| cache.get_with(1, || cache.get_with(2, || cache.get_with(1, || 5))));
    told(&|cache| cache.entry(1).and_upsert_with(|_| cache.get_with(1, || 5)).into_value());
    told(&|cache| {
        let inner = cache.clone();
        block_on(cache.get_with_async(1, async move { inner.get_with_async(1, async { 5 }).await }))
    });
    told(&|cache| {
        let inner = cache.clone();
        block_on(cache.get_with_async(1, async move { inner.get_with(1, || 5) }))
    });
    // Another key is no matter, nor another cache.
    let (one, other) = (cache::<u64>(), cache::<u64>());
    assert_eq!(one.get_with(1, || one.get_with(2, || other.get_with(1, || 5))), 5);
}

#[test]
fn a_load_that_nobody_wants_is_dropped() {
    let (cache, census) = (cache::<u64>(), Arc::new(Census::default()));
    let held = Counted::new(1, &census);
    let mut only = Task::new(cache.get_with_async(1, async move {
        // All of it: the block would otherwise capture the number alone.
        let held = held;
        std::future::pending::<()>().await;
        held.value
    }));
    assert!(only.poll().is_pending());
    assert_eq!(census.living(), 1);
    drop(only);
    assert_eq!(census.living(), 0);
    assert_eq!(cache.get_with(1, || 9), 9, "and the next asks anew");
}

/// A load that panics fails whoever brought it, whoever polled it; nobody hangs.
#[test]
fn a_panic_is_the_leaders() {
    for polled_by_leader in [true, false] {
        let (cache, gate) = (cache::<u64>(), Gate::default());
        let mut leader = Task::new(cache.get_with_async(1, {
            let gate = gate.clone();
            async move {
                gate.passed().await;
                panic!("the load's own");
            }
        }));
        assert!(leader.poll().is_pending());
        let mut follower = Task::new(cache.get_with_async(1, async { 6 }));
        assert!(follower.poll().is_pending());
        gate.open();
        let mut failed = None;
        if polled_by_leader {
            failed = Some(catch_unwind(AssertUnwindSafe(|| leader.poll())));
        }
        assert_eq!(follower.poll(), Poll::Ready(6), "the others start over");
        let failed = failed.unwrap_or_else(|| catch_unwind(AssertUnwindSafe(|| leader.poll())));
        let panic = failed.expect_err("its load panicked");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the load's own"));
        assert_eq!(cache.get(&1), Some(6));
    }
}

#[test]
fn a_panic_in_a_closure_fails_its_thread_only() {
    let (cache, gate) = (cache::<u64>(), Gate::default());
    std::thread::scope(|scope| {
        let (began, begun) = mpsc::channel();
        let leader = scope.spawn({
            let (cache, gate) = (&cache, gate.clone());
            move || {
                cache.get_with(1, || {
                    began.send(()).unwrap();
                    gate.pass();
                    panic!("the load's own")
                })
            }
        });
        begun.recv().unwrap();
        let follower = scope.spawn(|| cache.get_with(1, || 6));
        let task = scope.spawn(|| block_on(cache.get_with_async(1, async { 6 })));
        gate.open();
        assert!(leader.join().is_err());
        assert_eq!((follower.join().unwrap(), task.join().unwrap()), (6, 6));
    });
}

/// A weigher runs while a load lands.
#[test]
fn a_weigher_that_panics_keeps_nobody_waiting() {
    let armed = Arc::new(AtomicBool::new(true));
    let cache = Cache::builder()
        .max_capacity(100)
        .weigher({
            let armed = armed.clone();
            move |_: &u64, _: &u64| if armed.load(Ordering::SeqCst) { panic!("the weigher's own") } else { 1 }
        })
        .build()
        .unwrap();
    let gate = Gate::default();
    let mut leader = Task::new(cache.get_with_async(1, {
        let gate = gate.clone();
        async move {
            gate.passed().await;
            5
        }
    }));
    assert!(leader.poll().is_pending());
    let mut follower = Task::new(cache.get_with_async(1, async { 6 }));
    assert!(follower.poll().is_pending());
    gate.open();
    assert!(catch_unwind(AssertUnwindSafe(|| leader.poll())).is_err());
    assert_eq!(follower.poll(), Poll::Ready(5), "it was loaded, if not kept");
    assert!(catch_unwind(AssertUnwindSafe(|| cache.insert(2, 2))).is_err());
    armed.store(false, Ordering::SeqCst);
    cache.insert(1, 8);
    assert_eq!(cache.get(&1), Some(8));
    assert_eq!((cache.entry_count(), cache.get_with(2, || 2)), (1, 2));
}

#[test]
fn an_error_is_shared_and_not_kept() {
    let (cache, gate) = (cache::<u64>(), Gate::default());
    let mut leader = Task::new(cache.try_get_with_async(1, {
        let gate = gate.clone();
        async move {
            gate.passed().await;
            Err::<u64, String>("down".into())
        }
    }));
    assert!(leader.poll().is_pending());
    let mut follower = Task::new(cache.try_get_with_async(1, async { Err::<u64, String>("not asked".into()) }));
    // It does not know the leader's kind of error, so it asks for itself.
    let mut stranger = Task::new(cache.try_get_with_async(1, async { Err::<u64, u32>(404) }));
    assert!(follower.poll().is_pending());
    assert!(stranger.poll().is_pending());
    gate.open();
    let (Poll::Ready(Err(first)), Poll::Ready(Err(second))) = (leader.poll(), follower.poll()) else {
        panic!("both failed");
    };
    assert!(Arc::ptr_eq(&first, &second), "one error");
    let Poll::Ready(Err(third)) = stranger.poll() else { panic!("its own failed") };
    assert_eq!(*third, 404);
    assert_eq!(cache.stats().load_failures, 2);
    assert_eq!(cache.try_get_with(1, || Ok::<_, String>(3)).unwrap(), 3);
}

/// What is written while a load is in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Write {
    Insert,
    Invalidate,
    Remove,
    All,
    If,
}

#[test]
fn a_write_fences_what_is_in_flight() {
    for write in [Write::Insert, Write::Invalidate, Write::Remove, Write::All, Write::If] {
        for kind in ["async", "blocking", "upsert"] {
            let (cache, gate) = (cache::<u64>(), Gate::default());
            std::thread::scope(|scope| {
                let (began, begun) = mpsc::channel();
                let loading = scope.spawn({
                    let (cache, gate) = (&cache, gate.clone());
                    move || match kind {
                        "async" => block_on(cache.get_with_async(1, async move {
                            began.send(()).unwrap();
                            gate.passed().await;
                            5
                        })),
                        "blocking" => cache.get_with(1, || {
                            began.send(()).unwrap();
                            gate.pass();
                            5
                        }),
                        _ => cache
                            .entry(1)
                            .and_upsert_with(|_| {
                                began.send(()).unwrap();
                                gate.pass();
                                5
                            })
                            .into_value(),
                    }
                });
                begun.recv().unwrap();
                match write {
                    Write::Insert => cache.insert(1, 8),
                    Write::Invalidate => cache.invalidate(&1),
                    Write::Remove => assert_eq!(cache.remove(&1), None),
                    Write::All => cache.invalidate_all(),
                    Write::If => cache.invalidate_entries_if(|&key, _| key == 1),
                }
                // Somebody who asks after the write does not join what began before it.
                if write != Write::Insert {
                    assert_eq!(cache.get_with(1, || 6), 6);
                }
                gate.open();
                assert_eq!(loading.join().unwrap(), 5, "who asked before gets what was asked for");
            });
            let kept = if write == Write::Insert { 8 } else { 6 };
            assert_eq!(cache.get(&1), Some(kept), "{write:?} during {kind}");
        }
    }
}

/// A source and a cache-aside reader and writer: after a write of the source and an invalidation, nobody reads what was
/// before. (This found a load that had left the board, and was not in the cache yet, when an invalidation looked.)
#[test]
fn no_old_value_after_an_invalidation() {
    let rounds = 30_000;
    let (cache, source) = (cache::<u64>(), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for at in 0..2 {
            let (cache, source, done) = (&cache, &source, &done);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let read = || source.load(Ordering::SeqCst) as u64;
                    match at {
                        0 => cache.get_with(1, read),
                        // Loads what is not there; keeps what is.
                        _ => cache.entry(1).and_upsert_with(|old| old.unwrap_or_else(read)).into_value(),
                    };
                }
            });
        }
        for round in 1..=rounds {
            source.store(round, Ordering::SeqCst);
            cache.invalidate(&1);
            if let Some(value) = cache.peek(&1) {
                assert!(value >= round as u64, "{value} after {round} was acknowledged");
            }
        }
        done.store(true, Ordering::SeqCst);
    });
}

/// An insert is never undone by an update that did not see it.
#[test]
fn no_insert_is_lost() {
    let (cache, done) = (cache::<(u64, u64)>(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                cache.entry(1).and_upsert_with(|old| old.map_or((0, 0), |(written, n)| (written, n + 1)));
                cache.get_with(1, || (0, 0));
            }
        });
        for round in 1..=30_000 {
            cache.insert(1, (round, 0));
            let (written, _) = cache.peek(&1).expect("nobody removes it");
            assert_eq!(written, round);
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn updates_run_one_after_the_other() {
    let cache = cache::<u64>();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    cache.entry(1).and_upsert_with(|old| old.map_or(1, |n| n + 1));
                }
            });
        }
    });
    assert_eq!(cache.get(&1), Some(8_000));
}

/// Spreads small keys over the whole range of hashes, in order, so that two of them never share a lock here.
#[derive(Clone, Copy)]
struct Spread;

impl std::hash::BuildHasher for Spread {
    type Hasher = SpreadHasher;
    fn build_hasher(&self) -> SpreadHasher {
        SpreadHasher(0)
    }
}

struct SpreadHasher(u64);

impl std::hash::Hasher for SpreadHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64");
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key << 28 | key << 60;
    }
}

/// An update reads the old value after the invalidation of all has begun, and ends after the entry is gone: what it made
/// of the old value does not come back.
#[test]
fn an_update_does_not_bring_back_what_was_invalidated() {
    let cache = Cache::<u64, u64>::builder()
        .max_capacity(100)
        .policy(Policy::builtin("lru").unwrap())
        .hasher(Spread)
        .build()
        .unwrap();
    cache.insert(0, 0);
    cache.insert(8, 80);
    let (begun, read, gone) = (Gate::default(), Gate::default(), Gate::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Entry by entry, in order of arrival.
            cache.invalidate_entries_if(|&key, _| {
                if key == 0 {
                    begun.open();
                    read.pass();
                }
                true
            });
            gone.open();
        });
        begun.pass();
        let updated = cache.entry(8).and_upsert_with(|old| {
            read.open();
            gone.pass();
            old.unwrap() + 1
        });
        assert_eq!(updated.into_value(), 81, "the caller gets what it made");
    });
    assert_eq!(cache.get(&8), None);
    assert_eq!(cache.entry(8).and_upsert_with(|old| old.map_or(1, |n| n + 1)).into_value(), 1);
    assert_eq!(cache.get(&8), Some(1));
}

#[test]
fn entries_are_filled_once() {
    let cache = cache::<u64>();
    let fresh: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..50).filter(|&key| cache.entry(key).or_insert_with(|| key).is_fresh()).count()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(fresh, 50);
    assert!(cache.entry(99).or_try_insert_with(|| Err::<u64, _>("no")).is_err());
    assert_eq!(cache.get(&99), None);
}

/// Many keys, many tasks, some cancelled at any moment: all that was asked for comes, and nothing leaks.
#[test]
fn a_storm_of_cancelled_loads() {
    let census = Arc::new(Census::default());
    let cache = cache::<Counted>();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for at in 0..4_000u64 {
            let (cache, census) = (cache.clone(), census.clone());
            tasks.push(tokio::spawn(async move {
                let load = async move {
                    tokio::task::yield_now().await;
                    if at % 3 == 0 {
                        tokio::time::sleep(std::time::Duration::from_micros(at % 50)).await;
                    }
                    Counted::new(at % 40, &census)
                };
                let value = cache.get_with_async(at % 40, load).await;
                assert_eq!(value.value, at % 40);
                if at % 7 == 0 {
                    cache.invalidate(&(at % 40));
                }
            }));
            if at % 5 == 0 {
                tasks[(at / 2) as usize].abort();
            }
            if at % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for task in tasks {
            assert!(task.await.map_or_else(|error| error.is_cancelled(), |()| true), "cancelled, or well");
        }
    });
    drop(runtime);
    cache.invalidate_all();
    eventually("all are dropped", || {
        cache.run_pending_tasks();
        census.living() == 0
    });
}

/// A value whose clones panic while the switch is on.
#[derive(Debug)]
struct Uncloneable(&'static AtomicBool);

impl Clone for Uncloneable {
    fn clone(&self) -> Self {
        assert!(!self.0.load(Ordering::SeqCst), "the value's own");
        Uncloneable(self.0)
    }
}

#[test]
fn a_clone_that_panics_keeps_nobody_waiting() {
    static PANICS: AtomicBool = AtomicBool::new(true);
    let cache = Cache::<u64, Uncloneable>::builder().max_capacity(10).build().unwrap();
    let (waits, leads) = (Arc::new(Barrier::new(2)), cache.clone());
    let leader = thread::spawn({
        let waits = waits.clone();
        move || {
            leads.get_with(1, || {
                waits.wait();
                // Until somebody waits for it.
                thread::sleep(Duration::from_millis(50));
                Uncloneable(&PANICS)
            })
        }
    });
    waits.wait();
    let other = thread::spawn({
        let cache = cache.clone();
        move || {
            cache.get_with(1, || {
                PANICS.store(false, Ordering::SeqCst);
                Uncloneable(&PANICS)
            })
        }
    });
    assert!(leader.join().is_err());
    eventually("the other one loads", || other.is_finished());
    assert!(other.join().is_ok() && cache.contains_key(&1));
}

#[test]
fn a_clone_that_panics_keeps_no_task_waiting() {
    static PANICS: AtomicBool = AtomicBool::new(true);
    let cache = Cache::<u64, Uncloneable>::builder().max_capacity(10).build().unwrap();
    let is_loaded = Arc::new(AtomicBool::new(false));
    let loaded = is_loaded.clone();
    let mut first = Box::pin(cache.get_with_async(1, async move {
        std::future::poll_fn(|_| if loaded.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }).await;
        Uncloneable(&PANICS)
    }));
    let mut second = Box::pin(cache.get_with_async(1, async { Uncloneable(&PANICS) }));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
    is_loaded.store(true, Ordering::SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| first.as_mut().poll(&mut cx).is_ready())).is_err());
    PANICS.store(false, Ordering::SeqCst);
    assert!(second.as_mut().poll(&mut cx).is_ready(), "it loads for itself");
    assert!(cache.contains_key(&1));
}

/// What is not kept after all is dropped, which is code of the user's, and may use the cache.
#[test]
fn what_is_not_kept_is_dropped_under_no_lock() {
    static CACHE: OnceLock<Cache<u64, Calls>> = OnceLock::new();
    #[derive(Clone)]
    struct Calls(bool);
    impl Drop for Calls {
        fn drop(&mut self) {
            if let Some(cache) = CACHE.get().filter(|_| self.0) {
                cache.invalidate(&1);
            }
        }
    }
    let clock = Clock::manual();
    let second = Duration::from_secs(1);
    let cache = Cache::builder().max_capacity(10).time_to_live(second).clock(clock.clone()).build().unwrap();
    let cache = CACHE.get_or_init(|| cache);
    cache.insert(1, Calls(false));
    let update = thread::spawn(move || {
        cache.entry(1).and_upsert_with(|_| {
            // What it was made of is gone by the time it is to be kept.
            clock.advance(2 * second);
            cache.run_pending_tasks();
            Calls(true)
        });
    });
    eventually("the update ends", || update.is_finished());
    update.join().unwrap();
}

/// Of a closure, of a future, and where an invalidation keeps what they bring out: each once, with the time that it took itself.
#[test]
fn loads_are_counted_with_their_time() {
    const NAP: Duration = Duration::from_millis(15);
    // The processor's counter runs at about the clock's pace.
    const LEAST: Duration = Duration::from_millis(14);
    let cache = cache::<u64>();
    let counted = || (cache.stats().loads, cache.stats().load_failures);
    let load = |key| {
        std::thread::sleep(NAP);
        cache.invalidate(&key);
        key
    };
    cache.get_with(1, || load(1));
    assert_eq!((counted(), cache.contains_key(&1)), ((1, 0), false));
    assert!(cache.stats().load_time >= LEAST);
    for key in [2, 3] {
        let (handle, fenced) = (cache.clone(), key == 2);
        block_on(cache.get_with_async(key, async move {
            std::thread::sleep(NAP);
            if fenced {
                handle.invalidate(&key);
            }
            key
        }));
        assert_eq!((counted(), cache.contains_key(&key)), ((key, 0), !fenced));
        assert!(cache.stats().load_time >= LEAST * key as u32, "{:?}", cache.stats().load_time);
    }
    assert!(block_on(cache.try_get_with_async(4, async { Err::<u64, u8>(4) })).is_err());
    assert!(cache.try_get_with(4, || Err::<u64, u8>(4)).is_err());
    assert_eq!(counted(), (3, 2));
    // An update is no load.
    cache.entry(5).and_upsert_with(|_| 5);
    assert_eq!(counted(), (3, 2));
}
