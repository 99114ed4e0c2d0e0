//! The contract as an oracle: a model of the host that tells a policy what happens, and holds its answers against what the
//! contract allows.

use core::fmt;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::fingerprint;
use super::history::{Event, Gap, History, Step, Terms};
use crate::{Batch, Entries, Limits, Slot};

/// What answers as a policy does. Each method is the function of its name in `wit/eviction.wit`; an error says that there was
/// no answer: a trap, a panic, a deadline.
#[allow(clippy::missing_errors_doc)]
pub trait Subject {
    /// `advance`.
    fn advance(&mut self, batch: &Batch<'_>) -> Result<Vec<Slot>, String>;
    /// `residents`: slots and uses.
    fn residents(&mut self) -> Result<(Vec<Slot>, Vec<u32>), String>;
    /// `adopt`.
    fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Result<Vec<Slot>, String>;
    /// `learned`.
    fn learned(&mut self) -> Result<Vec<u8>, String>;
    /// `recall`.
    fn recall(&mut self, learned: &[u8]) -> Result<bool, String>;
}

/// Opens the subject anew.
pub(super) type Open<'a> = dyn FnMut(&Limits) -> Result<Box<dyn Subject>, String> + 'a;

/// The clauses of the contract that the kit checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clause {
    /// It opens, and every call is answered.
    Answers,
    /// It names only residents, of which the entry that just arrived is one.
    VictimsAreResidents,
    /// It names each victim once.
    VictimsOnce,
    /// After each batch the residents weigh at most the capacity.
    WithinCapacity,
    /// It forgets who departed and who was named, and `residents` lists all others, each once.
    ListsResidents,
    /// It adopts residents that fit, all of them.
    Adopts,
    /// What it has learned is of bounded size, it recalls it, and whatever is in those bytes breaks no clause.
    Recalls,
    /// The same limits and history give the same answers.
    Deterministic,
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Clause::Answers => "a policy opens, and answers every call",
            Clause::VictimsAreResidents => "a policy names only residents as victims",
            Clause::VictimsOnce => "a policy names each victim once",
            Clause::WithinCapacity => "after each batch the residents weigh at most the capacity",
            Clause::ListsResidents => "a policy forgets who left, and lists every resident once",
            Clause::Adopts => "a policy adopts all residents that fit",
            Clause::Recalls => {
                "a policy recalls what it learned, and no bytes that it is given make it break the contract"
            }
            Clause::Deterministic => "the same limits and history give the same answers",
        })
    }
}

/// A clause of the contract that was broken, and the history that shows it.
#[derive(Clone, Debug)]
pub struct Violation {
    /// What was broken.
    pub clause: Clause,
    /// How.
    pub message: String,
    /// The shortest history found that breaks this clause.
    pub history: History,
    /// What happened in it: the calls, a line each, with the answers.
    pub transcript: Vec<String>,
    /// The seed of the history that it was found by.
    pub seed: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limits { capacity, expected, seed } = &self.history.limits;
        writeln!(f, "broken: {}", self.clause)?;
        writeln!(f, "{}", self.message)?;
        let expected = expected.map_or("unknown".to_string(), |n| n.to_string());
        writeln!(f, "the shortest history found (capacity {capacity}, expected {expected}, seed {seed}):")?;
        self.transcript.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "found by history {}", self.seed)
    }
}

impl std::error::Error for Violation {}

/// A broken clause, before anybody knows how short a history shows it.
pub(super) struct Broken {
    pub(super) clause: Clause,
    pub(super) message: String,
    pub(super) transcript: Vec<String>,
}

/// Columns, as a host keeps them.
#[derive(Default)]
struct Columns {
    slots: Vec<Slot>,
    fingerprints: Vec<u64>,
    weights: Vec<u32>,
    costs: Vec<u32>,
    expiries: Vec<u64>,
}

#[derive(Clone, Copy)]
struct Resident {
    key: u64,
    terms: Terms,
    expires_at: u64,
}

impl Columns {
    fn push(&mut self, slot: Slot, resident: &Resident) {
        self.slots.push(slot);
        self.fingerprints.push(fingerprint(resident.key));
        self.weights.push(resident.terms.weight);
        self.costs.push(resident.terms.cost);
        self.expiries.push(resident.expires_at);
    }

    /// A column that holds nothing but its default is left out, as a host would.
    fn entries(&self) -> Entries<'_> {
        fn needed<T: PartialEq>(column: &[T], default: T) -> &[T] {
            if column.iter().all(|x| *x == default) { &[] } else { column }
        }
        Entries {
            slots: &self.slots,
            fingerprints: &self.fingerprints,
            weights: needed(&self.weights, 1),
            costs: needed(&self.costs, 0),
            expiries: needed(&self.expiries, crate::NEVER),
        }
    }
}

