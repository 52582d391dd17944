//! A configuration's text without its secrets: for whoever reads over somebody's shoulder, and for logs of scripts.
//!
//! Every value that is a secret by the name of its key is replaced, in whatever notation it stands; so is what looks like one in
//! a comment (a table that is not wanted any more is commented out with all that is in it), and every other place where the
//! same text stands. Where in doubt, it is one.

use std::collections::BTreeSet;

use toml_edit::{Document, Item, Value};

use super::names_a_secret;

/// Stands for a secret.
const MASKED: &str = "(secret)";

/// Whether a key holds a secret, or what may be one: `headers` and `env` of a sink are often made of them.
fn is_secret(path: &str) -> bool {
    let names = path.split('.').map(|name| name.trim_matches(['"', '\'', ' ']));
    let names = names.filter_map(|name| name.split('[').next());
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    // Who has a token of the page and what they may do is no secret, although their table is called so.
    if matches!(names[..], ["admin", "tokens", "name" | "may"]) {
        return false;
    }
    names
        .iter()
        .any(|name| names_a_secret(name) || ["headers", "env"].contains(name))
}

/// A value of that place, as it may be shown.
pub fn value(path: &str, value: &str) -> String {
    if is_secret(path) {
        MASKED.to_owned()
    } else {
        without_userinfo(value)
    }
}

/// The text with every secret masked; line for line the same otherwise.
pub fn text(text: &str) -> String {
    let mut spans = Vec::new();
    let mut known = BTreeSet::new();
    if let Ok(document) = Document::parse(text) {
        collect(document.as_item(), "", &mut spans, &mut known);
    }
    spans.sort_unstable();
    let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
    for (begin, end) in spans {
        if begin < at {
            continue;
        }
        masked.push_str(&text[at..begin]);
        // As many lines as before, so that the rest stays where it is.
        let lines = text[begin..end].matches('\n').count();
        masked.extend(["\"", MASKED, "\"", &"\n".repeat(lines)]);
        at = end;
    }
    masked.push_str(&text[at..]);
    let ending = masked.ends_with('\n');
    let lines: Vec<String> = Comments::default().masked(&masked);
    let mut masked = lines.join("\n");
    if ending {
        masked.push('\n');
    }
    for secret in &known {
        masked = masked.replace(secret.as_str(), MASKED);
    }
    masked
}

/// Where secrets stand in a text, and what they are.
fn collect(item: &Item, path: &str, spans: &mut Vec<(usize, usize)>, known: &mut BTreeSet<String>) {
    if let Some(table) = item.as_table_like() {
        for (key, item) in table.iter() {
            collect(item, &format!("{path}.{key}"), spans, known);
        }
    } else if let Some(tables) = item.as_array_of_tables() {
        for table in tables {
            collect(&Item::Table(table.clone()), path, spans, known);
        }
    } else if let Some(value) = item.as_value() {
        collect_value(value, path, spans, known);
    }
}

fn collect_value(value: &Value, path: &str, spans: &mut Vec<(usize, usize)>, known: &mut BTreeSet<String>) {
    match value {
        // What a program is called with is often a password; only which program it is is shown.
        Value::Array(array) if path.ends_with(".command") => {
            let arguments = array.iter().skip(1).filter_map(Value::span);
            spans.extend(arguments.map(|span| (span.start, span.end)));
        }
        Value::Array(array) if !is_secret(path) => {
            array.iter().for_each(|value| collect_value(value, path, spans, known));
        }
        Value::InlineTable(table) => {
            for (key, value) in table {
                collect_value(value, &format!("{path}.{key}"), spans, known);
            }
        }
        value if is_secret(path) => {
            if let Some(span) = value.span() {
                spans.push((span.start, span.end));
            }
            // Wherever else it stands; what is short may be a word of anybody's.
            let shown = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            known.extend(
                shown
                    .lines()
                    .map(str::trim)
                    .filter(|line| line.len() >= 6)
                    .map(str::to_owned),
            );
        }
        _ => {}
    }
}

/// A URL's `user:password@`, and the passwords of a connection string, masked.
fn without_userinfo(line: &str) -> String {
    without_passwords(&without_tokens(&without_users(line)))
}

