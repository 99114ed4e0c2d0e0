//! A source over PostgreSQL, by [sqlx].
//!
//! ```no_run
//! use larder::tiered::{PostgresSource, Tiered};
//!
//! #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! struct Product {
//!     id: i64,
//!     name: String,
//!     price: f64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = PostgresSource::<i64, Product>::connect("postgres://shop:secret@localhost/shop")
//!     .load("select id, name, price from products where id = :key")
//!     .load_many("select id, name, price from products where id = any(:keys)")
//!     .save(
//!         "insert into products select * from jsonb_populate_record(null::products, :value)
//!          on conflict (id) do update set name = excluded.name, price = excluded.price",
//!     )
//!     .remove("delete from products where id = :key")
//!     .build()?;
//! source.check().await.map_err(|error| error.to_string())?;
//! let products = Tiered::builder().keyspace("products").max_capacity(10_000).source(source).build()?;
//! # let _ = products;
//! # Ok(()) }
//! ```
//!
//! What queries and rows may be is told in [`sql`](super::sql). Here, `:keys` is an array (`= any(:keys)`), and `:value`
//! and `:writes` are `jsonb`, so that the table's own types do the rest:
//!
//! ```sql
//! insert into products
//! select (w.value).* from jsonb_to_recordset(:writes) as w (key bigint, value products, write_id uuid)
//! on conflict (id) do update set name = excluded.name, price = excluded.price
//! ```
//!
//! TLS is as the URL says: `?sslmode=verify-full&sslrootcert=ca.pem`. Behind a pooler that hands connections from one
//! transaction to another, prepared statements need its help (PgBouncer from 1.21 on).
//!
//! How columns become JSON: numbers, text, booleans, `json` and arrays as themselves; `numeric` as a number where that says
//! it exactly, else as text; moments as RFC 3339 (`timestamptz`) or without a zone; `uuid` and enumerations as text. Other
//! types are refused with the remedy: a cast in the query (`duration::text`, `encode(photo, 'base64')`).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow, PgTypeInfo, PgTypeKind};
use sqlx::types::chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use sqlx::types::{Decimal, Uuid};
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Executor as _, PgConnection, Postgres, Row as _, SqlSafeStr as _,
    Statement as _, TypeInfo as _, ValueRef as _,
};

use super::sql::{Dialect, Parameter, SqlBuilder, SqlDatabase, SqlSource, exact_number};
use super::{BoxFuture, Failure};

/// A [`Source`](super::Source) over PostgreSQL. See the [module](self).
pub type PostgresSource<K, V> = SqlSource<Postgres, K, V>;

/// Sets a [`PostgresSource`] up.
pub type PostgresBuilder<K, V> = SqlBuilder<Postgres, K, V>;

fn bigint(key: i128) -> Result<i64, BoxDynError> {
    i64::try_from(key)
        .map_err(|_| format!("the key {key} does not fit a bigint: use a key that is text, and cast it").into())
}

impl SqlDatabase for Postgres {
    const DIALECT: Dialect = Dialect { numbered: true, backslashes: false };
    const URL: &'static str = "postgres://user:password@host:5432/database";

    fn bind(arguments: &mut PgArguments, parameter: &Parameter<'_>) -> Result<(), BoxDynError> {
        match parameter {
            Parameter::Integer(key) => arguments.add(bigint(*key)?),
            Parameter::Text(text) => arguments.add(text.as_deref()),
            Parameter::Integers(keys) => {
                arguments.add(keys.iter().map(|key| bigint(*key)).collect::<Result<Vec<_>, _>>()?)
            }
            Parameter::Texts(keys) => arguments.add(keys.iter().map(|key| &**key).collect::<Vec<_>>()),
            Parameter::Json(json) => arguments.add(json),
        }
    }

    fn fetch<'a>(
        connection: &'a mut PgConnection,
        sql: Arc<str>,
        arguments: PgArguments,
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<PgRow>, sqlx::Error>> {
        Box::pin(async move {
            let mut stream = sqlx::query_with(AssertSqlSafe(sql), arguments).fetch(connection);
            let mut rows = Vec::new();
            while rows.len() < most
                && let Some(row) = poll_fn(|context| stream.as_mut().poll_next(context)).await
            {
                rows.push(row?);
            }
            Ok(rows)
        })
    }

