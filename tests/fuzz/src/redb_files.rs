//! What both packages need for files of redb.

use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

/// Lets panics of redb unwind to whoever catches them, where the fuzzer's own hook would end the process at any.
pub fn let_it_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|place| place.file().contains("/redb-")) {
                hook(panic);
            }
        }));
    });
}

/// A directory of this process, in memory where there is such a file system.
pub fn scratch() -> &'static PathBuf {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let scratch = parent.join(format!("larder-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).expect("a scratch directory");
        scratch
    })
}
