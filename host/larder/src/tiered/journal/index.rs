//! What a journal knows in memory: the newest write of each key, when it is due, and how much room is left. Pure: it is
//! told the time, and what a commit has done.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use super::Record;

/// How much there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) entries: usize,
    pub(super) bytes: usize,
    /// So many that wait for company are company enough.
    pub(super) batch: usize,
}

/// How long a key is left alone whose flush has failed, at first and at most.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// So many batches of a keyspace are flushed at once, so that a key whose saves hang does not hold up the others.
const MOST_BATCHES: usize = 4;

/// So many keys of a keyspace are remembered as owed one by one, as in memory.
const MOST_OWED: usize = 1_000;

pub(super) struct Index {
    bounds: Bounds,
    /// The number of the newest write.
    last: u64,
    keyspaces: BTreeMap<Arc<str>, Keyspace>,
    dead: BTreeMap<u64, Arc<Record>>,
    /// What writes and dead letters have, those that are not committed yet among them.
    entries: usize,
    bytes: usize,
    /// What the store may have and nobody wants: writes that were coalesced, and what a failed commit may have left. It
    /// goes with the next commit that succeeds. Beyond the bounds, for which it counts apart, nothing more is written.
    garbage: BTreeMap<u64, Garbage>,
    garbage_bytes: usize,
    /// Writers who wait for room.
    pub(super) waiting: usize,
}

/// Whose it is, and how much the store may have of it.
struct Garbage {
    keyspace: Arc<str>,
    key: Arc<str>,
    bytes: usize,
}

/// The writes of one keyspace that are to be saved.
#[derive(Default)]
struct Keyspace {
    /// Writes that have a number, and are not committed yet.
    logging: usize,
    entries: HashMap<Arc<str>, Entry>,
    /// Those that wait for company, by when they have waited for long enough.
    young: BTreeMap<(Instant, u64), Arc<str>>,
    /// Those that are due at a moment: after a failure, or because somebody waits.
    timed: BTreeMap<(Instant, u64), Arc<str>>,
    taken: usize,
    /// What far tiers are still to drop, though the source has it: of each key, with the number of its write. The empty key
    /// stands for all of the keyspace.
    owed: HashMap<Arc<str>, (u64, Arc<Record>)>,
    /// Keys of dead letters that have come back.
    revived: BTreeSet<Arc<str>>,
    /// What is held while a save of a key runs, whoever asked for it, and whether anybody waits for it still or not.
    turns: HashMap<Arc<str>, Weak<AsyncMutex<()>>>,
    draining: bool,
    /// Told when something may be due, where somebody flushes.
    flusher: Option<Arc<Notify>>,
}

/// The newest write of a key.
struct Entry {
    number: u64,
    record: Arc<Record>,
    place: Place,
    failures: u32,
}

/// Where the key of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Young((Instant, u64)),
    Timed((Instant, u64)),
    /// A flush has it in hand.
    Taken,
}

impl Keyspace {
    /// Moves a key to another place; none: it is there no longer.
    fn place(&mut self, key: &str, place: Option<Place>) {
        let Some((key, entry)) = self.entries.get_key_value(key) else { return };
        let (key, before) = (key.clone(), entry.place);
        match before {
            Place::Young(at) => drop(self.young.remove(&at)),
            Place::Timed(at) => drop(self.timed.remove(&at)),
            Place::Taken => self.taken -= 1,
        }
        let Some(place) = place else {
            self.entries.remove(&key);
            return;
        };
        match place {
            Place::Young(at) => drop(self.young.insert(at, key.clone())),
            Place::Timed(at) => drop(self.timed.insert(at, key.clone())),
            Place::Taken => self.taken += 1,
        }
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.place = place;
        }
    }

    fn wake(&self) {
        if let Some(flusher) = &self.flusher {
            flusher.notify_one();
        }
    }
}

/// What a flusher takes.
pub(super) struct Taken {
    pub(super) keys: Vec<Arc<str>>,
    pub(super) revived: Vec<Arc<str>>,
    pub(super) next: Option<Instant>,
}

