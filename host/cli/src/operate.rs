//! What an operator needs at 3 a.m.: `larder keys|get|invalidate|tags|journal|doctor`, against the configuration file of the
//! service.
//!
//! The commands use the stores that the service uses, as one more process. They follow no rule, so that nothing is loaded,
//! kept or saved by looking; and they leave the journal to the service that has it open, but for `larder journal`, which is for
//! a service that is stopped.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use larder::tiered::{
    BoxFuture, Bytes, DiskSetupError, FarCopy, Group, JournalError, Listener, Logged, News, Scope, Tier, TierError,
    Tiered,
};
use larder::{Config, ConfigError, Stores};
use serde::Serialize;
use serde_json::Value as Json;
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::args::{Doctor, Get, Invalidate, Journal, JournalCommand, Keys, ListFormat, Tags, exit};
use crate::output::told;

/// A store that has not answered by then is down.
const PATIENCE: Duration = Duration::from_secs(5);

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime cannot be started")
}

fn read(path: &Path) -> anyhow::Result<Config> {
    Config::read(path).map_err(|error| match error {
        ConfigError::Unreadable { .. } => {
            anyhow::anyhow!("{error}; name the service's file, by --config or in LARDER_CONFIG")
        }
        error => error.into(),
    })
}

/// The stores of a configuration, as an operator uses them, and the names of the tiers that are the service's own.
async fn open(path: &Path) -> anyhow::Result<(Stores, Vec<String>)> {
    let config = read(path)?;
    let own = config.disk_tiers().map(Into::into).collect();
    Ok((config.for_operators().open().await?, own))
}