/// Whether a part of a query is a token, by its name or by its looks.
fn is_token(name: &str, value: &str) -> bool {
    const NAMES: [&str; 8] = ["sig", "signature", "code", "key", "apikey", "hapikey", "auth", "pw"];
    let is_odd = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
    let by_name = names_a_secret(name) || NAMES.iter().any(|known| name.eq_ignore_ascii_case(known));
    !value.is_empty() && !value.contains("{{") && (by_name || value.len() >= 6 && value.contains(is_odd))
}

/// What in the path and the query of a URL may be a token (`/services/T0/B0/x`, `?sig=x`), masked.
fn without_tokens(line: &str) -> String {
    const WORD_LEN_MIN: usize = 6;
    let Some(scheme) = line.find("://") else {
        return line.to_owned();
    };
    let (before, rest) = line.split_at(scheme + 3);
    let host_end = rest.find(['/', '"', '\'', ' ', '?', '#']).unwrap_or(rest.len());
    let (host, rest) = rest.split_at(host_end);
    let end = rest.find(['"', '\'', ' ']).unwrap_or(rest.len());
    let (place, rest) = rest.split_at(end);
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    let is_odd = |c: char| c.is_ascii_digit() || c.is_ascii_uppercase();
    let segment = |segment: &str| {
        let may_be_one = segment.len() >= WORD_LEN_MIN && segment.contains(is_odd) && !segment.contains("{{");
        if may_be_one {
            MASKED.to_owned()
        } else {
            segment.to_owned()
        }
    };
    let path: Vec<String> = path.split('/').map(segment).collect();
    let pair = |pair: &str| match pair.split_once('=') {
        Some((name, value)) if is_token(name, value) => format!("{name}={MASKED}"),
        _ => segment(pair),
    };
    let query: Vec<String> = query.split('&').map(pair).collect();
    let query = query.join("&");
    let query = if place.contains('?') {
        format!("?{query}")
    } else {
        query
    };
    format!("{before}{host}{}{query}{}", path.join("/"), without_tokens(rest))
}

/// What stands behind `password=` within a value (`host=db password=x`, `?password=x`), masked.
fn without_passwords(line: &str) -> String {
    const NAMES: [&str; 4] = ["password=", "passwd=", "secret=", "token="];
    let small = line.to_ascii_lowercase();
    let found = NAMES.iter().filter_map(|name| Some((small.find(name)?, name.len())));
    let Some((at, len)) = found.min() else {
        return line.to_owned();
    };
    let (before, value) = line.split_at(at + len);
    // In quotes, perhaps within a text that is in quotes itself.
    let quotes = ["\\\"", "\\'", "\"", "'"];
    if let Some(quote) = quotes.into_iter().find(|quote| value.starts_with(quote))
        && let Some(len) = value[quote.len()..].find(quote)
    {
        let masked = if len == 0 { "" } else { MASKED };
        let rest = without_passwords(&value[quote.len() + len..]);
        return format!("{before}{quote}{masked}{rest}");
    }
    let end = value.find([' ', '&', '"', '\'', ',', '#']).unwrap_or(value.len());
    let masked = if end == 0 { "" } else { MASKED };
    format!("{before}{masked}{}", without_passwords(&value[end..]))
}

fn without_users(line: &str) -> String {
    let Some(scheme) = line.find("://") else {
        return line.to_owned();
    };
    let begin = scheme + 3;
    let rest = &line[begin..];
    let host_end = rest.find(['/', '"', '\'', ' ', '?', '#']).unwrap_or(rest.len());
    let Some(at) = rest[..host_end].rfind('@') else {
        return format!("{}{}", &line[..begin], without_users(rest));
    };
    format!("{}{MASKED}{}", &line[..begin], without_users(&rest[at..]))
}

/// Goes through lines, and knows what is within a secret that is commented out.
#[derive(Debug, Default)]
struct Comments {
    /// A string over several lines that has begun, by what ends it.
    within: Option<&'static str>,
    /// The table a comment is in.
    is_secret_table: bool,
    /// A string that is in force and has begun, by what ends it: what looks like a comment in it is none.
    open: Option<&'static str>,
}

/// What begins and ends a string, those over several lines first.
const QUOTES: [&str; 4] = ["\"\"\"", "'''", "\"", "'"];

impl Comments {
    fn masked(mut self, text: &str) -> Vec<String> {
        text.lines().map(|line| self.line(line)).collect()
    }

