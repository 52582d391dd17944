//! What an event is known by, as both engines can write it: some of it is kept as a digest only, so that nobody makes a key of megabytes.

/// What makes an event the same event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownKey {
    /// SHA-256 of a body that can't be read.
    Quarantined([u8; 32]),
    /// A revision of an event.
    Revision {
        /// The event's id.
        id: KeyPart,
        /// Which revision.
        updated: KnownUpdated,
        /// Its data was withheld.
        partial: bool,
    },
}

/// A text, or the SHA-256 of one that is too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPart {
    /// As it came.
    Text(String),
    /// What is known of it.
    Digest([u8; 32]),
}

/// As [`crate::event::Updated`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KnownUpdated {
    /// Nanoseconds since the Unix epoch.
    Instant(i128),
    /// No date that can be read.
    Text(KeyPart),
    /// There is none.
    Missing,
}
