//! By which processes hear of each other's invalidations.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::far::{BoxFuture, Scope, TierError};

/// An invalidation that one process tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The keyspace.
    pub keyspace: Arc<str>,
    /// What is invalidated, without the keyspace's name before it.
    pub scope: Scope,
    /// Whether copies may be served stale.
    pub soft: bool,
}

/// Who hears of invalidations.
pub trait Listener: Send + Sync {
    /// Does what the news says; it is done when the future is.
    fn hear<'a>(&'a self, news: &'a News) -> BoxFuture<'a, ()>;

    /// News were missed, and nobody knows which: all that this process has of its own is dropped.
    fn lose_track(&self);

    /// Until then, what this process has of its own may be trusted; from then on it counts as absent, until this is called
    /// again. Called by a bus that may be cut off: first when the listener joins, then again and again, each time when all
    /// that was announced before has been done. Where it is never called, trust has no end.
    fn trust_until(&self, until: Instant);
}

/// A way to tell all processes that share tiers.
pub trait Bus: Send + Sync + 'static {
    /// What it is, for messages.
    fn summary(&self) -> String;

    /// From now on, this one hears what others announce.
    fn join(&self, listener: Weak<dyn Listener>);

    /// Tells all but the listener who announces. When this returns `Ok`, each of them has done it, or has stopped to
    /// trust what it has, because it has heard nothing for so long ([`Listener::trust_until`]): an acknowledged invalidation is
    /// as strong as that promise.
    fn announce<'a>(&'a self, from: &'a Arc<dyn Listener>, news: News) -> BoxFuture<'a, Result<(), TierError>>;
}

/// A bus for several caches of one process, and for tests.
#[derive(Default)]
pub struct LocalBus {
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
}

impl LocalBus {
    /// A bus that nobody listens to yet.
    pub fn new() -> Self {
        LocalBus::default()
    }
}

impl std::fmt::Debug for LocalBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalBus").field("listeners", &self.listeners.lock().len()).finish()
    }
}

impl Bus for LocalBus {
    fn summary(&self) -> String {
        "this process".into()
    }

    fn join(&self, listener: Weak<dyn Listener>) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(listener);
    }

    fn announce<'a>(&'a self, from: &'a Arc<dyn Listener>, news: News) -> BoxFuture<'a, Result<(), TierError>> {
        let listeners: Vec<_> = self.listeners.lock().iter().filter_map(Weak::upgrade).collect();
        Box::pin(async move {
            for listener in listeners.iter().filter(|listener| !Arc::ptr_eq(listener, from)) {
                listener.hear(&news).await;
            }
            Ok(())
        })
    }
}