    fn line(&mut self, line: &str) -> String {
        let behind = self.begins(line);
        if line.trim_start().starts_with('#') {
            return self.comment(line);
        }
        self.within = None;
        self.is_secret_table = false;
        match behind {
            None => without_userinfo(line),
            Some(at) => without_userinfo(&line[..at]) + &self.comment(&line[at..]),
        }
    }

    /// Where in a line a comment begins.
    fn begins(&mut self, line: &str) -> Option<usize> {
        let mut at = 0;
        while let Some(letter) = line[at..].chars().next() {
            let rest = &line[at..];
            at += letter.len_utf8();
            match self.open {
                // What is escaped ends nothing.
                Some("\"" | "\"\"\"") if letter == '\\' => at += rest[1..].chars().next().map_or(0, char::len_utf8),
                Some(quotes) if rest.starts_with(quotes) => {
                    self.open = None;
                    at += quotes.len() - 1;
                    // A string over several lines may itself end with the quotes that end it.
                    let more = line[at..].chars().take_while(|next| *next == letter).count();
                    at += if quotes.len() == 3 { more.min(2) } else { 0 };
                }
                Some(_) => {}
                None if letter == '#' => return Some(at - 1),
                None => {
                    self.open = QUOTES.into_iter().find(|quotes| rest.starts_with(quotes));
                    at += self.open.map_or(0, |quotes| quotes.len() - 1);
                }
            }
        }
        self.open = self.open.filter(|quotes| quotes.len() == 3);
        None
    }

    /// A comment, with what stands before it on its line if that is nothing.
    fn comment(&mut self, line: &str) -> String {
        let comment = line.trim_start().trim_start_matches('#');
        if let Some(end) = self.within {
            if comment.contains(end) {
                self.within = None;
            }
            return format!("# {MASKED}");
        }
        let content = comment.trim_start_matches(['#', ':', ' ']);
        if let Some(header) = content.strip_prefix('[') {
            self.is_secret_table = is_secret(header.trim_matches(['[', ']', ' ']));
        }
        let Some((key, value)) = content.split_once('=') else {
            return without_userinfo(line);
        };
        // What a reference shows is no secret: an example, or where one is.
        let is_secret = self.is_secret_table || is_secret(key.trim()) || is_secret_inside(value);
        if !is_secret {
            // A value that is commented out may have a comment of its own.
            let Some(at) = value.find('#') else {
                return without_userinfo(line);
            };
            let begin = line.len() - value.len() + at;
            return without_userinfo(&line[..begin]) + &self.comment(&line[begin..]);
        }
        let value = value.trim();
        for quotes in ["\"\"\"", "'''"] {
            if value.starts_with(quotes) && !value[3..].contains(quotes) {
                self.within = Some(quotes);
            }
        }
        let kept = line.len() - content.len() + key.len();
        format!("{}= {MASKED}", &line[..kept])
    }
}

