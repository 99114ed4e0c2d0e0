//! One corpus of recorded decisions, replayed under every host: the same module gives the same answers everywhere. Here is
//! the role `eviction`; that of `patterns` is in [`patterns`].
//!
//! `tests/corpus/NAME.jsonl` holds, for each built-in policy, histories of calls with the answers that the component gave
//! under the Rust host; `tests/corpus/README.md` has the format. This crate reads, records and replays it. The histories
//! are those of the [test kit](larder_guest::testkit): skewed and even popularity, scans, loops, departures, changes,
//! weights, costs, expiries, batches of 1 to some hundreds, and successors that adopt.
//!
//! The corpus records what crosses the boundary, call by call, and not the requests that led to it: then a host needs
//! forty lines to replay it and no model of a cache, and what it proves is the contract and nothing else. The price is
//! that it holds victims' consequences (which slots are free, who is touched) for every policy anew.

pub mod patterns;

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use larder::eviction::Eviction;
use larder_guest::{
    Batch, Entries, Limits, NEVER, Parameters, Shard, Slot, Value,
    testkit::{Subject, Suite, fingerprint},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A call and its answer: a line of the corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Call {
    /// A new instance; the calls that follow go to it.
    Open(Open),
    /// `advance`.
    Advance(Advance),
    /// `residents`.
    Residents(Residents),
    /// `adopt`.
    Adopt(Adopt),
}

/// The arguments of `open`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// A u64 in decimal digits: JSON's numbers are exact to 53 bits in JavaScript.
    pub capacity: String,
    /// How many residents to expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u32>,
    /// A u64 in decimal digits.
    pub seed: String,
    /// The parameters that are set, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<(String, Setting)>,
}

/// The value of a parameter; its tag is the case of the WIT variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// Yes or no.
    Flag(bool),
    /// A whole number below 2^53.
    Integer(i64),
    /// A number.
    Number(f64),
    /// Any text.
    Text(String),
}

/// Entries as columns; a column that is left out is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Slots.
    pub slots: Vec<Slot>,
    /// Keys, of which the fingerprints are made by splitmix64.
    pub keys: Vec<u64>,
    /// Weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u32>,
    /// Load costs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<u32>,
    /// Expiries; null is the greatest u64: never.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expiries: Vec<Option<u64>>,
}

/// A batch and its victims; a part that is left out is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Advance {
    /// Milliseconds.
    pub now: u64,
    /// Slots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<Slot>,
    /// Entries.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub changed: Columns,
    /// Slots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub touched: Vec<Slot>,
    /// How often each was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub touches: Vec<u8>,
    /// Entries.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub arrived: Columns,
    /// The answer.
    pub victims: Vec<Slot>,
}

/// The answer of `residents`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Residents {
    /// Slots, the next victim first.
    pub slots: Vec<Slot>,
    /// Their uses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<u32>,
}

/// What a successor adopts, and its victims.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adopt {
    /// Entries, the next victim first.
    pub residents: Columns,
    /// Their uses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uses: Vec<u32>,
    /// The answer.
    pub victims: Vec<Slot>,
}

impl Columns {
    /// Whether it holds no entries.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    fn with<T>(&self, then: impl FnOnce(&Entries<'_>) -> T) -> T {
        let fingerprints: Vec<u64> = self.keys.iter().map(|&key| fingerprint(key)).collect();
        let expiries: Vec<u64> = self.expiries.iter().map(|expiry| expiry.unwrap_or(NEVER)).collect();
        then(&Entries {
            slots: &self.slots,
            fingerprints: &fingerprints,
            weights: &self.weights,
            costs: &self.costs,
            expiries: &expiries,
        })
    }
}

impl Open {
    /// The limits.
    ///
    /// # Errors
    /// A number that is not one.
    pub fn limits(&self) -> Result<Limits, String> {
        let read = |digits: &String| digits.parse().map_err(|error| format!("{digits:?}: {error}"));
        Ok(Limits { capacity: read(&self.capacity)?, expected: self.expected, seed: read(&self.seed)? })
    }
}

/// Where the corpus is.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus")
}

