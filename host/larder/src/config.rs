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
//! [`Stores::keyspace`] a [`TieredBuilder`] with all that the file says. `${NAME}` stands for a variable of the environment
//! (`$$` for a dollar sign); what came from there, and whatever looks like a password, is never printed. Times are written
//! as `250ms`, `60s`, `1h 30m`; sizes as `64KiB`, `10MB`.
//!
//! The tables, and what may stand in them:
//!
//! | table | keys |
//! |---|---|
//! | `[patterns]` | `file`, `sha256`: another module than the built-in one |
//! | `[tier.NAME]` | one of `redis`, `redis-cluster`, `memcached`, `disk` (a file), `memory` (entries); `prefix`, `max-value`; `max-bytes` and `policy` of a `disk` |
//! | `[bus.NAME]` | `redis` |
//! | `[source.NAME]` | one of `postgres`, `mysql`, `http`; `max-connections`, `timeout` |
//! | `[journal]` | `path`; `max-entries`, `max-bytes`, `flush-after`, `flush-batch` |
//! | `[keyspace.NAME]` | `capacity` (entries) or `max-bytes`; `policy`, `tiers`, `bus`, `journal`, `key` (`text` or `integer`: how operators' commands ask the source), `codec` (`json`, `postcard`), `compress-above`, `tier-timeout`, `load-timeout`, `save-timeout`, `max-refreshes` |
//! | `[keyspace.NAME.source]` | `from`; for SQL `load`, `load-many`, `save`, `save-many`, `remove`, `remove-many`, `ttl-ms-column`, `tags-column`, `version-column`; for HTTP `url` (what comes after the source's, with `{key}`), `put`, `delete` (whether it can be saved to) |
//! | `[keyspace.NAME.rule]` | what the module's card lists: `larder policy inspect` shows it. `ttl = "60s"` is `ttl-ms = 60000` |

// A file may name any store, and is told which feature it needs: so all tables are read, and what is in them is used where the
// adapters are.
#![cfg_attr(not(all(feature = "redis", feature = "postgres", feature = "mysql", feature = "http")), allow(unused))]

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

use crate::engine::steps::Abilities;
use crate::policy::nearest;
#[cfg(feature = "disk")]
use crate::tiered::DiskTier;
#[cfg(feature = "http")]
use crate::tiered::HttpSource;
#[cfg(feature = "memcached")]
use crate::tiered::MemcachedTier;
#[cfg(any(feature = "postgres", feature = "mysql"))]
use crate::tiered::sql::{SqlBuildError, SqlBuilder, SqlDatabase, SqlSource};
use crate::tiered::{self, Bus, Codec, Journal, JournalError, Key, MemoryTier, Tier};
#[cfg(feature = "redis")]
use crate::tiered::{RedisBus, RedisServer, RedisTier};
use crate::{Cache, Patterns, Policy, PolicyError, TieredBuilder, Value};

/// What a file says. See the [module](self).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(skip)]
    origin: Option<PathBuf>,
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

impl Secret {
    /// With what the environment has.
    fn resolve(&self, setting: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, ConfigError> {
        let mut out = String::new();
        let mut rest = self.0.as_str();
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
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
            out.push_str(&value);
            rest = after;
        }
        out.push_str(rest);
        Ok(out)
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
    redis: Secret,
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
        let config: Config = toml::from_str(text).map_err(|error| {
            let message = error.to_string();
            let meant =
                did_you_mean(error.message()).map(|near| format!("did you mean `{near}`?\n")).unwrap_or_default();
            ConfigError::Syntax { place: String::new(), message: format!("{message}{meant}") }
        })?;
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
        table.rule.iter().map(|(name, value)| parameter(&format!("keyspace.{keyspace}.rule"), name, value)).collect()
    }

