//! Keyspaces set up by a file: tiers, sources, buses, the journal, and a rule for each keyspace.
//!
//! ```
//! use larder::Config;
//!
//! let config = Config::from_toml(r#"
//!     [tier.shared]
//!     redis = "${REDIS_URL}"
//!
//!     [source.shop]
//!     postgres = "${DATABASE_URL}"
//!
//!     [keyspace.products]
//!     capacity = 100_000
//!     tiers = ["shared"]
//!
//!     [keyspace.products.source]
//!     from = "shop"
//!     load = "select id, name, price from products where id = :key"
//!
//!     [keyspace.products.rule]
//!     ttl = "60s"
//!     stale-if-error = "1h"
//! "#)?;
//! assert_eq!(config.keyspaces().collect::<Vec<_>>(), ["products"]);
//!
//! let wrong = Config::from_toml("[keyspace.products]\ncapasity = 10").unwrap_err();
//! assert!(wrong.to_string().contains("did you mean `capacity`?"));
//! # Ok::<(), larder::ConfigError>(())
//! ```
//!
//! Stores have names, so that two keyspaces can share one: [`Config::open`] makes each once, and
//! [`Stores::keyspace`] a [`TieredBuilder`] with all that the file says. Times are written as `250ms`, `60s`, `1h 30m`; sizes as
//! `64KiB`, `10MB`.
//!
//! In addresses of stores, in paths, and in the `url` of a keyspace's source, `${NAME}` stands for a variable of the
//! environment, and `$$` for a dollar sign. What is in a variable is taken as it is, but for one place: as the user or the
//! password of a URL (`redis://app:${PASSWORD}@host`) it is percent-encoded, so that a password may have `/`, `#`, `?` and `@`
//! in it. So a variable there is a user or a password and not both, and is not encoded already; a URL that is a variable as a
//! whole (`${REDIS_URL}`) is to be encoded by whoever sets it. Addresses are never printed whole, and no error repeats a line
//! of the file.
//!
//! The tables, and what may stand in them:
//!
//! | table | keys |
//! |---|---|
//! | `[patterns]` | `file`, `sha256`: another module than the built-in one |
//! | `[tier.NAME]` | one of `redis`, `redis-cluster`, `memcached`, `disk` (a file), `memory` (entries); `prefix`, `max-value`; `max-bytes` and `policy` of a `disk` |
//! | `[bus.NAME]` | one of `redis`, `redis-cluster`; `prefix` |
//! | `[source.NAME]` | one of `postgres`, `mysql`, `http`; `timeout`; `max-connections` of a database |
//! | `[journal]` | `path`; `max-entries`, `max-bytes`, `flush-after`, `flush-batch` |
//! | `[keyspace.NAME]` | `capacity` (entries) or `max-bytes`; `policy`, `tiers`, `bus`, `journal`, `key` (`text` or `integer`: how operators' commands ask the source), `codec` (`json`, `postcard`), `compress-above`, `tier-timeout`, `load-timeout`, `save-timeout`, `max-refreshes` |
//! | `[keyspace.NAME.source]` | `from`; for SQL `load`, `load-many`, `save`, `save-many`, `remove`, `remove-many`, `ttl-ms-column`, `tags-column`, `version-column`; for HTTP `url` (what comes after the source's, with `{key}`), `put`, `delete` (whether it can be saved to) |
//! | `[keyspace.NAME.rule]` | what the module's card lists: `larder policy inspect patterns` (or the module's file) shows it. `ttl = "60s"` is `ttl-ms = 60000` |

// A file may name any store, and is told which feature it needs: so all tables are read, and what is in them is used where the
// adapters are.
#![cfg_attr(not(all(feature = "redis", feature = "postgres", feature = "mysql", feature = "http")), allow(unused))]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

use crate::engine::steps::Abilities;
use crate::policy::nearest;
#[cfg(feature = "http")]
use crate::tiered::HttpSource;
#[cfg(feature = "memcached")]
use crate::tiered::MemcachedTier;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use crate::tiered::sql::{SqlBuildError, SqlBuilder, SqlDatabase, SqlSource};
use crate::tiered::{
    self, BoxFuture, Bus, Codec, FarCopy, Journal, JournalContents, JournalError, Key, Looked, MemoryTier, Put, Scope,
    Source, Tier, TierError, Token,
};
#[cfg(feature = "disk")]
use crate::tiered::{DiskContents, DiskTier};
#[cfg(feature = "redis")]
use crate::tiered::{RedisBus, RedisServer, RedisTier};
use crate::{Cache, Patterns, PatternsModule, Policy, PolicyError, TieredBuilder, Value};

/// What a file says. See the [module](self).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(skip)]
    origin: Option<PathBuf>,
    /// Whether what refers to the environment has been replaced.
    #[serde(skip)]
    is_resolved: bool,
    #[serde(default)]
    patterns: Option<ModuleTable>,
    #[serde(default)]
    tier: BTreeMap<String, TierTable>,
    #[serde(default)]
    bus: BTreeMap<String, BusTable>,
    #[serde(default)]
    source: BTreeMap<String, SourceTable>,
    #[serde(default)]
    journal: Option<JournalTable>,
    #[serde(default)]
    keyspace: BTreeMap<String, KeyspaceTable>,
}

/// Why a configuration was not taken. Says where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: the configuration cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or has what is not known, or of the wrong kind.
    #[error("{place}{message}")]
    Syntax {
        /// The file, if it came from one.
        place: String,
        /// Line, column and what is wrong.
        message: String,
    },
    /// The journal cannot be had.
    #[error("journal: {0}")]
    Journal(#[from] JournalError),
    /// A disk tier cannot be had.
    #[cfg(feature = "disk")]
    #[error("{setting}: {source}")]
    Disk {
        /// Which: the path of its tables.
        setting: String,
        /// Why, and what to do.
        source: crate::tiered::DiskSetupError,
    },
    /// A setting is wrong.
    #[error("{setting}: {message}")]
    Setting {
        /// Which: the path of its tables.
        setting: String,
        /// What is wrong with it, and what to do.
        message: String,
    },
}

fn wrong(setting: impl Into<String>, message: impl fmt::Display) -> ConfigError {
    ConfigError::Setting { setting: setting.into(), message: message.to_string() }
}

