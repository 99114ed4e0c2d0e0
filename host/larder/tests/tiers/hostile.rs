//! Modules of the role `patterns` that mean harm or are badly broken. As in `hostile/mod.rs`: core modules in text, made into
//! components at test time.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Never returns.
pub(crate) const LOOP: &str = "(loop $forever (br $forever)) unreachable";
/// Traps.
pub(crate) const TRAP: &str = "unreachable";
/// Overflows the stack.
pub(crate) const RECURSE: &str = "(drop (call $recurse (i64.const 0))) unreachable";
/// Takes all memory that it is given, uses it, and traps.
pub(crate) const HOARD: &str =
    "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable";

/// A module, of which each step runs the same lines.
#[derive(Clone)]
pub(crate) struct Guest {
    /// `(result i32)`: where the result of `open` is.
    pub(crate) open: &'static str,
    /// `(result i32)`: where the answer is; `$cookie` is what the last one said. It lies at 2048, all zero but for what is written there: the cookie in the
    /// first 8 bytes, then the action's number, and what it carries from 2064 on.
    pub(crate) step: String,
}

impl Guest {
    /// One whose steps run these lines.
    pub(crate) fn stepping(lines: &str) -> Self {
        Guest {
            open: "(i32.store8 (i32.const 1100) (i32.const 0))
                   (i32.store (i32.const 1104) (call $new (i32.const 0)))
                   (i32.const 1100)",
            step: lines.into(),
        }
    }

    /// One that always answers with this action; `more` writes what it carries.
    pub(crate) fn answering(action: u8, more: &str) -> Self {
        Guest::stepping(&format!("(i32.store8 (i32.const 2056) (i32.const {action})) {more} (i32.const 2048)"))
    }

    /// The component.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut module = wat::parse_str(self.text()).unwrap_or_else(|error| panic!("{error}\n{}", self.text()));
        let mut resolve = Resolve::default();
        let mut wit = String::from("package larder:policy@0.1.0;\n");
        for file in ["types", "about", "eviction", "patterns", "world"] {
            let path = format!("{}/../../wit/{file}.wit", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            wit += &text.replace("package larder:policy@0.1.0;", "");
        }
        let package = resolve.push_str("policy.wit", &wit).expect("the WIT is well-formed");
        let world = resolve.select_world(&[package], Some("patterns-module")).expect("the world exists");
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("metadata is added");
        let mut encoder =
            ComponentEncoder::default().validate(true).module(&module).expect("the module fits the world");
        encoder.encode().expect("a component is made")
    }

    fn text(&self) -> String {
        let Guest { open, step } = self;
        let about = "larder:policy/about@0.1.0";
        let patterns = "larder:policy/patterns@0.1.0";
        format!(
            r#"(module
  (import "[export]{patterns}" "[resource-new]rules" (func $new (param i32) (result i32)))
  (memory (export "memory") 2)
  (global $top (mut i32) (i32.const 65536))
  (global $cookie (mut i64) (i64.const 0))
  ;; The card: name, version, summary, the role `patterns`, no parameters.
  (data (i32.const 512) "hostile" "0.1.0" "Means harm")
  (data (i32.const 640) "\01")
  (data (i32.const 1024) "\00\02\00\00\07\00\00\00" "\07\02\00\00\05\00\00\00" "\0c\02\00\00\0a\00\00\00"
                         "\80\02\00\00\01\00\00\00" "\00\00\00\00\00\00\00\00")
  (func $recurse (param i64) (result i64)
    (i64.add (call $recurse (i64.add (local.get 0) (i64.const 1))) (local.get 0)))
  (func $answer (result i32) {step})
  (func (export "{about}#describe") (result i32) (i32.const 1024))
  (func (export "{patterns}#[static]rules.open") (param i32 i32) (result i32) {open})
  (func (export "{patterns}#[method]rules.step") (param i32) (result i32)
    (global.set $cookie (i64.load offset=32 (local.get 0)))
    (call $answer))
  (func (export "{patterns}#[method]rules.step-many") (param i32 i32 i32) (result i32)
    (drop (call $answer)) (i64.store (i32.const 1120) (i64.const 0)) (i32.const 1120))
  (func (export "{patterns}#[dtor]rules") (param i32))
  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (if (i32.gt_u (i32.add (local.get $at) (local.get $size)) (i32.const 131072)) (then (local.set $at (i32.const 65536))))
    (global.set $top (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
)"#
        )
    }
}
