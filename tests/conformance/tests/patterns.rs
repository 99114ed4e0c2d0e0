//! Rule 9 for the role `patterns`: every recorded step, against the component as the driver calls it, and against the same
//! tables linked natively. Identical, cookie for cookie and action for action. `host/js` replays the same files in Node and
//! workerd: `tests/javascript.rs`.

use std::collections::{BTreeMap, BTreeSet};

use larder_conformance::Setting;
use larder_conformance::patterns::words::{Word, case};
use larder_conformance::patterns::{Component, Line, Twin, read, record, replay, sets};
use larder_guest::patterns::{Abilities, Action, Event, Failure, Kind, Mark, Marks, Scope, Target, Then, Traits, What};
use larder_guest::patterns::{MOST_STEPS, Patterns};
use larder_modules::patterns::Textbook;
use larder_modules::patterns::cookie::Memory;
use serde_json::{Value as Json, json};

const RECORD: &str = "if the patterns' decisions were changed on purpose, record them anew with\n\
    \n    cargo run --release -p larder-conformance --example record patterns\n\n";

fn corpus() -> Vec<(String, Vec<Line>)> {
    let names = sets().unwrap_or_else(|error| panic!("{error}\n{RECORD}"));
    let set = |name: String| (name.clone(), read(&name).unwrap_or_else(|error| panic!("{error}\n{RECORD}")));
    names.into_iter().map(set).collect()
}

#[test]
fn the_native_twin_steps_as_recorded() {
    for (name, lines) in corpus() {
        if let Err(difference) = replay(&lines, 1, &mut Twin::default()) {
            panic!("patterns/{name}, linked natively: {difference}\n{RECORD}");
        }
    }
}

#[test]
fn the_component_steps_as_recorded() {
    for (name, lines) in corpus() {
        for at_once in [1, 64] {
            if let Err(difference) = replay(&lines, at_once, &mut Component::default()) {
                panic!("patterns/{name}, as a component, {at_once} at once: {difference}\n{RECORD}");
            }
        }
    }
}

/// Nothing is left over of a set that the recorder no longer knows, and none is missing.
#[test]
fn every_set_is_recorded() {
    let known: BTreeSet<_> = record::sets().iter().map(|set| set.name.to_string()).collect();
    assert_eq!(sets().unwrap().into_iter().collect::<BTreeSet<_>>(), known, "{RECORD}");
}

/// In each set, one answer is changed, of every kind of action in turn, and the cookie; and each time a replay says so.
#[test]
fn a_wrong_step_does_not_pass() {
    let mut changed = BTreeSet::new();
    for (name, lines) in corpus() {
        let mut seen = BTreeSet::new();
        for (at, line) in lines.iter().enumerate() {
            let Line::Run(run) = line else { continue };
            for (i, step) in run.steps.iter().enumerate() {
                let (action, _) = case(&step.5).expect("an action is a case");
                if !seen.insert(action.to_string()) {
                    continue;
                }
                changed.insert(action.to_string());
                for wrong in [json!([step.4, other_than(&step.5)]), json!([json!("999"), step.5])] {
                    let mut run = run.clone();
                    // What comes after would go on with the wrong cookie.
                    run.steps.truncate(i + 1);
                    (run.steps[i].4, run.steps[i].5) = (wrong[0].clone(), wrong[1].clone());
                    let opened = lines[..at].iter().rposition(|line| matches!(line, Line::Open(_))).expect("open");
                    let short = [lines[opened].clone(), Line::Run(run)];
                    for at_once in [1, 64] {
                        let twin = replay(&short, at_once, &mut Twin::default());
                        assert_eq!(twin.map_err(|difference| difference.line), Err(2), "{name}: {wrong} passes");
                    }
                }
            }
        }
    }
    assert_eq!(changed, names(Action::CASES));

    // One in the midst of many is found by the component's replay, too, and at its line.
    let mut lines = read("read-through").unwrap();
    let at = lines.len() / 2;
    let Line::Run(run) = &mut lines[at] else { panic!("the second half of a set is runs") };
    run.steps[0].5 = other_than(&run.steps[0].5);
    for at_once in [1, 64] {
        let difference = replay(&lines, at_once, &mut Component::default()).unwrap_err();
        assert_eq!(difference.line, at + 1);
    }
}

