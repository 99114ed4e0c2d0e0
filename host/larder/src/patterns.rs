//! The user's handle on a module of the role `patterns`: the built-in one, a file or bytes, pinned if so wished.
//!
//! As a [`Policy`](crate::Policy) is for eviction. What a rule may set is in the module's card; the rules themselves belong
//! to keyspaces, and are given to [`TieredBuilder::rule`](crate::TieredBuilder::rule).

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};

use crate::{
    Description, PolicyError,
    engine::{
        Bounds,
        steps::{self, CompiledPatterns},
    },
    policy,
};

/// What one operation does next, decided by a module.
///
/// ```
/// use larder::Patterns;
///
/// let card = Patterns::builtin().load()?;
/// assert_eq!(card.description().name, "patterns");
/// assert!(card.description().parameters.iter().any(|parameter| parameter.name == "ttl-ms"));
/// # Ok::<(), larder::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct Patterns {
    source: Source,
    sha256: Option<String>,
    bounds: Bounds,
}

#[derive(Clone)]
enum Source {
    Builtin,
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

/// The built-in module's name.
const BUILTIN: &str = "patterns";

impl Patterns {
    fn new(source: Source) -> Self {
        Patterns { source, sha256: None, bounds: Bounds::default() }
    }

    /// The module that comes with Larder: the textbook's patterns.
    pub fn builtin() -> Self {
        Patterns::new(Source::Builtin)
    }

    /// A module in a file. It is read by [`load`](Self::load), each time anew.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Patterns::new(Source::File(path.into()))
    }

    /// A module in memory.
    pub fn bytes(component: impl Into<Arc<[u8]>>) -> Self {
        Patterns::new(Source::Bytes(component.into()))
    }

    /// Pins the module: [`load`](Self::load) takes it only if its bytes have this SHA-256, in hexadecimal.
    #[must_use]
    pub fn sha256(mut self, digest: impl Into<String>) -> Self {
        self.sha256 = Some(digest.into());
        self
    }

    /// How long a step may take, 100 ms if nothing is said; to start an instance may take ten times as long. A module that
    /// takes longer is stopped.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.bounds.deadline = deadline;
        self
    }

    /// How many bytes of memory an instance may have (there is one for each core), 32 MiB if nothing is said. On top comes
    /// what its file declares.
    #[must_use]
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.bounds.memory = bytes;
        self
    }

    /// Finds the module, checks it, and compiles it (or finds it compiled).
    ///
    /// # Errors
    /// A [`PolicyError`] that names the place, what is wrong there, and what to do about it.
    pub fn load(&self) -> Result<PatternsModule, PolicyError> {
        let read;
        let bytes: &[u8] = match &self.source {
            Source::Builtin => policy::builtin_patterns(BUILTIN)?,
            Source::File(path) => {
                read =
                    policy::read_file(path).map_err(|source| PolicyError::Unreadable { path: path.clone(), source })?;
                &read
            }
            Source::Bytes(bytes) => bytes,
        };
        let sha256: [u8; 32] = Sha256::digest(bytes).into();
        let hex = policy::hex(&sha256);
        let place = match &self.source {
            Source::Builtin => format!("built-in `{BUILTIN}`"),
            Source::File(path) => path.display().to_string(),
            Source::Bytes(_) => format!("module {}… of {} bytes", &hex[..12], bytes.len()),
        };
        if let Some(pinned) = &self.sha256
            && !pinned.eq_ignore_ascii_case(&hex)
        {
            return Err(PolicyError::Digest { place, expected: pinned.clone(), actual: hex });
        }
        let compiled = steps::compile(&place, bytes, &sha256, self.bounds)?;
        Ok(PatternsModule { compiled, bounds: self.bounds, sha256: hex })
    }
}

impl Default for Patterns {
    /// The built-in one.
    fn default() -> Self {
        Patterns::builtin()
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Builtin => f.write_str(BUILTIN),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Bytes(bytes) => write!(f, "a module of {} bytes", bytes.len()),
        }
    }
}

impl fmt::Debug for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Patterns({self})")
    }
}

/// A module of the role `patterns` that was found, checked and compiled. Cheap to clone.
#[derive(Clone)]
pub struct PatternsModule {
    pub(crate) compiled: Arc<CompiledPatterns>,
    pub(crate) bounds: Bounds,
    sha256: String,
}

impl PatternsModule {
    /// The module's card, with the parameters that a rule may set.
    pub fn description(&self) -> &Description {
        self.compiled.description()
    }

    /// The SHA-256 of its bytes in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The interfaces that it imports. A module needs none; those of WASI 0.2 are given, and empty.
    pub fn imports(&self) -> &[String] {
        self.compiled.imports()
    }
}

impl fmt::Debug for PatternsModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Description { name, version, .. } = self.description();
        f.debug_struct("PatternsModule").field("name", name).field("version", version).finish_non_exhaustive()
    }
}
