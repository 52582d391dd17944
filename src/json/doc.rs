//! Look-ups in one text.

use std::cell::OnceCell;
use std::ops::Range;

use super::scan::{self, Field};
use super::{InvalidJson, Node};

/// Look-ups in one text that is scanned once, however many questions are asked: the places of the fields of every object that
/// is not inside an array are remembered (20 bytes a field).
#[derive(Debug)]
pub struct Doc<'a> {
    text: &'a str,
    root: Node<'a>,
    fields: OnceCell<Vec<Field>>,
}

impl<'a> Doc<'a> {
    /// A validated text.
    pub fn new(text: &'a str) -> Doc<'a> {
        Doc::of(Node::new(text))
    }

    /// Checks that the bytes are one JSON value, and remembers in the same pass where its fields are. The white space around it is
    /// no part of the document.
    pub fn parse(bytes: &'a [u8]) -> Result<Doc<'a>, InvalidJson> {
        let text = std::str::from_utf8(bytes).map_err(|_| InvalidJson::why(bytes))?;
        let root = Node::new(text);
        let fields = scan::fields(root.raw.as_bytes()).ok_or_else(|| InvalidJson::why(bytes))?;
        Ok(Doc {
            text: root.raw,
            root,
            fields: OnceCell::from(fields),
        })
    }

    /// A value inside a validated text.
    pub fn of(root: Node<'a>) -> Doc<'a> {
        Doc {
            text: root.raw,
            root,
            fields: OnceCell::new(),
        }
    }

    /// The same text, seen from the value under a key of the root; from `null` where there is none.
    #[must_use]
    pub fn descend(mut self, key: &str) -> Doc<'a> {
        self.root = self.get(self.root, key).unwrap_or(Node::NULL);
        self
    }

    /// The value that questions begin at.
    pub fn root(&self) -> Node<'a> {
        self.root
    }

    /// The same as [`Node::get`] for a value of this text, without scanning again.
    pub fn get(&self, node: Node<'a>, key: &str) -> Option<Node<'a>> {
        self.entries(node)
            .filter(|(name, _)| name.is(key))
            .last()
            .map(|(_, value)| value)
    }

    /// The same as [`Node::entries`] for a value of this text, without scanning again.
    pub fn entries(&self, node: Node<'a>) -> impl Iterator<Item = (Node<'a>, Node<'a>)> {
        let fields = self
            .fields
            .get_or_init(|| scan::fields(self.text.as_bytes()).unwrap_or_default());
        let (range, scanned) = match self.range_of(fields, node) {
            Some(range) => (range, None),
            None => (0..0, Some(node.entries())),
        };
        let mut at = range.start;
        let remembered = std::iter::from_fn(move || {
            let field = fields[..range.end].get(at)?;
            at = field.next as usize;
            let name = self.node(field.name_start, field.name_end);
            Some((name, self.node(field.value_start, field.value_end)))
        });
        remembered.chain(scanned.into_iter().flatten())
    }

    /// Which fields are inside an object; `None` where they are not remembered.
    fn range_of(&self, fields: &[Field], object: Node<'a>) -> Option<Range<usize>> {
        let start = self.place_of(object).start;
        if start == 0 {
            return (!fields.is_empty()).then_some(0..fields.len());
        }
        let start = u32::try_from(start).ok()?;
        let index = fields.binary_search_by_key(&start, |field| field.value_start).ok()?;
        Some(index + 1..fields[index].next as usize)
    }

    /// Where a value of this text is in it, in bytes.
    pub fn place_of(&self, node: Node<'a>) -> Range<usize> {
        let start = node.raw.as_ptr().addr().wrapping_sub(self.text.as_ptr().addr());
        start..start + node.raw.len()
    }

    fn node(&self, start: u32, end: u32) -> Node<'a> {
        Node {
            raw: self.text.get(start as usize..end as usize).unwrap_or_default(),
        }
    }
}
