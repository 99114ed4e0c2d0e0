//! Records the corpus anew: `cargo run --release -p larder-conformance --example record [POLICY…]`. `patterns` is the module
//! of that name, recorded from its native twin.
//!
//! For when a policy's decisions were changed on purpose. The difference that git shows is what changed.

use std::{error::Error, fs};

use larder::{Policy, Value};
use larder_conformance::{Call, Setting, component, directory, patterns, record};

/// Histories with default parameters: the test kit's seeds, and about how many events each has. Chosen so that each
/// kind of event is there often and a file stays small; a batch of one costs as many bytes as thirty events in another.
const HISTORIES: [(u64, usize); 16] = [
    // Large batches.
    (19, 400),
    (22, 400),
    (37, 400),
    (41, 400),
    (62, 400),
    (64, 400),
    (76, 400),
    // Adoption, changes and departures among them.
    (39, 400),
    (40, 400),
    (42, 400),
    // Batches of one and two.
    (7, 120),
    (21, 120),
    (23, 120),
    (61, 120),
    (87, 120),
    // Ten times as many events as it says, for what a policy learns late.
    (95, 120),
];
/// Histories with every parameter at its least, and then at its greatest.
const SET: [(u64, usize); 2] = [(39, 400), (40, 400)];

fn main() -> Result<(), Box<dyn Error>> {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    for name in Policy::builtins().filter(|name| asked.is_empty() || asked.iter().any(|one| one == name)) {
        let mut histories: Vec<_> = HISTORIES.map(|history| (history, Vec::new())).into();
        let card = Policy::builtin(name)?.load()?.description().clone();
        for greatest in [false, true] {
            let set = |spec: &larder::ParameterSpec| {
                let bound = if greatest { spec.maximum } else { spec.minimum };
                let value = match (&spec.default, bound) {
                    (Value::Flag(_), _) => Setting::Flag(greatest),
                    (Value::Integer(_), Some(bound)) => Setting::Integer(bound as i64),
                    (Value::Number(_), Some(bound)) => Setting::Number(bound),
                    _ => return None,
                };
                Some((spec.name.clone(), value))
            };
            let parameters: Vec<_> = card.parameters.iter().filter_map(set).collect();
            if !parameters.is_empty() {
                histories.extend(SET.map(|history| (history, parameters.clone())));
            }
        }

        let mut lines = String::new();
        for ((seed, events), parameters) in histories {
            let calls: Vec<Call> = record(seed, events, &parameters, &mut |limits, set| component(name, limits, set))?;
            for call in calls {
                lines += &serde_json::to_string(&call)?;
                lines.push('\n');
            }
        }
        fs::create_dir_all(directory())?;
        fs::write(directory().join(format!("{name}.jsonl")), &lines)?;
        println!("{name}: {} calls, {} KB", lines.lines().count(), lines.len() / 1024);
    }
    if asked.is_empty() || asked.iter().any(|one| one == "patterns") {
        fs::create_dir_all(patterns::directory())?;
        for set in patterns::record::sets() {
            let (mut lines, mut steps) = (String::new(), 0);
            for line in patterns::record::record(&set)? {
                if let patterns::Line::Run(run) = &line {
                    steps += run.steps.len();
                }
                lines += &serde_json::to_string(&line)?;
                lines.push('\n');
            }
            fs::write(patterns::directory().join(format!("{}.jsonl", set.name)), &lines)?;
            println!("patterns/{}: {steps} steps, {} KB", set.name, lines.len() / 1024);
        }
    }
    Ok(())
}
