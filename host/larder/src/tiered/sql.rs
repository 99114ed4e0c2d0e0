//! What sources over SQL databases share: queries with named parameters, rows that become values, errors that say what
//! can be done. The databases themselves are [`postgres`](super::postgres) and [`mysql`](super::mysql), each a few
//! functions ([`SqlDatabase`]).
//!
//! **Queries** are the database's own SQL; this is no query builder. Their parameters have names, and are bound, never
//! spliced into the text:
//!
//! | query | parameters | what it is to do |
//! |---|---|---|
//! | [`load`](SqlBuilder::load) | `:key`, `:version` | give the row of the key, or none |
//! | [`load_many`](SqlBuilder::load_many) | `:keys` | give the rows of these keys, in any order; **the first column is the key** |
//! | [`save`](SqlBuilder::save) | `:key`, `:value`, `:write_id` | save the value, whether or not the key is there |
//! | [`save_many`](SqlBuilder::save_many) | `:writes` | the same for a JSON array of `{"key", "value", "write_id"}` |
//! | [`remove`](SqlBuilder::remove) | `:key`, `:write_id` | remove the key, if it is there |
//! | [`remove_many`](SqlBuilder::remove_many) | `:keys`, `:writes` | the same for many |
//!
//! A key that is an integer in Rust is bound as a `bigint`, any other as text: where the column has another type, the query
//! says so (`:key::uuid`). A value is bound as JSON, `:write_id` as text of 32 hexadecimal digits.
//!
//! **Rows become values** by [`serde`]: a row is an object with its columns as fields. That serves a type of yours, and
//! [`serde_json::Value`] where there is none (rules from a file). Where that is not it, [`load_with`](SqlBuilder::load_with)
//! takes a closure over the row.
//!
//! **What else a row may say**: how long it is fresh ([`ttl_ms_column`](SqlBuilder::ttl_ms_column)), its tags
//! ([`tags_column`](SqlBuilder::tags_column)), and its version ([`version_column`](SqlBuilder::version_column)). A row whose
//! version is that of the copy which is being renewed is *unchanged*: nothing is decoded or moved. The query gets that
//! version as `:version` (null where there is no copy) and may use it to leave out what is large:
//!
//! ```sql
//! select p.id, p.version, d.document from products p
//! left join documents d on d.product = p.id and p.version::text is distinct from :version
//! where p.id = :key
//! ```
//!
//! **Writes that are tried again.** Larder tries a write of its journal until it knows that it was done, so it may reach the
//! database twice. To save a value twice does no harm; to add to a number does. `:write_id` is the same for each try:
//!
//! ```sql
//! -- PostgreSQL, with a table of what was done; one statement, so it is one transaction. Old rows of it can be deleted.
//! with new as (insert into writes (id) values (:write_id::uuid) on conflict do nothing returning id)
//! update stock set sold = sold + (:value->>'sold')::bigint from new where stock.id = :key;
//! -- MySQL, in the row itself: writes of one key come in order, so to know the last one is enough.
//! update stock set sold = sold + json_value(:value, '$.sold'), last_write = :write_id
//! where id = :key and not (last_write <=> :write_id);
//! ```
//!
//! **Errors.** What the database said of the statement or the data is *rejected*: to try again does not help. That no
//! connection came free in time, a deadlock, too many clients: *overloaded*, nothing was done. All else is *unavailable*. A
//! load that finds its pooled connection dead is tried once more on another one; a save never is, for it may have been done.
//!
//! Not taken: one query builder for all databases (it would know less SQL than its users), and a row as JSON made by the
//! database (`row_to_json` around the query: not every query may stand within another, and MySQL has nothing like it).

mod statement;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};
use sqlx::database::HasStatementCache;
use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::pool::{Pool, PoolConnection, PoolOptions};
use sqlx::{Column, Connection, Row};
use tokio::net::TcpStream;

use super::source::Answer;
use super::{BoxFuture, Failure, Key, Loaded, LoadedMany, Save, Source, SourceError, WriteId};
pub use statement::Dialect;
use statement::{Name, Purpose, Statement};

/// So many keys or writes are sent in one statement; more are sent in several.
const CHUNK: usize = 1_000;

/// So often a list of keys that is refused is split: enough to find a few bad keys in it.
const MOST_SPLITS: usize = 32;

/// After so long without a connection it is asked whether connections are refused.
const PROBE_AFTER: Duration = Duration::from_millis(30);

/// What a database brings along, for [`SqlSource`] to work over it.
pub trait SqlDatabase: sqlx::Database + HasStatementCache {
    /// How it writes SQL down.
    const DIALECT: Dialect;

    /// What URLs of it look like, for messages.
    const URL: &'static str;

