//! Any text is a query or an error, and of a query nothing is lost but the names of its parameters.

use crate::tiered::sql::{Dialect, parse};

/// One query.
pub fn check(data: &[u8]) {
    let Some((&first, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let dialect = Dialect { numbered: first & 1 != 0, backslashes: first & 2 != 0 };
    let _ = parse(first >> 2, text, dialect);
}
