//! Finds a short history that breaks the same clause.
//!
//! Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", TSE 2002) over the
//! batches, then over the events, then each number towards its plainest value; again until nothing more helps, or the runs
//! or the time are used up: a run over a component that answers late, or fills its memory, can be slow.

use std::time::{Duration, Instant};

use super::history::{Event, Gap, History, Step, Terms};

/// The shortest history found for which `fails` holds; it holds for `history`.
pub(super) fn shrink(
    mut history: History,
    runs: usize,
    time: Duration,
    fails: &mut dyn FnMut(&History) -> bool,
) -> History {
    let (mut left, began) = (runs, Instant::now());
    let mut attempt = |candidate: &History| {
        left = left.saturating_sub(1);
        left > 0 && began.elapsed() < time && fails(candidate)
    };
    loop {
        let before = history.clone();
        let limits = history.limits.clone();
        let with = |steps: &[Step]| History { limits: limits.clone(), steps: steps.to_vec() };
        history.steps = minimise(history.steps, &mut |steps| attempt(&with(steps)));

        // The events of all batches in one row, each with the batch that it is in.
        let row: Vec<(usize, Event)> =
            history.steps.iter().enumerate().flat_map(|(i, step)| step.events.iter().map(move |e| (i, *e))).collect();
        let shell = history.clone();
        let from_row = |row: &[(usize, Event)]| {
            let mut history = shell.clone();
            history.steps.iter_mut().for_each(|step| step.events.clear());
            row.iter().for_each(|&(i, event)| history.steps[i].events.push(event));
            history
        };
        history = from_row(&minimise(row, &mut |row| attempt(&from_row(row))));

        for simpler in SIMPLER {
            history = simplify(history, simpler, &mut attempt);
        }
        if history == before {
            return history;
        }
    }
}

/// The shortest part of `items` found for which `fails` holds: leaves out halves, then quarters, down to single ones.
fn minimise<T: Clone>(mut items: Vec<T>, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < items.len() {
            let end = (at + size).min(items.len());
            let candidate = [&items[..at], &items[end..]].concat();
            if fails(&candidate) {
                items = candidate;
            } else {
                at = end;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    items
}

/// Makes something plainer, number `i` of its kind; `None` when there is no such thing.
type Simpler = fn(&mut History, usize) -> Option<()>;

const SIMPLER: [Simpler; 9] = [
    // Weights of 1 and a tiny capacity, all at once: one by one, each would spoil what the others weigh against it.
    |history, i| {
        for at in 0.. {
            let Some(terms) = terms(history, at) else { break };
            terms.weight = 1;
        }
        (i < 8).then(|| set_capacity(history, i as u64 + 1))
    },
    // The capacity by powers of two, then by one.
    |history, i| {
        let less = history.limits.capacity.checked_shr(i as u32 + 1)?;
        (less > 0).then(|| set_capacity(history, less))
    },
    |history, i| (i < 16).then(|| set_capacity(history, history.limits.capacity - 1)),
    |history, i| (i == 0).then(|| history.limits.seed = 0),
    |history, i| history.steps.get_mut(i).map(|step| step.before = Gap::None),
    |history, i| history.steps.get_mut(i).map(|step| step.elapsed_ms = 0),
    |history, i| terms(history, i).map(|terms| *terms = Terms { weight: terms.weight, ..Terms::PLAIN }),
    |history, i| terms(history, i).map(|terms| terms.weight = 1),
    |history, i| {
        let event = history.steps.iter_mut().flat_map(|step| &mut step.events).nth(i)?;
        if let Event::Ask(_, times, _) = event {
            *times = 1;
        }
        Some(())
    },
];

fn set_capacity(history: &mut History, capacity: u64) {
    history.limits.capacity = capacity.max(1);
    history.limits.expected = history.limits.expected.map(|_| history.limits.capacity as u32);
}

fn terms(history: &mut History, i: usize) -> Option<&mut Terms> {
    let event =
        history.steps.iter_mut().flat_map(|step| &mut step.events).filter(|event| !matches!(event, Event::Remove(_)));
    match event.into_iter().nth(i)? {
        Event::Ask(_, _, terms) | Event::Replace(_, terms) => Some(terms),
        Event::Remove(_) => None,
    }
}

fn simplify(mut history: History, simpler: Simpler, fails: &mut dyn FnMut(&History) -> bool) -> History {
    for i in 0.. {
        let mut candidate = history.clone();
        if simpler(&mut candidate, i).is_none() || i > 10_000 {
            break;
        }
        if candidate != history && candidate.limits.capacity <= history.limits.capacity && fails(&candidate) {
            history = candidate;
        }
    }
    history
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_two_that_matter() {
        let found = minimise((0..1000).collect(), &mut |part: &[i32]| part.contains(&17) && part.contains(&900));
        assert_eq!(found, [17, 900]);
    }

    #[test]
    fn ends_when_the_runs_or_the_time_are_used_up() {
        for (most, time, expected) in [(50, Duration::MAX, 49), (50, Duration::ZERO, 0)] {
            let mut runs = 0;
            let history = History::random(1, 500);
            let found = shrink(history.clone(), most, time, &mut |history| {
                runs += 1;
                history.len() > 400
            });
            assert_eq!((runs, found == history), (expected, expected == 0));
        }
    }
}
