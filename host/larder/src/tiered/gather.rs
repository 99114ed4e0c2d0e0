//! What several operations ask at once, asked as one: the loads of a `get_many`, the saves of a batch of flushes. Operations
//! hand their questions in here, and when none is left that might still do so, the source is asked all of them together.
//!
//! Each operation goes its own way until then, by its own steps. One that waits for something else (another's load, a
//! pause) leaves, so that nobody waits for it; what it asks for later it asks alone. One that is slow (its tier is) is
//! not waited for, either: what has been asked goes off without it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::driver::Landing;
use super::journal::SaveTurn;
use super::source::{Loaded, Save, Source, SourceError};
use super::{BoxFuture, Key, WriteId};

/// Asks many questions; as many answers, in their order.
type Ask<Q, A> = dyn Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send + Sync;

/// So long a question waits for others.
const PATIENCE: Duration = Duration::from_millis(50);

/// One batch.
struct Gather<Q, A> {
    ask: Box<Ask<Q, A>>,
    state: Mutex<State<Q, A>>,
}

struct State<Q, A> {
    /// Operations that may still ask.
    members: usize,
    questions: Vec<Q>,
    waiting: Vec<oneshot::Sender<A>>,
}

/// The place of an operation in a batch; leaves when dropped.
pub(crate) struct Member<Q: Send + 'static, A: Send + 'static>(Arc<Gather<Q, A>>);

impl<Q: Send + 'static, A: Send + 'static> Member<Q, A> {
    /// So many places in a batch.
    pub(crate) fn all(
        members: usize,
        ask: impl Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send + Sync + 'static,
    ) -> impl Iterator<Item = Self> {
        let state = State { members, questions: Vec::new(), waiting: Vec::new() };
        let gather = Arc::new(Gather { ask: Box::new(ask), state: Mutex::new(state) });
        (0..members).map(move |_| Member(gather.clone()))
    }

    /// Asks. To drop the receiver is to wait no longer.
    pub(crate) fn ask(self, question: Q) -> oneshot::Receiver<A> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.0.state.lock();
        let (is_first, is_last) = (state.questions.is_empty(), state.members == 1);
        state.questions.push(question);
        state.waiting.push(sender);
        drop(state);
        if is_first && !is_last {
            let gather = self.0.clone();
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                gather.go();
            });
        }
        receiver
    }
}

impl<Q: Send + 'static, A: Send + 'static> Gather<Q, A> {
    /// Asks what has been asked so far.
    fn go(&self) {
        let mut state = self.state.lock();
        let (questions, mut waiting) = (std::mem::take(&mut state.questions), std::mem::take(&mut state.waiting));
        drop(state);
        // Where the runtime is gone, so are those who wait.
        let (false, Ok(runtime)) = (questions.is_empty(), tokio::runtime::Handle::try_current()) else { return };
        let asking = (self.ask)(questions);
        runtime.spawn(async move {
            // Each of them waits for as long as it would for an answer of its own. (Saves are waited for in any case.)
            let answers = unless_all_left(&mut waiting, asking).await;
            // Who does not wait any more has left.
            waiting.into_iter().zip(answers).for_each(|(waiting, answer)| drop(waiting.send(answer)));
        });
    }
}

/// The answers; none once nobody waits for them any more, and then they are not waited for.
async fn unless_all_left<A>(waiting: &mut [oneshot::Sender<A>], mut asking: BoxFuture<'static, Vec<A>>) -> Vec<A> {
    let mut all_left = pin!(async {
        for one in waiting {
            one.closed().await;
        }
    });
    poll_fn(|context| match asking.as_mut().poll(context) {
        Poll::Ready(answers) => Poll::Ready(answers),
        Poll::Pending => all_left.as_mut().poll(context).map(|()| Vec::new()),
    })
    .await
}

impl<Q: Send + 'static, A: Send + 'static> Drop for Member<Q, A> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.members -= 1;
        let is_last = state.members == 0;
        drop(state);
        if is_last {
            self.0.go();
        }
    }
}

type Answer<V> = Result<Loaded<V>, SourceError>;

/// A place in a batch of loads.
pub(crate) type LoadsWith<K, V> = Member<K, Answer<V>>;

/// Loads many keys in one call.
pub(crate) fn load_many<K: Key, V: Clone + Send + Sync + 'static>(
    source: Arc<dyn Source<K, V>>,
) -> impl Fn(Vec<K>) -> BoxFuture<'static, Vec<Answer<V>>> + Send + Sync {
    move |keys| {
        let source = source.clone();
        Box::pin(async move {
            let answers = match &keys[..] {
                [key] => source.load(key, None).await.map(|loaded| vec![Ok(loaded)]),
                _ => source.load_many(&keys).await,
            };
            let failed = match answers {
                Ok(answers) if answers.len() == keys.len() => return answers,
                Ok(answers) => SourceError::rejected(wrong_count("values", answers.len(), keys.len())),
                Err(error) => error,
            };
            keys.iter().map(|_| Err(failed.clone())).collect()
        })
    }
}

/// What is to be saved.
pub(crate) struct ToSave<K, V> {
    pub(crate) key: K,
    pub(crate) value: Option<Arc<Landing<V>>>,
    pub(crate) id: WriteId,
    /// The key's turn ends when this is dropped.
    pub(crate) _turn: Option<SaveTurn>,
}

impl<K, V> ToSave<K, V> {
    pub(crate) fn as_save(&self) -> Save<'_, K, V> {
        let value = self.value.as_ref().and_then(|landing| landing.value.as_ref());
        Save::new(&self.key, value, self.id)
    }
}

type Saved = Result<(), SourceError>;

/// A place in a batch of saves.
pub(crate) type SavesWith<K, V> = Member<ToSave<K, V>, Saved>;

/// Saves many keys in one call.
pub(crate) fn save_many<K: Key, V: Clone + Send + Sync + 'static>(
    source: Arc<dyn Source<K, V>>,
) -> impl Fn(Vec<ToSave<K, V>>) -> BoxFuture<'static, Vec<Saved>> + Send + Sync {
    move |writes| {
        let source = source.clone();
        Box::pin(async move {
            let saves: Vec<_> = writes.iter().map(ToSave::as_save).collect();
            let results = match &saves[..] {
                [save] => vec![source.save(*save).await],
                _ => source.save_many(&saves).await,
            };
            if results.len() == saves.len() {
                return results;
            }
            // Some may have been carried out, and nobody knows which.
            let failed = SourceError::unavailable(wrong_count("results", results.len(), saves.len()));
            saves.iter().map(|_| Err(failed.clone())).collect()
        })
    }
}

fn wrong_count(what: &str, found: usize, keys: usize) -> String {
    format!("the source answered with {found} {what} for {keys} keys")
}
