//! Queries with parameters that have names: `select … where id = :key`.
//!
//! PostgreSQL numbers its parameters (`$1`), MySQL does not even do that (`?`), and neither knows names. Names say what a
//! parameter is, so that none can be mistaken for another, and one query text is right whatever the order. A name becomes
//! the database's own placeholder; **what it stands for is bound and never spliced.**
//!
//! What is quoted, and comments, are left alone; so are `::`, the cast of PostgreSQL, and `:=`. Any other colon before a
//! name is a parameter, and one that is not known is refused when the source is built, so a misspelt name is not found out
//! in the night. Whoever needs such a colon (a slice, `a[lo:hi]`) puts a space behind it.

use std::sync::Arc;

use super::SqlBuildError;

/// What a parameter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Key,
    Keys,
    Value,
    Version,
    WriteId,
    Writes,
}

impl Name {
    fn text(self) -> &'static str {
        match self {
            Name::Key => "key",
            Name::Keys => "keys",
            Name::Value => "value",
            Name::Version => "version",
            Name::WriteId => "write_id",
            Name::Writes => "writes",
        }
    }
}

/// How a database writes SQL down, where databases differ.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// Placeholders have numbers (`$1`), and lists are arrays. Otherwise they are `?`, and a list is as many of them.
    pub numbered: bool,
    /// A backslash in a string escapes what follows; `#` begins a comment; names are quoted by backticks.
    pub backslashes: bool,
}

/// A query of one kind: what it is for, and which parameters it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    Load,
    LoadMany,
    Save,
    SaveMany,
    Remove,
    RemoveMany,
}

impl Purpose {
    /// As it is called in messages.
    pub(super) fn text(self) -> &'static str {
        match self {
            Purpose::Load => "the query to load",
            Purpose::LoadMany => "the query to load many",
            Purpose::Save => "the query to save",
            Purpose::SaveMany => "the query to save many",
            Purpose::Remove => "the query to remove",
            Purpose::RemoveMany => "the query to remove many",
        }
    }

    /// The method that sets it.
    pub(super) fn method(self) -> &'static str {
        match self {
            Purpose::Load => "load",
            Purpose::LoadMany => "load_many",
            Purpose::Save => "save",
            Purpose::SaveMany => "save_many",
            Purpose::Remove => "remove",
            Purpose::RemoveMany => "remove_many",
        }
    }

    /// What it may have, and of which it must have one.
    fn names(self) -> (&'static [Name], &'static [Name]) {
        match self {
            Purpose::Load => (&[Name::Key, Name::Version], &[Name::Key]),
            Purpose::LoadMany => (&[Name::Keys], &[Name::Keys]),
            Purpose::Save => (&[Name::Key, Name::Value, Name::WriteId], &[Name::Key, Name::Value]),
            Purpose::SaveMany => (&[Name::Writes], &[Name::Writes]),
            Purpose::Remove => (&[Name::Key, Name::WriteId], &[Name::Key]),
            Purpose::RemoveMany => (&[Name::Keys, Name::Writes], &[Name::Keys, Name::Writes]),
        }
    }
}

fn listed(names: &[Name]) -> String {
    names.iter().map(|name| format!(":{}", name.text())).collect::<Vec<_>>().join(", ")
}

/// A query, read.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) purpose: Purpose,
    dialect: Dialect,
    /// What lies before, between and behind the parameters.
    texts: Vec<String>,
    names: Vec<Name>,
    /// Where it is the same whatever is bound.
    fixed: Option<Arc<str>>,
}

impl Statement {
    pub(super) fn parse(purpose: Purpose, sql: &str, dialect: Dialect) -> Result<Statement, SqlBuildError> {
        let (known, needed) = purpose.names();
        let mut texts = vec![String::new()];
        let mut names = Vec::new();
        for piece in pieces(sql, dialect) {
            match piece {
                Piece::Text(text) => texts.last_mut().into_iter().for_each(|last| last.push_str(text)),
                Piece::Parameter(name) => {
                    let Some(name) = known.iter().find(|known| known.text() == name) else {
                        let (query, name, known) = (purpose.text(), name.into(), listed(known));
                        return Err(SqlBuildError::Parameter { query, name, known });
                    };
                    names.push(*name);
                    texts.push(String::new());
                }
            }
        }
        if !needed.iter().any(|needed| names.contains(needed)) {
            return Err(SqlBuildError::NoParameter { query: purpose.text(), needed: listed(needed) });
        }
        let mut statement = Statement { purpose, dialect, texts, names, fixed: None };
        if dialect.numbered || !statement.names.contains(&Name::Keys) {
            statement.fixed = Some(statement.write(1).into());
        }
        Ok(statement)
    }

