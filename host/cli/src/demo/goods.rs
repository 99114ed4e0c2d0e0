//! What the shop sells: the rows of its database, made from their numbers, so that every machine has the same shop.
//!
//! Each row has a version, which every change advances. It is how the demo knows whether a page showed something older
//! than it may: see [`super::ledger`].

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::synthetic::SplitMix64;

/// A part of the product page; each is a keyspace with a rule of its own (see [`super::shop::rule`]) and a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The HTML around it all, one for each language.
    Template,
    /// What the product is.
    Product,
    /// What it costs.
    Price,
    /// What customers say.
    Reviews,
    /// How many there are.
    Stock,
}

impl Part {
    /// All parts, in the order of the page.
    pub const ALL: [Part; 5] = [Part::Template, Part::Product, Part::Price, Part::Reviews, Part::Stock];

    /// The keyspace's and the table's name.
    pub fn name(self) -> &'static str {
        ["template", "product", "price", "reviews", "stock"][self as usize]
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The shop's languages. Seven of ten customers read the first, so its template is the hottest key of the shop.
pub const LANGUAGES: [&str; 3] = ["en", "de", "fr"];

/// The HTML around a product, with the navigation, which counts the products of every category: that makes it the most
/// expensive row, and it is on every page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Up to where the product begins.
    pub before: String,
    /// From where it ends.
    pub after: String,
    /// How often it has changed.
    pub version: u64,
}

/// A product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    /// Its name.
    pub name: String,
    /// Its category: a tag of its price, by which a sale is announced.
    pub category: u32,
    /// Some sentences.
    pub description: String,
    /// How often it has changed.
    pub version: u64,
}

/// What a product costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// In cents.
    pub cents: u32,
    /// Its category, for the tag.
    pub category: u32,
    /// How often it has changed.
    pub version: u64,
}

/// What customers say, summed up from the single reviews.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reviews {
    /// How many there are.
    pub count: u32,
    /// Their stars on average.
    pub stars: f32,
    /// What the last ones say.
    pub latest: Vec<String>,
    /// How often it has changed.
    pub version: u64,
}

/// How many of a product there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// How many.
    pub left: u32,
    /// How often it has changed.
    pub version: u64,
}

/// What has a version.
pub trait Versioned {
    /// How often it has changed.
    fn version(&self) -> u64;
}

macro_rules! versioned {
    ($($row:ty),*) => {$(
        impl Versioned for Arc<$row> {
            fn version(&self) -> u64 {
                self.version
            }
        }
    )*};
}
versioned!(Template, Product, Price, Reviews, Stock);

/// How many categories there are.
pub const CATEGORIES: u32 = 24;

const MATERIALS: [&str; 12] = [
    "Copper",
    "Oak",
    "Linen",
    "Enamel",
    "Cast-iron",
    "Glass",
    "Slate",
    "Walnut",
    "Wool",
    "Stoneware",
    "Bamboo",
    "Brass",
];
const THINGS: [&str; 24] = [
    "kettle", "board", "apron", "mug", "skillet", "jar", "coaster", "spoon", "blanket", "bowl", "steamer", "lamp",
    "teapot", "knife", "towel", "plate", "pan", "carafe", "tray", "ladle", "cushion", "vase", "basket", "hook",
];
const SAYINGS: [&str; 8] = [
    "Exactly as described.",
    "My grandmother had the same one. This one is better.",
    "Smaller than I thought, but I measured wrong.",
    "Arrived a day late, and was worth it.",
    "We use it every morning.",
    "The second one I bought; the first is with my sister now.",
    "Good, though the colour is darker than in the picture.",
    "Would buy again.",
];

/// The category of a product.
pub fn category(id: u32) -> u32 {
    id % CATEGORIES
}

/// The product of a number, as it first is.
pub fn product(id: u32) -> Product {
    let thing = THINGS[category(id) as usize];
    let material = MATERIALS[(id / CATEGORIES) as usize % MATERIALS.len()];
    let name = format!("{material} {thing} No. {}", id / CATEGORIES / MATERIALS.len() as u32 + 1);
    let description = format!(
        "A {thing} of {} as it has been made for two hundred years. Each is made by hand, looked at twice, and numbered; \
         yours may differ from the picture, as people do from theirs.",
        material.to_lowercase()
    );
    Product { name, category: category(id), description, version: 1 }
}

/// The price of a product, as it first is.
pub fn price(id: u32) -> Price {
    Price { cents: 900 + 100 * (id % 70) + 95 * (id % 2), category: category(id), version: 1 }
}

/// The reviews that there are of each product when the shop opens.
pub fn reviews(products: u32, seed: u64) -> Vec<Vec<Review>> {
    let mut random = SplitMix64::new(seed);
    (0..products).map(|_| (0..3 + random.below(30)).map(|_| review(&mut random)).collect()).collect()
}

/// A single review: stars and words.
pub type Review = (u8, &'static str);

/// Some review.
pub(super) fn review(random: &mut SplitMix64) -> Review {
    (3 + random.below(3) as u8, SAYINGS[random.below(SAYINGS.len() as u64) as usize])
}

/// A template with the navigation of as many categories as there are, with how many products each has.
pub fn template(language: &str, counts: &[usize], version: u64) -> Template {
    use fmt::Write;
    let shop = match language {
        "de" => "Die Vorratskammer",
        "fr" => "Le garde-manger",
        _ => "The larder",
    };
    let mut before = format!(
        "<!doctype html>\n<html lang=\"{language}\">\n<head><meta charset=\"utf-8\"><title>{shop}</title>\
         <meta name=\"generator\" content=\"release {version}\"></head>\n<body>\n<nav><ul>\n"
    );
    for (category, count) in counts.iter().enumerate() {
        let thing = THINGS[category % THINGS.len()];
        // Writing to a string does not fail.
        let _ = writeln!(before, "  <li><a href=\"/{language}/{thing}\">{thing} ({count})</a></li>");
    }
    before.push_str("</ul></nav>\n<main>\n");
    let after = format!("</main>\n<footer>{shop}, release {version}</footer>\n</body>\n</html>\n");
    Template { before, after, version }
}

/// How many pieces are in a box: a product's stock when the shop opens, and when it is filled up.
pub const BOX: u32 = 200;