/// The recorded calls of a policy, in order.
///
/// # Errors
/// A file that cannot be read, or a line that is not a call.
pub fn read(policy: &str) -> io::Result<Vec<Call>> {
    read_lines(&directory().join(format!("{policy}.jsonl")))
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let text = fs::read_to_string(path).map_err(named)?;
    let call = |(i, line)| serde_json::from_str(line).map_err(|error| format!("{}:{}: {error}", path.display(), i + 1));
    text.lines().enumerate().map(call).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// An answer that is not the recorded one.
#[derive(Debug)]
pub struct Difference {
    /// The line of the corpus, from 1.
    pub line: usize,
    /// What was answered there.
    pub answered: String,
    /// What is recorded there.
    pub recorded: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: answered {}, recorded {}", self.line, self.answered, self.recorded)
    }
}

/// Opens what the corpus is replayed against.
pub type Opener<'a> = dyn FnMut(&Limits, &[(String, Setting)]) -> Result<Box<dyn Subject>, String> + 'a;

/// Makes the recorded calls. Answers with how many there were.
///
/// # Errors
/// The first answer that is not as recorded.
pub fn replay(calls: &[Call], open: &mut Opener<'_>) -> Result<usize, Difference> {
    let mut subject: Option<Box<dyn Subject>> = None;
    for (i, call) in calls.iter().enumerate() {
        let answer = match (call, &mut subject) {
            (Call::Open(how), _) => how.limits().and_then(|limits| open(&limits, &how.parameters)).map(|opened| {
                subject = Some(opened);
                call.clone()
            }),
            (_, None) => Err("nothing was opened".into()),
            (Call::Advance(advance), Some(subject)) => advance
                .changed
                .with(|&changed| {
                    advance.arrived.with(|&arrived| {
                        let Advance { now, departed, touched, touches, .. } = advance;
                        subject.advance(&Batch { now: *now, departed, changed, touched, touches, arrived })
                    })
                })
                .map(|victims| Call::Advance(Advance { victims, ..advance.clone() })),
            (Call::Residents(_), Some(subject)) => {
                subject.residents().map(|(slots, uses)| Call::Residents(Residents { slots, uses }))
            }
            (Call::Adopt(adopt), Some(subject)) => adopt
                .residents
                .with(|residents| subject.adopt(residents, &adopt.uses))
                .map(|victims| Call::Adopt(Adopt { victims, ..adopt.clone() })),
        };
        if answer.as_ref() != Ok(call) {
            let answered = answer.map_or_else(|error| error, |answer| format!("{answer:?}"));
            return Err(Difference { line: i + 1, answered, recorded: format!("{call:?}") });
        }
    }
    Ok(calls.len())
}

/// A built-in, run as a component by the Rust host.
///
/// # Errors
/// What the host says.
pub fn component(name: &str, limits: &Limits, parameters: &[(String, Setting)]) -> Result<Box<dyn Subject>, String> {
    struct Component(Box<dyn Eviction>);
    impl Subject for Component {
        fn advance(&mut self, batch: &Batch<'_>) -> Result<Vec<Slot>, String> {
            let mut victims = Vec::new();
            let batch = larder::eviction::Batch {
                now: batch.now,
                departed: batch.departed.to_vec(),
                changed: owned(&batch.changed),
                touched: batch.touched.to_vec(),
                touches: batch.touches.to_vec(),
                arrived: owned(&batch.arrived),
            };
            self.0.advance(&batch, &mut victims).map_err(|fault| fault.to_string())?;
            Ok(victims)
        }
        fn residents(&mut self) -> Result<(Vec<Slot>, Vec<u32>), String> {
            let ranking = self.0.residents().map_err(|fault| fault.to_string())?;
            Ok((ranking.slots, ranking.uses))
        }
        fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Result<Vec<Slot>, String> {
            let mut victims = Vec::new();
            self.0.adopt(&owned(residents), uses, &mut victims).map_err(|fault| fault.to_string())?;
            Ok(victims)
        }
        fn learned(&mut self) -> Result<Vec<u8>, String> {
            self.0.learned().map_err(|fault| fault.to_string())
        }
        fn recall(&mut self, learned: &[u8]) -> Result<bool, String> {
            self.0.recall(learned).map_err(|fault| fault.to_string())
        }
    }
    let text = |error: larder::PolicyError| error.to_string();
    // Speed is not what is tested here, and other tests run beside.
    let mut policy = larder::Policy::builtin(name).map_err(text)?.deadline(Duration::from_secs(60));
    for (name, value) in parameters {
        policy = match value {
            Setting::Flag(yes) => policy.parameter(name, *yes),
            Setting::Integer(n) => policy.parameter(name, *n),
            Setting::Number(x) => policy.parameter(name, *x),
            Setting::Text(text) => policy.parameter(name, text.as_str()),
        };
    }
    let limits = larder::eviction::Limits { capacity: limits.capacity, expected: limits.expected, seed: limits.seed };
    let opened = policy.load().and_then(|module| module.open(&limits)).map_err(text)?;
    Ok(Box::new(Component(opened)))
}

