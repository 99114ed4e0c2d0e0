//! The policies against libCacheSim, on traces that both make for themselves.
//!
//! FIFO, LRU and SIEVE leave no choice: they must agree with the reference on every single request. The others leave
//! choices (rounding, ties, and for W-TinyLFU how the window adapts): they must be within half a point of the
//! reference's hit ratio, or better. `tests/reference/record.py` made the recording.

use larder_guest::testkit::{Simulator, fingerprint};
use larder_guest::{Eviction, Limits};
use larder_modules::{
    arc::Arc, fifo::Fifo, lirs::Lirs, lru::Lru, s3_fifo::S3Fifo, sieve::Sieve, two_q::TwoQ, w_tinylfu::WTinyLfu,
};
use serde_json::Value;

/// The largest shortfall in hit ratio, in points.
const TOLERANCE: f64 = 0.5;

/// About Zipf with exponent 1: each doubling of the keys is asked for equally often.
fn skewed(n: u64) -> u64 {
    let random = fingerprint(n);
    let level = random % 14;
    (1 << level) + ((random >> 32) & ((1 << level) - 1))
}

/// Request `n` of a trace; as in `record.py`.
fn key(trace: &str, n: u64) -> u64 {
    match trace {
        "skew" => skewed(n),
        "scans" if n % 20_000 >= 15_000 => 1_000_000 + n,
        "scans" => skewed(n),
        "loop" if n.is_multiple_of(2) => 1_000_000 + n / 2 % 3000,
        "loop" => skewed(n),
        "drift" => skewed(n) + n / 1000 * 50,
        other => panic!("no trace {other:?}"),
    }
}

/// FNV-1a over 64-bit words.
fn fnv(values: impl IntoIterator<Item = u64>) -> String {
    let hash =
        values.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, value| (hash ^ value).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

/// Hits and misses, request by request.
fn outcomes<P: Eviction>(capacity: u32, keys: &[u64]) -> Vec<u64> {
    let mut cache = Simulator::<P>::new(&Limits::entries(capacity)).expect("defaults are allowed");
    keys.iter().map(|&key| u64::from(cache.request(key, 1))).collect()
}

/// Calls `compare` with the trace, the requests, the recorded hits and hash, and our outcomes.
fn replay<P: Eviction>(mut compare: impl FnMut(&str, u64, &str, Vec<u64>)) {
    let recording: Value = serde_json::from_str(include_str!("../../../tests/reference/hits.json")).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let number = |value: &Value| value.as_u64().expect("a number");
    let mut compared = 0;
    for trace in recording.as_array().expect("traces") {
        let name = text(&trace["trace"]);
        let keys: Vec<u64> = (0..number(&trace["requests"])).map(|n| key(&name, n)).collect();
        assert_eq!(fnv(keys.iter().copied()), text(&trace["keys"]), "{name}: not the requests that were recorded");
        let runs = trace["runs"].as_array().expect("runs");
        for run in runs.iter().filter(|run| run["policy"] == P::ABOUT.name) {
            let capacity = u32::try_from(number(&run["capacity"])).expect("a capacity");
            let ours = outcomes::<P>(capacity, &keys);
            compare(&format!("{name} at {capacity}"), number(&run["hits"]), &text(&run["outcomes"]), ours);
            compared += 1;
        }
    }
    assert!(compared >= 12, "the recording has every policy on four traces at three capacities");
}

fn agrees_to_the_request<P: Eviction>() {
    replay::<P>(|cell, hits, hash, ours| {
        assert_eq!(ours.iter().sum::<u64>(), hits, "{cell}: hits");
        assert_eq!(fnv(ours), hash, "{cell}: as many hits, at other requests");
    });
}

fn is_as_good<P: Eviction>() {
    replay::<P>(|cell, hits, _, ours| {
        let points = |hits: u64| 100.0 * hits as f64 / ours.len() as f64;
        let (ours, theirs) = (points(ours.iter().sum()), points(hits));
        println!("{cell}: {ours:.2}, reference {theirs:.2}");
        assert!(ours >= theirs - TOLERANCE, "{cell}: {ours:.2}, reference {theirs:.2}");
    });
}

#[test]
fn fifo() {
    agrees_to_the_request::<Fifo>();
}

#[test]
fn lru() {
    agrees_to_the_request::<Lru>();
}

#[test]
fn sieve() {
    agrees_to_the_request::<Sieve>();
}

#[test]
fn s3_fifo() {
    is_as_good::<S3Fifo>();
}

#[test]
fn two_q() {
    is_as_good::<TwoQ>();
}

#[test]
fn arc() {
    is_as_good::<Arc>();
}

#[test]
fn lirs() {
    is_as_good::<Lirs>();
}

#[test]
fn w_tinylfu() {
    is_as_good::<WTinyLfu>();
}
