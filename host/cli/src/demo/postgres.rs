//! The shop's database in PostgreSQL: the same rows, in a schema of the demo's own.
//!
//! Everything is in the schema [`SCHEMA`], which `larder demo --clean` drops. The queries are what a shop would write. Only the
//! template's is slower than it need be (`pg_sleep`): counting some thousand products takes PostgreSQL no time, and a
//! stampede on what takes no time is none.
//!
//! A purchase is refused, as in the embedded database, if the stock is not the version before: the function `set_stock` raises
//! an error then, which the source takes for *rejected*.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use larder::tiered::{Bus, PostgresSource, Source, Tier};
use serde::de::DeserializeOwned;
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection, PgPool, Row as _};

use super::database::Audit;
use super::goods::{self, BOX, LANGUAGES, Price, Product, Review, Reviews, Stock, Template};
use super::stores::Stores;

/// Where everything is.
pub const SCHEMA: &str = "larder_demo";

/// What the schema says of itself: no other is dropped.
const MARK: &str = "made by larder demo";

/// As many connections as the embedded database has.
const CONNECTIONS: u32 = super::database::CONNECTIONS as u32;

/// How long it may take to connect.
const PATIENCE: Duration = Duration::from_secs(10);

const TABLES: &str = "
create table larder_demo.template (language text primary key, version bigint not null);
create table larder_demo.product (
    id bigint primary key, category int not null, name text not null, description text not null, version bigint not null);
create table larder_demo.price (id bigint primary key, cents int not null, category int not null, version bigint not null);
create index on larder_demo.price (category);
create table larder_demo.review (
    number bigint generated always as identity primary key, product bigint not null, stars int not null, words text not null);
create index on larder_demo.review (product, number);
create table larder_demo.stock (id bigint primary key, pieces int not null, version bigint not null);
create table larder_demo.books (sold bigint not null, refilled bigint not null);
insert into larder_demo.books values (0, 0);
create function larder_demo.set_stock(product bigint, pieces_now int, version_now bigint) returns void language plpgsql as $$
declare
    before int;
begin
    select pieces into before from larder_demo.stock where id = product and version + 1 = version_now for update;
    if not found then
        raise exception 'the stock has changed since it was read: read it again';
    end if;
    update larder_demo.stock set pieces = pieces_now, version = version_now where id = product;
    update larder_demo.books set
        sold = sold + greatest(before - pieces_now, 0), refilled = refilled + greatest(pieces_now - before, 0);
end $$;
";

/// The database.
pub struct Postgres {
    pool: PgPool,
    /// Holds the lock by which no two demos run on one database.
    _only: PgConnection,
    place: String,
}

/// A row that is one JSON document.
fn document<T: DeserializeOwned + Send + Unpin>(row: &PgRow) -> Result<Arc<T>, sqlx::Error> {
    row.try_get::<Json<T>, _>("row").map(|Json(row)| Arc::new(row))
}

/// A pool asks for half a minute, without a word, where the database does not answer or nobody is there: one connection is made first.
async fn connected(options: PgPoolOptions, url: &str) -> anyhow::Result<PgPool> {
    let Ok(connected) = tokio::time::timeout(PATIENCE, PgConnection::connect(url)).await else {
        anyhow::bail!(
            "the database of --postgres has not answered for {PATIENCE:?}: look whether it is well, and reached from here"
        )
    };
    let connecting = "cannot connect to the database of --postgres; write postgres://user:password@host:5432/database";
    drop(connected.context(connecting)?.close().await);
    options.connect(url).await.context(connecting)
}

impl Postgres {
    /// Connects, and makes a new shop there.
    ///
    /// # Errors
    /// It cannot be reached, another demo runs there, or there is a schema of that name that is not the demo's.
    pub async fn open(url: &str, products: u32, seed: u64) -> anyhow::Result<Self> {
        // The address may hold a password, and is not repeated.
        let pool = connected(PgPoolOptions::new().max_connections(CONNECTIONS), url).await?;
        let options = pool.connect_options();
        let place = format!("PostgreSQL at {}:{}", options.get_host(), options.get_port());
        let mut only = pool.acquire().await?.detach();
        let free: bool =
            sqlx::query_scalar("select pg_try_advisory_lock(hashtext('larder demo'))").fetch_one(&mut only).await?;
        anyhow::ensure!(free, "another `larder demo` runs on this database: end it, or name another database");
        let postgres = Postgres { pool, _only: only, place };
        postgres.clean().await?;
        postgres.fill(products, seed).await.with_context(|| format!("cannot fill the schema {SCHEMA}"))?;
        Ok(postgres)
    }

