//! JSON as text: a validating pass, then lazy, exact look-ups in the validated text.
//!
//! Nothing here recurses on input, converts a number to a float, or copies what it does not have to.

use std::borrow::Cow;

/// Checks that the bytes are UTF-8 and one valid JSON value (any nesting depth, without recursion), and hands back the text.
pub fn validate(_bytes: &[u8]) -> Result<&str, InvalidJson> {
    todo!()
}

/// The bytes are not one valid JSON value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not valid JSON: {0}")]
pub struct InvalidJson(pub String);

/// A validated JSON text to look things up in.
#[derive(Debug)]
pub struct Doc<'a> {
    text: &'a str,
}

impl<'a> Doc<'a> {
    /// `text` must be valid JSON (see [`validate`]); on anything else look-ups answer nonsense, but never panic.
    pub fn new(text: &'a str) -> Doc<'a> {
        Doc { text }
    }

    /// The whole value.
    pub fn root(&self) -> Node<'a> {
        Node { raw: self.text.trim() }
    }
}

/// One value inside a document: a slice of its text.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    raw: &'a str,
}

impl<'a> Node<'a> {
    /// What a missing key reads as.
    pub const NULL: Node<'static> = Node { raw: "null" };

    /// The value's text, exactly as written.
    pub fn raw(self) -> &'a str {
        self.raw
    }

    /// The value under a key; the last one where the key stands twice. `None` on anything but an object.
    pub fn get(self, _key: &str) -> Option<Node<'a>> {
        todo!()
    }

    /// The decoded string; `None` on anything else, and on a string with an unpaired surrogate.
    pub fn as_string(self) -> Option<Cow<'a, str>> {
        todo!()
    }
}

/// The text without the white space between tokens; every token stays as written.
pub fn compact(_text: &str) -> String {
    todo!()
}
