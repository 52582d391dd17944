//! The configuration as a text that people read: what is changed is changed in its place, everything else stays as it is, byte
//! for byte.
//!
//! A key that is there gets another value. One that the commented reference shows ("#: listen = ...") is put where it is shown,
//! under its explanation; any other comes at the end of its table. Tables that are not wanted any more are commented out, not
//! removed. Every step is looked at afterwards: where it changed anything but what it should have (text in a file can look like
//! many things), a plainer way is taken.

use std::collections::BTreeMap;

use toml_edit::{Document, DocumentMut, InlineTable, Item, TableLike, Value};

use crate::config::mask;

/// Every value of a document by its dotted place, as TOML text.
pub(super) type Values = BTreeMap<String, String>;

/// A text being edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Editor {
    text: String,
}

impl Editor {
    /// An error is one sentence: the text is not TOML.
    pub fn new(text: &str) -> Result<Editor, String> {
        parse(text)?;
        Ok(Editor { text: text.to_owned() })
    }

    /// The text as it is now.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Makes `table.key` this value.
    pub fn set(&mut self, table: &str, key: &str, value: impl Into<Value>) -> Result<(), String> {
        let value = value.into();
        if !self.has(table, key) {
            self.show(table, key);
        }
        let mut document = parse(&self.text)?;
        if find_item(document.as_item(), table).is_none_or(is_implied) {
            self.open_table(table)?;
            document = parse(&self.text)?;
        }
        let holder = find_mut(document.as_table_mut(), table).ok_or_else(|| format!("{table} is no table"))?;
        match holder.get_mut(key) {
            Some(item) => exchange(item, value),
            None => {
                holder.insert(key, Item::Value(value));
            }
        }
        self.text = document.to_string();
        Ok(())
    }

    /// Takes `table.key` away, with its line. For what must not stay, not even as a comment.
    pub fn remove(&mut self, table: &str, key: &str) -> Result<(), String> {
        if !self.has(table, key) {
            return Ok(());
        }
        let place = format!("{table}.{key}");
        let mut wanted = values(&self.text)?;
        wanted.retain(|name, _| !is_within(name, &place));
        if let Some(text) = without_line(&self.text, table, key)
            && values(&text).as_ref() == Ok(&wanted)
        {
            self.text = text;
            return Ok(());
        }
        let mut document = parse(&self.text)?;
        if let Some(holder) = find_mut(document.as_table_mut(), table) {
            holder.remove(key);
        }
        self.text = document.to_string();
        Ok(())
    }

    /// Comments a table out, if it is there.
    pub fn retire_table(&mut self, table: &str) -> Result<(), String> {
        self.retire(table, &format!("[{table}]"), 0, |document| {
            let (parent, key) = table.rsplit_once('.').unwrap_or(("", table));
            if let Some(parent) = find_mut(document.as_table_mut(), parent) {
                parent.remove(key);
            }
        })
    }

    /// Comments out one table of a list (`[[list]]`), counted from 0.
    pub fn retire_entry(&mut self, list: &str, index: usize) -> Result<(), String> {
        self.retire(&format!("{list}[{index}]"), &format!("[[{list}]]"), index, |document| {
            let (parent, key) = list.rsplit_once('.').unwrap_or(("", list));
            let item = find_mut(document.as_table_mut(), parent).and_then(|parent| parent.get_mut(key));
            match item {
                Some(Item::ArrayOfTables(tables)) if index < tables.len() => drop(tables.remove(index)),
                Some(Item::Value(Value::Array(array))) if index < array.len() => drop(array.remove(index)),
                _ => {}
            }
        })
    }

    /// `place` goes: as lines behind the `nth` header of this look, else by `plainly`.
    fn retire(
        &mut self,
        place: &str,
        header: &str,
        nth: usize,
        plainly: impl FnOnce(&mut DocumentMut),
    ) -> Result<(), String> {
        let before = values(&self.text)?;
        if !before.keys().any(|name| is_within(name, place)) {
            return Ok(());
        }
        let mut document = parse(&self.text)?;
        plainly(&mut document);
        let plain = document.to_string();
        let commented = commented_out(&self.text, header, nth);
        self.text = if values(&commented) == values(&plain) {
            commented
        } else {
            plain
        };
        Ok(())
    }

