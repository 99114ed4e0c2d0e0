//! Compiled modules, kept on disk: to compile takes a tenth of a second or more, to load what was compiled a
//! thousandth.
//!
//! Compiled code runs outside of the sandbox that it was compiled for, so a file is believed only if it is certain that
//! Larder wrote it as it is: the file belongs to this user and nobody else may write it or its directory, it names the
//! module, the compiler and its settings, and its digest is right. Any other file is compiled anew and replaced; that a cache
//! cannot be used is worth a warning and no more. (wasmtime's own cache checks neither owner nor content.)
//!
//! The directory is `$LARDER_CACHE_DIR`, or `larder` in the user's cache directory; `LARDER_CACHE_DIR=off` does without.
//!
//! A file is: the magic number, the SHA-256 of all that follows, the module's SHA-256, a hash of the compiler and its
//! settings, the code.

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use sha2::{Digest, Sha256};
use wasmtime::{Engine, component::Component};

const MAGIC: &[u8; 8] = b"LARDER\0\x01";
const HEADER: usize = MAGIC.len() + 32 + 32 + 8;
/// How many files to keep, and bytes. Each build of a module that is being worked on leaves a file: of 100 KB, or of 50 MB
/// where it brings a JavaScript engine along.
const FILES: usize = 256;
const BYTES: u64 = 1 << 30;
const EXTENSION: &str = "cwasm";

/// A module's code, if it was compiled before by this version.
pub(super) fn load(engine: &Engine, module: &[u8; 32]) -> Option<Component> {
    Cache::of_environment()?.load(engine, module)
}

/// Keeps a module's code.
pub(super) fn store(engine: &Engine, module: &[u8; 32], component: &Component) {
    if let Some(cache) = Cache::of_environment() {
        cache.store(engine, module, component);
    }
}

struct Cache {
    directory: PathBuf,
}

impl Cache {
    fn of_environment() -> Option<Self> {
        let set = std::env::var_os("LARDER_CACHE_DIR").filter(|set| !set.is_empty());
        let directory = match set {
            Some(set) if set == "off" => return None,
            Some(set) => PathBuf::from(set),
            None => user_directory()?.join("larder"),
        };
        Some(Cache { directory })
    }

    fn path(&self, engine: &Engine, module: &[u8; 32]) -> PathBuf {
        self.directory.join(format!("{}-{:016x}.{EXTENSION}", hex(module), compiler(engine)))
    }

