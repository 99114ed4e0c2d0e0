//! A module, checked and compiled.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, Weak},
};

use parking_lot::Mutex;
use wasmtime::component::{Component, InstancePre, Linker, types::ComponentItem};

use super::{
    Bounds, code_cache, engine,
    generated::{EvictionModulePre, exports::larder::policy::about},
    instance::Running,
    limits::State,
    steps, wasi,
};
use crate::policy::{Description, ParameterSpec, PolicyError, Role, Value};

/// The interfaces of the world `eviction-module`, each at the version that this host speaks.
const INTERFACES: [&str; 2] = ["larder:policy/about@0.1.0", "larder:policy/eviction@0.1.0"];

/// The most memory that a module's file may declare and have on top of its limit: a language's whole runtime.
const DECLARED: usize = 256 << 20;

/// A component of the world `eviction-module`, ready to be started.
pub(crate) struct Compiled {
    pub(super) pre: EvictionModulePre<State>,
    pub(super) declared: usize,
    description: Description,
    imports: Vec<String>,
}

impl Compiled {
    /// The module's card.
    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// What it imports, by the names of the interfaces.
    pub(crate) fn imports(&self) -> &[String] {
        &self.imports
    }
}

/// Compiles a module and reads its card; or finds it compiled, in this process or on disk.
///
/// # Errors
/// What is wrong with the file, or with the module's card.
pub(crate) fn compile(
    place: &str,
    bytes: &[u8],
    sha256: &[u8; 32],
    bounds: Bounds,
) -> Result<Arc<Compiled>, PolicyError> {
    // Those in use; the rest is on disk.
    static COMPILED: OnceLock<Mutex<HashMap<[u8; 32], Weak<Compiled>>>> = OnceLock::new();
    let known = COMPILED.get_or_init(Mutex::default);
    if let Some(compiled) = known.lock().get(sha256).and_then(Weak::upgrade) {
        return Ok(compiled);
    }
    // Outside of the lock: compiling takes a while, and to do it twice at once is only a waste.
    let compiled = Arc::new(compile_new(place, bytes, sha256, bounds)?);
    let mut known = known.lock();
    known.retain(|_, compiled| compiled.strong_count() > 0);
    known.insert(*sha256, Arc::downgrade(&compiled));
    Ok(compiled)
}

/// A component whose form, interfaces and imports are right.
pub(super) struct Checked {
    component: Component,
    pub(super) pre: InstancePre<State>,
    /// The bytes of memory that its file declares.
    pub(super) declared: usize,
    pub(super) imports: Vec<String>,
    is_new: bool,
}

impl Checked {
    /// Keeps the code on disk, if it is not from there.
    pub(super) fn keep(&self, sha256: &[u8; 32]) {
        if self.is_new {
            code_cache::store(self.component.engine(), sha256, &self.component);
        }
    }
}

/// What a component is refused with whose names are right, but not its types.
pub(super) fn wrong_types(place: &str, error: &wasmtime::Error) -> PolicyError {
    PolicyError::WrongWorld {
        place: place.into(),
        problem: format!("its imports or exports are of other types than those of this version ({error:#})"),
    }
}

/// Compiles a component, or finds it compiled, and checks that it exports the interfaces of its role and imports nothing
/// that is not given.
pub(super) fn check(place: &str, bytes: &[u8], sha256: &[u8; 32], interfaces: &[&str]) -> Result<Checked, PolicyError> {
    check_form(place, bytes)?;
    let engine = engine().map_err(|message| PolicyError::Engine { message })?;
    let invalid = |error: wasmtime::Error| PolicyError::Invalid { place: place.into(), message: format!("{error:#}") };
    let cached = code_cache::load(engine, sha256);
    let is_new = cached.is_none();
    let component = cached.map_or_else(|| Component::from_binary(engine, bytes).map_err(invalid), Ok)?;

    let imports: Vec<_> = component.component_type().imports(engine).map(|(name, _)| name.to_string()).collect();
    check_world(place, &component, interfaces)?;
    let mut linker = Linker::new(engine);
    let unknown = wasi::link(&mut linker, &component).map_err(invalid)?;
    if !unknown.is_empty() {
        return Err(PolicyError::Import { place: place.into(), imports: unknown });
    }
    // The names are right; what can still be wrong are types.
    let pre = linker.instantiate_pre(&component).map_err(|error| wrong_types(place, &error))?;
    let declared = component.resources_required().map_or(0, |resources| {
        let pages = resources.max_initial_memory_size.unwrap_or(0).saturating_mul(u64::from(resources.num_memories));
        usize::try_from(pages.saturating_mul(64 << 10)).unwrap_or(usize::MAX).min(DECLARED)
    });
    Ok(Checked { component, pre, declared, imports, is_new })
}

fn compile_new(place: &str, bytes: &[u8], sha256: &[u8; 32], bounds: Bounds) -> Result<Compiled, PolicyError> {
    let checked = check(place, bytes, sha256, &INTERFACES)?;
    let pre = EvictionModulePre::new(checked.pre.clone()).map_err(|error| wrong_types(place, &error))?;
    let mut compiled = Compiled {
        pre,
        declared: checked.declared,
        description: Description::default(),
        imports: checked.imports.clone(),
    };
    let card = Running::start(&compiled, bounds, None)
        .and_then(|mut running| running.describe())
        .map_err(|fault| PolicyError::Stopped { policy: place.into(), fault })?;
    compiled.description = description(card);
    plays(place, &compiled.description, Role::Eviction)?;
    // Only now, so that what is no policy takes no room there.
    checked.keep(sha256);
    Ok(compiled)
}

