//! What is deployed and makes something of events: each sink's template or transform, each rule's filter, template or transform, as they
//! were taken over (a file that they name was read then). To begin with, for whoever wants to try a change of it.

use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal};
use crate::render::Program;

/// What is deployed?
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Show {}

/// One part of the configuration that makes something of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// Whose it is.
    pub of: Of,
    /// The sink's or rule's name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its text.
    pub text: String,
    /// The sinks that it makes something for, or sends to.
    pub sinks: Vec<String>,
}

/// Who has a filter, template or transform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Of {
    /// A sink.
    Sink,
    /// A rule.
    Rule,
}

/// What somebody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A filter of Close's language.
    Filter,
    /// A template.
    Template,
    /// A transform.
    Transform,
}

impl Kind {
    /// As it is called in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Filter => "filter",
            Kind::Template => "template",
            Kind::Transform => "transform",
        }
    }
}

impl Deployed {
    fn program(of: Of, name: &str, program: &Program, sinks: &[String]) -> Deployed {
        let (kind, text) = match program {
            Program::Template(template) => (Kind::Template, template.source()),
            Program::Transform(transform) => (Kind::Transform, transform.source()),
        };
        Deployed {
            of,
            name: name.to_owned(),
            kind,
            text: text.to_owned(),
            sinks: sinks.to_vec(),
        }
    }
}

impl Show {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Deployed>) -> Result<(), Refusal> {
        for config in on.engine.configs() {
            if let Some(program) = &config.program {
                let sinks = std::slice::from_ref(&config.name);
                out.say(&Deployed::program(Of::Sink, &config.name, program, sinks))
                    .await?;
            }
        }
        for (name, filter, program, sinks) in on.engine.rules().written() {
            if let Some(filter) = filter {
                let deployed = Deployed {
                    of: Of::Rule,
                    name: name.to_owned(),
                    kind: Kind::Filter,
                    text: filter.to_owned(),
                    sinks: sinks.to_vec(),
                };
                out.say(&deployed).await?;
            }
            if let Some(program) = program {
                out.say(&Deployed::program(Of::Rule, name, program, sinks)).await?;
            }
        }
        Ok(())
    }
}