    /// Where it is.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Connects, and takes away what an earlier demo has left.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn clean_up(url: &str) -> anyhow::Result<()> {
        let pool = connected(PgPoolOptions::new().max_connections(2), url).await?;
        let mut only = pool.acquire().await?.detach();
        let free: bool =
            sqlx::query_scalar("select pg_try_advisory_lock(hashtext('larder demo'))").fetch_one(&mut only).await?;
        anyhow::ensure!(free, "a `larder demo` runs on this database: end it first");
        Postgres { pool, _only: only, place: String::new() }.clean().await
    }

    async fn clean(&self) -> anyhow::Result<()> {
        let comment = "select obj_description(oid, 'pg_namespace') from pg_namespace where nspname = $1";
        let found: Option<Option<String>> = sqlx::query_scalar(comment).bind(SCHEMA).fetch_optional(&self.pool).await?;
        match found {
            None => Ok(()),
            Some(comment) if comment.as_deref() == Some(MARK) => {
                sqlx::raw_sql("drop schema larder_demo cascade").execute(&self.pool).await?;
                Ok(())
            }
            Some(_) => anyhow::bail!(
                "the database has a schema {SCHEMA} that `larder demo` did not make: rename it, or name another database"
            ),
        }
    }

    async fn fill(&self, products: u32, seed: u64) -> anyhow::Result<()> {
        let mut all = self.pool.begin().await?;
        sqlx::raw_sql("create schema larder_demo; comment on schema larder_demo is 'made by larder demo'")
            .execute(&mut *all)
            .await?;
        sqlx::raw_sql(TABLES).execute(&mut *all).await?;
        sqlx::query("insert into larder_demo.template select unnest($1::text[]), 1")
            .bind(LANGUAGES.map(String::from).to_vec())
            .execute(&mut *all)
            .await?;
        let reviews = goods::reviews(products, seed);
        for ids in (0..products).collect::<Vec<_>>().chunks(1_000) {
            let rows: Vec<_> = ids.iter().map(|id| goods::product(*id)).collect();
            let prices: Vec<_> = ids.iter().map(|id| goods::price(*id)).collect();
            let keys: Vec<_> = ids.iter().map(|id| i64::from(*id)).collect();
            sqlx::query("insert into larder_demo.product select *, 1 from unnest($1::bigint[], $2::int[], $3::text[], $4::text[])")
                .bind(&keys)
                .bind(rows.iter().map(|row| row.category as i32).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.description.clone()).collect::<Vec<_>>())
                .execute(&mut *all)
                .await?;
            sqlx::query("insert into larder_demo.price select *, 1 from unnest($1::bigint[], $2::int[], $3::int[])")
                .bind(&keys)
                .bind(prices.iter().map(|row| row.cents as i32).collect::<Vec<_>>())
                .bind(prices.iter().map(|row| row.category as i32).collect::<Vec<_>>())
                .execute(&mut *all)
                .await?;
            sqlx::query("insert into larder_demo.stock select unnest($1::bigint[]), $2, 1")
                .bind(&keys)
                .bind(BOX as i32)
                .execute(&mut *all)
                .await?;
            let said = || ids.iter().flat_map(|id| reviews[*id as usize].iter().map(move |review| (*id, review)));
            sqlx::query(
                "insert into larder_demo.review (product, stars, words) select * from unnest($1::bigint[], $2::int[], $3::text[])",
            )
            .bind(said().map(|(id, _)| i64::from(id)).collect::<Vec<_>>())
            .bind(said().map(|(_, (stars, _))| i32::from(*stars)).collect::<Vec<_>>())
            .bind(said().map(|(_, (_, words))| (*words).to_string()).collect::<Vec<_>>())
            .execute(&mut *all)
            .await?;
        }
        all.commit().await?;
        sqlx::raw_sql("analyze").execute(&self.pool).await?;
        Ok(())
    }

    /// Templates, with the navigation.
    ///
    /// # Errors
    /// Never, as long as the queries are right; and so the others.
    fn templates(&self) -> anyhow::Result<impl Source<String, Arc<Template>> + use<>> {
        let query = "select language, version, pg_sleep(0.2), array(select count(*) from larder_demo.product group by category \
                     order by category) as counts from larder_demo.template where language = :key";
        let made = |row: &PgRow| {
            let (language, version): (String, i64) = (row.try_get("language")?, row.try_get("version")?);
            let counts: Vec<i64> = row.try_get("counts")?;
            let counts: Vec<_> = counts.into_iter().map(|count| count as usize).collect();
            Ok::<_, sqlx::Error>(Arc::new(goods::template(&language, &counts, version as u64)))
        };
        Ok(PostgresSource::over(self.pool.clone()).load_with(query, made).build()?)
    }

    /// Products.
    ///
    /// # Errors
    /// As above.
    fn products(&self) -> anyhow::Result<impl Source<u32, Arc<Product>> + use<>> {
        let query = "select jsonb_build_object('name', name, 'category', category, 'description', description, 'version', \
                     version) as row from larder_demo.product where id = :key";
        Ok(PostgresSource::over(self.pool.clone()).load_with(query, document).build()?)
    }

    /// Prices, with the tags of their categories.
    ///
    /// # Errors
    /// As above.
    fn prices(&self) -> anyhow::Result<impl Source<u32, Arc<Price>> + use<>> {
        let query = "select jsonb_build_object('cents', cents, 'category', category, 'version', version) as row, \
                     'category-' || category as tag from larder_demo.price where id = :key";
        Ok(PostgresSource::over(self.pool.clone()).load_with(query, document).tags_column("tag").build()?)
    }

    /// What customers say, summed up.
    ///
    /// # Errors
    /// As above.
    fn reviews(&self) -> anyhow::Result<impl Source<u32, Arc<Reviews>> + use<>> {
        let query = "select jsonb_build_object('count', count(*), 'stars', avg(stars), 'version', count(*), 'latest', \
                     (select jsonb_agg(stars || '/5 ' || words) from (select stars, words from larder_demo.review where \
                     product = :key order by number desc limit 3) latest)) as row from larder_demo.review where product = :key \
                     having count(*) > 0";
        Ok(PostgresSource::over(self.pool.clone()).load_with(query, document).build()?)
    }

    /// Stock, written through.
    ///
    /// # Errors
    /// As above.
    fn stock(&self) -> anyhow::Result<impl Source<u32, Arc<Stock>> + use<>> {
        let load = "select jsonb_build_object('left', pieces, 'version', version) as row from larder_demo.stock where id = :key";
        let save = "select larder_demo.set_stock(:key, (:value->>'left')::int, (:value->>'version')::bigint)";
        let json = |stock: &Arc<Stock>| serde_json::json!({ "left": stock.left, "version": stock.version });
        Ok(PostgresSource::over(self.pool.clone()).load_with(load, document).save_with(save, json).build()?)
    }

    /// The stores of a process on this database.
    ///
    /// # Errors
    /// As above.
    pub fn stores(&self, far: Arc<dyn Tier>, bus: Arc<dyn Bus>) -> anyhow::Result<Stores> {
        Ok(Stores {
            templates: Arc::new(self.templates()?),
            products: Arc::new(self.products()?),
            prices: Arc::new(self.prices()?),
            reviews: Arc::new(self.reviews()?),
            stock: Arc::new(self.stock()?),
            far,
            bus,
        })
    }

    pub(super) async fn release(&self, language: usize) -> sqlx::Result<u64> {
        let change = "update larder_demo.template set version = version + 1 where language = $1 returning version";
        let version: i64 = sqlx::query_scalar(change).bind(LANGUAGES[language]).fetch_one(&self.pool).await?;
        Ok(version as u64)
    }

    pub(super) async fn reprice(&self, id: u32, cents: u32) -> sqlx::Result<u64> {
        let change = "update larder_demo.price set cents = $2, version = version + 1 where id = $1 returning version";
        let change = sqlx::query_scalar(change).bind(i64::from(id)).bind(cents as i32);
        change.fetch_one(&self.pool).await.map(|version: i64| version as u64)
    }

    pub(super) async fn sale(&self, category: u32, percent: u32) -> sqlx::Result<Vec<(u32, u64)>> {
        let change = "update larder_demo.price set cents = greatest(cents * (100 - $2) / 100, 100), version = version + 1 \
                      where category = $1 returning id, version";
        let change = sqlx::query_as(change).bind(category as i32).bind(percent as i32);
        let changed: Vec<(i64, i64)> = change.fetch_all(&self.pool).await?;
        Ok(changed.into_iter().map(|(id, version)| (id as u32, version as u64)).collect())
    }

    pub(super) async fn review(&self, id: u32, (stars, words): Review) -> sqlx::Result<()> {
        let change = sqlx::query("insert into larder_demo.review (product, stars, words) values ($1, $2, $3)");
        change.bind(i64::from(id)).bind(i32::from(stars)).bind(words).execute(&self.pool).await.map(drop)
    }

    pub(super) async fn audit(&self) -> sqlx::Result<Audit> {
        let sum = "select count(*) * $1, sum(pieces), (select sold from larder_demo.books), (select refilled from \
                   larder_demo.books) from larder_demo.stock";
        let sums: (i64, i64, i64, i64) = sqlx::query_as(sum).bind(i64::from(BOX)).fetch_one(&self.pool).await?;
        let (opened_with, left, sold, refilled) = sums;
        let [opened_with, left, sold, refilled] = [opened_with, left, sold, refilled].map(|pieces| pieces as u64);
        Ok(Audit { opened_with, sold, refilled, left })
    }
}
