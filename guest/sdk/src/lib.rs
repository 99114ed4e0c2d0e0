//! Write a caching policy in tens of lines, test it natively, build it as a component, load the file.
//!
//! A policy decides who stays in a cache. It never sees a key or a value: the host names each resident by a small
//! integer, its [`Slot`], and tells what happened. Implement [`Eviction`], call [`export!`], and build with
//! `cargo build --release --target wasm32-wasip2`.
//!
//! ```
//! use larder_guest::{About, Arrival, Eviction, Limits, Parameters, Refusal, Slot, Victims, kit::{Lists, Weights}};
//!
//! /// Evicts in order of arrival.
//! pub struct Fifo {
//!     weights: Weights,
//!     queue: Lists<1>,
//! }
//!
//! impl Eviction for Fifo {
//!     const ABOUT: About = About::new("my-fifo", "0.1.0", "Evicts in order of arrival");
//!
//!     fn open(limits: &Limits, _: &Parameters) -> Result<Self, Refusal> {
//!         Ok(Fifo { weights: Weights::new(limits), queue: Lists::new(limits) })
//!     }
//!     fn touch(&mut self, _slot: Slot, _times: u32) {}
//!     fn arrive(&mut self, arrival: &Arrival, victims: &mut Victims) {
//!         while !self.weights.fits(arrival.weight) {
//!             let Some(oldest) = self.queue.pop_front(0) else { break };
//!             self.weights.remove(oldest);
//!             victims.push(oldest);
//!         }
//!         self.weights.add(arrival.slot, arrival.weight);
//!         self.queue.push_back(0, arrival.slot);
//!     }
//!     fn depart(&mut self, slot: Slot) {
//!         self.queue.remove(slot);
//!         self.weights.remove(slot);
//!     }
//!     fn residents(&self, each: &mut dyn FnMut(Slot, u32)) {
//!         self.queue.iter(0).for_each(|slot| each(slot, 0));
//!     }
//! }
//! larder_guest::export!(Fifo);
//! # fn main() {}
//! ```
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

#[cfg(target_family = "wasm")]
mod allocator;
mod eviction;
mod glue;
pub mod kit;
mod parameters;
pub mod patterns;
#[cfg(not(target_family = "wasm"))]
pub mod testkit;

pub use eviction::{Arrival, Batch, Change, Entries, Eviction, Limits, NEVER, Slot, Victims};
pub use glue::Shard;
pub use parameters::{About, ParameterSpec, Parameters, Refusal, Value};

/// What wit-bindgen makes of `larder:policy`; for [`export!`].
#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "wit",
        world: "every-role",
        pub_export_macro: true,
        default_bindings_module: "larder_guest::bindings",
        export_macro_name: "export_every_role",
        additional_derives: [PartialEq],
    });
}

/// The section by which `wasm32-wasip2` knows what component to make: the encoded world of a role, for [`export!`]. The
/// build script makes them: wit-bindgen has one for each set of bindings, and two sets in a crate collide.
#[doc(hidden)]
pub mod worlds {
    include!(concat!(env!("OUT_DIR"), "/worlds.rs"));
}

#[doc(hidden)]
pub use glue::{Component, describe};

#[doc(hidden)]
#[cfg(target_family = "wasm")]
pub use allocator::{Allocator, reallocate};

/// Makes a component of a type that implements [`Eviction`] or, with the word `patterns` before it,
/// [`Patterns`](patterns::Patterns).
///
/// `export!(Policy)` is all that a module needs. `export!(Policy, standalone)`, in a crate that is `#![no_std]`, also
/// supplies the allocator and the panic handler, and so the component imports nothing at all: not even the WASI that
/// the standard library wants for printing a panic.
#[macro_export]
macro_rules! export {
    (patterns $patterns:ty) => {
        const _: () = {
            const fn patterns<P: $crate::patterns::Patterns>() {}
            patterns::<$patterns>();
        };

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Module;
            impl $crate::bindings::exports::larder::policy::about::Guest for Module {
                fn describe() -> $crate::bindings::exports::larder::policy::about::Description {
                    $crate::patterns::describe::<$patterns>()
                }
            }
            impl $crate::bindings::exports::larder::policy::patterns::Guest for Module {
                type Rules = $crate::patterns::Component<$patterns>;
            }
            $crate::export_role!(Module, patterns, PATTERNS_MODULE);
        };
    };
    (patterns $patterns:ty, standalone) => {
        $crate::export!(patterns $patterns);
        $crate::standalone!();
    };
    ($policy:ty) => {
        // Natively nothing is exported, but a type that is no policy is an error all the same.
        const _: () = {
            const fn policy<P: $crate::Eviction>() {}
            policy::<$policy>();
        };

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Module;
            impl $crate::bindings::exports::larder::policy::about::Guest for Module {
                fn describe() -> $crate::bindings::exports::larder::policy::about::Description {
                    $crate::describe::<$policy>()
                }
            }
            impl $crate::bindings::exports::larder::policy::eviction::Guest for Module {
                type Policy = $crate::Component<$policy>;
            }
            $crate::export_role!(Module, eviction, EVICTION_MODULE);
        };
    };
    ($policy:ty, standalone) => {
        $crate::export!($policy);
        $crate::standalone!();
    };
}

/// Exports `about` and a role; for [`export!`].
#[doc(hidden)]
#[macro_export]
macro_rules! export_role {
    (@ $module:ident, eviction) => {
        exports::eviction::__export_larder_policy_eviction_0_1_0_cabi!($module with_types_in exports::eviction);
    };
    (@ $module:ident, patterns) => {
        exports::patterns::__export_larder_policy_patterns_0_1_0_cabi!($module with_types_in exports::patterns);
    };
    ($module:ident, $role:ident, $world:ident) => {
        use $crate::bindings::exports::larder::policy as exports;
        exports::about::__export_larder_policy_about_0_1_0_cabi!($module with_types_in exports::about);
        $crate::export_role!(@ $module, $role);
        #[unsafe(link_section = "component-type:larder")]
        static WORLD: [u8; $crate::worlds::$world.len()] = *$crate::worlds::$world;
    };
}

/// What the standard library would bring along; for [`export!`].
#[doc(hidden)]
#[macro_export]
macro_rules! standalone {
    () => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            // For `memcmp` and its like, where no LTO has done away with them.
            #[link(name = "c")]
            unsafe extern "C" {}

            #[global_allocator]
            static ALLOCATOR: $crate::Allocator = $crate::Allocator;

            // With the standard library, wasi-libc has this one.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn cabi_realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
                // SAFETY: the canonical ABI calls this with what an earlier call returned, or with no old block.
                unsafe { $crate::reallocate(old, old_size, align, size) }
            }

            // A trap: the host reports it, and there is nobody to print to.
            #[panic_handler]
            fn panic(_: &::core::panic::PanicInfo<'_>) -> ! {
                ::core::arch::wasm32::unreachable()
            }
        };
    };
}
