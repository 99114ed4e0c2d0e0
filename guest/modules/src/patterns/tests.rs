//! The tables against the contract, against the textbook's pictures, and against the paper.

extern crate std;

use std::{format, string::String, vec, vec::Vec};

use larder_guest::patterns::{
    Abilities, Event, FOREVER, Facts, Failure, Incoming, Keeping, Marks, Moment, Operation, Outcome, Rulebook, Scope,
    Target, Terms, Then, Traits,
};
use larder_guest::testkit::{self, fingerprint};
use larder_guest::{Parameters, Value};

use super::*;

const TEXTS: &[testkit::patterns::Text<'static>] = &[
    ("read", &["", "cache-aside", "read-through", "refresh-ahead"]),
    ("write", &["", "write-through", "write-behind", "write-around", "write-invalidate", "put"]),
    ("flight", &["", "none", "process", "fleet"]),
];

#[test]
fn keeps_the_contract() {
    let report = testkit::patterns::check::<Textbook>(TEXTS);
    assert!(report.operations > 8_000 && report.steps > 20_000, "{report:?}");
}

/// Whatever a host says: an answer, and none of a row of random steps goes on for ever.
#[test]
fn nonsense_is_answered() {
    let rules = rules(&[("read", "refresh-ahead".into()), ("beta", 1.0.into())]);
    let events = [
        Event::Start,
        Event::Found,
        Event::Landed,
        Event::Unchanged(PLAIN),
        Event::StillLoading,
        Event::Kept(Outcome { fenced: 0xff, ..Outcome::COMPLETE }),
        Event::Saved,
        Event::Buried,
        Event::LoadFailed(Failure::TimedOut),
    ];
    for n in 0..20_000u64 {
        let random = fingerprint(n);
        let event = events[(random % 9) as usize];
        let kind = [Kind::Read, Kind::Write, Kind::Refresh, Kind::Flush, Kind::Invalidate][(random >> 8) as usize % 5];
        let mut operation = operation(kind, None);
        operation.cookie = if n % 2 == 0 { fingerprint(random) } else { random >> 16 & 0x1f };
        let moment = Moment { now: 0, random };
        Textbook::step(&rules, &Turn { moment, operation, event });
    }
}

// --- The textbook, event by event.

const PLAIN: Incoming =
    Incoming { cost_us: 20_000, size: 10, negative: false, fresh_ms: None, stale_ms: None, rescue_ms: None };

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

/// What users set: numbers are whole unless they are written with a point.
enum Set {
    Text(&'static str),
    Whole(i64),
    Number(f64),
    Flag(bool),
}

impl From<&'static str> for Set {
    fn from(text: &'static str) -> Self {
        Set::Text(text)
    }
}
impl From<i64> for Set {
    fn from(n: i64) -> Self {
        Set::Whole(n)
    }
}
impl From<f64> for Set {
    fn from(x: f64) -> Self {
        Set::Number(x)
    }
}
impl From<bool> for Set {
    fn from(yes: bool) -> Self {
        Set::Flag(yes)
    }
}

fn keyspace(tiers: u8, shared: u8, abilities: Abilities, set: &[(&str, Set)]) -> Result<Rules, Refusal> {
    let set = set.iter().map(|(name, value)| {
        let value = match value {
            Set::Text(t) => text(t),
            Set::Whole(n) => Value::Integer(*n),
            Set::Number(x) => Value::Number(*x),
            Set::Flag(yes) => Value::Flag(*yes),
        };
        (String::from(*name), value)
    });
    let parameters = Parameters::of(&Textbook::ABOUT, set)?;
    Rules::read(&Keyspace { name: "products".into(), tiers, shared, abilities, parameters })
}

/// Two tiers, the second one shared; everything there is; a minute to live; and what is set.
fn rules(set: &[(&str, Set)]) -> Rules {
    let mut rules = keyspace(0b11, 0b10, Abilities::all(), set).expect("it does not contradict itself");
    if rules.ttl_ms == FOREVER {
        rules.ttl_ms = 60_000;
    }
    rules
}

fn operation(kind: Kind, held: Option<Facts>) -> Operation {
    Operation {
        keyspace: 0,
        kind,
        target: Target::Key,
        traits: Traits::empty(),
        cookie: 0,
        elapsed_ms: 0,
        held,
        brought: matches!(kind, Kind::Write | Kind::Fill | Kind::Flush).then_some(PLAIN),
    }
}

fn copy(tier: u8, fresh_ms: u64, stale_ms: u64, rescue_ms: u64) -> Option<Facts> {
    let marks = Marks::empty();
    let age_ms = 60_000u64.saturating_sub(fresh_ms);
    Some(Facts { tier, age_ms, fresh_ms, stale_ms, rescue_ms, early_us: 0, cost_us: 20_000, size: 10, marks })
}