fn owned(entries: &Entries<'_>) -> larder::eviction::Entries {
    larder::eviction::Entries {
        slots: entries.slots.to_vec(),
        fingerprints: entries.fingerprints.to_vec(),
        weights: entries.weights.to_vec(),
        costs: entries.costs.to_vec(),
        expiries: entries.expiries.to_vec(),
    }
}

/// The same algorithm, linked into this program.
///
/// # Errors
/// A name without a twin here, or what the policy says.
pub fn twin(name: &str, limits: &Limits, parameters: &[(String, Setting)]) -> Result<Box<dyn Subject>, String> {
    fn of<P: larder_guest::Eviction>(limits: &Limits, set: &[(String, Setting)]) -> Result<Box<dyn Subject>, String> {
        let set = set.iter().map(|(name, value)| (name.clone(), twin_value(value)));
        let parameters = Parameters::of(&P::ABOUT, set).map_err(|refusal| refusal.message)?;
        Ok(Box::new(Twin(Shard::<P>::open(limits, &parameters).map_err(|refusal| refusal.message)?)))
    }
    let open = match name {
        "2q" => of::<larder_modules::two_q::TwoQ>,
        "adaptive" => of::<larder_modules::adaptive::Adaptive>,
        "arc" => of::<larder_modules::arc::Arc>,
        "fifo" => of::<larder_modules::fifo::Fifo>,
        "lfu" => of::<larder_modules::lfu::Lfu>,
        "lirs" => of::<larder_modules::lirs::Lirs>,
        "lru" => of::<larder_modules::lru::Lru>,
        "random" => of::<larder_modules::random::Random>,
        "s3-fifo" => of::<larder_modules::s3_fifo::S3Fifo>,
        "sieve" => of::<larder_modules::sieve::Sieve>,
        "ttl" => of::<larder_modules::ttl::Ttl>,
        "w-tinylfu" => of::<larder_modules::w_tinylfu::WTinyLfu>,
        _ => return Err(format!("the built-in `{name}` has no native twin in tests/conformance: add it")),
    };
    open(limits, parameters)
}

fn twin_value(setting: &Setting) -> Value {
    match setting {
        Setting::Flag(yes) => Value::Flag(*yes),
        Setting::Integer(n) => Value::Integer(*n),
        Setting::Number(x) => Value::Number(*x),
        Setting::Text(text) => Value::Text(text.clone()),
    }
}

struct Twin<P>(Shard<P>);

impl<P: larder_guest::Eviction> Subject for Twin<P> {
    fn advance(&mut self, batch: &Batch<'_>) -> Result<Vec<Slot>, String> {
        Ok(self.0.advance(batch))
    }
    fn residents(&mut self) -> Result<(Vec<Slot>, Vec<u32>), String> {
        Ok(self.0.residents())
    }
    fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Result<Vec<Slot>, String> {
        Ok(self.0.adopt(residents, uses))
    }
    fn learned(&mut self) -> Result<Vec<u8>, String> {
        Ok(self.0.learned())
    }
    fn recall(&mut self, learned: &[u8]) -> Result<bool, String> {
        Ok(self.0.recall(learned))
    }
}