/// A text that may be secret, or refer to the environment. Never printed.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// A text with what the environment has in place of what refers to it.
fn expanded(text: &str, setting: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<String, ConfigError> {
    let login = login_of(text);
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let is_login = login.contains(&(text.len() - rest.len() + at));
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let Some((name, after)) = name else {
            return Err(wrong(setting, "a `$` without a name: write ${NAME} for a variable, or $$ for the sign"));
        };
        let value = variable(name).ok_or_else(|| {
            wrong(setting, format!("the variable {name} is not set in the environment: set it, or write the value"))
        })?;
        if is_login {
            percent_encode(&value, &mut out)
        } else {
            out.push_str(&value)
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Where user and password stand in a URL; nowhere, if it has none, or is none.
fn login_of(url: &str) -> Range<usize> {
    let Some(begin) = url.find("://").map(|at| at + 3) else { return 0..0 };
    let authority = &url[begin..];
    let authority = &authority[..authority.find(['/', '?', '#']).unwrap_or(authority.len())];
    authority.rfind('@').map_or(0..0, |at| begin..begin + at)
}

/// All but what RFC 3986 calls unreserved.
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    let parsed = humantime::parse_duration(&text);
    parsed
        .map(Some)
        .map_err(|error| serde::de::Error::custom(format!("`{text}` is no time ({error}): write 250ms, 60s or 1h 30m")))
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size: bytes as a number, or a text such as \"64KiB\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(from)? {
        Size::Bytes(bytes) => Ok(Some(bytes)),
        Size::Text(text) => {
            let parsed = text.parse::<bytesize::ByteSize>();
            let size = parsed.map_err(|error| {
                serde::de::Error::custom(format!("`{text}` is no size ({error}): write 64KiB or 10MB"))
            })?;
            Ok(Some(size.as_u64()))
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ModuleTable {
    file: PathBuf,
    sha256: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct TierTable {
    redis: Option<Secret>,
    redis_cluster: Option<Vec<Secret>>,
    memcached: Option<Secret>,
    disk: Option<PathBuf>,
    memory: Option<u64>,
    prefix: Option<String>,
    #[serde(default, deserialize_with = "size")]
    max_value: Option<u64>,
    #[serde(default, deserialize_with = "size")]
    max_bytes: Option<u64>,
    policy: Option<PolicyTable>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BusTable {
    redis: Option<Secret>,
    redis_cluster: Option<Vec<Secret>>,
    prefix: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SourceTable {
    postgres: Option<Secret>,
    mysql: Option<Secret>,
    http: Option<Secret>,
    max_connections: Option<u32>,
    #[serde(default, deserialize_with = "time")]
    timeout: Option<Duration>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct JournalTable {
    path: PathBuf,
    max_entries: Option<usize>,
    #[serde(default, deserialize_with = "size")]
    max_bytes: Option<u64>,
    #[serde(default, deserialize_with = "time")]
    flush_after: Option<Duration>,
    flush_batch: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CodecName {
    #[default]
    Json,
    Postcard,
}

/// What keys are, for who has no type for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum KeyName {
    #[default]
    Text,
    Integer,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct KeyspaceTable {
    capacity: Option<u64>,
    #[serde(default, deserialize_with = "size")]
    max_bytes: Option<u64>,
    policy: Option<PolicyTable>,
    #[serde(default)]
    tiers: Vec<String>,
    bus: Option<String>,
    #[serde(default)]
    journal: bool,
    #[serde(default)]
    key: KeyName,
    #[serde(default)]
    codec: CodecName,
    #[serde(default, deserialize_with = "size")]
    compress_above: Option<u64>,
    #[serde(default, deserialize_with = "time")]
    tier_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    load_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "time")]
    save_timeout: Option<Duration>,
    max_refreshes: Option<usize>,
    source: Option<QueriesTable>,
    #[serde(default)]
    rule: BTreeMap<String, toml::Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a policy: a name such as \"s3-fifo\", or { file = \"…\", sha256 = \"…\" }")]
enum PolicyTable {
    Name(String),
    Module(ModuleTable),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct QueriesTable {
    from: String,
    load: Option<String>,
    load_many: Option<String>,
    save: Option<String>,
    save_many: Option<String>,
    remove: Option<String>,
    remove_many: Option<String>,
    ttl_ms_column: Option<String>,
    tags_column: Option<String>,
    version_column: Option<String>,
    url: Option<String>,
    #[serde(default)]
    put: bool,
    #[serde(default)]
    delete: bool,
}

/// Why a limit of no time is refused.
const NO_TIME: &str = "within no time nothing is ever answered: set more, or leave it out";

/// What is set of several that exclude each other.
fn one_of<'a>(table: &str, given: &[(&'a str, bool)]) -> Result<&'a str, ConfigError> {
    let names = || given.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let mut set = given.iter().filter(|(_, is_set)| *is_set).map(|(name, _)| *name);
    match (set.next(), set.next()) {
        (Some(name), None) => Ok(name),
        (None, _) => Err(wrong(table, format!("it does not say what it is: set one of {}", names()))),
        (Some(a), Some(b)) => Err(wrong(table, format!("`{a}` and `{b}` exclude each other: keep one of {}", names()))),
    }
}

fn known<'a, T>(setting: &str, name: &str, kind: &str, tables: &'a BTreeMap<String, T>) -> Result<&'a T, ConfigError> {
    tables.get(name).ok_or_else(|| {
        let names: Vec<_> = tables.keys().cloned().collect();
        let meant = nearest(name, &names).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let there = if names.is_empty() { "there is none".into() } else { format!("there are {}", names.join(", ")) };
        wrong(setting, format!("there is no [{kind}.{name}]: {there}{meant}"))
    })
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`ConfigError`], which says where, and what to do. What the rules say is checked when a keyspace is built, by the
    /// module.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|error| ConfigError::Syntax { place: String::new(), message: told(text, &error) })?;
        config.check()?;
        Ok(config)
    }

    /// Reads the configuration in a file. Paths in it are relative to its directory.
    ///
    /// # Errors
    /// As [`Self::from_toml`]; or the file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let unreadable = |source| ConfigError::Unreadable { path: path.into(), source };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let place = |error| match error {
            ConfigError::Syntax { message, .. } => {
                ConfigError::Syntax { place: format!("{}: ", path.display()), message }
            }
            ConfigError::Setting { setting, message } => {
                ConfigError::Setting { setting: format!("{}: {setting}", path.display()), message }
            }
            other => other,
        };
        let mut config = Config::from_toml(&text).map_err(place)?;
        config.origin = Some(path.into());
        Ok(config)
    }

    /// The names of the keyspaces.
    pub fn keyspaces(&self) -> impl Iterator<Item = &str> {
        self.keyspace.keys().map(String::as_str)
    }

    /// The rule of a keyspace, as [`Tiered::set_rules`](crate::Tiered::set_rules) takes it: for a reload.
    ///
    /// # Errors
    /// There is no such keyspace, or a value is none that a parameter can have.
    pub fn rules(&self, keyspace: &str) -> Result<Vec<(String, Value)>, ConfigError> {
        let table = known("keyspace", keyspace, "keyspace", &self.keyspace)?;
        let place = format!("keyspace.{keyspace}.rule");
        let mut rules: Vec<(String, Value)> = Vec::with_capacity(table.rule.len());
        for (written, value) in &table.rule {
            let (name, value) = parameter(&place, written, value)?;
            if rules.iter().any(|(known, _)| *known == name) {
                let short = name.trim_end_matches("-ms");
                let message = format!("`{short}` as a time and `{name}` are the same: keep one of them");
                return Err(wrong(format!("{place}.{short}"), message));
            }
            rules.push((name, value));
        }
        Ok(rules)
    }

    /// What can be told before anything is opened.
    fn check(&self) -> Result<(), ConfigError> {
        let is_zero = |time: Option<Duration>| time.is_some_and(|time| time.is_zero());
        for (name, tier) in &self.tier {
            let place = format!("tier.{name}");
            let kind = tier.kind(&place)?;
            if tier.memory == Some(0) {
                return Err(wrong(format!("{place}.memory"), "a bound of 0 keeps nothing: set 1 or more"));
            }
            let idle = [
                ("prefix", tier.prefix.is_some() && matches!(kind, "disk" | "memory")),
                ("max-bytes", tier.max_bytes.is_some() && kind != "disk"),
                ("policy", tier.policy.is_some() && kind != "disk"),
            ];
            if let Some((setting, _)) = idle.iter().find(|(_, is_idle)| *is_idle) {
                return Err(wrong(
                    format!("{place}.{setting}"),
                    format!("a {kind} tier has no use for it: leave it out"),
                ));
            }
        }
        for (name, bus) in &self.bus {
            bus.kind(&format!("bus.{name}"))?;
        }
        for (name, source) in &self.source {
            let place = format!("source.{name}");
            let kind = source.kind(&place)?;
            if source.max_connections.is_some() && kind == "http" {
                return Err(wrong(
                    format!("{place}.max-connections"),
                    "an HTTP source has no use for it: leave it out",
                ));
            }
            if source.max_connections == Some(0) {
                let message = "without connections nothing can be asked: set 1 or more, or leave it out for 10";
                return Err(wrong(format!("{place}.max-connections"), message));
            }
            if is_zero(source.timeout) {
                return Err(wrong(format!("{place}.timeout"), NO_TIME));
            }
        }
        for (name, keyspace) in &self.keyspace {
            let place = format!("keyspace.{name}");
            if name.contains(':') {
                return Err(wrong(place, "a colon ends names in shared tiers: leave it out of the name"));
            }
            match (keyspace.capacity, keyspace.max_bytes) {
                (None, None) => return Err(wrong(place, "it has no bound: set `capacity` (entries) or `max-bytes`")),
                (Some(_), Some(_)) => return Err(wrong(place, "`capacity` and `max-bytes` exclude each other")),
                (Some(0), _) | (_, Some(0)) => return Err(wrong(place, "a bound of 0 keeps nothing: set 1 or more")),
                _ => {}
            }
            let limits = [
                ("tier-timeout", keyspace.tier_timeout),
                ("load-timeout", keyspace.load_timeout),
                ("save-timeout", keyspace.save_timeout),
            ];
            if let Some((setting, _)) = limits.into_iter().find(|(_, limit)| is_zero(*limit)) {
                return Err(wrong(format!("{place}.{setting}"), NO_TIME));
            }
            if keyspace.max_refreshes == Some(0) {
                let message = "nothing would ever be refreshed in the background: set 1 or more; where nothing is to be, leave \
                               `stale-while-revalidate` out of the rule";
                return Err(wrong(format!("{place}.max-refreshes"), message));
            }
            for (at, tier) in keyspace.tiers.iter().enumerate() {
                known(&format!("{place}.tiers"), tier, "tier", &self.tier)?;
                if keyspace.tiers[..at].contains(tier) {
                    let message = format!("`{tier}` is there twice: name each tier once, the nearest first");
                    return Err(wrong(format!("{place}.tiers"), message));
                }
            }
            if keyspace.tiers.len() > 7 {
                return Err(wrong(format!("{place}.tiers"), "there are more than 7: keep 7 at most"));
            }
            if let Some(bus) = &keyspace.bus {
                known(&format!("{place}.bus"), bus, "bus", &self.bus)?;
            }
            if keyspace.journal && self.journal.is_none() {
                return Err(wrong(format!("{place}.journal"), "there is no [journal]: add one with its `path`"));
            }
            if let Some(source) = &keyspace.source {
                let table = known(&format!("{place}.source.from"), &source.from, "source", &self.source)?;
                let is_http = table.kind(&format!("source.{}", source.from))? == "http";
                let queries = source.queries();
                match queries.iter().find(|(_, text)| text.is_some()) {
                    Some((query, _)) if is_http => {
                        let message = format!("`{query}` is SQL, and the source `{}` is HTTP: set `url`", source.from);
                        return Err(wrong(format!("{place}.source"), message));
                    }
                    None if !is_http => {
                        return Err(wrong(
                            format!("{place}.source"),
                            "it has no query: set `load`, `save` or `remove`",
                        ));
                    }
                    _ => {}
                }
                if let Some((setting, use_instead)) = source.idle(is_http) {
                    let kind = if is_http { "HTTP" } else { "SQL" };
                    let message = format!("a source over {kind} has no use for it: {use_instead}");
                    return Err(wrong(format!("{place}.source.{setting}"), message));
                }
                if is_http != source.url.is_some() {
                    let message =
                        "`url` is for HTTP sources, and they need it: the path with {key} where the key belongs";
                    return Err(wrong(format!("{place}.source"), message));
                }
            }
            self.rules(name)?;
        }
        Ok(())
    }

    /// A path of the file's.
    fn path(&self, path: &Path) -> PathBuf {
        let beside = self.origin.as_deref().and_then(Path::parent);
        beside.map_or_else(|| path.to_path_buf(), |directory| directory.join(path))
    }
}

