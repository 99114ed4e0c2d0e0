//! What an operator needs at 3 a.m.: `larder keys|get|invalidate|tags|journal|doctor`, against the configuration file of the
//! service.
//!
//! The commands use the stores that the service uses, as one more process. They follow no rule, so that nothing is loaded,
//! kept or saved by looking; and they leave the journal to the service that has it open, but for `larder journal`, which is for
//! a service that is stopped.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use larder::tiered::{DiskSetupError, FarCopy, Group, JournalContents, JournalError, Logged, Tier, TierError, Tiered};
use larder::{Config, ConfigError, Stores};
use serde::Serialize;
use serde_json::Value as Json;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::args::{Doctor, Get, Invalidate, Journal, JournalCommand, Keys, ListFormat, Tags, exit};

/// A store that has not answered by then is down.
const PATIENCE: Duration = Duration::from_secs(5);

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime cannot be started")
}

/// The stores of a configuration, as an operator uses them.
async fn open(path: &Path) -> anyhow::Result<Stores> {
    Ok(Config::read(path)?.for_operators().open().await?)
}

/// Those tiers of a keyspace that are asked about.
fn tiers<'a>(
    stores: &'a Stores,
    keyspace: &str,
    only: Option<&str>,
) -> anyhow::Result<Vec<(&'a str, &'a Arc<dyn Tier>)>> {
    stores.config().rules(keyspace)?;
    let tiers: Vec<_> = stores.tiers_of(keyspace).filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    if tiers.is_empty() {
        match only {
            Some(only) => bail!("keyspace {keyspace} does not use a tier `{only}`: see [keyspace.{keyspace}] tiers"),
            None => {
                bail!("keyspace {keyspace} has no far tiers: what is in a service's memory only that service can show")
            }
        }
    }
    Ok(tiers)
}

async fn asked<T>(
    name: &str,
    tier: &Arc<dyn Tier>,
    call: impl Future<Output = Result<T, TierError>>,
) -> anyhow::Result<T> {
    let answer = timeout(PATIENCE, call).await.unwrap_or(Err(TierError::TimedOut));
    answer.with_context(|| format!("tier `{name}` ({})", tier.summary()))
}

/// `larder keys`.
///
/// # Errors
/// The configuration is wrong, or a tier does not answer.
pub fn keys(args: &Keys, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let stores = open(&args.config.config).await?;
        let named = format!("{}:", args.keyspace);
        let mut left = args.limit;
        for (name, tier) in tiers(&stores, &args.keyspace, args.tier.as_deref())? {
            let prefix = format!("{named}{}", args.prefix.as_deref().unwrap_or_default());
            let mut cursor: Option<String> = None;
            loop {
                let page = asked(name, tier, tier.keys(&prefix, cursor.as_deref(), left.clamp(1, 1_000))).await?;
                for key in page.keys.iter().take(left) {
                    let key = key.strip_prefix(&named).unwrap_or(key);
                    match args.format {
                        ListFormat::Table => writeln!(out, "{key}")?,
                        ListFormat::Json => {
                            serde_json::to_writer(&mut *out, &serde_json::json!({ "tier": name, "key": key }))?;
                            writeln!(out)?;
                        }
                    }
                }
                left = left.saturating_sub(page.keys.len());
                cursor = page.next;
                if cursor.is_none() || left == 0 {
                    break;
                }
            }
            if left == 0 {
                eprintln!("the first {} keys; --limit for more, --prefix for others", args.limit);
                break;
            }
        }
        Ok(exit::SUCCESS)
    })
}

/// What a tier has of a key.
#[derive(Serialize)]
struct Shown<'a> {
    tier: &'a str,
    found: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    damaged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy: Option<ShownCopy>,
}

#[derive(Serialize)]
struct ShownCopy {
    age_ms: u64,
    fresh_ms: Option<u64>,
    stale_ms: Option<u64>,
    rescue_ms: Option<u64>,
    load_us: u64,
    bytes: usize,
    negative: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    validator: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Json>,
}

fn finite(ms: u64) -> Option<u64> {
    (ms != FarCopy::FOREVER).then_some(ms)
}