    fn has(&self, table: &str, key: &str) -> bool {
        let place = format!("{table}.{key}");
        values(&self.text).is_ok_and(|values| values.keys().any(|name| is_within(name, &place)))
    }

    /// Takes the comment mark off where the text shows this key, and its table, as comments.
    fn show(&mut self, table: &str, key: &str) {
        for candidate in [
            Some(self.text.clone()),
            uncommented(&self.text, |shown| shown.is_comment && shown.header == Some(table)),
        ]
        .into_iter()
        .flatten()
        {
            let shown = uncommented(&candidate, |shown| {
                shown.is_comment && shown.key == Some(key) && shown.table == table
            });
            if let Some(text) = shown
                && self.differs_only_in(&text, table, key)
            {
                self.text = text;
                return;
            }
        }
    }

    /// Whether another text says the same but for one key more.
    fn differs_only_in(&self, text: &str, table: &str, key: &str) -> bool {
        let place = format!("{table}.{key}");
        let (Ok(before), Ok(mut after)) = (values(&self.text), values(text)) else {
            return false;
        };
        let len = after.len();
        after.retain(|name, _| !is_within(name, &place));
        after.len() < len && before == after
    }

    /// Begins a table: where the text shows its header as a comment, else at the end.
    fn open_table(&mut self, table: &str) -> Result<(), String> {
        let shown = uncommented(&self.text, |shown| shown.is_comment && shown.header == Some(table));
        if let Some(text) = shown
            && values(&text) == values(&self.text)
        {
            self.text = text;
            return Ok(());
        }
        let line_end = if self.text.is_empty() || self.text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        let space = if self.text.is_empty() { "" } else { "\n" };
        let longer = format!("{}{line_end}{space}[{table}]\n", self.text);
        if parse(&longer).is_ok() {
            self.text = longer;
            return Ok(());
        }
        // Within an inline table there are no headers.
        let mut document = parse(&self.text)?;
        let (parent, name) = table.rsplit_once('.').unwrap_or(("", table));
        if let Some(parent) = find_mut(document.as_table_mut(), parent) {
            parent.insert(name, Item::Value(Value::InlineTable(InlineTable::new())));
        }
        self.text = document.to_string();
        Ok(())
    }
}

/// Every value in a text, by its place.
pub(super) fn values(text: &str) -> Result<Values, String> {
    let mut found = Values::new();
    collect(parse(text)?.as_table(), "", &mut found);
    Ok(found)
}

/// The difference of two texts, like a patch, with two lines around each change, and without any secret.
pub(super) fn diff(before: &str, after: &str) -> Vec<String> {
    const AROUND: usize = 2;
    let (before, after) = (&*mask::text(before), &*mask::text(after));
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    // Lengths of the longest common sequences of what is left of each.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut lines = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    let is_near = |at: usize| {
        let from = at.saturating_sub(AROUND);
        lines[from..lines.len().min(at + AROUND + 1)]
            .iter()
            .any(|(mark, _)| *mark != ' ')
    };
    let mut shown = Vec::new();
    let mut skipped = false;
    for (at, (mark, line)) in lines.iter().enumerate() {
        if !is_near(at) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) && !shown.is_empty() {
            shown.push("...".to_owned());
        }
        shown.push(format!("{mark}{line}"));
    }
    shown
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse()
        .map_err(|error: toml_edit::TomlError| error.message().replace('\n', ", "))
}

fn collect(table: &dyn TableLike, place: &str, found: &mut Values) {
    for (key, item) in table.iter() {
        let place = if place.is_empty() {
            key.to_owned()
        } else {
            format!("{place}.{key}")
        };
        match item {
            Item::ArrayOfTables(tables) => {
                for (index, table) in tables.iter().enumerate() {
                    collect(table, &format!("{place}[{index}]"), found);
                }
            }
            Item::Value(Value::Array(array)) if array.iter().any(Value::is_inline_table) => {
                for (index, element) in array.iter().enumerate() {
                    let place = format!("{place}[{index}]");
                    match element.as_inline_table() {
                        Some(table) => collect(table, &place, found),
                        None => drop(found.insert(place, plain(element))),
                    }
                }
            }
            Item::Value(value) if !value.is_inline_table() => drop(found.insert(place, plain(value))),
            other => {
                if let Some(table) = other.as_table_like() {
                    collect(table, &place, found);
                }
            }
        }
    }
}

