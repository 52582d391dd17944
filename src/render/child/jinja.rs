//! Templates: minijinja with our values, filters and ways of escaping.

use std::sync::Arc;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior};

use super::filters;
use super::named::KnownNames;
use super::value::{Escaped, print};
use crate::render::{Escape, Fault, MEMORY_MAX, Names, TIME_MAX, Template};

/// Steps of a template; so many take about as long as one may. An endless loop ends here, with its place, before its time is over.
const FUEL: u64 = 2_000_000;

const SLACK: &str = "slack";

/// The templates of a child, by number.
pub(super) struct Jinja {
    environment: Environment<'static>,
    names: Arc<KnownNames>,
}

impl Jinja {
    pub fn new() -> Jinja {
        let mut environment = Environment::new();
        let names = Arc::new(KnownNames::default());
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|name| match name.rsplit('.').next() {
            Some("html") => AutoEscape::Html,
            Some(SLACK) => AutoEscape::Custom(SLACK.into()),
            _ => AutoEscape::None,
        });
        environment.set_formatter(format);
        // It shows everything there is, which is what `tojson` does of what is asked for.
        environment.remove_global("debug");
        filters::add_all(&mut environment, &names);
        Jinja { environment, names }
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
        };
        format!("{number}.{suffix}")
    }

    /// Compiles a template; gives the name by which it is rendered.
    pub fn add(&mut self, number: usize, template: &Template) -> Result<String, Fault> {
        let name = Jinja::name(number, template.escape());
        self.environment
            .add_template_owned(name.clone(), template.source().to_owned())
            .map_err(|error| fault(&error, template.source()))?;
        Ok(name)
    }

    pub fn render(&self, name: &str, scope: &Value) -> Result<String, Fault> {
        let template = self.environment.get_template(name).map_err(|error| fault(&error, ""))?;
        let text = template
            .render(scope.clone())
            .map_err(|error| fault(&error, template.source()))?;
        if text.len() > MEMORY_MAX {
            return Err(Fault {
                text: "what it makes is longer than 16 MiB".into(),
                ..Fault::default()
            });
        }
        Ok(text)
    }
}

fn format(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.is_safe() {
        return print(out, value);
    }
    match state.auto_escape() {
        AutoEscape::None => print(out, value),
        AutoEscape::Custom(_) => print(&mut Escaped { out, quotes: false }, value),
        _ => print(&mut Escaped { out, quotes: true }, value),
    }
}

/// What went wrong, and where. The words are minijinja's own and the template's, not the event's; the rest is the detail.
fn fault(error: &Error, source: &str) -> Fault {
    let range = error.range();
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
    let text = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more steps than fit into {} ms", TIME_MAX.as_millis()),
        ErrorKind::SyntaxError => error.detail().unwrap_or("it can't be read").to_owned(),
        ErrorKind::UndefinedError => format!("there is no such value{}", quoted.unwrap_or_default()),
        kind => format!("{kind}{}", quoted.unwrap_or_default()),
    };
    Fault {
        program: None,
        place: place.or_else(|| error.line().map(|line| (line, 1))),
        text,
        detail: error.detail().filter(|_| !is_syntax).map(str::to_owned),
    }
}
