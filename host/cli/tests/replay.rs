//! `larder replay` from outside.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use common::{larder, scratch, text};
use serde_json::Value;

const POLICIES: [&str; 12] =
    ["fifo", "lru", "lfu", "random", "ttl", "sieve", "s3-fifo", "2q", "arc", "lirs", "w-tinylfu", "adaptive"];

const FIELDS: &str = "trace policy capacity shards threads requests hits hit_ratio byte_hit_ratio evictions ns_per_request \
                      policy_calls policy_ns swaps faults";

/// Runs `larder replay … --format json`, which must succeed, and reads the runs.
fn runs(words: &str) -> Vec<Value> {
    let output = larder(&format!("replay {words} --format json"), &scratch("anywhere"));
    assert!(output.status.success(), "{words}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words}: {error}"))
}

fn number(run: &Value, name: &str) -> u64 {
    run[name].as_u64().unwrap_or_else(|| panic!("{name} in {run}"))
}

/// The keys of `zipf:0.9:2000:40000:1`, as the command itself draws them.
fn zipf() -> Vec<u64> {
    let synthetic: larder_cli::synthetic::Synthetic = "zipf:0.9:2000:40000:1".parse().expect("a synthetic trace");
    synthetic.requests().map(|request| request.key).collect()
}

/// Hits of the simplest cache there can be: a list, the next victim first.
fn simulated(keys: &[u64], capacity: usize, renew: bool) -> u64 {
    let mut list: Vec<u64> = Vec::new();
    let mut hits = 0;
    for &key in keys {
        if let Some(at) = list.iter().position(|&other| other == key) {
            hits += 1;
            if renew {
                list.remove(at);
                list.push(key);
            }
        } else {
            if list.len() == capacity {
                list.remove(0);
            }
            list.push(key);
        }
    }
    hits
}

#[test]
fn every_policy_exact_and_at_defaults() {
    let common = format!("--synthetic zipf:0.9:2000:40000:1 --policy {} --capacity 10,10%", POLICIES.join(","));
    let (exact, default) = (runs(&format!("{common} --exact --opt")), runs(&common));
    assert_eq!((exact.len(), default.len()), (24, 24));
    let keys = zipf();
    let unique = keys.iter().collect::<std::collections::HashSet<_>>().len() as u64;
    for (i, (exact, default)) in exact.iter().zip(&default).enumerate() {
        let capacity = if i < 12 { 10 } else { (2 * unique + 10) / 20 };
        for run in [exact, default] {
            assert_eq!(run["policy"], POLICIES[i % 12]);
            assert_eq!(run["trace"], "zipf:0.9:2000:40000:1");
            assert_eq!(number(run, "capacity"), capacity);
            assert_eq!((number(run, "requests"), number(run, "threads"), number(run, "faults")), (40_000, 1, 0));
            let hits = number(run, "hits");
            assert_eq!(run["hit_ratio"], hits as f64 / 40_000.0);
            assert_eq!(run["byte_hit_ratio"], run["hit_ratio"], "every size is 1");
            // Every miss came in, and what is not there any more was evicted.
            assert_eq!(number(run, "evictions") + capacity, 40_000 - hits, "{run}");
            assert!(number(run, "policy_calls") > 0 && number(run, "policy_ns") > 0);
        }
        assert_eq!(number(exact, "shards"), 1);
        let bound = exact["opt_hit_ratio"].as_f64().expect("with --opt");
        assert!(exact["hit_ratio"].as_f64().expect("a number") <= bound, "{exact}");
        let apart = number(exact, "hits").abs_diff(number(default, "hits"));
        assert!(apart <= 200, "{} at {capacity}: {apart} of 40,000 requests apart", POLICIES[i % 12]);
    }
    for (runs, renew) in [(0, false), (1, true)].map(|(at, renew)| ([&exact[at], &exact[at + 12]], renew)) {
        for run in runs {
            assert_eq!(number(run, "hits"), simulated(&keys, number(run, "capacity") as usize, renew), "{run}");
        }
    }
}

#[test]
fn json_csv_and_table_say_the_same() {
    let words = "--synthetic loop:50:1000 --policy lru,fifo --capacity 50,100% --exact";
    let json = runs(words);
    for run in &json {
        let mut fields: Vec<_> = run.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut promised: Vec<_> = FIELDS.split_whitespace().collect();
        fields.sort_unstable();
        promised.sort_unstable();
        assert_eq!(fields, promised);
        assert_eq!((number(run, "hits"), number(run, "evictions")), (950, 0), "all fit");
    }
    let directory = scratch("formats");
    let csv = text(&larder(&format!("replay {words} --format csv"), &directory).stdout);
    let rows: Vec<_> = csv.lines().collect();
    assert_eq!(rows[0].replace(',', " "), FIELDS);
    assert_eq!(rows.len(), 5);
    assert!(rows[1].starts_with("loop:50:1000,lru,50,1,1,1000,950,0.95,0.95,0,"), "{csv}");
    let output = larder(&format!("replay {words} --plot plot.svg"), &directory);
    assert_eq!(text(&output.stdout).matches("95.00 %").count(), 8, "{}", text(&output.stdout));
    assert!(fs::read_to_string(directory.join("plot.svg")).expect("a plot").ends_with("</svg>\n"));
    // It was tried before the run whether the plot can be written: nothing is left of that if the run fails.
    let output = larder("replay absent.u64 --policy lru --capacity 5 --plot other.svg", &directory);
    assert_eq!((output.status.code(), directory.join("other.svg").exists()), (Some(3), false));
}

