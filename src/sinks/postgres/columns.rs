//! Rows of other columns than those of events: what types the table's columns have, and how texts are cast to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio_postgres::Error;
use tokio_postgres::types::{ToSql, Type};

use super::session::Session;
use crate::sinks::common::field::{Field, Takes};
use crate::sinks::common::layout::{Column, Fields};
use crate::sinks::common::rows::{TableName, quoted};

/// Finds the type of each column, under its domains: to be cast to a type with a length would cut a value off, which storing it
/// refuses to do.
const TYPES: &str = "WITH RECURSIVE base(name, type) AS ( \
       SELECT attname::text, atttypid FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped \
       UNION ALL \
       SELECT base.name, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.type WHERE t.typtype = 'd') \
     SELECT base.name, pg_catalog.format_type(base.type, -1) FROM base JOIN pg_catalog.pg_type t ON t.oid = base.type WHERE t.typtype <> 'd'";

/// The columns of a table and their types, as SQL names them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Types(BTreeMap<String, String>);

impl Types {
    pub(super) async fn read(session: &Session, table: &TableName) -> Result<Types, Error> {
        let rows = session
            .client()
            .query_typed(TYPES, &[(&table.quoted(), Type::TEXT)])
            .await?;
        let pairs = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        pairs.collect::<Result<_, Error>>().map(Types)
    }

    /// There is no such table.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first of these names that no column has.
    pub(super) fn missing<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
        names.into_iter().find(|name| !self.0.contains_key(*name))
    }

    /// What a column takes.
    pub(super) fn takes(&self, name: &str) -> Takes {
        self.0.get(name).map_or(Takes::Other, |kind| Takes::of(kind))
    }

    /// Inserts texts, each cast to the type of its column. One that has no column makes a statement that the server refuses.
    pub(super) fn insert(&self, table: &TableName, names: &[String]) -> String {
        let list = |one: &dyn Fn(usize, &String) -> String| {
            let all: Vec<String> = names
                .iter()
                .enumerate()
                .map(|(index, name)| one(index + 1, name))
                .collect();
            all.join(", ")
        };
        let kind = |name: &String| self.0.get(name).map_or("text", String::as_str);
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM UNNEST({}) AS r({})",
            table.quoted(),
            list(&|_, name| quoted(name)),
            list(&|number, name| format!("r.c{number}::{}", kind(name))),
            list(&|number, _| format!("${number}::text[]")),
            list(&|number, _| format!("c{number}")),
        )
    }
}

/// Makes a table of these columns.
pub(super) fn create(table: &TableName, columns: &[Column]) -> String {
    let column = |column: &Column| format!("{} {}", quoted(&column.name), column.kind.as_deref().unwrap_or("text"));
    let columns: Vec<String> = columns.iter().map(column).collect();
    format!("CREATE TABLE IF NOT EXISTS {} ({})", table.quoted(), columns.join(", "))
}

/// Has the server plan the statement for rows of these columns.
pub(super) async fn explain(
    session: &Session,
    table: &TableName,
    types: &Types,
    names: &[String],
) -> Result<(), Error> {
    let none: Vec<Vec<Option<&str>>> = vec![Vec::new(); names.len()];
    let explained = format!("EXPLAIN {}", types.insert(table, names));
    session.client().query_typed(&explained, &parameters(&none)).await?;
    Ok(())
}

/// The values of some rows, a column after the other.
type Values<'r> = Vec<Vec<Option<&'r str>>>;

fn parameters<'v>(values: &'v [Vec<Option<&str>>]) -> Vec<(&'v (dyn ToSql + Sync), Type)> {
    let one = |values: &'v Vec<Option<&str>>| (values as &(dyn ToSql + Sync), Type::TEXT_ARRAY);
    values.iter().map(one).collect()
}

/// Writes rows, those of the same columns at once.
pub(super) async fn insert(
    session: &Session,
    table: &TableName,
    types: &Types,
    rows: impl Iterator<Item = &Fields>,
) -> Result<(), Error> {
    let mut places: HashMap<Arc<[String]>, usize> = HashMap::new();
    let mut groups: Vec<(&[String], Values<'_>)> = Vec::new();
    for row in rows {
        let place = *places.entry(row.names.clone()).or_insert_with(|| {
            groups.push((&row.names, vec![Vec::new(); row.names.len()]));
            groups.len() - 1
        });
        for (column, value) in groups[place].1.iter_mut().zip(&row.values) {
            column.push(match value {
                Field::Text(text) => Some(text),
                // Whatever else there was has become a text.
                _ => None,
            });
        }
    }
    for (names, values) in &groups {
        let statement = types.insert(table, names);
        session.client().execute_typed(&statement, &parameters(values)).await?;
    }
    Ok(())
}
