//! The types of `wit/patterns.wit` in JSON, by one rule for all, so that a host needs no schema but the contract itself:
//! a record is the list of its fields, a variant is the name of its case or `{NAME: payload}`.
//!
//! The guests' SDK and the host each have types of their own, made from the same text; the macro `dialect` teaches both
//! the same words.

use serde_json::{Map, Value as Json, json};

/// Something that is written in the corpus.
pub trait Word: Sized {
    /// The names that it may have, where it is one of several.
    const CASES: &'static [&'static str] = &[];

    /// Reads it.
    ///
    /// # Errors
    /// What is not such a thing.
    fn read(json: &Json) -> Result<Self, String>;

    /// Writes it.
    fn write(&self) -> Json;
}

fn not<T>(what: &str, json: &Json) -> Result<T, String> {
    Err(format!("{json} is no {what}"))
}

/// A number if JavaScript takes it in whole, -1 for the greatest, else decimal digits.
impl Word for u64 {
    fn read(json: &Json) -> Result<Self, String> {
        let number = match json {
            Json::String(digits) => digits.parse().ok(),
            Json::Number(number) if number.as_i64() == Some(-1) => Some(u64::MAX),
            json => json.as_u64(),
        };
        number.map_or_else(|| not("u64", json), Ok)
    }
    fn write(&self) -> Json {
        match *self {
            u64::MAX => json!(-1),
            n if n < 1 << 53 => json!(n),
            n => json!(n.to_string()),
        }
    }
}

macro_rules! small {
    ($($type:ty)*) => { $(impl Word for $type {
        fn read(json: &Json) -> Result<Self, String> {
            json.as_u64().and_then(|n| n.try_into().ok()).map_or_else(|| not(stringify!($type), json), Ok)
        }
        fn write(&self) -> Json {
            json!(self)
        }
    })* };
}
small!(u8 u32);

impl Word for bool {
    fn read(json: &Json) -> Result<Self, String> {
        json.as_bool().map_or_else(|| not("flag", json), Ok)
    }
    fn write(&self) -> Json {
        json!(self)
    }
}

impl<T: Word> Word for Option<T> {
    fn read(json: &Json) -> Result<Self, String> {
        if json.is_null() { Ok(None) } else { T::read(json).map(Some) }
    }
    fn write(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::write)
    }
}

/// The name of a case, and what it carries.
pub fn case(json: &Json) -> Option<(&str, &Json)> {
    match json {
        Json::String(name) => Some((name, &Json::Null)),
        Json::Object(one) if one.len() == 1 => one.iter().next().map(|(name, payload)| (name.as_str(), payload)),
        _ => None,
    }
}

fn with(name: &str, payload: Json) -> Json {
    Json::Object(Map::from_iter([(name.to_string(), payload)]))
}

macro_rules! record {
    ($type:ident: $($field:ident)*) => {
        impl Word for $type {
            fn read(json: &Json) -> Result<Self, String> {
                const COUNT: usize = [$(stringify!($field)),*].len();
                let Some([$($field),*]) = json.as_array().and_then(|fields| <&[Json; COUNT]>::try_from(&fields[..]).ok())
                else {
                    return not(concat!("record `", stringify!($type), "`"), json);
                };
                Ok($type { $($field: Word::read($field)?),* })
            }
            fn write(&self) -> Json {
                Json::Array(vec![$(self.$field.write()),*])
            }
        }
    };
}

macro_rules! variant {
    ($type:ident: $($case:ident$(($payload:ident))? $name:literal)*) => {
        impl Word for $type {
            const CASES: &'static [&'static str] = &[$($name),*];
            fn read(json: &Json) -> Result<Self, String> {
                match case(json) {
                    $(Some(($name, _payload)) => Ok($type::$case$(({ let $payload = Word::read(_payload)?; $payload }))?),)*
                    _ => not(concat!("case of `", stringify!($type), "`"), json),
                }
            }
            fn write(&self) -> Json {
                match self {
                    $($type::$case$(($payload))? => variant!(@write $name $($payload)?),)*
                }
            }
        }
    };
    (@write $name:literal) => { json!($name) };
    (@write $name:literal $payload:ident) => { with($name, $payload.write()) };
}

