//! The clock of deadlines: one thread that advances the engine's epoch while any call may be running.
//!
//! A deadline is counted in the ticks that a call has *seen*, not in time by the clock: the compiled code looks at the
//! epoch at each loop, and each look that finds it moved counts as one. So a call whose thread the operating
//! system put aside for a second, on a machine that is short of processors, has seen one tick and not a hundred, and a
//! healthy policy is not stopped for what it did not do.
//!
//! The thread sleeps while nobody calls: each call makes sure that ticks are wanted for longer than it may last, which
//! is one read of a shared number nearly always, and a write once a second.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::Thread,
    time::Duration,
};

/// How far apart ticks are.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// Ticks beyond what a call needs, so that the next second of calls need not ask.
const AHEAD: u64 = 100;

/// Ticks so far.
static NOW: AtomicU64 = AtomicU64::new(0);
/// Ticks to reach before the thread may sleep.
static WANTED: AtomicU64 = AtomicU64::new(0);

/// The ticks that a call with this deadline may see. One more than fit into it, for the first comes early.
pub(super) fn ticks(deadline: Duration) -> u32 {
    u32::try_from(deadline.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX - 1) + 1
}

/// Makes sure that the epoch will advance at least so many times from now.
#[inline]
pub(super) fn want(engine: &wasmtime::Engine, ticks: u32) {
    // A call that is put aside sees fewer ticks than pass, so it renews its wish at each tick that it sees.
    let until = NOW.load(Ordering::Relaxed) + u64::from(ticks);
    if WANTED.load(Ordering::Relaxed) < until {
        wake(engine, until + AHEAD);
    }
}

#[cold]
fn wake(engine: &wasmtime::Engine, until: u64) {
    static TICKER: OnceLock<Option<Thread>> = OnceLock::new();
    WANTED.fetch_max(until, Ordering::SeqCst);
    let ticker = TICKER.get_or_init(|| {
        let engine = engine.clone();
        let spawned = std::thread::Builder::new().name("larder-ticker".into()).spawn(move || run(&engine));
        match spawned {
            Ok(handle) => Some(handle.thread().clone()),
            Err(error) => {
                tracing::error!(%error, "no thread for the deadlines of policy modules: a module that hangs will hang its caller");
                None
            }
        }
    });
    if let Some(ticker) = ticker {
        ticker.unpark();
    }
}

fn run(engine: &wasmtime::Engine) {
    loop {
        while NOW.load(Ordering::Relaxed) < WANTED.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            engine.increment_epoch();
            NOW.fetch_add(1, Ordering::Relaxed);
        }
        // An `unpark` since the comparison is not lost: it makes this return at once.
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_cut_short() {
        for (milliseconds, expected) in [(0, 1), (1, 2), (10, 2), (11, 3), (100, 11)] {
            assert_eq!(ticks(Duration::from_millis(milliseconds)), expected);
        }
        assert_eq!(ticks(Duration::MAX), u32::MAX);
    }
}
