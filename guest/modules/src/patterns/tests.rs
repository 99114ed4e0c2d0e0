//! The tables against the contract, against the textbook's pictures, and against the paper.

extern crate std;

use larder_guest::testkit;

use super::*;

const TEXTS: &[testkit::patterns::Text<'static>] = &[
    ("read", &["", "cache-aside", "read-through", "refresh-ahead"]),
    ("write", &["", "write-through", "write-behind", "write-around", "write-invalidate", "put"]),
    ("flight", &["", "none", "process", "fleet"]),
];

#[test]
fn keeps_the_contract() {
    let report = testkit::patterns::check::<Textbook>(TEXTS);
    std::println!("{report:?}");
    assert!(report.operations > 8_000 && report.steps > 20_000, "{report:?}");
}
