//! `larder policy list`, `inspect` and `check` from outside.

mod common;
#[path = "../../larder/tests/engine/hostile.rs"]
#[allow(dead_code)] // The whole corpus is for the library's own tests.
mod hostile;

use std::fs;

use common::{larder, scratch, text};
use hostile::{Guest, LOOP, TRAP};
use serde_json::Value;

#[test]
fn the_list_and_each_card() {
    let directory = scratch("list");
    let list = larder("policy list --format json", &directory);
    let cards: Vec<Value> = serde_json::from_slice(&list.stdout).unwrap_or_else(|_| panic!("{}", text(&list.stderr)));
    let mut names: Vec<_> = cards.iter().filter_map(|card| card["name"].as_str()).collect();
    names.sort_unstable();
    let mut promised: Vec<_> =
        "fifo lru lfu random ttl sieve s3-fifo 2q arc lirs w-tinylfu adaptive".split(' ').collect();
    promised.sort_unstable();
    assert_eq!(names, promised);
    let table = text(&larder("policy list", &directory).stdout);
    for card in &cards {
        let (name, summary) = (card["name"].as_str().expect("a name"), card["summary"].as_str().expect("a summary"));
        assert!(table.contains(name) && table.contains(summary), "{name}: {table}");
        assert_eq!(card["imports"], Value::Array(vec![]), "a built-in imports nothing");
        for parameter in card["parameters"].as_array().expect("a list") {
            assert!(table.contains(&format!(":{}=", parameter["name"].as_str().expect("a name"))), "{table}");
        }
        let one = larder(&format!("policy inspect {name} --format json"), &directory);
        assert_eq!(serde_json::from_slice::<Value>(&one.stdout).expect("JSON"), *card);
    }
}

#[test]
fn what_a_rule_may_set_is_on_the_card_of_patterns() {
    let directory = scratch("patterns");
    let shown = text(&larder("policy inspect patterns", &directory).stdout);
    for part in ["larder:policy/patterns-module@0.1.0", "\n  ttl-ms=", "\n  stale-if-error-ms="] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let card = larder("policy inspect patterns --format json", &directory);
    let card: Value = serde_json::from_slice(&card.stdout).expect("JSON");
    assert_eq!((&card["name"], &card["roles"]), (&"patterns".into(), &serde_json::json!(["patterns"])));
}

#[test]
fn a_file_is_inspected() {
    let directory = scratch("inspect");
    let bytes = Guest::default().build();
    fs::write(directory.join("guest.wasm"), &bytes).expect("write");
    let shown = text(&larder("policy inspect guest.wasm", &directory).stdout);
    for part in ["hostile 0.1.0: Means harm", "eviction", "larder:policy/eviction-module@0.1.0", "imports  nothing"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let card = larder("policy inspect guest.wasm --format json", &directory);
    let card: Value = serde_json::from_slice(&card.stdout).expect("JSON");
    assert_eq!(card["size"], bytes.len());
    assert_eq!(card["sha256"].as_str().map(str::len), Some(64));
    fs::write(directory.join("cut.wasm"), &bytes[..bytes.len() / 2]).expect("write");
    let cut = larder("policy inspect cut.wasm", &directory);
    assert_eq!(cut.status.code(), Some(4));
    assert!(text(&cut.stderr).contains("cut short"), "{}", text(&cut.stderr));
}

#[test]
fn a_builtin_keeps_the_contract() {
    for words in ["lru --histories 40", "s3-fifo --histories 40 --seed 1000"] {
        let output = larder(&format!("policy check {words}"), &scratch("check-builtin"));
        assert_eq!(output.status.code(), Some(0), "{words}: {}", text(&output.stdout));
        assert!(text(&output.stdout).contains("keeps the contract: 40 random histories"), "{}", text(&output.stdout));
    }
}

#[test]
fn what_would_check_nothing_is_refused() {
    let directory = scratch("check-nothing");
    for (words, said) in [
        ("--histories 0", "0 is not in 1.."),
        ("--events 0", "0 is not in 1..=100000"),
        ("--seed 18446744073709551615", "choose one of at most 18446744073709550615"),
        ("--seed 18446744073709551615 --histories 1", "choose one of at most 18446744073709551614"),
    ] {
        let output = larder(&format!("policy check lru {words}"), &directory);
        assert_eq!(output.status.code(), Some(2), "{words}: {}", text(&output.stdout));
        assert!(text(&output.stderr).contains(said), "{words}: {}", text(&output.stderr));
    }
    let output = larder("policy check lru --seed 18446744073709551614 --histories 1", &directory);
    assert!(text(&output.stdout).contains("1 random histories"), "{}", text(&output.stdout));
}

#[test]
fn histories_are_as_long_as_they_are_wished() {
    let events = |words: &str| {
        let output = larder(&format!("policy check fifo --histories 10 {words}"), &scratch("check-events"));
        let said = text(&output.stdout);
        let events = said.split_once("histories of ").and_then(|(_, rest)| rest.split_once(" events"));
        let (events, _) = events.unwrap_or_else(|| panic!("{said}{}", text(&output.stderr)));
        events.replace(',', "").parse::<u64>().unwrap_or_else(|_| panic!("{said}"))
    };
    assert_eq!(events(""), events("--events 300"));
    // The last batch may go past the end, by 256 events at most.
    assert!((100..2700).contains(&events("--events 10")) && events("--events 3000") >= 30_000);
}

#[test]
fn a_module_of_patterns_is_told_what_checks_it() {
    let output = larder("policy check patterns", &scratch("check-patterns"));
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stdout));
    for part in ["built-in `patterns`", "it is a module of patterns", "larder_guest::testkit::patterns::check"] {
        assert!(text(&output.stderr).contains(part), "{part}: {}", text(&output.stderr));
    }
    assert!(!text(&output.stderr).contains("build it against"), "{}", text(&output.stderr));
}

