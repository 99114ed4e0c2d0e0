//! Records the corpus of the role `patterns`: sets of rules, and operations under each.
//!
//! The test kit of `larder-guest` makes the operations up from seeds, with its model of a host: copies in the tiers, leaders
//! that land or die, loads that fail or take long, tiers that are down, fences that move. It holds every answer against the
//! contract, for an answer that breaks it is not worth recording.

use std::{cell::RefCell, collections::HashMap, collections::HashSet, rc::Rc};

use larder_guest::patterns::{Abilities, Answer, Keyspace, Kind, Moment, Operation, Patterns, Rulebook, Turn};
use larder_guest::testkit::fingerprint;
use larder_guest::testkit::patterns::{History, Rule, Subject, Suite};
use larder_guest::{Refusal, Value};
use larder_modules::patterns::Textbook;
use serde_json::{Value as Json, json};

use super::words::{Word, case};
use super::{Line, Run, Step};
use crate::Setting;

/// What text parameters may be, for rules that are drawn.
pub const TEXTS: &[(&str, &[&str])] = &[
    ("read", &["", "cache-aside", "read-through", "refresh-ahead"]),
    ("write", &["", "write-through", "write-behind", "write-around", "write-invalidate", "put"]),
    ("flight", &["", "none", "process", "fleet"]),
];

/// So many operations are drawn under each rule; those that tell nothing new are not recorded.
const DRAWS: usize = 1_500;

/// A set of rules to be recorded: a file of the corpus.
#[derive(Debug)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    kinds: &'static [Kind],
    /// How often each pair of event and action is recorded under each rule, where it comes about as often.
    each: usize,
    rules: Vec<Rule>,
    /// Operations begin under these and go on under others.
    changes: bool,
}

const READS: &[Kind] = &[Kind::Read, Kind::Refresh, Kind::Fill];
const WRITES: &[Kind] = &[Kind::Write, Kind::Remove, Kind::Flush];
const ALL: &[Kind] = &[Kind::Read, Kind::Write, Kind::Remove, Kind::Fill, Kind::Refresh, Kind::Invalidate, Kind::Flush];

