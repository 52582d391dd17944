//! What there is to say of a type of sink and of its keys, said once: the parser, the reference file (`config/closehook.toml`),
//! `closehook sinks types` and what is said of faults are all made from it.

use super::{Fault, SinkOptions, Table};

/// Reads the options of a type out of a sink's table; faults go into the table. `None` if it can't be used.
pub type Parse = fn(&mut Table<'_>) -> Option<SinkOptions>;

/// A type of sink.
#[derive(Debug)]
pub struct SinkType {
    /// What `type` says.
    pub name: &'static str,
    /// The cargo feature that it takes; `None`: it is in every build.
    pub feature: Option<&'static str>,
    /// What it does with an event: the rest of a sentence that begins with its name, without a full stop.
    pub about: &'static str,
    /// One sentence that begins with "Exactly once" or "At least once", and says where the receiver finds the key.
    pub promise: &'static str,
    /// What else there is to know: how answers are understood, what is in a row or a message, limits. Paragraphs are a line each.
    pub notes: &'static str,
    /// What the other side has to be set up with (grants, a policy, scopes). Paragraphs are a line each; a line that begins with two
    /// spaces is to be copied, and never broken. Empty where there is nothing to do.
    pub setup: &'static str,
    /// A sink as a person would paste it, with `[[sinks]]`, `name` and `type`. It needs no key that is not in it.
    pub example: &'static str,
    /// Its keys, beside [`super::COMMON_KEYS`].
    pub keys: &'static [Key],
    /// `None`: this build lacks it.
    pub parse: Option<Parse>,
}

impl SinkType {
    /// Stands in for a type that this build was made without.
    pub const fn lacking(name: &'static str, feature: &'static str) -> SinkType {
        SinkType {
            name,
            feature: Some(feature),
            about: "not in this build of closehook; the packages have it",
            promise: "",
            notes: "",
            setup: "",
            example: "",
            keys: &[],
            parse: None,
        }
    }

    /// The options that a table says; keys that nobody knows are faults.
    pub fn options(&self, table: &mut Table<'_>) -> Option<SinkOptions> {
        let Some(parse) = self.parse else {
            let feature = self.feature.unwrap_or_default();
            table.fault(
                "type",
                format!("this build of closehook was made without this type of sink; the packages have it (as a Cargo feature: {feature})"),
            );
            return None;
        };
        table.define(self.keys);
        let options = parse(table);
        table.report_unknown();
        options
    }

    /// The same of a table that is nothing but this type's options.
    pub fn options_of(&self, place: &str, value: serde_json::Value, faults: &mut Vec<Fault>) -> Option<SinkOptions> {
        self.options(&mut Table::new(place, value, faults))
    }
}

/// A key: what it is called, what it is where nobody says it, and what it is for.
#[derive(Debug)]
pub struct Key {
    /// What it is called; of a secret, without `_file` and `_env`.
    pub name: &'static str,
    /// Whether it must be there, and what may stand there.
    pub presence: Presence,
    /// What it is for, and what is its default where that is no fixed value. One sentence or two, without a full stop at the end.
    pub about: &'static str,
    /// It can be given as `x`, `x_file` and `x_env`.
    pub is_secret: bool,
    /// It is a template.
    pub is_template: bool,
    /// The keys of the table that it is.
    pub inner: &'static [Key],
    /// A table without which it is not as if all of its keys had their defaults.
    pub is_off: bool,
    /// What has to stand beside it, as TOML, for it to mean something; empty where that is nothing.
    pub beside: &'static str,
}

/// What may stand at a key, as TOML.
#[derive(Debug, Clone, Copy)]
pub enum Presence {
    /// It must be there; an example.
    Required(&'static str),
    /// What it is where it is not there.
    Default(&'static str),
    /// It may be left out; an example.
    Optional(&'static str),
    /// A table of keys that may all be left out.
    Table,
}

impl Key {
    const fn new(name: &'static str, presence: Presence, about: &'static str) -> Key {
        Key {
            name,
            presence,
            about,
            is_secret: false,
            is_template: false,
            inner: &[],
            is_off: false,
            beside: "",
        }
    }

    /// A key that must be there.
    pub const fn required(name: &'static str, example: &'static str, about: &'static str) -> Key {
        Key::new(name, Presence::Required(example), about)
    }

    /// A key with a default.
    pub const fn with_default(name: &'static str, default: &'static str, about: &'static str) -> Key {
        Key::new(name, Presence::Default(default), about)
    }

    /// A key that may be left out, which means something that is no value.
    pub const fn optional(name: &'static str, example: &'static str, about: &'static str) -> Key {
        Key::new(name, Presence::Optional(example), about)
    }

    /// A table of keys.
    pub const fn table(name: &'static str, inner: &'static [Key], about: &'static str) -> Key {
        let mut key = Key::new(name, Presence::Table, about);
        key.inner = inner;
        key
    }

    /// Without this table it is not as if all of its keys had their defaults.
    #[must_use]
    pub const fn off(mut self) -> Key {
        self.is_off = true;
        self
    }

    /// It is a secret: the example is that of `x_file`.
    #[must_use]
    pub const fn secret(mut self) -> Key {
        self.is_secret = true;
        self
    }

    /// Its text is a template.
    #[must_use]
    pub const fn template(mut self) -> Key {
        self.is_template = true;
        self
    }

    /// It means something only beside another key.
    #[must_use]
    pub const fn beside(mut self, toml: &'static str) -> Key {
        self.beside = toml;
        self
    }

    /// Whether a table may have a key of this name because of it.
    pub fn is_called(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.name);
        rest.is_some_and(|rest| rest.is_empty() || self.is_secret && matches!(rest, "_file" | "_env"))
    }

    /// The ways in which it is written.
    pub fn names(&self) -> Vec<String> {
        let ways: &[&str] = if self.is_secret { &["", "_file", "_env"] } else { &[""] };
        ways.iter().map(|way| format!("{}{way}", self.name)).collect()
    }

    /// Whether what is shown of it is what holds without it.
    pub fn shows_default(&self) -> bool {
        match self.presence {
            Presence::Default(_) => true,
            Presence::Table => !self.is_off && self.inner.iter().all(Key::shows_default),
            Presence::Required(_) | Presence::Optional(_) => false,
        }
    }

    /// Whether it must be there.
    pub fn is_required(&self) -> bool {
        matches!(self.presence, Presence::Required(_))
    }

    /// What may stand there, as TOML: the default, or an example.
    pub fn shown(&self) -> String {
        match self.presence {
            Presence::Required(text) | Presence::Default(text) | Presence::Optional(text) => text.to_owned(),
            Presence::Table => {
                let inner: Vec<String> = self.inner.iter().map(Key::line).collect();
                format!("{{ {} }}", inner.join(", "))
            }
        }
    }

    /// The key as it is written in a file.
    pub fn line(&self) -> String {
        let way = if self.is_secret { "_file" } else { "" };
        format!("{}{way} = {}", self.name, self.shown())
    }
}
