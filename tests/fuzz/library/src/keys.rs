//! Any text is a key or none; and the text of a key is that key's.

use std::sync::Arc;

use larder::tiered::Key;

/// One text.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    one::<String>(text);
    one::<Arc<str>>(text);
    one::<u32>(text);
    one::<u64>(text);
    one::<u128>(text);
    one::<i32>(text);
    one::<i64>(text);
}

fn one<K: Key + std::fmt::Debug>(text: &str) {
    let Some(key) = K::of_text(text) else { return };
    let written = key.text().into_owned();
    assert_eq!(K::of_text(&written), Some(key.clone()));
    if let Some(integer) = key.integer() {
        assert_eq!(written.parse(), Ok(integer), "the text and the integer are the same key");
    }
}