/// Each breaks another clause; the report names it, shows a short history, and how to see it again.
#[test]
fn what_breaks_the_contract_is_shown() {
    let directory = scratch("check-hostile");
    let silent = Guest::default();
    let cases = [
        ("silent", silent.clone(), "lists every resident once", "`residents` leaves out slot 0"),
        ("trap", Guest { advance: TRAP, ..silent.clone() }, "answers every call", "it trapped in `advance`"),
        ("refuses", Guest { open: TRAP, ..silent.clone() }, "answers every call", "it does not open"),
        ("loop", Guest { advance: LOOP, ..silent.clone() }, "answers every call", "did not return within"),
        (
            "stranger",
            Guest {
                advance: "(i32.store (i32.const 4096) (i32.const 77777)) (call $victims (i32.const 4096) (i32.const 1))",
                ..silent
            },
            "names only residents as victims",
            "slot 77777",
        ),
    ];
    for (name, guest, clause, how) in cases {
        fs::write(directory.join(format!("{name}.wasm")), guest.build()).expect("write");
        let output = larder(&format!("policy check {name}.wasm"), &directory);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}{}", text(&output.stderr));
        for part in ["breaks the contract", clause, how, "the shortest history found"] {
            assert!(said.contains(part), "{name}: {part:?} in {said}");
        }
        assert!(said.lines().count() < 40, "{name} is not short: {said}");
        let again = said.lines().find_map(|line| line.strip_prefix("again: larder ")).expect("how to see it again");
        let again = larder(again, &directory);
        assert_eq!((again.status.code(), text(&again.stdout)), (Some(1), said));
    }
}

/// The way to see it again has the length of the histories, too.
#[test]
fn a_violation_of_a_long_history_is_seen_again() {
    let directory = scratch("check-long");
    fs::write(directory.join("trap.wasm"), Guest { advance: TRAP, ..Guest::default() }.build()).expect("write");
    let output = larder("policy check trap.wasm --events 900", &directory);
    assert!(text(&output.stderr).contains("history 0 breaks the contract; looking for a shorter one"));
    let said = text(&output.stdout);
    assert!(said.ends_with("again: larder policy check trap.wasm --seed 0 --histories 1 --events 900\n"), "{said}");
}

#[test]
fn a_shadow_that_was_stopped_is_a_policy_that_was_stopped() {
    let directory = scratch("stopped-shadow");
    fs::write(directory.join("trap.wasm"), Guest { advance: TRAP, ..Guest::default() }.build()).expect("write");
    let common = "replay --synthetic loop:100:1000 --policy lru --capacity 100 --shadow";
    let output = larder(&format!("{common} ./trap.wasm"), &directory);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("it was ended: it trapped") && said.contains("`larder policy check ./trap.wasm`"), "{said}");
    assert_eq!(larder(&format!("{common} fifo"), &directory).status.code(), Some(0));
}

/// Not the one that the run began with.
#[test]
fn after_a_swap_the_advice_is_for_the_policy_that_failed() {
    let directory = scratch("stopped-swapped");
    // The whole trace is one portion and one batch a request: it takes over, and traps with the next arrival.
    let trap = Guest { advance: TRAP, ..Guest::default() };
    fs::write(directory.join("trap.wasm"), trap.build()).expect("write");
    let words = "replay --synthetic loop:100:200 --policy lru --capacity 100 --swap 50=./trap.wasm";
    let output = larder(words, &directory);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("`larder policy check ./trap.wasm`") && !said.contains("policy check lru"), "{said}");
}

#[test]
fn a_replay_outlives_its_policy_and_says_so() {
    let directory = scratch("stopped");
    fs::write(directory.join("trap.wasm"), Guest { advance: TRAP, ..Guest::default() }.build()).expect("write");
    let output =
        larder("replay --synthetic loop:100:1000 --policy ./trap.wasm,lru --capacity 100 --format json", &directory);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let runs: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(runs[0]["hits"], 900, "every operation was answered");
    assert!(runs[0]["faults"].as_u64() >= Some(1) && runs[1]["faults"] == 0);
    assert!(text(&output.stderr).contains("`hostile`: it trapped in `advance`"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("larder policy check ./trap.wasm"), "{}", text(&output.stderr));
}

/// As behind `| head`, which has read enough.
#[test]
fn who_stops_reading_ends_it_quietly() {
    let closed = || {
        let (_, writes) = std::io::pipe().expect("a pipe");
        writes
    };
    let larder = |words: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(words.split(' '));
        command
    };
    for words in ["policy list", "policy list --format json", "policy inspect sieve --format json"] {
        let output = larder(words).stdout(closed()).stderr(std::process::Stdio::piped()).spawn().expect("larder runs");
        let output = output.wait_with_output().expect("larder ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{words}");
    }
    // The exit code is what it would be.
    for words in ["policy inspect no-such-file", "keys orders --config no-such-file"] {
        let with = larder(words).output().expect("larder runs").status.code();
        let without = larder(words).stderr(closed()).status().expect("larder runs").code();
        assert!(with == without && with.is_some_and(|code| code < 100), "{words}: {with:?}, {without:?}");
    }
}