    fn execute<'a>(
        connection: &'a mut PgConnection,
        sql: Arc<str>,
        arguments: PgArguments,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move { sqlx::query_with(AssertSqlSafe(sql), arguments).execute(connection).await.map(drop) })
    }

    fn prepare<'a>(
        connection: &'a mut PgConnection,
        sql: Arc<str>,
        parameters: &'a [Parameter<'a>],
    ) -> BoxFuture<'a, Result<Vec<String>, sqlx::Error>> {
        Box::pin(async move {
            let types: Vec<PgTypeInfo> = parameters
                .iter()
                .map(|parameter| {
                    PgTypeInfo::with_name(match parameter {
                        Parameter::Integer(_) => "int8",
                        Parameter::Text(_) => "text",
                        Parameter::Integers(_) => "_int8",
                        Parameter::Texts(_) => "_text",
                        Parameter::Json(_) => "jsonb",
                    })
                })
                .collect();
            let statement = connection.prepare_with(AssertSqlSafe(sql).into_sql_str(), &types).await?;
            Ok(statement.columns().iter().map(|column| column.name().into()).collect())
        })
    }

    fn limit_statements(connection: &mut PgConnection, limit: Duration) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let set = sqlx::query("select set_config('statement_timeout', $1, false)");
            set.bind(limit.as_millis().to_string()).execute(connection).await.map(drop)
        })
    }

    fn json(row: &PgRow, column: usize) -> Result<Json, BoxDynError> {
        let raw = row.try_get_raw(column)?;
        if raw.is_null() {
            return Ok(Json::Null);
        }
        let info = raw.type_info().into_owned();
        let mut kind = &info;
        while let PgTypeKind::Domain(inner) = kind.kind() {
            kind = inner;
        }
        if let PgTypeKind::Enum(_) = kind.kind() {
            return Ok(raw.as_str()?.into());
        }
        /// Decodes a column, whatever domain it is of; by another function, if that is given.
        macro_rules! decoded {
            ($type:ty) => {
                row.try_get_unchecked::<$type, _>(column)?
            };
            ([$type:ty] as $with:expr) => {
                Json::Array(
                    decoded!(Vec<Option<$type>>).into_iter().map(|each| each.map_or(Json::Null, $with)).collect(),
                )
            };
        }
        let moment = |at: DateTime<Utc>| Json::from(at.to_rfc3339());
        let local = |at: NaiveDateTime| Json::from(at.format("%Y-%m-%dT%H:%M:%S%.f").to_string());
        let number = |number: Decimal| exact_number(&number.to_string());
        let real = |real: f32| exact_number(&real.to_string());
        Ok(match kind.name() {
            "BOOL" => decoded!(bool).into(),
            "INT2" => decoded!(i16).into(),
            "INT4" => decoded!(i32).into(),
            "INT8" => decoded!(i64).into(),
            "FLOAT4" => real(decoded!(f32)),
            "FLOAT8" => decoded!(f64).into(),
            "NUMERIC" => number(row.try_get_unchecked(column).map_err(|error| {
                format!("{error}: a numeric that is not so in 28 digits is read as text (`::text` in the query)")
            })?),
            "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "citext" | "UNKNOWN" => raw.as_str()?.into(),
            "\"CHAR\"" => raw.as_str()?.into(),
            "JSON" | "JSONB" => decoded!(Json),
            "UUID" => decoded!(Uuid).to_string().into(),
            "TIMESTAMPTZ" => moment(decoded!(DateTime<Utc>)),
            "TIMESTAMP" => local(decoded!(NaiveDateTime)),
            "DATE" => decoded!(NaiveDate).to_string().into(),
            "TIME" => decoded!(NaiveTime).to_string().into(),
            "BOOL[]" => decoded!([bool] as Json::from),
            "INT2[]" => decoded!([i16] as Json::from),
            "INT4[]" => decoded!([i32] as Json::from),
            "INT8[]" => decoded!([i64] as Json::from),
            "FLOAT4[]" => decoded!([f32] as real),
            "FLOAT8[]" => decoded!([f64] as Json::from),
            "NUMERIC[]" => decoded!([Decimal] as number),
            "TEXT[]" | "VARCHAR[]" | "CHAR[]" | "NAME[]" => decoded!([String] as Json::from),
            "UUID[]" => decoded!([Uuid] as |uuid: Uuid| uuid.to_string().into()),
            "JSON[]" | "JSONB[]" => decoded!([Json] as |json| json),
            "TIMESTAMPTZ[]" => decoded!([DateTime<Utc>] as moment),
            "TIMESTAMP[]" => decoded!([NaiveDateTime] as local),
            "VOID" => Json::Null,
            other => {
                return Err(format!(
                    "the type {other} has no form in JSON here: cast it in the query (`::text`; bytes: `encode(…, 'base64')`), \
                     or read rows by a closure (`load_with`)"
                )
                .into());
            }
        })
    }

    fn failure(error: &dyn DatabaseError) -> Failure {
        let code = error.code().unwrap_or_default();
        match &*code {
            // A deadlock, a serialization failure, a lock that was not to be had: nothing was done, and it may go well again.
            "40001" | "40P01" | "55P03" | "53300" | "53400" => Failure::Overloaded,
            // A standby, or one that becomes one: the primary is elsewhere.
            "25006" => Failure::Unavailable,
            // Of the data (21 to 23, 44), of the statement (42, 0A), or raised by it (P0, 25: in a failed transaction).
            code if ["21", "22", "23", "42", "44", "0A", "P0", "2F", "38", "39"]
                .contains(&&code[..code.len().min(2)]) =>
            {
                Failure::Rejected
            }
            _ => Failure::Unavailable,
        }
    }

    fn is_outdated(error: &dyn DatabaseError) -> bool {
        // "cached plan must not change result type": a column of the table has changed; and "prepared statement … does not
        // exist", of poolers and after `discard all`.
        let code = error.code().unwrap_or_default();
        code == "26000" || code == "0A000" && error.message().contains("cached plan")
    }

    fn place(options: &PgConnectOptions) -> (String, Option<u16>, String) {
        let database = options.get_database().unwrap_or(options.get_username()).into();
        match options.get_socket() {
            Some(socket) => (socket.display().to_string(), None, database),
            None if options.get_host().starts_with('/') => (options.get_host().into(), None, database),
            None => (options.get_host().into(), Some(options.get_port()), database),
        }
    }
}