/// Whether a card names the role.
pub(super) fn plays(place: &str, card: &Description, role: Role) -> Result<(), PolicyError> {
    if card.roles.contains(&role) {
        return Ok(());
    }
    let name = match role {
        Role::Eviction => "eviction",
        Role::Patterns => "patterns",
    };
    Err(PolicyError::WrongWorld { place: place.into(), problem: format!("its card does not name the role `{name}`") })
}

pub(super) fn description(card: about::Description) -> Description {
    let value = |value| match value {
        about::Value::Flag(yes) => Value::Flag(yes),
        about::Value::Integer(n) => Value::Integer(n),
        about::Value::Number(x) => Value::Number(x),
        about::Value::Text(text) => Value::Text(text),
    };
    Description {
        name: card.name,
        version: card.version,
        summary: card.summary,
        roles: card
            .roles
            .into_iter()
            .map(|role| match role {
                about::Role::Eviction => Role::Eviction,
                about::Role::Patterns => Role::Patterns,
            })
            .collect(),
        parameters: card
            .parameters
            .into_iter()
            .map(|spec| ParameterSpec {
                name: spec.name,
                doc: spec.doc,
                default: value(spec.default),
                minimum: spec.minimum,
                maximum: spec.maximum,
            })
            .collect(),
    }
}

/// Tells what a file is that cannot be a component, before a compiler says it in its own words.
fn check_form(place: &str, bytes: &[u8]) -> Result<(), PolicyError> {
    let not_a_component = |what: &str| Err(PolicyError::NotAComponent { place: place.into(), what: what.into() });
    let cut = |at: usize| Err(PolicyError::Truncated { place: place.into(), length: bytes.len(), at });
    const MAGIC: &[u8] = b"\0asm";
    const BUILD: &str = "give the component that `cargo build --release --target wasm32-wasip2` makes";
    let (Some(magic), version) = (bytes.first_chunk::<4>(), bytes.get(4..8)) else {
        return match bytes {
            [] => not_a_component(&format!("it is empty; {BUILD}")),
            _ if MAGIC.starts_with(bytes) => cut(bytes.len()),
            _ => not_a_component(&format!("it is not WebAssembly; {BUILD}")),
        };
    };
    if magic != MAGIC {
        let text = std::str::from_utf8(&bytes[..bytes.len().min(4096)])
            .map_or_else(|error| error.error_len().is_none(), |_| true);
        return not_a_component(&match text {
            true if bytes.trim_ascii_start().starts_with(b"(") => {
                "it is WebAssembly as text; turn it into a binary with `wasm-tools parse FILE -o FILE.wasm`".into()
            }
            true => format!("it is text, not WebAssembly; {BUILD}"),
            false => format!("it is not WebAssembly; {BUILD}"),
        });
    }
    match version {
        None => return cut(bytes.len()),
        Some([0x0d, 0, 1, 0]) => {}
        Some([1, 0, 0, 0]) => {
            return not_a_component(
                "it is a core module, not a component; in Rust, build it with `--target wasm32-wasip2`, or turn it into \
                 a component with `wasm-tools component new`",
            );
        }
        Some(other) => {
            let what = format!("it is WebAssembly of version {other:02x?}, which this host does not know; {BUILD}");
            return not_a_component(&what);
        }
    }
    // Sections: an id, a length, content.
    let mut at = 8;
    while at < bytes.len() {
        let Some((length, content)) = length_at(bytes, at + 1) else { return cut(at) };
        match content.checked_add(length) {
            Some(next) if next <= bytes.len() => at = next,
            _ => return cut(at),
        }
    }
    Ok(())
}

/// The LEB128 number at `at`, and what comes after it.
fn length_at(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut length = 0;
    for i in 0..5 {
        let byte = *bytes.get(at + i)?;
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((length, at + i + 1));
        }
    }
    // Not a length at all: let the compiler say so.
    Some((0, at + 5))
}

/// Whether the component exports what a policy must.
fn check_world(place: &str, component: &Component, interfaces: &[&str]) -> Result<(), PolicyError> {
    let engine = component.engine();
    let missing = interfaces.iter().find(|interface| component.get_export_index(None, interface).is_none());
    let Some(missing) = missing else { return Ok(()) };
    let exports: Vec<_> = component
        .component_type()
        .exports(engine)
        .filter(|(_, export)| {
            matches!(export.ty, ComponentItem::ComponentInstance(_) | ComponentItem::ComponentFunc(_))
        })
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    // The module of another role is whole, and only in the wrong place.
    let others = [(INTERFACES, Role::Eviction), (steps::INTERFACES, Role::Patterns)];
    let plays = |other: &[&str]| other.iter().all(|interface| component.get_export_index(None, interface).is_some());
    if let Some((_, role)) = others.into_iter().find(|(other, _)| plays(other)) {
        return Err(PolicyError::OtherRole { place: place.into(), role });
    }
    let (name, version) = missing.split_once('@').unwrap_or((missing, ""));
    let other = exports.iter().find(|export| export.starts_with(&format!("`{name}@")));
    let problem = match other {
        Some(other) => format!("it exports {other}, and this host speaks version {version}"),
        None if exports.is_empty() => format!("it does not export `{missing}`; it exports no interface"),
        None => format!("it does not export `{missing}`; it exports {}", exports.join(", ")),
    };
    Err(PolicyError::WrongWorld { place: place.into(), problem })
}