/// `larder get`.
///
/// # Errors
/// The configuration is wrong, or a tier does not answer.
pub fn get(args: &Get, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let stores = open(&args.config.config).await?;
        let codec = stores.codec::<Json>(&args.keyspace)?;
        let named = format!("{}:", args.keyspace);
        let name_of_key = format!("{named}{}", args.key);
        let mut has_found = false;
        for (name, tier) in tiers(&stores, &args.keyspace, args.tier.as_deref())? {
            let looked = asked(name, tier, tier.get(&name_of_key)).await?;
            has_found |= looked.copy.is_some();
            let copy = looked.copy.map(|copy| ShownCopy {
                age_ms: copy.age_ms,
                fresh_ms: finite(copy.fresh_ms),
                stale_ms: finite(copy.stale_ms),
                rescue_ms: finite(copy.rescue_ms),
                load_us: copy.cost_us,
                bytes: copy.value.as_ref().map_or(0, |value| value.len()),
                negative: copy.value.is_none(),
                validator: copy.validator.as_deref().map(Into::into),
                tags: copy.tags.iter().map(|tag| tag.strip_prefix(&named).unwrap_or(tag).to_string()).collect(),
                // What cannot be decoded is shown by its size.
                value: copy.value.as_ref().and_then(|bytes| codec.decode(bytes).ok()),
            });
            let shown = Shown { tier: name, found: copy.is_some(), damaged: looked.damaged, copy };
            match args.format {
                ListFormat::Json => writeln!(out, "{}", serde_json::to_string(&shown)?)?,
                ListFormat::Table => show(&shown, &tier.summary(), out)?,
            }
        }
        Ok(if has_found { exit::SUCCESS } else { exit::FAILURE })
    })
}

fn show(shown: &Shown<'_>, summary: &str, out: &mut impl Write) -> io::Result<()> {
    write!(out, "{} ({summary}): ", shown.tier)?;
    let Some(copy) = &shown.copy else {
        return writeln!(
            out,
            "{}",
            if shown.damaged { "what is there cannot be read, and counts as absent" } else { "absent" }
        );
    };
    let span = |ms: Option<u64>| {
        ms.map_or("without end".into(), |ms| humantime::format_duration(Duration::from_millis(ms)).to_string())
    };
    writeln!(out, "{}", if copy.negative { "the source has no such key" } else { "a copy" })?;
    writeln!(out, "  age        {}", span(Some(copy.age_ms)))?;
    writeln!(out, "  fresh for  {}", span(copy.fresh_ms))?;
    writeln!(out, "  stale for  {} (at need {})", span(copy.stale_ms), span(copy.rescue_ms))?;
    writeln!(out, "  load took  {}", humantime::format_duration(Duration::from_micros(copy.load_us)))?;
    writeln!(out, "  bytes      {}", copy.bytes)?;
    if let Some(validator) = &copy.validator {
        writeln!(out, "  validator  {validator}")?;
    }
    if !copy.tags.is_empty() {
        writeln!(out, "  tags       {}", copy.tags.join(", "))?;
    }
    match &copy.value {
        Some(value) => writeln!(out, "  value      {value}"),
        None if copy.negative => Ok(()),
        None => writeln!(out, "  value      not to be read without the service's types"),
    }
}

/// `larder invalidate`.
///
/// # Errors
/// The configuration is wrong, or some tier or process could not be told.
pub fn invalidate(args: &Invalidate, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let stores = open(&args.config.config).await?;
        let has_bus = stores.has_bus(&args.keyspace);
        let cache: Tiered<String, Json> = stores.keyspace(&args.keyspace)?.build()?;
        let mut what = Vec::new();
        if !args.keys.is_empty() {
            what.push(format!("{} keys", args.keys.len()));
            match args.soft {
                true => {
                    for key in &args.keys {
                        cache.expire(key).await?;
                    }
                }
                false => cache.invalidate_many(args.keys.clone()).await?,
            }
        }
        for tag in &args.tag {
            what.push(format!("tag {tag}"));
            if args.soft { cache.expire_tag(tag).await } else { cache.invalidate_tag(tag).await }?;
        }
        for prefix in args.prefix.iter().map(String::as_str).chain(args.all.then_some("")) {
            what.push(if prefix.is_empty() { "everything".into() } else { format!("prefix {prefix}") });
            if args.soft { cache.expire_prefix(prefix).await } else { cache.invalidate_prefix(prefix).await }?;
        }
        writeln!(
            out,
            "{} in {}: {}",
            if args.soft { "expired" } else { "invalidated" },
            args.keyspace,
            what.join(", ")
        )?;
        if !has_bus {
            eprintln!(
                "note: keyspace {} has no bus: what services have in their own memory and on their disks lives until its time is over",
                args.keyspace
            );
        }
        Ok(exit::SUCCESS)
    })
}