    /// The parameters to bind, in their order.
    pub(super) fn parameters(&self) -> Vec<Name> {
        if !self.dialect.numbered {
            return self.names.clone();
        }
        let mut once: Vec<Name> = Vec::new();
        for name in &self.names {
            if !once.contains(name) {
                once.push(*name);
            }
        }
        once
    }

    /// Whether it has that parameter.
    pub(super) fn has(&self, name: Name) -> bool {
        self.names.contains(&name)
    }

    /// Whether a list of keys has a placeholder for each of them.
    pub(super) fn spreads_keys(&self) -> bool {
        self.fixed.is_none()
    }

    /// The database's own SQL, for so many keys.
    pub(super) fn sql(&self, keys: usize) -> Arc<str> {
        self.fixed.clone().unwrap_or_else(|| self.write(keys).into())
    }

    fn write(&self, keys: usize) -> String {
        let order = self.parameters();
        let mut sql = String::new();
        for (at, text) in self.texts.iter().enumerate() {
            sql.push_str(text);
            let Some(name) = self.names.get(at) else { continue };
            if self.dialect.numbered {
                let number = order.iter().position(|other| other == name).unwrap_or_default() + 1;
                sql.push_str(&format!("${number}"));
            } else if *name == Name::Keys {
                sql.push_str(&vec!["?"; keys.max(1)].join(", "));
            } else {
                sql.push('?');
            }
        }
        sql
    }
}

#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    Parameter(&'a str),
}

/// Cuts SQL at its parameters.
fn pieces(sql: &str, dialect: Dialect) -> Vec<Piece<'_>> {
    let bytes = sql.as_bytes();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let mut pieces = Vec::new();
    // All that is cut at is ASCII, so each cut lies between two characters.
    let (mut from, mut at) = (0, 0);
    while at < bytes.len() {
        let next = bytes.get(at + 1).copied().unwrap_or_default();
        match bytes[at] {
            quote @ (b'\'' | b'"' | b'`') if quote != b'`' || dialect.backslashes => {
                // PostgreSQL has such strings, too: E'…'.
                let marked = quote == b'\''
                    && at > 0
                    && matches!(bytes[at - 1], b'e' | b'E')
                    && !(at > 1 && is_name(bytes[at - 2]));
                at = quoted(bytes, at, quote, quote != b'`' && (dialect.backslashes || marked));
            }
            b'-' if next == b'-' => at = line_end(bytes, at),
            b'#' if dialect.backslashes => at = line_end(bytes, at),
            b'/' if next == b'*' => at = comment_end(bytes, at, !dialect.backslashes),
            b'$' if dialect.numbered && !(at > 0 && is_name(bytes[at - 1])) => at = dollar_quoted(sql, at),
            b':' if next == b':' || next == b'=' => at += 2,
            b':' if is_name(next) && !next.is_ascii_digit() => {
                let end = bytes[at + 1..].iter().position(|byte| !is_name(*byte)).map_or(bytes.len(), |n| at + 1 + n);
                pieces.push(Piece::Text(&sql[from..at]));
                pieces.push(Piece::Parameter(&sql[at + 1..end]));
                (from, at) = (end, end);
            }
            _ => at += 1,
        }
    }
    pieces.push(Piece::Text(&sql[from..]));
    pieces
}

/// Behind a quoted piece; a doubled quote is a quote.
fn quoted(bytes: &[u8], start: usize, quote: u8, backslashes: bool) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if backslashes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn line_end(bytes: &[u8], start: usize) -> usize {
    bytes[start..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| start + n)
}

