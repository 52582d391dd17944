//! Numbers at the top of a view.

/// A number with its name.
pub struct Tile {
    pub name: &'static str,
    pub value: String,
    pub more: String,
    pub tone: &'static str,
}

impl Tile {
    /// One that is no trouble.
    pub fn new(name: &'static str, value: impl Into<String>, more: impl Into<String>) -> Tile {
        Tile {
            name,
            value: value.into(),
            more: more.into(),
            tone: "",
        }
    }

    /// The same in another tone.
    pub fn toned(self, tone: &'static str) -> Tile {
        Tile { tone, ..self }
    }
}