    fn load(&self, engine: &Engine, module: &[u8; 32]) -> Option<Component> {
        let path = self.path(engine, module);
        let mut file = match self.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a file of compiled code is not used; the module is compiled anew");
                return None;
            }
        };
        let mut content = Vec::new();
        let read = file.read_to_end(&mut content);
        let code = match read {
            Ok(_) => code(&content, engine, module),
            Err(_) => None,
        };
        let Some(code) = code else {
            tracing::warn!(path = %path.display(), "a file of compiled code is corrupt; the module is compiled anew");
            return None;
        };
        // SAFETY: `deserialize` wants bytes that `serialize` made, unchanged. Nobody but this user can have written the
        // file: `open` checked owner and permissions of the directory and of the open file. The only thing that writes such
        // files is `store`, from what `serialize` made; that nothing was lost or changed since is what the digest
        // says, of these very bytes in memory, which nobody can change any more. wasmtime itself checks that the
        // code is for this version, machine and configuration.
        let component = unsafe { Component::deserialize(engine, code) };
        component
            .inspect_err(|error| {
                tracing::warn!(%error, path = %path.display(), "a file of compiled code is not used; the module is compiled anew");
            })
            .ok()
    }

    fn store(&self, engine: &Engine, module: &[u8; 32], component: &Component) {
        let path = self.path(engine, module);
        let kept = component.serialize().map_err(io::Error::other).and_then(|code| {
            self.make_directory()?;
            self.replace(&path, &sealed(&code, engine, module))?;
            self.prune(&path)
        });
        if let Err(error) = kept {
            tracing::warn!(%error, directory = %self.directory.display(), "compiled code is not kept on disk; set LARDER_CACHE_DIR to a directory that can be written, or to `off`");
        }
    }

    /// Opens a file that nobody else can have written.
    fn open(&self, path: &Path) -> io::Result<fs::File> {
        let directory = fs::metadata(&self.directory)?;
        let file = fs::File::open(path)?;
        trusted(&directory)?;
        trusted(&file.metadata()?)?;
        Ok(file)
    }

    fn make_directory(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.directory)?;
        trusted(&fs::metadata(&self.directory)?)
    }

    /// Writes a file in one step: a reader sees the old one or the new one, and never a part.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = self.directory.join(format!(".{}-{unique}.new", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written =
            options.open(&new).and_then(|mut file| file.write_all(content)).and_then(|()| fs::rename(&new, path));
        written.inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })
    }

    /// Drops the oldest files, if there are too many.
    fn prune(&self, new: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for file in fs::read_dir(&self.directory)? {
            let path = file?.path();
            let is_ours = path.extension().is_some_and(|extension| extension == EXTENSION || extension == "new");
            // Another process may have dropped it by now.
            if is_ours && let Ok(metadata) = fs::metadata(&path) {
                files.push((path == new, metadata.modified()?, metadata.len(), path));
            }
        }
        files.sort();
        let mut bytes = 0;
        for (i, (_, _, length, path)) in files.into_iter().rev().enumerate() {
            bytes += length;
            if path != new && (i >= FILES || bytes > BYTES) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

/// Whether nobody but this user may write it.
#[cfg(unix)]
fn trusted(metadata: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let refused = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refused("it belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return refused("other users may write it");
    }
    Ok(())
}

/// The user's own profile directory is private on Windows.
#[cfg(not(unix))]
fn trusted(_: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

/// Where programs keep what they can make again.
fn user_directory() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if cfg!(windows) {
        return absolute("LOCALAPPDATA");
    }
    let home = absolute("HOME");
    if cfg!(target_os = "macos") {
        return home.map(|home| home.join("Library/Caches"));
    }
    absolute("XDG_CACHE_HOME").or_else(|| home.map(|home| home.join(".cache")))
}

/// A file's content.
fn sealed(code: &[u8], engine: &Engine, module: &[u8; 32]) -> Vec<u8> {
    let mut content = Vec::with_capacity(HEADER + code.len());
    content.extend_from_slice(MAGIC);
    content.extend_from_slice(&[0; 32]);
    content.extend_from_slice(module);
    content.extend_from_slice(&compiler(engine).to_le_bytes());
    content.extend_from_slice(code);
    let digest = Sha256::digest(&content[MAGIC.len() + 32..]);
    content[MAGIC.len()..][..32].copy_from_slice(&digest);
    content
}

/// The code in a file's content, if all of it is as it was written for this module and compiler.
fn code<'a>(content: &'a [u8], engine: &Engine, module: &[u8; 32]) -> Option<&'a [u8]> {
    let rest = content.strip_prefix(MAGIC)?;
    let (digest, sealed) = rest.split_at_checked(32)?;
    if Sha256::digest(sealed).as_slice() != digest {
        return None;
    }
    sealed.strip_prefix(module)?.strip_prefix(&compiler(engine).to_le_bytes())
}