/// Those tiers of a keyspace that are asked about.
fn tiers<'a>(
    (stores, own): &'a (Stores, Vec<String>),
    keyspace: &str,
    only: Option<&str>,
) -> anyhow::Result<Vec<(&'a str, &'a Arc<dyn Tier>)>> {
    stores.config().rules(keyspace)?;
    let tiers: Vec<_> = stores.tiers_of(keyspace).filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    if tiers.is_empty() {
        match only {
            Some(only) if own.iter().any(|own| own == only) => {
                bail!("tier `{only}` lies on the service's own disk: only the service can look into it")
            }
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

/// Asks each tier, and says which did not answer: what the others have is wanted all the more then.
async fn each_of(
    tiers: Vec<(&str, &Arc<dyn Tier>)>,
    mut ask: impl AsyncFnMut(&str, &Arc<dyn Tier>) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    let mut have_all_answered = true;
    for (name, tier) in tiers {
        match ask(name, tier).await {
            Ok(()) => {}
            Err(error) if error.is::<TierError>() => {
                crate::say!("error: {}", told(&error));
                have_all_answered = false;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(have_all_answered)
}

/// What others have written, for a terminal: what would command it is shown as what it is.
fn shown(text: &str) -> Cow<'_, str> {
    // Besides control characters those that turn the direction of writing.
    let commands = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(commands) {
        return text.into();
    }
    let escaped = |out: String, c: char| match commands(c) {
        true => out + &c.escape_default().to_string(),
        false => out + c.encode_utf8(&mut [0; 4]),
    };
    text.chars().fold(String::new(), escaped).into()
}

/// `larder keys`.
///
/// # Errors
/// The configuration is wrong, or a tier does not answer.
pub fn keys(args: &Keys, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let stores = open(&args.config.config).await?;
        let named = format!("{}:", args.keyspace);
        let prefix = format!("{named}{}", args.prefix.as_deref().unwrap_or_default());
        let mut left = args.limit;
        let have_all_answered = each_of(tiers(&stores, &args.keyspace, args.tier.as_deref())?, async |name, tier| {
            let mut cursor: Option<String> = None;
            while left > 0 {
                let page = asked(name, tier, tier.keys(&prefix, cursor.as_deref(), left.clamp(1, 1_000))).await?;
                for key in page.keys.iter().take(left) {
                    let key = key.strip_prefix(&named).unwrap_or(key);
                    match args.format {
                        ListFormat::Table => writeln!(out, "{}", shown(key))?,
                        ListFormat::Json => {
                            serde_json::to_writer(&mut *out, &serde_json::json!({ "tier": name, "key": key }))?;
                            writeln!(out)?;
                        }
                    }
                }
                left = left.saturating_sub(page.keys.len());
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            Ok(())
        });
        let have_all_answered = have_all_answered.await?;
        if left == 0 {
            crate::say!("the first {} keys; --limit for more, --prefix for others", args.limit);
        }
        Ok(if have_all_answered { exit::SUCCESS } else { exit::FAILURE })
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
        let codec = stores.0.codec::<Json>(&args.keyspace)?;
        let named = format!("{}:", args.keyspace);
        let name_of_key = format!("{named}{}", args.key);
        let mut has_found = false;
        let have_all_answered = each_of(tiers(&stores, &args.keyspace, args.tier.as_deref())?, async |name, tier| {
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
            Ok(())
        });
        let have_all_answered = have_all_answered.await?;
        Ok(if has_found && have_all_answered { exit::SUCCESS } else { exit::FAILURE })
    })
}

fn show(looked: &Shown<'_>, summary: &str, out: &mut impl Write) -> io::Result<()> {
    write!(out, "{} ({summary}): ", looked.tier)?;
    let Some(copy) = &looked.copy else {
        return writeln!(
            out,
            "{}",
            if looked.damaged { "what is there cannot be read, and counts as absent" } else { "absent" }
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
        writeln!(out, "  validator  {}", shown(validator))?;
    }
    if !copy.tags.is_empty() {
        writeln!(out, "  tags       {}", shown(&copy.tags.join(", ")))?;
    }
    match &copy.value {
        Some(value) => writeln!(out, "  value      {}", shown(&value.to_string())),
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
        let (stores, _) = open(&args.config.config).await?;
        let has_bus = stores.has_bus(&args.keyspace);
        let cache: Tiered<String, Json> = stores.keyspace(&args.keyspace)?.build()?;
        // Each is tried, whatever became of the others.
        let mut results = Vec::new();
        if args.soft {
            for key in &args.keys {
                results.push((format!("key {key}"), cache.expire(key).await));
            }
        } else if !args.keys.is_empty() {
            let what = match args.keys.as_slice() {
                [key] => format!("key {key}"),
                keys => format!("keys {}", keys.join(", ")),
            };
            results.push((what, cache.invalidate_many(args.keys.clone()).await));
        }
        for tag in &args.tag {
            let done = if args.soft { cache.expire_tag(tag).await } else { cache.invalidate_tag(tag).await };
            results.push((format!("tag {tag}"), done));
        }
        for prefix in args.prefix.iter().map(String::as_str).chain(args.all.then_some("")) {
            let done = if args.soft { cache.expire_prefix(prefix).await } else { cache.invalidate_prefix(prefix).await };
            results.push((if prefix.is_empty() { "everything".into() } else { format!("prefix {prefix}") }, done));
        }
        let verb = if args.soft { "expired" } else { "invalidated" };
        let mut done = Vec::new();
        let mut have_all_been_told = true;
        for (what, result) in results {
            match result {
                Ok(()) => done.push(what),
                Err(error) => {
                    have_all_been_told = false;
                    crate::say!("error: {}: {}", shown(&what), told(&error.into()));
                }
            }
        }
        if !done.is_empty() {
            writeln!(out, "{verb} in {}: {}", args.keyspace, shown(&done.join(", ")))?;
        }
        if !have_all_been_told {
            crate::say!(
                "not everything was {verb}: run this again when what did not answer is back, for nobody makes up for it later"
            );
        }
        if !has_bus {
            crate::say!(
                "note: keyspace {} has no bus: what services have in their own memory and on their disks lives until its time is over",
                args.keyspace
            );
        }
        Ok(if have_all_been_told { exit::SUCCESS } else { exit::FAILURE })
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
        let have_all_answered = each_of(tiers(&stores, &args.keyspace, args.tier.as_deref())?, async |name, tier| {
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
                        let (text, hard, soft) = (shown(text), version.hard, version.soft);
                        writeln!(out, "{name}  {kind:6}  {text}  hard {hard} soft {soft}")?;
                    }
                    ListFormat::Json => {
                        let row = serde_json::json!({
                            "tier": name, kind: text, "hard": version.hard, "soft": version.soft
                        });
                        writeln!(out, "{row}")?;
                    }
                }
            }
            Ok(())
        });
        Ok(if have_all_answered.await? { exit::SUCCESS } else { exit::FAILURE })
    })
}

/// `larder journal`.
///
/// # Errors
/// The configuration is wrong, or the journal is open in the service, or damaged.
pub fn journal(args: &Journal, out: &mut impl Write) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let config = read(&args.config.config)?;
        // None is made, nor is an empty file taken for one.
        let contents = config.look_at_journal().await?;
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
        writeln!(out, "{}  {at}  {}:{}  {what}", write.id, shown(&write.keyspace), shown(&write.key))?;
        if let Some(reason) = &write.reason {
            writeln!(out, "    {}", shown(reason))?;
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
    runtime()?.block_on(async {
        let mut is_well = true;
        // Each is printed as soon as it is known and all before it are.
        for (what, finding) in examine(&args.config.config) {
            let result = finding.await.unwrap_or_else(|error| Err(format!("the check broke off: {error}")));
            let well = result.is_ok();
            is_well &= well;
            let finding = Finding { what, well, says: result.unwrap_or_else(|says| says) };
            match args.format {
                ListFormat::Json => writeln!(out, "{}", serde_json::to_string(&finding)?)?,
                ListFormat::Table => {
                    let mark = if well { "ok  " } else { "FAIL" };
                    writeln!(out, "{mark}  {}: {}", finding.what, shown(&finding.says))?;
                }
            }
        }
        Ok(if is_well { exit::SUCCESS } else { exit::FAILURE })
    })
}

/// What is said of a store that is set up for nothing.
const UNUSED: &str = "no keyspace uses it, so it was not asked: name it in one, or leave it out";

/// What is said of a thing; an error is what is wrong with it.
type Says = Result<String, String>;

/// All checks, in the order in which they are printed, and all under way at once.
fn examine(path: &Path) -> Vec<(String, JoinHandle<Says>)> {
    let mut checks = Vec::new();
    let config = read(path).map(Arc::new);
    let says = config.as_ref().map_err(ToString::to_string).and_then(|config| {
        config.check_variables().map_err(|error| error.to_string())?;
        Ok(format!("{} keyspaces", config.keyspaces().count()))
    });
    // Some errors name the file, which the check does already.
    let file = path.display().to_string();
    let says = says.map_err(|error| error.strip_prefix(&format!("{file}: ")).unwrap_or(&error).to_owned());
    checks.push((file, tokio::spawn(async { says })));
    let Ok(config) = config else { return checks };
    let unused = config.unused();
    let is_unused = |what: &str| unused.iter().any(|unused| unused == what);
    let mut check = |what: String, finding: BoxFuture<'static, Says>| checks.push((what, tokio::spawn(finding)));
    if config.has_journal() {
        let config = config.clone();
        // It may hold writes from when one used it.
        let note = if is_unused("journal") { "; no keyspace uses it" } else { "" };
        check("journal".into(), Box::pin(async move { Ok(journal_of(&config).await? + note) }));
    }
    for name in config.disk_tiers().map(String::from) {
        let config = config.clone();
        let note = if is_unused(&format!("tier {name}")) { "; no keyspace uses it" } else { "" };
        check(format!("tier {name}"), Box::pin(async move { Ok(disk(&config, &name).await? + note) }));
    }
    for name in config.tiers().map(String::from) {
        let (config, what) = (config.clone(), format!("tier {name}"));
        let is_unused = is_unused(&what);
        check(what, Box::pin(async move { tier(&config, &name, is_unused).await }));
    }
    for name in config.buses().map(String::from) {
        let (config, what) = (config.clone(), format!("bus {name}"));
        let is_unused = is_unused(&what);
        check(what, Box::pin(async move { bus(&config, &name, is_unused).await }));
    }
    for what in unused.iter().filter(|what| what.starts_with("source ")) {
        check(what.clone(), Box::pin(async { Ok(UNUSED.into()) }));
    }
    for name in config.keyspaces().map(String::from) {
        let (built, asked) = ((config.clone(), name.clone()), (config.clone(), name.clone()));
        check(
            format!("keyspace {name}"),
            Box::pin(async move {
                let (config, name) = built;
                let checked = config.check_keyspace(&name).await.map_err(|error| error.to_string());
                checked.map(|()| "the module takes its rule, and it can be built".into())
            }),
        );
        if config.has_source(&name) {
            check(
                format!("keyspace {name}, source"),
                Box::pin(async move {
                    let (config, name) = asked;
                    // Longer than the pool of connections waits, which says more.
                    match timeout(2 * PATIENCE, config.check_source(&name)).await {
                        Ok(Ok(says)) => Ok(says.unwrap_or_default()),
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(_) => Err(format!("no answer within {:?}", 2 * PATIENCE)),
                    }
                }),
            );
        }
    }
    checks
}

async fn journal_of(config: &Config) -> Says {
    match config.look_at_journal().await {
        Ok(contents) => {
            let (pending, dead) = (contents.pending.len(), contents.dead_letters.len());
            let says = format!("{pending} writes wait, {dead} dead letters; no service has it open");
            if dead > 0 { Err(format!("{says}: see `larder journal dead`")) } else { Ok(says) }
        }
        // A service that runs has it open, and that is well.
        Err(ConfigError::Journal(JournalError::InUse(_))) => Ok("a service has it open".into()),
        Err(ConfigError::Journal(JournalError::NotThere(path))) => Ok(format!("{} is not there yet", path.display())),
        Err(error) => Err(error.to_string()),
    }
}

async fn disk(config: &Config, name: &str) -> Says {
    // Neither made nor repaired by looking; but what a service would be refused is told.
    let path = config.disk_path(name).map_err(|error| error.to_string())?;
    match config.look_at_disk(name).await {
        Ok(has) => {
            let says =
                format!("{}: {} copies of {} bytes; no service has it open", path.display(), has.copies, has.bytes);
            let writable = std::fs::OpenOptions::new().write(true).open(&path);
            writable.map(|_| says).map_err(|error| format!("{} cannot be written: {error}", path.display()))
        }
        Err(ConfigError::Disk { source: DiskSetupError::InUse(_), .. }) => Ok("a service has it open".into()),
        Err(ConfigError::Disk { source: DiskSetupError::NotThere(path), .. }) => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
                Err(format!("{}: there is no directory {}: make it", path.display(), parent.display()))
            }
            _ => Ok(format!("{} is not there yet", path.display())),
        },
        // A service comes over that by itself, and nothing is lost.
        Err(ConfigError::Disk { source: unfinished @ DiskSetupError::Unfinished(_), .. }) => Ok(unfinished.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn tier(config: &Config, name: &str, is_unused: bool) -> Says {
    let tier = config.open_tier(name).await.map_err(|error| error.to_string())?;
    if is_unused {
        return Ok(UNUSED.into());
    }
    let began = Instant::now();
    match timeout(PATIENCE, probe(&*tier)).await.unwrap_or(Err(TierError::TimedOut)) {
        Ok(()) => Ok(format!("{} reads and writes in {:.1} ms", tier.summary(), began.elapsed().as_secs_f64() * 1e3)),
        Err(error) => Err(format!("{}: {error}", tier.summary())),
    }
}

/// Reads, keeps and takes away a copy of a key that nobody else has: a store may answer, and take nothing.
async fn probe(tier: &dyn Tier) -> Result<(), TierError> {
    const KEY: &str = "larder-doctor:probe";
    let token = match tier.get(KEY).await?.token {
        Some(token) => token,
        None => tier.token(KEY).await?,
    };
    let copy = FarCopy {
        value: Some(Bytes::from_static(b"probe")),
        validator: None,
        tags: [].into(),
        age_ms: 0,
        // It goes by itself, should it not be taken away.
        fresh_ms: 5_000,
        stale_ms: 0,
        rescue_ms: 0,
        early_us: 0,
        cost_us: 0,
    };
    // Another doctor may have been faster.
    tier.put(KEY, copy, token, false).await?;
    tier.invalidate(&Scope::Keys(vec![KEY.into()]), false).await
}

/// Hears nothing but that it would.
#[derive(Default)]
struct Ear {
    hears: Notify,
}

impl Listener for Ear {
    fn hear<'a>(&'a self, _: &'a News) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn lose_track(&self) {}

    fn trust_until(&self, until: tokio::time::Instant) {
        if until > tokio::time::Instant::now() {
            self.hears.notify_one();
        }
    }
}

async fn bus(config: &Config, name: &str, is_unused: bool) -> Says {
    let bus = config.open_bus(name).map_err(|error| error.to_string())?;
    if is_unused {
        return Ok(UNUSED.into());
    }
    let ear = Arc::new(Ear::default());
    let listener: Arc<dyn Listener> = ear.clone();
    bus.join(Arc::downgrade(&listener));
    let began = Instant::now();
    // News of nothing, in a keyspace that nobody has.
    let news = News { keyspace: "larder-doctor".into(), scope: Scope::Keys(Vec::new()), soft: false };
    let told = timeout(PATIENCE, bus.announce(&listener, news)).await.unwrap_or(Err(TierError::TimedOut));
    told.map_err(|error| format!("{}: {error}", bus.summary()))?;
    let heard = timeout(PATIENCE, ear.hears.notified()).await;
    heard.map_err(|_| {
        format!("{}: nothing is heard from it: see whether it refuses to write (memory, rights)", bus.summary())
    })?;
    Ok(format!("{} carries news in {:.1} ms", bus.summary(), began.elapsed().as_secs_f64() * 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_not_command_the_terminal() {
        assert_eq!(shown("plain ü"), "plain ü");
        assert_eq!(shown("a\u{1b}[2Jb\nc\u{9b}\u{202e}"), "a\\u{1b}[2Jb\\nc\\u{9b}\\u{202e}");
    }
}
