//! An empty WASI 0.2, for modules by somebody else.
//!
//! A module needs no imports. But what a language's own runtime library wants cannot always be left out (Rust's prints
//! panics, JavaScript's and Python's bring a world along), and so a module may import any interface of WASI 0.2 and finds
//! nothing behind it: no files, no network, no arguments, no environment. What it prints goes into the message of its
//! trap. And because the same module must decide alike everywhere, **time is the batch's**, and **randomness comes from
//! the policy's seed**.
//!
//! The functions are made to fit what the module imports, by name, and not from WASI's own files: so one table serves each
//! 0.2.x, and what it does not list is there too, and traps with its own name if it is ever called. The
//! implementation that everybody uses, wasmtime-wasi, is not used: it brings tokio along and blocks on it, which panics
//! within an async task, and its clocks and randomness would have to be taken out again.

use wasmtime::{
    AsContextMut, StoreContextMut,
    component::{Component, Linker, Resource, ResourceType, Val, types::ComponentItem},
};

use super::limits::State;

/// How much of what a guest prints is kept: the latest.
const PRINTED: usize = 4 << 10;
/// How much a guest may print at once; streams say so.
const WRITE: u64 = 4 << 10;
/// How many random bytes a guest may ask for at once.
const RANDOM: u64 = 64 << 10;

/// What of the world outside there is.
pub(super) struct Wasi {
    /// The time of the current batch in milliseconds.
    pub(super) now: u64,
    random: u64,
    printed: Vec<u8>,
}

/// Any of WASI's resources: they hold nothing.
enum Handle {}

impl Wasi {
    pub(super) fn new(seed: u64) -> Self {
        Wasi { now: 0, random: seed, printed: Vec::new() }
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn print(&mut self, bytes: impl ExactSizeIterator<Item = u8>) {
        let surplus = (self.printed.len() + bytes.len()).saturating_sub(PRINTED);
        self.printed.drain(..surplus.min(self.printed.len()));
        let skip = bytes.len().saturating_sub(PRINTED);
        self.printed.extend(bytes.skip(skip));
    }

    /// What the guest printed since this was asked last.
    pub(super) fn take_printed(&mut self) -> Option<String> {
        if self.printed.is_empty() {
            return None;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.printed)).trim().to_string();
        (!text.is_empty()).then_some(text)
    }
}

/// Gives a component what it imports. Returns the imports that are not WASI 0.2, which no host gives.
pub(super) fn link(linker: &mut Linker<State>, component: &Component) -> wasmtime::Result<Vec<String>> {
    let engine = component.engine();
    let mut unknown = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = import.ty else {
            unknown.push(name.to_string());
            continue;
        };
        let interface = interface(name);
        let mut linked = linker.instance(name)?;
        for (item_name, item) in instance.exports(engine) {
            match (&item.ty, interface) {
                // Types that another interface owns need nothing from a host.
                (ComponentItem::Type(_), _) => {}
                (ComponentItem::Resource(_), Some(_)) => {
                    linked.resource(item_name, ResourceType::host::<Handle>(), |_, _| Ok(()))?;
                }
                (ComponentItem::ComponentFunc(_), Some(interface)) => {
                    let function = find(interface, item_name);
                    let full_name = format!("{name}#{item_name}");
                    linked.func_new(item_name, move |mut store, _, arguments, results| {
                        match (function, results) {
                            (Some(Function::Gives(function)), [result]) => {
                                *result = function(store.as_context_mut(), arguments)?;
                            }
                            (Some(Function::Nothing), []) => {}
                            (Some(Function::Stops), _) => wasmtime::bail!("it called `{full_name}`"),
                            _ => wasmtime::bail!("it called `{full_name}`, which this host does not give"),
                        }
                        arguments.iter().try_for_each(|argument| give_back(&mut store, argument))
                    })?;
                }
                _ => {
                    unknown.push(name.to_string());
                    break;
                }
            }
        }
    }
    Ok(unknown)
}

/// The interface's name without its package and version, if it is one of WASI 0.2: `cli/stdout` of
/// `wasi:cli/stdout@0.2.6`.
fn interface(import: &str) -> Option<&str> {
    let (name, version) = import.strip_prefix("wasi:")?.split_once('@')?;
    version.starts_with("0.2.").then_some(name)
}