/// What a configuration named, opened: each once, shared by the keyspaces that use it. From [`Config::open`].
pub struct Stores {
    config: Config,
    patterns: Patterns,
    tiers: BTreeMap<String, Arc<dyn Tier>>,
    buses: BTreeMap<String, Arc<dyn Bus>>,
    journal: Option<Journal>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiers: Vec<_> = self.tiers.iter().map(|(name, tier)| format!("{name}: {}", tier.summary())).collect();
        f.debug_struct("Stores").field("tiers", &tiers).field("keyspaces", &self.config.keyspace.keys()).finish()
    }
}

impl Config {
    /// Opens the stores that keyspaces use. A store that cannot be reached now is no error: its tier or source is down, and is
    /// used when it is back. Variables of the environment are read here.
    ///
    /// # Errors
    /// A variable is not set; an address makes no sense; this build lacks the feature for a store; the journal cannot be had.
    pub async fn open(&self) -> Result<Stores, ConfigError> {
        self.open_with(|name| std::env::var(name).ok()).await
    }

    /// As [`Self::open`], with variables from elsewhere: a secret store, say.
    ///
    /// # Errors
    /// As there.
    pub async fn open_with(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Stores, ConfigError> {
        let mut config = self.clone();
        config.resolve(&variable)?;
        config.open_resolved().await
    }

    async fn open_resolved(self) -> Result<Stores, ConfigError> {
        let config = self;
        let patterns = config.patterns();
        let mut tiers = BTreeMap::new();
        for (name, table) in &config.tier {
            tiers.insert(name.clone(), config.open_tier_of(&format!("tier.{name}"), table).await?);
        }
        let mut buses = BTreeMap::new();
        for (name, table) in &config.bus {
            buses.insert(name.clone(), open_bus(&format!("bus.{name}"), table)?);
        }
        let journal = match &config.journal {
            Some(table) => Some(config.open_journal_of(table).await?),
            None => None,
        };
        Ok(Stores { config, patterns, tiers, buses, journal })
    }
}

impl Config {
    /// The same stores without rules, sources and the journal: to look and to invalidate beside the services that use them.
    /// Nothing is loaded, kept or saved so.
    #[must_use]
    pub fn for_operators(&self) -> Config {
        let mut config = self.clone();
        config.journal = None;
        config.source.clear();
        // Only the process that has such a tier can look into it.
        let own: Vec<_> = config.tier.extract_if(.., |_, table| table.disk.is_some()).map(|(name, _)| name).collect();
        for table in config.keyspace.values_mut() {
            table.tiers.retain(|tier| !own.contains(tier));
            table.journal = false;
            table.source = None;
            table.rule.clear();
        }
        config
    }

    /// Has all that is checked when a service builds a keyspace checked: its eviction policy, its source, what its tiers can
    /// do, and its rule by the module. No store is asked, and what a service alone may open is not opened. To be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// What a service would be told.
    pub async fn check_keyspace(&self, keyspace: &str) -> Result<(), ConfigError> {
        let config = self.of_keyspace(keyspace)?.resolved()?;
        match known("keyspace", keyspace, "keyspace", &config.keyspace)?.key {
            KeyName::Text => config.check_keyspace_of::<String>(keyspace).await,
            KeyName::Integer => config.check_keyspace_of::<i64>(keyspace).await,
        }
    }

    async fn check_keyspace_of<K: Key>(mut self, keyspace: &str) -> Result<(), ConfigError> {
        let rules = self.rules(keyspace)?;
        let mut tiers: BTreeMap<String, Arc<dyn Tier>> = BTreeMap::new();
        for (name, table) in &self.tier {
            let place = format!("tier.{name}");
            let tier = match (&table.disk, &table.policy) {
                (Some(_), policy) => {
                    let policy = policy.as_ref().map(|policy| self.policy(policy).and_then(|policy| policy.load()));
                    policy.transpose().map_err(|error| wrong(format!("{place}.policy"), error))?;
                    Arc::new(OnDisk)
                }
                (None, _) => self.open_tier_of(&place, table).await?,
            };
            tiers.insert(name.clone(), tier);
        }
        let table = known("keyspace", keyspace, "keyspace", &self.keyspace)?;
        let place = format!("keyspace.{keyspace}");
        let source = match &table.source {
            Some(queries) => Some(self.source_of::<K, Json>(&format!("{place}.source"), queries)?),
            None => None,
        };
        let far: Vec<_> = table.tiers.iter().filter_map(|name| tiers.get(name)).collect();
        let given = [
            (Abilities::LOADS, source.as_ref().is_some_and(|source| source.loads())),
            (Abilities::SAVES, source.as_ref().is_some_and(|source| source.saves())),
            (Abilities::LOGS, table.journal),
            (Abilities::ANNOUNCES, table.bus.is_some()),
            (Abilities::LEASES, far.iter().any(|tier| tier.leases())),
        ];
        let shared = far.iter().zip(1..8).filter(|(tier, _)| tier.is_shared());
        let shared = shared.fold(0u8, |all, (_, at)| all | 1 << at);
        let module = self.patterns().load().map_err(|error| wrong("patterns", error))?;
        check_units(&format!("{place}.rule"), &module, &rules)?;
        tiered::check_rule(&module, keyspace, (far.len(), shared), &given, &rules)
            .map_err(|error| wrong(format!("{place}.rule"), error))?;
        // The rest as a service would, without what would join it to others: its rule has been looked at.
        for table in self.keyspace.values_mut() {
            table.rule.clear();
            (table.bus, table.journal) = (None, false);
        }
        let patterns = self.patterns();
        let stores = Stores { config: self, patterns, tiers, buses: BTreeMap::new(), journal: None };
        stores.keyspace::<K, Json>(keyspace)?.build().map_err(|error| wrong(place, error)).map(drop)
    }

    /// This keyspace with what it uses, so that what is wrong elsewhere does not matter.
    fn of_keyspace(&self, keyspace: &str) -> Result<Config, ConfigError> {
        let table = known("keyspace", keyspace, "keyspace", &self.keyspace)?;
        let mut config = self.clone();
        config.keyspace.retain(|name, _| name == keyspace);
        config.tier.retain(|name, _| table.tiers.contains(name));
        config.bus.retain(|name, _| table.bus.as_ref() == Some(name));
        config.source.retain(|name, _| table.source.as_ref().is_some_and(|source| source.from == *name));
        config.journal = None;
        Ok(config)
    }

    /// What is set up and no keyspace uses, as `tier NAME`, `bus NAME`, `source NAME` and `journal`.
    pub fn unused(&self) -> Vec<String> {
        let used = |is: &dyn Fn(&KeyspaceTable) -> bool| self.keyspace.values().any(is);
        let tiers = self.tier.keys().filter(|name| !used(&|table| table.tiers.contains(name)));
        let buses = self.bus.keys().filter(|name| !used(&|table| table.bus.as_ref() == Some(name)));
        let is_from =
            |table: &KeyspaceTable, name: &String| table.source.as_ref().is_some_and(|source| source.from == *name);
        let sources = self.source.keys().filter(|name| !used(&|table| is_from(table, name)));
        let journal = self.journal.is_some() && !used(&|table| table.journal);
        tiers
            .map(|name| format!("tier {name}"))
            .chain(buses.map(|name| format!("bus {name}")))
            .chain(sources.map(|name| format!("source {name}")))
            .chain(journal.then(|| "journal".into()))
            .collect()
    }

    fn patterns(&self) -> Patterns {
        self.patterns.as_ref().map_or_else(Patterns::default, |table| {
            let module = Patterns::file(self.path(&table.file));
            table.sha256.iter().fold(module, |module, digest| module.sha256(digest))
        })
    }

    /// Has the source of a keyspace check what it would be asked; what it is, or `None` where there is none.
    ///
    /// # Errors
    /// It cannot be set up or reached, or refuses a query.
    pub async fn check_source(&self, keyspace: &str) -> Result<Option<String>, ConfigError> {
        let config = self.of_keyspace(keyspace)?.resolved()?;
        let table = known("keyspace", keyspace, "keyspace", &config.keyspace)?;
        match table.key {
            KeyName::Text => config.check_source_of::<String>(keyspace, table).await,
            KeyName::Integer => config.check_source_of::<i64>(keyspace, table).await,
        }
    }

