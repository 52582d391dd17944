//! The configuration: what may be said, how its layers are put together, and every fault in it with its place.

mod admin;
mod close;
mod definition;
pub mod draft;
mod jetstream;
mod listed;
pub mod listen;
mod load;
pub mod mask;
mod node;
mod own;
pub mod schema;
pub mod secret;
mod server;
mod sink;
mod stopping;
pub mod table;
pub(crate) mod text;
pub mod time;
pub mod units;
mod warnings;

pub use admin::LINK;
pub use definition::{Key, Parse, Presence, SinkType};
pub use listen::{Listen, Networks};
pub use load::{JudgeRules, KEYS_WINDOW, Layers, ReadConfig, data_dir_only};
pub use schema::*;
pub use secret::{Secret, names_a_secret};
pub use server::acme_directory;
pub use sink::COMMON_KEYS;
pub use stopping::{STOP_MARGIN, STOP_REST};
pub use table::Table;
pub use units::{Rate, Size, Span};

/// One thing wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fault {
    /// Where, in the configuration's own terms: `rules[1].filter.filters[0].type`; empty where it is about all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// What is wrong and what would be right, one sentence.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A filter as a whole has no place in itself.
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)
    }
}
