//! Statements that are prepared once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::{Connection, Statement};

/// Statements of one transaction, each prepared once.
pub(super) struct Prepared<'c> {
    pub(super) connection: &'c Connection,
    statements: HashMap<String, Statement<'c>>,
}

impl<'c> Prepared<'c> {
    pub(super) fn of(connection: &'c Connection) -> Prepared<'c> {
        Prepared {
            connection,
            statements: HashMap::new(),
        }
    }

    pub(super) fn get(&mut self, sql: &str) -> rusqlite::Result<&mut Statement<'c>> {
        // A statement that is there is found without a copy of its text.
        if !self.statements.contains_key(sql) {
            let statement = self.connection.prepare(sql)?;
            return Ok(match self.statements.entry(sql.to_owned()) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(statement),
            });
        }
        self.statements.get_mut(sql).ok_or(rusqlite::Error::InvalidQuery)
    }
}
