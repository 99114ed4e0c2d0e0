//! A source over MySQL and MariaDB, by [sqlx].
//!
//! ```no_run
//! use larder::tiered::{MySqlSource, Tiered};
//!
//! #[derive(Clone, serde::Serialize, serde::Deserialize)]
//! struct Product {
//!     name: String,
//!     price: f64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = MySqlSource::<i64, Product>::connect("mysql://shop:secret@localhost/shop")
//!     .load("select name, price from products where id = :key")
//!     .load_many("select id, name, price from products where id in (:keys)")
//!     .save(
//!         "insert into products (id, name, price)
//!          values (:key, json_value(:value, '$.name'), json_value(:value, '$.price'))
//!          on duplicate key update name = values(name), price = values(price)",
//!     )
//!     .remove("delete from products where id = :key")
//!     .build()?;
//! source.check().await.map_err(|error| error.to_string())?;
//! let products = Tiered::builder().keyspace("products").max_capacity(10_000).source(source).build()?;
//! # let _ = products;
//! # Ok(()) }
//! ```
//!
//! What queries and rows may be is told in [`sql`](super::sql). Here, `:keys` is a list (`in (:keys)`), and `:value` and
//! `:writes` are JSON as text, for `json_value` and `json_table`:
//!
//! ```sql
//! insert into products (id, name, price)
//! select * from json_table(:writes, '$[*]' columns (
//!     id bigint path '$.key', name varchar(200) path '$.value.name', price decimal(10, 2) path '$.value.price')) as writes
//! on duplicate key update name = values(name), price = values(price)
//! ```
//!
//! TLS is as the URL says: `?ssl-mode=VERIFY_IDENTITY&ssl-ca=ca.pem`. Connections speak UTF-8 and UTC, and `||` puts text
//! together, as everywhere else in SQL (sqlx sets `PIPES_AS_CONCAT`).
//!
//! How columns become JSON: numbers and text as themselves, `tinyint(1)` as a boolean; `decimal` as a number where that says
//! it exactly, else as text; moments as RFC 3339 (`timestamp`) or without a zone; bytes as text where they are UTF-8, and
//! otherwise refused (`to_base64(photo)`). MariaDB has no type for JSON: a document in a row is text there, unless it is
//! the value itself ([`json_column`](super::sql::SqlBuilder::json_column)).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use sqlx::error::{BoxDynError, DatabaseError};
use sqlx::mysql::types::MySqlTime;
use sqlx::mysql::{MySqlArguments, MySqlConnectOptions, MySqlDatabaseError, MySqlRow};
use sqlx::types::Decimal;
use sqlx::types::chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use sqlx::{
    Arguments as _, AssertSqlSafe, Column as _, Executor as _, MySql, MySqlConnection, Row as _, SqlSafeStr as _,
    Statement as _, TypeInfo as _, ValueRef as _,
};

use super::sql::{Dialect, Parameter, SqlBuilder, SqlDatabase, SqlSource, exact_number};
use super::{BoxFuture, Failure};

/// A [`Source`](super::Source) over MySQL or MariaDB. See the [module](self).
pub type MySqlSource<K, V> = SqlSource<MySql, K, V>;

/// Sets a [`MySqlSource`] up.
pub type MySqlBuilder<K, V> = SqlBuilder<MySql, K, V>;

fn add_integer(arguments: &mut MySqlArguments, key: i128) -> Result<(), BoxDynError> {
    match (i64::try_from(key), u64::try_from(key)) {
        (Ok(key), _) => arguments.add(key),
        (_, Ok(key)) => arguments.add(key),
        _ => Err(format!("the key {key} does not fit a bigint: use a key that is text, and cast it").into()),
    }
}

impl SqlDatabase for MySql {
    const DIALECT: Dialect = Dialect { numbered: false, backslashes: true };
    const URL: &'static str = "mysql://user:password@host:3306/database";

    fn bind(arguments: &mut MySqlArguments, parameter: &Parameter<'_>) -> Result<(), BoxDynError> {
        match parameter {
            Parameter::Integer(key) => add_integer(arguments, *key),
            Parameter::Text(text) => arguments.add(text.as_deref()),
            Parameter::Integers(keys) => keys.iter().try_for_each(|key| add_integer(arguments, *key)),
            Parameter::Texts(keys) => keys.iter().try_for_each(|key| arguments.add(&**key)),
            // As text: MariaDB has no other.
            Parameter::Json(json) => arguments.add(json.to_string()),
        }
    }