    /// Adds a parameter to those of a statement; a list, where lists are not arrays, as many parameters.
    ///
    /// # Errors
    /// It does not fit.
    fn bind(arguments: &mut Self::Arguments, parameter: &Parameter<'_>) -> Result<(), BoxDynError>;

    /// Reads at most so many rows.
    fn fetch<'a>(
        connection: &'a mut Self::Connection,
        sql: Arc<str>,
        arguments: Self::Arguments,
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<Self::Row>, sqlx::Error>>;

    /// Runs a statement for what it does.
    fn execute<'a>(
        connection: &'a mut Self::Connection,
        sql: Arc<str>,
        arguments: Self::Arguments,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;

    /// Has a statement checked without running it: the names of the columns that it gives.
    fn prepare<'a>(
        connection: &'a mut Self::Connection,
        sql: Arc<str>,
        parameters: &'a [Parameter<'a>],
    ) -> BoxFuture<'a, Result<Vec<String>, sqlx::Error>>;

    /// No statement of this connection is to take longer.
    fn limit_statements(connection: &mut Self::Connection, limit: Duration) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// A column of a row, as JSON.
    ///
    /// # Errors
    /// Its type has no such form here.
    fn json(row: &Self::Row, column: usize) -> Result<Json, BoxDynError>;

    /// What a refusal of a statement amounts to.
    fn failure(error: &dyn DatabaseError) -> Failure;

    /// Whether a refusal is due to what the connection remembers of the statement, and goes away when it forgets.
    fn is_outdated(error: &dyn DatabaseError) -> bool {
        let _ = error;
        false
    }

    /// Host, port and database; a socket has no port.
    fn place(options: &<Self::Connection as Connection>::Options) -> (String, Option<u16>, String);
}

/// What is bound to a placeholder.
#[derive(Clone, Debug)]
pub enum Parameter<'a> {
    /// A key that is an integer.
    Integer(i128),
    /// Any other key; a write's id; a version.
    Text(Option<Cow<'a, str>>),
    /// Keys that are integers.
    Integers(Vec<i128>),
    /// Any other keys.
    Texts(Vec<Cow<'a, str>>),
    /// A value, or writes.
    Json(&'a Json),
}

impl<'a> Parameter<'a> {
    fn key(key: &'a impl Key) -> Self {
        key.integer().map_or_else(|| Parameter::Text(Some(key.text())), Parameter::Integer)
    }

    fn keys<K: Key + 'a>(keys: impl Iterator<Item = &'a K> + Clone) -> Self {
        let integers: Option<Vec<_>> = keys.clone().map(Key::integer).collect();
        integers.map_or_else(|| Parameter::Texts(keys.map(Key::text).collect()), Parameter::Integers)
    }
}

/// Why a source could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqlBuildError {
    /// The URL cannot be read. It may hold a password, and is not repeated.
    #[error("the URL names no {database} server ({source}): write it as {example}")]
    Url {
        /// Which database it was to be.
        database: &'static str,
        /// What is wrong with it.
        source: sqlx::Error,
        /// How it is written.
        example: &'static str,
    },
    /// The URL is another kind of server's. It may hold a password, and is not repeated.
    #[error("the URL does not begin as one of a {database} server: write it as {example}")]
    Scheme {
        /// Which database it was to be.
        database: &'static str,
        /// How it is written.
        example: &'static str,
    },
    /// Without connections nothing can be asked.
    #[error("there may be 0 connections: set `max-connections` to 1 or more")]
    NoConnections,
    /// A query has a parameter that it cannot have.
    #[error(
        "{query} has the parameter `:{name}`: it may have {known}; a colon that begins no parameter is followed by a space"
    )]
    Parameter {
        /// Which query.
        query: &'static str,
        /// The parameter.
        name: String,
        /// Those that it may have.
        known: String,
    },
    /// A query says nothing of the key, or the value.
    #[error("{query} does not say what it is about: write {needed} where that belongs (in place of `$1` or `?`)")]
    NoParameter {
        /// Which query.
        query: &'static str,
        /// One of these is needed.
        needed: String,
    },
    /// There is a query for many and none for one.
    #[error("`{many}` needs `{one}` beside it: call `{one}` with the query for a single key")]
    One {
        /// The query for many.
        many: &'static str,
        /// The query for one.
        one: &'static str,
    },
    /// It could do nothing.
    #[error("the source has no query: call `load`, `save` or `remove`")]
    NoQuery,
    /// Connections need a runtime.
    #[error("a pool of connections needs a tokio runtime: build the source within one")]
    NoRuntime,
}

/// Why a query did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[error("{place}, {query}: {why}")]
struct QueryError {
    place: Arc<str>,
    query: &'static str,
    #[source]
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("{0}")]
    Database(sqlx::Error),
    #[error("connections are refused: {0}")]
    Refused(std::io::Error),
    #[error(
        "no connection came free within {0:?}, of {1} at most: raise `max-connections`, or see why queries take so long"
    )]
    NoConnection(Duration, u32),
    #[error("no connection could be made within {0:?}: see whether the server answers there")]
    NotConnected(Duration),
    #[error("two rows or more for the key `{0}`: one key, one row")]
    TwoRows(String),
    #[error(
        "a row for the key `{0}`, which was not asked for: the first column is to be the key, and as it was asked for"
    )]
    NotAsked(String),
    #[error("the row has no column `{0}`: select it, or name another")]
    NoColumn(String),
    #[error("two columns are called `{0}`: rename one of them by `as`")]
    TwoColumns(String),
    #[error("column `{0}`: {1}")]
    Column(String, BoxDynError),
    #[error("the row of the key `{0}` is not a value: {1}")]
    Value(String, BoxDynError),
    #[error("the value cannot be written as JSON: {0}")]
    Unwritable(serde_json::Error),
    #[error("there is none: call `{0}` when the source is set up")]
    NoQuery(&'static str),
}

type RowFn<D, V> = dyn Fn(&<D as sqlx::Database>::Row) -> Result<V, BoxDynError> + Send + Sync;
type ValueFn<V> = dyn Fn(&V) -> Result<Json, serde_json::Error> + Send + Sync;

/// How rows become values.
enum Rows<D: SqlDatabase, V> {
    Serde(fn(Json) -> Result<V, serde_json::Error>),
    Closure(Box<RowFn<D, V>>),
}