/// A value without what stands around it.
fn plain(value: &Value) -> String {
    match value {
        Value::Array(array) => {
            let elements: Vec<String> = array.iter().map(plain).collect();
            format!("[{}]", elements.join(", "))
        }
        Value::String(text) => Value::from(text.value().as_str()).to_string(),
        other => other.clone().decorated("", "").to_string(),
    }
}

/// Another value in the place of the one that is there; white space and the comment behind it stay.
fn exchange(item: &mut Item, value: Value) {
    let mut value = value;
    if let Some(old) = item.as_value() {
        if plain(old) == plain(&value) {
            return;
        }
        *value.decor_mut() = old.decor().clone();
    }
    *item = Item::Value(value);
}

fn find_item<'d>(root: &'d Item, table: &str) -> Option<&'d Item> {
    table
        .split('.')
        .filter(|name| !name.is_empty())
        .try_fold(root, |item, name| item.as_table_like()?.get(name))
}

fn find_mut<'d>(root: &'d mut dyn TableLike, table: &str) -> Option<&'d mut dyn TableLike> {
    table
        .split('.')
        .filter(|name| !name.is_empty())
        .try_fold(root, |table, name| table.get_mut(name)?.as_table_like_mut())
}

/// Whether a table has no header of its own, only something below it has one: keys put into it would have nowhere to stand.
fn is_implied(item: &Item) -> bool {
    matches!(item, Item::Table(table) if table.is_implicit() && !table.is_dotted())
}

fn is_within(name: &str, place: &str) -> bool {
    name.strip_prefix(place)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// What a line of the text looks like.
struct Look<'t> {
    is_comment: bool,
    /// The table it is in, counting headers that are comments too.
    table: &'t str,
    /// `[this]`
    header: Option<&'t str>,
    /// `this = ...`
    key: Option<&'t str>,
}

/// The first line that `is_meant`, without its comment mark; `None` where there is none.
fn uncommented(text: &str, is_meant: impl Fn(&Look<'_>) -> bool) -> Option<String> {
    let (mut real, mut shown) = ("", None);
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let content = line.strip_prefix("#: ").or_else(|| line.strip_prefix("# "));
        let is_comment = content.is_some();
        let content = content.unwrap_or(line);
        let header = header_of(content);
        if let Some(header) = header {
            if is_comment {
                shown = Some(header);
            } else {
                (real, shown) = (header, None);
            }
        }
        let look = Look {
            is_comment,
            table: shown.unwrap_or(real),
            header,
            key: content.split_once(" = ").map(|(key, _)| key.trim_end()),
        };
        if is_meant(&look) {
            return Some(format!("{}{content}{}", &text[..at], &text[at + line.len()..]));
        }
        at += line.len();
    }
    None
}

/// The name in a line like `[server.tls]`; lists of tables are none.
fn header_of(line: &str) -> Option<&str> {
    let name = line.strip_prefix('[')?.split_once(']')?.0;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

/// The text with what stands below its `nth` line that begins with `header` as comments, that line included.
fn commented_out(text: &str, header: &str, nth: usize) -> String {
    let mut result = String::with_capacity(text.len() + 64);
    let (mut met, mut inside) = (0, false);
    for line in text.split_inclusive('\n') {
        if line.starts_with('[') {
            inside = line.starts_with(header) && met == nth;
            met += usize::from(line.starts_with(header));
        }
        if inside && !line.trim().is_empty() && !line.starts_with('#') {
            result.push_str("# ");
        }
        result.push_str(line);
    }
    result
}

/// The text without the lines on which `table.key` and its value stand.
fn without_line(text: &str, table: &str, key: &str) -> Option<String> {
    let document = Document::parse(text).ok()?;
    let holder = find_item(document.as_item(), table)?.as_table_like()?;
    let (key, item) = holder.get_key_value(key)?;
    let (begin, end) = (key.span()?.start, item.span()?.end);
    let line_begin = text[..begin].rfind('\n').map_or(0, |at| at + 1);
    let line_end = text[end..].find('\n').map_or(text.len(), |at| end + at + 1);
    Some(format!("{}{}", &text[..line_begin], &text[line_end..]))
}

#[cfg(test)]
mod tests;