impl Index {
    /// With what a store has. Where it has several writes of a key, the newest is meant.
    pub(super) fn recover(bounds: Bounds, last: u64, records: Vec<(u64, Arc<Record>)>, now: Instant) -> Self {
        let mut index = Index {
            bounds,
            last,
            keyspaces: BTreeMap::new(),
            dead: BTreeMap::new(),
            entries: 0,
            bytes: 0,
            garbage: BTreeMap::new(),
            garbage_bytes: 0,
            waiting: 0,
        };
        for (number, record) in records {
            index.last = index.last.max(number);
            if record.saved {
                index.owe(number, record);
                continue;
            }
            index.count(&record);
            if record.dead.is_some() {
                index.dead.insert(number, record);
            } else {
                index.accept(number, record, now);
            }
        }
        index
    }

    fn count(&mut self, record: &Record) {
        self.entries += 1;
        self.bytes += record.bytes();
    }

    fn uncount(&mut self, record: &Record) {
        self.entries -= 1;
        self.bytes -= record.bytes();
    }

    // ---- what nobody wants

    fn discard_later(&mut self, number: u64, record: &Record) {
        let (keyspace, key, bytes) = (record.keyspace.clone(), record.key.clone(), record.bytes());
        self.garbage_bytes += bytes;
        if let Some(before) = self.garbage.insert(number, Garbage { keyspace, key, bytes }) {
            self.garbage_bytes -= before.bytes;
        }
    }

    /// What the next commit takes out.
    pub(super) fn garbage(&self) -> Vec<u64> {
        self.garbage.keys().copied().collect()
    }

    /// A commit has taken it out.
    pub(super) fn swept(&mut self, garbage: &[u64]) {
        for number in garbage {
            self.garbage_bytes -= self.garbage.remove(number).map_or(0, |gone| gone.bytes);
        }
    }

    pub(super) fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Whether there is so much of it that it has to go before anything more is written: while a store fails, each attempt may
    /// leave something.
    pub(super) fn is_littered(&self) -> bool {
        self.garbage.len() >= self.bounds.entries || self.garbage_bytes >= self.bounds.bytes
    }

    // ---- writing

    /// Makes room for a write, and gives it its number; `None`: there is no room.
    pub(super) fn reserve(&mut self, record: &Record) -> Option<u64> {
        if self.entries + 1 > self.bounds.entries || self.bytes + record.bytes() > self.bounds.bytes {
            return None;
        }
        self.count(record);
        self.keyspaces.entry(record.keyspace.clone()).or_default().logging += 1;
        self.last += 1;
        Some(self.last)
    }

    fn is_logged(&mut self, record: &Record) {
        if let Some(keyspace) = self.keyspaces.get_mut(&record.keyspace) {
            keyspace.logging -= 1;
        }
    }

    /// A write that had its number reserved is in the store. Whether it took the place of another.
    pub(super) fn logged(&mut self, number: u64, record: Arc<Record>, due: Instant) -> bool {
        self.is_logged(&record);
        self.accept(number, record, due)
    }

    /// A write is in the store: from now on it is its key's. Whether it took the place of another.
    fn accept(&mut self, number: u64, record: Arc<Record>, due: Instant) -> bool {
        // While there is a write of a key, that speaks for what is owed, too.
        if !record.key.is_empty() {
            self.settle(&record.keyspace, |key| *key != *record.key);
        }
        let keyspace = self.keyspaces.entry(record.keyspace.clone()).or_default();
        let Some(entry) = keyspace.entries.get_mut(&record.key) else {
            let at = (due, number);
            let (key, place) = (record.key.clone(), Place::Young(at));
            keyspace.young.insert(at, key.clone());
            keyspace.entries.insert(key, Entry { number, record, place, failures: 0 });
            return false;
        };
        // Commits come in the order of numbers, and so do the writes of a store; only a dead letter that has come back
        // meanwhile may be older.
        let (old_number, old) = if entry.number < number {
            (std::mem::replace(&mut entry.number, number), std::mem::replace(&mut entry.record, record))
        } else {
            (number, record)
        };
        self.uncount(&old);
        self.discard_later(old_number, &old);
        true
    }

    /// The commit of a write has failed, so it counts as not written; what the store has of it is to go.
    pub(super) fn give_up(&mut self, number: u64, record: &Arc<Record>) {
        self.is_logged(record);
        self.uncount(record);
        self.discard_later(number, record);
    }

    // ---- reading

    /// The newest write of a key.
    pub(super) fn newest(&self, keyspace: &str, key: &str) -> Option<(u64, &Arc<Record>)> {
        let entry = self.keyspaces.get(keyspace)?.entries.get(key)?;
        Some((entry.number, &entry.record))
    }