#[test]
fn sizes_weigh_where_the_capacity_is_in_bytes() {
    let directory = scratch("bytes");
    // Objects 0, 1 and 2 of 100, 200 and 400 bytes, asked for in turn; and one that fits nowhere.
    let trace: String = (0..30).map(|i| format!("{},{}\n", i % 3, 100 << (i % 3))).collect();
    fs::write(directory.join("sized.csv"), format!("id,size\n{trace}9,5000\n9,5000\n")).expect("write");
    let output = larder("replay sized.csv --policy lru --capacity-bytes 700,600 --exact --format json", &directory);
    let runs: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    assert_eq!(number(&runs[0], "hits"), 27, "all three fit");
    assert_eq!(runs[0]["byte_hit_ratio"], 6300.0 / 17_000.0);
    assert_eq!(number(&runs[1], "hits"), 0, "LRU loses a loop that is larger than the cache");
    let output = larder("replay sized.csv --policy lru --capacity 3 --exact --format json", &directory);
    let runs: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    assert_eq!(number(&runs[0], "hits"), 28, "each weighs 1");
    assert_eq!(runs[0]["byte_hit_ratio"], 11_300.0 / 17_000.0, "and its bytes are counted all the same");
}

/// What a capacity is a share of is what all objects weigh in the cache, where none weighs less than 1.
#[test]
fn all_objects_fit_into_all_of_their_bytes_though_they_have_none() {
    let directory = scratch("empty-objects");
    let sized = |sizes: [u32; 4]| -> Vec<u8> {
        let request = |(key, size): (u64, u32)| [&key.to_le_bytes()[..], &size.to_le_bytes()].concat();
        (0..40).map(|i| (i % 4, sizes[i as usize % 4])).flat_map(request).collect()
    };
    for (name, sizes, capacity) in [("none.u64u32", [0; 4], 4), ("some.u64u32", [0, 10, 0, 20], 32)] {
        fs::write(directory.join(name), sized(sizes)).expect("write");
        let words = format!("replay {name} --policy lru --capacity-bytes 100% --exact --format json");
        let output = larder(&words, &directory);
        let runs: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        let found = (number(&runs[0], "capacity"), number(&runs[0], "hits"), number(&runs[0], "evictions"));
        assert_eq!(found, (capacity, 36, 0), "{name}");
    }
}

#[test]
fn shards_are_a_power_of_two_and_it_is_said() {
    let common = "replay --synthetic loop:50:1000 --policy lru --capacity 100 --format json --shards";
    for (asked, shards) in [("3", 4), ("4", 4)] {
        let output = larder(&format!("{common} {asked}"), &scratch("shards"));
        let runs: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(number(&runs[0], "shards"), shards);
        assert_eq!(text(&output.stderr).contains("--shards 3 was rounded up to 4"), asked == "3");
    }
}

#[test]
fn a_share_of_a_short_trace_is_reached() {
    let directory = scratch("short");
    fs::write(directory.join("one.keys"), "a\n").expect("write");
    for at in ["0%", "50%", "99.9%"] {
        let words = format!("replay one.keys --policy lru --capacity 5 --swap {at}=sieve --format json");
        let output = larder(&words, &directory);
        let runs: Vec<Value> =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        assert_eq!(number(&runs[0], "swaps"), 1, "{at}");
        assert!(text(&output.stderr).contains("swapped lru for sieve at request 0"), "{}", text(&output.stderr));
    }
}

#[test]
fn runs_agree_on_one_thread_and_nothing_is_lost_on_four() {
    let words = "--synthetic zipf:0.9:50000:200000:7 --policy sieve,random,adaptive --capacity 20000 --shards 2";
    let hits = |runs: &[Value]| runs.iter().map(|run| number(run, "hits")).collect::<Vec<_>>();
    // At defaults a batch may end where the cache's background thread looked in; batches of one do not depend on it.
    let exact = "--synthetic zipf:0.9:50000:50000:7 --policy sieve,random,adaptive --capacity 2000 --exact";
    assert_eq!(hits(&runs(exact)), hits(&runs(exact)));
    let once = runs(words);
    for (alone, together) in once.iter().zip(&runs(&format!("{words} --threads 4"))) {
        assert_eq!((number(together, "threads"), number(together, "shards")), (4, 2));
        assert_eq!(number(together, "requests"), 200_000);
        let apart = number(alone, "hits").abs_diff(number(together, "hits"));
        assert!(apart < 4000, "{apart} of 200,000 requests apart: {together}");
    }
}

