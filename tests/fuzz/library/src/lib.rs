//! What the fuzz targets of this package do with bytes: see `../README.md`.

pub mod config;
pub mod disk;
pub mod keys;
pub mod modules;

/// Lets panics of redb unwind to whoever catches them, where the fuzzer's own hook would end the process at any.
fn let_redb_panic() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|place| place.file().contains("/redb-")) {
                hook(panic);
            }
        }));
    });
}