/// Whether an inline table in a comment has a secret in it.
fn is_secret_inside(value: &str) -> bool {
    value.contains('{')
        && value
            .split(['{', ','])
            .filter_map(|pair| pair.split_once('='))
            .any(|(key, _)| is_secret(key.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_urls_and_arguments_of_programs_are_masked() {
        let shown = text(
            "[[sinks]]\nurl = \"https://hooks.example.com/services/T0ABCDE/x?sig=abc&code=d\"\n[[sinks]]\ncommand = [\"/bin/notify\", \"--token\", \"abc\"]\n\
             [server]\npublic_url = \"https://hooks.example.com/webhooks/close\"\n",
        );
        assert!(
            shown.contains("\"https://hooks.example.com/services/(secret)/x?sig=(secret)&code=(secret)\""),
            "{shown}"
        );
        assert!(
            shown.contains("[\"/bin/notify\", \"(secret)\", \"(secret)\"]"),
            "{shown}"
        );
        assert!(
            shown.contains("\"https://hooks.example.com/webhooks/close\""),
            "{shown}"
        );
    }

    fn assert_masked(cases: &[(&str, &str)]) {
        for (before, after) in cases {
            assert_eq!(text(before), *after, "{before}");
        }
    }

    #[test]
    fn every_notation_of_a_secret_is_masked_and_nothing_else() {
        assert_masked(&[
            ("api_key = \"hunter2\"\n", "api_key = \"(secret)\"\n"),
            ("a.secret = 'hunter2' # mine\n", "a.secret = \"(secret)\" # mine\n"),
            (
                "a = 'x secret=\"hunter2\" y'\nb = \"token=\\\"hunter2\\\", password=\"\n",
                "a = 'x secret=\"(secret)\" y'\nb = \"token=\\\"(secret)\\\", password=\"\n",
            ),
            (
                "[[admin.tokens]]\nname = \"on-call\"\nmay = \"act\"\ntoken = \"hunter2\"\n",
                "[[admin.tokens]]\nname = \"on-call\"\nmay = \"act\"\ntoken = \"(secret)\"\n",
            ),
            (
                "secret = \"\"\"\nhunter2\nhunter22\"\"\"\nb = 1\n",
                "secret = \"(secret)\"\n\n\nb = 1\n",
            ),
            (
                "a = { secret = \"hunter2\", b = 1 }\n",
                "a = { secret = \"(secret)\", b = 1 }\n",
            ),
            (
                "[a.\"client_secret\"]\nx = [\"hunter2\"]\n",
                "[a.\"client_secret\"]\nx = \"(secret)\"\n",
            ),
            (
                "headers = { Authorization = \"Bearer hunter2\" }\n",
                "headers = { Authorization = \"(secret)\" }\n",
            ),
            ("[sinks.env]\nX = \"hunter2\"\n", "[sinks.env]\nX = \"(secret)\"\n"),
            (
                "[[s]]\nsignature_key = 0xab\n[[s]]\nsignature_key = \"hunter2\"\n",
                "[[s]]\nsignature_key = \"(secret)\"\n[[s]]\nsignature_key = \"(secret)\"\n",
            ),
            (
                "secret = \"hunter2\"\nb = \"hunter2\"\n",
                "secret = \"(secret)\"\nb = \"(secret)\"\n",
            ),
            (
                "api_key_file = \"f\"\nsecret_env = \"E\"\npath = \"/x\"\n",
                "api_key_file = \"f\"\nsecret_env = \"E\"\npath = \"/x\"\n",
            ),
            (
                "url = \"host=db password=hunter2 user=a\"\nurl = \"postgres://h/d?Password=hunter2&x=1\"\n",
                "url = \"host=db password=(secret) user=a\"\nurl = \"postgres://h/d?Password=(secret)&x=1\"\n",
            ),
        ]);
    }

    #[test]
    fn secrets_in_comments_are_masked_as_well() {
        assert_masked(&[
            (
                "type = \"exec\" # password = \"hunter2\"\ntimeout = \"5s\" #secret=\"hunter2\"\n",
                "type = \"exec\" # password = (secret)\ntimeout = \"5s\" #secret= (secret)\n",
            ),
            (
                "# type = \"exec\" # password = \"hunter2\"\n[a] # token = 'hunter2'\n",
                "# type = \"exec\" # password = (secret)\n[a] # token = (secret)\n",
            ),
            (
                "a = \"\"\"x\n\"y\"\"\"\" # secret = \"hunter2\"\nb = \"# secret = \\\"x\\\" #\" # key = 1\n",
                "a = \"\"\"x\n\"y\"\"\"\" # secret = (secret)\nb = \"# secret = \\\"x\\\" #\" # key = 1\n",
            ),
            (
                "# api_key = \"hunter2\"\n#: token = 'hunter2'\n",
                "# api_key = (secret)\n#: token = (secret)\n",
            ),
            (
                "# secret = \"\"\"\n# hunter2\n# x\"\"\"\n# b = 1\n",
                "# secret = (secret)\n# (secret)\n# (secret)\n# b = 1\n",
            ),
            ("# a = { secret = \"hunter2\" }\n", "# a = (secret)\n"),
            (
                "url = \"https://u:hunter2@h/\"\n# url = \"https://hunter2@h\"\n",
                "url = \"https://(secret)@h/\"\n# url = \"https://(secret)@h\"\n",
            ),
            (
                "not toml at all\n# api_key = \"hunter2\"",
                "not toml at all\n# api_key = (secret)",
            ),
        ]);
    }

    #[test]
    fn a_value_is_masked_by_its_place() {
        assert_eq!(value("close.api_key", "\"hunter2\""), "(secret)");
        assert_eq!(
            value("sinks[0].url", "\"https://a:hunter2@b\""),
            "\"https://(secret)@b\""
        );
        assert_eq!(value("close.api_key_file", "\"f\""), "\"f\"");
    }
}