    /// Whether the store has nothing of a key that could be saved after a crash.
    pub(super) fn is_settled(&self, keyspace: &str, key: &str) -> bool {
        let is_it = |garbage: &Garbage| *garbage.key == *key && *garbage.keyspace == *keyspace;
        self.newest(keyspace, key).is_none() && !self.garbage.values().any(is_it)
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = (u64, &Record, u32)> {
        let entries = self.keyspaces.values().flat_map(|keyspace| keyspace.entries.values());
        entries.map(|entry| (entry.number, &*entry.record, entry.failures))
    }

    pub(super) fn pending_of(&self, keyspace: &str) -> usize {
        self.keyspaces.get(keyspace).map_or(0, |keyspace| keyspace.entries.len())
    }

    /// The same, and those that are not committed yet, of which nobody knows what becomes.
    pub(super) fn unsaved_of(&self, keyspace: &str) -> usize {
        self.keyspaces.get(keyspace).map_or(0, |keyspace| keyspace.entries.len() + keyspace.logging)
    }

    /// The keys of which far tiers may have what is out of date when a process ends: those with a write, with what is owed, or
    /// with a dead letter, whose copies may not all have gone.
    pub(super) fn keys_of(&self, keyspace: &str) -> BTreeSet<Arc<str>> {
        let of = self.keyspaces.get(keyspace).into_iter();
        let keys = of.flat_map(|of| of.entries.keys().chain(of.owed.keys()));
        let dead = self.dead.values().filter(|letter| *letter.keyspace == *keyspace).map(|letter| &letter.key);
        keys.chain(dead).cloned().collect()
    }

    pub(super) fn letters(&self) -> impl Iterator<Item = (u64, &Arc<Record>)> {
        self.dead.iter().map(|(number, letter)| (*number, letter))
    }

    pub(super) fn keyspaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.keyspaces.keys()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    // ---- flushing

    /// Somebody flushes this keyspace from now on; `false`: somebody else does.
    pub(super) fn attach(&mut self, keyspace: &Arc<str>, flusher: Arc<Notify>) -> bool {
        let keyspace = self.keyspaces.entry(keyspace.clone()).or_default();
        if keyspace.flusher.is_some() {
            return false;
        }
        keyspace.flusher = Some(flusher);
        keyspace.draining = false;
        keyspace.wake();
        true
    }

    pub(super) fn detach(&mut self, keyspace: &str) {
        if let Some(keyspace) = self.keyspaces.get_mut(keyspace) {
            keyspace.flusher = None;
        }
    }

    pub(super) fn is_attached(&self, keyspace: &str) -> bool {
        self.keyspaces.get(keyspace).is_some_and(|keyspace| keyspace.flusher.is_some())
    }

    pub(super) fn is_draining(&self, keyspace: &str) -> bool {
        self.keyspaces.get(keyspace).is_some_and(|keyspace| keyspace.draining)
    }

    /// Whoever flushes is to look what is due.
    pub(super) fn wake_all(&self) {
        self.keyspaces.values().for_each(Keyspace::wake);
    }

    /// Takes no more writes, and flushes what there is.
    pub(super) fn drain(&mut self, keyspace: &str, now: Instant) {
        let Some(keyspace) = self.keyspaces.get_mut(keyspace) else { return };
        keyspace.draining = true;
        let resting: Vec<_> = std::mem::take(&mut keyspace.timed).into_iter().collect();
        for ((_, number), key) in resting {
            keyspace.timed.insert((now, number), key.clone());
            if let Some(entry) = keyspace.entries.get_mut(&key) {
                entry.place = Place::Timed((now, number));
            }
        }
        keyspace.wake();
    }

    /// A key is due now; `false`: it has no write.
    pub(super) fn urge(&mut self, keyspace: &str, key: &str, now: Instant) -> bool {
        let Some(keyspace) = self.keyspaces.get_mut(keyspace) else { return false };
        match keyspace.entries.get(key) {
            None => return false,
            Some(Entry { place: Place::Young((_, number)), .. }) => {
                let place = Place::Timed((now, *number));
                keyspace.place(key, Some(place));
                keyspace.wake();
            }
            // Under way, or it has failed: then it rests as it would.
            Some(_) => {}
        }
        true
    }

    /// Takes what is due: what has its moment, what has waited for long enough, whole batches; all that is young where room
    /// is short.
    pub(super) fn take(&mut self, keyspace: &str, now: Instant) -> Taken {
        let is_tight = self.waiting > 0 || self.entries > self.bounds.entries / 2 || self.bytes > self.bounds.bytes / 2;
        let batch = self.bounds.batch;
        let mut taken = Taken { keys: Vec::new(), revived: Vec::new(), next: None };
        let Some(keyspace) = self.keyspaces.get_mut(keyspace) else { return taken };
        taken.revived = std::mem::take(&mut keyspace.revived).into_iter().collect();
        let all = is_tight || keyspace.draining || keyspace.young.len() >= batch;
        let room = (batch * MOST_BATCHES).saturating_sub(keyspace.taken);
        let timed = keyspace.timed.iter().filter(|((at, _), _)| *at <= now);
        let young = keyspace.young.iter().filter(|((at, _), _)| all || *at <= now);
        taken.keys = timed.chain(young).map(|(_, key)| key.clone()).take(room).collect();
        taken.keys.iter().for_each(|key| keyspace.place(key, Some(Place::Taken)));
        let first = |places: &BTreeMap<(Instant, u64), Arc<str>>| places.keys().next().map(|(at, _)| *at);
        // Without room for more, the end of a flush wakes; with `all`, nothing young is left.
        if keyspace.taken < batch * MOST_BATCHES {
            taken.next = [first(&keyspace.timed), first(&keyspace.young)].into_iter().flatten().min();
        }
        taken
    }

    /// What is held while a save of a key runs.
    pub(super) fn turn(&mut self, keyspace: &Arc<str>, key: &str) -> Arc<AsyncMutex<()>> {
        let turns = &mut self.keyspaces.entry(keyspace.clone()).or_default().turns;
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        // Those that nobody holds go when the table would grow.
        if turns.len() == turns.capacity() {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(AsyncMutex::new(()));
        turns.insert(key.into(), Arc::downgrade(&turn));
        turn
    }

    /// The source has a write, and the store has it no longer, or what is owed in its place. A newer one of the key is due later.
    pub(super) fn saved(&mut self, number: u64, record: &Arc<Record>, debt: Option<&Arc<Record>>, due: Instant) {
        let Some(keyspace) = self.keyspaces.get_mut(&record.keyspace) else { return };
        let Some(entry) = keyspace.entries.get_mut(&record.key) else { return };
        if entry.number == number {
            keyspace.place(&record.key, None);
            self.uncount(record);
            if let Some(debt) = debt {
                self.owe(number, debt.clone());
            }
        } else {
            entry.failures = 0;
            let place = Place::Young((due, entry.number));
            keyspace.place(&record.key, Some(place));
            if let Some(debt) = debt {
                self.discard_later(number, debt);
            }
        }
    }

    // ---- what far tiers are owed

    /// What is to be in the store in place of a write that the source has, and of which a far tier does not know; none
    /// where something there says it already, as a newer write of the key does. Beyond a part of the bounds, it is said of
    /// all of the keyspace at once: a tier that is down is not to fill the journal.
    pub(super) fn debt(&self, number: u64, record: &Record) -> Option<Record> {
        let Keyspace { entries, owed, .. } = self.keyspaces.get(&record.keyspace)?;
        // With a newer write, nobody would take it out again where the commit fails and is done.
        if entries.get(&record.key).is_none_or(|entry| entry.number != number) || owed.contains_key("") {
            return None;
        }
        let bytes: usize = owed.values().map(|(_, debt)| debt.bytes()).sum();
        let is_much = owed.len() >= MOST_OWED.min(self.bounds.entries / 8) || bytes > self.bounds.bytes / 8;
        Some(record.debt(if is_much { Arc::default() } else { record.key.clone() }))
    }

    /// It is in the store.
    fn owe(&mut self, number: u64, debt: Arc<Record>) {
        self.settle(&debt.keyspace, |key| !debt.key.is_empty() && *key != *debt.key);
        let keyspace = self.keyspaces.entry(debt.keyspace.clone()).or_default();
        let has_write = keyspace.entries.contains_key(&debt.key);
        if has_write && !debt.key.is_empty() {
            self.discard_later(number, &debt);
            return;
        }
        keyspace.owed.insert(debt.key.clone(), (number, debt.clone()));
        self.count(&debt);
    }

    /// What is owed no longer goes with the next commit; whether there is such.
    pub(super) fn settle(&mut self, keyspace: &str, is_owed: impl Fn(&str) -> bool) -> bool {
        let Some(of) = self.keyspaces.get_mut(keyspace) else { return false };
        let paid: Vec<_> = of.owed.extract_if(|key, _| !is_owed(key)).map(|(_, debt)| debt).collect();
        for (number, debt) in &paid {
            self.uncount(debt);
            self.discard_later(*number, debt);
        }
        !paid.is_empty()
    }

    pub(super) fn owed(&self) -> usize {
        self.keyspaces.values().map(|keyspace| keyspace.owed.len()).sum()
    }

    /// A flush has come to nothing: the key rests.
    pub(super) fn failed(&mut self, keyspace: &str, key: &str, now: Instant) {
        let Some(keyspace) = self.keyspaces.get_mut(keyspace) else { return };
        let Some(entry) = keyspace.entries.get_mut(key).filter(|entry| entry.place == Place::Taken) else { return };
        let rest = REST.saturating_mul(1 << entry.failures.min(16)).min(LONGEST_REST);
        entry.failures = entry.failures.saturating_add(1);
        let place = Place::Timed((now + rest, entry.number));
        keyspace.place(key, Some(place));
        keyspace.wake();
    }

    // ---- dead letters

    /// A write is in the store as a dead letter. Where there is a newer one of the key, that one counts, and is due.
    pub(super) fn bury(&mut self, number: u64, letter: &Arc<Record>, now: Instant) {
        let Some(keyspace) = self.keyspaces.get_mut(&letter.keyspace) else { return };
        let Some(entry) = keyspace.entries.get_mut(&letter.key) else { return };
        if entry.number == number {
            let write = entry.record.clone();
            keyspace.place(&letter.key, None);
            self.uncount(&write);
            self.count(letter);
            self.dead.insert(number, letter.clone());
        } else {
            let place = Place::Timed((now, entry.number));
            keyspace.place(&letter.key, Some(place));
            self.discard_later(number, letter);
        }
    }

    /// A dead letter is a write again, and due.
    pub(super) fn revive(&mut self, number: u64, record: &Arc<Record>, now: Instant) {
        let Some(letter) = self.dead.remove(&number) else { return };
        self.uncount(&letter);
        self.count(record);
        self.accept(number, record.clone(), now);
        if let Some(keyspace) = self.keyspaces.get_mut(&record.keyspace) {
            keyspace.revived.insert(record.key.clone());
            keyspace.wake();
        }
    }

    /// A dead letter is in the store no longer.
    pub(super) fn discard(&mut self, number: u64) {
        if let Some(letter) = self.dead.remove(&number) {
            self.uncount(&letter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { entries: 12, bytes: 12 * 200, batch: 3 };

    fn record(keyspace: usize, key: u64, value: u64) -> Arc<Record> {
        Arc::new(Record {
            keyspace: ["a", "b"][keyspace].into(),
            key: key.to_string().into(),
            value: Some(value.to_le_bytes().into()),
            validator: None,
            tags: [].into(),
            fresh_ms: None,
            stale_ms: None,
            rescue_ms: None,
            logged_at: 0,
            dead: None,
            saved: false,
        })
    }

    fn value(record: &Record) -> u64 {
        u64::from_le_bytes(record.value.as_ref().unwrap()[..].try_into().unwrap())
    }

    fn at(ms: u64) -> Instant {
        static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BEGAN.get_or_init(Instant::now) + Duration::from_millis(ms)
    }

    /// A store, as commits leave it: what would be there after a crash.
    #[derive(Default)]
    struct Disk(BTreeMap<u64, Arc<Record>>, u64);

    type Saving = Option<(u64, Arc<Record>)>;

    /// Beside the index a model of it: of each key, the values that were accepted and are not saved, in order.
    struct World {
        index: Index,
        disk: Disk,
        now: u64,
        random: u64,
        /// The newest value that was acknowledged of each key, if it is not saved.
        waits: BTreeMap<(usize, u64), u64>,
        saved: BTreeMap<(usize, u64), u64>,
        /// Keys in hand, with what is being saved.
        taken: Vec<(usize, u64, Saving)>,
        letters: BTreeMap<u64, u64>,
        /// Keys that the source has, and of which a tier does not know.
        owed: BTreeSet<(usize, u64)>,
        values: u64,
    }

    impl World {
        fn below(&mut self, n: u64) -> u64 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random % n
        }

        fn commit(&mut self, puts: &[(u64, Arc<Record>)], removes: &[u64], done: bool) {
            let garbage = self.index.garbage();
            if done {
                garbage.iter().chain(removes).for_each(|number| drop(self.disk.0.remove(number)));
                self.disk.0.extend(puts.iter().cloned());
                self.disk.1 = puts.iter().map(|(number, _)| *number).fold(self.disk.1, u64::max);
                self.index.swept(&garbage);
            }
        }

        fn log(&mut self) {
            let (keyspace, key) = (self.below(2) as usize, self.below(6));
            self.values += 1;
            let new = record(keyspace, key, self.values);
            let Some(number) = self.index.reserve(&new) else {
                assert!(self.index.entries >= BOUNDS.entries || self.index.bytes + 200 > BOUNDS.bytes);
                return;
            };
            match self.below(5) {
                // It failed, and may be there all the same.
                0 => {
                    if self.below(2) == 0 {
                        self.disk.0.insert(number, new.clone());
                        self.disk.1 = number;
                    }
                    self.index.give_up(number, &new);
                }
                _ => {
                    self.commit(&[(number, new.clone())], &[], true);
                    self.index.logged(number, new, at(self.now + 50));
                    self.waits.insert((keyspace, key), self.values);
                }
            }
        }

        fn flush(&mut self) {
            if self.taken.is_empty() {
                for (keyspace, name) in ["a", "b"].iter().enumerate() {
                    let taken = self.index.take(name, at(self.now));
                    self.taken.extend(taken.keys.iter().map(|key| (keyspace, key.parse().unwrap(), None)));
                }
                return;
            }
            let which = self.below(self.taken.len() as u64) as usize;
            let (keyspace, key, saving) = self.taken[which].clone();
            let (name, text) = (["a", "b"][keyspace], key.to_string());
            let Some((number, record)) = saving else {
                let (number, record) = self.index.newest(name, &text).expect("what is in hand is there");
                self.taken[which].2 = Some((number, record.clone()));
                return;
            };
            self.taken.swap_remove(which);
            match self.below(6) {
                0 => self.index.failed(name, &text, at(self.now)),
                1 => {
                    let letter = Arc::new(Record { dead: Some("no".into()), ..(*record).clone() });
                    let is_newest = self.waits.get(&(keyspace, key)) == Some(&value(&record));
                    self.commit(&[(number, letter.clone())], &[], true);
                    self.index.bury(number, &letter, at(self.now));
                    if is_newest {
                        self.waits.remove(&(keyspace, key));
                        self.letters.insert(number, value(&record));
                    }
                }
                _ => {
                    let before = self.saved.insert((keyspace, key), value(&record));
                    assert!(before.is_none_or(|before| before <= value(&record)), "out of order");
                    if self.below(2) == 0 {
                        self.owed.insert((keyspace, key));
                    }
                    let is_owed = self.owed.contains(&(keyspace, key));
                    let debt = is_owed.then(|| self.index.debt(number, &record).map(Arc::new)).flatten();
                    match &debt {
                        None => self.commit(&[], &[number], true),
                        Some(debt) => self.commit(&[(number, debt.clone())], &[], true),
                    }
                    self.index.saved(number, &record, debt.as_ref(), at(self.now + 50));
                    if self.waits.get(&(keyspace, key)) == Some(&value(&record)) {
                        self.waits.remove(&(keyspace, key));
                    }
                }
            }
        }

        fn letter(&mut self) {
            let Some((number, letter)) = self.index.letters().map(|(number, letter)| (number, letter.clone())).next()
            else {
                return;
            };
            if self.below(2) == 0 {
                self.commit(&[], &[number], true);
                self.index.discard(number);
                self.letters.remove(&number);
                // With an operator's word for it.
                self.owed.remove(&(usize::from(&*letter.keyspace == "b"), letter.key.parse().unwrap()));
            } else if self.index.newest(&letter.keyspace, &letter.key).is_none() {
                let record = Arc::new(Record { dead: None, ..(*letter).clone() });
                let keyspace = usize::from(&*record.keyspace == "b");
                let key = (keyspace, record.key.parse().unwrap());
                self.commit(&[(number, record.clone())], &[], true);
                self.index.revive(number, &record, at(self.now));
                self.letters.remove(&number);
                self.waits.insert(key, value(&record));
                // An operator's word: from here on that is the newest.
                self.saved.remove(&key);
            }
        }

        /// A tier has dropped what it has of some keys, or of all.
        fn pay(&mut self) {
            let (keyspace, name) = [(0, "a"), (1, "b")][self.below(2) as usize];
            let paid = self.below(9);
            self.owed.retain(|(owes, key)| *owes != keyspace || paid < 6 && *key != paid);
            let owed: BTreeSet<_> =
                self.owed.iter().filter(|(owes, _)| *owes == keyspace).map(|(_, key)| *key).collect();
            let is_owed = |key: &str| match key {
                "" => !owed.is_empty(),
                key => owed.contains(&key.parse().unwrap()),
            };
            self.index.settle(name, is_owed);
        }

        /// The process dies, and another one starts with what the disk has.
        fn crash(&mut self) {
            let records = self.disk.0.iter().map(|(number, record)| (*number, record.clone())).collect();
            // What failed and was there all the same counts now.
            for (number, record) in self.disk.0.iter().filter(|(_, record)| !record.saved) {
                let key = (usize::from(&*record.keyspace == "b"), record.key.parse().unwrap());
                let is_newest = self.disk.0.iter().filter(|(_, other)| {
                    other.key == record.key && other.keyspace == record.keyspace && other.dead.is_none() && !other.saved
                });
                if record.dead.is_none() && is_newest.map(|(number, _)| number).max() == Some(number) {
                    assert!(self.waits.get(&key).is_none_or(|waits| *waits <= value(record)), "an older one is newest");
                    self.waits.insert(key, value(record));
                }
            }
            self.index = Index::recover(BOUNDS, self.disk.1, records, at(self.now));
            // So may a letter whose key had a newer write already.
            let dead = self.disk.0.iter().filter(|(_, record)| record.dead.is_some());
            self.letters = dead.map(|(number, letter)| (*number, value(letter))).collect();
            self.taken.clear();
        }

        fn check(&self) {
            let found: BTreeMap<_, _> = self
                .index
                .pending()
                .map(|(_, record, _)| {
                    ((usize::from(&*record.keyspace == "b"), record.key.parse().unwrap()), value(record))
                })
                .collect();
            assert_eq!(found, self.waits, "the newest of each key, and nothing else");
            let letters: BTreeMap<_, _> =
                self.index.letters().map(|(number, letter)| (number, value(letter))).collect();
            assert_eq!(letters, self.letters);
            for (number, record, _) in self.index.pending() {
                assert_eq!(self.disk.0.get(&number).map(|record| value(record)), Some(value(record)), "it is durable");
            }
            let kept: usize = self.index.pending().map(|(_, record, _)| record.bytes()).sum();
            let dead: usize = self.index.letters().map(|(_, letter)| letter.bytes()).sum();
            let debts = || self.index.keyspaces.values().flat_map(|keyspace| keyspace.owed.values());
            let owed: usize = debts().map(|(_, debt)| debt.bytes()).sum();
            let count = found.len() + letters.len() + debts().count();
            assert_eq!((self.index.entries, self.index.bytes), (count, kept + dead + owed));
            for (number, debt) in debts() {
                assert_eq!(self.disk.0.get(number), Some(debt), "it is durable");
            }
            for (keyspace, key) in &self.owed {
                let known = self.index.keys_of(["a", "b"][*keyspace]);
                assert!(known.contains("") || known.contains(&*key.to_string()), "{key} is owed");
            }
            assert_eq!(
                self.index.garbage_bytes,
                self.index.garbage.values().map(|garbage| garbage.bytes).sum::<usize>()
            );
            assert!(
                self.index.keyspaces.values().all(|keyspace| keyspace.logging == 0),
                "each of these commits has ended"
            );
            for (name, keyspace) in &self.index.keyspaces {
                let in_places = keyspace.young.len() + keyspace.timed.len() + keyspace.taken;
                assert_eq!(in_places, keyspace.entries.len(), "each key of {name} is in one place");
                for entry in keyspace.entries.values() {
                    let key = match entry.place {
                        Place::Young(at) => keyspace.young.get(&at),
                        Place::Timed(at) => keyspace.timed.get(&at),
                        Place::Taken => Some(&entry.record.key),
                    };
                    assert_eq!(key, Some(&entry.record.key));
                }
            }
        }
    }

    /// Random histories with failed commits and crashes, beside a model.
    #[test]
    fn the_newest_write_of_each_key_is_kept_through_failures_and_crashes() {
        let (mut pending, mut letters, mut owed, mut all_owed) = (0, 0, 0, 0);
        for seed in 1..400u64 {
            let mut world = World {
                index: Index::recover(BOUNDS, 0, Vec::new(), at(0)),
                disk: Disk::default(),
                now: 0,
                random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
                waits: BTreeMap::new(),
                saved: BTreeMap::new(),
                taken: Vec::new(),
                letters: BTreeMap::new(),
                owed: BTreeSet::new(),
                values: 0,
            };
            for _ in 0..300 {
                world.now += world.below(30);
                match world.below(40) {
                    0 => world.crash(),
                    39 => world.pay(),
                    1..=2 => world.letter(),
                    3..=15 => world.log(),
                    16 => {
                        let key = world.below(6).to_string();
                        world.index.urge("a", &key, at(world.now));
                    }
                    _ => world.flush(),
                }
                world.check();
                pending += world.waits.len();
                letters += world.letters.len();
                owed += world.index.owed();
                all_owed += usize::from(world.index.keys_of("a").contains(""));
            }
        }
        assert!(owed > 10_000 && all_owed > 1_000, "{owed} {all_owed}");
        assert!(pending > 100_000 && letters > 1_000, "{pending} {letters}");
    }

    fn take(index: &mut Index, now: u64) -> (Vec<String>, Option<Instant>) {
        let taken = index.take("a", at(now));
        (taken.keys.iter().map(ToString::to_string).collect(), taken.next)
    }

    fn log(index: &mut Index, key: u64, due: u64) -> (u64, Arc<Record>) {
        let record = record(0, key, 1);
        let number = index.reserve(&record).unwrap();
        index.logged(number, record.clone(), at(due));
        (number, record)
    }

    #[test]
    fn what_is_due_is_what_has_waited_or_is_a_batch() {
        let mut index = Index::recover(Bounds { entries: 100, bytes: 1 << 20, batch: 3 }, 0, Vec::new(), at(0));
        log(&mut index, 1, 50);
        log(&mut index, 2, 60);
        assert_eq!(take(&mut index, 10), (vec![], Some(at(50))));
        assert_eq!(take(&mut index, 50), (vec!["1".into()], Some(at(60))));
        log(&mut index, 3, 70);
        assert_eq!(take(&mut index, 50).0, Vec::<String>::new());
        log(&mut index, 4, 80);
        assert_eq!(take(&mut index, 50).0, ["2", "3", "4"], "a batch, whatever its age");
        // One that has failed rests, for longer each time, and is nobody's company.
        let rests = |index: &mut Index, now| {
            index.failed("a", "1", at(now));
            take(index, now).1.unwrap().duration_since(at(now)).as_millis()
        };
        assert_eq!(rests(&mut index, 100), 1_000);
        assert_eq!(take(&mut index, 1_100).0, ["1"]);
        assert_eq!(rests(&mut index, 1_100), 2_000);
        assert_eq!(take(&mut index, 100_000).0, ["1"]);
        // Where somebody waits for room, all is due.
        log(&mut index, 9, 200_000);
        index.waiting = 1;
        assert_eq!(take(&mut index, 100_000).0, ["9"]);
    }

    #[test]
    fn hanging_keys_do_not_hold_up_the_others_without_end() {
        let mut index = Index::recover(Bounds { entries: 100, bytes: 1 << 20, batch: 2 }, 0, Vec::new(), at(0));
        (0..20).for_each(|key| drop(log(&mut index, key, 0)));
        assert_eq!(take(&mut index, 1).0.len(), 2 * MOST_BATCHES);
        assert_eq!(take(&mut index, 1), (vec![], None), "the end of a flush tells when there is room");
        index.failed("a", "3", at(1));
        assert_eq!(take(&mut index, 1).0.len(), 1);
    }
}