/// The host, as far as a policy can tell.
struct Host<'a> {
    limits: &'a Limits,
    subject: Box<dyn Subject>,
    now: u64,
    slots: HashMap<u64, Slot>,
    residents: BTreeMap<Slot, Resident>,
    /// What the residents weigh together.
    weight: u64,
    free: BTreeSet<Slot>,
    /// Slots given out so far.
    given: u32,
    /// The calls and answers; `None` while nobody will read it.
    transcript: Option<Vec<String>>,
}

/// Every answer of a run, for comparing two.
pub(super) type Answers = Vec<Vec<Slot>>;

fn list(slots: &[Slot]) -> String {
    match slots {
        [] => "nobody".to_string(),
        slots => slots.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Runs a history and answers with all that the subject said, or with the clause that it broke.
///
/// With `hand_over`, successors are tried out beside it wherever one adopts: see [`Host::hand_over`].
pub(super) fn run(history: &History, tell: bool, hand_over: bool, open: &mut Open<'_>) -> Result<Answers, Broken> {
    let subject = open(&history.limits).map_err(|message| Broken {
        clause: Clause::Answers,
        message: format!("it does not open: {message}"),
        transcript: Vec::new(),
    })?;
    let mut host = Host {
        limits: &history.limits,
        subject,
        now: 0,
        slots: HashMap::new(),
        residents: BTreeMap::new(),
        weight: 0,
        free: BTreeSet::new(),
        given: 0,
        transcript: tell.then(Vec::new),
    };
    host.run(history, hand_over, open).map_err(|(clause, message)| Broken {
        clause,
        message,
        transcript: host.transcript.unwrap_or_default(),
    })
}

type Outcome<T> = Result<T, (Clause, String)>;

impl Host<'_> {
    fn run(&mut self, history: &History, hand_over: bool, open: &mut Open<'_>) -> Outcome<Answers> {
        let mut answers = Vec::new();
        for (i, step) in history.steps.iter().enumerate() {
            if let Gap::Adopt(at_a_time) = step.before {
                if hand_over {
                    let ahead = &history.steps[i..history.steps.len().min(i + TRIAL)];
                    self.hand_over(at_a_time.into(), i, ahead, open)?;
                }
                self.adopt(at_a_time.into(), open)?;
            }
            self.now += u64::from(step.elapsed_ms);
            answers.push(self.batch(&step.events)?);
            // Asking for the residents costs as much as there are: after each of the first batches, then now and then.
            if i < 32 || i % 64 == 0 {
                answers.push(self.check_residents()?.0);
            }
        }
        answers.push(self.check_residents()?.0);
        Ok(answers)
    }

    fn put(&mut self, slot: Slot, resident: Resident) {
        self.weight += u64::from(resident.terms.weight);
        if let Some(old) = self.residents.insert(slot, resident) {
            self.weight -= u64::from(old.terms.weight);
        }
    }

    fn take(&mut self, slot: Slot) -> Option<Resident> {
        let resident = self.residents.remove(&slot)?;
        self.weight -= u64::from(resident.terms.weight);
        self.slots.remove(&resident.key);
        Some(resident)
    }

    /// Makes a batch of events, as a host does.
    fn batch(&mut self, events: &[Event]) -> Outcome<Vec<Slot>> {
        let now = self.now;
        let (mut departed, mut changed, mut touched, mut arrived) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut touches: HashMap<Slot, u8> = HashMap::new();
        let mut new = HashSet::new();
        for event in events {
            match *event {
                Event::Ask(key, times, terms) => match self.slots.get(&key) {
                    Some(slot) if new.contains(slot) => {}
                    Some(&slot) => touch(&mut touched, &mut touches, slot, times),
                    None => {
                        let slot = self.free.pop_first().unwrap_or_else(|| {
                            self.given += 1;
                            self.given - 1
                        });
                        self.slots.insert(key, slot);
                        self.put(slot, Resident { key, terms, expires_at: terms.expires_at(now) });
                        new.insert(slot);
                        arrived.push(slot);
                    }
                },
                Event::Remove(key) => {
                    if let Some(&slot) = self.slots.get(&key).filter(|slot| !new.contains(*slot)) {
                        self.take(slot);
                        touches.remove(&slot);
                        changed.retain(|&other| other != slot);
                        touched.retain(|&other| other != slot);
                        departed.push(slot);
                    }
                }
                Event::Replace(key, terms) => {
                    if let Some(&slot) = self.slots.get(&key).filter(|slot| !new.contains(*slot)) {
                        self.put(slot, Resident { key, terms, expires_at: terms.expires_at(now) });
                        if !changed.contains(&slot) {
                            changed.push(slot);
                        }
                        touch(&mut touched, &mut touches, slot, 1);
                    }
                }
            }
        }

        let columns = |slots: &[Slot]| {
            let mut columns = Columns::default();
            slots.iter().for_each(|&slot| columns.push(slot, &self.residents[&slot]));
            columns
        };
        let (changes, arrivals) = (columns(&changed), columns(&arrived));
        let counts: Vec<u8> = touched.iter().map(|slot| touches[slot]).collect();
        let batch = Batch {
            now,
            departed: &departed,
            changed: changes.entries(),
            touched: &touched,
            touches: if counts.iter().all(|&n| n == 1) { &[] } else { &counts },
            arrived: arrivals.entries(),
        };
        self.tell(&batch);
        let victims = self.subject.advance(&batch);
        self.free.extend(&departed);
        let victims = self.answered("advance", victims)?;
        self.say(|| format!("     -> victims: {}", list(&victims)));
        self.evict(&victims)?;
        if self.weight > self.limits.capacity {
            let message = format!("the residents weigh {}; the capacity is {}", self.weight, self.limits.capacity);
            return Err((Clause::WithinCapacity, message));
        }
        Ok(victims)
    }

    fn evict(&mut self, victims: &[Slot]) -> Outcome<()> {
        let mut named = BTreeSet::new();
        for &victim in victims {
            if self.take(victim).is_none() {
                return Err(if named.contains(&victim) {
                    (Clause::VictimsOnce, format!("it named slot {victim} twice"))
                } else {
                    (Clause::VictimsAreResidents, format!("it named slot {victim}, which is not resident"))
                });
            }
            named.insert(victim);
        }
        self.free.extend(named);
        Ok(())
    }

    fn check_residents(&mut self) -> Outcome<(Vec<Slot>, Vec<u32>)> {
        let ranking = self.subject.residents();
        let (slots, uses) = self.answered("residents", ranking)?;
        let mut listed = BTreeSet::new();
        let wrong = slots.iter().find_map(|slot| {
            let twice = !listed.insert(*slot);
            let resident = self.residents.contains_key(slot);
            (twice || !resident).then(|| {
                let how = if resident { "more than once" } else { "which is not resident" };
                format!("`residents` lists slot {slot}, {how}")
            })
        });
        let missing = self.residents.keys().find(|slot| !listed.contains(slot));
        let wrong = wrong.or_else(|| missing.map(|slot| format!("`residents` leaves out slot {slot}")));
        let wrong = wrong.or_else(|| {
            (!uses.is_empty() && uses.len() != slots.len())
                .then(|| format!("`residents` gives {} uses for {} slots", uses.len(), slots.len()))
        });
        match wrong {
            None => Ok((slots, uses)),
            Some(message) => {
                self.say(|| format!("     -> residents: {}", list(&slots)));
                Err((Clause::ListsResidents, message))
            }
        }
    }

    /// Replaces the subject by a new one that adopts the residents.
    fn adopt(&mut self, at_a_time: usize, open: &mut Open<'_>) -> Outcome<()> {
        let (slots, uses) = self.check_residents()?;
        self.say(|| format!("another instance adopts {}, {at_a_time} at a time", list(&slots)));
        let successor = open(self.limits);
        self.subject = self.answered("open", successor)?;
        self.take_over(&slots, &uses, at_a_time)
    }

    /// Tries out a successor of the same name: it is given what the subject has learned, adopts the residents, and hears
    /// the next steps; and so does one that is given the same bytes, damaged. Both are forgotten then.
    fn hand_over(&mut self, at_a_time: usize, nth: usize, ahead: &[Step], open: &mut Open<'_>) -> Outcome<()> {
        let learned = self.subject.learned();
        let learned = self.answered("learned", learned)?;
        if learned.is_empty() {
            return Ok(());
        }
        let (slots, uses) = self.check_residents()?;
        let bound = MOST_LEARNED + MOST_LEARNED_A_RESIDENT * (self.given as usize).max(slots.len());
        if learned.len() > bound {
            let message =
                format!("`learned` has {} bytes; for {} slots it may have {bound}", learned.len(), self.given);
            return Err((Clause::Recalls, message));
        }
        let damaged = damage(&learned, fingerprint(nth as u64));
        for (what, bytes) in [("what it had learned", &learned), ("the same, damaged", &damaged)] {
            let before = self.transcript.as_ref().map_or(0, Vec::len);
            self.say(|| format!("a successor is tried out that recalls {what}: {} bytes", bytes.len()));
            let successor = open(self.limits);
            let mut trial = Host {
                limits: self.limits,
                subject: self.answered("open", successor)?,
                now: self.now,
                slots: self.slots.clone(),
                residents: self.residents.clone(),
                weight: self.weight,
                free: self.free.clone(),
                given: self.given,
                transcript: self.transcript.take(),
            };
            let tried =
                trial.recall(bytes, *bytes == learned, ahead, |trial| trial.take_over(&slots, &uses, at_a_time));
            self.transcript = trial.transcript;
            tried.map_err(|(_, message)| (Clause::Recalls, format!("with {what}: {message}")))?;
            if let Some(transcript) = &mut self.transcript {
                transcript.truncate(before);
            }
        }
        Ok(())
    }

    fn recall(
        &mut self,
        bytes: &[u8],
        own: bool,
        ahead: &[Step],
        adopt: impl FnOnce(&mut Self) -> Outcome<()>,
    ) -> Outcome<()> {
        let recalled = self.subject.recall(bytes);
        let recalled = self.answered("recall", recalled)?;
        if own && !recalled {
            return Err((Clause::Recalls, "`recall` answers that it cannot read it".to_string()));
        }
        adopt(self)?;
        for step in ahead {
            self.now += u64::from(step.elapsed_ms);
            self.batch(&step.events)?;
        }
        self.check_residents().map(drop)
    }

    /// The subject, just opened, adopts the residents.
    fn take_over(&mut self, slots: &[Slot], uses: &[u32], at_a_time: usize) -> Outcome<()> {
        for (i, slots) in slots.chunks(at_a_time).enumerate() {
            let mut columns = Columns::default();
            slots.iter().for_each(|slot| columns.push(*slot, &self.residents[slot]));
            let uses = uses.get(i * at_a_time..i * at_a_time + slots.len()).unwrap_or(&[]);
            let victims = self.subject.adopt(&columns.entries(), uses);
            let victims = self.answered("adopt", victims)?;
            if !victims.is_empty() {
                self.say(|| format!("     -> victims: {}", list(&victims)));
                return Err((Clause::Adopts, format!("it does not want {}, though all fit", list(&victims))));
            }
        }
        self.check_residents().map(drop).map_err(|(_, message)| (Clause::Adopts, format!("after `adopt`, {message}")))
    }

    fn answered<T>(&mut self, call: &str, answer: Result<T, String>) -> Outcome<T> {
        answer.map_err(|message| (Clause::Answers, format!("`{call}` was not answered: {message}")))
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(transcript) = &mut self.transcript {
            transcript.push(line());
        }
    }

    fn tell(&mut self, batch: &Batch<'_>) {
        if self.transcript.is_none() {
            return;
        }
        let terms = |e: &Entries<'_>, i: usize| {
            let entry = e.get(i);
            let mut line =
                format!("slot {} (key {}, weight {}", entry.slot, self.residents[&entry.slot].key, entry.weight);
            if entry.cost > 0 {
                line += &format!(", cost {}", entry.cost);
            }
            if entry.expires_at != crate::NEVER {
                line += &format!(", expires at {}", entry.expires_at);
            }
            line + ")"
        };
        let mut parts = Vec::new();
        parts.extend(batch.departed.iter().map(|slot| format!("departed slot {slot}")));
        parts.extend((0..batch.changed.len()).map(|i| format!("changed {}", terms(&batch.changed, i))));
        parts.extend(batch.touched.iter().enumerate().map(|(i, slot)| match batch.touches.get(i) {
            Some(&times) if times > 1 => format!("touched slot {slot} {times} times"),
            _ => format!("touched slot {slot}"),
        }));
        parts.extend((0..batch.arrived.len()).map(|i| format!("arrived {}", terms(&batch.arrived, i))));
        let what = if parts.is_empty() { "nothing".to_string() } else { parts.join("; ") };
        let now = self.now;
        self.say(|| format!("{now:>4} ms: {what}"));
    }
}