/// Rules, one a line: tiers, those that are shared, abilities by their first letters (`l`oads, `s`aves, `j`ournal, `b`us,
/// `f`leet), and the parameters.
const CACHE_ASIDE: &str = "
1 0 -     read=cache-aside
1 0 -     ttl-ms=60000 negative-ttl-ms=5000
2 2 lsb   read=cache-aside ttl-ms=60000 wait-ms=200
3 2 lsbf  read=cache-aside ttl-ms=60000 jitter=0.3 flight=fleet
3 2 -     ttl-ms=10000 stale-while-revalidate-ms=30000
3 2 bf    ttl-ms=10000 stale-while-revalidate-ms=30000 flight=fleet throttle-ms=250
7 6 lb    read=cache-aside ttl-ms=3600000 near-ttl-ms=1000 jitter=0.1
7 4 b     ttl-ms=3600000 source-ttl=false flight=none
129 128 f flight=process near-ttl-ms=500
5 0 -     source-ttl=false flight=none throttle-ms=0 soft-timeout-ms=0
";
const READ_THROUGH: &str = "
1 0 l     -
1 0 ls    ttl-ms=1000 flight=none
2 2 lsb   ttl-ms=60000 jitter=1.0
3 2 lsbf  ttl-ms=60000 jitter=0.25 flight=fleet
3 2 lb    read=read-through ttl-ms=60000 stale-while-revalidate-ms=10000 stale-if-error-ms=3600000
3 2 lbf   ttl-ms=60000 stale-while-revalidate-ms=10000 stale-if-error-ms=3600000 flight=fleet soft-timeout-ms=300 hard-timeout-ms=5000
3 2 l     ttl-ms=5000 stale-if-error-ms=600000 soft-timeout-ms=50 throttle-ms=5000
7 6 lf    ttl-ms=5000 stale-if-error-ms=600000 soft-timeout-ms=50 flight=none retries=2
1 0 l     ttl-ms=600000 stale-if-error-ms=60000 soft-timeout-ms=2000 wait-ms=100 jitter=0.01
7 6 lbf   ttl-ms=60000 near-ttl-ms=2000 negative-ttl-ms=10000 retries=3
7 2 l     ttl-ms=60000 retries=10 backoff-ms=700 hard-timeout-ms=2000 flight=none
7 4 lb    source-ttl=false ttl-ms=60000 jitter=0.5 stale-while-revalidate-ms=1000
129 128 l negative-ttl-ms=30000 stale-if-error-ms=60000 retries=1 backoff-ms=1 wait-ms=1
255 254 lf ttl-ms=86400000 near-ttl-ms=10000 flight=fleet throttle-ms=0 stale-while-revalidate-ms=60000
";
const REFRESH_AHEAD: &str = "
1 0 l     read=refresh-ahead beta=1.0 ttl-ms=60000
1 0 l     read=refresh-ahead beta=1.0
3 2 lb    read=refresh-ahead beta=2.5 ttl-ms=1000 jitter=0.2
3 2 lbf   read=refresh-ahead beta=1000.0 ttl-ms=60000 flight=fleet
3 2 lb    read=refresh-ahead eager=0.8 ttl-ms=60000
7 6 lbf   read=refresh-ahead eager=0.5 beta=1.0 ttl-ms=60000 near-ttl-ms=5000
7 4 l     read=refresh-ahead refresh-every-ms=20000 ttl-ms=60000
3 2 l     read=refresh-ahead refresh-every-ms=500 beta=0.5 ttl-ms=60000 retries=2
3 2 lb    read=refresh-ahead eager=0.9 ttl-ms=10000 stale-while-revalidate-ms=5000 stale-if-error-ms=60000 throttle-ms=100
2 2 l     read=refresh-ahead beta=1.0 ttl-ms=30000 flight=none hard-timeout-ms=1000
3 2 lbf   read=refresh-ahead eager=0.1 negative-ttl-ms=1000 flight=fleet soft-timeout-ms=20 stale-if-error-ms=1000
5 4 l     read=refresh-ahead beta=0.01 eager=0.75 ttl-ms=86400000 source-ttl=false
";
const WRITE_THROUGH: &str = "
1 0 ls    write=write-through ttl-ms=60000
3 2 lsb   write=write-through ttl-ms=60000 jitter=0.2 save-timeout-ms=2000
3 2 lsb   write=write-through acknowledge-unreached=true
7 6 lsbf  write=write-through read=refresh-ahead beta=1.0 ttl-ms=60000 near-ttl-ms=3000
2 2 s     write=write-through read=cache-aside ttl-ms=60000 stale-while-revalidate-ms=5000
7 2 lsj   write=write-through ttl-ms=60000 source-ttl=false stale-if-error-ms=60000
";
const WRITE_BEHIND: &str = "
1 0 lsj   write=write-behind ttl-ms=60000
3 2 lsjb  write=write-behind ttl-ms=60000 jitter=0.2 save-timeout-ms=2000 log-wait-ms=100
3 2 lsjb  write=write-behind acknowledge-unreached=true backoff-ms=1000
7 6 lsjbf write=write-behind read=refresh-ahead eager=0.8 ttl-ms=60000 near-ttl-ms=3000 backoff-ms=60000
2 2 lsj   write=write-behind stale-while-revalidate-ms=5000
7 4 lsj   write=write-behind ttl-ms=60000 source-ttl=false backoff-ms=1
";
const WRITE_AROUND: &str = "
1 0 ls    write=write-around ttl-ms=60000
3 2 lsb   write=write-around save-timeout-ms=2000
7 6 s     write=write-around read=cache-aside acknowledge-unreached=true
3 0 lsj   write=write-around ttl-ms=1000
";
const WRITE_INVALIDATE: &str = "
1 0 ls    write=write-invalidate
3 2 lsb   ttl-ms=60000 save-timeout-ms=2000
7 6 sb    write=write-invalidate read=cache-aside acknowledge-unreached=true
2 2 lsjbf ttl-ms=60000
";
const PUT: &str = "
1 0 -     write=put
3 2 lb    ttl-ms=60000 jitter=0.2 negative-ttl-ms=1000
7 6 lsb   write=put acknowledge-unreached=true near-ttl-ms=3000
2 2 lb    write=put read=refresh-ahead beta=1.0 ttl-ms=60000
";
const INVALIDATION: &str = "
1 0 l     ttl-ms=60000
3 2 lsb   ttl-ms=60000 stale-while-revalidate-ms=10000
3 2 lsb   acknowledge-unreached=true
7 6 lb    read=refresh-ahead eager=0.5 ttl-ms=60000
2 2 b     -
7 0 -     ttl-ms=1000
";

