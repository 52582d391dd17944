//! What is delivered instead of an event: templates and transforms, within limits.
//!
//! A sink or a rule may have a `template` or a `transform`, and some keys of sinks are templates (`subject`, `headers.x-team`).
//! The engine renders them between reading and delivering, so that every sink has them and none runs a program itself: a sink names
//! its templates in [`crate::sinks::SinkKind::templates`], and finds what was made of them at the delivery
//! ([`crate::event::Delivery::text`], [`crate::event::Delivery::payload`]). Without any the original bytes go out.
//!
//! Programs are other people's, and so are events. What they may cost is limited: 100 ms of the processor ([`TIME_MAX`]) and 16 MiB
//! ([`MEMORY_MAX`]) an event. An allocation that fails ends a process of Rust, neither a template's engine nor a regular expression
//! looks at a clock everywhere, and a stack ends where it ends. So nothing is rendered in this process: a child does it, the same
//! program started anew, which gives up whatever could do harm before it reads the first byte (`child`). It may die of any event; the
//! one that looks after it (`guard`) finds out which event that was, says what was passed, and has a new child do the rest. An event is
//! blamed only for what it did twice, the second time alone, and only for what can be its doing: a child that is ended from outside,
//! or that stands still because the machine does, makes the sink wait and costs no event anything.
//!
//! | file | what it does |
//! |---|---|
//! | `template`, `transform` | what is configured, its syntax checked (by a child too: a compiler's stack is as finite as any) |
//! | `guard` | starts the child, hands it work, and judges its end |
//! | `names` | what custom fields are called, and who waits for it |
//! | `wire` | what is said between the two |
//! | `child` | the child: its limits, templates and their filters, transforms |

mod child;
mod guard;
mod names;
mod template;
mod transform;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

pub use child::{is_child, serve};
pub use guard::{Guard, Job, Made, Stuck};
pub use names::{NameBook, Names};
pub use template::{Escape, Template};
pub use transform::Transform;

/// So much of the processor's time one event may take, all its templates together.
pub const TIME_MAX: Duration = Duration::from_millis(100);

/// So much memory one event may take, beside itself.
pub const MEMORY_MAX: usize = 16 << 20;

/// What makes a payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Program {
    /// Text with places to fill in.
    Template(Template),
    /// A function.
    Transform(Transform),
}

impl Program {
    /// What it is called in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Program::Template(_) => "template",
            Program::Transform(_) => "transform",
        }
    }

    /// The same program; if it is a template, with this done to values.
    #[must_use]
    pub fn escaping(&self, escape: Escape) -> Program {
        match self {
            Program::Template(template) => Program::Template(template.escaping(escape)),
            Program::Transform(_) => self.clone(),
        }
    }

    /// Whether it can be read; nothing of it is run. Blocks for as long as that takes, which is a child's start and little more.
    pub fn check(&self) -> Result<(), Fault> {
        match self {
            Program::Template(template) if template.is_constant() => Ok(()),
            _ => guard::check(self),
        }
    }

    fn address(&self) -> usize {
        match self {
            Program::Template(template) => template.address(),
            Program::Transform(transform) => transform.address(),
        }
    }
}

/// Why nothing could be made of an event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fault {
    /// Which of the programs it was: the payload's is 0, and the texts follow; `None` where it is not known, or there is but one.
    pub program: Option<usize>,
    /// Line and column in the program, counted from 1.
    pub place: Option<(usize, usize)>,
    /// What went wrong, half a sentence; holds nothing of the event.
    pub text: String,
    /// What the program said itself. It may quote the event.
    pub detail: Option<String>,
}

impl Fault {
    /// Where it is and what it is, behind a colon or the place: ` in line 2, column 5: ...`.
    pub fn words(&self) -> String {
        let place = self
            .place
            .map(|(line, column)| format!(" in line {line}, column {column}"));
        format!("{}: {}", place.unwrap_or_default(), self.text)
    }
}

/// What templates and transforms made of one event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rendered {
    /// What is delivered instead of the event; `None`: the event itself is.
    pub payload: Option<Payload>,
    /// Headers (attributes, fields) beside those of the sink, from a transform; these win over the sink's own.
    pub headers: BTreeMap<String, String>,
    /// The routing key, partition key or group, from a transform; wins over the sink's own key.
    pub key: Option<String>,
    /// The subject or topic, from a transform; wins over the sink's own key.
    pub subject: Option<String>,
    /// The sink's keys that are templates, by the name that [`crate::sinks::SinkKind::templates`] gives them.
    pub texts: BTreeMap<String, String>,
}

/// What is delivered instead of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The text of a template, or the string that a transform returned.
    Text(Bytes),
    /// The object or array that a transform returned, as JSON text.
    Json(Bytes),
}

impl Payload {
    /// The bytes to send, whichever it is.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Payload::Text(bytes) | Payload::Json(bytes) => bytes,
        }
    }
}
