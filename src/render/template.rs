//! A template as it is configured: Jinja text whose syntax was checked.

use std::sync::Arc;

/// What is done to values on their way into the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Escape {
    /// Nothing: they stand there as they are.
    #[default]
    None,
    /// `&`, `<`, `>` and quotes, as HTML wants it.
    Html,
    /// `&`, `<` and `>`, as Slack wants it: an event can then ping nobody and make no link.
    Slack,
    /// Nothing; each is its JSON, however it was made, and what there is not under a condition is nothing. For a template that is one value.
    Json,
    /// All that is no letter, digit or one of `-._~`, as a part of a URL wants it: an event can then begin no other part.
    Url,
}

/// Jinja text whose syntax was checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    source: Arc<str>,
    escape: Escape,
}

impl Template {
    /// Checks the syntax; nothing of it is run. An error says what is wrong, and where, in one sentence.
    pub fn parse(source: &str, escape: Escape) -> Result<Template, String> {
        let template = Template::unchecked(source, escape);
        if !template.is_constant() {
            super::guard::check(&super::Program::Template(template.clone()))
                .map_err(|fault| format!("not a template{}", fault.words()))?;
        }
        Ok(template)
    }

    /// One whose syntax is not checked: what is wrong with it shows when it is rendered.
    pub fn unchecked(source: &str, escape: Escape) -> Template {
        Template {
            source: source.into(),
            escape,
        }
    }

    /// The same text, with something else done to values.
    #[must_use]
    pub fn escaping(&self, escape: Escape) -> Template {
        Template {
            source: self.source.clone(),
            escape,
        }
    }

    /// Tells programs apart without comparing them.
    pub(super) fn address(&self) -> usize {
        self.source.as_ptr().addr()
    }

    /// As written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What is done to values on their way into the text.
    pub fn escape(&self) -> Escape {
        self.escape
    }

    /// Whether it says the same for every event: it has nothing to fill in.
    pub fn is_constant(&self) -> bool {
        !["{{", "{%", "{#"].iter().any(|mark| self.source.contains(mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_where_it_is() {
        let fault = Template::parse("one\n{{ two", Escape::None).unwrap_err();
        assert!(fault.contains("line 2"), "{fault}");
        assert!(Template::parse("{{ data.name }}", Escape::Html).is_ok());
    }

    #[test]
    fn text_with_nothing_to_fill_in_is_constant() {
        for (source, constant) in [
            ("a } b", true),
            ("", true),
            ("{{ a }}", false),
            ("{% if a %}{% endif %}", false),
            ("{# a #}", false),
        ] {
            assert_eq!(
                Template::parse(source, Escape::None).unwrap().is_constant(),
                constant,
                "{source}"
            );
        }
    }
}