    fn fetch<'a>(
        connection: &'a mut MySqlConnection,
        sql: Arc<str>,
        arguments: MySqlArguments,
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<MySqlRow>, sqlx::Error>> {
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
        connection: &'a mut MySqlConnection,
        sql: Arc<str>,
        arguments: MySqlArguments,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move { sqlx::query_with(AssertSqlSafe(sql), arguments).execute(connection).await.map(drop) })
    }

    fn prepare<'a>(
        connection: &'a mut MySqlConnection,
        sql: Arc<str>,
        _: &'a [Parameter<'a>],
    ) -> BoxFuture<'a, Result<Vec<String>, sqlx::Error>> {
        Box::pin(async move {
            let statement = connection.prepare(AssertSqlSafe(sql).into_sql_str()).await?;
            Ok(statement.columns().iter().map(|column| column.name().into()).collect())
        })
    }

    fn limit_statements(connection: &mut MySqlConnection, limit: Duration) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let version: String = sqlx::query_scalar("select version()").fetch_one(&mut *connection).await?;
            let set = if version.contains("MariaDB") {
                format!("set session max_statement_time = {}", limit.as_secs_f64())
            } else {
                // For what reads only; there is no limit for other statements.
                format!("set session max_execution_time = {}", limit.as_millis())
            };
            connection.execute(sqlx::raw_sql(AssertSqlSafe(set))).await.map(drop)
        })
    }

    fn json(row: &MySqlRow, column: usize) -> Result<Json, BoxDynError> {
        let raw = row.try_get_raw(column)?;
        if raw.is_null() {
            return Ok(Json::Null);
        }
        macro_rules! decoded {
            ($type:ty) => {
                row.try_get_unchecked::<$type, _>(column)?
            };
        }
        Ok(match raw.type_info().name() {
            "BOOLEAN" => decoded!(bool).into(),
            "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT" => decoded!(i64).into(),
            "TINYINT UNSIGNED" | "SMALLINT UNSIGNED" | "MEDIUMINT UNSIGNED" | "INT UNSIGNED" | "BIGINT UNSIGNED"
            | "YEAR" | "BIT" => decoded!(u64).into(),
            "FLOAT" => exact_number(&decoded!(f32).to_string()),
            "DOUBLE" => decoded!(f64).into(),
            "DECIMAL" => exact_number(
                &row.try_get_unchecked::<Decimal, _>(column)
                    .map_err(|error| {
                        format!("{error}: a decimal of more than 28 digits is read as text (`cast(… as char)`)")
                    })?
                    .to_string(),
            ),
            "CHAR" | "VARCHAR" | "TINYTEXT" | "TEXT" | "MEDIUMTEXT" | "LONGTEXT" | "ENUM" | "SET" => {
                decoded!(String).into()
            }
            "JSON" => decoded!(Json),
            "TIMESTAMP" => decoded!(DateTime<Utc>).to_rfc3339().into(),
            "DATETIME" => decoded!(NaiveDateTime).format("%Y-%m-%dT%H:%M:%S%.f").to_string().into(),
            "DATE" => decoded!(NaiveDate).to_string().into(),
            "TIME" => decoded!(MySqlTime).to_string().into(),
            // Text of a binary collation looks like bytes: JSON in MariaDB, for one.
            "BINARY" | "VARBINARY" | "TINYBLOB" | "BLOB" | "MEDIUMBLOB" | "LONGBLOB" => {
                let text = String::from_utf8(decoded!(Vec<u8>));
                text.map_err(|_| "bytes have no form in JSON here: encode them in the query (`to_base64(…)`), or read rows by a closure (`load_with`)")?
                    .into()
            }
            other => {
                return Err(format!(
                    "the type {other} has no form in JSON here: cast it in the query (`cast(… as char)`), or read rows by a \
                     closure (`load_with`)"
                )
                .into());
            }
        })
    }

    fn failure(error: &dyn DatabaseError) -> Failure {
        let number = error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
        let code = error.code().unwrap_or_default();
        match (number, code.get(..2).unwrap_or_default()) {
            // Too many connections, or too much of what one user may; a lock waited for too long, a deadlock.
            (1040 | 1203 | 1226 | 1205 | 1213, _) => Failure::Overloaded,
            // Read-only, shutting down, killed, too slow.
            (1290 | 1792 | 1836 | 1053 | 1317 | 1927 | 1969 | 3024, _) => Failure::Unavailable,
            // Of the data or the statement, without saying so in the code: no default, a wrong value, a failed check, bad JSON.
            (1364 | 1366 | 1265 | 3819 | 3140..=3160 | 4025 | 4037..=4044, _) => Failure::Rejected,
            (_, "21" | "22" | "23" | "42" | "44" | "45" | "0A") => Failure::Rejected,
            _ => Failure::Unavailable,
        }
    }

    fn is_outdated(error: &dyn DatabaseError) -> bool {
        // A prepared statement that the server does not know any more, or that would have to be prepared again too often.
        let number = error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
        matches!(number, 1243 | 1615)
    }

    fn place(options: &MySqlConnectOptions) -> (String, Option<u16>, String) {
        let database = options.get_database().unwrap_or_default().into();
        match options.get_socket() {
            Some(socket) => (socket.display().to_string(), None, database),
            None => (options.get_host().into(), Some(options.get_port()), database),
        }
    }
}