    #[cfg_attr(
        not(any(feature = "postgres", feature = "mysql", feature = "http")),
        expect(clippy::extra_unused_type_parameters, reason = "each source has its keys' type")
    )]
    async fn check_source_of<K: Key>(
        &self,
        keyspace: &str,
        table: &KeyspaceTable,
    ) -> Result<Option<String>, ConfigError> {
        let Some(queries) = &table.source else { return Ok(None) };
        let place = format!("keyspace.{keyspace}.source");
        let table = known(&place, &queries.from, "source", &self.source)?;
        #[cfg(feature = "postgres")]
        if let Some(url) = &table.postgres {
            let source = sql(SqlSource::<sqlx::Postgres, K, Json>::connect(&url.0), table, queries);
            let source = source.map_err(|error| wrong(&place, error))?;
            source.check().await.map_err(|error| wrong(&place, error))?;
            return Ok(Some("PostgreSQL takes its queries".into()));
        }
        #[cfg(feature = "mysql")]
        if let Some(url) = &table.mysql {
            let source = sql(SqlSource::<sqlx::MySql, K, Json>::connect(&url.0), table, queries);
            let source = source.map_err(|error| wrong(&place, error))?;
            source.check().await.map_err(|error| wrong(&place, error))?;
            return Ok(Some("MySQL takes its queries".into()));
        }
        #[cfg(feature = "http")]
        if let Some(base) = &table.http {
            http::<K, Json>(base, table, queries).map_err(|error| wrong(&place, error))?;
            return Ok(Some("an HTTP source, which is asked only for keys".into()));
        }
        Err(lacking(&place, table.kind(&place)?))
    }
}

/// What this build was made without.
#[allow(dead_code, reason = "a build with all features lacks nothing")]
fn lacking(place: &str, feature: &str) -> ConfigError {
    wrong(place, format!("this build cannot do that: build larder with the feature `{feature}`"))
}

impl Config {
    /// Puts what the environment has in place of what refers to it.
    fn resolve(&mut self, variable: &impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        if self.is_resolved {
            return Ok(());
        }
        let put = |secret: &mut Secret, place: String| -> Result<(), ConfigError> {
            secret.0 = expanded(&secret.0, &place, variable)?;
            let after_login = &secret.0[login_of(&secret.0).end..];
            // In HTTP a path may have such a sign, and Memcached has no logins at all.
            let has_login = !place.ends_with(".http") && !place.ends_with(".memcached");
            if has_login && login_of(&secret.0).is_empty() && after_login.contains('@') {
                let message = "an `@` after the host's end: write `/`, `?`, `#` and `@` of a user or a password as %2F, %3F, %23 \
                               and %40, or put each into a variable";
                return Err(wrong(place, message));
            }
            Ok(())
        };
        let put_path = |path: &mut PathBuf, place: String| -> Result<(), ConfigError> {
            // It came from a text.
            *path = expanded(&path.to_string_lossy(), &place, variable)?.into();
            Ok(())
        };
        let put_module = |policy: &mut Option<PolicyTable>, place: String| match policy {
            Some(PolicyTable::Module(module)) => put_path(&mut module.file, place),
            _ => Ok(()),
        };
        for (name, table) in &mut self.tier {
            let single = [("redis", &mut table.redis), ("memcached", &mut table.memcached)];
            for (kind, secret) in single.into_iter().filter_map(|(kind, secret)| Some((kind, secret.as_mut()?))) {
                put(secret, format!("tier.{name}.{kind}"))?;
            }
            for secret in table.redis_cluster.iter_mut().flatten() {
                put(secret, format!("tier.{name}.redis-cluster"))?;
            }
            if let Some(path) = &mut table.disk {
                put_path(path, format!("tier.{name}.disk"))?;
            }
            put_module(&mut table.policy, format!("tier.{name}.policy.file"))?;
        }
        for (name, table) in &mut self.bus {
            if let Some(secret) = &mut table.redis {
                put(secret, format!("bus.{name}.redis"))?;
            }
            for secret in table.redis_cluster.iter_mut().flatten() {
                put(secret, format!("bus.{name}.redis-cluster"))?;
            }
        }
        for (name, table) in &mut self.source {
            let given = [("postgres", &mut table.postgres), ("mysql", &mut table.mysql), ("http", &mut table.http)];
            for (kind, secret) in given.into_iter().filter_map(|(kind, secret)| Some((kind, secret.as_mut()?))) {
                put(secret, format!("source.{name}.{kind}"))?;
            }
        }
        if let Some(table) = &mut self.journal {
            put_path(&mut table.path, "journal.path".into())?;
        }
        if let Some(module) = &mut self.patterns {
            put_path(&mut module.file, "patterns.file".into())?;
        }
        for (name, table) in &mut self.keyspace {
            put_module(&mut table.policy, format!("keyspace.{name}.policy.file"))?;
            if let Some(url) = table.source.as_mut().and_then(|source| source.url.as_mut()) {
                *url = expanded(url, &format!("keyspace.{name}.source.url"), variable)?;
            }
        }
        self.is_resolved = true;
        Ok(())
    }

    /// Whether the environment has all that the file refers to, without which no store is opened.
    ///
    /// # Errors
    /// A variable is not set, or what it makes is no address.
    pub fn check_variables(&self) -> Result<(), ConfigError> {
        self.clone().resolved().map(drop)
    }

    /// As the environment of this process has it.
    fn resolved(mut self) -> Result<Config, ConfigError> {
        self.resolve(&|name| std::env::var(name).ok())?;
        Ok(self)
    }

    /// Nothing but one table of this kind, as the environment has it.
    fn only<T: Clone>(
        &self,
        place: &str,
        name: &str,
        tables: fn(&mut Config) -> &mut BTreeMap<String, T>,
    ) -> Result<(Config, T), ConfigError> {
        let mut config = Config { origin: self.origin.clone(), is_resolved: self.is_resolved, ..Config::default() };
        let mut all = self.clone();
        let kind = place.split('.').next().unwrap_or_default();
        tables(&mut config).insert(name.into(), known(place, name, kind, tables(&mut all))?.clone());
        let mut config = config.resolved()?;
        let table = known(place, name, kind, tables(&mut config))?.clone();
        Ok((config, table))
    }

    /// The names of the tiers that do not lie on disk: those that can be looked into from outside.
    pub fn tiers(&self) -> impl Iterator<Item = &str> {
        self.tier.iter().filter(|(_, table)| table.disk.is_none()).map(|(name, _)| name.as_str())
    }

    /// The names of the buses.
    pub fn buses(&self) -> impl Iterator<Item = &str> {
        self.bus.keys().map(String::as_str)
    }

    /// Opens a tier, and nothing else.
    ///
    /// # Errors
    /// There is none of this name, or its address makes no sense.
    pub async fn open_tier(&self, name: &str) -> Result<Arc<dyn Tier>, ConfigError> {
        let place = format!("tier.{name}");
        let (config, table) = self.only(&place, name, |config| &mut config.tier)?;
        config.open_tier_of(&place, &table).await
    }

    /// Opens a bus, and nothing else. To be called within a tokio runtime.
    ///
    /// # Errors
    /// There is none of this name, or its address makes no sense.
    pub fn open_bus(&self, name: &str) -> Result<Arc<dyn Bus>, ConfigError> {
        let place = format!("bus.{name}");
        let (_, table) = self.only(&place, name, |config| &mut config.bus)?;
        open_bus(&place, &table)
    }

    async fn open_tier_of(&self, place: &str, table: &TierTable) -> Result<Arc<dyn Tier>, ConfigError> {
        let most = table.max_value.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if let Some(entries) = table.memory {
            let tier = MemoryTier::new(entries).map_err(|error| wrong(place, error))?;
            return Ok(Arc::new(most.into_iter().fold(tier.unshared(), MemoryTier::max_value_bytes)));
        }
        #[cfg(feature = "redis")]
        if let Some(server) = redis_server(place, table.redis.as_ref(), table.redis_cluster.as_deref())? {
            let mut tier = RedisTier::builder(&server);
            if let Some(prefix) = &table.prefix {
                tier = tier.prefix(prefix);
            }
            let tier = most.into_iter().fold(tier, |tier, most| tier.max_value_bytes(most));
            return Ok(Arc::new(tier.build().map_err(|error| wrong(place, error))?));
        }
        #[cfg(feature = "memcached")]
        if let Some(address) = &table.memcached {
            let mut tier = MemcachedTier::builder(&address.0);
            if let Some(prefix) = &table.prefix {
                tier = tier.prefix(prefix);
            }
            let tier = most.into_iter().fold(tier, |tier, most| tier.max_value_bytes(most));
            return Ok(Arc::new(tier.build().map_err(|error| wrong(place, error))?));
        }
        #[cfg(feature = "disk")]
        if let Some(path) = &table.disk {
            return Ok(Arc::new(self.open_disk_of(place, path, table).await?));
        }
        Err(lacking(place, table.kind(place)?.trim_end_matches("-cluster")))
    }