/// What looks were told with is what was answered once a copy had been found: by the host's reading of it and by the SDK's.
#[test]
fn what_is_told_beforehand_is_answered() {
    use larder::tiered::testkit::steps;
    use larder_guest::patterns as guest;
    let (mut told, mut untold) = (0, 0);
    for (name, lines) in corpus() {
        for run in lines.iter().filter_map(|line| if let Line::Run(run) = line { Some(run) } else { None }) {
            for pair in run.steps.windows(2) {
                let [(.., look), (_, _, held, event, _, answered)] = pair else { continue };
                let Some(("look", looking)) = case(look) else { continue };
                if *event != json!("found") || held.is_null() {
                    continue;
                }
                macro_rules! foretold {
                    ($words:ident) => {{
                        let looking = $words::Looking::read(looking).expect("a look");
                        let held = $words::Facts::read(held).expect("a copy");
                        let promotion = looking.promote.filter(|_| held.tier == looking.tier);
                        promotion.and_then(|promotion| promotion.answer(&held)).map(|answer| answer.action.write())
                    }};
                }
                let (by_host, by_guest) = (foretold!(steps), foretold!(guest));
                assert_eq!(by_host, by_guest, "{name}");
                match by_host {
                    Some(action) => {
                        assert_eq!(action, *answered, "{name}: {look} and then {held}");
                        told += 1;
                    }
                    None => untold += 1,
                }
            }
        }
    }
    assert!(told > 50 && untold > 100, "{told} told, {untold} untold");
}

/// A host that loses a parameter on the way to the module, or misreads it, is found out by some step.
#[test]
fn every_parameter_matters() {
    let corpus = corpus();
    for spec in Textbook::ABOUT.parameters {
        let matters = corpus.iter().any(|(_, lines)| {
            let opened = lines.iter().enumerate().filter_map(|(at, line)| match line {
                Line::Open(keyspaces) => Some((at, keyspaces)),
                _ => None,
            });
            let mut set = opened.flat_map(|(at, keyspaces)| keyspaces.iter().enumerate().map(move |(i, k)| (at, i, k)));
            set.any(|(at, i, keyspace)| {
                let Some(parameter) = keyspace.parameters.iter().position(|(name, _)| name == spec.name) else {
                    return false;
                };
                let mut lines = lines.clone();
                let Line::Open(keyspaces) = &mut lines[at] else { return false };
                keyspaces[i].parameters.remove(parameter);
                // Rules that are refused without it say nothing of steps.
                let difference = replay(&lines, 1, &mut Twin::default()).err();
                difference.is_some_and(|difference| matches!(lines[difference.line - 1], Line::Run(_)))
            })
        });
        assert!(matters, "the corpus would not show that `{}` was lost", spec.name);
    }
}

/// Another payload, or for a case without one, another case.
fn other_than(action: &Json) -> Json {
    fn other(json: &Json) -> Json {
        match json {
            Json::Null => json!(12_345),
            Json::Bool(yes) => json!(!yes),
            Json::Number(number) => json!(number.as_i64().unwrap_or_default() + 1),
            Json::String(text) => json!(format!("{text}?")),
            Json::Array(fields) => {
                let mut fields = fields.clone();
                if let Some(last) = fields.last_mut() {
                    *last = other(last);
                }
                Json::Array(fields)
            }
            Json::Object(one) => {
                Json::Object(one.iter().map(|(name, payload)| (name.clone(), other(payload))).collect())
            }
        }
    }
    match action {
        Json::String(_) => json!({ "fail": "rejected" }),
        action => other(action),
    }
}

