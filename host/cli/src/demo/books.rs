//! The shop's database, whichever it is: what is written past the caches, by the people who run the shop.
//!
//! What the caches load and save is each part's [`Source`](larder::tiered::Source), and no business of this.

use std::sync::Arc;

use super::database::{Audit, Database};
use super::goods::Review;
use super::postgres::Postgres;

/// The database.
pub enum Books {
    /// In this process.
    Embedded(Arc<Database>),
    /// A real one.
    Postgres(Postgres),
}

/// A change that failed; it may have been made.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct BooksError(#[from] sqlx::Error);

type Result<T> = std::result::Result<T, BooksError>;

impl Books {
    /// What it is.
    pub fn summary(&self) -> String {
        match self {
            Books::Embedded(_) => "an embedded database".into(),
            Books::Postgres(postgres) => postgres.place().into(),
        }
    }

    /// How many queries wait for a connection, where that can be known.
    pub fn waiting(&self) -> Option<u64> {
        match self {
            Books::Embedded(database) => Some(database.waiting()),
            Books::Postgres(_) => None,
        }
    }

    /// A new release of a template; its version.
    pub(super) async fn release(&self, language: usize) -> Result<u64> {
        match self {
            Books::Embedded(database) => Ok(database.release(language).await),
            Books::Postgres(postgres) => Ok(postgres.release(language).await?),
        }
    }

    /// Another price for a product; its version.
    pub(super) async fn reprice(&self, id: u32, cents: u32) -> Result<u64> {
        match self {
            Books::Embedded(database) => Ok(database.reprice(id, cents).await),
            Books::Postgres(postgres) => Ok(postgres.reprice(id, cents).await?),
        }
    }

    /// So many percent off in a category; the new versions.
    pub(super) async fn sale(&self, category: u32, percent: u32) -> Result<Vec<(u32, u64)>> {
        match self {
            Books::Embedded(database) => Ok(database.sale(category, percent).await),
            Books::Postgres(postgres) => Ok(postgres.sale(category, percent).await?),
        }
    }

    /// A new review.
    pub(super) async fn review(&self, id: u32, review: Review) -> Result<()> {
        match self {
            Books::Embedded(database) => {
                database.review(id, review).await;
                Ok(())
            }
            Books::Postgres(postgres) => Ok(postgres.review(id, review).await?),
        }
    }

    /// Whether the shelves and the books agree.
    pub(super) async fn audit(&self) -> Result<Audit> {
        match self {
            Books::Embedded(database) => Ok(database.audit()),
            Books::Postgres(postgres) => Ok(postgres.audit().await?),
        }
    }
}