    /// The tiers that lie on disk: each is one process's own.
    pub fn disk_tiers(&self) -> impl Iterator<Item = &str> {
        self.tier.iter().filter(|(_, table)| table.disk.is_some()).map(|(name, _)| name.as_str())
    }

    /// The file of a disk tier.
    ///
    /// # Errors
    /// There is none of this name, or a variable in its path is not set.
    pub fn disk_path(&self, name: &str) -> Result<PathBuf, ConfigError> {
        let place = format!("tier.{name}");
        let (config, table) = self.only(&place, name, |config| &mut config.tier)?;
        table.disk.map(|path| config.path(&path)).ok_or_else(|| wrong(place, "it does not lie on disk"))
    }

    /// What is in a disk tier, which is not opened for that: it stays as the service left it, and the service's.
    ///
    /// # Errors
    /// There is none of this name or no file yet, a process has it open, or what lies there is none, or damaged.
    #[cfg(feature = "disk")]
    pub async fn look_at_disk(&self, name: &str) -> Result<DiskContents, ConfigError> {
        let failed = |source| ConfigError::Disk { setting: format!("tier.{name}"), source };
        DiskTier::look(self.disk_path(name)?).await.map_err(failed)
    }

    #[cfg(feature = "disk")]
    async fn open_disk_of(&self, place: &str, path: &Path, table: &TierTable) -> Result<DiskTier, ConfigError> {
        let mut tier = DiskTier::builder(self.path(path));
        if let Some(bytes) = table.max_bytes {
            tier = tier.max_bytes(bytes);
        }
        if let Some(policy) = &table.policy {
            tier = tier.policy(self.policy(policy).map_err(|error| wrong(format!("{place}.policy"), error))?);
        }
        if let Some(bytes) = table.max_value {
            tier = tier.max_value_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
        let failed = |source| ConfigError::Disk { setting: place.into(), source };
        tier.open().await.map_err(failed)
    }

    /// Whether a keyspace has a source in the file.
    pub fn has_source(&self, keyspace: &str) -> bool {
        self.keyspace.get(keyspace).is_some_and(|table| table.source.is_some())
    }

    /// Whether there is a journal.
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Opens the journal, and nothing else.
    ///
    /// # Errors
    /// There is none, it is open elsewhere, or it is damaged.
    pub async fn open_journal(&self) -> Result<Journal, ConfigError> {
        let config = self.journal_alone()?;
        config.open_journal_of(config.journal_table()?).await
    }

    /// What is in the journal, which is not opened for that: it stays as the service left it, and the service's.
    ///
    /// # Errors
    /// There is none, it is open elsewhere, or it is damaged.
    pub async fn look_at_journal(&self) -> Result<JournalContents, ConfigError> {
        let config = self.journal_alone()?;
        let path = config.path(&config.journal_table()?.path);
        #[cfg(feature = "journal")]
        {
            Ok(Journal::look(path).await?)
        }
        #[cfg(not(feature = "journal"))]
        {
            let _ = path;
            Err(lacking("journal", "journal"))
        }
    }

    /// The journal's part, so that nothing else has to be right.
    fn journal_alone(&self) -> Result<Config, ConfigError> {
        let journal = self.journal.clone();
        let config =
            Config { origin: self.origin.clone(), is_resolved: self.is_resolved, journal, ..Config::default() };
        config.resolved()
    }

    fn journal_table(&self) -> Result<&JournalTable, ConfigError> {
        self.journal.as_ref().ok_or_else(|| wrong("journal", "there is no [journal]: nothing is saved later"))
    }

    async fn open_journal_of(&self, table: &JournalTable) -> Result<Journal, ConfigError> {
        let path = self.path(&table.path);
        #[cfg(feature = "journal")]
        {
            let mut journal = Journal::builder();
            if let Some(entries) = table.max_entries {
                journal = journal.max_entries(entries);
            }
            if let Some(bytes) = table.max_bytes {
                journal = journal.max_bytes(usize::try_from(bytes).unwrap_or(usize::MAX));
            }
            if let Some(time) = table.flush_after {
                journal = journal.flush_after(time);
            }
            if let Some(writes) = table.flush_batch {
                journal = journal.flush_batch(writes);
            }
            Ok(journal.open(path).await?)
        }
        #[cfg(not(feature = "journal"))]
        {
            let _ = path;
            Err(lacking("journal", "journal"))
        }
    }
}

#[cfg(feature = "redis")]
fn redis_server(
    place: &str,
    single: Option<&Secret>,
    cluster: Option<&[Secret]>,
) -> Result<Option<RedisServer>, ConfigError> {
    let server = match (single, cluster) {
        (Some(url), _) => RedisServer::at(&url.0),
        (None, Some(urls)) => RedisServer::cluster(urls.iter().map(|url| url.0.as_str())),
        (None, None) => return Ok(None),
    };
    server.map(Some).map_err(|error| wrong(place, error))
}

fn open_bus(place: &str, table: &BusTable) -> Result<Arc<dyn Bus>, ConfigError> {
    #[cfg(feature = "redis")]
    if let Some(server) = redis_server(place, table.redis.as_ref(), table.redis_cluster.as_deref())? {
        let mut bus = RedisBus::builder(&server);
        if let Some(prefix) = &table.prefix {
            bus = bus.prefix(prefix);
        }
        return Ok(Arc::new(bus.build().map_err(|error| wrong(place, error))?));
    }
    Err(lacking(place, table.kind(place)?.trim_end_matches("-cluster")))
}

impl Stores {
    /// The configuration that they were opened from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A tier by its name.
    pub fn tier(&self, name: &str) -> Option<&Arc<dyn Tier>> {
        self.tiers.get(name)
    }

    /// The tiers of a keyspace with their names, the nearest first; tier 0 is not among them.
    pub fn tiers_of(&self, keyspace: &str) -> impl Iterator<Item = (&str, &Arc<dyn Tier>)> {
        let names = self.config.keyspace.get(keyspace).map_or(&[][..], |table| &table.tiers);
        names.iter().filter_map(|name| Some((name.as_str(), self.tiers.get(name)?)))
    }

    /// All tiers, with their names.
    pub fn tiers(&self) -> impl Iterator<Item = (&str, &Arc<dyn Tier>)> {
        self.tiers.iter().map(|(name, tier)| (name.as_str(), tier))
    }

    /// Whether invalidations of a keyspace are heard by other processes.
    pub fn has_bus(&self, keyspace: &str) -> bool {
        self.config.keyspace.get(keyspace).is_some_and(|table| table.bus.is_some())
    }

    /// How values of a keyspace become bytes.
    ///
    /// # Errors
    /// There is no such keyspace.
    pub fn codec<V: Serialize + DeserializeOwned + 'static>(&self, keyspace: &str) -> Result<Codec<V>, ConfigError> {
        let table = known("keyspace", keyspace, "keyspace", &self.config.keyspace)?;
        let codec = match table.codec {
            CodecName::Json => Codec::json(),
            CodecName::Postcard => Codec::postcard(),
        };
        Ok(match table.compress_above {
            Some(bytes) => codec.compress_above(usize::try_from(bytes).unwrap_or(usize::MAX)),
            None => codec,
        })
    }

    /// The journal, if there is one.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// A keyspace as the configuration has it. What is not in it, such as a source of your own, can be added to the builder.
    ///
    /// # Errors
    /// There is no such keyspace, or its queries make no sense. What the rule says is checked by [`TieredBuilder::build`].
    pub fn keyspace<K, V>(&self, name: &str) -> Result<TieredBuilder<K, V>, ConfigError>
    where
        K: Key,
        V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let table = known("keyspace", name, "keyspace", &self.config.keyspace)?;
        let place = format!("keyspace.{name}");
        let mut near = Cache::builder();
        if let Some(entries) = table.capacity {
            near = near.max_capacity(entries);
        }
        if let Some(policy) = &table.policy {
            near = near.policy(self.config.policy(policy).map_err(|error| wrong(format!("{place}.policy"), error))?);
        }
        let mut builder = near.keyspace(name).patterns(self.patterns.clone());
        if let Some(bytes) = table.max_bytes {
            // What a value takes as JSON stands for what it takes in memory; what is not there takes a little.
            let weight = |key: &K, value: Option<&V>| {
                let mut size = Counted(key.text().len() as u64 + 64);
                if let Some(value) = value {
                    // A value that cannot be written is weighed as far as it could.
                    drop(serde_json::to_writer(&mut size, value));
                }
                u32::try_from(size.0).unwrap_or(u32::MAX)
            };
            builder = builder.max_capacity(bytes).weigher(weight);
        }
        for tier in &table.tiers {
            builder = builder.far(known(&place, tier, "tier", &self.tiers)?.clone());
        }
        if let Some(bus) = &table.bus {
            builder = builder.bus(known(&place, bus, "bus", &self.buses)?.clone());
        }
        if let Some(journal) = self.journal.as_ref().filter(|_| table.journal) {
            builder = builder.journal(journal.clone());
        }
        builder = builder.codec(self.codec(name)?);
        if let Some(limit) = table.tier_timeout {
            builder = builder.tier_timeout(limit);
        }
        if let Some(limit) = table.load_timeout {
            builder = builder.load_timeout(limit);
        }
        if let Some(limit) = table.save_timeout {
            builder = builder.save_timeout(limit);
        }
        if let Some(refreshes) = table.max_refreshes {
            builder = builder.max_refreshes(refreshes);
        }
        let rules = self.config.rules(name)?;
        // A module that cannot be loaded is an error of building.
        if let Ok(module) = self.patterns.load() {
            check_units(&format!("{place}.rule"), &module, &rules)?;
        }
        for (parameter, value) in rules {
            builder = builder.rule(parameter, value);
        }
        match &table.source {
            Some(queries) => Ok(builder.source(self.config.source_of::<K, V>(&format!("{place}.source"), queries)?)),
            None => Ok(builder),
        }
    }
}