/// `larder tags`.
///
/// # Errors
/// The configuration is wrong, or a tier does not answer or does not list groups.
pub fn tags(args: &Tags, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let stores = open(&args.config.config).await?;
        let named = format!("{}:", args.keyspace);
        for (name, tier) in tiers(&stores, &args.keyspace, args.tier.as_deref())? {
            let mut groups = asked(name, tier, tier.groups()).await?;
            groups.sort_by_key(|version| std::cmp::Reverse(version.hard.max(version.soft)));
            for version in groups {
                let (kind, text) = match &version.group {
                    Group::Tag(tag) => ("tag", tag),
                    Group::Prefix(prefix) => ("prefix", prefix),
                    _ => continue,
                };
                let Some(text) = text.strip_prefix(&named) else { continue };
                match args.format {
                    ListFormat::Table => {
                        let text = if kind == "prefix" && text.is_empty() { "(everything)" } else { text };
                        writeln!(out, "{name}  {kind:6}  {text}  hard {} soft {}", version.hard, version.soft)?;
                    }
                    ListFormat::Json => {
                        let row = serde_json::json!({
                            "tier": name, kind: text, "hard": version.hard, "soft": version.soft
                        });
                        writeln!(out, "{row}")?;
                    }
                }
            }
        }
        Ok(exit::SUCCESS)
    })
}

/// What the journal of a configuration's file has. It is not opened for that, so that it stays as the service left it, and the
/// service's.
async fn look_at_journal(config: &Path) -> anyhow::Result<JournalContents> {
    let text = std::fs::read_to_string(config).with_context(|| config.display().to_string())?;
    let table: toml::Table = text.parse().with_context(|| config.display().to_string())?;
    let path = table.get("journal").and_then(|journal| journal.get("path")).and_then(toml::Value::as_str);
    let path = path.context("journal: there is no [journal]: nothing is saved later")?;
    // Relative to the configuration's directory, as `Config::read` has it.
    Ok(larder::tiered::Journal::look(config.parent().unwrap_or(Path::new("")).join(path)).await?)
}

/// `larder journal`.
///
/// # Errors
/// The configuration is wrong, or the journal is open in the service, or damaged.
pub fn journal(args: &Journal, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let config = Config::read(&args.config.config)?;
        // None is made, nor is an empty file taken for one.
        let contents = look_at_journal(&args.config.config).await?;
        match &args.command {
            JournalCommand::List => list(&contents.pending, args.format, out)?,
            JournalCommand::Dead => list(&contents.dead_letters, args.format, out)?,
            JournalCommand::Retry { ids } => {
                let journal = config.open_journal().await?;
                for id in ids {
                    journal.retry(*id).await?;
                    writeln!(out, "{id} is a write again: it is saved when the service runs")?;
                }
            }
            JournalCommand::Discard { ids } => {
                let journal = config.open_journal().await?;
                for id in ids {
                    journal.discard(*id).await?;
                    writeln!(out, "{id} is given up")?;
                }
            }
        }
        Ok(exit::SUCCESS)
    })
}

fn list(writes: &[Logged], format: ListFormat, out: &mut impl Write) -> anyhow::Result<()> {
    for write in writes {
        if format == ListFormat::Json {
            writeln!(out, "{}", serde_json::to_string(write)?)?;
            continue;
        }
        let what = write.value_bytes.map_or("a removal".into(), |bytes| format!("{bytes} bytes"));
        let at = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(write.logged_at));
        writeln!(out, "{}  {at}  {}:{}  {what}", write.id, write.keyspace, write.key)?;
        if let Some(reason) = &write.reason {
            writeln!(out, "    {reason}")?;
        }
    }
    Ok(())
}

