//! The time by which entries expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Milliseconds since some moment; never goes back.
///
/// A test drives the time of a cache by hand:
///
/// ```
/// use std::time::Duration;
/// use larder::{Cache, Clock};
///
/// let clock = Clock::manual();
/// let cache = Cache::<&str, u32>::builder()
///     .max_capacity(100)
///     .time_to_live(Duration::from_secs(60))
///     .clock(clock.clone())
///     .build()?;
/// cache.insert("answer", 42);
/// clock.advance(Duration::from_secs(59));
/// assert_eq!(cache.get("answer"), Some(42));
/// clock.advance(Duration::from_secs(1));
/// assert_eq!(cache.get("answer"), None);
/// # Ok::<(), larder::BuildError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    System(Instant),
    Manual(Arc<AtomicU64>),
    /// tokio's, which its tests can pause.
    Tokio(tokio::time::Instant),
}

impl Clock {
    /// The system's monotonic clock.
    pub fn system() -> Self {
        Clock(Kind::System(Instant::now()))
    }

    /// tokio's clock: the system's, unless a test paused it.
    pub(crate) fn tokio() -> Self {
        Clock(Kind::Tokio(tokio::time::Instant::now()))
    }

    /// A clock that stands still but for [`Clock::advance`]. Clones share the time.
    pub fn manual() -> Self {
        Clock(Kind::Manual(Arc::new(AtomicU64::new(0))))
    }

    /// Moves a manual clock on (rounded down to milliseconds); does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Kind::Manual(now) = &self.0 {
            now.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
        }
    }

    /// The time. It begins at 1: 0 is before all.
    #[inline]
    pub(crate) fn now_ms(&self) -> u64 {
        1 + match &self.0 {
            Kind::System(origin) => origin.elapsed().as_millis() as u64,
            Kind::Manual(now) => now.load(Ordering::SeqCst),
            Kind::Tokio(origin) => origin.elapsed().as_millis() as u64,
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}
