//! What those need who keep a file of redb's: the journal and the tier on disk.

use std::io::Read as _;
use std::path::Path;
use std::{fs, io};

/// Whether a file, which there is, was begun by redb and not finished, or has not a byte yet. Nothing is in it, and redb does not
/// open it.
pub(super) fn is_unfinished(path: &Path) -> io::Result<bool> {
    /// What it begins with when it is finished is written last,
    const NAME: usize = 9;
    /// of a header that is within these.
    const HEADER: u64 = 512;
    /// What is begun is smaller.
    const BEGUN: u64 = 16 << 20;
    let mut file = fs::File::open(path)?;
    if file.metadata()?.len() > BEGUN {
        return Ok(false);
    }
    let (mut header, mut rest) = (Vec::new(), Vec::new());
    file.by_ref().take(HEADER).read_to_end(&mut header)?;
    if header.iter().take(NAME).any(|byte| *byte != 0) {
        return Ok(false);
    }
    file.read_to_end(&mut rest)?;
    Ok(rest.iter().all(|byte| *byte == 0))
}

/// The directory that a path leads into.
pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns when what was made, renamed and removed there would survive a power cut.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    // Elsewhere a directory cannot be opened, and need not be.
    #[cfg(unix)]
    fs::File::open(directory_of(path))?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
