//! What the fuzz targets of this package do with bytes, one module each; `README.md` says how to run them.
//!
//! The code under test comes from the files of `host/larder` and `host/cli` themselves, with stand-ins for the few types that
//! they take from elsewhere: so neither the engine nor the command needs to be built, and what is private stays so.
#![allow(dead_code, unreachable_pub, rustdoc::broken_intra_doc_links)]

pub mod envelope;
pub mod freshness;
pub mod journal;
pub mod statements;
pub mod traces;

mod redb_files;

/// Modules of `host/larder/src/tiered.rs`, and stand-ins for what they take from the others.
#[path = "../../../host/larder/src/tiered"]
mod tiered {
    use std::fmt;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;

    use arbitrary::Arbitrary;
    use bytes::Bytes;

    pub mod envelope;
    mod files;
    pub mod journal;
    mod panics;

    /// What responses say of freshness, without the source that asks.
    pub mod http {
        mod freshness;

        use std::time::{Duration, SystemTime};

        use reqwest::header::HeaderMap;

        /// Fresh, stale and rescue.
        pub fn freshness(headers: &HeaderMap, now: SystemTime, shared: bool) -> [Option<Duration>; 3] {
            let freshness::Freshness { fresh, stale, rescue } = freshness::Freshness::of(headers, now, shared);
            [fresh, stale, rescue]
        }

        pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
            freshness::retry_after(headers, now)
        }
    }

    /// Queries, without the databases.
    pub mod sql {
        mod statement;

        pub use statement::Dialect;
        use statement::{Purpose, Statement};

        /// As `tiered/sql.rs` has them.
        #[derive(Debug)]
        pub enum SqlBuildError {
            Parameter { query: &'static str, name: String, known: String },
            NoParameter { query: &'static str, needed: String },
        }

        /// Reads a query of a kind, and writes it for two keys.
        pub fn parse(kind: u8, sql: &str, dialect: Dialect) -> Result<String, SqlBuildError> {
            const KINDS: [Purpose; 6] = [
                Purpose::Load,
                Purpose::LoadMany,
                Purpose::Save,
                Purpose::SaveMany,
                Purpose::Remove,
                Purpose::RemoveMany,
            ];
            let statement = Statement::parse(KINDS[usize::from(kind) % KINDS.len()], sql, dialect)?;
            Ok(statement.sql(2).to_string())
        }
    }

    /// As `tiered/gate.rs` has it.
    mod gate {
        use std::time::Duration;

        use tokio::time::Instant;

        pub(super) fn later(now: Instant, time: Duration) -> Instant {
            now.checked_add(time).unwrap_or(now)
        }
    }

    /// As `tiered/near.rs` has it.
    mod near {
        pub(super) fn after(now: u64, ms: u64) -> u64 {
            now.saturating_add(ms)
        }
    }

    /// As `tiered/far.rs` has them.
    pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

    #[derive(Clone, Debug, PartialEq, Eq, Arbitrary)]
    pub struct FarCopy {
        #[arbitrary(with = |bytes: &mut arbitrary::Unstructured<'_>| Ok(Option::<Vec<u8>>::arbitrary(bytes)?.map(Bytes::from)))]
        pub value: Option<Bytes>,
        pub validator: Option<Arc<str>>,
        pub tags: Arc<[Arc<str>]>,
        pub age_ms: u64,
        pub fresh_ms: u64,
        pub stale_ms: u64,
        pub rescue_ms: u64,
        pub early_us: u64,
        pub cost_us: u64,
    }

    impl FarCopy {
        pub const FOREVER: u64 = u64::MAX;
    }

    /// As `tiered/source.rs` has them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct WriteId(pub u128);

    impl fmt::Display for WriteId {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:032x}", self.0)
        }
    }

    pub(crate) use failure::Failure;

    /// As `engine/steps.rs` has it.
    mod failure {
        pub(crate) enum Failure {
            Overloaded,
            Rejected,
            Unavailable,
            TimedOut,
        }
    }
}
