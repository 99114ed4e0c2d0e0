//! What a part found: one table, printed as Markdown for people and as JSON for programs. Both come from the same
//! cells, so they cannot disagree.

use serde_json::{Map, Value, json};
use std::fmt::Write;

/// One value of a table.
#[derive(Clone)]
pub enum Cell {
    Text(String),
    /// A number and how many decimals of it mean anything to a reader; JSON has them all.
    Number(f64, usize),
    /// A median and its quartiles.
    Spread(f64, f64, f64),
    Missing,
}

impl Cell {
    fn markdown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number, decimals) => format!("{number:.decimals$}"),
            Self::Spread(low, median, high) => format!("{median:.2} ({low:.2}–{high:.2})"),
            Self::Missing => "—".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Number(number, _) => json!(number),
            Self::Spread(low, median, high) => json!({ "median": median, "quartiles": [low, high] }),
            Self::Missing => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Number(count as f64, 0)
    }
}

/// What one part found.
pub struct Section {
    /// The subcommand, and the name in the JSON.
    pub name: &'static str,
    pub title: String,
    /// What the figures mean and how they were come by.
    pub notes: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
}

impl Section {
    pub fn new(name: &'static str, title: impl Into<String>, notes: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        Self { name, title: title.into(), notes: notes.into(), columns, rows: Vec::new() }
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.notes);
        let mut line = |cells: &[String]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        };
        line(&self.columns);
        line(&vec!["---".to_owned(); self.columns.len()]);
        for row in &self.rows {
            line(&row.iter().map(Cell::markdown).collect::<Vec<_>>());
        }
        text
    }

    pub fn json(&self) -> Value {
        let row = |cells: &Vec<Cell>| {
            self.columns.iter().cloned().zip(cells.iter().map(Cell::json)).collect::<Map<String, Value>>()
        };
        json!({ "part": self.name, "title": self.title, "rows": self.rows.iter().map(row).collect::<Vec<_>>() })
    }
}

/// The median and the quartiles around it: `(low, median, high)`. Not a number where there is none.
pub fn quartiles(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * values.len().saturating_sub(1) as f64;
        let (below, above) = (values.get(place.floor() as usize), values.get(place.ceil() as usize));
        below.zip(above).map_or(f64::NAN, |(below, above)| below + (above - below) * place.fract())
    };
    (at(0.25), at(0.5), at(0.75))
}

pub fn median(values: Vec<f64>) -> f64 {
    quartiles(values).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_interpolate() {
        assert_eq!(quartiles(vec![4.0, 1.0, 3.0, 2.0, 5.0]), (2.0, 3.0, 4.0));
        assert_eq!(quartiles(vec![1.0, 2.0]), (1.25, 1.5, 1.75));
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn markdown_and_json_agree() {
        let mut section = Section::new("part", "Title", "Notes.", &["who", "what"]);
        section.rows.push(vec!["a".into(), Cell::Number(1.26, 1)]);
        assert_eq!(section.markdown(), "## Title\n\nNotes.\n\n| who | what |\n| --- | --- |\n| a | 1.3 |\n");
        assert_eq!(section.json()["rows"][0], json!({ "who": "a", "what": 1.26 }));
    }
}
