//! What a look at the servers and streams has found.

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What keeps closehook from serving, a sentence each.
    pub faults: Vec<String>,
    /// What weakens a promise that the user has let go, or will be too much one day; a sentence each.
    pub warnings: Vec<String>,
    /// What has to be known before anything is served, can't be seen now, and will be in a moment: of a server that has just gone its
    /// cluster has not noticed so yet. A sentence each.
    pub unseen: Vec<String>,
}

impl Found {
    /// As a person is told it, who does not wait.
    pub(super) fn into_said(mut self) -> Found {
        self.warnings.append(&mut self.unseen);
        self
    }
}
