//! Panics of the storage engine.
//!
//! redb reads some of what is in a file without doubt, and panics where damage has made it nonsense. To whoever opens a file,
//! that is one more way of being damaged.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `call` answers; or the text of its panic. What it had in hand must not be used again.
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("its engine panicked: {}", text.unwrap_or("without a text"))
    })
}