    /// What can be told before anything is opened.
    fn check(&self) -> Result<(), ConfigError> {
        for (name, tier) in &self.tier {
            let place = format!("tier.{name}");
            let kind = tier.kind(&place)?;
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
        for (name, source) in &self.source {
            source.kind(&format!("source.{name}"))?;
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
            for tier in &keyspace.tiers {
                known(&format!("{place}.tiers"), tier, "tier", &self.tier)?;
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
        let patterns = config.patterns();
        let mut tiers = BTreeMap::new();
        for (name, table) in &config.tier {
            tiers.insert(name.clone(), config.open_tier(&format!("tier.{name}"), table).await?);
        }
        let mut buses = BTreeMap::new();
        for (name, table) in &config.bus {
            buses.insert(name.clone(), open_bus(&format!("bus.{name}"), table)?);
        }
        let journal = match &config.journal {
            Some(_) => Some(config.open_journal().await?),
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

    /// Has the module look at the rule of a keyspace, and opens no store for that.
    ///
    /// # Errors
    /// The module cannot be loaded, or refuses the rule.
    pub fn check_rules(&self, keyspace: &str) -> Result<(), ConfigError> {
        let table = known("keyspace", keyspace, "keyspace", &self.keyspace)?;
        let has = |query: fn(&QueriesTable) -> bool| table.source.as_ref().is_some_and(query);
        let given = [
            (Abilities::LOADS, has(|source| source.load.is_some() || source.url.is_some())),
            (Abilities::SAVES, has(|source| source.save.is_some() || source.put)),
            (Abilities::LOGS, table.journal),
            (Abilities::ANNOUNCES, table.bus.is_some()),
            (Abilities::LEASES, !table.tiers.is_empty()),
        ];
        let rules = self.rules(keyspace)?;
        let place = |error| wrong(format!("keyspace.{keyspace}.rule"), error);
        let module = self.patterns().load().map_err(|error| wrong("patterns", error))?;
        let is_shared =
            |name: &String| self.tier.get(name).is_some_and(|table| table.disk.is_none() && table.memory.is_none());
        let shared = table.tiers.iter().zip(1..8).filter(|(name, _)| is_shared(name));
        let shared = shared.fold(0u8, |all, (_, at)| all | 1 << at);
        tiered::check_rule(&module, keyspace, (table.tiers.len(), shared), &given, &rules).map_err(place)
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
        let mut config = self.clone();
        config.resolve(&|name| std::env::var(name).ok())?;
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
        let put = |secret: &mut Secret, place: String| -> Result<(), ConfigError> {
            secret.0 = secret.resolve(&place, variable)?;
            Ok(())
        };
        for (name, table) in &mut self.tier {
            let single = [("redis", &mut table.redis), ("memcached", &mut table.memcached)];
            for (kind, secret) in single.into_iter().filter_map(|(kind, secret)| Some((kind, secret.as_mut()?))) {
                put(secret, format!("tier.{name}.{kind}"))?;
            }
            for secret in table.redis_cluster.iter_mut().flatten() {
                put(secret, format!("tier.{name}.redis-cluster"))?;
            }
        }
        for (name, table) in &mut self.bus {
            put(&mut table.redis, format!("bus.{name}.redis"))?;
        }
        for (name, table) in &mut self.source {
            let given = [("postgres", &mut table.postgres), ("mysql", &mut table.mysql), ("http", &mut table.http)];
            for (kind, secret) in given.into_iter().filter_map(|(kind, secret)| Some((kind, secret.as_mut()?))) {
                put(secret, format!("source.{name}.{kind}"))?;
            }
        }
        Ok(())
    }

    async fn open_tier(&self, place: &str, table: &TierTable) -> Result<Arc<dyn Tier>, ConfigError> {
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

    /// The tiers that lie on disk, with their files: each is one process's own.
    pub fn disk_tiers(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.tier.iter().filter_map(|(name, table)| Some((name.as_str(), self.path(table.disk.as_ref()?))))
    }

    /// Opens a disk tier, and nothing else.
    ///
    /// # Errors
    /// There is none of this name, a process has it open, or what lies there is none.
    #[cfg(feature = "disk")]
    pub async fn open_disk(&self, name: &str) -> Result<DiskTier, ConfigError> {
        let place = format!("tier.{name}");
        let table = known(&place, name, "tier", &self.tier)?;
        let path = table.disk.as_ref().ok_or_else(|| wrong(&place, "it does not lie on disk"))?;
        self.open_disk_of(&place, path, table).await
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

    /// Whether there is a journal.
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Opens the journal, and nothing else.
    ///
    /// # Errors
    /// There is none, it is open elsewhere, or it is damaged.
    pub async fn open_journal(&self) -> Result<Journal, ConfigError> {
        let table =
            self.journal.as_ref().ok_or_else(|| wrong("journal", "there is no [journal]: nothing is saved later"))?;
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
    if let Some(server) = redis_server(place, Some(&table.redis), None)? {
        let mut bus = RedisBus::builder(&server);
        if let Some(prefix) = &table.prefix {
            bus = bus.prefix(prefix);
        }
        return Ok(Arc::new(bus.build().map_err(|error| wrong(place, error))?));
    }
    Err(lacking(place, "redis"))
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
        for (parameter, value) in self.config.rules(name)? {
            builder = builder.rule(parameter, value);
        }
        match &table.source {
            Some(queries) => self.with_source(&format!("{place}.source"), queries, builder),
            None => Ok(builder),
        }
    }

    fn with_source<K, V>(
        &self,
        place: &str,
        queries: &QueriesTable,
        builder: TieredBuilder<K, V>,
    ) -> Result<TieredBuilder<K, V>, ConfigError>
    where
        K: Key,
        V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        let table = known(place, &queries.from, "source", &self.config.source)?;
        #[cfg(feature = "postgres")]
        if let Some(url) = &table.postgres {
            let source = sql(SqlSource::<sqlx::Postgres, K, V>::connect(&url.0), table, queries);
            return Ok(builder.source(source.map_err(|error| wrong(place, error))?));
        }
        #[cfg(feature = "mysql")]
        if let Some(url) = &table.mysql {
            let source = sql(SqlSource::<sqlx::MySql, K, V>::connect(&url.0), table, queries);
            return Ok(builder.source(source.map_err(|error| wrong(place, error))?));
        }
        #[cfg(feature = "http")]
        if let Some(base) = &table.http {
            let source = http(base, table, queries);
            return Ok(builder.source(source.map_err(|error| wrong(place, error))?));
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

impl SourceTable {
    fn kind(&self, place: &str) -> Result<&'static str, ConfigError> {
        let given =
            [("postgres", self.postgres.is_some()), ("mysql", self.mysql.is_some()), ("http", self.http.is_some())];
        one_of(place, &given)
    }
}

impl QueriesTable {
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
                    let ms = i64::try_from(time.as_millis()).map_err(|_| wrong(setting(), "the time is too long"))?;
                    let name = if name.ends_with("-ms") { name.into() } else { format!("{name}-ms") };
                    return Ok((name, Value::Integer(ms)));
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
        assert_eq!(found, [("own", directory.path().join("words.cache"))]);
        let refused = config.open_disk("own").await.unwrap_err().to_string();
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
        assert!(Config::from_toml(SHOP).unwrap().check_rules("products").is_ok());
    }

    #[test]
    fn what_is_wrong_is_named_with_the_remedy() {
        for (text, words) in [
            ("[keyspace.a]\ncapasity = 1", &["line 2", "capasity", "did you mean `capacity`?"][..]),
            ("[keyspace.a]\n", &["keyspace.a", "`capacity`", "`max-bytes`"]),
            ("[keyspace.a]\ncapacity = 0", &["keyspace.a", "1 or more"]),
            ("[keyspace.a]\ncapacity = -1", &["line 2", "capacity = -1"]),
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
            ("= 1", &["line 1"]),
        ] {
            let said = refusal(text);
            let missing = words.iter().find(|word| !said.contains(**word));
            assert_eq!(missing, None, "{said}");
        }
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
        let dollars = Secret("a$$b${X}".into()).resolve("x", |_| Some("$y".into())).unwrap();
        assert_eq!(dollars, "a$b$y");
        assert!(Secret("a$b".into()).resolve("x", |_| None).is_err());
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
        let said = wrong.check_rules("a").unwrap_err().to_string();
        assert!(said.contains("ttl-ms"), "{said}");
    }
}
