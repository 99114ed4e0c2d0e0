//! What a file's keeper needs of the directory that it is in.

use std::io;
use std::path::Path;

/// The directory that a path leads into.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns when what was made, renamed and removed there would survive a power cut.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    // Elsewhere a directory cannot be opened, and need not be.
    #[cfg(unix)]
    std::fs::File::open(directory_of(path))?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