/// How many steps a successor is tried out for.
const TRIAL: usize = 8;
/// What a policy may have learned, in bytes, and how much more for each resident.
const MOST_LEARNED: usize = 1 << 20;
const MOST_LEARNED_A_RESIDENT: usize = 64;

/// The same bytes with a few of them changed, cut off somewhere, or with words made very large.
fn damage(bytes: &[u8], random: u64) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    let at = |n: u64| (fingerprint(random ^ n) % damaged.len() as u64) as usize;
    let places = [at(1), at(2), at(3), at(4)];
    match random % 3 {
        0 => damaged.truncate(places[0]),
        1 => places.iter().for_each(|&place| damaged[place] ^= 1 << (random >> 32 & 7)),
        _ => {
            for place in places {
                let word = place / 4 * 4;
                damaged.iter_mut().skip(word).take(4).for_each(|byte| *byte = 0xff);
            }
        }
    }
    damaged
}

fn touch(touched: &mut Vec<Slot>, touches: &mut HashMap<Slot, u8>, slot: Slot, times: u8) {
    match touches.entry(slot) {
        Entry::Occupied(mut n) => *n.get_mut() = n.get().saturating_add(times),
        Entry::Vacant(first) => {
            first.insert(times);
            touched.push(slot);
        }
    }
}
