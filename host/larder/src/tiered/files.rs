//! What those need who keep a file of redb's: the journal and the tier on disk.

use std::io::Read as _;
use std::path::Path;
use std::{fs, io};

/// Whether a file was begun by redb and not finished, or has not a byte yet. Nothing is in it, and redb does not open it.
pub(super) fn is_unfinished(file: impl io::Read) -> io::Result<bool> {
    /// What it begins with when it is finished is written last,
    const NAME: usize = 9;
    /// of a header that is within these.
    const HEADER: usize = 512;
    /// What is begun is no larger.
    const BEGUN: usize = 16 << 20;
    for (at, byte) in io::BufReader::new(file).bytes().enumerate() {
        if at == BEGUN || (byte? != 0 && !(NAME..HEADER).contains(&at)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is wrong with a path, where the system says less.
pub(super) fn explained(path: &Path, error: io::Error) -> io::Error {
    if !path.is_dir() {
        return error;
    }
    let file = path.join("larder.redb");
    let remedy = format!("it is a directory; name a file, such as {}", file.display());
    io::Error::new(io::ErrorKind::IsADirectory, remedy)
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