/// Stands for a tier on disk where only what it can do is looked at: a service may have it open.
struct OnDisk;

impl OnDisk {
    fn refuses<'a, T>() -> BoxFuture<'a, Result<T, TierError>> {
        Box::pin(async { Err(TierError::Unsupported("it is not open")) })
    }
}

impl Tier for OnDisk {
    fn summary(&self) -> String {
        "a disk".into()
    }
    fn is_shared(&self) -> bool {
        false
    }
    fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Looked, TierError>> {
        Self::refuses()
    }
    fn token<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Token, TierError>> {
        Self::refuses()
    }
    fn put<'a>(&'a self, _: &'a str, _: FarCopy, _: Token, _: bool) -> BoxFuture<'a, Result<Put, TierError>> {
        Self::refuses()
    }
    fn invalidate<'a>(&'a self, _: &'a Scope, _: bool) -> BoxFuture<'a, Result<(), TierError>> {
        Self::refuses()
    }
}

impl Config {
    fn source_of<K, V>(&self, place: &str, queries: &QueriesTable) -> Result<Arc<dyn Source<K, V>>, ConfigError>
    where
        K: Key,
        V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let table = known(place, &queries.from, "source", &self.source)?;
        #[cfg(feature = "postgres")]
        if let Some(url) = &table.postgres {
            let source = sql(SqlSource::<sqlx::Postgres, K, V>::connect(&url.0), table, queries);
            return Ok(Arc::new(source.map_err(|error| wrong(place, error))?));
        }
        #[cfg(feature = "mysql")]
        if let Some(url) = &table.mysql {
            let source = sql(SqlSource::<sqlx::MySql, K, V>::connect(&url.0), table, queries);
            return Ok(Arc::new(source.map_err(|error| wrong(place, error))?));
        }
        #[cfg(feature = "http")]
        if let Some(base) = &table.http {
            let source = http(base, table, queries);
            return Ok(Arc::new(source.map_err(|error| wrong(place, error))?));
        }
        Err(lacking(place, table.kind(place)?))
    }
}

#[cfg(feature = "http")]
fn http<K, V>(
    base: &Secret,
    table: &SourceTable,
    queries: &QueriesTable,
) -> Result<HttpSource<K, V>, tiered::http::HttpBuildError>
where
    K: Key,
    V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    let mut source = HttpSource::get(format!("{}{}", base.0, queries.url.as_deref().unwrap_or_default()));
    if queries.put {
        source = source.put();
    }
    if queries.delete {
        source = source.delete();
    }
    if let Some(limit) = table.timeout {
        source = source.timeout(limit);
    }
    source.build()
}

#[cfg(any(feature = "postgres", feature = "mysql"))]
fn sql<D: SqlDatabase, K, V>(
    mut source: SqlBuilder<D, K, V>,
    table: &SourceTable,
    queries: &QueriesTable,
) -> Result<SqlSource<D, K, V>, SqlBuildError>
where
    K: Key,
    V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    if let Some(connections) = table.max_connections {
        source = source.max_connections(connections);
    }
    if let Some(limit) = table.timeout {
        source = source.statement_timeout(limit);
    }
    type Set<D, K, V> = fn(SqlBuilder<D, K, V>, &String) -> SqlBuilder<D, K, V>;
    type Setting<'a, D, K, V> = (&'a Option<String>, Set<D, K, V>);
    let settings: [Setting<'_, D, K, V>; 9] = [
        (&queries.load, |source, sql| source.load(sql)),
        (&queries.load_many, |source, sql| source.load_many(sql)),
        (&queries.save, |source, sql| source.save(sql)),
        (&queries.save_many, |source, sql| source.save_many(sql)),
        (&queries.remove, |source, sql| source.remove(sql)),
        (&queries.remove_many, |source, sql| source.remove_many(sql)),
        (&queries.ttl_ms_column, |source, name| source.ttl_ms_column(name)),
        (&queries.tags_column, |source, name| source.tags_column(name)),
        (&queries.version_column, |source, name| source.version_column(name)),
    ];
    settings
        .iter()
        .filter_map(|(text, set)| Some((text.as_ref()?, set)))
        .fold(source, |source, (text, set)| set(source, text))
        .build()
}

/// Counts what is written.
struct Counted(u64);

impl std::io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Config {
    fn policy(&self, table: &PolicyTable) -> Result<Policy, PolicyError> {
        match table {
            PolicyTable::Name(name) => name.parse(),
            PolicyTable::Module(ModuleTable { file, sha256 }) => {
                let policy = Policy::file(self.path(file));
                Ok(sha256.iter().fold(policy, |policy, digest| policy.sha256(digest)))
            }
        }
    }
}

impl TierTable {
    fn kind(&self, place: &str) -> Result<&'static str, ConfigError> {
        one_of(
            place,
            &[
                ("redis", self.redis.is_some()),
                ("redis-cluster", self.redis_cluster.is_some()),
                ("memcached", self.memcached.is_some()),
                ("disk", self.disk.is_some()),
                ("memory", self.memory.is_some()),
            ],
        )
    }
}

impl BusTable {
    fn kind(&self, place: &str) -> Result<&'static str, ConfigError> {
        one_of(place, &[("redis", self.redis.is_some()), ("redis-cluster", self.redis_cluster.is_some())])
    }
}

impl SourceTable {
    fn kind(&self, place: &str) -> Result<&'static str, ConfigError> {
        let given =
            [("postgres", self.postgres.is_some()), ("mysql", self.mysql.is_some()), ("http", self.http.is_some())];
        one_of(place, &given)
    }
}

impl QueriesTable {
    /// What is set and would do nothing, and what to do instead.
    fn idle(&self, is_http: bool) -> Option<(&'static str, &'static str)> {
        let headers = "what a response's headers say counts; leave it out";
        let settings = [
            ("put", !is_http && self.put, "set `save`"),
            ("delete", !is_http && self.delete, "set `remove`"),
            ("ttl-ms-column", is_http && self.ttl_ms_column.is_some(), headers),
            ("tags-column", is_http && self.tags_column.is_some(), headers),
            ("version-column", is_http && self.version_column.is_some(), headers),
        ];
        settings.into_iter().find(|(_, is_idle, _)| *is_idle).map(|(setting, _, instead)| (setting, instead))
    }

    fn queries(&self) -> [(&'static str, Option<&String>); 6] {
        [
            ("load", self.load.as_ref()),
            ("load-many", self.load_many.as_ref()),
            ("save", self.save.as_ref()),
            ("save-many", self.save_many.as_ref()),
            ("remove", self.remove.as_ref()),
            ("remove-many", self.remove_many.as_ref()),
        ]
    }
}

/// Where and what an error of the file is. Not in toml's words, for those have the line, which may have a password.
fn told(text: &str, error: &toml::de::Error) -> String {
    let mut message = without_value(error.message());
    if let Some(near) = did_you_mean(error.message()) {
        message += &format!("; did you mean `{near}`?");
    }
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return message };
    let begin = before.rfind('\n').map_or(0, |at| at + 1);
    let (line, column) = (before.matches('\n').count() + 1, before[begin..].chars().count() + 1);
    let key = text[begin..].lines().next().and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    // What stands there is a key, unless the line is one of a longer text.
    let is_key =
        |key: &&str| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let has_long_texts = text.contains("\"\"\"") || text.contains("'''");
    match key.filter(is_key).filter(|key| !has_long_texts && !message.contains(&format!("`{key}`"))) {
        Some(key) => format!("line {line}, column {column}, `{key}`: {message}"),
        None => format!("line {line}, column {column}: {message}"),
    }
}

/// Serde's words without the value that they quote: `invalid type: string "…", expected …`.
fn without_value(message: &str) -> String {
    let has_value = message.starts_with("invalid type: ") || message.starts_with("invalid value: ");
    match (message.find(['"', '`']), message.rfind(", expected ")) {
        (Some(value), Some(expected)) if has_value && value < expected => {
            format!("{}{}", message[..value].trim_end(), &message[expected..])
        }
        _ => message.into(),
    }
}

