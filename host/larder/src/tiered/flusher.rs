//! Carries what a journal has to the source: takes what is due, and runs a flush of each key, which the module decides as it
//! does any operation. Keys that are taken together are saved in one call where the source can do that.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::driver::{About, Op, start_together};
use super::gather::{self, Member};
use super::host::Inner;
use super::journal::{Flushing, Part};
use super::{Group, Key};
use crate::engine::steps::Kind;

/// Begins to flush a keyspace, until its cache is dropped. `recovered`: the keys of which far tiers may have what is out
/// of date, as the journal knows from before; the empty one stands for all.
pub(super) fn start<K: Key, V: Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<K, V>>,
    recovered: &BTreeSet<Arc<str>>,
) {
    let Some(part) = &inner.journal else { return };
    // What was written last may not have reached the tiers when the process ended.
    for key in recovered {
        let known = if key.is_empty() { None } else { K::of_text(key) };
        let about = known.map_or(About::Group(Group::Prefix(key.clone())), About::Key);
        (0..inner.far.len()).for_each(|at| inner.owe(at, &about, false));
    }
    // There may be no far tier any more.
    part.settle(|key| inner.is_owed(key));
    let (me, wakes) = (inner.me.clone(), part.wakes());
    tokio::spawn(async move {
        while let Some(next) = flush_due(&me).await {
            drop(timeout_at(next, wakes.notified()).await);
        }
    });
}

/// Begins what is due; when to look again.
async fn flush_due<K: Key, V: Clone + Send + Sync + 'static>(me: &Weak<Inner<K, V>>) -> Option<Instant> {
    let inner = me.upgrade()?;
    let part = inner.journal.as_ref()?;
    let now = Instant::now();
    let due = part.take(now);
    for key in due.revived.iter().filter_map(|key| K::of_text(key)) {
        inner.drop_everywhere(&About::Key(key)).await;
    }
    let mut flushes = due.flushes;
    while !flushes.is_empty() {
        let rest = flushes.split_off(flushes.len().min(part.batch()));
        begin(&inner, part, std::mem::replace(&mut flushes, rest)).await;
    }
    Some(due.next.unwrap_or(now + Duration::from_secs(3600)))
}

/// Begins the flushes of one batch.
async fn begin<K: Key, V: Clone + Send + Sync + 'static>(
    inner: &Arc<Inner<K, V>>,
    part: &Part,
    flushes: Vec<Flushing>,
) {
    let mut ops = Vec::with_capacity(flushes.len());
    for mut flushing in flushes {
        let Some(key) = K::of_text(flushing.key()) else {
            let reason = format!("its key `{}` is none of this keyspace's", flushing.key());
            bury(flushing, reason);
            continue;
        };
        let Some(record) = part.newest(flushing.key()) else { continue };
        match inner.landing_of(&record) {
            Ok(landing) => {
                let mut op = Op::new(inner.clone(), Kind::Flush, About::Key(key));
                op.brought = landing.value.is_some().then(|| Arc::new(landing));
                op.flushing = Some(flushing);
                ops.push(op);
            }
            Err(error) => {
                flushing.newest();
                bury(flushing, format!("its value cannot be decoded: {error}"));
            }
        }
    }
    if let Some(source) = inner.source.clone().filter(|source| source.saves_many()) {
        let members = Member::all(ops.len(), gather::save_many(source));
        ops.iter_mut().zip(members).for_each(|(op, member)| op.saves_with = Some(member));
    }
    start_together(&mut ops.iter_mut().collect::<Vec<_>>());
    for op in ops {
        tokio::spawn(op.run());
    }
}

/// What can never be saved becomes a dead letter.
fn bury(mut flushing: Flushing, reason: String) {
    tokio::spawn(async move {
        flushing.newest();
        if let Err(error) = flushing.bury(&reason).await {
            tracing::warn!(key = flushing.key(), %error, "a write that cannot be saved is in the way still");
        }
    });
}