/// What a function of WASI does here.
#[derive(Clone, Copy)]
enum Function {
    /// Gives a value.
    Gives(fn(StoreContextMut<'_, State>, &[Val]) -> wasmtime::Result<Val>),
    /// Does nothing, and has no result.
    Nothing,
    /// Ends the instance.
    Stops,
}

fn find(interface: &str, function: &str) -> Option<Function> {
    use Function::{Gives, Nothing, Stops};
    Some(match (interface, function) {
        ("cli/environment", "get-environment" | "get-arguments") => Gives(|_, _| Ok(Val::List(Vec::new()))),
        ("cli/environment", "initial-cwd") => Gives(|_, _| Ok(Val::Option(None))),
        ("cli/exit", _) => Stops,
        ("cli/stdin" | "cli/stdout" | "cli/stderr", _) => Gives(|store, _| handle(store)),
        ("cli/terminal-stdin" | "cli/terminal-stdout" | "cli/terminal-stderr", _) => {
            Gives(|_, _| Ok(Val::Option(None)))
        }

        ("io/error", "[method]error.to-debug-string") => Gives(|_, _| Ok(Val::String(String::new()))),
        // Whatever a guest would wait for has happened.
        ("io/poll", "[method]pollable.ready") => Gives(|_, _| Ok(Val::Bool(true))),
        ("io/poll", "[method]pollable.block") => Nothing,
        ("io/poll", "poll") => Gives(|_, arguments| {
            let many = if let [Val::List(list)] = arguments { list.len() } else { 0 };
            Ok(Val::List((0..many as u32).map(Val::U32).collect()))
        }),
        ("io/streams", "[method]output-stream.check-write") => Gives(|_, _| Ok(ok(Some(Val::U64(WRITE))))),
        ("io/streams", "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush") => {
            Gives(|mut store, arguments| {
                if let [_, Val::List(bytes)] = arguments {
                    let bytes = bytes.iter().map(|byte| if let Val::U8(byte) = byte { *byte } else { b'?' });
                    store.data_mut().wasi.print(bytes);
                }
                Ok(ok(None))
            })
        }
        (
            "io/streams",
            "[method]output-stream.flush"
            | "[method]output-stream.blocking-flush"
            | "[method]output-stream.write-zeroes"
            | "[method]output-stream.blocking-write-zeroes-and-flush",
        ) => Gives(|_, _| Ok(ok(None))),
        ("io/streams", "[method]input-stream.subscribe" | "[method]output-stream.subscribe") => {
            Gives(|store, _| handle(store))
        }
        // Standard input, and all else that reads: it has ended.
        ("io/streams", _) => Gives(|_, _| Ok(Val::Result(Err(Some(Box::new(Val::Variant("closed".into(), None))))))),

        ("clocks/monotonic-clock", "now") => {
            Gives(|store, _| Ok(Val::U64(store.data().wasi.now.saturating_mul(1_000_000))))
        }
        ("clocks/monotonic-clock", "resolution") => Gives(|_, _| Ok(Val::U64(1_000_000))),
        ("clocks/monotonic-clock", _) => Gives(|store, _| handle(store)),
        ("clocks/wall-clock", "now") => Gives(|store, _| {
            let now = store.data().wasi.now;
            Ok(datetime(now / 1000, (now % 1000) as u32 * 1_000_000))
        }),
        ("clocks/wall-clock", "resolution") => Gives(|_, _| Ok(datetime(0, 1_000_000))),

        ("random/random" | "random/insecure", "get-random-u64" | "get-insecure-random-u64") => {
            Gives(|mut store, _| Ok(Val::U64(store.data_mut().wasi.random())))
        }
        ("random/random" | "random/insecure", _) => Gives(|mut store, arguments| match arguments {
            [Val::U64(many)] if *many <= RANDOM => {
                let wasi = &mut store.data_mut().wasi;
                Ok(Val::List((0..*many).map(|_| Val::U8(wasi.random() as u8)).collect()))
            }
            _ => wasmtime::bail!("it asked for more than {RANDOM} random bytes at once"),
        }),
        ("random/insecure-seed", _) => Gives(|mut store, _| {
            let wasi = &mut store.data_mut().wasi;
            Ok(Val::Tuple(vec![Val::U64(wasi.random()), Val::U64(wasi.random())]))
        }),

        ("filesystem/preopens", "get-directories") => Gives(|_, _| Ok(Val::List(Vec::new()))),
        ("filesystem/types", "filesystem-error-code") => Gives(|_, _| Ok(Val::Option(None))),
        _ => return None,
    })
}

/// Ends the loan of each handle in an argument, as the component model demands before a function returns.
fn give_back(store: &mut StoreContextMut<'_, State>, argument: &Val) -> wasmtime::Result<()> {
    match argument {
        Val::Resource(handle) => handle.resource_drop(store.as_context_mut()),
        Val::List(list) => list.iter().try_for_each(|each| give_back(store, each)),
        _ => Ok(()),
    }
}

/// A handle to nothing. How many a guest may have is limited by its store.
fn handle(store: StoreContextMut<'_, State>) -> wasmtime::Result<Val> {
    Ok(Val::Resource(Resource::<Handle>::new_own(0).try_into_resource_any(store)?))
}

fn ok(value: Option<Val>) -> Val {
    Val::Result(Ok(value.map(Box::new)))
}

fn datetime(seconds: u64, nanoseconds: u32) -> Val {
    Val::Record(vec![("seconds".into(), Val::U64(seconds)), ("nanoseconds".into(), Val::U32(nanoseconds))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wasi_0_2_is_given() {
        assert_eq!(interface("wasi:cli/stdout@0.2.0"), Some("cli/stdout"));
        assert_eq!(interface("wasi:cli/stdout@0.2.11"), Some("cli/stdout"));
        for other in ["wasi:cli/stdout@0.3.0", "wasi:cli/stdout", "wasix:cli/stdout@0.2.0", "env"] {
            assert_eq!(interface(other), None);
        }
    }

    #[test]
    fn the_latest_of_what_was_printed_is_kept() {
        let mut wasi = Wasi::new(0);
        wasi.print(vec![b'a'; PRINTED].into_iter());
        wasi.print(b"end".iter().copied());
        assert!(wasi.take_printed().is_some_and(|text| text.len() == PRINTED && text.ends_with("aend")));
        assert_eq!(wasi.take_printed(), None);
        wasi.print(vec![b'b'; 3 * PRINTED].into_iter());
        assert!(wasi.take_printed().is_some_and(|text| text.len() == PRINTED));
    }
}