fn names(cases: &[&str]) -> BTreeSet<String> {
    cases.iter().map(|name| name.to_string()).collect()
}

/// What the corpus must hold, so that one recorded anew cannot be hollow.
#[test]
fn the_corpus_covers_the_contract() {
    /// How often each was seen, by what it is a case of.
    #[derive(Default)]
    struct Seen(BTreeMap<&'static str, BTreeMap<String, usize>>);
    impl Seen {
        fn saw(&mut self, what: &'static str, name: impl ToString) {
            *self.0.entry(what).or_default().entry(name.to_string()).or_default() += 1;
        }
        fn flags(&mut self, what: &'static str, list: &Json) {
            list.as_array().into_iter().flatten().filter_map(Json::as_str).for_each(|name| self.saw(what, name));
        }
        fn all(&self, what: &str, cases: &[&str], least: usize) {
            for name in cases {
                let count = self.0.get(what).and_then(|names| names.get(*name)).copied().unwrap_or_default();
                assert!(count >= least, "the corpus has {count} of {what} `{name}`, fewer than {least}");
            }
        }
    }
    let mut seen = Seen::default();
    let (mut steps, mut runs, mut opens, mut refusals, mut goes_on, mut longest) = (0, 0, 0, 0, 0, 0);
    let mut tiers = BTreeSet::new();
    let mut parameters: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, lines) in corpus() {
        let mut by_keyspace: BTreeMap<u32, usize> = BTreeMap::new();
        let mut keyspaces = 0;
        for line in &lines {
            match line {
                Line::Open(opened) => {
                    opens += 1;
                    keyspaces = opened.len();
                    for keyspace in opened {
                        tiers.insert(keyspace.tiers);
                        seen.flags("abilities", &keyspace.abilities);
                        let has = keyspace.abilities.to_string();
                        let lacks = Abilities::CASES.iter().filter(|name| !has.contains(*name));
                        lacks.for_each(|name| seen.saw("abilities that lack", name));
                        for (name, setting) in &keyspace.parameters {
                            parameters.entry(name.clone()).or_default().insert(format!("{setting:?}"));
                        }
                    }
                }
                Line::Refuse(refusal) => {
                    refusals += 1;
                    seen.saw("refused parameters", &refusal.parameter);
                }
                Line::Run(run) => {
                    runs += 1;
                    goes_on += usize::from(run.cookie != json!(0));
                    longest = longest.max(run.steps.len());
                    *by_keyspace.entry(run.keyspace).or_default() += run.steps.len();
                    seen.saw("kinds", run.kind.as_str().expect("a kind is a name"));
                    seen.saw("targets", run.target.as_str().expect("a target is a name"));
                    seen.flags("traits", &run.traits);
                    for (_, _, held, event, cookie, action) in &run.steps {
                        steps += 1;
                        if let Some(marks) = held.get(8) {
                            seen.flags("marks", marks);
                        }
                        let (event, told) = case(event).expect("an event is a case");
                        let (action, payload) = case(action).expect("an action is a case");
                        seen.saw("events", event);
                        seen.saw("actions", action);
                        let text = |i: usize| payload.get(i).and_then(Json::as_str).unwrap_or_default();
                        match (event, action) {
                            (_, "join") => seen.saw("scopes", text(0)),
                            (_, "fail") => seen.saw("failures", payload.as_str().unwrap_or_default()),
                            (_, "serve") => {
                                seen.saw("values served", text(0));
                                seen.saw("marks served", text(1));
                                seen.saw("sequels", text(4));
                                if (text(1), text(4)) == ("fresh", "refresh") {
                                    seen.saw("sequels", "early refresh");
                                }
                            }
                            (_, "keep") => seen.saw("values kept", text(0)),
                            (_, "finish") if !payload.is_null() => seen.saw("actions", "finish, and begin again"),
                            _ => {}
                        }
                        if let ("kept" | "dropped", Some(outcome)) = (event, told.as_array()) {
                            let fields = ["fenced", "down", "declined", "unannounced"].into_iter().zip(outcome);
                            let amiss = fields.filter(|(_, told)| **told != json!(0) && **told != json!(false));
                            amiss.for_each(|(field, _)| seen.saw("outcomes", field));
                        }
                        if event.ends_with("failed") {
                            seen.saw("failures that are told", told.as_str().unwrap_or_default());
                        }
                        let memory = Memory::of(u64::read(cookie).unwrap()).expect("a cookie of the built-in's");
                        seen.saw("stages", format!("{:?}", memory.stage));
                    }
                }
            }
        }
        for keyspace in 0..keyspaces as u32 {
            let count = by_keyspace.get(&keyspace).copied().unwrap_or_default();
            assert!(count >= 20, "keyspace {keyspace} of patterns/{name} has {count} steps, fewer than 20");
        }
    }

    assert!((30_000..60_000).contains(&steps), "{steps} steps");
    assert!(runs > 8_000 && opens > 10 && refusals > 15, "{runs} runs, {opens} sets, {refusals} refusals");
    assert!(goes_on > 500, "{goes_on} operations go on under other rules");
    assert!((10..=MOST_STEPS).contains(&longest), "the longest run has {longest} steps");
    seen.all("events", Event::CASES, 50);
    seen.all("actions", Action::CASES, 50);
    seen.all("actions", &["finish, and begin again"], 20);
    seen.all("kinds", Kind::CASES, 300);
    seen.all("targets", Target::CASES, 50);
    seen.all("traits", Traits::CASES, 50);
    seen.all("marks", Marks::CASES, 500);
    seen.all("scopes", Scope::CASES, 100);
    seen.all("failures", Failure::CASES, 10);
    // The other two are verdicts of modules and of hosts without the ability.
    let told: Vec<_> =
        Failure::CASES.iter().filter(|name| !["unreached", "unsupported"].contains(name)).copied().collect();
    seen.all("failures that are told", &told, 100);
    seen.all("outcomes", &["fenced", "down", "declined", "unannounced"], 50);
    seen.all("values served", &What::CASES[..2], 100);
    seen.all("values kept", What::CASES, 50);
    seen.all("marks served", Mark::CASES, 100);
    seen.all("sequels", Then::CASES, 20);
    seen.all("sequels", &["early refresh"], 100);
    seen.all("abilities", Abilities::CASES, 20);
    seen.all("abilities that lack", Abilities::CASES, 20);
    let stages = (0u64..).map_while(Memory::of).map(|memory| format!("{:?}", memory.stage)).collect::<Vec<_>>();
    assert!(stages.len() > 15, "{stages:?}");
    seen.all("stages", &stages.iter().map(String::as_str).collect::<Vec<_>>(), 20);

    let most = tiers.iter().map(|tiers: &u8| tiers.count_ones()).collect::<BTreeSet<_>>();
    assert!(most.is_superset(&[1, 2, 3, 8].into()) && tiers.iter().any(|tiers| tiers & 1 == 0), "{tiers:?}");
    for spec in Textbook::ABOUT.parameters {
        let values = parameters.get(spec.name).map_or(0, BTreeSet::len);
        let texts = record::TEXTS.iter().find(|(name, _)| *name == spec.name);
        let (least, choices) = texts.map_or((2, &[][..]), |(_, choices)| (choices.len() - 1, choices));
        let least = if matches!(spec.default, larder_guest::Value::Flag(_)) { 1 } else { least };
        assert!(values >= least, "the corpus sets `{}` to {values} values, fewer than {least}", spec.name);
        for choice in choices.iter().filter(|choice| !choice.is_empty()) {
            let set = format!("{:?}", Setting::Text(choice.to_string()));
            assert!(parameters[spec.name].contains(&set), "the corpus never sets `{}` to `{choice}`", spec.name);
        }
    }
}