/// Columns that mean something to the cache.
#[derive(Clone, Debug, Default)]
struct Columns {
    json: Option<String>,
    ttl_ms: Option<String>,
    tags: Option<String>,
    version: Option<String>,
}

enum Reach<D: SqlDatabase> {
    Url(String),
    Pool(Pool<D>),
}

/// Sets a [`SqlSource`] up. From [`SqlSource::connect`] or [`SqlSource::over`].
#[must_use]
pub struct SqlBuilder<D: SqlDatabase, K, V> {
    reach: Reach<D>,
    queries: Vec<(Purpose, String)>,
    rows: Option<Rows<D, V>>,
    values: Option<Box<ValueFn<V>>>,
    columns: Columns,
    max_connections: u32,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    kinds: PhantomData<fn() -> K>,
}

impl<D: SqlDatabase, K, V> fmt::Debug for SqlBuilder<D, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which may hold a password.
        f.debug_struct("SqlBuilder").field("database", &D::NAME).field("queries", &self.queries).finish_non_exhaustive()
    }
}

impl<D: SqlDatabase, K: Key, V: Clone + Send + Sync + 'static> SqlBuilder<D, K, V> {
    fn new(reach: Reach<D>) -> Self {
        SqlBuilder {
            reach,
            queries: Vec::new(),
            rows: None,
            values: None,
            columns: Columns::default(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            kinds: PhantomData,
        }
    }

    fn query(mut self, purpose: Purpose, sql: impl Into<String>) -> Self {
        self.queries.retain(|(known, _)| *known != purpose);
        self.queries.push((purpose, sql.into()));
        self
    }

    /// The query that gives the row of `:key`, or none. Rows become values by serde, as objects.
    pub fn load(mut self, sql: impl Into<String>) -> Self
    where
        V: DeserializeOwned,
    {
        self.rows = Some(Rows::Serde(serde_json::from_value));
        self.query(Purpose::Load, sql)
    }

    /// As [`Self::load`], and rows become values by a closure.
    pub fn load_with<E: Into<BoxDynError>>(
        mut self,
        sql: impl Into<String>,
        value: impl Fn(&D::Row) -> Result<V, E> + Send + Sync + 'static,
    ) -> Self {
        self.rows = Some(Rows::Closure(Box::new(move |row| value(row).map_err(Into::into))));
        self.query(Purpose::Load, sql)
    }

    /// The query that gives the rows of `:keys`, in any order and each once. The first column is the key; else the row is as
    /// that of [`Self::load`].
    pub fn load_many(self, sql: impl Into<String>) -> Self {
        self.query(Purpose::LoadMany, sql)
    }

    /// The statement that saves `:value` as that of `:key`, whether or not the key is there. Values become JSON by serde.
    pub fn save(mut self, sql: impl Into<String>) -> Self
    where
        V: Serialize,
    {
        self.values = Some(Box::new(|value| serde_json::to_value(value)));
        self.query(Purpose::Save, sql)
    }

    /// As [`Self::save`], and values become JSON by a closure.
    pub fn save_with(mut self, sql: impl Into<String>, json: impl Fn(&V) -> Json + Send + Sync + 'static) -> Self {
        self.values = Some(Box::new(move |value| Ok(json(value))));
        self.query(Purpose::Save, sql)
    }

    /// The statement that carries out many writes: `:writes` is a JSON array of objects with the fields `key`, `value` and
    /// `write_id`. If the database refuses it, each of its writes is saved by itself, so that one that cannot be saved does
    /// not take the others along.
    pub fn save_many(self, sql: impl Into<String>) -> Self {
        self.query(Purpose::SaveMany, sql)
    }

    /// The statement that removes `:key`, if it is there.
    pub fn remove(self, sql: impl Into<String>) -> Self {
        self.query(Purpose::Remove, sql)
    }

    /// The statement that removes `:keys`. It may have `:writes`, too, as [`Self::save_many`] has, with null for values.
    pub fn remove_many(self, sql: impl Into<String>) -> Self {
        self.query(Purpose::RemoveMany, sql)
    }

    /// The value is the JSON document in this column, and not the row. A column of text is read as JSON.
    pub fn json_column(mut self, name: impl Into<String>) -> Self {
        self.columns.json = Some(name.into());
        self
    }

    /// The column that says for how many milliseconds the row is fresh; 0: it is not kept; null: the rule says.
    pub fn ttl_ms_column(mut self, name: impl Into<String>) -> Self {
        self.columns.ttl_ms = Some(name.into());
        self
    }

    /// The column that has the row's tags: an array, a JSON array, or a single one as text or number.
    pub fn tags_column(mut self, name: impl Into<String>) -> Self {
        self.columns.tags = Some(name.into());
        self
    }

    /// The column that changes whenever the row does: a number, a moment, a hash. See the [module](self).
    pub fn version_column(mut self, name: impl Into<String>) -> Self {
        self.columns.version = Some(name.into());
        self
    }

    /// How many connections there are at most, 1 or more; 10 if nothing is said. A pool of the caller's own has its own.
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections;
        self
    }

    /// How long a query waits for a connection; 5 s if nothing is said. A pool of the caller's own has its own.
    pub fn acquire_timeout(mut self, limit: Duration) -> Self {
        self.acquire_timeout = limit;
        self
    }

    /// After how long the database gives a statement up; 30 s if nothing is said. Where a load is cancelled, its connection
    /// is free again when its statement has ended. On a pool of the caller's own this is the caller's to set.
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.statement_timeout = limit;
        self
    }

    /// Builds the source. Nothing is connected yet, so a service starts while its database is down:
    /// [`SqlSource::check`] connects and has the queries checked.
    ///
    /// # Errors
    /// [`SqlBuildError`], which says what to change.
    pub fn build(self) -> Result<SqlSource<D, K, V>, SqlBuildError> {
        let mut queries = Queries::default();
        for (purpose, sql) in &self.queries {
            *queries.of(*purpose) = Some(Statement::parse(*purpose, sql, D::DIALECT)?);
        }
        for (many, one) in [
            (Purpose::LoadMany, Purpose::Load),
            (Purpose::SaveMany, Purpose::Save),
            (Purpose::RemoveMany, Purpose::Remove),
        ] {
            if queries.of(many).is_some() && queries.of(one).is_none() {
                return Err(SqlBuildError::One { many: many.method(), one: one.method() });
            }
        }
        if self.queries.is_empty() {
            return Err(SqlBuildError::NoQuery);
        }
        // The pool has tasks of its own.
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(SqlBuildError::NoRuntime);
        }
        // A pool of the caller's own does not say, and has probably.
        let has_connected = Arc::new(AtomicBool::new(matches!(self.reach, Reach::Pool(_))));
        let pool = match self.reach {
            Reach::Pool(pool) => pool,
            Reach::Url(url) => {
                // The pool would panic.
                if self.max_connections == 0 {
                    return Err(SqlBuildError::NoConnections);
                }
                // The drivers take any.
                let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
                if !D::URL_SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
                    return Err(SqlBuildError::Scheme { database: D::NAME, example: D::URL });
                }
                let options =
                    url.parse().map_err(|source| SqlBuildError::Url { database: D::NAME, source, example: D::URL })?;
                let limit = self.statement_timeout;
                let has_connected = has_connected.clone();
                PoolOptions::<D>::new()
                    .max_connections(self.max_connections)
                    .acquire_timeout(self.acquire_timeout)
                    .after_connect(move |connection, _| {
                        has_connected.store(true, Relaxed);
                        D::limit_statements(connection, limit)
                    })
                    .connect_lazy_with(options)
            }
        };
        let (host, port, database) = D::place(&pool.connect_options());
        let port_text = port.map(|port| format!(":{port}")).unwrap_or_default();
        Ok(SqlSource {
            place: format!("{} at {host}{port_text}/{database}", D::NAME).into(),
            address: port.map(|port| (host, port)),
            pool,
            has_connected,
            queries,
            rows: self.rows,
            values: self.values,
            columns: self.columns,
            kinds: PhantomData,
        })
    }
}