/// Runs `open` through one history of the test kit, and answers with the calls that it got.
///
/// # Errors
/// A clause of the contract that was broken: such answers are not worth recording.
pub fn record(
    seed: u64,
    events: usize,
    parameters: &[(String, Setting)],
    open: &mut Opener<'_>,
) -> Result<Vec<Call>, String> {
    let calls = Rc::new(RefCell::new(Vec::new()));
    let keys = Rc::new((0..1_000_000).map(|key| (fingerprint(key), key)).collect::<HashMap<u64, u64>>());
    // No shrinking: a broken clause is for the tests of the policy itself.
    let suite = Suite { seeds: seed..seed + 1, events, shrinking_runs: 0, hand_over: false, ..Suite::default() };
    let run = suite.run(|limits| {
        calls.borrow_mut().push(Call::Open(Open {
            capacity: limits.capacity.to_string(),
            expected: limits.expected,
            seed: limits.seed.to_string(),
            parameters: parameters.to_vec(),
        }));
        Ok(Box::new(Recorder { subject: open(limits, parameters)?, calls: calls.clone(), keys: keys.clone() }))
    });
    run.map_err(|violation| violation.to_string())?;
    // The suite runs a history twice and compares the answers; the calls are compared here.
    let mut calls = calls.take();
    let again = calls.split_off(calls.len() / 2);
    if calls != again {
        return Err("the same history led to other calls the second time".into());
    }
    // The kit asks for the residents after most batches, which would be most of the corpus. The last ranking of each
    // instance tells as much: `residents` changes nothing, as the replay shows by leaving the others out.
    let last: Vec<bool> = (1..=calls.len()).map(|next| matches!(calls.get(next), None | Some(Call::Open(_)))).collect();
    let mut last = last.into_iter();
    calls.retain(|call| last.next() == Some(true) || !matches!(call, Call::Residents(_)));
    Ok(calls)
}

struct Recorder {
    subject: Box<dyn Subject>,
    calls: Rc<RefCell<Vec<Call>>>,
    keys: Rc<HashMap<u64, u64>>,
}

impl Recorder {
    fn columns(&self, entries: &Entries<'_>) -> Result<Columns, String> {
        let key = |fingerprint| self.keys.get(fingerprint).copied().ok_or("a key is larger than the recorder knows");
        Ok(Columns {
            slots: entries.slots.to_vec(),
            keys: entries.fingerprints.iter().map(key).collect::<Result<_, _>>()?,
            weights: entries.weights.to_vec(),
            costs: entries.costs.to_vec(),
            expiries: entries.expiries.iter().map(|&at| (at != NEVER).then_some(at)).collect(),
        })
    }
}

impl Subject for Recorder {
    fn advance(&mut self, batch: &Batch<'_>) -> Result<Vec<Slot>, String> {
        let victims = self.subject.advance(batch)?;
        let call = Call::Advance(Advance {
            now: batch.now,
            departed: batch.departed.to_vec(),
            changed: self.columns(&batch.changed)?,
            touched: batch.touched.to_vec(),
            touches: batch.touches.to_vec(),
            arrived: self.columns(&batch.arrived)?,
            victims: victims.clone(),
        });
        self.calls.borrow_mut().push(call);
        Ok(victims)
    }

    fn residents(&mut self) -> Result<(Vec<Slot>, Vec<u32>), String> {
        let (slots, uses) = self.subject.residents()?;
        self.calls.borrow_mut().push(Call::Residents(Residents { slots: slots.clone(), uses: uses.clone() }));
        Ok((slots, uses))
    }

    fn adopt(&mut self, residents: &Entries<'_>, uses: &[u32]) -> Result<Vec<Slot>, String> {
        let victims = self.subject.adopt(residents, uses)?;
        let residents = self.columns(residents)?;
        let call = Call::Adopt(Adopt { residents, uses: uses.to_vec(), victims: victims.clone() });
        self.calls.borrow_mut().push(call);
        Ok(victims)
    }

    fn learned(&mut self) -> Result<Vec<u8>, String> {
        self.subject.learned()
    }

    fn recall(&mut self, learned: &[u8]) -> Result<bool, String> {
        self.subject.recall(learned)
    }
}