/// An action in a few words.
fn say(action: &Action) -> String {
    let keep = |keeping: &Option<Keeping>| match keeping {
        Some(k) if k.terms.allow_nothing() => format!(", forget in {:#b}", k.tiers),
        Some(k) => format!(", keep in {:#b} for {}", k.tiers, k.terms.fresh_ms),
        None => String::new(),
    };
    match action {
        Action::Look(looking) => format!("look {}", looking.tier),
        Action::Join(j) => format!("join {}, {}", if j.scope == Scope::Fleet { "fleet" } else { "process" }, j.wait_ms),
        Action::Load(l) => format!(
            "load{}{}",
            if l.conditional { " if changed" } else { "" },
            if l.soft_ms > 0 { ", soft" } else { "" }
        ),
        Action::Keep(k) => {
            format!("keep in {:#b} for {}{}", k.tiers, k.terms.fresh_ms, if k.announce { ", announce" } else { "" })
        }
        Action::Save(s) => format!("save, fence {:#b}", s.fence),
        Action::Log(s) => format!("log, fence {:#b}", s.fence),
        Action::Drop(d) => format!("drop {:#b}{}", d.tiers, if d.announce { ", announce" } else { "" }),
        Action::Expire(d) => format!("expire {:#b}{}", d.tiers, if d.announce { ", announce" } else { "" }),
        Action::Pause(_) => "pause".into(),
        Action::Bury => "bury".into(),
        Action::Serve(s) => {
            let what = format!("{:?} {:?}", s.what, s.mark).replace("What::", "").replace("Mark::", "").to_lowercase();
            let then = match s.then {
                Then::End => "",
                Then::Refresh => ", refresh",
                Then::GoOn => ", go on",
            };
            format!("serve {what}{}{then}", keep(&s.keep))
        }
        Action::Miss => "miss".into(),
        Action::Finish(None) => "finish".into(),
        Action::Finish(Some(_)) => "finish, again".into(),
        Action::Fail(failure) => format!("fail {failure:?}").replace("Failure::", ""),
    }
}

/// Walks an operation through events, with the copy that is held at each, and compares each answer.
#[track_caller]
fn walk(rules: &Rules, mut operation: Operation, steps: &[(Event, Option<Facts>, &str)]) {
    for (i, (event, held, expected)) in steps.iter().enumerate() {
        operation.held = *held;
        let answer =
            Textbook::step(rules, &Turn { moment: Moment { now: 0, random: u64::MAX }, operation, event: *event });
        assert_eq!(say(&answer.action), *expected, "step {i}, after {event:?}");
        operation.cookie = answer.cookie;
    }
}

const DONE: Event = Event::Dropped(Outcome::COMPLETE);
const KEPT: Event = Event::Kept(Outcome::COMPLETE);
const FENCED: Event = Event::Kept(Outcome { fenced: 0b10, ..Outcome::COMPLETE });
const DOWN: Event = Event::Dropped(Outcome { down: 0b10, ..Outcome::COMPLETE });
const LOADED: Event = Event::Loaded(PLAIN);
const BROKEN: Event = Event::LoadFailed(Failure::Unavailable);
const REFUSED: Event = Event::LoadFailed(Failure::Rejected);

fn read() -> Operation {
    operation(Kind::Read, None)
}