/// What was probably meant, from serde's words on an unknown field.
fn did_you_mean(message: &str) -> Option<String> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let name = quoted.next()?;
    nearest(name, &quoted.map(String::from).collect::<Vec<_>>())
}

/// A parameter of a rule. A time with its unit is that many milliseconds of the parameter whose name ends so.
fn parameter(place: &str, name: &str, value: &toml::Value) -> Result<(String, Value), ConfigError> {
    let setting = || format!("{place}.{name}");
    let value = match value {
        toml::Value::Boolean(yes) => Value::Flag(*yes),
        toml::Value::Integer(n) => Value::Integer(*n),
        toml::Value::Float(x) => Value::Number(*x),
        toml::Value::String(text) => {
            let begins_with_digit = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
            match humantime::parse_duration(text) {
                Ok(time) => {
                    i64::try_from(time.as_millis()).map_err(|_| wrong(setting(), "the time is too long"))?;
                    let name = if name.ends_with("-ms") { name.into() } else { format!("{name}-ms") };
                    return Ok((name, Value::from(time)));
                }
                Err(error) if begins_with_digit => {
                    return Err(wrong(setting(), format!("`{text}` is no time ({error}): write 250ms, 60s or 1h 30m")));
                }
                Err(_) => Value::Text(text.clone()),
            }
        }
        _ => return Err(wrong(setting(), "a rule has texts, numbers, times and true or false")),
    };
    Ok((name.into(), value))
}

