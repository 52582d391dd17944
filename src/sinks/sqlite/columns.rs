//! Rows of other columns than those of events: what the table's columns are declared as, and how values are bound to them.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::latest::Latest;
use super::prepared::Prepared;
use super::statements::statements;
use crate::sinks::common::field::Field;
use crate::sinks::common::layout::{Case, Column, Fields, Layout};
use crate::sinks::common::rows::{EVENTS_COLUMNS, TableName, quoted};

/// What a column prefers to keep (SQLite, "Determination Of Column Affinity").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Text,
    /// INTEGER, REAL and NUMERIC: SQLite makes numbers of texts that read so.
    Number,
    /// BLOB and ANY: as it is bound.
    None,
}

impl Affinity {
    fn of(declared: &str) -> Affinity {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if has("INT") {
            Affinity::Number
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Text
        } else if declared.is_empty() || has("BLOB") || declared == "ANY" {
            Affinity::None
        } else {
            Affinity::Number
        }
    }

    fn bind(self, field: &Field) -> Value {
        match field {
            Field::Null => Value::Null,
            Field::Bool(is) if self == Affinity::Text => Value::Text(is.to_string()),
            Field::Bool(is) => Value::Integer((*is).into()),
            Field::Number(text) if self == Affinity::None => number(text),
            // Of numbers too: its own reading is exact where it can be.
            Field::Text(text) | Field::String(text) | Field::Json(text) | Field::Number(text) => {
                Value::Text(text.clone())
            }
        }
    }
}

fn number(text: &str) -> Value {
    if let Ok(integer) = text.parse() {
        return Value::Integer(integer);
    }
    let is_whole = !text.contains(['.', 'e', 'E']);
    match text.parse::<f64>() {
        Ok(real) if real.is_finite() && !is_whole => Value::Real(real),
        // SQLite has no such number: as one of its own it would lose digits, or be infinite.
        _ => Value::Text(text.to_owned()),
    }
}

/// The columns of a table.
#[derive(Debug, Default)]
pub(super) struct Declared(Vec<(String, Affinity)>);

impl Declared {
    /// `given` are those whose type the configuration says: that decides.
    pub(super) fn read(connection: &Connection, table: &TableName, given: &[Column]) -> rusqlite::Result<Declared> {
        let mut statement = connection.prepare("SELECT name, type FROM pragma_table_xinfo(?1)")?;
        let rows = statement.query_map([table.name()], |row| {
            let (name, declared): (String, String) = (row.get(0)?, row.get(1)?);
            let given = given.iter().find(|column| Case::Folds.are_same(&column.name, &name));
            let kind = given.and_then(|column| column.kind.as_deref()).unwrap_or(&declared);
            let affinity = Affinity::of(kind);
            Ok((name, affinity))
        })?;
        rows.collect::<Result<_, _>>().map(Declared)
    }

    fn affinity(&self, name: &str) -> Option<Affinity> {
        let found = self.0.iter().find(|(known, _)| Case::Folds.are_same(known, name));
        found.map(|(_, affinity)| *affinity)
    }

    /// The first of these names that no column has.
    pub(super) fn missing<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
        names.into_iter().find(|name| self.affinity(name).is_none())
    }
}

/// Makes a table of these columns.
pub(super) fn create(table: &TableName, columns: &[Column]) -> String {
    let column = |column: &Column| format!("{} {}", quoted(&column.name), column.kind.as_deref().unwrap_or("TEXT"));
    let columns: Vec<String> = columns.iter().map(column).collect();
    format!(
        "CREATE TABLE IF NOT EXISTS {} ({});",
        table.quoted(),
        columns.join(", ")
    )
}

/// Inserts a row of these columns.
pub(super) fn statement(table: &TableName, names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| quoted(name)).collect();
    let numbered: Vec<String> = (1..=names.len()).map(|number| format!("?{number}")).collect();
    format!(
        "INSERT INTO {} ({}) VALUES ({})",
        table.quoted(),
        quoted.join(", "),
        numbered.join(", ")
    )
}

/// What rows are written with, as far as that is known before there is one. An error is what the table lacks.
pub(super) fn needed(layout: &Layout, table: &TableName, declared: &Declared) -> Result<Vec<String>, String> {
    Ok(match layout {
        // Something may be made of each event; it is seen with the first one that does not fit.
        Layout::Events { .. } if declared.missing(EVENTS_COLUMNS).is_some() => Vec::new(),
        Layout::Events { .. } => {
            let (insert, replace) = statements(table);
            vec![insert, replace]
        }
        Layout::Columns(_) => {
            let names = layout.names();
            if let Some(name) = declared.missing(names.iter().map(String::as_str)) {
                return Err(format!(
                    "the table {table} has no column \"{name}\": add it, or take it out of columns"
                ));
            }
            vec![statement(table, &names)]
        }
        Layout::Latest => {
            let Latest { revise, merge, .. } = Latest::new(table);
            vec![revise, merge]
        }
    })
}

/// Prepares statements, which writes nothing: what tables lack that somebody else made shows before there is a row.
pub(super) fn prepare<'s>(
    connection: &Connection,
    statements: impl IntoIterator<Item = &'s str>,
) -> rusqlite::Result<()> {
    let mut statements = statements.into_iter();
    statements.try_for_each(|statement| connection.prepare(statement).map(drop))
}

/// Writes a row.
pub(super) fn insert(
    prepared: &mut Prepared<'_>,
    table: &TableName,
    declared: &Declared,
    fields: &Fields,
) -> rusqlite::Result<()> {
    let pairs = fields.names.iter().zip(&fields.values);
    let bound = pairs.map(|(name, value)| declared.affinity(name).unwrap_or(Affinity::None).bind(value));
    let statement = prepared.get(&statement(table, &fields.names))?;
    statement.execute(params_from_iter(bound)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bound_as_the_column_wants_them() {
        let text = |text: &str| Value::Text(text.into());
        for (declared, field, bound) in [
            ("VARCHAR(20)", Field::Bool(true), text("true")),
            ("BOOLEAN", Field::Bool(true), Value::Integer(1)),
            ("", Field::Bool(false), Value::Integer(0)),
            ("TEXT", Field::Number("1.50".into()), text("1.50")),
            ("NUMERIC", Field::Number("1.50".into()), text("1.50")),
            ("BLOB", Field::Number("7".into()), Value::Integer(7)),
            ("ANY", Field::Number("1.5".into()), Value::Real(1.5)),
            (
                "ANY",
                Field::Number("123456789012345678901234567890".into()),
                text("123456789012345678901234567890"),
            ),
            ("BLOB", Field::Number("1e400".into()), text("1e400")),
            ("INTEGER", Field::Null, Value::Null),
            ("REAL", Field::Text("1".into()), text("1")),
        ] {
            assert_eq!(Affinity::of(declared).bind(&field), bound, "{declared}");
        }
    }
}