/// All sets.
pub fn sets() -> Vec<Set> {
    let set = |name, kinds, each, rules| Set { name, kinds, each, rules, changes: false };
    let by = |name, kinds, each, text: &str| set(name, kinds, each, rules(text));
    // Alike but for their parameters, so that each can be followed by each.
    let alike = [CACHE_ASIDE, READ_THROUGH, REFRESH_AHEAD, WRITE_THROUGH, WRITE_BEHIND, WRITE_AROUND, PUT].map(rules);
    let alike = alike.concat().into_iter().map(|rule| Rule {
        tiers: 0b111,
        shared: 0b110,
        abilities: Abilities::all(),
        ..rule
    });
    vec![
        by("cache-aside", READS, 12, CACHE_ASIDE),
        by("read-through", READS, 9, READ_THROUGH),
        by("refresh-ahead", READS, 11, REFRESH_AHEAD),
        by("write-through", WRITES, 16, WRITE_THROUGH),
        by("write-behind", WRITES, 16, WRITE_BEHIND),
        by("write-around", WRITES, 12, WRITE_AROUND),
        by("write-invalidate", WRITES, 12, WRITE_INVALIDATE),
        by("put", WRITES, 16, PUT),
        by("invalidation", &[Kind::Invalidate], 24, INVALIDATION),
        set("drawn", ALL, 1, drawn(80)),
        Set { changes: true, ..set("changes", ALL, 1, alike.collect()) },
    ]
}

fn rules(text: &str) -> Vec<Rule> {
    text.trim().lines().map(rule).collect()
}

/// One of the lines above.
fn rule(line: &str) -> Rule {
    let wrong = |what: &str| -> ! { panic!("{what:?} in the rule {line:?}") };
    let mut words = line.split_whitespace();
    let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or_else(|| wrong("no number"));
    let (tiers, shared) = (number(), number());
    let abilities = words.next().unwrap_or_default().chars().fold(Abilities::empty(), |all, letter| match letter {
        'l' => all | Abilities::LOADS,
        's' => all | Abilities::SAVES,
        'j' => all | Abilities::LOGS,
        'b' => all | Abilities::ANNOUNCES,
        'f' => all | Abilities::LEASES,
        '-' => all,
        _ => wrong("an unknown letter"),
    });
    let parameter = |word: &str| {
        let (name, value) = word.split_once('=').unwrap_or_else(|| wrong(word));
        let spec = Textbook::ABOUT.parameters.iter().find(|spec| spec.name == name).unwrap_or_else(|| wrong(name));
        let value = match spec.default {
            Value::Flag(_) => value.parse().map(Value::Flag).ok(),
            Value::Integer(_) => value.parse().map(Value::Integer).ok(),
            Value::Number(_) => value.parse().map(Value::Number).ok(),
            Value::Text(_) => Some(Value::Text(value.into())),
        };
        (name.to_string(), value.unwrap_or_else(|| wrong(word)))
    };
    let parameters = words.filter(|word| *word != "-").map(parameter).collect();
    Rule { tiers, shared, abilities, parameters }
}

/// So many rules from the card: parameters at random, often at a bound.
fn drawn(count: usize) -> Vec<Rule> {
    let all = (0..).map(|seed| History::random(seed, &Textbook::ABOUT, TEXTS).rule);
    all.filter(|rule| keyspace("", rule).and_then(|keyspace| Textbook::rules(&keyspace)).is_ok()).take(count).collect()
}

/// So many rules that contradict themselves: one for each of the reasons that drawing came upon.
fn contradictions() -> Vec<(Rule, Refusal)> {
    let mut reasons = HashSet::new();
    let all = (0..20_000).map(|seed| History::random(seed, &Textbook::ABOUT, TEXTS).rule);
    all.filter_map(|rule| {
        let refusal = keyspace("", &rule).and_then(|keyspace| Textbook::rules(&keyspace)).err()?;
        reasons.insert(refusal.message.clone()).then_some((rule, refusal))
    })
    .collect()
}

