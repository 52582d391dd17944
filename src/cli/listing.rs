//! Lists: a table for people when all of it is there, or a line of JSON for each as it comes.

use serde::Serialize;

use super::{Global, Outcome, json_line, print_line, report, table};

/// A list of which some is still to come.
pub(super) struct Listing<T> {
    is_json: bool,
    row: fn(&T) -> Vec<String>,
    rows: Vec<Vec<String>>,
}

impl<T: Serialize> Listing<T> {
    /// An empty one; `row` makes a row of each.
    pub fn begin(global: &Global, row: fn(&T) -> Vec<String>) -> Listing<T> {
        Listing {
            is_json: global.json,
            row,
            rows: Vec::new(),
        }
    }

    /// Takes one in.
    pub fn add(&mut self, one: &T) -> Outcome {
        if self.is_json {
            return print_line(&json_line(one)?);
        }
        self.rows.push((self.row)(one));
        Ok(())
    }

    /// Shows the table. That nothing is in it is said beside the output: there are no `what`.
    pub fn end(self, header: &[&str], what: &str) -> Outcome {
        if self.is_json {
            return Ok(());
        }
        if self.rows.is_empty() {
            report::say(&format!("closehook: no {what}\n"));
            return Ok(());
        }
        print_line(&table(header, self.rows))
    }
}