/// The queries of a source.
#[derive(Debug, Default)]
struct Queries {
    load: Option<Statement>,
    load_many: Option<Statement>,
    save: Option<Statement>,
    save_many: Option<Statement>,
    remove: Option<Statement>,
    remove_many: Option<Statement>,
}

impl Queries {
    fn of(&mut self, purpose: Purpose) -> &mut Option<Statement> {
        match purpose {
            Purpose::Load => &mut self.load,
            Purpose::LoadMany => &mut self.load_many,
            Purpose::Save => &mut self.save,
            Purpose::SaveMany => &mut self.save_many,
            Purpose::Remove => &mut self.remove,
            Purpose::RemoveMany => &mut self.remove_many,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Statement> {
        let Queries { load, load_many, save, save_many, remove, remove_many } = self;
        [load, load_many, save, save_many, remove, remove_many].into_iter().flatten()
    }
}

/// What the parameters of a query stand for; null where nothing is given.
#[derive(Default)]
struct Given<'a> {
    key: Option<Parameter<'a>>,
    keys: Option<Parameter<'a>>,
    json: Option<&'a Json>,
    version: Option<&'a str>,
    write_id: Option<WriteId>,
}

impl<'a> Given<'a> {
    fn parameter(&self, name: Name) -> Parameter<'a> {
        let given = match name {
            Name::Key => self.key.clone(),
            Name::Keys => self.keys.clone(),
            Name::Value | Name::Writes => self.json.map(Parameter::Json),
            Name::Version => self.version.map(|version| Parameter::Text(Some(version.into()))),
            Name::WriteId => self.write_id.map(|id| Parameter::Text(Some(id.to_string().into()))),
        };
        given.unwrap_or(Parameter::Text(None))
    }

    fn parameters(&self, statement: &Statement) -> Vec<Parameter<'a>> {
        statement.parameters().into_iter().map(|name| self.parameter(name)).collect()
    }

    fn arguments<D: SqlDatabase>(&self, statement: &Statement) -> Result<D::Arguments, sqlx::Error> {
        let mut arguments = D::Arguments::default();
        for parameter in self.parameters(statement) {
            D::bind(&mut arguments, &parameter).map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }

    /// How many keys there are.
    fn count(&self) -> usize {
        match &self.keys {
            Some(Parameter::Integers(keys)) => keys.len(),
            Some(Parameter::Texts(keys)) => keys.len(),
            _ => 1,
        }
    }
}

/// A [`Source`] over a SQL database: [`PostgresSource`](super::PostgresSource), [`MySqlSource`](super::MySqlSource).
pub struct SqlSource<D: SqlDatabase, K, V> {
    pool: Pool<D>,
    /// Whether the server has ever taken a connection of this pool.
    has_connected: Arc<AtomicBool>,
    place: Arc<str>,
    /// Where it listens, if that is a port.
    address: Option<(String, u16)>,
    queries: Queries,
    rows: Option<Rows<D, V>>,
    values: Option<Box<ValueFn<V>>>,
    columns: Columns,
    kinds: PhantomData<fn() -> K>,
}