fn keyspace(name: &str, rule: &Rule) -> Result<Keyspace, Refusal> {
    Keyspace::new::<Textbook>(name, rule.tiers, rule.shared, rule.abilities, rule.parameters.iter().cloned())
}

/// Rules that are open.
#[derive(Clone)]
struct Book {
    keyspaces: Rc<[Rule]>,
    rules: Rc<Rulebook<Textbook>>,
}

impl Book {
    fn open(keyspaces: &[Rule]) -> Result<Self, String> {
        let refused = |refusal: &Refusal| format!("{}: {}", refusal.parameter, refusal.message);
        let read = keyspaces.iter().enumerate().map(|(i, rule)| keyspace(&name(i), rule));
        let read: Vec<Keyspace> = read.collect::<Result<_, _>>().map_err(|refusal| refused(&refusal))?;
        let rules = Rulebook::open(&read).map_err(|no| format!("{}: {}", no.keyspace, refused(&no.refusal)))?;
        Ok(Book { keyspaces: keyspaces.into(), rules: Rc::new(rules) })
    }

    fn line(&self) -> Line {
        Line::Open(self.keyspaces.iter().enumerate().map(|(i, rule)| written(name(i), rule)).collect())
    }
}

fn name(keyspace: usize) -> String {
    format!("keyspace-{keyspace}")
}

fn written(name: String, Rule { tiers, shared, abilities, parameters }: &Rule) -> super::Keyspace {
    let setting = |value: &Value| match value {
        Value::Flag(yes) => Setting::Flag(*yes),
        Value::Integer(n) => Setting::Integer(*n),
        Value::Number(x) => Setting::Number(*x),
        Value::Text(text) => Setting::Text(text.clone()),
    };
    let parameters = parameters.iter().map(|(name, value)| (name.clone(), setting(value))).collect();
    super::Keyspace { name, tiers: *tiers, shared: *shared, abilities: abilities.write(), parameters }
}

/// Whether the rules have changed, a turn, and its answer.
type Taken = (bool, Turn, Answer);

/// Takes the kit's turns to one keyspace of a book, and notes them.
struct Recorder {
    book: Book,
    keyspace: usize,
    began: u64,
    /// Whether these are the rules that the operation goes on under.
    changed: bool,
    steps: Rc<RefCell<Vec<Taken>>>,
    /// Whether it has been asked: what it is asked besides is not of the operation, but checks what the answer is.
    asked: bool,
}

impl Subject for Recorder {
    fn step(&mut self, turn: &Turn) -> Result<Answer, String> {
        let moment = Moment { now: self.began + turn.operation.elapsed_ms, ..turn.moment };
        let operation = Operation { keyspace: self.keyspace as u32, ..turn.operation };
        let turn = Turn { moment, operation, ..*turn };
        let answer = self.book.rules.step(&turn);
        if !std::mem::replace(&mut self.asked, true) {
            self.steps.borrow_mut().push((self.changed, turn, answer));
        }
        Ok(answer)
    }
}