#[test]
fn read_through_hits_and_misses() {
    let rules = rules(&[]);
    walk(&rules, read(), &[(Event::Start, copy(0, 10, 0, 0), "serve held fresh")]);
    let far = copy(1, 700, 0, 0);
    walk(
        &rules,
        read(),
        &[(Event::Start, None, "look 1"), (Event::Found, far, "serve held fresh, keep in 0b1 for 700")],
    );
    let miss = [(Event::Start, None, "look 1"), (Event::Absent, None, "join process, 10000")];
    let and = |rest: &[(Event, Option<Facts>, &'static str)]| [&miss, rest].concat();
    let serve = "serve loaded fresh, keep in 0b11 for 60000";
    walk(&rules, read(), &and(&[(Event::Leading, None, "load"), (LOADED, None, serve)]));
    walk(&rules, read(), &and(&[(Event::Landed, None, "serve loaded fresh")]));
    walk(&rules, read(), &and(&[(Event::Leading, None, "load"), (BROKEN, None, "fail Unavailable")]));
    walk(&rules, read(), &and(&[(BROKEN, None, "fail Unavailable")]));
    walk(&rules, read(), &and(&[(Event::Waited, None, "load"), (LOADED, None, serve)]));
    let lost = (Event::LeaderLost, None, "join process, 10000");
    walk(&rules, read(), &and(&[lost, lost, (Event::LeaderLost, None, "load"), (LOADED, None, serve)]));
    walk(&rules, read(), &[(Event::Start, None, "look 1"), (Event::TierDown, None, "join process, 10000")]);
    let only = Operation { traits: Traits::CACHED_ONLY, ..read() };
    walk(&rules, only, &[(Event::Start, None, "look 1"), (Event::Absent, None, "miss")]);
}

#[test]
fn waits_add_up_to_no_more_than_the_limit() {
    let rules = rules(&[("wait-ms", 500.into())]);
    let mut late = Operation { elapsed_ms: 480, ..read() };
    late.cookie = Memory { stage: Stage::Join, ..Memory::default() }.cookie();
    walk(&rules, late, &[(Event::LeaderLost, None, "join process, 20")]);
}

#[test]
fn stale_while_revalidate() {
    let rules = rules(&[("stale-while-revalidate-ms", 5_000.into())]);
    walk(&rules, read(), &[(Event::Start, copy(0, 0, 1, 0), "serve held stale, refresh")]);
    let far = copy(1, 0, 3_000, 0);
    walk(
        &rules,
        read(),
        &[(Event::Start, None, "look 1"), (Event::Found, far, "serve held stale, keep in 0b1 for 0, refresh")],
    );
    walk(&rules, read(), &[(Event::Start, copy(0, 0, 0, 9), "look 1"), (Event::Absent, None, "join process, 10000")]);
}

#[test]
fn stale_if_error_and_time_outs() {
    let rules = rules(&[("stale-if-error-ms", 9_000.into()), ("soft-timeout-ms", 50.into()), ("retries", 1.into())]);
    let old = copy(0, 0, 0, 8_000);
    let start = [(Event::Start, old, "look 1"), (Event::Absent, old, "join process, 50")];
    let and = |rest: &[(Event, Option<Facts>, &'static str)]| [&start, rest].concat();
    walk(&rules, read(), &and(&[(Event::Waited, old, "serve held rescued")]));
    walk(&rules, read(), &and(&[(BROKEN, old, "serve held rescued")]));
    walk(&rules, read(), &and(&[(Event::Leading, old, "load, soft"), (BROKEN, old, "serve held rescued")]));
    walk(
        &rules,
        read(),
        &and(&[
            (Event::Leading, old, "load, soft"),
            (Event::StillLoading, old, "serve held rescued, go on"),
            (LOADED, old, "keep in 0b11 for 60000"),
            (KEPT, None, "finish"),
        ]),
    );
    // It was invalidated while it was loading: there is nothing to rescue with.
    walk(
        &rules,
        read(),
        &and(&[
            (Event::Leading, old, "load, soft"),
            (Event::StillLoading, None, "load"),
            (BROKEN, None, "pause"),
            (Event::Resumed, None, "load"),
            (BROKEN, None, "fail Unavailable"),
        ]),
    );
    walk(&rules, read(), &and(&[(Event::Leading, None, "load"), (REFUSED, None, "fail Rejected")]));
}

#[test]
fn conditional_loads_renew() {
    let rules = rules(&[]);
    let stale = copy(0, 0, 0, 8_000).map(|facts| Facts { marks: Marks::VALIDATOR, ..facts });
    walk(
        &rules,
        read(),
        &[
            (Event::Start, stale, "look 1"),
            (Event::Absent, stale, "join process, 10000"),
            (Event::Leading, stale, "load if changed"),
            (Event::Unchanged(PLAIN), stale, "serve held fresh, keep in 0b11 for 60000"),
        ],
    );
    walk(
        &rules,
        operation(Kind::Refresh, None),
        &[
            (Event::Start, stale, "look 1"),
            (Event::Absent, stale, "join process, 0"),
            (Event::Leading, stale, "load if changed"),
            (Event::Unchanged(PLAIN), stale, "keep in 0b11 for 60000"),
            (KEPT, None, "finish"),
        ],
    );
}

#[test]
fn negative_and_unkeepable() {
    let gone = Event::Loaded(Incoming { negative: true, ..PLAIN });
    let to_load =
        [(Event::Start, None, "look 1"), (Event::Absent, None, "join process, 10000"), (Event::Leading, None, "load")];
    let and = |last: (Event, Option<Facts>, &'static str)| [&to_load[..], &[last]].concat();
    walk(&rules(&[]), read(), &and((gone, None, "serve loaded fresh")));
    let remembers = rules(&[("negative-ttl-ms", 500.into())]);
    walk(&remembers, read(), &and((gone, None, "serve loaded fresh, keep in 0b11 for 500")));
    // The old copy must not outlive the news.
    let old = copy(0, 0, 0, 9_000);
    walk(&rules(&[]), read(), &and((gone, old, "serve loaded fresh, forget in 0b11")));
    let no_store = Event::Loaded(Incoming { fresh_ms: Some(0), ..PLAIN });
    walk(&rules(&[]), read(), &and((no_store, None, "serve loaded fresh")));
    let says = Event::Loaded(Incoming { fresh_ms: Some(7_000), ..PLAIN });
    walk(&rules(&[]), read(), &and((says, None, "serve loaded fresh, keep in 0b11 for 7000")));
    let deaf = rules(&[("source-ttl", false.into())]);
    walk(&deaf, read(), &and((says, None, "serve loaded fresh, keep in 0b11 for 60000")));
}

#[test]
fn cache_aside_leaves_the_load_to_the_caller() {
    let rules = rules(&[("read", "cache-aside".into()), ("stale-while-revalidate-ms", 5_000.into())]);
    walk(&rules, read(), &[(Event::Start, copy(0, 10, 0, 0), "serve held fresh")]);
    let miss = [(Event::Start, None, "look 1"), (Event::Absent, None, "join process, 10000")];
    for (event, expected) in [
        (Event::Leading, "miss"),
        (Event::Landed, "serve loaded fresh"),
        (Event::Waited, "miss"),
        (Event::LeaderLost, "miss"),
    ] {
        walk(&rules, read(), &[&miss[..], &[(event, None, expected)]].concat());
    }
    // One is told of a miss; the others get the stale copy without waiting.
    let stale = copy(0, 0, 10, 0);
    for (event, expected) in [(Event::Leading, "miss"), (Event::Waited, "serve held stale")] {
        let steps =
            [(Event::Start, stale, "look 1"), (Event::Absent, stale, "join process, 0"), (event, stale, expected)];
        walk(&rules, read(), &steps);
    }
    walk(
        &rules,
        operation(Kind::Fill, None),
        &[(Event::Start, None, "keep in 0b11 for 60000"), (FENCED, None, "finish")],
    );
}

#[test]
fn refresh_ahead_refreshes_what_is_due() {
    let eager = rules(&[("read", "refresh-ahead".into()), ("eager", 0.8.into())]);
    walk(&eager, read(), &[(Event::Start, copy(0, 12_001, 0, 0), "serve held fresh")]);
    walk(&eager, read(), &[(Event::Start, copy(0, 12_000, 0, 0), "serve held fresh, refresh")]);
    let due = copy(1, 1_000, 0, 0);
    walk(
        &eager,
        read(),
        &[(Event::Start, None, "look 1"), (Event::Found, due, "serve held fresh, keep in 0b1 for 1000, refresh")],
    );
    let only = Operation { traits: Traits::CACHED_ONLY, ..read() };
    walk(&eager, only, &[(Event::Start, copy(0, 12_000, 0, 0), "serve held fresh")]);
}

#[test]
fn a_refresh_takes_what_another_process_has_loaded() {
    let rules = rules(&[("flight", "fleet".into())]);
    let refresh = operation(Kind::Refresh, None);
    // Due, 50 s old: the very copy lies in the shared tier, too, and does not help.
    let due = copy(0, 10_000, 0, 0);
    walk(
        &rules,
        refresh,
        &[
            (Event::Start, due, "look 1"),
            (Event::Found, due, "join fleet, 0"),
            (Event::Leading, due, "load"),
            (LOADED, due, "keep in 0b11 for 60000"),
            (FENCED, None, "finish"),
        ],
    );
    let newer = copy(1, 55_000, 0, 0);
    walk(
        &rules,
        refresh,
        &[(Event::Start, due, "look 1"), (Event::Found, newer, "keep in 0b1 for 55000"), (KEPT, None, "finish")],
    );
    // Not half as old: loaded anew.
    walk(&rules, refresh, &[(Event::Start, due, "look 1"), (Event::Found, copy(1, 30_000, 0, 0), "join fleet, 0")]);
    // For a copy that has ended, any fresh one will do.
    let (ended, far) = (copy(0, 0, 9_000, 0), copy(1, 5, 9_000, 0));
    walk(&rules, refresh, &[(Event::Start, ended, "look 1"), (Event::Found, far, "keep in 0b1 for 5")]);
    for event in [Event::Waited, Event::Landed, Event::LeaderLost, BROKEN] {
        walk(
            &rules,
            refresh,
            &[(Event::Start, None, "look 1"), (Event::Absent, None, "join fleet, 0"), (event, None, "finish")],
        );
    }
}

#[test]
fn hot_keys_are_refreshed_on_a_schedule() {
    let rules =
        rules(&[("read", "refresh-ahead".into()), ("refresh-every-ms", 10_000.into()), ("flight", "none".into())]);
    let scheduled = Operation { traits: Traits::SCHEDULED, ..operation(Kind::Refresh, None) };
    walk(
        &rules,
        scheduled,
        &[
            (Event::Start, None, "look 1"),
            (Event::Absent, None, "load"),
            (LOADED, None, "keep in 0b11 for 60000"),
            (KEPT, None, "finish, again"),
        ],
    );
    let waits: Vec<u64> = (0..1_000).map(|n| freshness::again(&rules, fingerprint(n)).unwrap()).collect();
    assert!(waits.iter().all(|wait| (9_000..=10_000).contains(wait)));
}

const TIMED_OUT: Event = Event::SaveFailed(Failure::TimedOut);
const SAVE_REFUSED: Event = Event::SaveFailed(Failure::Rejected);

#[test]
fn write_through() {
    let rules = rules(&[("write", "write-through".into())]);
    let start = (Event::Start, None, "save, fence 0b11");
    let keep = (Event::Saved, None, "keep in 0b11 for 60000, announce");
    let drop = "drop 0b11, announce";
    let write = operation(Kind::Write, None);
    walk(&rules, write, &[start, keep, (KEPT, None, "finish")]);
    walk(&rules, write, &[start, keep, (FENCED, None, drop), (DONE, None, "finish")]);
    walk(&rules, write, &[start, (SAVE_REFUSED, None, "fail Rejected")]);
    walk(&rules, write, &[start, (TIMED_OUT, None, drop), (DONE, None, "fail TimedOut")]);
    let down = Event::Kept(Outcome { down: 0b10, ..Outcome::COMPLETE });
    walk(&rules, write, &[start, keep, (down, None, "fail Unreached")]);
    let remove = operation(Kind::Remove, None);
    walk(
        &rules,
        remove,
        &[(Event::Start, None, "save, fence 0b0"), (Event::Saved, None, drop), (DONE, None, "finish")],
    );
}

#[test]
fn write_then_invalidate() {
    let mut rules = rules(&[]);
    assert_eq!(rules.write, Writing::Invalidate);
    let start = (Event::Start, None, "save, fence 0b0");
    let drop = (Event::Saved, None, "drop 0b11, announce");
    let write = operation(Kind::Write, None);
    walk(&rules, write, &[start, drop, (DONE, None, "finish")]);
    walk(&rules, write, &[start, drop, (DOWN, None, "fail Unreached")]);
    walk(&rules, write, &[start, (SAVE_REFUSED, None, "fail Rejected")]);
    walk(&rules, write, &[start, (TIMED_OUT, None, "drop 0b11, announce"), (DOWN, None, "fail TimedOut")]);
    rules.acknowledge_unreached = true;
    walk(&rules, write, &[start, drop, (DOWN, None, "finish")]);
}

#[test]
fn write_around_and_put() {
    let around = rules(&[("write", "write-around".into())]);
    let write = operation(Kind::Write, None);
    walk(&around, write, &[(Event::Start, None, "save, fence 0b0"), (Event::Saved, None, "finish")]);
    walk(&around, write, &[(Event::Start, None, "save, fence 0b0"), (TIMED_OUT, None, "fail TimedOut")]);
    let remove = operation(Kind::Remove, None);
    walk(&around, remove, &[(Event::Start, None, "save, fence 0b0"), (Event::Saved, None, "drop 0b11, announce")]);
    let put = rules(&[("write", "put".into())]);
    walk(&put, write, &[(Event::Start, None, "keep in 0b11 for 60000, announce"), (KEPT, None, "finish")]);
    walk(
        &put,
        write,
        &[(Event::Start, None, "keep in 0b11 for 60000, announce"), (FENCED, None, "drop 0b11, announce")],
    );
    walk(&put, remove, &[(Event::Start, None, "drop 0b11, announce"), (DONE, None, "finish")]);
}

#[test]
fn write_behind() {
    let rules = rules(&[("write", "write-behind".into())]);
    let (write, remove, flush) =
        (operation(Kind::Write, None), operation(Kind::Remove, None), operation(Kind::Flush, None));
    let log = (Event::Start, None, "log, fence 0b11");
    let drop = "drop 0b11, announce";
    walk(&rules, write, &[log, (Event::Logged, None, "keep in 0b11 for 60000, announce"), (KEPT, None, "finish")]);
    walk(&rules, write, &[log, (Event::LogFailed(Failure::Overloaded), None, "fail Overloaded")]);
    walk(&rules, write, &[log, (Event::LogFailed(Failure::TimedOut), None, drop), (DONE, None, "fail TimedOut")]);
    walk(
        &rules,
        remove,
        &[(Event::Start, None, "log, fence 0b0"), (Event::Logged, None, drop), (DONE, None, "finish")],
    );

    let save = (Event::Start, None, "save, fence 0b10");
    walk(
        &rules,
        flush,
        &[save, (Event::Saved, None, "keep in 0b10 for 60000, announce"), (FENCED, None, drop), (DONE, None, "finish")],
    );
    walk(&rules, flush, &[save, (SAVE_REFUSED, None, "bury"), (Event::Buried, None, drop), (DONE, None, "finish")]);
    let again = [(TIMED_OUT, None, "pause"), (Event::Resumed, None, "save, fence 0b10")];
    walk(&rules, flush, &[&[save][..], &again, &again, &again, &again, &[(TIMED_OUT, None, "fail TimedOut")]].concat());
    // A removal that was logged: nothing is kept.
    let removal = Operation { brought: None, ..flush };
    walk(&rules, removal, &[save, (Event::Saved, None, drop), (DOWN, None, "finish")]);
    let alone = Rules { shared: 0, ..rules };
    walk(&alone, flush, &[(Event::Start, None, "save, fence 0b0"), (Event::Saved, None, "finish")]);
}

#[test]
fn invalidation() {
    let rules = rules(&[]);
    let of = |target, traits| Operation { target, traits, ..operation(Kind::Invalidate, None) };
    for target in [Target::Key, Target::Keys, Target::Prefix, Target::Tag, Target::All] {
        let hard = of(target, Traits::empty());
        walk(&rules, hard, &[(Event::Start, None, "drop 0b11, announce"), (DONE, None, "finish")]);
        walk(&rules, hard, &[(Event::Start, None, "drop 0b11, announce"), (DOWN, None, "fail Unreached")]);
        let soft = of(target, Traits::SOFT);
        walk(&rules, soft, &[(Event::Start, None, "expire 0b11, announce"), (DONE, None, "finish")]);
        let heard = of(target, Traits::HEARD);
        walk(&rules, heard, &[(Event::Start, None, "drop 0b1"), (DONE, None, "finish")]);
    }
    let all_shared = Rules { tiers: 0b10, ..rules };
    walk(&all_shared, of(Target::Tag, Traits::HEARD), &[(Event::Start, None, "finish")]);
}

/// A write that began under one rule ends as it began, when the rule changes on the way.
#[test]
fn a_change_of_rules_does_not_lose_an_operation() {
    let (before, after) = (rules(&[("write", "write-through".into())]), rules(&[("write", "write-behind".into())]));
    let mut write = operation(Kind::Write, None);
    let answer = Textbook::step(&before, &Turn { moment: MOMENT, operation: write, event: Event::Start });
    write.cookie = answer.cookie;
    walk(&after, write, &[(Event::Saved, None, "keep in 0b11 for 60000, announce"), (KEPT, None, "finish")]);
}

const MOMENT: Moment = Moment { now: 0, random: u64::MAX };

// --- Rules that contradict themselves.

#[test]
fn contradictions_are_refused_by_name_and_with_a_remedy() {
    #[track_caller]
    fn refused(tiers: u8, abilities: Abilities, set: &[(&str, Set)], parameter: &str, remedy: &str) {
        let refusal = keyspace(tiers, tiers & 0b10, abilities, set).expect_err("a contradiction");
        assert_eq!(refusal.parameter, parameter, "{refusal:?}");
        assert!(refusal.message.contains(remedy), "{refusal:?}");
    }
    let all = Abilities::all();
    type Case<'a> = (&'a [(&'a str, Set)], &'a str, &'a str);
    let cases: [Case<'_>; 24] = [
        (&[("read", "read-thru".into())], "read", "set it to cache-aside, read-through or refresh-ahead"),
        (&[("write", "write-back".into())], "write", "write-behind"),
        (&[("flight", "global".into())], "flight", "none, process or fleet"),
        (&[("ttl-ms", (-1).into())], "ttl-ms", "must be from 0"),
        (&[("jitter", 1.5.into())], "jitter", "from 0 to 1"),
        (&[("beta", f64::NAN.into())], "beta", "from 0"),
        (&[("ttl", 1.into())], "ttl", "takes read, write, ttl-ms"),
        (&[("read", "refresh-ahead".into())], "read", "set beta"),
        (&[("eager", 0.8.into())], "eager", "set read to refresh-ahead"),
        (&[("beta", 1.0.into())], "beta", "set read to refresh-ahead"),
        (&[("refresh-every-ms", 5.into())], "refresh-every-ms", "set read to refresh-ahead"),
        (
            &[("read", "refresh-ahead".into()), ("eager", 0.8.into()), ("source-ttl", false.into())],
            "eager",
            "set ttl-ms",
        ),
        (&[("read", "refresh-ahead".into()), ("beta", 1.0.into()), ("source-ttl", false.into())], "beta", "set ttl-ms"),
        (&[("read", "refresh-ahead".into()), ("eager", 1.0.into())], "eager", "below 1"),
        (&[("jitter", 0.1.into()), ("source-ttl", false.into())], "jitter", "set ttl-ms"),
        (
            &[("read", "refresh-ahead".into()), ("refresh-every-ms", 90.into()), ("ttl-ms", 90.into())],
            "refresh-every-ms",
            "below ttl-ms",
        ),
        (&[("read", "cache-aside".into()), ("stale-if-error-ms", 5.into())], "stale-if-error-ms", "set read to"),
        (
            &[("read", "cache-aside".into()), ("stale-while-revalidate-ms", 5.into()), ("flight", "none".into())],
            "stale-while-revalidate-ms",
            "set flight",
        ),
        (&[("read", "cache-aside".into()), ("retries", 2.into())], "retries", "leave it out"),
        (&[("soft-timeout-ms", 5.into())], "soft-timeout-ms", "set stale-if-error-ms"),
        (
            &[("soft-timeout-ms", 5.into()), ("hard-timeout-ms", 5.into()), ("stale-if-error-ms", 5.into())],
            "soft-timeout-ms",
            "below hard-timeout-ms",
        ),
        (&[("retries", 11.into())], "retries", "from 0 to 10"),
        (&[("wait-ms", 0.into())], "wait-ms", "from 1"),
        (&[("read", true.into())], "read", "kind"),
    ];
    for (set, parameter, remedy) in cases {
        refused(0b11, all, set, parameter, remedy);
    }
    refused(0b1, all, &[("near-ttl-ms", 5.into())], "near-ttl-ms", "leave it out");
    refused(0b11, all & !Abilities::LOADS, &[("read", "read-through".into())], "read", "set read to cache-aside");
    refused(0b11, all & !Abilities::SAVES, &[("write", "write-through".into())], "write", "set write to put");
    refused(0b11, all & !Abilities::LOGS, &[("write", "write-behind".into())], "write", "needs a journal");
    refused(0b11, all & !Abilities::LEASES, &[("flight", "fleet".into())], "flight", "set flight to process");
    // What is not said follows from what there is.
    let bare = keyspace(0b1, 0, Abilities::empty(), &[]).expect("nothing is said");
    assert_eq!((bare.read, bare.write), (Reading::CacheAside, Writing::Put));
    let names = |tiers, shared| Keyspace::new::<Textbook>("products", tiers, shared, all, []).map(|_| ());
    assert_eq!(names(0, 0).expect_err("no tier").parameter, "tiers");
    assert_eq!(names(1, 2).expect_err("shares what it has not").parameter, "tiers");
    assert!(Rulebook::<Textbook>::open(&[Keyspace::new::<Textbook>("products", 1, 0, all, []).unwrap()]).is_ok());
}

#[test]
fn tiers_in_order() {
    let rules = Rules { tiers: 0b1000_0101, ..rules(&[]) };
    assert_eq!(
        [None, Some(0), Some(2), Some(7), Some(200)].map(|t| rules.tier_after(t)),
        [Some(0), Some(2), Some(7), None, None]
    );
    assert_eq!([0, 2, 7, 9].map(|tier| rules.nearer_than(tier)), [0, 0b1, 0b101, 0b1000_0101]);
}

// --- Freshness.

#[test]
fn nothing_overflows() {
    let numbers = [0, 1, 60_000, u64::MAX / 1000, u64::MAX - 1, u64::MAX];
    let all = [
        ("read", "refresh-ahead".into()),
        ("eager", 0.999.into()),
        ("beta", 1000.0.into()),
        ("jitter", 1.0.into()),
        ("ttl-ms", (1i64 << 53).into()),
        ("negative-ttl-ms", (1i64 << 53).into()),
        ("stale-if-error-ms", (1i64 << 53).into()),
        ("near-ttl-ms", 1.into()),
    ];
    let rules = rules(&all);
    for fresh in numbers {
        for other in numbers {
            let says = Some(fresh);
            let incoming =
                Incoming { cost_us: other, fresh_ms: says, stale_ms: Some(other), rescue_ms: Some(other), ..PLAIN };
            let copy = Facts { age_ms: other, early_us: other, fresh_ms: fresh, ..copy(1, 0, other, other).unwrap() };
            for random in [0, 1 << 63, u64::MAX] {
                for terms in [freshness::of_incoming(&rules, &incoming, random), freshness::of_copy(&rules, &copy)] {
                    assert!(terms.quiet_ms <= terms.fresh_ms && terms.fresh_ms <= fresh, "{incoming:?} {terms:?}");
                }
                freshness::is_due(&rules, &copy, random);
            }
        }
    }
    for attempts in [0, 1, 63, 64, 255] {
        assert!((25..=60_000).contains(&freshness::backoff(&rules, attempts, fingerprint(attempts.into()))));
    }
}

/// The largest distance between the distribution of samples and one that is given.
fn kolmogorov(samples: &mut [f64], distribution: impl Fn(f64) -> f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let n = samples.len() as f64;
    let distance = |(i, x): (usize, &f64)| {
        let expected = distribution(*x);
        (expected - i as f64 / n).abs().max((expected - (i + 1) as f64 / n).abs())
    };
    samples.iter().enumerate().map(distance).fold(0.0, f64::max)
}

/// The distance that is exceeded by chance once in a million times.
fn critical(n: usize) -> f64 {
    (-(0.5e-6f64).ln() / 2.0 / n as f64).sqrt()
}

#[test]
fn jitter_is_uniform_and_only_shortens() {
    let rules = Rules { jitter: 0.25, ttl_ms: 1_000_000, ..rules(&[]) };
    let mut samples: Vec<f64> =
        (0..50_000).map(|n| freshness::of_incoming(&rules, &PLAIN, fingerprint(n)).fresh_ms as f64).collect();
    assert!(samples.iter().all(|&ms| (750_000.0..=1_000_000.0).contains(&ms)));
    let distance = kolmogorov(&mut samples, |ms| (ms - 750_000.0) / 250_000.0);
    assert!(distance < critical(50_000), "{distance}");
}

/// How a near tier is read, by a host that draws for itself or by one that asks for each read.
#[derive(Clone, Copy, PartialEq)]
enum Host {
    DrawsItself,
    Asks,
}

/// The gap to the end of a copy at which the first read refreshes it, for reads at these gaps: as the contract has it,
/// with quiet terms and all. How many steps that took.
fn first_refresh(rules: &Rules, gaps: impl Iterator<Item = u64>, seed: u64, host: Host) -> (Option<u64>, u64) {
    let terms = freshness::of_incoming(rules, &PLAIN, 0);
    let mut steps = 0;
    for (i, gap) in gaps.enumerate() {
        let age_ms = terms.fresh_ms - gap;
        if age_ms < terms.quiet_ms {
            continue;
        }
        let random = fingerprint(seed << 24 | i as u64);
        // As `early-us` in the WIT has it, in the host's own floating point.
        let u = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
        if host == Host::DrawsItself && terms.early_us as f64 * -u.ln() < gap as f64 * 1000.0 {
            continue;
        }
        steps += 1;
        let facts = Facts { age_ms, early_us: terms.early_us, ..copy(0, gap, 0, 0).unwrap() };
        let turn = Turn {
            moment: Moment { now: 0, random },
            operation: operation(Kind::Read, Some(facts)),
            event: Event::Start,
        };
        match Textbook::step(rules, &turn).action {
            Action::Serve(serving) if serving.then == Then::Refresh => return (Some(gap), steps),
            Action::Serve(_) => {
                assert!(host == Host::Asks, "the host left out all that do not refresh, and not this one")
            }
            other => panic!("{other:?}"),
        }
    }
    (None, steps)
}

/// The paper's formula, word for word: `now - delta * beta * ln(rand()) >= expiry`.
fn first_refresh_in_the_paper(delta_beta_ms: f64, gaps: impl Iterator<Item = u64>, seed: u64) -> Option<u64> {
    let mut gaps = gaps.enumerate();
    gaps.find(|&(i, gap)| {
        let random = fingerprint(!(seed << 24 | i as u64));
        let u = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
        -delta_beta_ms * u.ln() >= gap as f64
    })
    .map(|(_, gap)| gap)
}

/// The times of refreshes against the closed form: where reads come at fixed gaps, none has refreshed by the time of `gap`
/// with probability `prod (1 - exp(-g / (delta * beta)))` over the gaps `g` up to there. A chi-square over ten bins that
/// are about equally likely.
#[test]
fn xfetch_is_distributed_as_in_the_paper() {
    const BINS: usize = 10;
    let rules = rules(&[("read", "refresh-ahead".into()), ("beta", 1.5.into())]);
    let scale = 30.0; // a load of 20 ms, and beta 1.5
    for host in [Host::DrawsItself, Host::Asks] {
        for interval in [1, 10] {
            // The last seconds of a minute; before them, all is quiet.
            let gaps = || (1..=3_000 / interval).rev().map(move |n| n * interval);
            let (mut edges, mut shares) = (Vec::new(), Vec::new());
            let (mut none_yet, mut at_edge) = (1.0, 1.0);
            for gap in gaps() {
                none_yet *= 1.0 - (-(gap as f64) / scale).exp();
                if none_yet <= 1.0 - (edges.len() + 1) as f64 / BINS as f64 && edges.len() < BINS - 1 {
                    edges.push(gap);
                    shares.push(at_edge - none_yet);
                    at_edge = none_yet;
                }
            }
            shares.push(at_edge);
            let samples = 4_000;
            let mut counts = vec![0u32; shares.len()];
            for seed in 0..samples {
                let gap = first_refresh(&rules, gaps(), seed, host).0.unwrap_or(0);
                counts[edges.iter().take_while(|&&edge| gap < edge).count()] += 1;
            }
            let deviation = |(&count, share): (&u32, &f64)| {
                let expected = share * samples as f64;
                (f64::from(count) - expected).powi(2) / expected
            };
            let chi_square: f64 = counts.iter().zip(&shares).map(deviation).sum();
            // For nine degrees of freedom: exceeded by chance once in a million times.
            assert!(counts.len() >= 6 && chi_square < 45.1, "{chi_square} {counts:?} {edges:?}");
        }
    }
}

/// For reads that come in bursts there is no closed form: two samples, one from the paper's formula.
#[test]
fn xfetch_is_the_papers_for_bursts_of_reads() {
    let rules = rules(&[("read", "refresh-ahead".into()), ("beta", 1.0.into())]);
    let bursts = |seed: u64| {
        let mut gap = 3_000u64;
        core::iter::from_fn(move || {
            let random = fingerprint(seed ^ fingerprint(gap));
            let pause = if random.is_multiple_of(20) { 40 } else { random >> 32 & 3 };
            gap = gap.saturating_sub(pause.max(1));
            (gap > 0).then_some(gap)
        })
    };
    let n = 4_000u64;
    let sample = |first: &dyn Fn(u64) -> Option<u64>| -> Vec<u64> {
        let mut gaps: Vec<u64> = (0..n).map(|seed| first(seed).unwrap_or(0)).collect();
        gaps.sort_unstable();
        gaps
    };
    let ours = sample(&|seed| first_refresh(&rules, bursts(seed), seed, Host::DrawsItself).0);
    let papers = sample(&|seed| first_refresh_in_the_paper(20.0, bursts(seed + n), seed));
    // Kolmogorov-Smirnov for two samples.
    let share = |gaps: &[u64], most: u64| gaps.partition_point(|&gap| gap <= most) as f64 / n as f64;
    let distance = (0..3_000).map(|gap| (share(&ours, gap) - share(&papers, gap)).abs()).fold(0.0, f64::max);
    assert!(distance < critical(n as usize / 2), "{distance}");
    assert!(ours[n as usize / 2] > 20, "reads are that dense");
}

/// The quiet time is not an approximation: at its very end, the least likely draw just fails to refresh.
#[test]
fn nothing_is_due_while_it_is_quiet() {
    let rules = rules(&[("read", "refresh-ahead".into()), ("beta", 1.0.into())]);
    let terms = freshness::of_incoming(&rules, &PLAIN, 0);
    assert_eq!(terms.early_us, 20_000);
    let gap_at_end = terms.fresh_ms - terms.quiet_ms;
    assert_eq!(gap_at_end, 735); // 20 ms of 53 ln 2
    assert!(!freshness::fires(terms.early_us, gap_at_end, 0), "rand() at its smallest");
    assert!(freshness::fires(terms.early_us, gap_at_end - 1, 0), "and a millisecond later it does");
    // A host that draws for itself steps hardly ever; one that asks does so in the window only.
    let each_ms = || (1..=60_000u64).rev();
    let steps = |host| (0..200).map(|seed| first_refresh(&rules, each_ms(), seed, host).1).sum::<u64>();
    assert_eq!(steps(Host::DrawsItself), 200);
    assert!(steps(Host::Asks) < 200 * 735);
}

#[test]
fn a_quiet_copy_is_not_due() {
    let rules = rules(&[("read", "refresh-ahead".into()), ("beta", 1.0.into()), ("eager", 0.7.into())]);
    for n in 0..5_000 {
        let random = fingerprint(n);
        let far = Facts { early_us: random % 3_000_000, ..copy(1, random >> 40 & 0xffff, 0, 0).unwrap() };
        let Terms { quiet_ms, fresh_ms, .. } = freshness::of_copy(&rules, &far);
        for later in [0, quiet_ms / 2, quiet_ms.saturating_sub(1)].into_iter().filter(|&later| later < quiet_ms) {
            let then = Facts { fresh_ms: fresh_ms - later, age_ms: far.age_ms + later, ..far };
            assert!(!freshness::is_due(&rules, &then, 0), "{far:?} after {later}");
        }
    }
}