impl<D: SqlDatabase, K, V> fmt::Debug for SqlSource<D, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlSource").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<D: SqlDatabase, K: Key, V: Clone + Send + Sync + 'static> SqlSource<D, K, V> {
    /// A source with connections of its own. What the URL says of TLS and time-outs is [sqlx's](sqlx) to read.
    pub fn connect(url: impl Into<String>) -> SqlBuilder<D, K, V> {
        SqlBuilder::new(Reach::Url(url.into()))
    }

    /// A source over a pool that there is already.
    pub fn over(pool: Pool<D>) -> SqlBuilder<D, K, V> {
        SqlBuilder::new(Reach::Pool(pool))
    }

    /// The pool of connections.
    pub fn pool(&self) -> &Pool<D> {
        &self.pool
    }

    /// Connects, and has the database check every query without running it; a column that was named is to be among those that
    /// a query gives.
    ///
    /// # Errors
    /// It cannot be reached, does not understand a query, or a column is not there: the error says which, and why.
    pub async fn check(&self) -> Result<(), SourceError> {
        let nothing = Json::Null;
        // What is parsed as a number by a type of keys that are numbers.
        let (key, keys) = match K::of_text("0").and_then(|key| key.integer()) {
            Some(zero) => (Parameter::Integer(zero), Parameter::Integers(vec![zero])),
            None => (Parameter::Text(None), Parameter::Texts(vec!["".into()])),
        };
        let given = Given { key: Some(key), keys: Some(keys), json: Some(&nothing), ..Given::default() };
        let mut connection = self.connection("the check of the queries").await?;
        for statement in self.queries.all() {
            let parameters = given.parameters(statement);
            let prepared = D::prepare(&mut connection, statement.sql(1), &parameters).await;
            let given = prepared.map_err(|error| self.refused(statement.purpose.text(), error))?;
            let Columns { json, ttl_ms, tags, version } = &self.columns;
            let named = [json, ttl_ms, tags, version].into_iter().flatten();
            // What a procedure gives is not known before it is called.
            let is_known = matches!(statement.purpose, Purpose::Load | Purpose::LoadMany) && !given.is_empty();
            if let Some(name) = named.filter(|_| is_known).find(|name| !given.contains(name)) {
                return Err(self.rejected(statement.purpose.text(), Why::NoColumn(name.clone())));
            }
        }
        Ok(())
    }

    fn error(&self, query: &'static str, why: Why) -> QueryError {
        QueryError { place: self.place.clone(), query, why }
    }

    fn rejected(&self, query: &'static str, why: Why) -> SourceError {
        SourceError::rejected(self.error(query, why))
    }

    /// What the database says, and what that amounts to.
    fn refused(&self, query: &'static str, error: sqlx::Error) -> SourceError {
        let failure = match &error {
            sqlx::Error::Database(error) => D::failure(&**error),
            sqlx::Error::PoolTimedOut => Failure::Overloaded,
            sqlx::Error::InvalidArgument(_) | sqlx::Error::Encode(_) | sqlx::Error::TypeNotFound { .. } => {
                Failure::Rejected
            }
            _ => Failure::Unavailable,
        };
        let why = match error {
            sqlx::Error::PoolTimedOut => {
                let options = self.pool.options();
                let (limit, most) = (options.get_acquire_timeout(), options.get_max_connections());
                // Those that are being made count among the pool's, and may never come about.
                let is_full = self.pool.size() >= most && self.has_connected.load(Relaxed);
                if is_full { Why::NoConnection(limit, most) } else { Why::NotConnected(limit) }
            }
            error => Why::Database(error),
        };
        let error = self.error(query, why);
        match failure {
            Failure::Rejected => SourceError::rejected(error),
            Failure::Overloaded => SourceError::overloaded(error),
            _ => SourceError::unavailable(error),
        }
    }

    /// A connection that answers.
    ///
    /// Where connections are refused, the pool tries again until its time is up, as is right for a server that is starting.
    /// A cache has something better to do: it serves an old copy. So a second connection is tried beside, whose refusal is
    /// the answer.
    async fn connection(&self, query: &'static str) -> Result<PoolConnection<D>, SourceError> {
        let mut acquiring = pin!(self.pool.acquire());
        let opens = self.pool.num_idle() > 0 || self.pool.size() < self.pool.options().get_max_connections();
        let mut refused = pin!(async {
            let (Some((host, port)), true) = (&self.address, opens) else { return std::future::pending().await };
            // Not at once: where all is well there is nothing to find out, and each try is work for the server.
            tokio::time::sleep(PROBE_AFTER).await;
            match TcpStream::connect((host.as_str(), *port)).await {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => error,
                _ => std::future::pending().await,
            }
        });
        poll_fn(|context| {
            if let Poll::Ready(acquired) = acquiring.as_mut().poll(context) {
                return Poll::Ready(acquired.map_err(|error| match error {
                    // Not of the statement, so never `rejected`: a wrong password is put right, and the write still counts.
                    sqlx::Error::Database(error) if D::failure(&*error) == Failure::Rejected => {
                        SourceError::unavailable(self.error(query, Why::Database(sqlx::Error::Database(error))))
                    }
                    error => self.refused(query, error),
                }));
            }
            let refused = refused.as_mut().poll(context);
            refused.map(|error| Err(SourceError::unavailable(self.error(query, Why::Refused(error)))))
        })
        .await
    }

    /// The rows of a query: one more than `expected`, if there are as many.
    async fn fetch(
        &self,
        statement: &Statement,
        given: &Given<'_>,
        expected: usize,
    ) -> Result<Vec<D::Row>, SourceError> {
        let query = statement.purpose.text();
        // One that lies ready is used as it is: to try it first would be one more round trip for each load. So it may have
        // died meanwhile; then the pool finds another, and tries that.
        if let Some(mut connection) = self.pool.try_acquire() {
            match self.fetch_by(&mut connection, statement, given, expected).await {
                Ok(rows) => return Ok(rows),
                Err(_) if connection.ping().await.is_err() => connection.close_on_drop(),
                Err(error) => return Err(self.refused(query, error)),
            }
        }
        let mut connection = self.connection(query).await?;
        let fetched = self.fetch_by(&mut connection, statement, given, expected).await;
        fetched.map_err(|error| self.refused(query, error))
    }

    async fn fetch_by(
        &self,
        connection: &mut PoolConnection<D>,
        statement: &Statement,
        given: &Given<'_>,
        expected: usize,
    ) -> Result<Vec<D::Row>, sqlx::Error> {
        let sql = statement.sql(given.count());
        let mut fetched = D::fetch(connection, sql.clone(), given.arguments::<D>(statement)?, expected + 1).await;
        if self.forgets(connection, &fetched).await {
            fetched = D::fetch(connection, sql, given.arguments::<D>(statement)?, expected + 1).await;
        }
        if fetched.as_ref().is_ok_and(|rows| rows.len() > expected) {
            // Who knows how many there would be to read before it could be used again.
            connection.close_on_drop();
        }
        fetched
    }

    async fn execute(&self, statement: &Statement, given: &Given<'_>) -> Result<(), SourceError> {
        let query = statement.purpose.text();
        let refused = |error| self.refused(query, error);
        let mut connection = self.connection(query).await?;
        let sql = statement.sql(given.count());
        let arguments = given.arguments::<D>(statement).map_err(refused)?;
        let mut done = D::execute(&mut connection, sql.clone(), arguments).await;
        if self.forgets(&mut connection, &done).await {
            let arguments = given.arguments::<D>(statement).map_err(refused)?;
            done = D::execute(&mut connection, sql, arguments).await;
        }
        done.map_err(refused)
    }

    /// Has a connection forget its prepared statements, if that is why it refused one. That was not run, then.
    async fn forgets<T>(&self, connection: &mut PoolConnection<D>, done: &Result<T, sqlx::Error>) -> bool {
        let is_outdated = matches!(done, Err(sqlx::Error::Database(error)) if D::is_outdated(&**error));
        is_outdated && connection.clear_cached_statements().await.is_ok()
    }

    /// A column by its name, as JSON.
    fn column(&self, row: &D::Row, name: &str) -> Result<Json, Why> {
        let at = row.columns().iter().position(|column| column.name() == name);
        let at = at.ok_or_else(|| Why::NoColumn(name.into()))?;
        D::json(row, at).map_err(|error| Why::Column(name.into(), error))
    }

    fn value(&self, row: &D::Row, key: &K) -> Result<V, Why> {
        let is_no_value = |error: BoxDynError| Why::Value(key.text().into(), error);
        match &self.rows {
            Some(Rows::Closure(value)) => value(row).map_err(is_no_value),
            Some(Rows::Serde(value)) => {
                let json = match &self.columns.json {
                    Some(name) => match self.column(row, name)? {
                        Json::String(text) => serde_json::from_str(&text).map_err(|error| is_no_value(error.into()))?,
                        json => json,
                    },
                    None => Json::Object(object::<D>(row)?),
                };
                value(json).map_err(|error| is_no_value(error.into()))
            }
            None => Err(Why::NoQuery(Purpose::Load.method())),
        }
    }

    /// What a row says.
    fn loaded(&self, row: &D::Row, key: &K, validator: Option<&str>) -> Result<Loaded<V>, Why> {
        let Columns { ttl_ms, tags, version, .. } = &self.columns;
        let column = |name: &Option<String>| name.as_ref().map(|name| self.column(row, name)).transpose();
        let version = column(version)?.and_then(|version| scalar(&version));
        let mut loaded = match validator {
            Some(validator) if version.as_deref() == Some(validator) => Loaded::unchanged(),
            _ => Loaded::value(self.value(row, key)?),
        };
        if let (Some(name), Some(json)) = (ttl_ms, column(ttl_ms)?)
            && !json.is_null()
        {
            let ms = json.as_u64().ok_or_else(|| {
                Why::Column(
                    name.clone(),
                    format!("{json} is no number of milliseconds: a whole number from 0 on").into(),
                )
            })?;
            loaded = loaded.fresh_for(Duration::from_millis(ms));
        }
        if let (Some(name), Some(json)) = (tags, column(tags)?) {
            let bad = || Why::Column(name.clone(), format!("{json} is neither a tag nor an array of tags").into());
            for tag in listed(&json).ok_or_else(bad)? {
                loaded = loaded.tag(tag);
            }
        }
        Ok(match (version, &loaded.value) {
            (Some(version), Answer::Value(_)) => loaded.validator(version),
            _ => loaded,
        })
    }

    /// The rows of some keys, each of them once. What is wrong with a row is an error of its key; of a row whose key is
    /// not known, of all keys that have none.
    async fn load_chunk(&self, statement: &Statement, keys: &[K]) -> Result<LoadedMany<V>, SourceError> {
        let query = statement.purpose.text();
        let rejected = |why| self.rejected(query, why);
        let mut places: HashMap<Cow<'_, str>, usize> = HashMap::with_capacity(keys.len());
        places.extend(keys.iter().enumerate().map(|(at, key)| (key.text(), at)));
        // Statements are prepared by their text: lists of a few lengths, the last key again and again, for those are remembered.
        let wanted = if statement.spreads_keys() { keys.len().next_power_of_two().min(CHUNK) } else { keys.len() };
        let last = keys.iter().cycle().skip(keys.len() - 1).take(wanted - keys.len());
        let given = Given { keys: Some(Parameter::keys(keys.iter().chain(last))), ..Given::default() };
        let rows = self.fetch(statement, &given, keys.len()).await?;
        let mut answers: Vec<Option<Result<Loaded<V>, SourceError>>> = keys.iter().map(|_| None).collect();
        let (mut of_nobody, mut twice) = (None, None);
        for row in &rows {
            let key = match D::json(row, 0) {
                Ok(key) => scalar(&key).unwrap_or_default(),
                Err(error) => {
                    of_nobody = of_nobody.or(Some(rejected(Why::Column(first::<D>(row), error))));
                    continue;
                }
            };
            let Some(at) = places.get(&*key).copied() else {
                of_nobody = of_nobody.or(Some(rejected(Why::NotAsked(key))));
                continue;
            };
            let loaded = self.loaded(row, &keys[at], None).map_err(rejected);
            if answers[at].replace(loaded).is_some() {
                let error = rejected(Why::TwoRows(keys[at].text().into()));
                answers[at] = Some(Err(error.clone()));
                twice = twice.or(Some(error));
            }
        }
        // There are more than were read, and nobody knows of which keys.
        if rows.len() > keys.len()
            && let Some(error) = of_nobody.take().or(twice)
        {
            return Err(error);
        }
        let without_row = || of_nobody.clone().map_or_else(|| Ok(Loaded::absent()), Err);
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(without_row)).collect())
    }

    /// The same; where the database refuses them together because of what one of them is, in halves, down to that one.
    async fn load_in_parts(&self, statement: &Statement, keys: &[K]) -> Result<LoadedMany<V>, SourceError> {
        let mut loaded = Vec::with_capacity(keys.len());
        let (mut parts, mut splits) = (vec![keys], 0);
        while let Some(part) = parts.pop() {
            match self.load_chunk(statement, part).await {
                Ok(answers) => loaded.extend(answers),
                Err(error) if part.len() > 1 && splits < MOST_SPLITS && is_of_a_key(&error) => {
                    splits += 1;
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error) if part.len() < keys.len() && error.failure == Failure::Rejected => {
                    loaded.extend(part.iter().map(|_| Err(error.clone())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(loaded)
    }

    fn write_json(&self, save: &Save<'_, K, V>) -> Result<Json, SourceError> {
        let value = match (save.value, &self.values) {
            (Some(value), Some(json)) => {
                json(value).map_err(|error| self.rejected(Purpose::Save.text(), Why::Unwritable(error)))?
            }
            _ => Json::Null,
        };
        Ok(value)
    }

    /// Carries out writes of one kind in one statement; where they are refused together, each by itself.
    async fn save_chunk(&self, many: &Statement, saves: &[Save<'_, K, V>]) -> Vec<Result<(), SourceError>> {
        let mut writes = Vec::with_capacity(saves.len());
        for save in saves {
            let key = match save.key.integer().map(i64::try_from) {
                Some(Ok(number)) => Json::from(number),
                _ => Json::from(save.key.text().into_owned()),
            };
            match self.write_json(save) {
                Ok(value) => writes.push(json!({ "key": key, "value": value, "write_id": save.id.to_string() })),
                Err(_) => return self.save_each(saves).await,
            }
        }
        let writes = Json::Array(writes);
        let keys = Parameter::keys(saves.iter().map(|save| save.key));
        let given = Given { keys: Some(keys), json: Some(&writes), ..Given::default() };
        match self.execute(many, &given).await {
            Ok(()) => saves.iter().map(|_| Ok(())).collect(),
            Err(error) if error.failure == Failure::Rejected => self.save_each(saves).await,
            Err(error) => saves.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn save_each(&self, saves: &[Save<'_, K, V>]) -> Vec<Result<(), SourceError>> {
        let mut results = Vec::with_capacity(saves.len());
        for save in saves {
            results.push(self.save_one(save).await);
        }
        results
    }

    async fn save_one(&self, save: &Save<'_, K, V>) -> Result<(), SourceError> {
        let (statement, purpose) = match save.value {
            Some(_) => (&self.queries.save, Purpose::Save),
            None => (&self.queries.remove, Purpose::Remove),
        };
        let none = || self.rejected(purpose.text(), Why::NoQuery(purpose.method()));
        let statement = statement.as_ref().ok_or_else(none)?;
        let value = if statement.has(Name::Value) { self.write_json(save)? } else { Json::Null };
        let given = Given {
            key: Some(Parameter::key(save.key)),
            json: Some(&value),
            write_id: Some(save.id),
            ..Given::default()
        };
        self.execute(statement, &given).await
    }
}

/// A row as an object.
fn object<D: SqlDatabase>(row: &D::Row) -> Result<Map<String, Json>, Why> {
    let mut object = Map::new();
    for (at, column) in row.columns().iter().enumerate() {
        let name = column.name();
        let json = D::json(row, at).map_err(|error| Why::Column(name.into(), error))?;
        if object.insert(name.into(), json).is_some() {
            return Err(Why::TwoColumns(name.into()));
        }
    }
    Ok(object)
}

/// Whether the database refuses a list of keys for what is in it, so that other lists may be taken; not for the statement.
fn is_of_a_key(error: &SourceError) -> bool {
    let Some(QueryError { why: Why::Database(why), .. }) = error.cause.downcast_ref() else { return false };
    let of_the_statement = |code: &str| code.starts_with("42") || code.starts_with("0A");
    let code = why.as_database_error().and_then(DatabaseError::code);
    error.failure == Failure::Rejected && !code.is_some_and(|code| of_the_statement(&code))
}

fn first<D: SqlDatabase>(row: &D::Row) -> String {
    row.columns().first().map(|column| column.name().into()).unwrap_or_default()
}

/// The text of what is no structure; none for null.
fn scalar(json: &Json) -> Option<String> {
    match json {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// The tags of a column; none if it has no such form.
fn listed(json: &Json) -> Option<Vec<String>> {
    match json {
        Json::Null => Some(Vec::new()),
        Json::Array(tags) => tags
            .iter()
            .map(|tag| match tag {
                Json::String(_) | Json::Number(_) => scalar(tag),
                _ => None,
            })
            .collect(),
        // MariaDB has no type for JSON: it is text there.
        Json::String(text) if text.starts_with('[') => serde_json::from_str(text).ok().and_then(|json| listed(&json)),
        Json::String(_) | Json::Number(_) => Some(scalar(json).into_iter().collect()),
        _ => None,
    }
}

/// A number, as JSON writes it: exactly, or else as text.
pub(super) fn exact_number(text: &str) -> Json {
    let trimmed = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    if let Ok(integer) = trimmed.parse::<i64>() {
        return integer.into();
    }
    match trimmed.parse::<f64>() {
        // The shortest text of the number is the text that it was made of: nothing was lost.
        Ok(float) if float.to_string() == trimmed => float.into(),
        _ => text.into(),
    }
}

impl<D: SqlDatabase, K: Key, V: Clone + Send + Sync + 'static> Source<K, V> for SqlSource<D, K, V> {
    fn loads(&self) -> bool {
        self.queries.load.is_some()
    }

    fn saves(&self) -> bool {
        self.queries.save.is_some() || self.queries.remove.is_some()
    }

    fn load<'a>(&'a self, key: &'a K, validator: Option<&'a str>) -> BoxFuture<'a, Result<Loaded<V>, SourceError>> {
        Box::pin(async move {
            let none = || self.rejected(Purpose::Load.text(), Why::NoQuery(Purpose::Load.method()));
            let statement = self.queries.load.as_ref().ok_or_else(none)?;
            let given = Given { key: Some(Parameter::key(key)), version: validator, ..Given::default() };
            let rows = self.fetch(statement, &given, 1).await?;
            match rows.as_slice() {
                [] => Ok(Loaded::absent()),
                [row] => self.loaded(row, key, validator),
                _ => Err(Why::TwoRows(key.text().into())),
            }
            .map_err(|why| self.rejected(Purpose::Load.text(), why))
        })
    }

    fn loads_many(&self) -> bool {
        self.queries.load_many.is_some()
    }

    fn load_many<'a>(&'a self, keys: &'a [K]) -> BoxFuture<'a, Result<LoadedMany<V>, SourceError>> {
        Box::pin(async move {
            let none = || self.rejected(Purpose::LoadMany.text(), Why::NoQuery(Purpose::LoadMany.method()));
            let statement = self.queries.load_many.as_ref().ok_or_else(none)?;
            // A key that is asked for twice is loaded once.
            let mut places: HashMap<&K, usize> = HashMap::with_capacity(keys.len());
            let mut once = Vec::with_capacity(keys.len());
            let wanted: Vec<usize> = keys
                .iter()
                .map(|key| {
                    *places.entry(key).or_insert_with(|| {
                        once.push(key.clone());
                        once.len() - 1
                    })
                })
                .collect();
            let mut loaded = Vec::with_capacity(once.len());
            for chunk in once.chunks(CHUNK) {
                match self.load_in_parts(statement, chunk).await {
                    Ok(chunk) => loaded.extend(chunk),
                    // Other keys have their answers, or may get them.
                    Err(error) if error.failure == Failure::Rejected && once.len() > CHUNK => {
                        loaded.extend(chunk.iter().map(|_| Err(error.clone())));
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(wanted.into_iter().map(|at| loaded[at].clone()).collect())
        })
    }

    fn save<'a>(&'a self, save: Save<'a, K, V>) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move { self.save_one(&save).await })
    }

    fn saves_many(&self) -> bool {
        self.queries.save_many.is_some() || self.queries.remove_many.is_some()
    }

    fn save_many<'a>(&'a self, saves: &'a [Save<'a, K, V>]) -> BoxFuture<'a, Vec<Result<(), SourceError>>> {
        Box::pin(async move {
            let mut results: Vec<Result<(), SourceError>> = saves.iter().map(|_| Ok(())).collect();
            for (many, removes) in [(&self.queries.save_many, false), (&self.queries.remove_many, true)] {
                let places: Vec<usize> = (0..saves.len()).filter(|at| saves[*at].value.is_none() == removes).collect();
                for places in places.chunks(CHUNK) {
                    let chunk: Vec<_> = places.iter().map(|at| saves[*at]).collect();
                    let done = match many {
                        Some(many) if chunk.len() > 1 => self.save_chunk(many, &chunk).await,
                        _ => self.save_each(&chunk).await,
                    };
                    places.iter().zip(done).for_each(|(at, result)| results[*at] = result);
                }
            }
            results
        })
    }
}
