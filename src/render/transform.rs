//! A transform as it is configured: JavaScript whose syntax was checked.

use std::sync::Arc;

/// JavaScript whose syntax was checked: a module that exports one function by default.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Transform {
    source: Arc<str>,
}

impl Transform {
    /// Checks the syntax; nothing of it is run. An error says what is wrong, and where, in one sentence.
    pub fn parse(source: &str) -> Result<Transform, String> {
        let transform = Transform::unchecked(source);
        super::guard::check(&super::Program::Transform(transform.clone()))
            .map_err(|fault| format!("not a transform{}", fault.words()))?;
        Ok(transform)
    }

    /// One whose syntax is not checked: what is wrong with it shows when it is run.
    pub fn unchecked(source: &str) -> Transform {
        Transform { source: source.into() }
    }

    /// As written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Tells programs apart without comparing them.
    pub(super) fn address(&self) -> usize {
        self.source.as_ptr().addr()
    }
}
