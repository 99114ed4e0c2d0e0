//! What the `larder` command is made of.
//!
//! [`args`] says what a user can write; `main` calls one function for each command. The parts that stand alone are
//! public, so that tests and fuzzers reach them: [`trace`] above all.

pub mod args;
pub mod capacity;
pub mod demo;
pub mod modules;
pub mod operate;
pub mod opt;
pub mod output;
pub mod plot;
pub mod replay;
pub mod scaffold;
pub mod synthetic;
pub mod trace;

/// As `eprintln!`; where nobody reads the messages any more, it goes on without them.
#[macro_export]
macro_rules! say {
    ($($what:tt)*) => {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($what)*))))
    };
}