/// What the doctor found of one thing.
#[derive(Serialize)]
struct Finding {
    what: String,
    well: bool,
    /// What it found, or what is wrong and what to do.
    says: String,
}

/// `larder doctor`.
///
/// # Errors
/// What it found cannot be written.
pub fn doctor(args: &Doctor, out: &mut impl Write) -> anyhow::Result<u8> {
    let findings = runtime()?.block_on(examine(&args.config.config));
    for finding in &findings {
        match args.format {
            ListFormat::Json => writeln!(out, "{}", serde_json::to_string(finding)?)?,
            ListFormat::Table => {
                let mark = if finding.well { "ok  " } else { "FAIL" };
                writeln!(out, "{mark}  {}: {}", finding.what, finding.says)?;
            }
        }
    }
    Ok(if findings.iter().all(|finding| finding.well) { exit::SUCCESS } else { exit::FAILURE })
}

async fn examine(path: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |what: String, result: Result<String, String>| {
        let (well, says) = match result {
            Ok(says) => (true, says),
            Err(says) => (false, says),
        };
        findings.push(Finding { what, well, says });
    };
    let file = path.display().to_string();
    let config = match Config::read(path) {
        Ok(config) => config,
        Err(error) => {
            found(file, Err(error.to_string()));
            return findings;
        }
    };
    found(file, Ok(format!("{} keyspaces", config.keyspaces().count())));
    if config.has_journal() {
        // A service that runs has it open, and that is well.
        let looked = look_at_journal(path).await;
        found(
            "journal".into(),
            match looked {
                Ok(contents) => {
                    let (pending, dead) = (contents.pending.len(), contents.dead_letters.len());
                    let says = format!("{pending} writes wait, {dead} dead letters; no service has it open");
                    if dead > 0 { Err(format!("{says}: see `larder journal dead`")) } else { Ok(says) }
                }
                Err(error) => match error.downcast_ref() {
                    Some(JournalError::InUse(_)) => Ok("a service has it open".into()),
                    Some(JournalError::NotThere(path)) => Ok(format!("{} is not there yet", path.display())),
                    _ => Err(format!("{error:#}")),
                },
            },
        );
    }
    for (name, path) in config.disk_tiers() {
        // Not made by looking.
        if !path.exists() {
            found(format!("tier {name}"), Ok(format!("{} is not there yet", path.display())));
            continue;
        }
        let result = match config.open_disk(name).await {
            Ok(tier) => Ok(format!("{}: {} copies; no service has it open", tier.summary(), tier.entry_count())),
            Err(ConfigError::Disk { source: DiskSetupError::InUse(_), .. }) => Ok("a service has it open".into()),
            Err(error) => Err(error.to_string()),
        };
        found(format!("tier {name}"), result);
    }
    let stores = match config.for_operators().open().await {
        Ok(stores) => stores,
        Err(error) => {
            found("stores".into(), Err(error.to_string()));
            return findings;
        }
    };
    for (name, tier) in stores.tiers() {
        let began = Instant::now();
        let answer = timeout(PATIENCE, tier.get("larder-doctor:probe")).await.unwrap_or(Err(TierError::TimedOut));
        let answered = || format!("{} answers in {:.1} ms", tier.summary(), began.elapsed().as_secs_f64() * 1e3);
        found(
            format!("tier {name}"),
            answer.map(|_| answered()).map_err(|error| format!("{}: {error}", tier.summary())),
        );
    }
    for keyspace in config.keyspaces() {
        let what = format!("keyspace {keyspace}");
        found(
            what.clone(),
            match config.check_rules(keyspace) {
                Ok(()) => Ok("the module takes its rule".into()),
                Err(error) => Err(error.to_string()),
            },
        );
        match timeout(PATIENCE, config.check_source(keyspace)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(says))) => found(format!("{what}, source"), Ok(says)),
            Ok(Err(error)) => found(format!("{what}, source"), Err(error.to_string())),
            Err(_) => found(format!("{what}, source"), Err(format!("no answer within {PATIENCE:?}"))),
        }
    }
    findings
}
