//! What the machine says of who signs and where.

#[cfg(test)]
use std::collections::BTreeMap;
use std::sync::Arc;

/// What this machine says: its variables, as far as they count here.
#[derive(Clone)]
pub(in crate::sinks) struct Machine(Arc<Variables>);

type Variables = dyn Fn(&str) -> Option<String> + Send + Sync;

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Machine")
    }
}

impl Default for Machine {
    /// The one that this process runs on.
    fn default() -> Machine {
        Machine(Arc::new(|name| std::env::var(name).ok()))
    }
}

impl Machine {
    /// One with these variables and no others.
    #[cfg(test)]
    pub(super) fn of<const N: usize>(variables: [(&str, String); N]) -> Machine {
        Machine::with(
            variables
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    #[cfg(test)]
    pub(super) fn with(variables: BTreeMap<String, String>) -> Machine {
        Machine(Arc::new(move |name| variables.get(name).cloned()))
    }

    /// A variable that says something.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }
}
