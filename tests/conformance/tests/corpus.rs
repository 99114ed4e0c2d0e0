//! Rule 9, in this host: the corpus of recorded decisions, against the component and against the same algorithm linked
//! natively. Identical, victim for victim. `host/js` replays the same files in Node and workerd: `tests/javascript.rs`.

use larder::Policy;
use larder_conformance::{Call, Difference, component, read, replay, twin};

const RECORD: &str = "if the policy's decisions were changed on purpose, record them anew with\n\
    \n    cargo run --release -p larder-conformance --example record\n\n";

#[test]
fn the_component_decides_as_recorded() {
    for name in Policy::builtins() {
        let calls = read(name).unwrap_or_else(|error| panic!("{error}\n{RECORD}"));
        let difference = |difference: Difference| panic!("{name}, as a component: {difference}\n{RECORD}");
        replay(&calls, &mut |limits, set| component(name, limits, set)).unwrap_or_else(difference);
    }
}

#[test]
fn the_native_twin_decides_as_recorded() {
    for name in Policy::builtins() {
        let calls = read(name).unwrap_or_else(|error| panic!("{error}\n{RECORD}"));
        let difference = |difference: Difference| panic!("{name}, linked natively: {difference}\n{RECORD}");
        replay(&calls, &mut |limits, set| twin(name, limits, set)).unwrap_or_else(difference);
    }
}

#[test]
fn a_wrong_decision_does_not_pass() {
    let mut calls = read("lru").unwrap();
    let at = calls.iter().position(|call| matches!(call, Call::Advance(advance) if !advance.victims.is_empty()));
    let at = at.expect("a cache that fills names victims");
    let Call::Advance(advance) = &mut calls[at] else { unreachable!() };
    advance.victims.reverse();
    advance.victims[0] += 1;
    let difference = replay(&calls, &mut |limits, set| twin("lru", limits, set)).unwrap_err();
    assert_eq!(difference.line, at + 1);

    let fifo = replay(&read("lru").unwrap(), &mut |limits, set| twin("fifo", limits, set));
    assert!(fifo.is_err(), "FIFO passes for LRU: the corpus tells nobody apart");
}

/// What the histories must hold, so that a corpus recorded anew cannot be hollow.
#[test]
fn the_corpus_covers_the_contract() {
    for name in Policy::builtins() {
        let calls = read(name).unwrap();
        let mut seen: [(&str, usize, usize); 13] = [
            ("histories", 0, 16),
            ("adoptions", 0, 40),
            ("victims", 0, 1500),
            ("departures", 0, 100),
            ("changes", 0, 30),
            ("touches", 0, 1000),
            ("touches more than once", 0, 400),
            ("arrivals", 0, 2000),
            ("arrivals with weights", 0, 1000),
            ("arrivals with costs", 0, 1000),
            ("arrivals with expiries", 0, 300),
            ("batches of 1", 0, 400),
            ("batches of more than 128", 0, 3),
        ];
        let mut saw = |what: &str, n: usize| {
            seen.iter_mut().find(|(name, ..)| *name == what).unwrap_or_else(|| panic!("{what}")).1 += n;
        };
        for call in &calls {
            match call {
                Call::Open(_) => saw("histories", 1),
                Call::Adopt(_) => saw("adoptions", 1),
                Call::Residents(_) => {}
                Call::Advance(a) => {
                    let size = a.departed.len() + a.changed.slots.len() + a.touched.len() + a.arrived.slots.len();
                    saw("victims", a.victims.len());
                    saw("departures", a.departed.len());
                    saw("changes", a.changed.slots.len());
                    saw("touches", a.touched.len());
                    saw("touches more than once", a.touches.iter().filter(|&&times| times > 1).count());
                    saw("arrivals", a.arrived.slots.len());
                    saw("arrivals with weights", a.arrived.weights.len());
                    saw("arrivals with costs", a.arrived.costs.len());
                    saw("arrivals with expiries", a.arrived.expiries.iter().flatten().count());
                    saw("batches of 1", usize::from(size == 1));
                    saw("batches of more than 128", usize::from(size > 128));
                }
            }
        }
        for (what, n, least) in seen {
            assert!(n >= least, "the corpus of `{name}` has {n} {what}, fewer than {least}");
        }
    }
}