/// The lines of a set.
///
/// # Errors
/// A rule that is refused, or a clause of the contract that was broken.
pub fn record(set: &Set) -> Result<Vec<Line>, String> {
    // The numbers of which splitmix64 makes the random bits that the kit draws.
    let numbers: HashMap<u64, u64> = (0..1 << 16).map(|number| (fingerprint(number), number)).collect();
    let before = Book::open(&set.rules)?;
    let mut turned = set.rules.clone();
    turned.rotate_left(if set.changes { 5 } else { 0 });
    let after = Book::open(&turned)?;

    let (mut first, mut rest) = (vec![before.line()], Vec::new());
    let mut seed = set.name.bytes().fold(0, |all, byte| fingerprint(all ^ u64::from(byte))) >> 32;
    for (keyspace, (rule, other)) in set.rules.iter().zip(&turned).enumerate() {
        let mut known = HashSet::new();
        let mut counts: HashMap<String, usize> = HashMap::new();
        for _ in 0..DRAWS {
            seed += 1;
            let steps = Rc::new(RefCell::new(Vec::new()));
            let open = |asked: &Rule| {
                let changed = asked.parameters != rule.parameters;
                let book = if changed { after.clone() } else { before.clone() };
                let began = fingerprint(seed) >> 22;
                let steps = steps.clone();
                Ok(Box::new(Recorder { book, keyspace, began, changed, steps, asked: false }) as Box<dyn Subject>)
            };
            let history = history(seed, set, rule, other);
            Suite::default().run_one(&history, open).map_err(|violation| violation.to_string())?;
            // The kit asks two instances for each answer, and has compared them.
            let steps: Vec<Taken> = steps.take().into_iter().step_by(2).collect();
            let change = steps.iter().position(|(changed, ..)| *changed).unwrap_or(steps.len());
            let (begun, rest_of_it) = steps.split_at(change);
            let (Some(begun), then) = (run(begun, &numbers), run(rest_of_it, &numbers)) else { continue };
            let both = [Some(&begun), then.as_ref()].into_iter().flatten().flat_map(|run| &run.steps);
            // What differs from another in luck that it did not need is left out, and so is what has come about often.
            let plain: Vec<_> =
                both.map(|(elapsed, _, held, event, _, action)| (elapsed, held, event, action)).collect();
            let pairs: HashSet<_> =
                plain.iter().map(|(_, _, event, action)| pair(&begun.kind, event, action)).collect();
            let is_rare = pairs.iter().any(|pair| counts.get(pair).is_none_or(|&count| count < set.each));
            let plain = json!([begun.kind, begun.target, begun.traits, begun.brought, plain]).to_string();
            if is_rare && known.insert(plain) {
                pairs.into_iter().for_each(|pair| *counts.entry(pair).or_default() += 1);
                first.push(Line::Run(begun));
                rest.extend(then.map(Line::Run));
            }
        }
    }
    if set.changes {
        first.push(after.line());
        first.extend(rest);
    }
    if set.name == "drawn" {
        for (rule, Refusal { parameter, message }) in contradictions() {
            let keyspaces = vec![written("products".into(), &rule)];
            first.push(Line::Refuse(super::Refusal { keyspaces, keyspace: "products".into(), parameter, message }));
        }
    }
    Ok(first)
}

/// An event and what it is answered with, without numbers.
fn pair(kind: &Json, event: &Json, action: &Json) -> String {
    let name = |json| case(json).map_or("", |(name, _)| name);
    let (mark, then) = match case(action) {
        Some(("serve", serving)) => (&serving[1], &serving[4]),
        _ => (&Json::Null, &Json::Null),
    };
    format!("{kind} {} {} {mark} {then}", name(event), name(action))
}

/// The operation of a seed under a rule.
fn history(seed: u64, set: &Set, rule: &Rule, other: &Rule) -> History {
    let about = &Textbook::ABOUT;
    let mut some = (0..).map(|n| History::random(seed << 16 | n, about, &[]));
    let mut history = some.find(|history| set.kinds.contains(&history.kind)).expect("the kit draws every kind");
    let mut number = (0..).map(|n| fingerprint(fingerprint(seed) ^ n));
    let mut next = || number.next().unwrap_or_default();
    // From what is plain mostly to what is hardly ever.
    let plain = next() % 4;
    history.choices = (0..64).map(|_| if next() % 4 < plain { 0 } else { next() as u16 }).collect();
    history.change = set.changes.then(|| (next() as usize % 4 + 1, other.parameters.clone()));
    history.rule = rule.clone();
    history
}

/// Steps as a line of the corpus; `None` if there are none.
fn run(steps: &[Taken], numbers: &HashMap<u64, u64>) -> Option<Run> {
    let (_, Turn { moment, operation, .. }, _) = steps.first()?;
    let step = |(_, Turn { moment, operation, event }, answer): &Taken| -> Step {
        let random =
            numbers.get(&moment.random).map_or_else(|| json!(moment.random.to_string()), |number| json!(number));
        let (held, event) = (operation.held.write(), event.write());
        (operation.elapsed_ms, random, held, event, answer.cookie.write(), answer.action.write())
    };
    Some(Run {
        keyspace: operation.keyspace,
        kind: operation.kind.write(),
        target: operation.target.write(),
        traits: operation.traits.write(),
        began: moment.now - operation.elapsed_ms,
        brought: operation.brought.write(),
        cookie: operation.cookie.write(),
        steps: steps.iter().map(step).collect(),
    })
}