/// What stands for the compiler's version, its settings and the machine.
fn compiler(engine: &Engine) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest component.
    const MODULE: &[u8] = b"\0asm\x0d\0\x01\0";
    const DIGEST: [u8; 32] = [7; 32];

    fn temporary(name: &str) -> Cache {
        let directory = std::env::temp_dir().join(format!("larder-code-cache-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        Cache { directory }
    }

    fn engine() -> &'static Engine {
        super::super::engine().unwrap()
    }

    /// A cache with one file, and the file's path.
    fn filled(name: &str) -> (Cache, PathBuf) {
        let cache = temporary(name);
        cache.store(engine(), &DIGEST, &Component::from_binary(engine(), MODULE).unwrap());
        let path = cache.path(engine(), &DIGEST);
        assert!(path.is_file() && cache.load(engine(), &DIGEST).is_some(), "what was stored is found");
        (cache, path)
    }

    #[test]
    fn no_changed_byte_is_believed() {
        let (cache, path) = filled("changed");
        let good = fs::read(&path).unwrap();
        // Every byte of the header, and a sample of the code.
        let positions = (0..HEADER).chain((HEADER..good.len()).step_by(good.len() / 200 + 1));
        for at in positions {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            assert!(cache.load(engine(), &DIGEST).is_none(), "byte {at} of {} was changed", good.len());
        }
        fs::write(&path, &good).unwrap();
        assert!(cache.load(engine(), &DIGEST).is_some());
        fs::remove_dir_all(cache.directory).unwrap();
    }

    #[test]
    fn no_other_length_is_believed() {
        let (cache, path) = filled("length");
        let good = fs::read(&path).unwrap();
        for length in (0..HEADER + 4).chain((HEADER..good.len()).step_by(good.len() / 100 + 1)).chain([good.len() - 1])
        {
            fs::write(&path, &good[..length]).unwrap();
            assert!(cache.load(engine(), &DIGEST).is_none(), "cut to {length} of {}", good.len());
        }
        fs::write(&path, [&good[..], b"\0"].concat()).unwrap();
        assert!(cache.load(engine(), &DIGEST).is_none(), "a byte too many");
        fs::remove_dir_all(cache.directory).unwrap();
    }

    #[test]
    fn a_file_for_another_module_is_not_believed() {
        let (cache, path) = filled("renamed");
        let other = [8; 32];
        fs::rename(&path, cache.path(engine(), &other)).unwrap();
        assert!(cache.load(engine(), &other).is_none());
        fs::remove_dir_all(cache.directory).unwrap();
    }

    #[test]
    fn code_of_another_compiler_is_not_believed() {
        let cache = temporary("compiler");
        let mut config = super::super::config();
        config.cranelift_opt_level(wasmtime::OptLevel::None);
        let other = Engine::new(&config).unwrap();
        cache.store(&other, &DIGEST, &Component::from_binary(&other, MODULE).unwrap());
        fs::rename(cache.path(&other, &DIGEST), cache.path(engine(), &DIGEST)).unwrap();
        assert!(cache.load(engine(), &DIGEST).is_none());
        fs::remove_dir_all(cache.directory).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn what_others_may_write_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let (cache, path) = filled("permissions");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&cache.directory).unwrap().permissions().mode() & 0o777, 0o700);
        set(&path, 0o622);
        assert!(cache.load(engine(), &DIGEST).is_none(), "a file that others may write");
        set(&path, 0o600);
        set(&cache.directory, 0o770);
        assert!(cache.load(engine(), &DIGEST).is_none(), "a directory that the group may write");
        set(&cache.directory, 0o700);
        assert!(cache.load(engine(), &DIGEST).is_some());
        fs::remove_dir_all(cache.directory).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_done_without() {
        let cache = temporary("unwritable");
        fs::write(&cache.directory, "a file where the directory should be").unwrap();
        cache.store(engine(), &DIGEST, &Component::from_binary(engine(), MODULE).unwrap());
        assert!(cache.load(engine(), &DIGEST).is_none());
        fs::remove_file(cache.directory).unwrap();
    }

    #[test]
    fn the_oldest_files_are_dropped() {
        let (cache, path) = filled("many");
        for i in 0..2 * FILES {
            fs::write(cache.directory.join(format!("{i}.{EXTENSION}")), "old").unwrap();
        }
        fs::write(cache.directory.join("not-ours.txt"), "kept").unwrap();
        cache.prune(&path).unwrap();
        assert_eq!(fs::read_dir(&cache.directory).unwrap().count(), FILES + 1);
        assert!(path.is_file() && cache.directory.join("not-ours.txt").is_file());
        fs::remove_dir_all(cache.directory).unwrap();
    }
}
