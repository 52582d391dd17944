//! Templates: minijinja with our values, filters, comparisons and ways of escaping.

use std::collections::HashMap;
use std::sync::Arc;

use minijinja::machinery::{self, CompiledTemplate, TemplateConfig};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};

use super::faults::own_words;
use super::named::KnownNames;
use super::value::{Encoded, Escaped, print, push_json};
use super::{compare, filters, reckon};
use crate::render::{Escape, Fault, MEMORY_MAX, Names, TIME_MAX, Template};

/// Steps of a template; so many take about as long as one may. An endless loop ends here, with its place, before its time is over.
const FUEL: u64 = 2_000_000;

const SLACK: &str = "slack";
const URL: &str = "url";
const JSON: &str = ".json";

/// The templates of a child, by number.
pub(super) struct Jinja {
    environment: Environment<'static>,
    /// Compiled, and their operators replaced.
    templates: HashMap<String, CompiledTemplate<'static>>,
    names: Arc<KnownNames>,
}

impl Jinja {
    pub fn new() -> Jinja {
        let mut environment = Environment::new();
        let names = Arc::new(KnownNames::default());
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(escape_of);
        environment.set_formatter(format);
        // It shows everything there is, which is what `tojson` does of what is asked for.
        environment.remove_global("debug");
        filters::add_all(&mut environment, &names);
        compare::add_all(&mut environment);
        reckon::add_all(&mut environment);
        Jinja {
            environment,
            templates: HashMap::new(),
            names,
        }
    }

    pub fn set_names(&self, names: Names) {
        self.names.set(names);
    }

    /// Whether names were wanted that are not there, since this was last asked: of fields with these ids, or of any.
    pub fn take_unnamed(&self) -> Option<Vec<String>> {
        self.names.take_unnamed()
    }

    fn name(number: usize, escape: Escape) -> String {
        let suffix = match escape {
            Escape::None => "text",
            Escape::Html => "html",
            Escape::Slack => SLACK,
            Escape::Url => URL,
            // Nothing is escaped in it.
            Escape::Json => return format!("{number}{JSON}"),
        };
        format!("{number}.{suffix}")
    }

    /// Compiles a template; gives the name by which it is rendered.
    pub fn add(&mut self, number: usize, template: &Template) -> Result<String, Fault> {
        let name = Jinja::name(number, template.escape());
        // Both stay as long as the child does, which holds a limited number of programs.
        let (kept_name, source): (&str, &str) = (name.clone().leak(), template.source().to_owned().leak());
        let config = TemplateConfig {
            syntax_config: SyntaxConfig::default(),
            default_auto_escape: Arc::new(escape_of),
        };
        let compiled = CompiledTemplate::new(kept_name, source, &config);
        let mut compiled = compiled.map_err(|error| fault(&error, source))?;
        compare::replace(&mut compiled.instructions);
        self.templates.insert(name.clone(), compiled);
        Ok(name)
    }

    pub fn render(&self, name: &str, scope: &Value) -> Result<String, Fault> {
        let Some(compiled) = self.templates.get(name) else {
            return Err(Fault::default());
        };
        let mut text = String::new();
        machinery::eval(
            &self.environment,
            &compiled.instructions,
            scope.clone(),
            &compiled.blocks,
            &mut machinery::make_string_output(&mut text),
            compiled.initial_auto_escape.clone(),
        )
        .map_err(|error| fault(&error, compiled.instructions.source()))?;
        // The others of its event have what is left.
        text.shrink_to_fit();
        if text.len() > MEMORY_MAX {
            return Err(Fault {
                text: "what it makes is longer than 16 MiB".into(),
                ..Fault::default()
            });
        }
        Ok(text)
    }
}

fn escape_of(name: &str) -> AutoEscape {
    match name.rsplit('.').next() {
        Some("html") => AutoEscape::Html,
        Some(SLACK) => AutoEscape::Custom(SLACK.into()),
        Some(URL) => AutoEscape::Custom(URL.into()),
        _ => AutoEscape::None,
    }
}

fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if state.name().ends_with(JSON) {
        return print_json(out, value);
    }
    if value.is_safe() {
        return print(out, value);
    }
    match state.auto_escape() {
        AutoEscape::None => print(out, value),
        AutoEscape::Custom(custom) if custom == URL => print(&mut Encoded(out), value),
        AutoEscape::Custom(_) => print(&mut Escaped { out, quotes: false }, value),
        _ => print(&mut Escaped { out, quotes: true }, value),
    }
}

/// The JSON of a value. What is undefined comes here only where an `if` has no `else`; elsewhere it is an error before.
fn print_json(out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Ok(());
    }
    let mut text = String::new();
    push_json(&mut text, value, 0)?;
    print(out, &Value::from(text))
}

/// What went wrong, and where. The words are minijinja's own and the template's, not the event's; the rest is the detail.
fn fault(error: &Error, source: &str) -> Fault {
    let range = error.range().map(|range| {
        let is_missing = error.kind() == ErrorKind::UndefinedError;
        let filtered = is_missing.then(|| filtered(source, range.start)).flatten();
        filtered.unwrap_or(range)
    });
    let place = range.as_ref().and_then(|range| {
        let before = source.get(..range.start)?;
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Some((line, column))
    });
    let quoted = range.and_then(|range| source.get(range)).map(|part| {
        let end = part.char_indices().nth(80).map_or(part.len(), |(at, _)| at);
        format!(" ({})", crate::plain::line(&part[..end]))
    });
    let is_syntax = error.kind() == ErrorKind::SyntaxError;
    let own_words = own_words(error);
    let text = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more steps than fit into {} ms", TIME_MAX.as_millis()),
        ErrorKind::SyntaxError => error.detail().unwrap_or("it can't be read").to_owned(),
        ErrorKind::UndefinedError => format!("there is no such value{}", quoted.unwrap_or_default()),
        kind => {
            let words = own_words.map_or_else(|| kind.to_string(), str::to_owned);
            format!("{words}{}", quoted.unwrap_or_default())
        }
    };
    Fault {
        program: None,
        place: place.or_else(|| error.line().map(|line| (line, 1))),
        text,
        detail: error
            .detail()
            .filter(|_| !is_syntax && own_words.is_none())
            .map(str::to_owned),
    }
}

/// Where what is filtered stands in a template, before the name of the filter that begins at `filter`; `None` where none does.
fn filtered(source: &str, filter: usize) -> Option<std::ops::Range<usize>> {
    let before = source.get(..filter)?.trim_end();
    let end = before.strip_suffix('|')?.trim_end().len();
    let (mut start, mut depth, mut quote) = (end, 0_usize, None);
    for (at, character) in source.get(..end)?.char_indices().rev() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, ')' | ']' | '}')
                if depth > 0 || start == end || source[at + 1..end].trim_start().starts_with(['.', '[', '(', '|']) =>
            {
                depth += 1;
            }
            (None, '(' | '[' | '{') if depth > 0 => depth -= 1,
            (None, _) if depth > 0 || character.is_alphanumeric() || matches!(character, '_' | '.' | '|') => {}
            // Around the signs of filters there may be room.
            (None, ' ') if source[..at].trim_end().ends_with('|') || source[at..end].trim_start().starts_with('|') => {}
            (None, _) => break,
        }
        start = at;
    }
    let start = start + (source[start..end].len() - source[start..end].trim_start().len());
    (start < end).then_some(start..end)
}
