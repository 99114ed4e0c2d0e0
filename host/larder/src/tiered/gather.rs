//! The loads of one batch as one: the operations of a `get_many` hand their keys in here, and when none is left that
//! might still do so, the source is asked for all of them at once.
//!
//! Each operation goes its own way until then, by its own steps. One that waits for something else (another's load, a
//! pause) leaves, so that nobody waits for it; what it asks for later it asks alone.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Key;
use super::source::{Loaded, Source, SourceError};

type Answer<V> = Result<Loaded<V>, SourceError>;

/// One batch.
pub(crate) struct Gather<K, V> {
    source: Arc<dyn Source<K, V>>,
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    /// Operations that may still ask.
    members: usize,
    keys: Vec<K>,
    waiting: Vec<oneshot::Sender<Answer<V>>>,
}

/// The place of an operation in a batch; leaves when dropped.
pub(crate) struct Member<K: Key, V: Send + 'static>(Arc<Gather<K, V>>);

impl<K: Key, V: Clone + Send + Sync + 'static> Member<K, V> {
    /// So many places in a batch.
    pub(crate) fn all(source: Arc<dyn Source<K, V>>, members: usize) -> impl Iterator<Item = Self> {
        let state = State { members, keys: Vec::new(), waiting: Vec::new() };
        let gather = Arc::new(Gather { source, state: Mutex::new(state) });
        (0..members).map(move |_| Member(gather.clone()))
    }

    /// Asks for a key.
    pub(crate) fn load(self, key: K) -> oneshot::Receiver<Answer<V>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.0.state.lock();
        state.keys.push(key);
        state.waiting.push(sender);
        drop(state);
        receiver
    }
}

impl<K: Key, V: Send + 'static> Drop for Member<K, V> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.members -= 1;
        if state.members > 0 || state.keys.is_empty() {
            return;
        }
        let (keys, waiting) = (std::mem::take(&mut state.keys), std::mem::take(&mut state.waiting));
        drop(state);
        let source = self.0.source.clone();
        // Where the runtime is gone, so are those who wait.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { ask(&*source, &keys, waiting).await });
        }
    }
}

async fn ask<K: Key, V: Send + 'static>(
    source: &dyn Source<K, V>,
    keys: &[K],
    waiting: Vec<oneshot::Sender<Answer<V>>>,
) {
    let answers = match keys {
        [key] => source.load(key, None).await.map(|loaded| vec![loaded]),
        _ => source.load_many(keys).await,
    };
    let failed = match answers {
        Ok(answers) if answers.len() == keys.len() => {
            // Who does not wait any more has left.
            waiting.into_iter().zip(answers).for_each(|(waiting, answer)| drop(waiting.send(Ok(answer))));
            return;
        }
        Ok(answers) => {
            let what = format!("the source answered with {} values for {} keys", answers.len(), keys.len());
            SourceError::rejected(what)
        }
        Err(error) => error,
    };
    waiting.into_iter().for_each(|waiting| drop(waiting.send(Err(failed.clone()))));
}
