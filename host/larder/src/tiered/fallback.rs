//! What is done where the module's answer cannot be: it trapped twice, hangs, is rested, or said what makes no sense.
//!
//! The least that is right, by the contract's words: a read looks through the tiers and else loads for itself and keeps
//! nothing; a write that was neither saved nor logged is saved, and then the key is dropped; a flush saves, and leaves the
//! write in the journal where that fails; an invalidation drops in all tiers. So nothing fails because of a module, and
//! nothing old is served; what is lost is that copies are kept.

use std::time::Duration;

use super::driver::{Op, Reply};
use super::near::Key;
use super::{Failure, How, Served};
use crate::engine::steps::{Event, Kind, Loading, Saving, Traits};

/// Brings an operation to its end.
pub(crate) async fn finish<K: Key, V: Clone + Send + Sync + 'static>(op: &mut Op<K, V>) {
    match op.kind {
        Kind::Read => read(op).await,
        Kind::Write | Kind::Remove => write(op).await,
        Kind::Flush => flush(op).await,
        Kind::Invalidate => {
            let is_heard = op.traits.contains(Traits::HEARD);
            let tiers = if is_heard { op.inner.tiers() & !op.inner.shared() } else { op.inner.tiers() };
            let telling = op.inner.forget(&op.about, tiers, !is_heard && op.inner.bus.is_some(), false).await;
            op.answer(telling.result().map(|()| Reply::Done));
        }
        Kind::Refresh | Kind::Fill => {
            op.land_own();
            op.answer(Ok(Reply::Done));
        }
    }
}

async fn read<K: Key, V: Clone + Send + Sync + 'static>(op: &mut Op<K, V>) {
    if op.served {
        op.land_own();
        return;
    }
    if let Some(loaded) = op.loaded.clone() {
        return serve(op, loaded.value.clone(), How::Fresh, None, 0);
    }
    op.check_held();
    if serve_held(op, false) {
        return;
    }
    for tier in 1..=op.inner.far.len() as u8 {
        if let Ok(Some(found)) = op.look_far(tier).await {
            op.held = Some(found);
            op.check_held();
            if serve_held(op, false) {
                return;
            }
        }
    }
    let loads = op.inner.source.as_ref().is_some_and(|source| source.loads());
    if !loads || op.traits.contains(Traits::CACHED_ONLY) {
        op.miss();
        return;
    }
    let whole = Loading { soft_ms: 0, hard_ms: 0, conditional: false };
    match op.load(whole).await {
        Event::Loaded(_) => {
            if let Some(loaded) = op.loaded.clone() {
                serve(op, loaded.value.clone(), How::Fresh, None, 0);
            }
        }
        // A load that was begun before, with a validator.
        Event::Unchanged(_) if op.held.is_some() => {
            serve_held(op, true);
        }
        _ => {
            op.check_held();
            if !serve_held(op, true) {
                let failure = op.error.as_ref().map_or(Failure::Unavailable, |error| error.failure);
                op.fail(failure.into());
            }
        }
    }
}

/// Serves what is held if it is fresh; at need, if it may be served at all.
fn serve_held<K: Key, V: Clone + Send + Sync + 'static>(op: &mut Op<K, V>, at_need: bool) -> bool {
    let Some(held) = &op.held else { return false };
    let facts = held.facts(op.inner.near.now());
    let how = match facts.fresh_ms {
        0 if at_need => How::Rescued,
        0 => return false,
        _ => How::Fresh,
    };
    let (value, tier) = (held.value.clone(), held.tier);
    serve(op, value, how, Some(tier), facts.age_ms);
    true
}

fn serve<K: Key, V: Clone + Send + Sync + 'static>(
    op: &mut Op<K, V>,
    value: Option<V>,
    how: How,
    tier: Option<u8>,
    age_ms: u64,
) {
    let served = Served { value, how, tier, age: Duration::from_millis(age_ms) };
    op.inner.tally.count(&served);
    op.answer(Ok(Reply::Served(served)));
    op.served = true;
    op.land_own();
}

async fn write<K: Key, V: Clone + Send + Sync + 'static>(op: &mut Op<K, V>) {
    let saves = op.inner.source.as_ref().is_some_and(|source| source.saves());
    if saves && !op.saved && !op.logged && op.error.is_none() {
        op.save(&Saving { fence: 0, hard_ms: 0 }).await;
    }
    let error = op.error.take();
    let telling = op.inner.forget(&op.about, op.inner.tiers(), op.inner.bus.is_some(), false).await;
    op.answer(error.map_or_else(|| telling.result(), Err).map(|()| Reply::Done));
}

/// Saves, and leaves the write in the journal if that fails.
async fn flush<K: Key, V: Clone + Send + Sync + 'static>(op: &mut Op<K, V>) {
    if op.flushing.is_some() && !op.saved {
        op.save(&Saving { fence: 0, hard_ms: 0 }).await;
    }
    if op.saved {
        op.inner.forget(&op.about, op.inner.tiers(), op.inner.bus.is_some(), false).await;
        op.flushed().await;
    }
}