#[test]
fn a_swap_and_a_shadow() {
    let common = "replay --synthetic zipf:0.8:5000:60000:3 --capacity 500 --exact --format json";
    let directory = scratch("swap");
    let output = larder(&format!("{common} --policy fifo --swap 50%=lru --swap 10000=fifo --shadow lru"), &directory);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let run: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((number(&run[0], "swaps"), number(&run[0], "faults")), (2, 0));
    let said = text(&output.stderr);
    let first = said.find("swapped fifo for fifo at request 10,000: 500 entries adopted, 0 evicted").expect(&said);
    let second = said.find("swapped fifo for lru at request 30,000: 500 entries adopted, 0 evicted").expect(&said);
    assert!(first < second);
    // The shadow of such a small cache runs on every key: it has what LRU alone would have had.
    let lru = larder(&format!("{common} --policy lru"), &directory);
    let lru: Vec<Value> = serde_json::from_slice(&lru.stdout).expect("JSON");
    let percent = 100.0 * lru[0]["hit_ratio"].as_f64().expect("a number");
    assert!(said.contains(&format!("lru would have had {percent:.2} % where the cache had")), "{said} {percent}");
    // A policy that is swapped for itself in the middle is the same policy.
    let swapped = runs("--synthetic zipf:0.8:5000:60000:3 --capacity 500 --exact --policy lru --swap 777=lru");
    assert_eq!(number(&swapped[0], "hits"), number(&lru[0], "hits"));
}

#[test]
fn standard_input_is_read_once_and_replayed_often() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args("replay - --policy lru,fifo --capacity 2,100% --exact --format json".split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("larder runs");
    child.stdin.take().expect("piped").write_all(b"apple\npear\napple\nplum\napple\n").expect("write");
    let output = child.wait_with_output().expect("it ends");
    let runs: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let found: Vec<_> = runs.iter().map(|run| (number(run, "capacity"), number(run, "hits"))).collect();
    assert_eq!(found, [(2, 2), (2, 1), (3, 2), (3, 2)]);
}

/// Each exit code that the help lists, and the next step in each message.
#[test]
fn errors_have_their_code_and_say_what_to_do() {
    let directory = scratch("errors");
    fs::write(directory.join("cut.u64"), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]).expect("write");
    fs::write(directory.join("ok.keys"), "a\nb\na\n").expect("write");
    fs::write(directory.join("not.wasm"), "nonsense").expect("write");
    fs::write(directory.join("named.u64.zst"), [0; 16]).expect("write");
    for (words, code, said) in [
        ("ok.keys --policy lru --capacity 0", 2, "no capacity"),
        ("ok.keys --policy lru --capacity 8 --shards 64", 2, "choose another --shards"),
        ("ok.keys --policy lru --capacity 8 --swap 3=lru", 2, "ok.keys has 3 requests"),
        ("cut.u64 --policy lru --capacity 8", 3, "byte 8"),
        ("absent.u64 --policy lru --capacity 8", 3, "check the path"),
        ("ok.keys --policy lruu --capacity 8", 4, "did you mean `lru`?"),
        ("ok.keys --policy lru:size=3 --capacity 8", 4, "takes no parameter `size`"),
        ("ok.keys --policy ./absent.wasm --capacity 8", 4, "absent.wasm"),
        ("ok.keys --policy ./not.wasm --capacity 8", 4, "not.wasm"),
        ("ok.keys --policy lru --swap 1=nope --capacity 8", 4, "no policy is called `nope`"),
        ("ok.keys --policy lru --shadow nope --capacity 8", 4, "no policy is called `nope`"),
        ("ok.keys --policy ./absent.wasm --capacity 8", 4, "check the path"),
        ("ok.keys --policy ./ --capacity 8", 4, "name the module in it"),
        ("ok.keys --policy . --capacity 8", 4, "such as ./my_policy.wasm"),
        ("ok.keys --policy ok.keys --capacity 8", 4, "wasm32-wasip2"),
        ("ok.keys --policy patterns --capacity 8", 4, "it is a module of patterns"),
        ("ok.keys --policy lru --capacity 8 --threads 100000", 2, "from 1 to 1024"),
        ("named.u64.zst --policy lru --capacity 8", 3, "does not begin as a zstd stream"),
        // Said before anything is read or run.
        ("absent.u64 --policy lru --capacity 8 --plot no/such/place.svg", 1, "choose another --plot"),
    ] {
        let output = larder(&format!("replay {words}"), &directory);
        assert_eq!(output.status.code(), Some(code), "{words}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{words}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{words}");
    }
}