fn comment_end(bytes: &[u8], start: usize, nests: bool) -> usize {
    let (mut at, mut depth) = (start + 2, 1);
    while at + 1 < bytes.len() {
        match (bytes[at], bytes[at + 1]) {
            (b'*', b'/') => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            (b'/', b'*') if nests => {
                depth += 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Behind `$tag$ … $tag$`; behind the dollar if it begins none.
fn dollar_quoted(sql: &str, start: usize) -> usize {
    let rest = &sql[start + 1..];
    let Some(end) = rest.find('$') else { return start + 1 };
    let tag = &rest[..end];
    if tag.starts_with(|first: char| first.is_ascii_digit()) || !tag.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return start + 1;
    }
    let (delimiter, inside) = (&sql[start..start + end + 2], start + end + 2);
    sql[inside..].find(delimiter).map_or(sql.len(), |n| inside + n + delimiter.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POSTGRES: Dialect = Dialect { numbered: true, backslashes: false };
    const MYSQL: Dialect = Dialect { numbered: false, backslashes: true };

    fn written(purpose: Purpose, sql: &str, dialect: Dialect) -> String {
        Statement::parse(purpose, sql, dialect).unwrap().sql(3).to_string()
    }

    #[test]
    fn names_become_the_placeholders_of_the_database() {
        let sql = "insert into t values (:key, :value, :write_id) on conflict (id) do update set id = :key";
        assert_eq!(
            written(Purpose::Save, sql, POSTGRES),
            "insert into t values ($1, $2, $3) on conflict (id) do update set id = $1"
        );
        assert_eq!(
            written(Purpose::Save, sql, MYSQL),
            "insert into t values (?, ?, ?) on conflict (id) do update set id = ?"
        );
        let many = "select id from t where id in (:keys)";
        assert_eq!(written(Purpose::LoadMany, many, MYSQL), "select id from t where id in (?, ?, ?)");
        assert_eq!(written(Purpose::LoadMany, many, POSTGRES), "select id from t where id in ($1)");
    }

    #[test]
    fn what_is_quoted_or_cast_or_a_comment_is_left_alone() {
        for (sql, dialect) in [
            (
                "select ':key', ''':key', \":key\" -- :key\n, a::text /* :key /* :key */ :key */ where b = :key",
                POSTGRES,
            ),
            ("select $$ :key $$, $x$ $$ :key $x$, E'\\':key', '\\', x[1: n] where b = :key", POSTGRES),
            ("select '\\':key', `:key`, \"\\\":key\", @a := 3 # :key\n where b = :key", MYSQL),
            ("select 'größe :key' as größe where größe = :key", POSTGRES),
        ] {
            let statement = Statement::parse(Purpose::Load, sql, dialect).unwrap();
            assert_eq!(statement.names, [Name::Key], "{sql}");
            let placeholder = if dialect.numbered { "$1" } else { "?" };
            let at = sql.rfind(":key").unwrap();
            assert_eq!(*statement.sql(1), format!("{}{placeholder}", &sql[..at]));
        }
        // In PostgreSQL a backslash is a character like others, so the string ends here.
        assert_eq!(written(Purpose::Load, r"select '\' where b = :key", POSTGRES), r"select '\' where b = $1");
        // What never ends is the database's to refuse; nothing here runs over.
        for sql in ["'", "\"a", "/* :key", "$a$ :key", "--", ":", "$", "E'\\"] {
            Statement::parse(Purpose::Load, sql, POSTGRES).unwrap_err();
            // There, a dollar is a letter.
            assert_eq!(Statement::parse(Purpose::Load, sql, MYSQL).is_ok(), sql.starts_with('$') && sql.len() > 1);
        }
    }

    #[test]
    fn a_parameter_that_nobody_knows_is_refused() {
        let error = Statement::parse(Purpose::Load, "select * from t where id = :id", POSTGRES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the query to load has the parameter `:id`: it may have :key, :version; a colon that begins no parameter is \
             followed by a space"
        );
        let error = Statement::parse(Purpose::LoadMany, "select * from t where id = $1", POSTGRES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the query to load many does not say what it is about: write :keys where that belongs (in place of `$1` or `?`)"
        );
    }
}
