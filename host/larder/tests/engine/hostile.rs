//! Modules that mean harm, or are badly broken: the corpus of the containment tests.
//!
//! Each is a core module in text, a well-behaved policy but for the one function that it replaces, made into a component at
//! test time by `wit-component`. So a case is its few hostile lines, and there is nothing built to trust or to keep up to
//! date. The well-behaved one hears everything, says nothing, and never names a victim: which is itself a case.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Never returns.
pub(crate) const LOOP: &str = "(loop $forever (br $forever)) unreachable";
/// Traps.
pub(crate) const TRAP: &str = "unreachable";
/// Overflows the stack.
pub(crate) const RECURSE: &str = "(drop (call $recurse (i64.const 0))) unreachable";
/// Takes all memory that it is given, uses it, and traps.
pub(crate) const HOARD: &str = "(call $hoard) unreachable";

/// A policy, function by function, each as the body of a core function in text.
#[derive(Clone)]
pub(crate) struct Guest {
    /// Runs when the module is instantiated.
    pub(crate) start: &'static str,
    /// The memory's size in pages.
    pub(crate) memory: &'static str,
    /// `(result i32)`: where the card is.
    pub(crate) describe: &'static str,
    /// `(result i32)`: where the result is.
    pub(crate) open: &'static str,
    /// `(param $batch i32) (result i32)`: where the list of victims is.
    pub(crate) advance: &'static str,
    /// Frees an answer: `(param i32)`.
    pub(crate) free: &'static str,
    /// `(result i32)`: where the ranking is.
    pub(crate) residents: &'static str,
    /// `(param $adopted i32) (result i32)`: where the list of victims is.
    pub(crate) adopt: &'static str,
    /// `(result i32)`: where the list of bytes is.
    pub(crate) learned: &'static str,
    /// `(param $at i32) (param $length i32) (result i32)`: whether it could use it.
    pub(crate) recall: &'static str,
    /// The destructor of a policy: `(param i32)`.
    pub(crate) drop: &'static str,
    /// `(param $size i32) (result i32)`: where there is room for so many bytes.
    pub(crate) realloc: &'static str,
    /// More imports in text, and what they are called in WIT.
    pub(crate) imports: (&'static str, &'static str),
    /// More WIT beside the package.
    pub(crate) packages: &'static str,
    /// The version of the package that it is written against.
    pub(crate) version: &'static str,
    /// The card's list of roles: `role` of the contract.
    pub(crate) roles: usize,
}

impl Default for Guest {
    fn default() -> Self {
        Guest {
            start: "",
            memory: "2",
            describe: "(i32.const 1024)",
            open: "(i32.store8 (i32.const 1100) (i32.const 0))
                   (i32.store (i32.const 1104) (call $new (i32.const 0)))
                   (i32.const 1100)",
            advance: "(call $victims (i32.const 0) (i32.const 0))",
            free: "",
            residents: "(i64.store (i32.const 1120) (i64.const 0))
                        (i64.store (i32.const 1128) (i64.const 0))
                        (i32.store (i32.const 1136) (i32.const 0))
                        (i32.const 1120)",
            adopt: "(call $victims (i32.const 0) (i32.const 0))",
            learned: "(call $victims (i32.const 4096) (i32.const 16))",
            recall: "(i32.const 1)",
            drop: "",
            realloc: "(call $bump (local.get $size))",
            imports: ("", ""),
            packages: "",
            version: "0.1.0",
            roles: 1,
        }
    }
}

impl Guest {
    /// Whether it loops for ever somewhere.
    pub(crate) fn loops(&self) -> bool {
        let Guest { start, describe, open, advance, free, residents, adopt, learned, recall, drop, realloc, .. } = self;
        [start, describe, open, advance, free, residents, adopt, learned, recall, drop, realloc]
            .iter()
            .any(|body| body.contains(LOOP))
    }