/// A number where a time was meant, which the module would only say that it does not know.
fn check_units(place: &str, module: &PatternsModule, rules: &[(String, Value)]) -> Result<(), ConfigError> {
    let has = |name: &str| module.description().parameters.iter().any(|known| known.name == name);
    let is_bare = |(name, value): &&(String, Value)| {
        matches!(value, Value::Integer(_) | Value::Number(_)) && !has(name) && has(&format!("{name}-ms"))
    };
    match rules.iter().find(is_bare) {
        Some((name, value)) => {
            let message = format!("{value} of what? did you mean \"{value}s\", or `{name}-ms`, in milliseconds?");
            Err(wrong(format!("{place}.{name}"), message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
        [tier.near-by]
        memory = 1_000
        max-value = "64KiB"
        [source.shop]
        postgres = "postgres://app:${SHOP_PASSWORD}@localhost/shop"
        max-connections = 4
        timeout = "2s"
        [keyspace.products]
        capacity = 100
        policy = "s3-fifo"
        tiers = ["near-by"]
        compress-above = 4096
        [keyspace.products.source]
        from = "shop"
        load = "select name, price from products where id = :key"
        [keyspace.products.rule]
        ttl = "1m 30s"
        stale-if-error = "1h"
        jitter = 0.1
        negative-ttl-ms = 500
    "#;

    fn refusal(text: &str) -> String {
        Config::from_toml(text).expect_err(text).to_string()
    }

    #[cfg(feature = "disk")]
    #[tokio::test]
    async fn a_tier_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("shop.toml");
        let text = "[tier.own]\ndisk = 'words.cache'\nmax-bytes = '8MiB'\nmax-value = 100\npolicy = 'lru'\n\
                    [keyspace.words]\ncapacity = 10\ntiers = ['own']";
        std::fs::write(&file, text).unwrap();
        let config = Config::read(&file).unwrap();
        let stores = config.open().await.unwrap();
        let words = stores.keyspace::<String, String>("words").unwrap().build().unwrap();
        words.insert("a".into(), "b".to_string()).await.unwrap();
        let (_, disk) = stores.tiers_of("words").next().unwrap();
        assert!(disk.get("words:a").await.unwrap().copy.is_some() && !disk.is_shared());
        assert!(disk.summary().starts_with("8 MiB on disk"), "{}", disk.summary());
        // Beside the service, which has it open.
        let found: Vec<_> = config.disk_tiers().collect();
        assert_eq!(found, ["own"]);
        assert_eq!(config.disk_path("own").unwrap(), directory.path().join("words.cache"));
        let refused = config.look_at_disk("own").await.unwrap_err().to_string();
        assert!(refused.contains("tier.own") && refused.contains("in use"), "{refused}");
        assert!(config.for_operators().open().await.is_ok(), "operators leave it alone");
        let wrong = Config::from_toml("[tier.own]\ndisk = 'a'\nprefix = 'b'").unwrap_err().to_string();
        assert!(wrong.contains("tier.own.prefix") && wrong.contains("leave it out"), "{wrong}");
    }

    #[test]
    fn times_in_rules_are_milliseconds() {
        let rules = Config::from_toml(SHOP).unwrap().rules("products").unwrap();
        let of = |name: &str| rules.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        assert_eq!(of("ttl-ms"), Some(Value::Integer(90_000)));
        assert_eq!(of("stale-if-error-ms"), Some(Value::Integer(3_600_000)));
        assert_eq!((of("jitter"), of("negative-ttl-ms")), (Some(Value::Number(0.1)), Some(Value::Integer(500))));
        let ms = parameter("rule", "ttl", &toml::Value::String("900us".into())).unwrap();
        assert_eq!(ms, ("ttl-ms".into(), Value::Integer(1)), "less than one is one, and not none");
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        for (text, words) in [
            ("[keyspace.a]\ncapasity = 1", &["line 2", "capasity", "did you mean `capacity`?"][..]),
            ("[keyspace.a]\n", &["keyspace.a", "`capacity`", "`max-bytes`"]),
            ("[keyspace.a]\ncapacity = 0", &["keyspace.a", "1 or more"]),
            ("[keyspace.a]\ncapacity = -1", &["line 2", "`capacity`", "integer, expected"]),
            ("[tier.a]\nmemory = 0", &["tier.a.memory", "1 or more"]),
            ("[source.a]\npostgres = 'x'\nmax-connections = 0", &["source.a.max-connections", "1 or more"]),
            ("[source.a]\nhttp = 'x'\nmax-connections = 5", &["source.a.max-connections", "leave it out"]),
            ("[source.a]\npostgres = 'x'\ntimeout = '0s'", &["source.a.timeout", "set more"]),
            ("[keyspace.a]\ncapacity = 1\ntier-timeout = '0s'", &["keyspace.a.tier-timeout", "set more"]),
            ("[keyspace.a]\ncapacity = 1\nload-timeout = '0ms'", &["keyspace.a.load-timeout", "set more"]),
            ("[keyspace.a]\ncapacity = 1\nsave-timeout = '0s'", &["keyspace.a.save-timeout", "set more"]),
            ("[keyspace.a]\ncapacity = 1\nmax-refreshes = 0", &["keyspace.a.max-refreshes", "1 or more"]),
            (
                "[keyspace.a]\ncapacity = 1\ntiers = ['m', 'm']\n[tier.m]\nmemory = 1",
                &["keyspace.a.tiers", "`m` is there twice"],
            ),
            (
                "[keyspace.a]\ncapacity = 1\n[keyspace.a.rule]\nttl = '60s'\nttl-ms = 5",
                &["keyspace.a.rule.ttl", "`ttl-ms`", "keep one"],
            ),
            ("[bus.a]\nprefix = 'x'", &["bus.a", "`redis`", "`redis-cluster`"]),
            ("[keyspace.'a:b']\ncapacity = 1", &["keyspace.a:b", "colon"]),
            (
                "[keyspace.a]\ncapacity = 1\ntiers = ['shard']\n[tier.shared]\nmemory = 1",
                &["keyspace.a.tiers", "did you mean `shared`?"],
            ),
            ("[keyspace.a]\ncapacity = 1\njournal = true", &["keyspace.a.journal", "[journal]", "path"]),
            ("[keyspace.a]\ncapacity = 1\n[keyspace.a.rule]\nttl = '5 minuts'", &["keyspace.a.rule.ttl", "1h 30m"]),
            ("[keyspace.a]\ncapacity = 1\n[keyspace.a.rule]\nttl = '-5s'", &["keyspace.a.rule.ttl", "no time"]),
            ("[tier.a]\nprefix = 'x'", &["tier.a", "`redis`", "`memory`"]),
            ("[tier.a]\nmemory = 1\nredis = 'redis://x'", &["tier.a", "exclude each other"]),
            ("[tier.a]\nmemory = 1\nmax-value = '5 apples'", &["line 3", "64KiB"]),
            (
                "[source.a]\nhttp = 'http://x'\n[keyspace.k]\ncapacity = 1\n[keyspace.k.source]\nfrom = 'a'\nload = 'x'",
                &["keyspace.k.source", "`load` is SQL"],
            ),
            (
                "[source.a]\npostgres = 'x'\n[keyspace.k]\ncapacity = 1\n[keyspace.k.source]\nfrom = 'a'\nload = 'x'\nput = true",
                &["keyspace.k.source.put", "set `save`"],
            ),
            (
                "[source.a]\nhttp = 'x'\n[keyspace.k]\ncapacity = 1\n[keyspace.k.source]\nfrom = 'a'\nurl = '/{key}'\n\
                 ttl-ms-column = 'x'",
                &["keyspace.k.source.ttl-ms-column", "headers"],
            ),
            ("= 1", &["line 1"]),
        ] {
            let said = refusal(text);
            let missing = words.iter().find(|word| !said.contains(**word));
            assert_eq!(missing, None, "{said}");
        }
    }

    #[test]
    fn no_error_repeats_what_may_be_a_password() {
        for text in [
            "[tier.t]\nredis = \"redis://:hunter2@127.0.0.1/0\" x",
            "[tier.t]\nredis = \"redis://:hunter2@127.0.0.1/0",
            "[tier.t]\nredis-cluster = \"redis://:hunter2@127.0.0.1/0\"",
            "[tier.t]\nredis = [\"redis://:hunter2@127.0.0.1/0\"]",
            "[tier.t]\nreddis = \"redis://:hunter2@127.0.0.1/0\"",
            "[tier.t]\nredis = redis://:hunter2@127.0.0.1/0",
            "[tier.t]\nredis = \"\"\"redis://:\nhunter2 = \\q",
        ] {
            let said = refusal(text);
            assert!(!said.contains("hunter2") && said.contains("line "), "{said}");
        }
    }

    #[test]
    fn passwords_from_the_environment_are_encoded_where_a_url_has_them() {
        let password = |text: &str| expanded(text, "x", &|_| Some("a/b#c?d@e%f:g".into())).unwrap();
        let encoded = "a%2Fb%23c%3Fd%40e%25f%3Ag";
        assert_eq!(password("redis://:${PW}@h:1/0"), format!("redis://:{encoded}@h:1/0"));
        assert_eq!(password("redis://${U}:$$${PW}@h"), format!("redis://{encoded}:${encoded}@h"));
        // Elsewhere it is what it is: a URL as a whole, a host, a query, a path.
        for text in ["${URL}", "redis://${HOST}/0", "http://h/?key=${KEY}&a=@", "${HOME}/cache", "http://u:p@${HOST}/"]
        {
            let name = &text[text.find('$').unwrap()..=text.find('}').unwrap()];
            assert_eq!(password(text), text.replace(name, "a/b#c?d@e%f:g"));
        }
    }

    #[tokio::test]
    async fn an_address_that_breaks_within_its_password_is_refused_without_it() {
        for (kind, address) in [
            ("tier.a.redis", "[tier.a]\nredis = 'redis://:hun/ter2@h:1'"),
            ("source.a.postgres", "[source.a]\npostgres = 'postgres://app:12/ter2@h/shop'"),
            ("source.a.mysql", "[source.a]\nmysql = 'mysql://app:1?ter2@h/shop'"),
            ("tier.a", "[tier.a]\nmemcached = 'memcache://u:hunter2@h:11211'"),
            ("tier.a", "[tier.a]\nmemcached = 'u:hunter2@h:11211'"),
        ] {
            let said = Config::from_toml(address).unwrap().open().await.unwrap_err().to_string();
            assert!(said.starts_with(kind) && said.contains("write ") && !said.contains("ter2"), "{said}");
        }
    }

    #[cfg(feature = "postgres")]
    #[tokio::test]
    async fn a_keyspace_is_checked_as_a_service_would_build_it() {
        let directory = tempfile::tempdir().unwrap();
        let shop = "[source.shop]\npostgres = 'postgres://h/shop'\n[tier.near]\nmemory = 9\n[tier.own]\ndisk = 'd'\n\
                    [journal]\npath = 'j'\n[source.elsewhere]\nhttp = '${NOT_SET}'\n[keyspace.k]\ncapacity = 10\n";
        let source = "[keyspace.k.source]\nfrom = 'shop'\nload = 'select :key'\n";
        let checked = async |rest: String| {
            let file = directory.path().join("shop.toml");
            std::fs::write(&file, format!("{shop}{rest}")).unwrap();
            Config::read(&file).unwrap().check_keyspace("k").await.map_err(|error| error.to_string())
        };
        let fleet = "[keyspace.k.rule]\nflight = 'fleet'";
        checked(format!("tiers = ['near']\n{source}{fleet}")).await.unwrap();
        // Without `save`, it would only be refused when the service starts.
        let through = "[keyspace.k.rule]\nwrite = 'write-through'";
        checked(format!("{source}save = 'select :key, :value'\n{through}")).await.unwrap();
        checked("tiers = ['own', 'near']\njournal = true".into()).await.unwrap();
        for (rest, words) in [
            (format!("policy = 's3-fifoo'\n{source}"), "did you mean"),
            ("policy = { file = 'nope.wasm' }".into(), "nope.wasm"),
            (format!("tiers = ['own']\n{source}{fleet}"), "flight"),
            (format!("{source}{through}"), "write"),
            ("[keyspace.k.source]\nfrom = 'shop'\nload = 'select :kee'".into(), ":kee"),
            ("[keyspace.k.rule]\nttl = 60".into(), "did you mean \"60s\", or `ttl-ms`"),
        ] {
            let said = checked(rest).await.unwrap_err();
            assert!(said.starts_with("keyspace.k") && said.contains(words), "{said}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was opened");
    }

    #[test]
    fn what_no_keyspace_uses_is_listed() {
        let text = "[tier.a]\nmemory = 1\n[tier.b]\nmemory = 1\n[bus.n]\nredis = 'redis://h'\n[source.s]\nhttp = 'http://h'\n\
                    [journal]\npath = 'j'\n[keyspace.k]\ncapacity = 1\ntiers = ['b']";
        assert_eq!(Config::from_toml(text).unwrap().unused(), ["tier a", "bus n", "source s", "journal"]);
    }

    #[cfg(feature = "redis")]
    #[tokio::test]
    async fn a_bus_over_a_cluster() {
        let text = "[bus.news]\nredis-cluster = ['redis://127.0.0.1:1', 'redis://${HOST}:2']\n[keyspace.k]\ncapacity = 1\nbus = 'news'";
        let stores = Config::from_toml(text).unwrap().open_with(|_| Some("127.0.0.2".into())).await.unwrap();
        assert!(stores.buses["news"].summary().contains("127.0.0.2:2"), "{}", stores.buses["news"].summary());
    }

    #[cfg(all(feature = "disk", feature = "journal"))]
    #[tokio::test]
    async fn paths_come_from_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let text =
            "[tier.own]\ndisk = '${PLACE}/a.cache'\n[journal]\npath = '${PLACE}/$$j'\n[keyspace.k]\ncapacity = 1";
        let config = Config::from_toml(text).unwrap();
        let stores = config.open_with(|_| Some(directory.path().to_str().unwrap().into())).await.unwrap();
        assert!(directory.path().join("a.cache").exists() && directory.path().join("$j").exists());
        // It is not asked about twice.
        assert_eq!(stores.config().disk_path("own").unwrap(), directory.path().join("a.cache"));
    }

    #[tokio::test]
    async fn secrets_come_from_the_environment_and_are_not_shown() {
        let config = Config::from_toml(SHOP).unwrap();
        let missing = config.open_with(|_| None).await.unwrap_err().to_string();
        assert!(missing.contains("source.shop.postgres") && missing.contains("SHOP_PASSWORD"), "{missing}");
        let stores = config.open_with(|name| (name == "SHOP_PASSWORD").then(|| "hunter2".into())).await.unwrap();
        assert!(!format!("{stores:?} {:?} {config:?}", stores.config).contains("hunter2"));
        let url = stores.config.source["shop"].postgres.as_ref().unwrap();
        assert_eq!(url.0, "postgres://app:hunter2@localhost/shop");
        assert_eq!(expanded("a$$b${X}", "x", &|_| Some("$y".into())).unwrap(), "a$b$y");
        assert!(expanded("a$b", "x", &|_| None).is_err());
    }

    #[tokio::test]
    async fn a_keyspace_is_built_as_the_file_says() {
        let config = Config::from_toml(
            "[tier.far]\nmemory = 100\n[keyspace.words]\ncapacity = 10\ntiers = ['far']\n[keyspace.words.rule]\nttl = '1m'",
        );
        let stores = config.unwrap().open().await.unwrap();
        let words = stores.keyspace::<String, String>("words").unwrap().build().unwrap();
        words.insert("a".into(), "b".to_string()).await.unwrap();
        let (_, far) = stores.tiers_of("words").next().unwrap();
        let copy = far.get("words:a").await.unwrap().copy.unwrap();
        assert_eq!(copy.value.as_deref(), Some(&b"\"b\""[..]));
        assert!(copy.fresh_ms > 50_000 && copy.fresh_ms <= 60_000);
        assert!(!far.is_shared(), "no other process has this memory");
        let unknown = stores.keyspace::<String, String>("wods").unwrap_err().to_string();
        assert!(unknown.contains("did you mean `words`?"), "{unknown}");
        // A rule that the module does not know is refused by it, with the nearest name.
        let wrong = Config::from_toml("[keyspace.a]\ncapacity = 1\n[keyspace.a.rule]\ntll = '1m'").unwrap();
        let said = wrong.check_keyspace("a").await.unwrap_err().to_string();
        assert!(said.contains("ttl-ms"), "{said}");
    }
}