/// The list of those that are set.
macro_rules! flags {
    ($type:ident: $($flag:ident $name:literal)*) => {
        impl Word for $type {
            const CASES: &'static [&'static str] = &[$($name),*];
            fn read(json: &Json) -> Result<Self, String> {
                let mut all = $type::empty();
                for name in json.as_array().map_or_else(|| not("list of flags", json), Ok)? {
                    match name.as_str() {
                        $(Some($name) => all |= $type::$flag,)*
                        _ => return not(concat!("flag of `", stringify!($type), "`"), name),
                    }
                }
                Ok(all)
            }
            fn write(&self) -> Json {
                let mut names: Vec<&str> = Vec::new();
                $(if self.contains($type::$flag) {
                    names.push($name);
                })*
                json!(names)
            }
        }
    };
}

macro_rules! dialect {
    ($($path:ident)::+) => {
        const _: () = {
            use $($path)::+::{
                Abilities, Action, Answer, Dropping, Event, Facts, Failure, Incoming, Joining, Keeping, Kind, Loading, Looking,
                Mark, Marks, Outcome, Promotion, Saving, Scope, Serving, Target, Terms, Then, Traits, What,
            };
            flags!(Abilities: LOADS "loads" SAVES "saves" LOGS "logs" ANNOUNCES "announces" LEASES "leases");
            flags!(Traits: SOFT "soft" HEARD "heard" SCHEDULED "scheduled" CACHED_ONLY "cached-only");
            flags!(Marks: NEGATIVE "negative" VALIDATOR "validator");
            variant!(Kind: Read "read" Write "write" Remove "remove" Fill "fill" Refresh "refresh" Invalidate "invalidate"
                Flush "flush");
            variant!(Target: Key "key" Keys "keys" Prefix "prefix" Tag "tag" All "all");
            variant!(Failure: TimedOut "timed-out" Unavailable "unavailable" Overloaded "overloaded" Rejected "rejected"
                Unreached "unreached" Unsupported "unsupported");
            variant!(Scope: Process "process" Fleet "fleet");
            variant!(What: Held "held" Loaded "loaded" Brought "brought");
            variant!(Mark: Fresh "fresh" Stale "stale" Rescued "rescued");
            variant!(Then: End "end" Refresh "refresh" GoOn "go-on");
            record!(Facts: tier age_ms fresh_ms stale_ms rescue_ms early_us cost_us size marks);
            record!(Incoming: cost_us size negative fresh_ms stale_ms rescue_ms);
            record!(Outcome: fenced down declined unannounced);
            record!(Promotion: tiers near_ms);
            record!(Looking: tier promote);
            record!(Joining: scope wait_ms);
            record!(Loading: soft_ms hard_ms conditional);
            record!(Terms: fresh_ms stale_ms rescue_ms near_ms quiet_ms early_us);
            record!(Keeping: what tiers terms announce);
            record!(Dropping: tiers announce);
            record!(Saving: fence hard_ms);
            record!(Serving: what mark quiet_ms keep then);
            variant!(Event: Start "start" Found "found" Absent "absent" TierDown "tier-down" Leading "leading"
                Landed "landed" LeaderLost "leader-lost" Waited "waited" Loaded(incoming) "loaded"
                Unchanged(incoming) "unchanged" LoadFailed(failure) "load-failed" StillLoading "still-loading"
                Kept(outcome) "kept" Dropped(outcome) "dropped" Saved "saved" SaveFailed(failure) "save-failed"
                Logged "logged" LogFailed(failure) "log-failed" Resumed "resumed" Buried "buried");
            variant!(Action: Look(looking) "look" Join(joining) "join" Load(loading) "load" Keep(keeping) "keep"
                Save(saving) "save" Log(saving) "log" Drop(dropping) "drop" Expire(dropping) "expire" Pause(ms) "pause"
                Bury "bury" Serve(serving) "serve" Miss "miss" Finish(again) "finish" Fail(failure) "fail");
            record!(Answer: cookie action);
        };
    };
}
dialect!(larder_guest::patterns);
dialect!(larder::tiered::testkit::steps);