    /// The component.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut module = wat::parse_str(self.text()).unwrap_or_else(|error| panic!("{error}\n{}", self.text()));
        let mut resolve = Resolve::default();
        let package = resolve.push_str("policy.wit", &self.wit()).expect("the WIT is well-formed");
        let world = resolve.select_world(&[package], Some("eviction-module")).expect("the world exists");
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("metadata is added");
        let mut encoder =
            ComponentEncoder::default().validate(true).module(&module).expect("the module fits the world");
        encoder.encode().expect("a component is made")
    }

    /// The package in `wit/`, at this guest's version and with its imports.
    fn wit(&self) -> String {
        let mut wit = String::from("package larder:policy@0.1.0;\n");
        for file in ["types", "about", "eviction", "patterns", "world"] {
            let path = format!("{}/../../wit/{file}.wit", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            wit += &text.replace("package larder:policy@0.1.0;", "");
        }
        let imported = format!("world eviction-module {{ {}", self.imports.1);
        wit.replace("world eviction-module {", &imported).replace("0.1.0", self.version) + self.packages
    }

    fn text(&self) -> String {
        let Guest {
            start,
            memory,
            describe,
            open,
            advance,
            free,
            residents,
            adopt,
            learned,
            recall,
            drop,
            realloc,
            imports,
            roles,
            ..
        } = self;
        let about = format!("larder:policy/about@{}", self.version);
        let eviction = format!("larder:policy/eviction@{}", self.version);
        format!(
            r#"(module
  (import "[export]{eviction}" "[resource-new]policy" (func $new (param i32) (result i32)))
  {imports}
  (memory (export "memory") {memory})
  (table $table 1 funcref)
  (global $top (mut i32) (i32.const 65536))

  ;; The card: name, version, summary, roles, no parameters.
  (data (i32.const 512) "hostile" "0.1.0" "Means harm")
  (data (i32.const 1024) "\00\02\00\00\07\00\00\00" "\07\02\00\00\05\00\00\00" "\0c\02\00\00\0a\00\00\00"
                         "\80\02\00\00\0{roles}\00\00\00" "\00\00\00\00\00\00\00\00")

  ;; Room in the second page, again and again the same: nothing is kept between calls.
  (func $bump (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
    (if (i32.gt_u (i32.add (local.get $at) (local.get $size)) (i32.const 131072)) (then (local.set $at (i32.const 65536))))
    (global.set $top (i32.add (local.get $at) (local.get $size)))
    (local.get $at))
  (func $victims (param $at i32) (param $length i32) (result i32)
    (i32.store (i32.const 1112) (local.get $at))
    (i32.store (i32.const 1116) (local.get $length))
    (i32.const 1112))
  (func $recurse (param i64) (result i64)
    (i64.add (call $recurse (i64.add (local.get 0) (i64.const 1))) (local.get 0)))
  ;; Grows as long as it may, and writes to each page.
  (func $hoard (local $old i32)
    (loop $more
      (local.set $old (memory.grow (i32.const 1)))
      (if (i32.ne (local.get $old) (i32.const -1)) (then
        (i32.store (i32.shl (local.get $old) (i32.const 16)) (i32.const 1))
        (br $more)))))

  (func $start {start})
  (start $start)
  (func (export "{about}#describe") (result i32) {describe})
  (func (export "{eviction}#[static]policy.open") (param i64 i32 i32 i64 i32 i32) (result i32) {open})
  (func (export "{eviction}#[method]policy.advance") (param $batch i32) (result i32) {advance})
  (func (export "cabi_post_{eviction}#[method]policy.advance") (param i32) {free})
  (func (export "{eviction}#[method]policy.residents") (param i32) (result i32) {residents})
  (func (export "{eviction}#[method]policy.adopt") (param $adopted i32) (result i32) {adopt})
  (func (export "{eviction}#[method]policy.learned") (param i32) (result i32) {learned})
  (func (export "{eviction}#[method]policy.recall") (param i32) (param $at i32) (param $length i32) (result i32) {recall})
  (func (export "{eviction}#[dtor]policy") (param i32) {drop})
  (func (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32) {realloc})
)"#,
            imports = imports.0,
        )
    }
}
